//! What became of what was tried, and what it shows. Pure.

mod networked;
#[cfg(test)]
mod tests;

use paddock_crds::{Check, CheckVerdict, Phase, Reason, ScriptRun, ScriptRunStatus};

use crate::probes::{ENDS_OF_PROCESSES, MANY_BYTES, Place};

/// Annotation by which a run tells who has created it.
pub(crate) const REQUESTER: &str = "paddock.dev/requester";

/// Four processes that together get no more than so many times what one gets have less than two cores.
const MOST_OF_FOUR: f64 = 1.6;
/// And with so many times as much they have a core each or nearly, if the run had more than one in the middle. Otherwise a node that does other things may
/// have kept the one from its share.
const LEAST_WITHOUT_A_LIMIT: f64 = 3.0;

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
    /// The node of a probe, if it may be read.
    pub(crate) node: Option<NodeSeen>,
    /// What became of a pod with all privileges.
    pub(crate) privileged_pod: PrivilegedPod,
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

/// The probe in a sandbox with a network.
#[derive(Clone, Debug)]
pub(crate) struct Networked {
    pub(crate) run: ScriptRun,
    /// What it was granted.
    pub(crate) granted: String,
    /// That leads into the cluster, so that the gateway must refuse it all the same.
    pub(crate) leads_inside: bool,
    /// Places that it must not reach, and that whoever examines the cluster does.
    pub(crate) places: Vec<Place>,
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
    /// Whoever examines the cluster may not create pods there, or there is no such namespace.
    NotTried,
}

pub(crate) fn findings(seen: &Seen) -> Vec<Finding> {
    let runs = &seen.runs;
    let node = seen.node.as_ref();
    let mut all = vec![stamp(seen), forgery(seen)];
    all.extend(pod_security(seen.privileged_pod));
    all.extend(inside(&runs.inside, node));
    all.push(ending(Check::MemoryLimited, &runs.memory, &[Phase::OutOfMemory]));
    all.push(cpu(&runs.cpu, node));
    all.push(ending(Check::TimeLimited, &runs.time, &[Phase::TimedOut]));
    all.push(ending(Check::ProcessesEnd, &runs.processes, &ENDS_OF_PROCESSES));
    all.extend(seen.networked.iter().flat_map(|networked| networked::findings(networked, node)));
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
    fn judge(&self, check: Check, name: &str, judge: impl Fn(&str) -> CheckVerdict, tell: impl Fn(&str) -> String) -> Finding {
        let seen_by_the_runner = match check {
            Check::SandboxKernel => self.ended_for(&Reason::NotSandboxed),
            Check::SandboxInterfaces => self.ended_for(&Reason::UnexpectedInterface),
            Check::NoToken => self.ended_for(&Reason::UnexpectedToken),
            _ => false,
        };
        match self.get(name) {
            Some(fact) => found(check, judge(fact), tell(fact)),
            None if seen_by_the_runner => found(check, CheckVerdict::Fails, self.ending()),
            None => found(check, CheckVerdict::NotSeen, self.ending()),
        }
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
fn kernel(inside: &str, node: Option<&NodeSeen>) -> (CheckVerdict, String) {
    let is_gvisor = inside.contains("gvisor");
    let verdict = match node {
        Some(node) => holds(is_gvisor && inside != node.kernel),
        None if is_gvisor => CheckVerdict::Holds,
        None => CheckVerdict::NotSeen,
    };
    let beside = node.map_or("the node's may not be read".to_owned(), |node| format!("the node has {}", node.kernel));
    (verdict, format!("{inside}; {beside}"))
}

fn inside(run: &ScriptRun, node: Option<&NodeSeen>) -> Vec<Finding> {
    let facts = Facts::of(run);
    let interfaces = |fact: &str| match fact {
        "lo" => "lo alone".to_owned(),
        _ => format!("{fact}: confined by NetworkPolicies, which the runner looks at before each start"),
    };
    vec![
        facts.judge(Check::SandboxKernel, "kernel", |fact| kernel(fact, node).0, |fact| kernel(fact, node).1),
        facts.judge(Check::NotRoot, "user", |fact| holds(fact != "0"), |fact| format!("user {fact}")),
        facts.judge(Check::NoToken, "token", |fact| holds(fact == "0"), |fact| format!("{fact} tokens")),
        // Where a sandbox has an interface, no script starts before the runner has seen from inside that it leads to the gateway alone.
        facts.judge(
            Check::SandboxInterfaces,
            "interfaces",
            |fact| if fact == "lo" { CheckVerdict::Holds } else { CheckVerdict::NotSeen },
            interfaces,
        ),
        facts.judge(Check::SandboxNames, "resolver", |fact| holds(fact == "silent"), |fact| format!("its name servers: {fact}")),
        facts.judge(Check::RootReadOnly, "root", |fact| holds(fact == "read-only"), str::to_owned),
        facts.judge(
            Check::DiskLimited,
            "written",
            |fact| fact.parse().map_or(CheckVerdict::NotSeen, |written: u64| holds(written < MANY_BYTES)),
            |fact| format!("{fact} of {MANY_BYTES} bytes were written"),
        ),
    ]
}

/// A probe that must come to one of these ends.
fn ending(check: Check, run: &ScriptRun, expected: &[Phase]) -> Finding {
    let facts = Facts::of(run);
    let verdict = match &facts.status.phase {
        Some(phase) if expected.contains(phase) => CheckVerdict::Holds,
        // One that failed may not have had the program that it needs.
        Some(Phase::Succeeded) => CheckVerdict::Fails,
        _ => CheckVerdict::NotSeen,
    };
    found(check, verdict, facts.ending())
}

fn cpu(run: &ScriptRun, node: Option<&NodeSeen>) -> Finding {
    let facts = Facts::of(run);
    let counted = |name: &str| facts.get(name).and_then(|count| count.parse::<f64>().ok()).filter(|count| *count > 0.0);
    let (Some(one), Some(four)) = (counted("one"), counted("four")) else {
        return found(Check::CpuLimited, CheckVerdict::NotSeen, facts.ending());
    };
    let has_used_more_than_a_core = facts.status.usage.as_ref().is_some_and(|usage| usage.cpu_milliseconds > usage.wall_milliseconds);
    let verdict = match node {
        // There nobody gets more than one, whether it is limited or not.
        Some(node) if node.has_one_cpu => CheckVerdict::NotSeen,
        _ if four / one <= MOST_OF_FOUR => CheckVerdict::Holds,
        _ if four / one >= LEAST_WITHOUT_A_LIMIT && has_used_more_than_a_core => CheckVerdict::Fails,
        _ => CheckVerdict::NotSeen,
    };
    found(Check::CpuLimited, verdict, format!("four processes did {:.1} times what one did", four / one))
}
