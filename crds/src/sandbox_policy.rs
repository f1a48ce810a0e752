//! `SandboxPolicy` and `ClusterSandboxPolicy`: what may run.
//!
//! What applies to a run is the intersection of the policy that it names and of every ClusterSandboxPolicy that selects its namespace.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use serde_json::Value;

use crate::policy_status::PolicyStatus;
use crate::preflight::{Language, PreflightRules, denied_imports_schema};
use crate::schema::{any_json, list_atomic, list_map, list_of_strings, quantity};

list_map!(runtimes_schema, Runtime, "name", 32);
list_of_strings!(command_schema, 16, 1024);
list_map!(script_schemas_schema, ScriptSchema, "scriptHash", 64);
list_map!(mask_rules_schema, MaskRule, "name", 32);
list_atomic!(object_grants_schema, ObjectGrant, 64);
list_atomic!(network_schema, NetworkGrant, 64);
list_of_strings!(host_patterns_schema, 64, 253, "pattern": "^\\S+$");
list_map!(headers_schema, SecretHeader, "name", 8);
list_of_strings!(cidrs_schema, 64, 49, "pattern": "^[0-9a-fA-F:.]+/[0-9]{1,3}$");
list_map!(rules_schema, PolicyRule, "name", 32);
list_map!(approvals_schema, ApprovalDemand, "name", 8);
list_of_strings!(approver_groups_schema, 64, 256);
list_of_strings!(hashes_schema, 1024, 64, "pattern": "^[0-9a-f]{64}$");
list_of_strings!(images_schema, 256, 512, "pattern": "^[^\\s*]*[*]?$", "minLength": 1);
list_atomic!(subjects_schema, DeniedSubject, 256);
list_atomic!(detectors_schema, Detector, 16);

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
    status = "PolicyStatus",
    derive = "PartialEq",
    doc = "What the runs of a namespace may do that name it. It narrows the ClusterSandboxPolicies that select the namespace and binds no run that names another policy: what nobody may exceed belongs into a ClusterSandboxPolicy.",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
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
    status = "PolicyStatus",
    derive = "PartialEq",
    doc = "What may run in every namespace that it selects. A namespace that none selects may run nothing.",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Concurrent", type_ = "integer", json_path = ".spec.limits.maxConcurrent"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct ClusterSandboxPolicySpec {
    /// The namespaces that it applies to. An empty selector selects all of them.
    pub namespace_selector: LabelSelector,
    /// What its silence means.
    #[serde(default, skip_serializing_if = "Effect::is_allow")]
    pub effect: Effect,
    /// The rules.
    #[serde(flatten)]
    pub rules: PolicyRules,
}

/// What it means where a policy says nothing. Whichever it is, one policy more never allows more.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Effect {
    /// It speaks of everything: where it is silent, it says the built-in value, and without `runtimes` it offers none. A namespace may run nothing
    /// unless at least one such policy selects it.
    #[default]
    Allow,
    /// It only narrows what others allow: where it is silent, it says nothing. Every SandboxPolicy is of this kind.
    Restrict,
}

impl Effect {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
    fn is_allow(&self) -> bool {
        *self == Self::Allow
    }
}

/// Rules, the same for both kinds.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRules {
    /// The runtimes that may be used. A runtime must be offered by every policy that applies and names any; an empty list offers none. Without the
    /// list a policy that only restricts leaves them to the others, and one that allows offers none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "runtimes_schema")]
    pub runtimes: Option<Vec<Runtime>>,
    /// Defaults and maxima. Of several policies the smallest value holds.
    #[serde(default)]
    pub limits: Limits,
    /// What runs may be given that ask for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<CapabilityRules>,
    /// What the text of a script must be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preflight: Option<PreflightRules>,
    /// What the input of a run must be.
    #[serde(default)]
    pub input: InputRules,
    /// What becomes of what a script puts out. They hold as they are when the result arrives.
    #[serde(default)]
    pub output: OutputRules,
    /// What must hold of every run, as expressions. Those of all policies apply.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "rules_schema")]
    pub rules: Vec<PolicyRule>,
    /// What somebody has to approve before it runs. Those of all policies apply.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "approvals_schema")]
    pub approvals: Vec<ApprovalDemand>,
    /// Stops the policy: of several policies the hardest. `Queue` admits nothing more, what is admitted goes on; `Kill` also ends what runs, without
    /// grace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<Suspend>,
    /// What never runs, and ends without grace where it runs. The lists of all policies apply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deny: Option<Deny>,
}

