//! Raw run → [`ValidRun`] of checked parts, so that rendering cannot fail. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use kube::ResourceExt as _;
use paddock_crds::{Decision, Language, PolicyRef, Preflight, Reason, Requester, Risk, ScriptRun, TakenPolicy, Violation};
use paddock_policy::{
    Ask, EVERYBODY, Excluded, Facts, FailedRule, Gateway, Grant, Hashes, InputDemand, Object, ObjectKind, Outcome, Policy, Refusal,
    RulesJudged, Subject, TenantFacts, ToApprove, data_hash, demanded, digests, input_demand, judge, judge_denied, judge_input,
    judge_preflight, judge_rules, output_grant, risk,
};
use paddock_protocol::JobFiles;

use super::given::{Content, Given};
use super::job::{self, Fixed, digest_of};
use crate::input_check::Answer;
use crate::names;

/// Largest script, in bytes.
pub(crate) const MAX_SCRIPT: usize = 64 * 1024;
/// Largest script, arguments and input together: they travel in one ConfigMap, which holds 1 MiB as base64.
const MAX_JOB: usize = 640 * 1024;

/// What was found where the run says that its script is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SourceSeen {
    /// The text.
    Text(Vec<u8>),
    /// There is none, for this reason.
    Refused(Reason, String),
}

/// The policies that take part.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PoliciesSeen {
    /// Every ClusterSandboxPolicy that selects the namespace, and the SandboxPolicy that the run names.
    pub(crate) taking_part: Vec<Arc<Policy>>,
    /// A policy that could not be used, with why.
    pub(crate) unusable: Option<String>,
    /// ClusterSandboxPolicies by which runs of the namespace were admitted and that do not select it any more.
    pub(crate) gone: BTreeSet<String>,
    /// Labels of the namespace, by which it is selected.
    pub(crate) labels: BTreeMap<String, String>,
    /// What the run asks for and they might grant.
    pub(crate) given: Given,
    /// Who wrote one of them since the run was looked at last; `None` where somebody is not known.
    pub(crate) writers: Option<BTreeSet<String>>,
}

/// What processes of their own have read in the texts of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TextsSeen {
    /// The run or a policy brings a schema.
    pub(crate) has_schema: bool,
    /// Whether all of them are satisfied.
    pub(crate) answer: Answer,
    /// SHA-256 of the schema that the run brings.
    pub(crate) own_schema: Option<String>,
    /// What the script shows; `None` where no policy says what it is written in.
    pub(crate) preflight: Option<Arc<Preflight>>,
}

impl Default for TextsSeen {
    fn default() -> Self {
        Self { has_schema: false, answer: Answer::Satisfies, own_schema: None, preflight: None }
    }
}

/// A run that may be run, with everything that is needed to run it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ValidRun {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) requester: Requester,
    /// The policy that it names.
    pub(crate) policy: PolicyRef,
    pub(crate) grant: Grant,
    pub(crate) files: JobFiles,
    pub(crate) files_digest: String,
    /// Of everything that was decided on.
    pub(crate) digest: String,
    pub(crate) script_hash: String,
    pub(crate) policies: Vec<TakenPolicy>,
    pub(crate) decisions: Vec<Decision>,
    pub(crate) risk: Risk,
    /// What the text of its script shows.
    pub(crate) preflight: Option<Arc<Preflight>>,
    /// What it is given, in the order of its kinds and names.
    pub(crate) given: Vec<(Object, Content)>,
    /// What has to be approved first.
    pub(crate) to_approve: Option<ToApprove>,
    /// Whose approval would not count, where that is more than the policies and the run tell by themselves: they were written by others before.
    pub(crate) excluded: Option<Excluded>,
}

/// A run that may not be run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Refused {
    pub(crate) refusal: Refusal,
    pub(crate) policies: Vec<TakenPolicy>,
    pub(crate) decisions: Vec<Decision>,
    /// Of what it would have been granted.
    pub(crate) risk: Option<Risk>,
    /// What the text of its script shows.
    pub(crate) preflight: Option<Arc<Preflight>>,
    /// Where the input does not satisfy its schemas.
    pub(crate) violations: Vec<Violation>,
    /// Expressions of policies that could not be evaluated.
    pub(crate) failed: Vec<FailedRule>,
}

impl Refused {
    pub(crate) fn plain(reason: Reason, message: impl Into<String>) -> Self {
        Self::of(Refusal { reason, message: message.into() })
    }

