//! The start gate of a sandbox that has a network: from inside, where the script will be, the one port that the network policy allows answers, and one
//! that it forbids does not. A port that is silent says nothing by itself, for the network may not be there yet, so the allowed one must have answered
//! before and must answer after.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use paddock_protocol::{Egress, RefusedReason};

use crate::proxy::Gateway;
use crate::report::Refusal;

/// How long the cluster may take to enforce the policy on a new pod.
const LIMIT: Duration = Duration::from_secs(30);
/// How long a port may take to answer, and how long one is listened for that must not.
const ANSWER: Duration = Duration::from_secs(1);
/// So many looks in a row must see the same: rules that are being written anew may be there for a moment only.
const LOOKS: u32 = 2;
const PAUSE: Duration = Duration::from_millis(100);

/// What was seen from inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// The gateway answers, and nothing else does.
    Confined,
    /// A port answers that the policy forbids.
    Open,
    /// The gateway does not answer.
    Deaf,
}

/// Waits until the policy is seen to be enforced.
pub(crate) fn pass(egress: &Egress) -> Result<(), Refusal> {
    pass_within(egress, LIMIT)
}

fn pass_within(egress: &Egress, limit: Duration) -> Result<(), Refusal> {
    let unusable = |error: io::Error| Refusal::new(RefusedReason::GatewayUnreachable, format!("the gateway cannot be asked: {error}"));
    let gateway = Gateway::new(egress.address, &egress.name, &egress.authority).map_err(unusable)?;
    let deadline = Instant::now() + limit;
    let mut confined = 0;
    loop {
        let seen = look(&gateway, egress.forbidden);
        confined = if seen == Seen::Confined { confined + 1 } else { 0 };
        match seen {
            Seen::Confined if confined == LOOKS => return Ok(()),
            Seen::Confined => {}
            _ if Instant::now() < deadline => std::thread::sleep(PAUSE),
            Seen::Open => return Err(Refusal::new(RefusedReason::NetworkNotConfined, format!("{} answers", egress.forbidden))),
            Seen::Deaf => return Err(Refusal::new(RefusedReason::GatewayUnreachable, format!("{} does not answer", egress.address))),
        }
    }
}

fn look(gateway: &Gateway, forbidden: SocketAddr) -> Seen {
    if !gateway.answers(ANSWER) {
        return Seen::Deaf;
    }
    if TcpStream::connect_timeout(&forbidden, ANSWER).is_ok() {
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
        Egress { address: served.address, forbidden, name: "paddock-egress".into(), authority: served.authority.clone() }
    }

    #[test]
    fn what_is_confined_passes() {
        let served = served("paddock-egress");
        assert!(pass_within(&egress(&served, closed()), SOON).is_ok());
    }

    #[test]
    fn a_port_that_answers_and_must_not_ends_it() {
        let served = served("paddock-egress");
        let open = TcpListener::bind("127.0.0.1:0").unwrap();
        let refusal = pass_within(&egress(&served, open.local_addr().unwrap()), SOON).unwrap_err();
        assert_eq!(refusal.reason, RefusedReason::NetworkNotConfined);
    }

    #[test]
    fn silence_everywhere_is_no_policy() {
        let served = served("paddock-egress");
        let absent = Egress { address: closed(), ..egress(&served, closed()) };
        assert_eq!(pass_within(&absent, SOON).unwrap_err().reason, RefusedReason::GatewayUnreachable);
    }

    #[test]
    fn somebody_else_is_not_the_gateway() {
        let (served, other) = (served("paddock-egress"), served("somebody-else"));
        for wrong in [Egress { authority: other.authority.clone(), ..egress(&served, closed()) }, egress(&other, closed())] {
            assert_eq!(pass_within(&wrong, SOON).unwrap_err().reason, RefusedReason::GatewayUnreachable);
        }
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
        assert!(pass_within(&egress(&served, forbidden), Duration::from_secs(20)).is_ok());
        begins.recv().unwrap();
        closing.join().unwrap();
    }
}
