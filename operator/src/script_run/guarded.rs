//! A ScriptRun as it is watched. One that cannot be read is trouble of that run alone, and no run takes much memory.
//!
//! Script, arguments, input and schema are the body of a run: up to a megabyte of anybody who may create one. Input is never parsed: any JSON
//! may be in it, which can be deeper than a parser goes and takes many times its length when it is parsed. A small body is kept, a larger one is
//! left where it is until it is needed, and one that no job can carry is never fetched. Of the metadata only what is the operator's
//! is kept, and the labels, which count as part of the body: policies may ask for them.

use std::borrow::Cow;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::NamespaceResourceScope;
use paddock_crds::{ConditionType, ScriptRun};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::names::{GIT_ANNOTATIONS, GIT_LABELS, STAMPS, TRACEPARENT};
use crate::readable::{Fields, Unreadable, fields, identify, metadata};

/// Longest body that is looked at, in bytes of JSON. The largest job that can run is smaller. With the largest metadata and status the object
/// is still well below the 1.5 MiB that etcd takes, so that the status of a run that may run can always be stored.
const MAX_BYTES: usize = 1_000_000;
/// Longest body that stays in memory for as long as the run waits or starts, in bytes of JSON.
const KEPT_BYTES: usize = 4096;

/// See the module. The error is a run that a newer version of Paddock has made, or allows.
#[derive(Clone, Debug)]
pub(crate) struct Guarded(pub(crate) Result<Watched, Unreadable>);

/// A run that is read, but perhaps for its body.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    /// Its `input` and `inputSchema` are always left out.
    pub(crate) run: ScriptRun,
    /// The input as the API server wrote it.
    pub(crate) input: Option<Arc<str>>,
    /// The schema that the run brings, as the API server wrote it.
    pub(crate) schema: Option<Arc<str>>,
    pub(crate) body: Body,
}

/// Where the body of a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// In the run.
    Here,
    /// With the API server.
    Left {
        /// Length of its JSON.
        bytes: usize,
    },
    /// With the API server, where it stays: no job is made of it.
    Unfit(Unfit),
}

/// Why a body is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// It is larger than any job can be.
    TooLarge,
    /// `inputSchema` is no object.
    SchemaIsNoObject,
}

impl Watched {
    /// What is kept in memory of it. `body_bytes` is the length of its body.
    fn slimmed(mut self, body_bytes: usize) -> Self {
        let is_over = self.run.status.as_ref().is_some_and(|status| status.is_true(&ConditionType::Finished));
        if is_over && let Some(status) = &mut self.run.status {
            status.result = None;
        }
        if self.body == Body::Here && (is_over || body_bytes > KEPT_BYTES) {
            drop_body(&mut self.run);
            drop_labels(&mut self.run.metadata);
            self.input = None;
            self.schema = None;
            self.body = Body::Left { bytes: body_bytes };
        }
        self
    }

    /// A newer state of the same run, with the body at hand: it is immutable.
    pub(crate) fn succeeded_by(&self, mut newer: Watched) -> Self {
        if matches!(newer.body, Body::Left { .. }) && self.body == Body::Here {
            newer.run.spec.script = self.run.spec.script.clone();
            newer.run.metadata.labels.clone_from(&self.run.metadata.labels);
            newer.input.clone_from(&self.input);
            newer.schema.clone_from(&self.schema);
            newer.body = Body::Here;
        }
        newer
    }
}

/// Takes the body out of a run.
pub(crate) fn drop_body(run: &mut ScriptRun) {
    run.spec.script.source.inline = None;
    run.spec.script.args = Vec::new();
}

impl<'de> Deserialize<'de> for Guarded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        let guarded = match read_parts(raw.get()) {
            Ok((watched, body_bytes)) => Ok(watched.slimmed(body_bytes)),
            Err(error) => {
                let unreadable = identify(raw.get(), &error).map_err(serde::de::Error::custom)?;
                Err(Unreadable { metadata: slim_metadata(unreadable.metadata), status: None, ..unreadable })
            }
        };
        Ok(Self(guarded))
    }
}

