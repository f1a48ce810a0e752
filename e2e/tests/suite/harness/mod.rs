//! A tenant namespace for each test, and waiting for what is to be seen. A test that fails prints its runs, their events, the pods and
//! the operator's log.

pub mod cert_manager;
pub mod disturb;
pub mod internet;
pub mod page;

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::{Event, Namespace, Pod};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, ResourceExt as _};
use paddock_crds::{
    ClusterSandboxPolicy, ConditionType, Phase, PoolReason, Reason, SandboxPolicy, SandboxPool, ScriptRun, ScriptRunStatus,
};
use paddock_e2e::cluster::component;
use paddock_e2e::cluster::layout::Layout;
use paddock_protocol::Line;
use serde_json::{Value, json};

/// Longest time that anything in these tests may take.
pub const PATIENCE: Duration = Duration::from_secs(180);
pub const OPERATOR_NAMESPACE: &str = "paddock-system";

pub fn layout() -> Layout {
    let clone = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
    Layout::new(clone, std::env::var_os("PADDOCK_CACHE").map(PathBuf::from), &home)
}

/// The local cluster's, or that of another cluster with the chart on it.
pub fn kubeconfig() -> PathBuf {
    std::env::var_os("PADDOCK_E2E_KUBECONFIG").map_or_else(|| layout().kubeconfig(), PathBuf::from)
}

async fn config() -> Config {
    let path = kubeconfig();
    let kubeconfig = Kubeconfig::read_from(&path).unwrap_or_else(|_| panic!("no cluster: run `make e2e` ({} is missing)", path.display()));
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap()
}

/// The administrator.
pub async fn admin() -> Client {
    Client::try_from(config().await).unwrap()
}

/// Somebody else, by impersonation.
pub async fn user(name: &str) -> Client {
    member(name, &[]).await
}

/// Somebody else who is in these groups.
pub async fn member(name: &str, groups: &[&str]) -> Client {
    let mut config = config().await;
    config.auth_info.impersonate = Some(name.to_owned());
    config.auth_info.impersonate_groups = Some(["system:authenticated"].iter().chain(groups).map(|group| (*group).to_owned()).collect());
    Client::try_from(config).unwrap()
}

/// A namespace that may run scripts.
#[derive(Clone)]
pub struct Tenant {
    pub client: Client,
    pub name: String,
}

/// What a run is made from. `Script::python("print(1)")`, changed by the fields of its JSON.
pub struct Script(pub Value);

impl Script {
    fn of(runtime: &str, text: &str) -> Self {
        Self(json!({
            "policyRef": { "kind": "ClusterSandboxPolicy", "name": "baseline" },
            "script": { "runtime": runtime, "source": { "inline": text } },
            "timeoutSeconds": 30,
        }))
    }

    pub fn python(text: &str) -> Self {
        Self::of("python", text)
    }

    pub fn shell(text: &str) -> Self {
        Self::of("shell", text)
    }

    /// Merges `patch` into the spec.
    pub fn with(mut self, patch: Value) -> Self {
        merge(&mut self.0, patch);
        self
    }
}

fn merge(target: &mut Value, patch: Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(target.entry(key).or_insert(Value::Null), value);
            }
        }
        (target, patch) => *target = patch,
    }
}

/// Tenant namespaces of this process.
static MADE: AtomicUsize = AtomicUsize::new(0);

/// Runs a test in a tenant namespace of its own, which the baseline selects.
pub async fn tenant<F, T>(test: &str, body: F)
where
    F: FnOnce(Tenant) -> T,
    T: Future<Output = ()> + Send + 'static,
{
    namespace(test, json!({ "paddock.dev/tenant": "true" }), body).await;
}

