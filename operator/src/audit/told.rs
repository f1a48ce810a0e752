//! The records of what happened. Pure: objects and reports in, records out.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::ResourceExt as _;
use paddock_audit::{Record, RecordType, Salt};
use paddock_crds::{
    AuditEvent, ConditionStatus, ConditionType, Decision, OutputStream, Phase, Requester, RunResult, ScriptRun, ScriptRunStatus, Verdict,
};
use paddock_egress::wire::{Outcome, Report};
use paddock_policy::{AT_GATEWAY, NETWORK_PERMISSION, SecretValues};
use serde_json::{Map, Value, json};

use crate::script_run::result::{are_hidden, has_none_of};
use crate::script_run::status::shown;
use crate::script_run::validate::requester;

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

/// What the status of a run makes known: the events whose times are new, and what was decided if that is, as of `now`.
pub(crate) fn of_run(
    run: &ScriptRun,
    status: &ScriptRunStatus,
    is_new: impl Fn(Timestamp) -> bool,
    is_decided_anew: bool,
    (salt, now): (&Salt, Timestamp),
) -> Vec<Told> {
    let known = status.audit.iter().filter(|event| is_new(event.time.0)).filter_map(|event| Some((event, type_of(event)?)));
    let mut all: Vec<Told> = known.map(|(event, type_)| of_event(run, status, event, type_, salt)).collect();
    if is_decided_anew {
        // After the first sight of a run, and before everything that follows from it.
        let first = all.iter().take_while(|told| told.type_ == RecordType::RunReceived).count();
        all.splice(first..first, of_decisions(run, status, now));
    }
    all
}

/// The identifier is that of the event, so that who tells it twice tells the same.
fn of_event(run: &ScriptRun, status: &ScriptRunStatus, event: &AuditEvent, type_: RecordType, salt: &Salt) -> Told {
    let uid = run.uid().unwrap_or_default();
    let MicroTime(time) = event.time;
    let mut data = Map::new();
    data.insert("uid".into(), json!(uid));
    data.insert("reason".into(), json!(event.reason));
    data.extend(data_of(run, status, type_, salt));
    data.retain(|_, value| !value.is_null());
    let id = format!("{uid}/{}/{}", type_.as_str(), time.as_microsecond());
    Told { type_, id, time: time.to_string(), subject: Some(subject(run)), data: Value::Object(data) }
}

/// What belongs to an event, beside the reason. No text of a script, an input or an output, no message, and no hash by which these can be guessed.
fn data_of(run: &ScriptRun, status: &ScriptRunStatus, type_: RecordType, salt: &Salt) -> Map<String, Value> {
    let data = match type_ {
        RecordType::RunReceived => json!({
            "requester": who(run, status), "runtime": run.spec.script.runtime, "policyRef": run.spec.policy_ref, "policies": status.policies, "risk": status.risk,
            "script": salted(status.script_hash.as_ref(), salt),
        }),
        RecordType::RunApproved => json!({ "approval": approval(status, salt) }),
        // What was admitted may be admitted anew as something else until it starts: then it is what is run.
        RecordType::RunAdmitted | RecordType::RunStarted => json!({
            "requester": who(run, status), "policies": status.policies, "risk": status.risk, "approval": approval(status, salt),
            "script": salted(status.script_hash.as_ref(), salt), "job": salted(status.job_digest.as_ref(), salt),
            "image": status.image, "timeoutSeconds": status.timeout_seconds, "pod": status.pod, "path": status.path,
        }),
        RecordType::RunResultReady => status.result.as_ref().map_or(Value::Null, |result| of_result(result, salt)),
        RecordType::RunFinished => of_end(run, status, salt),
        _ => Value::Null,
    };
    match data {
        Value::Object(data) => data,
        _ => Map::new(),
    }
}

/// Who created the run: also where nothing was decided yet.
fn who(run: &ScriptRun, status: &ScriptRunStatus) -> Option<Requester> {
    status.requester.clone().or_else(|| requester(run.annotations()).as_ref().map(shown))
}

fn salted(text: Option<&String>, salt: &Salt) -> Option<String> {
    text.map(|text| salt.hash(text.as_bytes()))
}

