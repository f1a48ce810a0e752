//! The two ports, with the sockets, certificates and lines of the real thing.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use paddock_destination::HostName;
use paddock_egress::ask::hash;
use paddock_egress::dial::Resolve;
use paddock_egress::feed::{All, Ended, Granted, converse};
use paddock_egress::gateway::Gateway;
use paddock_egress::server::{Served, serve_sandboxes, serve_the_operator};
use paddock_egress::tls::Files;
use paddock_egress::wire::{Answer, LONGEST_LINE, Outcome, Report, Said, Told, token_text};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::HandshakeKind;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
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
    served: Served,
    sandboxes: SocketAddr,
    operator: SocketAddr,
}

async fn ports() -> Ports {
    let authority = Authority::new();
    let (chain, key) = authority.issue("paddock-egress");
    let files = Files { chain: chain.into(), key: key.into(), authority: authority.pem.clone().into() };
    let (sender, reports) = mpsc::channel(16);
    let gateway = Arc::new(Gateway::new(Box::new(Nowhere), sender, 4096));
    let (one, other) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let one_address = one.local_addr().unwrap();
    let served = Served::new(files.for_sandboxes().unwrap());
    tokio::spawn(serve_sandboxes(one, served.clone(), gateway.clone()));
    let ports = Ports { authority, served, sandboxes: one_address, operator: other.local_addr().unwrap() };
    tokio::spawn(serve_the_operator(other, Served::new(files.for_the_operator().unwrap()), gateway, reports));
    ports
}

impl Ports {
    async fn connect(&self, to: SocketAddr, certificate: Option<(String, String)>) -> std::io::Result<TlsStream<TcpStream>> {
        let socket = TcpStream::connect(to).await?;
        self.connector(certificate).connect(ServerName::try_from("paddock-egress").unwrap(), socket).await
    }

    fn connector(&self, certificate: Option<(String, String)>) -> TlsConnector {
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
        TlsConnector::from(Arc::new(config))
    }

    async fn operator(&self) -> BufReader<TlsStream<TcpStream>> {
        BufReader::new(self.connect(self.operator, Some(self.authority.issue("paddock-operator"))).await.unwrap())
    }

