//! Whether the runner is where it should be. Fail closed: what cannot be read is not as it should be.

use std::path::Path;

use paddock_protocol::{Interfaces, RefusedReason};

use crate::report::Refusal;

const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Looks around.
pub(crate) fn check(allowed: Interfaces) -> Result<(), Refusal> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    is_gvisor(&read("/proc/version"))?;
    has_allowed_interfaces(&read("/proc/net/dev"), allowed)?;
    if Path::new(TOKEN).exists() {
        return Err(Refusal::new(RefusedReason::UnexpectedToken, format!("{TOKEN} exists")));
    }
    Ok(())
}

fn is_gvisor(version: &str) -> Result<(), Refusal> {
    if version.to_ascii_lowercase().contains("gvisor") {
        return Ok(());
    }
    Err(Refusal::new(RefusedReason::NotSandboxed, format!("the kernel is not gVisor's: {}", version.trim())))
}

/// The names in `/proc/net/dev`: two lines of headings, then `NAME: numbers` for each interface.
pub(crate) fn interfaces(table: &str) -> Vec<&str> {
    table.lines().skip(2).filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim()).collect()
}

fn has_allowed_interfaces(table: &str, allowed: Interfaces) -> Result<(), Refusal> {
    if allowed == Interfaces::Any {
        return Ok(());
    }
    if table.lines().count() < 2 {
        return Err(Refusal::new(RefusedReason::UnexpectedInterface, "the interfaces cannot be read"));
    }
    let others: Vec<&str> = interfaces(table).into_iter().filter(|name| *name != "lo").collect();
    if others.is_empty() {
        return Ok(());
    }
    Err(Refusal::new(RefusedReason::UnexpectedInterface, format!("interfaces: {}", others.join(", "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADINGS: &str = "Inter-|   Receive\n face |bytes\n";

    #[test]
    fn only_gvisor_is_a_sandbox() {
        assert!(is_gvisor("Linux version 4.19.0-gvisor #1 SMP").is_ok());
        for other in ["Linux version 6.18.44 (gcc)", ""] {
            assert_eq!(is_gvisor(other).unwrap_err().reason, RefusedReason::NotSandboxed, "{other}");
        }
    }

    #[test]
    fn interfaces_are_told_by_their_names() {
        assert_eq!(interfaces(&format!("{HEADINGS}    lo: 0 0\n  eth0: 1 2\n")), ["lo", "eth0"]);
    }

    #[test]
    fn loopback_is_no_interface_and_the_unreadable_is_one() {
        let with = |names: &[&str]| names.iter().fold(HEADINGS.to_owned(), |table, name| table + &format!("  {name}: 0 0\n"));
        assert!(has_allowed_interfaces(&with(&[]), Interfaces::LoopbackOnly).is_ok());
        assert!(has_allowed_interfaces(&with(&["lo"]), Interfaces::LoopbackOnly).is_ok());
        assert!(has_allowed_interfaces(&with(&["lo", "eth0"]), Interfaces::Any).is_ok());
        assert!(has_allowed_interfaces(&with(&["lo", "eth0"]), Interfaces::LoopbackOnly).is_err());
        assert!(has_allowed_interfaces("", Interfaces::LoopbackOnly).is_err());
    }
}
