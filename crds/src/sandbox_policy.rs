//! `SandboxPolicy` and `ClusterSandboxPolicy`: what may run.
//!
//! What applies to a run is the intersection of the policy that it names and of every ClusterSandboxPolicy that selects its namespace.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::{list_map, list_of_strings, quantity};

list_map!(runtimes_schema, Runtime, "name", 32);
list_of_strings!(command_schema, 16, 1024);

/// What may run in one namespace.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[kube(
    group = "paddock.dev",
    version = "v1alpha1",
    kind = "SandboxPolicy",
    plural = "sandboxpolicies",
    shortname = "sbp",
    category = "paddock",
    namespaced,
    derive = "PartialEq",
    doc = "What the runs of a namespace may do that name it. It narrows the ClusterSandboxPolicies that select the namespace and binds no run that names another policy: what nobody may exceed belongs into a ClusterSandboxPolicy.",
    printcolumn(name = "Concurrent", type_ = "integer", json_path = ".spec.limits.maxConcurrent"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct SandboxPolicySpec {
    /// The rules.
    #[serde(flatten)]
    pub rules: PolicyRules,
}

/// What may run in every namespace that it selects. No namespace can relax it.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[kube(
    group = "paddock.dev",
    version = "v1alpha1",
    kind = "ClusterSandboxPolicy",
    plural = "clustersandboxpolicies",
    shortname = "csbp",
    category = "paddock",
    derive = "PartialEq",
    doc = "What may run in every namespace that it selects. A namespace that none selects may run nothing.",
    printcolumn(name = "Concurrent", type_ = "integer", json_path = ".spec.limits.maxConcurrent"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct ClusterSandboxPolicySpec {
    /// The namespaces that it applies to. An empty selector selects all of them.
    pub namespace_selector: LabelSelector,
    /// The rules.
    #[serde(flatten)]
    pub rules: PolicyRules,
}

/// Rules, the same for both kinds.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRules {
    /// The runtimes that may be used. A runtime must be offered by every policy that applies.
    #[schemars(schema_with = "runtimes_schema")]
    pub runtimes: Vec<Runtime>,
    /// Defaults and maxima. Of several policies the smallest value holds.
    #[serde(default)]
    pub limits: Limits,
}

/// A language runtime.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Runtime {
    /// The name that scripts use.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// Image that holds the interpreter. Policies that set it must agree, and one of them must set it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512), regex(pattern = "^[^\\s]+$"))]
    pub image: Option<String>,
    /// Interpreter and its arguments; the path of the script and the run's arguments follow. Set together with `image`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "command_schema")]
    #[x_kube(validation = Rule::new("self.size() > 0 && self[0].startsWith('/')").message("the interpreter must be an absolute path"))]
    pub command: Option<Vec<String>>,
}

/// Defaults and maxima. Where no policy says anything, a run gets 128Mi of memory, 500m of CPU, 16Mi of scratch, 30 s and a grace of 5 s, and a
/// namespace 10 active and 100 waiting runs. Without a maximum nobody may ask for more than the default.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// What a run gets that does not ask: of several policies the smallest. Where none says anything, 128Mi of memory, 500m of CPU and 16Mi of
    /// scratch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<ResourceAmounts>,
    /// What a run may ask for at most: of several policies the smallest. Where none says anything, no more than the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<ResourceAmounts>,
    /// `timeoutSeconds` of a run that does not ask: of several policies the smallest, 30 where none says anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86400))]
    pub default_timeout_seconds: Option<i64>,
    /// Largest `timeoutSeconds` that a run may ask for: of several policies the smallest, the default where none says anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86400))]
    pub max_timeout_seconds: Option<i64>,
    /// Largest `gracePeriodSeconds` that a run may ask for: of several policies the smallest, 5 where none says anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 300))]
    pub max_grace_period_seconds: Option<i64>,
    /// Runs that may be active at once in a namespace, whichever policies they name: of several policies the smallest, 10 where none says
    /// anything. With 0 a run waits until that changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10000))]
    pub max_concurrent: Option<i64>,
    /// Runs that may wait at once in a namespace; one more is refused. Of several policies the smallest, 100 where none says anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100_000))]
    pub max_queued: Option<i64>,
}

/// Amounts of what a sandbox uses.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct ResourceAmounts {
    /// Memory of the sandbox: the interpreter, gVisor's own kernel, and all of `/workspace`. At least 32Mi more than `scratch`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "quantity")]
    pub memory: Option<Quantity>,
    /// CPU: `1` is one core, `250m` a quarter of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "quantity")]
    pub cpu: Option<Quantity>,
    /// Size of `/workspace`, where the script can write, and of the largest file anywhere. It is held in memory. A file that would be larger
    /// ends in EFBIG, a full `/workspace` in ENOSPC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "quantity")]
    pub scratch: Option<Quantity>,
}
