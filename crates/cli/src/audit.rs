//! `kubectl paddock audit`: a copy of the audit log, from its files alone. No cluster is asked.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use paddock_audit::{CHECKPOINT, MOST_BYTES_OF_A_FILE, Record, RecordType, Verified, Verifier, verify};

use crate::arguments::Copied;
use crate::exit::Exit;

/// `audit verify`.
pub(crate) fn verify_copy(copied: &Copied) -> Result<Exit> {
    let mut seen = Seen::default();
    let verified = read(copied, |_, entry| seen.take(entry))?;
    println!("{}", told(&verified, &seen));
    Ok(Exit::Done)
}

/// `audit show`: nothing is printed of a copy that is not what was signed.
pub(crate) fn show(copied: &Copied, run: Option<&str>) -> Result<Exit> {
    read(copied, |_, _| ())?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let (mut failed, mut known, mut unknown) = (None, BTreeSet::new(), 0);
    read(copied, |_, entry| {
        let record: Option<Record> = serde_json::from_slice(entry).ok();
        unknown += u64::from(record.is_none() && run.is_some());
        let is_wanted = run.is_none_or(|run| record.as_ref().is_some_and(|record| is_of(record, run)));
        // What a leader has told again is the same event.
        let is_new = record.is_none_or(|record| known.insert(record.id));
        if is_wanted && is_new && failed.is_none() {
            // An entry is what was signed: bytes of the operator, on a line of their own.
            failed = out.write_all(entry).and_then(|()| out.write_all(b"\n")).err();
        }
    })?;
    if unknown > 0 {
        eprintln!("{unknown} records are of another version: it is not known whether they are about this run");
    }
    match failed.or(out.flush().err()) {
        Some(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("standard output"),
        _ => Ok(Exit::Done),
    }
}

/// By the UID of a run, or as NAMESPACE/NAME.
fn is_of(record: &Record, run: &str) -> bool {
    record.subject.as_deref() == Some(run) || record.data["uid"] == run
}

fn read(copied: &Copied, each: impl FnMut(u64, &[u8])) -> Result<Verified> {
    let verifier = verifier(&copied.key)?;
    let kept = copied.since.iter().map(|path| Ok((path.display().to_string(), bytes(path)?))).collect::<Result<Vec<_>>>()?;
    let file = |name: &str| match bounded(&copied.folder.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    };
    if !copied.folder.join(CHECKPOINT).is_file() {
        bail!("{} is no copy of an audit log: it has no checkpoint", copied.folder.display());
    }
    Ok(verify(file, &verifier, &kept, each)?)
}

/// A copy may hold anything: no file of a log is larger.
fn bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MOST_BYTES_OF_A_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST_BYTES_OF_A_FILE { Err(io::Error::other("it is larger than any file of a log")) } else { Ok(bytes) }
}

fn bytes(path: &Path) -> Result<Vec<u8>> {
    bounded(path).with_context(|| format!("{} cannot be read", path.display()))
}

/// The key itself, or a file that holds it.
fn verifier(key: &str) -> Result<Verifier> {
    let path = PathBuf::from(key);
    let text = if path.is_file() { String::from_utf8(bytes(&path)?)? } else { key.to_owned() };
    text.trim().parse().context("the key is not that of a log: it is in the field verifier of the Secret paddock-audit")
}

/// What is in a log.
#[derive(Default)]
struct Seen {
    by_type: BTreeMap<&'static str, u64>,
    known: BTreeSet<String>,
    /// Told more than once.
    again: u64,
    /// Not as this version knows records.
    unknown: u64,
    /// UIDs of runs that have begun, and of which no end is told, by the name of the run.
    open: BTreeMap<String, String>,
    lost: u64,
    /// Times of the first and the last record, as they were written.
    times: Option<(String, String)>,
}

impl Seen {
    fn take(&mut self, entry: &[u8]) {
        let Ok(record) = serde_json::from_slice::<Record>(entry) else {
            self.unknown += 1;
            return;
        };
        if !self.known.insert(record.id.clone()) {
            self.again += 1;
            return;
        }
        *self.by_type.entry(record.type_.as_str()).or_default() += 1;
        let uid = record.data["uid"].as_str().unwrap_or_default().to_owned();
        match record.type_ {
            RecordType::RunStarted => _ = self.open.insert(uid, record.subject.clone().unwrap_or_default()),
            RecordType::RunFinished | RecordType::RunDeleted => _ = self.open.remove(&uid),
            RecordType::RecordsLost => self.lost += record.data["records"].as_u64().unwrap_or(0),
            _ => {}
        }
        let first = self.times.take().map_or_else(|| record.time.clone(), |(first, _)| first);
        self.times = Some((first, record.time));
    }
}

