use paddock_protocol::{Captured, Output, RefusedReason, Report};

use paddock_egress::wire::Outcome as EgressOutcome;
use paddock_policy::OutputGrant;

use super::super::fixtures::*;
use super::super::outcome::outcome_of_refusal;
use super::*;
use crate::egress::used::{Refusal, Used};

fn holds(run: &ScriptRun, type_: &ConditionType) -> Option<(ConditionStatus, Reason)> {
    status(run).condition(type_).map(|condition| (condition.status, condition.reason.clone()))
}

fn finish(run: &ScriptRun, stream: &super::super::step::StreamSeen, phase: Phase, reason: Reason, second: i64) -> ScriptRun {
    let seen = Seen { stream: stream.clone(), ..seen(run) };
    after(run, &seen, &Step::Finish(Outcome::plain(phase, reason, "told")), &Done::Yes, second)
}

/// One more than the schema takes, and the API server would have taken the conditions alone.
#[test]
fn many_rules_leave_room_for_what_was_granted_by_name() {
    let decision = |permission: String, verdict| Decision { permission, verdict, rule: "r".into() };
    let mut all: Vec<Decision> = (0..200).map(|number| decision(format!("rule:r{number}"), Verdict::Granted)).collect();
    all.push(decision("rule:last".into(), Verdict::Refused));
    all.push(decision("secrets:smtp".into(), Verdict::Granted));
    let kept = bounded(&all);
    assert_eq!(kept.len(), 128);
    for permission in ["secrets:smtp", "rule:last", "rule:r0"] {
        assert!(kept.iter().any(|decision| decision.permission == permission), "{permission}");
    }
    assert_eq!(bounded(&all[..128]), all[..128]);
}

#[test]
fn what_was_used_of_the_network_is_told_without_secrets_and_never_becomes_less() {
    let refusal = |to: &str| Refusal { to: to.into(), outcome: EgressOutcome::NotGranted, rule: "built-in: network".into(), count: 3 };
    let used = Used {
        connections: 4,
        refused: 3,
        sent: 5,
        received: 6,
        refusals: vec![refusal("x.hunter2-hunter2.example.com:443"), refusal("www.example.com:443")],
        ..Used::default()
    };
    let secrets = paddock_policy::SecretValues(vec![("smtp".to_owned(), b"Hunter2-hunter2".to_vec())]);
    let grant = OutputGrant { secrets, ..paddock_policy::output_grant(&Vec::<paddock_policy::Policy>::new()) };
    let run = started(0);
    let told = |run: &ScriptRun, used: &Used, output: Result<OutputGrant, String>| {
        let seen = Seen { network: Some(used.clone()), output, ..seen(run) };
        after(run, &seen, &Step::RecordStop(Reason::Cancelled), &Done::Yes, 1)
    };
    let stopped = told(&run, &used, Ok(grant));
    let network = status(&stopped).network.unwrap();
    assert_eq!((network.connections, network.refused, network.sent_bytes, network.received_bytes), (4, 3, 5, 6));
    let shown = &network.refusals[0];
    assert_eq!((shown.reason.as_str(), shown.count), ("NotGranted", 3));
    assert_eq!((shown.to.as_str(), network.refusals[1].to.as_str()), ("withheld", "www.example.com:443"));
    let withheld = status(&told(&run, &used, Err("the rules are gone".into()))).network.unwrap();
    assert_eq!(withheld.refusals[1].to, "withheld");
    // Another leader, which has heard of one connection alone.
    let fewer = Used { connections: 1, ..Used::default() };
    let seen = Seen { network: Some(fewer), ..seen(&stopped) };
    let outcome = Outcome::plain(Phase::Cancelled, Reason::Cancelled, "told");
    assert_eq!(status(&after(&stopped, &seen, &Step::Finish(outcome), &Done::Yes, 2)).network.unwrap(), network);
}

