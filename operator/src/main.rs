//! `paddock-operator`: reconciles ScriptRuns into single-use gVisor pods.

mod admission;
mod approvals;
mod audit;
mod bounded;
mod bucket;
mod client;
mod config;
mod context;
mod crds;
mod diagnosis;
mod doctor;
mod egress;
mod errand;
mod error;
#[cfg(test)]
mod fake_api;
mod health;
mod input_check;
mod lease;
mod listed;
mod made_once;
mod metrics;
mod names;
mod pods;
mod policies;
mod pool;
mod preflight;
mod readable;
mod retire;
mod revisions;
mod sandbox_namespace;
mod script_run;
mod sealing;
mod server;
mod store;
mod telemetry;
mod tenancy;
mod traces;
mod trial;
mod webhook;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    // What this program does beside its main work, each in a process of its own.
    let argument = std::env::args().nth(1);
    match argument.as_deref() {
        Some(argument) if argument == input_check::BOUNDS.argument => return input_check::main(),
        Some(argument) if argument == paddock_preflight::BOUNDS.argument => return paddock_preflight::serve(),
        Some(argument) if argument == script_run::telling::BOUNDS.argument => return script_run::telling::main(),
        Some(crds::ARGUMENT) => return crds::main(),
        Some(admission::ARGUMENT) => return admission::main(),
        Some(trial::ARGUMENT) => return trial::main(),
        Some(doctor::ARGUMENT) => return doctor::main(),
        Some(argument @ (retire::DRAIN | retire::RETIRE)) => return retire::main(argument),
        _ => {}
    }
    let config = match config::Config::try_parse() {
        Ok(config) => config,
        Err(error) if error.use_stderr() => {
            eprintln!("paddock-operator: {}", first_paragraph(&error));
            return ExitCode::from(2);
        }
        Err(help) => help.exit(),
    };
    if let Err(problem) = config.check() {
        eprintln!("paddock-operator: {problem}");
        return ExitCode::from(2);
    }
    telemetry::start(config.log_format);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(config.threads).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("paddock-operator: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(server::run(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the operator ends");
            ExitCode::FAILURE
        }
    }
}

/// What is wrong with the arguments in one line, without the usage that clap adds.
fn first_paragraph(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let lines = text.lines().map(|line| line.trim_start_matches("error: ").trim()).take_while(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" ")
}
