//! One script from the start message to the report: a single loop over standard input, signals, both output pipes and the clock.

use std::fs::File;
use std::io::{self, Read as _, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;
use paddock_protocol::{Cause, ControlMessage, Egress, Output, Payload, RefusedReason, Report, Stream, Summary};

use crate::capture::Capture;
use crate::control::Control;
use crate::interpreter::{Interpreter, RESULT};
use crate::job::LoadedJob;
use crate::proxy::{Gateway, Proxy};
use crate::report::{Refusal, Reporter};
use crate::result_file;
use crate::start::{self, Begun, JobSource};
use crate::system::{self, Ended};

pub(crate) const WORKSPACE: &str = "/workspace";
/// Where the kubelet looks for a termination message.
pub(crate) const TERMINATION_LOG: &str = "/dev/termination-log";
/// Bytes. TLS and what is carried at once need less than half of it.
const PROXY_STACK: usize = 256 << 10;
/// How long killed processes may take to be gone.
const REAP_LIMIT: Duration = Duration::from_secs(2);

/// Runs the job of `source`; returns the exit code that mirrors the script's.
pub(crate) fn run<W: Write>(source: &JobSource<'_>, reporter: &mut Reporter<W>) -> Result<u8, Refusal> {
    let broken = |what: &str, error: &dyn std::fmt::Display| Refusal::new(RefusedReason::SpawnFailed, format!("{what}: {error}"));
    system::make_non_dumpable().map_err(|error| broken("cannot become non-dumpable", &error))?;
    let signals = system::signals().map_err(|error| broken("cannot take signals", &error))?;
    let Begun { job, token, gateway, control, waiting } = start::begin(source, &signals, reporter)?;
    reporter.say(&Payload::Accepted {});

    // Without a token there is nothing that the gateway would grant.
    let gateway = job.job.egress.as_ref().zip(gateway);
    let proxy = gateway.zip(token).map(|((egress, address), token)| begin_proxy(egress, address, token)).transpose();
    let proxy = proxy.map_err(|error| broken("cannot start the proxy", &error))?;
    let waited = waiting.map(|waiting| waiting.run(&job)).transpose().map(Option::flatten);
    // One that has ended since its sandbox got the job is no matter of the run.
    let interpreter = waited.and_then(|waited| waited.map_or_else(|| Interpreter::start(&job, proxy.as_deref()), Ok));
    let supervision = interpreter.and_then(|interpreter| Supervision::of(interpreter, &job, control, signals));
    let mut supervision = supervision.map_err(|error| broken("cannot start the interpreter", &error))?;
    reporter.say(&Payload::Started {});
    let ended = supervision.follow(reporter);
    supervision.end_everything();
    supervision.drain(reporter);
    Ok(supervision.report(ended, &job, reporter))
}

/// Returns the URL at which clients of the script find it.
fn begin_proxy(egress: &Egress, gateway: SocketAddr, token: String) -> io::Result<String> {
    let proxy = Proxy::new(Gateway::new(gateway, &egress.name, &egress.authority)?, token)?;
    let url = proxy.url()?;
    std::thread::Builder::new().name("proxy".into()).stack_size(PROXY_STACK).spawn(move || proxy.serve())?;
    Ok(url)
}

/// Standard input without a buffer of its own: what lies in a buffer, `poll` does not see.
pub(crate) struct StdinOnce;

impl io::Read for StdinOnce {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        nix::unistd::read(io::stdin(), buffer).map_err(io::Error::from)
    }
}

/// Why and until when the script is being ended.
enum Ending {
    NotYet,
    Term { cause: Cause, kill_at: Instant },
    Kill { cause: Cause },
}

struct Pipe {
    stream: Stream,
    file: Option<File>,
    capture: Capture,
}

struct Supervision {
    leader: Pid,
    signals: SignalFd,
    control: Control,
    pipes: [Pipe; 2],
    started: Instant,
    first_output: Option<Duration>,
    deadline: Instant,
    grace: Duration,
    ending: Ending,
}