/// The same with other labels.
pub async fn namespace<F, T>(test: &str, labels: Value, body: F)
where
    F: FnOnce(Tenant) -> T,
    T: Future<Output = ()> + Send + 'static,
{
    let client = admin().await;
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() % 10_000_000;
    let name = format!("t-{test}-{time}-{}", MADE.fetch_add(1, Ordering::Relaxed));
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace: Namespace = serde_json::from_value(json!({
        "metadata": { "name": name, "labels": labels }
    }))
    .unwrap();
    namespaces.create(&PostParams::default(), &namespace).await.unwrap();
    let tenant = Tenant { client, name };
    if std::env::var_os("PADDOCK_E2E_WARM").is_some() {
        tenant.warm().await;
    }
    let result = tokio::spawn(body(tenant.clone())).await;
    if let Err(error) = result {
        let panic = error.into_panic();
        tenant.tell_everything().await;
        // Again, at the end: where only the last lines of an output are kept, this is what must be in them.
        let message = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        eprintln!("--- failed: {}", message.unwrap_or_default());
        std::panic::resume_unwind(panic);
    }
    if std::env::var_os("KEEP_NAMESPACES").is_none() {
        let _ = namespaces.delete(&tenant.name, &DeleteParams::default()).await;
    }
}

impl Tenant {
    pub fn runs(&self) -> Api<ScriptRun> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// With `PADDOCK_E2E_WARM`, what runs of the baseline may be given waits in every namespace: what holds of runs must hold of those too.
    async fn warm(&self) {
        let api: Api<SandboxPool> = Api::namespaced(self.client.clone(), &self.name);
        for runtime in ["python", "shell"] {
            let pool = json!({
                "apiVersion": "paddock.dev/v1alpha1", "kind": "SandboxPool", "metadata": { "name": runtime },
                "spec": { "policyRef": { "kind": "ClusterSandboxPolicy", "name": "baseline" }, "runtime": runtime, "replicas": 2 },
            });
            api.create(&PostParams::default(), &serde_json::from_value(pool).unwrap()).await.unwrap();
        }
        let is_settled = |pool: &SandboxPool| {
            let condition = pool.status.as_ref().and_then(|status| status.conditions.first());
            condition.is_some_and(|condition| matches!(condition.reason, PoolReason::Filled | PoolReason::NotGranted))
        };
        eventually("what can wait in the namespace does", || async {
            let pools = api.list(&ListParams::default()).await.unwrap().items;
            if pools.iter().all(is_settled) { Ok(()) } else { Err(pools) }
        })
        .await;
    }

