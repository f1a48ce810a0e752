//! Where the job comes from, and the one message that starts it.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signalfd::SignalFd;
use paddock_protocol::{ControlMessage, Interfaces, RefusedReason, Sealer, sandbox};

use crate::control::Control;
use crate::incoming::{self, Incoming};
use crate::job::{self, LoadedJob};
use crate::report::{Refusal, Reporter};
use crate::supervise::{StdinOnce, WORKSPACE, readable, took_stop_signal, until};
use crate::{gate, place, system};

/// Where a job comes from.
pub(crate) enum JobSource<'a> {
    /// It is there.
    Mounted(&'a Path),
    /// The sandbox waits for it, with nothing around it but loopback.
    ToCome {
        /// Where it will be.
        folder: &'a Path,
        /// Of the sandbox.
        name: &'a str,
        /// Public key of the sandbox: what the runner says is sealed to it.
        key: &'a str,
    },
}

/// A job that was started.
pub(crate) struct Begun {
    pub(crate) job: LoadedJob,
    /// What the runner shows the gateway.
    pub(crate) token: Option<String>,
    /// Where that is.
    pub(crate) gateway: Option<SocketAddr>,
    /// What else the operator will say.
    pub(crate) control: Control,
}

/// Says that this runner is ready, and holds the script until it is to start.
pub(crate) fn begin<W: Write>(source: &JobSource<'_>, signals: &SignalFd, reporter: &mut Reporter<W>) -> Result<Begun, Refusal> {
    match source {
        JobSource::Mounted(folder) => begin_mounted(folder, signals, reporter),
        JobSource::ToCome { folder, name, key } => begin_to_come(folder, (name, key), signals, reporter),
    }
}

fn mismatch(detail: impl Into<String>) -> Refusal {
    Refusal::new(RefusedReason::JobMismatch, detail)
}

fn begin_mounted<W: Write>(folder: &Path, signals: &SignalFd, reporter: &mut Reporter<W>) -> Result<Begun, Refusal> {
    let begin = Instant::now();
    let job = job::from_folder(folder)?;
    place::check(job.job.interfaces)?;
    let gateway = job.job.egress.as_ref().map(gate::pass).transpose()?;
    let sealer = Sealer::new(&job.job.seal_to, &job.job.run);
    reporter.begin(sealer.ok_or_else(|| mismatch("the job has no key to seal to"))?);
    let deadline = begin + Duration::from_secs(u64::from(job.job.start_budget_seconds));
    let mut control = Control::default();
    let start = wait(Some(deadline), &mut control, signals, reporter, None)?;
    if start.digest != job.digest {
        return Err(mismatch("the mounted job is not the admitted one"));
    }
    Ok(Begun { job, token: start.token, gateway, control })
}

/// Nobody knows yet for whom, so that there is nothing around it which only some may have, and no end to its waiting but that of its pod.
fn begin_to_come<W: Write>(
    folder: &Path,
    (name, key): (&str, &str),
    signals: &SignalFd,
    reporter: &mut Reporter<W>,
) -> Result<Begun, Refusal> {
    place::check(Interfaces::LoopbackOnly)?;
    // A container that the kubelet starts once more has the volumes of the one before.
    for used in [folder, Path::new(WORKSPACE)] {
        incoming::is_new(used).map_err(|error| mismatch(format!("the sandbox was used before: {error}")))?;
    }
    reporter.begin(Sealer::new(key, &sandbox(name)).ok_or_else(|| mismatch("the sandbox has no key to seal to"))?);
    let (mut control, mut incoming) = (Control::default(), Incoming::default());
    let start = wait(None, &mut control, signals, reporter, Some(&mut incoming))?;
    // So that a refusal can be read too.
    if let Some(job) = incoming.job() {
        reporter.bind(&job.run);
    }
    incoming.store(folder).map_err(|error| mismatch(format!("the job cannot be stored: {error}")))?;
    let job = job::from_folder(folder)?;
    if start.digest != job.digest {
        return Err(mismatch("the job that came is not the admitted one"));
    }
    if job.job.interfaces != Interfaces::LoopbackOnly || job.job.egress.is_some() {
        return Err(mismatch("the job needs a network, and the sandbox that waited has none"));
    }
    Ok(Begun { job, token: None, gateway: None, control })
}

struct Start {
    digest: String,
    token: Option<String>,
}

/// Until the one message that starts this very runner.
fn wait<W: Write>(
    deadline: Option<Instant>,
    control: &mut Control,
    signals: &SignalFd,
    reporter: &mut Reporter<W>,
    mut incoming: Option<&mut Incoming>,
) -> Result<Start, Refusal> {
    let stdin = io::stdin();
    loop {
        let now = Instant::now();
        if deadline.is_some_and(|deadline| now >= deadline) {
            return Err(Refusal::new(RefusedReason::NotStarted, "no start message came"));
        }
        let mut polled = vec![PollFd::new(system::borrow(signals), PollFlags::POLLIN)];
        if !control.is_closed() {
            polled.push(PollFd::new(system::borrow(&stdin), PollFlags::POLLIN));
        }
        let _ = poll(&mut polled, until(deadline, now));
        if readable(&polled, 0) && took_stop_signal(signals) {
            return Err(Refusal::new(RefusedReason::Stopped, "TERM before the start"));
        }
        if !readable(&polled, 1) {
            continue;
        }
        for message in control.read(StdinOnce) {
            match (message, &mut incoming) {
                // Whoever has got a piece of a job is not free for another, whoever asks.
                (ControlMessage::Hello {}, Some(incoming)) if incoming.is_touched() => {}
                (ControlMessage::Hello {}, _) => reporter.ready(),
                (ControlMessage::Stop {} | ControlMessage::Kill {}, _) => {
                    return Err(Refusal::new(RefusedReason::Stopped, "stopped before the start"));
                }
                (ControlMessage::Job { file, offset, data }, Some(incoming)) => incoming.take(file, offset, &data),
                // A message for an earlier runner of this pod: its script may have run, so this one's must not. And a job that was mounted is the one.
                (ControlMessage::Job { .. }, None) => {}
                (ControlMessage::Start { boot, .. }, _) if boot != reporter.boot() => {}
                (ControlMessage::Start { digest, token, .. }, _) => return Ok(Start { digest, token }),
            }
        }
    }
}
