//! The lines of a runner's standard output, before anything is unsealed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::payload::Refused;

/// Longest line with its line feed, in bytes: the log drivers of container runtimes split longer ones.
pub const MAX_LINE: usize = 8192;
/// Most bytes that a runner writes in all: the kubelet keeps 10 MiB of a log before it rotates.
pub const MAX_TOTAL: usize = 4 * 1024 * 1024;

const MARK: &str = "pdk1";
/// More than any boot identifier has.
const MAX_BOOT: usize = 64;

/// One line. `pdk1 ready VERSION BOOT`, `pdk1 refused JSON`, or `pdk1 SEQUENCE SEALED`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// The runner is where it should be and waits for the start message. It may say so more than once.
    Ready {
        /// [`crate::VERSION`].
        version: u32,
        /// Random, made anew by every runner process: the encapsulated key that everything it seals is sealed with.
        boot: String,
    },
    /// The runner will not run the job. In the clear, because it may have no key to seal it with.
    Refused(Refused),
    /// A sealed [`crate::Payload`].
    Sealed {
        /// Counts up from 0 without a gap.
        sequence: u64,
        /// Ciphertext with its tag.
        sealed: Vec<u8>,
    },
}

impl Line {
    /// The line with its line feed; `None` if it would be longer than [`MAX_LINE`].
    pub fn to_text(&self) -> Option<String> {
        let text = match self {
            Self::Ready { version, boot } => format!("{MARK} ready {version} {boot}\n"),
            Self::Refused(refused) => format!("{MARK} refused {}\n", serde_json::to_string(refused).ok()?),
            Self::Sealed { sequence, sealed } => format!("{MARK} {sequence} {}\n", STANDARD.encode(sealed)),
        };
        (text.len() <= MAX_LINE).then_some(text)
    }

    /// The line in these bytes, without its line feed; `None` if it is none.
    pub fn parse(line: &[u8]) -> Option<Self> {
        if line.len() > MAX_LINE {
            return None;
        }
        let text = std::str::from_utf8(line).ok()?;
        let (mark, rest) = text.split_once(' ')?;
        let (kind, rest) = rest.split_once(' ')?;
        if mark != MARK {
            return None;
        }
        match kind {
            "ready" => {
                let (version, boot) = rest.split_once(' ')?;
                let is_word = !boot.is_empty() && boot.len() <= MAX_BOOT && boot.bytes().all(|byte| byte.is_ascii_graphic());
                is_word.then_some(Self::Ready { version: number(version)?, boot: boot.to_owned() })
            }
            "refused" => Some(Self::Refused(serde_json::from_str(rest).ok()?)),
            sequence => Some(Self::Sealed { sequence: number(sequence)?, sealed: STANDARD.decode(rest).ok()? }),
        }
    }
}

/// A number as it is written in one way only, so that two lines that differ are never the same.
fn number<N: std::str::FromStr + std::fmt::Display>(text: &str) -> Option<N> {
    text.parse::<N>().ok().filter(|number| number.to_string() == text)
}

/// Cuts a byte stream into lines, however it arrives. A line that is too long is dropped whole.
#[derive(Debug, Default)]
pub struct Lines {
    line: Vec<u8>,
    too_long: bool,
}

impl Lines {
    /// Takes bytes and hands each complete line, without its line feed, to `take`.
    pub fn push(&mut self, bytes: &[u8], mut take: impl FnMut(&[u8])) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (content, ends) = match piece.split_last() {
                Some((b'\n', content)) => (content, true),
                _ => (piece, false),
            };
            if self.line.len() + content.len() > MAX_LINE {
                self.too_long = true;
                self.line.clear();
            } else if !self.too_long {
                self.line.extend_from_slice(content);
            }
            if ends {
                if !self.too_long {
                    take(&self.line);
                }
                self.line.clear();
                self.too_long = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::RefusedReason;

    #[test]
    fn lines_read_back() {
        for line in [
            Line::Ready { version: 1, boot: "b0/+=".into() },
            Line::Refused(Refused { reason: RefusedReason::NotStarted, detail: "späť".into() }),
            Line::Sealed { sequence: 3, sealed: vec![0, 255] },
        ] {
            assert_eq!(Line::parse(line.to_text().unwrap().trim_end().as_bytes()), Some(line));
        }
        for none in
            ["", "pdk1", "pdk1 ready", "pdk1 ready 1 ", "pdk1 ready 01 b", "pdk1 +1 AAAA", "pdk1 00 AAAA", "pdk2 1 AAAA", "pdk1 1 AA"]
        {
            assert_eq!(Line::parse(none.as_bytes()), None, "{none}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(line: Vec<u8>) {
            let _ = Line::parse(&line);
        }

        #[test]
        fn memory_stays_bounded_whatever_comes(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..50_000)) {
            let mut lines = Lines::default();
            lines.push(&bytes, |line| assert!(line.len() <= MAX_LINE));
            proptest::prop_assert!(lines.line.len() <= MAX_LINE);
        }
    }
}
