//! What is wrong with policies only together: each is right by itself, and runs that need what they contradict each other on are refused.

use std::borrow::Borrow;
use std::collections::BTreeSet;

use crate::amounts::{MEMORY, SCRATCH, lack};
use crate::bounds::bounds;
use crate::decide::{Policy, in_order};
use crate::runtime::{disagreements, in_common, offered};

/// Policies that contradict each other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Contradiction {
    /// UIDs of those that say what cannot be together.
    pub between: BTreeSet<String>,
    /// Which they are, what they say, and which runs are refused for it.
    pub message: String,
}

/// Everything in which the policies of a run contradict each other. Broken ones are told by themselves, and are left out.
pub fn contradictions(policies: &[impl Borrow<Policy>]) -> Vec<Contradiction> {
    let mut policies = in_order(policies);
    policies.retain(|policy| policy.problems.is_empty());
    let mut found = of_runtimes(&policies);
    found.extend(of_memory(&policies));
    found
}

fn contradiction<'a>(between: impl IntoIterator<Item = &'a Policy>, message: String) -> Contradiction {
    Contradiction { between: between.into_iter().map(|policy| policy.taken.uid.clone()).collect(), message }
}

fn of_runtimes(policies: &[&Policy]) -> Vec<Contradiction> {
    let offering: Vec<&Policy> = policies.iter().copied().filter(|policy| offered(policy).is_some()).collect();
    let common = in_common(policies);
    // Who offers none means it.
    let is_meant = offering.is_empty() || offering.iter().any(|policy| offered(policy).is_some_and(<[_]>::is_empty));
    if common.is_empty() && !is_meant {
        let who: Vec<String> = offering.iter().map(|policy| policy.full_name()).collect();
        let message = format!("no runtime is offered by all of {}: every run is refused", who.join(", "));
        return vec![contradiction(offering, message)];
    }
    let each = common.into_iter().flat_map(|name| disagreements(policies, name));
    each.map(|found| contradiction(found.between, format!("{}: runs that use it are refused", found.message))).collect()
}

/// What a run gets that asks for neither must be something that can be had.
fn of_memory(policies: &[&Policy]) -> Option<Contradiction> {
    let (memory, scratch) = (bounds(policies, &MEMORY), bounds(policies, &SCRATCH));
    let lack = lack(memory.default.units(), scratch.default.units())?;
    let between: Vec<&Policy> = [memory.default_by(), scratch.default_by()].into_iter().flatten().collect();
    let who: BTreeSet<String> = between.iter().map(|policy| policy.full_name()).collect();
    let who = who.into_iter().collect::<Vec<_>>().join(" and ");
    let message = format!("by {who} {lack}: runs that ask for neither are refused");
    Some(contradiction(between, message))
}

#[cfg(test)]
mod tests {
    use paddock_crds::{Effect, PolicyKind, Reason, ScriptRun, TakenPolicy};
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;
    use crate::{Ask, AtGateway, Gateway, Objects, decide};

    fn policy(kind: PolicyKind, name: &str, effect: Effect, rules: Value) -> Policy {
        let taken = TakenPolicy { kind, name: name.into(), uid: name.into(), author: None, generation: 1, hash: String::new() };
        Policy::new(taken, effect, serde_json::from_value(rules).unwrap())
    }

    fn base() -> Policy {
        let runtimes =
            json!([{ "name": "shell", "image": "i", "command": ["/bin/sh"] }, { "name": "python", "image": "p", "command": ["/p"] }]);
        policy(
            PolicyKind::ClusterSandboxPolicy,
            "base",
            Effect::Allow,
            json!({ "runtimes": runtimes, "limits": { "max": { "memory": "1Gi" } } }),
        )
    }

    fn reason(policies: &[Policy]) -> Option<Reason> {
        let run = json!({
            "apiVersion": "paddock.dev/v1alpha1", "kind": "ScriptRun", "metadata": { "name": "run" },
            "spec": { "policyRef": { "kind": "SandboxPolicy", "name": "own" }, "script": { "runtime": "shell", "source": { "inline": "true" } } },
        });
        let run: ScriptRun = serde_json::from_value(run).unwrap();
        decide(policies, &Ask::of(&run.spec, Objects::new(), AtGateway::new(), Gateway::Absent)).result.err().map(|refusal| refusal.reason)
    }

    #[rstest]
    #[case::nothing(json!({}), None, None)]
    #[case::the_same(json!({ "runtimes": [{ "name": "shell", "image": "i", "command": ["/bin/sh"] }] }), None, None)]
    #[case::another_image(
        json!({ "runtimes": [{ "name": "shell", "image": "j", "command": ["/bin/sh"] }] }),
        Some("ClusterSandboxPolicy/base and SandboxPolicy/own do not agree on the image of the runtime shell: runs that use it are refused"),
        Some(Reason::PolicyInvalid),
    )]
    #[case::another_command(
        json!({ "runtimes": [{ "name": "shell", "image": "i", "command": ["/bin/bash"] }] }),
        Some("ClusterSandboxPolicy/base and SandboxPolicy/own do not agree on the command of the runtime shell: runs that use it are refused"),
        Some(Reason::PolicyInvalid),
    )]
    #[case::of_a_runtime_that_is_not_asked_for(
        json!({ "runtimes": [{ "name": "shell" }, { "name": "python", "image": "q", "command": ["/p"] }] }),
        Some("ClusterSandboxPolicy/base and SandboxPolicy/own do not agree on the image of the runtime python: runs that use it are refused"),
        None,
    )]
    #[case::one_that_nobody_else_offers(
        json!({ "runtimes": [{ "name": "ruby", "image": "r", "command": ["/r"] }] }),
        Some("no runtime is offered by all of ClusterSandboxPolicy/base, SandboxPolicy/own: every run is refused"),
        Some(Reason::RuntimeNotAllowed),
    )]
    #[case::none_on_purpose(json!({ "runtimes": [] }), None, Some(Reason::RuntimeNotAllowed))]
    #[case::less_of_them(json!({ "runtimes": [{ "name": "shell" }] }), None, None)]
    #[case::no_room(
        json!({ "limits": { "max": { "memory": "40Mi" } } }),
        Some("by SandboxPolicy/own a run that does not ask gets 40Mi of memory, which must hold scratch, 16Mi, and 32Mi more: runs that ask for neither are refused"),
        Some(Reason::PolicyInvalid),
    )]
    fn what_refuses_runs_is_told_of_the_policies(#[case] rules: Value, #[case] told: Option<&str>, #[case] refused: Option<Reason>) {
        let own = policy(PolicyKind::SandboxPolicy, "own", Effect::Restrict, rules);
        assert_eq!(own.problems, [], "it is right by itself");
        let all = [own, base()];
        let found = contradictions(&all);
        assert_eq!(found.iter().map(|found| found.message.as_str()).collect::<Vec<_>>(), Vec::from_iter(told));
        assert!(found.iter().all(|found| found.between.contains("own")), "{found:?}");
        assert_eq!(reason(&all), refused);
    }

    #[test]
    fn a_broken_policy_is_told_by_itself() {
        let broken = policy(PolicyKind::SandboxPolicy, "own", Effect::Restrict, json!({ "runtimes": [{ "name": "shell", "image": "j" }] }));
        assert_eq!(contradictions(&[broken, base()]), []);
    }
}
