//! What goes wrong around a run, each with its documented end.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::harness::{self, Script, assert_end, assert_refused, eventually, kubectl, status, tenant};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{Namespace, Pod, ResourceQuota};
use kube::api::{DeleteParams, EvictParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, ResourceExt as _};
use paddock_crds::{ConditionType, Phase, Reason, SandboxPolicy};
use serde_json::json;

#[tokio::test]
async fn a_foreign_namespace_in_the_way_is_refused_and_left_alone() {
    tenant("foreign", |tenant| async move {
        let namespaces: Api<Namespace> = Api::all(tenant.client.clone());
        let foreign: Namespace = serde_json::from_value(json!({ "metadata": { "name": tenant.sandbox() } })).unwrap();
        namespaces.create(&PostParams::default(), &foreign).await.unwrap();
        assert_refused(&tenant.run(Script::shell("true")).await, &Reason::SandboxNamespaceForeign);
        let stored = namespaces.get(&tenant.sandbox()).await.unwrap();
        assert!(!stored.labels().contains_key("pod-security.kubernetes.io/enforce"));
        assert!(tenant.pods().list(&ListParams::default()).await.unwrap().items.is_empty());
        namespaces.delete(&tenant.sandbox(), &DeleteParams::default()).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn the_sandbox_namespace_is_confined_and_goes_with_its_tenant() {
    tenant("namespace", |tenant| async move {
        tenant.run(Script::shell("true")).await;
        let namespaces: Api<Namespace> = Api::all(tenant.client.clone());
        let sandbox = namespaces.get(&tenant.sandbox()).await.unwrap();
        assert_eq!(sandbox.labels().get("pod-security.kubernetes.io/enforce").map(String::as_str), Some("restricted"));
        let policies: Api<k8s_openapi::api::networking::v1::NetworkPolicy> = Api::namespaced(tenant.client.clone(), &tenant.sandbox());
        let policies = policies.list(&ListParams::default()).await.unwrap().items;
        let [gateway, all] = &policies[..] else { panic!("{policies:?}") };
        let spec = all.spec.clone().unwrap();
        assert!(spec.ingress.is_none() && spec.egress.is_none() && spec.policy_types == Some(vec!["Ingress".into(), "Egress".into()]));
        assert_eq!(serde_json::to_value(spec.pod_selector).unwrap(), json!({}));
        // Beside it only this: those with the label reach the gateway, at its one port for them.
        let spec = serde_json::to_value(gateway.spec.clone()).unwrap();
        assert_eq!(spec["podSelector"], json!({ "matchLabels": { "paddock.dev/network": "egress" } }));
        assert_eq!((spec["policyTypes"].clone(), spec["egress"].as_array().unwrap().len()), (json!(["Egress"]), 1));
        assert_eq!(spec["egress"][0]["ports"], json!([{ "port": 8443, "protocol": "TCP" }]));
        let quotas: Api<ResourceQuota> = Api::namespaced(tenant.client.clone(), &tenant.sandbox());
        let quota = quotas.get("paddock-sandbox").await.unwrap().spec.unwrap().hard.unwrap();
        assert_eq!(quota["pods"].0, "10");
        // A privileged pod has no place in here, whoever asks.
        let privileged: Pod = serde_json::from_value(json!({
            "metadata": { "name": "privileged" },
            "spec": { "containers": [{ "name": "c", "image": "x", "securityContext": { "privileged": true } }] },
        }))
        .unwrap();
        let refused = tenant.pods().create(&PostParams::default(), &privileged).await;
        assert!(refused.is_err_and(|error| error.to_string().contains("restricted")));

        namespaces.delete(&tenant.name, &DeleteParams::default()).await.unwrap();
        eventually("both namespaces are gone", || async {
            let left = namespaces.get_opt(&tenant.name).await.unwrap().or(namespaces.get_opt(&tenant.sandbox()).await.unwrap());
            left.map_or(Ok(()), |namespace| Err(namespace.name_any()))
        })
        .await;
    })
    .await;
}

/// Input that a parser gives up on, that would take many times its length when it is parsed, or that no job can carry. Reading such a run
/// back takes kubectl.
#[tokio::test]
async fn input_of_any_kind_is_handed_over_or_refused_and_stalls_nobody() {
    tenant("unfit", |tenant| async move {
        let create = |name: &str, input: &str| {
            let run = json!({
                "apiVersion": "paddock.dev/v1alpha1", "kind": "ScriptRun", "metadata": { "name": name },
                "spec": Script::shell(&format!("test $(wc -c < $PADDOCK_INPUT) -eq {}", input.len()))
                    .with(json!({ "script": { "input": "INPUT" }, "ttlSecondsAfterFinished": 600 })).0,
            });
            kubectl(&["--namespace", &tenant.name, "create", "--filename", "-"], &run.to_string().replace("\"INPUT\"", input))
        };
        let inputs = [
            ("deep", format!("{}1{}", "[".repeat(300), "]".repeat(300)), "Succeeded PolicyAllows"),
            ("parts", format!("[{}0]", "{},".repeat(100_000)), "Succeeded PolicyAllows"),
            ("large", format!("\"{}\"", "x".repeat(1_100_000)), "Refused InputTooLarge"),
        ];
        // As large as etcd takes, but for less than a hundred bytes: no status fits.
        let fits =
            (1_560_000..1_572_800).rev().step_by(90).find(|length| create("brimful", &format!("\"{}\"", "x".repeat(*length))).is_ok());
        assert!(fits.is_some());
        for (name, input, _) in &inputs {
            create(name, input).unwrap();
        }
        let run = tenant.run(Script::shell("echo all the same")).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        for (name, _, expected) in inputs {
            let path = "jsonpath={.status.phase} {.status.conditions[?(@.type==\"Accepted\")].reason}";
            let look = || async { kubectl(&["--namespace", &tenant.name, "get", "scriptrun", name, "--output", path], "") };
            eventually(name, || async {
                let told = look().await.unwrap();
                if told == expected { Ok(()) } else { Err(told) }
            })
            .await;
        }
        // The mark of a deletion needs room as well, so that it cannot be deleted while it has a finalizer.
        let path = "jsonpath={.status}{.metadata.finalizers}";
        eventually("the finalizer is gone", || async {
            let left = kubectl(&["--namespace", &tenant.name, "get", "scriptrun", "brimful", "--output", path], "").unwrap();
            if left.is_empty() { Ok(()) } else { Err(left) }
        })
        .await;
        eventually("what has no room can be deleted", || async {
            kubectl(&["--namespace", &tenant.name, "delete", "scriptrun", "brimful"], "")
        })
        .await;
        kubectl(
            &[
                "--namespace",
                &tenant.name,
                "patch",
                "scriptrun",
                "large",
                "--type=merge",
                "--patch={\"spec\":{\"ttlSecondsAfterFinished\":1}}",
            ],
            "",
        )
        .unwrap();
        eventually("its time to live is kept", || async {
            let names = kubectl(&["--namespace", &tenant.name, "get", "scriptruns", "--output=name"], "").unwrap();
            if names.contains("large") { Err(names) } else { Ok(()) }
        })
        .await;
    })
    .await;
}

async fn offer(tenant: &harness::Tenant, name: &str, image: &str, selector: &str) {
    let client = tenant.client.clone();
    let policy = json!({
        "apiVersion": "paddock.dev/v1alpha1", "kind": "ClusterSandboxPolicy", "metadata": { "name": tenant.name },
        "spec": {
            "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": selector } },
            "runtimes": [{ "name": name, "image": image, "command": ["/bin/sh"] }],
        },
    });
    let api: Api<paddock_crds::ClusterSandboxPolicy> = Api::all(client.clone());
    api.patch(&tenant.name, &PatchParams::apply("e2e").force(), &Patch::Apply(&policy)).await.unwrap();
    let namespaces: Api<Namespace> = Api::all(client);
    let unlabel = json!({ "metadata": { "labels": { "paddock.dev/tenant": null } } });
    namespaces.patch(&tenant.name, &PatchParams::default(), &Patch::Merge(unlabel)).await.unwrap();
}

async fn withdraw(tenant: &harness::Tenant) {
    let api: Api<paddock_crds::ClusterSandboxPolicy> = Api::all(tenant.client.clone());
    api.delete(&tenant.name, &DeleteParams::default()).await.unwrap();
}

#[tokio::test]
async fn an_image_that_cannot_be_had_ends_the_run() {
    tenant("image", |tenant| async move {
        offer(&tenant, "missing", "docker.io/paddock/missing:1", &tenant.name).await;
        let script = || Script::shell("true").with(json!({ "policyRef": { "name": tenant.name }, "script": { "runtime": "missing" } }));
        let run = eventually("the policies are seen", || async {
            let run = tenant.run(script()).await;
            if status(&run).phase == Some(Phase::Refused) { Err(status(&run).message) } else { Ok(run) }
        })
        .await;
        assert_end(&run, &Phase::StartFailed, &Reason::ImageUnavailable);
        let status = status(&run);
        let seconds = status.clocks.clone().unwrap();
        let took = seconds.finished.unwrap().0.duration_since(seconds.admitted.unwrap().0).as_secs();
        assert!(took < 30, "{took} s");
        withdraw(&tenant).await;
    })
    .await;
}

#[tokio::test]
async fn an_interpreter_that_is_not_in_the_image_ends_the_run() {
    tenant("nointerp", |tenant| async move {
        offer(&tenant, "odd", "docker.io/paddock/pause:v1.36.3", &tenant.name).await;
        let script = || Script::shell("true").with(json!({ "policyRef": { "name": tenant.name }, "script": { "runtime": "odd" } }));
        let run = eventually("the policies are seen", || async {
            let run = tenant.run(script()).await;
            if status(&run).phase == Some(Phase::Refused) { Err(status(&run).message) } else { Ok(run) }
        })
        .await;
        assert_end(&run, &Phase::StartFailed, &Reason::InterpreterUnavailable);
        withdraw(&tenant).await;
    })
    .await;
}

#[tokio::test]
async fn a_pod_that_somebody_deletes_or_evicts_ends_its_run() {
    tenant("podgone", |tenant| async move {
        let script = || Script::shell("echo begin; sleep 60").with(json!({ "gracePeriodSeconds": 5 }));
        let (deleted, evicted) = (tenant.create(script()).await, tenant.create(script()).await);
        for run in [&deleted, &evicted] {
            tenant.until(run, "Started", |status| status.is_true(&ConditionType::Started)).await;
        }
        let pod = tenant.pod_of(&deleted).await.name_any();
        tenant.pods().delete(&pod, &DeleteParams::default()).await.unwrap();
        let pod = tenant.pod_of(&evicted).await.name_any();
        tenant.pods().evict(&pod, &EvictParams::default()).await.unwrap();
        for run in [deleted, evicted] {
            let run = tenant.finished(&run).await;
            let phase = status(&run).phase.unwrap();
            // With grace the runner reports before it goes; if that does not arrive the run is lost. It is never the script's fault.
            assert!(matches!(phase, Phase::Killed | Phase::Lost), "{:#?}", run.status);
        }
    })
    .await;
}

#[tokio::test]
async fn quota_that_is_used_up_is_told_and_waited_for() {
    tenant("quota", |tenant| async move {
        tenant.run(Script::shell("true")).await;
        let quotas: Api<ResourceQuota> = Api::namespaced(tenant.client.clone(), &tenant.sandbox());
        let other: ResourceQuota =
            serde_json::from_value(json!({ "metadata": { "name": "other" }, "spec": { "hard": { "pods": "0" } } })).unwrap();
        quotas.create(&PostParams::default(), &other).await.unwrap();
        eventually("the quota is in force", || async {
            let status = quotas.get("other").await.unwrap().status;
            if status.as_ref().is_some_and(|status| status.hard.is_some()) { Ok(()) } else { Err(status) }
        })
        .await;
        let run = tenant.create(Script::shell("echo at last")).await;
        let is_full = |type_: ConditionType| {
            move |status: &paddock_crds::ScriptRunStatus| {
                status.condition(&type_).is_some_and(|condition| condition.reason == Reason::QuotaExceeded)
            }
        };
        tenant.until(&run, "QuotaExceeded", is_full(ConditionType::Started)).await;
        // It does not hold a slot that others could use, and is not ended for want of room.
        let back = tenant.until(&run, "the slot is given back", is_full(ConditionType::Admitted)).await;
        assert_eq!(status(&back).phase, Some(Phase::Queued));
        let again = |status: &paddock_crds::ScriptRunStatus| status.phase == Some(Phase::Starting);
        tenant.until(&run, "it asks again", again).await;
        tenant.until(&run, "the slot is given back again", |status| status.phase == Some(Phase::Queued)).await;
        quotas.delete("other", &DeleteParams::default()).await.unwrap();
        let run = tenant.finished(&run).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
    })
    .await;
}

#[tokio::test]
async fn a_name_that_is_taken_ends_the_run() {
    tenant("taken", |tenant| async move {
        tenant.policy(json!({ "maxConcurrent": 1 })).await;
        let reference = json!({ "policyRef": { "kind": "SandboxPolicy", "name": "limited" } });
        let first = eventually("the policy is seen", || async {
            let run = tenant.create(Script::shell("sleep 20").with(reference.clone())).await;
            let run = tenant.until(&run, "a decision", |status| status.phase.is_some()).await;
            if status(&run).phase == Some(Phase::Refused) { Err(status(&run).message) } else { Ok(run) }
        })
        .await;
        tenant.until(&first, "Started", |status| status.is_true(&ConditionType::Started)).await;
        let run = tenant.create(Script::shell("echo never").with(reference)).await;
        tenant.until(&run, "Queued", |status| status.phase == Some(Phase::Queued)).await;
        // Only a cluster administrator can do this.
        let impostor: Pod = serde_json::from_value(json!({
            "metadata": { "name": format!("sr-{}", run.uid().unwrap()) },
            "spec": {
                "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 0,
                "securityContext": { "runAsNonRoot": true, "runAsUser": 1, "seccompProfile": { "type": "RuntimeDefault" } },
                "nodeSelector": { "none": "such" },
                "containers": [{ "name": "script", "image": "docker.io/paddock/shell:12", "imagePullPolicy": "Never",
                    "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } } }],
            },
        }))
        .unwrap();
        let quotas: Api<ResourceQuota> = Api::namespaced(tenant.client.clone(), &tenant.sandbox());
        let room = json!({ "spec": { "hard": { "pods": "5" } } });
        quotas.patch("paddock-sandbox", &PatchParams::default(), &Patch::Merge(room)).await.unwrap();
        eventually("the impostor is there", || async { tenant.pods().create(&PostParams::default(), &impostor).await }).await;
        tenant.patch(&first, json!({ "spec": { "cancel": true } })).await;
        let run = tenant.finished(&run).await;
        assert_end(&run, &Phase::StartFailed, &Reason::NameTaken);
        assert!(tenant.pods().get_opt(&impostor.name_any()).await.unwrap().is_some(), "what is not the operator's is not removed");
    })
    .await;
}

#[tokio::test]
async fn a_sidecar_that_something_injects_ends_the_run() {
    tenant("sidecar", |tenant| async move {
        let client = tenant.client.clone();
        let policy = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicy", "metadata": { "name": tenant.name },
            "spec": {
                "failurePolicy": "Fail", "reinvocationPolicy": "Never",
                "matchConstraints": {
                    "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": tenant.sandbox() } },
                    "resourceRules": [{ "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"] }],
                },
                "mutations": [{ "patchType": "JSONPatch", "jsonPatch": { "expression":
                    "[JSONPatch{op: 'add', path: '/spec/containers/-', value: Object.spec.containers{name: 'sidecar', image: 'docker.io/paddock/shell:12', \
                     securityContext: Object.spec.containers.securityContext{allowPrivilegeEscalation: false, \
                     capabilities: Object.spec.containers.securityContext.capabilities{drop: ['ALL']}}}}]" } }],
            },
        });
        let binding = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicyBinding", "metadata": { "name": tenant.name },
            "spec": { "policyName": tenant.name },
        });
        let kinds = [("MutatingAdmissionPolicy", "mutatingadmissionpolicies"), ("MutatingAdmissionPolicyBinding", "mutatingadmissionpolicybindings")];
        let api = |(kind, plural): (&str, &str)| -> Api<kube::api::DynamicObject> {
            let resource = kube::api::ApiResource {
                group: "admissionregistration.k8s.io".into(),
                version: "v1".into(),
                api_version: "admissionregistration.k8s.io/v1".into(),
                kind: kind.into(),
                plural: plural.into(),
            };
            Api::all_with(client.clone(), &resource)
        };
        for (kind, body) in kinds.into_iter().zip([policy, binding]) {
            api(kind).create(&PostParams::default(), &serde_json::from_value(body).unwrap()).await.unwrap();
        }
        let run = eventually("the injection is in force", || async {
            let run = tenant.run(Script::shell("echo hello")).await;
            if status(&run).phase == Some(Phase::Succeeded) { Err("not yet") } else { Ok(run) }
        })
        .await;
        for kind in kinds {
            api(kind).delete(&tenant.name, &DeleteParams::default()).await.unwrap();
        }
        assert_end(&run, &Phase::PodMutated, &Reason::PodMutated);
        assert!(status(&run).pod.is_none() && status(&run).result.is_none());
    })
    .await;
}

