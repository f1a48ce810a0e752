//! What a script may not ask of the kernel: namespaces of its own, in which it would be root, mounts, and sockets for ICMP, which some network
//! policies let through whatever they say.
//!
//! gVisor grants both to anybody. They reach neither the node nor the runner, but they open parts of gVisor that no script needs, and with a
//! mount a script gets around the size of its scratch directory.

use nix::libc;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// Never allowed.
const REFUSED: [i64; 11] = [
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_mount_setattr,
];

/// A new process with one of these would be in a namespace of its own.
const NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// A socket for one of these carries data in echoes.
const ECHOES: [(libc::c_int, libc::c_int); 4] = [
    (libc::AF_INET, libc::IPPROTO_ICMP),
    (libc::AF_INET, libc::IPPROTO_ICMPV6),
    (libc::AF_INET6, libc::IPPROTO_ICMP),
    (libc::AF_INET6, libc::IPPROTO_ICMPV6),
];

/// The filters, to be applied one after the other.
pub(crate) fn programs() -> Result<[BpfProgram; 2], BackendError> {
    let mut refused: Vec<(i64, Vec<SeccompRule>)> = REFUSED.into_iter().map(|number| (number, Vec::new())).collect();
    let of_a_namespace = NAMESPACES.into_iter().map(|flag| {
        let bit = u64::try_from(flag).unwrap_or_default();
        SeccompRule::new(vec![SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(bit), bit)?])
    });
    refused.push((libc::SYS_clone, of_a_namespace.collect::<Result<_, _>>()?));
    let of_echoes = ECHOES.into_iter().map(|(family, protocol)| {
        let is = |argument, value: libc::c_int| {
            SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, u64::try_from(value).unwrap_or_default())
        };
        SeccompRule::new(vec![is(0, family)?, is(2, protocol)?])
    });
    refused.push((libc::SYS_socket, of_echoes.collect::<Result<_, _>>()?));
    // The flags of clone3 are in memory, where a filter cannot look. Without it, C libraries use clone.
    let unknown = vec![(libc::SYS_clone3, Vec::new())];
    Ok([program(refused, libc::EPERM)?, program(unknown, libc::ENOSYS)?])
}

fn program(calls: Vec<(i64, Vec<SeccompRule>)>, error: libc::c_int) -> Result<BpfProgram, BackendError> {
    let error = SeccompAction::Errno(u32::try_from(error).unwrap_or_default());
    SeccompFilter::new(calls.into_iter().collect(), SeccompAction::Allow, error, TargetArch::try_from(std::env::consts::ARCH)?)?.try_into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_can_be_made() {
        assert!(programs().unwrap().iter().all(|program| !program.is_empty()));
    }
}
