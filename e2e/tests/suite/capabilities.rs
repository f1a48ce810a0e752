//! What runs ask for beside resources and time: granted or refused one by one, and never what requester or author may not have themselves.

use crate::harness::{
    self, Script, Tenant, assert_end, assert_refused, eventually, kubectl, layout, namespace, operators, status, stdout, user,
};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use paddock_crds::{ClusterSandboxPolicy, ConditionType, Decision, Phase, Reason, SandboxPolicy, ScriptApproval, ScriptRun, Verdict};
use serde_json::{Value, json};

/// No detector knows it.
const VALUE: &str = "correct horse battery staple";

fn asking(text: &str, capabilities: &Value) -> Script {
    Script::shell(text).with(json!({ "policyRef": { "kind": "SandboxPolicy", "name": "limited" }, "capabilities": capabilities }))
}

async fn secret(tenant: &Tenant, name: &str, labels: Value, value: &str) {
    let api: Api<Secret> = Api::namespaced(tenant.client.clone(), &tenant.name);
    let secret = json!({ "metadata": { "name": name, "labels": labels }, "stringData": { "password": value, "user": "mailer@x" } });
    api.create(&PostParams::default(), &serde_json::from_value(secret).unwrap()).await.unwrap();
}

async fn config_map(tenant: &Tenant, name: &str, value: &str) {
    let api: Api<ConfigMap> = Api::namespaced(tenant.client.clone(), &tenant.name);
    let config_map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "eur.csv": value }, "binaryData": { "raw": "AP8=" },
    });
    api.patch(name, &PatchParams::apply("e2e").force(), &Patch::Apply(&config_map)).await.unwrap();
}

/// Lets somebody read these Secrets, and nothing else.
async fn let_read(tenant: &Tenant, name: &str, secrets: &[&str]) {
    let_get(tenant, name, "secrets", secrets).await;
}

/// Lets somebody `get` these objects of a kind in the namespace of the tenant.
async fn let_get(tenant: &Tenant, name: &str, resource: &str, objects: &[&str]) {
    let role = json!({
        "metadata": { "name": format!("{resource}-{name}") },
        "rules": [{ "apiGroups": [""], "resources": [resource], "resourceNames": objects, "verbs": ["get"] }],
    });
    let roles: Api<Role> = Api::namespaced(tenant.client.clone(), &tenant.name);
    roles.create(&PostParams::default(), &serde_json::from_value(role).unwrap()).await.unwrap();
    let binding = json!({
        "metadata": { "name": format!("{resource}-{name}") },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": format!("{resource}-{name}") },
        "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name }],
    });
    let bindings: Api<RoleBinding> = Api::namespaced(tenant.client.clone(), &tenant.name);
    bindings.create(&PostParams::default(), &serde_json::from_value(binding).unwrap()).await.unwrap();
    may_get(&tenant.name, name, resource, objects[0], true).await;
}

/// Takes away what [`let_get`] gave.
async fn let_get_no_more(tenant: &Tenant, name: &str, resource: &str, object: &str) {
    let bindings: Api<RoleBinding> = Api::namespaced(tenant.client.clone(), &tenant.name);
    bindings.delete(&format!("{resource}-{name}"), &DeleteParams::default()).await.unwrap();
    may_get(&tenant.name, name, resource, object, false).await;
}

/// Waits until the API server says so of this user.
async fn may_get(namespace: &str, name: &str, resource: &str, object: &str, wanted: bool) {
    let asked = ["auth", "can-i", "get", &format!("{resource}/{object}"), "--namespace", namespace, "--as", name];
    eventually("the role is in force, or is no more", || async {
        if kubectl(&asked, "").is_ok() == wanted { Ok(()) } else { Err(format!("{name} on {resource}/{object}")) }
    })
    .await;
}

/// What requesters and authors must be allowed to read: the kind, its resource, its capability, and the name of the one that there is.
const OBJECTS: [(&str, &str, &str, &str); 3] = [
    ("Secret", "secrets", "secrets", "smtp"),
    ("ConfigMap", "configmaps", "data", "prices"),
    ("PersistentVolumeClaim", "persistentvolumeclaims", "volumes", "corpus"),
];

/// One of each, once the sandbox namespace is there.
async fn objects(tenant: &Tenant) -> Corpus {
    assert_end(&tenant.run(asking("true", &json!({}))).await, &Phase::Succeeded, &Reason::Succeeded);
    secret(tenant, "smtp", json!({}), VALUE).await;
    config_map(tenant, "prices", "1").await;
    Corpus::of(tenant).await
}

