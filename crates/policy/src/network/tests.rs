use paddock_crds::{PolicyKind, TakenPolicy};
use rstest::rstest;
use serde_json::{Value, json};

use super::*;

fn policy(effect: Effect, rules: Value) -> Policy {
    let kind = if effect == Effect::Allow { PolicyKind::ClusterSandboxPolicy } else { PolicyKind::SandboxPolicy };
    let name = if effect == Effect::Allow { "base" } else { "own" };
    let taken = TakenPolicy { kind, name: name.into(), uid: String::new(), author: None, generation: 1, hash: String::new() };
    Policy::new(taken, effect, serde_json::from_value(rules).unwrap())
}

#[expect(clippy::needless_pass_by_value, reason = "what json! makes is given")]
fn network(grants: Value) -> Value {
    json!({ "capabilities": { "network": grants } })
}

/// The rule that grants or refuses.
fn decided(policies: &[Policy], asked: &str) -> Result<Granted, String> {
    let policies: Vec<&Policy> = policies.iter().collect();
    destination(&policies, asked, Gateway::Installed).map_err(|(rule, ..)| rule)
}

#[rstest]
#[case::host("api.example.com", Ok("api.example.com"))]
#[case::spelling("API.Example.com:443", Ok("api.example.com"))]
#[case::below("a.b.example.org", Ok("*.example.org"))]
#[case::all_below("*.example.org", Ok("*.example.org"))]
#[case::all_below_one_below("*.b.example.org", Ok("*.example.org"))]
#[case::the_name_itself("example.org", Err("ClusterSandboxPolicy/base: capabilities.network"))]
#[case::more_than_one_host("*.example.com", Err("ClusterSandboxPolicy/base: capabilities.network"))]
#[case::port("api.example.com:22", Err("ClusterSandboxPolicy/base: capabilities.network"))]
#[case::other_port("db.example.net:6432", Ok("db.example.net"))]
#[case::usual_port_where_others_are_listed("db.example.net", Err("ClusterSandboxPolicy/base: capabilities.network"))]
#[case::net("tcp://10.20.0.0/16:5432", Ok("10.20.0.0/16"))]
#[case::address("tcp://10.20.3.4:5432", Ok("10.20.0.0/16"))]
#[case::wider_net("tcp://10.0.0.0/8:5432", Err("ClusterSandboxPolicy/base: capabilities.network"))]
#[case::denied("paste.example.org", Err("ClusterSandboxPolicy/base: deny.hosts[paste.example.org]"))]
#[case::wholly_denied("*.evil.example.org", Err("ClusterSandboxPolicy/base: deny.hosts[*.evil.example.org]"))]
#[case::partly_denied("*.example.org:443", Ok("*.example.org"))]
#[case::plain("http://api.example.com", Err("ClusterSandboxPolicy/base: capabilities.network"))]
#[case::plain_where_granted("http://old.example.net", Ok("old.example.net"))]
#[case::plain_at_another_port("http://old.example.net:8080", Err("ClusterSandboxPolicy/base: capabilities.network"))]
#[case::tls_where_plain_is_granted("old.example.net:80", Err("ClusterSandboxPolicy/base: capabilities.network"))]
#[case::plain_and_denied("http://paste.example.org", Err("ClusterSandboxPolicy/base: deny.hosts[paste.example.org]"))]
#[case::no_destination("https://api.example.com", Err("built-in: network"))]
fn a_destination_is_granted_as_a_whole_or_refused(#[case] asked: &str, #[case] expected: Result<&str, &str>) {
    let mut rules = network(json!([
        { "hosts": ["api.example.com", "*.example.org"] },
        { "hosts": ["db.example.net"], "ports": [5432, 6432] },
        { "cidrs": ["10.20.0.0/16", "fd00::/8"], "ports": [5432] },
        { "hosts": ["old.example.net"], "protocol": "HTTP" },
    ]));
    rules["deny"] = json!({ "hosts": ["paste.example.org", "*.evil.example.org", "*.zip"] });
    let expected = expected.map(|entry| format!("ClusterSandboxPolicy/base: capabilities.network[{entry}]")).map_err(str::to_owned);
    assert_eq!(decided(&[policy(Effect::Allow, rules)], asked).map(|granted| granted.rule), expected);
}

