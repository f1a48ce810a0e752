//! Reading what the operator says, without ever waiting for it.

use std::io::Read;

use paddock_protocol::{ControlMessage, MAX_CONTROL_LINE};

/// Cuts standard input into messages. A line that is too long, or no message, is dropped.
#[derive(Default)]
pub(crate) struct Control {
    line: Vec<u8>,
    closed: bool,
}

impl Control {
    /// Reads once; call it when standard input is readable.
    pub(crate) fn read(&mut self, mut input: impl Read) -> Vec<ControlMessage> {
        let mut buffer = [0; 8192];
        let count = match input.read(&mut buffer) {
            Ok(0) => {
                self.closed = true;
                0
            }
            Ok(count) => count,
            Err(_) => 0,
        };
        let mut messages = Vec::new();
        for byte in &buffer[..count] {
            if *byte == b'\n' {
                messages.extend(ControlMessage::parse(&self.line));
                self.line.clear();
            } else if self.line.len() <= MAX_CONTROL_LINE {
                self.line.push(*byte);
            }
        }
        messages
    }

    /// Whether standard input has ended: nothing more will come.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_across_reads_and_garbage_is_dropped() {
        let mut control = Control::default();
        assert_eq!(control.read(&b"{\"hel"[..]), []);
        assert_eq!(control.read(&b"lo\":{}}\nnonsense\n{\"stop\":{}}\n"[..]), [ControlMessage::Hello {}, ControlMessage::Stop {}]);
        for _ in 0..3 {
            assert_eq!(control.read(&[b'x'; 4096][..]), []);
        }
        assert_eq!(control.read(&b"\n{\"stop\":{}}\n"[..]), [ControlMessage::Stop {}]);
        assert!(!control.is_closed());
        assert_eq!(control.read(&b""[..]), []);
        assert!(control.is_closed());
    }
}