/// Its digests are made of the script and the input.
fn approval(status: &ScriptRunStatus, salt: &Salt) -> Option<Value> {
    let approval = status.approval.as_ref()?;
    let demanded = approval.demanded.iter().map(|demanded| {
        json!({ "rule": demanded.rule, "count": demanded.count, "given": demanded.given, "digest": salt.hash(demanded.digest.as_bytes()) })
    });
    Some(
        json!({ "demanded": demanded.collect::<Vec<_>>(), "excluded": approval.excluded, "digest": salt.hash(approval.digest.as_bytes()) }),
    )
}

fn of_result(result: &RunResult, salt: &Salt) -> Value {
    let stream = |stream: &Option<OutputStream>| {
        stream.as_ref().map(|stream| {
            let tail = stream.tail.as_ref().map(|tail| salt.hash(tail.as_bytes()));
            json!({ "bytes": stream.bytes, "text": salt.hash(stream.text.as_bytes()), "tail": tail })
        })
    };
    let stored = result
        .reference
        .as_ref()
        .map(|stored| json!({ "url": stored.url, "bytes": stored.bytes, "sha256": salt.hash(stored.sha256.as_bytes()) }));
    json!({
        "exitCode": result.exit_code, "signal": result.signal, "stored": stored, "redactions": result.redactions,
        "output": result.output.as_ref().map(|output| salt.hash(output.to_string().as_bytes())), "outputText": stream(&result.output_text),
        "stdout": stream(&result.stdout), "stderr": stream(&result.stderr),
    })
}

fn of_end(run: &ScriptRun, status: &ScriptRunStatus, salt: &Salt) -> Value {
    let sums = status.network.as_ref().map(|network| {
        json!({
            "connections": network.connections, "refused": network.refused,
            "sentBytes": network.sent_bytes, "receivedBytes": network.received_bytes,
        })
    });
    let accepted = status.condition(&ConditionType::Accepted).filter(|accepted| accepted.status == ConditionStatus::False);
    // Of a denial the message names who denied it, and nothing else.
    let message = status.message.as_ref().filter(|_| status.phase == Some(Phase::Denied));
    json!({
        "requester": who(run, status), "phase": status.phase, "refusal": accepted.map(|accepted| &accepted.reason), "message": message, "approval": approval(status, salt),
        "usage": status.usage, "network": sums, "clocks": status.clocks,
    })
}

/// What was decided may change and change back: each time it is another event. Of those that a leader tells again, the one that changes nothing is left
/// out by [`is_known`].
fn of_decisions(run: &ScriptRun, status: &ScriptRunStatus, now: Timestamp) -> Vec<Told> {
    let (uid, type_) = (run.uid().unwrap_or_default(), RecordType::PermissionDecided);
    let part = |(part, decisions): (usize, &[Decision])| Told {
        type_,
        id: format!("{uid}/{}/{}-{part}", type_.as_str(), now.as_microsecond()),
        time: now.to_string(),
        subject: Some(subject(run)),
        data: json!({ "uid": uid, "part": part, "policies": status.policies, "decisions": decisions }),
    };
    status.decisions.chunks(DECISIONS).enumerate().map(part).collect()
}

