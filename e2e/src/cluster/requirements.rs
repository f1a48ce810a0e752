//! What the machine must bring: Debian packages, root, kernel features.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use super::command::{run, succeeds};

/// A Debian package and a file that shows that it is there.
const PACKAGES: [(&str, &[&str]); 14] = [
    ("buildah", &["/usr/bin/buildah"]),
    ("conntrack", &["/usr/sbin/conntrack", "/sbin/conntrack"]),
    ("gcc", &["/usr/bin/gcc"]),
    ("iproute2", &["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip", "/bin/ip"]),
    ("ipset", &["/usr/sbin/ipset", "/sbin/ipset"]),
    ("iptables", &["/usr/sbin/iptables", "/sbin/iptables"]),
    ("libc6-dev", &["/usr/include/stdio.h"]),
    ("libseccomp-dev", &["/usr/include/seccomp.h"]),
    ("busybox-static", &["/bin/busybox"]),
    ("mmdebstrap", &["/usr/bin/mmdebstrap"]),
    ("npm", &["/usr/bin/npm", "/usr/local/bin/npm"]),
    ("pkg-config", &["/usr/bin/pkg-config"]),
    ("python3", &["/usr/bin/python3"]),
    ("util-linux", &["/usr/bin/nsenter"]),
];

/// The packages that are missing.
fn missing_packages() -> Vec<&'static str> {
    PACKAGES.iter().filter(|(_, files)| !files.iter().any(|file| Path::new(file).exists())).map(|(package, _)| *package).collect()
}

fn install_command(packages: &[&str]) -> String {
    format!("apt-get update && apt-get install -y --no-install-recommends {}", packages.join(" "))
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Installs what is missing, as root.
pub fn install(say: &dyn Fn(&str)) -> Result<()> {
    let missing = missing_packages();
    if missing.is_empty() {
        return Ok(());
    }
    let command = install_command(&missing);
    if !is_root() {
        bail!("missing Debian packages. Run as root: {command}");
    }
    say(&format!("installing Debian packages: {command}"));
    run(Command::new("sh").args(["-c", &command]).env("DEBIAN_FRONTEND", "noninteractive")).map(drop)
}

/// Refuses with one line that says what to do.
pub fn check() -> Result<()> {
    if !is_root() {
        bail!("the cluster needs root: it mounts file systems and makes network namespaces. Run the command again as root");
    }
    let missing = missing_packages();
    if !missing.is_empty() {
        bail!("missing Debian packages. Run: {}", install_command(&missing));
    }
    if !succeeds(Command::new("go").arg("version")) {
        bail!("Go is missing: version 1.26 or later must be on the PATH");
    }
    Ok(())
}
