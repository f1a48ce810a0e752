//! One conversation with each replica of the gateway, wherever the Service has one.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::events::{Event as Told, EventType};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource as _, ResourceExt as _};
use paddock_crds::ScriptRun;
use paddock_egress::feed::{All, Granted, converse};
use paddock_egress::wire::Report;
use paddock_policy::network_limits;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use super::secrets::decided;
use super::used::News;
use super::{NAME, OPERATOR_PORT, lock};
use crate::audit::told;
use crate::context::Context;
use crate::script_run::events;
use crate::script_run::observe::policies_of;
use crate::server::hash_of;

/// How long a replica may take to answer.
const CONNECT: Duration = Duration::from_secs(3);
/// After a conversation has ended, and after more and more attempts at one.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// Reports that wait to be counted.
const REPORTS: usize = 1024;

/// The conversations, by the address of the replica.
#[derive(Default)]
pub(crate) struct Replicas {
    by_address: Mutex<BTreeMap<IpAddr, Replica>>,
}

struct Replica {
    /// Sandboxes are led to it.
    is_ready: bool,
    known: watch::Receiver<Option<Arc<All>>>,
    task: JoinHandle<()>,
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Replicas {
    /// Whether there is a replica, and every one that sandboxes are led to knows that the run is granted this.
    pub(super) fn all_know(&self, uid: &str, granted: &Arc<Granted>) -> bool {
        let replicas = lock(&self.by_address);
        let mut ready = replicas.values().filter(|replica| replica.is_ready).peekable();
        let knows = |replica: &Replica| replica.known.borrow().as_ref().and_then(|all| all.get(uid)) == Some(granted);
        ready.peek().is_some() && ready.all(knows)
    }

    fn set(&self, found: &BTreeMap<IpAddr, bool>, begin: impl Fn(IpAddr, watch::Sender<Option<Arc<All>>>) -> JoinHandle<()>) {
        let mut replicas = lock(&self.by_address);
        replicas.retain(|address, _| found.contains_key(address));
        for (address, is_ready) in found {
            let replica = replicas.entry(*address).or_insert_with(|| {
                let (sender, known) = watch::channel(None);
                Replica { is_ready: false, known, task: begin(*address, sender) }
            });
            replica.is_ready = *is_ready;
        }
    }
}

/// Addresses of pods, and whether sandboxes are led to them. Those that are ending are left alone. A pod that has an address of each family is one replica:
/// it is spoken to at one of them.
fn addresses(slices: &BTreeMap<String, EndpointSlice>) -> BTreeMap<IpAddr, bool> {
    let mut found = BTreeMap::new();
    for endpoint in slices.values().flat_map(|slice| slice.endpoints.iter().flatten()) {
        let conditions = endpoint.conditions.clone().unwrap_or_default();
        if conditions.terminating == Some(true) {
            continue;
        }
        for address in endpoint.addresses.iter().filter_map(|address| address.parse().ok()) {
            // By the API's own word, what is not said is true.
            *found.entry(address).or_default() |= conditions.ready != Some(false);
        }
    }
    if found.keys().any(IpAddr::is_ipv4) {
        found.retain(|address, _| address.is_ipv4());
    }
    found
}

/// Follows the Service, until this replica of the operator does not lead any more.
pub(super) async fn follow(context: &Arc<Context>, service: &str) {
    let (sender, reports) = mpsc::channel(REPORTS);
    tokio::join!(watch_endpoints(context, service, sender), take(context, reports));
}

async fn watch_endpoints(context: &Arc<Context>, service: &str, reports: mpsc::Sender<Report>) {
    let api: Api<EndpointSlice> = Api::namespaced(context.client.clone(), &context.settings.operator_namespace);
    let config = watcher::Config::default().labels(&format!("kubernetes.io/service-name={service}"));
    let mut stream = std::pin::pin!(watcher(api, config).default_backoff());
    let mut slices: BTreeMap<String, EndpointSlice> = BTreeMap::new();
    let mut listed: BTreeSet<String> = BTreeSet::new();
    loop {
        let name = |slice: &EndpointSlice| slice.metadata.name.clone().unwrap_or_default();
        match stream.try_next().await {
            Ok(Some(Event::Init)) => {
                listed.clear();
                continue;
            }
            Ok(Some(Event::InitApply(slice))) => {
                listed.insert(name(&slice));
                slices.insert(name(&slice), slice);
                continue;
            }
            Ok(Some(Event::InitDone)) => slices.retain(|name, _| listed.contains(name)),
            Ok(Some(Event::Apply(slice))) => _ = slices.insert(name(&slice), slice),
            Ok(Some(Event::Delete(slice))) => _ = slices.remove(&name(&slice)),
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(error = %error, "the watch of the gateway's endpoints is tried again");
                continue;
            }
        }
        let begin = |address, known| tokio::spawn(talk(context.clone(), address, known, reports.clone()));
        context.egress.replicas.set(&addresses(&slices), begin);
    }
}

