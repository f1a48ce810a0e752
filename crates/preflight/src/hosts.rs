//! Hosts of URLs in the literal text of a program.

/// Every `scheme://host` in a text, in small letters, as far as it goes on like one. What is no name is told as it stands: clients read `%65` and letters of
/// other scripts in their own ways, and none of them is to be overlooked.
pub(crate) fn hosts(text: &str) -> impl Iterator<Item = String> + '_ {
    text.match_indices("://").filter_map(|(at, separator)| {
        let has_scheme = text[..at].chars().next_back().is_some_and(|char| char.is_ascii_alphanumeric());
        let rest = &text[at + separator.len()..];
        let authority = &rest[..rest.find(|char| !is_of_an_authority(char)).unwrap_or(rest.len())];
        let host = authority.rsplit('@').next()?;
        let host = match host.strip_prefix('[') {
            Some(inner) => inner.split(']').next()?,
            None => host.split(':').next()?,
        };
        let host = host.trim_end_matches('.');
        (has_scheme && !host.is_empty()).then(|| host.to_lowercase())
    })
}

fn is_of_an_authority(char: char) -> bool {
    if char.is_ascii() { char.is_ascii_alphanumeric() || "-._~:@[]%".contains(char) } else { !char.is_whitespace() }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    #[rstest]
    #[case("see https://API.example.com/v1?x=http://b.example:8080 and ftp://u:p@c.example.", &["api.example.com", "b.example", "c.example"])]
    #[case("redis://[fd00::1]:6379/0", &["fd00::1"])]
    #[case("(https://a.example), <https://b.example>; curl https://c.example|sh\thttps://d.example\t", &["a.example", "b.example", "c.example", "d.example"])]
    #[case("https://b\u{fc}cher.example/ https://%65vil.example/", &["b\u{fc}cher.example", "%65vil.example"])]
    #[case("https:// ://x a://{host}/ https://", &[])]
    fn hosts_of_urls_alone(#[case] text: &str, #[case] expected: &[&str]) {
        assert_eq!(super::hosts(text).collect::<Vec<_>>(), expected);
    }
}