#[test]
fn every_policy_that_says_something_must_grant_it() {
    let base = policy(Effect::Allow, network(json!([{ "hosts": ["*.example.com"], "ports": [443, 8443] }])));
    let asked = |own: Value| decided(&[base.clone(), policy(Effect::Restrict, own)], "api.example.com").map(|granted| granted.rule);
    assert_eq!(asked(json!({})), Ok("ClusterSandboxPolicy/base: capabilities.network[*.example.com]".into()));
    let narrower = network(json!([{ "hosts": ["api.example.com"] }]));
    assert_eq!(asked(narrower), Ok("SandboxPolicy/own: capabilities.network[api.example.com]".into()));
    for other in [json!([]), json!([{ "hosts": ["www.example.com"] }]), json!([{ "hosts": ["api.example.com"], "ports": [8443] }])] {
        assert_eq!(asked(network(other)), Err("SandboxPolicy/own: capabilities.network".into()));
    }
    let denying = json!({ "deny": { "hosts": ["*.com"] } });
    assert_eq!(asked(denying), Err("SandboxPolicy/own: deny.hosts[*.com]".into()));
    // One that allows and is silent grants nothing, and nobody else can.
    let wide = policy(Effect::Restrict, network(json!([{ "hosts": ["api.example.com"] }])));
    assert!(decided(&[policy(Effect::Allow, json!({})), wide.clone()], "api.example.com").is_err());
    assert_eq!(decided(&[], "api.example.com"), Err("built-in: network".into()));
}

#[rstest]
#[case::none(json!({}), json!({}), json!([[]]))]
#[case::of_one_that_allows(json!({ "addresses": ["10.0.0.0/8"] }), json!({}), json!([["10.0.0.0/8"]]))]
#[case::of_both(json!({ "addresses": ["10.0.0.0/8"] }), json!({ "addresses": ["10.1.0.0/16"] }), json!([["10.0.0.0/8"], ["10.1.0.0/16"]]))]
#[case::taken_away(json!({ "addresses": ["10.0.0.0/8"] }), json!({ "addresses": [] }), json!([["10.0.0.0/8"], []]))]
#[case::of_one_that_only_restricts(json!({}), json!({ "addresses": ["10.0.0.0/8"] }), json!([[], ["10.0.0.0/8"]]))]
fn private_addresses_are_named_by_each_policy_that_says_something(#[case] base: Value, #[case] own: Value, #[case] expected: Value) {
    let grants = |mut more: Value| {
        more["hosts"] = json!(["api.example.com"]);
        network(json!([more]))
    };
    let policies = [policy(Effect::Allow, grants(base)), policy(Effect::Restrict, grants(own))];
    assert_eq!(decided(&policies, "api.example.com").unwrap().addresses, by_name(expected));
}

fn by_name(nets: Value) -> ByName {
    serde_json::from_value(nets).unwrap()
}

#[test]
fn a_net_that_is_granted_names_itself_however_little_of_it_is_asked_for() {
    let base = policy(Effect::Allow, network(json!([{ "cidrs": ["10.20.0.0/16"], "ports": [5432] }])));
    assert_eq!(decided(&[base], "tcp://10.20.3.4:5432").unwrap().addresses, by_name(json!([["10.20.0.0/16"]])));
    let world = policy(Effect::Allow, network(json!([{ "cidrs": ["0.0.0.0/0"], "ports": [5432] }])));
    assert_eq!(decided(&[world], "tcp://10.20.3.4:5432").unwrap().addresses, by_name(json!([["0.0.0.0/0"]])));
}

