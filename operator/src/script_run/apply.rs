//! Acting: the only place that creates, patches or deletes children, and that writes to a run.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::controller::Action;
use kube::{Api, ResourceExt as _};
use paddock_crds::{ColdReason, ConditionType, Phase, PolicyRef, Reason, RunPath, RunResult, ScriptRun, ScriptRunStatus, StoredResult};
use paddock_policy::QueueLimits;
use paddock_protocol::{ControlMessage, pieces};
use serde_json::json;

use super::guarded::drop_body;
use super::ledger::LivingPod;
use super::pod::{difference, is_job_of, render_job, render_pod};
use super::pod_facts::{PodFacts, PodSeen};
use super::queue::{Admission, Full};
use super::result::with_stored;
use super::session::{Listening, PodAge};
use super::status::{is_cut_short, least, smaller};
use super::step::{Seen, Step, Stop};
use super::validate::ValidRun;
use super::{Guarded, Watched, copies, events, observe, sandbox, telling};
use crate::audit::LogSeen;
use crate::context::{Context, entry};
use crate::egress::granted::permissions;
use crate::error::{Error, code, response, within};
use crate::metrics::Clock;
use crate::names::{FINALIZER, sandbox_namespace};
use crate::sandbox_namespace;

/// What became of a step.
#[derive(Debug)]
pub(crate) enum Done {
    /// It is done.
    Yes,
    /// It is not done yet: look again after this long, or when something happens.
    Wait(Duration),
    /// The queue answered.
    Queued(Admission),
    /// It has a slot, and with it a sandbox that waits: its pod, and the boot identifier of its runner.
    Given(Box<PodFacts>, String),
    /// The pod was not created, for this reason and with this detail for the administrator.
    NotCreated(Reason, String),
    /// What the script put out, as the status is to tell it.
    Told(Box<RunResult>),
    /// The run itself was written.
    Replaced(Box<Watched>),
    /// The run is gone, or will be.
    Gone,
}

/// How long to wait for a stream that is not open yet.
const SAY_PATIENCE: Duration = Duration::from_secs(2);

/// Does one step.
pub(crate) async fn apply(run: &ScriptRun, seen: &Seen, step: &Step, context: &Arc<Context>) -> Result<Done, Error> {
    let uid = run.uid().unwrap_or_default();
    match step {
        Step::AddFinalizer => add_finalizer(run, context).await,
        Step::PrepareSandbox => prepare(run, seen, context).await,
        Step::Admit => Ok(match reserve(run, seen, context) {
            Done::Queued(Admission::Admit) => sandbox::given(run, seen, context).unwrap_or(Done::Queued(Admission::Admit)),
            done => done,
        }),
        Step::AwaitApproval { .. } => Ok(await_approvals(run, seen, context)),
        Step::TakeSandbox if sandbox::take(run, seen, context) => Ok(Done::Yes),
        Step::CreatePod | Step::TakeSandbox => match valid(seen) {
            Some(valid) => create(run, valid, context).await,
            None => Ok(Done::Wait(Duration::from_secs(1))),
        },
        Step::Listen => listen(run, seen, context).await,
        Step::Refuse(_) => {
            if let Some(Err(refused)) = &seen.decision {
                context.policies.failed(&refused.failed);
            }
            Ok(Done::Yes)
        }
        Step::SendStart { boot, digest } => {
            let held = context.sandboxes.job_of(&uid).and_then(|job| job.files);
            let mut messages = held.map(|files| pieces(&files)).unwrap_or_default();
            messages.push(ControlMessage::Start { digest: digest.clone(), boot: boot.clone(), token: token(run, context) });
            let sent = context.sessions.say(&uid, messages, SAY_PATIENCE).await;
            Ok(if sent { Done::Yes } else { Done::Wait(Duration::from_millis(200)) })
        }
        Step::StopPod(how) => stop(run, seen, *how, context).await,
        Step::ReadLog => read_log(run, seen, context).await,
        Step::RemovePod => remove_pod(run, seen, context).await,
        Step::Release => release(run, context).await,
        Step::DeleteRun => delete_run(run, context).await,
        Step::Leave | Step::Rest { .. } | Step::StandBack(_) | Step::Hold(..) | Step::RecordStart { .. } | Step::RecordStop(_) => {
            Ok(Done::Yes)
        }
        Step::RecordResult => tell(run, seen, context).await,
        Step::Finish(_) => {
            // The status is for the author of the script; what the kubelet said is for the administrator.
            if let PodSeen::Present(pod) = &seen.pod {
                let ended = pod.ended().cloned().unwrap_or_default();
                let (exit_code, container, message) = (ended.exit_code, ended.container_reason, ended.message);
                tracing::info!(
                    pod = pod.name,
                    node = pod.node,
                    exit_code,
                    container,
                    reason = ended.pod_reason,
                    message,
                    "the pod has ended"
                );
            }
            if is_cut_short(run) { tell(run, seen, context).await } else { Ok(Done::Yes) }
        }
    }
}

