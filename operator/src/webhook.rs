//! Stamps by a mutating webhook, for clusters that serve no MutatingAdmissionPolicy. Every replica serves it; the leader keeps its certificate.

mod connections;
pub(crate) mod rotation;
pub(crate) mod stamp;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{AcquireError, Notify, Semaphore, SemaphorePermit, oneshot};
use tokio_rustls::TlsAcceptor;

use crate::error::{Error, within};
use crate::names::{MANAGED_BY, MANAGER};
use connections::{Admitted, Connections, Number};
use rotation::{Act, Certificate, Certificates};
use stamp::{Stamp, answer};

/// The Secret with the certificate that the leader makes.
pub(crate) const SECRET: &str = "paddock-webhook";
/// The configuration of the chart, into which the leader writes what API servers are to trust.
const CONFIGURATION: &str = "paddock-stamp";
/// The Service of the chart.
const SERVICE: &str = "paddock-webhook";
/// How often a replica looks for a certificate, and the leader for what is to be done with it.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// An object has 3 MiB at most on its way into the API server, and a review of an update has two.
const LARGEST_REVIEW: usize = 8 << 20;
/// What is no larger is read at once. With all connections these are 32 MiB.
const SMALL_REVIEW: usize = 64 << 10;
/// Larger ones have their turn, one after the other: what is made of one may take ten times its bytes. An API server does not wait for longer than 5 s.
const LARGE_AT_ONCE: usize = 1;
const TURN: Duration = Duration::from_secs(4);
/// So long a review may take to come.
const BODY: Duration = Duration::from_secs(1);
/// So long a connection may be there, its handshake included, before its first review is.
const FIRST: Duration = Duration::from_secs(10);
/// An API server closes a connection that it does not use after 90 s. It must be the one who does: a request that meets a connection that is closed
/// from here is lost.
const IDLE: Duration = Duration::from_secs(300);

/// Where the certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The leader makes it, for so long.
    Own(SignedDuration),
    /// Somebody else, such as cert-manager, keeps this Secret and what API servers trust.
    Other(String),
}

impl Source {
    fn secret(&self) -> &str {
        match self {
            Self::Own(_) => SECRET,
            Self::Other(name) => name,
        }
    }
}

/// The certificate that is served. Without one nobody is.
#[derive(Clone, Default)]
struct Served(Arc<RwLock<Option<Arc<ServerConfig>>>>);

/// Serves until the process ends.
pub(crate) async fn serve(address: SocketAddr, client: Client, namespace: String, source: Source) -> Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let served = Served::default();
    tokio::spawn(follow(served.clone(), client, namespace, source));
    accept(listener, &served).await
}

/// Takes the certificate that there is, whenever it is another.
async fn follow(served: Served, client: Client, namespace: String, source: Source) {
    let api: Api<Secret> = Api::namespaced(client, &namespace);
    let mut seen = None;
    loop {
        match read(&api, source.secret()).await {
            Ok(Some((_, Certificates { current: Some(current), .. }))) if seen.as_ref() != Some(&current) => match config(&current) {
                Ok(config) => {
                    *served.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(config));
                    tracing::info!("the webhook serves another certificate");
                    seen = Some(current);
                }
                Err(error) => tracing::warn!(error = format!("{error:#}"), "the webhook's certificate cannot be used"),
            },
            Ok(_) => {}
            Err(error) => tracing::warn!(error = error.chain(), "cannot get the webhook's certificate"),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn config(certificate: &Certificate) -> Result<ServerConfig> {
    let chain = CertificateDer::pem_slice_iter(certificate.chain.as_bytes()).collect::<Result<Vec<_>, _>>().context("the certificate")?;
    let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).context("the key")?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?.with_no_client_auth();
    builder.with_single_cert(chain, key).context("certificate and key")
}

type Read = Option<(Secret, Certificates)>;

async fn read(api: &Api<Secret>, name: &str) -> Result<Read, Error> {
    const WHAT: &str = "the webhook's certificate";
    let secret = within(WHAT, api.get_opt(name)).await?.map_err(Error::read(WHAT))?;
    Ok(secret.map(|secret| {
        let certificates = Certificates::of(secret.data.as_ref().unwrap_or(&std::collections::BTreeMap::new()));
        (secret, certificates)
    }))
}

async fn accept(listener: TcpListener, served: &Served) -> Result<()> {
    let open = Open::default();
    let of_all = Arc::new(Semaphore::new(LARGE_AT_ONCE));
    loop {
        // A connection that broke before it was accepted is nobody's trouble; a process without descriptors gets some back.
        let Ok((socket, peer)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let config = served.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        let (Some(config), Some(mut turn)) = (config, open.take(peer.ip())) else { continue };
        let large = Large { of_one: turn.large.clone(), of_all: of_all.clone() };
        tokio::spawn(async move {
            tokio::select! {
                () = converse(socket, config, large) => {}
                _ = &mut turn.evicted => {}
            }
        });
    }
}

/// One connection, until it ends or has been of no use for too long.
async fn converse(socket: TcpStream, config: Arc<ServerConfig>, large: Large) {
    let asked = Arc::new(Notify::new());
    let router = router(&large, &asked);
    let serve = async {
        let Ok(stream) = TlsAcceptor::from(config).accept(socket).await else { return };
        let mut server = hyper::server::conn::http1::Builder::new();
        server.timer(TokioTimer::new()).header_read_timeout(IDLE);
        let _ = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).await;
    };
    let mut serve = std::pin::pin!(serve);
    // An API server connects when it has something to ask.
    tokio::select! {
        () = &mut serve => return,
        () = asked.notified() => {}
        () = tokio::time::sleep(FIRST) => return,
    }
    serve.await;
}

/// The turns of large reviews: of one address, and then of all.
#[derive(Clone)]
struct Large {
    of_one: Arc<Semaphore>,
    of_all: Arc<Semaphore>,
}

/// The open connections, each with a way to close it, and the turns of their addresses.
#[derive(Clone, Default)]
struct Open(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    connections: Connections,
    evict: HashMap<Number, oneshot::Sender<()>>,
    large: HashMap<IpAddr, Weak<Semaphore>>,
}

impl Open {
    fn take(&self, peer: IpAddr) -> Option<Turn> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = match open.connections.admit(peer) {
            Admitted::Yes(number) => number,
            Admitted::For(number, evicted) => {
                open.evict.remove(&evicted).map(|evict| evict.send(()));
                number
            }
            Admitted::No => return None,
        };
        let (evict, evicted) = oneshot::channel();
        open.evict.insert(number, evict);
        let known = open.large.get(&peer).and_then(Weak::upgrade);
        let large = known.unwrap_or_else(|| Arc::new(Semaphore::new(LARGE_AT_ONCE)));
        open.large.insert(peer, Arc::downgrade(&large));
        Some(Turn { open: self.clone(), peer, number, evicted, large })
    }
}

