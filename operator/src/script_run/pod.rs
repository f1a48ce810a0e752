//! The sandbox pod: rendered from a [`ValidRun`], and compared with what the API server stored. Pure.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::ObjectMeta;
use paddock_crds::script_run::quantity_of_bytes;
use paddock_policy::ObjectKind;
use paddock_protocol::{INPUT_FILE, JOB_FILE, script_file};
use serde_json::{Value, json};

use super::ledger::policy_text;
use super::validate::ValidRun;
use crate::config::Settings;
use crate::names::{
    CONTAINER, FILES_DIGEST, JOB_DIGEST, MANAGED_BY, MANAGER, NETWORK, NETWORK_EGRESS, RUN_NAME, RUN_NAMESPACE, RUN_POLICY, RUN_UID,
    pod_name, sandbox_namespace,
};

/// Where `secrets` and `data` are.
const GIVEN: &str = "/paddock";
pub(crate) const JOB: &str = "/paddock/job";
const RUNNER: &str = "/paddock/runner";
/// User and group of everything in a sandbox: nobody's, and not root's.
const USER: i64 = 65532;
/// Seconds that the runner gets beyond the script's grace to report and end.
const RUNNER_GRACE: u32 = 5;
const RUNNER_BYTES: u64 = 8 << 20;

/// Name, labels and annotations that lead from a child to its run.
fn metadata(run: &ValidRun) -> ObjectMeta {
    ObjectMeta {
        name: Some(pod_name(&run.uid)),
        namespace: Some(sandbox_namespace(&run.namespace)),
        labels: Some(BTreeMap::from([
            (RUN_UID.to_owned(), run.uid.clone()),
            (RUN_NAMESPACE.to_owned(), run.namespace.clone()),
            (MANAGED_BY.to_owned(), MANAGER.to_owned()),
        ])),
        annotations: Some(BTreeMap::from([
            (RUN_NAME.to_owned(), run.name.clone()),
            (RUN_POLICY.to_owned(), policy_text(&run.policy)),
            (JOB_DIGEST.to_owned(), run.digest.clone()),
            (FILES_DIGEST.to_owned(), run.files_digest.clone()),
        ])),
        ..ObjectMeta::default()
    }
}

/// Name of the copy of what a run is given, by its place among all that it is given.
pub(crate) fn copy_name(run_uid: &str, index: usize) -> String {
    format!("{}-{index}", pod_name(run_uid))
}

/// What a child of the pod has in its metadata: it goes away with the pod, by garbage collection.
pub(crate) fn child_metadata(run: &ValidRun, name: String, pod_uid: &str) -> ObjectMeta {
    let owner = k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference {
        api_version: "v1".into(),
        kind: "Pod".into(),
        name: pod_name(&run.uid),
        uid: pod_uid.into(),
        ..Default::default()
    };
    ObjectMeta { name: Some(name), owner_references: Some(vec![owner]), ..metadata(run) }
}

/// The immutable ConfigMap with the job. It goes away with the pod, by garbage collection.
pub(crate) fn render_job(run: &ValidRun, pod_uid: &str) -> ConfigMap {
    let mut data = BTreeMap::from([
        (JOB_FILE.to_owned(), ByteString(run.files.job.clone())),
        (script_file(run.grant.runtime.extension.as_deref()), ByteString(run.files.script.clone())),
    ]);
    if let Some(input) = &run.files.input {
        data.insert(INPUT_FILE.to_owned(), ByteString(input.clone()));
    }
    ConfigMap { metadata: child_metadata(run, pod_name(&run.uid), pod_uid), binary_data: Some(data), immutable: Some(true), data: None }
}

