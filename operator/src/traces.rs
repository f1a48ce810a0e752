//! One trace for each run, sent as OTLP over HTTP when the run is over. Off unless an endpoint is named.
//!
//! A trace that cannot be sent is counted and dropped: no run waits for it. There is no text of a script, an input or an output in it, and no
//! message.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::ResourceExt as _;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use paddock_crds::{ConditionType, Phase, ScriptRun};
use prost::Message as _;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Certificate, Client, Url};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use crate::metrics::Metrics;
use crate::names::TRACEPARENT;

/// Longest time that sending one trace may take.
const LIMIT: Duration = Duration::from_secs(5);
/// Traces that are being sent at once; one more is dropped.
const AT_ONCE: usize = 32;

/// Sends traces to one endpoint.
#[derive(Clone)]
pub(crate) struct Traces {
    client: Client,
    url: Url,
    turns: Arc<Semaphore>,
    metrics: Metrics,
}

impl Traces {
    /// `endpoint` is the base URL of an OTLP receiver, such as `http://collector:4318`; `authorities` is a text of PEM blocks. Nothing is sent yet.
    pub(crate) fn open(endpoint: &str, authorities: Option<&str>, metrics: Metrics) -> Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
        let url = Url::parse(&url).with_context(|| format!("the endpoint for traces cannot be read: {endpoint}"))?;
        ensure!(matches!(url.scheme(), "http" | "https"), "the endpoint for traces begins with neither http:// nor https://: {endpoint}");
        // The image holds no certificates.
        let known = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().map(|der| Certificate::from_der(der));
        let mut roots = known.collect::<Result<Vec<_>, _>>().context("a root certificate cannot be used")?;
        if let Some(pem) = authorities {
            roots.extend(Certificate::from_pem_bundle(pem.as_bytes()).context("the authorities hold no certificates")?);
        }
        let client = Client::builder().timeout(LIMIT).redirect(reqwest::redirect::Policy::none()).no_proxy().tls_certs_only(roots);
        let client = client.build().context("cannot set up the sending of traces")?;
        Ok(Self { client, url, turns: Arc::new(Semaphore::new(AT_ONCE)), metrics })
    }

    /// Sends the trace of a run that is over, if whoever created it wants one; does not wait for it.
    pub(crate) fn send(&self, run: &ScriptRun) {
        let Some(trace) = trace_of(run) else { return };
        let Ok(turn) = self.turns.clone().try_acquire_owned() else {
            self.metrics.trace_dropped();
            return;
        };
        let this = self.clone();
        tokio::spawn(async move {
            let request = this.client.post(this.url).header(CONTENT_TYPE, "application/x-protobuf").body(trace.encode_to_vec());
            let answer = request.send().await.and_then(reqwest::Response::error_for_status);
            if let Err(error) = answer {
                this.metrics.trace_dropped();
                tracing::debug!(error = format!("{:#}", anyhow::Error::from(error.without_url())), "a trace was not taken");
            }
            drop(turn);
        });
    }
}

/// Where a trace belongs.
#[derive(Debug, PartialEq, Eq)]
struct Parent {
    trace: [u8; 16],
    /// The span that the run is a part of.
    span: Option<[u8; 8]>,
}

/// Of the run's own UID, or of what whoever created it says. `None` if they do not record this trace. What is no `traceparent` is none.
fn parent(uid: &str, traceparent: Option<&str>) -> Option<Parent> {
    let own = bytes(&uid.replace('-', "")).map(|trace| Parent { trace, span: None });
    let Some(given) = traceparent.and_then(read_traceparent) else { return own };
    let (trace, span, is_recorded) = given;
    is_recorded.then_some(Parent { trace, span: Some(span) })
}

