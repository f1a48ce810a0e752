//! `SandboxPool`: sandboxes that have begun before there is a run for them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::conditions::ConditionStatus;
use crate::open_enum::open_enum;
use crate::sandbox_policy::PreStart;
use crate::schema::list_map;
use crate::script_run::PolicyRef;

list_map!(conditions_schema, PoolCondition, "type", 16);

/// Sandboxes that a pool may hold.
pub const MOST_REPLICAS: i32 = 500;

/// Sandboxes that have begun before there is a run for them. Each is given to one run of this namespace and is gone with it.
#[expect(clippy::duplicated_attributes, reason = "each column has the same fields")]
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "paddock.dev",
    version = "v1alpha1",
    kind = "SandboxPool",
    plural = "sandboxpools",
    shortname = "spl",
    category = "paddock",
    namespaced,
    status = "SandboxPoolStatus",
    derive = "PartialEq",
    doc = "Sandboxes that have begun before there is a run for them. Each is given to one run of this namespace and is gone with it.",
    scale(spec_replicas_path = ".spec.replicas", status_replicas_path = ".status.replicas", label_selector_path = ".status.selector"),
    printcolumn(name = "Runtime", type_ = "string", json_path = ".spec.runtime"),
    printcolumn(name = "Wanted", type_ = "integer", json_path = ".status.wanted"),
    printcolumn(name = "Free", type_ = "integer", json_path = ".status.free"),
    printcolumn(name = "Starting", type_ = "integer", json_path = ".status.starting"),
    printcolumn(name = "Claimed", type_ = "integer", json_path = ".status.claimed"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Policy", type_ = "string", json_path = ".spec.policyRef.name", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("self.policyRef == oldSelf.policyRef && self.runtime == oldSelf.runtime")
        .message("policyRef and runtime are immutable: a pool for others is another pool"),
    validation = Rule::new("has(self.replicas) ? !has(self.min) && !has(self.max) : has(self.min) && has(self.max)")
        .message("a pool has either replicas, or both min and max; one with min and max is not scaled by hand or by an autoscaler"),
    validation = Rule::new("!has(self.min) || !has(self.max) || self.min <= self.max").message("min must not be greater than max"),
)]
#[serde(rename_all = "camelCase")]
pub struct SandboxPoolSpec {
    /// The policy that runs name which are given these sandboxes. What a run gets that asks it for nothing is what each of them has: memory, CPU, scratch
    /// and time.
    pub policy_ref: PolicyRef,
    /// Name of the runtime.
    #[schemars(length(min = 1, max = 63))]
    pub runtime: String,
    /// Sandboxes that wait, or begin to. Those that runs have are beside them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 500))]
    pub replicas: Option<i32>,
    /// In place of `replicas`: at least so many, and up to `max` as runs arrive. As many wait as runs arrived at most, in the last five minutes, while a
    /// sandbox begins, and a quarter more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 500))]
    pub min: Option<i32>,
    /// See `min`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 500))]
    pub max: Option<i32>,
    /// A sandbox that has waited for so many seconds is replaced; by default 3600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 60, max = 86_400))]
    pub max_age_seconds: Option<i64>,
}

/// What there is of a pool. Written by the operator alone, at most once in two seconds.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct SandboxPoolStatus {
    /// The `metadata.generation` that this was computed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Facts for programs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<PoolCondition>,
    /// Sandboxes that are to wait: `spec.replicas`, or what follows from the runs that have arrived.
    #[serde(default)]
    pub wanted: i32,
    /// Sandboxes that wait or begin to.
    #[serde(default)]
    pub replicas: i32,
    /// Those that wait for a run.
    #[serde(default)]
    pub free: i32,
    /// Those that begin.
    #[serde(default)]
    pub starting: i32,
    /// Those that were given to runs which are not over.
    #[serde(default)]
    pub claimed: i32,
    /// Selects the pods of the pool in the sandbox namespace. A HorizontalPodAutoscaler wants one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub selector: Option<String>,
    /// The image that they have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub image: Option<String>,
    /// The interpreter that waits with each, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pre_start: Option<PreStart>,
}

open_enum! {
    /// What a condition of a pool speaks about.
    #[derive(PartialOrd, Ord)]
    pub enum PoolConditionType {
        /// As many sandboxes wait as are wanted.
        Ready,
    }
}

open_enum! {
    /// Why a condition of a pool is as it is.
    pub enum PoolReason {
        /// Ready: as many sandboxes wait as are wanted.
        Filled,
        /// Ready=False: sandboxes begin, or are about to.
        Filling,
        /// Ready=False: a quota has no room for more, or had none for the pod of a run, to which the pool has given way. Runs that find no free sandbox begin
        /// with one of their own.
        QuotaExceeded,
        /// Ready=False: there are 16 older pools in the namespace, and no more are filled.
        TooManyPools,
        /// Ready=False: the policies of the namespace grant no run what this pool is for; the message tells why.
        NotGranted,
        /// Ready=False: the sandbox namespace of the namespace is being set up, or cannot be; the message tells why.
        NoSandboxNamespace,
        /// Ready=False: every sandbox has a network interface here (the chart's `sandbox.hasInterface`), and none may wait with one.
        HasInterface,
        /// Ready=False: sandboxes end before they are ready; the message tells what was seen.
        SandboxesFail,
    }
}

/// One fact about a pool. The shape is that of `metav1.Condition`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolCondition {
    /// What the condition speaks about.
    #[serde(rename = "type")]
    pub type_: PoolConditionType,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, as one word of a documented set.
    pub reason: PoolReason,
    /// The same for people.
    #[schemars(length(max = 1024))]
    pub message: String,
    /// The `metadata.generation` that this was computed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When `status` last changed.
    pub last_transition_time: Time,
}
