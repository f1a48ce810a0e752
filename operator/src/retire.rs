//! What the chart runs when it is uninstalled, so that nothing is left that waits for an operator for ever.
//!
//! `paddock-operator drain SECONDS`, before anything is deleted, waits for the runs that are active; the operator goes on working meanwhile.
//! `paddock-operator retire`, when the operator is gone, tells of every script that still runs that it is lost, lets go of all runs, and removes
//! the sandbox namespaces. Runs that have not started stay as they are: an operator that is installed later takes them up.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt as _};
use paddock_crds::{ConditionType, ScriptRunStatus};
use serde_json::json;

use crate::egress::authority;
use crate::errand;
use crate::error::code;
use crate::names::{FINALIZER, SANDBOX_OF};
use crate::script_run::status::lost;
use crate::script_run::{Guarded, PAGE, Watched};
use crate::sealing::SECRET;
use crate::webhook;

/// The argument that makes this program wait for active runs.
pub(crate) const DRAIN: &str = "drain";
/// The argument that makes this program let go of everything.
pub(crate) const RETIRE: &str = "retire";
/// The chart names the lease so.
const LEASE: &str = "paddock-operator";
const MESSAGE: &str = "Paddock was uninstalled while the script ran";
/// Between two looks at the runs that are waited for.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A run may be written by somebody else at the same time, so that its status is not taken.
const ATTEMPTS: usize = 5;
/// Troubles that are told one by one.
const TOLD: usize = 5;

/// What has to be done with a run, so that nothing waits for an operator any more.
#[derive(Debug, PartialEq)]
struct Parting {
    /// The script runs, and nobody will read its result.
    lost: Option<Box<ScriptRunStatus>>,
    /// The finalizers without Paddock's own, if that is among them.
    finalizers: Option<Vec<String>>,
}

/// Pure. `None` for a run that nothing has to be done with.
fn parting(guarded: &Guarded, now: Timestamp) -> Option<Parting> {
    let metadata = kube::Resource::meta(guarded);
    let finalizers = metadata.finalizers.clone().unwrap_or_default();
    let kept: Vec<String> = finalizers.iter().filter(|finalizer| *finalizer != FINALIZER).cloned().collect();
    let finalizers = (kept.len() < finalizers.len()).then_some(kept);
    let lost = guarded.0.as_ref().ok().filter(|watched| is_running(watched)).map(|watched| Box::new(lost(&watched.run, MESSAGE, now)));
    (lost.is_some() || finalizers.is_some()).then_some(Parting { lost, finalizers })
}

fn is_running(watched: &Watched) -> bool {
    holds(watched, &ConditionType::Started) && !holds(watched, &ConditionType::Finished)
}

fn is_active(watched: &Watched) -> bool {
    holds(watched, &ConditionType::Admitted) && !holds(watched, &ConditionType::Finished)
}

fn holds(watched: &Watched, condition: &ConditionType) -> bool {
    watched.run.status.as_ref().is_some_and(|status| status.is_true(condition))
}

pub(crate) fn main(argument: &str) -> ExitCode {
    let seconds = std::env::args().nth(2).unwrap_or_default();
    errand::run(argument, async |client| {
        if argument == RETIRE {
            return retire(&client).await;
        }
        // An uninstallation goes on also where nobody could be waited for.
        if let Err(error) = drain(&client, &seconds).await {
            eprintln!("paddock-operator {argument}: not waited for: {error:#}");
        }
        Ok(())
    })
}

async fn drain(client: &Client, seconds: &str) -> Result<()> {
    let limit = Duration::from_secs(seconds.parse().with_context(|| format!("not a number of seconds: {seconds:?}"))?);
    let api: Api<Guarded> = Api::all(client.clone());
    let begin = tokio::time::Instant::now();
    // Runs that are admitted later are not waited for: others may go on creating some.
    let mut waited_for = active(&api).await?;
    while !waited_for.is_empty() && begin.elapsed() < limit {
        tokio::time::sleep(LOOK_EVERY).await;
        let still = active(&api).await?;
        waited_for.retain(|uid| still.contains(uid));
    }
    println!("{} active runs are left", waited_for.len());
    Ok(())
}

/// UIDs of active runs. Of each page nothing else stays in memory.
async fn active(api: &Api<Guarded>) -> Result<Vec<String>> {
    let mut uids = Vec::new();
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let runs = api.list(&page).await.context("cannot list the runs")?;
        let watched = runs.items.iter().filter_map(|guarded| guarded.0.as_ref().ok());
        uids.extend(watched.filter(|watched| is_active(watched)).filter_map(|watched| watched.run.uid()));
        match runs.metadata.continue_.filter(|next| !next.is_empty()) {
            Some(next) => page = page.continue_token(&next),
            None => return Ok(uids),
        }
    }
}

