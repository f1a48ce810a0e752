//! What a run that lives is granted of the network. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use paddock_crds::{ConditionType, PolicyRef, ScriptRun, ScriptRunStatus, Verdict};
use paddock_egress::ask::hash;
use paddock_egress::wire::{Told, ToldRule, token_text};
use paddock_policy::{NETWORK_PERMISSION, Policy, SecretKey, adding, network_limits, still_granted};

use super::secrets::{self, Needs, Place, Values};
use crate::config::Settings;
use crate::script_run::pod_facts::PodSeen;
use crate::script_run::validate::PoliciesSeen;

/// Nets and denied hosts together that are told of one run: with more it is granted nothing. One policy cannot bring so many about; a line to the
/// gateway is longer.
const MOST: usize = 40_000;
/// Seconds beyond its time after which a run that was forgotten by everybody has no network any more.
const BEYOND: u64 = 60;

/// A run that has a pod, and was granted something of the network.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Live {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) policy: PolicyRef,
    /// What was granted when it was admitted, as in `status.decisions`.
    pub(crate) permissions: Vec<String>,
    /// What the gateway might add, as it was decided then.
    pub(crate) secrets: BTreeSet<SecretKey>,
    pub(crate) pod: Vec<IpAddr>,
    pub(crate) has_started: bool,
    pub(crate) expires: Instant,
}

impl Live {
    /// Whatever became of the clock.
    pub(crate) fn is_the_same(&self, other: &Self) -> bool {
        Self { expires: self.expires, ..other.clone() } == *self
    }
}

/// What there is to be told of a run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ToTell {
    /// It was granted nothing of the network, or has no pod, or is being ended.
    Nothing,
    /// Its pod has no address yet.
    NothingYet,
    /// What it was granted counts.
    This(Live),
}

/// What a run was granted of the network when it was admitted.
pub(crate) fn permissions(status: &ScriptRunStatus) -> impl Iterator<Item = &str> {
    let granted = status.decisions.iter().filter(|decision| decision.verdict == Verdict::Granted);
    granted.map(|decision| decision.permission.as_str()).filter(|permission| permission.starts_with(NETWORK_PERMISSION))
}

/// Decides what there is to be told.
pub(crate) fn to_tell(run: &ScriptRun, pod: &PodSeen, settings: &Settings, now: Instant) -> ToTell {
    let (Some(status), PodSeen::Present(pod)) = (run.status.as_ref(), pod) else { return ToTell::Nothing };
    let is_over = status.is_true(&ConditionType::Finished)
        || status.is_true(&ConditionType::ResultReady)
        || status.stopping.is_some()
        || run.metadata.deletion_timestamp.is_some()
        || pod.deleting
        || pod.ended().is_some();
    let permissions: Vec<String> = permissions(status).map(ToOwned::to_owned).collect();
    if is_over || !status.is_true(&ConditionType::Admitted) || permissions.is_empty() {
        return ToTell::Nothing;
    }
    if pod.addresses.is_empty() {
        return ToTell::NothingYet;
    }
    let seconds = |value: Option<i64>| u64::try_from(value.unwrap_or(0)).unwrap_or(0);
    let lifetime = u64::from(settings.start_budget_seconds) + seconds(status.timeout_seconds) + BEYOND;
    ToTell::This(Live {
        namespace: run.metadata.namespace.clone().unwrap_or_default(),
        name: run.metadata.name.clone().unwrap_or_default(),
        policy: run.spec.policy_ref.clone(),
        permissions,
        secrets: secrets::decided(status),
        pod: pod.addresses.clone(),
        has_started: status.is_true(&ConditionType::Started),
        expires: now + Duration::from_secs(lifetime),
    })
}