/// What one sandbox has that another has not.
pub(crate) struct Sandbox<'a> {
    pub(crate) metadata: ObjectMeta,
    pub(crate) runtime_class: &'a str,
    pub(crate) image: &'a str,
    /// Arguments of the runner.
    pub(crate) arguments: Vec<String>,
    /// The volume with the job.
    pub(crate) job: Value,
    pub(crate) is_job_mounted: bool,
    /// Further volumes, each with where it is mounted.
    pub(crate) given: Vec<(Value, Value)>,
    pub(crate) memory_bytes: u64,
    pub(crate) cpu_milli: u64,
    pub(crate) scratch_bytes: u64,
    /// Seconds from the creation of the pod until the kubelet ends it.
    pub(crate) deadline_seconds: u32,
    pub(crate) grace_seconds: u32,
}

/// The pod of a run.
pub(crate) fn render_pod(run: &ValidRun, settings: &Settings) -> Pod {
    let mut metadata = metadata(run);
    if has_network(run) || settings.sandbox_has_interface {
        metadata.labels.get_or_insert_default().insert(NETWORK.to_owned(), NETWORK_EGRESS.to_owned());
    }
    let sandbox = Sandbox {
        metadata,
        runtime_class: if has_network(run) { &settings.egress_runtime_class } else { &settings.runtime_class },
        image: &run.grant.runtime.image,
        arguments: vec!["run".into(), JOB.into()],
        job: json!({ "name": "job", "configMap": { "name": pod_name(&run.uid), "optional": false, "defaultMode": 292 } }),
        is_job_mounted: true,
        given: given(run).collect(),
        memory_bytes: run.grant.memory_bytes,
        cpu_milli: run.grant.cpu_milli,
        scratch_bytes: run.grant.scratch_bytes,
        deadline_seconds: deadline(settings, run.grant.timeout_seconds, run.grant.grace_seconds),
        grace_seconds: run.grant.grace_seconds,
    };
    render_sandbox(&sandbox, settings)
}

/// A pod that runs one script, whosever.
pub(crate) fn render_sandbox(sandbox: &Sandbox<'_>, settings: &Settings) -> Pod {
    let mut annotations = sandbox.metadata.clone();
    // A mesh that honours these injects nothing. What injects all the same is found when the stored pod is compared.
    let opt_outs = [
        ("sidecar.istio.io/inject", "false"),
        ("linkerd.io/inject", "disabled"),
        ("cluster-autoscaler.kubernetes.io/safe-to-evict", "false"),
    ];
    annotations.annotations.get_or_insert_default().extend(opt_outs.map(|(key, value)| (key.to_owned(), value.to_owned())));
    let spec = json!({
        "runtimeClassName": sandbox.runtime_class,
        "restartPolicy": "Never",
        "activeDeadlineSeconds": sandbox.deadline_seconds,
        "terminationGracePeriodSeconds": sandbox.grace_seconds + RUNNER_GRACE,
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "hostNetwork": false,
        "hostPID": false,
        "hostIPC": false,
        "shareProcessNamespace": false,
        "setHostnameAsFQDN": false,
        "hostname": "sandbox",
        "dnsPolicy": "None",
        // There is no DNS in a sandbox; the kubelet wants an address all the same.
        "dnsConfig": { "nameservers": ["127.0.0.1"] },
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "initContainers": init_containers(sandbox, settings),
        "containers": [script_container(sandbox, settings)],
        "volumes": volumes(sandbox, settings),
    });
    let mut spec = spec;
    if settings.runner_by_image_volume
        && let Some(fields) = spec.as_object_mut()
    {
        fields.remove("initContainers");
    }
    Pod { metadata: annotations, spec: serde_json::from_value(spec).ok(), status: None }
}

/// Whether anything leads out of the sandbox: the egress gateway.
pub(crate) fn has_network(run: &ValidRun) -> bool {
    !run.grant.capabilities.network.is_empty()
}

/// The kubelet's own time-out, behind the operator's and the runner's.
pub(crate) fn deadline(settings: &Settings, timeout_seconds: u32, grace_seconds: u32) -> u32 {
    settings.start_budget_seconds + timeout_seconds + grace_seconds + RUNNER_GRACE
}

fn container_security() -> Value {
    json!({
        "allowPrivilegeEscalation": false, "privileged": false, "readOnlyRootFilesystem": true,
        "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER,
        "capabilities": { "drop": ["ALL"] },
        "seccompProfile": { "type": "RuntimeDefault" },
    })
}

