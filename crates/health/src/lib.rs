//! `/healthz`, `/readyz` and `/metrics`, for whoever can reach the port: with bounds on how many come at once and how long each may take.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Connections at once; others wait to be accepted.
const CONNECTIONS: usize = 64;
/// Longest time until the head of a request is there, and longest life of a connection.
const LIMITS: Limits = Limits { head: Duration::from_secs(5), connection: Duration::from_secs(120) };

#[derive(Clone, Copy)]
struct Limits {
    head: Duration,
    connection: Duration,
}

/// What a process tells of itself.
pub trait Told: Clone + Send + Sync + 'static {
    /// Whether it can be counted on.
    fn is_ready(&self) -> bool;

    /// Its metrics as they are now, in the text format of OpenMetrics.
    ///
    /// # Errors
    ///
    /// What cannot be written as text is answered with 500.
    fn metrics(&self) -> Result<String, fmt::Error>;
}

/// All of a registry as text.
///
/// # Errors
///
/// As [`Told::metrics`].
pub fn text(registry: &Registry) -> Result<String, fmt::Error> {
    let mut text = String::new();
    encode(&mut text, registry).map(|()| text)
}

/// Serves until the process ends.
///
/// # Errors
///
/// Does not return but with one: the address cannot be listened on.
pub async fn serve(address: SocketAddr, told: impl Told) -> io::Result<()> {
    accept(TcpListener::bind(address).await?, router(told), LIMITS).await
}

fn router(told: impl Told) -> Router {
    let ready = {
        let told = told.clone();
        move || {
            let ready = told.is_ready();
            async move { if ready { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready") } }
        }
    };
    let metrics = move || {
        let text = told.metrics();
        async move {
            match text {
                Ok(text) => (StatusCode::OK, [(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text),
                Err(fmt::Error) => (StatusCode::INTERNAL_SERVER_ERROR, [(CONTENT_TYPE, "text/plain")], String::new()),
            }
        }
    };
    Router::new().route("/healthz", get(|| async { "ok" })).route("/readyz", get(ready)).route("/metrics", get(metrics))
}

async fn accept(listener: TcpListener, router: Router, limits: Limits) -> io::Result<()> {
    let turns = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let turn = turns.clone().acquire_owned().await.map_err(io::Error::other)?;
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

    #[derive(Clone)]
    struct NotReady(Arc<Registry>);

    impl Told for NotReady {
        fn is_ready(&self) -> bool {
            false
        }

        fn metrics(&self) -> Result<String, fmt::Error> {
            text(&self.0)
        }
    }

    async fn server(limits: Limits) -> SocketAddr {
        let mut registry = Registry::default();
        registry.register("tries", "How often it was tried", prometheus_client::metrics::counter::Counter::<u64>::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(accept(listener, router(NotReady(Arc::new(registry))), limits));
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
        assert!(ask(address, "/metrics").await.contains("tries_total 0\n"));
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
