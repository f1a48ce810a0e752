//! Prometheus metrics. Labels come from closed sets, never from names or messages.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::error::Error;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: String,
}

impl Reason {
    fn of(reason: &paddock_crds::Reason) -> Self {
        let is_known = !matches!(reason, paddock_crds::Reason::Unknown(_));
        Self { reason: if is_known { reason.to_string() } else { "Unknown".to_owned() } }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Category {
    category: &'static str,
}

/// All metrics of the operator.
pub(crate) struct Metrics {
    finished: Family<Reason, Counter>,
    refused: Family<Reason, Counter>,
    errors: Family<Category, Counter>,
    malformed: Counter,
    sessions: Gauge,
    leader: Gauge,
    result_seconds: Histogram,
    start_seconds: Histogram,
}

impl Metrics {
    /// Registers everything under `paddock_`.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("paddock");
        let buckets = || exponential_buckets(0.05, 2.0, 14);
        let metrics = Self {
            finished: Family::default(),
            refused: Family::default(),
            errors: Family::default(),
            malformed: Counter::default(),
            sessions: Gauge::default(),
            leader: Gauge::default(),
            result_seconds: Histogram::new(buckets()),
            start_seconds: Histogram::new(buckets()),
        };
        registry.register("runs_finished", "Runs that ended, by the reason of their Finished condition", metrics.finished.clone());
        registry.register("runs_refused", "Runs that were refused, by the reason of their Accepted condition", metrics.refused.clone());
        registry.register("reconcile_errors", "Passes over a run that ended in an error", metrics.errors.clone());
        registry.register("malformed_objects", "Passes over an object that could not be read", metrics.malformed.clone());
        registry.register("open_sessions", "Runners that the operator listens to", metrics.sessions.clone());
        registry.register("leader", "1 on the replica that leads", metrics.leader.clone());
        registry.register("run_result_seconds", "From the first sight of a run to its result", metrics.result_seconds.clone());
        registry.register("run_start_seconds", "From the first sight of a run to its start message", metrics.start_seconds.clone());
        // An alert on a rise needs a value to rise from.
        for category in Error::CATEGORIES {
            let _ = metrics.errors.get_or_create(&Category { category });
        }
        metrics
    }

    pub(crate) fn finished(&self, reason: &paddock_crds::Reason) {
        self.finished.get_or_create(&Reason::of(reason)).inc();
    }

    pub(crate) fn refused(&self, reason: &paddock_crds::Reason) {
        self.refused.get_or_create(&Reason::of(reason)).inc();
    }

    pub(crate) fn error(&self, category: &'static str) {
        self.errors.get_or_create(&Category { category }).inc();
    }

    pub(crate) fn malformed(&self) {
        self.malformed.inc();
    }

    pub(crate) fn sessions(&self, open: usize) {
        self.sessions.set(i64::try_from(open).unwrap_or(i64::MAX));
    }

    pub(crate) fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    pub(crate) fn result_after(&self, seconds: f64) {
        self.result_seconds.observe(seconds);
    }

    pub(crate) fn start_after(&self, seconds: f64) {
        self.start_seconds.observe(seconds);
    }
}
