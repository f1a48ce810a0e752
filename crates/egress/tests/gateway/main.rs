//! The whole of the gateway but for its sockets.
#![allow(clippy::unwrap_used)]

mod attacks;
mod http;
mod https;
mod metrics;
mod world;
