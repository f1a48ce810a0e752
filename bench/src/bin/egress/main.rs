//! What a connection through the egress gateway costs, beside a direct one and beside Squid and tinyproxy on the same streams, as one JSON line. Everything
//! is on loopback; the gateway is the real process, with certificates, an operator's side and grants made here. The sides take turns.
//!
//! `paddock-bench-egress GATEWAY ROOT [PART ...]`: the gateway's binary, a Debian root with squid and tinyproxy in it, and what of the line is measured, if not
//! all.

mod others;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use paddock_egress::ask::hash;
use paddock_egress::wire::{Said, token_text};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

/// What is measured, in this order.
const PARTS: [&str; 7] = [
    "microsecondsOfARequest",
    "gigabytesPerSecond",
    "megabytesPerSecondOfAGigabit",
    "connectionsPerSecond",
    "microsecondsOfOthers",
    "bytesOfAnIdleTunnel",
    BY_ITSELF,
];
/// Measured only where it is named: what the gateway had for other tunnels before would be taken again.
const BY_ITSELF: &str = "bytesOfAStuckTunnel";
/// Requests on a connection that is open, of each side.
const REQUESTS: usize = 3000;
/// Bytes of a request's answer.
const SMALL: u64 = 100;
/// Bytes of a stream, and how many of each side.
const LARGE: u64 = 512 << 20;
const STREAMS: usize = 5;
/// Of a host whose link has a gigabit in a second.
const MEDIUM: u64 = 128 << 20;
/// Asks the server to send no faster than such a link.
const PACED: u64 = 1 << 63;
const GIGABIT: f64 = 1e9 / 8.0;
/// Clients that connect, ask once and go, for so long, so many times.
const CLIENTS: usize = 32;
const TURN: Duration = Duration::from_secs(2);
const TURNS: usize = 5;
/// Tunnels in which nothing is said: as many as this machine lets a process have files for, two for each.
const MOST_IDLE: usize = 10_000;
/// Of one address.
const OF_ONE: usize = 100;
/// Tunnels that are stuck.
const STUCK: usize = 400;
const TOKEN: &str = "a token of the bench";
const GATEWAY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 28443);
const OPERATOR: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 28444);
const FORBIDDEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 28445);
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 28446);
const SQUID: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 23128);
const SQUID_OVER_TLS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 23129);
const TINYPROXY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 28888);

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A process that ends with the bench.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The ways to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    Direct,
    Gateway,
    Squid,
    /// As the gateway is spoken to.
    SquidOverTls,
    Tinyproxy,
}

const SIDES: [Side; 5] = [Side::Direct, Side::Gateway, Side::Squid, Side::SquidOverTls, Side::Tinyproxy];

