//! The pod of a sandbox that waits. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kube::api::ObjectMeta;
use paddock_crds::script_run::quantity_of_bytes;
use serde_json::json;

use super::see::REPLACED_WITHIN_SECONDS;
use super::shape::Shape;
use crate::config::Settings;
use crate::names::{MANAGED_BY, MANAGER, POOL, POOL_UID, RUN_NAMESPACE, TEMPLATE, sandbox_namespace};
use crate::script_run::job::hash;
use crate::script_run::pod::{JOB, Sandbox, deadline, render_sandbox};

/// Script, arguments and input have 640 KiB at most; each file takes whole pages.
const JOB_BYTES: u64 = 1 << 20;

/// Whose sandbox it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner<'a> {
    pub(crate) tenant: &'a str,
    pub(crate) pool: &'a str,
    pub(crate) pool_uid: &'a str,
    pub(crate) max_age_seconds: u32,
}

/// The pod. `key` is the public key of the sandbox of this `name`.
pub(crate) fn render_waiting(owner: Owner<'_>, shape: &Shape, (name, key): (&str, &str), settings: &Settings) -> Pod {
    let template = template(owner, shape, settings);
    let mut pod = render(owner, shape, (name, key), settings);
    pod.metadata.annotations.get_or_insert_default().insert(TEMPLATE.to_owned(), template);
    pod
}

/// Stands for everything that a sandbox is made by, but what is its own.
pub(crate) fn template(owner: Owner<'_>, shape: &Shape, settings: &Settings) -> String {
    hash(&serde_json::to_vec(&render(owner, shape, ("", ""), settings)).unwrap_or_default())
}

fn render(owner: Owner<'_>, shape: &Shape, (name, key): (&str, &str), settings: &Settings) -> Pod {
    let metadata = ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(sandbox_namespace(owner.tenant)),
        labels: Some(BTreeMap::from([
            (POOL_UID.to_owned(), owner.pool_uid.to_owned()),
            (RUN_NAMESPACE.to_owned(), owner.tenant.to_owned()),
            (MANAGED_BY.to_owned(), MANAGER.to_owned()),
        ])),
        annotations: Some(BTreeMap::from([(POOL.to_owned(), owner.pool.to_owned())])),
        ..ObjectMeta::default()
    };
    let interpreter = shape.pre_start.as_ref().and_then(|interpreter| serde_json::to_string(interpreter).ok());
    let sandbox = Sandbox {
        metadata,
        runtime_class: &settings.runtime_class,
        image: &shape.image,
        arguments: ["wait", JOB, name, key].map(str::to_owned).into_iter().chain(interpreter).collect(),
        job: json!({ "name": "job", "emptyDir": { "medium": "Memory", "sizeLimit": quantity_of_bytes(JOB_BYTES).0 } }),
        is_job_mounted: false,
        given: Vec::new(),
        memory_bytes: shape.memory_bytes,
        cpu_milli: shape.cpu_milli,
        scratch_bytes: shape.scratch_bytes,
        // As long as it may wait, and then as long as any run that it fits may take.
        deadline_seconds: owner.max_age_seconds + REPLACED_WITHIN_SECONDS + deadline(settings, shape.timeout_seconds, shape.grace_seconds),
        grace_seconds: shape.grace_seconds,
    };
    render_sandbox(&sandbox, settings)
}
