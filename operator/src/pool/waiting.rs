//! Which sandbox waits, and which was given to whom. One lock makes "take the one that waits" and "remove the one that waits" exclude each other: nothing
//! that a run was given is ever removed for the pool's sake, and nothing is given twice.
//!
//! Whoever holds this lock may take that of the sessions; nobody who holds that one may ask here. Whoever holds that of the pods may.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use paddock_crds::{ColdReason, PolicyRef};
use paddock_policy::Grant;
use paddock_protocol::JobFiles;
use tokio::sync::Notify;

use super::demand::REMEMBERED;
use super::shape::Shape;
use crate::names::sandbox_namespace;
use crate::script_run::RunRef;
use crate::script_run::validate::ValidRun;

/// So long after a run has found no room in a quota, no pool of its namespace is filled.
const SHORT_FOR: Duration = Duration::from_secs(10);

/// Of jobs of another leader that are on their way at once.
const AGAIN_BYTES: usize = 16 << 20;
/// Of one pool: more than so many within the time that counts say no more than these.
const MOST_ARRIVALS: usize = 10_000;

/// What a sandbox of a pool is, and for whom.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(crate) tenant: String,
    /// What a run has to name.
    pub(crate) policy: PolicyRef,
    /// What a run has to name.
    pub(crate) runtime: String,
    pub(crate) pool_uid: String,
    /// How many wait there goes by the runs that come.
    pub(crate) follows: bool,
    pub(crate) shape: Shape,
    /// From then on its pod might be ended before its run is.
    pub(crate) best_before: Instant,
}

/// The run that a sandbox was given to.
#[derive(Clone, Debug)]
pub(crate) struct Holder {
    pub(crate) run: RunRef,
    pub(crate) run_uid: String,
    pub(crate) policy: PolicyRef,
    pub(crate) tenant: String,
    /// What was admitted, until the sandbox has it. After a restart it has to be decided on once more.
    pub(crate) job: Option<HeldJob>,
    /// The run is over, or will not use it: nobody will.
    pub(crate) is_over: bool,
}

/// A job on its way.
#[derive(Clone, Debug)]
pub(crate) struct HeldJob {
    /// Of everything that was decided on.
    pub(crate) digest: String,
    pub(crate) files_digest: String,
    /// Dropped as soon as the sandbox has them.
    pub(crate) files: Option<Arc<JobFiles>>,
}

impl HeldJob {
    pub(crate) fn of(run: &ValidRun) -> Self {
        Self { digest: run.digest.clone(), files_digest: run.files_digest.clone(), files: Some(Arc::new(run.files.clone())) }
    }
}

#[derive(Debug)]
enum State {
    Waits,
    Held(Box<Holder>),
    /// It is given to nobody any more.
    Withdrawn,
}

/// What there is for a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Offer {
    /// No pool is for its policy and its runtime.
    #[default]
    NoPool,
    /// A sandbox waits that fits.
    Free,
    /// There is a pool, and nothing of it can be had.
    Cold(ColdReason),
}

/// All sandboxes of pools, by the names of their pods.
#[derive(Default)]
pub(crate) struct Sandboxes {
    book: Mutex<Book>,
    /// Something is to be done about a pool.
    pub(crate) news: Notify,
}

#[derive(Default)]
struct Book {
    sandboxes: BTreeMap<String, (Waiting, State)>,
    by_run: HashMap<String, String>,
    /// Jobs of runs that another leader gave a sandbox, and that may not have got there.
    again: HashMap<String, HeldJob>,
    /// Namespaces of tenants in which a quota has no room.
    short: HashMap<String, Short>,
    /// When runs came for which a pool is, by its UID: those that were given a sandbox of it and those for which there was none.
    arrivals: HashMap<String, VecDeque<Instant>>,
    /// What each pool is for, by its UID, whether or not anything waits in it.
    pools: HashMap<String, Waiting>,
}

/// A quota that had no room.
struct Short {
    since: Instant,
    /// Runs for which one that waits was to go, since when: the room comes only when its pod is gone.
    asked: HashMap<String, Instant>,
    /// So many have not gone yet.
    pending: usize,
}

fn bytes(files: &JobFiles) -> usize {
    files.job.len() + files.script.len() + files.input.as_ref().map_or(0, Vec::len)
}

impl Book {
    fn held(&self, run_uid: &str) -> Option<(&str, &Holder)> {
        let name = self.by_run.get(run_uid)?;
        match &self.sandboxes.get(name)?.1 {
            State::Held(holder) => Some((name, holder)),
            State::Waits | State::Withdrawn => None,
        }
    }
}

