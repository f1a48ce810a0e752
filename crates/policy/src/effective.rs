//! What several policies say together, field by field, with the rule behind each value. For people: decisions ask the fields themselves.

use std::borrow::Borrow;

use paddock_crds::{
    ApprovalDemand, Binding, Effect, NetworkGrant, NetworkProtocol, ObjectGrant, PolicyKind, PolicyRules, SecretHeader, Strictness,
};

use crate::amounts::{CPU, MEMORY, SCRATCH, shown};
use crate::bounds::bounds;
use crate::capabilities::{DYNAMIC_CODE, ObjectKind, SUBPROCESS, word};
use crate::contradictions::contradictions;
use crate::decide::{GRACE, Policy, TIMEOUT, in_order, most_priority, named};
use crate::network_limits::network_limits;
use crate::output::output_grant;
use crate::queue::queue_limits;
use crate::runtime::in_common;
use crate::{Containment, Facts, containment, input_demand};

/// One line: the field, what it comes to, and which rule says so, where it is one.
pub type Line = (String, String, String);

/// Everything that policies say.
pub fn effective(policies: &[impl Borrow<Policy>]) -> Vec<Line> {
    let policies = in_order(policies);
    let mut lines = Vec::new();
    lines.push(line(
        "runtimes",
        in_common(&policies).into_iter().collect::<Vec<_>>().join(", "),
        &all_that(&policies, "runtimes", |rules| rules.runtimes.is_some()),
    ));
    for field in [MEMORY, CPU, SCRATCH] {
        let bounds = bounds(&policies, &field);
        let [default, most] = [bounds.default, bounds.ceiling].map(|value| shown(field.name, value));
        lines.push(line(field.name, format!("{default}, at most {most}"), &bounds.rule()));
    }
    for field in [TIMEOUT, GRACE] {
        let bounds = bounds(&policies, &field);
        lines.push(line(field.name, format!("{}, at most {}", bounds.default, bounds.ceiling), &bounds.rule()));
    }
    capabilities(&policies, &mut lines);
    preflight(&policies, &mut lines);
    queue(&policies, &mut lines);
    demands(&policies, &mut lines);
    lines
}

fn line(field: &str, value: impl Into<String>, rule: &str) -> Line {
    (field.to_owned(), value.into(), rule.to_owned())
}

/// The policies that say something of a field.
fn all_that(policies: &[&Policy], field: &str, says: impl Fn(&PolicyRules) -> bool) -> String {
    let all: Vec<String> = policies.iter().filter(|policy| says(&policy.rules)).map(|policy| named(policy, field)).collect();
    if all.is_empty() { format!("built-in: {field}") } else { all.join(", ") }
}

/// The policy that says `value` of a field, where the smallest holds.
fn whose(policies: &[&Policy], field: &str, value: u32, of: impl Fn(&PolicyRules) -> Option<i64>) -> String {
    let cluster_tier = policies.iter().copied().filter(|policy| policy.taken.kind == PolicyKind::ClusterSandboxPolicy);
    whose_of_all(&cluster_tier.collect::<Vec<_>>(), field, i64::from(value), of)
}

/// The same of a field that every policy may bound.
fn whose_of_all(policies: &[&Policy], field: &str, value: i64, of: impl Fn(&PolicyRules) -> Option<i64>) -> String {
    let is_it = |policy: &&&Policy| of(&policy.rules) == Some(value);
    policies.iter().find(is_it).map_or_else(|| format!("built-in: {field}"), |policy| named(policy, &format!("limits.{field}")))
}

