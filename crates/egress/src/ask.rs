//! What a client asks of the gateway: `CONNECT HOST:PORT`, or a request for `http://HOST`, with a token. Pure.

use std::fmt;

use http::header::{CONTENT_LENGTH, PROXY_AUTHORIZATION, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::uri::Scheme;
use http::{Method, StatusCode, Version};
use paddock_destination::{Authority, BadAuthority, Way};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::grants::{NoGrant, TokenHash};

/// Longest token, in bytes.
const LONGEST_TOKEN: usize = 128;

/// A request that can be decided on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Of whoever asks.
    pub token: TokenHash,
    /// Where to.
    pub to: Authority,
    /// What it is asked for.
    pub way: Way,
}

impl Ask {
    /// As reports have it: `HOST:PORT`, or `http://HOST:PORT`.
    pub fn destination(&self) -> String {
        match self.way {
            Way::Tunnel => self.to.to_string(),
            Way::Http => format!("http://{}", self.to),
        }
    }
}

/// Why a request is answered with something else than a tunnel. What is told of it to whoever asks is [`Refusal::body`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is no request that any client that knows a proxy makes.
    NotConnect,
    /// The target is no host and port.
    Target(BadAuthority),
    /// There is no token, or it is none.
    NoToken,
    /// The token opens nothing.
    Grant(NoGrant),
    /// No rule grants it: what refuses it, and what would have to be asked for.
    NotGranted {
        /// As in `status.decisions`.
        rule: String,
        /// Host and port.
        ask: String,
    },
    /// What the name leads to is not dialled.
    Address(String),
    /// The name leads nowhere.
    NotResolved,
    /// Nobody answers there.
    NotConnected,
    /// The gateway speaks TLS with the host, which does not, or has no certificate that is trusted.
    Tls(String),
    /// A Secret that the gateway would have to add cannot be had.
    SecretUnusable,
    /// What answers there does not speak HTTP, or stopped in the middle.
    NoAnswer,
    /// As many tunnels are open as the run may have, or as the gateway has room for.
    TooMany,
    /// The run has sent and received as much as it may.
    BudgetSpent,
}

impl Refusal {
    /// As HTTP has it.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NotConnect => StatusCode::METHOD_NOT_ALLOWED,
            Self::Target(_) => StatusCode::BAD_REQUEST,
            Self::NoToken | Self::Grant(NoGrant::Unknown | NoGrant::OtherPod { .. }) => StatusCode::PROXY_AUTHENTICATION_REQUIRED,
            Self::Grant(NoGrant::NotReady | NoGrant::Stale) | Self::SecretUnusable => StatusCode::SERVICE_UNAVAILABLE,
            Self::NotGranted { .. } | Self::Address(_) => StatusCode::FORBIDDEN,
            Self::NotResolved | Self::NotConnected | Self::NoAnswer | Self::Tls(_) => StatusCode::BAD_GATEWAY,
            Self::TooMany | Self::BudgetSpent => StatusCode::TOO_MANY_REQUESTS,
        }
    }

    /// All that [`Refusal::reason`] says.
    pub const REASONS: [&str; 16] = [
        "NotConnect",
        "BadTarget",
        "NoToken",
        "NotReady",
        "Stale",
        "UnknownToken",
        "OtherPod",
        "NotGranted",
        "AddressRefused",
        "NotResolved",
        "NotConnected",
        "NoAnswer",
        "TlsFailed",
        "SecretUnusable",
        "TooManyTunnels",
        "BudgetSpent",
    ];

    /// A closed set, for programs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotConnect => "NotConnect",
            Self::Target(_) => "BadTarget",
            Self::NoToken => "NoToken",
            Self::Grant(NoGrant::NotReady) => "NotReady",
            Self::Grant(NoGrant::Stale) => "Stale",
            Self::Grant(NoGrant::Unknown) => "UnknownToken",
            Self::Grant(NoGrant::OtherPod { .. }) => "OtherPod",
            Self::NotGranted { .. } => "NotGranted",
            Self::Address(_) => "AddressRefused",
            Self::NotResolved => "NotResolved",
            Self::NotConnected => "NotConnected",
            Self::NoAnswer => "NoAnswer",
            Self::Tls(_) => "TlsFailed",
            Self::SecretUnusable => "SecretUnusable",
            Self::TooMany => "TooManyTunnels",
            Self::BudgetSpent => "BudgetSpent",
        }
    }

    /// JSON that says why, and what the author of the script would have to ask for.
    pub fn body(&self) -> String {
        let (rule, capability) = match self {
            Self::NotGranted { rule, ask } => (Some(rule.as_str()), Some(format!("network:{ask}"))),
            _ => (None, None),
        };
        let told = Told { reason: self.reason(), message: self.to_string(), rule, capability };
        serde_json::to_string(&told).unwrap_or_default()
    }
}

