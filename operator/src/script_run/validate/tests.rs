use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use paddock_crds::{Effect, PreflightVerdict, ResourceAmounts};
use paddock_policy::{Found, Policy};
use rstest::rstest;
use serde_json::json;

use super::super::apply::Done;
use super::super::fixtures::{a_run, at, fixed, policies};
use super::super::queue::{Admission, Full};
use super::super::step::{Seen, Step};
use super::*;

fn text() -> SourceSeen {
    SourceSeen::Text(b"print(1)".to_vec())
}

fn refused(run: &ScriptRun, source: &SourceSeen, policies: &PoliciesSeen) -> Reason {
    validate(run, None, source, policies, &fixed(run), &TextsSeen::default(), at(0)).unwrap_err().refusal.reason
}

#[test]
fn a_stamp_is_read_back_exactly() {
    let requester = requester(a_run().annotations()).unwrap();
    assert_eq!((requester.username.as_str(), requester.uid, requester.groups), ("jane", None, vec!["dev".to_owned(), "a,b".to_owned()]));
}

#[rstest]
#[case(crate::names::REQUESTER)]
#[case(crate::names::REQUESTER_UID)]
#[case(crate::names::REQUESTER_GROUPS)]
fn a_stamp_without_one_of_its_parts_is_none(#[case] part: &str) {
    let mut run = a_run();
    run.annotations_mut().remove(part);
    assert_eq!(refused(&run, &text(), &policies()), Reason::Unstamped);
}

#[test]
fn the_first_thing_that_is_wrong_is_told() {
    let none = PoliciesSeen::default();
    assert_eq!(refused(&a_run(), &text(), &none), Reason::NoClusterPolicy);
    let broken = PoliciesSeen { unusable: Some("x".into()), ..policies() };
    assert_eq!(refused(&a_run(), &text(), &broken), Reason::PolicyInvalid);
    let gone = PoliciesSeen { gone: ["strict".into()].into(), ..policies() };
    assert_eq!(refused(&a_run(), &text(), &gone), Reason::PolicyGone);
    let mut run = a_run();
    run.spec.policy_ref.name = "other".into();
    assert_eq!(refused(&run, &text(), &policies()), Reason::PolicyNotFound);
    let mut run = a_run();
    run.spec.script.runtime = "perl".into();
    assert_eq!(refused(&run, &text(), &policies()), Reason::RuntimeNotAllowed);
    let mut run = a_run();
    run.spec.resources = Some(ResourceAmounts { memory: Some(Quantity("1Ti".into())), ..ResourceAmounts::default() });
    assert_eq!(refused(&run, &text(), &policies()), Reason::LimitExceeded);
    let gone = SourceSeen::Refused(Reason::SourceNotFound, "x".into());
    assert_eq!(refused(&a_run(), &gone, &policies()), Reason::SourceNotFound);
}

#[test]
fn sizes_and_bytes_are_bounded() {
    assert_eq!(refused(&a_run(), &SourceSeen::Text(vec![b'#'; MAX_SCRIPT + 1]), &policies()), Reason::SourceTooLarge);
    assert_eq!(refused(&a_run(), &SourceSeen::Text(b"a\0b".to_vec()), &policies()), Reason::InvalidSpec);
    let refused_for_its_input =
        validate(&a_run(), Some(&"x".repeat(MAX_JOB)), &text(), &policies(), &fixed(&a_run()), &TextsSeen::default(), at(0)).unwrap_err();
    assert_eq!(refused_for_its_input.refusal.reason, Reason::InputTooLarge);
    let mut run = a_run();
    run.spec.script.args = vec!["a\0b".into()];
    assert_eq!(refused(&run, &text(), &policies()), Reason::InvalidSpec);
}

#[test]
fn a_source_that_changed_since_it_was_accepted_is_refused() {
    let mut run = a_run();
    run.status = Some(paddock_crds::ScriptRunStatus { script_hash: Some("other".into()), ..Default::default() });
    assert_eq!(refused(&run, &text(), &policies()), Reason::SourceChanged);
}

#[test]
fn the_digest_covers_what_was_decided() {
    let digest = |change: fn(&mut ScriptRun)| {
        let mut run = a_run();
        change(&mut run);
        validate(&run, None, &text(), &policies(), &fixed(&run), &TextsSeen::default(), at(0)).unwrap().digest
    };
    let same = digest(|_| ());
    assert_eq!(same, digest(|_| ()));
    assert_ne!(same, digest(|run| run.spec.script.args = vec!["x".into()]));
    assert_ne!(same, validate(&a_run(), Some("1"), &text(), &policies(), &fixed(&a_run()), &TextsSeen::default(), at(0)).unwrap().digest);
    assert_ne!(same, digest(|run| run.spec.timeout_seconds = Some(11)));
    let mut other = policies();
    Arc::make_mut(&mut other.taking_part[0]).rules.runtimes.as_mut().unwrap()[0].image = Some("other".into());
    assert_ne!(same, validate(&a_run(), None, &text(), &other, &fixed(&a_run()), &TextsSeen::default(), at(0)).unwrap().digest);
}

