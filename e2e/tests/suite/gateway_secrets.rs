//! Secrets that the gateway adds to requests: hosts are told them, and scripts are not.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::harness::internet::{Host, https, names};
use crate::harness::{Script, Tenant, assert_end, assert_refused, eventually, kubectl, namespace, status, stdout, user};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use paddock_crds::{ClusterSandboxPolicy, Phase, Reason, ScriptRun};
use serde_json::{Value, json};
use sha2::Digest as _;

const TOKEN: &str = "s3cr3t-t0ken-of-the-tenant";

const CLIENT: &str = r"
import base64, hashlib, os, sys, threading, time, urllib.error, urllib.request

def ask(url, **fields):
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=fields), timeout=20).read().decode()
    except urllib.error.HTTPError as error:
        return f'{error.code} {error.reason}'

def told(url):
    lines = ask(url, Authorization='mine').splitlines()
    return next((line for line in lines if line.lower().startswith('authorization')), lines[0])
";

/// Grants a host over HTTPS, with the Secret `api` in each request.
fn grant(host: &Host, name: &str) -> Value {
    let header = json!({ "name": "Authorization", "prefix": "Bearer ", "secretKeyRef": { "name": "api", "key": "token" } });
    let grant = json!({ "hosts": [name], "protocol": "HTTPS", "caBundle": STANDARD.encode(&host.authority), "headers": [header] });
    json!({ "capabilities": { "network": [grant] }, "limits": { "maxTimeoutSeconds": 120 } })
}

fn asking(tenant: &Tenant, text: &str, host: &str) -> Script {
    let policy = json!({ "kind": "ClusterSandboxPolicy", "name": tenant.name });
    let capabilities = json!({ "network": [format!("http://{host}")] });
    Script::python(&(CLIENT.to_owned() + text)).with(json!({ "policyRef": policy, "capabilities": capabilities, "timeoutSeconds": 60 }))
}

async fn secret(tenant: &Tenant, token: &str) {
    let api: Api<Secret> = Api::namespaced(tenant.client.clone(), &tenant.name);
    // As `echo` makes it.
    let secret =
        json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "api" }, "stringData": { "token": format!("{token}\n") } });
    api.patch("api", &PatchParams::apply("e2e").force(), &Patch::Apply(&secret)).await.unwrap();
}

