//! Installation, upgrade, rollback and uninstallation, as an administrator does them, while runs are in flight.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::disturb::leader;
use crate::harness::internet::names;
use crate::harness::page::{steps, type_};
use crate::harness::{OPERATOR_NAMESPACE, Script, Tenant, admin, assert_end, eventually, kubectl, layout, status, stdout, tenant};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use paddock_crds::generate::CRD_VERSION;
use paddock_crds::{ConditionType, Phase, Reason, ScriptRun};
use paddock_e2e::cluster::command::run;
use paddock_e2e::cluster::{component, images};
use serde_json::json;
use tokio::sync::{Mutex, MutexGuard};

static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
const CRD: &str = "scriptruns.paddock.dev";

fn helm(arguments: &[&str]) -> anyhow::Result<String> {
    let mut helm = Command::new(component::build_one(&layout(), "helm").unwrap());
    let namespace = format!("--namespace={OPERATOR_NAMESPACE}");
    helm.env("KUBECONFIG", layout().kubeconfig())
        .args(&arguments[..1])
        .args([&namespace, "--timeout=300s", "--wait"])
        .args(&arguments[1..]);
    run(&mut helm).map_err(|error| error.context(errands()))
}

/// What the Jobs of the chart said: Helm tells of a failed one only that it failed.
fn errands() -> String {
    let mut told = String::new();
    for job in ["paddock-crds", "paddock-admission", "paddock-uninstall"] {
        let selector = format!("--selector=job-name={job}");
        for words in [["get", "pods", "--output=wide"], ["logs", "--prefix", "--tail=20"]] {
            told += &kubectl(&[&["--namespace", OPERATOR_NAMESPACE, &selector], &words[..]].concat(), "")
                .unwrap_or_else(|error| format!("{error:#}\n"));
        }
    }
    told
}

/// A chart and the images that belong to it.
struct Release {
    chart: PathBuf,
    operator: String,
    runner: String,
}

impl Release {
    fn of(chart: PathBuf, binaries: &Path) -> Self {
        let layout = layout();
        let names = images::load_own(&layout, &component::built(&layout).unwrap(), binaries).unwrap();
        let tag = |name: &str| names.iter().find_map(|image| image.strip_prefix(&format!("docker.io/paddock/{name}:"))).unwrap().to_owned();
        Self { chart, operator: tag("operator"), runner: tag("runner") }
    }

    /// This one.
    fn current() -> Self {
        let clone = layout().clone;
        Self::of(clone.join("charts/paddock"), &clone.join("target/x86_64-unknown-linux-gnu/release"))
    }

    /// The one before, if this clone has it: `hack/previous` builds it.
    fn previous() -> Option<Self> {
        let folder = layout().clone.join("target/previous");
        folder.join("commit").exists().then(|| Self::of(folder.join("source/charts/paddock"), &folder.join("bin")))
    }

    fn install(&self) {
        let chart = self.chart.to_string_lossy();
        let (operator, runner) = (format!("image.tag={}", self.operator), format!("runner.tag={}", self.runner));
        let mut arguments = vec!["upgrade", "--install", "paddock", &chart, "--force-conflicts"];
        for value in ["image.pullPolicy=Never", "sandbox.imagePullPolicy=never", &operator, &runner] {
            arguments.extend(["--set", value]);
        }
        helm(&arguments).unwrap_or_else(|error| panic!("{error:#}"));
    }
}

/// Alone on the cluster, with this release installed.
async fn alone() -> (MutexGuard<'static, ()>, Client) {
    let guard = ONE_AT_A_TIME.lock().await;
    let client = admin().await;
    Release::current().install();
    leader(&client).await;
    (guard, client)
}

/// A script that runs for some seconds and tells whether it was run once.
fn lasting(seconds: u32) -> Script {
    Script::shell(&format!("echo begin; sleep {seconds}; echo end")).with(json!({ "timeoutSeconds": 200 }))
}

/// One that holds its slot until it is asked to end.
fn until_asked() -> Script {
    Script::shell("trap 'echo end; exit' TERM; echo begin; while :; do sleep 0.2; done").with(json!({ "timeoutSeconds": 200 }))
}

async fn running(tenant: &Tenant, script: Script) -> ScriptRun {
    let run = tenant.create(script).await;
    tenant.until(&run, "Started", |status| status.is_true(&ConditionType::Started)).await
}

async fn assert_ran_once(tenant: &Tenant, run: &ScriptRun) {
    let run = tenant.finished(run).await;
    assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
    assert_was_started_once(&run);
}

/// Whoever leads now has it in hand.
async fn assert_ends_when_asked(tenant: &Tenant, run: &ScriptRun) {
    let run = tenant.patch(run, json!({ "spec": { "cancel": true } })).await;
    let run = tenant.finished(&run).await;
    assert_end(&run, &Phase::Cancelled, &Reason::Cancelled);
    assert_was_started_once(&run);
}

