//! Memory, CPU and scratch space: what a policy says of them, read once, and what is wrong with that.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Raw;
use paddock_crds::script_run::quantity_of_bytes;
use paddock_crds::{Effect, Limits, Problem, ResourceAmounts};

use crate::bounds::Bounded;
use crate::quantity::Quantity;

pub(crate) const MEMORY: Bounded<Quantity> = Bounded {
    name: "memory",
    default: ("limits.default.memory", |policy| policy.amounts.default.memory),
    max: ("limits.max.memory", |policy| policy.amounts.max.memory),
    built_in: Quantity::of(128 << 20),
};
pub(crate) const CPU: Bounded<Quantity> = Bounded {
    name: "cpu",
    default: ("limits.default.cpu", |policy| policy.amounts.default.cpu),
    max: ("limits.max.cpu", |policy| policy.amounts.max.cpu),
    built_in: Quantity::of_milli(500),
};
pub(crate) const SCRATCH: Bounded<Quantity> = Bounded {
    name: "scratch",
    default: ("limits.default.scratch", |policy| policy.amounts.default.scratch),
    max: ("limits.max.scratch", |policy| policy.amounts.max.scratch),
    built_in: Quantity::of(16 << 20),
};
/// What a sandbox must have beside its scratch space. A floor that was chosen, not measured: an interpreter may need more.
pub(crate) const LEAST_MEMORY: u64 = 32 << 20;

/// What a policy says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Amounts {
    default: Read,
    max: Read,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Read {
    memory: Option<Quantity>,
    cpu: Option<Quantity>,
    scratch: Option<Quantity>,
}

/// Reads what a policy says. What cannot be read, and what contradicts itself, is a problem of the policy.
pub(crate) fn compile(limits: &Limits, effect: Effect, problems: &mut Vec<Problem>) -> Amounts {
    let known = problems.len();
    let amounts = Amounts { default: read("default", limits.default.as_ref(), problems), max: read("max", limits.max.as_ref(), problems) };
    let pairs = [
        ("memory", amounts.default.memory, amounts.max.memory),
        ("cpu", amounts.default.cpu, amounts.max.cpu),
        ("scratch", amounts.default.scratch, amounts.max.scratch),
    ];
    for (field, default, max) in pairs {
        if let (Some(default), Some(max)) = (default, max)
            && default > max
        {
            let [default, max] = [default, max].map(|value| shown(field, value));
            let message = format!("{default} is more than limits.max.{field}, {max}");
            problems.push(Problem { field: format!("limits.default.{field}"), message });
        }
    }
    if problems.len() == known {
        memory_holds_scratch(&amounts, effect, problems);
    }
    amounts
}

fn read(which: &str, amounts: Option<&ResourceAmounts>, problems: &mut Vec<Problem>) -> Read {
    let mut one = |field: &str, raw: Option<&Raw>| {
        let mut unreadable = |message| problems.push(Problem { field: format!("limits.{which}.{field}"), message });
        Quantity::parse(&raw?.0).map_err(|why| unreadable(why.0)).ok()
    };
    let Some(amounts) = amounts else { return Read::default() };
    Read {
        memory: one("memory", amounts.memory.as_ref()),
        cpu: one("cpu", amounts.cpu.as_ref()),
        scratch: one("scratch", amounts.scratch.as_ref()),
    }
}

/// What a run gets that does not ask must be something that can be had.
fn memory_holds_scratch(amounts: &Amounts, effect: Effect, problems: &mut Vec<Problem>) {
    let given = |default: Option<Quantity>, max: Option<Quantity>, built_in: Quantity| {
        let default = default.or((effect == Effect::Allow).then_some(built_in));
        default.map_or(max, |default| Some(max.map_or(default, |max| max.min(default))))
    };
    let scratch = given(amounts.default.scratch, amounts.max.scratch, SCRATCH.built_in).map_or(0, Quantity::units);
    let Some(memory) = given(amounts.default.memory, amounts.max.memory, MEMORY.built_in).map(Quantity::units) else { return };
    problems.extend(lack(memory, scratch).map(|message| Problem { field: "limits".into(), message }));
}

/// What a run lacks that does not ask, and gets so many bytes of each.
pub(crate) fn lack(memory: u64, scratch: u64) -> Option<String> {
    let [gets, needs, least] = [memory, scratch, LEAST_MEMORY].map(|bytes| quantity_of_bytes(bytes).0);
    let told = || format!("a run that does not ask gets {gets} of memory, which must hold scratch, {needs}, and {least} more");
    (!holds(memory, scratch)).then(told)
}

/// Scratch space is held in memory and counts against it.
pub(crate) fn holds(memory: u64, scratch: u64) -> bool {
    memory >= scratch.saturating_add(LEAST_MEMORY)
}

/// A quantity as people write it.
pub(crate) fn shown(field: &str, value: Quantity) -> String {
    if field == CPU.name { format!("{}m", value.milli()) } else { quantity_of_bytes(value.units()).0 }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn problems(limits: Value, effect: Effect) -> Vec<String> {
        let mut problems = Vec::new();
        compile(&serde_json::from_value(limits).unwrap(), effect, &mut problems);
        problems.iter().map(ToString::to_string).collect()
    }

    #[rstest]
    #[case::nothing(json!({}), &[])]
    #[case::wide(json!({ "max": { "memory": "1Gi", "cpu": "2", "scratch": "100Mi" } }), &[])]
    #[case::no_quantity(json!({ "max": { "cpu": "two" } }), &["limits.max.cpu: \"two\" is not a positive quantity"])]
    #[case::more_than_the_most(json!({ "default": { "memory": "2Gi" }, "max": { "memory": "1Gi" } }), &["limits.default.memory: 2Gi is more than limits.max.memory, 1Gi"])]
    #[case::more_cpu(json!({ "default": { "cpu": 1 }, "max": { "cpu": "0.25" } }), &["limits.default.cpu: 1000m is more than limits.max.cpu, 250m"])]
    fn every_problem_is_named(#[case] limits: Value, #[case] expected: &[&str]) {
        for effect in [Effect::Allow, Effect::Restrict] {
            assert_eq!(problems(limits.clone(), effect), expected);
        }
    }

    #[rstest]
    #[case::too_little(json!({ "max": { "memory": "40Mi" } }), true, false)]
    #[case::too_little_for_all(json!({ "max": { "memory": "16Mi" } }), true, true)]
    #[case::too_much_scratch(json!({ "default": { "scratch": "100Mi" } }), true, false)]
    #[case::both(json!({ "default": { "memory": "64Mi", "scratch": "48Mi" } }), true, true)]
    #[case::enough(json!({ "default": { "memory": "64Mi", "scratch": "32Mi" } }), false, false)]
    fn memory_must_hold_scratch(#[case] limits: Value, #[case] allows: bool, #[case] restricts: bool) {
        assert_eq!([Effect::Allow, Effect::Restrict].map(|effect| !problems(limits.clone(), effect).is_empty()), [allows, restricts]);
    }
}
