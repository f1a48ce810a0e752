//! Networks while something of them is taken away, changes or dies.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::harness::disturb::{begin, begin_what_has_ended, end, kill_operator, leader, process_of, upgrade};
use crate::harness::internet::{Host, https, names};
use crate::harness::{OPERATOR_NAMESPACE, Script, Tenant, assert_end, eventually, status, stdout};
use crate::network::{CLIENT, asking, by_policy, granting, grants};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Api;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use nix::sys::signal::{Signal, kill};
use paddock_crds::{Phase, Reason, ScriptRun};
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};

/// One for each test.
const LIVE: Ipv4Addr = Ipv4Addr::new(93, 184, 215, 15);
const REPLICA: Ipv4Addr = Ipv4Addr::new(93, 184, 215, 17);
const LEADER: Ipv4Addr = Ipv4Addr::new(93, 184, 215, 18);

/// Tests stop what the others need.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

async fn alone() -> MutexGuard<'static, ()> {
    let guard = ONE_AT_A_TIME.lock().await;
    // What a test before this one may have left when it failed.
    begin_what_has_ended().await;
    guard
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
