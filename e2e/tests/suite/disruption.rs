//! Runs that live through the death of what runs them. These tests disturb everything, so they run one after the other.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::harness::disturb::{begin, begin_what_has_ended, ctr, end, is_of, kill_operator, leader, process_of, scale, with_arguments};
use crate::harness::{OPERATOR_NAMESPACE, Script, Tenant, admin, assert_end, eventually, kubectl, layout, status, stdout, tenant};
use crate::pool::{WARM, filled, make_pool, path, pod_uid, sandboxes};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use nix::sys::signal::{Signal, kill};
use paddock_crds::{ConditionType, Phase, Reason, ScriptRun, ScriptRunStatus};
use paddock_e2e::cluster::lifecycle::containerd_is_ready;
use serde_json::json;
use tokio::sync::{Mutex, MutexGuard};

static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

async fn alone() -> MutexGuard<'static, ()> {
    let guard = ONE_AT_A_TIME.lock().await;
    let client = admin().await;
    // What a test before this one may have left when it failed.
    begin_what_has_ended().await;
    kubectl(&["uncordon", "--selector=kubernetes.io/os=linux"], "").unwrap();
    runtime_class(&client, Some("gvisor-nonet")).await;
    with_arguments(&client, &[]).await;
    leader(&client).await;
    guard
}

/// Holds that exactly one runner of this run was ever started: the status names it, and it has no second start.
fn assert_started_once(status: &ScriptRunStatus) {
    let starts = status.audit.iter().filter(|event| event.type_ == "dev.paddock.run.started.v1").count();
    assert_eq!(starts, 1, "{status:#?}");
}

/// A run that comes before they are heard again begins cold, or may be given one that has followed.
async fn one_of_them_is_given(tenant: &Tenant, waiting: &BTreeSet<String>) {
    eventually("a sandbox that has waited since before is given to a run", || async {
        let run = tenant.run(Script::shell("echo next")).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        if path(&run) == WARM && waiting.contains(&pod_uid(&run)) { Ok(()) } else { Err(path(&run)) }
    })
    .await;
}

async fn killed_when(tenant: &Tenant, what: &str, seen: fn(&ScriptRunStatus) -> bool) {
    let run = tenant.create(Script::shell("echo once; sleep 3; echo end")).await;
    tenant.until(&run, what, seen).await;
    kill_operator(&tenant.client).await;
    let run = tenant.finished(&run).await;
    assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
    assert_eq!(stdout(&run), "once\nend\n", "killed when {what}");
    assert_started_once(&status(&run));
}

