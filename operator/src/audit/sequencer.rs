//! The one who writes the log: takes what waits, and appends it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use paddock_audit::{RecordType, Signer, WIDTH};
use serde_json::json;
use tokio::time::Instant;

use super::log::{Log, State};
use super::told::Told;
use super::{Entry, Inbox, LogSeen, Shared, Teller, kept};
use crate::bucket::Bucket;
use crate::context::Context;

/// How long what comes is gathered before it is written.
const GATHER: Duration = Duration::from_millis(500);
/// After what went wrong.
const PAUSE: Duration = Duration::from_secs(1);
/// What runs say of the time so long before the last record is told again by a new leader, if it is not among the last records.
const OVERLAP: SignedDuration = SignedDuration::from_secs(60);
/// How often it is looked whether runs need not wait for the log any more.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often it is looked whether all runs were listed.
const LISTED_EVERY: Duration = Duration::from_millis(100);
/// How often the checkpoint is kept in the cluster, if it is another.
const KEEP_EVERY: Duration = Duration::from_secs(60);

/// What the log is written with.
pub(crate) struct Sequencer {
    pub(super) teller: Arc<Teller>,
    pub(super) inbox: Inbox,
    pub(super) bucket: Bucket,
    pub(super) signer: Signer,
}

/// What this replica knows of its own writing.
#[derive(Default)]
struct Written {
    /// Taken, and not known to be written.
    waiting: Vec<Entry>,
    /// What was last signed.
    last: Option<State>,
    /// What was to be signed after that when something went wrong, and by how many entries: it may have been.
    attempt: Option<(State, usize)>,
    /// Records that were lost, of which the log tells.
    lost: u64,
    /// What was last kept in the cluster.
    kept: Option<State>,
    /// When that was last tried.
    kept_at: Option<Instant>,
    /// Why it could not be written last.
    why: String,
}

impl Sequencer {
    /// Writes until this replica does not lead any more.
    pub(crate) async fn keep(self, context: Arc<Context>) {
        let shared = self.teller.shared.clone();
        tokio::join!(self.write(&context), wake_who_waited(&context, &shared));
    }

