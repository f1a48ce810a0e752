//! What there is of pools: what is wanted, what is granted, which sandboxes there are and what they do. It reads caches and memory, and changes nothing.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::runtime::reflector::ObjectRef;
use paddock_crds::{Capabilities, ConditionType, PolicyKind, PolicyRef, PoolReason, ResourceAmounts, SandboxPool, ScriptRun};
use paddock_policy::{Ask, Facts, Gateway, Grant, judge, judge_denied};
use paddock_protocol::{Line, NOT_RUN};

use super::demand::{FIRST_REFILL, REMEMBERED, wanted};
use super::plan::{PoolSeen, SandboxSeen, State};
use super::render::{Owner, template};
use super::shape::Shape;
use super::waiting::{Holder, Waiting};
use crate::context::Context;
use crate::names::{TEMPLATE, is_waiting_name};
use crate::sandbox_namespace::Wanted;
use crate::script_run::RunRef;
use crate::script_run::observe::policies_of;
use crate::script_run::pod_facts::{Ended, PodFacts, PodLife};
use crate::script_run::session::{Heard, useless};

/// Pools of one namespace that are filled: all pools are looked after one after the other.
const MOST_POOLS: usize = 16;
const DEFAULT_AGE_SECONDS: i64 = 3600;
/// One that is too old may be given to a run for so long, until it is replaced.
pub(crate) const REPLACED_WITHIN_SECONDS: u32 = 300;
/// After sandboxes of a pool have ended before they were ready, longer with each.
const HOLD_BACK: Duration = Duration::from_secs(2);
/// By so many it is known how long the next one takes.
const REFILLS: usize = 8;
/// A sandbox that has waited for so long is no failure.
const LASTS_SECONDS: i64 = 60;
const LONGEST_REFILL: Duration = Duration::from_secs(60);
const LONGEST_HOLD_BACK: Duration = Duration::from_secs(120);

/// What is remembered of a pool between two looks.
pub(super) struct Memory {
    /// Sandboxes in a row that ended before they were ready.
    pub(super) failures: u32,
    /// Those of them whose pods are still there, by name: each counts once.
    pub(super) counted: HashSet<String>,
    /// Those that were of use, or have lasted.
    well: HashSet<String>,
    /// Until when nothing is begun, and why.
    pub(super) held_back: Option<(Instant, String)>,
    pub(super) told: Option<Instant>,
    /// Since when this process looks after it.
    since: Instant,
    /// Those that this process has made and that have not waited yet, since when.
    made: HashMap<String, Instant>,
    /// How long the last of these took to begin.
    refills: VecDeque<Duration>,
}

impl Default for Memory {
    fn default() -> Self {
        let (failures, counted, well, held_back, told) = (0, HashSet::new(), HashSet::new(), None, None);
        let (made, refills) = (HashMap::new(), VecDeque::new());
        Self { failures, counted, well, held_back, told, since: Instant::now(), made, refills }
    }
}

impl Memory {
    /// How long a sandbox takes to begin: the longest of the last few.
    fn refill(&self) -> Duration {
        self.refills.iter().max().map_or(FIRST_REFILL, |longest| *longest)
    }

    /// A sandbox was made.
    pub(super) fn made(&mut self, name: String, now: Instant) {
        self.made.insert(name, now);
    }

