//! How a run ended, from the kubelet's facts, the operator's own record and, last, the runner's claims. Pure.

use paddock_crds::{ConditionType, Phase, Reason, ScriptRunStatus};
use paddock_protocol::{Cause, RefusedReason, Transcript};

use super::pod_facts::{Ended, PodFacts};

/// The end of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) phase: Phase,
    pub(crate) reason: Reason,
    /// For the author of the script.
    pub(crate) message: String,
}

impl Outcome {
    pub(crate) fn plain(phase: Phase, reason: Reason, message: impl Into<String>) -> Self {
        Self { phase, reason, message: message.into() }
    }
}

/// The end of a run that had started. `pod` is `None` when the pod is gone.
pub(crate) fn outcome(status: &ScriptRunStatus, pod: Option<&PodFacts>, transcript: &Transcript) -> Outcome {
    let report = transcript.report.as_ref();
    let stored = status.result.as_ref();
    let exit_code = report.and_then(|report| report.exit_code).or_else(|| stored.and_then(|result| result.exit_code));
    let signal = report.and_then(|report| report.signal).or_else(|| stored.and_then(|result| result.signal));
    let has_result = report.is_some() || stored.is_some();

    // What the operator decided comes first: it knows why it ended the run.
    if let Some(stopping) = &status.stopping {
        return stopped(&stopping.reason);
    }
    let ended = pod.and_then(PodFacts::ended);
    // The kernel may kill the script alone and leave the runner to tell of a signal: the kubelet's word explains it.
    if ended.is_some_and(is_out_of_memory) && exit_code != Some(0) {
        return Outcome::plain(Phase::OutOfMemory, Reason::OutOfMemory, "the script used more memory than the run may use and was killed");
    }
    if let Some(refused) = &transcript.refused
        && !has_result
    {
        return outcome_of_refusal(refused.reason);
    }
    if has_result {
        // The runner's own clock may fire before the operator's; it counts only if the operator's agrees that the time was over.
        if report.is_some_and(|report| report.cause == Cause::TimedOut) && ran_out_its_time(status) {
            return stopped(&Reason::TimedOut);
        }
        // TERM came from outside, and not from the operator. Only the cluster can say that it was the cluster's: a script can send it too.
        if report.is_some_and(|report| report.cause == Cause::Stopped) {
            let is_from_the_cluster =
                pod.is_none_or(|pod| pod.deleting) || ended.is_some_and(|ended| is_evicted(ended) || is_past_deadline(ended));
            return if is_from_the_cluster { ended_from_outside(ended) } else { runner_killed() };
        }
        return beside_the_kubelet(by_exit(exit_code, signal), exit_code, signal, ended);
    }
    match (pod, ended) {
        // What waited, and ended without a word that it has the script, may have had it all the same.
        (Some(pod), Some(ended)) if pod.has_waited && !transcript.accepted && !is_evicted(ended) => Outcome::plain(
            Phase::Lost,
            Reason::Lost,
            "the sandbox ended before it said that it has the script; the script is not run again",
        ),
        (Some(_), Some(ended)) => without_result(ended),
        (Some(pod), None) if pod.deleting => ended_from_outside(None),
        _ => Outcome::plain(Phase::Lost, Reason::Lost, "the pod is gone and its result was not received; the script is not run again"),
    }
}

fn by_exit(exit_code: Option<i32>, signal: Option<i32>) -> Outcome {
    match (exit_code, signal) {
        (Some(0), _) => Outcome::plain(Phase::Succeeded, Reason::Succeeded, "the script ended with exit code 0"),
        (Some(code), _) => Outcome::plain(Phase::Failed, Reason::Failed, format!("the script ended with exit code {code}")),
        (None, Some(signal)) => Outcome::plain(Phase::Failed, Reason::Failed, format!("the script was ended by signal {signal}")),
        (None, None) => Outcome::plain(Phase::Failed, Reason::Failed, "the script ended in an unknown way"),
    }
}

