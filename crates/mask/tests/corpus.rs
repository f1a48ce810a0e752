//! Recall and false alarms on a corpus. Every value in it was made up by chance; `docs/masking.md` shows the table beside other detectors.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use paddock_mask::{Cut, Detector, Masker};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    /// Name of the detector whose business it is, or `none`.
    kind: String,
    text: String,
    /// What must not be left of the text.
    secret: String,
}

fn cases() -> Vec<Case> {
    include_str!("../corpus/cases.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Found and all, by kind; and the texts that hold nothing, of which something was covered.
fn measure() -> (BTreeMap<String, (u32, u32)>, Vec<String>) {
    let masker = Masker::new(Detector::ALL.into(), &[], &[]).unwrap();
    let (mut recall, mut alarms) = (BTreeMap::new(), Vec::new());
    for Case { kind, text, secret } in cases() {
        let masked = masker.mask(text.as_bytes(), Cut::default());
        let left = String::from_utf8(masked.whole().text.to_vec()).unwrap();
        if kind == "none" {
            if left != text {
                alarms.push(format!("{text} -> {left}"));
            }
            continue;
        }
        let (found, all) = recall.entry(kind.clone()).or_insert((0, 0));
        *all += 1;
        if left.contains(&secret) {
            println!("missed, {kind}: {text}");
        } else {
            *found += 1;
        }
    }
    (recall, alarms)
}

#[test]
fn recall_and_false_alarms_are_as_documented() {
    let (recall, alarms) = measure();
    println!("false alarms: {alarms:#?}");
    let documentation = include_str!("../../../docs/masking.md");
    for (kind, (found, all)) in &recall {
        let row = format!("| {kind} | {found}/{all} |");
        assert!(documentation.contains(&row), "docs/masking.md does not have the row {row}");
    }
    let none = cases().iter().filter(|case| case.kind == "none").count();
    let row = format!("| false alarms | {}/{none} |", alarms.len());
    assert!(documentation.contains(&row), "docs/masking.md does not have the row {row}");
}