impl Sandboxes {
    /// What pools offer now. Of others nothing is given any more.
    pub(crate) fn pools_are(&self, pools: impl IntoIterator<Item = Waiting>) {
        let mut book = self.lock();
        book.pools = pools.into_iter().map(|pool| (pool.pool_uid.clone(), pool)).collect();
        let Book { pools, arrivals, .. } = &mut *book;
        arrivals.retain(|uid, _| pools.contains_key(uid));
    }

    /// A run has started for which a pool is, and that has wanted a sandbox for so long.
    pub(crate) fn came(&self, (tenant, policy, runtime): (&str, &PolicyRef, &str), ago: Duration) {
        let mut book = self.lock();
        let Book { pools, arrivals, .. } = &mut *book;
        let is_for_it = |pool: &&Waiting| pool.tenant == tenant && pool.policy == *policy && pool.runtime == runtime;
        // It came once, also where several pools are for it: to one that goes by what comes, if there is one.
        let Some(pool) = pools.values().filter(is_for_it).min_by_key(|pool| (!pool.follows, &pool.pool_uid)) else { return };
        let uid = &pool.pool_uid;
        let came = arrivals.entry(uid.clone()).or_default();
        let now = Instant::now();
        let since = now.checked_sub(ago).unwrap_or(now);
        came.insert(came.partition_point(|other| *other <= since), since);
        if came.len() > MOST_ARRIVALS {
            came.pop_front();
        }
    }

    /// For how long those runs have been there that came to a pool, the oldest first.
    pub(crate) fn arrivals(&self, pool_uid: &str) -> Vec<Duration> {
        let mut book = self.lock();
        let Some(came) = book.arrivals.get_mut(pool_uid) else { return Vec::new() };
        let now = Instant::now();
        came.retain(|came| now.saturating_duration_since(*came) < REMEMBERED);
        came.iter().map(|came| now.saturating_duration_since(*came)).collect()
    }

    /// A sandbox of a pool is there, and is nobody's.
    pub(crate) fn add(&self, name: &str, waiting: Waiting) {
        self.lock().sandboxes.entry(name.to_owned()).or_insert((waiting, State::Waits));
    }

    /// A sandbox is there that the status of a run names.
    pub(crate) fn add_held(&self, name: &str, waiting: Waiting, holder: Holder) {
        let mut book = self.lock();
        if !matches!(book.sandboxes.get(name), Some((_, State::Held(_)))) {
            if !holder.is_over {
                book.by_run.insert(holder.run_uid.clone(), name.to_owned());
            }
            book.sandboxes.insert(name.to_owned(), (waiting, State::Held(Box::new(holder))));
        }
    }

    /// Names of all that are known.
    pub(crate) fn names(&self) -> HashSet<String> {
        self.lock().sandboxes.keys().cloned().collect()
    }

    /// Whether this sandbox is known.
    pub(crate) fn knows(&self, name: &str) -> bool {
        self.lock().sandboxes.contains_key(name)
    }

    /// Drops those whose pods are gone. Of unlisted namespaces it is not known what is there.
    pub(crate) fn forget_all_but(&self, present: &HashSet<String>, unlisted: &HashSet<String>) {
        let mut book = self.lock();
        // What a run has is the run's, also where the watch lags behind.
        let is_had = |state: &State| matches!(state, State::Held(holder) if !holder.is_over);
        book.sandboxes.retain(|name, (waiting, state)| {
            present.contains(name) || is_had(state) || unlisted.contains(&sandbox_namespace(&waiting.tenant))
        });
        let Book { sandboxes, by_run, .. } = &mut *book;
        by_run.retain(|_, name| sandboxes.contains_key(name));
        book.short.retain(|_, short| {
            short.asked.retain(|_, since| since.elapsed() < SHORT_FOR);
            short.since.elapsed() < SHORT_FOR
        });
    }

    /// What there is for this run; `is_free` tells of a sandbox whether it answers.
    pub(crate) fn offer(&self, run: (&str, &PolicyRef, &str), grant: &Grant, is_free: impl Fn(&str) -> bool) -> Offer {
        let book = self.lock();
        let (tenant, policy, runtime) = run;
        let is_for_it = |pool: &&Waiting| pool.tenant == tenant && pool.policy == *policy && pool.runtime == runtime;
        let mut misfit = None;
        for pool in book.pools.values().filter(is_for_it) {
            match pool.shape.misfit(grant) {
                None => {
                    let is_there = book.fitting(run, grant).any(&is_free);
                    return if is_there { Offer::Free } else { Offer::Cold(ColdReason::NoneFree) };
                }
                Some(why) => misfit = Some(why),
            }
        }
        misfit.map_or(Offer::NoPool, Offer::Cold)
    }

