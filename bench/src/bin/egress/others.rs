//! What others notice of somebody who keeps the gateway busy: how long their requests take on a connection that is open, and how long connections that are
//! opened and ask once, beside the load and without it, in turns.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use super::{GATEWAY, PACED, SMALL, Side, World, request};

/// Turns of each load, and how long one is, with and without the load.
const TURNS: usize = 5;
const TURN: Duration = Duration::from_secs(3);
/// Connections on which the first message of TLS comes at a byte a second, and ones on which nothing comes at all.
const SLOW: usize = 1000;
const HALF_OPEN: usize = 5000;
/// Of one address.
const OF_ONE: usize = 50;
/// Bytes of the one stream.
const STREAM: u64 = 10 << 30;
/// Requests on the open connection for each connection that is opened.
const REQUESTS: usize = 20;

/// What somebody does all the time.
#[derive(Clone, Copy, Debug)]
enum Load {
    SlowRequests,
    HalfOpen,
    /// Of a host that sends so many bytes.
    Stream(Side, u64),
}

/// Microseconds, of each that was asked.
#[derive(Default)]
struct Times {
    requests: Vec<f64>,
    connections: Vec<f64>,
}

/// `server` answers those who keep the gateway busy.
pub(crate) async fn others(world: &World, server: SocketAddr) -> Result<Value> {
    let mut told = serde_json::Map::new();
    for (name, load) in [
        ("slowRequests", Load::SlowRequests),
        ("halfOpen", Load::HalfOpen),
        ("streamOfAGigabit", Load::Stream(Side::Gateway, PACED | STREAM)),
        ("stream", Load::Stream(Side::Gateway, STREAM)),
        // What the same bytes cost others that do not go through the gateway: the machine has two cores for all of it.
        ("streamBesideTheGateway", Load::Stream(Side::Direct, STREAM)),
    ] {
        let (mut quiet, mut loaded) = (Times::default(), Times::default());
        for _ in 0..TURNS {
            look(world, &mut quiet, || false).await?;
            let mut busy = begin(&World { server, ..world.clone() }, load);
            // It is in place when it has had a moment.
            tokio::time::sleep(Duration::from_secs(1)).await;
            look(world, &mut loaded, || busy.try_join_next().is_some() && matches!(load, Load::Stream(..))).await?;
            busy.shutdown().await;
        }
        told.insert(
            name.into(),
            json!({ "request": beside(quiet.requests, loaded.requests), "connection": beside(quiet.connections, loaded.connections) }),
        );
    }
    Ok(told.into())
}

/// Asks for as long as a turn takes, or until the load is over.
async fn look(world: &World, times: &mut Times, mut is_over: impl FnMut() -> bool) -> Result<()> {
    let begin = Instant::now();
    let mut open = world.open(Side::Gateway, Ipv4Addr::LOCALHOST).await?;
    let since = |begin: Instant| begin.elapsed().as_secs_f64() * 1e6;
    while begin.elapsed() < TURN && !is_over() {
        for _ in 0..REQUESTS {
            let asked = Instant::now();
            request(&mut open, SMALL).await?;
            times.requests.push(since(asked));
        }
        let asked = Instant::now();
        let mut another = world.open(Side::Gateway, Ipv4Addr::LOCALHOST).await?;
        request(&mut another, SMALL).await?;
        times.connections.push(since(asked));
    }
    Ok(())
}

fn begin(world: &World, load: Load) -> JoinSet<()> {
    let (mut busy, on) = (JoinSet::new(), &world.busy);
    let from = |number: usize| Ipv4Addr::new(127, 0, 2, u8::try_from(number / OF_ONE + 1).unwrap_or(u8::MAX));
    match load {
        Load::SlowRequests => (0..SLOW).for_each(|number| _ = busy.spawn_on(again(move || slow(from(number))), on)),
        Load::HalfOpen => (0..HALF_OPEN).for_each(|number| _ = busy.spawn_on(again(move || half_open(from(number))), on)),
        Load::Stream(side, bytes) => {
            let world = world.clone();
            let once = async move {
                if let Ok(mut stream) = world.open(side, Ipv4Addr::new(127, 0, 1, 1)).await {
                    let _ = request(&mut stream, bytes).await;
                }
            };
            busy.spawn_on(once, on);
        }
    }
    busy
}

/// Whoever is turned away comes back.
async fn again<F: Future<Output = std::io::Result<()>>>(once: impl Fn() -> F) {
    loop {
        let _ = once().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn connect(from: Ipv4Addr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    socket.connect(GATEWAY).await
}

/// The beginning of a TLS record, a byte a second.
async fn slow(from: Ipv4Addr) -> std::io::Result<()> {
    let mut stream = connect(from).await?;
    for byte in [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc] {
        stream.write_all(&[byte]).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}

async fn half_open(from: Ipv4Addr) -> std::io::Result<()> {
    connect(from).await?.read_u8().await.map(|_| ())
}

/// The 50th and the 99th of a hundred, and what the load makes of the latter.
fn beside(quiet: Vec<f64>, loaded: Vec<f64>) -> Value {
    let (quiet, loaded) = (sorted(quiet), sorted(loaded));
    let at = |values: &[f64], part: f64| (values[((values.len() - 1) as f64 * part) as usize] * 10.0).round() / 10.0;
    let of = |values: &[f64]| json!({ "count": values.len(), "p50": at(values, 0.5), "p99": at(values, 0.99) });
    json!({ "without": of(&quiet), "with": of(&loaded), "p99Ratio": (at(&loaded, 0.99) / at(&quiet, 0.99) * 100.0).round() / 100.0 })
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}
