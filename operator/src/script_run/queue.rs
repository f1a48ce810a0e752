//! Who gets a slot. Pure: what is known of all runs, the limits and the time in, an answer out.
//!
//! Between tenants the slots of the cluster are shared by weight: the next one goes to the tenant that has the fewest for its weight, and of equals to
//! the one that has waited longest since it was served. Whoever waits is served in the end, since its time grows and that of the others starts
//! anew. Within a tenant the oldest goes first, but a priority counts as so many seconds of age, so that it cannot keep others waiting for ever.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, btree_set};
use std::iter::Peekable;

use paddock_crds::PolicyRef;
use paddock_policy::QueueLimits;

/// Everything that is known of runs that wait or hold a slot. It can be built from stored objects alone, in any order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Line {
    tenants: BTreeMap<String, Tenant>,
    active: usize,
    waiting: usize,
    aside: usize,
}

/// The runs of one tenant namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Tenant {
    /// UIDs of those that hold a slot, with the policy that they name.
    active: BTreeMap<String, PolicyRef>,
    /// Those that wait, by the policy that they name: runs of one policy have the same limits.
    waiting: BTreeMap<PolicyRef, BTreeSet<Turn>>,
    /// UIDs of those that wait for approvals.
    awaiting: BTreeSet<String>,
    /// UIDs of those that gave a slot back, with the policy that they name.
    aside: BTreeMap<String, PolicyRef>,
    /// The last time that one of them got a slot, in microseconds since the epoch.
    served: i64,
}

/// Place among those that wait in a tenant: older first, equals by UID.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Turn {
    /// Creation less its priority, in seconds since the epoch.
    pub(crate) arrived: i64,
    /// UID of the run.
    pub(crate) uid: String,
    /// Name of the run.
    pub(crate) name: String,
}

/// What a run is to the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// It waits.
    Waits,
    /// It holds a slot.
    Active,
    /// It waits for approvals, and is not in line.
    Awaits,
    /// It gave a slot back that a quota had no room for, and asks anew by itself: nobody waits behind it, and it takes a place of those that may wait.
    StandsAside,
}

/// Limits of the whole cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClusterLimits {
    pub(crate) concurrent: usize,
    pub(crate) queued: usize,
}

/// Which limit a run waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// That of the policy that it names.
    Policy,
    /// That of its namespace.
    Tenant,
    /// That of the cluster.
    Cluster,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Take the slot.
    Admit,
    /// Wait for a slot of this kind; so many of the namespace wait before this one.
    Wait {
        /// What there is none left of.
        full: Full,
        /// 0 for the next in line.
        ahead: usize,
    },
    /// As many wait as may.
    Refuse(Full),
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) policy: &'a PolicyRef,
    pub(crate) turn: &'a Turn,
}

impl Line {
    /// Puts a run where it is now.
    pub(crate) fn put(&mut self, asker: Asker<'_>, place: Place) {
        self.take_out(asker);
        let tenant = self.tenants.entry(asker.namespace.to_owned()).or_default();
        match place {
            Place::Active => {
                tenant.active.insert(asker.turn.uid.clone(), asker.policy.clone());
                self.active += 1;
            }
            Place::Waits => {
                tenant.waiting.entry(asker.policy.clone()).or_default().insert(asker.turn.clone());
                self.waiting += 1;
            }
            Place::Awaits => {
                tenant.awaiting.insert(asker.turn.uid.clone());
            }
            Place::StandsAside => {
                tenant.aside.insert(asker.turn.uid.clone(), asker.policy.clone());
                self.aside += 1;
            }
        }
    }

    /// Takes a run out, wherever it is.
    pub(crate) fn take_out(&mut self, asker: Asker<'_>) {
        let Some(tenant) = self.tenants.get_mut(asker.namespace) else { return };
        self.active -= usize::from(tenant.active.remove(&asker.turn.uid).is_some());
        tenant.awaiting.remove(&asker.turn.uid);
        self.aside -= usize::from(tenant.aside.remove(&asker.turn.uid).is_some());
        if let Some(waiting) = tenant.waiting.get_mut(asker.policy) {
            self.waiting -= usize::from(waiting.remove(asker.turn));
            if waiting.is_empty() {
                tenant.waiting.remove(asker.policy);
            }
        }
    }

