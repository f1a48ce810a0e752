use serde_json::json;

use super::*;

fn run(phase: &str, reason: &str, stdout: &str) -> ScriptRun {
    serde_json::from_value(json!({
        "apiVersion": "paddock.dev/v1alpha1", "kind": "ScriptRun", "metadata": { "name": "x", "annotations": { REQUESTER: "ada" } },
        "spec": { "policyRef": { "kind": "ClusterSandboxPolicy", "name": "baseline" }, "script": { "runtime": "shell", "source": { "inline": "x" } } },
        "status": {
            "phase": phase, "message": "told", "result": { "stdout": { "text": stdout, "bytes": 1 } },
            "conditions": [{ "type": "Finished", "status": "True", "reason": reason, "message": "told", "lastTransitionTime": "2026-01-01T00:00:00Z" }],
            "usage": { "cpuMilliseconds": 15_000, "peakMemoryBytes": 1, "wallMilliseconds": 6_000 },
        },
    }))
    .expect("a run")
}

const GOOD: &str = "kernel=4.19.0-gvisor\nuser=65532\ntoken=0\ninterfaces=lo \nroot=read-only\nresolver=silent\nwritten=16777216\n";

const API: &str = "tcp://10.96.0.1:443";
const DNS: &str = "dns://10.96.0.10:53";
const API_IPV6: &str = "tcp://[fd00::1]:443";

/// What a sandbox with a network prints: an answer for each of what the gateway is asked, and what else is given.
fn networked_text(answers: &str, granted: &str, more: &str) -> String {
    let refused: String = crate::probes::UNGRANTED.iter().map(|authority| format!("proxy://{authority}={answers}\n")).collect();
    format!("{GOOD}{refused}proxy://inside.svc:443={granted}\n{more}")
}

fn good_network() -> String {
    networked_text("403 NotGranted", "403 AddressRefused", &format!("ipv6=0\n{API}=silent\n{DNS}=silent\n"))
}

fn networked(run: ScriptRun, places: &[&str]) -> Networked {
    let place = |text: &&str| match text.split_once("://").unwrap() {
        ("tcp", address) => Place::Tcp(address.parse().unwrap()),
        (_, address) => Place::Dns(address.parse().unwrap()),
    };
    Networked { run, granted: "inside.svc:443".into(), leads_inside: true, places: places.iter().map(place).collect() }
}

fn node(has_one_cpu: bool) -> NodeSeen {
    NodeSeen { kernel: "6.1.0".into(), has_one_cpu }
}

fn seen(inside: &str, memory: &str, time: &str) -> Seen {
    let ended = |phase, text| run(phase, phase, text);
    let runs = Runs {
        inside: ended("Succeeded", inside),
        memory: ended(memory, ""),
        time: ended(time, ""),
        cpu: ended("Succeeded", "one=1000\nfour=1100\n"),
        processes: ended(memory, ""),
    };
    let network = networked(ended("Succeeded", &good_network()), &[API, DNS]);
    let privileged_pod = PrivilegedPod::Refused;
    Seen { caller: "ada".into(), forgery_is_refused: true, node: Some(node(false)), privileged_pod, runs, networked: Some(network) }
}

fn good() -> Seen {
    seen(GOOD, "OutOfMemory", "TimedOut")
}

fn not_holding(seen: &Seen) -> Vec<(Check, CheckVerdict)> {
    let all = findings(seen).into_iter().map(|finding| (finding.check, finding.verdict));
    all.filter(|(_, verdict)| *verdict != CheckVerdict::Holds).collect()
}

#[test]
fn a_cluster_that_keeps_everything_has_nothing_to_tell() {
    assert_eq!(not_holding(&good()), []);
    let checks: Vec<Check> = findings(&good()).into_iter().map(|finding| finding.check).collect();
    assert_eq!(
        checks,
        Check::ALL.iter().map(|(check, _)| check.clone()).collect::<Vec<_>>(),
        "each once, in the order of their declaration"
    );
    let tenants = Seen { privileged_pod: PrivilegedPod::NotTried, networked: None, ..good() };
    assert_eq!(findings(&tenants).len(), 13, "of what was not tried nothing is told");
}

