//! What is tried, and what it shows. Pure.

use paddock_crds::{Phase, ScriptRun, ScriptRunStatus};
use serde::Serialize;

use super::REQUESTER;

/// A script that tries something.
pub(crate) struct Probe {
    pub(crate) name: &'static str,
    pub(crate) script: &'static str,
    pub(crate) timeout_seconds: i64,
}

/// Bytes that are written to a disk that must not take them.
const MANY_BYTES: u64 = 4 << 30;

/// In the POSIX shell, and with what every image with a shell has. Their order is that in which [`checks`] takes them.
pub(crate) const PROBES: [Probe; 5] = [
    Probe {
        name: "inside",
        script: "echo \"kernel=$(uname -r)\"
echo \"user=$(id -u)\"
echo \"token=$(find /var/run/secrets /run/secrets -name token 2>/dev/null | wc -l)\"
echo \"interfaces=$(tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' ' | tr '\\n' ' ')\"
if (echo x > /probe) 2>/dev/null; then echo root=writable; else echo root=read-only; fi
if getent hosts kubernetes.default.svc.cluster.local > /dev/null 2>&1; then echo names=found; else echo names=none; fi
head -c 4294967296 /dev/zero > /workspace/probe 2>/dev/null
echo \"written=$(wc -c < /workspace/probe)\"
",
        timeout_seconds: 60,
    },
    Probe { name: "memory", script: "tail /dev/zero", timeout_seconds: 60 },
    Probe { name: "time", script: "sleep 600", timeout_seconds: 1 },
    // How far one process counts in half a second, and how far four do together, at best of six times: with less than a core for all of them it is about
    // the same.
    Probe {
        name: "cpu",
        script: "cd /workspace
count() { i=0; trap 'echo $i; exit' TERM; while :; do i=$((i+1)); done; }
one=0
four=0
for turn in 1 2 3 4 5 6; do
  count > 1 &
  sleep 0.5
  kill $!
  wait
  all=
  for file in 2 3 4 5; do count > $file & all=\"$all $!\"; done
  sleep 0.5
  kill $all
  wait
  own=$(cat 1)
  sum=$(($(cat 2) + $(cat 3) + $(cat 4) + $(cat 5)))
  [ $own -gt $one ] && one=$own
  [ $sum -gt $four ] && four=$sum
done
echo \"one=$one\"
echo \"four=$four\"
",
        timeout_seconds: 60,
    },
    Probe {
        name: "processes",
        script: "sleep 0 || exit 1; i=0; while [ $i -lt 20000 ]; do sleep 600 & i=$((i+1)); done",
        timeout_seconds: 10,
    },
];

/// Four processes that together get no more than so many times what one gets have less than two cores.
const MOST_OF_FOUR: f64 = 1.6;
/// And with so many times as much they have a core each or nearly, if the run had more than one in the middle. Otherwise a node that does other things may
/// have kept the one from its share.
const LEAST_WITHOUT_A_LIMIT: f64 = 3.0;

/// What was found out.
pub(crate) struct Seen {
    /// As whom the cluster knows whoever calls.
    pub(crate) caller: String,
    /// What the API server said to a forged stamp, if it refused it.
    pub(crate) forged: Option<String>,
    /// The node of a probe, if it may be read.
    pub(crate) node: Option<NodeSeen>,
    /// What became of a pod with all privileges in the namespace of the sandboxes.
    pub(crate) privileged_pod: PrivilegedPod,
    /// The probes, each at its end or as it was created.
    pub(crate) runs: Vec<ScriptRun>,
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeSeen {
    pub(crate) kernel: String,
    pub(crate) has_one_cpu: bool,
}

/// What the API server said to a pod with all privileges, as a dry run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PrivilegedPod {
    Taken,
    /// By Pod Security.
    Refused,
    /// Whoever calls may not create pods there, or there is no such namespace.
    NotTried,
}

#[derive(Serialize, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Holds,
    Fails,
    /// It could not be looked at.
    Unknown,
}

