//! One connection of the script, and the one to the gateway that it becomes.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};

use nix::poll::PollFlags;
use rustls::ClientConnection;

use super::Gateway;
use super::head::{self, Head};
use crate::system;

/// Bytes that are carried at once, in each direction.
const AT_ONCE: usize = 16 << 10;

pub(super) struct Tunnel {
    pub(super) script: TcpStream,
    /// The gateway's side, once the script has said what it wants.
    pub(super) there: Option<TcpStream>,
    tls: Option<ClientConnection>,
    head: Vec<u8>,
    /// What the script has not taken yet.
    to_script: Vec<u8>,
    has_answer: bool,
    script_has_ended: bool,
    there_has_ended: bool,
    /// The script was told that nothing more comes.
    is_shut: bool,
}

impl Tunnel {
    pub(super) fn new(script: TcpStream) -> io::Result<Self> {
        script.set_nonblocking(true)?;
        script.set_nodelay(true)?;
        Ok(Self {
            script,
            there: None,
            tls: None,
            head: Vec::new(),
            to_script: Vec::new(),
            has_answer: false,
            script_has_ended: false,
            there_has_ended: false,
            is_shut: false,
        })
    }

    /// What has to happen at either socket before there is anything to do.
    pub(super) fn waits_for(&self) -> [PollFlags; 2] {
        let mut script = PollFlags::empty();
        script.set(PollFlags::POLLIN, self.takes_from_script());
        script.set(PollFlags::POLLOUT, !self.to_script.is_empty());
        let mut there = PollFlags::empty();
        there.set(PollFlags::POLLIN, self.takes_from_there());
        there.set(PollFlags::POLLOUT, self.tls.as_ref().is_some_and(|tls| tls.wants_write()));
        [script, there]
    }

    /// What was said before has gone out.
    fn takes_from_script(&self) -> bool {
        !self.script_has_ended && self.tls.as_ref().is_none_or(|tls| !tls.wants_write() && !tls.is_handshaking())
    }

    fn takes_from_there(&self) -> bool {
        !self.there_has_ended && self.to_script.is_empty()
    }

    /// Carries what there is to carry. `false`: all is said. An error ends both connections.
    pub(super) fn advance(&mut self, gateway: &Gateway, token: &str) -> io::Result<bool> {
        while self.read_script(gateway, token)? | self.carry()? | self.write_script()? {}
        Ok(!(self.script_has_ended && self.is_shut))
    }

    /// Each of these says whether it did something.
    fn read_script(&mut self, gateway: &Gateway, token: &str) -> io::Result<bool> {
        if !self.takes_from_script() {
            return Ok(false);
        }
        let mut buffer = [0; AT_ONCE];
        let Some(count) = now(self.script.read(&mut buffer))? else { return Ok(false) };
        match (&mut self.tls, count) {
            (Some(tls), 0) => {
                self.script_has_ended = true;
                tls.send_close_notify();
            }
            (Some(tls), count) => tls.writer().write_all(&buffer[..count])?,
            // It asks for nothing any more, and waits for no answer but the one it may have got.
            (None, 0) if self.has_answer => self.script_has_ended = true,
            (None, 0) => return Err(ErrorKind::UnexpectedEof.into()),
            (None, _) if self.has_answer => {}
            (None, count) => {
                self.head.extend_from_slice(&buffer[..count]);
                self.connect(gateway, token)?;
            }
        }
        Ok(true)
    }

    /// As soon as the head is whole.
    fn connect(&mut self, gateway: &Gateway, token: &str) -> io::Result<()> {
        let (head, rest) = match head::read(&self.head) {
            Head::Part => return Ok(()),
            Head::Other => {
                self.answer("405 NotConnect", "NotConnect", "only CONNECT and requests for http:// are answered");
                self.head = Vec::new();
                return Ok(());
            }
            Head::Connect { target, rest } => (head::for_the_gateway(target, token).into_bytes(), rest),
            Head::Http { line, fields, rest } => (head::with_token(line, fields, token), rest),
        };
        let mut tls = ClientConnection::new(gateway.tls.clone(), gateway.name.clone()).map_err(io::Error::other)?;
        // More than one read of the script is never in it.
        tls.set_buffer_limit(None);
        tls.writer().write_all(&head)?;
        tls.writer().write_all(rest)?;
        match system::begin_to_connect(gateway.address) {
            Ok(there) => (self.there, self.tls) = (Some(there), Some(tls)),
            Err(_) => self.unreachable(),
        }
        self.head = Vec::new();
        Ok(())
    }

    fn answer(&mut self, status: &str, reason: &str, message: &str) {
        self.to_script = head::answer(status, reason, message).into_bytes();
        self.has_answer = true;
        self.there_has_ended = true;
    }

    fn unreachable(&mut self) {
        self.answer("502 GatewayUnreachable", "GatewayUnreachable", "the egress gateway does not answer");
    }

    /// To and from the gateway.
    fn carry(&mut self) -> io::Result<bool> {
        match self.carry_tls() {
            // Nothing came from there yet: the script can still be told why.
            Err(_) if !self.has_answer => {
                self.unreachable();
                (self.there, self.tls) = (None, None);
                Ok(true)
            }
            done => done,
        }
    }

    fn carry_tls(&mut self) -> io::Result<bool> {
        let takes = self.takes_from_there();
        let (Some(tls), Some(there)) = (&mut self.tls, &mut self.there) else { return Ok(false) };
        let mut has_done = false;
        while tls.wants_write() {
            match now(tls.write_tls(there))? {
                Some(1..) => has_done = true,
                Some(0) => return Err(ErrorKind::WriteZero.into()),
                None => break,
            }
        }
        if !takes {
            return Ok(has_done);
        }
        if let Some(count) = now(tls.read_tls(there))? {
            has_done = true;
            tls.process_new_packets().map_err(io::Error::other)?;
            if count == 0 && !self.has_answer {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            self.there_has_ended |= count == 0;
        }
        let mut buffer = [0; AT_ONCE];
        match now(tls.reader().read(&mut buffer)) {
            Ok(Some(0)) => self.there_has_ended = true,
            Ok(Some(count)) => {
                has_done = true;
                self.has_answer = true;
                self.to_script.extend_from_slice(&buffer[..count]);
            }
            Ok(None) => {}
            // Cut without a word.
            Err(_) => self.there_has_ended = true,
        }
        Ok(has_done)
    }

    fn write_script(&mut self) -> io::Result<bool> {
        if self.to_script.is_empty() {
            if self.there_has_ended && !self.is_shut {
                self.is_shut = true;
                let _ = self.script.shutdown(Shutdown::Write);
                return Ok(true);
            }
            return Ok(false);
        }
        match now(self.script.write(&self.to_script))? {
            Some(0) => Err(ErrorKind::WriteZero.into()),
            Some(count) => {
                self.to_script.drain(..count);
                Ok(true)
            }
            None => Ok(false),
        }
    }
}

/// `None`: not now.
fn now<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::NotConnected) => Ok(None),
        Err(error) => Err(error),
    }
}
