//! Everything that a runner has said so far, put together from any number of streams.
//!
//! Attach gives the frames early but may be cut or opened late; the log gives all of them. Both go into the same transcript: a frame
//! counts once, and only after all frames before it.

use crate::frame::{Frame, MAX_LINE, MAX_TOTAL, Output, Payload, RefusedReason, Report, Stream};

/// Beginning and end of one stream of output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Captured {
    /// From the first byte on without a gap.
    pub head: Vec<u8>,
    /// The last bytes, if something between was left out.
    pub tail: Vec<u8>,
    /// Where the tail begins in the stream.
    pub tail_offset: u64,
}

impl Captured {
    /// Takes a piece. Pieces that overlap what is there, or lie before it, are dropped: a runner sends none.
    fn push(&mut self, offset: u64, data: &[u8]) {
        if offset == self.head.len() as u64 && self.tail.is_empty() {
            self.head.extend_from_slice(data);
        } else if self.tail.is_empty() && offset > self.head.len() as u64 {
            self.tail_offset = offset;
            self.tail.extend_from_slice(data);
        } else if offset == self.tail_offset.saturating_add(self.tail.len() as u64) {
            self.tail.extend_from_slice(data);
        }
    }
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transcript {
    next: u64,
    taken: usize,
    /// Boot identifier from the first `ready` frame.
    pub boot: Option<String>,
    /// Another runner has spoken than the one of `boot`: the container was started a second time. Nothing that it says counts.
    pub rebooted: bool,
    /// Set when the runner will not run the job.
    pub refused: Option<(RefusedReason, String)>,
    /// The start message was accepted.
    pub accepted: bool,
    /// The interpreter was started.
    pub started: bool,
    /// Standard output.
    pub stdout: Captured,
    /// Standard error.
    pub stderr: Captured,
    /// Bytes of the result file.
    pub output: Vec<u8>,
    /// How the script ended.
    pub report: Option<Report>,
    /// The runner said that nothing follows.
    pub finished: bool,
    /// A frame was seen before one that must precede it: something was missed, and the log must be read.
    pub gap: bool,
    /// Lines that were no frames.
    pub noise: u64,
}

impl Transcript {
    /// Takes one line without its line feed. Says whether it told something new.
    pub fn take_line(&mut self, line: &[u8]) -> bool {
        match Frame::parse(line) {
            Some(frame) => self.take(frame, line.len()),
            None => {
                self.noise += u64::from(!line.is_empty());
                false
            }
        }
    }

    fn take(&mut self, frame: Frame, length: usize) -> bool {
        if self.rebooted {
            return false;
        }
        if self.is_of_another_boot(&frame.payload) {
            self.rebooted = true;
            return true;
        }
        if frame.sequence < self.next || self.finished {
            return false;
        }
        if frame.sequence > self.next {
            self.gap = true;
            return false;
        }
        self.taken = self.taken.saturating_add(length);
        if self.taken > MAX_TOTAL {
            return false;
        }
        self.next += 1;
        self.apply(frame.payload);
        true
    }

    /// A second runner numbers its frames from 0 again, so it is told by its `ready` frame alone.
    fn is_of_another_boot(&self, payload: &Payload) -> bool {
        matches!((payload, &self.boot), (Payload::Ready { boot, .. }, Some(known)) if *known != shown(boot))
    }

    /// After the first `report` only `finished` counts: what the operator stored must not change under it.
    fn apply(&mut self, payload: Payload) {
        match payload {
            Payload::Ready { boot, .. } => {
                self.boot.get_or_insert_with(|| shown(&boot));
            }
            Payload::Refused { reason, detail } => {
                self.refused.get_or_insert_with(|| (reason, detail.chars().take(256).collect()));
            }
            Payload::Finished {} => self.finished = true,
            _ if self.report.is_some() => {}
            Payload::Accepted {} => self.accepted = true,
            Payload::Started {} => self.started = true,
            Payload::Out { stream: Stream::Stdout, offset, data } => self.stdout.push(offset, &data),
            Payload::Out { stream: Stream::Stderr, offset, data } => self.stderr.push(offset, &data),
            Payload::Out { stream: Stream::Result, offset, data } => {
                if offset == self.output.len() as u64 {
                    self.output.extend_from_slice(&data);
                }
            }
            Payload::Result(report) => self.report = Some(report),
        }
    }

    /// Begins a second reading from the first frame, for example of the log: what was taken stays, and nothing is taken twice.
    pub fn reread(&mut self) {
        self.gap = false;
    }

    /// The result file as JSON, or why there is none.
    pub fn output_json(&self, max_depth: usize) -> Result<Option<serde_json::Value>, String> {
        match self.report.as_ref().map(|report| &report.output) {
            None | Some(Output::Absent {}) => Ok(None),
            Some(Output::Unusable { why }) => Err(why.chars().take(200).collect()),
            Some(Output::Present { bytes }) if *bytes != self.output.len() as u64 => Err("the result file was not received whole".into()),
            Some(Output::Present { .. }) => parse_bounded(&self.output, max_depth).map(Some),
        }
    }
}

/// A boot identifier as it is kept: a runner's own is shorter.
fn shown(boot: &str) -> String {
    boot.chars().take(64).collect()
}

/// JSON with a bound on its depth. serde_json itself stops at 128 levels.
fn parse_bounded(bytes: &[u8], max_depth: usize) -> Result<serde_json::Value, String> {
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|error| format!("the result file is not JSON: {error}"))?;
    let mut level = vec![&value];
    let mut depth = 0;
    while !level.is_empty() {
        depth += 1;
        if depth > max_depth {
            return Err(format!("the result is nested deeper than {max_depth} levels"));
        }
        level = level
            .into_iter()
            .flat_map(|value| -> Box<dyn Iterator<Item = &serde_json::Value>> {
                match value {
                    serde_json::Value::Array(items) => Box::new(items.iter()),
                    serde_json::Value::Object(fields) => Box::new(fields.values()),
                    _ => Box::new(std::iter::empty()),
                }
            })
            .collect();
    }
    Ok(value)
}

