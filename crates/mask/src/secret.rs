//! The values of secrets that were granted to a run, in the forms in which they turn up.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};

use serde_json::{Number, Value};

use crate::text::{Cut, Found};

/// Shorter values would cover half of any text.
const LEAST: usize = 6;
/// Parts of a value are more often words that others use too.
const LEAST_OF_A_PART: usize = 8;
/// At an end that was cut off, so much of the beginning or end of a value gives it away.
const LEAST_PART: usize = 4;

/// Building what searches for all forms takes time in proportion to the square of the longest.
const LONGEST_PIECE: usize = 1024;
/// A text in which more is found than so often for each of its bytes is covered as a whole: it is nothing but such values, one within the other.
const MATCHES_PER_BYTE: usize = 4;

/// Everything to look for. White space counts neither in what is looked for nor in what is searched: tools break long lines, and put spaces between
/// the bytes that they dump.
pub(crate) struct Secrets {
    forms: Vec<(String, Vec<u8>)>,
    search: Option<AhoCorasick>,
}

impl Secrets {
    /// `None`: there is too much to look for.
    pub(crate) fn new(secrets: &[(String, Vec<u8>)]) -> Option<Self> {
        let mut forms = BTreeSet::new();
        for (name, value) in secrets {
            for form in
                plain(value, LEAST_OF_A_PART).into_iter().flat_map(|text| pieces(&text).into_iter().flat_map(forms_of).collect::<Vec<_>>())
            {
                forms.insert((format!("secret:{name}"), form));
            }
        }
        let forms: Vec<(String, Vec<u8>)> = forms.into_iter().collect();
        let patterns = forms.iter().map(|(_, form)| form);
        // As a DFA it would take a kilobyte for each byte of each form.
        let mut builder = AhoCorasick::builder();
        let search = builder.match_kind(MatchKind::Standard).kind(Some(AhoCorasickKind::ContiguousNFA)).build(patterns).ok()?;
        Some(Self { search: (!forms.is_empty()).then_some(search), forms })
    }

    pub(crate) fn find(&self, text: &[u8], cut: Cut) -> Vec<Found> {
        let Some(search) = &self.search else {
            return Vec::new();
        };
        let dense: Vec<(usize, u8)> = text.iter().copied().enumerate().filter(|(_, byte)| !byte.is_ascii_whitespace()).collect();
        let bytes: Vec<u8> = dense.iter().map(|(_, byte)| *byte).collect();
        let found = self.find_dense(search, &bytes, cut);
        let place = |index: usize| dense.get(index).map_or(text.len(), |(place, _)| *place);
        found.into_iter().map(|one| Found { start: place(one.start), end: place(one.end - 1) + 1, rule: one.rule }).collect()
    }

    /// Each finding has at least one byte.
    fn find_dense(&self, search: &AhoCorasick, text: &[u8], cut: Cut) -> Vec<Found> {
        let mut found: Vec<Found> = Vec::new();
        // Where a value is found again and again within itself there is one finding, not one for each byte.
        let mut last: HashMap<&str, usize> = HashMap::new();
        let most = MATCHES_PER_BYTE * text.len();
        for (count, one) in search.find_overlapping_iter(text).enumerate() {
            let rule = &self.forms[one.pattern().as_usize()].0;
            if count >= most {
                return vec![Found { start: 0, end: text.len(), rule: rule.clone() }];
            }
            match last.get(rule.as_str()).and_then(|index| found.get_mut(*index)).filter(|last| one.start() <= last.end) {
                Some(last) => {
                    last.start = last.start.min(one.start());
                    last.end = one.end();
                }
                None => {
                    last.insert(rule, found.len());
                    found.push(Found { start: one.start(), end: one.end(), rule: rule.clone() });
                }
            }
        }
        // A document has many short values, and none of them is cut.
        let at_cut_ends = if cut == Cut::default() { &[] } else { self.forms.as_slice() };
        for (rule, form) in at_cut_ends {
            let window = text.len().min(form.len() - 1);
            if cut.end {
                let length = overlap(form.iter().copied(), text[text.len() - window..].iter().copied(), window);
                if length >= LEAST_PART {
                    found.push(Found { start: text.len() - length, end: text.len(), rule: rule.clone() });
                }
            }
            if cut.start {
                let length = overlap(form.iter().rev().copied(), text[..window].iter().rev().copied(), window);
                if length >= LEAST_PART {
                    found.push(Found { start: 0, end: length, rule: rule.clone() });
                }
            }
        }
        found
    }
}

