//! `paddock-operator doctor NAMESPACE POLICY RUNTIME [HOST:PORT]`: examines the cluster, daily and for `helm test`, and stores what was found in the object
//! by which runs are refused. HOST:PORT is what the policy grants, and leads into the cluster: sandboxes with a network are looked at too.

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use paddock_crds::{CheckVerdict, DIAGNOSIS, Diagnosis, DiagnosisSpec, DiagnosisStatus, PolicyKind, PolicyRef};
use paddock_doctor::probes::Place;
use paddock_doctor::{Doctor, Network, answering, examined_twice, status_of};
use serde_json::json;

use crate::errand;
use crate::error::code;

/// The argument that makes this program examine the cluster.
pub(crate) const ARGUMENT: &str = "doctor";
/// Field manager.
const MANAGER: &str = "paddock-doctor";
/// The port of kubelets.
const KUBELET: u16 = 10250;
const DNS: u16 = 53;

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
        Some(granted) => Some(Network { granted: granted.clone(), leads_inside: true, places: answering(places()?).await }),
        None => None,
    };
    let doctor = Doctor {
        client: client.clone(),
        namespace: namespace.clone(),
        policy: PolicyRef { kind: PolicyKind::ClusterSandboxPolicy, name: policy.clone() },
        runtime: runtime.clone(),
        privileged_pod_in: Some(namespace.clone()),
        network,
        manager: MANAGER,
    };
    let mut findings = doctor.examine().await?;
    if findings.iter().any(|finding| finding.verdict == CheckVerdict::Fails) {
        println!("something fails: everything is looked at once more");
        findings = examined_twice(&findings, doctor.examine().await?);
    }
    for finding in &findings {
        println!("{:<20} {:<8} {}", finding.check.as_str(), finding.verdict.as_str(), finding.seen);
    }
    let diagnoses: Api<Diagnosis> = Api::all(client);
    let status = status_of(&stored(&diagnoses).await?, &findings, Timestamp::now());
    let patch = Patch::Merge(json!({ "status": status }));
    diagnoses.patch_status(DIAGNOSIS, &PatchParams::apply(MANAGER), &patch).await.context("cannot store what was found")?;
    let failing = status.checks.iter().filter(|result| result.verdict == CheckVerdict::Fails).count();
    ensure!(
        failing == 0,
        "{failing} checks fail, and runs that depend on them are refused: kubectl get diagnosis {DIAGNOSIS} --output yaml"
    );
    Ok(())
}

/// What was found before. The object is made where it is missing.
async fn stored(diagnoses: &Api<Diagnosis>) -> Result<DiagnosisStatus> {
    let found = diagnoses.get_opt(DIAGNOSIS).await.context("cannot read what was found before")?;
    if let Some(found) = found {
        return Ok(found.status.unwrap_or_default());
    }
    let posting = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
    match diagnoses.create(&posting, &Diagnosis::new(DIAGNOSIS, DiagnosisSpec::default())).await {
        // Somebody else has made it meanwhile, and nobody has found anything yet.
        Err(error) if code(&error) != Some(409) => Err(error).context("cannot create the diagnosis"),
        _ => Ok(DiagnosisStatus::default()),
    }
}

/// What listens in the cluster, as this pod was told: the API server, the kubelet of its node, and its name servers.
fn places() -> Result<Vec<Place>> {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let (host, port) = (variable("KUBERNETES_SERVICE_HOST"), variable("KUBERNETES_SERVICE_PORT"));
    let resolver = std::fs::read_to_string("/etc/resolv.conf").context("cannot read /etc/resolv.conf")?;
    Ok(places_of(&host, port.parse().unwrap_or(443), &variable("HOST_IPS"), &resolver))
}

/// Pure.
fn places_of(api_server: &str, port: u16, host_ips: &str, resolver: &str) -> Vec<Place> {
    let address = |text: &str, port: u16| text.trim().parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, port));
    let kubelets = host_ips.split(',').filter_map(|ip| address(ip, KUBELET));
    let servers: Vec<SocketAddr> = resolver.lines().filter_map(|line| address(line.trim().strip_prefix("nameserver")?, DNS)).collect();
    let listening = address(api_server, port).into_iter().chain(kubelets).chain(servers.iter().copied()).map(Place::Tcp);
    listening.chain(servers.iter().copied().map(Place::Dns)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_listens_in_the_cluster_is_taken_from_what_the_pod_was_told() {
        let places = places_of("10.96.0.1", 443, "192.168.0.7,fd00::7", "search svc\nnameserver 10.96.0.10\noptions ndots:5\n");
        let named: Vec<String> = places.iter().map(ToString::to_string).collect();
        let expected =
            ["tcp://10.96.0.1:443", "tcp://192.168.0.7:10250", "tcp://[fd00::7]:10250", "tcp://10.96.0.10:53", "dns://10.96.0.10:53"];
        assert_eq!(named, expected);
        assert_eq!(places_of("", 443, "", ""), []);
    }
}
