//! What the text of a script shows, and what policies make of it.

use crate::harness::{Script, Tenant, admin, assert_end, assert_refused, eventually, operators, status, stdout, tenant};
use kube::Client;
use paddock_crds::{Phase, Preflight, PreflightVerdict, Reason, ScriptRun, Unclear, Verdict};
use serde_json::{Value, json};

/// Under the policy of the test.
fn examined(text: &str) -> Script {
    Script::python(text).with(json!({ "policyRef": { "kind": "SandboxPolicy", "name": "limited" } }))
}

fn shows(run: &ScriptRun) -> Preflight {
    status(run).preflight.unwrap()
}

async fn set(tenant: &Tenant, rules: Value) {
    tenant.policy_with(rules).await;
    tenant.policy_is_seen("limited").await;
}

/// What a change of its policy makes of a run, as soon as it is seen.
async fn under(tenant: &Tenant, rules: Value, script: impl Fn() -> Script, reason: &Reason) -> ScriptRun {
    set(tenant, rules).await;
    let run = tenant.run(script()).await;
    if *reason == Reason::Succeeded {
        assert_end(&run, &Phase::Succeeded, reason);
    } else {
        assert_refused(&run, reason);
    }
    run
}

#[tokio::test]
async fn what_a_script_shows_is_told_and_follows_to_nothing_by_itself() {
    tenant("shows", |tenant| async move {
        let text = "import json, os\nurl = 'https://api.example.com/v1'\nos.system('')\nprint(json.dumps(1))";
        let run = tenant.run(Script::python(text)).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        assert_eq!(stdout(&run), "1\n");
        let shown = shows(&run);
        assert_eq!(shown.to_string(), "Findings: Subprocess (os.system, line 3)");
        assert_eq!((shown.imports, shown.hosts), (vec!["json".to_owned(), "os".into()], vec!["api.example.com".to_owned()]));
        assert_eq!(status(&run).risk.unwrap().to_string(), "5 Low: StartsPrograms 5");

        let run = tenant.run(Script::python("if True\n  pass")).await;
        assert_end(&run, &Phase::Failed, &Reason::Failed);
        assert_eq!(shows(&run).unclear, Some(Unclear::SyntaxError));
        assert_eq!(shows(&run).message.as_deref(), Some("line 1, column 8: Expected `:`, found newline"));

        // A shell has no language of which anything would be known.
        let run = tenant.run(Script::shell("eval true")).await;
        assert_eq!(status(&run).preflight, None);
    })
    .await;
}

#[tokio::test]
async fn policies_demand_something_of_what_a_script_shows() {
    tenant("demands", |tenant| async move {
        let starts = || examined("import subprocess\nprint(subprocess.run(['echo', 'x'], capture_output=True).stdout)");
        let rules = json!({ "preflight": { "undeclared": "Refuse" } });
        let refused = under(&tenant, rules, starts, &Reason::CapabilityUndeclared).await;
        let decision = status(&refused).decisions.into_iter().find(|decision| decision.permission == "preflight:undeclared").unwrap();
        assert_eq!((decision.verdict, decision.rule.as_str()), (Verdict::Refused, "SandboxPolicy/limited: preflight.undeclared"));
        assert_eq!(shows(&refused).verdict, PreflightVerdict::Findings);

        let lists = || examined("import json, socket");
        under(&tenant, json!({ "preflight": { "imports": ["json"] } }), lists, &Reason::ImportNotAllowed).await;
        under(&tenant, json!({ "preflight": { "imports": ["json", "socket"] } }), lists, &Reason::Succeeded).await;
        let computes = || examined("__import__('js' + 'on')");
        under(&tenant, json!({ "preflight": { "imports": ["json"] } }), computes, &Reason::ImportNotAllowed).await;
        let shell = || Script::shell("true").with(json!({ "policyRef": { "kind": "SandboxPolicy", "name": "limited" } }));
        under(&tenant, json!({ "preflight": { "unclear": "Refuse" } }), shell, &Reason::ScriptUnclear).await;
        let hosts = || examined("u = 'https://api.example.com/'");
        let rule = json!({ "name": "hosts", "expression": "preflight.hosts.all(host, host.endsWith('.example.org'))" });
        under(&tenant, json!({ "rules": [rule] }), hosts, &Reason::RuleNotSatisfied).await;
        assert_end(&tenant.run(examined("u = 'no host'")).await, &Phase::Succeeded, &Reason::Succeeded);
    })
    .await;
}

#[tokio::test]
async fn approvers_are_asked_for_scripts_that_show_something() {
    tenant("looked-at", |tenant| async move {
        let demand = json!({ "name": "look", "when": "preflight.verdict != 'NoFindings'" });
        set(&tenant, json!({ "approvals": [demand] })).await;
        assert_end(&tenant.run(examined("print(1)")).await, &Phase::Succeeded, &Reason::Succeeded);
        let waits = tenant.create(examined("import ctypes")).await;
        let waits = tenant.until(&waits, "it waits", |status| status.phase == Some(Phase::AwaitingApproval)).await;
        assert_eq!(shows(&waits).to_string(), "Findings: NativeCode (ctypes, line 1)");
    })
    .await;
}

#[tokio::test]
async fn a_module_that_is_denied_ends_what_imports_it() {
    tenant("denied-module", |tenant| async move {
        let sleeps = |module: &str| examined(&format!("import {module}, time\nprint('runs', flush=True)\ntime.sleep(20)\nprint('awake')"));
        set(&tenant, json!({})).await;
        let [denied, other] = [tenant.create(sleeps("wave")).await, tenant.create(sleeps("json")).await];
        for run in [&denied, &other] {
            tenant.spoken(run).await;
        }
        set(&tenant, json!({ "deny": { "imports": ["wave"] } })).await;
        let ended = tenant.finished(&denied).await;
        assert_end(&ended, &Phase::Killed, &Reason::Denied);
        assert_eq!(stdout(&ended), "runs\n");
        let refused = tenant.run(sleeps("wave")).await;
        assert_refused(&refused, &Reason::Denied);
        assert_eq!(status(&refused).message.as_deref(), Some("import:wave is denied (SandboxPolicy/limited: deny.imports)"));
        assert_refused(&tenant.run(examined("import wave as")).await, &Reason::Denied);
        let other = tenant.finished(&other).await;
        assert_end(&other, &Phase::Succeeded, &Reason::Succeeded);
    })
    .await;
}

async fn restarts(client: &Client) -> i32 {
    let pods = operators(client).await;
    let of_pod = |pod: &k8s_openapi::api::core::v1::Pod| -> i32 {
        let containers = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
        containers.map(|container| container.restart_count).sum()
    };
    pods.iter().map(of_pod).sum()
}

#[tokio::test]
async fn a_text_that_breaks_its_reader_harms_nobody() {
    tenant("breaks", |tenant| async move {
        let client = admin().await;
        let before = restarts(&client).await;
        set(&tenant, json!({ "preflight": { "unclear": "Refuse" } })).await;
        for text in ["(", "x = [", "- "].map(|part| part.repeat(60_000 / part.len())) {
            let run = tenant.run(examined(&text)).await;
            assert_refused(&run, &Reason::ScriptUnclear);
            assert!(matches!(shows(&run).unclear, Some(Unclear::TooCostly | Unclear::SyntaxError)), "{}", shows(&run));
        }
        let honest = tenant.run(examined("print(1)")).await;
        assert_end(&honest, &Phase::Succeeded, &Reason::Succeeded);
        eventually("the operator is as it was", || async { if restarts(&client).await == before { Ok(()) } else { Err("restarted") } })
            .await;
    })
    .await;
}
