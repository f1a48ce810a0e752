//! Keeping the beginning and the end of a stream of any length in a fixed amount of memory.

use std::collections::VecDeque;

/// The first half of what is kept goes out as it comes; the second half is a ring that goes out at the end.
pub(crate) struct Capture {
    half: usize,
    sent: usize,
    ring: VecDeque<u8>,
    total: u64,
}

impl Capture {
    pub(crate) fn new(keep: usize) -> Self {
        Self { half: keep / 2, sent: 0, ring: VecDeque::new(), total: 0 }
    }

    /// Takes bytes; returns those that belong to the beginning, with their offset.
    pub(crate) fn push<'a>(&mut self, bytes: &'a [u8]) -> Option<(u64, &'a [u8])> {
        self.total += bytes.len() as u64;
        let (head, rest) = bytes.split_at(bytes.len().min(self.half - self.sent));
        let offset = self.sent as u64;
        self.sent += head.len();
        let rest = &rest[rest.len().saturating_sub(self.half)..];
        let surplus = (self.ring.len() + rest.len()).saturating_sub(self.half);
        self.ring.drain(..surplus.min(self.ring.len()));
        self.ring.extend(rest);
        (!head.is_empty()).then_some((offset, head))
    }

    /// The end, with its offset.
    pub(crate) fn tail(&mut self) -> Option<(u64, Vec<u8>)> {
        let tail: Vec<u8> = std::mem::take(&mut self.ring).into();
        (!tail.is_empty()).then(|| (self.total - tail.len() as u64, tail))
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
        for piece in pieces {
            if let Some((offset, bytes)) = capture.push(piece) {
                assert_eq!(offset, head.len() as u64);
                head.extend_from_slice(bytes);
            }
        }
        (head, capture.tail())
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
