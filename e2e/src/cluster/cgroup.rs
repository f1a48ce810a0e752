//! The cgroup that every process of the cluster is born in. What is still in it belongs to the cluster, whatever its name.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::layout::NAME;

/// The hierarchies of this machine: one on cgroup v2, one for each controller on v1.
fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    let Ok(entries) = fs::read_dir(root) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir() && !path.is_symlink() && path.join("cgroup.procs").exists())
        .collect();
    found.sort();
    found
}

/// Makes the cgroup in every hierarchy. The kubelet's own tree goes beside `system`, in which the cluster's processes are.
pub fn create() -> Result<()> {
    for hierarchy in hierarchies() {
        let own = hierarchy.join(NAME);
        for folder in [&own, &own.join("system")] {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
            // cgroup v1: a cpuset takes no process before it has processors and memory.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let parent = folder.parent().map(|parent| parent.join(file));
                if let Some(value) = parent.and_then(|path| fs::read_to_string(path).ok())
                    && folder.join(file).exists()
                    && !hierarchy.join("cgroup.controllers").exists()
                {
                    fs::write(folder.join(file), value.trim())?;
                }
            }
        }
        if hierarchy.join("cgroup.controllers").exists() {
            let controllers = fs::read_to_string(hierarchy.join("cgroup.controllers"))?;
            let enable: Vec<String> = controllers.split_whitespace().map(|name| format!("+{name}")).collect();
            for folder in [&hierarchy, &own] {
                let _ = fs::write(folder.join("cgroup.subtree_control"), enable.join(" "));
            }
        }
    }
    Ok(())
}

/// The files into which a new process writes its pid to be born in the cgroup.
pub fn entrances() -> Vec<PathBuf> {
    hierarchies().into_iter().map(|hierarchy| hierarchy.join(NAME).join("system/cgroup.procs")).collect()
}

/// Every process in the cgroup and below.
pub fn members() -> Vec<i32> {
    let mut pids: Vec<i32> = hierarchies().iter().flat_map(|hierarchy| members_below(&hierarchy.join(NAME))).collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

fn members_below(folder: &Path) -> Vec<i32> {
    let mut pids: Vec<i32> =
        fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default().lines().filter_map(|line| line.parse().ok()).collect();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            pids.extend(members_below(&entry.path()));
        }
    }
    pids
}

/// Kills every member until none is left, then removes the cgroup.
pub fn remove() -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let members = members();
        if members.is_empty() {
            break;
        }
        ensure!(Instant::now() < deadline, "processes of the cluster do not end: {members:?}");
        for pid in members {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    for hierarchy in hierarchies() {
        remove_below(&hierarchy.join(NAME));
    }
    Ok(())
}

fn remove_below(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_below(&entry.path());
        }
    }
    let _ = fs::remove_dir(folder);
}