/// A namespace whose ClusterSandboxPolicy grants everything; it is this test's, and so is the SandboxPolicy `limited`.
async fn granting<T>(test: &str, body: impl FnOnce(Tenant) -> T + Send + 'static)
where
    T: Future<Output = ()> + Send + 'static,
{
    namespace(test, json!({}), |tenant| async move {
        let all = json!([{ "selector": {} }]);
        let capabilities = json!({ "secrets": all, "data": all, "volumes": all, "subprocess": true, "dynamicCode": true });
        tenant.cluster_policy(json!({ "capabilities": capabilities })).await;
        tenant.policy(json!({})).await;
        tenant.let_the_operator_read("secrets", "paddock-secret-reader").await;
        tenant.let_the_operator_read_sources().await;
        body(tenant.clone()).await;
        tenant.no_cluster_policy().await;
    })
    .await;
}

fn verdicts(run: &ScriptRun) -> Vec<(String, Verdict, String)> {
    let decisions = status(run).decisions.into_iter();
    let of_capabilities = decisions.filter(|decision| !decision.permission.starts_with("runtime:"));
    of_capabilities.map(|decision| (decision.permission, decision.verdict, decision.rule)).collect()
}

#[tokio::test]
async fn a_script_reads_what_it_was_granted_and_cannot_change_or_tell_it() {
    granting("given", |tenant| async move {
        secret(&tenant, "smtp", json!({}), VALUE).await;
        config_map(&tenant, "prices", "apple,1\n").await;
        let script = "cd /paddock; ls secrets data secrets/smtp; cat secrets/smtp/password; echo; cat data/prices/eur.csv; \
            od -An -tx1 data/prices/raw; echo x > secrets/smtp/password || echo read-only; echo x > data/prices/eur.csv || echo read-only; \
            base64 secrets/smtp/password; echo \"{\\\"told\\\": \\\"$(cat secrets/smtp/password)\\\"}\" > $PADDOCK_RESULT; sleep 1";
        let run = tenant.create(asking(script, &json!({ "secrets": ["smtp"], "data": ["prices"], "subprocess": true }))).await;
        let pod = tenant.pod_of(&run).await;
        // What the run is given belongs to its pod, in a namespace that its people cannot look into.
        let copies: Api<Secret> = Api::namespaced(tenant.client.clone(), &tenant.sandbox());
        let copy = eventually("the copy", || async { copies.get(&format!("{}-0", pod.name_any())).await }).await;
        assert_eq!((copy.immutable, copy.owner_references()[0].uid.clone()), (Some(true), pod.uid().unwrap()));
        tenant.bind("given-jane", "edit").await;
        let janes: Api<Secret> = Api::namespaced(user("given-jane").await, &tenant.sandbox());
        assert!(matches!(janes.get(&copy.name_any()).await, Err(kube::Error::Api(answer)) if answer.code == 403));

        let run = tenant.finished(&run).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        let told = stdout(&run);
        assert!(
            told.starts_with("data:\nprices\n\nsecrets:\nsmtp\n\nsecrets/smtp:\npassword\nuser\n[masked:secret:smtp]\napple,1\n 00 ff\n"),
            "{told}"
        );
        // Of base64 the last group is left, where others could follow.
        assert!(told.contains("read-only\nread-only\n[masked:secret:smtp]"), "{told}");
        assert_eq!(status(&run).result.unwrap().output.unwrap(), json!({ "told": "[masked:secret:smtp]" }));
        let rule = |field: &str| (format!("ClusterSandboxPolicy/{}: capabilities.{field}", tenant.name), Verdict::Granted);
        for (permission, field) in [("secrets:smtp", "secrets[0]"), ("data:prices", "data[0]"), ("subprocess", "subprocess")] {
            let (expected, verdict) = rule(field);
            assert!(verdicts(&run).contains(&(permission.to_owned(), verdict, expected)), "{:?}", verdicts(&run));
        }
        for text in [serde_json::to_string(&run).unwrap(), serde_json::to_string(&pod).unwrap()] {
            assert!(!text.contains("battery") && !text.contains("Y29ycmVjdCBob3JzZS"), "{text}");
        }
        eventually("the copies are gone with the pod", || async {
            let secrets = copies.list(&ListParams::default()).await.unwrap().items.len();
            if secrets == 0 { Ok(()) } else { Err(secrets) }
        })
        .await;
    })
    .await;
}

/// A volume of this machine, which is the node, with a claim for it in the sandbox namespace.
struct Corpus {
    folder: std::path::PathBuf,
    volume: String,
    client: Client,
}

impl Corpus {
    async fn of(tenant: &Tenant) -> Self {
        let folder = layout().state.join("volumes").join(&tenant.name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("words.txt"), "a lot of words\n").unwrap();
        let corpus = Self { folder, volume: tenant.name.clone(), client: tenant.client.clone() };
        let volume = json!({
            "metadata": { "name": corpus.volume },
            "spec": {
                "capacity": { "storage": "1Mi" }, "accessModes": ["ReadOnlyMany"], "storageClassName": "", "persistentVolumeReclaimPolicy": "Retain",
                "hostPath": { "path": corpus.folder, "type": "Directory" }, "claimRef": { "namespace": tenant.sandbox(), "name": "corpus" },
            },
        });
        let volumes: Api<PersistentVolume> = Api::all(tenant.client.clone());
        volumes.create(&PostParams::default(), &serde_json::from_value(volume).unwrap()).await.unwrap();
        let claim = json!({
            "metadata": { "name": "corpus", "labels": { "for": "scripts" } },
            "spec": {
                "accessModes": ["ReadOnlyMany"], "storageClassName": "", "volumeName": corpus.volume, "resources": { "requests": { "storage": "1Mi" } },
            },
        });
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(tenant.client.clone(), &tenant.sandbox());
        claims.create(&PostParams::default(), &serde_json::from_value(claim).unwrap()).await.unwrap();
        corpus
    }

    async fn remove(self) {
        let volumes: Api<PersistentVolume> = Api::all(self.client);
        volumes.delete(&self.volume, &DeleteParams::default()).await.unwrap();
        std::fs::remove_dir_all(self.folder).unwrap();
    }
}

#[tokio::test]
async fn a_volume_of_the_sandbox_namespace_is_mounted_read_only() {
    granting("volume", |tenant| async move {
        // Before there is a sandbox namespace there is nothing in it.
        let ask = |name: &str| {
            asking("cd /paddock/volumes && cat */words.txt; echo more >> corpus/words.txt || echo read-only", &json!({ "volumes": [name] }))
        };
        let refused = tenant.run(ask("corpus")).await;
        assert_refused(&refused, &Reason::CapabilityUnusable);
        assert_eq!(status(&refused).message.unwrap(), "there is no PersistentVolumeClaim corpus");
        assert_end(&tenant.run(asking("true", &json!({}))).await, &Phase::Succeeded, &Reason::Succeeded);
        let corpus = Corpus::of(&tenant).await;

        let jane = tenant.bind("volume-jane", "paddock-edit").await;
        tenant.bind("volume-jane", "paddock-view").await;
        let told = not_created(&jane, &tenant, ask("corpus")).await;
        assert!(told.contains("the requester may not read the PersistentVolumeClaim corpus"), "{told}");
        tenant.bind("volume-jane", "edit").await;
        let janes: Api<PersistentVolumeClaim> = Api::namespaced(jane.clone(), &tenant.name);
        eventually("the role is in force", || async { janes.list(&ListParams::default()).await.map(drop) }).await;
        let run = run_as(&jane, &tenant, ask("corpus")).await;
        assert_eq!(stdout(&run), "a lot of words\nread-only\n", "{:#?}", status(&run));
        let rule = format!("ClusterSandboxPolicy/{}: capabilities.volumes[0]", tenant.name);
        assert!(verdicts(&run).contains(&("volumes:corpus".into(), Verdict::Granted, rule)), "{:?}", verdicts(&run));
        assert_eq!(std::fs::read_to_string(corpus.folder.join("words.txt")).unwrap(), "a lot of words\n");

        // What tenants write narrows, and they put nothing into the sandbox namespace themselves.
        let by_label = |label: &str| json!({ "capabilities": { "volumes": [{ "selector": { "matchLabels": { "for": label } } }] } });
        tenant.policy_with(by_label("people")).await;
        assert_refused(&tenant.run(ask("corpus")).await, &Reason::CapabilityRefused);
        tenant.policy_with(by_label("scripts")).await;
        assert_end(&tenant.run(ask("corpus")).await, &Phase::Succeeded, &Reason::Succeeded);

        // Nor does the operator's account mount one, or any other kind of volume, to write.
        let pod = serde_json::to_value(tenant.pod_of(&tenant.create(ask("corpus")).await).await).unwrap();
        let operator = user("system:serviceaccount:paddock-system:paddock-operator").await;
        let pods: Api<Pod> = Api::namespaced(operator, &tenant.sandbox());
        for kind in [json!({ "persistentVolumeClaim": { "claimName": "corpus" } }), json!({ "csi": { "driver": "disks" } })] {
            let mut pod = pod.clone();
            pod["metadata"] = json!({ "name": "sr-writes" });
            pod["spec"]["nodeName"] = Value::Null;
            let volumes = pod["spec"]["volumes"].as_array_mut().unwrap();
            let volume = volumes.iter_mut().find(|volume| volume.get("persistentVolumeClaim").is_some()).unwrap();
            *volume = kind;
            volume["name"] = "writes".into();
            pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "writes", "mountPath": "/writes" }]);
            let denied = pods.create(&PostParams { dry_run: true, ..PostParams::default() }, &serde_json::from_value(pod).unwrap()).await;
            assert!(denied.unwrap_err().to_string().contains("a sandbox mounts volumes read-only"));
        }
        let sandboxes: Api<PersistentVolumeClaim> = Api::namespaced(jane, &tenant.sandbox());
        assert!(matches!(sandboxes.get("corpus").await, Err(kube::Error::Api(answer)) if answer.code == 403));
        corpus.remove().await;
    })
    .await;
}

