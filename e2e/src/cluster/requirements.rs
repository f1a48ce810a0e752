//! What the machine must bring: Debian packages, root, kernel features.

use std::path::Path;

use anyhow::{Result, bail};

/// A Debian package and a file that shows that it is there.
const PACKAGES: [(&str, &[&str]); 11] = [
    ("buildah", &["/usr/bin/buildah"]),
    ("conntrack", &["/usr/sbin/conntrack", "/sbin/conntrack"]),
    ("gcc", &["/usr/bin/gcc"]),
    ("iproute2", &["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip", "/bin/ip"]),
    ("ipset", &["/usr/sbin/ipset", "/sbin/ipset"]),
    ("iptables", &["/usr/sbin/iptables", "/sbin/iptables"]),
    ("libc6-dev", &["/usr/include/stdio.h"]),
    ("libseccomp-dev", &["/usr/include/seccomp.h"]),
    ("mmdebstrap", &["/usr/bin/mmdebstrap"]),
    ("pkg-config", &["/usr/bin/pkg-config"]),
    ("util-linux", &["/usr/bin/nsenter"]),
];

/// The packages that are missing.
pub fn missing_packages() -> Vec<&'static str> {
    PACKAGES.iter().filter(|(_, files)| !files.iter().any(|file| Path::new(file).exists())).map(|(package, _)| *package).collect()
}

/// The command that installs `packages`.
pub fn install_command(packages: &[&str]) -> String {
    format!("apt-get update && apt-get install -y --no-install-recommends {}", packages.join(" "))
}

/// Refuses with one line that says what to do.
pub fn check() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the cluster needs root: it mounts file systems and makes network namespaces. Run the command again with sudo");
    }
    let missing = missing_packages();
    if !missing.is_empty() {
        bail!("missing Debian packages. Run: {}", install_command(&missing));
    }
    if !std::process::Command::new("go").arg("version").output().is_ok_and(|output| output.status.success()) {
        bail!("Go is missing: version 1.26 or later must be on the PATH");
    }
    Ok(())
}