/// What is printed of a log that is what was signed. Pure.
fn told(verified: &Verified, seen: &Seen) -> String {
    let checkpoint = &verified.checkpoint;
    let mut lines = vec![format!("{}: {} entries are what was signed", checkpoint.origin, checkpoint.size)];
    if let Some((first, last)) = &seen.times {
        lines.push(format!("from {first} to {last}"));
    }
    lines.extend(seen.by_type.iter().map(|(type_, count)| format!("{count:>8} {type_}")));
    if seen.again > 0 {
        lines.push(format!("{:>8} told again", seen.again));
    }
    if seen.unknown > 0 {
        lines.push(format!("{:>8} of another version", seen.unknown));
    }
    if seen.lost > 0 {
        lines.push(format!("{} records were lost before they were written", seen.lost));
    }
    if !seen.open.is_empty() {
        let names: Vec<&str> = seen.open.values().map(String::as_str).take(10).collect();
        lines.push(format!("{} runs have begun and no end of them is told: {}", seen.open.len(), names.join(", ")));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use paddock_audit::{Signer, Writer};
    use serde_json::json;

    use super::*;

    fn signer() -> Signer {
        Signer::new("paddock.dev/audit/test", &[1; 32]).unwrap()
    }

    fn record(type_: RecordType, id: &str, uid: &str) -> Vec<u8> {
        let subject = Some(format!("team/{uid}"));
        Record::new(type_, "paddock.dev/audit/test", id.into(), "2026-01-01T00:00:00Z".into(), subject, json!({ "uid": uid })).entry()
    }

    fn copy(name: &str) -> Copied {
        let folder = std::env::temp_dir().join(format!("paddock-audit-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        let entries = vec![
            record(RecordType::RunStarted, "1", "a"),
            record(RecordType::RunStarted, "2", "b"),
            record(RecordType::RunFinished, "3", "a"),
            record(RecordType::RunFinished, "3", "a"),
            b"{}".to_vec(),
        ];
        let mut writer = Writer::default();
        for object in writer.append(entries) {
            let path = folder.join(object.path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, object.bytes).unwrap();
        }
        std::fs::write(folder.join(CHECKPOINT), signer().sign(writer.tree().size(), writer.tree().root())).unwrap();
        Copied { folder, key: signer().verifier().to_string(), since: Vec::new() }
    }

    #[test]
    fn a_copy_is_counted_and_runs_without_an_end_are_named() {
        let copied = copy("counted");
        let mut seen = Seen::default();
        let verified = read(&copied, |_, entry| seen.take(entry)).unwrap();
        let expected = [
            "paddock.dev/audit/test: 5 entries are what was signed",
            "from 2026-01-01T00:00:00Z to 2026-01-01T00:00:00Z",
            "       1 dev.paddock.run.finished.v1",
            "       2 dev.paddock.run.started.v1",
            "       1 told again",
            "       1 of another version",
            "1 runs have begun and no end of them is told: team/b",
        ];
        assert_eq!(told(&verified, &seen).lines().collect::<Vec<_>>(), expected);
        std::fs::remove_dir_all(copied.folder).unwrap();
    }

    #[test]
    fn a_copy_that_was_changed_is_an_error() {
        let copied = copy("changed");
        let path = copied.folder.join("tile/entries/000.p/5");
        let mut changed = std::fs::read(&path).unwrap();
        let at = changed.windows(6).position(|part| part == b"team/b").unwrap();
        changed[at + 5] = b'c';
        std::fs::write(&path, changed).unwrap();
        let error = verify_copy(&copied).expect_err("changed");
        assert!(error.to_string().contains("are not those that were signed"), "{error}");
        assert!(show(&copied, None).is_err());
        let other = Copied { key: "nothing+1+2".into(), folder: copied.folder.clone(), since: Vec::new() };
        assert!(verify_copy(&other).expect_err("no key").to_string().contains("the key is not that of a log"));
        std::fs::remove_dir_all(copied.folder).unwrap();
    }
}
