//! Who may have how many connections, also of those that have shown no token yet: what is in memory is bounded, and nobody takes all of it.

use std::collections::HashMap;
use std::net::IpAddr;

/// Connections of one address: twice as many as the proxy of a sandbox opens.
const MOST_OF_ONE: usize = 128;

/// With so many a script can work.
const FEW: usize = 16;

/// The connections that there are.
#[derive(Debug)]
pub struct Connections {
    most: usize,
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

impl Connections {
    /// At most so many at once.
    pub fn new(most: usize) -> Self {
        Self { most, total: 0, by_address: HashMap::new() }
    }

    /// Counts one, if there is room for it. The last quarter is for those who have few.
    pub fn admit(&mut self, peer: IpAddr) -> bool {
        let own = self.by_address.get(&peer).copied().unwrap_or(0);
        let has_room = self.total < self.most * 3 / 4 || own < FEW;
        if own >= MOST_OF_ONE || self.total >= self.most || !has_room {
            return false;
        }
        self.total += 1;
        self.by_address.insert(peer, own + 1);
        true
    }

    /// How many there are.
    pub fn total(&self) -> usize {
        self.total
    }

    /// One of this address has ended.
    pub fn ended(&mut self, peer: IpAddr) {
        let Some(own) = self.by_address.get_mut(&peer) else { return };
        *own -= 1;
        if *own == 0 {
            self.by_address.remove(&peer);
        }
        self.total -= 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(number: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, number])
    }

    fn take_all(connections: &mut Connections, peer: IpAddr) -> usize {
        std::iter::from_fn(|| connections.admit(peer).then_some(())).count()
    }

    #[test]
    fn one_address_has_no_more_than_its_own() {
        let mut connections = Connections::new(1000);
        assert_eq!(take_all(&mut connections, address(1)), MOST_OF_ONE);
        connections.ended(address(1));
        assert!(connections.admit(address(1)) && !connections.admit(address(1)));
    }

    #[test]
    fn who_comes_late_still_has_some() {
        let mut connections = Connections::new(400);
        let greedy: usize = (1..=4).map(|number| take_all(&mut connections, address(number))).sum();
        assert_eq!(greedy, 300 + FEW, "the fourth had few");
        assert_eq!(take_all(&mut connections, address(9)), FEW);
    }

    proptest! {
        #[test]
        fn there_are_never_more_than_may_be(events in prop::collection::vec((0..12_u8, any::<bool>()), 0..400), most in 4..64_usize) {
            let mut connections = Connections::new(most);
            let mut open: HashMap<IpAddr, usize> = HashMap::new();
            for (number, comes) in events {
                let peer = address(number);
                if comes {
                    if connections.admit(peer) {
                        *open.entry(peer).or_default() += 1;
                    }
                } else if open.get(&peer).is_some_and(|own| *own > 0) {
                    connections.ended(peer);
                    *open.entry(peer).or_default() -= 1;
                }
                let total: usize = open.values().sum();
                prop_assert_eq!(connections.total, total);
                prop_assert!(total <= most);
            }
        }
    }
}