fn assert_was_started_once(run: &ScriptRun) {
    assert_eq!(stdout(run), "begin\nend\n");
    let starts = status(run).audit.iter().filter(|event| event.type_ == "dev.paddock.run.started.v1").count();
    assert_eq!(starts, 1, "{:?}", run.status);
}

/// What was begun before the release was changed goes on after it.
async fn still_run(tenant: &Tenant, runs: [&ScriptRun; 2]) {
    for run in runs {
        let now = tenant.get(run).await;
        assert_eq!(status(&now).phase, Some(Phase::Running), "{:?}", now.status);
    }
}

async fn crd_version(client: &Client) -> Option<String> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    api.get(CRD).await.unwrap().metadata.annotations.unwrap_or_default().remove(CRD_VERSION)
}

#[tokio::test]
async fn the_chart_tests_itself() {
    let (_alone, client) = alone().await;
    // As the cluster of whoever installs it has it, and this one has not.
    names(&[("kubernetes.default.svc.cluster.local", Ipv4Addr::new(10, 214, 0, 1))]);
    let told = helm_test();
    assert!(told.contains("Succeeded: the script ended with exit code 0"), "{told}");
    assert!(told.contains("SandboxKernel        Holds"), "{told}");
    let namespaces: Api<Namespace> = Api::all(client);
    eventually("nothing of the test is left", || async {
        namespaces.get_opt("paddock-system-try").await.unwrap().map_or(Ok(()), |namespace| Err(namespace.metadata.deletion_timestamp))
    })
    .await;
}

fn helm_test() -> String {
    let mut helm = Command::new(component::build_one(&layout(), "helm").unwrap());
    helm.env("KUBECONFIG", layout().kubeconfig());
    run(helm.args(["test", "paddock", "--namespace", OPERATOR_NAMESPACE, "--logs", "--timeout", "300s"])).unwrap()
}