/// Whether the last records of a log have this already: the same event, or, of what was decided, the same as the last word on it.
pub(crate) fn is_known(told: &Told, recent: &[Record]) -> bool {
    if told.type_ != RecordType::PermissionDecided {
        return recent.iter().any(|record| record.id == told.id);
    }
    let is_about_it =
        |record: &&Record| record.type_ == told.type_ && record.data["uid"] == told.data["uid"] && record.data["part"] == told.data["part"];
    recent.iter().rev().find(is_about_it).is_some_and(|last| last.data == told.data)
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

/// What is known of what a run was given. `None`: not any more, or not by this leader.
#[derive(Clone, Debug, Default)]
pub(crate) struct Given {
    /// Secrets that its sandbox has.
    pub(crate) copies: Option<SecretValues>,
    /// Those that the gateway adds, which a host may have told it.
    pub(crate) at_gateway: Option<Vec<Vec<u8>>>,
}

impl Given {
    /// Everything, if it is known of all that was granted.
    fn known(self, decisions: &[Decision]) -> Option<SecretValues> {
        let is_given =
            |what: &str| decisions.iter().any(|decision| decision.verdict == Verdict::Granted && decision.permission.starts_with(what));
        let copies = if is_given("secrets:") { self.copies?.0 } else { Vec::new() };
        let at_gateway = if is_given(AT_GATEWAY) { self.at_gateway? } else { Vec::new() };
        Some(SecretValues(copies.into_iter().chain(at_gateway.into_iter().map(|value| (String::new(), value))).collect()))
    }
}

/// Where a connection led. The name of the host is the script's: what it was given can be in it. It is told if the run itself asked for exactly
/// this, or if it is known what the run was given and nothing of that is in it.
pub(crate) fn host<'a>(report: &'a Report, status: Option<&ScriptRunStatus>, given: Given) -> &'a str {
    // A status that there was no room for says nothing.
    let is_told = status.filter(|status| !status.policies.is_empty()).is_some_and(|status| {
        let is_free = |values: SecretValues| has_none_of(&are_hidden(&values), &report.to);
        asks_for(&status.decisions, &report.to) || given.known(&status.decisions).is_some_and(is_free)
    });
    if is_told { &report.to } else { "withheld" }
}

/// What became of a connection to what [`host`] tells.
pub(crate) fn of_connection(report: &Report, to: &str, id: String, now: Timestamp) -> Told {
    let verdict = verdict(report.outcome);
    let type_ = if verdict == Verdict::Refused { RecordType::EgressRefused } else { RecordType::EgressGranted };
    let data = json!({
        "uid": report.run, "to": to, "verdict": verdict, "rule": report.rule,
        "outcome": report.outcome, "address": report.address.map(|address| address.to_string()),
        "sentBytes": report.sent, "receivedBytes": report.received, "milliseconds": report.milliseconds,
    });
    Told { type_, id, time: now.to_string(), subject: Some(report.name.clone()), data }
}

/// More connections than are told one by one.
pub(crate) fn of_counting(report: &Report, id: String, now: Timestamp) -> Told {
    let (type_, data) = (RecordType::EgressCounted, json!({ "uid": report.run }));
    Told { type_, id, time: now.to_string(), subject: Some(report.name.clone()), data }
}

/// Whether the run named this destination when it was created, before it was given anything.
fn asks_for(decisions: &[Decision], to: &str) -> bool {
    let host = to.rsplit_once(':').map_or(to, |(host, _)| host);
    let named = decisions.iter().filter_map(|decision| decision.permission.strip_prefix(NETWORK_PERMISSION));
    named.map(|named| named.strip_prefix("http://").unwrap_or(named)).any(|named| named == to || named == host)
}

#[cfg(test)]
mod tests {
    use paddock_crds::{ApprovalDemanded, ApprovalStatus, Condition, Reason};

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
    fn a_write_tells_what_is_new() {
        let salt = Salt::new(&SALT);
        let decisions = (0..20).map(|number| decision(&format!("network:{number}.example.com"), Verdict::Granted)).collect();
        let first = ScriptRunStatus { audit: vec![event("received", 0, None)], decisions, ..ScriptRunStatus::default() };
        let all = |status: &ScriptRunStatus| of_run(&run_with(status.clone()), status, |_| true, true, (&salt, at(99)));
        let told = all(&first);
        assert_eq!(types(&told), [RecordType::RunReceived, RecordType::PermissionDecided, RecordType::PermissionDecided]);
        assert_ne!(told[1].id, told[2].id);
        let mut second = first.clone();
        second.audit.push(event("finished", 5, Some(Reason::Succeeded)));
        second.phase = Some(Phase::Succeeded);
        let later = of_run(&run_with(second.clone()), &second, |time| time > at(0), false, (&salt, at(5)));
        assert_eq!(types(&later), [RecordType::RunFinished]);
        assert_eq!((&later[0].data["reason"], &later[0].data["phase"]), (&json!("Succeeded"), &json!("Succeeded")));
        // Who tells it again tells what is known.
        let recent = recorded([told, later].concat());
        for again in all(&second) {
            assert!(is_known(&again, &recent), "{again:?}");
        }
        second.audit.push(event("stopping", 6, None));
        assert!(all(&second).iter().any(|told| !is_known(told, &recent)));
    }

