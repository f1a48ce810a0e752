//! Commands that show what is there.

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use paddock_crds::{ConditionType, OutputStream, Phase, ScriptRun, ScriptRunStatus};
use serde::Serialize;

use crate::arguments::{Document, Output};
use crate::cluster::{Cluster, explained};
use crate::exit::Exit;
use crate::table::{Cell, plain, table};
use crate::terminal::{Tone, has_colours};
use crate::timeline;

/// An object as a document that can be read back.
pub(crate) fn document(object: &impl Serialize, is_json: bool) -> Result<String> {
    if is_json {
        return Ok(serde_json::to_string_pretty(object)? + "\n");
    }
    serde_saphyr::to_string(object).context("cannot write YAML")
}

/// A stream of the script on the same stream here.
pub(crate) fn put_stream(stream: Option<&OutputStream>, is_error: bool) {
    let Some(stream) = stream else { return };
    let mut text = stream.text.clone();
    if let Some(left_out) = stream.truncated_bytes {
        text += &format!("\n[{left_out} bytes were left out]\n");
    }
    text += stream.tail.as_deref().unwrap_or_default();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    if is_error { eprint!("{text}") } else { print!("{text}") }
}

/// Streams, then the result.
pub(crate) fn put_out(status: &ScriptRunStatus) {
    let Some(result) = &status.result else { return };
    put_stream(result.stdout.as_ref(), false);
    put_stream(result.stderr.as_ref(), true);
    if let Some(output) = &result.output {
        println!("{}", serde_json::to_string_pretty(output).unwrap_or_default());
    }
    put_stream(result.output_text.as_ref(), false);
    if let Some(stored) = &result.reference {
        println!("{} ({} bytes, SHA-256 {})", stored.url, stored.bytes, stored.sha256);
    }
}

/// `kubectl paddock get`.
pub(crate) async fn get(cluster: &Cluster, name: Option<&str>, all_namespaces: bool, output: Output) -> Result<Exit> {
    if let (Some(name), Output::Json | Output::Yaml) = (name, output) {
        print!("{}", document(&cluster.run(name).await?, output == Output::Json)?);
        return Ok(Exit::Done);
    }
    let runs = match name {
        Some(name) => vec![cluster.run(name).await?],
        None => list(cluster, all_namespaces).await?,
    };
    match output {
        Output::Table if runs.is_empty() => eprintln!("there are no runs in {}", place(cluster, all_namespaces)),
        Output::Table => {
            let rows: Vec<Vec<Cell>> = runs.iter().map(|run| row(run, all_namespaces, Timestamp::now())).collect();
            let titles = ["NAMESPACE", "NAME", "PHASE", "EXIT", "RUNTIME", "TOOK", "AGE"];
            print!("{}", table(&titles[usize::from(!all_namespaces)..], &rows, has_colours()));
        }
        Output::Json | Output::Yaml => {
            let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": runs });
            print!("{}", document(&list, output == Output::Json)?);
        }
    }
    Ok(Exit::Done)
}

fn place(cluster: &Cluster, all_namespaces: bool) -> String {
    if all_namespaces { "any namespace".into() } else { format!("the namespace {}", cluster.namespace) }
}

async fn list(cluster: &Cluster, all_namespaces: bool) -> Result<Vec<ScriptRun>> {
    let api = if all_namespaces { Api::all(cluster.client.clone()) } else { cluster.runs() };
    let mut runs = Vec::new();
    let mut page = ListParams::default().limit(100);
    loop {
        let answer = api.list(&page).await.map_err(|error| explained(error, "list the runs"))?;
        runs.extend(answer.items);
        match answer.metadata.continue_.filter(|next| !next.is_empty()) {
            Some(next) => page = page.continue_token(&next),
            None => break,
        }
    }
    runs.sort_by_key(|run| run.metadata.creation_timestamp.as_ref().map(|time| time.0));
    Ok(runs)
}

/// One line of the list. Pure.
fn row(run: &ScriptRun, with_namespace: bool, now: Timestamp) -> Vec<Cell> {
    let status = run.status.clone().unwrap_or_default();
    let result = status.result.clone().unwrap_or_default();
    let phase = status.phase.as_ref().map_or("-", Phase::as_str).to_owned();
    let tone = match &status.phase {
        Some(Phase::Succeeded) => Tone::Good,
        _ if status.is_true(&ConditionType::Finished) => Tone::Bad,
        _ => Tone::Plain,
    };
    let exit = result.exit_code.map(|code| code.to_string()).or(result.signal.map(|signal| format!("signal {signal}")));
    let clocks = status.clocks.clone().unwrap_or_default();
    let took = clocks.started.zip(clocks.result_ready.or(clocks.finished)).map(|(from, to)| timeline::span(from.0, to.0));
    let age = run.metadata.creation_timestamp.as_ref().map(|time| timeline::span(time.0, now));
    let mut cells = vec![
        plain(run.name_any()),
        (phase, tone),
        plain(exit.unwrap_or_default()),
        plain(run.spec.script.runtime.clone()),
        plain(took.unwrap_or_default()),
        plain(age.unwrap_or_default()),
    ];
    if with_namespace {
        cells.insert(0, plain(run.namespace().unwrap_or_default()));
    }
    cells
}

/// `kubectl paddock describe`.
pub(crate) async fn describe(cluster: &Cluster, name: &str) -> Result<Exit> {
    print!("{}", timeline::describe(&cluster.run(name).await?, has_colours()));
    Ok(Exit::Done)
}

/// `kubectl paddock result`.
pub(crate) async fn result(cluster: &Cluster, name: &str, output: Document) -> Result<Exit> {
    let status = cluster.run(name).await?.status.unwrap_or_default();
    let result = status.result.clone().unwrap_or_default();
    match (result.output, result.reference, result.output_error, result.output_text) {
        (Some(value), ..) => print!("{}", document(&value, output == Document::Json)?),
        (_, Some(stored), ..) => {
            println!("{}", stored.url);
            eprintln!("the result is stored there: {} bytes, SHA-256 {}", stored.bytes, stored.sha256);
        }
        (.., Some(text)) => {
            put_stream(Some(&text), false);
            eprintln!("the result was too large; this is its beginning");
        }
        (_, _, Some(error), _) => bail!("the result was not kept: {error}"),
        _ if !status.is_true(&ConditionType::Finished) && !status.is_true(&ConditionType::ResultReady) => {
            bail!("there is no result yet: kubectl wait scriptrun/{name} --for=condition=ResultReady");
        }
        _ if status.phase.as_ref().is_none_or(|phase| !matches!(phase, Phase::Succeeded | Phase::Failed)) => {
            let phase = status.phase.as_ref().map_or("over", Phase::as_str);
            bail!("there is no result, since the run is {phase}: {}", status.message.as_deref().unwrap_or_default());
        }
        _ => bail!("the script gave no result: it writes one JSON value to the file that $PADDOCK_RESULT names"),
    }
    Ok(Exit::Done)
}
