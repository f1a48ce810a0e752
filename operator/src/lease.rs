//! Leader election on a `Lease`, with a fence and a hand-over wait.
//!
//! A leader stops writing when it could not renew for [`RENEW_LIMIT`], which is shorter than the [`DURATION`] after which another may take
//! over. The other one then waits out the longest request that the old one may still have under way. The name on the lease is of one process:
//! a container that was started a second time must not pass for the first, which may live on where a node lost track of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use uuid::Uuid;

use crate::config::REQUEST_LIMIT;
use crate::error::{code, within};

const DURATION: Duration = Duration::from_secs(15);
const RENEW_LIMIT: Duration = Duration::from_secs(10);
const RENEW_EVERY: Duration = Duration::from_secs(3);
const RETRY_EVERY: Duration = Duration::from_secs(2);

/// Whether this replica may write. It goes down by itself as time passes, also while the process is frozen.
#[derive(Clone, Debug)]
pub(crate) struct Fence {
    epoch: Instant,
    up_until_millis: Arc<AtomicU64>,
    /// Seconds since 1970.
    up_since: Arc<AtomicI64>,
}

impl Fence {
    pub(crate) fn new() -> Self {
        Self { epoch: Instant::now(), up_until_millis: Arc::default(), up_since: Arc::default() }
    }

    /// Whether writes are allowed right now.
    pub(crate) fn is_up(&self) -> bool {
        self.since_epoch(Instant::now()) < self.up_until_millis.load(Ordering::Acquire)
    }

    /// Since when writes are allowed without a gap; when they last began to be, if they are not now. A second early at most.
    pub(crate) fn up_since(&self) -> Timestamp {
        Timestamp::from_second(self.up_since.load(Ordering::Acquire)).unwrap_or_default()
    }

    /// For tests of what only a leader does.
    #[cfg(test)]
    pub(crate) fn raise_now(&self) {
        self.raise(Instant::now());
    }

    fn raise(&self, renewed_at: Instant) {
        if !self.is_up() {
            self.up_since.store(Timestamp::now().as_second(), Ordering::Release);
        }
        self.up_until_millis.store(self.since_epoch(renewed_at + RENEW_LIMIT), Ordering::Release);
    }

    fn lower(&self) {
        self.up_until_millis.store(0, Ordering::Release);
    }

    fn since_epoch(&self, instant: Instant) -> u64 {
        u64::try_from(instant.saturating_duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX)
    }
}

/// What a look at the lease tells a replica that wants it.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    /// It is free: nobody held it, or the holder gave it back after its last request.
    Free,
    /// The holder has not renewed it for its duration: it may have requests under way.
    Expired,
    /// Somebody holds it.
    Held,
    /// This process has written it already, and then could not go on.
    Own,
}

impl Turn {
    /// How long requests of the last holder may still be under way. It stopped sending any [`RENEW_LIMIT`] after its last renewal.
    fn wait(&self, unchanged_for: Duration) -> Duration {
        match self {
            Self::Free => Duration::ZERO,
            Self::Expired => (RENEW_LIMIT + REQUEST_LIMIT).saturating_sub(unchanged_for),
            Self::Held | Self::Own => RENEW_LIMIT + REQUEST_LIMIT,
        }
    }
}

/// Times are those of this replica's own clock since it first saw the lease in this state: clocks of machines differ.
fn turn(lease: &LeaseSpec, identity: &str, unchanged_for: Duration) -> Turn {
    let holder = lease.holder_identity.as_deref().unwrap_or_default();
    let duration = Duration::from_secs(u64::try_from(lease.lease_duration_seconds.unwrap_or(0)).unwrap_or(0)).max(DURATION);
    match holder {
        "" => Turn::Free,
        holder if holder == identity => Turn::Own,
        _ if unchanged_for >= duration => Turn::Expired,
        _ => Turn::Held,
    }
}

/// A lease held by this replica.
pub(crate) struct Leadership {
    api: Api<Lease>,
    name: String,
    identity: String,
    fence: Fence,
    lease: Lease,
    /// When the last write that succeeded was begun. The lease is this replica's for [`RENEW_LIMIT`] from then.
    renewed: Instant,
}

/// Why a write of the lease did not succeed.
#[derive(Debug)]
enum Unwritten {
    /// Another replica holds it: there is nothing to try again.
    Taken,
    /// The API server is away, slow or not ready: it may succeed the next time.
    Failed(anyhow::Error),
}

impl From<Unwritten> for anyhow::Error {
    fn from(unwritten: Unwritten) -> Self {
        match unwritten {
            Unwritten::Taken => anyhow!("another replica took the lease"),
            Unwritten::Failed(error) => error,
        }
    }
}

