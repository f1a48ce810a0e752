//! What people and programs see of the operator's work: audit events, Events, metrics, health, logs.

use crate::confinement::{output, prober};
use crate::harness::{self, OPERATOR_NAMESPACE, Script, Tenant, assert_end, eventually, operators, status, tenant};
use k8s_openapi::api::core::v1::{Event, Namespace, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams, LogParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use paddock_crds::{Phase, Reason, ScriptRun};
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// The port at which a replica of the gateway tells of itself.
const GATEWAY_METRICS: u16 = 8446;
/// Stands for what must not be told outside the status of its own run.
const SECRET: &str = "hunter2-in-the-script";

fn audit(run: &ScriptRun) -> Vec<String> {
    let events = status(run).audit;
    assert!(events.is_sorted_by_key(|event| event.time.0), "{events:#?}");
    events
        .into_iter()
        .map(|event| {
            let name = event.type_.trim_start_matches("dev.paddock.run.").trim_end_matches(".v1").to_owned();
            event.reason.map_or(name.clone(), |reason| format!("{name} {reason}"))
        })
        .collect()
}

/// Type and reason of every Event about a run, once there are `count` of them.
async fn events(tenant: &Tenant, run: &ScriptRun, count: usize) -> Vec<(String, String)> {
    let api: Api<Event> = Api::namespaced(tenant.client.clone(), &tenant.name);
    let params = ListParams::default().fields(&format!("involvedObject.uid={}", run.uid().unwrap()));
    eventually("the Events are there", || async {
        let mut events = api.list(&params).await.unwrap().items;
        events.sort_by_key(|event| event.event_time.clone().map(|time| time.0));
        assert!(!serde_json::to_string(&events).unwrap().contains(SECRET));
        let seen: Vec<_> = events.into_iter().map(|event| (event.type_.unwrap_or_default(), event.reason.unwrap_or_default())).collect();
        if seen.len() == count { Ok(seen) } else { Err(seen) }
    })
    .await
}

/// What the operator's pod answers on a path, through the API server.
async fn ask(client: &Client, path: &str) -> String {
    let pod = operators(client).await.remove(0).name_any();
    ask_at(client, &format!("{pod}:8080"), path).await
}

/// What a pod of the release answers at a port.
async fn ask_at(client: &Client, pod_and_port: &str, path: &str) -> String {
    let uri = format!("/api/v1/namespaces/{OPERATOR_NAMESPACE}/pods/{pod_and_port}/proxy/{path}");
    client.request_text(http::Request::get(uri).body(Vec::new()).unwrap()).await.unwrap()
}

async fn gateways(client: &Client) -> Vec<Pod> {
    let api: Api<Pod> = Api::namespaced(client.clone(), OPERATOR_NAMESPACE);
    api.list(&ListParams::default().labels("app.kubernetes.io/component=egress")).await.unwrap().items
}

#[tokio::test]
async fn a_run_leaves_audit_events_and_events_in_order() {
    tenant("events", |tenant| async move {
        let good = tenant.run(Script::shell(&format!("echo {SECRET}"))).await;
        assert_eq!(audit(&good), ["received", "admitted", "started", "result-ready", "finished Succeeded"]);
        let pair = |type_: &str, reason: &str| (type_.to_owned(), reason.to_owned());
        assert_eq!(events(&tenant, &good, 2).await, [pair("Normal", "Started"), pair("Normal", "Succeeded")]);

        let bad = tenant.run(Script::shell(&format!("echo {SECRET}; exit 3"))).await;
        assert_eq!(audit(&bad), ["received", "admitted", "started", "result-ready", "finished Failed"]);
        assert_eq!(events(&tenant, &bad, 2).await, [pair("Normal", "Started"), pair("Warning", "Failed")]);

        let refused = tenant.run(Script::shell("true").with(serde_json::json!({ "timeoutSeconds": 86400 }))).await;
        assert_eq!(audit(&refused), ["received", "finished Refused"]);
        assert_eq!(events(&tenant, &refused, 1).await, [pair("Warning", "Refused")]);
    })
    .await;
}

/// Value of a metric that has no labels, or the ones given.
fn value(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find(|line| line.split_once(' ').is_some_and(|(found, _)| found == name));
    line.and_then(|line| line.rsplit(' ').next()).map_or(0.0, |value| value.parse().unwrap())
}

#[tokio::test]
async fn metrics_count_runs_and_name_none() {
    tenant("metrics", |tenant| async move {
        let failed = "paddock_runs_finished_total{reason=\"Failed\"}";
        let before = ask(&tenant.client, "metrics").await;
        let run = tenant.run(Script::shell(&format!("echo {SECRET}; exit 1"))).await;
        assert_end(&run, &Phase::Failed, &Reason::Failed);
        let after = ask(&tenant.client, "metrics").await;
        // Other tests run beside this one.
        assert!(value(&after, failed) >= value(&before, failed) + 1.0, "{after}");
        let clocks = ["Received", "Admitted", "Started", "FirstOutput", "ResultReady", "Finished"]
            .map(|clock| format!("paddock_run_seconds_count{{until=\"{clock}\"}}"));
        let others =
            ["paddock_reconcile_seconds_count", "paddock_api_answers_total{code=\"200\"}", "paddock_api_answers_total{code=\"201\"}"];
        for moved in clocks.iter().map(String::as_str).chain(others) {
            assert!(value(&after, moved) >= value(&before, moved) + 1.0, "{moved}\n{after}");
        }
        assert!((value(&after, "paddock_leader") - 1.0).abs() < f64::EPSILON, "{after}");
        assert!(after.trim_end().ends_with("# EOF"), "{after}");
        let own = format!("paddock_namespace_runs_finished_total{{namespace=\"{}\",phase=\"Failed\"}}", tenant.name);
        let other = "paddock_namespace_runs_finished_total{namespace=\"_other\",phase=\"Failed\"}";
        assert!(value(&after, &own) >= 1.0 || value(&after, other) > value(&before, other), "{after}");
        for name in [run.name_any(), run.uid().unwrap(), SECRET.to_owned()] {
            assert!(!after.contains(&name), "{name} is in a metric");
        }
        // Labels have few values: reasons, phases, categories, clocks, HTTP statuses, the bounds of buckets, and a hundred namespaces.
        let labels: std::collections::BTreeSet<&str> =
            after.lines().filter_map(|line| line.split_once('{')?.1.split_once('=')).map(|(label, _)| label).collect();
        assert!(
            labels
                .iter()
                .all(|label| ["reason", "phase", "category", "until", "code", "le", "namespace", "outcome", "direction"].contains(label)),
            "{labels:?}"
        );
    })
    .await;
}

/// Names of metrics that a text has in it.
fn metrics_in(text: &str) -> std::collections::BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("paddock_")).collect()
}

