//! Reading. "Could not be read" is an error, never "absent".

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Resource as _, ResourceExt as _};
use paddock_crds::{ConditionType, PolicyKind, PolicyRef, Preflight, Reason, ScriptRun, ScriptRunStatus, TakenPolicy};
use paddock_policy::{
    Containment, Facts, Object, ObjectKind, OutputGrant, SecretValues, approving, containment, input_demand, is_revoked, network_limits,
    output_grant, selects,
};
use paddock_protocol::{Opener, Transcript};

use super::access::{forbidden_to_the_operator, may_read};
use super::guarded::{Unfit, read_whole};
use super::job::{Fixed, hash};
use super::ledger::LivingPod;
use super::pod::{difference, render_pod};
use super::pod_facts::{PodFacts, PodSeen};
use super::session::Heard;
use super::step::{SandboxSeen, Seen};
use super::validate::{PoliciesSeen, Refused, SourceSeen, TextsSeen, ValidRun, requester, to_be_read, validate};
use super::{Body, Watched, copies, given, sandbox};
use crate::approvals::{self, Approvals};
use crate::context::{Context, entry};
use crate::diagnosis;
use crate::egress::secrets;
use crate::error::{Error, code, within};
use crate::input_check::{self, Question, Schema};
use crate::names::{RUN_UID, is_waiting_name, sandbox_namespace};
use crate::pods::{Cached, is_of_a_pool};
use crate::policies::keep_all;
use crate::pool::waiting::Offer;
use crate::readable::Readable;
use crate::sandbox_namespace::{self, Wanted};

/// What objects that a run names may be together, in KiB, and the most that counts of one run.
const OBJECTS_KIB: u32 = 1024;

/// The run with its body, if a decision has to be made on it. `None` if it is gone.
pub(crate) async fn whole(watched: Watched, context: &Context) -> Result<Option<Watched>, Error> {
    if is_decided(&watched.run) { Ok(Some(watched)) } else { fetched(watched, context).await }
}

/// The run with its body, whether or not that is in the cache. `None` if it is gone.
pub(super) async fn fetched(watched: Watched, context: &Context) -> Result<Option<Watched>, Error> {
    if !matches!(watched.body, Body::Left { .. }) {
        return Ok(Some(watched));
    }
    let path = format!("{}/{}", ScriptRun::url_path(&(), watched.run.namespace().as_deref()), watched.run.name_any());
    let request = http::Request::get(path).body(Vec::new()).map_err(|error| Error::read("the run")(kube::Error::HttpError(error)))?;
    let text = match within("the run", context.client.request_text(request)).await? {
        Ok(text) => text,
        Err(error) if code(&error) == Some(404) => return Ok(None),
        Err(error) => return Err(Error::read("the run")(error)),
    };
    let stored = read_whole(&text).map_err(|error| Error::Unreadable { why: error.to_string() })?;
    Ok(Some(stored).filter(|stored| stored.run.uid() == watched.run.uid()))
}

/// How much may have to be in memory for a pass, in KiB of JSON: of a body that is not here, and of objects that the run names.
pub(crate) fn large_kib(watched: &Watched) -> u32 {
    if is_decided(&watched.run) { 0 } else { size_kib(watched) }
}

/// The same of a decision.
pub(super) fn size_kib(watched: &Watched) -> u32 {
    let spec = &watched.run.spec;
    let asks = spec.capabilities.as_ref().is_some_and(|asked| {
        // The gateway may add Secrets to what is asked for so.
        let is_http = |destination: &String| destination.starts_with("http://");
        !asked.secrets.is_empty() || !asked.data.is_empty() || asked.network.iter().any(is_http)
    });
    let objects = if asks || spec.script.source.config_map_key_ref.is_some() { OBJECTS_KIB } else { 0 };
    objects.max(match watched.body {
        Body::Left { bytes } => u32::try_from(bytes.div_ceil(1024)).unwrap_or(OBJECTS_KIB).min(OBJECTS_KIB),
        Body::Here | Body::Unfit(_) => 0,
    })
}

/// Whether nothing is left to decide: the script may have started, or never will.
fn is_decided(run: &ScriptRun) -> bool {
    let status = run.status.clone().unwrap_or_default();
    status.is_true(&ConditionType::Started)
        || status.is_true(&ConditionType::Finished)
        || status.stopping.is_some()
        || run.metadata.deletion_timestamp.is_some()
}

