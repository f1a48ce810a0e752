//! What a pass needs besides its run: the client, the caches, and the little that is only in memory.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures::channel::mpsc;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::runtime::events::Recorder;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Client, ResourceExt as _};
use paddock_crds::{
    ClusterSandboxPolicy, ConditionStatus, ConditionType, Diagnosis, Phase, PolicyRef, PolicyRules, SandboxPolicy, SandboxPool,
    ScriptApproval, ScriptRun,
};
use paddock_policy::{Containment, QueueLimits, SecretValues, contains_anything, queue_limits};
use paddock_protocol::SealingKey;

use crate::approvals::{Approvals, of_namespace};
use crate::audit::Audit;
use crate::bounded::Turns;
use crate::config::Settings;
use crate::diagnosis;
use crate::egress::Egress;
use crate::input_check::Answer;
use crate::lease::Fence;
use crate::metrics::{Census, Metrics};
use crate::names::FINALIZER;
use crate::pods::PodCache;
use crate::policies::{Policies, Writers};
use crate::pool::waiting::Sandboxes;
use crate::preflight::Readings;
use crate::readable::Readable;
use crate::sandbox_namespace::Prepared;
use crate::script_run::ledger::{Entry, Ledger, LivingPod};
use crate::script_run::observe::{contained, has_lost_approval, policies, policies_of};
use crate::script_run::queue::{Place, Turn};
use crate::script_run::session::{Sessions, Waker};
use crate::script_run::{Guarded, RunRef, Watched};
use crate::store::ResultStore;
use crate::traces::Traces;

/// Of bodies that are not always in memory, so much is at once, in KiB of their JSON. Each is there in a few copies.
const LARGE: usize = 4096;
/// The same of one namespace, in KiB.
const LARGE_OF_ONE: usize = LARGE / 2;

/// Objects that are watched in the whole cluster.
pub(crate) struct Caches {
    pub(crate) namespaces: Store<Namespace>,
    pub(crate) policies: Store<Readable<SandboxPolicy>>,
    pub(crate) cluster_policies: Store<Readable<ClusterSandboxPolicy>>,
    /// Who wrote the policies.
    pub(crate) writers: Writers,
    pub(crate) approvals: Store<Readable<ScriptApproval>>,
    pub(crate) pools: Store<Readable<SandboxPool>>,
    /// What the cluster was found to be.
    pub(crate) diagnoses: Store<Readable<Diagnosis>>,
}

/// How results come in, and where large ones go.
pub(crate) struct Results {
    pub(crate) sealing_key: SealingKey,
    pub(crate) store: Option<ResultStore>,
}

/// What a context is made from.
pub(crate) struct Parts {
    pub(crate) client: Client,
    pub(crate) egress: Egress,
    pub(crate) fence: Fence,
    pub(crate) settings: Settings,
    pub(crate) results: Results,
    pub(crate) metrics: Metrics,
    pub(crate) recorder: Recorder,
    pub(crate) caches: Caches,
    pub(crate) traces: Option<Traces>,
    pub(crate) audit: Audit,
    pub(crate) wake: mpsc::UnboundedSender<RunRef>,
}