/// What the runner shows the egress gateway. A run that was granted nothing there gets none.
fn token(run: &ScriptRun, context: &Context) -> Option<String> {
    permissions(run.status.as_ref()?).next()?;
    Some(context.results.sealing_key.token_of_run(&run.uid().unwrap_or_default()))
}

pub(super) fn valid(seen: &Seen) -> Option<&ValidRun> {
    seen.decision.as_ref().and_then(|decision| decision.as_ref().ok()).map(AsRef::as_ref)
}

fn runs(run: &ScriptRun, context: &Context) -> Api<Guarded> {
    Api::namespaced(context.client.clone(), &run.namespace().unwrap_or_default())
}

fn pods(run: &ScriptRun, context: &Context) -> (Api<Pod>, String, String) {
    let namespace = sandbox_namespace(&run.namespace().unwrap_or_default());
    (Api::namespaced(context.client.clone(), &namespace), namespace, sandbox::name_of_pod(run, context))
}

/// A conflict is no error of infrastructure: the pass is taken again on what is stored now.
fn on_write(what: &'static str) -> impl FnOnce(kube::Error) -> Error {
    move |error| {
        if code(&error) == Some(409) { Error::Conflict } else { Error::write(what)(error) }
    }
}

async fn add_finalizer(run: &ScriptRun, context: &Context) -> Result<Done, Error> {
    let mut finalizers = run.finalizers().to_vec();
    finalizers.push(FINALIZER.to_owned());
    write_finalizers(run, &finalizers, context).await
}

async fn release(run: &ScriptRun, context: &Context) -> Result<Done, Error> {
    let kept: Vec<String> = run.finalizers().iter().filter(|finalizer| *finalizer != FINALIZER).cloned().collect();
    if kept.len() < run.finalizers().len() {
        write_finalizers(run, &kept, context).await?;
    }
    context.forget(run);
    context.wake_waiting(&run.namespace().unwrap_or_default());
    Ok(Done::Gone)
}

/// A run that cannot be read never starts. Deleted, it is let go as soon as no pod of it is left.
pub(crate) async fn release_unreadable(metadata: &ObjectMeta, context: &Context) -> Result<Action, Error> {
    let finalizers = metadata.finalizers.clone().unwrap_or_default();
    if metadata.deletion_timestamp.is_none() || !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
        return Ok(Action::await_change());
    }
    let (uid, namespace) = (metadata.uid.clone().unwrap_or_default(), metadata.namespace.clone().unwrap_or_default());
    // Its pod, if it was readable once, is removed as one without a run as soon as it is gone from the cache.
    let kept: Vec<&String> = finalizers.iter().filter(|finalizer| *finalizer != FINALIZER).collect();
    let patch = json!({ "metadata": { "finalizers": kept, "uid": uid } });
    let api: Api<Guarded> = Api::namespaced(context.client.clone(), &namespace);
    let name = metadata.name.clone().unwrap_or_default();
    match within("the finalizer", api.patch_metadata(&name, &PatchParams::default(), &Patch::Merge(&patch))).await? {
        Err(error) if code(&error) != Some(404) => Err(on_write("the finalizer")(error)),
        _ => Ok(Action::await_change()),
    }
}