/// Talks with one replica, again and again.
async fn talk(context: Arc<Context>, address: IpAddr, known: watch::Sender<Option<Arc<All>>>, reports: mpsc::Sender<Report>) {
    let (mut told, mut pause) = (String::new(), SHORTEST_PAUSE);
    loop {
        let (why, next) = match talk_once(&context, address, &known, &reports).await {
            Ok(ended) => (ended.to_string(), SHORTEST_PAUSE),
            Err(error) => (format!("{error:#}"), (pause * 2).min(LONGEST_PAUSE)),
        };
        // A replica that does not listen yet is told of once.
        if why != told {
            tracing::info!(%address, why, "no conversation with a replica of the egress gateway");
            told = why;
        }
        tokio::time::sleep(pause).await;
        pause = next;
    }
}

async fn talk_once(
    context: &Context,
    address: IpAddr,
    known: &watch::Sender<Option<Arc<All>>>,
    reports: &mpsc::Sender<Report>,
) -> anyhow::Result<paddock_egress::feed::Ended> {
    // A process that was frozen and does not lead any more must not take the place of the one that does.
    anyhow::ensure!(context.fence.is_up(), "this replica of the operator does not lead");
    let mut place = context.egress.place.subscribe();
    let trusted = place.wait_for(Option::is_some).await?.as_ref().map(|place| place.trusted.files());
    let Some(files) = trusted else { anyhow::bail!("nothing is trusted") };
    let connector = TlsConnector::from(files.of_the_operator()?);
    let connect = async {
        let socket = TcpStream::connect(SocketAddr::new(address, OPERATOR_PORT)).await?;
        socket.set_nodelay(true)?;
        connector.connect(ServerName::try_from(NAME).map_err(std::io::Error::other)?, socket).await
    };
    let stream = tokio::time::timeout(CONNECT, connect).await??;
    tracing::info!(%address, "talks with a replica of the egress gateway");
    Ok(converse(stream, context.egress.wanted.subscribe(), known, reports).await)
}

/// What became of requests: a line of the log for each, and the sums of each tenant.
async fn take(context: &Arc<Context>, mut reports: mpsc::Receiver<Report>) {
    let mut lines = Lines::default();
    while let Some(report) = reports.recv().await {
        let (namespace, run) = report.name.split_once('/').unwrap_or_default();
        count(&report, (namespace, run), context);
        context.metrics.connected(namespace, &format!("{:?}", report.outcome), report.sent, report.received);
        match lines.of(&report) {
            Line::Told => {}
            Line::Last => {
                tracing::info!(
                    run,
                    namespace,
                    uid = report.run,
                    "more connections of this run are counted, and told where they lead elsewhere"
                );
                context.audit.tell_of_counting(&report, context.now());
            }
            Line::Counted => continue,
        }
        let to = host(&report, context);
        context.audit.tell_of_connection(&report, &to, context.now());
        tracing::info!(
            run,
            namespace,
            uid = report.run,
            to,
            rule = report.rule,
            outcome = format!("{:?}", report.outcome),
            address = report.address.map(|address| address.to_string()),
            sent = report.sent,
            received = report.received,
            milliseconds = report.milliseconds,
            "a run has connected to something, or tried to"
        );
    }
}

/// Where a connection led, as far as that may be told.
fn host(report: &Report, context: &Context) -> String {
    let (namespace, name) = report.name.split_once('/').unwrap_or_default();
    let guarded = context.run(namespace, name);
    let run = guarded.as_ref().and_then(|guarded| guarded.0.as_ref().ok()).map(|watched| &watched.run);
    let status = run.filter(|run| run.uid().as_deref() == Some(&report.run)).and_then(|run| run.status.as_ref());
    let at_gateway = status.and_then(|status| context.egress.told_of(&report.run, decided(status).into_iter()));
    told::host(report, status, told::Given { copies: context.given(&report.run), at_gateway }).to_owned()
}

/// Counts what a run has used. Its next pass ends a run that has more refusals than its policies put up with; one that goes on asking is not looked
/// at each time.
fn count(report: &Report, (namespace, run): (&str, &str), context: &Arc<Context>) {
    let refused = match context.egress.count(report) {
        Some(News::Refused(refused)) => refused,
        Some(News::Spent) => return tell_of_spent((namespace, run), report.run.clone(), context),
        None => return,
    };
    let Some(policy) = lock(&context.egress.live).get(&report.run).map(|live| live.policy.clone()) else { return };
    let limits = network_limits(&policies_of(namespace, &policy, context).taking_part);
    let is_time = |most: u64| refused == most + 1 || (refused > most && refused.is_power_of_two());
    if limits.refused.is_some_and(|(most, _)| is_time(most)) {
        context.wake_run(namespace, run);
    }
}

