//! Values that cannot work are refused by `helm template`, before anything is installed.
#![allow(clippy::unwrap_used)]

mod harness;

use std::process::Command;

use paddock_e2e::cluster::command::run;
use paddock_e2e::cluster::component;

fn template(value: &str) -> Result<String, String> {
    let layout = harness::layout();
    let helm = component::build_one(&layout, "helm").unwrap();
    let mut command = Command::new(helm);
    command.args(["template", "paddock"]).arg(layout.clone.join("charts/paddock")).args(["--set-json", value]);
    run(&mut command).map_err(|error| format!("{error:#}"))
}

#[test]
fn values_that_cannot_work_are_refused_by_name() {
    let refused = [
        ("replicas=0", "/replicas"),
        ("logLevel=\"loud\"", "/logLevel"),
        ("startBudgetSeconds=1", "/startBudgetSeconds"),
        ("runner.delivery=\"scp\"", "/runner/delivery"),
        ("baseline.limits.max.memory=\"lots\"", "/baseline/limits/max/memory"),
        ("baseline.limits.max.memroy=\"1Gi\"", "memroy"),
        ("baseline.limits.maxTimeoutSeconds=0", "/baseline/limits/maxTimeoutSeconds"),
        ("baseline.runtimes=[]", "/baseline/runtimes"),
        ("baseline.runtimes=null", "runtimes"),
        ("baseline.runtimes=[{\"name\":\"python\",\"image\":\"x\",\"command\":[\"python\"]}]", "/baseline/runtimes/0/command/0"),
        ("sandbox.runtimeclass=\"x\"", "runtimeclass"),
    ];
    for (value, named) in refused {
        let answer = template(value);
        assert!(answer.as_ref().is_err_and(|text| text.contains(named)), "{value}: {answer:?}");
    }
}

#[test]
fn values_that_work_are_taken() {
    for value in [
        "replicas=2",
        "logLevel=\"info,kube=debug\"",
        "baseline.limits.max.cpu=2",
        "baseline.create=false",
        "baseline.namespaceSelector.matchLabels=null",
    ] {
        let answer = template(value);
        assert!(answer.is_ok(), "{value}: {answer:?}");
    }
}
