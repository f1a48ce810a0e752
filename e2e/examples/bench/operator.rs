//! What the operator's process uses, from the node's `/proc`, and what it writes, from the API server's audit log.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

const USER: &str = "system:serviceaccount:paddock-system:paddock-operator";

/// The one operator.
fn process() -> PathBuf {
    let is_operator = |path: &PathBuf| fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "paddock-operato");
    fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()).find(is_operator).expect("the operator runs")
}

/// CPU time of all its threads.
pub fn cpu() -> Duration {
    let nanos = |thread: fs::DirEntry| -> u64 {
        let text = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        text.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    Duration::from_nanos(fs::read_dir(process().join("task")).unwrap().flatten().map(nanos).sum())
}

/// Memory of its own, in bytes.
pub fn memory() -> u64 {
    let status = fs::read_to_string(process().join("status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// A run of this name, and what the operator names its pod and its job after.
pub struct Named {
    pub name: String,
    pub uid: String,
}

/// Where the audit log ends now, in bytes.
pub fn audited() -> u64 {
    fs::metadata(crate::layout().audit_log()).unwrap().len()
}

/// What the operator's user wrote from there on, Events not counted.
fn written_since(audited: u64) -> Vec<Value> {
    let mut log = fs::File::open(crate::layout().audit_log()).unwrap();
    log.seek(SeekFrom::Start(audited)).unwrap();
    let mut text = String::new();
    log.read_to_string(&mut text).unwrap();
    let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let is_write = |event: &Value| {
        let object = &event["objectRef"];
        let is_write = matches!(event["verb"].as_str(), Some("create" | "update" | "patch" | "delete"));
        event["user"]["username"] == USER && is_write && object["resource"] != "events" && object["subresource"] != "attach"
    };
    events.filter(is_write).map(|mut event| event["objectRef"].take()).collect()
}

/// Writes by the operator's user since then, in a namespace of runs and in its sandbox namespace.
pub fn writes_since(audited: u64, namespace: &str) -> usize {
    let sandbox = format!("sbx-{namespace}");
    written_since(audited).iter().filter(|object| object["namespace"] == namespace || object["namespace"] == *sandbox).count()
}

/// Writes by the operator's user for each of these runs, Events not counted: on the run itself, and on what is named after its UID.
pub fn writes(namespace: &str, runs: &[Named]) -> Vec<u128> {
    let writes = written_since(0);
    let sandbox = format!("sbx-{namespace}");
    let count = |run: &Named| {
        let of_run = |object: &&Value| {
            (object["namespace"] == namespace && object["name"] == *run.name)
                || (object["namespace"] == *sandbox && object["name"].as_str().is_some_and(|name| name.contains(&run.uid)))
        };
        writes.iter().filter(of_run).count() as u128
    };
    runs.iter().map(count).collect()
}
