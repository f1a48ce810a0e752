//! Alerts and dashboard, as Prometheus' own tool reads them.

use std::path::PathBuf;
use std::process::Command;

use crate::harness::layout;
use paddock_e2e::cluster::command::run;
use paddock_e2e::cluster::component;
use serde_json::{Value, json};

/// A folder of this test alone, with the chart's alerts in it.
fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("paddock-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let source = layout().clone;
    std::fs::copy(source.join("charts/paddock/monitoring/alerts.yaml"), folder.join("alerts.yaml")).unwrap();
    std::fs::copy(source.join("e2e/monitoring/alerts_test.yaml"), folder.join("alerts_test.yaml")).unwrap();
    folder
}

fn promtool(folder: &PathBuf, arguments: &[&str]) -> anyhow::Result<String> {
    let mut promtool = Command::new(component::build_one(&layout(), "promtool").unwrap());
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
    let text = std::fs::read_to_string(layout().clone.join("charts/paddock/monitoring/dashboard.json")).unwrap();
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

/// Grafana's own types of a dashboard, from its package: a field that it does not know is an error.
#[test]
fn the_dashboard_is_one_by_grafanas_own_types() {
    let clone = layout().clone;
    let folder = folder("types");
    for file in ["package.json", "package-lock.json"] {
        std::fs::copy(clone.join("e2e/monitoring/types").join(file), folder.join(file)).unwrap();
    }
    run(Command::new("npm").current_dir(&folder).args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--quiet"])).unwrap();
    let dashboard = std::fs::read_to_string(clone.join("charts/paddock/monitoring/dashboard.json")).unwrap();
    let check = |dashboard: &str| {
        let text = format!("import type {{ Dashboard }} from \"@grafana/schema\";\nexport const dashboard: Dashboard = {dashboard};\n");
        std::fs::write(folder.join("dashboard.ts"), text).unwrap();
        let mut compiler = Command::new("node");
        compiler.current_dir(&folder).args(["node_modules/typescript/bin/tsc", "--noEmit", "--strict", "--skipLibCheck"]);
        run(compiler.args(["--moduleResolution", "bundler", "--module", "esnext", "--target", "esnext", "dashboard.ts"]))
    };
    check(&dashboard).unwrap();
    check(&dashboard.replace("\"gridPos\"", "\"gridPoss\"")).expect_err("a field that there is not");
    std::fs::remove_dir_all(folder).unwrap();
}
