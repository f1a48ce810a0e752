//! The two ports, with the sockets, certificates and lines of the real thing.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use paddock_destination::HostName;
use paddock_egress::ask::hash;
use paddock_egress::dial::Resolve;
use paddock_egress::gateway::Gateway;
use paddock_egress::server::{Served, serve_sandboxes, serve_the_operator};
use paddock_egress::tls::Files;
use paddock_egress::wire::{Outcome, Report, Said, Told, token_text};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

struct Nowhere;

impl Resolve for Nowhere {
    fn resolve<'a>(&'a self, _: &'a HostName) -> BoxFuture<'a, Option<Vec<IpAddr>>> {
        async { None }.boxed()
    }
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Certificate and key.
    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

struct Ports {
    authority: Authority,
    sandboxes: SocketAddr,
    operator: SocketAddr,
}

async fn ports() -> Ports {
    let authority = Authority::new();
    let (chain, key) = authority.issue("paddock-egress");
    let files = Files { chain: chain.into(), key: key.into(), authority: authority.pem.clone().into() };
    let (sender, reports) = mpsc::channel(16);
    let gateway = Arc::new(Gateway::new(Box::new(Nowhere), sender));
    let (one, other) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let ports = Ports { authority, sandboxes: one.local_addr().unwrap(), operator: other.local_addr().unwrap() };
    tokio::spawn(serve_sandboxes(one, Served::new(files.for_sandboxes().unwrap()), gateway.clone()));
    tokio::spawn(serve_the_operator(other, Served::new(files.for_the_operator().unwrap()), gateway, reports));
    ports
}

impl Ports {
    async fn connect(&self, to: SocketAddr, certificate: Option<(String, String)>) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.pem.as_bytes()).unwrap()).unwrap();
        let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match certificate {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let chain = vec![CertificateDer::from_pem_slice(chain.as_bytes()).unwrap()];
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
            }
        };
        let socket = TcpStream::connect(to).await?;
        TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("paddock-egress").unwrap(), socket).await
    }

    async fn operator(&self) -> BufReader<TlsStream<TcpStream>> {
        BufReader::new(self.connect(self.operator, Some(self.authority.issue("paddock-operator"))).await.unwrap())
    }

    /// What a sandbox is answered, of which the address is this machine's.
    async fn ask(&self) -> String {
        let mut stream = self.connect(self.sandboxes, None).await.unwrap();
        stream.write_all(b"CONNECT a.example.com:443 HTTP/1.1\r\nProxy-Authorization: Bearer t\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.split("\"reason\":\"").nth(1).unwrap_or_default().split('"').next().unwrap_or_default().to_owned()
    }

    async fn eventually(&self, expected: &str) {
        for _ in 0..500 {
            if self.ask().await == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(self.ask().await, expected);
    }
}

fn grant(token: &str) -> Said {
    Said::Put(Box::new(Told {
        run: "run".into(),
        token: token_text(&hash(token.as_bytes())),
        pod: vec!["127.0.0.1".parse().unwrap()],
        rules: Vec::new(),
        denied: Vec::new(),
        allowed_nets: Vec::new(),
        denied_nets: Vec::new(),
        expires_in: 60_000,
        tunnels: 1,
        bytes: 1,
    }))
}

async fn say(operator: &mut BufReader<TlsStream<TcpStream>>, said: &[Said]) {
    let text: String = said.iter().map(|said| serde_json::to_string(said).unwrap() + "\n").collect();
    operator.write_all(text.as_bytes()).await.unwrap();
    operator.flush().await.unwrap();
}

#[tokio::test]
async fn the_operator_tells_what_is_granted_and_hears_what_was_asked() {
    let ports = ports().await;
    assert_eq!(ports.ask().await, "NotReady");
    let mut operator = ports.operator().await;
    say(&mut operator, &[Said::Begin {}, grant("t"), Said::End {}]).await;
    ports.eventually("NotGranted").await;
    let mut line = String::new();
    operator.read_line(&mut line).await.unwrap();
    let report: Report = serde_json::from_str(&line).unwrap();
    assert_eq!((report.run.as_str(), report.to.as_str(), report.outcome), ("run", "a.example.com:443", Outcome::NotGranted));
    say(&mut operator, &[Said::Remove { run: "run".into() }]).await;
    ports.eventually("UnknownToken").await;
    drop(operator);
    ports.eventually("NotReady").await;
}

#[tokio::test]
async fn nobody_without_a_certificate_of_the_authority_is_the_operator() {
    let ports = ports().await;
    let mut operator = ports.operator().await;
    say(&mut operator, &[Said::Begin {}, grant("t"), Said::End {}]).await;
    ports.eventually("NotGranted").await;
    for certificate in [None, Some(Authority::new().issue("paddock-operator"))] {
        // With TLS 1.3 a client learns with its first read that it was refused.
        if let Ok(mut stream) = ports.connect(ports.operator, certificate).await {
            let _ = stream.write_all(b"{\"say\":\"begin\"}\n").await;
            assert!(!matches!(stream.read(&mut [0]).await, Ok(1..)));
        }
    }
    assert_eq!(ports.ask().await, "NotGranted", "who is refused does not take the operator's place");
}

#[tokio::test]
async fn who_connects_last_is_the_operator() {
    let ports = ports().await;
    let mut old = ports.operator().await;
    say(&mut old, &[Said::Begin {}, grant("t"), Said::End {}]).await;
    ports.eventually("NotGranted").await;
    let mut new = ports.operator().await;
    ports.eventually("NotReady").await;
    while old.read(&mut [0; 1024]).await.is_ok_and(|count| count > 0) {}
    let _ = old.write_all(b"{\"say\":\"begin\"}\n{\"say\":\"end\"}\n").await;
    say(&mut new, &[Said::Begin {}, grant("other"), Said::End {}]).await;
    ports.eventually("UnknownToken").await;
}

#[tokio::test]
async fn after_a_line_that_is_not_understood_nothing_counts() {
    let ports = ports().await;
    for bad in ["{\"say\":\"allow\"}\n".to_owned(), "{".repeat(2 << 20)] {
        let mut operator = ports.operator().await;
        say(&mut operator, &[Said::Begin {}, grant("t"), Said::End {}]).await;
        ports.eventually("NotGranted").await;
        let _ = operator.write_all(bad.as_bytes()).await;
        let _ = operator.flush().await;
        ports.eventually("NotReady").await;
    }
}
