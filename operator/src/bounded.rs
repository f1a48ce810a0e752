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
        (Resource::RLIMIT_AS, bounds.memory),
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

/// Whose turn it is to have a process of one kind. There is one at a time, and of each namespace one waits for it: none keeps others waiting with
/// many.
pub(crate) struct Turns {
    of_all: Semaphore,
    of_one: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// Held for as long as the process lives.
pub(crate) struct Turn<'a> {
    _of_one: Option<OwnedSemaphorePermit>,
    _of_all: Option<tokio::sync::SemaphorePermit<'a>>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { of_all: Semaphore::new(1), of_one: Mutex::default() }
    }
}

impl Turns {
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
    fn many_of_one_namespace_wait_for_each_other_and_not_before_others() {
        let turns = Turns::default();
        let first = turns.take("a").now_or_never();
        let (mut again, mut other) = (Box::pin(turns.take("a")), Box::pin(turns.take("b")));
        assert!(first.is_some() && again.as_mut().now_or_never().is_none() && other.as_mut().now_or_never().is_none());
        let mut third = Box::pin(turns.take("a"));
        assert!(third.as_mut().now_or_never().is_none());
        drop(first);
        assert!(again.as_mut().now_or_never().is_none(), "b has waited for longer");
        let second = other.now_or_never();
        assert!(second.is_some());
        drop(second);
        let next = again.now_or_never();
        assert!(next.is_some() && third.as_mut().now_or_never().is_none());
        drop(next);
        assert!(third.now_or_never().is_some());
        drop(turns.of_namespace("d"));
        assert_eq!(turns.of_one.lock().unwrap().len(), 1);
    }
}
