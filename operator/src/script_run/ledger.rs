//! The queue in memory: what the watch has shown of all runs, and the slots that were given away and are not yet to be seen there.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use paddock_crds::{PolicyKind, PolicyRef};
use paddock_policy::QueueLimits;

use super::queue::{Admission, Asker, ClusterLimits, Line, Place, Turn};

/// A run as the queue sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) namespace: String,
    pub(crate) policy: PolicyRef,
    pub(crate) turn: Turn,
    /// `None`: it neither waits nor holds a slot.
    pub(crate) place: Option<Place>,
    /// When it got a slot, in microseconds since the epoch.
    pub(crate) served: Option<i64>,
}

impl Entry {
    fn asker(&self) -> Asker<'_> {
        Asker { namespace: &self.namespace, policy: &self.policy, turn: &self.turn }
    }
}

/// A pod that has not ended, by what the operator wrote on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LivingPod<'a> {
    /// The tenant namespace.
    pub(crate) namespace: &'a str,
    pub(crate) run_uid: &'a str,
    /// What its run names, as [`policy_text`] writes it.
    pub(crate) policy: &'a str,
}

/// A policy in one word, as it stands on pods.
pub(crate) fn policy_text(policy: &PolicyRef) -> String {
    format!("{}/{}", policy.kind.as_str(), policy.name)
}

impl LivingPod<'_> {
    fn entry(self) -> Entry {
        let (kind, name) = self.policy.split_once('/').unwrap_or_default();
        let is_of_the_cluster = kind == PolicyKind::ClusterSandboxPolicy.as_str();
        let kind = if is_of_the_cluster { PolicyKind::ClusterSandboxPolicy } else { PolicyKind::SandboxPolicy };
        Entry {
            namespace: self.namespace.to_owned(),
            policy: PolicyRef { kind, name: name.to_owned() },
            turn: Turn { arrived: 0, uid: self.run_uid.to_owned(), name: String::new() },
            place: Some(Place::Active),
            served: None,
        }
    }
}

/// One lock makes "count, decide, assume" one act.
#[derive(Debug, Default)]
pub(crate) struct Ledger(Mutex<Book>);

#[derive(Debug, Default)]
struct Book {
    line: Line,
    /// What the watch has shown, by UID.
    seen: HashMap<String, Entry>,
    /// Slots that were given away, by UID.
    assumed: BTreeMap<String, Entry>,
    /// Places in line and among those that wait for approvals, by UID, of which the watch has not shown anything yet. None outlives the write that was
    /// to store it: a run that is gone by then would keep its place.
    claimed: HashMap<String, Entry>,
    /// Runs whose passes fail: nobody waits behind them, and they ask anew with their next pass.
    troubled: HashSet<String>,
    /// Runs that a list that is under way has shown.
    listed: Option<HashSet<String>>,
    /// A list was complete at least once.
    is_listed: bool,
}

impl Book {
    /// Changes what is known of a run, and with it the place that it has.
    fn change(&mut self, uid: &str, change: impl FnOnce(&mut Self)) {
        if let Some(before) = self.known(uid).cloned() {
            self.line.take_out(before.asker());
        }
        change(self);
        if let (Some(entry), Some(place)) = (self.known(uid).cloned(), self.place(uid))
            && !(place == Place::Waits && self.troubled.contains(uid))
        {
            self.line.put(entry.asker(), place);
        }
    }

    /// What counts: a slot that was given away, then a place that was, then what was shown.
    fn known(&self, uid: &str) -> Option<&Entry> {
        self.assumed.get(uid).or_else(|| self.claimed.get(uid)).or_else(|| self.seen.get(uid))
    }

    fn place(&self, uid: &str) -> Option<Place> {
        self.known(uid).and_then(|entry| entry.place)
    }

    fn show(&mut self, entry: Entry) {
        let uid = entry.turn.uid.clone();
        if let Some(served) = entry.served {
            self.line.was_served(&entry.namespace, served);
        }
        self.change(&uid, |book| {
            // Where it shows no place yet it is older than the claim.
            if entry.place.is_some() {
                book.claimed.remove(&uid);
                book.seen.insert(uid.clone(), entry);
            } else {
                book.seen.remove(&uid);
            }
        });
    }

    fn hide(&mut self, uid: &str) {
        self.change(uid, |book| {
            book.seen.remove(uid);
            book.claimed.remove(uid);
        });
    }

    fn claim(&mut self, entry: Entry, place: Place) {
        let uid = entry.turn.uid.clone();
        self.change(&uid, |book| _ = book.claimed.insert(uid.clone(), Entry { place: Some(place), ..entry }));
    }
}

