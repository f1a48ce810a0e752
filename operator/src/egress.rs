//! Networks of runs. What each run is granted now is a value, made from the policies as they are and from the runs that live; every replica of
//! the egress gateway is told it, and no script with a network starts before all of them have heard of it.

pub(crate) mod authority;
pub(crate) mod granted;
pub(crate) mod replicas;
pub(crate) mod secrets;
pub(crate) mod used;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use paddock_crds::ScriptRun;
use paddock_egress::feed::{All, Granted};
use paddock_egress::wire::Report;
use paddock_policy::SecretKey;
use paddock_protocol::{Egress as JobEgress, Gate};
use tokio::sync::{Notify, watch};

use crate::context::{Context, is_active};
use crate::error::{Error, within};
use crate::sandbox_namespace::keep_network_policies;
use crate::script_run::observe::policies_of;
use crate::script_run::pod_facts::PodSeen;
use authority::Trusted;
use granted::{Live, ToTell, to_tell, told};
use replicas::Replicas;
use secrets::{Needs, ToldToRuns, Values};
use used::{News, Used, UsedByRuns};

/// The name in the gateway's certificate.
pub(crate) const NAME: &str = "paddock-egress";
/// Where sandboxes connect to.
pub(crate) const PORT: u16 = 8443;
/// Where the operator does.
const OPERATOR_PORT: u16 = 8444;
/// Where nobody may from a sandbox.
const FORBIDDEN_PORT: u16 = 8445;
/// How often the Service and the certificates are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// A new leader waits this long at most until it has seen all runs. A gateway that is told nothing for 5 s cuts everything by itself.
const SETTLING: Duration = Duration::from_secs(3);
const SETTLED_EVERY: Duration = Duration::from_millis(20);
/// How often the network policies around running sandboxes are looked at.
const GUARD_EVERY: Duration = Duration::from_secs(5);
/// After what went wrong.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// What is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Installed {
    /// The Service of the gateway, in the operator's namespace.
    pub(crate) service: String,
    /// Pods, Services and nodes.
    pub(crate) cluster_nets: Vec<IpNet>,
}

/// What is known of the gateway and told to it.
pub(crate) struct Egress {
    installed: Option<Installed>,
    place: watch::Sender<Option<Place>>,
    live: Mutex<BTreeMap<String, Live>>,
    changed: Notify,
    /// Runs that a pass has seen since this process leads.
    shown: Mutex<HashSet<String>>,
    wanted: watch::Sender<Arc<All>>,
    replicas: Replicas,
    /// What runs have used, until they are over.
    used: Mutex<UsedByRuns>,
    /// Secrets that the gateway adds for runs that live, and what is known of them.
    needs: Mutex<Needs>,
    values: Mutex<Values>,
    /// Some of them were not read yet.
    missing: Notify,
    told_to_runs: Mutex<ToldToRuns>,
}

/// Where the gateway is, and how it is known.
#[derive(Clone, PartialEq, Eq)]
struct Place {
    /// Of each family that the Service has; the first is the one that sandboxes connect to.
    addresses: Vec<IpAddr>,
    trusted: Trusted,
}

/// How far the gateway knows of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    /// It has a network, and every replica knows what it is granted; or it has none.
    Yes,
    /// Some replica does not know yet.
    NotYet,
}

impl Egress {
    pub(crate) fn new(installed: Option<Installed>) -> Self {
        Self {
            installed,
            place: watch::Sender::new(None),
            live: Mutex::default(),
            shown: Mutex::default(),
            changed: Notify::new(),
            wanted: watch::Sender::new(Arc::default()),
            replicas: Replicas::default(),
            used: Mutex::default(),
            needs: Mutex::default(),
            values: Mutex::default(),
            missing: Notify::new(),
            told_to_runs: Mutex::default(),
        }
    }

    /// For a job that has a network.
    pub(crate) fn of_a_job(&self) -> Option<JobEgress> {
        let place = self.place.borrow();
        let place = place.as_ref()?;
        let gate =
            |address: &IpAddr| Gate { allowed: SocketAddr::new(*address, PORT), forbidden: SocketAddr::new(*address, FORBIDDEN_PORT) };
        Some(JobEgress { gates: place.addresses.iter().map(gate).collect(), name: NAME.into(), authority: place.trusted.bundle.clone() })
    }

    /// Takes in what a pass saw of a run, and says how far the gateway knows of it.
    pub(crate) fn show(&self, run: &ScriptRun, pod: &PodSeen, context: &Context) -> Bound {
        let uid = run.metadata.uid.clone().unwrap_or_default();
        if self.installed.is_some() {
            let mut shown = lock(&self.shown);
            // Of those that are over nobody asks.
            if is_active(run) {
                shown.insert(uid.clone())
            } else {
                lock(&self.used).forget(&uid);
                lock(&self.told_to_runs).forget(&uid);
                shown.remove(&uid)
            };
        }
        let now = match to_tell(run, pod, &context.settings, Instant::now()) {
            ToTell::This(live) => live,
            other => {
                self.withdraw(&uid);
                return if other == ToTell::NothingYet { Bound::NotYet } else { Bound::Yes };
            }
        };
        let mut live = lock(&self.live);
        if live.get(&uid).is_none_or(|before| !before.is_the_same(&now)) {
            live.insert(uid.clone(), now);
            self.changed.notify_one();
        }
        drop(live);
        let wanted = self.wanted.borrow().get(&uid).cloned();
        let is_bound = wanted.is_some_and(|wanted| self.replicas.all_know(&uid, &wanted));
        if is_bound { Bound::Yes } else { Bound::NotYet }
    }

