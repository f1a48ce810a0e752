//! What is kept from running, or ended while it runs: deny-lists and suspended policies. Pure, and decided again whenever a policy changes.

use std::borrow::Borrow;

use paddock_crds::{DeniedSubject, Deny, EndUser, PolicyRules, Preflight, Requester, SubjectKind, Suspend};

use crate::Policy;
use crate::preflight::{self, DeniedImport};

/// What is known of a run, as far as it is known yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts<'a> {
    /// SHA-256 of the script.
    pub script_hash: Option<&'a str>,
    /// The image that it was granted.
    pub image: Option<&'a str>,
    /// What its text shows, if it was examined.
    pub preflight: Option<&'a Preflight>,
    /// Who created it.
    pub requester: Option<&'a Requester>,
    /// For whom.
    pub end_user: Option<&'a EndUser>,
}

/// What is denied of a script of which it is not known what it imports.
pub(crate) const UNKNOWN_IMPORT: &str = "import:unknown";

/// The hardest that a policy demands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Containment {
    /// Nothing.
    None,
    /// It may go on, and nothing more is admitted.
    Queue {
        /// The policy.
        rule: String,
    },
    /// It ends.
    Kill {
        /// The policy.
        rule: String,
    },
    /// It never runs; if it runs, it ends.
    Denied {
        /// What is denied: `script:…`, `image:…`, `import:…`, `requester:…` or `endUser:…`.
        what: String,
        /// The policy and its list.
        rule: String,
    },
}

/// By all policies together: the hardest of what each demands.
pub fn containment(policies: &[impl Borrow<Policy>], facts: Facts<'_>) -> Containment {
    policies.iter().map(|policy| of_one(policy.borrow(), facts)).max().unwrap_or(Containment::None)
}

/// Whether these rules could contain anything at all.
pub fn contains_anything(rules: &PolicyRules) -> bool {
    rules.suspend.is_some() || rules.deny.is_some()
}

fn of_one(policy: &Policy, facts: Facts<'_>) -> Containment {
    let rule = |field: &str| format!("{}/{}: {field}", policy.taken.kind.as_str(), policy.taken.name);
    if let Some((what, field)) = policy.rules.deny.as_ref().and_then(|deny| denied(deny, facts)) {
        return Containment::Denied { what, rule: rule(field) };
    }
    match policy.rules.suspend {
        Some(Suspend::Kill) => Containment::Kill { rule: rule("suspend") },
        Some(Suspend::Queue) => Containment::Queue { rule: rule("suspend") },
        None => Containment::None,
    }
}

fn denied(deny: &Deny, facts: Facts<'_>) -> Option<(String, &'static str)> {
    if let Some(hash) = facts.script_hash.filter(|hash| deny.scripts.iter().any(|denied| denied == hash)) {
        return Some((format!("script:{hash}"), "deny.scripts"));
    }
    if let Some(image) = facts.image.filter(|image| deny.images.iter().any(|denied| is_named(denied, image))) {
        return Some((format!("image:{image}"), "deny.images"));
    }
    if let Some(import) = facts.preflight.and_then(|preflight| preflight::denied(&deny.imports, preflight)) {
        let what = match import {
            DeniedImport::Named(module) => format!("import:{module}"),
            DeniedImport::Unknown => UNKNOWN_IMPORT.to_owned(),
        };
        return Some((what, "deny.imports"));
    }
    let requester = facts.requester.map(|requester| ("requester", &requester.username, &requester.groups));
    let end_user = facts.end_user.map(|user| ("endUser", &user.username, &user.groups));
    let is_denied = |username: &str, groups: &[String]| deny.requesters.iter().any(|denied| is_subject(denied, username, groups));
    let (who, username, _) = [requester, end_user].into_iter().flatten().find(|(_, username, groups)| is_denied(username, groups))?;
    Some((format!("{who}:{username}"), "deny.requesters"))
}

/// A trailing `*` stands for whatever follows.
fn is_named(denied: &str, image: &str) -> bool {
    denied.strip_suffix('*').map_or_else(|| denied == image, |prefix| image.starts_with(prefix))
}

