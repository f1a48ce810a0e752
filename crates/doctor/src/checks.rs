//! What became of what was tried, and what it shows. Pure.

mod networked;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use paddock_crds::{Check, CheckVerdict, Phase, Reason, ScriptRun, ScriptRunStatus};

use crate::examine::Network;
use crate::probes::{CPU_MILLI, HELD_BYTES, MANY_BYTES, PROCESSES, SCRATCH_MIB};

/// Annotation by which a run tells who has created it.
pub(crate) const REQUESTER: &str = "paddock.dev/requester";

/// Four processes that together get no more than so many times what one gets have less than two cores.
const MOST_OF_FOUR: f64 = 1.6;
/// A probe that has used more than this of what it may have had a limit that does not bite; up to the other, one that may.
const TOO_MUCH: f64 = 1.8;
const MUCH: f64 = 1.4;
/// One that has used less was held back by something else.
const LITTLE: f64 = 0.6;

/// What was found of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub check: Check,
    /// Whether it holds.
    pub verdict: CheckVerdict,
    /// What was seen, for people.
    pub seen: String,
}

/// What was found out.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// As whom the cluster knows whoever examines it.
    pub(crate) caller: String,
    /// The API server refused a forged stamp.
    pub(crate) forgery_is_refused: bool,
    /// The kernels of the nodes, by their names, of those that may be read.
    pub(crate) kernels: BTreeMap<String, String>,
    /// What became of a pod with all privileges.
    pub(crate) privileged_pod: PrivilegedPod,
    /// Every sandbox has an interface, and network policies confine it.
    pub(crate) has_interface: bool,
    /// The probes, each at its end or as it was created.
    pub(crate) runs: Runs,
    /// What was tried with a network, if anything was.
    pub(crate) networked: Option<Networked>,
}

/// The probes in sandboxes without a network.
#[derive(Clone, Debug)]
pub(crate) struct Runs {
    pub(crate) inside: ScriptRun,
    pub(crate) memory: ScriptRun,
    pub(crate) time: ScriptRun,
    pub(crate) cpu: ScriptRun,
    pub(crate) processes: ScriptRun,
}

/// The probe in a sandbox with a network, and what it tried.
#[derive(Clone, Debug)]
pub(crate) struct Networked {
    pub(crate) run: ScriptRun,
    pub(crate) network: Network,
}

/// What the API server said to a pod with all privileges, as a dry run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PrivilegedPod {
    Taken,
    /// By Pod Security.
    Refused,
    /// Whoever examines the cluster may not create pods there, or there is no such namespace.
    NotTried,
}

pub(crate) fn findings(seen: &Seen) -> Vec<Finding> {
    let runs = &seen.runs;
    let mut all = vec![stamp(seen), forgery(seen)];
    all.extend(pod_security(seen.privileged_pod));
    all.extend(inside(seen));
    all.extend([memory(&runs.memory), cpu(&runs.cpu), time(&runs.time), processes(&runs.processes)]);
    all.extend(seen.networked.iter().flat_map(|networked| networked::findings(networked, &seen.kernels)));
    all.sort_by(|one, other| one.check.cmp(&other.check));
    all
}

fn found(check: Check, verdict: CheckVerdict, seen: impl Into<String>) -> Finding {
    Finding { check, verdict, seen: seen.into() }
}

fn holds(condition: bool) -> CheckVerdict {
    if condition { CheckVerdict::Holds } else { CheckVerdict::Fails }
}

/// What a script has printed, as `NAME=FACT`.
pub(crate) struct Facts {
    status: ScriptRunStatus,
    text: String,
}

