//! The start gate of a sandbox that has a network: from inside, where the script will be, the one port that the network policy allows answers, and one
//! that it forbids does not. A port that is silent says nothing by itself, for the network may not be there yet, so the allowed one must have answered
//! before and must answer after.
//!
//! Each family of addresses that the sandbox has is looked at by itself: network policies may be enforced for one of them alone.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use paddock_protocol::{Egress, Gate, RefusedReason};

use crate::proxy::Gateway;
use crate::report::Refusal;

/// How long the cluster may take to enforce the policy on a new pod.
const LIMIT: Duration = Duration::from_secs(30);
/// How long a port may take to answer, and how long one is listened for that must not.
const ANSWER: Duration = Duration::from_secs(1);
/// So many looks in a row must see the same: rules that are being written anew may be there for a moment only.
const LOOKS: u32 = 2;
const PAUSE: Duration = Duration::from_millis(100);

/// What was seen from inside. In this order: of several gates the last one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Seen {
    /// The gateway answers, and nothing else does.
    Confined,
    /// The gateway does not answer.
    Deaf,
    /// A port answers that the policy forbids.
    Open,
}

/// Waits until the policy is seen to be enforced. Returns where the gateway is.
pub(crate) fn pass(egress: &Egress) -> Result<SocketAddr, Refusal> {
    let has_ipv6 = match fs::read_to_string("/proc/net/if_inet6") {
        Ok(table) => has_ipv6(&table),
        // A kernel without IPv6 has no such file. What is there and cannot be read may hold an address.
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    };
    pass_within(egress, has_ipv6, LIMIT)
}

/// Whether there is an address that leads further than its own link: of `/proc/net/if_inet6`, the last word of a line is the interface.
fn has_ipv6(table: &str) -> bool {
    table.lines().any(|line| !line.ends_with(" lo") && !line.starts_with("fe80"))
}

fn pass_within(egress: &Egress, has_ipv6: bool, limit: Duration) -> Result<SocketAddr, Refusal> {
    let unusable = |error: io::Error| Refusal::new(RefusedReason::GatewayUnreachable, format!("the gateway cannot be asked: {error}"));
    let concerned = egress.gates.iter().filter(|gate| gate.allowed.is_ipv4() || has_ipv6);
    let gateway = |gate: &Gate| Gateway::new(gate.allowed, &egress.name, &egress.authority).map(|gateway| (*gate, gateway));
    let gates: Vec<(Gate, Gateway)> = concerned.map(gateway).collect::<io::Result<_>>().map_err(unusable)?;
    let Some((first, _)) = gates.first() else {
        return Err(Refusal::new(RefusedReason::GatewayUnreachable, "the gateway has no address of a family that the sandbox has"));
    };
    let deadline = Instant::now() + limit;
    let mut confined = 0;
    loop {
        let (seen, gate) = look(&gates).unwrap_or((Seen::Deaf, *first));
        confined = if seen == Seen::Confined { confined + 1 } else { 0 };
        match seen {
            Seen::Confined if confined == LOOKS => return Ok(first.allowed),
            Seen::Confined => {}
            _ if Instant::now() < deadline => thread::sleep(PAUSE),
            Seen::Open => return Err(Refusal::new(RefusedReason::NetworkNotConfined, format!("{} answers", gate.forbidden))),
            Seen::Deaf => return Err(Refusal::new(RefusedReason::GatewayUnreachable, format!("{} does not answer", gate.allowed))),
        }
    }
}

/// Looks at all at once: what is silent takes its time. `None` if there is nothing to look at.
fn look(gates: &[(Gate, Gateway)]) -> Option<(Seen, Gate)> {
    thread::scope(|scope| {
        let looking: Vec<_> = gates.iter().map(|(gate, gateway)| (gate, scope.spawn(move || look_at(gate, gateway)))).collect();
        // A look that broke off has seen nothing.
        let seen = looking.into_iter().map(|(gate, looked)| (looked.join().unwrap_or(Seen::Deaf), *gate));
        seen.max_by_key(|(seen, _)| *seen)
    })
}

