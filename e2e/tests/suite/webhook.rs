//! Stamps by the operator's webhook, as on a cluster that serves no MutatingAdmissionPolicy: the same as by the API server, and without a gap.
//! The cluster serves such policies; the release is told not to use them.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::harness::cert_manager::CertManager;
use crate::harness::disturb::{kill_operator, leader, upgrade};
use crate::harness::internet::inside;
use crate::harness::{
    OPERATOR_NAMESPACE, Script, Tenant, admin, assert_end, eventually, eventually_within, kubectl, member, namespace, operators, status,
    stdout, tenant, user,
};
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{DynamicObject, LogParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client, ResourceExt as _};
use paddock_crds::{Phase, Reason, SandboxPolicy, ScriptApproval, ScriptRun};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};

fn a_run() -> ScriptRun {
    let mut run = ScriptRun::new("", serde_json::from_value(Script::shell("true").0).unwrap());
    (run.metadata.name, run.metadata.generate_name) = (None, Some("stamped-".into()));
    run
}

fn runs(client: &Client, tenant: &Tenant) -> Api<ScriptRun> {
    Api::namespaced(client.clone(), &tenant.name)
}

async fn paddocks_of(client: &Client, kind: &str, plural: &str) -> Vec<String> {
    let kind = GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind);
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::from_gvk_with_plural(&kind, plural));
    api.list(&kube::api::ListParams::default())
        .await
        .unwrap()
        .items
        .iter()
        .map(kube::ResourceExt::name_any)
        .filter(|name| name.starts_with("paddock"))
        .collect()
}

/// Creates runs without storing them until it is told to stop. Says how many, and what went wrong.
async fn create_again_and_again(tenant: Tenant, stop: Arc<AtomicBool>) -> (usize, Vec<String>) {
    let (mut count, mut troubles) = (0, Vec::new());
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    while !stop.load(Ordering::Relaxed) {
        match tenant.runs().create(&dry, &a_run()).await {
            Ok(run) if run.annotations().contains_key("paddock.dev/requester") => count += 1,
            Ok(run) => troubles.push(format!("not stamped: {:?}", run.metadata)),
            Err(error) => troubles.push(error.to_string()),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (count, troubles)
}

/// Median, 99th of a hundred, and the longest of so many creations that are not stored.
async fn times(tenant: &Tenant, count: usize) -> [Duration; 3] {
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let mut all = Vec::new();
    for _ in 0..count {
        let began = Instant::now();
        tenant.runs().create(&dry, &a_run()).await.unwrap();
        all.push(began.elapsed());
    }
    all.sort();
    [all[count / 2], all[count * 99 / 100], all[count - 1]]
}

/// A review of the creation of a run, as an API server sends it, but for what this one does not read.
fn review() -> String {
    let user = json!({ "username": "jane", "uid": "7", "groups": ["system:authenticated", "a", "b"] });
    let run = serde_json::to_value(a_run()).unwrap();
    let request = json!({ "uid": "r", "operation": "CREATE", "namespace": "shop", "userInfo": user, "object": run, "oldObject": null });
    json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request }).to_string()
}

/// Median, 99th of a hundred, and the longest of so many reviews that a replica answers on one connection, from where API servers are.
async fn replies(client: &Client, count: usize) -> [Duration; 3] {
    let address = leader(client).await.status.unwrap().pod_ip.unwrap();
    let trusted = certificate_and_trust(client).await.1.remove(0);
    let ask = move || {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(trusted.as_bytes()).map(Result::unwrap));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
        let connection = ClientConnection::new(config, "paddock-webhook.paddock-system.svc".try_into().unwrap()).unwrap();
        let stream = TcpStream::connect((address.parse::<IpAddr>().unwrap(), 8443)).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut stream = BufReader::new(StreamOwned::new(connection, stream));
        let body = review();
        let request = format!("POST /stamp/requester HTTP/1.1\r\nHost: paddock\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let mut all: Vec<_> = (0..count).map(|_| reply(&mut stream, &request)).collect();
        all.sort();
        [all[count / 2], all[count * 99 / 100], all[count - 1]]
    };
    tokio::task::spawn_blocking(|| inside(ask)).await.unwrap()
}

