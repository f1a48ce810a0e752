//! The records of what happened. Pure: objects and reports in, records out.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::ResourceExt as _;
use paddock_audit::{RecordType, Salt};
use paddock_crds::{AuditEvent, Decision, OutputStream, ScriptRun, ScriptRunStatus, Verdict};
use paddock_egress::wire::{Outcome, Report};
use paddock_policy::{AT_GATEWAY, NETWORK_PERMISSION, SecretValues};
use serde_json::{Map, Value, json};

use crate::script_run::job::hash;
use crate::script_run::result::{are_hidden, has_none_of};

/// Decisions in one record: a record has 64 KiB.
const DECISIONS: usize = 16;

/// A record before it is written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Told {
    pub(crate) type_: RecordType,
    pub(crate) id: String,
    pub(crate) time: String,
    pub(crate) subject: Option<String>,
    pub(crate) data: Value,
}

/// Which record an event of `status.audit` is.
fn type_of(event: &AuditEvent) -> Option<RecordType> {
    RecordType::ALL.iter().copied().find(|known| known.as_str() == event.type_)
}

fn subject(run: &ScriptRun) -> String {
    format!("{}/{}", run.namespace().unwrap_or_default(), run.name_any())
}

/// What a write has made known of a run: the events that were not in the status before, and what was decided if that is new, as of `now`.
pub(crate) fn of_write(before: Option<&ScriptRunStatus>, after: &ScriptRun, salt: &Salt, now: Timestamp) -> Vec<Told> {
    let Some(status) = &after.status else { return Vec::new() };
    let is_new = |event: &&AuditEvent| before.is_none_or(|before| !before.audit.contains(event));
    let known = status.audit.iter().filter(is_new).filter_map(|event| Some((event, type_of(event)?)));
    let mut all: Vec<Told> = known.map(|(event, type_)| of_event(after, status, event, type_, salt)).collect();
    if before.is_none_or(|before| before.decisions != status.decisions) {
        // After the first sight of a run, and before everything that follows from it.
        let first = all.iter().take_while(|told| told.type_ == RecordType::RunReceived).count();
        all.splice(first..first, of_decisions(after, status, now));
    }
    all
}

/// The identifier is that of the event, so that who tells it twice tells the same.
fn of_event(run: &ScriptRun, status: &ScriptRunStatus, event: &AuditEvent, type_: RecordType, salt: &Salt) -> Told {
    let uid = run.uid().unwrap_or_default();
    let MicroTime(time) = event.time;
    let mut data = json!({ "uid": uid });
    if let (Some(reason), Value::Object(data)) = (&event.reason, &mut data) {
        data.insert("reason".into(), json!(reason));
    }
    if let (Value::Object(more), Value::Object(data)) = (data_of(run, status, type_, salt), &mut data) {
        data.extend(more.into_iter().filter(|(_, value)| !value.is_null()));
    }
    let id = format!("{uid}/{}/{}", type_.as_str(), time.as_microsecond());
    Told { type_, id, time: time.to_string(), subject: Some(subject(run)), data }
}

/// What belongs to an event, beside the reason. No text of a script, an input or an output, and no message.
fn data_of(run: &ScriptRun, status: &ScriptRunStatus, type_: RecordType, salt: &Salt) -> Value {
    let salted = |text: &Option<String>| text.as_ref().map(|text| salt.hash(text.as_bytes()));
    match type_ {
        RecordType::RunReceived => json!({
            "requester": status.requester, "runtime": run.spec.script.runtime, "policyRef": run.spec.policy_ref,
            "script": salted(&status.script_hash), "policies": status.policies, "risk": status.risk,
        }),
        RecordType::RunApproved => json!({ "approval": status.approval }),
        RecordType::RunAdmitted => json!({
            "requester": status.requester, "policies": status.policies, "script": salted(&status.script_hash), "job": salted(&status.job_digest),
            "image": status.image, "timeoutSeconds": status.timeout_seconds, "approval": status.approval, "risk": status.risk,
        }),
        RecordType::RunStarted => json!({ "pod": status.pod, "path": status.path }),
        RecordType::RunResultReady => status.result.as_ref().map_or(Value::Null, |result| {
            let stream = |stream: &Option<OutputStream>| {
                stream.as_ref().map(|stream| json!({ "bytes": stream.bytes, "text": salt.hash(stream.text.as_bytes()) }))
            };
            let output = result.output.as_ref().map(|output| salt.hash(output.to_string().as_bytes()));
            let stored = result
                .reference
                .as_ref()
                .map(|stored| json!({ "url": stored.url, "bytes": stored.bytes, "sha256": salt.hash(stored.sha256.as_bytes()) }));
            json!({
                "exitCode": result.exit_code, "signal": result.signal, "output": output, "stored": stored,
                "stdout": stream(&result.stdout), "stderr": stream(&result.stderr), "redactions": result.redactions,
            })
        }),
        RecordType::RunFinished => {
            let sums = status.network.as_ref().map(|network| {
                json!({
                    "connections": network.connections, "refused": network.refused,
                    "sentBytes": network.sent_bytes, "receivedBytes": network.received_bytes,
                })
            });
            json!({ "phase": status.phase, "usage": status.usage, "network": sums, "clocks": status.clocks })
        }
        _ => Value::Object(Map::new()),
    }
}

