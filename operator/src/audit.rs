//! The audit log: what runs did, what was decided of them and what they connected to, appended to a Merkle log in a bucket by the replica that leads.
//!
//! Passes hand in records and go on. A log that cannot be written keeps new runs from being admitted, and holds up nothing else.

#[cfg(test)]
mod flaky;
mod kept;
pub(crate) mod key;
pub(crate) mod log;
pub(crate) mod sequencer;
pub(crate) mod told;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use kube::ResourceExt as _;
use paddock_audit::{Record, RecordType, Salt};
use paddock_crds::{ScriptRun, ScriptRunStatus};
use paddock_egress::wire::Report;
use tokio::sync::{mpsc, watch};

use crate::bucket::Bucket;
use crate::server::hash_of;
use key::Keys;
use sequencer::Sequencer;
use told::Told;

/// Records that wait to be written.
const WAITING: usize = 8192;
/// From so many on no new run is admitted: what runs already has records to come.
const MANY: u64 = WAITING as u64 / 4 * 3;
/// From so many on connections are not told: the lives of runs come first.
const MANY_FOR_CONNECTIONS: u64 = WAITING as u64 / 2;
/// For so long a record may wait before no new run is admitted, and for so long none is after one was lost.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a replica that gives up its lease writes on.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What a pass knows of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LogSeen {
    /// There is none, or it takes what is told.
    #[default]
    Fine,
    /// It was not read yet, or takes less than comes.
    Behind,
}

/// How many records there are of which kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) seen: LogSeen,
    /// Those that wait to be written.
    pub(crate) unwritten: u64,
    /// Those that there was no room for, since this replica leads.
    pub(crate) lost: u64,
}

/// An entry on its way, and since when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    bytes: Vec<u8>,
    since: Instant,
}

/// What is shared between those who tell and the one who writes.
#[derive(Default)]
struct Shared {
    /// The log was found and can be gone on with.
    is_open: AtomicBool,
    queue: Mutex<Queue>,
    unwritten: watch::Sender<u64>,
    /// Makes identifiers of what has none of its own.
    number: AtomicU64,
}

/// What waits. Pure.
#[derive(Clone, Copy, Debug, Default)]
struct Queue {
    unwritten: u64,
    /// When the oldest of it came.
    since: Option<Instant>,
    lost: u64,
    lost_at: Option<Instant>,
}

impl Queue {
    fn came(&mut self, now: Instant) {
        self.unwritten += 1;
        self.since.get_or_insert(now);
    }

    /// `next` is when the oldest of those came that were taken and not written.
    fn went(&mut self, count: u64, next: Option<Instant>, now: Instant) {
        self.unwritten = self.unwritten.saturating_sub(count);
        self.since = (self.unwritten > 0).then(|| next.unwrap_or(now));
    }

    fn lost(&mut self, now: Instant) {
        self.lost += 1;
        self.lost_at = Some(now);
    }

