//! What a sandbox with a network shows.

use std::collections::BTreeMap;
use std::net::IpAddr;

use paddock_crds::{Check, CheckVerdict, Reason};

use super::{Facts, Finding, Networked, found, kernel};
use crate::examine::Network;
use crate::probes::{Place, UNGRANTED};

pub(super) fn findings(networked: &Networked, kernels: &BTreeMap<String, String>) -> Vec<Finding> {
    let facts = Facts::of(&networked.run);
    let network = &networked.network;
    let mut all = vec![sandbox(&facts, kernels), gateway(&facts, network)];
    all.extend([Family::V4, Family::V6].map(|family| policy(&facts, network, family)));
    all.extend(node(&facts, network));
    all.extend(names(&facts, network));
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

    fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
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

fn list(places: &[Place]) -> String {
    places.iter().map(Place::to_string).collect::<Vec<_>>().join(", ")
}

/// What became of places in the sandbox.
#[derive(Default)]
struct Tried {
    reached: Vec<Place>,
    silent: Vec<Place>,
    /// Nothing is said of them: a policy may mask addresses in what scripts print.
    untold: Vec<Place>,
}

impl Tried {
    fn of(facts: &Facts, places: impl Iterator<Item = Place>) -> Self {
        let mut tried = Self::default();
        for place in places {
            match facts.get(&place.to_string()) {
                Some("silent") => tried.silent.push(place),
                Some(_) => tried.reached.push(place),
                None => tried.untold.push(place),
            }
        }
        tried
    }

    /// What there is to say where something was reached, or nothing is told.
    fn trouble(&self, check: &Check) -> Option<Finding> {
        if !self.reached.is_empty() {
            return Some(found(check.clone(), CheckVerdict::Fails, format!("the sandbox reaches {}", list(&self.reached))));
        }
        let is_untold = !self.untold.is_empty();
        is_untold.then(|| {
            found(check.clone(), CheckVerdict::NotSeen, format!("the script does not say whether it reaches {}", list(&self.untold)))
        })
    }

    fn silence(&self) -> Option<String> {
        (!self.silent.is_empty()).then(|| format!("silent in the sandbox, and not outside: {}", list(&self.silent)))
    }
}

fn policy(facts: &Facts, network: &Network, family: Family) -> Finding {
    let check = family.check();
    // The runner has seen a port answer that must not, before the script could start. At which address it does not tell.
    if facts.ended_for(&Reason::NetworkNotConfined) {
        return found(check, CheckVerdict::Fails, facts.ending());
    }
    let Some(way) = facts.get(family.fact()) else {
        return found(check, CheckVerdict::NotSeen, facts.ending());
    };
    let tried = Tried::of(facts, network.places.iter().copied().filter(|place| Family::of(place.address().ip()) == family));
    if let Some(trouble) = tried.trouble(&check) {
        return trouble;
    }
    if way == "none" {
        return found(check, CheckVerdict::Holds, "no way of this family leads out of the sandbox");
    }
    let before = network.gateway.iter().copied().filter(|address| Family::of(*address) == family);
    let before = before.map(|address| format!("the runner saw before the start that {address} answers where it may, and nowhere else"));
    let shown: Vec<String> = before.chain(tried.silence()).collect();
    // Where the addresses of the gateway are not known, the runner has looked over the one way that there is.
    let is_the_only_way = network.gateway.is_empty() && facts.get(family.other().fact()) == Some("none");
    match (shown.is_empty(), is_the_only_way) {
        (false, _) => found(check, CheckVerdict::Holds, shown.join("; ")),
        (true, true) => found(check, CheckVerdict::Holds, "the runner saw before the start that the gateway alone answers"),
        (true, false) => found(check, CheckVerdict::NotSeen, "nothing is known of this family that answers outside"),
    }
}

/// Of the node that the sandbox was on: others are not what controllers let pods reach. Whoever knows no kubelet that answers has nothing to tell.
fn node(facts: &Facts, network: &Network) -> Option<Finding> {
    let check = Check::NodeConfined;
    if network.kubelets.is_empty() {
        return None;
    }
    let Some(node) = facts.node() else {
        return Some(found(check, CheckVerdict::NotSeen, facts.ending()));
    };
    let all = Tried::of(facts, network.kubelets.values().flatten().copied());
    let own = Tried::of(facts, network.kubelets.get(node).into_iter().flatten().copied());
    if let Some(trouble) = all.trouble(&check) {
        return Some(trouble);
    }
    Some(match own.silence() {
        Some(silence) => found(check, CheckVerdict::Holds, format!("on {node}: {silence}")),
        None => found(check, CheckVerdict::NotSeen, format!("no kubelet of {node} is known that answers outside")),
    })
}

/// Whoever knows no name server that answers has nothing to tell of a sandbox whose own are silent: it has none.
fn names(facts: &Facts, network: &Network) -> Option<Finding> {
    let check = Check::NetworkedNames;
    let Some(own) = facts.get("resolver") else {
        return Some(found(check, CheckVerdict::NotSeen, facts.ending()));
    };
    if own != "silent" {
        return Some(found(check, CheckVerdict::Fails, format!("its own name servers: {own}")));
    }
    let tried = Tried::of(facts, network.places.iter().copied().filter(|place| matches!(place, Place::Dns(_))));
    tried.trouble(&check).or_else(|| Some(found(check, CheckVerdict::Holds, format!("its own name servers: silent; {}", tried.silence()?))))
}

/// What the gateway answered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// For the reason that it must.
    Refused,
    /// It connects, or tried to.
    Taken,
    /// Neither.
    Other,
}

/// What says that the gateway would connect, whether or not anybody was there.
const CONNECTS: [&str; 3] = ["502 NotConnected", "502 NoAnswer", "502 TlsFailed"];
/// What is said only of what was granted.
const GRANTED: [&str; 2] = ["403 AddressRefused", "502 NotResolved"];

/// Status and reason, as in the first line of the answer.
fn answer(facts: &Facts, authority: &str, refused: &[&str], taken: &[&str]) -> Answer {
    match facts.get(&format!("proxy://{authority}")) {
        Some(answer) if refused.contains(&answer) => Answer::Refused,
        Some(answer) if answer.starts_with('2') || CONNECTS.contains(&answer) || taken.contains(&answer) => Answer::Taken,
        _ => Answer::Other,
    }
}

fn gateway(facts: &Facts, network: &Network) -> Finding {
    let check = Check::GatewayRefuses;
    let ungranted = UNGRANTED.map(|authority| (authority, answer(facts, authority, &["403 NotGranted", "400 BadTarget"], &GRANTED)));
    // The one that was granted reaches what looks at addresses.
    let inside = network.leads_inside.then_some(network.granted.as_str());
    let inside = inside.map(|authority| (authority, answer(facts, authority, &["403 AddressRefused"], &[])));
    let all: Vec<(&str, Answer)> = ungranted.into_iter().chain(inside).collect();
    let named = |wanted: Answer| all.iter().filter(|(_, answer)| *answer == wanted).map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    if all.iter().any(|(_, answer)| *answer == Answer::Taken) {
        return found(check, CheckVerdict::Fails, format!("the gateway takes {}", named(Answer::Taken)));
    }
    if facts.get("ipv4").is_none() {
        return found(check, CheckVerdict::NotSeen, facts.ending());
    }
    if all.iter().any(|(_, answer)| *answer == Answer::Other) {
        return found(check, CheckVerdict::NotSeen, format!("the gateway says nothing that can be judged of {}", named(Answer::Other)));
    }
    found(check, CheckVerdict::Holds, format!("refused: {}", named(Answer::Refused)))
}
