//! The gateway through which sandboxes reach what they were granted.

pub mod grants;
pub mod hello;