/// What cannot be done with one thing keeps none of the others from being done.
async fn retire(client: &Client) -> Result<()> {
    let api: Api<Guarded> = Api::all(client.clone());
    let (mut lost, mut troubles) = (0, Vec::new());
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let runs = api.list(&page).await.context("cannot list the runs")?;
        for guarded in runs.items {
            let api: Api<Guarded> = Api::namespaced(client.clone(), &guarded.namespace().unwrap_or_default());
            match part(&api, guarded).await {
                Ok(was_running) => lost += usize::from(was_running),
                Err(error) => troubles.push(error),
            }
        }
        match runs.metadata.continue_.filter(|next| !next.is_empty()) {
            Some(next) => page = page.continue_token(&next),
            None => break,
        }
    }
    println!("{lost} scripts were still running");
    troubles.extend(remove_sandboxes(client).await.err());
    troubles.extend(remove_own::<Lease>(client, LEASE).await.err());
    for name in [SECRET, webhook::SECRET, authority::SECRET, authority::AUTHORITY] {
        troubles.extend(remove_own::<Secret>(client, name).await.err());
    }
    let told = troubles.iter().map(|trouble| format!("{trouble:#}")).take(TOLD).collect::<Vec<_>>().join("; ");
    anyhow::ensure!(troubles.is_empty(), "{} things could not be done: {told}", troubles.len());
    Ok(())
}

async fn remove_sandboxes(client: &Client) -> Result<()> {
    let api: Api<Namespace> = Api::all(client.clone());
    let sandboxes = api.list(&ListParams::default().labels(SANDBOX_OF)).await.context("cannot list the sandbox namespaces")?;
    for namespace in &sandboxes.items {
        let preconditions = Preconditions { uid: namespace.uid(), resource_version: None };
        let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let name = namespace.name_any();
        gone_or(api.delete(&name, &parameters).await).with_context(|| format!("cannot delete the sandbox namespace {name}"))?;
    }
    println!("{} sandbox namespaces are removed", sandboxes.items.len());
    Ok(())
}

/// What the operator made for itself in its namespace: it is in no release.
async fn remove_own<K>(client: &Client, name: &str) -> Result<()>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let api: Api<K> = Api::default_namespaced(client.clone());
    gone_or(api.delete(name, &DeleteParams::default()).await).with_context(|| format!("cannot delete the {} {name}", K::kind(&())))
}

/// Returns whether a script was still running.
async fn part(api: &Api<Guarded>, guarded: Guarded) -> Result<bool> {
    let Some(parting) = parting(&guarded, Timestamp::now()) else { return Ok(false) };
    let was_running = parting.lost.is_some();
    let told = if was_running { tell(api, &guarded).await } else { Ok(()) };
    // Also where the status could not be told: whoever writes a run again and again must not keep it.
    if let Some(finalizers) = parting.finalizers {
        let name = guarded.name_any();
        let patch = Patch::Merge(json!({ "metadata": { "uid": guarded.uid(), "finalizers": finalizers } }));
        gone_or(api.patch(&name, &PatchParams::default(), &patch).await).with_context(|| format!("cannot let go of the run {name}"))?;
    }
    told.map(|()| was_running)
}

/// Stores that a run is lost.
async fn tell(api: &Api<Guarded>, guarded: &Guarded) -> Result<()> {
    let name = guarded.name_any();
    let mut current = guarded.clone();
    for _ in 0..ATTEMPTS {
        let Some(Parting { lost: Some(status), .. }) = parting(&current, Timestamp::now()) else { return Ok(()) };
        let metadata = json!({ "uid": current.uid(), "resourceVersion": current.resource_version() });
        let patch = Patch::Merge(json!({ "metadata": metadata, "status": *status }));
        match api.patch_status(&name, &PatchParams::default(), &patch).await {
            Err(error) if code(&error) == Some(409) => {}
            answer => return gone_or(answer).with_context(|| format!("cannot tell that the run {name} is lost")),
        }
        let Some(newer) = api.get_opt(&name).await.context("cannot read a run")? else { return Ok(()) };
        current = newer;
    }
    anyhow::bail!("the run {name} is changed by somebody else again and again")
}

fn gone_or<T>(answer: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match answer {
        Err(error) if !matches!(code(&error), Some(404 | 409)) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use paddock_crds::{Phase, ScriptRun};

    use super::*;
    use crate::script_run::Body;
    use crate::script_run::fixtures::{a_run, admitted};

    fn watched(run: ScriptRun) -> Guarded {
        Guarded(Ok(Watched { run, input: None, schema: None, body: Body::Left { bytes: 0 } }))
    }

    #[test]
    fn a_script_that_runs_is_lost_and_one_that_waits_stays() {
        let mut waiting = a_run();
        waiting.metadata.finalizers = Some(vec![FINALIZER.into(), "example.com/other".into()]);
        let parting_of = |run: ScriptRun| parting(&watched(run), Timestamp::UNIX_EPOCH);
        let left = parting_of(waiting.clone()).expect("its finalizer goes");
        assert_eq!(left, Parting { lost: None, finalizers: Some(vec!["example.com/other".into()]) });

        let mut running = admitted(0);
        running.metadata.finalizers = Some(vec![FINALIZER.into()]);
        let status = running.status.as_mut().expect("a status");
        let mut started = status.condition(&ConditionType::Admitted).expect("a condition").clone();
        started.type_ = ConditionType::Started;
        status.conditions.push(started);
        let left = parting_of(running.clone()).expect("it is told");
        let told = left.lost.expect("a status");
        assert_eq!((told.phase.as_ref(), told.message.as_deref()), (Some(&Phase::Lost), Some(MESSAGE)));
        assert!(told.is_true(&ConditionType::Finished) && told.condition(&ConditionType::Reconciling).is_none());
        assert_eq!(left.finalizers, Some(vec![]));

        running.status = Some(*told);
        running.metadata.finalizers = None;
        assert_eq!(parting_of(running), None, "nothing is done twice");
    }
}
