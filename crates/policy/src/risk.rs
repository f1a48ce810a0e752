//! How much a run could do that nobody wants, by what it was granted and by what its text shows. A pure sum: more capabilities never make it less.

use paddock_crds::{Preflight, PreflightVerdict, Risk, RiskLevel, RiskPart, RiskReason};
use paddock_destination::{Class, HostPattern, Reach, class};

use crate::capabilities::{CapabilityGrant, ObjectKind};
use crate::network::Granted;

const MOST: i64 = 100;
/// Destinations that are few.
const FEW: usize = 4;

/// The risk of a run that is granted this, and of whose script its text shows that, if it was examined.
pub fn risk(grant: &CapabilityGrant, preflight: Option<&Preflight>) -> Risk {
    let shows = |shown: fn(&Preflight) -> bool| preflight.is_some_and(shown);
    let has = |kind| grant.names(kind).next().is_some();
    let (secrets, data, volumes) = (has(ObjectKind::Secret), has(ObjectKind::ConfigMap), has(ObjectKind::PersistentVolumeClaim));
    let connects = !grant.network.is_empty();
    let judged = [
        (connects, RiskReason::ReachesNetwork, 10),
        (grant.network.len() > FEW || grant.network.iter().any(is_of_many_hosts), RiskReason::ReachesManyHosts, 15),
        (grant.network.iter().any(leads_inside), RiskReason::ReachesInside, 20),
        (secrets, RiskReason::ReadsSecrets, 20),
        (grant.network.iter().any(adds_secrets), RiskReason::UsesSecrets, 15),
        (data, RiskReason::ReadsData, 5),
        (volumes, RiskReason::ReadsVolumes, 10),
        (secrets && connects, RiskReason::CanSendSecrets, 25),
        ((data || volumes) && connects, RiskReason::CanSendData, 10),
        (grant.dynamic_code || shows(|text| text.dynamic_code), RiskReason::RunsDynamicCode, 10),
        (grant.subprocess || shows(|text| text.subprocess), RiskReason::StartsPrograms, 5),
        (shows(|text| text.verdict == PreflightVerdict::Unclear), RiskReason::ScriptUnclear, 10),
    ];
    let holding = judged.into_iter().filter(|(holds, ..)| *holds);
    let reasons: Vec<RiskPart> = holding.map(|(_, reason, points)| RiskPart { reason, points }).collect();
    let score = reasons.iter().map(|part| part.points).sum::<i64>().min(MOST);
    Risk { score, level: level(score), reasons }
}

fn level(score: i64) -> RiskLevel {
    match score {
        ..25 => RiskLevel::Low,
        25..50 => RiskLevel::Medium,
        50..75 => RiskLevel::High,
        75.. => RiskLevel::Critical,
    }
}

fn is_of_many_hosts(granted: &Granted) -> bool {
    match &granted.to.to {
        Reach::Hosts(HostPattern::Exact(_)) | Reach::Plain(HostPattern::Exact(_)) => false,
        Reach::Hosts(HostPattern::Below(_)) | Reach::Plain(HostPattern::Below(_)) => true,
        Reach::Net(net) => net.prefix_len() < net.max_prefix_len(),
    }
}

/// A name does if every policy that has a say names addresses for it, a net if it begins or ends beyond what is public.
fn leads_inside(granted: &Granted) -> bool {
    match &granted.to.to {
        Reach::Hosts(_) | Reach::Plain(_) => !granted.addresses.0.is_empty() && granted.addresses.0.iter().all(|nets| !nets.is_empty()),
        Reach::Net(net) => class(net.network()) != Class::Global || class(net.broadcast()) != Class::Global,
    }
}

fn adds_secrets(granted: &Granted) -> bool {
    granted.https.as_ref().is_some_and(|https| !https.fields.is_empty())
}

#[cfg(test)]
mod tests {
    use paddock_destination::{ByName, Destination};
    use rstest::rstest;

    use super::*;
    use crate::capabilities::Object;
    use crate::https::{Field, Https, SecretKey};

    fn to(text: &str, addresses: &[&[&str]]) -> Granted {
        let nets = |nets: &&[&str]| nets.iter().map(|net| net.parse().unwrap()).collect();
        Granted {
            to: Destination::parse(text).unwrap(),
            rule: String::new(),
            addresses: ByName(addresses.iter().map(nets).collect()),
            https: None,
        }
    }

    /// A host that the gateway tells a Secret.
    fn lending() -> Granted {
        let secret = SecretKey { name: "crm".into(), key: "token".into() };
        let field = Field { name: "authorization".into(), prefix: String::new(), secret };
        Granted { https: Some(Https { port: 443, fields: vec![field], authorities: None }), ..to("http://api.example.com", &[]) }
    }

    fn given(kind: ObjectKind) -> CapabilityGrant {
        CapabilityGrant { objects: vec![Object { kind, name: "one".into() }], ..CapabilityGrant::default() }
    }

