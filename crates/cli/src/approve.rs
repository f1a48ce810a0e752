//! Commands of those who decide: what waits for them, approve, deny, take back, and the digest that is decided on.

use std::collections::BTreeSet;
use std::io::{IsTerminal as _, Write as _};

use anyhow::{Context as _, Result, bail, ensure};
use jiff::{Span, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{ListParams, Patch};
use kube::{Api, ResourceExt as _};
use paddock_crds::{ApprovalDecision, ApprovalStatus, Phase, ScriptApproval, ScriptApprovalSpec, ScriptRun, ScriptRunStatus, Verdict};
use paddock_policy::{EVERYBODY, script_hash};
use serde_json::json;

use crate::arguments::{Decide, Output};
use crate::cluster::{Cluster, explained, patching, posting};
use crate::exit::Exit;
use crate::explain::{script_shows, whoever_asks};
use crate::shallow::Shallow;
use crate::show::document;
use crate::table::{Cell, plain, table};
use crate::terminal::{Tone, has_colours, printable};

/// `kubectl paddock pending`.
pub(crate) async fn pending(cluster: &Cluster, all_namespaces: bool, output: Output) -> Result<Exit> {
    let client = cluster.client.clone();
    let api: Api<Shallow> = if all_namespaces { Api::all(client) } else { Api::namespaced(client, &cluster.namespace) };
    let runs: Vec<ScriptRun> = api
        .list(&ListParams::default())
        .await
        .map_err(|error| explained(error, "list the runs"))?
        .items
        .into_iter()
        .map(|run| run.0)
        .collect();
    let waits = |run: &&ScriptRun| run.status.as_ref().is_some_and(|status| status.phase == Some(Phase::AwaitingApproval));
    let runs: Vec<&ScriptRun> = runs.iter().filter(waits).collect();
    if output != Output::Table {
        print!("{}", document(&json!({ "apiVersion": "v1", "kind": "List", "items": runs }), output == Output::Json)?);
        return Ok(Exit::Done);
    }
    let rows: Vec<Vec<Cell>> = runs.into_iter().flat_map(rows).collect();
    if rows.is_empty() {
        println!("nothing waits for an approval");
    } else {
        print!("{}", table(&["NAMESPACE", "NAME", "REQUESTER", "RISK", "APPROVALS", "UNTIL", "DEMANDED BY"], &rows, has_colours()));
    }
    Ok(Exit::Done)
}

/// One for each demand that is not answered.
fn rows(run: &ScriptRun) -> Vec<Vec<Cell>> {
    let status = run.status.clone().unwrap_or_default();
    let requester = status.requester.map(|requester| requester.username).unwrap_or_default();
    let risk = status.risk.map_or_else(String::new, |risk| format!("{} {}", risk.score, risk.level));
    let approval = status.approval.unwrap_or_default();
    let until = approval.expires_at.as_ref().map(|time| time.0.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()).unwrap_or_default();
    let open = approval.demanded.iter().filter(|demanded| !demanded.is_answered());
    open.map(|demanded| {
        vec![
            plain(run.namespace().unwrap_or_default()),
            plain(run.name_any()),
            plain(printable(&requester)),
            plain(risk.clone()),
            (format!("{} of {}", demanded.given.len(), demanded.count), Tone::Bad),
            plain(until.clone()),
            plain(&demanded.rule),
        ]
    })
    .collect()
}

/// `kubectl paddock approve` and `deny`.
pub(crate) async fn decide(cluster: &Cluster, decision: ApprovalDecision, arguments: &Decide) -> Result<Exit> {
    let api: Api<Shallow> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let Shallow(run, is_whole) = api.get(&arguments.name).await.map_err(|error| explained(error, "read the run"))?;
    let status = run.status.clone().unwrap_or_default();
    let needed = status.approval.clone().filter(|approval| !approval.demanded.is_empty());
    let needed = needed.with_context(|| format!("the run {} needs no approval", arguments.name))?;
    ensure!(status.phase.as_ref().is_none_or(|phase| !phase.is_final()), "the run {} is over", arguments.name);
    let digests = digests(decision, &needed);
    if let Some(unseen) = unseen(&digests, &arguments.digest) {
        let of_what = if needed.schema_digest.as_deref() == Some(unseen) { "with the schema of its input" } else { "with its input" };
        bail!("what would be decided on is the run {of_what}, by the digest {unseen}, and not what you have seen");
    }
    print!("{}", shown(&run, &status, &needed)?);
    if !is_whole {
        ensure!(
            decision == ApprovalDecision::Deny,
            "the input of the run is nested too deeply to be shown, and what cannot be seen is not approved"
        );
        println!("input:      nested too deeply to be shown");
    }
    if decision == ApprovalDecision::Approve
        && let Some(why) = why_it_does_not_count(&whoever_asks(cluster).await?.username, &run, &status)
    {
        println!("note:       {why}; this approval will not count");
    }
    confirm(arguments, decision)?;
    let expires_at = match arguments.expires_in {
        Some(seconds) => Some(Time(Timestamp::now().checked_add(Span::new().seconds(seconds)).context("--expires-in is too long")?)),
        None => None,
    };
    let api: Api<ScriptApproval> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    for digest in digests {
        let spec = ScriptApprovalSpec {
            digest,
            decision,
            run_uid: if arguments.every_run { None } else { run.uid() },
            expires_at: expires_at.clone(),
            comment: arguments.comment.clone(),
            revoked: None,
        };
        let mut approval = ScriptApproval::new("", spec);
        (approval.metadata.name, approval.metadata.generate_name) = (None, Some(prefix(&arguments.name)));
        let made = api.create(&posting(), &approval).await.map_err(|error| explained(error, "decide"))?;
        let what = if decision == ApprovalDecision::Approve { "approved" } else { "denied" };
        println!("{what} by scriptapproval/{}", made.name_any());
    }
    Ok(Exit::Done)
}

/// What is known to be so before the operator looks at groups and ages.
fn why_it_does_not_count(who: &str, run: &ScriptRun, status: &ScriptRunStatus) -> Option<String> {
    let is_requester = status.requester.as_ref().is_some_and(|requester| requester.username == who);
    let is_end_user = run.spec.end_user.as_ref().is_some_and(|user| user.username == who);
    let is_everybody = status.approval.as_ref().is_some_and(|approval| approval.excluded.iter().any(|name| name == EVERYBODY));
    let author = status.policies.iter().find(|policy| policy.author.as_deref() == Some(who));
    match author {
        _ if is_everybody => Some("who else wrote a policy of this run meanwhile is not known, so that nobody may approve it".into()),
        _ if is_requester => Some("you asked for this run".into()),
        _ if is_end_user => Some("this run is for you".into()),
        Some(policy) => Some(format!("you wrote {} {}", policy.kind.as_str(), policy.name)),
        None => None,
    }
}

/// A name can be given to another run between one look and the next, so that nobody decides by a name alone.
fn confirm(arguments: &Decide, decision: ApprovalDecision) -> Result<()> {
    if arguments.yes || !arguments.digest.is_empty() {
        return Ok(());
    }
    ensure!(std::io::stdin().is_terminal(), "nobody can be asked here: give --digest with the digest that you have seen, or --yes");
    print!("{} this? [y/N] ", if decision == ApprovalDecision::Approve { "Approve" } else { "Deny" });
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    ensure!(matches!(answer.trim(), "y" | "Y" | "yes"), "nothing was decided");
    Ok(())
}

/// Of an approval those that unanswered demands are bound to; a denial is of the input.
fn digests(decision: ApprovalDecision, needed: &ApprovalStatus) -> BTreeSet<String> {
    let open = needed.demanded.iter().filter(|demanded| !demanded.is_answered());
    let bound: BTreeSet<String> = open.map(|demanded| demanded.digest.clone()).collect();
    if decision == ApprovalDecision::Deny || bound.is_empty() { [needed.digest.clone()].into() } else { bound }
}

/// One that would be decided on without having been seen, where it is told what was.
fn unseen<'a>(digests: &'a BTreeSet<String>, seen: &[String]) -> Option<&'a str> {
    digests.iter().find(|digest| !seen.is_empty() && !seen.contains(digest)).map(String::as_str)
}

