//! HTTPS that the gateway speaks for a script: it checks the host's certificate, and sets fields whose values the script never holds.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use paddock_destination::{Authority, Host};
use paddock_mask::{Cut, Masker};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::ask::Refusal;

/// For the handshake with the host.
const PATIENCE: Duration = Duration::from_secs(5);
/// What rustls keeps of what the host does not take yet.
const UNSENT_BYTES: usize = 16 << 10;

/// How the gateway speaks with a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Https {
    /// Port of the host.
    pub port: u16,
    /// Fields that it sets in each request.
    pub fields: Vec<Field>,
    /// Certificates of authorities, as PEM; `None` for those that everybody trusts.
    pub authorities: Option<String>,
}

/// A field that the gateway sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: HeaderName,
    /// `None`: the Secret cannot be had. Nothing is sent then.
    pub value: Option<Value>,
}

/// The value of a field. Neither half is printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    whole: HeaderValue,
    secret: HeaderValue,
}

impl Value {
    /// What stands before the value of the Secret, and that value. `None`: no field can have it.
    pub fn new(prefix: &str, secret: &[u8]) -> Option<Self> {
        let sensitive = |bytes: &[u8]| {
            let mut value = HeaderValue::from_bytes(bytes).ok()?;
            value.set_sensitive(true);
            Some(value)
        };
        Some(Self { whole: sensitive(&[prefix.as_bytes(), secret].concat())?, secret: sensitive(secret)? })
    }
}

/// The same on its way from the operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ToldHttps {
    /// Port of the host.
    pub port: u16,
    /// Fields that the gateway sets.
    pub fields: Vec<ToldField>,
    /// Certificates of authorities, as PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorities: Option<String>,
}

/// A field on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ToldField {
    /// Its name.
    pub name: String,
    /// What stands before the value of the Secret.
    pub prefix: String,
    /// The value of the Secret; without it nothing is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretText>,
}

/// Bytes of a Secret, as base64. It is not printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretText(String);

impl SecretText {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(STANDARD.encode(bytes))
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SecretText(..)")
    }
}

impl ToldHttps {
    /// Reads it. `None`: a name or a value is none.
    pub(crate) fn into_https(self) -> Option<Https> {
        let Self { port, fields, authorities } = self;
        let field = |ToldField { name, prefix, secret }: ToldField| {
            let value = match secret {
                Some(SecretText(text)) => Some(Value::new(&prefix, &STANDARD.decode(text).ok()?)?),
                None => None,
            };
            Some(Field { name: name.parse().ok()?, value })
        };
        Some(Https { port, fields: fields.into_iter().map(field).collect::<Option<_>>()?, authorities })
    }
}

impl Https {
    /// The same whatever the Secrets hold.
    pub(crate) fn without_values(&self) -> Self {
        let fields = self.fields.iter().map(|field| Field { value: None, ..field.clone() }).collect();
        Self { fields, ..self.clone() }
    }

    /// Whether a Secret cannot be had.
    pub(crate) fn lacks_a_value(&self) -> bool {
        self.fields.iter().any(|field| field.value.is_none())
    }

    /// Sets the fields, whatever the script wrote there.
    pub(crate) fn set_fields(&self, headers: &mut HeaderMap) {
        for Field { name, value } in &self.fields {
            headers.remove(name);
            if let Some(value) = value {
                headers.insert(name, value.whole.clone());
            }
        }
    }

    /// Covers the values in what a host answers, so that one that repeats the head of a request does not tell them.
    pub(crate) fn cover(&self, headers: &mut HeaderMap) {
        let secrets =
            self.fields.iter().filter_map(|field| Some((field.name.to_string(), field.value.as_ref()?.secret.as_bytes().to_vec())));
        let secrets: Vec<(String, Vec<u8>)> = secrets.collect();
        if secrets.is_empty() {
            return;
        }
        let Ok(masker) = Masker::new(BTreeSet::new(), &[], &secrets) else {
            // More than can be looked for.
            headers.clear();
            return;
        };
        let lower: Vec<Vec<u8>> = secrets.iter().map(|(_, secret)| secret.to_ascii_lowercase()).collect();
        let names_a_secret = |name: &HeaderName| lower.iter().any(|secret| contains(name.as_str().as_bytes(), secret));
        let telling: Vec<HeaderName> = headers.keys().filter(|name| names_a_secret(name)).cloned().collect();
        for name in telling {
            headers.remove(name);
        }
        // A number that hyper has read, by which the body is told from what follows.
        for (_, value) in headers.iter_mut().filter(|(name, _)| *name != CONTENT_LENGTH) {
            let masked = masker.mask(value.as_bytes(), Cut::default());
            let covered = masked.whole();
            if covered.text != value.as_bytes() {
                *value = HeaderValue::from_bytes(covered.text).unwrap_or_else(|_| HeaderValue::from_static("[masked]"));
            }
        }
    }

