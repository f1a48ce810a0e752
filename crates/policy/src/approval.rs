//! Approvals: which a run needs, what they are bound to, and whether enough people have given them.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::ByteString;
use paddock_crds::{
    ApprovalDecision, ApprovalDemand, ApprovalDemanded, ApprovalGiven, ApprovalStatus, Binding, Problem, Reason, Requester, ScriptRun,
};
use serde::Serialize;

use crate::capabilities::{CapabilityGrant, ObjectKind};
use crate::decide::{Grant, Policy, Refusal, named, sha256};
use crate::expression::{Expression, variables};
use crate::https::{Field, Https};
use crate::rules::FailedRule;
use crate::subject::Subject;

const DEFAULT_COUNT: i64 = 1;
const DEFAULT_VALID_SECONDS: i64 = 86_400;
const DEFAULT_WAIT_SECONDS: i64 = 3600;
/// Approvers of one demand that the status shows.
const SHOWN_GIVEN: usize = 16;
/// As many as the status has room for, of names that it has room for.
const SHOWN_EXCLUDED: usize = 32;
const LONGEST_EXCLUDED: usize = 1024;
/// What the name of every ServiceAccount begins with.
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// A demand whose condition is compiled.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Compiled {
    demand: ApprovalDemand,
    when: Option<Expression>,
}

/// Compiles; what cannot be compiled is a problem of the policy.
pub(crate) fn compile(demands: &[ApprovalDemand], problems: &mut Vec<Problem>) -> Vec<Compiled> {
    let mut compiled = Vec::new();
    for demand in demands {
        match demand.when.as_deref().map(Expression::compile).transpose() {
            Ok(when) => compiled.push(Compiled { demand: demand.clone(), when }),
            Err(message) => problems.push(Problem { field: format!("approvals[{}].when", demand.name), message }),
        }
    }
    compiled
}

/// A demand that applies to a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demanded {
    /// Policy and name.
    pub rule: String,
    /// As the policy says it.
    pub demand: ApprovalDemand,
}

/// The demands of all policies that apply to a run.
///
/// # Errors
/// The condition of one cannot be evaluated on the run: it is refused, and the policy's author can be told.
pub fn demanded(policies: &[impl Borrow<Policy>], subject: &Subject<'_>) -> Result<Vec<Demanded>, Box<(Refusal, FailedRule)>> {
    let mut all = Vec::new();
    let mut known = None;
    for policy in policies.iter().map(Borrow::borrow) {
        for compiled in &policy.demands {
            let rule = named(policy, &format!("approvals[{}]", compiled.demand.name));
            let applies = match &compiled.when {
                None => Ok(true),
                Some(when) => {
                    let variables = known.get_or_insert_with(|| variables(subject));
                    variables.as_ref().map_err(Clone::clone).and_then(|variables| when.holds(variables))
                }
            };
            match applies {
                Ok(true) => all.push(Demanded { rule, demand: compiled.demand.clone() }),
                Ok(false) => {}
                Err(why) => return Err(Box::new(cannot_be_evaluated(policy, compiled, &rule, why))),
            }
        }
    }
    Ok(all)
}

fn cannot_be_evaluated(policy: &Policy, compiled: &Compiled, rule: &str, why: String) -> (Refusal, FailedRule) {
    let message = format!("whether the run needs the approval {} cannot be evaluated: {why} ({rule})", compiled.demand.name);
    let failed = FailedRule {
        policy_uid: policy.taken.uid.clone(),
        generation: policy.taken.generation,
        rule: format!("approvals[{}].when", compiled.demand.name),
        why,
    };
    (Refusal { reason: Reason::RuleFailed, message }, failed)
}

/// What an approval is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digests {
    /// With the input.
    pub input: String,
    /// With the schema that the run brings, if it brings one.
    pub schema: Option<String>,
}

/// What a digest is made of, in the order in which RFC 8785 has it: by name.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Canonical<'a> {
    args: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    capabilities: Option<CanonicalCapabilities<'a>>,
    command: &'a [String],
    cpu_milli: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    extension: Option<&'a str>,
    grace_seconds: u32,
    image: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input_schema: Option<&'a str>,
    memory_bytes: u64,
    scratch_bytes: u64,
    script: &'a str,
    timeout_seconds: u32,
    version: &'static str,
}