/// Bytes of which an automaton with a table for each of its states would take hundreds of megabytes.
fn binary_value() -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        0xCA + u8::try_from((state >> 24) % 54).unwrap()
    };
    (0..4).flat_map(|_| b"/(; ".iter().copied().chain(std::iter::repeat_with(&mut next).take(1020)).collect::<Vec<_>>()).collect()
}

#[tokio::test]
async fn binary_secrets_of_many_runs_are_covered_and_leave_the_operator_alone() {
    granting("binary", |tenant| async move {
        let api: Api<Secret> = Api::namespaced(tenant.client.clone(), &tenant.name);
        let mut value: Secret = serde_json::from_value(json!({ "metadata": { "name": "bin" } })).unwrap();
        value.data = Some([("value".to_owned(), ByteString(binary_value()))].into());
        api.create(&PostParams::default(), &value).await.unwrap();
        let before = starts(&tenant.client).await;
        let ask = || asking("echo before; cat /paddock/secrets/bin/value; echo after", &json!({ "secrets": ["bin"] }));
        let runs = futures::future::join_all((0..8).map(|_| tenant.run(ask()))).await;
        for run in &runs {
            assert_eq!(stdout(run), "before\n[masked:secret:bin]after\n", "{:#?}", status(run));
        }
        assert_eq!(starts(&tenant.client).await, before, "the operator was ended");
    })
    .await;
}