    /// What the policies allow, and something else does not.
    pub(crate) fn after(valid: ValidRun, refusal: Refusal) -> Self {
        Self {
            policies: valid.policies,
            decisions: valid.decisions,
            risk: Some(valid.risk),
            preflight: valid.preflight,
            ..Self::of(refusal)
        }
    }

    fn of(refusal: Refusal) -> Self {
        Self {
            refusal,
            policies: Vec::new(),
            decisions: Vec::new(),
            risk: None,
            preflight: None,
            violations: Vec::new(),
            failed: Vec::new(),
        }
    }
}

/// `input` is JSON as text. Checks in the order in which an author would want to be told.
#[expect(clippy::result_large_err, reason = "it is made once in a pass, and boxed at once")]
pub(crate) fn validate(
    run: &ScriptRun,
    input: Option<&str>,
    source: &SourceSeen,
    policies: &PoliciesSeen,
    fixed: &Fixed,
    checked: &TextsSeen,
    now: Timestamp,
) -> Result<ValidRun, Refused> {
    let requester = requester(run.annotations()).ok_or_else(|| {
        Refused::plain(
            Reason::Unstamped,
            "the run carries no requester: it was created while Paddock's admission policies were not in place",
        )
    })?;
    if let Some(why) = &policies.unusable {
        return Err(Refused::plain(Reason::PolicyInvalid, why.clone()));
    }
    if let Some(gone) = policies.gone.first() {
        return Err(Refused::plain(Reason::PolicyGone, gone_message(gone, &run.namespace().unwrap_or_default())));
    }
    let taken: Vec<TakenPolicy> = policies.taking_part.iter().map(|policy| policy.taken.clone()).collect();
    let outcome = judged(run, policies, fixed);
    let refused = |refusal| Refused { policies: taken.clone(), decisions: outcome.decisions.clone(), ..Refused::of(refusal) };
    let grant = outcome.result.clone().map_err(refused)?;
    let preflight = checked.preflight.as_deref();
    let risk = risk(&grant.capabilities, preflight);
    let refused = |refusal| Refused { risk: Some(risk.clone()), preflight: checked.preflight.clone(), ..refused(refusal) };
    let script = match source {
        SourceSeen::Text(bytes) => bytes.clone(),
        SourceSeen::Refused(reason, message) => {
            return Err(refused(Refusal { reason: reason.clone(), message: message.clone() }));
        }
    };
    let script_hash = job::hash(&script);
    check_source(run, &script, &script_hash).map_err(refused)?;
    let facts = Facts {
        script_hash: Some(&script_hash),
        image: Some(&grant.runtime.image),
        preflight,
        requester: Some(&requester),
        end_user: run.spec.end_user.as_ref(),
    };
    if let Some((refusal, decision)) = judge_denied(&policies.taking_part, facts) {
        let mut denied = refused(refusal);
        denied.decisions.push(decision);
        return Err(denied);
    }
    let not_examined = Preflight::not_examined();
    let (shown, refusal) = judge_preflight(&policies.taking_part, preflight.unwrap_or(&not_examined), &grant.capabilities);
    let decisions = [outcome.decisions.clone(), shown].concat();
    let refused = |refusal| Refused { decisions: decisions.clone(), ..refused(refusal) };
    if let Some(refusal) = refusal {
        return Err(refused(refusal));
    }
    let namespace = run.namespace().unwrap_or_default();
    let facts = TenantFacts { name: &namespace, labels: &policies.labels };
    let subject = Subject::of(run, (&grant, &script_hash, input.map_or(0, str::len) as u64), (&risk, preflight), facts, &requester, now);
    let judged = judge_rules(&policies.taking_part, &subject);
    let decisions = [decisions.clone(), judged.decisions.clone()].concat();
    if let RulesJudged { refusal: Some(refusal), failed, .. } = judged {
        return Err(Refused { decisions, failed, ..refused(refusal) });
    }
    let refused = |refusal| Refused { decisions: decisions.clone(), ..refused(refusal) };
    let demanded = demanded(&policies.taking_part, &subject).map_err(|failure| {
        let (refusal, failed) = *failure;
        Refused { failed: vec![failed], ..refused(refusal) }
    })?;
    if demanded.len() > MOST_DEMANDED {
        let message = format!("the policies demand {} approvals together; at most {MOST_DEMANDED} can be kept", demanded.len());
        return Err(refused(Refusal { reason: Reason::PolicyInvalid, message }));
    }
    let demand = input_demand(&policies.taking_part, &script_hash);
    check_input(input, &demand, checked).map_err(|(refusal, violations)| Refused { violations, ..refused(refusal) })?;
    let given = contents(&grant, &policies.given).map_err(refused)?;
    let output = output_grant(&policies.taking_part);
    let files = job::files(run, input, script, &grant, &output, fixed);
    check_size(&files).map_err(refused)?;
    let files_digest = files.digest();
    let input_hash = files.input.as_deref().map(job::hash);
    let data = data_hashes(&given);
    let hashes = Hashes { script: &script_hash, input: input_hash.as_deref(), schema: checked.own_schema.as_deref(), data: &data };
    let told = part_of(run, &requester, &taken).collect::<Excluded>();
    let excluded = excluded(run, &requester, &taken, policies.writers.as_ref());
    let to_approve = (!demanded.is_empty()).then(|| ToApprove {
        demanded,
        digests: digests(run, &grant, hashes),
        run_uid: run.uid().unwrap_or_default(),
        excluded: excluded.clone(),
    });
    Ok(ValidRun {
        namespace: namespace.clone(),
        name: run.name_any(),
        uid: run.uid().unwrap_or_default(),
        requester,
        policy: run.spec.policy_ref.clone(),
        digest: digest_of(&files_digest, &grant),
        files,
        files_digest,
        script_hash,
        grant,
        policies: taken,
        decisions,
        risk,
        preflight: checked.preflight.clone(),
        given,
        to_approve,
        excluded: Some(excluded).filter(|excluded| *excluded != told),
    })
}

