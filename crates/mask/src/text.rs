//! Covering parts of a text.

use std::collections::BTreeMap;

use crate::Masker;
use crate::detector::Detector;

/// How often each rule covered something.
pub type Counts = BTreeMap<String, u64>;

/// Which ends of a text were cut off from a longer one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// Something came before.
    pub start: bool,
    /// Something follows.
    pub end: bool,
}

/// A covered text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Masked {
    text: Vec<u8>,
    covered: Vec<Covered>,
}

/// A part of a covered text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part<'a> {
    /// The text with `[masked:RULE]` in place of what was found.
    pub text: &'a [u8],
    /// What was found in it.
    pub counts: Counts,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Covered {
    rule: String,
    original: (usize, usize),
    masked: (usize, usize),
}

/// Something that was found, from `start` up to `end`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) rule: String,
}

impl Masker {
    /// Covers what is found in `text`.
    pub fn mask(&self, text: &[u8], cut: Cut) -> Masked {
        let mut found = self.secrets.find(text, cut);
        for (name, regex) in &self.rules {
            let matches = regex.captures_iter(text).filter_map(|captures| captures.get(1).or_else(|| captures.get(0)));
            found.extend(matches.map(|one| Found { start: one.start(), end: one.end(), rule: name.clone() }));
        }
        for detector in &self.detectors {
            let spans = detector.find(text, cut);
            found.extend(spans.into_iter().map(|(start, end)| Found { start, end, rule: detector.as_str().to_owned() }));
        }
        cover(text, found)
    }

    /// Whether a value under this name is a secret by the name alone.
    pub(crate) fn is_secret_name(&self, name: &str) -> bool {
        self.detectors.contains(&Detector::Password) && Detector::is_secret_name(name)
    }
}

/// Where two overlap, both are covered as one, by the name of the one that begins first, and of two that begin together by that of the longer.
fn cover(text: &[u8], mut found: Vec<Found>) -> Masked {
    found.retain(|one| one.start < one.end);
    found.sort_by(|one, other| one.start.cmp(&other.start).then(other.end.cmp(&one.end)));
    let mut merged: Vec<Found> = Vec::new();
    for one in found {
        match merged.last_mut() {
            Some(last) if one.start < last.end => last.end = last.end.max(one.end),
            _ => merged.push(one),
        }
    }
    let mut masked = Masked::default();
    let mut from = 0;
    for Found { start, end, rule } in merged {
        masked.text.extend_from_slice(&text[from..start]);
        let begin = masked.text.len();
        masked.text.extend_from_slice(format!("[masked:{rule}]").as_bytes());
        masked.covered.push(Covered { rule, original: (start, end), masked: (begin, masked.text.len()) });
        from = end;
    }
    masked.text.extend_from_slice(&text[from..]);
    masked
}

impl Masked {
    /// All of it.
    pub fn whole(&self) -> Part<'_> {
        self.part(0, self.text.len())
    }

    /// The part that stands for the first `length` bytes of the original. What is covered is in it whole or not at all.
    pub fn head(&self, length: usize) -> Part<'_> {
        self.part(0, self.place(length, true))
    }

    /// The part that stands for the original from `offset` on.
    pub fn tail(&self, offset: usize) -> Part<'_> {
        self.part(self.place(offset, false), self.text.len())
    }

    fn part(&self, from: usize, to: usize) -> Part<'_> {
        let to = to.min(self.text.len());
        let from = from.min(to);
        let mut counts = Counts::new();
        for covered in self.covered.iter().filter(|covered| covered.masked.0 >= from && covered.masked.1 <= to) {
            *counts.entry(covered.rule.clone()).or_default() += 1;
        }
        Part { text: &self.text[from..to], counts }
    }

    /// Where a place in the original is in the covered text. A place within something covered moves behind it for a head, before it for a tail.
    fn place(&self, original: usize, is_end: bool) -> usize {
        let Some(last) = self.covered.iter().take_while(|covered| covered.original.0 < original).last() else {
            return original;
        };
        if original >= last.original.1 {
            return last.masked.1 + (original - last.original.1);
        }
        if is_end { last.masked.1 } else { last.masked.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(start: usize, end: usize, rule: &str) -> Found {
        Found { start, end, rule: rule.into() }
    }

    #[test]
    fn what_overlaps_is_covered_as_one() {
        let masked = cover(b"0123456789", vec![found(5, 8, "b"), found(2, 6, "a"), found(8, 9, "c"), found(1, 1, "empty")]);
        assert_eq!(String::from_utf8(masked.text.clone()).unwrap(), "01[masked:a][masked:c]9");
        assert_eq!(masked.whole().counts, [("a".to_owned(), 1), ("c".to_owned(), 1)].into());
    }

    #[test]
    fn a_part_of_the_original_is_found_again() {
        let masked = cover(b"0123456789", vec![found(2, 6, "a")]);
        let head = |length| String::from_utf8(masked.head(length).text.to_vec()).unwrap();
        let tail = |offset| String::from_utf8(masked.tail(offset).text.to_vec()).unwrap();
        assert_eq!(
            [head(2), head(3), head(6), head(7), head(10)],
            ["01", "01[masked:a]", "01[masked:a]", "01[masked:a]6", "01[masked:a]6789"]
        );
        assert_eq!([masked.head(2).counts.len(), masked.head(3).counts.len(), masked.tail(6).counts.len()], [0, 1, 0]);
        assert_eq!([tail(1), tail(2), tail(5), tail(6), tail(7)], ["1[masked:a]6789", "[masked:a]6789", "[masked:a]6789", "6789", "789"]);
    }
}
