//! What a runner says once it has begun: sealed, one payload a line.

use serde::{Deserialize, Serialize};

/// Most bytes of output in one payload: sealed and as base64 they fit a line.
pub const MAX_CHUNK: usize = 5 * 1024;

/// One payload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Payload {
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
        /// The bytes. They follow the JSON.
        #[serde(skip)]
        data: Vec<u8>,
    },
    /// The script has ended and all output was sent.
    Result(Report),
    /// The runner did not run the job after all.
    Refused(Refused),
    /// Nothing follows.
    Finished {},
}

/// That a runner does not run its job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refused {
    /// Why.
    pub reason: RefusedReason,
    /// For the administrator.
    pub detail: String,
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
    /// A port answers that the network policy forbids.
    NetworkNotConfined,
    /// The egress gateway does not answer, so that nothing shows that the network policy is enforced.
    GatewayUnreachable,
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
    /// Milliseconds from its start to its first byte of output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_output_milliseconds: Option<u64>,
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
    /// A file of this many bytes. Its beginning, at most [`crate::Job::result_bytes`], is sent as pieces of [`Stream::Result`].
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

impl Payload {
    /// JSON; of output, what was put out follows it after a line feed.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).unwrap_or_default();
        if let Self::Out { data, .. } = self {
            bytes.push(b'\n');
            bytes.extend_from_slice(data);
        }
        bytes
    }

    /// The payload in these bytes, `None` if they hold none.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (json, rest) = bytes.iter().position(|byte| *byte == b'\n').map_or((bytes, None), |at| (&bytes[..at], Some(&bytes[at + 1..])));
        match (serde_json::from_slice(json).ok()?, rest) {
            (Self::Out { stream, offset, .. }, Some(data)) if data.len() <= MAX_CHUNK => {
                Some(Self::Out { stream, offset, data: data.to_vec() })
            }
            (Self::Out { .. }, _) | (_, Some(_)) => None,
            (payload, None) => Some(payload),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_out_may_be_any_bytes() {
        for data in [b"".to_vec(), b"\n\n".to_vec(), vec![0, 255, b'\n', b'{']] {
            let payload = Payload::Out { stream: Stream::Stderr, offset: 7, data };
            assert_eq!(Payload::decode(&payload.encode()), Some(payload));
        }
        assert_eq!(Payload::decode(b"{\"out\":{\"stream\":\"stdout\",\"offset\":0}}"), None);
        assert_eq!(Payload::decode(b"{\"accepted\":{}}\n"), None);
        let too_long = Payload::Out { stream: Stream::Stdout, offset: 0, data: vec![0; MAX_CHUNK + 1] };
        assert_eq!(Payload::decode(&too_long.encode()), None);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes: Vec<u8>) {
            let _ = Payload::decode(&bytes);
        }
    }
}
