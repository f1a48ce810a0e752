//! What the object in the cluster says of what was found. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use paddock_crds::{
    Check, CheckResult, CheckVerdict, ConditionStatus, DiagnosisCondition, DiagnosisConditionType, DiagnosisReason, DiagnosisStatus,
};

use crate::checks::Finding;

/// Longest message, in characters.
const LONGEST_MESSAGE: usize = 1024;

/// What two looks say together. Runs are refused by what fails, so it must have failed twice: in a busy cluster anything may come to nothing once.
pub fn examined_twice(first: &[Finding], second: Vec<Finding>) -> Vec<Finding> {
    let has_failed = |check: &Check| first.iter().any(|finding| finding.check == *check && finding.verdict == CheckVerdict::Fails);
    let both = |finding: Finding| match finding.verdict {
        CheckVerdict::Fails if !has_failed(&finding.check) => {
            Finding { verdict: CheckVerdict::NotSeen, seen: format!("seen once, and not twice: {}", finding.seen), ..finding }
        }
        _ => finding,
    };
    second.into_iter().map(both).collect()
}

/// The status of the object after another look. What has failed and could not be looked at now has still failed.
pub fn status_of(before: &DiagnosisStatus, findings: &[Finding], now: Timestamp) -> DiagnosisStatus {
    let second = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    let mut checks: BTreeMap<Check, CheckResult> = BTreeMap::new();
    // A check that was not tried this time, as those of a network where none is installed any more, is gone unless it failed.
    let failed = before.checks.iter().filter(|result| result.verdict == CheckVerdict::Fails);
    checks.extend(failed.map(|result| (result.name.clone(), result.clone())));
    for finding in findings {
        let known = before.checks.iter().find(|result| result.name == finding.check);
        if finding.verdict == CheckVerdict::NotSeen && checks.contains_key(&finding.check) {
            continue;
        }
        let since = known.filter(|known| known.verdict == finding.verdict).map(|known| known.last_transition_time.clone());
        let result = CheckResult {
            name: finding.check.clone(),
            verdict: finding.verdict.clone(),
            message: finding.seen.chars().take(LONGEST_MESSAGE).collect(),
            last_transition_time: since.unwrap_or_else(|| second.clone()),
        };
        checks.insert(finding.check.clone(), result);
    }
    let checks: Vec<CheckResult> = checks.into_values().collect();
    let (status, reason, message) = summary(&checks);
    let old = before.conditions.iter().find(|condition| condition.type_ == DiagnosisConditionType::Enforced && condition.status == status);
    let condition = DiagnosisCondition {
        type_: DiagnosisConditionType::Enforced,
        status,
        reason,
        message: message.chars().take(LONGEST_MESSAGE).collect(),
        last_transition_time: old.map_or(second, |old| old.last_transition_time.clone()),
    };
    DiagnosisStatus { conditions: vec![condition], examined_at: Some(MicroTime(now)), checks }
}

fn summary(checks: &[CheckResult]) -> (ConditionStatus, DiagnosisReason, String) {
    let of = |verdict: &CheckVerdict| checks.iter().filter(|result| result.verdict == *verdict).collect::<Vec<_>>();
    let named = |results: &[&CheckResult]| results.iter().map(|result| result.name.as_str()).collect::<Vec<_>>().join(", ");
    let (failing, not_seen) = (of(&CheckVerdict::Fails), of(&CheckVerdict::NotSeen));
    if !failing.is_empty() {
        return (ConditionStatus::False, DiagnosisReason::ChecksFail, format!("failing: {}", named(&failing)));
    }
    if !not_seen.is_empty() {
        return (ConditionStatus::Unknown, DiagnosisReason::NotEverythingSeen, format!("not seen: {}", named(&not_seen)));
    }
    (ConditionStatus::True, DiagnosisReason::EverythingHolds, format!("{} checks hold", checks.len()))
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

    fn verdicts(status: &DiagnosisStatus) -> Vec<(&str, &str)> {
        status.checks.iter().map(|result| (result.name.as_str(), result.verdict.as_str())).collect()
    }

    #[test]
    fn what_fails_has_failed_twice() {
        let fails = || vec![found(Check::NoToken, CheckVerdict::Fails)];
        assert_eq!(examined_twice(&fails(), fails()), fails());
        let once = examined_twice(&[found(Check::NoToken, CheckVerdict::NotSeen)], fails());
        assert_eq!((&once[0].verdict, once[0].seen.as_str()), (&CheckVerdict::NotSeen, "seen once, and not twice: seen"));
        assert_eq!(examined_twice(&fails(), vec![found(Check::NoToken, CheckVerdict::Holds)])[0].verdict, CheckVerdict::Holds);
    }

    #[test]
    fn what_has_failed_fails_until_it_is_seen_to_hold() {
        let failed = status_of(&DiagnosisStatus::default(), &[found(Check::NoToken, CheckVerdict::Fails)], at(1));
        assert_eq!(failed.conditions[0].message, "failing: NoToken");
        let not_seen = status_of(&failed, &[found(Check::NoToken, CheckVerdict::NotSeen)], at(2));
        assert_eq!(verdicts(&not_seen), [("NoToken", "Fails")]);
        let not_tried = status_of(&failed, &[found(Check::NotRoot, CheckVerdict::Holds)], at(3));
        assert_eq!(verdicts(&not_tried), [("NotRoot", "Holds"), ("NoToken", "Fails")]);
        assert_eq!(not_tried.checks[1].last_transition_time, Time(at(1)));
        assert_eq!(not_tried.conditions[0].last_transition_time, Time(at(1)), "it was not enforced before");
        let holds = status_of(&not_tried, &[found(Check::NoToken, CheckVerdict::Holds)], at(4));
        assert_eq!(verdicts(&holds), [("NoToken", "Holds")]);
        assert_eq!((holds.conditions[0].status, holds.conditions[0].message.as_str()), (ConditionStatus::True, "1 checks hold"));
        assert_eq!(holds.examined_at, Some(MicroTime(at(4))));
    }

    #[test]
    fn what_could_not_be_looked_at_is_not_called_good() {
        let findings = [found(Check::NoToken, CheckVerdict::Holds), found(Check::CpuLimited, CheckVerdict::NotSeen)];
        let status = status_of(&DiagnosisStatus::default(), &findings, at(1));
        let condition = &status.conditions[0];
        assert_eq!((condition.status, &condition.reason), (ConditionStatus::Unknown, &DiagnosisReason::NotEverythingSeen));
        assert_eq!(condition.message, "not seen: CpuLimited");
    }
}
