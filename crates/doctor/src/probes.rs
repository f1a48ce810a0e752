//! What is tried. Every script is in the POSIX shell, and with what every image with a shell has.

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

/// As `paddock-runner reach` takes it.
impl Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp://{address}"),
            Self::Dns(address) => write!(f, "dns://{address}"),
        }
    }
}

/// Bytes that are written to a disk that must not take them.
pub(crate) const MANY_BYTES: u64 = 4 << 30;

/// What the egress gateway must refuse to a run that was granted none of it: a name, what clouds call metadata, the gateway itself, nets of clusters,
/// and addresses that are written as others.
pub(crate) const UNGRANTED: [&str; 8] = [
    "not-granted.invalid:443",
    "169.254.169.254:80",
    "127.0.0.1:8445",
    "10.0.0.1:443",
    "192.168.0.1:443",
    "0x7f000001:443",
    "[::1]:443",
    "[::ffff:10.0.0.1]:443",
];

const FACTS: &str = "echo \"kernel=$(uname -r)\"
echo \"user=$(id -u)\"
echo \"token=$(find /var/run/secrets /run/secrets -name token 2>/dev/null | wc -l)\"
echo \"interfaces=$(tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' ' | tr '\\n' ' ')\"
if (echo x > /probe) 2>/dev/null; then echo root=writable; else echo root=read-only; fi
/paddock/runner/paddock-runner reach resolver
";

const DISK: &str = "head -c 4294967296 /dev/zero > /workspace/probe 2>/dev/null
echo \"written=$(wc -c < /workspace/probe)\"
";

/// How far one process counts in half a second, and how far four do together, at best of six times: with less than a core for all of them it is about the
/// same.
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

/// Addresses of the sandbox itself are those that lead further than its own link. What is asked of the gateway goes through the proxy, as for any client.
fn network(granted: &str, places: &[Place]) -> String {
    let places: Vec<String> = places.iter().map(Place::to_string).chain(asked(granted)).collect();
    format!(
        "{FACTS}echo \"ipv6=$(grep -v ' lo$' /proc/net/if_inet6 | grep -cv '^fe80')\"
/paddock/runner/paddock-runner reach {}
",
        places.join(" ")
    )
}

/// What the gateway is asked for: what it must refuse, and what was granted.
fn asked(granted: &str) -> impl Iterator<Item = String> {
    UNGRANTED.into_iter().chain([granted]).map(|authority| format!("'proxy://{authority}'"))
}

impl Probe {
    fn new(name: &'static str, script: &str, timeout_seconds: i64) -> Self {
        Self { name, script: script.to_owned(), timeout_seconds, network: None }
    }

    /// Looks around in a sandbox without a network.
    pub fn inside() -> Self {
        Self::new("inside", &format!("{FACTS}{DISK}"), 60)
    }

    /// Takes all memory there is.
    pub fn memory() -> Self {
        Self::new("memory", "tail /dev/zero", 60)
    }

    /// Does not end by itself.
    pub fn time() -> Self {
        Self::new("time", "sleep 600", 1)
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

/// How a script ends that starts as many processes as it can: what has no limit of its own under gVisor is bounded by memory and time, and none of them
/// outlives its run.
pub(crate) const ENDS_OF_PROCESSES: [Phase; 3] = [Phase::OutOfMemory, Phase::TimedOut, Phase::RunnerKilled];
