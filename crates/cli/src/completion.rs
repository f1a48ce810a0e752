//! Completions through kubectl, which looks for an executable `kubectl_complete-paddock`: this binary by another name.

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;
use clap_complete::CompletionCandidate;

use crate::arguments::Arguments;

/// What kubectl calls, with the words after `kubectl paddock`, of which the last is to be completed.
const NAME: &str = "kubectl_complete-paddock";

/// Whether the process was begun by that name.
pub(crate) fn is_asked(program: &OsStr) -> bool {
    Path::new(program).file_stem() == Some(OsStr::new(NAME))
}

/// Prints what kubectl reads: a candidate a line, with what it means behind a tab, then whether the shell shall look for files.
pub(crate) fn answer(words: Vec<OsString>) -> Result<()> {
    std::io::stdout().write_all(completed(words)?.as_bytes()).context("cannot write the candidates")
}

fn completed(mut words: Vec<OsString>) -> Result<String> {
    words.insert(0, "kubectl-paddock".into());
    let last = words.len() - 1;
    let here = std::env::current_dir().ok();
    let candidates = clap_complete::engine::complete(&mut Arguments::command(), words, last, here.as_deref())?;
    let mut text = String::new();
    // A name of a file could hold lines of its own.
    let is_one_word = |candidate: &&CompletionCandidate| !candidate.get_value().to_string_lossy().contains(char::is_control);
    for candidate in candidates.iter().filter(is_one_word) {
        text += &candidate.get_value().to_string_lossy();
        if let Some(help) = candidate.get_help() {
            text += &format!("\t{}", help.to_string().lines().next().unwrap_or_default());
        }
        text.push('\n');
    }
    // cobra's directives: 4 is to look for no files.
    Ok(text + if candidates.is_empty() { ":0\n" } else { ":4\n" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_completed_as_kubectl_reads_them() {
        let complete = |words: &[&str]| completed(words.iter().map(OsString::from).collect()).expect("candidates");
        assert_eq!(
            complete(&["desc"]),
            "describe\tTell the life of a run: what happened when, what was decided by which rule, and how it ended\n:4\n"
        );
        assert!(complete(&["run", "--time"]).starts_with("--timeout\t"));
        assert!(complete(&["get", "-o", ""]).contains("yaml"));
        assert_eq!(complete(&["nothing-of-that-name", "x"]).lines().last(), Some(":0"));
        assert!(is_asked(OsStr::new("/usr/local/bin/kubectl_complete-paddock")) && !is_asked(OsStr::new("kubectl-paddock")));
    }
}
