//! What a run is given beside its script and input: Secrets and ConfigMaps of its namespace, and volumes of its sandbox namespace. Whatever it
//! may not have is not read for it.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Secret};
use kube::core::NamespaceResourceScope;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Resource, ResourceExt as _};
use paddock_crds::{PolicyKind, Requester, ScriptRun};
use paddock_policy::{
    AtGateway, Found, Object, ObjectKind, Objects, Policy, SecretKey, asked_objects, granting, is_granted, might_be_granted,
    secrets_at_the_gateway,
};
use serde::de::DeserializeOwned;

use super::access::{forbidden_to_the_operator, may_read};
use super::validate::{PoliciesSeen, requester};
use crate::context::Context;
use crate::egress::secrets;
use crate::error::{Error, code, within};
use crate::names::sandbox_namespace;
use crate::readable::Readable;

/// All ConfigMaps of a run together, in bytes of keys and values.
const MAX_DATA: usize = 1 << 20;
/// All Secrets of a run together, in bytes and in keys: what a script puts out is searched for each of their values, in a dozen forms.
const MAX_SECRETS: usize = 16 << 10;
const MAX_KEYS: usize = 64;

/// Keys of Secrets that the gateway adds for one run: each is a decision, and a status has room for so many.
const MAX_AT_GATEWAY: usize = 32;

const WHAT: &str = "what a run asks for";

/// What an object holds. It is never printed.
#[derive(Clone, PartialEq, Eq, Default)]
pub(crate) struct Content {
    pub(crate) text: BTreeMap<String, String>,
    pub(crate) bytes: BTreeMap<String, ByteString>,
}

impl fmt::Debug for Content {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Content({} keys)", self.text.len() + self.bytes.len())
    }
}

impl Content {
    fn size(&self) -> usize {
        let text: usize = self.text.iter().map(|(key, value)| key.len() + value.len()).sum();
        text + self.bytes.iter().map(|(key, value)| key.len() + value.0.len()).sum::<usize>()
    }

    /// Every value with its key.
    pub(crate) fn values(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let text = self.text.iter().map(|(key, value)| (key.as_str(), value.as_bytes()));
        text.chain(self.bytes.iter().map(|(key, value)| (key.as_str(), value.0.as_slice())))
    }
}

impl From<ConfigMap> for Content {
    fn from(object: ConfigMap) -> Self {
        Self { text: object.data.unwrap_or_default(), bytes: object.binary_data.unwrap_or_default() }
    }
}

impl From<Secret> for Content {
    fn from(object: Secret) -> Self {
        Self { text: BTreeMap::new(), bytes: object.data.unwrap_or_default() }
    }
}

/// What was found of what a run asks for.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Given {
    pub(crate) found: Objects,
    /// What was found of the Secrets that the gateway adds.
    pub(crate) at_gateway: AtGateway,
    pub(crate) contents: BTreeMap<Object, Content>,
}

/// Reads what a run asks for and the policies might grant, if requester and authors may read it themselves.
pub(crate) async fn look(run: &ScriptRun, policies: &PoliciesSeen, context: &Context) -> Result<Given, Error> {
    let mut given = Given::default();
    let (Some(asked), Some(requester)) = (&run.spec.capabilities, requester(run.annotations())) else { return Ok(given) };
    let namespace = run.namespace().unwrap_or_default();
    let policies: Vec<&Policy> = policies.taking_part.iter().map(AsRef::as_ref).collect();
    let mut all = Sum::default();
    for object in asked_objects(asked).into_iter().filter(|object| might_be_granted(&policies, object)) {
        let (found, content) = match all.room(object.kind) {
            Ok(()) => read(&object, &namespace, (&requester, &policies), &mut all, context).await?,
            Err(message) => (Found::unusable(message), None),
        };
        given.contents.extend(content.map(|content| (object.clone(), content)));
        given.found.insert(object, found);
    }
    for (secret, adding) in secrets_at_the_gateway(&policies, asked) {
        let room = all.room(ObjectKind::Secret).and_then(|()| {
            let has_room = given.at_gateway.len() < MAX_AT_GATEWAY;
            has_room.then_some(()).ok_or_else(|| format!("the gateway adds more than {MAX_AT_GATEWAY} keys of Secrets for the run"))
        });
        let found = match room {
            Ok(()) => at_gateway(&namespace, &secret, &adding, &mut all, context).await?,
            Err(message) => Found::unusable(message),
        };
        given.at_gateway.insert(secret, found);
    }
    Ok(given)
}

