//! What policies say of a run: with those of files, or with those of the cluster.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{ListParams, PostParams};
use kube::{Api, ResourceExt as _};
use paddock_crds::{
    ClusterSandboxPolicy, ConditionStatus, ConditionType, Decision, Effect, PolicyKind, PolicyRef, PolicyRules, Preflight, Reason,
    Requester, Risk, SandboxPolicy, ScriptRun, ScriptRunStatus, TakenPolicy, Verdict,
};
use paddock_policy::{
    Ask, AtGateway, Containment, Digests, Facts, Gateway, Hashes, ObjectKind, Policy, Refusal, Subject, TenantFacts, containment, demanded,
    digests, hash_of, input_demand, judge, judge_denied, judge_input, judge_preflight, judge_rules, risk, script_hash, selects,
};
use paddock_preflight::Question;
use serde::Serialize;
use serde_json::Value;

use crate::arguments::{Connection, Explain, Output, Run, Shown};
use crate::cluster::{Cluster, explained};
use crate::exit::Exit;
use crate::manifest::{Texts, policy_ref, script_run};
use crate::objects;
use crate::show::document;
use crate::stored::as_stored;
use crate::table::{Cell, plain, table};
use crate::terminal::{Tone, has_colours, printable};

/// Largest script, in bytes.
const MAX_SCRIPT: usize = 64 << 10;

/// Policies as they were written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Written {
    pub(crate) cluster: Vec<ClusterSandboxPolicy>,
    pub(crate) namespaced: Vec<SandboxPolicy>,
}

impl Written {
    /// Adds those of a file with one or more documents.
    pub(crate) fn add(&mut self, text: &str, file: &Path) -> Result<()> {
        let shown = file.display();
        let documents: Vec<Value> = serde_saphyr::from_multiple(text).with_context(|| format!("{shown} is no YAML"))?;
        // What `kubectl get -o yaml` writes of several is one list.
        let objects = documents.into_iter().flat_map(|mut value| match value["kind"].as_str() {
            Some("List" | "ClusterSandboxPolicyList" | "SandboxPolicyList") => {
                value["items"].as_array_mut().map(std::mem::take).unwrap_or_default()
            }
            _ => vec![value],
        });
        for value in objects.filter(|value| !value.is_null()) {
            let no_policy = || format!("{shown} holds a policy that cannot be read");
            match value["kind"].as_str().unwrap_or_default() {
                "ClusterSandboxPolicy" => self.cluster.push(serde_json::from_value(value).with_context(no_policy)?),
                "SandboxPolicy" => self.namespaced.push(serde_json::from_value(value).with_context(no_policy)?),
                kind => bail!("{shown} must hold policies alone, and holds {}", if kind.is_empty() { "no object" } else { kind }),
            }
        }
        Ok(())
    }

    /// Of files.
    pub(crate) fn read(files: &[PathBuf]) -> Result<Self> {
        let mut written = Self::default();
        for file in files {
            let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            written.add(&text, file)?;
        }
        Ok(written)
    }

    /// Those that take part in the decision on a run, in a namespace with these labels.
    fn taking_part(&self, run: &ScriptRun, labels: &BTreeMap<String, String>) -> Result<Vec<Policy>> {
        self.taking_part_for(&run.spec.policy_ref, labels)
    }

    fn taking_part_for(&self, named: &PolicyRef, labels: &BTreeMap<String, String>) -> Result<Vec<Policy>> {
        let mut taking_part = Vec::new();
        for policy in &self.cluster {
            let is_selected = selects(&policy.spec.namespace_selector, labels);
            if is_selected.map_err(|why| anyhow::anyhow!("ClusterSandboxPolicy {}: {why}", policy.name_any()))? {
                let spec = serde_json::to_value(&policy.spec)?;
                taking_part.push(used(PolicyKind::ClusterSandboxPolicy, policy, &spec, policy.spec.effect, &policy.spec.rules));
            }
        }
        let namespaced = self.namespaced.iter().filter(|policy| named.kind == PolicyKind::SandboxPolicy && policy.name_any() == named.name);
        for policy in namespaced.take(1) {
            let spec = serde_json::to_value(&policy.spec)?;
            taking_part.push(used(PolicyKind::SandboxPolicy, policy, &spec, Effect::Restrict, &policy.spec.rules));
        }
        Ok(taking_part)
    }
}

