//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use jiff::Timestamp;

/// Runs scripts in sandboxes, and shows what became of them
#[derive(Parser, Debug)]
#[command(name = "kubectl-paddock", bin_name = "kubectl paddock", version, propagate_version = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) connection: Connection,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The cluster and who calls: as kubectl has it.
#[derive(Args, Debug, Default)]
pub(crate) struct Connection {
    /// Namespace of the runs [default: that of the context]
    #[arg(short, long, global = true)]
    pub(crate) namespace: Option<String>,
    /// Context of the kubeconfig
    #[arg(long, global = true)]
    pub(crate) context: Option<String>,
    /// Path of the kubeconfig [default: $KUBECONFIG, then ~/.kube/config]
    #[arg(long, global = true)]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// User to act as
    #[arg(long = "as", global = true, value_name = "USER")]
    pub(crate) as_user: Option<String>,
    /// Group to act as; can be repeated
    #[arg(long = "as-group", global = true, value_name = "GROUP")]
    pub(crate) as_group: Vec<String>,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Run a script, follow it, print what it put out, and exit with its exit code
    #[command(after_help = crate::exit::HELP)]
    Run(Box<Run>),
    /// List runs, or show one
    Get {
        /// Name of a run
        name: Option<String>,
        /// Those of every namespace
        #[arg(short = 'A', long)]
        all_namespaces: bool,
        /// Format
        #[arg(short, long, value_enum, default_value = "table")]
        output: Output,
    },
    /// Tell the life of a run: what happened when, what was decided by which rule, and how it ended
    Describe {
        /// Name of the run
        name: String,
    },
    /// Print what a script put out, masked: standard output on standard output, standard error on standard error
    Logs {
        /// Name of the run
        name: String,
        /// Wait until there is something
        #[arg(short, long)]
        follow: bool,
    },
    /// Print the JSON value that a script gave as its result
    Result {
        /// Name of the run
        name: String,
        /// Format
        #[arg(short, long, value_enum, default_value = "json")]
        output: Document,
    },
    /// End a run
    Cancel {
        /// Name of the run
        name: String,
        /// Wait until it is over
        #[arg(long)]
        wait: bool,
    },
    /// Tell every permission that a run asks for, and which rule of which policy grants or refuses it
    #[command(
        after_help = "With --policy no cluster is asked: --as and --as-group say who would create the run, --namespace (or else default) and --label where. Exits with 0 if the run is allowed, with 120 if it is refused, or would wait for approvals or for a policy that is suspended."
    )]
    Explain(Explain),
    /// List the runs that wait for an approval
    Pending {
        /// Those of every namespace
        #[arg(short = 'A', long)]
        all_namespaces: bool,
        /// How they are written
        #[arg(short, long, value_enum, default_value = "table")]
        output: Output,
    },
    /// Show what a run would do, and approve it
    Approve(Decide),
    /// Show what a run would do, and decide that it may not
    Deny(Decide),
    /// Take an approval or a denial back
    Revoke {
        /// Name of the ScriptApproval
        name: String,
    },
    /// Print the digest that approvals of a run are bound to, and that of its schema
    #[command(after_help = "With --policy no cluster is asked. docs/approvals.md tells what it is made of.")]
    Digest(Explain),
    /// Suspend a policy: admit nothing more under it
    Suspend {
        /// NAME of a SandboxPolicy in the namespace, or cluster/NAME
        policy: String,
        /// Also end what runs under it, without grace
        #[arg(long)]
        kill: bool,
    },
    /// Resume a policy that is suspended
    Resume {
        /// NAME of a SandboxPolicy in the namespace, or cluster/NAME
        policy: String,
    },
    /// Work on policies
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Read a copy of the audit log, without a cluster
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Look whether this cluster keeps what Paddock promises: scripts try what must not be possible
    #[command(
        after_help = "Runs five scripts in the namespace, or six with --network, with the rights of whoever calls, and deletes them. Exits with 0 if every check holds, and with 1 if one fails or could not be looked at."
    )]
    Doctor(Doctor),
    /// Write a starter kit into a new folder: a policy, a script, a run and a test
    Init(Kit),
    /// Tell the versions of this program and of Paddock, and what the cluster has for it
    Version {
        /// Only that of this program
        #[arg(long)]
        client: bool,
        /// Format
        #[arg(short, long, value_enum, default_value = "table")]
        output: Output,
    },
    /// Print a completion script
    Completion {
        /// The shell
        #[arg(value_enum)]
        shell: Shell,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Run {
    /// A script, a ScriptRun as YAML or JSON, or - for a script on standard input
    pub(crate) file: PathBuf,
    /// Runtime that the policy offers [default: by the file's extension]
    #[arg(short, long)]
    pub(crate) runtime: Option<String>,
    /// Policy to run under: NAME of a SandboxPolicy in the namespace, or cluster/NAME [default: cluster/baseline]
    #[arg(short, long)]
    pub(crate) policy: Option<String>,
    /// Input: JSON, or @FILE with JSON
    #[arg(short, long)]
    pub(crate) input: Option<String>,
    /// Set one field of the input: NAME=VALUE, or NAME.NAME=VALUE; the value is JSON if it can be read as such, or else text. Can be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) set: Vec<String>,
    /// Argument of the script; can be repeated
    #[arg(short, long, allow_hyphen_values = true)]
    pub(crate) arg: Vec<String>,
    /// Seconds until the script is ended [default: that of the policy]
    #[arg(short, long, value_parser = clap::value_parser!(i64).range(1..=86400))]
    pub(crate) timeout: Option<i64>,
    /// Name of the run [default: made from that of the file]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Delete the run so many seconds after its end
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(i64).range(0..=31_536_000))]
    pub(crate) ttl: Option<i64>,
    /// Create the run, print its name, and do not wait
    #[arg(long)]
    pub(crate) detach: bool,
    /// Print the object that would be created, and do nothing
    #[arg(long = "dry-run")]
    pub(crate) render: bool,
    /// What is printed at the end: what the script put out, or the whole object
    #[arg(short, long, value_enum, default_value = "text")]
    pub(crate) output: Shown,
}

