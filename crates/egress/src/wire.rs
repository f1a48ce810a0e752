//! The conversation with the operator: a JSON object in each line. It tells what is granted; the gateway tells what was asked for.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ipnet::IpNet;
use paddock_destination::{ByName, Destination, HostPattern};
use serde::{Deserialize, Serialize};

use crate::grants::{Budget, Grant, Message, Rule, TokenHash};
use crate::https::ToldHttps;

/// Longest line, in bytes: a grant of 32 destinations, for each of which 64 policies name 64 nets, is below it.
pub const LONGEST_LINE: usize = 8 << 20;

/// What the operator says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Said {
    /// See [`Message`].
    Begin {},
    /// A run's grant.
    Put(Box<Told>),
    /// A run's UID.
    Remove {
        /// Of the run.
        run: String,
    },
    /// See [`Message`].
    End {},
    /// See [`Message`].
    Beat {},
}

/// A grant on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Told {
    /// UID of the run.
    pub run: String,
    /// Its namespace and name, with a slash between them.
    pub name: String,
    /// SHA-256 of the token, as base64 for URLs.
    pub token: String,
    /// The pod's.
    pub pod: Vec<IpAddr>,
    /// What is granted.
    pub rules: Vec<ToldRule>,
    /// Hosts that are denied, and what denies them.
    pub denied: Vec<(String, String)>,
    /// Nets of the cluster.
    pub cluster: Vec<IpNet>,
    /// Milliseconds from now on: the two have clocks of their own.
    pub expires_in: u64,
    /// See [`Budget`].
    pub tunnels: u32,
    /// See [`Budget`].
    pub bytes: u64,
    /// See [`Budget`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
}

/// A rule on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ToldRule {
    /// As in `status.decisions`.
    pub name: String,
    /// Where to, as a run asks for it.
    pub to: String,
    /// Nets beside public addresses that this may lead to.
    pub allowed: ByName,
    /// How the gateway speaks with it for the script, where it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub https: Option<ToldHttps>,
}