fn judged(run: &ScriptRun, policies: &PoliciesSeen, fixed: &Fixed) -> Outcome {
    let gateway = if fixed.egress.is_some() { Gateway::Installed } else { Gateway::Absent };
    let ask = Ask::of(&run.spec, policies.given.found.clone(), policies.given.at_gateway.clone(), gateway);
    judge(&policies.taking_part, &run.spec.policy_ref, &ask)
}

/// As what the script is to be read; `None` if its policies do not say, and if nothing follows from it, since the run is refused before.
pub(crate) fn to_be_read(run: &ScriptRun, source: &SourceSeen, policies: &PoliciesSeen, fixed: &Fixed) -> Option<Language> {
    let (requester, SourceSeen::Text(script)) = (requester(run.annotations())?, source) else { return None };
    if policies.unusable.is_some() || !policies.gone.is_empty() {
        return None;
    }
    let grant = judged(run, policies, fixed).result.ok()?;
    let script_hash = job::hash(script);
    check_source(run, script, &script_hash).ok()?;
    let facts = Facts {
        script_hash: Some(&script_hash),
        image: Some(&grant.runtime.image),
        preflight: None,
        requester: Some(&requester),
        end_user: run.spec.end_user.as_ref(),
    };
    grant.runtime.language.filter(|_| judge_denied(&policies.taking_part, facts).is_none())
}

/// What is granted was also read: what was not is not given.
fn contents(grant: &Grant, given: &Given) -> Result<Vec<(Object, Content)>, Refusal> {
    let content = |object: &Object| {
        let content = given.contents.get(object).cloned();
        content.map(|content| (object.clone(), content)).ok_or_else(|| Refusal {
            reason: Reason::CapabilityUnusable,
            message: format!("the {} {} was not read", object.kind.as_str(), object.name),
        })
    };
    grant.capabilities.objects.iter().map(content).collect()
}

fn data_hashes(given: &[(Object, Content)]) -> BTreeMap<String, String> {
    let of_data = given.iter().filter(|(object, _)| object.kind == ObjectKind::ConfigMap);
    of_data.map(|(object, content)| (object.name.clone(), data_hash(&content.text, &content.bytes))).collect()
}

/// Demands that a status has room for.
const MOST_DEMANDED: usize = 64;

/// Who approves nothing of a run: who asked for it, for whom it is, and who wrote a policy by which it is decided, or was while it waited.
fn excluded(run: &ScriptRun, requester: &Requester, policies: &[TakenPolicy], writers: Option<&BTreeSet<String>>) -> Excluded {
    let status = run.status.as_ref();
    let earlier = status.and_then(|status| status.approval.as_ref()).map(|approval| approval.excluded.clone());
    let looked_at = status.into_iter().flat_map(|status| &status.policies).filter_map(|policy| policy.author.clone());
    let meanwhile = writers.map_or_else(|| [EVERYBODY.to_owned()].into(), BTreeSet::clone);
    part_of(run, requester, policies).chain(earlier.into_iter().flatten()).chain(looked_at).chain(meanwhile).collect()
}

