//! Turning bytes of a script into text that can be stored and shown.

use std::fmt::Write as _;

/// Valid UTF-8 in which every control character but line feed and tab, and every byte that is no UTF-8, is a visible escape. A backslash
/// stays as it is: the escapes are for people, not for reading back.
pub(crate) fn visible(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\n' | '\t' => text.push(character),
                // Bidirectional controls make text read differently from what it is.
                '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => _ = write!(text, "\\u{{{:x}}}", u32::from(character)),
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
    fn nothing_invisible_stays(#[case] bytes: &[u8], #[case] expected: &str) {
        assert_eq!(visible(bytes), expected);
    }

    #[test]
    fn a_cut_keeps_characters_whole() {
        assert_eq!(cut("aü", 2), "a");
        assert_eq!(cut("aü", 3), "aü");
    }
}