/// As it is written back to the API server, which takes the status alone and keeps the rest as it has it.
impl Serialize for Guarded {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Ok(watched) => watched.run.serialize(serializer),
            Err(unreadable) => Err(serde::ser::Error::custom(&unreadable.why)),
        }
    }
}

/// A run with its body, from the API server's text.
pub(crate) fn read_whole(text: &str) -> Result<Watched, serde_json::Error> {
    read_parts(text).map(|(watched, _)| watched)
}

/// The run, and the length of its body. Free-form parts are taken as text, which neither recurses nor expands.
fn read_parts(text: &str) -> Result<(Watched, usize), serde_json::Error> {
    let mut object: Fields<'_> = serde_json::from_str(text)?;
    let mut spec: Fields<'_> = fields(&object, "spec")?;
    let mut script: Fields<'_> = fields(&spec, "script")?;
    let script_bytes = spec.get("script").map_or(0, |script| script.get().len());
    let schema = script.remove("inputSchema").map_or("null", RawValue::get);
    let mut schema_text = (schema != "null").then(|| Arc::from(schema));
    let mut input = script.remove("input").map(RawValue::get).filter(|input| *input != "null").map(Arc::from);
    let nothing = RawValue::from_string("{}".into())?;
    let body = match schema.as_bytes() {
        _ if script_bytes > MAX_BYTES => Body::Unfit(Unfit::TooLarge),
        b"null" | [b'{', ..] => Body::Here,
        _ => Body::Unfit(Unfit::SchemaIsNoObject),
    };
    if body != Body::Here {
        input = None;
        schema_text = None;
        script.remove("args");
        if fields(&script, "source")?.contains_key("inline") {
            script.insert("source".into(), &nothing);
        }
    }
    let script = serde_json::value::to_raw_value(&script)?;
    spec.insert("script".into(), &script);
    let spec = serde_json::value::to_raw_value(&spec)?;
    object.insert("spec".into(), &spec);
    let metadata = metadata(&object)?;
    object.insert("metadata".into(), &metadata);
    let mut run: ScriptRun = serde_json::from_str(&serde_json::to_string(&object)?)?;
    let labels = run.metadata.labels.take();
    let label_bytes: usize = labels.iter().flatten().map(|(key, value)| key.len() + value.len()).sum();
    run.metadata = slim_metadata(run.metadata);
    run.metadata.labels = labels;
    Ok((Watched { run, input, schema: schema_text, body }, script_bytes + label_bytes))
}

/// Labels, annotations and references of others can be large, and are nothing to the operator, but that the marks of who holds a run are there.
fn slim_metadata(mut metadata: ObjectMeta) -> ObjectMeta {
    metadata.owner_references = None;
    drop_labels(&mut metadata);
    if let Some(annotations) = &mut metadata.annotations {
        annotations.retain(|key, value| {
            let is_mark = GIT_ANNOTATIONS.contains(&key.as_str());
            if is_mark {
                value.clear();
            }
            // Stamps are the cluster's; the other one is anybody's, and one that is longer is none.
            let is_read = STAMPS.contains(&key.as_str()) || (key == TRACEPARENT && value.len() <= 64);
            is_mark || is_read
        });
    }
    metadata
}