#[test]
fn a_whole_life_leaves_every_condition_and_clock() {
    let run = started(2);
    let stream = a_stream(|transcript| {
        transcript.report = Some(Report { stdout_bytes: 2, ..a_report(0) });
        transcript.stdout.head = b"1\n".to_vec();
    });
    let seen = Seen { stream: stream.clone(), ..seen(&run) };
    let run = after(&run, &seen, &Step::RecordResult, &Done::Yes, 3);
    let run = finish(&run, &stream, Phase::Succeeded, Reason::Succeeded, 4);
    for type_ in
        [ConditionType::Accepted, ConditionType::Admitted, ConditionType::Started, ConditionType::ResultReady, ConditionType::Finished]
    {
        assert_eq!(holds(&run, &type_).unwrap().0, ConditionStatus::True, "{type_}");
    }
    assert!(holds(&run, &ConditionType::Reconciling).is_none() && holds(&run, &ConditionType::Stalled).is_none());
    let status = status(&run);
    let clocks = status.clocks.unwrap();
    assert!(clocks.received.is_some() && clocks.admitted.is_some() && clocks.started.is_some() && clocks.result_ready.is_some());
    assert_eq!(clocks.finished.unwrap().0, at(4));
    assert_eq!(status.result.unwrap().stdout.unwrap().text, "1\n");
    let events: Vec<String> = status.audit.into_iter().map(|event| event.type_).collect();
    assert_eq!(events.len(), 5);
    assert_eq!(status.pod.unwrap().boot.as_deref(), Some(BOOT));
}

#[test]
fn a_run_that_could_not_start_tells_what_it_waited_for() {
    let run = admitted(0);
    let told = |pod: PodSeen| {
        let seen = Seen { pod, ..seen(&run) };
        let run = after(&run, &seen, &Step::RecordStop(Reason::StartTimedOut), &Done::Yes, 60);
        super::super::outcome::before_the_start(&status(&run), &Reason::StartTimedOut).message
    };
    let with = |life| present(super::super::pod_facts::PodFacts { life, ..a_pod(&run) });
    assert_eq!(told(PodSeen::Absent), "the pod could not be created within the start budget");
    assert_eq!(told(with(PodLife::Pending(WaitsFor::Node))), "no node could take the sandbox within the start budget");
    assert_eq!(told(with(PodLife::Pending(WaitsFor::Creation))), "the node could not make the sandbox within the start budget");
    assert_eq!(told(with(PodLife::Running)), "the runner did not answer within the start budget");
}

/// As kstatus reads it: it is in progress until it is over.
#[test]
fn a_run_that_is_under_way_is_reconciling() {
    for run in [admitted(0), started(1)] {
        assert_eq!(holds(&run, &ConditionType::Reconciling).map(|(status, _)| status), Some(ConditionStatus::True), "{:?}", run.status);
        assert!(holds(&run, &ConditionType::Stalled).is_none());
    }
}

#[test]
fn an_end_without_success_is_stalled() {
    let run = finish(&started(1), &a_stream(|_| ()), Phase::Lost, Reason::Lost, 2);
    assert_eq!(holds(&run, &ConditionType::Stalled), Some((ConditionStatus::True, Reason::Lost)));
    assert_eq!(holds(&run, &ConditionType::ResultReady), Some((ConditionStatus::False, Reason::NoResult)));
}

#[test]
fn what_never_started_has_no_end_that_could_be_missing() {
    let why = |run: ScriptRun, phase, reason| {
        let ended = finish(&run, &a_stream(|_| ()), phase, reason, 2);
        status(&ended).condition(&ConditionType::ResultReady).unwrap().message.clone()
    };
    assert_eq!(why(admitted(0), Phase::Cancelled, Reason::Cancelled), "there is no result");
    assert!(why(started(1), Phase::Lost, Reason::Lost).starts_with("the end of the script was not reported"));
}

#[test]
fn what_came_before_a_silence_is_kept() {
    let stream = a_stream(|transcript| transcript.stdout.head = b"so far".to_vec());
    let run = finish(&started(1), &stream, Phase::RunnerKilled, Reason::RunnerKilled, 2);
    assert_eq!(status(&run).result.unwrap().stdout.unwrap().text, "so far");
}

#[test]
fn transition_times_hold_while_the_value_does() {
    let run = started(5);
    let time = |run: &ScriptRun| status(run).condition(&ConditionType::Admitted).unwrap().last_transition_time.0;
    assert_eq!(time(&run), time(&finish(&run, &a_stream(|_| ()), Phase::Failed, Reason::Failed, 50)));
}

