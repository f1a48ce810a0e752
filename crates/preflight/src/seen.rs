//! What a reader has seen of a script.

use std::collections::{BTreeMap, BTreeSet};

use paddock_crds::preflight::{LONGEST_HOST, LONGEST_NAME, MOST_BYTES, MOST_FINDINGS, MOST_HOSTS, MOST_IMPORTS};
use paddock_crds::{Finding, FindingKind, Language, Preflight, PreflightVerdict, Unclear};

use crate::hosts::hosts;

/// Something that is looked for: what it is, and the name by which it is recognised.
pub(crate) type Sign = (FindingKind, &'static str);

#[derive(Debug, Default)]
pub(crate) struct Seen {
    imports: BTreeSet<String>,
    hosts: BTreeSet<String>,
    /// Where each sign is first.
    signs: BTreeMap<&'static str, (FindingKind, usize)>,
}

impl Seen {
    pub(crate) fn import(&mut self, module: impl Into<String>) {
        self.imports.insert(module.into());
    }

    pub(crate) fn literal(&mut self, text: &str) {
        // What is longer is no name that anything could be reached by.
        self.hosts.extend(hosts(text).filter(|host| host.len() <= LONGEST_HOST));
    }

    pub(crate) fn sign(&mut self, (kind, name): Sign, offset: usize) {
        let first = self.signs.entry(name).or_insert((kind, offset));
        first.1 = first.1.min(offset);
    }

    pub(crate) fn told(self, language: Language, text: &str) -> Result<Preflight, (Unclear, String)> {
        let cannot_be_told = |module: &&String| module.len() > LONGEST_NAME || module.chars().any(is_invisible);
        if let Some(module) = self.imports.iter().find(cannot_be_told) {
            return Err((Unclear::TooMuch, format!("the name of a module that it imports has {} bytes, or is no name", module.len())));
        }
        if self.imports.len() > MOST_IMPORTS {
            return Err((Unclear::TooMuch, format!("it imports {} modules; at most {MOST_IMPORTS} are told", self.imports.len())));
        }
        if self.hosts.len() > MOST_HOSTS {
            return Err((Unclear::TooMuch, format!("it names {} hosts; at most {MOST_HOSTS} are told", self.hosts.len())));
        }
        if let Some(host) = self.hosts.iter().find(|host| host.chars().any(is_invisible)) {
            return Err((Unclear::TooMuch, format!("a host that it names has {} bytes, and is no name", host.len())));
        }
        let bytes: usize = self.imports.iter().chain(&self.hosts).map(String::len).sum();
        if bytes > MOST_BYTES {
            return Err((
                Unclear::TooMuch,
                format!("the names of what it imports and of hosts have {bytes} bytes; at most {MOST_BYTES} are told"),
            ));
        }
        let shows = |kinds: &[FindingKind]| self.signs.values().any(|(kind, _)| kinds.contains(kind));
        let (dynamic_code, subprocess) =
            (shows(&[FindingKind::DynamicCode, FindingKind::ComputedImport, FindingKind::NativeCode]), shows(&[FindingKind::Subprocess]));
        let mut findings: Vec<(usize, FindingKind, &str)> =
            self.signs.into_iter().map(|(name, (kind, offset))| (offset, kind, name)).collect();
        findings.sort_by_key(|(offset, _, name)| (*offset, *name));
        let finding =
            |(offset, kind, what): (usize, FindingKind, &str)| Finding { kind, line: line_of(text, offset), what: what.to_owned() };
        Ok(Preflight {
            verdict: if findings.is_empty() { PreflightVerdict::NoFindings } else { PreflightVerdict::Findings },
            language: Some(language),
            unclear: None,
            message: None,
            imports: self.imports.into_iter().collect(),
            hosts: self.hosts.into_iter().collect(),
            findings: findings.into_iter().take(MOST_FINDINGS).map(finding).collect(),
            dynamic_code,
            subprocess,
        })
    }
}

/// What is not shown, or changes how other characters are.
fn is_invisible(char: char) -> bool {
    char.is_control()
        || char.is_whitespace()
        || matches!(char, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The line of a place, from 1.
pub(crate) fn line_of(text: &str, offset: usize) -> i64 {
    let lines = text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1;
    i64::try_from(lines).unwrap_or(i64::MAX)
}