#[derive(Serialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Check {
    pub(crate) name: &'static str,
    pub(crate) verdict: Verdict,
    pub(crate) seen: String,
}

fn holds(condition: bool) -> Verdict {
    if condition { Verdict::Holds } else { Verdict::Fails }
}

pub(crate) fn checks(seen: &Seen) -> Vec<Check> {
    let mut all = vec![stamp(seen), forgery(seen)];
    all.extend(inside(seen.runs.first(), seen.node.as_ref().map(|node| node.kernel.as_str())));
    all.push(ending("memory limit", seen.runs.get(1), &[Phase::OutOfMemory]));
    all.push(ending("time limit", seen.runs.get(2), &[Phase::TimedOut]));
    all.push(cpu(seen.runs.get(3), seen.node.as_ref()));
    // What has no limit of its own under gVisor is bounded by memory and time, and none of them outlives its run.
    let ends = [Phase::OutOfMemory, Phase::TimedOut, Phase::RunnerKilled];
    all.push(ending("many processes end with their run", seen.runs.get(4), &ends));
    all.extend(pod_security(seen.privileged_pod));
    all
}

fn cpu(run: Option<&ScriptRun>, node: Option<&NodeSeen>) -> Check {
    let status = run.and_then(|run| run.status.clone()).unwrap_or_default();
    let counted = |name: &str| fact(&stdout(&status), name).and_then(|count| count.parse::<f64>().ok()).filter(|count| *count > 0.0);
    let name = "CPU limit";
    let (Some(one), Some(four)) = (counted("one"), counted("four")) else {
        return Check { name, verdict: Verdict::Unknown, seen: why_not(&status) };
    };
    let has_used_more_than_a_core = status.usage.as_ref().is_some_and(|usage| usage.cpu_milliseconds > usage.wall_milliseconds);
    let verdict = match node {
        // There nobody gets more than one, whether it is limited or not.
        Some(node) if node.has_one_cpu => Verdict::Unknown,
        _ if four / one <= MOST_OF_FOUR => Verdict::Holds,
        _ if four / one >= LEAST_WITHOUT_A_LIMIT && has_used_more_than_a_core => Verdict::Fails,
        _ => Verdict::Unknown,
    };
    Check { name, verdict, seen: format!("four processes did {:.1} times what one did", four / one) }
}

/// For those alone who could create the pod if nothing but Pod Security was in the way.
fn pod_security(tried: PrivilegedPod) -> Option<Check> {
    let (verdict, seen) = match tried {
        PrivilegedPod::Refused => (Verdict::Holds, "a pod with all privileges was refused beside the sandboxes"),
        PrivilegedPod::Taken => (Verdict::Fails, "the API server takes a pod with all privileges beside the sandboxes"),
        PrivilegedPod::NotTried => return None,
    };
    Some(Check { name: "Pod Security is enforced", verdict, seen: seen.to_owned() })
}

fn stdout(status: &ScriptRunStatus) -> String {
    status.result.as_ref().and_then(|result| result.stdout.as_ref()).map(|stdout| stdout.text.clone()).unwrap_or_default()
}

fn stamp(seen: &Seen) -> Check {
    let stamped = seen.runs.first().and_then(|run| run.metadata.annotations.as_ref()?.get(REQUESTER));
    let told = stamped.map_or("the run carries no stamp".to_owned(), |by| format!("created by {by}"));
    Check { name: "requester is stamped", verdict: holds(stamped == Some(&seen.caller)), seen: told }
}

fn forgery(seen: &Seen) -> Check {
    let told = seen.forged.as_ref().map_or("the API server took the stamp of somebody else", |_| "refused by the API server");
    Check { name: "stamp cannot be forged", verdict: holds(seen.forged.is_some()), seen: told.to_owned() }
}

/// The fact that a probe printed.
fn fact<'a>(output: &'a str, name: &str) -> Option<&'a str> {
    output.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::trim)
}

