//! Policies as decisions use them, made once for each generation, and what their status says of them.

mod writers;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams};
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Resource, ResourceExt as _};
use paddock_crds::policy_status::SHOWN_PROBLEMS;
use paddock_crds::{
    ClusterSandboxPolicy, ConditionStatus, Effect, PolicyCondition, PolicyConditionType, PolicyKind, PolicyReason, PolicyRef, PolicyRules,
    PolicyStatus, Problem, SandboxPolicy, TakenPolicy,
};
use paddock_policy::{Contradiction, FailedRule, Policy, contradictions, hash_of, selects};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::{Notify, watch};

use crate::context::Context;
use crate::error::{Error, code, within};
use crate::input_check::{self, Answer, Question, Schema};
use crate::names::{AUTHOR, AUTHOR_STAMPS, SANDBOX_OF, stamped};
use crate::readable::Readable;
use crate::revisions;
use crate::script_run::observe::policies_of;
use crate::script_run::text::cut;
pub(crate) use writers::Writers;

/// A status that could not be written is tried again after this long.
const RETRY: Duration = Duration::from_secs(5);
/// Longest message of a problem, in characters.
const LONGEST_MESSAGE: usize = 1024;

/// Both kinds, as far as they are the same.
pub(crate) trait PolicyObject: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize {
    const KIND: PolicyKind;
    fn rules(&self) -> &PolicyRules;
    fn effect(&self) -> Effect;
    /// The whole spec, of which the hash is made.
    fn spec(&self) -> serde_json::Value;
    fn stored(&self) -> Option<&PolicyStatus>;
    /// What is wrong beside the rules.
    fn problems(&self) -> Vec<Problem>;
}

impl PolicyObject for SandboxPolicy {
    const KIND: PolicyKind = PolicyKind::SandboxPolicy;

    fn rules(&self) -> &PolicyRules {
        &self.spec.rules
    }

    fn effect(&self) -> Effect {
        Effect::Restrict
    }

    fn spec(&self) -> serde_json::Value {
        serde_json::to_value(&self.spec).unwrap_or_default()
    }

    fn stored(&self) -> Option<&PolicyStatus> {
        self.status.as_ref()
    }

    fn problems(&self) -> Vec<Problem> {
        Vec::new()
    }
}

impl PolicyObject for ClusterSandboxPolicy {
    const KIND: PolicyKind = PolicyKind::ClusterSandboxPolicy;

    fn rules(&self) -> &PolicyRules {
        &self.spec.rules
    }

    fn effect(&self) -> Effect {
        self.spec.effect
    }

    fn spec(&self) -> serde_json::Value {
        serde_json::to_value(&self.spec).unwrap_or_default()
    }

    fn stored(&self) -> Option<&PolicyStatus> {
        self.status.as_ref()
    }

    fn problems(&self) -> Vec<Problem> {
        let unusable = selects(&self.spec.namespace_selector, &[].into()).err();
        unusable.into_iter().map(|message| Problem { field: "namespaceSelector".into(), message }).collect()
    }
}

/// A policy of this generation, as it is stamped.
struct Entry {
    policy: Arc<Policy>,
    stamps: Stamps,
    /// Its schemas were looked at, which takes a process.
    has_judged_schemas: bool,
    /// Expressions that could not be evaluated on a run, with why.
    failed: BTreeMap<String, String>,
    /// Its revision is stored.
    is_kept: bool,
}

/// Who wrote it, as the cluster has stamped it: that changes without a generation where nobody was known.
pub(crate) type Stamps = [Option<String>; 3];

pub(crate) fn stamps(annotations: &BTreeMap<String, String>) -> Stamps {
    AUTHOR_STAMPS.map(|stamp| annotations.get(stamp).cloned())
}

/// All policies that were used, by UID.
#[derive(Default)]
pub(crate) struct Policies {
    entries: Mutex<HashMap<String, Entry>>,
    /// Something is to be told that no change of an object has brought.
    news: Notify,
}