/// Memory is reserved whole. Of CPU a tenth is, so that a node takes more sandboxes than can compute at once; when they all do, each gets
/// its share by weight, and none more than its limit.
fn resources(sandbox: &Sandbox<'_>) -> Value {
    let amounts = |cpu: u64| {
        json!({
            "cpu": format!("{cpu}m"),
            "memory": quantity_of_bytes(sandbox.memory_bytes).0,
            // What the kubelet writes for the container: its log and /etc/hosts. The script itself writes to memory only.
            "ephemeral-storage": "32Mi",
        })
    };
    json!({ "requests": amounts(sandbox.cpu_milli.div_ceil(10)), "limits": amounts(sandbox.cpu_milli) })
}

/// A volume for each object that the run is given, and where the script finds it.
fn given(run: &ValidRun) -> impl Iterator<Item = (Value, Value)> {
    run.grant.capabilities.objects.iter().enumerate().map(|(index, object)| {
        let (volume, copy) = (format!("given-{index}"), copy_name(&run.uid, index));
        let source = match object.kind {
            ObjectKind::Secret => json!({ "name": volume, "secret": { "secretName": copy, "optional": false, "defaultMode": 288 } }),
            ObjectKind::ConfigMap => json!({ "name": volume, "configMap": { "name": copy, "optional": false, "defaultMode": 292 } }),
            ObjectKind::PersistentVolumeClaim => {
                json!({ "name": volume, "persistentVolumeClaim": { "claimName": object.name, "readOnly": true } })
            }
        };
        let path = format!("{GIVEN}/{}/{}", object.kind.field(), object.name);
        (source, json!({ "name": volume, "mountPath": path, "readOnly": true }))
    })
}

fn script_container(sandbox: &Sandbox<'_>, settings: &Settings) -> Value {
    let mut mounts = vec![
        json!({ "name": "job", "mountPath": JOB, "readOnly": sandbox.is_job_mounted }),
        json!({ "name": "runner", "mountPath": RUNNER, "readOnly": true }),
        json!({ "name": "workspace", "mountPath": "/workspace" }),
        // gVisor puts a writable file system of its own over an empty /tmp where nothing is mounted.
        json!({ "name": "tmp", "mountPath": "/tmp", "readOnly": true }),
    ];
    mounts.extend(sandbox.given.iter().map(|(_, mount)| mount.clone()));
    let program = [format!("{RUNNER}/paddock-runner")];
    json!({
        "name": CONTAINER,
        "image": sandbox.image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": program.iter().chain(&sandbox.arguments).collect::<Vec<_>>(),
        "workingDir": "/workspace",
        // The start message comes over standard input, and may need more than one attach to get there.
        "stdin": true, "stdinOnce": false, "tty": false,
        "resources": resources(sandbox),
        "securityContext": container_security(),
        "terminationMessagePolicy": "File",
        "terminationMessagePath": "/dev/termination-log",
        "volumeMounts": mounts,
    })
}

fn init_containers(sandbox: &Sandbox<'_>, settings: &Settings) -> Value {
    json!([{
        "name": "runner",
        "image": settings.runner_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["/paddock-runner", "install", RUNNER],
        "resources": resources(sandbox),
        "securityContext": container_security(),
        "terminationMessagePolicy": "File",
        "terminationMessagePath": "/dev/termination-log",
        "volumeMounts": [{ "name": "runner", "mountPath": RUNNER }],
    }])
}

fn volumes(sandbox: &Sandbox<'_>, settings: &Settings) -> Value {
    let runner = if settings.runner_by_image_volume {
        json!({ "name": "runner", "image": { "reference": settings.runner_image, "pullPolicy": settings.image_pull_policy } })
    } else {
        json!({ "name": "runner", "emptyDir": { "sizeLimit": quantity_of_bytes(RUNNER_BYTES).0 } })
    };
    let mut volumes = vec![
        sandbox.job.clone(),
        runner,
        json!({ "name": "tmp", "emptyDir": { "medium": "Memory", "sizeLimit": "4Ki" } }),
        json!({ "name": "workspace", "emptyDir": { "medium": "Memory", "sizeLimit": quantity_of_bytes(sandbox.scratch_bytes).0 } }),
    ];
    volumes.extend(sandbox.given.iter().map(|(volume, _)| volume.clone()));
    Value::from(volumes)
}