/// See the module.
pub(crate) struct Context {
    pub(crate) client: Client,
    /// Since when this replica may write.
    pub(crate) fence: Fence,
    pub(crate) settings: Settings,
    pub(crate) results: Results,
    pub(crate) metrics: Metrics,
    pub(crate) recorder: Recorder,
    pub(crate) caches: Caches,
    pub(crate) traces: Option<Traces>,
    /// Who is told what is to be in the audit log.
    pub(crate) audit: Audit,
    pub(crate) policies: Policies,
    /// What runs are granted of the network, and who is told.
    pub(crate) egress: Egress,
    pub(crate) pods: PodCache,
    /// Those of pools, and to whom they were given.
    pub(crate) sandboxes: Arc<Sandboxes>,
    pub(crate) prepared: Prepared,
    pub(crate) ledger: Ledger,
    pub(crate) sessions: Sessions,
    /// Passes that hold a large body take turns, so that all of them together take bounded memory.
    pub(crate) large: Turns,
    /// Whose turn it is to have a process that checks an input.
    pub(crate) checking: Turns,
    /// What the texts of scripts show.
    pub(crate) readings: Readings,
    /// Whose turn it is to have a process that makes a result.
    pub(crate) telling: Turns,
    /// What they answered, by the UID of the run, with a hash of the schemas.
    checks: Mutex<HashMap<String, (String, Answer)>>,
    /// Values of the Secrets that runs were given, by the UID of the run, until the run has ended.
    given: Mutex<HashMap<String, SecretValues>>,
    /// Limits in the queue, by namespace and policy.
    limits: Mutex<BTreeMap<(String, PolicyRef), QueueLimits>>,
    wake: mpsc::UnboundedSender<RunRef>,
    runs: OnceLock<Store<Guarded>>,
    /// The newest state of runs that this process wrote, until the watch has caught up.
    written: Mutex<HashMap<String, Watched>>,
    failures: Mutex<HashMap<String, u32>>,
    /// Runs whose end was stored and is not yet to be seen in the cache.
    ending: Mutex<HashSet<String>>,
}

/// Whether a run has been admitted and is not over.
pub(crate) fn is_active(run: &ScriptRun) -> bool {
    let status = run.status.as_ref();
    status.is_some_and(|status| status.is_true(&ConditionType::Admitted) && !status.is_true(&ConditionType::Finished))
}