/// Who has a part in the run as it is now.
fn part_of(run: &ScriptRun, requester: &Requester, policies: &[TakenPolicy]) -> impl Iterator<Item = String> {
    let authors: Vec<String> = policies.iter().filter_map(|policy| policy.author.clone()).collect();
    let end_user = run.spec.end_user.as_ref().map(|user| user.username.clone());
    authors.into_iter().chain(end_user).chain([requester.username.clone()])
}

/// A policy that goes would widen what the others allow, and nobody may have meant that.
fn gone_message(policy: &str, namespace: &str) -> String {
    let sandbox = names::sandbox_namespace(namespace);
    format!(
        "the ClusterSandboxPolicy {policy}, by which runs of this namespace were admitted, does not select it any more; nothing runs here until it does, or until an administrator forgets it: kubectl annotate namespace {sandbox} {}-",
        names::CLUSTER_POLICIES
    )
}

fn check_source(run: &ScriptRun, script: &[u8], hash: &str) -> Result<(), Refusal> {
    let refusal = |reason, message: String| Refusal { reason, message };
    if script.len() > MAX_SCRIPT {
        return Err(refusal(Reason::SourceTooLarge, format!("the script has {} bytes; at most {MAX_SCRIPT} are allowed", script.len())));
    }
    let fixed = run.status.as_ref().and_then(|status| status.script_hash.as_deref());
    if fixed.is_some_and(|fixed| fixed != hash) {
        return Err(refusal(Reason::SourceChanged, "the ConfigMap changed after the run was accepted".into()));
    }
    if script.contains(&0) {
        return Err(refusal(Reason::InvalidSpec, "the script holds a NUL byte".into()));
    }
    if run.spec.script.args.iter().any(|argument| argument.contains('\0')) {
        return Err(refusal(Reason::InvalidSpec, "an argument holds a NUL character".into()));
    }
    Ok(())
}

fn check_input(input: Option<&str>, demand: &InputDemand, checked: &TextsSeen) -> Result<(), (Refusal, Vec<Violation>)> {
    let refuse = |reason, message: String| Err((Refusal { reason, message }, Vec::new()));
    let bytes = input.map_or(0, str::len) as u64;
    judge_input(demand, bytes, checked.has_schema).map_err(|refusal| (refusal, Vec::new()))?;
    match &checked.answer {
        Answer::Satisfies => Ok(()),
        Answer::Violates { first, count } => {
            let places: Vec<Violation> =
                first.iter().map(|place| Violation { path: place.path.clone(), message: place.message.clone() }).collect();
            let told = places.first().map(|place| format!(": {:?}: {}", place.path, place.message)).unwrap_or_default();
            let more = match (*count, first.len()) {
                (..=1, _) => String::new(),
                (all, told) if all <= told => format!("; and {} more, see status.violations", all - 1),
                (all, told) => format!("; and {} more, of which {} are in status.violations", all - 1, told - 1),
            };
            let message = format!("the input does not satisfy its schema{told}{more}");
            Err((Refusal { reason: Reason::InputInvalid, message }, places))
        }
        Answer::Unusable { whose, why } => refuse(Reason::SchemaInvalid, format!("the schema cannot be used ({whose}): {why}")),
        Answer::TooDeep => {
            refuse(Reason::InputInvalid, "the input is nested deeper than 128 levels, which no schema can be checked on".into())
        }
        Answer::TooCostly => refuse(Reason::SchemaInvalid, "checking the input takes more than a second of CPU, or too much memory".into()),
    }
}

fn check_size(files: &JobFiles) -> Result<(), Refusal> {
    let bytes = files.job.len() + files.script.len() + files.input.as_ref().map_or(0, Vec::len);
    if bytes <= MAX_JOB {
        return Ok(());
    }
    let message = format!("script, arguments and input have {bytes} bytes together; at most {MAX_JOB} are allowed");
    Err(Refusal { reason: Reason::InputTooLarge, message })
}

/// The stamp that admission has put on the run.
pub(crate) fn requester(annotations: &BTreeMap<String, String>) -> Option<Requester> {
    names::stamped(annotations, names::STAMPS)
}

#[cfg(test)]
mod tests;
