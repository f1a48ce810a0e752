//! HTTPS that the gateway speaks for a script, with Secrets that the script does not have.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use paddock_egress::wire::Outcome;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rstest::rstest;
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::world::{POD, TOKEN, World, reason, status, world_of};

const SECRET: &str = "s3cr3t-t0ken";

/// What the host was told, each request as it came.
type Told = Arc<Mutex<Vec<String>>>;

/// How a host answers that repeats what it was told in a field and in a body, and how it ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    /// As TLS demands.
    Whole,
    /// Without a word.
    Broken,
    /// Not before it is told to.
    Late,
}

struct Host {
    told: Told,
    /// Lets a late one go on.
    go_on: Arc<Notify>,
    /// Of its authority, as PEM.
    authority: String,
}

/// A host with a certificate for `name`.
async fn host(name: &str, ends: Ends) -> (World, Host) {
    host_until(name, 4000, ends).await
}

/// The same with a certificate that ends with the first day of this year.
async fn host_until(name: &str, year: i32, ends: Ends) -> (World, Host) {
    let (config, authority) = certified(name, year);
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (told, go_on) = (Told::default(), Arc::<Notify>::default());
    let (kept, goes_on) = (told.clone(), go_on.clone());
    let world = world_of(move |socket| serve(acceptor.clone(), socket, kept.clone(), goes_on.clone(), ends)).await;
    (world, Host { told, go_on, authority })
}

fn certified(name: &str, year: i32) -> (ServerConfig, String) {
    let mut parameters = CertificateParams::new(Vec::new()).unwrap();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let authority = parameters.self_signed(&key).unwrap();
    let (issuer, own) = (Issuer::new(parameters, key), KeyPair::generate().unwrap());
    let mut parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
    parameters.not_after = rcgen::date_time_ymd(year, 1, 1);
    let certificate = parameters.signed_by(&own, &issuer).unwrap();
    let chain = vec![CertificateDer::from(certificate.der().to_vec())];
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.serialize_der()));
    let builder = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    (builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth().with_single_cert(chain, key).unwrap(), authority.pem())
}

async fn serve(acceptor: TlsAcceptor, socket: TcpStream, told: Told, go_on: Arc<Notify>, ends: Ends) {
    let Ok(mut stream) = acceptor.accept(socket).await else { return };
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let request = String::from_utf8(request).unwrap();
    let value = request.lines().find_map(|line| line.strip_prefix("authorization: ")).unwrap_or_default();
    let head = format!("HTTP/1.1 200 {value}\r\nX-Told: {value}\r\nX-{}: 1\r\n\r\n", value.replace(' ', "-"));
    told.lock().unwrap().push(request);
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    if ends == Ends::Late {
        go_on.notified().await;
    }
    stream.write_all(b"hello").await.unwrap();
    stream.flush().await.unwrap();
    if ends != Ends::Broken {
        let _ = stream.shutdown().await;
    }
}

impl World {
    /// Grants `http://*.example.com` without, and one host of it with a Secret.
    fn grant_https(&self, authority: Option<&str>, secret: Option<&str>) {
        let mut put = self.grant();
        let to = |host: &str| format!("http://{host}:{}", self.port);
        let https = |fields: Value| {
            let mut https = json!({ "port": self.port, "fields": fields });
            if let Some(authority) = authority {
                https["authorities"] = json!(authority);
            }
            https
        };
        let mut field = json!({ "name": "authorization", "prefix": "Bearer " });
        if let Some(secret) = secret {
            field["secret"] = json!(STANDARD.encode(secret));
        }
        put["rules"] = json!([
            { "name": "all", "to": to("*.example.com"), "allowed": [["127.0.0.0/30"]], "https": https(json!([])) },
            { "name": "one", "to": to("api.example.com"), "allowed": [["127.0.0.0/30"]], "https": https(json!([field])) },
        ]);
        self.tell(&put);
    }

    async fn get_https(&self) -> String {
        self.get_https_of("api.example.com").await
    }

    async fn get_https_of(&self, host: &str) -> String {
        let port = self.port;
        let request = format!(
            "GET http://{host}:{port}/x HTTP/1.1\r\nHost: evil.example.com\r\nProxy-Authorization: Bearer {TOKEN}\r\nAuthorization: mine\r\nConnection: authorization\r\n\r\n"
        );
        let mut stream = self.connect(POD);
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.unwrap();
        String::from_utf8(answer).unwrap()
    }
}