/// How the stored pod differs from the rendered one, if it does in anything that admission may not change.
pub(crate) fn difference(rendered: &Pod, stored: &Pod) -> Option<String> {
    for (key, value) in rendered.metadata.labels.iter().flatten() {
        if stored.metadata.labels.as_ref().and_then(|labels| labels.get(key)) != Some(value) {
            return Some(format!("label {key}"));
        }
    }
    for (key, value) in rendered.metadata.annotations.iter().flatten() {
        if stored.metadata.annotations.as_ref().and_then(|annotations| annotations.get(key)) != Some(value) {
            return Some(format!("annotation {key}"));
        }
    }
    if let Some(key) = stored.metadata.annotations.iter().flatten().map(|(key, _)| key).find(|key| key.starts_with("dev.gvisor.")) {
        return Some(format!("annotation {key}"));
    }
    let rendered = serde_json::to_value(&rendered.spec).unwrap_or_default();
    let stored = serde_json::to_value(&stored.spec).unwrap_or_default();
    compare("spec", &rendered, &stored)
}

/// Whether the API server, the RuntimeClass, the PriorityClass or the scheduler may have added this to a spec that does not say it.
fn may_be_added(path: &str, value: &Value) -> bool {
    match path {
        "spec.overhead" | "spec.nodeSelector" | "spec.tolerations" | "spec.nodeName" => true,
        "spec.priority" | "spec.priorityClassName" | "spec.preemptionPolicy" => true,
        // Pull secrets of the sandbox namespace's own default service account.
        "spec.imagePullSecrets" => true,
        "spec.schedulerName" => value == "default-scheduler",
        "spec.serviceAccountName" | "spec.serviceAccount" => value == "default",
        _ => false,
    }
}

fn compare(path: &str, rendered: &Value, stored: &Value) -> Option<String> {
    match (rendered, stored) {
        (Value::Object(ours), Value::Object(theirs)) => {
            for (key, value) in ours {
                let path = format!("{path}.{key}");
                match theirs.get(key) {
                    Some(other) => {
                        if let Some(found) = compare(&path, value, other) {
                            return Some(found);
                        }
                    }
                    None if is_empty(value) => {}
                    None => return Some(format!("{path} is missing")),
                }
            }
            theirs.iter().filter(|(key, value)| !ours.contains_key(*key) && !is_empty(value)).find_map(|(key, value)| {
                let path = format!("{path}.{key}");
                (!may_be_added(&path, value)).then(|| format!("{path} was added"))
            })
        }
        (Value::Array(ours), Value::Array(theirs)) if ours.len() == theirs.len() => {
            ours.iter().zip(theirs).enumerate().find_map(|(index, (one, other))| compare(&format!("{path}[{index}]"), one, other))
        }
        (one, other) if one == other || same_quantity(one, other) => None,
        _ => Some(path.to_owned()),
    }
}

/// `false`, empty and absent are the same to the API server.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// The API server writes `1` for `1000m`.
fn same_quantity(one: &Value, other: &Value) -> bool {
    let parse = |value: &Value| value.as_str().and_then(|text| paddock_policy::Quantity::parse(text).ok());
    matches!((parse(one), parse(other)), (Some(one), Some(other)) if one == other)
}

/// Whether a stored ConfigMap holds exactly this job.
pub(crate) fn is_job_of(rendered: &ConfigMap, stored: &ConfigMap) -> bool {
    stored.binary_data == rendered.binary_data && stored.data.as_ref().is_none_or(BTreeMap::is_empty) && stored.immutable == Some(true)
}

#[cfg(test)]
mod tests;