/// An Event of the run. Its script sees that its connections end, and may go on.
fn tell_of_spent((namespace, name): (&str, &str), uid: String, context: &Arc<Context>) {
    let reference = ObjectReference {
        api_version: Some(ScriptRun::api_version(&()).into_owned()),
        kind: Some(ScriptRun::kind(&()).into_owned()),
        namespace: Some(namespace.to_owned()),
        name: Some(name.to_owned()),
        uid: Some(uid),
        ..ObjectReference::default()
    };
    let note = "the run has sent and received as much as limits.maxNetworkBytes lets it at a replica of the egress gateway".to_owned();
    let event =
        Told { type_: EventType::Warning, reason: "NetworkBytesSpent".into(), note: Some(note), action: "Connect".into(), secondary: None };
    let context = context.clone();
    tokio::spawn(async move { events::send(&event, &reference, &context).await });
}

/// Which reports are told one by one: a run may ask thousands of times in a second. What leads where none has led before is told for longer, so that
/// nobody hides one connection behind many.
#[derive(Default)]
struct Lines {
    by_run: HashMap<String, OfRun>,
}

#[derive(Default)]
struct OfRun {
    reports: u32,
    /// Hashes of where they led, and of what became of them.
    kinds: HashSet<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    Told,
    /// The last one that is told whatever it is.
    Last,
    Counted,
}

/// Reports of one run that are told.
const LINES: u32 = 200;
/// Kinds that are remembered of one run.
const KINDS: usize = 200;
/// Runs whose reports are remembered.
const REMEMBERED: usize = 4096;

impl Lines {
    fn of(&mut self, report: &Report) -> Line {
        if self.by_run.len() >= REMEMBERED && !self.by_run.contains_key(&report.run) {
            self.by_run.clear();
        }
        let of_run = self.by_run.entry(report.run.clone()).or_default();
        of_run.reports = of_run.reports.saturating_add(1);
        let is_new = of_run.kinds.len() < KINDS && of_run.kinds.insert(hash_of(&(&report.to, report.outcome)));
        match of_run.reports.cmp(&LINES) {
            Ordering::Less => Line::Told,
            Ordering::Equal => Line::Last,
            Ordering::Greater if is_new => Line::Told,
            Ordering::Greater => Line::Counted,
        }
    }
}

#[cfg(test)]
mod tests {
    use paddock_egress::wire::Outcome;
    use serde_json::json;

    use super::*;

    fn report(run: &str, to: &str) -> Report {
        let (run, name, to, rule) = (run.to_owned(), "team/run".to_owned(), to.to_owned(), String::new());
        Report { run, name, to, rule, outcome: Outcome::Closed, address: None, sent: 0, received: 0, milliseconds: 0 }
    }

    #[test]
    fn a_run_that_asks_without_end_has_so_many_lines() {
        let mut lines = Lines::default();
        let told: Vec<Line> = (0..1000).map(|_| lines.of(&report("a", "x:443"))).filter(|line| *line != Line::Counted).collect();
        assert_eq!((told.len(), told.last()), (200, Some(&Line::Last)));
        assert_eq!(lines.of(&report("a", "y:443")), Line::Told, "what leads elsewhere is not hidden");
        assert_eq!(lines.of(&report("a", "y:443")), Line::Counted);
        assert_eq!(lines.of(&report("b", "x:443")), Line::Told);
        let told = (0..1000).filter(|number| lines.of(&report("a", &number.to_string())) != Line::Counted).count();
        assert_eq!(told, KINDS - 2);
        for run in 0..10_000 {
            lines.of(&report(&run.to_string(), "x:443"));
        }
        assert!(lines.by_run.len() <= REMEMBERED);
    }

    #[test]
    fn replicas_are_where_endpoints_are_and_do_not_end() {
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": { "name": "a" }, "addressType": "IPv4",
            "endpoints": [
                { "addresses": ["10.1.0.1"], "conditions": { "ready": true, "serving": true, "terminating": false } },
                { "addresses": ["10.1.0.2"], "conditions": { "ready": false, "serving": false, "terminating": false } },
                { "addresses": ["10.1.0.3"], "conditions": { "ready": false, "serving": true, "terminating": true } },
                { "addresses": ["10.1.0.4"] },
            ],
        }))
        .unwrap();
        let found = addresses(&[("a".to_owned(), slice)].into());
        let expected = [("10.1.0.1", true), ("10.1.0.2", false), ("10.1.0.4", true)];
        assert_eq!(found, expected.map(|(address, is_ready)| (address.parse().unwrap(), is_ready)).into());
    }
}
