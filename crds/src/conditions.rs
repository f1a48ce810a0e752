//! Phases, conditions and reasons: the closed sets that other programs match on.
//!
//! A word here is public API. It is never renamed, and its meaning never narrows; a new cause gets a new word.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::open_enum::open_enum;

open_enum! {
    /// Where a run is in its life, in one word, for people. Programs read the conditions.
    pub enum Phase {
        /// Accepted and waiting until enough people have approved it.
        AwaitingApproval,
        /// Accepted and waiting: for a free slot, or for the sandbox namespace.
        Queued,
        /// A slot is taken; the pod is being created and has not yet received its start message.
        Starting,
        /// The start message was sent.
        Running,
        /// The run is being ended (time-out, cancel, or a start that failed) and the pod has not ended yet.
        Stopping,
        /// The script ended with exit code 0.
        Succeeded,
        /// The script ended with another exit code or by a signal of its own.
        Failed,
        /// The script was ended because `timeoutSeconds` was over.
        TimedOut,
        /// The run was ended because `spec.cancel` was set.
        Cancelled,
        /// The sandbox used more memory than it may and was killed.
        OutOfMemory,
        /// It was ended from outside: its pod deleted, evicted or preempted, or by a policy that denies or suspends what runs.
        Killed,
        /// The runner inside the sandbox ended without reporting a result.
        RunnerKilled,
        /// The pod could not be started: see the reason.
        StartFailed,
        /// The script did not start within the start budget.
        StartTimedOut,
        /// What the API server stored is not the pod that was rendered, for example because a sidecar was injected.
        PodMutated,
        /// The runner found itself outside the sandbox that the policy demands. The script was not started.
        PolicyNotEnforced,
        /// The pod or its evidence vanished before its result could be read. The script is not run again.
        Lost,
        /// Not allowed, or not understood: nothing was started.
        Refused,
        /// Somebody who may decide has decided against it: nothing was started.
        Denied,
        /// It waited for approvals as long as it may: nothing was started.
        Expired,
    }
}

impl Phase {
    /// Whether a run in this phase never changes again.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::AwaitingApproval | Self::Queued | Self::Starting | Self::Running | Self::Stopping | Self::Unknown(_))
    }
}

open_enum! {
    /// What a condition speaks about.
    #[derive(PartialOrd, Ord)]
    pub enum ConditionType {
        /// The run is well-formed and its policies allow it.
        Accepted,
        /// As many people as the policies demand have approved it. Absent where none are demanded.
        Approved,
        /// A slot is taken: the run counts against its limits until it is finished.
        Admitted,
        /// The start message was about to be sent: from here on the script may have run, and it is never started again.
        Started,
        /// `status.result` holds what the script produced.
        ResultReady,
        /// The pod has ended by the kubelet's word, or will never exist. Nothing in the status changes any more.
        Finished,
        /// kstatus: the run is on its way. Absent once it is finished.
        Reconciling,
        /// kstatus: the run ended without success. Absent while it is on its way and after success.
        Stalled,
    }
}

