//! The decision: effective policy × what is asked for → what is granted, with the rule behind each answer.

use std::borrow::Borrow;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Raw;
use paddock_crds::script_run::quantity_of_bytes;
use paddock_crds::{
    Capabilities, Decision, Effect, PolicyKind, PolicyRules, Problem, Reason, Requester, ResourceAmounts, ScriptRunSpec, TakenPolicy,
    Verdict,
};
use sha2::{Digest as _, Sha256};

use crate::approval;
use crate::bounds::{Ruled, Said, bounds};
use crate::capabilities::{self, CapabilityGrant, DYNAMIC_CODE, Objects, SUBPROCESS, Word, asked_objects};
use crate::check::problems;
use crate::network::{self, Gateway};
use crate::quantity::Quantity;
use crate::queue::{QueueLimits, queue_limits};
use crate::rules::{Named, compile};

/// A policy that takes part, with who it is.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Policy {
    /// Identity and hash, as they go into the status.
    pub taken: TakenPolicy,
    /// Who wrote its spec, as stamped with all that the API server knew of them.
    pub author: Option<Requester>,
    /// What its silence means. A SandboxPolicy always restricts.
    pub effect: Effect,
    /// Its rules.
    pub rules: PolicyRules,
    /// What it says of networks, read.
    pub(crate) network: network::Said,
    /// Its expressions, compiled.
    pub(crate) expressions: Vec<Named>,
    /// What has to be approved, compiled.
    pub(crate) demands: Vec<approval::Compiled>,
    /// What is wrong with them.
    pub problems: Vec<Problem>,
}

impl Policy {
    /// Looks for problems, once for all decisions.
    pub fn new(taken: TakenPolicy, effect: Effect, rules: PolicyRules) -> Self {
        let mut problems = problems(&rules, effect);
        let network = network::compile(&rules, &mut problems);
        let expressions = compile(&rules.rules, &mut problems);
        let demands = approval::compile(&rules.approvals, &mut problems);
        Self { taken, author: None, effect, rules, network, expressions, demands, problems }
    }
}

/// What a run asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// Name of the runtime.
    pub runtime: String,
    /// Memory, CPU, scratch.
    pub resources: ResourceAmounts,
    /// Seconds.
    pub timeout_seconds: Option<i64>,
    /// Seconds.
    pub grace_period_seconds: Option<i64>,
    /// Head start in the queue, in seconds.
    pub priority: Option<i64>,
    /// Everything else.
    pub capabilities: Capabilities,
    /// What was found of the Secrets and ConfigMaps among it.
    pub objects: Objects,
    /// Whether what is granted of the network could be had.
    pub gateway: Gateway,
}

impl Ask {
    /// What the spec of a run asks for, with what was found of the objects among it.
    pub fn of(spec: &ScriptRunSpec, objects: Objects, gateway: Gateway) -> Self {
        Self {
            runtime: spec.script.runtime.clone(),
            resources: spec.resources.clone().unwrap_or_default(),
            timeout_seconds: spec.timeout_seconds,
            grace_period_seconds: spec.grace_period_seconds,
            priority: spec.priority,
            capabilities: spec.capabilities.clone().unwrap_or_default(),
            objects,
            gateway,
        }
    }
}

/// An image and how to start its interpreter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeGrant {
    /// Image.
    pub image: String,
    /// Interpreter and its arguments.
    pub command: Vec<String>,
    /// Extension of the script's name.
    pub extension: Option<String>,
}

/// What a run gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Image and interpreter.
    pub runtime: RuntimeGrant,
    /// Bytes of memory for the whole sandbox.
    pub memory_bytes: u64,
    /// Thousandths of a core.
    pub cpu_milli: u64,
    /// Bytes of `/workspace`.
    pub scratch_bytes: u64,
    /// Seconds from the start message until TERM.
    pub timeout_seconds: u32,
    /// Seconds from TERM to KILL.
    pub grace_seconds: u32,
    /// What it may read and do beside.
    pub capabilities: CapabilityGrant,
    /// How many of its kind may run and wait.
    pub queue: QueueLimits,
}

/// Why nothing is granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The documented word.
    pub reason: Reason,
    /// For the author of the script.
    pub message: String,
}

/// A decision with all of its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Grant or refusal.
    pub result: Result<Grant, Refusal>,
    /// Every permission that was looked at.
    pub decisions: Vec<Decision>,
}

