//! Cold runs beside bare pods of the same image, RuntimeClass and limits, alternating, with pauses spread over a second so that neither
//! side locks to the kubelet's poll. Prints one JSON line with medians and spreads in milliseconds.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{DeleteParams, LogParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::wait::await_condition;
use kube::{Api, Client, Config, ResourceExt as _};
use paddock_crds::{ConditionType, ScriptRun};
use paddock_e2e::cluster::layout::Layout;
use serde_json::json;

const PAIRS: u32 = 10;
const TEXT: &str = "print('hello')";

#[tokio::main]
async fn main() {
    let clone = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let home = std::path::PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into()));
    let kubeconfig = Kubeconfig::read_from(Layout::new(clone, None, &home).kubeconfig()).expect("the cluster is up: run make bench");
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let client = Client::try_from(config).unwrap();
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace =
        serde_json::from_value(json!({ "metadata": { "generateName": "bench-", "labels": { "paddock.dev/tenant": "true" } } })).unwrap();
    let namespace = namespaces.create(&PostParams::default(), &namespace).await.unwrap().name_any();

    paddock_run(&client, &namespace).await;
    let (mut results, mut outputs, mut ends, mut mounted) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        let (output, end) = bare_pod(&client, &namespace, &format!("bare-{pair}"), json!({})).await;
        outputs.push(output);
        ends.push(end);
        tokio::time::sleep(Duration::from_millis(1000 + u64::from(pair * 193 % 1000))).await;
        let volume = json!({ "volumes": [{ "name": "workspace", "emptyDir": { "medium": "Memory" } }] });
        mounted.push(bare_pod(&client, &namespace, &format!("mounted-{pair}"), volume).await.0);
        tokio::time::sleep(Duration::from_millis(1000 + u64::from(pair * 137 % 1000))).await;
        results.push(paddock_run(&client, &namespace).await);
        tokio::time::sleep(Duration::from_millis(1000 + u64::from(pair * 271 % 1000))).await;
    }
    namespaces.delete(&namespace, &DeleteParams::default()).await.unwrap();
    let (result, output, end) = (median(&mut results), median(&mut outputs), median(&mut ends));
    let mounted_output = median(&mut mounted);
    println!(
        "{}",
        json!({
            "pairs": PAIRS,
            "create_to_result_ready_ms": spread(&results), "bare_create_to_output_ms": spread(&outputs), "bare_create_to_succeeded_ms": spread(&ends),
            "bare_with_a_volume_create_to_output_ms": spread(&mounted),
            "cold_vs_output_ratio": ratio(result, output), "cold_vs_succeeded_ratio": ratio(result, end),
            "cold_vs_output_with_a_volume_ratio": ratio(result, mounted_output),
        })
    );
}

fn median(values: &mut [u128]) -> u128 {
    values.sort_unstable();
    values[values.len() / 2]
}

fn spread(sorted: &[u128]) -> serde_json::Value {
    let millis = |value: u128| u64::try_from(value).unwrap_or(u64::MAX);
    json!({ "min": millis(sorted[0]), "median": millis(sorted[sorted.len() / 2]), "max": millis(sorted[sorted.len() - 1]) })
}

fn ratio(one: u128, other: u128) -> f64 {
    let percent = u32::try_from(one * 100 / other.max(1)).unwrap_or(u32::MAX);
    f64::from(percent) / 100.0
}

/// Create until a watch shows `ResultReady`; waits for the end before it returns.
async fn paddock_run(client: &Client, namespace: &str) -> u128 {
    let api: Api<ScriptRun> = Api::namespaced(client.clone(), namespace);
    let run = json!({
        "apiVersion": "paddock.dev/v1alpha1", "kind": "ScriptRun", "metadata": { "generateName": "cold-" },
        "spec": {
            "policyRef": { "kind": "ClusterSandboxPolicy", "name": "baseline" },
            "script": { "runtime": "python", "source": { "inline": TEXT } },
        },
    });
    let begin = Instant::now();
    let run = api.create(&PostParams::default(), &serde_json::from_value(run).unwrap()).await.unwrap();
    let holds = |type_: ConditionType| {
        move |run: Option<&ScriptRun>| run.and_then(|run| run.status.as_ref()).is_some_and(|status| status.is_true(&type_))
    };
    await_condition(api.clone(), &run.name_any(), holds(ConditionType::ResultReady)).await.unwrap();
    let took = begin.elapsed().as_millis();
    await_condition(api, &run.name_any(), holds(ConditionType::Finished)).await.unwrap();
    took
}

/// Create until the log holds the line, and until the phase says `Succeeded`. A pod with a volume starts a good deal later: the kubelet
/// looks whether the volumes are there when it gets the pod, which is too early, and then every 300 ms.
async fn bare_pod(client: &Client, namespace: &str, name: &str, volumes: serde_json::Value) -> (u128, u128) {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let resources = |cpu: &str| json!({ "cpu": cpu, "memory": "128Mi" });
    let mut pod = json!({
        "metadata": { "name": name },
        "spec": {
            "runtimeClassName": "gvisor-nonet", "restartPolicy": "Never", "automountServiceAccountToken": false, "enableServiceLinks": false,
            "securityContext": { "runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": { "type": "RuntimeDefault" } },
            "containers": [{
                "name": "script", "image": "docker.io/paddock/python:3.11", "imagePullPolicy": "Never",
                "command": ["/usr/bin/python3", "-I", "-u", "-c", TEXT],
                "resources": { "requests": resources("50m"), "limits": resources("500m") },
            }],
        },
    });
    if let Some(volumes) = volumes.get("volumes") {
        pod["spec"]["volumes"] = volumes.clone();
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": volumes[0]["name"], "mountPath": "/workspace" }]);
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
