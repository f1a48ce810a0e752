//! The life of a ScriptRun. Every pass is see → decide → act → report.
//!
//! `observe` reads, `next_step` decides and is pure, `apply` acts, `compute_status` is pure, `write_status` writes. A run that needs
//! several steps takes them in one pass, each on what the API server answered to the one before.

pub(crate) mod access;
#[cfg(test)]
mod answers;
pub(crate) mod apply;
mod copies;
pub(crate) mod events;
#[cfg(test)]
pub(crate) mod fixtures;
pub(crate) mod given;
pub(crate) mod guarded;
pub(crate) mod job;
pub(crate) mod ledger;
pub(crate) mod observe;
pub(crate) mod outcome;
pub(crate) mod pod;
pub(crate) mod pod_facts;
pub(crate) mod queue;
pub(crate) mod result;
mod sandbox;
pub(crate) mod session;
pub(crate) mod status;
pub(crate) mod step;
#[cfg(test)]
mod story;
pub(crate) mod telling;
pub(crate) mod text;
pub(crate) mod validate;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::channel::mpsc;
use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use kube::runtime::controller::{Action, Config};
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::{Controller, WatchStreamExt as _, watcher};
use kube::{Api, ResourceExt as _};
use paddock_crds::{ConditionType, Reason};
use tracing::Instrument as _;

use crate::context::{Context, entry};
use crate::error::Error;
use crate::listed::for_controller;
use apply::Done;
pub(crate) use guarded::{Body, Guarded, Watched};
use queue::Admission;
use step::{Step, next_step};

/// Names the run that something happened to.
pub(crate) type RunRef = ObjectRef<Guarded>;

/// More steps than the longest life has: a run that takes more is going in circles, and waits for its next turn.
const MAX_STEPS: usize = 16;
/// A run that is at rest is looked at again after this long, whatever happens.
const BACKSTOP: Duration = Duration::from_secs(300);

/// Runs in one page of a list: a page is in memory as a whole, bodies and all.
pub(crate) const PAGE: u32 = 50;

/// A run that waits for something that wakes nobody is looked at again after this long.
const HOLD: Duration = Duration::from_secs(1);

/// Others of its namespace are before it, each for less than this.
const CROWDED: Duration = Duration::from_secs(2);

/// Watches and reconciles until `stop` is ready, `concurrency` runs at once.
pub(crate) async fn run(
    context: Arc<Context>,
    concurrency: u16,
    woken: mpsc::UnboundedReceiver<RunRef>,
    stop: impl Future<Output = ()> + Send + Sync + 'static,
) {
    let api: Api<Guarded> = Api::all(context.client.clone());
    let (reader, writer) = reflector::store();
    context.set_runs(reader.clone());
    // The queue sees what the cache sees, and before any pass does.
    let queued = context.clone();
    let watched = watcher(api, watcher::Config::default().page_size(PAGE))
        .default_backoff()
        .reflect(writer)
        .inspect_ok(move |event| note(event, &queued));
    let (changed, listed) = for_controller(watched);
    Controller::for_stream(changed, reader)
        .with_config(Config::default().concurrency(concurrency))
        .reconcile_all_on(listed)
        .reconcile_on(woken)
        .graceful_shutdown_on(stop)
        .run(reconcile, error_policy, context)
        .for_each(|_| std::future::ready(()))
        .await;
}

/// Tells the queue what the watch shows.
fn note(event: &watcher::Event<Guarded>, context: &Context) {
    let show = |guarded: &Guarded| {
        if let Ok(watched) = &guarded.0 {
            context.ledger.show(entry(&watched.run));
        }
    };
    match event {
        watcher::Event::Init => context.ledger.list_begins(),
        watcher::Event::InitApply(guarded) | watcher::Event::Apply(guarded) => show(guarded),
        watcher::Event::InitDone => {
            let gone = context.ledger.list_ends();
            // One that cannot be read any more has no place in the queue, and may have a script that runs.
            let present: HashSet<String> =
                if gone.is_empty() { HashSet::new() } else { context.runs().iter().filter_map(|run| run.uid()).collect() };
            for uid in gone {
                context.egress.hide(&uid);
                if !present.contains(&uid) {
                    context.sandboxes.let_go(&uid);
                }
            }
        }
        watcher::Event::Delete(guarded) => {
            let uid = guarded.uid().unwrap_or_default();
            let run = guarded.0.as_ref().ok().map(|watched| &watched.run);
            if let Some(run) = run.filter(|run| !run.status.as_ref().is_some_and(|status| status.is_true(&ConditionType::Finished))) {
                context.audit.tell_of_deletion(run, context.now());
            }
            context.audit.forget(&uid);
            context.ledger.hide(&uid);
            context.egress.hide(&uid);
            // Nobody looks after its sandbox any more: the pool does.
            context.sandboxes.let_go(&uid);
        }
    }
}

