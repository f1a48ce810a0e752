use paddock_crds::{Decision, PolicyKind, TakenPolicy, Verdict};
use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use crate::{Ask, Outcome, decide};

const RUNTIMES: &str = r#"[{ "name": "python", "image": "i", "command": ["/p"] }]"#;

fn policy(kind: PolicyKind, name: &str, effect: Effect, capabilities: &Value) -> Policy {
    let taken = TakenPolicy { kind, name: name.into(), uid: name.into(), author: None, generation: 1, hash: String::new() };
    let mut rules = json!({ "capabilities": capabilities });
    if effect == Effect::Allow {
        rules["runtimes"] = serde_json::from_str(RUNTIMES).unwrap();
    }
    Policy::new(taken, effect, serde_json::from_value(rules).unwrap())
}

fn base(capabilities: &Value) -> Policy {
    policy(PolicyKind::ClusterSandboxPolicy, "base", Effect::Allow, capabilities)
}

fn own(capabilities: &Value) -> Policy {
    policy(PolicyKind::SandboxPolicy, "own", Effect::Restrict, capabilities)
}

fn secret(name: &str) -> Object {
    Object { kind: ObjectKind::Secret, name: name.into() }
}

fn labels(tier: &str) -> Found {
    Found::Labels([("tier".to_owned(), tier.to_owned())].into())
}

fn forbidden() -> Found {
    Found::Unusable { reason: Reason::CapabilityForbidden, rule: "access of the requester".into(), message: "the requester may not".into() }
}

fn asked(policies: &[Policy], capabilities: Value, objects: Objects) -> Outcome {
    let ask = Ask {
        runtime: "python".into(),
        resources: paddock_crds::ResourceAmounts::default(),
        timeout_seconds: None,
        grace_period_seconds: None,
        priority: None,
        capabilities: serde_json::from_value(capabilities).unwrap(),
        objects,
        at_gateway: AtGateway::new(),
        gateway: crate::Gateway::Absent,
    };
    decide(policies, &ask)
}

/// What was answered about the Secret `smtp`: granted or not, and by which rule.
fn answer(policies: &[Policy], found: Option<Found>) -> (bool, String) {
    let objects = found.map(|found| (secret("smtp"), found)).into_iter().collect();
    let outcome = asked(policies, json!({ "secrets": ["smtp"] }), objects);
    let decision = outcome.decisions.iter().find(|decision| decision.permission == "secrets:smtp").unwrap();
    assert_eq!(outcome.result.is_ok(), decision.verdict == Verdict::Granted);
    (decision.verdict == Verdict::Granted, decision.rule.clone())
}

#[rstest]
#[case::by_name(vec![base(&json!({ "secrets": [{ "name": "smtp" }] }))], labels("x"), true, "ClusterSandboxPolicy/base: capabilities.secrets[smtp]")]
#[case::by_label(vec![base(&json!({ "secrets": [{ "name": "a" }, { "selector": { "matchLabels": { "tier": "gold" } } }] }))], labels("gold"), true, "ClusterSandboxPolicy/base: capabilities.secrets[1]")]
#[case::of_another_label(vec![base(&json!({ "secrets": [{ "selector": { "matchLabels": { "tier": "gold" } } }] }))], labels("tin"), false, "ClusterSandboxPolicy/base: capabilities.secrets")]
#[case::of_another_name(vec![base(&json!({ "secrets": [{ "name": "other" }] }))], labels("x"), false, "ClusterSandboxPolicy/base: capabilities.secrets")]
#[case::all(vec![base(&json!({ "secrets": [{ "selector": {} }] }))], labels("x"), true, "ClusterSandboxPolicy/base: capabilities.secrets[0]")]
#[case::silence_of_one_that_allows(vec![base(&json!({ "data": [{ "selector": {} }] })), own(&json!({ "secrets": [{ "selector": {} }] }))], labels("x"), false, "ClusterSandboxPolicy/base: capabilities.secrets")]
#[case::silence_of_one_that_restricts(vec![base(&json!({ "secrets": [{ "selector": {} }] })), own(&json!({}))], labels("x"), true, "ClusterSandboxPolicy/base: capabilities.secrets[0]")]
#[case::an_empty_list(vec![base(&json!({ "secrets": [{ "selector": {} }] })), own(&json!({ "secrets": [] }))], labels("x"), false, "SandboxPolicy/own: capabilities.secrets")]
#[case::both(vec![own(&json!({ "secrets": [{ "name": "smtp" }] })), base(&json!({ "secrets": [{ "selector": {} }] }))], labels("x"), true, "SandboxPolicy/own: capabilities.secrets[smtp]")]
#[case::granted_and_forbidden(vec![base(&json!({ "secrets": [{ "name": "smtp" }] }))], forbidden(), false, "access of the requester")]
#[case::perhaps_granted_and_forbidden(vec![base(&json!({ "secrets": [{ "selector": { "matchLabels": { "tier": "gold" } } }] }))], forbidden(), false, "access of the requester")]
#[case::refused_and_forbidden(vec![base(&json!({ "secrets": [] }))], forbidden(), false, "ClusterSandboxPolicy/base: capabilities.secrets")]
fn a_secret_is_granted_by_name_or_label(#[case] policies: Vec<Policy>, #[case] found: Found, #[case] granted: bool, #[case] rule: &str) {
    assert_eq!(answer(&policies, Some(found)), (granted, rule.to_owned()));
}

