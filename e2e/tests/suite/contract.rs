//! What goes into a run and what comes out of it: schemas, masking, large results, and a result that outlives its log.

use std::path::Path;

use crate::harness::{
    OPERATOR_NAMESPACE, Script, admin, assert_end, assert_refused, eventually, kubectl, layout, namespace, operators, status, stderr,
    stdout, tenant,
};
use k8s_openapi::api::core::v1::Pod;
use kube::api::LogParams;
use kube::{Api, ResourceExt as _};
use paddock_crds::{Phase, Reason, ScriptRun};
use serde_json::{Value, json};

fn limited(script: Script) -> Script {
    script.with(json!({ "policyRef": { "kind": "SandboxPolicy", "name": "limited" } }))
}

fn message(run: &ScriptRun) -> String {
    status(run).message.unwrap_or_default()
}

#[tokio::test]
async fn input_that_breaks_its_schema_is_refused_with_every_path() {
    tenant("schema", |tenant| async move {
        let schema = json!({
            "type": "object",
            "properties": { "name": { "type": "string", "pattern": "^[a-z]+$" }, "ages": { "items": { "type": "integer" } } },
            "required": ["name"],
        });
        let with = |input: Value| Script::python("print(1)").with(json!({ "script": { "input": input, "inputSchema": schema } }));
        let good = tenant.run(with(json!({ "name": "jane", "ages": [1, 2] }))).await;
        assert_end(&good, &Phase::Succeeded, &Reason::Succeeded);

        let bad = tenant.run(with(json!({ "name": "Jane-4711", "ages": [1, "x", 2.5] }))).await;
        assert_refused(&bad, &Reason::InputInvalid);
        let mut paths: Vec<String> = status(&bad).violations.into_iter().map(|violation| violation.path).collect();
        paths.sort();
        assert_eq!(paths, ["/ages/1", "/ages/2", "/name"]);
        assert!(!serde_json::to_string(&bad.status).unwrap().contains("4711"), "{:?}", bad.status);

        let without = Script::python("print(1)").with(json!({ "script": { "inputSchema": schema } }));
        assert_refused(&tenant.run(without).await, &Reason::InputInvalid);
        let remote =
            Script::python("print(1)").with(json!({ "script": { "input": 1, "inputSchema": { "$ref": "https://schemas.example/x" } } }));
        assert_refused(&tenant.run(remote).await, &Reason::SchemaInvalid);
    })
    .await;
}

/// Each level asks for the one below twice: thirty of them are a thousand million checks in less than two kilobytes.
fn schema_without_end() -> Value {
    let mut definitions = serde_json::Map::new();
    for level in 0..40 {
        let below = json!({ "$ref": format!("#/$defs/l{}", level + 1) });
        definitions.insert(format!("l{level}"), json!({ "allOf": [below, { "not": { "not": below } }] }));
    }
    definitions.insert("l40".into(), json!({ "type": "integer" }));
    json!({ "$ref": "#/$defs/l0", "$defs": definitions })
}

#[tokio::test]
async fn a_schema_that_never_ends_harms_its_own_run_alone() {
    tenant("endless", |tenant| async move {
        let script = json!({ "script": { "input": 1, "inputSchema": schema_without_end() } });
        let endless = tenant.create(Script::python("print(1)").with(script)).await;
        let deep = json!({ "script": { "input": (0..500).fold(json!(1), |inner, _| json!([inner])), "inputSchema": {} } });
        let name = kubectl(&["-n", &tenant.name, "create", "-o", "name", "-f", "-"], &run_of(&Script::python("print(1)").with(deep)));
        let beside = tenant.run(Script::python("print(1)")).await;
        assert_end(&beside, &Phase::Succeeded, &Reason::Succeeded);
        assert_refused(&tenant.finished(&endless).await, &Reason::SchemaInvalid);
        let deep = name.unwrap();
        let reason = "-o=jsonpath={.status.conditions[?(@.type==\"Accepted\")].reason}";
        eventually("a deep input is refused", || async {
            let told = kubectl(&["-n", &tenant.name, "get", deep.trim(), reason], "").unwrap();
            if told == "InputInvalid" { Ok(()) } else { Err(told) }
        })
        .await;
    })
    .await;
}

