//! Which sandbox a run has: the pod that is made for it, or one of a pool that it was given.

use kube::ResourceExt as _;
use paddock_crds::ScriptRun;
use paddock_protocol::RunKey;

use super::RunRef;
use super::apply::{Done, valid};
use super::pod_facts::PodFacts;
use super::step::{SandboxSeen, Seen};
use crate::context::Context;
use crate::names::{is_waiting_name, pod_name, sandbox_namespace};
use crate::pods::Cached;
use crate::pool::waiting::Offer;

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
    let (name, _) = context.sandboxes.of_run(&uid)?;
    let Cached::Present(pod) = context.pods.get(&sandbox_namespace(&run.namespace()?), &name) else { return None };
    let facts = PodFacts::of(&pod);
    let transcript = context.sessions.look(&uid, &facts.uid).transcript;
    let is_of_use = !facts.deleting && facts.ended().is_none() && transcript.refused.is_none() && !transcript.rebooted;
    let boot = transcript.boot.clone().filter(|_| is_of_use)?;
    Some(Done::Given(Box::new(facts), boot))
}

/// The pod that a run has or would have.
pub(super) fn name_of_pod(run: &ScriptRun, context: &Context) -> String {
    let uid = run.uid().unwrap_or_default();
    let stored = run.status.as_ref().and_then(|status| status.pod.as_ref()).map(|pod| pod.name.clone());
    stored.or_else(|| context.sandboxes.of_run(&uid).map(|(name, _)| name)).unwrap_or_else(|| pod_name(&uid))
}

/// Opens what the runner of a run says.
pub(super) fn key_of(run: &ScriptRun, context: &Context) -> RunKey {
    let (uid, name) = (run.uid().unwrap_or_default(), name_of_pod(run, context));
    let key = &context.results.sealing_key;
    if is_waiting_name(&name) { key.of_sandbox(&name).bound_to(&uid) } else { key.of_run(&uid) }
}