impl Supervision {
    fn of(interpreter: Interpreter, job: &LoadedJob, control: Control, signals: SignalFd) -> io::Result<Self> {
        let keep = job.job.stream_bytes as usize;
        let pipe = |stream, file: File| -> io::Result<Pipe> {
            system::set_nonblocking(&file)?;
            Ok(Pipe { stream, file: Some(file), capture: Capture::new(keep) })
        };
        let pipes = [pipe(Stream::Stdout, interpreter.stdout)?, pipe(Stream::Stderr, interpreter.stderr)?];
        let started = Instant::now();
        Ok(Self {
            leader: interpreter.leader,
            signals,
            control,
            pipes,
            started,
            first_output: None,
            deadline: started + Duration::from_secs(u64::from(job.job.timeout_seconds)),
            grace: Duration::from_secs(u64::from(job.job.grace_seconds)),
            ending: Ending::NotYet,
        })
    }

    /// Until the interpreter has ended: its children do not count, even if they hold the pipes open.
    fn follow<W: Write>(&mut self, reporter: &mut Reporter<W>) -> Ended {
        loop {
            while let Some((pid, ended)) = system::reap() {
                if pid == self.leader {
                    return ended;
                }
            }
            let now = Instant::now();
            self.advance(now);
            let stdin = io::stdin();
            let mut polled = vec![PollFd::new(system::borrow(&self.signals), PollFlags::POLLIN)];
            let mut sources = vec![Source::Signals];
            if !self.control.is_closed() {
                polled.push(PollFd::new(system::borrow(&stdin), PollFlags::POLLIN));
                sources.push(Source::Control);
            }
            for (index, pipe) in self.pipes.iter().enumerate() {
                if let Some(file) = &pipe.file {
                    polled.push(PollFd::new(system::borrow(file), PollFlags::POLLIN));
                    sources.push(Source::Pipe(index));
                }
            }
            let _ = poll(&mut polled, until(self.next_deadline(), now));
            let ready: Vec<Source> =
                sources.into_iter().enumerate().filter(|(index, _)| readable(&polled, *index)).map(|(_, source)| source).collect();
            for source in ready {
                match source {
                    Source::Signals if took_stop_signal(&self.signals) => self.stop(Cause::Stopped, Instant::now()),
                    Source::Signals => {}
                    Source::Control => {
                        let messages = self.control.read(StdinOnce);
                        if messages.contains(&ControlMessage::Kill {}) {
                            self.kill(Cause::Stopped);
                        } else if messages.contains(&ControlMessage::Stop {}) {
                            self.stop(Cause::Stopped, Instant::now());
                        }
                    }
                    Source::Pipe(index) => _ = self.pump(index, reporter),
                }
            }
        }
    }

    /// Moves from running to TERM and from TERM to KILL as time goes by.
    fn advance(&mut self, now: Instant) {
        if now >= self.deadline {
            self.stop(Cause::TimedOut, now);
        }
        if let Ending::Term { cause, kill_at } = self.ending
            && now >= kill_at
        {
            self.kill(cause);
        }
    }

    fn kill(&mut self, cause: Cause) {
        system::kill_all(self.leader);
        self.ending = Ending::Kill { cause };
    }

