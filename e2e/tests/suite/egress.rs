//! Networks, as granted: through the gateway to what policies name, and nowhere else. Public hosts are in the cluster's own network.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use crate::harness::disturb::{begin, begin_what_has_ended, end, kill_operator, leader, process_of, upgrade};
use crate::harness::internet::{COMMIT, Host, echo, http, https, names};
use crate::harness::{OPERATOR_NAMESPACE, Script, Tenant, assert_end, assert_refused, eventually, layout, namespace, status, stdout};
use k8s_openapi::api::core::v1::{Event, Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Api;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use nix::sys::signal::{Signal, kill};
use paddock_crds::{Phase, Reason, ScriptRun, ScriptRunStatus};
use paddock_e2e::cluster::{component, images};
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};

/// Global unicast by IANA's registries, and here on an interface of the cluster.
const PUBLIC: Ipv4Addr = Ipv4Addr::new(93, 184, 215, 14);
/// Another, so that tests do not meet.
const LIVE: Ipv4Addr = Ipv4Addr::new(93, 184, 215, 15);
const NODE: Ipv4Addr = Ipv4Addr::new(93, 184, 215, 16);
const CLIENTS: Ipv4Addr = Ipv4Addr::new(93, 184, 215, 19);
const PLAIN: Ipv4Addr = Ipv4Addr::new(93, 184, 215, 20);
const SPENT: Ipv4Addr = Ipv4Addr::new(93, 184, 215, 21);
const REPLICA: Ipv4Addr = Ipv4Addr::new(93, 184, 215, 17);
const LEADER: Ipv4Addr = Ipv4Addr::new(93, 184, 215, 18);
const PUBLIC_6: Ipv6Addr = Ipv6Addr::new(0x2600, 0x9000, 0x5300, 0, 0, 0, 0, 0x14);
/// The API server's in the other family.
const SERVICE_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x214, 0, 0, 0, 0, 1);
/// Nobody's in the cluster.
const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 5);
/// The API server's.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 214, 0, 1);

