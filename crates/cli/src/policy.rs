//! Commands on policies: stop and resume them, and hold them against cases.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use kube::Api;
use kube::api::Patch;
use paddock_crds::{ClusterSandboxPolicy, PolicyKind, Requester, SandboxPolicy, ScriptRun, ScriptRunSpec};
use paddock_policy::{Found, Object, ObjectKind, TenantFacts};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cluster::{Cluster, explained, patching};
use crate::exit::Exit;
use crate::explain::{Known, Text, Written, check_known, explain, nobody};
use crate::manifest::policy_ref;

/// `kubectl paddock suspend` and `resume`: sets `spec.suspend` of a policy, or takes it away.
pub(crate) async fn suspend(cluster: &Cluster, policy: &str, how: Option<&str>) -> Result<Exit> {
    let named = policy_ref(policy)?;
    let patch = Patch::Merge(json!({ "spec": { "suspend": how } }));
    let parameters = patching();
    let patched = match named.kind {
        PolicyKind::SandboxPolicy => {
            let api: Api<SandboxPolicy> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
            api.patch(&named.name, &parameters, &patch).await.map(drop)
        }
        PolicyKind::ClusterSandboxPolicy => {
            let api: Api<ClusterSandboxPolicy> = Api::all(cluster.client.clone());
            api.patch(&named.name, &parameters, &patch).await.map(drop)
        }
    };
    patched.map_err(|error| explained(error, "change the policy"))?;
    let told = match how {
        Some("Kill") => "is suspended: nothing more is admitted, and what runs is ended",
        Some(_) => "is suspended: nothing more is admitted, and what runs goes on",
        None => "is not suspended",
    };
    println!("{}/{} {told}", named.kind.as_str(), named.name);
    Ok(Exit::Done)
}

/// A file of cases.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Cases {
    /// Files with policies, from the folder of this one.
    policies: Vec<PathBuf>,
    /// Of the namespace in which the runs would be.
    #[serde(default)]
    namespace_labels: BTreeMap<String, String>,
    #[serde(rename = "cases")]
    all: Vec<Case>,
}

#[derive(Deserialize, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Case {
    name: String,
    /// The spec of a ScriptRun.
    run: Value,
    /// Labels of the run.
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// Labels of the Secrets that there are, by name.
    #[serde(default)]
    secrets: BTreeMap<String, BTreeMap<String, String>>,
    /// Labels of the ConfigMaps that there are, by name.
    #[serde(default)]
    data: BTreeMap<String, BTreeMap<String, String>>,
    /// Labels of the PersistentVolumeClaims that there are in the sandbox namespace, by name.
    #[serde(default)]
    volumes: BTreeMap<String, BTreeMap<String, String>>,
    /// Who creates it.
    requester: Option<Requester>,
    /// Name of the namespace.
    namespace: Option<String>,
    /// When it is decided on; as it says nothing, now.
    now: Option<Timestamp>,
    /// Other labels than those above.
    namespace_labels: Option<BTreeMap<String, String>>,
    /// `Allowed`, or a reason.
    expect: String,
    /// A part of the message.
    message: Option<String>,
}

/// `kubectl paddock policy test`: 0 if every case comes out as it is expected to.
pub(crate) async fn test(file: &Path) -> Result<Exit> {
    let shown = file.display();
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {shown}"))?;
    let cases: Cases = serde_saphyr::from_str(&text).with_context(|| format!("{shown} is no file of cases"))?;
    ensure!(!cases.all.is_empty(), "{shown} has no cases");
    let folder = file.parent().unwrap_or(Path::new("."));
    let files: Vec<PathBuf> = cases.policies.iter().map(|policy| folder.join(policy)).collect();
    let written = Written::read(&files)?;
    let mut failed = 0;
    for case in &cases.all {
        match check(&written, case, &cases.namespace_labels).await.with_context(|| format!("{shown}: {}", case.name))? {
            None => println!("ok     {}", case.name),
            Some(came) => {
                failed += 1;
                println!("FAILED {}: {came}", case.name);
            }
        }
    }
    println!("{} of {} cases as expected", cases.all.len() - failed, cases.all.len());
    Ok(if failed == 0 { Exit::Done } else { Exit::Failed })
}

/// What came instead of what was expected.
async fn check(written: &Written, case: &Case, labels: &BTreeMap<String, String>) -> Result<Option<String>> {
    check_known(&case.expect)?;
    let spec: ScriptRunSpec = serde_json::from_value(case.run.clone()).context("run is no spec of a ScriptRun")?;
    let labels = case.namespace_labels.as_ref().unwrap_or(labels);
    let mut run = ScriptRun::new("case", spec);
    run.metadata.labels = Some(case.labels.clone());
    let namespace = TenantFacts { name: case.namespace.as_deref().unwrap_or("default"), labels };
    let requester = case.requester.clone().unwrap_or_else(nobody);
    let objects = ObjectKind::ALL.into_iter().flat_map(|kind| {
        let known = match kind {
            ObjectKind::Secret => &case.secrets,
            ObjectKind::ConfigMap => &case.data,
            ObjectKind::PersistentVolumeClaim => &case.volumes,
        };
        known.iter().map(move |(name, labels)| (Object { kind, name: name.clone() }, Found::Labels(labels.clone())))
    });
    let objects = objects.collect();
    let (now, text) = (case.now.unwrap_or_else(Timestamp::now), Text::of(written, &run, labels, None).await?);
    let known = Known { namespace, requester: &requester, objects: &(objects, BTreeMap::new()), text, now };
    let explanation = explain(written, &run, known)?;
    let reason = explanation.reason.clone().unwrap_or_else(|| "Allowed".into());
    let message = explanation.message.unwrap_or_default();
    let is_expected = reason == case.expect && case.message.as_ref().is_none_or(|part| message.contains(part.as_str()));
    Ok((!is_expected).then(|| format!("expected {}, got {reason}: {message}", case.expect)))
}