async fn granting<T>(test: &str, address: Ipv4Addr, body: impl FnOnce(Tenant, Host, String) -> T + Send + 'static)
where
    T: Future<Output = ()> + Send + 'static,
{
    let name = format!("{test}.example.com");
    let host = https(&name, address);
    names(&[(&name, address)]);
    namespace(test, json!({}), |tenant| async move {
        tenant.cluster_policy(grant(&host, &name)).await;
        tenant.let_the_operator_read("secrets", "paddock-secret-reader").await;
        secret(&tenant, TOKEN).await;
        body(tenant.clone(), host, name).await;
        tenant.no_cluster_policy().await;
    })
    .await;
}

/// Asks as somebody who may create runs and read no Secret.
async fn run_as(client: &Client, tenant: &Tenant, script: Script) -> ScriptRun {
    let api: Api<ScriptRun> = Api::namespaced(client.clone(), &tenant.name);
    let run = ScriptRun::new("asked", serde_json::from_value(script.0).unwrap());
    let run = eventually("they may create runs", || async { api.create(&PostParams::default(), &run).await }).await;
    tenant.finished(&run).await
}

#[tokio::test]
async fn a_script_has_a_host_told_a_secret_that_it_does_not_hold() {
    granting("gateway-secret", Ipv4Addr::new(93, 184, 215, 40), |tenant, _host, name| async move {
        let jane = tenant.bind("gateway-secret-jane", "paddock-edit").await;
        let cannot = ["auth", "can-i", "get", "secrets/api", "--namespace", &tenant.name, "--as", "gateway-secret-jane"];
        assert!(kubectl(&cannot, "").is_err());
        let script = format!(
            r"
print('x=' + told('http://{name}/head').split(' ', 2)[2])
print(hashlib.sha256(told('http://{name}/head').split(' ', 2)[2].encode()).hexdigest())
held = repr(dict(os.environ)) + open('/proc/self/cmdline').read() + sys.stdin.read()
for folder, _, files in os.walk('/paddock'):
    for file in files:
        held += open(os.path.join(folder, file), errors='replace').read()
print('s3cr3t-' + 't0ken' in held)
print(told('http://{name}:443/head'), told('http://other.example.com/'))
"
        );
        let run = run_as(&jane, &tenant, asking(&tenant, &script, &name)).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        let out = stdout(&run);
        let lines: Vec<&str> = out.lines().collect();
        // The host has repeated in the body what it was told: that can be seen by the script, and is covered in the result.
        // Not by a detector, which finds what stands behind `Bearer`.
        assert!(lines[0] == "x=[masked:secret:api]" && !out.contains(TOKEN), "{out}");
        let hash: String = sha2::Sha256::digest(TOKEN).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(lines[1..3], [hash.as_str(), "False"], "{out}");
        assert_eq!(lines[3], "403 NotGranted 403 NotGranted", "{out}");
        let told = serde_json::to_string(&run).unwrap();
        assert!(!told.contains(TOKEN) && !told.contains(&STANDARD.encode(TOKEN)), "{told}");
        let decided: Vec<_> = status(&run).decisions.iter().map(|decision| format!("{} {}", decision.permission, decision.rule)).collect();
        let policy = format!("ClusterSandboxPolicy/{}: capabilities.network", tenant.name);
        for expected in
            [format!("network:http://{name}:80 {policy}[{name}]"), format!("gateway-secret:api/token {policy}.headers[authorization]")]
        {
            assert!(decided.contains(&expected), "{decided:?}");
        }
        // No copy of it is made.
        let copies: Api<Secret> = Api::namespaced(tenant.client.clone(), &tenant.sandbox());
        let copies = copies.list(&ListParams::default()).await.unwrap().items;
        assert!(copies.iter().all(|copy| !copy.data.iter().flatten().any(|(_, value)| value.0.starts_with(TOKEN.as_bytes()))));
    })
    .await;
}

/// What the Secret holds counts within seconds, and one that is gone is no reason to ask without it.
#[tokio::test]
async fn another_value_counts_within_seconds_and_none_stops_the_requests() {
    granting("gateway-rotated", Ipv4Addr::new(93, 184, 215, 41), |tenant, host, name| async move {
        let script = format!(
            r"
first = told('http://{name}/head')
threading.Thread(target=ask, args=['http://{name}/slow'], daemon=True).start()
while told('http://{name}/head') == first:
    time.sleep(0.1)
print('another', flush=True)
second = told('http://{name}/head')
while told('http://{name}/head') == second:
    time.sleep(0.1)
print(told('http://{name}/head'))
print('a=' + first.split(' ', 2)[2], 'b=' + second.split(' ', 2)[2])
os._exit(0)
"
        );
        let run = tenant.create(asking(&tenant, &script, &name)).await;
        eventually("the script goes on", || async { if host.slow() == 1 { Ok(()) } else { Err(host.slow()) } }).await;
        let begin = Instant::now();
        secret(&tenant, "another-t0ken").await;
        let api: Api<Secret> = Api::namespaced(tenant.client.clone(), &tenant.name);
        host.is_told("authorization: Bearer another-t0ken").await;
        let took = begin.elapsed();
        assert_eq!(host.slow(), 1, "what was under way goes on");
        api.delete("api", &DeleteParams::default()).await.unwrap();
        let begin = Instant::now();
        let run = tenant.finished(&run).await;
        eprintln!("another value was sent after {took:?}, and nothing any more after {:?}", begin.elapsed());
        assert!(took < Duration::from_secs(10), "{took:?}");
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        let out = stdout(&run);
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines[..2], ["another", "503 SecretUnusable"], "{out}");
        assert_eq!(lines[2], "a=[masked:secret:api] b=[masked:secret:api]", "{out}");
    })
    .await;
}

