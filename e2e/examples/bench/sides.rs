//! One cold run, one bare pod, and what each takes.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{DeleteParams, LogParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client, ResourceExt as _};
use paddock_crds::{ConditionType, ScriptRun};
use serde_json::{Value, json};

use crate::operator::{self, Named};

const PAIRS: u32 = 15;
/// Runs that live at once when memory is measured, and the namespaces that they are in: the baseline allows ten in each.
const LIVE: u32 = 40;
const NAMESPACES: u32 = 4;
const TEXT: &str = "print('hello')";

/// Cold runs one at a time, with pauses spread over a second so that neither side locks to the kubelet's poll.
pub async fn bench(client: &Client) -> Value {
    let namespace = namespace(client).await;
    paddock_run(client, &namespace, TEXT, "500m").await;
    let (mut results, mut outputs, mut ends, mut mounted) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut cpu, mut bytes) = (Duration::ZERO, 0);
    let mut names = Vec::new();
    for pair in 0..PAIRS {
        let (output, end) = bare_pod(client, &namespace, &format!("bare-{pair}"), false, "500m").await;
        outputs.push(output);
        ends.push(end);
        pause(pair * 193).await;
        mounted.push(bare_pod(client, &namespace, &format!("mounted-{pair}"), true, "500m").await.0);
        pause(pair * 137).await;
        let before = operator::cpu();
        let (took, run) = paddock_run(client, &namespace, TEXT, "500m").await;
        results.push(took);
        bytes = stored_bytes(client, &namespace, &run.name).await;
        names.push(run);
        pause(pair * 271).await;
        cpu += operator::cpu().saturating_sub(before);
    }
    let writes = spread(operator::writes(&namespace, &names));
    delete(client, &namespace).await;
    let memory = memory_of_a_live_run(client).await;
    let (result, output, mounted_output, end) = (spread(results), spread(outputs), spread(mounted), spread(ends));
    json!({
        "pairs": PAIRS,
        "cold_vs_output_ratio": ratio(&result, &output),
        "cold_vs_output_with_a_volume_ratio": ratio(&result, &mounted_output),
        "cold_vs_succeeded_ratio": ratio(&result, &end),
        "create_to_result_ready_ms": result,
        "bare_create_to_output_ms": output,
        "bare_with_a_volume_create_to_output_ms": mounted_output,
        "bare_create_to_succeeded_ms": end,
        "writes_cold": writes["p50"],
        "writes_cold_max": writes["max"],
        "script_run_bytes": bytes,
        "operator_cpu_ms_per_run": u64::try_from((cpu / PAIRS).as_millis()).unwrap(),
        "operator_bytes_per_live_run": memory,
    })
}

async fn pause(spread: u32) {
    tokio::time::sleep(Duration::from_millis(1000 + u64::from(spread % 1000))).await;
}

pub async fn namespace(client: &Client) -> String {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = json!({ "metadata": { "generateName": "bench-", "labels": { "paddock.dev/tenant": "true" } } });
    namespaces.create(&PostParams::default(), &serde_json::from_value(namespace).unwrap()).await.unwrap().name_any()
}

pub async fn delete(client: &Client, namespace: &str) {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces.delete(namespace, &DeleteParams::default()).await.unwrap();
}

/// What the operator's memory grows by for each run whose script runs.
async fn memory_of_a_live_run(client: &Client) -> i64 {
    let mut spaces = Vec::new();
    for _ in 0..NAMESPACES {
        spaces.push(namespace(client).await);
    }
    let before = operator::memory();
    let mut runs = Vec::new();
    for number in 0..LIVE {
        let space = &spaces[(number % NAMESPACES) as usize];
        runs.push((space, create_run(client, space, "import time\nprint('lives', flush=True)\ntime.sleep(200)", "100m").await));
    }
    for (space, name) in &runs {
        let api: Api<ScriptRun> = Api::namespaced(client.clone(), space);
        await_condition(api, name, holds(ConditionType::Started)).await.unwrap();
    }
    let after = operator::memory();
    for space in &spaces {
        delete(client, space).await;
    }
    (i64::try_from(after).unwrap() - i64::try_from(before).unwrap()) / i64::from(LIVE)
}

/// Percentiles in milliseconds.
pub fn spread(mut values: Vec<u128>) -> Value {
    values.sort_unstable();
    let at = |percent: usize| u64::try_from(values[(values.len() * percent / 100).min(values.len() - 1)]).unwrap();
    json!({ "min": at(0), "p50": at(50), "p95": at(95), "max": at(100) })
}

