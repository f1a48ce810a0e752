//! Commands that wait for a run.

use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures::TryStreamExt as _;
use kube::api::Patch;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, ResourceExt as _};
use paddock_crds::{ConditionType, Phase, ScriptRun, ScriptRunStatus};
use serde_json::json;

use crate::arguments::{Run, Shown};
use crate::cluster::{Cluster, explained, patching, posting};
use crate::exit::{Exit, advice};
use crate::interrupt::{Interrupted, Interrupts};
use crate::manifest::{Texts, input_file, script_run};
use crate::show::{document, put_out};
use crate::terminal::Progress;

/// Between two signs of life.
const TURN: Duration = Duration::from_millis(120);

fn read(file: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    if file == Path::new("-") {
        std::io::stdin().read_to_end(&mut bytes).context("cannot read standard input")?;
    } else {
        bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    }
    String::from_utf8(bytes).with_context(|| format!("{} is no UTF-8 text", file.display()))
}

/// `kubectl paddock run`.
pub(crate) async fn run(cluster: &Cluster, run: Run) -> Result<Exit> {
    let input = match input_file(&run) {
        Some(file) => Some(read(file)?),
        None => run.input.clone(),
    };
    let wanted = script_run(&run, Texts { file: read(&run.file)?, input })?;
    if let Some(other) = wanted.namespace().filter(|other| *other != cluster.namespace) {
        bail!("{} is for the namespace {other}, and this is {}: give --namespace {other}", run.file.display(), cluster.namespace);
    }
    if run.render {
        print!("{}", document(&wanted, run.output == Shown::Json)?);
        return Ok(Exit::Done);
    }
    let api = cluster.runs();
    let posting = posting();
    let created = async { api.create(&posting, &wanted).await.map_err(|error| explained(error, "create the run")) };
    if run.detach {
        println!("scriptrun.paddock.dev/{}", created.await?.name_any());
        return Ok(Exit::Done);
    }
    // Before it is created: whoever interrupts this program leaves no run behind that goes on.
    let interrupts = Interrupts::noticed(Interrupted::EndTheRun)?;
    let name = created.await?.name_any();
    let ended = follow_to_the_end(cluster, &name, interrupts, |status| status.is_true(&ConditionType::Finished)).await?;
    let status = ended.status.clone().unwrap_or_default();
    match run.output {
        Shown::Text => tell_end(cluster, &name, &status),
        Shown::Json | Shown::Yaml => print!("{}", document(&ended, run.output == Shown::Json)?),
    }
    Ok(Exit::of(&status).unwrap_or(Exit::Failed))
}

/// What the script put out, and, if it did not succeed, how it ended and what to do.
fn tell_end(cluster: &Cluster, name: &str, status: &ScriptRunStatus) {
    put_out(status);
    if status.phase == Some(Phase::Succeeded) && status.result.as_ref().is_none_or(|result| result.output_error.is_none()) {
        return;
    }
    let phase = status.phase.as_ref().map_or("over", Phase::as_str);
    eprintln!("{name} {phase}: {}", status.message.as_deref().unwrap_or_default());
    for violation in &status.violations {
        eprintln!("  input{}: {}", violation.path, violation.message);
    }
    if let Some(error) = status.result.as_ref().and_then(|result| result.output_error.as_ref()) {
        eprintln!("its result was not kept: {error}");
    }
    if let Some(advice) = advice(status) {
        eprintln!("{advice}");
    }
    eprintln!("kubectl paddock describe {name} -n {} tells more", cluster.namespace);
}