async fn reconcile(guarded: Arc<Guarded>, context: Arc<Context>) -> Result<Action, Error> {
    let watched = match &guarded.0 {
        Ok(watched) => watched,
        Err(unreadable) => {
            let metadata = &unreadable.metadata;
            tracing::warn!(run = metadata.name, namespace = metadata.namespace, why = unreadable.why, "cannot read the run");
            context.metrics.malformed();
            return apply::release_unreadable(metadata, &context).await;
        }
    };
    let run = &watched.run;
    context.note_end(run);
    let span = tracing::info_span!(
        "pass",
        run = run.name_any(),
        namespace = run.namespace(),
        uid = run.uid(),
        generation = run.metadata.generation
    );
    let begin = Instant::now();
    let passed = Box::pin(pass(watched, &context).instrument(span)).await;
    context.metrics.passed(begin.elapsed().as_secs_f64());
    passed
}

/// One pass: as many steps as can be taken now.
async fn pass(watched: &Watched, context: &Arc<Context>) -> Result<Action, Error> {
    let watched = context.freshest(watched);
    let namespace = watched.run.namespace().unwrap_or_default();
    let _room = match observe::large_kib(&watched) {
        0 => None,
        kib => Some(context.large.take(&namespace, kib).await?),
    };
    let Some(mut watched) = observe::whole(watched, context).await? else {
        return Ok(Action::await_change());
    };
    if let Some(status) = &watched.run.status {
        context.audit.tell_of_run(&watched.run, status, context.now());
    }
    for _ in 0..MAX_STEPS {
        let run = &watched.run;
        let seen = observe::observe(&watched, context).await?;
        let now = context.now();
        let step = next_step(run, &seen, &context.settings, now);
        tracing::debug!(?step, "step");
        if let Some(action) = at_rest(&step) {
            return Ok(action);
        }
        let done = apply::apply(run, &seen, &step, context).await?;
        if let Some(status) = status::compute_status(run, &seen, &step, &done, now) {
            watched = match apply::write_status(&watched, status, context).await {
                Err(Error::NoRoom) => return apply::give_up(run, &seen, context).await,
                answer => answer?,
            };
        }
        if matches!(step, Step::StandBack(_)) {
            context.stood_back(&watched.run);
        }
        if let Done::Replaced(newer) = done {
            watched = watched.succeeded_by(*newer);
        } else if let Some(action) = pause(&step, &done, now) {
            return Ok(action);
        }
    }
    Ok(Action::requeue(Duration::from_secs(1)))
}

fn at_rest(step: &Step) -> Option<Action> {
    match step {
        Step::Leave => Some(Action::await_change()),
        Step::Rest { wake } => Some(Action::requeue(wake.unwrap_or(BACKSTOP).min(BACKSTOP))),
        _ => None,
    }
}

/// Whether the pass ends after a step that was taken.
fn pause(step: &Step, done: &Done, now: Timestamp) -> Option<Action> {
    match (step, done) {
        (_, Done::Gone) => Some(Action::await_change()),
        (_, Done::Wait(wait)) => Some(Action::requeue(*wait)),
        (_, Done::NotCreated(Reason::QuotaExceeded, _)) | (Step::Hold(..), _) => Some(Action::requeue(HOLD)),
        // An approval that comes wakes the run; that one has become too old, nobody tells.
        (Step::AwaitApproval { until }, _) => {
            let left = u64::try_from(until.as_millisecond() - now.as_millisecond()).unwrap_or(0);
            Some(Action::requeue(Duration::from_millis(left).min(BACKSTOP)))
        }
        // Whoever frees a slot wakes the next in line.
        (_, Done::Queued(Admission::Wait { .. })) => Some(Action::requeue(BACKSTOP)),
        _ => None,
    }
}

/// Infrastructure errors: logged once with their chain, retried with back-off for this run alone.
#[expect(clippy::needless_pass_by_value, reason = "the signature is that of kube's Controller")]
fn error_policy(run: Arc<Guarded>, error: &Error, context: Arc<Context>) -> Action {
    let name = run.name_any();
    let namespace = run.namespace();
    context.metrics.error(error.category());
    match error {
        Error::Conflict => {
            context.ledger.give_up_the_claim(&run.uid().unwrap_or_default());
            Action::requeue(Duration::from_millis(20))
        }
        Error::Crowded => Action::requeue(context.back_off(&run.uid().unwrap_or_default()).min(CROWDED)),
        _ => {
            tracing::warn!(run = name, namespace, error = error.chain(), "the pass is tried again");
            Action::requeue(context.back_off(&run.uid().unwrap_or_default()))
        }
    }
}
