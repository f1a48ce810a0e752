//! The generated files in the repository are those that the types give.

use std::path::Path;

#[test]
fn generated_files_are_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let stale: Vec<String> = paddock_crds::generate::artefacts()
        .into_iter()
        .filter(|artefact| std::fs::read_to_string(root.join(&artefact.path)).ok().as_ref() != Some(&artefact.content))
        .map(|artefact| artefact.path.display().to_string())
        .collect();
    assert!(stale.is_empty(), "stale: {}. Run: make generate", stale.join(", "));
}

/// `kubectl explain` has something to say of every field.
#[test]
fn every_field_is_described() {
    fn look(path: &str, schema: &serde_json::Value, silent: &mut Vec<String>) {
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            // What every object has.
            if ["apiVersion", "kind", "metadata"].contains(&name.as_str()) && path.matches('.').count() == 1 {
                continue;
            }
            if field["description"].as_str().is_none_or(str::is_empty) {
                silent.push(path.clone());
            }
            look(&path, field, silent);
        }
        for part in ["items", "additionalProperties"].iter().filter_map(|part| schema.get(part)) {
            look(path, part, silent);
        }
    }
    let mut silent = Vec::new();
    let mut seen = 0;
    for artefact in paddock_crds::generate::artefacts().iter().filter(|artefact| artefact.path.starts_with("charts/paddock/crds")) {
        let crd: serde_json::Value = serde_saphyr::from_str(&artefact.content).expect("a CRD");
        for version in crd["spec"]["versions"].as_array().into_iter().flatten() {
            look(&crd["spec"]["names"]["kind"].to_string(), &version["schema"]["openAPIV3Schema"], &mut silent);
            seen += 1;
        }
    }
    assert!(seen == 6 && silent.is_empty(), "{seen} {silent:#?}");
}
