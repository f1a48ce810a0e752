//! The files of the log: how it is found, gone on with, and written. A file that a checkpoint covers is never written again.
//!
//! Two replicas never write at once, by the lease. Where they do all the same, as a process that was frozen would, each file is created and not
//! overwritten, and the checkpoint is exchanged only for the one that was read. Whoever goes on with a log exchanges it first, for the same with a
//! mark of its own: after that no other can, and only then is replaced what another left without a checkpoint.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::{Error as StoreError, ObjectMeta, ObjectStoreExt as _, PutMode, PutOptions, PutPayload, PutResult, UpdateVersion};
use paddock_audit::{CHECKPOINT, Hash, MOST_BYTES_OF_A_FILE, Object, Record, Signer, WIDTH, Writer, bundle_path, entries_of};
use uuid::Uuid;

use crate::bucket::Bucket;

/// Longest time that one request may take: a leader that lost its lease has no request under way when the next one begins.
const LIMIT: Duration = Duration::from_secs(10);

/// Whether this replica still leads: asked before each write.
pub(super) type Leads<'a> = &'a (dyn Fn() -> bool + Send + Sync);

/// What was to be written when something went wrong. It may have been written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) size: u64,
    pub(super) root: Hash,
}

/// A log that was read, and is gone on with.
pub(super) struct Log<'a> {
    bucket: &'a Bucket,
    signer: &'a Signer,
    leads: Leads<'a>,
    writer: Writer,
    /// Of the checkpoint; `None` before there is one.
    version: Option<UpdateVersion>,
    /// What lies where nothing is yet by the checkpoint: what a leader wrote that ended before it had signed it.
    ahead: BTreeMap<String, UpdateVersion>,
    /// What became full, and lies there in its parts still.
    full: Vec<String>,
    /// Not everybody may remove these.
    may_remove: bool,
}

impl<'a> Log<'a> {
    /// Reads the checkpoint and what is needed to go on after it, if `is_it` says that this is the log as it must be.
    pub(super) async fn open(
        bucket: &'a Bucket,
        signer: &'a Signer,
        leads: Leads<'a>,
        is_it: impl Fn(State) -> Result<()>,
    ) -> Result<Self> {
        let new = Self {
            bucket,
            signer,
            leads,
            writer: Writer::default(),
            version: None,
            ahead: BTreeMap::new(),
            full: Vec::new(),
            may_remove: true,
        };
        let Some((note, version)) = get(bucket, CHECKPOINT).await? else {
            is_it(new.state())?;
            return new.begin().await;
        };
        let verifier = signer.verifier();
        let checkpoint = verifier.open(&note).with_context(|| format!("the log in the bucket is not that of {}", verifier.origin()))?;
        is_it(State { size: checkpoint.size, root: checkpoint.root })?;
        let mut files = Vec::new();
        for needed in Writer::needs(checkpoint.size) {
            let file = match get(bucket, &needed.path).await? {
                Some((file, _)) => Some(file),
                None => get(bucket, &needed.full).await?.and_then(|(full, _)| needed.of_full(&full)),
            };
            files.push(file.with_context(|| format!("{} is not in the bucket", needed.path))?);
        }
        let writer = Writer::resume(&checkpoint, &files).context("the last files of the log are not those of its checkpoint")?;
        let mut log = Self { writer, version: Some(version), ..new };
        log.exchange(log.signer.sign_as(checkpoint.size, checkpoint.root, Uuid::new_v4().as_bytes())).await?;
        log.look_ahead().await?;
        Ok(log)
    }

    /// A log begins with a checkpoint of no entries. So files without a checkpoint are those of a log that has lost it, and are left alone.
    async fn begin(mut self) -> Result<Self> {
        self.look_ahead().await?;
        if let Some((path, _)) = self.ahead.first_key_value() {
            bail!("the bucket has {path} and no checkpoint: it is not begun over what is left of a log");
        }
        let State { size, root } = self.state();
        self.exchange(self.signer.sign_as(size, root, Uuid::new_v4().as_bytes())).await?;
        Ok(self)
    }

    async fn look_ahead(&mut self) -> Result<()> {
        for (folder, full) in self.writer.may_lie_ahead() {
            for meta in list(self.bucket, &folder).await? {
                if let Some(width) = meta.location.filename().map(ToOwned::to_owned) {
                    self.ahead.insert(format!("{folder}/{width}"), UpdateVersion { e_tag: meta.e_tag, version: meta.version });
                }
            }
            if let Some(meta) = head(self.bucket, &full).await? {
                self.ahead.insert(full, UpdateVersion { e_tag: meta.e_tag, version: meta.version });
            }
        }
        Ok(())
    }

    /// How it is by now, with what was appended and may not be signed.
    pub(super) fn state(&self) -> State {
        State { size: self.writer.tree().size(), root: self.writer.tree().root() }
    }

    /// By what others verify it.
    pub(super) fn verifier(&self) -> String {
        self.signer.verifier().to_string()
    }

    /// The checkpoint as it is.
    pub(super) fn checkpoint(&self) -> String {
        let State { size, root } = self.state();
        self.signer.sign(size, root)
    }

