//! What a replica of the operator tells of itself, to probes and to Prometheus.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use paddock_health::Told;
use prometheus_client::registry::Registry;

use crate::metrics::Metrics;

/// Whether this replica has done what it has to before it can be counted on: followed the lease, or synced its caches as the leader.
#[derive(Clone, Default)]
pub(crate) struct Readiness(Arc<AtomicBool>);

impl Readiness {
    pub(crate) fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Release);
    }
}

#[derive(Clone)]
struct Replica {
    readiness: Readiness,
    metrics: Metrics,
    registry: Arc<Registry>,
}

impl Told for Replica {
    fn is_ready(&self) -> bool {
        self.readiness.0.load(Ordering::Acquire)
    }

    fn metrics(&self) -> Result<String, fmt::Error> {
        self.metrics.count();
        paddock_health::text(&self.registry)
    }
}

/// Serves until the process ends.
pub(crate) async fn serve(address: SocketAddr, readiness: Readiness, metrics: Metrics, registry: Arc<Registry>) -> Result<()> {
    let served = paddock_health::serve(address, Replica { readiness, metrics, registry }).await;
    served.with_context(|| format!("cannot listen on {address}"))
}