fn used(kind: PolicyKind, policy: &impl kube::ResourceExt, spec: &Value, effect: Effect, rules: &PolicyRules) -> Policy {
    let taken = TakenPolicy {
        kind,
        name: policy.name_any(),
        uid: policy.uid().unwrap_or_default(),
        author: policy.annotations().get("paddock.dev/author").cloned(),
        generation: policy.meta().generation.unwrap_or(0),
        hash: hash_of(spec),
    };
    Policy::new(taken, effect, rules.clone())
}

/// What came of it.
#[derive(Serialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Explanation {
    pub(crate) allowed: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<String>,
    pub(crate) policies: Vec<TakenPolicy>,
    pub(crate) decisions: Vec<Decision>,
    /// Of what is granted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) risk: Option<Risk>,
    /// What the text of the script shows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) preflight: Option<Preflight>,
    /// It is in a ConfigMap that was not at hand: what policies demand of it was not looked at, and rules saw it as `Unclear`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) not_read: bool,
    /// What approvals are bound to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) digest: Option<String>,
    /// With the schema in place of the input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) schema_digest: Option<String>,
}

impl Explanation {
    fn refused(self, refusal: Refusal) -> Self {
        Self { allowed: false, reason: Some(refusal.reason.to_string()), message: Some(refusal.message), ..self }
    }
}

/// What a decision is made on beside policies and run.
#[derive(Clone, Debug)]
pub(crate) struct Known<'a> {
    pub(crate) namespace: TenantFacts<'a>,
    pub(crate) requester: &'a Requester,
    /// What is known of the objects that it asks for.
    pub(crate) objects: &'a objects::Known,
    pub(crate) text: Text,
    pub(crate) now: Timestamp,
}

/// Decides as the operator does, but for what only it can tell: the content of ConfigMaps with scripts, whether an input satisfies its schemas, whether
/// authors and Paddock may read what is asked for, and whether there is room. Pure.
pub(crate) fn explain(written: &Written, run: &ScriptRun, known: Known<'_>) -> Result<Explanation> {
    let Known { namespace, requester, objects: (objects, data), text, now } = known;
    let policies = written.taking_part(run, namespace.labels)?;
    let outcome = judge(&policies, &run.spec.policy_ref, &Ask::of(&run.spec, objects.clone(), AtGateway::new(), Gateway::Installed));
    let taken = policies.iter().map(|policy| policy.taken.clone()).collect();
    let mut explanation = Explanation {
        allowed: true,
        reason: None,
        message: None,
        policies: taken,
        decisions: outcome.decisions,
        risk: None,
        preflight: None,
        not_read: false,
        digest: None,
        schema_digest: None,
    };
    let grant = match outcome.result {
        Ok(grant) => grant,
        Err(refusal) => return Ok(explanation.refused(refusal)),
    };
    let risk = risk(&grant.capabilities, text.shows());
    explanation.risk = Some(risk.clone());
    explanation.preflight = text.shows().cloned();
    let hash = run.spec.script.source.inline.as_ref().map(|text| script_hash(text.as_bytes()));
    let facts = Facts {
        script_hash: hash.as_deref(),
        image: Some(&grant.runtime.image),
        preflight: text.shows(),
        requester: Some(requester),
        end_user: run.spec.end_user.as_ref(),
    };
    if let Some((refusal, decision)) = judge_denied(&policies, facts) {
        explanation.decisions.push(decision);
        return Ok(explanation.refused(refusal));
    }
    let not_examined = Preflight::not_examined();
    let shows = match &text {
        Text::Shows(preflight) => Some(preflight),
        Text::NotExamined => Some(&not_examined),
        Text::NotAtHand => None,
    };
    if let Some(shows) = shows {
        let (decisions, refusal) = judge_preflight(&policies, shows, &grant.capabilities);
        explanation.decisions.extend(decisions);
        if let Some(refusal) = refusal {
            return Ok(explanation.refused(refusal));
        }
    } else {
        explanation.not_read = true;
    }
    let bytes = run.spec.script.input.as_ref().map_or(0, |input| input.to_string().len()) as u64;
    let about = (&risk, text.shows());
    let subject = Subject::of(run, (&grant, hash.as_deref().unwrap_or_default(), bytes), about, namespace, requester, now);
    let is_data_known = grant.capabilities.names(ObjectKind::ConfigMap).all(|name| data.contains_key(name));
    if let Some(hash) = hash.as_ref().filter(|_| is_data_known) {
        let of = |value: &Option<Value>| value.as_ref().map(|value| script_hash(as_stored(value).as_bytes()));
        let (input, schema) = (of(&run.spec.script.input), of(&run.spec.script.input_schema));
        let hashes = Hashes { script: hash, input: input.as_deref(), schema: schema.as_deref(), data };
        let Digests { input, schema } = digests(run, &grant, hashes);
        (explanation.digest, explanation.schema_digest) = (Some(input), schema);
    }
    let judged = judge_rules(&policies, &subject);
    explanation.decisions.extend(judged.decisions);
    if let Some(refusal) = judged.refusal {
        return Ok(explanation.refused(refusal));
    }
    let demand = input_demand(&policies, hash.as_deref().unwrap_or_default());
    if let Err(refusal) = judge_input(&demand, bytes, run.spec.script.input_schema.is_some() || !demand.schemas.is_empty()) {
        return Ok(explanation.refused(refusal));
    }
    if let Containment::Queue { rule } | Containment::Kill { rule } = containment(&policies, facts) {
        let message = format!("it would wait: {rule}");
        return Ok(explanation.refused(Refusal { reason: Reason::Suspended, message }));
    }
    match demanded(&policies, &subject) {
        Err(failure) => return Ok(explanation.refused(failure.0)),
        Ok(demanded) if demanded.is_empty() => {}
        Ok(demanded) => {
            let rules: Vec<&str> = demanded.iter().map(|demanded| demanded.rule.as_str()).collect();
            let message = format!("it would wait for approvals: {}", rules.join(", "));
            return Ok(explanation.refused(Refusal { reason: Reason::AwaitingApproval, message }));
        }
    }
    Ok(explanation)
}

