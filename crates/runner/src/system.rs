//! System calls: what `nix` and the standard library do not wrap safely is here, and only here.
#![allow(unsafe_code)]

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::resource::{Resource, UsageWho, getrusage, setrlimit};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};
use nix::sys::time::TimeValLike as _;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, getpid, setsid};
use seccompiler::BpfProgram;

/// Bounds of one process of the script.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) file_bytes: u64,
    pub(crate) open_files: u64,
    pub(crate) processes: u64,
}

/// Keeps the script from tracing this process and from opening its files under `/proc`.
pub(crate) fn make_non_dumpable() -> io::Result<()> {
    // SAFETY: PR_SET_DUMPABLE takes one integer and touches no memory.
    let result = unsafe { nix::libc::prctl(nix::libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Runs `command` in a session of its own, within `bounds` and behind `filters`.
pub(crate) fn confine(command: &mut Command, bounds: Bounds, filters: [BpfProgram; 2]) {
    let confine = move || {
        setsid()?;
        // The mask of this process is inherited: with it the script would never see TERM.
        SigSet::empty().thread_set_mask()?;
        setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
        setrlimit(Resource::RLIMIT_FSIZE, bounds.file_bytes, bounds.file_bytes)?;
        lower(Resource::RLIMIT_NOFILE, bounds.open_files)?;
        lower(Resource::RLIMIT_NPROC, bounds.processes)?;
        filters.iter().try_for_each(|filter| seccompiler::apply_filter(filter)).map_err(|_| io::ErrorKind::PermissionDenied)?;
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made; nothing is allocated and no lock is taken.
    unsafe { command.pre_exec(confine) };
}

/// A socket that will be connected, or broken, soon.
pub(crate) fn begin_to_connect(address: SocketAddr) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(TcpStream::from(socket)),
        Err(error) => Err(error.into()),
    }
}

/// Lowers a limit, which never needs a privilege.
fn lower(resource: Resource, wanted: u64) -> nix::Result<()> {
    let (_, hard) = nix::sys::resource::getrlimit(resource)?;
    let value = wanted.min(hard);
    setrlimit(resource, value, value)
}

/// TERM, INT and CHLD as a readable descriptor.
pub(crate) fn signals() -> nix::Result<SignalFd> {
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        mask.add(signal);
    }
    mask.thread_block()?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

/// Makes reads return at once.
pub(crate) fn set_nonblocking(descriptor: impl AsFd) -> nix::Result<()> {
    fcntl(descriptor, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(drop)
}

/// Sends a signal to the session of the script.
pub(crate) fn signal_session(leader: Pid, signal: Signal) {
    let _ = kill(Pid::from_raw(-leader.as_raw()), signal);
}

/// Kills everything that was started. As PID 1 that is every other process of the sandbox, whatever session it moved to.
pub(crate) fn kill_all(leader: Pid) {
    if getpid() == Pid::from_raw(1) {
        let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    } else {
        signal_session(leader, Signal::SIGKILL);
    }
}

/// Takes the status of one ended child, if there is one.
pub(crate) fn reap() -> Option<(Pid, Ended)> {
    match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::Exited(pid, code)) => Some((pid, Ended { code: Some(code), signal: None })),
        Ok(WaitStatus::Signaled(pid, signal, _)) => Some((pid, Ended { code: None, signal: Some(signal as i32) })),
        _ => None,
    }
}

/// Whether a child has ended. Its status stays to be taken.
pub(crate) fn has_ended(child: Pid) -> bool {
    let seen = waitid(Id::Pid(child), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT);
    !matches!(seen, Ok(WaitStatus::StillAlive))
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
}

/// CPU milliseconds and largest resident set in bytes of all children that were waited for.
pub(crate) fn children_usage() -> (u64, u64) {
    getrusage(UsageWho::RUSAGE_CHILDREN).map_or((0, 0), |usage| {
        let cpu = usage.user_time().num_milliseconds() + usage.system_time().num_milliseconds();
        (u64::try_from(cpu).unwrap_or(0), u64::try_from(usage.max_rss()).unwrap_or(0) * 1024)
    })
}

/// A descriptor for `poll`, by its number, so that the owner may be used while it is being polled.
pub(crate) fn borrow<'a>(descriptor: &impl AsFd) -> BorrowedFd<'a> {
    // SAFETY: every descriptor handed in is owned by `Supervision` and stays open as long as it is polled.
    unsafe { BorrowedFd::borrow_raw(descriptor.as_fd().as_raw_fd()) }
}