async fn write_finalizers(run: &ScriptRun, finalizers: &[String], context: &Context) -> Result<Done, Error> {
    let patch = json!({ "metadata": { "finalizers": finalizers, "resourceVersion": run.resource_version(), "uid": run.uid() } });
    match within("the finalizer", runs(run, context).patch(&run.name_any(), &PatchParams::default(), &Patch::Merge(&patch))).await? {
        Ok(newer) => {
            let newer = newer.0.map_err(|unreadable| Error::Unreadable { why: unreadable.why })?;
            context.remember(&newer);
            Ok(Done::Replaced(Box::new(newer)))
        }
        Err(error) if code(&error) == Some(404) => Ok(gone(run, context)),
        Err(error) => Err(on_write("the finalizer")(error)),
    }
}

fn gone(run: &ScriptRun, context: &Context) -> Done {
    context.forget(run);
    Done::Gone
}

async fn prepare(run: &ScriptRun, seen: &Seen, context: &Context) -> Result<Done, Error> {
    let wanted = valid(seen).and_then(|valid| observe::wanted(run, valid, context));
    let Some(wanted) = wanted else {
        return Ok(Done::Wait(Duration::from_millis(200)));
    };
    // A foreign namespace shows in the cache in a moment; until then nothing is done.
    Ok(if sandbox_namespace::prepare(&wanted, context).await? { Done::Yes } else { Done::Wait(Duration::from_millis(200)) })
}

fn reserve(run: &ScriptRun, seen: &Seen, context: &Context) -> Done {
    let Some(valid) = valid(seen) else {
        return Done::Wait(Duration::from_secs(1));
    };
    let living = |each: &mut dyn FnMut(LivingPod<'_>)| context.pods.living(each);
    let limits_of = |namespace: &str, policy: &PolicyRef| context.queue_limits(namespace, policy);
    let now = context.now().as_microsecond();
    // While nothing can be recorded nobody is admitted; the bounds of the queue hold all the same.
    let own = valid.grant.queue;
    let own = QueueLimits { suspended: own.suspended || seen.log == LogSeen::Behind, ..own };
    let admission = context.ledger.reserve(entry(run), own, context.settings.cluster_limits, living, limits_of, now);
    if matches!(admission, Admission::Wait { full: Full::Cluster, .. }) {
        context.wake_next(&valid.namespace, Some(&valid.name));
    }
    Done::Queued(admission)
}

/// A run that has been told once what it waits for is not sent away.
fn await_approvals(run: &ScriptRun, seen: &Seen, context: &Context) -> Done {
    let Some(valid) = valid(seen) else {
        return Done::Wait(Duration::from_secs(1));
    };
    let is_new = run.status.as_ref().and_then(|status| status.approval.as_ref()).is_none_or(|approval| approval.demanded.is_empty());
    if context.ledger.await_approvals(entry(run), valid.grant.queue.queued as usize) || !is_new {
        Done::Yes
    } else {
        Done::Queued(Admission::Refuse(Full::Tenant))
    }
}

/// Pod first, then the ConfigMap that it mounts, so that the ConfigMap can belong to the pod and go with it. The kubelet waits for it.
async fn create(run: &ScriptRun, valid: &ValidRun, context: &Context) -> Result<Done, Error> {
    let (api, namespace, name) = pods(run, context);
    context.pods.watch(&namespace);
    let rendered = render_pod(valid, &context.settings);
    let pod = match within("the pod", api.create(&PostParams::default(), &rendered)).await? {
        Ok(pod) => pod,
        Err(error) if code(&error) == Some(409) => {
            let Some(pod) = within("the pod", api.get_opt(&name)).await?.map_err(Error::read("the pod"))? else {
                return Ok(Done::Wait(Duration::from_millis(100)));
            };
            pod
        }
        Err(error) => {
            let done = not_created(error)?;
            if matches!(done, Done::NotCreated(Reason::QuotaExceeded, _)) {
                context.sandboxes.give_way(&valid.namespace, &valid.uid, &valid.grant);
            }
            return Ok(done);
        }
    };
    if let Some(what) = difference(&rendered, &pod) {
        tracing::warn!(difference = what, "the stored pod is not the rendered one");
        let is_ours = pod.annotations().get(crate::names::JOB_DIGEST) == Some(&valid.digest);
        if !is_ours {
            // Somebody else's, so it is neither watched nor ever removed.
            return Ok(Done::NotCreated(Reason::NameTaken, "a pod with the name of this run's pod exists".into()));
        }
        context.pods.created(&namespace, &valid.uid, &pod);
        return Ok(Done::NotCreated(Reason::PodMutated, format!("difference: {what}")));
    }
    context.pods.created(&namespace, &valid.uid, &pod);
    let pod_uid = pod.uid().unwrap_or_default();
    let done = ensure_children(valid, &pod_uid, context).await?;
    if matches!(done, Done::Yes) {
        start_listening(run, &pod_uid, PodAge::New, context);
    }
    Ok(done)
}

fn is_of_this_run(stored: &ConfigMap, valid: &ValidRun) -> bool {
    stored.labels().get(crate::names::RUN_UID) == Some(&valid.uid)
}

/// What the pod mounts.
async fn ensure_children(valid: &ValidRun, pod_uid: &str, context: &Context) -> Result<Done, Error> {
    match copies::ensure(valid, pod_uid, context).await? {
        Done::Yes => ensure_job(valid, pod_uid, context).await,
        other => Ok(other),
    }
}

/// Creates the ConfigMap of the job, or finds it as it should be.
async fn ensure_job(valid: &ValidRun, pod_uid: &str, context: &Context) -> Result<Done, Error> {
    let job = render_job(valid, pod_uid);
    let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), &sandbox_namespace(&valid.namespace));
    match within("the job", api.create(&PostParams::default(), &job)).await? {
        Ok(_) => Ok(Done::Yes),
        Err(error) if code(&error) == Some(409) => {
            let stored = within("the job", api.get(&job.name_any())).await?.map_err(Error::read("the job"))?;
            // It belongs to an earlier pod of this run and goes with it.
            if stored.metadata.owner_references != job.metadata.owner_references && is_of_this_run(&stored, valid) {
                return Ok(Done::Wait(Duration::from_millis(500)));
            }
            if is_job_of(&job, &stored) {
                return Ok(Done::Yes);
            }
            Ok(Done::NotCreated(Reason::NameTaken, "a ConfigMap with the name of the job exists".into()))
        }
        Err(error) => Err(Error::write("the job")(error)),
    }
}

