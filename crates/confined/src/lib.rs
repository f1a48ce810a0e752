//! Work that hostile bytes could make endless, or turn against who does it, in a process of its own.
//!
//! Neither time nor memory can be taken back from a thread, and a parser that is broken from outside has all that its process has. So a program
//! starts itself once more for each question, with nothing of its environment. That process gives up all but its standard streams before it reads the
//! first byte: it opens no file, connects to nothing, starts and looks into no other process. What it does not answer within its bounds has no
//! answer.

mod filter;

use std::io::{self, Read as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// One kind of work, and what it may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The argument that makes the program the process for it.
    pub argument: &'static str,
    /// Seconds of CPU.
    pub cpu_seconds: u64,
    /// Address space, in bytes.
    pub memory: u64,
    /// Stack of what answers, in bytes, part of the address space.
    pub stack: usize,
    /// How long to wait for an answer, however busy the machine is.
    pub wall: Duration,
    /// Longest question as JSON, in bytes.
    pub question: u64,
    /// Longest answer as JSON, in bytes.
    pub answer: u64,
}

/// What came of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answered<A> {
    /// The answer.
    Yes(A),
    /// It took more CPU or memory than it may, or broke the process: the word tells by what it ended.
    Broke(String),
}

/// Asks a process of its own.
///
/// # Errors
/// The process could not be had, or had no chance to answer in time: that says nothing of the question.
pub async fn ask<A: DeserializeOwned>(bounds: &Bounds, question: &impl Serialize) -> io::Result<Answered<A>> {
    let mut command = tokio::process::Command::new(std::env::current_exe()?);
    // Else the C library wants 64 MiB of address space for each thread that allocates, and a page for each allocation where it does not get them.
    command
        .arg(bounds.argument)
        .env_clear()
        .env("MALLOC_ARENA_MAX", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let mut child = command.spawn()?;
    let text = serde_json::to_vec(question)?;
    let (mut input, output) = (child.stdin.take(), child.stdout.take());
    let talk = async {
        // A process that ended early does not read on; its answer, or that there is none, tells why.
        if let Some(input) = &mut input {
            let _ = input.write_all(&text).await;
        }
        drop(input);
        let mut answer = Vec::new();
        if let Some(output) = output {
            output.take(bounds.answer + 1).read_to_end(&mut answer).await?;
        }
        // It does not write on: what read it is closed.
        Ok::<_, io::Error>((answer, child.wait().await?))
    };
    let (answer, status) = tokio::time::timeout(bounds.wall, talk).await.map_err(|_| io::ErrorKind::TimedOut)??;
    if answer.len() as u64 > bounds.answer {
        return Ok(Answered::Broke("an answer that is too long".into()));
    }
    if status.success() {
        return Ok(serde_json::from_slice(&answer).map_or_else(|_| Answered::Broke("an answer that is none".into()), Answered::Yes));
    }
    broken(status).map(Answered::Broke).ok_or_else(|| io::Error::other(status.to_string()))
}

/// What a process ends by that a question has broken; `None` where there was none to begin with. The kernel kills what takes the last of the memory
/// that there is.
fn broken(status: ExitStatus) -> Option<String> {
    match status.signal() {
        // Whoever ends it from outside does so by one of these.
        Some(number) if [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].iter().any(|signal| *signal as i32 == number) => None,
        Some(number) => Some(Signal::try_from(number).map_or_else(|_| number.to_string(), |signal| signal.as_str().to_owned())),
        None => (status.code() == Some(i32::from(BROKEN))).then(|| "panic".to_owned()),
    }
}

/// Exit code of a process whose answer panicked.
const BROKEN: u8 = 101;

/// The process: a question on standard input, an answer on standard output. What libraries read once of files is read by `prepare`, before there is a
/// question. Nothing of the answer is freed: what was read may be nested as deeply as
/// the stack is long, and the process ends with it.
pub fn serve<Q: DeserializeOwned, A: Serialize>(
    bounds: &'static Bounds,
    prepare: impl FnOnce(),
    answer: impl FnOnce(Q) -> A + Send + 'static,
) -> ExitCode {
    prepare();
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
    let work = move || -> Option<()> {
        // For all threads: the first one could be made to do what this one may not.
        seccompiler::apply_filter_all_threads(&filter::program().ok()?).ok()?;
        let mut text = Vec::new();
        io::stdin().take(bounds.question).read_to_end(&mut text).ok()?;
        let question = serde_json::from_slice(&text).ok()?;
        let answer = std::mem::ManuallyDrop::new(answer(question));
        serde_json::to_writer(io::stdout(), &*answer).ok()
    };
    match std::thread::Builder::new().stack_size(bounds.stack).spawn(work).map(std::thread::JoinHandle::join) {
        Ok(Ok(Some(()))) => ExitCode::SUCCESS,
        Ok(Ok(None)) | Err(_) => ExitCode::FAILURE,
        Ok(Err(_)) => ExitCode::from(BROKEN),
    }
}
