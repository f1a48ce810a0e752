//! Sealing what a runner says to a key that only the operator holds: HPKE (RFC 9180) in base mode, X25519, HKDF-SHA256, ChaCha20-Poly1305.
//!
//! Container logs lie on nodes and go to log shippers before anything is masked, so nothing of a script may be in them in the clear. The
//! encapsulated key is the boot identifier of the runner. It is stored before the script starts, so that afterwards nobody but this runner can
//! say anything that opens: not the script, which can read the job and with it the public key, and not a runner that is started a second time.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use chacha20poly1305::aead::Aead as _;
use chacha20poly1305::{KeyInit as _, Nonce};
use hpke::aead::{AeadCtxR, AeadCtxS, ChaCha20Poly1305};
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable as _, Kem as _, OpModeR, OpModeS, Serializable as _, setup_receiver, setup_sender};
use serde::{Deserialize, Serialize};

use crate::line::Line;
use crate::payload::{Payload, Report};

type Kem = X25519HkdfSha256;
type PrivateKey = <Kem as hpke::Kem>::PrivateKey;

/// Bytes of a [`SealingKey`].
pub const KEY_BYTES: usize = 32;
/// Longest termination message that a kubelet keeps of one container, in bytes.
pub const MAX_TERMINATION_MESSAGE: usize = 4096;

const SUMMARY_MARK: &str = "pdk1 summary ";

/// The operator's secret, from which the keys of all runs are derived.
#[derive(Clone, PartialEq, Eq)]
pub struct SealingKey([u8; KEY_BYTES]);

impl SealingKey {
    /// A new one, from the operating system's random numbers.
    pub fn generate() -> Self {
        let (secret, _) = Kem::gen_keypair();
        Self(secret.to_bytes().into())
    }

    /// One that was stored.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// To be stored where only the operator reads.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The key of one run: the same whenever it is asked for, and another for every other run.
    pub fn of_run(&self, uid: &str) -> RunKey {
        let material = [&self.0[..], b"paddock run key 1\n", uid.as_bytes()].concat();
        let (secret, _) = Kem::derive_keypair(&material);
        RunKey { sealed_for: uid.to_owned(), run: None, secret }
    }

    /// The key of a sandbox that waits for a run which nobody knows yet: another than that of every run.
    pub fn of_sandbox(&self, name: &str) -> RunKey {
        self.of_run(&sandbox(name))
    }

    /// What the egress gateway knows the runner of one run by: the same whenever it is asked for, and another for every other run.
    pub fn token_of_run(&self, uid: &str) -> String {
        let material = [&self.0[..], b"paddock egress token 1\n", uid.as_bytes()].concat();
        let (secret, _) = Kem::derive_keypair(&material);
        URL_SAFE_NO_PAD.encode(secret.to_bytes())
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealingKey(..)")
    }
}

/// Whom a sandbox seals for before it has a run. No UID has a space.
pub fn sandbox(name: &str) -> String {
    format!("sandbox {name}")
}

/// Opens what the runner of one run has sealed.
#[derive(Clone)]
pub struct RunKey {
    sealed_for: String,
    /// Of a sandbox that waited: the run that it was given.
    run: Option<String>,
    secret: PrivateKey,
}

impl RunKey {
    /// Of what the sandbox seals, this opens what it says of this run alone.
    #[must_use]
    pub fn bound_to(self, run: &str) -> Self {
        Self { run: Some(run.to_owned()), ..self }
    }

    /// For the job: everybody may know it.
    pub fn public(&self) -> String {
        STANDARD.encode(Kem::sk_to_pk(&self.secret).to_bytes())
    }
}

impl fmt::Debug for RunKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RunKey({})", self.sealed_for)
    }
}

/// What binds a sealed line to its run.
fn info(run: &str) -> Vec<u8> {
    [b"paddock runner 1\n", run.as_bytes()].concat()
}

/// The end of a run in so few bytes that they fit a termination message: it is there when the log is not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// How the script ended.
    pub report: Report,
    /// The result file as text, if it is UTF-8 and fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// Standard output as text, if it is UTF-8 and all of it fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout: Option<String>,
    /// Standard error in the same way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<String>,
}

/// A runner's side.
pub struct Sealer {
    boot: String,
    /// UID of the run that a sandbox was given while it waited; empty where the key is that of the run.
    run: String,
    context: AeadCtxS<ChaCha20Poly1305, HkdfSha256, Kem>,
    sequence: u64,
}

