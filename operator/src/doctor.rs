//! `paddock-operator doctor NAMESPACE POLICY RUNTIME [HOST:PORT]`: examines the cluster, daily and for `helm test`, and stores what was found in the object
//! by which runs are refused. HOST:PORT is what the policy grants, and leads into the cluster: sandboxes with a network are looked at too.

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Service};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use paddock_crds::{DIAGNOSIS, Diagnosis, DiagnosisSpec, DiagnosisStatus, PolicyKind, PolicyRef};
use paddock_doctor::{
    Doctor, Finding, Look, Network, Place, PodAsked, answering, complete, examined_once, examined_twice, is_to_be_confirmed, status_of,
};
use paddock_policy::{expected, failing, unseen};
use paddock_protocol::name_servers;
use serde_json::json;

use crate::egress;
use crate::errand;
use crate::error::code;

/// The argument that makes this program examine the cluster.
pub(crate) const ARGUMENT: &str = "doctor";
/// Field manager.
const MANAGER: &str = "paddock-doctor";
/// The port of kubelets.
const KUBELET: u16 = 10250;
/// Nodes whose kubelets are tried: the first ones, as the API server lists them.
const MOST_NODES: u32 = 32;
/// Runs of the doctor that are older than its Job may be are nobody's any more.
const LEFT_BEHIND: SignedDuration = SignedDuration::from_mins(15);
/// Attempts to store what was found.
const STORED_WITHIN: usize = 10;

pub(crate) fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    errand::run(ARGUMENT, async |client| examine(client, &arguments).await)
}

async fn examine(client: Client, arguments: &[String]) -> Result<()> {
    let doctor = doctor(&client, arguments).await?;
    let expected = expected(doctor.network.is_some(), doctor.has_interface);
    let diagnoses = Api::all(client);
    let store = async |findings: &[Finding], began| store(&diagnoses, &Look { findings, began, ended: Timestamp::now() }).await;
    let began = Timestamp::now();
    doctor.clear(began - LEFT_BEHIND).await?;
    let first = complete(doctor.examine().await?, &expected);
    tell(&first);
    // Whatever becomes of another look.
    let mut diagnosis = store(&examined_once(first.clone()), began).await?;
    if is_to_be_confirmed(&first) {
        println!("something fails that may pass: everything is looked at once more");
        let began = Timestamp::now();
        let both = examined_twice(&first, complete(doctor.examine().await?, &expected));
        tell(&both);
        diagnosis = store(&both, began).await?;
    }
    let condition = diagnosis.status.iter().flat_map(|status| &status.conditions).next();
    let told = condition.map(|condition| format!("{}: {}", condition.reason, condition.message)).unwrap_or_default();
    let is_good = failing(&diagnosis).next().is_none() && unseen(&diagnosis).next().is_none();
    ensure!(is_good, "{told}; docs/operating.md tells what follows from it");
    println!("{told}");
    Ok(())
}

/// As this pod was told.
async fn doctor(client: &Client, arguments: &[String]) -> Result<Doctor> {
    let (namespace, policy, runtime, granted) = match arguments {
        [namespace, policy, runtime] => (namespace, policy, runtime, None),
        [namespace, policy, runtime, granted] => (namespace, policy, runtime, Some(granted)),
        _ => bail!("give a namespace, a ClusterSandboxPolicy, a runtime, and the destination that the policy grants, if it does"),
    };
    let network = match granted {
        Some(granted) => Some(network(client, granted).await?),
        None => None,
    };
    Ok(Doctor {
        client: client.clone(),
        namespace: namespace.clone(),
        policy: PolicyRef { kind: PolicyKind::ClusterSandboxPolicy, name: policy.clone() },
        runtime: runtime.clone(),
        privileged_pod: Some(PodAsked { namespace: namespace.clone(), runtime_class: Some(variable("SANDBOX_RUNTIME_CLASS")) }),
        has_interface: !variable("SANDBOX_HAS_INTERFACE").is_empty(),
        network,
        manager: MANAGER,
    })
}