/// An alert or a panel that asks for what nobody measures stays silent for ever.
#[tokio::test]
async fn alerts_and_dashboard_ask_for_what_is_measured() {
    tenant("asked", |tenant| async move {
        tenant.run(Script::shell("true")).await;
        let of_the_gateway = gateways(&tenant.client).await.remove(0).name_any();
        let measured =
            ask(&tenant.client, "metrics").await + &ask_at(&tenant.client, &format!("{of_the_gateway}:{GATEWAY_METRICS}"), "metrics").await;
        let measured = metrics_in(&measured);
        for file in ["alerts.yaml", "dashboard.json"] {
            let text = std::fs::read_to_string(harness::layout().clone.join("charts/paddock/monitoring").join(file)).unwrap();
            let asked = metrics_in(&text);
            assert!(!asked.is_empty());
            let unknown: Vec<_> = asked.difference(&measured).collect();
            assert!(unknown.is_empty(), "{file} asks for {unknown:?}");
        }
    })
    .await;
}

/// As Prometheus does it: the addresses behind the Service, from a pod of the namespace that the chart's NetworkPolicy lets in.
#[tokio::test]
async fn who_monitors_reads_the_gateways_metrics_and_nobody_else_does() {
    tenant("scrape", |tenant| async move {
        let slices: Api<EndpointSlice> = Api::namespaced(tenant.client.clone(), OPERATOR_NAMESPACE);
        let slices = slices.list(&ListParams::default().labels("kubernetes.io/service-name=paddock-egress-metrics")).await.unwrap();
        let addresses: Vec<String> =
            slices.items.into_iter().filter_map(|slice| slice.endpoints).flatten().flat_map(|one| one.addresses).collect();
        assert_eq!(addresses.len(), gateways(&tenant.client).await.len(), "{addresses:?}");
        let asked = addresses.iter().map(|address| {
            format!("printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' | nc.openbsd -w 3 {address} {GATEWAY_METRICS} || echo {address} is closed;")
        });
        let asked: String = asked.collect();
        let monitoring: Namespace = serde_json::from_value(json!({ "metadata": { "name": "monitoring" } })).unwrap();
        let namespaces: Api<Namespace> = Api::all(tenant.client.clone());
        // It stays: an earlier one may be there.
        let _ = namespaces.create(&PostParams::default(), &monitoring).await;
        let pods: Api<Pod> = Api::namespaced(tenant.client.clone(), "monitoring");
        let name = format!("scrape-{}", SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos());
        // Whether a pod is let in is decided when the controller has taken up its address, moments after it has begun.
        let let_in = |until: &str| {
            let last = addresses.last().unwrap();
            format!("for i in $(seq 60); do nc.openbsd -z -w 2 {last} {GATEWAY_METRICS} {until} break; sleep 0.5; done;")
        };
        let told = output(&pods, prober(&name, &(let_in("&&") + &asked))).await;
        pods.delete(&name, &DeleteParams::default()).await.unwrap();
        assert_eq!(told.matches("\npaddock_egress_gateway_told 1\n").count(), addresses.len(), "{told}");
        let elsewhere: Api<Pod> = Api::namespaced(tenant.client.clone(), &tenant.name);
        let told = output(&elsewhere, prober("scrape", &(let_in("||") + &asked))).await;
        assert_eq!(told, addresses.iter().map(|address| format!("{address} is closed\n")).collect::<String>());
    })
    .await;
}

