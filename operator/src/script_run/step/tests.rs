use paddock_crds::{ApprovalDemanded, ApprovalGiven, ApprovalStatus, Condition};
use paddock_protocol::RefusedReason;
use rstest::rstest;

use super::super::apply::Done;
use super::super::fixtures::*;
use super::super::queue::{Admission, Full, Place};
use super::super::status::compute_status;
use super::*;
use crate::audit::LogSeen;

fn step(run: &ScriptRun, seen: &Seen, second: i64) -> Step {
    next_step(run, seen, &settings(), at(second))
}

fn with_pod(run: &ScriptRun, stream: StreamSeen, change: impl FnOnce(&mut PodFacts)) -> Seen {
    let mut pod = a_pod(run);
    change(&mut pod);
    Seen { pod: present(pod), stream, ..seen(run) }
}

fn is_rest(step: &Step) -> bool {
    matches!(step, Step::Rest { .. })
}

#[test]
fn a_new_run_is_admitted_only_when_everything_is_in_place() {
    let run = a_run();
    assert_eq!(step(&run, &seen(&run), 0), Step::Admit);
    let mut without = run.clone();
    without.metadata.finalizers = None;
    assert_eq!(step(&without, &seen(&run), 0), Step::AddFinalizer);
    for (sandbox, expected) in [
        (SandboxSeen::Incomplete, Step::PrepareSandbox),
        (
            SandboxSeen::Terminating,
            Step::Hold(Reason::SandboxNamespaceNotReady, "the sandbox namespace of an earlier tenant is being removed"),
        ),
    ] {
        assert_eq!(step(&run, &Seen { sandbox, ..seen(&run) }, 0), expected);
    }
    let behind = Seen { log: LogSeen::Behind, ..seen(&run) };
    let waits = Done::Queued(Admission::Wait { full: Full::Tenant, ahead: 0 });
    let held = after(&run, &behind, &Step::Admit, &waits, 0);
    let told = status(&held).condition(&ConditionType::Admitted).cloned().unwrap();
    assert_eq!((told.status, told.reason), (ConditionStatus::False, Reason::AuditLogUnavailable));
    let admitted = admitted(1);
    assert_eq!(step(&admitted, &behind, 0), step(&admitted, &seen(&run), 0), "what was admitted goes on");
    assert!(
        matches!(step(&run, &Seen { sandbox: SandboxSeen::Foreign, ..seen(&run) }, 0), Step::Refuse(refusal) if refusal.reason == Reason::SandboxNamespaceForeign)
    );
}

#[test]
fn a_sandbox_that_waits_is_taken_in_place_of_a_pod() {
    let run = admitted(0);
    for (offer, expected) in [
        (Offer::Free, Step::TakeSandbox),
        (Offer::NoPool, Step::CreatePod),
        (Offer::Cold(paddock_crds::ColdReason::NoneFree), Step::CreatePod),
    ] {
        assert_eq!(step(&run, &Seen { offer, ..seen(&run) }, 1), expected);
    }
    let taken = with_pod(&run, a_stream(|_| {}), |pod| pod.has_waited = true);
    assert_eq!(step(&run, &taken, 1), Step::RecordStart { boot: BOOT.into() });
    let started = after(&run, &taken, &Step::RecordStart { boot: BOOT.into() }, &Done::Yes, 1);
    assert_eq!((status(&started).path, status(&started).cold_because), (Some(paddock_crds::RunPath::Warm), None));
    let sent = Step::SendStart { boot: BOOT.into(), digest: valid(&run).files_digest };
    assert_eq!(step(&started, &taken, 1), sent);
    // Decided anew meanwhile, it is for nobody.
    let other = with_pod(&run, a_stream(|_| {}), |pod| (pod.has_waited, pod.job_digest) = (true, Some("other".into())));
    assert_eq!(step(&run, &other, 1), Step::RemovePod);
}

#[test]
fn a_slot_and_a_sandbox_that_waits_are_stored_by_one_write() {
    let run = a_run();
    let seen = Seen { offer: Offer::Free, ..seen(&run) };
    let pod = PodFacts { has_waited: true, name: "sp-1".into(), ..a_pod(&run) };
    let started = after(&run, &seen, &Step::Admit, &Done::Given(Box::new(pod.clone()), BOOT.into()), 1);
    let told = status(&started);
    assert!(told.is_true(&ConditionType::Admitted) && told.is_true(&ConditionType::Started));
    assert_eq!((told.job_digest, told.path), (Some(valid(&run).digest), Some(paddock_crds::RunPath::Warm)));
    assert_eq!(told.pod.map(|pod| (pod.name, pod.boot)), Some(("sp-1".into(), Some(BOOT.into()))));
    let events: Vec<&str> = told.audit.iter().filter_map(|event| event.type_.rsplit('.').nth(1)).collect();
    assert_eq!(events, ["received", "admitted", "started"]);
    let next = Seen { pod: present(pod), stream: a_stream(|_| {}), ..seen };
    assert_eq!(step(&started, &next, 1), Step::SendStart { boot: BOOT.into(), digest: valid(&run).files_digest });
}

