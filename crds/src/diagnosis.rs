//! `Diagnosis`: whether a cluster keeps what Paddock promises, as it was seen by trying.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::conditions::ConditionStatus;
use crate::open_enum::open_enum;
use crate::schema::{list_atomic, list_map};

list_atomic!(tolerated_schema, Check, 64);
list_map!(conditions_schema, DiagnosisCondition, "type", 16);
list_map!(checks_schema, CheckResult, "name", 64);

/// The one object of the kind that counts.
pub const DIAGNOSIS: &str = "cluster";

/// What whoever governs the cluster says about checks. Everything else in the object is written by `paddock-doctor`.
#[expect(clippy::duplicated_attributes, reason = "each column has the same fields")]
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Default)]
#[kube(
    group = "paddock.dev",
    version = "v1alpha1",
    kind = "Diagnosis",
    plural = "diagnoses",
    shortname = "diag",
    category = "paddock",
    status = "DiagnosisStatus",
    derive = "PartialEq",
    doc = "Whether this cluster keeps what Paddock promises, as it was seen by trying. The one with the name `cluster` counts: runs that depend on a check that fails are refused.",
    printcolumn(name = "Enforced", type_ = "string", json_path = ".status.conditions[?(@.type=='Enforced')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Enforced')].reason"),
    printcolumn(name = "Examined", type_ = "date", json_path = ".status.examinedAt"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type=='Enforced')].message", priority = 1)
)]
#[serde(rename_all = "camelCase")]
pub struct DiagnosisSpec {
    /// Checks that refuse nothing where they fail.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "tolerated_schema")]
    pub tolerated: Vec<Check>,
}

/// What was found.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct DiagnosisStatus {
    /// Facts for programs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<DiagnosisCondition>,
    /// When the cluster was examined last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub examined_at: Option<MicroTime>,
    /// Everything that was looked at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "checks_schema")]
    pub checks: Vec<CheckResult>,
}

/// What became of a check.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CheckResult {
    /// What was looked at.
    pub name: Check,
    /// What was found.
    pub verdict: CheckVerdict,
    /// What was seen, for people.
    #[schemars(length(max = 1024))]
    pub message: String,
    /// When `verdict` last changed.
    pub last_transition_time: Time,
}

open_enum! {
    /// Something that must hold on a cluster.
    #[derive(PartialOrd, Ord)]
    pub enum Check {
        /// The cluster stamps on each run who has created it.
        RequesterStamped,
        /// Nobody can have a run say that somebody else has created it.
        StampProtected,
        /// Pod Security refuses a pod with all privileges that has the RuntimeClass of sandboxes.
        PodSecurity,
        /// No script runs as root.
        NotRoot,
        /// No sandbox holds the token of an account, of Kubernetes' or of a cloud's, where these are mounted.
        NoToken,
        /// The image of a sandbox is read-only.
        RootReadOnly,
        /// What a script may write is limited.
        DiskLimited,
        /// The memory of a script is limited.
        MemoryLimited,
        /// The CPU of a script is limited.
        CpuLimited,
        /// The time of a script is limited.
        TimeLimited,
        /// A script that starts one process after the other is ended, by its memory or its time.
        ProcessesEnd,
        /// The kernel in a sandbox without a network is gVisor's: its RuntimeClass is what it claims to be.
        SandboxKernel,
        /// A sandbox without a network has no interface but loopback.
        SandboxInterfaces,
        /// No name server answers a sandbox without a network.
        SandboxNames,
        /// The kernel in a sandbox with a network is gVisor's, its script is not root, its image is read-only, and it holds no token.
        NetworkedSandbox,
        /// Over IPv4, a sandbox with a network reaches nothing but the egress gateway.
        NetworkPolicyIpv4,
        /// Over IPv6, a sandbox with a network reaches nothing but the egress gateway.
        NetworkPolicyIpv6,
        /// A sandbox with a network does not reach the kubelet of a node. Some network policy controllers let pods reach their own node, whatever a policy
        /// says.
        NodeConfined,
        /// No name server answers a sandbox with a network, neither its own nor those of the cluster.
        NetworkedNames,
        /// The egress gateway refuses what was not granted, and a name that leads into the cluster although it was granted.
        GatewayRefuses,
    }
}

open_enum! {
    /// What was found of a check.
    pub enum CheckVerdict {
        /// It holds.
        Holds,
        /// It does not hold. It stays so until it is seen to hold.
        Fails,
        /// It could not be looked at.
        NotSeen,
    }
}

open_enum! {
    /// What a condition of a diagnosis speaks about.
    #[derive(PartialOrd, Ord)]
    pub enum DiagnosisConditionType {
        /// Everything that was looked at holds.
        Enforced,
    }
}

open_enum! {
    /// Why a condition of a diagnosis is as it is.
    pub enum DiagnosisReason {
        /// Enforced: everything holds that `spec.tolerated` does not name.
        EverythingHolds,
        /// Enforced=False: something fails that `spec.tolerated` does not name, and runs that depend on it are refused; the message tells what.
        ChecksFail,
        /// Enforced=Unknown: nothing fails, and something could not be looked at; the message tells what. It refuses no run.
        NotEverythingSeen,
    }
}

/// One fact about a cluster. The shape is that of `metav1.Condition`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiagnosisCondition {
    /// What the condition speaks about.
    #[serde(rename = "type")]
    pub type_: DiagnosisConditionType,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, as one word of a documented set.
    pub reason: DiagnosisReason,
    /// The same for people.
    #[schemars(length(max = 1024))]
    pub message: String,
    /// When `status` last changed.
    pub last_transition_time: Time,
}
