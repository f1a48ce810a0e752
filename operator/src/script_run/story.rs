//! Whole lives in an in-memory world: the pure steps, driven by chance through crashes, stale views, lost and late messages, a second
//! leader, kubelet restarts, runners that give up, logs that are lost, deletions and cancels. Thousands of seeds; a failure prints its seed.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use paddock_crds::{ConditionType, LargeResult, Phase, PolicyKind, PolicyRef, ScriptRun, StoredResult};
use paddock_policy::QueueLimits;
use paddock_protocol::{Output, Refused, RefusedReason, Report, Transcript};

use super::apply::Done;
use super::fixtures::{a_pod, a_report, a_run, at, decided, present, settings, valid};
use super::ledger::{Entry, Ledger, LivingPod, policy_text};
use super::pod_facts::{Ended, PodFacts, PodLife};
use super::queue::{Admission, ClusterLimits};
use super::result::with_stored;
use super::status::compute_status;
use super::step::{Seen, Step, Stop, StreamSeen, next_step};
use super::telling;
use super::validate::ValidRun;
use crate::context::entry;

/// Every other one in the second tenant, and of each tenant every other one under the narrow policy.
const RUNS: usize = 7;
/// Those that are there from the beginning. The others are created on the way.
const FIRST: usize = 4;
const TENANTS: [&str; 2] = ["team", "crew"];
const LIMITS: QueueLimits =
    QueueLimits { concurrent: 2, queued: 100, policy_concurrent: None, policy_queued: None, weight: 100, suspended: false };
const NARROW: &str = "narrow";
/// Of a tenant's runs that name the narrow policy, at once.
const NARROW_CONCURRENT: u32 = 1;
const CLUSTER: ClusterLimits = ClusterLimits { concurrent: 3, queued: 100 };
const SEEDS: u64 = 10_000;

fn tenant_of(uid: &str) -> &'static str {
    TENANTS[number_of(uid) % TENANTS.len()]
}

fn is_narrow(uid: &str) -> bool {
    (number_of(uid) / TENANTS.len()) % 2 == 1
}

fn number_of(uid: &str) -> usize {
    uid.trim_start_matches("uid-").parse().unwrap()
}

fn limits_of(policy: &PolicyRef) -> QueueLimits {
    QueueLimits { policy_concurrent: (policy.name == NARROW).then_some(NARROW_CONCURRENT), ..LIMITS }
}

fn is_over(run: &ScriptRun) -> bool {
    run.status.as_ref().is_some_and(|status| status.is_true(&ConditionType::Finished))
}

/// A small generator: the stories need chance, not quality.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }
}

/// A pod as the node knows it.
#[derive(Clone)]
struct Node {
    facts: PodFacts,
    boot: u64,
    accepted: bool,
    reported: bool,
    stopped: bool,
    /// The runner waited too long for a start message. It takes none any more.
    gave_up: bool,
    /// The log is lost. Once the container has ended its termination message still has the report.
    log_lost: bool,
}

/// What every script writes. It is too large for a status, so that every result goes to the store first.
const OUTPUT: &[u8] = b"[1,2,3]";

struct World {
    chance: Chance,
    second: i64,
    version: u64,
    runs: BTreeMap<String, ScriptRun>,
    /// How many runs were created so far.
    born: usize,
    /// What is decided on each, which does not change: the stories ask a million times.
    valid: BTreeMap<String, ValidRun>,
    pods: BTreeMap<String, Node>,
    starts: BTreeMap<String, u32>,
    /// Runs whose pod ended by itself after its report.
    told: BTreeSet<String>,
    /// Results in the store, by run.
    objects: BTreeSet<String>,
    /// Start messages on their way: run, boot. They may come late, or twice.
    late: Vec<(String, u64)>,
    pod_count: u64,
    boots: u64,
}