impl Policies {
    /// The policy for a decision.
    pub(crate) fn used<P: PolicyObject>(&self, object: &P) -> Arc<Policy> {
        let uid = object.uid().unwrap_or_default();
        let generation = object.meta().generation.unwrap_or(0);
        let is_stamped_so =
            |stamps: &Stamps| AUTHOR_STAMPS.iter().zip(stamps).all(|(name, stamp)| object.annotations().get(*name) == stamp.as_ref());
        let is_it = |known: &&Entry| known.policy.taken.generation == generation && is_stamped_so(&known.stamps);
        if let Some(known) = self.lock().get(&uid).filter(is_it) {
            return known.policy.clone();
        }
        let author =
            object.annotations().get(AUTHOR).filter(|author| !author.is_empty()).map(|author| cut(author, LONGEST_MESSAGE).to_owned());
        let taken =
            TakenPolicy { kind: P::KIND, name: object.name_any(), uid: uid.clone(), author, generation, hash: hash_of(&object.spec()) };
        let mut policy = Policy::new(taken, object.effect(), object.rules().clone());
        policy.problems.extend(object.problems());
        policy.author = stamped(object.annotations(), AUTHOR_STAMPS);
        let policy = Arc::new(policy);
        let has_judged_schemas = object.rules().input.schemas.is_empty();
        let stamps = stamps(object.annotations());
        let entry = Entry { policy: policy.clone(), stamps, has_judged_schemas, failed: BTreeMap::new(), is_kept: false };
        self.lock().insert(uid, entry);
        policy
    }

    fn has_judged_schemas(&self, uid: &str) -> bool {
        self.lock().get(uid).is_some_and(|known| known.has_judged_schemas)
    }

    /// What was found about the schemas of this very policy.
    fn judged(&self, policy: &Arc<Policy>, problems: Vec<Problem>) {
        let mut whole = Policy::clone(policy);
        whole.problems.extend(problems);
        let mut known = self.lock();
        if let Some(entry) = known.get_mut(&policy.taken.uid).filter(|known| Arc::ptr_eq(&known.policy, policy)) {
            entry.policy = Arc::new(whole);
            entry.has_judged_schemas = true;
        }
    }

    /// Remembers which expressions could not be evaluated, of the generation that is used.
    pub(crate) fn failed(&self, rules: &[FailedRule]) {
        let mut known = self.lock();
        for failed in rules {
            if let Some(entry) = known.get_mut(&failed.policy_uid).filter(|known| known.policy.taken.generation == failed.generation)
                && entry.failed.insert(failed.rule.clone(), failed.why.clone()).is_none()
            {
                self.news.notify_one();
            }
        }
    }

    /// Whether the revision of this generation was stored by this process.
    fn is_kept<P: PolicyObject>(&self, object: &P) -> bool {
        let policy = self.used(object);
        self.lock().get(&policy.taken.uid).is_some_and(|known| known.is_kept)
    }

    fn kept<P: PolicyObject>(&self, object: &P) {
        let policy = self.used(object);
        if let Some(entry) = self.lock().get_mut(&policy.taken.uid).filter(|known| Arc::ptr_eq(&known.policy, &policy)) {
            entry.is_kept = true;
        }
    }

    fn failures(&self, uid: &str) -> BTreeMap<String, String> {
        self.lock().get(uid).map(|known| known.failed.clone()).unwrap_or_default()
    }

