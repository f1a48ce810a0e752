//! What is left, and what goes, when runs and tenant namespaces are removed in ways that nobody planned.

use crate::harness::{Script, Tenant, assert_end, eventually, status, tenant};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt};
use paddock_crds::{ConditionType, Phase, Reason, ScriptRun};
use serde_json::json;

const FINALIZER: &str = "paddock.dev/sandbox";

/// A policy by which one run is active at a time.
async fn one_at_a_time(tenant: &Tenant) {
    tenant.policy(json!({ "maxConcurrent": 1 })).await;
    eventually("the policy is seen", || async {
        let run = tenant.run(limited("true")).await;
        if status(&run).phase == Some(Phase::Succeeded) { Ok(()) } else { Err(status(&run).message) }
    })
    .await;
}

fn limited(text: &str) -> Script {
    Script::shell(text).with(json!({ "policyRef": { "kind": "SandboxPolicy", "name": "limited" } }))
}

async fn started(tenant: &Tenant, script: Script) -> ScriptRun {
    let run = tenant.create(script).await;
    tenant.until(&run, "Started", |status| status.is_true(&ConditionType::Started)).await
}

async fn pods_are_gone(tenant: &Tenant) {
    eventually("no pod is left", || async {
        let pods: Vec<String> = tenant.pods().list(&ListParams::default()).await.unwrap().items.iter().map(ResourceExt::name_any).collect();
        if pods.is_empty() { Ok(()) } else { Err(pods) }
    })
    .await;
}

#[tokio::test]
async fn a_finalizer_of_somebody_else_holds_the_object_and_no_slot() {
    tenant("foreign-fin", |tenant| async move {
        one_at_a_time(&tenant).await;
        // Beside the operator's own, and in its place.
        for kept in [&[FINALIZER.to_owned()][..], &[]] {
            let run = started(&tenant, limited("sleep 60")).await;
            let finalizers = [kept, &["example.com/archive".to_owned()]].concat();
            tenant.patch(&run, json!({ "metadata": { "finalizers": finalizers } })).await;
            tenant.runs().delete(&run.name_any(), &DeleteParams::default()).await.unwrap();
            // The next one gets the slot although the object is still there.
            let next = tenant.run(limited("echo next")).await;
            assert_end(&next, &Phase::Succeeded, &Reason::Succeeded);
            let held = tenant.get(&run).await;
            assert_eq!(held.finalizers(), ["example.com/archive"]);
            tenant.patch(&run, json!({ "metadata": { "finalizers": null } })).await;
            eventually("the run is gone", || async {
                tenant.runs().get_opt(&run.name_any()).await.unwrap().map_or(Ok(()), |run| Err(run.metadata.finalizers))
            })
            .await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_run_without_its_finalizer_takes_its_pod_along_and_frees_no_slot_before() {
    tenant("stripped", |tenant| async move {
        one_at_a_time(&tenant).await;
        let run =
            started(&tenant, limited("trap 'sleep 8; exit 0' TERM; while :; do sleep 0.1; done").with(json!({ "gracePeriodSeconds": 20 })))
                .await;
        let pod = tenant.pod_of(&run).await.name_any();
        // `edit` lets a tenant do this to a run of its own.
        tenant.patch(&run, json!({ "metadata": { "finalizers": null } })).await;
        tenant.runs().delete(&run.name_any(), &DeleteParams::default()).await.unwrap();
        let next = tenant.create(limited("echo next")).await;
        eventually("the next run has a slot", || async {
            // At no moment do both pods live.
            let living: Vec<String> = tenant
                .pods()
                .list(&ListParams::default())
                .await
                .unwrap()
                .items
                .iter()
                .filter(|pod| !matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed")))
                .map(ResourceExt::name_any)
                .collect();
            assert!(living.len() <= 1, "{living:?}");
            let next = tenant.get(&next).await;
            if status(&next).is_true(&ConditionType::Admitted) { Ok(()) } else { Err(living) }
        })
        .await;
        assert_end(&tenant.finished(&next).await, &Phase::Succeeded, &Reason::Succeeded);
        assert!(tenant.runs().get_opt(&run.name_any()).await.unwrap().is_none());
        pods_are_gone(&tenant).await;
        assert!(tenant.pods().get_opt(&pod).await.unwrap().is_none());
    })
    .await;
}

#[tokio::test]
async fn a_finalizer_that_is_taken_off_a_waiting_run_comes_back() {
    tenant("back", |tenant| async move {
        one_at_a_time(&tenant).await;
        let first = started(&tenant, limited("sleep 60")).await;
        let waiting = tenant.create(limited("echo at last")).await;
        tenant.until(&waiting, "Queued", |status| status.phase == Some(Phase::Queued)).await;
        tenant.patch(&waiting, json!({ "metadata": { "finalizers": null } })).await;
        eventually("it is back", || async {
            let run = tenant.get(&waiting).await;
            if run.finalizers().contains(&FINALIZER.to_owned()) { Ok(()) } else { Err(run.metadata) }
        })
        .await;
        tenant.patch(&first, json!({ "spec": { "cancel": true } })).await;
        assert_end(&tenant.finished(&waiting).await, &Phase::Succeeded, &Reason::Succeeded);
    })
    .await;
}

#[tokio::test]
async fn a_tenant_that_comes_back_under_its_name_gets_a_sandbox_namespace_of_its_own() {
    tenant("again", |tenant| async move {
        let namespaces: Api<Namespace> = Api::all(tenant.client.clone());
        started(&tenant, Script::shell("trap '' TERM; sleep 60").with(json!({ "gracePeriodSeconds": 2 }))).await;
        let sandbox = |namespaces: Api<Namespace>, name: String| async move { namespaces.get(&name).await.unwrap().uid().unwrap() };
        let before = sandbox(namespaces.clone(), tenant.sandbox()).await;
        let first = namespaces.get(&tenant.name).await.unwrap();
        namespaces.delete(&tenant.name, &DeleteParams::default()).await.unwrap();
        let mut anew = Namespace { metadata: first.metadata, ..Namespace::default() };
        anew.metadata.uid = None;
        anew.metadata.resource_version = None;
        anew.metadata.creation_timestamp = None;
        anew.metadata.deletion_timestamp = None;
        anew.metadata.managed_fields = None;
        eventually("the name is free and taken again", || async { namespaces.create(&PostParams::default(), &anew).await }).await;
        let run = eventually("runs can be made again", || async { tenant.runs().create(&PostParams::default(), &hello()).await }).await;
        assert_end(&tenant.finished(&run).await, &Phase::Succeeded, &Reason::Succeeded);
        assert_ne!(sandbox(namespaces.clone(), tenant.sandbox()).await, before);
        assert!(tenant.runs().list(&ListParams::default()).await.unwrap().items.len() == 1);
    })
    .await;
}

fn hello() -> ScriptRun {
    let mut run = ScriptRun::new("hello", serde_json::from_value(Script::shell("echo hello").0).unwrap());
    run.metadata.labels = Some([("test".to_owned(), "again".to_owned())].into());
    run
}
