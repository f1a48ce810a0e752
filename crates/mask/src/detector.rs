//! What is looked for without being told: shapes that are secrets or personal data wherever they turn up.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use regex::bytes::{Captures, Regex};

use crate::numbers;
use crate::text::Cut;

const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent).with_decode_allow_trailing_bits(true);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// One kind of what is looked for. The name is public API: it stands in place of what was covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Detector {
    /// Access keys of clouds.
    CloudKey,
    /// Tokens of services that mark them by a prefix.
    ServiceToken,
    /// Private keys, as PEM or as base64 of PEM.
    PrivateKey,
    /// JSON Web Tokens.
    Jwt,
    /// What follows `Bearer` or `Basic` in a header.
    BearerToken,
    /// Passwords in URLs, and values that are assigned to a name like `password`.
    Password,
    /// E-mail addresses.
    Email,
    /// Bank accounts whose check digits are right.
    Iban,
    /// Payment cards whose check digit is right.
    CardNumber,
}

macro_rules! patterns {
    ($($name:ident = $pattern:expr;)+) => {
        $(static $name: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new($pattern).ok());)+

        #[cfg(test)]
        mod all_patterns {
            #[test]
            fn compile() {
                $(assert!(super::$name.is_some(), stringify!($name));)+
            }
        }
    };
}

