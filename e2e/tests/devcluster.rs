//! The local cluster itself: what it says, what it survives, what it leaves behind. It takes the cluster down and up again, so it runs
//! before anything is installed.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use paddock_e2e::cluster::layout::{HOST_LINK, Layout, NAME};
use paddock_e2e::cluster::{cgroup, lifecycle};

fn devcluster(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_devcluster")).args(arguments).output().unwrap()
}

fn succeeds(arguments: &[&str]) -> (String, Duration) {
    let begin = Instant::now();
    let output = devcluster(arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    (text, begin.elapsed())
}

fn layout(clone: &Path) -> Layout {
    Layout::new(
        clone,
        std::env::var_os("PADDOCK_CACHE").map(PathBuf::from),
        Path::new(&std::env::var_os("HOME").unwrap_or_else(|| "/root".into())),
    )
}

fn own() -> Layout {
    layout(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap())
}

fn assert_all_run() {
    let (status, _) = succeeds(&["status"]);
    let running = status.lines().filter(|line| line.contains("running, pid")).count();
    assert_eq!(running, lifecycle::PROCESSES.len(), "{status}");
}

#[test]
fn bad_input_is_one_line_and_exit_code_2() {
    for arguments in [
        &["fly"][..],
        &["logs"],
        &["logs", "nobody"],
        &["load", "/nonexistent.tar"],
        &["load", "/etc/passwd"],
        &["which", "nothing"],
        &["up", "--hard"],
        &[],
    ] {
        let output = devcluster(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!text.contains("panicked") && text.starts_with("devcluster: ") && text.lines().count() == 1, "{arguments:?}: {text}");
    }
}

#[test]
fn it_comes_up_whatever_was_left_behind_and_leaves_nothing() {
    succeeds(&["up"]);
    assert_all_run();

    // On a running cluster it is quick and changes nothing.
    let before = succeeds(&["status"]).0;
    let (text, took) = succeeds(&["up"]);
    assert!(text.contains("the cluster is running"), "{text}");
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(succeeds(&["status"]).0, before);

    // Another clone is told whose it is, and takes nothing away.
    let other = layout(Path::new("/another/clone"));
    let error = lifecycle::down(&other, &|_| ()).unwrap_err().to_string();
    assert!(error.contains("another clone is running"), "{error}");
    assert_all_run();

    // One process that dies is noticed.
    let scheduler = paddock_e2e::cluster::process::record(&own(), "kube-scheduler").unwrap();
    scheduler.signal(Signal::SIGKILL);
    while scheduler.is_alive() {
        std::thread::yield_now();
    }
    assert!(succeeds(&["status"]).0.lines().any(|line| line.starts_with("kube-scheduler") && line.contains("ended")));

    // Everything is killed at once, and some state is torn.
    for pid in cgroup::members() {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    std::fs::write(own().run.join("process/kubelet.json"), "{\"name\":").unwrap();
    std::fs::remove_file(own().pki().join(".complete")).unwrap();
    std::fs::write(own().pki().join("ca.crt"), "torn").unwrap();
    let (text, took) = succeeds(&["up"]);
    assert!(took < Duration::from_secs(20), "{took:?}: {text}");
    assert_all_run();

    succeeds(&["down"]);
    assert_eq!(cgroup::members(), Vec::<i32>::new());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let left: Vec<&str> = mounts.lines().filter(|line| line.contains(NAME)).collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!Layout::network_namespace().exists());
    assert!(!Path::new("/sys/class/net").join(HOST_LINK).exists());
    assert!(!own().run.exists());
    succeeds(&["down"]);
    let (text, took) = succeeds(&["up"]);
    assert!(took < Duration::from_secs(20), "{took:?}: {text}");
    assert_all_run();
}
