//! Laws that hold for every set of policies.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use paddock_crds::{
    CapabilityRules, Deny, Limits, NetworkGrant, NetworkProtocol, ObjectGrant, PreStart, Runtime, SecretHeader, SecretKeyRef,
};
use proptest::option::of as maybe;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;
use crate::capabilities::{Found, Object, ObjectKind};

mod beside;

const RUNTIMES: [&str; 3] = ["python", "shell", "ruby"];

fn memory() -> impl Strategy<Value = Raw> {
    select(vec!["16Mi", "64Mi", "128Mi", "256Mi", "1Gi", "nonsense"]).prop_map(|text| Raw(text.into()))
}

fn cpu() -> impl Strategy<Value = Raw> {
    select(vec!["100m", "500m", "1", "2"]).prop_map(|text| Raw(text.into()))
}

fn amounts() -> impl Strategy<Value = ResourceAmounts> {
    (maybe(memory()), maybe(cpu()), maybe(memory())).prop_map(|(memory, cpu, scratch)| ResourceAmounts { memory, cpu, scratch })
}

fn limits() -> impl Strategy<Value = Limits> {
    let seconds = || maybe(1_i64..100);
    let queue = (maybe(0_i64..20), maybe(0_i64..200), maybe(0_i64..10), maybe(1_i64..200));
    (maybe(amounts()), maybe(amounts()), seconds(), seconds(), maybe(0_i64..20), queue).prop_map(
        |(default, max, default_timeout_seconds, max_timeout_seconds, max_grace_period_seconds, queue)| {
            let (max_concurrent, max_queued, max_priority, weight) = queue;
            Limits {
                default,
                max,
                default_timeout_seconds,
                max_timeout_seconds,
                max_grace_period_seconds,
                max_concurrent,
                max_queued,
                max_priority,
                weight,
                ..Limits::default()
            }
        },
    )
}

/// What a policy says of a runtime beside its name.
type What<'a> = (Option<&'a str>, &'a str, Option<&'a str>, Option<Language>, Option<PreStart>);

fn runtimes() -> impl Strategy<Value = Option<Vec<Runtime>>> {
    let pre_start = maybe(select(vec![PreStart::Python, PreStart::Node, PreStart::Never]));
    let what = (
        maybe(select(vec!["one", "one", "other"])),
        select(vec!["/bin/x", "/bin/x", "/bin/y"]),
        maybe(select(vec!["mts", "js"])),
        maybe(select(vec![Language::Python, Language::Python, Language::JavaScript])),
        pre_start,
    );
    let offered = (subsequence(RUNTIMES.to_vec(), 0..=3), what);
    let runtime = |name: &str, (image, command, extension, language, pre_start): What<'_>| Runtime {
        name: name.into(),
        image: image.map(Into::into),
        command: image.map(|_| vec![command.to_owned()]),
        extension: extension.map(Into::into),
        language,
        pre_start,
    };
    maybe(offered.prop_map(move |(names, what)| names.into_iter().map(|name| runtime(name, what)).collect()))
}

fn policies() -> impl Strategy<Value = Policy> {
    let denied = maybe(select(vec!["www.example.com", "*.com", "*.other.example.com"]));
    let of = (any::<bool>(), any::<bool>(), 0..1000_u32, runtimes(), limits(), capabilities(), denied);
    of.prop_map(|(is_cluster, allows, number, runtimes, mut limits, capabilities, denied)| {
        // Most policies contradict themselves if their values are left to chance; of some that do, chance keeps the others.
        if number % 10 > 0 {
            let max = limits.max_timeout_seconds.unwrap_or(i64::MAX);
            limits.default_timeout_seconds = limits.default_timeout_seconds.map(|default| default.min(max));
            limits.default = limits.default.filter(|_| limits.max.is_none());
        }
        let kind = if is_cluster { PolicyKind::ClusterSandboxPolicy } else { PolicyKind::SandboxPolicy };
        let effect = if is_cluster && allows { Effect::Allow } else { Effect::Restrict };
        let deny = denied.map(|hosts| Deny { hosts: vec![hosts.into()], ..Deny::default() });
        let taken =
            TakenPolicy { kind, name: format!("p{number}"), uid: number.to_string(), author: None, generation: 1, hash: String::new() };
        Policy::new(taken, effect, PolicyRules { runtimes, limits, capabilities, deny, ..PolicyRules::default() })
    })
}

