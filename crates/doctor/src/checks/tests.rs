use std::net::IpAddr;

use serde_json::json;

use super::*;
use crate::probes::Place;

fn run(phase: &str, reason: &str, stdout: &str) -> ScriptRun {
    serde_json::from_value(json!({
        "apiVersion": "paddock.dev/v1alpha1", "kind": "ScriptRun", "metadata": { "name": "x", "annotations": { REQUESTER: "ada" } },
        "spec": { "policyRef": { "kind": "ClusterSandboxPolicy", "name": "baseline" }, "script": { "runtime": "shell", "source": { "inline": "x" } } },
        "status": {
            "phase": phase, "message": "told", "result": { "stdout": { "text": stdout, "bytes": 1 } },
            "conditions": [{ "type": "Finished", "status": "True", "reason": reason, "message": "told", "lastTransitionTime": "2026-01-01T00:00:00Z" }],
            "usage": { "cpuMilliseconds": 3_000, "peakMemoryBytes": 1, "wallMilliseconds": 6_000 },
            "pod": { "name": "x", "namespace": "sbx-x", "uid": "x", "node": "one" },
        },
    }))
    .expect("a run")
}

const GOOD: &str = "kernel=4.19.0-gvisor\nuser=65532\nsecrets=0\ninterfaces=lo\nroot=read-only\nresolver=silent\nwritten=16777216\n";

const API: &str = "tcp://10.96.0.1:443";
const DNS: &str = "dns://10.96.0.10:53";
const API_IPV6: &str = "tcp://[fd00::1]:443";

/// What a sandbox with a network prints: an answer for each of what the gateway is asked, and what else is given.
fn networked_text(answers: &str, granted: &str, more: &str) -> String {
    let refused: String = crate::probes::UNGRANTED.iter().map(|authority| format!("proxy://{authority}={answers}\n")).collect();
    format!("{GOOD}{refused}proxy://inside.svc:443={granted}\n{more}")
}

const KUBELET: &str = "tcp://192.168.0.7:10250";

fn good_network() -> String {
    let more = format!("ipv4=way\nipv6=none\n{API}=silent\n{DNS}=silent\n{KUBELET}=silent\n");
    networked_text("403 NotGranted", "403 AddressRefused", &more)
}

fn place(text: &str) -> Place {
    match text.split_once("://").unwrap() {
        ("tcp", address) => Place::Tcp(address.parse().unwrap()),
        (_, address) => Place::Dns(address.parse().unwrap()),
    }
}

/// With a kubelet on the node that it was on.
fn networked(run: ScriptRun, places: &[&str]) -> Networked {
    let network = Network {
        granted: "inside.svc:443".into(),
        leads_inside: true,
        places: places.iter().map(|text| place(text)).collect(),
        kubelets: [("one".to_owned(), vec![place(KUBELET)])].into(),
        gateway: Vec::new(),
    };
    Networked { run, network }
}

fn seen(inside: &str, memory: &str, time: &str) -> Seen {
    let ended = |phase, text| run(phase, phase, text);
    let runs = Runs {
        inside: ended("Succeeded", inside),
        memory: ended(memory, if memory == "Succeeded" { "held=1073741824\n" } else { "" }),
        time: ended(time, ""),
        cpu: ended("Succeeded", "one=1000\nfour=1100\n"),
        processes: ended(memory, if memory == "Succeeded" { "started=20000\n" } else { "" }),
    };
    let network = networked(ended("Succeeded", &good_network()), &[API, DNS]);
    Seen {
        caller: "ada".into(),
        forgery_is_refused: true,
        kernels: [("one".to_owned(), "6.1.0".to_owned())].into(),
        privileged_pod: PrivilegedPod::Refused,
        has_interface: false,
        runs,
        networked: Some(network),
    }
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
    assert_eq!(findings(&Seen { has_interface: true, ..good() }).len(), checks.len() - 1, "one interface more is as it was meant");
}

