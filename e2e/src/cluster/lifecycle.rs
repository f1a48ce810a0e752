//! Up, down, status, reset.

use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::command::{last_lines, run, succeeds};
use super::component::{self, Programs};
use super::layout::{Layout, NAME, NODE_ADDRESS, port};
use super::process::{self, Record};
use super::{cgroup, config, images, network, pki, requirements};

/// Processes in the order in which they are started.
pub const PROCESSES: [&str; 8] =
    ["etcd", "kube-apiserver", "containerd", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kube-router"];

/// Brings the cluster to the state in which a gVisor pod starts. Harmless on a running one.
pub fn up(layout: &Layout, say: &dyn Fn(&str)) -> Result<()> {
    requirements::check()?;
    refuse_a_foreign_cluster(layout)?;
    let programs = component::build(layout, say)?;
    let fingerprint = config::fingerprint(layout, &programs)?;
    if is_complete(layout, &fingerprint) {
        say("the cluster is running");
        return Ok(());
    }
    let archives = images::build_base(layout, say)?;
    clear(layout, say)?;
    fs::create_dir_all(&layout.run)?;
    fs::create_dir_all(layout.state.join("log"))?;
    fs::write(layout.run.join("clone"), layout.clone.to_string_lossy().as_bytes())?;
    pki::create(layout)?;
    config::write(layout, &programs)?;
    cgroup::create()?;
    network::create()?;

    let begin = Instant::now();
    start(layout, &programs, "etcd")?;
    start(layout, &programs, "kube-apiserver")?;
    start(layout, &programs, "containerd")?;
    wait(layout, "containerd", || containerd_is_ready(layout))?;
    for archive in &archives {
        if images::load(layout, &programs, archive)? {
            say(&format!("loaded {}", archive.file_name().unwrap_or_default().to_string_lossy()));
        }
    }
    wait(layout, "kube-apiserver", || kubectl(layout, &programs, &["get", "--raw", "/readyz"]).map(drop))?;
    for name in ["kube-controller-manager", "kube-scheduler", "kubelet"] {
        start(layout, &programs, name)?;
    }
    apply_cluster_objects(layout, &programs)?;
    // Both read the Node when they start, and kube-router ends if there is none.
    wait(layout, "kubelet", || kubectl(layout, &programs, &["get", "node", NAME]).map(drop))?;
    for (name, health) in [("kube-proxy", port::PROXY_HEALTH), ("kube-router", port::ROUTER_HEALTH)] {
        start(layout, &programs, name)?;
        wait(layout, name, || TcpStream::connect((NODE_ADDRESS, health)).map(drop).context("its health port does not answer"))?;
    }
    say("waiting for a gVisor pod");
    wait_for_gvisor(layout, &programs)?;
    fs::write(layout.run.join("complete"), fingerprint)?;
    say(&format!("the cluster is up after {} s", begin.elapsed().as_secs()));
    Ok(())
}

/// Starts one process again, as a supervisor would.
pub fn start(layout: &Layout, programs: &Programs, name: &str) -> Result<Record> {
    process::start(layout, name, &programs.path(name)?, &config::arguments(layout, name), &programs.search_path())
}

/// Ends the cluster. Images and certificates stay; objects, pods and logs of pods go.
pub fn down(layout: &Layout, say: &dyn Fn(&str)) -> Result<()> {
    refuse_a_foreign_cluster(layout)?;
    for name in PROCESSES.iter().rev() {
        if let Some(record) = process::record(layout, name).filter(Record::is_alive) {
            process::stop(&record, Duration::from_secs(5));
        }
    }
    clear(layout, say)?;
    say("the cluster is down");
    Ok(())
}

/// `down`, and everything else but the build cache.
pub fn reset(layout: &Layout, say: &dyn Fn(&str)) -> Result<()> {
    down(layout, say)?;
    let _ = fs::remove_dir_all(&layout.state);
    Ok(())
}

/// One line for each process.
pub fn status(layout: &Layout) -> Vec<(String, String)> {
    PROCESSES
        .iter()
        .map(|name| {
            let state = match process::record(layout, name) {
                Some(record) if record.is_alive() => format!("running, pid {}", record.pid),
                Some(record) => format!("ended (was pid {}): devcluster logs {name}", record.pid),
                None => "not started".to_owned(),
            };
            ((*name).to_owned(), state)
        })
        .collect()
}

/// Whether every process runs, and the last `up` came to its end with this very configuration.
fn is_complete(layout: &Layout, fingerprint: &str) -> bool {
    fs::read_to_string(layout.run.join("complete")).is_ok_and(|complete| complete == fingerprint)
        && PROCESSES.iter().all(|name| process::record(layout, name).is_some_and(|record| record.is_alive()))
}

/// One machine has one cluster: another clone's is left alone while one of its processes runs.
fn refuse_a_foreign_cluster(layout: &Layout) -> Result<()> {
    let owner = fs::read_to_string(layout.run.join("clone")).unwrap_or_default();
    if !owner.is_empty() && owner != layout.clone.to_string_lossy() && process::records(layout).iter().any(Record::is_alive) {
        bail!("the cluster of another clone is running: {owner}. A machine has one; end that one first: make -C {owner} down");
    }
    Ok(())
}

/// Takes away whatever a cluster left behind, however it ended: processes, mounts, network namespace, sockets, half-written state.
fn clear(layout: &Layout, say: &dyn Fn(&str)) -> Result<()> {
    if layout.run.exists() || layout.state.join("etcd").exists() {
        say("clearing what an earlier cluster left");
    }
    cgroup::remove()?;
    unmount_below(&[&layout.state, &layout.run])?;
    network::remove();
    let _ = fs::remove_dir_all(&layout.run);
    for folder in ["etcd", "kubelet", "pod-logs", "config", "log"] {
        let _ = fs::remove_dir_all(layout.state.join(folder));
    }
    Ok(())
}

/// Mounts on top of others come last in the table, so it is walked backwards.
fn unmount_below(folders: &[&PathBuf]) -> Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    for line in table.lines().rev() {
        let Some(point) = line.split(' ').nth(4) else {
            continue;
        };
        let point = point.replace("\\040", " ");
        if folders.iter().any(|folder| PathBuf::from(&point).starts_with(folder)) {
            succeeds(Command::new("umount").args(["--lazy", &point]));
        }
    }
    Ok(())
}

