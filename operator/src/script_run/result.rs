//! What a script produced, from what the runner said of it. Pure.

use paddock_crds::{OutputStream, RunResult};
use paddock_protocol::{Captured, Output, Report, Transcript};
use serde_json::Value;

use super::job::RESULT_DEPTH;
use super::text::{cut, visible};

/// Escapes make text longer; each end of a stream is cut to this many bytes after they were made.
const STREAM_END: usize = 12 * 1024;

/// The result of a script that has ended.
pub(crate) fn result(transcript: &Transcript, report: &Report) -> RunResult {
    let (output, output_error) = match output(transcript, report) {
        Ok(output) => (output, None),
        Err(why) => (None, Some(cut(&visible(why.as_bytes()), 256).to_owned())),
    };
    RunResult {
        exit_code: report.exit_code.map(|code| code & 255),
        signal: report.signal.filter(|signal| (1..=64).contains(signal)),
        output,
        output_error,
        stdout: stream(&transcript.stdout, report.stdout_bytes),
        stderr: stream(&transcript.stderr, report.stderr_bytes),
    }
}

/// What came before a runner fell silent, if anything did.
pub(crate) fn partial_result(transcript: &Transcript) -> Option<RunResult> {
    let (stdout, stderr) = (stream_so_far(&transcript.stdout), stream_so_far(&transcript.stderr));
    (stdout.is_some() || stderr.is_some()).then(|| RunResult { stdout, stderr, ..RunResult::default() })
}

/// The result file as JSON, or why there is none.
fn output(transcript: &Transcript, report: &Report) -> Result<Option<Value>, String> {
    match &report.output {
        Output::Absent {} => Ok(None),
        Output::Unusable { why } => Err(why.chars().take(200).collect()),
        Output::Present { bytes } if *bytes != transcript.output.len() as u64 => Err("the result file was not received whole".into()),
        Output::Present { .. } => parse_bounded(&transcript.output, RESULT_DEPTH).map(Some),
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

fn stream_so_far(captured: &Captured) -> Option<OutputStream> {
    stream(captured, captured.head.len() as u64 + captured.tail.len() as u64)
}

/// A stream as text. `bytes` is what the runner says that the script wrote; it is never less than what came.
pub(crate) fn stream(captured: &Captured, bytes: u64) -> Option<OutputStream> {
    let came = (captured.head.len() + captured.tail.len()) as u64;
    let bytes = bytes.max(came);
    if bytes == 0 {
        return None;
    }
    let joins = captured.tail.is_empty() || captured.tail_offset == captured.head.len() as u64;
    let (head, tail) = if joins {
        (visible(&[captured.head.as_slice(), &captured.tail].concat()), None)
    } else {
        (visible(&captured.head), Some(visible(&captured.tail)))
    };
    let limit = if joins { 2 * STREAM_END } else { STREAM_END };
    let cut_off = head.len().saturating_sub(limit) + tail.as_ref().map_or(0, |tail| tail.len().saturating_sub(STREAM_END));
    let tail = tail.map(|tail| last(&tail, STREAM_END).to_owned());
    let truncated = bytes - came + cut_off as u64;
    Some(OutputStream {
        text: cut(&head, limit).to_owned(),
        tail,
        bytes: signed(bytes),
        truncated_bytes: (truncated > 0).then(|| signed(truncated)),
    })
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
    use super::*;

    #[test]
    fn json_deeper_than_allowed_is_refused() {
        assert!(parse_bounded(b"[[1]]", 3).is_ok());
        assert!(parse_bounded(b"[[[1]]]", 3).is_err());
        assert!(parse_bounded("[".repeat(10_000).as_bytes(), 64).is_err());
        assert!(parse_bounded(b"1e400", 64).is_err());
    }
}
