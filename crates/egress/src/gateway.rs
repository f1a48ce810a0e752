//! A connection of a sandbox, from its first byte to its last.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioIo, TokioTimer};
use paddock_destination::{Addresses, Authority, Host};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use crate::ask::{self, Refusal};
use crate::carry::{Carried, carry};
use crate::connections::Connections;
use crate::dial::{Resolve, dial};
use crate::forward::{self, Ended, for_the_host};
use crate::grants::{Grants, Message, NoGrant, Protocol, Verdict};
use crate::hello::{self, server_name};
use crate::https::Https;
use crate::live::{Live, NoTunnel, Tunnel};
use crate::metrics::{Counters, Load};
use crate::wire::{Outcome, Report};

/// For each of: the TLS handshake, the head of the request, the ClientHello.
pub const FIRST_BYTES: Duration = Duration::from_secs(5);
/// A tunnel on which nothing moves for so long is closed.
pub const IDLE: Duration = Duration::from_secs(300);
/// A head that the runner lets through has 16 KiB, and the token comes to it.
const HEAD_BYTES: usize = 17 << 10;
/// A hundred, and the token.
const MOST_HEADERS: usize = 101;
/// Of a request for `http://`, and of its answer, between what reads it and what counts it.
const AT_ONCE: usize = 8 << 10;
/// Such requests are at most this part of all connections: by the sizes of its buffers, one that is stuck in both directions holds 340 KiB, or 400 where
/// the gateway speaks TLS with the host; a tunnel holds 116.
const PART_OF_REQUESTS: usize = 8;

/// What all connections share.
pub struct Gateway {
    told: Mutex<ToldBy>,
    live: Arc<Live>,
    resolver: Box<dyn Resolve>,
    reports: mpsc::Sender<Report>,
    connections: Mutex<Connections>,
    /// Those of them that are requests for `http://`.
    requests: Mutex<Connections>,
    counters: Counters,
}

/// What is granted, and by which connection of the operator it was told.
#[derive(Default)]
struct ToldBy {
    grants: Grants,
    connection: Connection,
}

/// A connection of the operator. Of several, the one that was made last counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connection(u64);

/// What the gateway says, or the host.
type Answer = Either<Full<Bytes>, Incoming>;

/// A connection that counts for its address until it is dropped.
pub struct Counted {
    gateway: Arc<Gateway>,
    peer: IpAddr,
    among: fn(&Gateway) -> &Mutex<Connections>,
}

/// Ends the connection of the script, whatever of an answer is still on its way. Told from the other side by [`oneshot::Sender::closed`] that it has ended.
type Over = oneshot::Sender<()>;

/// What was asked for and granted.
struct Granted {
    run: String,
    name: String,
    /// What is dialled.
    to: Authority,
    /// What was asked for, as reports have it.
    destination: String,
    rule: String,
    protocol: Protocol,
    addresses: Addresses,
    /// How the gateway speaks with it for the script, where it does.
    https: Option<Arc<Https>>,
    tunnel: Tunnel,
}

impl Gateway {
    /// With at most so many connections. Reports that nobody takes are dropped.
    pub fn new(resolver: Box<dyn Resolve>, reports: mpsc::Sender<Report>, most: usize) -> Self {
        let connections = Mutex::new(Connections::new(most));
        let requests = Mutex::new(Connections::new(most.div_ceil(PART_OF_REQUESTS)));
        Self { told: Mutex::default(), live: Arc::default(), resolver, reports, connections, requests, counters: Counters::default() }
    }

    /// The operator has connected. Until it has told all grants, nothing is granted.
    pub fn connected(&self) -> Connection {
        let mut told = lock(&self.told);
        told.connection.0 += 1;
        told.grants.disconnected();
        told.connection
    }

    /// The operator has said something. An operator whose place another has taken is not heard: it may be wrong by now.
    pub fn hear(&self, from: Connection, message: Message) {
        let mut told = lock(&self.told);
        if told.connection != from {
            return;
        }
        // Whoever is not there any more has ended; whose grant is another goes on with what it has used.
        let have_ended = matches!(message, Message::Remove(_) | Message::End);
        // Under the same lock as a tunnel is opened: none is opened by what does not count any more.
        for run in told.grants.hear(message, Instant::now()) {
            if have_ended { self.live.forget(&run) } else { self.live.cut(&run) }
        }
    }

    /// This connection has ended.
    pub fn disconnected(&self, connection: Connection) {
        let mut told = lock(&self.told);
        if told.connection == connection {
            told.grants.disconnected();
        }
    }

    /// Cuts what has expired, and everything where nobody says any more what is granted. To be called several times in a second.
    pub fn tick(&self) {
        let (told, now) = (lock(&self.told), Instant::now());
        if told.grants.is_stale(now) {
            self.live.cut_all();
        }
        for run in told.grants.expired(now) {
            self.live.cut(&run);
        }
    }