/// Sorts what the API server says when it does not take a pod.
fn not_created(error: kube::Error) -> Result<Done, Error> {
    let Some(answer) = response(&error).filter(|answer| matches!(answer.code, 400 | 403 | 422)) else {
        return Err(Error::write("the pod")(error));
    };
    let text = answer.message.clone();
    let reason = if text.contains("exceeded quota") {
        Reason::QuotaExceeded
    } else if text.contains("RuntimeClass") {
        Reason::RuntimeClassUnavailable
    } else if answer.code == 403 && text.contains("cannot create resource") {
        // The operator's own rights: they come a moment after the RoleBinding.
        return Err(Error::write("the pod")(error));
    } else {
        Reason::PodRejected
    };
    // A full quota is asked once a second.
    if reason == Reason::QuotaExceeded {
        tracing::debug!(answer = text, reason = reason.as_str(), "the pod was not created");
    } else {
        tracing::info!(answer = text, reason = reason.as_str(), "the pod was not created");
    }
    Ok(Done::NotCreated(reason, "the cluster refused the pod of this run".into()))
}

/// Another process may have made the pod and died before it made the job.
async fn listen(run: &ScriptRun, seen: &Seen, context: &Context) -> Result<Done, Error> {
    let PodSeen::Present(pod) = &seen.pod else { return Ok(Done::Yes) };
    let done = match valid(seen).filter(|_| !pod.has_waited) {
        Some(valid) => ensure_children(valid, &pod.uid, context).await?,
        None => Done::Yes,
    };
    if matches!(done, Done::Yes) {
        start_listening(run, &pod.uid, PodAge::Unknown, context);
    }
    Ok(done)
}

fn start_listening(run: &ScriptRun, pod_uid: &str, age: PodAge, context: &Context) {
    context.sessions.listen(&run.uid().unwrap_or_default(), listening(run, pod_uid, age, context));
    context.metrics.sessions(context.sessions.len());
}

fn listening(run: &ScriptRun, pod_uid: &str, age: PodAge, context: &Context) -> Listening {
    let (_, namespace, pod) = pods(run, context);
    Listening {
        client: context.client.clone(),
        namespace,
        pod,
        pod_uid: pod_uid.to_owned(),
        key: sandbox::key_of(run, context),
        boot: run.status.as_ref().and_then(|status| status.pod.as_ref()?.boot.clone()),
        age,
        wake: context.waker(run),
    }
}