fn look_at(gate: &Gate, gateway: &Gateway) -> Seen {
    if !gateway.answers(ANSWER) {
        return Seen::Deaf;
    }
    if TcpStream::connect_timeout(&gate.forbidden, ANSWER).is_ok() {
        return Seen::Open;
    }
    if gateway.answers(ANSWER) { Seen::Confined } else { Seen::Deaf }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::proxy::tests::{Served, served};

    const SOON: Duration = Duration::from_millis(300);

    /// A port of this machine at which nobody listens.
    fn closed() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    fn egress(served: &Served, forbidden: SocketAddr) -> Egress {
        let gates = vec![Gate { allowed: served.address, forbidden }];
        Egress { gates, name: "paddock-egress".into(), authority: served.authority.clone() }
    }

    #[test]
    fn what_is_confined_passes() {
        let served = served("paddock-egress");
        assert!(pass_within(&egress(&served, closed()), false, SOON).is_ok());
    }

    #[test]
    fn a_port_that_answers_and_must_not_ends_it() {
        let served = served("paddock-egress");
        let open = TcpListener::bind("127.0.0.1:0").unwrap();
        let refusal = pass_within(&egress(&served, open.local_addr().unwrap()), false, SOON).unwrap_err();
        assert_eq!(refusal.reason, RefusedReason::NetworkNotConfined);
    }

    #[test]
    fn silence_everywhere_is_no_policy() {
        let served = served("paddock-egress");
        let absent = Egress { gates: vec![Gate { allowed: closed(), forbidden: closed() }], ..egress(&served, closed()) };
        assert_eq!(pass_within(&absent, false, SOON).unwrap_err().reason, RefusedReason::GatewayUnreachable);
    }

    #[test]
    fn somebody_else_is_not_the_gateway() {
        let (served, other) = (served("paddock-egress"), served("somebody-else"));
        for wrong in [Egress { authority: other.authority.clone(), ..egress(&served, closed()) }, egress(&other, closed())] {
            assert_eq!(pass_within(&wrong, false, SOON).unwrap_err().reason, RefusedReason::GatewayUnreachable);
        }
    }

    /// As where a cluster gives pods both families, and enforces policies for one of them.
    #[test]
    fn each_family_that_the_sandbox_has_is_looked_at() {
        let served = served("paddock-egress");
        let open = TcpListener::bind("[::1]:0").unwrap().local_addr().unwrap();
        let listening = TcpListener::bind(open).unwrap();
        let ipv6 = Gate { allowed: served.address_ipv6, forbidden: listening.local_addr().unwrap() };
        let both = Egress { gates: vec![egress(&served, closed()).gates[0], ipv6], ..egress(&served, closed()) };
        assert_eq!(pass_within(&both, true, SOON).unwrap_err().reason, RefusedReason::NetworkNotConfined);
        assert!(pass_within(&both, false, SOON).is_ok(), "without an address of the family nothing is to be shown of it");
        drop(listening);
        assert_eq!(pass_within(&both, true, SOON).ok(), Some(served.address), "the first one is where the gateway is");
        let none = Egress { gates: vec![ipv6], ..both };
        assert_eq!(pass_within(&none, false, SOON).unwrap_err().reason, RefusedReason::GatewayUnreachable);
    }

    #[test]
    fn an_address_of_ones_own_link_leads_nowhere() {
        let line = |address: &str, interface: &str| format!("{address} 02 40 00 80 {interface:>8}\n");
        let (loopback, link) = (line("00000000000000000000000000000001", "lo"), line("fe80000000000000a8aab3fffe2a8c0b", "eth0"));
        assert!(!has_ipv6(&loopback) && !has_ipv6(&(loopback.clone() + &link)) && !has_ipv6(""));
        assert!(has_ipv6(&(loopback + &link + &line("fd001002130000000000000000000007", "eth0"))));
    }

    #[test]
    fn a_policy_that_comes_late_is_waited_for() {
        let served = served("paddock-egress");
        let open = TcpListener::bind("127.0.0.1:0").unwrap();
        let forbidden = open.local_addr().unwrap();
        let (begun, begins) = std::sync::mpsc::channel();
        let closing = std::thread::spawn(move || {
            // It was seen to be open at least once before it closes.
            open.accept().unwrap();
            drop(open);
            begun.send(()).unwrap();
        });
        assert!(pass_within(&egress(&served, forbidden), false, Duration::from_secs(20)).is_ok());
        begins.recv().unwrap();
        closing.join().unwrap();
    }
}
