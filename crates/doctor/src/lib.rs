//! Whether a cluster keeps what Paddock promises: scripts try what must not be possible, and what became of them is looked at.

mod checks;
mod diagnosis;
mod examine;
mod probes;

pub use checks::Finding;
pub use diagnosis::{Look, complete, examined_once, examined_twice, is_to_be_confirmed, status_of};
pub use examine::{Doctor, Network, PodAsked, answering};
pub use probes::Place;
