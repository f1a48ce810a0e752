//! Sandboxes that begin before there is a run for them: see → plan → act → report, over all pools at once.
//!
//! [`plan`] decides and is pure; [`waiting`] remembers which sandbox waits and which was given to whom, and is the one place where a run and whoever removes
//! sandboxes meet; [`keep`] is all that reads and writes.

pub(crate) mod keep;
pub(crate) mod plan;
pub(crate) mod render;
pub(crate) mod shape;
pub(crate) mod waiting;

pub(crate) use keep::run;
