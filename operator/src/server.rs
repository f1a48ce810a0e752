//! Putting the parts together: health, lease, caches, controllers, and the way out.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures::channel::mpsc;
use futures::stream::FuturesUnordered;
use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource, ResourceExt as _};
use paddock_crds::{ClusterSandboxPolicy, Diagnosis, SandboxPolicy, SandboxPool, ScriptApproval};
use prometheus_client::registry::Registry;
use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::audit::sequencer::Sequencer;
use crate::audit::{self, Audit};
use crate::bucket::Bucket;
use crate::client::connect;
use crate::config::Config;
use crate::context::{Caches, Context, Parts, Results};
use crate::egress::{self, Egress};
use crate::error::within;
use crate::health::{self, Readiness};
use crate::lease::{self, Fence};
use crate::metrics::Metrics;
use crate::names::CLUSTER_POLICIES;
use crate::policies::Writers;
use crate::readable::Readable;
use crate::store::ResultStore;
use crate::traces::Traces;
use crate::webhook::{self, Source};
use crate::{diagnosis, policies, pool, script_run, sealing, tenancy};

/// How long passes that are under way may take to end after TERM. It is shorter than the pod's grace period.
const GRACE: Duration = Duration::from_secs(15);
/// How long caches may take to fill.
const SYNC_LIMIT: Duration = Duration::from_secs(60);
/// Pause before the API server is asked again.
const RETRY_EVERY: Duration = Duration::from_secs(2);
/// Oldest minor version of Kubernetes 1 that has what Paddock needs: MutatingAdmissionPolicy, which stamps the requester.
const OLDEST_MINOR: u32 = 36;
/// The same where the webhook stamps: schemas are applied to what changes alone.
const OLDEST_MINOR_WITH_WEBHOOK: u32 = 33;

/// Runs until TERM, or until the lease is lost.
pub(crate) async fn run(config: Config) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot take signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot take signals")?;
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry, config.metrics_namespaces);
    let readiness = Readiness::default();
    let mut health = tokio::spawn(health::serve(config.listen, readiness.clone(), metrics.clone(), Arc::new(registry)));

    let fence = Fence::new();
    let client = connect(fence.clone(), metrics.clone()).await?;
    let mut webhook = tokio::spawn(serve_webhook(config.clone(), client.clone()));
    let oldest = if config.webhook_listen.is_some() { OLDEST_MINOR_WITH_WEBHOOK } else { OLDEST_MINOR };
    let minor = tokio::select! {
        minor = server_minor(&client, oldest) => minor?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let Places { store, traces, bucket } = open_places(&config, &metrics)?;
    let image_volume = config.settings(minor).runner_by_image_volume;
    tracing::info!(server = minor, image_volume, runtime_class = config.runtime_class, "starting");
    readiness.set(true);

    let acquire = lease::acquire(client.clone(), &config.namespace, &config.lease, &config.identity, fence.clone());
    let mut leadership = tokio::select! {
        leadership = acquire => leadership,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    metrics.leads(true);
    let gauge = metrics.clone();
    let leads = |is_so| gauge.leads(is_so);
    let sealing_key = tokio::select! {
        key = sealing::key(&client, &config.namespace) => key?,
        error = leadership.keep(leads) => return Err(error),
    };
    let results = Results { sealing_key, store };

    let (wake, woken) = mpsc::unbounded();
    let (changed, changes) = watch::channel(());
    let (pool_changed, pool_changes) = watch::channel(());
    let caches = watch_what_decides(&client, &changed, &pool_changed);
    let reporter = Reporter { controller: "paddock.dev/operator".into(), instance: Some(config.identity.clone()) };
    let recorder = Recorder::new(client.clone(), reporter);
    tokio::select! {
        filled = are_filled(&caches) => filled?,
        error = leadership.keep(leads) => return Err(error),
        _ = terminate.recv() => { leadership.release().await; return Ok(()) }
    }
    let (audit, log) = tokio::select! {
        opened = open_log(&client, &config, &caches, bucket) => opened,
        error = leadership.keep(leads) => return Err(error),
        _ = terminate.recv() => { leadership.release().await; return Ok(()) }
    };
    let context = Arc::new(Context::new(Parts {
        client,
        egress: Egress::new(config.egress()),
        fence,
        settings: config.settings(minor),
        results,
        metrics,
        recorder,
        caches,
        traces,
        audit,
        wake,
    }));
    let counted = context.clone();
    context.metrics.count_by(move || counted.census(counted.now()));
    tenancy::watch_all(&context);

    tokio::select! {
        () = egress::prepare(&context) => {}
        error = leadership.keep(leads) => return Err(error),
        _ = terminate.recv() => { leadership.release().await; return Ok(()) }
    }
    let (stop, stopped) = watch::channel(false);
    let mut controllers = tokio::spawn(script_run::run(context.clone(), config.concurrency, woken, until(stopped)));
    let mut beside = begin_beside(&context, config, changes, pool_changes);
    beside.push(tokio::spawn(keep_log(context.clone(), log)));

    let ended = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        error = leadership.keep(leads) => Err(error),
        served = &mut webhook => Err(why_it_ended("the webhook", served)),
        _ = &mut controllers => Err(anyhow::anyhow!("the controllers ended")),
        error = until_one_panics(&mut beside) => Err(error),
        served = &mut health => Err(why_it_ended("the health server", served)),
    };
    readiness.set(false);
    // Who writes the log is heard to the end.
    let keeps_log = beside.pop();
    beside.iter().for_each(JoinHandle::abort);
    if ended.is_ok() {
        tracing::info!("stopping");
        let _ = stop.send(true);
        tokio::select! {
            () = wind_down(&context, &mut controllers) => {}
            error = leadership.keep(leads) => return Err(error),
        }
        keeps_log.iter().for_each(JoinHandle::abort);
        leadership.release().await;
    }
    health.abort();
    ended
}

