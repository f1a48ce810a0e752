//! What has to be written for entries that are appended. Pure: paths and bytes out.

use crate::checkpoint::Checkpoint;
use crate::tile::{WIDTH, bundle_of, bundle_path, entries_of, hashes_of, tile_of, tile_path};
use crate::tree::{Tree, hashes_at, of_leaf, widths};

/// A file of the log. Once a checkpoint covers it, it never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Below the log's root.
    pub path: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// A file that has to be read, or the beginning of the full one that has taken its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needed {
    /// Where it lies.
    pub path: String,
    /// Where the full one does, once there is one.
    pub full: String,
    part: Part,
}

/// How much of a full file the one that is needed has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Hashes(usize),
    Entries(usize),
}

impl Needed {
    /// What is needed of the full file. `None` if it has less.
    #[must_use]
    pub fn of_full(&self, full: &[u8]) -> Option<Vec<u8>> {
        match self.part {
            Part::Hashes(width) => full.get(..32 * width).map(<[u8]>::to_vec),
            Part::Entries(width) => entries_of(full).ok()?.get(..width).map(bundle_of),
        }
    }
}

/// The end of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writer {
    tree: Tree,
    /// Entries of the last bundle, which is not full.
    last: Vec<Vec<u8>>,
}

impl Writer {
    /// What has to be read to go on after a checkpoint: the last bundle, if it is not full, and the last tile of each level that is not.
    #[must_use]
    pub fn needs(size: u64) -> Vec<Needed> {
        let tiles = tiles_of(size).map(|(level, index, width)| Needed {
            path: tile_path(level, index, width),
            full: tile_path(level, index, WIDTH),
            part: Part::Hashes(width),
        });
        let bundle = tiles_of(size).find(|(level, ..)| *level == 0).map(|(_, index, width)| Needed {
            path: bundle_path(index, width),
            full: bundle_path(index, WIDTH),
            part: Part::Entries(width),
        });
        bundle.into_iter().chain(tiles).collect()
    }

    /// Where something may lie that was written for entries which no checkpoint covers, if at most 256 were appended at once: bundles and tiles of each
    /// level, by the folder of those that are not full, and the full one.
    #[must_use]
    pub fn may_lie_ahead(&self) -> Vec<(String, String)> {
        let size = self.tree.size();
        let places = |level: Option<usize>| {
            let first = hashes_at(size, level.unwrap_or(0) + 1);
            (first..=first + 1).map(move |index| match level {
                Some(level) => tile_path(level, index, WIDTH),
                None => bundle_path(index, WIDTH),
            })
        };
        let levels = 0..widths(size + WIDTH as u64).len();
        let all = places(None).chain(levels.flat_map(|level| places(Some(level))));
        all.map(|full| (format!("{full}.p"), full)).collect()
    }

    /// Goes on after a checkpoint. `files` are what [`Writer::needs`] names, in its order. `None` if they are not what the checkpoint is of.
    #[must_use]
    pub fn resume(checkpoint: &Checkpoint, files: &[Vec<u8>]) -> Option<Self> {
        let mut files = files.iter();
        let is_full = checkpoint.size.is_multiple_of(WIDTH as u64);
        let last = if is_full { Vec::new() } else { entries_of(files.next()?).ok()? };
        let mut edge: Vec<Vec<_>> = vec![Vec::new(); widths(checkpoint.size).len()];
        for (level, ..) in tiles_of(checkpoint.size) {
            edge[level] = hashes_of(files.next()?)?;
        }
        let leaves = edge.first().cloned().unwrap_or_default();
        let tree = Tree::of(checkpoint.size, edge)?;
        let fits = tree.root() == checkpoint.root && last.iter().map(|entry| of_leaf(entry)).eq(leaves);
        fits.then_some(Self { tree, last })
    }

    /// The tree as it is now.
    #[must_use]
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The entries of the last bundle, which is not full.
    #[must_use]
    pub fn last(&self) -> &[Vec<u8>] {
        &self.last
    }