/// What runs may be given that ask for it. Every policy that names a field must grant it; where a policy that allows is silent, it grants nothing,
/// and one that only restricts leaves it to the others.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct CapabilityRules {
    /// Where runs may connect to, through the egress gateway. An empty list is nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "network_schema")]
    pub network: Option<Vec<NetworkGrant>>,
    /// Secrets of the namespace of a run. An empty list grants none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "object_grants_schema")]
    pub secrets: Option<Vec<ObjectGrant>>,
    /// ConfigMaps of the namespace of a run. An empty list grants none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "object_grants_schema")]
    pub data: Option<Vec<ObjectGrant>>,
    /// PersistentVolumeClaims of the sandbox namespace of a run, read-only. An empty list grants none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "object_grants_schema")]
    pub volumes: Option<Vec<ObjectGrant>>,
    /// Code that is made at run time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dynamic_code: Option<bool>,
    /// Other programs of the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subprocess: Option<bool>,
}

/// Somewhere to connect to: hosts by their names, spoken to over TLS unless `protocol` says otherwise, or nets, whatever is spoken.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.hosts) != has(self.cidrs)").message("exactly one of hosts and cidrs must be set"))]
#[x_kube(validation = Rule::new("!has(self.cidrs) || has(self.ports)").message("cidrs need ports"))]
#[x_kube(validation = Rule::new("!has(self.cidrs) || !has(self.addresses)").message("addresses belong to hosts"))]
#[x_kube(validation = Rule::new("!has(self.cidrs) || !has(self.protocol)").message("protocol belongs to hosts"))]
#[x_kube(validation = Rule::new("has(self.protocol) && self.protocol == 'HTTPS' || !has(self.headers) && !has(self.caBundle)").message("headers and caBundle belong to the protocol HTTPS"))]
pub struct NetworkGrant {
    /// Names of hosts; `*.example.com` stands for every name below it, and not for itself. The gateway looks them up, checks that what is
    /// said is for the same name (a TLS handshake, or a request of HTTP), and connects to public addresses alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "host_patterns_schema")]
    pub hosts: Option<Vec<String>>,
    /// Nets, such as `10.20.0.0/16`. Of private, shared and link-local addresses, and of those of the cluster, only those of a net that lies wholly
    /// among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "cidrs_schema")]
    pub cidrs: Option<Vec<String>>,
    /// What is spoken with the hosts. Built-in: `TLS`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<NetworkProtocol>,
    /// Fields that the gateway sets in each request, with values from Secrets that the script never holds. Only where `protocol` is `HTTPS`. Policies
    /// that say something of it must say the same; one that allows and is silent adds none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "headers_schema")]
    pub headers: Option<Vec<SecretHeader>>,
    /// Certificates of the authorities that the gateway trusts for these hosts in place of those that everybody trusts, as base64 of PEM. Only where
    /// `protocol` is `HTTPS`. Policies that say something of it must say the same; one that allows and is silent trusts whom everybody trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16384))]
    pub ca_bundle: Option<String>,
    /// Ports. For hosts built-in: 443, or 80 where `protocol` is `HTTP`. 80 cannot be given where it is `HTTPS`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "ports_schema")]
    pub ports: Option<Vec<i32>>,
    /// Nets that the hosts may lead to beside public addresses, read as `cidrs`. Of several policies that say something only what all of them say;
    /// a policy that allows and is silent says none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "cidrs_schema")]
    pub addresses: Option<Vec<String>>,
}

/// What is spoken with a host. `TLS`, the built-in value: within TLS of the script, unread. `HTTP`: in the clear, asked for as `http://HOST`. `HTTPS`: the
/// script calls `http://HOST`, and the gateway speaks TLS with port 443 of it, or with that of `http://HOST:PORT`.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum NetworkProtocol {
    /// Anything within TLS that is for the host that was asked for. The gateway does not read it.
    #[default]
    #[serde(rename = "TLS")]
    Tls,
    /// HTTP that nothing protects: whoever is between the gateway and the host reads and changes what is said. Runs ask for it as `http://HOST`.
    #[serde(rename = "HTTP")]
    Http,
    /// HTTP that the gateway carries over TLS, whose certificate it checks, so that it can set `headers`. Runs ask for it, and call it, as `http://HOST`,
    /// which stands for port 443, or as `http://HOST:PORT`.
    #[serde(rename = "HTTPS")]
    Https,
}

