//! What is wrong with one policy by itself. A run under a policy with a problem is refused: nothing is guessed.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Raw;
use paddock_crds::script_run::quantity_of_bytes;
use paddock_crds::{Effect, PolicyRules, Problem, ResourceAmounts};
use paddock_mask::{Masker, Rule};

use crate::decide::{DEFAULT_MEMORY, DEFAULT_SCRATCH, LEAST_MEMORY};
use crate::quantity::Quantity;

type Amount = (&'static str, fn(&ResourceAmounts) -> Option<&Raw>);

const AMOUNTS: [Amount; 3] = [
    ("memory", |amounts| amounts.memory.as_ref()),
    ("cpu", |amounts| amounts.cpu.as_ref()),
    ("scratch", |amounts| amounts.scratch.as_ref()),
];

/// Everything that is wrong, in the order of the fields.
pub(crate) fn problems(rules: &PolicyRules, effect: Effect) -> Vec<Problem> {
    let mut found = Vec::new();
    runtimes(rules, effect, &mut found);
    amounts(rules, &mut found);
    if found.is_empty() {
        memory_holds_scratch(rules, effect, &mut found);
    }
    seconds(rules, &mut found);
    patterns(rules, &mut found);
    crate::capabilities::problems(rules, &mut found);
    found
}

fn problem(field: impl Into<String>, message: impl Into<String>) -> Problem {
    Problem { field: field.into(), message: message.into() }
}

/// What a policy that allows leaves open another one could fill: then one policy more would grant what the others do not.
fn runtimes(rules: &PolicyRules, effect: Effect, found: &mut Vec<Problem>) {
    for runtime in rules.runtimes.iter().flatten() {
        let field = || format!("runtimes[{}]", runtime.name);
        if runtime.image.is_some() != runtime.command.is_some() {
            found.push(problem(field(), "image and command are set together, or neither is"));
        } else if effect == Effect::Allow && runtime.image.is_none() {
            found.push(problem(field(), "a policy that allows says which image and command it is"));
        }
    }
}

fn amounts(rules: &PolicyRules, found: &mut Vec<Problem>) {
    for (name, of) in AMOUNTS {
        let [default, max] = [&rules.limits.default, &rules.limits.max].map(|amounts| amounts.as_ref().and_then(of));
        let mut values = Vec::new();
        for (which, raw) in [("default", default), ("max", max)] {
            match raw.map(|raw| Quantity::parse(&raw.0)) {
                Some(Ok(value)) => values.push(value),
                Some(Err(error)) => found.push(problem(format!("limits.{which}.{name}"), error.0)),
                None => {}
            }
        }
        if let ([default_value, max_value], Some(default), Some(max)) = (values.as_slice(), default, max)
            && default_value > max_value
        {
            found.push(problem(format!("limits.default.{name}"), format!("{} is more than limits.max.{name}, {}", default.0, max.0)));
        }
    }
}

/// What a run gets that does not ask must be something that can be had.
fn memory_holds_scratch(rules: &PolicyRules, effect: Effect, found: &mut Vec<Problem>) {
    let said = |amounts: &Option<ResourceAmounts>, (_, of): Amount| {
        amounts.as_ref().and_then(of).and_then(|raw| Quantity::parse(&raw.0).ok()).map(Quantity::units)
    };
    let given = |amount: Amount, built_in: u64| {
        let default = said(&rules.limits.default, amount).or((effect == Effect::Allow).then_some(built_in));
        let max = said(&rules.limits.max, amount);
        default.map_or(max, |default| Some(max.map_or(default, |max| max.min(default))))
    };
    let (Some(memory), scratch) = (given(AMOUNTS[0], DEFAULT_MEMORY.0), given(AMOUNTS[2], DEFAULT_SCRATCH.0)) else { return };
    let scratch = scratch.unwrap_or(0);
    if memory < scratch.saturating_add(LEAST_MEMORY) {
        let [memory, scratch, least] = [memory, scratch, LEAST_MEMORY].map(|bytes| quantity_of_bytes(bytes).0);
        let message = format!("a run that does not ask gets {memory} of memory, which must hold scratch, {scratch}, and {least} more");
        found.push(problem("limits", message));
    }
}

fn seconds(rules: &PolicyRules, found: &mut Vec<Problem>) {
    let limits = &rules.limits;
    if let (Some(default), Some(max)) = (limits.default_timeout_seconds, limits.max_timeout_seconds)
        && default > max
    {
        found.push(problem("limits.defaultTimeoutSeconds", format!("{default} is more than limits.maxTimeoutSeconds, {max}")));
    }
}

fn patterns(rules: &PolicyRules, found: &mut Vec<Problem>) {
    for rule in &rules.output.mask.rules {
        let pattern = Rule { name: rule.name.clone(), pattern: rule.pattern.clone() };
        if let Err(invalid) = Masker::new([].into(), &[pattern], &[]) {
            found.push(problem(format!("output.mask.rules[{}]", rule.name), invalid.to_string()));
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    #[rstest]
    #[case::nothing(json!({}), &[])]
    #[case::wide(json!({ "limits": { "max": { "memory": "1Gi", "cpu": "2", "scratch": "100Mi" }, "maxTimeoutSeconds": 60 } }), &[])]
    #[case::narrow_timeout(json!({ "limits": { "maxTimeoutSeconds": 5 } }), &[])]
    #[case::half_a_runtime(json!({ "runtimes": [{ "name": "python", "image": "x" }] }), &["runtimes[python]: image and command are set together, or neither is"])]
    #[case::no_quantity(json!({ "limits": { "max": { "cpu": "two" } } }), &["limits.max.cpu: \"two\" is not a positive quantity"])]
    #[case::more_than_the_most(json!({ "limits": { "default": { "memory": "2Gi" }, "max": { "memory": "1Gi" } } }), &["limits.default.memory: 2Gi is more than limits.max.memory, 1Gi"])]
    #[case::longer_than_the_longest(json!({ "limits": { "defaultTimeoutSeconds": 9, "maxTimeoutSeconds": 8 } }), &["limits.defaultTimeoutSeconds: 9 is more than limits.maxTimeoutSeconds, 8"])]
    #[case::no_pattern(json!({ "output": { "mask": { "rules": [{ "name": "bad", "pattern": "(?=x)" }] } } }), &["output.mask.rules[bad]: masking rule bad"])]
    fn every_problem_is_named(#[case] rules: Value, #[case] expected: &[&str]) {
        let rules: PolicyRules = serde_json::from_value(rules).unwrap();
        for effect in [Effect::Allow, Effect::Restrict] {
            let found: Vec<String> = problems(&rules, effect).iter().map(ToString::to_string).collect();
            assert_eq!(found.len(), expected.len(), "{found:?}");
            assert!(found.iter().zip(expected).all(|(found, expected)| found.starts_with(expected)), "{found:?}");
        }
    }

    #[test]
    fn who_allows_says_what_a_runtime_is() {
        let rules: PolicyRules = serde_json::from_value(json!({ "runtimes": [{ "name": "python" }] })).unwrap();
        assert_eq!(problems(&rules, Effect::Restrict), []);
        assert_eq!(
            problems(&rules, Effect::Allow)[0].to_string(),
            "runtimes[python]: a policy that allows says which image and command it is"
        );
    }

    #[rstest]
    #[case::too_little(json!({ "max": { "memory": "40Mi" } }), true, false)]
    #[case::too_little_for_all(json!({ "max": { "memory": "16Mi" } }), true, true)]
    #[case::too_much_scratch(json!({ "default": { "scratch": "100Mi" } }), true, false)]
    #[case::both(json!({ "default": { "memory": "64Mi", "scratch": "48Mi" } }), true, true)]
    #[case::enough(json!({ "default": { "memory": "64Mi", "scratch": "32Mi" } }), false, false)]
    fn memory_must_hold_scratch(#[case] limits: Value, #[case] allows: bool, #[case] restricts: bool) {
        let rules: PolicyRules = serde_json::from_value(json!({ "limits": limits })).unwrap();
        assert_eq!([Effect::Allow, Effect::Restrict].map(|effect| !problems(&rules, effect).is_empty()), [allows, restricts]);
    }
}