    /// Speaks TLS with the host at the other end of `stream`, which must show a certificate for its name.
    pub(crate) async fn connect(&self, to: &Authority, stream: TcpStream) -> Result<TlsStream<TcpStream>, Refusal> {
        let Host::Name(name) = &to.host else { return Err(Refusal::Tls("it is no name".into())) };
        let name = ServerName::try_from(name.as_str().to_owned()).map_err(|error| Refusal::Tls(error.to_string()))?;
        let connector = TlsConnector::from(self.trusting().map_err(Refusal::Tls)?);
        let connect = connector.connect_with(name, stream, |connection| connection.set_buffer_limit(Some(UNSENT_BYTES)));
        match timeout(PATIENCE, connect).await {
            Ok(connected) => connected.map_err(|error| Refusal::Tls(error.to_string())),
            Err(_) => Err(Refusal::Tls("the handshake is not over in time".into())),
        }
    }

    fn trusting(&self) -> Result<Arc<ClientConfig>, String> {
        static PUBLIC: LazyLock<Result<Arc<ClientConfig>, String>> = LazyLock::new(|| {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().cloned());
            config(roots)
        });
        let Some(authorities) = &self.authorities else { return PUBLIC.clone() };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(authorities.as_bytes()) {
            let told = |why: &dyn fmt::Display| format!("caBundle: {why}");
            roots.add(certificate.map_err(|error| told(&error))?).map_err(|error| told(&error))?;
        }
        config(roots)
    }
}

fn contains(text: &[u8], what: &[u8]) -> bool {
    !what.is_empty() && text.windows(what.len()).any(|window| window == what)
}

fn config(roots: RootCertStore) -> Result<Arc<ClientConfig>, String> {
    let builder =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider())).with_safe_default_protocol_versions();
    let mut config = builder.map_err(|error| error.to_string())?.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A session of one tenant is not gone on with by another.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"s3cr3t-t0ken";

    fn https(value: Option<Value>) -> Https {
        Https { port: 443, fields: vec![Field { name: http::header::AUTHORIZATION, value }], authorities: None }
    }

    fn map(fields: &[(&str, &[u8])]) -> HeaderMap {
        let field = |(name, value): &(&str, &[u8])| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_bytes(value).unwrap());
        fields.iter().map(field).collect()
    }

    #[test]
    fn what_the_script_writes_does_not_count() {
        let mut headers = map(&[("authorization", b"mine"), ("authorization", b"mine too"), ("accept", b"*/*")]);
        https(Value::new("Bearer ", SECRET)).set_fields(&mut headers);
        let told: Vec<&[u8]> = headers.get_all("authorization").iter().map(HeaderValue::as_bytes).collect();
        assert_eq!((told, headers.len()), (vec![b"Bearer s3cr3t-t0ken".as_slice()], 2));
    }

    #[test]
    fn a_host_that_repeats_the_head_of_a_request_does_not_tell_the_secret() {
        let mut headers = map(&[
            ("x-authorization", b"Bearer s3cr3t-t0ken"),
            ("location", b"https://a.example.com/?t=s3cr3t-t0ken&x"),
            ("x-encoded", STANDARD.encode(SECRET).as_bytes()),
            ("x-s3cr3t-t0ken", b"1"),
            ("content-type", b"text/html"),
        ]);
        https(Value::new("Bearer ", SECRET)).cover(&mut headers);
        let left = format!("{headers:?}");
        assert!(!left.contains("s3cr3t") && !left.contains(&STANDARD.encode(SECRET)), "{left}");
        assert_eq!((headers.len(), headers["content-type"].as_bytes()), (4, b"text/html".as_slice()));
        assert!(headers["location"].as_bytes().starts_with(b"https://a.example.com/?t="), "{left}");
    }

    #[test]
    fn what_is_secret_is_not_printed() {
        let printed = format!("{:?} {:?}", https(Value::new("Bearer ", SECRET)), SecretText::of(SECRET));
        assert!(!printed.contains("s3cr3t") && !printed.contains(&STANDARD.encode(SECRET)), "{printed}");
    }

    #[test]
    fn two_lines_are_no_value() {
        for (prefix, secret) in [("a\r\nb: ", "c"), ("", "a\nb"), ("", "a\0")] {
            assert_eq!(Value::new(prefix, secret.as_bytes()), None);
        }
    }
}