/// Names that are generated have room for 5 characters more.
fn prefix(name: &str) -> String {
    name.chars().take(200).collect::<String>() + "-"
}

/// What is decided on, as it is bound by the digest: a script that is not the one that the operator has seen is not shown as if it were.
fn shown(run: &ScriptRun, status: &ScriptRunStatus, needed: &ApprovalStatus) -> Result<String> {
    let requester = status.requester.as_ref().map(|requester| printable(&requester.username)).unwrap_or_default();
    let mut text = format!("run:        {}\nrequester:  {requester}\n", run.name_any());
    if let Some(user) = &run.spec.end_user {
        text += &format!("for:        {}\n", printable(&user.username));
    }
    text += &format!("image:      {}\ndigest:     {}\n", printable(status.image.as_deref().unwrap_or_default()), needed.digest);
    let is_of_schema = |demanded: &&paddock_crds::ApprovalDemanded| needed.schema_digest.as_ref() == Some(&demanded.digest);
    if let Some(demanded) = needed.demanded.iter().find(is_of_schema) {
        text += &format!("with any input that its schema allows: {}\n", demanded.digest);
    }
    if let Some(seconds) = status.timeout_seconds {
        text += &format!("seconds:    {seconds}\n");
    }
    if let Some(risk) = &status.risk {
        text += &format!("risk:       {risk}\n");
    }
    if let Some(preflight) = &status.preflight {
        text += &format!("shows:      {}\n", script_shows(preflight));
    }
    for decision in status.decisions.iter().filter(|decision| decision.verdict == Verdict::Granted) {
        text += &format!("granted:    {}\n", printable(&decision.permission));
    }
    let script = &run.spec.script;
    match (&script.source.inline, &script.source.config_map_key_ref) {
        (Some(inline), _) => {
            let is_the_one = status.script_hash.as_deref() == Some(script_hash(inline.as_bytes()).as_str());
            ensure!(is_the_one, "the script of the run is not the one that the operator has seen");
            text += &format!("script:\n{}\n", indented(inline));
        }
        (None, Some(reference)) => {
            let hash = status.script_hash.as_deref().unwrap_or_default();
            text += &format!("script:     key {} of ConfigMap {}, SHA-256 {hash}\n", reference.key, reference.name);
        }
        (None, None) => bail!("the run has no script"),
    }
    if !script.args.is_empty() {
        text += &format!("arguments:  {}\n", printable(&json!(script.args).to_string()));
    }
    if let Some(input) = &script.input {
        text += &format!("input:\n{}\n", indented(&serde_json::to_string_pretty(input)?));
    }
    if let Some(schema) = &script.input_schema {
        text += &format!("schema of the input:\n{}\n", indented(&serde_json::to_string_pretty(schema)?));
    }
    Ok(text)
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {}", printable(line))).collect::<Vec<_>>().join("\n")
}

