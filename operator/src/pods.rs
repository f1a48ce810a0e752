//! Pods of the sandbox namespaces, watched one namespace at a time: the operator has no right to see any other pod.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::channel::mpsc;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use tokio::task::JoinHandle;

use crate::names::{MANAGED_BY, MANAGER, POOL_UID, RUN_NAME, RUN_NAMESPACE, RUN_POLICY, RUN_UID};
use crate::pool::waiting::Sandboxes;
use crate::script_run::RunRef;
use crate::script_run::ledger::{LivingPod, policy_text};

/// A pod that this process created is asked for directly if the watch has not shown it after this long.
const WATCH_LAG: Duration = Duration::from_secs(2);

/// A watch that has broken may be tried again so late. What was made meanwhile must not be made once more.
const LONGEST_LAG: Duration = Duration::from_secs(60);

/// What the watches have shown.
pub(crate) struct PodCache {
    client: Client,
    wake: mpsc::UnboundedSender<RunRef>,
    sandboxes: Arc<Sandboxes>,
    watches: Mutex<HashMap<String, Watch>>,
}

struct Watch {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    /// By [`key_of`].
    pods: HashMap<String, Arc<Pod>>,
    /// Created by this process and not yet shown by the watch.
    created: HashMap<String, (Arc<Pod>, Instant)>,
    listing: HashMap<String, Arc<Pod>>,
    synced: bool,
}

/// What the cache says about the pod of a run.
#[derive(Clone, Debug)]
pub(crate) enum Cached {
    /// The watch is not there yet, or lags behind: ask the API server.
    Ask,
    /// There is none.
    Absent,
    /// There is one.
    Present(Arc<Pod>),
}

impl PodCache {
    pub(crate) fn new(client: Client, wake: mpsc::UnboundedSender<RunRef>, sandboxes: Arc<Sandboxes>) -> Self {
        Self { client, wake, sandboxes, watches: Mutex::default() }
    }

    /// Watches a sandbox namespace, if that is not done already.
    pub(crate) fn watch(&self, namespace: &str) {
        let mut watches = lock(&self.watches);
        if watches.get(namespace).is_some_and(|watch| !watch.task.is_finished()) {
            return;
        }
        let seen = Arc::new(Mutex::new(Seen::default()));
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let task = tokio::spawn(follow(api, seen.clone(), self.wake.clone(), self.sandboxes.clone()));
        watches.insert(namespace.to_owned(), Watch { seen, task });
    }

    /// Ends the watch of a namespace that is gone.
    pub(crate) fn unwatch(&self, namespace: &str) {
        if let Some(watch) = lock(&self.watches).remove(namespace) {
            watch.task.abort();
        }
    }

    /// Namespaces that are watched.
    pub(crate) fn watched(&self) -> Vec<String> {
        lock(&self.watches).keys().cloned().collect()
    }

    /// The pod of a run, by its UID, or one of a pool, by its name.
    pub(crate) fn get(&self, namespace: &str, run_uid: &str) -> Cached {
        let Some(seen) = self.seen(namespace) else {
            return Cached::Ask;
        };
        let seen = lock(&seen);
        if let Some(pod) = seen.pods.get(run_uid) {
            return Cached::Present(pod.clone());
        }
        match seen.created.get(run_uid) {
            Some((pod, created)) if created.elapsed() < WATCH_LAG => Cached::Present(pod.clone()),
            Some(_) => Cached::Ask,
            None if seen.synced => Cached::Absent,
            None => Cached::Ask,
        }
    }

    /// Remembers a pod that was just created.
    pub(crate) fn created(&self, namespace: &str, run_uid: &str, pod: &Pod) {
        if let Some(seen) = self.seen(namespace) {
            let mut seen = lock(&seen);
            if !seen.pods.contains_key(run_uid) {
                seen.created.insert(run_uid.to_owned(), (Arc::new(pod.clone()), Instant::now()));
            }
        }
    }

    /// What the API server answered when it was asked.
    pub(crate) fn asked(&self, namespace: &str, run_uid: &str) {
        if let Some(seen) = self.seen(namespace) {
            lock(&seen).created.remove(run_uid);
        }
    }

