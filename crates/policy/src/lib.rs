//! What may run. Pure: no clock, no client, no randomness. The same policies and the same ask always give the same decision.

mod bounds;
mod check;
mod containment;
mod decide;
mod input;
mod output;
mod quantity;
mod selector;

pub use containment::{Containment, Facts, containment, contains_anything};
pub use decide::{Ask, Grant, Outcome, Policy, Refusal, RuntimeGrant, decide, hash_of};
pub use input::{InputDemand, input_demand};
pub use output::{OutputGrant, output_grant};
pub use quantity::{Quantity, QuantityError};
pub use selector::selects;