fn queue(policies: &[&Policy], lines: &mut Vec<Line>) {
    let limits = queue_limits(policies);
    let both = |of_all: u32, of_policy: Option<u32>| match of_policy {
        Some(own) => format!("{of_all} in the namespace, {own} of this policy"),
        None => format!("{of_all} in the namespace"),
    };
    let (concurrent, queued, weight) = (limits.concurrent, limits.queued, limits.weight);
    let rule = whose(policies, "maxConcurrent", concurrent, |rules| rules.limits.max_concurrent);
    lines.push(line("maxConcurrent", both(concurrent, limits.policy_concurrent), &rule));
    let rule = whose(policies, "maxQueued", queued, |rules| rules.limits.max_queued);
    lines.push(line("maxQueued", both(queued, limits.policy_queued), &rule));
    let (priority, rule) = most_priority(policies);
    lines.push(line("maxPriority", priority.to_string(), &rule));
    let network = network_limits(policies);
    let rule = whose_of_all(policies, "maxConnections", i64::from(network.connections), |rules| rules.limits.max_connections);
    lines.push(line("maxConnections", network.connections.to_string(), &rule));
    let bytes = i64::try_from(network.bytes).unwrap_or(i64::MAX);
    let rule = whose_of_all(policies, "maxNetworkBytes", bytes, |rules| rules.limits.max_network_bytes);
    lines.push(line("maxNetworkBytes", bytes.to_string(), &rule));
    if let Some(bytes) = network.bytes_per_second.and_then(|bytes| i64::try_from(bytes).ok()) {
        let rule = whose_of_all(policies, "maxNetworkBytesPerSecond", bytes, |rules| rules.limits.max_network_bytes_per_second);
        lines.push(line("maxNetworkBytesPerSecond", bytes.to_string(), &rule));
    }
    if let Some((most, rule)) = network.refused {
        lines.push(line("maxRefusedConnections", most.to_string(), &rule));
    }
    lines.push(line("weight", weight.to_string(), &whose(policies, "weight", weight, |rules| rules.limits.weight)));
}

/// What may be given: of objects each policy by itself, since labels are known of an object alone.
fn capabilities(policies: &[&Policy], lines: &mut Vec<Line>) {
    for policy in policies {
        let rules = policy.rules.capabilities.as_ref();
        // Who allows and names none grants none.
        let is_meant = policy.effect == Effect::Allow;
        if let Some(grants) = rules.and_then(|rules| rules.network.as_deref()).or(is_meant.then_some(&[])) {
            let told: Vec<String> = grants.iter().map(network_grant).collect();
            let told = if told.is_empty() { "none".to_owned() } else { told.join("; ") };
            lines.push(line("capabilities.network", told, &named(policy, "capabilities.network")));
        }
        for kind in ObjectKind::ALL {
            if let Some(grants) = rules.and_then(|rules| kind.of(rules)).or(is_meant.then_some(&[])) {
                let field = kind.field();
                let told: Vec<String> = grants.iter().map(object_grant).collect();
                let told = if told.is_empty() { "none".to_owned() } else { told.join("; ") };
                lines.push(line(&format!("capabilities.{field}"), told, &named(policy, &format!("capabilities.{field}"))));
            }
        }
    }
    for name in [DYNAMIC_CODE, SUBPROCESS] {
        let (value, rule) = match word(policies, name) {
            Ok(rule) => ("true", rule),
            Err((rule, ..)) => ("false", rule),
        };
        lines.push(line(&format!("capabilities.{}", name.0), value, &rule));
    }
}

/// What the text of a script must be, policy by policy: all of it holds.
fn preflight(policies: &[&Policy], lines: &mut Vec<Line>) {
    for policy in policies {
        let Some(rules) = &policy.rules.preflight else { continue };
        let imports = rules.imports.as_ref().map(|all| if all.is_empty() { "none".to_owned() } else { all.join(", ") });
        let refuse = |strictness: Option<Strictness>| (strictness == Some(Strictness::Refuse)).then(|| "Refuse".to_owned());
        let said = [("unclear", refuse(rules.unclear)), ("undeclared", refuse(rules.undeclared)), ("imports", imports)];
        for (field, value) in said {
            if let Some(value) = value {
                lines.push(line(&format!("preflight.{field}"), value, &named(policy, &format!("preflight.{field}"))));
            }
        }
    }
}

