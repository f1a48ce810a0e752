use paddock_crds::ScriptRunSpec;
use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use crate::capabilities::Object;
use crate::decide::RuntimeGrant;
use crate::network::Granted as GrantedDestination;
use crate::queue::QueueLimits;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

const DIGEST: &str = "d1";

fn to_approve(demands: Value) -> ToApprove {
    let demands: Vec<ApprovalDemand> = serde_json::from_value(demands).unwrap();
    ToApprove {
        demanded: demands.into_iter().map(|demand| Demanded { rule: format!("p: approvals[{}]", demand.name), demand }).collect(),
        digests: Digests { input: DIGEST.into(), schema: Some("s1".into()) },
        run_uid: "run-1".into(),
        excluded: ["jane", "joe", "author"].map(str::to_owned).into_iter().collect(),
    }
}

fn approval(approver: &str, groups: &[&str]) -> Approval {
    Approval {
        name: format!("by-{approver}"),
        uid: format!("uid-{approver}"),
        digest: DIGEST.into(),
        decision: ApprovalDecision::Approve,
        run_uid: None,
        created: at(0),
        expires_at: None,
        revoked: false,
        approver: Requester { username: approver.into(), uid: None, groups: groups.iter().map(|group| (*group).to_owned()).collect() },
    }
}

fn is_approved(demands: Value, approvals: &[Approval], now: i64) -> bool {
    matches!(approving(Some(&to_approve(demands)), approvals, at(now)), Approving::Approved(_))
}

#[rstest]
#[case::one(json!({}), &["anna"], true)]
#[case::nobody(json!({}), &[], false)]
#[case::the_requester(json!({}), &["jane"], false)]
#[case::for_whom_it_is(json!({}), &["joe"], false)]
#[case::who_wrote_a_policy(json!({}), &["author"], false)]
#[case::a_machine(json!({}), &["system:serviceaccount:ci:bot"], false)]
#[case::a_machine_that_may(json!({ "serviceAccounts": true }), &["system:serviceaccount:ci:bot"], true)]
#[case::two(json!({ "count": 2 }), &["anna", "bert"], true)]
#[case::the_same_twice(json!({ "count": 2 }), &["anna", "anna"], false)]
#[case::of_the_group(json!({ "groups": ["ops"] }), &["anna"], true)]
#[case::of_one_of_the_groups(json!({ "groups": ["sec", "ops"] }), &["anna"], true)]
#[case::of_another_group(json!({ "groups": ["sec"] }), &["anna"], false)]
#[case::of_no_group(json!({ "groups": [] }), &["anna"], false)]
fn enough_people_of_the_right_kind(#[case] demand: Value, #[case] approvers: &[&str], #[case] expected: bool) {
    let mut demand = demand;
    demand["name"] = "d".into();
    let approvals: Vec<Approval> = approvers.iter().map(|approver| approval(approver, &["ops"])).collect();
    assert_eq!(is_approved(json!([demand]), &approvals, 1), expected);
}

#[rstest]
#[case::another_digest(|a: &mut Approval| a.digest = "d2".into(), false)]
#[case::another_run(|a: &mut Approval| a.run_uid = Some("run-2".into()), false)]
#[case::this_run(|a: &mut Approval| a.run_uid = Some("run-1".into()), true)]
#[case::revoked(|a: &mut Approval| a.revoked = true, false)]
#[case::over(|a: &mut Approval| a.expires_at = Some(at(100)), false)]
#[case::not_over(|a: &mut Approval| a.expires_at = Some(at(101)), true)]
#[case::too_old(|a: &mut Approval| a.created = at(100 - 600), false)]
#[case::just_in_time(|a: &mut Approval| a.created = at(101 - 600), true)]
#[case::of_the_schema(|a: &mut Approval| a.digest = "s1".into(), false)]
fn an_approval_is_of_this_and_counts_for_a_time(#[case] change: fn(&mut Approval), #[case] expected: bool) {
    let mut approval = approval("anna", &[]);
    change(&mut approval);
    assert_eq!(is_approved(json!([{ "name": "d", "validSeconds": 600 }]), &[approval], 100), expected);
}