open_enum! {
    /// Why a condition has its status.
    pub enum Reason {
        /// Accepted: the policies allow the run.
        PolicyAllows,
        /// Accepted=False: the run carries no requester stamp, so it was created while the admission policy was missing.
        Unstamped,
        /// Accepted=False: the spec is not valid in a way that the schema cannot express.
        InvalidSpec,
        /// Accepted=False: no ClusterSandboxPolicy that allows anything selects this namespace, so nothing may run in it.
        NoClusterPolicy,
        /// Accepted=False: the policy that `spec.policyRef` names does not exist, or does not select this namespace.
        PolicyNotFound,
        /// Accepted=False: a ClusterSandboxPolicy by which runs of this namespace were admitted does not select it any more. Nothing runs here until it
        /// does, or until an administrator has it forgotten.
        PolicyGone,
        /// Accepted=False: a policy that takes part cannot be used as it stands.
        PolicyInvalid,
        /// Accepted=False, Finished: a deny-list of a policy names the script, what it imports, its image or its requester.
        Denied,
        /// Admitted=False: a policy that takes part is suspended; the run waits until that changes. Finished: it was ended for that.
        Suspended,
        /// Admitted=False: the audit log cannot be written; the run waits until it can.
        AuditLogUnavailable,
        /// Finished: the script asked for more connections that the egress gateway refused than the policies put up with.
        TooManyRefusedConnections,
        /// Accepted=False: a policy that takes part does not offer the runtime.
        RuntimeNotAllowed,
        /// Accepted=False: the run asks for more memory, CPU, scratch, time or priority than a policy allows.
        LimitExceeded,
        /// Accepted=False: the run asks for a capability that a policy does not grant.
        CapabilityRefused,
        /// Accepted=False: the requester, the author of a policy that grants it, or the operator may not read a Secret or ConfigMap that the run asks for,
        /// or the author or the operator a Secret that the egress gateway would add.
        CapabilityForbidden,
        /// Accepted=False: a Secret or ConfigMap that the run asks for, or a Secret that the egress gateway would add, does not exist, has no such key, cannot
        /// be read or used, or is too large with the others; or a host is asked for, and the egress gateway is not installed.
        CapabilityUnusable,
        /// Accepted=False: an expression of a policy is false for the run. The message is that of its rule.
        RuleNotSatisfied,
        /// Accepted=False: an expression of a policy cannot be evaluated on the run.
        RuleFailed,
        /// Accepted=False: a policy demands that scripts can be examined before they run, and this one cannot. The message tells why.
        ScriptUnclear,
        /// Accepted=False: the text of the script shows code that is made at run time, or other programs, and the run does not ask for that.
        CapabilityUndeclared,
        /// Accepted=False: the script imports what a policy does not name, or it is not known what it imports.
        ImportNotAllowed,
        /// Approved: as many people as the policies demand have approved the run.
        ApprovalGiven,
        /// Approved=False: the run waits for approvals; `status.approval` tells which.
        AwaitingApproval,
        /// Approved=False, Finished: a ScriptApproval denies what the run would do.
        ApprovalDenied,
        /// Approved=False, Finished: the run waited for approvals as long as its policies let it.
        ApprovalExpired,
        /// Finished: an approval that the run needs was revoked or deleted, or is over, or what the run does was denied, after it was admitted.
        ApprovalRevoked,
        /// Accepted=False: the ConfigMap or the key with the script does not exist.
        SourceNotFound,
        /// Accepted=False: the requester, or the operator, may not read the ConfigMap with the script.
        SourceForbidden,
        /// Accepted=False: the ConfigMap changed after the run was accepted and before it was started.
        SourceChanged,
        /// Accepted=False: the script is larger than 64 KiB.
        SourceTooLarge,
        /// Accepted=False: script, arguments and input are together larger than 640 KiB, or they and the schema have more than 1,000,000
        /// bytes as JSON.
        InputTooLarge,
        /// Accepted=False: `input` does not satisfy its schemas; `violations` says where.
        InputInvalid,
        /// Accepted=False: a policy demands a schema for `input`, and there is none.
        SchemaRequired,
        /// Accepted=False: a schema for `input` cannot be used, or takes too long.
        SchemaInvalid,
        /// Accepted=False: a check of the cluster that the run depends on fails: what would confine it was seen not to be in force. The message tells which;
        /// `kubectl get diagnosis cluster --output yaml` tells what was seen.
        CheckFailed,
        /// Accepted=False: as many runs wait, for slots or for approvals, as the policies or the chart's `queue.maxQueued` allow; the message tells
        /// which.
        QueueFull,
        /// Accepted=False: `sbx-…` exists and does not belong to this tenant namespace.
        SandboxNamespaceForeign,
        /// Admitted=False: the sandbox namespace is being set up, or its predecessor is still being removed.
        SandboxNamespaceNotReady,
        /// Admitted: a slot was taken.
        SlotTaken,
        /// Admitted=False: as many runs are active as the policies or the chart's `queue.maxConcurrent` allow; the run waits for its turn.
        WaitingForSlot,
        /// Started=False, Admitted=False: a ResourceQuota of the sandbox namespace has no room for the pod. After 5 s the run gives its slot back, and asks
        /// again after half as long as it has waited, at most 30 s.
        QuotaExceeded,
        /// Started: the start message was sent to the one pod that the status names.
        StartMessageSent,
        /// ResultReady: the runner reported the end of the script.
        ResultReceived,
        /// ResultReady=False: the run ended and there is no result.
        NoResult,
        /// Finished: exit code 0.
        Succeeded,
        /// Finished: another exit code, or a signal.
        Failed,
        /// Finished: `timeoutSeconds` was over.
        TimedOut,
        /// Finished: `spec.cancel` was set.
        Cancelled,
        /// Finished: the sandbox was killed for its memory use.
        OutOfMemory,
        /// Finished: the pod was deleted by somebody else than the operator before the script had ended. What it printed may be there.
        PodDeleted,
        /// Finished: the kubelet or the scheduler removed the pod (eviction, preemption, node shutdown).
        PodEvicted,
        /// Finished: the runner ended without a result.
        RunnerKilled,
        /// Finished: an image of the pod cannot be had.
        ImageUnavailable,
        /// Finished: the interpreter that the policy names for the runtime is not in its image, or cannot be executed.
        InterpreterUnavailable,
        /// Finished: the RuntimeClass does not exist.
        RuntimeClassUnavailable,
        /// Finished: the API server or the kubelet refused the pod for another cause, given in the message.
        PodRejected,
        /// Finished: a ConfigMap or pod with the name of this run exists and is not what the operator would have made.
        NameTaken,
        /// Finished, Started=False: the script did not start within the start budget. The message tells what it waited for: a node with room,
        /// a sandbox that the node could not make (the events in the sandbox namespace tell why), or the runner.
        StartTimedOut,
        /// Finished: the stored pod differs from the rendered one.
        PodMutated,
        /// Finished: the runner is not inside gVisor.
        NotSandboxed,
        /// Finished: the sandbox has a network interface that the run was not granted.
        UnexpectedInterface,
        /// Finished: the sandbox reaches what the network policy of its namespace forbids: the policy is not enforced.
        NetworkNotConfined,
        /// Finished: the egress gateway does not answer from the sandbox, so that nothing shows that its network policy is enforced.
        GatewayUnreachable,
        /// Finished: the sandbox holds a service account token.
        UnexpectedToken,
        /// Finished: what is mounted in the sandbox, or came to it, is not the job that was admitted.
        JobMismatch,
        /// Finished: the pod is gone, or the node lost the sandbox or started it a second time: what became of the script is not known.
        Lost,
        /// Reconciling: the operator works on the run.
        InProgress,
        /// Finished, Stalled: the run was refused; see Accepted.
        Refused,
    }
}

/// Status of a condition, as everywhere in Kubernetes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConditionStatus {
    /// The condition holds.
    True,
    /// It does not hold.
    False,
    /// It is not known.
    Unknown,
}

/// One fact about a run. The shape is that of `metav1.Condition`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What the condition speaks about.
    #[serde(rename = "type")]
    pub type_: ConditionType,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, as one word of a documented set.
    pub reason: Reason,
    /// The same for people; it holds nothing internal.
    #[schemars(length(max = 1024))]
    pub message: String,
    /// The `metadata.generation` that this was computed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When `status` last changed.
    pub last_transition_time: Time,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_of_a_newer_version_survives_a_round_trip() {
        let phase: Phase = serde_json::from_str("\"Hibernating\"").unwrap();
        assert_eq!(phase, Phase::Unknown("Hibernating".into()));
        assert_eq!(serde_json::to_string(&phase).unwrap(), "\"Hibernating\"");
        assert!(!phase.is_final());
    }

    #[test]
    fn every_known_word_reads_back_as_itself() {
        for (reason, description) in Reason::ALL {
            assert_eq!(&Reason::from(reason.as_str()), reason);
            assert!(description.ends_with('.'), "{reason} needs a sentence");
        }
    }
}