/// Whether containerd, since it was last started, has said that every plugin is ready. Its socket answers earlier, and a kubelet that asks
/// the CRI before ("server is not initialized yet") ends.
pub fn containerd_is_ready(layout: &Layout) -> Result<()> {
    let log = fs::read_to_string(layout.log("containerd"))?;
    if log.contains("containerd successfully booted") { Ok(()) } else { bail!("containerd still boots") }
}

/// containerd's own client.
pub fn ctr(layout: &Layout, programs: &Programs) -> Result<Command> {
    let mut command = Command::new(programs.path("ctr")?);
    command.arg("--address").arg(layout.containerd_socket());
    Ok(command)
}

/// kubectl as the administrator.
pub fn kubectl(layout: &Layout, programs: &Programs, arguments: &[&str]) -> Result<String> {
    run(Command::new(programs.path("kubectl")?).arg("--kubeconfig").arg(layout.kubeconfig()).args(arguments))
}

/// Waits until `ready` succeeds, at most two minutes, and shows the end of the log if it does not or if the process has ended.
pub fn wait(layout: &Layout, name: &str, ready: impl Fn() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let Err(error) = ready() else { return Ok(()) };
        let ended = process::record(layout, name).is_none_or(|record| !record.is_alive());
        if ended || Instant::now() > deadline {
            let log = fs::read_to_string(layout.log(name)).unwrap_or_default();
            let what = if ended { "ended" } else { "is not ready after two minutes" };
            return Err(error.context(format!("{name} {what}; its log ends:\n{}", last_lines(&log, 15))));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn apply_cluster_objects(layout: &Layout, programs: &Programs) -> Result<()> {
    let file = layout.config("cluster.yaml");
    kubectl(layout, programs, &["apply", "--filename", &file.to_string_lossy()])?;
    Ok(())
}

const PROBE: &str = "apiVersion: v1
kind: Pod
metadata: {name: devcluster-probe, namespace: kube-system}
spec:
  runtimeClassName: gvisor
  restartPolicy: Never
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 0
  containers:
  - name: probe
    image: docker.io/paddock/shell:12
    imagePullPolicy: Never
    command: [sh, -c, 'cat /proc/version']
";

/// Runs a pod to its end in gVisor; its output must come from gVisor's kernel.
fn wait_for_gvisor(layout: &Layout, programs: &Programs) -> Result<()> {
    wait(layout, "kubelet", || kubectl(layout, programs, &["wait", "node", NAME, "--for=condition=Ready", "--timeout=120s"]).map(drop))?;
    let file = layout.config("probe.yaml");
    fs::write(&file, PROBE)?;
    wait(layout, "kube-controller-manager", || kubectl(layout, programs, &["apply", "--filename", &file.to_string_lossy()]).map(drop))?;
    let seen = kubectl(
        layout,
        programs,
        &["-n", "kube-system", "wait", "pod/devcluster-probe", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=120s"],
    );
    if let Err(error) = seen {
        let pod = kubectl(layout, programs, &["-n", "kube-system", "describe", "pod/devcluster-probe"]).unwrap_or_default();
        return Err(error.context(format!("the gVisor pod did not run:\n{}", last_lines(&pod, 25))));
    }
    let version = kubectl(layout, programs, &["-n", "kube-system", "logs", "devcluster-probe"])?;
    if !version.contains("gVisor") && !version.contains("gvisor") {
        bail!("the pod of RuntimeClass gvisor did not run in gVisor: {version}");
    }
    kubectl(layout, programs, &["-n", "kube-system", "delete", "pod/devcluster-probe", "--wait=false"])?;
    Ok(())
}
