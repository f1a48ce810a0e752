//! Hosts of URLs in the literal text of a program.

/// Every `scheme://host` in a text, in small letters.
pub(crate) fn hosts(text: &str) -> impl Iterator<Item = String> + '_ {
    text.match_indices("://").filter_map(|(at, separator)| {
        let has_scheme = text[..at].chars().next_back().is_some_and(|char| char.is_ascii_alphanumeric());
        let rest = &text[at + separator.len()..];
        let authority = rest.split(['/', '?', '#', '"', '\'', ' ', '\\', '\n']).next()?;
        let host = authority.rsplit('@').next()?;
        let host = if host.starts_with('[') { host.split_once(']')?.0.get(1..)? } else { host.split(':').next()? };
        let is_host = !host.is_empty() && host.chars().all(|char| char.is_ascii_alphanumeric() || matches!(char, '-' | '.' | '_' | ':'));
        (has_scheme && is_host).then(|| host.to_ascii_lowercase())
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn hosts_of_urls_alone() {
        let of = |text| super::hosts(text).collect::<Vec<_>>();
        assert_eq!(
            of("see https://API.example.com/v1?x=http://b.example:8080 and ftp://u:p@c.example"),
            ["api.example.com", "b.example", "c.example"]
        );
        assert_eq!(of("redis://[fd00::1]:6379/0"), ["fd00::1"]);
        assert!(of("https:// ://x a://{host}/ https://").is_empty());
    }
}
