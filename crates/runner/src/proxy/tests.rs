//! The proxy as a script sees it, with the real gateway behind it.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use paddock_destination::{ByName, Destination, HostName, Reach};
use paddock_egress::ask::hash;
use paddock_egress::dial::Resolve;
use paddock_egress::gateway::Gateway as Egress;
use paddock_egress::grants::{Budget, Grant, Message, Rule};
use paddock_egress::server::{Served as Serving, serve_sandboxes};
use paddock_egress::tls::Files;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use super::{Gateway, Proxy};

const TOKEN: &str = "the-token-that-no-script-sees";

struct Nowhere;

impl Resolve for Nowhere {
    fn resolve<'a>(&'a self, _: &'a HostName) -> BoxFuture<'a, Option<Vec<IpAddr>>> {
        async { None }.boxed()
    }
}

/// A gateway that serves sandboxes, with a certificate of this authority.
pub(crate) struct Served {
    pub(crate) address: SocketAddr,
    pub(crate) address_ipv6: SocketAddr,
    pub(crate) authority: String,
    egress: Arc<Egress>,
    _runtime: tokio::runtime::Runtime,
}

struct World {
    proxy: SocketAddr,
    served: Served,
}

/// Certificate and key for this name, and their authority.
fn certificates(name: &str) -> (String, String, String) {
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = authority.self_signed(&authority_key).unwrap().pem();
    let key = KeyPair::generate().unwrap();
    let issuer = Issuer::new(authority, authority_key);
    let chain = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap().pem();
    (chain, key.serialize_pem(), pem)
}

/// A gateway whose certificate is for this name.
pub(crate) fn served(certified_name: &str) -> Served {
    let (chain, key, authority) = certificates(certified_name);
    let files = Files { chain: chain.into(), key: key.into(), authority: authority.clone().into() };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (sender, _) = tokio::sync::mpsc::channel(1);
    let egress = Arc::new(Egress::new(Box::new(Nowhere), sender, 4096));
    let serve = |address: &str| {
        let listener = runtime.block_on(tokio::net::TcpListener::bind(address)).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(serve_sandboxes(listener, Serving::new(files.for_sandboxes().unwrap()), egress.clone()));
        address
    };
    let (address, address_ipv6) = (serve("127.0.0.1:0"), serve("[::1]:0"));
    Served { address, address_ipv6, authority, egress, _runtime: runtime }
}

/// A proxy whose gateway grants all of this machine.
fn world(certified_name: &str) -> World {
    let served = served(certified_name);
    let egress = &served.egress;
    let operator = egress.connected();
    let net = "127.0.0.0/8".parse().unwrap();
    let grant = Grant {
        run: "run".into(),
        name: "team/run".into(),
        token: hash(TOKEN.as_bytes()),
        pod: vec![Ipv4Addr::LOCALHOST.into()],
        rules: (1..=u16::MAX)
            .map(|port| Rule {
                name: "all".into(),
                to: Destination { to: Reach::Net(net), port },
                allowed: ByName(vec![vec![net]]),
                https: None,
            })
            .collect(),
        denied: Vec::new(),
        cluster: Vec::new(),
        budget: Budget { tunnels: 100, bytes: 1 << 40, bytes_per_second: None },
        expires: std::time::Instant::now() + Duration::from_secs(600),
    };
    for message in [Message::Begin, Message::Put(Box::new(grant)), Message::End] {
        egress.hear(operator, message);
    }
    World { proxy: proxy(served.address, &served.authority), served }
}

fn proxy(gateway: SocketAddr, authority: &str) -> SocketAddr {
    let proxy = Proxy::new(Gateway::new(gateway, "paddock-egress", authority).unwrap(), TOKEN.into()).unwrap();
    let address = proxy.url().unwrap().strip_prefix("http://").unwrap().parse().unwrap();
    std::thread::spawn(move || proxy.serve());
    address
}

/// Sends back all that it gets, and ends when the other side has.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let (mut read, mut write) = (socket.try_clone().unwrap(), socket);
                let _ = std::io::copy(&mut read, &mut write);
                let _ = write.shutdown(std::net::Shutdown::Write);
            });
        }
    });
    address
}

impl World {
    /// A connection on which this was said, and the head of the answer.
    fn say(&self, text: &str) -> (TcpStream, String) {
        let mut stream = TcpStream::connect(self.proxy).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if stream.read(&mut byte).unwrap() == 0 {
                break;
            }
            head.push(byte[0]);
        }
        (stream, String::from_utf8(head).unwrap())
    }

    fn connect(&self, to: SocketAddr) -> TcpStream {
        let (stream, head) = self.say(&format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n"));
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        stream
    }
}

