//! The sandbox namespace of a tenant: rendered here, made and completed by [`prepare`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{LimitRange, Namespace, ResourceQuota};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::config::Settings;
use crate::context::Context;
use crate::egress;
use crate::error::{Error, code, within};
use crate::names::{CLUSTER_POLICIES, MANAGED_BY, MANAGER, NETWORK, NETWORK_EGRESS, SANDBOX_OF, TENANT_UID, sandbox_namespace};
use crate::script_run::step::SandboxSeen;

/// Name of each object in a sandbox namespace.
const NAME: &str = "paddock-sandbox";
/// The NetworkPolicy of sandboxes with a network.
const EGRESS: &str = "paddock-egress";
/// What was made is looked at again after this long, so that what an administrator removed comes back.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// So long after it was made complete, the cache may still show what was there before.
const SEEN_WITHIN: Duration = Duration::from_secs(2);
/// A RoleBinding is not in force at once. So long a refusal is taken for that.
const RBAC_LAG: Duration = Duration::from_secs(5);

/// What a sandbox namespace is made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) tenant: String,
    pub(crate) tenant_uid: String,
    /// Pods that may live at once.
    pub(crate) max_pods: u32,
    /// ClusterSandboxPolicies that select the tenant. They are remembered, so that one that does not do so any more is missed.
    pub(crate) cluster_policies: BTreeSet<String>,
}

/// Sandbox namespaces that this process has made complete.
#[derive(Default)]
pub(crate) struct Prepared(Mutex<HashMap<String, (Wanted, Instant)>>);

impl Prepared {
    /// How long ago the namespace was made what is wanted, unless it has to be looked at again.
    fn age(&self, wanted: &Wanted) -> Option<Duration> {
        let prepared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, since) = prepared.get(&wanted.tenant)?;
        Some(since.elapsed()).filter(|age| known == wanted && *age < LOOK_AGAIN)
    }

    fn insert(&self, wanted: &Wanted) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(wanted.tenant.clone(), (wanted.clone(), Instant::now()));
    }

    /// After the namespace is gone.
    pub(crate) fn remove(&self, tenant: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(tenant);
    }
}

/// What is to be said about the sandbox namespace that was made complete so long ago. Pure.
pub(crate) fn judge(namespace: Option<&Namespace>, wanted: &Wanted, prepared: Option<Duration>) -> SandboxSeen {
    let Some(namespace) = namespace else {
        return SandboxSeen::Incomplete;
    };
    let is_terminating = namespace.metadata.deletion_timestamp.is_some();
    if !is_marked_for(namespace, wanted) {
        // The mark of an earlier namespace of the same tenant name: it is on its way out.
        let was_ours = namespace.labels().get(SANDBOX_OF) == Some(&wanted.tenant);
        return if was_ours { SandboxSeen::Terminating } else { SandboxSeen::Foreign };
    }
    if is_terminating {
        return SandboxSeen::Terminating;
    }
    let remembers = || remembered(Some(namespace)).is_superset(&wanted.cluster_policies);
    if prepared.is_some_and(|age| age < SEEN_WITHIN || remembers()) { SandboxSeen::Ready } else { SandboxSeen::Incomplete }
}

/// The ClusterSandboxPolicies by which something was admitted in this namespace, until an administrator removes the annotation.
pub(crate) fn remembered(namespace: Option<&Namespace>) -> BTreeSet<String> {
    let names = namespace.and_then(|namespace| namespace.annotations().get(CLUSTER_POLICIES));
    names.into_iter().flat_map(|names| names.split(',')).filter(|name| !name.is_empty()).map(Into::into).collect()
}

fn is_marked_for(namespace: &Namespace, wanted: &Wanted) -> bool {
    namespace.labels().get(SANDBOX_OF) == Some(&wanted.tenant) && namespace.annotations().get(TENANT_UID) == Some(&wanted.tenant_uid)
}

/// Reads the state from the caches.
pub(crate) fn look(wanted: &Wanted, context: &Context) -> SandboxSeen {
    let name = sandbox_namespace(&wanted.tenant);
    let namespace = context.caches.namespaces.get(&kube::runtime::reflector::ObjectRef::new(&name));
    let prepared = context.prepared.age(wanted);
    // What this process has made a moment ago may not be in the cache yet.
    if namespace.is_none() && prepared.is_some() { SandboxSeen::Ready } else { judge(namespace.as_deref(), wanted, prepared) }
}