/// Lets what is under way end, and the audit log be written, while the lease is still kept.
async fn wind_down(context: &Context, controllers: &mut JoinHandle<()>) {
    if tokio::time::timeout(GRACE, controllers).await.is_err() {
        tracing::warn!("passes were still under way");
    }
    context.audit.flush().await;
}

/// What goes on beside the runs.
fn begin_beside(
    context: &Arc<Context>,
    config: Config,
    changes: watch::Receiver<()>,
    pool_changes: watch::Receiver<()>,
) -> Vec<JoinHandle<()>> {
    vec![
        tokio::spawn(tenancy::run(context.clone())),
        tokio::spawn(policies::run(context.clone(), changes.clone())),
        tokio::spawn(pool::run(context.clone(), changes.clone(), pool_changes)),
        tokio::spawn(egress::run(context.clone(), changes.clone())),
        tokio::spawn(wake_on_change(context.clone(), changes)),
        tokio::spawn(keep_certificate(config, context.client.clone())),
    ]
}

/// Without one of them this process would look sound and leave work undone; another replica takes over.
async fn until_one_panics(tasks: &mut [JoinHandle<()>]) -> anyhow::Error {
    let mut left: FuturesUnordered<_> = tasks.iter_mut().collect();
    while let Some(ended) = left.next().await {
        if let Err(error) = ended {
            return anyhow::anyhow!("what goes on beside the runs has ended: {error}");
        }
    }
    std::future::pending().await
}

async fn until(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stop| *stop).await;
}

fn watch_what_decides(client: &Client, changed: &watch::Sender<()>, pool_changed: &watch::Sender<()>) -> Caches {
    let writers = Writers::default();
    Caches {
        namespaces: cache::<Namespace>(client, changed, of_a_namespace),
        policies: cache::<Readable<SandboxPolicy>>(client, changed, of_a_policy(&writers)),
        cluster_policies: cache::<Readable<ClusterSandboxPolicy>>(client, changed, of_a_policy(&writers)),
        writers,
        approvals: cache::<Readable<ScriptApproval>>(client, changed, of_a_spec),
        pools: cache::<Readable<SandboxPool>>(client, pool_changed, of_a_spec),
        diagnoses: cache::<Readable<Diagnosis>>(client, changed, diagnosis::what_matters),
    }
}

