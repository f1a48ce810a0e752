//! What reading and writing make of each answer of the API server.

use http::Method;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::ObjectMeta;
use paddock_crds::{ConfigMapKeyRef, Reason, RunResult, ScriptRun, ScriptRunStatus, Source};
use rstest::rstest;
use serde_json::{Value, json};

use super::apply::{Done, apply, give_up, write_status};
use super::fixtures::{POD_UID, a_pod, a_run, admitted, decided, present, seen, started, valid};
use super::observe::{observe, whole};
use super::pod::{render_job, render_pod};
use super::pod_facts::PodSeen;
use super::queue::Admission;
use super::step::{Seen, Step};
use super::{Body, Watched};
use crate::audit::LogSeen;
use crate::error::Error;
use crate::fake_api::{Exchange, context, expect};
use crate::script_run::fixtures::settings;

const RUN: &str = "/apis/paddock.dev/v1alpha1/namespaces/team/scriptruns/run";
const STATUS: &str = "/apis/paddock.dev/v1alpha1/namespaces/team/scriptruns/run/status";
const PODS: &str = "/api/v1/namespaces/sbx-team/pods";
const POD: &str = "/api/v1/namespaces/sbx-team/pods/sr-uid-1";
const JOBS: &str = "/api/v1/namespaces/sbx-team/configmaps";
const JOB: &str = "/api/v1/namespaces/sbx-team/configmaps/sr-uid-1";
const LOG: &str = "/api/v1/namespaces/sbx-team/pods/sr-uid-1/log";
const REVIEWS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
const SOURCE: &str = "/api/v1/namespaces/team/configmaps/scripts";

fn watched(run: ScriptRun) -> Watched {
    Watched { run, input: None, schema: None, body: Body::Here }
}

/// The pod of the run as an API server stores it.
fn stored_pod(run: &ScriptRun) -> Value {
    let mut pod = serde_json::to_value(render_pod(&valid(run), &settings())).unwrap();
    pod["metadata"]["uid"] = json!(POD_UID);
    pod
}

fn stored_job(run: &ScriptRun) -> Value {
    serde_json::to_value(render_job(&valid(run), POD_UID)).unwrap()
}

fn with_pod(run: &ScriptRun) -> Seen {
    Seen { pod: present(a_pod(run)), ..seen(run) }
}

async fn done(run: &ScriptRun, seen: &Seen, step: Step, exchanges: Vec<Exchange>) -> Result<Done, Error> {
    let (context, fake) = context(exchanges, &[]);
    let done = apply(run, seen, &step, &context).await;
    fake.finished().await;
    done
}

#[rstest]
#[case::not_there(404, "", Ok(true))]
#[case::server_in_trouble(500, "etcd", Err("read"))]
#[case::overloaded(429, "later", Err("read"))]
#[tokio::test]
async fn a_pod_is_absent_only_if_the_api_server_says_so(#[case] code: u16, #[case] message: &str, #[case] expected: Result<bool, &str>) {
    let (context, fake) = context(vec![expect(Method::GET, POD, code, json!(message))], &[]);
    let answer = observe(&watched(admitted(0)), &context).await;
    let is_absent = answer.map(|seen| seen.pod == PodSeen::Absent);
    assert_eq!(is_absent.as_ref().map_err(Error::category), expected.as_ref().map_err(|category| *category));
    fake.finished().await;
}

#[rstest]
#[case::namespace_gone(&[], true)]
#[case::right_missing(&["sbx-team"], false)]
#[tokio::test]
async fn a_forbidden_pod_is_absent_only_with_its_namespace(#[case] namespaces: &[&str], #[case] absent: bool) {
    let named =
        |name: &&str| Namespace { metadata: ObjectMeta { name: Some((*name).into()), ..ObjectMeta::default() }, ..Namespace::default() };
    let namespaces: Vec<Namespace> = namespaces.iter().map(named).collect();
    let (context, fake) = context(vec![expect(Method::GET, POD, 403, json!("forbidden"))], &namespaces);
    let answer = observe(&watched(admitted(0)), &context).await;
    assert_eq!(answer.is_ok_and(|seen| seen.pod == PodSeen::Absent), absent);
    fake.finished().await;
}

fn review(allowed: bool) -> Exchange {
    expect(Method::POST, REVIEWS, 201, json!({ "spec": {}, "status": { "allowed": allowed } })).holding("\"user\":\"jane\"")
}

fn from_config_map() -> ScriptRun {
    let mut run = a_run();
    let reference = ConfigMapKeyRef { name: "scripts".into(), key: "main.py".into() };
    run.spec.script.source = Source { inline: None, config_map_key_ref: Some(reference) };
    run
}

