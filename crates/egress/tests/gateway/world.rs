//! A gateway, who tells it what is granted, and a client.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use paddock_destination::HostName;
use paddock_egress::ask::hash;
use paddock_egress::dial::Resolve;
use paddock_egress::gateway::{Connection, Gateway};
use paddock_egress::wire::{self, Report};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

pub const POD: &str = "10.9.0.7";
pub const TOKEN: &str = "the-token-of-the-run";

/// Names and what they lead to. Who asks for the silent one is told of, and waits for ever.
struct Names(HashMap<&'static str, Vec<IpAddr>>, Arc<Notify>);

pub const SILENT: &str = "silent.example.com";

impl Resolve for Names {
    fn resolve<'a>(&'a self, name: &'a HostName) -> BoxFuture<'a, Option<Vec<IpAddr>>> {
        async move {
            if name.as_str() == SILENT {
                self.1.notify_one();
                return std::future::pending().await;
            }
            self.0.get(name.as_str()).cloned()
        }
        .boxed()
    }
}

pub struct World {
    pub gateway: Arc<Gateway>,
    pub operator: Connection,
    reports: mpsc::Receiver<Report>,
    /// Of the server.
    pub port: u16,
    /// The silent name was asked for.
    pub asked: Arc<Notify>,
}

/// A gateway whose one run is granted some names, all of which lead to this server on this machine, which the administrator allows by name.
pub async fn world_of<T: Future<Output = ()> + Send + 'static>(serve: impl Fn(TcpStream) -> T + Send + 'static) -> World {
    world_with(4096, serve).await
}

/// The same with a gateway of so many connections.
pub async fn world_with<T: Future<Output = ()> + Send + 'static>(most: usize, serve: impl Fn(TcpStream) -> T + Send + 'static) -> World {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(socket));
        }
    });
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let names = HashMap::from([
        ("api.example.com", vec![ip("127.0.0.1")]),
        ("below.example.org", vec![ip("127.0.0.1")]),
        ("www.example.com", vec![ip("127.0.0.1")]),
        ("inside.example.com", vec![ip("127.0.0.1"), ip("10.0.0.1")]),
        ("metadata.example.com", vec![ip("169.254.169.254")]),
        ("mapped.example.com", vec![ip("::ffff:127.0.0.1")]),
        ("translated.example.com", vec![ip("64:ff9b::a00:1")]),
        ("of-the-cluster.example.com", vec![ip("203.0.114.7")]),
        ("empty.example.com", vec![]),
        ("deaf.example.com", vec![ip("127.0.0.2")]),
    ]);
    let (sender, reports) = mpsc::channel(64);
    let asked = Arc::new(Notify::new());
    let gateway = Arc::new(Gateway::new(Box::new(Names(names, asked.clone())), sender, most));
    let operator = gateway.connected();
    let world = World { gateway, operator, reports, port, asked };
    for line in [json!({ "say": "begin" }), world.grant(), json!({ "say": "end" })] {
        world.tell(&line);
    }
    world
}

impl World {
    /// A gateway that has just started, which knows nothing of this one.
    pub fn begun_anew(&self) -> Self {
        let (sender, reports) = mpsc::channel(1);
        let gateway = Arc::new(Gateway::new(Box::new(Names(HashMap::new(), Arc::default())), sender, 4096));
        Self { operator: self.operator, gateway, reports, port: 1, asked: Arc::default() }
    }

    pub fn grant(&self) -> Value {
        json!({
            "say": "put", "run": "run", "name": "team/run", "token": URL_SAFE_NO_PAD.encode(hash(TOKEN.as_bytes()).0), "pod": [POD],
            "rules": [
                { "name": "example", "to": format!("*.example.com:{}", self.port), "allowed": [["127.0.0.0/30"]] },
                { "name": "plain", "to": format!("http://*.example.com:{}", self.port), "allowed": [["127.0.0.0/30"]] },
                { "name": "one", "to": "below.example.org:443", "allowed": [["127.0.0.0/30"]] },
                { "name": "database", "to": format!("tcp://127.0.0.0/30:{}", self.port), "allowed": [["127.0.0.0/30"]] },
            ],
            "denied": [["denied.example.com", "ClusterSandboxPolicy/baseline"]],
            "cluster": ["203.0.114.0/24"], "expiresIn": 600_000, "tunnels": 3, "bytes": 1_000_000,
        })
    }

    pub fn tell(&self, line: &Value) {
        self.gateway.hear(self.operator, wire::read(line.to_string().as_bytes(), std::time::Instant::now()).unwrap());
    }

    pub fn connect(&self, from: &str) -> DuplexStream {
        let (client, server) = tokio::io::duplex(64 << 10);
        let counted = self.gateway.count(from.parse().unwrap()).unwrap();
        tokio::spawn(self.gateway.clone().serve(counted, server));
        client
    }

    /// Sends these bytes from the pod, and reads the head of the answer and, where it is none of a tunnel, the body.
    pub async fn say(&self, bytes: &[u8]) -> (String, DuplexStream) {
        self.say_from(POD, bytes).await
    }

    pub async fn say_from(&self, from: &str, bytes: &[u8]) -> (String, DuplexStream) {
        let mut stream = self.connect(from);
        stream.write_all(bytes).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.unwrap() > 0 {
            if !head.starts_with(b"HTTP/1.1 200") && stream.read_to_end(&mut head).await.is_ok() {
                break;
            }
        }
        (String::from_utf8(head).unwrap(), stream)
    }

    pub fn request(&self, host: &str) -> Vec<u8> {
        request(&format!("{host}:{}", self.port), TOKEN)
    }

    pub async fn report(&mut self) -> Report {
        timeout(Duration::from_secs(20), self.reports.recv()).await.unwrap().unwrap()
    }
}

pub fn request(target: &str, token: &str) -> Vec<u8> {
    format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nProxy-Authorization: Bearer {token}\r\n\r\n").into_bytes()
}

pub fn status(head: &str) -> u16 {
    head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

pub fn reason(answer: &str) -> String {
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    serde_json::from_str::<Value>(body).ok().and_then(|body| body["reason"].as_str().map(str::to_owned)).unwrap_or_default()
}