impl Book {
    /// Asks the line while every pod that lives holds a slot in it, whatever is known of its run: one that lost its finalizer does not free its slot
    /// while its pod lives.
    fn with_orphans<T>(&mut self, living: impl Fn(&mut dyn FnMut(LivingPod<'_>)), ask: impl FnOnce(&Line) -> T) -> T {
        let mut orphans = Vec::new();
        living(&mut |pod| {
            if !self.line.holds_a_slot(pod.namespace, pod.run_uid) {
                orphans.push(pod.entry());
            }
        });
        for orphan in &orphans {
            self.line.put(orphan.asker(), Place::Active);
        }
        let answer = ask(&self.line);
        for orphan in &orphans {
            self.line.take_out(orphan.asker());
        }
        answer
    }
}

impl Ledger {
    /// The watch shows a run.
    pub(crate) fn show(&self, entry: Entry) {
        let mut book = self.lock();
        if let Some(listed) = &mut book.listed {
            listed.insert(entry.turn.uid.clone());
        }
        book.show(entry);
    }

    /// The watch shows that a run is gone.
    pub(crate) fn hide(&self, uid: &str) {
        self.lock().hide(uid);
    }

    /// The watch begins anew: what its list does not show is gone.
    pub(crate) fn list_begins(&self) {
        self.lock().listed = Some(HashSet::new());
    }

    /// The list is complete. Says which runs are gone that were there before.
    pub(crate) fn list_ends(&self) -> HashSet<String> {
        let mut book = self.lock();
        let Some(listed) = book.listed.take() else { return HashSet::new() };
        book.is_listed = true;
        let gone: HashSet<String> = book.seen.keys().chain(book.claimed.keys()).filter(|uid| !listed.contains(*uid)).cloned().collect();
        for uid in &gone {
            book.hide(uid);
        }
        book.line.forget_idle();
        gone
    }

    /// Whether all runs have been shown once.
    pub(crate) fn is_listed(&self) -> bool {
        self.lock().is_listed
    }

    /// The pass of a run has failed.
    pub(crate) fn stand_aside(&self, uid: &str) {
        self.lock().change(uid, |book| {
            book.claimed.remove(uid);
            book.troubled.insert(uid.to_owned());
        });
    }

    /// Somebody else wrote the run first, or it is gone: it asks for its place anew with its next pass, if there is one.
    pub(crate) fn give_up_the_claim(&self, uid: &str) {
        self.lock().change(uid, |book| _ = book.claimed.remove(uid));
    }

    /// A run has given its slot back, and has this place now, as is stored of it.
    pub(crate) fn stand_back(&self, entry: Entry) {
        let uid = entry.turn.uid.clone();
        let mut book = self.lock();
        book.change(&uid, |book| _ = book.assumed.remove(&uid));
        if let Some(place) = entry.place {
            book.claim(entry, place);
        }
    }

    /// Decides, and assumes the slot if it is given, or the place in line: whoever asks a moment later must count it.
    pub(crate) fn reserve(
        &self,
        entry: Entry,
        limits: QueueLimits,
        cluster: ClusterLimits,
        living: impl Fn(&mut dyn FnMut(LivingPod<'_>)),
        limits_of: impl Fn(&str, &PolicyRef) -> QueueLimits,
        now: i64,
    ) -> Admission {
        let mut book = self.lock();
        if book.troubled.contains(&entry.turn.uid) {
            book.change(&entry.turn.uid, |book| _ = book.troubled.remove(&entry.turn.uid));
        }
        let admission = book.with_orphans(living, |line| line.admit(entry.asker(), limits, cluster, limits_of, now));
        if admission == Admission::Admit {
            let uid = entry.turn.uid.clone();
            book.line.was_served(&entry.namespace, now);
            book.change(&uid, |book| {
                book.claimed.remove(&uid);
                book.assumed.insert(uid.clone(), Entry { place: Some(Place::Active), ..entry });
            });
        } else if matches!(admission, Admission::Wait { .. }) && book.place(&entry.turn.uid) != Some(Place::Waits) {
            book.claim(entry, Place::Waits);
        }
        admission
    }

    /// Whether a run that holds a slot is one of more than may. It was given the slot by a leader before this one whose last write came late, or the limit
    /// was lowered.
    pub(crate) fn exceeds(
        &self,
        entry: &Entry,
        limits: QueueLimits,
        cluster: ClusterLimits,
        living: impl Fn(&mut dyn FnMut(LivingPod<'_>)),
    ) -> bool {
        self.lock().with_orphans(living, |line| line.exceeds(entry.asker(), limits, cluster))
    }

    /// Who would get a slot that has become free in this namespace, by namespace and name.
    pub(crate) fn next(
        &self,
        namespace: &str,
        cluster: ClusterLimits,
        living: impl Fn(&mut dyn FnMut(LivingPod<'_>)),
        limits_of: impl Fn(&str, &PolicyRef) -> QueueLimits,
        now: i64,
    ) -> Vec<(String, String)> {
        self.lock().with_orphans(living, |line| line.next(namespace, cluster, limits_of, now))
    }

    /// The first of those that wait in this namespace, one for each policy that they name, by name.
    pub(crate) fn heads(&self, namespace: &str) -> Vec<String> {
        self.lock().line.heads(namespace)
    }

    /// Lets a run wait for its approvals, unless `most` others of its namespace do already: whoever asks a moment later must count it.
    pub(crate) fn await_approvals(&self, entry: Entry, most: usize) -> bool {
        let mut book = self.lock();
        let is_let = book.line.awaiting(&entry.namespace, &entry.turn.uid) < most;
        if is_let && book.place(&entry.turn.uid) != Some(Place::Awaits) {
            book.claim(entry, Place::Awaits);
        }
        is_let
    }

    /// Takes back what was given to a run: it is finished or gone.
    pub(crate) fn forget(&self, uid: &str) {
        self.lock().change(uid, |book| {
            book.troubled.remove(uid);
            book.claimed.remove(uid);
            book.assumed.remove(uid);
        });
    }

    /// Takes back what was given to runs that are gone; returns the namespaces that had some.
    pub(crate) fn forget_all_but(&self, present: &HashSet<String>) -> HashSet<String> {
        let mut book = self.lock();
        book.troubled.retain(|uid| present.contains(uid));
        let given: HashSet<String> = book.assumed.keys().chain(book.claimed.keys()).cloned().collect();
        let mut freed = HashSet::new();
        for uid in given.into_iter().filter(|uid| !present.contains(uid)) {
            freed.extend(book.known(&uid).map(|entry| entry.namespace.clone()));
            book.change(&uid, |book| {
                book.claimed.remove(&uid);
                book.assumed.remove(&uid);
            });
        }
        freed
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