/// Waits until this replica leads and the old leader's requests are over. `pod` is the name of its pod.
pub(crate) async fn acquire(client: Client, namespace: &str, name: &str, pod: &str, fence: Fence) -> Leadership {
    let identity = format!("{pod}_{}", Uuid::new_v4());
    let api: Api<Lease> = Api::namespaced(client, namespace);
    let mut seen: Option<(String, Instant)> = None;
    loop {
        let now = Instant::now();
        let lease = match within("the lease", api.get_opt(name)).await {
            Ok(Ok(Some(lease))) => lease,
            Ok(Ok(None)) => {
                let empty =
                    Lease { metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() }, spec: Some(LeaseSpec::default()) };
                if let Ok(Err(error)) = within("the lease", api.create(&PostParams::default(), &empty)).await
                    && code(&error) != Some(409)
                {
                    tracing::warn!(error = %error, "cannot create the lease");
                    tokio::time::sleep(RETRY_EVERY).await;
                }
                continue;
            }
            Ok(Err(error)) => {
                tracing::warn!(error = %error, "cannot read the lease");
                tokio::time::sleep(RETRY_EVERY).await;
                continue;
            }
            Err(error) => {
                tracing::warn!(error = %error, "cannot read the lease");
                continue;
            }
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let since = match &seen {
            Some((known, since)) if *known == version => *since,
            _ => {
                seen = Some((version, now));
                now
            }
        };
        let unchanged_for = now.duration_since(since);
        let turn = turn(&lease.spec.clone().unwrap_or_default(), &identity, unchanged_for);
        if turn == Turn::Held {
            tokio::time::sleep(RETRY_EVERY).await;
            continue;
        }
        let mut leadership =
            Leadership { api: api.clone(), name: name.into(), identity: identity.clone(), fence: fence.clone(), lease, renewed: now };
        match leadership.take(turn.wait(unchanged_for)).await {
            Ok(()) => {
                tracing::info!(identity, "leading");
                return leadership;
            }
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "cannot take the lease");
                tokio::time::sleep(RETRY_EVERY).await;
            }
        }
    }
}

impl Leadership {
    /// Writes this replica's name on the lease, waits until no request of the last holder can be under way, and raises the fence.
    async fn take(&mut self, wait: Duration) -> Result<()> {
        self.write(true).await?;
        if !wait.is_zero() {
            tracing::info!(seconds = wait.as_secs(), "waiting for the requests of the last leader to end");
            self.hold_for(wait).await?;
        }
        self.fence.raise(self.renewed);
        Ok(())
    }

    /// Renews until another replica has the lease. `leads` hears whether writes are allowed: they are not while no renewal succeeds, and are
    /// again after the next one, since nobody else can have led meanwhile.
    pub(crate) async fn keep(&mut self, leads: impl Fn(bool)) -> anyhow::Error {
        loop {
            tokio::time::sleep(RENEW_EVERY).await;
            if let Err(error) = self.renew().await {
                return error.context("the lease is lost");
            }
            self.fence.raise(self.renewed);
            leads(self.fence.is_up());
        }
    }

    /// Gives the lease back, so that the next leader need not wait. Call it when no request is under way any more.
    pub(crate) async fn release(mut self) {
        self.fence.lower();
        self.identity.clear();
        if let Err(unwritten) = self.write(false).await {
            tracing::warn!(error = format!("{:#}", anyhow::Error::from(unwritten)), "cannot give the lease back");
        }
    }

    async fn hold_for(&mut self, wait: Duration) -> Result<()> {
        let end = Instant::now() + wait;
        while Instant::now() < end {
            tokio::time::sleep(RENEW_EVERY.min(end.saturating_duration_since(Instant::now()))).await;
            self.renew().await?;
        }
        Ok(())
    }

    /// Renews the lease. A renewal that fails is borne: only another replica that took the lease is an error.
    async fn renew(&mut self) -> Result<()> {
        match self.write(false).await {
            Ok(()) => Ok(()),
            Err(Unwritten::Failed(error)) => {
                tracing::warn!(error = format!("{error:#}"), "cannot renew the lease");
                Ok(())
            }
            Err(taken @ Unwritten::Taken) => Err(taken.into()),
        }
    }

