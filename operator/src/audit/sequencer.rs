//! The one who writes the log: takes what waits, appends it, and signs a checkpoint. A file that a checkpoint covers is never written again.
//!
//! Two replicas never write at once, by the lease. Where they do all the same, as a process that was frozen would, each file is created and not
//! overwritten, and the checkpoint is exchanged only for the one that was read: the later of the two finds that and begins anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures::TryStreamExt as _;
use jiff::{SignedDuration, Timestamp};
use object_store::{Error as StoreError, ObjectMeta, ObjectStoreExt as _, PutMode, PutOptions, PutPayload, PutResult, UpdateVersion};
use paddock_audit::{Hash, Object, Record, RecordType, Signer, WIDTH, Writer, bundle_path, entries_of};
use paddock_crds::ScriptRun;
use serde_json::json;

use super::told::Told;
use super::{Entry, Inbox, Teller};
use crate::bucket::Bucket;
use crate::context::Context;

/// Where the checkpoint lies.
const CHECKPOINT: &str = "checkpoint";
/// How long what comes is gathered before it is written.
const GATHER: Duration = Duration::from_millis(500);
/// Longest time that one request may take: with it, a leader that lost its lease has no request under way when the next one begins.
const LIMIT: Duration = Duration::from_secs(10);
/// After what went wrong.
const PAUSE: Duration = Duration::from_secs(1);
/// What runs say of the time so long before the last record is told again by a new leader, if it is not among the last records.
const OVERLAP: SignedDuration = SignedDuration::from_secs(60);
/// How often it is looked whether all runs were listed.
const LISTED_EVERY: Duration = Duration::from_millis(100);

/// A log that was read, and is gone on with.
struct Log<'a> {
    bucket: &'a Bucket,
    signer: &'a Signer,
    writer: Writer,
    /// Of the checkpoint; `None` before there is one.
    version: Option<UpdateVersion>,
    /// What lies where nothing is yet by the checkpoint: what a leader wrote that ended before it had signed it.
    ahead: BTreeMap<String, UpdateVersion>,
}

/// What was to be written when something went wrong. It may have been written.
struct Attempt {
    size: u64,
    root: Hash,
    entries: usize,
}

/// What the log is written with.
pub(crate) struct Sequencer {
    pub(super) teller: Arc<Teller>,
    pub(super) inbox: Inbox,
    pub(super) bucket: Bucket,
    pub(super) signer: Signer,
}

/// What was taken and is not known to be written.
#[derive(Default)]
struct Waiting {
    entries: Vec<Entry>,
    attempt: Option<Attempt>,
    /// Records that were lost, of which the log tells.
    lost: u64,
}