impl Context {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { client, egress, fence, settings, results, metrics, recorder, caches, traces, audit, wake } = parts;
        let sandboxes = Arc::new(Sandboxes::default());
        Self {
            policies: Policies::default(),
            egress,
            pods: PodCache::new(client.clone(), wake.clone(), sandboxes.clone()),
            sandboxes,
            client,
            fence,
            settings,
            results,
            metrics,
            recorder,
            caches,
            traces,
            audit,
            prepared: Prepared::default(),
            ledger: Ledger::default(),
            sessions: Sessions::default(),
            large: Turns::new(LARGE, LARGE_OF_ONE),
            checking: Turns::new(1, 1),
            readings: Readings::default(),
            telling: Turns::new(1, 1),
            checks: Mutex::default(),
            given: Mutex::default(),
            limits: Mutex::default(),
            wake,
            runs: OnceLock::new(),
            written: Mutex::default(),
            failures: Mutex::default(),
            ending: Mutex::default(),
        }
    }

    /// The one place where the clock is read.
    #[expect(clippy::unused_self, reason = "callers ask the context, so that nobody asks the clock")]
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    /// What was answered about the input of a run under these schemas.
    pub(crate) fn checked(&self, uid: &str, key: &str) -> Option<Answer> {
        lock(&self.checks).get(uid).filter(|(known, _)| known == key).map(|(_, answer)| answer.clone())
    }

    pub(crate) fn remember_check(&self, uid: String, key: String, answer: Answer) {
        lock(&self.checks).insert(uid, (key, answer));
    }

    pub(crate) fn set_runs(&self, runs: Store<Guarded>) {
        let _ = self.runs.set(runs);
    }

    /// All runs.
    pub(crate) fn runs(&self) -> Vec<Arc<Guarded>> {
        self.runs.get().map(Store::state).unwrap_or_default()
    }

    /// The run of this name, as the cache has it.
    pub(crate) fn run(&self, namespace: &str, name: &str) -> Option<Arc<Guarded>> {
        self.runs.get()?.get(&ObjectRef::new(name).within(namespace))
    }

    /// UIDs of the runs that have been admitted and are not over; `None` before all runs were listed.
    pub(crate) fn active_runs(&self) -> Option<Vec<String>> {
        let is_active = |watched: &Watched| {
            let status = watched.run.status.as_ref();
            status.is_some_and(|status| status.is_true(&ConditionType::Admitted) && !status.is_true(&ConditionType::Finished))
        };
        let uid =
            |guarded: &Arc<Guarded>| guarded.0.as_ref().ok().filter(|watched| is_active(watched)).and_then(|watched| watched.run.uid());
        self.ledger.is_listed().then(|| self.runs().iter().filter_map(uid).collect())
    }

    /// The watch may lag behind this process' own writes. Versions of one object are ordered numbers.
    pub(crate) fn freshest(&self, watched: &Watched) -> Watched {
        let uid = watched.run.uid().unwrap_or_default();
        let mut written = lock(&self.written);
        match written.get(&uid) {
            Some(own) if version(&own.run) > version(&watched.run) => own.clone(),
            Some(_) => {
                written.remove(&uid);
                watched.clone()
            }
            None => watched.clone(),
        }
    }

    /// Remembers what the API server answered to a write.
    pub(crate) fn remember(&self, written: &Watched) {
        lock(&self.written).insert(written.run.uid().unwrap_or_default(), written.clone());
    }

    /// Remembers what has to be covered in what a run puts out.
    pub(crate) fn remember_given(&self, uid: &str, values: SecretValues) {
        if values != SecretValues::default() {
            lock(&self.given).insert(uid.to_owned(), values);
        }
    }

    /// What has to be covered, if it is remembered.
    pub(crate) fn given(&self, uid: &str) -> Option<SecretValues> {
        lock(&self.given).get(uid).cloned()
    }

    /// Nothing of the run will be told any more.
    pub(crate) fn forget_given(&self, uid: &str) {
        lock(&self.given).remove(uid);
    }

    /// Drops all memory of a run that is gone.
    pub(crate) fn forget(&self, run: &ScriptRun) {
        let uid = run.uid().unwrap_or_default();
        lock(&self.written).remove(&uid);
        lock(&self.failures).remove(&uid);
        lock(&self.checks).remove(&uid);
        lock(&self.given).remove(&uid);
        self.readings.forget(&uid);
        self.sandboxes.let_go(&uid);
        self.sessions.close(&uid);
        self.ledger.forget(&uid);
        self.metrics.sessions(self.sessions.len());
    }

    /// Drops all memory of runs that are not there any more, however they went.
    pub(crate) fn forget_all_but(&self, present: &HashSet<String>) {
        lock(&self.written).retain(|uid, _| present.contains(uid));
        lock(&self.failures).retain(|uid, _| present.contains(uid));
        lock(&self.checks).retain(|uid, _| present.contains(uid));
        lock(&self.given).retain(|uid, _| present.contains(uid));
        self.audit.forget_all_but(present);
        self.readings.forget_all_but(present);
        lock(&self.ending).retain(|uid| present.contains(uid));
        self.sandboxes.let_go_all_but(present);
        self.sessions.close_all_but(present);
        self.metrics.sessions(self.sessions.len());
        for namespace in self.ledger.forget_all_but(present) {
            self.wake_waiting(&namespace);
        }
    }

    /// Doubles with each failure in a row, from 250 ms to a minute.
    pub(crate) fn back_off(&self, uid: &str) -> Duration {
        self.ledger.stand_aside(uid);
        let mut failures = lock(&self.failures);
        let count = failures.entry(uid.to_owned()).or_insert(0);
        *count = (*count + 1).min(8);
        Duration::from_millis(250 << *count).min(Duration::from_secs(60))
    }

    /// A pass came to its end: the next failure is a first one.
    pub(crate) fn succeeded(&self, uid: &str) {
        lock(&self.failures).remove(uid);
    }

    /// Limits of the runs of a namespace that name this policy. They are kept until a policy or a namespace changes.
    pub(crate) fn queue_limits(&self, namespace: &str, policy: &PolicyRef) -> QueueLimits {
        let key = (namespace.to_owned(), policy.clone());
        if let Some(known) = lock(&self.limits).get(&key) {
            return *known;
        }
        let limits = queue_limits(&policies_of(namespace, policy, self).taking_part);
        lock(&self.limits).insert(key, limits);
        limits
    }

    /// Whether any policy keeps anything from running.
    fn contains_anything(&self) -> bool {
        let is_so = |rules: &PolicyRules| contains_anything(rules);
        let namespaced = self.caches.policies.state();
        let cluster = self.caches.cluster_policies.state();
        namespaced.iter().filter_map(|policy| policy.0.as_ref().ok()).any(|policy| is_so(&policy.spec.rules))
            || cluster.iter().filter_map(|policy| policy.0.as_ref().ok()).any(|policy| is_so(&policy.spec.rules))
    }

    fn contained(&self, run: &ScriptRun) -> Containment {
        contained(run, &policies(run, self))
    }

    /// The runs that are not over, as far as can be seen.
    pub(crate) fn census(&self, now: Timestamp) -> Census {
        let runs = self.runs();
        let diagnosis = diagnosis::told(self);
        let runs = census(runs.iter().filter_map(|guarded| guarded.0.as_ref().ok()).map(|watched| &watched.run), now);
        Census { diagnosis, audit: self.audit.count(), ..runs }
    }

    /// The first time that the cache shows the end of a run which this process has brought about, its slot is free: those who wait may
    /// take it. Before, the cache would still count it.
    pub(crate) fn note_end(&self, run: &ScriptRun) {
        let is_over = run.status.as_ref().is_some_and(|status| status.is_true(&ConditionType::Finished));
        if is_over && lock(&self.ending).remove(&run.uid().unwrap_or_default()) {
            self.wake_waiting(&run.namespace().unwrap_or_default());
        }
    }

    /// The end of a run was stored.
    pub(crate) fn ended(&self, run: &ScriptRun) {
        lock(&self.checks).remove(&run.uid().unwrap_or_default());
        self.readings.forget(&run.uid().unwrap_or_default());
        lock(&self.ending).insert(run.uid().unwrap_or_default());
    }

    /// Wakes who is next: a slot of this namespace may be free, and with it one of the cluster, which another may get. The first of those who wait here
    /// are looked at anew in any case: policies may refuse them by now.
    pub(crate) fn wake_waiting(&self, namespace: &str) {
        for name in self.ledger.heads(namespace) {
            self.wake_run(namespace, &name);
        }
        self.wake_next(namespace, None);
    }

    /// Has a pass look at a run.
    pub(crate) fn wake_run(&self, namespace: &str, name: &str) {
        let _ = self.wake.unbounded_send(RunRef::new(name).within(namespace));
    }

    /// Wakes those who would get the free slots now. Whose turn it is depends on the time: somebody who was woken for a slot and does not get it passes
    /// it on by this, to others than itself (`but`).
    pub(crate) fn wake_next(&self, namespace: &str, but: Option<&str>) {
        let living = |each: &mut dyn FnMut(LivingPod<'_>)| self.pods.living(each);
        let limits_of = |namespace: &str, policy: &PolicyRef| self.queue_limits(namespace, policy);
        let now = self.now().as_microsecond();
        for (of, name) in self.ledger.next(namespace, self.settings.cluster_limits, living, limits_of, now) {
            if of != namespace || but != Some(name.as_str()) {
                self.wake_run(&of, &name);
            }
        }
    }

    /// A run has given its slot back, as is stored of it now.
    pub(crate) fn stood_back(&self, run: &ScriptRun) {
        self.ledger.stand_back(entry(run));
        self.wake_next(&run.namespace().unwrap_or_default(), None);
    }

    /// After a change of policies or approvals. Wakes every run whose script has not started, but of those that wait only the next in line: if it is refused, it
    /// wakes the one after, and those that were approved. Of all others those that the policies deny or end, or that lost an approval.
    pub(crate) fn wake_concerned(&self) {
        lock(&self.limits).clear();
        let mut waiting = HashSet::new();
        let mut approvals: HashMap<String, Approvals> = HashMap::new();
        let is_any_contained = self.contains_anything();
        for guarded in self.runs() {
            let Ok(Watched { run, .. }) = &guarded.0 else { continue };
            let status = run.status.as_ref();
            let is_past = |type_| status.is_some_and(|status| status.is_true(&type_));
            if is_past(ConditionType::Finished) {
                continue;
            }
            if is_any_contained && matches!(self.contained(run), Containment::Denied { .. } | Containment::Kill { .. }) {
                let _ = self.wake.unbounded_send(ObjectRef::from_obj(&*guarded));
            }
            let is_approved = status.is_some_and(|status| status.approval.is_some());
            if is_approved {
                let namespace = run.namespace().unwrap_or_default();
                let own = approvals.entry(namespace.clone()).or_insert_with(|| of_namespace(&namespace, self));
                if has_lost_approval(run, own, self.now()) {
                    let _ = self.wake.unbounded_send(ObjectRef::from_obj(&*guarded));
                }
            }
            if waits(run) && !is_approved {
                waiting.insert(run.namespace().unwrap_or_default());
            } else if !is_past(ConditionType::Started) {
                let _ = self.wake.unbounded_send(ObjectRef::from_obj(&*guarded));
            }
        }
        for namespace in waiting {
            self.wake_waiting(&namespace);
        }
    }

    /// Wakes one run.
    pub(crate) fn waker(&self, run: &ScriptRun) -> Waker {
        let wake = self.wake.clone();
        let reference = RunRef::new(&run.name_any()).within(&run.namespace().unwrap_or_default());
        Arc::new(move || {
            let _ = wake.unbounded_send(reference.clone());
        })
    }
}

