//! Where a sandbox may connect to. Everything here is pure: a name is looked up elsewhere.
//!
//! A [`HostName`] is what may stand in a request or a TLS handshake, a [`HostPattern`] what a policy allows, [`Destination`] what a run asks
//! for, [`Authority`] what a proxy is asked for, and [`Class`] what an address is.

mod address;
mod authority;
mod destination;
mod host;
mod pattern;

pub use address::{Addresses, ByName, Class, class};
pub use authority::{Authority, BadAuthority, Host};
pub use destination::{BadDestination, Destination, Reach, Way};
pub use host::{BadHost, HostName};
pub use pattern::{BadPattern, HostPattern};
