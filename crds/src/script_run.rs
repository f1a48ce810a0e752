//! `ScriptRun`: one execution of one script.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::approval_status::ApprovalStatus;
use crate::conditions::{Condition, ConditionType, Phase, Reason};
use crate::open_enum::open_enum;
use crate::preflight::Preflight;
use crate::risk::Risk;
use crate::sandbox_policy::ResourceAmounts;
use crate::schema::{any_json, list_atomic, list_map, list_of_strings};

list_map!(conditions_schema, Condition, "type", 16);
list_atomic!(policies_schema, TakenPolicy, 64);
list_atomic!(decisions_schema, Decision, 128);
list_atomic!(audit_schema, AuditEvent, 16);
list_atomic!(redactions_schema, Redaction, 64);
list_atomic!(refusals_schema, RefusedDestination, 16);
list_atomic!(violations_schema, Violation, 64);
list_of_strings!(args_schema, 64, 4096);
list_of_strings!(hosts_schema, 32, 253, "pattern": "^\\S+$");
list_of_strings!(objects_schema, 8, 253, "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$");
list_of_strings!(groups_schema, 64, 256);

/// Groups of a requester that the status shows; the decision looks at all of them.
pub const SHOWN_GROUPS: usize = 64;
/// Longest group that the status shows, in characters.
pub const SHOWN_GROUP_LENGTH: usize = 256;

/// One execution of one script in a sandbox of its own.
///
/// Everything but `cancel` and `ttlSecondsAfterFinished` is fixed when the run is created.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "paddock.dev",
    version = "v1alpha1",
    kind = "ScriptRun",
    plural = "scriptruns",
    shortname = "sr",
    category = "paddock",
    namespaced,
    status = "ScriptRunStatus",
    derive = "PartialEq",
    doc = "One execution of one script in a sandbox of its own.",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Finished\")].reason"),
    printcolumn(name = "Exit", type_ = "integer", json_path = ".status.result.exitCode"),
    printcolumn(name = "Runtime", type_ = "string", json_path = ".spec.script.runtime"),
    printcolumn(name = "Policy", type_ = "string", json_path = ".spec.policyRef.name", priority = 1),
    printcolumn(name = "Risk", type_ = "integer", json_path = ".status.risk.score", priority = 1),
    printcolumn(name = "Node", type_ = "string", json_path = ".status.pod.node", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("!has(oldSelf.status) || !has(oldSelf.status.conditions) || !oldSelf.status.conditions.exists(c, c.type == 'Finished' && c.status == 'True') || (has(self.status) && self.status == oldSelf.status)")
        .message("the status of a finished run never changes"),
    validation = Rule::new("!has(oldSelf.status) || has(self.status)")
        .message("status cannot be removed"),
)]
#[x_kube(
    validation = Rule::new("self.policyRef == oldSelf.policyRef").message("policyRef is immutable"),
    validation = Rule::new("self.script == oldSelf.script").message("script is immutable"),
    validation = Rule::new("has(self.capabilities) == has(oldSelf.capabilities) && (!has(self.capabilities) || self.capabilities == oldSelf.capabilities)")
        .message("capabilities are immutable"),
    validation = Rule::new("has(self.resources) == has(oldSelf.resources) && (!has(self.resources) || self.resources == oldSelf.resources)")
        .message("resources are immutable"),
    validation = Rule::new("has(self.timeoutSeconds) == has(oldSelf.timeoutSeconds) && (!has(self.timeoutSeconds) || self.timeoutSeconds == oldSelf.timeoutSeconds)")
        .message("timeoutSeconds is immutable"),
    validation = Rule::new("has(self.gracePeriodSeconds) == has(oldSelf.gracePeriodSeconds) && (!has(self.gracePeriodSeconds) || self.gracePeriodSeconds == oldSelf.gracePeriodSeconds)")
        .message("gracePeriodSeconds is immutable"),
    validation = Rule::new("has(self.priority) == has(oldSelf.priority) && (!has(self.priority) || self.priority == oldSelf.priority)")
        .message("priority is immutable"),
    validation = Rule::new("has(self.endUser) == has(oldSelf.endUser) && (!has(self.endUser) || self.endUser == oldSelf.endUser)")
        .message("endUser is immutable"),
    validation = Rule::new("!has(oldSelf.cancel) || !oldSelf.cancel || (has(self.cancel) && self.cancel)")
        .message("cancel cannot be taken back"),
)]
#[serde(rename_all = "camelCase")]
pub struct ScriptRunSpec {
    /// The policy that the run asks to run under. Every ClusterSandboxPolicy that selects the namespace applies as well.
    pub policy_ref: PolicyRef,
    /// The person for whom a platform creates the run. Only an account that holds the verb `impersonate-requester` on scriptruns in the namespace
    /// may set it; whoever creates the run stays its requester.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_user: Option<EndUser>,
    /// What to run.
    pub script: Script,
    /// What the script asks for beside resources and time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
    /// Memory, CPU and scratch space. What is not set comes from the policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceAmounts>,
    /// Seconds that the script may run, from when its interpreter began until it is told to end. The policy gives the default and the maximum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86400))]
    pub timeout_seconds: Option<i64>,
    /// Seconds between TERM and KILL when the script is ended, 5 by default. The policy gives the maximum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 300))]
    pub grace_period_seconds: Option<i64>,
    /// Head start in the queue of the namespace: a run with 60 goes before those that were created up to 60 seconds before it. The policy gives the
    /// maximum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 86400))]
    pub priority: Option<i64>,
    /// Ends the run. It cannot be taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel: Option<bool>,
    /// Seconds after the end until the operator deletes the run. Without it the run stays until somebody deletes it. A run that Argo CD, Flux or Helm
    /// holds is never deleted for it: they would create it anew, and it would run once more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 31_536_000))]
    pub ttl_seconds_after_finished: Option<i64>,
}

