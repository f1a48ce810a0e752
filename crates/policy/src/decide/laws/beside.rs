//! Laws of what policies decide beside the grant: input, output, use of the network, containment, rules and approvals.

use std::collections::{BTreeMap, BTreeSet};

use paddock_crds::{
    Deny, Detector, Effect, InputRules, LargeResult, Limits, MaskRule, MaskRules, OutputRules, PolicyKind, PolicyRules, Requester,
    ScriptSchema, Suspend, TakenPolicy,
};
use proptest::option::of as maybe;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::json;

use crate::{
    CapabilityGrant, Containment, Facts, Policy, RunFacts, Subject, TenantFacts, containment, demanded, input_demand, judge_rules,
    network_limits, output_grant, risk,
};

/// Of the only script that there is.
const HASH: &str = "abc";

fn input() -> impl Strategy<Value = InputRules> {
    let schemas = subsequence(vec![HASH, "other"], 0..=2);
    (any::<bool>(), maybe(0_i64..1000), schemas).prop_map(|(require_schema, max_bytes, hashes)| InputRules {
        require_schema,
        max_bytes,
        schemas: hashes.into_iter().map(|hash| ScriptSchema { script_hash: hash.into(), schema: json!({ "type": "object" }) }).collect(),
    })
}

fn output() -> impl Strategy<Value = OutputRules> {
    let large = maybe(select(vec![LargeResult::Refuse, LargeResult::Truncate, LargeResult::Store]));
    let off = subsequence(vec![Detector::CloudKey, Detector::Jwt, Detector::PrivateKey], 0..=3);
    let own = subsequence(vec!["one", "two"], 0..=2);
    (maybe(256_i64..32_768), maybe(256_i64..65_536), large, off, own).prop_map(
        |(max_stream_bytes, max_result_bytes, large_result, off, own)| OutputRules {
            max_stream_bytes,
            max_result_bytes,
            large_result,
            mask: MaskRules { off, rules: own.into_iter().map(|name| MaskRule { name: name.into(), pattern: name.into() }).collect() },
        },
    )
}

fn network() -> impl Strategy<Value = Limits> {
    (maybe(0_i64..100), maybe(0_i64..10_000), maybe(1024_i64..10_000), maybe(0_i64..100)).prop_map(
        |(max_connections, max_network_bytes, max_network_bytes_per_second, max_refused_connections)| Limits {
            max_connections,
            max_network_bytes,
            max_network_bytes_per_second,
            max_refused_connections,
            ..Limits::default()
        },
    )
}

fn deny() -> impl Strategy<Value = Option<Deny>> {
    let of = (subsequence(vec![HASH, "other"], 0..=2), subsequence(vec!["registry.example/*", "other"], 0..=2));
    maybe(of.prop_map(|(scripts, images)| Deny {
        scripts: scripts.into_iter().map(Into::into).collect(),
        images: images.into_iter().map(Into::into).collect(),
        ..Deny::default()
    }))
}

fn policies() -> impl Strategy<Value = Policy> {
    let suspend = maybe(select(vec![Suspend::Queue, Suspend::Kill]));
    (any::<bool>(), 0..1000_u32, input(), output(), network(), deny(), suspend).prop_map(
        |(allows, number, input, output, limits, deny, suspend)| {
            let kind = if allows { PolicyKind::ClusterSandboxPolicy } else { PolicyKind::SandboxPolicy };
            let effect = if allows { Effect::Allow } else { Effect::Restrict };
            let taken = TakenPolicy {
                kind,
                name: format!("p{number:03}"),
                uid: number.to_string(),
                author: None,
                generation: 1,
                hash: String::new(),
            };
            Policy::new(taken, effect, PolicyRules { input, output, limits, deny, suspend, ..PolicyRules::default() })
        },
    )
}