#[test]
fn each_thing_that_does_not_hold_is_seen() {
    let bad = "kernel=6.1.0\nuser=0\nsecrets=1\ninterfaces=lo eth0\nroot=writable\nresolver=answers\nwritten=16777217\n";
    let mut failing = seen(bad, "Succeeded", "Succeeded");
    (failing.caller, failing.forgery_is_refused, failing.privileged_pod) = ("bob".into(), false, PrivilegedPod::Taken);
    failing.runs.cpu.status.as_mut().unwrap().usage.as_mut().unwrap().cpu_milliseconds = 6_000;
    let more = format!("ipv4=way\nipv6=way\n{API}=answers\n{DNS}=answers\n{API_IPV6}=answers\n{KUBELET}=answers\n");
    let text = networked_text("200 OK", "200 OK", &more).replace("kernel=4.19.0-gvisor", "kernel=6.1.0");
    failing.networked = Some(networked(run("Succeeded", "Succeeded", &text), &[API, DNS, API_IPV6]));
    let found = not_holding(&failing);
    assert!(found.iter().all(|(_, verdict)| *verdict == CheckVerdict::Fails), "{found:?}");
    let missing = |check: &Check| !found.iter().any(|(found, _)| found == check);
    let still_good: Vec<&Check> = Check::ALL.iter().map(|(check, _)| check).filter(|check| missing(check)).collect();
    assert_eq!(still_good, Vec::<&Check>::new());
}

#[test]
fn what_could_not_be_looked_at_is_not_called_good() {
    let empty = "kernel=5.0\nuser=\nsecrets=\nwritten=\n";
    let mut unknown = Seen { kernels: BTreeMap::new(), ..seen(empty, "Refused", "StartTimedOut") };
    unknown.runs.cpu = run("Failed", "Failed", "one=0\nfour=0\n");
    unknown.networked = Some(networked(run("Refused", "Refused", ""), &[API]));
    let found = not_holding(&unknown);
    assert!(found.iter().all(|(_, verdict)| *verdict == CheckVerdict::NotSeen), "{found:?}");
    assert_eq!(found.len(), 17, "all but the stamps and what Pod Security said");
}

#[test]
fn a_limit_of_cpu_is_judged_where_it_can_be_seen() {
    let judged = |text: &str, cpu_milliseconds| {
        let mut seen = good();
        seen.runs.cpu = run("Succeeded", "Succeeded", text);
        seen.runs.cpu.status.as_mut().unwrap().usage.as_mut().unwrap().cpu_milliseconds = cpu_milliseconds;
        not_holding(&seen)
    };
    let only = |verdict| vec![(Check::CpuLimited, verdict)];
    assert_eq!(judged("one=1000\nfour=2300\n", 3_000), only(CheckVerdict::NotSeen), "the node may do other things");
    assert_eq!(judged("one=1000\nfour=1100\n", 4_500), only(CheckVerdict::NotSeen), "half as much again may be the way of measuring");
    assert_eq!(judged("one=1000\nfour=3900\n", 9_000), only(CheckVerdict::Fails));
    assert_eq!(judged("one=1000\nfour=1000\n", 600), only(CheckVerdict::NotSeen), "something else held it back");
    assert_eq!(judged("one=1000\nfour=1000\n", 6_000), only(CheckVerdict::Fails), "the whole of the one CPU that there is");
}

/// What did not happen for another cause is no good news, and no bad news either.
#[test]
fn a_limit_is_what_has_ended_it() {
    let judged = |memory: (&str, &str), processes: (&str, &str), written: &str| {
        let mut seen = seen(&GOOD.replace("written=16777216", written), "OutOfMemory", "TimedOut");
        seen.runs.memory = run(memory.0, memory.0, memory.1);
        seen.runs.processes = run(processes.0, processes.0, processes.1);
        not_holding(&seen)
    };
    let ended = ("OutOfMemory", "");
    assert_eq!(judged(ended, ("Failed", "started=255\n"), "written=16777216"), [], "a limit on processes");
    let not_seen = [Check::DiskLimited, Check::MemoryLimited, Check::ProcessesEnd].map(|check| (check, CheckVerdict::NotSeen));
    assert_eq!(judged(("Succeeded", "held=0\n"), ("Failed", ""), "written=0"), not_seen, "without tail, head and sleep");
}

