//! Two hundred runs or more while what runs them is killed at random. `CHAOS_SEED` repeats a sequence of kills; the moment of each is the
//! machine's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::harness::disturb::{begin, ctr, end, kill_operator, scale, with_arguments};
use crate::harness::{
    OPERATOR_NAMESPACE, Script, Tenant, admin, eventually, eventually_within, kubectl, layout, operators, status, stdout, tenant,
};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt as _};
use paddock_crds::{ConditionType, Phase, ScriptRun};
use paddock_protocol::{Lines, Reader, SealingKey};
use serde_json::json;

/// At least; a machine that is done with them sooner gets more, until the last of the kills.
const RUNS: u64 = 200;
const KILLS: usize = 9;
/// What the SandboxPolicy of the runs allows; that of the cluster allows as many.
const LIMIT: usize = 10;
/// A shim that is making a sandbox has none for a moment.
const LONGEST_WITHOUT_A_SANDBOX: Duration = Duration::from_secs(20);
/// All runs together.
const PATIENCE: Duration = Duration::from_secs(900);

/// SplitMix64: enough to choose what is killed next, and the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// What is killed.
#[derive(Clone, Copy)]
enum Victim {
    Leader,
    Replica,
    ApiServer,
    Containerd,
}

/// One round of kills. Each is done once before any is done again, in an order made by chance.
const ROUND: [Victim; 6] = [Victim::Leader, Victim::Leader, Victim::Replica, Victim::ApiServer, Victim::ApiServer, Victim::Containerd];

/// Says what it killed how often.
async fn kill_at_random(seed: u64) -> BTreeMap<&'static str, u32> {
    let client = admin().await;
    let mut random = Random(seed);
    let mut done = BTreeMap::new();
    let mut round: Vec<Victim> = Vec::new();
    for _ in 0..KILLS {
        tokio::time::sleep(Duration::from_millis(8000 + random.below(14_000))).await;
        if round.is_empty() {
            round = ROUND.to_vec();
        }
        let next = usize::try_from(random.below(round.len() as u64)).unwrap();
        let what = match round.swap_remove(next) {
            Victim::Leader => {
                kill_operator(&client).await;
                "the leader's process"
            }
            Victim::Replica => {
                // The other replica takes over once the lease has run out.
                let api: Api<Pod> = Api::namespaced(client.clone(), OPERATOR_NAMESPACE);
                let pods = operators(&client).await;
                let index = usize::try_from(random.below(pods.len() as u64)).unwrap();
                let _ = api.delete(&pods[index].name_any(), &DeleteParams::default().grace_period(0)).await;
                "a replica's pod"
            }
            Victim::ApiServer => {
                let away = Duration::from_millis(random.below(3000));
                restart("kube-apiserver", away).await;
                eventually("the API server answers", || async { kubectl(&["get", "--raw", "/readyz"], "") }).await;
                "the API server"
            }
            Victim::Containerd => {
                end("containerd").await;
                tokio::time::sleep(Duration::from_millis(random.below(2000))).await;
                begin("containerd");
                "containerd"
            }
        };
        *done.entry(what).or_default() += 1;
    }
    done
}

async fn restart(name: &str, away: Duration) {
    end(name).await;
    tokio::time::sleep(away).await;
    begin(name);
}

