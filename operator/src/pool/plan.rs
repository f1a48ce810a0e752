//! What becomes of a pool next. Pure: what was seen in; pods to create and to remove, and what to tell, out.

use paddock_crds::PoolReason;

/// Sandboxes of one pool that begin at once: each takes a node's CPU from the runs that have just emptied the pool.
const STARTS_AT_ONCE: usize = 4;
/// Of those that wait, so many are replaced at once, as a part of what is wanted.
const REPLACED_PART: usize = 4;
/// A sandbox that has not answered for so many seconds since somebody listens to it is given up.
pub(crate) const DEAF_AFTER: i64 = 60;

/// A sandbox of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SandboxSeen {
    pub(crate) name: String,
    pub(crate) age_seconds: i64,
    pub(crate) state: State,
    /// It was made by other things than would be used now.
    pub(crate) is_outdated: bool,
}

/// What a sandbox of a pool does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It has not said yet that it is ready; somebody has listened for so many seconds.
    Starting { heard_for: i64 },
    /// It waits.
    Free,
    /// It was given to a run.
    Claimed,
    /// It was given to a run that is over, or it is of no use, for this reason.
    Spent(Option<String>),
    /// It is being removed.
    Leaving,
}

/// All that counts of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PoolSeen {
    pub(crate) replicas: usize,
    pub(crate) max_age_seconds: i64,
    /// Why there are to be no sandboxes, if so.
    pub(crate) refused: Option<(PoolReason, String)>,
    pub(crate) sandboxes: Vec<SandboxSeen>,
    /// So many that wait are to give way to runs for which a quota has no room.
    pub(crate) give_way: usize,
    /// A quota has no room.
    pub(crate) is_short: bool,
    /// Why nothing is begun for a while, if so: those before have ended before they were ready.
    pub(crate) failed: Option<String>,
}

/// What is to be done and told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) create: usize,
    /// By name. None of them is one that a run has.
    pub(crate) remove: Vec<String>,
    /// Those of them that go for runs which a quota had no room for.
    pub(crate) gives_way: Vec<String>,
    pub(crate) free: usize,
    pub(crate) starting: usize,
    pub(crate) claimed: usize,
    pub(crate) is_ready: bool,
    pub(crate) reason: PoolReason,
    pub(crate) message: String,
}

/// Decides.
pub(crate) fn plan(seen: &PoolSeen) -> Plan {
    let is = |state: fn(&State) -> bool| seen.sandboxes.iter().filter(move |sandbox| state(&sandbox.state));
    let count = |state: fn(&State) -> bool| is(state).count();
    let (free, claimed) = (count(|state| *state == State::Free), count(|state| *state == State::Claimed));
    let starting = count(|state| matches!(state, State::Starting { .. }));
    let mut remove: Vec<&SandboxSeen> = is(|state| matches!(state, State::Spent(_))).collect();
    remove.extend(is(|state| matches!(state, State::Starting { heard_for } if *heard_for > DEAF_AFTER)));
    let wanted = if seen.refused.is_some() { 0 } else { seen.replicas };
    let mut waiting: Vec<&SandboxSeen> = is(|state| matches!(state, State::Free | State::Starting { .. })).collect();
    waiting.retain(|sandbox| !remove.iter().any(|gone| gone.name == sandbox.name));
    // Those of least use first: outdated, then those that have not begun, then the oldest.
    waiting.sort_by_key(|sandbox| (!sandbox.is_outdated, sandbox.state == State::Free, -sandbox.age_seconds));
    let gives_way = seen.give_way.min(waiting.len());
    let surplus = waiting.len().saturating_sub(wanted).max(gives_way);
    let kept = waiting.split_off(surplus);
    let gives_way = waiting.iter().take(gives_way).map(|sandbox| sandbox.name.clone()).collect();
    remove.extend(waiting);
    // Little by little, and only when those before have been replaced: what waits is of use as long as it fits.
    let is_old = |sandbox: &&&SandboxSeen| sandbox.is_outdated || sandbox.age_seconds > seen.max_age_seconds;
    let replaced = if starting == 0 && seen.failed.is_none() { (wanted / REPLACED_PART).max(1) } else { 0 };
    let old: Vec<&SandboxSeen> = kept.iter().filter(is_old).take(replaced).copied().collect();
    let missing = wanted.saturating_sub(kept.len() - old.len());
    let may_begin = STARTS_AT_ONCE.saturating_sub(starting);
    let is_held_back = seen.is_short || seen.failed.is_some();
    let create = if is_held_back { 0 } else { missing.min(may_begin) };
    remove.extend(old);
    let (is_ready, reason, message) = told(seen, free, wanted);
    let remove = remove.into_iter().map(|sandbox| sandbox.name.clone()).collect();
    Plan { create, remove, gives_way, free, starting, claimed, is_ready, reason, message }
}