/// A runner ends as its script did. Where the kubelet saw another end, both are told.
fn beside_the_kubelet(mut told: Outcome, exit_code: Option<i32>, signal: Option<i32>, ended: Option<&Ended>) -> Outcome {
    let claimed = exit_code.or(signal.map(|signal| 128 + signal)).map(|code| code & 255);
    if let (Some(claimed), Some(seen)) = (claimed, ended.and_then(|ended| ended.exit_code))
        && claimed != seen
    {
        told.message.push_str(&format!("; the node says that the sandbox ended with exit code {seen}"));
    }
    told
}

fn stopped(reason: &Reason) -> Outcome {
    match reason {
        Reason::TimedOut => Outcome::plain(Phase::TimedOut, Reason::TimedOut, "the script took longer than timeoutSeconds and was ended"),
        Reason::Cancelled => Outcome::plain(Phase::Cancelled, Reason::Cancelled, "the run was cancelled"),
        Reason::Denied => Outcome::plain(Phase::Killed, Reason::Denied, "a policy denies what the run is; it was ended"),
        Reason::Suspended => {
            Outcome::plain(Phase::Killed, Reason::Suspended, "a policy that the run was under was suspended; it was ended")
        }
        Reason::ApprovalRevoked => Outcome::plain(
            Phase::Killed,
            Reason::ApprovalRevoked,
            "an approval that the run needs was revoked or is over, or what it does was denied; it was ended",
        ),
        Reason::TooManyRefusedConnections => Outcome::plain(
            Phase::Killed,
            Reason::TooManyRefusedConnections,
            "the script asked for more connections that it was not granted than the policies put up with; it was ended",
        ),
        Reason::Lost => Outcome::plain(
            Phase::Lost,
            Reason::Lost,
            "the node lost the sandbox and started it a second time; the script is not run again and its result is lost",
        ),
        other => Outcome::plain(Phase::Killed, other.clone(), "the run was ended"),
    }
}

fn ended_from_outside(ended: Option<&Ended>) -> Outcome {
    if ended.is_some_and(is_past_deadline) {
        return stopped(&Reason::TimedOut);
    }
    if ended.is_some_and(is_evicted) {
        return Outcome::plain(Phase::Killed, Reason::PodEvicted, "the node ended the pod before the script had ended");
    }
    Outcome::plain(Phase::Killed, Reason::PodDeleted, "the pod was deleted by somebody else before the script had ended")
}

fn runner_killed() -> Outcome {
    Outcome::plain(Phase::RunnerKilled, Reason::RunnerKilled, "the runner was ended before the script; the script may have done it")
}

fn is_past_deadline(ended: &Ended) -> bool {
    ended.pod_reason.as_deref() == Some("DeadlineExceeded")
}

fn is_evicted(ended: &Ended) -> bool {
    ended.disrupted
        || ended.pod_reason.as_deref().is_some_and(|reason| matches!(reason, "Evicted" | "Preempting" | "NodeShutdown" | "Terminated"))
}

fn is_out_of_memory(ended: &Ended) -> bool {
    ended.container_reason.as_deref() == Some("OOMKilled") || ended.pod_reason.as_deref() == Some("OOMKilled")
}

/// The pod has ended and the runner never said how the script did.
fn without_result(ended: &Ended) -> Outcome {
    if is_evicted(ended) {
        return ended_from_outside(Some(ended));
    }
    // A kubelet that comes back without the state of its runtime either says so or has nothing to say.
    let is_unknown = ended.container_reason.as_deref() == Some("ContainerStatusUnknown") || ended.exit_code.is_none();
    match ended {
        ended if is_past_deadline(ended) => {
            Outcome::plain(Phase::TimedOut, Reason::TimedOut, "the pod outlived its deadline and was ended")
        }
        _ if is_unknown => {
            Outcome::plain(Phase::Lost, Reason::Lost, "the node lost the sandbox, and its result with it; the script is not run again")
        }
        _ => runner_killed(),
    }
}