/// A connection, counted for as long as it is open.
struct Turn {
    open: Open,
    peer: IpAddr,
    number: Number,
    evicted: oneshot::Receiver<()>,
    large: Arc<Semaphore>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut open = self.open.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.connections.ended(self.peer, self.number);
        open.evict.remove(&self.number);
        // This one still holds its own.
        open.large.retain(|peer, turns| turns.strong_count() > usize::from(*peer == self.peer));
    }
}

fn router(large: &Large, asked: &Arc<Notify>) -> Router {
    let mut router = Router::new();
    for (stamp, path) in Stamp::ALL {
        let (large, asked) = (large.clone(), asked.clone());
        router = router.route(
            path,
            post(move |head: HeaderMap, body: Body| async move {
                let review = match read_review(&head, body, &large).await {
                    Ok(review) => review,
                    Err((code, why)) => return refused(code, why),
                };
                asked.notify_one();
                told(stamp, &review.bytes)
            }),
        );
    }
    router
}

/// A review, and for as long as it is in memory the turn that a large one needs.
struct ReadReview<'a> {
    bytes: Bytes,
    _turn: Option<[SemaphorePermit<'a>; 2]>,
}

async fn read_review<'a>(head: &HeaderMap, body: Body, large: &'a Large) -> Result<ReadReview<'a>, (StatusCode, String)> {
    let length = head.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    let (turn, longest) = if length.is_some_and(|length| length <= SMALL_REVIEW) {
        (None, SMALL_REVIEW)
    } else {
        let turn = large.turn().await.ok_or_else(|| (StatusCode::SERVICE_UNAVAILABLE, "other large reviews come first".to_owned()))?;
        (Some(turn), LARGEST_REVIEW)
    };
    let read = tokio::time::timeout(BODY, axum::body::to_bytes(body, longest)).await;
    let read = read.map_err(|_| (StatusCode::REQUEST_TIMEOUT, "the review did not come in time".to_owned()))?;
    let bytes = read.map_err(|error| (StatusCode::PAYLOAD_TOO_LARGE, format!("the review cannot be read: {error}")))?;
    Ok(ReadReview { bytes, _turn: turn })
}

impl Large {
    /// Before a byte of it is read, so that what is in memory at once is bounded, whoever sends it. `None` where it is not its turn in time.
    async fn turn(&self) -> Option<[SemaphorePermit<'_>; 2]> {
        let turn = async { Ok::<_, AcquireError>([self.of_one.acquire().await?, self.of_all.acquire().await?]) };
        tokio::time::timeout(TURN, turn).await.ok()?.ok()
    }
}

