//! How this program ends. Pure.

use std::process::ExitCode;

use paddock_crds::{ConditionType, Phase, Reason, ScriptRunStatus};

/// What `run --help` tells.
pub(crate) const HELP: &str = "\
Exit status of run, and of logs and cancel when they wait:
  that of the script       it ran to its end
  128 + N                  signal N ended it
  124                      its time was over
  130                      it was cancelled
  137                      it took too much memory
  120                      it was refused: nothing was started
  121                      it could not be started, or the sandbox was not what the policy demands
  122                      it was lost: what became of it is not known
  1                        a file or a value cannot be used, or the cluster could not be asked
  2                        the command line was not understood
A script can exit with each of these itself; -o json tells the phase.";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Done,
    /// This program could not do its work.
    Failed,
    /// A run ended, and this is how.
    Run(u8),
}

impl Exit {
    pub(crate) fn code(self) -> ExitCode {
        match self {
            Self::Done => ExitCode::SUCCESS,
            Self::Failed => ExitCode::FAILURE,
            Self::Run(code) => ExitCode::from(code),
        }
    }

    /// That of a run that is over. `None` while it is not.
    pub(crate) fn of(status: &ScriptRunStatus) -> Option<Self> {
        if !status.is_true(&ConditionType::Finished) {
            return None;
        }
        let result = status.result.clone().unwrap_or_default();
        let code = match status.phase.as_ref()? {
            Phase::Succeeded => 0,
            Phase::Failed => match (result.exit_code, result.signal) {
                (Some(code), _) => u8::try_from(code).unwrap_or(1),
                (None, Some(signal)) => u8::try_from(128 + signal).unwrap_or(1),
                (None, None) => 1,
            },
            Phase::TimedOut => 124,
            Phase::Cancelled => 130,
            Phase::OutOfMemory => 137,
            Phase::Refused | Phase::Denied | Phase::Expired => 120,
            Phase::StartFailed | Phase::StartTimedOut | Phase::PodMutated | Phase::PolicyNotEnforced => 121,
            Phase::Lost | Phase::Killed | Phase::RunnerKilled => 122,
            // A newer version's: not known here is not known.
            Phase::AwaitingApproval | Phase::Queued | Phase::Starting | Phase::Running | Phase::Stopping | Phase::Unknown(_) => 122,
        };
        Some(Self::Run(code))
    }
}

/// What to do next, for those ends where the script's author can do something.
pub(crate) fn advice(status: &ScriptRunStatus) -> Option<String> {
    let refusal = status.condition(&ConditionType::Accepted).map(|condition| &condition.reason);
    let advice = match (status.phase.as_ref()?, refusal) {
        (Phase::Refused, Some(Reason::NoClusterPolicy)) => {
            "ask your administrator to let this namespace run scripts: a ClusterSandboxPolicy must select it by its labels"
        }
        (Phase::Refused, Some(Reason::PolicyNotFound)) => {
            "name another policy with --policy: NAME for one of this namespace (kubectl get sandboxpolicies), cluster/NAME for one of the cluster"
        }
        (Phase::Refused, Some(Reason::RuntimeNotAllowed)) => "name another runtime with --runtime; the policy lists those that it offers",
        (Phase::Refused, Some(Reason::LimitExceeded)) => "ask for less, or ask your administrator for a policy with higher limits",
        (Phase::Refused, Some(Reason::InputInvalid)) => "mend the input where the violations say",
        (Phase::Refused, Some(Reason::QueueFull)) => "try again when fewer runs wait",
        (Phase::TimedOut, _) => "give it more time with --timeout, up to what the policy allows",
        (Phase::OutOfMemory, _) => "ask for more memory in spec.resources.memory, up to what the policy allows",
        (Phase::StartFailed | Phase::StartTimedOut | Phase::PodMutated | Phase::PolicyNotEnforced, _) => {
            "this is a matter for your administrator: the cluster could not start the sandbox"
        }
        (Phase::Lost, _) => "the script may have run in part; run it again if that does no harm",
        _ => return None,
    };
    Some(advice.to_owned())
}

#[cfg(test)]
mod tests {
    use paddock_crds::{Condition, ConditionStatus, RunResult};
    use rstest::rstest;

    use super::*;

    fn ended(phase: Phase, exit_code: Option<i32>, signal: Option<i32>) -> ScriptRunStatus {
        let finished = Condition {
            type_: ConditionType::Finished,
            status: ConditionStatus::True,
            reason: Reason::Failed,
            message: String::new(),
            observed_generation: None,
            last_transition_time: serde_json::from_str("\"2026-01-01T00:00:00Z\"").expect("a time"),
        };
        ScriptRunStatus {
            phase: Some(phase),
            conditions: vec![finished],
            result: Some(RunResult { exit_code, signal, ..RunResult::default() }),
            ..ScriptRunStatus::default()
        }
    }

    #[rstest]
    #[case(Phase::Succeeded, Some(0), None, 0)]
    #[case(Phase::Failed, Some(7), None, 7)]
    #[case(Phase::Failed, None, Some(11), 139)]
    #[case(Phase::Failed, None, None, 1)]
    #[case(Phase::TimedOut, None, Some(15), 124)]
    #[case(Phase::Cancelled, None, None, 130)]
    #[case(Phase::OutOfMemory, None, None, 137)]
    #[case(Phase::Refused, None, None, 120)]
    #[case(Phase::PolicyNotEnforced, None, None, 121)]
    #[case(Phase::Lost, None, None, 122)]
    #[case(Phase::Unknown("Dissolved".into()), Some(0), None, 122)]
    fn every_end_has_a_code(#[case] phase: Phase, #[case] exit_code: Option<i32>, #[case] signal: Option<i32>, #[case] expected: u8) {
        assert_eq!(Exit::of(&ended(phase, exit_code, signal)), Some(Exit::Run(expected)));
    }

    #[test]
    fn a_run_that_is_not_over_has_none() {
        assert_eq!(Exit::of(&ScriptRunStatus { phase: Some(Phase::Running), ..ScriptRunStatus::default() }), None);
    }
}
