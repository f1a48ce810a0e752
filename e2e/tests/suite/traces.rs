//! One trace for each run, as a receiver of OTLP gets it.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use crate::harness::disturb::{leader, listen, upgrade};
use crate::harness::{self, Script, admin, eventually, tenant};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use kube::ResourceExt as _;
use kube::api::PostParams;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use paddock_crds::ScriptRun;
use paddock_e2e::cluster::layout::NODE_ADDRESS;
use prost::Message as _;
use serde_json::json;

type Received = Arc<Mutex<Vec<Span>>>;

async fn serve(listener: tokio::net::TcpListener, received: Received) {
    while let Ok((socket, _)) = listener.accept().await {
        let received = received.clone();
        let take = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let received = received.clone();
            async move {
                assert_eq!((request.method().as_str(), request.uri().path()), ("POST", "/v1/traces"));
                assert_eq!(request.headers()["content-type"], "application/x-protobuf");
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let message = ExportTraceServiceRequest::decode(body).unwrap();
                let spans = message.resource_spans.into_iter().flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans);
                received.lock().unwrap().extend(spans);
                Ok::<_, Infallible>(http::Response::new(Empty::<hyper::body::Bytes>::new()))
            }
        });
        tokio::spawn(async move {
            let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), take).await;
        });
    }
}

fn text<'a>(span: &'a Span, key: &str) -> Option<&'a str> {
    let attribute = span.attributes.iter().find(|attribute| attribute.key == key)?;
    match attribute.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The spans of one run, its whole first.
async fn spans(received: &Received, run: &ScriptRun) -> Vec<Span> {
    eventually("the trace of the run", || async {
        let all = received.lock().unwrap().clone();
        let whole = all.iter().find(|span| text(span, "paddock.run.uid") == run.uid().as_deref()).cloned().ok_or(all.len())?;
        let parts = all.into_iter().filter(|span| span.parent_span_id == whole.span_id);
        Ok::<_, usize>(std::iter::once(whole.clone()).chain(parts).collect())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_run_is_one_trace() {
    let client = admin().await;
    let listener = listen(0);
    let port = listener.local_addr().unwrap().port();
    let received = Received::default();
    let server = tokio::spawn(serve(tokio::net::TcpListener::from_std(listener).unwrap(), received.clone()));
    upgrade(&[format!("traces.endpoint=http://{NODE_ADDRESS}:{port}")]);
    leader(&client).await;
    tenant("traces", |tenant| async move {
        let run = tenant.run(Script::shell("echo hush; exit 3")).await;
        let trace = spans(&received, &run).await;
        assert_eq!(trace.iter().map(|span| span.name.as_str()).collect::<Vec<_>>(), ["ScriptRun", "wait", "start", "script", "end"]);
        assert_eq!(hex(&trace[0].trace_id), run.uid().unwrap().replace('-', ""));
        assert_eq!((text(&trace[0], "paddock.phase"), text(&trace[0], "k8s.namespace.name")), (Some("Failed"), Some(tenant.name.as_str())));
        assert!(!format!("{trace:?}").contains("hush"));

        let refused = tenant.run(Script::shell("true").with(json!({ "timeoutSeconds": 86400 }))).await;
        let trace = spans(&received, &refused).await;
        assert_eq!(trace[0].status.as_ref().unwrap().message, "Refused");

        // A back end makes the run a part of its own trace.
        let mut part = ScriptRun::new("part", run.spec.clone());
        let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        part.metadata.annotations = Some([("paddock.dev/traceparent".to_owned(), traceparent.to_owned())].into());
        let part = tenant.runs().create(&PostParams::default(), &part).await.unwrap();
        let trace = spans(&received, &tenant.finished(&part).await).await;
        assert_eq!(
            (hex(&trace[0].trace_id), hex(&trace[0].parent_span_id)),
            ("0af7651916cd43dd8448eb211c80319c".into(), "b7ad6b7169203331".into())
        );

        // A receiver that is away holds up no run.
        server.abort();
        let _ = server.await;
        let run = tenant.run(Script::shell("echo hush; exit 3")).await;
        assert_eq!(harness::status(&run).result.unwrap().exit_code, Some(3));
    })
    .await;
    upgrade(&["traces.endpoint=".to_owned()]);
    leader(&client).await;
}