    /// A run of the namespace got a slot at this time, in microseconds since the epoch.
    pub(crate) fn was_served(&mut self, namespace: &str, at: i64) {
        let tenant = self.tenants.entry(namespace.to_owned()).or_default();
        tenant.served = tenant.served.max(at);
    }

    /// Forgets tenants of which nothing is known but when they were served.
    pub(crate) fn forget_idle(&mut self) {
        self.tenants.retain(|_, tenant| {
            let is_idle = tenant.active.is_empty() && tenant.waiting.is_empty() && tenant.awaiting.is_empty() && tenant.aside.is_empty();
            !is_idle
        });
    }

    /// How many others of the namespace wait for approvals.
    pub(crate) fn awaiting(&self, namespace: &str, uid: &str) -> usize {
        self.tenants.get(namespace).map_or(0, |tenant| tenant.awaiting.len() - usize::from(tenant.awaiting.contains(uid)))
    }

    pub(crate) fn holds_a_slot(&self, namespace: &str, uid: &str) -> bool {
        self.tenants.get(namespace).is_some_and(|tenant| tenant.active.contains_key(uid))
    }

    /// Decides for one run, which may be in line or new. `limits_of` gives the limits of others, by namespace and policy.
    pub(crate) fn admit(
        &self,
        asker: Asker<'_>,
        limits: QueueLimits,
        cluster: ClusterLimits,
        limits_of: impl Fn(&str, &PolicyRef) -> QueueLimits,
        now: i64,
    ) -> Admission {
        if self.holds_a_slot(asker.namespace, &asker.turn.uid) {
            return Admission::Admit;
        }
        let free = cluster.concurrent.saturating_sub(self.active);
        // Where there is room for everybody, only those of the same tenant can be in the way.
        let is_contended = free <= self.waiting;
        let full = match self.full(asker, limits) {
            Some(full) => full,
            None if free == 0 => Full::Cluster,
            None => {
                let mut contest = Contest { contenders: BTreeMap::new(), now };
                for (namespace, tenant) in &self.tenants {
                    if is_contended && *namespace != asker.namespace && !tenant.waiting.is_empty() {
                        contest.enter(namespace, tenant, &limits_of);
                    }
                }
                let none = Tenant::default();
                let own = self.tenants.get(asker.namespace).unwrap_or(&none);
                let own_limits = |namespace: &str, policy: &PolicyRef| {
                    if policy == asker.policy { limits } else { limits_of(namespace, policy) }
                };
                contest.enter(asker.namespace, own, &own_limits);
                contest.ask(asker, limits, own);
                if contest.serve(free, Some(&asker.turn.uid)).1 {
                    return Admission::Admit;
                }
                if is_contended { Full::Cluster } else { Full::Tenant }
            }
        };
        self.wait(asker, limits, cluster, full)
    }

    /// Whether more hold slots than may, where a run holds one. What is not known of that one yet is counted all the same.
    pub(crate) fn exceeds(&self, holder: Asker<'_>, limits: QueueLimits, cluster: ClusterLimits) -> bool {
        let unknown = usize::from(!self.holds_a_slot(holder.namespace, &holder.turn.uid));
        let tenant = self.tenants.get(holder.namespace);
        let active = tenant.map_or(0, |tenant| tenant.active.len()) + unknown;
        let of_the_policy = tenant.map_or(0, |tenant| tenant.active_of(holder.policy)) + unknown;
        self.active + unknown > cluster.concurrent
            || active > limits.concurrent as usize
            || limits.policy_concurrent.is_some_and(|most| of_the_policy > most as usize)
    }

    /// Whether the asker's own limits have no slot, whoever else asks.
    fn full(&self, asker: Asker<'_>, limits: QueueLimits) -> Option<Full> {
        let tenant = self.tenants.get(asker.namespace);
        let active = tenant.map_or(0, |tenant| tenant.active.len());
        let of_the_policy = tenant.map_or(0, |tenant| tenant.active_of(asker.policy));
        if limits.policy_concurrent.is_some_and(|most| of_the_policy >= most as usize) {
            return Some(Full::Policy);
        }
        (limits.suspended || active >= limits.concurrent as usize).then_some(Full::Tenant)
    }

