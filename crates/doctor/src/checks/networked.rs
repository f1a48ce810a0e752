//! What a sandbox with a network shows.

use std::net::SocketAddr;

use paddock_crds::{Check, CheckVerdict, Reason};

use super::{Facts, Finding, Networked, NodeSeen, found, kernel};
use crate::probes::{Place, UNGRANTED};

/// How the address of the egress gateway is written in what the runner says of its port that must not answer.
const OVER_IPV6: &str = "[";

pub(super) fn findings(networked: &Networked, node: Option<&NodeSeen>) -> Vec<Finding> {
    let facts = Facts::of(&networked.run);
    vec![
        sandbox(&facts, node),
        policy(&facts, &networked.places, Family::V4),
        policy(&facts, &networked.places, Family::V6),
        names(&facts, &networked.places),
        gateway(&facts, networked),
    ]
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn of(address: SocketAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn check(self) -> Check {
        match self {
            Self::V4 => Check::NetworkPolicyIpv4,
            Self::V6 => Check::NetworkPolicyIpv6,
        }
    }
}

/// The worst of several facts. One that was not printed is not known.
fn sandbox(facts: &Facts, node: Option<&NodeSeen>) -> Finding {
    let all = (facts.get("kernel"), facts.get("user"), facts.get("token"), facts.get("root"));
    let (Some(kernel_inside), Some(user), Some(token), Some(root)) = all else {
        let is_seen_by_the_runner = facts.ended_for(&Reason::NotSandboxed) || facts.ended_for(&Reason::UnexpectedToken);
        let verdict = if is_seen_by_the_runner { CheckVerdict::Fails } else { CheckVerdict::NotSeen };
        return found(Check::NetworkedSandbox, verdict, facts.ending());
    };
    let (verdict, told) = kernel(kernel_inside, node);
    let is_confined = user != "0" && token == "0" && root == "read-only";
    let verdict = if is_confined { verdict } else { CheckVerdict::Fails };
    found(Check::NetworkedSandbox, verdict, format!("{told}; user {user}, {token} tokens, image {root}"))
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

fn policy(facts: &Facts, places: &[Place], family: Family) -> Finding {
    let check = family.check();
    // The runner has seen a port answer that must not, before the script could start.
    if facts.ended_for(&Reason::NetworkNotConfined) {
        let is_of_the_family = (family == Family::V6) == facts.ending().contains(OVER_IPV6);
        return found(check, if is_of_the_family { CheckVerdict::Fails } else { CheckVerdict::NotSeen }, facts.ending());
    }
    let Some(own_ipv6) = facts.get("ipv6").and_then(|count| count.parse::<u32>().ok()) else {
        return found(check, CheckVerdict::NotSeen, facts.ending());
    };
    let of_the_family: Vec<Place> = places.iter().copied().filter(|place| Family::of(place.address()) == family).collect();
    let reached: Vec<Place> = of_the_family.iter().copied().filter(|place| seen_of(facts, *place) == Some(true)).collect();
    let silent: Vec<Place> = of_the_family.iter().copied().filter(|place| seen_of(facts, *place) == Some(false)).collect();
    if !reached.is_empty() {
        return found(check, CheckVerdict::Fails, format!("the sandbox reaches {}", list(reached.into_iter())));
    }
    if !silent.is_empty() {
        return found(check, CheckVerdict::Holds, format!("silent in the sandbox, and not outside: {}", list(silent.into_iter())));
    }
    match (family, own_ipv6) {
        (Family::V6, 0) => found(check, CheckVerdict::Holds, "the sandbox has no address that leads further than its link"),
        // It was the only way to the gateway.
        (Family::V4, 0) => found(check, CheckVerdict::Holds, "the runner saw before the start that the gateway alone answers"),
        _ => found(check, CheckVerdict::NotSeen, "no place is known that answers outside"),
    }
}

fn names(facts: &Facts, places: &[Place]) -> Finding {
    let servers = || places.iter().copied().filter(|place| matches!(place, Place::Dns(_)));
    let Some(own) = facts.get("resolver") else {
        return found(Check::NetworkedNames, CheckVerdict::NotSeen, facts.ending());
    };
    let reached: Vec<Place> = servers().filter(|place| seen_of(facts, *place) == Some(true)).collect();
    let told = match (reached.is_empty(), servers().next()) {
        (false, _) => format!("the sandbox reaches {}", list(reached.iter().copied())),
        (true, Some(_)) => format!("silent in the sandbox, and not outside: {}", list(servers())),
        (true, None) => "no other is known that answers outside".to_owned(),
    };
    let verdict = if own == "silent" && reached.is_empty() { CheckVerdict::Holds } else { CheckVerdict::Fails };
    found(Check::NetworkedNames, verdict, format!("its name servers: {own}; {told}"))
}

/// What the gateway answered: a status and, where it refuses, a reason.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Refused,
    Taken,
    /// Neither.
    Other,
}

fn answer(facts: &Facts, authority: &str) -> Answer {
    let status = facts.get(&format!("proxy://{authority}")).and_then(|answer| answer.split(' ').next()?.parse::<u16>().ok());
    match status {
        Some(200..=299) => Answer::Taken,
        Some(400..=499) => Answer::Refused,
        _ => Answer::Other,
    }
}

fn gateway(facts: &Facts, networked: &Networked) -> Finding {
    let inside = networked.leads_inside.then_some(networked.granted.as_str());
    let all: Vec<(&str, Answer)> = UNGRANTED.into_iter().chain(inside).map(|authority| (authority, answer(facts, authority))).collect();
    let named = |wanted: Answer| all.iter().filter(|(_, answer)| *answer == wanted).map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let check = Check::GatewayRefuses;
    if all.iter().any(|(_, answer)| *answer == Answer::Taken) {
        return found(check, CheckVerdict::Fails, format!("the gateway connects to {}", named(Answer::Taken)));
    }
    if facts.get("ipv6").is_none() {
        return found(check, CheckVerdict::NotSeen, facts.ending());
    }
    if all.iter().any(|(_, answer)| *answer == Answer::Other) {
        return found(check, CheckVerdict::NotSeen, format!("the gateway says nothing that can be judged of {}", named(Answer::Other)));
    }
    found(check, CheckVerdict::Holds, format!("refused: {}", named(Answer::Refused)))
}