#[test]
fn of_what_nothing_is_known_is_granted_by_name_alone() {
    let unlabelled = json!({ "matchExpressions": [{ "key": "tier", "operator": "DoesNotExist" }] });
    assert!(answer(&[base(&json!({ "secrets": [{ "name": "smtp" }] }))], None).0);
    assert!(!answer(&[base(&json!({ "secrets": [{ "selector": unlabelled }] }))], None).0);
}

#[test]
fn only_what_might_be_granted_is_looked_at() {
    let gold = json!({ "secrets": [{ "name": "smtp" }, { "selector": { "matchLabels": { "tier": "gold" } } }] });
    let smtp = json!({ "secrets": [{ "name": "smtp" }] });
    assert!(might_be_granted(&[base(&gold)], &secret("any")));
    assert!(might_be_granted(&[base(&gold), own(&smtp)], &secret("smtp")));
    assert!(!might_be_granted(&[base(&gold), own(&smtp)], &secret("other")));
    assert!(!might_be_granted(&[base(&json!({}))], &secret("smtp")));
    assert!(!might_be_granted(&[base(&gold)], &Object { kind: ObjectKind::ConfigMap, name: "any".into() }));
    for name in ["../pods/x", "a/b", "", "A", ".a", "a-", "a b", &"a".repeat(254)] {
        assert!(!might_be_granted(&[base(&gold)], &secret(name)), "{name}");
        let outcome = asked(&[base(&json!({ "secrets": [{ "selector": {} }] }))], json!({ "secrets": [name] }), Objects::new());
        assert_eq!(outcome.result.unwrap_err().reason, Reason::CapabilityRefused, "{name}");
    }
}

#[test]
fn those_who_grant_answer_for_it_and_not_those_who_leave_it_to_others() {
    let policies = [base(&json!({ "secrets": [{ "selector": {} }] })), own(&json!({})), own(&json!({ "secrets": [{ "name": "other" }] }))];
    let names: Vec<&str> = granting(&policies, &secret("smtp"), &BTreeMap::new()).iter().map(|policy| policy.taken.name.as_str()).collect();
    assert_eq!(names, ["base"]);
}

#[test]
fn each_capability_is_answered_by_itself_and_a_run_may_take_what_it_gets() {
    let policies = [base(&json!({ "secrets": [{ "name": "a" }], "data": [{ "name": "d" }], "subprocess": true }))];
    let capabilities =
        json!({ "network": ["x.example"], "secrets": ["b", "a", "a"], "data": ["d"], "dynamicCode": true, "subprocess": true });
    let outcome = asked(&policies, capabilities.clone(), Objects::new());
    let told = |decisions: &[Decision]| -> Vec<(String, Verdict)> {
        let of_capabilities = decisions.iter().filter(|decision| !decision.permission.starts_with("runtime"));
        of_capabilities.map(|decision| (decision.permission.clone(), decision.verdict.clone())).collect()
    };
    let expected = [
        ("network:x.example:443", Verdict::Refused),
        ("secrets:a", Verdict::Granted),
        ("secrets:b", Verdict::Refused),
        ("data:d", Verdict::Granted),
        ("dynamicCode", Verdict::Refused),
        ("subprocess", Verdict::Granted),
    ]
    .map(|(permission, verdict)| (permission.to_owned(), verdict));
    assert_eq!(told(&outcome.decisions), expected);
    let refusal = outcome.result.unwrap_err();
    assert_eq!(
        refusal.message,
        "the capability network:x.example:443 is not granted (ClusterSandboxPolicy/base: capabilities.network); and 2 more, see status.decisions"
    );

    let mut partial = capabilities;
    partial["partial"] = json!(true);
    let outcome = asked(&policies, partial, Objects::new());
    assert_eq!(told(&outcome.decisions), expected);
    let granted = outcome.result.unwrap().capabilities;
    assert_eq!(granted.objects, [secret("a"), Object { kind: ObjectKind::ConfigMap, name: "d".into() }]);
    assert_eq!((granted.dynamic_code, granted.subprocess), (false, true));
}

#[rstest]
#[case::granted(json!({ "subprocess": true }), json!({}), true)]
#[case::taken_back(json!({ "subprocess": true }), json!({ "subprocess": false }), false)]
#[case::not_given_by_one_that_restricts(json!({}), json!({ "subprocess": true }), false)]
#[case::by_both(json!({ "subprocess": true }), json!({ "subprocess": true }), true)]
fn a_word_needs_every_policy_that_says_something(#[case] base_says: Value, #[case] own_says: Value, #[case] granted: bool) {
    let outcome = asked(&[base(&base_says), own(&own_says)], json!({ "subprocess": true }), Objects::new());
    assert_eq!(outcome.result.is_ok_and(|grant| grant.capabilities.subprocess), granted);
}

#[test]
fn who_does_not_ask_gets_nothing() {
    let all = json!({ "secrets": [{ "selector": {} }], "data": [{ "selector": {} }], "subprocess": true, "dynamicCode": true });
    assert_eq!(asked(&[base(&all)], json!({}), Objects::new()).result.unwrap().capabilities, CapabilityGrant::default());
}

#[test]
fn a_selector_that_is_not_understood_is_a_problem_of_the_policy() {
    let near = json!({ "data": [{ "name": "a" }, { "selector": { "matchExpressions": [{ "key": "a", "operator": "Near" }] } }, {}] });
    let problems: Vec<String> = base(&near).problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        problems,
        [
            "capabilities.data[1]: unknown operator \"Near\" in a label selector",
            "capabilities.data[2]: exactly one of name and selector must be set"
        ]
    );
}
