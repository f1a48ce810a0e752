//! Who wrote which generation of a policy, as the watch has shown it: between two looks at a run a policy may be written more than once.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::names::AUTHOR;

/// Generations of each policy that are remembered, the last ones.
const REMEMBERED: usize = 64;

type Authors = BTreeMap<i64, BTreeSet<String>>;

/// By the UID of the policy.
#[derive(Clone, Debug, Default)]
pub(crate) struct Writers(Arc<Mutex<HashMap<String, Authors>>>);

impl Writers {
    /// The watch has shown a policy. The cache shows it before, so that of two generations in the cache the first is known here.
    pub(crate) fn saw(&self, policy: &ObjectMeta) {
        let (Some(uid), Some(generation)) = (&policy.uid, policy.generation) else { return };
        let author = policy.annotations.as_ref().and_then(|annotations| annotations.get(AUTHOR)).filter(|author| !author.is_empty());
        let mut all = self.lock();
        let authors = all.entry(uid.clone()).or_default();
        authors.entry(generation).or_default().extend(author.cloned());
        while authors.len() > REMEMBERED {
            authors.pop_first();
        }
    }

    /// Who wrote the generations between these two. `None`: of one of them it is not known.
    pub(crate) fn between(&self, uid: &str, after: i64, before: i64) -> Option<BTreeSet<String>> {
        let all = self.lock();
        let mut authors = BTreeSet::new();
        for generation in after.saturating_add(1)..before {
            // At the first one that is missing it ends, however many there are.
            authors.extend(all.get(uid)?.get(&generation).filter(|known| !known.is_empty())?.iter().cloned());
        }
        Some(authors)
    }

    pub(crate) fn forget_all_but(&self, present: &HashSet<String>) {
        self.lock().retain(|uid, _| present.contains(uid));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Authors>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(generation: i64, author: &str) -> ObjectMeta {
        let annotations = Some([(AUTHOR.to_owned(), author.to_owned())].into());
        ObjectMeta { uid: Some("u".into()), generation: Some(generation), annotations, ..ObjectMeta::default() }
    }

    #[test]
    fn who_wrote_between_two_looks_is_known_or_known_to_be_missing() {
        let writers = Writers::default();
        for (generation, author) in [(2, "anna"), (3, "bert"), (5, "carl"), (6, "")] {
            writers.saw(&policy(generation, author));
        }
        let between = |after, before| writers.between("u", after, before).map(Vec::from_iter);
        assert_eq!(between(1, 4), Some(vec!["anna".to_owned(), "bert".to_owned()]));
        assert_eq!((between(2, 3), between(3, 3), between(9, 1)), (Some(vec![]), Some(vec![]), Some(vec![])));
        assert_eq!((between(3, 6), between(5, 7), between(0, i64::MAX)), (None, None, None), "4 was not seen, and nobody is known of 6");
        assert_eq!(writers.between("other", 1, 3), None);
        for generation in 7..200 {
            writers.saw(&policy(generation, "zoe"));
        }
        assert_eq!((between(2, 4), between(190, 193)), (None, Some(vec!["zoe".to_owned()])));
        writers.forget_all_but(&HashSet::new());
        assert_eq!(between(190, 193), None);
    }
}
