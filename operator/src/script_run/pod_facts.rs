//! What a pod says about itself, as plain values. Pure.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{ContainerState, Pod, PodStatus};

use crate::names::CONTAINER;
use crate::pods::is_of_a_pool;

/// The pod of a run. What could not be found out is an error of the reading, never `Absent`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PodSeen {
    /// There is none.
    Absent,
    /// There is one.
    Present(Box<PodFacts>),
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodFacts {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) node: Option<String>,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) deleting: bool,
    /// It was made for a SandboxPool, before there was a run for it.
    pub(crate) has_waited: bool,
    /// Set by a caller that can compare: how the stored pod differs from the rendered one.
    pub(crate) mutated: Option<String>,
    pub(crate) job_digest: Option<String>,
    pub(crate) files_digest: Option<String>,
    pub(crate) life: PodLife,
}

/// How far the pod has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PodLife {
    /// Not yet running.
    Pending(WaitsFor),
    /// The kubelet says that it runs.
    Running,
    /// The kubelet says that it has ended.
    Ended(Ended),
}

/// What a pod that does not run yet waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WaitsFor {
    /// A node that can take it.
    Node,
    /// The node, which creates sandbox and containers.
    Creation,
    /// What the kubelet calls by this reason (`ImagePullBackOff`, `CreateContainerError`, …) and explains.
    Named { reason: String, message: String },
}

/// How the pod ended, by the kubelet's word.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Ended {
    /// `status.reason` of the pod: `DeadlineExceeded`, `Evicted`, …
    pub(crate) pod_reason: Option<String>,
    /// Exit code of the container.
    pub(crate) exit_code: Option<i32>,
    /// Reason of the container: `Completed`, `Error`, `OOMKilled`, `StartError`, …
    pub(crate) container_reason: Option<String>,
    /// Message of the pod, for the administrator.
    pub(crate) message: Option<String>,
    /// What was in the container's termination log: sealed by the runner, or anything at all, by the script.
    pub(crate) termination_message: Option<String>,
    /// The pod was disrupted: preempted, evicted, its node shut down.
    pub(crate) disrupted: bool,
}

impl PodFacts {
    /// Reads a pod.
    pub(crate) fn of(pod: &Pod) -> Self {
        let annotations = pod.metadata.annotations.as_ref();
        Self {
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
            addresses: addresses(pod),
            deleting: pod.metadata.deletion_timestamp.is_some(),
            has_waited: is_of_a_pool(pod),
            mutated: None,
            job_digest: annotations.and_then(|annotations| annotations.get(crate::names::JOB_DIGEST).cloned()),
            files_digest: annotations.and_then(|annotations| annotations.get(crate::names::FILES_DIGEST).cloned()),
            life: life(pod),
        }
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&self) -> Option<&Ended> {
        if let PodLife::Ended(ended) = &self.life { Some(ended) } else { None }
    }
}

fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let listed = pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten());
    listed.filter_map(|listed| listed.ip.parse().ok()).collect()
}

fn life(pod: &Pod) -> PodLife {
    let status = pod.status.clone().unwrap_or_default();
    let states: Vec<(String, ContainerState)> = status
        .init_container_statuses
        .iter()
        .flatten()
        .chain(status.container_statuses.iter().flatten())
        .filter_map(|container| Some((container.name.clone(), container.state.clone()?)))
        .collect();
    match status.phase.as_deref() {
        Some("Succeeded" | "Failed") => {
            let terminated = states.iter().find(|(name, _)| name == CONTAINER).and_then(|(_, state)| state.terminated.clone());
            // An init container that failed is why the script's container has no exit code.
            let terminated =
                terminated.or_else(|| states.iter().find_map(|(_, state)| state.terminated.clone().filter(|end| end.exit_code != 0)));
            PodLife::Ended(Ended {
                pod_reason: status.reason,
                exit_code: terminated.as_ref().map(|end| end.exit_code),
                container_reason: terminated.as_ref().and_then(|end| end.reason.clone()),
                message: status.message,
                termination_message: terminated.and_then(|end| end.message),
                disrupted: status
                    .conditions
                    .iter()
                    .flatten()
                    .any(|condition| condition.type_ == "DisruptionTarget" && condition.status == "True"),
            })
        }
        Some("Running") => PodLife::Running,
        _ => PodLife::Pending(waits_for(&status, &states)),
    }
}

fn waits_for(status: &PodStatus, containers: &[(String, ContainerState)]) -> WaitsFor {
    let is_scheduled = status.conditions.iter().flatten().find(|condition| condition.type_ == "PodScheduled");
    if is_scheduled.is_some_and(|condition| condition.status == "False") {
        return WaitsFor::Node;
    }
    containers
        .iter()
        .filter_map(|(_, state)| state.waiting.as_ref())
        .filter_map(|waiting| Some((waiting.reason.clone()?, waiting.message.clone().unwrap_or_default())))
        .find(|(reason, _)| !matches!(reason.as_str(), "PodInitializing" | "ContainerCreating" | ""))
        .map_or(WaitsFor::Creation, |(reason, message)| WaitsFor::Named { reason, message })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn pending(condition: &str, waiting: &str) -> PodLife {
        let container = json!({ "name": CONTAINER, "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": { "waiting": { "reason": waiting, "message": "why" } } });
        life_of(
            &json!({ "phase": "Pending", "conditions": [{ "type": "PodScheduled", "status": condition }], "containerStatuses": [container] }),
        )
    }

    fn life_of(status: &Value) -> PodLife {
        life(&serde_json::from_value(json!({ "metadata": {}, "status": status })).unwrap())
    }

    #[rstest]
    #[case::no_node("False", "", WaitsFor::Node)]
    #[case::being_made("True", "ContainerCreating", WaitsFor::Creation)]
    #[case::image("True", "ImagePullBackOff", WaitsFor::Named { reason: "ImagePullBackOff".into(), message: "why".into() })]
    fn a_pending_pod_tells_what_it_waits_for(#[case] condition: &str, #[case] waiting: &str, #[case] expected: WaitsFor) {
        assert_eq!(pending(condition, waiting), PodLife::Pending(expected));
    }

    #[test]
    fn a_pod_without_a_status_is_only_created() {
        assert_eq!(life_of(&Value::Null), PodLife::Pending(WaitsFor::Creation));
    }
}
