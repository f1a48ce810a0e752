//! What a script put out, as its run tells it.
//!
//! Patterns of policies can take time in proportion to the square of a text, and the forms of Secrets, large texts and documents much memory. A
//! result with any of these is made in a process of its own: what that does not answer within its bounds is withheld.

use std::process::ExitCode;
use std::time::Duration;

use k8s_openapi::ByteString;
use kube::ResourceExt as _;
use paddock_confined::Bounds;
use paddock_crds::{LargeResult, RunResult, ScriptRun};
use paddock_mask::{Detector, Rule};
use paddock_policy::{OutputGrant, SecretValues};
use paddock_protocol::{Captured, Report, Transcript};
use serde::{Deserialize, Serialize};

use super::result::{Produced, partial_result, produced};
use crate::bounded;
use crate::context::Context;
use crate::error::Error;

pub(crate) const BOUNDS: Bounds = Bounds {
    argument: "tell-result",
    cpu_seconds: 2,
    memory: 128 << 20,
    stack: 8 << 20,
    wall: Duration::from_secs(30),
    // Two megabytes of a result and one of Secrets, both as base64, and the streams.
    question: 16 << 20,
    answer: 16 << 20,
};
/// What is searched for nothing but Paddock's own patterns, and is no longer than this, takes milliseconds.
const QUICK_TEXT: usize = 128 << 10;

/// What the process is asked.
#[derive(Serialize, Deserialize)]
struct Question {
    stdout: Stream,
    stderr: Stream,
    output: ByteString,
    /// Of a runner that fell silent there is none.
    report: Option<Report>,
    stream_bytes: u32,
    result_bytes: u32,
    large_result: LargeResult,
    detectors: Vec<String>,
    /// Names and patterns.
    rules: Vec<(String, String)>,
    /// Names and values.
    secrets: Vec<(String, ByteString)>,
}

#[derive(Serialize, Deserialize)]
struct Stream {
    head: ByteString,
    tail: ByteString,
    tail_offset: u64,
}

/// What it answers.
#[derive(Serialize, Deserialize)]
struct Answer {
    result: Option<RunResult>,
    to_store: Option<String>,
}

/// The result of a script that has ended, and what of it is for the store. `None`: the runner told no end, and nothing was put out.
pub(crate) async fn tell(
    run: &ScriptRun,
    transcript: &Transcript,
    rules: &Result<OutputGrant, String>,
    context: &Context,
) -> Result<Option<Produced>, Error> {
    match rules {
        Ok(grant) if !is_quick(transcript, grant) => {
            let _turn = context.telling.take(&run.namespace().unwrap_or_default(), 1).await?;
            let answer = bounded::ask(&BOUNDS, &Question::new(transcript, grant)).await?;
            Ok(answer.map_or_else(|| told(transcript, &Err(too_costly())), Answer::into_produced))
        }
        _ => Ok(told(transcript, rules)),
    }
}

/// The process.
pub(crate) fn main() -> ExitCode {
    paddock_confined::serve(
        &BOUNDS,
        || (),
        |question: Question| {
            let (transcript, grant) = question.into_parts();
            Answer::new(told(&transcript, &Ok(grant)))
        },
    )
}

/// The same, here and now.
pub(crate) fn told(transcript: &Transcript, rules: &Result<OutputGrant, String>) -> Option<Produced> {
    match &transcript.report {
        Some(report) => Some(produced(transcript, report, rules)),
        None => partial_result(transcript, rules).map(|result| Produced { result, to_store: None }),
    }
}

fn is_quick(transcript: &Transcript, grant: &OutputGrant) -> bool {
    let of_stream = |captured: &Captured| captured.head.len() + captured.tail.len();
    let text = of_stream(&transcript.stdout) + of_stream(&transcript.stderr) + transcript.output.len();
    grant.rules.is_empty() && grant.secrets.0.is_empty() && text <= QUICK_TEXT
}

fn too_costly() -> String {
    format!("covering what has to be covered takes more than {} seconds of CPU, or too much memory", BOUNDS.cpu_seconds)
}

impl Question {
    fn new(transcript: &Transcript, grant: &OutputGrant) -> Self {
        Self {
            stdout: Stream::new(&transcript.stdout),
            stderr: Stream::new(&transcript.stderr),
            output: ByteString(transcript.output.clone()),
            report: transcript.report.clone(),
            stream_bytes: grant.stream_bytes,
            result_bytes: grant.result_bytes,
            large_result: grant.large_result,
            detectors: grant.detectors.iter().map(|detector| detector.as_str().to_owned()).collect(),
            rules: grant.rules.iter().map(|rule| (rule.name.clone(), rule.pattern.clone())).collect(),
            secrets: grant.secrets.0.iter().map(|(name, value)| (name.clone(), ByteString(value.clone()))).collect(),
        }
    }