/// What a run is given beside its limits; absent where it is given nothing.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CanonicalCapabilities<'a> {
    /// SHA-256 of the content, by name.
    data: BTreeMap<&'a str, &'a str>,
    dynamic_code: bool,
    /// How the gateway speaks HTTPS with hosts, and what it adds. Absent where it does not.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    https: BTreeMap<String, CanonicalHttps<'a>>,
    /// Destinations in their one spelling, sorted. Absent where there is none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    network: Vec<String>,
    /// Names alone: what a Secret holds may be changed, and a digest that others may read must not tell of it.
    secrets: Vec<&'a str>,
    subprocess: bool,
    /// Names alone: what a volume holds is not known here. Absent where there is none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    volumes: Vec<&'a str>,
}

impl<'a> CanonicalCapabilities<'a> {
    fn of(grant: &'a CapabilityGrant, data: &'a BTreeMap<String, String>) -> Option<Self> {
        (*grant != CapabilityGrant::default()).then(|| Self {
            data: grant.names(ObjectKind::ConfigMap).map(|name| (name, data.get(name).map_or("", String::as_str))).collect(),
            dynamic_code: grant.dynamic_code,
            https: grant.network.iter().filter_map(|to| Some((to.to.to_string(), CanonicalHttps::of(to.https.as_ref()?)))).collect(),
            network: grant.destinations(),
            secrets: grant.names(ObjectKind::Secret).collect(),
            subprocess: grant.subprocess,
            volumes: grant.names(ObjectKind::PersistentVolumeClaim).collect(),
        })
    }
}

/// Names alone of what is added.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CanonicalHttps<'a> {
    /// SHA-256 of the certificates that are trusted. Absent where those are that everybody trusts.
    #[serde(skip_serializing_if = "Option::is_none")]
    authorities: Option<String>,
    /// Prefix and key of a Secret, by the name of the header.
    headers: BTreeMap<&'a str, [String; 2]>,
    port: u16,
}

impl<'a> CanonicalHttps<'a> {
    fn of(https: &'a Https) -> Self {
        let header = |field: &'a Field| (field.name.as_str(), [field.prefix.clone(), field.secret.to_string()]);
        Self {
            authorities: https.authorities.as_deref().map(|text| sha256(text.as_bytes())),
            headers: https.fields.iter().map(header).collect(),
            port: https.port,
        }
    }
}

/// SHA-256 of what a ConfigMap holds, in hexadecimal: of the canonical JSON (RFC 8785) of an object that has of `binaryData` and `data` what is not
/// empty, as the API server writes them.
pub fn data_hash(data: &BTreeMap<String, String>, binary_data: &BTreeMap<String, ByteString>) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Content<'a> {
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        binary_data: &'a BTreeMap<String, ByteString>,
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        data: &'a BTreeMap<String, String>,
    }
    sha256(serde_json::to_string(&Content { binary_data, data }).unwrap_or_default().as_bytes())
}

/// What a run runs on, by SHA-256 in hexadecimal.
#[derive(Clone, Copy, Debug)]
pub struct Hashes<'a> {
    /// Of the script.
    pub script: &'a str,
    /// Of the input, as the API server writes it.
    pub input: Option<&'a str>,
    /// Of `inputSchema`, as the API server writes it.
    pub schema: Option<&'a str>,
    /// Of each ConfigMap that it is given, by name: [`data_hash`].
    pub data: &'a BTreeMap<String, String>,
}

/// The digests of a run.
pub fn digests(run: &ScriptRun, grant: &Grant, hashes: Hashes<'_>) -> Digests {
    let Hashes { script, input, schema, data } = hashes;
    let with = |input, input_schema| {
        let canonical = Canonical {
            args: &run.spec.script.args,
            capabilities: CanonicalCapabilities::of(&grant.capabilities, data),
            command: &grant.runtime.command,
            cpu_milli: grant.cpu_milli,
            extension: grant.runtime.extension.as_deref(),
            grace_seconds: grant.grace_seconds,
            image: &grant.runtime.image,
            input,
            input_schema,
            memory_bytes: grant.memory_bytes,
            scratch_bytes: grant.scratch_bytes,
            script,
            timeout_seconds: grant.timeout_seconds,
            version: "paddock.dev/approval.v1",
        };
        sha256(serde_json::to_string(&canonical).unwrap_or_default().as_bytes())
    };
    Digests { input: with(input, None), schema: schema.map(|schema| with(None, Some(schema))) }
}

