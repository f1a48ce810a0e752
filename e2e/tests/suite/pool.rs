//! Sandboxes that begin before there is a run for them.

use crate::harness::{Script, Tenant, assert_end, eventually, eventually_within, kubectl, namespace, status, stderr, stdout, tenant};
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use paddock_crds::{ColdReason, ConditionStatus, Phase, PoolReason, Reason, RunPath, SandboxPool, ScriptRun};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

fn pools(tenant: &Tenant) -> Api<SandboxPool> {
    Api::namespaced(tenant.client.clone(), &tenant.name)
}

/// A pool for runs that name the baseline, or what `spec` says.
pub async fn make_pool(tenant: &Tenant, runtime: &str, replicas: i32, spec: Value) -> SandboxPool {
    let mut pool = json!({
        "apiVersion": "paddock.dev/v1alpha1", "kind": "SandboxPool", "metadata": { "name": runtime },
        "spec": { "policyRef": { "kind": "ClusterSandboxPolicy", "name": "baseline" }, "runtime": runtime, "replicas": replicas },
    });
    for (field, value) in spec.as_object().unwrap() {
        pool["spec"][field] = value.clone();
    }
    pools(tenant).create(&PostParams::default(), &serde_json::from_value(pool).unwrap()).await.unwrap()
}

pub async fn delete_pool(tenant: &Tenant, name: &str) {
    pools(tenant).delete(name, &DeleteParams::default()).await.unwrap();
}

/// Waits until a pool says so.
pub async fn pool_is(tenant: &Tenant, name: &str, what: &str, holds: impl Fn(&SandboxPool) -> bool) -> SandboxPool {
    eventually(what, || async {
        let pool = pools(tenant).get(name).await.unwrap();
        if pool.status.is_some() && holds(&pool) { Ok(pool) } else { Err(pool.status) }
    })
    .await
}

pub fn reason(pool: &SandboxPool) -> Option<(ConditionStatus, PoolReason)> {
    let status = pool.status.as_ref()?;
    status.conditions.first().map(|condition| (condition.status, condition.reason.clone()))
}

pub async fn filled(tenant: &Tenant, name: &str) -> SandboxPool {
    pool_is(tenant, name, "the pool is filled", |pool| {
        let is_full = pool.status.as_ref().is_some_and(|status| status.free == status.wanted);
        is_full
            && pool.spec.replicas.is_none_or(|wanted| pool.status.as_ref().is_some_and(|status| status.free == wanted))
            && reason(pool) == Some((ConditionStatus::True, PoolReason::Filled))
    })
    .await
}

/// UIDs of the sandboxes of pools that are not on their way out.
pub async fn sandboxes(tenant: &Tenant) -> BTreeSet<String> {
    let pods: Vec<Pod> = tenant.pods().list(&ListParams::default().labels("paddock.dev/pool-uid")).await.unwrap().items;
    pods.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).filter_map(|pod| pod.uid()).collect()
}

pub fn pod_uid(run: &ScriptRun) -> String {
    status(run).pod.unwrap().uid
}

pub fn path(run: &ScriptRun) -> (Option<RunPath>, Option<ColdReason>) {
    let status = status(run);
    (status.path, status.cold_because)
}

pub const WARM: (Option<RunPath>, Option<ColdReason>) = (Some(RunPath::Warm), None);

fn cold(why: ColdReason) -> (Option<RunPath>, Option<ColdReason>) {
    (Some(RunPath::Cold), Some(why))
}

