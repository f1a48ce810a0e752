//! What is tried. Every script is in the POSIX shell; what it tells of its sandbox the runner finds out, whatever the image holds.

use std::fmt::{self, Display};
use std::net::SocketAddr;

use paddock_crds::Phase;

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
    /// The kubelet of a node, which some network policy controllers let its pods reach whatever a policy says.
    Kubelet(SocketAddr),
    /// A name server.
    Dns(SocketAddr),
}

impl Place {
    /// Where it is.
    pub fn address(self) -> SocketAddr {
        match self {
            Self::Tcp(address) | Self::Kubelet(address) | Self::Dns(address) => address,
        }
    }
}

/// As `paddock-runner look` takes it.
impl Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) | Self::Kubelet(address) => write!(f, "tcp://{address}"),
            Self::Dns(address) => write!(f, "dns://{address}"),
        }
    }
}

/// What each probe asks for, so that what it tries is more than it may have: memory and scratch in MiB, CPU in thousandths.
pub(crate) const MEMORY_MIB: u64 = 128;
pub(crate) const SCRATCH_MIB: u64 = 16;
pub(crate) const CPU_MILLI: u64 = 500;

/// Bytes that are written to a scratch directory that must not take them: less than the memory that it is in.
pub(crate) const MANY_BYTES: u64 = 96 << 20;

/// What the egress gateway must refuse, whoever asks: of none of it a run was granted anything.
pub(crate) const UNGRANTED: [&str; 6] =
    ["not-granted.invalid:443", "169.254.169.254:80", "127.0.0.1:8445", "10.0.0.1:443", "[::1]:443", "[::ffff:10.0.0.1]:443"];

const LOOK: &str = "/paddock/runner/paddock-runner look";

const DISK: &str = "head -c 100663296 /dev/zero > /workspace/probe 2>/dev/null
echo \"written=$(wc -c < /workspace/probe)\"
";

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
fn network(granted: &str, places: &[Place]) -> String {
    let asked = UNGRANTED.into_iter().chain([granted]).map(|authority| format!("'proxy://{authority}'"));
    let places: Vec<String> = places.iter().map(|place| format!("'{place}'")).chain(asked).collect();
    format!("{LOOK} {}\n", places.join(" "))
}

impl Probe {
    fn new(name: &'static str, script: &str, timeout_seconds: i64) -> Self {
        Self { name, script: script.to_owned(), timeout_seconds, network: None }
    }

    /// Looks around in a sandbox without a network.
    pub fn inside() -> Self {
        Self::new("inside", &format!("{LOOK}\n{DISK}"), 60)
    }

    /// Holds a gibibyte of memory, and ends.
    pub fn memory() -> Self {
        Self::new("memory", "head -c 1073741824 /dev/zero | tail -c 1073741824 | wc -c", 60)
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
        Self::new("processes", "sleep 0 || exit 1; i=0; while [ $i -lt 20000 ]; do sleep 600 & i=$((i+1)); done", 10)
    }

    /// Looks around in a sandbox with a network.
    pub fn networked(granted: &str, places: &[Place]) -> Self {
        Self { network: Some(granted.to_owned()), ..Self::new("network", &network(granted, places), 60) }
    }
}

/// How a script is ended that starts as many processes as it can: what has no limit of its own under gVisor is bounded by memory and time.
pub(crate) const ENDS_OF_PROCESSES: [Phase; 3] = [Phase::OutOfMemory, Phase::TimedOut, Phase::RunnerKilled];