/// What went to a sandbox that waited is in memory alone: after a restart a start without it finds out what has become of it.
#[test]
fn a_restarted_operator_asks_a_sandbox_that_waited_whether_it_has_its_job() {
    let run = started(0);
    let forgotten = |pod: &mut PodFacts| {
        (pod.has_waited, pod.files_digest, pod.job_digest) = (true, None, None);
        pod.life = PodLife::Running;
    };
    let asked = Step::SendStart { boot: BOOT.into(), digest: String::new() };
    let reads = with_pod(&run, StreamSeen { caught_up: false, ..a_stream(|_| {}) }, forgotten);
    assert!(is_rest(&step(&run, &reads, 1)), "its log may tell");
    let late = Seen { leading_since: at(100), ..with_pod(&run, a_stream(|_| {}), forgotten) };
    assert_eq!(step(&run, &late, 101), asked, "what waited for a leader has its time before it");
    assert_eq!(step(&run, &Seen { leading_since: at(0), ..late }, 101), Step::RecordStop(Reason::TimedOut));
    let waits = Seen { is_job_to_come: true, ..with_pod(&run, a_stream(|_| {}), forgotten) };
    assert!(is_rest(&step(&run, &waits, 1)), "its job may still be had");
    assert_eq!(step(&run, &with_pod(&run, a_stream(|_| {}), forgotten), 1), asked);
    assert!(is_rest(&step(&run, &with_pod(&run, a_stream(|transcript| transcript.accepted = true), forgotten), 1)));
    let over = StreamSeen { complete: true, ..a_stream(|_| {}) };
    let gone = with_pod(&run, over, |pod| {
        forgotten(pod);
        pod.life = ended(120, "Error");
    });
    assert!(matches!(step(&run, &gone, 1), Step::Finish(outcome) if outcome.reason == Reason::Lost));
}

#[test]
fn a_refusal_takes_no_slot_and_makes_nothing() {
    let run = a_run();
    let seen = Seen {
        decision: Some(Err(Box::new(validate::Refused::plain(Reason::NoClusterPolicy, "no")))),
        sandbox: SandboxSeen::Incomplete,
        ..seen(&run)
    };
    assert!(matches!(step(&run, &seen, 2), Step::Refuse(refusal) if refusal.reason == Reason::NoClusterPolicy));
}

#[test]
fn a_refused_run_is_let_go_at_once() {
    let run = a_run();
    let refusal = Refusal { reason: Reason::NoClusterPolicy, message: "no".into() };
    let mut run = after(&run, &seen(&run), &Step::Refuse(refusal), &Done::Yes, 2);
    assert_eq!(step(&run, &seen(&run), 2), Step::Release);
    run.metadata.finalizers = None;
    assert_eq!(step(&run, &seen(&run), 2), Step::Leave);
}

#[test]
fn a_policy_that_was_made_just_before_the_run_is_waited_for() {
    let run = a_run();
    let lacking = |reason| Seen { decision: Some(Err(Box::new(validate::Refused::plain(reason, "no")))), ..seen(&run) };
    for reason in [Reason::NoClusterPolicy, Reason::PolicyNotFound, Reason::PolicyGone] {
        assert_eq!(step(&run, &lacking(reason), 1), Step::Rest { wake: Some(Duration::from_secs(1)) });
    }
    assert!(matches!(step(&run, &lacking(Reason::LimitExceeded), 0), Step::Refuse(_)));
    // A clock behind the API server's makes nobody wait longer.
    assert!(matches!(step(&run, &lacking(Reason::PolicyNotFound), -5), Step::Refuse(_)));
}

#[test]
fn an_admitted_run_gets_its_pod_and_its_stream() {
    let run = admitted(0);
    assert_eq!(step(&run, &seen(&run), 1), Step::CreatePod);
    assert_eq!(step(&run, &with_pod(&run, StreamSeen::default(), |_| ()), 1), Step::Listen);
    let listening = StreamSeen { listening: true, ..StreamSeen::default() };
    assert_eq!(step(&run, &with_pod(&run, listening, |_| ()), 1), Step::Rest { wake: Some(Duration::from_secs(59)) });
    assert_eq!(step(&run, &with_pod(&run, a_stream(|_| ()), |_| ()), 1), Step::RecordStart { boot: BOOT.into() });
}