#[derive(Serialize)]
struct Told<'a> {
    reason: &'a str,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    capability: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotConnect => formatter.write_str("only CONNECT, without a body, and requests for http:// other than TRACE are answered"),
            Self::Target(why) => write!(formatter, "the target is no host and port: {why}"),
            Self::NoToken => formatter.write_str("there is no token"),
            Self::Grant(why) => write!(formatter, "{why}"),
            Self::NotGranted { rule, ask } => write!(formatter, "{ask} is not granted ({rule})"),
            Self::Address(why) => write!(formatter, "the name leads to an address that is not dialled: {why}"),
            Self::NotResolved => formatter.write_str("the name leads nowhere"),
            Self::NotConnected => formatter.write_str("nobody answers there"),
            Self::NoAnswer => formatter.write_str("no whole answer of HTTP has come from there"),
            Self::Tls(why) => write!(formatter, "the gateway cannot speak TLS with that host: {why}"),
            Self::SecretUnusable => formatter.write_str("a Secret that the gateway would have to add cannot be had"),
            Self::TooMany => formatter.write_str("as many tunnels are open as may be"),
            Self::BudgetSpent => formatter.write_str("the run has sent and received as much as it may"),
        }
    }
}

/// Reads the head of a request. Nothing in it but method, target and token is honoured, and what could be read in two ways is refused.
pub fn read(head: &Parts) -> Result<Ask, Refusal> {
    let (to, way) = if head.method == Method::CONNECT { (tunnel(head)?, Way::Tunnel) } else { (http(head)?, Way::Http) };
    let mut tokens = head.headers.get_all(PROXY_AUTHORIZATION).iter();
    let (Some(token), None) = (tokens.next(), tokens.next()) else { return Err(Refusal::NoToken) };
    let token = token.as_bytes().strip_prefix(b"Bearer ").filter(|token| (1..=LONGEST_TOKEN).contains(&token.len()));
    Ok(Ask { token: hash(token.ok_or(Refusal::NoToken)?), to, way })
}

fn tunnel(head: &Parts) -> Result<Authority, Refusal> {
    let has_body = head.headers.contains_key(CONTENT_LENGTH) || head.headers.contains_key(TRANSFER_ENCODING);
    if head.version != Version::HTTP_11 || has_body || head.headers.contains_key(UPGRADE) {
        return Err(Refusal::NotConnect);
    }
    // hyper has read the target as an authority; what it takes for one is read again, strictly.
    let target = head.uri.authority().filter(|_| head.uri.path_and_query().is_none()).ok_or(Refusal::NotConnect)?;
    Authority::parse(target.as_str()).map_err(Refusal::Target)
}

fn http(head: &Parts) -> Result<Authority, Refusal> {
    // Whoever answers to TRACE repeats what the gateway adds.
    if head.uri.scheme() != Some(&Scheme::HTTP) || head.version > Version::HTTP_11 || head.method == Method::TRACE {
        return Err(Refusal::NotConnect);
    }
    let target = head.uri.authority().ok_or(Refusal::NotConnect)?;
    Authority::of_http(target.as_str()).map_err(Refusal::Target)
}

/// Of a token.
pub fn hash(token: &[u8]) -> TokenHash {
    TokenHash(Sha256::digest(token).into())
}

#[cfg(test)]
mod tests {
    use http::Request;
    use http::request::Builder;
    use rstest::rstest;

    use paddock_destination::Destination;

    use super::*;

    fn connect(target: &str) -> Builder {
        Request::builder().method(Method::CONNECT).uri(target).header("Proxy-Authorization", "Bearer t")
    }

