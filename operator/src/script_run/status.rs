//! The status after a step. Pure: one function for each thing that a step can tell.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::ResourceExt as _;
use paddock_audit::RecordType;
use paddock_crds::script_run::{SHOWN_GROUP_LENGTH, SHOWN_GROUPS};
use paddock_crds::{
    ApprovalStatus, AuditEvent, Clocks, ColdReason, Condition, ConditionStatus, ConditionType, Decision, Phase, PodRef, Preflight, Reason,
    Requester, RunPath, RunResult, ScriptRun, ScriptRunStatus, Stopping, Unclear, Usage, Verdict,
};
use paddock_policy::{Approving, EVERYBODY, Excluded, Refusal};

use super::apply::Done;
use super::outcome::Outcome;
use super::pod_facts::{PodFacts, PodLife, PodSeen, WaitsFor};
use super::queue::{Admission, Full};
use super::result::{network_usage, signed};
use super::step::{Back, Seen, Step, is_suspended};
use super::text::{cut, visible};
use super::validate::{ValidRun, requester};
use crate::audit::LogSeen;
use crate::names::sandbox_namespace;
use crate::pool::waiting::Offer;

/// Events kept in the status.
const AUDIT_EVENTS: usize = 16;
/// Decisions that the schema has room for.
const MOST_DECISIONS: usize = 128;
/// Why a run that was started has no result: the runner told no end of the script.
const NOT_REPORTED: &str = "the end of the script was not reported; what it printed until then may be in status.result";

/// The status to write, or `None` if the step tells nothing that the stored one does not.
pub(crate) fn compute_status(run: &ScriptRun, seen: &Seen, step: &Step, done: &Done, now: Timestamp) -> Option<ScriptRunStatus> {
    let before = run.status.clone().unwrap_or_default();
    let mut report = Report { status: before.clone(), generation: run.metadata.generation, now };
    let valid: Option<&ValidRun> = seen.decision.as_ref().and_then(|decision| decision.as_ref().ok()).map(AsRef::as_ref);
    match (step, done) {
        (Step::Refuse(refusal), _) => report.refused(run, refusal, seen),
        (Step::Hold(reason, message), _) => {
            report.approved(&seen.approving, valid);
            report.waits(reason, message);
        }
        (Step::AwaitApproval { .. }, Done::Queued(Admission::Refuse(_))) => {
            let message = "as many runs wait for approvals in this namespace as may wait".to_owned();
            report.refused(run, &Refusal { reason: Reason::QueueFull, message }, seen);
        }
        (Step::AwaitApproval { until }, _) => report.awaits_approval(*until, valid?, &seen.approving),
        (Step::Admit, Done::Queued(admission)) => {
            report.approved(&seen.approving, valid);
            report.queued(admission, valid?, seen);
        }
        (Step::Admit, Done::Given(pod, boot)) => {
            report.approved(&seen.approving, valid);
            report.queued(&Admission::Admit, valid?, seen);
            report.started(run, pod, seen, boot, valid?);
        }
        (Step::CreatePod | Step::TakeSandbox | Step::Listen, Done::NotCreated(reason, detail)) => report.not_created(reason, detail),
        (Step::CreatePod | Step::TakeSandbox, Done::Yes) => report.has_room(),
        (Step::StandBack(why), _) => report.stands_back(*why),
        (Step::RecordStart { boot }, _) => match &seen.pod {
            PodSeen::Present(pod) => report.started(run, pod, seen, boot, valid?),
            PodSeen::Absent => return None,
        },
        (Step::RecordStop(reason), _) => report.stopped(reason, seen),
        (Step::RecordResult, Done::Told(result)) => report.result(seen, result),
        (Step::Finish(outcome), done) => report.finished(outcome, seen, done),
        _ => return None,
    }
    if let Some(used) = &seen.network {
        let usage = network_usage(used, &seen.output);
        // A leader that has just begun has counted less than the one before it has stored.
        if report.status.network.as_ref().is_none_or(|stored| stored.connections <= usage.connections) {
            report.status.network = Some(usage);
        }
    }
    let mut status = report.status;
    status.observed_generation = run.metadata.generation;
    status.conditions.sort_by(|one, other| one.type_.cmp(&other.type_));
    let excess = status.audit.len().saturating_sub(AUDIT_EVENTS);
    status.audit.drain(..excess);
    (status != before).then_some(status)
}