/// `00-TRACE-SPAN-FLAGS`.
fn read_traceparent(text: &str) -> Option<([u8; 16], [u8; 8], bool)> {
    let parts: Vec<&str> = text.split('-').collect();
    let ["00", trace, span, flags] = parts[..] else { return None };
    let (trace, span, [flags]) = (bytes::<16>(trace)?, bytes::<8>(span)?, bytes::<1>(flags)?);
    (trace != [0; 16] && span != [0; 8]).then_some((trace, span, flags & 1 == 1))
}

/// So many bytes in hexadecimal.
fn bytes<const N: usize>(hex: &str) -> Option<[u8; N]> {
    let is_hex = hex.len() == 2 * N && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut bytes = [0; N];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(is_hex.then_some(&hex[2 * index..2 * index + 2])?, 16).ok()?;
    }
    Some(bytes)
}

/// The same for the same run, so that a trace that is sent twice is one.
fn span_id(uid: &str, name: &str) -> Vec<u8> {
    Sha256::digest(format!("{uid} {name}"))[..8].to_vec()
}

/// The trace of a run that is over. Pure.
fn trace_of(run: &ScriptRun) -> Option<ExportTraceServiceRequest> {
    let status = run.status.as_ref()?;
    let clocks = status.clocks.clone()?;
    let uid = run.uid()?;
    let Parent { trace, span: parent } = parent(&uid, run.annotations().get(TRACEPARENT).map(String::as_str))?;
    let at = |clock: &Option<MicroTime>| clock.as_ref().map(|MicroTime(time)| *time);
    let (begin, end) = (at(&clocks.received)?, at(&clocks.finished)?);
    let span = |name: &str, parent: Vec<u8>, begin: Timestamp, end: Timestamp| Span {
        trace_id: trace.to_vec(),
        span_id: span_id(&uid, name),
        parent_span_id: parent,
        name: name.to_owned(),
        kind: 1,
        start_time_unix_nano: nanoseconds(begin),
        end_time_unix_nano: nanoseconds(end).max(nanoseconds(begin)),
        ..Span::default()
    };
    let root = "ScriptRun";
    let mut spans = vec![Span {
        attributes: attributes(run),
        status: Some(outcome(run)),
        ..span(root, parent.map(Vec::from).unwrap_or_default(), begin, end)
    }];
    // Each step from the clock before it, as far as the run came.
    let steps = [("wait", at(&clocks.admitted)), ("start", at(&clocks.started)), ("script", at(&clocks.result_ready)), ("end", Some(end))];
    let mut before = begin;
    for (name, until) in steps {
        let Some(until) = until else { continue };
        spans.push(span(name, span_id(&uid, root), before, until));
        before = until;
    }
    let scope = InstrumentationScope {
        name: "paddock-operator".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        ..InstrumentationScope::default()
    };
    let resource = Resource { attributes: vec![text("service.name", "paddock")], ..Resource::default() };
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }];
    Some(ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans { resource: Some(resource), scope_spans, ..ResourceSpans::default() }],
    })
}

