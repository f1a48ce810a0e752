//! The connection to the API server.

use std::time::Duration;

use anyhow::{Context as _, Result};
use http::{Method, Request};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ClientBuilder, ConfigExt as _};
use kube::{Client, Config};
use tower::ServiceBuilder;
use tower::filter::FilterLayer;

use crate::lease::Fence;
use crate::metrics::Metrics;

/// Idle connections are given up early, so that few are written to while the server closes them.
const IDLE: Duration = Duration::from_secs(30);

/// A client whose writes are refused here as soon as `fence` is down: a leader that was frozen and wakes up writes nothing.
pub(crate) async fn connect(fence: Fence, metrics: Metrics) -> Result<Client> {
    let config = Config::infer().await.context("cannot find out how to reach the API server")?;
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    // Without it a fresh connection, which every attach opens, waits 40 ms for a delayed acknowledgement.
    connector.set_nodelay(true);
    let https = config.rustls_https_connector_with_connector(connector).context("cannot set up TLS")?;
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new()).pool_idle_timeout(IDLE).build(https);
    let service = ServiceBuilder::new()
        .map_result(move |answer: Result<http::Response<_>, tower::BoxError>| {
            match &answer {
                Ok(response) => metrics.answered(response.status().as_u16()),
                Err(error) if error.is::<FenceDown>() => {}
                Err(_) => metrics.unanswered(),
            }
            answer
        })
        .layer(config.base_uri_layer())
        .layer(FilterLayer::new(move |request: Request<Body>| {
            if is_read(&request) || request.uri().path().contains("/leases") || fence.is_up() { Ok(request) } else { Err(FenceDown) }
        }))
        .option_layer(config.auth_layer().context("cannot set up authentication")?)
        .map_err(tower::BoxError::from)
        .service(http);
    Ok(ClientBuilder::new(service, config.default_namespace).build())
}

/// Reads, and attach, which is a GET that is upgraded; its start message is guarded by the stored `Started`.
fn is_read(request: &Request<Body>) -> bool {
    request.method() == Method::GET
}

#[derive(Debug, thiserror::Error)]
#[error("this replica is not the leader")]
struct FenceDown;