    /// Gives a sandbox to a run. `claim` has the stream of a sandbox be the run's, if it still answers.
    pub(crate) fn take(&self, run: &ValidRun, runtime: &str, reference: RunRef, claim: impl Fn(&str) -> bool) -> bool {
        let mut book = self.lock();
        if let Some(name) = book.by_run.get(&run.uid) {
            // What it has got is for the job that was decided on then, and for no other.
            let is_of_it =
                |state: &State| matches!(state, State::Held(holder) if holder.job.as_ref().is_some_and(|job| job.digest == run.digest));
            return book.sandboxes.get(name).is_some_and(|(_, state)| is_of_it(state));
        }
        let asked = (run.namespace.as_str(), &run.policy, runtime);
        let Some(name) = book.fitting(asked, &run.grant).find(|name| claim(name)).map(str::to_owned) else { return false };
        let holder = Holder {
            run: reference,
            run_uid: run.uid.clone(),
            policy: run.policy.clone(),
            tenant: run.namespace.clone(),
            job: Some(HeldJob::of(run)),
            is_over: false,
        };
        if let Some((_, state)) = book.sandboxes.get_mut(&name) {
            *state = State::Held(Box::new(holder));
        }
        book.by_run.insert(run.uid.clone(), name);
        drop(book);
        self.news.notify_one();
        true
    }

    /// The sandbox that a run was given.
    pub(crate) fn of_run(&self, run_uid: &str) -> Option<String> {
        self.lock().held(run_uid).map(|(name, _)| name.to_owned())
    }

    /// The job that its sandbox is to get.
    pub(crate) fn job_of(&self, run_uid: &str) -> Option<HeldJob> {
        let book = self.lock();
        let held = book.held(run_uid).and_then(|(_, holder)| holder.job.as_ref());
        held.or_else(|| book.again.get(run_uid)).cloned()
    }

    /// Whether jobs of another leader may be brought: not as long as enough are on their way.
    pub(crate) fn has_room_again(&self) -> bool {
        let book = self.lock();
        let on_their_way: usize = book.again.values().filter_map(|job| job.files.as_ref()).map(|files| bytes(files)).sum();
        on_their_way <= AGAIN_BYTES
    }

    /// A job that another leader may not have delivered. Its run has its sandbox by what is stored, whether or not that is known here yet.
    pub(crate) fn bring_again(&self, run_uid: &str, job: HeldJob) {
        self.lock().again.insert(run_uid.to_owned(), job);
    }

    /// Whether a run other than this one is known to have the sandbox.
    pub(crate) fn is_anothers(&self, pod: &str, run_uid: &str) -> bool {
        matches!(self.lock().sandboxes.get(pod), Some((_, State::Held(holder))) if holder.run_uid != run_uid)
    }

    /// The sandbox has its job, or is to get none any more: nothing of it stays here.
    pub(crate) fn delivered(&self, run_uid: &str) {
        let mut book = self.lock();
        if let Some(job) = book.again.get_mut(run_uid) {
            job.files = None;
        }
        let Some(name) = book.by_run.get(run_uid).cloned() else { return };
        if let Some((_, State::Held(holder))) = book.sandboxes.get_mut(&name)
            && let Some(job) = &mut holder.job
        {
            job.files = None;
        }
    }

    /// The run is over, or will not use its sandbox: nobody will.
    pub(crate) fn let_go(&self, run_uid: &str) {
        let mut book = self.lock();
        book.again.remove(run_uid);
        let Some(name) = book.by_run.remove(run_uid) else { return };
        if let Some((_, State::Held(holder))) = book.sandboxes.get_mut(&name) {
            holder.is_over = true;
        }
        drop(book);
        self.news.notify_one();
    }

    /// The same of all runs but these.
    pub(crate) fn let_go_all_but(&self, present: &HashSet<String>) {
        let gone: Vec<String> = {
            let book = self.lock();
            book.by_run.keys().chain(book.again.keys()).filter(|uid| !present.contains(*uid)).cloned().collect()
        };
        for uid in gone {
            self.let_go(&uid);
        }
    }