pub fn ratio(one: &Value, other: &Value) -> f64 {
    let median = |value: &Value| value["p50"].as_f64().unwrap();
    (median(one) / median(other) * 100.0).round() / 100.0
}

pub fn holds(type_: ConditionType) -> impl Fn(Option<&ScriptRun>) -> bool {
    move |run| run.and_then(|run| run.status.as_ref()).is_some_and(|status| status.is_true(&type_))
}

pub async fn create_run(client: &Client, namespace: &str, text: &str, cpu: &str) -> String {
    let api: Api<ScriptRun> = Api::namespaced(client.clone(), namespace);
    let run = json!({
        "apiVersion": "paddock.dev/v1alpha1", "kind": "ScriptRun", "metadata": { "generateName": "run-" },
        "spec": {
            "policyRef": { "kind": "ClusterSandboxPolicy", "name": "baseline" },
            "script": { "runtime": "python", "source": { "inline": text } },
            "resources": { "cpu": cpu }, "timeoutSeconds": 300,
        },
    });
    api.create(&PostParams::default(), &serde_json::from_value(run).unwrap()).await.unwrap().name_any()
}

/// Create until a watch shows `ResultReady`; waits for the end before it returns.
pub async fn paddock_run(client: &Client, namespace: &str, text: &str, cpu: &str) -> (u128, Named) {
    let api: Api<ScriptRun> = Api::namespaced(client.clone(), namespace);
    let begin = Instant::now();
    let name = create_run(client, namespace, text, cpu).await;
    await_condition(api.clone(), &name, holds(ConditionType::ResultReady)).await.unwrap();
    let took = begin.elapsed().as_millis();
    let run = await_condition(api, &name, holds(ConditionType::Finished)).await.unwrap().unwrap();
    (took, Named { name, uid: run.uid().unwrap() })
}

/// Bytes of a finished run as the API server sends it. It stores custom resources in the same form.
async fn stored_bytes(client: &Client, namespace: &str, name: &str) -> usize {
    let path = format!("/apis/paddock.dev/v1alpha1/namespaces/{namespace}/scriptruns/{name}");
    client.request_text(http::Request::get(path).body(Vec::new()).unwrap()).await.unwrap().len()
}

/// Create until the log holds the line, and until the phase says `Succeeded`. A pod with a volume starts a good deal later: the kubelet
/// looks whether the volumes are there when it gets the pod, which is too early, and then every 300 ms.
pub async fn bare_pod(client: &Client, namespace: &str, name: &str, with_volume: bool, cpu: &str) -> (u128, u128) {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let milli: u32 = cpu.trim_end_matches('m').parse().unwrap();
    let resources = |cpu: String| json!({ "cpu": cpu, "memory": "128Mi" });
    let mut pod = json!({
        "metadata": { "name": name },
        "spec": {
            "runtimeClassName": "gvisor-nonet", "restartPolicy": "Never", "automountServiceAccountToken": false, "enableServiceLinks": false,
            "securityContext": { "runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": { "type": "RuntimeDefault" } },
            "containers": [{
                "name": "script", "image": "docker.io/paddock/python:3.11", "imagePullPolicy": "Never",
                "command": ["/usr/bin/python3", "-I", "-u", "-c", TEXT],
                "resources": { "requests": resources(format!("{}m", milli / 10)), "limits": resources(cpu.to_owned()) },
            }],
        },
    });
    if with_volume {
        pod["spec"]["volumes"] = json!([{ "name": "workspace", "emptyDir": { "medium": "Memory" } }]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "workspace", "mountPath": "/workspace" }]);
    }
    let begin = Instant::now();
    api.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    let reading = async {
        loop {
            if api.logs(name, &LogParams::default()).await.is_ok_and(|log| log.contains("hello")) {
                return begin.elapsed().as_millis();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let ending = async {
        let is_over =
            |pod: Option<&Pod>| pod.and_then(|pod| pod.status.as_ref()).and_then(|status| status.phase.as_deref()) == Some("Succeeded");
        await_condition(api.clone(), name, is_over).await.unwrap();
        begin.elapsed().as_millis()
    };
    let both = futures::future::join(reading, ending).await;
    api.delete(name, &DeleteParams::default()).await.unwrap();
    both
}
