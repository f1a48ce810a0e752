//! What policies say of the queue.

use std::borrow::Borrow;

use paddock_crds::{PolicyKind, PolicyRules, Suspend};

use crate::bounds::smallest;
use crate::decide::{Policy, clamp};

const DEFAULT_CONCURRENT: i64 = 10;
const DEFAULT_QUEUED: i64 = 100;
const DEFAULT_WEIGHT: i64 = 100;

/// Limits of a run's namespace, and of those runs in it that name the same policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// Active runs in the namespace.
    pub concurrent: u32,
    /// Waiting runs in the namespace.
    pub queued: u32,
    /// Active runs that name the same SandboxPolicy, if it says so.
    pub policy_concurrent: Option<u32>,
    /// Waiting runs that name the same SandboxPolicy, if it says so.
    pub policy_queued: Option<u32>,
    /// Share of the namespace where the slots of the cluster do not suffice for all.
    pub weight: u32,
    /// Nothing is admitted.
    pub suspended: bool,
}

/// Of all policies that take part in the decision on a run.
pub fn queue_limits(policies: &[impl Borrow<Policy>]) -> QueueLimits {
    let of_kind = |kind| policies.iter().map(Borrow::borrow).filter(move |policy: &&Policy| policy.taken.kind == kind);
    let cluster_tier: Vec<&Policy> = of_kind(PolicyKind::ClusterSandboxPolicy).collect();
    let named =
        |of: fn(&PolicyRules) -> Option<i64>| of_kind(PolicyKind::SandboxPolicy).filter_map(|policy| of(&policy.rules)).min().map(clamp);
    let all: Vec<&Policy> = policies.iter().map(Borrow::borrow).collect();
    QueueLimits {
        concurrent: clamp(smallest(&cluster_tier, DEFAULT_CONCURRENT, |policy| policy.rules.limits.max_concurrent)),
        queued: clamp(smallest(&cluster_tier, DEFAULT_QUEUED, |policy| policy.rules.limits.max_queued)),
        policy_concurrent: named(|rules| rules.limits.max_concurrent),
        policy_queued: named(|rules| rules.limits.max_queued),
        weight: clamp(smallest(&cluster_tier, DEFAULT_WEIGHT, |policy| policy.rules.limits.weight)).max(1),
        suspended: all.iter().any(|policy| matches!(policy.rules.suspend, Some(Suspend::Queue | Suspend::Kill))),
    }
}
