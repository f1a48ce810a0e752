//! What the process may ask of the kernel: memory, time, its standard streams, and its end.

use nix::libc;
use seccompiler::{BackendError, BpfProgram, SeccompAction, SeccompFilter, TargetArch};

/// All of it. Nothing here names a file, an address or another process.
const ALLOWED: [i64; 24] = [
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_clock_gettime,
    libc::SYS_getrandom,
    libc::SYS_sched_yield,
    // By which the C library tells how large the stack of a thread is.
    libc::SYS_sched_getaffinity,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

pub(crate) fn program() -> Result<BpfProgram, BackendError> {
    let allowed = ALLOWED.into_iter().map(|number| (number, Vec::new())).collect();
    let (end, allow) = (SeccompAction::KillProcess, SeccompAction::Allow);
    SeccompFilter::new(allowed, end, allow, TargetArch::try_from(std::env::consts::ARCH)?)?.try_into()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_filter_can_be_made() {
        assert!(!super::program().unwrap().is_empty());
    }
}