fn refused(code: StatusCode, why: String) -> (StatusCode, [(axum::http::HeaderName, &'static str); 1], String) {
    (code, [(CONTENT_TYPE, "text/plain")], why)
}

fn told(stamp: Stamp, review: &[u8]) -> (StatusCode, [(axum::http::HeaderName, &'static str); 1], String) {
    match answer(stamp, review) {
        Ok(answer) => (StatusCode::OK, [(CONTENT_TYPE, "application/json")], answer.to_string()),
        Err(error) => refused(StatusCode::BAD_REQUEST, format!("this is no AdmissionReview: {error}")),
    }
}

/// Keeps a certificate and what API servers trust. Only the leader may do this.
pub(crate) async fn keep(client: Client, namespace: String, lifetime: SignedDuration) {
    loop {
        if let Err(error) = look(&client, &namespace, lifetime, Timestamp::now()).await {
            tracing::warn!(error = format!("{error:#}"), "the webhook's certificate could not be kept");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn look(client: &Client, namespace: &str, lifetime: SignedDuration, now: Timestamp) -> Result<()> {
    const WHAT: &str = "the webhook's certificate";
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let (secret, mut certificates) = read(&api, SECRET).await?.map_or((None, Certificates::default()), |(secret, all)| (Some(secret), all));
    // What nobody can serve is as if it were not there; nor can it be written into what API servers trust.
    let is_usable = |certificate: &Certificate| config(certificate).is_ok();
    certificates.current = certificates.current.filter(is_usable);
    certificates.next = certificates.next.filter(is_usable);
    let act = rotation::act(&certificates, lifetime, now);
    if act != Act::Keep {
        let made = matches!(act, Act::Make | Act::Announce).then(|| make(namespace, lifetime, now)).transpose()?;
        let certificates = certificates.after(act, made);
        // What is trusted first, and what is served then: the other way around one would be served that nobody trusts.
        trust(client, &certificates).await?;
        // The type of a Secret that cert-manager has left behind cannot be changed.
        let (metadata, type_) =
            secret.as_ref().map_or_else(|| (metadata(), Some("Opaque".into())), |secret| (secret.metadata.clone(), secret.type_.clone()));
        let whole = Secret { metadata, type_, data: Some(certificates.fields()), ..Secret::default() };
        match secret {
            Some(_) => within(WHAT, api.replace(SECRET, &PostParams::default(), &whole)).await?.map_err(Error::write(WHAT))?,
            None => within(WHAT, api.create(&PostParams::default(), &whole)).await?.map_err(Error::write(WHAT))?,
        };
        tracing::info!(act = format!("{act:?}"), "the webhook's certificate");
        return Ok(());
    }
    trust(client, &certificates).await
}

fn metadata() -> ObjectMeta {
    ObjectMeta { name: Some(SECRET.into()), labels: Some([(MANAGED_BY.to_owned(), MANAGER.to_owned())].into()), ..ObjectMeta::default() }
}

/// Clocks differ, and the next certificate may be late: each is valid for some days more on both sides.
pub(crate) fn set_validity(parameters: &mut rcgen::CertificateParams, lifetime: SignedDuration, now: Timestamp) -> Result<()> {
    let days = SignedDuration::from_hours(48);
    let date = |time: Timestamp| {
        let date = time.to_zoned(jiff::tz::TimeZone::UTC).date();
        rcgen::date_time_ymd(date.year().into(), date.month().unsigned_abs(), date.day().unsigned_abs())
    };
    parameters.not_before = date(now.checked_sub(days)?);
    parameters.not_after = date(now.checked_add(lifetime + days)?);
    Ok(())
}

fn make(namespace: &str, lifetime: SignedDuration, now: Timestamp) -> Result<Certificate> {
    let mut parameters = rcgen::CertificateParams::new(vec![format!("{SERVICE}.{namespace}.svc")])?;
    set_validity(&mut parameters, lifetime, now)?;
    parameters.distinguished_name.push(rcgen::DnType::CommonName, SERVICE);
    let key = rcgen::KeyPair::generate()?;
    let certificate = parameters.self_signed(&key)?;
    Ok(Certificate { chain: certificate.pem(), key: key.serialize_pem(), made: now })
}

/// Has the API servers trust these, if they do not yet.
async fn trust(client: &Client, certificates: &Certificates) -> Result<()> {
    const WHAT: &str = "the webhook's configuration";
    let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let configuration = within(WHAT, api.get(CONFIGURATION)).await?.map_err(Error::read(WHAT))?;
    let bundle = ByteString(certificates.bundle().into_bytes());
    let webhooks = configuration.webhooks.unwrap_or_default();
    if webhooks.iter().all(|webhook| webhook.client_config.ca_bundle.as_ref() == Some(&bundle)) {
        return Ok(());
    }
    let webhooks: Vec<_> = webhooks.iter().map(|webhook| json!({ "name": webhook.name, "clientConfig": { "caBundle": bundle } })).collect();
    let patch = Patch::Strategic(json!({ "webhooks": webhooks }));
    within(WHAT, api.patch(CONFIGURATION, &PatchParams::default(), &patch)).await?.map_err(Error::write(WHAT))?;
    Ok(())
}

#[cfg(test)]
mod tests;
