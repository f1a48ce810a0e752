//! Objects for tests, each said in a few words.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock, Mutex};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use paddock_crds::{
    Effect, Limits, PolicyKind, PolicyRef, PolicyRules, Runtime, Script, ScriptRun, ScriptRunSpec, ScriptRunStatus, Source, TakenPolicy,
};
use paddock_policy::{Approving, Containment, OutputGrant, Policy, output_grant};
use paddock_protocol::{Cause, Egress, Gate, KEY_BYTES, Output, Report, SealingKey, Transcript};

use super::apply::Done;
use super::job::Fixed;
use super::pod_facts::{Ended, PodFacts, PodLife, PodSeen, WaitsFor};
use super::queue::{Admission, ClusterLimits};
use super::result::with_stored;
use super::status::{compute_status, is_cut_short};
use super::step::{SandboxSeen, Seen, Step, StreamSeen};
use super::telling;
use super::validate::{PoliciesSeen, SourceSeen, TextsSeen, ValidRun, validate};
use crate::audit::LogSeen;
use crate::config::Settings;
use crate::egress::Bound;
use crate::names;
use crate::pool::waiting::Offer;

pub(crate) const BOOT: &str = "boot-1";
pub(crate) const POD_UID: &str = "pod-1";

/// A time, in seconds after a fixed one.
pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

pub(crate) fn settings() -> Settings {
    Settings {
        egress_runtime_class: "gvisor".into(),
        has_egress: true,
        sandbox_has_interface: false,
        runner_image: "registry.example/runner:1".into(),
        runner_by_image_volume: true,
        image_pull_policy: "IfNotPresent",
        runtime_class: "gvisor-nonet".into(),
        start_budget_seconds: 60,
        cluster_limits: ClusterLimits { concurrent: 1000, queued: 1000 },
        policy_history: 20,
        operator_namespace: "paddock-system".into(),
        operator_service_account: "paddock-operator".into(),
        sandbox_cluster_role: "paddock-sandbox".into(),
        doctor_namespace: None,
    }
}