/// Where containerd dies while gVisor makes a sandbox, a shim may be left that has none and never ends, and containerd waits for it for ever: the
/// pod can neither start nor go. Whoever runs the node has to end it (docs/troubleshooting.md), and here that is this function.
async fn end_shims_without_a_sandbox(stop: Arc<AtomicBool>) {
    let mut since: BTreeMap<String, Instant> = BTreeMap::new();
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        let found = shims_without_a_sandbox(&processes());
        since.retain(|pid, _| found.iter().any(|(other, _)| other == pid));
        for (pid, id) in found {
            if now.duration_since(*since.entry(pid.clone()).or_insert(now)) > LONGEST_WITHOUT_A_SANDBOX {
                eprintln!("a shim without a sandbox is ended: {id}");
                let _ = std::process::Command::new("kill").args(["-KILL", &pid]).status();
                since.remove(&pid);
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Processes and sandboxes. A shim has a sandbox if anything of gVisor but another shim is there for it, be it what makes the sandbox.
fn shims_without_a_sandbox(processes: &[(String, Vec<String>)]) -> Vec<(String, String)> {
    let socket = layout().run.join("containerd.sock").display().to_string();
    let is_shim = |command: &[String]| command[0].ends_with("containerd-shim-runsc-v1");
    let shims = processes.iter().filter(|(_, command)| is_shim(command) && command.contains(&socket));
    let of_shim = |(pid, command): &(String, Vec<String>)| {
        let id = command.iter().skip_while(|argument| *argument != "-id").nth(1)?;
        let is_there =
            processes.iter().any(|(_, command)| !is_shim(command) && command.iter().any(|argument| argument.contains(id.as_str())));
        (!is_there).then(|| (pid.clone(), id.clone()))
    };
    shims.filter_map(of_shim).collect()
}

/// Identifiers and arguments of all processes.
fn processes() -> Vec<(String, Vec<String>)> {
    let of_process = |folder: &PathBuf| {
        let command = std::fs::read_to_string(folder.join("cmdline")).ok()?;
        Some((folder.file_name()?.to_string_lossy().into_owned(), command.split('\0').map(Into::into).collect()))
    };
    entries(Path::new("/proc")).iter().filter_map(of_process).collect()
}

/// Looks again and again whether the limit holds. Says how often it looked, and the most pods that it saw.
async fn watch_the_limit(tenant: Tenant, stop: Arc<AtomicBool>) -> (u32, usize) {
    let (mut looks, mut most) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        if let Ok(list) = tenant.pods().list(&ListParams::default()).await {
            let lives =
                |pod: &&Pod| !matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"));
            most = most.max(list.items.iter().filter(lives).count());
            looks += 1;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    (looks, most)
}

fn is_active(run: &ScriptRun) -> bool {
    let status = status(run);
    status.is_true(&ConditionType::Admitted) && !status.is_true(&ConditionType::Finished)
}

/// Keeps every log that any container of these sandboxes ever wrote, by a second name for its file: it outlives the pod.
async fn keep_logs(sandbox: String, kept: PathBuf, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        for pod in entries(&layout().state.join("pod-logs")) {
            let name = pod.file_name().unwrap().to_string_lossy().into_owned();
            if name.starts_with(&format!("{sandbox}_")) {
                for log in entries(&pod.join("script")) {
                    let file = log.file_name().unwrap().to_string_lossy().into_owned();
                    let _ = std::fs::hard_link(&log, kept.join(format!("{name}_{file}")));
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).map(|entries| entries.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
}

/// How often an interpreter was started for each run, by what the runners themselves have sealed into their logs.
async fn starts(kept: &Path, runs: &[ScriptRun]) -> BTreeMap<String, u32> {
    let secrets: Api<Secret> = Api::namespaced(admin().await, OPERATOR_NAMESPACE);
    let secret = secrets.get("paddock-sealing-key").await.unwrap();
    let key = SealingKey::from_bytes(&secret.data.unwrap()["key"].0).unwrap();
    let mut starts = BTreeMap::new();
    for log in entries(kept) {
        let uid = runs.iter().map(|run| run.uid().unwrap()).find(|uid| log.to_string_lossy().contains(uid.as_str())).unwrap();
        let mut reader = Reader::new(key.of_run(&uid));
        for line in std::fs::read(&log).unwrap().split(|byte| *byte == b'\n') {
            // As the container runtime writes it: time, stream, a tag, and the line.
            let content = line.splitn(4, |byte| *byte == b' ').nth(3).unwrap_or_default();
            Lines::default().push(&[content, b"\n"].concat(), |line| _ = reader.take_line(line));
        }
        *starts.entry(uid).or_default() += u32::from(reader.transcript().started);
    }
    starts
}

async fn create(tenant: &Tenant, number: u64) {
    let pause = number % 7;
    let text = format!("echo run {number}\nsleep 0.$(({pause} * 12))\necho $(({number} * 7919)) > $PADDOCK_RESULT\necho end\n");
    let script = Script::shell(&text).with(json!({ "policyRef": { "kind": "SandboxPolicy", "name": "limited" }, "timeoutSeconds": 120 }));
    let mut run = ScriptRun::new(&format!("run-{number}"), serde_json::from_value(script.0).unwrap());
    run.metadata.namespace = Some(tenant.name.clone());
    eventually("the run is created", || async {
        match tenant.runs().create(&PostParams::default(), &run).await {
            Ok(_) => Ok(()),
            // An answer that was lost.
            Err(kube::Error::Api(answer)) if answer.code == 409 => Ok(()),
            Err(error) => Err(error),
        }
    })
    .await;
}

/// What the node says of a pod that neither starts nor goes, in a few lines.
async fn what_holds(tenant: &Tenant, run: &ScriptRun) -> String {
    let pod = format!("sr-{}", run.uid().unwrap());
    let Ok(Some(found)) = tenant.pods().get_opt(&pod).await else { return format!("; it has no pod {pod}") };
    let state = found.status.and_then(|status| status.container_statuses.unwrap_or_default().into_iter().next()).map(|status| status.state);
    let filter = format!("labels.\"io.kubernetes.pod.uid\"=={}", found.metadata.uid.unwrap_or_default());
    let containers = ctr(&["containers", "list", "--quiet", &filter]).unwrap_or_else(|error| format!("{error:#}"));
    let tasks = ctr(&["tasks", "list"]).unwrap_or_else(|error| format!("{error:#}"));
    let mut told = format!("; deleted {:?}, container {state:?}", found.metadata.deletion_timestamp);
    for id in containers.split_whitespace() {
        let task = tasks.lines().find(|line| line.starts_with(id)).unwrap_or("no task");
        let of_it: Vec<String> = processes().iter().filter(|(_, command)| command.join(" ").contains(id)).map(short).collect();
        told.push_str(&format!("; {id}: {task}: {of_it:?}"));
    }
    for log in ["kubelet", "containerd"] {
        let text = std::fs::read_to_string(layout().log(log)).unwrap_or_default();
        let last: Vec<&str> =
            text.lines().rev().filter(|line| line.contains(&pod)).take(2).map(|line| &line[..line.len().min(400)]).collect();
        told.push_str(&format!("; {log}: {last:?}"));
    }
    told
}

fn short((pid, command): &(String, Vec<String>)) -> String {
    let program = command[0].rsplit('/').next().unwrap_or_default();
    let verb = command.iter().find(|word| ["create", "boot", "gofer", "start", "wait", "delete", "kill", "state"].contains(&word.as_str()));
    format!("{pid} {program} {}", verb.map_or("", String::as_str))
}

fn is_over(run: &ScriptRun) -> bool {
    status(run).is_true(&ConditionType::Finished)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_doubled_wrong_or_stuck_whatever_is_killed() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let seed = std::env::var("CHAOS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(now);
    eprintln!("CHAOS_SEED={seed}");
    tenant("chaos", move |tenant| async move {
        // On the file system of the logs.
        let kept = layout().state.join(&tenant.name);
        std::fs::create_dir_all(&kept).unwrap();
        tenant.policy(json!({ "maxConcurrent": LIMIT, "maxQueued": 1000 })).await;
        // A node whose runtime is killed again and again takes longer than usual to make a sandbox.
        with_arguments(&tenant.client, &["--start-budget-seconds=900"]).await;
        scale(&tenant.client, 2).await;
        let stop = Arc::new(AtomicBool::new(false));
        let keeper = tokio::spawn(keep_logs(tenant.sandbox(), kept.clone(), stop.clone()));
        let watcher = tokio::spawn(watch_the_limit(tenant.clone(), stop.clone()));
        let mender = tokio::spawn(end_shims_without_a_sandbox(stop.clone()));
        let killer = tokio::spawn(kill_at_random(seed));
        let began = Instant::now();
        let created = AtomicU64::new(0);
        let most_runs = AtomicUsize::new(0);
        let runs = eventually_within(PATIENCE, "all runs are over", || async {
            let runs = tenant.runs().list(&ListParams::default()).await.map_err(|error| error.to_string())?.items;
            most_runs.fetch_max(runs.iter().filter(|run| is_active(run)).count(), Ordering::Relaxed);
            let open: Vec<String> =
                runs.iter().filter(|run| !is_over(run)).map(|run| format!("{}: {:?}", run.name_any(), status(run).phase)).collect();
            let before = created.load(Ordering::Relaxed);
            let more = if before < RUNS {
                RUNS - before
            } else if !killer.is_finished() && open.len() < 3 * LIMIT {
                LIMIT as u64
            } else {
                0
            };
            for number in before..before + more {
                create(&tenant, number).await;
            }
            created.store(before + more, Ordering::Relaxed);
            let is_done = open.is_empty() && killer.is_finished() && runs.len() as u64 == before;
            if is_done {
                return Ok(runs);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            let first = runs.iter().find(|run| !is_over(run)).filter(|_| killer.is_finished() && open.len() < 3);
            let held = match first {
                Some(run) => what_holds(&tenant, run).await,
                None => String::new(),
            };
            Err(format!("{} of {}, {before} created: {open:?}{held}", open.len(), runs.len()))
        })
        .await;
        let took = began.elapsed();
        stop.store(true, Ordering::Relaxed);
        let kills = killer.await.unwrap();
        let ((looks, most_pods), most_runs) = (watcher.await.unwrap(), most_runs.into_inner());
        keeper.await.unwrap();
        mender.await.unwrap();
        with_arguments(&tenant.client, &[]).await;
        eprintln!(
            "{} runs in {took:.0?} beside {kills:?}; looked {looks} times: at most {most_runs} runs and {most_pods} pods of {LIMIT}",
            runs.len()
        );

        let mut phases = BTreeMap::new();
        for run in &runs {
            *phases.entry(format!("{:?}", status(run).phase)).or_insert(0) += 1;
            let number: u64 = run.name_any().trim_start_matches("run-").parse().unwrap();
            if status(run).phase == Some(Phase::Succeeded) {
                assert_eq!(stdout(run), format!("run {number}\nend\n"), "wrong: {:#?}", run.status);
                assert_eq!(status(run).result.unwrap().output, Some(json!(number * 7919)), "wrong: {:#?}", run.status);
            } else {
                eprintln!("{}: {:#?}", run.name_any(), run.status);
            }
        }
        assert_eq!(phases, [(format!("{:?}", Some(Phase::Succeeded)), runs.len())].into(), "lost");
        let starts = starts(&kept, &runs).await;
        let not_once: Vec<_> =
            runs.iter().map(|run| (run.name_any(), starts.get(&run.uid().unwrap()))).filter(|(_, count)| *count != Some(&1)).collect();
        assert!(not_once.is_empty(), "not started exactly once: {not_once:?}");
        assert!(most_runs <= LIMIT && most_pods <= LIMIT && looks > 20, "the limit: {most_runs} runs, {most_pods} pods, {looks} looks");
        assert_eq!(kills.len(), 4, "not everything was killed: {kills:?}");
        leaves_nothing(&tenant).await;
        std::fs::remove_dir_all(&kept).unwrap();
    })
    .await;
}

/// Pods and jobs are gone, and so are the runs once they are deleted: no finalizer holds any.
async fn leaves_nothing(tenant: &Tenant) {
    let jobs: Api<ConfigMap> = Api::namespaced(tenant.client.clone(), &tenant.sandbox());
    eventually("no pod and no job is left", || async {
        let pods = tenant.pods().list(&ListParams::default()).await.map_err(|error| error.to_string())?.items.len();
        let jobs = jobs.list(&ListParams::default()).await.map_err(|error| error.to_string())?;
        let jobs = jobs.items.iter().filter(|job| job.name_any().starts_with("sr-")).count();
        if (pods, jobs) == (0, 0) { Ok(()) } else { Err(format!("{pods} pods, {jobs} jobs")) }
    })
    .await;
    tenant.runs().delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
    eventually("no run is left", || async {
        let left = tenant.runs().list(&ListParams::default()).await.map_err(|error| error.to_string())?.items.len();
        if left == 0 { Ok(()) } else { Err(left.to_string()) }
    })
    .await;
}