/// A person, as the platform knows them. Kubernetes need not.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct EndUser {
    /// Name.
    #[schemars(length(min = 1, max = 256))]
    pub username: String,
    /// Groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "groups_schema")]
    pub groups: Vec<String>,
}

/// Names one policy.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRef {
    /// `SandboxPolicy` in the namespace of the run, or `ClusterSandboxPolicy`.
    pub kind: PolicyKind,
    /// Its name.
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
}

/// Kinds of policy.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyKind {
    /// Namespaced, written by the tenant's platform team.
    SandboxPolicy,
    /// Cluster-wide; no namespace can relax it.
    ClusterSandboxPolicy,
}

impl PolicyKind {
    /// The kind as Kubernetes spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SandboxPolicy => "SandboxPolicy",
            Self::ClusterSandboxPolicy => "ClusterSandboxPolicy",
        }
    }
}

/// What to run. Immutable as a whole.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Script {
    /// Name of a runtime that the policy offers, for example `python`.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub runtime: String,
    /// Where the text of the script is.
    pub source: Source,
    /// Arguments, handed to the script as they are; no shell sees them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "args_schema")]
    pub args: Vec<String>,
    /// Any JSON value; `null` is the same as none. The script reads it from the file that `$PADDOCK_INPUT` names, and from standard input. Without
    /// an input the variable is not set and standard input is empty. The API server writes it anew before the script sees it: names are sorted,
    /// `1.0` becomes `1`, integers beyond 64 bits lose digits. Send such numbers as strings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_json")]
    pub input: Option<Value>,
    /// JSON Schema 2020-12, an object. A run whose `input` does not satisfy it is refused, with every place, up to 64, in `status.violations`; a
    /// missing input counts as `null`. References may lead only within the schema or to the meta-schema of 2020-12, which `$schema` must name if it
    /// is there. Patterns have no look-around, `format` is not checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_json")]
    pub input_schema: Option<Value>,
}

/// The text of the script: exactly one of the fields.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq, Default)]
#[x_kube(validation = Rule::new("has(self.inline) != has(self.configMapKeyRef)").message("exactly one of inline and configMapKeyRef must be set"))]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// The text itself, at most 65536 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65536))]
    #[x_kube(validation = Rule::new("bytes(self).size() <= 65536").message("must be at most 65536 bytes"))]
    pub inline: Option<String>,
    /// A key of a ConfigMap in the namespace of the run. Its content is fixed by hash when the run is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_key_ref: Option<ConfigMapKeyRef>,
}

