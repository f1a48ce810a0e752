//! Colours and a line that changes, on a terminal and nowhere else.

use std::io::{IsTerminal as _, Write as _};

/// How a word is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    Good,
    Bad,
    Faint,
    Plain,
}

/// Whether standard output takes colours. Everybody's switch against them is `NO_COLOR`.
pub(crate) fn has_colours() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A text in a tone. Pure.
pub(crate) fn toned(text: &str, tone: Tone, colours: bool) -> String {
    let code = match tone {
        Tone::Good => "32",
        Tone::Bad => "31",
        Tone::Faint => "2",
        Tone::Plain => return text.to_owned(),
    };
    if colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// A text of somebody else, for a terminal: what would move the cursor, hide or turn around what stands there is shown as an escape. Pure.
pub(crate) fn printable(text: &str) -> String {
    let hides = |character: char| {
        (character.is_control() && character != '\t')
            || matches!(character, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
    };
    text.chars().map(|character| if hides(character) { character.escape_unicode().to_string() } else { character.to_string() }).collect()
}

/// What is going on, on standard error: one line that changes on a terminal, one line for each change elsewhere.
pub(crate) struct Progress {
    is_terminal: bool,
    last: String,
    turn: usize,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self { is_terminal: std::io::stderr().is_terminal(), last: String::new(), turn: 0 }
    }

    /// Tells where things are.
    pub(crate) fn tell(&mut self, text: &str) {
        let is_new = self.last != text;
        text.clone_into(&mut self.last);
        if self.is_terminal {
            self.draw();
        } else if is_new {
            eprintln!("{text}");
        }
    }

    /// Shows that this program still lives.
    pub(crate) fn turn(&mut self) {
        self.turn += 1;
        if self.is_terminal && !self.last.is_empty() {
            self.draw();
        }
    }

    /// Takes the line away.
    pub(crate) fn end(&mut self) {
        if self.is_terminal {
            eprint!("\r\x1b[K");
            let _ = std::io::stderr().flush();
        }
    }

    fn draw(&self) {
        const FRAMES: [char; 4] = ['|', '/', '-', '\\'];
        eprint!("\r\x1b[K{} {}", FRAMES[self.turn % FRAMES.len()], self.last);
        let _ = std::io::stderr().flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_somebody_else_hides_anything() {
        assert_eq!(printable("h\u{e9} \t\u{202e}x\u{1b}[2J\u{9b}\r\u{e0041}"), "h\u{e9} \t\\u{202e}x\\u{1b}[2J\\u{9b}\\u{d}\\u{e0041}");
    }
}
