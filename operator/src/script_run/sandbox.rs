//! Which sandbox a run has: the pod that is made for it, or one of a pool that it was given.

use std::sync::Arc;

use kube::ResourceExt as _;
use paddock_crds::{ConditionType, ScriptRun};
use paddock_protocol::RunKey;

use super::RunRef;
use super::Watched;
use super::apply::{Done, valid};
use super::observe::{decide, fetched, size_kib};
use super::pod_facts::PodFacts;
use super::step::{SandboxSeen, Seen, StreamSeen};
use super::validate::{PoliciesSeen, ValidRun};
use crate::config::REQUEST_LIMIT;
use crate::context::Context;
use crate::error::Error;
use crate::names::{is_waiting_name, pod_name, sandbox_namespace};
use crate::pods::Cached;
use crate::pool::waiting::{HeldJob, Offer};

/// Takes a sandbox that waits and still answers.
pub(super) fn take(run: &ScriptRun, seen: &Seen, context: &Context) -> bool {
    let Some(valid) = valid(seen) else { return false };
    let reference = RunRef::new(&valid.name).within(&valid.namespace);
    let claim = |name: &str| {
        let key = context.results.sealing_key.of_sandbox(name);
        context.sessions.claim(name, &valid.uid, key, context.waker(run))
    };
    context.sandboxes.take(valid, &run.spec.script.runtime, reference, claim)
}

/// A sandbox that waits, for a run that has just got a slot: both are stored by one write.
pub(super) fn given(run: &ScriptRun, seen: &Seen, context: &Context) -> Option<Done> {
    if seen.offer != Offer::Free || seen.sandbox != SandboxSeen::Ready || !take(run, seen, context) {
        return None;
    }
    let uid = run.uid()?;
    let name = context.sandboxes.of_run(&uid)?;
    let Cached::Present(pod) = context.pods.get(&sandbox_namespace(&run.namespace()?), &name) else { return None };
    let facts = PodFacts::of(&pod);
    let transcript = context.sessions.look(&uid, &facts.uid).transcript;
    let is_of_use = !facts.deleting && facts.ended().is_none() && transcript.refused.is_none() && !transcript.rebooted;
    let boot = transcript.boot.clone().filter(|_| is_of_use)?;
    Some(Done::Given(Box::new(facts), boot))
}

/// Whether the sandbox that a run was given may not have got its job, by all that it has said, and nobody here has it: it was another leader that gave it.
pub(super) fn lacks_its_job(run: &ScriptRun, stream: &StreamSeen, context: &Context) -> bool {
    let has_answered = stream.transcript.accepted || stream.transcript.refused.is_some();
    stream.caught_up && !has_answered && may_lack_its_job(run, context)
}

fn may_lack_its_job(run: &ScriptRun, context: &Context) -> bool {
    let (Some(status), Some(uid)) = (&run.status, run.uid()) else { return false };
    let is_given = status.pod.as_ref().is_some_and(|pod| is_waiting_name(&pod.name));
    let may_start = status.is_true(&ConditionType::Started)
        && !status.is_true(&ConditionType::ResultReady)
        && !status.is_true(&ConditionType::Finished)
        && status.stopping.is_none()
        && run.metadata.deletion_timestamp.is_none();
    let is_its_own = || !status.pod.as_ref().is_some_and(|pod| context.sandboxes.is_anothers(&pod.name, &uid));
    is_given && may_start && context.sandboxes.job_of(&uid).is_none() && is_its_own()
}

/// Has the job sent again that was decided on when the run was given its sandbox. A runner takes one job, and the sandbox is that run's alone, so that
/// nothing is run twice. Where something has changed since, so that it would be another job, there is none. `false`: it cannot be said or sent yet. That
/// keeps nothing else from being done about a script that may run.
pub(super) async fn bring_again(watched: &Watched, policies: &mut PoliciesSeen, context: &Arc<Context>) -> bool {
    if !context.sandboxes.has_room_again() {
        return false;
    }
    let decided = tokio::time::timeout(REQUEST_LIMIT, Box::pin(decide_again(watched, policies, context))).await;
    match decided.unwrap_or(Err(Error::Late { what: "the job of a run" })) {
        Ok(decided) => {
            if let Some(decided) = decided.filter(|decided| is_the_same(&watched.run, decided)) {
                context.sandboxes.bring_again(&decided.uid, HeldJob::of(&decided));
            }
            true
        }
        Err(error) => {
            tracing::debug!(error = error.chain(), "the job of a run is decided on again later");
            false
        }
    }
}

