//! The time of one decision over the same rules, by Paddock's fields, by its expressions, by Rego (regorus) and by Cedar: as one JSON line for each
//! number of rules. The sides take turns, so that what else the machine does falls on all of them. Fails where Paddock misses a goal.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Instant;

use cedar_policy::{Authorizer, Context, Decision, Entities, PolicySet, Request};
use jiff::Timestamp;
use paddock_crds::{Effect, PolicyKind, Requester, ScriptRun, TakenPolicy};
use paddock_policy::{Ask, AtGateway, Gateway, Objects, Policy, Subject, TenantFacts, decide, judge_rules, risk};
use serde_json::{Value, json};

/// What the run asks for, which every rule allows.
const MEMORY: u64 = 64 << 20;
const ROUNDS: usize = 200;
/// What half of all decisions may take at most, in microseconds, by number of rules.
const GOALS: [(usize, &str, f64); 2] = [(10, "fields", 8.0), (10, "expressions", 50.0)];
/// Rules of one policy: as many as the schema lets in.
const RULES: usize = 32;

fn main() {
    for rules in [10, 100, 1000] {
        let mut sides: Vec<(&str, Box<dyn FnMut() -> bool>)> = vec![
            ("fields", Box::new(fields(rules))),
            ("expressions", Box::new(expressions(rules))),
            ("rego", Box::new(rego(rules))),
            ("cedar", Box::new(cedar(rules))),
        ];
        let mut times: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for round in 0..ROUNDS + 20 {
            for (name, decide) in &mut sides {
                let begin = Instant::now();
                assert!(black_box(decide()), "{name} does not allow the run");
                let micros = begin.elapsed().as_secs_f64() * 1e6;
                if round >= 20 {
                    times.entry(name).or_default().push(micros);
                }
            }
        }
        let told: BTreeMap<&str, Value> = times.into_iter().map(|(name, times)| (name, spread(times))).collect();
        println!("{}", json!({ "rules": rules, "microseconds": told }));
        for (_, name, goal) in GOALS.iter().filter(|(of, ..)| *of == rules) {
            assert!(told[name]["p50"].as_f64() <= Some(*goal), "{name}: half of all decisions take more than {goal} microseconds");
        }
    }
}

fn spread(mut times: Vec<f64>) -> Value {
    times.sort_by(f64::total_cmp);
    let at = |part: f64| (times[((times.len() - 1) as f64 * part) as usize] * 10.0).round() / 10.0;
    json!({ "p10": at(0.1), "p50": at(0.5), "p90": at(0.9) })
}

fn policy(name: &str, effect: Effect, rules: Value) -> Policy {
    let kind = PolicyKind::ClusterSandboxPolicy;
    let taken = TakenPolicy { kind, name: name.into(), uid: name.into(), author: None, generation: 1, hash: String::new() };
    let policy = Policy::new(taken, effect, serde_json::from_value(rules).expect("rules"));
    assert!(policy.problems.is_empty(), "{:?}", policy.problems);
    policy
}

fn base() -> Policy {
    let rules = json!({
        "runtimes": [{ "name": "python", "image": "registry.example/python", "command": ["/usr/bin/python3"] }],
        "limits": { "max": { "memory": "64Gi" } },
    });
    policy("base", Effect::Allow, rules)
}

fn a_run() -> ScriptRun {
    let run = json!({
        "apiVersion": "paddock.dev/v1alpha1", "kind": "ScriptRun", "metadata": { "name": "run", "labels": { "team": "data" } },
        "spec": {
            "policyRef": { "kind": "ClusterSandboxPolicy", "name": "base" },
            "script": { "runtime": "python", "source": { "inline": "print(1)" } },
            "resources": { "memory": "64Mi" },
        },
    });
    serde_json::from_value(run).expect("a run")
}

/// As many policies, each of which bounds the memory.
fn fields(rules: usize) -> impl FnMut() -> bool {
    let bounds = (1..rules).map(|number| {
        policy(&format!("p{number}"), Effect::Restrict, json!({ "limits": { "max": { "memory": format!("{}Mi", 100 + number) } } }))
    });
    let policies: Vec<Policy> = bounds.chain([base()]).collect();
    let ask = Ask::of(&a_run().spec, Objects::new(), AtGateway::new(), Gateway::Installed);
    move || decide(&policies, &ask).result.is_ok()
}

/// The same bounds as expressions, on top of the fields of one policy.
fn expressions(rules: usize) -> impl FnMut() -> bool {
    let all: Vec<Value> = (0..rules)
        .map(|number| json!({ "name": format!("r{number}"), "expression": format!("run.memoryBytes <= {}", (100 + number) << 20) }))
        .collect();
    let mut policies: Vec<Policy> = all
        .chunks(RULES)
        .enumerate()
        .map(|(number, rules)| policy(&format!("p{number}"), Effect::Restrict, json!({ "rules": rules })))
        .collect();
    policies.push(base());
    let (run, labels) = (a_run(), BTreeMap::new());
    let requester = Requester { username: "jane".into(), uid: None, groups: vec!["team-data".into()] };
    move || {
        let Ok(grant) = decide(&policies, &Ask::of(&run.spec, Objects::new(), AtGateway::new(), Gateway::Installed)).result else {
            return false;
        };
        let tenant = TenantFacts { name: "team", labels: &labels };
        let risk = risk(&grant.capabilities, None);
        let subject = Subject::of(&run, (&grant, "aa", 0), (&risk, None), tenant, &requester, Timestamp::UNIX_EPOCH);
        judge_rules(&policies, &subject).refusal.is_none()
    }
}

fn rego(rules: usize) -> impl FnMut() -> bool {
    let mut text =
        "package paddock\nimport rego.v1\ndefault allow := false\nallow if { input.runtime == \"python\"; count(deny) == 0 }\n".to_owned();
    for number in 0..rules {
        text += &format!("deny contains \"r{number}\" if input.memoryBytes > {}\n", (100 + number) << 20);
    }
    let mut engine = regorus::Engine::new();
    engine.add_policy("paddock.rego".into(), text).expect("Rego");
    let input = json!({ "runtime": "python", "memoryBytes": MEMORY, "requester": { "username": "jane" } });
    let input: regorus::Value = regorus::Value::from_json_str(&input.to_string()).expect("an input");
    move || {
        engine.set_input(input.clone());
        engine.eval_rule("data.paddock.allow".into()).expect("a decision") == regorus::Value::Bool(true)
    }
}

fn cedar(rules: usize) -> impl FnMut() -> bool {
    let mut text = "permit(principal, action, resource) when { context.runtime == \"python\" };\n".to_owned();
    for number in 0..rules {
        text += &format!("forbid(principal, action, resource) when {{ context.memoryBytes > {} }};\n", (100 + number) << 20);
    }
    let policies: PolicySet = text.parse().expect("Cedar");
    let (authorizer, entities) = (Authorizer::new(), Entities::empty());
    let uid = |text: &str| text.parse::<cedar_policy::EntityUid>().expect("an entity");
    let [principal, action, resource]: [cedar_policy::EntityUid; 3] = ["User::\"jane\"", "Action::\"run\"", "Namespace::\"team\""].map(uid);
    move || {
        let context = Context::from_json_value(json!({ "runtime": "python", "memoryBytes": MEMORY }), None).expect("a context");
        let request = Request::new(principal.clone(), action.clone(), resource.clone(), context, None).expect("a request");
        authorizer.is_authorized(&request, &policies, &entities).decision() == Decision::Allow
    }
}
