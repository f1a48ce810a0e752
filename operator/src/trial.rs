//! `paddock-operator try NAMESPACE POLICY RUNTIME`: what `helm test` runs. It creates one ScriptRun, as any user would, and waits for its end.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client, ResourceExt as _};
use paddock_crds::{ConditionType, Phase, ScriptRun, ScriptRunSpec};
use serde_json::json;

use crate::errand;

/// The argument that makes this program try a run.
pub(crate) const ARGUMENT: &str = "try";
/// Start budget, time limit and some.
const WITHIN: Duration = Duration::from_secs(120);

pub(crate) fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    errand::run(ARGUMENT, async |client| attempt(client, &arguments).await)
}

async fn attempt(client: Client, arguments: &[String]) -> Result<()> {
    let [namespace, policy, runtime] = arguments else { bail!("give a namespace, a ClusterSandboxPolicy and a runtime") };
    let api: Api<ScriptRun> = Api::namespaced(client, namespace);
    let spec: ScriptRunSpec = serde_json::from_value(json!({
        "policyRef": { "kind": "ClusterSandboxPolicy", "name": policy },
        // Empty is a program in most languages.
        "script": { "runtime": runtime, "source": { "inline": "\n" } },
        "ttlSecondsAfterFinished": 60,
    }))
    .context("the run")?;
    let mut run = ScriptRun::new("", spec);
    run.metadata = ObjectMeta { generate_name: Some("helm-test-".into()), ..ObjectMeta::default() };
    let run = api.create(&PostParams::default(), &run).await.context("cannot create a ScriptRun")?;
    let name = run.name_any();
    println!("created scriptrun.paddock.dev/{name} in {namespace}");
    let finished = await_condition(api, &name, |run: Option<&ScriptRun>| {
        run.and_then(|run| run.status.as_ref()).is_some_and(|status| status.is_true(&ConditionType::Finished))
    });
    let run = tokio::time::timeout(WITHIN, finished).await.context("the run has not ended in time")?.context("cannot watch the run")?;
    let status = run.and_then(|run| run.status).context("the run is gone")?;
    let message = status.message.unwrap_or_default();
    ensure!(status.phase == Some(Phase::Succeeded), "the run ended as {:?}: {message}", status.phase);
    println!("Succeeded: {message}");
    Ok(())
}
