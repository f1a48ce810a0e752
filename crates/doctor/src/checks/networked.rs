//! What a sandbox with a network shows.

use std::collections::BTreeMap;
use std::net::IpAddr;

use paddock_crds::{Check, CheckVerdict, Reason};

use super::{Facts, Finding, Networked, found, holds, kernel};
use crate::probes::{Place, UNGRANTED};

pub(super) fn findings(networked: &Networked, kernels: &BTreeMap<String, String>) -> Vec<Finding> {
    let facts = Facts::of(&networked.run);
    let mut all = vec![sandbox(&facts, kernels), gateway(&facts, networked)];
    all.extend([Family::V4, Family::V6].map(|family| policy(&facts, networked, family)));
    all.extend(node(&facts, &networked.places));
    all.extend(names(&facts, &networked.places));
    all
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Of the fact that tells whether a way of this family leads out of the sandbox.
    fn fact(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }

    fn check(self) -> Check {
        match self {
            Self::V4 => Check::NetworkPolicyIpv4,
            Self::V6 => Check::NetworkPolicyIpv6,
        }
    }
}

/// The worst of several facts. One that was not printed is not known.
fn sandbox(facts: &Facts, kernels: &BTreeMap<String, String>) -> Finding {
    let all = (facts.get("kernel"), facts.number("user"), facts.number("secrets"), facts.get("root"));
    let (Some(kernel_inside), Some(user), Some(secrets), Some(root)) = all else {
        let is_seen_by_the_runner = facts.ended_for(&Reason::NotSandboxed) || facts.ended_for(&Reason::UnexpectedToken);
        let verdict = if is_seen_by_the_runner { CheckVerdict::Fails } else { CheckVerdict::NotSeen };
        return found(Check::NetworkedSandbox, verdict, facts.ending());
    };
    let (verdict, told) = kernel(kernel_inside, facts, kernels);
    let is_confined = user != 0 && secrets == 0 && root == "read-only";
    let verdict = if is_confined { verdict } else { CheckVerdict::Fails };
    found(Check::NetworkedSandbox, verdict, format!("{told}; user {user}, image {root}, {secrets} files where those of accounts lie"))
}

/// What was seen of a place.
fn seen_of(facts: &Facts, place: Place) -> Option<bool> {
    match facts.get(&place.to_string())? {
        "silent" => Some(false),
        _ => Some(true),
    }
}

fn list(places: impl Iterator<Item = Place>) -> String {
    places.map(|place| place.to_string()).collect::<Vec<_>>().join(", ")
}

/// Those of the places that answered in the sandbox, and those that did not.
fn tried(facts: &Facts, places: impl Iterator<Item = Place>) -> (Vec<Place>, Vec<Place>) {
    let seen = places.filter_map(|place| Some((place, seen_of(facts, place)?)));
    let (reached, silent): (Vec<_>, Vec<_>) = seen.partition(|(_, answers)| *answers);
    let only = |places: Vec<(Place, bool)>| places.into_iter().map(|(place, _)| place).collect();
    (only(reached), only(silent))
}

fn policy(facts: &Facts, networked: &Networked, family: Family) -> Finding {
    let check = family.check();
    // The runner has seen a port answer that must not, before the script could start. At which address it does not tell.
    if facts.ended_for(&Reason::NetworkNotConfined) {
        return found(check, CheckVerdict::Fails, facts.ending());
    }
    let Some(way) = facts.get(family.fact()) else {
        return found(check, CheckVerdict::NotSeen, facts.ending());
    };
    let is_of_the_family = |place: &Place| Family::of(place.address().ip()) == family && !matches!(place, Place::Kubelet(_));
    let (reached, silent) = tried(facts, networked.places.iter().copied().filter(is_of_the_family));
    if !reached.is_empty() {
        return found(check, CheckVerdict::Fails, format!("the sandbox reaches {}", list(reached.into_iter())));
    }
    if way == "none" {
        return found(check, CheckVerdict::Holds, "no way of this family leads out of the sandbox");
    }
    let before = networked.gateway.iter().copied().filter(|address| Family::of(*address) == family);
    let before = before.map(|address| format!("the runner saw before the start that {address} answers where it may, and nowhere else"));
    let silent = (!silent.is_empty()).then(|| format!("silent in the sandbox, and not outside: {}", list(silent.into_iter())));
    let shown: Vec<String> = before.chain(silent).collect();
    // Of one family alone the runner has looked, and it was the only one that there is.
    let is_the_only_way = networked.gateway.is_empty() && family == Family::V4 && facts.get(Family::V6.fact()) == Some("none");
    match (shown.is_empty(), is_the_only_way) {
        (false, _) => found(check, CheckVerdict::Holds, shown.join("; ")),
        (true, true) => found(check, CheckVerdict::Holds, "the runner saw before the start that the gateway alone answers"),
        (true, false) => found(check, CheckVerdict::NotSeen, "nothing is known of this family that answers outside"),
    }
}