/// The pod's own deadline and the runner's clock are near each other; a second of difference is the network's.
fn ran_out_its_time(status: &ScriptRunStatus) -> bool {
    let clocks = status.clocks.clone().unwrap_or_default();
    let (Some(started), Some(ready), Some(timeout)) = (clocks.started, clocks.result_ready, status.timeout_seconds) else {
        return false;
    };
    ready.0.as_millisecond() - started.0.as_millisecond() >= timeout * 1000 - 250
}

/// The end of a run whose runner refused its job.
pub(crate) fn outcome_of_refusal(reason: RefusedReason) -> Outcome {
    let not_enforced = |reason, message: &str| Outcome::plain(Phase::PolicyNotEnforced, reason, message);
    match reason {
        RefusedReason::NotSandboxed => not_enforced(Reason::NotSandboxed, "the sandbox is not gVisor; the script was not started"),
        RefusedReason::UnexpectedInterface => {
            not_enforced(Reason::UnexpectedInterface, "the sandbox has a network that was not granted; the script was not started")
        }
        RefusedReason::UnexpectedToken => {
            not_enforced(Reason::UnexpectedToken, "the sandbox holds a service account token; the script was not started")
        }
        RefusedReason::NetworkNotConfined => not_enforced(
            Reason::NetworkNotConfined,
            "the sandbox reaches what the network policy of its namespace forbids; the script was not started",
        ),
        RefusedReason::GatewayUnreachable => not_enforced(
            Reason::GatewayUnreachable,
            "the egress gateway does not answer, so that nothing shows that the network policy is enforced; the script was not started",
        ),
        RefusedReason::JobMismatch => {
            Outcome::plain(Phase::StartFailed, Reason::JobMismatch, "what was mounted is not what was admitted; the script was not started")
        }
        RefusedReason::SpawnFailed => {
            let message = "the interpreter of the runtime is not in its image, cannot be executed, or is made for another machine";
            Outcome::plain(Phase::StartFailed, Reason::InterpreterUnavailable, message)
        }
        RefusedReason::NotStarted | RefusedReason::Stopped => {
            Outcome::plain(Phase::Lost, Reason::Lost, "the runner was not started; the script is not run again")
        }
    }
}

/// The end of a run that was stopped before its script started. Why it did not start was stored when the stop was decided.
pub(crate) fn before_the_start(status: &ScriptRunStatus, reason: &Reason) -> Outcome {
    let failed = |message: &str| Outcome::plain(Phase::StartFailed, reason.clone(), message);
    let told = status.condition(&ConditionType::Started).filter(|condition| condition.reason == *reason);
    match reason {
        Reason::Cancelled => Outcome::plain(Phase::Cancelled, Reason::Cancelled, "the run was cancelled before it started"),
        Reason::Denied | Reason::Suspended | Reason::ApprovalRevoked => stopped(reason),
        Reason::StartTimedOut => Outcome::plain(
            Phase::StartTimedOut,
            Reason::StartTimedOut,
            told.map_or("the script did not start within the start budget", |condition| &condition.message),
        ),
        Reason::PodMutated => Outcome::plain(
            Phase::PodMutated,
            Reason::PodMutated,
            "something in the cluster changed the pod of this run; the script was not started",
        ),
        Reason::NotSandboxed => outcome_of_refusal(RefusedReason::NotSandboxed),
        Reason::UnexpectedInterface => outcome_of_refusal(RefusedReason::UnexpectedInterface),
        Reason::NetworkNotConfined => outcome_of_refusal(RefusedReason::NetworkNotConfined),
        Reason::GatewayUnreachable => outcome_of_refusal(RefusedReason::GatewayUnreachable),
        Reason::UnexpectedToken => outcome_of_refusal(RefusedReason::UnexpectedToken),
        Reason::JobMismatch => outcome_of_refusal(RefusedReason::JobMismatch),
        Reason::ImageUnavailable => failed(told.map_or("the node cannot have an image of the pod", |condition| &condition.message)),
        Reason::RuntimeClassUnavailable => failed("the RuntimeClass of the sandbox does not exist"),
        Reason::QuotaExceeded => failed("the quota of the sandbox namespace has no room for this run"),
        Reason::NameTaken => failed("an object with the name of this run's pod exists and is not this run's"),
        _ => failed("the pod of the run could not be started"),
    }
}