/// Whether the script was started, and no end of it was told.
pub(crate) fn is_cut_short(run: &ScriptRun) -> bool {
    let is_true = |type_: &ConditionType| run.status.as_ref().is_some_and(|status| status.is_true(type_));
    is_true(&ConditionType::Started) && !is_true(&ConditionType::ResultReady)
}

/// The status of a run whose script runs and whose result nobody will read.
pub(crate) fn lost(run: &ScriptRun, message: &str, now: Timestamp) -> ScriptRunStatus {
    let mut report = Report { status: run.status.clone().unwrap_or_default(), generation: run.metadata.generation, now };
    report.end(&Outcome::plain(Phase::Lost, Reason::Lost, message));
    report.status.conditions.sort_by(|one, other| one.type_.cmp(&other.type_));
    report.status
}

/// The same without what the script produced: for an API server that refuses the whole.
pub(crate) fn smaller(status: &ScriptRunStatus) -> ScriptRunStatus {
    let mut status = status.clone();
    if let Some(result) = &mut status.result {
        result.output = None;
        result.output_text = None;
        result.output_error = Some("the result could not be stored".into());
        for stream in [&mut result.stdout, &mut result.stderr].into_iter().flatten() {
            stream.truncated_bytes = Some(stream.bytes);
            stream.text.clear();
            stream.tail = None;
        }
    }
    status
}

/// Only what programs need: conditions, phase, clocks and the pod.
pub(crate) fn least(status: &ScriptRunStatus) -> ScriptRunStatus {
    let mut conditions = status.conditions.clone();
    for condition in &mut conditions {
        condition.message.clear();
    }
    ScriptRunStatus {
        observed_generation: status.observed_generation,
        phase: status.phase.clone(),
        conditions,
        pod: status.pod.clone(),
        path: status.path.clone(),
        clocks: status.clocks.clone(),
        stopping: status.stopping.clone(),
        approval: status.approval.clone(),
        script_hash: status.script_hash.clone(),
        image: status.image.clone(),
        // Deny-lists go by what a script imports: of this one it is not known any more.
        preflight: status.preflight.as_ref().map(|text| Preflight::unclear(text.language, Unclear::TooMuch, "there was no room for it")),
        job_digest: status.job_digest.clone(),
        timeout_seconds: status.timeout_seconds,
        ..ScriptRunStatus::default()
    }
}

/// As many decisions as the schema takes. Where there are more, rules that hold give way.
fn bounded(decisions: &[Decision]) -> Vec<Decision> {
    let mut bounded = decisions.to_vec();
    if bounded.len() > MOST_DECISIONS {
        bounded.sort_by_key(|decision| (decision.permission.starts_with("rule:"), decision.verdict == Verdict::Granted));
        bounded.truncate(MOST_DECISIONS);
    }
    bounded
}

struct Report {
    status: ScriptRunStatus,
    generation: Option<i64>,
    now: Timestamp,
}

impl Report {
    fn clock(&self) -> MicroTime {
        // MicroTime keeps microseconds: what is stored must equal what is read back.
        MicroTime(Timestamp::from_microsecond(self.now.as_microsecond()).unwrap_or(self.now))
    }

    fn clocks(&mut self) -> &mut Clocks {
        self.status.clocks.get_or_insert_default()
    }

