//! `kubectl paddock`: runs scripts in sandboxes and shows what became of them, with the rights of whoever calls it and no others.

mod approve;
mod arguments;
mod audit;
mod cluster;
mod completion;
mod doctor;
mod exit;
mod explain;
mod follow;
mod interrupt;
mod manifest;
mod objects;
mod policy;
mod revisions;
mod shallow;
mod show;
mod starter;
mod stored;
mod table;
mod terminal;
mod timeline;
mod version;

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory as _, Parser as _};

use arguments::{Arguments, AuditCommand, Command, PolicyCommand};
use cluster::Cluster;
use exit::Exit;
use paddock_crds::ApprovalDecision;

fn main() -> ExitCode {
    // The process that reads a script for this one.
    if std::env::args_os().nth(1).is_some_and(|argument| argument == paddock_preflight::BOUNDS.argument) {
        return paddock_preflight::serve();
    }
    let mut words = std::env::args_os();
    if words.next().is_some_and(|program| completion::is_asked(&program)) {
        return completion::answer(words.collect()).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    // clap ends the process by itself: 0 for help, 2 for what it does not understand.
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(dispatch(arguments)));
    match done {
        Ok(exit) => exit.code(),
        Err(error) => {
            eprintln!("error: {error:#}");
            Exit::Failed.code()
        }
    }
}

async fn dispatch(arguments: Arguments) -> Result<Exit> {
    let Arguments { connection, command } = arguments;
    let cluster = async || Cluster::connect(&connection).await;
    match command {
        Command::Run(run) => follow::run(&cluster().await?, *run).await,
        Command::Get { name, all_namespaces, output } => show::get(&cluster().await?, name.as_deref(), all_namespaces, output).await,
        Command::Describe { name } => show::describe(&cluster().await?, &name).await,
        Command::Logs { name, follow } => follow::logs(&cluster().await?, &name, follow).await,
        Command::Result { name, output } => show::result(&cluster().await?, &name, output).await,
        Command::Cancel { name, wait } => follow::cancel(&cluster().await?, &name, wait).await,
        Command::Explain(arguments) => explain::command(cluster, &connection, &arguments).await,
        Command::Digest(arguments) => explain::digest(cluster, &connection, &arguments).await,
        Command::Pending { all_namespaces, output } => approve::pending(&cluster().await?, all_namespaces, output).await,
        Command::Approve(arguments) => approve::decide(&cluster().await?, ApprovalDecision::Approve, &arguments).await,
        Command::Deny(arguments) => approve::decide(&cluster().await?, ApprovalDecision::Deny, &arguments).await,
        Command::Revoke { name } => approve::revoke(&cluster().await?, &name).await,
        Command::Suspend { policy, kill } => policy::suspend(&cluster().await?, &policy, Some(if kill { "Kill" } else { "Queue" })).await,
        Command::Resume { policy } => policy::suspend(&cluster().await?, &policy, None).await,
        Command::Policy(command) => match command {
            PolicyCommand::Test { file } => policy::test(&file).await,
            PolicyCommand::Effective { policy, files, label } => explain::effective(cluster, &policy, &files, &label).await,
            PolicyCommand::History(kept) => revisions::history(&cluster().await?, &kept).await,
            PolicyCommand::Diff { kept, from, to } => revisions::diff(&cluster().await?, &kept, from, to).await,
            PolicyCommand::Rollback { kept, to } => revisions::rollback(&cluster().await?, &kept, to).await,
        },
        Command::Audit(command) => match command {
            AuditCommand::Verify(copied) => audit::verify_copy(&copied),
            AuditCommand::Show { copied, run } => audit::show(&copied, run.as_deref()),
        },
        Command::Doctor(arguments) => doctor::doctor(&cluster().await?, &arguments).await,
        Command::Init(kit) => starter::init(&kit),
        Command::Version { client, output } => version::version(if client { None } else { Some(cluster().await) }, output).await,
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "kubectl-paddock", &mut std::io::stdout());
            Ok(Exit::Done)
        }
    }
}
