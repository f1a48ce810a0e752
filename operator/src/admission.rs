//! `paddock-operator await-admission`: what the chart runs after an installation. The API server takes up admission policies, and the CRDs that they
//! are about, a few seconds after they are stored. A run that is created before would not be stamped, and would be refused for it.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, ResourceExt as _};
use paddock_crds::{ScriptRun, ScriptRunSpec};
use serde_json::json;

use crate::errand;
use crate::error::code;
use crate::names::REQUESTER;

/// The argument that makes this program wait until runs are stamped.
pub(crate) const ARGUMENT: &str = "await-admission";
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// In a row: each API server of a cluster takes the policies up at its own time.
const LOOKS: u32 = 4;

pub(crate) fn main() -> ExitCode {
    errand::run(ARGUMENT, wait)
}

/// Ends when runs are stamped. How long it may take is the Job's to say.
async fn wait(client: Client) -> Result<()> {
    let api: Api<ScriptRun> = Api::default_namespaced(client);
    let mut seen = 0;
    let mut said = String::new();
    let run = a_run()?;
    while seen < LOOKS {
        match why_not(&api, &run).await {
            None => seen += 1,
            Some(why) => {
                seen = 0;
                if why != said {
                    println!("{why}");
                    said = why;
                }
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    println!("runs are stamped");
    Ok(())
}

/// Any run.
fn a_run() -> Result<ScriptRun> {
    let spec: ScriptRunSpec = serde_json::from_value(json!({
        "policyRef": { "kind": "ClusterSandboxPolicy", "name": "any" },
        "script": { "runtime": "any", "source": { "inline": "any" } },
    }))
    .context("the run")?;
    let mut run = ScriptRun::new("", spec);
    run.metadata = ObjectMeta { generate_name: Some("await-admission-".into()), ..ObjectMeta::default() };
    Ok(run)
}

/// Why a run that is created now would not be taken. Nothing is stored by this.
async fn why_not(api: &Api<ScriptRun>, run: &ScriptRun) -> Option<String> {
    match api.create(&PostParams { dry_run: true, ..PostParams::default() }, run).await {
        Ok(stored) if stored.annotations().contains_key(REQUESTER) => None,
        Ok(_) => Some("runs are not stamped yet".into()),
        Err(error) if code(&error) == Some(404) => Some("the API server does not serve ScriptRuns yet".into()),
        Err(error) => Some(format!("the API server does not take a run yet: {error}")),
    }
}
