//! Who asks processes of their own, and in what order: for work that hostile bytes could make endless.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use paddock_confined::{Answered, Bounds};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use crate::error::Error;

/// Asks a process of its own. `None`: it took more CPU or memory than it may, or broke. That it had no chance to answer, on a busy machine, is an
/// error: it says nothing of the question.
pub(crate) async fn ask<A: DeserializeOwned>(bounds: &Bounds, question: &impl Serialize) -> Result<Option<A>, Error> {
    Ok(match paddock_confined::ask(bounds, question).await.map_err(|source| Error::Process { source })? {
        Answered::Yes(answer) => Some(answer),
        Answered::Broke(how) => {
            tracing::warn!(work = bounds.argument, how, "a question was too much for the process that looked at it");
            None
        }
    })
}

/// Passes of one namespace that wait for one thing. More are told to come again: who waits holds what passes of all need.
const WAITING_OF_ONE: usize = 4;

/// Whose turn it is to have something of which there is little: a process of one kind, or memory. No namespace keeps others waiting with many.
pub(crate) struct Turns {
    of_all: Semaphore,
    /// So much at once for one namespace.
    for_one: usize,
    of_one: Mutex<HashMap<String, Weak<OfOne>>>,
}

struct OfOne {
    waiting: Semaphore,
    share: Arc<Semaphore>,
}

/// Held for as long as what it was taken for is there.
pub(crate) struct Turn<'a> {
    _of_all: SemaphorePermit<'a>,
    _of_one: OwnedSemaphorePermit,
    _kept: Arc<OfOne>,
}

impl Turns {
    pub(crate) fn new(for_all: usize, for_one: usize) -> Self {
        Self { of_all: Semaphore::new(for_all), for_one, of_one: Mutex::default() }
    }

    /// Waits for `amount`, at most what one namespace may have; an error where too many passes of this namespace wait already.
    pub(crate) async fn take(&self, namespace: &str, amount: u32) -> Result<Turn<'_>, Error> {
        let kept = self.of_namespace(namespace);
        if let Ok(of_one) = kept.share.clone().try_acquire_many_owned(amount)
            && let Ok(of_all) = self.of_all.try_acquire_many(amount)
        {
            return Ok(Turn { _of_all: of_all, _of_one: of_one, _kept: kept });
        }
        let waiting = kept.waiting.try_acquire().map_err(|_| Error::Crowded)?;
        let of_one = kept.share.clone().acquire_many_owned(amount).await.map_err(|_| Error::Crowded)?;
        let of_all = self.of_all.acquire_many(amount).await.map_err(|_| Error::Crowded)?;
        drop(waiting);
        Ok(Turn { _of_all: of_all, _of_one: of_one, _kept: kept })
    }

    fn of_namespace(&self, namespace: &str) -> Arc<OfOne> {
        let mut of_one = self.of_one.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = of_one.get(namespace).and_then(Weak::upgrade) {
            return known;
        }
        of_one.retain(|_, kept| kept.strong_count() > 0);
        let kept = Arc::new(OfOne { waiting: Semaphore::new(WAITING_OF_ONE), share: Arc::new(Semaphore::new(self.for_one)) });
        of_one.insert(namespace.to_owned(), Arc::downgrade(&kept));
        kept
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn many_of_one_namespace_wait_for_each_other_and_not_before_others() {
        let turns = Turns::new(1, 1);
        let first = turns.take("a", 1).now_or_never();
        let (mut again, mut other) = (Box::pin(turns.take("a", 1)), Box::pin(turns.take("b", 1)));
        assert!(first.is_some() && again.as_mut().now_or_never().is_none() && other.as_mut().now_or_never().is_none());
        let mut third = Box::pin(turns.take("a", 1));
        assert!(third.as_mut().now_or_never().is_none());
        drop(first);
        assert!(again.as_mut().now_or_never().is_none(), "b has waited for longer");
        let second = other.now_or_never();
        assert!(second.is_some());
        drop(second);
        let next = again.now_or_never();
        assert!(next.is_some() && third.as_mut().now_or_never().is_none());
        drop(next);
        assert!(third.as_mut().now_or_never().is_some());
        drop(third);
        let mut takes: Vec<_> = (0..=WAITING_OF_ONE).map(|_| Box::pin(turns.take("a", 1))).collect();
        let held: Vec<_> = takes.iter_mut().filter_map(|take| take.as_mut().now_or_never()).collect();
        assert_eq!(held.len(), 1);
        assert!(matches!(turns.take("a", 1).now_or_never(), Some(Err(Error::Crowded))));
        drop((takes, held));
        drop(turns.of_namespace("d"));
        assert_eq!(turns.of_one.lock().unwrap().len(), 1);
    }

    #[test]
    fn one_namespace_has_no_more_than_its_share_of_what_there_is() {
        let room = Turns::new(40, 20);
        let mut takes: Vec<_> = [15, 5, 1].map(|amount| Box::pin(room.take("a", amount))).into();
        let of_a: Vec<_> = takes.iter_mut().filter_map(|take| take.as_mut().now_or_never()).collect();
        let of_b = room.take("b", 20).now_or_never();
        assert!(of_a.len() == 2 && of_b.is_some_and(|turn| turn.is_ok()));
    }
}