/// The identifier is made of what was decided.
fn of_decisions(run: &ScriptRun, status: &ScriptRunStatus, now: Timestamp) -> Vec<Told> {
    let uid = run.uid().unwrap_or_default();
    let part = |(number, decisions): (usize, &[Decision])| {
        let digest = hash(json!(decisions).to_string().as_bytes());
        Told {
            type_: RecordType::PermissionDecided,
            id: format!("{uid}/{}/{number}-{:.16}", RecordType::PermissionDecided.as_str(), digest),
            time: now.to_string(),
            subject: Some(subject(run)),
            data: json!({ "uid": uid, "policies": status.policies, "decisions": decisions }),
        }
    };
    status.decisions.chunks(DECISIONS).enumerate().map(part).collect()
}

/// A run that went before it was over.
pub(crate) fn of_deletion(run: &ScriptRun, now: Timestamp) -> Told {
    let uid = run.uid().unwrap_or_default();
    let phase = run.status.as_ref().and_then(|status| status.phase.clone());
    let (type_, data) = (RecordType::RunDeleted, json!({ "uid": uid, "phase": phase }));
    Told { type_, id: format!("{uid}/{}", type_.as_str()), time: now.to_string(), subject: Some(subject(run)), data }
}

/// Whether the gateway has let it go where it wanted to.
fn verdict(outcome: Outcome) -> Verdict {
    match outcome {
        Outcome::NotGranted
        | Outcome::AddressRefused
        | Outcome::NotItsHost
        | Outcome::SecretUnusable
        | Outcome::TooManyTunnels
        | Outcome::BudgetSpent => Verdict::Refused,
        Outcome::Closed | Outcome::NotResolved | Outcome::NotConnected | Outcome::TlsFailed | Outcome::Idle | Outcome::Cut => {
            Verdict::Granted
        }
    }
}

/// What became of a connection. The name of the host is the script's: what it was given can be in it. It is told if the run itself asked for exactly
/// this, or if it is known what the run was given and nothing of that is in it.
pub(crate) fn of_connection(report: &Report, run: Option<&ScriptRun>, given: Option<&SecretValues>, id: String, now: Timestamp) -> Told {
    let decisions = run.and_then(|run| run.status.as_ref()).map(|status| status.decisions.as_slice());
    let is_told = decisions.is_some_and(|decisions| {
        asks_for(decisions, &report.to)
            || given.map_or_else(|| !are_secrets_given(decisions), |values| has_none_of(&are_hidden(values), &report.to))
    });
    let verdict = verdict(report.outcome);
    let type_ = if verdict == Verdict::Refused { RecordType::EgressRefused } else { RecordType::EgressConnected };
    let data = json!({
        "uid": report.run, "to": if is_told { &report.to } else { "withheld" }, "verdict": verdict, "rule": report.rule,
        "outcome": format!("{:?}", report.outcome), "address": report.address.map(|address| address.to_string()),
        "sentBytes": report.sent, "receivedBytes": report.received, "milliseconds": report.milliseconds,
    });
    Told { type_, id, time: now.to_string(), subject: Some(report.name.clone()), data }
}

fn are_secrets_given(decisions: &[Decision]) -> bool {
    let is_secret = |decision: &Decision| decision.permission.starts_with("secrets:") || decision.permission.starts_with(AT_GATEWAY);
    decisions.iter().any(|decision| decision.verdict == Verdict::Granted && is_secret(decision))
}

/// Whether the run named this destination when it was created, before it was given anything.
fn asks_for(decisions: &[Decision], to: &str) -> bool {
    let host = to.rsplit_once(':').map_or(to, |(host, _)| host);
    let named = decisions.iter().filter_map(|decision| decision.permission.strip_prefix(NETWORK_PERMISSION));
    named.map(|named| named.strip_prefix("http://").unwrap_or(named)).any(|named| named == to || named == host)
}

#[cfg(test)]
mod tests {
    use paddock_crds::{Phase, Reason};

    use super::*;
    use crate::script_run::fixtures::{a_run, at};

    const SALT: [u8; 32] = [9; 32];

    fn event(type_: &str, seconds: i64, reason: Option<Reason>) -> AuditEvent {
        AuditEvent { time: MicroTime(at(seconds)), type_: format!("dev.paddock.run.{type_}.v1"), reason }
    }

    fn decision(permission: &str, verdict: Verdict) -> Decision {
        Decision { permission: permission.into(), verdict, rule: "a rule".into() }
    }

    fn run_with(status: ScriptRunStatus) -> ScriptRun {
        let mut run = a_run();
        run.status = Some(status);
        run
    }

    fn types(told: &[Told]) -> Vec<RecordType> {
        told.iter().map(|told| told.type_).collect()
    }

    #[test]
    fn every_event_of_a_life_is_a_record() {
        for name in ["received", "approved", "admitted", "started", "stopping", "result-ready", "finished"] {
            assert!(type_of(&event(name, 0, None)).is_some(), "{name}");
        }
    }

