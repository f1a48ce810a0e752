//! What Paddock costs beside bare pods of the same image, RuntimeClass and limits, as one JSON line. `run` takes cold runs one at a time,
//! `burst` a hundred at once, `warm` runs that are given a sandbox which waits. The two sides alternate: on a shared machine only ratios of one invocation mean anything.
#![allow(clippy::unwrap_used)]

mod burst;
mod operator;
mod sides;
mod warm;

use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::Client;
use kube::client::{Body, ClientBuilder, ConfigExt as _};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use paddock_e2e::cluster::layout::Layout;
use tower::ServiceBuilder;

fn layout() -> Layout {
    let clone = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let home = std::env::var_os("HOME").map_or_else(|| "/root".into(), std::path::PathBuf::from);
    Layout::new(clone, std::env::var_os("PADDOCK_CACHE").map(Into::into), &home)
}

/// Without `TCP_NODELAY`, which Go's clients set and kube-rs does not, the body of a request waits for 40 ms for a delayed acknowledgement.
fn connect(config: Config) -> Client {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    let https = config.rustls_https_connector_with_connector(connector).unwrap();
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new()).build(https);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().unwrap())
        .map_err(tower::BoxError::from)
        .service(http);
    ClientBuilder::new(service, config.default_namespace).build()
}

#[tokio::main]
async fn main() {
    let kubeconfig = Kubeconfig::read_from(layout().kubeconfig()).expect("the cluster is up: run make bench-run");
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let client = connect(config);
    let line = match std::env::args().nth(1).as_deref() {
        Some("run") => sides::bench(&client).await,
        Some("burst") => burst::bench(&client).await,
        Some("warm") => warm::bench(&client).await,
        _ => panic!("usage: bench run | burst | warm"),
    };
    println!("{line}");
}
