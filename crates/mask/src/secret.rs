//! The values of secrets that were granted to a run, in the forms in which they turn up.

use std::fmt::Write as _;

use aho_corasick::{AhoCorasick, MatchKind};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};

use crate::text::{Cut, Found};

/// Shorter values would cover half of any text.
const LEAST: usize = 6;
/// At an end that was cut off, so much of the beginning or end of a value gives it away.
const LEAST_PART: usize = 4;

/// Everything to look for.
pub(crate) struct Secrets {
    forms: Vec<(String, Vec<u8>)>,
    search: Option<AhoCorasick>,
}

impl Secrets {
    pub(crate) fn new(secrets: &[(String, Vec<u8>)]) -> Self {
        let mut forms = Vec::new();
        for (name, value) in secrets {
            let trimmed = value.trim_ascii();
            if trimmed.len() >= LEAST {
                forms.extend(forms_of(trimmed).into_iter().map(|form| (format!("secret:{name}"), form)));
            }
        }
        let patterns = forms.iter().map(|(_, form)| form);
        let search = AhoCorasick::builder().match_kind(MatchKind::Standard).build(patterns).ok().filter(|_| !forms.is_empty());
        Self { forms, search }
    }

    pub(crate) fn find(&self, text: &[u8], cut: Cut) -> Vec<Found> {
        let Some(search) = &self.search else {
            return Vec::new();
        };
        let whole = search.find_overlapping_iter(text).map(|one| Found {
            start: one.start(),
            end: one.end(),
            rule: self.forms[one.pattern().as_usize()].0.clone(),
        });
        let mut found: Vec<Found> = whole.collect();
        for (rule, form) in &self.forms {
            if let Some(length) =
                (LEAST_PART..form.len().min(text.len() + 1)).rev().find(|length| cut.end && text.ends_with(&form[..*length]))
            {
                found.push(Found { start: text.len() - length, end: text.len(), rule: rule.clone() });
            }
            let of_the_end = |length: &usize| cut.start && text.starts_with(&form[form.len() - length..]);
            if let Some(length) = (LEAST_PART..form.len().min(text.len() + 1)).rev().find(of_the_end) {
                found.push(Found { start: 0, end: length, rule: rule.clone() });
            }
        }
        found
    }
}

/// As it is, in hexadecimal, URL-encoded, JSON-encoded, and within base64 at each of the three places where a group of bytes can begin.
fn forms_of(value: &[u8]) -> Vec<Vec<u8>> {
    let mut forms = vec![value.to_vec()];
    let hex = value.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    });
    forms.push(hex.to_uppercase().into_bytes());
    forms.push(hex.into_bytes());
    for uppercase in [false, true] {
        for plus in [false, true] {
            forms.push(url_encoded(value, uppercase, plus));
        }
    }
    if let Ok(text) = std::str::from_utf8(value) {
        let quoted = serde_json::to_string(text).unwrap_or_default();
        forms.push(quoted.trim_matches('"').as_bytes().to_vec());
    }
    for skipped in 0..3 {
        let shifted = [&[0; 2][..skipped], value].concat();
        let whole_groups = &shifted[..shifted.len() - shifted.len() % 3];
        // The first group is mixed with what comes before, unless the value begins it.
        let from = if skipped == 0 { 0 } else { 4 };
        for encoded in [STANDARD.encode(whole_groups), URL_SAFE.encode(whole_groups)] {
            forms.push(encoded.as_bytes().get(from..).unwrap_or_default().to_vec());
        }
    }
    forms.retain(|form| form.len() >= LEAST);
    forms.sort();
    forms.dedup();
    forms
}

fn url_encoded(value: &[u8], uppercase: bool, plus: bool) -> Vec<u8> {
    let mut text = String::new();
    for byte in value {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => text.push(char::from(*byte)),
            b' ' if plus => text.push('+'),
            _ if uppercase => _ = write!(text, "%{byte:02X}"),
            _ => _ = write!(text, "%{byte:02x}"),
        }
    }
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::Masker;

    const SECRET: &str = "pa/ss \"wörd\"+42";

    fn masker(value: &[u8]) -> Masker {
        Masker::new(BTreeSet::new(), &[], &[("db".into(), value.to_vec())]).unwrap()
    }

    fn masked(text: &[u8]) -> String {
        String::from_utf8_lossy(masker(SECRET.as_bytes()).mask(text, Cut::default()).whole().text).into_owned()
    }

    #[test]
    fn every_form_is_covered() {
        let json = serde_json::to_string(SECRET).unwrap();
        for form in [SECRET.to_owned(), json, "pa%2Fss%20%22w%C3%B6rd%22%2B42".into(), "pa%2fss+%22w%c3%b6rd%22%2b42".into()] {
            let text = masked(format!("before {form} after").as_bytes());
            assert!(text.contains("[masked:secret:db]") && text.starts_with("before ") && text.ends_with(" after"), "{text}");
        }
        for before in ["", "a", "ab", "abc"] {
            let encoded = STANDARD.encode(format!("{before}{SECRET}; and more"));
            let text = masked(encoded.as_bytes());
            assert!(text.contains("[masked:secret:db]"), "{before:?}: {text}");
        }
    }

    #[test]
    fn a_short_value_is_not_looked_for() {
        let masked = masker(b"abc").mask(b"abc abc", Cut::default());
        assert_eq!(masked.whole().text, b"abc abc");
    }

    #[test]
    fn the_part_of_a_value_at_a_cut_end_is_covered() {
        let mask = |text: &str, cut| String::from_utf8(masker(b"correct-horse").mask(text.as_bytes(), cut).whole().text.to_vec()).unwrap();
        let (start, end) = (Cut { start: true, end: false }, Cut { start: false, end: true });
        assert_eq!(mask("x correct-ho", end), "x [masked:secret:db]");
        assert_eq!(mask("ect-horse x", start), "[masked:secret:db] x");
        assert_eq!(mask("x correct-ho", start), "x correct-ho");
    }

    proptest! {
        #[test]
        fn no_secret_survives_anywhere(secret in "[!-~]{6,40}", before in "[ -~]{0,40}", after in "[ -~]{0,40}") {
            let text = format!("{before}{secret}{after}{}", STANDARD.encode(format!("{before}{secret}{after}")));
            let masked = masker(secret.as_bytes()).mask(text.as_bytes(), Cut::default());
            let masked = String::from_utf8(masked.whole().text.to_vec()).unwrap();
            prop_assert!(!masked.replace("[masked:secret:db]", "\n").contains(&secret), "{masked}");
        }

        #[test]
        fn no_part_of_a_secret_survives_a_cut(secret in "[a-z0-9]{12,40}", before in "[A-Z ]{0,40}", at in 0..80_usize) {
            let text = format!("{before}{secret}");
            let head = &text[..at.min(text.len())];
            let masked = masker(secret.as_bytes()).mask(head.as_bytes(), Cut { start: false, end: true });
            let left = String::from_utf8(masked.whole().text.to_vec()).unwrap().replace("[masked:secret:db]", "");
            prop_assert!(left.chars().filter(|c| c.is_ascii_lowercase() || c.is_ascii_digit()).count() < LEAST_PART, "{left}");
        }
    }
}
