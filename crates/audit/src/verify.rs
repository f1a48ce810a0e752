//! Whether a copy of a log is what its key has signed, from its files alone.

use std::io;

use crate::checkpoint::{CHECKPOINT, Checkpoint, Unsigned, Verifier};
use crate::tile::{WIDTH, bundle_path, entries_of, tile_of, tile_path};
use crate::tree::{Hash, Tree};

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
    read: impl FnMut(&str) -> io::Result<Option<Vec<u8>>>,
    verifier: &Verifier,
    kept: &[(String, Vec<u8>)],
    mut each: impl FnMut(u64, &[u8]),
) -> Result<Verified, Broken> {
    let mut files = Files(read);
    let open = |path: &str, note: &[u8]| verifier.open(note).map_err(|source| Broken::Checkpoint { path: path.to_owned(), source });
    let checkpoint = open(CHECKPOINT, &files.must(CHECKPOINT)?)?;
    let kept = kept.iter().map(|(path, note)| open(path, note)).collect::<Result<Vec<_>, _>>()?;
    if let Some(later) = kept.iter().find(|kept| kept.size > checkpoint.size) {
        return Err(Broken::Rewritten { size: later.size });
    }
    let goes_on = |tree: &Tree| match kept.iter().find(|kept| kept.size == tree.size() && kept.root != tree.root()) {
        Some(other) => Err(Broken::Rewritten { size: other.size }),
        None => Ok(()),
    };

    let mut tree = Tree::default();
    goes_on(&tree)?;
    while tree.size() < checkpoint.size {
        for entry in files.entries(tree.size(), checkpoint.size)? {
            each(tree.size(), &entry);
            for full in tree.push(&entry) {
                files.has(full.level, full.index, &full.hashes)?;
            }
            if kept.iter().any(|kept| kept.size == tree.size()) {
                goes_on(&tree)?;
            }
        }
    }
    if tree.root() != checkpoint.root {
        return Err(Broken::OtherEntries { size: checkpoint.size });
    }
    for (level, index, hashes) in tree.partial() {
        files.has(level, index, hashes)?;
    }
    Ok(Verified { checkpoint })
}

/// A copy of a log.
struct Files<R>(R);

impl<R: FnMut(&str) -> io::Result<Option<Vec<u8>>>> Files<R> {
    fn get(&mut self, path: &str) -> Result<Option<Vec<u8>>, Broken> {
        self.0(path).map_err(|source| Broken::Unreadable { path: path.to_owned(), source })
    }

    fn must(&mut self, path: &str) -> Result<Vec<u8>, Broken> {
        self.get(path)?.ok_or_else(|| Broken::Missing { path: path.to_owned() })
    }

    /// A file that is not full, or the full one in its place: who cleans up keeps that.
    fn partial(&mut self, path: &str, full: &str) -> Result<Vec<u8>, Broken> {
        match self.get(path)? {
            Some(partial) => Ok(partial),
            None if path != full => self.get(full)?.ok_or_else(|| Broken::Missing { path: path.to_owned() }),
            None => Err(Broken::Missing { path: path.to_owned() }),
        }
    }

    /// The entries of the bundle that begins here, of a log of this size.
    fn entries(&mut self, begin: u64, size: u64) -> Result<Vec<Vec<u8>>, Broken> {
        let width = usize::try_from(size - begin).unwrap_or(WIDTH).min(WIDTH);
        let index = begin / WIDTH as u64;
        let path = bundle_path(index, width);
        let bundle = self.partial(&path, &bundle_path(index, WIDTH))?;
        let mut entries = entries_of(&bundle).ok().filter(|entries| entries.len() >= width).ok_or(Broken::Malformed { path })?;
        entries.truncate(width);
        Ok(entries)
    }

    /// Whether a tile has these hashes.
    fn has(&mut self, level: usize, index: u64, hashes: &[Hash]) -> Result<(), Broken> {
        let path = tile_path(level, index, hashes.len());
        let (tile, expected) = (self.partial(&path, &tile_path(level, index, WIDTH))?, tile_of(hashes));
        if tile.get(..expected.len()) == Some(&expected) { Ok(()) } else { Err(Broken::OtherHashes { path }) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rstest::rstest;

    use super::*;
    use crate::checkpoint::Signer;
    use crate::writer::Writer;

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
