//! Pages whose commands are run, as on a terminal.

use std::path::Path;
use std::process::Command;

use paddock_e2e::cluster::component;

use super::layout;

/// A command of the page and what it shows.
#[derive(Debug, Default)]
pub struct Step {
    pub command: String,
    pub shown: Vec<String>,
}

/// The commands in the blocks of a page. Those that read a document go on to its `END`.
pub fn steps(page: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let (mut in_block, mut in_document) = (false, false);
    for line in page.lines() {
        if line.starts_with("```") {
            in_block = line == "```console";
        } else if in_document {
            let step = steps.last_mut().unwrap();
            step.command += &format!("\n{line}");
            in_document = line != "END";
        } else if let (true, Some(command)) = (in_block, line.strip_prefix("$ ")) {
            in_document = command.contains("<<'END'");
            steps.push(Step { command: command.to_owned(), shown: Vec::new() });
        } else if in_block {
            steps.last_mut().unwrap().shown.push(line.to_owned());
        }
    }
    steps
}

/// Whether lines are as the page has them: `…` stands for anything in a line, and alone for any lines.
pub fn is_shown(wanted: &[String], seen: &[&str]) -> bool {
    match wanted.split_first() {
        None => seen.is_empty(),
        Some((line, rest)) if line == "…" => (0..=seen.len()).any(|skipped| is_shown(rest, &seen[skipped..])),
        Some((line, rest)) => seen.split_first().is_some_and(|(first, others)| is_like(line, first) && is_shown(rest, others)),
    }
}

pub fn is_like(wanted: &str, seen: &str) -> bool {
    let mut parts = wanted.split('…');
    let Some(mut left) = seen.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let mut is_exact = true;
    for part in parts {
        is_exact = part.is_empty();
        let Some(at) = left.rfind(part) else { return false };
        left = &left[at + part.len()..];
    }
    left.is_empty() || (is_exact && wanted.contains('…'))
}

/// What stands on a terminal at the end, after everything that was written over.
fn on_the_terminal(text: &str) -> String {
    let lines = text.split("\r\n").map(|line| line.rsplit("\r\x1b[K").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n").trim_end().to_owned()
}

/// What a command shows that is typed in this folder, which holds the kubeconfig: kubectl, its plugin and Helm are on the PATH.
pub fn type_(folder: &Path, command: &str) -> String {
    let helm = component::build_one(&layout(), "helm").unwrap();
    let path = format!(
        "{}:{}:{}:{}",
        layout().clone.join("target/debug").display(),
        component::built(&layout()).unwrap().folder_of("kubectl").unwrap().display(),
        helm.parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    std::fs::write(folder.join(".typed"), command).unwrap();
    let mut terminal = Command::new("script");
    terminal.args(["--quiet", "--return", "--command", "bash .typed", "/dev/null"]).current_dir(folder);
    let output = terminal.env("PATH", path).env("KUBECONFIG", folder.join(".kubeconfig")).env("NO_COLOR", "1").output().unwrap();
    on_the_terminal(&String::from_utf8_lossy(&output.stdout))
}
