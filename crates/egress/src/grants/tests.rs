use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

use super::*;

const POD: &str = "10.1.2.3";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn token(number: u8) -> TokenHash {
    TokenHash([number; 32])
}

fn rule(name: &str, to: &str, allowed: &[&str]) -> Rule {
    Rule { name: name.into(), to: Destination::parse(to).unwrap(), allowed: by_name(allowed), https: None }
}

fn by_name(nets: &[&str]) -> ByName {
    ByName(vec![nets.iter().map(|net| net.parse().unwrap()).collect()])
}

fn grant(run: &str, token_number: u8, expires: Instant) -> Grant {
    Grant {
        run: run.into(),
        name: "team/run".into(),
        token: token(token_number),
        pod: vec![ip(POD), ip("fd00::3")],
        rules: vec![
            rule("api", "api.example.com", &[]),
            rule("all", "*.example.org", &[]),
            rule("inner", "in.example.org", &["10.7.0.0/16"]),
            rule("more", "*.example.org:8443", &[]),
            rule("plain", "http://old.example.org", &[]),
            rule("database", "tcp://192.0.2.0/24:5432", &["192.0.2.0/24"]),
        ],
        denied: vec![(HostPattern::parse("paste.example.org").unwrap(), "ClusterSandboxPolicy/baseline: deny.hosts[0]".into())],
        cluster: vec!["10.244.0.0/16".parse().unwrap()],
        budget: Budget { tunnels: 8, bytes: 1 << 20, bytes_per_second: None },
        expires,
    }
}

fn put(run: &str, token_number: u8, expires: Instant) -> Message {
    Message::Put(Box::new(grant(run, token_number, expires)))
}

#[rstest]
#[case::exact("api.example.com:443", Ok(("api", Protocol::Tls)))]
#[case::capitals("API.EXAMPLE.COM:443", Ok(("api", Protocol::Tls)))]
#[case::below("a.b.example.org:8443", Ok(("more", Protocol::Tls)))]
#[case::net("192.0.2.7:5432", Ok(("database", Protocol::Tcp)))]
#[case::plain("http://old.example.org:80", Ok(("plain", Protocol::Http)))]
#[case::plain_at_another_port("http://old.example.org:81", Err("plain"))]
#[case::plain_where_tls_is_granted("http://api.example.com:443", Err("built-in: network"))]
#[case::tunnel_where_plain_is_granted("old.example.org:80", Err("all"))]
#[case::plain_to_an_address("http://192.0.2.7:5432", Err("built-in: network"))]
#[case::plain_and_denied("http://paste.example.org:80", Err("ClusterSandboxPolicy/baseline: deny.hosts[0]"))]
#[case::other_port("api.example.com:22", Err("api"))]
#[case::other_port_of_the_net("192.0.2.7:22", Err("database"))]
#[case::apex("example.org:443", Err("built-in: network"))]
#[case::suffix_trick("api.example.com.evil.example:443", Err("built-in: network"))]
#[case::prefix_trick("evilexample.org:443", Err("built-in: network"))]
#[case::below_an_exact_one("x.api.example.com:443", Err("built-in: network"))]
#[case::address_of_no_net("192.0.3.1:5432", Err("built-in: network"))]
#[case::address_where_a_name_is_granted("203.0.113.1:443", Err("built-in: network"))]
#[case::mapped_address("[::ffff:192.0.2.7]:5432", Err("built-in: network"))]
#[case::denied("paste.example.org:443", Err("ClusterSandboxPolicy/baseline: deny.hosts[0]"))]
fn one_function_decides_on_every_destination(#[case] to: &str, #[case] expected: Result<(&str, Protocol), &str>) {
    let (to, way) = to.strip_prefix("http://").map_or((to, Way::Tunnel), |to| (to, Way::Http));
    let to = Authority::parse(to).unwrap();
    let decided = grant("r", 1, Instant::now()).decide(&to, way);
    // As a run asks for it.
    let scheme = match (&to.host, way) {
        (Host::Address(_), _) => "tcp://",
        (Host::Name(_), Way::Http) => "http://",
        (Host::Name(_), Way::Tunnel) => "",
    };
    let ask = format!("{scheme}{to}");
    match expected {
        Ok((expected, spoken)) => {
            assert!(matches!(decided, Verdict::Granted { rule, protocol, .. } if rule == expected && protocol == spoken));
        }
        Err(rule) => assert_eq!(decided, Verdict::Refused { rule: rule.into(), ask }),
    }
}

