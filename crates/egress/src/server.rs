//! The ports of the gateway: one for sandboxes, one for the operator.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::carry::AT_ONCE;
use crate::gateway::{Connection, FIRST_BYTES, Gateway};
use crate::grants::STALE_AFTER;
use crate::wire::{self, Answer, LONGEST_LINE, Report};

/// Connections that speak TLS to the operator's port and have not shown a certificate yet.
const MOST_STRANGERS: usize = 16;

/// A configuration that may be exchanged while connections go on.
#[derive(Clone)]
pub struct Served(Arc<RwLock<Arc<ServerConfig>>>);

impl Served {
    /// Serves this until another is set.
    pub fn new(config: Arc<ServerConfig>) -> Self {
        Self(Arc::new(RwLock::new(config)))
    }

    /// From the next connection on.
    pub fn set(&self, config: Arc<ServerConfig>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = config;
    }

    fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// Serves sandboxes until the process ends.
pub async fn serve_sandboxes(listener: TcpListener, served: Served, gateway: Arc<Gateway>) {
    loop {
        let (socket, peer) = accept(&listener).await;
        // An address that has too many is told nothing: it would cost what it asks for.
        let Some(counted) = gateway.count(peer.ip().to_canonical()) else { continue };
        let (acceptor, gateway) = (served.acceptor(), gateway.clone());
        tokio::spawn(async move {
            let _ = socket.set_nodelay(true);
            let accepted = acceptor.accept_with(socket, |tls| tls.set_buffer_limit(Some(AT_ONCE)));
            match timeout(FIRST_BYTES, accepted).await {
                Ok(Ok(stream)) => gateway.serve(counted, stream).await,
                _ => gateway.not_tls(),
            }
        });
    }
}

/// Listens to the operator until the process ends. Whoever connects last with a certificate is the operator: a new leader takes the old one's place.
pub async fn serve_the_operator(listener: TcpListener, served: Served, gateway: Arc<Gateway>, reports: mpsc::Receiver<Report>) {
    let reports = Arc::new(Mutex::new(reports));
    let strangers = Arc::new(tokio::sync::Semaphore::new(MOST_STRANGERS));
    let latest = watch::Sender::new(());
    loop {
        let (socket, _) = accept(&listener).await;
        let Ok(stranger) = strangers.clone().try_acquire_owned() else { continue };
        let (acceptor, gateway, reports, latest) = (served.acceptor(), gateway.clone(), reports.clone(), latest.clone());
        tokio::spawn(async move {
            let Ok(Ok(stream)) = timeout(FIRST_BYTES, acceptor.accept(socket)).await else { return };
            drop(stranger);
            let connection = gateway.connected();
            latest.send_replace(());
            let mut another = latest.subscribe();
            let (read, write) = tokio::io::split(stream);
            let (heard, lines) = watch::channel(0);
            tokio::select! {
                () = listen(read, connection, &gateway, &heard) => {}
                () = tell(write, &reports, lines) => {}
                _ = another.changed() => {}
            }
            gateway.disconnected(connection);
        });
    }
}

async fn accept(listener: &TcpListener) -> (TcpStream, std::net::SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            // A connection that broke before it was accepted is nobody's trouble; a process without descriptors gets some back.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Takes in lines until one is not understood, or nothing comes for too long.
async fn listen(read: impl tokio::io::AsyncRead + Unpin, connection: Connection, gateway: &Gateway, heard: &watch::Sender<u64>) {
    let mut read = BufReader::new(read);
    let mut line = Vec::new();
    loop {
        line.clear();
        let one = (&mut read).take(LONGEST_LINE as u64).read_until(b'\n', &mut line).await.is_ok_and(|count| count > 0);
        let Some((b'\n', text)) = line.split_last().filter(|_| one) else {
            if line.len() >= LONGEST_LINE {
                tracing::error!("the operator said something that is too long");
            }
            return;
        };
        match wire::read(text, Instant::now()) {
            Ok(message) => {
                gateway.hear(connection, message);
                heard.send_modify(|lines| *lines += 1);
            }
            Err(error) => {
                tracing::error!(%error, "the operator said something that is not understood");
                return;
            }
        }
    }
}

/// Tells how far the operator was heard, and reports, for as long as somebody listens.
async fn tell(mut write: impl tokio::io::AsyncWrite + Unpin, reports: &Mutex<mpsc::Receiver<Report>>, mut lines: watch::Receiver<u64>) {
    let mut reports = reports.lock().await;
    loop {
        let answer = tokio::select! {
            Ok(()) = lines.changed() => Answer::Heard { lines: *lines.borrow_and_update() },
            Some(report) = reports.recv() => Answer::Report(report),
            else => return,
        };
        let Ok(mut line) = serde_json::to_vec(&answer) else { continue };
        line.push(b'\n');
        let told = async {
            write.write_all(&line).await?;
            write.flush().await
        };
        if !matches!(timeout(STALE_AFTER, told).await, Ok(Ok(()))) {
            return;
        }
    }
}