    /// The last records: of the bundle that is not full, and of the one before it.
    pub(super) async fn recent(&self) -> Result<Vec<Record>> {
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
    pub(super) async fn append(&mut self, entries: Vec<Vec<u8>>) -> Result<()> {
        let objects = self.writer.append(entries);
        self.full.extend(objects.iter().map(|object| object.path.clone()).filter(|path| !path.contains(".p/")));
        for Object { path, bytes } in objects {
            self.put(&path, bytes).await?;
        }
        self.exchange(self.checkpoint()).await
    }

    async fn exchange(&mut self, note: String) -> Result<()> {
        ensure!((self.leads)(), "this replica of the operator does not lead");
        let mode = self.version.clone().map_or(PutMode::Create, PutMode::Update);
        let put = put(self.bucket, CHECKPOINT, note.into_bytes(), mode).await?;
        let put = put.context("somebody else has written the checkpoint")?;
        self.version = Some(UpdateVersion { e_tag: put.e_tag, version: put.version });
        Ok(())
    }

    /// What no checkpoint covers is replaced; everything else is only made.
    async fn put(&mut self, path: &str, bytes: Vec<u8>) -> Result<()> {
        ensure!((self.leads)(), "this replica of the operator does not lead");
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

    /// Removes what the full files have taken the place of, which a checkpoint covers by now. What may not be removed stays.
    pub(super) async fn remove_parts(&mut self) {
        for path in std::mem::take(&mut self.full) {
            if !self.may_remove {
                return;
            }
            match remove_all(self.bucket, &format!("{path}.p")).await {
                Ok(()) => {}
                Err(error) => {
                    tracing::info!(error = format!("{error:#}"), "parts of the audit log that became full stay in the bucket");
                    let refused = error.downcast_ref::<StoreError>();
                    self.may_remove = !matches!(refused, Some(StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. }));
                }
            }
        }
    }
}

async fn get(bucket: &Bucket, name: &str) -> Result<Option<(Vec<u8>, UpdateVersion)>> {
    let path = bucket.path(name)?;
    let read = async {
        let got = bucket.store.get(&path).await?;
        let version = UpdateVersion { e_tag: got.meta.e_tag.clone(), version: got.meta.version.clone() };
        // Whoever else writes to the bucket must not take this process' memory.
        if got.meta.size > MOST_BYTES_OF_A_FILE {
            return Ok(None);
        }
        Ok(Some((got.bytes().await?.to_vec(), version)))
    };
    match tokio::time::timeout(LIMIT, read).await.context("the bucket does not answer")? {
        Ok(Some(read)) => Ok(Some(read)),
        Ok(None) => bail!("{name} is larger than any file of a log"),
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("{name} cannot be read")),
    }
}

async fn list(bucket: &Bucket, folder: &str) -> Result<Vec<ObjectMeta>> {
    let path = bucket.path(folder)?;
    let listed = bucket.store.list(Some(&path)).try_collect::<Vec<ObjectMeta>>();
    let listed = tokio::time::timeout(LIMIT, listed).await.context("the bucket does not answer")?;
    listed.with_context(|| format!("{folder} cannot be listed"))
}