/// Reads what a pass over this run needs, and no more: most of it is in caches.
pub(crate) async fn observe(watched: &Watched, context: &Arc<Context>) -> Result<Seen, Error> {
    let run = &watched.run;
    let now = context.now();
    let mut policies = policies(run, context);
    let output = output(run, &policies, context).await?;
    let decision = if is_decided(run) { None } else { Some(decide(watched, &mut policies, context, now).await?) };
    let valid = decision.as_ref().and_then(|decision| decision.as_ref().ok());
    let sandbox = match valid.and_then(|valid| wanted(run, valid, context)) {
        Some(wanted) => sandbox_namespace::look(&wanted, context),
        None => SandboxSeen::Incomplete,
    };
    let mut pod = match pod(run, context).await? {
        None => {
            // A sandbox that it was given and that is gone before anything was stored is not waited for.
            if run.status.as_ref().is_none_or(|status| status.pod.is_none()) {
                context.sandboxes.let_go(&run.uid().unwrap_or_default());
            }
            PodSeen::Absent
        }
        Some(stored) => {
            let mut facts = PodFacts::of(&stored);
            if !facts.has_waited {
                facts.mutated = valid.and_then(|valid| difference(&render_pod(valid, &context.settings), &stored));
            }
            PodSeen::Present(Box::new(facts))
        }
    };
    let uid = run.uid().unwrap_or_default();
    let mut stream = match &pod {
        PodSeen::Present(facts) => context.sessions.look(&uid, &facts.uid),
        PodSeen::Absent => context.sessions.remains(&uid),
    };
    let is_being_ended = run.status.as_ref().is_some_and(|status| status.stopping.is_some());
    if stream.transcript.accepted || is_being_ended {
        context.sandboxes.delivered(&uid);
    }
    if let (PodSeen::Present(facts), true) = (&pod, stream.complete) {
        take_summary(run, facts, Arc::make_mut(&mut stream.transcript), context);
    }
    let is_job_to_come = sandbox::lacks_its_job(run, &stream, context) && !sandbox::bring_again(watched, &mut policies, context).await;
    if let (PodSeen::Present(facts), Some(job)) = (&mut pod, context.sandboxes.job_of(&uid))
        && facts.has_waited
    {
        // It was compared when it was made; what it is to run came later.
        (facts.files_digest, facts.job_digest) = (Some(job.files_digest), Some(job.digest));
    }
    let containment = contained(run, &policies);
    let to_approve = valid.and_then(|valid| valid.to_approve.as_ref());
    let are_needed = to_approve.is_some() || run.status.as_ref().is_some_and(|status| status.approval.is_some());
    let approvals = if are_needed { approvals::of_namespace(&run.namespace().unwrap_or_default(), context) } else { Approvals::default() };
    let approving = approving(to_approve, approvals.of_a_start(), now);
    let has_lost_approval = has_lost_approval(run, &approvals, now);
    let is_one_too_many = is_one_too_many(run, valid.map(Box::as_ref), &pod, context);
    let leading_since = context.fence.up_since();
    let network = context.egress.used(&uid);
    let most_refused = network_limits(&policies.taking_part).refused;
    let is_refused_too_often = network.as_ref().zip(most_refused).is_some_and(|(used, (most, _))| used.refused > most);
    let bound = context.egress.show(run, &pod, context);
    let offer = valid.map_or(Offer::NoPool, |valid| {
        let asked = (valid.namespace.as_str(), &valid.policy, run.spec.script.runtime.as_str());
        context.sandboxes.offer(asked, &valid.grant, |name| context.sessions.heard(name) == Heard::Waits)
    });
    Ok(Seen {
        decision,
        sandbox,
        pod,
        stream,
        containment,
        approving,
        is_one_too_many,
        has_lost_approval,
        output,
        network,
        is_refused_too_often,
        offer,
        is_job_to_come,
        bound,
        log: context.audit.look(),
        leading_since,
    })
}

