//! Prometheus metrics. Labels come from closed sets, never from names or messages.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
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

/// A clock of a run's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Clock {
    Received,
    Admitted,
    Started,
    FirstOutput,
    ResultReady,
    Finished,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Until {
    until: Clock,
}

/// All metrics of the operator. Clones count into the same.
#[derive(Clone)]
pub(crate) struct Metrics {
    finished: Family<Reason, Counter>,
    refused: Family<Reason, Counter>,
    errors: Family<Category, Counter>,
    malformed: Counter,
    sessions: Gauge,
    leader: Gauge,
    run_seconds: Family<Until, Histogram>,
}

impl Metrics {
    /// Registers everything under `paddock_`.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("paddock");
        let metrics = Self {
            finished: Family::default(),
            refused: Family::default(),
            errors: Family::default(),
            malformed: Counter::default(),
            sessions: Gauge::default(),
            leader: Gauge::default(),
            run_seconds: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.05, 2.0, 14))),
        };
        registry.register("runs_finished", "Runs that ended, by the reason of their Finished condition", metrics.finished.clone());
        registry.register("runs_refused", "Runs that were refused, by the reason of their Accepted condition", metrics.refused.clone());
        registry.register("reconcile_errors", "Passes over a run that ended in an error", metrics.errors.clone());
        registry.register("malformed_objects", "Passes over an object that could not be read", metrics.malformed.clone());
        registry.register("open_sessions", "Runners that the operator listens to", metrics.sessions.clone());
        registry.register("leader", "1 on the replica that leads", metrics.leader.clone());
        let help = "From the first sight of a run to a clock of its status; to Received, from its creation";
        registry.register("run_seconds", help, metrics.run_seconds.clone());
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

    pub(crate) fn reached(&self, until: Clock, seconds: f64) {
        self.run_seconds.get_or_create(&Until { until }).observe(seconds);
    }
}