/// How long one takes.
fn reply(stream: &mut BufReader<StreamOwned<ClientConnection, TcpStream>>, request: &str) -> Duration {
    let began = Instant::now();
    stream.get_mut().write_all(request.as_bytes()).unwrap();
    let (mut length, mut line) = (0, String::new());
    while line != "\r\n" {
        line.clear();
        stream.read_line(&mut line).unwrap();
        if let Some(told) = line.to_lowercase().strip_prefix("content-length:") {
            length = told.trim().parse().unwrap();
        }
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer).unwrap();
    let took = began.elapsed();
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!((&answer["response"]["allowed"], &answer["response"]["patchType"]), (&json!(true), &json!("JSONPatch")), "{answer}");
    took
}

/// The API server's own measure of its webhooks.
const DURATION: &str = "apiserver_admission_webhook_admission_duration_seconds";

/// Of all calls of the webhook, how many, and how many took no longer than the API server's bucket of 5 ms says, by its own metric.
fn calls_of_the_webhook() -> (f64, f64) {
    let metrics = kubectl(&["get", "--raw", "/metrics"], "").unwrap();
    let of = |start: &str, label: &str| -> f64 {
        let lines =
            metrics.lines().filter(|line| line.starts_with(start) && line.contains("requester.paddock.dev") && line.contains(label));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    };
    (of(&format!("{DURATION}_count"), ""), of(&format!("{DURATION}_bucket"), "le=\"0.005\""))
}

async fn stamps_are_those_of_the_api_server(tenant: &Tenant) {
    tenant.bind("hook-jane", "paddock-edit").await;
    let jane = member("hook-jane", &["a,b", "50%"]).await;
    let run = eventually("she may", || async { runs(&jane, tenant).create(&PostParams::default(), &a_run()).await }).await;
    let annotation = |object: &dyn Fn(&str) -> Option<String>, name: &str| object(name).unwrap_or_default();
    let of_run = |name: &str| run.annotations().get(&format!("paddock.dev/{name}")).cloned();
    assert_eq!(annotation(&of_run, "requester"), "hook-jane");
    assert_eq!(annotation(&of_run, "requester-groups"), "system:authenticated,a%2Cb,50%25");
    assert!(run.finalizers().contains(&"paddock.dev/sandbox".to_owned()));
    let run = tenant.finished(&run).await;
    assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
    assert_eq!(status(&run).requester.unwrap().groups, ["system:authenticated", "a,b", "50%"]);
    let mut forged = a_run();
    forged.annotations_mut().insert("paddock.dev/requester".into(), "admin".into());
    let refused = runs(&jane, tenant).create(&PostParams::default(), &forged).await;
    assert!(refused.as_ref().is_err_and(|error| error.to_string().contains("set by the cluster")), "{refused:?}");
    for annotations in [json!({ "paddock.dev/requester": "admin" }), json!({ "paddock.dev/requester": null }), json!(null)] {
        let patch = Patch::Merge(json!({ "metadata": { "annotations": annotations } }));
        let refused = runs(&jane, tenant).patch(&run.name_any(), &PatchParams::default(), &patch).await;
        assert!(refused.as_ref().is_err_and(|error| error.to_string().contains("cannot be changed")), "{refused:?}");
    }

    // The author: who wrote the spec last, whatever else is written, and by whom.
    tenant.role("hook-anna", "sandboxpolicies", &["get", "create", "update", "patch"]).await;
    let annas: Api<SandboxPolicy> = Api::namespaced(user("hook-anna").await, &tenant.name);
    tenant.policy(json!({ "maxConcurrent": 3 })).await;
    let author = |policy: &SandboxPolicy| policy.annotations().get("paddock.dev/author").cloned().unwrap_or_default();
    let before = eventually("she may", || async { annas.get("limited").await }).await;
    let merge = |patch: Value| {
        let annas = annas.clone();
        async move { annas.patch("limited", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap() }
    };
    let labelled = merge(json!({ "metadata": { "labels": { "a": "b" } } })).await;
    assert_eq!((author(&labelled), author(&before)), ("kubernetes-admin".into(), "kubernetes-admin".into()));
    let written_over =
        merge(json!({ "metadata": { "annotations": { "paddock.dev/author": "hook-anna", "paddock.dev/author-uid": null } } })).await;
    assert_eq!(author(&written_over), "kubernetes-admin");
    let hers = merge(json!({ "spec": { "limits": { "maxConcurrent": 4 } } })).await;
    assert_eq!(author(&hers), "hook-anna");

    tenant.bind("hook-bert", "paddock-approver").await;
    let berts: Api<ScriptApproval> = Api::namespaced(user("hook-bert").await, &tenant.name);
    let approval: ScriptApproval = serde_json::from_value(json!({
        "apiVersion": "paddock.dev/v1alpha1", "kind": "ScriptApproval",
        "metadata": { "generateName": "a-" }, "spec": { "digest": "0".repeat(64), "decision": "Approve" },
    }))
    .unwrap();
    let approval = eventually("he may", || async { berts.create(&PostParams::default(), &approval).await }).await;
    assert_eq!(approval.annotations().get("paddock.dev/approver").map(String::as_str), Some("hook-bert"));
    let patch = Patch::Merge(json!({ "metadata": { "annotations": { "paddock.dev/approver": "hook-anna" } } }));
    let refused = admin_approvals(tenant).patch(&approval.name_any(), &PatchParams::default(), &patch).await;
    assert!(refused.as_ref().is_err_and(|error| error.to_string().contains("cannot be changed")), "{refused:?}");
}

fn admin_approvals(tenant: &Tenant) -> Api<ScriptApproval> {
    Api::namespaced(tenant.client.clone(), &tenant.name)
}

/// When the certificate was made that is served.
async fn made(client: &Client) -> String {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), OPERATOR_NAMESPACE);
    let data = secrets.get("paddock-webhook").await.unwrap().data.unwrap();
    String::from_utf8(data["tls.made"].0.clone()).unwrap()
}

