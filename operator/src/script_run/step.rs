//! What to do next. Pure: the stored run, what was seen, the settings and the time in; one step out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{Span, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use paddock_crds::{ConditionStatus, ConditionType, Phase, Reason, ScriptRun, ScriptRunStatus};
use paddock_policy::{Approving, Containment, OutputGrant, Refusal};
use paddock_protocol::{Refused, RefusedReason, Transcript};

use super::outcome::{Outcome, before_the_start, outcome, outcome_of_refusal};
use super::pod_facts::{Ended, PodFacts, PodLife, PodSeen, WaitsFor};
use super::validate::{self, ValidRun};
use crate::audit::LogSeen;
use crate::config::Settings;
use crate::egress::Bound;
use crate::egress::used::Used;
use crate::names::{FINALIZER, GIT_ANNOTATIONS, GIT_LABELS, sandbox_namespace};
use crate::pool::waiting::Offer;

/// Everything that a pass has read.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// What may be run: looked at only until the script has started.
    pub(crate) decision: Option<Result<Box<ValidRun>, Box<validate::Refused>>>,
    /// The sandbox namespace.
    pub(crate) sandbox: SandboxSeen,
    /// The pod.
    pub(crate) pod: PodSeen,
    /// What the runner has said.
    pub(crate) stream: StreamSeen,
    /// What the policies keep from running.
    pub(crate) containment: Containment,
    /// Where the approvals stand: as long as the run has not started.
    pub(crate) approving: Approving,
    /// It holds a slot and has no pod, and more hold slots than may.
    pub(crate) is_one_too_many: bool,
    /// An approval by which the run was admitted is gone, and that ends it.
    pub(crate) has_lost_approval: bool,
    /// What becomes of what the script puts out, or why that cannot be told.
    pub(crate) output: Result<OutputGrant, String>,
    /// What it has used of the network, if it has asked for anything.
    pub(crate) network: Option<Used>,
    /// More of its connections were refused than the policies put up with.
    pub(crate) is_refused_too_often: bool,
    /// What there is for it in pools: looked at only until the script has started.
    pub(crate) offer: Offer,
    /// It was given a sandbox by another leader, and its job cannot be sent there yet.
    pub(crate) is_job_to_come: bool,
    /// How far the egress gateway knows what the run is granted.
    pub(crate) bound: Bound,
    /// Whether the audit log takes what is told.
    pub(crate) log: LogSeen,
    /// Since when this replica may write without a gap.
    pub(crate) leading_since: Timestamp,
}

/// Why a run gives its slot back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Back {
    /// A quota has no room for its pod, and others may have.
    NoRoom,
    /// More hold slots than may.
    TooMany,
}

/// State of the sandbox namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SandboxSeen {
    /// It is there with everything in it.
    Ready,
    /// It has to be made or completed.
    Incomplete,
    /// Its predecessor is being removed.
    Terminating,
    /// A namespace of that name exists and is not the operator's.
    Foreign,
}

/// What is known of the runner.
#[derive(Clone, Debug, Default)]
pub(crate) struct StreamSeen {
    /// Everything that it has said.
    pub(crate) transcript: Arc<Transcript>,
    /// Somebody listens.
    pub(crate) listening: bool,
    /// The log was read after the pod had ended: nothing more will come.
    pub(crate) complete: bool,
    /// The log was read since somebody here listens.
    pub(crate) caught_up: bool,
    /// A start or stop message was sent by this process.
    pub(crate) start_sent: bool,
    /// The hardest stop that was sent by this process.
    pub(crate) stop_sent: Option<Stop>,
}

/// How a script is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stop {
    /// TERM, the grace period, KILL.
    Gracefully,
    /// KILL.
    AtOnce,
}