/// What an operator process has in memory. A crash makes a new one.
#[derive(Default)]
struct Operator {
    ledger: Ledger,
    /// An older state of the runs, as a watch that lags shows it.
    watched: BTreeMap<String, ScriptRun>,
    written: BTreeMap<String, ScriptRun>,
    sent: BTreeMap<String, String>,
    stop_sent: BTreeMap<String, String>,
    complete: BTreeMap<String, String>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            chance: Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            second: 0,
            version: 1,
            runs: BTreeMap::new(),
            born: 0,
            valid: BTreeMap::new(),
            pods: BTreeMap::new(),
            starts: BTreeMap::new(),
            told: BTreeSet::new(),
            objects: BTreeSet::new(),
            late: Vec::new(),
            pod_count: 0,
            boots: 0,
        };
        (0..FIRST).for_each(|_| world.create_run());
        world
    }

    /// Somebody creates the next run.
    fn create_run(&mut self) {
        let uid = format!("uid-{}", self.born);
        let mut run = a_run();
        run.metadata.name = Some(format!("run-{}", self.born));
        run.metadata.namespace = Some(tenant_of(&uid).into());
        run.metadata.uid = Some(uid.clone());
        run.metadata.creation_timestamp = Some(Time(at(self.second)));
        if is_narrow(&uid) {
            run.spec.policy_ref = PolicyRef { kind: PolicyKind::SandboxPolicy, name: NARROW.into() };
        }
        self.version += 1;
        run.metadata.resource_version = Some(self.version.to_string());
        self.born += 1;
        self.valid.insert(uid.clone(), valid(&run));
        self.runs.insert(uid, run);
    }

    /// A write that is fenced by the version that it was computed from.
    fn store(&mut self, uid: &str, mut run: ScriptRun) -> Option<ScriptRun> {
        let stored = self.runs.get(uid)?;
        if stored.metadata.resource_version != run.metadata.resource_version {
            return None;
        }
        assert!(!is_over(stored) || stored.status == run.status, "a finished status changed");
        self.version += 1;
        run.metadata.resource_version = Some(self.version.to_string());
        self.runs.insert(uid.to_owned(), run.clone());
        Some(run)
    }

    fn touch(&mut self, uid: &str, change: impl FnOnce(&mut ScriptRun)) {
        self.version += 1;
        let version = self.version.to_string();
        if let Some(run) = self.runs.get_mut(uid) {
            change(run);
            run.metadata.resource_version = Some(version);
        }
    }

    fn start(&mut self, uid: &str, boot: u64) {
        if let Some(node) = self.pods.get_mut(uid)
            && node.facts.life == PodLife::Running
            && node.boot == boot
            && !node.accepted
            && !node.gave_up
        {
            node.accepted = true;
            *self.starts.entry(uid.to_owned()).or_insert(0) += 1;
        }
    }

    /// Node, users and network do something.
    fn happen(&mut self, is_calm: bool) {
        self.second += i64::try_from(self.chance.below(3)).unwrap();
        if !self.late.is_empty() && self.chance.one_in(2) {
            let index = usize::try_from(self.chance.below(self.late.len() as u64)).unwrap();
            let (uid, boot) = self.late[index].clone();
            if self.chance.one_in(2) {
                self.late.remove(index);
            }
            self.start(&uid, boot);
        }
        let uid = format!("uid-{}", self.chance.below(RUNS as u64));
        let chance = self.chance.below(if is_calm { 4 } else { 14 });
        let boots = self.boots + 1;
        let now = Time(at(self.second));
        if let Some(node) = self.pods.get_mut(&uid) {
            match (chance, &node.facts.life) {
                (0..=2, PodLife::Pending(_)) => {
                    node.facts.life = PodLife::Running;
                    node.boot = boots;
                    self.boots = boots;
                }
                (0, PodLife::Running) if node.accepted => node.reported = true,
                (1, PodLife::Running) if node.reported || node.stopped => {
                    node.facts.life = over(0);
                    if node.reported && !node.facts.deleting {
                        self.told.insert(uid.clone());
                    }
                }
                (2, _) if node.facts.deleting => _ = self.pods.remove(&uid),
                (3, PodLife::Running) => node.log_lost = true,
                // The node lost its runtime state: the kubelet starts the container once more.
                (4, PodLife::Running) => {
                    node.boot = boots;
                    node.accepted = false;
                    node.reported = false;
                    node.log_lost = false;
                    self.boots = boots;
                }
                (5, PodLife::Running) => node.facts.life = over(137),
                (6, _) => node.facts.deleting = true,
                (10, PodLife::Running) if !node.accepted => {
                    node.gave_up = true;
                    node.facts.life = over(1);
                }
                (11, PodLife::Pending(_) | PodLife::Running) if !node.accepted => {
                    node.facts.life =
                        PodLife::Ended(Ended { exit_code: Some(137), pod_reason: Some("DeadlineExceeded".into()), ..Ended::default() });
                }
                _ => {}
            }
        }
        match chance {
            7 => self.touch(&uid, |run| run.spec.cancel = Some(true)),
            8 => self.touch(&uid, |run| run.metadata.deletion_timestamp = Some(now)),
            9 => self.second += 40,
            12 if self.born < RUNS => self.create_run(),
            // Somebody takes the finalizer off and deletes it.
            13 if self.chance.one_in(4) => _ = self.runs.remove(&uid),
            _ => {}
        }
    }

    /// Pods that live.
    fn living(&self) -> impl Iterator<Item = (&String, &Node)> {
        self.pods.iter().filter(|(_, node)| node.facts.ended().is_none())
    }
}