#[test]
fn without_a_gateway_what_is_granted_cannot_be_had() {
    let base = policy(Effect::Allow, network(json!([{ "hosts": ["api.example.com"] }])));
    let (rule, reason, message) = destination(&[&base], "api.example.com", Gateway::Absent).unwrap_err();
    assert_eq!((rule.as_str(), reason), ("built-in: what can be given", Reason::CapabilityUnusable));
    assert_eq!(message, "network:api.example.com:443 is granted, but the egress gateway is not installed in this cluster");
    let (_, reason, _) = destination(&[&base], "www.example.com", Gateway::Absent).unwrap_err();
    assert_eq!(reason, Reason::CapabilityRefused);
}

#[rstest]
#[case::nothing(json!({}), None)]
#[case::wide(json!({ "hosts": ["*.co.uk"] }), Some("capabilities.network[0]: *.co.uk: anybody may register names below it"))]
#[case::star(json!({ "hosts": ["api*.example.com"] }), Some("capabilities.network[0]: api*.example.com: a star stands for whole labels"))]
#[case::url(json!({ "hosts": ["https://example.com"] }), Some("capabilities.network[0]: https://example.com: "))]
#[case::port(json!({ "hosts": ["example.com"], "ports": [70000] }), Some("capabilities.network[0]: ports are 1 to 65535"))]
#[case::no_port(json!({ "cidrs": ["10.0.0.0/8"] }), Some("capabilities.network[0]: ports are 1 to 65535, and cidrs need them"))]
#[case::bits(json!({ "cidrs": ["10.0.0.1/8"], "ports": [1] }), Some("capabilities.network[0]: 10.0.0.1/8: the net has bits beyond its prefix"))]
#[case::both(json!({ "hosts": [], "cidrs": [] }), Some("capabilities.network[0]: exactly one"))]
#[case::addresses_of_nets(json!({ "cidrs": ["10.0.0.0/8"], "ports": [1], "addresses": [] }), Some("capabilities.network[0]: addresses and protocol belong to hosts"))]
#[case::protocol_of_nets(json!({ "cidrs": ["10.0.0.0/8"], "ports": [1], "protocol": "HTTP" }), Some("capabilities.network[0]: addresses and protocol belong to hosts"))]
#[case::addresses(json!({ "hosts": ["example.com"], "addresses": ["10"] }), Some("capabilities.network[0].addresses: 10: a net is written ADDRESS/PREFIX"))]
fn what_cannot_be_read_is_a_problem_of_the_policy(#[case] grant: Value, #[case] expected: Option<&str>) {
    let grants = if grant == json!({}) { json!([]) } else { json!([grant]) };
    let problems: Vec<String> = policy(Effect::Allow, network(grants)).problems.iter().map(ToString::to_string).collect();
    assert_eq!(problems.len(), usize::from(expected.is_some()), "{problems:?}");
    assert!(problems.iter().zip(expected).all(|(problem, expected)| problem.starts_with(expected)), "{problems:?}");
}

#[test]
fn a_denial_that_cannot_be_read_is_a_problem_too() {
    let problems = policy(Effect::Restrict, json!({ "deny": { "hosts": ["*.com", "*"] } })).problems;
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].field, "deny.hosts[1]");
}

#[test]
fn what_is_asked_for_twice_is_answered_once() {
    let network = ["api.example.com", "API.example.com.", "api.example.com:443", "api.example.com:8443", "?", "?"].map(Into::into).into();
    assert_eq!(asked(&Capabilities { network, ..Capabilities::default() }), ["api.example.com", "api.example.com:8443", "?"]);
}