    /// Whose a sandbox is, or was: as long as it lives it is counted, and its end is told.
    pub(crate) fn holder(&self, name: &str) -> Option<Holder> {
        match &self.lock().sandboxes.get(name)?.1 {
            State::Held(holder) => Some(Holder::clone(holder)),
            State::Waits | State::Withdrawn => None,
        }
    }

    /// Whether it is too old to be given to anybody.
    pub(crate) fn is_expired(&self, name: &str) -> bool {
        self.lock().sandboxes.get(name).is_some_and(|(waiting, _)| waiting.best_before <= Instant::now())
    }

    /// Whether it waits, and for nobody yet.
    pub(crate) fn waits(&self, name: &str) -> bool {
        matches!(self.lock().sandboxes.get(name), Some((_, State::Waits)))
    }

    /// From now on it is given to nobody. `false`: a run has it.
    pub(crate) fn withdraw(&self, name: &str) -> bool {
        match self.lock().sandboxes.get_mut(name) {
            Some((_, State::Held(holder))) => holder.is_over,
            Some((_, state)) => {
                *state = State::Withdrawn;
                true
            }
            None => true,
        }
    }

    /// A quota had no room for the pod of a run of this namespace: one that waits is to go.
    /// Of a larger run as many as it is larger: it needs all of their room at once.
    pub(crate) fn give_way(&self, tenant: &str, run_uid: &str, grant: &Grant) {
        let mut book = self.lock();
        let of_tenant = book.sandboxes.values().filter(|(waiting, state)| waiting.tenant == tenant && matches!(state, State::Waits));
        let Some(needed) = of_tenant.map(|(waiting, _)| waiting.shape.times_in(grant)).max() else { return };
        let short = book.short_of(tenant);
        if short.asked.get(run_uid).is_none_or(|since| since.elapsed() >= SHORT_FOR) {
            short.asked.insert(run_uid.to_owned(), Instant::now());
            short.pending += needed;
        }
        drop(book);
        self.news.notify_one();
    }

    /// A quota had no room for a sandbox of a pool.
    pub(crate) fn is_short(&self, tenant: &str) {
        self.lock().short_of(tenant);
    }

    /// Whether the quota of a namespace was short just now, and how many are to give way for it that have not yet.
    pub(crate) fn short(&self, tenant: &str) -> Option<usize> {
        self.lock().short.get(tenant).filter(|short| short.since.elapsed() < SHORT_FOR).map(|short| short.pending)
    }