/// A key of a ConfigMap in the namespace of the run.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapKeyRef {
    /// Name of the ConfigMap.
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// Key in its `data`.
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// What the script asks for. Each entry is granted or refused by itself; one refusal refuses the run, unless it says `partial`.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Capabilities {
    /// Where to connect to: `HOST` or `HOST:PORT` over TLS, at port 443 where none is given; `*.example.com` is every name below it;
    /// `http://HOST` or `http://HOST:PORT` is called over HTTP: without TLS, at port 80 where none is given, or, where the policies say
    /// `protocol: HTTPS`, carried by the gateway over TLS to port 443 or PORT; `tcp://NET:PORT` is an address or a net such as
    /// `tcp://10.20.0.0/16:5432`, whatever is spoken. A policy must grant all of it. The way there is a proxy,
    /// which `HTTPS_PROXY` and its like name; nothing else leads out of the sandbox.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "hosts_schema")]
    pub network: Vec<String>,
    /// Secrets of the namespace of the run, by name: each key is a file `/paddock/secrets/NAME/KEY`. They are copied when the pod is made. Whoever
    /// creates the run, and whoever wrote a policy that grants it, must be allowed to read the Secret themselves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "objects_schema")]
    pub secrets: Vec<String>,
    /// ConfigMaps of the namespace of the run, by name: each key is a file `/paddock/data/NAME/KEY`. Otherwise as `secrets`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "objects_schema")]
    pub data: Vec<String>,
    /// PersistentVolumeClaims of the sandbox namespace, by name, where an administrator put them: read-only at `/paddock/volumes/NAME`. Whoever creates
    /// the run must be allowed to read a claim of that name in the namespace of the run; so must the author of a SandboxPolicy that grants it, and the
    /// author of a ClusterSandboxPolicy the claim itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "objects_schema")]
    pub volumes: Vec<String>,
    /// To run code that is made at run time. Not kept from a script that does not ask.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dynamic_code: bool,
    /// To start other programs of the image. Not kept from a script that does not ask.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub subprocess: bool,
    /// Runs also without what is refused: `status.decisions` tells what that is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

/// What the operator reports. Written by the operator alone.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct ScriptRunStatus {
    /// The `metadata.generation` that this was computed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where the run is, in one word, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// The same in one sentence, for the author of the script.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    /// Facts for programs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
    /// The policies that took part in the decision.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "policies_schema")]
    pub policies: Vec<TakenPolicy>,
    /// Who created the run, as stamped at admission.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requester: Option<Requester>,
    /// Every permission that was asked for, and what became of it. Of more than 128, rules that hold are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "decisions_schema")]
    pub decisions: Vec<Decision>,
    /// How much the run could do that nobody wants, by what it was granted. Absent where a capability or a limit refused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub risk: Option<Risk>,
    /// What the text of the script shows. Absent where nobody has looked: its runtime names no language.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preflight: Option<Preflight>,
    /// Where `input` does not satisfy its schemas: the first 64 places.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "violations_schema")]
    pub violations: Vec<Violation>,
    /// The approvals that the run needs. Absent where it needs none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<ApprovalStatus>,
    /// SHA-256 of the text of the script, fixed when the run is accepted, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub script_hash: Option<String>,
    /// The image that the run was granted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub image: Option<String>,
    /// SHA-256 of script, arguments, input, image and limits as they were admitted, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub job_digest: Option<String>,
    /// Seconds that the script was granted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<i64>,
    /// The one pod of this run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodRef>,
    /// Whether the sandbox of the run waited for it. Absent until it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<RunPath>,
    /// Why no sandbox of a pool was taken, where there is a pool for the policy and the runtime of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cold_because: Option<ColdReason>,
    /// When what happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clocks: Option<Clocks>,
    /// Why and since when the operator ends the run. Absent where the sandbox's own clock ended the script.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopping: Option<Stopping>,
    /// What the script produced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<RunResult>,
    /// What the run used, as the runner measured it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// What the run used of the network, as the egress gateway counted it. Absent where it asked for nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkUsage>,
    /// The last events of the run's life, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "audit_schema")]
    pub audit: Vec<AuditEvent>,
}

impl ScriptRunStatus {
    /// The condition of this type, if it was ever set.
    pub fn condition(&self, type_: &ConditionType) -> Option<&Condition> {
        self.conditions.iter().find(|condition| &condition.type_ == type_)
    }

    /// Whether the condition of this type is `True`.
    pub fn is_true(&self, type_: &ConditionType) -> bool {
        self.condition(type_).is_some_and(|condition| condition.status == crate::ConditionStatus::True)
    }
}