impl Facts {
    fn of(run: &ScriptRun) -> Self {
        let status = run.status.clone().unwrap_or_default();
        let stdout = status.result.as_ref().and_then(|result| result.stdout.as_ref());
        Self { text: stdout.map(|stdout| stdout.text.clone()).unwrap_or_default(), status }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::trim)
    }

    /// One that is a number.
    fn number(&self, name: &str) -> Option<u64> {
        self.get(name)?.parse().ok()
    }

    /// Where it was.
    fn node(&self) -> Option<&str> {
        self.status.pod.as_ref()?.node.as_deref()
    }

    /// How the run ended, for people.
    fn ending(&self) -> String {
        let phase = self.status.phase.as_ref().map_or("not seen by Paddock", Phase::as_str);
        match &self.status.message {
            Some(message) => format!("{phase}: {message}"),
            None => phase.to_owned(),
        }
    }

    fn ended_for(&self, reason: &Reason) -> bool {
        self.status.conditions.iter().any(|condition| condition.reason == *reason)
    }

    /// A check that one fact answers. What was not printed is not known, unless the runner has seen it and did not start the script for it.
    fn judge(&self, check: Check, name: &str, judge: impl Fn(&str) -> (CheckVerdict, String)) -> Finding {
        let seen_by_the_runner = match check {
            Check::SandboxKernel => self.ended_for(&Reason::NotSandboxed),
            Check::SandboxInterfaces => self.ended_for(&Reason::UnexpectedInterface),
            Check::NoToken => self.ended_for(&Reason::UnexpectedToken),
            _ => false,
        };
        let (verdict, seen) = match self.get(name) {
            Some(fact) => judge(fact),
            None if seen_by_the_runner => (CheckVerdict::Fails, self.ending()),
            None => (CheckVerdict::NotSeen, self.ending()),
        };
        found(check, verdict, seen)
    }

    fn ended_as(&self, phase: &Phase) -> bool {
        self.status.phase.as_ref() == Some(phase)
    }
}

fn stamp(seen: &Seen) -> Finding {
    let stamped = seen.runs.inside.metadata.annotations.as_ref().and_then(|annotations| annotations.get(REQUESTER));
    let told = stamped.map_or("the run carries no stamp".to_owned(), |by| format!("created by {by}"));
    found(Check::RequesterStamped, holds(stamped == Some(&seen.caller)), told)
}

fn forgery(seen: &Seen) -> Finding {
    let told = if seen.forgery_is_refused { "refused by the API server" } else { "the API server took the stamp of somebody else" };
    found(Check::StampProtected, holds(seen.forgery_is_refused), told)
}

/// For those alone who could create the pod if nothing but Pod Security was in the way.
fn pod_security(tried: PrivilegedPod) -> Option<Finding> {
    let (verdict, seen) = match tried {
        PrivilegedPod::Refused => (CheckVerdict::Holds, "a pod with all privileges was refused"),
        PrivilegedPod::Taken => (CheckVerdict::Fails, "the API server takes a pod with all privileges"),
        PrivilegedPod::NotTried => return None,
    };
    Some(found(Check::PodSecurity, verdict, seen))
}

/// A kernel that says that it is gVisor's is known by its own word where nodes may not be read.
fn kernel(inside: &str, facts: &Facts, kernels: &BTreeMap<String, String>) -> (CheckVerdict, String) {
    let is_gvisor = inside.contains("gvisor");
    let node = facts.node().and_then(|node| Some((node, kernels.get(node)?)));
    let verdict = match node {
        Some((_, kernel)) => holds(is_gvisor && inside != kernel),
        None if is_gvisor => CheckVerdict::Holds,
        None => CheckVerdict::NotSeen,
    };
    let beside = node.map_or("the node's may not be read".to_owned(), |(node, kernel)| format!("the node {node} has {kernel}"));
    (verdict, format!("{inside}; {beside}"))
}

/// Of a fact that is a number.
fn number(fact: &str, holds_for: impl Fn(u64) -> bool) -> CheckVerdict {
    fact.parse().map_or(CheckVerdict::NotSeen, |number| holds(holds_for(number)))
}