/// How often each operator was started.
async fn starts(client: &Client) -> Vec<(String, i32)> {
    let starts = |pod: Pod| {
        let restarts = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten()).map(|one| one.restart_count).sum();
        (pod.name_any(), restarts)
    };
    operators(client).await.into_iter().map(starts).collect()
}

#[tokio::test]
async fn a_secret_is_granted_by_label_and_a_run_may_take_what_it_gets() {
    granting("partial", |tenant| async move {
        let gold = json!([{ "selector": { "matchLabels": { "tier": "gold" } } }, { "name": "by-name" }]);
        tenant.policy_with(json!({ "capabilities": { "secrets": gold, "dynamicCode": false } })).await;
        for (name, tier) in [("gilded", "gold"), ("plain", "tin"), ("by-name", "tin")] {
            secret(&tenant, name, json!({ "tier": tier }), VALUE).await;
        }
        let all = json!({ "secrets": ["gilded", "plain", "by-name", "missing"], "dynamicCode": true, "network": ["x.example"] });
        let refused = tenant.run(asking("ls /paddock/secrets", &all)).await;
        assert_refused(&refused, &Reason::CapabilityRefused);
        assert_eq!(
            status(&refused).message.unwrap(),
            format!(
                "the capability network:x.example:443 is not granted (ClusterSandboxPolicy/{}: capabilities.network); and 3 more, see status.decisions",
                tenant.name
            )
        );
        let mut partial = all;
        partial["partial"] = json!(true);
        let run = tenant.run(asking("ls /paddock/secrets", &partial)).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        assert_eq!(stdout(&run), "by-name\ngilded\n");
        let answered: Vec<(String, Verdict, String)> = verdicts(&run);
        let own = |text: &str| format!("SandboxPolicy/limited: capabilities.{text}");
        for expected in [
            ("network:x.example:443", Verdict::Refused, format!("ClusterSandboxPolicy/{}: capabilities.network", tenant.name)),
            ("secrets:by-name", Verdict::Granted, own("secrets[by-name]")),
            ("secrets:gilded", Verdict::Granted, own("secrets[0]")),
            ("secrets:missing", Verdict::Refused, "built-in: what can be given".to_owned()),
            ("secrets:plain", Verdict::Refused, own("secrets")),
            ("dynamicCode", Verdict::Refused, own("dynamicCode")),
        ] {
            let expected = (expected.0.to_owned(), expected.1, expected.2);
            assert!(answered.contains(&expected), "{expected:?} is not in {answered:?}");
        }
        let refused = tenant.run(asking("true", &json!({ "secrets": ["missing"] }))).await;
        assert_refused(&refused, &Reason::CapabilityUnusable);
    })
    .await;
}

#[tokio::test]
async fn the_risk_of_what_a_run_gets_is_told_and_rules_see_it() {
    granting("risk", |tenant| async move {
        secret(&tenant, "smtp", json!({}), VALUE).await;
        tenant.policy_with(json!({ "rules": [{ "name": "low", "expression": "risk.score < 25 || risk.level == 'Low'" }] })).await;
        let run = tenant.run(asking("true", &json!({ "secrets": ["smtp"] }))).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        assert_eq!(status(&run).risk.unwrap().to_string(), "20 Low: ReadsSecrets 20");
        let run = tenant.run(asking("true", &json!({ "secrets": ["smtp"], "subprocess": true }))).await;
        assert_refused(&run, &Reason::RuleNotSatisfied);
        assert_eq!(status(&run).risk.unwrap().to_string(), "25 Medium: ReadsSecrets 20, StartsPrograms 5");
    })
    .await;
}