/// A policy as it was when the run was decided.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct TakenPolicy {
    /// Its kind.
    pub kind: PolicyKind,
    /// Its name.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Its UID.
    #[schemars(length(max = 64))]
    pub uid: String,
    /// Who wrote its spec, as stamped at admission. Absent for a policy of a version that stamped none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub author: Option<String>,
    /// Its generation.
    pub generation: i64,
    /// SHA-256 of its spec as canonical JSON, in hexadecimal.
    #[schemars(length(max = 64))]
    pub hash: String,
}

/// The user who created a run, from the API server's own `userInfo`.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Requester {
    /// User name.
    #[schemars(length(max = 1024))]
    pub username: String,
    /// UID, where the authenticator has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub uid: Option<String>,
    /// Groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "groups_schema")]
    pub groups: Vec<String>,
}

open_enum! {
    /// What became of a permission.
    pub enum Verdict {
        /// The script has it.
        Granted,
        /// The script does not have it.
        Refused,
    }
}

/// One permission that was asked for.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// What was asked for, for example `runtime:python` or `memory:64Mi`.
    #[schemars(length(max = 320))]
    pub permission: String,
    /// What became of it: `Granted` or `Refused`.
    pub verdict: Verdict,
    /// The rule that decided, for example `ClusterSandboxPolicy/baseline: limits.max.memory`.
    #[schemars(length(max = 512))]
    pub rule: String,
}

/// One place where `input` does not satisfy a schema.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Violation {
    /// JSON Pointer to the place; empty for the whole input.
    #[schemars(length(max = 512))]
    pub path: String,
    /// What is wrong, without the value.
    #[schemars(length(max = 256))]
    pub message: String,
}

open_enum! {
    /// Where the sandbox of a run comes from.
    pub enum RunPath {
        /// It was made for the run.
        Cold,
        /// It waited in a SandboxPool.
        Warm,
    }
}

open_enum! {
    /// Why the sandbox of a run was made for it although there is a pool.
    pub enum ColdReason {
        /// No sandbox of the pool was free.
        NoneFree,
        /// The run was granted hosts, and what waits has no network.
        Network,
        /// The run was granted Secrets, ConfigMaps or volumes, which are mounted when a pod begins.
        Data,
        /// The run was granted other memory, CPU, scratch or image than the sandboxes of the pool have, or more time.
        Resources,
    }
}

/// The one pod of a run.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PodRef {
    /// Sandbox namespace.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// Name.
    #[schemars(length(max = 253))]
    pub name: String,
    /// UID. No other pod is ever given the script.
    #[schemars(length(max = 64))]
    pub uid: String,
    /// Node, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub node: Option<String>,
    /// Boot identifier of the runner that was given the start message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub boot: Option<String>,
}

/// When what happened, by the operator's clock.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Clocks {
    /// The operator first saw the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received: Option<MicroTime>,
    /// A slot was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admitted: Option<MicroTime>,
    /// The start message was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<MicroTime>,
    /// The first output of the script, if there was any: `started`, and what the runner measured from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_output: Option<MicroTime>,
    /// The result was received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_ready: Option<MicroTime>,
    /// The run was finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<MicroTime>,
}

/// Why and since when a run is being ended.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Stopping {
    /// `TimedOut`, `Cancelled` or another reason that Finished will have.
    pub reason: Reason,
    /// When the stop was decided.
    pub since: MicroTime,
}

/// What a script produced. Text is valid UTF-8: line feed and tab stay, other control characters and bytes that are no UTF-8 are shown as
/// escapes such as `\x1b`, format characters as `\u{202e}`. A backslash stays as it is, so escapes are for people and cannot be read back.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct RunResult {
    /// Exit code, if the script exited, modulo 256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 255))]
    pub exit_code: Option<i32>,
    /// Signal that ended the script, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub signal: Option<i32>,
    /// The JSON value that the script wrote to the file that `$PADDOCK_RESULT` names: at most 64 levels, and as many bytes as the policies allow.
    /// A `null` is not kept. Numbers beyond 64 bits lose digits. In strings, control characters but tab, line feed and carriage return are escaped as in streams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_json")]
    pub output: Option<Value>,
    /// Why there is no `output` although the script wrote something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub output_error: Option<String>,
    /// The beginning of a result that is too large, where the policies have it truncated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_text: Option<OutputStream>,
    /// Where a result is that is too large, where the policies have it stored.
    #[serde(default, rename = "ref", skip_serializing_if = "Option::is_none")]
    pub reference: Option<StoredResult>,
    /// What was covered in all of these before they were stored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "redactions_schema")]
    pub redactions: Vec<Redaction>,
    /// Standard output: its beginning and its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout: Option<OutputStream>,
    /// Standard error: its beginning and its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<OutputStream>,
}

