//! Names, labels and annotations: public API, every one.

use std::collections::BTreeMap;

use paddock_crds::Requester;
use sha2::{Digest as _, Sha256};

/// Keeps a ScriptRun until its pod is gone.
pub(crate) const FINALIZER: &str = "paddock.dev/sandbox";
/// On a sandbox namespace: the tenant namespace that it belongs to. It is the mark of a namespace that the operator made.
pub(crate) const SANDBOX_OF: &str = "paddock.dev/sandbox-of";
/// On a sandbox namespace: the UID of that tenant namespace.
pub(crate) const TENANT_UID: &str = "paddock.dev/tenant-uid";
/// On a sandbox namespace: the names of all ClusterSandboxPolicies by which something was ever admitted in it, separated by commas.
pub(crate) const CLUSTER_POLICIES: &str = "paddock.dev/cluster-policies";
/// On pods and ConfigMaps: the UID of their run.
pub(crate) const RUN_UID: &str = "paddock.dev/run-uid";
/// On pods: the tenant namespace of their run.
pub(crate) const RUN_NAMESPACE: &str = "paddock.dev/run-namespace";
/// On pods, as an annotation: the name of their run.
pub(crate) const RUN_NAME: &str = "paddock.dev/run-name";
/// On pods, as an annotation: kind and name of the policy that their run names, with a slash between.
pub(crate) const RUN_POLICY: &str = "paddock.dev/run-policy";
/// On pods, as an annotation: what was admitted.
pub(crate) const JOB_DIGEST: &str = "paddock.dev/job-digest";
/// On pods, as an annotation: the files of the job, as the start message names them.
pub(crate) const FILES_DIGEST: &str = "paddock.dev/files-digest";
/// On pods of a SandboxPool: the UID of the pool.
pub(crate) const POOL_UID: &str = "paddock.dev/pool-uid";
/// On pods of a SandboxPool, as an annotation: the name of the pool.
pub(crate) const POOL: &str = "paddock.dev/pool";
/// On pods of a SandboxPool, as an annotation: what they were made by, so that one that is made by other things is replaced.
pub(crate) const TEMPLATE: &str = "paddock.dev/template";
/// Label of a sandbox that has a network, which is how its network policy finds it.
pub(crate) const NETWORK: &str = "paddock.dev/network";
/// Value of [`NETWORK`]: to the egress gateway and nowhere else.
pub(crate) const NETWORK_EGRESS: &str = "egress";
/// On everything that the operator makes.
pub(crate) const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY`], and field manager.
pub(crate) const MANAGER: &str = "paddock-operator";
/// Stamp of the requester's user name.
pub(crate) const REQUESTER: &str = "paddock.dev/requester";
/// Stamp of the requester's UID.
pub(crate) const REQUESTER_UID: &str = "paddock.dev/requester-uid";
/// Stamp of the requester's groups, separated by commas; in a group, `%` is `%25` and a comma is `%2C`.
pub(crate) const REQUESTER_GROUPS: &str = "paddock.dev/requester-groups";
/// Stamp of an approver's user name, on a ScriptApproval.
pub(crate) const APPROVER: &str = "paddock.dev/approver";
/// Stamp of an approver's UID.
pub(crate) const APPROVER_UID: &str = "paddock.dev/approver-uid";
/// Stamp of an approver's groups, written as those of a requester.
pub(crate) const APPROVER_GROUPS: &str = "paddock.dev/approver-groups";
/// On a policy: the user name of who wrote its spec.
pub(crate) const AUTHOR: &str = "paddock.dev/author";
/// On a policy: the UID of who wrote its spec.
pub(crate) const AUTHOR_UID: &str = "paddock.dev/author-uid";
/// On a policy: the groups of who wrote its spec, written as those of a requester.
pub(crate) const AUTHOR_GROUPS: &str = "paddock.dev/author-groups";
/// What the cluster stamps on a policy.
pub(crate) const AUTHOR_STAMPS: [&str; 3] = [AUTHOR, AUTHOR_UID, AUTHOR_GROUPS];
/// On a revision of a policy: the UID of the policy.
pub(crate) const POLICY_UID: &str = "paddock.dev/policy-uid";
/// On a revision of a policy: the kind of the policy.
pub(crate) const POLICY_KIND: &str = "paddock.dev/policy-kind";
/// On a revision of a policy, as an annotation: the name of the policy.
pub(crate) const POLICY_NAME: &str = "paddock.dev/policy";
/// On a revision of a policy, as an annotation: the hash of its spec, as in the status of runs.
pub(crate) const POLICY_HASH: &str = "paddock.dev/policy-hash";
/// What the cluster stamps on a run.
pub(crate) const STAMPS: [&str; 3] = [REQUESTER, REQUESTER_UID, REQUESTER_GROUPS];
/// Annotation by which whoever creates a run makes it part of a trace of their own: W3C `traceparent`.
pub(crate) const TRACEPARENT: &str = "paddock.dev/traceparent";
/// The one container of a sandbox pod that runs the script.
pub(crate) const CONTAINER: &str = "script";

/// Labels by which Argo CD and Flux know what they hold in Git.
pub(crate) const GIT_LABELS: [&str; 3] = ["argocd.argoproj.io/instance", "kustomize.toolkit.fluxcd.io/name", "helm.toolkit.fluxcd.io/name"];
/// Annotations by which Argo CD and Helm know what they hold.
pub(crate) const GIT_ANNOTATIONS: [&str; 2] = ["argocd.argoproj.io/tracking-id", "meta.helm.sh/release-name"];

const PREFIX: &str = "sbx-";
const MAX_NAMESPACE: usize = 63;

/// The sandbox namespace of a tenant namespace: `sbx-NAME`, or with a hash where that is too long.
pub(crate) fn sandbox_namespace(tenant: &str) -> String {
    let plain = format!("{PREFIX}{tenant}");
    if plain.len() <= MAX_NAMESPACE {
        return plain;
    }
    let digest: String = Sha256::digest(tenant).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let kept: String = tenant.chars().take(MAX_NAMESPACE - PREFIX.len() - digest.len() - 1).collect();
    format!("{PREFIX}{}-{digest}", kept.trim_end_matches('-'))
}

/// A user that admission has stamped on an object: user name, UID and groups. A part that cannot be read makes it no stamp.
pub(crate) fn stamped(annotations: &BTreeMap<String, String>, [name, uid, groups]: [&str; 3]) -> Option<Requester> {
    let username = annotations.get(name).filter(|name| !name.is_empty())?.clone();
    let uid = annotations.get(uid)?.clone();
    let groups = annotations.get(groups)?.split(',').filter(|group| !group.is_empty());
    let groups = groups.map(|group| group.replace("%2C", ",").replace("%25", "%")).collect();
    Some(Requester { username, uid: Some(uid).filter(|uid| !uid.is_empty()), groups })
}

/// Name of the pod and of the ConfigMap of a run: a function of its UID alone.
pub(crate) fn pod_name(run_uid: &str) -> String {
    format!("sr-{run_uid}")
}

const WAITING: &str = "sp-";

/// Name of a sandbox of a pool. It says nothing of whom it will be given to.
pub(crate) fn waiting_name(number: u64) -> String {
    format!("{WAITING}{number:016x}")
}

/// Whether a pod of this name is one of a pool.
pub(crate) fn is_waiting_name(pod: &str) -> bool {
    pod.starts_with(WAITING)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_stay_distinct_and_short_enough() {
        assert_eq!(sandbox_namespace("team-a"), "sbx-team-a");
        let (one, other) = ("a".repeat(62) + "b", "a".repeat(62) + "c");
        assert_ne!(sandbox_namespace(&one), sandbox_namespace(&other));
        assert!(sandbox_namespace(&one).len() <= MAX_NAMESPACE);
    }
}