    /// Counts those that ended before they were ready, each once; one that waits shows that all is well. How long one takes to begin is told by those that
    /// this process has made: others may have waited for long before it heard of them.
    pub(super) fn note(&mut self, sandboxes: &[SandboxSeen], now: Instant) {
        for sandbox in sandboxes {
            match &sandbox.state {
                State::Free => {
                    self.refills.extend(self.made.remove(&sandbox.name).map(|made| now.duration_since(made)));
                }
                // One that has lasted was well, whatever has ended it.
                State::Spent(Some(why)) if sandbox.age_seconds < LASTS_SECONDS && self.counted.insert(sandbox.name.clone()) => {
                    self.fail(why.clone(), now);
                }
                // It may have waited for any time in between.
                State::Claimed => self.refills.extend(self.made.remove(&sandbox.name).map(|made| now.duration_since(made))),
                _ => {}
            }
        }
        // One that waits for a moment and ends has failed all the same; each that does not takes a failure back.
        let is_well = |sandbox: &&SandboxSeen| match sandbox.state {
            State::Claimed => true,
            State::Free => sandbox.age_seconds >= LASTS_SECONDS,
            _ => false,
        };
        for sandbox in sandboxes.iter().filter(is_well) {
            if self.well.insert(sandbox.name.clone()) {
                self.failures = self.failures.saturating_sub(1);
            }
        }
        self.refills.drain(..self.refills.len().saturating_sub(REFILLS));
        for names in [&mut self.counted, &mut self.well] {
            names.retain(|name| sandboxes.iter().any(|sandbox| sandbox.name == *name));
        }
        // Slower than this is not slow, but in vain.
        self.made.retain(|_, made| now.duration_since(*made) < LONGEST_REFILL);
    }

    pub(super) fn fail(&mut self, why: String, now: Instant) {
        self.failures = (self.failures + 1).min(8);
        let pause = (HOLD_BACK * 2_u32.pow(self.failures - 1)).min(LONGEST_HOLD_BACK);
        self.held_back = Some((now + pause, why));
    }
}

/// A pool, and what is to be in it.
pub(super) struct Pool {
    pub(super) object: SandboxPool,
    pub(super) tenant: String,
    pub(super) uid: String,
    pub(super) max_age_seconds: i64,
    /// What its sandboxes have, or why it has none.
    pub(super) shape: Result<Shape, (PoolReason, String)>,
    /// Where they are.
    pub(super) wanted: Option<Wanted>,
}

impl Pool {
    /// Of a sandbox that is so old.
    pub(super) fn waiting(&self, shape: Shape, age_seconds: i64) -> Waiting {
        let left = u64::try_from(self.max_age_seconds + i64::from(REPLACED_WITHIN_SECONDS) - age_seconds).unwrap_or(0);
        let spec = &self.object.spec;
        Waiting {
            tenant: self.tenant.clone(),
            policy: spec.policy_ref.clone(),
            runtime: spec.runtime.clone(),
            pool_uid: self.uid.clone(),
            follows: spec.replicas.is_none(),
            shape,
            best_before: Instant::now() + Duration::from_secs(left),
        }
    }

    pub(super) fn owner<'a>(&'a self, name: &'a str) -> Owner<'a> {
        let max_age_seconds = u32::try_from(self.max_age_seconds).unwrap_or(u32::MAX);
        Owner { tenant: &self.tenant, pool: name, pool_uid: &self.uid, max_age_seconds }
    }

    pub(super) fn template(&self, shape: &Shape, context: &Context) -> String {
        template(self.owner(&self.object.name_any()), shape, &context.settings)
    }
}

pub(super) fn pools(context: &Context) -> Vec<Pool> {
    let readable = context.caches.pools.state();
    let objects = readable.iter().filter_map(|pool| pool.0.as_ref().ok()).filter(|pool| pool.metadata.deletion_timestamp.is_none());
    let mut objects: Vec<&SandboxPool> = objects.collect();
    objects.sort_by_key(|pool| (pool.metadata.creation_timestamp.as_ref().map(|created| created.0), pool.uid()));
    let mut before: HashMap<String, usize> = HashMap::new();
    objects
        .into_iter()
        .map(|object| {
            let tenant = object.namespace().unwrap_or_default();
            let older = before.entry(tenant.clone()).or_default();
            *older += 1;
            let many =
                (*older > MOST_POOLS).then(|| (PoolReason::TooManyPools, format!("there are {MOST_POOLS} older pools in the namespace")));
            let (shape, wanted) = match many.map_or_else(|| shape(&tenant, object, context), Err) {
                Ok((shape, wanted)) => (Ok(shape), Some(wanted)),
                Err(why) => (Err(why), None),
            };
            Pool {
                uid: object.uid().unwrap_or_default(),
                max_age_seconds: object.spec.max_age_seconds.unwrap_or(DEFAULT_AGE_SECONDS),
                shape,
                wanted,
                tenant,
                object: object.clone(),
            }
        })
        .collect()
}

