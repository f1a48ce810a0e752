//! Processes of the cluster, known by pid and start time: a pid alone may by now belong to somebody else.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::cgroup;
use super::layout::Layout;

/// What is written down about a process.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its name in `devcluster status`.
    pub name: String,
    /// Process id.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`: clock ticks after boot.
    pub start_time: u64,
}

impl Record {
    /// Whether that very process still runs.
    pub fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.start_time)
    }

    /// Sends a signal, if that very process still runs.
    pub fn signal(&self, signal: Signal) {
        if self.is_alive() {
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }
}

/// Start time of a running process; `None` for a zombie. While other threads of it still end, it holds its files and sockets, and runs.
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold anything.
    let fields: Vec<&str> = stat[stat.rfind(')')? + 2..].split(' ').collect();
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    if matches!(fields.first(), Some(&("Z" | "X"))) && threads <= 1 {
        return None;
    }
    fields.get(19)?.parse().ok()
}

fn path(layout: &Layout, name: &str) -> PathBuf {
    layout.run.join("process").join(format!("{name}.json"))
}

/// Starts a program in the cluster's cgroup and network namespace, its output going to its log.
pub fn start(layout: &Layout, name: &str, program: &std::path::Path, arguments: &[String], search_path: &str) -> Result<Record> {
    let log_path = layout.log(name);
    fs::create_dir_all(log_path.parent().context("a log lies in a folder")?)?;
    let log = File::create(&log_path)?;
    // The shell enters the cgroup before anything else runs, so that no child can be born outside.
    let enter: String = cgroup::entrances().iter().map(|path| format!("echo $$ > '{}' && ", path.display())).collect();
    let mut command = Command::new("setsid");
    command
        .args(["sh", "-c", &format!("{enter}exec nsenter --net=\"$0\" -- \"$@\"")])
        .arg(Layout::network_namespace())
        .arg(program)
        .args(arguments)
        .env_clear()
        .env("PATH", search_path)
        .env("HOME", "/root")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
    let pid = i32::try_from(child.id()).context("a pid is positive")?;
    let record = Record { name: name.to_owned(), pid, start_time: start_time(pid).with_context(|| format!("{name} ended at once"))? };
    let path = path(layout, name);
    fs::create_dir_all(path.parent().context("a record lies in a folder")?)?;
    fs::write(path, serde_json::to_vec(&record)?)?;
    Ok(record)
}

/// All recorded processes, alive or not.
pub fn records(layout: &Layout) -> Vec<Record> {
    let mut records: Vec<Record> = fs::read_dir(layout.run.join("process"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| serde_json::from_slice(&fs::read(entry.path()).ok()?).ok())
        .collect();
    records.sort_by(|a: &Record, b: &Record| a.name.cmp(&b.name));
    records
}

/// The record of one process.
pub fn record(layout: &Layout, name: &str) -> Option<Record> {
    serde_json::from_slice(&fs::read(path(layout, name)).ok()?).ok()
}

/// Asks the process to end and waits for it; after `patience` it is killed.
pub fn stop(record: &Record, patience: Duration) {
    record.signal(Signal::SIGTERM);
    let deadline = Instant::now() + patience;
    while record.is_alive() && Instant::now() < deadline {
        reap(record.pid);
        std::thread::sleep(Duration::from_millis(10));
    }
    record.signal(Signal::SIGKILL);
    while record.is_alive() {
        reap(record.pid);
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Takes the exit status if the process is a child of this one.
fn reap(pid: i32) {
    let _ = nix::sys::wait::waitpid(Pid::from_raw(pid), Some(nix::sys::wait::WaitPidFlag::WNOHANG));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_process_with_the_same_pid_is_not_ours() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let mut record = Record { name: "self".into(), pid, start_time: start_time(pid).unwrap() };
        assert!(record.is_alive());
        record.start_time += 1;
        assert!(!record.is_alive());
    }
}