/// One that lets most through, so that grants are not rare.
fn base() -> Policy {
    let runtimes = RUNTIMES.map(|name| Runtime {
        name: name.into(),
        image: Some("one".into()),
        command: Some(vec!["/bin/x".into()]),
        extension: None,
        language: None,
        pre_start: None,
    });
    let max = ResourceAmounts { memory: Some(Raw("2Gi".into())), cpu: Some(Raw("4".into())), scratch: Some(Raw("1Gi".into())) };
    let limits = Limits { max: Some(max), max_timeout_seconds: Some(90), max_grace_period_seconds: Some(15), ..Limits::default() };
    let taken = TakenPolicy {
        kind: PolicyKind::ClusterSandboxPolicy,
        name: "base".into(),
        uid: "base".into(),
        author: None,
        generation: 1,
        hash: String::new(),
    };
    let all =
        vec![ObjectGrant { name: None, selector: Some(LabelSelector::default()) }, ObjectGrant { name: Some("c".into()), selector: None }];
    let network = Some(vec![
        to("*.example.com", Some(&["10.0.0.0/8"])),
        to("http://*.example.com", None),
        to("192.0.2.0/24", None),
        over_https("*.example.com", Some("a")),
    ]);
    let (secrets, data, volumes) = (Some(all.clone()), Some(all.clone()), Some(all));
    let capabilities = Some(CapabilityRules { network, secrets, data, volumes, dynamic_code: Some(true), subprocess: Some(true) });
    Policy::new(taken, Effect::Allow, PolicyRules { runtimes: Some(runtimes.to_vec()), limits, capabilities, ..PolicyRules::default() })
}

/// A host, one without TLS, or a net, at two ports.
fn to(text: &str, addresses: Option<&[&str]>) -> NetworkGrant {
    let (text, protocol) = text.strip_prefix("http://").map_or((text, None), |text| (text, Some(NetworkProtocol::Http)));
    let texts = Some(vec![text.to_owned()]);
    let (hosts, cidrs) = if text.contains('/') { (None, texts) } else { (texts, None) };
    let addresses = addresses.map(|nets| nets.iter().map(|net| (*net).to_owned()).collect());
    NetworkGrant { hosts, cidrs, protocol, ports: Some(vec![443, 5432]), addresses, ..NetworkGrant::default() }
}

/// A host that the gateway speaks HTTPS with, with this Secret, or whatever others say.
fn over_https(host: &str, secret: Option<&str>) -> NetworkGrant {
    let header = |name: &str| SecretHeader {
        name: "Authorization".into(),
        prefix: None,
        secret_key_ref: SecretKeyRef { name: name.into(), key: "token".into() },
    };
    let headers = secret.map(|name| vec![header(name)]);
    NetworkGrant { protocol: Some(NetworkProtocol::Https), ports: Some(vec![443]), headers, ..to(host, Some(&["10.1.0.0/16"])) }
}

fn asks() -> impl Strategy<Value = Ask> {
    (select(RUNTIMES.to_vec()), amounts(), maybe(1_i64..100), maybe(0_i64..20), maybe(0_i64..10), asked()).prop_map(
        |(runtime, resources, timeout_seconds, grace_period_seconds, priority, capabilities)| Ask {
            runtime: runtime.into(),
            resources,
            timeout_seconds,
            grace_period_seconds,
            priority,
            capabilities,
            objects: objects(),
            at_gateway: AtGateway::new(),
            gateway: Gateway::Installed,
        },
    )
}

fn asked() -> impl Strategy<Value = Capabilities> {
    let secrets = subsequence(vec!["a", "b", "c"], 0..=3);
    let network = subsequence(
        vec![
            "api.example.com",
            "*.example.com:5432",
            "tcp://192.0.2.0/25:443",
            "http://api.example.com:443",
            "www.example.com",
            "http://api.example.com",
        ],
        0..=6,
    );
    let named = |names: Vec<&'static str>| names.into_iter().map(Into::into).collect();
    let others = (subsequence(vec!["a", "b", "c"], 0..=3), subsequence(vec!["a", "b", "c"], 0..=3), any::<bool>());
    (secrets, others, network, any::<bool>(), any::<bool>()).prop_map(
        move |(secrets, (data, volumes, dynamic_code), network, subprocess, partial)| Capabilities {
            network: network.into_iter().map(Into::into).collect(),
            secrets: named(secrets),
            data: named(data),
            volumes: named(volumes),
            dynamic_code,
            subprocess,
            partial,
        },
    )
}

