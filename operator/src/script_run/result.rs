//! What a script produced, from what the runner said of it: bounded, masked, and without anything invisible. Pure.

use paddock_crds::{LargeResult, NetworkUsage, OutputStream, Redaction, RefusedDestination, RunResult, StoredResult};
use paddock_mask::{Counts, Cut, Masker, Part, plain};
use paddock_policy::{OutputGrant, SecretValues};
use paddock_protocol::{Captured, Output, Report, Transcript};
use serde_json::Value;

use super::job::{RESULT_DEPTH, STORED_BYTES};
use super::text::{cut, visible, visible_json};
use crate::egress::used::Used;

/// Shortest value of a Secret that is searched for in names of hosts, in bytes: nearly every name has a shorter one in it.
const SHORTEST_VALUE: usize = 4;
/// Entries of the list of redactions.
const REDACTIONS: usize = 64;

/// A result, and what of it has to be stored elsewhere before it can be told.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Produced {
    pub(crate) result: RunResult,
    pub(crate) to_store: Option<Vec<u8>>,
}

/// The result of a script that has ended. Without rules to mask by, nothing that it put out is told.
pub(crate) fn produced(transcript: &Transcript, report: &Report, rules: &Result<OutputGrant, String>) -> Produced {
    let mut produced = Produced::default();
    let result = &mut produced.result;
    result.exit_code = report.exit_code.map(|code| code & 255);
    result.signal = report.signal.filter(|signal| (1..=64).contains(signal));
    match with_masker(rules) {
        Err(why) => result.output_error = Some(shown(&format!("the output is withheld: {why}"))),
        Ok((grant, masker)) => {
            let mut covering = Covering { grant, masker, counts: Counts::new() };
            result.stdout = covering.stream(&transcript.stdout, report.stdout_bytes);
            result.stderr = covering.stream(&transcript.stderr, report.stderr_bytes);
            if let Err(why) = covering.output(transcript, report, &mut produced) {
                produced.result.output_error = Some(shown(&why));
            }
            produced.result.redactions = redactions(&covering.counts);
        }
    }
    produced
}

/// What came before a runner fell silent, if anything did.
pub(crate) fn partial_result(transcript: &Transcript, rules: &Result<OutputGrant, String>) -> Option<RunResult> {
    if transcript.stdout == Captured::default() && transcript.stderr == Captured::default() {
        return None;
    }
    let (grant, masker) = match with_masker(rules) {
        Ok(both) => both,
        Err(why) => {
            let output_error = Some(shown(&format!("the output is withheld: {why}")));
            return Some(RunResult { output_error, ..RunResult::default() });
        }
    };
    let mut covering = Covering { grant, masker, counts: Counts::new() };
    let (stdout, stderr) = (covering.stream_so_far(&transcript.stdout), covering.stream_so_far(&transcript.stderr));
    Some(RunResult { stdout, stderr, redactions: redactions(&covering.counts), ..RunResult::default() })
}

/// The result, after the store was asked.
pub(crate) fn with_stored(mut produced: Produced, stored: Option<&Result<StoredResult, String>>) -> RunResult {
    match (produced.to_store.is_some(), stored) {
        (false, _) => {}
        (true, Some(Ok(reference))) => produced.result.reference = Some(reference.clone()),
        (true, Some(Err(why))) => produced.result.output_error = Some(shown(&format!("the result could not be stored: {why}"))),
        (true, None) => produced.result.output_error = Some("the result is too large, and there is no store for it".into()),
    }
    produced.result
}

fn with_masker(rules: &Result<OutputGrant, String>) -> Result<(&OutputGrant, Masker), String> {
    let grant = rules.as_ref().map_err(Clone::clone)?;
    Ok((grant, grant.masker().map_err(|invalid| invalid.to_string())?))
}

fn redactions(counts: &Counts) -> Vec<Redaction> {
    counts.iter().take(REDACTIONS).map(|(rule, count)| Redaction { rule: cut(rule, 320).to_owned(), count: signed(*count) }).collect()
}