/// A value as scripts have it at hand: without white space at its ends, and what they take out of it.
/// Parts have so many bytes at least.
pub fn plain(value: &[u8], least: usize) -> Vec<Vec<u8>> {
    std::iter::once(value.trim_ascii().to_vec()).chain(parts(value, least)).collect()
}

/// What scripts take out of a value: its lines, what stands behind `=` in one, and the strings of a JSON document.
fn parts(value: &[u8], least: usize) -> Vec<Vec<u8>> {
    let Ok(text) = std::str::from_utf8(value) else { return Vec::new() };
    let mut parts = Vec::new();
    if let Ok(json @ (Value::Object(_) | Value::Array(_))) = serde_json::from_str(text) {
        strings(&json, &mut parts);
    }
    // As a JSON result tells numbers: without leading zeros, and without the digits that a double does not have.
    parts.extend(text.trim().parse::<f64>().ok().and_then(Number::from_f64).map(|number| number.to_string()));
    parts.extend(text.trim().parse::<i128>().ok().map(|number| number.to_string()));
    let lines = || text.lines().map(str::trim);
    if lines().count() > 1 {
        parts.extend(lines().map(ToOwned::to_owned));
    }
    let assigned = lines().filter_map(|line| Some(line.split_once('=')?.1.trim().trim_matches(['"', '\''])));
    parts.extend(assigned.map(ToOwned::to_owned));
    parts.into_iter().filter(|part| part.len() >= least).map(String::into_bytes).collect()
}

/// The strings of a document, which `serde_json` has read and which is therefore not too deep.
fn strings(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::String(text) => into.push(text.trim().to_owned()),
        Value::Array(items) => items.iter().for_each(|item| strings(item, into)),
        Value::Object(fields) => fields.values().for_each(|field| strings(field, into)),
        Value::Number(number) => into.push(number.to_string()),
        Value::Null | Value::Bool(_) => {}
    }
}

/// How many bytes of the beginning of `form`, at most `window`, are the end of `text`. It takes one step for each byte (Knuth, Morris and Pratt):
/// both may be long, and alike.
fn overlap(form: impl Iterator<Item = u8>, text: impl Iterator<Item = u8>, window: usize) -> usize {
    let form: Vec<u8> = form.take(window).collect();
    let mut shorter = vec![0; form.len()];
    let mut length = 0;
    for index in 1..form.len() {
        while length > 0 && form[index] != form[length] {
            length = shorter[length - 1];
        }
        length += usize::from(form[index] == form[length]);
        shorter[index] = length;
    }
    length = 0;
    for byte in text {
        while length > 0 && (length == form.len() || form[length] != byte) {
            length = shorter[length - 1];
        }
        length += usize::from(form.get(length) == Some(&byte));
    }
    length
}

/// A long value in pieces, none of them so short that it is not looked for: each is found by itself, and those that follow each other are covered as one.
fn pieces(value: &[u8]) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    let mut rest = value;
    while rest.len() >= LONGEST_PIECE + LEAST {
        // Not within a character, which is at most four bytes long.
        let is_boundary = |at: &usize| rest[*at] & 0xc0 != 0x80;
        let end = (LONGEST_PIECE - 3..=LONGEST_PIECE).rev().find(is_boundary).unwrap_or(LONGEST_PIECE);
        let (piece, after) = rest.split_at(end);
        pieces.push(piece);
        rest = after;
    }
    if rest.len() >= LEAST {
        pieces.push(rest);
    }
    pieces
}