#[tokio::test]
async fn a_run_is_given_a_sandbox_that_waits_and_another_follows() {
    tenant("pool", |tenant| async move {
        make_pool(&tenant, "python", 2, json!({})).await;
        filled(&tenant, "python").await;
        let waiting = sandboxes(&tenant).await;
        assert_eq!(waiting.len(), 2);
        let text = "import json, os, sys\n\
                    print(__name__, __file__, sys.argv, json.load(sys.stdin), os.environ['PADDOCK_INPUT'], os.getcwd(), os.listdir('/workspace'))\n\
                    json.dump({'answer': 42}, open(os.environ['PADDOCK_RESULT'], 'w'))\n";
        let given = json!({ "script": { "input": { "name": "world" }, "args": ["a b"] } });
        let run = tenant.run(Script::python(text).with(given.clone())).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        assert_eq!(path(&run), WARM);
        assert!(waiting.contains(&pod_uid(&run)), "{:?}", run.status);
        // What a script finds around it is what it finds in a sandbox that was made for it.
        let other = tenant.run(Script::python(text).with(given).with(json!({ "resources": { "memory": "200Mi" } }))).await;
        assert_eq!(path(&other), cold(ColdReason::Resources));
        assert_eq!(stdout(&run), stdout(&other));
        assert_eq!(status(&run).result.unwrap().output, Some(json!({ "answer": 42 })));
        filled(&tenant, "python").await;
        let after = eventually("the sandbox of the run is gone", || async {
            let after = sandboxes(&tenant).await;
            if after.contains(&pod_uid(&run)) { Err(after) } else { Ok(after) }
        })
        .await;
        assert_eq!(after.intersection(&waiting).count(), 1, "{after:?} {waiting:?}");
        delete_pool(&tenant, "python").await;
        eventually("those that wait go with their pool", || async {
            let left = sandboxes(&tenant).await;
            if left.is_empty() { Ok(()) } else { Err(left) }
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn what_no_sandbox_that_waits_can_be_begins_at_once_and_says_why() {
    tenant("unfit", |tenant| async move {
        make_pool(&tenant, "shell", 1, json!({})).await;
        filled(&tenant, "shell").await;
        let long = tenant.run(Script::shell("true").with(json!({ "timeoutSeconds": 299 }))).await;
        assert_end(&long, &Phase::Succeeded, &Reason::Succeeded);
        assert_eq!(path(&long), cold(ColdReason::Resources));
        let of_no_pool = tenant.run(Script::python("pass")).await;
        assert_eq!(path(&of_no_pool), (Some(RunPath::Cold), None));
        // The one that waits is taken, and the next run does not wait for another.
        let slow = tenant.create(Script::shell("sleep 20")).await;
        tenant.until(&slow, "it runs", |status| status.phase == Some(Phase::Running)).await;
        let none = Patch::Merge(json!({ "spec": { "replicas": 0 } }));
        pools(&tenant).patch("shell", &PatchParams::default(), &none).await.unwrap();
        pool_is(&tenant, "shell", "nothing waits", |pool| pool.status.as_ref().is_some_and(|status| status.replicas == 0)).await;
        let next = tenant.run(Script::shell("echo next")).await;
        assert_end(&next, &Phase::Succeeded, &Reason::Succeeded);
        let slow = tenant.patch(&slow, json!({ "spec": { "cancel": true } })).await;
        let slow = tenant.finished(&slow).await;
        assert_end(&slow, &Phase::Cancelled, &Reason::Cancelled);
        assert_eq!((path(&slow), path(&next)), (WARM, cold(ColdReason::NoneFree)));
    })
    .await;
}

#[tokio::test]
async fn what_is_mounted_needs_a_sandbox_of_its_own() {
    namespace("mounted", json!({}), |tenant| async move {
        tenant.cluster_policy(json!({ "capabilities": { "secrets": [{ "name": "key" }] } })).await;
        let by_policy = json!({ "policyRef": { "kind": "ClusterSandboxPolicy", "name": tenant.name } });
        tenant.let_the_operator_read("secrets", "paddock-secret-reader").await;
        let secret: Secret =
            serde_json::from_value(json!({ "metadata": { "name": "key" }, "stringData": { "value": "hunter2" } })).unwrap();
        Api::namespaced(tenant.client.clone(), &tenant.name).create(&PostParams::default(), &secret).await.unwrap();
        make_pool(&tenant, "shell", 1, by_policy.clone()).await;
        filled(&tenant, "shell").await;
        let script = Script::shell("wc -c < /paddock/secrets/key/value").with(by_policy);
        let run = tenant.run(script.with(json!({ "capabilities": { "secrets": ["key"] } }))).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        assert_eq!((stdout(&run).as_str(), path(&run)), ("7\n", cold(ColdReason::Data)));
    })
    .await;
}

/// Each run plants a marker wherever it can, and looks for those of the others.
#[tokio::test]
async fn a_sandbox_serves_one_run_and_is_gone() {
    tenant("single", |tenant| async move {
        make_pool(&tenant, "shell", 3, json!({})).await;
        filled(&tenant, "shell").await;
        let text = "cat /workspace/marker /dev/shm/marker /paddock/job/marker /dev/termination-log 2>/dev/null\n\
                    ps -e -o args= 2>/dev/null | grep [m]arker-process\n\
                    for place in /workspace /dev/shm /paddock/job; do echo marker > $place/marker; done 2>/dev/null\n\
                    echo marker > /dev/termination-log\n\
                    sh -c 'sleep 30; : marker-process' >/dev/null 2>&1 &\n\
                    ps -e -o args= | grep -q [m]arker-process && echo planted";
        let mut used = BTreeSet::new();
        let mut warm = 0;
        for _ in 0..8 {
            let run = tenant.run(Script::shell(text)).await;
            assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
            assert_eq!(stdout(&run), "planted\n");
            assert!(used.insert(pod_uid(&run)), "a sandbox was given to two runs");
            warm += usize::from(path(&run) == WARM);
        }
        assert!(warm >= 3, "{warm} of 8 were given a sandbox that waited");
    })
    .await;
}

#[tokio::test]
async fn a_script_ends_in_a_sandbox_that_waited_as_in_any() {
    tenant("ends", |tenant| async move {
        make_pool(&tenant, "shell", 4, json!({})).await;
        filled(&tenant, "shell").await;
        let large = "y".repeat(500_000);
        let (failed, late, kept, taken) = tokio::join!(
            tenant.run(Script::shell("echo out; echo err >&2; exit 7")),
            tenant.run(Script::shell("echo begun; sleep 60").with(json!({ "timeoutSeconds": 2, "gracePeriodSeconds": 1 }))),
            tenant
                .run(Script::shell("wc -c; echo changed > $0 || echo kept; ls /paddock/job").with(json!({ "script": { "input": large } }))),
            tenant.run(Script::shell("kill -9 1; kill -9 $PPID; sleep 60").with(json!({ "timeoutSeconds": 3 }))),
        );
        assert_end(&failed, &Phase::Failed, &Reason::Failed);
        assert_eq!((stdout(&failed).as_str(), stderr(&failed).as_str()), ("out\n", "err\n"));
        assert_end(&late, &Phase::TimedOut, &Reason::TimedOut);
        assert_eq!(stdout(&late), "begun\n");
        assert_end(&kept, &Phase::Succeeded, &Reason::Succeeded);
        assert_eq!(stdout(&kept), "500002\nkept\ninput.json\njob.json\nscript\n");
        assert!(matches!(status(&taken).phase, Some(Phase::RunnerKilled | Phase::TimedOut)), "{:?}", taken.status);
        for run in [&failed, &late, &kept, &taken] {
            assert_eq!(path(run), WARM, "{:?}", run.status);
        }
    })
    .await;
}

#[tokio::test]
async fn a_policy_that_changes_replaces_what_waits() {
    tenant("replaced", |tenant| async move {
        tenant.policy(json!({ "default": { "memory": "96Mi" } })).await;
        let by_policy = json!({ "policyRef": { "kind": "SandboxPolicy", "name": "limited" } });
        make_pool(&tenant, "shell", 2, by_policy.clone()).await;
        filled(&tenant, "shell").await;
        let before = sandboxes(&tenant).await;
        tenant.policy(json!({ "default": { "memory": "112Mi" } })).await;
        eventually("all that waited were replaced", || async {
            let now = sandboxes(&tenant).await;
            if now.len() == 2 && now.is_disjoint(&before) { Ok(()) } else { Err((now, before.clone())) }
        })
        .await;
        filled(&tenant, "shell").await;
        let run = tenant.run(Script::shell("true").with(by_policy.clone())).await;
        assert_eq!(path(&run), WARM);
        // What is not offered any more does not wait, nor what is denied, and the pool says why.
        tenant.policy_with(json!({ "limits": {}, "runtimes": [{ "name": "python" }] })).await;
        let pool = pool_is(&tenant, "shell", "nothing is granted", |pool| {
            reason(pool) == Some((ConditionStatus::False, PoolReason::NotGranted))
                && pool.status.as_ref().is_some_and(|status| status.replicas == 0)
        })
        .await;
        assert!(pool.status.unwrap().conditions[0].message.contains("shell"));
        tenant.policy_with(json!({ "limits": {} })).await;
        filled(&tenant, "shell").await;
        tenant.policy_with(json!({ "limits": {}, "deny": { "images": ["*"] } })).await;
        let pool = pool_is(&tenant, "shell", "its image is denied", |pool| {
            reason(pool) == Some((ConditionStatus::False, PoolReason::NotGranted))
                && pool.status.as_ref().is_some_and(|status| status.replicas == 0)
        })
        .await;
        let message = pool.status.unwrap().conditions[0].message.clone();
        assert!(message.contains("is denied (SandboxPolicy/limited: deny.images)"), "{message}");
    })
    .await;
}

/// As a leader leaves it that ends, or whose connection does, right after it has made the namespace.
#[tokio::test]
async fn a_sandbox_namespace_that_was_left_half_done_is_made_whole_for_a_pool() {
    tenant("half-done", |tenant| async move {
        let namespaces: Api<Namespace> = Api::all(tenant.client.clone());
        let uid = namespaces.get(&tenant.name).await.unwrap().uid().unwrap();
        let restricted = ["enforce", "warn", "audit"].map(|mode| format!("pod-security.kubernetes.io/{mode}: restricted")).join(", ");
        let half = format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: {}, labels: {{{restricted}, pod-security.kubernetes.io/enforce-version: latest, paddock.dev/sandbox-of: {}, app.kubernetes.io/managed-by: paddock-operator}}, annotations: {{paddock.dev/tenant-uid: {uid}, paddock.dev/cluster-policies: baseline}}}}}}",
            tenant.sandbox(),
            tenant.name
        );
        kubectl(&["create", "--as", "system:serviceaccount:paddock-system:paddock-operator", "--filename", "-"], &half).unwrap();
        let (sandbox, quota) = (tenant.sandbox(), format!("nothing-{}", tenant.name));
        let nothing = "--hard=count/rolebindings.rbac.authorization.k8s.io=0";
        kubectl(&["create", "quota", &quota, nothing, "--namespace", &sandbox], "").unwrap();
        make_pool(&tenant, "shell", 1, json!({})).await;
        // Until it was tried in vain, and the pods in there are known to be unknown.
        eventually("it was tried in vain", || async {
            let logs = kubectl(&["logs", "deployment/paddock-operator", "--namespace", "paddock-system", "--since=60s"], "").unwrap();
            let is_unlisted = |line: &str| line.contains("cannot list resource") && line.contains(&sandbox);
            if logs.contains(&quota) && logs.lines().any(is_unlisted) { Ok(()) } else { Err("not yet") }
        })
        .await;
        kubectl(&["delete", "quota", &quota, "--namespace", &sandbox], "").unwrap();
        filled(&tenant, "shell").await;
    })
    .await;
}