fn shown(why: &str) -> String {
    cut(&visible(why.as_bytes()), 256).to_owned()
}

/// What a run has used of the network. The names of hosts are the script's: it can write into them what it was given, so a name in
/// which a value of a Secret stands is left out, and every name where the values are not known. They are searched for as they are: a script that
/// encodes what it tells is not kept from that, and the masker, which knows encodings, takes more time than this may.
pub(crate) fn network_usage(used: &Used, rules: &Result<OutputGrant, String>) -> NetworkUsage {
    let values = rules.as_ref().ok().map(|grant| are_hidden(&grant.secrets));
    let is_told = |to: &str| values.as_ref().is_some_and(|values| has_none_of(values, to));
    let refusals = used.refusals.iter().map(|refusal| RefusedDestination {
        to: if is_told(&refusal.to) { cut(&visible(refusal.to.as_bytes()), 320).to_owned() } else { "withheld".to_owned() },
        reason: format!("{:?}", refusal.outcome),
        rule: cut(&refusal.rule, 512).to_owned(),
        count: signed(refusal.count),
    });
    NetworkUsage {
        connections: signed(used.connections),
        refused: signed(used.refused),
        sent_bytes: signed(used.sent),
        received_bytes: signed(used.received),
        refusals: refusals.collect(),
    }
}

/// What must be in no name of a host, whatever dots are put between.
pub(crate) fn are_hidden(secrets: &SecretValues) -> Vec<String> {
    let texts = secrets.0.iter().flat_map(|(_, value)| plain(value, SHORTEST_VALUE)).filter_map(|text| String::from_utf8(text).ok());
    texts.map(|text| without_dots(&text)).filter(|text| text.len() >= SHORTEST_VALUE).collect()
}

pub(crate) fn has_none_of(hidden: &[String], host: &str) -> bool {
    let host = without_dots(host);
    !hidden.iter().any(|value| host.contains(value))
}

/// The gateway knows names in small letters, and a label of one has at most 63.
fn without_dots(text: &str) -> String {
    text.chars().filter(|letter| *letter != '.').map(|letter| letter.to_ascii_lowercase()).collect()
}

struct Covering<'a> {
    grant: &'a OutputGrant,
    masker: Masker,
    counts: Counts,
}

