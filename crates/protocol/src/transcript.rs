//! Everything that a runner has said so far, put together from any number of streams.
//!
//! Attach gives the lines early but may be cut or opened late; the log gives all of them. Both go into the same transcript: a line counts
//! once, and only after all lines before it.

use std::sync::Arc;

use crate::line::{Line, MAX_TOTAL};
use crate::payload::{Payload, Refused, Report, Stream};
use crate::seal::{Opener, RunKey, Summary};

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

/// What a runner has said. Plain values: [`Reader`] fills them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transcript {
    /// Boot identifier of the runner.
    pub boot: Option<String>,
    /// Another runner has spoken than the one of `boot`: the container was started a second time. Nothing that it says counts.
    pub rebooted: bool,
    /// Set when the runner will not run the job.
    pub refused: Option<Refused>,
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
    /// Lines that were not this runner's.
    pub noise: u64,
}

impl Transcript {
    /// After the first `report` only `finished` counts: what the operator stored must not change under it.
    fn take(&mut self, payload: Payload) {
        match payload {
            Payload::Refused(refused) => self.refuse(refused),
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

    fn refuse(&mut self, Refused { reason, detail }: Refused) {
        self.refused.get_or_insert_with(|| Refused { reason, detail: detail.chars().take(256).collect() });
    }

    /// Takes the summary of a run whose log told no end.
    pub fn take_summary(&mut self, summary: Summary) {
        if self.report.is_none() {
            self.report = Some(summary.report);
            if let Some(output) = summary.output {
                self.output = output.into_bytes();
            }
            for (captured, whole) in [(&mut self.stdout, summary.stdout), (&mut self.stderr, summary.stderr)] {
                if let Some(whole) = whole {
                    *captured = Captured { head: whole.into_bytes(), ..Captured::default() };
                }
            }
        }
    }
}

/// Reads any number of streams of one runner into one transcript.
pub struct Reader {
    key: RunKey,
    opener: Option<Opener>,
    next: u64,
    taken: usize,
    gap: bool,
    /// Shared with whoever looks at it: it may be megabytes.
    transcript: Arc<Transcript>,
}

impl Reader {
    /// For the runner of the run whose key this is.
    pub fn new(key: RunKey) -> Self {
        Self { key, opener: None, next: 0, taken: 0, gap: false, transcript: Arc::default() }
    }

    /// For the one runner that was told to start, which had this boot identifier: what its log says of another one first does not count.
    pub fn of_boot(key: RunKey, boot: &str) -> Self {
        let mut reader = Self::new(key);
        reader.ready(boot.to_owned());
        reader
    }

    /// Everything so far.
    pub fn transcript(&self) -> &Arc<Transcript> {
        &self.transcript
    }

    /// A line was seen before one that must precede it: something was missed, and the log must be read.
    pub fn has_gap(&self) -> bool {
        self.gap
    }

    /// Begins a second reading from the first line, for example of the log: what was taken stays, and nothing is taken twice.
    pub fn reread(&mut self) {
        self.gap = false;
    }

    /// Takes one line without its line feed. Says whether it told something new.
    pub fn take_line(&mut self, line: &[u8]) -> bool {
        let news = match Line::parse(line) {
            _ if self.transcript.rebooted => return false,
            Some(Line::Ready { boot, .. }) => self.ready(boot),
            // In the clear, so it counts only as long as no script can have written it.
            // A runner refuses in the clear before it has told its key: this is another one than that which was started.
            Some(Line::Refused(_)) if self.transcript.boot.is_some() && !self.transcript.accepted => {
                Arc::make_mut(&mut self.transcript).rebooted = true;
                Some(true)
            }
            Some(Line::Refused(refused)) if !self.transcript.accepted => {
                let news = self.transcript.refused.is_none();
                let transcript = Arc::make_mut(&mut self.transcript);
                transcript.refuse(refused);
                transcript.finished = true;
                Some(news)
            }
            Some(Line::Sealed { sequence, sealed }) => self.sealed(sequence, &sealed, line.len()),
            Some(Line::Refused(_)) | None => None,
        };
        if news.is_none() && !line.is_empty() {
            Arc::make_mut(&mut self.transcript).noise += 1;
        }
        news.unwrap_or(false)
    }

    fn ready(&mut self, boot: String) -> Option<bool> {
        match &self.transcript.boot {
            Some(known) if *known == boot => Some(false),
            // A script cannot open the runner's standard output, but if it could, this is the worst that it could say.
            Some(_) => {
                Arc::make_mut(&mut self.transcript).rebooted = true;
                Some(true)
            }
            None => {
                self.opener = Some(Opener::new(&self.key, &boot)?);
                Arc::make_mut(&mut self.transcript).boot = Some(boot);
                Some(true)
            }
        }
    }

    fn sealed(&mut self, sequence: u64, sealed: &[u8], length: usize) -> Option<bool> {
        if sequence < self.next || self.transcript.finished {
            return Some(false);
        }
        let (Some(opener), true) = (&mut self.opener, sequence == self.next) else {
            self.gap = true;
            return Some(false);
        };
        if self.taken.saturating_add(length) > MAX_TOTAL {
            return Some(false);
        }
        let payload = opener.open(sealed)?;
        self.taken += length;
        self.next += 1;
        Arc::make_mut(&mut self.transcript).take(payload);
        Some(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::Lines;
    use crate::payload::{Cause, Output, RefusedReason};
    use crate::seal::{Sealer, SealingKey};

    fn key() -> RunKey {
        SealingKey::from_bytes(&[1; 32]).unwrap().of_run("uid")
    }

    fn sealer() -> Sealer {
        Sealer::new(&key().public(), "uid").unwrap()
    }

    fn ready(sealer: &Sealer) -> Vec<u8> {
        Line::Ready { version: 1, boot: sealer.boot().to_owned() }.to_text().unwrap().into_bytes()
    }

    fn say(sealer: &mut Sealer, payloads: &[Payload]) -> Vec<u8> {
        payloads.iter().flat_map(|payload| sealer.seal(payload).unwrap().to_text().unwrap().into_bytes()).collect()
    }

    fn a_run() -> Vec<u8> {
        let out = |offset, data: &str| Payload::Out { stream: Stream::Stdout, offset, data: data.into() };
        let mut sealer = sealer();
        let report = Report {
            exit_code: Some(0),
            signal: None,
            cause: Cause::Itself,
            stdout_bytes: 103,
            stderr_bytes: 0,
            first_output_milliseconds: Some(1),
            output: Output::Absent {},
            cpu_milliseconds: 1,
            peak_memory_bytes: 2,
            wall_milliseconds: 3,
        };
        let payloads = [
            Payload::Accepted {},
            Payload::Started {},
            out(0, "hel"),
            out(3, "lo"),
            out(100, "end"),
            Payload::Result(report),
            Payload::Finished {},
        ];
        [ready(&sealer), say(&mut sealer, &payloads)].concat()
    }

    fn read(reader: &mut Reader, bytes: &[u8]) {
        Lines::default().push(bytes, |line| _ = reader.take_line(line));
    }

    fn whole(bytes: &[u8]) -> Transcript {
        let mut reader = Reader::new(key());
        read(&mut reader, bytes);
        Transcript::clone(reader.transcript())
    }

    #[test]
    fn a_late_attach_sees_a_gap_and_the_log_fills_it() {
        let all = a_run();
        let ends: Vec<usize> = all.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1).collect();
        let mut reader = Reader::new(key());
        // `ready` was said once more, and `accepted` was missed.
        read(&mut reader, &[&all[..ends[0]], &all[ends[1]..]].concat());
        assert!(reader.has_gap() && reader.transcript().report.is_none());
        reader.reread();
        read(&mut reader, &all);
        assert!(!reader.has_gap());
        assert_eq!(**reader.transcript(), whole(&all));
        assert_eq!(reader.transcript().stdout, Captured { head: b"hello".into(), tail: b"end".into(), tail_offset: 100 });
    }

    #[test]
    fn a_script_that_writes_lines_of_its_own_says_nothing() {
        let (mut runner, mut script) = (sealer(), sealer());
        let begin = [ready(&runner), say(&mut runner, &[Payload::Accepted {}, Payload::Started {}])].concat();
        let out = Payload::Out { stream: Stream::Stdout, offset: 0, data: b"forged".into() };
        let forged = say(&mut script, &[Payload::Accepted {}, Payload::Started {}, out, Payload::Finished {}]);
        let refused = Line::Refused(Refused { reason: RefusedReason::NotSandboxed, detail: String::new() }).to_text().unwrap();
        let transcript = whole(&[&begin[..], &forged, refused.as_bytes()].concat());
        assert_eq!(Transcript { noise: 0, ..transcript.clone() }, whole(&begin));
        assert_eq!(transcript.noise, 2, "a line that is taken for a repetition, or for one that comes too early, is no noise");
        let rest = say(&mut runner, &[Payload::Finished {}]);
        assert!(whole(&[begin, forged, rest].concat()).finished, "what was forged does not keep the runner from being heard");
    }

    #[test]
    fn a_runner_without_a_key_refuses_in_the_clear() {
        let refused = Refused { reason: RefusedReason::NotSandboxed, detail: "d".repeat(300) };
        let transcript = whole(Line::Refused(refused).to_text().unwrap().as_bytes());
        assert!(transcript.finished);
        assert_eq!(transcript.refused.unwrap().detail.len(), 256);
    }

    /// Whoever reads a log again knows which runner was told to start.
    #[test]
    fn what_another_runner_said_before_the_one_that_was_started_does_not_count() {
        let (mut one, two) = (sealer(), sealer());
        let log = [ready(&one), say(&mut one, &[Payload::Accepted {}, Payload::Started {}, Payload::Finished {}])].concat();
        let mut reader = Reader::of_boot(key(), two.boot());
        read(&mut reader, &log);
        assert!(reader.transcript().rebooted && !reader.transcript().started && !reader.transcript().finished);
        let refused = Line::Refused(Refused { reason: RefusedReason::NotSandboxed, detail: String::new() }).to_text().unwrap();
        let mut reader = Reader::of_boot(key(), one.boot());
        read(&mut reader, refused.as_bytes());
        assert!(reader.transcript().rebooted && reader.transcript().refused.is_none(), "the script may have run");
        let mut reader = Reader::of_boot(key(), one.boot());
        read(&mut reader, &log);
        assert_eq!(**reader.transcript(), whole(&log));
    }

    #[test]
    fn a_boot_that_is_no_key_is_not_listened_to() {
        let transcript = whole(b"pdk1 ready 1 boot\n");
        assert_eq!(transcript, Transcript { noise: 1, ..Transcript::default() });
    }

    #[test]
    fn a_summary_counts_only_where_the_log_told_no_end() {
        let mut transcript = whole(&a_run());
        let before = transcript.clone();
        let report = Report { exit_code: Some(9), ..before.report.clone().unwrap() };
        let summary = Summary { report, output: Some("1".into()), stdout: Some("hello".into()), stderr: None };
        transcript.take_summary(summary.clone());
        assert_eq!(transcript, before);
        let mut silent = Transcript::default();
        silent.stdout.push(0, b"hel");
        silent.stderr.push(0, b"err");
        silent.take_summary(summary);
        assert_eq!((silent.report.unwrap().exit_code, silent.output), (Some(9), b"1".to_vec()));
        assert_eq!((silent.stdout.head, silent.stderr.head), (b"hello".to_vec(), b"err".to_vec()), "a log that lost its end is made whole");
    }

    #[test]
    fn a_second_runner_is_noticed_and_not_listened_to() {
        let (mut one, mut two) = (sealer(), sealer());
        let first = [ready(&one), say(&mut one, &[Payload::Accepted {}]), ready(&one)].concat();
        let second = [ready(&two), say(&mut two, &[Payload::Accepted {}, Payload::Started {}, Payload::Finished {}])].concat();
        let transcript = whole(&[first, second].concat());
        assert!(transcript.rebooted && transcript.accepted && !transcript.started && !transcript.finished);
        assert_eq!(transcript.boot.as_deref(), Some(one.boot()));
    }

    proptest::proptest! {
        #[test]
        fn any_split_of_the_stream_gives_the_same(cuts in proptest::collection::vec(0..2000_usize, 0..12)) {
            let all = a_run();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(all.len())).collect();
            cuts.sort_unstable();
            cuts.push(all.len());
            let (mut reader, mut lines, mut from) = (Reader::new(key()), Lines::default(), 0);
            for cut in cuts {
                lines.push(&all[from..cut], |line| _ = reader.take_line(line));
                from = cut;
            }
            proptest::prop_assert_eq!(reader.transcript().as_ref(), &whole(&all));
        }

        #[test]
        fn any_order_of_streams_gives_the_same(order in proptest::collection::vec(0..9_usize, 0..30)) {
            let all = a_run();
            let lines: Vec<&[u8]> = all.split_inclusive(|byte| *byte == b'\n').collect();
            let mut reader = Reader::new(key());
            for index in order {
                read(&mut reader, lines.get(index).copied().unwrap_or_default());
            }
            reader.reread();
            read(&mut reader, &all);
            proptest::prop_assert_eq!(reader.transcript().as_ref(), &whole(&all));
        }
    }
}
