//! What expressions of policies speak of.

use std::collections::BTreeMap;

use cel::{SerializationError, Value, to_value};
use jiff::Timestamp;
use paddock_crds::{EndUser, Preflight, Requester, Risk, ScriptRun};
use serde::Serialize;

use crate::capabilities::ObjectKind;
use crate::decide::Grant;

/// A run that was granted what it asked for, and what is known about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Subject<'a> {
    /// The run.
    pub run: RunFacts<'a>,
    /// The namespace in which it is.
    pub tenant: TenantFacts<'a>,
    /// Who created it.
    pub requester: UserFacts<'a>,
    /// For whom.
    pub end_user: Option<UserFacts<'a>>,
    /// How much it could do that nobody wants.
    pub risk: RiskFacts<'a>,
    /// What the text of its script shows.
    pub preflight: PreflightFacts<'a>,
    /// When it is decided on.
    pub now: Timestamp,
}

/// What a run asks for and gets. All numbers are CEL's `int`, the kind that numbers in expressions are of.
#[derive(Serialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RunFacts<'a> {
    /// Name.
    pub name: &'a str,
    /// Labels, as they are when it is decided on: whoever may change the run may change them.
    pub labels: &'a BTreeMap<String, String>,
    /// Name of the runtime.
    pub runtime: &'a str,
    /// Image.
    pub image: &'a str,
    /// SHA-256 of the script.
    pub script_hash: &'a str,
    /// Length of the input as JSON, in bytes.
    pub input_bytes: i64,
    /// Seconds that it may run.
    pub timeout_seconds: i64,
    /// Bytes of memory.
    pub memory_bytes: i64,
    /// Thousandths of a core.
    pub cpu_milli: i64,
    /// Bytes of `/workspace`.
    pub scratch_bytes: i64,
    /// Where it may connect to, as destinations with their ports.
    pub network: Vec<String>,
    /// Names of the Secrets that it is given.
    pub secrets: Vec<&'a str>,
    /// Names of the ConfigMaps that it is given.
    pub data: Vec<&'a str>,
    /// PersistentVolumeClaims that it is given.
    pub volumes: Vec<&'a str>,
    /// It may run code that is made at run time.
    pub dynamic_code: bool,
    /// It may start other programs.
    pub subprocess: bool,
}

#[cfg(test)]
impl<'a> RunFacts<'a> {
    /// One that asks for nothing.
    pub(crate) fn plain(labels: &'a BTreeMap<String, String>) -> Self {
        Self {
            name: "run",
            labels,
            runtime: "python",
            image: "",
            script_hash: "",
            input_bytes: 0,
            timeout_seconds: 30,
            memory_bytes: 0,
            cpu_milli: 0,
            scratch_bytes: 0,
            network: Vec::new(),
            secrets: Vec::new(),
            data: Vec::new(),
            volumes: Vec::new(),
            dynamic_code: false,
            subprocess: false,
        }
    }
}

/// [`Risk`] as expressions see it.
#[derive(Serialize, Clone, Debug, PartialEq, Eq)]
pub struct RiskFacts<'a> {
    /// 0 to 100.
    pub score: i64,
    /// In one word.
    pub level: &'a str,
    /// The words of its reasons.
    pub reasons: Vec<&'a str>,
}

impl<'a> From<&'a Risk> for RiskFacts<'a> {
    fn from(risk: &'a Risk) -> Self {
        let reasons = risk.reasons.iter().map(|part| part.reason.as_str()).collect();
        Self { score: risk.score, level: risk.level.as_str(), reasons }
    }
}

/// [`Preflight`] as expressions see it. Of a script that was not examined everything but the verdict is empty.
#[derive(Serialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PreflightFacts<'a> {
    /// In one word.
    pub verdict: &'a str,
    /// Modules that the script imports by their names.
    pub imports: &'a [String],
    /// Hosts of the URLs that it holds.
    pub hosts: &'a [String],
    /// Code that is made at run time.
    pub dynamic_code: bool,
    /// Other programs.
    pub subprocess: bool,
}

impl<'a> From<Option<&'a Preflight>> for PreflightFacts<'a> {
    fn from(preflight: Option<&'a Preflight>) -> Self {
        match preflight {
            Some(seen) => Self {
                verdict: seen.verdict.as_str(),
                imports: &seen.imports,
                hosts: &seen.hosts,
                dynamic_code: seen.dynamic_code,
                subprocess: seen.subprocess,
            },
            None => Self { verdict: "Unclear", imports: &[], hosts: &[], dynamic_code: false, subprocess: false },
        }
    }
}