    fn wait(&self, asker: Asker<'_>, limits: QueueLimits, cluster: ClusterLimits, full: Full) -> Admission {
        let none = Tenant::default();
        let tenant = self.tenants.get(asker.namespace).unwrap_or(&none);
        let of_the_policy = tenant.waiting.get(asker.policy);
        // Who has waited before is not sent away: they were counted when they came.
        let uid = &asker.turn.uid;
        let is_known = of_the_policy.is_some_and(|waiting| waiting.contains(asker.turn))
            || tenant.aside.contains_key(uid)
            || tenant.awaiting.contains(uid);
        if !is_known {
            let aside = tenant.aside.values().filter(|policy| *policy == asker.policy).count();
            if limits.policy_queued.is_some_and(|most| of_the_policy.map_or(0, BTreeSet::len) + aside >= most as usize) {
                return Admission::Refuse(Full::Policy);
            }
            if tenant.waiting.values().map(BTreeSet::len).sum::<usize>() + tenant.aside.len() >= limits.queued as usize {
                return Admission::Refuse(Full::Tenant);
            }
            if self.waiting + self.aside >= cluster.queued {
                return Admission::Refuse(Full::Cluster);
            }
        }
        let ahead = tenant.waiting.values().map(|waiting| waiting.range(..asker.turn).count()).sum();
        Admission::Wait { full, ahead }
    }

    /// The first of those that wait in this namespace, one for each policy that they name, by name.
    pub(crate) fn heads(&self, namespace: &str) -> Vec<String> {
        let tenant = self.tenants.get(namespace);
        tenant
            .iter()
            .flat_map(|tenant| tenant.waiting.values())
            .filter_map(|waiting| waiting.first())
            .map(|turn| turn.name.clone())
            .collect()
    }

    /// The runs that would get the free slots, in the order in which they would: by namespace and name.
    pub(crate) fn next(
        &self,
        namespace: &str,
        cluster: ClusterLimits,
        limits_of: impl Fn(&str, &PolicyRef) -> QueueLimits,
        now: i64,
    ) -> Vec<(String, String)> {
        let free = cluster.concurrent.saturating_sub(self.active);
        let is_contended = free <= self.waiting;
        let mut contest = Contest { contenders: BTreeMap::new(), now };
        for (name, tenant) in &self.tenants {
            if (is_contended || name == namespace) && !tenant.waiting.is_empty() {
                contest.enter(name, tenant, &limits_of);
            }
        }
        contest.serve(free, None).0.into_iter().map(|(namespace, turn)| (namespace.to_owned(), turn.name.clone())).collect()
    }
}

impl Tenant {
    fn active_of(&self, policy: &PolicyRef) -> usize {
        self.active.values().filter(|active| *active == policy).count()
    }
}

/// Slots being given away, one by one.
struct Contest<'a> {
    contenders: BTreeMap<&'a str, Contender<'a>>,
    now: i64,
}

/// A tenant that wants slots.
struct Contender<'a> {
    /// Of the namespace: the smallest of what its kinds say, which all say the same.
    concurrent: usize,
    weight: u64,
    active: usize,
    served: i64,
    kinds: BTreeMap<&'a PolicyRef, Kind<'a>>,
}

/// Those of a tenant that name the same policy.
struct Kind<'a> {
    limits: QueueLimits,
    active: usize,
    waiting: Option<Peekable<btree_set::Iter<'a, Turn>>>,
    /// Who asks and is not in line yet.
    asker: Option<&'a Turn>,
}

impl<'a> Contest<'a> {
    fn enter(&mut self, namespace: &'a str, tenant: &'a Tenant, limits_of: &impl Fn(&str, &PolicyRef) -> QueueLimits) {
        let active = tenant.active.len();
        let mut contender = Contender { concurrent: usize::MAX, weight: u64::MAX, active, served: tenant.served, kinds: BTreeMap::new() };
        for (policy, waiting) in &tenant.waiting {
            let kind = Kind {
                limits: limits_of(namespace, policy),
                active: tenant.active_of(policy),
                waiting: Some(waiting.iter().peekable()),
                asker: None,
            };
            contender.add(policy, kind);
        }
        self.contenders.insert(namespace, contender);
    }

