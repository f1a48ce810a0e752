//! The audit log: what runs did, what was decided of them and what they connected to, appended to a Merkle log in a bucket by the replica that leads.
//!
//! Passes hand in records and go on. A log that cannot be written keeps new runs from being admitted, and holds up nothing else.

pub(crate) mod key;
pub(crate) mod sequencer;
pub(crate) mod told;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use kube::ResourceExt as _;
use paddock_audit::{Record, Salt};
use paddock_crds::{ScriptRun, ScriptRunStatus};
use paddock_egress::wire::Report;
use tokio::sync::{mpsc, watch};

use crate::bucket::Bucket;
use crate::context::Context;
use key::Keys;
use sequencer::Sequencer;
use told::Told;

/// Records that wait to be written.
const WAITING: usize = 8192;
/// For so long a record may wait before no new run is admitted.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a replica that gives up its lease writes on.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What a pass knows of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LogSeen {
    /// There is none, or it takes what is told.
    #[default]
    Fine,
    /// It was not read yet, or has taken nothing for too long.
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

/// An entry on its way, and by what the event is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    id: String,
    bytes: Vec<u8>,
}

/// What is shared between those who tell and the one who writes.
struct Shared {
    /// The log was found and can be gone on with.
    is_open: AtomicBool,
    /// Since when something waits, as far as nothing was written since.
    waits_since: Mutex<Option<Instant>>,
    unwritten: watch::Sender<u64>,
    lost: AtomicU64,
    /// Makes identifiers of what has none of its own.
    number: AtomicU64,
}

/// The half for those who tell. Without a log nothing is.
#[derive(Clone, Default)]
pub(crate) struct Audit(Option<Arc<Teller>>);

/// Makes entries of what is told, and hands them on.
pub(crate) struct Teller {
    origin: String,
    salt: Salt,
    sender: mpsc::Sender<Entry>,
    shared: Arc<Shared>,
    /// By which identifiers of this process differ from those of others.
    since: i64,
}

/// The half for the one who writes.
pub(crate) struct Inbox {
    receiver: mpsc::Receiver<Entry>,
    shared: Arc<Shared>,
}

/// Both halves, for a replica that leads since `now`. The log is not looked at yet.
pub(crate) fn open(keys: Keys, bucket: Bucket, now: Timestamp) -> (Audit, Sequencer) {
    let (sender, receiver) = mpsc::channel(WAITING);
    let shared = Arc::new(Shared {
        is_open: AtomicBool::new(false),
        waits_since: Mutex::default(),
        unwritten: watch::Sender::new(0),
        lost: AtomicU64::new(0),
        number: AtomicU64::new(0),
    });
    let Keys { signer, salt, origin } = keys;
    let teller = Arc::new(Teller { origin, salt, sender, shared: shared.clone(), since: now.as_microsecond() });
    (Audit(Some(teller.clone())), Sequencer { teller, inbox: Inbox { receiver, shared }, bucket, signer })
}

impl Shared {
    fn waits(&self) {
        self.unwritten.send_modify(|unwritten| *unwritten += 1);
        self.waits_since.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Instant::now);
    }

    fn wrote(&self, count: usize) {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.unwritten.send_modify(|unwritten| *unwritten = unwritten.saturating_sub(count));
        let is_done = *self.unwritten.borrow() == 0;
        *self.waits_since.lock().unwrap_or_else(PoisonError::into_inner) = (!is_done).then(Instant::now);
    }
}

impl Audit {
    /// How the log is.
    pub(crate) fn look(&self) -> LogSeen {
        let Some(told) = &self.0 else { return LogSeen::Fine };
        let waits_since = *told.shared.waits_since.lock().unwrap_or_else(PoisonError::into_inner);
        let is_late = waits_since.is_some_and(|since| since.elapsed() > PATIENCE);
        if is_late || !told.shared.is_open.load(Ordering::Acquire) { LogSeen::Behind } else { LogSeen::Fine }
    }

    /// For metrics.
    pub(crate) fn count(&self) -> Count {
        let Some(told) = &self.0 else { return Count::default() };
        let (unwritten, lost) = (*told.shared.unwritten.borrow(), told.shared.lost.load(Ordering::Relaxed));
        Count { seen: self.look(), unwritten, lost }
    }

    /// What a write of a run's status has made known.
    pub(crate) fn tell_of_write(&self, before: Option<&ScriptRunStatus>, after: &ScriptRun, now: Timestamp) {
        let Some(told) = &self.0 else { return };
        for one in told::of_write(before, after, &told.salt, now) {
            told.send(one);
        }
    }

