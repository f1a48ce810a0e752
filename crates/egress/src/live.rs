//! The tunnels that are open: counted for each run, and cut when what the run was granted changes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::grants::Budget;
use crate::rate::Rate;

/// Tunnels of all runs, of one replica: what its memory is made for.
const MOST: usize = 20_000;

/// All open tunnels.
#[derive(Default)]
pub struct Live {
    runs: Mutex<HashMap<String, Run>>,
    open: AtomicUsize,
}

struct Run {
    open: u32,
    /// Nothing of it is remembered once its last tunnel is closed.
    has_ended: bool,
    used: Arc<AtomicU64>,
    /// As its budget said when the first of the tunnels that are open was opened.
    rate: Option<Arc<Rate>>,
    cut: watch::Sender<()>,
}

/// An open tunnel. It counts until it is dropped.
pub struct Tunnel {
    live: Arc<Live>,
    run: String,
    /// What the run has sent and received so far, and the most that it may, in bytes.
    used: Arc<AtomicU64>,
    bytes: u64,
    rate: Option<Arc<Rate>>,
    cut: watch::Receiver<()>,
}

/// Why there is no tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoTunnel {
    /// As many are open as may be.
    TooMany,
    /// The run has used up its bytes.
    Spent,
}

impl Live {
    /// Counts a tunnel of this run, if there may be one more.
    pub fn open(self: &Arc<Self>, run: &str, budget: Budget) -> Result<Tunnel, NoTunnel> {
        let mut runs = self.lock();
        let new = || Run { open: 0, has_ended: false, used: Arc::default(), rate: None, cut: watch::Sender::new(()) };
        let entry = runs.entry(run.to_owned()).or_insert_with(new);
        if entry.open >= budget.tunnels || self.count() >= MOST {
            return Err(NoTunnel::TooMany);
        }
        if entry.used.load(Ordering::Relaxed) >= budget.bytes {
            return Err(NoTunnel::Spent);
        }
        if entry.rate.as_ref().map(|rate| rate.bytes_per_second()) != budget.bytes_per_second {
            entry.rate = budget.bytes_per_second.map(|bytes| Arc::new(Rate::new(bytes, Instant::now())));
        }
        entry.open += 1;
        entry.has_ended = false;
        self.open.fetch_add(1, Ordering::Relaxed);
        let (live, run, used, rate) = (self.clone(), run.to_owned(), entry.used.clone(), entry.rate.clone());
        Ok(Tunnel { live, run, used, bytes: budget.bytes, rate, cut: entry.cut.subscribe() })
    }

    /// Cuts all tunnels of this run.
    pub fn cut(&self, run: &str) {
        if let Some(run) = self.lock().get(run) {
            run.cut.send_replace(());
        }
    }

    /// Cuts all tunnels there are.
    pub fn cut_all(&self) {
        for run in self.lock().values() {
            run.cut.send_replace(());
        }
    }

    /// Forgets what a run that has ended has used.
    pub fn forget(&self, run: &str) {
        let mut runs = self.lock();
        if let Some(entry) = runs.get_mut(run) {
            entry.cut.send_replace(());
            entry.has_ended = true;
            if entry.open == 0 {
                runs.remove(run);
            }
        }
    }

    /// Open tunnels of all runs.
    pub fn count(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Run>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tunnel {
    /// Ends when the tunnel has to be cut.
    pub fn is_cut(&self) -> impl Future<Output = ()> + use<> {
        let mut cut = self.cut.clone();
        async move {
            // Where nobody is left who could cut it, it is cut.
            let _ = cut.changed().await;
        }
    }

    /// How long nothing may be carried, because the run has had its bytes of this second.
    pub fn must_wait(&self) -> Option<Duration> {
        self.rate.as_ref()?.wait(Instant::now())
    }

    /// Counts bytes. `false`: they are more than the run may still send and receive.
    pub fn spend(&self, bytes: usize) -> bool {
        if let Some(rate) = &self.rate {
            rate.take(bytes);
        }
        let bytes = bytes as u64;
        self.used.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) <= self.bytes
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.live.open.fetch_sub(1, Ordering::Relaxed);
        let mut runs = self.live.lock();
        if let Some(run) = runs.get_mut(&self.run) {
            run.open -= 1;
            if run.open == 0 && run.has_ended {
                runs.remove(&self.run);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    const BUDGET: Budget = Budget { tunnels: 2, bytes: 10, bytes_per_second: None };

    #[test]
    fn a_run_has_so_many_tunnels_and_bytes_and_no_more() {
        let live = Arc::new(Live::default());
        let (one, two) = (live.open("a", BUDGET), live.open("a", BUDGET));
        assert_eq!(live.open("a", BUDGET).err(), Some(NoTunnel::TooMany));
        let other = live.open("b", BUDGET);
        assert_eq!(live.count(), 3);
        drop(one);
        assert!(two.as_ref().is_ok_and(|two| two.spend(10)) && other.as_ref().is_ok_and(|other| other.spend(4)));
        assert_eq!(live.open("a", BUDGET).err(), Some(NoTunnel::Spent), "tunnels of a run spend from the same budget");
        assert!(!two.is_ok_and(|two| two.spend(1)));
        assert!(live.open("b", BUDGET).is_ok());
    }

    #[test]
    fn the_tunnels_of_a_run_share_its_bytes_of_a_second() {
        let live = Arc::new(Live::default());
        let budget = Budget { bytes: 1 << 20, bytes_per_second: Some(1 << 14), ..BUDGET };
        let [one, two, other] = ["a", "a", "b"].map(|run| live.open(run, budget).ok().unwrap());
        assert!(one.spend(1 << 18) && two.must_wait().is_some_and(|wait| wait > Duration::from_secs(10)));
        assert_eq!(other.must_wait(), None);
        drop((one, two));
        // Who closes all and opens anew has no new second.
        assert!(live.open("a", budget).is_ok_and(|again| again.must_wait().is_some()));
    }

    #[test]
    fn the_tunnels_of_a_run_are_cut_together_and_those_of_others_are_not() {
        let live = Arc::new(Live::default());
        let [one, two, other] = ["a", "a", "b"].map(|run| live.open(run, BUDGET).ok().unwrap());
        assert!(one.is_cut().now_or_never().is_none());
        live.forget("a");
        assert!(one.is_cut().now_or_never().is_some() && two.is_cut().now_or_never().is_some());
        assert!(other.is_cut().now_or_never().is_none());
        live.cut_all();
        assert!(other.is_cut().now_or_never().is_some());
        drop((one, two));
        assert_eq!((live.count(), live.lock().len()), (1, 1));
    }
}