fn waiting(reason: &str) -> PodLife {
    PodLife::Pending(WaitsFor::Named { reason: reason.into(), message: "why".into() })
}

#[rstest]
#[case::mutated(|pod: &mut PodFacts| pod.mutated = Some("spec.containers".into()), Reason::PodMutated)]
#[case::no_image(|pod: &mut PodFacts| pod.life = waiting("ImagePullBackOff"), Reason::ImageUnavailable)]
#[case::never_pull(|pod: &mut PodFacts| pod.life = waiting("ErrImageNeverPull"), Reason::ImageUnavailable)]
fn a_pod_that_cannot_start_is_given_up_at_once(#[case] change: fn(&mut PodFacts), #[case] reason: Reason) {
    let run = admitted(0);
    assert_eq!(step(&run, &with_pod(&run, StreamSeen::default(), change), 1), Step::RecordStop(reason));
}

#[rstest]
#[case::pull("ErrImagePull")]
#[case::runtime_away_before_creation("CreateContainerConfigError")]
#[case::runtime_away_at_creation("CreateContainerError")]
#[case::runtime_away_at_start("RunContainerError")]
fn what_failed_once_may_still_work(#[case] reason: &str) {
    let run = admitted(0);
    let pending = with_pod(&run, a_stream(|transcript| transcript.boot = None), |pod| pod.life = waiting(reason));
    assert!(is_rest(&step(&run, &pending, 1)));
}

#[test]
fn time_in_which_nobody_led_is_not_the_runs() {
    let run = admitted(0);
    let after_a_gap = Seen { leading_since: at(100), ..seen(&run) };
    assert_eq!(step(&run, &after_a_gap, 101), Step::CreatePod);
    assert_eq!(step(&run, &after_a_gap, 160), Step::RecordStop(Reason::StartTimedOut));
}

#[rstest]
#[case::deadline(Ended { pod_reason: Some("DeadlineExceeded".into()), ..Ended::default() }, true)]
#[case::evicted(Ended { disrupted: true, ..Ended::default() }, true)]
#[case::forgotten(Ended { container_reason: Some("ContainerStatusUnknown".into()), ..Ended::default() }, true)]
#[case::of_its_own(Ended { container_reason: Some("StartError".into()), ..Ended::default() }, false)]
fn a_pod_that_ended_before_the_start_by_what_was_around_it_is_followed_by_another(#[case] ended: Ended, #[case] again: bool) {
    let run = admitted(0);
    let stream = StreamSeen { complete: true, ..StreamSeen::default() };
    let expected = if again { Step::RemovePod } else { Step::RecordStop(Reason::PodRejected) };
    assert_eq!(step(&run, &with_pod(&run, stream, |pod| pod.life = PodLife::Ended(ended)), 1), expected);
}

#[test]
fn a_runner_that_waited_in_vain_is_followed_by_another() {
    let run = admitted(0);
    let refused = Refused { reason: RefusedReason::NotStarted, detail: String::new() };
    assert_eq!(step(&run, &with_pod(&run, a_stream(|transcript| transcript.refused = Some(refused)), |_| ()), 1), Step::RemovePod);
}

#[test]
fn a_run_stopped_before_its_start_ends_when_its_pod_is_gone() {
    let run = admitted(0);
    assert_eq!(step(&run, &with_pod(&run, StreamSeen::default(), |_| ()), 60), Step::RecordStop(Reason::StartTimedOut));
    let stopping = after(&run, &seen(&run), &Step::RecordStop(Reason::StartTimedOut), &super::super::apply::Done::Yes, 60);
    assert_eq!(step(&stopping, &with_pod(&run, StreamSeen::default(), |_| ()), 60), Step::RemovePod);
    assert!(is_rest(&step(&stopping, &with_pod(&run, StreamSeen::default(), |pod| pod.deleting = true), 60)));
    assert!(matches!(step(&stopping, &seen(&run), 61), Step::Finish(outcome) if outcome.phase == Phase::StartTimedOut));
}

#[test]
fn nothing_starts_before_the_gateway_knows_what_it_is_granted() {
    let run = admitted(0);
    let mut waiting = with_pod(&run, a_stream(|_| ()), |_| ());
    assert!(matches!(step(&run, &waiting, 1), Step::RecordStart { .. }));
    waiting.bound = Bound::NotYet;
    assert!(matches!(step(&run, &waiting, 1), Step::Rest { wake: Some(wake) } if wake <= Duration::from_millis(20)));
    assert_eq!(step(&run, &waiting, 60), Step::RecordStop(Reason::StartTimedOut));
}