impl Covering<'_> {
    /// Takes the text of a part, with everything invisible escaped.
    fn take(&mut self, part: &Part<'_>) -> String {
        for (rule, count) in &part.counts {
            *self.counts.entry(rule.clone()).or_default() += count;
        }
        visible(part.text)
    }

    fn stream_so_far(&mut self, captured: &Captured) -> Option<OutputStream> {
        self.stream(captured, captured.head.len() as u64 + captured.tail.len() as u64)
    }

    /// A stream as text. `bytes` is what the runner says that the script wrote; it is never less than what came. More came than is shown: what
    /// is searched goes beyond what is kept, so that a secret at the edge of it is seen whole.
    fn stream(&mut self, captured: &Captured, bytes: u64) -> Option<OutputStream> {
        let half = self.grant.stream_bytes as usize / 2;
        let came = (captured.head.len() + captured.tail.len()) as u64;
        let bytes = bytes.max(came);
        if bytes == 0 {
            return None;
        }
        let joins = captured.tail.is_empty() || captured.tail_offset == captured.head.len() as u64;
        let (head, tail, kept) = if joins {
            let whole = [captured.head.as_slice(), &captured.tail].concat();
            let masked = self.masker.mask(&whole, Cut { start: false, end: bytes > whole.len() as u64 });
            if whole.len() <= 2 * half {
                (self.take(&masked.whole()), None, whole.len())
            } else {
                (self.take(&masked.head(half)), Some(self.take(&masked.tail(whole.len() - half))), 2 * half)
            }
        } else {
            let (head, tail) = (&captured.head, &captured.tail);
            let first = self.masker.mask(head, Cut { start: false, end: true });
            let last = self.masker.mask(tail, Cut { start: true, end: false });
            let kept = head.len().min(half) + tail.len().min(half);
            (self.take(&first.head(half)), Some(self.take(&last.tail(tail.len().saturating_sub(half)))), kept)
        };
        // Escapes make text longer.
        let limit = half + half / 2;
        let head_limit = if tail.is_some() { limit } else { 2 * limit };
        let cut_off = head.len().saturating_sub(head_limit) + tail.as_ref().map_or(0, |tail| tail.len().saturating_sub(limit));
        let truncated = bytes - kept as u64 + cut_off as u64;
        Some(OutputStream {
            text: cut(&head, head_limit).to_owned(),
            tail: tail.map(|tail| last(&tail, limit).to_owned()),
            bytes: signed(bytes),
            truncated_bytes: (truncated > 0).then(|| signed(truncated)),
        })
    }

    /// The result file: as JSON where it fits, else as the policies have it. The error is why there is none.
    fn output(&mut self, transcript: &Transcript, report: &Report, produced: &mut Produced) -> Result<(), String> {
        let bytes = match &report.output {
            Output::Absent {} => return Ok(()),
            Output::Unusable { why } => return Err(why.clone()),
            Output::Present { bytes } => *bytes,
        };
        let limit = self.grant.result_bytes;
        let received = transcript.output.len() as u64;
        if bytes > u64::from(limit) && self.grant.large_result == LargeResult::Truncate {
            let whole = if bytes == received { self.json(&transcript.output).ok() } else { None };
            produced.result.output_text = Some(match whole {
                Some((_, text)) => self.beginning_of_json(&text, bytes),
                None => self.beginning(&transcript.output, bytes),
            });
            return Ok(());
        }
        let allowed = if self.grant.large_result == LargeResult::Store { u64::from(STORED_BYTES) } else { u64::from(limit) };
        if bytes > allowed {
            return Err(format!("the result has {bytes} bytes; at most {allowed} are allowed"));
        }
        if bytes != received {
            return Err("the result file was not received whole".into());
        }
        let (value, text) = self.json(&transcript.output)?;
        if value.is_null() {
            return Err("the result is null, which cannot be told from none".into());
        }
        if bytes > u64::from(limit) {
            if text.len() > STORED_BYTES as usize * 2 {
                return Err(format!("the result has {} bytes once it is masked and control characters are escaped", text.len()));
            }
            produced.to_store = Some(text);
        } else if text.len() > limit as usize * 2 {
            return Err(format!(
                "the result has {} bytes once it is masked and control characters are escaped; at most {} are allowed then",
                text.len(),
                limit * 2
            ));
        } else {
            produced.result.output = Some(value);
        }
        Ok(())
    }

    /// JSON, masked value by value, as a value and as bytes.
    fn json(&mut self, received: &[u8]) -> Result<(Value, Vec<u8>), String> {
        let mut value = parse_bounded(received, RESULT_DEPTH)?;
        self.masker.mask_json(&mut value, &mut self.counts);
        visible_json(&mut value);
        let text = serde_json::to_vec(&value).map_err(|error| error.to_string())?;
        Ok((value, text))
    }

    fn beginning_of_json(&self, text: &[u8], bytes: u64) -> OutputStream {
        let limit = self.grant.result_bytes as usize;
        let text = cut(&String::from_utf8_lossy(text), limit).to_owned();
        OutputStream { text, tail: None, bytes: signed(bytes), truncated_bytes: Some(signed(bytes - limit as u64)) }
    }

    /// What is no JSON, or did not come whole, is searched as text.
    fn beginning(&mut self, received: &[u8], bytes: u64) -> OutputStream {
        let limit = self.grant.result_bytes as usize;
        let masked = self.masker.mask(received, Cut { start: false, end: true });
        let text = self.take(&masked.head(limit));
        let text = cut(&text, limit + limit / 2).to_owned();
        let truncated = bytes.saturating_sub(limit.min(received.len()) as u64);
        OutputStream { text, tail: None, bytes: signed(bytes), truncated_bytes: Some(signed(truncated)) }
    }
}