    pub fn sandbox(&self) -> String {
        format!("sbx-{}", self.name)
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.sandbox())
    }

    /// Creates a run.
    pub async fn create(&self, script: Script) -> ScriptRun {
        self.create_labelled(script, &[]).await
    }

    pub async fn create_labelled(&self, script: Script, labels: &[(&str, &str)]) -> ScriptRun {
        let mut run = object(script.0);
        run.labels_mut().extend(labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        self.runs().create(&PostParams::default(), &run).await.unwrap()
    }

    /// Creates a run and waits for its end.
    pub async fn run(&self, script: Script) -> ScriptRun {
        let run = self.create(script).await;
        self.finished(&run).await
    }

    pub async fn get(&self, run: &ScriptRun) -> ScriptRun {
        self.runs().get(&run.name_any()).await.unwrap()
    }

    /// Waits for the end of a run.
    pub async fn finished(&self, run: &ScriptRun) -> ScriptRun {
        let run = self.until(run, "Finished", |status| status.is_true(&ConditionType::Finished)).await;
        if std::env::var_os("PADDOCK_E2E_WARM").is_some() {
            eprintln!("path {:?} {:?}", status(&run).path, status(&run).cold_because);
        }
        run
    }

    /// Waits for the end of a run that has to wait for others.
    pub async fn finished_within(&self, run: &ScriptRun, patience: Duration) -> ScriptRun {
        eventually_within(patience, "Finished", || async {
            let run = self.get(run).await;
            if status(&run).is_true(&ConditionType::Finished) { Ok(run) } else { Err(run.status) }
        })
        .await
    }

    /// Waits until the status of a run is as `wanted` says.
    pub async fn until(&self, run: &ScriptRun, what: &str, wanted: impl Fn(&ScriptRunStatus) -> bool) -> ScriptRun {
        eventually(what, || async {
            let run = self.get(run).await;
            let holds = run.status.as_ref().is_some_and(&wanted);
            if holds { Ok(run) } else { Err(run.status) }
        })
        .await
    }

    /// Waits until the script of a run has put something out: `Started` says that it may run, and its interpreter comes later.
    pub async fn spoken(&self, run: &ScriptRun) -> ScriptRun {
        let pod = self.pod_of(run).await.name_any();
        // What the runner seals first is that it has the job and that the interpreter runs.
        let is_output = |line: &str| matches!(Line::parse(line.as_bytes()), Some(Line::Sealed { sequence, .. }) if sequence >= 2);
        eventually("it has put something out", || async {
            let log = self.pods().logs(&pod, &LogParams::default()).await.map_err(|error| error.to_string())?;
            if log.lines().any(is_output) { Ok(()) } else { Err(log) }
        })
        .await;
        self.get(run).await
    }

    /// Changes a run by a merge patch.
    pub async fn patch(&self, run: &ScriptRun, patch: Value) -> ScriptRun {
        self.runs().patch(&run.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap()
    }

    /// Gives `name` a ClusterRole in the namespace.
    pub async fn bind(&self, name: &str, role: &str) -> Client {
        let binding: RoleBinding = serde_json::from_value(json!({
            "metadata": { "generateName": "e2e-" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
            "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name }],
        }))
        .unwrap();
        let api: Api<RoleBinding> = Api::namespaced(self.client.clone(), &self.name);
        api.create(&PostParams::default(), &binding).await.unwrap();
        user(name).await
    }

    /// Gives `name` these verbs on one kind of Paddock's objects in the namespace.
    pub async fn role(&self, name: &str, resource: &str, verbs: &[&str]) {
        let role = json!({
            "metadata": { "name": name },
            "rules": [{ "apiGroups": ["paddock.dev"], "resources": [resource], "verbs": verbs }],
        });
        let roles: Api<Role> = Api::namespaced(self.client.clone(), &self.name);
        roles.create(&PostParams::default(), &serde_json::from_value(role).unwrap()).await.unwrap();
        let binding = json!({
            "metadata": { "name": name },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name },
            "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name }],
        });
        let bindings: Api<RoleBinding> = Api::namespaced(self.client.clone(), &self.name);
        bindings.create(&PostParams::default(), &serde_json::from_value(binding).unwrap()).await.unwrap();
    }

    /// Binds `paddock-source-reader` to the operator, and waits until that is in force.
    pub async fn let_the_operator_read_sources(&self) {
        self.let_the_operator_read("configmaps", "paddock-source-reader").await;
    }

    /// Binds a ClusterRole that reads a resource to the operator, and waits until that is in force.
    pub async fn let_the_operator_read(&self, resource: &str, role: &str) {
        let binding: RoleBinding = serde_json::from_value(json!({
            "metadata": { "name": role },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
            "subjects": [{ "kind": "ServiceAccount", "name": "paddock-operator", "namespace": OPERATOR_NAMESPACE }],
        }))
        .unwrap();
        let bindings: Api<RoleBinding> = Api::namespaced(self.client.clone(), &self.name);
        bindings.create(&PostParams::default(), &binding).await.unwrap();
        eventually("the binding is in force", || async {
            let attributes = ResourceAttributes {
                namespace: Some(self.name.clone()),
                verb: Some("get".into()),
                resource: Some(resource.into()),
                ..ResourceAttributes::default()
            };
            let user = Some(format!("system:serviceaccount:{OPERATOR_NAMESPACE}:paddock-operator"));
            let spec = SubjectAccessReviewSpec { resource_attributes: Some(attributes), user, ..SubjectAccessReviewSpec::default() };
            let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
            let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
            let allowed = reviews.create(&PostParams::default(), &review).await.unwrap().status.unwrap().allowed;
            if allowed { Ok(()) } else { Err("not yet") }
        })
        .await;
    }

    /// A SandboxPolicy `limited` in this namespace that offers both runtimes.
    pub async fn policy(&self, limits: Value) {
        self.policy_with(json!({ "limits": limits })).await;
    }

    /// The same, with anything in its spec.
    pub async fn policy_with(&self, rules: Value) {
        let api: Api<SandboxPolicy> = Api::namespaced(self.client.clone(), &self.name);
        let mut policy = json!({
            "apiVersion": "paddock.dev/v1alpha1", "kind": "SandboxPolicy", "metadata": { "name": "limited" },
            "spec": { "runtimes": [{ "name": "python" }, { "name": "shell" }] },
        });
        merge(&mut policy["spec"], rules);
        api.patch("limited", &PatchParams::apply("e2e").force(), &Patch::Apply(&policy)).await.unwrap();
    }

    /// Waits until the operator has looked at a SandboxPolicy as it is now.
    pub async fn policy_is_seen(&self, name: &str) {
        let api: Api<SandboxPolicy> = Api::namespaced(self.client.clone(), &self.name);
        eventually("the policy was looked at", || async {
            let policy = api.get(name).await.unwrap();
            let seen = policy.status.and_then(|status| status.observed_generation);
            if seen == policy.metadata.generation { Ok(()) } else { Err(seen) }
        })
        .await;
    }

    /// A ClusterSandboxPolicy for this namespace alone, named like it. One that allows offers what the chart's baseline offers.
    pub async fn cluster_policy(&self, rules: Value) {
        let api: Api<ClusterSandboxPolicy> = Api::all(self.client.clone());
        let mut policy = json!({
            "apiVersion": "paddock.dev/v1alpha1", "kind": "ClusterSandboxPolicy", "metadata": { "name": self.name },
            "spec": { "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": self.name } } },
        });
        if rules.get("effect").is_none() {
            policy["spec"]["runtimes"] = serde_json::to_value(api.get("baseline").await.unwrap().spec.rules.runtimes).unwrap();
        }
        merge(&mut policy["spec"], rules);
        api.patch(&self.name, &PatchParams::apply("e2e").force(), &Patch::Apply(&policy)).await.unwrap();
    }

    /// Deletes it.
    pub async fn no_cluster_policy(&self) {
        let api: Api<ClusterSandboxPolicy> = Api::all(self.client.clone());
        api.delete(&self.name, &DeleteParams::default()).await.unwrap();
    }

    /// The pod of a run, once it exists.
    pub async fn pod_of(&self, run: &ScriptRun) -> Pod {
        let stored = status(&self.get(run).await).pod.map(|pod| pod.name);
        let name = stored.unwrap_or_else(|| format!("sr-{}", run.uid().unwrap()));
        eventually("the pod of the run", || async { self.pods().get_opt(&name).await.ok().flatten().ok_or("no pod") }).await
    }

    async fn tell_everything(&self) {
        eprintln!("--- runs in {}", self.name);
        for run in self.runs().list(&ListParams::default()).await.map(|list| list.items).unwrap_or_default() {
            eprintln!("{}: {}", run.name_any(), serde_json::to_string(&run.status).unwrap_or_default());
        }
        for namespace in [self.name.clone(), self.sandbox()] {
            let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
            eprintln!("--- events in {namespace}");
            for event in events.list(&ListParams::default()).await.map(|list| list.items).unwrap_or_default() {
                eprintln!("{:?} {:?} {:?}", event.involved_object.name, event.reason, event.message);
            }
        }
        eprintln!("--- pods in {}", self.sandbox());
        for pod in self.pods().list(&ListParams::default()).await.map(|list| list.items).unwrap_or_default() {
            eprintln!("{}: {}", pod.name_any(), serde_json::to_string(&pod.status).unwrap_or_default());
            let params = LogParams { tail_lines: Some(20), ..LogParams::default() };
            eprintln!("{}", self.pods().logs(&pod.name_any(), &params).await.unwrap_or_default());
        }
        eprintln!("--- processes of the cluster");
        for (name, state) in paddock_e2e::cluster::lifecycle::status(&layout()) {
            eprintln!("{name}: {state}");
        }
        eprintln!("{}", kubectl(&["get", "nodes,pods", "--all-namespaces", "--output=wide"], "").unwrap_or_default());
        eprintln!("--- the operator's log");
        for pod in operators(&self.client).await {
            let api: Api<Pod> = Api::namespaced(self.client.clone(), OPERATOR_NAMESPACE);
            eprintln!("{}", serde_json::to_string(&pod.status).unwrap_or_default());
            let params = LogParams { tail_lines: Some(40), ..LogParams::default() };
            eprintln!("{}:\n{}", pod.name_any(), api.logs(&pod.name_any(), &params).await.unwrap_or_default());
        }
    }
}

