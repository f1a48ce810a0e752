//! What the doctor finds of a cluster, and what becomes of runs by it. While a check fails the runs of everybody are refused: nothing else runs beside.

use std::net::Ipv4Addr;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::harness::disturb::begin_what_has_ended;
use crate::harness::internet::names;
use crate::harness::{OPERATOR_NAMESPACE, Script, Tenant, assert_end, assert_refused, eventually, kubectl, namespace, status, stdout};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use paddock_crds::{Check, CheckVerdict, ConditionStatus, DIAGNOSIS, Diagnosis, DiagnosisReason, Phase, Reason};
use serde_json::json;
use tokio::sync::{Mutex, MutexGuard};

/// The API server's.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 214, 0, 1);
const DOCTORS: &str = "paddock-system-doctor";
const SANDBOXES: &str = "sbx-paddock-system-doctor";

static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

async fn alone() -> MutexGuard<'static, ()> {
    let guard = ONE_AT_A_TIME.lock().await;
    begin_what_has_ended().await;
    // What a test before this one may have left when it failed.
    kubectl(&["delete", "diagnosis", DIAGNOSIS, "--ignore-not-found"], "").unwrap();
    kubectl(&["delete", "networkpolicy", "open", "--namespace", SANDBOXES, "--ignore-not-found"], "").unwrap();
    // As the cluster of whoever installs it has it, and this one has not.
    names(&[("kubernetes.default.svc.cluster.local", SERVICE)]);
    guard
}