/// Whether a run was told to wait.
fn waits(run: &ScriptRun) -> bool {
    let Some(status) = &run.status else { return false };
    let was_told = status.condition(&ConditionType::Admitted).is_some() && !status.is_true(&ConditionType::Admitted);
    was_told && !status.is_true(&ConditionType::Finished) && run.metadata.deletion_timestamp.is_none()
}

fn census<'a>(runs: impl Iterator<Item = &'a ScriptRun>, now: Timestamp) -> Census {
    let mut census = Census::default();
    for run in runs {
        let status = run.status.as_ref();
        if status.is_some_and(|status| status.is_true(&ConditionType::Finished)) {
            continue;
        }
        let phase = status.and_then(|status| status.phase.clone()).unwrap_or(Phase::Queued);
        *census.by_phase.entry(phase).or_default() += 1;
        if waits(run) {
            let waited = Duration::from_secs(u64::try_from(now.as_second() - created(run)).unwrap_or(0));
            census.longest_wait = census.longest_wait.max(waited);
        }
    }
    census
}

/// Seconds since the epoch when it was created, less its priority.
fn arrived(run: &ScriptRun) -> i64 {
    created(run).saturating_sub(run.spec.priority.unwrap_or(0).max(0))
}

fn created(run: &ScriptRun) -> i64 {
    run.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second())
}