    /// Tells of every pod that has not ended.
    pub(crate) fn living(&self, each: &mut dyn FnMut(LivingPod<'_>)) {
        let all: Vec<Arc<Mutex<Seen>>> = lock(&self.watches).values().map(|watch| watch.seen.clone()).collect();
        for seen in all {
            for (uid, pod) in lock(&seen).pods.iter().filter(|(_, pod)| lives(pod)) {
                if is_of_a_pool(pod) {
                    // One that waits holds no slot.
                    let Some(holder) = self.sandboxes.holder(uid) else { continue };
                    let policy = policy_text(&holder.policy);
                    each(LivingPod { namespace: &holder.tenant, run_uid: &holder.run_uid, policy: &policy });
                    continue;
                }
                each(LivingPod {
                    namespace: pod.labels().get(RUN_NAMESPACE).map_or("", String::as_str),
                    run_uid: uid,
                    policy: pod.annotations().get(RUN_POLICY).map_or("", String::as_str),
                });
            }
        }
    }

    /// Pods of pools in all namespaces, each with its namespace, and those that were made just now; `None` of a namespace that was not listed yet.
    pub(crate) fn of_pools(&self) -> Vec<(String, Option<Vec<Arc<Pod>>>)> {
        let all: Vec<(String, Arc<Mutex<Seen>>)> =
            lock(&self.watches).iter().map(|(namespace, watch)| (namespace.clone(), watch.seen.clone())).collect();
        let pods = |seen: &Seen| {
            let made = seen.created.values().filter(|(_, created)| created.elapsed() < LONGEST_LAG).map(|(pod, _)| pod);
            seen.pods.values().chain(made).filter(|pod| is_of_a_pool(pod)).cloned().collect()
        };
        all.into_iter()
            .map(|(namespace, seen)| {
                let seen = lock(&seen);
                (namespace, seen.synced.then(|| pods(&seen)))
            })
            .collect()
    }

    /// Every pod that is known in a namespace.
    pub(crate) fn all(&self, namespace: &str) -> Vec<Arc<Pod>> {
        self.seen(namespace).map(|seen| lock(&seen).pods.values().cloned().collect()).unwrap_or_default()
    }

    fn seen(&self, namespace: &str) -> Option<Arc<Mutex<Seen>>> {
        lock(&self.watches).get(namespace).map(|watch| watch.seen.clone())
    }
}

/// The UID of its run, or the name of a pod that was made before there was one.
fn key_of(pod: &Pod) -> Option<String> {
    pod.labels().get(RUN_UID).cloned().or_else(|| is_of_a_pool(pod).then(|| pod.name_any()))
}

/// Whether a pod was made for a SandboxPool.
pub(crate) fn is_of_a_pool(pod: &Pod) -> bool {
    pod.labels().contains_key(POOL_UID)
}

fn lives(pod: &Pod) -> bool {
    !matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn follow(api: Api<Pod>, seen: Arc<Mutex<Seen>>, wake: mpsc::UnboundedSender<RunRef>, sandboxes: Arc<Sandboxes>) {
    let config = watcher::Config::default().labels(&format!("{MANAGED_BY}={MANAGER}"));
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                let pods = take(&mut lock(&seen), event);
                for pod in pods {
                    if is_of_a_pool(&pod) {
                        // Who drains a node, or deletes a pod, means that nothing more is to begin there.
                        if pod.metadata.deletion_timestamp.is_some() {
                            sandboxes.withdraw(&pod.name_any());
                        }
                        sandboxes.news.notify_one();
                    }
                    if let Some(reference) = run_of(&pod, &sandboxes) {
                        let _ = wake.unbounded_send(reference);
                    }
                }
            }
            Err(error) => {
                tracing::debug!(error = %error, "the watch of a sandbox namespace is tried again");
            }
        }
    }
}

/// Takes an event; returns the pods whose runs should look.
fn take(seen: &mut Seen, event: Event<Pod>) -> Vec<Arc<Pod>> {
    match event {
        Event::Apply(pod) => {
            let pod = Arc::new(pod);
            if let Some(key) = key_of(&pod) {
                seen.created.remove(&key);
                seen.pods.insert(key, pod.clone());
            }
            vec![pod]
        }
        Event::Delete(pod) => {
            if let Some(key) = key_of(&pod) {
                seen.created.remove(&key);
                // A pod of the same name may already follow the one that went.
                if seen.pods.get(&key).is_some_and(|known| known.uid() == pod.uid()) {
                    seen.pods.remove(&key);
                }
            }
            vec![Arc::new(pod)]
        }
        Event::Init => {
            seen.listing.clear();
            Vec::new()
        }
        Event::InitApply(pod) => {
            if let Some(key) = key_of(&pod) {
                seen.listing.insert(key, Arc::new(pod));
            }
            Vec::new()
        }
        Event::InitDone => {
            let listed = std::mem::take(&mut seen.listing);
            seen.created.retain(|uid, _| !listed.contains_key(uid));
            let before = std::mem::replace(&mut seen.pods, listed);
            seen.synced = true;
            before.into_values().chain(seen.pods.values().cloned()).collect()
        }
    }
}

/// The run that a pod belongs to: by what the operator wrote on it, or by what it was given.
fn run_of(pod: &Pod, sandboxes: &Sandboxes) -> Option<RunRef> {
    if is_of_a_pool(pod) {
        return sandboxes.holder(&pod.name_any()).map(|holder| holder.run);
    }
    let name = pod.annotations().get(RUN_NAME)?;
    let namespace = pod.labels().get(RUN_NAMESPACE)?;
    Some(RunRef::new(name).within(namespace))
}

#[cfg(test)]
mod tests {
    use kube::api::ObjectMeta;

    use super::*;

    fn pod(run: &str, uid: &str) -> Pod {
        let labels = [(RUN_UID.to_owned(), run.to_owned())].into();
        Pod { metadata: ObjectMeta { uid: Some(uid.into()), labels: Some(labels), ..ObjectMeta::default() }, ..Pod::default() }
    }

    #[test]
    fn a_late_deletion_of_an_older_pod_does_not_hide_the_newer_one() {
        let mut seen = Seen::default();
        take(&mut seen, Event::Apply(pod("r", "1")));
        take(&mut seen, Event::Apply(pod("r", "2")));
        take(&mut seen, Event::Delete(pod("r", "1")));
        assert!(seen.pods.contains_key("r"));
        take(&mut seen, Event::Delete(pod("r", "2")));
        assert!(!seen.pods.contains_key("r"));
    }

    #[test]
    fn a_new_list_replaces_everything_and_tells_those_that_went() {
        let mut seen = Seen::default();
        take(&mut seen, Event::Apply(pod("gone", "1")));
        take(&mut seen, Event::Init);
        take(&mut seen, Event::InitApply(pod("new", "2")));
        assert!(seen.pods.contains_key("gone") && !seen.synced);
        assert_eq!(take(&mut seen, Event::InitDone).len(), 2);
        assert!(seen.synced && seen.pods.contains_key("new") && !seen.pods.contains_key("gone"));
    }
}
