//! What a run says about its approvals.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::{list_atomic, list_of_strings};

list_atomic!(demanded_schema, ApprovalDemanded, 64);
list_atomic!(given_schema, ApprovalGiven, 16);
list_of_strings!(excluded_schema, 32, 1024);

/// What has to be approved, and who did.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalStatus {
    /// What is decided on: script, arguments, input, image and limits. docs/approvals.md tells how to compute it.
    /// Empty where nothing is demanded, and what is kept is whose approval would not count.
    #[schemars(length(max = 64))]
    pub digest: String,
    /// The same with the schema of the input in place of the input. Absent where the run brings none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub schema_digest: Option<String>,
    /// When the run stops to wait. Absent when it does not wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<MicroTime>,
    /// One for each demand of a policy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "demanded_schema")]
    pub demanded: Vec<ApprovalDemanded>,
    /// Whose approvals do not count: the requester, the end user, and whoever was the author of a policy of the run since it waits. `*` is everybody: where one of them is not known, or there are more than 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "excluded_schema")]
    pub excluded: Vec<String>,
}

/// A demand of a policy, and what answers it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalDemanded {
    /// Policy and name, for example `ClusterSandboxPolicy/baseline: approvals[four-eyes]`.
    #[schemars(length(max = 512))]
    pub rule: String,
    /// What an approval must be of to count: `digest` or `schemaDigest` of the above.
    #[schemars(length(max = 64))]
    pub digest: String,
    /// How many people must approve.
    pub count: i64,
    /// Whether the run is ended when that many are not left.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ends_running: bool,
    /// Who did: the first 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "given_schema")]
    pub given: Vec<ApprovalGiven>,
}

impl ApprovalDemanded {
    /// Whether enough people have approved.
    pub fn is_answered(&self) -> bool {
        i64::try_from(self.given.len()).is_ok_and(|given| given >= self.count)
    }
}

/// An approval that counts.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalGiven {
    /// Who approved, as stamped at admission.
    #[schemars(length(max = 1024))]
    pub approver: String,
    /// Name of the ScriptApproval.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Its UID.
    #[schemars(length(max = 64))]
    pub uid: String,
}