/// So many runs at least are created while `change` goes on, and nobody who creates one notices.
async fn nobody_notices(tenant: &Tenant, at_least: usize, change: impl Future<Output = ()>) {
    let stop = Arc::new(AtomicBool::new(false));
    let creator = tokio::spawn(create_again_and_again(tenant.clone(), stop.clone()));
    change.await;
    stop.store(true, Ordering::Relaxed);
    let (count, troubles) = creator.await.unwrap();
    assert!(troubles.is_empty() && count > at_least, "{count}: {troubles:#?}");
}

/// Two certificates follow each other, and the operators are begun anew one by one.
async fn certificates_and_operators_change(client: &Client) {
    for _ in 0..2 {
        let before = made(client).await;
        eventually_within(Duration::from_secs(150), "another certificate is served", || async {
            let now = made(client).await;
            if now == before { Err(now) } else { Ok(()) }
        })
        .await;
    }
    upgrade(&["podAnnotations.begun=anew".into()]);
}

/// The Secret with the certificate that is served, and what API servers trust for each of the three webhooks.
async fn certificate_and_trust(client: &Client) -> (Secret, Vec<String>) {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), OPERATOR_NAMESPACE);
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let webhooks = configurations.get("paddock-stamp").await.unwrap().webhooks.unwrap();
    let trusted = webhooks.into_iter().map(|webhook| text(webhook.client_config.ca_bundle.unwrap_or_default()));
    (secrets.get("paddock-webhook").await.unwrap(), trusted.collect())
}

fn text(bytes: ByteString) -> String {
    String::from_utf8(bytes.0).unwrap()
}

