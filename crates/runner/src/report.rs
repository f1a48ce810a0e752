//! Writing frames.

use std::io::Write;

use paddock_protocol::{Frame, MAX_CHUNK, Payload, RefusedReason, Stream};

/// Why the job is not run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: RefusedReason,
    pub(crate) detail: String,
}

impl Refusal {
    pub(crate) fn new(reason: RefusedReason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into().chars().take(200).collect() }
    }
}

/// Numbers frames and writes them. A failed write is not reported: there is nowhere to report it to, and the script must end all the same.
pub(crate) struct Reporter<W: Write> {
    out: W,
    sequence: u64,
}

impl<W: Write> Reporter<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, sequence: 0 }
    }

    pub(crate) fn say(&mut self, payload: Payload) {
        if let Some(line) = (Frame { sequence: self.sequence, payload }).to_line() {
            self.sequence += 1;
            let _ = self.out.write_all(line.as_bytes()).and_then(|()| self.out.flush());
        }
    }

    pub(crate) fn output(&mut self, stream: Stream, offset: u64, data: &[u8]) {
        let mut offset = offset;
        for chunk in data.chunks(MAX_CHUNK) {
            self.say(Payload::Out { stream, offset, data: chunk.to_vec() });
            offset += chunk.len() as u64;
        }
    }

    pub(crate) fn refuse(&mut self, refusal: Refusal) {
        self.say(Payload::Refused { reason: refusal.reason, detail: refusal.detail });
        self.say(Payload::Finished {});
    }
}
