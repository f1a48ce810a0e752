//! What the object in the cluster says of what was found. Pure.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use paddock_crds::{
    Check, CheckResult, CheckVerdict, ConditionStatus, DiagnosisCondition, DiagnosisConditionType, DiagnosisReason, DiagnosisStatus,
};

use crate::checks::Finding;

/// Longest message, in characters.
const LONGEST_MESSAGE: usize = 1024;

/// What is expected and was not found was not seen.
pub fn complete(mut findings: Vec<Finding>, expected: &[Check]) -> Vec<Finding> {
    let missing = expected.iter().filter(|check| !findings.iter().any(|finding| finding.check == **check)).cloned().collect::<Vec<_>>();
    let not_seen = |check| Finding { check, verdict: CheckVerdict::NotSeen, seen: "nothing is known by which it can be seen".into() };
    findings.extend(missing.into_iter().map(not_seen));
    findings.sort_by(|one, other| one.check.cmp(&other.check));
    findings
}

/// Whether one look is not enough. What was seen in a sandbox was so on its node, whatever another one shows; what API servers say is the same everywhere,
/// and may be about to come into force; and others may keep a node busy.
fn needs_another_look(check: &Check) -> bool {
    matches!(check, Check::RequesterStamped | Check::StampProtected | Check::PodSecurity | Check::CpuLimited)
}

/// Whether there is anything that another look would have to confirm.
pub fn is_to_be_confirmed(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.verdict == CheckVerdict::Fails && needs_another_look(&finding.check))
}

/// What one look says by itself, before or without another.
pub fn examined_once(findings: Vec<Finding>) -> Vec<Finding> {
    let alone = |finding: Finding| match finding.verdict {
        CheckVerdict::Fails if needs_another_look(&finding.check) => {
            Finding { verdict: CheckVerdict::NotSeen, seen: format!("seen in one of two looks: {}", finding.seen), ..finding }
        }
        _ => finding,
    };
    findings.into_iter().map(alone).collect()
}

/// What two looks say together.
pub fn examined_twice(first: &[Finding], second: Vec<Finding>) -> Vec<Finding> {
    let both = |finding: Finding| {
        let before = first.iter().find(|first| first.check == finding.check);
        let has_failed = before.filter(|before| before.verdict == CheckVerdict::Fails);
        match (needs_another_look(&finding.check), has_failed) {
            (false, Some(failed)) => vec![failed.clone()],
            (true, None) => examined_once(vec![finding]),
            (true, Some(failed)) if finding.verdict == CheckVerdict::NotSeen => examined_once(vec![failed.clone()]),
            _ => vec![finding],
        }
    };
    second.into_iter().flat_map(both).collect()
}

/// A look, and when it was made.
pub struct Look<'a> {
    /// One for each of what there is to look at.
    pub findings: &'a [Finding],
    /// What somebody else has found since then counts.
    pub began: Timestamp,
    /// When it was over.
    pub ended: Timestamp,
}

/// The status of the object after another look.
pub fn status_of(before: &DiagnosisStatus, look: &Look<'_>, tolerated: &[Check]) -> DiagnosisStatus {
    let is_looked_at_since = before.examined_at.as_ref().is_some_and(|examined| examined.0 > look.began);
    let at = Time(Timestamp::from_second(look.ended.as_second()).unwrap_or(look.ended));
    let known = |check: &Check| before.checks.iter().find(|result| result.name == *check);
    let checks = look.findings.iter().map(|finding| after(known(&finding.check), finding, is_looked_at_since, &at));
    let checks: Vec<CheckResult> = checks.collect();
    let (status, reason, message) = summary(&checks, tolerated);
    let old = before.conditions.iter().find(|condition| condition.type_ == DiagnosisConditionType::Enforced && condition.status == status);
    let condition = DiagnosisCondition {
        type_: DiagnosisConditionType::Enforced,
        status,
        reason,
        message: message.chars().take(LONGEST_MESSAGE).collect(),
        last_transition_time: old.map_or(at, |old| old.last_transition_time.clone()),
    };
    DiagnosisStatus { conditions: vec![condition], examined_at: Some(MicroTime(look.ended)), checks }
}

