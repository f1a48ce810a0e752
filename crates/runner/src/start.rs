//! Where the job comes from, and the one message that starts it.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signalfd::SignalFd;
use paddock_protocol::{ControlMessage, Interfaces, PreStart, RefusedReason, Sealer, sandbox};

use crate::control::Control;
use crate::incoming::{self, Incoming};
use crate::job::{self, LoadedJob};
use crate::pre_start::Waiting;
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
        /// The interpreter that waits with it, if one does.
        pre_start: Option<PreStart>,
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
    /// The interpreter, if there is one already.
    pub(crate) waiting: Option<Waiting>,
}

/// Says that this runner is ready, and holds the script until it is to start.
pub(crate) fn begin<W: Write>(source: &JobSource<'_>, signals: &SignalFd, reporter: &mut Reporter<W>) -> Result<Begun, Refusal> {
    match source {
        JobSource::Mounted(folder) => begin_mounted(folder, signals, reporter),
        JobSource::ToCome { folder, name, key, pre_start } => begin_to_come(folder, (name, key), pre_start.as_ref(), signals, reporter),
    }
}

fn mismatch(detail: impl Into<String>) -> Refusal {
    Refusal::new(RefusedReason::JobMismatch, detail)
}

fn spawn_failed(detail: impl Into<String>) -> Refusal {
    Refusal::new(RefusedReason::SpawnFailed, detail)
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
    let mut others = Others { incoming: None, waiting: None };
    let start = wait(Some(deadline), &mut control, signals, reporter, &mut others)?;
    if start.digest != job.digest {
        return Err(mismatch("the mounted job is not the admitted one"));
    }
    Ok(Begun { job, token: start.token, gateway, control, waiting: None })
}

/// Nobody knows yet for whom, so that there is nothing around it which only some may have, and no end to its waiting but that of its pod.
fn begin_to_come<W: Write>(
    folder: &Path,
    (name, key): (&str, &str),
    pre_start: Option<&PreStart>,
    signals: &SignalFd,
    reporter: &mut Reporter<W>,
) -> Result<Begun, Refusal> {
    place::check(Interfaces::LoopbackOnly)?;
    // A container that the kubelet starts once more has the volumes of the one before.
    for used in [folder, Path::new(WORKSPACE)] {
        incoming::is_new(used).map_err(|error| mismatch(format!("the sandbox was used before: {error}")))?;
    }
    // Before it is ready: whoever gives it a job is not to wait for what began late.
    let waiting = pre_start.map(|made| Waiting::start(made.clone(), folder, signals)).transpose();
    let waiting = waiting.map_err(|error| spawn_failed(format!("the interpreter does not wait for a script: {error}")))?;
    reporter.begin(Sealer::new(key, &sandbox(name)).ok_or_else(|| mismatch("the sandbox has no key to seal to"))?);
    let (mut control, mut incoming) = (Control::default(), Incoming::default());
    let mut others = Others { incoming: Some(&mut incoming), waiting: waiting.as_ref() };
    let start = wait(None, &mut control, signals, reporter, &mut others)?;
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
    Ok(Begun { job, token: None, gateway: None, control, waiting })
}

/// What a sandbox has beside its runner while it waits.
struct Others<'a> {
    /// Where a job comes to, if it is not there.
    incoming: Option<&'a mut Incoming>,
    /// The interpreter, if there is one already.
    waiting: Option<&'a Waiting>,
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
    others: &mut Others<'_>,
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
            let is_nobodys = others.incoming.as_ref().is_some_and(|incoming| !incoming.is_touched());
            if is_nobodys && others.waiting.is_some_and(Waiting::has_ended) {
                return Err(spawn_failed("the interpreter that waited for a script has ended"));
            }
            continue;
        }
        for message in control.read(StdinOnce) {
            match (message, &mut others.incoming) {
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