#[rstest]
#[case::requester_may_not(vec![review(false)], Some(Reason::SourceForbidden))]
#[case::not_there(vec![review(true), expect(Method::GET, SOURCE, 404, json!(""))], Some(Reason::SourceNotFound))]
#[case::no_such_key(vec![review(true), expect(Method::GET, SOURCE, 200, json!({ "metadata": {}, "data": { "x": "" } }))], Some(Reason::SourceNotFound))]
#[case::operator_may_not(vec![review(true), expect(Method::GET, SOURCE, 403, json!("forbidden"))], Some(Reason::SourceForbidden))]
#[case::trouble(vec![review(true), expect(Method::GET, SOURCE, 503, json!("later"))], None)]
#[case::trouble_with_the_review(vec![expect(Method::POST, REVIEWS, 500, json!("webhook"))], None)]
#[tokio::test]
async fn a_source_is_refused_or_tried_again_and_never_guessed(#[case] exchanges: Vec<Exchange>, #[case] refused: Option<Reason>) {
    let (context, fake) = context(exchanges, &[]);
    let answer = super::observe::source(&from_config_map(), &context).await;
    match (answer, refused) {
        (Ok(super::validate::SourceSeen::Refused(reason, _)), Some(expected)) => assert_eq!(reason, expected),
        (Err(_), None) => {}
        (answer, expected) => panic!("{answer:?} instead of {expected:?}"),
    }
    fake.finished().await;
}

#[rstest]
#[case::gone(404, json!(""), None)]
#[case::followed_by_another(200, json!("another"), None)]
#[case::there(200, json!("itself"), Some(Body::Here))]
#[tokio::test]
async fn a_body_is_fetched_from_this_very_run(#[case] code: u16, #[case] answer: Value, #[case] expected: Option<Body>) {
    let mut stored = serde_json::to_value(a_run()).unwrap();
    if answer == json!("another") {
        stored["metadata"]["uid"] = json!("another");
    }
    let answer = if code == 200 { stored } else { answer };
    let (context, fake) = context(vec![expect(Method::GET, RUN, code, answer)], &[]);
    let slim = Watched { body: Body::Left { bytes: 5000 }, ..watched(a_run()) };
    assert_eq!(whole(slim, &context).await.unwrap().map(|watched| watched.body), expected);
    fake.finished().await;
}

#[rstest]
#[case::quota(403, "pods \"sr-uid-1\" is forbidden: exceeded quota: paddock-sandbox", Some(Reason::QuotaExceeded))]
#[case::no_class(403, "pod rejected: RuntimeClass \"gvisor-nonet\" not found", Some(Reason::RuntimeClassUnavailable))]
#[case::admission(403, "denied by a webhook", Some(Reason::PodRejected))]
#[case::invalid(422, "Pod is invalid", Some(Reason::PodRejected))]
#[case::rights_not_there_yet(403, "User \"operator\" cannot create resource \"pods\"", None)]
#[case::trouble(500, "etcdserver: leader changed", None)]
#[tokio::test]
async fn a_pod_that_is_not_taken_is_a_refusal_or_tried_again(#[case] code: u16, #[case] message: &str, #[case] refused: Option<Reason>) {
    let run = admitted(0);
    let answer = done(&run, &seen(&run), Step::CreatePod, vec![expect(Method::POST, PODS, code, json!(message))]).await;
    match (answer, refused) {
        (Ok(Done::NotCreated(reason, _)), Some(expected)) => assert_eq!(reason, expected),
        (Err(error), None) => assert_eq!(error.category(), "write"),
        (answer, expected) => panic!("{answer:?} instead of {expected:?}"),
    }
}

fn exists() -> Exchange {
    expect(Method::POST, PODS, 409, json!("already exists"))
}

#[tokio::test]
async fn a_pod_that_exists_is_compared_as_a_whole() {
    let run = admitted(0);
    let own = vec![exists(), expect(Method::GET, POD, 200, stored_pod(&run)), expect(Method::POST, JOBS, 201, stored_job(&run))];
    assert!(matches!(done(&run, &seen(&run), Step::CreatePod, own).await, Ok(Done::Yes)));

    let mut foreign = stored_pod(&run);
    foreign["metadata"]["annotations"] = json!({});
    let answer = done(&run, &seen(&run), Step::CreatePod, vec![exists(), expect(Method::GET, POD, 200, foreign)]).await;
    assert!(matches!(answer, Ok(Done::NotCreated(Reason::NameTaken, _))), "{answer:?}");

    let mut altered = stored_pod(&run);
    altered["spec"]["containers"][0]["command"] = json!(["/bin/sh"]);
    let answer = done(&run, &seen(&run), Step::CreatePod, vec![exists(), expect(Method::GET, POD, 200, altered)]).await;
    assert!(matches!(answer, Ok(Done::NotCreated(Reason::PodMutated, _))), "{answer:?}");

    let gone = vec![exists(), expect(Method::GET, POD, 404, json!(""))];
    assert!(matches!(done(&run, &seen(&run), Step::CreatePod, gone).await, Ok(Done::Wait(_))));
}

