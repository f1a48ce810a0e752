//! The examples of docs/refusals.md: each is created, and has to be answered as it says there.

use crate::harness::{assert_refused, kubectl, layout, status, tenant};
use futures::future::join_all;
use paddock_crds::{Reason, ScriptRun};

struct Example {
    reason: String,
    objects: String,
    message: String,
}

/// Sections with a block of YAML and one of text.
fn examples() -> Vec<Example> {
    let text = std::fs::read_to_string(layout().clone.join("docs/refusals.md")).unwrap();
    let block = |section: &str, kind: &str| {
        let (_, rest) = section.split_once(&format!("```{kind}\n"))?;
        Some(rest.split_once("```")?.0.to_owned())
    };
    let example = |section: &str| {
        let (reason, rest) = section.split_once('\n')?;
        let message = block(rest, "text")?.trim_end().to_owned();
        Some(Example { reason: reason.to_owned(), objects: block(rest, "yaml")?, message })
    };
    text.split("\n## ").filter_map(example).collect()
}

async fn is_answered_as_documented(example: Example) {
    let reason: Reason = serde_json::from_value(example.reason.clone().into()).unwrap();
    tenant(&format!("ref-{}", example.reason.to_lowercase()), |tenant| async move {
        // Policies and roles first: a run is decided on as soon as it is there.
        let (before, run) = example.objects.rsplit_once("---\n").unwrap_or(("", &example.objects));
        let apply = |objects: &str| kubectl(&["apply", "--namespace", &tenant.name, "--filename", "-"], objects).unwrap();
        if before.contains("kind: RoleBinding") {
            tenant.let_the_operator_read_sources().await;
        } else if !before.is_empty() {
            apply(before);
            tenant.policy_is_seen("example").await;
        }
        apply(run);
        let run: ScriptRun = tenant.runs().get("example").await.unwrap();
        let run = tenant.finished(&run).await;
        assert_refused(&run, &reason);
        assert_eq!(status(&run).message.unwrap(), example.message, "{reason:?}");
    })
    .await;
}

/// A reason that refuses has an example, or stands among those that need more than a file.
#[test]
fn no_reason_that_refuses_is_missing() {
    let text = std::fs::read_to_string(layout().clone.join("docs/refusals.md")).unwrap();
    for (reason, what) in Reason::ALL.iter().filter(|(_, what)| what.trim().starts_with("Accepted=False")) {
        let name = reason.as_str();
        assert!(text.contains(&format!("## {name}\n")) || text.contains(&format!("| `{name}` |")), "{name}: {what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_documented_refusal_is_what_a_run_is_told() {
    let examples = examples();
    assert!(examples.len() >= 15, "{}", examples.len());
    let all: Vec<_> = examples.into_iter().map(|example| tokio::spawn(is_answered_as_documented(example))).collect();
    for answered in join_all(all).await {
        answered.unwrap();
    }
}
