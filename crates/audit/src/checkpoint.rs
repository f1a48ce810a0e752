//! The checkpoint: how large the log is and what its root is, as a signed note (C2SP tlog-checkpoint and signed-note, Ed25519).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use sha2::{Digest as _, Sha256};

use crate::tree::Hash;

/// Where the checkpoint of a log lies.
pub const CHECKPOINT: &str = "checkpoint";
/// The longest checkpoint that is read, in bytes.
const MOST_BYTES: usize = 16 * 1024;
/// Of Ed25519, in the format of signed notes.
const ALGORITHM: u8 = 1;

/// How large a log is, and its root at that size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which log: also the name of its key.
    pub origin: String,
    /// Number of entries.
    pub size: u64,
    /// The root of the Merkle tree over them.
    pub root: Hash,
}

/// Why a checkpoint does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsigned {
    /// It cannot be read.
    #[error("the checkpoint cannot be read")]
    Malformed,
    /// It is of another log.
    #[error("the checkpoint is of another log")]
    OtherOrigin,
    /// No signature of the key is on it, or it does not fit.
    #[error("the checkpoint is not signed by this key")]
    NotSigned,
}

/// A text that is no verifier key of Ed25519.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not of the form NAME+ID+KEY, or not a key of Ed25519")]
pub struct NoVerifier;

fn key_id(name: &str, public: &[u8]) -> [u8; 4] {
    let hash: Hash = Sha256::new().chain_update(name).chain_update(b"\n").chain_update([ALGORITHM]).chain_update(public).finalize().into();
    [hash[0], hash[1], hash[2], hash[3]]
}

/// Whether this can be the name of a key.
fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|letter: char| letter.is_whitespace() || letter.is_control() || letter == '+')
}

impl Checkpoint {
    fn body(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, STANDARD.encode(self.root))
    }

    /// The first three lines, whoever signed them.
    fn parse(body: &str) -> Option<Self> {
        let mut lines = body.lines();
        let (origin, size, root) = (lines.next()?, lines.next()?, lines.next()?);
        let checkpoint = Self { origin: origin.to_owned(), size: size.parse().ok()?, root: STANDARD.decode(root).ok()?.try_into().ok()? };
        // One spelling of each number, and no further lines: what was signed is exactly this.
        (checkpoint.body() == body).then_some(checkpoint)
    }
}

/// Signs checkpoints. Its key is in no output of `Debug`.
pub struct Signer {
    origin: String,
    pair: Ed25519KeyPair,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Signer").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl Signer {
    /// `seed` is the private key of RFC 8032, 32 bytes. `None` for another length, or an origin that can be the name of no key.
    #[must_use]
    pub fn new(origin: &str, seed: &[u8]) -> Option<Self> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).ok().filter(|_| is_name(origin))?;
        Some(Self { origin: origin.to_owned(), pair })
    }

    /// What others verify by.
    #[must_use]
    pub fn verifier(&self) -> Verifier {
        let mut public = [0; 32];
        public.copy_from_slice(self.pair.public_key().as_ref());
        Verifier { origin: self.origin.clone(), public }
    }

    /// The same with a line more, which is a signature of nobody that anybody knows, and by which it differs from every other.
    #[must_use]
    pub fn sign_as(&self, size: u64, root: Hash, mark: &[u8; 16]) -> String {
        let nobody = [&[0; 4][..], mark].concat();
        format!("{}— {}/leader {}\n", self.sign(size, root), self.origin, STANDARD.encode(nobody))
    }

    /// The signed note.
    #[must_use]
    pub fn sign(&self, size: u64, root: Hash) -> String {
        let body = Checkpoint { origin: self.origin.clone(), size, root }.body();
        let id = key_id(&self.origin, self.pair.public_key().as_ref());
        let signature = [&id[..], self.pair.sign(body.as_bytes()).as_ref()].concat();
        format!("{body}\n— {} {}\n", self.origin, STANDARD.encode(signature))
    }
}

/// The public half of a key, with its name: `NAME+ID+KEY`, as programs for signed notes take it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verifier {
    origin: String,
    public: [u8; 32],
}

impl std::fmt::Display for Verifier {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let id = u32::from_be_bytes(key_id(&self.origin, &self.public));
        let key = STANDARD.encode([&[ALGORITHM][..], &self.public].concat());
        write!(formatter, "{}+{id:08x}+{key}", self.origin)
    }
}

impl std::str::FromStr for Verifier {
    type Err = NoVerifier;