    /// Appends, and tells what is to be written before a checkpoint of this size: bundles first.
    pub fn append(&mut self, entries: Vec<Vec<u8>>) -> Vec<Object> {
        let (mut bundles, mut tiles, mut touched) = (Vec::new(), Vec::new(), 0);
        for entry in entries {
            let full = self.tree.push(&entry);
            touched = touched.max(full.len());
            self.last.push(entry);
            if self.last.len() == WIDTH {
                let bytes = bundle_of(&std::mem::take(&mut self.last));
                bundles.push(Object { path: bundle_path(self.tree.size() / WIDTH as u64 - 1, WIDTH), bytes });
            }
            tiles.extend(
                full.into_iter().map(|tile| Object { path: tile_path(tile.level, tile.index, WIDTH), bytes: tile_of(&tile.hashes) }),
            );
        }
        if !self.last.is_empty() {
            let path = bundle_path(self.tree.size() / WIDTH as u64, self.last.len());
            bundles.push(Object { path, bytes: bundle_of(&self.last) });
        }
        // Those of higher levels are as they were.
        let partial = self.tree.partial().filter(|(level, ..)| *level <= touched);
        tiles.extend(partial.map(|(level, index, hashes)| Object { path: tile_path(level, index, hashes.len()), bytes: tile_of(hashes) }));
        bundles.extend(tiles);
        bundles
    }
}

/// Level, index and width of the last tile of each level that is not full.
fn tiles_of(size: u64) -> impl Iterator<Item = (usize, u64, usize)> {
    let levels = widths(size).into_iter().enumerate().filter(|(_, width)| *width > 0);
    levels.map(move |(level, width)| (level, hashes_at(size, level + 1), width))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn entries(range: std::ops::Range<usize>) -> Vec<Vec<u8>> {
        range.map(|number| number.to_string().into_bytes()).collect()
    }

    fn resumed(writer: &Writer, files: &BTreeMap<String, Vec<u8>>) -> Option<Writer> {
        let checkpoint = Checkpoint { origin: "x".into(), size: writer.tree().size(), root: writer.tree().root() };
        let read = |needed: &Needed| files.get(&needed.path).cloned().or_else(|| needed.of_full(files.get(&needed.full)?));
        let needed: Option<Vec<Vec<u8>>> = Writer::needs(checkpoint.size).iter().map(read).collect();
        Writer::resume(&checkpoint, &needed?)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn another_writer_goes_on_from_the_files_alone(batches in prop::collection::vec(0_usize..400, 1..8)) {
            let (mut writer, mut files, mut end) = (Writer::default(), BTreeMap::new(), 0);
            for batch in batches {
                for object in writer.append(entries(end..end + batch)) {
                    let before = files.insert(object.path.clone(), object.bytes.clone());
                    prop_assert!(before.is_none_or(|before| before == object.bytes), "{} has changed", object.path);
                }
                end += batch;
                writer = resumed(&writer, &files).expect("all that is needed, as it was");
            }
            prop_assert_eq!(writer.tree().size(), end as u64);
        }
    }

    #[test]
    fn the_full_file_will_do_where_the_one_before_it_was_removed() {
        let (mut writer, mut files) = (Writer::default(), BTreeMap::new());
        files.extend(writer.append(entries(0..300)).into_iter().map(|object| (object.path, object.bytes)));
        let before = writer.clone();
        files.extend(writer.append(entries(300..600)).into_iter().map(|object| (object.path, object.bytes)));
        for path in ["tile/entries/001.p/44", "tile/0/001.p/44"] {
            files.remove(path).unwrap();
        }
        assert_eq!(resumed(&before, &files), Some(before));
    }

    #[test]
    fn files_that_are_not_those_of_the_checkpoint_are_refused() {
        let (mut writer, mut files) = (Writer::default(), BTreeMap::new());
        files.extend(writer.append(entries(0..300)).into_iter().map(|object| (object.path, object.bytes)));
        for path in ["tile/entries/001.p/44", "tile/0/001.p/44", "tile/1/000.p/1"] {
            let mut changed = files.clone();
            *changed.get_mut(path).unwrap().last_mut().unwrap() ^= 1;
            assert_eq!(resumed(&writer, &changed), None, "{path}");
        }
        assert_eq!(resumed(&writer, &files), Some(writer));
    }

    #[test]
    fn what_another_left_without_a_checkpoint_lies_in_these_places() {
        let (mut writer, mut later) = (Writer::default(), Writer::default());
        for size in [0, 1, 255, 256, 300, 65_535, 65_536] {
            let before = usize::try_from(writer.tree().size()).unwrap();
            writer.append(entries(before..size));
            let places = writer.may_lie_ahead();
            later.clone_from(&writer);
            for object in later.append(entries(size..size + 256)) {
                let is_there = |(partial, full): &(String, String)| object.path == *full || object.path.starts_with(&format!("{partial}/"));
                assert!(places.iter().any(is_there), "{} after {size}", object.path);
            }
        }
    }
}
