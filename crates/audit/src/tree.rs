//! The Merkle tree of RFC 6962, section 2.1, as far as a writer has to keep it: its right edge.

use sha2::{Digest as _, Sha256};

use crate::tile::WIDTH;

/// SHA-256.
pub type Hash = [u8; 32];

/// RFC 6962: the hash of a leaf, which can be mistaken for none of a node.
pub(crate) fn of_leaf(entry: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(entry).finalize().into()
}

fn of_node(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

/// Of a full tree: a power of two of hashes.
fn of_full(hashes: &[Hash]) -> Hash {
    match hashes {
        [] => Sha256::digest([]).into(),
        [one] => *one,
        more => {
            let (left, right) = more.split_at(more.len() / 2);
            of_node(&of_full(left), &of_full(right))
        }
    }
}

/// What is needed to append, and to tell the root: for each level of tiles the hashes of the last one, which is not full.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    size: u64,
    /// From the leaves upwards. A hash of level L stands for 256 to the power of L entries.
    edge: Vec<Vec<Hash>>,
}

/// A tile that became full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Full {
    pub(crate) level: usize,
    pub(crate) index: u64,
    pub(crate) hashes: Vec<Hash>,
}

impl Tree {
    /// Number of entries.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Of a tree with so many entries and these hashes in its last tile of each level; `None` where they are not as many as there must be.
    pub(crate) fn of(size: u64, edge: Vec<Vec<Hash>>) -> Option<Self> {
        let fits = widths(size).into_iter().eq(edge.iter().map(Vec::len));
        fits.then_some(Self { size, edge })
    }

    /// Appends one entry.
    pub(crate) fn push(&mut self, entry: &[u8]) -> Vec<Full> {
        self.size += 1;
        let (mut hash, mut full) = (of_leaf(entry), Vec::new());
        for level in 0.. {
            if self.edge.len() == level {
                self.edge.push(Vec::new());
            }
            self.edge[level].push(hash);
            if self.edge[level].len() < WIDTH {
                break;
            }
            let hashes = std::mem::take(&mut self.edge[level]);
            hash = of_full(&hashes);
            full.push(Full { level, index: hashes_at(self.size, level + 1) - 1, hashes });
        }
        full
    }

    /// The hashes of the last tile of each level that is not full and not empty, and its index.
    pub(crate) fn partial(&self) -> impl Iterator<Item = (usize, u64, &[Hash])> {
        let levels = self.edge.iter().enumerate().filter(|(_, hashes)| !hashes.is_empty());
        levels.map(|(level, hashes)| (level, hashes_at(self.size, level + 1), hashes.as_slice()))
    }

    /// The root of the whole.
    #[must_use]
    pub fn root(&self) -> Hash {
        let mut root: Option<Hash> = None;
        // Full trees from the smallest, which is the rightmost, to the largest.
        for hashes in &self.edge {
            let mut end = hashes.len();
            while end > 0 {
                let begin = end - (1 << end.trailing_zeros());
                let left = of_full(&hashes[begin..end]);
                root = Some(root.map_or(left, |right| of_node(&left, &right)));
                end = begin;
            }
        }
        root.unwrap_or_else(|| of_full(&[]))
    }
}

/// How many hashes of this level there are: `size` divided by 256 to that power. It is also the index of the last tile of the level below.
pub(crate) fn hashes_at(size: u64, level: usize) -> u64 {
    u32::try_from(8 * level).ok().and_then(|bits| size.checked_shr(bits)).unwrap_or(0)
}

/// How many hashes the last tile of each level has, up to the last level that has any.
pub(crate) fn widths(size: u64) -> Vec<usize> {
    let levels = (0..8).take_while(|level| hashes_at(size, *level) > 0);
    levels.map(|level| usize::from(hashes_at(size, level).to_le_bytes()[0])).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As RFC 6962 writes it down.
    fn by_the_definition(entries: &[Vec<u8>]) -> Hash {
        match entries {
            [] => Sha256::digest([]).into(),
            [one] => of_leaf(one),
            more => {
                let half = more.len().next_power_of_two() / 2;
                of_node(&by_the_definition(&more[..half]), &by_the_definition(&more[half..]))
            }
        }
    }

    fn entry(number: usize) -> Vec<u8> {
        number.to_string().into_bytes()
    }

    #[test]
    fn the_root_is_that_of_the_definition_at_every_size() {
        let (mut tree, entries) = (Tree::default(), (0..700).map(entry).collect::<Vec<_>>());
        for (number, one) in entries.iter().enumerate() {
            assert_eq!(tree.root(), by_the_definition(&entries[..number]));
            tree.push(one);
        }
    }

    #[test]
    fn the_third_level_begins_where_it_must() {
        let mut tree = Tree::default();
        let full: Vec<Full> = (0..256 * 256).flat_map(|number| tree.push(&entry(number))).collect();
        assert_eq!(full.iter().filter(|tile| tile.level == 0).map(|tile| tile.index).collect::<Vec<_>>(), (0..256).collect::<Vec<_>>());
        assert_eq!(full.iter().filter(|tile| tile.level == 1).map(|tile| tile.index).collect::<Vec<_>>(), [0]);
        assert_eq!(tree.edge.iter().map(Vec::len).collect::<Vec<_>>(), [0, 0, 1]);
        assert_eq!(tree.root(), tree.edge[2][0]);
    }

    proptest! {
        #[test]
        fn a_tree_goes_on_from_its_edge(before in 0_usize..2000, after in 0_usize..300) {
            let mut whole = Tree::default();
            for number in 0..before {
                whole.push(&entry(number));
            }
            let mut resumed = Tree::of(whole.size(), whole.edge.clone()).unwrap();
            for number in before..before + after {
                prop_assert_eq!(whole.push(&entry(number)), resumed.push(&entry(number)));
            }
            prop_assert_eq!(whole.root(), resumed.root());
            prop_assert_eq!(widths(whole.size()), whole.edge.iter().map(Vec::len).collect::<Vec<_>>());
        }
    }
}
