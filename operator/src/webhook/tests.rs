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

/// A connection of the webhook, made as an API server makes it.
async fn connect(address: SocketAddr, bundle: &str) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(bundle.as_bytes()).map(Result::unwrap));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = builder.with_root_certificates(roots).with_no_client_auth();
    let name = "paddock-webhook.paddock-system.svc".try_into().unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, TcpStream::connect(address).await?).await
}

/// What an API server does that trusts this bundle.
async fn ask(address: SocketAddr, bundle: &str, path: &str, body: &[u8]) -> std::io::Result<String> {
    let mut stream = connect(address, bundle).await?;
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

/// Sixty clients that announce eight megabytes and stop before the end took all memory, and the operator with it.
#[tokio::test]
async fn large_reviews_that_do_not_end_hold_up_nobody_elses() {
    let certificate = certificate();
    let address = server(Some(&certificate)).await;
    let mut stuck = Vec::new();
    for _ in 0..40 {
        let mut stream = connect(address, &certificate.chain).await.unwrap();
        let head = format!("POST /stamp/author HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", LARGEST_REVIEW - 1);
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&[b' '; 4096]).await.unwrap();
        stuck.push(stream);
    }
    let answer = ask(address, &certificate.chain, "/stamp/author", REVIEW.as_bytes()).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let mut answers = Vec::new();
    for mut stream in stuck {
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        answers.push(String::from_utf8(answer.into()).unwrap());
    }
    assert!(answers.iter().any(|answer| answer.ends_with("408")), "{answers:?}");
    assert!(answers.iter().all(|answer| answer.ends_with("408") || answer.ends_with("503")), "{answers:?}");
}

/// As long as nobody has been asked anything, a connection is no API server's.
#[tokio::test(start_paused = true)]
async fn who_asks_nothing_is_sent_away() {
    let certificate = certificate();
    let address = server(Some(&certificate)).await;
    let mut silent = connect(address, &certificate.chain).await.unwrap();
    let mut rest = Vec::new();
    let _ = silent.read_to_end(&mut rest).await;
    assert!(rest.is_empty());
}

#[tokio::test]
async fn one_who_has_more_loses_a_connection_to_one_who_has_fewer() {
    let open = Open::default();
    let peer = |last: usize| IpAddr::from([10, 0, 0, u8::try_from(last).unwrap()]);
    let mut turns: Vec<Turn> = (0..9 * 64).filter_map(|number| open.take(peer(number % 9))).collect();
    let one = open.take(peer(99)).unwrap();
    let evicted = turns.iter_mut().map(|turn| usize::from(turn.evicted.try_recv().is_ok())).sum::<usize>();
    assert_eq!(evicted, 1);
    drop((turns, one));
    let table = open.0.lock().unwrap();
    assert!(table.evict.is_empty() && table.large.is_empty());
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

const SECRETS: &str = "/api/v1/namespaces/paddock-system/secrets";
const ONE: &str = "/api/v1/namespaces/paddock-system/secrets/paddock-webhook";
const HOOKS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/paddock-stamp";

/// A disk or a hand that wrote rubbish must not keep the webhook away until somebody deletes it.
#[tokio::test]
async fn what_cannot_be_served_is_made_anew() {
    let fields = |key: &str| {
        let made = certificate();
        let fields = [("tls.crt", made.chain), ("tls.key", key.to_owned()), ("tls.made", made.made.to_string())];
        Certificates::of(&fields.into_iter().map(|(name, text)| (name.to_owned(), ByteString(text.into_bytes()))).collect()).fields()
    };
    let none = json!({ "metadata": { "name": "paddock-stamp" }, "webhooks": [] });
    let stored = json!({ "metadata": { "name": SECRET, "resourceVersion": "1" }, "data": fields("rubbish") });
    let (client, fake) = client(vec![
        expect(Method::GET, ONE, 200, stored.clone()),
        expect(Method::GET, HOOKS, 200, none),
        expect(Method::PUT, ONE, 200, stored).holding("tls.crt").holding("tls.key"),
    ]);
    look(&client, "paddock-system", LIFETIME, Timestamp::now()).await.unwrap();
    fake.finished().await;
}

#[tokio::test]
async fn what_is_to_be_trusted_is_written_before_it_is_served() {
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
