//! What runs may reach, as the operator tells it: soft state. What is not known, not bound to the pod that asks, stale, or being told anew is
//! refused.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use paddock_destination::{Addresses, Authority, ByName, Destination, Host, HostPattern, Reach, Way};

use crate::https::Https;

/// SHA-256 of a run's token. The token itself is nowhere but in the runner and, for a moment, in a request.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash(pub [u8; 32]);

impl fmt::Debug for TokenHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("TokenHash(..)")
    }
}

/// What goes through a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TLS whose ClientHello names the host of the rule.
    Tls,
    /// One request and its answer, which the gateway reads.
    Http,
    /// Anything, to addresses of a net.
    Tcp,
}

/// One thing that a run was granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What granted it, as in `status.decisions`.
    pub name: String,
    /// Where to.
    pub to: Destination,
    /// Addresses beside public ones that this may lead to.
    pub allowed: ByName,
    /// How the gateway speaks with it for the script, where it does.
    pub https: Option<Arc<Https>>,
}

/// What one run was granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// UID of the run.
    pub run: String,
    /// Its namespace and name, for whoever reads reports.
    pub name: String,
    /// SHA-256 of its token.
    pub token: TokenHash,
    /// The addresses of its pod. Nobody else may use the token.
    pub pod: Vec<IpAddr>,
    /// What it may reach.
    pub rules: Vec<Rule>,
    /// What it may not, whatever the rules say, with what denies it.
    pub denied: Vec<(HostPattern, String)>,
    /// The cluster's nets, which nothing leads to but what is allowed by name.
    pub cluster: Vec<IpNet>,
    /// How much of it.
    pub budget: Budget,
    /// From then on it is as if it were not there.
    pub expires: Instant,
}

/// How much a run may use, at each replica of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Tunnels at once.
    pub tunnels: u32,
    /// Bytes in both directions together, over its whole life.
    pub bytes: u64,
    /// Bytes in both directions together, in a second.
    pub bytes_per_second: Option<u64>,
}

/// What the operator says, in this order after each connection: `Begin`, all grants, `End`; then whatever changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// All grants follow.
    Begin,
    /// A run's grant, new or changed.
    Put(Box<Grant>),
    /// The run of this UID is granted nothing any more.
    Remove(String),
    /// These were all.
    End,
    /// Nothing has changed.
    Beat,
}

/// Why a request is not even compared with rules.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoGrant {
    /// The operator has not told all grants, or is telling them anew.
    #[error("the gateway does not know yet what is granted")]
    NotReady,
    /// The operator has not been heard for [`STALE_AFTER`].
    #[error("the gateway has not heard for too long what is granted")]
    Stale,
    /// No run has this token, or it has ended.
    #[error("no run that lives has this token")]
    Unknown,
    /// Another pod asks. It is not told whose token it is.
    #[error("the token is that of another pod")]
    OtherPod {
        /// Namespace and name of the run that was given the token.
        run: String,
    },
}

/// Without a word for so long, what was said before does not count: the operator says something every second.
pub const STALE_AFTER: Duration = Duration::from_secs(5);

/// All grants.
#[derive(Debug, Default)]
pub struct Grants {
    by_run: HashMap<String, Grant>,
    by_token: HashMap<TokenHash, String>,
    told: Told,
    heard: Option<Instant>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Told {
    #[default]
    Nothing,
    /// Runs that were told since `Begin`.
    Part(HashSet<String>),
    All,
}

impl Grants {
    /// Takes in what the operator says. Returns the runs whose tunnels must be cut: what they were granted is not what it was.
    pub fn hear(&mut self, message: Message, now: Instant) -> Vec<String> {
        self.heard = Some(now);
        match message {
            Message::Begin => {
                self.told = Told::Part(HashSet::new());
                Vec::new()
            }
            Message::Put(grant) => self.put(*grant),
            Message::Remove(run) => self.remove(&run).into_iter().collect(),
            Message::End => self.forget_the_untold(),
            Message::Beat => Vec::new(),
        }
    }

    /// The connection to the operator has ended. Tunnels go on until what is granted is known to have changed, or nobody says so for too long.
    pub fn disconnected(&mut self) {
        self.told = Told::Nothing;
    }

    fn put(&mut self, grant: Grant) -> Vec<String> {
        if let Told::Part(runs) = &mut self.told {
            runs.insert(grant.run.clone());
        }
        let before = self.by_run.get(&grant.run);
        let is_same = before.is_some_and(|before| before.is_the_same_to_tunnels(&grant));
        let cut = (before.is_some() && !is_same).then(|| grant.run.clone());
        self.remove(&grant.run);
        self.by_token.insert(grant.token, grant.run.clone());
        self.by_run.insert(grant.run.clone(), grant);
        cut.into_iter().collect()
    }

