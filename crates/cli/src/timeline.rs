//! The life of a run, for people. Pure.

use jiff::Timestamp;
use kube::ResourceExt as _;
use paddock_crds::{AuditEvent, ConditionType, Phase, RefusedDestination, ScriptRun, ScriptRunStatus, Verdict};

use crate::explain::script_shows;
use crate::table::{plain, table};
use crate::terminal::{Tone, printable, toned};

/// A length of time as short as it can be told: `340ms`, `2.1s`, `5m3s`, `4h20m`, `3d`.
pub(crate) fn span(from: Timestamp, to: Timestamp) -> String {
    let milliseconds = u64::try_from(to.as_millisecond() - from.as_millisecond()).unwrap_or(0);
    let seconds = milliseconds / 1000;
    match seconds {
        0 => format!("{milliseconds}ms"),
        1..60 => format!("{seconds}.{}s", milliseconds % 1000 / 100),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Everything that an author or an administrator asks first.
pub(crate) fn describe(run: &ScriptRun, colours: bool) -> String {
    let status = run.status.clone().unwrap_or_default();
    let mut text = head(run, &status, colours);
    text += &timeline(run, &status, colours);
    text += &decisions(&status, colours);
    for violation in &status.violations {
        text += &format!("  input{}: {}\n", violation.path, violation.message);
    }
    text += &results(&status);
    text
}

fn head(run: &ScriptRun, status: &ScriptRunStatus, colours: bool) -> String {
    let tone = match &status.phase {
        Some(Phase::Succeeded) => Tone::Good,
        _ if status.is_true(&ConditionType::Finished) => Tone::Bad,
        _ => Tone::Plain,
    };
    let phase = toned(status.phase.as_ref().map_or("not seen yet", Phase::as_str), tone, colours);
    let policy = &run.spec.policy_ref;
    let mut lines = vec![
        ("Run", format!("{}/{}", run.namespace().unwrap_or_default(), run.name_any())),
        ("Phase", phase),
        ("Message", status.message.clone().unwrap_or_default()),
        ("Runtime", run.spec.script.runtime.clone()),
        ("Policy", format!("{}/{}", policy.kind.as_str(), policy.name)),
    ];
    if let Some(requester) = &status.requester {
        lines.push(("Created by", requester.username.clone()));
    }
    if let Some(pod) = &status.pod {
        let node = pod.node.as_ref().map_or_else(String::new, |node| format!(" on {node}"));
        lines.push(("Sandbox", format!("{}/{}{node}", pod.namespace, pod.name)));
    }
    if let Some(risk) = &status.risk {
        lines.push(("Risk", risk.to_string()));
    }
    if let Some(preflight) = &status.preflight {
        lines.push(("Shows", script_shows(preflight)));
    }
    if let Some(seconds) = status.timeout_seconds {
        lines.push(("Time limit", format!("{seconds}s")));
    }
    if let Some(hash) = &status.script_hash {
        lines.push(("Script", format!("SHA-256 {hash}")));
    }
    lines.iter().map(|(name, value)| format!("{name:<12}{value}\n")).collect()
}

/// What is said of a step: its event's own word, and what it means.
fn told(event: &AuditEvent) -> (String, &'static str) {
    let word = event.type_.trim_start_matches("dev.paddock.run.").trim_end_matches(".v1").to_owned();
    let meaning = match word.as_str() {
        "received" => "the operator saw the run",
        "admitted" => "a slot was free, and was taken",
        "started" => "the start message went to the sandbox: the script may have run from here on",
        "stopping" => "the run is being ended",
        "result-ready" => "the runner reported the end of the script",
        "finished" => "the run is over",
        _ => "",
    };
    (word, meaning)
}

fn timeline(run: &ScriptRun, status: &ScriptRunStatus, colours: bool) -> String {
    let Some(created) = run.metadata.creation_timestamp.as_ref().map(|time| time.0) else { return String::new() };
    let row = |at: Timestamp, since: Timestamp, word: String, why: String| {
        let clock = at.to_string().replace('T', " ");
        vec![plain(clock), (format!("+{}", span(since, at)), Tone::Faint), plain(word), plain(why)]
    };
    let mut rows = vec![row(created, created, "created".into(), "stamped in whole seconds".into())];
    let mut before = created;
    for event in &status.audit {
        let (word, meaning) = told(event);
        let why = event.reason.as_ref().map_or_else(|| meaning.to_owned(), |reason| format!("{}: {meaning}", reason.as_str()));
        rows.push(row(event.time.0, before, word, why));
        before = event.time.0;
    }
    if let Some(waiting) = status.conditions.iter().find(|condition| condition.type_ == ConditionType::Reconciling) {
        rows.push(vec![plain("now"), plain(""), plain(""), plain(waiting.message.clone())]);
    }
    format!("\n{}", table(&["TIME", "AFTER", "EVENT", "WHY"], &rows, colours))
}

fn decisions(status: &ScriptRunStatus, colours: bool) -> String {
    if status.decisions.is_empty() {
        return String::new();
    }
    let rows: Vec<_> = status
        .decisions
        .iter()
        .map(|decision| {
            let tone = if decision.verdict == Verdict::Granted { Tone::Good } else { Tone::Bad };
            vec![plain(decision.permission.clone()), (decision.verdict.to_string(), tone), plain(decision.rule.clone())]
        })
        .collect();
    format!("\n{}", table(&["PERMISSION", "VERDICT", "BY"], &rows, colours))
}

fn results(status: &ScriptRunStatus) -> String {
    let mut lines = Vec::new();
    if let Some(used) = &status.network {
        let (connections, refused, sent, received) = (used.connections, used.refused, used.sent_bytes, used.received_bytes);
        lines.push(("Network", format!("{connections} connections, {refused} of them refused, {sent} bytes sent, {received} received")));
        let told = |refusal: &RefusedDestination| {
            ("Refused", format!("{} x {}: {} ({})", refusal.count, printable(&refusal.to), refusal.reason, refusal.rule))
        };
        lines.extend(used.refusals.iter().map(told));
    }
    if let Some(result) = &status.result {
        let ending = result.exit_code.map(|code| format!("exit code {code}")).or(result.signal.map(|signal| format!("signal {signal}")));
        lines.extend(ending.map(|ending| ("Ended with", ending)));
        for (name, stream) in [("Stdout", &result.stdout), ("Stderr", &result.stderr)] {
            lines.extend(stream.as_ref().map(|stream| (name, format!("{} bytes", stream.bytes))));
        }
        lines.extend(result.output_error.clone().map(|error| ("Result", format!("not kept: {error}"))));
        let masked: Vec<String> = result.redactions.iter().map(|redaction| format!("{} x {}", redaction.count, redaction.rule)).collect();
        if !masked.is_empty() {
            lines.push(("Masked", masked.join(", ")));
        }
    }
    if let Some(usage) = &status.usage {
        let mebibytes = usage.peak_memory_bytes / (1 << 20);
        lines.push(("Used", format!("{}ms of CPU, {mebibytes}MiB at most, {}ms", usage.cpu_milliseconds, usage.wall_milliseconds)));
    }
    if lines.is_empty() {
        return String::new();
    }
    let text: String = lines.iter().map(|(name, value)| format!("{name:<12}{value}\n")).collect();
    format!("\n{text}")
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case(0, "0ms")]
    #[case(999, "999ms")]
    #[case(2149, "2.1s")]
    #[case(303_000, "5m3s")]
    #[case(15_600_000, "4h20m")]
    #[case(400_000_000, "4d")]
    #[case(-5, "0ms")]
    fn lengths_of_time_are_short(#[case] milliseconds: i64, #[case] expected: &str) {
        let end = Timestamp::from_millisecond(milliseconds).expect("a time");
        assert_eq!(span(Timestamp::UNIX_EPOCH, end), expected);
    }

    #[test]
    fn the_life_of_a_run_can_be_read() {
        let event =
            |time: &str, type_: &str| json!({ "time": format!("2026-01-01T00:00:{time}Z"), "type": format!("dev.paddock.run.{type_}.v1") });
        let mut finished = event("03.200000", "finished");
        finished["reason"] = json!("Failed");
        let run: ScriptRun = serde_json::from_value(json!({
            "apiVersion": "paddock.dev/v1alpha1", "kind": "ScriptRun",
            "metadata": { "name": "report-x", "namespace": "team", "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": { "policyRef": { "kind": "SandboxPolicy", "name": "small" }, "script": { "runtime": "python", "source": { "inline": "x" } } },
            "status": {
                "phase": "Failed", "message": "the script ended with exit code 3", "timeoutSeconds": 30, "scriptHash": "abc",
                "conditions": [{ "type": "Finished", "status": "True", "reason": "Failed", "message": "", "lastTransitionTime": "2026-01-01T00:00:03Z" }],
                "requester": { "username": "ada" },
                "pod": { "namespace": "sbx-team", "name": "sr-1", "uid": "1", "node": "n1" },
                "decisions": [
                    { "permission": "runtime:python", "verdict": "Granted", "rule": "ClusterSandboxPolicy/baseline: runtimes[python]" },
                    { "permission": "memory:9Gi", "verdict": "Refused", "rule": "SandboxPolicy/small: limits.max.memory" },
                ],
                "violations": [{ "path": "/rows/0", "message": "is not a number" }],
                "audit": [event("00.400000", "received"), event("00.410000", "admitted"), event("01.100000", "started"), event("01.900000", "result-ready"), finished],
                "result": { "exitCode": 3, "stdout": { "text": "x", "bytes": 1 }, "redactions": [{ "rule": "Email", "count": 2 }] },
                "network": { "connections": 3, "refused": 2, "sentBytes": 700, "receivedBytes": 9000, "refusals": [{ "to": "x.example:443", "reason": "NotGranted", "rule": "built-in: network", "count": 2 }] },
                "risk": { "score": 10, "level": "Low", "reasons": [{ "reason": "ReachesNetwork", "points": 10 }] },
                "usage": { "cpuMilliseconds": 120, "peakMemoryBytes": 20_000_000, "wallMilliseconds": 400 },
            },
        }))
        .expect("a run");
        insta::assert_snapshot!(describe(&run, false));
    }
}
