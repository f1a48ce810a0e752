//! An interpreter that has begun before there is a script. It is told by a descriptor of its own what it is to run, once, and is then as one that was
//! started with it: the two programs that make it wait leave nothing behind that a script meets.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signalfd::SignalFd;
use nix::unistd::pipe2;
use paddock_protocol::{Language, PreStart, script_file};

use crate::interpreter::{self, Interpreter};
use crate::job::LoadedJob;
use crate::supervise::{readable, took_stop_signal, until};
use crate::system;

const PYTHON: &str = include_str!("pre_start/wait.py");
const NODE: &str = include_str!("pre_start/wait.mjs");
/// The number of the descriptor.
const WAITS_AT: &str = "PADDOCK_WAITS_AT";
/// Until it waits.
const PATIENCE: Duration = Duration::from_secs(30);
/// Until it has taken what it is told: nobody is heard meanwhile.
const TAKES_WITHIN: Duration = Duration::from_secs(5);
/// Of what it says that it does not start with.
const TOLD: usize = 150;

/// One that waits.
#[derive(Debug)]
pub(crate) struct Waiting {
    made: PreStart,
    script: PathBuf,
    interpreter: Interpreter,
    tell: File,
}

impl Waiting {
    /// Returns when it waits. Scripts will lie in `folder`.
    pub(crate) fn start(made: PreStart, folder: &Path, signals: &SignalFd) -> io::Result<Self> {
        let script = folder.join(script_file(made.extension.as_deref()));
        let (waits_at, tell) = pipe2(OFlag::O_CLOEXEC)?;
        // The one descriptor that the interpreter gets beside the usual three.
        fcntl(&waits_at, FcntlArg::F_SETFD(FdFlag::empty()))?;
        let mut command = interpreter::command(&made.command, made.file_bytes)?;
        command.env(WAITS_AT, waits_at.as_raw_fd().to_string());
        // What it is told later stands where it stands in the environment of one that is told at once.
        command.env("PADDOCK_RUN", "").env("PADDOCK_INPUT", "");
        match made.language {
            Language::Python => command.args(["-c", PYTHON]),
            // A module in a URL, so that workers, which load it again, find it whatever became of the files.
            Language::Node => {
                command.arg(&script).env("NODE_OPTIONS", format!("--import=data:text/javascript;base64,{}", STANDARD.encode(NODE)))
            }
        };
        let interpreter = Interpreter::of(command.spawn()?)?;
        drop(waits_at);
        let mut waiting = Self { made, script, interpreter, tell: tell.into() };
        let why = match waiting.until_it_waits(signals) {
            Ok(()) => return Ok(waiting),
            Err(error) => error,
        };
        system::kill_all(waiting.interpreter.leader);
        let mut said = Vec::new();
        let _ = system::set_nonblocking(&waiting.interpreter.stderr);
        let _ = (&waiting.interpreter.stderr).take(1 << 16).read_to_end(&mut said);
        let said = String::from_utf8_lossy(&said[said.len().saturating_sub(TOLD)..]).trim().to_owned();
        Err(if said.is_empty() { why } else { io::Error::other(format!("{why}: {said}")) })
    }

    /// It puts out one byte. There is no script that could.
    fn until_it_waits(&mut self, signals: &SignalFd) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = Instant::now();
            if now >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let mut polled = [
                PollFd::new(system::borrow(signals), PollFlags::POLLIN),
                PollFd::new(system::borrow(&self.interpreter.stdout), PollFlags::POLLIN),
            ];
            let _ = poll(&mut polled, until(Some(deadline), now));
            if readable(&polled, 1) {
                let mut byte = [1];
                return match self.interpreter.stdout.read(&mut byte)? {
                    1 if byte == [0] => Ok(()),
                    _ => Err(io::Error::other("it does not wait for a script")),
                };
            }
            if readable(&polled, 0) && took_stop_signal(signals) {
                return Err(io::ErrorKind::Interrupted.into());
            }
        }
    }

    /// Whether it has ended, for whatever reason.
    pub(crate) fn has_ended(&self) -> bool {
        system::has_ended(self.interpreter.leader)
    }

    /// Tells it what to run. What was settled when it was started cannot be changed: that is an error. Where it does not take what it is told, it has ended
    /// and run nothing, and there is none.
    pub(crate) fn run(self, job: &LoadedJob) -> io::Result<Option<Interpreter>> {
        let Self { made, script, interpreter, tell } = self;
        let asked = (&job.job.command, &job.job.extension, job.job.file_bytes, &job.script);
        if asked != (&made.command, &made.extension, made.file_bytes, &script) {
            return Err(io::Error::other("the one that waited is not the one of this job"));
        }
        let input = job.input.as_deref().unwrap_or(Path::new(""));
        let words = [script.to_string_lossy(), job.job.run.as_str().into(), input.to_string_lossy()];
        let words: Vec<&str> = words.iter().map(AsRef::as_ref).chain(job.job.args.iter().map(String::as_str)).collect();
        if words.iter().any(|word| word.contains('\0')) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "an argument has a zero byte"));
        }
        let words = words.join("\0");
        if write_within(TAKES_WITHIN, &tell, format!("{}\0{words}", words.len()).as_bytes()).is_ok() {
            return Ok(Some(interpreter));
        }
        // Before it reads that nothing follows. It has not begun: it was not told everything.
        system::kill_all(interpreter.leader);
        Ok(None)
    }
}

/// Whoever does not read holds nobody up for longer.
fn write_within(patience: Duration, mut file: &File, mut bytes: &[u8]) -> io::Result<()> {
    system::set_nonblocking(file.as_fd())?;
    let deadline = Instant::now() + patience;
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let now = Instant::now();
                if now >= deadline {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                let _ = poll(&mut [PollFd::new(system::borrow(&file), PollFlags::POLLOUT)], until(Some(deadline), now));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