/// What is found of a Secret that the gateway adds. Whoever asks for the run need not be allowed to read it.
async fn at_gateway(namespace: &str, secret: &SecretKey, adding: &[&Policy], all: &mut Sum, context: &Context) -> Result<Found, Error> {
    Ok(match secrets::read(namespace, secret, adding, context).await? {
        Ok(value) => {
            all.secrets += value.len();
            all.keys += 1;
            all.room(ObjectKind::Secret).map_or_else(Found::unusable, |()| Found::Labels(Labels::new()))
        }
        Err(found) => found,
    })
}

/// What a run is given, so far.
#[derive(Default)]
struct Sum {
    data: usize,
    secrets: usize,
    keys: usize,
}

impl Sum {
    fn add(&mut self, kind: ObjectKind, content: &Content) {
        match kind {
            ObjectKind::ConfigMap => self.data += content.size(),
            ObjectKind::Secret => {
                self.secrets += content.size();
                self.keys += content.bytes.len();
            }
            ObjectKind::PersistentVolumeClaim => {}
        }
    }

    /// Whether it is not too much. Once it is, nothing more of the kind is read.
    fn room(&self, kind: ObjectKind) -> Result<(), String> {
        match kind {
            ObjectKind::ConfigMap if self.data > MAX_DATA => {
                Err(format!("the ConfigMaps of the run have more than {MAX_DATA} bytes together"))
            }
            ObjectKind::Secret if self.secrets > MAX_SECRETS || self.keys > MAX_KEYS => {
                Err(format!("the Secrets of the run have more than {MAX_SECRETS} bytes or {MAX_KEYS} keys together"))
            }
            _ => Ok(()),
        }
    }
}

type Labels = BTreeMap<String, String>;

/// What is found of one object, and what it holds if it is given.
async fn read(
    object: &Object,
    namespace: &str,
    (requester, policies): (&Requester, &[&Policy]),
    all: &mut Sum,
    context: &Context,
) -> Result<(Found, Option<Content>), Error> {
    if !may_read(requester, namespace, object.kind, &object.name, context).await? {
        return Ok((Found::forbidden_to_the_requester(object), None));
    }
    let fetched = match object.kind {
        ObjectKind::Secret => fetch::<Secret>(namespace, &object.name, context).await?,
        ObjectKind::ConfigMap => fetch::<ConfigMap>(namespace, &object.name, context).await?,
        ObjectKind::PersistentVolumeClaim => fetch_claim(namespace, &object.name, context).await?,
    };
    let (labels, content) = match fetched {
        Fetched::Read(labels, content) => (labels, content),
        Fetched::Absent => return Ok((Found::absent(object), None)),
        Fetched::Unreadable(why) => return Ok((Found::unusable(format!("the {object} cannot be read: {why}")), None)),
        Fetched::Unfit(why) => return Ok((Found::unusable(format!("the {object} cannot be mounted: {why}")), None)),
        Fetched::Forbidden => return Ok((Found::forbidden("Paddock", forbidden_to_the_operator(object, &context.settings)), None)),
    };
    // Whoever would not get it by its labels is not sent to ask for rights.
    if !is_granted(policies, object, &labels) {
        return Ok((Found::Labels(labels), None));
    }
    for policy in granting(policies, object, &labels) {
        if let Some(found) = forbidden_to_the_author(policy, object, namespace, context).await? {
            return Ok((found, None));
        }
    }
    all.add(object.kind, &content);
    Ok(match all.room(object.kind) {
        Ok(()) => (Found::Labels(labels), Some(content)),
        Err(message) => (Found::unusable(message), None),
    })
}

/// Nobody passes on by a policy what they do not have. Tenants have no rights in a sandbox namespace: of what is there, the author of a
/// SandboxPolicy, which can only narrow, is asked for the right to one of that name in the namespace of the run.
pub(crate) async fn forbidden_to_the_author(
    policy: &Policy,
    object: &Object,
    namespace: &str,
    context: &Context,
) -> Result<Option<Found>, Error> {
    let name = format!("{} {}", policy.taken.kind.as_str(), policy.taken.name);
    let namespace = match (object.kind, policy.taken.kind) {
        (ObjectKind::PersistentVolumeClaim, PolicyKind::ClusterSandboxPolicy) => sandbox_namespace(namespace),
        _ => namespace.to_owned(),
    };
    let message = match &policy.author {
        Some(author) if may_read(author, &namespace, object.kind, &object.name, context).await? => return Ok(None),
        Some(author) => format!("{}, who wrote {name}, may not read the {object}", author.username),
        None => format!("nobody is known as the author of {name}, who must be allowed to read the {object}; whoever writes to it next is"),
    };
    Ok(Some(Found::forbidden(&format!("the author of {name}"), message)))
}

