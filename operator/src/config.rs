//! Flags and environment, read once. Nothing else reads either.

use std::net::SocketAddr;
use std::time::Duration;

use crate::bucket::{AUTHORITIES, Access};
use crate::egress::Installed;
use crate::script_run::queue::ClusterLimits;
use crate::webhook::Source;
use clap::{Parser, ValueEnum};
use ipnet::IpNet;
use jiff::SignedDuration;

/// Runs untrusted scripts as single-use gVisor pods, as ScriptRun objects ask for it and SandboxPolicy objects allow it.
#[derive(Parser, Clone, Debug)]
#[command(version)]
pub(crate) struct Config {
    /// Namespace of the operator: the lease is in it
    #[arg(long, env = "POD_NAMESPACE")]
    pub(crate) namespace: String,
    /// Service account of the operator: it gets its rights in each sandbox namespace
    #[arg(long, env = "SERVICE_ACCOUNT")]
    pub(crate) service_account: String,
    /// Name that this replica holds the lease under
    #[arg(long, env = "POD_NAME")]
    pub(crate) identity: String,
    /// Name of the lease
    #[arg(long, default_value = "paddock-operator")]
    pub(crate) lease: String,
    /// ClusterRole that is bound in each sandbox namespace
    #[arg(long, default_value = "paddock-sandbox")]
    pub(crate) sandbox_cluster_role: String,
    /// Image that holds the runner
    #[arg(long)]
    pub(crate) runner_image: String,
    /// How the runner gets into the sandbox
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) runner_delivery: RunnerDelivery,
    /// Pull policy of the runner's and the runtimes' images
    #[arg(long, value_enum, default_value = "if-not-present")]
    pub(crate) image_pull_policy: PullPolicy,
    /// RuntimeClass of sandboxes without a network: runsc with network=none
    #[arg(long, default_value = "gvisor-nonet")]
    pub(crate) runtime_class: String,
    /// Seconds from admission until the script must have started
    #[arg(long, default_value = "60", value_parser = clap::value_parser!(u32).range(5..=3600))]
    pub(crate) start_budget_seconds: u32,
    /// Runs that may be active at once in the whole cluster
    #[arg(long, default_value = "1000", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) max_concurrent: u32,
    /// Runs that may wait at once in the whole cluster
    #[arg(long, default_value = "100000", value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub(crate) max_queued: u32,
    /// Revisions that are kept of each policy
    #[arg(long, default_value = "20", value_parser = clap::value_parser!(i64).range(1..=1000))]
    pub(crate) policy_history: i64,
    /// Runs that are worked on at once
    #[arg(long, default_value = "32", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) concurrency: u16,
    /// Threads of the operator
    #[arg(long, default_value = "2")]
    pub(crate) threads: usize,
    /// Where results go that are too large for a status, if policies have them stored: file:///FOLDER or s3://BUCKET/PREFIX
    #[arg(long)]
    pub(crate) result_store: Option<String>,
    /// Where the audit log is kept: s3://BUCKET/PREFIX. Without one there is none
    #[arg(long)]
    pub(crate) audit_log: Option<String>,
    /// Where a trace of each run is sent when it is over: base URL of an OTLP receiver over HTTP, such as http://collector:4318
    #[arg(long)]
    pub(crate) traces_endpoint: Option<String>,
    /// Address of /healthz, /readyz and /metrics
    #[arg(long, default_value = "0.0.0.0:8080")]
    pub(crate) listen: SocketAddr,
    /// Address of the webhook that stamps, where the cluster serves no MutatingAdmissionPolicy
    #[arg(long)]
    pub(crate) webhook_listen: Option<SocketAddr>,
    /// Secret with the webhook's certificate, if somebody else keeps it and what API servers trust
    #[arg(long, requires = "webhook_listen")]
    pub(crate) webhook_secret: Option<String>,
    /// Seconds for which a certificate of the webhook is used; at two thirds of it the next one is made
    #[arg(long, default_value = "7776000", value_parser = clap::value_parser!(i64).range(60..=63_072_000))]
    pub(crate) webhook_certificate_seconds: i64,
    /// Service of the egress gateway in the namespace of the operator. Without one no run has a network
    #[arg(long)]
    pub(crate) egress_service: Option<String>,
    /// RuntimeClass of sandboxes with a network
    #[arg(long, default_value = "gvisor", requires = "egress_service")]
    pub(crate) egress_runtime_class: String,
    /// Sandboxes without a network have an interface all the same, as the one handler of some clusters gives it to them: each is shown from inside
    /// to reach nothing but the egress gateway, where it has no token
    #[arg(long, requires = "egress_service")]
    pub(crate) sandbox_has_interface: bool,
    /// Nets of pods, Services and nodes, to which nothing leads but what a policy grants by their name
    #[arg(long, value_delimiter = ',', requires = "egress_service")]
    pub(crate) egress_cluster_nets: Vec<IpNet>,
    /// Namespace in which the doctor examines the cluster: its runs are not refused by what was found before
    #[arg(long)]
    pub(crate) doctor_namespace: Option<String>,
    /// Tenant namespaces that metrics name; the others are counted together
    #[arg(long, default_value = "100")]
    pub(crate) metrics_namespaces: usize,
    /// Format of the log
    #[arg(long, value_enum, default_value = "json")]
    pub(crate) log_format: LogFormat,
}

/// Ways to bring the runner into a sandbox.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunnerDelivery {
    /// An image volume from Kubernetes 1.36 on, an init container before
    Auto,
    /// The runner's image mounted as a volume
    ImageVolume,
    /// An init container that copies the runner
    InitContainer,
}

