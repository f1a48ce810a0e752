//! Whether a copy of a log is what its key has signed, from its files alone.

use std::io;

use crate::checkpoint::{Checkpoint, Unsigned, Verifier};
use crate::tile::{WIDTH, bundle_path, entries_of, tile_of};
use crate::tree::Tree;
use crate::writer::Writer;

/// Where the checkpoint lies.
const CHECKPOINT: &str = "checkpoint";

/// What a log was found to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// All entries before it are what was signed.
    pub checkpoint: Checkpoint,
}

/// Why a copy is not the log that was signed.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// A file of the copy cannot be read.
    #[error("{path} cannot be read")]
    Unreadable {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A file is not there.
    #[error("{path} is missing")]
    Missing {
        /// Which.
        path: String,
    },
    /// A bundle is not as the format has it, or has not as many entries as it must.
    #[error("{path} is not a bundle of entries of the length that it must have")]
    Malformed {
        /// Which.
        path: String,
    },
    /// The checkpoint does not count.
    #[error("{path}: {source}")]
    Checkpoint {
        /// Which.
        path: String,
        /// Why.
        source: Unsigned,
    },
    /// The entries are not those that were signed.
    #[error("the {size} entries are not those that were signed: one was changed, left out, put in or moved")]
    OtherEntries {
        /// How many.
        size: u64,
    },
    /// The hashes that others prove by are not those of the entries.
    #[error("{path} does not have the hashes of the entries")]
    OtherHashes {
        /// Which.
        path: String,
    },
    /// A checkpoint that somebody kept tells of other entries.
    #[error("the log is not a continuation of the one of {size} entries whose checkpoint was kept: it was written anew, or cut off")]
    Rewritten {
        /// Its size.
        size: u64,
    },
}

