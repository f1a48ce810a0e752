//! What is left when a tenant namespace or a run has gone: sandbox namespaces without a tenant, pods without a run.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{DeleteParams, ListParams, ObjectList, PartialObjectMeta, Preconditions, Request};
use kube::{Api, Resource as _, ResourceExt};

use paddock_crds::ScriptRun;

use crate::context::Context;
use crate::error::{Error, code, within};
use crate::names::{RUN_UID, SANDBOX_OF, TENANT_UID};
use crate::pods::is_of_a_pool;
use crate::readable::Readable;

const EVERY: Duration = Duration::from_secs(5);

/// In each so many rounds the runs are listed even if nothing seems to be left.
const LIST_EVERY: u32 = 12;

/// Runs in one page of a list.
const PAGE: u32 = 100;

/// Looks again and again, until the process stops leading.
pub(crate) async fn run(context: Arc<Context>) {
    for round in 1_u32.. {
        tokio::time::sleep(EVERY).await;
        report(clean_up(&context, round.is_multiple_of(LIST_EVERY)).await);
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
    for namespace in context.caches.namespaces.state() {
        if namespace.labels().contains_key(SANDBOX_OF) && namespace.metadata.deletion_timestamp.is_none() {
            context.pods.watch(&namespace.name_any());
        }
    }
}

/// What there is to clean up is found in the caches, and is confirmed by a list of the runs before anything is removed: a cache that is
/// not filled yet shows no runs at all.
async fn clean_up(context: &Context, list_anyway: bool) -> Result<(), Error> {
    watch_all(context);
    let namespaces = context.caches.namespaces.state();
    let present: HashSet<String> = namespaces.iter().map(|namespace| namespace.name_any()).collect();
    for namespace in context.pods.watched().into_iter().filter(|namespace| !present.contains(namespace)) {
        context.pods.unwatch(&namespace);
    }
    let cached: HashSet<String> = context.runs().iter().filter_map(|run| run.uid()).collect();
    let tenants: Vec<(Arc<Namespace>, Gone)> =
        namespaces.iter().filter_map(|namespace| Some((namespace.clone(), tenant_that_is_gone(namespace, &namespaces)?))).collect();
    let watched = context.pods.watched();
    let orphans: Vec<(&String, Arc<Pod>)> = watched
        .iter()
        .flat_map(|namespace| context.pods.all(namespace).into_iter().map(move |pod| (namespace, pod)))
        // Those of pools are the pools'.
        .filter(|(_, pod)| pod.metadata.deletion_timestamp.is_none() && !is_of_a_pool(pod) && !has_run_among(pod, &cached))
        .collect();
    if tenants.is_empty() && orphans.is_empty() && !list_anyway {
        return Ok(());
    }
    let mut uids = cached;
    let mut tenants_with_runs = HashSet::new();
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let runs = within("the runs", list(&page, context)).await?.map_err(Error::read("the runs"))?;
        uids.extend(runs.items.iter().filter_map(ResourceExt::uid));
        tenants_with_runs.extend(runs.items.iter().filter_map(ResourceExt::namespace));
        match runs.metadata.continue_.filter(|next| !next.is_empty()) {
            Some(next) => page = page.continue_token(&next),
            None => break,
        }
    }
    // Those that came while the list was read.
    uids.extend(context.runs().iter().filter_map(|run| run.uid()));
    context.forget_all_but(&uids);
    for (namespace, gone) in tenants {
        // Where another namespace of that name has followed, the runs are its own, and wait for this one to go.
        if gone.was_replaced || !tenants_with_runs.contains(&gone.tenant) {
            report(remove_namespace(&namespace, &gone.tenant, context).await);
        }
    }
    for (namespace, pod) in orphans.into_iter().filter(|(_, pod)| !has_run_among(pod, &uids)) {
        report(remove_pod(namespace, &pod, context).await);
    }
    Ok(())
}

/// What identifies the runs, and nothing else of them.
async fn list(page: &ListParams, context: &Context) -> Result<ObjectList<Readable<PartialObjectMeta<ScriptRun>>>, kube::Error> {
    let request = Request::new(ScriptRun::url_path(&(), None)).list_metadata(page).map_err(kube::Error::BuildRequest)?;
    context.client.request(request).await
}

fn has_run_among(pod: &Pod, uids: &HashSet<String>) -> bool {
    pod.labels().get(RUN_UID).is_some_and(|uid| uids.contains(uid))
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
