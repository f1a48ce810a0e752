use std::collections::BTreeMap;

use http::Method;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::*;
use crate::fake_api::{client, expect};

const LIFETIME: SignedDuration = SignedDuration::from_hours(24);

fn certificate() -> Certificate {
    make("paddock-system", LIFETIME, Timestamp::now()).unwrap()
}

async fn server(certificate: Option<&Certificate>) -> SocketAddr {
    let served = Served(Arc::new(RwLock::new(certificate.map(|certificate| Arc::new(config(certificate).unwrap())))));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { accept(listener, &served).await });
    address
}

/// What an API server does that trusts this bundle.
async fn ask(address: SocketAddr, bundle: &str, path: &str, body: &[u8]) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(bundle.as_bytes()).map(Result::unwrap));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let client = builder.with_root_certificates(roots).with_no_client_auth();
    let name = "paddock-webhook.paddock-system.svc".try_into().unwrap();
    let mut stream = TlsConnector::from(Arc::new(client)).connect(name, TcpStream::connect(address).await?).await?;
    let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

const REVIEW: &str =
    r#"{"request":{"uid":"r","userInfo":{"username":"jane"},"object":{"metadata":{"name":"a"},"spec":{}},"oldObject":null}}"#;

#[tokio::test]
async fn who_trusts_the_bundle_is_answered() {
    let (certificate, other) = (certificate(), certificate());
    let address = server(Some(&certificate)).await;
    let bundle = other.chain.clone() + &certificate.chain;
    for (_, path) in Stamp::ALL {
        let answer = ask(address, &bundle, path, REVIEW.as_bytes()).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("\"patchType\":\"JSONPatch\""), "{answer}");
    }
    assert!(ask(address, &other.chain, "/stamp/author", REVIEW.as_bytes()).await.is_err());
    for (path, body, status) in [("/stamp/author", "no review", "400"), ("/stamp/nobody", REVIEW, "404")] {
        let answer = ask(address, &bundle, path, body.as_bytes()).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
}

#[tokio::test]
async fn without_a_certificate_nobody_is_served() {
    let address = server(None).await;
    assert!(ask(address, &certificate().chain, "/stamp/author", REVIEW.as_bytes()).await.is_err());
}

#[tokio::test]
async fn connections_of_one_address_are_bounded() {
    let open = Arc::default();
    let [one, other] = [1, 2].map(|last| IpAddr::from([10, 0, 0, last]));
    let turns: Vec<Turn> = (0..CONNECTIONS_OF_ONE).map(|_| Turn::take(&open, one).unwrap()).collect();
    assert!(Turn::take(&open, one).is_none() && Turn::take(&open, other).is_some());
    drop(turns);
    assert!(Turn::take(&open, one).is_some() && open.lock().unwrap().is_empty());
}

/// A certificate that a Secret brought from elsewhere is served as it is.
#[test]
fn what_cert_manager_keeps_is_taken() {
    let made = certificate();
    let fields = BTreeMap::from([("tls.crt", &made.chain), ("tls.key", &made.key), ("ca.crt", &made.chain)]);
    let fields = fields.into_iter().map(|(name, text)| (name.to_owned(), ByteString(text.clone().into_bytes()))).collect();
    assert!(config(&Certificates::of(&fields).current.unwrap()).is_ok());
    let broken = Certificate { key: certificate().key, ..made };
    assert!(config(&broken).is_err(), "a key of another certificate");
}

#[tokio::test]
async fn what_is_to_be_trusted_is_written_before_it_is_served() {
    const SECRETS: &str = "/api/v1/namespaces/paddock-system/secrets";
    const ONE: &str = "/api/v1/namespaces/paddock-system/secrets/paddock-webhook";
    const HOOKS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/paddock-stamp";
    let hook = |name: &str| json!({ "name": name, "clientConfig": {}, "admissionReviewVersions": ["v1"], "sideEffects": "None" });
    let two = json!({ "metadata": { "name": "paddock-stamp" }, "webhooks": [hook("a.paddock.dev"), hook("b.paddock.dev")] });
    let (client, fake) = client(vec![
        expect(Method::GET, ONE, 404, json!("secrets not found")),
        expect(Method::GET, HOOKS, 200, two.clone()),
        expect(Method::PATCH, HOOKS, 200, two).holding("a.paddock.dev").holding("b.paddock.dev").holding("caBundle"),
        expect(Method::POST, SECRETS, 201, json!({ "metadata": { "name": SECRET } })).holding("tls.crt").holding("tls.key"),
    ]);
    look(&client, "paddock-system", LIFETIME, Timestamp::now()).await.unwrap();
    fake.finished().await;
}