#[tokio::test]
async fn a_job_that_exists_is_compared_as_a_whole() {
    let run = admitted(0);
    let job_exists = || expect(Method::POST, JOBS, 409, json!("already exists"));
    let answer = |stored| done_with_job(&run, vec![job_exists(), expect(Method::GET, JOB, 200, stored)]);
    assert!(matches!(answer(stored_job(&run)).await, Ok(Done::Yes)));

    let mut of_an_earlier_pod = stored_job(&run);
    of_an_earlier_pod["metadata"]["ownerReferences"][0]["uid"] = json!("pod-0");
    assert!(matches!(answer(of_an_earlier_pod).await, Ok(Done::Wait(_))));

    let mut other_script = stored_job(&run);
    other_script["binaryData"]["script"] = json!("eA==");
    assert!(matches!(answer(other_script).await, Ok(Done::NotCreated(Reason::NameTaken, _))));

    let mut mutable = stored_job(&run);
    mutable["immutable"] = json!(false);
    assert!(matches!(answer(mutable).await, Ok(Done::NotCreated(Reason::NameTaken, _))));
}

async fn done_with_job(run: &ScriptRun, exchanges: Vec<Exchange>) -> Result<Done, Error> {
    done(run, &with_pod(run), Step::Listen, exchanges).await
}

#[rstest]
#[case::done(200, true)]
#[case::ended_meanwhile(422, true)]
#[case::gone(404, true)]
#[case::changed(409, false)]
#[case::trouble(500, false)]
#[tokio::test]
async fn a_stop_counts_only_when_the_deadline_is_set_or_needless(#[case] code: u16, #[case] is_stopped: bool) {
    let run = started(0);
    let answer = if code == 200 { stored_pod(&run) } else { json!("") };
    let (context, fake) = context(vec![expect(Method::PATCH, POD, code, answer).holding("\"activeDeadlineSeconds\":1")], &[]);
    // Nobody listens to this pod, so no stop message can be written.
    let seen = Seen { pod: PodSeen::Absent, ..seen(&run) };
    assert_eq!(apply(&run, &seen, &Step::StopPod(super::step::Stop::Gracefully), &context).await.is_ok(), is_stopped);
    fake.finished().await;
}

#[rstest]
#[case::gone(404, json!("not found"), Ok(()))]
#[case::no_container(400, json!("container is waiting to start"), Ok(()))]
#[case::kubelet_away(500, json!("dial tcp: connection refused"), Err("read"))]
#[tokio::test]
async fn a_log_is_read_to_its_end_or_read_again(#[case] code: u16, #[case] answer: Value, #[case] expected: Result<(), &str>) {
    let run = started(0);
    let answer = done(&run, &with_pod(&run), Step::ReadLog, vec![expect(Method::GET, LOG, code, answer)]).await;
    assert_eq!(answer.map(drop).as_ref().map_err(Error::category), expected.as_ref().map_err(|category| *category));
}

#[rstest]
#[case::under_way(200, true)]
#[case::gone(404, true)]
#[case::another_pod_of_this_name(409, true)]
#[case::trouble(500, false)]
#[tokio::test]
async fn a_pod_is_removed_by_its_uid(#[case] code: u16, #[case] is_fine: bool) {
    let run = admitted(0);
    let answer = if code == 200 { stored_pod(&run) } else { json!("") };
    let exchange = expect(Method::DELETE, POD, code, answer).holding("\"preconditions\":{\"uid\":\"pod-1\"}");
    assert_eq!(done(&run, &with_pod(&run), Step::RemovePod, vec![exchange]).await.is_ok(), is_fine);
}

#[rstest]
#[case::released(200, "gone")]
#[case::gone_before(404, "gone")]
#[case::changed(409, "conflict")]
#[case::trouble(503, "write")]
#[tokio::test]
async fn a_finalizer_is_taken_off_only_what_was_read(#[case] code: u16, #[case] expected: &str) {
    let run = a_run();
    let answer = if code == 200 { serde_json::to_value(&run).unwrap() } else { json!("") };
    let exchange = expect(Method::PATCH, RUN, code, answer).holding("\"resourceVersion\":\"1\"");
    let told = match done(&run, &seen(&run), Step::Release, vec![exchange]).await {
        Ok(Done::Gone) => "gone",
        Ok(other) => panic!("{other:?}"),
        Err(error) => error.category(),
    };
    assert_eq!(told, expected);
}

