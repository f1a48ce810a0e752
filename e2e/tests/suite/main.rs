//! What only a cluster can show, one module a question. One program, so that all suites share what waits: `cargo test -p paddock-e2e
//! --test suite egress::` runs one of them. The Makefile has their order.

#![allow(clippy::unwrap_used)]

mod harness;

mod api;
mod approvals;
mod attacks;
mod capabilities;
mod chaos;
mod chart;
mod cli;
mod confinement;
mod contract;
mod disruption;
mod doctor;
mod documents;
mod economy;
mod egress;
mod everyone;
mod examples;
mod failures;
mod gateway_secrets;
mod gitops;
mod images;
mod interpreters;
mod languages;
mod leftovers;
mod lifecycle;
mod monitoring;
mod network;
mod observed;
mod policies;
mod pool;
mod preflight;
mod queue;
mod refusals;
mod rights;
mod scripts;
mod store;
mod traces;
mod tutorial;
mod webhook;
