//! The operator's roles are a list of what it does. Run after the other suites, whose requests the API server's audit log holds.

use std::collections::BTreeSet;
use std::process::Command;

use crate::harness::layout;
use paddock_e2e::cluster::command::run;
use paddock_e2e::cluster::component;
use serde_json::Value;

/// Where something is asked for. A right that is given in one place is not used by a request in another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// The namespace of the release.
    Release,
    /// A sandbox namespace.
    Sandbox,
    /// Any other namespace, or none.
    Elsewhere,
}

/// `resource.group`, verb and place.
type Rights = BTreeSet<(String, String, Place)>;

fn qualified(resource: &str, group: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

/// The accounts of the chart, each with the roles that it has.
const ACCOUNTS: [(&str, &[&str]); 6] = [
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
    ("paddock-doctor", &["paddock-doctor", "paddock-doctor-egress"]),
];

/// Every request of an account that the API server's audit log holds, as rights: those that were allowed, and those that were not.
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
        let place = match object["namespace"].as_str() {
            Some("paddock-system") => Place::Release,
            Some(namespace) if namespace.starts_with("sbx-") => Place::Sandbox,
            _ => Place::Elsewhere,
        };
        let resource = qualified(&(text(&object["resource"]) + &subresource), &text(&object["apiGroup"]));
        let right = (resource, text(&event["verb"]), place);
        if event["annotations"]["authorization.k8s.io/decision"] == "forbid" {
            refused.insert(right)
        } else {
            allowed.insert(right)
        };
    }
    (allowed, refused)
}

/// The rules of roles in the rendered chart: those of hooks are in the cluster only for a moment. With the webhook and the egress gateway there are more than without.
/// `None` is a right in every place.
fn granted(roles: &[&str]) -> BTreeSet<(String, String, Option<Place>)> {
    let mut helm = Command::new(component::build_one(&layout(), "helm").unwrap());
    helm.args(["template", "paddock", "--set", "admission.stamps=Webhook", "--set", "baseline.create=false"]);
    helm.args(["--set", "doctor.create=false", "--set", "audit.url=s3://audit/log"]);
    helm.args(["--set", "egress.create=true", "--set", "egress.clusterNets={10.0.0.0/8}"]);
    let with_webhook = run(helm.arg(layout().clone.join("charts/paddock"))).unwrap();
    let mut helm = Command::new(component::build_one(&layout(), "helm").unwrap());
    helm.args(["template", "paddock", "--set", "egress.create=true", "--set", "egress.clusterNets={10.0.0.0/8}"]);
    let without = run(helm.arg(layout().clone.join("charts/paddock"))).unwrap();
    let rendered = format!("{with_webhook}\n---\n{without}");
    let documents = rendered.split("---\n").filter_map(|document| serde_saphyr::from_str::<Value>(document).ok());
    let of_roles = documents.filter(|document| {
        matches!(document["kind"].as_str(), Some("Role" | "ClusterRole")) && roles.contains(&document["metadata"]["name"].as_str().unwrap())
    });
    let words = |value: &Value| -> Vec<String> { serde_json::from_value(value.clone()).unwrap() };
    let mut rights = BTreeSet::new();
    for role in of_roles {
        let place = match (role["kind"].as_str(), role["metadata"]["name"].as_str()) {
            // In a namespace of its own.
            (Some("Role"), Some("paddock-try" | "paddock-doctor")) => Some(Place::Elsewhere),
            (Some("Role"), _) => Some(Place::Release),
            // Bound where they are needed, and nowhere else.
            (_, Some("paddock-sandbox")) => Some(Place::Sandbox),
            (_, Some("paddock-source-reader" | "paddock-secret-reader")) => Some(Place::Elsewhere),
            _ => None,
        };
        for rule in role["rules"].as_array().unwrap() {
            for (group, resource) in words(&rule["apiGroups"])
                .iter()
                .flat_map(|group| words(&rule["resources"]).into_iter().map(move |resource| (group.clone(), resource)))
            {
                rights.extend(words(&rule["verbs"]).into_iter().map(|verb| (qualified(&resource, &group), verb, place)));
            }
        }
    }
    rights
}

/// What no audit log can show under its own name, or no test can bring about, by account.
const UNSEEN: [(&str, &str, &str); 7] = [
    // Asked for by the API server when a RoleBinding is written.
    ("paddock-operator", "clusterroles.rbac.authorization.k8s.io", "bind"),
    // Asked for beside `get` when an attach is upgraded.
    ("paddock-operator", "pods/attach", "create"),
    // Made once after an installation; a cluster that is installed on anew keeps its lease.
    ("paddock-operator", "leases.coordination.k8s.io", "create"),
    // Where an Event of the same kind repeats within minutes.
    ("paddock-operator", "events.events.k8s.io", "patch"),
    // Asked for beside `patch` where server-side apply creates.
    ("paddock-crds", "customresourcedefinitions.apiextensions.k8s.io", "create"),
    // Where a CRD is not served at the first look.
    ("paddock-crds", "customresourcedefinitions.apiextensions.k8s.io", "watch"),
    // Where somebody else writes a run at the same moment.
    ("paddock-uninstall", "scriptruns.paddock.dev", "get"),
];

#[test]
fn every_right_is_used_none_is_a_wildcard_and_none_is_missing() {
    for (account, roles) in ACCOUNTS {
        let rights = granted(roles);
        assert!(!rights.is_empty(), "{account}");
        assert!(rights.iter().all(|(resource, verb, _)| !resource.contains('*') && !verb.contains('*')), "{rights:?}");
        let (allowed, refused) = requests(account);
        let is_used = |(resource, verb, place): &(String, String, Option<Place>)| {
            UNSEEN.contains(&(account, resource, verb))
                || allowed.iter().any(|used| used.0 == *resource && used.1 == *verb && place.is_none_or(|place| place == used.2))
        };
        let unused: Vec<_> = rights.iter().filter(|right| !is_used(right)).collect();
        assert!(unused.is_empty(), "no test makes {account} use {unused:?}");
        // A binding that was made or taken away a moment ago refuses now and then what is allowed otherwise.
        let missing: Vec<_> = refused.difference(&allowed).collect();
        assert!(missing.is_empty(), "{account} is refused {missing:?}");
    }
}