    /// Open tunnels.
    pub fn tunnels(&self) -> usize {
        self.live.count()
    }

    /// A connection has not become TLS in time.
    pub(crate) fn not_tls(&self) {
        self.counters.not_tls.inc();
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(crate) fn load(&self) -> Load {
        let (connections, now) = (lock(&self.connections).total(), Instant::now());
        let told = lock(&self.told);
        Load { connections, tunnels: self.tunnels(), runs: told.grants.runs(), is_told: told.grants.are_told(now) }
    }

    /// Counts a connection, before anything of it is read. `None`: this address has too many, or all have.
    pub fn count(self: &Arc<Self>, peer: IpAddr) -> Option<Counted> {
        let counted = self.count_among(peer, |gateway| &gateway.connections);
        if counted.is_none() {
            self.counters.turned_away.inc();
        }
        counted
    }

    fn count_among(self: &Arc<Self>, peer: IpAddr, among: fn(&Self) -> &Mutex<Connections>) -> Option<Counted> {
        lock(among(self)).admit(peer).then(|| Counted { gateway: self.clone(), peer, among })
    }

    /// Answers the one request of a connection, on which TLS has been spoken already, and carries what follows.
    pub async fn serve(self: Arc<Self>, counted: Counted, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let counted = Arc::new(counted);
        let (over, is_over) = oneshot::channel();
        let over = Mutex::new(Some(over));
        let answer = service_fn(|request| {
            let (gateway, counted, over) = (self.clone(), counted.clone(), lock(&over).take());
            async move { Ok::<_, Infallible>(gateway.answer(request, counted, over).await) }
        });
        let mut http = http1::Builder::new();
        // What is queued instead of copied keeps all that it was read along with.
        http.writev(false);
        http.timer(TokioTimer::new()).header_read_timeout(FIRST_BYTES).max_buf_size(HEAD_BYTES).max_headers(MOST_HEADERS).keep_alive(false);
        let is_over = async {
            // Of a tunnel nobody tells.
            if is_over.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        // How it ends is told by the tunnel, and of a client that does not speak HTTP there is nothing to tell. What is cut must not look whole.
        tokio::select! {
            biased;
            () = is_over => {}
            _ = http.serve_connection(TokioIo::new(stream), answer).with_upgrades() => {}
        }
    }

    async fn answer(self: Arc<Self>, mut request: Request<Incoming>, counted: Arc<Counted>, over: Option<Over>) -> Response<Answer> {
        let began = Instant::now();
        let upgrade = hyper::upgrade::on(&mut request);
        let (head, body) = request.into_parts();
        let (granted, there, address) = match self.connect(&head, counted.peer, began).await {
            Ok(connected) => connected,
            Err(refusal) => {
                // hyper leaves the connection of a CONNECT open whatever the answer is.
                tokio::spawn(timeout(FIRST_BYTES, async move {
                    if let Ok(mut upgraded) = upgrade.await.map(TokioIo::new) {
                        let _ = upgraded.shutdown().await;
                    }
                    drop(counted);
                }));
                return self.refused(&refusal);
            }
        };
        if granted.protocol == Protocol::Http {
            let (request, among) = (Request::from_parts(head, body), self.count_among(counted.peer, |gateway| &gateway.requests));
            let (Some(among), Some(over)) = (among, over) else {
                self.report(&granted, began, Some(address), Outcome::TooManyTunnels, Carried::default());
                return self.refused(&Refusal::TooMany);
            };
            let Some(https) = granted.https.clone() else {
                return self.ask_the_host(request, (granted, there, address), began, ([counted, Arc::new(among)], over)).await;
            };
            return match self.speak_tls(&https, &granted, there, began).await {
                Ok(there) => self.ask_the_host(request, (granted, there, address), began, ([counted, Arc::new(among)], over)).await,
                Err(refusal) => self.refused(&refusal),
            };
        }
        self.counters.connected();
        tokio::spawn(async move {
            let (outcome, carried) = match upgrade.await {
                Ok(upgraded) => through(TokioIo::new(upgraded), there, &granted).await,
                Err(_) => (Outcome::Closed, Carried::default()),
            };
            self.report(&granted, began, Some(address), outcome, carried);
            drop(counted);
        });
        Response::new(Either::Left(Full::default()))
    }

    /// The answer of the host to a request for `http://`, which is carried on after this has returned.
    async fn ask_the_host(
        self: Arc<Self>,
        request: Request<Incoming>,
        (granted, there, address): (Granted, impl AsyncRead + AsyncWrite + Unpin + Send + 'static, IpAddr),
        began: Instant,
        (counted, over): ([Arc<Counted>; 2], Over),
    ) -> Response<Answer> {
        let https = granted.https.clone();
        let request = for_the_host(request, &granted.to, https.as_deref());
        let ended = Ended::default();
        let (ours, theirs) = tokio::io::duplex(AT_ONCE);
        let there = ended.told_by(there);
        let gateway = self.clone();
        tokio::spawn(async move {
            let (outcome, carried) = request_through(theirs, there, &granted, over).await;
            gateway.report(&granted, began, Some(address), outcome, carried);
            drop(counted);
        });
        match forward::ask(ended.needed_by(ours), request).await {
            Some(mut answer) => {
                self.counters.connected();
                if let Some(https) = https {
                    https.cover(answer.headers_mut());
                }
                answer.map(Either::Right)
            }
            None => self.refused(&Refusal::NoAnswer),
        }
    }

    async fn speak_tls(&self, https: &Https, granted: &Granted, there: TcpStream, began: Instant) -> Result<TlsStream<TcpStream>, Refusal> {
        let mut dialling = Dialling { gateway: self, granted, began, is_over: false };
        let connected = https.connect(&granted.to, there).await;
        dialling.is_over = true;
        connected.inspect_err(|refusal| self.report(granted, began, None, outcome(refusal), Carried::default()))
    }

    async fn connect(&self, head: &http::request::Parts, peer: IpAddr, began: Instant) -> Result<(Granted, TcpStream, IpAddr), Refusal> {
        let granted = self.granted(head, peer, began)?;
        // hyper drops this future when the client goes away meanwhile: names were looked up all the same.
        let dialled = {
            let mut dialling = Dialling { gateway: self, granted: &granted, began, is_over: false };
            let begin = Instant::now();
            let dialled = dial(&granted.to, &granted.addresses, self.resolver.as_ref()).await;
            self.counters.dialled(begin.elapsed());
            dialling.is_over = true;
            dialled
        };
        match dialled {
            Ok((there, address)) => Ok((granted, there, address)),
            Err(refusal) => {
                self.report(&granted, began, None, outcome(&refusal), Carried::default());
                Err(refusal)
            }
        }
    }

    /// Decides, and counts the tunnel in the same moment.
    fn granted(&self, head: &http::request::Parts, peer: IpAddr, now: Instant) -> Result<Granted, Refusal> {
        let ask = ask::read(head)?;
        let told = lock(&self.told);
        let grant = told.grants.of(&ask.token, peer, now).map_err(|no| {
            if let NoGrant::OtherPod { run } = &no {
                tracing::warn!(%peer, %run, asked = ask.destination(), "a pod has shown the token of another run");
            }
            Refusal::Grant(no)
        })?;
        let (rule, protocol, addresses, https) = match grant.decide(&ask.to, ask.way) {
            Verdict::Granted { rule, protocol, addresses, https } => (rule, protocol, addresses, https),
            Verdict::Refused { rule, ask: what } => {
                let report = Report::refused((&grant.run, &grant.name), &ask.destination(), &rule, Outcome::NotGranted);
                self.tell(report);
                return Err(Refusal::NotGranted { rule, ask: what });
            }
        };
        if https.as_ref().is_some_and(|https| https.lacks_a_value()) {
            let report = Report::refused((&grant.run, &grant.name), &ask.destination(), &rule, Outcome::SecretUnusable);
            self.tell(report);
            return Err(Refusal::SecretUnusable);
        }
        let tunnel = self.live.open(&grant.run, grant.budget).map_err(|no| {
            let (refusal, outcome) = match no {
                NoTunnel::TooMany => (Refusal::TooMany, Outcome::TooManyTunnels),
                NoTunnel::Spent => (Refusal::BudgetSpent, Outcome::BudgetSpent),
            };
            self.tell(Report::refused((&grant.run, &grant.name), &ask.destination(), &rule, outcome));
            refusal
        })?;
        Ok(Granted {
            run: grant.run.clone(),
            name: grant.name.clone(),
            destination: ask.destination(),
            to: Authority { port: https.as_ref().map_or(ask.to.port, |https| https.port), host: ask.to.host },
            rule,
            protocol,
            addresses,
            https,
            tunnel,
        })
    }

    /// To the operator, if it is there to hear.
    fn tell(&self, report: Report) {
        if self.reports.try_send(report).is_err() {
            self.counters.reports_dropped.inc();
        }
    }

    fn refused(&self, refusal: &Refusal) -> Response<Answer> {
        self.counters.refused(refusal);
        refused(refusal)
    }

    fn report(&self, granted: &Granted, began: Instant, address: Option<IpAddr>, outcome: Outcome, carried: Carried) {
        let milliseconds = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let of = Report::refused((&granted.run, &granted.name), &granted.destination, &granted.rule, outcome);
        self.counters.carried(carried);
        self.tell(Report { address, sent: carried.sent, received: carried.received, milliseconds, ..of });
    }
}

/// What was granted and is being dialled. Where nobody waits for that any more, it is told as closed.
struct Dialling<'a> {
    gateway: &'a Gateway,
    granted: &'a Granted,
    began: Instant,
    is_over: bool,
}

impl Drop for Dialling<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.gateway.report(self.granted, self.began, None, Outcome::Closed, Carried::default());
        }
    }
}