/// Runs as somebody who may create runs, and whatever else the test gives them.
async fn run_as(client: &Client, tenant: &Tenant, script: Script) -> ScriptRun {
    let api: Api<ScriptRun> = Api::namespaced(client.clone(), &tenant.name);
    let mut run = ScriptRun::new("", serde_json::from_value(script.0).unwrap());
    (run.metadata.name, run.metadata.generate_name) = (None, Some("asked-".into()));
    let run = api.create(&PostParams::default(), &run).await.unwrap();
    tenant.finished(&run).await
}

/// What the API server tells somebody whose run it does not store.
async fn not_created(client: &Client, tenant: &Tenant, script: Script) -> String {
    let api: Api<ScriptRun> = Api::namespaced(client.clone(), &tenant.name);
    let run = ScriptRun::new("not-stored", serde_json::from_value(script.0).unwrap());
    match api.create(&PostParams::default(), &run).await {
        Err(kube::Error::Api(answer)) if answer.code == 403 => answer.message,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn nobody_is_given_what_they_may_not_read_themselves() {
    granting("own", |tenant| async move {
        secret(&tenant, "smtp", json!({}), VALUE).await;
        secret(&tenant, "other", json!({}), VALUE).await;
        tenant.bind("own-jane", "paddock-edit").await;
        tenant.bind("own-jane", "paddock-view").await;
        let_read(&tenant, "own-jane", &["smtp"]).await;
        let jane = user("own-jane").await;
        let run = run_as(&jane, &tenant, asking("ls /paddock/secrets", &json!({ "secrets": ["smtp"] }))).await;
        assert_eq!(stdout(&run), "smtp\n");
        // Whether there is such a Secret is not told either.
        for name in ["other", "missing"] {
            let told = not_created(&jane, &tenant, asking("true", &json!({ "secrets": ["smtp", name] }))).await;
            assert!(told.contains(&format!("the requester may not read the Secret {name}")), "{told}");
        }
        let told = not_created(&jane, &tenant, asking("true", &json!({ "data": ["a", "b", "c", "d", "e", "f", "g", "prices"] }))).await;
        assert!(told.contains("the requester may not read the ConfigMap a"), "{told}");
        // Who takes what there is, is asked for when it is decided.
        let partial = json!({ "secrets": ["other", "smtp"], "partial": true });
        let run = run_as(&jane, &tenant, asking("ls /paddock/secrets", &partial)).await;
        assert_eq!(stdout(&run), "smtp\n");
        let refused = Decision { permission: "secrets:other".into(), verdict: Verdict::Refused, rule: "access of the requester".into() };
        assert!(status(&run).decisions.contains(&refused), "{:?}", status(&run).decisions);

        // Who writes a policy grants no more than they have. Here it is somebody who may read one of two.
        tenant.role("own-anna", "sandboxpolicies", &["get", "create", "update", "patch"]).await;
        let_read(&tenant, "own-anna", &["other"]).await;
        let annas: Api<SandboxPolicy> = Api::namespaced(user("own-anna").await, &tenant.name);
        let policy = json!({
            "apiVersion": "paddock.dev/v1alpha1", "kind": "SandboxPolicy", "metadata": { "name": "hers" },
            "spec": { "capabilities": { "secrets": [{ "selector": {} }] } },
        });
        eventually("she may", || async { annas.patch("hers", &PatchParams::apply("e2e"), &Patch::Apply(&policy)).await }).await;
        let mut by_name = policy.clone();
        by_name["spec"]["capabilities"]["secrets"] = json!([{ "name": "other" }, { "name": "smtp" }]);
        let told = annas.patch("hers", &PatchParams::apply("e2e"), &Patch::Apply(&by_name)).await.unwrap_err().to_string();
        assert!(told.contains("whoever writes this policy may not read the Secret smtp, which it grants"), "{told}");
        // What it granted before keeps nobody from stopping it.
        let wide = json!({ "apiVersion": "paddock.dev/v1alpha1", "kind": "SandboxPolicy", "metadata": { "name": "wide" },
            "spec": { "capabilities": { "secrets": [{ "name": "smtp" }, { "name": "other" }] } } });
        let all: Api<SandboxPolicy> = Api::namespaced(tenant.client.clone(), &tenant.name);
        all.create(&PostParams::default(), &serde_json::from_value(wide).unwrap()).await.unwrap();
        for spec in [json!({ "suspend": "Kill" }), json!({ "capabilities": { "secrets": [{ "name": "smtp" }] } })] {
            annas.patch("wide", &PatchParams::default(), &Patch::Merge(&json!({ "spec": spec }))).await.unwrap();
        }
        let hers = json!({ "policyRef": { "kind": "SandboxPolicy", "name": "hers" } });
        let ask = |name: &str| asking("ls /paddock/secrets", &json!({ "secrets": [name] })).with(hers.clone());
        let refused = eventually("her policy is there", || async {
            let run = tenant.run(ask("smtp")).await;
            let reason = status(&run).condition(&ConditionType::Accepted).unwrap().reason.clone();
            if reason == Reason::PolicyNotFound { Err(reason) } else { Ok(run) }
        })
        .await;
        assert_refused(&refused, &Reason::CapabilityForbidden);
        assert_eq!(status(&refused).message.unwrap(), "own-anna, who wrote SandboxPolicy hers, may not read the Secret smtp");
        assert_eq!(stdout(&tenant.run(ask("other")).await), "other\n");
    })
    .await;
}

#[tokio::test]
async fn an_author_who_loses_the_right_while_a_run_waits_grants_nothing_any_more() {
    granting("lost", |tenant| async move {
        let corpus = objects(&tenant).await;
        tenant.role("lost-anna", "sandboxpolicies", &["get", "create", "update", "patch"]).await;
        for (_, resource, _, name) in OBJECTS {
            let_get(&tenant, "lost-anna", resource, &[name]).await;
        }
        let annas: Api<SandboxPolicy> = Api::namespaced(user("lost-anna").await, &tenant.name);
        let grants = OBJECTS.map(|(_, _, capability, name)| (capability, json!([{ "name": name }])));
        let policy = json!({
            "apiVersion": "paddock.dev/v1alpha1", "kind": "SandboxPolicy", "metadata": { "name": "hers" },
            "spec": { "capabilities": serde_json::Map::from_iter(grants.map(|(name, list)| (name.to_owned(), list))), "limits": { "maxConcurrent": 1 } },
        });
        eventually("she may", || async { annas.patch("hers", &PatchParams::apply("e2e"), &Patch::Apply(&policy)).await }).await;
        let hers = |text: &str, capabilities: &Value| {
            asking(text, capabilities).with(json!({ "policyRef": { "kind": "SandboxPolicy", "name": "hers" } }))
        };
        let first = eventually("her policy is there", || async {
            let run = tenant.create(hers("sleep 60", &json!({}))).await;
            let seen = tenant.until(&run, "it is decided on", |status| !status.conditions.is_empty()).await;
            if status(&seen).phase == Some(Phase::Refused) { Err(status(&seen).message) } else { Ok(run) }
        })
        .await;
        let mut all = Vec::new();
        for (kind, _, capability, name) in OBJECTS {
            let waiting = tenant.create(hers("true", &json!({ capability: [name] }))).await;
            tenant.until(&waiting, "Queued", |status| status.phase == Some(Phase::Queued)).await;
            all.push((waiting, format!("lost-anna, who wrote SandboxPolicy hers, may not read the {kind} {name}")));
        }
        for (_, resource, _, name) in OBJECTS {
            let_get_no_more(&tenant, "lost-anna", resource, name).await;
        }
        tenant.patch(&first, json!({ "spec": { "cancel": true } })).await;
        for (waiting, message) in all {
            let refused = tenant.finished(&waiting).await;
            assert_refused(&refused, &Reason::CapabilityForbidden);
            assert_eq!(status(&refused).message.unwrap(), message);
        }
        corpus.remove().await;
    })
    .await;
}

/// Whoever writes a policy of the cluster answers for what it grants in each namespace.
#[tokio::test]
async fn the_author_of_a_policy_of_the_cluster_must_be_allowed_to_read_what_it_grants() {
    namespace("wide", json!({}), |tenant| async move {
        tenant.let_the_operator_read("secrets", "paddock-secret-reader").await;
        tenant.let_the_operator_read_sources().await;
        let all = json!([{ "selector": {} }]);
        tenant.cluster_policy(json!({ "capabilities": { "secrets": all, "data": all, "volumes": all } })).await;
        tenant.policy(json!({})).await;
        let corpus = objects(&tenant).await;
        let name = &tenant.name;
        kubectl(&["create", "clusterrole", name, "--verb=get,patch", "--resource=clustersandboxpolicies.paddock.dev"], "").unwrap();
        kubectl(&["create", "clusterrolebinding", name, &format!("--clusterrole={name}"), "--user=wide-carl"], "").unwrap();
        let carls: Api<ClusterSandboxPolicy> = Api::all(user("wide-carl").await);
        let by_carl = json!({ "spec": { "limits": { "maxTimeoutSeconds": 60 } } });
        eventually("he may", || async { carls.patch(name, &PatchParams::default(), &Patch::Merge(&by_carl)).await }).await;
        let by_cluster = json!({ "policyRef": { "kind": "ClusterSandboxPolicy", "name": name } });
        let ask = |capability: &str, object: &str| asking("ls /paddock/*/*", &json!({ capability: [object] })).with(by_cluster.clone());
        for (kind, _, capability, object) in OBJECTS {
            let refused = eventually("his policy decides", || async {
                let run = tenant.run(ask(capability, object)).await;
                if status(&run).phase == Some(Phase::Succeeded) { Err("that of before") } else { Ok(run) }
            })
            .await;
            assert_refused(&refused, &Reason::CapabilityForbidden);
            let told = format!("wide-carl, who wrote ClusterSandboxPolicy {name}, may not read the {kind} {object}");
            assert_eq!(status(&refused).message.unwrap(), told);
        }
        // A right in the namespace of the tenant is none to what is in that of its sandboxes.
        let_get(&tenant, "wide-carl", "persistentvolumeclaims", &["corpus"]).await;
        assert_refused(&tenant.run(ask("volumes", "corpus")).await, &Reason::CapabilityForbidden);
        let of_sandboxes = ["--namespace", &tenant.sandbox()];
        kubectl(&[&["create", "role", "carl", "--verb=get", "--resource=persistentvolumeclaims"], &of_sandboxes[..]].concat(), "").unwrap();
        kubectl(&[&["create", "rolebinding", "carl", "--role=carl", "--user=wide-carl"], &of_sandboxes[..]].concat(), "").unwrap();
        may_get(&tenant.sandbox(), "wide-carl", "persistentvolumeclaims", "corpus", true).await;
        assert_end(&tenant.run(ask("volumes", "corpus")).await, &Phase::Succeeded, &Reason::Succeeded);
        corpus.remove().await;
        // Once he may, so may the runs.
        let_read(&tenant, "wide-carl", &["smtp"]).await;
        assert_end(&tenant.run(ask("secrets", "smtp")).await, &Phase::Succeeded, &Reason::Succeeded);
        kubectl(&["delete", "clusterrolebinding,clusterrole", name], "").unwrap();
        tenant.no_cluster_policy().await;
    })
    .await;
}

#[tokio::test]
async fn a_requester_who_loses_the_right_while_a_run_waits_is_given_nothing_any_more() {
    granting("unread", |tenant| async move {
        let corpus = objects(&tenant).await;
        tenant.bind("unread-jane", "paddock-edit").await;
        let jane: Api<ScriptRun> = Api::namespaced(user("unread-jane").await, &tenant.name);
        tenant.policy_with(json!({ "suspend": "Queue" })).await;
        tenant.policy_is_seen("limited").await;
        let mut all = Vec::new();
        for (kind, resource, capability, name) in OBJECTS {
            let_get(&tenant, "unread-jane", resource, &[name]).await;
            let run = ScriptRun::new(capability, serde_json::from_value(asking("true", &json!({ capability: [name] })).0).unwrap());
            let waiting = eventually("she may create runs", || async { jane.create(&PostParams::default(), &run).await }).await;
            tenant.until(&waiting, "Queued", |status| status.phase == Some(Phase::Queued)).await;
            all.push((waiting, format!("the requester may not read the {kind} {name}")));
        }
        for (_, resource, _, name) in OBJECTS {
            let_get_no_more(&tenant, "unread-jane", resource, name).await;
        }
        tenant.policy(json!({})).await;
        for (waiting, message) in all {
            let refused = tenant.finished(&waiting).await;
            assert_refused(&refused, &Reason::CapabilityForbidden);
            assert_eq!(status(&refused).message.unwrap(), message);
        }
        corpus.remove().await;
    })
    .await;
}

#[tokio::test]
async fn where_the_operator_has_no_right_it_says_which_role_to_bind() {
    namespace("unbound", json!({}), |tenant| async move {
        let all = json!([{ "selector": {} }]);
        tenant.cluster_policy(json!({ "capabilities": { "secrets": all, "data": all } })).await;
        tenant.policy(json!({})).await;
        secret(&tenant, "smtp", json!({}), VALUE).await;
        config_map(&tenant, "prices", "1").await;
        for (capabilities, role) in
            [(json!({ "secrets": ["smtp"] }), "paddock-secret-reader"), (json!({ "data": ["prices"] }), "paddock-source-reader")]
        {
            let refused = tenant.run(asking("true", &capabilities)).await;
            assert_refused(&refused, &Reason::CapabilityForbidden);
            let message = status(&refused).message.unwrap();
            let told = format!("bind the ClusterRole {role} in this namespace to the ServiceAccount paddock-system/paddock-operator");
            assert!(message.starts_with("Paddock may not read the ") && message.ends_with(&told), "{message}");
        }
        tenant.no_cluster_policy().await;
    })
    .await;
}

#[tokio::test]
async fn data_that_changes_needs_another_approval_and_a_rotated_secret_does_not() {
    granting("data", |tenant| async move {
        secret(&tenant, "smtp", json!({}), VALUE).await;
        config_map(&tenant, "prices", "1\n").await;
        tenant.policy_with(json!({ "approvals": [{ "name": "four-eyes" }] })).await;
        tenant.bind("data-anna", "paddock-approver").await;
        let approvals: Api<ScriptApproval> = Api::namespaced(user("data-anna").await, &tenant.name);
        let approve = |digest: String| {
            let approvals = approvals.clone();
            async move {
                let approval: ScriptApproval = serde_json::from_value(json!({
                    "apiVersion": "paddock.dev/v1alpha1", "kind": "ScriptApproval",
                    "metadata": { "generateName": "a-" }, "spec": { "digest": digest, "decision": "Approve" },
                }))
                .unwrap();
                eventually("she may", || async { approvals.create(&PostParams::default(), &approval).await }).await;
            }
        };
        let ask = || asking("cat /paddock/data/prices/eur.csv", &json!({ "secrets": ["smtp"], "data": ["prices"] }));
        let awaiting = |run: ScriptRun| {
            let tenant = tenant.clone();
            async move {
                let run = tenant.until(&run, "AwaitingApproval", |status| status.phase == Some(Phase::AwaitingApproval)).await;
                status(&run).approval.unwrap().digest
            }
        };
        let waits = tenant.create(ask()).await;
        let first = awaiting(waits.clone()).await;
        config_map(&tenant, "prices", "2\n").await;
        let run = tenant.create(ask()).await;
        let second = awaiting(run.clone()).await;
        assert_ne!(first, second);
        // The one that waits would see the changed data too: what was approved of it counts for nothing.
        approve(first.clone()).await;
        let is_of_the_second =
            |status: &paddock_crds::ScriptRunStatus| status.approval.as_ref().is_some_and(|approval| approval.digest == second);
        let waits = tenant.until(&waits, "it would read the changed data", is_of_the_second).await;
        assert_eq!(status(&waits).phase, Some(Phase::AwaitingApproval));
        let secrets: Api<Secret> = Api::namespaced(tenant.client.clone(), &tenant.name);
        let rotated = Patch::Merge(json!({ "stringData": { "password": "another" } }));
        secrets.patch("smtp", &PatchParams::default(), &rotated).await.unwrap();
        approve(second.clone()).await;
        let run = tenant.finished(&run).await;
        assert_eq!(stdout(&run), "2\n");
        assert_eq!(status(&run).approval.unwrap().digest, second);
    })
    .await;
}

#[tokio::test]
async fn names_that_are_no_names_do_not_get_in() {
    granting("names", |tenant| async move {
        for name in ["../pods/x", "a/b", "A", ""] {
            let script = asking("true", &json!({ "secrets": [name] }));
            let mut run = ScriptRun::new("x", serde_json::from_value(script.0).unwrap());
            run.metadata.namespace = Some(tenant.name.clone());
            assert!(tenant.runs().create(&PostParams::default(), &run).await.is_err(), "{name}");
        }
        let nine: Vec<String> = (0..9).map(|number| format!("s{number}")).collect();
        let script = asking("true", &json!({ "secrets": nine }));
        let run = ScriptRun::new("x", serde_json::from_value(script.0).unwrap());
        assert!(tenant.runs().create(&PostParams::default(), &run).await.is_err());
    })
    .await;
}

#[tokio::test]
async fn what_was_given_is_still_masked_after_the_operator_began_anew() {
    granting("anew", |tenant| async move {
        secret(&tenant, "smtp", json!({}), VALUE).await;
        let script = "sleep 6; cat /paddock/secrets/smtp/password";
        let run = tenant.create(asking(script, &json!({ "secrets": ["smtp"] }))).await;
        tenant.until(&run, "Running", |status| status.phase == Some(Phase::Running)).await;
        let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(tenant.client.clone(), harness::OPERATOR_NAMESPACE);
        for pod in operators(&tenant.client).await {
            pods.delete(&pod.name_any(), &DeleteParams::default()).await.unwrap();
        }
        let run = tenant.finished_within(&run, std::time::Duration::from_secs(120)).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        assert_eq!(stdout(&run), "[masked:secret:smtp]");
    })
    .await;
}

/// What is small in YAML may be large in JSON, and what one run may be given many may ask for at once.
#[tokio::test]
async fn large_objects_do_not_exhaust_the_operator() {
    granting("large", |tenant| async move {
        let bells = "\\a".repeat(1_000_000);
        let names: Vec<String> = (0..8).map(|number| format!("bell{number}")).collect();
        for name in &names {
            let yaml = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{k: \"{bells}\"}}\n");
            let request = http::Request::post(format!("/api/v1/namespaces/{}/configmaps", tenant.name))
                .header("content-type", "application/yaml")
                .body(yaml.into_bytes())
                .unwrap();
            tenant.client.request_text(request).await.unwrap();
        }
        let together = futures::future::join_all((0..60).map(|_| tenant.run(asking("true", &json!({ "data": names }))))).await;
        for run in together {
            assert_refused(&run, &Reason::CapabilityUnusable);
        }
        // One alone is within the bounds, and is given.
        let run = tenant.run(asking("wc -c < /paddock/data/bell0/k", &json!({ "data": ["bell0"] }))).await;
        assert_eq!(stdout(&run), "1000000\n");
        // Beside this test another has the operator begin anew, for another reason.
        let pods = operators(&tenant.client).await;
        let ended = pods.iter().flat_map(|pod| pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten()));
        let mut ended = ended.filter_map(|container| container.last_state.as_ref()?.terminated.as_ref()?.reason.as_deref());
        assert!(!ended.any(|reason| reason == "OOMKilled"), "the operator was ended for its memory");
    })
    .await;
}
