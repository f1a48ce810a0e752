//! Trying, with the rights of whoever examines the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::future::join_all;
use futures::try_join;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::runtime::wait::{Condition, await_condition};
use kube::{Api, Client, ResourceExt as _};
use paddock_crds::{ConditionType, PodRef, PolicyRef, ScriptRun, ScriptRunStatus};
use paddock_protocol::ROOT_QUESTION;
use serde_json::json;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::checks::{Finding, Networked, PrivilegedPod, REQUESTER, Runs, Seen, findings};
use crate::probes::{CPU_MILLI, MEMORY_MIB, Place, Probe, SCRATCH_MIB};

/// How the API server names what refuses a forged stamp.
const GUARD: &str = "ValidatingAdmissionPolicy 'paddock-stamp'";
/// How long a place may take to answer.
const ANSWER: Duration = Duration::from_secs(2);
/// Time to live of the probes, in seconds, where whoever examines may not delete them.
const LEFT: i64 = 600;

/// Where and how to try.
pub struct Doctor {
    /// The rights of whoever examines.
    pub client: Client,
    /// Where the probes run.
    pub namespace: String,
    /// Under which policy.
    pub policy: PolicyRef,
    /// A runtime with a POSIX shell.
    pub runtime: String,
    /// Where a privileged pod is asked for; by default in the namespace of the sandboxes.
    pub privileged_pod: Option<PodAsked>,
    /// Every sandbox has an interface, and network policies confine it.
    pub has_interface: bool,
    /// What to try with a network, if anything.
    pub network: Option<Network>,
    /// By this name others see who has written a field.
    pub manager: &'static str,
}

/// A pod with all privileges, as it is asked for.
#[derive(Clone, Debug)]
pub struct PodAsked {
    /// Where.
    pub namespace: String,
    /// That of sandboxes: what exempts it from Pod Security exempts them.
    pub runtime_class: Option<String>,
}

/// What is tried with a network.
#[derive(Clone, Debug, Default)]
pub struct Network {
    /// What the policy grants, as in `spec.capabilities.network`: host and port.
    pub granted: String,
    /// It leads into the cluster, so that the gateway must refuse it all the same.
    pub leads_inside: bool,
    /// What answers whoever examines, and must not answer a sandbox.
    pub places: Vec<Place>,
    /// The same of kubelets, by the name of their node. Some network policy controllers let pods reach that of their own.
    pub kubelets: BTreeMap<String, Vec<Place>>,
    /// Addresses of the egress gateway, if they are known: over these the runner has looked before the start.
    pub gateway: Vec<IpAddr>,
}

/// A probe that has not ended after so long is not waited for: nothing is known by it.
const LONGEST: Duration = Duration::from_secs(120);

impl Doctor {
    /// How many scripts [`Self::examine`] runs.
    pub fn probes(&self) -> usize {
        5 + usize::from(self.network.is_some())
    }

    /// Runs all probes, and looks at what there is to see besides.
    ///
    /// # Errors
    /// Runs cannot be created. What the probes came to is no error.
    pub async fn examine(&self) -> Result<Vec<Finding>> {
        Ok(findings(&*Box::pin(self.look()).await?))
    }

    async fn look(&self) -> Result<Box<Seen>> {
        let reviews: Api<SelfSubjectReview> = Api::all(self.client.clone());
        let review = reviews.create(&PostParams::default(), &SelfSubjectReview::default()).await.context("cannot ask who you are")?;
        let caller = review.status.and_then(|status| status.user_info).and_then(|user| user.username).unwrap_or_default();
        let forgery_is_refused = self.forgery_is_refused().await?;
        let (runs, networked) = Box::pin(self.try_everything()).await?;
        let ended = [&runs.inside, &runs.memory, &runs.time].into_iter().chain(networked.as_ref().map(|networked| &networked.run));
        let pods: Vec<PodRef> = ended.filter_map(|run| run.status.as_ref()?.pod.clone()).collect();
        let kernels = self.kernels(&pods).await;
        let beside = pods.first().map(|pod| PodAsked { namespace: pod.namespace.clone(), runtime_class: None });
        let privileged_pod = self.try_privileged_pod(self.privileged_pod.clone().or(beside)).await;
        let has_interface = self.has_interface;
        Ok(Box::new(Seen { caller, forgery_is_refused, kernels, privileged_pod, has_interface, runs, networked }))
    }

    /// Those that take what they can get at once. Then, each by itself, the one for which silence is good news and the one that the others would keep from
    /// what it could have without a limit.
    async fn try_everything(&self) -> Result<(Runs, Option<Networked>)> {
        let probes = [Probe::inside(), Probe::memory(), Probe::time(), Probe::processes()];
        let [inside, memory, time, processes] = probes.each_ref().map(|probe| self.ended(probe));
        let (inside, memory, time, processes) = try_join!(inside, memory, time, processes)?;
        let networked = match &self.network {
            Some(network) => Some(Networked { run: self.ended(&Probe::networked(network)).await?, network: network.clone() }),
            None => None,
        };
        let cpu = self.ended(&Probe::cpu()).await?;
        Ok((Runs { inside, memory, time, cpu, processes }, networked))
    }

    fn runs(&self) -> Api<ScriptRun> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn posting(&self) -> PostParams {
        PostParams { field_manager: Some(self.manager.into()), ..PostParams::default() }
    }

