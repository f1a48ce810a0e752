//! The tutorial: every command on the page is run, as on a terminal, and shows what the page says.
#![allow(clippy::unwrap_used)]

mod harness;

use std::path::{Path, PathBuf};
use std::process::Command;

use harness::layout;
use paddock_e2e::cluster::component;

/// A command of the page and what it shows.
#[derive(Debug, Default)]
struct Step {
    command: String,
    shown: Vec<String>,
}

/// The commands in the blocks of a page. Those that read a document go on to its `END`.
fn steps(page: &str) -> Vec<Step> {
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
fn is_shown(wanted: &[String], seen: &[&str]) -> bool {
    match wanted.split_first() {
        None => seen.is_empty(),
        Some((line, rest)) if line == "…" => (0..=seen.len()).any(|skipped| is_shown(rest, &seen[skipped..])),
        Some((line, rest)) => seen.split_first().is_some_and(|(first, others)| is_like(line, first) && is_shown(rest, others)),
    }
}

fn is_like(wanted: &str, seen: &str) -> bool {
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

fn type_(folder: &Path, command: &str) -> String {
    let path = format!(
        "{}:{}:{}",
        layout().clone.join("target/debug").display(),
        component::built(&layout()).unwrap().folder_of("kubectl").unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    std::fs::write(folder.join(".typed"), command).unwrap();
    let mut terminal = Command::new("script");
    terminal.args(["--quiet", "--return", "--command", "bash .typed", "/dev/null"]).current_dir(folder);
    let output = terminal.env("PATH", path).env("KUBECONFIG", folder.join(".kubeconfig")).env("NO_COLOR", "1").output().unwrap();
    on_the_terminal(&String::from_utf8_lossy(&output.stdout))
}

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = harness::kubectl(&["delete", "namespace", "ten-minutes", "--ignore-not-found", "--wait=false"], "");
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn every_command_of_the_tutorial_shows_what_the_page_says() {
    let page = std::fs::read_to_string(layout().clone.join("docs/tutorial.md")).unwrap();
    let steps = steps(&page);
    assert!(steps.len() > 20, "{steps:#?}");
    let folder = Folder(std::env::temp_dir().join(format!("paddock-tutorial-{}", std::process::id())));
    std::fs::create_dir_all(&folder.0).unwrap();
    // The tutorial changes the context.
    std::fs::copy(layout().kubeconfig(), folder.0.join(".kubeconfig")).unwrap();
    for step in &steps {
        let seen = type_(&folder.0, &step.command);
        let lines: Vec<&str> = if seen.is_empty() { Vec::new() } else { seen.lines().collect() };
        assert!(is_shown(&step.shown, &lines), "$ {}\n{seen}\n--- the page has\n{}", step.command, step.shown.join("\n"));
    }
}

#[test]
fn an_ellipsis_stands_for_anything() {
    assert!(is_like("slow TimedOut: …", "slow TimedOut: its time was over") && is_like("a … c", "a b c") && is_like("a", "a"));
    assert!(!is_like("a", "ab") && !is_like("a … c", "a b d") && !is_like("b…", "ab"));
    let page = ["one".to_owned(), "…".to_owned(), "four".to_owned()];
    assert!(is_shown(&page, &["one", "two", "three", "four"]) && is_shown(&page, &["one", "four"]));
    assert!(!is_shown(&page, &["one", "four", "five"]) && !is_shown(&page, &["two", "four"]));
}
