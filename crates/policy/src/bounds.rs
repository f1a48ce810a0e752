//! How the bounds of several policies meet: the smallest value holds, and who is silent is taken at their word in one of two ways.
//!
//! A policy that allows and is silent says the built-in value. If silence meant "no bound", one policy more could be the first to speak,
//! and with it the bound would be wider than the built-in one. A policy that restricts and is silent says nothing.

use paddock_crds::Effect;

use crate::Policy;

/// A bound, with the rule that sets it.
pub(crate) type Ruled<T> = (T, String);

/// What one policy says of one amount.
pub(crate) struct Said<T> {
    pub(crate) effect: Effect,
    pub(crate) default: Option<Ruled<T>>,
    pub(crate) max: Option<Ruled<T>>,
}

/// What a run gets that does not ask, and the most that it may ask for. A policy bounds by its maximum, or without one by its default. There
/// is always one that allows; without any, the built-in value holds for both.
pub(crate) fn bounds<T: Ord + Clone>(said: &[Said<T>], built_in: &T, field: &str) -> (T, Ruled<T>) {
    let silence = || (built_in.clone(), format!("built-in: {field}"));
    let default = |said: &Said<T>| said.default.clone().or_else(|| (said.effect == Effect::Allow).then(silence));
    let bound = |said: &Said<T>| said.max.clone().or_else(|| default(said));
    let smallest =
        |bounds: &mut dyn Iterator<Item = Ruled<T>>| bounds.min_by(|(one, _), (other, _)| one.cmp(other)).unwrap_or_else(silence);
    let ceiling = smallest(&mut said.iter().filter_map(bound));
    let (default, _) = smallest(&mut said.iter().filter_map(default));
    (default.min(ceiling.0.clone()), ceiling)
}

/// One number of all policies together.
pub(crate) fn smallest(policies: &[&Policy], built_in: i64, field: impl Fn(&Policy) -> Option<i64>) -> i64 {
    let said = |policy: &&Policy| field(policy).or_else(|| (policy.effect == Effect::Allow).then_some(built_in));
    policies.iter().filter_map(said).min().unwrap_or(built_in)
}