// What holds where no policy says anything.
pub(crate) const DEFAULT_MEMORY: Bytes = Bytes(128 << 20);
pub(crate) const DEFAULT_SCRATCH: Bytes = Bytes(16 << 20);
pub(crate) const DEFAULT_CPU_MILLI: u64 = 500;
pub(crate) const DEFAULT_TIMEOUT: i64 = 30;
pub(crate) const DEFAULT_GRACE: i64 = 5;
const DEFAULT_PRIORITY: i64 = 0;
/// What a sandbox must have beside its scratch space. A floor that was chosen, not measured: an interpreter may need more.
pub(crate) const LEAST_MEMORY: u64 = 32 << 20;

pub(crate) struct Bytes(pub(crate) u64);

impl Bytes {
    pub(crate) fn quantity(&self) -> Quantity {
        Quantity::of(self.0)
    }
}

/// SHA-256 of a spec as canonical JSON (keys sorted, no white space), in hexadecimal.
pub fn hash_of(spec: &serde_json::Value) -> String {
    sha256(spec.to_string().as_bytes())
}

/// SHA-256 of the text of a script, in hexadecimal, as deny-lists, schemas and the status name it.
pub fn script_hash(text: &[u8]) -> String {
    sha256(text)
}

/// SHA-256 in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Decides. `policies` are the one that the run names and every ClusterSandboxPolicy that selects its namespace, in any order.
pub fn decide(policies: &[impl Borrow<Policy>], ask: &Ask) -> Outcome {
    let policies = in_order(policies);
    if let Some(refusal) = policies.iter().find_map(|policy| refusal_of_a_broken(policy)) {
        return Outcome { result: Err(refusal), decisions: Vec::new() };
    }
    let cluster_tier: Vec<&Policy> = policies.iter().copied().filter(|policy| is_of_cluster_tier(policy)).collect();
    let mut deciding = Deciding { policies: &policies, decisions: Vec::new(), first_refusal: None, refusals: 0 };
    if !cluster_tier.iter().any(|policy| policy.effect == Effect::Allow) {
        let refusal = Refusal {
            reason: Reason::NoClusterPolicy,
            message: "no ClusterSandboxPolicy that allows anything selects this namespace, so nothing may run in it".into(),
        };
        return Outcome { result: Err(refusal), decisions: Vec::new() };
    }
    let runtime = deciding.runtime(&ask.runtime);
    let default =
        |field: fn(&ResourceAmounts) -> Option<&Raw>| move |rules: &PolicyRules| rules.limits.default.as_ref().and_then(field).cloned();
    let max = |field: fn(&ResourceAmounts) -> Option<&Raw>| move |rules: &PolicyRules| rules.limits.max.as_ref().and_then(field).cloned();
    let memory_of: fn(&ResourceAmounts) -> Option<&Raw> = |amounts| amounts.memory.as_ref();
    let cpu_of: fn(&ResourceAmounts) -> Option<&Raw> = |amounts| amounts.cpu.as_ref();
    let scratch_of: fn(&ResourceAmounts) -> Option<&Raw> = |amounts| amounts.scratch.as_ref();
    let memory = deciding.amount("memory", memory_of(&ask.resources), default(memory_of), max(memory_of), DEFAULT_MEMORY.quantity());
    let cpu = deciding.amount("cpu", cpu_of(&ask.resources), default(cpu_of), max(cpu_of), milli(DEFAULT_CPU_MILLI));
    let scratch = deciding.amount("scratch", scratch_of(&ask.resources), default(scratch_of), max(scratch_of), DEFAULT_SCRATCH.quantity());
    let timeout = deciding.seconds(
        "timeoutSeconds",
        ask.timeout_seconds,
        ("limits.defaultTimeoutSeconds", |rules| rules.limits.default_timeout_seconds),
        ("limits.maxTimeoutSeconds", |rules| rules.limits.max_timeout_seconds),
        DEFAULT_TIMEOUT,
    );
    let grace = deciding.seconds(
        "gracePeriodSeconds",
        ask.grace_period_seconds,
        ("", |_| None),
        ("limits.maxGracePeriodSeconds", |rules| rules.limits.max_grace_period_seconds),
        DEFAULT_GRACE,
    );
    let capabilities = deciding.capabilities(&ask.capabilities, &ask.objects, ask.gateway);
    let is_asked = ask.resources.memory.is_some() || ask.resources.scratch.is_some();
    deciding.memory_holds_scratch(memory, scratch, is_asked);
    deciding.priority(ask.priority);

    let result = match (deciding.refusal(), runtime) {
        (Some(refusal), _) => Err(refusal),
        (None, None) => Err(Refusal { reason: Reason::RuntimeNotAllowed, message: "the runtime is not offered".into() }),
        (None, Some(runtime)) => Ok(Grant {
            runtime,
            memory_bytes: memory.units(),
            cpu_milli: cpu.milli(),
            scratch_bytes: scratch.units(),
            timeout_seconds: clamp(timeout),
            grace_seconds: clamp(grace),
            capabilities,
            queue: queue_limits(&policies),
        }),
    };
    Outcome { result, decisions: deciding.decisions }
}

