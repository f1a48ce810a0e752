//! Pages that name things name all of them, and only what there is.
#![allow(clippy::unwrap_used)]

mod harness;

use std::process::Command;

use harness::layout;
use paddock_crds::Reason;
use paddock_e2e::cluster::component;
use serde_json::Value;

fn page(path: &str) -> String {
    std::fs::read_to_string(layout().clone.join(path)).unwrap()
}

#[test]
fn every_reason_and_every_alert_has_a_remedy() {
    let page_text = page("docs/troubleshooting.md");
    for (reason, _) in Reason::ALL {
        assert!(page_text.contains(&format!("`{}`", reason.as_str())), "{} is not in docs/troubleshooting.md", reason.as_str());
    }
    let alerts = page("charts/paddock/monitoring/alerts.yaml");
    let names = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    for name in names {
        assert!(page_text.contains(&format!("`{name}`")), "{name} is not in docs/troubleshooting.md");
    }
}

/// Links within the repository lead somewhere, headings too.
#[test]
fn no_link_leads_nowhere() {
    let clone = layout().clone;
    let mut pages = vec!["README.md".to_owned(), "CONTRIBUTING.md".to_owned(), "SECURITY.md".to_owned(), "images/README.md".to_owned()];
    let docs = std::fs::read_dir(clone.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let docs = docs.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    pages.extend(docs.map(|path| format!("docs/{}", path.file_name().unwrap().to_string_lossy())));
    for name in &pages {
        let text = page(name);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link) {
            if link.contains("://") {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { clone.join(name) } else { clone.join(name).parent().unwrap().join(file) };
            assert!(target.exists(), "{name} links to {link}");
            if !heading.is_empty() {
                let text = std::fs::read_to_string(&target).unwrap();
                let slug = |line: &str| {
                    line.trim_start_matches('#').trim().to_lowercase().replace([':', ',', '(', ')', '.', '`'], "").replace(' ', "-")
                };
                let is_there = text.lines().filter(|line| line.starts_with('#')).any(|line| slug(line) == heading);
                assert!(is_there, "{name} links to {link}, and there is no such heading");
            }
        }
    }
}

/// kind reads a configuration before it looks for a container engine.
#[test]
fn kind_reads_its_configuration() {
    let kind = component::build_one(&layout(), "kind").unwrap();
    let told = |file: &str| {
        let output = Command::new(&kind)
            .args(["create", "cluster", "--config", file])
            .current_dir(layout().clone)
            .env_clear()
            .env("PATH", "/nonexistent")
            .env("HOME", std::env::temp_dir())
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let good = told("e2e/kind/cluster.yaml");
    let wrong = std::env::temp_dir().join(format!("paddock-kind-{}.yaml", std::process::id()));
    std::fs::write(&wrong, page("e2e/kind/cluster.yaml").replace("extraMounts", "extraMount")).unwrap();
    let bad = told(&wrong.to_string_lossy());
    std::fs::remove_file(wrong).unwrap();
    assert!(bad.contains("extraMount") && !good.contains("extraMount"), "good: {good}\nbad: {bad}");
    assert!(good.contains("docker") || good.contains("provider") || good.contains("engine"), "it got as far as the engine: {good}");
}

/// What an editor is told of an example is that it is right, and of one with a slip of the pen that it is not.
#[test]
fn the_schemas_for_editors_take_every_example() {
    let clone = layout().clone;
    let schemas = ["scriptruns", "sandboxpolicies", "clustersandboxpolicies", "scriptapprovals"].map(|plural| {
        let schema: Value = serde_json::from_str(&page(&format!("manifests/schemas/{plural}.json"))).unwrap();
        (schema["title"].as_str().unwrap().to_owned(), jsonschema::validator_for(&schema).unwrap())
    });
    let mut seen = 0;
    for entry in std::fs::read_dir(clone.join("manifests/examples")).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for document in text.split("\n---\n") {
            let object: Value = serde_saphyr::from_str(document).unwrap();
            let Some((_, schema)) = schemas.iter().find(|(kind, _)| object["kind"] == *kind) else { continue };
            assert!(
                schema.is_valid(&object),
                "{:?}\n{document}",
                schema.iter_errors(&object).map(|error| error.to_string()).collect::<Vec<_>>()
            );
            let mut slipped = object.clone();
            slipped["spec"]["timoutSeconds"] = 5.into();
            assert!(!schema.is_valid(&slipped));
            seen += 1;
        }
    }
    assert!(seen >= 6, "{seen}");
}
