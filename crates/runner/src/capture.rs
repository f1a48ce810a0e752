//! Keeping the beginning and the end of a stream of any length in a fixed amount of memory.

use std::collections::VecDeque;

/// So many pieces go out as they come. A script that goes on in small ones would fill the log with what each takes beside its bytes.
const AT_ONCE: u32 = 200;
/// From then on a piece has at least so many bytes, but for the last.
const GATHERED: usize = 512;

/// The first half of what is kept goes out as it comes; the second half is a ring that goes out at the end.
pub(crate) struct Capture {
    half: usize,
    /// Bytes of the first half that were taken.
    sent: usize,
    pieces: u32,
    /// The last of those, not gone out yet.
    waiting: Vec<u8>,
    ring: VecDeque<u8>,
    total: u64,
    /// The first bytes once more.
    start: Vec<u8>,
}

/// Bytes of a stream that are also told at the end: all of a termination message has 4096.
const TOLD_AGAIN: usize = 2048;

impl Capture {
    pub(crate) fn new(keep: usize) -> Self {
        Self { half: keep / 2, sent: 0, pieces: 0, waiting: Vec::new(), ring: VecDeque::new(), total: 0, start: Vec::new() }
    }

    /// Takes bytes; returns a piece of the beginning that is to go out, with its offset.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Option<(u64, Vec<u8>)> {
        self.total += bytes.len() as u64;
        self.start.extend_from_slice(&bytes[..bytes.len().min(TOLD_AGAIN - self.start.len())]);
        let (head, rest) = bytes.split_at(bytes.len().min(self.half - self.sent));
        self.sent += head.len();
        self.waiting.extend_from_slice(head);
        let rest = &rest[rest.len().saturating_sub(self.half)..];
        let surplus = (self.ring.len() + rest.len()).saturating_sub(self.half);
        self.ring.drain(..surplus.min(self.ring.len()));
        self.ring.extend(rest);
        if self.pieces < AT_ONCE || self.waiting.len() >= GATHERED { self.gathered() } else { None }
    }

    /// What of the beginning has not gone out yet, with its offset.
    pub(crate) fn gathered(&mut self) -> Option<(u64, Vec<u8>)> {
        let waiting = std::mem::take(&mut self.waiting);
        if waiting.is_empty() {
            return None;
        }
        self.pieces += 1;
        Some(((self.sent - waiting.len()) as u64, waiting))
    }

    /// The end, with its offset.
    pub(crate) fn tail(&mut self) -> Option<(u64, Vec<u8>)> {
        let tail: Vec<u8> = std::mem::take(&mut self.ring).into();
        (!tail.is_empty()).then(|| (self.total - tail.len() as u64, tail))
    }

    /// All of the stream as text, if it is short and UTF-8.
    pub(crate) fn whole(&self) -> Option<String> {
        let is_whole = self.total > 0 && self.total == self.start.len() as u64;
        is_whole.then(|| String::from_utf8(self.start.clone()).ok()).flatten()
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(keep: usize, pieces: &[&[u8]]) -> (Vec<u8>, Option<(u64, Vec<u8>)>) {
        let mut capture = Capture::new(keep);
        let mut head = Vec::new();
        let mut take = |piece: Option<(u64, Vec<u8>)>| {
            if let Some((offset, bytes)) = piece {
                assert_eq!(offset, head.len() as u64);
                head.extend_from_slice(&bytes);
            }
        };
        for piece in pieces {
            take(capture.push(piece));
        }
        take(capture.gathered());
        (head, capture.tail())
    }

    #[test]
    fn a_short_stream_is_told_once_more() {
        let mut capture = Capture::new(8);
        assert_eq!(capture.whole(), None);
        for _ in 0..TOLD_AGAIN {
            capture.push(b"x");
        }
        assert_eq!(capture.whole().map(|text| text.len()), Some(TOLD_AGAIN));
        capture.push(b"x");
        assert_eq!(capture.whole(), None);
    }

    #[test]
    fn many_small_pieces_go_out_in_few() {
        let mut capture = Capture::new(80_000);
        let mut sizes = Vec::new();
        for _ in 0..40_000 {
            sizes.extend(capture.push(b".").map(|(_, piece)| piece.len()));
        }
        sizes.extend(capture.gathered().map(|(_, piece)| piece.len()));
        assert_eq!(sizes.iter().sum::<usize>(), 40_000);
        assert!(sizes.len() < 300 && sizes[..200].iter().all(|size| *size == 1), "{}", sizes.len());
    }

    #[test]
    fn what_fits_is_whole() {
        assert_eq!(kept(8, &[b"abc", b"de", b"fgh"]), (b"abcd".into(), Some((4, b"efgh".into()))));
        assert_eq!(kept(8, &[b"ab"]), (b"ab".into(), None));
    }

    #[test]
    fn what_does_not_fit_keeps_both_ends_however_it_comes() {
        let whole = kept(8, &[b"0123456789abcdef"]);
        assert_eq!(whole, (b"0123".into(), Some((12, b"cdef".into()))));
        for size in 1..16 {
            let pieces: Vec<&[u8]> = b"0123456789abcdef".chunks(size).collect();
            assert_eq!(kept(8, &pieces), whole, "pieces of {size}");
        }
    }
}