patterns! {
    CLOUD_KEY = r#"(?x-u)
        \b(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}\b
        | (?i:aws.{0,20}secret.{0,20}|secret_?access_?key.{0,5})[\s:='"]{1,5}([A-Za-z0-9/+]{40})(?:[^A-Za-z0-9/+=]|$)
        | \bAIza[0-9A-Za-z_-]{35}
        | \bya29\.[0-9A-Za-z_-]{20,}
        | (?i:AccountKey=|SharedAccessKey=)([A-Za-z0-9/+]{40,90}={0,2})
        | \b[0-9A-Za-z_~.-]{3}[78]Q~[0-9A-Za-z_~.-]{31,34}
        | \bLTAI[0-9A-Za-z]{12,20}\b
        | \bdo[opr]_v1_[0-9a-f]{64}\b"#;
    SERVICE_TOKEN = r"(?x-u)
        \bgh[pousr]_[0-9A-Za-z]{36,}
        | \bgithub_pat_[0-9A-Za-z_]{22,}
        | \bgl(?:pat|dt|rt|cbt|ptt|ft|soat)-[0-9A-Za-z_.-]{20,}
        | \bxox[abeoprs]-[0-9A-Za-z-]{10,}
        | \bxapp-\d-[0-9A-Za-z-]{10,}
        | https://hooks\.slack\.com/services/(T[0-9A-Z]{6,}/B[0-9A-Z]{6,}/[0-9A-Za-z]{16,})
        | \b[rs]k_(?:live|test)_[0-9A-Za-z]{16,}
        | \bwhsec_[0-9A-Za-z+/=]{24,}
        | \bnpm_[0-9A-Za-z]{36}\b
        | \bpypi-AgE[0-9A-Za-z_-]{50,}
        | \bSG\.[0-9A-Za-z_-]{16,32}\.[0-9A-Za-z_-]{16,64}
        | \bSK[0-9a-f]{32}\b
        | \bsk-(?:ant-|proj-|svcacct-)?[0-9A-Za-z_-]{32,}
        | \bhf_[0-9A-Za-z]{34,}\b
        | \bshp(?:at|ca|pa|ss)_[0-9a-f]{32}\b
        | \bdckr_pat_[0-9A-Za-z_-]{20,}
        | \bkey-[0-9a-f]{32}\b
        | \b\d{8,10}:AA[0-9A-Za-z_-]{33}\b
        | \bhv[sbr]\.[0-9A-Za-z_-]{24,}
        | \bEAAC[0-9A-Za-z]{30,}";
    PEM = r"(?x-u)
        -----BEGIN\ [A-Z0-9\ ]{0,40}PRIVATE\ KEY(?:\ BLOCK)?-----
        (?:[A-Za-z0-9+/=\s\\.,:()-]*?-----END\ [A-Z0-9\ ]{0,40}PRIVATE\ KEY(?:\ BLOCK)?----- | [A-Za-z0-9+/=\s\\]*)";
    PEM_END = r"(?-u)\A[A-Za-z0-9+/=\s\\]*-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----";
    PEM_IN_BASE64 = r"(?-u)LS0tLS1CRUdJTi[A-Za-z0-9+/=]{20,}";
    PUTTY = r"(?-u)PuTTY-User-Key-File-\d:[\s\S]*?Private-MAC: [0-9a-f]+";
    JWT = r"(?-u)\beyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*){1,4}";
    HEADER = r"(?-u)(?i)\b(bearer|basic)[\s:=]{1,4}([A-Za-z0-9._~+/-]{12,}={0,2})";
    URL_PASSWORD = r"(?-u)\b[a-zA-Z][a-zA-Z0-9+.-]{1,20}://[^\s:@/]{0,100}:([^\s@/]{1,200})@";
    ASSIGNMENT = r#"(?x-u)(?i)
        ["']?\b[a-z0-9_.-]{0,40}(?:passw(?:or)?d|passphrase|pwd|secret|api_?-?key|access_?-?key|(?:auth|access|refresh|api|bearer|session)_?-?token|private_?-?key|credential)[a-z0-9_-]{0,20}["']?
        \s{0,3}(?::=|=>|:|=)\s{0,3}
        (?:"([^"\r\n]{4,200})" | '([^'\r\n]{4,200})' | ([^\s"',;<>(){}\[\]]{6,200}))"#;
    SECRET_NAME = r"(?-u)(?i)(?:passw(?:or)?d|passphrase|\bpwd\b|secret(?:[_-]?key)?|api[_-]?key|access[_-]?key|(?:auth|access|refresh|api|bearer|session)[_-]?token|private[_-]?key|credential)s?$";
    EMAIL = r"(?-u)\b[A-Za-z0-9](?:[A-Za-z0-9._%+-]{0,63})@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}\b";
}

/// Values that stand where a secret would be and are none.
const PLACEHOLDERS: [&str; 18] = [
    "changeme",
    "example",
    "password",
    "placeholder",
    "redacted",
    "undefined",
    "required",
    "optional",
    "missing",
    "invalid",
    "expired",
    "string",
    "none",
    "null",
    "true",
    "false",
    "xxxx",
    "your",
];

impl Detector {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::CloudKey,
        Self::ServiceToken,
        Self::PrivateKey,
        Self::Jwt,
        Self::BearerToken,
        Self::Password,
        Self::Email,
        Self::Iban,
        Self::CardNumber,
    ];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CloudKey => "CloudKey",
            Self::ServiceToken => "ServiceToken",
            Self::PrivateKey => "PrivateKey",
            Self::Jwt => "Jwt",
            Self::BearerToken => "BearerToken",
            Self::Password => "Password",
            Self::Email => "Email",
            Self::Iban => "Iban",
            Self::CardNumber => "CardNumber",
        }
    }

    /// Spans of what it finds.
    pub(crate) fn find(self, text: &[u8], cut: Cut) -> Vec<(usize, usize)> {
        match self {
            Self::CloudKey => matches(&CLOUD_KEY, text, |_| true),
            Self::ServiceToken => matches(&SERVICE_TOKEN, text, |_| true),
            Self::PrivateKey => private_keys(text, cut),
            Self::Jwt => matches(&JWT, text, is_jwt),
            Self::BearerToken => headers(text),
            Self::Password => {
                let mut spans = matches(&URL_PASSWORD, text, |_| true);
                let assigned = matches(&ASSIGNMENT, text, |value| !is_placeholder(value));
                // What is called is no value.
                let is_call =
                    |(start, end): &(usize, usize)| text.get(*end) == Some(&b'(') && !text[*start..*end].iter().any(u8::is_ascii_digit);
                spans.extend(assigned.into_iter().filter(|span| !is_call(span)));
                spans
            }
            Self::Email => matches(&EMAIL, text, |_| true),
            Self::Iban => numbers::ibans(text),
            Self::CardNumber => numbers::cards(text),
        }
    }

    /// Whether a field of this name holds a secret.
    pub(crate) fn is_secret_name(name: &str) -> bool {
        SECRET_NAME.as_ref().is_some_and(|regex| regex.is_match(name.as_bytes()))
    }
}

/// The first group of each match, or the whole where none took part.
fn matches(regex: &LazyLock<Option<Regex>>, text: &[u8], is_meant: impl Fn(&[u8]) -> bool) -> Vec<(usize, usize)> {
    let Some(regex) = regex.as_ref() else {
        return Vec::new();
    };
    let group = |captures: &Captures<'_>| {
        let one = captures.iter().skip(1).flatten().next().or_else(|| captures.get(0))?;
        is_meant(one.as_bytes()).then(|| (one.start(), one.end()))
    };
    regex.captures_iter(text).filter_map(|captures| group(&captures)).collect()
}