fn inside(seen: &Seen) -> Vec<Finding> {
    let facts = Facts::of(&seen.runs.inside);
    let mut all = vec![
        facts.judge(Check::SandboxKernel, "kernel", |fact| kernel(fact, &facts, &seen.kernels)),
        facts.judge(Check::NotRoot, "user", |fact| (number(fact, |user| user != 0), format!("user {fact}"))),
        facts.judge(Check::NoToken, "secrets", |fact| {
            (number(fact, |files| files == 0), format!("{fact} files where those of accounts lie"))
        }),
        facts.judge(Check::SandboxNames, "resolver", |fact| (holds(fact == "silent"), format!("its name servers: {fact}"))),
        facts.judge(Check::RootReadOnly, "root", |fact| (holds(fact == "read-only"), fact.to_owned())),
        facts.judge(Check::DiskLimited, "written", disk),
    ];
    // Where each sandbox has an interface, no script starts before the runner has seen from inside that it leads to the gateway alone.
    if !seen.has_interface {
        all.push(facts.judge(Check::SandboxInterfaces, "interfaces", |fact| (holds(fact == "lo"), format!("interfaces: {fact}"))));
    }
    all
}

fn disk(fact: &str) -> (CheckVerdict, String) {
    let allowed = SCRATCH_MIB << 20;
    let verdict = match fact.parse::<u64>() {
        Ok(written) if written > allowed => CheckVerdict::Fails,
        // Less than half of it was kept from being written by something else.
        Ok(written) if written >= allowed / 2 => CheckVerdict::Holds,
        _ => CheckVerdict::NotSeen,
    };
    (verdict, format!("{fact} of {MANY_BYTES} bytes were written, where {SCRATCH_MIB}Mi are allowed"))
}

fn memory(run: &ScriptRun) -> Finding {
    let facts = Facts::of(run);
    let verdict = match facts.number("held") {
        Some(held) if held >= HELD_BYTES => CheckVerdict::Fails,
        None if facts.ended_as(&Phase::OutOfMemory) => CheckVerdict::Holds,
        _ => CheckVerdict::NotSeen,
    };
    found(Check::MemoryLimited, verdict, facts.ending())
}

fn time(run: &ScriptRun) -> Finding {
    let facts = Facts::of(run);
    let verdict = match () {
        () if facts.ended_as(&Phase::TimedOut) => CheckVerdict::Holds,
        () if facts.ended_as(&Phase::Succeeded) => CheckVerdict::Fails,
        () => CheckVerdict::NotSeen,
    };
    found(Check::TimeLimited, verdict, facts.ending())
}

/// What has no limit of its own under gVisor is bounded by memory and time.
fn processes(run: &ScriptRun) -> Finding {
    let facts = Facts::of(run);
    let is_ended = [Phase::OutOfMemory, Phase::TimedOut, Phase::RunnerKilled].iter().any(|phase| facts.ended_as(phase));
    let verdict = match facts.number("started") {
        Some(PROCESSES..) => CheckVerdict::Fails,
        Some(1..) => CheckVerdict::Holds,
        None if is_ended => CheckVerdict::Holds,
        _ => CheckVerdict::NotSeen,
    };
    found(Check::ProcessesEnd, verdict, facts.ending())
}

fn cpu(run: &ScriptRun) -> Finding {
    let facts = Facts::of(run);
    let counted = |name: &str| facts.get(name).and_then(|count| count.parse::<f64>().ok()).filter(|count| *count > 0.0);
    let usage = facts.status.usage.as_ref().filter(|usage| usage.wall_milliseconds > 0);
    let (Some(one), Some(four), Some(usage)) = (counted("one"), counted("four"), usage) else {
        return found(Check::CpuLimited, CheckVerdict::NotSeen, facts.ending());
    };
    #[expect(clippy::cast_precision_loss, reason = "of less than 2^52 milliseconds every one is told apart")]
    let used = usage.cpu_milliseconds as f64 / usage.wall_milliseconds as f64 * 1000.0 / CPU_MILLI as f64;
    let verdict = match four / one {
        _ if used > TOO_MUCH => CheckVerdict::Fails,
        ratio if ratio <= MOST_OF_FOUR && (LITTLE..=MUCH).contains(&used) => CheckVerdict::Holds,
        _ => CheckVerdict::NotSeen,
    };
    found(
        Check::CpuLimited,
        verdict,
        format!("{used:.1} times the CPU that it may have was used; four processes did {:.1} times what one did", four / one),
    )
}