    fn stop(&mut self, cause: Cause, now: Instant) {
        if matches!(self.ending, Ending::NotYet) {
            system::signal_session(self.leader, Signal::SIGTERM);
            self.ending = Ending::Term { cause, kill_at: now + self.grace };
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        match self.ending {
            Ending::NotYet => Some(self.deadline),
            Ending::Term { kill_at, .. } => Some(kill_at),
            Ending::Kill { .. } => None,
        }
    }

    /// Reads once from a pipe. Says whether there may be more.
    fn pump<W: Write>(&mut self, index: usize, reporter: &mut Reporter<W>) -> bool {
        let mut buffer = [0; 16 * 1024];
        let pipe = &mut self.pipes[index];
        let Some(file) = &mut pipe.file else {
            return false;
        };
        match file.read(&mut buffer) {
            Ok(0) => pipe.file = None,
            Ok(count) => {
                self.first_output.get_or_insert_with(|| self.started.elapsed());
                if let Some((offset, head)) = pipe.capture.push(&buffer[..count]) {
                    reporter.output(pipe.stream, offset, &head);
                }
                return true;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => pipe.file = None,
        }
        false
    }

    /// Kills what is left and waits until it is gone, so that nothing writes while the result is read.
    fn end_everything(&self) {
        let deadline = Instant::now() + REAP_LIMIT;
        loop {
            system::kill_all(self.leader);
            while system::reap().is_some() {}
            let now = Instant::now();
            if now >= deadline || !has_children() {
                return;
            }
            let mut polled = [PollFd::new(system::borrow(&self.signals), PollFlags::POLLIN)];
            let _ = poll(&mut polled, until(Some(deadline), now));
            let _ = took_stop_signal(&self.signals);
        }
    }

    /// What is still in the pipes, at most what they can hold: a killed writer adds nothing.
    fn drain<W: Write>(&mut self, reporter: &mut Reporter<W>) {
        const PIPE_CAPACITY_READS: usize = 128;
        for index in 0..self.pipes.len() {
            for _ in 0..PIPE_CAPACITY_READS {
                if !self.pump(index, reporter) {
                    break;
                }
            }
        }
    }

    fn report<W: Write>(mut self, ended: Ended, job: &LoadedJob, reporter: &mut Reporter<W>) -> u8 {
        let wall = self.started.elapsed();
        for pipe in &mut self.pipes {
            for (offset, piece) in [pipe.capture.gathered(), pipe.capture.tail()].into_iter().flatten() {
                reporter.output(pipe.stream, offset, &piece);
            }
        }
        let (output, bytes) = result_file::read(Path::new(RESULT), u64::from(job.job.result_bytes));
        reporter.output(Stream::Result, 0, &bytes);
        let (cpu_milliseconds, peak_memory_bytes) = system::children_usage();
        let is_whole = matches!(output, Output::Present { bytes: all } if all == bytes.len() as u64);
        let report = Report {
            exit_code: ended.code,
            signal: ended.signal,
            cause: match self.ending {
                Ending::NotYet => Cause::Itself,
                Ending::Term { cause, .. } | Ending::Kill { cause } => cause,
            },
            stdout_bytes: self.pipes[0].capture.total(),
            stderr_bytes: self.pipes[1].capture.total(),
            first_output_milliseconds: self.first_output.map(milliseconds),
            output,
            cpu_milliseconds,
            peak_memory_bytes,
            wall_milliseconds: milliseconds(wall),
        };
        let output = String::from_utf8(bytes).ok().filter(|_| is_whole);
        let [stdout, stderr] = [0, 1].map(|index: usize| self.pipes[index].capture.whole());
        reporter.finish(&Summary { report, output, stdout, stderr }, Path::new(TERMINATION_LOG));
        let code = ended.code.unwrap_or_else(|| 128 + ended.signal.unwrap_or(0));
        u8::try_from(code & 255).unwrap_or(1)
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[derive(Clone, Copy)]
enum Source {
    Signals,
    Control,
    Pipe(usize),
}

/// Whether a poll says that a read will not wait: data, an end, or an error.
pub(crate) fn readable(polled: &[PollFd<'_>], index: usize) -> bool {
    polled.get(index).and_then(PollFd::revents).is_some_and(|events| !events.is_empty())
}

/// Takes every pending signal; says whether one asks for the end.
pub(crate) fn took_stop_signal(signals: &SignalFd) -> bool {
    let mut stop = false;
    while let Ok(Some(info)) = signals.read_signal() {
        stop |= i32::try_from(info.ssi_signo).is_ok_and(|number| number == Signal::SIGTERM as i32 || number == Signal::SIGINT as i32);
    }
    stop
}

fn has_children() -> bool {
    !matches!(nix::sys::wait::waitpid(None::<Pid>, Some(nix::sys::wait::WaitPidFlag::WNOHANG)), Err(nix::errno::Errno::ECHILD))
}

/// Time until `deadline` for `poll`, rounded up so that the loop never spins on the last millisecond.
pub(crate) fn until(deadline: Option<Instant>, now: Instant) -> PollTimeout {
    deadline.map_or(PollTimeout::NONE, |deadline| {
        let wait = deadline.saturating_duration_since(now) + Duration::from_millis(1);
        PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)
    })
}