    fn is_behind(&self, now: Instant) -> bool {
        let is_late = |since: Option<Instant>| since.is_some_and(|since| now.saturating_duration_since(since) > PATIENCE);
        is_late(self.since) || self.unwritten >= MANY || (self.lost_at.is_some() && !is_late(self.lost_at))
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn came(&self, now: Instant) {
        let mut queue = self.queue();
        queue.came(now);
        self.unwritten.send_replace(queue.unwritten);
    }

    fn went(&self, count: usize, next: Option<Instant>) {
        let mut queue = self.queue();
        queue.went(u64::try_from(count).unwrap_or(u64::MAX), next, Instant::now());
        self.unwritten.send_replace(queue.unwritten);
    }

    fn look(&self) -> LogSeen {
        let is_behind = !self.is_open.load(Ordering::Acquire) || self.queue().is_behind(Instant::now());
        if is_behind { LogSeen::Behind } else { LogSeen::Fine }
    }

    fn next_number(&self) -> u64 {
        self.number.fetch_add(1, Ordering::Relaxed)
    }
}

/// The half for those who tell.
#[derive(Clone, Default)]
pub(crate) enum Audit {
    /// There is no log.
    #[default]
    Off,
    /// There should be one, and it has no key: nothing is told, and no run is admitted.
    Unusable,
    On(Arc<Teller>),
}

/// Makes entries of what is told, and hands them on.
pub(crate) struct Teller {
    origin: String,
    salt: Salt,
    sender: mpsc::Sender<Entry>,
    shared: Arc<Shared>,
    /// Since when this replica leads. By it its identifiers differ from those of others.
    since: Timestamp,
    /// How far each run was told.
    told: Mutex<HashMap<String, Known>>,
}

/// What was told of a run.
#[derive(Clone, Copy)]
struct Known {
    /// Events up to this one.
    until: Timestamp,
    /// A hash of the decisions.
    decisions: u64,
}

/// The half for the one who writes.
pub(crate) struct Inbox {
    receiver: mpsc::Receiver<Entry>,
    shared: Arc<Shared>,
}

/// Both halves, for a replica that leads since `now`. The log is not looked at yet.
pub(crate) fn open(keys: Keys, bucket: Bucket, now: Timestamp) -> (Audit, Sequencer) {
    let (sender, receiver) = mpsc::channel(WAITING);
    let shared = Arc::<Shared>::default();
    let Keys { signer, salt, origin } = keys;
    // As events have it.
    let since = Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now);
    let teller = Arc::new(Teller { origin, salt, sender, shared: shared.clone(), since, told: Mutex::default() });
    (Audit::On(teller.clone()), Sequencer { teller, inbox: Inbox { receiver, shared }, bucket, signer })
}

impl Audit {
    /// How the log is.
    pub(crate) fn look(&self) -> LogSeen {
        match self {
            Self::Off => LogSeen::Fine,
            Self::Unusable => LogSeen::Behind,
            Self::On(told) => told.shared.look(),
        }
    }

    /// For metrics.
    pub(crate) fn count(&self) -> Count {
        let Self::On(told) = self else { return Count { seen: self.look(), ..Count::default() } };
        let Queue { unwritten, lost, .. } = *told.shared.queue();
        Count { seen: self.look(), unwritten, lost }
    }

    /// What is new in the status of a run, which is stored: it may have been written by this process, which had no answer.
    pub(crate) fn tell_of_run(&self, run: &ScriptRun, status: &ScriptRunStatus, now: Timestamp) {
        let Self::On(told) = self else { return };
        told.tell_of_run(run, status, now);
    }

    /// A run has gone before it was over, or nothing more can be told in it.
    pub(crate) fn tell_of_deletion(&self, run: &ScriptRun, now: Timestamp) {
        let Self::On(told) = self else { return };
        told.send(told::of_deletion(run, now));
    }

    /// A connection is over, or was refused.
    pub(crate) fn tell_of_connection(&self, report: &Report, to: &str, now: Timestamp) {
        let Self::On(told) = self else { return };
        told.send(told::of_connection(report, to, told.id_of(report), now));
    }

    /// More connections of a run are not told one by one.
    pub(crate) fn tell_of_counting(&self, report: &Report, now: Timestamp) {
        let Self::On(told) = self else { return };
        told.send(told::of_counting(report, told.id_of(report), now));
    }

    /// Nothing more is told of a run.
    pub(crate) fn forget(&self, uid: &str) {
        if let Self::On(told) = self {
            told.known().remove(uid);
        }
    }

    /// The same of all that are not there any more.
    pub(crate) fn forget_all_but(&self, present: &HashSet<String>) {
        if let Self::On(told) = self {
            told.known().retain(|uid, _| present.contains(uid));
        }
    }

    /// Waits until everything that was told is written, for a while.
    pub(crate) async fn flush(&self) {
        let Self::On(told) = self else { return };
        let mut unwritten = told.shared.unwritten.subscribe();
        if tokio::time::timeout(LAST_WORDS, unwritten.wait_for(|unwritten| *unwritten == 0)).await.is_err() {
            tracing::warn!(unwritten = told.shared.queue().unwritten, "records of the audit log were not written");
        }
    }
}