/// A ScriptApproval of the namespace of the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approval {
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// What is decided on.
    pub digest: String,
    /// The decision.
    pub decision: ApprovalDecision,
    /// The one run that is meant.
    pub run_uid: Option<String>,
    /// When it was created.
    pub created: Timestamp,
    /// From when on it counts no more.
    pub expires_at: Option<Timestamp>,
    /// It was taken back.
    pub revoked: bool,
    /// Who decided, as stamped.
    pub approver: Requester,
}

impl Approval {
    fn is_about(&self, digest: &str, run_uid: &str) -> bool {
        self.digest == digest && self.run_uid.as_deref().is_none_or(|uid| uid == run_uid)
    }

    fn counts(&self, now: Timestamp) -> bool {
        !self.revoked && self.expires_at.is_none_or(|end| now < end)
    }
}

/// Who and what is to be approved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToApprove {
    /// The demands; there is at least one.
    pub demanded: Vec<Demanded>,
    /// What approvals are bound to.
    pub digests: Digests,
    /// UID of the run.
    pub run_uid: String,
    /// Who approves nothing here: requester, end user, and the authors of the policies since the run waits.
    pub excluded: Excluded,
}

/// Where the approvals of a run stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Approving {
    /// None are needed.
    #[default]
    NotNeeded,
    /// Enough people have approved.
    Approved(ApprovalStatus),
    /// More have to.
    Waiting {
        /// What is needed and what is there.
        status: ApprovalStatus,
        /// Seconds that the run waits.
        wait_seconds: i64,
    },
    /// Somebody decided against it.
    Denied {
        /// What is needed and what is there.
        status: ApprovalStatus,
        /// Who.
        by: String,
    },
}

/// Stands for everybody where somebody who may not approve is not known.
pub const EVERYBODY: &str = "*";

/// Whose approval does not count. It is stored with the run, whose status has room for so many: where there are more, nobody's counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Excluded(BTreeSet<String>);

impl FromIterator<String> for Excluded {
    fn from_iter<T: IntoIterator<Item = String>>(names: T) -> Self {
        let names: BTreeSet<String> = names.into_iter().collect();
        let has_room = names.len() <= SHOWN_EXCLUDED && names.iter().all(|name| name.chars().count() <= LONGEST_EXCLUDED);
        Self(if has_room && !names.contains(EVERYBODY) { names } else { [EVERYBODY.to_owned()].into() })
    }
}

impl Excluded {
    /// Whether the approval of this user does not count.
    pub fn has(&self, username: &str) -> bool {
        self.0.contains(username) || self.has_everybody()
    }

    /// As it is stored.
    pub fn names(&self) -> Vec<String> {
        self.0.iter().cloned().collect()
    }

    /// Whether nobody's does.
    pub fn has_everybody(&self) -> bool {
        self.0.contains(EVERYBODY)
    }
}

/// Decides. `approvals` are those of the namespace, in any order.
pub fn approving<'a>(to_approve: Option<&ToApprove>, approvals: impl IntoIterator<Item = &'a Approval>, now: Timestamp) -> Approving {
    let Some(to_approve) = to_approve else { return Approving::NotNeeded };
    let Digests { input, schema } = &to_approve.digests;
    let is_about = |approval: &Approval| {
        let uid = &to_approve.run_uid;
        approval.is_about(input, uid) || schema.as_ref().is_some_and(|schema| approval.is_about(schema, uid))
    };
    let mut of_the_run: Vec<&Approval> = approvals.into_iter().filter(|approval| approval.counts(now) && is_about(approval)).collect();
    of_the_run.sort_by_key(|approval| (approval.created, &approval.uid));
    let demanded: Vec<ApprovalDemanded> =
        to_approve.demanded.iter().map(|demanded| answered(demanded, to_approve, &of_the_run, now)).collect();
    let is_enough = demanded.iter().all(ApprovalDemanded::is_answered);
    let excluded = to_approve.excluded.names();
    let status = ApprovalStatus { digest: input.clone(), schema_digest: schema.clone(), expires_at: None, demanded, excluded };
    if let Some(denial) = of_the_run.iter().find(|approval| approval.decision == ApprovalDecision::Deny) {
        return Approving::Denied { status, by: denial.approver.username.clone() };
    }
    if is_enough {
        return Approving::Approved(status);
    }
    let waits = to_approve.demanded.iter().map(|demanded| demanded.demand.wait_seconds.unwrap_or(DEFAULT_WAIT_SECONDS));
    Approving::Waiting { status, wait_seconds: waits.min().unwrap_or(DEFAULT_WAIT_SECONDS) }
}