#[test]
fn each_thing_that_does_not_hold_is_seen() {
    let bad = "kernel=6.1.0\nuser=0\ntoken=1\ninterfaces=lo\nroot=writable\nresolver=answers\nwritten=4294967296\n";
    let mut failing = seen(bad, "Succeeded", "Succeeded");
    (failing.caller, failing.forgery_is_refused, failing.privileged_pod) = ("bob".into(), false, PrivilegedPod::Taken);
    failing.runs.cpu = run("Succeeded", "Succeeded", "one=1000\nfour=3900\n");
    let more = format!("ipv6=1\n{API}=answers\n{DNS}=answers\n{API_IPV6}=answers\n");
    let text = networked_text("200 ", "200 ", &more).replace("kernel=4.19.0-gvisor", "kernel=6.1.0");
    failing.networked = Some(networked(run("Succeeded", "Succeeded", &text), &[API, DNS, API_IPV6]));
    let found = not_holding(&failing);
    assert!(found.iter().all(|(_, verdict)| *verdict == CheckVerdict::Fails), "{found:?}");
    let missing = |check: &Check| !found.iter().any(|(found, _)| found == check);
    let still_good: Vec<&Check> = Check::ALL.iter().map(|(check, _)| check).filter(|check| missing(check)).collect();
    assert_eq!(still_good, [&Check::SandboxInterfaces]);
}

#[test]
fn what_could_not_be_looked_at_is_not_called_good() {
    let mut unknown = Seen { node: None, ..seen("kernel=5.0\ninterfaces=lo eth0 \n", "Refused", "StartTimedOut") };
    unknown.runs.cpu = run("Failed", "Failed", "one=0\nfour=0\n");
    unknown.networked = Some(networked(run("Refused", "Refused", ""), &[API]));
    let found = not_holding(&unknown);
    assert!(found.iter().all(|(_, verdict)| *verdict == CheckVerdict::NotSeen), "{found:?}");
    assert_eq!(found.len(), 16, "all but the stamps and what Pod Security said");
}

#[test]
fn a_limit_of_cpu_is_judged_where_it_can_be_seen() {
    let judged = |text: &str, has_one_cpu, cpu_milliseconds| {
        let mut seen = Seen { node: Some(node(has_one_cpu)), ..good() };
        seen.runs.cpu = run("Succeeded", "Succeeded", text);
        seen.runs.cpu.status.as_mut().unwrap().usage.as_mut().unwrap().cpu_milliseconds = cpu_milliseconds;
        not_holding(&seen)
    };
    let not_seen = [(Check::CpuLimited, CheckVerdict::NotSeen)];
    assert_eq!(judged("one=1000\nfour=2300\n", false, 15_000), not_seen, "the node may do other things");
    // Seen where ten sandboxes shared two cores: of half a core the one got less than a sixth.
    assert_eq!(judged("one=715531\nfour=2461577\n", false, 3_300), not_seen, "it never had more than it may");
    assert_eq!(judged("one=1000\nfour=1100\n", true, 15_000), not_seen, "of one CPU nobody gets more than one");
    assert_eq!(judged("one=1000\nfour=3900\n", false, 15_000), [(Check::CpuLimited, CheckVerdict::Fails)]);
}

/// A sandbox of gVisor is known by its own word where nodes may not be read.
#[test]
fn a_kernel_that_says_so_is_gvisors() {
    assert_eq!(not_holding(&Seen { node: None, ..good() }), []);
}

