//! Sandboxes that begin before there is a run for them: see → plan → act → report, over all pools at once.
//!
//! [`plan`] decides and is pure; [`waiting`] remembers which sandbox waits and which was given to whom, and is the one place where a run and whoever removes
//! sandboxes meet; [`see`] reads, [`keep`] makes and removes, [`tell`] tells.

mod demand;
mod keep;
mod plan;
pub(crate) mod render;
mod see;
pub(crate) mod shape;
mod tell;
pub(crate) mod waiting;

pub(crate) use keep::run;