/// Pull policies, as in a pod.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PullPolicy {
    /// Always
    Always,
    /// IfNotPresent
    IfNotPresent,
    /// Never
    Never,
}

impl PullPolicy {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// Formats of the log.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// One JSON object a line
    Json,
    /// For people
    Text,
}

/// Longest time that any request of the operator may take, watches and streams excepted. A new leader waits this long for the old one.
pub(crate) const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// What the names of variables begin with that are for the audit log.
const AUDIT: &str = "AUDIT_";

/// Variables whose names begin with this and then `AWS_`.
fn options_after(prefix: &str) -> Vec<(String, String)> {
    let named = std::env::vars().filter_map(|(name, value)| Some((name.strip_prefix(prefix)?.to_ascii_lowercase(), value)));
    named.filter(|(name, _)| name.starts_with("aws_")).collect()
}

/// Plain data for the pure code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) runner_image: String,
    pub(crate) runner_by_image_volume: bool,
    pub(crate) image_pull_policy: &'static str,
    pub(crate) runtime_class: String,
    /// RuntimeClass of sandboxes with a network.
    pub(crate) egress_runtime_class: String,
    pub(crate) start_budget_seconds: u32,
    pub(crate) cluster_limits: ClusterLimits,
    pub(crate) policy_history: i64,
    /// Every sandbox has an interface, whether or not the run was granted a network.
    pub(crate) sandbox_has_interface: bool,
    /// Sandboxes with a network may connect to the egress gateway in the operator's namespace.
    pub(crate) has_egress: bool,
    pub(crate) operator_namespace: String,
    pub(crate) operator_service_account: String,
    pub(crate) sandbox_cluster_role: String,
    /// Runs of this namespace are not refused by what was found of the cluster: they are how it is found.
    pub(crate) doctor_namespace: Option<String>,
}

/// The first minor version of Kubernetes 1 in which image volumes are on without a feature gate.
const IMAGE_VOLUMES_SINCE: u32 = 36;

impl Config {
    /// What clap cannot check.
    pub(crate) fn check(&self) -> Result<(), String> {
        for (flag, value) in [
            ("namespace", &self.namespace),
            ("service-account", &self.service_account),
            ("identity", &self.identity),
            ("runner-image", &self.runner_image),
            ("runtime-class", &self.runtime_class),
            ("egress-runtime-class", &self.egress_runtime_class),
        ] {
            if value.trim().is_empty() {
                return Err(format!("--{flag} must not be empty"));
            }
        }
        if self.threads == 0 {
            return Err("--threads must be at least 1".into());
        }
        Ok(())
    }

    /// Where the webhook's certificate comes from.
    pub(crate) fn webhook_certificate(&self) -> Source {
        self.webhook_secret.clone().map_or_else(|| Source::Own(SignedDuration::from_secs(self.webhook_certificate_seconds)), Source::Other)
    }

    /// How the result store is reached: what the environment says about AWS, under the names that `object_store` knows.
    pub(crate) fn store_access() -> Access {
        Access { options: options_after(""), authorities: Self::authorities() }
    }

    /// The same of the audit log, with a prefix: it is not written with the rights by which results are.
    pub(crate) fn audit_access() -> Access {
        let authorities = std::env::var(format!("{AUDIT}{AUTHORITIES}")).ok().filter(|pem| !pem.is_empty());
        Access { options: options_after(AUDIT), authorities }
    }

    /// Authorities that may sign the certificates of the servers of results and traces, beside the public ones.
    pub(crate) fn authorities() -> Option<String> {
        std::env::var(AUTHORITIES).ok().filter(|pem| !pem.is_empty())
    }

    /// The egress gateway, if there is one.
    pub(crate) fn egress(&self) -> Option<Installed> {
        let service = self.egress_service.clone()?;
        Some(Installed { service, cluster_nets: self.egress_cluster_nets.clone() })
    }

    /// The settings on a cluster of this minor version.
    pub(crate) fn settings(&self, server_minor: u32) -> Settings {
        Settings {
            runner_image: self.runner_image.clone(),
            runner_by_image_volume: match self.runner_delivery {
                RunnerDelivery::Auto => server_minor >= IMAGE_VOLUMES_SINCE,
                RunnerDelivery::ImageVolume => true,
                RunnerDelivery::InitContainer => false,
            },
            image_pull_policy: self.image_pull_policy.as_str(),
            runtime_class: self.runtime_class.clone(),
            egress_runtime_class: self.egress_runtime_class.clone(),
            start_budget_seconds: self.start_budget_seconds,
            cluster_limits: ClusterLimits { concurrent: self.max_concurrent as usize, queued: self.max_queued as usize },
            policy_history: self.policy_history,
            sandbox_has_interface: self.sandbox_has_interface,
            has_egress: self.egress_service.is_some(),
            operator_namespace: self.namespace.clone(),
            operator_service_account: self.service_account.clone(),
            sandbox_cluster_role: self.sandbox_cluster_role.clone(),
            doctor_namespace: self.doctor_namespace.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("auto", 36, true)]
    #[case("auto", 35, false)]
    #[case("image-volume", 33, true)]
    #[case("init-container", 37, false)]
    fn the_way_of_the_runner_follows_the_server_unless_told(#[case] delivery: &str, #[case] minor: u32, #[case] by_volume: bool) {
        let flags = ["x", "--namespace=n", "--service-account=s", "--identity=i", "--runner-image=r", "--runner-delivery", delivery];
        assert_eq!(Config::parse_from(flags).settings(minor).runner_by_image_volume, by_volume);
    }
}
