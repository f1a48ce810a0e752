//! Operator to runner: one JSON value a line, over the container's standard input.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::job::JobFiles;

/// Longest line that the runner reads, in bytes.
pub const MAX_CONTROL_LINE: usize = 4096;
/// Bytes of a file in one message: as base64 they fit a line.
const PIECE: usize = 2880;

/// What the operator can say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ControlMessage {
    /// Asks for the `ready` line once more: an attach stream shows only what is written after it was opened.
    Hello {},
    /// A piece of a file of the job, for a sandbox that waits for one. Whoever has got a piece is nobody else's any more: it says no `ready` again.
    Job {
        /// Of which file.
        file: JobFile,
        /// Bytes before this piece. 0 begins the file anew; one that does not follow what is there is dropped.
        offset: usize,
        /// The bytes as base64.
        data: String,
    },
    /// Starts the script. It counts only if `boot` is that of this very runner process and `digest` is that of the job, and only
    /// once: a container that the kubelet started a second time has another `boot` and waits in vain.
    Start {
        /// [`crate::JobFiles::digest`].
        digest: String,
        /// From the `ready` line.
        boot: String,
        /// What the runner shows the gateway, if the job has one: printable ASCII. It is in nothing that is stored.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token: Option<String>,
    },
    /// Ends the script: TERM, the grace period, KILL. Before the start it ends the runner.
    Stop {},
    /// Ends the script at once: KILL. Before the start it ends the runner.
    Kill {},
}

/// One of [`JobFiles`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum JobFile {
    /// [`crate::JOB_FILE`].
    Job,
    /// See [`crate::script_file`].
    Script,
    /// [`crate::INPUT_FILE`].
    Input,
}

/// The messages that bring a job to a sandbox that waits for one. The start message follows them.
pub fn pieces(files: &JobFiles) -> Vec<ControlMessage> {
    let of = |file: JobFile, bytes: &[u8]| {
        // An empty file is there too.
        let begins = (0..bytes.len().max(1)).step_by(PIECE);
        let piece = |offset: usize| STANDARD.encode(&bytes[offset..bytes.len().min(offset + PIECE)]);
        begins.map(|offset| ControlMessage::Job { file, offset, data: piece(offset) }).collect::<Vec<_>>()
    };
    let input = files.input.as_deref().map(|input| of(JobFile::Input, input));
    [of(JobFile::Job, &files.job), of(JobFile::Script, &files.script), input.unwrap_or_default()].concat()
}

impl ControlMessage {
    /// The line with its line feed.
    pub fn to_line(&self) -> String {
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }

    /// The message in a line, `None` if it is none.
    pub fn parse(line: &[u8]) -> Option<Self> {
        if line.len() > MAX_CONTROL_LINE { None } else { serde_json::from_slice(line).ok() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_read_back() {
        for message in [
            ControlMessage::Hello {},
            ControlMessage::Start { digest: "d".into(), boot: "b".into(), token: None },
            ControlMessage::Start { digest: "d".into(), boot: "b".into(), token: Some("t".into()) },
            ControlMessage::Stop {},
            ControlMessage::Kill {},
            ControlMessage::Job { file: JobFile::Script, offset: usize::MAX, data: "x".repeat(PIECE / 3 * 4) },
        ] {
            assert_eq!(ControlMessage::parse(message.to_line().trim_end().as_bytes()), Some(message));
        }
        assert_eq!(ControlMessage::parse(b"start"), None);
        assert_eq!(ControlMessage::parse(&[b' '; MAX_CONTROL_LINE + 1]), None);
    }
}