/// A stop message is quick; the deadline of the pod is sure. The pod is not deleted: that would take its log along.
async fn stop(run: &ScriptRun, seen: &Seen, how: Stop, context: &Context) -> Result<Done, Error> {
    let uid = run.uid().unwrap_or_default();
    if let PodSeen::Present(pod) = &seen.pod {
        start_listening(run, &pod.uid, PodAge::Unknown, context);
    }
    let message = match how {
        Stop::Gracefully => ControlMessage::Stop {},
        Stop::AtOnce => ControlMessage::Kill {},
    };
    context.sessions.say(&uid, vec![message], SAY_PATIENCE).await;
    let (api, _, name) = pods(run, context);
    let patch = json!({ "spec": { "activeDeadlineSeconds": 1 } });
    match within("the deadline of the pod", api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch))).await? {
        Ok(_) => {}
        // 422: it has ended meanwhile, or the deadline is 1 already.
        Err(error) if matches!(code(&error), Some(404 | 422)) => {}
        Err(error) => return Err(on_write("the deadline of the pod")(error)),
    }
    context.sessions.stopped(&uid, how);
    Ok(Done::Yes)
}

/// How long after its last possible second the result of a run is offered to a store that does not take it.
const STORE_PATIENCE_SECONDS: i64 = 120;

/// Makes what the run tells of its output, and stores what is too large for the status before the status tells where it is.
async fn tell(run: &ScriptRun, seen: &Seen, context: &Context) -> Result<Done, Error> {
    let transcript = &seen.stream.transcript;
    let produced = match telling::tell(run, transcript, &seen.output, context).await {
        // It must not go on for ever, whatever the cause is.
        Err(Error::Process { source }) if is_too_late(run, context.now()) => {
            tracing::warn!(error = %source, "the output is given up: it could not be masked");
            telling::told(transcript, &Err("it could not be masked in time".into()))
        }
        produced => produced?,
    };
    let Some(produced) = produced else { return Ok(Done::Yes) };
    let stored = match &produced.to_store {
        Some(bytes) => store(run, bytes.clone(), context).await?,
        None => None,
    };
    Ok(Done::Told(Box::new(with_stored(produced, stored.as_ref()))))
}

/// `None`: there is no store.
async fn store(run: &ScriptRun, bytes: Vec<u8>, context: &Context) -> Result<Option<Result<StoredResult, String>>, Error> {
    let Some(store) = &context.results.store else { return Ok(None) };
    match store.put(&run.namespace().unwrap_or_default(), &run.uid().unwrap_or_default(), bytes).await {
        Ok(stored) => Ok(Some(Ok(stored))),
        Err(error) if is_too_late(run, context.now()) => {
            tracing::warn!(error = format!("{error:#}"), "the result is given up: the store did not take it");
            Ok(Some(Err("the store did not take it".into())))
        }
        Err(source) => Err(Error::Store { source }),
    }
}

fn is_too_late(run: &ScriptRun, now: Timestamp) -> bool {
    let status = run.status.clone().unwrap_or_default();
    let started = status.clocks.and_then(|clocks| clocks.started).map_or(now, |MicroTime(time)| time);
    now.as_second() - started.as_second() > status.timeout_seconds.unwrap_or(0) + STORE_PATIENCE_SECONDS
}

async fn read_log(run: &ScriptRun, seen: &Seen, context: &Context) -> Result<Done, Error> {
    if let PodSeen::Present(pod) = &seen.pod {
        context.sessions.read_to_the_end(&run.uid().unwrap_or_default(), listening(run, &pod.uid, PodAge::Unknown, context)).await?;
    }
    Ok(Done::Yes)
}

async fn remove_pod(run: &ScriptRun, seen: &Seen, context: &Context) -> Result<Done, Error> {
    let PodSeen::Present(pod) = &seen.pod else {
        return Ok(Done::Yes);
    };
    let (api, ..) = pods(run, context);
    let preconditions = Preconditions { uid: Some(pod.uid.clone()), resource_version: None };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    let answer = within("the pod", api.delete(&pod.name, &params)).await?;
    if pod.has_waited && answer.is_ok() {
        context.sandboxes.let_go(&run.uid().unwrap_or_default());
    }
    match answer {
        Ok(_) => Ok(Done::Wait(Duration::from_secs(5))),
        Err(error) if matches!(code(&error), Some(404 | 409)) => Ok(Done::Wait(Duration::from_millis(500))),
        Err(error) => Err(Error::write("the pod")(error)),
    }
}