fn tell(findings: &[Finding]) {
    for finding in findings {
        println!("{:<20} {:<8} {}", finding.check.as_str(), finding.verdict.as_str(), finding.seen);
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

async fn network(client: &Client, granted: &str) -> Result<Network> {
    let services: Api<Service> = Api::namespaced(client.clone(), &variable("POD_NAMESPACE"));
    let gateway = services.get(egress::NAME).await.context("cannot read the Service of the egress gateway")?;
    let nodes: Api<Node> = Api::all(client.clone());
    let nodes = nodes.list(&ListParams::default().limit(MOST_NODES)).await.context("cannot list nodes")?;
    let kubelets = nodes.items.iter().map(|node| (node.name_any(), kubelets(node)));
    let answering_kubelets = kubelets.map(async |(node, places)| (node, answering(places).await));
    let kubelets = join_all(answering_kubelets).await.into_iter().filter(|(_, places)| !places.is_empty()).collect();
    let places = answering(places()?).await;
    Ok(Network { granted: granted.to_owned(), leads_inside: true, places, kubelets, gateway: egress::addresses(&gateway) })
}

/// Where the kubelet of a node listens, which must not be reached from a sandbox.
fn kubelets(node: &Node) -> Vec<Place> {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let internal = addresses.filter(|address| address.type_ == "InternalIP");
    internal.filter_map(|address| Some(Place::Tcp(SocketAddr::new(address.address.parse().ok()?, KUBELET)))).collect()
}

/// Stores what was found, and returns the object as it is then. Where somebody else writes or deletes the object at the same time, it is read again.
async fn store(diagnoses: &Api<Diagnosis>, look: &Look<'_>) -> Result<Diagnosis> {
    for _ in 0..STORED_WITHIN {
        let Some(stored) = found_or_made(diagnoses).await? else { continue };
        let status = status_of(stored.status.as_ref().unwrap_or(&DiagnosisStatus::default()), look, &stored.spec.tolerated);
        let patch = Patch::Merge(json!({ "metadata": { "resourceVersion": stored.resource_version() }, "status": status }));
        match diagnoses.patch_status(DIAGNOSIS, &PatchParams::apply(MANAGER), &patch).await {
            Err(error) if matches!(code(&error), Some(404 | 409)) => {}
            patched => {
                patched.context("cannot store what was found")?;
                return Ok(Diagnosis { status: Some(status), ..stored });
            }
        }
    }
    bail!("cannot store what was found: others write the diagnosis all the time")
}

/// `None` if somebody else has made it at the same time.
async fn found_or_made(diagnoses: &Api<Diagnosis>) -> Result<Option<Diagnosis>> {
    let found = diagnoses.get_opt(DIAGNOSIS).await.context("cannot read what was found before")?;
    if found.is_some() {
        return Ok(found);
    }
    let posting = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
    match diagnoses.create(&posting, &Diagnosis::new(DIAGNOSIS, DiagnosisSpec::default())).await {
        Err(error) if code(&error) == Some(409) => Ok(None),
        made => made.map(Some).context("cannot create the diagnosis"),
    }
}

/// What listens in the cluster, as this pod was told: the API server, and its name servers.
fn places() -> Result<Vec<Place>> {
    let resolver = std::fs::read_to_string("/etc/resolv.conf").context("cannot read /etc/resolv.conf")?;
    let port = variable("KUBERNETES_SERVICE_PORT").parse().unwrap_or(443);
    Ok(places_of(&variable("KUBERNETES_SERVICE_HOST"), port, &resolver))
}

/// Pure.
fn places_of(api_server: &str, port: u16, resolver: &str) -> Vec<Place> {
    let api_server = api_server.parse::<IpAddr>().ok().map(|address| Place::Tcp(SocketAddr::new(address, port)));
    let servers = name_servers(resolver);
    api_server.into_iter().chain(servers.iter().copied().map(Place::Tcp)).chain(servers.iter().copied().map(Place::Dns)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_listens_in_the_cluster_is_taken_from_what_the_pod_was_told() {
        let named = |places: Vec<Place>| places.iter().map(ToString::to_string).collect::<Vec<_>>();
        let places = places_of("10.96.0.1", 443, "search svc\nnameserver 10.96.0.10\noptions ndots:5\n");
        assert_eq!(named(places), ["tcp://10.96.0.1:443", "tcp://10.96.0.10:53", "dns://10.96.0.10:53"]);
        assert_eq!(places_of("", 443, ""), []);
        let addresses = json!([
            { "type": "InternalIP", "address": "192.168.0.7" }, { "type": "InternalIP", "address": "fd00::7" },
            { "type": "ExternalIP", "address": "198.51.100.7" }, { "type": "Hostname", "address": "one" },
        ]);
        let node: Node = serde_json::from_value(json!({ "status": { "addresses": addresses } })).unwrap();
        assert_eq!(named(kubelets(&node)), ["tcp://192.168.0.7:10250", "tcp://[fd00::7]:10250"]);
    }
}