/// How many certificates each replica has served, by its log.
async fn certificates_served(client: &Client) -> Vec<(String, usize)> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), OPERATOR_NAMESPACE);
    let mut all = Vec::new();
    for name in operators(client).await.iter().map(kube::ResourceExt::name_any) {
        let log = pods.logs(&name, &LogParams::default()).await.unwrap();
        all.push((name, log.matches("the webhook serves another certificate").count()));
    }
    all
}

/// cert-manager makes a certificate in place of the operator's own, and then another, which nobody notices.
async fn cert_manager_keeps_the_certificate(tenant: &Tenant) {
    let client = admin().await;
    let own = authority(&certificate_and_trust(&client).await.0);
    upgrade(&["admission.certManager.issuer.name=cluster-ca".into(), "admission.certManager.issuer.kind=ClusterIssuer".into()]);
    eventually("cert-manager's authority is trusted", || async {
        let (secret, trusted) = certificate_and_trust(&client).await;
        let its = authority(&secret);
        // What was trusted before still is.
        let all = trusted.len() == 3 && trusted.iter().all(|bundle| bundle.contains(its.trim()));
        if !its.is_empty() && its != own && all { Ok(()) } else { Err((its, trusted)) }
    })
    .await;
    // So that each replica has begun with its certificate.
    upgrade(&["podAnnotations.begun=again".into()]);
    nobody_notices(tenant, 20, another_certificate(&client)).await;
}

fn authority(secret: &Secret) -> String {
    secret.data.as_ref().and_then(|data| data.get("ca.crt")).cloned().map(text).unwrap_or_default()
}