/// A field of HTTP with the value of a Secret.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SecretHeader {
    /// Its name, as in `Authorization`. What the script writes there does not count.
    #[schemars(length(min = 1, max = 64), regex(pattern = "^[-!#$%&'*+.^_`|~0-9A-Za-z]+$"))]
    pub name: String,
    /// What stands before the value of the Secret, as in `Bearer `. Built-in: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), regex(pattern = "^[ -~]*$"))]
    pub prefix: Option<String>,
    /// The Secret, in the namespace of the run. Whoever wrote the policy must be allowed to read it; who asks for a run need not. White space at the ends
    /// of its value is left out.
    pub secret_key_ref: SecretKeyRef,
}

/// A key of a Secret in the namespace of the run.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// Key in its `data`.
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// A list of ports.
fn ports_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "items": { "type": "integer", "format": "int32", "minimum": 1, "maximum": 65535 },
        "minItems": 1,
        "maxItems": 32,
        "x-kubernetes-list-type": "set",
    })
}

/// Objects that a run may be given: one by its name, or all that a selector selects.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.name) != has(self.selector)").message("exactly one of name and selector must be set"))]
pub struct ObjectGrant {
    /// Name of the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: Option<String>,
    /// Labels of the object, as they are when the run is decided on. An empty selector selects all of the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
}

/// An expression that must hold. It is evaluated whenever the run is decided on: when it is accepted, while it waits for approvals, when it is
/// its turn in the queue, and again until it has started.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRule {
    /// The name by which decisions and problems speak of it.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// CEL over `run`, `tenant`, `requester`, `endUser`, `risk`, `preflight` and `now`. A run for which it is false, or cannot be evaluated, is refused.
    #[schemars(length(min = 1, max = 1024))]
    pub expression: String,
    /// What the author of a script is told where it does not hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub message: Option<String>,
}

/// An approval that a run needs: `ScriptApproval` objects of enough people on its digest. Nobody approves what they asked for, were asked for, or
/// wrote a policy for.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalDemand {
    /// The name by which decisions speak of it.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// CEL, as in `rules`: only runs for which it is true need the approval. Without it all do. A run on which it cannot be evaluated is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub when: Option<String>,
    /// How many people must approve. Built-in: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 8))]
    pub count: Option<i64>,
    /// Groups of which an approver must be in one. Without the list anybody counts who may approve; an empty list is nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "approver_groups_schema")]
    pub groups: Option<Vec<String>>,
    /// What is approved: with this very input, or with every input that satisfies the schema that the run brings. Built-in: `Input`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binding: Option<Binding>,
    /// Seconds for which an approval counts from its creation. Built-in: 86400.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub valid_seconds: Option<i64>,
    /// Seconds that a run waits for its approvals; then it ends as `Expired`. Of several the smallest. Built-in: 3600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_592_000))]
    pub wait_seconds: Option<i64>,
    /// Lets ServiceAccounts approve.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub service_accounts: bool,
    /// Ends a run that is under way when an approval that it needs is revoked, or what it does is denied.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ends_running: bool,
}

/// What an approval is bound to, beside script, arguments, image and limits.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// The input.
    Input,
    /// `inputSchema`. A run that brings none needs an approval of its input.
    Schema,
}

/// How a policy is stopped.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suspend {
    /// Nothing more is admitted; it waits until that changes. What is admitted goes on.
    Queue,
    /// Nothing more is admitted, and what is admitted ends, without grace.
    Kill,
}

/// What never runs. A script, an image or a requester that one list names is denied.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Deny {
    /// SHA-256 of the text of scripts, in hexadecimal, as in `status.scriptHash`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "hashes_schema")]
    pub scripts: Vec<String>,
    /// Images as policies name them; a `*` at the end stands for whatever follows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "images_schema")]
    pub images: Vec<String>,
    /// Hosts that no run connects to, whatever is granted, written as in `capabilities.network`. A run that asks for nothing else there is not
    /// granted it; what runs loses its connections, may make those anew that are still granted, and goes on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "host_patterns_schema")]
    pub hosts: Vec<String>,
    /// Modules that no script imports, each with all that is in it. Where a policy says what scripts are written in, one that could not be read is denied too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "denied_imports_schema")]
    pub imports: Vec<String>,
    /// Who may have nothing run: who creates it, and for whom.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "subjects_schema")]
    pub requesters: Vec<DeniedSubject>,
}

