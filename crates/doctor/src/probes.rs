//! What is tried. Every script is in the POSIX shell, with `cat`, `head`, `tail`, `wc` and a `sleep` that takes fractions; what it tells of its sandbox itself
//! the runner finds out, whatever the image holds.

use std::fmt::{self, Display};
use std::net::SocketAddr;

use crate::examine::Network;

/// A script that tries something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Part of the name of its run.
    pub name: &'static str,
    /// What it does.
    pub script: String,
    /// Seconds that it may take.
    pub timeout_seconds: i64,
    /// What it asks for of the network, as in `spec.capabilities.network`.
    pub network: Option<String>,
}

/// A place that must not be reached from a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// Something listens there.
    Tcp(SocketAddr),
    /// A name server.
    Dns(SocketAddr),
}

impl Place {
    /// Where it is.
    pub fn address(self) -> SocketAddr {
        match self {
            Self::Tcp(address) | Self::Dns(address) => address,
        }
    }
}

/// As `paddock-runner look` takes it.
impl Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp://{address}"),
            Self::Dns(address) => write!(f, "dns://{address}"),
        }
    }
}

/// What each probe asks for, so that what it tries is more than it may have: memory and scratch in MiB, CPU in thousandths.
pub(crate) const MEMORY_MIB: u64 = 128;
pub(crate) const SCRATCH_MIB: u64 = 16;
pub(crate) const CPU_MILLI: u64 = 500;

/// Bytes that are written to a scratch directory that must not take them: less than the memory that it is in. In several files: there is a limit on one
/// file too, and it is not the one to be seen.
pub(crate) const MANY_BYTES: u64 = FILES * FILE_BYTES;
const FILES: u64 = 12;
const FILE_BYTES: u64 = 8 << 20;
/// Bytes of memory that are held at once.
pub(crate) const HELD_BYTES: u64 = 1 << 30;
/// Processes that are started.
pub(crate) const PROCESSES: u64 = 20_000;

/// What the egress gateway must refuse, whoever asks: of none of it a run was granted anything.
pub(crate) const UNGRANTED: [&str; 6] =
    ["not-granted.invalid:443", "169.254.169.254:80", "127.0.0.1:8445", "10.0.0.1:443", "[::1]:443", "[::ffff:10.0.0.1]:443"];

const LOOK: &str = "/paddock/runner/paddock-runner look";

fn disk() -> String {
    format!(
        "i=0; while [ $i -lt {FILES} ]; do head -c {FILE_BYTES} /dev/zero > /workspace/probe$i 2>/dev/null; i=$((i+1)); done
echo \"written=$(cat /workspace/probe* | wc -c)\"
"
    )
}

/// How far one process counts in half a second, and how far four do together, at best of six times: with less than a core for all of them it is about the
/// same. Without a limit, what is used of a core or two is more than the run may have.
const CPU: &str = "cd /workspace
count() { i=0; trap 'echo $i; exit' TERM; while :; do i=$((i+1)); done; }
one=0
four=0
for turn in 1 2 3 4 5 6; do
  count > 1 &
  sleep 0.5
  kill $!
  wait
  all=
  for file in 2 3 4 5; do count > $file & all=\"$all $!\"; done
  sleep 0.5
  kill $all
  wait
  own=$(cat 1)
  sum=$(($(cat 2) + $(cat 3) + $(cat 4) + $(cat 5)))
  [ $own -gt $one ] && one=$own
  [ $sum -gt $four ] && four=$sum
done
echo \"one=$one\"
echo \"four=$four\"
";

/// What is asked of the gateway goes through the proxy, as for any client.
fn network(network: &Network) -> String {
    let asked = UNGRANTED.into_iter().chain([network.granted.as_str()]).map(|authority| format!("'proxy://{authority}'"));
    let places = network.places.iter().chain(network.kubelets.values().flatten()).map(|place| format!("'{place}'"));
    format!("{LOOK} {}\n", places.chain(asked).collect::<Vec<_>>().join(" "))
}

impl Probe {
    fn new(name: &'static str, script: &str, timeout_seconds: i64) -> Self {
        Self { name, script: script.to_owned(), timeout_seconds, network: None }
    }

    /// Looks around in a sandbox without a network.
    pub fn inside() -> Self {
        Self::new("inside", &format!("{LOOK}\n{}", disk()), 60)
    }

    /// Holds a gibibyte of memory, and ends.
    pub fn memory() -> Self {
        Self::new("memory", &format!("echo \"held=$(head -c {HELD_BYTES} /dev/zero | tail -c {HELD_BYTES} | wc -c)\""), 60)
    }

    /// Takes longer than it may, and ends.
    pub fn time() -> Self {
        Self::new("time", "sleep 20", 1)
    }

    /// Counts.
    pub fn cpu() -> Self {
        Self::new("cpu", CPU, 60)
    }

    /// Starts one process after the other.
    pub fn processes() -> Self {
        let start = format!("i=0; while [ $i -lt {PROCESSES} ]; do sleep 600 & i=$((i+1)); done");
        Self::new("processes", &format!("sleep 0 || exit 1; trap 'echo \"started=$i\"' EXIT; {start}"), 10)
    }

    /// Looks around in a sandbox with a network.
    pub fn networked(tried: &Network) -> Self {
        Self { network: Some(tried.granted.clone()), ..Self::new("network", &network(tried), 60) }
    }
}