impl Report {
    /// Of a request for which nothing was dialled.
    fn refused((run, name): (&str, &str), to: &str, rule: &str, outcome: Outcome) -> Self {
        let (run, name, to, rule) = (run.to_owned(), name.to_owned(), to.to_owned(), rule.to_owned());
        Self { run, name, to, rule, outcome, address: None, sent: 0, received: 0, milliseconds: 0 }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        lock((self.among)(&self.gateway)).ended(self.peer);
    }
}

/// Carries a request and its answer. The tunnel counts until the script has taken all of it, and its connection ends with the tunnel.
async fn request_through(
    script: impl AsyncRead + AsyncWrite,
    there: impl AsyncRead + AsyncWrite,
    granted: &Granted,
    mut over: Over,
) -> (Outcome, Carried) {
    let (mut outcome, carried) = carry(script, there, Vec::new(), &granted.tunnel, IDLE).await;
    if outcome == Outcome::Closed {
        outcome = tokio::select! {
            () = over.closed() => Outcome::Closed,
            () = granted.tunnel.is_cut() => Outcome::Cut,
            () = tokio::time::sleep(IDLE) => Outcome::Idle,
        };
    }
    let _ = over.send(());
    (outcome, carried)
}

/// Reads what the script says first, where that must be TLS for the host that it asked for, and carries.
async fn through(mut script: TokioIo<Upgraded>, there: TcpStream, granted: &Granted) -> (Outcome, Carried) {
    let first = match (granted.protocol, &granted.to.host) {
        (Protocol::Tls, Host::Name(name)) => {
            let hello = async {
                tokio::select! {
                    biased;
                    () = granted.tunnel.is_cut() => Err(Outcome::Cut),
                    hello = timeout(FIRST_BYTES, read_hello(&mut script)) => hello.ok().flatten().ok_or(Outcome::NotItsHost),
                }
            };
            match hello.await {
                Ok((first, named)) if named == *name => first,
                Ok(_) => return (Outcome::NotItsHost, Carried::default()),
                Err(outcome) => return (outcome, Carried::default()),
            }
        }
        // A rule for names leads to no address.
        (Protocol::Tls, Host::Address(_)) => return (Outcome::NotItsHost, Carried::default()),
        // No tunnel.
        (Protocol::Http, _) => return (Outcome::NotItsHost, Carried::default()),
        (Protocol::Tcp, _) => Vec::new(),
    };
    carry(script, there, first, &granted.tunnel, IDLE).await
}