    /// The run is gone.
    pub(crate) fn hide(&self, uid: &str) {
        // First, so that nothing is remembered of it again.
        self.withdraw(uid);
        let mut shown = lock(&self.shown);
        shown.remove(uid);
        lock(&self.used).forget(uid);
        lock(&self.told_to_runs).forget(uid);
    }

    /// Counts what a run has used. Of one that is over, or of which nothing is known, a report comes too late.
    fn count(&self, report: &Report) -> Option<News> {
        let shown = lock(&self.shown);
        // Under the lock by which runs go, so that none comes back.
        shown.contains(&report.run).then(|| lock(&self.used).take(report)).flatten()
    }

    /// What the gateway was told for a run of these Secrets. `None` where it is not known of one of them.
    pub(crate) fn told_of(&self, uid: &str, secrets: impl Iterator<Item = SecretKey>) -> Option<Vec<Vec<u8>>> {
        let told = lock(&self.told_to_runs);
        let mut all = Vec::new();
        for secret in secrets {
            let values = told.of(uid, &secret);
            if values.is_empty() {
                return None;
            }
            all.extend(values.iter().cloned());
        }
        Some(all)
    }

    /// What a run has used so far.
    pub(crate) fn used(&self, uid: &str) -> Option<Used> {
        lock(&self.used).of(uid).cloned()
    }

    fn withdraw(&self, uid: &str) {
        if lock(&self.live).remove(uid).is_some() {
            self.changed.notify_one();
        }
    }

    /// Whether every run that may be granted something was seen, and what it is granted is known: who begins to tell before that cuts the tunnels of
    /// those that were not.
    fn has_seen_all(&self, context: &Context) -> bool {
        let shown = lock(&self.shown);
        let are_shown = context.active_runs().is_some_and(|active| active.iter().all(|uid| shown.contains(uid)));
        let wanted = self.wanted.borrow();
        are_shown && lock(&self.live).keys().all(|uid| wanted.contains_key(uid))
    }

    /// What all runs are granted now.
    fn compute(&self, context: &Context, nets: &[IpNet]) -> Computed {
        let before = self.wanted.borrow().clone();
        let values = lock(&self.values);
        let mut computed = Computed::default();
        for (uid, live) in lock(&self.live).iter() {
            let policies = policies_of(&live.namespace, &live.policy, context);
            let token = context.results.sealing_key.token_of_run(uid);
            let mut own = Needs::new();
            let told = told((uid, live), &policies, &token, nets, (&values, &mut own));
            let is_complete = own.keys().all(|place| values.contains_key(place));
            let had = own.keys().filter(|place| live.secrets.contains(&place.secret));
            let had = had.filter_map(|place| Some((uid.clone(), place.secret.clone(), values.get(place)?.clone()?)));
            let had: Vec<_> = had.collect();
            computed.is_missing |= !is_complete;
            computed.needs.append(&mut own);
            let known = before.get(uid);
            // A script does not start before what it needs was read. One that runs goes on with all else.
            if known.is_none() && !is_complete && !live.has_started {
                continue;
            }
            let new = Granted { told, expires: live.expires };
            let known = known.filter(|known| ***known == new).cloned();
            computed.all.insert(uid.clone(), known.unwrap_or_else(|| Arc::new(new)));
            computed.told.extend(had);
        }
        computed
    }

    /// Has what is missing read, and what is told covered: before it is told.
    fn note(&self, Computed { needs, is_missing, told, .. }: Computed) {
        *lock(&self.needs) = needs;
        if is_missing {
            self.missing.notify_one();
        }
        let mut told_to_runs = lock(&self.told_to_runs);
        for (uid, secret, value) in told {
            told_to_runs.remember(&uid, &secret, &value);
        }
    }
}

/// What comes of the policies and the runs as they are.
#[derive(Default)]
struct Computed {
    all: All,
    /// Secrets that the gateway adds for them.
    needs: Needs,
    /// Some of these were not read yet.
    is_missing: bool,
    /// Values that runs are told, by UID.
    told: Vec<(String, SecretKey, Vec<u8>)>,
}