/// `a` and `b` have labels, of `c` nothing is known.
fn objects() -> Objects {
    let found = |tier: &str| Found::Labels([("tier".to_owned(), tier.to_owned())].into());
    let of = |kind| [("a", "gold"), ("b", "tin")].map(|(name, tier)| (Object { kind, name: name.into() }, found(tier)));
    ObjectKind::ALL.into_iter().flat_map(of).collect()
}

fn capabilities() -> impl Strategy<Value = Option<CapabilityRules>> {
    let gold = LabelSelector { match_labels: Some([("tier".to_owned(), "gold".to_owned())].into()), match_expressions: None };
    let grants = [
        ObjectGrant { name: Some("a".into()), selector: None },
        ObjectGrant { name: Some("b".into()), selector: None },
        ObjectGrant { name: Some("c".into()), selector: None },
        ObjectGrant { name: None, selector: Some(gold) },
        ObjectGrant { name: None, selector: Some(LabelSelector::default()) },
    ];
    let nets: [Option<&[&str]>; 4] = [None, Some(&[]), Some(&["10.1.0.0/16"]), Some(&["10.0.0.0/7", "192.168.0.0/16"])];
    let hosts = [
        "*.example.com",
        "api.example.com",
        "http://api.example.com",
        "192.0.2.0/24",
        "www.example.com",
        "api.example.com a",
        "*.example.com b",
        "api.example.com ",
    ];
    let network = maybe(subsequence(hosts.to_vec(), 0..=6));
    let objects = || maybe(subsequence(grants.to_vec(), 0..=5));
    let words = (maybe(any::<bool>()), maybe(any::<bool>()));
    maybe((objects(), objects(), objects(), words, network, select(nets.to_vec()))).prop_map(|rules| {
        rules.map(|(secrets, data, volumes, (dynamic_code, subprocess), network, nets)| {
            let grant = |host: &str| match host.split_once(' ') {
                Some((host, secret)) => over_https(host, Some(secret).filter(|secret| !secret.is_empty())),
                None => to(host, nets.filter(|_| !host.contains('/') || host.starts_with("http"))),
            };
            let network = network.map(|hosts| hosts.into_iter().map(grant).collect());
            CapabilityRules { network, secrets, data, volumes, dynamic_code, subprocess }
        })
    })
}

/// Whether one grant is no wider than the other in anything.
fn is_within(narrow: &Grant, wide: &Grant) -> bool {
    narrow.runtime.image == wide.runtime.image
        && narrow.runtime.command == wide.runtime.command
        // Who names none leaves it to the others.
        && (wide.runtime.extension.is_none() || narrow.runtime.extension == wide.runtime.extension)
        && narrow.memory_bytes <= wide.memory_bytes
        && narrow.cpu_milli <= wide.cpu_milli
        && narrow.scratch_bytes <= wide.scratch_bytes
        && narrow.timeout_seconds <= wide.timeout_seconds
        && narrow.grace_seconds <= wide.grace_seconds
        && narrow.capabilities.objects.iter().all(|object| wide.capabilities.objects.contains(object))
        && narrow.capabilities.network.iter().all(|own| wide.capabilities.network.iter().any(|other| leads_within(own, other)))
        && (narrow.capabilities.network.is_empty()
            || wide.capabilities.denied_hosts.iter().all(|denied| narrow.capabilities.denied_hosts.contains(denied)))
        && narrow.capabilities.subprocess <= wide.capabilities.subprocess
        && narrow.capabilities.dynamic_code <= wide.capabilities.dynamic_code
        && narrow.queue.concurrent <= wide.queue.concurrent
        && narrow.queue.queued <= wide.queue.queued
        && narrow.queue.weight <= wide.queue.weight
        && is_bound_within(narrow.queue.policy_concurrent, wide.queue.policy_concurrent)
        && is_bound_within(narrow.queue.policy_queued, wide.queue.policy_queued)
}

