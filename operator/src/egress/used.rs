//! What runs have used of the network, as the replicas of the gateway report it: connections that are over, and attempts that were refused.
//!
//! It is counted by the replica that leads, from when it leads. Reports can be lost, so that there may have been more.

use std::collections::HashMap;

use paddock_egress::wire::{Outcome, Report};

/// What one run has used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Used {
    /// Connections that were asked for and are over, the refused ones among them.
    pub(crate) connections: u64,
    /// Those that were refused for where they would have led.
    pub(crate) refused: u64,
    /// Bytes from the script.
    pub(crate) sent: u64,
    /// Bytes to the script.
    pub(crate) received: u64,
    /// Where to, each once, in the order in which they were first asked for.
    pub(crate) refusals: Vec<Refusal>,
    /// A connection was cut or refused because the run has had its bytes.
    pub(crate) is_spent: bool,
}

/// What a report makes news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// The run has so many refusals by now.
    Refused(u64),
    /// It has used up its bytes at a replica, for the first time.
    Spent,
}

/// One destination that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// As it was asked for: anything that a script can put into the name of a host.
    pub(crate) to: String,
    pub(crate) outcome: Outcome,
    pub(crate) rule: String,
    pub(crate) count: u64,
}

/// Different refusals that are kept of one run.
const REFUSALS: usize = 16;
/// Runs that are remembered; there are fewer active ones in any cluster. Of more, new ones are not counted one by one.
const REMEMBERED: usize = 20_000;

/// By UID.
#[derive(Debug, Default)]
pub(crate) struct UsedByRuns(HashMap<String, Used>);

/// Whether a connection was refused for where it would have led, and not for how much or how long.
fn is_refused(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::NotGranted | Outcome::AddressRefused | Outcome::NotItsHost)
}

impl UsedByRuns {
    /// Counts.
    pub(crate) fn take(&mut self, report: &Report) -> Option<News> {
        if self.0.len() >= REMEMBERED && !self.0.contains_key(&report.run) {
            return None;
        }
        let used = self.0.entry(report.run.clone()).or_default();
        used.take(report);
        if is_refused(report.outcome) {
            return Some(News::Refused(used.refused));
        }
        let is_first = report.outcome == Outcome::BudgetSpent && !std::mem::replace(&mut used.is_spent, true);
        is_first.then_some(News::Spent)
    }

    pub(crate) fn of(&self, uid: &str) -> Option<&Used> {
        self.0.get(uid)
    }

    pub(crate) fn forget(&mut self, uid: &str) {
        self.0.remove(uid);
    }
}

impl Used {
    fn take(&mut self, report: &Report) {
        self.connections += 1;
        self.sent = self.sent.saturating_add(report.sent);
        self.received = self.received.saturating_add(report.received);
        if !is_refused(report.outcome) {
            return;
        }
        self.refused += 1;
        let is_it = |known: &&mut Refusal| known.to == report.to && known.outcome == report.outcome;
        if let Some(known) = self.refusals.iter_mut().find(is_it) {
            known.count += 1;
        } else if self.refusals.len() < REFUSALS {
            let (to, outcome, rule) = (report.to.clone(), report.outcome, report.rule.clone());
            self.refusals.push(Refusal { to, outcome, rule, count: 1 });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(run: &str, to: &str, outcome: Outcome) -> Report {
        let (run, name, to, rule) = (run.to_owned(), "team/run".to_owned(), to.to_owned(), "rule".to_owned());
        Report { run, name, to, rule, outcome, address: None, sent: 5, received: 7, milliseconds: 1 }
    }

    #[test]
    fn what_was_refused_is_counted_by_where_it_would_have_led() {
        let mut used = UsedByRuns::default();
        assert_eq!(used.take(&report("a", "x:443", Outcome::Closed)), None);
        assert_eq!(used.take(&report("a", "x:443", Outcome::NotGranted)), Some(News::Refused(1)));
        assert_eq!(used.take(&report("a", "y:443", Outcome::AddressRefused)), Some(News::Refused(2)));
        assert_eq!(used.take(&report("a", "x:443", Outcome::NotGranted)), Some(News::Refused(3)));
        assert_eq!(used.take(&report("a", "x:443", Outcome::BudgetSpent)), Some(News::Spent));
        for other in [Outcome::NotConnected, Outcome::TooManyTunnels, Outcome::BudgetSpent, Outcome::Cut, Outcome::Idle] {
            assert_eq!(used.take(&report("a", "x:443", other)), None);
        }
        assert_eq!(used.take(&report("b", "x:443", Outcome::NotItsHost)), Some(News::Refused(1)));
        let of_a = used.of("a").unwrap();
        let told: Vec<_> = of_a.refusals.iter().map(|refusal| (refusal.to.as_str(), refusal.outcome, refusal.count)).collect();
        assert_eq!(told, [("x:443", Outcome::NotGranted, 2), ("y:443", Outcome::AddressRefused, 1)]);
        assert_eq!((of_a.connections, of_a.refused, of_a.sent, of_a.received), (10, 3, 50, 70));
        used.forget("a");
        assert_eq!(used.of("a"), None);
    }

    #[test]
    fn a_script_that_asks_without_end_takes_no_more_memory() {
        let mut used = UsedByRuns::default();
        for number in 0..1000 {
            used.take(&report("a", &format!("{number}:443"), Outcome::NotGranted));
        }
        let of_a = used.of("a").unwrap();
        assert_eq!((of_a.refusals.len(), of_a.refused), (REFUSALS, 1000));
        for number in 0..2 * REMEMBERED {
            used.take(&report(&number.to_string(), "x:443", Outcome::NotGranted));
        }
        assert_eq!(used.0.len(), REMEMBERED);
        assert_eq!(used.take(&report("a", "x:443", Outcome::NotGranted)), Some(News::Refused(1001)), "who is known goes on being counted");
    }
}
