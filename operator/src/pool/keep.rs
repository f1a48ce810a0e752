//! Seeing, making and removing the sandboxes of pools, and telling of them. It decides nothing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt as _};
use paddock_crds::{
    Capabilities, ConditionStatus, PolicyKind, PolicyRef, PoolCondition, PoolConditionType, PoolReason, ResourceAmounts, SandboxPool,
    SandboxPoolStatus, ScriptRun,
};
use paddock_policy::{Ask, Facts, Gateway, Grant, judge, judge_denied};
use serde_json::json;
use tokio::sync::watch;
use uuid::Uuid;

use super::plan::{Plan, PoolSeen, SandboxSeen, State, plan};
use super::render::{Owner, render_waiting, template};
use super::shape::Shape;
use super::waiting::{Holder, Waiting};
use crate::context::Context;
use crate::error::{Error, code, response, within};
use crate::names::{POOL_UID, RUN_NAMESPACE, TEMPLATE, is_waiting_name, sandbox_namespace, waiting_name};
use crate::sandbox_namespace::{self, Wanted};
use crate::script_run::RunRef;
use crate::script_run::observe::policies_of;
use crate::script_run::pod::difference;
use crate::script_run::pod_facts::{PodFacts, PodLife};
use crate::script_run::session::{Heard, Listening, PodAge};
use crate::script_run::step::SandboxSeen as NamespaceSeen;
use crate::script_run::text::cut;

/// Whatever happens, pools are looked at this often: sandboxes grow old without telling.
const EVERY: Duration = Duration::from_secs(2);
/// Between two looks. A run that has just been given a sandbox has the node's CPU for itself for so long before the pool is refilled.
const PAUSE: Duration = Duration::from_millis(250);
/// Between two writes of a pool's status.
const TELL_EVERY: Duration = Duration::from_secs(2);
const DEFAULT_AGE_SECONDS: i64 = 3600;
/// After sandboxes of a pool have ended before they were ready, longer with each.
const HOLD_BACK: Duration = Duration::from_secs(2);
const LONGEST_HOLD_BACK: Duration = Duration::from_secs(120);

/// What is remembered of a pool between two looks.
#[derive(Default)]
struct Memory {
    /// Sandboxes in a row that ended before they were ready.
    failures: u32,
    /// Those of them whose pods are still there, by name: each counts once.
    counted: HashSet<String>,
    /// Until when nothing is begun, and why.
    held_back: Option<(Instant, String)>,
    told: Option<Instant>,
}