#[rstest]
#[case(RefusedReason::NotSandboxed, Reason::NotSandboxed)]
#[case(RefusedReason::UnexpectedInterface, Reason::UnexpectedInterface)]
#[case(RefusedReason::UnexpectedToken, Reason::UnexpectedToken)]
#[case(RefusedReason::NetworkNotConfined, Reason::NetworkNotConfined)]
#[case(RefusedReason::GatewayUnreachable, Reason::GatewayUnreachable)]
#[case(RefusedReason::JobMismatch, Reason::JobMismatch)]
fn a_runner_that_is_in_the_wrong_place_is_never_started(#[case] said: RefusedReason, #[case] reason: Reason) {
    let run = admitted(0);
    let stream = a_stream(|transcript| {
        transcript.boot = None;
        transcript.refused = Some(Refused { reason: said, detail: "detail".into() });
    });
    assert_eq!(step(&run, &with_pod(&run, stream, |_| ()), 1), Step::RecordStop(reason));
}

#[test]
fn a_policy_that_changes_before_the_start_reaches_the_run() {
    let run = admitted(0);
    let mut other = seen(&run);
    if let Some(Ok(valid)) = &mut other.decision {
        valid.digest = "another".into();
    }
    assert_eq!(step(&run, &other, 1), Step::Admit);
    assert_eq!(step(&run, &Seen { pod: present(a_pod(&run)), ..other }, 1), Step::RemovePod);
    let refused = Seen { decision: Some(Err(Box::new(validate::Refused::plain(Reason::RuntimeNotAllowed, "no")))), ..seen(&run) };
    assert!(matches!(step(&run, &refused, 1), Step::Refuse(_)));
    assert_eq!(step(&run, &Seen { pod: present(a_pod(&run)), ..refused }, 1), Step::RemovePod);
}

#[test]
fn the_start_message_goes_to_the_stored_runner_and_once() {
    let run = started(1);
    let digest = valid(&a_run()).files_digest;
    assert_eq!(step(&run, &with_pod(&run, a_stream(|_| ()), |_| ()), 1), Step::SendStart { boot: BOOT.into(), digest });
    let sent = StreamSeen { start_sent: true, ..a_stream(|_| ()) };
    assert!(is_rest(&step(&run, &with_pod(&run, sent, |_| ()), 1)));
    let accepted = a_stream(|transcript| transcript.accepted = true);
    assert!(is_rest(&step(&run, &with_pod(&run, accepted, |_| ()), 1)));
}

#[test]
fn another_pod_than_the_stored_one_is_never_started() {
    let run = started(1);
    let other = with_pod(&run, a_stream(|_| ()), |pod| pod.uid = "pod-2".into());
    assert!(matches!(step(&run, &other, 2), Step::Finish(outcome) if outcome.phase == Phase::Lost));
    assert!(matches!(step(&run, &seen(&run), 2), Step::Finish(outcome) if outcome.phase == Phase::Lost));
}

#[test]
fn a_result_is_stored_before_the_end_even_if_the_pod_is_gone() {
    let run = started(1);
    let report = || a_stream(|transcript| transcript.report = Some(a_report(0)));
    assert_eq!(step(&run, &with_pod(&run, report(), |_| ()), 2), Step::RecordResult);
    assert_eq!(step(&run, &Seen { stream: report(), ..seen(&run) }, 2), Step::RecordResult);
    assert_eq!(step(&run, &with_pod(&run, report(), |pod| pod.life = ended(0, "Completed")), 2), Step::RecordResult);
}

#[test]
fn only_the_kubelet_ends_a_run() {
    let stream = a_stream(|transcript| transcript.report = Some(a_report(0)));
    let run = started(1);
    let run = after(&run, &with_pod(&run, stream.clone(), |_| ()), &Step::RecordResult, &super::super::apply::Done::Yes, 2);
    assert!(is_rest(&step(&run, &with_pod(&run, stream.clone(), |_| ()), 2)));
    let over = with_pod(&run, stream.clone(), |pod| pod.life = ended(0, "Completed"));
    assert_eq!(step(&run, &over, 3), Step::ReadLog);
    let read = Seen { stream: StreamSeen { complete: true, ..stream }, ..over };
    assert!(matches!(step(&run, &read, 3), Step::Finish(outcome) if outcome.phase == Phase::Succeeded));
}