    fn forget_all_but(&self, present: &HashSet<String>) {
        self.lock().retain(|uid, _| present.contains(uid));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells on every policy what is wrong with it, until the process stops leading.
pub(crate) async fn run(context: Arc<Context>, mut changes: watch::Receiver<()>) {
    loop {
        changes.mark_unchanged();
        let is_done = report_all(&context).await;
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = context.policies.news.notified() => {}
            () = tokio::time::sleep(RETRY), if !is_done => {}
        }
    }
}

/// Whether nothing is left to be told.
async fn report_all(context: &Context) -> bool {
    let mut is_done = true;
    let mut present = HashSet::new();
    for policy in context.caches.policies.state() {
        present.extend(policy.uid());
        let namespace = policy.namespace().unwrap_or_default();
        let reference = PolicyRef { kind: PolicyKind::SandboxPolicy, name: policy.name_any() };
        let together = contradictions(&policies_of(&namespace, &reference, context).taking_part);
        is_done &= told(&report(&policy, &together, Api::namespaced(context.client.clone(), &namespace), context).await);
    }
    let together = of_the_cluster(context);
    for policy in context.caches.cluster_policies.state() {
        present.extend(policy.uid());
        let own: Vec<Contradiction> =
            together.iter().filter(|found| policy.uid().is_some_and(|uid| found.between.contains(&uid))).cloned().collect();
        is_done &= told(&report(&policy, &own, Api::all(context.client.clone()), context).await);
    }
    context.policies.forget_all_but(&present);
    context.caches.writers.forget_all_but(&present);
    is_done
}

/// In what the ClusterSandboxPolicies that meet in any tenant contradict each other. What a tenant's own policy adds is told on that one alone: of
/// others' namespaces nobody learns from a policy of the cluster.
fn of_the_cluster(context: &Context) -> BTreeSet<Contradiction> {
    let no_own = PolicyRef { kind: PolicyKind::ClusterSandboxPolicy, name: String::new() };
    let namespaces = context.caches.namespaces.state();
    let tenants = namespaces.iter().filter(|namespace| !namespace.labels().contains_key(SANDBOX_OF));
    let met = tenants.map(|namespace| policies_of(&namespace.name_any(), &no_own, context).taking_part);
    let sets: HashMap<Vec<String>, Vec<Arc<Policy>>> =
        met.map(|policies| (policies.iter().map(|policy| policy.taken.uid.clone()).collect(), policies)).collect();
    sets.values().flat_map(|policies| contradictions(policies)).collect()
}

fn told(result: &Result<(), Error>) -> bool {
    if let Err(error) = result {
        tracing::warn!(error = error.chain(), "the status of a policy is tried again");
    }
    result.is_ok()
}

async fn report<P: PolicyObject>(
    policy: &Readable<P>,
    together: &[Contradiction],
    api: Api<Readable<P>>,
    context: &Context,
) -> Result<(), Error> {
    let (stored, problems) = match &policy.0 {
        Ok(object) => (object.stored().cloned(), problems_of(object, context).await?),
        Err(unreadable) => {
            let problem = Problem { field: "spec".into(), message: format!("it cannot be read: {}", unreadable.why) };
            (unreadable.status.as_deref().and_then(|status| serde_json::from_str(status).ok()), vec![problem])
        }
    };
    let generation = policy.meta().generation.unwrap_or(0);
    let before = stored.as_ref().and_then(|status| status.observed_generation);
    // What the status calls observed is kept. An earlier process may have observed it before revisions were.
    if let Ok(object) = &policy.0 {
        keep(object, before, context).await?;
    }
    let failed = context.policies.failures(&policy.uid().unwrap_or_default());
    let wrong = Wrong { problems: &problems, failed: &failed, together };
    let Some(status) = status_of(stored.as_ref(), generation, &wrong, context.now()) else { return Ok(()) };
    // Of another version nothing is told: the watch brings it, and it is looked at anew.
    let patch = json!({ "metadata": { "resourceVersion": policy.resource_version() }, "status": status });
    match within("the status of a policy", api.patch_status(&policy.name_any(), &PatchParams::default(), &Patch::Merge(&patch))).await? {
        Err(error) if !matches!(code(&error), Some(404 | 409)) => Err(Error::write("the status of a policy")(error)),
        _ => Ok(()),
    }
}

/// Stores the revision of this generation, unless this process has.
async fn keep<P: PolicyObject>(object: &P, before: Option<i64>, context: &Context) -> Result<(), Error> {
    if !context.policies.is_kept(object) {
        let settings = &context.settings;
        revisions::record(object, before, (&context.client, &settings.operator_namespace, settings.policy_history)).await?;
        context.policies.kept(object);
    }
    Ok(())
}

/// Stores the revisions of what a decision is made by: nothing is admitted under a generation that the history does not show, but for one that the API
/// server does not take.
pub(crate) async fn keep_all(used: &[Arc<Policy>], namespace: &str, context: &Context) -> Result<(), Error> {
    for taken in used.iter().map(|policy| &policy.taken) {
        let name = &taken.name;
        match taken.kind {
            PolicyKind::SandboxPolicy => {
                let found = context.caches.policies.get(&ObjectRef::new(name).within(namespace));
                keep_one(found.as_deref(), taken, context).await?;
            }
            PolicyKind::ClusterSandboxPolicy => {
                keep_one(context.caches.cluster_policies.get(&ObjectRef::new(name)).as_deref(), taken, context).await?;
            }
        }
    }
    Ok(())
}

async fn keep_one<P: PolicyObject>(found: Option<&Readable<P>>, taken: &TakenPolicy, context: &Context) -> Result<(), Error> {
    let is_it = |object: &P| object.uid().as_ref() == Some(&taken.uid) && object.meta().generation.unwrap_or(0) == taken.generation;
    match found.map(|readable| &readable.0) {
        // It has changed since this pass has looked: the pass is taken again.
        Some(Ok(object)) if !is_it(object) => Err(Error::Conflict),
        Some(Ok(object)) => keep(object, object.stored().and_then(|status| status.observed_generation), context).await,
        _ => Ok(()),
    }
}

async fn problems_of<P: PolicyObject>(object: &P, context: &Context) -> Result<Vec<Problem>, Error> {
    let policy = context.policies.used(object);
    if !context.policies.has_judged_schemas(&policy.taken.uid) {
        let _turn = context.checking.take(&object.namespace().unwrap_or_default(), 1).await?;
        let problems = schema_problems(&policy.rules).await?;
        context.policies.judged(&policy, problems);
    }
    Ok(context.policies.used(object).problems.clone())
}

/// Which schemas cannot be used. They are tried on `null`; whether that satisfies them does not matter.
async fn schema_problems(rules: &PolicyRules) -> Result<Vec<Problem>, Error> {
    let mut problems = Vec::new();
    for fixed in &rules.input.schemas {
        let schema = Schema { whose: "schema".into(), text: fixed.schema.to_string() };
        let answer = input_check::ask(&Question { schemas: vec![schema], input: "null".into() }).await?;
        let message = match answer {
            Answer::Satisfies | Answer::Violates { .. } => continue,
            Answer::Unusable { why, .. } => why,
            Answer::TooDeep | Answer::TooCostly => "the schema takes more than a second of CPU, or too much memory".into(),
        };
        problems.push(Problem { field: format!("input.schemas[{}]", fixed.script_hash), message });
    }
    Ok(problems)
}

/// What is to be told of a policy.
struct Wrong<'a> {
    /// By itself.
    problems: &'a [Problem],
    /// On runs: expressions, with why.
    failed: &'a BTreeMap<String, String>,
    /// With others.
    together: &'a [Contradiction],
}

