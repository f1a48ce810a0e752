//! What a policy writes for names.

use std::fmt;

use crate::host::{BadHost, HostName};

/// One name, or all below one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostPattern {
    /// This very name.
    Exact(HostName),
    /// `*.NAME`: every name below it, and not itself.
    Below(HostName),
}

/// Why a text is no pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPattern {
    /// The name in it is none.
    #[error(transparent)]
    Host(#[from] BadHost),
    /// A letter that IDNA does not have.
    #[error("it is no name that IDNA knows")]
    Idna,
    /// A star elsewhere than as the whole first label.
    #[error("a star stands for whole labels, at the beginning: *.example.com")]
    Star,
    /// Below it, strangers register names (publicsuffix.org, its private part included).
    #[error("anybody may register names below it")]
    PublicSuffix,
}

impl HostPattern {
    /// Reads what a person grants or asks for: letters beyond ASCII are made A-labels.
    pub fn parse(text: &str) -> Result<Self, BadPattern> {
        let pattern = Self::parse_denied(text)?;
        let Self::Below(name) = &pattern else { return Ok(pattern) };
        if psl::suffix_str(name.as_str()).is_none_or(|suffix| suffix == name.as_str()) {
            return Err(BadPattern::PublicSuffix);
        }
        Ok(pattern)
    }

    /// Reads what a person denies: a star may stand for names that anybody registers.
    pub fn parse_denied(text: &str) -> Result<Self, BadPattern> {
        let (is_wide, name) = text.strip_prefix("*.").map_or((false, text), |name| (true, name));
        if name.contains('*') {
            return Err(BadPattern::Star);
        }
        let ascii = if name.is_ascii() { name.to_owned() } else { idna::domain_to_ascii_strict(name).map_err(|_| BadPattern::Idna)? };
        Ok(if is_wide { Self::Below(HostName::parse_suffix(&ascii)?) } else { Self::Exact(HostName::parse(&ascii)?) })
    }

    /// Whether it means this name.
    pub fn matches(&self, name: &HostName) -> bool {
        match self {
            Self::Exact(own) => own == name,
            Self::Below(suffix) => name.is_below(suffix),
        }
    }

    /// Whether it means every name that `other` means.
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (_, Self::Exact(name)) => self.matches(name),
            (Self::Below(own), Self::Below(suffix)) => own == suffix || suffix.is_below(own),
            (Self::Exact(_), Self::Below(_)) => false,
        }
    }

    /// Whether there is a name that both mean.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.covers(other) || other.covers(self)
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => write!(formatter, "{name}"),
            Self::Below(name) => write!(formatter, "*.{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn pattern(text: &str) -> HostPattern {
        HostPattern::parse(text).unwrap()
    }

    #[rstest]
    #[case::exact("api.example.com", Ok("api.example.com"))]
    #[case::wide("*.example.com", Ok("*.example.com"))]
    #[case::capitals("*.Example.COM.", Ok("*.example.com"))]
    #[case::letters("*.b\u{fc}cher.example.com", Ok("*.xn--bcher-kva.example.com"))]
    #[case::everything("*", Err(BadPattern::Star))]
    #[case::everything_below_a_top_level("*.com", Err(BadPattern::PublicSuffix))]
    #[case::public_suffix("*.co.uk", Err(BadPattern::PublicSuffix))]
    #[case::private_suffix("*.github.io", Err(BadPattern::PublicSuffix))]
    #[case::own_page("*.paddock.github.io", Ok("*.paddock.github.io"))]
    #[case::exact_public_suffix("github.io", Ok("github.io"))]
    #[case::star_in_the_middle("api.*.example.com", Err(BadPattern::Star))]
    #[case::star_in_a_label("api*.example.com", Err(BadPattern::Star))]
    #[case::two_stars("*.*.example.com", Err(BadPattern::Star))]
    #[case::star_at_the_end("example.*", Err(BadPattern::Star))]
    #[case::address("10.0.0.1", Err(BadPattern::Host(BadHost::LooksLikeAnAddress)))]
    fn a_pattern_is_a_name_or_what_is_below_one(#[case] text: &str, #[case] expected: Result<&str, BadPattern>) {
        assert_eq!(HostPattern::parse(text).map(|pattern| pattern.to_string()), expected.map(str::to_owned));
    }

    #[rstest]
    #[case::top_level("*.com", "api.example.com", true)]
    #[case::other_top_level("*.com", "api.example.org", false)]
    #[case::private_suffix("*.github.io", "somebody.github.io", true)]
    #[case::exact("api.example.com", "api.example.com", true)]
    fn what_a_denied_pattern_matches(#[case] pattern: &str, #[case] name: &str, #[case] expected: bool) {
        assert_eq!(HostPattern::parse_denied(pattern).unwrap().matches(&HostName::parse(name).unwrap()), expected);
    }

    #[rstest]
    #[case::everything("*", Err(BadPattern::Star))]
    #[case::one_label("localhost", Err(BadPattern::Host(BadHost::OneLabel)))]
    #[case::address("*.0.0.1", Err(BadPattern::Host(BadHost::LooksLikeAnAddress)))]
    fn what_cannot_be_denied(#[case] pattern: &str, #[case] expected: Result<HostPattern, BadPattern>) {
        assert_eq!(HostPattern::parse_denied(pattern), expected);
    }

    #[rstest]
    #[case("*.example.com", "api.example.com", true)]
    #[case("*.example.com", "a.b.example.com", true)]
    #[case("*.example.com", "example.com", false)]
    #[case("*.example.com", "notexample.com", false)]
    #[case("api.example.com", "api.example.com", true)]
    #[case("api.example.com", "x.api.example.com", false)]
    #[case("*.example.com", "*.api.example.com", true)]
    #[case("*.api.example.com", "*.example.com", false)]
    #[case("api.example.com", "*.api.example.com", false)]
    fn what_a_pattern_covers(#[case] one: &str, #[case] other: &str, #[case] expected: bool) {
        assert_eq!(pattern(one).covers(&pattern(other)), expected);
    }

    fn any_pattern() -> impl Strategy<Value = HostPattern> {
        let label = prop::sample::select(vec!["a", "b", "c"]);
        let labels = prop::collection::vec(label, 0..3);
        (any::<bool>(), labels).prop_map(|(is_wide, labels)| {
            let name = labels.iter().fold("example.com".to_owned(), |name, label| format!("{label}.{name}"));
            pattern(&if is_wide { format!("*.{name}") } else { name })
        })
    }

    proptest! {
        #[test]
        fn what_covers_matches_all_that_the_other_matches(one in any_pattern(), other in any_pattern(), name in any_pattern()) {
            let HostPattern::Exact(name) = name else { return Ok(()) };
            if one.covers(&other) && other.matches(&name) {
                prop_assert!(one.matches(&name));
            }
            if one.matches(&name) && other.matches(&name) {
                prop_assert!(one.overlaps(&other) && other.overlaps(&one));
            }
        }
    }
}
