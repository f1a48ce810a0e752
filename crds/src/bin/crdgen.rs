//! Writes the generated files. Run from the root of the repository: `make generate`.

fn main() -> std::io::Result<()> {
    for artefact in paddock_crds::generate::artefacts() {
        if let Some(folder) = artefact.path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(&artefact.path, &artefact.content)?;
        println!("{}", artefact.path.display());
    }
    Ok(())
}