fn network_grant(grant: &NetworkGrant) -> String {
    let list = |ports: &[i32]| ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let to = grant.hosts.iter().chain(&grant.cidrs).flatten().cloned().collect::<Vec<_>>().join(", ");
    let ports = grant.ports.as_ref().map(|ports| format!(" at {}", list(ports))).unwrap_or_default();
    let addresses = grant.addresses.as_ref().map(|nets| format!(", also in {}", nets.join(", "))).unwrap_or_default();
    let protocol = match grant.protocol.unwrap_or_default() {
        NetworkProtocol::Tls => String::new(),
        NetworkProtocol::Http => ", over http://".to_owned(),
        NetworkProtocol::Https => {
            let header =
                |header: &SecretHeader| format!("{} from {}/{}", header.name, header.secret_key_ref.name, header.secret_key_ref.key);
            let headers: Vec<String> = grant.headers.iter().flatten().map(header).collect();
            let with = if headers.is_empty() { String::new() } else { format!(" with {}", headers.join(" and ")) };
            format!(", as http:// that the gateway takes to HTTPS{with}")
        }
    };
    format!("{to}{ports}{protocol}{addresses}")
}

fn object_grant(grant: &ObjectGrant) -> String {
    match (&grant.name, &grant.selector) {
        (Some(name), _) => name.clone(),
        (None, Some(selector)) => format!("selected by {}", serde_json::to_string(selector).unwrap_or_default()),
        (None, None) => String::new(),
    }
}

fn demands(policies: &[&Policy], lines: &mut Vec<Line>) {
    let input = input_demand(policies, "");
    if let Some((bytes, rule)) = input.max_bytes {
        lines.push(line("input.maxBytes", bytes.to_string(), &rule));
    }
    if let Some(rule) = input.required_by {
        lines.push(line("input.requireSchema", "true", &rule));
    }
    let output = output_grant(policies);
    for (field, value, says) in [
        (
            "output.maxStreamBytes",
            output.stream_bytes.to_string(),
            (|rules| rules.output.max_stream_bytes.is_some()) as fn(&PolicyRules) -> bool,
        ),
        ("output.maxResultBytes", output.result_bytes.to_string(), |rules| rules.output.max_result_bytes.is_some()),
        ("output.largeResult", format!("{:?}", output.large_result), |rules| rules.output.large_result.is_some()),
    ] {
        lines.push(line(field, value, &all_that(policies, field, says)));
    }
    for policy in policies {
        for rule in &policy.rules.output.mask.rules {
            lines.push(line("output.mask", rule.pattern.clone(), &named(policy, &format!("output.mask.rules[{}]", rule.name))));
        }
        for rule in &policy.rules.rules {
            lines.push(line("rules", rule.expression.clone(), &named(policy, &format!("rules[{}]", rule.name))));
        }
        for demand in &policy.rules.approvals {
            lines.push(line("approvals", approval(demand), &named(policy, &format!("approvals[{}]", demand.name))));
        }
        if let Some(deny) = &policy.rules.deny {
            let counts = [
                (deny.scripts.len(), "scripts"),
                (deny.images.len(), "images"),
                (deny.requesters.len(), "requesters"),
                (deny.hosts.len(), "hosts"),
                (deny.imports.len(), "imports"),
            ];
            let told: Vec<String> = counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
            lines.push(line("deny", told.join(", "), &named(policy, "deny")));
        }
        for problem in &policy.problems {
            lines.push(line("problem", problem.to_string(), &named(policy, "status.problems")));
        }
    }
    for contradiction in contradictions(policies) {
        lines.push(line("contradiction", contradiction.message, "status.conditions[Contradicted]"));
    }
    match containment(policies, Facts::default()) {
        Containment::Queue { rule } => lines.push(line("suspend", "Queue", &rule)),
        Containment::Kill { rule } => lines.push(line("suspend", "Kill", &rule)),
        Containment::None | Containment::Denied { .. } => {}
    }
}