/// All pods of pools, and the namespaces of which it is not known yet what is in them.
pub(super) fn pods(context: &Context) -> (Vec<Arc<Pod>>, HashSet<String>) {
    let (mut pods, mut unlisted) = (Vec::new(), HashSet::new());
    for (namespace, listed) in context.pods.of_pools() {
        match listed {
            Some(listed) => pods.extend(listed),
            None => _ = unlisted.insert(namespace),
        }
    }
    (pods, unlisted)
}

/// What a run would get that asks this policy for this runtime and for nothing else.
fn shape(tenant: &str, pool: &SandboxPool, context: &Context) -> Result<(Shape, Wanted), (PoolReason, String)> {
    if context.settings.sandbox_has_interface {
        return Err((PoolReason::HasInterface, "every sandbox has a network interface here, and none may wait with one".into()));
    }
    let not_granted = |message: String| (PoolReason::NotGranted, message);
    let seen = policies_of(tenant, &pool.spec.policy_ref, context);
    if let Some(why) = seen.unusable {
        return Err(not_granted(why));
    }
    if let Some(gone) = seen.gone.first() {
        return Err(not_granted(format!("the ClusterSandboxPolicy {gone} does not select the namespace any more")));
    }
    let grant = granted(&seen.taking_part, &pool.spec.policy_ref, &pool.spec.runtime).map_err(not_granted)?;
    let facts = Facts { image: Some(&grant.runtime.image), ..Facts::default() };
    if let Some((refusal, _)) = judge_denied(&seen.taking_part, facts) {
        return Err(not_granted(refusal.message));
    }
    let of_cluster_tier =
        seen.taking_part.iter().map(|policy| &policy.taken).filter(|taken| taken.kind == PolicyKind::ClusterSandboxPolicy);
    let namespace = context.caches.namespaces.get(&ObjectRef::new(tenant));
    let wanted = Wanted {
        tenant: tenant.to_owned(),
        tenant_uid: namespace.and_then(|namespace| namespace.uid()).ok_or_else(|| not_granted("the namespace is not known yet".into()))?,
        max_pods: grant.queue.concurrent,
        cluster_policies: of_cluster_tier.map(|taken| taken.name.clone()).collect(),
    };
    Ok((Shape::of(&grant), wanted))
}

fn granted(policies: &[Arc<paddock_policy::Policy>], named: &PolicyRef, runtime: &str) -> Result<Grant, String> {
    let ask = Ask {
        runtime: runtime.to_owned(),
        resources: ResourceAmounts::default(),
        timeout_seconds: None,
        grace_period_seconds: None,
        priority: None,
        capabilities: Capabilities::default(),
        objects: BTreeMap::default(),
        at_gateway: BTreeMap::default(),
        gateway: Gateway::Absent,
    };
    judge(policies, named, &ask).result.map_err(|refusal| refusal.message)
}

/// Which sandbox which run has, by what is stored.
pub(super) fn holders(context: &Context) -> HashMap<String, Holder> {
    let mut holders = HashMap::new();
    for guarded in context.runs() {
        let Ok(watched) = &guarded.0 else { continue };
        if let Some((name, holder)) = holder(&watched.run) {
            holders.insert(name, holder);
        }
    }
    holders
}

fn holder(run: &ScriptRun) -> Option<(String, Holder)> {
    let pod = run.status.as_ref()?.pod.as_ref().filter(|pod| is_waiting_name(&pod.name))?;
    let tenant = run.namespace()?;
    let holder = Holder {
        run: RunRef::new(&run.name_any()).within(&tenant),
        run_uid: run.uid()?,
        policy: run.spec.policy_ref.clone(),
        tenant,
        job: None,
        is_over: run.status.as_ref()?.is_true(&ConditionType::Finished),
    };
    Some((pod.name.clone(), holder))
}