/// So many in one request as the server takes.
async fn remove_all(bucket: &Bucket, folder: &str) -> Result<()> {
    let found = list(bucket, folder).await?.into_iter().map(|meta| Ok(meta.location));
    let removed = bucket.store.delete_stream(futures::stream::iter(found).boxed()).try_collect::<Vec<_>>();
    tokio::time::timeout(LIMIT, removed).await.context("the bucket does not answer")??;
    Ok(())
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
    use std::sync::Arc;

    use object_store::memory::InMemory;
    use paddock_audit::{Broken, Verified, verify};

    use super::*;

    fn signer() -> Signer {
        Signer::new("paddock.dev/audit/test", &[5; 32]).unwrap()
    }

    async fn open<'a>(bucket: &'a Bucket, signer: &'a Signer) -> Result<Log<'a>> {
        Log::open(bucket, signer, &|| true, |_| Ok(())).await
    }

    fn bucket() -> Bucket {
        Bucket::of(Arc::new(InMemory::new()))
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
            let mut log = open(&bucket, &signer).await.unwrap();
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
            let mut log = open(&bucket, &signer).await.unwrap();
            if before > 0 {
                for chunk in entries(0..before).chunks(WIDTH) {
                    log.append(chunk.to_vec()).await.unwrap();
                }
            }
            let forgotten = entries(90_000..90_000 + begun);
            for Object { path, bytes } in log.writer.append(forgotten) {
                log.put(&path, bytes).await.unwrap();
            }
            let mut next = open(&bucket, &signer).await.unwrap();
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
        let mut frozen = open(&bucket, &signer).await.unwrap();
        frozen.append(entries(0..5)).await.unwrap();
        let mut next = open(&bucket, &signer).await.unwrap();
        next.append(entries(5..8)).await.unwrap();
        // Where the other has written already, behind that, and where it is about to.
        for batch in [3, 1, 4] {
            let mut late =
                Log { ahead: BTreeMap::new(), writer: frozen.writer.clone(), version: frozen.version.clone(), full: Vec::new(), ..frozen };
            late.append(entries(700..700 + batch)).await.unwrap_err();
        }
        next.append(entries(8..9)).await.unwrap_err();
        let mut next = open(&bucket, &signer).await.unwrap();
        next.append(entries(8..9)).await.unwrap();
        assert_eq!(verified(&bucket).await.unwrap().1, entries(0..9));
    }

    /// A checkpoint whose answer was late lands when another has gone on with the log already.
    #[tokio::test]
    async fn a_late_checkpoint_does_not_stand_over_the_files_of_another() {
        let (bucket, signer) = (bucket(), signer());
        let mut late = open(&bucket, &signer).await.unwrap();
        late.append(entries(0..5)).await.unwrap();
        for Object { path, bytes } in late.writer.append(entries(700..703)) {
            late.put(&path, bytes).await.unwrap();
        }
        let mut next = open(&bucket, &signer).await.unwrap();
        late.exchange(late.checkpoint()).await.unwrap_err();
        next.append(entries(5..8)).await.unwrap();
        assert_eq!(verified(&bucket).await.unwrap().1, entries(0..8));
    }

    #[tokio::test]
    async fn who_does_not_lead_any_more_writes_nothing() {
        let (bucket, signer) = (bucket(), signer());
        open(&bucket, &signer).await.unwrap().append(entries(0..5)).await.unwrap();
        let error = Log::open(&bucket, &signer, &|| false, |_| Ok(())).await.err().expect("no leader");
        assert!(error.to_string().contains("does not lead"), "{error}");
    }

    #[tokio::test]
    async fn a_log_that_was_put_back_or_has_lost_its_checkpoint_is_not_gone_on_with() {
        let (bucket, signer) = (bucket(), signer());
        let mut log = open(&bucket, &signer).await.unwrap();
        log.append(entries(0..5)).await.unwrap();
        let not_shorter = |state: State| if state.size < 5 { bail!("{} entries", state.size) } else { Ok(()) };
        assert!(Log::open(&bucket, &signer, &|| true, not_shorter).await.is_ok());
        let earlier = signer.sign(0, Writer::default().tree().root());
        put(&bucket, CHECKPOINT, earlier.into_bytes(), PutMode::Overwrite).await.unwrap();
        assert!(Log::open(&bucket, &signer, &|| true, not_shorter).await.is_err());
        bucket.store.delete(&bucket.path(CHECKPOINT).unwrap()).await.unwrap();
        assert!(Log::open(&bucket, &signer, &|| true, not_shorter).await.is_err());
        let error = open(&bucket, &signer).await.err().expect("files of another");
        assert!(error.to_string().contains("and no checkpoint"), "{error}");
    }

    #[tokio::test]
    async fn what_became_full_is_removed_in_its_parts_and_is_not_missed() {
        let (bucket, signer) = (bucket(), signer());
        let mut log = open(&bucket, &signer).await.unwrap();
        for end in (0..600).step_by(100) {
            log.append(entries(end..end + 100)).await.unwrap();
            log.remove_parts().await;
        }
        let left = bucket.store.list(None).try_collect::<Vec<_>>().await.unwrap();
        let left: Vec<&str> = left.iter().map(|meta| meta.location.as_ref()).filter(|path| path.contains("entries")).collect();
        let expected = ["tile/entries/000", "tile/entries/001", "tile/entries/002.p/88"];
        assert_eq!(left, expected);
        assert_eq!(verified(&bucket).await.unwrap().1, entries(0..600));
        assert_eq!(open(&bucket, &signer).await.unwrap().state().size, 600);
    }

    #[tokio::test]
    async fn a_file_that_is_too_large_is_not_read() {
        let (bucket, signer) = (bucket(), signer());
        open(&bucket, &signer).await.unwrap();
        let large = vec![0; usize::try_from(MOST_BYTES_OF_A_FILE).unwrap() + 1];
        put(&bucket, CHECKPOINT, large, PutMode::Overwrite).await.unwrap();
        let error = open(&bucket, &signer).await.err().expect("too large");
        assert!(error.to_string().contains("larger than any file"), "{error}");
    }

    #[tokio::test]
    async fn a_log_of_another_key_or_with_changed_files_is_not_gone_on_with() {
        let (bucket, own) = (bucket(), signer());
        open(&bucket, &own).await.unwrap().append(entries(0..5)).await.unwrap();
        for other in [Signer::new("paddock.dev/audit/test", &[6; 32]).unwrap(), Signer::new("paddock.dev/audit/other", &[5; 32]).unwrap()] {
            let error = open(&bucket, &other).await.err().expect("another log");
            assert!(format!("{error:#}").contains("is not that of"), "{error:#}");
        }
        put(&bucket, "tile/entries/000.p/5", b"x".to_vec(), PutMode::Overwrite).await.unwrap();
        let error = open(&bucket, &own).await.err().expect("changed");
        assert!(error.to_string().contains("not those of its checkpoint"), "{error}");
    }
}