async fn delete_run(run: &ScriptRun, context: &Context) -> Result<Done, Error> {
    let preconditions = Preconditions { uid: run.uid(), resource_version: run.resource_version() };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    match within("the run", runs(run, context).delete(&run.name_any(), &params)).await? {
        Ok(_) => Ok(Done::Wait(Duration::from_secs(5))),
        Err(error) if code(&error) == Some(404) => Ok(gone(run, context)),
        Err(error) => Err(on_write("the run")(error)),
    }
}

/// Writes the status, fenced by the resourceVersion that it was computed from. What the API server does not take is tried again
/// without what the script produced, and at last with the conditions alone.
pub(crate) async fn write_status(watched: &Watched, status: ScriptRunStatus, context: &Arc<Context>) -> Result<Watched, Error> {
    let run = &watched.run;
    let answer = Box::pin(put_status(watched, status.clone(), context)).await;
    let answer = match answer {
        Err(Error::Write { source, .. }) if is_too_much(&source) && status.result.is_some() => {
            tracing::warn!(error = %source, "the status was refused and is written without the output");
            Box::pin(put_status(watched, smaller(&status), context)).await
        }
        answer => answer,
    };
    let answer = match answer {
        Err(Error::Write { source, .. }) if is_too_much(&source) => {
            tracing::warn!(error = %source, "the status was refused and only its conditions are written");
            Box::pin(put_status(watched, least(&status), context)).await
        }
        answer => answer,
    };
    let answer = match answer {
        Err(Error::Write { source, .. }) if is_too_large(&source) => Err(Error::NoRoom),
        answer => answer,
    };
    let uid = run.uid().unwrap_or_default();
    // A slot stays assumed when the write fails: whether a late answer stored it is not known, and this is the safe side.
    let newer = answer?;
    context.remember(&newer);
    context.succeeded(&uid);
    // Also what there was no room for in the object.
    context.audit.tell_of_run(&newer.run, &status, context.now());
    after_write(run, &newer.run, context);
    Ok(watched.succeeded_by(newer))
}

/// The API server, or etcd behind it (which it tells as a 500), does not take an object of this size or shape.
fn is_too_much(error: &kube::Error) -> bool {
    response(error).is_some_and(|answer| matches!(answer.code, 400 | 413 | 422) || answer.message.contains("too large"))
}

/// etcd does not take the object, whatever is in the status.
fn is_too_large(error: &kube::Error) -> bool {
    response(error).is_some_and(|answer| answer.code == 413 || answer.message.contains("too large"))
}

/// For a run whose object is so large that no status fits: nothing can be told in it. Its pod is removed, and the finalizer, so that it can be
/// deleted: with a finalizer on, even a deletion would need room.
pub(crate) async fn give_up(run: &ScriptRun, seen: &Seen, context: &Context) -> Result<Action, Error> {
    tracing::warn!("the object of the run has no room for a status; nothing more is done with it");
    context.metrics.error(Error::NoRoom.category());
    if let PodSeen::Present(pod) = &seen.pod {
        if !pod.deleting {
            remove_pod(run, seen, context).await?;
        }
        return Ok(Action::requeue(Duration::from_secs(5)));
    }
    context.audit.tell_of_deletion(run, context.now());
    release(run, context).await?;
    Ok(Action::await_change())
}

/// The API server takes the status alone and keeps the spec that it has, so the body need not travel.
async fn put_status(watched: &Watched, status: ScriptRunStatus, context: &Context) -> Result<Watched, Error> {
    let mut wanted = watched.run.clone();
    wanted.status = Some(status);
    drop_body(&mut wanted);
    let name = wanted.name_any();
    let wanted = Guarded(Ok(Watched { run: wanted, input: None, schema: None, body: watched.body }));
    let answer = within("the status", runs(&watched.run, context).replace_status(&name, &PostParams::default(), &wanted)).await?;
    answer.map_err(on_write("the status"))?.0.map_err(|unreadable| Error::Unreadable { why: unreadable.why })
}