    #[test]
    fn a_write_tells_what_is_new() {
        let salt = Salt::new(&SALT);
        let decisions = (0..20).map(|number| decision(&format!("network:{number}.example.com"), Verdict::Granted)).collect();
        let first = ScriptRunStatus { audit: vec![event("received", 0, None)], decisions, ..ScriptRunStatus::default() };
        let told = of_write(None, &run_with(first.clone()), &salt, at(0));
        assert_eq!(types(&told), [RecordType::RunReceived, RecordType::PermissionDecided, RecordType::PermissionDecided]);
        assert_ne!(told[1].id, told[2].id);
        let mut second = first.clone();
        second.audit.push(event("finished", 5, Some(Reason::Succeeded)));
        second.phase = Some(Phase::Succeeded);
        let later = of_write(Some(&first), &run_with(second.clone()), &salt, at(5));
        assert_eq!(types(&later), [RecordType::RunFinished]);
        assert_eq!((&later[0].data["reason"], &later[0].data["phase"]), (&json!("Succeeded"), &json!("Succeeded")));
        assert_eq!(of_write(Some(&second), &run_with(second.clone()), &salt, at(6)), []);
        // Who tells it again tells the same: by the identifiers it is known as that.
        let ids = |told: &[Told]| told.iter().map(|told| told.id.clone()).collect::<Vec<_>>();
        let again = of_write(None, &run_with(second), &salt, at(99));
        assert_eq!(ids(&again), ids(&[told, later].concat()));
    }

    #[test]
    fn no_text_is_told_and_hashes_depend_on_the_salt() {
        let stdout = OutputStream { text: "the secret plan".into(), tail: None, bytes: 15, truncated_bytes: None };
        let result = paddock_crds::RunResult {
            stdout: Some(stdout),
            output: Some(json!({ "plan": "secret plan" })),
            ..paddock_crds::RunResult::default()
        };
        let script_hash = hash(b"print('secret plan')");
        let audit =
            vec![event("received", 0, None), event("admitted", 1, None), event("result-ready", 2, None), event("finished", 3, None)];
        let message = Some("the secret plan".to_owned());
        let run = run_with(ScriptRunStatus {
            audit,
            script_hash: Some(script_hash.clone()),
            message,
            result: Some(result),
            ..ScriptRunStatus::default()
        });
        let text = |salt: [u8; 32]| format!("{:?}", of_write(None, &run, &Salt::new(&salt), at(3)));
        assert!(!text(SALT).contains("plan") && !text(SALT).contains(&script_hash), "{}", text(SALT));
        assert_ne!(text(SALT), text([8; 32]));
    }

    fn report(to: &str, outcome: Outcome) -> Report {
        let (run, name, rule) = ("uid".to_owned(), "team/run".to_owned(), "rule".to_owned());
        Report { run, name, to: to.to_owned(), rule, outcome, address: None, sent: 5, received: 7, milliseconds: 1 }
    }

    #[test]
    fn a_connection_is_told_with_its_verdict() {
        let run = run_with(ScriptRunStatus::default());
        let of = |outcome| of_connection(&report("a.example.com:443", outcome), Some(&run), None, "1".into(), at(0));
        assert_eq!(of(Outcome::Closed).type_, RecordType::EgressConnected);
        let refused = of(Outcome::NotGranted);
        assert_eq!((refused.type_, refused.subject.as_deref()), (RecordType::EgressRefused, Some("team/run")));
        let expected = json!({
            "uid": "uid", "to": "a.example.com:443", "verdict": "Refused", "rule": "rule", "outcome": "NotGranted", "address": null,
            "sentBytes": 5, "receivedBytes": 7, "milliseconds": 1,
        });
        assert_eq!(refused.data, expected);
    }

    #[test]
    fn a_host_that_can_have_a_secret_in_its_name_is_withheld() {
        let decisions = vec![
            decision("secrets:smtp", Verdict::Granted),
            decision("network:*.example.com", Verdict::Granted),
            decision("network:http://api.example.com", Verdict::Granted),
        ];
        let run = run_with(ScriptRunStatus { decisions, ..ScriptRunStatus::default() });
        let values = SecretValues(vec![("smtp".into(), b"hunter22".to_vec())]);
        let to = |host: &str, run: Option<&ScriptRun>, given: Option<&SecretValues>| {
            of_connection(&report(host, Outcome::NotGranted), run, given, "1".into(), at(0)).data["to"].clone()
        };
        assert_eq!(to("HUNTER22.example.com:443", Some(&run), Some(&values)), "withheld");
        assert_eq!(to("a.example.com:443", Some(&run), Some(&values)), "a.example.com:443");
        assert_eq!(to("a.example.com:443", Some(&run), None), "withheld", "what it was given is not known any more");
        assert_eq!(to("api.example.com:80", Some(&run), None), "api.example.com:80", "the run itself named it");
        assert_eq!(to("a.example.com:443", None, None), "withheld", "nothing is known of the run");
    }
}
