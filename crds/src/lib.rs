//! The API of Paddock, group `paddock.dev`, version `v1alpha1`: types and schemas, nothing else.
//!
//! There is no client and no async code here, so that other programs can use the types without an operator's dependencies.

pub mod approval_status;
pub mod conditions;
pub mod diagnosis;
pub mod generate;
pub mod json_schema;
mod open_enum;
pub mod policy_status;
pub mod preflight;
pub mod reference;
pub mod risk;
pub mod sandbox_policy;
pub mod sandbox_pool;
pub mod schema;
pub mod script_approval;
pub mod script_run;

pub use approval_status::{ApprovalDemanded, ApprovalGiven, ApprovalStatus};
pub use conditions::{Condition, ConditionStatus, ConditionType, Phase, Reason};
pub use diagnosis::{
    Check, CheckResult, CheckVerdict, DIAGNOSIS, Diagnosis, DiagnosisCondition, DiagnosisConditionType, DiagnosisReason, DiagnosisSpec,
    DiagnosisStatus,
};
pub use policy_status::{PolicyCondition, PolicyConditionType, PolicyReason, PolicyStatus, Problem};
pub use preflight::{Finding, FindingKind, Language, Preflight, PreflightRules, PreflightVerdict, Strictness, Unclear};
pub use risk::{Risk, RiskLevel, RiskPart, RiskReason};
pub use sandbox_policy::{
    ApprovalDemand, Binding, CapabilityRules, ClusterSandboxPolicy, ClusterSandboxPolicySpec, DeniedSubject, Deny, Detector, Effect,
    InputRules, LargeResult, Limits, MaskRule, MaskRules, NetworkGrant, NetworkProtocol, ObjectGrant, OutputRules, PolicyRule, PolicyRules,
    PreStart, ResourceAmounts, Runtime, SandboxPolicy, SandboxPolicySpec, ScriptSchema, SecretHeader, SecretKeyRef, SubjectKind, Suspend,
};
pub use sandbox_pool::{PoolCondition, PoolConditionType, PoolReason, SandboxPool, SandboxPoolSpec, SandboxPoolStatus};
pub use script_approval::{ApprovalDecision, ScriptApproval, ScriptApprovalSpec};
pub use script_run::{
    AuditEvent, Capabilities, Clocks, ColdReason, ConfigMapKeyRef, Decision, EndUser, NetworkUsage, OutputStream, PodRef, PolicyKind,
    PolicyRef, Redaction, RefusedDestination, Requester, RunPath, RunResult, Script, ScriptRun, ScriptRunSpec, ScriptRunStatus, Source,
    Stopping, StoredResult, TakenPolicy, Usage, Verdict, Violation,
};

/// API group of every kind here.
pub const GROUP: &str = "paddock.dev";
/// The only version served so far.
pub const VERSION: &str = "v1alpha1";
