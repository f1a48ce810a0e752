use paddock_crds::{Effect, Finding, FindingKind, Language, PolicyKind, TakenPolicy, Unclear};
use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use crate::capabilities::{AtGateway, Objects};
use crate::containment::Facts;
use crate::decide::{Ask, decide};
use crate::judge::judge_denied;
use crate::network::Gateway;

fn policy(name: &str, preflight: &Value) -> Policy {
    let kind = PolicyKind::ClusterSandboxPolicy;
    let taken = TakenPolicy { kind, name: name.into(), uid: String::new(), author: None, generation: 1, hash: String::new() };
    Policy::new(taken, Effect::Restrict, serde_json::from_value(json!({ "preflight": preflight })).unwrap())
}

fn shows(imports: &[&str]) -> Preflight {
    Preflight {
        verdict: PreflightVerdict::NoFindings,
        language: Some(Language::Python),
        unclear: None,
        message: None,
        imports: imports.iter().map(|&module| module.to_owned()).collect(),
        hosts: Vec::new(),
        findings: Vec::new(),
        dynamic_code: false,
        subprocess: false,
    }
}

fn in_javascript(imports: &[&str]) -> Preflight {
    Preflight { language: Some(Language::JavaScript), ..shows(imports) }
}

fn unclear() -> Preflight {
    Preflight::unclear(Some(Language::Python), Unclear::SyntaxError, "line 1, column 2: what is this")
}

fn starts_programs() -> Preflight {
    let finding = Finding { kind: FindingKind::Subprocess, line: 3, what: "os.system".into() };
    Preflight { verdict: PreflightVerdict::Findings, findings: vec![finding], subprocess: true, ..shows(&["os"]) }
}

fn computes() -> Preflight {
    let finding = |kind, line, what: &str| Finding { kind, line, what: what.into() };
    let findings = vec![finding(FindingKind::Subprocess, 1, "subprocess"), finding(FindingKind::ComputedImport, 2, "__import__")];
    Preflight { verdict: PreflightVerdict::Findings, findings, dynamic_code: true, subprocess: true, ..shows(&["json"]) }
}

fn reason(preflight: &Value, shows: &Preflight) -> Option<Reason> {
    judge_preflight(&[policy("a", preflight)], shows, &CapabilityGrant::default()).1.map(|refusal| refusal.reason)
}

#[rstest]
#[case::silent(json!({}), unclear(), None)]
#[case::allowed(json!({ "unclear": "Allow", "undeclared": "Allow" }), unclear(), None)]
#[case::unclear(json!({ "unclear": "Refuse" }), unclear(), Some(Reason::ScriptUnclear))]
#[case::not_examined(json!({ "unclear": "Refuse" }), Preflight::not_examined(), Some(Reason::ScriptUnclear))]
#[case::clear(json!({ "unclear": "Refuse" }), starts_programs(), None)]
#[case::undeclared(json!({ "undeclared": "Refuse" }), starts_programs(), Some(Reason::CapabilityUndeclared))]
#[case::nothing_to_declare(json!({ "undeclared": "Refuse" }), shows(&["os"]), None)]
#[case::what_is_not_known_shows_nothing(json!({ "undeclared": "Refuse" }), unclear(), None)]
#[case::import(json!({ "imports": ["os"] }), shows(&["os", "os.path"]), None)]
#[case::part_of_a_module(json!({ "imports": ["os.path"] }), shows(&["os"]), Some(Reason::ImportNotAllowed))]
#[case::longer_name(json!({ "imports": ["os"] }), shows(&["ossaudiodev"]), Some(Reason::ImportNotAllowed))]
#[case::none(json!({ "imports": [] }), shows(&["os"]), Some(Reason::ImportNotAllowed))]
#[case::nothing_imported(json!({ "imports": [] }), shows(&[]), None)]
#[case::of_node(json!({ "imports": ["fs", "node:os", "lodash"] }), in_javascript(&["node:fs/promises", "os", "lodash/fp"]), None)]
#[case::another_package(json!({ "imports": ["socket"] }), in_javascript(&["socket.io"]), Some(Reason::ImportNotAllowed))]
#[case::another_folder(json!({ "imports": ["."] }), in_javascript(&["../x.mjs"]), Some(Reason::ImportNotAllowed))]
#[case::unclear_imports(json!({ "imports": ["os"] }), unclear(), Some(Reason::ImportNotAllowed))]
#[case::computed_imports(json!({ "imports": ["json"] }), computes(), Some(Reason::ImportNotAllowed))]
fn demands(#[case] preflight: Value, #[case] shows: Preflight, #[case] expected: Option<Reason>) {
    assert_eq!(reason(&preflight, &shows), expected);
}

