//! Runner to operator: one frame a line, `pdk1 SEQUENCE CHECKSUM JSON`, over the container's standard output.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest line with its line feed, in bytes: the log drivers of container runtimes split longer ones.
pub const MAX_LINE: usize = 8192;
/// Most bytes of output in one frame: as base64 with everything around it they fit a line.
pub const MAX_CHUNK: usize = 5 * 1024;
/// Most bytes that a runner writes in all: the kubelet keeps 10 MiB of a log before it rotates.
pub const MAX_TOTAL: usize = 4 * 1024 * 1024;

const MARK: &str = "pdk1";

/// One frame.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// Counts up from 0 without a gap.
    pub sequence: u64,
    /// What it says.
    pub payload: Payload,
}

/// What a frame says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Payload {
    /// The runner is where it should be and waits for the start message.
    Ready {
        /// [`crate::VERSION`].
        version: u32,
        /// Random, made anew by every runner process.
        boot: String,
    },
    /// The runner will not run the job.
    Refused {
        /// Why.
        reason: RefusedReason,
        /// For the administrator.
        detail: String,
    },
    /// The start message came and was right.
    Accepted {},
    /// The interpreter runs.
    Started {},
    /// A piece of output.
    Out {
        /// Of which stream.
        stream: Stream,
        /// Where it lies in that stream, in bytes.
        offset: u64,
        /// The bytes.
        #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
        data: Vec<u8>,
    },
    /// The script has ended and all output was sent.
    Result(Report),
    /// Nothing follows.
    Finished {},
}

/// Streams of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// The result file.
    Result,
}

/// Why a runner does not run its job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RefusedReason {
    /// The kernel around it is not gVisor's.
    NotSandboxed,
    /// There is an interface besides `lo`.
    UnexpectedInterface,
    /// There is a service account token.
    UnexpectedToken,
    /// The job cannot be read, is of another version, or is not the one of the start message.
    JobMismatch,
    /// No start message came within the start budget.
    NotStarted,
    /// It was stopped before it was started.
    Stopped,
    /// The interpreter cannot be started.
    SpawnFailed,
}

/// How the script ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Exit code, if it exited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Signal that ended it, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// What made it end.
    pub cause: Cause,
    /// Bytes that it wrote to standard output.
    pub stdout_bytes: u64,
    /// Bytes that it wrote to standard error.
    pub stderr_bytes: u64,
    /// What became of the result file.
    pub output: Output,
    /// CPU time of it and everything it started, in milliseconds.
    pub cpu_milliseconds: u64,
    /// Largest resident set of one of its processes, in bytes.
    pub peak_memory_bytes: u64,
    /// Milliseconds from its start to its end.
    pub wall_milliseconds: u64,
}

/// What made a script end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Cause {
    /// It ended by itself.
    Itself,
    /// The runner ended it because its time was over.
    TimedOut,
    /// The runner ended it because it was told to.
    Stopped,
}

/// What became of the result file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Output {
    /// The script wrote none.
    Absent {},
    /// This many bytes, sent as frames of [`Stream::Result`].
    Present {
        /// Number of bytes.
        bytes: u64,
    },
    /// It is a file that cannot be taken.
    Unusable {
        /// Why.
        why: String,
    },
}

impl Frame {
    /// The line with its line feed; `None` if it would be longer than [`MAX_LINE`].
    pub fn to_line(&self) -> Option<String> {
        let json = serde_json::to_string(&self.payload).ok()?;
        let line = format!("{MARK} {} {:08x} {json}\n", self.sequence, checksum(self.sequence, &json));
        (line.len() <= MAX_LINE).then_some(line)
    }

    /// The frame in a line, `None` if it is none.
    pub fn parse(line: &[u8]) -> Option<Self> {
        if line.len() > MAX_LINE {
            return None;
        }
        let text = std::str::from_utf8(line).ok()?;
        let mut parts = text.splitn(4, ' ');
        if parts.next() != Some(MARK) {
            return None;
        }
        let number = parts.next()?;
        let sequence: u64 = number.parse().ok()?;
        let sum = parts.next()?;
        let json = parts.next()?;
        // One way to write a number and a checksum, so that two lines that differ are never the same frame.
        if number != sequence.to_string() || sum != format!("{:08x}", checksum(sequence, json)) {
            return None;
        }
        let payload: Payload = serde_json::from_str(json).ok()?;
        if let Payload::Out { data, .. } = &payload
            && data.len() > MAX_CHUNK
        {
            return None;
        }
        Some(Self { sequence, payload })
    }
}

/// CRC-32 over sequence and JSON. It finds torn lines; it keeps nobody from forging one.
fn checksum(sequence: u64, json: &str) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&sequence.to_be_bytes());
    hasher.update(json.as_bytes());
    hasher.finalize()
}

fn to_base64<S: Serializer>(data: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(data))
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
    STANDARD.decode(text.as_bytes()).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_chunk_fits_a_line() {
        let payload = Payload::Out { stream: Stream::Result, offset: u64::MAX, data: vec![255; MAX_CHUNK] };
        let line = Frame { sequence: u64::MAX, payload }.to_line().unwrap();
        assert!(line.len() <= MAX_LINE, "{}", line.len());
    }

    #[test]
    fn a_changed_byte_is_noticed() {
        let line = Frame { sequence: 3, payload: Payload::Accepted {} }.to_line().unwrap();
        let line = line.trim_end().as_bytes();
        assert!(Frame::parse(line).is_some());
        for position in 0..line.len() {
            let mut torn = line.to_vec();
            torn[position] ^= 1;
            assert_eq!(Frame::parse(&torn), None, "byte {position}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(line: Vec<u8>) {
            let _ = Frame::parse(&line);
        }

        #[test]
        fn no_json_behind_a_right_checksum_makes_it_panic(sequence: u64, json in "[\\{\\}\\[\\]\":,a-zA-Z0-9 ]{0,200}") {
            let line = format!("{MARK} {sequence} {:08x} {json}", checksum(sequence, &json));
            let _ = Frame::parse(line.as_bytes());
        }
    }
}