#[test]
fn a_denial_wins_over_any_number_of_approvals() {
    let mut denial = approval("jane", &[]);
    denial.decision = ApprovalDecision::Deny;
    let demands = json!([{ "name": "d" }]);
    let all = [approval("anna", &[]), denial.clone(), approval("bert", &[])];
    let came = approving(Some(&to_approve(demands.clone())), &all, at(1));
    assert!(matches!(came, Approving::Denied { by, .. } if by == "jane"), "also of the requester");
    denial.revoked = true;
    assert!(is_approved(demands, &[denial, approval("anna", &[])], 1));
}

#[test]
fn every_demand_must_be_answered_each_by_its_own_people() {
    let demands = json!([{ "name": "a", "groups": ["ops"] }, { "name": "b", "groups": ["sec"], "binding": "Schema", "waitSeconds": 5 }]);
    let ops = approval("anna", &["ops"]);
    let mut sec = approval("bert", &["sec"]);
    let Approving::Waiting { status, wait_seconds } = approving(Some(&to_approve(demands.clone())), [&ops, &sec], at(1)) else { panic!() };
    assert_eq!(wait_seconds, 5);
    assert_eq!(status.demanded.iter().map(|demanded| demanded.given.len()).collect::<Vec<_>>(), [1, 0], "the input is not the schema");
    sec.digest = "s1".into();
    let Approving::Approved(status) = approving(Some(&to_approve(demands)), [&ops, &sec], at(1)) else { panic!() };
    assert_eq!(status.demanded[1].given[0].approver, "bert");
    assert_eq!(approving(None, [&ops], at(1)), Approving::NotNeeded);
}

#[test]
fn a_run_that_brings_no_schema_needs_an_approval_of_its_input() {
    let mut to_approve = to_approve(json!([{ "name": "d", "binding": "Schema" }]));
    to_approve.digests.schema = None;
    assert!(matches!(approving(Some(&to_approve), &[approval("anna", &[])], at(1)), Approving::Approved(_)));
}

#[test]
fn what_runs_is_ended_if_the_policy_says_so_and_too_few_are_left() {
    let demands = |ends: bool| json!([{ "name": "d", "count": 1, "endsRunning": ends }]);
    let both = [approval("anna", &[]), approval("bert", &[])];
    for ends in [true, false] {
        let Approving::Approved(status) = approving(Some(&to_approve(demands(ends))), &both, at(1)) else { panic!() };
        assert!(!is_revoked(&status, "run-1", &both, at(1)));
        assert!(!is_revoked(&status, "run-1", &both[..1], at(1)), "one is enough");
        assert_eq!(is_revoked(&status, "run-1", &[], at(1)), ends);
        let mut revoked = both.clone();
        for approval in &mut revoked {
            approval.revoked = true;
        }
        assert_eq!(is_revoked(&status, "run-1", &revoked, at(1)), ends);
        assert!(!is_revoked(&status, "run-1", &both, at(1_000_000)), "it was fresh when it started");
        let mut denial = approval("carl", &[]);
        denial.decision = ApprovalDecision::Deny;
        let all = [both[0].clone(), both[1].clone(), denial.clone()];
        assert_eq!(is_revoked(&status, "run-1", &all, at(1)), ends);
        denial.digest = "s1".into();
        assert_eq!(is_revoked(&status, "run-1", &[both[0].clone(), denial], at(1)), ends);
    }
}

fn grant() -> Grant {
    Grant {
        runtime: RuntimeGrant {
            image: "registry.example/python@sha256:aa".into(),
            command: vec!["/usr/bin/python3".into(), "-I".into()],
            extension: None,
            language: None,
            pre_start: None,
        },
        memory_bytes: 134_217_728,
        cpu_milli: 500,
        scratch_bytes: 16_777_216,
        timeout_seconds: 30,
        grace_seconds: 5,
        capabilities: CapabilityGrant::default(),
        queue: QueueLimits { concurrent: 10, queued: 100, policy_concurrent: None, policy_queued: None, weight: 100, suspended: false },
    }
}

