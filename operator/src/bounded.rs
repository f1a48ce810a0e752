//! Work that hostile bytes could make endless, in a process of its own: neither time nor memory can be taken back from a thread. What is not
//! answered within the bounds has no answer.

use std::collections::HashMap;
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use crate::error::Error;

/// One kind of work, and what it may take.
pub(crate) struct Bounds {
    /// The argument that makes this program the process for it.
    pub(crate) argument: &'static str,
    pub(crate) cpu_seconds: u64,
    /// Address space, in bytes. That of all kinds together, beside the operator's own, is below the memory that its container may have.
    pub(crate) memory: u64,
    pub(crate) wall: Duration,
    /// Longest question as JSON, in bytes.
    pub(crate) question: u64,
}

/// Asks a process of its own. `None`: it took more CPU or memory than it may. That it had no chance to, on a busy machine, is an error: it says
/// nothing of the question.
pub(crate) async fn ask<A: DeserializeOwned>(bounds: &Bounds, question: &impl Serialize) -> Result<Option<A>, Error> {
    let failed = |source: std::io::Error| Error::Process { source };
    let program = std::env::current_exe().map_err(failed)?;
    let mut command = tokio::process::Command::new(program);
    command.arg(bounds.argument).env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn().map_err(failed)?;
    let text = serde_json::to_vec(question).map_err(|error| failed(error.into()))?;
    let mut input = child.stdin.take();
    let write = async {
        // A process that ended early does not read on; its answer, or that there is none, tells why.
        if let Some(input) = &mut input {
            let _ = input.write_all(&text).await;
        }
        drop(input);
        child.wait_with_output().await
    };
    let late = |_| failed(std::io::ErrorKind::TimedOut.into());
    let output = tokio::time::timeout(bounds.wall, write).await.map_err(late)?.map_err(failed)?;
    match output.status.signal().map(Signal::try_from) {
        Some(Ok(Signal::SIGXCPU | Signal::SIGABRT)) => Ok(None),
        _ if output.status.success() => serde_json::from_slice(&output.stdout).map(Some).map_err(|error| failed(error.into())),
        _ => Err(failed(std::io::Error::other(output.status.to_string()))),
    }
}

/// The process: a question on standard input, an answer on standard output.
pub(crate) fn serve<Q: DeserializeOwned, A: Serialize>(bounds: &Bounds, answer: impl FnOnce(Q) -> A) -> ExitCode {
    let limits = [
        // The second limit is never reached: so it is told by a signal that nobody else sends.
        (Resource::RLIMIT_CPU, bounds.cpu_seconds, bounds.cpu_seconds + 1),
        (Resource::RLIMIT_AS, bounds.memory, bounds.memory),
        (Resource::RLIMIT_CORE, 0, 0),
        (Resource::RLIMIT_NOFILE, 16, 16),
    ];
    if limits.into_iter().any(|(resource, soft, hard)| setrlimit(resource, soft, hard).is_err()) {
        return ExitCode::FAILURE;
    }
    let mut text = Vec::new();
    if std::io::stdin().take(bounds.question).read_to_end(&mut text).is_err() {
        return ExitCode::FAILURE;
    }
    let Ok(question) = serde_json::from_slice(&text) else {
        return ExitCode::FAILURE;
    };
    drop(text);
    match serde_json::to_writer(std::io::stdout(), &answer(question)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
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