/// How hard the policies are on a run that they may know.
fn hardness(policies: &[Policy], image: &str) -> u8 {
    match containment(policies, Facts { script_hash: Some(HASH), image: Some(image), ..Facts::default() }) {
        Containment::None => 0,
        Containment::Queue { .. } => 1,
        Containment::Kill { .. } => 2,
        Containment::Denied { .. } => 3,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn one_policy_more_never_demands_less(others in prop::collection::vec(policies(), 1..4), more in policies()) {
        let mut all = others;
        // Where nobody allows, nothing runs, and what is said beside it does not matter.
        all[0].effect = Effect::Allow;
        let (input, output, network) = (input_demand(&all, HASH), output_grant(&all), network_limits(&all));
        let hard = ["registry.example/x", "third"].map(|image| hardness(&all, image));
        all.push(more);
        let (input_after, output_after, network_after) = (input_demand(&all, HASH), output_grant(&all), network_limits(&all));

        let most = |demand: &crate::InputDemand| demand.max_bytes.as_ref().map_or(u64::MAX, |(bytes, _)| *bytes);
        prop_assert!(most(&input_after) <= most(&input));
        prop_assert!(input.required_by.is_none() || input_after.required_by.is_some());
        prop_assert!(input.schemas.iter().all(|schema| input_after.schemas.contains(schema)));

        prop_assert!(output_after.stream_bytes <= output.stream_bytes && output_after.result_bytes <= output.result_bytes);
        prop_assert!(output_after.large_result <= output.large_result);
        prop_assert!(output.detectors.is_subset(&output_after.detectors));
        prop_assert!(output.rules.iter().all(|rule| output_after.rules.contains(rule)));

        prop_assert!(network_after.connections <= network.connections && network_after.bytes <= network.bytes);
        let in_a_second = |limits: &crate::NetworkLimits| limits.bytes_per_second.unwrap_or(u64::MAX);
        prop_assert!(in_a_second(&network_after) <= in_a_second(&network));
        let refused = |limits: &crate::NetworkLimits| limits.refused.as_ref().map_or(u64::MAX, |(most, _)| *most);
        prop_assert!(refused(&network_after) <= refused(&network));

        for (image, before) in ["registry.example/x", "third"].iter().zip(hard) {
            prop_assert!(hardness(&all, image) >= before);
        }
    }

    #[test]
    fn the_order_does_not_matter_for_what_is_demanded(
        (all, shuffled) in prop::collection::vec(policies(), 0..5).prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle()))
    ) {
        let sorted = |mut demand: crate::InputDemand| {
            demand.schemas.sort_by(|one, other| one.0.cmp(&other.0));
            // Whichever of those that say the same is named.
            (demand.max_bytes.map(|(bytes, _)| bytes), demand.required_by.is_some(), demand.schemas)
        };
        prop_assert_eq!(sorted(input_demand(&all, HASH)), sorted(input_demand(&shuffled, HASH)));
        let unordered = |mut grant: crate::OutputGrant| {
            grant.rules.sort_by(|one, other| one.name.cmp(&other.name));
            grant
        };
        prop_assert_eq!(unordered(output_grant(&all)), unordered(output_grant(&shuffled)));
        let (one, other) = (network_limits(&all), network_limits(&shuffled));
        let plain = |limits: crate::NetworkLimits| (limits.connections, limits.bytes, limits.bytes_per_second, limits.refused.map(|(most, _)| most));
        prop_assert_eq!(plain(one), plain(other));
        prop_assert_eq!(hardness(&all, "third"), hardness(&shuffled, "third"));
    }
}

/// A policy with expressions, demands and a list of requesters that it denies.
fn of_people() -> impl Strategy<Value = Policy> {
    let conditions = vec!["true", "run.timeoutSeconds < 20", "requester.username == 'jane'", "run.labels.team == 'a'"];
    let rules = subsequence(conditions.clone(), 0..=2);
    let demands = subsequence(conditions, 0..=2);
    let denied = subsequence(vec!["jane", "joe"], 0..=1);
    (any::<bool>(), 0..1000_u32, rules, demands, denied).prop_map(|(allows, number, rules, demands, denied)| {
        let named = |all: Vec<&str>, field: &str| -> Vec<serde_json::Value> {
            all.into_iter().enumerate().map(|(index, text)| json!({ "name": format!("n{index}"), field: text })).collect()
        };
        let requesters: Vec<_> = denied.into_iter().map(|name| json!({ "kind": "User", "name": name })).collect();
        let rules =
            json!({ "rules": named(rules, "expression"), "approvals": named(demands, "when"), "deny": { "requesters": requesters } });
        let (kind, effect) =
            if allows { (PolicyKind::ClusterSandboxPolicy, Effect::Allow) } else { (PolicyKind::SandboxPolicy, Effect::Restrict) };
        let taken =
            TakenPolicy { kind, name: format!("p{number:03}"), uid: number.to_string(), author: None, generation: 1, hash: String::new() };
        let policy = Policy::new(taken, effect, serde_json::from_value(rules).unwrap());
        assert_eq!(policy.problems, []);
        policy
    })
}

/// What the policies have against a run of jane's: whether a rule refuses it, who has to approve it (`None` where that cannot be told, and it is refused),
/// and whether she is denied.
fn against(policies: &[Policy]) -> (bool, Option<BTreeSet<String>>, bool) {
    let labels = BTreeMap::new();
    let run = RunFacts::plain(&labels);
    let requester = Requester { username: "jane".into(), uid: None, groups: Vec::new() };
    let risk = risk(&CapabilityGrant::default(), None);
    let tenant = TenantFacts { name: "team", labels: &labels };
    let (end_user, preflight, now) = (None, None.into(), jiff::Timestamp::UNIX_EPOCH);
    let subject = Subject { run, tenant, requester: (&requester).into(), end_user, risk: (&risk).into(), preflight, now };
    let demanded = demanded(policies, &subject).ok().map(|all| all.into_iter().map(|demanded| demanded.rule).collect());
    let denied = containment(policies, Facts { requester: Some(&requester), ..Facts::default() });
    (judge_rules(policies, &subject).refusal.is_some(), demanded, matches!(denied, Containment::Denied { .. }))
}

proptest! {
    #[test]
    fn one_policy_more_never_lets_people_do_more(others in prop::collection::vec(of_people(), 0..4), more in of_people()) {
        let mut all = others;
        let before = against(&all);
        all.push(more);
        let after = against(&all);
        prop_assert!(after.0 >= before.0 && after.2 >= before.2, "{before:?} {after:?}");
        match (&before.1, &after.1) {
            (Some(before), Some(after)) => prop_assert!(before.is_subset(after)),
            (None, Some(_)) => prop_assert!(false, "what could not be told is told by one policy more"),
            (_, None) => {}
        }
    }

    #[test]
    fn the_order_does_not_matter_for_people(
        (all, shuffled) in prop::collection::vec(of_people(), 0..5).prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle()))
    ) {
        prop_assert_eq!(against(&all), against(&shuffled));
    }
}