/// What the sandboxes of a pool do.
pub(super) fn sandboxes(pool: &Pool, pods: &[&Arc<Pod>], context: &Context, now: Timestamp) -> Vec<SandboxSeen> {
    let wanted = pool.shape.as_ref().ok().map(|shape| pool.template(shape, context));
    let seen = |pod: &&Arc<Pod>| SandboxSeen {
        name: pod.name_any(),
        age_seconds: age_seconds(pod, now),
        state: state(pod, context),
        is_outdated: pod.annotations().get(TEMPLATE) != wanted.as_ref(),
    };
    pods.iter().map(seen).collect()
}

/// Sandboxes that are to wait, where runs have arrived so long ago, one takes so long to begin, and this process has looked after the pool for so long.
fn replicas(pool: &SandboxPool, arrivals: &[Duration], refill: Duration, looked_after: Duration) -> usize {
    let number = |field: Option<i32>| usize::try_from(field.unwrap_or(0)).unwrap_or(0);
    if pool.spec.replicas.is_some() {
        return number(pool.spec.replicas);
    }
    let bounds = (number(pool.spec.min), number(pool.spec.max));
    // Who has just begun to lead has not seen what arrived before.
    let before = pool.status.as_ref().filter(|_| looked_after < REMEMBERED).map_or(0, |status| number(Some(status.wanted)));
    wanted(arrivals, refill, bounds).max(before.min(bounds.1))
}

/// All that counts of a pool with these sandboxes.
pub(super) fn see(pool: &Pool, sandboxes: Vec<SandboxSeen>, arrivals: &[Duration], memory: &Memory, context: &Context) -> PoolSeen {
    let short = context.sandboxes.short(&pool.tenant);
    PoolSeen {
        replicas: replicas(&pool.object, arrivals, memory.refill(), memory.since.elapsed()),
        max_age_seconds: pool.max_age_seconds,
        refused: pool.shape.as_ref().err().cloned(),
        sandboxes,
        give_way: short.unwrap_or(0),
        is_short: short.is_some(),
        failed: memory.held_back.as_ref().filter(|(until, _)| *until > Instant::now()).map(|(_, why)| why.clone()),
    }
}

fn state(pod: &Pod, context: &Context) -> State {
    let name = pod.name_any();
    if pod.metadata.deletion_timestamp.is_some() {
        return State::Leaving;
    }
    if let Some(holder) = context.sandboxes.holder(&name) {
        return if holder.is_over { State::Spent(None) } else { State::Claimed };
    }
    if was_started_again(pod) {
        return State::Spent(Some("its container was started a second time".into()));
    }
    if let PodLife::Ended(ended) = PodFacts::of(pod).life {
        let heard = match context.sessions.heard(&name) {
            Heard::Useless(why) => Some(why),
            _ => refused_in(&ended).or(ended.container_reason).or(ended.pod_reason),
        };
        return State::Spent(heard.or_else(|| Some("the pod has ended".into())));
    }
    if context.sandboxes.is_expired(&name) {
        return State::Spent(None);
    }
    match context.sessions.heard(&name) {
        Heard::Waits if context.sandboxes.waits(&name) => State::Free,
        Heard::Waits | Heard::Unheard => State::Spent(None),
        Heard::Useless(why) => State::Spent(Some(why)),
        Heard::Silent(since) => State::Starting { heard_for: i64::try_from(since.as_secs()).unwrap_or(i64::MAX) },
    }
}

/// What a runner said that could not begin, to nobody. An interpreter that waits could have written it too, so it counts only for a runner that has ended as
/// one does which refuses.
fn refused_in(ended: &Ended) -> Option<String> {
    let message = ended.termination_message.as_ref().filter(|_| ended.exit_code == Some(i32::from(NOT_RUN)))?;
    match Line::parse(message.trim_end().as_bytes())? {
        Line::Refused(refused) => Some(useless(&refused)),
        _ => None,
    }
}

pub(super) fn age_seconds(pod: &Pod, now: Timestamp) -> i64 {
    pod.metadata.creation_timestamp.as_ref().map_or(0, |created| now.as_second() - created.0.as_second())
}

/// A node that has lost the state of its runtime starts a container once more, with the volumes of the one before.
pub(super) fn was_started_again(pod: &Pod) -> bool {
    let containers = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    containers.into_iter().any(|container| container.restart_count > 0)
}