/// Pools go by how many runs wanted a sandbox of theirs, and since when.
fn note_arrival(run: &ScriptRun, status: &ScriptRunStatus, context: &Context) {
    if !matches!((&status.path, &status.cold_because), (Some(RunPath::Warm), _) | (_, Some(ColdReason::NoneFree))) {
        return;
    }
    let admitted = status.clocks.as_ref().and_then(|clocks| clocks.admitted.clone());
    let ago = admitted.and_then(|MicroTime(admitted)| Duration::try_from(context.now().duration_since(admitted)).ok());
    let tenant = run.namespace().unwrap_or_default();
    context.sandboxes.came((&tenant, &run.spec.policy_ref, &run.spec.script.runtime), ago.unwrap_or_default());
}

/// Metrics, Events and slots follow what is stored, never what is only intended.
fn after_write(before: &ScriptRun, after: &ScriptRun, context: &Arc<Context>) {
    let had = |type_: &ConditionType| before.status.as_ref().is_some_and(|status| status.is_true(type_));
    let Some(status) = &after.status else { return };
    let new = |type_: &ConditionType| status.is_true(type_) && !had(type_);
    for (clock, seconds) in reached(before, after) {
        context.metrics.reached(clock, seconds);
    }
    let waited = before.status.as_ref().is_some_and(|status| status.condition(&ConditionType::Admitted).is_some());
    if new(&ConditionType::Admitted) && waited {
        context.wake_waiting(&after.namespace().unwrap_or_default());
    }
    if new(&ConditionType::Started) {
        tracing::info!("started");
        note_arrival(after, status, context);
        spawn_event(after, Step::RecordStart { boot: String::new() }, context);
    }
    if new(&ConditionType::Finished) {
        let reason = status.condition(&ConditionType::Finished).map_or(Reason::Lost, |condition| condition.reason.clone());
        let refusal = status.condition(&ConditionType::Accepted).filter(|_| reason == Reason::Refused).map(|accepted| &accepted.reason);
        tracing::info!(reason = reason.as_str(), refusal = refusal.map(Reason::as_str), "finished");
        let phase = status.phase.clone().unwrap_or(Phase::Lost);
        context.metrics.finished(&after.namespace().unwrap_or_default(), &phase, &reason);
        if let Some(refusal) = refusal {
            context.metrics.refused(refusal);
        }
        if let Some(traces) = &context.traces {
            traces.send(after);
        }
        context.ledger.forget(&after.uid().unwrap_or_default());
        context.forget_given(&after.uid().unwrap_or_default());
        context.sandboxes.let_go(&after.uid().unwrap_or_default());
        context.ended(after);
        context.sessions.close(&after.uid().unwrap_or_default());
        context.metrics.sessions(context.sessions.len());
        spawn_event(after, Step::RecordResult, context);
    }
}

/// The clocks that a write has set, in seconds from the first sight of the run; that of the first sight from its creation.
fn reached(before: &ScriptRun, after: &ScriptRun) -> Vec<(Clock, f64)> {
    let clocks = |run: &ScriptRun| run.status.as_ref().and_then(|status| status.clocks.clone()).unwrap_or_default();
    let (old, new) = (clocks(before), clocks(after));
    let created = after.metadata.creation_timestamp.as_ref().map(|Time(time)| *time);
    let received = new.received.as_ref().map(|MicroTime(time)| *time);
    let all = [
        (Clock::Received, old.received, new.received, created),
        (Clock::Admitted, old.admitted, new.admitted, received),
        (Clock::Started, old.started, new.started, received),
        (Clock::FirstOutput, old.first_output, new.first_output, received),
        (Clock::ResultReady, old.result_ready, new.result_ready, received),
        (Clock::Finished, old.finished, new.finished, received),
    ];
    let of = |(clock, old, new, since): (Clock, Option<MicroTime>, Option<MicroTime>, Option<Timestamp>)| {
        let MicroTime(new) = new.filter(|_| old.is_none())?;
        Some((clock, new.duration_since(since?).as_secs_f64().max(0.0)))
    };
    all.into_iter().filter_map(of).collect()
}

/// An Event must not hold up the run.
fn spawn_event(run: &ScriptRun, step: Step, context: &Arc<Context>) {
    let (run, context) = (run.clone(), context.clone());
    tokio::spawn(async move { events::publish(&run, &step, &context).await });
}
