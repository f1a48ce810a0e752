//! `kubectl paddock init`: a folder to begin with.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::arguments::{Kit, Language, Purpose};
use crate::exit::Exit;

/// A file of a kit.
#[derive(Debug, PartialEq, Eq)]
struct File {
    name: String,
    content: String,
}

/// Text of the script, and the extension of its name.
fn script(language: Language, purpose: Purpose) -> (&'static str, &'static str) {
    macro_rules! text {
        ($extension:literal) => {
            match purpose {
                Purpose::Transform => (include_str!(concat!("../starter/transform.", $extension)), $extension),
                Purpose::Check => (include_str!(concat!("../starter/check.", $extension)), $extension),
            }
        };
    }
    match language {
        Language::Python => text!("py"),
        Language::Javascript => text!("mjs"),
        Language::Typescript => text!("ts"),
        Language::Shell => text!("sh"),
        Language::Bash => text!("bash"),
    }
}

/// Name of the runtime in the chart's baseline.
fn runtime(language: Language) -> &'static str {
    match language {
        Language::Python => "python",
        Language::Javascript => "javascript",
        Language::Typescript => "typescript",
        Language::Shell => "shell",
        Language::Bash => "bash",
    }
}

/// All files of a kit. Pure.
fn files(name: &str, language: Language, purpose: Purpose) -> Result<Vec<File>> {
    let (input, expected) = match purpose {
        Purpose::Transform => (include_str!("../starter/transform.input.json"), include_str!("../starter/transform.expected.json")),
        Purpose::Check => (include_str!("../starter/check.input.json"), include_str!("../starter/check.expected.json")),
    };
    let (text, extension) = script(language, purpose);
    let script_name = format!("{name}.{extension}");
    let filled =
        |template: &str| template.replace("{{script}}", &script_name).replace("{{name}}", name).replace("{{runtime}}", runtime(language));
    let file = |name: &str, content: String| File { name: name.to_owned(), content };
    Ok(vec![
        file("README.md", filled(include_str!("../starter/README.md"))),
        file("policy.yaml", filled(include_str!("../starter/policy.yaml"))),
        file(&script_name, text.to_owned()),
        file("input.json", input.to_owned()),
        file("expected.json", expected.to_owned()),
        file("run.yaml", run_yaml(name, language, text, input)?),
        file("test.sh", filled(include_str!("../starter/test.sh"))),
    ])
}

fn run_yaml(name: &str, language: Language, text: &str, input: &str) -> Result<String> {
    let input: Value = serde_json::from_str(input)?;
    let run = json!({
        "apiVersion": "paddock.dev/v1alpha1",
        "kind": "ScriptRun",
        "metadata": { "generateName": format!("{name}-") },
        "spec": {
            "policyRef": { "kind": "SandboxPolicy", "name": name },
            "script": { "runtime": runtime(language), "source": { "inline": text }, "input": input },
        },
    });
    serde_saphyr::to_string(&run).context("cannot write YAML")
}

/// The folder's name has to do as the name of objects.
fn name_of(folder: &Path) -> Result<String> {
    let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_name = !name.is_empty()
        && name.len() <= 40
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    ensure!(is_name, "{name:?} cannot be the name of a policy: use up to 40 small letters, digits and hyphens");
    Ok(name.to_owned())
}

pub(crate) fn init(kit: &Kit) -> Result<Exit> {
    let name = name_of(&kit.folder)?;
    let files = files(&name, kit.language, kit.purpose)?;
    if kit.folder.exists() {
        bail!("{} exists already; nothing was written", kit.folder.display());
    }
    fs::create_dir_all(&kit.folder).with_context(|| format!("cannot make the folder {}", kit.folder.display()))?;
    for file in &files {
        let path = kit.folder.join(&file.name);
        fs::write(&path, &file.content).with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}", path.display());
    }
    let folder = kit.folder.display();
    eprintln!("next: kubectl apply -f {folder}/policy.yaml, then sh {folder}/test.sh");
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;
    use paddock_crds::{SandboxPolicy, ScriptRun};
    use rstest::rstest;

    use super::*;

    #[test]
    fn every_kit_holds_objects_that_can_be_read_and_no_gaps() {
        for language in Language::value_variants() {
            for purpose in Purpose::value_variants() {
                let files = files("demo", *language, *purpose).expect("files");
                let content = |name: &str| &files.iter().find(|file| file.name == name).expect("a file").content;
                let policy: SandboxPolicy = serde_saphyr::from_str(content("policy.yaml")).expect("a policy");
                let run: ScriptRun = serde_saphyr::from_str(content("run.yaml")).expect("a run");
                assert_eq!(policy.spec.rules.runtimes.unwrap()[0].name, run.spec.script.runtime);
                let script = files.iter().find(|file| file.name.starts_with("demo.")).expect("a script");
                assert_eq!(run.spec.script.source.inline.as_ref(), Some(&script.content));
                for file in &files {
                    assert!(!file.content.contains("{{"), "{}: {}", file.name, file.content);
                }
            }
        }
    }

    #[rstest]
    #[case("reports/monthly", Some("monthly"))]
    #[case("Monthly", None)]
    #[case("-x", None)]
    #[case("..", None)]
    fn a_folder_names_the_policy(#[case] folder: &str, #[case] expected: Option<&str>) {
        assert_eq!(name_of(Path::new(folder)).ok().as_deref(), expected);
    }
}