/// Cuts a byte stream into lines, however it arrives. A line that is too long to be a frame is dropped whole.
#[derive(Debug, Default)]
pub struct Lines {
    line: Vec<u8>,
    too_long: bool,
}

impl Lines {
    /// Takes bytes and hands each complete line, without its line feed, to `take`.
    pub fn push(&mut self, bytes: &[u8], mut take: impl FnMut(&[u8])) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (content, ends) = match piece.split_last() {
                Some((b'\n', content)) => (content, true),
                _ => (piece, false),
            };
            if self.line.len() + content.len() > MAX_LINE {
                self.too_long = true;
                self.line.clear();
            } else if !self.too_long {
                self.line.extend_from_slice(content);
            }
            if ends {
                if !self.too_long {
                    take(&self.line);
                }
                self.line.clear();
                self.too_long = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Cause;

    fn lines(payloads: Vec<Payload>) -> Vec<u8> {
        payloads.into_iter().zip(0..).flat_map(|(payload, sequence)| Frame { sequence, payload }.to_line().unwrap().into_bytes()).collect()
    }

    fn a_run() -> Vec<u8> {
        let out = |offset, data: &str| Payload::Out { stream: Stream::Stdout, offset, data: data.into() };
        lines(vec![
            Payload::Ready { version: 1, boot: "b".into() },
            Payload::Accepted {},
            Payload::Started {},
            out(0, "hel"),
            out(3, "lo"),
            out(100, "end"),
            Payload::Result(Report {
                exit_code: Some(0),
                signal: None,
                cause: Cause::Itself,
                stdout_bytes: 103,
                stderr_bytes: 0,
                output: Output::Absent {},
                cpu_milliseconds: 1,
                peak_memory_bytes: 2,
                wall_milliseconds: 3,
            }),
            Payload::Finished {},
        ])
    }

    fn read(transcript: &mut Transcript, bytes: &[u8]) {
        Lines::default().push(bytes, |line| {
            transcript.take_line(line);
        });
    }

    #[test]
    fn a_late_attach_sees_a_gap_and_the_log_fills_it() {
        let all = a_run();
        let middle = all.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        let mut transcript = Transcript::default();
        read(&mut transcript, &all[middle..]);
        assert!(transcript.gap && transcript.report.is_none());
        transcript.reread();
        read(&mut transcript, &all);
        let mut whole = Transcript::default();
        read(&mut whole, &all);
        assert_eq!(transcript, whole);
        assert_eq!(whole.stdout, Captured { head: b"hello".into(), tail: b"end".into(), tail_offset: 100 });
    }

    #[test]
    fn nothing_changes_after_the_report() {
        let mut transcript = Transcript::default();
        read(&mut transcript, &a_run());
        let before = transcript.clone();
        let forged = Frame { sequence: 8, payload: Payload::Out { stream: Stream::Stdout, offset: 5, data: b"x".into() } };
        transcript.take_line(forged.to_line().unwrap().trim_end().as_bytes());
        assert_eq!(transcript, before);
    }

    #[test]
    fn json_deeper_than_allowed_is_refused() {
        assert!(parse_bounded(b"[[1]]", 3).is_ok());
        assert!(parse_bounded(b"[[[1]]]", 3).is_err());
        assert!(parse_bounded("[".repeat(10_000).as_bytes(), 64).is_err());
        assert!(parse_bounded(b"1e400", 64).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_split_of_the_stream_gives_the_same(cuts in proptest::collection::vec(0..1000_usize, 0..12)) {
            let all = a_run();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(all.len())).collect();
            cuts.sort_unstable();
            cuts.push(all.len());
            let (mut transcript, mut cutter, mut from) = (Transcript::default(), Lines::default(), 0);
            for cut in cuts {
                cutter.push(&all[from..cut], |line| { transcript.take_line(line); });
                from = cut;
            }
            let mut whole = Transcript::default();
            read(&mut whole, &all);
            proptest::prop_assert_eq!(transcript, whole);
        }

        #[test]
        fn memory_stays_bounded_whatever_comes(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..50_000)) {
            let mut cutter = Lines::default();
            cutter.push(&bytes, |line| assert!(line.len() <= MAX_LINE));
            proptest::prop_assert!(cutter.line.len() <= MAX_LINE);
        }
    }

    #[test]
    fn a_second_runner_is_noticed_and_not_listened_to() {
        let ready = |boot: &str| Payload::Ready { version: 1, boot: boot.into() };
        let mut transcript = Transcript::default();
        let mut take = |payloads: Vec<Payload>| Lines::default().push(&lines(payloads), |line| _ = transcript.take_line(line));
        take(vec![ready("one"), Payload::Accepted {}, ready("one")]);
        take(vec![ready("two"), Payload::Accepted {}, Payload::Started {}, Payload::Finished {}]);
        assert!(transcript.rebooted && transcript.accepted && !transcript.started && !transcript.finished);
        assert_eq!(transcript.boot.as_deref(), Some("one"));
    }
}