/// Finds the gateway before any run is decided on: until then each that asks for a network would be refused.
pub(crate) async fn prepare(context: &Context) {
    let Some(installed) = &context.egress.installed else { return };
    while let Err(error) = find_once(context, installed).await {
        tracing::warn!(error = format!("{error:#}"), "the egress gateway could not be looked at");
        tokio::time::sleep(RETRY_EVERY).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the gateway told, for as long as this replica leads. Without a gateway it waits for ever.
pub(crate) async fn run(context: Arc<Context>, changes: watch::Receiver<()>) {
    let Some(installed) = context.egress.installed.clone() else { return std::future::pending().await };
    let tell = async {
        let begin = Instant::now();
        while !context.egress.has_seen_all(&context) && begin.elapsed() < SETTLING {
            tokio::time::sleep(SETTLED_EVERY).await;
        }
        replicas::follow(&context, &installed.service).await;
    };
    tokio::join!(find(&context, &installed), grant(&context, &installed, changes), tell, guard(&context), secrets::keep(&context));
}

/// Puts the network policies around sandboxes with a network right, wherever there are any.
async fn guard(context: &Context) {
    loop {
        tokio::time::sleep(GUARD_EVERY).await;
        let tenants: BTreeSet<String> = lock(&context.egress.live).values().map(|live| live.namespace.clone()).collect();
        for tenant in tenants {
            match keep_network_policies(&tenant, context).await {
                Ok(false) => {}
                Ok(true) => {
                    tracing::warn!(namespace = tenant, "a network policy around running sandboxes had been changed, and was put right");
                }
                Err(error) => {
                    let error = error.chain();
                    tracing::warn!(namespace = tenant, error, "the network policies around running sandboxes cannot be looked at");
                }
            }
        }
    }
}

/// Computes what is granted whenever a run or a policy changes.
async fn grant(context: &Context, installed: &Installed, mut changes: watch::Receiver<()>) {
    let egress = &context.egress;
    loop {
        let mut computed = egress.compute(context, &installed.cluster_nets);
        let all = std::mem::take(&mut computed.all);
        egress.note(computed);
        egress.wanted.send_if_modified(|wanted| {
            let differs = **wanted != all;
            if differs {
                *wanted = Arc::new(all);
            }
            differs
        });
        tokio::select! {
            () = egress.changed.notified() => {}
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}

/// Looks for the gateway's Service, and keeps its certificates.
async fn find(context: &Context, installed: &Installed) {
    loop {
        let pause = match find_once(context, installed).await {
            Ok(()) => LOOK_EVERY,
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "the egress gateway could not be looked at");
                RETRY_EVERY
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn find_once(context: &Context, installed: &Installed) -> anyhow::Result<()> {
    let place = look(context, installed).await?;
    context.egress.place.send_if_modified(|known| {
        let differs = *known != place;
        *known = place;
        differs
    });
    Ok(())
}

async fn look(context: &Context, installed: &Installed) -> anyhow::Result<Option<Place>> {
    const WHAT: &str = "the Service of the egress gateway";
    let namespace = &context.settings.operator_namespace;
    let known = context.egress.place.borrow().as_ref().map(|place| place.trusted.clone());
    let trusted = authority::keep(&context.client, namespace, known, context.now()).await?;
    let api: Api<Service> = Api::namespaced(context.client.clone(), namespace);
    let service = within(WHAT, api.get_opt(&installed.service)).await?.map_err(Error::read(WHAT))?;
    let addresses: Vec<IpAddr> = service.as_ref().map(addresses).unwrap_or_default();
    Ok((!addresses.is_empty()).then_some(Place { addresses, trusted }))
}

/// Those that a Service has, the first of the family that it prefers.
pub(crate) fn addresses(service: &Service) -> Vec<IpAddr> {
    let all = service.spec.iter().flat_map(|spec| spec.cluster_ips.iter().flatten());
    all.filter_map(|address| address.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use paddock_egress::wire::Outcome;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_service_has_an_address_of_each_of_its_families_or_none() {
        let of = |spec: serde_json::Value| addresses(&serde_json::from_value(json!({ "spec": spec })).unwrap());
        let both = of(json!({ "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"] }));
        assert_eq!(both, ["10.0.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
        assert_eq!(of(json!({ "clusterIP": "None", "clusterIPs": ["None"] })), Vec::<IpAddr>::new());
        assert_eq!(of(json!({})), Vec::<IpAddr>::new());
    }

    #[test]
    fn a_report_of_a_run_that_is_over_leaves_nothing_behind() {
        let egress = Egress::new(None);
        let report = Report {
            run: "uid".into(),
            name: "team/run".into(),
            to: "x.example.com:443".into(),
            rule: "rule".into(),
            outcome: Outcome::NotGranted,
            address: None,
            sent: 0,
            received: 0,
            milliseconds: 0,
        };
        assert_eq!((egress.count(&report), egress.used("uid")), (None, None));
        lock(&egress.shown).insert("uid".into());
        assert_eq!(egress.count(&report), Some(News::Refused(1)));
        assert!(egress.used("uid").is_some());
        egress.hide("uid");
        assert_eq!((egress.count(&report), egress.used("uid")), (None, None));
    }
}