fn with_output() -> (Watched, ScriptRunStatus) {
    let run = started(0);
    let mut status = run.status.clone().unwrap();
    status.result = Some(RunResult { output: Some(json!({ "much": true })), ..RunResult::default() });
    (watched(run), status)
}

#[tokio::test]
async fn a_status_is_written_with_its_version_and_without_the_body() {
    let (watched, status) = with_output();
    let mut answer = serde_json::to_value(&watched.run).unwrap();
    answer["metadata"]["resourceVersion"] = json!("2");
    answer["status"] = serde_json::to_value(&status).unwrap();
    let exchange = expect(Method::PUT, STATUS, 200, answer).holding("\"resourceVersion\":\"1\"").holding("\"source\":{}");
    let (context, fake) = context(vec![exchange], &[]);
    let newer = write_status(&watched, status, &context).await.unwrap();
    assert_eq!((newer.run.metadata.resource_version.as_deref(), newer.body), (Some("2"), Body::Here));
    assert_eq!(newer.run.spec.script, watched.run.spec.script);
    fake.finished().await;
}

#[rstest]
#[case::changed(409, "the object has been modified", "conflict")]
#[case::trouble(500, "etcdserver: request timed out", "write")]
#[case::gone(404, "not found", "write")]
#[tokio::test]
async fn a_status_that_is_not_stored_is_computed_anew(#[case] code: u16, #[case] message: &str, #[case] expected: &str) {
    let (watched, status) = with_output();
    let (context, fake) = context(vec![expect(Method::PUT, STATUS, code, json!(message))], &[]);
    assert_eq!(write_status(&watched, status, &context).await.unwrap_err().category(), expected);
    fake.finished().await;
}

#[rstest]
#[case::invalid(422, "status.result.output: Invalid value")]
#[case::bad_request(400, "cannot be handled as a ScriptRun")]
#[case::too_large_for_the_server(413, "Request entity too large")]
#[case::too_large_for_etcd(500, "etcdserver: request is too large")]
#[tokio::test]
async fn a_status_that_is_refused_is_written_without_the_output(#[case] code: u16, #[case] message: &str) {
    let (watched, status) = with_output();
    let answer = serde_json::to_value(&watched.run).unwrap();
    let refused = expect(Method::PUT, STATUS, code, json!(message)).holding("\"much\":true");
    let taken = expect(Method::PUT, STATUS, 200, answer).holding("\"outputError\":\"the result could not be stored\"");
    let (context, fake) = context(vec![refused, taken], &[]);
    assert!(write_status(&watched, status, &context).await.is_ok());
    fake.finished().await;
}

/// An object that is nearly as large as etcd takes.
#[tokio::test]
async fn a_status_without_room_is_made_smaller_and_at_last_given_up() {
    let (watched, status) = with_output();
    let too_large = || expect(Method::PUT, STATUS, 500, json!("etcdserver: request is too large"));
    let whole = too_large().holding("\"much\":true");
    let smaller = too_large().holding("the result could not be stored");
    let least = too_large().holding("\"message\":\"\"");
    let (context, fake) = context(vec![whole, smaller, least], &[]);
    let answer = write_status(&watched, status, &context).await;
    assert!(matches!(answer, Err(Error::NoRoom)), "{answer:?}");
    fake.finished().await;
}

#[tokio::test]
async fn a_run_without_room_loses_its_pod_and_then_its_finalizer() {
    let run = started(0);
    let (context, fake) = context(vec![expect(Method::DELETE, POD, 200, stored_pod(&run))], &[]);
    give_up(&run, &with_pod(&run), &context).await.unwrap();
    fake.finished().await;
    let (context, fake) = super::answers::context(
        vec![expect(Method::PATCH, RUN, 200, serde_json::to_value(&run).unwrap()).holding("\"finalizers\":[]")],
        &[],
    );
    give_up(&run, &seen(&run), &context).await.unwrap();
    fake.finished().await;
}

#[tokio::test]
async fn while_the_audit_log_is_behind_a_run_waits_within_the_bounds_of_the_queue() {
    let run = a_run();
    let (context, _fake) = context(Vec::new(), &[]);
    context.ledger.list_begins();
    context.ledger.list_ends();
    let admit = async |queued: u32, log: LogSeen| {
        let mut valid = valid(&run);
        valid.grant.queue.queued = queued;
        let seen = Seen { log, ..decided(valid) };
        match apply(&run, &seen, &Step::Admit, &context).await {
            Ok(Done::Queued(admission)) => admission,
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(admit(0, LogSeen::Behind).await, Admission::Refuse(_)));
    assert!(matches!(admit(5, LogSeen::Behind).await, Admission::Wait { .. }));
    assert_eq!(admit(5, LogSeen::Fine).await, Admission::Admit);
}