fn tell_living(world: &World, each: &mut dyn FnMut(LivingPod<'_>)) {
    for (uid, _) in world.living() {
        let policy =
            if is_narrow(uid) { PolicyRef { kind: PolicyKind::SandboxPolicy, name: NARROW.into() } } else { a_run().spec.policy_ref };
        each(LivingPod { namespace: tenant_of(uid), run_uid: uid, policy: &policy_text(&policy) });
    }
}

/// What a process is about to do with a run, and what it saw.
struct Look {
    run: ScriptRun,
    seen: Seen,
    step: Step,
    node: Option<Node>,
}

fn over(exit_code: i32) -> PodLife {
    PodLife::Ended(Ended { exit_code: Some(exit_code), container_reason: Some("Error".into()), ..Ended::default() })
}

impl Operator {
    /// A new process lists everything anew.
    fn fresh(world: &World) -> Self {
        let operator = Self { watched: world.runs.clone(), ..Self::default() };
        operator.ledger.list_begins();
        for run in world.runs.values() {
            operator.ledger.show(entry(run));
        }
        operator.ledger.list_ends();
        operator
    }

    /// The watch of a run catches up.
    fn watch(&mut self, world: &World, uid: &str) {
        if let Some(run) = world.runs.get(uid) {
            self.ledger.show(entry(run));
            self.watched.insert(uid.to_owned(), run.clone());
        } else {
            self.ledger.hide(uid);
            self.watched.remove(uid);
        }
    }

    fn version(run: &ScriptRun) -> u64 {
        run.metadata.resource_version.as_deref().unwrap_or("0").parse().unwrap()
    }

    fn view(&self, uid: &str) -> Option<ScriptRun> {
        let watched = self.watched.get(uid)?;
        Some(self.written.get(uid).filter(|own| Self::version(own) > Self::version(watched)).unwrap_or(watched).clone())
    }

    fn stream(&self, uid: &str, node: &Node) -> StreamSeen {
        let mut transcript = Transcript::default();
        if node.facts.life == PodLife::Running || node.facts.ended().is_some() {
            transcript.boot = (node.boot > 0).then(|| node.boot.to_string());
            transcript.accepted = node.accepted;
            let is_at_hand = !node.log_lost || (node.facts.ended().is_some() && self.complete.get(uid) == Some(&node.facts.uid));
            if node.reported && is_at_hand {
                transcript.report = Some(Report { output: Output::Present { bytes: OUTPUT.len() as u64 }, ..a_report(0) });
                transcript.output = OUTPUT.to_vec();
            }
            transcript.refused = node.gave_up.then_some(Refused { reason: RefusedReason::NotStarted, detail: String::new() });
        }
        let key = format!("{}/{}", node.facts.uid, node.boot);
        StreamSeen {
            transcript: transcript.into(),
            caught_up: true,
            listening: true,
            complete: self.complete.get(uid) == Some(&node.facts.uid),
            start_sent: self.sent.get(uid) == Some(&key),
            stop_sent: (self.stop_sent.get(uid) == Some(&node.facts.uid)).then_some(Stop::Gracefully),
        }
    }

    /// Pods without a run are removed, and now and then what was given to runs that are gone is taken back.
    fn clean_up(&mut self, world: &mut World, is_calm: bool) {
        for (uid, node) in &mut world.pods {
            node.facts.deleting |= !world.runs.contains_key(uid);
        }
        if is_calm || world.chance.one_in(20) {
            self.ledger.forget_all_but(&world.runs.keys().cloned().collect());
        }
    }

    /// What the process sees of a run, and what it is about to do.
    fn look(&self, world: &World, uid: &str) -> Option<Look> {
        let run = self.view(uid)?;
        let node = world.pods.get(uid).cloned();
        let mut seen: Seen = decided(world.valid[uid].clone());
        if let Ok(grant) = &mut seen.output {
            grant.large_result = LargeResult::Store;
            grant.result_bytes = 2;
        }
        if let Some(node) = &node {
            seen.stream = self.stream(uid, node);
            seen.pod = present(node.facts.clone());
        }
        let living = |each: &mut dyn FnMut(LivingPod<'_>)| tell_living(world, each);
        seen.is_one_too_many = self.ledger.exceeds(&entry(&run), limits_of(&run.spec.policy_ref), CLUSTER, living);
        let step = next_step(&run, &seen, &settings(), at(world.second));
        Some(Look { run, seen, step, node })
    }

    /// One step of one run. `crash` says after which half the process dies.
    fn pass(&mut self, world: &mut World, uid: &str, crash: Option<u64>) {
        let Some(look) = self.look(world, uid) else { return };
        if crash == Some(0) {
            return;
        }
        let done = self.apply(world, &look);
        if crash == Some(1) {
            return;
        }
        self.write(world, look, &done);
    }

    fn write(&mut self, world: &mut World, look: Look, done: &Done) {
        let Look { run, seen, step, .. } = look;
        let uid = run.uid().unwrap_or_default();
        if let Some(status) = compute_status(&run, &seen, &step, done, at(world.second))
            && let Some(newer) = world.store(&uid, ScriptRun { status: Some(status), ..run })
        {
            if is_over(&newer) {
                self.ledger.forget(&uid);
            }
            if matches!(step, Step::StandBack(_)) {
                self.ledger.stand_back(entry(&newer));
            }
            self.written.insert(uid, newer);
        } else {
            // Nothing was to be written, or somebody else has, or it is gone.
            self.ledger.give_up_the_claim(&uid);
        }
    }

    fn apply(&mut self, world: &mut World, look: &Look) -> Done {
        let Look { run, seen, step, node } = look;
        let node = node.as_ref();
        let uid = run.uid().unwrap_or_default();
        let uid = uid.as_str();
        let pod_uid = node.map(|node| node.facts.uid.clone()).unwrap_or_default();
        match step {
            Step::Admit => {
                let now = at(world.second).as_microsecond();
                let limits = limits_of(&run.spec.policy_ref);
                let living = |each: &mut dyn FnMut(LivingPod<'_>)| tell_living(world, each);
                Done::Queued(self.ledger.reserve(entry(run), limits, CLUSTER, living, |_, policy| limits_of(policy), now))
            }
            Step::CreatePod => {
                world.pod_count += 1;
                let facts = PodFacts { uid: format!("pod-{}", world.pod_count), ..a_pod(run) };
                world.pods.entry(uid.to_owned()).or_insert(Node {
                    facts,
                    boot: 0,
                    accepted: false,
                    reported: false,
                    stopped: false,
                    gave_up: false,
                    log_lost: false,
                });
                Done::Yes
            }
            Step::SendStart { boot, .. } => {
                let boot: u64 = boot.parse().unwrap();
                self.sent.insert(uid.to_owned(), format!("{pod_uid}/{}", node.map_or(0, |node| node.boot)));
                match world.chance.below(3) {
                    0 => world.start(uid, boot),
                    1 => world.late.push((uid.to_owned(), boot)),
                    _ => {
                        world.start(uid, boot);
                        world.late.push((uid.to_owned(), boot));
                    }
                }
                Done::Yes
            }
            Step::StopPod(_) => {
                self.stop_sent.insert(uid.to_owned(), pod_uid);
                if let Some(node) = world.pods.get_mut(uid) {
                    node.stopped = true;
                }
                Done::Yes
            }
            Step::RecordResult => {
                world.objects.insert(uid.to_owned());
                let produced = telling::told(&seen.stream.transcript, &seen.output).unwrap();
                let reference = StoredResult { url: uid.to_owned(), bytes: 7, sha256: String::new() };
                Done::Told(Box::new(with_stored(produced, Some(&Ok(reference)))))
            }
            Step::ReadLog => {
                self.complete.insert(uid.to_owned(), pod_uid);
                Done::Yes
            }
            Step::RemovePod => {
                if let Some(node) = world.pods.get_mut(uid).filter(|node| node.facts.uid == pod_uid) {
                    node.facts.deleting = true;
                }
                Done::Yes
            }
            Step::Release => {
                let is_current =
                    world.runs.get(uid).is_some_and(|stored| stored.metadata.resource_version == run.metadata.resource_version);
                if is_current {
                    assert!(!world.pods.contains_key(uid), "released before its pod was gone");
                    world.runs.remove(uid);
                    self.watched.remove(uid);
                    self.ledger.forget(uid);
                }
                Done::Gone
            }
            _ => Done::Yes,
        }
    }
}

fn check(world: &World, seed: u64) {
    check_lives(world, seed);
    check_limits(world.living().map(|(uid, _)| uid.as_str()), seed);
}

/// So many at once, and no more.
fn check_limits<'a>(uids: impl Iterator<Item = &'a str>, seed: u64) {
    let uids: Vec<&str> = uids.collect();
    assert!(uids.len() <= CLUSTER.concurrent, "seed {seed}: {uids:?} at once");
    for tenant in TENANTS {
        let own: Vec<&&str> = uids.iter().filter(|uid| tenant_of(uid) == tenant).collect();
        assert!(own.len() <= LIMITS.concurrent as usize, "seed {seed}: {own:?} of {tenant} at once");
        let narrow = own.iter().filter(|uid| is_narrow(uid)).count();
        assert!(narrow <= NARROW_CONCURRENT as usize, "seed {seed}: {own:?} of {tenant} at once");
    }
}

/// What holds whoever writes.
fn check_lives(world: &World, seed: u64) {
    for (uid, starts) in &world.starts {
        assert!(*starts <= 1, "seed {seed}: {uid} ran {starts} times");
    }
    for (uid, run) in &world.runs {
        let status = run.status.clone().unwrap_or_default();
        if status.phase == Some(Phase::Succeeded) {
            assert_eq!(world.starts.get(uid), Some(&1), "seed {seed}: {uid} succeeded without a start");
        }
        if let Some(result) = status.result {
            assert!(
                result.reference.is_none_or(|told| world.objects.contains(&told.url)),
                "seed {seed}: {uid} tells what is not in the store"
            );
        }
        if matches!(status.phase, Some(Phase::Lost | Phase::RunnerKilled)) {
            assert!(!world.told.contains(uid), "seed {seed}: {uid} is {:?} although its runner reported", status.phase);
        }
        if matches!(status.phase, Some(Phase::StartTimedOut | Phase::StartFailed | Phase::Refused)) {
            assert_eq!(world.starts.get(uid), None, "seed {seed}: {uid} ran although it is told that it did not");
        }
    }
}

fn tell(seed: u64, stormy: u64) {
    let mut world = World::new(seed);
    let mut operator = Operator::fresh(&world);
    // A pass that takes its time: of what it has seen much may have changed when it acts.
    let mut slow: Option<Look> = None;
    for tick in 0..stormy + 2000 {
        let is_calm = tick >= stormy;
        world.happen(is_calm);
        operator.clean_up(&mut world, is_calm);
        let uid = format!("uid-{}", world.chance.below(RUNS as u64));
        if is_calm || world.chance.one_in(2) {
            // The watch of this run catches up; at other times the operator works on what it saw last.
            operator.watch(&world, &uid);
        }
        let crash = (!is_calm && world.chance.one_in(8)).then(|| world.chance.below(3));
        if let Some(look) = slow.take_if(|_| is_calm || world.chance.one_in(3)) {
            let done = operator.apply(&mut world, &look);
            operator.write(&mut world, look, &done);
        }
        if slow.is_none() && !is_calm && world.chance.one_in(4) {
            slow = operator.look(&world, &uid);
        } else if slow.as_ref().is_none_or(|look| look.run.uid().as_ref() != Some(&uid)) {
            operator.pass(&mut world, &uid, crash);
        }
        if crash.is_some() {
            operator = Operator::fresh(&world);
            slow = None;
        }
        check(&world, seed);
        if is_calm && world.runs.values().all(is_over) && world.pods.is_empty() {
            return leaves_nothing(&world, &mut operator, seed);
        }
    }
    let stuck: Vec<_> =
        world.runs.values().map(|run| run.status.as_ref().map(|status| (status.phase.clone(), status.message.clone()))).collect();
    panic!("seed {seed}: not at rest: {stuck:?}, {} pods", world.pods.len());
}

/// Who comes after all of them gets a slot at once, and no run that is gone is before it.
fn leaves_nothing(world: &World, operator: &mut Operator, seed: u64) {
    (0..RUNS).for_each(|number| operator.watch(world, &format!("uid-{number}")));
    let one = QueueLimits { concurrent: 1, ..LIMITS };
    for tenant in TENANTS {
        let mut last = a_run();
        (last.metadata.namespace, last.metadata.uid) = (Some(tenant.into()), Some(format!("last-of-{tenant}")));
        let admission = operator.ledger.reserve(entry(&last), one, CLUSTER, |_| (), |_, _| one, 0);
        assert_eq!(admission, Admission::Admit, "seed {seed}: {tenant}");
    }
}

fn on_all_cores(tell: impl Fn(u64) + Sync) {
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get() as u64);
    let tell = &tell;
    std::thread::scope(|scope| {
        for first in 1..=threads {
            scope.spawn(move || (first..=SEEDS).step_by(usize::try_from(threads).unwrap()).for_each(tell));
        }
    });
}

#[test]
fn no_story_runs_a_script_twice_exceeds_the_limit_or_gets_stuck() {
    on_all_cores(|seed| tell(seed, 100));
}

/// A leader that was paused in the middle of a call finishes that call when it wakes up, and then finds its fence down: one write of before, beside the
/// leader that followed it. No more scripts run at once for it than may.
fn tell_of_a_late_call(seed: u64, stormy: u64) {
    let mut world = World::new(seed);
    let mut operator = Operator::fresh(&world);
    let mut paused: Option<(Operator, Look, Option<Done>)> = None;
    for tick in 0..stormy + 2000 {
        let is_calm = tick >= stormy;
        world.happen(is_calm);
        let mut uid = format!("uid-{}", world.chance.below(RUNS as u64));
        // The worst moment: what the late call is about has not been looked at again when it comes.
        if let Some((_, look, _)) = &paused
            && look.run.uid().as_ref() == Some(&uid)
        {
            uid = format!("uid-{}", (number_of(&uid) + 1) % RUNS);
        }
        if paused.is_none() && !is_calm && world.chance.one_in(10) {
            if let Some(look) = operator.look(&world, &uid) {
                // What is in memory alone was done before the call.
                let done = matches!(look.step, Step::Admit).then(|| operator.apply(&mut world, &look));
                paused = Some((std::mem::replace(&mut operator, Operator::fresh(&world)), look, done));
                continue;
            }
        } else if (is_calm || world.chance.one_in(40))
            && let Some((mut woken, look, done)) = paused.take()
        {
            match (&look.step, done) {
                (Step::CreatePod | Step::SendStart { .. } | Step::StopPod(_) | Step::RecordResult | Step::RemovePod | Step::Release, _) => {
                    if look.step == Step::RemovePod {
                        // What it had to say, it had its time for.
                        world.told.remove(&look.run.uid().unwrap_or_default());
                    }
                    _ = woken.apply(&mut world, &look);
                }
                (_, done) => woken.write(&mut world, look, &done.unwrap_or(Done::Yes)),
            }
        }
        if is_calm || world.chance.one_in(2) {
            operator.watch(&world, &uid);
        }
        operator.pass(&mut world, &uid, None);
        operator.clean_up(&mut world, is_calm);
        check_lives(&world, seed);
        // A pod that the late call made for a run that is over by now is never told to start.
        let may_start = |uid: &&str| world.runs.get(*uid).is_some_and(crate::context::is_active);
        check_limits(world.living().map(|(uid, _)| uid.as_str()).filter(may_start), seed);
        if is_calm && world.runs.values().all(is_over) && world.pods.is_empty() {
            return;
        }
    }
    panic!("seed {seed}: not at rest, {} pods", world.pods.len());
}

#[test]
fn a_leader_that_was_paused_in_a_call_exceeds_no_limit() {
    on_all_cores(|seed| tell_of_a_late_call(seed, 200));
}

/// A leader that was paused keeps what it had in memory. When it wakes up its fence is down, and it writes nothing; here it writes all the same, with
/// the decisions of before, beside the leader that followed it. Too many may be admitted by that, and no script runs twice.
fn tell_of_a_paused_leader(seed: u64, stormy: u64) {
    let mut world = World::new(seed);
    let mut operator = Operator::fresh(&world);
    let mut paused: Option<Operator> = None;
    for tick in 0..stormy + 2000 {
        let is_calm = tick >= stormy;
        world.happen(is_calm);
        let uid = format!("uid-{}", world.chance.below(RUNS as u64));
        match &mut paused {
            None if !is_calm && world.chance.one_in(10) => paused = Some(std::mem::replace(&mut operator, Operator::fresh(&world))),
            Some(woken) if world.chance.one_in(4) => {
                woken.pass(&mut world, &uid, None);
                if is_calm || world.chance.one_in(4) {
                    paused = None;
                }
            }
            _ => {}
        }
        if is_calm || world.chance.one_in(2) {
            operator.watch(&world, &uid);
        }
        operator.pass(&mut world, &uid, None);
        // Also a pod that the woken one made for a run that was gone.
        operator.clean_up(&mut world, is_calm);
        check_lives(&world, seed);
        if is_calm && world.runs.values().all(is_over) && world.pods.is_empty() {
            return;
        }
    }
    panic!("seed {seed}: not at rest, {} pods", world.pods.len());
}

#[test]
fn a_leader_that_was_paused_and_writes_all_the_same_runs_nothing_twice() {
    (1..=SEEDS / 10).for_each(|seed| tell_of_a_paused_leader(seed, 100));
}

#[test]
fn a_story_without_trouble_succeeds() {
    let mut world = World::new(7);
    let mut operator = Operator::fresh(&world);
    for _ in 0..3000 {
        world.happen(true);
        for number in 0..RUNS {
            let uid = format!("uid-{number}");
            operator.watch(&world, &uid);
            operator.pass(&mut world, &uid, None);
        }
        check(&world, 7);
    }
    for run in world.runs.values() {
        let phase = run.status.clone().unwrap_or_default().phase;
        // The calm world still takes its time, so some run out of theirs.
        assert!(matches!(phase, Some(Phase::Succeeded | Phase::TimedOut)), "{phase:?}");
    }
    assert_eq!(world.starts.len(), FIRST);
}

#[test]
fn nobody_is_admitted_twice_on_a_stale_view() {
    let ledger = Ledger::default();
    let admitted = (0..10)
        .filter(|number| {
            let mut own: Entry = entry(&a_run());
            own.turn.uid = format!("uid-{number}");
            ledger.reserve(own, LIMITS, CLUSTER, |_| (), |_, _| LIMITS, 0) == Admission::Admit
        })
        .count();
    assert_eq!(admitted, LIMITS.concurrent as usize);
}