/// What is known of the text of a script.
#[derive(Clone, Debug)]
pub(crate) enum Text {
    /// What it shows.
    Shows(Preflight),
    /// No policy says what it is written in.
    NotExamined,
    /// It is in a ConfigMap that is not at hand.
    NotAtHand,
}

impl Text {
    fn shows(&self) -> Option<&Preflight> {
        match self {
            Self::Shows(preflight) => Some(preflight),
            Self::NotExamined | Self::NotAtHand => None,
        }
    }

    /// Reads it as the policies say.
    pub(crate) async fn of(
        written: &Written,
        run: &ScriptRun,
        labels: &BTreeMap<String, String>,
        cluster: Option<&Cluster>,
    ) -> Result<Self> {
        let policies = written.taking_part(run, labels)?;
        let ask = Ask::of(&run.spec, BTreeMap::new(), AtGateway::new(), Gateway::Installed);
        // What it asks for beside has no part in what its runtime is.
        let ask = Ask { capabilities: paddock_crds::Capabilities::default(), ..ask };
        let granted = judge(&policies, &run.spec.policy_ref, &ask).result;
        let Some(language) = granted.ok().and_then(|grant| grant.runtime.language) else { return Ok(Self::NotExamined) };
        let script = match (&run.spec.script.source.inline, cluster) {
            (Some(text), _) => text.clone().into_bytes(),
            (None, Some(cluster)) => match of_config_map(run, cluster).await? {
                Some(script) => script,
                None => return Ok(Self::NotAtHand),
            },
            (None, None) => return Ok(Self::NotAtHand),
        };
        ensure!(script.len() <= MAX_SCRIPT, "the script has {} bytes; at most {MAX_SCRIPT} are allowed", script.len());
        let read = paddock_preflight::ask(&Question { language, script }).await.context("cannot read the script")?;
        Ok(Self::Shows(read.0))
    }
}