/// Those that one script answers. What it did not print is not known.
fn inside(run: Option<&ScriptRun>, node_kernel: Option<&str>) -> Vec<Check> {
    let status = run.and_then(|run| run.status.clone()).unwrap_or_default();
    let output = stdout(&status);
    let of = |name: &'static str, fact_name: &str, judge: &dyn Fn(&str) -> Verdict, tell: &dyn Fn(&str) -> String| match fact(
        &output, fact_name,
    ) {
        Some(found) => Check { name, verdict: judge(found), seen: tell(found) },
        None => Check { name, verdict: Verdict::Unknown, seen: why_not(&status) },
    };
    let kernel = |found: &str| match node_kernel {
        Some(node) => holds(found != node),
        None if found.contains("gvisor") => Verdict::Holds,
        None => Verdict::Unknown,
    };
    let beside = node_kernel.map_or("the node's may not be read".to_owned(), |node| format!("the node has {node}"));
    vec![
        of("kernel is gVisor's", "kernel", &kernel, &|found| format!("{found}; {beside}")),
        of("script is not root", "user", &|found| holds(found != "0"), &|found| format!("user {found}")),
        of("no token of an account", "token", &|found| holds(found == "0"), &|found| format!("{found} tokens")),
        // Where a sandbox has an interface, no script starts before the runner has seen from inside that it leads to the gateway alone.
        of("no network", "interfaces", &|found| if found == "lo" { Verdict::Holds } else { Verdict::Unknown }, &|found| {
            if found == "lo" {
                "lo alone".to_owned()
            } else {
                format!("{found}: confined by NetworkPolicies, which the runner looks at before each start")
            }
        }),
        of("no names are looked up", "names", &|found| holds(found == "none"), &|found| format!("the API server's name: {found}")),
        of("image is read-only", "root", &|found| holds(found == "read-only"), &str::to_owned),
        of(
            "disk limit",
            "written",
            &|found| found.parse().map_or(Verdict::Unknown, |written: u64| holds(written < MANY_BYTES)),
            &|found| format!("{found} of {MANY_BYTES} bytes were written"),
        ),
    ]
}

/// A probe that must come to one of these ends.
fn ending(name: &'static str, run: Option<&ScriptRun>, expected: &[Phase]) -> Check {
    let status = run.and_then(|run| run.status.clone()).unwrap_or_default();
    let verdict = match &status.phase {
        Some(phase) if expected.contains(phase) => Verdict::Holds,
        // One that failed may not have had the program that it needs.
        Some(Phase::Succeeded) => Verdict::Fails,
        _ => Verdict::Unknown,
    };
    Check { name, verdict, seen: why_not(&status) }
}

