//! Covers secrets and personal data in what a script has put out, before anything of it is stored. Pure; each search is linear in the size of the text.
//!
//! It keeps what slipped in by accident out of statuses, and with them out of logs and backups. It cannot keep anything from a script that
//! wants it out: any encoding that nobody has thought of passes. That is what grants are for.

mod detector;
mod json;
mod numbers;
mod secret;
mod text;

pub use detector::Detector;
pub use json::Renamed;
pub use secret::plain;
pub use text::{Counts, Cut, Masked, Part};

use std::collections::BTreeSet;

use regex::bytes::{Regex, RegexBuilder};
use thiserror::Error;

use secret::Secrets;

/// Longest pattern of a rule, in bytes.
pub const MAX_PATTERN: usize = 512;
/// Most that one pattern may take when it is compiled, in bytes.
const PATTERN_SIZE: usize = 1 << 18;

/// A pattern that a policy covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The name that is shown instead of what it matches.
    pub name: String,
    /// A regular expression in the syntax of the `regex` crate: no look-around and no back-references. If it has a group, the first is what is covered.
    pub pattern: String,
}

/// A pattern that cannot be used.
#[derive(Debug, Error)]
#[error("masking rule {name}: {why}")]
pub struct InvalidRule {
    /// Of the rule.
    pub name: String,
    /// What is wrong with it, in one line.
    pub why: String,
}

/// What is covered.
pub struct Masker {
    detectors: BTreeSet<Detector>,
    rules: Vec<(String, Regex)>,
    secrets: Secrets,
}

impl Masker {
    /// `secrets` are names and values.
    pub fn new(detectors: BTreeSet<Detector>, rules: &[Rule], secrets: &[(String, Vec<u8>)]) -> Result<Self, InvalidRule> {
        let rules = rules.iter().map(|rule| Ok((rule.name.clone(), compile(rule)?))).collect::<Result<_, InvalidRule>>()?;
        let too_much = || InvalidRule { name: "secret".into(), why: "the values of Secrets are more than can be looked for".into() };
        Ok(Self { detectors, rules, secrets: Secrets::new(secrets).ok_or_else(too_much)? })
    }
}

fn compile(rule: &Rule) -> Result<Regex, InvalidRule> {
    let invalid = |why: String| InvalidRule { name: rule.name.clone(), why };
    if rule.pattern.len() > MAX_PATTERN {
        return Err(invalid(format!("the pattern has {} bytes; at most {MAX_PATTERN} are allowed", rule.pattern.len())));
    }
    let regex = RegexBuilder::new(&rule.pattern).size_limit(PATTERN_SIZE).dfa_size_limit(PATTERN_SIZE).build().map_err(|error| {
        let text = error.to_string();
        invalid(text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned())
    })?;
    if regex.is_match(b"") {
        return Err(invalid("the pattern matches the empty text".into()));
    }
    Ok(regex)
}