/// The cluster tier first, equals by name: what is said must not depend on the order in which policies are found.
pub(crate) fn in_order(policies: &[impl Borrow<Policy>]) -> Vec<&Policy> {
    let mut policies: Vec<&Policy> = policies.iter().map(Borrow::borrow).collect();
    policies.sort_by_key(|policy| (!is_of_cluster_tier(policy), policy.taken.name.clone()));
    policies
}

fn refusal_of_a_broken(policy: &Policy) -> Option<Refusal> {
    let first = policy.problems.first()?;
    let more = policy.problems.len() - 1;
    let more = if more > 0 { format!("; and {more} more, see its status") } else { String::new() };
    Some(Refusal { reason: Reason::PolicyInvalid, message: format!("{}{more}", named(policy, &first.to_string())) })
}

fn is_of_cluster_tier(policy: &Policy) -> bool {
    policy.taken.kind == PolicyKind::ClusterSandboxPolicy
}

pub(crate) fn milli(value: u64) -> Quantity {
    Quantity::parse(&format!("{value}m")).unwrap_or(Quantity::of(1))
}

pub(crate) fn clamp(value: i64) -> u32 {
    u32::try_from(value.max(0)).unwrap_or(u32::MAX)
}

/// A field of the rules that holds seconds, with its name.
pub(crate) type Field = (&'static str, fn(&PolicyRules) -> Option<i64>);

struct Deciding<'a> {
    policies: &'a [&'a Policy],
    decisions: Vec<Decision>,
    first_refusal: Option<Refusal>,
    /// How many refusals refuse the run.
    refusals: usize,
}

/// What each policy says of an amount of seconds.
pub(crate) fn seconds_said(policies: &[&Policy], default_of: Field, max_of: Field) -> Vec<Said<i64>> {
    let of = |(name, of): Field, policy: &Policy| Some((of(&policy.rules)?, named(policy, name)));
    policies.iter().map(|policy| Said { effect: policy.effect, default: of(default_of, policy), max: of(max_of, policy) }).collect()
}

/// The most that a run may ask for, and the rule that says so.
pub(crate) fn most_priority(policies: &[&Policy]) -> Ruled<i64> {
    let said = |policy: &&Policy| {
        let own = policy.rules.limits.max_priority.map(|max| (max, named(policy, "limits.maxPriority")));
        own.or_else(|| (policy.effect == Effect::Allow).then(|| (DEFAULT_PRIORITY, "built-in: limits.maxPriority".to_owned())))
    };
    policies.iter().filter_map(said).min_by_key(|(most, _)| *most).unwrap_or_default()
}

pub(crate) fn named(policy: &Policy, field: &str) -> String {
    format!("{}/{}: {field}", policy.taken.kind.as_str(), policy.taken.name)
}