async fn are_filled(caches: &Caches) -> Result<()> {
    let all = async {
        caches.namespaces.wait_until_ready().await?;
        caches.policies.wait_until_ready().await?;
        caches.cluster_policies.wait_until_ready().await?;
        caches.approvals.wait_until_ready().await?;
        caches.pools.wait_until_ready().await?;
        caches.diagnoses.wait_until_ready().await
    };
    let filled = tokio::time::timeout(SYNC_LIMIT, all).await;
    filled.context("the caches did not fill: are the CRDs installed?")?.context("a watch ended")
}

/// Reads or makes the key of the log, if there is to be one.
async fn open_log(client: &Client, config: &Config, caches: &Caches, bucket: Option<Bucket>) -> (Audit, Option<Sequencer>) {
    let Some(bucket) = bucket else { return (Audit::Off, None) };
    let own = caches.namespaces.get(&ObjectRef::new(&config.namespace)).and_then(|namespace| namespace.uid()).unwrap_or_default();
    match audit::key::keys(client, &config.namespace, &format!("paddock.dev/audit/{own}")).await {
        Ok(keys) => {
            let (audit, sequencer) = audit::open(keys, bucket, Timestamp::now());
            (audit, Some(sequencer))
        }
        Err(error) => {
            // Runs that are under way have results to come.
            tracing::error!(error = format!("{error:#}"), "the audit log cannot be written, and no run is admitted");
            (Audit::Unusable, None)
        }
    }
}

/// Writes the log, if there is one.
async fn keep_log(context: Arc<Context>, log: Option<Sequencer>) {
    match log {
        Some(sequencer) => sequencer.keep(context).await,
        None => std::future::pending().await,
    }
}

/// What lies outside of the cluster and is written to.
struct Places {
    store: Option<ResultStore>,
    traces: Option<Traces>,
    bucket: Option<Bucket>,
}

/// Nothing is asked yet: what cannot be right is said at the start.
fn open_places(config: &Config, metrics: &Metrics) -> Result<Places> {
    let store = config.result_store.as_deref().map(|url| ResultStore::open(url, &Config::store_access())).transpose()?;
    let traces = config.traces_endpoint.as_ref();
    let traces = traces.map(|endpoint| Traces::open(endpoint, Config::authorities().as_deref(), metrics.clone())).transpose()?;
    let bucket = config.audit_log.as_deref().map(|url| Bucket::open("the audit log", url, &Config::audit_access())).transpose()?;
    ensure!(
        !bucket.as_ref().is_some_and(Bucket::is_a_folder),
        "the audit log cannot be kept in a folder: --audit-log must begin with s3://"
    );
    Ok(Places { store, traces, bucket })
}

/// A server that ends takes the process along.
fn why_it_ended(what: &str, served: Result<Result<()>, tokio::task::JoinError>) -> anyhow::Error {
    served.map_or_else(anyhow::Error::from, |served| served.err().unwrap_or_else(|| anyhow::anyhow!("{what} ended")))
}

/// Keeps the webhook's certificate, where there is a webhook and nobody else does.
async fn keep_certificate(config: Config, client: Client) {
    if let (Some(_), Source::Own(lifetime)) = (config.webhook_listen, config.webhook_certificate()) {
        webhook::keep(client, config.namespace, lifetime).await;
    }
}

/// Serves the webhook, or waits for ever where there is none.
async fn serve_webhook(config: Config, client: Client) -> Result<()> {
    match config.webhook_listen {
        Some(address) => webhook::serve(address, client, config.namespace.clone(), config.webhook_certificate()).await,
        None => std::future::pending().await,
    }
}

/// Waits for an API server that answers: a process that ended instead would be held back longer and longer by the kubelet.
async fn server_minor(client: &Client, oldest: u32) -> Result<u32> {
    let version = loop {
        match within("the version of the API server", client.apiserver_version()).await {
            Ok(Ok(version)) => break version,
            Ok(Err(error)) => tracing::warn!(error = %error, "the API server does not answer"),
            Err(error) => tracing::warn!(error = %error, "the API server does not answer"),
        }
        tokio::time::sleep(RETRY_EVERY).await;
    };
    let digits: String = version.minor.chars().take_while(char::is_ascii_digit).collect();
    let minor: u32 = digits.parse().with_context(|| format!("the version of the API server cannot be read: {}", version.minor))?;
    if version.major == "1" && minor < oldest {
        bail!("Kubernetes 1.{minor} is too old: Paddock needs 1.{oldest} or later");
    }
    Ok(minor)
}