fn object(spec: Value) -> ScriptRun {
    let mut run = ScriptRun::new("", serde_json::from_value(spec).unwrap());
    run.metadata.name = None;
    run.metadata.generate_name = Some("run-".into());
    run
}

/// The administrator's kubectl: for what this client cannot read.
pub fn kubectl(arguments: &[&str], input: &str) -> anyhow::Result<String> {
    let mut kubectl = std::process::Command::new(component::build_one(&layout(), "kubectl")?);
    kubectl.arg("--kubeconfig").arg(kubeconfig()).args(arguments);
    paddock_e2e::cluster::command::run_with(&mut kubectl, input.as_bytes())
}

/// The operator's pods that are not on their way out.
pub async fn operators(client: &Client) -> Vec<Pod> {
    let api: Api<Pod> = Api::namespaced(client.clone(), OPERATOR_NAMESPACE);
    let pods = api.list(&ListParams::default().labels("app.kubernetes.io/name=paddock")).await.unwrap();
    pods.items.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect()
}

/// Looks again and again until `look` gives a value; tells what was seen last when it never does.
pub async fn eventually<T, E, F>(what: &str, look: impl Fn() -> F) -> T
where
    E: Debug,
    F: Future<Output = Result<T, E>>,
{
    eventually_within(PATIENCE, what, look).await
}

