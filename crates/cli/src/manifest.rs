//! The ScriptRun that a command line asks for. Pure: the files' contents come in as text.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use kube::api::ObjectMeta;
use paddock_crds::{PolicyKind, PolicyRef, Script, ScriptRun, ScriptRunSpec, Source};
use serde_json::{Map, Value};

use crate::arguments::Run;

const BASELINE: &str = "baseline";
/// Names of objects have at most 253 characters; generated ones get 5 more.
const MAX_NAME: usize = 200;

/// What was read for a command line.
pub(crate) struct Texts {
    /// Of the file to run.
    pub(crate) file: String,
    /// Of `--input`, without the `@`.
    pub(crate) input: Option<String>,
}

/// Where `--input` is to be read from.
pub(crate) fn input_file(run: &Run) -> Option<&Path> {
    run.input.as_deref()?.strip_prefix('@').map(Path::new)
}

/// The run, checked as far as can be without the cluster.
pub(crate) fn script_run(run: &Run, texts: Texts) -> Result<ScriptRun> {
    let mut made = if is_manifest(&run.file) { of_manifest(run, &texts.file)? } else { of_script(run, texts.file)? };
    if let Some(policy) = &run.policy {
        made.spec.policy_ref = policy_ref(policy)?;
    }
    if let Some(runtime) = &run.runtime {
        made.spec.script.runtime.clone_from(runtime);
    }
    if let Some(text) = &texts.input {
        made.spec.script.input = Some(serde_json::from_str(text).context("--input is no JSON; text needs quotes of its own: '\"text\"'")?);
    }
    for assignment in &run.set {
        set(made.spec.script.input.get_or_insert_with(|| Value::Object(Map::new())), assignment)?;
    }
    if !run.arg.is_empty() {
        made.spec.script.args.clone_from(&run.arg);
    }
    made.spec.timeout_seconds = run.timeout.or(made.spec.timeout_seconds);
    made.spec.ttl_seconds_after_finished = run.ttl.or(made.spec.ttl_seconds_after_finished);
    if let Some(name) = &run.name {
        made.metadata.name = Some(name.clone());
        made.metadata.generate_name = None;
    }
    Ok(made)
}

fn extension(file: &Path) -> Option<&str> {
    file.extension().and_then(|extension| extension.to_str())
}

fn is_manifest(file: &Path) -> bool {
    matches!(extension(file), Some("yaml" | "yml" | "json"))
}

fn of_manifest(run: &Run, text: &str) -> Result<ScriptRun> {
    let file = run.file.display();
    let value: Value = serde_saphyr::from_str(text).with_context(|| format!("{file} is no YAML"))?;
    let kind = value["kind"].as_str().unwrap_or_default();
    ensure!(kind == "ScriptRun", "{file} must hold one ScriptRun, and holds {}", if kind.is_empty() { "no object" } else { kind });
    let api_version = format!("{}/{}", paddock_crds::GROUP, paddock_crds::VERSION);
    let given = value["apiVersion"].as_str().unwrap_or_default();
    ensure!(given == api_version, "{file} is of apiVersion {given:?}; this program knows {api_version}");
    let mut made: ScriptRun = serde_json::from_value(value.clone()).with_context(|| format!("{file} is no ScriptRun"))?;
    if let Some(field) = unknown(&value["spec"], &serde_json::to_value(&made.spec)?, "spec") {
        bail!("{file}: there is no field {field}");
    }
    made.status = None;
    Ok(made)
}

/// The first field of `given` that is not in `kept`, which was made of it. Empty values are not kept, and free-form ones are kept whole.
fn unknown(given: &Value, kept: &Value, path: &str) -> Option<String> {
    let (Value::Object(given), Value::Object(kept)) = (given, kept) else { return None };
    given.iter().find_map(|(name, value)| {
        let path = format!("{path}.{name}");
        match kept.get(name) {
            Some(kept) => unknown(value, kept, &path),
            None if is_empty(value) => None,
            None => Some(path),
        }
    })
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

fn of_script(run: &Run, text: String) -> Result<ScriptRun> {
    let runtime = match (&run.runtime, runtime_of(&run.file)) {
        (Some(runtime), _) => runtime.clone(),
        (None, Some(runtime)) => runtime.to_owned(),
        (None, None) => {
            bail!("cannot tell the runtime of {} by its name: give --runtime, for example --runtime python", run.file.display())
        }
    };
    ensure!(!text.is_empty(), "{} is empty", run.file.display());
    let spec = ScriptRunSpec {
        end_user: None,
        policy_ref: PolicyRef { kind: PolicyKind::ClusterSandboxPolicy, name: BASELINE.into() },
        script: Script {
            runtime,
            source: Source { inline: Some(text), config_map_key_ref: None },
            args: Vec::new(),
            input: None,
            input_schema: None,
        },
        capabilities: None,
        resources: None,
        timeout_seconds: None,
        grace_period_seconds: None,
        priority: None,
        cancel: None,
        ttl_seconds_after_finished: None,
    };
    let mut made = ScriptRun::new("", spec);
    made.metadata = ObjectMeta { generate_name: Some(format!("{}-", name_of(&run.file))), ..ObjectMeta::default() };
    Ok(made)
}

/// The runtimes of the chart's baseline.
fn runtime_of(file: &Path) -> Option<&'static str> {
    match extension(file)? {
        "py" => Some("python"),
        "js" | "mjs" => Some("javascript"),
        "ts" | "mts" => Some("typescript"),
        "sh" => Some("shell"),
        "bash" => Some("bash"),
        _ => None,
    }
}

