//! Killing what runs the cluster, and waiting until it is back; servers in its network.

use std::net::TcpListener;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use paddock_e2e::cluster::layout::NODE_ADDRESS;
use paddock_e2e::cluster::{component, lifecycle, process};
use serde_json::json;

use super::internet::inside;
use super::{OPERATOR_NAMESPACE, eventually, kubectl, layout, operators};

/// The pod whose name is on the lease, once it is ready.
pub async fn leader(client: &Client) -> Pod {
    let leases: Api<k8s_openapi::api::coordination::v1::Lease> = Api::namespaced(client.clone(), OPERATOR_NAMESPACE);
    eventually("there is a leader", || async {
        let lease = leases.get_opt("paddock-operator").await.unwrap_or_default();
        let holder = lease.and_then(|lease| lease.spec).and_then(|spec| spec.holder_identity).unwrap_or_default();
        let pods = operators(client).await;
        pods.into_iter().find(|pod| is_of(&holder, pod) && is_ready(pod)).ok_or(holder)
    })
    .await
}

/// Whether the process whose name is on the lease is, or was, in this pod.
pub fn is_of(holder: &str, pod: &Pod) -> bool {
    holder.rsplit_once('_').is_some_and(|(name, _)| name == pod.name_any())
}

pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Process id of the one container of a pod, from containerd.
pub async fn process_of(client: &Client, pod: &Pod) -> Pid {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap());
    eventually("containerd knows the container", || async {
        let status = api.get(&pod.name_any()).await.map_err(|error| error.to_string())?.status.unwrap_or_default();
        let container = status.container_statuses.unwrap_or_default().into_iter().next().ok_or("no container")?;
        let is_running = container.state.as_ref().is_some_and(|state| state.running.is_some());
        let id = container.container_id.filter(|_| is_running).ok_or("not running")?;
        let tasks = ctr(&["tasks", "list"]).map_err(|error| error.to_string())?;
        let line = tasks.lines().find(|line| line.starts_with(id.trim_start_matches("containerd://"))).ok_or("no task")?;
        Ok::<_, String>(Pid::from_raw(line.split_whitespace().nth(1).ok_or("no process")?.parse().map_err(|_| "no number")?))
    })
    .await
}

pub async fn kill_operator(client: &Client) {
    let pod = leader(client).await;
    // It may have ended by itself meanwhile.
    let _ = kill(process_of(client, &pod).await, Signal::SIGKILL);
}

pub async fn end(name: &str) {
    let record = process::record(&layout(), name).unwrap();
    record.signal(Signal::SIGKILL);
    eventually("the process has ended", || async { if record.is_alive() { Err(name) } else { Ok(()) } }).await;
}

pub fn begin(name: &str) {
    let layout = layout();
    lifecycle::start(&layout, &component::built(&layout).unwrap(), name).unwrap();
}

/// Begins every process of the cluster that a test ended and, since it failed, did not begin again.
pub async fn begin_what_has_ended() {
    for name in lifecycle::PROCESSES {
        if process::record(&layout(), name).is_none_or(|record| !record.is_alive()) {
            begin(name);
        }
    }
    eventually("the API server answers", || async { kubectl(&["get", "--raw", "/readyz"], "") }).await;
}

/// Upgrades the release as an administrator would, with these values changed.
pub fn upgrade(values: &[String]) {
    let mut helm = std::process::Command::new(component::build_one(&layout(), "helm").unwrap());
    helm.env("KUBECONFIG", layout().kubeconfig()).args(["upgrade", "paddock"]).arg(layout().clone.join("charts/paddock"));
    helm.args(["--namespace", OPERATOR_NAMESPACE, "--reuse-values", "--force-conflicts", "--wait", "--timeout", "300s"]);
    helm.args(values.iter().flat_map(|value| ["--set", value]));
    paddock_e2e::cluster::command::run(&mut helm).unwrap();
}

/// Runs containerd's own client.
pub fn ctr(arguments: &[&str]) -> anyhow::Result<String> {
    let layout = layout();
    let mut ctr = lifecycle::ctr(&layout, &component::built(&layout)?)?;
    paddock_e2e::cluster::command::run(ctr.args(["--namespace", "k8s.io"]).args(arguments))
}

pub async fn scale(client: &Client, replicas: usize) {
    let api: Api<Deployment> = Api::namespaced(client.clone(), OPERATOR_NAMESPACE);
    let patch = Patch::Merge(json!({ "spec": { "replicas": replicas } }));
    api.patch("paddock-operator", &PatchParams::default(), &patch).await.unwrap();
    eventually("as many replicas are ready", || async {
        let ready = operators(client).await.iter().filter(|pod| is_ready(pod)).count();
        if ready == replicas { Ok(()) } else { Err(ready) }
    })
    .await;
}

/// One replica with the flags that the suite is installed with, but for those given.
pub async fn with_arguments(client: &Client, changed: &[&str]) {
    let api: Api<Deployment> = Api::namespaced(client.clone(), OPERATOR_NAMESPACE);
    let mut deployment = api.get("paddock-operator").await.unwrap();
    let before = deployment.spec.clone();
    let spec = deployment.spec.as_mut().unwrap();
    spec.replicas = Some(1);
    let arguments = spec.template.spec.as_mut().unwrap().containers[0].args.as_mut().unwrap();
    for wanted in
        ["--runner-delivery=auto", "--start-budget-seconds=60", "--max-concurrent=1000", "--log-format=json"].iter().chain(changed)
    {
        let (flag, _) = wanted.split_once('=').unwrap();
        let argument = arguments.iter_mut().find(|argument| argument.starts_with(flag)).unwrap();
        (*wanted).clone_into(argument);
    }
    if deployment.spec == before {
        return;
    }
    deployment.metadata.managed_fields = None;
    let generation = api.replace("paddock-operator", &PostParams::default(), &deployment).await.unwrap().metadata.generation;
    eventually("the operator is rolled out", || async {
        let status = api.get("paddock-operator").await.unwrap().status.unwrap_or_default();
        let is_done =
            status.observed_generation >= generation && [status.updated_replicas, status.ready_replicas, status.replicas] == [Some(1); 3];
        if is_done { Ok(()) } else { Err(status) }
    })
    .await;
    leader(client).await;
}

/// A socket in the network namespace of the cluster, where pods reach it.
pub fn listen(port: u16) -> TcpListener {
    inside(move || {
        let listener = TcpListener::bind((NODE_ADDRESS, port)).unwrap();
        listener.set_nonblocking(true).unwrap();
        listener
    })
}