#[cfg(test)]
mod tests {
    use paddock_protocol::Report;
    use rstest::rstest;

    use super::super::fixtures::{a_pod, a_report, started, status};
    use super::super::pod_facts::PodLife;
    use super::*;

    fn facts(exit_code: Option<i32>, container: Option<&str>, pod: Option<&str>) -> Ended {
        Ended { exit_code, container_reason: container.map(Into::into), pod_reason: pod.map(Into::into), ..Ended::default() }
    }

    #[rstest]
    #[case::by_itself(Cause::Itself, facts(Some(3), Some("Error"), None), Phase::Failed)]
    #[case::by_the_script(Cause::Stopped, facts(Some(143), Some("Error"), None), Phase::RunnerKilled)]
    #[case::evicted(Cause::Stopped, Ended { disrupted: true, ..facts(Some(143), Some("Error"), None) }, Phase::Killed)]
    #[case::backstop(Cause::Stopped, facts(Some(143), Some("Error"), Some("DeadlineExceeded")), Phase::TimedOut)]
    #[case::memory(Cause::Itself, facts(Some(137), Some("OOMKilled"), None), Phase::OutOfMemory)]
    fn a_report_is_read_beside_what_the_kubelet_says(#[case] cause: Cause, #[case] ended: Ended, #[case] expected: Phase) {
        let run = started(0);
        let pod = PodFacts { life: PodLife::Ended(ended), ..a_pod(&run) };
        let transcript = Transcript { report: Some(Report { cause, ..a_report(3) }), ..Transcript::default() };
        assert_eq!(outcome(&status(&run), Some(&pod), &transcript).phase, expected);
        if expected == Phase::Killed {
            let before_the_pod_is_gone = outcome(&status(&run), None, &transcript);
            assert_eq!(before_the_pod_is_gone.reason, Reason::PodDeleted);
        }
    }

    #[test]
    fn where_runner_and_kubelet_differ_both_are_told() {
        let run = started(0);
        let transcript = Transcript { report: Some(a_report(0)), ..Transcript::default() };
        let message = |exit_code| {
            let pod = PodFacts { life: PodLife::Ended(facts(Some(exit_code), Some("Error"), None)), ..a_pod(&run) };
            outcome(&status(&run), Some(&pod), &transcript).message
        };
        assert_eq!(message(0), "the script ended with exit code 0");
        assert_eq!(message(137), "the script ended with exit code 0; the node says that the sandbox ended with exit code 137");
        let by_signal = Report { exit_code: None, signal: Some(11), ..a_report(0) };
        let transcript = Transcript { report: Some(by_signal), ..Transcript::default() };
        let pod = PodFacts { life: PodLife::Ended(facts(Some(139), Some("Error"), None)), ..a_pod(&run) };
        assert_eq!(outcome(&status(&run), Some(&pod), &transcript).message, "the script was ended by signal 11");
    }

    #[rstest]
    #[case::killed(facts(Some(137), Some("Error"), None), Phase::RunnerKilled)]
    #[case::memory(facts(Some(137), Some("OOMKilled"), None), Phase::OutOfMemory)]
    #[case::deadline(facts(None, None, Some("DeadlineExceeded")), Phase::TimedOut)]
    #[case::eviction(facts(Some(137), Some("Error"), Some("Evicted")), Phase::Killed)]
    #[case::node_forgot(facts(Some(137), Some("ContainerStatusUnknown"), None), Phase::Lost)]
    #[case::node_says_nothing(facts(None, None, None), Phase::Lost)]
    fn a_pod_that_ended_without_a_report_is_told_by_the_kubelet(#[case] ended: Ended, #[case] expected: Phase) {
        let run = started(0);
        let pod = PodFacts { life: PodLife::Ended(ended), ..a_pod(&run) };
        assert_eq!(outcome(&status(&run), Some(&pod), &Transcript::default()).phase, expected);
    }
}