/// A sandbox of gVisor is known by its own word where nodes may not be read.
#[test]
fn a_kernel_that_says_so_is_gvisors() {
    assert_eq!(not_holding(&Seen { kernels: BTreeMap::new(), ..good() }), []);
    let elsewhere = BTreeMap::from([("another".to_owned(), "4.19.0-gvisor".to_owned())]);
    assert_eq!(not_holding(&Seen { kernels: elsewhere, ..good() }), [], "the kernel of another node says nothing");
}

#[test]
fn each_family_of_addresses_is_judged_by_itself() {
    let judge = |text: &str, places: &[&str], gateway: &[&str]| {
        let text = networked_text("403 NotGranted", "403 AddressRefused", text);
        let mut networked = networked(run("Succeeded", "Succeeded", &text), places);
        networked.network.gateway = gateway.iter().map(|address| address.parse::<IpAddr>().unwrap()).collect();
        let found = not_holding(&Seen { networked: Some(networked), ..good() });
        let is_of_a_family = |check: &Check| matches!(check, Check::NetworkPolicyIpv4 | Check::NetworkPolicyIpv6);
        found.into_iter().filter(|(check, _)| is_of_a_family(check)).collect::<Vec<_>>()
    };
    let judged = |text: &str, places: &[&str]| judge(text, places, &[]);
    assert_eq!(judged("ipv4=way\nipv6=none\n", &[]), [], "the runner's own look was over the one family that there is");
    let not_seen = [(Check::NetworkPolicyIpv4, CheckVerdict::NotSeen), (Check::NetworkPolicyIpv6, CheckVerdict::NotSeen)];
    assert_eq!(judged("ipv4=way\nipv6=way\n", &[]), not_seen, "it was over one of the two");
    assert_eq!(judge("ipv4=way\nipv6=way\n", &[], &["10.0.0.1", "fd00::1"]), [], "or over both, as the gateway has");
    assert_eq!(judge("ipv4=way\nipv6=way\n", &[], &["10.0.0.1"]), not_seen[1..]);
    assert_eq!(judge("ipv4=none\nipv6=way\n", &[], &["fd00::1"]), []);
    let both = |ipv4: &str, ipv6: &str| judged(&format!("ipv4=way\nipv6=way\n{API}={ipv4}\n{API_IPV6}={ipv6}\n"), &[API, API_IPV6]);
    assert_eq!(both("silent", "silent"), []);
    assert_eq!(both("silent", "answers"), [(Check::NetworkPolicyIpv6, CheckVerdict::Fails)]);
    assert_eq!(both("answers", "silent"), [(Check::NetworkPolicyIpv4, CheckVerdict::Fails)]);
    let dns = judged(&format!("ipv4=way\nipv6=none\n{DNS}=answers\n"), &[DNS]);
    assert_eq!(dns, [(Check::NetworkPolicyIpv4, CheckVerdict::Fails)]);
    assert_eq!(judged("ipv4=way\nipv6=none\n", &[API])[0].1, CheckVerdict::NotSeen, "what is not told is no silence");
    assert_eq!(judged("ipv4=none\nipv6=way\n", &[]), [], "and the other way round");
}

