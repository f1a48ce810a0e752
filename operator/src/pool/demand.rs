//! How many sandboxes are to wait where a pool goes by what is asked of it. Pure.

use std::time::Duration;

/// Arrivals that count.
pub(crate) const REMEMBERED: Duration = Duration::from_secs(300);
/// Until a sandbox has been seen to begin.
pub(crate) const FIRST_REFILL: Duration = Duration::from_secs(2);

/// Of runs that could have been given a sandbox, since when they are there, the oldest first; how long a sandbox takes to begin; and the bounds.
///
/// Those that arrive while one begins can only be given what waits. So as many wait as arrived at most within such a time, and a quarter more.
pub(crate) fn wanted(ages: &[Duration], refill: Duration, (least, most): (usize, usize)) -> usize {
    let busiest = (0..ages.len()).map(|first| within(&ages[first..], refill)).max().unwrap_or(0);
    (busiest + busiest.div_ceil(4)).clamp(least, most.max(least))
}

/// How many arrived from the first of these on until so long after it.
fn within(ages: &[Duration], time: Duration) -> usize {
    let Some(first) = ages.first() else { return 0 };
    ages.partition_point(|age| first.saturating_sub(*age) <= time)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const REFILL: u64 = 2000;
    /// As many begin at once as in `plan`.
    const AT_ONCE: usize = 4;

    struct Played {
        warm: usize,
        cold: usize,
        most_wanted: usize,
        wanted_at_the_end: usize,
    }

    /// A pool from its beginning to ten minutes after the last arrival, looked at four times a second; times in milliseconds.
    fn play(arrivals: &[u64], bounds: (usize, usize)) -> Played {
        let mut played = Played { warm: 0, cold: 0, most_wanted: 0, wanted_at_the_end: 0 };
        let (mut free, mut begun) = (bounds.0, VecDeque::<u64>::new());
        let mut ahead = arrivals.iter().copied().peekable();
        let end = arrivals.last().unwrap_or(&0) + 600_000;
        for now in (0..end).step_by(250) {
            while begun.front().is_some_and(|begun| now - begun >= REFILL) {
                begun.pop_front();
                free += 1;
            }
            while ahead.next_if(|arrival| *arrival <= now).is_some() {
                if free > 0 {
                    free -= 1;
                    played.warm += 1;
                } else {
                    played.cold += 1;
                }
            }
            let age = |arrival: &u64| now.checked_sub(*arrival).map(Duration::from_millis).filter(|age| *age < REMEMBERED);
            let ages: Vec<Duration> = arrivals.iter().filter_map(age).collect();
            let wanted = wanted(&ages, Duration::from_millis(REFILL), bounds);
            free = free.min(wanted);
            while free + begun.len() < wanted && begun.len() < AT_ONCE {
                begun.push_back(now);
            }
            played.most_wanted = played.most_wanted.max(wanted);
            played.wanted_at_the_end = wanted;
        }
        played
    }

    /// One arrival in a line, in milliseconds, as the API server has stored them.
    fn recorded(text: &str) -> Vec<u64> {
        text.lines().filter(|line| !line.starts_with('#')).map(|line| line.parse().unwrap()).collect()
    }

    #[test]
    fn recorded_arrivals_find_a_sandbox_after_the_first_of_their_kind() {
        for (name, text, least_warm_percent) in [
            ("one at a time", include_str!("demand/one-at-a-time.txt"), 95),
            ("many tests at once", include_str!("demand/many-tests.txt"), 80),
            ("batches of six", include_str!("demand/batches.txt"), 60),
        ] {
            let arrivals = recorded(text);
            let played = play(&arrivals, (1, 50));
            eprintln!("{name}: {} warm, {} cold, at most {} wanted", played.warm, played.cold, played.most_wanted);
            assert_eq!(played.warm + played.cold, arrivals.len());
            assert!(played.warm * 100 >= least_warm_percent * arrivals.len(), "{name}: {} of {}", played.warm, arrivals.len());
            assert!(played.most_wanted <= 50 && played.wanted_at_the_end == 1, "{name}");
            assert!(played.warm > play(&arrivals, (1, 1)).warm || name == "one at a time", "{name}");
        }
    }

    #[test]
    fn a_burst_that_comes_again_within_five_minutes_finds_what_it_needs() {
        let burst = |at: u64| (0..30).map(move |number| at + number * 10);
        let again: Vec<u64> = burst(0).chain(burst(240_000)).collect();
        let played = play(&again, (2, 50));
        assert_eq!((played.cold, played.most_wanted), (28, 38));
        let late: Vec<u64> = burst(0).chain(burst(400_000)).collect();
        assert_eq!(play(&late, (2, 50)).cold, 56);
    }

    #[test]
    fn ages_that_were_taken_a_moment_apart_want_what_they_want() {
        let [one, other] = [Duration::from_nanos(1_000_000), Duration::from_nanos(1_000_100)];
        assert_eq!(wanted(&[one, other], FIRST_REFILL, (0, 9)), 3);
    }

    proptest! {
        #[test]
        fn it_stays_within_its_bounds_and_more_arrivals_never_want_less(
            mut ages in proptest::collection::vec(0..300_000_u64, 0..200), least in 0..20_usize, more in 0..50_usize, refill in 500..20_000_u64,
        ) {
            ages.sort_unstable_by(|one, other| other.cmp(one));
            let ages: Vec<Duration> = ages.into_iter().map(Duration::from_millis).collect();
            let bounds = (least, least + more);
            let all = wanted(&ages, Duration::from_millis(refill), bounds);
            prop_assert!((bounds.0..=bounds.1).contains(&all));
            for missing in 0..ages.len() {
                let fewer: Vec<Duration> = ages.iter().enumerate().filter(|(index, _)| *index != missing).map(|(_, age)| *age).collect();
                prop_assert!(wanted(&fewer, Duration::from_millis(refill), bounds) <= all);
            }
        }
    }
}