fn metadata(namespace: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(NAME.into()),
        namespace: Some(namespace.into()),
        labels: Some(BTreeMap::from([(MANAGED_BY.to_owned(), MANAGER.to_owned())])),
        ..ObjectMeta::default()
    }
}

fn render_namespace(wanted: &Wanted) -> Namespace {
    let level = |mode: &str| (format!("pod-security.kubernetes.io/{mode}"), "restricted".to_owned());
    let mut labels = BTreeMap::from([level("enforce"), level("warn"), level("audit")]);
    labels.insert("pod-security.kubernetes.io/enforce-version".into(), "latest".into());
    labels.insert(SANDBOX_OF.into(), wanted.tenant.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    Namespace {
        metadata: ObjectMeta {
            name: Some(sandbox_namespace(&wanted.tenant)),
            labels: Some(labels),
            annotations: Some(BTreeMap::from([
                (TENANT_UID.to_owned(), wanted.tenant_uid.clone()),
                (CLUSTER_POLICIES.to_owned(), joined(&wanted.cluster_policies)),
            ])),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    }
}

fn joined(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(",")
}

fn typed<T: DeserializeOwned>(namespace: &str, fields: Value) -> Option<T> {
    let mut object = fields;
    object["metadata"] = serde_json::to_value(metadata(namespace)).ok()?;
    serde_json::from_value(object).ok()
}

fn render_binding(namespace: &str, settings: &Settings) -> Option<RoleBinding> {
    typed(
        namespace,
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": settings.sandbox_cluster_role },
            "subjects": [{ "kind": "ServiceAccount", "name": settings.operator_service_account, "namespace": settings.operator_namespace }],
        }),
    )
}

/// Nothing in, nothing out, for every pod. Policies only add up, and nobody else may write one here.
fn render_network_policy(namespace: &str) -> Option<NetworkPolicy> {
    typed(
        namespace,
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "spec": { "podSelector": {}, "policyTypes": ["Ingress", "Egress"] },
        }),
    )
}

/// From sandboxes that have a network to the egress gateway, at its one port for them, and nowhere else: not even to look up names.
fn render_egress_policy(namespace: &str, settings: &Settings) -> Option<NetworkPolicy> {
    let mut policy: NetworkPolicy = typed(
        namespace,
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "spec": {
                "podSelector": { "matchLabels": { NETWORK: NETWORK_EGRESS } },
                "policyTypes": ["Egress"],
                "egress": [{
                    "to": [{
                        "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": settings.operator_namespace } },
                        "podSelector": { "matchLabels": { "app.kubernetes.io/name": "paddock-egress", "app.kubernetes.io/component": "egress" } },
                    }],
                    "ports": [{ "protocol": "TCP", "port": egress::PORT }],
                }],
            },
        }),
    )?;
    policy.metadata.name = Some(EGRESS.into());
    Some(policy)
}

/// The atomic backstop of the concurrency limit: terminal pods do not count.
fn render_quota(namespace: &str, wanted: &Wanted) -> Option<ResourceQuota> {
    // Copies of what runs are given: eight at most for each, and those of pods that have gone, until the garbage collector and the quota know.
    let secrets = u64::from(wanted.max_pods) * 16;
    typed(
        namespace,
        json!({
            "apiVersion": "v1", "kind": "ResourceQuota",
            "spec": { "hard": { "pods": wanted.max_pods.to_string(), "services": "0", "secrets": secrets.to_string() } },
        }),
    )
}

/// No pod without limits; every sandbox sets its own.
fn render_limit_range(namespace: &str) -> Option<LimitRange> {
    typed(
        namespace,
        json!({
            "apiVersion": "v1", "kind": "LimitRange",
            "spec": { "limits": [{
                "type": "Container",
                "default": { "cpu": "100m", "memory": "64Mi", "ephemeral-storage": "32Mi" },
                "defaultRequest": { "cpu": "100m", "memory": "64Mi", "ephemeral-storage": "32Mi" },
            }] },
        }),
    )
}

