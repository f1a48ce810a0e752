//! Networks, as granted: through the gateway to what policies name, and nowhere else. Public hosts are in the cluster's own network.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::harness::internet::{COMMIT, echo, http, https, names};
use crate::harness::{Script, Tenant, assert_end, assert_refused, eventually, layout, namespace, status, stdout};
use k8s_openapi::api::core::v1::Event;
use kube::Api;
use kube::ResourceExt as _;
use kube::api::ListParams;
use paddock_crds::{Phase, Reason, ScriptRunStatus};
use paddock_e2e::cluster::{component, images};
use serde_json::{Value, json};

/// Global unicast by IANA's registries, and here on an interface of the cluster.
const PUBLIC: Ipv4Addr = Ipv4Addr::new(93, 184, 215, 14);
/// Another, so that tests do not meet.
const NODE: Ipv4Addr = Ipv4Addr::new(93, 184, 215, 16);
const CLIENTS: Ipv4Addr = Ipv4Addr::new(93, 184, 215, 19);
const PLAIN: Ipv4Addr = Ipv4Addr::new(93, 184, 215, 20);
const SPENT: Ipv4Addr = Ipv4Addr::new(93, 184, 215, 21);
const PUBLIC_6: Ipv6Addr = Ipv6Addr::new(0x2600, 0x9000, 0x5300, 0, 0, 0, 0, 0x14);
/// The API server's in the other family.
const SERVICE_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x214, 0, 0, 0, 0, 1);
/// Nobody's in the cluster.
const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 5);
/// The API server's.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 214, 0, 1);
const METERED: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 7);

pub fn grants(network: &Value) -> Value {
    json!({ "capabilities": { "network": network }, "limits": { "maxTimeoutSeconds": 120 } })
}

pub fn asking(tenant: &Tenant, text: &str, network: &[&str], input: &Value) -> Script {
    by_policy(tenant, Script::python(text))
        .with(json!({ "capabilities": { "network": network }, "script": { "input": input }, "timeoutSeconds": 30 }))
}

pub fn by_policy(tenant: &Tenant, script: Script) -> Script {
    script.with(json!({ "policyRef": { "kind": "ClusterSandboxPolicy", "name": tenant.name } }))
}

/// A namespace whose ClusterSandboxPolicy grants `*.example.com`.
pub async fn granting<T>(test: &str, body: impl FnOnce(Tenant) -> T + Send + 'static)
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

pub const CLIENT: &str = r#"
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

/// The gateway goes out over whichever family a name leads to.
#[tokio::test]
async fn a_host_that_has_ipv6_alone_is_reached_too() {
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

/// Plain HTTP is a grant of its own. What the host gets is what the script has asked it for, and nothing that the gateway is told.
#[tokio::test]
async fn a_host_over_plain_http_is_reached_where_a_policy_says_so() {
    const SCRIPT: &str = r#"
print(get("http://plain.example.com/head"))
print(get("https://plain.example.com/"))
print(get("http://plain.example.com:8080/"))
print(get("http://other.example.com/"))
"#;
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

/// Node.js looks for a proxy because its environment says so.
#[tokio::test]
async fn node_reaches_it_too() {
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

/// A connection through the proxy, and the first line of its answer.
const TUNNEL: &str = r#"
import os, socket, urllib.parse
proxy = urllib.parse.urlsplit(os.environ["HTTPS_PROXY"])

def tunnel(to):
    connection = socket.create_connection((proxy.hostname, proxy.port))
    connection.sendall(f"CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n".encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1)
    return connection, head.decode().split("\r\n")[0]
"#;

/// A net that the policies name is reached whatever is spoken there, also where it is a private one; what is beside it is not.
#[tokio::test]
async fn a_net_that_is_named_is_reached_as_it_is() {
    const SCRIPT: &str = r#"
for to in ["10.77.0.5:5432", "10.77.0.5:5433", "10.77.0.6:5432", "10.77.1.5:5432", "database.example.com:5432"]:
    connection, told = tunnel(to)
    if " 200" in told:
        connection.sendall(b"ping")
        told += " " + connection.recv(4).decode()
    print(to, told)
"#;
    echo(PRIVATE, 5432);
    names(&[("database.example.com", PRIVATE)]);
    namespace("net", json!({}), |tenant| async move {
        tenant.cluster_policy(grants(&json!([{ "cidrs": ["10.77.0.0/24"], "ports": [5432, 5433] }]))).await;
        let run = tenant.run(asking(&tenant, &(TUNNEL.to_owned() + SCRIPT), &["tcp://10.77.0.5:5432"], &json!({}))).await;
        let refused = "HTTP/1.1 403 NotGranted";
        let told = format!(
            "10.77.0.5:5432 HTTP/1.1 200 OK ping\n10.77.0.5:5433 {refused}\n10.77.0.6:5432 {refused}\n10.77.1.5:5432 {refused}\ndatabase.example.com:5432 {refused}\n"
        );
        assert_eq!(stdout(&run), told, "{:#?}", run.status);
        // A net that no policy names is not granted, whoever asks.
        let other = tenant.run(asking(&tenant, &(TUNNEL.to_owned() + SCRIPT), &["tcp://10.77.1.5:5432"], &json!({}))).await;
        assert_refused(&other, &Reason::CapabilityRefused);
        tenant.no_cluster_policy().await;
    })
    .await;
}

/// A second's worth comes at once, and the rest as time passes. Each replica counts for itself; this is one connection.
#[tokio::test]
async fn a_run_carries_no_more_bytes_in_a_second_than_it_may() {
    const SCRIPT: &str = r#"
import threading, time
connection, _ = tunnel("10.77.0.7:5432")
def carry(left):
    begin = time.monotonic()
    threading.Thread(target=connection.sendall, args=[bytes(left)], daemon=True).start()
    while left > 0:
        left -= len(connection.recv(65536))
    return time.monotonic() - begin
print(carry(16 << 10), carry(128 << 10))
"#;
    echo(METERED, 5432);
    namespace("rate", json!({}), |tenant| async move {
        let mut rules = grants(&json!([{ "cidrs": ["10.77.0.0/24"], "ports": [5432] }]));
        rules["limits"]["maxNetworkBytesPerSecond"] = json!(64 << 10);
        tenant.cluster_policy(rules).await;
        let run = tenant.run(asking(&tenant, &(TUNNEL.to_owned() + SCRIPT), &["tcp://10.77.0.7:5432"], &json!({}))).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        let told = stdout(&run);
        let took: Vec<f64> = told.split_whitespace().map(|seconds| seconds.parse().unwrap()).collect();
        // Both directions count: 32 KiB come at once, and of the 256 KiB after them what is left of the first second.
        assert!(took[0] < took[1] && (2.9..20.0).contains(&took[1]), "{told}");
        tenant.no_cluster_policy().await;
    })
    .await;
}
