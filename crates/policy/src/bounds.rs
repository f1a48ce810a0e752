//! How the bounds of several policies meet: the smallest value holds, and who is silent is taken at their word in one of two ways.
//!
//! A policy that allows and is silent says the built-in value. If silence meant "no bound", one policy more could be the first to speak,
//! and with it the bound would be wider than the built-in one. A policy that restricts and is silent says nothing.

use paddock_crds::Effect;

use crate::Policy;
use crate::decide::named;

/// A bound, with the rule that sets it.
pub(crate) type Ruled<T> = (T, String);

/// A number that policies bound.
pub(crate) struct Bounded<T> {
    /// As a run asks for it.
    pub(crate) name: &'static str,
    /// What a run gets that does not ask.
    pub(crate) default: Saying<T>,
    /// The most that it may ask for.
    pub(crate) max: Saying<T>,
    /// Both, where no policy says anything.
    pub(crate) built_in: T,
}

/// A field of a policy: its name below `spec`, and its value.
pub(crate) type Saying<T> = (&'static str, fn(&Policy) -> Option<T>);

/// What comes of all policies together. The text of the rule is made for those who ask: most decisions need it of few numbers.
pub(crate) struct Bounds<'a, T> {
    /// What a run gets that does not ask.
    pub(crate) default: T,
    /// The most that it may ask for.
    pub(crate) ceiling: T,
    name: &'static str,
    default_by: Source<'a>,
    set_by: Source<'a>,
}

/// The policy that says a value, and the field; `None` where it is built in.
type Source<'a> = Option<(&'a Policy, &'static str)>;

impl<'a, T> Bounds<'a, T> {
    /// The policy that says what a run gets that does not ask; `None` where that is built in.
    pub(crate) fn default_by(&self) -> Option<&'a Policy> {
        self.default_by.map(|(policy, _)| policy)
    }

    /// The rule that sets the ceiling.
    pub(crate) fn rule(&self) -> String {
        self.set_by.map_or_else(|| format!("built-in: {}", self.name), |(policy, field)| named(policy, field))
    }
}

/// A policy bounds by its maximum, or without one by its default. There is always one that allows; without any, the built-in value holds for both.
pub(crate) fn bounds<'a, T: Ord + Copy>(policies: &[&'a Policy], field: &Bounded<T>) -> Bounds<'a, T> {
    let mut default: Option<(T, Source<'a>)> = None;
    let mut ceiling = None;
    for policy in policies.iter().copied() {
        let said = |(name, of): Saying<T>| of(policy).map(|value| (value, Some((policy, name))));
        let own = said(field.default).or_else(|| (policy.effect == Effect::Allow).then_some((field.built_in, None)));
        let most = said(field.max).or(own);
        default = smaller(default, own);
        ceiling = smaller(ceiling, most);
    }
    let silence = (field.built_in, None);
    let (ceiling, set_by) = ceiling.unwrap_or(silence);
    let (default, default_by) = default.filter(|(default, _)| *default <= ceiling).unwrap_or((ceiling, set_by));
    Bounds { default, ceiling, name: field.name, default_by, set_by }
}

/// Of equals the first.
fn smaller<'a, T: Ord>(known: Option<(T, Source<'a>)>, other: Option<(T, Source<'a>)>) -> Option<(T, Source<'a>)> {
    match (known, other) {
        (Some(known), Some(other)) => Some(if other.0 < known.0 { other } else { known }),
        (known, other) => known.or(other),
    }
}

/// One number of all policies together.
pub(crate) fn smallest(policies: &[&Policy], built_in: i64, field: impl Fn(&Policy) -> Option<i64>) -> i64 {
    let said = |policy: &&Policy| field(policy).or_else(|| (policy.effect == Effect::Allow).then_some(built_in));
    policies.iter().filter_map(said).min().unwrap_or(built_in)
}
