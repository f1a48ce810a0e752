//! Work that hostile bytes could make endless, in a process of its own: neither time nor memory can be taken back from a thread. What is not
//! answered within the bounds has no answer.

use std::collections::HashMap;
use std::io::Read as _;
use std::process::{ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use nix::sys::resource::{Resource, setrlimit};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Error;

/// Address space of a process, in bytes.
const MEMORY: u64 = 192 << 20;

/// One kind of work, and what it may take.
pub(crate) struct Bounds {
    /// The argument that makes this program the process for it.
    pub(crate) argument: &'static str,
    pub(crate) cpu_seconds: u64,
    pub(crate) wall: Duration,
    /// Longest question as JSON, in bytes.
    pub(crate) question: u64,
}

/// Asks a process of its own. `None`: it took more than it may.
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
    match tokio::time::timeout(bounds.wall, write).await {
        Ok(output) => Ok(serde_json::from_slice(&output.map_err(failed)?.stdout).ok()),
        Err(_) => Ok(None),
    }
}

/// The process: a question on standard input, an answer on standard output.
pub(crate) fn serve<Q: DeserializeOwned, A: Serialize>(bounds: &Bounds, answer: impl FnOnce(Q) -> A) -> ExitCode {
    let limits = [
        (Resource::RLIMIT_CPU, bounds.cpu_seconds),
        (Resource::RLIMIT_AS, MEMORY),
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_NOFILE, 16),
    ];
    if limits.into_iter().any(|(resource, limit)| setrlimit(resource, limit, limit).is_err()) {
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

/// Whose turn it is to have such a process: one of each namespace at a time, so that none keeps others waiting with many.
pub(crate) struct Turns {
    of_all: Semaphore,
    of_one: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// Held for as long as the process lives.
pub(crate) struct Turn<'a> {
    _of_one: Option<OwnedSemaphorePermit>,
    _of_all: Option<tokio::sync::SemaphorePermit<'a>>,
}

impl Turns {
    pub(crate) fn new(at_once: usize) -> Self {
        Self { of_all: Semaphore::new(at_once), of_one: Mutex::default() }
    }

    pub(crate) async fn take(&self, namespace: &str) -> Turn<'_> {
        let of_one = self.of_namespace(namespace).acquire_owned().await.ok();
        Turn { _of_one: of_one, _of_all: self.of_all.acquire().await.ok() }
    }

    fn of_namespace(&self, namespace: &str) -> Arc<Semaphore> {
        let mut of_one = self.of_one.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = of_one.get(namespace).and_then(Weak::upgrade) {
            return known;
        }
        of_one.retain(|_, semaphore| semaphore.strong_count() > 0);
        let semaphore = Arc::new(Semaphore::new(1));
        of_one.insert(namespace.to_owned(), Arc::downgrade(&semaphore));
        semaphore
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn a_namespace_has_one_turn_at_a_time_and_all_have_so_many() {
        let turns = Turns::new(2);
        let one = turns.take("a").now_or_never();
        let (again, other) = (turns.take("a").now_or_never(), turns.take("b").now_or_never());
        assert!(one.is_some() && again.is_none() && other.is_some());
        assert!(turns.take("c").now_or_never().is_none());
        drop(one);
        let third = turns.take("c").now_or_never();
        assert!(third.is_some() && turns.take("a").now_or_never().is_none());
        drop((other, third));
        assert!(turns.take("a").now_or_never().is_some());
        drop(turns.of_namespace("d"));
        assert_eq!(turns.of_one.lock().unwrap().len(), 1);
    }
}
