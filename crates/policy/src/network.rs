//! Where a run may connect to: each destination that it asks for must be covered, as a whole, by every policy that says something of networks.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use paddock_crds::{Capabilities, Effect, NetworkGrant, NetworkProtocol, PolicyRules, Problem, Reason, Suspend};
use paddock_destination::{BadDestination, ByName, Destination, HostPattern, Reach};

use crate::capabilities::{No, refusal};
use crate::decide::{Policy, named};
use crate::https::{self, Agreement, Https, SecretKey};

/// Whether something is there that can carry what is granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gateway {
    /// The egress gateway is installed.
    Installed,
    /// It is not: nobody can connect to anything.
    Absent,
}

/// A destination that a run was granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Where to.
    pub to: Destination,
    /// What grants it.
    pub rule: String,
    /// Nets beside public addresses that it may lead to.
    pub addresses: ByName,
    /// How the gateway speaks with it for the script, where it does.
    pub https: Option<Https>,
}

/// Hosts that are denied, with what denies them.
pub type Denied = Vec<(HostPattern, String)>;

/// What a policy says, read.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Said {
    /// `None` where the field is not there.
    grants: Option<Vec<Entry>>,
    denied: Vec<HostPattern>,
}

/// One host or net with what is said of it.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    /// As its author wrote it.
    text: String,
    to: Reach,
    /// As runs ask for them.
    ports: Vec<u16>,
    addresses: Option<Vec<IpNet>>,
    https: Option<https::Said>,
}

/// Hosts and nets of one policy.
const MOST_PLACES: usize = 512;
/// Different nets in `addresses` of one policy.
const MOST_ADDRESSES: usize = 64;
/// Where hosts are granted without ports.
const fn usual_port(protocol: NetworkProtocol) -> u16 {
    match protocol {
        NetworkProtocol::Tls => 443,
        NetworkProtocol::Http => 80,
        NetworkProtocol::Https => https::PORT,
    }
}

/// Reads what a policy says. What cannot be read is a problem of the policy.
pub(crate) fn compile(rules: &PolicyRules, problems: &mut Vec<Problem>) -> Said {
    let grants = rules.capabilities.as_ref().and_then(|rules| rules.network.as_ref());
    check_size(grants.map(Vec::as_slice).unwrap_or_default(), problems);
    let grants = grants.map(|grants| {
        let each = grants.iter().enumerate();
        each.flat_map(|(index, grant)| entries(grant, &format!("capabilities.network[{index}]"), problems)).collect()
    });
    let hosts = rules.deny.as_ref().map(|deny| deny.hosts.as_slice()).unwrap_or_default();
    let denied = hosts.iter().enumerate().filter_map(|(index, text)| {
        take(HostPattern::parse_denied(text).map_err(Into::into), &format!("deny.hosts[{index}]"), text, problems)
    });
    Said { grants, denied: denied.collect() }
}

/// The gateway is told for each run what each policy names: what one policy can make of that is bounded.
fn check_size(grants: &[NetworkGrant], problems: &mut Vec<Problem>) {
    let places: usize = grants.iter().map(|grant| grant.hosts.iter().chain(&grant.cidrs).map(Vec::len).sum::<usize>()).sum();
    let addresses: BTreeSet<&String> = grants.iter().flat_map(|grant| grant.addresses.iter().flatten()).collect();
    let mut problem = |message: String| problems.push(Problem { field: "capabilities.network".into(), message });
    if places > MOST_PLACES {
        problem(format!("{places} hosts and nets are more than the {MOST_PLACES} that a policy may have"));
    }
    if addresses.len() > MOST_ADDRESSES {
        problem(format!("{} different addresses are more than the {MOST_ADDRESSES} that a policy may have", addresses.len()));
    }
}

fn take<T>(read: Result<T, BadDestination>, field: &str, text: &str, problems: &mut Vec<Problem>) -> Option<T> {
    read.map_err(|why| problems.push(Problem { field: field.to_owned(), message: format!("{text}: {why}") })).ok()
}