#[test]
fn time_and_cancel_stop_a_running_script_and_stay_stopped() {
    let run = started(1);
    let running = with_pod(&run, a_stream(|transcript| transcript.accepted = true), |_| ());
    // Stored as started at 1, for 10 seconds: the script may have begun a while later, and the runner knows when.
    assert_eq!(step(&run, &running, 12), Step::Rest { wake: Some(Duration::from_secs(4)) });
    assert_eq!(step(&run, &running, 16), Step::RecordStop(Reason::TimedOut));
    let mut cancelled = run.clone();
    cancelled.spec.cancel = Some(true);
    assert_eq!(step(&cancelled, &running, 2), Step::RecordStop(Reason::Cancelled));
    let stopping = after(&cancelled, &running, &Step::RecordStop(Reason::TimedOut), &super::super::apply::Done::Yes, 16);
    assert_eq!(step(&stopping, &running, 17), Step::StopPod(Stop::Gracefully));
    let sent = Seen { stream: StreamSeen { stop_sent: Some(Stop::Gracefully), ..running.stream.clone() }, ..running.clone() };
    assert!(is_rest(&step(&stopping, &sent, 17)));
    let over = Seen {
        pod: present(PodFacts { life: ended(143, "Error"), ..a_pod(&run) }),
        stream: StreamSeen { complete: true, ..sent.stream },
        ..running
    };
    assert!(matches!(step(&stopping, &over, 18), Step::Finish(outcome) if outcome.reason == Reason::TimedOut));
}

#[test]
fn what_a_policy_ends_is_ended_without_grace() {
    let denied = Containment::Denied { what: "script:x".into(), rule: "r".into() };
    for (containment, reason) in [(denied, Reason::Denied), (Containment::Kill { rule: "r".into() }, Reason::Suspended)] {
        let run = started(10);
        let contained =
            Seen { containment, ..with_pod(&run, a_stream(|transcript| transcript.accepted = true), |pod| pod.life = PodLife::Running) };
        let stop = Step::RecordStop(reason.clone());
        assert_eq!(step(&run, &contained, 12), stop);
        let stopping = after(&run, &contained, &stop, &Done::Yes, 12);
        assert_eq!(step(&stopping, &contained, 12), Step::StopPod(Stop::AtOnce));
        // Also one that is being ended with grace already.
        let cancelled = after(&run, &contained, &Step::RecordStop(Reason::Cancelled), &Done::Yes, 11);
        let sent = Seen { stream: StreamSeen { stop_sent: Some(Stop::Gracefully), ..contained.stream.clone() }, ..contained.clone() };
        assert_eq!(step(&cancelled, &sent, 12), stop);
        let harder = after(&cancelled, &sent, &stop, &Done::Yes, 12);
        assert_eq!(step(&harder, &sent, 12), Step::StopPod(Stop::AtOnce));
        let said = Seen { stream: StreamSeen { stop_sent: Some(Stop::AtOnce), ..sent.stream }, ..contained };
        assert!(is_rest(&step(&harder, &said, 12)));
        // Before the start nothing has run.
        assert_eq!(step(&admitted(0), &Seen { pod: PodSeen::Absent, ..said }, 1), stop);
    }
}

#[test]
fn a_suspended_policy_lets_go_on_what_is_admitted() {
    let run = started(10);
    let queue = Containment::Queue { rule: "r".into() };
    let seen = with_pod(&run, a_stream(|transcript| transcript.accepted = true), |pod| pod.life = PodLife::Running);
    assert!(is_rest(&step(&run, &Seen { containment: queue, ..seen }, 12)));
}

#[test]
fn a_deleted_run_is_released_only_when_its_pod_is_gone() {
    for run in [a_run(), admitted(0), started(1)] {
        let mut run = run;
        run.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(5)));
        assert_eq!(step(&run, &with_pod(&run, StreamSeen::default(), |_| ()), 5), Step::RemovePod);
        assert!(is_rest(&step(&run, &with_pod(&run, StreamSeen::default(), |pod| pod.deleting = true), 5)));
        assert_eq!(step(&run, &seen(&run), 5), Step::Release);
    }
}

#[test]
fn a_finished_run_loses_its_pod_and_after_its_time_itself() {
    let mut run = started(1);
    run = after(&run, &seen(&run), &Step::Finish(Outcome::plain(Phase::Lost, Reason::Lost, "x")), &super::super::apply::Done::Yes, 5);
    assert_eq!(step(&run, &with_pod(&run, StreamSeen::default(), |_| ()), 6), Step::RemovePod);
    assert_eq!(step(&run, &seen(&run), 6), Step::Leave);
    run.spec.ttl_seconds_after_finished = Some(10);
    assert_eq!(step(&run, &seen(&run), 6), Step::Rest { wake: Some(Duration::from_secs(9)) });
    assert_eq!(step(&run, &seen(&run), 15), Step::DeleteRun);
    // Whoever holds it would create it anew.
    for mark in GIT_LABELS {
        let mut run = run.clone();
        run.metadata.labels.get_or_insert_default().insert(mark.into(), String::new());
        assert_eq!(step(&run, &seen(&run), 15), Step::Leave, "{mark}");
    }
    for mark in GIT_ANNOTATIONS {
        let mut run = run.clone();
        run.metadata.annotations.get_or_insert_default().insert(mark.into(), String::new());
        assert_eq!(step(&run, &seen(&run), 15), Step::Leave, "{mark}");
    }
}