/// Everything that a demand says, in one line.
fn approval(demand: &ApprovalDemand) -> String {
    let mut text = demand.count.unwrap_or(1).to_string();
    if let Some(groups) = &demand.groups {
        text += &format!(" of {}", if groups.is_empty() { "nobody".to_owned() } else { groups.join(", ") });
    }
    if demand.binding == Some(Binding::Schema) {
        text += ", of the schema";
    }
    if demand.ends_running {
        text += ", ends what runs";
    }
    text + &demand.when.as_ref().map(|when| format!(", when {when}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use paddock_crds::TakenPolicy;
    use serde_json::{Value, json};

    use super::*;

    fn policy(kind: PolicyKind, name: &str, effect: Effect, rules: Value) -> Policy {
        let taken = TakenPolicy { kind, name: name.into(), uid: String::new(), author: None, generation: 1, hash: String::new() };
        Policy::new(taken, effect, serde_json::from_value(rules).unwrap())
    }

    #[test]
    fn every_field_is_told_with_the_rule_that_says_so() {
        let base = json!({
            "runtimes": [{ "name": "shell", "image": "i", "command": ["/bin/sh"] }, { "name": "python", "image": "p", "command": ["/p"] }],
            "limits": { "max": { "memory": "1Gi" }, "maxConcurrent": 7 },
            "capabilities": { "secrets": [{ "name": "smtp" }, { "selector": { "matchLabels": { "tier": "gold" } } }], "subprocess": true },
        });
        let own = json!({
            "runtimes": [{ "name": "shell" }],
            "limits": { "max": { "memory": "256Mi" }, "maxConcurrent": 2, "maxTimeoutSeconds": 10 },
            "rules": [{ "name": "a", "expression": "true" }],
            "approvals": [{ "name": "b", "count": 2, "groups": ["ops"], "endsRunning": true }],
            "suspend": "Queue",
            "capabilities": {
                "data": [],
                "network": [{ "hosts": ["api.example.com"], "protocol": "HTTP", "addresses": ["10.1.0.0/16"] }, { "cidrs": ["10.2.0.0/16"], "ports": [5432] }],
            },
            "deny": { "hosts": ["*.example.org"] },
        });
        let all = [
            policy(PolicyKind::SandboxPolicy, "own", Effect::Restrict, own),
            policy(PolicyKind::ClusterSandboxPolicy, "base", Effect::Allow, base),
        ];
        let lines = effective(&all);
        for expected in [
            ("runtimes", "shell", "ClusterSandboxPolicy/base: runtimes, SandboxPolicy/own: runtimes"),
            ("memory", "128Mi, at most 256Mi", "SandboxPolicy/own: limits.max.memory"),
            ("cpu", "500m, at most 500m", "built-in: cpu"),
            ("timeoutSeconds", "10, at most 10", "SandboxPolicy/own: limits.maxTimeoutSeconds"),
            ("maxConcurrent", "7 in the namespace, 2 of this policy", "ClusterSandboxPolicy/base: limits.maxConcurrent"),
            (
                "capabilities.secrets",
                "smtp; selected by {\"matchLabels\":{\"tier\":\"gold\"}}",
                "ClusterSandboxPolicy/base: capabilities.secrets",
            ),
            (
                "capabilities.network",
                "api.example.com, over http://, also in 10.1.0.0/16; 10.2.0.0/16 at 5432",
                "SandboxPolicy/own: capabilities.network",
            ),
            ("deny", "1 hosts", "SandboxPolicy/own: deny"),
            ("capabilities.data", "none", "SandboxPolicy/own: capabilities.data"),
            ("capabilities.volumes", "none", "ClusterSandboxPolicy/base: capabilities.volumes"),
            ("capabilities.network", "none", "ClusterSandboxPolicy/base: capabilities.network"),
            ("capabilities.subprocess", "true", "ClusterSandboxPolicy/base: capabilities.subprocess"),
            ("capabilities.dynamicCode", "false", "ClusterSandboxPolicy/base: capabilities.dynamicCode"),
            ("weight", "100", "built-in: weight"),
            ("maxConnections", "64", "built-in: maxConnections"),
            ("maxPriority", "0", "built-in: limits.maxPriority"),
            ("rules", "true", "SandboxPolicy/own: rules[a]"),
            ("approvals", "2 of ops, ends what runs", "SandboxPolicy/own: approvals[b]"),
            ("suspend", "Queue", "SandboxPolicy/own: suspend"),
        ] {
            assert!(lines.contains(&line(expected.0, expected.1, expected.2)), "{expected:?} is not in {lines:?}");
        }
    }
}
