//! Runs of one tenant, and those of another one that deletes half of its own, in sandboxes of their own and in such that waited, while what runs
//! them is killed or frozen at random. `CHAOS_RUNS` says how many there are at least; `CHAOS_SEED` repeats a sequence of kills, the moment of each is
//! the machine's.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::harness::disturb::{begin, ctr, end, kill_operator, leader, process_of, scale, with_arguments};
use crate::harness::{
    OPERATOR_NAMESPACE, Script, Tenant, admin, eventually, eventually_within, kubectl, layout, operators, status, stdout, tenant,
};
use crate::pool::{WARM, delete_pool, make_pool, path, pod_uid};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use nix::sys::signal::{Signal, kill};
use paddock_crds::{ConditionType, Phase, ScriptRun};
use paddock_protocol::{Lines, Reader, RunKey, SealingKey};
use serde_json::json;
use tokio::task::JoinHandle;

/// At least, where `CHAOS_RUNS` says nothing; a machine that is done with them sooner gets more, until the last of the kills.
const RUNS: u64 = 200;
/// Sandboxes that wait for each of the two tenants. They live in the room that its runs have.
const WAITING: [i32; 2] = [4, 2];
const KILLS: usize = 8;
/// What the SandboxPolicy of the runs allows.
const LIMIT: usize = 10;
/// What that of the other tenant allows.
const LIMIT_OF_OTHER: usize = 4;
/// What the cluster allows: too few for both.
const LIMIT_OF_CLUSTER: usize = 11;
/// Runs of the other tenant that are not over, at most.
const OPEN_OF_OTHER: usize = 8;
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
    /// Its process stands still until another one leads, and then goes on where it was.
    Frozen,
    Replica,
    ApiServer,
    Containerd,
}