/// One demand with those who answer it, each of them once.
fn answered(demanded: &Demanded, to_approve: &ToApprove, approvals: &[&Approval], now: Timestamp) -> ApprovalDemanded {
    let demand = &demanded.demand;
    let digest = match demand.binding.unwrap_or(Binding::Input) {
        Binding::Schema => to_approve.digests.schema.as_ref().unwrap_or(&to_approve.digests.input),
        Binding::Input => &to_approve.digests.input,
    };
    let mut given: Vec<ApprovalGiven> = Vec::new();
    for approval in approvals {
        let is_meant = approval.decision == ApprovalDecision::Approve && approval.is_about(digest, &to_approve.run_uid);
        let approver = &approval.approver;
        let is_new = given.iter().all(|given| given.approver != approver.username);
        if is_meant && is_new && given.len() < SHOWN_GIVEN && may_answer(demand, to_approve, approval, now) {
            given.push(ApprovalGiven { approver: approver.username.clone(), name: approval.name.clone(), uid: approval.uid.clone() });
        }
    }
    ApprovalDemanded {
        rule: demanded.rule.clone(),
        digest: digest.clone(),
        count: demand.count.unwrap_or(DEFAULT_COUNT),
        ends_running: demand.ends_running,
        given,
    }
}

fn may_answer(demand: &ApprovalDemand, to_approve: &ToApprove, approval: &Approval, now: Timestamp) -> bool {
    let approver = &approval.approver;
    let is_excluded = to_approve.excluded.has(&approver.username);
    let is_a_machine = approver.username.starts_with(SERVICE_ACCOUNT) && !demand.service_accounts;
    let is_of_a_group =
        demand.groups.as_ref().is_none_or(|groups| groups.iter().any(|group| approver.groups.iter().any(|own| own == group)));
    let age = now.as_second().saturating_sub(approval.created.as_second());
    let is_fresh = age < demand.valid_seconds.unwrap_or(DEFAULT_VALID_SECONDS);
    !is_excluded && !is_a_machine && is_of_a_group && is_fresh
}

/// Whether a run that is under way has lost an approval whose loss ends it. What has become too old since it started does not count.
pub fn is_revoked<'a>(
    status: &ApprovalStatus,
    run_uid: &str,
    approvals: impl IntoIterator<Item = &'a Approval> + Clone,
    now: Timestamp,
) -> bool {
    if !status.demanded.iter().any(|demanded| demanded.ends_running) {
        return false;
    }
    let is_denied = approvals.clone().into_iter().any(|approval| {
        let is_about = |digest: &String| approval.is_about(digest, run_uid);
        let is_meant = is_about(&status.digest) || status.schema_digest.as_ref().is_some_and(is_about);
        approval.decision == ApprovalDecision::Deny && approval.counts(now) && is_meant
    });
    let left: BTreeSet<&str> = approvals.into_iter().filter(|approval| !approval.revoked).map(|approval| approval.uid.as_str()).collect();
    let has_lost = |demanded: &ApprovalDemanded| {
        let remaining = demanded.given.iter().filter(|given| left.contains(given.uid.as_str())).count();
        demanded.ends_running && i64::try_from(remaining).is_ok_and(|remaining| remaining < demanded.count)
    };
    is_denied || status.demanded.iter().any(has_lost)
}

#[cfg(test)]
mod tests;
