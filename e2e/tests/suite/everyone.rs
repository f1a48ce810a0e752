//! What a policy of the cluster that nobody can use does: to everybody.

use crate::harness::{Script, admin, assert_end, assert_refused, eventually, status, tenant};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use paddock_crds::{ClusterSandboxPolicy, Phase, PolicyConditionType, PolicyReason, Reason};
use serde_json::json;

const NAME: &str = "e2e-unusable";

/// Whom it would select is not known, so it may be anybody.
#[tokio::test]
async fn a_policy_of_the_cluster_whose_selector_cannot_be_used_refuses_everybody() {
    let api: Api<ClusterSandboxPolicy> = Api::all(admin().await);
    tenant("everyone", |tenant| async move {
        let runs = tenant.create(Script::shell("sleep 10")).await;
        tenant.until(&runs, "it runs", |status| status.phase == Some(Phase::Running)).await;
        let policy = json!({
            "apiVersion": "paddock.dev/v1alpha1", "kind": "ClusterSandboxPolicy", "metadata": { "name": NAME },
            "spec": { "effect": "Restrict", "namespaceSelector": { "matchExpressions": [{ "key": "tier", "operator": "Like", "values": ["gold"] }] } },
        });
        api.create(&PostParams::default(), &serde_json::from_value(policy).unwrap()).await.unwrap();
        let refused = eventually("it is seen", || async {
            let run = tenant.run(Script::shell("true")).await;
            if status(&run).phase == Some(Phase::Succeeded) { Err("not yet") } else { Ok(run) }
        })
        .await;
        assert_refused(&refused, &Reason::PolicyInvalid);
        let message = status(&refused).message.unwrap();
        assert!(message.contains(&format!("ClusterSandboxPolicy {NAME}: ")), "{message}");
        eventually("it says so itself", || async {
            let told = api.get(NAME).await.unwrap().status.unwrap_or_default();
            let ready = told.conditions.iter().find(|condition| condition.type_ == PolicyConditionType::Ready);
            let fields: Vec<_> = told.problems.iter().map(|problem| problem.field.as_str()).collect();
            let says = ready.is_some_and(|ready| ready.reason == PolicyReason::Invalid) && fields == ["namespaceSelector"];
            if says { Ok(()) } else { Err(format!("{told:?}")) }
        })
        .await;
        api.delete(NAME, &DeleteParams::default()).await.unwrap();
        eventually("runs are taken again", || async {
            let run = tenant.run(Script::shell("true")).await;
            if status(&run).phase == Some(Phase::Succeeded) { Ok(()) } else { Err(status(&run).message) }
        })
        .await;
        // What ran already was decided on before.
        assert_end(&tenant.finished(&runs).await, &Phase::Succeeded, &Reason::Succeeded);
    })
    .await;
}
