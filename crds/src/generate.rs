//! Files made from the types: written by `make generate`, compared by a test.

use std::path::{Path, PathBuf};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

use crate::json_schema::json_schema;
use crate::{ClusterSandboxPolicy, Diagnosis, SandboxPolicy, SandboxPool, ScriptApproval, ScriptRun, reference};

/// A file and what it has to hold.
pub struct Artefact {
    /// Path from the root of the repository.
    pub path: PathBuf,
    /// Its whole content.
    pub content: String,
}

/// The annotation of a CRD that names the version of Paddock whose schema it holds. An older version leaves such a CRD alone.
pub const CRD_VERSION: &str = "paddock.dev/version";

/// The CRDs, each with its plural name.
pub fn crds() -> [(&'static str, CustomResourceDefinition); 6] {
    [
        ("scriptruns", finished(&ScriptRun::crd())),
        ("sandboxpolicies", finished(&SandboxPolicy::crd())),
        ("clustersandboxpolicies", finished(&ClusterSandboxPolicy::crd())),
        ("scriptapprovals", finished(&ScriptApproval::crd())),
        ("sandboxpools", finished(&SandboxPool::crd())),
        ("diagnoses", finished(&Diagnosis::crd())),
    ]
}

fn finished(crd: &CustomResourceDefinition) -> CustomResourceDefinition {
    let mut crd = without_null(crd);
    let annotations = crd.metadata.annotations.get_or_insert_default();
    annotations.insert(CRD_VERSION.into(), env!("CARGO_PKG_VERSION").into());
    // With a CRD goes every object of its kind: whoever takes the installation away, by whatever tool, does not mean that.
    annotations.insert("helm.sh/resource-policy".into(), "keep".into());
    annotations.insert("argocd.argoproj.io/sync-options".into(), "Delete=false,Prune=false".into());
    crd
}

/// An optional field is left out, never null: a null would count as set in the rules.
fn without_null(crd: &CustomResourceDefinition) -> CustomResourceDefinition {
    let mut value = serde_json::to_value(crd).expect("a CRD is plain JSON");
    remove_nullable(&mut value);
    serde_json::from_value(value).expect("removing a field leaves a CRD")
}

fn remove_nullable(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if fields.get("nullable") == Some(&Value::Bool(true)) {
                fields.remove("nullable");
            }
            fields.values_mut().for_each(remove_nullable);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_nullable),
        _ => {}
    }
}

/// Everything that is generated from the types.
pub fn artefacts() -> Vec<Artefact> {
    let mut artefacts = Vec::new();
    let mut all = String::new();
    for (plural, crd) in crds() {
        let yaml = serde_saphyr::to_string(&serde_json::to_value(&crd).expect("a CRD is plain JSON")).expect("JSON is YAML");
        artefacts.push(Artefact { path: Path::new("crds/yaml").join(format!("{plural}.yaml")), content: yaml.clone() });
        // Helm installs what lies in a chart's `crds` before everything else, and never removes it: deleting a CRD deletes its objects.
        let schema = serde_json::to_string_pretty(&json_schema(&crd)).expect("JSON") + "\n";
        artefacts.push(Artefact { path: Path::new("manifests/schemas").join(format!("{plural}.json")), content: schema });
        all += &format!("---\n{yaml}");
        artefacts.push(Artefact { path: Path::new("charts/paddock/crds").join(format!("{plural}.yaml")), content: yaml });
    }
    // For those who install without Helm.
    artefacts.push(Artefact { path: "manifests/install/crds.yaml".into(), content: all });
    artefacts.push(Artefact { path: "docs/api.md".into(), content: reference::markdown() });
    artefacts
}
