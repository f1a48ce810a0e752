//! A ScriptRun as it is watched. One that cannot be read, or would take too much memory to read, is trouble of that run alone.
//!
//! Script, arguments, input and schema are the body of a run: up to a megabyte of anybody who may create one, some of it free-form JSON. They
//! are first taken as text, which neither recurses nor expands. A small body is kept, a larger one is left where it is until it is needed, and
//! one that no job can carry is never parsed: a parser gives up at 128 levels, and a list of small objects takes many times its length in
//! memory.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::NamespaceResourceScope;
use paddock_crds::{ConditionType, ScriptRun};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// Longest body that is parsed, in bytes of JSON. The largest job that can run is smaller.
const MAX_BYTES: usize = 1_000_000;
/// Most arrays and objects in it.
const MAX_NODES: usize = 20_000;
/// Most elements and fields in it.
const MAX_ELEMENTS: usize = 200_000;
/// Deepest nesting of it.
const MAX_DEPTH: usize = 100;
/// Longest body that stays in memory for as long as the run waits or starts, in bytes of JSON.
const KEPT_BYTES: usize = 4096;

/// See the module. The error is a run that a newer version of Paddock has made, or allows.
#[derive(Clone, Debug)]
pub(crate) struct Guarded(pub(crate) Result<Watched, Unreadable>);

/// A run that is read, but perhaps for its body.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    pub(crate) run: ScriptRun,
    pub(crate) body: Body,
}

/// Where the body of a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// In the run.
    Here,
    /// With the API server.
    Left,
    /// With the API server, where it stays: it is too much, for this reason.
    Unfit(&'static str),
}

/// A run that is not read, with what identifies it.
#[derive(Clone, Debug)]
pub(crate) struct Unreadable {
    pub(crate) why: String,
    pub(crate) metadata: ObjectMeta,
}

impl Watched {
    /// What is kept in memory of it.
    pub(crate) fn slimmed(mut self) -> Self {
        self.run.metadata.managed_fields = None;
        let is_over = self.run.status.as_ref().is_some_and(|status| status.is_true(&ConditionType::Finished));
        if is_over && let Some(status) = &mut self.run.status {
            status.result = None;
        }
        if self.body == Body::Here && (is_over || body_bytes(&self.run) > KEPT_BYTES) {
            drop_body(&mut self.run);
            self.body = Body::Left;
        }
        self
    }

    /// A newer state of the same run, with the body at hand: it is immutable.
    pub(crate) fn succeeded_by(&self, mut newer: Watched) -> Self {
        if newer.body == Body::Left && self.body == Body::Here {
            newer.run.spec.script = self.run.spec.script.clone();
            newer.body = Body::Here;
        }
        newer
    }
}

/// Takes the body out of a run.
pub(crate) fn drop_body(run: &mut ScriptRun) {
    let script = &mut run.spec.script;
    script.source.inline = None;
    script.input = None;
    script.input_schema = None;
    script.args = Vec::new();
}

fn body_bytes(run: &ScriptRun) -> usize {
    serde_json::to_vec(&run.spec.script).map_or(usize::MAX, |text| text.len())
}

impl<'de> Deserialize<'de> for Guarded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        read(raw.get()).map_err(serde::de::Error::custom)
    }
}

/// As it is written back to the API server, which takes the status alone and keeps the spec that it has.
impl Serialize for Guarded {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Ok(watched) => watched.run.serialize(serializer),
            Err(unreadable) => Err(serde::ser::Error::custom(&unreadable.why)),
        }
    }
}

#[derive(Deserialize)]
struct Identity {
    metadata: ObjectMeta,
}

fn read(text: &str) -> Result<Guarded, serde_json::Error> {
    match read_parts(text) {
        Ok(watched) => Ok(Guarded(Ok(watched.slimmed()))),
        Err(why) => {
            let Identity { mut metadata } = serde_json::from_str(text)?;
            metadata.managed_fields = None;
            Ok(Guarded(Err(Unreadable { why: why.to_string(), metadata })))
        }
    }
}

type Fields<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;

fn read_parts(text: &str) -> Result<Watched, serde_json::Error> {
    let mut object: Fields<'_> = serde_json::from_str(text)?;
    let mut spec: Fields<'_> = fields(&object, "spec")?;
    let mut script: Fields<'_> = fields(&spec, "script")?;
    let Some(why) = spec.get("script").and_then(|script| too_much(script.get())) else {
        return Ok(Watched { run: serde_json::from_str(text)?, body: Body::Here });
    };
    for part in ["args", "input", "inputSchema"] {
        script.remove(part);
    }
    let nothing = RawValue::from_string("{}".into())?;
    if fields(&script, "source")?.contains_key("inline") {
        script.insert("source".into(), &nothing);
    }
    let script = serde_json::value::to_raw_value(&script)?;
    spec.insert("script".into(), &script);
    let spec = serde_json::value::to_raw_value(&spec)?;
    object.insert("spec".into(), &spec);
    Ok(Watched { run: serde_json::from_str(&serde_json::to_string(&object)?)?, body: Body::Unfit(why) })
}

