//! Alerts and dashboard, as Prometheus' own tool reads them.
#![allow(clippy::unwrap_used)]

mod harness;

use std::path::PathBuf;
use std::process::Command;

use paddock_e2e::cluster::command::run;
use paddock_e2e::cluster::component;
use serde_json::{Value, json};

/// A folder of this test alone, with the chart's alerts in it.
fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("paddock-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let source = harness::layout().clone;
    std::fs::copy(source.join("charts/paddock/monitoring/alerts.yaml"), folder.join("alerts.yaml")).unwrap();
    std::fs::copy(source.join("e2e/monitoring/alerts_test.yaml"), folder.join("alerts_test.yaml")).unwrap();
    folder
}

fn promtool(folder: &PathBuf, arguments: &[&str]) -> anyhow::Result<String> {
    let mut promtool = Command::new(component::build_one(&harness::layout(), "promtool").unwrap());
    run(promtool.current_dir(folder).args(arguments))
}

fn alert_names(yaml: &str, key: &str) -> std::collections::BTreeSet<String> {
    let values = yaml.split(key).skip(1);
    values.map(|rest| rest.trim_start().chars().take_while(char::is_ascii_alphanumeric).collect()).collect()
}

#[test]
fn alerts_fire_on_what_they_are_for() {
    let folder = folder("alerts");
    promtool(&folder, &["check", "rules", "--lint=all", "--lint-fatal", "alerts.yaml"]).unwrap();
    promtool(&folder, &["test", "rules", "alerts_test.yaml"]).unwrap();
    let alerts = std::fs::read_to_string(folder.join("alerts.yaml")).unwrap();
    let tested = std::fs::read_to_string(folder.join("alerts_test.yaml")).unwrap();
    assert_eq!(alert_names(&alerts, "- alert:"), alert_names(&tested, "'ALERTS{alertname=\""), "every alert is tested");
    std::fs::remove_dir_all(folder).unwrap();
}

/// The dashboard's queries as recording rules, so that the tool parses them.
#[test]
fn every_query_of_the_dashboard_can_be_asked() {
    let text = std::fs::read_to_string(harness::layout().clone.join("charts/paddock/monitoring/dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let queries = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap()).map(|target| target["expr"].as_str().unwrap());
    let rules: Vec<Value> = queries
        .enumerate()
        .map(|(number, query)| json!({ "record": format!("query:{number}"), "expr": query.replace("$__rate_interval", "2m") }))
        .collect();
    assert!(rules.len() >= panels.len());
    let folder = folder("dashboard");
    std::fs::write(folder.join("queries.yaml"), json!({ "groups": [{ "name": "dashboard", "rules": rules }] }).to_string()).unwrap();
    promtool(&folder, &["check", "rules", "queries.yaml"]).unwrap();
    std::fs::remove_dir_all(folder).unwrap();
}
