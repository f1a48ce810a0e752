//! The local cluster that Paddock is developed and tested on.

pub mod cluster;
