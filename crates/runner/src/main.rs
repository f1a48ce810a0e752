//! PID 1 of a sandbox: waits for the start message, runs one script within bounds, reports what became of it.
//!
//! It shares a user with the script, so it is written as if the script attacked it; what it reports is still only a claim.

mod capture;
mod control;
mod filter;
mod gate;
mod incoming;
mod install;
mod interpreter;
mod job;
mod look;
mod place;
mod pre_start;
mod proxy;
mod report;
mod result_file;
mod start;
mod supervise;
mod system;

use std::path::Path;
use std::process::ExitCode;

use paddock_protocol::NOT_RUN;
use start::JobSource;

const USAGE: &str = "usage: paddock-runner run JOB_FOLDER | wait JOB_FOLDER SANDBOX PUBLIC_KEY [INTERPRETER] | install TARGET_FOLDER | look [PLACE...] | --version";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["run", folder] => run(&JobSource::Mounted(Path::new(folder))),
        ["wait", folder, name, key] => run(&JobSource::ToCome { folder: Path::new(folder), name, key, pre_start: None }),
        ["wait", folder, name, key, interpreter] => match serde_json::from_str(interpreter) {
            Ok(pre_start) => run(&JobSource::ToCome { folder: Path::new(folder), name, key, pre_start: Some(pre_start) }),
            Err(error) => {
                eprintln!("paddock-runner: {interpreter} is no interpreter: {error}");
                ExitCode::from(2)
            }
        },
        ["install", folder] => match install::install(Path::new(folder)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("paddock-runner: cannot install into {folder}: {error}");
                ExitCode::FAILURE
            }
        },
        ["look", ref places @ ..] => {
            let proxy = std::env::var("HTTPS_PROXY").ok();
            for line in look::look(places, proxy.as_deref()) {
                println!("{line}");
            }
            ExitCode::SUCCESS
        }
        ["--version"] => {
            println!("paddock-runner {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn run(source: &JobSource<'_>) -> ExitCode {
    let mut reporter = report::Reporter::new(std::io::stdout());
    match supervise::run(source, &mut reporter) {
        Ok(code) => ExitCode::from(code),
        Err(refusal) => {
            reporter.refuse(refusal, Path::new(supervise::TERMINATION_LOG));
            ExitCode::from(NOT_RUN)
        }
    }
}
