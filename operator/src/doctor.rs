//! `paddock-operator doctor NAMESPACE POLICY RUNTIME [HOST:PORT]`: examines the cluster, daily and for `helm test`, and stores what was found in the object
//! by which runs are refused. HOST:PORT is what the policy grants, and leads into the cluster: sandboxes with a network are looked at too.

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Service;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use paddock_crds::{Check, DIAGNOSIS, Diagnosis, DiagnosisSpec, DiagnosisStatus, PolicyKind, PolicyRef};
use paddock_doctor::probes::Place;
use paddock_doctor::{
    Doctor, Finding, Look, Network, answering, complete, examined_twice, expected, is_good, is_to_be_confirmed, status_of,
};
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
const DNS: u16 = 53;
/// Runs of the doctor that are older than its Job may be are nobody's any more.
const LEFT_BEHIND: SignedDuration = SignedDuration::from_mins(15);
/// Attempts to store what was found.
const STORED_WITHIN: usize = 10;

pub(crate) fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    errand::run(ARGUMENT, async |client| examine(client, &arguments).await)
}

async fn examine(client: Client, arguments: &[String]) -> Result<()> {
    let (namespace, policy, runtime, granted) = match arguments {
        [namespace, policy, runtime] => (namespace, policy, runtime, None),
        [namespace, policy, runtime, granted] => (namespace, policy, runtime, Some(granted)),
        _ => bail!("give a namespace, a ClusterSandboxPolicy, a runtime, and the destination that the policy grants, if it does"),
    };
    let network = match granted {
        Some(granted) => Some(network(&client, granted).await?),
        None => None,
    };
    let has_interface = !variable("SANDBOX_HAS_INTERFACE").is_empty();
    let expected = expected(network.is_some(), has_interface);
    let doctor = Doctor {
        client: client.clone(),
        namespace: namespace.clone(),
        policy: PolicyRef { kind: PolicyKind::ClusterSandboxPolicy, name: policy.clone() },
        runtime: runtime.clone(),
        privileged_pod: Some((namespace.clone(), variable("SANDBOX_RUNTIME_CLASS"))),
        has_interface,
        network,
        manager: MANAGER,
    };
    let began = Timestamp::now();
    doctor.clear(began - LEFT_BEHIND).await?;
    let mut findings = complete(doctor.examine().await?, &expected);
    tell(&findings);
    if is_to_be_confirmed(&findings) {
        println!("something fails that may pass: everything is looked at once more");
        findings = examined_twice(&findings, complete(doctor.examine().await?, &expected));
        tell(&findings);
    }
    let look = Look { findings: &findings, began, ended: Timestamp::now() };
    let (status, tolerated) = store(&Api::all(client), &look).await?;
    let told = status.conditions.first().map(|condition| format!("{}: {}", condition.reason, condition.message)).unwrap_or_default();
    ensure!(is_good(&status, &tolerated), "{told}; docs/operating.md tells what follows from it");
    println!("{told}");
    Ok(())
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
    let places = answering(places()?).await;
    Ok(Network { granted: granted.to_owned(), leads_inside: true, places, gateway: egress::addresses(&gateway) })
}

/// Stores what was found, and returns it with what is tolerated. Where somebody else writes or deletes the object at the same time, it is read again.
async fn store(diagnoses: &Api<Diagnosis>, look: &Look<'_>) -> Result<(DiagnosisStatus, Vec<Check>)> {
    for _ in 0..STORED_WITHIN {
        let stored = match diagnoses.get_opt(DIAGNOSIS).await.context("cannot read what was found before")? {
            Some(stored) => stored,
            None => {
                let posting = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
                match diagnoses.create(&posting, &Diagnosis::new(DIAGNOSIS, DiagnosisSpec::default())).await {
                    Err(error) if code(&error) == Some(409) => continue,
                    created => created.context("cannot create the diagnosis")?,
                }
            }
        };
        let status = status_of(&stored.status.clone().unwrap_or_default(), look, &stored.spec.tolerated);
        let patch = Patch::Merge(json!({ "metadata": { "resourceVersion": stored.resource_version() }, "status": status }));
        match diagnoses.patch_status(DIAGNOSIS, &PatchParams::apply(MANAGER), &patch).await {
            Err(error) if matches!(code(&error), Some(404 | 409)) => {}
            patched => {
                patched.context("cannot store what was found")?;
                return Ok((status, stored.spec.tolerated));
            }
        }
    }
    bail!("cannot store what was found: others write the diagnosis all the time")
}

/// What listens in the cluster, as this pod was told: the API server, the kubelet of its node, and its name servers.
fn places() -> Result<Vec<Place>> {
    let (host, port) = (variable("KUBERNETES_SERVICE_HOST"), variable("KUBERNETES_SERVICE_PORT"));
    let resolver = std::fs::read_to_string("/etc/resolv.conf").context("cannot read /etc/resolv.conf")?;
    Ok(places_of(&host, port.parse().unwrap_or(443), &variable("HOST_IPS"), &resolver))
}

/// Pure.
fn places_of(api_server: &str, port: u16, host_ips: &str, resolver: &str) -> Vec<Place> {
    let address = |text: &str, port: u16| text.trim().parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, port));
    let kubelets = host_ips.split(',').filter_map(|ip| address(ip, KUBELET)).map(Place::Kubelet);
    let servers: Vec<SocketAddr> = resolver.lines().filter_map(|line| address(line.trim().strip_prefix("nameserver")?, DNS)).collect();
    let listening = address(api_server, port).into_iter().chain(servers.iter().copied()).map(Place::Tcp);
    listening.chain(kubelets).chain(servers.iter().copied().map(Place::Dns)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_listens_in_the_cluster_is_taken_from_what_the_pod_was_told() {
        let places = places_of("10.96.0.1", 443, "192.168.0.7,fd00::7", "search svc\nnameserver 10.96.0.10\noptions ndots:5\n");
        let named: Vec<String> = places.iter().map(ToString::to_string).collect();
        let expected =
            ["tcp://10.96.0.1:443", "tcp://10.96.0.10:53", "tcp://192.168.0.7:10250", "tcp://[fd00::7]:10250", "dns://10.96.0.10:53"];
        assert_eq!(named, expected);
        assert_eq!(places_of("", 443, "", ""), []);
    }
}
