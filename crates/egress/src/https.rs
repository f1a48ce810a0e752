//! HTTPS that the gateway speaks for a script: it checks the host's certificate, and sets fields whose values the script never holds.

use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use memchr::memmem::{self, Finder};
use paddock_destination::{Authority, Host};
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
        // Hosts that make variables of fields take one mark for the other.
        let folded = |name: &HeaderName| name.as_str().replace('_', "-");
        let own: Vec<String> = self.fields.iter().map(|field| folded(&field.name)).collect();
        let shadowing: Vec<HeaderName> = headers.keys().filter(|name| own.contains(&folded(name))).cloned().collect();
        for name in shadowing {
            headers.remove(name);
        }
        for Field { name, value } in &self.fields {
            if let Some(value) = value {
                headers.insert(name, value.whole.clone());
            }
        }
    }

    /// Takes what has a value out of the head of an answer, so that a host that repeats what it was told does not tell the script.
    pub(crate) fn cover(&self, headers: &mut HeaderMap) {
        let secrets = self.fields.iter().filter_map(|field| Some(field.value.as_ref()?.secret.as_bytes()));
        let forms: Vec<Vec<u8>> = secrets.flat_map(forms).collect();
        let finders: Vec<Finder<'_>> = forms.iter().map(Finder::new).collect();
        let tells = |text: &[u8]| finders.iter().any(|finder| finder.find(text).is_some());
        let lower: Vec<Vec<u8>> = forms.iter().map(|form| form.to_ascii_lowercase()).collect();
        let is_named = |name: &HeaderName| lower.iter().any(|form| memmem::find(name.as_str().as_bytes(), form).is_some());
        let named: Vec<HeaderName> = headers.keys().filter(|name| is_named(name)).cloned().collect();
        for name in named {
            headers.remove(name);
        }
        // The length is a number that hyper has read, by which the body is told from what follows.
        for (_, value) in headers.iter_mut().filter(|(name, value)| *name != CONTENT_LENGTH && tells(value.as_bytes())) {
            *value = HeaderValue::from_static("[masked]");
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

/// As hosts repeat a value: as it is, in hexadecimal, URL-encoded, and within base64, of which the first and last characters depend on what is beside it.
fn forms(secret: &[u8]) -> Vec<Vec<u8>> {
    let encode = |kept: &dyn Fn(u8) -> bool, text: &dyn Fn(u8) -> String| -> Vec<u8> {
        secret.iter().flat_map(|byte| if kept(*byte) { vec![*byte] } else { text(*byte).into_bytes() }).collect()
    };
    let is_unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let mut all = vec![
        secret.to_vec(),
        encode(&|_| false, &|byte| format!("{byte:02x}")),
        encode(&|_| false, &|byte| format!("{byte:02X}")),
        encode(&is_unreserved, &|byte| format!("%{byte:02x}")),
        encode(&is_unreserved, &|byte| format!("%{byte:02X}")),
    ];
    for before in 0..3 {
        let shifted = [&[0; 2][..before.min(2)], secret].concat();
        let whole = &shifted[..shifted.len() / 3 * 3];
        // Four characters are three bytes: with one before, two characters depend on it, and with two, three.
        let first = [0, 2, 3][before];
        for text in [STANDARD.encode(whole), URL_SAFE.encode(whole)] {
            all.extend(text.as_bytes().get(first..).filter(|form| !form.is_empty()).map(<[u8]>::to_vec));
        }
    }
    all
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
    fn a_field_that_hosts_may_take_for_it_is_not_sent() {
        let https = Https { fields: vec![Field { name: "x-api-key".parse().unwrap(), value: Value::new("", SECRET) }], ..https(None) };
        let mut headers = map(&[("x_api_key", b"mine"), ("x-api_key", b"mine"), ("x-api", b"1")]);
        https.set_fields(&mut headers);
        assert_eq!((headers.len(), headers["x-api-key"].as_bytes()), (2, SECRET));
    }

    /// Whatever stands beside it.
    #[test]
    fn a_value_is_found_within_base64() {
        for before in 0..4 {
            for after in 0..3 {
                let text = [&b"user"[..before], SECRET, &b"pw"[..after]].concat();
                for encoded in [STANDARD.encode(&text), URL_SAFE.encode(&text)] {
                    let mut headers = map(&[("x-told", format!("Basic {encoded}").as_bytes())]);
                    https(Value::new("", SECRET)).cover(&mut headers);
                    assert_eq!(headers["x-told"].as_bytes(), b"[masked]", "{before} {after}");
                }
            }
        }
    }

    #[test]
    fn a_host_that_repeats_the_head_of_a_request_does_not_tell_the_secret() {
        let mut headers = map(&[
            ("x-authorization", b"Bearer s3cr3t-t0ken"),
            ("location", b"https://a.example.com/?t=s3cr3t-t0ken&x"),
            ("x-encoded", STANDARD.encode(SECRET).as_bytes()),
            ("x-s3cr3t-t0ken", b"1"),
            ("x-hex", b"7333637233742d74306b656e"),
            ("content-length", b"12"),
            ("content-type", b"text/html"),
        ]);
        https(Value::new("Bearer ", SECRET)).cover(&mut headers);
        let left = format!("{headers:?}");
        assert!(!left.contains("s3cr3t") && !left.contains(&STANDARD.encode(SECRET)), "{left}");
        assert_eq!((headers.len(), headers["content-type"].as_bytes()), (6, b"text/html".as_slice()));
        assert_eq!((headers["x-hex"].as_bytes(), headers["content-length"].as_bytes()), (b"[masked]".as_slice(), b"12".as_slice()));
    }

    #[test]
    fn a_value_is_found_however_its_bytes_are_written() {
        let secret = b"a b/c+d=\xffz";
        let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        for told in ["a%20b%2Fc%2Bd%3D%FFz", "a%20b%2fc%2bd%3d%ffz", &hex, &hex.to_uppercase()] {
            let mut headers = map(&[("location", format!("/?t={told}&x").as_bytes())]);
            https(Value::new("", secret)).cover(&mut headers);
            assert_eq!(headers["location"].as_bytes(), b"[masked]", "{told}");
        }
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