/// Has the doctor look, as the CronJob does once a day. What it says, and what is stored of it.
async fn examined(tenant: &Tenant) -> (String, Diagnosis) {
    let name = format!("doctor-{}", SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis());
    kubectl(&["create", "job", &name, "--namespace", OPERATOR_NAMESPACE, "--from=cronjob/paddock-doctor"], "").unwrap();
    let jobs: Api<Job> = Api::namespaced(tenant.client.clone(), OPERATOR_NAMESPACE);
    eventually("the doctor has looked", || async {
        let status = jobs.get(&name).await.map_err(|error| error.to_string())?.status.unwrap_or_default();
        let is_over = status.conditions.iter().flatten().any(|condition| condition.status == "True");
        if is_over { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
    let told = kubectl(&["logs", "--namespace", OPERATOR_NAMESPACE, &format!("job/{name}")], "").unwrap();
    kubectl(&["delete", "job", &name, "--namespace", OPERATOR_NAMESPACE], "").unwrap();
    let api: Api<Diagnosis> = Api::all(tenant.client.clone());
    (told, api.get(DIAGNOSIS).await.unwrap())
}

/// Opens the sandboxes of the doctor with a NetworkPolicy beside Paddock's: these only add up. Their namespace comes with the first run.
async fn open(tenant: &Tenant, egress: serde_json::Value) {
    let namespaces: Api<Namespace> = Api::all(tenant.client.clone());
    if namespaces.get_opt(SANDBOXES).await.unwrap().is_none() {
        let run = json!({
            "apiVersion": "paddock.dev/v1alpha1", "kind": "ScriptRun", "metadata": { "generateName": "first-", "namespace": DOCTORS },
            "spec": {
                "policyRef": { "kind": "ClusterSandboxPolicy", "name": "paddock-doctor" }, "ttlSecondsAfterFinished": 1,
                "script": { "runtime": "shell", "source": { "inline": "true" } },
            },
        });
        kubectl(&["create", "--filename=-"], &run.to_string()).unwrap();
        eventually("the sandbox namespace is there", || async {
            namespaces.get_opt(SANDBOXES).await.map_err(|error| error.to_string())?.map(drop).ok_or_else(|| "not yet".to_owned())
        })
        .await;
    }
    let policies: Api<NetworkPolicy> = Api::namespaced(tenant.client.clone(), SANDBOXES);
    let open = json!({ "metadata": { "name": "open" }, "spec": { "podSelector": {}, "policyTypes": ["Egress"], "egress": [egress] } });
    policies.create(&PostParams::default(), &serde_json::from_value(open).unwrap()).await.unwrap();
}

async fn close(tenant: &Tenant) {
    let policies: Api<NetworkPolicy> = Api::namespaced(tenant.client.clone(), SANDBOXES);
    policies.delete("open", &DeleteParams::default()).await.unwrap();
}

/// As an administrator does who has mended something and does not wait for another look.
async fn forget(tenant: &Tenant) {
    let api: Api<Diagnosis> = Api::all(tenant.client.clone());
    api.delete(DIAGNOSIS, &DeleteParams::default()).await.unwrap();
}

/// The checks that do not hold.
fn not_holding(diagnosis: &Diagnosis) -> Vec<(Check, CheckVerdict)> {
    let checks = diagnosis.status.clone().unwrap().checks.into_iter();
    let all = checks.map(|result| (result.name, result.verdict));
    // The two CPUs of this node may be busy with other things, which can keep the limit from being seen.
    all.filter(|found| found.1 != CheckVerdict::Holds && *found != (Check::CpuLimited, CheckVerdict::NotSeen)).collect()
}

fn networked(tenant: &Tenant) -> Script {
    Script::python("print('ran')").with(json!({
        "policyRef": { "kind": "ClusterSandboxPolicy", "name": tenant.name }, "capabilities": { "network": ["api.example.com"] }
    }))
}

/// A namespace whose ClusterSandboxPolicy grants a host.
async fn granting<T>(test: &str, body: impl FnOnce(Tenant) -> T + Send + 'static)
where
    T: Future<Output = ()> + Send + 'static,
{
    namespace(test, json!({}), |tenant| async move {
        tenant.cluster_policy(json!({ "capabilities": { "network": [{ "hosts": ["*.example.com"] }] } })).await;
        body(tenant.clone()).await;
        tenant.no_cluster_policy().await;
    })
    .await;
}

#[tokio::test]
async fn a_cluster_that_keeps_everything_is_told_of_so() {
    let _alone = alone().await;
    granting("doctor-good", |tenant| async move {
        let (told, diagnosis) = examined(&tenant).await;
        assert_eq!(not_holding(&diagnosis), [], "{told}");
        let status = diagnosis.status.unwrap();
        assert_eq!(status.checks.len(), Check::ALL.len(), "each that there is was looked at: {told}");
        // What a sandbox must not reach answered the doctor: silence alone would say nothing.
        let policy = status.checks.iter().find(|result| result.name == Check::NetworkPolicyIpv4).unwrap();
        assert!(policy.message.contains("tcp://10.214.0.1:443"), "{}", policy.message);
        let message = |check: Check| status.checks.iter().find(|result| result.name == check).unwrap().message.clone();
        // Of IPv6 the runner saw the gateway before the start, and the doctor a kubelet.
        assert!(message(Check::NetworkPolicyIpv6).contains("fd00:10:214::"), "{told}");
        assert!(message(Check::NodeConfined).contains("tcp://10.215.0.1:10250, tcp://[fd00:10:215::1]:10250"), "{told}");
        assert!(message(Check::NetworkedNames).contains("dns://10.215.0.1:53"), "{told}");
        let gateway = status.checks.iter().find(|result| result.name == Check::GatewayRefuses).unwrap();
        assert!(gateway.message.contains("169.254.169.254") && gateway.message.contains("kubernetes.default"), "{}", gateway.message);
        assert_ne!(status.conditions[0].status, ConditionStatus::False);
        let listed = kubectl(&["get", "diagnosis", DIAGNOSIS], "").unwrap();
        assert!(listed.starts_with("NAME"), "{listed}");
        assert_end(&tenant.run(networked(&tenant)).await, &Phase::Succeeded, &Reason::Succeeded);
    })
    .await;
}

/// Something in the sandbox namespace of the doctor opens the network: as where a controller does not enforce policies, sandboxes reach what they must not.
#[tokio::test]
async fn what_fails_refuses_the_runs_that_depend_on_it_until_it_holds() {
    let _alone = alone().await;
    granting("doctor-bad", |tenant| async move {
        open(&tenant, json!({})).await;
        let (told, diagnosis) = examined(&tenant).await;
        let found = not_holding(&diagnosis);
        assert!(found.contains(&(Check::NetworkPolicyIpv4, CheckVerdict::Fails)), "{told}");
        assert!(found.contains(&(Check::NetworkPolicyIpv6, CheckVerdict::Fails)), "{told}");
        let condition = &diagnosis.status.as_ref().unwrap().conditions[0];
        assert_eq!((condition.status, &condition.reason), (ConditionStatus::False, &DiagnosisReason::ChecksFail));

        let refused = tenant.run(networked(&tenant)).await;
        assert_refused(&refused, &Reason::CheckFailed);
        let message = status(&refused).message.unwrap();
        assert!(message.starts_with("the check NetworkPolicyIpv4 of the cluster fails"), "{message}");
        let without = tenant
            .run(Script::python("print('ran')").with(json!({ "policyRef": { "kind": "ClusterSandboxPolicy", "name": tenant.name } })));
        assert_eq!(stdout(&without.await), "ran\n", "what has no network does not depend on it");

        // Whoever governs the cluster may say that it refuses nothing.
        let diagnoses: Api<Diagnosis> = Api::all(tenant.client.clone());
        let tolerate = |checks: &[&str]| Patch::Merge(json!({ "spec": { "tolerated": checks } }));
        diagnoses.patch(DIAGNOSIS, &PatchParams::default(), &tolerate(&["NetworkPolicyIpv4", "NetworkPolicyIpv6"])).await.unwrap();
        runs_again(&tenant).await;
        diagnoses.patch(DIAGNOSIS, &PatchParams::default(), &tolerate(&[])).await.unwrap();
        eventually("it is refused again", || async {
            let phase = status(&tenant.run(networked(&tenant)).await).phase;
            if phase == Some(Phase::Refused) { Ok(()) } else { Err(phase) }
        })
        .await;

        close(&tenant).await;
        let (told, mended) = examined(&tenant).await;
        assert_eq!(not_holding(&mended), [], "{told}");
        runs_again(&tenant).await;
    })
    .await;
}

async fn runs_again(tenant: &Tenant) {
    eventually("runs with a network start again", || async {
        let phase = status(&tenant.run(networked(tenant)).await).phase;
        if phase == Some(Phase::Succeeded) { Ok(()) } else { Err(phase) }
    })
    .await;
}

/// As where a controller lets pods reach their own node, or does not know one family of addresses.
#[tokio::test]
async fn what_is_open_after_the_start_is_found_too() {
    let _alone = alone().await;
    granting("doctor-node", |tenant| async move {
        let node = json!({ "ipBlock": { "cidr": "fd00:10:215::1/128" } });
        let api_server = json!({ "ipBlock": { "cidr": "10.215.0.1/32" } });
        open(&tenant, json!({ "to": [node, api_server] })).await;
        let (told, diagnosis) = examined(&tenant).await;
        close(&tenant).await;
        let found = not_holding(&diagnosis);
        for check in [Check::NodeConfined, Check::NetworkPolicyIpv4, Check::NetworkedNames] {
            assert!(found.contains(&(check.clone(), CheckVerdict::Fails)), "{check}: {told}");
        }
        assert!(!found.iter().any(|(check, _)| *check == Check::NetworkPolicyIpv6), "{told}");
        assert_refused(&tenant.run(networked(&tenant)).await, &Reason::CheckFailed);
        forget(&tenant).await;
        runs_again(&tenant).await;
    })
    .await;
}

/// A class of that name whose handler gives pods an interface, and not the one that the chart asks for.
#[tokio::test]
async fn a_runtime_class_that_is_not_what_it_claims_is_found() {
    let _alone = alone().await;
    granting("doctor-class", |tenant| async move {
        let classes: Api<RuntimeClass> = Api::all(tenant.client.clone());
        let class = classes.get("gvisor-nonet").await.unwrap();
        let with_handler = async |handler: &str| {
            let mut other = class.clone();
            (other.metadata.resource_version, other.metadata.uid) = (None, None);
            handler.clone_into(&mut other.handler);
            classes.delete("gvisor-nonet", &DeleteParams::default()).await.unwrap();
            classes.create(&PostParams::default(), &other).await.unwrap();
        };
        with_handler("gvisor").await;
        let (told, diagnosis) = examined(&tenant).await;
        with_handler(&class.handler).await;
        assert!(not_holding(&diagnosis).contains(&(Check::SandboxInterfaces, CheckVerdict::Fails)), "{told}");
        let by_policy = json!({ "policyRef": { "kind": "ClusterSandboxPolicy", "name": tenant.name } });
        assert_refused(&tenant.run(Script::python("print(1)").with(by_policy)).await, &Reason::CheckFailed);
        assert_end(&tenant.run(networked(&tenant)).await, &Phase::Succeeded, &Reason::Succeeded);
        forget(&tenant).await;
    })
    .await;
}

/// No tenant makes a diagnosis, or takes one away, and everybody whom the administrator lets may read it.
#[tokio::test]
async fn nobody_in_a_tenant_namespace_writes_a_diagnosis() {
    let _alone = alone().await;
    granting("doctor-edit", |tenant| async move {
        for role in ["edit", "admin"] {
            tenant.bind("somebody", role).await;
            for verb in ["create", "update", "patch", "delete"] {
                let asked = kubectl(&["auth", "can-i", verb, "diagnoses.paddock.dev", "--as", "somebody", "--namespace", &tenant.name], "");
                assert!(asked.is_err_and(|error| error.to_string().contains("no")), "{role} {verb}");
            }
        }
    })
    .await;
}
