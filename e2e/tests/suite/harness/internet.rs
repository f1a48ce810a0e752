//! Public hosts in the cluster's own network: their addresses are on an interface there, and nothing leaves the machine.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once};

use nix::sched::{CloneFlags, setns};
use paddock_e2e::cluster::layout::{Layout, NODE_ADDRESS};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// Runs in the network of the cluster; sockets that are made there stay there.
pub fn inside<T: Send + 'static>(make: impl FnOnce() -> T + Send + 'static) -> T {
    let enter = move || {
        setns(std::fs::File::open(Layout::network_namespace()).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
        make()
    };
    std::thread::spawn(enter).join().unwrap()
}

/// Gives the cluster's node this address too.
fn own(address: IpAddr) {
    let namespace = format!("--net={}", Layout::network_namespace().display());
    let mut ip = std::process::Command::new("nsenter");
    ip.args([&namespace, "ip", "address", "replace", &address.to_string(), "dev", "lo"]);
    if address.is_ipv6() {
        // Nobody can be listening there before it is known that no other has it, which takes a moment also where there are no others.
        ip.arg("nodad");
    }
    assert!(ip.status().unwrap().success());
}

static NAMES: Mutex<BTreeMap<String, IpAddr>> = Mutex::new(BTreeMap::new());

/// The name server of the cluster answers for these names too. It knows no others than those that tests have named.
pub fn names<A: Into<IpAddr> + Copy>(new: &[(&str, A)]) {
    static SERVER: Once = Once::new();
    NAMES.lock().unwrap().extend(new.iter().map(|(name, address)| ((*name).to_owned(), (*address).into())));
    SERVER.call_once(serve_names);
}

fn serve_names() {
    let socket = inside(|| UdpSocket::bind((NODE_ADDRESS, 53)).unwrap());
    std::thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, peer)) = socket.recv_from(&mut query) {
            let answer = answer(&query[..length], &NAMES.lock().unwrap());
            if let Some(answer) = answer {
                let _ = socket.send_to(&answer, peer);
            }
        }
    });
}

/// RFC 1035: the question again, and one address of it if it asks for one.
fn answer(query: &[u8], names: &BTreeMap<String, IpAddr>) -> Option<Vec<u8>> {
    let (mut labels, mut at) = (Vec::new(), 12);
    while *query.get(at)? != 0 {
        let length = usize::from(query[at]);
        labels.push(String::from_utf8_lossy(query.get(at + 1..=at + length)?).to_lowercase());
        at += 1 + length;
    }
    let kind = query.get(at + 1..at + 3)?;
    let address = names.get(&labels.join("."));
    // A, or AAAA.
    let found = address.filter(|address| kind == [0, if address.is_ipv4() { 1 } else { 28 }]);
    // An answer, recursive; NXDOMAIN where there is no such name.
    let flags = [0x81, if address.is_some() { 0x80 } else { 0x83 }];
    let counts = [0, 1, 0, u8::from(found.is_some()), 0, 0, 0, 0];
    let mut told = [&query[..2], &flags, &counts, query.get(12..at + 5)?].concat();
    if let Some(address) = found {
        let octets = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        told.extend([0xc0, 12, kind[0], kind[1], 0, 1, 0, 0, 0, 1, 0, u8::try_from(octets.len()).ok()?]);
        told.extend(octets);
    }
    Some(told)
}

/// A host that speaks HTTP over TLS.
pub struct Host {
    /// Its certificate, as PEM.
    pub authority: String,
    served: Arc<Served>,
}

/// What a host has seen.
#[derive(Default)]
struct Served {
    slow: AtomicUsize,
    heads: Mutex<Vec<String>>,
}

impl Host {
    /// Waits until a request has this in its head.
    pub async fn is_told(&self, what: &str) {
        let told =
            || async { if self.served.heads.lock().unwrap().iter().any(|head| head.contains(what)) { Ok(()) } else { Err("not yet") } };
        super::eventually("the host is told it", told).await;
    }

    /// Answers to `/slow` that are under way.
    pub fn slow(&self) -> usize {
        self.served.slow.load(Ordering::SeqCst)
    }
}

/// What Git finds in `/repository`.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Serves HTTP over TLS for `name` at this address: `hello` at once, or, where `/slow` is asked for, a line every 10 ms for ever, and, for
/// `/head`, what it was asked. Git finds one branch in `/repository`.
pub fn https(name: &str, address: impl Into<IpAddr>) -> Host {
    let address = address.into();
    own(address);
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let config = Arc::new(config.with_single_cert(vec![made.cert.der().clone()], key).unwrap());
    let listener = inside(move || TcpListener::bind(SocketAddr::from((address, 443))).unwrap());
    let served = Arc::<Served>::default();
    let counted = served.clone();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let config = config.clone();
            let served = counted.clone();
            std::thread::spawn(move || {
                let mut stream = StreamOwned::new(ServerConnection::new(config).ok()?, socket);
                serve(&mut stream, &served)?;
                stream.conn.send_close_notify();
                stream.flush().ok()
            });
        }
    });
    Host { authority: made.cert.pem(), served }
}

/// Serves the same without TLS.
pub fn http(address: impl Into<IpAddr>) {
    let address = address.into();
    own(address);
    let listener = inside(move || TcpListener::bind(SocketAddr::from((address, 80))).unwrap());
    std::thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            std::thread::spawn(move || serve(&mut socket, &Served::default()));
        }
    });
}

/// Sends back at this address and port whatever comes.
pub fn echo(address: impl Into<IpAddr>, port: u16) {
    let address = address.into();
    own(address);
    let listener = inside(move || TcpListener::bind(SocketAddr::from((address, port))).unwrap());
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            std::thread::spawn(move || std::io::copy(&mut &socket, &mut &socket));
        }
    });
}

fn serve(stream: &mut (impl Read + Write), Served { slow, heads }: &Served) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    // Whoever closes with something unread may take its answer back.
    let text = String::from_utf8_lossy(&head).to_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<u64>().ok());
    std::io::copy(&mut stream.take(length.unwrap_or(0)), &mut std::io::sink()).ok()?;
    heads.lock().unwrap().push(String::from_utf8_lossy(&head).into_owned());
    stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n").ok()?;
    if head.starts_with(b"GET /slow ") {
        slow.fetch_add(1, Ordering::SeqCst);
        while stream.write_all(b"tick\n").and_then(|()| stream.flush()).is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        slow.fetch_sub(1, Ordering::SeqCst);
        return None;
    }
    // The dumb protocol of Git: one branch.
    let body = match &head[..] {
        head if head.starts_with(b"GET /repository/info/refs") => format!("{COMMIT}\trefs/heads/main\n"),
        head if head.starts_with(b"GET /head ") => String::from_utf8_lossy(head).into_owned(),
        _ => "hello".to_owned(),
    };
    stream.write_all(body.as_bytes()).ok()
}
