//! The job: what the operator mounts into the sandbox.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// File with the [`Job`] as JSON.
pub const JOB_FILE: &str = "job.json";
/// File with the text of the script, byte for byte. Interpreters that go by the extension of a name get one.
pub fn script_file(extension: Option<&str>) -> String {
    extension.map_or_else(|| "script".to_owned(), |extension| format!("script.{extension}"))
}
/// File with the input as JSON; missing when the run has none.
pub const INPUT_FILE: &str = "input.json";

/// What to run and within which bounds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Job {
    /// [`crate::VERSION`].
    pub version: u32,
    /// UID of the ScriptRun.
    pub run: String,
    /// Interpreter and its own arguments. The path of the script and `args` follow.
    pub command: Vec<String>,
    /// Extension of the script's name: letters and digits. A job without one is the same as before there were any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extension: Option<String>,
    /// Arguments of the script.
    pub args: Vec<String>,
    /// Which interfaces the sandbox may have.
    pub interfaces: Interfaces,
    /// Seconds from the start of the runner until it gives up waiting for the start message.
    pub start_budget_seconds: u32,
    /// Seconds from the start of the interpreter until it is ended.
    pub timeout_seconds: u32,
    /// Seconds between TERM and KILL.
    pub grace_seconds: u32,
    /// Public key of the run: what the runner says is sealed to it.
    pub seal_to: String,
    /// Bytes kept of each output stream: half of the beginning, half of the end.
    pub stream_bytes: u32,
    /// Largest result file.
    pub result_bytes: u32,
    /// Largest file that the script can write: it bounds what is writable besides the scratch directory.
    pub file_bytes: u64,
    /// Where the script's connections go. A job without one has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Egress>,
}

/// The gateway through which a script connects to what it was granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Egress {
    /// Where it is, and by what a sandbox sees that its network policy is enforced: one for each family of addresses that the gateway has, the one that it
    /// prefers first. A sandbox looks up no names.
    pub gates: Vec<Gate>,
    /// The name in its certificate.
    pub name: String,
    /// The certificate, as PEM, of who has issued that.
    pub authority: String,
}

/// Two ports of the gateway at one of its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Gate {
    /// The one that the network policy allows: until it answers, silence of the other says nothing.
    pub allowed: std::net::SocketAddr,
    /// One that is listened at, and that the network policy forbids: if it answers, nothing is started.
    pub forbidden: std::net::SocketAddr,
}

/// Which network interfaces the runner accepts around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Interfaces {
    /// None, or `lo` alone.
    LoopbackOnly,
    /// Any. The network policy is what confines the sandbox.
    Any,
}

/// The files of a job, as bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobFiles {
    /// [`JOB_FILE`].
    pub job: Vec<u8>,
    /// See [`script_file`].
    pub script: Vec<u8>,
    /// [`INPUT_FILE`].
    pub input: Option<Vec<u8>>,
}

impl JobFiles {
    /// SHA-256 over all files, each with its length before it, in hexadecimal. The start message carries it, so that the runner runs
    /// exactly what was admitted.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(b"paddock job 1\n");
        for part in [Some(&self.job), Some(&self.script), self.input.as_ref()] {
            match part {
                Some(bytes) => {
                    hash.update([1]);
                    hash.update((bytes.len() as u64).to_be_bytes());
                    hash.update(bytes);
                }
                None => hash.update([0]),
            }
        }
        hex(&hash.finalize())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        for nibble in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0'));
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(job: &str, script: &str, input: Option<&str>) -> JobFiles {
        JobFiles { job: job.into(), script: script.into(), input: input.map(Into::into) }
    }

    #[test]
    fn the_digest_tells_where_one_file_ends_and_the_next_begins() {
        let all = [files("ab", "c", None), files("a", "bc", None), files("ab", "c", Some("")), files("ab", "", Some("c"))];
        for (i, one) in all.iter().enumerate() {
            for other in &all[i + 1..] {
                assert_ne!(one.digest(), other.digest(), "{one:?} {other:?}");
            }
        }
    }
}