fn run_of(script: &Script) -> String {
    json!({ "apiVersion": "paddock.dev/v1alpha1", "kind": "ScriptRun", "metadata": { "generateName": "run-" }, "spec": script.0 })
        .to_string()
}

#[tokio::test]
async fn policies_demand_bound_and_fix_schemas() {
    tenant("demand", |tenant| async move {
        let text = "print('fixed')";
        let hash = {
            let plain = tenant.run(Script::python(text)).await;
            status(&plain).script_hash.unwrap()
        };
        let fixed = json!([{ "scriptHash": hash, "schema": { "type": "integer" } }]);
        tenant.policy_with(json!({ "input": { "requireSchema": true, "maxBytes": 20, "schemas": fixed } })).await;
        let with = |text: &str, script: Value| limited(Script::python(text)).with(json!({ "script": script }));
        assert_refused(&tenant.run(with("print(2)", json!({ "input": 1 }))).await, &Reason::SchemaRequired);
        assert_refused(&tenant.run(with("print(2)", json!({ "input": "x".repeat(30), "inputSchema": {} }))).await, &Reason::InputTooLarge);
        let own = tenant.run(with("print(2)", json!({ "input": "x", "inputSchema": { "type": "string" } }))).await;
        assert_end(&own, &Phase::Succeeded, &Reason::Succeeded);
        assert_end(&tenant.run(with(text, json!({ "input": 1 }))).await, &Phase::Succeeded, &Reason::Succeeded);
        let both = tenant.run(with(text, json!({ "input": "x", "inputSchema": { "type": "string" } }))).await;
        assert_refused(&both, &Reason::InputInvalid);
        tenant.policy_with(json!({ "output": { "mask": { "rules": [{ "name": "bad", "pattern": "(?=x)" }] } } })).await;
        eventually("the policy is known", || async {
            let run = tenant.run(limited(Script::python("print(3)"))).await;
            if message(&run).contains("masking rule bad") { Ok(()) } else { Err(run.status) }
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn what_a_script_puts_out_is_masked_and_counted() {
    tenant("mask", |tenant| async move {
        tenant.policy_with(json!({ "output": { "mask": { "rules": [{ "name": "ticket", "pattern": "TICKET-([0-9]+)" }] } } })).await;
        let text = "import json, os, sys\n\
                    key = 'AKIA' + 'Q3EGRZ2XK7LMN4OP'\n\
                    print('key', key, 'TICKET-4711')\n\
                    print('mail jane' + '@' + 'example.com', file=sys.stderr)\n\
                    value = {'card': 4111111111111111, 'list': ['x ' + key], 'esc': '\\x1b[2J', 'password': 'hunter2', 'n': 1.5}\n\
                    json.dump(value, open(os.environ['PADDOCK_RESULT'], 'w'))\n\
                    raise ValueError('bad ' + key)\n";
        let run = tenant.run(limited(Script::python(text))).await;
        assert_end(&run, &Phase::Failed, &Reason::Failed);
        assert_eq!(stdout(&run), "key [masked:CloudKey] TICKET-[masked:ticket]\n");
        assert!(
            stderr(&run).starts_with("mail [masked:Email]\n") && stderr(&run).contains("ValueError: bad [masked:CloudKey]"),
            "{}",
            stderr(&run)
        );
        let result = status(&run).result.unwrap();
        let expected = json!({
            "card": "[masked:CardNumber]", "list": ["x [masked:CloudKey]"], "esc": "\\x1b[2J", "password": "[masked:Password]", "n": 1.5,
        });
        assert_eq!(result.output, Some(expected));
        let counts: Vec<(String, i64)> = result.redactions.into_iter().map(|redaction| (redaction.rule, redaction.count)).collect();
        let count = |rule: &str, count| (rule.to_owned(), count);
        assert_eq!(counts, [count("CardNumber", 1), count("CloudKey", 3), count("Email", 1), count("Password", 1), count("ticket", 1)]);
        let clocks = status(&run).clocks.unwrap();
        assert!(clocks.started < clocks.first_output && clocks.first_output <= clocks.result_ready, "{clocks:?}");
    })
    .await;
}

#[tokio::test]
async fn a_large_result_is_refused_or_truncated_as_the_policies_have_it() {
    tenant("large", |tenant| async move {
        let text = "import os\nopen(os.environ['PADDOCK_RESULT'], 'w').write('[\"' + 'AKIA' + 'Q3EGRZ2XK7LMN4OP ' + 'x' * 50000 + '\"]')\n";
        let refused = tenant.run(Script::python(text)).await;
        assert_end(&refused, &Phase::Succeeded, &Reason::Succeeded);
        assert_eq!(status(&refused).result.unwrap().output_error.as_deref(), Some("the result has 50025 bytes; at most 32768 are allowed"));
    })
    .await;
    namespace("larger", json!({}), |tenant| async move {
        let text = "import os\nopen(os.environ['PADDOCK_RESULT'], 'w').write('[\"' + 'AKIA' + 'Q3EGRZ2XK7LMN4OP ' + 'x' * 50000 + '\"]')\n";
        tenant.cluster_policy(json!({ "output": { "largeResult": "Truncate", "maxResultBytes": 1000, "maxStreamBytes": 256 } })).await;
        let own = |text: &str| Script::python(text).with(json!({ "policyRef": { "name": tenant.name } }));
        let truncated = eventually("the policy is known", || async {
            let run = tenant.run(own(text)).await;
            status(&run).result.and_then(|result| result.output_text).ok_or(run.status)
        })
        .await;
        assert!(truncated.text.starts_with("[\"[masked:CloudKey] xxxx"), "{}", &truncated.text[..50]);
        assert_eq!((truncated.bytes, truncated.truncated_bytes), (50025, Some(49025)));
        let run = tenant.run(own("print('y' * 5000)")).await;
        let stream = status(&run).result.unwrap().stdout.unwrap();
        assert_eq!((stream.text.len(), stream.tail.unwrap().len(), stream.truncated_bytes), (128, 128, Some(5001 - 256)));
        tenant.no_cluster_policy().await;
    })
    .await;
}

/// Finding all matches of this pattern in a row of `A` takes time in proportion to the square of its length.
#[tokio::test]
async fn a_pattern_that_takes_too_long_costs_its_own_run_the_output() {
    namespace("slow", json!({}), |tenant| async move {
        let mask = json!({ "rules": [{ "name": "slow", "pattern": "(?s)A.*B|A" }] });
        tenant.cluster_policy(json!({ "output": { "largeResult": "Truncate", "maxResultBytes": 1000, "mask": mask } })).await;
        let own = |text: &str| Script::python(text).with(json!({ "policyRef": { "name": tenant.name } }));
        eventually("the policy is known", || async {
            let run = tenant.run(own("print('A, B')")).await;
            if stdout(&run) == "[masked:slow]\n" { Ok(()) } else { Err(run.status) }
        })
        .await;
        let text = "import os\nopen(os.environ['PADDOCK_RESULT'], 'w').write('[\"' + 'A' * 1000000 + '\"]')\nprint('end')\n";
        let slow = tenant.create(own(text)).await;
        let beside = tenant.run(own("print(1)")).await;
        assert_eq!(stdout(&beside), "1\n");
        let slow = tenant.finished(&slow).await;
        assert_end(&slow, &Phase::Succeeded, &Reason::Succeeded);
        let result = status(&slow).result.unwrap();
        let why = "the output is withheld: covering what has to be covered takes more than 2 seconds of CPU, or too much memory";
        assert_eq!((result.exit_code, result.output_error.as_deref(), result.stdout), (Some(0), Some(why), None));
        tenant.no_cluster_policy().await;
    })
    .await;
}

/// Whether any file below `folder` holds one of these.
fn find_in_files(folder: &Path, needles: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else { return found };
    for entry in entries.flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(find_in_files(&path, needles)),
            Ok(kind) if kind.is_file() => {
                let text = std::fs::read(&path).unwrap_or_default();
                found.extend(needles.iter().filter(|needle| holds(&text, needle)).map(|needle| format!("{}: {needle}", path.display())));
            }
            _ => {}
        }
    }
    found
}

fn holds(text: &[u8], needle: &str) -> bool {
    text.windows(needle.len()).any(|window| window == needle.as_bytes())
}

/// Makes its secret at run time, so that it is nowhere before the script puts it out.
#[tokio::test]
async fn a_secret_that_a_script_puts_out_is_stored_nowhere() {
    tenant("planted", |tenant| async move {
        let unique: String = tenant.name.chars().filter(char::is_ascii_digit).collect();
        let unique = format!("{unique:0>10}").replace(['0', '1', '8', '9'], "7");
        let text = format!(
            "import json, os, sys\n\
             key = 'AK' + 'IA' + 'PLANTD' + '{unique}'\n\
             print('out', key)\n\
             print('err', key, file=sys.stderr)\n\
             json.dump({{'key': key, key: 1}}, open(os.environ['PADDOCK_RESULT'], 'w'))\n\
             try: open('/dev/termination-log', 'w').write(key)\n\
             except OSError: pass\n\
             raise RuntimeError(key + ' ' + sys.argv[1])\n"
        );
        let argument = format!("AKIAARGMNT{unique}");
        let run = tenant.run(Script::python(&text).with(json!({ "script": { "args": [argument] } }))).await;
        assert_end(&run, &Phase::Failed, &Reason::Failed);
        assert!(stderr(&run).contains("RuntimeError: [masked:CloudKey] [masked:CloudKey]"), "{}", stderr(&run));
        let printed = format!("AKIAPLANTD{unique}");

        let mut told = vec![("status", serde_json::to_string(&run.status).unwrap())];
        told.push(("pods", kubectl(&["-n", &tenant.sandbox(), "get", "pods", "-o", "yaml"], "").unwrap()));
        told.push(("events", kubectl(&["get", "events", "-A", "-o", "yaml"], "").unwrap()));
        let operator = operators(&tenant.client).await.remove(0).name_any();
        let pods: Api<Pod> = Api::namespaced(tenant.client.clone(), OPERATOR_NAMESPACE);
        told.push(("the operator's log", pods.logs(&operator, &LogParams::default()).await.unwrap()));
        let metrics = format!("/api/v1/namespaces/{OPERATOR_NAMESPACE}/pods/{operator}:8080/proxy/metrics");
        told.push(("metrics", kubectl(&["get", "--raw", &metrics], "").unwrap()));
        for (what, text) in &told {
            assert!(!text.is_empty() && !text.contains(&printed) && !text.contains(&argument), "{what} holds a secret");
        }
        // The argument is in the spec, which its author wrote; what was printed is in no file of the node, of the control plane or of etcd.
        let state = layout().state;
        assert_eq!(find_in_files(&layout().state.join("pod-logs"), &[printed.clone(), argument.clone()]), Vec::<String>::new());
        assert_eq!(find_in_files(&state, &[printed]), Vec::<String>::new());
        // What is looked for would be found.
        assert!(!find_in_files(&state, &[argument]).is_empty());
    })
    .await;
}

#[tokio::test]
async fn the_sealing_key_is_nobody_elses_to_read() {
    let admin = admin().await;
    let secrets: Api<k8s_openapi::api::core::v1::Secret> = Api::namespaced(admin, OPERATOR_NAMESPACE);
    let secret = secrets.get("paddock-sealing-key").await.unwrap();
    assert_eq!(secret.immutable, Some(true));
    assert_eq!(secret.data.unwrap()["key"].0.len(), 32);
    for (account, allowed) in [("paddock-operator", "yes"), ("default", "no")] {
        let account = format!("system:serviceaccount:{OPERATOR_NAMESPACE}:{account}");
        let answer = kubectl(&["auth", "can-i", "get", "secret/paddock-sealing-key", "-n", OPERATOR_NAMESPACE, "--as", &account], "");
        let answer = answer.unwrap_or_else(|error| error.to_string());
        assert!(answer.contains(allowed), "{account}: {answer}");
    }
}
