//! What a replica of the gateway tells Prometheus of itself. What runs did is told by the operator, with their namespaces; here is what nobody's run is
//! known for, and how much there is to do.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use paddock_health::Told;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::ask::Refusal;
use crate::carry::Carried;
use crate::gateway::Gateway;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answer {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Direction {
    direction: &'static str,
}

/// The value of `reason` where what was asked for was done.
const CONNECTED: &str = "Connected";
/// Seen from the run.
const DIRECTIONS: [&str; 2] = ["sent", "received"];
/// Seconds: 1 ms, twice as much each time, up to 8 s. A look-up and each address that is dialled have 5.
const FIRST_BUCKET: f64 = 0.001;
const BUCKETS: u16 = 14;

/// Counted where it happens.
pub(crate) struct Counters {
    answers: Family<Answer, Counter>,
    bytes: Family<Direction, Counter>,
    connect_seconds: Histogram,
    /// Connections that were closed unheard: an address, or all together, had too many.
    pub(crate) turned_away: Counter,
    /// Connections that have not become TLS in time.
    pub(crate) not_tls: Counter,
    /// Reports that the operator has not got.
    pub(crate) reports_dropped: Counter,
}

impl Default for Counters {
    fn default() -> Self {
        let counted = Self {
            answers: Family::default(),
            bytes: Family::default(),
            connect_seconds: Histogram::new(exponential_buckets(FIRST_BUCKET, 2.0, BUCKETS)),
            turned_away: Counter::default(),
            not_tls: Counter::default(),
            reports_dropped: Counter::default(),
        };
        // What has not happened yet is 0, and not unknown: an alert on its rate would miss the first time.
        for reason in Refusal::REASONS.into_iter().chain([CONNECTED]) {
            let _ = counted.answers.get_or_create(&Answer { reason });
        }
        counted.carried(Carried::default());
        counted
    }
}

impl Counters {
    pub(crate) fn refused(&self, refusal: &Refusal) {
        self.answers.get_or_create(&Answer { reason: refusal.reason() }).inc();
    }

    /// A tunnel is there, or the host has answered.
    pub(crate) fn connected(&self) {
        self.answers.get_or_create(&Answer { reason: CONNECTED }).inc();
    }

    /// Looking up and dialling took so long, whatever came of it.
    pub(crate) fn dialled(&self, took: Duration) {
        self.connect_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn carried(&self, Carried { sent, received }: Carried) {
        for (direction, bytes) in DIRECTIONS.into_iter().zip([sent, received]) {
            self.bytes.get_or_create(&Direction { direction }).inc_by(bytes);
        }
    }
}

/// How much there is at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) connections: usize,
    pub(crate) tunnels: usize,
    pub(crate) runs: usize,
    /// Whether it is known what is granted: without the operator nothing is for long.
    pub(crate) is_told: bool,
}

/// A replica, as it is shown.
#[derive(Clone)]
pub struct Shown {
    gateway: Arc<Gateway>,
    registry: Arc<Registry>,
    connections: Gauge,
    tunnels: Gauge,
    runs: Gauge,
    told: Gauge,
}

impl Shown {
    /// What this gateway has counted since it is there.
    pub fn of(gateway: Arc<Gateway>) -> Self {
        let mut registry = Registry::with_prefix("paddock_egress_gateway");
        let gauge = |registry: &mut Registry, name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let connections = gauge(&mut registry, "connections", "Connections of sandboxes, also of those that have shown no token yet");
        let tunnels = gauge(&mut registry, "tunnels", "Connections that are carried for a run");
        let runs = gauge(&mut registry, "runs", "Runs that are granted something");
        let told = gauge(&mut registry, "told", "1 while the operator tells what is granted; without it nothing is");
        let counted = gateway.counters();
        registry.register("answers", "Requests of sandboxes, by what they were answered", counted.answers.clone());
        registry.register("carried_bytes", "Bytes of connections that have ended", counted.bytes.clone());
        let help = "Seconds from a granted request until its host was connected, or was not";
        registry.register("connect_seconds", help, counted.connect_seconds.clone());
        let help = "Connections closed unheard: an address, or all together, had as many as may be";
        registry.register("connections_turned_away", help, counted.turned_away.clone());
        registry.register("connections_not_tls", "Connections that have not become TLS within 5 seconds", counted.not_tls.clone());
        registry.register(
            "reports_dropped",
            "Requests that the operator was not told of: no log and no metric has them",
            counted.reports_dropped.clone(),
        );
        Self { gateway, registry: Arc::new(registry), connections, tunnels, runs, told }
    }
}

impl Told for Shown {
    /// It can be spoken to; what is granted it learns from the operator, who looks for replicas that are ready.
    fn is_ready(&self) -> bool {
        true
    }

    fn metrics(&self) -> Result<String, fmt::Error> {
        let load = self.gateway.load();
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.connections.set(number(load.connections));
        self.tunnels.set(number(load.tunnels));
        self.runs.set(number(load.runs));
        self.told.set(i64::from(load.is_told));
        paddock_health::text(&self.registry)
    }
}
