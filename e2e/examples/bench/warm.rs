//! A run that is given a sandbox which waits, with its interpreter and without, beside one whose sandbox is made for it, and a bare pod.

use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _};
use kube::api::{PostParams, WatchEvent, WatchParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client, ResourceExt as _};
use paddock_crds::{ConditionType, RunPath, SandboxPolicy, SandboxPool, ScriptRun};
use serde_json::{Value, json};

use crate::operator;
use crate::sides::{bare_pod, delete, holds, namespace, ratio, spread};

const ROUNDS: u32 = 25;
/// Of them a third is taken with a bare pod too.
const BARE_EVERY: u32 = 3;
const REPLICAS: i32 = 3;
const FRESH: &str = "fresh";
const TEXT: &str = "print('hello')";

/// Runs one at a time, with pauses spread over half a second; the pool is refilled meanwhile.
pub async fn bench(client: &Client) -> Value {
    let namespace = namespace(client).await;
    make_policy(client, &namespace).await;
    let (waiting, fresh) = (baseline(), json!({ "kind": "SandboxPolicy", "name": FRESH }));
    make_pool(client, &namespace, "waiting", &waiting).await;
    make_pool(client, &namespace, FRESH, &fresh).await;
    let (mut warm, mut begun, mut cold, mut bare) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut cpu = Duration::ZERO;
    let mut writes = Vec::new();
    for round in 0..ROUNDS {
        are_filled(client, &namespace).await;
        pause(round * 137).await;
        let (before, audited) = (operator::cpu(), operator::audited());
        let (took, path) = result_of(client, &namespace, &waiting, json!({})).await;
        assert_eq!(path, Some(RunPath::Warm), "the pool was not filled");
        warm.push(took);
        are_filled(client, &namespace).await;
        // Its sandbox is removed, and another waits.
        pause(1500).await;
        cpu += operator::cpu().saturating_sub(before);
        writes.push(operator::writes_since(audited, &namespace) as u128);
        let (took, path) = result_of(client, &namespace, &fresh, json!({})).await;
        assert_eq!(path, Some(RunPath::Warm), "the pool was not filled");
        begun.push(took);
        are_filled(client, &namespace).await;
        pause(round * 71).await;
        let (took, path) = result_of(client, &namespace, &waiting, json!({ "memory": "130Mi" })).await;
        assert_eq!(path, Some(RunPath::Cold));
        cold.push(took);
        if round % BARE_EVERY == 0 {
            pause(round * 193).await;
            bare.push(bare_pod(client, &namespace, &format!("bare-{round}"), false, "500m").await.0);
        }
    }
    delete(client, &namespace).await;
    let (warm, begun, cold, bare, writes) = (spread(warm), spread(begun), spread(cold), spread(bare), spread(writes));
    json!({
        "rounds": ROUNDS,
        "warm_vs_cold_ratio": ratio(&warm, &cold),
        "warm_vs_bare_output_ratio": ratio(&warm, &bare),
        "warm_create_to_result_ready_ms": warm,
        "warm_without_interpreter_create_to_result_ready_ms": begun,
        "cold_create_to_result_ready_ms": cold,
        "bare_create_to_output_ms": bare,
        "writes_warm_with_refill": writes,
        "operator_cpu_ms_per_warm_run_with_refill": u64::try_from((cpu / ROUNDS).as_millis()).unwrap(),
    })
}

async fn pause(spread: u32) {
    tokio::time::sleep(Duration::from_millis(300 + u64::from(spread % 500))).await;
}

fn baseline() -> Value {
    json!({ "kind": "ClusterSandboxPolicy", "name": "baseline" })
}

/// One by which interpreters begin with their scripts.
async fn make_policy(client: &Client, namespace: &str) {
    let policy = json!({
        "apiVersion": "paddock.dev/v1alpha1", "kind": "SandboxPolicy", "metadata": { "name": FRESH },
        "spec": { "runtimes": [{ "name": "python", "preStart": "Never" }] },
    });
    let api: Api<SandboxPolicy> = Api::namespaced(client.clone(), namespace);
    api.create(&PostParams::default(), &serde_json::from_value(policy).unwrap()).await.unwrap();
}

async fn make_pool(client: &Client, namespace: &str, name: &str, policy: &Value) {
    let pool = json!({
        "apiVersion": "paddock.dev/v1alpha1", "kind": "SandboxPool", "metadata": { "name": name },
        "spec": { "policyRef": policy, "runtime": "python", "replicas": REPLICAS },
    });
    let api: Api<SandboxPool> = Api::namespaced(client.clone(), namespace);
    api.create(&PostParams::default(), &serde_json::from_value(pool).unwrap()).await.unwrap();
}

async fn are_filled(client: &Client, namespace: &str) {
    let api: Api<SandboxPool> = Api::namespaced(client.clone(), namespace);
    let is_so = |pool: Option<&SandboxPool>| pool.and_then(|pool| pool.status.as_ref()).is_some_and(|status| status.free == REPLICAS);
    for name in ["waiting", FRESH] {
        await_condition(api.clone(), name, is_so).await.unwrap();
    }
}

/// Create until a watch that was open before shows `ResultReady`, in milliseconds; waits for the end before it returns.
async fn result_of(client: &Client, namespace: &str, policy: &Value, resources: Value) -> (u128, Option<RunPath>) {
    let api: Api<ScriptRun> = Api::namespaced(client.clone(), namespace);
    let listed = api.list_metadata(&kube::api::ListParams::default().limit(1)).await.unwrap();
    let version = listed.metadata.resource_version.unwrap();
    let mut events = api.watch(&WatchParams::default(), &version).await.unwrap().boxed();
    let run: ScriptRun = serde_json::from_value(json!({
        "apiVersion": "paddock.dev/v1alpha1", "kind": "ScriptRun", "metadata": { "generateName": "run-" },
        "spec": {
            "policyRef": policy,
            "script": { "runtime": "python", "source": { "inline": TEXT } }, "resources": resources,
        },
    }))
    .unwrap();
    let begin = Instant::now();
    let name = api.create(&PostParams::default(), &run).await.unwrap().name_any();
    let (took, path) = loop {
        let (WatchEvent::Added(seen) | WatchEvent::Modified(seen)) = events.try_next().await.unwrap().unwrap() else { continue };
        if seen.name_any() == name && holds(ConditionType::ResultReady)(Some(&seen)) {
            break (begin.elapsed().as_millis(), seen.status.unwrap().path);
        }
    };
    await_condition(api, &name, holds(ConditionType::Finished)).await.unwrap();
    (took, path)
}