#[test]
fn a_status_that_says_nothing_new_is_not_written() {
    let run = admitted(0);
    assert_eq!(compute_status(&run, &seen(&run), &Step::CreatePod, &Done::Yes, at(1)), None);
    let held = after(&a_run(), &seen(&run), &Step::Hold(Reason::SandboxNamespaceNotReady, "x"), &Done::Yes, 1);
    assert_eq!(compute_status(&held, &seen(&run), &Step::Hold(Reason::SandboxNamespaceNotReady, "x"), &Done::Yes, at(9)), None);
}

#[test]
fn a_status_stays_small_whatever_a_script_prints() {
    let noise = Captured { head: vec![0x1b; 8192], tail: vec![0xff; 8192], tail_offset: 1 << 40 };
    let stream_seen = a_stream(|transcript| {
        transcript.stdout = noise.clone();
        transcript.stderr = noise.clone();
        transcript.output = serde_json::to_vec(&"\u{1}".repeat(5000)).unwrap();
        transcript.report = Some(Report { output: Output::Present { bytes: transcript.output.len() as u64 }, ..a_report(0) });
    });
    let run = started(1);
    let run = after(&run, &Seen { stream: stream_seen, ..seen(&run) }, &Step::RecordResult, &Done::Yes, 2);
    let size = serde_json::to_vec(&run.status).unwrap().len();
    assert!(size < 128 * 1024, "{size}");
    assert!(status(&run).result.unwrap().output.is_some());
    let small = serde_json::to_vec(&smaller(&status(&run))).unwrap().len();
    assert!(small < 8 * 1024, "{small}");
}

#[test]
fn a_lie_about_sizes_does_not_make_the_status_invalid() {
    let stream_seen = a_stream(|transcript| {
        transcript.report =
            Some(Report { exit_code: Some(-1), signal: Some(9999), stdout_bytes: u64::MAX, cpu_milliseconds: u64::MAX, ..a_report(0) });
    });
    let run = started(1);
    let run = after(&run, &Seen { stream: stream_seen, ..seen(&run) }, &Step::RecordResult, &Done::Yes, 2);
    let result = status(&run).result.unwrap();
    assert_eq!((result.exit_code, result.signal), (Some(255), None));
    assert_eq!(result.stdout.unwrap().bytes, i64::MAX);
}

/// On it depends who is next after a restart: the time is that of the slot, to the microsecond, and nothing else is stored of it.
#[test]
fn when_a_run_was_served_is_read_from_its_status() {
    let run = a_run();
    assert_eq!(crate::context::entry(&run).served, None);
    let admitted = after(&run, &seen(&run), &Step::Admit, &Done::Queued(Admission::Admit), 3);
    assert_eq!(crate::context::entry(&admitted).served, Some(at(3).as_microsecond()));
    let ended = after(&admitted, &seen(&admitted), &Step::RecordStop(Reason::Cancelled), &Done::Yes, 4);
    assert_eq!(crate::context::entry(&ended).served, Some(at(3).as_microsecond()), "also of one that is over");
}

#[test]
fn a_waiting_run_tells_for_what() {
    let run = a_run();
    let waiting = after(&run, &seen(&run), &Step::Admit, &Done::Queued(Admission::Wait { full: Full::Tenant, ahead: 3 }), 1);
    assert_eq!(holds(&waiting, &ConditionType::Admitted), Some((ConditionStatus::False, Reason::WaitingForSlot)));
    assert_eq!(status(&waiting).phase, Some(Phase::Queued));
    // A step forward is no write.
    let forward = Done::Queued(Admission::Wait { full: Full::Tenant, ahead: 2 });
    assert_eq!(compute_status(&waiting, &seen(&waiting), &Step::Admit, &forward, at(2)), None);
    let full = after(&run, &seen(&run), &Step::Admit, &Done::Queued(Admission::Refuse(Full::Tenant)), 1);
    assert_eq!(holds(&full, &ConditionType::Accepted), Some((ConditionStatus::False, Reason::QueueFull)));
    assert_eq!(status(&full).phase, Some(Phase::Refused));
}

#[test]
fn the_runner_in_the_wrong_place_is_told_as_such() {
    assert_eq!(outcome_of_refusal(RefusedReason::NotSandboxed).phase, Phase::PolicyNotEnforced);
}