#[tokio::test]
async fn a_pool_gives_way_to_runs_where_a_quota_is_short() {
    namespace("short", json!({}), |tenant| async move {
        tenant.cluster_policy(json!({ "limits": { "maxConcurrent": 2 } })).await;
        let by_policy = json!({ "policyRef": { "kind": "ClusterSandboxPolicy", "name": tenant.name } });
        make_pool(&tenant, "shell", 2, by_policy.clone()).await;
        filled(&tenant, "shell").await;
        let before = sandboxes(&tenant).await;
        let run = tenant.run(Script::python("print('ran')").with(by_policy)).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        assert_eq!(path(&run), (Some(RunPath::Cold), None));
        let left = sandboxes(&tenant).await;
        assert_eq!(before.difference(&left).count(), 1, "{before:?} {left:?}");
        // Once nobody needs the room, it is filled again.
        eventually("another follows", || async {
            let now = sandboxes(&tenant).await;
            if now.len() == 2 { Ok(()) } else { Err(now) }
        })
        .await;
        filled(&tenant, "shell").await;
        // More than there is room for.
        let more = Patch::Merge(json!({ "spec": { "replicas": 3 } }));
        pools(&tenant).patch("shell", &PatchParams::default(), &more).await.unwrap();
        let told = |pool: &SandboxPool| {
            let free = pool.status.as_ref().map(|status| status.free);
            free == Some(2) && reason(pool) == Some((ConditionStatus::False, PoolReason::QuotaExceeded))
        };
        pool_is(&tenant, "shell", "there is no room for a third", told).await;
    })
    .await;
}