/// What the name of a file becomes in the name of an object.
fn name_of(file: &Path) -> String {
    let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_lowercase();
    let plain: String = stem.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(MAX_NAME).collect();
    let plain = plain.trim_matches('-');
    if plain.is_empty() { "run".to_owned() } else { plain.to_owned() }
}

pub(crate) fn policy_ref(policy: &str) -> Result<PolicyRef> {
    let (kind, name) = match policy.split_once('/') {
        None => (PolicyKind::SandboxPolicy, policy),
        Some(("cluster" | "clustersandboxpolicy" | "ClusterSandboxPolicy" | "csbp", name)) => (PolicyKind::ClusterSandboxPolicy, name),
        Some(("sandboxpolicy" | "SandboxPolicy" | "sbp", name)) => (PolicyKind::SandboxPolicy, name),
        Some((kind, _)) => {
            bail!("--policy {policy}: there is no kind of policy {kind}; NAME is one of the namespace, cluster/NAME one of the cluster")
        }
    };
    ensure!(!name.is_empty(), "--policy {policy}: there is no name");
    Ok(PolicyRef { kind, name: name.to_owned() })
}

/// Sets `NAME.NAME=VALUE` in an object.
fn set(input: &mut Value, assignment: &str) -> Result<()> {
    let (path, value) = assignment.split_once('=').with_context(|| format!("--set {assignment}: write NAME=VALUE"))?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    let mut place = input;
    for name in path.split('.') {
        ensure!(!name.is_empty(), "--set {assignment}: a name is empty");
        let Value::Object(fields) = place else { bail!("--set {assignment}: there is no object to set {name} in") };
        place = fields.entry(name).or_insert_with(|| Value::Object(Map::new()));
    }
    *place = value;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use rstest::rstest;
    use serde_json::json;

    use super::*;
    use crate::arguments::{Arguments, Command};

    fn asked(words: &[&str]) -> Run {
        let arguments = Arguments::try_parse_from([&["kubectl-paddock", "run"], words].concat()).expect("a command line");
        let Command::Run(run) = arguments.command else { panic!("run") };
        *run
    }

    fn made(words: &[&str], file: &str, input: Option<&str>) -> Result<Value> {
        let texts = Texts { file: file.into(), input: input.map(Into::into) };
        script_run(&asked(words), texts).map(|run| serde_json::to_value(run).expect("JSON"))
    }

    #[test]
    fn a_script_becomes_a_run() {
        let words = ["My_Report.py", "-a", "--fast", "-a", "x", "--timeout", "7", "--set", "name=world", "--set", "deep.er=[1]"];
        let made = made(&words, "print(1)", None).expect("a run");
        let spec = json!({
            "policyRef": { "kind": "ClusterSandboxPolicy", "name": "baseline" },
            "script": {
                "runtime": "python", "source": { "inline": "print(1)" }, "args": ["--fast", "x"],
                "input": { "name": "world", "deep": { "er": [1] } },
            },
            "timeoutSeconds": 7,
        });
        assert_eq!((&made["spec"], &made["metadata"]), (&spec, &json!({ "generateName": "my-report-" })));
    }

    #[test]
    fn a_manifest_is_taken_as_it_is_but_for_what_is_said() {
        let text = "apiVersion: paddock.dev/v1alpha1\nkind: ScriptRun\nmetadata: {name: given}\nspec:\n  policyRef: {kind: SandboxPolicy, name: p}\n  script: {runtime: shell, source: {inline: 'true'}, input: {a: 1}}\n";
        let made = made(&["run.yaml", "--set", "b=2", "--policy", "cluster/other"], text, None).expect("a run");
        assert_eq!(made["spec"]["script"]["input"], json!({ "a": 1, "b": 2 }));
        assert_eq!(made["spec"]["policyRef"], json!({ "kind": "ClusterSandboxPolicy", "name": "other" }));
        assert_eq!(made["metadata"]["name"], "given");
    }

    #[rstest]
    #[case::runtime(&["notes.txt"], "x", None, "give --runtime")]
    #[case::empty(&["a.py"], "", None, "a.py is empty")]
    #[case::input(&["a.py", "--input", "x"], "x", Some("x"), "--input is no JSON")]
    #[case::set(&["a.py", "--set", "x"], "x", None, "write NAME=VALUE")]
    #[case::set_in_text(&["a.py", "--set", "a=1", "--set", "a.b=2"], "x", None, "there is no object to set b in")]
    #[case::kind_of_policy(&["a.py", "--policy", "role/x"], "x", None, "cluster/NAME")]
    #[case::kind(&["a.yaml"], "kind: Pod", None, "and holds Pod")]
    #[case::slip(&["a.yaml"], "apiVersion: paddock.dev/v1alpha1\nkind: ScriptRun\nmetadata: {}\nspec: {policyRef: {kind: SandboxPolicy, name: p}, script: {runtime: shell, source: {inline: x}}, timoutSeconds: 5}", None, "no field spec.timoutSeconds")]
    #[case::version(&["a.yaml"], "apiVersion: paddock.dev/v1\nkind: ScriptRun", None, "this program knows paddock.dev/v1alpha1")]
    #[case::nothing(&["a.yaml"], "", None, "holds no object")]
    fn what_cannot_be_is_said_with_what_to_do(#[case] words: &[&str], #[case] file: &str, #[case] input: Option<&str>, #[case] told: &str) {
        let error = format!("{:#}", made(words, file, input).expect_err("an error"));
        assert!(error.contains(told), "{error}");
    }

    #[rstest]
    #[case("-", "run")]
    #[case("...", "run")]
    #[case("Größe 2.py", "gr--e-2")]
    fn any_file_gives_a_name(#[case] file: &str, #[case] expected: &str) {
        assert_eq!(name_of(Path::new(file)), expected);
    }
}