/// A user or all members of a group, as the API server knows them.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
pub struct DeniedSubject {
    /// `User` or `Group`. A ServiceAccount is the user `system:serviceaccount:NAMESPACE:NAME`.
    pub kind: SubjectKind,
    /// Its name.
    #[schemars(length(min = 1, max = 1024))]
    pub name: String,
}

/// Kinds of subject.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubjectKind {
    /// One user.
    User,
    /// All members of a group.
    Group,
}

/// What the input of a run must be.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct InputRules {
    /// Refuses a run that brings no `inputSchema` and for whose script no policy fixes one. One policy that demands it suffices.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub require_schema: bool,
    /// Largest `input`, in bytes as JSON: of several policies the smallest. Where none says anything, script, arguments and input may have 640 KiB
    /// together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 655_360))]
    pub max_bytes: Option<i64>,
    /// Schemas that the input of certain scripts must satisfy, whatever the run brings. Those of all policies apply.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "script_schemas_schema")]
    pub schemas: Vec<ScriptSchema>,
}

/// The schema of the input of one script.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ScriptSchema {
    /// SHA-256 of the text of the script, in hexadecimal, as in `status.scriptHash`.
    #[schemars(length(min = 64, max = 64), regex(pattern = "^[0-9a-f]{64}$"))]
    pub script_hash: String,
    /// JSON Schema 2020-12. References may lead only within it.
    #[schemars(schema_with = "any_json")]
    pub schema: Value,
}

/// What becomes of what a script puts out.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct OutputRules {
    /// Bytes kept of each of standard output and standard error, half of the beginning and half of the end: of several policies the smallest.
    /// Built-in: 16384.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 256, max = 32768))]
    pub max_stream_bytes: Option<i64>,
    /// Largest result that goes into the status, in bytes of the file that the script wrote, white space included: of several policies the
    /// smallest. Built-in: 32768. Masked and escaped it may be twice as long, and is never more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 256, max = 65536))]
    pub max_result_bytes: Option<i64>,
    /// What becomes of a larger result: `Refuse` (`outputError` says why there is none), `Truncate` (its beginning is in `outputText`) or `Store`
    /// (`ref` names it). Of several policies the first in this order. Built-in: `Refuse`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub large_result: Option<LargeResult>,
    /// What is covered before anything is stored.
    #[serde(default)]
    pub mask: MaskRules,
}

/// What becomes of a result that is too large for the status.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LargeResult {
    /// There is none; `outputError` says why.
    Refuse,
    /// Its beginning is kept as text, in `outputText`.
    Truncate,
    /// It is stored, masked, at most 2 MiB, and `ref` says where. Without a store it is refused.
    Store,
}

/// What is covered before anything is stored: in place of what is found stands `[masked:NAME]`.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct MaskRules {
    /// Detectors that do not look. A detector is off only if every policy that applies turns it off.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "detectors_schema")]
    pub off: Vec<Detector>,
    /// Patterns of your own. Those of all policies apply.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "mask_rules_schema")]
    pub rules: Vec<MaskRule>,
}

/// A pattern of your own.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct MaskRule {
    /// The name that is shown instead of what it matches.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// A regular expression in RE2's syntax: no look-around, no back-references; one search takes linear time. If it has a group, the first is what is covered. A
    /// run under a policy with a pattern that cannot be used is refused.
    #[schemars(length(min = 1, max = 512))]
    pub pattern: String,
}

/// Shapes that are secrets or personal data wherever they turn up.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Detector {
    /// Access keys of clouds.
    CloudKey,
    /// Tokens of services that mark them by a prefix.
    ServiceToken,
    /// Private keys, as PEM or as base64 of PEM.
    PrivateKey,
    /// JSON Web Tokens.
    Jwt,
    /// What follows `Bearer` or `Basic` in a header.
    BearerToken,
    /// Passwords in URLs, and values that are assigned to a name like `password`.
    Password,
    /// E-mail addresses.
    Email,
    /// Bank accounts whose check digits are right.
    Iban,
    /// Payment cards whose check digit is right.
    CardNumber,
}

impl Detector {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::CloudKey,
        Self::ServiceToken,
        Self::PrivateKey,
        Self::Jwt,
        Self::BearerToken,
        Self::Password,
        Self::Email,
        Self::Iban,
        Self::CardNumber,
    ];
}

