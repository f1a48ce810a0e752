use paddock_crds::{Limits, Runtime};
use rstest::rstest;

use super::*;

fn runtime(name: &str, image: Option<&str>) -> Runtime {
    let command = image.map(|_| vec!["/usr/bin/python3".into()]);
    Runtime { name: name.into(), image: image.map(Into::into), command, extension: None, language: None, pre_start: None }
}

fn policy(kind: PolicyKind, name: &str, runtimes: Vec<Runtime>, limits: Limits) -> Policy {
    let taken = TakenPolicy { kind, name: name.into(), uid: "u".into(), author: None, generation: 1, hash: "h".into() };
    let effect = if kind == PolicyKind::ClusterSandboxPolicy { Effect::Allow } else { Effect::Restrict };
    Policy::new(taken, effect, PolicyRules { runtimes: Some(runtimes), limits, ..PolicyRules::default() })
}

fn restricting(limits: Limits) -> Policy {
    let mut policy = policy(PolicyKind::ClusterSandboxPolicy, "narrow", Vec::new(), limits);
    policy.effect = Effect::Restrict;
    policy.rules.runtimes = None;
    policy
}

fn cluster(limits: Limits) -> Policy {
    policy(PolicyKind::ClusterSandboxPolicy, "baseline", vec![runtime("python", Some("img"))], limits)
}

fn tenant(limits: Limits) -> Policy {
    policy(PolicyKind::SandboxPolicy, "default", vec![runtime("python", None)], limits)
}

fn ask() -> Ask {
    Ask {
        runtime: "python".into(),
        resources: ResourceAmounts::default(),
        timeout_seconds: None,
        grace_period_seconds: None,
        priority: None,
        capabilities: Capabilities::default(),
        objects: Objects::new(),
        at_gateway: AtGateway::new(),
        gateway: Gateway::Installed,
    }
}

fn amounts(memory: &str) -> ResourceAmounts {
    ResourceAmounts { memory: Some(Raw(memory.into())), cpu: None, scratch: None }
}

fn max_memory(memory: &str) -> Limits {
    Limits { max: Some(amounts(memory)), ..Limits::default() }
}

fn reason(outcome: &Outcome) -> &Reason {
    &outcome.result.as_ref().unwrap_err().reason
}

#[test]
fn built_in_values_hold_where_no_policy_says_anything() {
    let grant = decide(&[cluster(Limits::default()), tenant(Limits::default())], &ask()).result.unwrap();
    assert_eq!((grant.memory_bytes, grant.cpu_milli, grant.scratch_bytes), (128 << 20, 500, 16 << 20));
    assert_eq!((grant.timeout_seconds, grant.grace_seconds, grant.queue.concurrent, grant.queue.queued), (30, 5, 10, 100));
    let command = vec!["/usr/bin/python3".into()];
    assert_eq!(grant.runtime, RuntimeGrant { image: "img".into(), command, extension: None, language: None, pre_start: None });
}

#[test]
fn an_interpreter_begins_before_its_script_where_the_cluster_says_so_and_nobody_says_otherwise() {
    use PreStart::{Never, Node, Python};
    let said = |cluster_says, tenant_says| {
        let with = |image, pre_start| vec![Runtime { pre_start, ..runtime("python", image) }];
        let above = policy(PolicyKind::ClusterSandboxPolicy, "above", with(Some("img"), cluster_says), Limits::default());
        let below = policy(PolicyKind::SandboxPolicy, "limited", with(None, tenant_says), Limits::default());
        decide(&[above, below], &ask()).result.unwrap().runtime.pre_start
    };
    for (above, below, expected) in [
        (None, None, None),
        (Some(Python), None, Some(Python)),
        (None, Some(Python), None),
        (Some(Python), Some(Python), Some(Python)),
        (Some(Python), Some(Node), None),
        (Some(Python), Some(Never), None),
        (Some(Never), Some(Python), None),
        (None, Some(Never), None),
    ] {
        assert_eq!(said(above, below), expected, "{above:?} {below:?}");
    }
}

#[test]
fn without_a_cluster_policy_nothing_runs() {
    assert_eq!(reason(&decide(&[tenant(Limits::default())], &ask())), &Reason::NoClusterPolicy);
    assert_eq!(reason(&decide(&[] as &[Policy], &ask())), &Reason::NoClusterPolicy);
}