#[rstest]
#[case("in.example.org:443", json!([[], ["10.7.0.0/16"]]))]
#[case("out.example.org:443", json!([[]]))]
#[case("in.example.org:8443", json!([[]]))]
#[case("192.0.2.7:5432", json!([["192.0.2.0/24"]]))]
fn what_one_destination_may_lead_to_another_may_not(#[case] to: &str, #[case] expected: Value) {
    let decided = grant("r", 1, Instant::now()).decide(&Authority::parse(to).unwrap(), Way::Tunnel);
    let Verdict::Granted { addresses, .. } = decided else { panic!("{decided:?}") };
    // One for each rule that matches, each of one policy.
    let allowed: Vec<Vec<IpNet>> = serde_json::from_value(expected).unwrap();
    let allowed = allowed.into_iter().map(|nets| ByName(vec![nets])).collect();
    assert_eq!(addresses, Addresses { allowed, denied: vec!["10.244.0.0/16".parse().unwrap()] });
}

#[test]
fn nothing_is_granted_before_everything_was_told() {
    let now = Instant::now();
    let later = now + Duration::from_secs(60);
    let mut grants = Grants::default();
    let asked = |grants: &Grants| grants.of(&token(1), ip(POD), now).map(|grant| grant.run.clone());
    assert_eq!(asked(&grants), Err(NoGrant::NotReady));
    // A gateway that has just started hears of a change before it hears of the whole.
    grants.hear(put("one", 1, later), now);
    assert_eq!(asked(&grants), Err(NoGrant::NotReady));
    grants.hear(Message::End, now);
    assert_eq!(asked(&grants), Err(NoGrant::NotReady), "an end without a beginning");
    grants.hear(Message::Begin, now);
    grants.hear(put("one", 1, later), now);
    assert_eq!(asked(&grants), Err(NoGrant::NotReady));
    grants.hear(Message::End, now);
    assert_eq!(asked(&grants), Ok("one".into()));
    grants.disconnected();
    assert_eq!(asked(&grants), Err(NoGrant::NotReady));
}

#[test]
fn a_token_counts_for_its_pod_until_its_run_ends() {
    let now = Instant::now();
    let end = now + Duration::from_secs(3);
    let mut grants = Grants::default();
    for message in [Message::Begin, put("one", 1, end), put("two", 2, end), Message::End] {
        assert!(grants.hear(message, now).is_empty());
    }
    assert!(grants.of(&token(1), ip(POD), now).is_ok());
    assert!(grants.of(&token(1), ip("fd00::3"), now).is_ok());
    assert_eq!(grants.of(&token(1), ip("10.1.2.4"), now).unwrap_err(), NoGrant::OtherPod { run: "team/run".into() });
    assert_eq!(grants.of(&token(3), ip(POD), now).unwrap_err(), NoGrant::Unknown);
    assert_eq!(grants.of(&token(1), ip(POD), end).unwrap_err(), NoGrant::Unknown);
    assert_eq!(grants.expired(now), Vec::<String>::new());
    assert_eq!(grants.expired(end).len(), 2);
    assert_eq!(grants.hear(Message::Remove("one".into()), now), ["one"]);
    assert_eq!(grants.of(&token(1), ip(POD), now).unwrap_err(), NoGrant::Unknown);
    assert!(grants.hear(Message::Remove("one".into()), now).is_empty());
}

