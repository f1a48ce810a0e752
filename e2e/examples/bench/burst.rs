//! A hundred runs at once beside a hundred bare pods.

use std::time::Instant;

use futures::future::join_all;
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use paddock_crds::{ConditionType, ScriptRun};
use serde_json::{Value, json};

use crate::sides::{bare_pod, create_run, delete, holds, namespace, ratio, spread};

const AT_ONCE: u32 = 100;
/// The baseline allows ten in each.
const NAMESPACES: u32 = 10;
const ROUNDS: u32 = 3;
/// So little that the node takes all of them at once.
const CPU: &str = "100m";

/// Time from the first create to the last result, and to the last line in a log.
pub async fn bench(client: &Client) -> Value {
    let mut spaces = Vec::new();
    for _ in 0..NAMESPACES {
        spaces.push(namespace(client).await);
    }
    let (mut results, mut outputs, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let begin = Instant::now();
        let names = join_all((0..AT_ONCE).map(|number| one_run(client, &spaces[(number % NAMESPACES) as usize]))).await;
        results.push(begin.elapsed().as_millis());
        // The pods must not begin while sandboxes are still taken down.
        join_all(
            names.into_iter().map(|(api, name)| async move { await_condition(api, &name, holds(ConditionType::Finished)).await.unwrap() }),
        )
        .await;
        let begin = Instant::now();
        let pods = join_all((0..AT_ONCE).map(|number| {
            let space = &spaces[(number % NAMESPACES) as usize];
            async move { bare_pod(client, space, &format!("bare-{round}-{number}"), false, CPU).await }
        }))
        .await;
        ends.push(begin.elapsed().as_millis());
        outputs.push(pods.into_iter().map(|(output, _)| output).max().unwrap_or_default());
    }
    for space in &spaces {
        delete(client, space).await;
    }
    let (result, output, end) = (spread(results), spread(outputs), spread(ends));
    json!({
        "at_once": AT_ONCE, "rounds": ROUNDS,
        "burst_vs_output_ratio": ratio(&result, &output), "burst_vs_succeeded_ratio": ratio(&result, &end),
        "last_result_ms": result, "bare_last_output_ms": output, "bare_last_succeeded_ms": end,
    })
}

async fn one_run(client: &Client, space: &str) -> (Api<ScriptRun>, String) {
    let name = create_run(client, space, "print('hello')", CPU).await;
    let api: Api<ScriptRun> = Api::namespaced(client.clone(), space);
    await_condition(api.clone(), &name, holds(ConditionType::ResultReady)).await.unwrap();
    (api, name)
}