/// A language runtime.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Runtime {
    /// The name that scripts use.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// Image that holds the interpreter. A policy that allows must set it, and all that set it must agree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512), regex(pattern = "^[^\\s]+$"))]
    pub image: Option<String>,
    /// Interpreter and its arguments; the path of the script and the run's arguments follow. Set together with `image`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "command_schema")]
    #[x_kube(validation = Rule::new("self.size() > 0 && self[0].startsWith('/')").message("the interpreter must be an absolute path"))]
    pub command: Option<Vec<String>>,
    /// Extension of the name that the script gets, without the dot, for interpreters that go by it: `mts` for TypeScript. Policies that set it must
    /// agree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8), regex(pattern = "^[a-z0-9]+$"))]
    pub extension: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<Language>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pre_start: Option<PreStart>,
}

/// Whether the interpreter begins with a sandbox that waits in a SandboxPool, and waits there for its script, and which it is: `Python` is CPython, 3.11 or
/// later, `Node` is Node.js, 20.6 or later, with ECMAScript modules as scripts. A ClusterSandboxPolicy has to say it. Where policies say different things,
/// or one `Never`, it begins with the script, as where none says anything.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreStart {
    /// It is CPython.
    Python,
    /// It is Node.js.
    Node,
    /// None does.
    Never,
}

/// Defaults and maxima. The built-in values, which a policy that allows says where it is silent: 128Mi of memory, 500m of CPU, 16Mi of scratch,
/// 30 s and a grace of 5 s, 10 active and 100 waiting runs. Without a maximum nobody may ask for more than the default.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// What a run gets that does not ask: of several policies the smallest. Built-in: 128Mi of memory, 500m of CPU and 16Mi of scratch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<ResourceAmounts>,
    /// What a run may ask for at most: of several policies the smallest. Built-in: no more than the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<ResourceAmounts>,
    /// `timeoutSeconds` of a run that does not ask: of several policies the smallest. Built-in: 30.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86400))]
    pub default_timeout_seconds: Option<i64>,
    /// Largest `timeoutSeconds` that a run may ask for: of several policies the smallest. Built-in: the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86400))]
    pub max_timeout_seconds: Option<i64>,
    /// Largest `gracePeriodSeconds` that a run may ask for: of several policies the smallest. Built-in: 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 300))]
    pub max_grace_period_seconds: Option<i64>,
    /// Runs that may be active at once. In a ClusterSandboxPolicy: in each namespace, whichever policies they name, and of several policies the
    /// smallest; built-in: 10. In a SandboxPolicy: those that name it. With 0 a run waits until that changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10000))]
    pub max_concurrent: Option<i64>,
    /// Runs that may wait at once; one more is refused. In a ClusterSandboxPolicy: in each namespace, and of several policies the smallest; built-in:
    /// 100. In a SandboxPolicy: those that name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100_000))]
    pub max_queued: Option<i64>,
    /// Largest `priority` that a run may ask for: of several policies the smallest. Built-in: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 86400))]
    pub max_priority: Option<i64>,
    /// Share of a namespace where the slots of the cluster do not suffice for all: one with 200 gets twice as many as one with 100. Of several
    /// ClusterSandboxPolicies the smallest; in a SandboxPolicy it says nothing. Built-in: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub weight: Option<i64>,
    /// Connections of a run to the network at once, at each replica of the egress gateway: of several policies the smallest. Built-in: 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub max_connections: Option<i64>,
    /// Bytes that a run may send and receive together, at each replica of the egress gateway: of several policies the smallest. Built-in:
    /// 1073741824.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_099_511_627_776_i64))]
    pub max_network_bytes: Option<i64>,
    /// Bytes that a run may send and receive together in a second, at each replica of the egress gateway: of several policies the smallest. A second's
    /// worth may come at once. Without it none is held up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1024, max = 1_099_511_627_776_i64))]
    pub max_network_bytes_per_second: Option<i64>,
    /// Connections of a run that the egress gateway may refuse for where they would lead; one more ends the run, without grace. Of several policies
    /// the smallest. Without it none ends a run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10000))]
    pub max_refused_connections: Option<i64>,
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
    /// ends in SIGXFSZ, or in EFBIG for those that ignore the signal, as Python and Node.js do; a full `/workspace` in ENOSPC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "quantity")]
    pub scratch: Option<Quantity>,
}