fn leads_within(narrow: &network::Granted, wide: &network::Granted) -> bool {
    // Whoever said something still does.
    narrow.to == wide.to
        && narrow.https == wide.https
        && !wide.addresses.0.is_empty()
        && wide.addresses.0.iter().all(|said| narrow.addresses.0.contains(said))
}

/// None is no bound.
fn is_bound_within(narrow: Option<u32>, wide: Option<u32>) -> bool {
    wide.is_none_or(|wide| narrow.is_some_and(|narrow| narrow <= wide))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn one_policy_more_never_allows_more(
        has_base in any::<bool>(),
        mut first in policies(),
        others in prop::collection::vec(policies(), 0..4),
        more in policies(),
        ask in asks(),
    ) {
        // Where nobody allows, the first who does lets something run.
        first = Policy::new(first.taken, Effect::Allow, first.rules);
        let mut all: Vec<Policy> = vec![if has_base { base() } else { first }];
        all.extend(others);
        let before = decide(&all, &ask);
        all.push(more);
        let after = decide(&all, &ask);
        match (&before.result, &after.result) {
            (Ok(before), Ok(after)) => prop_assert!(is_within(after, before), "{after:?} is wider than {before:?}"),
            // A run that did not ask gets less by one default more, which fits then.
            (Err(refusal), Ok(_)) => prop_assert!(refusal.message.starts_with("memory is ") && refusal.message.contains("by the policies"), "{refusal:?} became a grant"),
            (_, Err(_)) => {}
        }
    }

    /// What only restricts decides nothing by itself, whatever it says of images.
    #[test]
    fn who_restricts_brings_no_runtime(more in runtimes(), ask in asks()) {
        let mut silent = base();
        for runtime in silent.rules.runtimes.iter_mut().flatten() {
            (runtime.image, runtime.command) = (None, None);
        }
        silent = Policy::new(silent.taken, Effect::Allow, silent.rules);
        let mut narrow = base();
        (narrow.effect, narrow.rules.runtimes) = (Effect::Restrict, more);
        prop_assert!(decide(&[silent, narrow], &ask).result.is_err());
    }

    #[test]
    fn the_order_of_policies_does_not_matter(
        (all, shuffled) in prop::collection::vec(policies(), 0..5).prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
        ask in asks(),
    ) {
        let distinct: std::collections::BTreeSet<_> = all.iter().map(|policy| &policy.taken.name).collect();
        prop_assume!(distinct.len() == all.len());
        let of = |policies: Vec<Policy>| decide(&policies.into_iter().chain([base()]).collect::<Vec<_>>(), &ask);
        prop_assert_eq!(of(all), of(shuffled));
    }

    #[test]
    fn nothing_is_granted_without_a_cluster_policy_that_allows(others in prop::collection::vec(policies(), 0..4), ask in asks()) {
        let restricting: Vec<Policy> = others.into_iter().filter(|policy| policy.effect == Effect::Restrict).collect();
        prop_assert!(decide(&restricting, &ask).result.is_err());
    }

    #[test]
    fn everything_that_was_asked_for_is_answered(others in prop::collection::vec(policies(), 0..4), ask in asks()) {
        let usable: Vec<Policy> = others.into_iter().filter(|policy| policy.problems.is_empty()).chain([base()]).collect();
        let outcome = decide(&usable, &ask);
        let answers = |start: &str| outcome.decisions.iter().filter(|decision| decision.permission.starts_with(start)).count();
        prop_assert_eq!(answers("runtime:"), 1);
        prop_assert_eq!(answers("subprocess"), usize::from(ask.capabilities.subprocess));
        prop_assert!(ask.timeout_seconds.is_none() || answers("timeoutSeconds:") == 1);
        let is_a_capability = |decision: &&Decision| {
            ["subprocess", "dynamicCode", "secrets:", "data:", "volumes:", "network:"].iter().any(|word| decision.permission.starts_with(word))
        };
        let refused = outcome.decisions.iter().filter(|decision| decision.verdict == Verdict::Refused);
        let refusing = refused.filter(|decision| !(ask.capabilities.partial && is_a_capability(decision)));
        prop_assert_eq!(outcome.result.is_err(), refusing.count() > 0);
    }
}