    fn into_parts(self) -> (Transcript, OutputGrant) {
        let transcript = Transcript {
            stdout: self.stdout.into_captured(),
            stderr: self.stderr.into_captured(),
            output: self.output.0,
            report: self.report,
            ..Transcript::default()
        };
        let is_named = |detector: &Detector| self.detectors.iter().any(|name| name == detector.as_str());
        let grant = OutputGrant {
            stream_bytes: self.stream_bytes,
            result_bytes: self.result_bytes,
            large_result: self.large_result,
            detectors: Detector::ALL.into_iter().filter(is_named).collect(),
            rules: self.rules.into_iter().map(|(name, pattern)| Rule { name, pattern }).collect(),
            secrets: SecretValues(self.secrets.into_iter().map(|(name, value)| (name, value.0)).collect()),
        };
        (transcript, grant)
    }
}

impl Stream {
    fn new(captured: &Captured) -> Self {
        Self { head: ByteString(captured.head.clone()), tail: ByteString(captured.tail.clone()), tail_offset: captured.tail_offset }
    }

    fn into_captured(self) -> Captured {
        Captured { head: self.head.0, tail: self.tail.0, tail_offset: self.tail_offset }
    }
}

impl Answer {
    fn new(produced: Option<Produced>) -> Self {
        let Some(Produced { result, to_store }) = produced else { return Self { result: None, to_store: None } };
        // It is JSON.
        Self { result: Some(result), to_store: to_store.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()) }
    }

    fn into_produced(self) -> Option<Produced> {
        let to_store = self.to_store.map(String::into_bytes);
        self.result.map(|result| Produced { result, to_store })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::super::fixtures::a_report;
    use super::*;

    fn grant() -> OutputGrant {
        paddock_policy::output_grant(&[] as &[paddock_policy::Policy])
    }

    fn transcript() -> Transcript {
        let captured = |text: &[u8]| Captured { head: text.to_vec(), tail: b"end \xff".to_vec(), tail_offset: 90_000 };
        Transcript {
            stdout: captured(b"a \0 b"),
            stderr: captured(b""),
            output: b"[1, \"x\"]".to_vec(),
            report: Some(a_report(3)),
            ..Transcript::default()
        }
    }

    /// The process must not answer anything else than the operator itself would.
    #[test]
    fn a_question_and_its_answer_lose_nothing_on_their_way() {
        let (transcript, mut grant) = (transcript(), grant());
        grant.detectors.remove(&Detector::Email);
        grant.rules = vec![Rule { name: "ticket".into(), pattern: "T-([0-9]+)".into() }];
        grant.secrets = SecretValues(vec![("db".into(), b"\x00\xffsecret".to_vec())]);
        grant.large_result = LargeResult::Store;
        let question = serde_json::to_string(&Question::new(&transcript, &grant)).unwrap();
        let question: Question = serde_json::from_str(&question).unwrap();
        assert_eq!(question.into_parts(), (transcript, grant));
        let produced = Produced { result: RunResult { exit_code: Some(3), ..RunResult::default() }, to_store: Some("[\"ü\"]".into()) };
        let answer = serde_json::to_string(&Answer::new(Some(produced.clone()))).unwrap();
        assert_eq!(serde_json::from_str::<Answer>(&answer).unwrap().into_produced(), Some(produced));
        assert_eq!(Answer::new(None).into_produced(), None);
    }

    #[rstest]
    #[case::plain(|_: &mut Transcript, _: &mut OutputGrant| {}, true)]
    #[case::a_secret(|_: &mut Transcript, grant: &mut OutputGrant| grant.secrets.0.push((String::new(), vec![0])), false)]
    #[case::a_pattern(|_: &mut Transcript, grant: &mut OutputGrant| grant.rules.push(Rule { name: String::new(), pattern: "a".into() }), false)]
    #[case::a_large_text(|transcript: &mut Transcript, _: &mut OutputGrant| transcript.output = vec![0; QUICK_TEXT], false)]
    fn what_could_take_long_is_not_done_here(#[case] change: fn(&mut Transcript, &mut OutputGrant), #[case] expected: bool) {
        let (mut transcript, mut grant) = (transcript(), grant());
        change(&mut transcript, &mut grant);
        assert_eq!(is_quick(&transcript, &grant), expected);
    }
}