impl Stop {
    /// What a policy ends gets no time to do more of it.
    fn of(reason: &Reason) -> Self {
        if matches!(reason, Reason::Denied | Reason::Suspended | Reason::ApprovalRevoked | Reason::TooManyRefusedConnections) {
            Self::AtOnce
        } else {
            Self::Gracefully
        }
    }
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// Nothing is to be done until somebody changes the object: it is over, or a newer version wrote it.
    Leave,
    /// Nothing to do until something happens, or for so long.
    Rest { wake: Option<Duration> },
    /// Put the finalizer on.
    AddFinalizer,
    /// Store that the run is refused.
    Refuse(Refusal),
    /// Store what the run waits for.
    Hold(Reason, &'static str),
    /// Store that the run waits for approvals, and for which.
    AwaitApproval { until: Timestamp },
    /// Make the sandbox namespace complete.
    PrepareSandbox,
    /// Take a slot and store it.
    Admit,
    /// Take a sandbox that waits, or create a pod if it is gone by then.
    TakeSandbox,
    /// Create ConfigMap and pod.
    CreatePod,
    /// Give the slot back.
    StandBack(Back),
    /// Open the stream to the runner.
    Listen,
    /// Store that the script is about to start, in this very runner.
    RecordStart { boot: String },
    /// Send the start message.
    SendStart { boot: String, digest: String },
    /// Store why the run is being ended.
    RecordStop(Reason),
    /// End the script: stop message, then the deadline of the pod.
    StopPod(Stop),
    /// Read the log to its end.
    ReadLog,
    /// Store the result.
    RecordResult,
    /// Store how the run ended.
    Finish(Outcome),
    /// Remove the pod.
    RemovePod,
    /// Take the finalizer off, if it is on, and give up what is in memory for the run.
    Release,
    /// Delete the run: its time to live is over.
    DeleteRun,
}

const REST: Step = Step::Rest { wake: None };

/// Decides.
pub(crate) fn next_step(run: &ScriptRun, seen: &Seen, settings: &Settings, now: Timestamp) -> Step {
    let status = run.status.clone().unwrap_or_default();
    if written_by_a_newer_version(&status) {
        // Only a deletion means the same in every version.
        return if run.metadata.deletion_timestamp.is_some() { when_deleted(seen) } else { Step::Leave };
    }
    if status.is_true(&ConditionType::Finished) {
        return after_the_end(run, &status, seen, now);
    }
    if run.metadata.deletion_timestamp.is_some() {
        return when_deleted(seen);
    }
    if status.is_true(&ConditionType::Started) {
        return while_running(run, &status, seen, now);
    }
    if let Some(stopping) = &status.stopping {
        return stop_before_the_start(&status, &stopping.reason, seen);
    }
    if status.is_true(&ConditionType::Admitted) {
        return while_starting(run, &status, seen, settings, now);
    }
    before_admission(run, seen, now)
}

fn written_by_a_newer_version(status: &ScriptRunStatus) -> bool {
    matches!(status.phase, Some(Phase::Unknown(_)))
        || matches!(status.stopping.as_ref().map(|stopping| &stopping.reason), Some(Reason::Unknown(_)))
        || status.conditions.iter().any(|condition| matches!(condition.type_, ConditionType::Unknown(_)))
}

fn has_finalizer(run: &ScriptRun) -> bool {
    run.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
}

/// Finished: only the pod, the finalizer and the time to live are left.
fn after_the_end(run: &ScriptRun, status: &ScriptRunStatus, seen: &Seen, now: Timestamp) -> Step {
    match &seen.pod {
        PodSeen::Present(pod) if !pod.deleting => return Step::RemovePod,
        PodSeen::Present(_) => {
            return Step::Rest { wake: Some(Duration::from_secs(5)) };
        }
        PodSeen::Absent => {}
    }
    if run.metadata.deletion_timestamp.is_some() {
        return if has_finalizer(run) { Step::Release } else { REST };
    }
    // It never had a pod. Its object may be so large that not even the mark of a deletion has room in it beside a finalizer.
    if matches!(status.phase, Some(Phase::Refused | Phase::Denied | Phase::Expired)) && has_finalizer(run) {
        return Step::Release;
    }
    let Some(ttl) = run.spec.ttl_seconds_after_finished.filter(|_| !is_held_by_others(run)) else { return Step::Leave };
    let finished = status.clocks.as_ref().and_then(|clocks| clocks.finished.clone()).map_or(now, |time| time.0);
    match remaining(&finished, ttl, now) {
        Some(wait) => Step::Rest { wake: Some(wait) },
        None => Step::DeleteRun,
    }
}

/// Whoever holds the run in Git would create it anew as soon as it was deleted, and so have it run once more.
fn is_held_by_others(run: &ScriptRun) -> bool {
    let has = |marks: &[&str], names: Option<&BTreeMap<String, String>>| {
        names.is_some_and(|names| marks.iter().any(|mark| names.contains_key(*mark)))
    };
    has(&GIT_LABELS, run.metadata.labels.as_ref()) || has(&GIT_ANNOTATIONS, run.metadata.annotations.as_ref())
}

/// Deleted before its end: nobody will read a result, but the pod must be gone before its slot is.
fn when_deleted(seen: &Seen) -> Step {
    match &seen.pod {
        // Also where somebody else took the finalizer off, and the object stays for another's: its slot and its stream are given up.
        PodSeen::Absent => Step::Release,
        PodSeen::Present(pod) if !pod.deleting => Step::RemovePod,
        PodSeen::Present(_) => Step::Rest { wake: Some(Duration::from_secs(5)) },
    }
}

fn before_admission(run: &ScriptRun, seen: &Seen, now: Timestamp) -> Step {
    if run.spec.cancel == Some(true) {
        return Step::Finish(Outcome::plain(Phase::Cancelled, Reason::Cancelled, "the run was cancelled before it started"));
    }
    match &seen.decision {
        None => {
            return Step::Rest { wake: Some(Duration::from_secs(1)) };
        }
        Some(Err(refused)) => match policy_may_still_come(run, &refused.refusal.reason, now) {
            Some(wait) => return Step::Rest { wake: Some(wait) },
            None => return Step::Refuse(refused.refusal.clone()),
        },
        Some(Ok(_)) => {}
    }
    if let Some(step) = before_the_approval(run, seen, now) {
        return step;
    }
    if let Some(wait) = stands_back(run, now) {
        return Step::Rest { wake: Some(wait) };
    }
    if !has_finalizer(run) {
        return Step::AddFinalizer;
    }
    match seen.sandbox {
        SandboxSeen::Ready => Step::Admit,
        SandboxSeen::Incomplete => Step::PrepareSandbox,
        SandboxSeen::Terminating => {
            Step::Hold(Reason::SandboxNamespaceNotReady, "the sandbox namespace of an earlier tenant is being removed")
        }
        SandboxSeen::Foreign => Step::Refuse(Refusal {
            reason: Reason::SandboxNamespaceForeign,
            message: format!(
                "the namespace {} exists and is not the sandbox namespace of this namespace",
                sandbox_namespace(run.metadata.namespace.as_deref().unwrap_or_default())
            ),
        }),
    }
}

/// A quota that has no room for so long is full, and does not lag behind what has just ended.
const QUOTA_LAG_SECONDS: i64 = 5;
/// Every time that a run has its slot, it tries for so long at least.
const QUOTA_TRY_SECONDS: i64 = 1;
/// Longest pause between two tries.
const LONGEST_PAUSE_SECONDS: i64 = 30;

/// Whether a run that was admitted and has no pod gives its slot back, since a quota has no room for it.
fn is_to_stand_back(status: &ScriptRunStatus, admitted: Timestamp, now: Timestamp) -> bool {
    let refused = status.condition(&ConditionType::Started).filter(|started| started.reason == Reason::QuotaExceeded);
    refused.is_some_and(|refused| {
        remaining(&refused.last_transition_time.0, QUOTA_LAG_SECONDS, now).is_none()
            && remaining(&admitted, QUOTA_TRY_SECONDS, now).is_none()
    })
}

/// How long a run whose slot was given back waits before it asks for another: half as long as it has waited for the quota, up to a bound.
fn stands_back(run: &ScriptRun, now: Timestamp) -> Option<Duration> {
    let status = run.status.as_ref()?;
    let back = status.condition(&ConditionType::Admitted).filter(|admitted| admitted.reason == Reason::QuotaExceeded)?;
    let refused = status.condition(&ConditionType::Started)?.last_transition_time.0;
    let since = back.last_transition_time.0;
    let pause = (since.as_second().saturating_sub(refused.as_second()) / 2).clamp(1, LONGEST_PAUSE_SECONDS);
    remaining(&since, pause, now)
}

/// `None` once enough people have approved, or nobody has to.
fn before_the_approval(run: &ScriptRun, seen: &Seen, now: Timestamp) -> Option<Step> {
    let end = |phase, reason, message: String| Some(Step::Finish(Outcome::plain(phase, reason, message)));
    match &seen.approving {
        Approving::NotNeeded | Approving::Approved(_) => None,
        Approving::Denied { by, .. } => end(Phase::Denied, Reason::ApprovalDenied, format!("{by} has decided that it may not run")),
        Approving::Waiting { wait_seconds, .. } => {
            let until = waits_until(run, *wait_seconds, now);
            if now >= until {
                let message = "not enough people have approved the run within the time that its policies give them";
                return end(Phase::Expired, Reason::ApprovalExpired, message.into());
            }
            Some(Step::AwaitApproval { until })
        }
    }
}

/// Counted from when the run began to wait, whatever became of the policies since.
fn waits_until(run: &ScriptRun, seconds: i64, now: Timestamp) -> Timestamp {
    let condition = run.status.as_ref().and_then(|status| status.condition(&ConditionType::Approved));
    let since = condition.filter(|condition| condition.status == ConditionStatus::False).map(|condition| condition.last_transition_time.0);
    let since = since.unwrap_or_else(|| Timestamp::from_second(now.as_second()).unwrap_or(now));
    since.checked_add(Span::new().seconds(seconds)).unwrap_or(now)
}

/// A policy, or the label by which one selects the namespace, that was made just before the run may come into view just after it.
const POLICY_LAG_SECONDS: i64 = 2;

fn policy_may_still_come(run: &ScriptRun, reason: &Reason, now: Timestamp) -> Option<Duration> {
    let created = run.metadata.creation_timestamp.as_ref()?.0;
    let may_come = matches!(reason, Reason::PolicyNotFound | Reason::PolicyGone | Reason::NoClusterPolicy) && created <= now;
    may_come.then(|| remaining(&created, POLICY_LAG_SECONDS, now)).flatten()
}

/// Whether the policies admit nothing more.
pub(crate) fn is_suspended(containment: &Containment) -> bool {
    matches!(containment, Containment::Queue { .. } | Containment::Kill { .. })
}

/// Why the policies end a run that was admitted.
fn ended_by(containment: &Containment) -> Option<Reason> {
    match containment {
        Containment::Denied { .. } => Some(Reason::Denied),
        Containment::Kill { .. } => Some(Reason::Suspended),
        Containment::Queue { .. } | Containment::None => None,
    }
}

/// Admitted, and the script has not started: nothing that goes wrong here can have run it.
fn while_starting(run: &ScriptRun, status: &ScriptRunStatus, seen: &Seen, settings: &Settings, now: Timestamp) -> Step {
    if let Some(reason) = ended_by(&seen.containment) {
        return Step::RecordStop(reason);
    }
    if run.spec.cancel == Some(true) {
        return Step::RecordStop(Reason::Cancelled);
    }
    let admitted = status.clocks.as_ref().and_then(|clocks| clocks.admitted.clone()).map_or(now, |time| time.0);
    if seen.pod == PodSeen::Absent && is_to_stand_back(status, admitted, now) {
        return Step::StandBack(Back::NoRoom);
    }
    // The time in which nobody led is not the run's: nobody could have started it.
    let since = admitted.max(seen.leading_since);
    let Some(budget_left) = remaining(&since, i64::from(settings.start_budget_seconds), now) else {
        return Step::RecordStop(Reason::StartTimedOut);
    };
    let valid = match &seen.decision {
        Some(Ok(_)) if !matches!(seen.approving, Approving::NotNeeded | Approving::Approved(_)) => {
            return Step::RecordStop(Reason::ApprovalRevoked);
        }
        Some(Ok(valid)) => valid,
        // A policy that changed reaches the run as long as it has not started.
        Some(Err(refused)) => {
            return if seen.pod == PodSeen::Absent { Step::Refuse(refused.refusal.clone()) } else { remove(&seen.pod) };
        }
        None => {
            return Step::Rest { wake: Some(Duration::from_secs(1)) };
        }
    };
    let is_admitted_as_it_is = status.job_digest.as_ref() == Some(&valid.digest);
    match &seen.pod {
        PodSeen::Absent if seen.is_one_too_many => Step::StandBack(Back::TooMany),
        PodSeen::Absent if !is_admitted_as_it_is => Step::Admit,
        PodSeen::Absent if seen.sandbox != SandboxSeen::Ready => Step::PrepareSandbox,
        PodSeen::Absent if seen.offer == Offer::Free => Step::TakeSandbox,
        PodSeen::Absent => Step::CreatePod,
        PodSeen::Present(pod) if pod.deleting => Step::Rest { wake: Some(budget_left) },
        PodSeen::Present(pod) if pod.job_digest.as_ref() != status.job_digest.as_ref() || !is_admitted_as_it_is => remove(&seen.pod),
        PodSeen::Present(pod) => start(pod, &seen.stream, seen.bound, budget_left),
    }
}

fn remove(pod: &PodSeen) -> Step {
    match pod {
        PodSeen::Present(pod) if !pod.deleting => Step::RemovePod,
        _ => Step::Rest { wake: Some(Duration::from_secs(5)) },
    }
}

/// A gateway that does not know a run yet is asked about it again after this long.
const BINDING: Duration = Duration::from_millis(20);

fn start(pod: &PodFacts, stream: &StreamSeen, bound: Bound, budget_left: Duration) -> Step {
    if pod.mutated.is_some() {
        return Step::RecordStop(Reason::PodMutated);
    }
    match &stream.transcript.refused {
        // It waited while nobody led. No start message was ever sent, so another pod may have the script.
        Some(Refused { reason: RefusedReason::NotStarted, .. }) => return Step::RemovePod,
        Some(Refused { reason, .. }) => return Step::RecordStop(outcome_of_refusal(*reason).reason),
        None => {}
    }
    match &pod.life {
        PodLife::Ended(_) if !stream.complete => Step::ReadLog,
        PodLife::Ended(ended) if is_not_the_pods_own(ended) => Step::RemovePod,
        PodLife::Ended(_) => Step::RecordStop(Reason::PodRejected),
        PodLife::Pending(WaitsFor::Named { reason, .. }) if is_hopeless(reason) => Step::RecordStop(Reason::ImageUnavailable),
        _ if !stream.listening => Step::Listen,
        _ => match &stream.transcript.boot {
            Some(_) if bound == Bound::NotYet => Step::Rest { wake: Some(BINDING.min(budget_left)) },
            Some(boot) => Step::RecordStart { boot: boot.clone() },
            None => Step::Rest { wake: Some(budget_left) },
        },
    }
}

/// Whether a pod that never had the script ended by what happened around it: its deadline, its node, its runtime. Another may fare better.
fn is_not_the_pods_own(ended: &Ended) -> bool {
    let reason = ended.container_reason.as_deref();
    ended.disrupted || ended.pod_reason.as_deref() == Some("DeadlineExceeded") || reason == Some("ContainerStatusUnknown")
}

/// Reasons of a waiting container that no waiting mends. `CreateContainerConfigError`, `CreateContainerError` and `RunContainerError` are not
/// among them: a container runtime that restarts makes them too, and the kubelet tries again.
fn is_hopeless(reason: &str) -> bool {
    matches!(reason, "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull")
}

/// Stopped before the start: the pod holds no evidence, so it is removed, and the end is stored when it is gone.
fn stop_before_the_start(status: &ScriptRunStatus, reason: &Reason, seen: &Seen) -> Step {
    match &seen.pod {
        PodSeen::Absent => Step::Finish(before_the_start(status, reason)),
        PodSeen::Present(pod) if !pod.deleting => Step::RemovePod,
        PodSeen::Present(_) => Step::Rest { wake: Some(Duration::from_secs(5)) },
    }
}

/// Started is stored: from here on the script may have run, and no other pod is ever used.
fn while_running(run: &ScriptRun, status: &ScriptRunStatus, seen: &Seen, now: Timestamp) -> Step {
    let pod = match &seen.pod {
        PodSeen::Present(pod) if is_the_pod_of(status, pod) => pod,
        PodSeen::Absent | PodSeen::Present(_) => return gone(status, &seen.stream.transcript),
    };
    let has_result = status.is_true(&ConditionType::ResultReady);
    if !has_result && seen.stream.transcript.report.is_some() {
        return Step::RecordResult;
    }
    if pod.ended().is_some() {
        return if seen.stream.complete { Step::Finish(outcome(status, Some(pod), &seen.stream.transcript)) } else { Step::ReadLog };
    }
    if let Some(stopping) = &status.stopping {
        let stop = Stop::of(&stopping.reason);
        let revoked = seen.has_lost_approval.then_some(Reason::ApprovalRevoked);
        return match ended_by(&seen.containment).or(revoked) {
            Some(reason) if stop < Stop::of(&reason) => Step::RecordStop(reason),
            _ if seen.stream.stop_sent < Some(stop) => Step::StopPod(stop),
            _ => Step::Rest { wake: Some(Duration::from_secs(2)) },
        };
    }
    if has_result {
        // The kubelet started the container once more after the script had ended: that runner waits in vain, and holds the slot.
        let waits_in_vain = is_another_runner(status, &seen.stream.transcript) && seen.stream.stop_sent.is_none();
        return if waits_in_vain { Step::StopPod(Stop::Gracefully) } else { Step::Rest { wake: Some(Duration::from_secs(5)) } };
    }
    // The kubelet started the container a second time: this runner waits in vain, and the one that had the script is gone.
    if is_another_runner(status, &seen.stream.transcript) {
        return Step::RecordStop(Reason::Lost);
    }
    if let Some(reason) = ended_by(&seen.containment) {
        return Step::RecordStop(reason);
    }
    if seen.has_lost_approval {
        return Step::RecordStop(Reason::ApprovalRevoked);
    }
    if seen.is_refused_too_often {
        return Step::RecordStop(Reason::TooManyRefusedConnections);
    }
    if run.spec.cancel == Some(true) {
        return Step::RecordStop(Reason::Cancelled);
    }
    // What waited for a leader has not had its time.
    let waited_until = (pod.has_waited && !seen.stream.transcript.accepted).then_some(seen.leading_since);
    let Some(left) = time_left(status, run, waited_until, now) else {
        return Step::RecordStop(Reason::TimedOut);
    };
    if !seen.stream.listening {
        return Step::Listen;
    }
    let is_to_be_sent = !seen.stream.transcript.accepted && !seen.stream.start_sent;
    // Where another leader gave it a sandbox that waited, and its job would be another one by now, a start without one tells whether it has got there.
    let lacks_its_job = pod.has_waited && pod.files_digest.is_none();
    if is_to_be_sent && lacks_its_job && (seen.is_job_to_come || !seen.stream.caught_up) {
        return Step::Rest { wake: Some(left.min(JOB_PATIENCE)) };
    }
    let files_digest = pod.files_digest.clone().or_else(|| lacks_its_job.then(String::new));
    match (status.pod.as_ref().and_then(|pod| pod.boot.clone()), files_digest) {
        (Some(boot), Some(digest)) if is_to_be_sent => Step::SendStart { boot, digest },
        _ => Step::Rest { wake: Some(left) },
    }
}

/// A job that could not be sent once more is tried again after this long.
const JOB_PATIENCE: Duration = Duration::from_secs(1);

fn is_the_pod_of(status: &ScriptRunStatus, pod: &PodFacts) -> bool {
    status.pod.as_ref().is_some_and(|stored| stored.uid == pod.uid)
}

fn is_another_runner(status: &ScriptRunStatus, transcript: &Transcript) -> bool {
    let started = status.pod.as_ref().and_then(|pod| pod.boot.as_ref());
    transcript.rebooted || transcript.boot.as_ref().is_some_and(|boot| Some(boot) != started)
}

/// The pod is gone: whatever the stream brought before that is the last there will be.
fn gone(status: &ScriptRunStatus, transcript: &Transcript) -> Step {
    if !status.is_true(&ConditionType::ResultReady) && transcript.report.is_some() {
        return Step::RecordResult;
    }
    Step::Finish(outcome(status, None, transcript))
}

/// The runner keeps the time-out itself, from when the interpreter began. The operator's own clock runs from when the start was stored,
/// and is for runners that a script has stopped; so it leaves time for the start message and for an interpreter on a busy node.
const TIMEOUT_SLACK_SECONDS: i64 = 5;

fn time_left(status: &ScriptRunStatus, run: &ScriptRun, waited_until: Option<Timestamp>, now: Timestamp) -> Option<Duration> {
    let started = status.clocks.as_ref().and_then(|clocks| clocks.started.clone()).map_or(now, |MicroTime(time)| time);
    let started = waited_until.map_or(started, |until| started.max(until));
    let timeout = status.timeout_seconds.or(run.spec.timeout_seconds).unwrap_or(0);
    remaining(&started, timeout + TIMEOUT_SLACK_SECONDS, now)
}

/// Time from `now` until `seconds` after `from`; `None` when it is over.
fn remaining(from: &Timestamp, seconds: i64, now: Timestamp) -> Option<Duration> {
    let passed = now.as_millisecond() - from.as_millisecond();
    let left = seconds.saturating_mul(1000) - passed;
    u64::try_from(left).ok().filter(|left| *left > 0).map(Duration::from_millis)
}

#[cfg(test)]
mod tests;
