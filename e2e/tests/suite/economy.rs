//! What a run costs the API server, counted from its own audit log.

use crate::harness::{self, Script, layout, tenant};
use paddock_crds::{Phase, Reason};
use serde_json::Value;

const OPERATOR: &str = "system:serviceaccount:paddock-system:paddock-operator";

/// Requests of the operator that the audit log holds for these namespaces.
fn requests(namespaces: &[String]) -> Vec<(String, String, u64)> {
    // The API server begins a new file when one is large; names of the old ones tell their time.
    let current = layout().audit_log();
    let files = std::fs::read_dir(current.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files.filter(|path| *path != current && path.extension().is_some_and(|extension| extension == "log")).collect();
    files.sort();
    let log: String = files.iter().chain([&current]).map(|path| std::fs::read_to_string(path).unwrap()).collect();
    log.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|event| event["user"]["username"] == OPERATOR)
        .filter(|event| namespaces.iter().any(|namespace| event["objectRef"]["namespace"] == *namespace))
        .map(|event| {
            let object = &event["objectRef"];
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let resource = [text(&object["resource"]), text(&object["subresource"])].join("/");
            (text(&event["verb"]), resource, event["responseStatus"]["code"].as_u64().unwrap_or(0))
        })
        .collect()
}

#[tokio::test]
async fn a_cold_run_takes_at_most_seven_writes_and_two_events() {
    tenant("economy", |tenant| async move {
        // The first run makes the sandbox namespace.
        tenant.run(Script::shell("true")).await;
        let namespaces = [tenant.name.clone(), tenant.sandbox()];
        let settled = || async {
            let pods = tenant.pods().list(&kube::api::ListParams::default()).await.unwrap().items;
            let events = requests(&namespaces).iter().filter(|(_, resource, _)| resource.starts_with("events")).count();
            if pods.is_empty() { Ok(events) } else { Err(events) }
        };
        harness::eventually("the first run is over", settled).await;
        let before = requests(&namespaces).len();
        let run = tenant.run(Script::shell("echo hello")).await;
        harness::assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        harness::eventually("the second run is over", || async {
            let seen = requests(&namespaces).split_off(before);
            let is_over = seen.iter().any(|(verb, resource, _)| verb == "delete" && resource == "pods/")
                && seen.iter().filter(|(_, resource, _)| resource == "events/").count() >= 2;
            if is_over { Ok(()) } else { Err(seen) }
        })
        .await;
        let seen = requests(&namespaces).split_off(before);
        let is_write = |verb: &str| matches!(verb, "create" | "update" | "patch" | "delete");
        let (events, writes): (Vec<_>, Vec<_>) = seen
            .iter()
            .filter(|(verb, resource, _)| is_write(verb) && resource != "pods/attach")
            .partition(|(_, resource, _)| resource == "events/");
        println!("writes of a cold run: {writes:?}");
        assert!(writes.len() <= 7, "{writes:#?}");
        assert!(events.len() <= 2, "{events:#?}");
        let refused: Vec<_> = seen.iter().filter(|(_, _, code)| *code == 403).collect();
        assert!(refused.is_empty(), "the operator lacks a right: {refused:?}");
    })
    .await;
}