#[derive(Clone)]
struct World {
    server: SocketAddr,
    tls: TlsConnector,
    /// Where what keeps the gateway busy runs, the server of it too: threads of its own, as it would be another sandbox's.
    busy: tokio::runtime::Handle,
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (gateway, root) = arguments.next().zip(arguments.next()).context("paddock-bench-egress GATEWAY ROOT [PART ...]")?;
    let parts: Vec<String> = arguments.map(|part| part.to_string_lossy().into_owned()).collect();
    let folder = std::env::temp_dir().join(format!("paddock-bench-egress-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let told = measure(&gateway, &root, &folder, &parts).await;
    std::fs::remove_dir_all(&folder)?;
    println!("{}", told?);
    Ok(())
}

async fn measure(gateway: &Path, root: &Path, folder: &Path, parts: &[String]) -> Result<Value> {
    let authority = Authority::new()?;
    let process = begin_gateway(gateway, folder, &authority)?;
    let _proxies = begin_proxies(root, &authority)?;
    let busy = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let told = measure_all(parts, &authority, process.0.id(), busy.handle().clone()).await;
    // It cannot be waited for here.
    busy.shutdown_background();
    told
}

async fn measure_all(parts: &[String], authority: &Authority, gateway: u32, busy: tokio::runtime::Handle) -> Result<Value> {
    let (server, another) = (serve().await?, busy.spawn(serve()).await??);
    let world = World { server, tls: authority.connector(None)?, busy };
    for address in [GATEWAY, OPERATOR, SQUID, SQUID_OVER_TLS, TINYPROXY] {
        listens(address).await?;
    }
    tell(authority.connector(Some("paddock-operator"))?, &[server, another]).await?;
    ensure!(parts.iter().all(|part| PARTS.contains(&part.as_str())), "parts are {PARTS:?}");
    let mut told = serde_json::Map::new();
    for part in PARTS.iter().filter(|part| (parts.is_empty() && **part != BY_ITSELF) || parts.iter().any(|named| named == *part)) {
        let value = match *part {
            "microsecondsOfARequest" => latency(&world).await?,
            "gigabytesPerSecond" => throughput(&world, LARGE, 1e9).await?,
            "megabytesPerSecondOfAGigabit" => throughput(&world, PACED | MEDIUM, 1e6).await?,
            "connectionsPerSecond" => rate(&world).await?,
            "microsecondsOfOthers" => others::others(&world, another).await?,
            BY_ITSELF => memory_of_stuck_tunnels(&world, gateway).await?,
            _ => memory_of_idle_tunnels(&world, gateway).await?,
        };
        told.insert((*part).to_owned(), value);
    }
    Ok(told.into())
}

/// Times of a request of a few bytes on a connection that is open.
async fn latency(world: &World) -> Result<Value> {
    let mut open = Vec::new();
    for side in SIDES {
        open.push((side, world.open(side, Ipv4Addr::LOCALHOST).await?));
    }
    let mut times: BTreeMap<Side, Vec<f64>> = BTreeMap::new();
    for round in 0..REQUESTS + 100 {
        for (side, stream) in &mut open {
            let begin = Instant::now();
            request(stream, SMALL).await?;
            if round >= 100 {
                times.entry(*side).or_default().push(begin.elapsed().as_secs_f64() * 1e6);
            }
        }
    }
    Ok(told(times))
}

/// In bytes a second, divided by `unit`.
async fn throughput(world: &World, asked: u64, unit: f64) -> Result<Value> {
    let mut rates: BTreeMap<Side, Vec<f64>> = BTreeMap::new();
    for _ in 0..STREAMS {
        for side in SIDES {
            let mut stream = world.open(side, Ipv4Addr::LOCALHOST).await?;
            let begin = Instant::now();
            request(&mut stream, asked).await?;
            rates.entry(side).or_default().push((asked & !PACED) as f64 / begin.elapsed().as_secs_f64() / unit);
        }
    }
    Ok(told(rates))
}

/// Connections that are opened, asked once and closed.
async fn rate(world: &World) -> Result<Value> {
    let mut rates: BTreeMap<Side, Vec<f64>> = BTreeMap::new();
    for _ in 0..TURNS {
        for side in SIDES {
            let begin = Instant::now();
            let clients = (0..CLIENTS).map(|_| {
                let world = world.clone();
                tokio::spawn(async move {
                    let mut count = 0;
                    while begin.elapsed() < TURN {
                        let mut stream = world.open(side, Ipv4Addr::LOCALHOST).await?;
                        request(&mut stream, SMALL).await?;
                        count += 1;
                    }
                    Ok::<usize, anyhow::Error>(count)
                })
            });
            let mut count = 0;
            for client in clients.collect::<Vec<_>>() {
                count += client.await??;
            }
            rates.entry(side).or_default().push(count as f64 / begin.elapsed().as_secs_f64());
        }
    }
    Ok(told(rates))
}

/// What the gateway's process grows by, for each.
async fn memory_of_idle_tunnels(world: &World, gateway: u32) -> Result<Value> {
    let before = resident(gateway)?;
    let mut open = Vec::new();
    let limits = std::fs::read_to_string("/proc/self/limits")?;
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next()?.parse::<usize>().ok());
    let count = MOST_IDLE.min(files.context("the limit of open files")?.saturating_sub(400) / 2);
    for number in 0..count {
        let group = u8::try_from(number / OF_ONE)?;
        let mut stream = world.open(Side::Gateway, Ipv4Addr::new(127, 0, 1, group + 1)).await?;
        request(&mut stream, SMALL).await?;
        open.push(stream);
    }
    let each = resident(gateway)?.saturating_sub(before) / open.len() as u64;
    Ok(json!({ "tunnels": open.len(), "each": each }))
}

/// The same where neither side reads what the other sends: every buffer on the way is full.
async fn memory_of_stuck_tunnels(world: &World, gateway: u32) -> Result<Value> {
    let before = resident(gateway)?;
    let mut open = Vec::new();
    for number in 0..STUCK {
        let group = u8::try_from(number / OF_ONE)?;
        let mut stream = world.open(Side::Gateway, Ipv4Addr::new(127, 0, 1, group + 1)).await?;
        stream.write_all(&LARGE.to_be_bytes()).await?;
        open.push(stream);
    }
    // The server sends, and reads nothing meanwhile.
    for stream in &mut open {
        let chunk = vec![0; 64 << 10];
        while tokio::time::timeout(Duration::from_millis(100), stream.write_all(&chunk)).await.is_ok() {}
    }
    let each = resident(gateway)?.saturating_sub(before) / open.len() as u64;
    Ok(json!({ "tunnels": open.len(), "each": each }))
}

fn resident(process: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

fn told(values: BTreeMap<Side, Vec<f64>>) -> Value {
    let of = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        let at = |part: f64| (values[((values.len() - 1) as f64 * part) as usize] * 100.0).round() / 100.0;
        json!({ "p10": at(0.1), "p50": at(0.5), "p90": at(0.9) })
    };
    values.into_iter().map(|(side, values)| (format!("{side:?}").to_lowercase(), of(values))).collect()
}

/// Asks for so many bytes, and reads them.
async fn request(stream: &mut Box<dyn Stream>, bytes: u64) -> Result<()> {
    stream.write_all(&bytes.to_be_bytes()).await?;
    stream.flush().await?;
    let mut left = bytes & !PACED;
    let mut buffer = vec![0; usize::try_from(left.min(256 << 10))?];
    while left > 0 {
        let most = usize::try_from(left.min(buffer.len() as u64))?;
        let count = stream.read(&mut buffer[..most]).await?;
        ensure!(count > 0, "the stream ended {left} bytes too early");
        left -= count as u64;
    }
    Ok(())
}

impl World {
    async fn open(&self, side: Side, from: Ipv4Addr) -> Result<Box<dyn Stream>> {
        let connect = |to: SocketAddr| async move {
            // An address of one's own takes a port from everybody: only where one needs it.
            let stream = if from == Ipv4Addr::LOCALHOST {
                TcpStream::connect(to).await?
            } else {
                let socket = TcpSocket::new_v4()?;
                socket.bind(SocketAddr::from((from, 0)))?;
                socket.connect(to).await?
            };
            stream.set_nodelay(true)?;
            Ok::<TcpStream, std::io::Error>(stream)
        };
        Ok(match side {
            Side::Direct => Box::new(connect(self.server).await?),
            Side::Gateway => self.tunnel(self.tls.connect(ServerName::try_from("paddock-egress")?, connect(GATEWAY).await?).await?).await?,
            Side::Squid => self.tunnel(connect(SQUID).await?).await?,
            Side::SquidOverTls => {
                self.tunnel(self.tls.connect(ServerName::try_from("squid")?, connect(SQUID_OVER_TLS).await?).await?).await?
            }
            Side::Tinyproxy => self.tunnel(connect(TINYPROXY).await?).await?,
        })
    }