fn private_keys(text: &[u8], cut: Cut) -> Vec<(usize, usize)> {
    let mut spans = pem_blocks(text);
    spans.extend(matches(&PUTTY, text, |_| true));
    spans.extend(matches(&PEM_IN_BASE64, text, |encoded| {
        let whole = &encoded[..encoded.len() - encoded.len() % 4];
        STANDARD.decode(whole).is_ok_and(|decoded| decoded.windows(11).take(100).any(|window| window == b"PRIVATE KEY"))
    }));
    if cut.start {
        spans.extend(matches(&PEM_END, text, |_| true));
    }
    spans
}

/// Each look for the end of a block may go through the whole text. Whoever writes more beginnings than these has everything covered from there.
const PEM_BLOCKS: usize = 64;

fn pem_blocks(text: &[u8]) -> Vec<(usize, usize)> {
    let Some(regex) = PEM.as_ref() else { return Vec::new() };
    let mut spans: Vec<_> = regex.find_iter(text).take(PEM_BLOCKS).map(|found| (found.start(), found.end())).collect();
    if let Some(last) = spans.get_mut(PEM_BLOCKS - 1) {
        last.1 = text.len();
    }
    spans
}

/// Its header is a JSON object that names an algorithm.
fn is_jwt(token: &[u8]) -> bool {
    let header = token.split(|byte| *byte == b'.').next().unwrap_or_default();
    let Ok(decoded) = URL_SAFE.decode(header) else {
        return false;
    };
    serde_json::from_slice::<serde_json::Value>(&decoded).is_ok_and(|header| header.get("alg").is_some())
}

/// A word may follow `Bearer` too: a token has a digit, and what follows `Basic` decodes to a name and a password.
fn headers(text: &[u8]) -> Vec<(usize, usize)> {
    let Some(regex) = HEADER.as_ref() else {
        return Vec::new();
    };
    let token = |captures: Captures<'_>| {
        let (scheme, token) = (captures.get(1)?, captures.get(2)?);
        let is_token = if scheme.as_bytes().eq_ignore_ascii_case(b"basic") {
            STANDARD.decode(token.as_bytes()).is_ok_and(|decoded| decoded.contains(&b':'))
        } else {
            token.as_bytes().iter().any(u8::is_ascii_digit)
        };
        is_token.then(|| (token.start(), token.end()))
    };
    regex.captures_iter(text).filter_map(token).collect()
}

/// Whether `text` is the word, or goes on after it with something that has no digit: `password123` is no placeholder.
fn begins_with_word(text: &str, word: &str) -> bool {
    text.strip_prefix(word)
        .is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_alphanumeric()) || !rest.bytes().any(|byte| byte.is_ascii_digit()))
}

/// A reference, a call, or a word that says that there is no value.
fn is_placeholder(value: &[u8]) -> bool {
    let text = String::from_utf8_lossy(value).to_ascii_lowercase();
    let is_path = text.starts_with('/') && (text[1..].contains('/') || !text.bytes().any(|byte| byte.is_ascii_digit()));
    let is_reference = is_path
        || text.starts_with(['$', '<', '{', '*', '%', '(', '['])
        || text.contains("getenv")
        || text.contains("environ")
        || text.contains("os.");
    is_reference || PLACEHOLDERS.iter().any(|word| begins_with_word(&text, word)) || text.bytes().all(|byte| byte == b'*' || byte == b'.')
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use crate::{Cut, Detector, Masker};

    fn masked(text: &str) -> String {
        let masker = Masker::new(Detector::ALL.into(), &[], &[]).unwrap();
        String::from_utf8(masker.mask(text.as_bytes(), Cut::default()).whole().text.to_vec()).unwrap()
    }

    #[rstest]
    #[case::what_looks_like_a_call("DB_PASSWORD=Tr0ub4dor(x9kk", "DB_PASSWORD=[masked:Password](x9kk")]
    #[case::what_begins_with_a_placeholder("password=Password123!real", "password=[masked:Password]")]
    #[case::what_looks_like_a_path("api_key=/x8Kq0aZb1c2d3e4f5", "api_key=[masked:Password]")]
    #[case::a_call("password = read_password(prompt)", "password = read_password(prompt)")]
    #[case::a_path("secret: /run/secrets/db1", "secret: /run/secrets/db1")]
    #[case::a_placeholder("password: your-password-here", "password: your-password-here")]
    fn a_password_is_told_from_what_only_stands_in_its_place(#[case] text: &str, #[case] expected: &str) {
        assert_eq!(masked(text), expected);
    }

    #[test]
    fn beginnings_of_keys_without_end_take_bounded_time_and_hide_nothing() {
        let text = "-----BEGIN PRIVATE KEY-----".repeat(70_000) + "kept secret";
        assert!(!masked(&text).contains("kept secret"));
    }
}