/// What reading an object came to.
pub(crate) enum Fetched {
    Read(Labels, Content),
    Absent,
    Forbidden,
    Unreadable(String),
    Unfit(&'static str),
}

pub(crate) async fn fetch<K>(namespace: &str, name: &str, context: &Context) -> Result<Fetched, Error>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + DeserializeOwned + Clone + fmt::Debug + Into<Content>,
{
    let api: Api<Readable<K>> = Api::namespaced(context.client.clone(), namespace);
    Ok(match within(WHAT, api.get_opt(name)).await? {
        Ok(Some(Readable(Ok(object)))) => Fetched::Read(object.labels().clone(), object.into()),
        Ok(Some(Readable(Err(unreadable)))) => Fetched::Unreadable(unreadable.why),
        Ok(None) => Fetched::Absent,
        Err(error) if code(&error) == Some(403) => Fetched::Forbidden,
        Err(error) => return Err(Error::read(WHAT)(error)),
    })
}

/// A volume is mounted as it is: nothing of it is read here.
async fn fetch_claim(namespace: &str, name: &str, context: &Context) -> Result<Fetched, Error> {
    let sandbox = sandbox_namespace(namespace);
    let api: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &sandbox);
    Ok(match within(WHAT, api.get_opt(name)).await? {
        Ok(Some(claim)) => unfit(&claim).map_or_else(|| Fetched::Read(claim.labels().clone(), Content::default()), Fetched::Unfit),
        Ok(None) => Fetched::Absent,
        // The operator's right comes with the sandbox namespace.
        Err(error) if code(&error) == Some(403) && context.caches.namespaces.get(&ObjectRef::new(&sandbox)).is_none() => Fetched::Absent,
        Err(error) if code(&error) == Some(403) => Fetched::Forbidden,
        Err(error) => return Err(Error::read(WHAT)(error)),
    })
}

/// Why no pod can mount a claim as files.
fn unfit(claim: &PersistentVolumeClaim) -> Option<&'static str> {
    let mode = claim.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref());
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
    match (claim.metadata.deletion_timestamp.is_some(), mode, phase) {
        (true, ..) => Some("it is being deleted"),
        (_, Some("Block"), _) => Some("it is a block device"),
        (.., Some("Lost")) => Some("its volume is lost"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn all_that_a_run_is_given_is_bounded() {
        let with = |keys: usize, bytes: usize| Content {
            bytes: (0..keys).map(|key| (format!("{key:02}"), ByteString(vec![0; bytes / keys - 2]))).collect(),
            ..Content::default()
        };
        let after = |kind, contents: &[Content]| {
            let mut sum = Sum::default();
            for content in contents {
                sum.add(kind, content);
            }
            sum.room(kind)
        };
        assert_eq!(after(ObjectKind::Secret, &[with(8, MAX_SECRETS)]), Ok(()));
        assert_eq!(after(ObjectKind::ConfigMap, &[with(8, MAX_DATA)]), Ok(()));
        assert!(after(ObjectKind::Secret, &[with(8, MAX_SECRETS), with(1, 3)]).unwrap_err().contains("16384 bytes"));
        assert!(after(ObjectKind::ConfigMap, &[with(8, MAX_DATA), with(1, 3)]).unwrap_err().contains("1048576 bytes"));
        assert_eq!(after(ObjectKind::Secret, &[with(64, 640)]), Ok(()));
        assert!(after(ObjectKind::Secret, &[with(65, 650)]).is_err());
    }

    #[rstest::rstest]
    #[case::bound(json!({ "spec": { "volumeMode": "Filesystem" }, "status": { "phase": "Bound" } }), None)]
    #[case::bound_by_its_first_pod(json!({ "status": { "phase": "Pending" } }), None)]
    #[case::block(json!({ "spec": { "volumeMode": "Block" } }), Some("it is a block device"))]
    #[case::lost(json!({ "status": { "phase": "Lost" } }), Some("its volume is lost"))]
    #[case::going(json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" }, "status": { "phase": "Bound" } }), Some("it is being deleted"))]
    fn a_claim_that_no_pod_can_mount_is_told_before(#[case] claim: serde_json::Value, #[case] why: Option<&str>) {
        assert_eq!(unfit(&serde_json::from_value(claim).unwrap()), why);
    }

    #[test]
    fn what_an_object_holds_is_not_printed() {
        let content = Content {
            text: [("a".to_owned(), "plain".to_owned())].into(),
            bytes: [("b".to_owned(), ByteString(b"hunter2".to_vec()))].into(),
        };
        let given = Given { contents: [(Object { kind: ObjectKind::Secret, name: "s".into() }, content)].into(), ..Given::default() };
        let printed = format!("{given:?}");
        assert!(printed.contains("Content(2 keys)") && !printed.contains("plain") && !printed.contains("104, 117"), "{printed}");
    }
}
