//! `/healthz`, `/readyz` and `/metrics`, for whoever can reach the port: with bounds on how many come at once and how long each may take.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::metrics::Metrics;

/// Connections at once; others wait to be accepted.
const CONNECTIONS: usize = 64;
/// Longest time until the head of a request is there, and longest life of a connection.
const LIMITS: Limits = Limits { head: Duration::from_secs(5), connection: Duration::from_secs(120) };

#[derive(Clone, Copy)]
struct Limits {
    head: Duration,
    connection: Duration,
}

/// Whether this replica has done what it has to before it can be counted on: followed the lease, or synced its caches as the leader.
#[derive(Clone, Default)]
pub(crate) struct Readiness(Arc<AtomicBool>);

impl Readiness {
    pub(crate) fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Release);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Serves until the process ends.
pub(crate) async fn serve(address: SocketAddr, readiness: Readiness, metrics: Metrics, registry: Arc<Registry>) -> Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    accept(listener, router(readiness, metrics, registry), LIMITS).await
}

fn router(readiness: Readiness, metrics: Metrics, registry: Arc<Registry>) -> Router {
    let ready = move || {
        let ready = readiness.is_set();
        async move { if ready { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready") } }
    };
    let metrics = move || {
        metrics.count();
        let mut text = String::new();
        let encoded = prometheus_client::encoding::text::encode(&mut text, &registry);
        async move {
            match encoded {
                Ok(()) => (StatusCode::OK, [(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text),
                Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, [(CONTENT_TYPE, "text/plain")], String::new()),
            }
        }
    };
    Router::new().route("/healthz", get(|| async { "ok" })).route("/readyz", get(ready)).route("/metrics", get(metrics))
}

async fn accept(listener: TcpListener, router: Router, limits: Limits) -> Result<()> {
    let turns = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let turn = turns.clone().acquire_owned().await.context("the health server ended")?;
        // A connection that broke before it was accepted is nobody's trouble; a process without descriptors gets some back.
        let Ok((socket, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let mut server = hyper::server::conn::http1::Builder::new();
            let serving = server.timer(TokioTimer::new()).header_read_timeout(limits.head).serve_connection(TokioIo::new(socket), service);
            let _ = tokio::time::timeout(limits.connection, serving).await;
            drop(turn);
        });
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    async fn server(limits: Limits) -> SocketAddr {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry, 1);
        let readiness = Readiness::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(accept(listener, router(readiness, metrics, Arc::new(registry)), limits));
        address
    }

    async fn ask(address: SocketAddr, path: &str) -> String {
        let mut socket = TcpStream::connect(address).await.expect("a connection");
        socket.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await.expect("written");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.expect("an answer");
        answer
    }

    #[tokio::test]
    async fn a_replica_that_is_not_ready_lives_and_tells_its_metrics() {
        let address = server(LIMITS).await;
        assert!(ask(address, "/healthz").await.starts_with("HTTP/1.1 200 "));
        assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 503 "));
        assert!(ask(address, "/metrics").await.contains("paddock_runs_finished_total{reason=\"Lost\"} 0"));
    }

    #[tokio::test]
    async fn whoever_says_nothing_is_sent_away() {
        let address = server(Limits { head: Duration::from_millis(50), connection: Duration::from_secs(60) }).await;
        // More than are served at once.
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS + 8 {
            silent.push(TcpStream::connect(address).await.expect("a connection"));
        }
        assert!(ask(address, "/healthz").await.starts_with("HTTP/1.1 200 "), "the others are served");
        let mut rest = Vec::new();
        silent[0].read_to_end(&mut rest).await.expect("the end");
    }
}