#[test]
fn what_a_script_sends_comes_back_whole_and_both_ends_are_told() {
    let (world, to) = (world("paddock-egress"), echo());
    let sent: Vec<u8> = (0..3_000_000_u32).map(|number| number.to_le_bytes()[0] ^ number.to_le_bytes()[1]).collect();
    let stream = world.connect(to);
    let (mut write, mut read) = (stream.try_clone().unwrap(), stream);
    let expected = sent.clone();
    let writer = std::thread::spawn(move || {
        write.write_all(&sent).unwrap();
        write.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    read.read_to_end(&mut back).unwrap();
    writer.join().unwrap();
    assert!(back == expected, "{} bytes of {}", back.len(), expected.len());
}

#[test]
fn many_connections_go_on_beside_one_that_nobody_reads() {
    let (world, to) = (world("paddock-egress"), echo());
    let mut deaf = world.connect(to);
    deaf.set_nonblocking(true).unwrap();
    // Until nothing goes in any more: all buffers on the way and back are full.
    let mut full = 0;
    while full < 20 {
        match deaf.write(&[7; 8192]) {
            Ok(1..) => full = 0,
            Ok(0) | Err(_) => {
                full += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
    let mut others: Vec<TcpStream> = (0..40).map(|_| world.connect(to)).collect();
    for (number, other) in others.iter_mut().enumerate() {
        let text = format!("number {number}");
        other.write_all(text.as_bytes()).unwrap();
        let mut back = vec![0; text.len()];
        other.read_exact(&mut back).unwrap();
        assert_eq!(back, text.as_bytes());
    }
}

#[test]
fn what_the_gateway_refuses_the_script_is_told() {
    let world = world("paddock-egress");
    let (mut stream, head) = world.say("CONNECT a.example.com:443 HTTP/1.1\r\nProxy-Authorization: Bearer another\r\n\r\n");
    let mut body = String::new();
    stream.read_to_string(&mut body).unwrap();
    assert!(head.starts_with("HTTP/1.1 403") && body.contains("network:a.example.com:443"), "{head}{body}");
    assert!(!head.contains(TOKEN) && !body.contains(TOKEN));
    let (mut stream, head) = world.say("GET http://a.example.com/ HTTP/1.1\r\nProxy-Authorization: Bearer another\r\n\r\n");
    let mut body = String::new();
    stream.read_to_string(&mut body).unwrap();
    assert!(head.starts_with("HTTP/1.1 403") && body.contains("network:http://a.example.com:80"), "{head}{body}");
    let (mut stream, head) = world.say("GET https://a.example.com/ HTTP/1.1\r\n\r\n");
    let mut body = String::new();
    stream.read_to_string(&mut body).unwrap();
    assert!(head.starts_with("HTTP/1.1 405") && body.contains("NotConnect"), "{head}{body}");
}

#[test]
fn nobody_but_the_gateway_is_given_the_token() {
    let world = world("somebody-else");
    let (mut stream, head) = world.say("CONNECT a.example.com:443 HTTP/1.1\r\n\r\n");
    let mut body = String::new();
    stream.read_to_string(&mut body).unwrap();
    assert!(head.starts_with("HTTP/1.1 502") && body.contains("GatewayUnreachable"), "{head}{body}");
    assert_eq!(world.served.egress.tunnels(), 0);
}

#[test]
fn a_gateway_that_is_not_there_is_told() {
    let (_, _, authority) = certificates("paddock-egress");
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut stream = TcpStream::connect(proxy(nobody, &authority)).unwrap();
    stream.write_all(b"CONNECT a.example.com:443 HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
}

#[test]
fn what_is_cut_at_the_gateway_ends_at_the_script() {
    let (world, to) = (world("paddock-egress"), echo());
    let mut stream = world.connect(to);
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    let operator = world.served.egress.connected();
    for message in [Message::Begin, Message::End] {
        world.served.egress.hear(operator, message);
    }
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
}

/// Between the proxy and its gateway: whether the gateway's first words of each connection say that it goes on with a session.
fn tapped(gateway: SocketAddr) -> (SocketAddr, std::sync::mpsc::Receiver<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, seen) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for script in listener.incoming().flatten() {
            let there = TcpStream::connect(gateway).unwrap();
            let (mut from, mut to) = (script.try_clone().unwrap(), there.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            let (mut there, mut script, sender) = (there, script, sender.clone());
            std::thread::spawn(move || {
                let mut first = [0; 4096];
                let length = there.read(&mut first).unwrap();
                sender.send(goes_on_with_a_session(&first[..length])).unwrap();
                script.write_all(&first[..length]).unwrap();
                std::io::copy(&mut there, &mut script)
            });
        }
    });
    (address, seen)
}

/// Whether a `ServerHello` (RFC 8446, 4.1.3) has the extension `pre_shared_key`.
fn goes_on_with_a_session(record: &[u8]) -> bool {
    const PRE_SHARED_KEY: u16 = 41;
    assert_eq!((record[0], record[5]), (22, 2), "a record of a handshake that begins with a ServerHello");
    let number = |at: usize| u16::from_be_bytes([record[at], record[at + 1]]);
    // Headers of record and message, version, random, session, cipher, compression.
    let session = usize::from(record[5 + 4 + 2 + 32]);
    let mut at = 5 + 4 + 2 + 32 + 1 + session + 2 + 1;
    let end = at + 2 + usize::from(number(at));
    at += 2;
    while at < end {
        if number(at) == PRE_SHARED_KEY {
            return true;
        }
        at += 4 + usize::from(number(at + 2));
    }
    false
}

#[test]
fn the_second_connection_and_those_after_it_need_no_certificate() {
    let (mut world, to) = (world("paddock-egress"), echo());
    let (tap, seen) = tapped(world.served.address);
    world.proxy = proxy(tap, &world.served.authority);
    for resumed in [false, true, true] {
        let mut stream = world.connect(to);
        // What the gateway hands out for the next time comes before this.
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        assert_eq!(seen.recv_timeout(Duration::from_secs(10)), Ok(resumed));
    }
}
