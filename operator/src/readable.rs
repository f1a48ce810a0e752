//! Objects that others write, read so that one of them is never trouble of the others.
//!
//! A parser gives up at some depth, and whoever may write an object can go deeper: in free-form fields, and in `managedFields`, which the API
//! server takes from anybody. An error in one object would fail the list or the watch event that it is in, and with it the whole watch.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Debug;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::value::{RawValue, to_raw_value};

/// Parts of an object as text, which neither recurses nor expands.
pub(crate) type Fields<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;

/// An object, or what identifies one that cannot be read.
#[derive(Clone, Debug)]
pub(crate) struct Readable<K>(pub(crate) Result<K, Unreadable>);

/// An object that is not read, with what identifies it.
#[derive(Clone, Debug)]
pub(crate) struct Unreadable {
    pub(crate) why: String,
    pub(crate) metadata: ObjectMeta,
    /// Its status as text.
    pub(crate) status: Option<String>,
}

pub(crate) fn fields<'a>(of: &Fields<'a>, name: &str) -> Result<Fields<'a>, serde_json::Error> {
    of.get(name).map_or_else(|| Ok(Fields::new()), |raw| serde_json::from_str(raw.get()))
}

/// The metadata without `managedFields`.
pub(crate) fn metadata(object: &Fields<'_>) -> Result<Box<RawValue>, serde_json::Error> {
    let mut metadata = fields(object, "metadata")?;
    metadata.remove("managedFields");
    to_raw_value(&metadata)
}

/// What identifies an object that cannot be read.
pub(crate) fn identify(text: &str, why: &serde_json::Error) -> Result<Unreadable, serde_json::Error> {
    let object: Fields<'_> = serde_json::from_str(text)?;
    let metadata = serde_json::from_str(metadata(&object)?.get())?;
    Ok(Unreadable { why: why.to_string(), metadata, status: object.get("status").map(|status| status.get().to_owned()) })
}

fn read<K: DeserializeOwned>(text: &str) -> Result<K, serde_json::Error> {
    let mut object: Fields<'_> = serde_json::from_str(text)?;
    let metadata = metadata(&object)?;
    object.insert("metadata".into(), &metadata);
    serde_json::from_str(&serde_json::to_string(&object)?)
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Readable<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        match read(raw.get()) {
            Ok(object) => Ok(Self(Ok(object))),
            Err(error) => identify(raw.get(), &error).map(|unreadable| Self(Err(unreadable))).map_err(D::Error::custom),
        }
    }
}

impl<K: Resource> Resource for Readable<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(dt)
    }

    fn group(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::group(dt)
    }

    fn version(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::version(dt)
    }

    fn plural(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(dt)
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.as_ref().map_or_else(|unreadable| &unreadable.metadata, |object| object.meta())
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match &mut self.0 {
            Ok(object) => object.meta_mut(),
            Err(unreadable) => &mut unreadable.metadata,
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::ResourceExt as _;
    use kube::api::{ObjectList, WatchEvent};
    use paddock_crds::SandboxPolicy;

    use super::*;

    const DEPTH: usize = 5000;

    fn deep(key: &str) -> String {
        format!("{{\"{key}\":").repeat(DEPTH) + "1" + &"}".repeat(DEPTH)
    }

    fn policy(name: &str, managed_fields: &str, schema: &str) -> String {
        format!(
            r#"{{"apiVersion":"paddock.dev/v1alpha1","kind":"SandboxPolicy","metadata":{{"name":"{name}","uid":"u","generation":3,"managedFields":{managed_fields}}},"spec":{{"runtimes":[],"input":{{"schemas":[{{"scriptHash":"{}","schema":{schema}}}]}}}},"status":{{"observedGeneration":2}}}}"#,
            "0".repeat(64)
        )
    }

    #[test]
    fn no_object_is_trouble_of_the_others() {
        let managed = format!(r#"[{{"manager":"x","fieldsV1":{}}}]"#, deep("f:a"));
        let objects = [policy("plain", "[]", "{}"), policy("deep-fields", &managed, "{}"), policy("deep-schema", "[]", &deep("a"))];
        let list = format!(r#"{{"apiVersion":"v1","kind":"List","metadata":{{"resourceVersion":"1"}},"items":[{}]}}"#, objects.join(","));
        let list: ObjectList<Readable<SandboxPolicy>> = serde_json::from_str(&list).unwrap();
        let read: Vec<(String, bool)> = list.items.iter().map(|policy| (policy.name_any(), policy.0.is_ok())).collect();
        assert_eq!(read, [("plain".into(), true), ("deep-fields".into(), true), ("deep-schema".into(), false)]);
        for object in objects {
            let event = format!(r#"{{"type":"MODIFIED","object":{object}}}"#);
            assert!(matches!(serde_json::from_str(&event).unwrap(), WatchEvent::<Readable<SandboxPolicy>>::Modified(_)));
        }
    }

    #[test]
    fn what_cannot_be_read_is_still_known() {
        let Readable(read) = serde_json::from_str::<Readable<SandboxPolicy>>(&policy("deep", "[]", &deep("a"))).unwrap();
        let unreadable = read.unwrap_err();
        assert_eq!((unreadable.metadata.name.as_deref(), unreadable.metadata.generation), (Some("deep"), Some(3)));
        assert_eq!(unreadable.status.as_deref(), Some(r#"{"observedGeneration":2}"#));
        assert!(unreadable.why.contains("recursion limit"), "{}", unreadable.why);
    }
}