fn grants(network: &Value) -> Value {
    json!({ "capabilities": { "network": network }, "limits": { "maxTimeoutSeconds": 120 } })
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

/// Tests stop what the others need.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

async fn alone() -> MutexGuard<'static, ()> {
    let guard = ONE_AT_A_TIME.lock().await;
    // What a test before this one may have left when it failed.
    begin_what_has_ended().await;
    guard
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
    let _alone = alone().await;
    let host = https("api.example.com", PUBLIC);
    names(&[("api.example.com", PUBLIC), ("other.example.com", PUBLIC), ("inside.example.com", SERVICE)]);
    granting("egress", |tenant| async move {
        let input = json!({ "authority": host.authority });
        let script = r#"
print(get("https://api.example.com/"))
print(get("https://other.example.com/"))
print(get("https://inside.example.com/"))
print(get("http://api.example.com/"))
print(connect("93.184.215.14", 443), connect("10.214.0.1", 443), connect("10.215.0.1", 10250))
for family, protocol in (socket.AF_INET, socket.IPPROTO_ICMP), (socket.AF_INET6, socket.IPPROTO_ICMPV6):
    try:
        socket.socket(family, socket.SOCK_DGRAM, protocol)
        print("an echo")
    except PermissionError:
        print("no echo")
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
        assert!(lines[3].contains("403"), "{told}");
        assert_eq!(lines[4..8], ["not connected not connected not connected", "no echo", "no echo", "no names"], "{told}");
        assert!(lines[8].contains("HTTPS_PROXY") && lines[8].contains("NODE_USE_ENV_PROXY"), "{told}");
        let granted: Vec<String> = status(&run).decisions.iter().map(|decision| decision.permission.clone()).collect();
        assert!(granted.contains(&"network:api.example.com:443".to_owned()), "{granted:?}");
        let used = status(&run).network.unwrap();
        let refusals: Vec<_> = used.refusals.iter().map(|refusal| (refusal.to.as_str(), refusal.reason.as_str(), refusal.count)).collect();
        let expected = [
            ("other.example.com:443", "NotGranted", 1),
            ("inside.example.com:443", "AddressRefused", 1),
            ("http://api.example.com:80", "NotGranted", 1),
        ];
        assert_eq!(refusals, expected);
        assert!((used.connections, used.refused) == (4, 3) && used.sent_bytes > 100 && used.received_bytes > 100, "{used:?}");
        assert_eq!(status(&run).risk.unwrap().to_string(), "10 Low: ReachesNetwork 10");

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

/// Plain HTTP is a grant of its own. What the host gets is what the script has asked it for, and nothing that the gateway is told.
/// The gateway goes out over whichever family a name leads to.
#[tokio::test]
async fn a_host_that_has_ipv6_alone_is_reached_too() {
    let _alone = alone().await;
    let host = https("six.example.com", PUBLIC_6);
    names(&[("six.example.com", PUBLIC_6), ("six-inside.example.com", SERVICE_6)]);
    granting("six", |tenant| async move {
        let script = CLIENT.to_owned()
            + r#"
print(get("https://six.example.com/"))
print(get("https://six-inside.example.com/"))
"#;
        let network = ["six.example.com", "six-inside.example.com"];
        let run = tenant.run(asking(&tenant, &script, &network, &json!({ "authority": host.authority }))).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        let told = stdout(&run);
        assert!(told.starts_with("hello\n") && told.contains("403"), "{told}");
        let used = status(&run).network.unwrap();
        let refusals: Vec<_> = used.refusals.iter().map(|refusal| (refusal.to.as_str(), refusal.reason.as_str(), refusal.count)).collect();
        assert_eq!(refusals, [("six-inside.example.com:443", "AddressRefused", 1)]);
    })
    .await;
}

#[tokio::test]
async fn a_host_over_plain_http_is_reached_where_a_policy_says_so() {
    const SCRIPT: &str = r#"
print(get("http://plain.example.com/head"))
print(get("https://plain.example.com/"))
print(get("http://plain.example.com:8080/"))
print(get("http://other.example.com/"))
"#;
    let _alone = alone().await;
    http(PLAIN);
    names(&[("plain.example.com", PLAIN), ("other.example.com", PLAIN)]);
    namespace("plain", json!({}), |tenant| async move {
        tenant.cluster_policy(grants(&json!([{ "hosts": ["plain.example.com"], "protocol": "HTTP" }]))).await;
        let text = CLIENT.replace("ssl.create_default_context(cadata=json.load(sys.stdin)[\"authority\"])", "None") + SCRIPT;
        let run = tenant.run(asking(&tenant, &text, &["http://plain.example.com"], &json!({}))).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        // What makes no line is made visible.
        let told = stdout(&run).replace("\\x0d", "");
        let (head, rest) = told.split_once("\n\n").unwrap();
        let mut lines: Vec<&str> = head.lines().collect();
        lines.sort_unstable();
        assert_eq!(
            lines.iter().filter(|line| line.contains("plain.example.com")).collect::<Vec<_>>(),
            [&"host: plain.example.com"],
            "{told}"
        );
        assert!(lines.contains(&"GET /head HTTP/1.1") && !head.to_lowercase().contains("proxy") && !head.contains("Bearer"), "{told}");
        assert_eq!(rest.matches("403").count(), 3, "{told}");
        let used = status(&run).network.unwrap();
        assert!((used.connections, used.refused) == (4, 3) && used.received_bytes > 100, "{used:?}");
        let over_tls = tenant.run(asking(&tenant, "pass", &["plain.example.com"], &json!({}))).await;
        assert_refused(&over_tls, &Reason::CapabilityRefused);
        tenant.no_cluster_policy().await;
    })
    .await;
}

#[tokio::test]
async fn a_script_that_is_refused_too_often_is_ended() {
    let _alone = alone().await;
    names(&[("api.example.com", PUBLIC)]);
    namespace("refused", json!({}), |tenant| async move {
        let mut rules = grants(&json!([{ "hosts": ["*.example.com"] }]));
        rules["limits"]["maxRefusedConnections"] = json!(3);
        tenant.cluster_policy(rules).await;
        let script = r#"
import time
for number in range(4):
    print(get(f"https://{number}.example.org/"), flush=True)
time.sleep(60)
"#;
        let input = json!({ "authority": "" });
        let text = CLIENT.replace("ssl.create_default_context(cadata=json.load(sys.stdin)[\"authority\"])", "None") + script;
        let run = tenant.create(asking(&tenant, &text, &["api.example.com"], &input)).await;
        let run = tenant.finished(&run).await;
        assert_end(&run, &Phase::Killed, &Reason::TooManyRefusedConnections);
        let used = status(&run).network.unwrap();
        assert_eq!((used.connections, used.refused, used.refusals.len()), (4, 4, 4), "{used:?}");
        let took = |status: &ScriptRunStatus| {
            let clocks = status.clocks.clone().unwrap();
            clocks.finished.unwrap().0.as_second() - clocks.started.unwrap().0.as_second()
        };
        assert!(took(&status(&run)) < 20, "{:?}", status(&run).clocks);
        tenant.no_cluster_policy().await;
    })
    .await;
}

/// The first connection may carry all that there is to be carried, and no other is opened.
#[tokio::test]
async fn a_run_that_has_used_up_its_bytes_is_cut_and_told_of() {
    let _alone = alone().await;
    let host = https("spent.example.com", SPENT);
    names(&[("spent.example.com", SPENT)]);
    namespace("spent", json!({}), |tenant| async move {
        let mut rules = grants(&json!([{ "hosts": ["*.example.com"] }]));
        rules["limits"]["maxNetworkBytes"] = json!(20_000);
        tenant.cluster_policy(rules).await;
        let script = r#"
def spend():
    try:
        answer = urllib.request.urlopen("https://spent.example.com/slow", context=context, timeout=20)
        return "cut" if len(answer.read()) < 20_000 else "too much"
    except OSError as error:
        return str(error)
# Each replica counts for itself.
told = [spend() for _ in range(2)]
while "429" not in (answer := get("https://spent.example.com/slow")):
    pass
print(told[0], answer)
"#;
        let text = CLIENT.to_owned() + script;
        let run = asking(&tenant, &text, &["spent.example.com"], &json!({ "authority": host.authority }));
        let run = tenant.run(run.with(json!({ "timeoutSeconds": 60 }))).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        assert!(stdout(&run).contains("429") && !stdout(&run).contains("too much"), "{}", stdout(&run));
        let events: Api<Event> = Api::namespaced(tenant.client.clone(), &tenant.name);
        let told = eventually("the Event is there", || async {
            let events = events.list(&ListParams::default()).await.map_err(|error| error.to_string())?.items;
            let told: Vec<Event> = events.into_iter().filter(|event| event.reason.as_deref() == Some("NetworkBytesSpent")).collect();
            if told.is_empty() { Err("not yet".to_owned()) } else { Ok(told) }
        })
        .await;
        assert_eq!((told.len(), told[0].involved_object.uid.clone()), (1, run.uid()));
        tenant.no_cluster_policy().await;
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
    let _alone = alone().await;
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

/// Node.js looks for a proxy because its environment says so.
#[tokio::test]
async fn node_reaches_it_too() {
    let _alone = alone().await;
    let host = https("node.example.com", NODE);
    http(NODE);
    names(&[("node.example.com", NODE)]);
    granting("node", |tenant| async move {
        tenant
            .cluster_policy(grants(&json!([{ "hosts": ["node.example.com"] }, { "hosts": ["node.example.com"], "protocol": "HTTP" }])))
            .await;
        let script = r#"
import https from "node:https";
import fs from "node:fs";
import tls from "node:tls";
const { authority } = JSON.parse(fs.readFileSync(process.env.PADDOCK_INPUT));
tls.setDefaultCACertificates([authority]);
console.log("fetch", await (await fetch("https://node.example.com/")).text());
console.log("http", await (await fetch("http://node.example.com/")).text());
https.get("https://node.example.com/", (answer) => answer.on("data", (data) => console.log("https", data.toString())));
"#;
        let script = Script::python("").with(json!({ "script": {
            "runtime": "javascript", "source": { "inline": script }, "input": { "authority": host.authority },
        }, "capabilities": { "network": ["node.example.com", "http://node.example.com"] } }));
        let run = tenant.run(by_policy(&tenant, script)).await;
        assert_eq!(stdout(&run), "fetch hello\nhttp hello\nhttps hello\n", "{:#?}", run.status);
    })
    .await;
}

/// What people have in their scripts: none of these was told of a gateway.
#[tokio::test]
async fn curl_git_requests_and_httpx_reach_it_too() {
    const IMAGE: &str = "docker.io/strange/clients:12";
    const PACKAGES: &str = "dash,coreutils,curl,git,python3-minimal,python3-requests,python3-httpx";
    const SCRIPT: &str = r#"
cd /workspace
python3 -c 'import json, os; print(json.load(open(os.environ["PADDOCK_INPUT"]))["authority"])' > authority.pem
at=https://clients.example.com
echo "curl $(curl --silent --show-error --cacert authority.pem $at/)"
echo "git $(GIT_SSL_CAINFO=authority.pem git ls-remote $at/repository)"
python3 -c 'import requests, sys; print("requests", requests.get(sys.argv[1], verify="authority.pem").text)' $at/
python3 -c 'import httpx, sys; print("httpx", httpx.get(sys.argv[1], verify="authority.pem").text)' $at/
curl --silent --show-error --cacert authority.pem https://clients.example.org/
echo "elsewhere $?"
plain=http://clients.example.com
echo "curl $(curl --silent --show-error --data some=thing $plain/)"
echo "git $(git ls-remote $plain/repository)"
python3 -c 'import requests, sys; print("requests", requests.get(sys.argv[1]).text)' $plain/
python3 -c 'import httpx, sys; print("httpx", httpx.get(sys.argv[1]).text)' $plain/
"#;
    let _alone = alone().await;
    let archive = images::build_of_packages(&layout(), IMAGE, PACKAGES).unwrap();
    images::load(&layout(), &component::built(&layout()).unwrap(), &archive).unwrap();
    let host = https("clients.example.com", CLIENTS);
    http(CLIENTS);
    names(&[("clients.example.com", CLIENTS), ("clients.example.org", CLIENTS)]);
    namespace("clients", json!({}), |tenant| async move {
        let mut rules = grants(&json!([{ "hosts": ["*.example.com"] }, { "hosts": ["*.example.com"], "protocol": "HTTP" }]));
        rules["runtimes"] = json!([{ "name": "clients", "image": IMAGE, "command": ["/bin/sh"] }]);
        tenant.cluster_policy(rules).await;
        let script = Script::shell(SCRIPT).with(json!({
            "script": { "runtime": "clients", "input": { "authority": host.authority } },
            "capabilities": { "network": ["clients.example.com", "http://clients.example.com"] }, "timeoutSeconds": 60,
        }));
        let run = tenant.run(by_policy(&tenant, script)).await;
        let all = format!("curl hello\ngit {COMMIT}\trefs/heads/main\nrequests hello\nhttpx hello\n");
        let told = format!("{all}elsewhere 56\n{all}");
        assert_eq!(stdout(&run), told, "{:#?}", run.status);
        assert!(status(&run).result.unwrap().stderr.unwrap().text.contains("403"), "{:#?}", run.status);
        tenant.no_cluster_policy().await;
    })
    .await;
}

/// A net that the policies name is reached whatever is spoken there, also where it is a private one; what is beside it is not.
#[tokio::test]
async fn a_net_that_is_named_is_reached_as_it_is() {
    const SCRIPT: &str = r#"
import os, socket, urllib.parse
proxy = urllib.parse.urlsplit(os.environ["HTTPS_PROXY"])
for to in ["10.77.0.5:5432", "10.77.0.5:5433", "10.77.0.6:5432", "10.77.1.5:5432", "database.example.com:5432"]:
    connection = socket.create_connection((proxy.hostname, proxy.port))
    connection.sendall(f"CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n".encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1)
    told = head.decode().split("\r\n")[0]
    if " 200" in told:
        connection.sendall(b"ping")
        told += " " + connection.recv(4).decode()
    print(to, told)
"#;
    let _alone = alone().await;
    echo(PRIVATE, 5432);
    names(&[("database.example.com", PRIVATE)]);
    namespace("net", json!({}), |tenant| async move {
        tenant.cluster_policy(grants(&json!([{ "cidrs": ["10.77.0.0/24"], "ports": [5432, 5433] }]))).await;
        let run = tenant.run(asking(&tenant, SCRIPT, &["tcp://10.77.0.5:5432"], &json!({}))).await;
        let refused = "HTTP/1.1 403 NotGranted";
        let told = format!(
            "10.77.0.5:5432 HTTP/1.1 200 OK ping\n10.77.0.5:5433 {refused}\n10.77.0.6:5432 {refused}\n10.77.1.5:5432 {refused}\ndatabase.example.com:5432 {refused}\n"
        );
        assert_eq!(stdout(&run), told, "{:#?}", run.status);
        // A net that no policy names is not granted, whoever asks.
        let other = tenant.run(asking(&tenant, SCRIPT, &["tcp://10.77.1.5:5432"], &json!({}))).await;
        assert_refused(&other, &Reason::CapabilityRefused);
        tenant.no_cluster_policy().await;
    })
    .await;
}

/// Where nothing lets a new sandbox through to the gateway, or something lets it through to everywhere, that is seen from inside, and nothing starts.
/// What comes late is waited for.
#[tokio::test]
async fn nothing_starts_while_the_network_policy_is_not_enforced() {
    let _alone = alone().await;
    granting("gate", |tenant| async move {
        let asking = || asking(&tenant, "print('ran')", &["api.example.com"], &json!(1));
        let not_started = |run: &ScriptRun, reason: &Reason| {
            assert_end(run, &Phase::PolicyNotEnforced, reason);
            assert_eq!(status(run).clocks.and_then(|clocks| clocks.started), None);
        };
        assert_end(&tenant.run(asking()).await, &Phase::Succeeded, &Reason::Succeeded);
        let policies: Api<NetworkPolicy> = Api::namespaced(tenant.client.clone(), &tenant.sandbox());
        let open = json!({ "metadata": { "name": "open" }, "spec": { "podSelector": {}, "policyTypes": ["Egress"], "egress": [{}] } });
        policies.create(&PostParams::default(), &serde_json::from_value(open).unwrap()).await.unwrap();
        not_started(&tenant.run(asking()).await, &Reason::NetworkNotConfined);
        policies.delete("open", &DeleteParams::default()).await.unwrap();
        // Over IPv6 alone, as where a controller enforces policies for the other family only.
        let open = json!({
            "metadata": { "name": "open" },
            "spec": { "podSelector": {}, "policyTypes": ["Egress"], "egress": [{ "to": [{ "ipBlock": { "cidr": "fd00::/8" } }] }] },
        });
        policies.create(&PostParams::default(), &serde_json::from_value(open).unwrap()).await.unwrap();
        not_started(&tenant.run(asking()).await, &Reason::NetworkNotConfined);
        policies.delete("open", &DeleteParams::default()).await.unwrap();
        end("kube-router").await;
        // Its rules around the gateway stay, and do not know this sandbox.
        not_started(&tenant.run(asking()).await, &Reason::GatewayUnreachable);
        let late = tenant.create(asking()).await;
        let pod = tenant.pod_of(&late).await;
        eventually("the sandbox runs", || async {
            let pod = tenant.pods().get(&pod.name_any()).await.map_err(|error| error.to_string())?;
            let phase = pod.status.and_then(|status| status.phase).unwrap_or_default();
            if phase == "Running" { Ok(()) } else { Err(phase) }
        })
        .await;
        assert_eq!(status(&tenant.get(&late).await).phase, Some(Phase::Starting));
        begin("kube-router");
        let late = tenant.finished(&late).await;
        assert_end(&late, &Phase::Succeeded, &Reason::Succeeded);
        assert_eq!(stdout(&late), "ran\n");
    })
    .await;
    begin_what_has_ended().await;
}

const TUNNELS: usize = 12;

/// A run that holds so many connections, until the test says that it may end.
async fn holding(tenant: &Tenant, host: &Host, name: &str) -> ScriptRun {
    let script = format!(
        r#"
import threading
def hold():
    try:
        answer = urllib.request.urlopen("https://{name}/slow", context=context, timeout=20)
        while answer.readline():
            pass
    except OSError:
        pass
threads = [threading.Thread(target=hold) for _ in range({TUNNELS})]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(get("https://{name}/"))
"#
    );
    let asking = asking(tenant, &(CLIENT.to_owned() + &script), &[name], &json!({ "authority": host.authority }));
    let run = tenant.create(asking.with(json!({ "timeoutSeconds": 120 }))).await;
    eventually("the host answers", || async { if host.slow() == TUNNELS { Ok(()) } else { Err(host.slow()) } }).await;
    run
}

#[tokio::test]
async fn a_replica_that_dies_takes_only_its_own_tunnels_along() {
    let _alone = alone().await;
    let host = https("replica.example.com", REPLICA);
    names(&[("replica.example.com", REPLICA)]);
    granting("replica", |tenant| async move {
        let api: Api<Pod> = Api::namespaced(tenant.client.clone(), OPERATOR_NAMESPACE);
        let gateways = api.list(&ListParams::default().labels("app.kubernetes.io/component=egress")).await.unwrap().items;
        assert_eq!(gateways.len(), 2);
        let run = holding(&tenant, &host, "replica.example.com").await;
        kill(process_of(&tenant.client, &gateways[0]).await, Signal::SIGKILL).unwrap();
        // Of twelve, all go to the same of two once in two thousand times.
        eventually("its tunnels end", || async { if host.slow() < TUNNELS { Ok(()) } else { Err("none has ended") } }).await;
        let left = host.slow();
        assert!(left > 0, "all have ended");
        // What is granted reaches who was not there, and the others' tunnels go on meanwhile.
        let other = asking(
            &tenant,
            &(CLIENT.to_owned() + "print(get('https://replica.example.com/'))"),
            &["replica.example.com"],
            &json!({ "authority": host.authority }),
        );
        let other = tenant.run(other).await;
        assert_eq!((stdout(&other).as_str(), host.slow()), ("hello\n", left));
        tenant.patch(&run, json!({ "spec": { "cancel": true } })).await;
        tenant.finished(&run).await;
    })
    .await;
}

/// Nobody tells the gateway anything while no operator leads: after 5 s nothing counts, and a new leader tells everything anew.
#[tokio::test]
async fn without_an_operator_nothing_is_granted_after_five_seconds() {
    let _alone = alone().await;
    let host = https("leader.example.com", LEADER);
    names(&[("leader.example.com", LEADER)]);
    granting("leader", |tenant| async move {
        let run = holding(&tenant, &host, "leader.example.com").await;
        kill_operator(&tenant.client).await;
        let begin = Instant::now();
        eventually("the tunnels end", || async { if host.slow() == 0 { Ok(()) } else { Err(host.slow()) } }).await;
        let took = begin.elapsed();
        eprintln!("cut {took:?} after the operator was killed");
        // The last word may have been a second before.
        assert!((Duration::from_secs(3)..Duration::from_secs(8)).contains(&took), "{took:?}");
        let run = tenant.finished(&run).await;
        assert!(stdout(&run).contains("503"), "{}", stdout(&run));
        leader(&tenant.client).await;
        let after = asking(
            &tenant,
            &(CLIENT.to_owned() + "print(get('https://leader.example.com/'))"),
            &["leader.example.com"],
            &json!({ "authority": host.authority }),
        );
        assert_eq!(stdout(&tenant.run(after).await), "hello\n");
    })
    .await;
}

/// Whoever takes a network policy away under running sandboxes finds it back.
#[tokio::test]
async fn a_network_policy_that_is_taken_away_comes_back_while_sandboxes_run() {
    let _alone = alone().await;
    granting("guard", |tenant| async move {
        let run = tenant.create(asking(&tenant, "import time; time.sleep(25)", &["api.example.com"], &json!(1))).await;
        tenant.until(&run, "the script runs", |status| status.phase == Some(Phase::Running)).await;
        let policies: Api<NetworkPolicy> = Api::namespaced(tenant.client.clone(), &tenant.sandbox());
        for name in ["paddock-sandbox", "paddock-egress"] {
            let before = policies.get(name).await.unwrap().spec;
            policies.delete(name, &DeleteParams::default()).await.unwrap();
            let begin = Instant::now();
            let back = eventually("it is back", || async { policies.get(name).await }).await;
            assert_eq!(back.spec, before);
            assert!(begin.elapsed() < Duration::from_secs(12), "{name} after {:?}", begin.elapsed());
        }
        tenant.finished(&run).await;
    })
    .await;
}

/// As on GKE, where the only handler gives every sandbox the network of its pod.
#[tokio::test]
async fn a_sandbox_with_an_interface_and_without_a_grant_reaches_nothing() {
    let _alone = alone().await;
    upgrade(&["sandbox.runtimeClass=gvisor".into(), "sandbox.hasInterface=true".into()]);
    granting("interface", |tenant| async move {
        let gateway: Api<Service> = Api::namespaced(tenant.client.clone(), OPERATOR_NAMESPACE);
        let gateway = gateway.get("paddock-egress").await.unwrap().spec.unwrap().cluster_ip.unwrap();
        let replicas: Api<Pod> = Api::namespaced(tenant.client.clone(), OPERATOR_NAMESPACE);
        let replicas = replicas.list(&ListParams::default().labels("app.kubernetes.io/component=egress")).await.unwrap().items;
        let replica = replicas.into_iter().find_map(|pod| pod.status?.pod_ip).unwrap();
        let script = format!(
            "import os\nprint(connect('{gateway}', 8445), connect('{replica}', 8446), connect('10.214.0.1', 443), connect('10.215.0.1', 10250))\n\
             print([name for name in os.environ if 'PROXY' in name.upper()], 'eth0' in open('/proc/net/dev').read())"
        );
        let client = CLIENT.replace("ssl.create_default_context(cadata=json.load(sys.stdin)[\"authority\"])", "None");
        let run = tenant.run(by_policy(&tenant, Script::python(&(client + &script)))).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        assert_eq!(stdout(&run), "not connected not connected not connected not connected\n[] True\n");
        end("kube-router").await;
        let run = tenant.run(by_policy(&tenant, Script::python("print('ran')"))).await;
        assert_end(&run, &Phase::PolicyNotEnforced, &Reason::GatewayUnreachable);
        begin("kube-router");
    })
    .await;
    upgrade(&["sandbox.runtimeClass=gvisor-nonet".into(), "sandbox.hasInterface=false".into()]);
}

/// A Service could otherwise have the gateway's address, which sandboxes trust to be a port that is listened at, lead elsewhere.
#[tokio::test]
async fn nobody_takes_the_address_of_the_gateway() {
    let _alone = alone().await;
    granting("external", |tenant| async move {
        let services: Api<Service> = Api::namespaced(tenant.bind("external-mallory", "edit").await, &tenant.name);
        let service = |external: Value| -> Service {
            let spec = json!({ "selector": { "app": "evil" }, "ports": [{ "port": 8445 }], "externalIPs": external });
            serde_json::from_value(json!({ "metadata": { "name": "evil" }, "spec": spec })).unwrap()
        };
        let refused = services.create(&PostParams::default(), &service(json!(["10.214.0.48"]))).await.unwrap_err();
        assert!(refused.to_string().contains("could take the place of the egress gateway"), "{refused}");
        services.create(&PostParams::default(), &service(json!([]))).await.unwrap();
        let patch = json!({ "spec": { "externalIPs": ["10.214.0.48"] } });
        assert!(services.patch("evil", &PatchParams::default(), &Patch::Merge(patch)).await.is_err());
    })
    .await;
}
