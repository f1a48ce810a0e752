//! What the texts of scripts show, each read once: many runs have the same one.

use std::collections::{HashMap, HashSet};
use std::mem;
use std::sync::{Arc, Mutex};

use paddock_crds::{Language, Preflight};
use paddock_preflight::{Question, ask};

use crate::bounded::Turns;
use crate::context::lock;
use crate::error::Error;

/// Texts that are remembered whose runs are over, at least: twice as many at most. What is told of one has at most 20 KiB.
const REMEMBERED: usize = 128;

/// Runs whose readings are kept beside, at most.
const RUNS: usize = 2048;

/// By language and SHA-256 of the text.
type Key = (Language, String);

/// What was read.
pub(crate) struct Readings {
    known: Mutex<Known>,
    turns: Turns,
}

#[derive(Default)]
struct Known {
    newer: HashMap<Key, Arc<Preflight>>,
    /// What was asked for since is in the newer ones again.
    older: HashMap<Key, Arc<Preflight>>,
    /// By UID of the run, for as long as it is decided on: so that nobody else's texts take it away. As many as there is room for.
    of_runs: HashMap<String, (Key, Arc<Preflight>)>,
}

impl Default for Readings {
    fn default() -> Self {
        Self { known: Mutex::default(), turns: Turns::new(1, 1) }
    }
}

impl Readings {
    /// What the script of a run shows that is written in this language.
    pub(crate) async fn of(
        &self,
        (namespace, uid): (&str, &str),
        language: Language,
        script: &[u8],
        hash: &str,
    ) -> Result<Arc<Preflight>, Error> {
        let key = (language, hash.to_owned());
        if let Some(known) = lock(&self.known).get(uid, &key) {
            return Ok(known);
        }
        let _turn = self.turns.take(namespace, 1).await?;
        // It may have been read while this waited.
        if let Some(known) = lock(&self.known).get(uid, &key) {
            return Ok(known);
        }
        let read = ask(&Question { language, script: script.to_vec() }).await;
        let (read, broke) = read.map_err(|source| Error::Process { source })?;
        if let Some(how) = broke {
            tracing::warn!(script = hash, how, "a script was too much for the process that read it");
        }
        lock(&self.known).insert(uid, key, Arc::new(read.clone()));
        Ok(Arc::new(read))
    }

    pub(crate) fn forget(&self, uid: &str) {
        lock(&self.known).of_runs.remove(uid);
    }

    pub(crate) fn forget_all_but(&self, present: &HashSet<String>) {
        lock(&self.known).of_runs.retain(|uid, _| present.contains(uid));
    }
}

impl Known {
    fn get(&mut self, uid: &str, key: &Key) -> Option<Arc<Preflight>> {
        if let Some((_, known)) = self.of_runs.get(uid).filter(|(of, _)| of == key) {
            return Some(known.clone());
        }
        let known = self.newer.get(key).cloned().or_else(|| self.older.remove(key))?;
        self.insert(uid, key.clone(), known.clone());
        Some(known)
    }

    fn insert(&mut self, uid: &str, key: Key, read: Arc<Preflight>) {
        if self.newer.len() >= REMEMBERED && !self.newer.contains_key(&key) {
            self.older = mem::take(&mut self.newer);
        }
        if self.of_runs.len() < RUNS || self.of_runs.contains_key(uid) {
            self.of_runs.insert(uid.to_owned(), (key.clone(), read.clone()));
        }
        self.newer.insert(key, read);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_stays_and_the_rest_goes() {
        let readings = Readings::default();
        let key = |number: usize| (Language::Python, number.to_string());
        let mut known = lock(&readings.known);
        for number in 0..REMEMBERED * 5 {
            known.insert("other", key(number), Arc::new(Preflight::not_examined()));
            assert!(known.get("often", &key(0)).is_some(), "{number}");
            assert!(known.newer.len() + known.older.len() <= 2 * REMEMBERED);
        }
        assert!(known.get("often", &key(1)).is_none() && known.get("often", &(Language::JavaScript, "0".into())).is_none());
    }

    #[test]
    fn what_a_run_was_told_is_kept_for_it_until_it_is_over() {
        let readings = Readings::default();
        let key = |number: usize| (Language::Python, number.to_string());
        lock(&readings.known).insert("run", key(0), Arc::new(Preflight::not_examined()));
        for number in 1..REMEMBERED * 5 {
            lock(&readings.known).insert("other", key(number), Arc::new(Preflight::not_examined()));
        }
        assert!(lock(&readings.known).get("run", &key(0)).is_some());
        readings.forget_all_but(&["run".to_owned()].into());
        assert_eq!(lock(&readings.known).of_runs.len(), 1);
        readings.forget("run");
        assert!(lock(&readings.known).of_runs.is_empty());
    }
}