impl Sealer {
    /// For a run whose public key is this; `None` if it is none.
    pub fn new(public: &str, run: &str) -> Option<Self> {
        let public = <Kem as hpke::Kem>::PublicKey::from_bytes(&STANDARD.decode(public).ok()?).ok()?;
        let (boot, context) = setup_sender::<ChaCha20Poly1305, HkdfSha256, Kem>(&OpModeS::Base, &public, &info(run)).ok()?;
        Some(Self { boot: STANDARD.encode(boot.to_bytes()), run: String::new(), context, sequence: 0 })
    }

    /// From now on only who knows that the sandbox was given this run opens what is sealed: two runs that are given one sandbox by mistake never read
    /// each other.
    pub fn bind(&mut self, run: &str) {
        run.clone_into(&mut self.run);
    }

    /// The boot identifier.
    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// The next line.
    pub fn seal(&mut self, payload: &Payload) -> Option<Line> {
        let sealed = self.context.seal(&payload.encode(), self.run.as_bytes()).ok()?;
        let sequence = self.sequence;
        self.sequence += 1;
        Some(Line::Sealed { sequence, sealed })
    }

    /// The termination message. A summary whose output does not fit goes without it. It must be called once at most: its key is used once.
    pub fn seal_summary(self, summary: &Summary) -> Option<String> {
        let seal = |summary: &Summary| {
            let mut key = [0; KEY_BYTES];
            self.context.export(&summary_label(&self.run), &mut key).ok()?;
            let cipher = chacha20poly1305::ChaCha20Poly1305::new(&key.into());
            let sealed = cipher.encrypt(&Nonce::default(), serde_json::to_vec(summary).ok()?.as_slice()).ok()?;
            Some(SUMMARY_MARK.to_owned() + &STANDARD.encode(sealed)).filter(|text| text.len() <= MAX_TERMINATION_MESSAGE)
        };
        // Whether it fits is known only afterwards; the one that does not never leaves this function.
        let without_streams = Summary { stdout: None, stderr: None, ..summary.clone() };
        seal(summary).or_else(|| seal(&without_streams)).or_else(|| seal(&Summary { output: None, ..without_streams }))
    }
}

/// What the key of the summary is exported by.
fn summary_label(run: &str) -> Vec<u8> {
    [SUMMARY_MARK.as_bytes(), run.as_bytes()].concat()
}

/// The operator's side, for one boot.
pub struct Opener {
    run: String,
    context: AeadCtxR<ChaCha20Poly1305, HkdfSha256, Kem>,
}

impl Opener {
    /// For the runner of this boot; `None` if that is no boot identifier.
    pub fn new(key: &RunKey, boot: &str) -> Option<Self> {
        let boot = <Kem as hpke::Kem>::EncappedKey::from_bytes(&STANDARD.decode(boot).ok()?).ok()?;
        let context = setup_receiver(&OpModeR::Base, &key.secret, &boot, &info(&key.sealed_for)).ok()?;
        Some(Self { run: key.run.clone().unwrap_or_default(), context })
    }

    /// The next payload in order. What does not open changes nothing.
    pub fn open(&mut self, sealed: &[u8]) -> Option<Payload> {
        Payload::decode(&self.context.open(sealed, self.run.as_bytes()).ok()?)
    }