    async fn tunnel(&self, mut stream: impl Stream + 'static) -> Result<Box<dyn Stream>> {
        let to = self.server;
        let ask = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\nProxy-Authorization: Bearer {}\r\n\r\n", TOKEN.replace(' ', "-"));
        stream.write_all(ask.as_bytes()).await?;
        stream.flush().await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        ensure!(head.get(9..12) == Some(b"200"), "{}", String::from_utf8_lossy(&head));
        Ok(Box::new(stream))
    }
}

/// Answers each number with as many bytes.
async fn serve() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = socket.set_nodelay(true);
                let block = vec![7; 256 << 10];
                while let Ok(asked) = socket.read_u64().await {
                    let (begin, all) = (Instant::now(), asked & !PACED);
                    let mut left = all;
                    while left > 0 {
                        let most = left.min(block.len() as u64) as usize;
                        socket.write_all(&block[..most]).await?;
                        left -= most as u64;
                        if asked & PACED != 0 {
                            tokio::time::sleep_until((begin + Duration::from_secs_f64((all - left) as f64 / GIGABIT)).into()).await;
                        }
                    }
                }
                Ok::<(), std::io::Error>(())
            });
        }
    });
    Ok(address)
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    /// Certificate and key.
    fn issue(&self, name: &str) -> Result<(String, String)> {
        let key = KeyPair::generate()?;
        Ok((CertificateParams::new([name.to_owned()])?.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()))
    }

    fn connector(&self, name: Option<&str>) -> Result<TlsConnector> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes())?)?;
        let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let config = match name {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let (chain, key) = self.issue(name)?;
                let chain = vec![CertificateDer::from_pem_slice(chain.as_bytes())?];
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes())?)?
            }
        };
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