/// What may be run of what is asked for.
pub(super) async fn decide(
    watched: &Watched,
    policies: &mut PoliciesSeen,
    context: &Arc<Context>,
    now: Timestamp,
) -> Result<Result<Box<ValidRun>, Box<Refused>>, Error> {
    let run = &watched.run;
    let source = match watched.body {
        Body::Here => source(run, context).await?,
        Body::Unfit(Unfit::TooLarge) => {
            let message = "script, arguments, input and schema are larger than any job can be";
            SourceSeen::Refused(Reason::InputTooLarge, message.into())
        }
        Body::Unfit(Unfit::SchemaIsNoObject) => SourceSeen::Refused(Reason::InvalidSpec, "inputSchema is no object".into()),
        Body::Left { .. } => return Err(Error::Late { what: "the body of the run" }),
    };
    let fixed = Fixed {
        start_budget_seconds: context.settings.start_budget_seconds,
        seal_to: context.results.sealing_key.of_run(&run.uid().unwrap_or_default()).public(),
        egress: context.egress.of_a_job(),
        has_interface: context.settings.sandbox_has_interface,
    };
    policies.given = given::look(run, policies, context).await?;
    keep_all(&policies.taking_part, &run.namespace().unwrap_or_default(), context).await?;
    let checked = check_input(watched, &source, policies, context).await?;
    let checked = TextsSeen { preflight: preflight(run, &source, policies, &fixed, context).await?, ..checked };
    let decision = validate(run, watched.input.as_deref(), &source, policies, &fixed, &checked, now);
    Ok(decision.map(Box::new).map_err(Box::new).and_then(|valid| enforced(valid, context)))
}

/// Refuses what would be confined by something that was seen not to be in force.
fn enforced(valid: Box<ValidRun>, context: &Context) -> Result<Box<ValidRun>, Box<Refused>> {
    match diagnosis::refusal(&valid, context) {
        Some(refusal) => Err(Box::new(Refused::after(*valid, refusal))),
        None => Ok(valid),
    }
}