/// What decisions look at of an object with a spec: everything else may change as often as anybody likes.
fn of_a_spec<K: Resource>(object: &K) -> u64 {
    let metadata = object.meta();
    hash_of(&(metadata.generation, metadata.deletion_timestamp.is_some()))
}

/// The same of a policy, and who wrote it.
fn of_a_policy<K: Resource>(writers: &Writers) -> impl Fn(&K) -> u64 + Send + 'static {
    let writers = writers.clone();
    move |policy: &K| {
        writers.saw(policy.meta());
        hash_of(&(of_a_spec(policy), policies::stamps(policy.annotations())))
    }
}

/// What decisions look at of a namespace.
fn of_a_namespace(namespace: &Namespace) -> u64 {
    let metadata = &namespace.metadata;
    let remembered = namespace.annotations().get(CLUSTER_POLICIES);
    hash_of(&(&metadata.uid, &metadata.labels, remembered, metadata.deletion_timestamp.is_some()))
}

pub(crate) fn hash_of(parts: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    hasher.finish()
}

/// A cache that says when something in it changed that `matters`.
fn cache<K>(client: &Client, changed: &watch::Sender<()>, matters: impl Fn(&K) -> u64 + Send + 'static) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (reader, writer) = reflector::store();
    let stream = watcher(Api::<K>::all(client.clone()), watcher::Config::default()).default_backoff().reflect(writer);
    let changed = changed.clone();
    let mut known: HashMap<String, u64> = HashMap::new();
    tokio::spawn(async move {
        let mut stream = std::pin::pin!(stream);
        loop {
            match stream.try_next().await {
                Ok(Some(Event::Apply(object))) => {
                    let now = matters(&object);
                    if known.insert(object.uid().unwrap_or_default(), now) != Some(now) {
                        changed.send_replace(());
                    }
                }
                Ok(Some(Event::Delete(object))) => {
                    known.remove(&object.uid().unwrap_or_default());
                    changed.send_replace(());
                }
                Ok(Some(Event::InitApply(object))) => _ = matters(&object),
                Ok(Some(Event::Init)) => {}
                Ok(Some(Event::InitDone)) => {
                    known.clear();
                    changed.send_replace(());
                }
                Ok(None) => return,
                Err(error) => tracing::debug!(error = %error, "a watch is tried again"),
            }
        }
    });
    reader
}

/// A policy or a namespace that changes reaches every run that has not started.
async fn wake_on_change(context: Arc<Context>, mut changes: watch::Receiver<()>) {
    while changes.changed().await.is_ok() {
        context.wake_concerned();
    }
}

#[cfg(test)]
mod tests {
    use paddock_crds::{SandboxPolicy, SandboxPolicySpec};

    use super::*;

    #[test]
    fn only_what_decisions_look_at_counts_as_a_change() {
        let mut policy = SandboxPolicy::new("p", SandboxPolicySpec::default());
        policy.metadata.generation = Some(1);
        let before = of_a_spec(&policy);
        policy.metadata.labels = Some([("a".to_owned(), "b".to_owned())].into());
        policy.metadata.resource_version = Some("9".into());
        assert_eq!(of_a_spec(&policy), before);
        policy.metadata.generation = Some(2);
        assert_ne!(of_a_spec(&policy), before);

        let mut namespace = Namespace::default();
        let before = of_a_namespace(&namespace);
        namespace.metadata.annotations = Some([("a".to_owned(), "b".to_owned())].into());
        assert_eq!(of_a_namespace(&namespace), before);
        namespace.metadata.annotations = Some([(CLUSTER_POLICIES.to_owned(), "b".to_owned())].into());
        assert_ne!(of_a_namespace(&namespace), before);
        namespace.metadata.annotations = None;
        namespace.metadata.labels = Some([("a".to_owned(), "b".to_owned())].into());
        assert_ne!(of_a_namespace(&namespace), before);
    }
}
