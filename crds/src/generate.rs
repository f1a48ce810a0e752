//! Files made from the types: written by `make generate`, compared by a test.

use std::path::{Path, PathBuf};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use crate::{ClusterSandboxPolicy, SandboxPolicy, ScriptRun, reference};

/// A file and what it has to hold.
pub struct Artefact {
    /// Path from the root of the repository.
    pub path: PathBuf,
    /// Its whole content.
    pub content: String,
}

/// The CRDs, each with its plural name.
pub fn crds() -> [(&'static str, CustomResourceDefinition); 3] {
    [
        ("scriptruns", ScriptRun::crd()),
        ("sandboxpolicies", SandboxPolicy::crd()),
        ("clustersandboxpolicies", ClusterSandboxPolicy::crd()),
    ]
}

/// Everything that is generated from the types.
pub fn artefacts() -> Vec<Artefact> {
    let mut artefacts = Vec::new();
    for (plural, crd) in crds() {
        let yaml = serde_saphyr::to_string(&serde_json::to_value(&crd).expect("a CRD is plain JSON")).expect("JSON is YAML");
        artefacts.push(Artefact { path: Path::new("crds/yaml").join(format!("{plural}.yaml")), content: yaml.clone() });
        artefacts.push(Artefact {
            path: Path::new("charts/paddock/templates/crds").join(format!("{plural}.yaml")),
            content: chart_template(&yaml),
        });
    }
    artefacts.push(Artefact { path: "docs/api.md".into(), content: reference::markdown() });
    artefacts
}

/// Helm renders the CRD when `crds.install` is set, and keeps it on uninstall: deleting a CRD deletes every object of its kind.
fn chart_template(yaml: &str) -> String {
    assert!(!yaml.contains("{{"), "a description would be read as a Helm template");
    let annotated = yaml.replacen("metadata:\n", "metadata:\n  annotations:\n    helm.sh/resource-policy: keep\n", 1);
    format!("{{{{- if .Values.crds.install }}}}\n{annotated}{{{{- end }}}}\n")
}