    /// The summary in a termination message. A script can write there too, but nothing that opens.
    pub fn open_summary(&self, message: &str) -> Option<Summary> {
        let sealed = STANDARD.decode(message.strip_prefix(SUMMARY_MARK)?).ok()?;
        let mut key = [0; KEY_BYTES];
        self.context.export(&summary_label(&self.run), &mut key).ok()?;
        let opened = chacha20poly1305::ChaCha20Poly1305::new(&key.into()).decrypt(&Nonce::default(), sealed.as_slice()).ok()?;
        serde_json::from_slice(&opened).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::MAX_LINE;
    use crate::payload::{Cause, MAX_CHUNK, Output, Stream};

    fn pair() -> (Sealer, Opener) {
        let key = SealingKey::from_bytes(&[7; KEY_BYTES]).unwrap().of_run("uid");
        let sealer = Sealer::new(&key.public(), "uid").unwrap();
        let opener = Opener::new(&key, sealer.boot()).unwrap();
        (sealer, opener)
    }

    /// Two leaders, each of whom took the sandbox for free: one run is never told what the other put out.
    #[test]
    fn what_a_sandbox_says_of_its_run_opens_for_that_run_alone() {
        let key = SealingKey::from_bytes(&[7; KEY_BYTES]).unwrap();
        let of_sandbox = key.of_sandbox("sp-1");
        let mut sealer = Sealer::new(&of_sandbox.public(), &sandbox("sp-1")).unwrap();
        let boot = sealer.boot().to_owned();
        sealer.bind("one");
        let line = sealer.seal(&Payload::Accepted {}).unwrap();
        let summary = sealer.seal_summary(&Summary { report: longest_report(), output: None, stdout: None, stderr: None }).unwrap();
        for (key, opens) in [
            (of_sandbox.clone().bound_to("one"), true),
            (of_sandbox.clone().bound_to("two"), false),
            (of_sandbox, false),
            (key.of_sandbox("sp-2").bound_to("one"), false),
            (key.of_run("one"), false),
        ] {
            let mut opener = Opener::new(&key, &boot).unwrap();
            assert_eq!(opener.open(sealed(&line)).is_some(), opens, "{key:?}");
            assert_eq!(opener.open_summary(&summary).is_some(), opens, "{key:?}");
        }
    }

    fn longest_report() -> Report {
        Report {
            exit_code: Some(i32::MIN),
            signal: Some(i32::MIN),
            cause: Cause::Itself,
            stdout_bytes: u64::MAX,
            stderr_bytes: u64::MAX,
            first_output_milliseconds: Some(u64::MAX),
            output: Output::Unusable { why: "w".repeat(200) },
            cpu_milliseconds: u64::MAX,
            peak_memory_bytes: u64::MAX,
            wall_milliseconds: u64::MAX,
        }
    }

    fn sealed(line: &Line) -> &[u8] {
        match line {
            Line::Sealed { sealed, .. } => sealed,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_largest_chunk_fits_a_line() {
        let (mut sealer, _) = pair();
        sealer.sequence = u64::MAX - 1;
        let line = sealer.seal(&Payload::Out { stream: Stream::Result, offset: u64::MAX, data: vec![255; MAX_CHUNK] });
        let text = line.unwrap().to_text().unwrap();
        assert!(text.len() <= MAX_LINE, "{}", text.len());
    }

    #[test]
    fn nothing_opens_but_what_this_runner_said_in_its_order() {
        let (mut sealer, mut opener) = pair();
        let (first, second) = (sealer.seal(&Payload::Accepted {}).unwrap(), sealer.seal(&Payload::Started {}).unwrap());
        let mut of_the_script = Sealer::new(&SealingKey::from_bytes(&[7; KEY_BYTES]).unwrap().of_run("uid").public(), "uid").unwrap();
        assert_eq!(opener.open(sealed(&of_the_script.seal(&Payload::Accepted {}).unwrap())), None);
        assert_eq!(opener.open(sealed(&second)), None);
        for position in 0..sealed(&first).len() {
            let mut torn = sealed(&first).to_vec();
            torn[position] ^= 1;
            assert_eq!(opener.open(&torn), None, "byte {position}");
        }
        assert_eq!(opener.open(sealed(&first)), Some(Payload::Accepted {}));
        assert_eq!(opener.open(sealed(&first)), None);
        assert_eq!(opener.open(sealed(&second)), Some(Payload::Started {}));
    }

    #[test]
    fn a_restarted_operator_opens_the_same_and_another_run_does_not() {
        let master = SealingKey::generate();
        let stored = SealingKey::from_bytes(master.as_bytes()).unwrap();
        let mut sealer = Sealer::new(&master.of_run("one").public(), "one").unwrap();
        let line = sealer.seal(&Payload::Accepted {}).unwrap();
        let open = |key: &SealingKey, uid: &str| Opener::new(&key.of_run(uid), sealer.boot()).unwrap().open(sealed(&line));
        assert_eq!(open(&stored, "one"), Some(Payload::Accepted {}));
        assert_eq!(open(&stored, "two"), None);
        assert_eq!(open(&SealingKey::generate(), "one"), None);
        assert!(Opener::new(&stored.of_run("one"), "not a boot").is_none());
        assert!(Sealer::new("not a key", "one").is_none());
        assert!(!format!("{stored:?} {:?}", stored.of_run("one")).contains(&STANDARD.encode(stored.as_bytes())));
    }

    #[test]
    fn a_summary_fits_the_termination_message_with_or_without_the_output() {
        let report = longest_report();
        for (bytes, is_kept) in [(2000, true), (4000, false)] {
            let (sealer, opener) = pair();
            let summary = Summary { report: report.clone(), output: Some("x".repeat(bytes)), stdout: Some("y".into()), stderr: None };
            let message = sealer.seal_summary(&summary).unwrap();
            assert!(message.len() <= MAX_TERMINATION_MESSAGE);
            let opened = opener.open_summary(&message).unwrap();
            assert_eq!(opened.output.is_some(), is_kept);
            assert_eq!(opened.report, report);
            assert_eq!(opener.open_summary(&message[..message.len() - 4]), None);
        }
    }
}