/// `kubectl paddock logs`.
pub(crate) async fn logs(cluster: &Cluster, name: &str, follow: bool) -> Result<Exit> {
    let mut run = cluster.run(name).await?;
    let has_something = |status: &ScriptRunStatus| status.result.is_some() || status.is_true(&ConditionType::Finished);
    if follow {
        run = follow_to_the_end(cluster, name, Interrupts::noticed(Interrupted::StopWaiting)?, has_something).await?;
    }
    let status = run.status.unwrap_or_default();
    match &status.result {
        Some(result) => {
            for (stream, is_error) in [(&result.stdout, false), (&result.stderr, true)] {
                crate::show::put_stream(stream.as_ref(), is_error);
            }
        }
        None if status.is_true(&ConditionType::Finished) => {
            let phase = status.phase.as_ref().map_or("over", Phase::as_str);
            eprintln!("there is no output, since the run is {phase}: {}", status.message.as_deref().unwrap_or_default());
        }
        None => eprintln!("there is no output yet: it comes when the script has ended (-f waits for it)"),
    }
    Ok(Exit::Done)
}

/// `kubectl paddock cancel`.
pub(crate) async fn cancel(cluster: &Cluster, name: &str, wait: bool) -> Result<Exit> {
    let run = cluster.run(name).await?;
    if run.status.as_ref().is_some_and(|status| status.is_true(&ConditionType::Finished)) {
        println!("{name} is over already");
        return Ok(Exit::Done);
    }
    ask_to_end(&cluster.runs(), name).await?;
    if !wait {
        println!("{name} is being ended");
        return Ok(Exit::Done);
    }
    let interrupts = Interrupts::noticed(Interrupted::StopWaiting)?;
    let ended = follow_to_the_end(cluster, name, interrupts, |status| status.is_true(&ConditionType::Finished)).await?;
    let status = ended.status.unwrap_or_default();
    println!("{name} {}", status.phase.as_ref().map_or("over", Phase::as_str));
    Ok(Exit::of(&status).unwrap_or(Exit::Failed))
}

async fn ask_to_end(api: &Api<ScriptRun>, name: &str) -> Result<()> {
    let patch = Patch::Merge(json!({ "spec": { "cancel": true } }));
    api.patch(name, &patching(), &patch).await.map_err(|error| explained(error, "cancel the run")).map(drop)
}

/// Watches a run until its status is as `wanted`.
async fn follow_to_the_end(
    cluster: &Cluster,
    name: &str,
    mut interrupts: Interrupts,
    wanted: impl Fn(&ScriptRunStatus) -> bool,
) -> Result<ScriptRun> {
    let api = cluster.runs();
    let watched = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut changes = std::pin::pin!(watcher(api.clone(), watched).default_backoff());
    let mut progress = Progress::new();
    let mut turns = tokio::time::interval(TURN);
    loop {
        let event = tokio::select! {
            event = changes.try_next() => event,
            _ = turns.tick() => { progress.turn(); continue }
            interrupted = interrupts.next() => {
                progress.end();
                if interrupted == Interrupted::StopWaiting {
                    bail!("not waited for any longer: kubectl paddock describe {name} -n {} tells where it is", cluster.namespace);
                }
                eprintln!("ending {name}; once more to stop waiting");
                ask_to_end(&api, name).await?;
                continue;
            }
        };
        let run = match event {
            Ok(Some(watcher::Event::Apply(run) | watcher::Event::InitApply(run))) => run,
            Ok(Some(watcher::Event::Delete(_))) => {
                progress.end();
                bail!("the run {name} was deleted");
            }
            Ok(Some(watcher::Event::Init | watcher::Event::InitDone)) => continue,
            Ok(None) => bail!("the cluster ended the watch"),
            // Whoever may not watch will never see the end; anything else may pass.
            Err(error) if is_forbidden(&error) => {
                progress.end();
                return Err(anyhow::Error::from(error).context("cannot watch the run"));
            }
            Err(_) => continue,
        };
        let status = run.status.clone().unwrap_or_default();
        if wanted(&status) {
            progress.end();
            return Ok(run);
        }
        let message = status.message.as_deref().unwrap_or("waiting to be seen");
        progress.tell(&format!("{name} {}: {message}", status.phase.as_ref().map_or("created", Phase::as_str)));
    }
}

fn is_forbidden(error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error)) = error else { return false };
    matches!(error, kube::Error::Api(status) if matches!(status.code, 401 | 403))
}