#[test]
fn what_a_newer_version_wrote_is_left_alone() {
    let mut run = admitted(0);
    let mut status = status(&run);
    status.phase = Some(Phase::from("Hibernating"));
    run.status = Some(status);
    assert_eq!(step(&run, &seen(&run), 1), Step::Leave);
    let mut deleted = run.clone();
    deleted.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(1)));
    assert_eq!(step(&deleted, &seen(&run), 1), Step::Release, "nothing waits for a version that may never come");
    let mut run = admitted(0);
    let mut status = super::super::fixtures::status(&run);
    let condition = Condition { type_: ConditionType::from("Frozen"), ..status.conditions[0].clone() };
    status.conditions.push(condition);
    run.status = Some(status);
    assert_eq!(step(&run, &seen(&run), 1), Step::Leave);
}

#[test]
fn a_runner_that_was_started_a_second_time_ends_the_run_as_lost() {
    let run = started(0);
    let in_one_stream = a_stream(|transcript| transcript.rebooted = true);
    let after_a_restart = a_stream(|transcript| transcript.boot = Some("boot-2".into()));
    for stream in [in_one_stream, after_a_restart] {
        assert_eq!(step(&run, &with_pod(&run, stream, |_| ()), 1), Step::RecordStop(Reason::Lost));
    }
    let stopping = after(&run, &seen(&run), &Step::RecordStop(Reason::Lost), &Done::Yes, 2);
    let ended = with_pod(&stopping, StreamSeen { complete: true, ..a_stream(|_| ()) }, |pod| pod.life = ended(137, "Error"));
    assert!(matches!(step(&stopping, &ended, 3), Step::Finish(outcome) if outcome.phase == Phase::Lost && outcome.reason == Reason::Lost));
}

fn lacking_approvals(wait_seconds: i64, given: usize) -> Approving {
    let given = (0..given).map(|n| ApprovalGiven { approver: format!("a{n}"), ..ApprovalGiven::default() }).collect();
    let demanded = ApprovalDemanded { rule: "p: approvals[two]".into(), digest: "d".into(), count: 2, ends_running: true, given };
    Approving::Waiting {
        status: ApprovalStatus { digest: "d".into(), demanded: vec![demanded], ..ApprovalStatus::default() },
        wait_seconds,
    }
}

#[test]
fn a_run_waits_for_its_approvals_and_no_longer_than_it_may() {
    let run = a_run();
    let seen = |given| Seen { approving: lacking_approvals(60, given), ..seen(&run) };
    let awaits = Step::AwaitApproval { until: at(60) };
    assert_eq!(step(&run, &seen(0), 0), awaits);
    let waits = after(&run, &seen(0), &awaits, &Done::Yes, 0);
    let told = status(&waits);
    assert_eq!(
        (told.phase.as_ref(), told.message.as_deref()),
        (Some(&Phase::AwaitingApproval), Some("0 of 2 approvals are there (p: approvals[two])"))
    );
    assert!(told.condition(&ConditionType::Admitted).is_none() && told.script_hash.is_some(), "it takes no place in the queue");
    assert_eq!(told.approval.unwrap().expires_at.unwrap().0, at(60));
    // Another pass tells nothing, an approval that came does, and the time goes on.
    assert_eq!(compute_status(&waits, &seen(0), &step(&waits, &seen(0), 5), &Done::Yes, at(5)), None);
    assert_eq!(step(&waits, &seen(1), 59), awaits);
    let waits = after(&waits, &seen(1), &awaits, &Done::Yes, 59);
    assert_eq!(status(&waits).approval.unwrap().demanded[0].given.len(), 1);
    let Step::Finish(outcome) = step(&waits, &seen(1), 60) else { panic!() };
    assert_eq!((&outcome.phase, &outcome.reason), (&Phase::Expired, &Reason::ApprovalExpired));
    let run = after(&waits, &seen(1), &Step::Finish(outcome), &Done::Yes, 60);
    assert_eq!(step(&run, &seen(1), 61), Step::Release);
}