    /// So many have given way.
    pub(crate) fn gave_way(&self, tenant: &str, gone: usize) {
        if let Some(short) = self.lock().short.get_mut(tenant) {
            short.pending = short.pending.saturating_sub(gone);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn short_of(&mut self, tenant: &str) -> &mut Short {
        let now = Instant::now();
        let short = self.short.entry(tenant.to_owned()).or_insert_with(|| Short { since: now, asked: HashMap::new(), pending: 0 });
        short.since = now;
        short
    }

    /// Names of those that wait for such a run.
    fn fitting<'a>(
        &'a self,
        (tenant, policy, runtime): (&'a str, &'a PolicyRef, &'a str),
        grant: &'a Grant,
    ) -> impl Iterator<Item = &'a str> {
        let now = Instant::now();
        let fits = move |waiting: &Waiting| {
            waiting.best_before > now
                && waiting.tenant == tenant
                && waiting.policy == *policy
                && waiting.runtime == runtime
                && waiting.shape.misfit(grant).is_none()
        };
        self.sandboxes
            .iter()
            .filter(move |(_, (waiting, state))| {
                matches!(state, State::Waits) && self.pools.contains_key(&waiting.pool_uid) && fits(waiting)
            })
            .map(|(name, _)| name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script_run::fixtures::{a_run, valid};

    const RUNTIME: &str = "python";

    fn a_waiting(run: &ValidRun) -> Waiting {
        Waiting {
            tenant: run.namespace.clone(),
            policy: run.policy.clone(),
            runtime: RUNTIME.into(),
            pool_uid: "pool".into(),
            follows: false,
            shape: Shape::of(&run.grant),
            best_before: Instant::now() + Duration::from_secs(60),
        }
    }

    fn with_two(run: &ValidRun) -> Sandboxes {
        let sandboxes = Sandboxes::default();
        sandboxes.pools_are([a_waiting(run)]);
        for name in ["sp-1", "sp-2"] {
            sandboxes.add(name, a_waiting(run));
        }
        sandboxes
    }

    fn run_of(uid: &str) -> ValidRun {
        ValidRun { uid: uid.into(), ..valid(&a_run()) }
    }

    fn take(sandboxes: &Sandboxes, run: &ValidRun) -> bool {
        sandboxes.take(run, RUNTIME, RunRef::new(&run.name), |_| true)
    }

    fn offer(sandboxes: &Sandboxes, run: &ValidRun) -> Offer {
        sandboxes.offer((&run.namespace, &run.policy, RUNTIME), &run.grant, |_| true)
    }

    #[test]
    fn a_sandbox_is_given_once_and_is_not_removed_while_a_run_has_it() {
        let (one, two, three) = (run_of("one"), run_of("two"), run_of("three"));
        let sandboxes = with_two(&one);
        assert!(take(&sandboxes, &one) && take(&sandboxes, &one) && take(&sandboxes, &two));
        assert!(!take(&sandboxes, &three));
        assert_eq!(offer(&sandboxes, &three), Offer::Cold(ColdReason::NoneFree));
        // Decided anew since the write that was to store it failed: what is stored then must not start what was decided before.
        assert!(!take(&sandboxes, &ValidRun { digest: "other".into(), ..one.clone() }));
        let name = sandboxes.of_run("one").unwrap();
        assert_eq!(sandboxes.job_of("one").unwrap().files.as_deref(), Some(&one.files));
        assert!(!sandboxes.withdraw(&name));
        sandboxes.delivered("one");
        assert_eq!(sandboxes.job_of("one").unwrap().files, None);
        sandboxes.let_go("one");
        assert!(sandboxes.withdraw(&name) && sandboxes.of_run("one").is_none());
        // It is spent, whoever asks.
        assert!(!take(&sandboxes, &three));
        assert_eq!(sandboxes.holder(&name).unwrap().run_uid, "one");
    }

    #[test]
    fn what_is_being_removed_or_does_not_answer_is_given_to_nobody() {
        let run = run_of("one");
        let sandboxes = with_two(&run);
        assert!(sandboxes.withdraw("sp-1"));
        assert!(!sandboxes.take(&run, RUNTIME, RunRef::new(&run.name), |name| name == "sp-1"));
        assert_eq!(sandboxes.offer((&run.namespace, &run.policy, RUNTIME), &run.grant, |_| false), Offer::Cold(ColdReason::NoneFree));
        assert!(take(&sandboxes, &run));
        assert_eq!(sandboxes.of_run("one").unwrap(), "sp-2");
    }

    #[test]
    fn nobody_is_given_what_is_of_another_namespace_policy_or_runtime() {
        let run = run_of("one");
        let sandboxes = with_two(&run);
        let elsewhere = ValidRun { namespace: "other".into(), ..run.clone() };
        assert!(!take(&sandboxes, &elsewhere));
        assert_eq!(offer(&sandboxes, &elsewhere), Offer::NoPool);
        let policy = PolicyRef { name: "other".into(), ..run.policy.clone() };
        assert!(!take(&sandboxes, &ValidRun { policy, ..run.clone() }));
        assert!(!sandboxes.take(&run, "shell", RunRef::new(&run.name), |_| true));
        // A pool that is gone, or is granted nothing any more.
        sandboxes.pools_are([]);
        assert!(!take(&sandboxes, &run));
    }

    #[test]
    fn a_run_that_was_granted_anything_else_begins_cold() {
        let run = run_of("one");
        let sandboxes = with_two(&run);
        let cold = |change: fn(&mut Grant)| {
            let mut other = run.clone();
            change(&mut other.grant);
            assert!(!take(&sandboxes, &other));
            offer(&sandboxes, &other)
        };
        let resources = Offer::Cold(ColdReason::Resources);
        assert_eq!(cold(|grant| grant.memory_bytes += 1), resources);
        assert_eq!(cold(|grant| grant.cpu_milli -= 1), resources);
        assert_eq!(cold(|grant| grant.scratch_bytes -= 1), resources);
        assert_eq!(cold(|grant| grant.timeout_seconds += 1), resources);
        assert_eq!(cold(|grant| grant.grace_seconds += 1), resources);
        assert_eq!(cold(|grant| grant.runtime.image.push('x')), resources);
        let secret = |grant: &mut Grant| {
            let key = paddock_policy::Object { kind: paddock_policy::ObjectKind::Secret, name: "key".into() };
            grant.capabilities.objects.push(key);
        };
        assert_eq!(cold(secret), Offer::Cold(ColdReason::Data));
        let host = |grant: &mut Grant| {
            let to = paddock_destination::Destination::parse("api.example.com").unwrap();
            let granted = paddock_policy::GrantedDestination {
                to,
                rule: String::new(),
                addresses: paddock_destination::ByName::default(),
                https: None,
            };
            grant.capabilities.network.push(granted);
        };
        assert_eq!(cold(host), Offer::Cold(ColdReason::Network));
        let mut quicker = run.clone();
        quicker.grant.timeout_seconds -= 1;
        assert!(take(&sandboxes, &quicker));
    }

    #[test]
    fn what_a_restarted_operator_finds_with_a_run_is_the_runs() {
        let run = run_of("one");
        let sandboxes = Sandboxes::default();
        sandboxes.pools_are([a_waiting(&run)]);
        let holder = Holder {
            run: RunRef::new("run"),
            run_uid: "one".into(),
            policy: run.policy.clone(),
            tenant: run.namespace.clone(),
            job: None,
            is_over: false,
        };
        sandboxes.add_held("sp-1", a_waiting(&run), holder);
        sandboxes.add("sp-1", a_waiting(&run));
        assert!(!take(&sandboxes, &run_of("two")) && !sandboxes.withdraw("sp-1"));
        assert!(sandboxes.job_of("one").is_none());
        assert!(sandboxes.is_anothers("sp-1", "two") && !sandboxes.is_anothers("sp-1", "one") && !sandboxes.is_anothers("sp-2", "two"));
        sandboxes.bring_again("one", HeldJob::of(&run));
        let mut large = HeldJob::of(&run);
        large.files = Some(Arc::new(JobFiles { input: Some(vec![0; AGAIN_BYTES + 1]), ..run.files.clone() }));
        assert!(sandboxes.has_room_again());
        sandboxes.bring_again("large", large);
        assert!(!sandboxes.has_room_again());
        sandboxes.delivered("large");
        assert!(sandboxes.has_room_again());
        assert_eq!(sandboxes.job_of("one").unwrap().files.as_deref(), Some(&run.files));
        sandboxes.delivered("one");
        assert!(sandboxes.job_of("one").unwrap().files.is_none());
        sandboxes.let_go_all_but(&HashSet::new());
        assert!(sandboxes.job_of("one").is_none() && sandboxes.of_run("one").is_none());
    }

    #[test]
    fn a_run_comes_once_and_to_a_pool_that_goes_by_it() {
        let run = run_of("one");
        let sandboxes = Sandboxes::default();
        let pool = |uid: &str, follows| Waiting { pool_uid: uid.into(), follows, ..a_waiting(&run) };
        sandboxes.pools_are([pool("a", false), pool("b", true), pool("c", true)]);
        let asked = (run.namespace.as_str(), &run.policy, a_waiting(&run).runtime);
        for ago in [3, 5, 4] {
            sandboxes.came((asked.0, asked.1, &asked.2), Duration::from_secs(ago));
        }
        sandboxes.came(("other", asked.1, &asked.2), Duration::ZERO);
        let ages: Vec<u64> = sandboxes.arrivals("b").iter().map(Duration::as_secs).collect();
        assert_eq!((ages, sandboxes.arrivals("a").len(), sandboxes.arrivals("c").len()), (vec![5, 4, 3], 0, 0));
        sandboxes.pools_are([pool("a", false)]);
        assert!(sandboxes.arrivals("b").is_empty());
    }

    #[test]
    fn a_namespace_whose_quota_is_short_gives_way_if_anything_waits_in_it() {
        let run = run_of("one");
        let sandboxes = with_two(&run);
        sandboxes.give_way("other", "one", &run.grant);
        assert_eq!(sandboxes.short("other"), None);
        // A run that asks once a second has one go.
        for uid in ["one", "one", "two"] {
            sandboxes.give_way(&run.namespace, uid, &run.grant);
        }
        assert_eq!(sandboxes.short(&run.namespace), Some(2));
        let mut larger = run.grant.clone();
        larger.memory_bytes = larger.memory_bytes * 2 + 1;
        sandboxes.give_way(&run.namespace, "large", &larger);
        assert_eq!(sandboxes.short(&run.namespace), Some(5));
        sandboxes.gave_way(&run.namespace, 6);
        assert_eq!(sandboxes.short(&run.namespace), Some(0));
    }
}
