//! Saying what is the case: sealed lines on standard output, and at the end a summary for the kubelet to keep.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::libc::{O_NOFOLLOW, O_NONBLOCK};
use paddock_protocol::{Line, MAX_CHUNK, Payload, Refused, RefusedReason, Sealer, Stream, Summary, VERSION};

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

/// Writes lines. A failed write is not reported: there is nowhere to report it to, and the script must end all the same.
pub(crate) struct Reporter<W: Write> {
    out: W,
    /// There is one from the first `ready` on: before that nobody could open what it seals.
    sealer: Option<Sealer>,
}

impl<W: Write> Reporter<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, sealer: None }
    }

    /// Says `ready` with the boot identifier of this sealer, by which everything that follows is sealed.
    pub(crate) fn begin(&mut self, sealer: Sealer) {
        self.sealer = Some(sealer);
        self.ready();
    }

    /// What follows is of this run.
    pub(crate) fn bind(&mut self, run: &str) {
        if let Some(sealer) = &mut self.sealer {
            sealer.bind(run);
        }
    }

    /// Says `ready` once more.
    pub(crate) fn ready(&mut self) {
        if let Some(sealer) = &self.sealer {
            let boot = sealer.boot().to_owned();
            self.write(&Line::Ready { version: VERSION, boot });
        }
    }

    pub(crate) fn boot(&self) -> &str {
        self.sealer.as_ref().map(Sealer::boot).unwrap_or_default()
    }

    pub(crate) fn say(&mut self, payload: &Payload) {
        if let Some(line) = self.sealer.as_mut().and_then(|sealer| sealer.seal(payload)) {
            self.write(&line);
        }
    }

    pub(crate) fn output(&mut self, stream: Stream, offset: u64, data: &[u8]) {
        let mut offset = offset;
        for chunk in data.chunks(MAX_CHUNK) {
            self.say(&Payload::Out { stream, offset, data: chunk.to_vec() });
            offset += chunk.len() as u64;
        }
    }

    /// Who reads nothing yet finds in the termination log why.
    pub(crate) fn refuse(&mut self, refusal: Refusal, termination_log: &Path) {
        let refused = Refused { reason: refusal.reason, detail: refusal.detail };
        if self.sealer.is_some() {
            self.say(&Payload::Refused(refused));
            self.say(&Payload::Finished {});
        } else {
            let line = Line::Refused(refused);
            self.write(&line);
            keep(&line.to_text().unwrap_or_default(), termination_log);
        }
    }

    /// The last: nothing can be said after it.
    pub(crate) fn finish(&mut self, summary: &Summary, termination_log: &Path) {
        self.say(&Payload::Result(summary.report.clone()));
        self.say(&Payload::Finished {});
        let message = self.sealer.take().and_then(|sealer| sealer.seal_summary(summary)).unwrap_or_default();
        keep(&message, termination_log);
    }

    fn write(&mut self, line: &Line) {
        if let Some(text) = line.to_text() {
            let _ = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
        }
    }
}

/// What a script has made of the termination log does not matter, as long as it is a file.
fn keep(message: &str, termination_log: &Path) {
    let file = OpenOptions::new().write(true).truncate(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(termination_log);
    let _ = file.and_then(|mut file| file.write_all(message.as_bytes()));
}