fn entries(grant: &NetworkGrant, field: &str, problems: &mut Vec<Problem>) -> Vec<Entry> {
    let mut problem = |message: &str| problems.push(Problem { field: field.to_owned(), message: message.to_owned() });
    let (is_of_hosts, texts) = match (&grant.hosts, &grant.cidrs) {
        (Some(hosts), None) => (true, hosts),
        (None, Some(cidrs)) => (false, cidrs),
        _ => {
            problem("exactly one of hosts and cidrs must be set");
            return Vec::new();
        }
    };
    if !is_of_hosts && (grant.addresses.is_some() || grant.protocol.is_some()) {
        problem("addresses and protocol belong to hosts");
        return Vec::new();
    }
    let https = match https::read(grant) {
        Ok(https) => https,
        Err(why) => {
            problem(&why);
            return Vec::new();
        }
    };
    let protocol = grant.protocol.unwrap_or_default();
    let ports = match &grant.ports {
        None if is_of_hosts => Some(vec![usual_port(protocol)]),
        None => None,
        Some(ports) => ports.iter().map(|port| u16::try_from(*port).ok().filter(|port| *port > 0)).collect(),
    };
    let Some(mut ports) = ports else {
        problem("ports are 1 to 65535, and cidrs need them");
        return Vec::new();
    };
    if https.is_some() {
        ports = ports.into_iter().map(https::asked_port).collect();
    }
    let mut nets = |list: &[String]| -> Vec<IpNet> {
        list.iter().filter_map(|text| take(net(text), &format!("{field}.addresses"), text, problems)).collect()
    };
    let addresses = grant.addresses.as_deref().map(&mut nets);
    let hosts = |text: &str| {
        let hosts = HostPattern::parse(text)?;
        Ok(match protocol {
            NetworkProtocol::Tls => Reach::Hosts(hosts),
            NetworkProtocol::Http | NetworkProtocol::Https => Reach::Plain(hosts),
        })
    };
    let read = |text: &String| if is_of_hosts { hosts(text) } else { Reach::of_cidr(text) };
    let entry = |text: &String| {
        let to = take(read(text), field, text, problems)?;
        Some(Entry { text: text.clone(), to, ports: ports.clone(), addresses: addresses.clone(), https: https.clone() })
    };
    texts.iter().filter_map(entry).collect()
}

fn net(text: &str) -> Result<IpNet, BadDestination> {
    match Reach::of_cidr(text)? {
        Reach::Net(net) => Ok(net),
        Reach::Hosts(_) | Reach::Plain(_) => Err(BadDestination::Cidr),
    }
}

/// A destination that is asked for, in its one spelling; what is none stays as it was written.
pub(crate) fn permission(asked: &str) -> String {
    Destination::parse(asked).map_or_else(|_| format!("{PERMISSION}{asked}"), |to| format!("{PERMISSION}{to}"))
}

/// Decides on one destination.
pub(crate) fn destination(policies: &[&Policy], asked: &str, gateway: Gateway) -> Result<Granted, No> {
    let permission = permission(asked);
    let refuse = |rule: String| Err(refusal(&permission, rule));
    let to = match Destination::parse(asked) {
        Ok(to) => to,
        Err(why) => return Err(("built-in: network".into(), Reason::InvalidSpec, format!("{asked} cannot be asked for: {why}"))),
    };
    let is_denied = |denied: &HostPattern| to.to.hosts().is_some_and(|hosts| denied.covers(hosts));
    if let Some((_, rule)) = denied_hosts(policies).iter().find(|(denied, _)| is_denied(denied)) {
        return refuse(rule.clone());
    }
    let mut rule = None;
    let mut addresses = ByName::default();
    let mut agreement = Agreement::default();
    for policy in policies {
        let Some(covering) = covering(policy, &to) else { continue };
        let Some(first) = covering.first() else { return refuse(named(policy, "capabilities.network")) };
        let field = format!("capabilities.network[{}]", first.text);
        if let Err(what) = agreement.join(first.https.as_ref(), policy.effect) {
            let rule = named(policy, &format!("{field}.{what}"));
            let message = format!("the policies that grant {permission} do not say the same of it ({rule})");
            return Err((rule, Reason::CapabilityRefused, message));
        }
        rule = Some(named(policy, &field));
        addresses.0.extend(addresses_of(policy, &covering));
    }
    let https = agreement.https(to.port);
    match (rule, gateway) {
        (None, _) => refuse("built-in: network".into()),
        (Some(_), Gateway::Absent) => {
            let message = format!("{permission} is granted, but the egress gateway is not installed in this cluster");
            Err(("built-in: what can be given".into(), Reason::CapabilityUnusable, message))
        }
        (Some(rule), Gateway::Installed) => Ok(Granted { to, rule, addresses, https }),
    }
}