fn fields<'a>(of: &Fields<'a>, name: &str) -> Result<Fields<'a>, serde_json::Error> {
    of.get(name).map_or_else(|| Ok(Fields::new()), |raw| serde_json::from_str(raw.get()))
}

/// Why a body is not parsed, if it is not. `text` is valid JSON.
fn too_much(text: &str) -> Option<&'static str> {
    if text.len() > MAX_BYTES {
        return Some("script, arguments, input and schema are too large");
    }
    let (mut nodes, mut elements, mut depth, mut deepest) = (0, 0, 0_usize, 0);
    let (mut is_text, mut is_escaped) = (false, false);
    for byte in text.bytes() {
        if is_text {
            is_text = byte != b'"' || is_escaped;
            is_escaped = byte == b'\\' && !is_escaped;
            continue;
        }
        match byte {
            b'"' => is_text = true,
            b'{' | b'[' => {
                nodes += 1;
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' => elements += 1,
            _ => {}
        }
    }
    if deepest > MAX_DEPTH {
        return Some("input or schema is nested deeper than 100 levels");
    }
    (nodes > MAX_NODES || elements > MAX_ELEMENTS).then_some("input or schema has too many parts")
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
        assert_eq!((watched.body, watched.run.spec.script.input), (Body::Here, Some(json!({"a": [1]}))));
    }

    #[test]
    fn a_larger_body_is_left_and_comes_back_with_the_run() {
        let text = with_input(&format!("\"{}\"", "x".repeat(KEPT_BYTES)));
        let slim = watched(&text).0.unwrap();
        assert_eq!(slim.body, Body::Left);
        assert!(slim.run.spec.script.input.is_none() && slim.run.spec.script.source.inline.is_none());
        let whole = Watched { run: serde_json::from_str(&text).unwrap(), body: Body::Here };
        assert_eq!(whole.succeeded_by(slim).run, whole.run);
    }

    #[rstest]
    #[case::depth("[".repeat(5000) + &"]".repeat(5000), "nested")]
    #[case::objects(format!("[{}0]", "{\"a\":0},".repeat(30_000)), "parts")]
    #[case::elements(format!("[{}0]", "0,".repeat(300_000)), "parts")]
    #[case::size(format!("\"{}\"", "x".repeat(1_300_000)), "large")]
    fn a_body_that_is_too_much_is_never_parsed(#[case] input: String, #[case] expected: &str) {
        let watched = watched(&with_input(&input)).0.unwrap();
        let Body::Unfit(why) = watched.body else { panic!("{:?}", watched.body) };
        assert!(why.contains(expected), "{why}");
        assert_eq!((watched.run.name_any().as_str(), watched.run.spec.ttl_seconds_after_finished), ("run", Some(7)));
        assert!(watched.run.spec.script.input.is_none() && watched.run.spec.script.source.inline.is_none());
    }

    #[rstest]
    #[case::brackets_in_text(format!("\"{}\"", "[{\\\"".repeat(30_000)))]
    #[case::backslashes_in_text(format!("[\"{}\",[]]", "\\\\".repeat(1000)))]
    fn what_is_text_is_not_counted_as_structure(#[case] input: String) {
        assert_eq!(too_much(&input), None);
    }

    #[test]
    fn as_deep_as_is_allowed_is_parsed() {
        let levels = MAX_DEPTH - 1;
        let text = with_input(&("[".repeat(levels) + &"]".repeat(levels)));
        assert_eq!(watched(&text).0.unwrap().body, Body::Here);
    }

    #[test]
    fn a_status_does_not_make_a_run_unfit() {
        let mut run = admitted(1);
        run.status.as_mut().unwrap().message = Some("[{,".repeat(400_000));
        assert_eq!(watched(&serde_json::to_string(&run).unwrap()).0.unwrap().body, Body::Here);
    }

    #[test]
    fn a_list_with_one_unfit_run_still_gives_the_others() {
        let deep = "[".repeat(500) + &"]".repeat(500);
        let list = format!(
            "{{\"apiVersion\":\"paddock.dev/v1alpha1\",\"kind\":\"ScriptRunList\",\"metadata\":{{\"resourceVersion\":\"1\"}},\"items\":[{},{}]}}",
            with_input(&deep),
            with_input("1")
        );
        let list: ObjectList<Guarded> = serde_json::from_str(&list).unwrap();
        let bodies: Vec<Body> = list.items.iter().map(|run| run.0.as_ref().unwrap().body).collect();
        assert!(matches!(bodies[..], [Body::Unfit(_), Body::Here]), "{bodies:?}");
    }

    #[test]
    fn what_a_newer_version_allows_is_unreadable_and_known_by_name() {
        let text = with_input("1").replace("ClusterSandboxPolicy", "FuturePolicy");
        let run = watched(&text);
        assert_eq!(run.name_any(), "run");
        assert!(run.0.is_err());
    }
}
