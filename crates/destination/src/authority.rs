//! What a proxy is asked to connect to.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::destination::HTTP_PORT;
use crate::host::{BadHost, HostName};

/// `HOST:PORT`, as the target of CONNECT (RFC 9110, 7.1): there is no default for the port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Authority {
    /// Left of the last colon.
    pub host: Host,
    /// 1 to 65535.
    pub port: u16,
}

/// A name or an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// To be looked up.
    Name(HostName),
    /// Written out, IPv6 in brackets.
    Address(IpAddr),
}

/// Why a text is no authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAuthority {
    /// Digits without a sign or a zero in front, 1 to 65535.
    #[error("a port of 1 to 65535 is missing")]
    Port,
    /// An address with a zone, or not as RFC 5952 would have it read.
    #[error("in brackets stands an IPv6 address without a zone")]
    Address,
    /// Neither name nor address.
    #[error(transparent)]
    Host(#[from] BadHost),
}

impl Authority {
    /// Reads the target of a CONNECT.
    pub fn parse(text: &str) -> Result<Self, BadAuthority> {
        let (host, port) = text.rsplit_once(':').ok_or(BadAuthority::Port)?;
        Ok(Self { port: parse_port(port)?, host: Host::parse(host)? })
    }

    /// Reads what stands behind `http://` in the target of a request (RFC 9110, 4.2.1): without a port it is 80.
    pub fn of_http(text: &str) -> Result<Self, BadAuthority> {
        let has_port = text.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
        if has_port { Self::parse(text) } else { Ok(Self { port: HTTP_PORT, host: Host::parse(text)? }) }
    }
}

impl Host {
    fn parse(text: &str) -> Result<Self, BadAuthority> {
        if let Some(inner) = text.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or(BadAuthority::Address)?;
            return inner.parse::<Ipv6Addr>().map(|address| Self::Address(address.into())).map_err(|_| BadAuthority::Address);
        }
        // Four decimal numbers without a zero in front: other spellings are no names either.
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Ok(Self::Address(address.into()));
        }
        Ok(Self::Name(HostName::parse(text)?))
    }
}

pub(crate) fn parse_port(text: &str) -> Result<u16, BadAuthority> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|_| is_plain).ok_or(BadAuthority::Port)
}

impl fmt::Display for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(formatter, "{name}"),
            Self::Address(IpAddr::V4(address)) => write!(formatter, "{address}"),
            Self::Address(IpAddr::V6(address)) => write!(formatter, "[{address}]"),
        }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::name("api.example.com:443", Ok("api.example.com:443"))]
    #[case::trailing_dot("API.example.com.:443", Ok("api.example.com:443"))]
    #[case::four_numbers("192.0.2.1:443", Ok("192.0.2.1:443"))]
    #[case::six("[2001:db8:0:0::1]:443", Ok("[2001:db8::1]:443"))]
    #[case::no_port("api.example.com", Err(BadAuthority::Port))]
    #[case::empty_port("api.example.com:", Err(BadAuthority::Port))]
    #[case::port_zero("api.example.com:0", Err(BadAuthority::Port))]
    #[case::port_with_zeros("api.example.com:0443", Err(BadAuthority::Port))]
    #[case::port_with_sign("api.example.com:+443", Err(BadAuthority::Port))]
    #[case::large_port("api.example.com:65536", Err(BadAuthority::Port))]
    #[case::two_ports("api.example.com:443:80", Err(BadAuthority::Host(BadHost::Character)))]
    #[case::bare_six("2001:db8::1:443", Err(BadAuthority::Host(BadHost::Character)))]
    #[case::user("user@api.example.com:443", Err(BadAuthority::Host(BadHost::Character)))]
    #[case::user_and_password("a:b@api.example.com:443", Err(BadAuthority::Host(BadHost::Character)))]
    #[case::scheme("https://api.example.com:443", Err(BadAuthority::Host(BadHost::Character)))]
    #[case::zone("[fe80::1%25eth0]:443", Err(BadAuthority::Address))]
    #[case::plain_zone("[fe80::1%eth0]:443", Err(BadAuthority::Address))]
    #[case::open_bracket("[2001:db8::1:443", Err(BadAuthority::Address))]
    #[case::four_in_brackets("[192.0.2.1]:443", Err(BadAuthority::Address))]
    #[case::octal("0177.0.0.1:443", Err(BadAuthority::Host(BadHost::LooksLikeAnAddress)))]
    #[case::one_number("2130706433:443", Err(BadAuthority::Host(BadHost::LooksLikeAnAddress)))]
    #[case::hexadecimal("0x7f.1:443", Err(BadAuthority::Host(BadHost::LooksLikeAnAddress)))]
    #[case::one_label("localhost:443", Err(BadAuthority::Host(BadHost::OneLabel)))]
    #[case::empty(":443", Err(BadAuthority::Host(BadHost::Length)))]
    fn an_authority_is_read_in_one_way_or_not_at_all(#[case] text: &str, #[case] expected: Result<&str, BadAuthority>) {
        assert_eq!(Authority::parse(text).map(|authority| authority.to_string()), expected.map(str::to_owned));
    }
}