/// Where a result lies that is too large for the status.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct StoredResult {
    /// URL of the object: JSON, masked.
    #[schemars(length(max = 1024))]
    pub url: String,
    /// Its length in bytes.
    #[schemars(range(min = 0))]
    pub bytes: i64,
    /// SHA-256 of it, in hexadecimal.
    #[schemars(length(max = 64))]
    pub sha256: String,
}

/// How often a rule covered something. What it covered is stored nowhere.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Redaction {
    /// Name of the detector or of the policy's rule.
    #[schemars(length(max = 320))]
    pub rule: String,
    /// How often.
    #[schemars(range(min = 1))]
    pub count: i64,
}

/// One output stream: its beginning and its end.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct OutputStream {
    /// The beginning, or all of it. Control characters and bytes that are no UTF-8 are shown as escapes such as `\x1b`; a backslash stays as it
    /// is.
    #[schemars(length(max = 65536))]
    pub text: String,
    /// The end, if something between was left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    pub tail: Option<String>,
    /// Bytes that the script wrote, before anything was covered or escaped; of a JSON result those of its file, white space included, while
    /// `text` has none.
    #[schemars(range(min = 0))]
    pub bytes: i64,
    /// Bytes left out between `text` and `tail`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub truncated_bytes: Option<i64>,
}

/// What a run used, as the runner measured it. The script can falsify it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// CPU time in milliseconds.
    #[schemars(range(min = 0))]
    pub cpu_milliseconds: i64,
    /// Largest resident set of one process, in bytes, as gVisor counts it: with what processes share and files map, and so not to be
    /// compared with `resources.memory`.
    #[schemars(range(min = 0))]
    pub peak_memory_bytes: i64,
    /// Milliseconds from the start of the interpreter to its end.
    #[schemars(range(min = 0))]
    pub wall_milliseconds: i64,
}

/// What a run used of the network, when the status was written. Where the operator was replaced while the script ran, only what came after
/// that is counted; where connections are more than can be told, there were more.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct NetworkUsage {
    /// Connections that were asked for and are over, the refused ones among them.
    #[schemars(range(min = 0))]
    pub connections: i64,
    /// Those that were refused for where they would have led.
    #[schemars(range(min = 0))]
    pub refused: i64,
    /// Bytes from the script.
    #[schemars(range(min = 0))]
    pub sent_bytes: i64,
    /// Bytes to the script.
    #[schemars(range(min = 0))]
    pub received_bytes: i64,
    /// Where the refused ones would have led: the first 16 that differ.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "refusals_schema")]
    pub refusals: Vec<RefusedDestination>,
}

/// A destination to which a run was refused a connection.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct RefusedDestination {
    /// Host and port, as they were asked for; `withheld` where a value of a Secret of the run stands in them.
    #[schemars(length(max = 320))]
    pub to: String,
    /// Why: `NotGranted`, `AddressRefused` or `NotItsHost`.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// What refused it, or granted what was not held to.
    #[schemars(length(max = 512))]
    pub rule: String,
    /// How often.
    #[schemars(range(min = 1))]
    pub count: i64,
}

/// One event of a run's life.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AuditEvent {
    /// When.
    pub time: MicroTime,
    /// What, as a CloudEvents type: `dev.paddock.run.X.v1`, where X is `received`, `approved`, `admitted`, `started`, `stopping`, `result-ready` or
    /// `finished`.
    #[serde(rename = "type")]
    #[schemars(length(max = 128))]
    pub type_: String,
    /// Reason, where the event has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

/// The quantity that stands for `bytes`, written as plainly as Kubernetes does.
pub fn quantity_of_bytes(bytes: u64) -> Quantity {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki")];
    let (divisor, suffix) = UNITS.into_iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit)).unwrap_or((1, ""));
    Quantity(format!("{}{suffix}", bytes / divisor))
}