#[tokio::test]
async fn the_host_is_told_a_secret_that_the_script_does_not_have() {
    let (mut world, host) = host("api.example.com", Ends::Whole).await;
    world.grant_https(Some(&host.authority), Some(SECRET));
    let answer = world.get_https().await;
    assert_eq!(status(&answer), 200, "{answer}");
    let told = host.told.lock().unwrap().remove(0);
    let mut lines: Vec<&str> = told.lines().filter(|line| !line.is_empty()).collect();
    lines.sort_unstable();
    let port = format!("host: api.example.com:{}", world.port);
    assert_eq!(lines, ["GET /x HTTP/1.1", "authorization: Bearer s3cr3t-t0ken", "connection: close", &port]);
    // The host has repeated it in the first line, in the name of a field and in its value.
    assert!(!answer.to_lowercase().contains(SECRET) && answer.contains("x-told: [masked]"), "{answer}");
    assert!(answer.ends_with("\r\n5\r\nhello\r\n0\r\n\r\n"), "{answer}");
    let report = world.report().await;
    assert_eq!(
        (report.rule.as_str(), report.outcome, report.to),
        ("one", Outcome::Closed, format!("http://api.example.com:{}", world.port))
    );
    assert_eq!(report.sent, told.len() as u64);
}

/// What is granted without.
#[tokio::test]
async fn no_other_host_is_told_it() {
    let (mut world, host) = host("www.example.com", Ends::Whole).await;
    world.grant_https(Some(&host.authority), Some(SECRET));
    let answer = world.get_https_of("www.example.com").await;
    assert_eq!((status(&answer), world.report().await.rule.as_str()), (200, "all"), "{answer}");
    let told = host.told.lock().unwrap().remove(0);
    assert!(!told.contains(SECRET) && !told.contains("Bearer"), "{told}");
}

#[rstest]
#[case::another_name("www.example.com", true)]
#[case::an_authority_that_is_not_trusted("api.example.com", false)]
#[tokio::test]
async fn who_cannot_show_a_certificate_is_told_nothing(#[case] name: &str, #[case] is_trusted: bool) {
    let (mut world, host) = host(name, Ends::Whole).await;
    world.grant_https(is_trusted.then_some(host.authority.as_str()), Some(SECRET));
    let answer = world.get_https().await;
    assert_eq!((status(&answer), reason(&answer).as_str()), (502, "TlsFailed"), "{answer}");
    assert!(host.told.lock().unwrap().is_empty());
    assert_eq!(world.report().await.outcome, Outcome::TlsFailed);
    assert_eq!(world.gateway.tunnels(), 0);
}

#[tokio::test]
async fn a_host_whose_certificate_has_ended_is_told_nothing() {
    let (world, host) = host_until("api.example.com", 2020, Ends::Whole).await;
    world.grant_https(Some(&host.authority), Some(SECRET));
    let answer = world.get_https().await;
    assert!(reason(&answer) == "TlsFailed" && answer.contains("expired"), "{answer}");
    assert!(host.told.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_host_without_tls_is_told_nothing() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let kept = told.clone();
    let world = world_of(move |mut socket| {
        let kept = kept.clone();
        async move {
            let _ = socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
            let mut all = Vec::new();
            let _ = socket.read_to_end(&mut all).await;
            kept.lock().unwrap().extend(all);
        }
    })
    .await;
    world.grant_https(None, Some(SECRET));
    assert_eq!(reason(&world.get_https().await), "TlsFailed");
    assert!(!String::from_utf8_lossy(&told.lock().unwrap()).contains(SECRET));
}

#[tokio::test]
async fn without_its_secret_nothing_is_asked() {
    let (mut world, host) = host("api.example.com", Ends::Whole).await;
    world.grant_https(Some(&host.authority), None);
    let answer = world.get_https().await;
    assert_eq!((status(&answer), reason(&answer).as_str()), (503, "SecretUnusable"), "{answer}");
    assert!(host.told.lock().unwrap().is_empty());
    let report = world.report().await;
    assert_eq!((report.outcome, report.address), (Outcome::SecretUnusable, None));
}

/// A Secret that holds something else is no other grant.
#[tokio::test]
async fn another_value_counts_at_once_and_cuts_nothing() {
    let (world, host) = host("api.example.com", Ends::Late).await;
    world.grant_https(Some(&host.authority), Some(SECRET));
    let world = Arc::new(world);
    let first = tokio::spawn({
        let world = world.clone();
        async move { world.get_https().await }
    });
    timeout(Duration::from_secs(20), async {
        while host.told.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    world.grant_https(Some(&host.authority), Some("another-value"));
    host.go_on.notify_one();
    let answer = first.await.unwrap();
    assert!(answer.ends_with("hello\r\n0\r\n\r\n"), "{answer}");
    host.go_on.notify_one();
    world.get_https().await;
    let told = host.told.lock().unwrap();
    assert!(told[0].contains(SECRET) && told[1].contains("authorization: Bearer another-value\r\n"), "{told:?}");
}

/// Who ends a connection under TLS without saying so may not be the host.
#[tokio::test]
async fn an_answer_that_breaks_off_does_not_look_whole() {
    let (world, host) = host("api.example.com", Ends::Broken).await;
    world.grant_https(Some(&host.authority), Some(SECRET));
    let answer = world.get_https().await;
    assert!(!answer.ends_with("\r\n0\r\n\r\n"), "{answer}");
}