#[test]
fn what_was_granted_ends_with_what_grants_it() {
    let grants = || network(json!([{ "hosts": ["api.example.com", "www.example.com"] }]));
    let permissions = ["network:api.example.com:443".to_owned(), "network:other.example:443".to_owned(), "secrets:a".to_owned()];
    let of = |policies: &[Policy]| {
        let (granted, denied) = still_granted(&policies.iter().collect::<Vec<_>>(), &permissions);
        (granted.iter().map(|granted| granted.to.to_string()).collect::<Vec<_>>(), denied.len())
    };
    assert_eq!(of(&[policy(Effect::Allow, grants())]), (vec!["api.example.com:443".to_owned()], 0));
    let denying = policy(Effect::Restrict, json!({ "deny": { "hosts": ["*.example.org"] } }));
    assert_eq!(of(&[policy(Effect::Allow, grants()), denying]), (vec!["api.example.com:443".to_owned()], 1));
    let denying = policy(Effect::Restrict, json!({ "deny": { "hosts": ["*.example.com"] } }));
    assert_eq!(of(&[policy(Effect::Allow, grants()), denying]), (vec![], 1));
    assert_eq!(of(&[policy(Effect::Restrict, grants())]), (vec![], 0), "nobody allows anything");
    let broken = policy(Effect::Restrict, network(json!([{ "hosts": ["*.com"] }])));
    assert_eq!(of(&[policy(Effect::Allow, grants()), broken]), (vec![], 0));
    let killed = policy(Effect::Restrict, json!({ "suspend": "Kill" }));
    assert_eq!(of(&[policy(Effect::Allow, grants()), killed]), (vec![], 0));
}

#[test]
fn what_is_told_for_one_policy_is_bounded_however_often_it_says_the_same() {
    let nets: Vec<String> = (0..64).map(|number| format!("10.{number}.0.0/16")).collect();
    let same = json!({ "hosts": vec!["*.example.com"; 64], "addresses": nets });
    let often = policy(Effect::Allow, network(json!([same, same, same])));
    assert_eq!(often.problems, []);
    assert_eq!(decided(&[often], "api.example.com").unwrap().addresses.0[0].len(), 64);
    let problems = policy(Effect::Allow, network(json!(vec![same.clone(); 9]))).problems;
    assert_eq!(problems[0].to_string(), "capabilities.network: 576 hosts and nets are more than the 512 that a policy may have");
    let more = json!({ "hosts": ["a.example.com"], "addresses": ["192.168.0.0/16"] });
    let problems = policy(Effect::Allow, network(json!([same, more]))).problems;
    assert_eq!(problems[0].to_string(), "capabilities.network: 65 different addresses are more than the 64 that a policy may have");
}

#[expect(clippy::needless_pass_by_value, reason = "what json! makes is given")]
fn over_https(host: &str, more: Value) -> Value {
    let mut grant = json!({ "hosts": [host], "protocol": "HTTPS" });
    grant.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    grant
}

fn headers(secret: &str) -> Value {
    json!([{ "name": "Authorization", "prefix": "Bearer ", "secretKeyRef": { "name": secret, "key": "token" } }])
}

#[test]
fn a_host_over_https_is_asked_for_as_it_is_called() {
    let grant = over_https("api.example.com", json!({ "headers": headers("api"), "ports": [443, 8443] }));
    let base = [policy(Effect::Allow, network(json!([grant])))];
    let https = |asked: &str| decided(&base, asked).map(|granted| granted.https.unwrap());
    let secret = SecretKey { name: "api".into(), key: "token".into() };
    let field = https::Field { name: "authorization".into(), prefix: "Bearer ".into(), secret: secret.clone() };
    assert_eq!(https("http://api.example.com"), Ok(Https { port: 443, fields: vec![field], authorities: None }));
    assert_eq!(https("http://api.example.com:8443").unwrap().port, 8443);
    for other in ["api.example.com", "http://api.example.com:443", "http://www.example.com"] {
        assert_eq!(https(other), Err("ClusterSandboxPolicy/base: capabilities.network".into()), "{other}");
    }
    let policies: Vec<&Policy> = base.iter().collect();
    let asked = Capabilities { network: vec!["http://api.example.com".into(), "http://no.example.com".into()], ..Capabilities::default() };
    assert_eq!(secrets_at_the_gateway(&policies, &asked).into_keys().collect::<Vec<_>>(), [secret]);
    assert_eq!(adding(&base, &Destination::parse("http://api.example.com").unwrap()).len(), 1);
    assert!(adding(&base, &Destination::parse("http://www.example.com").unwrap()).is_empty());
}