    /// Keeps the transition time while the value holds.
    fn condition(&mut self, type_: ConditionType, holds: bool, reason: Reason, message: &str) {
        let status = if holds { ConditionStatus::True } else { ConditionStatus::False };
        let old = self.status.conditions.iter().position(|condition| condition.type_ == type_);
        let second = Timestamp::from_second(self.now.as_second()).unwrap_or(self.now);
        let last_transition_time = match old {
            Some(index) if self.status.conditions[index].status == status => self.status.conditions[index].last_transition_time.clone(),
            _ => Time(second),
        };
        let message = cut(message, 1024).to_owned();
        let condition = Condition { type_, status, reason, message, observed_generation: self.generation, last_transition_time };
        match old {
            Some(index) => self.status.conditions[index] = condition,
            None => self.status.conditions.push(condition),
        }
    }

    fn drop_condition(&mut self, type_: &ConditionType) {
        self.status.conditions.retain(|condition| condition.type_ != *type_);
    }

    fn tell(&mut self, phase: Phase, message: &str) {
        self.status.phase = Some(phase);
        self.status.message = Some(cut(message, 1024).to_owned());
    }

    fn audit(&mut self, event: RecordType, reason: Option<Reason>) {
        // Whoever tells them goes by their order, whatever became of the clock.
        let after_the_last = self.status.audit.last().and_then(|last| Timestamp::from_microsecond(last.time.0.as_microsecond() + 1).ok());
        let time = MicroTime(self.clock().0.max(after_the_last.unwrap_or(Timestamp::MIN)));
        self.status.audit.push(AuditEvent { time, type_: event.as_str().to_owned(), reason });
    }

    fn received(&mut self) {
        if self.status.clocks.as_ref().is_none_or(|clocks| clocks.received.is_none()) {
            let now = self.clock();
            self.clocks().received = Some(now);
            self.audit(RecordType::RunReceived, None);
        }
    }

    fn in_progress(&mut self, message: &str) {
        self.condition(ConditionType::Reconciling, true, Reason::InProgress, message);
    }

    fn accepted(&mut self, valid: &ValidRun) {
        self.received();
        self.status.policies.clone_from(&valid.policies);
        self.status.decisions = bounded(&valid.decisions);
        self.status.risk = Some(valid.risk.clone());
        self.status.preflight = valid.preflight.as_deref().cloned();
        self.status.requester = Some(shown(&valid.requester));
        self.status.script_hash = Some(valid.script_hash.clone());
        self.status.image = Some(valid.grant.runtime.image.clone());
        self.status.timeout_seconds = Some(i64::from(valid.grant.timeout_seconds));
        self.condition(ConditionType::Accepted, true, Reason::PolicyAllows, "the policies allow the run");
    }

    fn refused(&mut self, run: &ScriptRun, refusal: &Refusal, seen: &Seen) {
        self.received();
        self.status.requester = requester(run.annotations()).as_ref().map(shown);
        if let Some(Err(refused)) = &seen.decision {
            self.status.policies.clone_from(&refused.policies);
            self.status.decisions = bounded(&refused.decisions);
            self.status.risk.clone_from(&refused.risk);
            self.status.preflight = refused.preflight.as_deref().cloned();
            self.status.violations.clone_from(&refused.violations);
        }
        self.condition(ConditionType::Accepted, false, refusal.reason.clone(), &refusal.message);
        self.end(&Outcome::plain(Phase::Refused, Reason::Refused, refusal.message.clone()));
    }

    fn awaits_approval(&mut self, until: Timestamp, valid: &ValidRun, approving: &Approving) {
        let Approving::Waiting { status, .. } = approving else { return };
        self.accepted(valid);
        // It was its turn, and an approval has gone: it does not wait for a slot any more.
        self.drop_condition(&ConditionType::Admitted);
        let lacking = status.demanded.iter().find(|demanded| !demanded.is_answered());
        let mut message = lacking.map_or_else(
            || "the run waits for approvals".to_owned(),
            |demanded| format!("{} of {} approvals are there ({})", demanded.given.len(), demanded.count, demanded.rule),
        );
        if status.excluded.iter().any(|name| name == EVERYBODY) {
            message += "; nobody's count any more, since it is not known who else wrote a policy of the run meanwhile: create it anew";
        }
        let until = MicroTime(Timestamp::from_microsecond(until.as_microsecond()).unwrap_or(until));
        self.status.approval = Some(ApprovalStatus { expires_at: Some(until), ..status.clone() });
        self.condition(ConditionType::Approved, false, Reason::AwaitingApproval, &message);
        self.in_progress(&message);
        self.tell(Phase::AwaitingApproval, &message);
    }

