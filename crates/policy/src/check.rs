//! What is wrong with one policy by itself. A run under a policy with a problem is refused: nothing is guessed.

use paddock_crds::{Effect, PolicyRules, Problem};
use paddock_mask::{Masker, Rule};

/// Everything that is wrong beside what is read once (amounts, networks, expressions), in the order of the fields.
pub(crate) fn problems(rules: &PolicyRules, effect: Effect) -> Vec<Problem> {
    let mut found = Vec::new();
    runtimes(rules, effect, &mut found);
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
    #[case::wide(json!({ "limits": { "maxTimeoutSeconds": 60 } }), &[])]
    #[case::narrow_timeout(json!({ "limits": { "maxTimeoutSeconds": 5 } }), &[])]
    #[case::half_a_runtime(json!({ "runtimes": [{ "name": "python", "image": "x" }] }), &["runtimes[python]: image and command are set together, or neither is"])]
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
}