    fn from_str(text: &str) -> Result<Self, NoVerifier> {
        let read = || {
            let (origin, rest) = text.split_once('+')?;
            let (_, key) = rest.split_once('+')?;
            let [ALGORITHM, public @ ..] = STANDARD.decode(key).ok()?.try_into().ok().map(|key: [u8; 33]| key)? else { return None };
            let verifier = Self { origin: origin.to_owned(), public };
            (is_name(origin) && verifier.to_string() == text).then_some(verifier)
        };
        read().ok_or(NoVerifier)
    }
}

impl Verifier {
    /// Which log.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Reads a note that this key must have signed. Signatures of others, such as witnesses, are passed over.
    ///
    /// # Errors
    /// See [`Unsigned`].
    pub fn open(&self, note: &[u8]) -> Result<Checkpoint, Unsigned> {
        let note = std::str::from_utf8(note).ok().filter(|note| note.len() <= MOST_BYTES).ok_or(Unsigned::Malformed)?;
        let end = note.rfind("\n\n").ok_or(Unsigned::Malformed)?;
        let (body, signatures) = (&note[..=end], &note[end + 2..]);
        let checkpoint = Checkpoint::parse(body).ok_or(Unsigned::Malformed)?;
        if checkpoint.origin != self.origin {
            return Err(Unsigned::OtherOrigin);
        }
        let is_ours = |line: &str| {
            let signature = line.strip_prefix("— ")?.split_once(' ').filter(|(name, _)| *name == self.origin)?.1;
            let signature = STANDARD.decode(signature).ok()?;
            let (id, signature) = signature.split_at_checked(4)?;
            (id == key_id(&self.origin, &self.public)).then_some(())?;
            UnparsedPublicKey::new(&ED25519, &self.public).verify(body.as_bytes(), signature).ok()
        };
        if signatures.lines().any(|line| is_ours(line).is_some()) { Ok(checkpoint) } else { Err(Unsigned::NotSigned) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn signer() -> Signer {
        Signer::new("paddock.dev/audit/test", &[7; 32]).unwrap()
    }

    /// The example of C2SP signed-note, whose key was made by Go's `sumdb/note`.
    #[test]
    fn a_key_of_another_program_is_read() {
        let text = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
        let verifier: Verifier = text.parse().unwrap();
        assert_eq!((verifier.origin(), verifier.to_string().as_str()), ("PeterNeumann", text));
        for broken in ["", "a+b", "PeterNeumann+c74f20a4+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW", "a b+00000000+AR=="] {
            assert_eq!(broken.parse::<Verifier>(), Err(NoVerifier), "{broken}");
        }
    }

    #[test]
    fn what_was_signed_is_read_and_nothing_else() {
        let note = signer().sign(5, [1; 32]);
        let verifier = signer().verifier();
        assert_eq!(verifier.open(note.as_bytes()), Ok(Checkpoint { origin: "paddock.dev/audit/test".into(), size: 5, root: [1; 32] }));
        let witnessed = format!("{note}— witness.example AAAAAAAA\n");
        assert!(verifier.open(witnessed.as_bytes()).is_ok());
        let marked = signer().sign_as(5, [1; 32], &[9; 16]);
        assert!(verifier.open(marked.as_bytes()) == verifier.open(note.as_bytes()) && marked != signer().sign_as(5, [1; 32], &[8; 16]));
        assert_eq!(verifier.open(note.replace("\n5\n", "\n6\n").as_bytes()), Err(Unsigned::NotSigned));
        assert_eq!(verifier.open(note.replace("\n5\n", "\n05\n").as_bytes()), Err(Unsigned::Malformed));
        assert_eq!(verifier.open(note.replace("/test\n5", "/other\n5").as_bytes()), Err(Unsigned::OtherOrigin));
        let other = Signer::new("paddock.dev/audit/test", &[8; 32]).unwrap();
        assert_eq!(other.verifier().open(note.as_bytes()), Err(Unsigned::NotSigned));
        assert!(Signer::new("with space", &[7; 32]).is_none() && Signer::new("a", &[7; 31]).is_none());
        assert!(!format!("{:?}", signer()).contains("seed"));
    }

    proptest! {
        #[test]
        fn bytes_of_anybody_are_refused(mut note in prop::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(signer().verifier().open(&note).is_err());
            note = signer().sign(5, [1; 32]).into_bytes();
            let at = note.len() / 3;
            note[at] ^= 1;
            prop_assert!(signer().verifier().open(&note).is_err());
        }
    }
}
