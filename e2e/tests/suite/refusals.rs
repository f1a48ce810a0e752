//! The examples of docs/refusals.md: each is created, and has to be answered as it says there.

use std::process::Command;

use crate::harness::{Tenant, assert_refused, kubeconfig, kubectl, layout, namespace, status, tenant};
use futures::future::join_all;
use paddock_crds::{Reason, ScriptRun};
use paddock_e2e::cluster::component;

/// The first command of those that need a namespace which the baseline does not select.
const OWN_NAMESPACE: &str = "kubectl create namespace refusals\n";

struct Example {
    reason: String,
    steps: Vec<Step>,
    message: String,
}

/// What its reader does, in this order.
enum Step {
    Apply(String),
    Type(String),
}

/// Sections with blocks of YAML and of commands, and one of text.
fn examples() -> Vec<Example> {
    let text = std::fs::read_to_string(layout().clone.join("docs/refusals.md")).unwrap();
    text.split("\n## ").filter_map(example).collect()
}

fn example(section: &str) -> Option<Example> {
    let (reason, mut rest) = section.split_once('\n')?;
    let mut steps = Vec::new();
    while let Some((_, fenced)) = rest.split_once("```") {
        let (kind, fenced) = fenced.split_once('\n').unwrap();
        let (block, after) = fenced.split_once("```").unwrap();
        rest = after;
        match kind {
            "yaml" => steps.push(Step::Apply(block.to_owned())),
            "sh" => steps.push(Step::Type(block.to_owned())),
            "text" => return Some(Example { reason: reason.to_owned(), steps, message: block.trim_end().to_owned() }),
            other => panic!("{reason}: a block of {other}"),
        }
    }
    None
}

impl Example {
    fn has_own_namespace(&self) -> bool {
        let is_made = matches!(self.steps.first(), Some(Step::Type(commands)) if commands.starts_with(OWN_NAMESPACE));
        let is_named = |step: &Step| matches!(step, Step::Apply(block) | Step::Type(block) if block.contains("refusals"));
        assert!(is_made || !self.steps.iter().any(is_named), "{}: it names a namespace that its reader does not have", self.reason);
        is_made
    }

    /// The harness has made the namespace, under a name of its own.
    async fn follow(&self, tenant: &Tenant) {
        for step in &self.steps {
            match step {
                Step::Apply(objects) => {
                    // A policy first: a run is decided on as soon as it is there.
                    for object in objects.replace("refusals", &tenant.name).split("---\n") {
                        kubectl(&["apply", "--namespace", &tenant.name, "--filename", "-"], object).unwrap();
                        if object.contains("kind: SandboxPolicy\nmetadata: {name: example}") {
                            tenant.policy_is_seen("example").await;
                        }
                    }
                }
                Step::Type(commands) => type_into_a_shell(&commands.replace(OWN_NAMESPACE, "").replace("refusals", &tenant.name), tenant),
            }
        }
    }
}

/// In an empty folder, with a context that names the namespace.
fn type_into_a_shell(commands: &str, tenant: &Tenant) {
    let folder = std::env::temp_dir().join(format!("paddock-{}", tenant.name));
    std::fs::create_dir_all(&folder).unwrap();
    let config = folder.join(".kubeconfig");
    std::fs::copy(kubeconfig(), &config).unwrap();
    let kubectl = component::built(&layout()).unwrap().folder_of("kubectl").unwrap();
    let path = format!("{}:{}", kubectl.display(), std::env::var("PATH").unwrap());
    let script = format!("kubectl config set-context --current --namespace={}\n{commands}", tenant.name);
    let mut shell = Command::new("sh");
    let done = shell.args(["-euc", &script]).current_dir(&folder).env("KUBECONFIG", &config).env("PATH", path).output().unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(done.status.success(), "{commands}{}", String::from_utf8_lossy(&done.stderr));
}

async fn is_answered_as_documented(example: Example) {
    let name = format!("ref-{}", example.reason.to_lowercase());
    let is_in_its_own = example.has_own_namespace();
    let body = |tenant: Tenant| async move {
        let reason: Reason = serde_json::from_value(example.reason.clone().into()).unwrap();
        example.follow(&tenant).await;
        let run: ScriptRun = tenant.runs().get("example").await.unwrap();
        let run = tenant.finished(&run).await;
        assert_refused(&run, &reason);
        assert_eq!(status(&run).message.unwrap(), example.message.replace("refusals", &tenant.name), "{reason:?}");
        kubectl(&["delete", "clustersandboxpolicy", &tenant.name, "--ignore-not-found"], "").unwrap();
        kubectl(&["delete", "namespace", &tenant.sandbox(), "--ignore-not-found", "--wait=false"], "").unwrap();
    };
    if is_in_its_own {
        namespace(&name, serde_json::json!({}), body).await;
    } else {
        tenant(&name, body).await;
    }
}

/// A reason that refuses has an example, or stands in the table of those that no tenant can bring about.
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
    assert!(examples.len() >= 23, "{}", examples.len());
    let all: Vec<_> = examples.into_iter().map(|example| tokio::spawn(is_answered_as_documented(example))).collect();
    for answered in join_all(all).await {
        answered.unwrap();
    }
}