/// What has failed and could not be looked at now has still failed; and what somebody else has seen to fail since this look began.
fn after(known: Option<&CheckResult>, finding: &Finding, is_looked_at_since: bool, at: &Time) -> CheckResult {
    let still_fails = match finding.verdict {
        CheckVerdict::Holds => is_looked_at_since,
        CheckVerdict::Fails => false,
        _ => true,
    };
    if let Some(failed) = known.filter(|known| still_fails && known.verdict == CheckVerdict::Fails) {
        return failed.clone();
    }
    let since = known.filter(|known| known.verdict == finding.verdict).map(|known| &known.last_transition_time);
    CheckResult {
        name: finding.check.clone(),
        verdict: finding.verdict.clone(),
        message: finding.seen.chars().take(LONGEST_MESSAGE).collect(),
        last_transition_time: since.unwrap_or(at).clone(),
    }
}

fn summary(checks: &[CheckResult], tolerated: &[Check]) -> (ConditionStatus, DiagnosisReason, String) {
    let of = |verdict: &CheckVerdict, is_tolerated: bool| {
        let those = checks.iter().filter(|result| result.verdict == *verdict && tolerated.contains(&result.name) == is_tolerated);
        those.map(|result| result.name.as_str()).collect::<Vec<_>>().join(", ")
    };
    let (failing, not_seen) = (of(&CheckVerdict::Fails, false), of(&CheckVerdict::NotSeen, false));
    let tolerated = match of(&CheckVerdict::Fails, true) {
        none if none.is_empty() => none,
        some => format!("; failing and tolerated: {some}"),
    };
    if !failing.is_empty() {
        return (ConditionStatus::False, DiagnosisReason::ChecksFail, format!("failing: {failing}{tolerated}"));
    }
    if !not_seen.is_empty() {
        return (ConditionStatus::Unknown, DiagnosisReason::NotEverythingSeen, format!("not seen: {not_seen}{tolerated}"));
    }
    let holding = checks.iter().filter(|result| result.verdict == CheckVerdict::Holds).count();
    (ConditionStatus::True, DiagnosisReason::EverythingHolds, format!("{holding} checks hold{tolerated}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(check: Check, verdict: CheckVerdict) -> Finding {
        Finding { check, verdict, seen: "seen".into() }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn looked_at(before: &DiagnosisStatus, findings: &[Finding], second: i64) -> DiagnosisStatus {
        status_of(before, &Look { findings, began: at(second - 1), ended: at(second) }, &[])
    }

    fn verdicts(status: &DiagnosisStatus) -> Vec<(&str, &str)> {
        status.checks.iter().map(|result| (result.name.as_str(), result.verdict.as_str())).collect()
    }

    #[test]
    fn what_was_seen_in_a_sandbox_was_seen() {
        let of = |verdict| vec![found(Check::SandboxKernel, verdict)];
        let verdict = |first, second| examined_twice(&of(first), of(second))[0].verdict.clone();
        assert!(!is_to_be_confirmed(&of(CheckVerdict::Fails)));
        for (first, second) in [(CheckVerdict::Fails, CheckVerdict::Holds), (CheckVerdict::NotSeen, CheckVerdict::Fails)] {
            assert_eq!(verdict(first, second), CheckVerdict::Fails, "each may have been on another node");
        }
    }

    #[test]
    fn what_may_pass_is_looked_at_twice() {
        let of = |verdict| vec![found(Check::RequesterStamped, verdict)];
        let both = |first, second| examined_twice(&of(first), of(second))[0].clone();
        assert!(is_to_be_confirmed(&of(CheckVerdict::Fails)) && !is_to_be_confirmed(&of(CheckVerdict::NotSeen)));
        assert_eq!(both(CheckVerdict::Fails, CheckVerdict::Fails).verdict, CheckVerdict::Fails);
        assert_eq!(both(CheckVerdict::Fails, CheckVerdict::Holds).verdict, CheckVerdict::Holds);
        let first = both(CheckVerdict::Fails, CheckVerdict::NotSeen);
        assert_eq!((&first.verdict, first.seen.as_str()), (&CheckVerdict::NotSeen, "seen in one of two looks: seen"));
        assert_eq!(both(CheckVerdict::Holds, CheckVerdict::Fails).verdict, CheckVerdict::NotSeen);
    }

    #[test]
    fn what_has_failed_fails_until_it_is_seen_to_hold_or_not_looked_at_any_more() {
        let failed = looked_at(&DiagnosisStatus::default(), &[found(Check::NoToken, CheckVerdict::Fails)], 10);
        assert_eq!(failed.conditions[0].message, "failing: NoToken");
        let not_seen = looked_at(&failed, &[found(Check::NoToken, CheckVerdict::NotSeen)], 20);
        assert_eq!(verdicts(&not_seen), [("NoToken", "Fails")]);
        assert_eq!(not_seen.conditions[0].last_transition_time, Time(at(10)), "it was not enforced before");
        let holds = looked_at(&not_seen, &[found(Check::NoToken, CheckVerdict::Holds)], 30);
        assert_eq!(verdicts(&holds), [("NoToken", "Holds")]);
        assert_eq!((holds.conditions[0].status, holds.conditions[0].message.as_str()), (ConditionStatus::True, "1 checks hold"));
        assert_eq!(holds.examined_at, Some(MicroTime(at(30))));
        let another = looked_at(&failed, &[found(Check::NotRoot, CheckVerdict::Holds)], 40);
        assert_eq!(verdicts(&another), [("NotRoot", "Holds")]);
    }

    #[test]
    fn a_look_does_not_take_back_what_another_has_found_meanwhile() {
        let failed = looked_at(&DiagnosisStatus::default(), &[found(Check::NoToken, CheckVerdict::Fails)], 10);
        let earlier = Look { findings: &[found(Check::NoToken, CheckVerdict::Holds)], began: at(5), ended: at(15) };
        assert_eq!(verdicts(&status_of(&failed, &earlier, &[])), [("NoToken", "Fails")]);
    }

    #[test]
    fn what_is_tolerated_is_told_and_is_no_trouble() {
        let findings = [found(Check::NoToken, CheckVerdict::Holds), found(Check::NodeConfined, CheckVerdict::Fails)];
        let look = Look { findings: &findings, began: at(1), ended: at(2) };
        let strict = status_of(&DiagnosisStatus::default(), &look, &[]);
        let tolerated = [Check::NodeConfined];
        let lenient = status_of(&DiagnosisStatus::default(), &look, &tolerated);
        assert_eq!((strict.conditions[0].status, lenient.conditions[0].status), (ConditionStatus::False, ConditionStatus::True));
        assert_eq!(lenient.conditions[0].message, "1 checks hold; failing and tolerated: NodeConfined");
    }

    #[test]
    fn what_could_not_be_looked_at_is_not_called_good() {
        let findings = [found(Check::NoToken, CheckVerdict::Holds), found(Check::NotRoot, CheckVerdict::NotSeen)];
        let condition = &looked_at(&DiagnosisStatus::default(), &findings, 1).conditions[0];
        assert_eq!((condition.status, &condition.reason), (ConditionStatus::Unknown, &DiagnosisReason::NotEverythingSeen));
        assert_eq!(condition.message, "not seen: NotRoot");
    }

    #[test]
    fn what_was_to_be_looked_at_and_was_not_is_told() {
        let all = complete(vec![found(Check::NotRoot, CheckVerdict::Holds)], &[Check::PodSecurity, Check::NotRoot]);
        assert_eq!(all.iter().map(|finding| &finding.verdict).collect::<Vec<_>>(), [&CheckVerdict::NotSeen, &CheckVerdict::Holds]);
    }
}