/// Makes the namespace and everything in it. `Ok(false)` if a foreign namespace stands in the way.
pub(crate) async fn prepare(wanted: &Wanted, context: &Context) -> Result<bool, Error> {
    let name = sandbox_namespace(&wanted.tenant);
    let namespaces: Api<Namespace> = Api::all(context.client.clone());
    let stored = match within("the sandbox namespace", namespaces.get_opt(&name)).await?.map_err(Error::read("the sandbox namespace"))? {
        Some(stored) => stored,
        None => match within("the sandbox namespace", namespaces.create(&PostParams::default(), &render_namespace(wanted))).await? {
            Ok(created) => created,
            Err(error) if code(&error) == Some(409) => return Ok(true),
            Err(error) => return Err(Error::write("the sandbox namespace")(error)),
        },
    };
    if !is_marked_for(&stored, wanted) || stored.metadata.deletion_timestamp.is_some() {
        return Ok(false);
    }
    keep_metadata(&namespaces, &stored, wanted).await?;
    // The binding comes first: without it the operator has no rights in here.
    ensure(context, &name, render_binding(&name, &context.settings), "the RoleBinding of the sandbox namespace").await?;
    let begin = Instant::now();
    while let Err(error) = ensure(context, &name, render_network_policy(&name), "the NetworkPolicy of the sandbox namespace").await {
        if begin.elapsed() > RBAC_LAG || !is_forbidden(&error) {
            return Err(error);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    if context.settings.has_egress {
        let policy = render_egress_policy(&name, &context.settings);
        ensure(context, &name, policy, "the NetworkPolicy of sandboxes with a network").await?;
    }
    ensure(context, &name, render_limit_range(&name), "the LimitRange of the sandbox namespace").await?;
    ensure(context, &name, render_quota(&name, wanted), "the ResourceQuota of the sandbox namespace").await?;
    context.pods.watch(&name);
    context.prepared.insert(wanted);
    Ok(true)
}

/// Puts the network policies of a sandbox namespace right while a sandbox with a network is in it. Says whether one was not as it should be.
pub(crate) async fn keep_network_policies(tenant: &str, context: &Context) -> Result<bool, Error> {
    let name = sandbox_namespace(tenant);
    let all = ensure(context, &name, render_network_policy(&name), "the NetworkPolicy of the sandbox namespace").await?;
    let egress = render_egress_policy(&name, &context.settings);
    Ok(ensure(context, &name, egress, "the NetworkPolicy of sandboxes with a network").await? || all)
}

fn is_forbidden(error: &Error) -> bool {
    matches!(error, Error::Read { source, .. } | Error::Write { source, .. } if code(source) == Some(403))
}

/// An administrator may add labels; those of Pod Security must stay. Of policies that were remembered none is forgotten here.
async fn keep_metadata(api: &Api<Namespace>, stored: &Namespace, wanted: &Wanted) -> Result<(), Error> {
    let rendered = render_namespace(wanted);
    let known = remembered(Some(stored));
    let has_labels = rendered.labels().iter().all(|(key, value)| stored.labels().get(key) == Some(value));
    if has_labels && known.is_superset(&wanted.cluster_policies) {
        return Ok(());
    }
    let names = known.union(&wanted.cluster_policies).cloned().collect();
    // The version makes sure that nothing is forgotten which another replica has added meanwhile.
    let patch = json!({ "metadata": {
        "resourceVersion": stored.resource_version(),
        "labels": rendered.labels(),
        "annotations": { CLUSTER_POLICIES: joined(&names) },
    } });
    let name = rendered.name_any();
    match within("the sandbox namespace", api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch))).await? {
        Err(error) if code(&error) == Some(409) => Err(Error::Conflict),
        answer => answer.map(drop).map_err(Error::write("the sandbox namespace")),
    }
}