/// Whoever knows no kubelet that answers has nothing to tell.
fn node(facts: &Facts, places: &[Place]) -> Option<Finding> {
    let kubelets: Vec<Place> = places.iter().copied().filter(|place| matches!(place, Place::Kubelet(_))).collect();
    if kubelets.is_empty() {
        return None;
    }
    let check = Check::NodeConfined;
    Some(match tried(facts, kubelets.into_iter()) {
        (reached, _) if !reached.is_empty() => {
            found(check, CheckVerdict::Fails, format!("the sandbox reaches {}", list(reached.into_iter())))
        }
        (_, silent) if !silent.is_empty() => {
            found(check, CheckVerdict::Holds, format!("silent in the sandbox, and not outside: {}", list(silent.into_iter())))
        }
        _ => found(check, CheckVerdict::NotSeen, facts.ending()),
    })
}

/// Whoever knows no name server that answers has nothing to tell of a sandbox whose own are silent: it has none.
fn names(facts: &Facts, places: &[Place]) -> Option<Finding> {
    let check = Check::NetworkedNames;
    let servers: Vec<Place> = places.iter().copied().filter(|place| matches!(place, Place::Dns(_))).collect();
    let Some(own) = facts.get("resolver") else {
        return Some(found(check, CheckVerdict::NotSeen, facts.ending()));
    };
    let (reached, silent) = tried(facts, servers.into_iter());
    if own != "silent" || !reached.is_empty() {
        let reached = list(reached.into_iter());
        return Some(found(
            check,
            CheckVerdict::Fails,
            format!("its own name servers: {own}; those of the cluster that it reaches: {reached}"),
        ));
    }
    let is_seen = !silent.is_empty();
    is_seen.then(|| {
        found(check, holds(true), format!("its own: silent; not outside, and silent in the sandbox: {}", list(silent.into_iter())))
    })
}

/// What the gateway answered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// For the reason that it must.
    Refused,
    Taken,
    /// Neither.
    Other,
}

/// Status and reason, as in the first line of the answer.
fn answer(facts: &Facts, authority: &str, expected: &[&str]) -> Answer {
    match facts.get(&format!("proxy://{authority}")) {
        Some(answer) if expected.contains(&answer) => Answer::Refused,
        Some(answer) if answer.starts_with('2') => Answer::Taken,
        _ => Answer::Other,
    }
}

fn gateway(facts: &Facts, networked: &Networked) -> Finding {
    let check = Check::GatewayRefuses;
    let ungranted = UNGRANTED.into_iter().map(|authority| (authority, answer(facts, authority, &["403 NotGranted", "400 BadTarget"])));
    // The one that was granted reaches what looks at addresses.
    let inside = networked.leads_inside.then_some(networked.granted.as_str());
    let inside = inside.map(|authority| (authority, answer(facts, authority, &["403 AddressRefused"])));
    let all: Vec<(&str, Answer)> = ungranted.chain(inside).collect();
    let named = |wanted: Answer| all.iter().filter(|(_, answer)| *answer == wanted).map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    if all.iter().any(|(_, answer)| *answer == Answer::Taken) {
        return found(check, CheckVerdict::Fails, format!("the gateway connects to {}", named(Answer::Taken)));
    }
    if facts.get("ipv4").is_none() {
        return found(check, CheckVerdict::NotSeen, facts.ending());
    }
    if all.iter().any(|(_, answer)| *answer == Answer::Other) {
        return found(check, CheckVerdict::NotSeen, format!("the gateway says nothing that can be judged of {}", named(Answer::Other)));
    }
    found(check, CheckVerdict::Holds, format!("refused: {}", named(Answer::Refused)))
}