    fn run_of(&self, probe: &Probe) -> Result<ScriptRun> {
        let mut run: ScriptRun = serde_json::from_value(json!({
            "apiVersion": "paddock.dev/v1alpha1", "kind": "ScriptRun", "metadata": { "generateName": format!("doctor-{}-", probe.name) },
            "spec": {
                "policyRef": self.policy,
                "script": { "runtime": self.runtime, "source": { "inline": probe.script } },
                "resources": { "memory": format!("{MEMORY_MIB}Mi"), "scratch": format!("{SCRATCH_MIB}Mi"), "cpu": format!("{CPU_MILLI}m") },
                "ttlSecondsAfterFinished": LEFT,
            },
        }))?;
        run.spec.timeout_seconds = Some(probe.timeout_seconds);
        if let Some(destination) = &probe.network {
            run.spec.capabilities = Some(serde_json::from_value(json!({ "network": [destination] }))?);
        }
        Ok(run)
    }

    /// Runs one probe to its end, and deletes it.
    async fn ended(&self, probe: &Probe) -> Result<ScriptRun> {
        let api = self.runs();
        let created = api.create(&self.posting(), &self.run_of(probe)?).await.context("cannot create a run")?;
        let name = created.name_any();
        let is_over = |status: &ScriptRunStatus| status.is_true(&ConditionType::Finished);
        let is_over = move |run: Option<&ScriptRun>| run.and_then(|run| run.status.as_ref()).is_some_and(is_over);
        let ended = timeout(LONGEST, await_condition(api.clone(), &name, is_over.or(|run: Option<&ScriptRun>| run.is_none()))).await;
        // Whoever may not delete runs leaves it to its time to live.
        let _ = api.delete(&name, &DeleteParams::default()).await;
        // What became of one that could not be watched is not known, and the others are not in vain for it.
        Ok(ended.ok().and_then(Result::ok).flatten().unwrap_or(created))
    }

    /// Tries to have a run that says that somebody else created it.
    async fn forgery_is_refused(&self) -> Result<bool> {
        let mut forged = self.run_of(&Probe::inside())?;
        forged.annotations_mut().insert(REQUESTER.into(), "system:admin".into());
        let only_asked = PostParams { dry_run: true, ..self.posting() };
        match self.runs().create(&only_asked, &forged).await {
            Ok(_) => Ok(false),
            Err(kube::Error::Api(answer)) if answer.code == 403 && answer.message.contains(GUARD) => Ok(true),
            Err(error) => Err(error).context("cannot create a run"),
        }
    }

    /// What nodes say of their kernels, for those who may read nodes.
    async fn kernels(&self, pods: &[PodRef]) -> BTreeMap<String, String> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let names: BTreeSet<&String> = pods.iter().filter_map(|pod| pod.node.as_ref()).collect();
        let mut kernels = BTreeMap::new();
        for name in names {
            let info = nodes.get_opt(name).await.ok().flatten().and_then(|node| node.status?.node_info);
            kernels.extend(info.map(|info| (name.clone(), info.kernel_version)));
        }
        kernels
    }

    /// Asks, without creating it, for a pod with all privileges.
    async fn try_privileged_pod(&self, asked: Option<PodAsked>) -> PrivilegedPod {
        let Some(PodAsked { namespace, runtime_class }) = asked else { return PrivilegedPod::NotTried };
        let pod = json!({
            "metadata": { "generateName": "doctor-" },
            "spec": {
                "hostNetwork": true, "runtimeClassName": runtime_class,
                "containers": [{ "name": "all", "image": "none.invalid/none", "securityContext": { "privileged": true } }],
            },
        });
        let Ok(pod) = serde_json::from_value::<Pod>(pod) else { return PrivilegedPod::NotTried };
        let only_asked = PostParams { dry_run: true, ..self.posting() };
        match Api::<Pod>::namespaced(self.client.clone(), &namespace).create(&only_asked, &pod).await {
            Ok(_) => PrivilegedPod::Taken,
            Err(kube::Error::Api(answer)) if answer.message.contains("violates PodSecurity") => PrivilegedPod::Refused,
            Err(_) => PrivilegedPod::NotTried,
        }
    }

    /// Deletes what earlier looks have left that did not come to their end.
    ///
    /// # Errors
    /// Runs cannot be listed.
    pub async fn clear(&self, before: Timestamp) -> Result<()> {
        let api = self.runs();
        let left = api.list(&ListParams::default()).await.context("cannot list runs")?;
        for run in left.items.iter().filter(|run| run.creation_timestamp().is_some_and(|created| created.0 < before)) {
            let _ = api.delete(&run.name_any(), &DeleteParams::default()).await;
        }
        Ok(())
    }
}

/// Which of these places answer whoever asks: silence of another says nothing to a sandbox.
pub async fn answering(places: Vec<Place>) -> Vec<Place> {
    let asked = join_all(places.into_iter().map(async |place| (place, answers(place).await))).await;
    asked.into_iter().filter(|(_, answers)| *answers).map(|(place, _)| place).collect()
}

async fn answers(place: Place) -> bool {
    let asked = async {
        match place {
            Place::Tcp(address) => TcpStream::connect(address).await.is_ok(),
            Place::Dns(address) => asks_dns(address).await.is_ok_and(|length| length > 0),
        }
    };
    timeout(ANSWER, asked).await.unwrap_or(false)
}

async fn asks_dns(server: SocketAddr) -> std::io::Result<usize> {
    let here: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(here).await?;
    socket.connect(server).await?;
    socket.send(&ROOT_QUESTION).await?;
    socket.recv(&mut [0; 512]).await
}