/// `kubectl paddock revoke`.
pub(crate) async fn revoke(cluster: &Cluster, name: &str) -> Result<Exit> {
    let api: Api<ScriptApproval> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let patch = Patch::Merge(json!({ "spec": { "revoked": true } }));
    api.patch(name, &patching(), &patch).await.map_err(|error| explained(error, "take the decision back"))?;
    println!("scriptapproval/{name} is revoked");
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use paddock_crds::{ApprovalDemanded, ApprovalGiven};

    use super::*;

    fn needed() -> ApprovalStatus {
        let demanded = |digest: &str, count, given| ApprovalDemanded {
            rule: "r".into(),
            digest: digest.into(),
            count,
            ends_running: false,
            given: vec![ApprovalGiven::default(); given],
        };
        ApprovalStatus {
            digest: "input".into(),
            schema_digest: Some("schema".into()),
            expires_at: None,
            demanded: vec![demanded("schema", 2, 1), demanded("input", 1, 1)],
            excluded: Vec::new(),
        }
    }

    #[test]
    fn what_is_open_is_approved_and_what_runs_is_denied() {
        assert_eq!(digests(ApprovalDecision::Approve, &needed()), ["schema".to_owned()].into());
        assert_eq!(digests(ApprovalDecision::Deny, &needed()), ["input".to_owned()].into());
        let mut all = needed();
        all.demanded[0].given.push(ApprovalGiven::default());
        assert_eq!(digests(ApprovalDecision::Approve, &all), ["input".to_owned()].into());
    }

    /// Who has seen the schema has not seen the input, nor the other way round.
    #[test]
    fn nothing_is_decided_that_was_not_seen() {
        let mut open = needed();
        open.demanded[1].given.clear();
        let both = digests(ApprovalDecision::Approve, &open);
        let seen = |digests: &[&str]| digests.iter().map(|digest| (*digest).to_owned()).collect::<Vec<_>>();
        assert_eq!(unseen(&both, &seen(&["schema"])), Some("input"));
        assert_eq!(unseen(&both, &seen(&["input"])), Some("schema"));
        assert_eq!(unseen(&both, &seen(&["input", "schema"])), None);
        assert_eq!(unseen(&digests(ApprovalDecision::Approve, &needed()), &seen(&["input"])), Some("schema"));
        assert_eq!(unseen(&both, &[]), None, "who is asked is shown all of it");
    }

    #[test]
    fn a_script_that_the_operator_has_not_seen_is_not_shown() {
        let yaml = "metadata: {name: r}\nspec: {policyRef: {kind: SandboxPolicy, name: p}, script: {runtime: shell, source: {inline: \"echo \\x1b[2J\"}, input: [1]}}";
        let run: ScriptRun = serde_saphyr::from_str(yaml).expect("a run");
        let mut status = ScriptRunStatus { script_hash: Some(script_hash(b"echo \x1b[2J")), ..ScriptRunStatus::default() };
        let text = shown(&run, &status, &needed()).expect("what is decided on");
        assert!(text.contains("script:\n  echo ") && !text.contains('\x1b') && text.contains("input:\n  [\n    1\n  ]\n"), "{text}");
        status.script_hash = Some("0".into());
        shown(&run, &status, &needed()).expect_err("another script");
    }
}