fn run(args: &[&str]) -> ScriptRun {
    let spec: ScriptRunSpec = serde_json::from_value(json!({
        "policyRef": { "kind": "SandboxPolicy", "name": "p" },
        "script": { "runtime": "python", "source": { "inline": "print(1)" }, "args": args },
    }))
    .unwrap();
    ScriptRun::new("run", spec)
}

/// The vectors of docs/approvals.md, by which others can check what they compute.
#[test]
fn the_digests_are_those_of_the_vectors() {
    let vectors: Vec<Value> = serde_json::from_str(include_str!("vectors.json")).unwrap();
    assert!(vectors.len() >= 3);
    for vector in vectors {
        let canonical = vector["canonical"].to_string();
        assert_eq!(sha256(canonical.as_bytes()), vector["digest"].as_str().unwrap(), "{canonical}");
    }
}

fn to(text: &str) -> GrantedDestination {
    let to = paddock_destination::Destination::parse(text).unwrap();
    GrantedDestination { to, rule: "rule".into(), addresses: paddock_destination::ByName::default(), https: None }
}

#[test]
fn a_digest_is_made_as_documented() {
    let [script, input, schema] = ["print(1)", "{\"a\":1}", "{\"type\":\"object\"}"].map(|text| sha256(text.as_bytes()));
    let found = digests(
        &run(&["--say", "h\u{e9} \"\n"]),
        &grant(),
        Hashes { script: &script, input: Some(&input), schema: Some(&schema), data: &BTreeMap::new() },
    );
    let vectors: Vec<Value> = serde_json::from_str(include_str!("vectors.json")).unwrap();
    assert_eq!(found.input, vectors[0]["digest"]);
    assert_eq!(found.schema.unwrap(), vectors[1]["digest"]);
    let mut typescript = grant();
    typescript.runtime.extension = Some("ts".into());
    let none = BTreeMap::new();
    let plain = Hashes { script: &script, input: None, schema: None, data: &none };
    assert_eq!(digests(&run(&[]), &typescript, plain).input, vectors[2]["digest"]);
    let mut given = grant();
    let object = |kind, name: &str| Object { kind, name: name.into() };
    given.capabilities.objects =
        vec![object(ObjectKind::Secret, "smtp"), object(ObjectKind::ConfigMap, "prices"), object(ObjectKind::ConfigMap, "rates")];
    given.capabilities.subprocess = true;
    let rates = data_hash(&BTreeMap::new(), &[("a".to_owned(), ByteString(vec![0, 255]))].into());
    let prices = data_hash(&[("eur.csv".to_owned(), "a,1\n".to_owned())].into(), &BTreeMap::new());
    let data = [("prices".to_owned(), prices), ("rates".to_owned(), rates)].into();
    assert_eq!(digests(&run(&[]), &given, Hashes { data: &data, ..plain }).input, vectors[3]["digest"]);
    let mut mounted = grant();
    mounted.capabilities.objects = vec![object(ObjectKind::PersistentVolumeClaim, "corpus")];
    assert_eq!(digests(&run(&[]), &mounted, plain).input, vectors[4]["digest"]);
    let mut connected = grant();
    connected.capabilities.network = ["tcp://10.20.0.0/16:5432", "api.example.com"].map(to).into();
    assert_eq!(digests(&run(&[]), &connected, plain).input, vectors[5]["digest"]);
    let secret = crate::SecretKey { name: "crm".into(), key: "token".into() };
    let field = Field { name: "authorization".into(), prefix: "Bearer ".into(), secret };
    let https = Some(Https { port: 443, fields: vec![field], authorities: Some("-----BEGIN CERTIFICATE-----".into()) });
    connected.capabilities.network = vec![GrantedDestination { https, ..to("http://api.example.com") }];
    assert_eq!(digests(&run(&[]), &connected, plain).input, vectors[6]["digest"]);
    // Whoever approved the host did not approve the Secret.
    connected.capabilities.network = vec![to("http://api.example.com")];
    assert_ne!(digests(&run(&[]), &connected, plain).input, vectors[6]["digest"]);
    for (name, content) in [("prices", "{\"data\":{\"eur.csv\":\"a,1\\n\"}}"), ("rates", "{\"binaryData\":{\"a\":\"AP8=\"}}")] {
        assert_eq!(data[name], sha256(content.as_bytes()));
    }
}

