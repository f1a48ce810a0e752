//! Networks, as granted: through the gateway to what policies name, and nowhere else. Public hosts are in the cluster's own network.

#![allow(clippy::unwrap_used)]

mod harness;

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use harness::internet::{Host, https, names};
use harness::{Script, Tenant, assert_end, assert_refused, eventually, namespace, status, stdout};
use paddock_crds::{Phase, Reason, ScriptRun};
use serde_json::{Value, json};

/// Global unicast by IANA's registries, and here on an interface of the cluster.
const PUBLIC: Ipv4Addr = Ipv4Addr::new(93, 184, 215, 14);
/// Another, so that tests do not meet.
const LIVE: Ipv4Addr = Ipv4Addr::new(93, 184, 215, 15);
/// The API server's.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 214, 0, 1);

fn grants(network: &Value) -> Value {
    json!({ "capabilities": { "network": network } })
}

fn asking(tenant: &Tenant, text: &str, network: &[&str], input: &Value) -> Script {
    by_policy(tenant, Script::python(text))
        .with(json!({ "capabilities": { "network": network }, "script": { "input": input }, "timeoutSeconds": 30 }))
}

fn by_policy(tenant: &Tenant, script: Script) -> Script {
    script.with(json!({ "policyRef": { "kind": "ClusterSandboxPolicy", "name": tenant.name } }))
}

/// A namespace whose ClusterSandboxPolicy grants `*.example.com`.
async fn granting<T>(test: &str, body: impl FnOnce(Tenant) -> T + Send + 'static)
where
    T: Future<Output = ()> + Send + 'static,
{
    namespace(test, json!({}), |tenant| async move {
        tenant.cluster_policy(grants(&json!([{ "hosts": ["*.example.com"] }]))).await;
        body(tenant.clone()).await;
        tenant.no_cluster_policy().await;
    })
    .await;
}

const CLIENT: &str = r#"
import json, os, socket, ssl, sys, urllib.error, urllib.request
context = ssl.create_default_context(cadata=json.load(sys.stdin)["authority"])

def get(url):
    try:
        return urllib.request.urlopen(url, context=context, timeout=20).read().decode()
    except OSError as error:
        return str(error)

def connect(*to):
    try:
        socket.create_connection(to, timeout=2)
        return "connected"
    except OSError:
        return "not connected"
"#;

#[tokio::test]
async fn a_script_reaches_what_it_was_granted_and_nothing_else() {
    let host = https("api.example.com", PUBLIC);
    names(&[("api.example.com", PUBLIC), ("other.example.com", PUBLIC), ("inside.example.com", SERVICE)]);
    granting("egress", |tenant| async move {
        let input = json!({ "authority": host.authority });
        let script = r#"
print(get("https://api.example.com/"))
print(get("https://other.example.com/"))
print(get("https://inside.example.com/"))
print(connect("93.184.215.14", 443), connect("10.214.0.1", 443), connect("10.215.0.1", 53))
try:
    print(socket.getaddrinfo("api.example.com", 443))
except OSError:
    print("no names")
print(sorted(name for name in os.environ if "PROXY" in name.upper()))
"#;
        let run = tenant.create(asking(&tenant, &(CLIENT.to_owned() + script), &["api.example.com", "inside.example.com"], &input)).await;
        let run = tenant.finished(&run).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        let told = stdout(&run);
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(lines[0], "hello", "{told}");
        assert!(lines[1].contains("403") && lines[2].contains("403"), "{told}");
        assert_eq!(lines[3..5], ["not connected not connected not connected", "no names"], "{told}");
        assert!(lines[5].contains("HTTPS_PROXY") && lines[5].contains("NODE_USE_ENV_PROXY"), "{told}");
        let granted: Vec<String> = status(&run).decisions.iter().map(|decision| decision.permission.clone()).collect();
        assert!(granted.contains(&"network:api.example.com:443".to_owned()), "{granted:?}");

        // What is not granted is refused before anything runs.
        let refused = tenant.run(asking(&tenant, "pass", &["api.example.org"], &input)).await;
        assert_refused(&refused, &Reason::CapabilityRefused);
        // Who asks for nothing has no interface, and no proxy.
        let script = "import os; print([name for name in os.environ if 'PROXY' in name.upper()])";
        let bare = tenant.run(by_policy(&tenant, Script::python(script))).await;
        assert_eq!(stdout(&bare), "[]\n");
    })
    .await;
}

/// How long it takes from a change until the host has lost the connection of the script, which goes on by itself.
async fn cut_after(tenant: &Tenant, host: &Host, change: impl AsyncFnOnce(&Tenant, &ScriptRun)) -> Duration {
    let script = r#"
answer = urllib.request.urlopen("https://live.example.com/slow", context=context, timeout=20)
try:
    while answer.readline():
        pass
except OSError:
    pass
print("cut", get("https://live.example.com/"), flush=True)
"#;
    let run =
        tenant.create(asking(tenant, &(CLIENT.to_owned() + script), &["live.example.com"], &json!({ "authority": host.authority }))).await;
    eventually("the host answers", || async { if host.slow() == 1 { Ok(()) } else { Err(status(&tenant.get(&run).await)) } }).await;
    let begin = Instant::now();
    change(tenant, &run).await;
    eventually("the connection is cut", || async { if host.slow() == 0 { Ok(()) } else { Err("it goes on") } }).await;
    let took = begin.elapsed();
    let run = tenant.finished(&run).await;
    // A script that was not ended asks again, and is refused.
    assert!(status(&run).phase != Some(Phase::Succeeded) || stdout(&run).contains("403"), "{}", stdout(&run));
    took
}

/// What the issue of live tunnels allows, and 50 ms by which this test looks.
const CUT: Duration = Duration::from_millis(550);

#[tokio::test]
async fn what_is_not_granted_any_more_is_cut() {
    let host = https("live.example.com", LIVE);
    names(&[("live.example.com", LIVE)]);
    granting("cut", |tenant| async move {
        let none = cut_after(&tenant, &host, async |tenant, _| tenant.cluster_policy(grants(&json!([]))).await).await;
        tenant.cluster_policy(grants(&json!([{ "hosts": ["*.example.com"] }]))).await;
        let denied = cut_after(&tenant, &host, async |tenant, _| {
            let mut rules = grants(&json!([{ "hosts": ["*.example.com"] }]));
            rules["deny"] = json!({ "hosts": ["live.example.com"] });
            tenant.cluster_policy(rules).await;
        })
        .await;
        tenant.cluster_policy(grants(&json!([{ "hosts": ["*.example.com"] }]))).await;
        let killed = cut_after(&tenant, &host, async |tenant, _| {
            let mut rules = grants(&json!([{ "hosts": ["*.example.com"] }]));
            rules["suspend"] = json!("Kill");
            tenant.cluster_policy(rules).await;
        })
        .await;
        tenant.cluster_policy(grants(&json!([{ "hosts": ["*.example.com"] }]))).await;
        let cancelled =
            cut_after(&tenant, &host, async |tenant, run| _ = tenant.patch(run, json!({ "spec": { "cancel": true } })).await).await;
        eprintln!("cut after {none:?} (nothing granted), {denied:?} (denied), {killed:?} (killed), {cancelled:?} (cancelled)");
        assert!([none, denied, killed, cancelled].iter().all(|took| *took < CUT), "{none:?} {denied:?} {killed:?} {cancelled:?}");
    })
    .await;
}
