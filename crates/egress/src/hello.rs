//! The first message of a TLS client, read for the name that it asks for (RFC 8446, 4.1.2; RFC 6066, 3).
//!
//! Nothing of it is believed but that the server will see the same bytes: what is read here is what is sent on. So whatever two readers could
//! read in two ways is refused.

use paddock_destination::{BadHost, HostName};

/// A hello, with the headers of its records, is no longer than this.
pub const LONGEST: usize = 16 << 10;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const LONGEST_RECORD: usize = 1 << 14;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
/// The name in the clear is not the one that is meant: Encrypted Client Hello, and its draft.
const ENCRYPTED: [u16; 2] = [0xfe0d, 0xffce];

/// Why the first bytes of a connection are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHello {
    /// Another protocol, or a version before TLS 1.0.
    #[error("it is no TLS")]
    NotTls,
    /// More than [`LONGEST`] bytes.
    #[error("the ClientHello is longer than 16384 bytes")]
    TooLong,
    /// A length that leads out of what it is in, or bytes that no field has.
    #[error("the ClientHello is malformed")]
    Malformed,
    /// Without a name nothing can be compared.
    #[error("the ClientHello names no server")]
    NoName,
    /// Several names, or the extension twice.
    #[error("the ClientHello names its server more than once")]
    SeveralNames,
    /// The name of the server is none.
    #[error("the ClientHello names no host: {0}")]
    Host(#[from] BadHost),
    /// The server would be told another name, which cannot be read here.
    #[error("the ClientHello is encrypted (ECH)")]
    Encrypted,
}

/// The name that a complete hello asks for; `None` while more has to come.
pub fn server_name(bytes: &[u8]) -> Result<Option<HostName>, BadHello> {
    match message(bytes)? {
        Some(body) => name_in(&body).map(Some),
        None if bytes.len() >= LONGEST => Err(BadHello::TooLong),
        None => Ok(None),
    }
}

/// The body of the hello, put together from its records.
fn message(mut bytes: &[u8]) -> Result<Option<Vec<u8>>, BadHello> {
    let mut message = Vec::new();
    loop {
        let Some(record) = record(&mut bytes)? else { return Ok(None) };
        message.extend_from_slice(record);
        if message.len() > LONGEST {
            return Err(BadHello::TooLong);
        }
        if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Err(BadHello::NotTls);
        }
        let Some(header) = message.first_chunk::<4>() else { continue };
        let length = u32::from_be_bytes([0, header[1], header[2], header[3]]) as usize;
        if length > LONGEST {
            return Err(BadHello::TooLong);
        }
        match message.len() - header.len() {
            have if have == length => return Ok(Some(message.split_off(4))),
            // A second message in the record of the first: no client may send one, before it has an answer.
            have if have > length => return Err(BadHello::Malformed),
            _ => {}
        }
    }
}

/// The next whole record of the handshake; `None` while it is not whole.
fn record<'a>(bytes: &mut &'a [u8]) -> Result<Option<&'a [u8]>, BadHello> {
    if bytes.first().is_some_and(|kind| *kind != HANDSHAKE) || bytes.get(1).is_some_and(|major| *major != 3) {
        return Err(BadHello::NotTls);
    }
    let Some((header, rest)) = bytes.split_first_chunk::<5>() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
    // A record without content is a way to send headers for ever.
    if length == 0 {
        return Err(BadHello::Malformed);
    }
    if length > LONGEST_RECORD {
        return Err(BadHello::NotTls);
    }
    let Some((record, rest)) = rest.split_at_checked(length) else { return Ok(None) };
    *bytes = rest;
    Ok(Some(record))
}

/// What is left of a structure. Every read is bounded by it.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], BadHello> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(BadHello::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self, bytes: usize) -> Result<usize, BadHello> {
        Ok(self.take(bytes)?.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    /// A vector that is preceded by its length in so many bytes.
    fn vector(&mut self, bytes: usize) -> Result<Rest<'a>, BadHello> {
        let length = self.number(bytes)?;
        self.take(length).map(Rest)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn name_in(body: &[u8]) -> Result<HostName, BadHello> {
    let mut rest = Rest(body);
    // Version and random.
    rest.take(2 + 32)?;
    let session = rest.vector(1)?;
    let ciphers = rest.vector(2)?;
    let compressions = rest.vector(1)?;
    let is_odd = ciphers.0.len() % 2 == 1;
    if session.0.len() > 32 || ciphers.is_empty() || is_odd || compressions.is_empty() {
        return Err(BadHello::Malformed);
    }
    if rest.is_empty() {
        return Err(BadHello::NoName);
    }
    let mut extensions = rest.vector(2)?;
    if !rest.is_empty() {
        return Err(BadHello::Malformed);
    }
    let mut seen = Vec::new();
    let mut name = None;
    while !extensions.is_empty() {
        let kind = u16::try_from(extensions.number(2)?).map_err(|_| BadHello::Malformed)?;
        let content = extensions.vector(2)?;
        if seen.contains(&kind) {
            return Err(if kind == SERVER_NAME { BadHello::SeveralNames } else { BadHello::Malformed });
        }
        seen.push(kind);
        if ENCRYPTED.contains(&kind) {
            return Err(BadHello::Encrypted);
        }
        if kind == SERVER_NAME {
            name = Some(only_name(content)?);
        }
    }
    name.ok_or(BadHello::NoName)
}

fn only_name(mut extension: Rest<'_>) -> Result<HostName, BadHello> {
    let mut list = extension.vector(2)?;
    if !extension.is_empty() {
        return Err(BadHello::Malformed);
    }
    if list.is_empty() {
        return Err(BadHello::NoName);
    }
    let kind = list.number(1)?;
    let name = list.vector(2)?;
    if !list.is_empty() {
        return Err(BadHello::SeveralNames);
    }
    if kind != usize::from(HOST_NAME) {
        return Err(BadHello::Malformed);
    }
    let text = std::str::from_utf8(name.0).map_err(|_| BadHello::Host(BadHost::Character))?;
    // RFC 6066 has the name without a trailing dot; a server that took one off would be another reader.
    if text.ends_with('.') {
        return Err(BadHello::Host(BadHost::Character));
    }
    Ok(HostName::parse(text)?)
}

#[cfg(test)]
mod tests;