fn begin_gateway(program: &Path, folder: &Path, authority: &Authority) -> Result<Process> {
    let (chain, key) = authority.issue("paddock-egress")?;
    for (file, text) in [("tls.crt", &chain), ("tls.key", &key), ("ca.crt", &authority.pem)] {
        std::fs::write(folder.join(file), text)?;
    }
    let mut command = Command::new(program);
    command.args([
        "--listen",
        &GATEWAY.to_string(),
        "--operator-listen",
        &OPERATOR.to_string(),
        "--forbidden-listen",
        &FORBIDDEN.to_string(),
        "--metrics-listen",
        &METRICS.to_string(),
    ]);
    command.args(["--connections", "20000", "--certificates"]).arg(folder);
    begin(&mut command)
}

/// Each as its package starts it, with nothing in it that costs time: no cache, no log.
fn begin_proxies(root: &Path, authority: &Authority) -> Result<[Process; 2]> {
    let (chain, key) = authority.issue("squid")?;
    for (file, text) in [("squid.crt", chain), ("squid.key", key)] {
        std::fs::write(root.join(file), text)?;
    }
    let squid = format!(
        "http_port {SQUID}\nhttps_port {SQUID_OVER_TLS} tls-cert=/squid.crt tls-key=/squid.key\nhttp_access allow all\ncache deny all\naccess_log none\ncache_log /dev/null\npid_filename none\nvisible_hostname bench\nmax_filedescriptors 16384\n"
    );
    let tinyproxy = format!("Port {}\nListen {}\nMaxClients 1000\nTimeout 600\nLogLevel Critical\n", TINYPROXY.port(), TINYPROXY.ip());
    std::fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/false\nproxy:x:13:13::/:/bin/false\n")?;
    std::fs::write(root.join("etc/group"), "root:x:0:\nproxy:x:13:\n")?;
    std::fs::write(root.join("squid.conf"), squid)?;
    // Where Squid has the memory that its processes share.
    let shared = root.join("dev/shm");
    std::fs::create_dir_all(&shared)?;
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o1777))?;
    std::fs::write(root.join("tinyproxy.conf"), tinyproxy)?;
    let inside = |words: &[&str]| begin(Command::new("chroot").arg(root).args(words));
    Ok([inside(&["/usr/sbin/squid", "-N", "-f", "/squid.conf"])?, inside(&["/usr/bin/tinyproxy", "-d", "-c", "/tinyproxy.conf"])?])
}

fn begin(command: &mut Command) -> Result<Process> {
    let begun = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    Ok(Process(begun.with_context(|| format!("cannot begin {command:?}"))?))
}

async fn listens(address: SocketAddr) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(address).await.is_err() {
        ensure!(Instant::now() < until, "nobody listens at {address}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Tells the gateway as the operator what the bench's clients may reach, and that it is still there. Returns once the gateway has heard it.
async fn tell(operator: TlsConnector, servers: &[SocketAddr]) -> Result<()> {
    let stream = operator.connect(ServerName::try_from("paddock-egress")?, TcpStream::connect(OPERATOR).await?).await?;
    let (mut read, mut write) = tokio::io::split(stream);
    let pods: Vec<IpAddr> = (0..=MOST_IDLE / OF_ONE)
        .map(|group| IpAddr::from([127, 0, u8::from(group > 0), u8::try_from(group.max(1)).unwrap_or(1)]))
        .collect();
    let rule = |server: &SocketAddr| json!({ "name": "bench", "to": format!("tcp://{server}"), "allowed": [["127.0.0.1/32"]] });
    let grant = json!({
        "say": "put", "run": "run", "name": "bench/run", "token": token_text(&hash(TOKEN.replace(' ', "-").as_bytes())), "pod": pods,
        "rules": servers.iter().map(rule).collect::<Vec<_>>(),
        "denied": [], "cluster": [], "expiresIn": 3_600_000, "tunnels": 1_000_000, "bytes": u64::MAX,
    });
    let lines = format!("{}\n{grant}\n{}\n", serde_json::to_string(&Said::Begin {})?, serde_json::to_string(&Said::End {})?);
    write.write_all(lines.as_bytes()).await?;
    write.flush().await?;
    let mut answer = Vec::new();
    while !String::from_utf8_lossy(&answer).contains("\"lines\":3") {
        ensure!(read.read_buf(&mut answer).await? > 0, "the gateway did not take the grant: {}", String::from_utf8_lossy(&answer));
    }
    tokio::spawn(async move {
        let mut reports = vec![0; 64 << 10];
        while read.read(&mut reports).await.is_ok_and(|count| count > 0) {}
    });
    tokio::spawn(async move {
        let beat = serde_json::to_string(&Said::Beat {}).unwrap_or_default() + "\n";
        while write.write_all(beat.as_bytes()).await.is_ok() && write.flush().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    });
    Ok(())
}