fn nanoseconds(time: Timestamp) -> u64 {
    u64::try_from(time.as_nanosecond()).unwrap_or(0)
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

/// Names and numbers, and nothing that a script has put out.
fn attributes(run: &ScriptRun) -> Vec<KeyValue> {
    let status = run.status.clone().unwrap_or_default();
    let policy = &run.spec.policy_ref;
    let mut all = vec![
        text("k8s.namespace.name", &run.namespace().unwrap_or_default()),
        text("paddock.run.name", &run.name_any()),
        text("paddock.run.uid", &run.uid().unwrap_or_default()),
        text("paddock.runtime", &run.spec.script.runtime),
        text("paddock.policy", &format!("{}/{}", policy.kind.as_str(), policy.name)),
        text("paddock.phase", status.phase.as_ref().map_or("", Phase::as_str)),
    ];
    all.extend(status.condition(&ConditionType::Finished).map(|finished| text("paddock.reason", finished.reason.as_str())));
    if let Some(pod) = &status.pod {
        all.push(text("k8s.pod.name", &pod.name));
        all.extend(pod.node.as_ref().map(|node| text("k8s.node.name", node)));
    }
    let exit_code = status.result.as_ref().and_then(|result| result.exit_code);
    all.extend(exit_code.map(|code| attribute("process.exit.code", Value::IntValue(i64::from(code)))));
    if let Some(usage) = &status.usage {
        all.push(attribute("paddock.usage.cpu_milliseconds", Value::IntValue(usage.cpu_milliseconds)));
        all.push(attribute("paddock.usage.peak_memory_bytes", Value::IntValue(usage.peak_memory_bytes)));
    }
    all
}

fn outcome(run: &ScriptRun) -> Status {
    let status = run.status.clone().unwrap_or_default();
    if status.phase == Some(Phase::Succeeded) {
        return Status { code: StatusCode::Ok.into(), message: String::new() };
    }
    let reason = status.condition(&ConditionType::Finished).map(|finished| finished.reason.to_string());
    Status { code: StatusCode::Error.into(), message: reason.unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::script_run::apply::Done;
    use crate::script_run::fixtures::{after, seen, started};
    use crate::script_run::outcome::Outcome;
    use crate::script_run::step::Step;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const OWN: &str = "11111111222233334444555555555555";
    const SPAN: &str = "b7ad6b7169203331";

    #[rstest]
    #[case::none(None, Some((OWN, None)))]
    #[case::recorded(Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), Some((TRACE, Some(SPAN))))]
    #[case::not_recorded(Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"), None)]
    #[case::zero(Some("00-00000000000000000000000000000000-b7ad6b7169203331-01"), Some((OWN, None)))]
    #[case::another_version(Some("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), Some((OWN, None)))]
    #[case::multibyte(Some("00-0af7651916cd43dd8448eb211c8031ä-b7ad6b7169203331-01"), Some((OWN, None)))]
    #[case::nonsense(Some("x"), Some((OWN, None)))]
    fn a_run_is_part_of_the_trace_that_its_creator_names(
        #[case] traceparent: Option<&str>,
        #[case] expected: Option<(&str, Option<&str>)>,
    ) {
        let uid = "11111111-2222-3333-4444-555555555555";
        let found = parent(uid, traceparent);
        let expected =
            expected.map(|(trace, span)| Parent { trace: bytes(trace).expect("hex"), span: span.map(|span| bytes(span).expect("hex")) });
        assert_eq!(found, expected);
    }

    #[test]
    fn the_steps_of_a_run_follow_each_other_and_say_nothing_of_its_script() {
        let run = started(1);
        let finish = Step::Finish(Outcome::plain(Phase::Failed, paddock_crds::Reason::Failed, "hush"));
        let mut run = after(&run, &seen(&run), &finish, &Done::Yes, 5);
        run.metadata.uid = Some("11111111-2222-3333-4444-555555555555".into());
        run.spec.script.source.inline = Some("print('hush')".into());
        let trace = trace_of(&run).expect("a trace");
        let spans = &trace.resource_spans[0].scope_spans[0].spans;
        let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
        assert_eq!(names, ["ScriptRun", "wait", "start", "end"]);
        for (before, after) in spans[1..].iter().zip(&spans[2..]) {
            assert_eq!(before.end_time_unix_nano, after.start_time_unix_nano);
        }
        assert_eq!(
            (spans[0].start_time_unix_nano, spans[0].end_time_unix_nano),
            (spans[1].start_time_unix_nano, spans[3].end_time_unix_nano)
        );
        assert!(spans[1..].iter().all(|span| span.parent_span_id == spans[0].span_id && span.trace_id == spans[0].trace_id));
        assert_eq!(spans[0].status.as_ref().map(|status| (status.code, status.message.as_str())), Some((2, "Failed")));
        assert!(!format!("{trace:?}").contains("hush"));
    }
}
