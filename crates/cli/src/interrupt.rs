//! Interrupts (`SIGINT`), each of them noticed.

use anyhow::{Context as _, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What an interrupt asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Interrupted {
    /// The run is this program's own, and shall not go on.
    EndTheRun,
    StopWaiting,
}

/// What came since it was made: an interrupt that comes while something else is waited for is told by the next `next`.
pub(crate) struct Interrupts {
    signal: Signal,
    next: Interrupted,
}

impl Interrupts {
    /// From now on an interrupt no longer ends this program. The first one asks for `first`, all others to stop waiting.
    pub(crate) fn noticed(first: Interrupted) -> Result<Self> {
        let signal = signal(SignalKind::interrupt()).context("cannot take interrupts")?;
        Ok(Self { signal, next: first })
    }

    pub(crate) async fn next(&mut self) -> Interrupted {
        // Signals end with the runtime, which is this program's end.
        let _came = self.signal.recv().await;
        std::mem::replace(&mut self.next, Interrupted::StopWaiting)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::sys::signal::{Signal, raise};
    use tokio::time::timeout;

    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn an_interrupt_between_two_waits_is_noticed() {
        let mut interrupts = Interrupts::noticed(Interrupted::EndTheRun).unwrap();
        for expected in [Interrupted::EndTheRun, Interrupted::StopWaiting, Interrupted::StopWaiting] {
            raise(Signal::SIGINT).unwrap();
            // As a change of the run does, which is dealt with before the next wait.
            tokio::task::yield_now().await;
            assert_eq!(timeout(LONG, interrupts.next()).await.unwrap(), expected);
        }
    }
}