/// The status to write, or `None` if the stored one says it. Pure.
fn status_of(stored: Option<&PolicyStatus>, generation: i64, wrong: &Wrong<'_>, now: Timestamp) -> Option<PolicyStatus> {
    let Wrong { problems, failed, together } = *wrong;
    let before = stored.cloned().unwrap_or_default();
    let is_of_a_newer_version = before.conditions.iter().any(|condition| matches!(condition.type_, PolicyConditionType::Unknown(_)));
    if is_of_a_newer_version {
        return None;
    }
    let is_valid = problems.is_empty();
    let (reason, message) = match problems.first() {
        None => (PolicyReason::Valid, "nothing is wrong with this policy by itself".to_owned()),
        Some(first) if problems.len() == 1 => (PolicyReason::Invalid, format!("runs under it are refused: {first}")),
        Some(first) => {
            (PolicyReason::Invalid, format!("runs under it are refused: {first}; and {} more, see status.problems", problems.len() - 1))
        }
    };
    let condition = |type_: PolicyConditionType, holds: bool, reason: &PolicyReason, message: &str| {
        let status = if holds { ConditionStatus::True } else { ConditionStatus::False };
        let old = before.conditions.iter().find(|condition| condition.type_ == type_ && condition.status == status);
        let second = Timestamp::from_second(now.as_second()).unwrap_or(now);
        PolicyCondition {
            type_,
            status,
            reason: reason.clone(),
            message: cut(message, LONGEST_MESSAGE).into(),
            observed_generation: Some(generation),
            last_transition_time: old.map_or(Time(second), |old| old.last_transition_time.clone()),
        }
    };
    let mut conditions = vec![
        condition(PolicyConditionType::Ready, is_valid, &reason, &message),
        condition(PolicyConditionType::Stalled, !is_valid, &reason, &message),
    ];
    // What an earlier process has told of this generation stays told.
    let told = before.conditions.iter().find(|told| told.type_ == PolicyConditionType::RuleFailed);
    let told = told.filter(|told| told.observed_generation == Some(generation)).cloned();
    conditions.extend(told.or_else(|| {
        let (rule, why) = failed.first_key_value()?;
        let message = format!("a run was refused because {rule} could not be evaluated on it: {why}");
        Some(condition(PolicyConditionType::RuleFailed, true, &PolicyReason::EvaluationFailed, &message))
    }));
    if !together.is_empty() {
        let all = together.iter().map(|found| found.message.as_str()).collect::<Vec<_>>().join("; ");
        conditions.push(condition(PolicyConditionType::Contradicted, true, &PolicyReason::PoliciesDisagree, cut(&all, LONGEST_MESSAGE)));
    }
    let shown = problems.iter().take(SHOWN_PROBLEMS);
    let status = PolicyStatus {
        observed_generation: Some(generation),
        conditions,
        problems: shown
            .map(|problem| Problem { field: problem.field.clone(), message: cut(&problem.message, LONGEST_MESSAGE).into() })
            .collect(),
    };
    (status != before).then_some(status)
}