impl Sequencer {
    /// Writes until this replica does not lead any more.
    pub(crate) async fn keep(mut self, context: Arc<Context>) {
        let (mut waiting, mut has_begun, mut told) = (Waiting::default(), false, String::new());
        loop {
            let failed = self.go_on(&context, &mut waiting, &mut has_begun, &mut told).await.err();
            let why = failed.map_or_else(String::new, |error| format!("{error:#}"));
            if why != told {
                tracing::warn!(error = why, "the audit log cannot be written; it is tried again every second");
                told = why;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Reads the log and appends what comes, until something goes wrong.
    async fn go_on(&mut self, context: &Context, waiting: &mut Waiting, has_begun: &mut bool, told: &mut String) -> Result<()> {
        let Self { teller, inbox, bucket, signer } = self;
        let mut log = Log::open(bucket, signer).await?;
        let written = waiting.attempt.take().filter(|attempt| log.is(attempt)).map_or(0, |attempt| attempt.entries);
        inbox.wrote(waiting.entries.drain(..written).count());
        if !*has_begun {
            let first = first_words(&log, context, teller).await?;
            inbox.put_first(&mut waiting.entries, first);
            *has_begun = true;
        }
        inbox.shared.is_open.store(true, Ordering::Release);
        loop {
            inbox.take(&mut waiting.entries, WIDTH).await?;
            let lost = teller.shared.lost.load(Ordering::Relaxed);
            if lost > waiting.lost {
                let records = lost - std::mem::replace(&mut waiting.lost, lost);
                let entry = of_the_log(teller, RecordType::RecordsLost, json!({ "records": records }), context.now());
                inbox.put_first(&mut waiting.entries, vec![entry]);
            }
            ensure!(context.fence.is_up(), "this replica of the operator does not lead");
            let batch: Vec<Vec<u8>> = waiting.entries.iter().take(WIDTH).map(|entry| entry.bytes.clone()).collect();
            let entries = batch.len();
            if let Err(error) = log.append(batch).await {
                let tree = log.writer.tree();
                waiting.attempt = Some(Attempt { size: tree.size(), root: tree.root(), entries });
                return Err(error);
            }
            inbox.wrote(waiting.entries.drain(..entries).count());
            told.clear();
        }
    }
}

impl Inbox {
    fn wrote(&self, count: usize) {
        if count > 0 {
            self.shared.wrote(count);
        }
    }

    /// Puts what did not come from outside before everything else.
    fn put_first(&self, waiting: &mut Vec<Entry>, entries: Vec<Entry>) {
        for _ in &entries {
            self.shared.waits();
        }
        waiting.splice(0..0, entries);
    }

    /// What is there, up to so many; waits for the first.
    async fn take(&mut self, waiting: &mut Vec<Entry>, most: usize) -> Result<()> {
        if waiting.is_empty() {
            waiting.push(self.receiver.recv().await.context("nobody tells anything any more")?);
            tokio::time::sleep(GATHER).await;
        }
        while waiting.len() < most
            && let Ok(entry) = self.receiver.try_recv()
        {
            waiting.push(entry);
        }
        Ok(())
    }
}

/// The first words of a leader: that it goes on, and what the one before it may not have written.
async fn first_words(log: &Log<'_>, context: &Context, teller: &Teller) -> Result<Vec<Entry>> {
    let size = log.writer.tree().size();
    let recent = log.recent().await?;
    let mut first = vec![of_the_log(teller, RecordType::LogOpened, json!({ "entries": size }), context.now())];
    if let Some(last) = recent.iter().filter_map(|record| record.time.parse::<Timestamp>().ok()).max() {
        while !context.ledger.is_listed() {
            tokio::time::sleep(LISTED_EVERY).await;
        }
        let runs = context.runs();
        let runs: Vec<ScriptRun> = runs.iter().filter_map(|run| run.0.as_ref().ok()).map(|watched| watched.run.clone()).collect();
        let known: BTreeSet<&str> = recent.iter().map(|record| record.id.as_str()).collect();
        let again = teller.told_again(&runs, last.saturating_sub(OVERLAP).unwrap_or(last));
        first.extend(again.into_iter().filter(|entry| !known.contains(entry.id.as_str())));
    }
    tracing::info!(size, again = first.len() - 1, "goes on with the audit log");
    Ok(first)
}

fn of_the_log(teller: &Teller, type_: RecordType, data: serde_json::Value, now: Timestamp) -> Entry {
    let number = teller.shared.number.fetch_add(1, Ordering::Relaxed);
    let id = format!("{}/{}-{number}", type_.as_str(), teller.since);
    teller.entry(Told { type_, id, time: now.to_string(), subject: None, data })
}

impl<'a> Log<'a> {
    /// Reads the checkpoint and what is needed to go on after it.
    async fn open(bucket: &'a Bucket, signer: &'a Signer) -> Result<Self> {
        let Some((note, version)) = get(bucket, CHECKPOINT).await? else {
            let log = Self { bucket, signer, writer: Writer::default(), version: None, ahead: BTreeMap::new() };
            return log.looking_ahead().await;
        };
        let verifier = signer.verifier();
        let checkpoint = verifier.open(&note).with_context(|| format!("the log in the bucket is not that of {}", verifier.origin()))?;
        let mut files = Vec::new();
        for path in Writer::needs(checkpoint.size) {
            files.push(get(bucket, &path).await?.with_context(|| format!("{path} is not in the bucket"))?.0);
        }
        let writer = Writer::resume(&checkpoint, &files).context("the last files of the log are not those of its checkpoint")?;
        Self { bucket, signer, writer, version: Some(version), ahead: BTreeMap::new() }.looking_ahead().await
    }

    async fn looking_ahead(mut self) -> Result<Self> {
        for (folder, full) in self.writer.may_lie_ahead() {
            let listed = self.bucket.store.list(Some(&self.bucket.path(&folder)?)).try_collect::<Vec<ObjectMeta>>();
            let listed =
                tokio::time::timeout(LIMIT, listed).await.context("the bucket does not answer")?.context("the bucket cannot be listed")?;
            for meta in listed {
                if let Some(width) = meta.location.filename().map(ToOwned::to_owned) {
                    self.ahead.insert(format!("{folder}/{width}"), UpdateVersion { e_tag: meta.e_tag, version: meta.version });
                }
            }
            if let Some(meta) = head(self.bucket, &full).await? {
                self.ahead.insert(full, UpdateVersion { e_tag: meta.e_tag, version: meta.version });
            }
        }
        Ok(self)
    }

    /// Whether the checkpoint in the bucket is the one that was to be written.
    fn is(&self, attempt: &Attempt) -> bool {
        let tree = self.writer.tree();
        (tree.size(), tree.root()) == (attempt.size, attempt.root)
    }

    /// The last records: of the bundle that is not full, and of the one before it.
    async fn recent(&self) -> Result<Vec<Record>> {
        let full = self.writer.tree().size() / WIDTH as u64;
        let mut entries = Vec::new();
        if let Some(before) = full.checked_sub(1) {
            let path = bundle_path(before, WIDTH);
            let bundle = get(self.bucket, &path).await?.with_context(|| format!("{path} is not in the bucket"))?.0;
            entries = entries_of(&bundle)?;
        }
        entries.extend_from_slice(self.writer.last());
        // What another version wrote need not be readable.
        Ok(entries.iter().filter_map(|entry| serde_json::from_slice(entry).ok()).collect())
    }

    /// Writes entries, the hashes, and then the checkpoint that covers them: at most 256 entries.
    async fn append(&mut self, entries: Vec<Vec<u8>>) -> Result<()> {
        for Object { path, bytes } in self.writer.append(entries) {
            self.put(&path, bytes).await?;
        }
        let tree = self.writer.tree();
        let note = self.signer.sign(tree.size(), tree.root());
        let mode = self.version.clone().map_or(PutMode::Create, PutMode::Update);
        let put = put(self.bucket, CHECKPOINT, note.into_bytes(), mode).await?;
        let put = put.context("somebody else has written the checkpoint")?;
        self.version = Some(UpdateVersion { e_tag: put.e_tag, version: put.version });
        Ok(())
    }

    /// What no checkpoint covers is replaced; everything else is only made.
    async fn put(&mut self, path: &str, bytes: Vec<u8>) -> Result<()> {
        let mode = self.ahead.remove(path).map_or(PutMode::Create, PutMode::Update);
        if put(self.bucket, path, bytes.clone(), mode).await?.is_some() {
            return Ok(());
        }
        // This very attempt may have been made before.
        match get(self.bucket, path).await? {
            Some((there, _)) if there == bytes => Ok(()),
            _ => bail!("{path} is in the bucket already, and is another"),
        }
    }
}

async fn get(bucket: &Bucket, name: &str) -> Result<Option<(Vec<u8>, UpdateVersion)>> {
    let path = bucket.path(name)?;
    let read = async {
        let got = bucket.store.get(&path).await?;
        let version = UpdateVersion { e_tag: got.meta.e_tag.clone(), version: got.meta.version.clone() };
        Ok((got.bytes().await?.to_vec(), version))
    };
    match tokio::time::timeout(LIMIT, read).await.context("the bucket does not answer")? {
        Ok(read) => Ok(Some(read)),
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("{name} cannot be read")),
    }
}

async fn head(bucket: &Bucket, name: &str) -> Result<Option<ObjectMeta>> {
    let path = bucket.path(name)?;
    match tokio::time::timeout(LIMIT, bucket.store.head(&path)).await.context("the bucket does not answer")? {
        Ok(meta) => Ok(Some(meta)),
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("{name} cannot be looked at")),
    }
}

/// `None` if what is there is not what the mode asks for.
async fn put(bucket: &Bucket, name: &str, bytes: Vec<u8>, mode: PutMode) -> Result<Option<PutResult>> {
    let path = bucket.path(name)?;
    let options = PutOptions { mode, ..PutOptions::default() };
    let put = bucket.store.put_opts(&path, PutPayload::from(bytes), options);
    match tokio::time::timeout(LIMIT, put).await.context("the bucket does not answer")? {
        Ok(put) => Ok(Some(put)),
        Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("{name} cannot be written")),
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;
    use paddock_audit::{Broken, Verified, verify};

    use super::*;

    fn signer() -> Signer {
        Signer::new("paddock.dev/audit/test", &[5; 32]).unwrap()
    }

    fn bucket() -> Bucket {
        Bucket::in_memory(Arc::new(InMemory::new()))
    }

    fn entries(range: std::ops::Range<usize>) -> Vec<Vec<u8>> {
        range.map(|number| number.to_string().into_bytes()).collect()
    }

    /// Everything in the bucket, as who copies it has it.
    async fn verified(bucket: &Bucket) -> Result<(Verified, Vec<Vec<u8>>), Broken> {
        let mut files = BTreeMap::new();
        for meta in bucket.store.list(None).try_collect::<Vec<_>>().await.unwrap() {
            let bytes = bucket.store.get(&meta.location).await.unwrap().bytes().await.unwrap();
            files.insert(meta.location.to_string(), bytes.to_vec());
        }
        let mut told = Vec::new();
        let verified = verify(|path| Ok(files.get(path).cloned()), &signer().verifier(), &[], |_, entry| told.push(entry.to_vec()))?;
        Ok((verified, told))
    }

    #[tokio::test]
    async fn leaders_go_on_with_the_log_of_each_other() {
        let (bucket, signer) = (bucket(), signer());
        let mut end = 0;
        for batches in [vec![1, 2], vec![256], vec![100, 200, 1], vec![]] {
            let mut log = Log::open(&bucket, &signer).await.unwrap();
            assert_eq!(log.writer.tree().size(), end as u64);
            for batch in batches {
                log.append(entries(end..end + batch)).await.unwrap();
                end += batch;
                assert_eq!(verified(&bucket).await.unwrap().1, entries(0..end));
            }
        }
    }

    /// A leader that ended between its files and the checkpoint, at each place.
    #[tokio::test]
    async fn what_was_written_and_not_signed_is_replaced() {
        let signer = signer();
        for (before, begun, then) in [(0, 3, 3), (0, 3, 5), (254, 10, 4), (254, 10, 10), (300, 212, 212), (511, 256, 2)] {
            let bucket = bucket();
            let mut log = Log::open(&bucket, &signer).await.unwrap();
            if before > 0 {
                for chunk in entries(0..before).chunks(WIDTH) {
                    log.append(chunk.to_vec()).await.unwrap();
                }
            }
            let forgotten = entries(90_000..90_000 + begun);
            for Object { path, bytes } in log.writer.append(forgotten) {
                log.put(&path, bytes).await.unwrap();
            }
            let mut next = Log::open(&bucket, &signer).await.unwrap();
            let mut end = before;
            for batch in [then, 1, 7, 250] {
                next.append(entries(end..end + batch)).await.unwrap();
                end += batch;
            }
            assert_eq!(verified(&bucket).await.unwrap().1, entries(0..end), "{before} {begun} {then}");
        }
    }

    /// A leader that was frozen while another took its place.
    #[tokio::test]
    async fn of_two_that_write_the_later_one_finds_out_and_breaks_nothing() {
        let (bucket, signer) = (bucket(), signer());
        let mut frozen = Log::open(&bucket, &signer).await.unwrap();
        frozen.append(entries(0..5)).await.unwrap();
        let mut next = Log::open(&bucket, &signer).await.unwrap();
        next.append(entries(5..8)).await.unwrap();
        // Where the other has written already, behind that, and where it is about to.
        for batch in [3, 1, 4] {
            let mut late = Log { ahead: BTreeMap::new(), writer: frozen.writer.clone(), version: frozen.version.clone(), ..frozen };
            late.append(entries(700..700 + batch)).await.unwrap_err();
        }
        next.append(entries(8..9)).await.unwrap_err();
        let mut next = Log::open(&bucket, &signer).await.unwrap();
        next.append(entries(8..9)).await.unwrap();
        assert_eq!(verified(&bucket).await.unwrap().1, entries(0..9));
    }

    #[tokio::test]
    async fn an_attempt_whose_answer_was_lost_is_known_again() {
        let (bucket, signer) = (bucket(), signer());
        let mut log = Log::open(&bucket, &signer).await.unwrap();
        log.append(entries(0..5)).await.unwrap();
        let tree = log.writer.tree();
        let attempt = Attempt { size: tree.size(), root: tree.root(), entries: 5 };
        assert!(Log::open(&bucket, &signer).await.unwrap().is(&attempt));
        assert!(!Log::open(&bucket, &signer).await.unwrap().is(&Attempt { size: 6, ..attempt }));
    }

    #[tokio::test]
    async fn a_log_of_another_key_or_with_changed_files_is_not_gone_on_with() {
        let (bucket, own) = (bucket(), signer());
        Log::open(&bucket, &own).await.unwrap().append(entries(0..5)).await.unwrap();
        for other in [Signer::new("paddock.dev/audit/test", &[6; 32]).unwrap(), Signer::new("paddock.dev/audit/other", &[5; 32]).unwrap()] {
            let error = Log::open(&bucket, &other).await.err().expect("another log");
            assert!(format!("{error:#}").contains("is not that of"), "{error:#}");
        }
        put(&bucket, "tile/entries/000.p/5", b"x".to_vec(), PutMode::Overwrite).await.unwrap();
        let error = Log::open(&bucket, &own).await.err().expect("changed");
        assert!(error.to_string().contains("not those of its checkpoint"), "{error}");
    }
}