#[test]
fn what_is_shown_may_be_asked_for() {
    let undeclared = [policy("a", &json!({ "undeclared": "Refuse" }))];
    let granted = CapabilityGrant { subprocess: true, ..CapabilityGrant::default() };
    assert_eq!(judge_preflight(&undeclared, &starts_programs(), &granted).1, None);
    let (decisions, refusal) = judge_preflight(&undeclared, &starts_programs(), &CapabilityGrant::default());
    let message =
        "the script shows subprocess (os.system in line 3), which the run was not granted (ClusterSandboxPolicy/a: preflight.undeclared)";
    assert_eq!(refusal.map(|refusal| refusal.message).as_deref(), Some(message));
    assert_eq!((decisions[0].permission.as_str(), &decisions[0].verdict), ("preflight:undeclared", &Verdict::Refused));
}

#[rstest]
#[case::named(&["os"], shows(&["json", "os.path"]), Some(DeniedImport::Named("os.path".into())))]
#[case::other(&["os"], shows(&["json"]), None)]
#[case::nobody_knows(&["os"], unclear(), Some(DeniedImport::Unknown))]
#[case::no_list(&[], unclear(), None)]
fn deny_lists(#[case] list: &[&str], #[case] shows: Preflight, #[case] expected: Option<DeniedImport>) {
    let list: Vec<String> = list.iter().map(|&module| module.to_owned()).collect();
    assert_eq!(denied(&list, &shows), expected);
}

/// What is named is what is missing.
#[rstest]
#[case(false, false, Some("dynamicCode and subprocess (subprocess in line 1) (__import__ in line 2)"))]
#[case(true, false, Some("subprocess (subprocess in line 1)"))]
#[case(false, true, Some("dynamicCode (__import__ in line 2)"))]
#[case(true, true, None)]
fn what_was_not_granted_is_named(#[case] dynamic_code: bool, #[case] subprocess: bool, #[case] expected: Option<&str>) {
    let granted = CapabilityGrant { dynamic_code, subprocess, ..CapabilityGrant::default() };
    let refusal = judge_preflight(&[policy("a", &json!({ "undeclared": "Refuse" }))], &computes(), &granted).1;
    let expected = expected
        .map(|named| format!("the script shows {named}, which the run was not granted (ClusterSandboxPolicy/a: preflight.undeclared)"));
    assert_eq!(refusal.map(|refusal| refusal.message), expected);
}

fn any_rules() -> impl Strategy<Value = Value> {
    let strictness = || prop::option::of(prop_oneof![Just("Allow"), Just("Refuse")]);
    let imports = prop::option::of(prop::collection::vec(prop_oneof![Just("os"), Just("os.path"), Just("json")], 0..3));
    (strictness(), strictness(), imports).prop_map(|(unclear, undeclared, imports)| {
        let fields = [("unclear", json!(unclear)), ("undeclared", json!(undeclared)), ("imports", json!(imports))];
        fields.into_iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| (name.to_owned(), value)).collect()
    })
}

