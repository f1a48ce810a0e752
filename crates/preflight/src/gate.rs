//! What is looked for in the bytes before anything parses them: that people, parser and interpreter read the same program.

use paddock_crds::{Language, Unclear};

use crate::seen::line_of;

/// Marks by which text is shown in another order than it is read in.
const DIRECTIONS: [char; 9] = ['\u{202a}', '\u{202b}', '\u{202c}', '\u{202d}', '\u{202e}', '\u{2066}', '\u{2067}', '\u{2068}', '\u{2069}'];
/// The end of a ZIP archive, which Python runs in place of the text before it.
const ARCHIVE_END: &[u8] = b"PK\x05\x06";

/// The text, if it can be read in one way only.
pub(crate) fn text(language: Language, script: &[u8]) -> Result<&str, (Unclear, String)> {
    let ambiguous = |message: String| Err((Unclear::Ambiguous, message));
    let Ok(text) = std::str::from_utf8(script) else {
        return ambiguous("it is not UTF-8".into());
    };
    if let Some((offset, char)) = text.char_indices().find(|(_, char)| DIRECTIONS.contains(char)) {
        return ambiguous(format!(
            "line {}: U+{:04X} shows text in another order than it is read in",
            line_of(text, offset),
            u32::from(char)
        ));
    }
    if let Some(offset) = lone_return(script) {
        return ambiguous(format!(
            "line {}: a carriage return without a line feed ends a line for some readers only",
            line_of(text, offset)
        ));
    }
    if script.contains(&0) {
        return ambiguous("it holds a NUL byte".into());
    }
    if language == Language::Python {
        if let Some(encoding) = encoding(text) {
            return ambiguous(format!("it declares the encoding {encoding:?}, by which Python would read another text"));
        }
        if script.windows(ARCHIVE_END.len()).any(|window| window == ARCHIVE_END) {
            return ambiguous("it holds the end of a ZIP archive, which Python would run in its place".into());
        }
    }
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

fn lone_return(script: &[u8]) -> Option<usize> {
    script.iter().enumerate().find(|(at, byte)| **byte == b'\r' && script.get(at + 1) != Some(&b'\n')).map(|(at, _)| at)
}

/// An encoding other than UTF-8, as PEP 263 declares it in one of the first two lines. Which of several counts is the interpreter's matter.
fn encoding(text: &str) -> Option<String> {
    let is_comment = |line: &&str| line.trim_start_matches([' ', '\t', '\u{c}', '\u{feff}']).starts_with('#');
    let declared =
        |after: &str| -> String { after.trim_start_matches([' ', '\t']).chars().take_while(|char| is_of_a_name(*char)).take(32).collect() };
    let is_other = |name: &String| {
        let name = name.to_ascii_lowercase().replace('_', "-");
        !name.is_empty() && name != "utf-8" && name != "utf8"
    };
    let comments = text.lines().take(2).filter(is_comment);
    let after_each = |line| ["coding:", "coding="].into_iter().flat_map(move |sign| str::split(line, sign).skip(1));
    comments.flat_map(after_each).map(declared).find(is_other)
}

fn is_of_a_name(char: char) -> bool {
    char.is_ascii_alphanumeric() || matches!(char, '-' | '_' | '.')
}