    async fn write(mut self, context: &Context) {
        let mut written = Written::default();
        loop {
            if let Err(error) = self.go_on(context, &mut written).await {
                let why = format!("{error:#}");
                if why != written.why {
                    tracing::warn!(error = why, "the audit log cannot be written; it is tried again every second");
                    written.why = why;
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Reads the log and appends what comes, until something goes wrong.
    async fn go_on(&mut self, context: &Context, written: &mut Written) -> Result<()> {
        let Self { teller, inbox, bucket, signer } = self;
        let least = match written.last {
            None => kept::entries(&context.client, &context.settings.operator_namespace, &signer.verifier()).await?,
            Some(last) => last.size,
        };
        let leads = || context.fence.is_up();
        let mut log = Log::open(bucket, signer, &leads, |found| written.is_the_log(found, least)).await?;
        let done = written.attempt.take().filter(|(attempt, _)| *attempt == log.state()).map_or(0, |(_, entries)| entries);
        written.wrote(done, &log, inbox);
        if written.last.is_none() {
            let first = first_words(&log, context, teller).await?;
            inbox.put_first(&mut written.waiting, first);
        }
        written.last = Some(log.state());
        teller.shared.is_open.store(true, Ordering::Release);
        loop {
            // What is taken stays where the time is over.
            let Ok(taken) = tokio::time::timeout(KEEP_EVERY, inbox.take(&mut written.waiting)).await else {
                written.keep_checkpoint(&log, context).await;
                continue;
            };
            taken?;
            written.tell_of_the_lost(teller, inbox, context.now());
            let batch: Vec<Vec<u8>> = written.waiting.iter().take(WIDTH).map(|entry| entry.bytes.clone()).collect();
            let entries = batch.len();
            if let Err(error) = log.append(batch).await {
                written.attempt = Some((log.state(), entries));
                return Err(error);
            }
            written.wrote(entries, &log, inbox);
            written.why.clear();
            if written.kept_at.is_none_or(|at| at.elapsed() >= KEEP_EVERY) {
                written.keep_checkpoint(&log, context).await;
            }
            log.remove_parts().await;
        }
    }
}

/// Runs that were held back by the log look again as soon as it is no more behind, by whatever that came about.
async fn wake_who_waited(context: &Context, shared: &Shared) {
    let mut was = shared.look();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let is = shared.look();
        if (was, is) == (LogSeen::Behind, LogSeen::Fine) {
            context.wake_concerned();
        }
        was = is;
    }
}

impl Written {
    /// Whoever may write to the bucket can put back an older state, which is signed just as well.
    fn is_the_log(&self, found: State, least: u64) -> Result<()> {
        let is_attempt = self.attempt.is_some_and(|(attempt, _)| attempt == found);
        match self.last {
            Some(last) => ensure!(
                last == found || is_attempt,
                "the log in the bucket has {} entries, and is not the one of {} that was written last: it was put back, or another writes to it",
                found.size,
                last.size
            ),
            None => ensure!(
                found.size >= least,
                "the log in the bucket has {} entries, and one of {least} was signed: it was put back (the ConfigMap paddock-audit has that checkpoint)",
                found.size
            ),
        }
        Ok(())
    }

    fn wrote(&mut self, entries: usize, log: &Log<'_>, inbox: &Inbox) {
        self.waiting.drain(..entries);
        self.last = self.last.map(|_| log.state());
        if entries > 0 {
            inbox.shared.went(entries, self.waiting.first().map(|entry| entry.since));
        }
    }

    async fn keep_checkpoint(&mut self, log: &Log<'_>, context: &Context) {
        if self.kept == Some(log.state()) {
            return;
        }
        self.kept_at = Some(Instant::now());
        match kept::put(&context.client, &context.settings.operator_namespace, &log.checkpoint()).await {
            Ok(()) => self.kept = Some(log.state()),
            Err(error) => tracing::warn!(error = format!("{error:#}"), "the checkpoint of the audit log is not kept in the cluster"),
        }
    }

    fn tell_of_the_lost(&mut self, teller: &Teller, inbox: &Inbox, now: Timestamp) {
        let lost = teller.shared.queue().lost;
        if lost > self.lost {
            let records = lost - std::mem::replace(&mut self.lost, lost);
            inbox.put_first(&mut self.waiting, vec![of_the_log(teller, RecordType::RecordsLost, json!({ "records": records }), now)]);
        }
    }
}

impl Inbox {
    /// Puts what did not come from outside before everything else.
    fn put_first(&self, waiting: &mut Vec<Entry>, entries: Vec<Entry>) {
        for entry in &entries {
            self.shared.came(entry.since);
        }
        waiting.splice(0..0, entries);
    }

    /// What is there, waiting for the first. One more than is written at once: where more comes than that, the next is known, and since when it waits.
    async fn take(&mut self, waiting: &mut Vec<Entry>) -> Result<()> {
        if waiting.is_empty() {
            waiting.push(self.receiver.recv().await.context("nobody tells anything any more")?);
            tokio::time::sleep(GATHER).await;
        }
        while waiting.len() <= WIDTH
            && let Ok(entry) = self.receiver.try_recv()
        {
            waiting.push(entry);
        }
        Ok(())
    }
}

/// The first words of a leader: that it goes on, and what the one before it may not have written.
async fn first_words(log: &Log<'_>, context: &Context, teller: &Teller) -> Result<Vec<Entry>> {
    let size = log.state().size;
    let recent = log.recent().await?;
    let mut first = Vec::new();
    // Those of the log itself are written before what has waited longer.
    let of_runs = recent.iter().filter(|record| record.subject.is_some());
    if let Some(last) = of_runs.filter_map(|record| record.time.parse::<Timestamp>().ok()).max() {
        while !context.ledger.is_listed() {
            tokio::time::sleep(LISTED_EVERY).await;
        }
        let runs = context.runs();
        let runs = runs.iter().filter_map(|run| run.0.as_ref().ok()).map(|watched| &watched.run);
        first.extend(teller.told_again(runs, &recent, last.saturating_sub(OVERLAP).unwrap_or(last)));
    }
    tracing::info!(size, again = first.len(), verifier = log.verifier(), "goes on with the audit log");
    first.push(of_the_log(teller, RecordType::LogOpened, json!({ "entries": size }), context.now()));
    Ok(first)
}

fn of_the_log(teller: &Teller, type_: RecordType, data: serde_json::Value, now: Timestamp) -> Entry {
    let id = format!("{}/{}-{}", type_.as_str(), teller.since.as_microsecond(), teller.shared.next_number());
    teller.entry(Told { type_, id, time: now.to_string(), subject: None, data })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use futures::FutureExt as _;
    use http::Method;
    use object_store::memory::InMemory;
    use object_store::{ObjectStoreExt as _, PutPayload};
    use paddock_audit::{Record, Salt, bundle_path, entries_of};

    use super::super::flaky::{Fails, Flaky};
    use super::super::key::Keys;
    use super::super::{Audit, open};
    use super::*;
    use crate::fake_api::{Exchange, context, context_of, empty_api, expect};
    use crate::script_run::fixtures::{a_run, at};

    const KEPT: &str = "/api/v1/namespaces/paddock-system/configmaps/paddock-audit";

    /// A replica that leads from this second on, until what it is told is written and the checkpoint kept.
    async fn lead(store: &Arc<InMemory>, second: i64, exchanges: Vec<Exchange>, tell: impl FnOnce(&Audit)) {
        let keys = Keys { signer: Signer::new("x", &[1; 32]).unwrap(), salt: Salt::new(&[2; 32]), origin: "x".into() };
        let (audit, sequencer) = open(keys, Bucket::of(store.clone()), at(second));
        let (context, fake) = context(exchanges, &[]);
        context.fence.raise_now();
        context.ledger.list_begins();
        context.ledger.list_ends();
        tell(&audit);
        let writing = tokio::spawn(sequencer.keep(context));
        // The checkpoint is kept after it was signed.
        fake.finished().await;
        assert_eq!((audit.count().unwritten, audit.look()), (0, LogSeen::Fine));
        writing.abort();
    }

    async fn written(store: &InMemory, count: usize) -> Vec<Record> {
        let bundle = store.get(&bundle_path(0, count).into()).await.unwrap().bytes().await.unwrap();
        entries_of(&bundle).unwrap().iter().map(|entry| serde_json::from_slice(entry).unwrap()).collect()
    }

    fn kept(note: &[u8]) -> serde_json::Value {
        json!({ "metadata": { "name": "paddock-audit" }, "data": { "checkpoint": String::from_utf8_lossy(note) } })
    }

    #[tokio::test]
    async fn one_leader_goes_on_after_the_other_and_the_checkpoint_is_kept() {
        let store = Arc::new(InMemory::new());
        let none = || expect(Method::GET, KEPT, 404, json!("none"));
        let made = expect(Method::POST, "/api/v1/namespaces/paddock-system/configmaps", 201, kept(b"")).holding("x\\n2\\n");
        lead(&store, 0, vec![none(), none(), made], |audit| audit.tell_of_deletion(&a_run(), at(1))).await;
        let types: Vec<RecordType> = written(&store, 2).await.iter().map(|record| record.type_).collect();
        assert_eq!(types, [RecordType::LogOpened, RecordType::RunDeleted]);

        let note = store.get(&"checkpoint".into()).await.unwrap().bytes().await.unwrap();
        let there = || expect(Method::GET, KEPT, 200, kept(&note));
        let exchanged = expect(Method::PUT, KEPT, 200, kept(b"")).holding("x\\n3\\n");
        lead(&store, 10, vec![there(), there(), exchanged], |_| ()).await;
        assert_eq!(written(&store, 3).await[2].data["entries"], 2);
    }

    /// Each request to the bucket fails once, before it is done and after it: nothing is missing, nothing is there twice, and all of it verifies.
    #[tokio::test(start_paused = true)]
    async fn whatever_request_fails_each_record_is_written_once() {
        for fails in [Fails::Unheard, Fails::Unanswered] {
            for before in 0.. {
                let inner = Arc::new(InMemory::new());
                let flaky = Arc::new(Flaky::new(inner.clone(), before, fails));
                // One after the other, so that bundles are gone on with; then more than one has room for.
                for (leader, batches) in [(0, [1, 2, 40]), (1, [1, 250, 1])] {
                    let keys = Keys { signer: Signer::new("x", &[1; 32]).unwrap(), salt: Salt::new(&[2; 32]), origin: "x".into() };
                    let (audit, sequencer) = open(keys, Bucket::of(flaky.clone()), at(leader));
                    let context = context_of(empty_api(), &[]);
                    context.fence.raise_now();
                    context.ledger.list_begins();
                    context.ledger.list_ends();
                    let writing = tokio::spawn(sequencer.keep(context));
                    for (number, batch) in batches.into_iter().enumerate() {
                        for one in 0..batch {
                            let mut run = a_run();
                            run.metadata.uid = Some(format!("{leader}-{number}-{one}"));
                            audit.tell_of_deletion(&run, at(1));
                        }
                        audit.flush().await;
                        assert_eq!(audit.count().unwritten, 0, "{fails:?} after {before}");
                    }
                    writing.abort();
                    let _ = writing.await;
                }
                let mut ids = BTreeMap::new();
                let read = |path: &str| Ok(files(&inner, path));
                let verifier = Signer::new("x", &[1; 32]).unwrap().verifier();
                paddock_audit::verify(read, &verifier, &[], |_, entry| {
                    let record: Record = serde_json::from_slice(entry).unwrap();
                    *ids.entry(record.id).or_insert(0) += 1;
                })
                .unwrap_or_else(|error| panic!("{fails:?} after {before}: {error}"));
                assert!(ids.values().all(|count| *count == 1) && ids.len() == 2 + 43 + 252, "{fails:?} after {before}: {}", ids.len());
                if !flaky.has_failed() {
                    assert!(before > 30, "only {before} requests were made");
                    break;
                }
            }
        }
    }

    fn files(store: &InMemory, path: &str) -> Option<Vec<u8>> {
        let read = async { store.get(&path.into()).await.ok()?.bytes().await.ok() };
        read.now_or_never().flatten().map(|bytes| bytes.to_vec())
    }

    /// Whoever puts an earlier state back is not helped to write anew what came after it.
    #[tokio::test(start_paused = true)]
    async fn no_leader_goes_on_from_less_than_was_kept() {
        let store = Arc::new(InMemory::new());
        let signer = Signer::new("x", &[1; 32]).unwrap();
        let tree = paddock_audit::Tree::default();
        store.put(&"checkpoint".into(), PutPayload::from(signer.sign(0, tree.root()).into_bytes())).await.unwrap();
        let keys = Keys { signer: Signer::new("x", &[1; 32]).unwrap(), salt: Salt::new(&[2; 32]), origin: "x".into() };
        let (audit, sequencer) = open(keys, Bucket::of(store.clone()), at(0));
        let later = kept(signer.sign(5, tree.root()).as_bytes());
        let (context, fake) = context((0..3).map(|_| expect(Method::GET, KEPT, 200, later.clone())).collect(), &[]);
        context.fence.raise_now();
        let writing = tokio::spawn(sequencer.keep(context));
        fake.finished().await;
        assert_eq!(audit.look(), LogSeen::Behind);
        writing.abort();
    }

    const fn state(size: u64, root: u8) -> State {
        State { size, root: [root; 32] }
    }

    #[test]
    fn the_log_is_where_it_was_left_or_where_the_last_attempt_would_have_it() {
        let new = Written::default();
        assert!(new.is_the_log(state(5, 1), 5).is_ok() && new.is_the_log(state(9, 1), 5).is_ok());
        assert!(new.is_the_log(state(4, 1), 5).unwrap_err().to_string().contains("one of 5 was signed"));
        let mut written = Written { last: Some(state(5, 1)), ..Written::default() };
        assert!(written.is_the_log(state(5, 1), 0).is_ok());
        for other in [state(4, 1), state(5, 2), state(7, 3)] {
            assert!(written.is_the_log(other, 0).is_err());
        }
        written.attempt = Some((state(7, 3), 2));
        assert!(written.is_the_log(state(7, 3), 0).is_ok() && written.is_the_log(state(5, 1), 0).is_ok());
        assert!(written.is_the_log(state(8, 3), 0).is_err());
    }
}