fn any_text() -> impl Strategy<Value = Preflight> {
    prop_oneof![Just(unclear()), Just(starts_programs()), Just(computes()), Just(shows(&["os.path"])), Just(shows(&["json"]))]
}

/// What comes of a text that each language shows another way, or none: refused, or allowed with this risk.
fn outcome(policies: &[Policy]) -> Result<(), Reason> {
    let run = serde_json::from_value(json!({
        "policyRef": { "kind": "ClusterSandboxPolicy", "name": "0" },
        "script": { "runtime": "any", "source": { "inline": "" } },
    }));
    let ask = Ask::of(&run.unwrap(), Objects::new(), AtGateway::new(), Gateway::Absent);
    let grant = decide(policies, &ask).result.map_err(|refusal| refusal.reason)?;
    let text = match grant.runtime.language {
        None => None,
        Some(Language::Python) => Some(shows(&["os.path"])),
        Some(Language::JavaScript) => Some(starts_programs()),
        Some(Language::TypeScript) => Some(unclear()),
    };
    let facts = Facts { preflight: text.as_ref(), ..Facts::default() };
    if let Some((refusal, _)) = judge_denied(policies, facts) {
        return Err(refusal.reason);
    }
    let refusal = judge_preflight(policies, text.as_ref().unwrap_or(&Preflight::not_examined()), &grant.capabilities).1;
    refusal.map_or(Ok(()), |refusal| Err(refusal.reason))
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let language = prop_oneof![Just(None), Just(Some("Python")), Just(Some("JavaScript")), Just(Some("TypeScript"))];
    let denied = prop::collection::vec(prop_oneof![Just("os"), Just("json")], 0..2);
    (any::<bool>(), any::<bool>(), language, any_rules(), denied, 0..1000_u32).prop_map(
        |(allows, offers, language, preflight, denied, number)| {
            let mut runtime = json!({ "name": "any" });
            if allows {
                runtime = json!({ "name": "any", "image": "i", "command": ["/bin/x"] });
            }
            if let Some(language) = language {
                runtime["language"] = json!(language);
            }
            let mut rules = json!({ "preflight": preflight, "deny": { "imports": denied } });
            if offers || allows {
                rules["runtimes"] = json!([runtime]);
            }
            let (kind, effect) =
                if allows { (PolicyKind::ClusterSandboxPolicy, Effect::Allow) } else { (PolicyKind::SandboxPolicy, Effect::Restrict) };
            let taken =
                TakenPolicy { kind, name: number.to_string(), uid: String::new(), author: None, generation: 1, hash: String::new() };
            Policy::new(taken, effect, serde_json::from_value(rules).unwrap())
        },
    )
}

proptest! {
    /// Also where it says another language, or none, by which the text shows something else.
    #[test]
    fn a_language_lets_nothing_past(policies in prop::collection::vec(any_policy(), 1..4), more in any_policy()) {
        let all: Vec<Policy> = policies.iter().cloned().chain([more]).collect();
        prop_assume!(policies.iter().any(|policy| policy.effect == Effect::Allow));
        prop_assert!(outcome(&policies).is_ok() || outcome(&all).is_err(), "{:?} {:?}", outcome(&policies), outcome(&all));
    }

    /// One policy more never allows more, and their order does not matter.
    #[test]
    fn policies_only_narrow(rules in prop::collection::vec(any_rules(), 1..4), text in any_text()) {
        let grant = CapabilityGrant::default();
        let policies: Vec<Policy> = rules.iter().enumerate().map(|(index, rules)| policy(&index.to_string(), rules)).collect();
        let all = judge_preflight(&policies, &text, &grant).1;
        let fewer = judge_preflight(&policies[1..], &text, &grant).1;
        prop_assert!(all.is_some() || fewer.is_none());
        let turned: Vec<Policy> = policies.iter().rev().cloned().collect();
        prop_assert_eq!(all.is_some(), judge_preflight(&turned, &text, &grant).1.is_some());
    }
}
