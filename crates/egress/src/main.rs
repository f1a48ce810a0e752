//! `paddock-egress`: the gateway's process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use hickory_resolver::TokioResolver;
use paddock_egress::gateway::Gateway;
use paddock_egress::metrics::Shown;
use paddock_egress::server::{Served, serve_sandboxes, serve_the_operator};
use paddock_egress::tls::Files;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// Reports that wait for the operator. More are dropped.
const REPORTS: usize = 4096;
/// Grants that have expired, and an operator that is not heard, are noticed this often.
const TICK: Duration = Duration::from_millis(100);
/// Certificates are exchanged under a running process.
const LOOK_FOR_FILES: Duration = Duration::from_secs(10);

/// Connects sandboxes to what they were granted.
#[derive(Parser)]
#[command(version)]
struct Config {
    /// Where sandboxes connect to
    #[arg(long, default_value = "[::]:8443")]
    listen: SocketAddr,
    /// Where the operator connects to
    #[arg(long, default_value = "[::]:8444")]
    operator_listen: SocketAddr,
    /// Where nobody may connect to from a sandbox: what network policies allow is seen by what they forbid
    #[arg(long, default_value = "[::]:8445")]
    forbidden_listen: SocketAddr,
    /// Where probes and Prometheus ask
    #[arg(long, default_value = "[::]:8446")]
    metrics_listen: SocketAddr,
    /// Connections of sandboxes at once, also of those that have shown no token yet
    #[arg(long, default_value = "2048", value_parser = clap::value_parser!(u32).range(64..=1_000_000))]
    connections: u32,
    /// Folder with tls.crt, tls.key and ca.crt
    #[arg(long)]
    certificates: PathBuf,
}

fn main() -> ExitCode {
    let config = Config::parse();
    tracing_subscriber::fmt().json().with_max_level(tracing::Level::INFO).init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("paddock-egress: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the gateway ends");
            ExitCode::FAILURE
        }
    }
}

async fn run(config: Config) -> Result<()> {
    let files = Files::read(&config.certificates)?;
    let (sandboxes, operator) = (Served::new(files.for_sandboxes()?), Served::new(files.for_the_operator()?));
    let resolver =
        TokioResolver::builder_tokio().and_then(hickory_resolver::ResolverBuilder::build).context("cannot read how names are looked up")?;
    let (sender, reports) = mpsc::channel(REPORTS);
    let gateway = Arc::new(Gateway::new(Box::new(resolver), sender, config.connections as usize));
    let bind = |address: SocketAddr| async move { TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}")) };
    let (for_sandboxes, for_the_operator) = (bind(config.listen).await?, bind(config.operator_listen).await?);
    tracing::info!(sandboxes = %config.listen, operator = %config.operator_listen, "listening");
    tokio::spawn(answer_nothing(bind(config.forbidden_listen).await?));
    tokio::spawn(follow(config.certificates, files, sandboxes.clone(), operator.clone()));
    tokio::spawn(serve_the_operator(for_the_operator, operator, gateway.clone(), reports));
    tokio::spawn(tick(gateway.clone()));
    let shown = paddock_health::serve(config.metrics_listen, Shown::of(gateway.clone()));
    tokio::select! {
        served = shown => served.with_context(|| format!("cannot listen on {}", config.metrics_listen))?,
        () = serve_sandboxes(for_sandboxes, sandboxes, gateway) => {}
        ended = ended() => ended?,
    }
    Ok(())
}

/// Whoever connects here learns that it can.
async fn answer_nothing(listener: TcpListener) {
    loop {
        if listener.accept().await.is_err() {
            tokio::time::sleep(TICK).await;
        }
    }
}

async fn tick(gateway: Arc<Gateway>) {
    loop {
        tokio::time::sleep(TICK).await;
        gateway.tick();
    }
}

/// Serves other certificates as soon as they are there, and the old ones for as long as the new cannot be used.
async fn follow(folder: PathBuf, mut seen: Files, sandboxes: Served, operator: Served) {
    loop {
        tokio::time::sleep(LOOK_FOR_FILES).await;
        let files = match Files::read(&folder) {
            Ok(files) if files == seen => continue,
            Ok(files) => files,
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "cannot read the certificates");
                continue;
            }
        };
        match (files.for_sandboxes(), files.for_the_operator()) {
            (Ok(one), Ok(other)) => {
                sandboxes.set(one);
                operator.set(other);
                tracing::info!("other certificates are served");
            }
            (Err(error), _) | (_, Err(error)) => tracing::warn!(error = format!("{error:#}"), "the certificates cannot be used"),
        }
        seen = files;
    }
}

async fn ended() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminated = signal(SignalKind::terminate()).context("cannot listen to signals")?;
    terminated.recv().await;
    Ok(())
}
