//! The interpreter of a script: what it is started with.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use nix::unistd::Pid;

use crate::filter;
use crate::job::LoadedJob;
use crate::supervise::WORKSPACE;
use crate::system::{self, Bounds};

pub(crate) const RESULT: &str = "/workspace/.paddock-result.json";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Open files of one process of the script.
const OPEN_FILES: u64 = 1024;
/// Processes of the script, where the kernel counts them.
const PROCESSES: u64 = 256;
/// Where clients look for a proxy.
const PROXY_VARIABLES: [&str; 4] = ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"];
/// What is within the sandbox is no matter of the proxy, and Node.js looks for one only if it is told to.
const BESIDE_THE_PROXY: [(&str, &str); 3] =
    [("NO_PROXY", "localhost,127.0.0.1,::1"), ("no_proxy", "localhost,127.0.0.1,::1"), ("NODE_USE_ENV_PROXY", "1")];

/// One that runs, in a session of its own, with both ends of what it puts out.
#[derive(Debug)]
pub(crate) struct Interpreter {
    pub(crate) leader: Pid,
    pub(crate) stdout: File,
    pub(crate) stderr: File,
}

impl Interpreter {
    /// Starts one for a job.
    pub(crate) fn start(job: &LoadedJob, proxy: Option<&str>) -> io::Result<Self> {
        let mut command = command(&job.job.command, job.job.file_bytes)?;
        command.arg(&job.script).args(&job.job.args).env("PADDOCK_RUN", &job.job.run);
        if let Some(path) = &job.input {
            command.stdin(File::open(path)?).env("PADDOCK_INPUT", path);
        }
        if let Some(url) = proxy {
            command.envs(PROXY_VARIABLES.map(|name| (name, url))).envs(BESIDE_THE_PROXY);
        }
        Self::of(command.spawn()?)
    }

    pub(crate) fn of(mut child: Child) -> io::Result<Self> {
        let end = |pipe: Option<OwnedFd>| pipe.map(File::from).ok_or_else(|| io::Error::other("it has no pipe"));
        let (stdout, stderr) = (end(child.stdout.take().map(OwnedFd::from))?, end(child.stderr.take().map(OwnedFd::from))?);
        Ok(Self { leader: Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?), stdout, stderr })
    }
}

/// The interpreter with what is the same for every script.
pub(crate) fn command(words: &[String], file_bytes: u64) -> io::Result<Command> {
    let mut command = Command::new(words.first().ok_or(io::ErrorKind::InvalidInput)?);
    command.args(&words[1..]);
    command.env_clear().env("PATH", PATH).env("HOME", WORKSPACE).env("TMPDIR", WORKSPACE).env("LANG", "C.UTF-8");
    command.env("PADDOCK_RESULT", RESULT).current_dir(WORKSPACE);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let bounds = Bounds { file_bytes, open_files: OPEN_FILES, processes: PROCESSES };
    system::confine(&mut command, bounds, filter::programs().map_err(io::Error::other)?);
    Ok(command)
}
