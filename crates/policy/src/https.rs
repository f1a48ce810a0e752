//! Hosts that the gateway speaks HTTPS with for the script: what it adds to each request, and whose certificates it trusts.

use std::collections::BTreeSet;
use std::fmt;

use crate::capabilities::is_a_name;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use paddock_crds::{Effect, NetworkGrant, NetworkProtocol, SecretHeader};

/// The port of HTTPS. A run asks for it without a port, as it calls the host: `http://HOST`.
pub(crate) const PORT: u16 = 443;
/// What `http://HOST` means.
const ASKED_PORT: u16 = 80;

/// A key of a Secret in the namespace of a run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SecretKey {
    /// The Secret.
    pub name: String,
    /// The key in it.
    pub key: String,
}

impl fmt::Display for SecretKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.name, self.key)
    }
}

/// A field that the gateway sets in each request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Field {
    /// Its name, in small letters.
    pub name: String,
    /// What stands before the value of the Secret.
    pub prefix: String,
    /// Where the rest of its value is.
    pub secret: SecretKey,
}

/// How the gateway speaks with a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Https {
    /// Port of the host.
    pub port: u16,
    /// What it adds to each request.
    pub fields: Vec<Field>,
    /// Certificates of authorities, as PEM; `None` for those that everybody trusts.
    pub authorities: Option<String>,
}

/// What one policy says of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    fields: Option<Vec<Field>>,
    authorities: Option<String>,
}

/// The port as a run asks for it.
pub(crate) fn asked_port(port: u16) -> u16 {
    if port == PORT { ASKED_PORT } else { port }
}

/// Fields between two neighbours, and those by which a request is told from what follows it: the gateway sets them itself.
const OF_THE_GATEWAY: [&str; 11] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Reads it. `None`: the gateway does not speak HTTPS there.
pub(crate) fn read(grant: &NetworkGrant) -> Result<Option<Said>, String> {
    if grant.protocol != Some(NetworkProtocol::Https) {
        let has_more = grant.headers.is_some() || grant.ca_bundle.is_some();
        return if has_more { Err("headers and caBundle belong to the protocol HTTPS".into()) } else { Ok(None) };
    }
    if grant.ports.iter().flatten().any(|port| *port == i32::from(ASKED_PORT)) {
        return Err("80 is no port of HTTPS: http://HOST in a run stands for its port 443".into());
    }
    let fields = grant.headers.as_ref().map(|headers| headers.iter().map(field).collect::<Result<Vec<_>, _>>()).transpose()?;
    let fields = fields.map(|mut fields| {
        fields.sort();
        fields
    });
    let names: BTreeSet<&str> = fields.iter().flatten().map(|field| field.name.as_str()).collect();
    if names.len() < fields.as_ref().map_or(0, Vec::len) {
        return Err("a header is named twice".into());
    }
    Ok(Some(Said { fields, authorities: grant.ca_bundle.as_deref().map(authorities).transpose()? }))
}

fn field(header: &SecretHeader) -> Result<Field, String> {
    let SecretHeader { name, prefix, secret_key_ref } = header;
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let lower = name.to_ascii_lowercase();
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err(format!("{name} is no name of a header"));
    }
    if OF_THE_GATEWAY.contains(&lower.as_str()) {
        return Err(format!("the header {name} is the gateway's own"));
    }
    let prefix = prefix.clone().unwrap_or_default();
    if !prefix.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(format!("the prefix of the header {name} has characters that are not ASCII"));
    }
    if !is_a_name(&secret_key_ref.name) {
        return Err(format!("{} is no name of a Secret", secret_key_ref.name));
    }
    Ok(Field { name: lower, prefix, secret: SecretKey { name: secret_key_ref.name.clone(), key: secret_key_ref.key.clone() } })
}

/// Whether they are certificates is seen by the gateway.
fn authorities(bundle: &str) -> Result<String, String> {
    let text = STANDARD.decode(bundle.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let is_text = |text: &String| text.bytes().all(|byte| matches!(byte, b'\n' | b'\r' | b'\t' | b' '..=b'~'));
    text.filter(is_text)
        .filter(|text| text.contains("-----BEGIN CERTIFICATE-----"))
        .map(|text| text.trim().to_owned())
        .ok_or_else(|| "caBundle is no base64 of certificates as PEM".to_owned())
}

/// What policies say together: each that says something must say the same. Who allows and is silent adds nothing, and trusts whom everybody trusts.
#[derive(Default)]
pub(crate) struct Agreement {
    is_https: Option<bool>,
    fields: Option<Vec<Field>>,
    authorities: Option<Trusted>,
}

/// Whose certificates count.
#[derive(PartialEq)]
enum Trusted {
    /// Of those that everybody trusts.
    Public,
    /// Of these alone.
    Of(String),
}

impl Agreement {
    /// Takes in what one policy more says. `Err`: the field of which it says something else than those before.
    pub(crate) fn join(&mut self, said: Option<&Said>, effect: Effect) -> Result<(), &'static str> {
        agree(&mut self.is_https, Some(said.is_some()), "protocol")?;
        let Some(said) = said else { return Ok(()) };
        let is_meant = effect == Effect::Allow;
        agree(&mut self.fields, said.fields.clone().or(is_meant.then(Vec::new)), "headers")?;
        agree(&mut self.authorities, said.authorities.clone().map(Trusted::Of).or(is_meant.then_some(Trusted::Public)), "caBundle")
    }

    /// For a run that asks for this port. `None`: the gateway carries what the script says as it is.
    pub(crate) fn https(self, asked: u16) -> Option<Https> {
        let port = if asked == ASKED_PORT { PORT } else { asked };
        let Self { is_https, fields, authorities } = self;
        let authorities = match authorities {
            Some(Trusted::Of(authorities)) => Some(authorities),
            Some(Trusted::Public) | None => None,
        };
        (is_https == Some(true)).then(|| Https { port, fields: fields.unwrap_or_default(), authorities })
    }
}

fn agree<T: PartialEq>(agreed: &mut Option<T>, said: Option<T>, field: &'static str) -> Result<(), &'static str> {
    match (&agreed, said) {
        (Some(agreed), Some(said)) if *agreed != said => Err(field),
        (Some(_), _) | (None, None) => Ok(()),
        (None, said) => {
            *agreed = said;
            Ok(())
        }
    }
}

impl Said {
    /// Whether it adds something.
    pub(crate) fn adds(&self) -> bool {
        self.fields.as_ref().is_some_and(|fields| !fields.is_empty())
    }
}