#[test]
fn a_node_is_judged_by_its_own_kubelet() {
    let judged = |told: &str, node: &str| {
        let text = networked_text("403 NotGranted", "403 AddressRefused", &format!("ipv4=way\nipv6=none\n{KUBELET}{told}\n"));
        let mut networked = networked(run("Succeeded", "Succeeded", &text), &[]);
        networked.network.kubelets = [(node.to_owned(), vec![place(KUBELET)])].into();
        let found = findings(&Seen { networked: Some(networked), ..good() });
        found.into_iter().find(|finding| finding.check == Check::NodeConfined).unwrap().verdict
    };
    assert_eq!(judged("=silent", "one"), CheckVerdict::Holds);
    assert_eq!(judged("=silent", "another"), CheckVerdict::NotSeen, "that of another node is not what is let through");
    assert_eq!(judged("=answers", "another"), CheckVerdict::Fails);
    assert_eq!(judged(": masked", "one"), CheckVerdict::NotSeen);
}

#[test]
fn names_are_judged_by_servers_that_answer_others() {
    let judged = |text: &str, places: &[&str]| {
        let text = networked_text("403 NotGranted", "403 AddressRefused", &format!("ipv4=way\nipv6=none\n{text}"));
        let seen = Seen { networked: Some(networked(run("Succeeded", "Succeeded", &text), places)), ..good() };
        findings(&seen).into_iter().find(|finding| finding.check == Check::NetworkedNames).map(|finding| finding.verdict)
    };
    assert_eq!(judged(&format!("{DNS}=silent\n"), &[DNS]), Some(CheckVerdict::Holds));
    assert_eq!(judged(&format!("{DNS}=answers\n"), &[DNS]), Some(CheckVerdict::Fails));
    assert_eq!(judged("", &[]), None, "its own are silent since it has none");
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

/// The operator does not tell at which address.
#[test]
fn what_the_runner_saw_before_the_start_is_told() {
    let run = run("PolicyNotEnforced", "NetworkNotConfined", "");
    let found = not_holding(&Seen { networked: Some(networked(run, &[])), ..good() });
    let failing: Vec<Check> = found.into_iter().filter(|(_, verdict)| *verdict == CheckVerdict::Fails).map(|(check, _)| check).collect();
    assert_eq!(failing, [Check::NetworkPolicyIpv4, Check::NetworkPolicyIpv6]);
}

#[test]
fn a_gateway_is_judged_by_everything_that_it_was_asked() {
    let judged = |answers: &str, granted: &str, leads_inside| {
        let text = networked_text(answers, granted, &format!("ipv4=way\nipv6=none\n{DNS}=silent\n"));
        let mut networked = networked(run("Succeeded", "Succeeded", &text), &[DNS]);
        networked.network.leads_inside = leads_inside;
        let found = not_holding(&Seen { networked: Some(networked), ..good() });
        found.into_iter().filter(|(check, _)| *check == Check::GatewayRefuses).collect::<Vec<_>>()
    };
    let only = |verdict| vec![(Check::GatewayRefuses, verdict)];
    assert_eq!(judged("403 NotGranted", "200 OK", true), only(CheckVerdict::Fails), "what leads inside is refused although it was granted");
    assert_eq!(judged("200 OK", "403 AddressRefused", true), only(CheckVerdict::Fails));
    // Nobody was there, and somebody was looked for.
    assert_eq!(judged("403 NotGranted", "502 NotConnected", true), only(CheckVerdict::Fails));
    assert_eq!(judged("502 NotConnected", "403 AddressRefused", true), only(CheckVerdict::Fails));
    assert_eq!(judged("403 AddressRefused", "403 AddressRefused", true), only(CheckVerdict::Fails), "it was granted");
    for (answers, granted) in [
        ("503 NotReady", "403 AddressRefused"),
        ("407 UnknownToken", "403 AddressRefused"),
        ("429 TooManyTunnels", "403 AddressRefused"),
        ("403 NotGranted", "502 NotResolved"),
        ("403 NotGranted", "403 NotGranted"),
    ] {
        assert_eq!(judged(answers, granted, true), only(CheckVerdict::NotSeen), "{answers}, {granted}");
    }
    assert_eq!(judged("400 BadTarget", "200 OK", false), [], "what was granted and leads outside is no matter");
}