/// A line that is not understood. Nothing after it counts: the conversation begins anew.
#[derive(Debug, thiserror::Error)]
pub enum BadLine {
    /// No JSON, or other fields.
    #[error("it is no message: {0}")]
    Json(#[from] serde_json::Error),
    /// A value that is none.
    #[error("{0} is not usable")]
    Value(&'static str),
}

/// Reads a line.
pub fn read(line: &[u8], now: Instant) -> Result<Message, BadLine> {
    Ok(match serde_json::from_slice(line)? {
        Said::Begin {} => Message::Begin,
        Said::Put(told) => Message::Put(Box::new(told.into_grant(now)?)),
        Said::Remove { run } => Message::Remove(run),
        Said::End {} => Message::End,
        Said::Beat {} => Message::Beat,
    })
}

/// The hash of a token as it is told.
pub fn token_text(hash: &TokenHash) -> String {
    URL_SAFE_NO_PAD.encode(hash.0)
}

impl Told {
    fn into_grant(self, now: Instant) -> Result<Grant, BadLine> {
        let token = URL_SAFE_NO_PAD.decode(&self.token).ok().and_then(|bytes| bytes.try_into().ok()).ok_or(BadLine::Value("token"))?;
        let pattern = |text: &str| HostPattern::parse_denied(text).map_err(|_| BadLine::Value("a pattern of hosts"));
        let denied = self.denied.iter().map(|(hosts, rule)| Ok((pattern(hosts)?, rule.clone()))).collect::<Result<_, BadLine>>()?;
        Ok(Grant {
            run: self.run,
            name: self.name,
            token: TokenHash(token),
            pod: self.pod,
            rules: self.rules.into_iter().map(ToldRule::into_rule).collect::<Result<_, _>>()?,
            denied,
            cluster: self.cluster,
            budget: Budget { tunnels: self.tunnels, bytes: self.bytes, bytes_per_second: self.bytes_per_second },
            expires: now.checked_add(Duration::from_millis(self.expires_in)).ok_or(BadLine::Value("expiresIn"))?,
        })
    }
}

impl ToldRule {
    fn into_rule(self) -> Result<Rule, BadLine> {
        let to = Destination::parse(&self.to).map_err(|_| BadLine::Value("a destination"))?;
        let https = self.https.map(|told| told.into_https().map(Arc::new).ok_or(BadLine::Value("a field of HTTP"))).transpose()?;
        Ok(Rule { name: self.name, to, allowed: self.allowed, https })
    }
}

/// What the gateway says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "tell", rename_all = "kebab-case")]
pub enum Answer {
    /// What became of a request.
    Report(Report),
    /// Of this connection so many lines are in force.
    Heard {
        /// Counted from the first.
        lines: u64,
    },
}

/// What became of a request, told when it is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Report {
    /// UID of the run.
    pub run: String,
    /// Its namespace and name, with a slash between them.
    pub name: String,
    /// Host and port that were asked for, as they were understood.
    pub to: String,
    /// What granted or refused it.
    pub rule: String,
    /// How it ended.
    pub outcome: Outcome,
    /// The address that was dialled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Bytes from the script.
    pub sent: u64,
    /// Bytes to the script.
    pub received: u64,
    /// From the request to the end.
    pub milliseconds: u64,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Outcome {
    /// The tunnel was closed by either side.
    Closed,
    /// No rule grants the host at this port.
    NotGranted,
    /// The name leads to an address that is not dialled.
    AddressRefused,
    /// The name leads nowhere.
    NotResolved,
    /// Nobody answers there.
    NotConnected,
    /// The first bytes were no TLS for the host of the request.
    NotItsHost,
    /// The gateway should have spoken TLS with the host, which did not, or has no certificate that is trusted.
    TlsFailed,
    /// The gateway should have added a Secret that cannot be had.
    SecretUnusable,
    /// As many tunnels are open as the run may have.
    TooManyTunnels,
    /// The run has sent and received as much as it may.
    BudgetSpent,
    /// Nothing came from either side for too long.
    Idle,
    /// What the run was granted has changed or ended, or is not known any more.
    Cut,
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn put() -> Value {
        json!({
            "say": "put", "run": "uid", "name": "team/run", "token": URL_SAFE_NO_PAD.encode([7; 32]), "pod": ["10.1.2.3"],
            "rules": [{ "name": "a", "to": "*.example.com:443", "allowed": [] }, { "name": "b", "to": "tcp://192.0.2.0/24:5432", "allowed": [["192.0.2.0/24"]] }],
            "denied": [["x.example.com", "deny"]], "cluster": ["10.0.0.0/8"], "expiresIn": 1500, "tunnels": 8, "bytes": 9, "bytesPerSecond": 1024,
        })
    }

    #[test]
    fn a_grant_is_read_as_it_was_told() {
        let now = Instant::now();
        let Message::Put(grant) = read(put().to_string().as_bytes(), now).unwrap() else { panic!() };
        assert_eq!(
            (grant.run.as_str(), grant.token, grant.budget),
            ("uid", TokenHash([7; 32]), Budget { tunnels: 8, bytes: 9, bytes_per_second: Some(1024) })
        );
        assert_eq!((grant.expires, grant.rules.len(), grant.denied.len()), (now + Duration::from_millis(1500), 2, 1));
        let said: Said = serde_json::from_value(put()).unwrap();
        assert_eq!(serde_json::to_value(&said).unwrap(), put());
        assert_eq!(token_text(&TokenHash([7; 32])), put()["token"]);
    }

    #[rstest]
    #[case::unknown_field(|put: &mut Value| put["also"] = json!(1))]
    #[case::missing_field(|put: &mut Value| _ = put.as_object_mut().unwrap().remove("denied"))]
    #[case::short_token(|put: &mut Value| put["token"] = json!("AAAA"))]
    #[case::pattern(|put: &mut Value| put["rules"][0]["to"] = json!("*.com:443"))]
    #[case::denied_pattern(|put: &mut Value| put["denied"][0][0] = json!("a*.example.com"))]
    #[case::nowhere(|put: &mut Value| _ = put["rules"][0].as_object_mut().unwrap().remove("to"))]
    #[case::net(|put: &mut Value| put["rules"][1]["allowed"] = json!([["192.0.2.0/33"]]))]
    #[case::other_word(|put: &mut Value| put["say"] = json!("allow"))]
    fn what_is_not_understood_is_no_message(#[case] change: fn(&mut Value)) {
        let mut line = put();
        change(&mut line);
        assert!(read(line.to_string().as_bytes(), Instant::now()).is_err());
    }
}