#[test]
fn an_approved_run_goes_on_and_a_denied_one_ends() {
    let run = a_run();
    let Approving::Waiting { status: needed, .. } = lacking_approvals(60, 2) else { panic!() };
    let approved = Seen { approving: Approving::Approved(needed.clone()), ..seen(&run) };
    assert_eq!(step(&run, &approved, 0), Step::Admit);
    let admitted = after(&run, &approved, &Step::Admit, &Done::Queued(Admission::Admit), 1);
    assert!(status(&admitted).is_true(&ConditionType::Approved));
    assert_eq!(status(&admitted).approval.unwrap().demanded[0].given.len(), 2);
    let denied = Seen { approving: Approving::Denied { status: needed, by: "anna".into() }, ..seen(&run) };
    let Step::Finish(outcome) = step(&run, &denied, 0) else { panic!() };
    assert_eq!((outcome.phase, outcome.message.as_str()), (Phase::Denied, "anna has decided that it may not run"));
}

#[test]
fn an_approval_that_is_lost_stops_what_was_admitted_and_puts_back_what_waits() {
    let lost = |run: &ScriptRun| Seen { approving: lacking_approvals(60, 1), ..seen(run) };
    let run = admitted(0);
    assert_eq!(step(&run, &lost(&run), 1), Step::RecordStop(Reason::ApprovalRevoked));
    let stopped = after(&run, &lost(&run), &Step::RecordStop(Reason::ApprovalRevoked), &Done::Yes, 1);
    let Step::Finish(outcome) = step(&stopped, &lost(&stopped), 2) else { panic!() };
    assert_eq!((outcome.phase, outcome.reason), (Phase::Killed, Reason::ApprovalRevoked));

    let run = a_run();
    let queued = after(&run, &seen(&run), &Step::Admit, &Done::Queued(Admission::Wait { full: Full::Tenant, ahead: 0 }), 0);
    let awaits = step(&queued, &lost(&queued), 1);
    assert_eq!(awaits, Step::AwaitApproval { until: at(61) });
    assert!(status(&after(&queued, &lost(&queued), &awaits, &Done::Yes, 1)).condition(&ConditionType::Admitted).is_none());

    let run = started(0);
    let seen = Seen { has_lost_approval: true, ..with_pod(&run, a_stream(|_| ()), |pod| pod.life = PodLife::Running) };
    assert_eq!(step(&run, &seen, 1), Step::RecordStop(Reason::ApprovalRevoked));
    let run = after(&run, &seen, &Step::RecordStop(Reason::ApprovalRevoked), &Done::Yes, 1);
    assert_eq!(step(&run, &seen, 1), Step::StopPod(Stop::AtOnce));
}

#[test]
fn a_script_that_is_refused_more_connections_than_its_policies_put_up_with_is_ended_without_grace() {
    let run = started(0);
    let running = with_pod(&run, a_stream(|_| ()), |pod| pod.life = PodLife::Running);
    let seen = Seen { is_refused_too_often: true, ..running.clone() };
    assert_eq!(step(&run, &seen, 1), Step::RecordStop(Reason::TooManyRefusedConnections));
    let stopping = after(&run, &seen, &Step::RecordStop(Reason::TooManyRefusedConnections), &Done::Yes, 1);
    // A leader that has not counted them itself goes on with it.
    assert_eq!(step(&stopping, &running, 1), Step::StopPod(Stop::AtOnce));
    let ended = with_pod(&stopping, StreamSeen { complete: true, ..a_stream(|_| ()) }, |pod| pod.life = ended(137, "Error"));
    let Step::Finish(outcome) = step(&stopping, &ended, 2) else { panic!() };
    assert_eq!((outcome.phase, outcome.reason), (Phase::Killed, Reason::TooManyRefusedConnections));
}

#[test]
fn a_runner_that_was_started_after_the_script_had_ended_is_stopped() {
    let run = started(0);
    let told = with_pod(&run, a_stream(|transcript| transcript.report = Some(a_report(0))), |pod| pod.life = PodLife::Running);
    let run = after(&run, &told, &Step::RecordResult, &Done::Yes, 1);
    assert!(is_rest(&step(&run, &told, 2)));
    let mut again = with_pod(&run, a_stream(|transcript| transcript.boot = Some("boot-2".into())), |pod| pod.life = PodLife::Running);
    assert_eq!(step(&run, &again, 2), Step::StopPod(Stop::Gracefully));
    again.stream.stop_sent = Some(Stop::Gracefully);
    assert!(is_rest(&step(&run, &again, 3)));
}

#[test]
fn no_more_wait_for_approvals_than_may_wait() {
    let run = a_run();
    let seen = Seen { approving: lacking_approvals(60, 0), ..seen(&run) };
    let awaits = Step::AwaitApproval { until: at(60) };
    assert_eq!(step(&run, &seen, 0), awaits);
    let waits = after(&run, &seen, &awaits, &Done::Yes, 0);
    assert_eq!(crate::context::entry(&waits).place, Some(Place::Awaits));
    let refused = after(&run, &seen, &awaits, &Done::Queued(Admission::Refuse(Full::Tenant)), 0);
    let accepted = status(&refused).condition(&ConditionType::Accepted).unwrap().clone();
    assert_eq!((accepted.status, &accepted.reason), (ConditionStatus::False, &Reason::QueueFull));
    assert_eq!(status(&refused).message.as_deref(), Some("as many runs wait for approvals in this namespace as may wait"));
}

