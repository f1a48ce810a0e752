//! What the operator says about a policy.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::conditions::ConditionStatus;
use crate::open_enum::open_enum;
use crate::schema::{list_atomic, list_map};

list_map!(conditions_schema, PolicyCondition, "type", 16);
list_atomic!(problems_schema, Problem, 32);

/// Problems that the status of a policy names.
pub const SHOWN_PROBLEMS: usize = 32;

/// What the operator says about a policy. Written by the operator alone.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// The `metadata.generation` that this was computed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Facts for programs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<PolicyCondition>,
    /// Everything that is wrong with the policy: the first 32. As long as there is anything, every run under it is refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "problems_schema")]
    pub problems: Vec<Problem>,
}

/// Something that is wrong with a policy.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// The field below `spec`.
    #[schemars(length(max = 512))]
    pub field: String,
    /// What is wrong with it.
    #[schemars(length(max = 1024))]
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

open_enum! {
    /// What a condition of a policy speaks about.
    #[derive(PartialOrd, Ord)]
    pub enum PolicyConditionType {
        /// Runs are decided by it.
        Ready,
        /// It has to be changed before any run is decided by it.
        Stalled,
        /// An expression could not be evaluated on a run since the policy was changed last. Absent until then.
        RuleFailed,
        /// It and another policy that applies together with it cannot be meant at once. Absent where there is none.
        Contradicted,
    }
}

open_enum! {
    /// Why a condition of a policy is as it is.
    pub enum PolicyReason {
        /// Ready, Stalled=False: nothing is wrong with the policy by itself.
        Valid,
        /// Ready=False, Stalled: the policy contradicts itself, or holds something that cannot be used; see `status.problems`.
        Invalid,
        /// RuleFailed: an expression could not be evaluated on a run, which was refused for it; the message tells which expression, and why.
        EvaluationFailed,
        /// Contradicted: each of the policies is right by itself; runs that need what they contradict each other on are refused. The message tells
        /// which policies, and on what.
        PoliciesDisagree,
    }
}

/// One fact about a policy. The shape is that of `metav1.Condition`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyCondition {
    /// What the condition speaks about.
    #[serde(rename = "type")]
    pub type_: PolicyConditionType,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, as one word of a documented set.
    pub reason: PolicyReason,
    /// The same for people.
    #[schemars(length(max = 1024))]
    pub message: String,
    /// The `metadata.generation` that this was computed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When `status` last changed.
    pub last_transition_time: Time,
}
