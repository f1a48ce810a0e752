//! The audit log in the format of C2SP tlog-tiles: entries in bundles, the hashes of a Merkle tree in tiles, and a checkpoint that is signed.
//!
//! Whoever has a copy of the files and the verifier key can tell that nothing before the checkpoint was changed, left out or put in, without asking
//! anybody: with [`verify`], or with any other program that reads the format. Nothing here reads or writes files; the operator and the CLI do.

mod checkpoint;
mod record;
mod tile;
mod tree;
mod verify;
mod writer;

pub use checkpoint::{CHECKPOINT, Checkpoint, NoVerifier, Signer, Unsigned, Verifier};
pub use record::{Record, RecordType, Salt, TOO_LARGE};
pub use tile::{MOST_BYTES_OF_A_FILE, MOST_BYTES_OF_AN_ENTRY, Malformed, WIDTH, bundle_path, entries_of, tile_path};
pub use tree::{Hash, Tree};
pub use verify::{Broken, Verified, verify};
pub use writer::{Needed, Object, Writer};
