//! The whole answer of the policies to a run, in the two halves between which its script is read.

use std::borrow::Borrow;

use paddock_crds::{Decision, PolicyKind, PolicyRef, Reason, Verdict};

use crate::containment::{Containment, Facts, UNKNOWN_IMPORT, containment};
use crate::decide::{Ask, Outcome, Policy, Refusal, decide};
use crate::input::InputDemand;

/// Decides on what can be decided without the script. `policies` are all that take part.
pub fn judge(policies: &[impl Borrow<Policy>], named: &PolicyRef, ask: &Ask) -> Outcome {
    match missing(policies, named) {
        Some(refusal) => Outcome { result: Err(refusal), decisions: Vec::new() },
        None => decide(policies, ask),
    }
}

/// Without any ClusterSandboxPolicy that is the first thing to tell.
fn missing(policies: &[impl Borrow<Policy>], named: &PolicyRef) -> Option<Refusal> {
    let taken = || policies.iter().map(|policy| &policy.borrow().taken);
    let has_cluster_tier = taken().any(|policy| policy.kind == PolicyKind::ClusterSandboxPolicy);
    if !has_cluster_tier || taken().any(|policy| policy.kind == named.kind && policy.name == named.name) {
        return None;
    }
    let message = match named.kind {
        PolicyKind::SandboxPolicy => format!("there is no SandboxPolicy {} in this namespace", named.name),
        PolicyKind::ClusterSandboxPolicy => format!("there is no ClusterSandboxPolicy {} that selects this namespace", named.name),
    };
    Some(Refusal { reason: Reason::PolicyNotFound, message })
}

/// Whether a deny-list names the run: why it is refused, and the permission that is answered with it.
pub fn judge_denied(policies: &[impl Borrow<Policy>], facts: Facts<'_>) -> Option<(Refusal, Decision)> {
    let Containment::Denied { what, rule } = containment(policies, facts) else { return None };
    // Its author has to learn what is wrong with the text.
    let unread = facts.preflight.filter(|_| what == UNKNOWN_IMPORT).and_then(|text| text.message.as_deref());
    let message = match unread {
        Some(why) => format!("it is not known whether the script imports what is denied: {why} ({rule})"),
        None => format!("{what} is denied ({rule})"),
    };
    let refusal = Refusal { reason: Reason::Denied, message };
    Some((refusal, Decision { permission: what, verdict: Verdict::Refused, rule }))
}

/// Whether an input of so many bytes is what the policies demand, but for its schemas.
pub fn judge_input(demand: &InputDemand, bytes: u64, has_schema: bool) -> Result<(), Refusal> {
    let refuse = |reason, message: String| Err(Refusal { reason, message });
    if let Some((allowed, rule)) = demand.max_bytes.as_ref().filter(|(allowed, _)| bytes > *allowed) {
        return refuse(Reason::InputTooLarge, format!("the input has {bytes} bytes; at most {allowed} are allowed ({rule})"));
    }
    if let Some(rule) = demand.required_by.as_ref().filter(|_| !has_schema) {
        return refuse(Reason::SchemaRequired, format!("the run must bring an inputSchema ({rule})"));
    }
    Ok(())
}
