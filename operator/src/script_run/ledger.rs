//! Slots that were given away and are not yet to be seen in the watched objects. The only state that admission has in memory.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Mutex;

use super::queue::{Admission, QueueLimits, Turn, Usage, admit};

/// Assumed slots by namespace. One lock makes "count, decide, assume" one act.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    assumed: Mutex<BTreeMap<String, BTreeSet<String>>>,
}

impl Ledger {
    /// Decides on top of what is assumed, and assumes the slot if it is given. `usage` is read under the lock.
    pub(crate) fn reserve(&self, namespace: &str, limits: QueueLimits, turn: &Turn, usage: impl FnOnce() -> Usage) -> Admission {
        let mut assumed = self.lock();
        let mut usage = usage();
        let own = assumed.entry(namespace.to_owned()).or_default();
        usage.active.extend(own.iter().cloned());
        usage.waiting.retain(|turn| !usage.active.contains(&turn.uid));
        usage.suspended.retain(|turn| !usage.active.contains(&turn.uid));
        let admission = admit(&usage, limits, turn);
        if admission == Admission::Admit {
            own.insert(turn.uid.clone());
        }
        admission
    }

    /// UIDs of the runs whose slots are assumed.
    pub(crate) fn assumed(&self, namespace: &str) -> BTreeSet<String> {
        self.lock().get(namespace).cloned().unwrap_or_default()
    }

    /// Takes an assumption back: the admission could not be stored, or the run is finished or gone.
    pub(crate) fn forget(&self, namespace: &str, uid: &str) {
        let mut assumed = self.lock();
        if let Some(own) = assumed.get_mut(namespace) {
            own.remove(uid);
            if own.is_empty() {
                assumed.remove(namespace);
            }
        }
    }

    /// Takes back the assumptions of runs that are gone; returns the namespaces that had some.
    pub(crate) fn forget_all_but(&self, present: &HashSet<String>) -> Vec<String> {
        let mut freed = Vec::new();
        self.lock().retain(|namespace, own| {
            let before = own.len();
            own.retain(|uid| present.contains(uid));
            if own.len() < before {
                freed.push(namespace.clone());
            }
            !own.is_empty()
        });
        freed
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, BTreeSet<String>>> {
        self.assumed.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: QueueLimits = QueueLimits { max_concurrent: 1, max_queued: 10 };

    fn turn(uid: &str) -> Turn {
        Turn { created: 0, uid: uid.into() }
    }

    #[test]
    fn a_stale_view_does_not_give_a_slot_twice() {
        let ledger = Ledger::default();
        assert_eq!(ledger.reserve("ns", LIMITS, &turn("a"), Usage::default), Admission::Admit);
        assert_eq!(ledger.reserve("ns", LIMITS, &turn("b"), Usage::default), Admission::Wait { ahead: 0 });
        assert_eq!(ledger.reserve("other", LIMITS, &turn("c"), Usage::default), Admission::Admit);
        ledger.forget("ns", "a");
        assert_eq!(ledger.reserve("ns", LIMITS, &turn("b"), Usage::default), Admission::Admit);
    }
}