/// Whoever has only the README, in a folder with nothing but the charts: from `helm install` on a cluster without anything of Paddock's to a result.
#[tokio::test]
async fn a_first_result_comes_soon_after_the_installation() {
    let (_alone, client) = alone().await;
    let release = Release::current();
    remove_all(&client).await;
    // As on a cluster that has the handler alone: the chart makes the class.
    let classes: Api<RuntimeClass> = Api::all(client.clone());
    let class = classes.get("gvisor-nonet").await.unwrap();
    classes.delete("gvisor-nonet", &DeleteParams::default()).await.unwrap();
    let readme = std::fs::read_to_string(layout().clone.join("README.md")).unwrap();
    let section = readme.split("\n## ").find(|section| section.starts_with("Install it on a cluster")).unwrap();
    let values = section.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    // The images are those of the local cluster, which are on the node and nowhere else.
    let own = |name: &str, tag: &str| format!("{{repository: docker.io/paddock/{name}, tag: {tag}}}");
    let values = values
        .replace("{repository: REGISTRY/operator}", &own("operator", &release.operator))
        .replace("{repository: REGISTRY/runner}", &own("runner", &release.runner))
        .replace("REGISTRY", "docker.io/paddock");
    let folder = std::env::temp_dir().join(format!("paddock-stranger-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::os::unix::fs::symlink(layout().clone.join("charts"), folder.join("charts")).unwrap();
    std::fs::copy(layout().kubeconfig(), folder.join(".kubeconfig")).unwrap();
    std::fs::write(folder.join("values.yaml"), values).unwrap();
    let begin = Instant::now();
    let steps = steps(section);
    let shown: Vec<String> = steps.iter().map(|step| type_(&folder, &step.command)).collect();
    let elapsed = begin.elapsed();
    kubectl(&["delete", "namespace", "scripts", "--ignore-not-found", "--wait=false"], "").unwrap();
    std::fs::remove_dir_all(folder).unwrap();
    // Which goes with the release, and the cluster has it back.
    release.install();
    eventually("the class of the chart is gone", || async {
        classes.get_opt("gvisor-nonet").await.unwrap().map_or(Ok(()), |class| Err(class.metadata.deletion_timestamp))
    })
    .await;
    let metadata = ObjectMeta { name: class.metadata.name.clone(), ..ObjectMeta::default() };
    classes.create(&PostParams::default(), &RuntimeClass { metadata, ..class }).await.unwrap();
    assert!(steps[0].command.starts_with("helm install") && shown.last().unwrap().lines().any(|line| line == "hello"), "{shown:#?}");
    println!("the first result came {:.1} s after `helm install` began", elapsed.as_secs_f64());
    assert!(elapsed <= Duration::from_secs(120), "{elapsed:?}");
    leader(&client).await;
}

/// Helm leaves CRDs as they were at the first installation; the chart does not.
#[tokio::test]
async fn an_upgrade_brings_the_crds_along_and_never_takes_them_back() {
    let (_alone, client) = alone().await;
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let own = crd_version(&client).await.unwrap();
    let set = async |version: &str| {
        let mut crd = api.get(CRD).await.unwrap();
        crd.metadata.managed_fields = None;
        crd.metadata.annotations.get_or_insert_default().insert(CRD_VERSION.into(), version.into());
        crd.spec.versions[0].schema.as_mut().unwrap().open_api_v3_schema.as_mut().unwrap().description = Some("another".into());
        api.replace(CRD, &PostParams::default(), &crd).await.unwrap();
    };
    let description = async || {
        let crd = api.get(CRD).await.unwrap();
        crd.spec.versions[0].schema.clone().unwrap().open_api_v3_schema.unwrap().description.unwrap()
    };
    let before = description().await;
    set("0.0.1").await;
    Release::current().install();
    assert_eq!((crd_version(&client).await, description().await), (Some(own.clone()), before.clone()));
    set("99.0.0").await;
    Release::current().install();
    assert_eq!((crd_version(&client).await, description().await), (Some("99.0.0".into()), "another".into()), "a newer schema stays");
    set("0.0.1").await;
    Release::current().install();
    assert_eq!((crd_version(&client).await, description().await), (Some(own), before));
}

/// Everything of Paddock, objects too.
async fn remove_all(client: &Client) {
    helm(&["uninstall", "paddock"]).unwrap();
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for plural in ["scriptruns", "sandboxpolicies", "clustersandboxpolicies", "scriptapprovals", "sandboxpools", "diagnoses"] {
        let name = format!("{plural}.paddock.dev");
        api.delete(&name, &DeleteParams::default()).await.unwrap();
        eventually("the CRD is gone", || async {
            api.get_opt(&name).await.unwrap().map_or(Ok(()), |crd| Err(crd.metadata.deletion_timestamp))
        })
        .await;
    }
}

/// A status as a newer version might write it.
async fn of_a_newer_version(tenant: &Tenant) -> ScriptRun {
    let run = tenant.run(Script::shell("true")).await;
    let api = tenant.runs();
    let again = ScriptRun::new("from-the-future", run.spec.clone());
    let created = api.create(&PostParams::default(), &again).await.unwrap();
    let name = created.name_any();
    eventually("the newer version has written", || async {
        let current = api.get(&name).await.unwrap();
        let status = json!({ "phase": "Hibernating", "message": "as only a newer version knows" });
        let patch = json!({ "metadata": { "resourceVersion": current.resource_version() }, "status": status });
        api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await
    })
    .await
}

#[tokio::test]
async fn an_upgrade_and_a_rollback_lose_nothing_and_run_nothing_twice() {
    let Some(previous) = Release::previous() else {
        let shallow = Command::new("git").args(["rev-parse", "--is-shallow-repository"]).current_dir(layout().clone).output();
        assert!(shallow.is_ok_and(|output| output.stdout != b"false\n"), "hack/previous builds the release before this one");
        eprintln!("skipped: this clone does not have the release before");
        return;
    };
    let (_alone, client) = alone().await;
    remove_all(&client).await;
    previous.install();
    leader(&client).await;
    assert_eq!(crd_version(&client).await, None, "the CRDs are those of the previous release");
    tenant("upgrade", |tenant| async move {
        let client = tenant.client.clone();
        eventually("runs are taken", || async {
            let run = tenant.run(Script::shell("true")).await;
            if status(&run).phase == Some(Phase::Succeeded) { Ok(()) } else { Err(status(&run).message) }
        })
        .await;
        tenant.policy(json!({ "maxConcurrent": 2, "maxTimeoutSeconds": 300 })).await;
        let limited = |script: Script| script.with(json!({ "policyRef": { "kind": "SandboxPolicy", "name": "limited" } }));
        let in_flight = running(&tenant, limited(until_asked())).await;
        let other = running(&tenant, limited(until_asked())).await;
        let waiting = tenant.create(limited(lasting(1))).await;
        tenant.until(&waiting, "Queued", |status| status.phase == Some(Phase::Queued)).await;

        Release::current().install();
        assert_eq!(crd_version(&client).await.as_deref(), Some(env!("CARGO_PKG_VERSION")));
        still_run(&tenant, [&in_flight, &other]).await;
        for run in [&in_flight, &other] {
            assert_ends_when_asked(&tenant, run).await;
        }
        assert_ran_once(&tenant, &waiting).await;
        let bash = tenant.run(Script::shell("echo ${BASH_VERSION%%.*}").with(json!({ "script": { "runtime": "bash" } }))).await;
        assert_end(&bash, &Phase::Succeeded, &Reason::Succeeded);

        let in_flight = running(&tenant, limited(until_asked())).await;
        let other = running(&tenant, limited(until_asked())).await;
        let waiting = tenant.create(limited(lasting(1))).await;
        tenant.until(&waiting, "Queued", |status| status.phase == Some(Phase::Queued)).await;
        // The operator of that release tells nothing of a policy: Helm's own `--wait` would wait for it to say what it has seen.
        helm(&["rollback", "paddock", "1", "--force-conflicts", "--wait=legacy"]).unwrap();
        leader(&client).await;
        still_run(&tenant, [&in_flight, &other]).await;
        assert_eq!(crd_version(&client).await.as_deref(), Some(env!("CARGO_PKG_VERSION")), "a rollback leaves the CRDs");
        let future = of_a_newer_version(&tenant).await;
        for run in [&in_flight, &other] {
            assert_ends_when_asked(&tenant, run).await;
        }
        assert_ran_once(&tenant, &waiting).await;
        assert_eq!(tenant.get(&future).await.status, future.status, "the older operator leaves it alone");
        tenant.runs().delete(&future.name_any(), &DeleteParams::default()).await.unwrap();
    })
    .await;
    Release::current().install();
    leader(&client).await;
}

#[tokio::test]
async fn an_uninstallation_leaves_nothing_that_waits_for_an_operator() {
    let (_alone, client) = alone().await;
    tenant("uninstall", |tenant| async move {
        tenant.policy(json!({ "maxConcurrent": 2, "maxTimeoutSeconds": 300 })).await;
        let limited = |script: Script| script.with(json!({ "policyRef": { "kind": "SandboxPolicy", "name": "limited" } }));
        let long = running(&tenant, limited(lasting(180))).await;
        let short = running(&tenant, limited(lasting(6))).await;
        // One of them takes the slot of the short one while the chart waits.
        let waiting = [tenant.create(limited(lasting(180))).await, tenant.create(limited(lasting(180))).await];
        tenant.until(&waiting[1], "Queued", |status| status.phase == Some(Phase::Queued)).await;

        helm(&["uninstall", "paddock"]).unwrap();

        assert_ran_once(&tenant, &short).await;
        let [one, other] = waiting;
        let (one, other) = (tenant.get(&one).await, tenant.get(&other).await);
        let has_started = |run: &ScriptRun| status(run).is_true(&ConditionType::Started);
        let (taken, untouched) = if has_started(&one) { (one, other) } else { (other, one) };
        for run in [&tenant.get(&long).await, &taken] {
            assert_end(run, &Phase::Lost, &Reason::Lost);
            assert_eq!(status(run).message.as_deref(), Some("Paddock was uninstalled while the script ran"));
        }
        assert!(!has_started(&untouched) && !status(&untouched).is_true(&ConditionType::Finished));
        for run in tenant.runs().list(&ListParams::default()).await.unwrap() {
            assert_eq!(run.metadata.finalizers.clone().unwrap_or_default(), Vec::<String>::new(), "{}", run.name_any());
        }
        let namespaces: Api<Namespace> = Api::all(tenant.client.clone());
        eventually("no sandbox namespace is left", || async {
            let left = namespaces.list(&ListParams::default().labels("paddock.dev/sandbox-of")).await.unwrap();
            if left.items.is_empty() { Ok(()) } else { Err(left.items.iter().map(kube::ResourceExt::name_any).collect::<Vec<_>>()) }
        })
        .await;
        let left = kubectl(
            &[
                "get",
                "all,serviceaccounts,roles,rolebindings,jobs,networkpolicies,poddisruptionbudgets,secrets,leases",
                "-n",
                OPERATOR_NAMESPACE,
                "-o",
                "name",
            ],
            "",
        )
        .unwrap();
        assert!(!left.contains("paddock"), "{left}");
        let left =
            kubectl(&["get", "clusterroles,clusterrolebindings,validatingadmissionpolicies,mutatingadmissionpolicies", "-o", "name"], "")
                .unwrap();
        assert!(!left.contains("paddock"), "{left}");
        // Nothing holds an object back.
        tenant.runs().delete(&long.name_any(), &DeleteParams::default()).await.unwrap();
        assert!(tenant.runs().get_opt(&long.name_any()).await.unwrap().is_none(), "it is gone at once");

        // Whoever installs Paddock again finds the results, and what had not started is run.
        Release::current().install();
        leader(&tenant.client).await;
        tenant.until(&untouched, "Started", |status| status.is_true(&ConditionType::Started)).await;
        tenant.patch(&untouched, json!({ "spec": { "cancel": true } })).await;
        assert_end(&tenant.finished(&untouched).await, &Phase::Cancelled, &Reason::Cancelled);
        assert_ran_once(&tenant, &short).await;
    })
    .await;
    leader(&client).await;
}
