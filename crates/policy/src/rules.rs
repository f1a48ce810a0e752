//! The expressions of policies: every one of every policy must hold.

use std::borrow::Borrow;

use paddock_crds::{Decision, PolicyRule, Problem, Reason, Verdict};

use crate::decide::{Policy, Refusal, named};
use crate::expression::{Expression, variables};
use crate::subject::Subject;

/// A rule that can be evaluated.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Named {
    name: String,
    expression: Expression,
    message: Option<String>,
}

/// A rule that could not be evaluated on a run: its author has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedRule {
    /// UID of the policy.
    pub policy_uid: String,
    /// Generation of the policy.
    pub generation: i64,
    /// The field that holds it: `rules[name]` or `approvals[name].when`.
    pub rule: String,
    /// Why.
    pub why: String,
}

/// What the rules say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RulesJudged {
    /// One for each rule.
    pub decisions: Vec<Decision>,
    /// Why the run is refused.
    pub refusal: Option<Refusal>,
    /// Those that could not be evaluated.
    pub failed: Vec<FailedRule>,
}

/// Compiles; what cannot be compiled is a problem of the policy.
pub(crate) fn compile(rules: &[PolicyRule], problems: &mut Vec<Problem>) -> Vec<Named> {
    let mut compiled = Vec::new();
    for rule in rules {
        match Expression::compile(&rule.expression) {
            Ok(expression) => compiled.push(Named { name: rule.name.clone(), expression, message: rule.message.clone() }),
            Err(message) => problems.push(Problem { field: format!("rules[{}].expression", rule.name), message }),
        }
    }
    compiled
}

/// Whether there is anything to evaluate.
fn has_rules(policies: &[impl Borrow<Policy>]) -> bool {
    policies.iter().any(|policy| !policy.borrow().expressions.is_empty())
}

/// Evaluates every rule of every policy. The first that does not hold gives the reason.
pub fn judge_rules(policies: &[impl Borrow<Policy>], subject: &Subject<'_>) -> RulesJudged {
    let mut judged = RulesJudged::default();
    if !has_rules(policies) {
        return judged;
    }
    let variables = variables(subject);
    for policy in policies.iter().map(Borrow::borrow) {
        for rule in &policy.expressions {
            let holds = variables.as_ref().map_err(Clone::clone).and_then(|variables| rule.expression.holds(variables));
            judged.take(policy, rule, holds);
        }
    }
    judged
}

impl RulesJudged {
    fn take(&mut self, policy: &Policy, rule: &Named, holds: Result<bool, String>) {
        let where_ = named(policy, &format!("rules[{}]", rule.name));
        let verdict = if holds == Ok(true) { Verdict::Granted } else { Verdict::Refused };
        self.decisions.push(Decision { permission: format!("rule:{}", rule.name), verdict, rule: where_.clone() });
        let refusal = match holds {
            Ok(true) => return,
            Ok(false) => {
                let message = match &rule.message {
                    Some(message) => format!("{message} ({where_})"),
                    None => format!("the run is not what the rule {} demands ({where_})", rule.name),
                };
                Refusal { reason: Reason::RuleNotSatisfied, message }
            }
            Err(why) => {
                let message = format!("the rule {} cannot be evaluated on the run: {why} ({where_})", rule.name);
                let (policy_uid, generation) = (policy.taken.uid.clone(), policy.taken.generation);
                self.failed.push(FailedRule { policy_uid, generation, rule: format!("rules[{}]", rule.name), why });
                Refusal { reason: Reason::RuleFailed, message }
            }
        };
        self.refusal.get_or_insert(refusal);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;
    use paddock_crds::{Effect, PolicyKind, TakenPolicy};
    use serde_json::json;

    use super::*;
    use crate::capabilities::CapabilityGrant;
    use crate::risk::risk;
    use crate::subject::{RunFacts, TenantFacts, UserFacts};

    fn policy(name: &str, expressions: &[&str]) -> Policy {
        let kind = PolicyKind::SandboxPolicy;
        let taken = TakenPolicy { kind, name: name.into(), uid: name.into(), author: None, generation: 3, hash: String::new() };
        let rules: Vec<_> =
            expressions.iter().enumerate().map(|(n, expression)| json!({ "name": format!("r{n}"), "expression": expression })).collect();
        Policy::new(taken, Effect::Restrict, serde_json::from_value(json!({ "rules": rules })).unwrap())
    }

    fn judged(policies: &[Policy]) -> RulesJudged {
        let labels = BTreeMap::new();
        let run = RunFacts { secrets: vec!["smtp"], subprocess: true, ..RunFacts::plain(&labels) };
        let tenant = TenantFacts { name: "team", labels: &labels };
        let requester = UserFacts { username: "jane", groups: &[] };
        let risk = risk(&CapabilityGrant::default(), None);
        let (end_user, preflight, now) = (None, None.into(), Timestamp::UNIX_EPOCH);
        judge_rules(policies, &Subject { run, tenant, requester, end_user, risk: (&risk).into(), preflight, now })
    }

    #[test]
    fn every_rule_of_every_policy_must_hold_and_each_is_told() {
        let all = [policy("a", &["run.name == 'run'", "true"]), policy("b", &["run.timeoutSeconds < 30", "run.name == 'other'"])];
        assert_eq!(judged(&all[..1]).refusal, None);
        let both = judged(&all);
        let told: Vec<String> = both.decisions.iter().map(|told| format!("{} {:?} {}", told.permission, told.verdict, told.rule)).collect();
        assert_eq!(
            told,
            [
                "rule:r0 Granted SandboxPolicy/a: rules[r0]",
                "rule:r1 Granted SandboxPolicy/a: rules[r1]",
                "rule:r0 Refused SandboxPolicy/b: rules[r0]",
                "rule:r1 Refused SandboxPolicy/b: rules[r1]",
            ]
        );
        let refusal = both.refusal.unwrap();
        assert_eq!(refusal.reason, Reason::RuleNotSatisfied);
        assert_eq!(refusal.message, "the run is not what the rule r0 demands (SandboxPolicy/b: rules[r0])");
        assert!(both.failed.is_empty());
    }

    #[test]
    fn a_rule_that_cannot_be_evaluated_refuses_and_its_author_can_be_told() {
        let judged = judged(&[policy("a", &["run.labels.team == 'a'"])]);
        assert_eq!(judged.refusal.unwrap().reason, Reason::RuleFailed);
        let failed = FailedRule { policy_uid: "a".into(), generation: 3, rule: "rules[r0]".into(), why: "there is no team".into() };
        assert_eq!(judged.failed, [failed]);
    }

    #[test]
    fn one_that_cannot_be_compiled_is_a_problem_of_the_policy() {
        let broken = policy("a", &["true", "run."]);
        assert_eq!(broken.problems.len(), 1);
        assert_eq!(broken.problems[0].field, "rules[r1].expression");
    }
}