impl Teller {
    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell_of_run(&self, run: &ScriptRun, status: &ScriptRunStatus, now: Timestamp) {
        let Some(last) = status.audit.last().map(|event| event.time.0) else { return };
        let uid = run.uid().unwrap_or_default();
        let mut known = self.known();
        let before = known.get(&uid).copied();
        // What was before this replica led, the one before it has told, or it is told again as a whole.
        let is_new = |time: Timestamp| before.map_or(time >= self.since, |before| time > before.until);
        let decisions = decisions_of(status);
        if before.is_none() && !is_new(last) {
            // From now on what changes is told.
            known.insert(uid, Known { until: last, decisions });
            return;
        }
        if before.is_some_and(|before| last <= before.until && before.decisions == decisions) {
            return;
        }
        let is_decided_anew = before.is_none_or(|before| before.decisions != decisions);
        known.insert(uid, Known { until: before.map_or(last, |before| before.until.max(last)), decisions });
        drop(known);
        for told in told::of_run(run, status, is_new, is_decided_anew, (&self.salt, now)) {
            self.send(told);
        }
    }

    /// A report has no identifier of its own.
    fn id_of(&self, report: &Report) -> String {
        format!("{}/egress/{}-{}", report.run, self.since.as_microsecond(), self.shared.next_number())
    }

    /// What the objects of runs tell of the time since then, and the last records lack, as entries: what a leader that ended may not have written.
    fn told_again<'a>(&self, runs: impl Iterator<Item = &'a ScriptRun>, recent: &[Record], since: Timestamp) -> Vec<Entry> {
        let last = |status: &ScriptRunStatus| status.audit.last().map(|event| event.time.0).filter(|last| *last >= since);
        let of_late = runs.filter_map(|run| run.status.as_ref().and_then(|status| Some((run, status, last(status)?))));
        let all = of_late.flat_map(|(run, status, last)| told::of_run(run, status, |time| time >= since, true, (&self.salt, last)));
        all.filter(|told| !told::is_known(told, recent)).map(|told| self.entry(told)).collect()
    }

    fn entry(&self, told: Told) -> Entry {
        let Told { type_, id, time, subject, data } = told;
        Entry { bytes: Record::new(type_, &self.origin, id, time, subject, data).entry(), since: Instant::now() }
    }

    fn send(&self, told: Told) {
        let is_connection = matches!(told.type_, RecordType::EgressGranted | RecordType::EgressRefused | RecordType::EgressCounted);
        let now = Instant::now();
        if is_connection && self.shared.queue().unwritten >= MANY_FOR_CONNECTIONS {
            // That is how they give way: nobody waits for it.
            self.shared.queue().lost += 1;
            return;
        }
        // Counted before it can be written.
        self.shared.came(now);
        if self.sender.try_send(self.entry(told)).is_err() {
            self.shared.went(1, Some(now));
            self.shared.queue().lost(now);
        }
    }
}