#[test]
fn each_family_of_addresses_is_judged_by_itself() {
    let judged = |text: &str, places: &[&str]| {
        let networked = networked(run("Succeeded", "Succeeded", &networked_text("403 NotGranted", "403 AddressRefused", text)), places);
        not_holding(&Seen { networked: Some(networked), ..good() })
    };
    assert_eq!(judged("ipv6=0\n", &[]), [], "the runner's own look was over the one family that there is");
    let not_seen = [(Check::NetworkPolicyIpv4, CheckVerdict::NotSeen), (Check::NetworkPolicyIpv6, CheckVerdict::NotSeen)];
    assert_eq!(judged("ipv6=1\n", &[]), not_seen, "it was over one of the two");
    let both = |ipv4: &str, ipv6: &str| judged(&format!("ipv6=1\n{API}={ipv4}\n{API_IPV6}={ipv6}\n"), &[API, API_IPV6]);
    assert_eq!(both("silent", "silent"), []);
    assert_eq!(both("silent", "answers"), [(Check::NetworkPolicyIpv6, CheckVerdict::Fails)]);
    assert_eq!(both("answers", "silent"), [(Check::NetworkPolicyIpv4, CheckVerdict::Fails)]);
    let dns = judged(&format!("ipv6=0\n{DNS}=answers\n"), &[DNS]);
    assert_eq!(dns, [(Check::NetworkPolicyIpv4, CheckVerdict::Fails), (Check::NetworkedNames, CheckVerdict::Fails)]);
}

#[test]
fn what_the_runner_saw_of_its_sandbox_is_told() {
    let judged = |reason: &str| {
        let refused = || run("PolicyNotEnforced", reason, "");
        let mut seen = Seen { networked: Some(networked(refused(), &[])), ..good() };
        seen.runs.inside = refused();
        not_holding(&seen).into_iter().filter(|(_, verdict)| *verdict == CheckVerdict::Fails).map(|(check, _)| check).collect::<Vec<_>>()
    };
    assert_eq!(judged("NotSandboxed"), [Check::SandboxKernel, Check::NetworkedSandbox]);
    assert_eq!(judged("UnexpectedInterface"), [Check::SandboxInterfaces]);
    assert_eq!(judged("UnexpectedToken"), [Check::NoToken, Check::NetworkedSandbox]);
}

#[test]
fn what_the_runner_saw_before_the_start_is_told() {
    let judged = |message: &str| {
        let mut run = run("PolicyNotEnforced", "NetworkNotConfined", "");
        run.status.as_mut().unwrap().message = Some(message.into());
        let found = not_holding(&Seen { networked: Some(networked(run, &[])), ..good() });
        found.into_iter().filter(|(_, verdict)| *verdict == CheckVerdict::Fails).map(|(check, _)| check).collect::<Vec<_>>()
    };
    assert_eq!(judged("10.0.0.7:8445 answers"), [Check::NetworkPolicyIpv4]);
    assert_eq!(judged("[fd00::7]:8445 answers"), [Check::NetworkPolicyIpv6]);
}

#[test]
fn a_gateway_is_judged_by_everything_that_it_was_asked() {
    let judged = |answers: &str, granted: &str| {
        let text = networked_text(answers, granted, "ipv6=0\n");
        not_holding(&Seen { networked: Some(networked(run("Succeeded", "Succeeded", &text), &[])), ..good() })
    };
    let only = |verdict| vec![(Check::GatewayRefuses, verdict)];
    assert_eq!(judged("403 NotGranted", "200 "), only(CheckVerdict::Fails), "what leads inside is refused although it was granted");
    assert_eq!(judged("200 ", "403 AddressRefused"), only(CheckVerdict::Fails));
    assert_eq!(judged("503 NotReady", "403 AddressRefused"), only(CheckVerdict::NotSeen));
    assert_eq!(judged("403 NotGranted", "502 NotResolved"), only(CheckVerdict::NotSeen));
    let outside = Networked {
        leads_inside: false,
        ..networked(run("Succeeded", "Succeeded", &networked_text("403 NotGranted", "200 ", "ipv6=0\n")), &[])
    };
    assert_eq!(not_holding(&Seen { networked: Some(outside), ..good() }), [], "what was granted and leads outside is no matter");
}
