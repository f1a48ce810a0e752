//! Trying, with the rights of whoever examines the cluster.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::future::join_all;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, PostParams};
use kube::runtime::wait::{Condition, await_condition};
use kube::{Api, Client, ResourceExt as _};
use paddock_crds::{ConditionType, PolicyRef, ScriptRun, ScriptRunStatus};
use serde_json::json;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::checks::{Finding, Networked, NodeSeen, PrivilegedPod, REQUESTER, Runs, Seen, findings};
use crate::probes::{Place, Probe};

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
    /// Where a privileged pod is asked for; by default the namespace of the sandboxes.
    pub privileged_pod_in: Option<String>,
    /// What to try with a network, if anything.
    pub network: Option<Network>,
    /// By this name others see who has written a field.
    pub manager: &'static str,
}

/// What is tried with a network.
pub struct Network {
    /// What the policy grants, as in `spec.capabilities.network`: host and port.
    pub granted: String,
    /// It leads into the cluster.
    pub leads_inside: bool,
    /// What answers whoever examines, and must not answer a sandbox.
    pub places: Vec<Place>,
}

impl Doctor {
    /// How many scripts [`Self::examine`] runs.
    pub fn probes(&self) -> usize {
        5 + usize::from(self.network.is_some())
    }

    /// Runs all probes at once, and looks at what there is to see besides.
    ///
    /// # Errors
    /// Runs cannot be created or watched. What the probes came to is no error.
    pub async fn examine(&self) -> Result<Vec<Finding>> {
        Ok(findings(&*Box::pin(self.look()).await?))
    }

    async fn look(&self) -> Result<Box<Seen>> {
        let reviews: Api<SelfSubjectReview> = Api::all(self.client.clone());
        let review = reviews.create(&PostParams::default(), &SelfSubjectReview::default()).await.context("cannot ask who you are")?;
        let caller = review.status.and_then(|status| status.user_info).and_then(|user| user.username).unwrap_or_default();
        let forgery_is_refused = self.forgery_is_refused().await?;
        let mut probes = vec![Probe::inside(), Probe::memory(), Probe::time(), Probe::cpu(), Probe::processes()];
        probes.extend(self.network.as_ref().map(|network| Probe::networked(&network.granted, &network.places)));
        let mut ended = join_all(probes.iter().map(|probe| self.ended(probe))).await.into_iter();
        let mut next = || ended.next().context("a probe is missing")?;
        let runs = Runs { inside: next()?, memory: next()?, time: next()?, cpu: next()?, processes: next()? };
        let networked = match &self.network {
            Some(Network { granted, leads_inside, places }) => {
                Some(Networked { run: next()?, granted: granted.clone(), leads_inside: *leads_inside, places: places.clone() })
            }
            None => None,
        };
        let pod = |run: &ScriptRun| run.status.as_ref()?.pod.clone();
        let pod = [&runs.inside, &runs.memory, &runs.time].into_iter().find_map(pod);
        let node = self.node(pod.as_ref().and_then(|pod| pod.node.as_deref())).await;
        let beside = self.privileged_pod_in.clone().or(pod.map(|pod| pod.namespace));
        let privileged_pod = self.privileged_pod(beside).await;
        Ok(Box::new(Seen { caller, forgery_is_refused, node, privileged_pod, runs, networked }))
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
        let ended = await_condition(api.clone(), &name, is_over.or(|run: Option<&ScriptRun>| run.is_none())).await;
        // Whoever may not delete runs leaves it to its time to live.
        let _ = api.delete(&name, &DeleteParams::default()).await;
        Ok(ended.context("cannot watch a run")?.unwrap_or(created))
    }

    /// Tries to have a run that says that somebody else created it.
    async fn forgery_is_refused(&self) -> Result<bool> {
        let mut forged = self.run_of(&Probe::inside())?;
        forged.annotations_mut().insert(REQUESTER.into(), "system:admin".into());
        let only_asked = PostParams { dry_run: true, ..self.posting() };
        match self.runs().create(&only_asked, &forged).await {
            Ok(_) => Ok(false),
            Err(kube::Error::Api(answer)) if answer.code == 403 && answer.message.contains("ValidatingAdmissionPolicy") => Ok(true),
            Err(error) => Err(error).context("cannot create a run"),
        }
    }

    /// What a node says of itself, for those who may read nodes.
    async fn node(&self, name: Option<&str>) -> Option<NodeSeen> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let status = nodes.get_opt(name?).await.ok()??.status?;
        let has_one_cpu = status.capacity.is_some_and(|capacity| capacity.get("cpu").is_some_and(|cpu| cpu.0 == "1"));
        Some(NodeSeen { kernel: status.node_info?.kernel_version, has_one_cpu })
    }

    /// Asks, without creating it, for a pod with all privileges.
    async fn privileged_pod(&self, namespace: Option<String>) -> PrivilegedPod {
        let Some(namespace) = namespace else { return PrivilegedPod::NotTried };
        let pod = json!({
            "metadata": { "generateName": "doctor-" },
            "spec": { "hostNetwork": true, "containers": [{ "name": "all", "image": "none.invalid/none", "securityContext": { "privileged": true } }] },
        });
        let Ok(pod) = serde_json::from_value::<Pod>(pod) else { return PrivilegedPod::NotTried };
        let only_asked = PostParams { dry_run: true, ..self.posting() };
        match Api::<Pod>::namespaced(self.client.clone(), &namespace).create(&only_asked, &pod).await {
            Ok(_) => PrivilegedPod::Taken,
            Err(kube::Error::Api(answer)) if answer.message.contains("violates PodSecurity") => PrivilegedPod::Refused,
            Err(_) => PrivilegedPod::NotTried,
        }
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

/// A question for the servers of the root, which every name server answers, if only with a refusal (RFC 1035, 4.1).
const QUESTION: [u8; 17] = [0x50, 0x44, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];

async fn asks_dns(server: SocketAddr) -> std::io::Result<usize> {
    let here: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(here).await?;
    socket.connect(server).await?;
    socket.send(&QUESTION).await?;
    socket.recv(&mut [0; 512]).await
}