/// As a HorizontalPodAutoscaler does it, which wants a selector.
#[tokio::test]
async fn a_pool_is_scaled_by_its_subresource() {
    tenant("scaled", |tenant| async move {
        make_pool(&tenant, "shell", 0, json!({})).await;
        filled(&tenant, "shell").await;
        let patch = Patch::Merge(json!({ "spec": { "replicas": 1 } }));
        pools(&tenant).patch_scale("shell", &PatchParams::default(), &patch).await.unwrap();
        let pool = filled(&tenant, "shell").await;
        assert_eq!(pool.spec.replicas, Some(1));
        let scale = pools(&tenant).get_scale("shell").await.unwrap();
        let status = scale.status.unwrap();
        assert_eq!((status.replicas, status.selector), (1, Some(format!("paddock.dev/pool-uid={}", pool.uid().unwrap()))));
    })
    .await;
}

#[tokio::test]
async fn a_pool_grows_with_what_is_asked_of_it() {
    tenant("follows", |tenant| async move {
        let pool = |spec: Value| {
            let mut pool = json!({
                "apiVersion": "paddock.dev/v1alpha1", "kind": "SandboxPool", "metadata": { "name": "shell" },
                "spec": { "policyRef": { "kind": "ClusterSandboxPolicy", "name": "baseline" }, "runtime": "shell" },
            });
            pool["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
            serde_json::from_value::<SandboxPool>(pool).unwrap()
        };
        let create = |spec: Value| {
            let (pool, api) = (pool(spec), pools(&tenant));
            async move { api.create(&PostParams::default(), &pool).await.map_err(|error| error.to_string()) }
        };
        for (spec, expected) in [
            (json!({}), "either replicas, or both min and max"),
            (json!({ "min": 1 }), "either replicas, or both min and max"),
            (json!({ "replicas": 1, "min": 1, "max": 2 }), "either replicas, or both min and max"),
            (json!({ "min": 3, "max": 2 }), "min must not be greater than max"),
        ] {
            let refused = create(spec).await.unwrap_err();
            assert!(refused.contains(expected), "{refused}");
        }
        create(json!({ "min": 1, "max": 8 })).await.unwrap();
        filled(&tenant, "shell").await;
        assert_eq!(sandboxes(&tenant).await.len(), 1);
        let runs = futures::future::join_all((0..3).map(|_| tenant.run(Script::shell("true")))).await;
        assert_eq!(runs.iter().filter(|run| path(run) == WARM).count(), 1);
        let grown = pool_is(&tenant, "shell", "three at once, and a quarter more", |pool| {
            pool.status.as_ref().is_some_and(|status| (status.wanted, status.free) == (4, 4))
        })
        .await;
        assert_eq!(reason(&grown), Some((ConditionStatus::True, PoolReason::Filled)));
        let runs = futures::future::join_all((0..4).map(|_| tenant.run(Script::shell("true")))).await;
        assert!(runs.iter().all(|run| path(run) == WARM), "{:?}", runs.iter().map(path).collect::<Vec<_>>());
        // Whoever scales it says replicas, and it has none.
        let scaled =
            pools(&tenant).patch_scale("shell", &PatchParams::default(), &Patch::Merge(json!({ "spec": { "replicas": 2 } }))).await;
        assert!(scaled.unwrap_err().to_string().contains("either replicas, or both min and max"));
    })
    .await;
}

/// The room that a pool takes is that of the namespace: who administers it decides, who works in it sees.
#[tokio::test]
async fn who_administers_a_namespace_makes_pools_in_it() {
    tenant("whose", |tenant| async move {
        let (admin, editor) = (tenant.bind("pool-admin", "admin").await, tenant.bind("pool-editor", "edit").await);
        let pool = make_pool(&tenant, "shell", 0, json!({})).await;
        let of = |client: kube::Client| -> Api<SandboxPool> { Api::namespaced(client, &tenant.name) };
        let patch = Patch::Merge(json!({ "spec": { "replicas": 1 } }));
        eventually("the binding is in force", || async { of(editor.clone()).get("shell").await.map_err(|error| error.to_string()) }).await;
        let refused = of(editor.clone()).patch_scale("shell", &PatchParams::default(), &patch).await.unwrap_err();
        assert!(matches!(refused, kube::Error::Api(answer) if answer.code == 403));
        let refused = of(editor).create(&PostParams::default(), &SandboxPool::new("own", pool.spec)).await.unwrap_err();
        assert!(matches!(refused, kube::Error::Api(answer) if answer.code == 403));
        assert_eq!(of(admin.clone()).get_scale("shell").await.unwrap().spec.unwrap().replicas.unwrap_or(0), 0);
        of(admin).patch_scale("shell", &PatchParams::default(), &patch).await.unwrap();
        filled(&tenant, "shell").await;
    })
    .await;
}

/// More runs at once than sandboxes that wait: those that find none begin at once, and say why.
#[tokio::test]
async fn a_burst_beyond_a_pool_goes_on_cold_and_waits_for_no_refill() {
    tenant("burst", |tenant| async move {
        make_pool(&tenant, "shell", 3, json!({})).await;
        filled(&tenant, "shell").await;
        let waiting = sandboxes(&tenant).await;
        let mut created = Vec::new();
        for _ in 0..9 {
            created.push(tenant.create(Script::shell("echo done")).await);
        }
        let mut paths = Vec::new();
        let mut given = BTreeSet::new();
        for run in &created {
            let run = tenant.finished(run).await;
            assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
            given.insert(pod_uid(&run));
            paths.push(path(&run));
        }
        assert_eq!(given.len(), 9, "each had a sandbox of its own");
        assert_eq!(given.intersection(&waiting).count(), 3, "those that waited were all given away: {paths:?}");
        assert!(paths.iter().all(|path| *path == WARM || *path == cold(ColdReason::NoneFree)), "{paths:?}");
        assert!(paths.contains(&cold(ColdReason::NoneFree)), "{paths:?}");
        delete_pool(&tenant, "shell").await;
    })
    .await;
}

#[tokio::test]
async fn what_has_waited_too_long_is_replaced() {
    tenant("aged", |tenant| async move {
        make_pool(&tenant, "shell", 1, json!({ "maxAgeSeconds": 60 })).await;
        filled(&tenant, "shell").await;
        let first = sandboxes(&tenant).await;
        eventually_within(Duration::from_secs(150), "another waits in its place", || async {
            let now = sandboxes(&tenant).await;
            if now.len() == 1 && now.is_disjoint(&first) { Ok(()) } else { Err(now) }
        })
        .await;
        filled(&tenant, "shell").await;
        delete_pool(&tenant, "shell").await;
    })
    .await;
}