    fn recorded(told: Vec<Told>) -> Vec<Record> {
        let record = |told: Told| Record::new(told.type_, "source", told.id, told.time, told.subject, told.data);
        told.into_iter().map(record).collect()
    }

    #[test]
    fn what_is_decided_anew_and_back_again_is_told_each_time() {
        let salt = Salt::new(&SALT);
        let with = |verdict| ScriptRunStatus { decisions: vec![decision("network:a", verdict)], ..ScriptRunStatus::default() };
        let (granted, refused) = (with(Verdict::Granted), with(Verdict::Refused));
        let of = |status: &ScriptRunStatus, second| of_run(&run_with(status.clone()), status, |_| true, true, (&salt, at(second)));
        let (first, second, third) = (of(&granted, 0), of(&refused, 1), of(&granted, 2));
        let told = recorded([first, second.clone(), third].concat());
        let ids: std::collections::BTreeSet<&str> = told.iter().map(|record| record.id.as_str()).collect();
        assert_eq!(ids.len(), 3);
        let again = of(&granted, 9);
        assert!(is_known(&again[0], &told), "the last word is known");
        assert!(!is_known(&again[0], &told[..2]), "another was the last word");
        assert!(!is_known(&second[0], &told));
    }

    #[test]
    fn the_end_tells_why_a_run_was_refused_and_who_denied_it() {
        let condition = Condition {
            type_: ConditionType::Accepted,
            status: ConditionStatus::False,
            reason: Reason::QueueFull,
            message: "full".into(),
            observed_generation: None,
            last_transition_time: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(0)),
        };
        let audit = vec![event("finished", 0, Some(Reason::Refused))];
        let status = ScriptRunStatus { audit, conditions: vec![condition], message: Some("full".into()), ..ScriptRunStatus::default() };
        let salt = Salt::new(&SALT);
        let end = |status: &ScriptRunStatus| of_run(&run_with(status.clone()), status, |_| true, false, (&salt, at(0))).remove(0).data;
        let data = end(&status);
        assert_eq!((&data["refusal"], data.get("message")), (&json!("QueueFull"), None));
        let message = Some("jane has decided that it may not run".to_owned());
        let denied = ScriptRunStatus { phase: Some(Phase::Denied), conditions: Vec::new(), message: message.clone(), ..status };
        assert_eq!(end(&denied)["message"], json!(message));
    }

    #[test]
    fn no_text_is_told_and_hashes_depend_on_the_salt() {
        let stdout = OutputStream { text: "the secret plan".into(), tail: None, bytes: 15, truncated_bytes: None };
        let result = paddock_crds::RunResult {
            stdout: Some(stdout),
            output: Some(json!({ "plan": "secret plan" })),
            ..paddock_crds::RunResult::default()
        };
        let script_hash = crate::script_run::job::hash(b"print('secret plan')");
        let lives = ["received", "approved", "admitted", "started", "result-ready", "finished"];
        let audit = lives.into_iter().zip(0..).map(|(name, second)| event(name, second, None)).collect();
        let demanded = ApprovalDemanded { rule: "r".into(), digest: "a-digest".into(), count: 1, ends_running: false, given: Vec::new() };
        let approval = ApprovalStatus {
            digest: "a-digest".into(),
            schema_digest: Some("a-digest".into()),
            demanded: vec![demanded],
            ..ApprovalStatus::default()
        };
        let run = run_with(ScriptRunStatus {
            audit,
            script_hash: Some(script_hash.clone()),
            job_digest: Some("a-digest".into()),
            approval: Some(approval),
            message: Some("the secret plan".to_owned()),
            result: Some(result),
            ..ScriptRunStatus::default()
        });
        let text = |salt: [u8; 32]| format!("{:?}", of_run(&run, run.status.as_ref().unwrap(), |_| true, true, (&Salt::new(&salt), at(3))));
        assert!(!text(SALT).contains("plan") && !text(SALT).contains("a-digest") && !text(SALT).contains(&script_hash), "{}", text(SALT));
        assert_ne!(text(SALT), text([8; 32]));
    }

    fn report(to: &str, outcome: Outcome) -> Report {
        let (run, name, rule) = ("uid".to_owned(), "team/run".to_owned(), "rule".to_owned());
        Report { run, name, to: to.to_owned(), rule, outcome, address: None, sent: 5, received: 7, milliseconds: 1 }
    }

    #[test]
    fn a_connection_is_told_with_its_verdict() {
        let of = |outcome| of_connection(&report("a.example.com:443", outcome), "a.example.com:443", "1".into(), at(0));
        assert_eq!(of(Outcome::Closed).type_, RecordType::EgressGranted);
        let refused = of(Outcome::NotGranted);
        assert_eq!((refused.type_, refused.subject.as_deref()), (RecordType::EgressRefused, Some("team/run")));
        let expected = json!({
            "uid": "uid", "to": "a.example.com:443", "verdict": "Refused", "rule": "rule", "outcome": "NotGranted", "address": null,
            "sentBytes": 5, "receivedBytes": 7, "milliseconds": 1,
        });
        assert_eq!(refused.data, expected);
    }

    /// Decided by a policy.
    fn decided(decisions: Vec<Decision>) -> ScriptRunStatus {
        let policy = json!({ "kind": "ClusterSandboxPolicy", "name": "p", "uid": "u", "generation": 1, "hash": "h" });
        ScriptRunStatus { policies: vec![serde_json::from_value(policy).unwrap()], decisions, ..ScriptRunStatus::default() }
    }

    #[test]
    fn a_host_that_can_have_a_secret_in_its_name_is_withheld() {
        let copy = decision("secrets:smtp", Verdict::Granted);
        let wide = decision("network:*.example.com", Verdict::Granted);
        let status = decided(vec![copy.clone(), wide.clone(), decision("network:http://api.example.com", Verdict::Granted)]);
        let known = |value: &str| {
            let copies = Some(SecretValues(vec![("smtp".into(), value.as_bytes().to_vec())]));
            Given { copies, at_gateway: None }
        };
        let unknown = Given::default();
        let to = |name: &str, status: Option<&ScriptRunStatus>, given: &Given| {
            host(&report(name, Outcome::NotGranted), status, given.clone()).to_owned()
        };
        for (value, host) in [
            ("hunter22", "HUNTER22.example.com:443"),
            ("hunter22\n", "hunter22.example.com:443"),
            ("user=me\nkey=hunter22hunter22", "hunter22.hunter22.example.com:443"),
            ("password=hunt", "hunt.example.com:443"),
            ("{\"key\":\"hunter22hunter22\"}", "hunter22hunter22.example.com:443"),
        ] {
            assert_eq!(to(host, Some(&status), &known(value)), "withheld", "{value}");
            assert_eq!(to("a.example.com:443", Some(&status), &known(value)), "a.example.com:443");
        }
        assert_eq!(to("a.example.com:443", Some(&status), &unknown), "withheld", "what it was given is not known any more");
        assert_eq!(to("api.example.com:80", Some(&status), &unknown), "api.example.com:80", "the run itself named it");
        assert_eq!(to("a.example.com:443", None, &unknown), "withheld", "nothing is known of the run");
        assert_eq!(
            to("a.example.com:443", Some(&ScriptRunStatus::default()), &unknown),
            "withheld",
            "nothing is known of what was decided"
        );
        // A host has told the script what the gateway told it.
        let both = decided(vec![copy, wide, decision("gateway-secret:api/token", Verdict::Granted)]);
        assert_eq!(to("a.example.com:443", Some(&both), &known("other")), "withheld", "one of the two is not known");
        let given = Given { at_gateway: Some(vec![b"t0ken-of-api".to_vec()]), ..known("other") };
        assert_eq!(to("a.example.com:443", Some(&both), &given), "a.example.com:443");
        assert_eq!(to("t0ken-of-api.example.com:443", Some(&both), &given), "withheld");
    }
}
