//! How many bytes a run may send and receive in a second, whatever it opens.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What all tunnels of a run share. A second's worth may come at once; what is carried beyond that is made up for by waiting.
#[derive(Debug)]
pub struct Rate {
    bytes_per_second: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Bytes that may be carried at once; less than none after too many were.
    left: i64,
    counted: Instant,
}

impl Rate {
    /// Of so many bytes.
    pub fn new(bytes_per_second: u64, now: Instant) -> Self {
        Self { bytes_per_second, state: Mutex::new(State { left: signed(bytes_per_second), counted: now }) }
    }

    /// In a second.
    pub fn bytes_per_second(&self) -> u64 {
        self.bytes_per_second
    }

    /// How long nothing may be carried; `None` if something may be at once.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.saturating_duration_since(state.counted);
        let earned = passed.as_nanos().saturating_mul(u128::from(self.bytes_per_second)) / 1_000_000_000;
        // Less than a byte is not lost, however often it is looked at.
        if earned > 0 {
            let earned = i64::try_from(earned).unwrap_or(i64::MAX);
            state.left = state.left.saturating_add(earned).min(signed(self.bytes_per_second));
            state.counted = now;
        }
        let missing = u64::try_from(1 - state.left).ok().filter(|missing| *missing > 0)?;
        let nanoseconds = u128::from(missing) * 1_000_000_000 / u128::from(self.bytes_per_second.max(1));
        Some(Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX)).max(Duration::from_millis(1)))
    }

    /// So many bytes were carried.
    pub fn take(&self, bytes: usize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.left = state.left.saturating_sub(signed(bytes as u64));
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_second_comes_at_once_and_more_is_waited_for() {
        let begin = Instant::now();
        let at = |milliseconds| begin + Duration::from_millis(milliseconds);
        let rate = Rate::new(1000, begin);
        assert_eq!(rate.wait(begin), None);
        rate.take(1000);
        assert_eq!(rate.wait(begin), Some(Duration::from_millis(1)));
        rate.take(4000);
        assert_eq!(rate.wait(begin), Some(Duration::from_millis(4001)));
        assert_eq!(rate.wait(at(4000)), Some(Duration::from_millis(1)));
        assert_eq!(rate.wait(at(4001)), None);
        // What is not used for a minute is not saved.
        assert_eq!(rate.wait(at(64_000)), None);
        rate.take(2000);
        assert_eq!(rate.wait(at(64_000)), Some(Duration::from_millis(1001)));
    }

    proptest! {
        /// However the steps fall, no more is carried than a second's worth, one step, and what the time allows.
        #[test]
        fn no_more_than_may_be(per_second in 1_u64..1_000_000, steps in prop::collection::vec((0_u64..500_000_000, 1_usize..16_384), 1..200)) {
            let begin = Instant::now();
            let rate = Rate::new(per_second, begin);
            let (mut now, mut carried) = (begin, 0_u64);
            for (nanoseconds, bytes) in steps {
                now += Duration::from_nanos(nanoseconds);
                if rate.wait(now).is_none() {
                    rate.take(bytes);
                    carried += bytes as u64;
                }
                let most = per_second + 16_384 + u64::try_from((now - begin).as_nanos() * u128::from(per_second) / 1_000_000_000).unwrap();
                prop_assert!(carried <= most, "{carried} of {most}");
            }
        }
    }
}