/// JSON with a bound on its depth. serde_json itself stops at 128 levels.
fn parse_bounded(bytes: &[u8], max_depth: usize) -> Result<Value, String> {
    let value: Value = serde_json::from_slice(bytes).map_err(|error| format!("the result file is not JSON: {error}"))?;
    let mut level = vec![&value];
    let mut depth = 0;
    while !level.is_empty() {
        depth += 1;
        if depth > max_depth {
            return Err(format!("the result is nested deeper than {max_depth} levels"));
        }
        level = level
            .into_iter()
            .flat_map(|value| -> Box<dyn Iterator<Item = &Value>> {
                match value {
                    Value::Array(items) => Box::new(items.iter()),
                    Value::Object(fields) => Box::new(fields.values()),
                    _ => Box::new(std::iter::empty()),
                }
            })
            .collect();
    }
    Ok(value)
}

pub(crate) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The last `limit` bytes, cut between characters.
fn last(text: &str, limit: usize) -> &str {
    let mut start = text.len().saturating_sub(limit);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::json;

    use paddock_protocol::{Line, Lines, Payload, Reader, Sealer, Stream, VERSION};

    use super::super::fixtures::{a_report, sealing_key};
    use super::super::job::MARGIN;
    use super::*;

    const KEY: &str = "AKIAQ3EGRZ2XK7LMN4OP";

    fn rules(large_result: LargeResult) -> OutputGrant {
        OutputGrant { stream_bytes: 512, result_bytes: 64, large_result, ..paddock_policy::output_grant(&[] as &[paddock_policy::Policy]) }
    }

    /// What a runner keeps of `written` by these rules.
    fn captured(written: &[u8], grant: &OutputGrant) -> Captured {
        let half = (grant.stream_bytes + 2 * MARGIN) as usize / 2;
        let head = written[..half.min(written.len())].to_vec();
        let tail = written[head.len().max(written.len().saturating_sub(half))..].to_vec();
        Captured { head, tail_offset: (written.len() - tail.len()) as u64, tail }
    }

    fn of_stdout(written: &[u8]) -> RunResult {
        let grant = rules(LargeResult::Refuse);
        let transcript = Transcript { stdout: captured(written, &grant), ..Transcript::default() };
        let report = Report { stdout_bytes: written.len() as u64, ..a_report(0) };
        produced(&transcript, &report, &Ok(grant)).result
    }

    fn of_output(written: &[u8], large_result: LargeResult) -> Produced {
        let transcript = Transcript { output: written.to_vec(), ..Transcript::default() };
        let report = Report { output: Output::Present { bytes: written.len() as u64 }, ..a_report(0) };
        produced(&transcript, &report, &Ok(rules(large_result)))
    }

    #[test]
    fn json_deeper_than_allowed_is_refused() {
        assert!(parse_bounded(b"[[1]]", 3).is_ok());
        assert!(parse_bounded(b"[[[1]]]", 3).is_err());
        assert!(parse_bounded("[".repeat(10_000).as_bytes(), 64).is_err());
        assert!(parse_bounded(b"1e400", 64).is_err());
    }

    #[test]
    fn streams_keep_both_ends_and_count_what_is_left_out() {
        let written = [vec![b'a'; 5_000], vec![b'-'; 90_000], vec![b'z'; 5_000]].concat();
        let stream = of_stdout(&written).stdout.unwrap();
        assert_eq!((stream.text, stream.tail.unwrap()), ("a".repeat(256), "z".repeat(256)));
        assert_eq!((stream.bytes, stream.truncated_bytes), (100_000, Some(100_000 - 512)));
        let whole = of_stdout(&[b'a'; 512]).stdout.unwrap();
        assert_eq!((whole.text.len(), whole.tail, whole.truncated_bytes), (512, None, None));
        let joined = of_stdout(&[b'a'; 1000]).stdout.unwrap();
        assert_eq!((joined.text.len(), joined.tail.unwrap().len(), joined.truncated_bytes), (256, 256, Some(488)));
    }

    #[test]
    fn what_is_masked_is_counted_by_its_rule() {
        let result = of_stdout(format!("key {KEY} and jane@example.com, {KEY}").as_bytes());
        assert_eq!(result.stdout.unwrap().text, "key [masked:CloudKey] and [masked:Email], [masked:CloudKey]");
        let count = |rule: &str, count| Redaction { rule: rule.into(), count };
        assert_eq!(result.redactions, [count("CloudKey", 2), count("Email", 1)]);
    }

    #[rstest]
    #[case::not_json(b"{", "the result file is not JSON: EOF while parsing an object at line 1 column 1")]
    #[case::null(b"null", "the result is null, which cannot be told from none")]
    #[case::escapes(&[b"\"".as_slice(), &[b'\\', b'u', b'0', b'0', b'0', b'7'].repeat(10), b"\""].concat(), "")]
    fn an_output_is_json_or_an_error(#[case] written: &[u8], #[case] expected: &str) {
        let result = of_output(written, LargeResult::Refuse).result;
        assert_eq!(result.output_error.unwrap_or_default(), expected);
        assert_eq!(result.output.is_some(), expected.is_empty());
    }

    #[test]
    fn a_large_result_is_refused_truncated_or_stored() {
        let written = json!({ "key": KEY, "rest": "x".repeat(100) }).to_string().into_bytes();
        let refused = of_output(&written, LargeResult::Refuse);
        assert!(refused.result.output_error.as_ref().is_some_and(|why| why.contains("bytes; at most 64")), "{refused:?}");
        let truncated = of_output(&written, LargeResult::Truncate).result.output_text.unwrap();
        assert!(truncated.text.starts_with("{\"key\":\"[masked:CloudKey]\",\"rest\":\"xx"), "{truncated:?}");
        assert_eq!(truncated.truncated_bytes, i64::try_from(written.len() - 64).ok());
        let escaped = [br#"{"a":"jane\u0040example.com","password":"q\"w","rest":""#.as_slice(), &[b'x'; 100], b"\"}"].concat();
        let truncated = of_output(&escaped, LargeResult::Truncate).result.output_text.unwrap();
        assert!(truncated.text.starts_with("{\"a\":\"[masked:Email]\",\"password\":\"[masked:Password]\""), "{truncated:?}");
        let stored = of_output(&written, LargeResult::Store);
        assert_eq!(stored.result.output, None);
        let bytes = stored.to_store.clone().unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&bytes).unwrap()["key"], "[masked:CloudKey]");
        let reference = StoredResult { url: "s3://results/x".into(), bytes: 1, sha256: String::new() };
        assert_eq!(with_stored(stored.clone(), Some(&Ok(reference.clone()))).reference, Some(reference));
        for outcome in [None, Some(&Err("no".to_owned()))] {
            assert!(with_stored(stored.clone(), outcome).output_error.is_some());
        }
    }

    #[test]
    fn without_rules_nothing_is_told_but_how_it_ended() {
        let transcript = Transcript { stdout: captured(b"text", &rules(LargeResult::Refuse)), ..Transcript::default() };
        let why = Err("ClusterSandboxPolicy x cannot be read".to_owned());
        let result = produced(&transcript, &a_report(3), &why).result;
        assert_eq!((result.exit_code, result.stdout.clone()), (Some(3), None));
        assert!(result.output_error.unwrap().contains("x cannot be read"));
        assert!(partial_result(&transcript, &why).unwrap().stdout.is_none());
    }

    /// One of each kind that has a shape, all made up.
    const SECRETS: [&str; 5] = [
        KEY,
        "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
        "jane.doe@example.com",
        "DE89 3704 0044 0532 0130 00",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    ];

    /// Text with secrets in it, and where each lies.
    fn text_with_secrets() -> impl Strategy<Value = String> {
        let piece = ("[a-z \n]{0,400}", 0..SECRETS.len()).prop_map(|(text, secret)| format!("{text} {} ", SECRETS[secret]));
        prop::collection::vec(piece, 1..12).prop_map(|pieces| pieces.concat())
    }

    /// The lines of a runner whose script writes `text` in pieces of these sizes, to a stream and as its result.
    fn sealed(text: &str, sizes: &[usize], grant: &OutputGrant) -> Vec<u8> {
        let mut sealer = Sealer::new(&sealing_key().of_run("uid-1").public(), "uid-1").unwrap();
        let mut lines = Line::Ready { version: VERSION, boot: sealer.boot().to_owned() }.to_text().unwrap();
        let mut say = |payload| lines.push_str(&sealer.seal(&payload).unwrap().to_text().unwrap());
        let kept = captured(text.as_bytes(), grant);
        let output = json!(text).to_string().into_bytes();
        let bytes = output.len() as u64;
        for (stream, start, data) in
            [(Stream::Stdout, 0, kept.head), (Stream::Stdout, kept.tail_offset, kept.tail), (Stream::Result, 0, output)]
        {
            let (mut offset, mut sizes) = (0, sizes.iter().cycle());
            while offset < data.len() {
                let end = data.len().min(offset + sizes.next().unwrap());
                say(Payload::Out { stream, offset: start + offset as u64, data: data[offset..end].to_vec() });
                offset = end;
            }
        }
        say(Payload::Result(Report { stdout_bytes: text.len() as u64, output: Output::Present { bytes }, ..a_report(0) }));
        say(Payload::Finished {});
        lines.into_bytes()
    }

    /// What a status tells after these streams: first one that was cut, then the whole log.
    fn told(streams: &[&[u8]], cuts: &[usize], grant: &OutputGrant) -> Produced {
        let mut reader = Reader::new(sealing_key().of_run("uid-1"));
        for stream in streams {
            let mut lines = Lines::default();
            let mut from = 0;
            for cut in cuts.iter().map(|cut| cut % (stream.len() + 1)).chain([stream.len()]) {
                lines.push(&stream[from..cut.max(from)], |line| _ = reader.take_line(line));
                from = cut.max(from);
            }
            reader.reread();
        }
        let transcript = reader.transcript();
        produced(transcript, transcript.report.as_ref().expect("a report"), &Ok(grant.clone()))
    }

    proptest! {
        #[test]
        fn no_secret_survives_any_chunking_and_any_split_tells_the_same(
            text in text_with_secrets(),
            sizes in prop::collection::vec(1..600_usize, 1..20),
            mut cuts in prop::collection::vec(any::<usize>(), 0..12),
            attached in any::<usize>(),
        ) {
            cuts.sort_unstable();
            for large in [LargeResult::Truncate, LargeResult::Store] {
                let grant = rules(large);
                let log = sealed(&text, &sizes, &grant);
                let whole = told(&[&log], &[], &grant);
                let cut = told(&[&log[..attached % log.len()], &log], &cuts, &grant);
                prop_assert_eq!(&cut, &whole);
                let status = serde_json::to_string(&whole.result).unwrap();
                let object = String::from_utf8(whole.to_store.unwrap_or_default()).unwrap();
                for secret in SECRETS {
                    prop_assert!(!status.contains(secret) && !object.contains(secret), "{secret} in {status} or {object}");
                }
                prop_assert!(whole.result.redactions.iter().map(|redaction| redaction.count).sum::<i64>() > 0);
            }
        }

        #[test]
        fn no_secret_survives_wherever_it_lies(before in 0..12_000_usize, after in 0..12_000_usize) {
            let written = [" ".repeat(before), KEY.to_owned(), " ".repeat(after)].concat();
            let stream = of_stdout(written.as_bytes()).stdout.unwrap();
            let told = format!("{}|{}", stream.text, stream.tail.unwrap_or_default());
            prop_assert!(!told.replace("[masked:CloudKey]", "").contains(|c: char| c.is_ascii_alphanumeric()), "{told}");
        }
    }
}