/// Of a body that is left, or of a run that is over. Those that say who holds the run are kept.
fn drop_labels(metadata: &mut ObjectMeta) {
    if let Some(labels) = &mut metadata.labels {
        labels.retain(|key, _| GIT_LABELS.contains(&key.as_str()));
    }
    metadata.labels = metadata.labels.take().filter(|labels| !labels.is_empty());
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
            Ok(watched) => &watched.run.metadata,
            Err(unreadable) => &unreadable.metadata,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match &mut self.0 {
            Ok(watched) => &mut watched.run.metadata,
            Err(unreadable) => &mut unreadable.metadata,
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::ResourceExt as _;
    use kube::api::{ObjectList, WatchEvent};
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::super::fixtures::{a_run, admitted};
    use super::*;

    fn with_input(input: &str) -> String {
        let mut value = serde_json::to_value(a_run()).unwrap();
        value["spec"]["script"]["input"] = Value::from("HERE");
        value["spec"]["ttlSecondsAfterFinished"] = Value::from(7);
        value.to_string().replace("\"HERE\"", input)
    }

    fn watched(object: &str) -> Guarded {
        let event: WatchEvent<Guarded> = serde_json::from_str(&format!("{{\"type\":\"ADDED\",\"object\":{object}}}")).unwrap();
        let WatchEvent::Added(run) = event else { panic!("{event:?}") };
        run
    }

    #[test]
    fn a_small_body_is_kept() {
        let watched = watched(&with_input("{\"a\":[1]}")).0.unwrap();
        assert_eq!((watched.body, watched.input.as_deref()), (Body::Here, Some("{\"a\":[1]}")));
        assert_eq!(watched.run.spec.script.source.inline.as_deref(), Some("print(1)"));
    }

    #[test]
    fn labels_are_kept_with_a_small_body_and_come_back_with_a_large_one() {
        let mut object: Value = serde_json::from_str(&with_input("1")).unwrap();
        object["metadata"]["labels"] = json!({ "team": "data", "app.kubernetes.io/instance": "git" });
        let small = watched(&object.to_string()).0.unwrap();
        assert_eq!((small.body, small.run.labels()["team"].as_str()), (Body::Here, "data"));
        object["metadata"]["labels"]["long"] = Value::from("x".repeat(KEPT_BYTES));
        let large = watched(&object.to_string()).0.unwrap();
        assert!(matches!(large.body, Body::Left { bytes } if bytes > KEPT_BYTES) && !large.run.labels().contains_key("team"));
        let whole = read_whole(&object.to_string()).unwrap();
        assert_eq!((whole.body, whole.succeeded_by(large).run.labels()["team"].as_str()), (Body::Here, "data"));
    }

    #[test]
    fn no_input_and_null_are_the_same() {
        assert_eq!(watched(&with_input("null")).0.unwrap().input, None);
    }

    #[test]
    fn a_larger_body_is_left_and_comes_back_with_the_run() {
        let input = format!("\"{}\"", "x".repeat(KEPT_BYTES));
        let text = with_input(&input);
        let slim = watched(&text).0.unwrap();
        assert!(matches!(slim.body, Body::Left { bytes } if (KEPT_BYTES..KEPT_BYTES + 100).contains(&bytes)));
        assert_eq!((&slim.input, &slim.run.spec.script.source.inline), (&None, &None));
        let whole = read_whole(&text).unwrap();
        assert_eq!((whole.body, whole.input.as_deref()), (Body::Here, Some(input.as_str())));
        let newer = whole.succeeded_by(slim);
        assert_eq!((newer.run, newer.input), (whole.run, whole.input));
    }

    /// The parser of a whole run would give up at 128 levels, and small objects take many times their length when they are parsed.
    #[rstest]
    #[case::deep("[".repeat(50_000) + &"]".repeat(50_000))]
    #[case::objects(format!("[{}0]", "{\"a\":0},".repeat(30_000)))]
    fn input_is_text_whatever_is_in_it(#[case] input: String) {
        let whole = read_whole(&with_input(&input)).unwrap();
        assert_eq!((whole.body, whole.input.as_deref()), (Body::Here, Some(input.as_str())));
        assert!(matches!(watched(&with_input(&input)).0.unwrap().body, Body::Left { .. }));
    }

    #[test]
    fn a_schema_is_never_parsed() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(5000), "]".repeat(5000));
        let text = with_input("1").replace("\"input\":1", &format!("\"inputSchema\":{deep}"));
        let watched = watched(&text).0.unwrap();
        assert!(watched.run.spec.script.input_schema.is_none() && matches!(watched.body, Body::Left { .. }));
    }

    #[test]
    fn a_schema_that_is_no_object_is_noticed() {
        for schema in ["[]", "1", "\"{\""] {
            let text = with_input("1").replace("\"input\":1", &format!("\"input\":1,\"inputSchema\":{schema}"));
            assert_eq!(watched(&text).0.unwrap().body, Body::Unfit(Unfit::SchemaIsNoObject));
        }
    }

    #[test]
    fn a_body_that_is_too_large_is_not_read() {
        let watched = watched(&with_input(&format!("\"{}\"", "x".repeat(1_300_000)))).0.unwrap();
        assert_eq!((watched.body, &watched.input), (Body::Unfit(Unfit::TooLarge), &None));
        assert_eq!((watched.run.name_any().as_str(), watched.run.spec.ttl_seconds_after_finished), ("run", Some(7)));
        assert!(watched.run.spec.script.source.inline.is_none());
    }

    #[test]
    fn of_the_metadata_only_what_is_the_operators_is_kept() {
        let mut run = a_run();
        run.metadata.labels = Some((0..1000).map(|number| (number.to_string(), "x".repeat(60))).collect());
        run.metadata.annotations.as_mut().unwrap().insert("kubectl.kubernetes.io/last-applied-configuration".into(), "x".repeat(200_000));
        run.metadata.annotations.as_mut().unwrap().insert("paddock.dev/junk".into(), "x".repeat(200_000));
        run.metadata.annotations.as_mut().unwrap().insert("paddock.dev/traceparent".into(), "x".repeat(200_000));
        run.metadata.annotations.as_mut().unwrap().insert("xpaddock.dev/requester".into(), "root".into());
        run.metadata.annotations.as_mut().unwrap().insert("argocd.argoproj.io/tracking-id".into(), "x".repeat(200_000));
        run.metadata.labels.as_mut().unwrap().insert("helm.toolkit.fluxcd.io/name".into(), "x".into());
        let kept = watched(&serde_json::to_string(&run).unwrap()).0.unwrap().run;
        let mut annotations = a_run().metadata.annotations.unwrap();
        annotations.insert("argocd.argoproj.io/tracking-id".into(), String::new());
        let labels = std::collections::BTreeMap::from([("helm.toolkit.fluxcd.io/name".to_owned(), "x".to_owned())]);
        assert_eq!((kept.metadata.labels, kept.metadata.annotations), (Some(labels), Some(annotations)));
        assert_eq!((kept.metadata.finalizers, kept.metadata.uid), (a_run().metadata.finalizers, a_run().metadata.uid));
    }

    #[test]
    fn a_status_does_not_make_a_body_larger() {
        let mut run = admitted(1);
        run.status.as_mut().unwrap().message = Some("[{,".repeat(400_000));
        assert_eq!(watched(&serde_json::to_string(&run).unwrap()).0.unwrap().body, Body::Here);
    }

    #[test]
    fn a_list_with_one_strange_run_still_gives_the_others() {
        let list = format!(
            "{{\"apiVersion\":\"paddock.dev/v1alpha1\",\"kind\":\"ScriptRunList\",\"metadata\":{{\"resourceVersion\":\"1\"}},\"items\":[{},{}]}}",
            with_input("1").replace("ClusterSandboxPolicy", "FuturePolicy"),
            with_input("1")
        );
        let list: ObjectList<Guarded> = serde_json::from_str(&list).unwrap();
        assert_eq!(list.items.iter().map(|run| run.0.is_ok()).collect::<Vec<_>>(), [false, true]);
        assert_eq!(list.items[0].name_any(), "run");
    }

    #[test]
    fn input_that_a_newer_version_of_the_operator_writes_back_is_the_run_without_it() {
        let text = serde_json::to_value(watched(&with_input("{\"a\":1}"))).unwrap();
        assert_eq!(text["spec"]["script"].get("input"), None);
        assert_eq!(text["metadata"]["name"], json!("run"));
    }
}