    fn words(risk: &Risk) -> Vec<&str> {
        risk.reasons.iter().map(|part| part.reason.as_str()).collect()
    }

    #[test]
    fn nothing_granted_is_no_risk() {
        assert_eq!(risk(&CapabilityGrant::default(), None), Risk { score: 0, level: RiskLevel::Low, reasons: Vec::new() });
    }

    #[rstest]
    #[case::a_host(to("api.example.com", &[]), &["ReachesNetwork"], 10)]
    #[case::all_below_one(to("*.example.com", &[]), &["ReachesNetwork", "ReachesManyHosts"], 25)]
    #[case::a_host_that_may_lead_inside(to("db.example.com", &[&["10.0.0.0/8"]]), &["ReachesNetwork", "ReachesInside"], 30)]
    #[case::a_host_that_one_policy_keeps_outside(to("db.example.com", &[&["10.0.0.0/8"], &[]]), &["ReachesNetwork"], 10)]
    #[case::one_public_address(to("tcp://8.8.8.8:53", &[&["8.8.8.8/32"]]), &["ReachesNetwork"], 10)]
    #[case::one_private_address(to("tcp://10.0.0.1:53", &[&["10.0.0.1/32"]]), &["ReachesNetwork", "ReachesInside"], 30)]
    #[case::a_net(to("tcp://10.0.0.0/8:53", &[]), &["ReachesNetwork", "ReachesManyHosts", "ReachesInside"], 45)]
    #[case::a_host_that_is_told_a_secret(lending(), &["ReachesNetwork", "UsesSecrets"], 25)]
    #[case::the_world(to("tcp://0.0.0.0/0:53", &[]), &["ReachesNetwork", "ReachesManyHosts", "ReachesInside"], 45)]
    fn networks(#[case] to: Granted, #[case] reasons: &[&str], #[case] score: i64) {
        let judged = risk(&CapabilityGrant { network: vec![to], ..CapabilityGrant::default() }, None);
        assert_eq!((words(&judged).as_slice(), judged.score), (reasons, score));
    }

    #[test]
    fn a_net_that_is_asked_for_address_by_address_is_many_hosts_too() {
        let of = |count: usize| {
            let network = (0..count).map(|number| to(&format!("tcp://10.0.0.{number}:53"), &[])).collect();
            risk(&CapabilityGrant { network, ..CapabilityGrant::default() }, None).score
        };
        assert_eq!((of(4), of(5)), (30, 45));
    }

    #[rstest]
    #[case(ObjectKind::Secret, &["ReachesNetwork", "ReadsSecrets", "CanSendSecrets"], 55, RiskLevel::High)]
    #[case(ObjectKind::ConfigMap, &["ReachesNetwork", "ReadsData", "CanSendData"], 25, RiskLevel::Medium)]
    #[case(ObjectKind::PersistentVolumeClaim, &["ReachesNetwork", "ReadsVolumes", "CanSendData"], 30, RiskLevel::Medium)]
    fn what_can_leave_weighs_more(#[case] kind: ObjectKind, #[case] reasons: &[&str], #[case] score: i64, #[case] level: RiskLevel) {
        let judged = risk(&CapabilityGrant { network: vec![to("api.example.com", &[])], ..given(kind) }, None);
        assert_eq!((words(&judged).as_slice(), judged.score, &judged.level), (reasons, score, &level));
        let alone = risk(&given(kind), None);
        assert!(alone.score < judged.score - 10 && alone.reasons.len() == 1, "{alone:?}");
    }

    #[test]
    fn everything_is_a_hundred() {
        let all = ObjectKind::ALL.map(|kind| Object { kind, name: "one".into() });
        let network = vec![to("tcp://10.0.0.0/8:53", &[]), lending()];
        let grant = CapabilityGrant { network, objects: all.to_vec(), dynamic_code: true, subprocess: true, ..CapabilityGrant::default() };
        let judged = risk(&grant, Some(&Preflight::not_examined()));
        assert_eq!((judged.score, judged.level, judged.reasons.len()), (100, RiskLevel::Critical, RiskReason::ALL.len()));
    }

    /// The points are public: policies are written by them.
    #[test]
    fn the_policy_guide_has_every_reason_with_its_points() {
        let all = ObjectKind::ALL.map(|kind| Object { kind, name: "one".into() });
        let network = vec![to("tcp://10.0.0.0/8:53", &[]), lending()];
        let grant = CapabilityGrant { network, objects: all.to_vec(), dynamic_code: true, subprocess: true, ..CapabilityGrant::default() };
        let guide = include_str!("../../../docs/policies.md");
        for part in risk(&grant, Some(&Preflight::not_examined())).reasons {
            let row = format!("| `{}` | {} |", part.reason, part.points);
            assert!(guide.contains(&row), "docs/policies.md has no row {row}");
        }
    }
}