/// A run as the queue sees it.
pub(crate) fn entry(run: &ScriptRun) -> Entry {
    let turn = Turn { arrived: arrived(run), uid: run.uid().unwrap_or_default(), name: run.name_any() };
    let served = run.status.as_ref().and_then(|status| status.clocks.as_ref()?.admitted.as_ref()).map(|time| time.0.as_microsecond());
    let namespace = run.namespace().unwrap_or_default();
    Entry { namespace, policy: run.spec.policy_ref.clone(), turn, place: place(run), served }
}

fn place(run: &ScriptRun) -> Option<Place> {
    let status = run.status.as_ref()?;
    // A run that was released has no pod and gets none, also while a finalizer of somebody else keeps the object.
    let is_released = run.metadata.deletion_timestamp.is_some() && !run.finalizers().iter().any(|finalizer| finalizer == FINALIZER);
    if status.is_true(&ConditionType::Finished) || is_released {
        return None;
    }
    if status.condition(&ConditionType::Approved).is_some_and(|approved| approved.status == ConditionStatus::False) {
        return Some(Place::Awaits);
    }
    let admitted = status.condition(&ConditionType::Admitted)?;
    Some(match admitted.status {
        ConditionStatus::True => Place::Active,
        _ if admitted.reason == paddock_crds::Reason::QuotaExceeded => Place::StandsAside,
        _ => Place::Waits,
    })
}

fn version(run: &ScriptRun) -> u64 {
    run.metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0)
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
