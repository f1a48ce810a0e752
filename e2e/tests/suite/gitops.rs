//! What GitOps tools are told of runs, and what they must not cause.

use crate::harness::{Script, assert_end, eventually, kubectl, layout, status, tenant};
use kube::ResourceExt as _;
use kube::api::PostParams;
use mlua::{Lua, LuaSerdeExt as _};
use paddock_crds::{ConditionType, Phase, Reason, ScriptRun};
use serde_json::{Value, json};

/// What Argo CD makes of an object: it runs the script with the object as `obj`, and takes what it returns.
fn health(object: &Value) -> (String, String) {
    let script = std::fs::read_to_string(layout().clone.join("docs/gitops/argocd-health.lua")).unwrap();
    let lua = Lua::new();
    lua.globals().set("obj", lua.to_value(object).unwrap()).unwrap();
    let answer: mlua::Table = lua.load(script).eval().unwrap();
    (answer.get("status").unwrap(), answer.get("message").unwrap())
}

#[tokio::test]
async fn argo_cd_sees_how_a_run_is() {
    tenant("health", |tenant| async move {
        assert_eq!(health(&json!({ "spec": {} })).0, "Progressing");
        let run = tenant.create(Script::shell("sleep 2")).await;
        let running = tenant.until(&run, "Started", |status| status.is_true(&ConditionType::Started)).await;
        assert_eq!(health(&serde_json::to_value(&running).unwrap()), ("Progressing".into(), "the script runs".into()));
        let good = tenant.finished(&run).await;
        assert_eq!(health(&serde_json::to_value(&good).unwrap()), ("Healthy".into(), "the script ended with exit code 0".into()));
        let bad = tenant.run(Script::shell("exit 3")).await;
        assert_eq!(health(&serde_json::to_value(&bad).unwrap()), ("Degraded".into(), "the script ended with exit code 3".into()));
        let refused = tenant.run(Script::shell("true").with(json!({ "timeoutSeconds": 86400 }))).await;
        assert_eq!(health(&serde_json::to_value(&refused).unwrap()).0, "Degraded");
    })
    .await;
}

/// Deleted, it would be created anew by whoever holds it, and run once more.
#[tokio::test]
async fn a_run_that_git_holds_is_not_deleted_for_its_time_to_live() {
    tenant("held", |tenant| async move {
        let create = async |name: &str, metadata: Value| {
            let mut run = ScriptRun::new(
                name,
                serde_json::from_value(Script::shell("true").with(json!({ "ttlSecondsAfterFinished": 1 })).0).unwrap(),
            );
            run.metadata.labels = serde_json::from_value(metadata["labels"].clone()).unwrap();
            run.metadata.annotations = serde_json::from_value(metadata["annotations"].clone()).unwrap();
            tenant.runs().create(&PostParams::default(), &run).await.unwrap()
        };
        let held = [
            create("argo", json!({ "annotations": { "argocd.argoproj.io/tracking-id": "app:paddock.dev/ScriptRun:x/argo" } })).await,
            create("flux", json!({ "labels": { "kustomize.toolkit.fluxcd.io/name": "app" } })).await,
        ];
        for run in &held {
            assert_end(&tenant.finished(run).await, &Phase::Succeeded, &Reason::Succeeded);
        }
        // One that nobody holds, made later, is gone: so the others' time was over as well.
        let free = create("free", json!({})).await;
        eventually("it is gone", || async {
            tenant.runs().get_opt(&free.name_any()).await.unwrap().map_or(Ok(()), |run| Err(status(&run).phase))
        })
        .await;
        for run in &held {
            assert!(tenant.get(run).await.metadata.deletion_timestamp.is_none());
        }
    })
    .await;
}

#[tokio::test]
async fn kubectl_waits_for_a_run_and_explains_it() {
    tenant("explained", |tenant| async move {
        let run = tenant.create(Script::shell("sleep 1")).await;
        let name = format!("scriptrun/{}", run.name_any());
        kubectl(&["wait", &name, "--namespace", &tenant.name, "--for=condition=Finished", "--timeout=60s"], "").unwrap();
        for field in [
            "scriptrun.spec",
            "scriptrun.spec.script",
            "scriptrun.status.result",
            "sandboxpolicy.spec.limits",
            "clustersandboxpolicy.spec.runtimes",
        ] {
            let told = kubectl(&["explain", field, "--output=plaintext"], "").unwrap();
            // `  name  <type>` is followed by what it means.
            let lines: Vec<&str> = told.lines().skip_while(|line| *line != "FIELDS:").skip(1).collect();
            let fields =
                lines.iter().enumerate().filter(|(_, line)| line.starts_with("  ") && !line.starts_with("    ") && line.contains('<'));
            let unexplained: Vec<&str> = fields
                .filter(|(number, _)| lines.get(number + 1).is_none_or(|next| next.trim().is_empty() || next.contains("<no description>")))
                .map(|(_, line)| *line)
                .collect();
            assert!(!lines.is_empty() && unexplained.is_empty(), "{field}: {unexplained:?}\n{told}");
        }
    })
    .await;
}
