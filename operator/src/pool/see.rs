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
use paddock_protocol::Line;

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
use crate::script_run::pod_facts::{PodFacts, PodLife};
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
const LONGEST_HOLD_BACK: Duration = Duration::from_secs(120);

/// What is remembered of a pool between two looks.
pub(super) struct Memory {
    /// Sandboxes in a row that ended before they were ready.
    pub(super) failures: u32,
    /// Those of them whose pods are still there, by name: each counts once.
    pub(super) counted: HashSet<String>,
    /// Until when nothing is begun, and why.
    pub(super) held_back: Option<(Instant, String)>,
    pub(super) told: Option<Instant>,
    /// Since when this process looks after it.
    since: Instant,
    /// Those that begin.
    starting: HashSet<String>,
    /// How long the last of its sandboxes took to begin, in seconds.
    refills: VecDeque<i64>,
}

impl Default for Memory {
    fn default() -> Self {
        let (failures, counted, held_back, told) = (0, HashSet::new(), None, None);
        let (starting, refills) = (HashSet::new(), VecDeque::new());
        Self { failures, counted, held_back, told, since: Instant::now(), starting, refills }
    }
}

impl Memory {
    /// How long a sandbox takes to begin: the longest of the last few.
    fn refill(&self) -> Duration {
        self.refills.iter().max().map_or(FIRST_REFILL, |seconds| Duration::from_secs(u64::try_from(*seconds).unwrap_or(0).clamp(1, 60)))
    }

    /// Counts those that ended before they were ready, each once; one that waits shows that all is well, and how long it took to begin.
    pub(super) fn note(&mut self, sandboxes: &[SandboxSeen]) {
        for sandbox in sandboxes {
            match &sandbox.state {
                State::Free => {
                    self.failures = 0;
                    if self.starting.remove(&sandbox.name) {
                        self.refills.push_back(sandbox.age_seconds);
                    }
                }
                State::Starting { .. } => _ = self.starting.insert(sandbox.name.clone()),
                State::Spent(Some(why)) if self.counted.insert(sandbox.name.clone()) => self.fail(why.clone()),
                _ => {}
            }
        }
        self.refills.drain(..self.refills.len().saturating_sub(REFILLS));
        for names in [&mut self.counted, &mut self.starting] {
            names.retain(|name| sandboxes.iter().any(|sandbox| sandbox.name == *name));
        }
    }

    pub(super) fn fail(&mut self, why: String) {
        self.failures = (self.failures + 1).min(8);
        let pause = (HOLD_BACK * 2_u32.pow(self.failures - 1)).min(LONGEST_HOLD_BACK);
        self.held_back = Some((Instant::now() + pause, why));
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
            shape,
            best_before: Instant::now() + Duration::from_secs(left),
        }
    }

    /// Sandboxes that are to wait.
    fn replicas(&self, arrivals: &[Duration], memory: &Memory) -> usize {
        let number = |field: Option<i32>| usize::try_from(field.unwrap_or(0)).unwrap_or(0);
        let spec = &self.object.spec;
        if spec.replicas.is_some() {
            return number(spec.replicas);
        }
        let bounds = (number(spec.min), number(spec.max));
        let wanted = wanted(arrivals, memory.refill(), bounds);
        // Who has just begun to lead has not seen what arrived before.
        let before =
            self.object.status.as_ref().filter(|_| memory.since.elapsed() < REMEMBERED).map_or(0, |status| number(Some(status.wanted)));
        wanted.max(before.min(bounds.1))
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
    let facts = Facts { script_hash: None, image: Some(&grant.runtime.image), requester: None, end_user: None };
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

/// All that counts of a pool with these sandboxes.
pub(super) fn see(pool: &Pool, sandboxes: Vec<SandboxSeen>, arrivals: &[Duration], memory: &Memory, context: &Context) -> PoolSeen {
    let short = context.sandboxes.short(&pool.tenant);
    PoolSeen {
        replicas: pool.replicas(arrivals, memory),
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
            // Nobody has written there but the runner: there was no script.
            _ => refused_in(ended.termination_message.as_deref()).or(ended.container_reason).or(ended.pod_reason),
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

/// What a runner said that could not begin, to nobody.
fn refused_in(termination_message: Option<&str>) -> Option<String> {
    match Line::parse(termination_message?.trim_end().as_bytes())? {
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
