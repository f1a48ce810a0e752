//! Who may take a slot. Pure: usage and limits in, an answer out.

use std::collections::{BTreeMap, BTreeSet};

/// What is known about the other runs of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// UIDs of runs that hold a slot: admitted and not finished, about to be, or with a pod that lives.
    pub(crate) active: BTreeSet<String>,
    /// Runs that wait for a slot, in their order.
    pub(crate) waiting: BTreeSet<Turn>,
    /// Runs that wait because a policy of theirs is suspended: they hold up nobody, and take a place in the queue.
    pub(crate) suspended: BTreeSet<Turn>,
}

/// Place in the queue: older first, equals by UID.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Turn {
    /// Creation, in seconds since the epoch.
    pub(crate) created: i64,
    /// UID of the run.
    pub(crate) uid: String,
}

/// Limits of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueueLimits {
    pub(crate) max_concurrent: u32,
    pub(crate) max_queued: u32,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Take the slot.
    Admit,
    /// Wait; so many wait before this one.
    Wait {
        /// 0 for the next in line.
        ahead: usize,
    },
    /// As many wait as may.
    Full,
}

/// Decides for one run. It takes a slot only if there is one for everybody who waits before it as well.
pub(crate) fn admit(usage: &Usage, limits: QueueLimits, turn: &Turn) -> Admission {
    if usage.active.contains(&turn.uid) {
        return Admission::Admit;
    }
    let ahead = usage.waiting.iter().filter(|other| *other < turn).count();
    let free = (limits.max_concurrent as usize).saturating_sub(usage.active.len());
    if ahead < free {
        return Admission::Admit;
    }
    let is_waiting = usage.waiting.contains(turn) || usage.suspended.contains(turn);
    if !is_waiting && usage.waiting.len() + usage.suspended.len() >= limits.max_queued as usize {
        return Admission::Full;
    }
    Admission::Wait { ahead }
}

/// Of those who wait, the first of each kind. Runs of one policy have the same limits, so no other of them gets a slot before its first.
pub(crate) fn heads<K: Ord, T>(waiting: impl IntoIterator<Item = (K, Turn, T)>) -> Vec<T> {
    let mut first: BTreeMap<K, (Turn, T)> = BTreeMap::new();
    for (kind, turn, run) in waiting {
        if first.get(&kind).is_none_or(|(known, _)| turn < *known) {
            first.insert(kind, (turn, run));
        }
    }
    first.into_values().map(|(_, run)| run).collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn turn(created: i64) -> Turn {
        Turn { created, uid: format!("u{created}") }
    }

    fn usage(active: usize, waiting: &[i64]) -> Usage {
        Usage {
            active: (0..active).map(|n| format!("active-{n}")).collect(),
            waiting: waiting.iter().copied().map(turn).collect(),
            ..Usage::default()
        }
    }

    #[rstest]
    #[case::room(usage(1, &[]), 5, Admission::Admit)]
    #[case::none_left(usage(2, &[]), 5, Admission::Wait { ahead: 0 })]
    #[case::the_older_one_first(usage(1, &[3]), 5, Admission::Wait { ahead: 1 })]
    #[case::the_older_one_itself(usage(1, &[3]), 3, Admission::Admit)]
    #[case::the_younger_one_does_not_matter(usage(1, &[9]), 5, Admission::Admit)]
    #[case::queue_full(usage(2, &[1, 2, 3]), 5, Admission::Full)]
    #[case::but_not_for_those_in_it(usage(2, &[1, 2, 3]), 3, Admission::Wait { ahead: 2 })]
    #[case::over_the_limit(usage(7, &[]), 5, Admission::Wait { ahead: 0 })]
    fn decides(#[case] usage: Usage, #[case] created: i64, #[case] expected: Admission) {
        assert_eq!(admit(&usage, QueueLimits { max_concurrent: 2, max_queued: 3 }, &turn(created)), expected);
    }

    #[test]
    fn only_the_first_of_each_policy_is_next() {
        let waiting = [("a", 3), ("b", 9), ("a", 1), ("a", 2), ("b", 5)].map(|(policy, created)| (policy, turn(created), created));
        assert_eq!(heads(waiting), [1, 5]);
    }

    #[test]
    fn who_waits_for_a_suspended_policy_holds_up_nobody_and_takes_a_place() {
        let mut usage = usage(1, &[]);
        usage.suspended = [1, 2, 3].into_iter().map(turn).collect();
        let limits = QueueLimits { max_concurrent: 2, max_queued: 3 };
        assert_eq!(admit(&usage, limits, &turn(5)), Admission::Admit);
        let none_left = QueueLimits { max_concurrent: 1, ..limits };
        assert_eq!(admit(&usage, none_left, &turn(5)), Admission::Full);
        assert_eq!(admit(&usage, none_left, &turn(2)), Admission::Wait { ahead: 0 });
    }

    #[test]
    fn a_limit_of_zero_admits_nobody() {
        let limits = QueueLimits { max_concurrent: 0, max_queued: 1 };
        assert_eq!(admit(&Usage::default(), limits, &turn(1)), Admission::Wait { ahead: 0 });
    }
}