/// Whether the run holds a slot without a pod, and more hold slots than may.
fn is_one_too_many(run: &ScriptRun, decision: Option<&ValidRun>, pod: &PodSeen, context: &Context) -> bool {
    let holds_a_slot = run.status.as_ref().is_some_and(|status| status.is_true(&ConditionType::Admitted));
    let living = |each: &mut dyn FnMut(LivingPod<'_>)| context.pods.living(each);
    let exceeds = |valid: &ValidRun| context.ledger.exceeds(&entry(run), valid.grant.queue, context.settings.cluster_limits, living);
    holds_a_slot && *pod == PodSeen::Absent && decision.is_some_and(exceeds)
}

fn is_running(status: &ScriptRunStatus) -> bool {
    status.is_true(&ConditionType::Started) && !status.is_true(&ConditionType::Finished)
}

/// By what rules the result is told. `Err` if they, or what they cover, cannot be had.
async fn output(run: &ScriptRun, policies: &PoliciesSeen, context: &Context) -> Result<Result<OutputGrant, String>, Error> {
    if let Some(why) = policies.unusable.clone().or_else(|| missing(run, policies)) {
        return Ok(Err(why));
    }
    let grant = output_grant(&policies.taking_part);
    let Some(status) = run.status.as_ref().filter(|status| is_running(status)) else { return Ok(Ok(grant)) };
    let (namespace, uid) = (run.namespace().unwrap_or_default(), run.uid().unwrap_or_default());
    let copies = copies::values(&namespace, &uid, status, context).await?;
    let at_gateway = secrets::values(&namespace, &uid, status, context).await?;
    let values = copies.and_then(|copies| Ok([copies.0, at_gateway?.0].concat()));
    Ok(values.map(|values| OutputGrant { secrets: SecretValues(values), ..grant }))
}

/// Asks whether the input satisfies the schema of the run and those of the policies. The answer is kept for as long as none of them changes.
async fn check_input(watched: &Watched, source: &SourceSeen, policies: &PoliciesSeen, context: &Context) -> Result<TextsSeen, Error> {
    let SourceSeen::Text(script) = source else { return Ok(TextsSeen::default()) };
    let own = watched.schema.iter().map(|text| Schema { whose: "inputSchema".into(), text: text.to_string() });
    let demand = input_demand(&policies.taking_part, &hash(script));
    let fixed = demand.schemas.into_iter().map(|(whose, schema)| Schema { whose, text: schema.to_string() });
    let schemas: Vec<Schema> = own.chain(fixed).collect();
    let Some(first) = schemas.first() else { return Ok(TextsSeen::default()) };
    let own_schema = watched.schema.as_ref().map(|text| hash(text.as_bytes()));
    let key = hash(schemas.iter().fold(first.whose.clone(), |all, schema| all + "\n" + &schema.text).as_bytes());
    let uid = watched.run.uid().unwrap_or_default();
    if let Some(answer) = context.checked(&uid, &key) {
        return Ok(TextsSeen { has_schema: true, answer, own_schema, preflight: None });
    }
    let _turn = context.checking.take(&watched.run.namespace().unwrap_or_default(), 1).await?;
    let question = Question { schemas, input: watched.input.as_deref().unwrap_or("null").to_owned() };
    let answer = input_check::ask(&question).await?;
    context.remember_check(uid, key, answer.clone());
    Ok(TextsSeen { has_schema: true, answer, own_schema, preflight: None })
}

/// What the script shows, if its policies say what it is written in.
async fn preflight(
    run: &ScriptRun,
    source: &SourceSeen,
    policies: &PoliciesSeen,
    fixed: &Fixed,
    context: &Context,
) -> Result<Option<Arc<Preflight>>, Error> {
    let (SourceSeen::Text(script), Some(language)) = (source, to_be_read(run, source, policies, fixed)) else { return Ok(None) };
    let (namespace, uid) = (run.namespace().unwrap_or_default(), run.uid().unwrap_or_default());
    context.readings.of((&namespace, &uid), language, script, &hash(script)).await.map(Some)
}

/// Where the log told no end of the script, the termination message may. Only the runner that was started could have sealed it.
fn take_summary(run: &ScriptRun, facts: &PodFacts, transcript: &mut Transcript, context: &Context) {
    let message = facts.ended().and_then(|ended| ended.termination_message.as_deref());
    let boot = run.status.as_ref().and_then(|status| status.pod.as_ref()?.boot.as_deref());
    if transcript.report.is_none()
        && let (Some(message), Some(boot)) = (message, boot)
        && let Some(opener) = Opener::new(&sandbox::key_of(run, context), boot)
        && let Some(summary) = opener.open_summary(message)
    {
        tracing::info!("the log told no end of the script; the termination message did");
        transcript.take_summary(summary);
    }
}

/// What the sandbox namespace of a run has to be; `None` while its own namespace is not in the cache.
pub(crate) fn wanted(run: &ScriptRun, valid: &ValidRun, context: &Context) -> Option<Wanted> {
    let tenant = run.namespace()?;
    let namespace = context.caches.namespaces.get(&ObjectRef::new(&tenant))?;
    let of_cluster_tier = valid.policies.iter().filter(|policy| policy.kind == PolicyKind::ClusterSandboxPolicy);
    let cluster_policies = of_cluster_tier.map(|policy| policy.name.clone()).collect();
    Some(Wanted { tenant, tenant_uid: namespace.uid()?, max_pods: valid.grant.queue.concurrent, cluster_policies })
}

async fn pod(run: &ScriptRun, context: &Context) -> Result<Option<Arc<Pod>>, Error> {
    let uid = run.uid().unwrap_or_default();
    let sandbox = sandbox_namespace(&run.namespace().unwrap_or_default());
    let status = run.status.clone().unwrap_or_default();
    let name = sandbox::name_of_pod(run, context);
    let key = if is_waiting_name(&name) { &name } else { &uid };
    match context.pods.get(&sandbox, key) {
        Cached::Present(pod) => return Ok(Some(pod)),
        Cached::Absent => return Ok(None),
        // A run that never took a slot never had a pod, but one that waited, if the write that was to store both did not.
        Cached::Ask if !status.is_true(&ConditionType::Admitted) && !is_waiting_name(&name) => return Ok(None),
        Cached::Ask => {}
    }
    context.pods.watch(&sandbox);
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &sandbox);
    match within("the pod", api.get_opt(&name)).await? {
        Ok(Some(pod)) if is_of_a_pool(&pod) || pod.labels().get(RUN_UID) == Some(&uid) => Ok(Some(Arc::new(pod))),
        // None, or one of that name that is somebody else's.
        Ok(_) => {
            context.pods.asked(&sandbox, key);
            Ok(None)
        }
        // A sandbox namespace that is gone took the operator's rights in it along. What has gone with it is gone.
        Err(error) if code(&error) == Some(403) && context.caches.namespaces.get(&ObjectRef::new(&sandbox)).is_none() => Ok(None),
        Err(error) => Err(Error::read("the pod")(error)),
    }
}