    fn approved(&mut self, approving: &Approving, valid: Option<&ValidRun>) {
        match approving {
            Approving::Approved(status) => {
                self.status.approval = Some(status.clone());
                if !self.status.is_true(&ConditionType::Approved) {
                    self.audit(RecordType::RunApproved, None);
                }
                self.condition(
                    ConditionType::Approved,
                    true,
                    Reason::ApprovalGiven,
                    "as many people as the policies demand have approved the run",
                );
            }
            // Whose approval does not count is kept: policies may demand one again while the run waits for a slot.
            Approving::NotNeeded => {
                let excluded = valid.and_then(|valid| valid.excluded.as_ref()).map(Excluded::names);
                if excluded.is_some() || self.status.approval.is_some() {
                    let approval = self.status.approval.get_or_insert_default();
                    (approval.demanded, approval.expires_at) = (Vec::new(), None);
                    approval.excluded = excluded.unwrap_or_else(|| approval.excluded.clone());
                }
                self.drop_condition(&ConditionType::Approved);
            }
            Approving::Waiting { .. } | Approving::Denied { .. } => {}
        }
    }

    fn waits(&mut self, reason: &Reason, message: &str) {
        self.received();
        self.condition(ConditionType::Admitted, false, reason.clone(), message);
        self.in_progress(message);
        self.tell(Phase::Queued, message);
    }

    fn queued(&mut self, admission: &Admission, valid: &ValidRun, seen: &Seen) {
        self.accepted(valid);
        match admission {
            Admission::Admit => {
                if !self.status.is_true(&ConditionType::Admitted) {
                    let now = self.clock();
                    self.clocks().admitted = Some(now);
                    // A slot that was given back is not taken for the first time.
                    if !self.status.audit.iter().any(|told| told.type_ == RecordType::RunAdmitted.as_str()) {
                        self.audit(RecordType::RunAdmitted, None);
                    }
                }
                self.status.job_digest = Some(valid.digest.clone());
                self.condition(ConditionType::Admitted, true, Reason::SlotTaken, "a slot is taken");
                self.in_progress("the sandbox is being started");
                self.tell(Phase::Starting, "the sandbox is being started");
            }
            Admission::Wait { .. } if is_suspended(&seen.containment) => {
                self.waits(&Reason::Suspended, "a policy that the run is under is suspended; the run waits until that changes");
            }
            Admission::Wait { .. } if seen.log == LogSeen::Behind => {
                self.waits(&Reason::AuditLogUnavailable, "the audit log cannot be written; the run waits until it can");
            }
            Admission::Wait { full, ahead } => {
                // The place is that at which it began to wait. Each step forward would be a write for every run that waits.
                let what = whose_slots(*full);
                let told = self.status.condition(&ConditionType::Admitted).filter(|told| told.reason == Reason::WaitingForSlot);
                let message = match told.filter(|told| told.message.starts_with(what)) {
                    Some(told) => told.message.clone(),
                    None => format!("{what}; the run waits for its turn, behind {ahead} of this namespace"),
                };
                self.waits(&Reason::WaitingForSlot, &message);
            }
            Admission::Refuse(full) => {
                let why = if seen.log == LogSeen::Behind { "; none is admitted while the audit log cannot be written" } else { "" };
                let message = format!("{}{why}", whose_places(*full));
                self.condition(ConditionType::Accepted, false, Reason::QueueFull, &message);
                self.end(&Outcome::plain(Phase::Refused, Reason::Refused, message));
            }
        }
    }