    /// Lets the one who asks take part, who may be in line already.
    fn ask(&mut self, asker: Asker<'a>, limits: QueueLimits, tenant: &'a Tenant) {
        let Some(contender) = self.contenders.get_mut(asker.namespace) else { return };
        if tenant.waiting.get(asker.policy).is_some_and(|waiting| waiting.contains(asker.turn)) {
            return;
        }
        if let Some(kind) = contender.kinds.get_mut(asker.policy) {
            kind.asker = Some(asker.turn);
            return;
        }
        contender.add(asker.policy, Kind { limits, active: tenant.active_of(asker.policy), waiting: None, asker: Some(asker.turn) });
    }

    /// Gives away so many slots, or until `uid` has got one. Tells who got one, by namespace, and whether `uid` did.
    fn serve(&mut self, free: usize, uid: Option<&str>) -> (Vec<(&'a str, &'a Turn)>, bool) {
        let now = self.now;
        let mut served = Vec::new();
        let claims = self.contenders.iter_mut().filter_map(|(namespace, contender)| contender.claim(namespace, now));
        let mut claims: BinaryHeap<Claim<'a>> = claims.collect();
        while served.len() < free {
            let Some(Claim { namespace, policy, turn, .. }) = claims.pop() else { break };
            served.push((namespace, turn));
            if uid == Some(turn.uid.as_str()) {
                return (served, true);
            }
            // Nobody else's claim changes by it.
            if let Some(contender) = self.contenders.get_mut(namespace) {
                contender.take(policy, now);
                claims.extend(contender.claim(namespace, now));
            }
        }
        (served, false)
    }
}

/// What a tenant can say for its first run. The greatest goes first.
#[derive(PartialEq, Eq)]
struct Claim<'a> {
    namespace: &'a str,
    policy: &'a PolicyRef,
    turn: &'a Turn,
    active: u64,
    weight: u64,
    /// Microseconds since it was served last, or since its first run came if that was later, by its weight.
    waited: i128,
}

/// See the module.
impl Ord for Claim<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.active * self.weight)
            .cmp(&(self.active * other.weight))
            .then_with(|| self.waited.cmp(&other.waited))
            .then_with(|| other.namespace.cmp(self.namespace))
    }
}

impl PartialOrd for Claim<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<'a> Contender<'a> {
    fn add(&mut self, policy: &'a PolicyRef, kind: Kind<'a>) {
        self.concurrent = self.concurrent.min(kind.limits.concurrent as usize);
        self.weight = self.weight.min(u64::from(kind.limits.weight.max(1)));
        self.kinds.insert(policy, kind);
    }

    /// What it can say for its first run, if it has one and room for it.
    fn claim(&mut self, namespace: &'a str, now: i64) -> Option<Claim<'a>> {
        let (policy, turn) = self.first()?;
        let since = self.served.max(turn.arrived.saturating_mul(1_000_000));
        let waited = i128::from(now.saturating_sub(since)) * i128::from(self.weight);
        Some(Claim { namespace, policy, turn, active: self.active as u64, weight: self.weight, waited })
    }

    /// The first of those whose limits have room.
    fn first(&mut self) -> Option<(&'a PolicyRef, &'a Turn)> {
        if self.active >= self.concurrent {
            return None;
        }
        let open = self
            .kinds
            .iter_mut()
            .filter(|(_, kind)| !kind.limits.suspended && kind.limits.policy_concurrent.is_none_or(|most| kind.active < most as usize));
        open.filter_map(|(policy, kind)| kind.first().map(|turn| (*policy, turn))).min_by_key(|(_, turn)| *turn)
    }

    fn take(&mut self, policy: &PolicyRef, now: i64) {
        if let Some(kind) = self.kinds.get_mut(policy) {
            kind.take();
        }
        self.active += 1;
        self.served = now;
    }
}

impl<'a> Kind<'a> {
    fn first(&mut self) -> Option<&'a Turn> {
        let waiting = self.waiting.as_mut().and_then(|waiting| waiting.peek().copied());
        [waiting, self.asker].into_iter().flatten().min()
    }

    fn take(&mut self) {
        let first = self.first();
        if first == self.asker {
            self.asker = None;
        } else if let Some(waiting) = &mut self.waiting {
            waiting.next();
        }
        self.active += 1;
    }
}

#[cfg(test)]
mod tests;