#[tokio::test]
async fn fifty_runs_at_once_never_exceed_the_limit() {
    tenant("fifty", |tenant| async move {
        const LIMIT: usize = 6;
        tenant.policy(json!({ "maxConcurrent": LIMIT })).await;
        let api: Api<SandboxPolicy> = Api::namespaced(tenant.client.clone(), &tenant.name);
        assert!(api.get_opt("limited").await.unwrap().is_some());
        let script = || {
            Script::shell("true").with(json!({
                "policyRef": { "kind": "SandboxPolicy", "name": "limited" }, "resources": { "memory": "64Mi" },
            }))
        };
        eventually("the policy is seen", || async {
            let run = tenant.run(script()).await;
            if status(&run).phase == Some(Phase::Succeeded) { Ok(()) } else { Err(status(&run).message) }
        })
        .await;
        // Counted by the pods' own watch: the most that lived at one moment, and every run that ever had one.
        let pods = tenant.pods();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let counting = tokio::spawn(async move {
            let mut living: BTreeSet<String> = BTreeSet::new();
            let mut ever: BTreeSet<String> = BTreeSet::new();
            let mut most = 0;
            let mut pods = std::pin::pin!(watcher(pods, watcher::Config::default()).default_backoff().take_until(stopped));
            while let Ok(Some(event)) = pods.try_next().await {
                let (pod, is_gone) = match event {
                    watcher::Event::Apply(pod) | watcher::Event::InitApply(pod) => (pod, false),
                    watcher::Event::Delete(pod) => (pod, true),
                    _ => continue,
                };
                let phase = pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
                if is_gone || phase == "Succeeded" || phase == "Failed" {
                    living.remove(&pod.name_any());
                } else {
                    living.insert(pod.name_any());
                    ever.insert(pod.uid().unwrap());
                }
                most = most.max(living.len());
            }
            (most, ever.len())
        });
        let mut runs = Vec::new();
        for _ in 0..50 {
            runs.push(tenant.create(script()).await);
        }
        let mut ends = futures::stream::iter(runs)
            .map(|run| {
                let tenant = tenant.clone();
                async move { tenant.finished_within(&run, Duration::from_secs(300)).await }
            })
            .buffered(50);
        while let Some(run) = ends.next().await {
            assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        }
        let _ = stop.send(());
        let (most, pods) = counting.await.unwrap();
        assert!(most <= LIMIT, "{most} pods lived at once");
        assert_eq!(most, LIMIT, "the limit was never reached, so nothing was shown");
        assert!(pods >= 50, "{pods}");
    })
    .await;
}
