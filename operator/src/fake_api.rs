//! An API server that answers as a test tells it to. Only for what reads and writes: everything that decides is tested without one.

use std::sync::Arc;
use std::time::Duration;

use futures::channel::mpsc;
use http::{Method, Request, Response};
use k8s_openapi::api::core::v1::Namespace;
use kube::Client;
use kube::client::Body;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::{reflector, watcher};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tower_test::mock;

use crate::audit::Audit;
use crate::context::{Caches, Context, Parts, Results};
use crate::lease::Fence;
use crate::metrics::Metrics;
use crate::policies::Writers;
use crate::script_run::fixtures::{sealing_key, settings};

/// Longest time in which an expected request has to come.
const PATIENCE: Duration = Duration::from_secs(5);

/// A request that is expected, and the answer to it.
pub(crate) struct Exchange {
    method: Method,
    path: &'static str,
    /// What the body of the request has to contain.
    holds: Vec<&'static str>,
    code: u16,
    answer: Value,
}

/// `expect(Method::GET, "/api/v1/…", 404, json!("message"))`: text is made into a `Status` with that message.
pub(crate) fn expect(method: Method, path: &'static str, code: u16, answer: Value) -> Exchange {
    let answer = match answer {
        Value::String(message) => {
            let reason = if code == 404 { "NotFound" } else { "" };
            json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message, "metadata": {} })
        }
        object => object,
    };
    Exchange { method, path, holds: Vec::new(), code, answer }
}

impl Exchange {
    pub(crate) fn holding(mut self, part: &'static str) -> Self {
        self.holds.push(part);
        self
    }
}

/// The API server's side of a test.
pub(crate) struct Fake(JoinHandle<()>);

impl Fake {
    /// Holds that every expected request came, and no other.
    pub(crate) async fn finished(self) {
        self.0.await.expect("the requests are the expected ones");
    }
}

/// A client whose API server expects exactly `exchanges`, in this order. Watches are let in and never hear anything.
pub(crate) fn client(exchanges: Vec<Exchange>) -> (Client, Fake) {
    let (service, mut requests) = mock::pair::<Request<Body>, Response<Body>>();
    let client = Client::new(service, "default");
    let fake = tokio::spawn(async move {
        let mut silent = Vec::new();
        for expected in exchanges {
            loop {
                let coming = tokio::time::timeout(PATIENCE, requests.next_request()).await;
                let (request, send) = coming.unwrap_or_else(|_| panic!("no {} {}", expected.method, expected.path)).expect("a client");
                if request.method() == Method::GET && request.uri().path().ends_with("/pods") {
                    silent.push(send);
                    continue;
                }
                assert_eq!((request.method(), request.uri().path()), (&expected.method, expected.path));
                let body = request.into_body().collect_bytes().await.unwrap();
                let body = String::from_utf8_lossy(&body).into_owned();
                assert!(expected.holds.iter().all(|part| body.contains(part)), "{body}");
                let answer = Body::from(serde_json::to_vec(&expected.answer).unwrap());
                send.send_response(Response::builder().status(expected.code).body(answer).unwrap());
                break;
            }
        }
    });
    (client, Fake(fake))
}

/// A context with such a client.
pub(crate) fn context(exchanges: Vec<Exchange>, namespaces: &[Namespace]) -> (Arc<Context>, Fake) {
    let (client, fake) = client(exchanges);
    (context_of(client, namespaces), fake)
}

/// A client whose API server has nothing and takes everything.
pub(crate) fn empty_api() -> Client {
    let answer = |request: Request<Body>| async move {
        let code = if request.method() == Method::GET { 404 } else { 201 };
        let body = if code == 404 {
            serde_json::to_vec(&json!({ "code": 404, "message": "none", "reason": "NotFound", "status": "Failure" })).unwrap_or_default()
        } else {
            request.into_body().collect_bytes().await?.to_vec()
        };
        Ok::<_, tower::BoxError>(Response::builder().status(code).body(Body::from(body))?)
    };
    Client::new(tower::service_fn(answer), "default")
}

/// A context with any client.
pub(crate) fn context_of(client: Client, namespaces: &[Namespace]) -> Arc<Context> {
    let (stored, mut writer) = reflector::store();
    for namespace in namespaces {
        writer.apply_watcher_event(&watcher::Event::Apply(namespace.clone()));
    }
    let (wake, _) = mpsc::unbounded();
    let caches = Caches {
        namespaces: stored,
        policies: reflector::store().0,
        cluster_policies: reflector::store().0,
        writers: Writers::default(),
        approvals: reflector::store().0,
        pools: reflector::store().0,
        diagnoses: reflector::store().0,
    };
    let recorder = Recorder::new(client.clone(), Reporter { controller: "test".into(), instance: None });
    let metrics = Metrics::new(&mut Registry::default(), 100);
    let results = Results { sealing_key: sealing_key(), store: None };
    Arc::new(Context::new(Parts {
        egress: crate::egress::Egress::new(None),
        client,
        fence: Fence::new(),
        settings: settings(),
        results,
        metrics,
        recorder,
        caches,
        traces: None,
        audit: Audit::default(),
        wake,
    }))
}
