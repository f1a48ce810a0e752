//! A run whose input may be deeper than a parser goes: whoever may create runs can make one, and it must not hide the others.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::NamespaceResourceScope;
use paddock_crds::ScriptRun;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::value::{RawValue, to_raw_value};

/// A run, and whether all of it was read.
#[derive(Clone, Debug)]
pub(crate) struct Shallow(pub(crate) ScriptRun, pub(crate) bool);

type Fields<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;

fn fields<'a>(of: &Fields<'a>, name: &str) -> Result<Fields<'a>, serde_json::Error> {
    of.get(name).map_or_else(|| Ok(Fields::new()), |raw| serde_json::from_str(raw.get()))
}

/// Without everything that others fill with whatever they like.
fn without_depths(text: &str) -> Result<ScriptRun, serde_json::Error> {
    let mut run: Fields<'_> = serde_json::from_str(text)?;
    let mut parts = Vec::new();
    for (path, left_out) in [("metadata", ["managedFields"].as_slice()), ("spec", &[]), ("status", &["result"])] {
        let mut part = fields(&run, path)?;
        part.retain(|name, _| !left_out.contains(&name.as_ref()));
        let mut script = fields(&part, "script")?;
        script.retain(|name, _| name != "input" && name != "inputSchema");
        let script = to_raw_value(&script)?;
        if path == "spec" {
            part.insert("script".into(), &script);
        }
        parts.push((path, to_raw_value(&part)?));
    }
    for (path, part) in &parts {
        run.insert((*path).into(), part);
    }
    serde_json::from_str(&serde_json::to_string(&run)?)
}

impl<'de> Deserialize<'de> for Shallow {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        match serde_json::from_str(raw.get()) {
            Ok(run) => Ok(Self(run, true)),
            Err(_) => without_depths(raw.get()).map(|run| Self(run, false)).map_err(D::Error::custom),
        }
    }
}

impl Resource for Shallow {
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
        &self.0.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.0.metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_with_a_deep_input_is_read_without_it() {
        let run = |input: &str| {
            format!(
                "{{\"apiVersion\":\"paddock.dev/v1alpha1\",\"kind\":\"ScriptRun\",\"metadata\":{{\"name\":\"r\"}},\"spec\":{{\"policyRef\":\
                 {{\"kind\":\"SandboxPolicy\",\"name\":\"p\"}},\"script\":{{\"runtime\":\"shell\",\"source\":{{\"inline\":\"x\"}},\"input\":{input}}}}},\
                 \"status\":{{\"phase\":\"AwaitingApproval\"}}}}"
            )
        };
        let Shallow(shallow, is_whole) = serde_json::from_str(&run("[1]")).expect("a run");
        assert!(is_whole && shallow.spec.script.input.is_some());
        let deep = "[".repeat(500) + &"]".repeat(500);
        let Shallow(shallow, is_whole) = serde_json::from_str(&run(&deep)).expect("a run");
        assert!(!is_whole && shallow.spec.script.input.is_none());
        assert_eq!(shallow.spec.script.source.inline.as_deref(), Some("x"));
        assert!(shallow.status.is_some());
    }
}