async fn decide_again(watched: &Watched, policies: &mut PoliciesSeen, context: &Arc<Context>) -> Result<Option<Box<ValidRun>>, Error> {
    let namespace = watched.run.namespace().unwrap_or_default();
    let _room = match size_kib(watched) {
        0 => None,
        kib => Some(context.large.take(&namespace, kib).await?),
    };
    let Some(whole) = fetched(watched.clone(), context).await? else { return Ok(None) };
    Ok(decide(&whole, policies, context, context.now()).await?.ok())
}

fn is_the_same(run: &ScriptRun, decided: &ValidRun) -> bool {
    run.status.as_ref().is_some_and(|status| status.job_digest.as_ref() == Some(&decided.digest))
}

/// The pod that a run has or would have.
pub(super) fn name_of_pod(run: &ScriptRun, context: &Context) -> String {
    let uid = run.uid().unwrap_or_default();
    let stored = run.status.as_ref().and_then(|status| status.pod.as_ref()).map(|pod| pod.name.clone());
    stored.or_else(|| context.sandboxes.of_run(&uid)).unwrap_or_else(|| pod_name(&uid))
}

/// Opens what the runner of a run says.
pub(super) fn key_of(run: &ScriptRun, context: &Context) -> RunKey {
    let (uid, name) = (run.uid().unwrap_or_default(), name_of_pod(run, context));
    let key = &context.results.sealing_key;
    if is_waiting_name(&name) { key.of_sandbox(&name).bound_to(&uid) } else { key.of_run(&uid) }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
    use paddock_crds::{Reason, Stopping};

    use super::*;
    use crate::fake_api::context;
    use crate::script_run::fixtures::{a_stream, started, valid};

    /// As another leader has stored it that was gone before the sandbox had said anything.
    fn given_by_another() -> ScriptRun {
        let mut run = started(1);
        let status = run.status.as_mut().unwrap();
        status.pod.as_mut().unwrap().name = "sp-1".into();
        status.job_digest = Some(valid(&started(1)).digest);
        run
    }

    #[test]
    fn a_job_is_sent_again_that_was_decided_on_and_no_other() {
        let run = given_by_another();
        let decided = valid(&run);
        assert!(is_the_same(&run, &decided));
        assert!(!is_the_same(&run, &ValidRun { digest: "of another script".into(), ..decided }));
    }

    #[tokio::test]
    async fn only_a_run_that_another_leader_gave_a_sandbox_and_that_may_start_lacks_its_job() {
        let (context, fake) = context(vec![], &[]);
        assert!(may_lack_its_job(&given_by_another(), &context) && !may_lack_its_job(&started(1), &context));
        let listening = |caught_up| StreamSeen { caught_up, ..a_stream(|_| {}) };
        assert!(lacks_its_job(&given_by_another(), &listening(true), &context));
        assert!(!lacks_its_job(&given_by_another(), &listening(false), &context), "it may have said that it has it");
        assert!(!lacks_its_job(&given_by_another(), &a_stream(|transcript| transcript.accepted = true), &context));
        context.sandboxes.bring_again(&given_by_another().uid().unwrap(), HeldJob::of(&valid(&given_by_another())));
        assert!(!may_lack_its_job(&given_by_another(), &context));
        context.sandboxes.let_go(&given_by_another().uid().unwrap());
        let mut deleted = given_by_another();
        deleted.metadata.deletion_timestamp = Some(Time(context.now()));
        assert!(!may_lack_its_job(&deleted, &context));
        let mut stopping = given_by_another();
        stopping.status.as_mut().unwrap().stopping = Some(Stopping { reason: Reason::Cancelled, since: MicroTime(context.now()) });
        assert!(!may_lack_its_job(&stopping, &context));
        let mut over = given_by_another();
        for condition in &mut over.status.as_mut().unwrap().conditions {
            if condition.type_ == ConditionType::Started {
                condition.type_ = ConditionType::ResultReady;
            }
        }
        assert!(!may_lack_its_job(&over, &context));
        fake.finished().await;
    }
}