/// The script in a ConfigMap, with the rights of whoever asks. `None`: it is not there, or they may not.
async fn of_config_map(run: &ScriptRun, cluster: &Cluster) -> Result<Option<Vec<u8>>> {
    let Some(reference) = &run.spec.script.source.config_map_key_ref else { return Ok(None) };
    let api: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let found = match api.get_opt(&reference.name).await {
        Err(kube::Error::Api(status)) if status.code == 403 => None,
        other => other.map_err(|error| explained(error, "read the ConfigMap with the script"))?,
    };
    let Some(ConfigMap { data, binary_data, .. }) = found else { return Ok(None) };
    let text = data.and_then(|mut data| data.remove(&reference.key)).map(String::into_bytes);
    Ok(text.or_else(|| binary_data.and_then(|mut data| data.remove(&reference.key)).map(|bytes| bytes.0)))
}

/// `kubectl paddock explain`.
pub(crate) async fn command(cluster: impl AsyncFn() -> Result<Cluster>, connection: &Connection, arguments: &Explain) -> Result<Exit> {
    let explanation = explained_by(cluster, connection, arguments).await?;
    match arguments.output {
        Output::Table => print!("{}", told(&explanation, has_colours())),
        Output::Json | Output::Yaml => print!("{}", document(&explanation, arguments.output == Output::Json)?),
    }
    Ok(if explanation.allowed { Exit::Done } else { Exit::Run(120) })
}

/// `kubectl paddock digest`.
pub(crate) async fn digest(cluster: impl AsyncFn() -> Result<Cluster>, connection: &Connection, arguments: &Explain) -> Result<Exit> {
    let explanation = explained_by(cluster, connection, arguments).await?;
    let digest = explanation.digest.with_context(|| match (explanation.reason, explanation.message) {
        (Some(reason), Some(message)) => format!("there is no digest: {reason}: {message}"),
        _ => {
            "there is no digest: the run needs no approval, its script is in a ConfigMap, or nothing is known of the data that it asks for"
                .to_owned()
        }
    })?;
    if arguments.output != Output::Table {
        let both = serde_json::json!({ "digest": digest, "schemaDigest": explanation.schema_digest });
        print!("{}", document(&both, arguments.output == Output::Json)?);
        return Ok(Exit::Done);
    }
    println!("{digest}");
    if let Some(digest) = explanation.schema_digest {
        println!("{digest} (with its schema in place of the input)");
    }
    Ok(Exit::Done)
}

/// `kubectl paddock policy effective`.
pub(crate) async fn effective(
    cluster: impl AsyncFn() -> Result<Cluster>,
    policy: &str,
    files: &[PathBuf],
    label: &[String],
) -> Result<Exit> {
    let (written, labels) = if files.is_empty() { of_cluster(&cluster().await?).await? } else { (Written::read(files)?, labels(label)?) };
    let named = policy_ref(policy)?;
    let policies = written.taking_part_for(&named, &labels)?;
    let is_there = policies.iter().any(|policy| policy.taken.kind == named.kind && policy.taken.name == named.name);
    ensure!(is_there, "there is no {} {} that takes part in this namespace", named.kind.as_str(), named.name);
    let names: Vec<String> = policies.iter().map(|policy| format!("{}/{}", policy.taken.kind.as_str(), policy.taken.name)).collect();
    let lines = paddock_policy::effective(&policies);
    let rows: Vec<Vec<Cell>> = lines.iter().map(|(field, value, rule)| vec![plain(field), plain(printable(value)), plain(rule)]).collect();
    print!("{}", table(&["FIELD", "VALUE", "RULE"], &rows, has_colours()));
    println!("\npolicies: {}", if names.is_empty() { "none: nothing may run".to_owned() } else { names.join(", ") });
    Ok(Exit::Done)
}