#[rstest]
#[case::within("64Mi", "128Mi", "256Mi", None)]
#[case::cluster_tier_holds("200Mi", "128Mi", "256Mi", Some(Reason::LimitExceeded))]
#[case::tenant_tier_holds("200Mi", "256Mi", "128Mi", Some(Reason::LimitExceeded))]
#[case::exactly("128Mi", "128Mi", "256Mi", None)]
#[case::no_quantity("12x", "128Mi", "256Mi", Some(Reason::InvalidSpec))]
fn the_smallest_maximum_holds(#[case] asked: &str, #[case] cluster_max: &str, #[case] tenant_max: &str, #[case] refused: Option<Reason>) {
    let policies = [cluster(max_memory(cluster_max)), tenant(max_memory(tenant_max))];
    let outcome = decide(&policies, &Ask { resources: amounts(asked), ..ask() });
    assert_eq!(outcome.result.as_ref().err().map(|refusal| refusal.reason.clone()), refused);
    assert_eq!(outcome.decisions.iter().filter(|decision| decision.permission.starts_with("memory:")).count(), 1);
}

#[rstest]
#[case::cluster_alone(Some("ts"), None, Ok(Some("ts")))]
#[case::both(Some("ts"), Some("ts"), Ok(Some("ts")))]
#[case::neither(None, None, Ok(None))]
#[case::another(Some("ts"), Some("js"), Err(Reason::PolicyInvalid))]
fn policies_agree_on_the_extension(
    #[case] cluster: Option<&str>,
    #[case] tenant: Option<&str>,
    #[case] expected: Result<Option<&str>, Reason>,
) {
    let with = |kind, image, extension: Option<&str>| {
        let runtime = Runtime { extension: extension.map(Into::into), ..runtime("python", image) };
        policy(kind, "p", vec![runtime], Limits::default())
    };
    let policies = [with(PolicyKind::ClusterSandboxPolicy, Some("img"), cluster), with(PolicyKind::SandboxPolicy, None, tenant)];
    let answer = decide(&policies, &ask()).result.map(|grant| grant.runtime.extension).map_err(|refusal| refusal.reason);
    assert_eq!(answer, expected.map(|extension| extension.map(Into::into)));
}

#[test]
fn without_a_maximum_nobody_gets_more_than_the_default() {
    let policies = [cluster(Limits { default: Some(amounts("64Mi")), ..Limits::default() })];
    assert_eq!(decide(&policies, &ask()).result.unwrap().memory_bytes, 64 << 20);
    assert_eq!(reason(&decide(&policies, &Ask { resources: amounts("65Mi"), ..ask() })), &Reason::LimitExceeded);
    assert_eq!(reason(&decide(&policies, &Ask { timeout_seconds: Some(31), ..ask() })), &Reason::LimitExceeded);
}

#[test]
fn a_runtime_must_be_offered_by_all_and_mean_the_same() {
    let other_image = policy(PolicyKind::SandboxPolicy, "p", vec![runtime("python", Some("other"))], Limits::default());
    assert_eq!(reason(&decide(&[cluster(Limits::default()), other_image], &ask())), &Reason::PolicyInvalid);
    let without = policy(PolicyKind::SandboxPolicy, "p", vec![], Limits::default());
    assert_eq!(reason(&decide(&[cluster(Limits::default()), without], &ask())), &Reason::RuntimeNotAllowed);
    let nameless = policy(PolicyKind::ClusterSandboxPolicy, "c", vec![runtime("python", None)], Limits::default());
    assert_eq!(reason(&decide(&[nameless], &ask())), &Reason::PolicyInvalid);
}

#[test]
fn every_capability_is_answered_by_name() {
    let capabilities = Capabilities {
        network: vec!["a.example".into()],
        secrets: vec!["s".into()],
        data: vec!["d".into()],
        volumes: vec!["v".into()],
        dynamic_code: true,
        subprocess: true,
        partial: false,
    };
    let outcome = decide(&[cluster(Limits::default())], &Ask { capabilities, ..ask() });
    assert_eq!(reason(&outcome), &Reason::CapabilityRefused);
    let refused: Vec<&str> = outcome
        .decisions
        .iter()
        .filter(|decision| decision.verdict == Verdict::Refused)
        .map(|decision| decision.permission.as_str())
        .collect();
    assert_eq!(refused, ["network:a.example:443", "secrets:s", "data:d", "volumes:v", "dynamicCode", "subprocess"]);
}