    fn not_created(&mut self, reason: &Reason, detail: &str) {
        let waits = *reason == Reason::QuotaExceeded;
        let message = if waits { "the quota of the sandbox namespace has no room at the moment" } else { detail };
        self.condition(ConditionType::Started, false, reason.clone(), message);
        if !waits {
            self.stopping(reason);
        }
    }

    /// The quota that was full has taken the pod.
    fn has_room(&mut self) {
        if self.status.condition(&ConditionType::Started).is_some_and(|started| started.reason == Reason::QuotaExceeded) {
            self.drop_condition(&ConditionType::Started);
        }
    }

    fn stands_back(&mut self, why: Back) {
        match why {
            Back::NoRoom => {
                let message = "the quota of the sandbox namespace has no room; the run asks for a slot again in a while";
                self.waits(&Reason::QuotaExceeded, message);
            }
            Back::TooMany => self.waits(&Reason::WaitingForSlot, "more runs hold slots than may; the run waits for its turn"),
        }
    }

    fn started(&mut self, run: &ScriptRun, pod: &PodFacts, seen: &Seen, boot: &str, valid: &ValidRun) {
        self.status.pod = Some(PodRef {
            namespace: sandbox_namespace(run.metadata.namespace.as_deref().unwrap_or_default()),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            node: pod.node.clone(),
            boot: Some(boot.to_owned()),
        });
        self.status.path = Some(if pod.has_waited { RunPath::Warm } else { RunPath::Cold });
        self.status.cold_because = match &seen.offer {
            _ if pod.has_waited => None,
            Offer::NoPool => None,
            // It was none when the pod was created.
            Offer::Free => Some(ColdReason::NoneFree),
            Offer::Cold(why) => Some(why.clone()),
        };
        self.status.timeout_seconds = Some(i64::from(valid.grant.timeout_seconds));
        let now = self.clock();
        self.clocks().started = Some(now);
        self.condition(ConditionType::Started, true, Reason::StartMessageSent, "the script may have run from here on");
        self.in_progress("the script runs");
        self.tell(Phase::Running, "the script runs");
        self.audit(RecordType::RunStarted, None);
    }

    fn stopped(&mut self, reason: &Reason, seen: &Seen) {
        let why = match reason {
            Reason::StartTimedOut => Some(why_not_started(seen).to_owned()),
            Reason::ImageUnavailable => why_without_image(seen),
            _ => None,
        };
        if let Some(why) = why {
            self.condition(ConditionType::Started, false, reason.clone(), &why);
        }
        self.stopping(reason);
    }

    fn stopping(&mut self, reason: &Reason) {
        self.status.stopping = Some(Stopping { reason: reason.clone(), since: self.clock() });
        self.in_progress("the run is being ended");
        self.tell(Phase::Stopping, "the run is being ended");
        self.audit(RecordType::RunStopping, Some(reason.clone()));
    }

    fn result(&mut self, seen: &Seen, result: &RunResult) {
        let Some(report) = &seen.stream.transcript.report else {
            return;
        };
        self.status.result = Some(result.clone());
        self.status.usage = Some(Usage {
            cpu_milliseconds: signed(report.cpu_milliseconds),
            peak_memory_bytes: signed(report.peak_memory_bytes),
            wall_milliseconds: signed(report.wall_milliseconds),
        });
        let now = self.clock();
        let first_output = report.first_output_milliseconds.and_then(|after| self.first_output(after));
        self.clocks().first_output = first_output;
        self.clocks().result_ready = Some(now);
        self.condition(ConditionType::ResultReady, true, Reason::ResultReceived, "the runner reported the end of the script");
        self.in_progress("the script has ended; the sandbox is being taken down");
        self.audit(RecordType::RunResultReady, None);
    }

    /// So many milliseconds after the start message, but never after now: the time is the runner's claim.
    fn first_output(&self, after: u64) -> Option<MicroTime> {
        let MicroTime(started) = self.status.clocks.as_ref()?.started.clone()?;
        let micros = i64::try_from(after.saturating_mul(1000)).ok()?;
        let first = started.as_microsecond().checked_add(micros)?.min(self.now.as_microsecond());
        Timestamp::from_microsecond(first).ok().map(MicroTime)
    }

