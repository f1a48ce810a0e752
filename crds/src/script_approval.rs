//! `ScriptApproval`: a decision of somebody who may decide.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A decision on a digest. Whoever creates it must hold the verb `approve` on scriptruns in the namespace, and is stamped on it.
#[expect(clippy::duplicated_attributes, reason = "each column has the same fields")]
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "paddock.dev",
    version = "v1alpha1",
    kind = "ScriptApproval",
    plural = "scriptapprovals",
    shortname = "sap",
    category = "paddock",
    namespaced,
    derive = "PartialEq",
    doc = "A decision on what a run would do: on its digest. Whoever creates it must hold the verb `approve` on scriptruns in the namespace, and is stamped on it.",
    printcolumn(name = "Decision", type_ = "string", json_path = ".spec.decision"),
    printcolumn(name = "Approver", type_ = "string", json_path = ".metadata.annotations.paddock\\.dev/approver"),
    printcolumn(name = "Run", type_ = "string", json_path = ".spec.runUid", priority = 1),
    printcolumn(name = "Digest", type_ = "string", json_path = ".spec.digest", priority = 1),
    printcolumn(name = "Expires", type_ = "string", json_path = ".spec.expiresAt"),
    printcolumn(name = "Revoked", type_ = "boolean", json_path = ".spec.revoked"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("self.digest == oldSelf.digest && self.decision == oldSelf.decision").message("digest and decision are immutable"),
    validation = Rule::new("has(self.runUid) == has(oldSelf.runUid) && (!has(self.runUid) || self.runUid == oldSelf.runUid)")
        .message("runUid is immutable"),
    validation = Rule::new("has(self.expiresAt) == has(oldSelf.expiresAt) && (!has(self.expiresAt) || self.expiresAt == oldSelf.expiresAt)")
        .message("expiresAt is immutable"),
    validation = Rule::new("!has(self.expiresAt) || self.expiresAt < timestamp('9000-01-01T00:00:00Z')")
        .message("expiresAt must be before the year 9000; without it the decision does not expire by itself"),
    validation = Rule::new("has(self.comment) == has(oldSelf.comment) && (!has(self.comment) || self.comment == oldSelf.comment)")
        .message("comment is immutable"),
    validation = Rule::new("!has(oldSelf.revoked) || !oldSelf.revoked || (has(self.revoked) && self.revoked)")
        .message("revoked cannot be taken back"),
)]
#[serde(rename_all = "camelCase")]
pub struct ScriptApprovalSpec {
    /// What is decided on: `status.approval.digest` or `status.approval.schemaDigest` of a run, SHA-256 in hexadecimal.
    #[schemars(length(min = 64, max = 64), regex(pattern = "^[0-9a-f]{64}$"))]
    pub digest: String,
    /// The decision.
    pub decision: ApprovalDecision,
    /// UID of the one run that is meant. Without it every run of the namespace that has the digest is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub run_uid: Option<String>,
    /// From when on it counts no more. A policy can end it sooner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// Why, for whoever reads it later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub comment: Option<String>,
    /// Takes the decision back. This cannot be taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<bool>,
}

/// What is decided.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApprovalDecision {
    /// It may run.
    Approve,
    /// It may not, whoever else approves.
    Deny,
}
