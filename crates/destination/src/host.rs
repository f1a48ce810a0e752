//! Names of hosts.

use std::fmt;

/// A name in the DNS: lower case, A-labels only, without a trailing dot, of at least two labels. It cannot be read as an address by any resolver.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(String);

/// Why a text is no name of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHost {
    /// RFC 1035 bounds names at 253 characters and labels at 63.
    #[error("a name has 1 to 253 characters, and each label 1 to 63")]
    Length,
    /// On the wire a name is made of letters, digits and hyphens (RFC 1123): others come as A-labels.
    #[error("a label is made of letters, digits and, inside, hyphens; other letters come as xn--")]
    Character,
    /// `localhost`, or a name that a search list would complete.
    #[error("a name has at least two labels")]
    OneLabel,
    /// `127.1`, `0x7f.1` and `2130706433` are addresses for many clients.
    #[error("the last label begins with a letter")]
    LooksLikeAnAddress,
}

const LONGEST_NAME: usize = 253;
const LONGEST_LABEL: usize = 63;

impl HostName {
    /// Reads a name as it stands in a request or a handshake. One trailing dot is taken off; capitals are made small.
    pub fn parse(text: &str) -> Result<Self, BadHost> {
        let name = Self::parse_suffix(text)?;
        if name.0.contains('.') { Ok(name) } else { Err(BadHost::OneLabel) }
    }

    /// The same for what other names are below: a top level is one.
    pub(crate) fn parse_suffix(text: &str) -> Result<Self, BadHost> {
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.is_empty() || name.len() > LONGEST_NAME {
            return Err(BadHost::Length);
        }
        let labels: Vec<&str> = name.split('.').collect();
        for label in &labels {
            check_label(label)?;
        }
        if !labels.last().is_some_and(|last| last.starts_with(|first: char| first.is_ascii_alphabetic())) {
            return Err(BadHost::LooksLikeAnAddress);
        }
        Ok(Self(name.to_ascii_lowercase()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is below `suffix`, label by label. No name is below itself.
    pub fn is_below(&self, suffix: &Self) -> bool {
        self.0.strip_suffix(suffix.as_str()).is_some_and(|rest| rest.ends_with('.'))
    }
}

fn check_label(label: &str) -> Result<(), BadHost> {
    let bytes = label.as_bytes();
    if bytes.is_empty() || bytes.len() > LONGEST_LABEL {
        return Err(BadHost::Length);
    }
    let is_end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    if !is_end(bytes.first()) || !is_end(bytes.last()) || !bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-') {
        return Err(BadHost::Character);
    }
    Ok(())
}

impl fmt::Display for HostName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::plain("api.example.com", Ok("api.example.com"))]
    #[case::capitals_and_a_trailing_dot("API.Example.COM.", Ok("api.example.com"))]
    #[case::digits_in_front("1.2.3.example", Ok("1.2.3.example"))]
    #[case::a_label("xn--bcher-kva.example", Ok("xn--bcher-kva.example"))]
    #[case::empty("", Err(BadHost::Length))]
    #[case::root(".", Err(BadHost::Length))]
    #[case::two_trailing_dots("example.com..", Err(BadHost::Length))]
    #[case::empty_label("a..example", Err(BadHost::Length))]
    #[case::leading_dot(".example.com", Err(BadHost::Length))]
    #[case::one_label("localhost", Err(BadHost::OneLabel))]
    #[case::service("kubernetes.", Err(BadHost::OneLabel))]
    #[case::dotted_quad("127.0.0.1", Err(BadHost::LooksLikeAnAddress))]
    #[case::short_quad("127.1", Err(BadHost::LooksLikeAnAddress))]
    #[case::hexadecimal("0x7f.1", Err(BadHost::LooksLikeAnAddress))]
    #[case::hexadecimal_at_the_end("a.0x7f000001", Err(BadHost::LooksLikeAnAddress))]
    #[case::octal("0177.0.0.01", Err(BadHost::LooksLikeAnAddress))]
    #[case::one_number("2130706433", Err(BadHost::LooksLikeAnAddress))]
    #[case::non_ascii("b\u{fc}cher.example", Err(BadHost::Character))]
    #[case::fullwidth_dot("evil\u{ff0e}example.com", Err(BadHost::Character))]
    #[case::homoglyph("\u{430}pi.example.com", Err(BadHost::Character))]
    #[case::kelvin_sign("\u{212a}ey.example", Err(BadHost::Character))]
    #[case::nul("api.example.com\0.evil.example", Err(BadHost::Character))]
    #[case::user("user@api.example.com", Err(BadHost::Character))]
    #[case::path("api.example.com/x", Err(BadHost::Character))]
    #[case::percent("api%2eexample.com", Err(BadHost::Character))]
    #[case::space(" api.example.com", Err(BadHost::Character))]
    #[case::underscore("_dns.example.com", Err(BadHost::Character))]
    #[case::hyphen_first("-a.example", Err(BadHost::Character))]
    #[case::hyphen_last("a-.example", Err(BadHost::Character))]
    #[case::wildcard("*.example.com", Err(BadHost::Character))]
    fn a_name_is_read_in_one_way_or_not_at_all(#[case] text: &str, #[case] expected: Result<&str, BadHost>) {
        assert_eq!(HostName::parse(text).as_ref().map(HostName::as_str), expected.as_ref().map(|name| *name));
    }

    #[test]
    fn lengths_are_those_of_the_dns() {
        let label = "a".repeat(63);
        assert!(HostName::parse(&format!("{label}.example")).is_ok());
        assert_eq!(HostName::parse(&format!("{label}a.example")), Err(BadHost::Length));
        let name = format!("{label}.{label}.{label}.{}", "b".repeat(61));
        assert!(name.len() == 253 && HostName::parse(&name).is_ok());
        assert_eq!(HostName::parse(&format!("{name}b")), Err(BadHost::Length));
    }

    #[rstest]
    #[case("api.example.com", "example.com", true)]
    #[case("a.b.example.com", "example.com", true)]
    #[case("example.com", "example.com", false)]
    #[case("evilexample.com", "example.com", false)]
    #[case("example.com.evil.example", "example.com", false)]
    fn below_is_meant_label_by_label(#[case] name: &str, #[case] suffix: &str, #[case] expected: bool) {
        assert_eq!(HostName::parse(name).unwrap().is_below(&HostName::parse(suffix).unwrap()), expected);
    }

    proptest! {
        #[test]
        fn whatever_is_taken_is_taken_again_as_it_is(text in "\\PC{0,80}|([a-zA-Z0-9-]{1,8}\\.){0,4}[a-zA-Z0-9-]{1,8}\\.?") {
            if let Ok(name) = HostName::parse(&text) {
                prop_assert_eq!(HostName::parse(name.as_str()), Ok(name.clone()));
                prop_assert!(name.as_str().parse::<std::net::IpAddr>().is_err());
                prop_assert!(name.as_str().bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte)));
            }
        }
    }
}