/// Looks again and again, until the process stops leading.
pub(crate) async fn run(context: Arc<Context>, mut policies: watch::Receiver<()>, mut pools: watch::Receiver<()>) {
    let mut memory: HashMap<String, Memory> = HashMap::new();
    loop {
        policies.mark_unchanged();
        pools.mark_unchanged();
        // Before all runs are known, a sandbox that one of them has would look free.
        if context.ledger.is_listed() {
            look(&context, &mut memory).await;
        }
        tokio::time::sleep(PAUSE).await;
        tokio::select! {
            changed = policies.changed() => if changed.is_err() { return },
            changed = pools.changed() => if changed.is_err() { return },
            () = context.sandboxes.news.notified() => {}
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

/// A pool, and what is to be in it.
struct Pool {
    object: SandboxPool,
    tenant: String,
    uid: String,
    max_age_seconds: i64,
    /// What its sandboxes have, or why it has none.
    shape: Result<Shape, (PoolReason, String)>,
    /// Where they are.
    wanted: Option<Wanted>,
}

async fn look(context: &Arc<Context>, memory: &mut HashMap<String, Memory>) {
    let pools = pools(context);
    let offered = pools.iter().filter_map(|pool| Some(pool.waiting(pool.shape.as_ref().ok()?.clone())));
    context.sandboxes.pools_are(offered);
    let (pods, unlisted) = pods(context);
    let present: HashSet<String> = pods.iter().map(|pod| pod.name_any()).collect();
    context.sandboxes.forget_all_but(&present, &unlisted);
    context.sessions.close_sandboxes(|name| !context.sandboxes.knows(name));
    let holders = holders(context);
    let own: HashMap<&str, &Pool> = pools.iter().map(|pool| (pool.uid.as_str(), pool)).collect();
    for pod in &pods {
        match pod.labels().get(POOL_UID).and_then(|uid| own.get(uid.as_str())) {
            Some(pool) => meet(pod, pool, &holders, context),
            None => remove_stray(pod, &holders, context).await,
        }
    }
    memory.retain(|uid, _| own.contains_key(uid.as_str()));
    for pool in pools.iter().filter(|pool| !unlisted.contains(&sandbox_namespace(&pool.tenant))) {
        let of_it: Vec<&Arc<Pod>> = pods.iter().filter(|pod| pod.labels().get(POOL_UID) == Some(&pool.uid)).collect();
        keep(pool, &of_it, memory.entry(pool.uid.clone()).or_default(), context).await;
    }
}

fn pools(context: &Context) -> Vec<Pool> {
    let readable = context.caches.pools.state();
    let objects = readable.iter().filter_map(|pool| pool.0.as_ref().ok()).filter(|pool| pool.metadata.deletion_timestamp.is_none());
    objects
        .map(|object| {
            let tenant = object.namespace().unwrap_or_default();
            let (shape, wanted) = match shape(&tenant, object, context) {
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
fn pods(context: &Context) -> (Vec<Arc<Pod>>, HashSet<String>) {
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

/// Where the sandboxes of a pool are to be; `Some`: why they cannot be there.
async fn prepare(wanted: &Wanted, context: &Context) -> Result<Option<String>, Error> {
    let name = sandbox_namespace(&wanted.tenant);
    Ok(match sandbox_namespace::look(wanted, context) {
        NamespaceSeen::Ready => None,
        NamespaceSeen::Incomplete if sandbox_namespace::prepare(wanted, context).await? => None,
        NamespaceSeen::Incomplete => Some(format!("the namespace {name} is being set up")),
        NamespaceSeen::Terminating => Some(format!("the namespace {name} of an earlier tenant is being removed")),
        NamespaceSeen::Foreign => Some(format!("the namespace {name} exists and is not the sandbox namespace of this namespace")),
    })
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
fn holders(context: &Context) -> HashMap<String, Holder> {
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
        is_over: false,
    };
    Some((pod.name.clone(), holder))
}

impl Pool {
    fn waiting(&self, shape: Shape) -> Waiting {
        let spec = &self.object.spec;
        Waiting {
            tenant: self.tenant.clone(),
            policy: spec.policy_ref.clone(),
            runtime: spec.runtime.clone(),
            pool_uid: self.uid.clone(),
            shape,
        }
    }

    fn owner<'a>(&'a self, name: &'a str) -> Owner<'a> {
        let max_age_seconds = u32::try_from(self.max_age_seconds).unwrap_or(u32::MAX);
        Owner { tenant: &self.tenant, pool: name, pool_uid: &self.uid, max_age_seconds }
    }

    fn template(&self, shape: &Shape, context: &Context) -> String {
        template(self.owner(&self.object.name_any()), shape, &context.settings)
    }
}

/// A sandbox that this process does not know yet: one of an earlier leader. Whether it waits, it has to say itself.
fn meet(pod: &Arc<Pod>, pool: &Pool, holders: &HashMap<String, Holder>, context: &Arc<Context>) {
    let name = pod.name_any();
    if context.sandboxes.knows(&name) {
        return;
    }
    // Of another shape than the pool has now it is of no use: it is replaced.
    let shape = pool.shape.as_ref().ok().filter(|shape| pod.annotations().get(TEMPLATE) == Some(&pool.template(shape, context)));
    if let Some(holder) = holders.get(&name) {
        let any = Shape { image: String::new(), memory_bytes: 0, cpu_milli: 0, scratch_bytes: 0, timeout_seconds: 0, grace_seconds: 0 };
        context.sandboxes.add_held(&name, pool.waiting(shape.cloned().unwrap_or(any)), holder.clone());
        context.wake_run(&holder.tenant, holder.run.name.as_str());
    } else if let Some(shape) = shape {
        welcome(pod, pool, shape, PodAge::Unknown, context);
    }
}

/// Begins to listen, and to offer it as soon as it answers.
fn welcome(pod: &Pod, pool: &Pool, shape: &Shape, age: PodAge, context: &Arc<Context>) {
    let name = pod.name_any();
    context.sandboxes.add(&name, pool.waiting(shape.clone()));
    let sandboxes = context.sandboxes.clone();
    let listening = Listening {
        client: context.client.clone(),
        namespace: sandbox_namespace(&pool.tenant),
        pod: name.clone(),
        pod_uid: pod.uid().unwrap_or_default(),
        key: context.results.sealing_key.of_sandbox(&name),
        boot: None,
        age,
        wake: Arc::new(move || sandboxes.news.notify_one()),
    };
    context.sessions.listen_to_sandbox(&name, listening);
    context.metrics.sessions(context.sessions.len());
}

/// Of a pool that is gone. What a run has goes with the run.
async fn remove_stray(pod: &Pod, holders: &HashMap<String, Holder>, context: &Context) {
    let name = pod.name_any();
    if pod.metadata.deletion_timestamp.is_none() && !holders.contains_key(&name) && context.sandboxes.withdraw(&name) {
        told(remove(pod, context).await);
    }
}

async fn keep(pool: &Pool, pods: &[&Arc<Pod>], memory: &mut Memory, context: &Arc<Context>) {
    let now = context.now();
    let mut seen = see(pool, pods, memory, context, now);
    if let Some(wanted) = &pool.wanted {
        seen.refused = match prepare(wanted, context).await {
            Ok(why) => why.map(|why| (PoolReason::NoSandboxNamespace, why)),
            Err(error) => return told(Err(error)),
        };
    }
    let planned = plan(&seen);
    let mut gone = 0;
    for name in &planned.remove {
        let Some(pod) = pods.iter().find(|pod| pod.name_any() == *name) else { continue };
        // A run may have been given it meanwhile.
        if context.sandboxes.withdraw(name) {
            context.sessions.close_sandbox(name);
            gone += 1;
            told(remove(pod, context).await);
        }
    }
    context.sandboxes.gave_way(&pool.tenant, gone);
    if let Ok(shape) = &pool.shape {
        for _ in 0..planned.create {
            match create(pool, shape, context).await {
                Ok(None) => {}
                Ok(Some(why)) => {
                    memory.fail(why);
                    break;
                }
                Err(error) => {
                    told(Err(error));
                    break;
                }
            }
        }
    }
    told(tell(pool, &planned, memory, context, now).await);
}

/// Trouble with one pool does not keep the others from being looked after.
fn told(result: Result<(), Error>) {
    if let Err(error) = result {
        tracing::warn!(error = error.chain(), "a pool is looked after again");
    }
}

impl Memory {
    fn fail(&mut self, why: String) {
        self.failures = (self.failures + 1).min(8);
        let pause = (HOLD_BACK * 2_u32.pow(self.failures - 1)).min(LONGEST_HOLD_BACK);
        self.held_back = Some((Instant::now() + pause, why));
    }
}

fn see(pool: &Pool, pods: &[&Arc<Pod>], memory: &mut Memory, context: &Context, now: Timestamp) -> PoolSeen {
    let wanted = pool.shape.as_ref().ok().map(|shape| pool.template(shape, context));
    let mut sandboxes = Vec::new();
    for pod in pods {
        let name = pod.name_any();
        let state = state(pod, context);
        match &state {
            State::Free => memory.failures = 0,
            State::Spent(Some(why)) if memory.counted.insert(name.clone()) => memory.fail(why.clone()),
            _ => {}
        }
        sandboxes.push(SandboxSeen {
            name,
            age_seconds: pod.metadata.creation_timestamp.as_ref().map_or(0, |created| now.as_second() - created.0.as_second()),
            state,
            is_outdated: pod.annotations().get(TEMPLATE) != wanted.as_ref(),
        });
    }
    memory.counted.retain(|name| sandboxes.iter().any(|sandbox| sandbox.name == *name));
    let short = context.sandboxes.short(&pool.tenant);
    PoolSeen {
        replicas: usize::try_from(pool.object.spec.replicas).unwrap_or(0),
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
    if let PodLife::Ended(ended) = PodFacts::of(pod).life {
        let heard = match context.sessions.heard(&name) {
            Heard::Useless(why) => Some(why),
            _ => ended.container_reason.or(ended.pod_reason),
        };
        return State::Spent(heard.or_else(|| Some("the pod has ended".into())));
    }
    match context.sessions.heard(&name) {
        Heard::Waits if context.sandboxes.waits(&name) => State::Free,
        Heard::Waits | Heard::Unheard => State::Spent(None),
        Heard::Useless(why) => State::Spent(Some(why)),
        Heard::Silent(since) => State::Starting { heard_for: i64::try_from(since.as_secs()).unwrap_or(i64::MAX) },
    }
}

/// `Some`: why none could be made.
async fn create(pool: &Pool, shape: &Shape, context: &Arc<Context>) -> Result<Option<String>, Error> {
    let name = waiting_name(Uuid::new_v4().as_u64_pair().0);
    let key = context.results.sealing_key.of_sandbox(&name).public();
    let pool_name = pool.object.name_any();
    let rendered = render_waiting(pool.owner(&pool_name), shape, (&name, &key), &context.settings);
    let namespace = sandbox_namespace(&pool.tenant);
    context.pods.watch(&namespace);
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &namespace);
    let pod = match within("a sandbox of a pool", api.create(&PostParams::default(), &rendered)).await? {
        Ok(pod) => pod,
        Err(error) => {
            let Some(answer) = response(&error).filter(|answer| matches!(answer.code, 400 | 403 | 422)) else {
                return Err(Error::write("a sandbox of a pool")(error));
            };
            let is_full = answer.message.contains("exceeded quota");
            tracing::debug!(answer = answer.message, "a sandbox of a pool was not created");
            return Ok(Some(if is_full { "a quota has no room for it".into() } else { "the cluster refuses the pod".into() }));
        }
    };
    if let Some(what) = difference(&rendered, &pod) {
        tracing::warn!(difference = what, pod = name, "the stored sandbox of a pool is not the rendered one");
        remove(&pod, context).await?;
        return Ok(Some(format!("the stored pod differs from the rendered one: {what}")));
    }
    context.pods.created(&namespace, &name, &pod);
    welcome(&pod, pool, shape, PodAge::New, context);
    Ok(None)
}

async fn remove(pod: &Pod, context: &Context) -> Result<(), Error> {
    if pod.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    let tenant = pod.labels().get(RUN_NAMESPACE).map_or("", String::as_str);
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &sandbox_namespace(tenant));
    let preconditions = Preconditions { uid: pod.uid(), resource_version: None };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    match within("a sandbox of a pool", api.delete(&pod.name_any(), &params)).await? {
        Err(error) if !matches!(code(&error), Some(404 | 409)) => Err(Error::write("a sandbox of a pool")(error)),
        _ => Ok(()),
    }
}

async fn tell(pool: &Pool, plan: &Plan, memory: &mut Memory, context: &Context, now: Timestamp) -> Result<(), Error> {
    let Some(status) = status(pool, plan, now) else { return Ok(()) };
    if memory.told.is_some_and(|told| told.elapsed() < TELL_EVERY) {
        return Ok(());
    }
    memory.told = Some(Instant::now());
    let api: Api<SandboxPool> = Api::namespaced(context.client.clone(), &pool.tenant);
    let patch = json!({ "metadata": { "uid": pool.uid }, "status": status });
    match within("the status of a pool", api.patch_status(&pool.object.name_any(), &PatchParams::default(), &Patch::Merge(&patch))).await? {
        Err(error) if !matches!(code(&error), Some(404 | 409)) => Err(Error::write("the status of a pool")(error)),
        _ => Ok(()),
    }
}

/// `None`: nothing is to be told that is not stored.
fn status(pool: &Pool, plan: &Plan, now: Timestamp) -> Option<SandboxPoolStatus> {
    let stored = pool.object.status.clone().unwrap_or_default();
    let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    let is_ready = if plan.is_ready { ConditionStatus::True } else { ConditionStatus::False };
    let before = stored.conditions.iter().find(|condition| condition.type_ == PoolConditionType::Ready);
    let second = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let since = before.filter(|before| before.status == is_ready).map_or(Time(second), |before| before.last_transition_time.clone());
    let condition = PoolCondition {
        type_: PoolConditionType::Ready,
        status: is_ready,
        reason: plan.reason.clone(),
        message: cut(&plan.message, 1024).to_owned(),
        observed_generation: pool.object.metadata.generation,
        last_transition_time: since,
    };
    let status = SandboxPoolStatus {
        observed_generation: pool.object.metadata.generation,
        conditions: vec![condition],
        replicas: number(plan.free + plan.starting),
        free: number(plan.free),
        starting: number(plan.starting),
        claimed: number(plan.claimed),
        image: pool.shape.as_ref().ok().map(|shape| shape.image.clone()),
    };
    (status != stored).then_some(status)
}