pub(crate) fn policies(run: &ScriptRun, context: &Context) -> PoliciesSeen {
    let mut seen = policies_of(&run.namespace().unwrap_or_default(), &run.spec.policy_ref, context);
    let before = run.status.iter().flat_map(|status| &status.policies);
    let since = before.filter_map(|before| {
        let is_of_its_name = |policy: &&Arc<paddock_policy::Policy>| policy.taken.kind == before.kind && policy.taken.name == before.name;
        let now = &seen.taking_part.iter().find(is_of_its_name)?.taken;
        // One that was made anew under the same name was written from its first generation on.
        Some((if now.uid == before.uid { before.generation } else { 0 }, now))
    });
    let wrote = since.map(|(after, now)| context.caches.writers.between(&now.uid, after, now.generation));
    seen.writers = wrote.collect::<Option<Vec<_>>>().map(|all| all.into_iter().flatten().collect());
    seen
}

/// Those that take part in a namespace for runs that name this one.
pub(crate) fn policies_of(namespace: &str, named: &PolicyRef, context: &Context) -> PoliciesSeen {
    let labels = context.caches.namespaces.get(&ObjectRef::<Namespace>::new(namespace)).map(|namespace| namespace.labels().clone());
    let sandbox = context.caches.namespaces.get(&ObjectRef::<Namespace>::new(&sandbox_namespace(namespace)));
    let labels = labels.unwrap_or_default();
    let mut seen = PoliciesSeen { gone: sandbox_namespace::remembered(sandbox.as_deref()), ..PoliciesSeen::default() };
    for guarded in context.caches.cluster_policies.state() {
        match &guarded.0 {
            Ok(policy) => match selects(&policy.spec.namespace_selector, &labels) {
                Ok(true) => seen.taking_part.push(context.policies.used(policy)),
                Ok(false) => {}
                Err(why) => seen.unusable = Some(format!("ClusterSandboxPolicy {}: {why}", policy.name_any())),
            },
            // Whom it would select is not known, so it might be this namespace.
            Err(invalid) => {
                seen.unusable =
                    Some(format!("ClusterSandboxPolicy {} cannot be read", invalid.metadata.name.as_deref().unwrap_or_default()));
            }
        }
    }
    seen.taking_part.sort_by(|one, other| one.taken.name.cmp(&other.taken.name));
    seen.gone.retain(|name| !seen.taking_part.iter().any(|policy| policy.taken.name == *name));
    seen.labels = labels;
    if named.kind == PolicyKind::SandboxPolicy {
        let reference = ObjectRef::new(&named.name).within(namespace);
        match context.caches.policies.get(&reference).as_deref().map(|guarded| &guarded.0) {
            Some(Ok(policy)) => {
                seen.taking_part.push(context.policies.used(policy));
            }
            Some(Err(_)) => seen.unusable = Some(format!("SandboxPolicy {} cannot be read", named.name)),
            None => {}
        }
    }
    seen
}

/// Whether a run that is under way has lost an approval whose loss ends it.
pub(crate) fn has_lost_approval(run: &ScriptRun, approvals: &Approvals, now: Timestamp) -> bool {
    // What is not understood may be the approval itself.
    if approvals.unreadable.is_some() {
        return false;
    }
    let needed = run.status.as_ref().and_then(|status| status.approval.as_ref());
    needed.is_some_and(|needed| is_revoked(needed, &run.uid().unwrap_or_default(), &approvals.read, now))
}

/// What the policies keep of a run from what is stored of it. Of one that was not accepted yet the decision tells.
pub(crate) fn contained(run: &ScriptRun, policies: &PoliciesSeen) -> Containment {
    let requester = requester(run.annotations());
    let status = run.status.as_ref();
    let facts = Facts {
        script_hash: status.and_then(|status| status.script_hash.as_deref()),
        image: status.and_then(|status| status.image.as_deref()),
        preflight: status.and_then(|status| status.preflight.as_ref()),
        requester: requester.as_ref(),
        end_user: run.spec.end_user.as_ref(),
    };
    containment(&policies.taking_part, facts)
}