/// The namespace of a run.
#[derive(Serialize, Clone, Debug, PartialEq, Eq)]
pub struct TenantFacts<'a> {
    /// Name.
    pub name: &'a str,
    /// Labels.
    pub labels: &'a BTreeMap<String, String>,
}

/// A user.
#[derive(Serialize, Clone, Debug, PartialEq, Eq)]
pub struct UserFacts<'a> {
    /// Name, as the API server knows it.
    pub username: &'a str,
    /// Groups.
    pub groups: &'a [String],
}

impl<'a> From<&'a Requester> for UserFacts<'a> {
    fn from(requester: &'a Requester) -> Self {
        Self { username: &requester.username, groups: &requester.groups }
    }
}

impl<'a> From<&'a EndUser> for UserFacts<'a> {
    fn from(user: &'a EndUser) -> Self {
        Self { username: &user.username, groups: &user.groups }
    }
}

impl<'a> Subject<'a> {
    /// Of what is at hand after the grant.
    pub fn of(
        run: &'a ScriptRun,
        (grant, script_hash, input_bytes): (&'a Grant, &'a str, u64),
        (risk, preflight): (&'a Risk, Option<&'a Preflight>),
        tenant: TenantFacts<'a>,
        requester: &'a Requester,
        now: Timestamp,
    ) -> Self {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        let run_facts = RunFacts {
            name: run.metadata.name.as_deref().unwrap_or_default(),
            labels: run.metadata.labels.as_ref().unwrap_or(&NONE),
            runtime: &run.spec.script.runtime,
            image: &grant.runtime.image,
            script_hash,
            input_bytes: int(input_bytes),
            timeout_seconds: i64::from(grant.timeout_seconds),
            memory_bytes: int(grant.memory_bytes),
            cpu_milli: int(grant.cpu_milli),
            scratch_bytes: int(grant.scratch_bytes),
            network: grant.capabilities.destinations(),
            secrets: grant.capabilities.names(ObjectKind::Secret).collect(),
            data: grant.capabilities.names(ObjectKind::ConfigMap).collect(),
            volumes: grant.capabilities.names(ObjectKind::PersistentVolumeClaim).collect(),
            dynamic_code: grant.capabilities.dynamic_code,
            subprocess: grant.capabilities.subprocess,
        };
        let end_user = run.spec.end_user.as_ref().map(Into::into);
        Self { run: run_facts, tenant, requester: requester.into(), end_user, risk: risk.into(), preflight: preflight.into(), now }
    }

    /// Its longest list or map, by its name, with its length.
    pub(crate) fn longest(&self) -> Option<(&'static str, usize)> {
        let lengths = [
            ("run.labels", self.run.labels.len()),
            ("run.network", self.run.network.len()),
            ("run.secrets", self.run.secrets.len()),
            ("run.data", self.run.data.len()),
            ("run.volumes", self.run.volumes.len()),
            ("preflight.imports", self.preflight.imports.len()),
            ("preflight.hosts", self.preflight.hosts.len()),
            ("tenant.labels", self.tenant.labels.len()),
            ("requester.groups", self.requester.groups.len()),
            ("endUser.groups", self.end_user.as_ref().map_or(0, |user| user.groups.len())),
        ];
        lengths.into_iter().max_by_key(|(_, length)| *length)
    }

    pub(crate) fn values(&self) -> Result<[(&'static str, Value); 7], SerializationError> {
        let now = chrono::DateTime::from_timestamp_micros(self.now.as_microsecond()).unwrap_or_default();
        Ok([
            ("run", to_value(&self.run)?),
            ("tenant", to_value(&self.tenant)?),
            ("requester", to_value(&self.requester)?),
            ("endUser", to_value(&self.end_user)?),
            ("risk", to_value(&self.risk)?),
            ("preflight", to_value(&self.preflight)?),
            ("now", Value::Timestamp(now.fixed_offset())),
        ])
    }
}

fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The fields of a variable, `None` if there is no such variable.
pub(crate) fn fields_of(variable: &str) -> Option<&'static [&'static str]> {
    match variable {
        "run" => Some(&[
            "name",
            "labels",
            "runtime",
            "image",
            "scriptHash",
            "inputBytes",
            "timeoutSeconds",
            "memoryBytes",
            "cpuMilli",
            "scratchBytes",
            "network",
            "secrets",
            "data",
            "volumes",
            "dynamicCode",
            "subprocess",
        ]),
        "tenant" => Some(&["name", "labels"]),
        "requester" | "endUser" => Some(&["username", "groups"]),
        "risk" => Some(&["score", "level", "reasons"]),
        "preflight" => Some(&["verdict", "imports", "hosts", "dynamicCode", "subprocess"]),
        "now" => Some(&[]),
        _ => None,
    }
}
