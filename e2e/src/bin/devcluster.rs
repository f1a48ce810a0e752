//! `devcluster`: a real Kubernetes with gVisor on this machine.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use paddock_e2e::cluster::layout::Layout;
use paddock_e2e::cluster::{component, images, lifecycle, requirements};

/// A real Kubernetes with gVisor on this machine, for development and tests.
#[derive(Parser)]
#[command(version, propagate_version = true)]
struct Arguments {
    /// Folder for built programs and images [default: ~/.cache/paddock]
    #[arg(long, env = "PADDOCK_CACHE", global = true)]
    cache: Option<PathBuf>,
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Builds what is missing, starts the cluster and waits until a gVisor pod can start
    Up,
    /// Ends the cluster; images and certificates stay
    Down,
    /// Tells which processes run
    Status,
    /// Prints the log of a process
    Logs {
        /// One of the names that `status` prints, or `audit`
        name: String,
    },
    /// Prints the path of the administrator's kubeconfig
    Kubeconfig,
    /// Prints the path of a program of the cluster, such as kubectl or helm
    Which {
        /// Name of the program
        program: String,
    },
    /// Builds one program of the cluster, such as helm, if it is missing, and prints its path
    Tool {
        /// Name of the program
        program: String,
    },
    /// Imports an image from an OCI or Docker archive
    Load {
        /// The archive
        image: PathBuf,
    },
    /// Builds the images of operator, runner and egress gateway from their static binaries and imports them
    Images {
        /// Folder that holds paddock-operator, paddock-runner and paddock-egress
        binaries: PathBuf,
    },
    /// Builds the images of runtimes that are missing, and prints the archive of each with its digest
    RuntimeImages,
    /// Ends the cluster and removes everything but the build cache
    Reset,
    /// Installs the Debian packages that are missing, and says which
    Packages,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if error.use_stderr() => {
            eprintln!("devcluster: {}", first_paragraph(&error));
            return ExitCode::from(2);
        }
        Err(help) => help.exit(),
    };
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("devcluster: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// What a program said last tells what went wrong.
fn last_line(error: &anyhow::Error) -> String {
    format!("{error:#}").lines().last().unwrap_or_default().trim().to_owned()
}

/// What is wrong with the arguments, without the usage that clap adds.
fn first_paragraph(error: &clap::Error) -> String {
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => "name a command; devcluster --help tells which there are".to_owned(),
        _ => text
            .lines()
            .map(|line| line.trim_start_matches("error: ").trim())
            .take_while(|line| !line.is_empty())
            .collect::<Vec<_>>()
            .join(" "),
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
    let clone = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the crate lies in the clone")?;
    let layout = Layout::new(clone, arguments.cache, &home);
    let begin = Instant::now();
    let say = move |text: &str| println!("[{:4} s] {text}", begin.elapsed().as_secs());
    match arguments.command {
        Action::Up => lifecycle::up(&layout, &say)?,
        Action::Down => lifecycle::down(&layout, &say)?,
        Action::Reset => lifecycle::reset(&layout, &say)?,
        Action::Status => {
            for (name, state) in lifecycle::status(&layout) {
                println!("{name:24} {state}");
            }
        }
        Action::Logs { name } => logs(&layout, &name)?,
        Action::Kubeconfig => println!("{}", layout.kubeconfig().display()),
        Action::Which { program } => {
            println!("{}", component::built(&layout)?.path(&program)?.display());
        }
        Action::Tool { program } => println!("{}", component::build_one(&layout, &program)?.display()),
        Action::Load { image } => {
            let loaded = images::load(&layout, &component::built(&layout)?, &image)
                .map_err(|error| anyhow::anyhow!("{} cannot be imported: {}", image.display(), last_line(&error)))?;
            println!("{}", if loaded { "loaded" } else { "loaded before" });
        }
        Action::Images { binaries } => {
            for name in images::load_own(&layout, &component::built(&layout)?, &binaries)? {
                println!("{name}");
            }
        }
        Action::RuntimeImages => {
            for archive in images::build_base(&layout, &|text| eprintln!("{text}"))? {
                println!("{} {}", archive.display(), images::digest(&archive)?);
            }
        }
        Action::Packages => requirements::install(&|text| println!("{text}"))?,
    }
    Ok(())
}

fn logs(layout: &Layout, name: &str) -> Result<()> {
    let known = lifecycle::PROCESSES.join(", ");
    let path = if name == "audit" { layout.audit_log() } else { layout.log(name) };
    anyhow::ensure!(name == "audit" || lifecycle::PROCESSES.contains(&name), "no process {name}; there are {known}, and audit");
    let text = std::fs::read(&path).with_context(|| format!("{name} has no log: the cluster was not started"))?;
    std::io::Write::write_all(&mut std::io::stdout(), &text)?;
    Ok(())
}