#[derive(Args, Debug)]
pub(crate) struct Explain {
    /// A script, a ScriptRun as YAML or JSON, or the name of a run
    #[arg(value_name = "FILE|RUN")]
    pub(crate) target: PathBuf,
    /// File with policies to decide by, instead of those of the cluster; can be repeated
    #[arg(short, long, value_name = "FILE")]
    pub(crate) policy: Vec<PathBuf>,
    /// Label of the namespace, where policies come from files; can be repeated
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub(crate) label: Vec<String>,
    /// Time at which it would be decided, as in 2026-11-27T22:00:00Z, for policies with time windows [default: now]
    #[arg(long, value_name = "TIME")]
    pub(crate) now: Option<Timestamp>,
    /// Runtime that the policy offers [default: by the file's extension]
    #[arg(short, long)]
    pub(crate) runtime: Option<String>,
    /// Policy that the run names: NAME of a SandboxPolicy, or cluster/NAME [default: cluster/baseline]
    #[arg(long, value_name = "POLICY")]
    pub(crate) under: Option<String>,
    /// Format
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Output,
}

#[derive(Args, Debug)]
pub(crate) struct Decide {
    /// Name of the run
    pub(crate) name: String,
    /// Every run of the namespace with the same digest, not this one alone
    #[arg(long)]
    pub(crate) every_run: bool,
    /// The digest that you have seen: nothing is decided on another, and nothing is asked. Once more for that of the schema
    #[arg(long)]
    pub(crate) digest: Vec<String>,
    /// Decide without a question
    #[arg(short, long, conflicts_with = "digest")]
    pub(crate) yes: bool,
    /// Seconds until the decision counts no more
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(i64).range(1..=31_536_000))]
    pub(crate) expires_in: Option<i64>,
    /// Why
    #[arg(long)]
    pub(crate) comment: Option<String>,
}

#[derive(Subcommand, Debug)]
pub(crate) enum AuditCommand {
    /// Tell whether a copy of the audit log is what was signed, and what is in it
    #[command(after_help = "docs/audit.md tells how to copy the log. Exits with 1 if the copy is not what was signed.")]
    Verify(Copied),
    /// Print the records of a copy that is what was signed, one JSON object a line
    Show {
        #[command(flatten)]
        copied: Copied,
        /// Only those about this run: NAMESPACE/NAME, or its UID
        #[arg(long)]
        run: Option<String>,
    },
}