/// A stamped run with a finalizer, created at second 0.
pub(crate) fn a_run() -> ScriptRun {
    let source = Source { inline: Some("print(1)".into()), config_map_key_ref: None };
    let script = Script { runtime: "python".into(), source, args: Vec::new(), input: None, input_schema: None };
    let spec = ScriptRunSpec {
        end_user: None,
        policy_ref: PolicyRef { kind: PolicyKind::ClusterSandboxPolicy, name: "baseline".into() },
        script,
        capabilities: None,
        resources: None,
        timeout_seconds: Some(10),
        grace_period_seconds: None,
        priority: None,
        cancel: None,
        ttl_seconds_after_finished: None,
    };
    let mut run = ScriptRun::new("run", spec);
    run.metadata.namespace = Some("team".into());
    run.metadata.uid = Some("uid-1".into());
    run.metadata.generation = Some(1);
    run.metadata.resource_version = Some("1".into());
    run.metadata.creation_timestamp = Some(Time(at(0)));
    run.metadata.finalizers = Some(vec![names::FINALIZER.into()]);
    run.metadata.annotations = Some(
        [(names::REQUESTER, "jane"), (names::REQUESTER_UID, ""), (names::REQUESTER_GROUPS, "dev,a%2Cb")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
    );
    run
}

/// The policy `baseline`, which offers `python`.
pub(crate) fn policies() -> PoliciesSeen {
    let taken = TakenPolicy {
        kind: PolicyKind::ClusterSandboxPolicy,
        name: "baseline".into(),
        uid: "p".into(),
        author: None,
        generation: 1,
        hash: "h".into(),
    };
    let runtime = Runtime {
        name: "python".into(),
        image: Some("registry.example/python:3".into()),
        command: Some(vec!["/usr/bin/python3".into()]),
        extension: None,
        language: None,
        pre_start: None,
    };
    let rules = PolicyRules {
        runtimes: Some(vec![runtime]),
        limits: Limits { max_concurrent: Some(2), ..Limits::default() },
        ..PolicyRules::default()
    };
    PoliciesSeen {
        taking_part: vec![Arc::new(Policy::new(taken, Effect::Allow, rules))],
        writers: Some(BTreeSet::new()),
        ..PoliciesSeen::default()
    }
}

/// The same, and the SandboxPolicy that the run names, which leaves everything to the others.
fn policies_of(run: &ScriptRun) -> PoliciesSeen {
    let PolicyRef { kind, name } = run.spec.policy_ref.clone();
    let mut seen = policies();
    if kind == PolicyKind::SandboxPolicy {
        let taken = TakenPolicy { kind, uid: name.clone(), name, author: None, generation: 1, hash: "h".into() };
        seen.taking_part.push(Arc::new(Policy::new(taken, Effect::Restrict, PolicyRules::default())));
    }
    seen
}

pub(crate) fn sealing_key() -> SealingKey {
    SealingKey::from_bytes(&[7; KEY_BYTES]).unwrap()
}

pub(crate) fn fixed(run: &ScriptRun) -> Fixed {
    Fixed { start_budget_seconds: 60, seal_to: seal_to(run.metadata.uid.as_deref().unwrap()), egress: Some(egress()), has_interface: false }
}

/// The stories ask a million times for the keys of a few runs.
fn seal_to(uid: &str) -> String {
    static KNOWN: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap();
    known.entry(uid.to_owned()).or_insert_with(|| sealing_key().of_run(uid).public()).clone()
}

pub(crate) fn valid(run: &ScriptRun) -> ValidRun {
    let text = run.spec.script.source.inline.clone().unwrap_or_default().into_bytes();
    let input = run.spec.script.input.as_ref().map(ToString::to_string);
    validate(run, input.as_deref(), &SourceSeen::Text(text), &policies_of(run), &fixed(run), &TextsSeen::default(), at(0)).unwrap()
}

/// Everything in order, no pod.
pub(crate) fn seen(run: &ScriptRun) -> Seen {
    decided(valid(run))
}

/// The same, where this was decided.
pub(crate) fn decided(valid: ValidRun) -> Seen {
    static OUTPUT: LazyLock<OutputGrant> = LazyLock::new(|| output_grant(&policies().taking_part));
    Seen {
        offer: Offer::NoPool,
        is_job_to_come: false,
        bound: Bound::Yes,
        decision: Some(Ok(Box::new(valid))),
        sandbox: SandboxSeen::Ready,
        pod: PodSeen::Absent,
        stream: StreamSeen::default(),
        containment: Containment::None,
        network: None,
        is_refused_too_often: false,
        approving: Approving::NotNeeded,
        is_one_too_many: false,
        has_lost_approval: false,
        output: Ok(OUTPUT.clone()),
        log: LogSeen::Fine,
        leading_since: at(-1000),
    }
}

/// The pod of `run`, pending.
pub(crate) fn a_pod(run: &ScriptRun) -> PodFacts {
    PodFacts {
        addresses: vec![[10, 1, 2, 3].into()],
        name: names::pod_name(run.metadata.uid.as_deref().unwrap()),
        uid: POD_UID.into(),
        node: Some("node".into()),
        deleting: false,
        has_waited: false,
        mutated: None,
        job_digest: Some(valid(run).digest),
        files_digest: Some(valid(run).files_digest),
        life: PodLife::Pending(WaitsFor::Creation),
    }
}

pub(crate) fn present(pod: PodFacts) -> PodSeen {
    PodSeen::Present(Box::new(pod))
}

pub(crate) fn ended(exit_code: i32, reason: &str) -> PodLife {
    PodLife::Ended(Ended { exit_code: Some(exit_code), container_reason: Some(reason.into()), ..Ended::default() })
}

pub(crate) fn a_report(exit_code: i32) -> Report {
    Report {
        exit_code: Some(exit_code),
        signal: None,
        cause: Cause::Itself,
        stdout_bytes: 0,
        stderr_bytes: 0,
        first_output_milliseconds: None,
        output: Output::Absent {},
        cpu_milliseconds: 1,
        peak_memory_bytes: 2,
        wall_milliseconds: 3,
    }
}

/// A stream that is open and has brought `change`.
pub(crate) fn a_stream(change: impl FnOnce(&mut Transcript)) -> StreamSeen {
    let mut transcript = Transcript { boot: Some(BOOT.into()), ..Transcript::default() };
    change(&mut transcript);
    StreamSeen { transcript: Arc::new(transcript), listening: true, caught_up: true, ..StreamSeen::default() }
}

/// `run` with the status that `step` leaves behind.
pub(crate) fn after(run: &ScriptRun, seen: &Seen, step: &Step, done: &Done, second: i64) -> ScriptRun {
    let mut run = run.clone();
    let tells = match step {
        Step::RecordResult => true,
        Step::Finish(_) => is_cut_short(&run),
        _ => false,
    };
    let told = telling::told(&seen.stream.transcript, &seen.output).filter(|_| tells);
    let told = told.map(|produced| Done::Told(Box::new(with_stored(produced, None))));
    if let Some(status) = compute_status(&run, seen, step, told.as_ref().unwrap_or(done), at(second)) {
        run.status = Some(status);
    }
    run
}

pub(crate) fn admitted(second: i64) -> ScriptRun {
    let run = a_run();
    after(&run, &seen(&run), &Step::Admit, &Done::Queued(Admission::Admit), second)
}

pub(crate) fn started(second: i64) -> ScriptRun {
    let run = admitted(second);
    let seen = Seen { pod: present(a_pod(&run)), ..seen(&run) };
    after(&run, &seen, &Step::RecordStart { boot: BOOT.into() }, &Done::Yes, second)
}

pub(crate) fn status(run: &ScriptRun) -> ScriptRunStatus {
    run.status.clone().unwrap_or_default()
}

/// Where the gateway is.
pub(crate) fn egress() -> Egress {
    let at = |port| std::net::SocketAddr::from(([10, 96, 0, 7], port));
    Egress { gates: vec![Gate { allowed: at(8443), forbidden: at(8445) }], name: "paddock-egress".into(), authority: "PEM".into() }
}
