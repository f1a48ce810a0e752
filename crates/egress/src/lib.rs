//! The gateway through which sandboxes reach what they were granted.
//!
//! [`ask`] reads a request, [`grants`] decides on it, [`dial`] connects, [`hello`] reads for whom the first bytes of a tunnel are, [`forward`] is
//! for requests that are no tunnel, [`carry`] carries, and [`gateway`] holds them together. [`wire`] is the conversation with the operator, [`feed`] the operator's side of it, [`server`] the ports of
//! both.

pub mod ask;
pub mod carry;
pub mod connections;
pub mod dial;
pub mod feed;
pub mod forward;
pub mod gateway;
pub mod grants;
pub mod hello;
pub mod https;
pub mod live;
pub mod metrics;
pub mod rate;
pub mod server;
pub mod tls;
pub mod wire;
