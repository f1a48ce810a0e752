//! Making and removing the sandboxes of pools. It decides nothing.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, ResourceExt as _};
use paddock_crds::PoolReason;
use tokio::sync::watch;
use uuid::Uuid;

use super::plan::plan;
use super::render::render_waiting;
use super::see::{Memory, Pool, age_seconds, holders, pods, pools, sandboxes, see, was_started_again};
use super::shape::Shape;
use super::tell::tell;
use super::waiting::Holder;
use crate::context::Context;
use crate::error::{Error, code, response, within};
use crate::names::{POOL_UID, RUN_NAMESPACE, sandbox_namespace, waiting_name};
use crate::sandbox_namespace::{self, Wanted};
use crate::script_run::pod::difference;
use crate::script_run::session::{Listening, PodAge};
use crate::script_run::step::SandboxSeen as NamespaceSeen;

/// Whatever happens, pools are looked at this often: sandboxes grow old without telling.
const EVERY: Duration = Duration::from_secs(2);
/// From when there is something to do until it is done. A run that has just been given a sandbox has the node's CPU for itself for so long before the pool is refilled.
const PAUSE: Duration = Duration::from_millis(250);

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
        tokio::select! {
            changed = policies.changed() => if changed.is_err() { return },
            changed = pools.changed() => if changed.is_err() { return },
            () = context.sandboxes.news.notified() => {}
            () = tokio::time::sleep(EVERY) => {}
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn look(context: &Arc<Context>, memory: &mut HashMap<String, Memory>) {
    let pools = pools(context);
    let offered = pools.iter().filter_map(|pool| Some(pool.waiting(pool.shape.as_ref().ok()?.clone(), 0)));
    context.sandboxes.pools_are(offered);
    let (pods, unlisted) = pods(context);
    let present: HashSet<String> = pods.iter().map(|pod| pod.name_any()).collect();
    context.sandboxes.forget_all_but(&present, &unlisted);
    context.sessions.close_sandboxes_but(&context.sandboxes.names());
    // Of all runs nothing is asked where there is no sandbox of any pool.
    let holders = if pods.is_empty() { HashMap::new() } else { holders(context) };
    let own: HashMap<&str, &Pool> = pools.iter().map(|pool| (pool.uid.as_str(), pool)).collect();
    for pod in &pods {
        match pod.labels().get(POOL_UID).and_then(|uid| own.get(uid.as_str())) {
            Some(pool) => meet(pod, pool, &holders, context),
            None => remove_stray(pod, &holders, context).await,
        }
    }
    memory.retain(|uid, _| own.contains_key(uid.as_str()));
    for pool in &pools {
        if unlisted.contains(&sandbox_namespace(&pool.tenant)) {
            // It may be for lack of the RoleBinding that pods cannot be listed there, where an earlier pass has failed in the middle.
            if let Some(wanted) = &pool.wanted {
                told(prepare(wanted, context).await.map(drop));
            }
            continue;
        }
        let of_it: Vec<&Arc<Pod>> = pods.iter().filter(|pod| pod.labels().get(POOL_UID) == Some(&pool.uid)).collect();
        keep(pool, &of_it, memory.entry(pool.uid.clone()).or_default(), context).await;
    }
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

/// A sandbox that this process does not know yet: one of an earlier leader. Whether it waits, it has to say itself.
fn meet(pod: &Arc<Pod>, pool: &Pool, holders: &HashMap<String, Holder>, context: &Arc<Context>) {
    let name = pod.name_any();
    if let Some(holder) = holders.get(&name).filter(|_| context.sandboxes.holder(&name).is_none()) {
        let any = Shape {
            image: String::new(),
            pre_start: None,
            memory_bytes: 0,
            cpu_milli: 0,
            scratch_bytes: 0,
            timeout_seconds: 0,
            grace_seconds: 0,
        };
        context.sandboxes.add_held(&name, pool.waiting(any, 0), holder.clone());
        // It may have been taken for one that waits.
        context.sessions.close_sandbox(&name);
        context.wake_run(&holder.tenant, holder.run.name.as_str());
        return;
    }
    if context.sandboxes.knows(&name) || pod.metadata.deletion_timestamp.is_some() || was_started_again(pod) {
        return;
    }
    let Ok(shape) = &pool.shape else { return };
    // What is of another shape than the pool has now, or was changed by something when it was stored, is of no use: it is replaced.
    let pool_name = pool.object.name_any();
    let key = context.results.sealing_key.of_sandbox(&name).public();
    let rendered = render_waiting(pool.owner(&pool_name), shape, (&name, &key), &context.settings);
    if difference(&rendered, pod).is_none() {
        welcome(pod, pool, shape, PodAge::Unknown, context);
    }
}

/// Begins to listen, and to offer it as soon as it answers.
fn welcome(pod: &Pod, pool: &Pool, shape: &Shape, age: PodAge, context: &Arc<Context>) {
    let name = pod.name_any();
    context.sandboxes.add(&name, pool.waiting(shape.clone(), age_seconds(pod, context.now())));
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
    let sandboxes = sandboxes(pool, pods, context, now);
    memory.note(&sandboxes, Instant::now());
    let arrivals = context.sandboxes.arrivals(&pool.uid);
    let mut seen = see(pool, sandboxes, &arrivals, memory, context);
    if let Some(wanted) = &pool.wanted {
        seen.refused = match prepare(wanted, context).await {
            Ok(why) => why.map(|why| (PoolReason::NoSandboxNamespace, why)),
            Err(error) => return told(Err(error)),
        };
    }
    let planned = plan(&seen);
    let mut gave_way = 0;
    for name in &planned.remove {
        let Some(pod) = pods.iter().find(|pod| pod.name_any() == *name) else { continue };
        // A run may have been given it meanwhile.
        if context.sandboxes.withdraw(name) {
            context.sessions.close_sandbox(name);
            let removed = remove(pod, context).await;
            gave_way += usize::from(removed.is_ok() && planned.gives_way.contains(name));
            told(removed);
        }
    }
    context.sandboxes.gave_way(&pool.tenant, gave_way);
    if let Ok(shape) = &pool.shape {
        for _ in 0..planned.create {
            match create(pool, shape, context).await {
                Ok(Created::Yes(name)) => memory.made(name, Instant::now()),
                Ok(Created::NoRoom) => {
                    context.sandboxes.is_short(&pool.tenant);
                    break;
                }
                Ok(Created::No(why)) => {
                    memory.fail(why, Instant::now());
                    break;
                }
                Err(error) => {
                    told(Err(error));
                    break;
                }
            }
        }
    }
    told(tell(pool, seen.replicas, &planned, memory, context, now).await);
}

/// Trouble with one pool does not keep the others from being looked after.
fn told(result: Result<(), Error>) {
    if let Err(error) = result {
        tracing::warn!(error = error.chain(), "a pool is looked after again");
    }
}

/// What became of a sandbox that was to begin.
enum Created {
    /// Its name.
    Yes(String),
    /// A quota has no room for it.
    NoRoom,
    /// The cluster does not take it, or not as it is.
    No(String),
}

async fn create(pool: &Pool, shape: &Shape, context: &Arc<Context>) -> Result<Created, Error> {
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
            tracing::debug!(answer = answer.message, "a sandbox of a pool was not created");
            let is_full = answer.message.contains("exceeded quota");
            return Ok(if is_full { Created::NoRoom } else { Created::No("the cluster refuses the pod".into()) });
        }
    };
    if let Some(what) = difference(&rendered, &pod) {
        tracing::warn!(difference = what, pod = name, "the stored sandbox of a pool is not the rendered one");
        remove(&pod, context).await?;
        return Ok(Created::No(format!("the stored pod differs from the rendered one: {what}")));
    }
    context.pods.created(&namespace, &name, &pod);
    welcome(&pod, pool, shape, PodAge::New, context);
    Ok(Created::Yes(name))
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