#[rstest]
#[case::silent(json!([over_https("*.example.com", json!({}))]), Ok(1))]
#[case::the_same(json!([over_https("api.example.com", json!({ "headers": headers("api") }))]), Ok(1))]
#[case::nothing(json!([over_https("api.example.com", json!({ "headers": [] }))]), Err("[api.example.com].headers"))]
#[case::another_secret(json!([over_https("api.example.com", json!({ "headers": headers("other") }))]), Err("[api.example.com].headers"))]
#[case::other_authorities(json!([over_https("api.example.com", json!({ "caBundle": BUNDLE }))]), Err("[api.example.com].caBundle"))]
#[case::in_the_clear(json!([{ "hosts": ["api.example.com"], "protocol": "HTTP" }]), Err("[api.example.com].protocol"))]
#[case::what_comes_first(json!([{ "hosts": ["*.example.com"], "protocol": "HTTP" }, over_https("api.example.com", json!({}))]), Err("[*.example.com].protocol"))]
fn policies_that_grant_https_must_say_the_same(#[case] own: Value, #[case] expected: Result<usize, &str>) {
    let grant = over_https("api.example.com", json!({ "headers": headers("api") }));
    let all = [policy(Effect::Allow, network(json!([grant]))), policy(Effect::Restrict, network(own))];
    let fields = decided(&all, "http://api.example.com").map(|granted| granted.https.unwrap().fields.len());
    assert_eq!(fields, expected.map_err(|rule| format!("SandboxPolicy/own: capabilities.network{rule}")));
}

/// `-----BEGIN CERTIFICATE-----`, as base64.
const BUNDLE: &str = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0t";

#[test]
fn who_allows_and_is_silent_adds_nothing() {
    let silent = policy(Effect::Allow, network(json!([over_https("api.example.com", json!({}))])));
    let own = |more| policy(Effect::Restrict, network(json!([over_https("api.example.com", more)])));
    let granted = decided(std::slice::from_ref(&silent), "http://api.example.com").unwrap();
    assert_eq!(granted.https, Some(Https { port: 443, fields: Vec::new(), authorities: None }));
    for more in [json!({ "headers": headers("api") }), json!({ "caBundle": BUNDLE })] {
        assert!(decided(&[silent.clone(), own(more)], "http://api.example.com").is_err());
    }
}

#[rstest]
#[case::headers_without_https(json!({ "hosts": ["a.example.com"], "headers": [] }))]
#[case::bundle_without_https(json!({ "hosts": ["a.example.com"], "protocol": "HTTP", "caBundle": BUNDLE }))]
#[case::port_80(over_https("a.example.com", json!({ "ports": [80] })))]
#[case::a_field_of_the_gateway(over_https("a.example.com", json!({ "headers": [{ "name": "Host", "secretKeyRef": { "name": "a", "key": "b" } }] })))]
#[case::no_name(over_https("a.example.com", json!({ "headers": [{ "name": "A b", "secretKeyRef": { "name": "a", "key": "b" } }] })))]
#[case::twice(over_https("a.example.com", json!({ "headers": [
    { "name": "X-A", "secretKeyRef": { "name": "a", "key": "b" } }, { "name": "x-a", "secretKeyRef": { "name": "a", "key": "b" } },
] })))]
#[case::two_lines(over_https("a.example.com", json!({ "headers": [{ "name": "A", "prefix": "a\r\nB: ", "secretKeyRef": { "name": "a", "key": "b" } }] })))]
#[case::no_secret(over_https("a.example.com", json!({ "headers": [{ "name": "A", "secretKeyRef": { "name": "../a", "key": "b" } }] })))]
#[case::no_bundle(over_https("a.example.com", json!({ "caBundle": "AAAA" })))]
fn what_cannot_be_meant_is_a_problem_of_the_policy(#[case] grant: Value) {
    let policy = policy(Effect::Allow, network(json!([grant])));
    assert_eq!(policy.problems.iter().map(|problem| problem.field.as_str()).collect::<Vec<_>>(), ["capabilities.network[0]"]);
}
