//! The operator's roles are a list of what it does. Run after the other suites, whose requests the API server's audit log holds.
#![allow(clippy::unwrap_used)]

mod harness;

use std::collections::BTreeSet;
use std::process::Command;

use harness::layout;
use paddock_e2e::cluster::command::run;
use paddock_e2e::cluster::component;
use serde_json::Value;

type Rights = BTreeSet<(String, String)>;

/// The accounts of the chart, each with the roles that it has.
const ACCOUNTS: [(&str, &[&str]); 5] = [
    (
        "paddock-operator",
        &[
            "paddock-operator",
            "paddock-sandbox",
            "paddock-source-reader",
            "paddock-secret-reader",
            "paddock-webhook",
            "paddock-operator-egress",
        ],
    ),
    ("paddock-crds", &["paddock-crds"]),
    ("paddock-admission", &["paddock-admission"]),
    ("paddock-uninstall", &["paddock-uninstall"]),
    ("paddock-try", &["paddock-try"]),
];

/// Resource and verb of every request of an account that the API server's audit log holds: those that were allowed, and those that were not.
fn requests(account: &str) -> (Rights, Rights) {
    // The API server begins a new file when one is large.
    let folder = layout().audit_log().parent().unwrap().to_owned();
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let logs = files.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("audit")));
    let (mut allowed, mut refused) = (Rights::new(), Rights::new());
    for line in logs.map(|path| std::fs::read_to_string(path).unwrap()).collect::<String>().lines() {
        let Ok(event) = serde_json::from_str::<Value>(line) else { continue };
        let object = &event["objectRef"];
        if event["user"]["username"] != format!("system:serviceaccount:paddock-system:{account}") || object["resource"].is_null() {
            continue;
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let subresource = object["subresource"].as_str().map_or_else(String::new, |name| format!("/{name}"));
        let right = (text(&object["resource"]) + &subresource, text(&event["verb"]));
        if event["annotations"]["authorization.k8s.io/decision"] == "forbid" {
            refused.insert(right)
        } else {
            allowed.insert(right)
        };
    }
    (allowed, refused)
}

/// The rules of roles in the rendered chart: those of hooks are in the cluster only for a moment. With the webhook and the egress gateway there are more than without.
fn granted(roles: &[&str]) -> Rights {
    let mut helm = Command::new(component::build_one(&layout(), "helm").unwrap());
    helm.args(["template", "paddock", "--set", "admission.stamps=Webhook", "--set", "baseline.create=false"]);
    helm.args(["--set", "egress.create=true", "--set", "egress.clusterNets={10.0.0.0/8}"]);
    let with_webhook = run(helm.arg(layout().clone.join("charts/paddock"))).unwrap();
    let mut helm = Command::new(component::build_one(&layout(), "helm").unwrap());
    let without = run(helm.args(["template", "paddock"]).arg(layout().clone.join("charts/paddock"))).unwrap();
    let rendered = format!("{with_webhook}\n---\n{without}");
    let documents = rendered.split("---\n").filter_map(|document| serde_saphyr::from_str::<Value>(document).ok());
    let of_roles = documents.filter(|document| {
        matches!(document["kind"].as_str(), Some("Role" | "ClusterRole")) && roles.contains(&document["metadata"]["name"].as_str().unwrap())
    });
    let words = |value: &Value| -> Vec<String> { serde_json::from_value(value.clone()).unwrap() };
    let mut rights = Rights::new();
    for rule in of_roles.flat_map(|role| role["rules"].as_array().unwrap().clone()) {
        for resource in words(&rule["resources"]) {
            rights.extend(words(&rule["verbs"]).into_iter().map(|verb| (resource.clone(), verb)));
        }
    }
    rights
}

/// What no audit log can show under its own name, or no test can bring about.
const UNSEEN: [(&str, &str); 7] = [
    // Asked for by the API server when a RoleBinding is written.
    ("clusterroles", "bind"),
    // Asked for beside `get` when an attach is upgraded.
    ("pods/attach", "create"),
    // Made once after an installation; a cluster that is installed on anew keeps its lease.
    ("leases", "create"),
    // Where an Event of the same kind repeats within minutes.
    ("events", "patch"),
    // Asked for beside `patch` where server-side apply creates.
    ("customresourcedefinitions", "create"),
    // Where a CRD is not served at the first look.
    ("customresourcedefinitions", "watch"),
    // Of the uninstallation, where somebody else writes a run at the same moment. The operator uses it all the time.
    ("scriptruns", "get"),
];

#[test]
fn every_right_is_used_none_is_a_wildcard_and_none_is_missing() {
    for (account, roles) in ACCOUNTS {
        let rights = granted(roles);
        assert!(!rights.is_empty(), "{account}");
        assert!(rights.iter().all(|(resource, verb)| !resource.contains('*') && !verb.contains('*')), "{rights:?}");
        let (allowed, refused) = requests(account);
        let unused: Vec<_> = rights.iter().filter(|right| !allowed.contains(right) && !UNSEEN.contains(&(&right.0, &right.1))).collect();
        assert!(unused.is_empty(), "no test makes {account} use {unused:?}");
        // A binding that was made or taken away a moment ago refuses now and then what is allowed otherwise.
        let missing: Vec<_> = refused.difference(&allowed).collect();
        assert!(missing.is_empty(), "{account} is refused {missing:?}");
    }
}