fn told(seen: &PoolSeen, free: usize, wanted: usize) -> (bool, PoolReason, String) {
    if let Some((reason, message)) = &seen.refused {
        return (false, reason.clone(), message.clone());
    }
    if free >= wanted {
        return (true, PoolReason::Filled, "as many sandboxes wait as are wanted".into());
    }
    if seen.is_short {
        return (false, PoolReason::QuotaExceeded, "a quota of the sandbox namespace has no room for more".into());
    }
    if let Some(why) = &seen.failed {
        return (false, PoolReason::SandboxesFail, format!("sandboxes end before they are ready: {why}"));
    }
    (false, PoolReason::Filling, "sandboxes begin, or are about to".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(name: &str, state: State) -> SandboxSeen {
        SandboxSeen { name: name.into(), age_seconds: 10, state, is_outdated: false }
    }

    fn pool(replicas: usize, sandboxes: Vec<SandboxSeen>) -> PoolSeen {
        PoolSeen { replicas, max_age_seconds: 3600, refused: None, sandboxes, give_way: 0, is_short: false, failed: None }
    }

    fn free(names: &[&str]) -> Vec<SandboxSeen> {
        names.iter().map(|name| sandbox(name, State::Free)).collect()
    }

    #[test]
    fn a_pool_is_filled_a_few_at_once() {
        let plan_of_none = plan(&pool(50, vec![]));
        assert_eq!((plan_of_none.create, plan_of_none.is_ready), (STARTS_AT_ONCE, false));
        let begun = (0..3).map(|number| sandbox(&number.to_string(), State::Starting { heard_for: 1 })).collect();
        assert_eq!(plan(&pool(50, begun)).create, 1);
        let full = plan(&pool(2, free(&["a", "b"])));
        assert_eq!((full.create, full.remove.len(), full.is_ready, full.reason), (0, 0, true, PoolReason::Filled));
    }

    #[test]
    fn those_that_runs_have_are_beside_those_that_wait_and_are_never_removed() {
        let mut sandboxes = free(&["a"]);
        sandboxes.extend([sandbox("b", State::Claimed), sandbox("c", State::Claimed), sandbox("d", State::Leaving)]);
        sandboxes[1].is_outdated = true;
        sandboxes[2].age_seconds = 100_000;
        let plan_of_two = plan(&pool(2, sandboxes.clone()));
        assert_eq!((plan_of_two.create, plan_of_two.remove.len(), plan_of_two.claimed), (1, 0, 2));
        let nothing = PoolSeen { refused: Some((PoolReason::NotGranted, "why".into())), ..pool(2, sandboxes) };
        let plan = plan(&nothing);
        assert_eq!((plan.create, plan.remove, plan.reason), (0, vec!["a".to_owned()], PoolReason::NotGranted));
    }

    #[test]
    fn what_is_spent_or_deaf_goes_and_is_made_anew() {
        let mut sandboxes = free(&["a"]);
        sandboxes.push(sandbox("spent", State::Spent(None)));
        sandboxes.push(sandbox("deaf", State::Starting { heard_for: DEAF_AFTER + 1 }));
        let plan = plan(&pool(2, sandboxes));
        assert_eq!((plan.create, plan.remove), (1, vec!["spent".to_owned(), "deaf".to_owned()]));
    }

    #[test]
    fn what_is_outdated_or_old_is_replaced_little_by_little() {
        let mut sandboxes = free(&["a", "b", "c", "d", "e", "f", "g", "h"]);
        for sandbox in &mut sandboxes {
            sandbox.is_outdated = true;
        }
        let rolling = plan(&pool(8, sandboxes.clone()));
        assert_eq!((rolling.create, rolling.remove.len()), (2, 2));
        sandboxes.truncate(6);
        sandboxes.push(sandbox("new", State::Starting { heard_for: 0 }));
        let meanwhile = plan(&pool(8, sandboxes));
        assert_eq!((meanwhile.create, meanwhile.remove.len()), (1, 0));
        let mut old = free(&["a", "b"]);
        old[1].age_seconds = 3601;
        let aged = plan(&pool(2, old));
        assert_eq!((aged.create, aged.remove), (1, vec!["b".to_owned()]));
    }

    #[test]
    fn a_pool_gives_way_to_runs_and_is_not_refilled_while_a_quota_is_short() {
        let mut sandboxes = free(&["a", "b", "c"]);
        sandboxes[2].is_outdated = true;
        let short = PoolSeen { give_way: 1, is_short: true, ..pool(3, sandboxes) };
        let plan_of_short = plan(&short);
        assert_eq!((plan_of_short.create, plan_of_short.remove, plan_of_short.gives_way), (0, vec!["c".to_owned()], vec!["c".to_owned()]));
        let later = plan(&PoolSeen { give_way: 9, is_short: true, ..pool(3, free(&["a"])) });
        assert_eq!((later.create, later.remove, later.reason), (0, vec!["a".to_owned()], PoolReason::QuotaExceeded));
    }

    #[test]
    fn a_smaller_pool_keeps_those_that_are_ready() {
        let mut sandboxes = free(&["a", "b"]);
        sandboxes.push(sandbox("c", State::Starting { heard_for: 0 }));
        assert_eq!(plan(&pool(2, sandboxes)).remove, ["c"]);
    }

    #[test]
    fn nothing_is_begun_while_those_before_have_failed() {
        let plan = plan(&PoolSeen { failed: Some("NotSandboxed".into()), ..pool(2, free(&["a"])) });
        assert_eq!((plan.create, plan.reason), (0, PoolReason::SandboxesFail));
        assert!(plan.message.contains("NotSandboxed"));
    }
}
