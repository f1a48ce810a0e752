//! Copies of what a run is given, in its sandbox namespace: made once, with the pod, and gone with it.

use std::fmt;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::PostParams;
use kube::core::NamespaceResourceScope;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Resource, ResourceExt as _};
use paddock_crds::{Reason, ScriptRunStatus, Verdict};
use paddock_policy::{Object, ObjectKind, SecretValues};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::apply::Done;
use super::given::Content;
use super::pod::{child_metadata, copy_name};
use super::validate::ValidRun;
use crate::context::Context;
use crate::error::{Error, code, within};
use crate::names::sandbox_namespace;

const WHAT: &str = "a copy of what the run is given";

/// Makes the copies, or finds them: those of an earlier pass hold what was read then.
pub(crate) async fn ensure(valid: &ValidRun, pod_uid: &str, context: &Context) -> Result<Done, Error> {
    let mut values = Vec::new();
    for (index, (object, content)) in valid.given.iter().enumerate() {
        let metadata = child_metadata(valid, copy_name(&valid.uid, index), pod_uid);
        let stored = match object.kind {
            ObjectKind::Secret => {
                let copy = Secret { metadata, data: Some(content.bytes.clone()), immutable: Some(true), ..Secret::default() };
                create(valid, copy, context).await?
            }
            ObjectKind::ConfigMap => {
                // All of it as bytes: text may be six times as long in JSON.
                let text = content.text.iter().map(|(key, value)| (key.clone(), ByteString(value.clone().into_bytes())));
                let binary_data = Some(text.chain(content.bytes.clone()).collect());
                create(valid, ConfigMap { metadata, binary_data, immutable: Some(true), ..ConfigMap::default() }, context).await?
            }
            // The pod mounts it itself.
            ObjectKind::PersistentVolumeClaim => continue,
        };
        match stored {
            Ok(content) if object.kind == ObjectKind::Secret => values.extend(named_values(&object.name, &content)),
            Ok(_) => {}
            Err(done) => return Ok(done),
        }
    }
    context.remember_given(&valid.uid, SecretValues(values));
    Ok(Done::Yes)
}

fn named_values(name: &str, content: &Content) -> Vec<(String, Vec<u8>)> {
    content.values().map(|(_, value)| (name.to_owned(), value.to_vec())).collect()
}

/// What the copy holds, or why it cannot be had now.
async fn create<K>(valid: &ValidRun, copy: K, context: &Context) -> Result<Result<Content, Done>, Error>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Serialize + DeserializeOwned + Clone + fmt::Debug + Into<Content>,
{
    let api: Api<K> = Api::namespaced(context.client.clone(), &sandbox_namespace(&valid.namespace));
    match within(WHAT, api.create(&PostParams::default(), &copy)).await? {
        Ok(_) => Ok(Ok(copy.into())),
        Err(error) if code(&error) == Some(409) => {
            let stored = within(WHAT, api.get(&copy.name_any())).await?.map_err(Error::read(WHAT))?;
            if stored.labels().get(crate::names::RUN_UID) != Some(&valid.uid) {
                return Ok(Err(Done::NotCreated(Reason::NameTaken, "an object with the name of a copy exists".into())));
            }
            // It belongs to an earlier pod of this run and goes with it.
            if stored.meta().owner_references != copy.meta().owner_references {
                return Ok(Err(Done::Wait(std::time::Duration::from_millis(500))));
            }
            Ok(Ok(stored.into()))
        }
        Err(error) => Err(Error::write(WHAT)(error)),
    }
}

/// What covers the values of the Secrets that a run was given, wherever they turn up in what it puts out. `Err` if they cannot be had any more.
pub(crate) async fn values(
    namespace: &str,
    uid: &str,
    status: &ScriptRunStatus,
    context: &Context,
) -> Result<Result<SecretValues, String>, Error> {
    let given = granted(status);
    if !given.iter().any(|object| object.kind == ObjectKind::Secret) {
        return Ok(Ok(SecretValues::default()));
    }
    if let Some(values) = context.given(uid) {
        return Ok(Ok(values));
    }
    let sandbox = sandbox_namespace(namespace);
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &sandbox);
    let mut values = Vec::new();
    for (index, object) in given.iter().enumerate().filter(|(_, object)| object.kind == ObjectKind::Secret) {
        match within(WHAT, api.get_opt(&copy_name(uid, index))).await? {
            Ok(Some(copy)) => values.extend(named_values(&object.name, &copy.into())),
            Ok(None) => return Ok(Err(gone(&object.name))),
            // A sandbox namespace that is gone took the operator's rights in it along.
            Err(error) if code(&error) == Some(403) && context.caches.namespaces.get(&ObjectRef::new(&sandbox)).is_none() => {
                return Ok(Err(gone(&object.name)));
            }
            Err(error) => return Err(Error::read(WHAT)(error)),
        }
    }
    let values = SecretValues(values);
    context.remember_given(uid, values.clone());
    Ok(Ok(values))
}

