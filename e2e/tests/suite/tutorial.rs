//! The tutorial: every command on the page is run, as on a terminal, and shows what the page says.

use std::path::PathBuf;

use crate::harness::page::{is_like, is_shown, steps, type_};
use crate::harness::{self, layout};

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