    /// A run was deleted before it was over.
    pub(crate) fn tell_of_deletion(&self, run: &ScriptRun, now: Timestamp) {
        let Some(told) = &self.0 else { return };
        told.send(told::of_deletion(run, now));
    }

    /// A connection is over, or was refused.
    pub(crate) fn tell_of_connection(&self, report: &Report, context: &Context) {
        let Some(told) = &self.0 else { return };
        let (namespace, name) = report.name.split_once('/').unwrap_or_default();
        let run = context.run(namespace, name).filter(|run| run.uid().as_deref() == Some(&report.run));
        let given = context.given(&report.run);
        let number = told.shared.number.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}/egress/{}-{number}", report.run, told.since);
        told.send(told::of_connection(report, run.as_ref(), given.as_ref(), id, context.now()));
    }

    /// Waits until everything that was told is written, for a while.
    pub(crate) async fn flush(&self) {
        let Some(told) = &self.0 else { return };
        let mut unwritten = told.shared.unwritten.subscribe();
        if tokio::time::timeout(LAST_WORDS, unwritten.wait_for(|unwritten| *unwritten == 0)).await.is_err() {
            tracing::warn!(unwritten = *told.shared.unwritten.borrow(), "records of the audit log were not written");
        }
    }
}

impl Teller {
    /// What the objects of runs tell of the time since then, as entries: what a leader that ended may not have written.
    fn told_again(&self, runs: &[ScriptRun], since: Timestamp) -> Vec<Entry> {
        let last = |run: &ScriptRun| run.status.as_ref().and_then(|status| status.audit.last()).map(|event| event.time.0);
        let recent = runs.iter().filter_map(|run| Some((run, last(run).filter(|last| *last >= since)?)));
        let all = recent.flat_map(|(run, last)| told::of_write(None, run, &self.salt, last));
        all.filter(|told| told.time.parse::<Timestamp>().is_ok_and(|time| time >= since)).map(|told| self.entry(told)).collect()
    }

    fn entry(&self, told: Told) -> Entry {
        let Told { type_, id, time, subject, data } = told;
        Entry { bytes: Record::new(type_, &self.origin, id.clone(), time, subject, data).entry(), id }
    }

    fn send(&self, told: Told) {
        // Counted before it can be written.
        self.shared.waits();
        if self.sender.try_send(self.entry(told)).is_err() {
            self.shared.unwritten.send_modify(|unwritten| *unwritten = unwritten.saturating_sub(1));
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;
    use paddock_audit::{RecordType, Signer};
    use serde_json::json;

    use super::*;

    fn log() -> (Audit, Sequencer) {
        let keys = Keys { signer: Signer::new("x", &[1; 32]).unwrap(), salt: Salt::new(&[2; 32]), origin: "x".into() };
        open(keys, Bucket::in_memory(Arc::new(InMemory::new())), Timestamp::UNIX_EPOCH)
    }

    fn told() -> Told {
        Told { type_: RecordType::RunStarted, id: "1".into(), time: "2026-01-01T00:00:00Z".into(), subject: None, data: json!({}) }
    }

    #[test]
    fn no_run_is_admitted_before_the_log_was_read_or_while_it_takes_nothing() {
        assert_eq!(Audit::default().look(), LogSeen::Fine);
        let (audit, sequencer) = log();
        assert_eq!(audit.look(), LogSeen::Behind, "it was not read yet");
        let shared = &sequencer.inbox.shared;
        shared.is_open.store(true, Ordering::Release);
        let teller = audit.0.as_ref().unwrap();
        teller.send(told());
        teller.send(told());
        assert_eq!((audit.look(), audit.count().unwritten), (LogSeen::Fine, 2));
        let long_ago = Instant::now().checked_sub(PATIENCE * 2);
        *shared.waits_since.lock().unwrap() = long_ago;
        assert_eq!(audit.look(), LogSeen::Behind);
        shared.wrote(1);
        assert_eq!(audit.look(), LogSeen::Fine, "it takes what is told, if slowly");
        *shared.waits_since.lock().unwrap() = long_ago;
        shared.wrote(1);
        assert_eq!((audit.look(), audit.count().unwritten), (LogSeen::Fine, 0));
    }

    #[tokio::test]
    async fn what_there_is_no_room_for_is_counted_and_holds_nobody_up() {
        let (audit, _sequencer) = log();
        for _ in 0..WAITING + 3 {
            audit.0.as_ref().unwrap().send(told());
        }
        assert_eq!(audit.count(), Count { seen: LogSeen::Behind, unwritten: WAITING as u64, lost: 3 });
        tokio::time::pause();
        audit.flush().await;
    }
}
