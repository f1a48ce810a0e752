//! `kubectl paddock doctor`: whether this cluster keeps what Paddock promises. It runs scripts that try what must not be possible, with the rights of
//! whoever calls, and looks at what became of them.

mod checks;

use anyhow::Result;
use futures::future::join_all;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, PostParams};
use kube::runtime::wait::{Condition, await_condition};
use kube::{Api, ResourceExt as _};
use paddock_crds::{ConditionType, ScriptRun};
use serde_json::json;

use crate::arguments::{Doctor, Output};
use crate::cluster::{Cluster, explained, posting};
use crate::exit::Exit;
use crate::explain::whoever_asks;
use crate::manifest::policy_ref;
use crate::show::document;
use crate::table::{Cell, plain, table};
use crate::terminal::{Progress, Tone, has_colours, printable};
use checks::{Check, NodeSeen, PROBES, PrivilegedPod, Probe, Seen, Verdict, checks};

const REQUESTER: &str = "paddock.dev/requester";

pub(crate) async fn doctor(cluster: &Cluster, arguments: &Doctor) -> Result<Exit> {
    let checks = checks(&look(cluster, arguments).await?);
    match arguments.output {
        Output::Table => {
            let rows: Vec<Vec<Cell>> = checks.iter().map(row).collect();
            print!("{}", table(&["CHECK", "VERDICT", "WHAT WAS SEEN"], &rows, has_colours()));
        }
        Output::Json | Output::Yaml => print!("{}", document(&json!({ "checks": checks }), arguments.output == Output::Json)?),
    }
    Ok(if checks.iter().all(|check| check.verdict == Verdict::Holds) { Exit::Done } else { Exit::Failed })
}

fn row(check: &Check) -> Vec<Cell> {
    let tone = match check.verdict {
        Verdict::Holds => Tone::Good,
        Verdict::Fails => Tone::Bad,
        Verdict::Unknown => Tone::Faint,
    };
    vec![plain(check.name), (format!("{:?}", check.verdict), tone), plain(printable(&check.seen))]
}

/// Runs all probes at once, and asks what else there is to know.
async fn look(cluster: &Cluster, arguments: &Doctor) -> Result<Seen> {
    let caller = whoever_asks(cluster).await?.username;
    let forged = forge(cluster, arguments).await?;
    let mut progress = Progress::new();
    progress.tell(&format!("{} scripts try what must not be possible", PROBES.len()));
    let ended = join_all(PROBES.iter().map(|probe| ended(cluster, arguments, probe))).await;
    progress.end();
    let runs: Vec<ScriptRun> = ended.into_iter().collect::<Result<_>>()?;
    let pod = runs.iter().find_map(|run| run.status.as_ref()?.pod.clone());
    let node = node(cluster, pod.as_ref().and_then(|pod| pod.node.as_deref())).await;
    let privileged_pod = privileged_pod(cluster, pod.map(|pod| pod.namespace)).await;
    Ok(Seen { caller, forged, node, privileged_pod, runs })
}

fn probe_run(arguments: &Doctor, probe: &Probe) -> Result<ScriptRun> {
    let mut run: ScriptRun = serde_json::from_value(json!({
        "apiVersion": "paddock.dev/v1alpha1", "kind": "ScriptRun", "metadata": { "generateName": format!("doctor-{}-", probe.name) },
        "spec": {
            "policyRef": policy_ref(&arguments.policy)?,
            "script": { "runtime": arguments.runtime, "source": { "inline": probe.script } },
            "ttlSecondsAfterFinished": 600,
        },
    }))?;
    run.spec.timeout_seconds = Some(probe.timeout_seconds);
    Ok(run)
}

/// Runs one probe to its end, and deletes it.
async fn ended(cluster: &Cluster, arguments: &Doctor, probe: &Probe) -> Result<ScriptRun> {
    let api = cluster.runs();
    let wanted = probe_run(arguments, probe)?;
    let created = api.create(&posting(), &wanted).await.map_err(|error| explained(error, "create a run"))?;
    let name = created.name_any();
    let is_over =
        |run: Option<&ScriptRun>| run.and_then(|run| run.status.as_ref()).is_some_and(|status| status.is_true(&ConditionType::Finished));
    let ended = await_condition(api.clone(), &name, is_over.or(|run: Option<&ScriptRun>| run.is_none())).await;
    // Whoever may not delete runs leaves it to its time to live.
    let _ = api.delete(&name, &DeleteParams::default()).await;
    Ok(ended?.unwrap_or(created))
}

/// Tries to have a run that says that somebody else created it. What the API server answered, if it refused.
async fn forge(cluster: &Cluster, arguments: &Doctor) -> Result<Option<String>> {
    let mut forged = probe_run(arguments, &PROBES[0])?;
    forged.annotations_mut().insert(REQUESTER.into(), "system:admin".into());
    let only_asked = PostParams { dry_run: true, ..posting() };
    match cluster.runs().create(&only_asked, &forged).await {
        Ok(_) => Ok(None),
        Err(kube::Error::Api(answer)) if answer.code == 403 && answer.message.contains("ValidatingAdmissionPolicy") => {
            Ok(Some(answer.message.clone()))
        }
        Err(error) => Err(explained(error, "create a run")),
    }
}

/// What a node says of itself, for those who may read nodes.
async fn node(cluster: &Cluster, name: Option<&str>) -> Option<NodeSeen> {
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let status = nodes.get_opt(name?).await.ok()??.status?;
    let has_one_cpu = status.capacity.is_some_and(|capacity| capacity.get("cpu").is_some_and(|cpu| cpu.0 == "1"));
    Some(NodeSeen { kernel: status.node_info?.kernel_version, has_one_cpu })
}

/// Asks, without creating it, for a pod with all privileges in the namespace of the sandboxes.
async fn privileged_pod(cluster: &Cluster, namespace: Option<String>) -> PrivilegedPod {
    let Some(namespace) = namespace else { return PrivilegedPod::NotTried };
    let pod = json!({
        "metadata": { "generateName": "doctor-" },
        "spec": { "hostNetwork": true, "containers": [{ "name": "all", "image": "none.invalid/none", "securityContext": { "privileged": true } }] },
    });
    let Ok(pod) = serde_json::from_value::<Pod>(pod) else { return PrivilegedPod::NotTried };
    let only_asked = PostParams { dry_run: true, ..posting() };
    match Api::<Pod>::namespaced(cluster.client.clone(), &namespace).create(&only_asked, &pod).await {
        Ok(_) => PrivilegedPod::Taken,
        Err(kube::Error::Api(answer)) if answer.message.contains("violates PodSecurity") => PrivilegedPod::Refused,
        Err(_) => PrivilegedPod::NotTried,
    }
}