    /// Replaces the lease; the resourceVersion makes sure that nobody else did.
    async fn write(&mut self, taking: bool) -> Result<(), Unwritten> {
        let begin = Instant::now();
        let now = MicroTime(Timestamp::now());
        let spec = self.lease.spec.get_or_insert_default();
        spec.holder_identity = Some(self.identity.clone());
        spec.lease_duration_seconds = i32::try_from(DURATION.as_secs()).ok();
        spec.renew_time = Some(now.clone());
        if taking {
            spec.acquire_time = Some(now);
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0) + 1);
        }
        match tokio::time::timeout(RENEW_EVERY, self.api.replace(&self.name, &PostParams::default(), &self.lease)).await {
            Ok(Ok(lease)) => {
                self.lease = lease;
                self.renewed = begin;
                Ok(())
            }
            Ok(Err(error)) if code(&error) == Some(409) => Err(self.changed().await),
            Ok(Err(error)) => Err(Unwritten::Failed(anyhow::Error::from(error).context("cannot write the lease"))),
            Err(_) => Err(Unwritten::Failed(anyhow!("no answer in time"))),
        }
    }

    /// Looks who changed the lease.
    async fn changed(&mut self) -> Unwritten {
        let current = match tokio::time::timeout(RENEW_EVERY, self.api.get(&self.name)).await {
            Ok(Ok(current)) => current,
            Ok(Err(error)) => return Unwritten::Failed(anyhow::Error::from(error).context("cannot read the lease")),
            Err(_) => return Unwritten::Failed(anyhow!("no answer in time")),
        };
        let holder = current.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
        if holder != Some(self.identity.as_str()) {
            self.fence.lower();
            return Unwritten::Taken;
        }
        // An earlier write of this replica's own arrived after it was given up.
        self.lease = current;
        Unwritten::Failed(anyhow!("the lease changed"))
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;
    use crate::fake_api::{Exchange, Fake, client, expect};

    const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/paddock-system/leases/paddock";

    fn lease(holder: &str) -> Value {
        json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": { "name": "paddock" }, "spec": { "holderIdentity": holder } })
    }

    /// A lease that was renewed so long ago, before an API server that answers so.
    fn held(ago: Duration, exchanges: Vec<Exchange>) -> (Leadership, Fake) {
        let (client, fake) = client(exchanges);
        let fence = Fence::new();
        let renewed = Instant::now().checked_sub(ago).expect("a clock that is older");
        fence.raise(renewed);
        let lease = serde_json::from_value(lease("me")).expect("a lease");
        let api = Api::namespaced(client, "paddock-system");
        (Leadership { api, name: "paddock".into(), identity: "me".into(), fence, lease, renewed }, fake)
    }

    #[tokio::test]
    async fn an_api_server_that_is_not_ready_ends_neither_a_leadership_nor_the_wait_for_one() {
        let away = || expect(Method::PUT, PATH, 403, json!("not yet allowed"));
        let (mut leadership, fake) = held(RENEW_LIMIT, vec![away(), away(), expect(Method::PUT, PATH, 200, lease("me"))]);
        leadership.hold_for(Duration::from_millis(1)).await.expect("it goes on");
        leadership.renew().await.expect("it goes on");
        leadership.fence.raise(leadership.renewed);
        assert!(!leadership.fence.is_up(), "what failed renews nothing");
        leadership.fence.up_since.store(0, Ordering::Release);
        leadership.renew().await.expect("renewed");
        leadership.fence.raise(leadership.renewed);
        assert!(leadership.fence.is_up());
        assert!(leadership.fence.up_since() > Timestamp::UNIX_EPOCH, "the gap is known");
        fake.finished().await;
    }

    #[tokio::test]
    async fn a_lease_that_another_replica_took_is_given_up_at_once() {
        let taken = vec![expect(Method::PUT, PATH, 409, json!("changed")), expect(Method::GET, PATH, 200, lease("other"))];
        let (mut leadership, fake) = held(Duration::ZERO, taken);
        leadership.renew().await.expect_err("taken");
        assert!(!leadership.fence.is_up());
        fake.finished().await;
    }

    #[tokio::test]
    async fn a_write_of_its_own_that_arrived_late_is_no_loss() {
        let late = vec![
            expect(Method::PUT, PATH, 409, json!("changed")),
            expect(Method::GET, PATH, 200, lease("me")),
            expect(Method::PUT, PATH, 200, lease("me")),
        ];
        let (mut leadership, fake) = held(Duration::from_secs(1), late);
        let before = leadership.renewed;
        leadership.renew().await.expect("its own");
        assert_eq!(leadership.renewed, before);
        leadership.renew().await.expect("renewed");
        assert!(leadership.renewed > before && leadership.fence.is_up());
        fake.finished().await;
    }

    #[rstest]
    #[case(None, 0, Turn::Free)]
    #[case(Some(""), 0, Turn::Free)]
    #[case(Some("me"), 0, Turn::Own)]
    #[case(Some("other"), 14, Turn::Held)]
    #[case(Some("other"), 15, Turn::Expired)]
    fn a_held_lease_is_taken_only_after_its_duration(#[case] holder: Option<&str>, #[case] unchanged: u64, #[case] expected: Turn) {
        let lease = LeaseSpec { holder_identity: holder.map(Into::into), lease_duration_seconds: Some(1), ..LeaseSpec::default() };
        assert_eq!(turn(&lease, "me", Duration::from_secs(unchanged)), expected);
    }

    #[rstest]
    #[case(Turn::Free, 0, 0)]
    #[case(Turn::Expired, 15, 5)]
    #[case(Turn::Expired, 19, 1)]
    #[case(Turn::Expired, 100, 0)]
    #[case(Turn::Own, 100, 20)]
    fn requests_of_the_last_leader_are_waited_out(#[case] turn: Turn, #[case] unchanged: u64, #[case] expected: u64) {
        assert_eq!(turn.wait(Duration::from_secs(unchanged)), Duration::from_secs(expected));
    }

    #[test]
    fn a_fence_goes_down_without_anybody_lowering_it() {
        let fence = Fence::new();
        assert!(!fence.is_up());
        fence.raise(Instant::now());
        assert!(fence.is_up());
        if let Some(long_ago) = Instant::now().checked_sub(RENEW_LIMIT) {
            fence.raise(long_ago);
            assert!(!fence.is_up());
        }
    }

    #[test]
    fn the_old_leader_stops_before_the_new_one_may_start() {
        assert!(RENEW_LIMIT < DURATION);
    }
}
