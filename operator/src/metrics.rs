//! Prometheus metrics. Labels come from closed sets, never from messages; names of namespaces only up to a bound.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use paddock_crds::Phase;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::audit::{self, LogSeen};
use crate::diagnosis;
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

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InPhase {
    phase: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfNamespace {
    namespace: String,
    phase: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Code {
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Connected {
    namespace: String,
    outcome: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Carried {
    namespace: String,
    direction: &'static str,
}

/// Seen from the run.
const DIRECTIONS: [&str; 2] = ["sent", "received"];

/// The value of the label `namespace` once so many others are taken. No namespace can have this name.
const OTHER: &str = "_other";
/// Phases of runs that are not over. A run that has none yet is counted as the first of them.
const UNFINISHED: [Phase; 5] = [Phase::AwaitingApproval, Phase::Queued, Phase::Starting, Phase::Running, Phase::Stopping];

/// The runs that are not over, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Census {
    pub(crate) by_phase: HashMap<Phase, usize>,
    /// How long the run that has waited longest for a slot has waited.
    pub(crate) longest_wait: Duration,
    /// What was found of the cluster.
    pub(crate) diagnosis: diagnosis::Told,
    /// How the audit log is.
    pub(crate) audit: audit::Count,
}

type Count = Box<dyn Fn() -> Census + Send + Sync>;

/// All metrics of the operator. Clones count into the same.
#[derive(Clone)]
pub(crate) struct Metrics {
    runs: Family<InPhase, Gauge>,
    longest_wait: Gauge<f64, std::sync::atomic::AtomicU64>,
    failing_checks: Gauge,
    unseen_checks: Gauge,
    examined: Gauge,
    unwritten_records: Gauge,
    lost_records: Counter,
    audit_log_behind: Gauge,
    count: Arc<OnceLock<Count>>,
    of_namespace: Family<OfNamespace, Counter>,
    namespaces: Arc<Mutex<BTreeSet<String>>>,
    max_namespaces: usize,
    pass_seconds: Histogram,
    answers: Family<Code, Counter>,
    unanswered: Counter,
    traces_dropped: Counter,
    finished: Family<Reason, Counter>,
    refused: Family<Reason, Counter>,
    errors: Family<Category, Counter>,
    malformed: Counter,
    sessions: Gauge,
    leader: Gauge,
    run_seconds: Family<Until, Histogram>,
    connections: Family<Connected, Counter>,
    carried: Family<Carried, Counter>,
}

impl Metrics {
    /// Registers everything under `paddock_`. So many namespaces are counted one by one.
    pub(crate) fn new(registry: &mut Registry, max_namespaces: usize) -> Self {
        let registry = registry.sub_registry_with_prefix("paddock");
        let metrics = Self {
            runs: Family::default(),
            longest_wait: Gauge::default(),
            failing_checks: Gauge::default(),
            unseen_checks: Gauge::default(),
            examined: Gauge::default(),
            unwritten_records: Gauge::default(),
            lost_records: Counter::default(),
            audit_log_behind: Gauge::default(),
            count: Arc::default(),
            of_namespace: Family::default(),
            namespaces: Arc::default(),
            max_namespaces,
            pass_seconds: Histogram::new(exponential_buckets(0.001, 4.0, 8)),
            answers: Family::default(),
            unanswered: Counter::default(),
            traces_dropped: Counter::default(),
            finished: Family::default(),
            refused: Family::default(),
            errors: Family::default(),
            malformed: Counter::default(),
            sessions: Gauge::default(),
            leader: Gauge::default(),
            run_seconds: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.05, 2.0, 14))),
            connections: Family::default(),
            carried: Family::default(),
        };
        registry.register("runs", "Runs that are not over, by phase; 0 on a replica that does not lead", metrics.runs.clone());
        let help = "How long the run that has waited longest for a slot has waited";
        registry.register("longest_wait_seconds", help, metrics.longest_wait.clone());
        let help = "Checks of the cluster that fail, and refuse the runs that depend on them";
        registry.register("failing_checks", help, metrics.failing_checks.clone());
        let help = "Checks of the cluster that could not be looked at";
        registry.register("unseen_checks", help, metrics.unseen_checks.clone());
        let help =
            "When the cluster was examined last, or if never since when this replica leads, in seconds since the epoch; 0 without a doctor";
        registry.register("examined_timestamp_seconds", help, metrics.examined.clone());
        registry.register("audit_unwritten_records", "Records that wait to be written to the audit log", metrics.unwritten_records.clone());
        let help = "Records that there was no room for, and that the audit log lacks";
        registry.register("audit_lost_records", help, metrics.lost_records.clone());
        let help = "1 while no run is admitted since the audit log cannot be written; 0 where there is none";
        registry.register("audit_log_behind", help, metrics.audit_log_behind.clone());
        let help = "Runs that ended, by namespace and phase; from a number of namespaces on, the others are counted together";
        registry.register("namespace_runs_finished", help, metrics.of_namespace.clone());
        registry.register("reconcile_seconds", "Time that a pass over a run took", metrics.pass_seconds.clone());
        registry.register("api_answers", "Answers of the API server, by HTTP status", metrics.answers.clone());
        registry.register("api_unanswered", "Requests that the API server did not answer", metrics.unanswered.clone());
        registry.register("traces_dropped", "Traces that could not be sent", metrics.traces_dropped.clone());
        registry.register("runs_finished", "Runs that ended, by the reason of their Finished condition", metrics.finished.clone());
        registry.register("runs_refused", "Runs that were refused, by the reason of their Accepted condition", metrics.refused.clone());
        registry.register("reconcile_errors", "Passes over a run that ended in an error", metrics.errors.clone());
        registry.register("malformed_objects", "Passes over an object that could not be read", metrics.malformed.clone());
        registry.register("open_sessions", "Runners that the operator listens to", metrics.sessions.clone());
        registry.register("leader", "1 on the replica that leads", metrics.leader.clone());
        let help = "From the first sight of a run to a clock of its status; to Received, from its creation";
        registry.register("run_seconds", help, metrics.run_seconds.clone());
        let help = "Connections that runs asked the egress gateway for, by what became of them";
        registry.register("egress_connections", help, metrics.connections.clone());
        registry.register("egress_bytes", "Bytes that the egress gateway carried for runs", metrics.carried.clone());
        // An alert on a rise needs a value to rise from.
        for category in Error::CATEGORIES {
            let _ = metrics.errors.get_or_create(&Category { category });
        }
        for reason in reasons_of("Finished") {
            let _ = metrics.finished.get_or_create(&Reason::of(reason));
        }
        for reason in reasons_of("Accepted=False") {
            let _ = metrics.refused.get_or_create(&Reason::of(reason));
        }
        for direction in DIRECTIONS {
            let _ = metrics.carried.get_or_create(&Carried { namespace: OTHER.to_owned(), direction });
        }
        let _ = metrics.connections.get_or_create(&Connected { namespace: OTHER.to_owned(), outcome: "Closed".to_owned() });
        metrics
    }

    /// Says how runs are counted, from when this replica leads.
    pub(crate) fn count_by(&self, count: impl Fn() -> Census + Send + Sync + 'static) {
        let _ = self.count.set(Box::new(count));
    }

    /// Counts the runs that are there: right before the metrics are read.
    pub(crate) fn count(&self) {
        let census = self.count.get().map(|count| count()).unwrap_or_default();
        for phase in UNFINISHED {
            let runs = census.by_phase.get(&phase).copied().unwrap_or(0);
            self.runs.get_or_create(&InPhase { phase: phase.to_string() }).set(i64::try_from(runs).unwrap_or(i64::MAX));
        }
        self.longest_wait.set(census.longest_wait.as_secs_f64());
        let diagnosis = census.diagnosis;
        self.failing_checks.set(i64::try_from(diagnosis.failing).unwrap_or(i64::MAX));
        self.unseen_checks.set(i64::try_from(diagnosis.not_seen).unwrap_or(i64::MAX));
        self.examined.set(diagnosis.examined);
        self.unwritten_records.set(i64::try_from(census.audit.unwritten).unwrap_or(i64::MAX));
        self.lost_records.inc_by(census.audit.lost.saturating_sub(self.lost_records.get()));
        self.audit_log_behind.set(i64::from(census.audit.seen == LogSeen::Behind));
    }

    pub(crate) fn finished(&self, namespace: &str, phase: &Phase, reason: &paddock_crds::Reason) {
        self.finished.get_or_create(&Reason::of(reason)).inc();
        let namespace = self.bounded(namespace);
        self.of_namespace.get_or_create(&OfNamespace { namespace, phase: phase.to_string() }).inc();
    }

    /// The first namespaces that something ended in keep their names.
    fn bounded(&self, namespace: &str) -> String {
        let mut known = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() < self.max_namespaces {
            known.insert(namespace.to_owned());
        }
        if known.contains(namespace) { namespace.to_owned() } else { OTHER.to_owned() }
    }

    /// A run has asked for a connection, and that is over.
    pub(crate) fn connected(&self, namespace: &str, outcome: &str, sent: u64, received: u64) {
        let namespace = self.bounded(namespace);
        for (direction, bytes) in DIRECTIONS.into_iter().zip([sent, received]) {
            self.carried.get_or_create(&Carried { namespace: namespace.clone(), direction }).inc_by(bytes);
        }
        self.connections.get_or_create(&Connected { namespace, outcome: outcome.to_owned() }).inc();
    }

    pub(crate) fn passed(&self, seconds: f64) {
        self.pass_seconds.observe(seconds);
    }

    pub(crate) fn answered(&self, code: u16) {
        self.answers.get_or_create(&Code { code }).inc();
    }

    pub(crate) fn trace_dropped(&self) {
        self.traces_dropped.inc();
    }

    pub(crate) fn unanswered(&self) {
        self.unanswered.inc();
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

/// The reasons that belong to a condition: their prose begins with it, in the reference of the API too.
fn reasons_of(condition: &'static str) -> impl Iterator<Item = &'static paddock_crds::Reason> {
    paddock_crds::Reason::ALL.iter().filter(move |(_, prose)| prose.trim_start().starts_with(condition)).map(|(reason, _)| reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(registry: &Registry) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).expect("text");
        text
    }

    #[test]
    fn namespaces_beyond_the_bound_are_counted_together() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry, 2);
        for namespace in ["a", "b", "c", "a", "d"] {
            metrics.finished(namespace, &Phase::Succeeded, &paddock_crds::Reason::Succeeded);
        }
        let text = text(&registry);
        for (namespace, count) in [("a", 2), ("b", 1), (OTHER, 2)] {
            let line = format!("paddock_namespace_runs_finished_total{{namespace=\"{namespace}\",phase=\"Succeeded\"}} {count}\n");
            assert!(text.contains(&line), "{text}");
        }
        assert!(!text.contains("namespace=\"c\"") && text.contains("paddock_runs_finished_total{reason=\"Succeeded\"} 5\n"), "{text}");
    }

    #[test]
    fn connections_are_counted_by_tenant_and_outcome() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry, 1);
        for (namespace, outcome, sent, received) in
            [("a", "Closed", 5, 7), ("a", "NotGranted", 0, 0), ("a", "Closed", 1, 1), ("b", "Idle", 2, 0)]
        {
            metrics.connected(namespace, outcome, sent, received);
        }
        let text = text(&registry);
        for line in [
            "paddock_egress_connections_total{namespace=\"a\",outcome=\"Closed\"} 2\n",
            "paddock_egress_connections_total{namespace=\"a\",outcome=\"NotGranted\"} 1\n",
            "paddock_egress_connections_total{namespace=\"_other\",outcome=\"Idle\"} 1\n",
            "paddock_egress_bytes_total{namespace=\"a\",direction=\"sent\"} 6\n",
            "paddock_egress_bytes_total{namespace=\"a\",direction=\"received\"} 8\n",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }

    #[test]
    fn every_reason_can_rise_from_zero() {
        let mut registry = Registry::default();
        let _ = Metrics::new(&mut registry, 0);
        let text = text(&registry);
        for line in ["paddock_runs_finished_total{reason=\"Lost\"} 0\n", "paddock_runs_refused_total{reason=\"Unstamped\"} 0\n"] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn a_phase_that_no_run_is_in_any_more_is_zero() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry, 0);
        let queued = Arc::new(Mutex::new(1));
        let seen = queued.clone();
        metrics.count_by(move || Census {
            by_phase: HashMap::from([(Phase::Queued, *seen.lock().expect("no panic"))]),
            longest_wait: Duration::from_millis(1500),
            diagnosis: diagnosis::Told { failing: 2, not_seen: 3, examined: 1_800_000_000 },
            audit: audit::Count { seen: LogSeen::Behind, unwritten: 4, lost: 5 },
        });
        metrics.count();
        assert!(text(&registry).contains("paddock_runs{phase=\"Queued\"} 1\n"));
        assert!(text(&registry).contains("paddock_longest_wait_seconds 1.5\n"));
        for line in ["audit_unwritten_records 4\n", "audit_lost_records_total 5\n", "audit_log_behind 1\n"] {
            assert!(text(&registry).contains(&format!("paddock_{line}")), "{line}");
        }
        assert!(text(&registry).contains("paddock_failing_checks 2\n"));
        assert!(text(&registry).contains("paddock_unseen_checks 3\n"));
        assert!(text(&registry).contains("paddock_examined_timestamp_seconds 1800000000\n"));
        *queued.lock().expect("no panic") = 0;
        metrics.count();
        assert!(text(&registry).contains("paddock_runs{phase=\"Queued\"} 0\n"));
    }
}