async fn explained_by(cluster: impl AsyncFn() -> Result<Cluster>, connection: &Connection, arguments: &Explain) -> Result<Explanation> {
    let now = arguments.now.unwrap_or_else(Timestamp::now);
    Ok(if arguments.policy.is_empty() && !arguments.target.exists() {
        ensure!(arguments.now.is_none(), "a run that is there was decided when it was: give a file");
        of_run(&cluster().await?, &arguments.target).await?
    } else {
        let file = fs::read_to_string(&arguments.target).with_context(|| format!("cannot read {}", arguments.target.display()))?;
        let run = script_run(&as_run(arguments), Texts { file, input: None })?;
        if arguments.policy.is_empty() {
            let cluster = cluster().await?;
            let (written, labels) = of_cluster(&cluster).await?;
            let requester = whoever_asks(&cluster).await?;
            let objects = objects::read(&cluster, run.spec.capabilities.as_ref()).await?;
            let namespace = TenantFacts { name: &cluster.namespace, labels: &labels };
            let text = Text::of(&written, &run, &labels, Some(&cluster)).await?;
            explain(&written, &run, Known { namespace, requester: &requester, objects: &objects, text, now })?
        } else {
            let labels = labels(&arguments.label)?;
            let requester = named(connection).unwrap_or_else(nobody);
            let name = connection.namespace.as_deref().unwrap_or("default");
            let (namespace, objects) = (TenantFacts { name, labels: &labels }, objects::Known::default());
            let written = Written::read(&arguments.policy)?;
            let text = Text::of(&written, &run, &labels, None).await?;
            explain(&written, &run, Known { namespace, requester: &requester, objects: &objects, text, now })?
        }
    })
}

fn named(connection: &Connection) -> Option<Requester> {
    let username = connection.as_user.clone()?;
    Some(Requester { username, uid: None, groups: connection.as_group.clone() })
}

/// Who is meant where nobody is named.
pub(crate) fn nobody() -> Requester {
    Requester { username: "nobody".into(), uid: None, groups: Vec::new() }
}

/// As whom the API server knows whoever asks.
pub(crate) async fn whoever_asks(cluster: &Cluster) -> Result<Requester> {
    let api: Api<SelfSubjectReview> = Api::all(cluster.client.clone());
    let review = api.create(&PostParams::default(), &SelfSubjectReview::default()).await;
    let review = review.map_err(|error| explained(error, "ask who you are"))?;
    let user = review.status.and_then(|status| status.user_info).unwrap_or_default();
    Ok(Requester { username: user.username.unwrap_or_default(), uid: user.uid, groups: user.groups.unwrap_or_default() })
}

fn as_run(arguments: &Explain) -> Run {
    Run {
        file: arguments.target.clone(),
        runtime: arguments.runtime.clone(),
        policy: arguments.under.clone(),
        input: None,
        set: Vec::new(),
        arg: Vec::new(),
        timeout: None,
        name: None,
        ttl: None,
        detach: false,
        render: false,
        output: Shown::Text,
    }
}

fn labels(given: &[String]) -> Result<BTreeMap<String, String>> {
    let pair = |label: &String| {
        let (key, value) = label.split_once('=').with_context(|| format!("--label {label}: write KEY=VALUE"))?;
        Ok((key.to_owned(), value.to_owned()))
    };
    given.iter().map(pair).collect()
}

/// What the operator has stored of a run.
async fn of_run(cluster: &Cluster, name: &Path) -> Result<Explanation> {
    stored(cluster.run(&name.to_string_lossy()).await?.status.unwrap_or_default())
}

/// Of a run that was accepted, what it lacks is told as well: approvals, or that its policies are resumed.
fn stored(status: ScriptRunStatus) -> Result<Explanation> {
    ensure!(status.condition(&ConditionType::Accepted).is_some(), "nothing was decided on the run yet");
    let lacks = |type_, only: Option<Reason>| {
        let condition = status.condition(&type_).filter(|condition| condition.status == ConditionStatus::False);
        condition.filter(|condition| only.is_none_or(|reason| condition.reason == reason)).cloned()
    };
    let lacking = lacks(ConditionType::Accepted, None)
        .or_else(|| lacks(ConditionType::Approved, None))
        .or_else(|| lacks(ConditionType::Admitted, Some(Reason::Suspended)));
    Ok(Explanation {
        allowed: lacking.is_none(),
        reason: lacking.as_ref().map(|condition| condition.reason.to_string()),
        message: lacking.map(|condition| condition.message),
        policies: status.policies,
        decisions: status.decisions,
        risk: status.risk,
        preflight: status.preflight,
        not_read: false,
        digest: status.approval.as_ref().map(|approval| approval.digest.clone()).filter(|digest| !digest.is_empty()),
        schema_digest: status.approval.and_then(|approval| approval.schema_digest),
    })
}

