//! What may run. Pure: no clock, no client, no randomness. The same policies and the same ask always give the same decision.

mod amounts;
mod approval;
mod bounds;
mod capabilities;
mod check;
mod containment;
mod contradictions;
mod decide;
mod effective;
mod enforced;
mod expression;
mod https;
mod input;
mod judge;
mod network;
mod network_limits;
mod output;
mod preflight;
mod quantity;
mod queue;
mod risk;
mod rules;
mod runtime;
mod selector;
mod subject;

pub use approval::{
    Approval, Approving, Demanded, Digests, EVERYBODY, Excluded, Hashes, ToApprove, approving, data_hash, demanded, digests, is_revoked,
};
pub use capabilities::{
    AtGateway, CapabilityGrant, Found, Object, ObjectKind, Objects, asked_objects, granting, is_granted, might_be_granted,
};
pub use containment::{Containment, Facts, containment, contains_anything};
pub use contradictions::{Contradiction, contradictions};
pub use decide::{AT_GATEWAY, Ask, Grant, Outcome, Policy, Refusal, RuntimeGrant, decide, hash_of, script_hash};
pub use effective::{Line, effective};
pub use enforced::{SandboxNetwork, expected, failing, not_enforced, unseen};
pub use expression::Expression;
pub use https::{Field, Https, SecretKey};
pub use input::{InputDemand, input_demand};
pub use judge::{judge, judge_denied, judge_input};
pub use network::{
    Denied as DeniedHosts, Gateway, Granted as GrantedDestination, PERMISSION as NETWORK_PERMISSION, adding, secrets_at_the_gateway,
    still_granted,
};
pub use network_limits::{NetworkLimits, network_limits};
pub use output::{OutputGrant, SecretValues, output_grant};
pub use preflight::judge_preflight;
pub use quantity::{Quantity, QuantityError};
pub use queue::{QueueLimits, queue_limits};
pub use risk::risk;
pub use rules::{FailedRule, RulesJudged, judge_rules};
pub use selector::selects;
pub use subject::{PreflightFacts, RiskFacts, RunFacts, Subject, TenantFacts, UserFacts};
