//! A ScriptRun as it is watched. One that cannot be read, or would take too much memory to read, is trouble of that run alone.
//!
//! Input is free-form JSON of anybody who may create a run. It is first taken as text, which neither recurses nor expands, and parsed only if
//! it is small and plain enough: a parser gives up at 128 levels, and a list of small objects takes many times its length in memory.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::NamespaceResourceScope;
use paddock_crds::{ConditionType, ScriptRun};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// Longest object that is parsed, in bytes. The largest job that can run is much smaller.
const MAX_BYTES: usize = 1_200_000;
/// Most arrays and objects in it.
const MAX_NODES: usize = 20_000;
/// Most elements and fields in it.
const MAX_ELEMENTS: usize = 200_000;

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Guarded(pub(crate) Result<ScriptRun, Unreadable>);

/// A run that is not read, with what identifies it.
#[derive(Clone, Debug)]
pub(crate) struct Unreadable {
    pub(crate) why: String,
    pub(crate) metadata: ObjectMeta,
}

impl<'de> Deserialize<'de> for Guarded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        read(raw.get()).map_err(serde::de::Error::custom)
    }
}

fn read(text: &str) -> Result<Guarded, serde_json::Error> {
    let run = match too_much(text) {
        Some(why) => Err(why.to_owned()),
        None => serde_json::from_str::<ScriptRun>(text).map_err(|error| error.to_string()),
    };
    match run {
        Ok(run) => Ok(Guarded(Ok(slim(run)))),
        Err(why) => {
            let Identity { mut metadata } = serde_json::from_str(text)?;
            metadata.managed_fields = None;
            Ok(Guarded(Err(Unreadable { why, metadata })))
        }
    }
}

/// Everything else is skipped, which takes no stack.
#[derive(Deserialize)]
struct Identity {
    metadata: ObjectMeta,
}

fn too_much(text: &str) -> Option<&'static str> {
    let count = |wanted: &[u8]| text.bytes().filter(|byte| wanted.contains(byte)).count();
    if text.len() > MAX_BYTES {
        return Some("the object is too large");
    }
    if count(b"{[") > MAX_NODES || count(b",") > MAX_ELEMENTS {
        return Some("the object has too many parts");
    }
    None
}

/// The cache holds many finished runs for long: what they ran is not needed any more.
fn slim(mut run: ScriptRun) -> ScriptRun {
    run.metadata.managed_fields = None;
    if run.status.as_ref().is_some_and(|status| status.is_true(&ConditionType::Finished)) {
        run.spec.script.source.inline = None;
        run.spec.script.input = None;
        run.spec.script.input_schema = None;
        run.spec.script.args = Vec::new();
        if let Some(status) = &mut run.status {
            status.result = None;
        }
    }
    run
}

impl Resource for Guarded {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        ScriptRun::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        ScriptRun::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        ScriptRun::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        ScriptRun::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        match &self.0 {
            Ok(run) => &run.metadata,
            Err(unreadable) => &unreadable.metadata,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match &mut self.0 {
            Ok(run) => &mut run.metadata,
            Err(unreadable) => &mut unreadable.metadata,
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::ResourceExt as _;
    use kube::api::{ObjectList, WatchEvent};
    use serde_json::{Value, json};

    use super::super::fixtures::a_run;
    use super::*;

    fn with_input(input: &str) -> String {
        let mut value = serde_json::to_value(a_run()).unwrap();
        value["spec"]["script"]["input"] = Value::from("HERE");
        value.to_string().replace("\"HERE\"", input)
    }

    fn watched(object: &str) -> Guarded {
        let event: WatchEvent<Guarded> = serde_json::from_str(&format!("{{\"type\":\"ADDED\",\"object\":{object}}}")).unwrap();
        let WatchEvent::Added(run) = event else { panic!("{event:?}") };
        run
    }

    #[test]
    fn a_readable_run_is_read() {
        assert_eq!(watched(&with_input("{\"a\":[1]}")).0.unwrap().spec.script.input, Some(json!({"a": [1]})));
    }

    #[test]
    fn nesting_size_and_number_of_parts_are_trouble_of_that_run_alone() {
        let deep = "[".repeat(5000) + &"]".repeat(5000);
        let many = format!("[{}0]", "{\"a\":0},".repeat(30_000));
        let flat = format!("[{}0]", "0,".repeat(300_000));
        let large = format!("\"{}\"", "x".repeat(1_300_000));
        for input in [deep, many, flat, large] {
            let run = watched(&with_input(&input));
            assert_eq!(run.name_any(), "run");
            assert!(run.0.is_err());
        }
    }

    #[test]
    fn a_list_with_one_unreadable_run_still_gives_the_others() {
        let deep = "[".repeat(500) + &"]".repeat(500);
        let list = format!(
            "{{\"apiVersion\":\"paddock.dev/v1alpha1\",\"kind\":\"ScriptRunList\",\"metadata\":{{\"resourceVersion\":\"1\"}},\"items\":[{},{}]}}",
            with_input(&deep),
            with_input("1")
        );
        let list: ObjectList<Guarded> = serde_json::from_str(&list).unwrap();
        assert_eq!(list.items.iter().map(|run| run.0.is_ok()).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn what_a_newer_version_allows_is_unreadable_and_known_by_name() {
        let text = with_input("1").replace("ClusterSandboxPolicy", "FuturePolicy");
        assert!(watched(&text).0.is_err());
    }
}
