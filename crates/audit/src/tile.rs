//! Names and contents of the files, as C2SP tlog-tiles has them.

use crate::tree::Hash;

/// Hashes of a full tile, and entries of a full bundle.
pub const WIDTH: usize = 256;
/// The length of an entry has two bytes.
pub const MOST_BYTES_OF_AN_ENTRY: usize = 65_535;
/// No file of a log is larger: a bundle whose entries are all as long as they may be.
pub const MOST_BYTES_OF_A_FILE: u64 = 256 * (2 + 65_535);

/// The path of a tile; `width` is 256 for a full one.
#[must_use]
pub fn tile_path(level: usize, index: u64, width: usize) -> String {
    path(&level.to_string(), index, width)
}

/// The path of a bundle of entries.
#[must_use]
pub fn bundle_path(index: u64, width: usize) -> String {
    path("entries", index, width)
}

/// Three digits in each part, and an `x` before all but the last: `x001/x234/067`.
fn path(level: &str, index: u64, width: usize) -> String {
    let mut rest = index / 1000;
    let mut number = format!("{:03}", index % 1000);
    while rest > 0 {
        number = format!("x{:03}/{number}", rest % 1000);
        rest /= 1000;
    }
    let partial = if width < WIDTH { format!(".p/{width}") } else { String::new() };
    format!("tile/{level}/{number}{partial}")
}

pub(crate) fn tile_of(hashes: &[Hash]) -> Vec<u8> {
    hashes.concat()
}

/// The hashes of a tile.
pub(crate) fn hashes_of(tile: &[u8]) -> Option<Vec<Hash>> {
    tile.chunks(32).map(|hash| Hash::try_from(hash).ok()).collect()
}

/// `entries` must not be longer than [`MOST_BYTES_OF_AN_ENTRY`] each: what is longer is cut, so that the bundle can be read in any case.
pub(crate) fn bundle_of(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bundle = Vec::new();
    for entry in entries {
        let length = u16::try_from(entry.len()).unwrap_or(u16::MAX);
        bundle.extend_from_slice(&length.to_be_bytes());
        bundle.extend_from_slice(&entry[..usize::from(length)]);
    }
    bundle
}

/// A bundle that ends within an entry, or that has more entries than there can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bundle is not as the format has it")]
pub struct Malformed;

/// The entries of a bundle.
///
/// # Errors
/// See [`Malformed`].
pub fn entries_of(bundle: &[u8]) -> Result<Vec<Vec<u8>>, Malformed> {
    let (mut entries, mut rest) = (Vec::new(), bundle);
    while let [high, low, after @ ..] = rest {
        if entries.len() == WIDTH {
            return Err(Malformed);
        }
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (entry, after) = after.split_at_checked(length).ok_or(Malformed)?;
        entries.push(entry.to_vec());
        rest = after;
    }
    if rest.is_empty() { Ok(entries) } else { Err(Malformed) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(0, 256, "tile/0/000")]
    #[case(1_234_067, 256, "tile/0/x001/x234/067")]
    #[case(1_000, 1, "tile/0/x001/000.p/1")]
    fn paths_are_those_of_the_format(#[case] index: u64, #[case] width: usize, #[case] path: &str) {
        assert_eq!(tile_path(0, index, width), path);
        assert_eq!(bundle_path(index, width), path.replace("tile/0", "tile/entries"));
    }

    proptest! {
        #[test]
        fn a_bundle_is_read_as_it_was_written(entries in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20)) {
            prop_assert_eq!(entries_of(&bundle_of(&entries)).unwrap(), entries);
        }

        #[test]
        fn bytes_of_anybody_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(entries) = entries_of(&bytes) {
                prop_assert_eq!(bundle_of(&entries), bytes);
            }
        }
    }

    #[test]
    fn a_bundle_has_no_more_than_its_width() {
        assert_eq!(entries_of(&[0; 2 * WIDTH]).map(|entries| entries.len()), Ok(WIDTH));
        assert_eq!(entries_of(&[0; 2 * WIDTH + 2]), Err(Malformed));
    }
}
