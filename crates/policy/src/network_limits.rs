//! How much of the network a run may use.

use std::borrow::Borrow;

use paddock_crds::PolicyRules;

use crate::bounds::{Ruled, smallest};
use crate::decide::{Policy, clamp, named};

const DEFAULT_CONNECTIONS: i64 = 64;
const DEFAULT_BYTES: i64 = 1 << 30;

/// Of all policies that take part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkLimits {
    /// Connections at once, at each replica of the gateway.
    pub connections: u32,
    /// Bytes in both directions together, at each replica of the gateway.
    pub bytes: u64,
    /// The same in a second.
    pub bytes_per_second: Option<u64>,
    /// Refused connections after which one more ends the run, with the rule that says so.
    pub refused: Option<Ruled<u64>>,
}

/// The smallest of each. Nobody is ended for what was refused where no policy says so.
pub fn network_limits(policies: &[impl Borrow<Policy>]) -> NetworkLimits {
    let all: Vec<&Policy> = policies.iter().map(Borrow::borrow).collect();
    let bytes = smallest(&all, DEFAULT_BYTES, |policy| policy.rules.limits.max_network_bytes);
    let of = |rules: &PolicyRules| rules.limits.max_refused_connections.and_then(|most| u64::try_from(most).ok());
    let refused = all.iter().filter_map(|policy| Some((of(&policy.rules)?, named(policy, "limits.maxRefusedConnections"))));
    NetworkLimits {
        connections: clamp(smallest(&all, DEFAULT_CONNECTIONS, |policy| policy.rules.limits.max_connections)),
        bytes: u64::try_from(bytes).unwrap_or(0),
        bytes_per_second: all.iter().filter_map(|policy| u64::try_from(policy.rules.limits.max_network_bytes_per_second?).ok()).min(),
        refused: refused.min(),
    }
}

#[cfg(test)]
mod tests {
    use paddock_crds::{Effect, PolicyKind, TakenPolicy};
    use serde_json::{Value, json};

    use super::*;

    fn policy(name: &str, effect: Effect, limits: &Value) -> Policy {
        let kind = PolicyKind::ClusterSandboxPolicy;
        let taken = TakenPolicy { kind, name: name.into(), uid: name.into(), author: None, generation: 1, hash: String::new() };
        Policy::new(taken, effect, serde_json::from_value(json!({ "limits": limits })).unwrap())
    }

    #[test]
    fn the_smallest_of_each_holds_and_silence_is_taken_at_its_word() {
        let none: [Policy; 0] = [];
        assert_eq!(network_limits(&none), NetworkLimits { connections: 64, bytes: 1 << 30, bytes_per_second: None, refused: None });
        let wide =
            json!({ "maxConnections": 64, "maxNetworkBytes": 1_i64 << 40, "maxRefusedConnections": 100, "maxNetworkBytesPerSecond": 4096 });
        let narrow = json!({ "maxConnections": 2, "maxRefusedConnections": 3, "maxNetworkBytesPerSecond": 2048 });
        let allows = policy("allows", Effect::Allow, &wide);
        assert_eq!(network_limits(&[&allows]).bytes, 1 << 40);
        // Of two that allow, one is silent: it says the built-in value.
        let silent = policy("silent", Effect::Allow, &json!({}));
        assert_eq!(network_limits(&[&allows, &silent]).bytes, 1 << 30);
        let restricts = policy("restricts", Effect::Restrict, &narrow);
        let both = network_limits(&[&allows, &restricts]);
        assert_eq!((both.connections, both.bytes, both.bytes_per_second), (2, 1 << 40, Some(2048)));
        assert_eq!(both.refused, Some((3, "ClusterSandboxPolicy/restricts: limits.maxRefusedConnections".into())));
        assert_eq!(both, network_limits(&[&restricts, &allows]));
    }
}
