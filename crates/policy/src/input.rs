//! What the input of a run must be, by all policies together.

use std::borrow::Borrow;

use serde_json::Value;

use crate::Policy;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InputDemand {
    /// Largest input in bytes, with the rule that says so.
    pub max_bytes: Option<(u64, String)>,
    /// The rule by which there must be a schema, of the run or of a policy.
    pub required_by: Option<String>,
    /// Schemas of the policies for this script, with the rules that fix them.
    pub schemas: Vec<(String, Value)>,
}

/// For the script whose SHA-256 this is.
pub fn input_demand(policies: &[impl Borrow<Policy>], script_hash: &str) -> InputDemand {
    let mut demand = InputDemand::default();
    for policy in policies.iter().map(Borrow::borrow) {
        let rule = |field: &str| format!("{}/{}: input.{field}", policy.taken.kind.as_str(), policy.taken.name);
        let input = &policy.rules.input;
        if let Some(bytes) = input.max_bytes.and_then(|bytes| u64::try_from(bytes).ok())
            && demand.max_bytes.as_ref().is_none_or(|(smallest, _)| bytes < *smallest)
        {
            demand.max_bytes = Some((bytes, rule("maxBytes")));
        }
        if input.require_schema && demand.required_by.is_none() {
            demand.required_by = Some(rule("requireSchema"));
        }
        let fixed = input.schemas.iter().filter(|fixed| fixed.script_hash == script_hash);
        demand.schemas.extend(fixed.map(|fixed| (rule("schemas"), fixed.schema.clone())));
    }
    demand
}

#[cfg(test)]
mod tests {
    use paddock_crds::{Effect, InputRules, PolicyKind, PolicyRules, ScriptSchema, TakenPolicy};
    use serde_json::json;

    use super::*;

    fn policy(name: &str, input: InputRules) -> Policy {
        let kind = PolicyKind::ClusterSandboxPolicy;
        let taken = TakenPolicy { kind, name: name.into(), uid: String::new(), author: None, generation: 1, hash: String::new() };
        Policy::new(taken, Effect::Allow, PolicyRules { input, ..PolicyRules::default() })
    }

    #[test]
    fn every_policy_adds_its_demands() {
        let schema = |hash: &str| ScriptSchema { script_hash: hash.into(), schema: json!({ "type": "object" }) };
        let one = InputRules { require_schema: true, max_bytes: Some(100), schemas: vec![schema("a"), schema("b")] };
        let two = InputRules { require_schema: false, max_bytes: Some(10), schemas: vec![schema("a")] };
        let demand = input_demand(&[policy("one", one), policy("two", two)], "a");
        assert_eq!(demand.max_bytes, Some((10, "ClusterSandboxPolicy/two: input.maxBytes".into())));
        assert_eq!(demand.required_by.as_deref(), Some("ClusterSandboxPolicy/one: input.requireSchema"));
        assert_eq!(demand.schemas.len(), 2);
        assert_eq!(input_demand(&[policy("none", InputRules::default())], "a"), InputDemand::default());
    }
}