fn decisions_of(status: &ScriptRunStatus) -> u64 {
    let parts = status.decisions.iter().map(|decision| (&decision.permission, decision.verdict.as_str(), &decision.rule));
    hash_of(&parts.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;
    use paddock_audit::Signer;
    use paddock_crds::{AuditEvent, Decision, Verdict};
    use serde_json::json;

    use super::*;
    use crate::script_run::fixtures::{a_run, at};

    fn log() -> (Arc<Teller>, Audit, Sequencer) {
        let keys = Keys { signer: Signer::new("x", &[1; 32]).unwrap(), salt: Salt::new(&[2; 32]), origin: "x".into() };
        let (audit, sequencer) = open(keys, Bucket::of(Arc::new(InMemory::new())), at(0));
        let Audit::On(teller) = &audit else { panic!("a log") };
        (teller.clone(), audit, sequencer)
    }

    fn told(type_: RecordType) -> Told {
        Told { type_, id: "1".into(), time: "2026-01-01T00:00:00Z".into(), subject: None, data: json!({}) }
    }

    #[test]
    fn a_queue_is_behind_when_its_oldest_has_waited_when_it_is_full_and_after_a_loss() {
        let now = Instant::now();
        let later = now + PATIENCE * 2;
        let mut queue = Queue::default();
        assert!(!queue.is_behind(later));
        queue.came(now);
        queue.came(later);
        assert!(!queue.is_behind(now) && queue.is_behind(later));
        // It takes something, and the next has waited as long.
        queue.went(1, Some(now), later);
        assert!(queue.is_behind(later));
        queue.went(1, None, later);
        assert!(!queue.is_behind(later + PATIENCE * 2), "nothing waits");
        queue.unwritten = MANY;
        assert!(queue.is_behind(now));
        queue.unwritten = 0;
        queue.lost(later);
        assert!(queue.is_behind(later) && !queue.is_behind(later + PATIENCE * 2));
    }

    #[test]
    fn no_run_is_admitted_before_the_log_was_read() {
        assert_eq!((Audit::Off.look(), Audit::Unusable.look()), (LogSeen::Fine, LogSeen::Behind));
        let (teller, audit, _sequencer) = log();
        assert_eq!(audit.look(), LogSeen::Behind);
        teller.shared.is_open.store(true, Ordering::Release);
        teller.send(told(RecordType::RunStarted));
        assert_eq!(audit.count(), Count { seen: LogSeen::Fine, unwritten: 1, lost: 0 });
    }

    #[tokio::test(start_paused = true)]
    async fn what_there_is_no_room_for_is_counted_and_connections_give_way_first() {
        let (teller, audit, _sequencer) = log();
        for _ in 0..WAITING {
            teller.send(told(RecordType::EgressGranted));
        }
        assert_eq!((audit.count().unwritten, audit.count().lost), (WAITING as u64 / 2, WAITING as u64 / 2));
        for _ in 0..WAITING {
            teller.send(told(RecordType::RunStarted));
        }
        assert_eq!((audit.count().unwritten, audit.count().lost), (WAITING as u64, WAITING as u64));
        audit.flush().await;
    }

    fn events(names: &[(&str, i64)]) -> ScriptRunStatus {
        let time = |second| k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(at(second));
        let event =
            |(name, second): &(&str, i64)| AuditEvent { time: time(*second), type_: format!("dev.paddock.run.{name}.v1"), reason: None };
        ScriptRunStatus { audit: names.iter().map(event).collect(), ..ScriptRunStatus::default() }
    }

    #[test]
    fn each_event_is_told_once_whoever_saw_it_first() {
        let (teller, audit, _sequencer) = log();
        let run = a_run();
        let unwritten = || audit.count().unwritten;
        audit.tell_of_run(&run, &events(&[("received", -5)]), at(1));
        assert_eq!(unwritten(), 0, "that was told by the leader before");
        let mut decided = events(&[("received", -5)]);
        decided.decisions = vec![Decision { permission: "network:a".into(), verdict: Verdict::Granted, rule: "r".into() }];
        audit.tell_of_run(&run, &decided, at(1));
        assert_eq!(unwritten(), 1, "what it decided is not what is decided now");
        audit.tell_of_run(&run, &events(&[("received", -5)]), at(1));
        let unwritten = || audit.count().unwritten - 1;
        audit.tell_of_run(&run, &events(&[("received", -5), ("admitted", 1)]), at(1));
        assert_eq!(unwritten(), 1);
        // The write of `started` had no answer, and a pass sees it.
        for _ in 0..2 {
            audit.tell_of_run(&run, &events(&[("received", -5), ("admitted", 1), ("started", 2)]), at(3));
            assert_eq!(unwritten(), 2);
        }
        // What an older copy of the object shows is not told again.
        audit.tell_of_run(&run, &events(&[("received", -5), ("admitted", 1)]), at(4));
        assert_eq!(unwritten(), 2);
        audit.forget(&run.uid().unwrap());
        assert!(teller.known().is_empty());
    }

    #[test]
    fn a_new_leader_tells_what_the_last_records_lack() {
        let (teller, ..) = log();
        let mut run = a_run();
        run.status = Some(events(&[("received", -100), ("admitted", -3), ("started", -2)]));
        let entries = |recent: &[Record]| teller.told_again(std::iter::once(&run), recent, at(-60));
        let all = entries(&[]);
        assert_eq!(all.len(), 2, "what is older was written long ago");
        let recent: Vec<Record> = all[..1].iter().map(|entry| serde_json::from_slice(&entry.bytes).unwrap()).collect();
        assert_eq!(entries(&recent).len(), 1);
    }
}