    fn remove(&mut self, run: &str) -> Option<String> {
        let grant = self.by_run.remove(run)?;
        if self.by_token.get(&grant.token).is_some_and(|owner| owner == run) {
            self.by_token.remove(&grant.token);
        }
        Some(grant.run)
    }

    fn forget_the_untold(&mut self) -> Vec<String> {
        // An end without a beginning says nothing of what there is.
        let Told::Part(told) = std::mem::replace(&mut self.told, Told::Nothing) else { return Vec::new() };
        self.told = Told::All;
        let untold: Vec<String> = self.by_run.keys().filter(|run| !told.contains(*run)).cloned().collect();
        untold.iter().filter_map(|run| self.remove(run)).collect()
    }

    /// The grant of whoever shows this token from this address.
    pub fn of(&self, token: &TokenHash, pod: IpAddr, now: Instant) -> Result<&Grant, NoGrant> {
        if self.told != Told::All {
            return Err(NoGrant::NotReady);
        }
        if self.is_stale(now) {
            return Err(NoGrant::Stale);
        }
        let grant = self.by_token.get(token).and_then(|run| self.by_run.get(run));
        let grant = grant.filter(|grant| now < grant.expires).ok_or(NoGrant::Unknown)?;
        if grant.pod.contains(&pod) { Ok(grant) } else { Err(NoGrant::OtherPod { run: grant.name.clone() }) }
    }

    /// Runs that are granted something.
    pub fn runs(&self) -> usize {
        self.by_run.len()
    }

    /// Whether it is known what is granted.
    pub fn are_told(&self, now: Instant) -> bool {
        self.told == Told::All && !self.is_stale(now)
    }

    /// Whether tunnels have to be cut because nobody says any more what is granted.
    pub fn is_stale(&self, now: Instant) -> bool {
        self.heard.is_none_or(|heard| now.saturating_duration_since(heard) >= STALE_AFTER)
    }

    /// Runs whose grant has expired: their tunnels are cut.
    pub fn expired(&self, now: Instant) -> Vec<String> {
        self.by_run.values().filter(|grant| grant.expires <= now).map(|grant| grant.run.clone()).collect()
    }
}

/// An answer to one request, with the rule that gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Dial it.
    Granted {
        /// As in `status.decisions`.
        rule: String,
        /// What goes through.
        protocol: Protocol,
        /// What may be dialled.
        addresses: Addresses,
        /// How the gateway speaks with it for the script, where it does.
        https: Option<Arc<Https>>,
    },
    /// Do not.
    Refused {
        /// What refuses it.
        rule: String,
        /// What the script's author would have to ask for.
        ask: String,
    },
}

impl Grant {
    /// Whether what it says of tunnels that are open is the same: one that lives longer does, and one whose Secrets hold something else.
    fn is_the_same_to_tunnels(&self, other: &Self) -> bool {
        let rules = |grant: &Self| {
            let without = |rule: &Rule| Rule { https: rule.https.as_ref().map(|https| Arc::new(https.without_values())), ..rule.clone() };
            grant.rules.iter().map(without).collect()
        };
        Self { rules: rules(self), expires: other.expires, ..self.clone() } == Self { rules: rules(other), ..other.clone() }
    }

    /// The one decision on a destination, whichever way a request came. Pure.
    pub fn decide(&self, to: &Authority, way: Way) -> Verdict {
        let refused = |rule: &str| Verdict::Refused { rule: rule.to_owned(), ask: Destination::of(to, way).to_string() };
        if let Host::Name(name) = &to.host
            && let Some((_, rule)) = self.denied.iter().find(|(pattern, _)| pattern.matches(name))
        {
            return refused(rule);
        }
        let (there, elsewhere): (Vec<&Rule>, Vec<&Rule>) =
            self.rules.iter().filter(|rule| rule.to.to.has(&to.host, way)).partition(|rule| rule.to.port == to.port);
        // What is said of one host counts before what is said of many.
        match (there.iter().min_by_key(|rule| !is_of_one_host(rule)), elsewhere.first()) {
            (Some(rule), _) => {
                let allowed = there.iter().map(|rule| rule.allowed.clone()).collect();
                let addresses = Addresses { allowed, denied: self.cluster.clone() };
                Verdict::Granted { rule: rule.name.clone(), protocol: protocol(&rule.to.to), addresses, https: rule.https.clone() }
            }
            // The nearest that there is: the host is granted, this port is not.
            (None, Some(rule)) => refused(&rule.name),
            (None, None) => refused("built-in: network"),
        }
    }
}

fn is_of_one_host(rule: &Rule) -> bool {
    matches!(rule.to.to.hosts(), Some(HostPattern::Exact(_)))
}

fn protocol(to: &Reach) -> Protocol {
    match to {
        Reach::Hosts(_) => Protocol::Tls,
        Reach::Plain(_) => Protocol::Http,
        Reach::Net(_) => Protocol::Tcp,
    }
}

#[cfg(test)]
mod tests;