/// Nobody has hosts told by a policy what they may not read themselves, and nothing runs without what it would need.
#[tokio::test]
async fn who_wrote_the_policy_must_be_allowed_to_read_the_secret() {
    granting("gateway-author", Ipv4Addr::new(93, 184, 215, 42), |tenant, host, name| async move {
        let ask = || asking(&tenant, &format!("print(told('http://{name}/head'))"), &name);
        let api: Api<Secret> = Api::namespaced(tenant.client.clone(), &tenant.name);
        api.delete("api", &DeleteParams::default()).await.unwrap();
        let refused = tenant.run(ask()).await;
        assert_refused(&refused, &Reason::CapabilityUnusable);
        assert_eq!(status(&refused).message.unwrap(), "there is no Secret api");
        secret(&tenant, TOKEN).await;
        let policy = &tenant.name;
        kubectl(&["create", "clusterrole", policy, "--verb=get,patch", "--resource=clustersandboxpolicies.paddock.dev"], "").unwrap();
        kubectl(&["create", "clusterrolebinding", policy, &format!("--clusterrole={policy}"), "--user=gateway-carl"], "").unwrap();
        let carls: Api<ClusterSandboxPolicy> = Api::all(user("gateway-carl").await);
        let by_carl = json!({ "spec": { "limits": { "maxTimeoutSeconds": 60 } } });
        eventually("he may", || async { carls.patch(policy, &PatchParams::default(), &Patch::Merge(&by_carl)).await }).await;
        let refused = eventually("his policy decides", || async {
            let run = tenant.run(ask()).await;
            if status(&run).phase == Some(Phase::Succeeded) { Err("that of before") } else { Ok(run) }
        })
        .await;
        assert_refused(&refused, &Reason::CapabilityForbidden);
        let told = format!("gateway-carl, who wrote ClusterSandboxPolicy {policy}, may not read the Secret api");
        assert_eq!(status(&refused).message.unwrap(), told);

        // Once he may, hosts are told it, and when he may not any more, while a script runs, they are not.
        let of_tenant = ["--namespace", tenant.name.as_str()];
        kubectl(&[&["create", "role", "carl", "--verb=get", "--resource=secrets", "--resource-name=api"], &of_tenant[..]].concat(), "").unwrap();
        kubectl(&[&["create", "rolebinding", "carl", "--role=carl", "--user=gateway-carl"], &of_tenant[..]].concat(), "").unwrap();
        let can = ["auth", "can-i", "get", "secrets/api", "--namespace", &tenant.name, "--as", "gateway-carl"];
        eventually("he may read it", || async { kubectl(&can, "").map(drop) }).await;
        let script = format!("ask('http://{name}/first')\nwhile not (answer := told('http://{name}/head')).startswith('503'):\n    time.sleep(0.1)\nprint(answer)");
        let run = tenant.create(asking(&tenant, &script, &name)).await;
        host.is_told("GET /first ").await;
        kubectl(&[&["delete", "rolebinding", "carl"], &of_tenant[..]].concat(), "").unwrap();
        let run = tenant.finished(&run).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        assert_eq!(stdout(&run), "503 SecretUnusable\n");
        kubectl(&["delete", "clusterrolebinding,clusterrole", policy], "").unwrap();
    })
    .await;
}

/// Each is a decision, and a status has room for so many.
#[tokio::test]
async fn the_gateway_adds_no_more_than_thirty_two_keys_for_a_run() {
    namespace("gateway-many", json!({}), |tenant| async move {
        let header = |host: usize, number: usize| json!({ "name": format!("X-{number}"), "secretKeyRef": { "name": "api", "key": format!("k{host}-{number}") } });
        let grant = |host: usize| {
            let headers: Vec<Value> = (0..8).map(|number| header(host, number)).collect();
            json!({ "hosts": [format!("{host}.example.com")], "protocol": "HTTPS", "headers": headers })
        };
        let network: Vec<Value> = (0..5).map(grant).collect();
        tenant.cluster_policy(json!({ "capabilities": { "network": network } })).await;
        tenant.let_the_operator_read("secrets", "paddock-secret-reader").await;
        let keys: serde_json::Map<String, Value> =
            (0..5).flat_map(|host| (0..8).map(move |number| (format!("k{host}-{number}"), json!("a value")))).collect();
        let secrets: Api<Secret> = Api::namespaced(tenant.client.clone(), &tenant.name);
        let secret = serde_json::from_value(json!({ "metadata": { "name": "api" }, "stringData": keys })).unwrap();
        secrets.create(&PostParams::default(), &secret).await.unwrap();
        let asking = |hosts: usize| {
            let network: Vec<String> = (0..hosts).map(|host| format!("http://{host}.example.com")).collect();
            let policy = json!({ "kind": "ClusterSandboxPolicy", "name": tenant.name });
            Script::python("print('ran')").with(json!({ "policyRef": policy, "capabilities": { "network": network } }))
        };
        let run = tenant.run(asking(4)).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        let run = tenant.run(asking(5)).await;
        assert_refused(&run, &Reason::CapabilityUnusable);
        assert!(status(&run).message.unwrap().contains("more than 32 keys of Secrets"), "{:?}", run.status);
        tenant.no_cluster_policy().await;
    })
    .await;
}