    fn ask(builder: Builder) -> Result<String, &'static str> {
        let (head, ()) = builder.body(()).unwrap().into_parts();
        read(&head).map(|ask| Destination::of(&ask.to, ask.way).to_string()).map_err(|refusal| refusal.reason())
    }

    #[rstest]
    #[case::plain(connect("api.example.com:443"), Ok("api.example.com:443"))]
    #[case::capitals(connect("API.example.com.:443"), Ok("api.example.com:443"))]
    #[case::no_port(connect("api.example.com"), Err("BadTarget"))]
    #[case::user(connect("user@api.example.com:443"), Err("BadTarget"))]
    #[case::get(connect("http://API.example.com/").method(Method::GET), Ok("http://api.example.com:80"))]
    #[case::post_at_a_port(connect("http://api.example.com:8080/x?y").method(Method::POST), Ok("http://api.example.com:8080"))]
    #[case::older(connect("http://api.example.com").method(Method::GET).version(Version::HTTP_10), Ok("http://api.example.com:80"))]
    #[case::get_of_an_address(connect("http://[2001:db8::1]/").method(Method::GET), Ok("tcp://[2001:db8::1]:80"))]
    #[case::get_with_a_user(connect("http://u:p@api.example.com/").method(Method::GET), Err("BadTarget"))]
    #[case::get_over_tls(connect("https://api.example.com/").method(Method::GET), Err("NotConnect"))]
    #[case::trace(connect("http://api.example.com/").method(Method::TRACE), Err("NotConnect"))]
    #[case::origin_form(connect("/x").method(Method::GET), Err("NotConnect"))]
    #[case::newer(connect("http://api.example.com/").method(Method::GET).version(Version::HTTP_2), Err("NotConnect"))]
    #[case::absolute_form(connect("http://api.example.com:443/"), Err("NotConnect"))]
    #[case::old_version(connect("a.example.com:443").version(Version::HTTP_10), Err("NotConnect"))]
    #[case::length(connect("a.example.com:443").header("Content-Length", "0"), Err("NotConnect"))]
    #[case::chunked(connect("a.example.com:443").header("Transfer-Encoding", "chunked"), Err("NotConnect"))]
    #[case::upgrade(connect("a.example.com:443").header("Upgrade", "h2c"), Err("NotConnect"))]
    #[case::two_tokens(connect("a.example.com:443").header("Proxy-Authorization", "Bearer u"), Err("NoToken"))]
    #[case::proxy_header(connect("a.example.com:443").header("X-Upstream-Https-Proxy", "evil.example:1"), Ok("a.example.com:443"))]
    fn a_request_is_read_in_one_way_or_refused(#[case] builder: Builder, #[case] expected: Result<&str, &str>) {
        assert_eq!(ask(builder).as_deref().map_err(|reason| *reason), expected);
    }

    #[rstest]
    #[case::none(None)]
    #[case::basic(Some("Basic dDp0".to_owned()))]
    #[case::empty(Some("Bearer ".to_owned()))]
    #[case::long(Some(format!("Bearer {}", "t".repeat(129))))]
    fn without_a_token_nothing_is_asked(#[case] header: Option<String>) {
        let builder = Request::builder().method(Method::CONNECT).uri("a.example.com:443");
        let builder = header.iter().fold(builder, |builder, header| builder.header("Proxy-Authorization", header));
        assert_eq!(ask(builder), Err("NoToken"));
    }

    #[test]
    fn each_reason_is_listed() {
        let said = [
            Refusal::NotConnect,
            Refusal::Target(Authority::parse("").unwrap_err()),
            Refusal::NoToken,
            Refusal::Grant(NoGrant::NotReady),
            Refusal::Grant(NoGrant::Stale),
            Refusal::Grant(NoGrant::Unknown),
            Refusal::Grant(NoGrant::OtherPod { run: String::new() }),
            Refusal::NotGranted { rule: String::new(), ask: String::new() },
            Refusal::Address(String::new()),
            Refusal::NotResolved,
            Refusal::NotConnected,
            Refusal::NoAnswer,
            Refusal::Tls(String::new()),
            Refusal::SecretUnusable,
            Refusal::TooMany,
            Refusal::BudgetSpent,
        ];
        assert_eq!(said.map(|refusal| refusal.reason()), Refusal::REASONS);
    }

    #[test]
    fn a_refusal_says_what_to_ask_for() {
        let refusal = Refusal::NotGranted { rule: "built-in: network".into(), ask: "a.example.com:443".into() };
        let told: serde_json::Value = serde_json::from_str(&refusal.body()).unwrap();
        let expected = serde_json::json!({
            "reason": "NotGranted", "message": "a.example.com:443 is not granted (built-in: network)",
            "rule": "built-in: network", "capability": "network:a.example.com:443",
        });
        assert_eq!((refusal.status(), told), (StatusCode::FORBIDDEN, expected));
    }
}