fn is_subject(denied: &DeniedSubject, username: &str, groups: &[String]) -> bool {
    match denied.kind {
        SubjectKind::User => denied.name == username,
        SubjectKind::Group => groups.contains(&denied.name),
    }
}

#[cfg(test)]
mod tests {
    use paddock_crds::{Effect, PolicyKind, TakenPolicy};
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn policy(name: &str, rules: Value) -> Policy {
        let kind = PolicyKind::ClusterSandboxPolicy;
        let taken = TakenPolicy { kind, name: name.into(), uid: String::new(), author: None, generation: 1, hash: String::new() };
        Policy::new(taken, Effect::Restrict, serde_json::from_value(rules).unwrap())
    }

    fn requester() -> Requester {
        Requester { username: "jane".into(), uid: None, groups: vec!["dev".into(), "ops".into()] }
    }

    #[rstest]
    #[case::nothing(json!({}), None)]
    #[case::script(json!({ "scripts": ["aa", "bb"] }), Some(("script:bb", "deny.scripts")))]
    #[case::other_script(json!({ "scripts": ["aa"] }), None)]
    #[case::image(json!({ "images": ["registry.example/python:3"] }), Some(("image:registry.example/python:3", "deny.images")))]
    #[case::images(json!({ "images": ["registry.example/python:*"] }), Some(("image:registry.example/python:3", "deny.images")))]
    #[case::other_image(json!({ "images": ["registry.example/python"] }), None)]
    #[case::all_images(json!({ "images": ["*"] }), Some(("image:registry.example/python:3", "deny.images")))]
    #[case::user(json!({ "requesters": [{ "kind": "User", "name": "jane" }] }), Some(("requester:jane", "deny.requesters")))]
    #[case::group(json!({ "requesters": [{ "kind": "Group", "name": "ops" }] }), Some(("requester:jane", "deny.requesters")))]
    #[case::not_a_user(json!({ "requesters": [{ "kind": "User", "name": "ops" }] }), None)]
    fn a_list_names_what_it_denies(#[case] deny: Value, #[case] expected: Option<(&str, &str)>) {
        let requester = requester();
        let facts =
            Facts { script_hash: Some("bb"), image: Some("registry.example/python:3"), requester: Some(&requester), ..Facts::default() };
        let expected = expected.map_or(Containment::None, |(what, field)| Containment::Denied {
            what: what.into(),
            rule: format!("ClusterSandboxPolicy/a: {field}"),
        });
        assert_eq!(containment(&[policy("a", json!({ "deny": deny }))], facts), expected);
        assert_eq!(containment(&[policy("a", json!({ "deny": deny }))], Facts::default()), Containment::None);
    }

    #[test]
    fn whom_a_platform_acts_for_is_looked_at_as_well() {
        let user = EndUser { username: "joe".into(), groups: vec!["trial".into()] };
        let requester = requester();
        let facts = Facts { requester: Some(&requester), end_user: Some(&user), ..Facts::default() };
        for denied in [json!({ "kind": "User", "name": "joe" }), json!({ "kind": "Group", "name": "trial" })] {
            let found = containment(&[policy("a", json!({ "deny": { "requesters": [denied] } }))], facts);
            assert!(matches!(found, Containment::Denied { what, .. } if what == "endUser:joe"));
        }
    }

    #[test]
    fn the_hardest_holds_in_whatever_order() {
        let all = [json!({}), json!({ "suspend": "Queue" }), json!({ "suspend": "Kill" }), json!({ "deny": { "scripts": ["bb"] } })];
        let facts = Facts { script_hash: Some("bb"), ..Facts::default() };
        let is_of = |containment: Containment| match containment {
            Containment::None => 0,
            Containment::Queue { .. } => 1,
            Containment::Kill { .. } => 2,
            Containment::Denied { .. } => 3,
        };
        for (one, first) in all.iter().enumerate() {
            for (other, second) in all.iter().enumerate() {
                let policies = [policy("b", first.clone()), policy("a", second.clone())];
                assert_eq!(is_of(containment(&policies, facts)), one.max(other));
            }
        }
    }
}