/// The same with another patience.
pub async fn eventually_within<T, E, F>(patience: Duration, what: &str, look: impl Fn() -> F) -> T
where
    E: Debug,
    F: Future<Output = Result<T, E>>,
{
    let deadline = Instant::now() + patience;
    loop {
        match look().await {
            Ok(value) => return value,
            Err(seen) if Instant::now() > deadline => panic!("waited in vain for: {what}. Last seen: {seen:#?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

pub fn status(run: &ScriptRun) -> ScriptRunStatus {
    run.status.clone().unwrap_or_default()
}

pub fn stdout(run: &ScriptRun) -> String {
    status(run).result.and_then(|result| result.stdout).map(|stream| stream.text + &stream.tail.unwrap_or_default()).unwrap_or_default()
}

pub fn stderr(run: &ScriptRun) -> String {
    status(run).result.and_then(|result| result.stderr).map(|stream| stream.text + &stream.tail.unwrap_or_default()).unwrap_or_default()
}

/// Holds the end of a run against what is expected.
pub fn assert_end(run: &ScriptRun, phase: &Phase, reason: &Reason) {
    let status = status(run);
    let finished = status.condition(&ConditionType::Finished).map(|condition| condition.reason.clone());
    assert_eq!((status.phase.as_ref(), finished.as_ref()), (Some(phase), Some(reason)), "{:#?}", run.status);
    assert_eq!(status.is_true(&ConditionType::Stalled), *phase != Phase::Succeeded);
    assert!(status.condition(&ConditionType::Reconciling).is_none());
    let bytes = serde_json::to_vec(&status).unwrap().len();
    assert!(bytes <= 64 * 1024, "the status has {bytes} bytes");
}

pub fn assert_refused(run: &ScriptRun, reason: &Reason) {
    assert_end(run, &Phase::Refused, &Reason::Refused);
    let status = status(run);
    assert_eq!(status.condition(&ConditionType::Accepted).map(|condition| &condition.reason), Some(reason), "{status:#?}");
}