/// As the gateway is told it. A run that is granted nothing any more is known all the same: what it asks for is refused for that reason.
/// What it needs of Secrets is put into `needs`, and told as far as `values` has it.
pub(crate) fn told(
    (uid, live): (&str, &Live),
    policies: &PoliciesSeen,
    token: &str,
    cluster: &[IpNet],
    (values, needs): (&Values, &mut Needs),
) -> Told {
    let taking_part: Vec<&Policy> = policies.taking_part.iter().map(AsRef::as_ref).collect();
    // A policy that the run names and that is not there any more may have narrowed what the others grant.
    let is_named = |policy: &&Policy| policy.taken.kind == live.policy.kind && policy.taken.name == live.policy.name;
    let are_known = policies.unusable.is_none() && policies.gone.is_empty() && taking_part.iter().any(is_named);
    let (granted, denied) = if are_known { still_granted(&taking_part, &live.permissions) } else { (Vec::new(), Vec::new()) };
    let nets: usize = granted.iter().map(|granted| granted.addresses.0.iter().map(Vec::len).sum::<usize>()).sum();
    let (granted, denied) = if nets + denied.len() > MOST { (Vec::new(), Vec::new()) } else { (granted, denied) };
    let rules = granted.into_iter().map(|granted| {
        let adding: Vec<Arc<Policy>> = adding(&policies.taking_part, &granted.to).into_iter().cloned().collect();
        let value = |secret: &SecretKey| {
            let place = Place::new(&live.namespace, secret, &adding);
            // What was not decided on is not added, and nothing is asked without it.
            let value = live.secrets.contains(secret).then(|| values.get(&place).cloned().flatten());
            needs.insert(place, adding.clone());
            value.flatten()
        };
        let https = granted.https.map(|https| secrets::told(https, value));
        ToldRule { name: granted.rule, to: granted.to.to_string(), allowed: granted.addresses, https }
    });
    let rules: Vec<ToldRule> = rules.collect();
    let limits = network_limits(&taking_part);
    Told {
        run: uid.to_owned(),
        name: format!("{}/{}", live.namespace, live.name),
        token: token_text(&hash(token.as_bytes())),
        pod: live.pod.clone(),
        rules,
        denied: denied.into_iter().map(|(hosts, rule)| (hosts.to_string(), rule)).collect(),
        cluster: cluster.to_vec(),
        expires_in: 0,
        tunnels: limits.connections,
        bytes: limits.bytes,
        bytes_per_second: limits.bytes_per_second,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use paddock_crds::{Decision, Effect, PolicyKind, PolicyRef, Reason, TakenPolicy};
    use paddock_egress::https::SecretText;
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;
    use crate::script_run::fixtures::{a_pod, admitted, settings};
    use crate::script_run::pod_facts::PodFacts;

    fn granted_run() -> ScriptRun {
        let mut run = admitted(0);
        let decision = |permission: &str, verdict| Decision { permission: permission.into(), verdict, rule: "rule".into() };
        run.status.as_mut().unwrap().decisions = vec![
            decision("network:api.example.com:443", Verdict::Granted),
            decision("network:www.example.com:443", Verdict::Refused),
            decision("runtime:python", Verdict::Granted),
        ];
        run
    }

    fn of(run: &ScriptRun, change: impl FnOnce(&mut PodFacts)) -> ToTell {
        let mut pod = a_pod(run);
        change(&mut pod);
        to_tell(run, &PodSeen::Present(Box::new(pod)), &settings(), Instant::now())
    }

    fn micro() -> k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime {
        k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(jiff::Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn what_was_granted_is_told_while_the_run_has_a_pod_with_an_address() {
        let run = granted_run();
        let ToTell::This(live) = of(&run, |_| ()) else { panic!("nothing is told") };
        assert_eq!((live.permissions.as_slice(), live.pod.len()), (["network:api.example.com:443".to_owned()].as_slice(), 1));
        assert_eq!(of(&run, |pod| pod.addresses.clear()), ToTell::NothingYet);
        assert_eq!(of(&run, |pod| pod.deleting = true), ToTell::Nothing);
        assert_eq!(of(&admitted(0), |_| ()), ToTell::Nothing);
        assert_eq!(to_tell(&run, &PodSeen::Absent, &settings(), Instant::now()), ToTell::Nothing);
    }

    #[rstest]
    #[case::stopping(|run: &mut ScriptRun| run.status.as_mut().unwrap().stopping = Some(paddock_crds::Stopping { reason: Reason::Cancelled, since: micro() }))]
    #[case::deleted(|run: &mut ScriptRun| run.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH)))]
    fn what_is_being_ended_is_granted_nothing(#[case] change: fn(&mut ScriptRun)) {
        let mut run = granted_run();
        change(&mut run);
        assert_eq!(of(&run, |_| ()), ToTell::Nothing);
    }

    fn policies(rules: Value) -> PoliciesSeen {
        let taken = TakenPolicy {
            kind: PolicyKind::ClusterSandboxPolicy,
            name: "baseline".into(),
            uid: String::new(),
            author: None,
            generation: 1,
            hash: String::new(),
        };
        let policy = Policy::new(taken, Effect::Allow, serde_json::from_value(rules).unwrap());
        PoliciesSeen { taking_part: vec![Arc::new(policy)], ..PoliciesSeen::default() }
    }

    #[test]
    fn policies_that_do_not_grant_it_any_more_leave_no_rule() {
        let ToTell::This(live) = of(&granted_run(), |_| ()) else { panic!("nothing is told") };
        let nets: Vec<IpNet> = vec!["10.244.0.0/16".parse().unwrap()];
        let told = |policies: &PoliciesSeen| told(("uid", &live), policies, "token", &nets, (&Values::new(), &mut Needs::new()));
        let grants = |hosts: &str| json!({ "capabilities": { "network": [{ "hosts": [hosts] }] }, "deny": { "hosts": ["x.example.com"] } });
        let one = told(&policies(grants("*.example.com")));
        assert_eq!((one.rules.len(), one.rules[0].to.as_str()), (1, "api.example.com:443"));
        assert_eq!((one.denied.len(), one.cluster.as_slice()), (1, nets.as_slice()));
        assert!(!one.token.contains("token"), "only the hash is told");
        assert_eq!((one.tunnels, one.bytes), (64, 1 << 30));
        let mut bounded = grants("*.example.com");
        bounded["limits"] = json!({ "maxConnections": 2, "maxNetworkBytes": 1000, "maxNetworkBytesPerSecond": 2048 });
        let bounded = told(&policies(bounded));
        assert_eq!((bounded.tunnels, bounded.bytes, bounded.bytes_per_second), (2, 1000, Some(2048)));
        for nothing in [
            policies(grants("*.example.org")),
            PoliciesSeen { unusable: Some("x".into()), ..policies(grants("*.example.com")) },
            PoliciesSeen { gone: ["strict".into()].into(), ..policies(grants("*.example.com")) },
        ] {
            assert_eq!(told(&nothing).rules, []);
        }
        // The SandboxPolicy that the run names was deleted: what it had narrowed is not wide again.
        let live = Live { policy: PolicyRef { kind: PolicyKind::SandboxPolicy, name: "narrow".into() }, ..live.clone() };
        let gone = super::told(("uid", &live), &policies(grants("*.example.com")), "token", &nets, (&Values::new(), &mut Needs::new()));
        assert_eq!(gone.rules, []);
    }

    #[test]
    fn a_secret_is_told_if_it_was_decided_on_and_read_under_these_policies() {
        let mut run = granted_run();
        let decisions = &mut run.status.as_mut().unwrap().decisions;
        for permission in ["network:http://api.example.com:80", "gateway-secret:api/token"] {
            decisions.push(Decision { permission: permission.into(), verdict: Verdict::Granted, rule: "rule".into() });
        }
        let ToTell::This(live) = of(&run, |_| ()) else { panic!("nothing is told") };
        let under = |secret: &str, generation| {
            let header = json!({ "name": "Authorization", "prefix": "Bearer ", "secretKeyRef": { "name": secret, "key": "token" } });
            let grant = json!({ "hosts": ["api.example.com"], "protocol": "HTTPS", "headers": [header] });
            let seen = policies(json!({ "capabilities": { "network": [grant] } }));
            let mut policy = (*seen.taking_part[0]).clone();
            policy.taken.generation = generation;
            PoliciesSeen { taking_part: vec![Arc::new(policy)], ..seen }
        };
        let told = |policies: &PoliciesSeen, values: &Values| {
            let mut needs = Needs::new();
            let told = told(("uid", &live), policies, "token", &[], (values, &mut needs));
            let https = told.rules[0].https.clone().unwrap();
            (https.fields[0].secret.clone(), needs.into_keys().collect::<Vec<_>>())
        };
        let (missing, needs) = told(&under("api", 1), &Values::new());
        assert_eq!((missing, needs.len()), (None, 1));
        let values: Values = [(needs[0].clone(), Some(b"hunter2".to_vec()))].into();
        assert_eq!(told(&under("api", 1), &values), (Some(SecretText::of(b"hunter2")), needs.clone()));
        // Whoever wrote the next generation may be somebody else.
        assert_eq!(told(&under("api", 2), &values).0, None);
        let (other, needs) = told(&under("other", 1), &values);
        assert_eq!((other, needs[0].secret.name.as_str()), (None, "other"));
        let read: Values = [(needs[0].clone(), Some(b"hunter3".to_vec()))].into();
        assert_eq!(told(&under("other", 1), &read).0, None, "it was not decided on");
        assert_eq!(told(&under("api", 1), &[(told(&under("api", 1), &values).1[0].clone(), None)].into()).0, None, "it cannot be had");
    }
}