fn gone(secret: &str) -> String {
    format!("the copy of the Secret {secret} is gone, so what it held cannot be covered")
}

/// What a run was given, from what is stored of the decision, in the order of the copies.
fn granted(status: &ScriptRunStatus) -> Vec<Object> {
    let object = |permission: &str| {
        let (field, name) = permission.split_once(':')?;
        let kind = ObjectKind::ALL.into_iter().find(|kind| kind.field() == field)?;
        Some(Object { kind, name: name.to_owned() })
    };
    let granted = status.decisions.iter().filter(|decision| decision.verdict == Verdict::Granted);
    let mut objects: Vec<Object> = granted.filter_map(|decision| object(&decision.permission)).collect();
    objects.sort();
    objects
}

#[cfg(test)]
mod tests {
    use paddock_crds::Decision;

    use http::Method;
    use kube::api::ObjectMeta;
    use serde_json::json;

    use super::*;
    use crate::fake_api::{context, expect};

    fn given_smtp() -> ScriptRunStatus {
        let decisions = vec![Decision { permission: "secrets:smtp".into(), verdict: Verdict::Granted, rule: String::new() }];
        ScriptRunStatus { decisions, ..ScriptRunStatus::default() }
    }

    /// Whoever removes a sandbox namespace while the operator is away must not leave a run that can neither end nor go.
    #[tokio::test]
    async fn copies_that_went_with_their_namespace_are_gone() {
        const COPY: &str = "/api/v1/namespaces/sbx-team/secrets/sr-uid-1-0";
        let refused = || expect(Method::GET, COPY, 403, json!("secrets is forbidden"));
        let (absent, fake) = context(vec![refused(), expect(Method::GET, COPY, 404, json!("not found"))], &[]);
        for _ in 0..2 {
            let answer = values("team", "uid-1", &given_smtp(), &absent).await.unwrap();
            assert_eq!(answer.unwrap_err(), "the copy of the Secret smtp is gone, so what it held cannot be covered");
        }
        fake.finished().await;
        let sandbox = k8s_openapi::api::core::v1::Namespace {
            metadata: ObjectMeta { name: Some("sbx-team".into()), ..ObjectMeta::default() },
            ..Default::default()
        };
        let (there, fake) = context(vec![refused()], &[sandbox]);
        assert!(values("team", "uid-1", &given_smtp(), &there).await.is_err(), "the right comes back in a moment");
        fake.finished().await;
    }

    #[tokio::test]
    async fn what_was_read_once_is_remembered_until_the_run_has_ended() {
        let copy = json!({ "metadata": { "name": "sr-uid-1-0" }, "data": { "password": "aHVudGVyMg==" } });
        let exchange = expect(Method::GET, "/api/v1/namespaces/sbx-team/secrets/sr-uid-1-0", 200, copy);
        let (context, fake) = context(vec![exchange], &[]);
        for _ in 0..2 {
            let SecretValues(found) = values("team", "uid-1", &given_smtp(), &context).await.unwrap().unwrap();
            assert_eq!(found, [("smtp".to_owned(), b"hunter2".to_vec())]);
        }
        fake.finished().await;
        context.forget_given("uid-1");
        assert_eq!(context.given("uid-1"), None);
    }

    #[test]
    fn what_was_given_is_known_from_the_decisions_in_the_order_of_the_copies() {
        let decision = |permission: &str, verdict| Decision { permission: permission.into(), verdict, rule: String::new() };
        let decisions = vec![
            decision("runtime:python", Verdict::Granted),
            decision("data:a", Verdict::Granted),
            decision("secrets:z", Verdict::Granted),
            decision("secrets:no", Verdict::Refused),
            decision("secrets:b", Verdict::Granted),
        ];
        let given = granted(&ScriptRunStatus { decisions, ..ScriptRunStatus::default() });
        let names: Vec<(ObjectKind, &str)> = given.iter().map(|object| (object.kind, object.name.as_str())).collect();
        assert_eq!(names, [(ObjectKind::Secret, "b"), (ObjectKind::Secret, "z"), (ObjectKind::ConfigMap, "a")]);
    }
}
