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
