//! What is left when a tenant namespace or a run has gone: sandbox namespaces without a tenant, pods without a run.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{DeleteParams, Preconditions};
use kube::{Api, ResourceExt as _};

use crate::context::Context;
use crate::error::{Error, code, within};
use crate::names::{RUN_UID, SANDBOX_OF, TENANT_UID};

const EVERY: Duration = Duration::from_secs(5);

/// Looks again and again, until the process stops leading.
pub(crate) async fn run(context: Arc<Context>) {
    while !context.runs_are_known().await {
        tokio::time::sleep(EVERY).await;
    }
    loop {
        clean_up(&context).await;
        tokio::time::sleep(EVERY).await;
    }
}

/// Trouble with one namespace or pod does not keep the others from being cleaned up.
fn report(result: Result<(), Error>) {
    if let Err(error) = result {
        tracing::warn!(error = error.chain(), "cleaning up is tried again");
    }
}

/// Begins to watch the pods of every sandbox namespace that is there.
pub(crate) fn watch_all(context: &Context) {
    for namespace in context.namespaces.state() {
        if namespace.labels().contains_key(SANDBOX_OF) && namespace.metadata.deletion_timestamp.is_none() {
            context.pods.watch(&namespace.name_any());
        }
    }
}

async fn clean_up(context: &Context) {
    watch_all(context);
    let runs = context.runs();
    let run_uids: HashSet<String> = runs.iter().filter_map(|run| run.uid()).collect();
    context.forget_all_but(&run_uids);
    let tenants_with_runs: HashSet<String> = runs.iter().filter_map(|run| run.namespace()).collect();
    for namespace in context.namespaces.state() {
        let Some(gone) = tenant_that_is_gone(&namespace, &context.namespaces.state()) else { continue };
        // Where another namespace of that name has followed, the runs are its own, and wait for this one to go.
        if gone.was_replaced || !tenants_with_runs.contains(&gone.tenant) {
            report(remove_namespace(&namespace, &gone.tenant, context).await);
        }
    }
    let present: HashSet<String> = context.namespaces.state().iter().map(|namespace| namespace.name_any()).collect();
    for namespace in context.pods.watched() {
        if !present.contains(&namespace) {
            context.pods.unwatch(&namespace);
            continue;
        }
        for pod in context.pods.all(&namespace) {
            let has_run = pod.labels().get(RUN_UID).is_some_and(|uid| run_uids.contains(uid));
            if !has_run && pod.metadata.deletion_timestamp.is_none() {
                report(remove_pod(&namespace, &pod, context).await);
            }
        }
    }
}

/// A tenant whose sandbox namespace is left.
#[derive(Debug, PartialEq, Eq)]
struct Gone {
    tenant: String,
    was_replaced: bool,
}

/// The tenant of a sandbox namespace, if that tenant is gone or was replaced by another of the same name. Pure.
fn tenant_that_is_gone(namespace: &Namespace, all: &[Arc<Namespace>]) -> Option<Gone> {
    let tenant = namespace.labels().get(SANDBOX_OF)?;
    let uid = namespace.annotations().get(TENANT_UID)?;
    if namespace.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let now = all.iter().find(|other| other.name_any() == *tenant);
    if now.is_some_and(|now| now.uid().as_ref() == Some(uid)) {
        return None;
    }
    Some(Gone { tenant: tenant.clone(), was_replaced: now.is_some() })
}

async fn remove_namespace(namespace: &Namespace, tenant: &str, context: &Context) -> Result<(), Error> {
    let api: Api<Namespace> = Api::all(context.client.clone());
    let preconditions = Preconditions { uid: namespace.uid(), resource_version: namespace.resource_version() };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    tracing::info!(namespace = namespace.name_any(), tenant, "the tenant is gone: its sandbox namespace is removed");
    context.prepared.remove(tenant);
    match within("the sandbox namespace", api.delete(&namespace.name_any(), &params)).await? {
        Err(error) if !matches!(code(&error), Some(404 | 409)) => Err(Error::write("the sandbox namespace")(error)),
        _ => Ok(()),
    }
}

async fn remove_pod(namespace: &str, pod: &Pod, context: &Context) -> Result<(), Error> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let preconditions = Preconditions { uid: pod.uid(), resource_version: None };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    tracing::info!(namespace, pod = pod.name_any(), "a pod without a run is removed");
    match within("a pod without a run", api.delete(&pod.name_any(), &params)).await? {
        Err(error) if !matches!(code(&error), Some(404 | 409)) => Err(Error::write("a pod without a run")(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use kube::api::ObjectMeta;

    use super::*;

    fn tenant(name: &str, uid: &str) -> Arc<Namespace> {
        Arc::new(Namespace {
            metadata: ObjectMeta { name: Some(name.into()), uid: Some(uid.into()), ..ObjectMeta::default() },
            ..Namespace::default()
        })
    }

    fn sandbox(of: &str, uid: &str) -> Namespace {
        let metadata = ObjectMeta {
            name: Some(format!("sbx-{of}")),
            labels: Some([(SANDBOX_OF.to_owned(), of.to_owned())].into()),
            annotations: Some([(TENANT_UID.to_owned(), uid.to_owned())].into()),
            ..ObjectMeta::default()
        };
        Namespace { metadata, ..Namespace::default() }
    }

    #[test]
    fn only_a_sandbox_without_its_very_tenant_goes() {
        assert_eq!(tenant_that_is_gone(&sandbox("a", "1"), &[tenant("a", "1")]), None);
        let gone = |was_replaced| Some(Gone { tenant: "a".into(), was_replaced });
        assert_eq!(tenant_that_is_gone(&sandbox("a", "1"), &[tenant("b", "1")]), gone(false));
        assert_eq!(tenant_that_is_gone(&sandbox("a", "1"), &[tenant("a", "2")]), gone(true));
        assert_eq!(tenant_that_is_gone(&tenant("sbx-a", "1"), &[]), None);
    }
}