/// A policy that grants the Secret `smtp` and the ConfigMap `prices`, and what was found of them.
fn granting() -> PoliciesSeen {
    let mut seen = policies();
    let mut rules = seen.taking_part[0].rules.clone();
    rules.capabilities = serde_json::from_value(json!({ "secrets": [{ "name": "smtp" }], "data": [{ "name": "prices" }] })).unwrap();
    rules.approvals = serde_json::from_value(json!([{ "name": "all" }])).unwrap();
    seen.taking_part = vec![Arc::new(Policy::new(seen.taking_part[0].taken.clone(), Effect::Allow, rules))];
    for (kind, name, value) in [(ObjectKind::Secret, "smtp", "hunter2"), (ObjectKind::ConfigMap, "prices", "a,1")] {
        let object = Object { kind, name: name.into() };
        seen.given.found.insert(object.clone(), Found::Labels(BTreeMap::new()));
        seen.given.contents.insert(object, Content { text: [("key".to_owned(), value.to_owned())].into(), ..Content::default() });
    }
    seen
}

fn asking() -> ScriptRun {
    let mut run = a_run();
    run.spec.capabilities = serde_json::from_value(json!({ "secrets": ["smtp"], "data": ["prices"] })).unwrap();
    run
}

fn validated(seen: &PoliciesSeen) -> Result<ValidRun, Box<Refused>> {
    validate(&asking(), None, &text(), seen, &fixed(&asking()), &TextsSeen::default(), at(0)).map_err(Box::new)
}

#[test]
fn what_is_granted_is_given_and_bound_by_the_digests() {
    let run = validated(&granting()).unwrap();
    let names: Vec<&str> = run.given.iter().map(|(object, _)| object.name.as_str()).collect();
    assert_eq!(names, ["smtp", "prices"]);
    let without = validate(&a_run(), None, &text(), &granting(), &fixed(&a_run()), &TextsSeen::default(), at(0)).unwrap();
    assert_ne!(run.digest, without.digest);

    let approved = |seen: &PoliciesSeen| validated(seen).unwrap().to_approve.unwrap().digests.input;
    let changed = |name: &str| {
        let mut seen = granting();
        let object = seen.given.contents.keys().find(|object| object.name == name).unwrap().clone();
        seen.given.contents.insert(object, Content { text: [("key".to_owned(), "other".to_owned())].into(), ..Content::default() });
        seen
    };
    assert_ne!(approved(&granting()), approved(&changed("prices")), "data that changes needs another approval");
    assert_eq!(approved(&granting()), approved(&changed("smtp")), "a Secret may be rotated");
}

#[test]
fn what_was_not_read_is_not_given() {
    let mut seen = granting();
    seen.given.contents.clear();
    assert_eq!(validated(&seen).unwrap_err().refusal.reason, Reason::CapabilityUnusable);
    let mut seen = granting();
    let forbidden = Found::Unusable { reason: Reason::CapabilityForbidden, rule: "access of the requester".into(), message: "no".into() };
    seen.given.found.values_mut().for_each(|found| *found = forbidden.clone());
    assert_eq!(validated(&seen).unwrap_err().refusal.reason, Reason::CapabilityForbidden);
    seen.given = Given::default();
    assert_eq!(validated(&seen).unwrap_err().refusal.reason, Reason::CapabilityUnusable);
}