#[cfg(test)]
mod tests {
    use paddock_crds::{SandboxPoolSpec, SandboxPoolStatus};

    use super::*;

    fn sandbox(name: &str, age_seconds: i64, state: State) -> SandboxSeen {
        SandboxSeen { name: name.into(), age_seconds, state, is_outdated: false }
    }

    #[test]
    fn how_long_a_sandbox_takes_is_told_by_those_that_were_made_here() {
        let (mut memory, begin) = (Memory::default(), Instant::now());
        let after = |milliseconds| begin + Duration::from_millis(milliseconds);
        for name in ["own", "late", "never"] {
            memory.made(name.into(), begin);
        }
        let adopted = |state| sandbox("adopted", 3000, state);
        memory.note(&[adopted(State::Starting { heard_for: 1 }), sandbox("own", 0, State::Starting { heard_for: 0 })], after(500));
        assert_eq!(memory.refill(), FIRST_REFILL);
        memory.note(&[adopted(State::Free), sandbox("own", 1, State::Free)], after(1500));
        assert_eq!(memory.refill(), Duration::from_millis(1500));
        // Its stream was broken for a while.
        memory.note(&[sandbox("own", 50, State::Starting { heard_for: 1 })], after(50_000));
        memory.note(&[sandbox("own", 51, State::Free)], after(51_000));
        assert_eq!(memory.refill(), Duration::from_millis(1500));
        memory.note(&[sandbox("late", 59, State::Free)], after(59_000));
        assert_eq!(memory.refill(), Duration::from_secs(59));
        memory.note(&[], after(62_000));
        assert!(memory.made.is_empty());
    }

    #[test]
    fn one_that_waits_for_a_moment_and_ends_is_a_failure_among_others() {
        let (mut memory, begin) = (Memory::default(), Instant::now());
        for look in 0..4 {
            let now = begin + Duration::from_secs(look);
            memory.note(&[sandbox(&look.to_string(), 1, State::Free)], now);
            memory.note(&[sandbox(&look.to_string(), 2, State::Spent(Some("it has ended".into())))], now);
        }
        assert_eq!(memory.failures, 4);
        let (until, _) = memory.held_back.clone().unwrap();
        assert_eq!(until, begin + Duration::from_secs(3) + HOLD_BACK * 8);
        // Each that is of use, or lasts, takes one of them back; that it ends then is none.
        let later = begin + Duration::from_secs(90);
        let [lasts, claimed] = [sandbox("lasts", 70, State::Free), sandbox("claimed", 1, State::Claimed)];
        memory.note(&[lasts.clone(), claimed.clone()], later);
        memory.note(&[lasts, claimed], later);
        assert_eq!(memory.failures, 2);
        memory.note(&[sandbox("lasts", 80, State::Spent(Some("its node was drained".into())))], later);
        assert_eq!(memory.failures, 2);
    }

    #[test]
    fn who_has_just_begun_to_lead_keeps_to_what_was_wanted() {
        let pool = |replicas, min, max, wanted| {
            let policy_ref = PolicyRef { kind: PolicyKind::ClusterSandboxPolicy, name: "baseline".into() };
            let spec = SandboxPoolSpec { policy_ref, runtime: "shell".into(), replicas, min, max, max_age_seconds: None };
            let status = SandboxPoolStatus { wanted, ..SandboxPoolStatus::default() };
            SandboxPool { status: Some(status), ..SandboxPool::new("shell", spec) }
        };
        let (soon, later) = (Duration::from_secs(10), REMEMBERED);
        let follows = pool(None, Some(1), Some(20), 12);
        assert_eq!(replicas(&follows, &[], FIRST_REFILL, soon), 12);
        assert_eq!(replicas(&follows, &[], FIRST_REFILL, later), 1);
        assert_eq!(replicas(&follows, &[soon; 15], FIRST_REFILL, soon), 19);
        assert_eq!(replicas(&pool(None, Some(0), Some(4), 12), &[], FIRST_REFILL, soon), 4);
        assert_eq!(replicas(&pool(Some(3), None, None, 12), &[soon; 15], FIRST_REFILL, soon), 3);
    }
}