/// As it is, in hexadecimal, URL-encoded, in JSON, in HTML, and within base64 at each of the three places where a group of bytes can begin; all without
/// white space.
fn forms_of(value: &[u8]) -> Vec<Vec<u8>> {
    let mut forms = vec![value.to_vec()];
    let hex = value.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    });
    forms.push(hex.to_uppercase().into_bytes());
    forms.push(hex.into_bytes());
    for kept in URL_KEPT {
        for (uppercase, plus) in [(true, false), (true, true), (false, false), (false, true)] {
            forms.push(url_encoded(value, kept, uppercase, plus));
        }
    }
    if let Ok(text) = std::str::from_utf8(value) {
        let quoted = serde_json::to_string(text).unwrap_or_default();
        forms.extend(json_forms(quoted.trim_matches('"')));
        let html = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
        forms.push(html.replace('\'', "&#x27;").into_bytes());
        forms.push(html.replace('\'', "&#39;").into_bytes());
        forms.push(html.into_bytes());
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
    for form in &mut forms {
        form.retain(|byte| !byte.is_ascii_whitespace());
    }
    forms.retain(|form| form.len() >= LEAST);
    forms.sort();
    forms.dedup();
    forms
}

/// A string of JSON as encoders write it: some escape everything that is not ASCII, some what HTML would take for its own, some each slash.
fn json_forms(json: &str) -> impl Iterator<Item = Vec<u8>> {
    let ways = [false, true].into_iter().flat_map(|slash| ["", "&<>"].into_iter().map(move |html| (slash, html)));
    ways.flat_map(|(slash, html)| {
        let json = if slash { json.replace('/', "\\/") } else { json.to_owned() };
        let in_capitals = escaped(&json, |c| !c.is_ascii() || html.contains(c), true);
        [escaped(&json, |c| html.contains(c), false), escaped(&json, |c| !c.is_ascii() || html.contains(c), false), in_capitals]
    })
    .map(String::into_bytes)
}

fn escaped(json: &str, is_escaped: impl Fn(char) -> bool, in_capitals: bool) -> String {
    let mut text = String::new();
    for character in json.chars() {
        if !is_escaped(character) {
            text.push(character);
            continue;
        }
        for unit in character.encode_utf16(&mut [0; 2]) {
            let _ = if in_capitals { write!(text, "\\u{unit:04X}") } else { write!(text, "\\u{unit:04x}") };
        }
    }
    text
}

/// What encoders leave as it is beside letters, digits and `-._~`: nothing; Python's `quote`; JavaScript's `encodeURIComponent` and `encodeURI`.
const URL_KEPT: [&str; 4] = ["", "/", "!'()*", ";,/?:@&=+$!'()*#"];