/// Whoever could have brought the run about approves nothing of it, whatever became of the policies since.
#[test]
fn nobody_approves_what_they_had_a_part_in() {
    let mut run = a_run();
    run.spec.end_user = Some(serde_json::from_value(json!({ "username": "joe" })).unwrap());
    let earlier = paddock_crds::ApprovalStatus { excluded: vec!["earlier".into()], ..Default::default() };
    run.status = Some(paddock_crds::ScriptRunStatus { approval: Some(earlier), ..Default::default() });
    let mut taken = policies().taking_part[0].taken.clone();
    taken.author = Some("author".into());
    let requester = requester(run.annotations()).unwrap();
    let of = |writers: Option<&[&str]>| {
        let writers: Option<BTreeSet<String>> = writers.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        excluded(&run, &requester, std::slice::from_ref(&taken), writers.as_ref())
    };
    let known = of(Some(&["meanwhile"]));
    for name in ["jane", "joe", "author", "earlier", "meanwhile"] {
        assert!(known.has(name), "{name}");
    }
    assert!(!known.has("anna") && !known.has_everybody());
    // Where somebody is not known, or there are more than a status has room for, it might be anybody.
    let many: Vec<String> = (0..40).map(|number| format!("bot-{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert!(of(None).has("anna") && of(Some(&many)).has("anna"));
}

#[test]
fn more_demands_than_a_status_has_room_for_are_refused() {
    let mut seen = policies();
    let mut rules = seen.taking_part[0].rules.clone();
    let demands: Vec<_> = (0..=MOST_DEMANDED).map(|number| json!({ "name": format!("a{number}") })).collect();
    rules.approvals = serde_json::from_value(json!(demands)).unwrap();
    seen.taking_part = vec![Arc::new(Policy::new(seen.taking_part[0].taken.clone(), Effect::Allow, rules))];
    assert_eq!(refused(&a_run(), &text(), &seen), Reason::PolicyInvalid);
}

/// Where nothing is demanded yet, whoever wrote a policy is remembered all the same: another demand may come.
#[test]
fn who_wrote_before_there_was_a_demand_is_remembered() {
    let written_by = |author: &str| {
        let mut seen = policies();
        Arc::make_mut(&mut seen.taking_part[0]).taken.author = Some(author.into());
        seen
    };
    let look = |run: &ScriptRun, seen: &PoliciesSeen, second| {
        let valid = validate(run, None, &text(), seen, &fixed(run), &TextsSeen::default(), at(0)).unwrap();
        let seen = Seen { decision: Some(Ok(Box::new(valid))), ..super::super::fixtures::seen(run) };
        let waits = Done::Queued(Admission::Wait { full: Full::Tenant, ahead: 0 });
        super::super::fixtures::after(run, &seen, &Step::Admit, &waits, second)
    };
    let mut run = a_run();
    run.spec.script.input = None;
    let run = look(&run, &written_by("anna"), 1);
    assert_eq!(run.status.as_ref().unwrap().approval, None, "the policies tell it themselves");
    let run = look(&look(&run, &written_by("mallory"), 2), &written_by("bert"), 3);
    let excluded = run.status.as_ref().unwrap().approval.clone().unwrap().excluded;
    for name in ["anna", "mallory", "bert", "jane"] {
        assert!(excluded.iter().any(|excluded| excluded == name), "{name} {excluded:?}");
    }
}

/// Under a policy that says this of the text of scripts.
fn examined(preflight: &serde_json::Value, deny: &serde_json::Value, shows: Option<Preflight>) -> Result<ValidRun, Box<Refused>> {
    let mut seen = policies();
    let mut rules = seen.taking_part[0].rules.clone();
    rules.preflight = serde_json::from_value(preflight.clone()).unwrap();
    rules.deny = serde_json::from_value(deny.clone()).unwrap();
    seen.taking_part = vec![Arc::new(Policy::new(seen.taking_part[0].taken.clone(), Effect::Allow, rules))];
    let texts = TextsSeen { preflight: shows.map(Arc::new), ..TextsSeen::default() };
    validate(&a_run(), None, &text(), &seen, &fixed(&a_run()), &texts, at(0)).map_err(Box::new)
}

fn importing(module: &str) -> Preflight {
    let shows = Preflight::not_examined();
    Preflight { verdict: PreflightVerdict::NoFindings, unclear: None, message: None, imports: vec![module.into()], ..shows }
}

#[rstest]
#[case::unclear(json!({ "unclear": "Refuse" }), json!(null), None, Reason::ScriptUnclear)]
#[case::import(json!({ "imports": ["json"] }), json!(null), Some(importing("os")), Reason::ImportNotAllowed)]
#[case::denied(json!(null), json!({ "imports": ["os"] }), Some(importing("os")), Reason::Denied)]
fn what_a_text_shows_can_refuse_it_and_is_told(
    #[case] preflight: serde_json::Value,
    #[case] deny: serde_json::Value,
    #[case] shows: Option<Preflight>,
    #[case] expected: Reason,
) {
    let refused = examined(&preflight, &deny, shows.clone()).unwrap_err();
    assert_eq!(refused.refusal.reason, expected);
    assert_eq!(refused.preflight.as_deref(), shows.as_ref());
    assert!(refused.decisions.iter().any(|decision| decision.verdict == paddock_crds::Verdict::Refused), "{:?}", refused.decisions);
    let allowed =
        examined(&json!({ "unclear": "Refuse", "imports": ["os"] }), &json!({ "imports": ["json"] }), Some(importing("os"))).unwrap();
    assert_eq!(allowed.preflight.as_deref(), Some(&importing("os")));
}

/// By its stored status alone, as a run is contained that has started.
#[test]
fn what_a_run_imports_is_denied_while_it_runs_also_if_there_was_no_room_to_tell() {
    let deny = |modules: serde_json::Value| {
        let mut seen = policies();
        let mut rules = seen.taking_part[0].rules.clone();
        rules.deny = serde_json::from_value(json!({ "imports": modules })).unwrap();
        seen.taking_part = vec![Arc::new(Policy::new(seen.taking_part[0].taken.clone(), Effect::Allow, rules))];
        seen
    };
    let mut run = a_run();
    let mut status = paddock_crds::ScriptRunStatus { preflight: Some(importing("os.path")), ..Default::default() };
    run.status = Some(status.clone());
    let what = |run: &ScriptRun, modules| match super::super::observe::contained(run, &deny(modules)) {
        paddock_policy::Containment::Denied { what, .. } => what,
        other => format!("{other:?}"),
    };
    assert_eq!((what(&run, json!(["os"])).as_str(), what(&run, json!(["json"])).as_str()), ("import:os.path", "None"));
    status = super::super::status::least(&status);
    run.status = Some(status);
    assert_eq!(what(&run, json!(["json"])), "import:unknown");
}
