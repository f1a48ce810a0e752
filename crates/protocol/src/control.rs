//! Operator to runner: one JSON value a line, over the container's standard input.

use serde::{Deserialize, Serialize};

/// Longest line that the runner reads, in bytes.
pub const MAX_CONTROL_LINE: usize = 4096;

/// What the operator can say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ControlMessage {
    /// Asks for the `ready` line once more: an attach stream shows only what is written after it was opened.
    Hello {},
    /// Starts the script. It counts only if `boot` is that of this very runner process and `digest` is that of the mounted job, and only
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
        ] {
            assert_eq!(ControlMessage::parse(message.to_line().trim_end().as_bytes()), Some(message));
        }
        assert_eq!(ControlMessage::parse(b"start"), None);
        assert_eq!(ControlMessage::parse(&[b' '; MAX_CONTROL_LINE + 1]), None);
    }
}