/// Reads a whole log by `read`, which answers `None` for what is not there, and hands out each entry with its number before it is known whether all
/// is well. `kept` are checkpoints of earlier days, as files: the log must go on from each of them.
///
/// # Errors
/// What is wrong first.
pub fn verify(
    mut read: impl FnMut(&str) -> io::Result<Option<Vec<u8>>>,
    verifier: &Verifier,
    kept: &[(String, Vec<u8>)],
    mut each: impl FnMut(u64, &[u8]),
) -> Result<Verified, Broken> {
    let mut file = |path: &str| read(path).map_err(|source| Broken::Unreadable { path: path.to_owned(), source });
    let open = |path: &str, note: &[u8]| verifier.open(note).map_err(|source| Broken::Checkpoint { path: path.to_owned(), source });
    let note = file(CHECKPOINT)?.ok_or_else(|| Broken::Missing { path: CHECKPOINT.into() })?;
    let checkpoint = open(CHECKPOINT, &note)?;
    let mut earlier = kept.iter().map(|(path, note)| open(path, note)).collect::<Result<Vec<_>, _>>()?;
    earlier.sort_by_key(|kept| kept.size);
    let mut earlier = earlier.into_iter().peekable();

    let mut writer = Writer::default();
    let mut goes_on = |tree: &Tree| match earlier.peek() {
        Some(kept) if kept.size == tree.size() && kept.root != tree.root() => Err(Broken::Rewritten { size: kept.size }),
        _ => {
            while earlier.next_if(|kept| kept.size <= tree.size()).is_some() {}
            Ok(earlier.peek().map(|kept| kept.size))
        }
    };
    let mut next_kept = goes_on(writer.tree())?;
    while writer.tree().size() < checkpoint.size {
        let (index, left) = (writer.tree().size() / WIDTH as u64, checkpoint.size - writer.tree().size());
        let width = usize::try_from(left).unwrap_or(WIDTH).min(WIDTH);
        let path = bundle_path(index, width);
        // Who cleans up keeps the full ones.
        let bundle = match file(&path)? {
            None if width < WIDTH => file(&bundle_path(index, WIDTH))?,
            bundle => bundle,
        };
        let bundle = bundle.ok_or_else(|| Broken::Missing { path: path.clone() })?;
        let mut entries = entries_of(&bundle).ok().filter(|entries| entries.len() >= width).ok_or(Broken::Malformed { path })?;
        entries.truncate(width);
        for (number, entry) in (writer.tree().size()..).zip(&entries) {
            each(number, entry);
        }
        let mut hashes = Vec::new();
        for entry in entries {
            hashes = writer.append(vec![entry]);
            if next_kept == Some(writer.tree().size()) {
                next_kept = goes_on(writer.tree())?;
            }
        }
        for tile in hashes.into_iter().filter(|object| !object.path.starts_with("tile/entries/") && !object.path.contains(".p/")) {
            if file(&tile.path)?.ok_or_else(|| Broken::Missing { path: tile.path.clone() })? != tile.bytes {
                return Err(Broken::OtherHashes { path: tile.path });
            }
        }
    }
    if writer.tree().root() != checkpoint.root {
        return Err(Broken::OtherEntries { size: checkpoint.size });
    }
    if let Some(size) = next_kept {
        return Err(Broken::Rewritten { size });
    }
    for (level, index, hashes) in writer.tree().partial() {
        let path = crate::tile::tile_path(level, index, hashes.len());
        let tile = match file(&path)? {
            None => file(&crate::tile::tile_path(level, index, WIDTH))?,
            tile => tile,
        };
        let expected = tile_of(hashes);
        if tile.as_deref().and_then(|tile| tile.get(..expected.len())) != Some(&expected) {
            return Err(Broken::OtherHashes { path });
        }
    }
    Ok(Verified { checkpoint })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rstest::rstest;

    use super::*;
    use crate::checkpoint::Signer;

    type Files = BTreeMap<String, Vec<u8>>;

    fn signer() -> Signer {
        Signer::new("log", &[3; 32]).unwrap()
    }

    fn entries(range: std::ops::Range<usize>) -> Vec<Vec<u8>> {
        range.map(|number| number.to_string().into_bytes()).collect()
    }

    /// A log that grew in these steps, and its checkpoints on the way.
    fn log(sizes: &[usize]) -> (Files, Vec<Vec<u8>>) {
        let (mut writer, mut files, mut notes, mut end) = (Writer::default(), Files::new(), Vec::new(), 0);
        for size in sizes {
            files.extend(writer.append(entries(end..*size)).into_iter().map(|object| (object.path, object.bytes)));
            end = *size;
            notes.push(signer().sign(writer.tree().size(), writer.tree().root()).into_bytes());
        }
        files.insert(CHECKPOINT.into(), notes.last().unwrap().clone());
        (files, notes)
    }

    fn checked(files: &Files, kept: &[&[u8]]) -> Result<Vec<Vec<u8>>, Broken> {
        let mut told = Vec::new();
        let kept: Vec<_> = kept.iter().map(|note| ("kept".to_owned(), note.to_vec())).collect();
        verify(
            |path| Ok(files.get(path).cloned()),
            &signer().verifier(),
            &kept,
            |number, entry| {
                assert_eq!(number, told.len() as u64);
                told.push(entry.to_vec());
            },
        )?;
        Ok(told)
    }

    #[test]
    fn a_log_is_what_was_appended_at_every_size() {
        for sizes in [&[0][..], &[1], &[255, 256], &[100, 300, 600], &[256, 512], &[70_000]] {
            let (files, notes) = log(sizes);
            let notes: Vec<&[u8]> = notes.iter().map(Vec::as_slice).collect();
            assert_eq!(checked(&files, &notes).unwrap(), entries(0..*sizes.last().unwrap()));
        }
    }

    #[test]
    fn who_cleans_up_may_remove_what_became_full() {
        let (mut files, _) = log(&[100, 300]);
        files.remove("tile/entries/000.p/100").unwrap();
        files.remove("tile/0/000.p/100").unwrap();
        assert!(checked(&files, &[]).is_ok());
        let (full, _) = log(&[100, 300, 512]);
        let mut mixed = full.clone();
        mixed.insert(CHECKPOINT.into(), files[CHECKPOINT].clone());
        mixed.retain(|path, _| !path.ends_with(".p/44"));
        assert_eq!(checked(&mixed, &[]).unwrap().len(), 300, "a partial bundle that was replaced by the full one");
    }

    /// Each byte of each file counts.
    #[rstest]
    #[case("tile/entries/000")]
    #[case("tile/entries/001.p/44")]
    #[case("tile/0/000")]
    #[case("tile/0/001.p/44")]
    #[case("tile/1/000.p/1")]
    #[case("checkpoint")]
    fn a_changed_or_missing_file_is_found(#[case] path: &str) {
        let (files, _) = log(&[300]);
        let length = files[path].len();
        for at in [0, 1, 2, length / 2, length - 1] {
            let mut changed = files.clone();
            changed.get_mut(path).unwrap()[at] ^= 1;
            assert!(checked(&changed, &[]).is_err(), "{path} at {at}");
        }
        let mut missing = files.clone();
        missing.remove(path);
        assert!(checked(&missing, &[]).is_err(), "{path}");
    }

    #[test]
    fn a_log_that_was_written_anew_or_cut_off_is_found_by_who_kept_a_checkpoint() {
        let (_, notes) = log(&[100, 300]);
        let mut other = Writer::default();
        let mut changed = entries(0..300);
        changed[7] = b"forged".to_vec();
        let mut files: Files = other.append(changed).into_iter().map(|object| (object.path, object.bytes)).collect();
        files.insert(CHECKPOINT.into(), signer().sign(300, other.tree().root()).into_bytes());
        assert!(checked(&files, &[]).is_ok(), "who has the key can write anything");
        assert!(matches!(checked(&files, &[&notes[0]]), Err(Broken::Rewritten { size: 100 })));
        let (short, _) = log(&[100]);
        assert!(checked(&short, &[&notes[0]]).is_ok());
        assert!(matches!(checked(&short, &[&notes[1]]), Err(Broken::Rewritten { size: 300 })));
    }
}