    /// What a sandbox is answered, of which the address is this machine's.
    async fn ask(&self) -> String {
        let answer = ask(&mut self.connect(self.sandboxes, None).await.unwrap()).await;
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

async fn ask(stream: &mut TlsStream<TcpStream>) -> String {
    stream.write_all(b"CONNECT a.example.com:443 HTTP/1.1\r\nProxy-Authorization: Bearer t\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn grant(token: &str) -> Said {
    Said::Put(Box::new(Told {
        run: "run".into(),
        name: "team/run".into(),
        token: token_text(&hash(token.as_bytes())),
        pod: vec!["127.0.0.1".parse().unwrap()],
        rules: Vec::new(),
        denied: Vec::new(),
        cluster: Vec::new(),
        expires_in: 60_000,
        tunnels: 1,
        bytes: 1,
        bytes_per_second: None,
    }))
}

async fn say(operator: &mut BufReader<TlsStream<TcpStream>>, said: &[Said]) {
    let text: String = said.iter().map(|said| serde_json::to_string(said).unwrap() + "\n").collect();
    operator.write_all(text.as_bytes()).await.unwrap();
    operator.flush().await.unwrap();
}

/// The next thing that is reported.
async fn report(operator: &mut BufReader<TlsStream<TcpStream>>) -> Report {
    loop {
        let mut line = String::new();
        operator.read_line(&mut line).await.unwrap();
        if let Answer::Report(report) = serde_json::from_str(&line).unwrap() {
            return report;
        }
    }
}

#[tokio::test]
async fn the_operator_tells_what_is_granted_and_hears_what_was_asked() {
    let ports = ports().await;
    assert_eq!(ports.ask().await, "NotReady");
    let mut operator = ports.operator().await;
    say(&mut operator, &[Said::Begin {}, grant("t"), Said::End {}]).await;
    ports.eventually("NotGranted").await;
    let report = report(&mut operator).await;
    assert_eq!((report.run.as_str(), report.to.as_str(), report.outcome), ("run", "a.example.com:443", Outcome::NotGranted));
    say(&mut operator, &[Said::Remove { run: "run".into() }]).await;
    ports.eventually("UnknownToken").await;
    drop(operator);
    ports.eventually("NotReady").await;
}

/// A run opens many connections: the gateway signs for the first. What it had signed with before it serves another certificate opens none.
#[tokio::test]
async fn a_second_connection_needs_no_certificate_until_another_is_served() {
    let ports = ports().await;
    let connector = ports.connector(None);
    let kind = async || {
        let socket = TcpStream::connect(ports.sandboxes).await.unwrap();
        let mut stream = connector.connect(ServerName::try_from("paddock-egress").unwrap(), socket).await.unwrap();
        // What the next one is resumed with comes with the answer.
        assert!(ask(&mut stream).await.contains("NotReady"));
        stream.get_ref().1.handshake_kind().unwrap()
    };
    assert_eq!(kind().await, HandshakeKind::Full);
    assert_eq!(kind().await, HandshakeKind::Resumed);
    let (chain, key) = ports.authority.issue("paddock-egress");
    let files = Files { chain: chain.into(), key: key.into(), authority: ports.authority.pem.clone().into() };
    ports.served.set(files.for_sandboxes().unwrap());
    assert_eq!(kind().await, HandshakeKind::Full);
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
    for bad in ["{\"say\":\"allow\"}\n".to_owned(), "{".repeat(LONGEST_LINE + 1)] {
        let mut operator = ports.operator().await;
        say(&mut operator, &[Said::Begin {}, grant("t"), Said::End {}]).await;
        ports.eventually("NotGranted").await;
        let _ = operator.write_all(bad.as_bytes()).await;
        let _ = operator.flush().await;
        ports.eventually("NotReady").await;
    }
}

/// The operator's side of one conversation, by the certificate that the operator shows.
struct Feed {
    known: watch::Receiver<Option<Arc<All>>>,
    conversation: tokio::task::JoinHandle<Ended>,
}

impl Feed {
    async fn of(ports: &Ports, wanted: &watch::Sender<Arc<All>>) -> (Self, mpsc::Receiver<Report>) {
        let (chain, key) = ports.authority.issue("paddock-operator");
        let files = Files { chain: chain.into(), key: key.into(), authority: ports.authority.pem.clone().into() };
        let socket = TcpStream::connect(ports.operator).await.unwrap();
        let connector = TlsConnector::from(files.of_the_operator().unwrap());
        let stream = connector.connect(ServerName::try_from("paddock-egress").unwrap(), socket).await.unwrap();
        let ((sender, known), (reporting, reports), wanted) = (watch::channel(None), mpsc::channel(16), wanted.subscribe());
        let conversation = tokio::spawn(async move { converse(stream, wanted, &sender, &reporting).await });
        (Self { known, conversation }, reports)
    }

    async fn knows(&mut self, all: &Arc<All>) {
        self.known.wait_for(|known| known.as_ref() == Some(all)).await.unwrap();
    }
}

fn granted(token: &str) -> Arc<All> {
    let Said::Put(told) = grant(token) else { unreachable!() };
    Arc::new([("run".to_owned(), Arc::new(Granted { told: *told, expires: Instant::now() + Duration::from_secs(60) }))].into())
}

/// Once a replica is known to have heard of a grant there is no wait for it, nor for its end.
#[tokio::test]
async fn what_every_replica_is_known_to_have_heard_is_in_force() {
    let replicas = [ports().await, ports().await];
    let wanted = watch::Sender::new(Arc::new(All::new()));
    let (mut one, mut reports) = Feed::of(&replicas[0], &wanted).await;
    let (mut other, _others) = Feed::of(&replicas[1], &wanted).await;
    for token in ["t", "u", "t"] {
        let all = granted(token);
        wanted.send_replace(all.clone());
        one.knows(&all).await;
        other.knows(&all).await;
        for replica in &replicas {
            assert_eq!(replica.ask().await, if token == "t" { "NotGranted" } else { "UnknownToken" });
        }
    }
    assert_eq!(reports.recv().await.unwrap().to, "a.example.com:443");
    let nothing = Arc::new(All::new());
    wanted.send_replace(nothing.clone());
    one.knows(&nothing).await;
    other.knows(&nothing).await;
    for replica in &replicas {
        assert_eq!(replica.ask().await, "UnknownToken");
    }
}

/// A leader that has lost its place is told so by each replica that the new one talks with.
#[tokio::test]
async fn a_conversation_that_another_takes_over_is_known_to_be_over() {
    let ports = ports().await;
    let (old, new) = (watch::Sender::new(granted("t")), watch::Sender::new(granted("u")));
    let (mut before, _) = Feed::of(&ports, &old).await;
    let all = old.borrow().clone();
    before.knows(&all).await;
    let (mut after, _) = Feed::of(&ports, &new).await;
    let all = new.borrow().clone();
    after.knows(&all).await;
    assert!(matches!(before.conversation.await.unwrap(), Ended::Connection(_)));
    assert_eq!(*before.known.borrow(), None);
    assert_eq!(ports.ask().await, "UnknownToken");
}