fn url_encoded(value: &[u8], kept: &str, uppercase: bool, plus: bool) -> Vec<u8> {
    let mut text = String::new();
    for byte in value {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => text.push(char::from(*byte)),
            b' ' if plus => text.push('+'),
            _ if kept.as_bytes().contains(byte) => text.push(char::from(*byte)),
            _ if uppercase => _ = write!(text, "%{byte:02X}"),
            _ => _ = write!(text, "%{byte:02x}"),
        }
    }
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

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

    #[rstest]
    #[case::wrapped("Y29ycmVjdCBob3JzZSBiYXR0ZXJ5IHN0YX\nBsZSAjMQ", "correct horse battery staple #1")]
    #[case::dumped(" 63 6f 72 72 65 63 74 20 68 6f 72 73 65", "correct horse")]
    #[case::without_carriage_returns("-----BEGIN X-----\nabcdef\n", "-----BEGIN X-----\r\nabcdef\r\n")]
    #[case::ascii("pa\\u00df wo\\ud83d\\ude00rd", "pa\u{df} wo\u{1f600}rd")]
    #[case::ascii_in_capitals("pa\\u00DF w\\u00F6rd", "pa\u{df} w\u{f6}rd")]
    #[case::slashes("https:\\/\\/a\\/b", "https://a/b")]
    #[case::for_html("a\\u003cb\\u0026cdef", "a<b&cdef")]
    #[case::for_html_in_capitals("a\\u003Cb\\u0026c\\/def", "a<b&c/def")]
    #[case::quoted("a/b%20c%2Bd", "a/b c+d")]
    #[case::component("a%2Fb%20(c)%2Bd'", "a/b (c)+d'")]
    #[case::html("a&lt;b&amp;&quot;cd&#x27;", "a<b&\"cd'")]
    #[case::one_line_of_many("line two of it", "line one of it\nline two of it\nline three")]
    #[case::of_an_environment("0123-secret", "A=1\nexport TOKEN=\"0123-secret\"\n")]
    #[case::of_a_document("0123-secret", "{\"a\": [{\"token\": \"0123-secret\"}]}")]
    #[case::a_number_that_lost_digits("1.2345678901234568e+29", "123456789012345678901234567890")]
    #[case::a_number("48151623.5", "0048151623.50")]
    fn what_tools_make_of_a_value_is_covered(#[case] told: &str, #[case] value: &str) {
        let masked = masker(value.as_bytes()).mask(format!("[{told}]").as_bytes(), Cut::default());
        let text = String::from_utf8(masked.whole().text.to_vec()).unwrap();
        let rest = text.replacen("[masked:secret:db]", "", 1);
        assert!(text.contains("[masked:secret:db]") && rest.trim_end_matches(']').len() < 8, "{text}");
    }

    #[test]
    fn a_long_value_is_covered_as_one_in_every_form() {
        let value: String = (0..2000_u32).map(|number| char::from_u32(0xe0 + number % 90).unwrap()).collect();
        assert_eq!(pieces(value.as_bytes()).concat(), value.as_bytes());
        assert!(pieces(value.as_bytes()).iter().all(|piece| std::str::from_utf8(piece).is_ok() && piece.len() < LONGEST_PIECE + LEAST));
        for form in [
            value.clone(),
            STANDARD.encode(&value),
            url_encoded(value.as_bytes(), "", true, false).iter().map(|byte| char::from(*byte)).collect(),
        ] {
            let masked = masker(value.as_bytes()).mask(format!("before {form} after").as_bytes(), Cut::default());
            let text = String::from_utf8(masked.whole().text.to_vec()).unwrap();
            assert!(text.starts_with("before [masked:secret:db]") && text.ends_with(" after") && text.len() < 60, "{text}");
        }
        // The middle of it, cut off on both sides.
        let part = value.chars().skip(100).take(1500).collect::<String>();
        let masked = masker(value.as_bytes()).mask(part.as_bytes(), Cut { start: true, end: true });
        assert_eq!(masked.whole().text, b"[masked:secret:db]");
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

    #[test]
    fn the_end_of_a_text_that_begins_a_form_is_found_as_if_each_length_was_tried() {
        let tried = |form: &[u8], text: &[u8], window: usize| {
            (0..=window.min(form.len())).rev().find(|length| text.ends_with(&form[..*length])).unwrap_or(0)
        };
        for (form, text) in
            [("aab", "xaa"), ("aaaa", "aaa"), ("abab", "aba"), ("abcabd", "abcab"), ("abc", "xyz"), ("aabaab", "baaba"), ("a", "")]
        {
            let window = text.len().min(form.len() - 1);
            let end = &text.as_bytes()[text.len() - window..];
            let found = overlap(form.bytes(), end.iter().copied(), window);
            assert_eq!(found, tried(form.as_bytes(), text.as_bytes(), window), "{form} {text}");
        }
    }

    /// Whoever writes a script may write its Secret too: neither time nor memory may grow faster than both.
    #[test]
    fn values_that_are_alike_take_no_more_than_others() {
        let text = vec![b'a'; 2 << 20];
        let values: Vec<(String, Vec<u8>)> = (0..64).map(|number| ("s".to_owned(), vec![b'a'; 256 + number * 4])).collect();
        let masker = Masker::new(BTreeSet::new(), &[], &values).unwrap();
        let masked = masker.mask(&text, Cut { start: true, end: true });
        assert_eq!(masked.whole().text, b"[masked:secret:s]");
        let one = Secrets::new(&[("s".to_owned(), vec![b'a'; 32 << 10])]).unwrap();
        assert!(one.find(&text, Cut { start: true, end: true }).len() < 64);
    }

    /// With all bytes in it, and forms of each piece that are three times as long.
    #[test]
    fn a_binary_value_takes_little_memory() {
        let piece: Vec<u8> =
            b"/(; ".iter().copied().chain((0..1020_u32).map(|number| 0xca + u8::try_from(number * 7 % 54).unwrap())).collect();
        let value: Vec<u8> = (0..4_u8).flat_map(|number| [&[number][..], &piece].concat()).collect();
        let secrets = Secrets::new(&[("bin".into(), value)]).unwrap();
        let bytes = secrets.search.map_or(0, |search| search.memory_usage());
        assert!((1 << 16..16 << 20).contains(&bytes), "{bytes}");
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
