//! Pages that name things name all of them, and only what there is.

use std::collections::BTreeSet;
use std::process::Command;

use crate::harness::layout;
use paddock_crds::{PolicyReason, Reason};
use paddock_e2e::cluster::component;
use serde_json::Value;

fn page(path: &str) -> String {
    std::fs::read_to_string(layout().clone.join(path)).unwrap()
}

#[test]
fn every_reason_and_every_alert_has_a_remedy() {
    let page_text = page("docs/troubleshooting.md");
    // A row of its own, or among the words that tell no trouble.
    let fine = page_text.split("\n## ").find(|section| section.starts_with("Words that tell no trouble")).unwrap();
    for (reason, _) in Reason::ALL {
        let reason = reason.as_str();
        let has_row = page_text.lines().any(|line| line.starts_with(&format!("| `{reason}` | ")));
        assert!(has_row || fine.contains(&format!("`{reason}`")), "{reason} has no remedy in docs/troubleshooting.md");
    }
    for (reason, _) in PolicyReason::ALL {
        assert!(page_text.contains(&format!("`{}`", reason.as_str())), "{} is not in docs/troubleshooting.md", reason.as_str());
    }
    let alerts = page("charts/paddock/monitoring/alerts.yaml");
    let names = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    for name in names {
        assert!(page_text.contains(&format!("`{name}`")), "{name} is not in docs/troubleshooting.md");
    }
}

/// The texts of all sources under these folders.
fn sources(folders: &[&str]) -> String {
    let mut text = String::new();
    let mut left: Vec<_> = folders.iter().map(|folder| layout().clone.join(folder)).collect();
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text += &std::fs::read_to_string(path).unwrap();
        }
    }
    text
}

/// For every field of a policy the guide says how several meet.
#[test]
fn the_guide_says_how_every_field_of_policies_meets() {
    let guide = page("docs/policies.md");
    let table = guide.split("\n## ").find(|section| section.starts_with("How several meet")).unwrap();
    let crd: Value = serde_saphyr::from_str(&page("charts/paddock/crds/sandboxpolicies.yaml")).unwrap();
    let rules = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
    let mut fields: Vec<String> = Vec::new();
    for (name, field) in rules.as_object().unwrap() {
        let inner = |field: &Value| field["properties"].as_object().map(|inner| inner.keys().cloned().collect::<Vec<_>>());
        match (name.as_str(), inner(field)) {
            ("limits" | "capabilities" | "input" | "output", Some(inner)) => {
                fields.extend(inner.iter().map(|inner| format!("{name}.{inner}")));
            }
            _ => fields.push(name.clone()),
        }
    }
    assert!(fields.len() > 20, "{fields:?}");
    for field in fields {
        assert!(
            table.contains(&format!("`{field}`")) || table.contains(&format!("`{field}.")),
            "docs/policies.md does not say how {field} meets"
        );
    }
}

/// A claim whose test was renamed or taken away is none.
#[test]
fn every_test_that_the_threat_model_names_is_there() {
    let sources = sources(&["crates", "crds", "operator", "e2e/tests"]);
    let page = page("docs/threat-model.md");
    let mut seen = 0;
    for name in page.split('`').skip(1).step_by(2) {
        let stem = name.trim_end_matches('…');
        // A name of a test is a sentence.
        if stem.matches('_').count() < 2 || !stem.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') {
            continue;
        }
        let wanted = if name.ends_with('…') { format!("fn {stem}") } else { format!("fn {stem}(") };
        assert!(sources.contains(&wanted), "docs/threat-model.md names {name}, and there is no such test");
        seen += 1;
    }
    assert!(seen > 40, "{seen}");
}

/// A suite that the Makefile does not name is never run.
#[test]
fn the_makefile_runs_every_suite() {
    let (main, makefile) = (page("e2e/tests/suite/main.rs"), page("Makefile"));
    let of = |name: &str| makefile.lines().find_map(|line| line.strip_prefix(name)).unwrap().split_whitespace();
    let named: BTreeSet<&str> = of("SUITES := ").chain(of("DISTURBING := ")).chain(["chaos", "rights"]).collect();
    let there = main.lines().filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';')).filter(|name| *name != "harness");
    assert_eq!(there.collect::<BTreeSet<_>>(), named);
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
    let schemas =
        ["scriptruns", "sandboxpolicies", "clustersandboxpolicies", "scriptapprovals", "sandboxpools", "diagnoses"].map(|plural| {
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