/// Creates the object, or replaces it if it is not as it should be. Says whether it was not.
async fn ensure<K>(context: &Context, namespace: &str, wanted: Option<K>, what: &'static str) -> Result<bool, Error>
where
    K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Serialize,
{
    let Some(mut wanted) = wanted else {
        return Err(Error::Late { what });
    };
    let name = wanted.name_any();
    let api: Api<K> = Api::namespaced(context.client.clone(), namespace);
    let Some(stored) = within(what, api.get_opt(&name)).await?.map_err(Error::read(what))? else {
        // Another run of the same tenant may be making it at this moment: then the next pass compares what it made.
        return match within(what, api.create(&PostParams::default(), &wanted)).await? {
            Err(error) if code(&error) == Some(409) => Err(Error::Conflict),
            answer => answer.map(|_| true).map_err(Error::write(what)),
        };
    };
    if is_as_wanted(&serde_json::to_value(&stored).unwrap_or_default(), &serde_json::to_value(&wanted).unwrap_or_default()) {
        return Ok(false);
    }
    wanted.meta_mut().resource_version = stored.resource_version();
    within(what, api.replace(&name, &PostParams::default(), &wanted)).await?.map(|_| true).map_err(Error::write(what))
}

/// Whether `stored` says what `wanted` says and nothing more: a rule that was added to a NetworkPolicy opens it. Of the metadata only the
/// labels count, and others may stand beside them.
fn is_as_wanted(stored: &Value, wanted: &Value) -> bool {
    let keeps = |key: &str| !matches!(key, "metadata" | "status");
    let body = |object: &Value| -> BTreeMap<String, Value> {
        let fields = object.as_object().into_iter().flatten();
        fields.filter(|(key, _)| keeps(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
    };
    let labels = |object: &Value| object["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    let stored_labels = labels(stored);
    body(stored) == body(wanted) && labels(wanted).iter().all(|(key, value)| stored_labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn wanted() -> Wanted {
        Wanted { tenant: "team".into(), tenant_uid: "1".into(), max_pods: 3, cluster_policies: BTreeSet::from(["a".into(), "b".into()]) }
    }

    fn namespace(change: impl FnOnce(&mut Namespace)) -> Namespace {
        let mut namespace = render_namespace(&wanted());
        change(&mut namespace);
        namespace
    }

    const LONG: Option<Duration> = Some(Duration::from_secs(30));

    #[rstest]
    #[case::none(None, None, SandboxSeen::Incomplete)]
    #[case::new(Some(namespace(|_| ())), None, SandboxSeen::Incomplete)]
    #[case::complete(Some(namespace(|_| ())), LONG, SandboxSeen::Ready)]
    #[case::forgetful(Some(namespace(|ns| _ = ns.annotations_mut().insert(CLUSTER_POLICIES.into(), "b".into()))), LONG, SandboxSeen::Incomplete)]
    #[case::forgetful_in_the_cache(Some(namespace(|ns| _ = ns.annotations_mut().insert(CLUSTER_POLICIES.into(), "b".into()))), Some(Duration::ZERO), SandboxSeen::Ready)]
    #[case::remembers_more(Some(namespace(|ns| _ = ns.annotations_mut().insert(CLUSTER_POLICIES.into(), "a,b,c".into()))), LONG, SandboxSeen::Ready)]
    #[case::without_the_mark(Some(namespace(|ns| ns.metadata.labels = None)), LONG, SandboxSeen::Foreign)]
    #[case::of_another_tenant(Some(namespace(|ns| _ = ns.labels_mut().insert(SANDBOX_OF.into(), "other".into()))), LONG, SandboxSeen::Foreign)]
    #[case::of_a_tenant_before(Some(namespace(|ns| _ = ns.annotations_mut().insert(TENANT_UID.into(), "0".into()))), LONG, SandboxSeen::Terminating)]
    #[case::going(Some(namespace(|ns| ns.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH)))), LONG, SandboxSeen::Terminating)]
    fn a_namespace_is_judged_by_its_mark(
        #[case] stored: Option<Namespace>,
        #[case] prepared: Option<Duration>,
        #[case] expected: SandboxSeen,
    ) {
        assert_eq!(judge(stored.as_ref(), &wanted(), prepared), expected);
    }

    #[test]
    fn every_object_can_be_rendered() {
        assert!(render_network_policy("n").is_some() && render_quota("n", &wanted()).is_some() && render_limit_range("n").is_some());
    }

    #[rstest]
    #[case::the_same(json!({}), true)]
    #[case::a_label_beside(json!({ "metadata": { "labels": { "team": "x" } } }), true)]
    #[case::a_status(json!({ "status": { "used": 1 } }), true)]
    #[case::a_rule_added(json!({ "spec": { "egress": [{}] } }), false)]
    #[case::a_type_removed(json!({ "spec": { "policyTypes": ["Ingress"] } }), false)]
    #[case::a_label_changed(json!({ "metadata": { "labels": { MANAGED_BY: "x" } } }), false)]
    fn what_somebody_changed_is_a_difference(#[case] change: Value, #[case] expected: bool) {
        let wanted = serde_json::to_value(render_network_policy("n").unwrap()).unwrap();
        let mut stored = wanted.clone();
        for (part, fields) in change.as_object().unwrap() {
            for (key, value) in fields.as_object().unwrap() {
                match (&mut stored[part][key], value) {
                    (Value::Object(labels), Value::Object(more)) => labels.extend(more.clone()),
                    (field, value) => *field = value.clone(),
                }
            }
        }
        assert_eq!(is_as_wanted(&stored, &wanted), expected);
    }
}