async fn of_cluster(cluster: &Cluster) -> Result<(Written, BTreeMap<String, String>)> {
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let namespace = namespaces.get(&cluster.namespace).await.map_err(|error| explained(error, "read the labels of the namespace"))?;
    let policies: Api<ClusterSandboxPolicy> = Api::all(cluster.client.clone());
    let own: Api<SandboxPolicy> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let all = ListParams::default();
    let written = Written {
        cluster: policies.list(&all).await.map_err(|error| explained(error, "list the policies of the cluster"))?.items,
        namespaced: own.list(&all).await.map_err(|error| explained(error, "list the policies of the namespace"))?.items,
    };
    Ok((written, namespace.metadata.labels.unwrap_or_default()))
}

/// For people.
fn told(explanation: &Explanation, colours: bool) -> String {
    let rows: Vec<Vec<Cell>> = explanation
        .decisions
        .iter()
        .map(|decision| {
            let (verdict, tone) = if decision.verdict == Verdict::Granted { ("Granted", Tone::Good) } else { ("Refused", Tone::Bad) };
            vec![plain(&decision.permission), (verdict.to_owned(), tone), plain(&decision.rule)]
        })
        .collect();
    let names: Vec<String> = explanation.policies.iter().map(|policy| format!("{}/{}", policy.kind.as_str(), policy.name)).collect();
    let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let end = match (&explanation.reason, &explanation.message) {
        (Some(reason), Some(message)) if matches!(reason.as_str(), "AwaitingApproval" | "Suspended") => {
            format!("waits: {reason}: {message}")
        }
        (Some(reason), Some(message)) => format!("refused: {reason}: {message}"),
        _ => "allowed".to_owned(),
    };
    let decisions = if rows.is_empty() { String::new() } else { table(&["PERMISSION", "VERDICT", "RULE"], &rows, colours) + "\n" };
    let risk = explanation.risk.as_ref().map_or_else(String::new, |risk| format!("risk: {risk}\n"));
    let preflight = explanation.preflight.as_ref().map_or_else(String::new, |shows| format!("script: {}\n", script_shows(shows)));
    let not_read = if explanation.not_read { "script: in a ConfigMap, and not looked at; rules see it as Unclear\n" } else { "" };
    format!("{decisions}policies: {names}\n{risk}{preflight}{not_read}{end}\n")
}

/// What a script shows, in one line.
pub(crate) fn script_shows(preflight: &Preflight) -> String {
    let list = |what: &str, all: &[String]| if all.is_empty() { String::new() } else { format!("; {what} {}", all.join(", ")) };
    printable(&format!("{preflight}{}{}", list("imports", &preflight.imports), list("names the hosts", &preflight.hosts)))
}

