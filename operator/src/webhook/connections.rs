//! Who may be connected to the webhook. It cannot know an API server from a pod that speaks TLS, so nobody may take the room of all.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// Connections at once, in all and from one address. An API server needs a few.
const ALL: usize = 512;
const OF_ONE: usize = 64;

/// Number of a connection, in the order in which they came.
pub(super) type Number = u64;

/// What becomes of one who comes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admitted {
    /// It is served.
    Yes(Number),
    /// It is served, and this one is closed for it.
    For(Number, Number),
    /// It is not.
    No,
}

/// The open connections by address, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Connections {
    open: BTreeMap<IpAddr, Vec<Number>>,
    next: Number,
}

impl Connections {
    /// Where there is no room, whoever has the most loses the oldest to one who has fewer.
    pub(super) fn admit(&mut self, peer: IpAddr) -> Admitted {
        let own = self.open.get(&peer).map_or(0, Vec::len);
        if own >= OF_ONE {
            return Admitted::No;
        }
        let is_full = self.open.values().map(Vec::len).sum::<usize>() >= ALL;
        let most = self.open.iter().max_by_key(|(_, numbers)| numbers.len()).map(|(peer, numbers)| (*peer, numbers.len()));
        let evicted = match most.filter(|_| is_full) {
            None => None,
            Some((_, most)) if most <= own + 1 => return Admitted::No,
            Some((peer, _)) => self.open.get_mut(&peer).map(|numbers| numbers.remove(0)),
        };
        let number = self.next;
        self.next += 1;
        self.open.entry(peer).or_default().push(number);
        evicted.map_or(Admitted::Yes(number), |evicted| Admitted::For(number, evicted))
    }

    /// It has ended, of itself or for another.
    pub(super) fn ended(&mut self, peer: IpAddr, number: Number) {
        if let Some(numbers) = self.open.get_mut(&peer) {
            numbers.retain(|open| *open != number);
            if numbers.is_empty() {
                self.open.remove(&peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn peer(number: u8) -> IpAddr {
        [10, 0, 0, number].into()
    }

    #[test]
    fn nine_addresses_that_take_all_they_can_leave_room_for_a_tenth() {
        let mut connections = Connections::default();
        for _ in 0..OF_ONE {
            for greedy in 0..9 {
                connections.admit(peer(greedy));
            }
        }
        assert_eq!(connections.open.values().map(Vec::len).sum::<usize>(), ALL);
        for came in 0..20 {
            assert!(matches!(connections.admit(peer(99)), Admitted::For(..)), "{came}");
        }
        assert_eq!(connections.open[&peer(99)].len(), 20);
    }

    #[test]
    fn one_address_has_its_bound_and_what_ends_makes_room() {
        let mut connections = Connections::default();
        let numbers: Vec<Admitted> = (0..OF_ONE).map(|_| connections.admit(peer(1))).collect();
        assert_eq!(numbers[3], Admitted::Yes(3));
        assert_eq!(connections.admit(peer(1)), Admitted::No);
        connections.ended(peer(1), 3);
        assert!(matches!(connections.admit(peer(1)), Admitted::Yes(_)));
    }

    proptest! {
        /// However many come from wherever: whoever holds fewer than their share gets in, and never does anybody lose to one who has as many.
        #[test]
        fn a_fair_share_is_always_there(came in prop::collection::vec(0_u8..40, 0..2000)) {
            let mut connections = Connections::default();
            for address in came {
                let before = connections.open.clone();
                let own = before.get(&peer(address)).map_or(0, Vec::len);
                match connections.admit(peer(address)) {
                    Admitted::No => prop_assert!(own >= OF_ONE || before.values().all(|numbers| numbers.len() <= own + 1)),
                    Admitted::For(_, evicted) => {
                        let loser = before.values().find(|numbers| numbers.contains(&evicted)).expect("it was open");
                        prop_assert!(loser.len() > own + 1 && loser[0] == evicted);
                    }
                    Admitted::Yes(_) => {}
                }
                let all: usize = connections.open.values().map(Vec::len).sum();
                prop_assert!(all <= ALL && connections.open.values().all(|numbers| numbers.len() <= OF_ONE));
            }
        }
    }
}
