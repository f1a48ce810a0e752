//! The operator's roles are a list of what it does. Run after the other suites, whose requests the API server's audit log holds.
#![allow(clippy::unwrap_used)]

mod harness;

use std::collections::BTreeSet;

use harness::layout;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule, Role};
use kube::Api;
use serde_json::Value;

const OPERATOR: &str = "system:serviceaccount:paddock-system:paddock-operator";

/// Resource and verb of every request of the operator that was allowed.
fn used() -> BTreeSet<(String, String)> {
    // The API server begins a new file when one is large.
    let folder = layout().audit_log().parent().unwrap().to_owned();
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let logs = files.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("audit")));
    let log: String = logs.map(|path| std::fs::read_to_string(path).unwrap()).collect();
    log.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|event| event["user"]["username"] == OPERATOR && event["responseStatus"]["code"].as_u64() != Some(403))
        .map(|event| {
            let object = &event["objectRef"];
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let subresource = object["subresource"].as_str().map_or_else(String::new, |name| format!("/{name}"));
            (text(&object["resource"]) + &subresource, text(&event["verb"]))
        })
        .collect()
}

fn granted(rules: Option<Vec<PolicyRule>>) -> impl Iterator<Item = (String, String)> {
    rules.into_iter().flatten().flat_map(|rule| {
        let verbs = rule.verbs;
        rule.resources.into_iter().flatten().flat_map(move |resource| verbs.clone().into_iter().map(move |verb| (resource.clone(), verb)))
    })
}

/// What no audit log can show under its own name, or no test can bring about.
const UNSEEN: [(&str, &str); 4] = [
    // Asked for by the API server when a RoleBinding is written.
    ("clusterroles", "bind"),
    // Asked for beside `get` when an attach is upgraded.
    ("pods/attach", "create"),
    // Made once after an installation; a cluster that is installed on anew keeps its lease.
    ("leases", "create"),
    // Where an Event of the same kind repeats within minutes.
    ("events", "patch"),
];

#[tokio::test]
async fn every_right_is_used_and_none_is_a_wildcard() {
    let client = harness::admin().await;
    let cluster: Api<ClusterRole> = Api::all(client.clone());
    let own: Api<Role> = Api::namespaced(client, harness::OPERATOR_NAMESPACE);
    let mut rights = BTreeSet::new();
    for name in ["paddock-operator", "paddock-sandbox", "paddock-source-reader"] {
        rights.extend(granted(cluster.get(name).await.unwrap().rules));
    }
    rights.extend(granted(own.get("paddock-operator").await.unwrap().rules));
    assert!(rights.iter().all(|(resource, verb)| !resource.contains('*') && !verb.contains('*')), "{rights:?}");
    let used = used();
    let unused: Vec<_> = rights.iter().filter(|right| !used.contains(right) && !UNSEEN.contains(&(&right.0, &right.1))).collect();
    assert!(unused.is_empty(), "no test makes the operator use {unused:?}");
}