#[tokio::test]
async fn the_leader_is_alive_and_ready() {
    let client = harness::admin().await;
    assert_eq!(ask(&client, "healthz").await, "ok");
    assert_eq!(ask(&client, "readyz").await, "ok");
}

#[tokio::test]
async fn the_log_is_json_that_tells_the_run_and_not_its_script() {
    tenant("log", |tenant| async move {
        let run =
            tenant.run(Script::shell(&format!("echo {SECRET}; echo {SECRET} >&2; echo {SECRET} > /dev/termination-log; exit 1"))).await;
        let api: Api<Pod> = Api::namespaced(tenant.client.clone(), OPERATOR_NAMESPACE);
        let pod = operators(&tenant.client).await.remove(0).name_any();
        let told = eventually("the end is in the log", || async {
            let log = api.logs(&pod, &LogParams { since_seconds: Some(120), ..LogParams::default() }).await.unwrap();
            assert!(!log.contains(SECRET), "{log}");
            let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect("every line is JSON")).collect();
            let own: Vec<Value> = lines.into_iter().filter(|line| line["span"]["uid"] == run.uid().unwrap()).collect();
            if own.iter().any(|line| line["message"] == "finished") { Ok(own) } else { Err(own) }
        })
        .await;
        let messages: Vec<&str> = told.iter().filter_map(|line| line["message"].as_str()).collect();
        assert_eq!(messages, ["started", "the pod has ended", "finished"], "one line for each change of state");
        let last = told.last().unwrap();
        assert_eq!((&last["reason"], &last["level"]), (&Value::from("Failed"), &Value::from("INFO")));
        assert_eq!(last["span"]["run"], run.name_any());
        assert_eq!(last["span"]["namespace"], tenant.name);
        assert_eq!(last["span"]["name"], "pass");
    })
    .await;
}