impl Deciding<'_> {
    fn grant(&mut self, permission: String, rule: String) {
        self.decisions.push(Decision { permission, verdict: Verdict::Granted, rule });
    }

    fn refuse(&mut self, permission: String, rule: String, reason: Reason, message: String) {
        self.decisions.push(Decision { permission, verdict: Verdict::Refused, rule });
        self.first_refusal.get_or_insert(Refusal { reason, message });
        self.refusals += 1;
    }

    /// Every policy that speaks of runtimes must offer it, and one that allows has to; those that say which image it is must agree.
    fn runtime(&mut self, name: &str) -> Option<RuntimeGrant> {
        let permission = format!("runtime:{name}");
        let mut image: Option<(&Policy, &str)> = None;
        let mut command: Option<(&Policy, &[String])> = None;
        let mut extension: Option<&str> = None;
        for policy in self.policies {
            let offered = match (&policy.rules.runtimes, policy.effect) {
                (Some(offered), _) => offered.as_slice(),
                (None, Effect::Allow) => &[],
                (None, Effect::Restrict) => continue,
            };
            let Some(runtime) = offered.iter().find(|runtime| runtime.name == name) else {
                let message = format!("{} does not offer the runtime {name}", named(policy, "runtimes").trim_end_matches(": runtimes"));
                self.refuse(permission, named(policy, "runtimes"), Reason::RuntimeNotAllowed, message);
                return None;
            };
            if let Some(own) = runtime.image.as_deref() {
                if image.is_some_and(|(_, other)| other != own) {
                    return self.disagree(permission, policy, name);
                }
                image = Some((policy, own));
            }
            if let Some(own) = runtime.command.as_deref() {
                if command.is_some_and(|(_, other)| other != own) {
                    return self.disagree(permission, policy, name);
                }
                command = Some((policy, own));
            }
            if let Some(own) = runtime.extension.as_deref() {
                if extension.is_some_and(|other| other != own) {
                    return self.disagree(permission, policy, name);
                }
                extension = Some(own);
            }
        }
        match (image, command) {
            (Some((policy, image)), Some((_, command))) if !command.is_empty() => {
                self.grant(permission, named(policy, &format!("runtimes[{name}]")));
                Some(RuntimeGrant { image: image.to_owned(), command: command.to_vec(), extension: extension.map(Into::into) })
            }
            _ => {
                let message = format!("no policy says which image and command the runtime {name} is");
                self.refuse(permission, "runtimes".into(), Reason::PolicyInvalid, message);
                None
            }
        }
    }

    fn disagree(&mut self, permission: String, policy: &Policy, name: &str) -> Option<RuntimeGrant> {
        let message = format!("the policies do not agree on what the runtime {name} is");
        self.refuse(permission, named(policy, &format!("runtimes[{name}]")), Reason::PolicyInvalid, message);
        None
    }

    fn amount(
        &mut self,
        field: &str,
        asked: Option<&Raw>,
        default_of: impl Fn(&PolicyRules) -> Option<Raw>,
        max_of: impl Fn(&PolicyRules) -> Option<Raw>,
        built_in: Quantity,
    ) -> Quantity {
        let mut said = Vec::new();
        for policy in self.policies {
            let default = self.quantity(field, policy, "default", default_of(&policy.rules));
            let max = self.quantity(field, policy, "max", max_of(&policy.rules));
            said.push(Said { effect: policy.effect, default, max });
        }
        let (default, (ceiling, rule)) = bounds(&said, &built_in, field);
        let Some(asked) = asked else {
            return default;
        };
        let permission = format!("{field}:{}", asked.0);
        match Quantity::parse(&asked.0) {
            Ok(value) if value <= ceiling => {
                self.grant(permission, rule);
                value
            }
            Ok(value) => {
                let message = format!("{field} {} is more than the {} that is allowed ({rule})", asked.0, shown(field, ceiling));
                self.refuse(permission, rule, Reason::LimitExceeded, message);
                value
            }
            Err(error) => {
                self.refuse(permission, "resources".into(), Reason::InvalidSpec, error.0);
                default
            }
        }
    }

    /// A quantity of a policy, with its rule. One that cannot be read refuses the run.
    fn quantity(&mut self, field: &str, policy: &Policy, which: &str, raw: Option<Raw>) -> Option<Ruled<Quantity>> {
        let raw = raw?;
        let rule = named(policy, &format!("limits.{which}.{field}"));
        match Quantity::parse(&raw.0) {
            Ok(value) => Some((value, rule)),
            Err(error) => {
                self.refuse(format!("{field}:{}", raw.0), rule, Reason::PolicyInvalid, error.0);
                None
            }
        }
    }

    fn seconds(&mut self, field: &str, asked: Option<i64>, default_of: Field, max_of: Field, built_in: i64) -> i64 {
        let said = seconds_said(self.policies, default_of, max_of);
        let (default, (ceiling, rule)) = bounds(&said, &built_in, field);
        let Some(asked) = asked else {
            return default;
        };
        let permission = format!("{field}:{asked}");
        if asked > ceiling {
            let message = format!("{field} {asked} is more than the {ceiling} that are allowed ({rule})");
            self.refuse(permission, rule, Reason::LimitExceeded, message);
        } else {
            self.grant(permission, rule);
        }
        asked
    }

    /// A head start in the queue. Nobody is refused for asking for none.
    fn priority(&mut self, asked: Option<i64>) {
        let Some(asked) = asked.filter(|asked| *asked > 0) else { return };
        let (most, rule) = most_priority(self.policies);
        if asked > most {
            let message = format!("priority {asked} is more than the {most} that is allowed ({rule})");
            self.refuse(format!("priority:{asked}"), rule, Reason::LimitExceeded, message);
        } else {
            self.grant(format!("priority:{asked}"), rule);
        }
    }

    /// Each capability that is asked for, by name. A run that takes what it gets is not refused for those that it does not get.
    fn capabilities(&mut self, asked: &Capabilities, objects: &Objects, gateway: Gateway) -> CapabilityGrant {
        let mut granted = CapabilityGrant::default();
        for destination in network::asked(asked) {
            let answer = network::destination(self.policies, destination, gateway);
            let rule = answer.as_ref().map(|granted| granted.rule.clone()).map_err(Clone::clone);
            self.answer(network::permission(destination), asked.partial, rule);
            granted.network.extend(answer);
        }
        if !granted.network.is_empty() {
            granted.denied_hosts = network::denied_hosts(self.policies);
        }
        for object in asked_objects(asked) {
            let answer = capabilities::object(self.policies, &object, objects);
            if self.answer(format!("{}:{}", object.kind.field(), object.name), asked.partial, answer) {
                granted.objects.push(object);
            }
        }
        let mut is_granted =
            |word: Word, is_asked| is_asked && self.answer(word.0.to_owned(), asked.partial, capabilities::word(self.policies, word));
        granted.dynamic_code = is_granted(DYNAMIC_CODE, asked.dynamic_code);
        granted.subprocess = is_granted(SUBPROCESS, asked.subprocess);
        granted
    }

    /// Writes an answer down. One that refuses ends the run, unless it takes what it gets.
    fn answer(&mut self, permission: String, is_partial: bool, answer: capabilities::Answer) -> bool {
        match answer {
            Ok(rule) => {
                self.grant(permission, rule);
                true
            }
            Err((rule, _, _)) if is_partial => {
                self.decisions.push(Decision { permission, verdict: Verdict::Refused, rule });
                false
            }
            Err((rule, reason, message)) => {
                self.refuse(permission, rule, reason, message);
                false
            }
        }
    }

    /// Scratch is held in memory and counts against it. If the run asked for neither, the policies contradict themselves.
    fn memory_holds_scratch(&mut self, memory: Quantity, scratch: Quantity, is_asked: bool) {
        if self.first_refusal.is_none() && memory.units() < scratch.units().saturating_add(LEAST_MEMORY) {
            let [memory, scratch, least] = [memory.units(), scratch.units(), LEAST_MEMORY].map(|bytes| quantity_of_bytes(bytes).0);
            let whose = if is_asked { "" } else { " by the policies" };
            let message =
                format!("memory is {memory}{whose}; it must be at least scratch, {scratch}, which is held in it, and {least} more");
            let (reason, rule) =
                if is_asked { (Reason::InvalidSpec, "built-in") } else { (Reason::PolicyInvalid, "limits.default, limits.max") };
            self.refuse("memory holds scratch".into(), rule.into(), reason, message);
        }
    }

    /// The message names the first refusal and says how many there are.
    fn refusal(&mut self) -> Option<Refusal> {
        let others = self.refusals.saturating_sub(1);
        let mut refusal = self.first_refusal.take()?;
        if others > 0 {
            refusal.message.push_str(&format!("; and {others} more, see status.decisions"));
        }
        Some(refusal)
    }
}

/// A quantity as people write it.
pub(crate) fn shown(field: &str, value: Quantity) -> String {
    if field == "cpu" { format!("{}m", value.milli()) } else { quantity_of_bytes(value.units()).0 }
}

#[cfg(test)]
mod laws;
#[cfg(test)]
mod tests;