/// Asks for one as cert-manager's own command line does, until each replica serves it.
async fn another_certificate(client: &Client) {
    let served = eventually("each replica serves one", || async {
        let served = certificates_served(client).await;
        if served.len() == 2 && served.iter().all(|(_, count)| *count > 0) { Ok(served) } else { Err(served) }
    })
    .await;
    let renew = json!({"status": {"conditions": [{
        "type": "Issuing", "status": "True", "reason": "ManuallyTriggered", "message": "by a test", "lastTransitionTime": "2026-01-01T00:00:00Z",
    }]}})
    .to_string();
    let certificate = ["--namespace", OPERATOR_NAMESPACE, "certificate.cert-manager.io/paddock-webhook", "--subresource=status"];
    kubectl(&[&["patch"], &certificate[..], &["--type=merge", "--patch", &renew]].concat(), "").unwrap();
    eventually("each replica serves another", || async {
        let now = certificates_served(client).await;
        if now.iter().zip(&served).all(|(now, before)| now.0 == before.0 && now.1 > before.1) { Ok(()) } else { Err((served.clone(), now)) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_stamps_where_the_cluster_has_no_policies_for_it() {
    the_baseline_has_an_author();
    a_policy_without_an_author_gives_nobody_what_it_grants().await;
    tenant("webhook", |tenant| async move {
        let by_policy = times(&tenant, 300).await;
        let client = admin().await;
        // A certificate is announced after 40 s and used after 46.
        upgrade(&["admission.stamps=Webhook".into(), "admission.certificateSeconds=60".into(), "replicas=2".into()]);
        assert!(paddocks_of(&client, "MutatingAdmissionPolicy", "mutatingadmissionpolicies").await.is_empty());
        Box::pin(stamps_are_those_of_the_api_server(&tenant)).await;
        let replies = replies(&client, 1000).await;
        eprintln!("reviews by themselves {replies:.2?} (median, p99, longest)");
        assert!(replies[1] <= Duration::from_millis(10), "{replies:?}");
        let by_webhook = times(&tenant, 300).await;
        let (calls, quick) = calls_of_the_webhook();
        eprintln!(
            "creations in policy {by_policy:.1?}, by webhook {by_webhook:.1?} (median, p99, longest); {quick} of {calls} calls within 5 ms"
        );
        assert!(calls >= 300.0 && quick >= 0.5 * calls, "{quick} of {calls}");
        // On a machine that is slow a creation takes longer than a call may: then the call may take as long as what it is a part of.
        let (without, with) = (by_policy[1], by_webhook[1]);
        assert!(with.saturating_sub(without) <= (2 * without).max(Duration::from_millis(10)), "{by_policy:?} and {by_webhook:?}");
        nobody_notices(&tenant, 500, certificates_and_operators_change(&client)).await;
        // The process of the leader: the other replica stamps meanwhile, and requests on a connection that broke are the API server's to repeat.
        kill_operator(&client).await;
        eventually("runs are stamped", || async {
            tenant.runs().create(&PostParams { dry_run: true, ..PostParams::default() }, &a_run()).await
        })
        .await;
        let cert_manager = CertManager::begin();
        Box::pin(cert_manager_keeps_the_certificate(&tenant)).await;
        upgrade(&[
            "admission.stamps=Policy".into(),
            "admission.certManager.issuer.name=".into(),
            "replicas=1".into(),
            "podAnnotations.begun=null".into(),
        ]);
        drop(cert_manager);
        assert!(paddocks_of(&client, "MutatingWebhookConfiguration", "mutatingwebhookconfigurations").await.is_empty());
        assert_end(&tenant.run(Script::shell("true")).await, &Phase::Succeeded, &Reason::Succeeded);
    })
    .await;
}

/// Whoever writes to it first is its author: while that is nobody, an upgrade would itself need the stamps that it brings.
fn the_baseline_has_an_author() {
    kubectl(&["annotate", "clustersandboxpolicy", "baseline", "e2e=webhook", "--overwrite"], "").unwrap();
}

/// While nothing stamps, as before the chart is there, nobody is known as the author of a policy that is written.
async fn nothing_stamps(tenant: &Tenant) {
    // One writes the stamps, and one refuses what has none.
    kubectl(&["delete", "mutatingadmissionpolicybinding,validatingadmissionpolicybinding", "paddock-author"], "").unwrap();
    let api: Api<SandboxPolicy> = Api::namespaced(tenant.client.clone(), &tenant.name);
    let policy = SandboxPolicy::new("unstamped", serde_json::from_value(json!({})).unwrap());
    eventually("nothing stamps", || async {
        let stored =
            api.create(&PostParams { dry_run: true, ..PostParams::default() }, &policy).await.map_err(|error| error.to_string())?;
        if stored.annotations().is_empty() { Ok(()) } else { Err(format!("{:?}", stored.annotations())) }
    })
    .await;
}

async fn a_policy_without_an_author_gives_nobody_what_it_grants() {
    namespace("nobody", json!({}), |tenant| async move {
        nothing_stamps(&tenant).await;
        let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "smtp" }, "stringData": { "password": "x" } });
        kubectl(&["apply", "--namespace", &tenant.name, "--filename", "-"], &secret.to_string()).unwrap();
        tenant.let_the_operator_read("secrets", "paddock-secret-reader").await;
        tenant.cluster_policy(json!({ "capabilities": { "secrets": [{ "name": "smtp" }] } })).await;
        let asks = json!({ "policyRef": { "kind": "ClusterSandboxPolicy", "name": tenant.name }, "capabilities": { "secrets": ["smtp"] } });
        let script = || Script::shell("ls /paddock/secrets").with(asks.clone());
        eventually("nobody is known", || async {
            let told = status(&tenant.run(script()).await).message.unwrap();
            let name = &tenant.name;
            let expected = format!(
                "nobody is known as the author of ClusterSandboxPolicy {name}, who must be allowed to read the Secret smtp; whoever writes to it next is"
            );
            if told == expected { Ok(()) } else { Err(told) }
        })
        .await;
        upgrade(&[]);
        eventually("whoever writes next is the author, whatever they write", || async {
            let now = format!("a={:?}", Instant::now());
            kubectl(&["annotate", "clustersandboxpolicy", &tenant.name, &now, "--overwrite"], "").unwrap();
            let run = tenant.run(script()).await;
            if stdout(&run) == "smtp\n" { Ok(()) } else { Err(status(&run).message) }
        })
        .await;
        tenant.no_cluster_policy().await;
    })
    .await;
}