#[test]
fn a_policy_of_the_namespace_counts_its_own_runs_beside_those_of_the_namespace() {
    let at_most = |count| Limits { max_concurrent: Some(count), ..Limits::default() };
    let grant = |cluster_limit, tenant_limit| decide(&[cluster(cluster_limit), tenant(tenant_limit)], &ask()).result.unwrap();
    let narrower = grant(at_most(8), at_most(2));
    assert_eq!((narrower.queue.policy_concurrent, narrower.queue.concurrent), (Some(2), 8));
    let wider = grant(at_most(8), at_most(20));
    assert_eq!((wider.queue.policy_concurrent, wider.queue.concurrent), (Some(20), 8));
    let silent = grant(Limits::default(), Limits::default());
    assert_eq!((silent.queue.policy_concurrent, silent.queue.concurrent, silent.queue.weight), (None, 10, 100));
}

#[test]
fn scratch_must_fit_into_memory() {
    let outcome = decide(&[cluster(max_memory("1Gi"))], &Ask { resources: amounts("40Mi"), ..ask() });
    assert_eq!(reason(&outcome), &Reason::InvalidSpec);
}

#[test]
fn the_hash_does_not_depend_on_the_order_of_keys() {
    let one: serde_json::Value = serde_json::from_str(r#"{"a":1,"b":2}"#).unwrap();
    let other: serde_json::Value = serde_json::from_str(r#"{"b":2,"a":1}"#).unwrap();
    assert_eq!(hash_of(&one), hash_of(&other));
}

#[test]
fn a_refusal_names_the_limit_its_rule_and_how_many_more_there_are() {
    let limits = Limits { max_timeout_seconds: Some(60), ..max_memory("128Mi") };
    let asked = Ask { resources: amounts("1Gi"), timeout_seconds: Some(90), ..ask() };
    let message = |policies: &[Policy], ask: &Ask| decide(policies, ask).result.unwrap_err().message;
    assert_eq!(
        message(&[cluster(limits.clone())], &asked),
        "memory 1Gi is more than the 128Mi that is allowed (ClusterSandboxPolicy/baseline: limits.max.memory); and 1 more, see status.decisions"
    );
    let asked = Ask { timeout_seconds: Some(90), ..ask() };
    assert_eq!(
        message(&[cluster(limits)], &asked),
        "timeoutSeconds 90 is more than the 60 that are allowed (ClusterSandboxPolicy/baseline: limits.maxTimeoutSeconds)"
    );
    let by_default = Limits { default_timeout_seconds: Some(20), ..Limits::default() };
    assert!(
        message(&[cluster(by_default)], &asked)
            .contains("the 20 that are allowed (ClusterSandboxPolicy/baseline: limits.defaultTimeoutSeconds)")
    );
    assert!(message(&[cluster(Limits::default())], &asked).contains("the 30 that are allowed (built-in: timeoutSeconds)"));
}

#[test]
fn policies_that_contradict_themselves_are_not_blamed_on_the_run() {
    assert_eq!(reason(&decide(&[cluster(max_memory("32Mi"))], &ask())), &Reason::PolicyInvalid);
    // Each is right by itself.
    let scratch = ResourceAmounts { scratch: Some(Raw("64Mi".into())), ..ResourceAmounts::default() };
    let together = [cluster(Limits { default: Some(scratch), ..Limits::default() }), restricting(max_memory("80Mi"))];
    assert!(together.iter().all(|policy| policy.problems.is_empty()));
    assert_eq!(reason(&decide(&together, &ask())), &Reason::PolicyInvalid);
    let asked = Ask { resources: amounts("80Mi"), ..ask() };
    assert_eq!(reason(&decide(&together, &asked)), &Reason::InvalidSpec);
}

#[test]
fn no_policy_of_a_namespace_widens_the_cluster_tier() {
    let wide = tenant(Limits {
        max: Some(amounts("64Gi")),
        max_timeout_seconds: Some(86400),
        max_grace_period_seconds: Some(300),
        max_concurrent: Some(10_000),
        max_queued: Some(100_000),
        ..Limits::default()
    });
    let only_defaults = Limits { default: Some(amounts("64Mi")), default_timeout_seconds: Some(20), ..Limits::default() };
    for limits in [Limits::default(), only_defaults] {
        let (alone, with) = ([cluster(limits.clone())], [cluster(limits), wide.clone()]);
        for asked in [
            Ask { resources: amounts("1Gi"), ..ask() },
            Ask { timeout_seconds: Some(60), ..ask() },
            Ask { grace_period_seconds: Some(60), ..ask() },
        ] {
            assert_eq!(reason(&decide(&alone, &asked)), &Reason::LimitExceeded);
            assert_eq!(reason(&decide(&with, &asked)), &Reason::LimitExceeded);
        }
        let [alone, with] = [decide(&alone, &ask()), decide(&with, &ask())].map(|outcome| outcome.result.unwrap());
        assert_eq!((with.queue.concurrent, with.queue.queued), (alone.queue.concurrent, alone.queue.queued));
    }
}

#[test]
fn the_silence_of_a_policy_that_allows_is_the_built_in_value() {
    let wide = cluster(max_memory("4Gi"));
    let asked = Ask { resources: amounts("1Gi"), ..ask() };
    assert_eq!(decide(std::slice::from_ref(&wide), &asked).result.unwrap().memory_bytes, 1 << 30);
    let silent = policy(PolicyKind::ClusterSandboxPolicy, "silent", vec![runtime("python", Some("img"))], Limits::default());
    let refusal = decide(&[wide.clone(), silent], &asked).result.unwrap_err();
    assert_eq!(refusal.message, "memory 1Gi is more than the 128Mi that is allowed (built-in: memory)");
    let narrow = restricting(Limits { max_concurrent: Some(3), ..Limits::default() });
    let grant = decide(&[wide.clone(), narrow], &asked).result.unwrap();
    assert_eq!((grant.memory_bytes, grant.queue.concurrent), (1 << 30, 3));
}

#[test]
fn what_only_restricts_allows_nothing_by_itself() {
    assert_eq!(reason(&decide(&[restricting(Limits::default())], &ask())), &Reason::NoClusterPolicy);
    assert_eq!(reason(&decide(&[restricting(Limits::default()), tenant(Limits::default())], &ask())), &Reason::NoClusterPolicy);
}

#[rstest]
#[case::allows_and_is_silent(Effect::Allow, None, false)]
#[case::allows_none(Effect::Allow, Some(vec![]), false)]
#[case::restricts_and_is_silent(Effect::Restrict, None, true)]
#[case::restricts_to_none(Effect::Restrict, Some(vec![]), false)]
#[case::restricts_to_another(Effect::Restrict, Some(vec![runtime("shell", None)]), false)]
#[case::restricts_to_this(Effect::Restrict, Some(vec![runtime("python", None)]), true)]
fn a_list_that_is_empty_is_none_and_one_that_is_missing_is_silence(
    #[case] effect: Effect,
    #[case] runtimes: Option<Vec<Runtime>>,
    #[case] runs: bool,
) {
    let mut other = restricting(Limits::default());
    (other.effect, other.rules.runtimes) = (effect, runtimes);
    assert_eq!(decide(&[cluster(Limits::default()), other], &ask()).result.is_ok(), runs);
}

#[test]
fn a_policy_with_a_problem_refuses_every_run_and_names_it() {
    let broken =
        Limits { default: Some(amounts("2Gi")), default_timeout_seconds: Some(9), max_timeout_seconds: Some(8), ..max_memory("1Gi") };
    let refusal = decide(&[cluster(Limits::default()), tenant(broken)], &ask()).result.unwrap_err();
    assert_eq!(refusal.reason, Reason::PolicyInvalid);
    assert_eq!(
        refusal.message,
        "SandboxPolicy/default: limits.default.memory: 2Gi is more than limits.max.memory, 1Gi; and 1 more, see its status"
    );
}

#[test]
fn a_head_start_in_the_queue_is_allowed_by_all_or_not_at_all() {
    let asked = |priority| Ask { priority: Some(priority), ..ask() };
    let at_most = |most| Limits { max_priority: Some(most), ..Limits::default() };
    assert!(decide(&[cluster(Limits::default())], &asked(0)).result.is_ok());
    assert_eq!(reason(&decide(&[cluster(Limits::default())], &asked(1))), &Reason::LimitExceeded);
    assert!(decide(&[cluster(at_most(60))], &asked(60)).result.is_ok());
    assert_eq!(reason(&decide(&[cluster(at_most(60)), tenant(at_most(30))], &asked(60))), &Reason::LimitExceeded);
    assert_eq!(reason(&decide(&[cluster(Limits::default()), tenant(at_most(30))], &asked(20))), &Reason::LimitExceeded);
}