/// What a case may expect.
pub(crate) fn check_known(reason: &str) -> Result<()> {
    ensure!(
        reason == "Allowed" || Reason::ALL.iter().any(|(known, _)| known.as_str() == reason),
        "expect: {reason} is neither Allowed nor a reason of docs/api.md"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICIES: &str = "
apiVersion: paddock.dev/v1alpha1
kind: ClusterSandboxPolicy
metadata: {name: base}
spec:
  namespaceSelector: {matchLabels: {tier: gold}}
  runtimes: [{name: shell, image: img, command: [/bin/sh]}]
---
apiVersion: paddock.dev/v1alpha1
kind: SandboxPolicy
metadata: {name: own}
spec: {limits: {max: {memory: 64Mi}}, suspend: Queue}
";

    fn told_of(spec: &str, label: &str) -> String {
        let mut written = Written::default();
        written.add(POLICIES, Path::new("p.yaml")).expect("policies");
        let run: ScriptRun = serde_saphyr::from_str(&format!("metadata: {{name: r}}\nspec: {spec}\n")).expect("a run");
        let labels = labels(&[label.to_owned()]).expect("a label");
        let namespace = TenantFacts { name: "default", labels: &labels };
        let (requester, objects) = (nobody(), objects::Known::default());
        let known = Known { namespace, requester: &requester, objects: &objects, text: Text::NotExamined, now: Timestamp::UNIX_EPOCH };
        told(&explain(&written, &run, known).expect("an explanation"), false)
    }

    #[test]
    fn every_permission_is_told_with_its_rule() {
        let spec =
            "{policyRef: {kind: ClusterSandboxPolicy, name: base}, script: {runtime: shell, source: {inline: x}}, timeoutSeconds: 20}";
        insta::assert_snapshot!(told_of(spec, "tier=gold"), @r"
        PERMISSION          VERDICT   RULE
        runtime:shell       Granted   ClusterSandboxPolicy/base: runtimes[shell]
        timeoutSeconds:20   Granted   built-in: timeoutSeconds

        policies: ClusterSandboxPolicy/base
        risk: 0 Low
        allowed
        ");
        assert!(told_of(spec, "tier=lead").contains("policies: none\nrefused: NoClusterPolicy"));
        let own = spec.replace("ClusterSandboxPolicy, name: base", "SandboxPolicy, name: own");
        assert!(told_of(&own, "tier=gold").ends_with("waits: Suspended: it would wait: SandboxPolicy/own: suspend\n"));
        assert!(told_of(&own.replace("name: own", "name: other"), "tier=gold").contains("refused: PolicyNotFound"));
    }

    #[test]
    fn a_list_is_as_many_documents() {
        let mut written = Written::default();
        let list = "apiVersion: v1\nkind: List\nitems:\n- {kind: ClusterSandboxPolicy, metadata: {name: a}, spec: {namespaceSelector: {}}}\n- {kind: SandboxPolicy, metadata: {name: b}, spec: {}}\n";
        written.add(&list.replace("{kind", "{apiVersion: paddock.dev/v1alpha1, kind"), Path::new("x.yaml")).expect("policies");
        assert_eq!((written.cluster.len(), written.namespaced.len()), (1, 1));
        let error = Written::default().add("{kind: List, items: [{kind: Pod}]}", Path::new("x.yaml")).expect_err("no policy");
        assert_eq!(error.to_string(), "x.yaml must hold policies alone, and holds Pod");
    }

    #[test]
    fn what_a_stored_run_lacks_is_told() {
        let condition = |type_: &str, status: &str, reason: &str| serde_json::json!({ "type": type_, "status": status, "reason": reason, "message": format!("of {reason}"), "lastTransitionTime": "2026-11-27T00:00:00Z" });
        let told_of = |conditions: Vec<Value>| {
            let status = serde_json::from_value(serde_json::json!({ "conditions": conditions })).expect("a status");
            stored(status).map(|explanation| (explanation.allowed, told(&explanation, false)))
        };
        let accepted = condition("Accepted", "True", "PolicyAllows");
        assert!(told_of(Vec::new()).is_err());
        for (conditions, allowed, end) in [
            (vec![accepted.clone()], true, "allowed\n"),
            (vec![accepted.clone(), condition("Admitted", "False", "WaitingForSlot")], true, "allowed\n"),
            (vec![condition("Accepted", "False", "LimitExceeded")], false, "refused: LimitExceeded: of LimitExceeded\n"),
            (
                vec![accepted.clone(), condition("Approved", "False", "AwaitingApproval")],
                false,
                "waits: AwaitingApproval: of AwaitingApproval\n",
            ),
            (
                vec![accepted.clone(), condition("Approved", "False", "ApprovalDenied")],
                false,
                "refused: ApprovalDenied: of ApprovalDenied\n",
            ),
            (vec![accepted, condition("Admitted", "False", "Suspended")], false, "waits: Suspended: of Suspended\n"),
        ] {
            let (was_allowed, told) = told_of(conditions).expect("an explanation");
            assert_eq!((was_allowed, told.ends_with(end)), (allowed, true), "{told}");
        }
    }

    #[test]
    fn what_is_no_policy_is_said() {
        let error = Written::default().add("kind: Pod", Path::new("x.yaml")).expect_err("no policy");
        assert_eq!(error.to_string(), "x.yaml must hold policies alone, and holds Pod");
    }
}
