//! Turning bytes of a script into text that can be stored and shown.

use std::fmt::Write as _;

use paddock_mask::Renamed;
use serde_json::Value;

/// Valid UTF-8 in which every control character but line feed and tab, and every byte that is no UTF-8, is a visible escape. A backslash
/// stays as it is: the escapes are for people, not for reading back.
pub(crate) fn visible(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\n' | '\t' => text.push(character),
                c if is_format(c) => _ = write!(text, "\\u{{{:x}}}", u32::from(c)),
                c if c.is_control() => _ = write!(text, "\\x{:02x}", u32::from(c)),
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// Format characters and separators of Unicode (categories Cf, Zl and Zp): they are not seen, and make text read differently from what it is.
fn is_format(character: char) -> bool {
    matches!(
        character,
        '\u{ad}'
            | '\u{600}'..='\u{605}'
            | '\u{61c}'
            | '\u{6dd}'
            | '\u{70f}'
            | '\u{890}'..='\u{891}'
            | '\u{8e2}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{110bd}'
            | '\u{110cd}'
            | '\u{13430}'..='\u{1343f}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0001}'
            | '\u{e0020}'..='\u{e007f}'
    )
}

/// The same for every string and name in a value. A carriage return stays too: in data, line ends may be made of it.
pub(crate) fn visible_json(value: &mut Value) {
    match value {
        Value::String(text) => *text = visible_string(text),
        Value::Array(items) => items.iter_mut().for_each(visible_json),
        Value::Object(fields) => {
            // An escape may make a name that of another field.
            let mut renamed = Renamed::default();
            for (name, mut value) in std::mem::take(fields) {
                visible_json(&mut value);
                renamed.insert(visible_string(&name), value);
            }
            *fields = renamed.into_fields();
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn visible_string(text: &str) -> String {
    text.split('\r').map(|part| visible(part.as_bytes())).collect::<Vec<_>>().join("\r")
}

/// At most `limit` bytes, cut between characters.
pub(crate) fn cut(text: &str, limit: usize) -> &str {
    if text.len() <= limit {
        return text;
    }
    let mut end = limit;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(b"plain\n\ttext", "plain\n\ttext")]
    #[case(b"\x1b[31mred", "\\x1b[31mred")]
    #[case(b"a\xffb\xc3", "a\\xffb\\xc3")]
    #[case("\u{202e}x\r".as_bytes(), "\\u{202e}x\\x0d")]
    #[case("ü\0".as_bytes(), "ü\\x00")]
    #[case("a\u{200b}b\u{feff}\u{2028}\u{61c}\u{e0041}".as_bytes(), "a\\u{200b}b\\u{feff}\\u{2028}\\u{61c}\\u{e0041}")]
    fn nothing_invisible_stays(#[case] bytes: &[u8], #[case] expected: &str) {
        assert_eq!(visible(bytes), expected);
    }

    #[test]
    fn json_shows_what_is_invisible_and_stays_the_same_otherwise() {
        let mut value = serde_json::json!({ "a\u{7}": ["\u{1b}[2J", "line\r\n\tend", 1, null] });
        visible_json(&mut value);
        assert_eq!(value, serde_json::json!({ "a\\x07": ["\\x1b[2J", "line\r\n\tend", 1, null] }));
        let mut alike = serde_json::json!({ "\u{7}": 1, "\\x07": 2 });
        visible_json(&mut alike);
        assert_eq!(alike, serde_json::json!({ "\\x07": 1, "\\x07 (2)": 2 }));
    }

    #[test]
    fn a_cut_keeps_characters_whole() {
        assert_eq!(cut("aü", 2), "a");
        assert_eq!(cut("aü", 3), "aü");
    }
}