/// What of a policy covers a destination: what it says first counts. `None` if it leaves networks to the others.
fn covering<'a>(policy: &'a Policy, to: &Destination) -> Option<Vec<&'a Entry>> {
    let covers = |entry: &&Entry| entry.to.covers(&to.to) && entry.ports.contains(&to.port);
    let covering: Vec<&Entry> = said(policy)?.iter().filter(covers).collect();
    let is_https = covering.first().is_some_and(|first| first.https.is_some());
    Some(covering.into_iter().filter(|entry| entry.https.is_some() == is_https).collect())
}

/// The policies by which the gateway adds Secrets to what is said to a host: their authors answer for it.
pub fn adding<'a, P: Borrow<Policy>>(policies: &'a [P], to: &Destination) -> Vec<&'a P> {
    let adds = |policy: &&P| {
        let said = covering((*policy).borrow(), to).and_then(|covering| covering.first()?.https.as_ref());
        said.is_some_and(https::Said::adds)
    };
    policies.iter().filter(adds).collect()
}

/// Keys of Secrets that the gateway needs for what a run asks for, with the policies that add them, each once.
pub fn secrets_at_the_gateway<'a>(policies: &[&'a Policy], asked: &Capabilities) -> BTreeMap<SecretKey, Vec<&'a Policy>> {
    let mut needed = BTreeMap::<SecretKey, Vec<&Policy>>::new();
    for granted in self::asked(asked).into_iter().filter_map(|text| destination(policies, text, Gateway::Installed).ok()) {
        for field in granted.https.into_iter().flat_map(|https| https.fields) {
            let own = needed.entry(field.secret).or_default();
            for policy in adding(policies, &granted.to) {
                if !own.iter().any(|known| known.taken.uid == policy.taken.uid) {
                    own.push(policy);
                }
            }
        }
    }
    needed
}

/// Every host that a policy denies, with what denies it: also within what is granted.
pub(crate) fn denied_hosts(policies: &[&Policy]) -> Denied {
    let of = |policy: &&Policy| {
        let rule = |hosts: &HostPattern| named(policy, &format!("deny.hosts[{hosts}]"));
        policy.network.denied.iter().map(|hosts| (hosts.clone(), rule(hosts))).collect::<Vec<_>>()
    };
    policies.iter().flat_map(of).collect()
}

/// What a policy says; `None` if it leaves it to the others.
fn said(policy: &Policy) -> Option<&[Entry]> {
    policy.network.grants.as_deref().or((policy.effect == Effect::Allow).then_some(&[]))
}

/// What a policy says of addresses that are not public; `None` if it leaves that to the others.
fn addresses_of(policy: &Policy, covering: &[&Entry]) -> Option<Vec<IpNet>> {
    let named = covering.iter().filter_map(|entry| match &entry.to {
        Reach::Net(net) => Some(vec![*net]),
        Reach::Hosts(_) | Reach::Plain(_) => entry.addresses.clone(),
    });
    let all: Vec<Vec<IpNet>> = named.collect();
    let each_once: BTreeSet<IpNet> = all.iter().flatten().copied().collect();
    (!all.is_empty() || policy.effect == Effect::Allow).then(|| each_once.into_iter().collect())
}

/// What is granted now of the destinations that a run was granted when it was admitted, and what is denied within it. Fail closed: under a policy
/// that cannot be used, or none that allows, nothing is.
pub fn still_granted(policies: &[&Policy], permissions: &[String]) -> (Vec<Granted>, Denied) {
    let is_usable = policies.iter().all(|policy| policy.problems.is_empty() && policy.rules.suspend != Some(Suspend::Kill));
    if !is_usable || !policies.iter().any(|policy| policy.effect == Effect::Allow) {
        return (Vec::new(), Vec::new());
    }
    let destinations = permissions.iter().filter_map(|permission| permission.strip_prefix(PERMISSION));
    let granted = destinations.filter_map(|asked| destination(policies, asked, Gateway::Installed).ok()).collect();
    (granted, denied_hosts(policies))
}

/// The beginning of every permission that this module answers.
pub const PERMISSION: &str = "network:";

/// Destinations that a run asks for, each once.
pub(crate) fn asked(asked: &Capabilities) -> Vec<&str> {
    let mut seen = BTreeSet::new();
    asked.network.iter().map(String::as_str).filter(|text| seen.insert(permission(text))).collect()
}

#[cfg(test)]
mod tests;