/// What waits goes on waiting, whoever leads and whatever is between: it is not made anew, and nothing that a run has is taken for free.
#[tokio::test]
async fn what_waits_in_a_pool_outlives_leader_api_server_and_kubelet() {
    let _alone = alone().await;
    tenant("outlives", |tenant| async move {
        make_pool(&tenant, "shell", 3, json!({})).await;
        filled(&tenant, "shell").await;
        let mut waiting = sandboxes(&tenant).await;
        let script = Script::shell("echo once; sleep 6; echo end");
        let running = tenant.create(script).await;
        let running = tenant.until(&running, "it runs", |status| status.is_true(&ConditionType::Started)).await;
        kill_operator(&tenant.client).await;
        let running = tenant.finished(&running).await;
        assert_end(&running, &Phase::Succeeded, &Reason::Succeeded);
        assert_eq!((stdout(&running).as_str(), path(&running)), ("once\nend\n", WARM));
        assert_started_once(&status(&running));
        waiting.remove(&pod_uid(&running));
        one_of_them_is_given(&tenant, &waiting).await;
        for process in ["kube-apiserver", "kubelet"] {
            filled(&tenant, "shell").await;
            waiting = sandboxes(&tenant).await;
            end(process).await;
            begin(process);
            begin_what_has_ended().await;
            one_of_them_is_given(&tenant, &waiting).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_killed_operator_loses_nothing_and_runs_nothing_twice() {
    let _alone = alone().await;
    tenant("killed", |tenant| async move {
        killed_when(&tenant, "received", |status| status.phase.is_some()).await;
        killed_when(&tenant, "admitted", |status| status.is_true(&ConditionType::Admitted)).await;
        killed_when(&tenant, "started", |status| status.is_true(&ConditionType::Started)).await;
        killed_when(&tenant, "with a result", |status| status.is_true(&ConditionType::ResultReady)).await;
        // Once more while nobody leads: the run is made while the operator is dead.
        kill_operator(&tenant.client).await;
        let run = tenant.run(Script::shell("echo once")).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        // And with a stop under way.
        let run = tenant.create(Script::shell("trap 'sleep 2; echo bye; exit 0' TERM; echo hello; while :; do sleep 0.1; done")).await;
        tenant.spoken(&run).await;
        tenant.patch(&run, json!({ "spec": { "cancel": true } })).await;
        tenant.until(&run, "stopping", |status| status.stopping.is_some()).await;
        kill_operator(&tenant.client).await;
        let run = tenant.finished(&run).await;
        assert_end(&run, &Phase::Cancelled, &Reason::Cancelled);
        assert_eq!(stdout(&run), "hello\nbye\n");
    })
    .await;
}

#[tokio::test]
async fn a_restarted_container_runtime_loses_nothing() {
    let _alone = alone().await;
    tenant("runtime", |tenant| async move {
        let run = tenant.create(Script::shell("echo begin; sleep 6; echo end")).await;
        tenant.until(&run, "Started", |status| status.is_true(&ConditionType::Started)).await;
        end("containerd").await;
        begin("containerd");
        let run = tenant.finished(&run).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        assert_eq!(stdout(&run), "begin\nend\n");
        assert_started_once(&status(&run));
        let run = tenant.run(Script::shell("echo after")).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
    })
    .await;
}

#[tokio::test]
async fn an_api_server_that_was_away_loses_nothing() {
    let _alone = alone().await;
    for name in ["kube-apiserver", "etcd"] {
        tenant("away", |tenant| async move {
            let run = tenant.create(Script::shell("echo begin; sleep 6; echo end").with(json!({ "timeoutSeconds": 120 }))).await;
            tenant.until(&run, "Started", |status| status.is_true(&ConditionType::Started)).await;
            end(name).await;
            begin(name);
            eventually("the API server answers", || async { kubectl(&["get", "--raw", "/readyz"], "") }).await;
            let run = tenant.finished(&run).await;
            assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
            assert_eq!(stdout(&run), "begin\nend\n", "{name}");
            assert_started_once(&status(&run));
            let run = tenant.run(Script::shell("echo after")).await;
            assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        })
        .await;
    }
}

/// What the API server knew of a pod when its node went down.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reported {
    /// That the container runs.
    Running,
    /// Nothing yet: the kubelet reports about once a second.
    Nothing,
}

/// A node comes back without the state of its container runtime, while the pod is still bound to it and still to be run.
async fn lose_runtime_state(client: &Client, pod: &Pod, reported: Reported) {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap());
    let (name, uid) = (pod.name_any(), pod.uid().unwrap());
    if reported == Reported::Running {
        eventually("the kubelet has reported", || async {
            let phase = api.get(&name).await.unwrap().status.and_then(|status| status.phase);
            if phase.as_deref() == Some("Running") { Ok(()) } else { Err(phase) }
        })
        .await;
    }
    end("kubelet").await;
    let containers = ctr(&["containers", "list", "--quiet", &format!("labels.\"io.kubernetes.pod.uid\"=={uid}")]).unwrap();
    // More where the node needed a second attempt at the sandbox.
    assert!(containers.lines().count() >= 2, "the script and its sandbox: {containers}");
    for id in containers.lines() {
        let _ = ctr(&["tasks", "kill", "--all", "--signal", "SIGKILL", id]);
        eventually("the task is removed", || async {
            match ctr(&["tasks", "remove", "--force", id]) {
                Err(error) if !error.to_string().contains("not found") => Err(error),
                _ => Ok(()),
            }
        })
        .await;
        eventually("the container is removed", || async {
            match ctr(&["containers", "remove", id]) {
                Err(error) if !error.to_string().contains("not found") => Err(error),
                _ => Ok(()),
            }
        })
        .await;
        let _ = ctr(&["sandboxes", "remove", id]);
    }
    if reported == Reported::Nothing {
        let patch = json!({ "status": { "phase": "Pending", "containerStatuses": null, "startTime": null } });
        api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }
    end("containerd").await;
    begin("containerd");
    eventually("containerd is ready", || async { containerd_is_ready(&layout()) }).await;
    begin("kubelet");
    if reported == Reported::Nothing {
        eventually("the kubelet has started the container a second time", || async {
            let containers = ctr(&["containers", "list", "--quiet", &format!("labels.\"io.kubernetes.pod.uid\"=={uid}")]).unwrap();
            if containers.lines().count() == 2 { Ok(()) } else { Err(containers) }
        })
        .await;
    }
}

#[tokio::test]
async fn a_script_whose_node_lost_it_is_lost_and_not_run_again() {
    let _alone = alone().await;
    tenant("reboot", |tenant| async move {
        let started = || async {
            let run = tenant.create(Script::shell("echo once; sleep 45; echo end").with(json!({ "timeoutSeconds": 60 }))).await;
            let run = tenant.until(&run, "Started", |status| status.is_true(&ConditionType::Started)).await;
            let pod = tenant.pod_of(&run).await;
            (run, pod)
        };
        for reported in [Reported::Running, Reported::Nothing] {
            let (run, pod) = started().await;
            eventually("the script has begun", || async {
                let log = tenant.pods().logs(&pod.name_any(), &LogParams::default()).await.unwrap();
                // The second sealed line: `started`.
                if log.contains("pdk1 1 ") { Ok(()) } else { Err(log) }
            })
            .await;
            lose_runtime_state(&tenant.client, &pod, reported).await;
            let run = tenant.finished(&run).await;
            assert_end(&run, &Phase::Lost, &Reason::Lost);
            assert_started_once(&status(&run));
        }
        // The same with an operator that has never heard the first runner.
        let (run, pod) = started().await;
        kill_operator(&tenant.client).await;
        lose_runtime_state(&tenant.client, &pod, Reported::Nothing).await;
        let run = tenant.finished(&run).await;
        assert_end(&run, &Phase::Lost, &Reason::Lost);
        assert_started_once(&status(&run));
        let run = tenant.run(Script::shell("echo after")).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
    })
    .await;
}

/// The file of the container's log on the node.
fn log_folder(tenant: &Tenant, run: &ScriptRun) -> std::path::PathBuf {
    let pod = status(run).pod.unwrap();
    layout().state.join("pod-logs").join(format!("{}_{}_{}", tenant.sandbox(), pod.name, pod.uid))
}

/// A node may rotate or lose the log of a sandbox before anybody has read it.
#[tokio::test]
async fn a_result_whose_log_is_gone_is_in_the_termination_message() {
    let _alone = alone().await;
    tenant("summary", |tenant| async move {
        let text = "import json, os, sys, time\nprint('short')\nsys.stderr.write('x' * 5000)\ntime.sleep(4)\njson.dump([1, 'two'], open(os.environ['PADDOCK_RESULT'], 'w'))\nraise SystemExit(5)\n";
        let run = tenant.create(Script::python(text)).await;
        let running = tenant.until(&run, "Running", |status| status.phase == Some(Phase::Running)).await;
        scale(&tenant.client, 0).await;
        let pod = tenant.pod_of(&run).await.name_any();
        eventually("the pod ends", || async {
            let phase = tenant.pods().get(&pod).await.unwrap().status.unwrap().phase.unwrap_or_default();
            if phase == "Failed" { Ok(()) } else { Err(phase) }
        })
        .await;
        std::fs::remove_dir_all(log_folder(&tenant, &running)).unwrap();
        scale(&tenant.client, 1).await;
        let run = tenant.finished(&run).await;
        assert_end(&run, &Phase::Failed, &Reason::Failed);
        let result = status(&run).result.unwrap();
        assert_eq!((result.exit_code, result.output), (Some(5), Some(json!([1, "two"]))));
        let told = |stream: paddock_crds::OutputStream| (stream.text, stream.bytes, stream.truncated_bytes);
        assert_eq!(result.stdout.map(told), Some(("short\n".into(), 6, None)));
        assert_eq!(result.stderr.map(told), Some((String::new(), 5000, Some(5000))), "what did not fit is said to be missing");
    })
    .await;
}

#[tokio::test]
async fn a_frozen_leader_is_followed_and_does_no_harm_when_it_thaws() {
    let _alone = alone().await;
    tenant("frozen", |tenant| async move {
        scale(&tenant.client, 2).await;
        let frozen = leader(&tenant.client).await;
        let frozen_process = process_of(&tenant.client, &frozen).await;
        let run = tenant.create(Script::shell("echo once; sleep 40; echo end").with(json!({ "timeoutSeconds": 60 }))).await;
        tenant.until(&run, "Started", |status| status.is_true(&ConditionType::Started)).await;
        kill(frozen_process, Signal::SIGSTOP).unwrap();
        let waiting = tenant.create(Script::shell("echo by the other")).await;
        let leases: Api<k8s_openapi::api::coordination::v1::Lease> = Api::namespaced(tenant.client.clone(), OPERATOR_NAMESPACE);
        eventually("the other leads", || async {
            let holder = leases.get("paddock-operator").await.unwrap().spec.unwrap().holder_identity.unwrap_or_default();
            if holder.is_empty() || is_of(&holder, &frozen) { Err(holder) } else { Ok(()) }
        })
        .await;
        let waiting = tenant.finished(&waiting).await;
        assert_end(&waiting, &Phase::Succeeded, &Reason::Succeeded);
        kill(frozen_process, Signal::SIGCONT).unwrap();
        let run = tenant.finished(&run).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        assert_eq!(stdout(&run), "once\nend\n");
        assert_started_once(&status(&run));
        // The one that was frozen has seen that it leads no more, and has ended to begin anew.
        let pods: Api<Pod> = Api::namespaced(tenant.client.clone(), OPERATOR_NAMESPACE);
        eventually("the thawed operator has restarted", || async {
            let status = pods.get(&frozen.name_any()).await.unwrap().status.unwrap_or_default();
            let restarts = status.container_statuses.unwrap_or_default().first().map_or(0, |container| container.restart_count);
            if restarts > 0 { Ok(()) } else { Err(restarts) }
        })
        .await;
        scale(&tenant.client, 1).await;
    })
    .await;
}

/// Replaces the RuntimeClass of sandboxes by one with another handler; its handler cannot be changed in place.
async fn runtime_class(client: &Client, handler: Option<&str>) {
    let api: Api<RuntimeClass> = Api::all(client.clone());
    let stored = api.get_opt("gvisor-nonet").await.unwrap();
    if handler.is_some_and(|handler| stored.as_ref().is_some_and(|stored| stored.handler == handler)) {
        return;
    }
    let _ = api.delete("gvisor-nonet", &DeleteParams::default()).await;
    if let Some(handler) = handler {
        let class: RuntimeClass = serde_json::from_value(json!({ "metadata": { "name": "gvisor-nonet" }, "handler": handler })).unwrap();
        api.create(&PostParams::default(), &class).await.unwrap();
    }
}

#[tokio::test]
async fn a_runtime_class_that_is_missing_or_wrong_never_starts_a_script() {
    let _alone = alone().await;
    tenant("class", |tenant| async move {
        runtime_class(&tenant.client, None).await;
        let missing = eventually("the class is seen to be gone", || async {
            let run = tenant.run(Script::shell("echo never")).await;
            if status(&run).phase == Some(Phase::Succeeded) { Err("still there") } else { Ok(run) }
        })
        .await;
        assert_end(&missing, &Phase::StartFailed, &Reason::RuntimeClassUnavailable);
        for (handler, reason) in [("runc", Reason::NotSandboxed), ("gvisor", Reason::UnexpectedInterface)] {
            runtime_class(&tenant.client, Some(handler)).await;
            let run = eventually("the class is seen to be another", || async {
                let run = tenant.run(Script::shell("echo never")).await;
                let reason_seen = status(&run).condition(&ConditionType::Finished).map(|condition| condition.reason.clone());
                if reason_seen.as_ref() == Some(&reason) { Ok(run) } else { Err(reason_seen) }
            })
            .await;
            assert_end(&run, &Phase::PolicyNotEnforced, &reason);
            assert!(status(&run).result.is_none() && !status(&run).is_true(&ConditionType::Started));
        }
        runtime_class(&tenant.client, Some("gvisor-nonet")).await;
        eventually("the class is right again", || async {
            let run = tenant.run(Script::shell("true")).await;
            if status(&run).phase == Some(Phase::Succeeded) { Ok(()) } else { Err(status(&run).message) }
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn the_runner_also_comes_by_an_init_container() {
    let _alone = alone().await;
    tenant("init", |tenant| async move {
        with_arguments(&tenant.client, &["--runner-delivery=init-container"]).await;
        let run = tenant.create(Script::python("print('by init container')")).await;
        let pod = tenant.pod_of(&run).await;
        assert_eq!(pod.spec.unwrap().init_containers.unwrap()[0].name, "runner");
        let run = tenant.finished(&run).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        assert_eq!(stdout(&run), "by init container\n");
        with_arguments(&tenant.client, &[]).await;
        let run = tenant.create(Script::python("print('by image volume')")).await;
        assert!(tenant.pod_of(&run).await.spec.unwrap().init_containers.is_none());
        assert_end(&tenant.finished(&run).await, &Phase::Succeeded, &Reason::Succeeded);
    })
    .await;
}

#[tokio::test]
async fn an_operator_that_is_asked_to_end_hands_over_at_once() {
    let _alone = alone().await;
    tenant("handover", |tenant| async move {
        let run = tenant.create(Script::shell("echo once; sleep 8; echo end")).await;
        tenant.until(&run, "Started", |status| status.is_true(&ConditionType::Started)).await;
        let old = leader(&tenant.client).await;
        let api: Api<Pod> = Api::namespaced(tenant.client.clone(), OPERATOR_NAMESPACE);
        api.delete(&old.name_any(), &DeleteParams::default()).await.unwrap();
        eventually("the old one is gone", || async {
            api.get_opt(&old.name_any()).await.unwrap().map_or(Ok(()), |pod| Err(pod.metadata.deletion_timestamp))
        })
        .await;
        let new = leader(&tenant.client).await;
        let log = api.logs(&new.name_any(), &LogParams::default()).await.unwrap();
        assert!(log.contains("leading") && !log.contains("waiting for the requests of the last leader"), "the lease was given back: {log}");
        let run = tenant.finished(&run).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        assert_eq!(stdout(&run), "once\nend\n");
        assert_started_once(&status(&run));
    })
    .await;
}

/// Everything in a sandbox namespace that keeps tenants apart is put right by the next run after the operator has looked anew.
#[tokio::test]
async fn what_was_changed_in_a_sandbox_namespace_is_put_right() {
    let _alone = alone().await;
    tenant("repair", |tenant| async move {
        tenant.run(Script::shell("true")).await;
        let get = |kind: &str| -> serde_json::Value {
            let object = match kind {
                "namespace" => kubectl(&["get", kind, &tenant.sandbox(), "--output=json"], ""),
                _ => kubectl(&["--namespace", &tenant.sandbox(), "get", kind, "paddock-sandbox", "--output=json"], ""),
            };
            let mut object: serde_json::Value = serde_json::from_str(&object.unwrap()).unwrap();
            let metadata = json!({ "labels": object["metadata"]["labels"] });
            let object = object.as_object_mut().unwrap();
            object.remove("status");
            object.insert("metadata".into(), metadata);
            json!(object)
        };
        let kinds = ["namespace", "networkpolicy", "resourcequota", "limitrange", "rolebinding"];
        let before = kinds.map(get);
        let patches = [
            json!({ "metadata": { "labels": { "pod-security.kubernetes.io/enforce": "privileged" } } }),
            json!({ "spec": { "egress": [{}] } }),
            json!({ "spec": { "hard": { "pods": "1000" } } }),
            json!({ "spec": { "limits": [{ "type": "Container", "default": { "memory": "1Gi" } }] } }),
            json!({ "subjects": [{ "kind": "User", "name": "nobody", "apiGroup": "rbac.authorization.k8s.io" }] }),
        ];
        for (kind, patch) in kinds.iter().zip(&patches) {
            let name = if *kind == "namespace" { tenant.sandbox() } else { "paddock-sandbox".into() };
            kubectl(&["--namespace", &tenant.sandbox(), "patch", kind, &name, "--type=merge", &format!("--patch={patch}")], "").unwrap();
        }
        assert_ne!(kinds.map(get), before);
        kill_operator(&tenant.client).await;
        let run = tenant.run(Script::shell("echo all the same")).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        assert_eq!(kinds.map(get), before);
    })
    .await;
}

#[tokio::test]
async fn the_log_is_text_if_that_is_wanted() {
    let _alone = alone().await;
    tenant("text", |tenant| async move {
        with_arguments(&tenant.client, &["--log-format=text"]).await;
        let run = tenant.run(Script::shell("true")).await;
        let api: Api<Pod> = Api::namespaced(tenant.client.clone(), OPERATOR_NAMESPACE);
        let pod = leader(&tenant.client).await.name_any();
        eventually("the end is in the log", || async {
            let log = api.logs(&pod, &LogParams::default()).await.unwrap();
            let told = format!("pass{{run=\"{}\" namespace=\"{}\"", run.name_any(), tenant.name);
            let is_told = log.lines().any(|line| line.contains(&told) && line.contains("finished reason=\"Succeeded\""));
            if is_told { Ok(()) } else { Err(log) }
        })
        .await;
        with_arguments(&tenant.client, &[]).await;
    })
    .await;
}

#[tokio::test]
async fn a_script_that_does_not_start_in_time_is_given_up() {
    let _alone = alone().await;
    tenant("budget", |tenant| async move {
        with_arguments(&tenant.client, &["--start-budget-seconds=5"]).await;
        // No node has room for it, so that its pod stays pending.
        let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(tenant.client.clone());
        let node = nodes.list(&ListParams::default()).await.unwrap().items.remove(0).name_any();
        nodes.cordon(&node).await.unwrap();
        let run = tenant.create(Script::shell("echo never")).await;
        let run = tenant.finished_within(&run, Duration::from_secs(120)).await;
        nodes.uncordon(&node).await.unwrap();
        with_arguments(&tenant.client, &[]).await;
        assert_end(&run, &Phase::StartTimedOut, &Reason::StartTimedOut);
        assert_eq!(status(&run).message.as_deref(), Some("no node could take the sandbox within the start budget"));
        assert!(status(&run).result.is_none());
    })
    .await;
}

const KINDS: &str = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/policyRef/properties/kind/enum";

/// Sets the kinds of policy that the schema knows.
async fn set_kinds(api: &Api<CustomResourceDefinition>, kinds: serde_json::Value) {
    let mut crd = serde_json::to_value(api.get("scriptruns.paddock.dev").await.unwrap()).unwrap();
    *crd.pointer_mut(KINDS).unwrap() = kinds;
    api.replace("scriptruns.paddock.dev", &PostParams::default(), &serde_json::from_value(crd).unwrap()).await.unwrap();
}

/// A policy and a run that are deeper than a parser goes: in a schema, and in what says who manages which field. Both are anybody's to write.
async fn deep_objects(tenant: &Tenant) {
    let deep = |key: &str| format!("{{\"{key}\":").repeat(200) + "{}" + &"}".repeat(200);
    let policy = json!({
        "apiVersion": "paddock.dev/v1alpha1", "kind": "SandboxPolicy", "metadata": { "name": "deep" },
        "spec": { "input": { "schemas": [{ "scriptHash": "0".repeat(64), "schema": "DEEP" }] } },
    });
    let namespaced = |arguments: &[&str], input: &str| kubectl(&[&["--namespace", &tenant.name], arguments].concat(), input);
    namespaced(&["create", "--filename=-"], &policy.to_string().replace("\"DEEP\"", &deep("a"))).unwrap();
    let unreadable = "jsonpath={.status.problems[0].message}";
    eventually("the policy says that it cannot be read", || async {
        let message = namespaced(&["get", "sandboxpolicy", "deep", "--output", unreadable], "").unwrap();
        if message.contains("recursion limit") { Ok(()) } else { Err(message) }
    })
    .await;
    let run = tenant.run(Script::shell("true")).await;
    let mut stored: serde_json::Value =
        serde_json::from_str(&namespaced(&["get", "scriptrun", &run.name_any(), "--output=json"], "").unwrap()).unwrap();
    stored["metadata"]["managedFields"] = json!([{
        "manager": "x", "operation": "Update", "apiVersion": "paddock.dev/v1alpha1", "time": "2026-01-01T00:00:00Z",
        "fieldsType": "FieldsV1", "fieldsV1": { "f:spec": "DEEP" },
    }]);
    stored["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    namespaced(&["replace", "--filename=-"], &stored.to_string().replace("\"DEEP\"", &deep("f:a"))).unwrap();
    let kept = namespaced(&["get", "scriptrun", &run.name_any(), "--output=json", "--show-managed-fields"], "").unwrap();
    assert!(kept.matches("f:a").count() >= 200, "the API server takes it");
}

#[tokio::test]
async fn one_run_that_cannot_be_read_does_not_stop_the_others() {
    let _alone = alone().await;
    tenant("malformed", |tenant| async move {
        // A newer version of the CRD may allow what this operator does not know.
        let crds: Api<CustomResourceDefinition> = Api::all(tenant.client.clone());
        let crd = crds.get("scriptruns.paddock.dev").await.unwrap();
        let known = serde_json::to_value(&crd).unwrap().pointer(KINDS).unwrap().clone();
        set_kinds(&crds, json!(["SandboxPolicy", "ClusterSandboxPolicy", "FuturePolicy"])).await;
        let resource = kube::api::ApiResource {
            group: "paddock.dev".into(),
            version: "v1alpha1".into(),
            api_version: "paddock.dev/v1alpha1".into(),
            kind: "ScriptRun".into(),
            plural: "scriptruns".into(),
        };
        let raw: Api<kube::api::DynamicObject> = Api::namespaced_with(tenant.client.clone(), &tenant.name, &resource);
        let strange = json!({
            "apiVersion": "paddock.dev/v1alpha1", "kind": "ScriptRun", "metadata": { "name": "strange" },
            "spec": { "policyRef": { "kind": "FuturePolicy", "name": "x" }, "script": { "runtime": "shell", "source": { "inline": "true" } } },
        });
        eventually("the schema is in force", || async { raw.create(&PostParams::default(), &serde_json::from_value(strange.clone()).unwrap()).await }).await;
        let run = tenant.run(Script::shell("echo all the same")).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        deep_objects(&tenant).await;
        // A restart has to read them once more.
        kill_operator(&tenant.client).await;
        let run = tenant.run(Script::shell("echo all the same")).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        let left_alone = raw.get("strange").await.unwrap();
        assert!(left_alone.data.get("status").is_none(), "{left_alone:?}");
        raw.delete("strange", &DeleteParams::default()).await.unwrap();
        eventually("it is gone", || async {
            match raw.get_metadata_opt("strange").await.unwrap() {
                None => Ok(()),
                Some(metadata) => Err(metadata.metadata.finalizers),
            }
        })
        .await;
        set_kinds(&crds, known).await;
    })
    .await;
}