/// A slot that a leader before this one gave away with a write that came late, or that a lowered limit took away.
#[test]
fn a_run_that_holds_one_slot_too_many_gives_it_back_before_it_has_a_pod() {
    let run = admitted(0);
    let too_many = Seen { is_one_too_many: true, ..seen(&run) };
    assert_eq!((step(&run, &seen(&run), 1), step(&run, &too_many, 1)), (Step::CreatePod, Step::StandBack(Back::TooMany)));
    let with_pod = Seen { pod: present(a_pod(&run)), ..too_many.clone() };
    assert!(!matches!(step(&run, &with_pod, 1), Step::StandBack(_)), "what has a pod goes on");
    let back = after(&run, &too_many, &Step::StandBack(Back::TooMany), &Done::Yes, 1);
    let admitted = status(&back).condition(&ConditionType::Admitted).unwrap().clone();
    assert_eq!((admitted.status, admitted.reason), (ConditionStatus::False, Reason::WaitingForSlot));
    assert_eq!(crate::context::entry(&back).place, Some(Place::Waits), "it has its turn by its age");
    assert_eq!(step(&back, &seen(&back), 2), Step::Admit);
}

/// A quota that is full for longer than its controller lags does not hold a slot that others could use.
#[test]
fn a_run_that_a_quota_has_no_room_for_gives_its_slot_back_and_asks_again() {
    let full =
        |run: &ScriptRun, second| after(run, &seen(run), &Step::CreatePod, &Done::NotCreated(Reason::QuotaExceeded, "x".into()), second);
    let back = |run: &ScriptRun, second| after(run, &seen(run), &Step::StandBack(Back::NoRoom), &Done::Yes, second);
    let again = |run: &ScriptRun, second| after(run, &seen(run), &Step::Admit, &Done::Queued(Admission::Admit), second);
    let run = full(&admitted(0), 0);
    assert_eq!((step(&run, &seen(&run), 4), step(&run, &seen(&run), 5)), (Step::CreatePod, Step::StandBack(Back::NoRoom)));
    let run = back(&run, 5);
    assert_eq!(status(&run).phase, Some(Phase::Queued));
    assert_eq!(crate::context::entry(&run).place, Some(Place::StandsAside), "nobody waits behind it, and it holds no slot");
    assert_eq!(step(&run, &seen(&run), 6), Step::Rest { wake: Some(Duration::from_secs(1)) });
    assert_eq!(step(&run, &seen(&run), 7), Step::Admit);
    let mut cancelled = run.clone();
    cancelled.spec.cancel = Some(true);
    assert!(matches!(step(&cancelled, &seen(&run), 6), Step::Finish(outcome) if outcome.phase == Phase::Cancelled));
    // Every time it tries once more, and then waits for longer, but not for ever.
    let run = full(&again(&run, 7), 7);
    assert_eq!((step(&run, &seen(&run), 7), step(&run, &seen(&run), 8)), (Step::CreatePod, Step::StandBack(Back::NoRoom)));
    let run = back(&again(&run, 1000), 1001);
    assert_eq!(step(&run, &seen(&run), 1002), Step::Rest { wake: Some(Duration::from_secs(29)) });
    // Its start budget begins anew with each slot.
    let run = again(&run, 1031);
    assert_eq!(step(&run, &seen(&run), 1031), Step::CreatePod);
    let admissions = status(&run).audit.iter().filter(|event| event.type_ == "dev.paddock.run.admitted.v1").count();
    assert_eq!(admissions, 1, "the trail is not filled with tries");
    // Once the pod was taken the quota is not why it has none.
    let run = after(&run, &seen(&run), &Step::CreatePod, &Done::Yes, 1031);
    assert_eq!(step(&run, &seen(&run), 1040), Step::CreatePod);
}

/// Whoever cancels a run with a long grace does not keep it from being ended for a decision that was taken back.
#[test]
fn a_stop_that_is_under_way_becomes_harder() {
    let run = started(0);
    let run = after(&run, &seen(&run), &Step::RecordStop(Reason::Cancelled), &Done::Yes, 1);
    let lost = Seen { has_lost_approval: true, ..with_pod(&run, a_stream(|_| ()), |pod| pod.life = PodLife::Running) };
    assert_eq!(step(&run, &lost, 2), Step::RecordStop(Reason::ApprovalRevoked));
}