/// One round of kills. Each is done once before any is done again, in an order made by chance.
const ROUND: [Victim; 7] =
    [Victim::Leader, Victim::Leader, Victim::Frozen, Victim::Replica, Victim::ApiServer, Victim::ApiServer, Victim::Containerd];

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
            Victim::Frozen => {
                freeze(&client).await;
                "the leader, frozen"
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

async fn freeze(client: &Client) {
    let leases: Api<Lease> = Api::namespaced(client.clone(), OPERATOR_NAMESPACE);
    let holder = || async {
        let lease = leases.get("paddock-operator").await.map_err(|error| error.to_string())?;
        Ok::<_, String>(lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default())
    };
    let process = process_of(client, &leader(client).await).await;
    let before = eventually("the holder of the lease", holder).await;
    // It may have ended by itself meanwhile.
    let _ = kill(process, Signal::SIGSTOP);
    eventually("another one leads", || async {
        let now = holder().await?;
        if now.is_empty() || now == before { Err(now) } else { Ok(()) }
    })
    .await;
    let _ = kill(process, Signal::SIGCONT);
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

/// The most pods that were seen at once, of each of two tenants and of both.
#[derive(Default, Debug)]
struct Most {
    looks: u32,
    pods: [usize; 2],
    of_both: usize,
}

/// Looks again and again whether the limits hold.
async fn watch_the_limits(tenants: [Tenant; 2], stop: Arc<AtomicBool>) -> Most {
    let mut most = Most::default();
    while !stop.load(Ordering::Relaxed) {
        let [one, other] = [&tenants[0], &tenants[1]].map(living_pods);
        if let (Some(one), Some(other)) = futures::join!(one, other) {
            most.pods = [most.pods[0].max(one), most.pods[1].max(other)];
            most.of_both = most.of_both.max(one + other);
            most.looks += 1;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    most
}

/// Pods of a tenant's runs that have not ended. What waits and is being removed counts in no quota once its grace is over, though a node whose runtime was
/// killed may keep it.
async fn living_pods(tenant: &Tenant) -> Option<usize> {
    let list = tenant.pods().list(&ListParams::default()).await.ok()?;
    let runs = tenant.runs().list(&ListParams::default()).await.ok()?;
    let given: BTreeSet<String> = runs.iter().filter_map(|run| Some(run.status.clone()?.pod?.name)).collect();
    let lives = |pod: &&Pod| !matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"));
    let living: Vec<String> = list.items.iter().filter(lives).map(kube::ResourceExt::name_any).collect();
    Some(living.iter().filter(|name| name.starts_with("sr-") || given.contains(*name)).count())
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

/// What the logs of a run's containers tell, by what the runners themselves have sealed into them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Told {
    /// An interpreter was started.
    started: u32,
    /// Nothing of a start, and lines are missing. containerd takes what it has read and not yet written with it when it is killed.
    torn: u32,
}

impl Told {
    fn once(self) -> bool {
        self.started == 1
    }

    /// For a run that told its result: a runner that started nothing has none to tell, so it was started in a log that lost that line.
    fn once_or_lost(self) -> bool {
        self.once() || self.started == 0 && self.torn > 0
    }
}

async fn told(kept: &Path, runs: &[ScriptRun]) -> BTreeMap<String, Told> {
    let secrets: Api<Secret> = Api::namespaced(admin().await, OPERATOR_NAMESPACE);
    let secret = secrets.get("paddock-sealing-key").await.unwrap();
    let key = SealingKey::from_bytes(&secret.data.unwrap()["key"].0).unwrap();
    let mut of_runs = BTreeMap::<String, Told>::new();
    for log in entries(kept) {
        let Some((uid, reader)) = reader_of(&log, runs, &key) else { continue };
        let (transcript, of_run) = (reader.transcript(), of_runs.entry(uid).or_default());
        let is_whole = transcript.boot.is_some() && transcript.finished && !reader.has_gap() && transcript.noise == 0;
        of_run.started += u32::from(transcript.started);
        of_run.torn += u32::from(!transcript.started && !is_whole);
    }
    of_runs
}

/// The run that had this sandbox, and what its runner said. A sandbox may have had none.
fn reader_of(log: &Path, runs: &[ScriptRun], key: &SealingKey) -> Option<(String, Reader)> {
    let file = log.file_name()?.to_string_lossy().into_owned();
    let pod = file.split('_').nth(1)?;
    let text = std::fs::read(log).unwrap();
    let read = |key: RunKey| {
        let mut reader = Reader::new(key);
        for line in text.split(|byte| *byte == b'\n') {
            // As the container runtime writes it: time, stream, a tag, and the line.
            let content = line.splitn(4, |byte| *byte == b' ').nth(3).unwrap_or_default();
            Lines::default().push(&[content, b"\n"].concat(), |line| _ = reader.take_line(line));
        }
        reader
    };
    if let Some(uid) = pod.strip_prefix("sr-") {
        return Some((uid.to_owned(), read(key.of_run(uid))));
    }
    // What a run has had that was deleted, no status tells any more; what was said to it opens for it alone.
    let known = runs.iter().find(|run| run.status.as_ref().and_then(|status| status.pod.as_ref()).is_some_and(|other| other.name == pod));
    let mut runs = runs.iter().filter(|run| known.is_none_or(|known| known.uid() == run.uid())).map(|run| run.uid().unwrap());
    runs.find_map(|uid| {
        let reader = read(key.of_sandbox(pod).bound_to(&uid));
        (known.is_some() || reader.transcript().accepted).then_some((uid, reader))
    })
}

async fn create(tenant: &Tenant, number: u64) -> ScriptRun {
    let pause = number % 7;
    // What another run has left anywhere that a script can look would be put out.
    let text = format!(
        "echo run {number}\n\
         ls /workspace /dev/shm | grep planted; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep 'plante[d]='\n\
         echo {number} > /workspace/planted; echo {number} > /dev/shm/planted\n\
         env planted={number} sleep 0.$(({pause} * 12))\n\
         echo $(({number} * 7919)) > $PADDOCK_RESULT\necho end\n"
    );
    let script = Script::shell(&text).with(json!({ "policyRef": { "kind": "SandboxPolicy", "name": "limited" } }));
    let mut run = ScriptRun::new(&format!("run-{number}"), serde_json::from_value(script.0).unwrap());
    run.metadata.namespace = Some(tenant.name.clone());
    eventually("the run is created", || async {
        match tenant.runs().create(&PostParams::default(), &run).await {
            // An answer that was lost.
            Err(kube::Error::Api(answer)) if answer.code == 409 => tenant.runs().get(&run.name_any()).await,
            other => other,
        }
    })
    .await
}

/// Creates runs, and deletes one that may wait, run or be over for each that it creates but one, until it is told to stop. Says what it created and
/// what of it it deleted.
async fn create_and_delete(tenant: Tenant, mut random: Random, stop: Arc<AtomicBool>) -> (Vec<ScriptRun>, BTreeSet<String>) {
    let (mut created, mut deleted) = (Vec::<ScriptRun>::new(), BTreeSet::new());
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(200 + random.below(1500))).await;
        let Ok(runs) = tenant.runs().list(&ListParams::default()).await else { continue };
        if runs.items.iter().filter(|run| !is_over(run)).count() < OPEN_OF_OTHER {
            created.push(create(&tenant, created.len() as u64).await);
        }
        let kept: Vec<_> = runs.items.iter().filter(|run| run.metadata.deletion_timestamp.is_none()).collect();
        if random.below(2) == 0 && !kept.is_empty() {
            let name = kept[usize::try_from(random.below(kept.len() as u64)).unwrap()].name_any();
            eventually("the run is deleted", || async {
                match tenant.runs().delete(&name, &DeleteParams::default()).await {
                    Err(kube::Error::Api(answer)) if answer.code == 404 => Ok(()),
                    other => other.map(drop),
                }
            })
            .await;
            deleted.insert(name);
        }
    }
    (created, deleted)
}

/// Every run of these succeeded, with what it should have put out.
fn assert_all_succeeded(runs: &[ScriptRun]) {
    for run in runs {
        let number: u64 = run.name_any().trim_start_matches("run-").parse().unwrap();
        let told = status(run);
        assert_eq!(told.phase, Some(Phase::Succeeded), "lost: {} {:#?}", run.name_any(), run.status);
        assert_eq!(stdout(run), format!("run {number}\nend\n"), "wrong: {:#?}", run.status);
        assert_eq!(told.result.unwrap().output, Some(json!(number * 7919)), "wrong: {:#?}", run.status);
    }
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

/// What creates runs, kills, and looks on.
struct World {
    /// No more runs of the other tenant.
    enough: Arc<AtomicBool>,
    /// All are over.
    stop: Arc<AtomicBool>,
    killer: JoinHandle<BTreeMap<&'static str, u32>>,
    keepers: [JoinHandle<()>; 2],
    mender: JoinHandle<()>,
    limits: JoinHandle<Most>,
    deleter: JoinHandle<(Vec<ScriptRun>, BTreeSet<String>)>,
}

impl World {
    fn begin(tenants: [&Tenant; 2], kept: &Path, seed: u64) -> Self {
        let (enough, stop) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let keeper = |tenant: &Tenant| tokio::spawn(keep_logs(tenant.sandbox(), kept.to_owned(), stop.clone()));
        Self {
            keepers: tenants.map(keeper),
            mender: tokio::spawn(end_shims_without_a_sandbox(stop.clone())),
            limits: tokio::spawn(watch_the_limits(tenants.map(Tenant::clone), stop.clone())),
            deleter: tokio::spawn(create_and_delete(tenants[1].clone(), Random(seed + 1), enough.clone())),
            killer: tokio::spawn(kill_at_random(seed)),
            enough,
            stop,
        }
    }
}

/// Creates runs until the last of the kills, and waits until they are over. Says with them how many were active at once.
async fn all_runs(tenant: &Tenant, world: &World) -> (Vec<ScriptRun>, usize) {
    let at_least = std::env::var("CHAOS_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(RUNS);
    let created = AtomicU64::new(0);
    let most = AtomicUsize::new(0);
    let runs = eventually_within(PATIENCE, "all runs are over", || async {
        let runs = tenant.runs().list(&ListParams::default()).await.map_err(|error| error.to_string())?.items;
        most.fetch_max(runs.iter().filter(|run| is_active(run)).count(), Ordering::Relaxed);
        let open: Vec<String> =
            runs.iter().filter(|run| !is_over(run)).map(|run| format!("{}: {:?}", run.name_any(), status(run).phase)).collect();
        let before = created.load(Ordering::Relaxed);
        let is_last = world.killer.is_finished();
        let more = if before < at_least {
            at_least - before
        } else if !is_last && open.len() < 3 * LIMIT {
            LIMIT as u64
        } else {
            0
        };
        for number in before..before + more {
            create(tenant, number).await;
        }
        created.store(before + more, Ordering::Relaxed);
        if open.is_empty() && is_last && runs.len() as u64 == before {
            return Ok(runs);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let first = runs.iter().find(|run| !is_over(run)).filter(|_| is_last && open.len() < 3);
        let held = match first {
            Some(run) => what_holds(tenant, run).await,
            None => String::new(),
        };
        Err(format!("{} of {}, {before} created: {open:?}{held}", open.len(), runs.len()))
    })
    .await;
    (runs, most.into_inner())
}

/// The runs that the other tenant did not delete, once they are over.
async fn those_left(tenant: &Tenant, deleted: &BTreeSet<String>) -> Vec<ScriptRun> {
    eventually_within(PATIENCE, "the runs of the other tenant are over, or gone", || async {
        let runs = tenant.runs().list(&ListParams::default()).await.map_err(|error| error.to_string())?.items;
        let open = runs.iter().find(|run| !is_over(run) || deleted.contains(&run.name_any()));
        open.map_or(Ok(()), |run| Err(format!("{}: {:?}", run.name_any(), run.status)))?;
        Ok::<_, String>(runs)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_doubled_wrong_or_stuck_whatever_is_killed() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let seed = std::env::var("CHAOS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(now);
    eprintln!("CHAOS_SEED={seed}");
    tenant("chaos", move |one| async move {
        tenant("chaos-other", move |other| async move { kill_what_runs_them(&one, &other, seed).await }).await;
    })
    .await;
}

async fn kill_what_runs_them(tenant: &Tenant, other: &Tenant, seed: u64) {
    // On the file system of the logs.
    let kept = layout().state.join(&tenant.name);
    std::fs::create_dir_all(&kept).unwrap();
    tenant.policy(json!({ "maxConcurrent": LIMIT, "maxQueued": 1000 })).await;
    other.policy(json!({ "maxConcurrent": LIMIT_OF_OTHER })).await;
    let by_policy = json!({ "policyRef": { "kind": "SandboxPolicy", "name": "limited" } });
    for (tenant, replicas) in [tenant, other].into_iter().zip(WAITING) {
        make_pool(tenant, "shell", replicas, by_policy.clone()).await;
    }
    // A node whose runtime is killed again and again takes longer than usual to make a sandbox.
    with_arguments(&tenant.client, &["--start-budget-seconds=900", &format!("--max-concurrent={LIMIT_OF_CLUSTER}")]).await;
    scale(&tenant.client, 2).await;
    let began = Instant::now();
    let world = World::begin([tenant, other], &kept, seed);
    let (runs, most_runs) = all_runs(tenant, &world).await;
    let took = began.elapsed();
    world.enough.store(true, Ordering::Relaxed);
    let (created, deleted) = world.deleter.await.unwrap();
    let left = those_left(other, &deleted).await;
    world.stop.store(true, Ordering::Relaxed);
    let (kills, most) = (world.killer.await.unwrap(), world.limits.await.unwrap());
    world.mender.await.unwrap();
    for keeper in world.keepers {
        keeper.await.unwrap();
    }
    with_arguments(&tenant.client, &[]).await;
    let (of_other, gone) = (created.len(), deleted.len());
    eprintln!(
        "{} runs, and {of_other} of which {gone} were deleted, in {took:.0?} beside {kills:?}; at most {most_runs} runs, {most:?}",
        runs.len()
    );

    assert_all_succeeded(&runs);
    assert_all_succeeded(&left);
    let given: Vec<String> = runs.iter().chain(&left).filter(|run| path(run) == WARM).map(pod_uid).collect();
    eprintln!("{} of {} runs were given a sandbox that waited", given.len(), runs.len() + left.len());
    assert!(given.len() >= 10 && given.len() + 10 <= runs.len() + left.len(), "both ways are taken");
    assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), given.len(), "a sandbox was given twice");
    assert_eq!(left.len() + gone, of_other, "lost");
    let all: Vec<ScriptRun> = runs.iter().chain(&left).chain(&created).cloned().collect();
    let of_runs = told(&kept, &all).await;
    let of = |run: &ScriptRun| of_runs.get(&run.uid().unwrap()).copied().unwrap_or_default();
    let succeeded = || runs.iter().chain(&left).map(|run| (run.name_any(), of(run)));
    let not_once: Vec<_> = succeeded().filter(|(_, told)| !told.once_or_lost()).collect();
    assert!(not_once.is_empty(), "not started exactly once: {not_once:?}");
    let lost = succeeded().filter(|(_, told)| !told.once()).count();
    eprintln!("{lost} runs whose log lost the line of their start");
    // What containerd has in hand when it is killed is a few lines of one or two runs.
    assert!(lost <= 2 * LIMIT, "of {} runs, {lost} have no line of their start", runs.len() + left.len());
    let twice: Vec<_> = created.iter().map(|run| (run.name_any(), of(run))).filter(|(_, told)| told.started > 1).collect();
    assert!(twice.is_empty(), "started more than once: {twice:?}");
    assert!(most_runs <= LIMIT && most.pods[0] <= LIMIT && most.pods[1] <= LIMIT_OF_OTHER, "the limits: {most_runs}, {most:?}");
    assert!(most.of_both <= LIMIT_OF_CLUSTER && most.looks > 20, "the limit of the cluster: {most:?}");
    assert!(gone > 5, "{of_other} runs of which {gone} were deleted");
    assert_eq!(kills.len(), 5, "not everything was killed: {kills:?}");
    leaves_nothing(tenant).await;
    leaves_nothing(other).await;
    std::fs::remove_dir_all(&kept).unwrap();
}

/// Pods and jobs are gone, and so are the runs once they are deleted: no finalizer holds any.
async fn leaves_nothing(tenant: &Tenant) {
    delete_pool(tenant, "shell").await;
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