/// Every part of what was approved changes the digest, and none of what was not.
#[test]
fn whatever_could_matter_changes_the_digest() {
    type Change = fn(&mut Grant);
    let changes: [Change; 15] = [
        |grant| grant.runtime.image.push('b'),
        |grant| grant.runtime.command.push("-u".into()),
        |grant| grant.runtime.extension = Some("ts".into()),
        |grant| grant.memory_bytes += 1,
        |grant| grant.cpu_milli += 1,
        |grant| grant.scratch_bytes += 1,
        |grant| grant.timeout_seconds += 1,
        |grant| grant.grace_seconds += 1,
        |grant| grant.capabilities.network.push(to("api.example.com")),
        |grant| grant.capabilities.network.push(to("api.example.com:8443")),
        |grant| grant.capabilities.subprocess = true,
        |grant| grant.capabilities.dynamic_code = true,
        |grant| grant.capabilities.objects.push(Object { kind: ObjectKind::Secret, name: "a".into() }),
        |grant| grant.capabilities.objects.push(Object { kind: ObjectKind::ConfigMap, name: "a".into() }),
        |grant| grant.capabilities.objects.push(Object { kind: ObjectKind::PersistentVolumeClaim, name: "a".into() }),
    ];
    let of = |grant: &Grant, args: &[&str], script: &str, input| {
        digests(&run(args), grant, Hashes { script, input, schema: None, data: &BTreeMap::new() }).input
    };
    let mut all = BTreeSet::from([of(&grant(), &[], "s", None)]);
    for change in changes {
        let mut changed = grant();
        change(&mut changed);
        assert!(all.insert(of(&changed, &[], "s", None)), "{changed:?}");
    }
    for (args, script, input) in
        [(&["a"][..], "s", None), (&["a", "b"], "s", None), (&["ab"], "s", None), (&[], "t", None), (&[], "s", Some("i"))]
    {
        assert!(all.insert(of(&grant(), args, script, input)), "{args:?} {script} {input:?}");
    }
    let mut sooner = grant();
    sooner.runtime.pre_start = Some(paddock_crds::PreStart::Python);
    assert!(all.contains(&of(&sooner, &[], "s", None)));
    let mut queue = grant();
    (queue.queue.concurrent, queue.queue.queued) = (1, 2);
    assert!(all.contains(&of(&queue, &[], "s", None)), "how many others run does not matter");
}

proptest! {
    /// One demand more never lets anything run that would not have run.
    #[test]
    fn one_demand_more_never_approves(counts in prop::collection::vec(1..4_i64, 1..4), approvers in prop::collection::vec(0..6_usize, 0..6)) {
        let names = ["anna", "bert", "carl", "jane", "system:serviceaccount:a:b", "author"];
        let approvals: Vec<Approval> = approvers.iter().map(|index| approval(names[*index], &[])).collect();
        let demands: Vec<Value> = counts.iter().enumerate().map(|(n, count)| json!({ "name": format!("d{n}"), "count": count })).collect();
        let mut was_approved = true;
        for more in 1..=demands.len() {
            let is_approved = is_approved(Value::from(demands[..more].to_vec()), &approvals, 1);
            prop_assert!(was_approved || !is_approved);
            was_approved = is_approved;
        }
    }
}