/// A policy by which the run was admitted and that is not among those that hold now: what it had masked is not known any more.
fn missing(run: &ScriptRun, policies: &PoliciesSeen) -> Option<String> {
    let status = run.status.as_ref()?;
    let admitted_by = &status.policies;
    // Every run is admitted by a policy: the status had room for no more than its conditions.
    if admitted_by.is_empty() && is_running(status) {
        return Some("the policies and grants by which the run was admitted could not be stored".into());
    }
    let is_there = |policy: &&TakenPolicy| policies.taking_part.iter().any(|part| part.taken.uid == policy.uid);
    let gone = admitted_by.iter().find(|policy| !is_there(policy))?;
    Some(format!("{:?} {}, by which the run was admitted, is gone", gone.kind, gone.name))
}

/// The text of the script. What the requester may not read himself is not read for him.
pub(crate) async fn source(run: &ScriptRun, context: &Context) -> Result<SourceSeen, Error> {
    if let Some(text) = &run.spec.script.source.inline {
        return Ok(SourceSeen::Text(text.clone().into_bytes()));
    }
    let Some(reference) = &run.spec.script.source.config_map_key_ref else {
        return Ok(SourceSeen::Refused(Reason::InvalidSpec, "the run names no source".into()));
    };
    let namespace = run.namespace().unwrap_or_default();
    let forbidden = |message| Ok(SourceSeen::Refused(Reason::SourceForbidden, message));
    match requester(run.annotations()) {
        Some(requester) if may_read(&requester, &namespace, ObjectKind::ConfigMap, &reference.name, context).await? => {}
        _ => return forbidden(format!("the requester may not read the ConfigMap {}", reference.name)),
    }
    let api: Api<Readable<ConfigMap>> = Api::namespaced(context.client.clone(), &namespace);
    let config_map = match within("the source ConfigMap", api.get_opt(&reference.name)).await? {
        Ok(Some(Readable(Ok(config_map)))) => config_map,
        Ok(Some(Readable(Err(unreadable)))) => {
            let message = format!("the ConfigMap {} cannot be read: {}", reference.name, unreadable.why);
            return Ok(SourceSeen::Refused(Reason::SourceNotFound, message));
        }
        Ok(None) => {
            return Ok(SourceSeen::Refused(Reason::SourceNotFound, format!("there is no ConfigMap {}", reference.name)));
        }
        Err(error) if code(&error) == Some(403) => {
            let object = Object { kind: ObjectKind::ConfigMap, name: reference.name.clone() };
            return forbidden(forbidden_to_the_operator(&object, &context.settings));
        }
        Err(error) => return Err(Error::read("the source ConfigMap")(error)),
    };
    let text = config_map.data.as_ref().and_then(|data| data.get(&reference.key)).map(|text| text.clone().into_bytes());
    let bytes = config_map.binary_data.as_ref().and_then(|data| data.get(&reference.key)).map(|bytes| bytes.0.clone());
    let missing = || SourceSeen::Refused(Reason::SourceNotFound, format!("the ConfigMap {} has no key {}", reference.name, reference.key));
    Ok(text.or(bytes).map_or_else(missing, SourceSeen::Text))
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{admitted, policies, started};
    use super::super::status::least;
    use super::*;

    #[test]
    fn a_policy_that_a_run_was_admitted_by_and_that_is_gone_is_missed() {
        let run = admitted(0);
        assert_eq!(missing(&run, &policies()), None);
        let gone = PoliciesSeen::default();
        assert!(missing(&run, &gone).is_some_and(|why| why == "ClusterSandboxPolicy baseline, by which the run was admitted, is gone"));
        let mut anew = policies();
        Arc::make_mut(&mut anew.taking_part[0]).taken.uid = "another".into();
        assert!(missing(&run, &anew).is_some());
    }

    /// Where a status had room for conditions alone, nothing tells any more which policies and Secrets cover what the script puts out.
    #[test]
    fn what_covers_the_output_of_a_run_with_the_least_status_is_not_known() {
        let mut run = started(0);
        assert_eq!(missing(&run, &policies()), None);
        run.status = Some(least(&run.status.unwrap()));
        assert!(missing(&run, &policies()).is_some());
    }
}