/// The ClientHello, and the name that it asks for.
async fn read_hello(script: &mut TokioIo<Upgraded>) -> Option<(Vec<u8>, paddock_destination::HostName)> {
    let mut first = Vec::with_capacity(1 << 10);
    loop {
        if script.take((hello::LONGEST - first.len()) as u64).read_buf(&mut first).await.ok()? == 0 {
            return None;
        }
        if let Some(name) = server_name(&first).ok()? {
            return Some((first, name));
        }
    }
}

fn outcome(refusal: &Refusal) -> Outcome {
    match refusal {
        Refusal::Address(_) => Outcome::AddressRefused,
        Refusal::NotResolved => Outcome::NotResolved,
        Refusal::NotConnected | Refusal::NoAnswer => Outcome::NotConnected,
        Refusal::Tls(_) => Outcome::TlsFailed,
        Refusal::SecretUnusable => Outcome::SecretUnusable,
        Refusal::TooMany => Outcome::TooManyTunnels,
        Refusal::BudgetSpent => Outcome::BudgetSpent,
        Refusal::NotConnect | Refusal::Target(_) | Refusal::NoToken | Refusal::Grant(_) | Refusal::NotGranted { .. } => Outcome::NotGranted,
    }
}

fn refused(refusal: &Refusal) -> Response<Answer> {
    let mut response = Response::new(Either::Left(Full::new(Bytes::from(refusal.body()))));
    *response.status_mut() = refusal.status();
    // Most clients show the first line of an answer to CONNECT, and no body.
    response.extensions_mut().insert(hyper::ext::ReasonPhrase::from_static(refusal.reason().as_bytes()));
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    if refusal.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
        headers.insert(http::header::PROXY_AUTHENTICATE, http::HeaderValue::from_static("Bearer"));
    }
    response
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
