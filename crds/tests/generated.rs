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