    fn finished(&mut self, outcome: &Outcome, seen: &Seen, done: &Done) {
        self.received();
        if matches!(outcome.phase, Phase::Denied | Phase::Expired) {
            self.not_approved(outcome, seen);
        }
        // What came before a runner fell silent.
        if let Done::Told(partial) = done {
            self.status.result = Some((**partial).clone());
        }
        self.end(outcome);
    }

    fn not_approved(&mut self, outcome: &Outcome, seen: &Seen) {
        if let Some(Ok(valid)) = &seen.decision {
            self.accepted(valid);
        }
        if let Approving::Denied { status, .. } | Approving::Waiting { status, .. } = &seen.approving {
            self.status.approval = Some(status.clone());
        }
        self.drop_condition(&ConditionType::Admitted);
        self.condition(ConditionType::Approved, false, outcome.reason.clone(), &outcome.message);
    }

    fn end(&mut self, outcome: &Outcome) {
        let now = self.clock();
        self.clocks().finished = Some(now);
        if !self.status.is_true(&ConditionType::ResultReady) {
            let why = if self.status.is_true(&ConditionType::Started) { NOT_REPORTED } else { "there is no result" };
            self.condition(ConditionType::ResultReady, false, Reason::NoResult, why);
        }
        self.condition(ConditionType::Finished, true, outcome.reason.clone(), &outcome.message);
        self.drop_condition(&ConditionType::Reconciling);
        if outcome.phase != Phase::Succeeded {
            self.condition(ConditionType::Stalled, true, outcome.reason.clone(), &outcome.message);
        }
        self.tell(outcome.phase.clone(), &outcome.message);
        self.audit(RecordType::RunFinished, Some(outcome.reason.clone()));
    }
}

fn whose_slots(full: Full) -> &'static str {
    match full {
        Full::Policy => "as many runs that name the same policy are active as it allows",
        Full::Tenant => "as many runs are active in this namespace as the policies allow",
        Full::Cluster => "as many runs are active in the cluster as its administrator allows",
    }
}

fn whose_places(full: Full) -> &'static str {
    match full {
        Full::Policy => "as many runs that name the same policy wait as it allows",
        Full::Tenant => "as many runs wait in this namespace as the policies allow",
        Full::Cluster => "as many runs wait in the cluster as its administrator allows",
    }
}

/// What a run whose start budget is over was waiting for.
fn why_not_started(seen: &Seen) -> &'static str {
    match &seen.pod {
        PodSeen::Absent => "the pod could not be created within the start budget",
        PodSeen::Present(pod) => match &pod.life {
            PodLife::Pending(WaitsFor::Node) => "no node could take the sandbox within the start budget",
            PodLife::Pending(_) => "the node could not make the sandbox within the start budget",
            PodLife::Running => "the runner did not answer within the start budget",
            PodLife::Ended(_) => "the script did not start within the start budget",
        },
    }
}

/// What the kubelet says of an image that it cannot have.
fn why_without_image(seen: &Seen) -> Option<String> {
    let PodSeen::Present(pod) = &seen.pod else { return None };
    let PodLife::Pending(WaitsFor::Named { message, .. }) = &pod.life else { return None };
    Some(format!("the node cannot have an image of the pod: {}", visible(message.as_bytes())))
}

/// What the status shows of a requester: identity providers give people more groups than an object should carry.
pub(crate) fn shown(requester: &Requester) -> Requester {
    let groups = requester.groups.iter().take(SHOWN_GROUPS).map(|group| group.chars().take(SHOWN_GROUP_LENGTH).collect());
    Requester {
        username: requester.username.chars().take(1024).collect(),
        uid: requester.uid.as_ref().map(|uid| uid.chars().take(256).collect()),
        groups: groups.collect(),
    }
}

#[cfg(test)]
mod tests;