#[cfg(test)]
mod tests {
    use paddock_crds::{Limits, SandboxPolicySpec};

    use super::*;

    fn object(generation: i64, default_timeout: i64) -> SandboxPolicy {
        let limits = Limits { default_timeout_seconds: Some(default_timeout), max_timeout_seconds: Some(10), ..Limits::default() };
        let mut policy = SandboxPolicy::new("limited", SandboxPolicySpec { rules: PolicyRules { limits, ..PolicyRules::default() } });
        policy.metadata.uid = Some("u".into());
        policy.metadata.generation = Some(generation);
        policy
    }

    #[test]
    fn a_policy_is_made_once_for_each_generation() {
        let policies = Policies::default();
        let one = policies.used(&object(1, 5));
        assert!(Arc::ptr_eq(&one, &policies.used(&object(1, 5))));
        let two = policies.used(&object(2, 20));
        assert!(one.problems.is_empty() && two.problems.len() == 1);
        policies.judged(&two, vec![Problem { field: "x".into(), message: "y".into() }]);
        assert_eq!(policies.used(&object(2, 20)).problems.len(), 2);
        // What was found about a generation that is past counts for nothing.
        policies.judged(&one, vec![Problem { field: "x".into(), message: "y".into() }]);
        assert_eq!(policies.used(&object(2, 20)).problems.len(), 2);
        policies.forget_all_but(&HashSet::new());
        assert!(policies.lock().is_empty());
    }

    /// Where nobody was known, whoever writes anything takes a policy over: no generation tells of it.
    #[test]
    fn an_author_who_takes_a_policy_over_is_known_at_once() {
        let policies = Policies::default();
        let mut policy = object(1, 5);
        assert_eq!(policies.used(&policy).author, None);
        policy.metadata.annotations = Some(AUTHOR_STAMPS.map(|stamp| (stamp.to_owned(), "anna".to_owned())).into());
        let taken_over = policies.used(&policy);
        assert_eq!(taken_over.author.as_ref().map(|author| author.username.as_str()), Some("anna"));
        assert!(Arc::ptr_eq(&taken_over, &policies.used(&policy)));
    }

    #[test]
    fn the_status_is_written_when_it_says_something_new() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let policies = Policies::default();
        let failed = BTreeMap::new();
        let status = |before: Option<&PolicyStatus>, object: &SandboxPolicy, together: &[Contradiction], now| {
            let policy = policies.used(object);
            status_of(before, policy.taken.generation, &Wrong { problems: &policy.problems, failed: &failed, together }, now)
        };
        let good = status(None, &object(1, 5), &[], at(1)).unwrap();
        assert_eq!(status(Some(&good), &object(1, 5), &[], at(2)), None);
        let bad = status(Some(&good), &object(2, 20), &[], at(3)).unwrap();
        assert_eq!(bad.problems[0].to_string(), "limits.defaultTimeoutSeconds: 20 is more than limits.maxTimeoutSeconds, 10");
        let ready = &bad.conditions[0];
        assert_eq!((ready.status, &ready.reason, ready.observed_generation), (ConditionStatus::False, &PolicyReason::Invalid, Some(2)));
        assert_eq!(ready.last_transition_time, Time(at(3)));
        let other = status(Some(&bad), &object(3, 30), &[], at(4)).unwrap();
        assert_eq!(other.conditions[0].last_transition_time, Time(at(3)), "it was not ready before");

        let contradiction = |message: &str| Contradiction { between: ["u".to_owned()].into(), message: message.into() };
        let two = [contradiction("a and b do not agree"), contradiction("a and c neither")];
        let contradicted = status(Some(&good), &object(1, 5), &two, at(6)).unwrap();
        let told = &contradicted.conditions[2];
        assert_eq!((&told.type_, told.message.as_str()), (&PolicyConditionType::Contradicted, "a and b do not agree; a and c neither"));
        assert_eq!(contradicted.conditions[0].status, ConditionStatus::True, "by itself it is right");
        assert_eq!(status(Some(&contradicted), &object(1, 5), &two, at(7)), None);
        let agreed = status(Some(&contradicted), &object(1, 5), &[], at(8)).unwrap();
        assert_eq!(agreed.conditions.len(), 2, "it goes with its cause");

        let mut newer = good;
        newer.conditions[0].type_ = PolicyConditionType::Unknown("Audited".into());
        assert_eq!(status(Some(&newer), &object(4, 30), &[], at(5)), None);
    }
}