#[test]
fn who_is_not_heard_does_not_count_any_more() {
    let now = Instant::now();
    let mut grants = Grants::default();
    for message in [Message::Begin, put("one", 1, now + Duration::from_secs(600)), Message::End] {
        grants.hear(message, now);
    }
    let just = now + Duration::from_millis(4999);
    assert!(grants.of(&token(1), ip(POD), just).is_ok());
    assert_eq!(grants.of(&token(1), ip(POD), now + STALE_AFTER).unwrap_err(), NoGrant::Stale);
    grants.hear(Message::Beat, now + STALE_AFTER);
    assert!(grants.of(&token(1), ip(POD), now + STALE_AFTER).is_ok());
}

#[test]
fn tunnels_are_cut_where_the_grant_is_another_and_only_there() {
    let now = Instant::now();
    let (end, later) = (now + Duration::from_secs(60), now + Duration::from_secs(90));
    let mut grants = Grants::default();
    for message in [Message::Begin, put("one", 1, end), put("two", 2, end), put("three", 3, end), Message::End] {
        grants.hear(message, now);
    }
    assert!(grants.hear(put("one", 1, later), now).is_empty(), "it only lives longer");
    let mut narrower = grant("one", 1, later);
    narrower.rules.pop();
    assert_eq!(grants.hear(Message::Put(Box::new(narrower)), now), ["one"]);
    // Told anew: what is the same goes on, what has changed or gone does not.
    assert!(grants.hear(Message::Begin, now).is_empty());
    assert!(grants.hear(put("two", 2, end), now).is_empty());
    assert_eq!(grants.hear(put("one", 9, later), now), ["one"]);
    assert_eq!(grants.hear(Message::End, now), ["three"]);
    assert!(grants.of(&token(9), ip(POD), now).is_ok());
    assert_eq!(grants.of(&token(1), ip(POD), now).unwrap_err(), NoGrant::Unknown);
}

fn any_message(now: Instant) -> impl Strategy<Value = Message> {
    // Each run has tokens of its own, as the operator makes them.
    let run = prop::sample::select(vec![("a", 0), ("b", 2), ("c", 4)]);
    prop_oneof![
        Just(Message::Begin),
        Just(Message::End),
        Just(Message::Beat),
        run.clone().prop_map(|(run, _)| Message::Remove(run.into())),
        (run, 0_u8..2, 1_u64..9).prop_map(move |((run, own), number, seconds)| put(run, own + number, now + Duration::from_secs(seconds))),
    ]
}

proptest! {
    /// Whatever was said, and however it was cut short: what counts was put last for that run in a telling that came to its end, or after it.
    #[test]
    fn what_counts_was_said_last(history in Just(Instant::now()).prop_flat_map(|now| (Just(now), prop::collection::vec(prop::option::weighted(0.9, any_message(now)), 0..30)))) {
        let (now, history) = history;
        let mut grants = Grants::default();
        let mut said: HashMap<String, Grant> = HashMap::new();
        let mut telling: Option<HashMap<String, Grant>> = None;
        let mut is_whole = false;
        for step in history {
            let Some(message) = step else {
                grants.disconnected();
                (telling, is_whole) = (None, false);
                continue;
            };
            match &message {
                Message::Begin => (telling, is_whole) = (Some(HashMap::new()), false),
                Message::Put(grant) => {
                    said.insert(grant.run.clone(), (**grant).clone());
                    if let Some(telling) = &mut telling { telling.insert(grant.run.clone(), (**grant).clone()); }
                }
                Message::Remove(run) => {
                    said.remove(run);
                    if let Some(telling) = &mut telling { telling.remove(run); }
                }
                Message::End => {
                    is_whole = telling.is_some();
                    if let Some(telling) = telling.take() { said = telling; }
                }
                Message::Beat => {}
            }
            grants.hear(message, now);
        }
        for number in 0..6 {
            match grants.of(&token(number), ip(POD), now) {
                Ok(grant) => prop_assert!(is_whole && said.get(&grant.run) == Some(grant) && grant.token == token(number)),
                Err(NoGrant::NotReady) => prop_assert!(!is_whole),
                Err(NoGrant::Unknown) => prop_assert!(is_whole && said.values().all(|grant| grant.token != token(number))),
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
    }
}