/// A copy of an audit log.
#[derive(Args, Debug)]
pub(crate) struct Copied {
    /// The folder that holds it
    pub(crate) folder: PathBuf,
    /// Key that must have signed it, NAME+ID+KEY, or a file with it: the field verifier of the Secret paddock-audit
    #[arg(long)]
    pub(crate) key: String,
    /// A checkpoint of this log that was kept: the log must go on from it; can be repeated
    #[arg(long, value_name = "FILE")]
    pub(crate) since: Vec<PathBuf>,
}

#[derive(Subcommand, Debug)]
pub(crate) enum PolicyCommand {
    /// Hold policies against a file of cases, without a cluster
    #[command(after_help = "docs/policies.md tells what is in the file. Exits with 1 if a case comes out otherwise than expected.")]
    Test {
        /// The file
        file: PathBuf,
    },
    /// Tell what the policies of the namespace allow together, and which rule says so
    Effective {
        /// The policy that runs name: NAME of a SandboxPolicy, or cluster/NAME
        #[arg(default_value = "cluster/baseline")]
        policy: String,
        /// File with policies, instead of those of the cluster; can be repeated
        #[arg(short = 'p', long = "policy", value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Label of the namespace, where policies come from files; can be repeated
        #[arg(short, long, value_name = "KEY=VALUE")]
        label: Vec<String>,
    },
    /// List what a policy said, who wrote it, and when it was seen
    History(Kept),
    /// Compare two revisions of a policy
    Diff {
        #[command(flatten)]
        kept: Kept,
        /// The older revision [default: the newest before the one that holds]
        #[arg(long)]
        from: Option<i64>,
        /// The newer revision [default: the one that holds]
        #[arg(long)]
        to: Option<i64>,
    },
    /// Have a policy say again what it said in a revision
    Rollback {
        #[command(flatten)]
        kept: Kept,
        /// The revision [default: the newest before the one that holds]
        #[arg(long)]
        to: Option<i64>,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Kept {
    /// NAME of a SandboxPolicy in the namespace, or cluster/NAME
    pub(crate) policy: String,
    /// Namespace of Paddock, which keeps the revisions of ClusterSandboxPolicies
    #[arg(long, default_value = "paddock-system")]
    pub(crate) paddock_namespace: String,
}

#[derive(Args, Debug)]
pub(crate) struct Doctor {
    /// Policy to run under: NAME of a SandboxPolicy in the namespace, or cluster/NAME
    #[arg(short, long, default_value = "cluster/baseline")]
    pub(crate) policy: String,
    /// Runtime that the policy offers, with a POSIX shell
    #[arg(short, long, default_value = "shell")]
    pub(crate) runtime: String,
    /// Also look at a sandbox with a network: HOST:PORT that the policy grants. It is connected to, and nothing is said
    #[arg(short = 'N', long, value_name = "HOST:PORT")]
    pub(crate) network: Option<String>,
    /// Run nothing, and show what the cluster was last found to be (`kubectl get diagnosis cluster`)
    #[arg(long, conflicts_with_all = ["policy", "runtime", "network"])]
    pub(crate) stored: bool,
    /// Format
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Output,
}

#[derive(Args, Debug)]
pub(crate) struct Kit {
    /// Folder to make
    pub(crate) folder: PathBuf,
    /// Language of the script
    #[arg(short, long, value_enum, default_value = "python")]
    pub(crate) language: Language,
    /// What the script is for
    #[arg(short, long, value_enum, default_value = "transform")]
    pub(crate) purpose: Purpose,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// For people
    Table,
    /// JSON
    Json,
    /// YAML
    Yaml,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Document {
    /// JSON
    Json,
    /// YAML
    Yaml,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// What the script put out: its streams, then its result
    Text,
    /// The ScriptRun as JSON
    Json,
    /// The ScriptRun as YAML
    Yaml,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Language {
    /// Python
    Python,
    /// JavaScript, as a module
    Javascript,
    /// TypeScript, whose types are stripped
    Typescript,
    /// POSIX shell
    Shell,
    /// bash
    Bash,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Rows in, rows out
    Transform,
    /// Accept or refuse an input
    Check,
}