fn why_not(status: &ScriptRunStatus) -> String {
    let phase = status.phase.as_ref().map_or("not seen by Paddock", Phase::as_str);
    match &status.message {
        Some(message) => format!("{phase}: {message}"),
        None => phase.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(phase: &str, stdout: &str) -> ScriptRun {
        serde_json::from_value(json!({
            "apiVersion": "paddock.dev/v1alpha1", "kind": "ScriptRun", "metadata": { "name": "x", "annotations": { REQUESTER: "ada" } },
            "spec": { "policyRef": { "kind": "ClusterSandboxPolicy", "name": "baseline" }, "script": { "runtime": "shell", "source": { "inline": "x" } } },
            "status": {
                "phase": phase, "message": "told", "result": { "stdout": { "text": stdout, "bytes": 1 } },
                "usage": { "cpuMilliseconds": 15_000, "peakMemoryBytes": 1, "wallMilliseconds": 6_000 },
            },
        }))
        .expect("a run")
    }

    const GOOD: &str = "kernel=4.19.0-gvisor\nuser=65532\ntoken=0\ninterfaces=lo \nroot=read-only\nnames=none\nwritten=16777216\n";

    fn node(has_one_cpu: bool) -> NodeSeen {
        NodeSeen { kernel: "6.1.0".into(), has_one_cpu }
    }

    fn seen(inside: &str, memory: &str, time: &str) -> Seen {
        let cpu = run("Succeeded", "one=1000\nfour=1100\n");
        let runs = vec![run("Succeeded", inside), run(memory, ""), run(time, ""), cpu, run(memory, "")];
        let privileged_pod = PrivilegedPod::Refused;
        Seen { caller: "ada".into(), forged: Some("no".into()), node: Some(node(false)), privileged_pod, runs }
    }

    fn not_holding(seen: &Seen) -> Vec<(&'static str, Verdict)> {
        checks(seen).iter().filter(|check| check.verdict != Verdict::Holds).map(|check| (check.name, check.verdict)).collect()
    }

    #[test]
    fn a_cluster_that_keeps_everything_has_nothing_to_tell() {
        assert_eq!(not_holding(&seen(GOOD, "OutOfMemory", "TimedOut")), []);
        assert_eq!(checks(&seen(GOOD, "OutOfMemory", "TimedOut")).len(), 14);
        let tenants = Seen { privileged_pod: PrivilegedPod::NotTried, ..seen(GOOD, "OutOfMemory", "TimedOut") };
        assert_eq!(checks(&tenants).len(), 13, "who may not create pods there is told nothing of it");
    }

    #[test]
    fn each_thing_that_does_not_hold_is_seen() {
        let bad = "kernel=6.1.0\nuser=0\ntoken=1\ninterfaces=lo\nroot=writable\nnames=found\nwritten=4294967296\n";
        let mut failing = seen(bad, "Succeeded", "Succeeded");
        (failing.caller, failing.forged, failing.privileged_pod) = ("bob".into(), None, PrivilegedPod::Taken);
        failing.runs[3] = run("Succeeded", "one=1000\nfour=3900\n");
        let found = not_holding(&failing);
        assert_eq!(found.len(), 13, "{found:?}");
        assert!(found.iter().all(|(_, verdict)| *verdict == Verdict::Fails) && !found.iter().any(|(check, _)| *check == "no network"));
    }

    #[test]
    fn what_could_not_be_looked_at_is_not_called_good() {
        let mut unknown = Seen { node: None, ..seen("kernel=5.0\ninterfaces=lo eth0 \n", "Refused", "StartTimedOut") };
        unknown.runs[3] = run("Failed", "one=0\nfour=0\n");
        let found = not_holding(&unknown);
        assert!(found.iter().all(|(_, verdict)| *verdict == Verdict::Unknown), "{found:?}");
        assert_eq!(found.len(), 11);
        let none = Seen { runs: Vec::new(), ..unknown };
        assert_eq!(not_holding(&none).len(), 12, "no run, and so no stamp either");
        let mut busy = seen(GOOD, "OutOfMemory", "TimedOut");
        busy.runs[3] = run("Succeeded", "one=1000\nfour=2300\n");
        assert_eq!(not_holding(&busy), [("CPU limit", Verdict::Unknown)], "the node may do other things");
        // Seen where ten sandboxes shared two cores: of half a core the one got less than a sixth.
        busy.runs[3] = run("Succeeded", "one=715531\nfour=2461577\n");
        busy.runs[3].status.as_mut().unwrap().usage.as_mut().unwrap().cpu_milliseconds = 3_300;
        assert_eq!(not_holding(&busy), [("CPU limit", Verdict::Unknown)], "it never had more than it may");
        let small = Seen { node: Some(node(true)), ..seen(GOOD, "OutOfMemory", "TimedOut") };
        assert_eq!(not_holding(&small), [("CPU limit", Verdict::Unknown)], "of one CPU nobody gets more than one");
    }

    /// A sandbox of gVisor is known by its own word where nodes may not be read.
    #[test]
    fn a_kernel_that_says_so_is_gvisors() {
        assert_eq!(not_holding(&Seen { node: None, ..seen(GOOD, "OutOfMemory", "TimedOut") }), []);
    }
}
