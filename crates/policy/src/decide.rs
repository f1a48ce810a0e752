//! The decision: effective policy × what is asked for → what is granted, with the rule behind each answer.

use std::borrow::Borrow;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Raw;
use paddock_crds::script_run::quantity_of_bytes;
use paddock_crds::{
    Capabilities, Decision, Effect, Language, PolicyKind, PolicyRules, PreStart, Problem, Reason, Requester, ResourceAmounts,
    ScriptRunSpec, TakenPolicy, Verdict,
};
use sha2::{Digest as _, Sha256};

use crate::amounts::{self, Amounts, CPU, LEAST_MEMORY, MEMORY, SCRATCH, holds, shown};
use crate::approval;
use crate::bounds::{Bounded, Ruled, bounds};
use crate::capabilities::{self, AtGateway, CapabilityGrant, DYNAMIC_CODE, Found, No, Objects, SUBPROCESS, Word, asked_objects};
use crate::check;
use crate::network::{self, Gateway};
use crate::quantity::Quantity;
use crate::queue::{QueueLimits, queue_limits};
use crate::rules::{Named, compile};
use crate::runtime::runtime;

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
    /// What it says of memory, CPU and scratch space, read.
    pub(crate) amounts: Amounts,
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
        let mut problems = Vec::new();
        let amounts = amounts::compile(&rules.limits, effect, &mut problems);
        problems.extend(check::problems(&rules, effect));
        let network = network::compile(&rules, &mut problems);
        let expressions = compile(&rules.rules, &mut problems);
        let demands = approval::compile(&rules.approvals, &mut problems);
        Self { taken, author: None, effect, rules, amounts, network, expressions, demands, problems }
    }

    /// Kind and name.
    pub(crate) fn full_name(&self) -> String {
        format!("{}/{}", self.taken.kind.as_str(), self.taken.name)
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
    /// What was found of the Secrets that the gateway adds for it.
    pub at_gateway: AtGateway,
    /// Whether what is granted of the network could be had.
    pub gateway: Gateway,
}

impl Ask {
    /// What the spec of a run asks for, with what was found of the objects among it.
    pub fn of(spec: &ScriptRunSpec, objects: Objects, at_gateway: AtGateway, gateway: Gateway) -> Self {
        Self {
            runtime: spec.script.runtime.clone(),
            resources: spec.resources.clone().unwrap_or_default(),
            timeout_seconds: spec.timeout_seconds,
            grace_period_seconds: spec.grace_period_seconds,
            priority: spec.priority,
            capabilities: spec.capabilities.clone().unwrap_or_default(),
            objects,
            at_gateway,
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
    /// What its scripts are written in. No part of what is approved: the script is the same.
    pub language: Option<Language>,
    /// Which interpreter begins with a sandbox that waits. No part of what is approved: the script is the same.
    pub pre_start: Option<PreStart>,
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
    /// Seconds from the beginning of the interpreter until TERM.
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

/// How long a run may take from its start message, in seconds.
pub(crate) const TIMEOUT: Bounded<i64> = Bounded {
    name: "timeoutSeconds",
    default: ("limits.defaultTimeoutSeconds", |policy| policy.rules.limits.default_timeout_seconds),
    max: ("limits.maxTimeoutSeconds", |policy| policy.rules.limits.max_timeout_seconds),
    built_in: 30,
};
/// From TERM to KILL, in seconds. No policy says what a run gets that does not ask.
pub(crate) const GRACE: Bounded<i64> = Bounded {
    name: "gracePeriodSeconds",
    default: ("", |_| None),
    max: ("limits.maxGracePeriodSeconds", |policy| policy.rules.limits.max_grace_period_seconds),
    built_in: 5,
};
const DEFAULT_PRIORITY: i64 = 0;

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
    let memory = deciding.amount(&MEMORY, ask.resources.memory.as_ref());
    let cpu = deciding.amount(&CPU, ask.resources.cpu.as_ref());
    let scratch = deciding.amount(&SCRATCH, ask.resources.scratch.as_ref());
    let timeout = deciding.seconds(&TIMEOUT, ask.timeout_seconds);
    let grace = deciding.seconds(&GRACE, ask.grace_period_seconds);
    let capabilities = deciding.capabilities(ask);
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
    policies.sort_by(|one, other| rank(one).cmp(&rank(other)));
    policies
}

fn rank(policy: &Policy) -> (bool, &str) {
    (!is_of_cluster_tier(policy), &policy.taken.name)
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

pub(crate) fn clamp(value: i64) -> u32 {
    u32::try_from(value.max(0)).unwrap_or(u32::MAX)
}

struct Deciding<'a> {
    policies: &'a [&'a Policy],
    decisions: Vec<Decision>,
    first_refusal: Option<Refusal>,
    /// How many refusals refuse the run.
    refusals: usize,
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
    format!("{}: {field}", policy.full_name())
}

/// The beginning of the permission for each key of a Secret that the gateway adds to requests: `gateway-secret:NAME/KEY`.
pub const AT_GATEWAY: &str = "gateway-secret:";

/// A destination is granted with all that the gateway adds for it, or not at all.
fn with_its_secrets(to: network::Granted, at_gateway: &AtGateway) -> Result<network::Granted, No> {
    let found = to.https.iter().flat_map(|https| &https.fields).filter_map(|field| at_gateway.get(&field.secret));
    let unusable = found.filter_map(|found| match found {
        Found::Unusable { reason, rule, message } => Some((rule.clone(), reason.clone(), message.clone())),
        Found::Labels(_) => None,
    });
    unusable.take(1).next().map_or(Ok(to), Err)
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

    fn runtime(&mut self, name: &str) -> Option<RuntimeGrant> {
        let permission = format!("runtime:{name}");
        match runtime(self.policies, name) {
            Ok((granted, rule)) => {
                self.grant(permission, rule);
                Some(granted)
            }
            Err((rule, reason, message)) => {
                self.refuse(permission, rule, reason, message);
                None
            }
        }
    }

    fn amount(&mut self, field: &Bounded<Quantity>, asked: Option<&Raw>) -> Quantity {
        let bounds = bounds(self.policies, field);
        let Some(asked) = asked else {
            return bounds.default;
        };
        let permission = format!("{}:{}", field.name, asked.0);
        match Quantity::parse(&asked.0) {
            Ok(value) if value <= bounds.ceiling => {
                self.grant(permission, bounds.rule());
                value
            }
            Ok(value) => {
                let (most, rule) = (shown(field.name, bounds.ceiling), bounds.rule());
                let message = format!("{} {} is more than the {most} that is allowed ({rule})", field.name, asked.0);
                self.refuse(permission, rule, Reason::LimitExceeded, message);
                value
            }
            Err(error) => {
                self.refuse(permission, "resources".into(), Reason::InvalidSpec, error.0);
                bounds.default
            }
        }
    }

    fn seconds(&mut self, field: &Bounded<i64>, asked: Option<i64>) -> i64 {
        let bounds = bounds(self.policies, field);
        let Some(asked) = asked else {
            return bounds.default;
        };
        let (permission, rule) = (format!("{}:{asked}", field.name), bounds.rule());
        if asked > bounds.ceiling {
            let message = format!("{} {asked} is more than the {} that are allowed ({rule})", field.name, bounds.ceiling);
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
    fn capabilities(&mut self, Ask { capabilities: asked, objects, at_gateway, gateway, .. }: &Ask) -> CapabilityGrant {
        let mut granted = CapabilityGrant::default();
        for destination in network::asked(asked) {
            let answer = network::destination(self.policies, destination, *gateway).and_then(|to| with_its_secrets(to, at_gateway));
            let rule = answer.as_ref().map(|granted| granted.rule.clone()).map_err(Clone::clone);
            self.answer(network::permission(destination), asked.partial, rule);
            if let Ok(to) = &answer {
                self.grant_secrets(to);
            }
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

    /// Each key that the gateway adds, once: by it is known what has to be covered in what the script puts out.
    fn grant_secrets(&mut self, to: &network::Granted) {
        for field in to.https.iter().flat_map(|https| &https.fields) {
            let permission = format!("{AT_GATEWAY}{}", field.secret);
            if !self.decisions.iter().any(|decision| decision.permission == permission) {
                let says = network::adding(self.policies, &to.to).last().map_or_else(String::new, |policy| policy.full_name());
                self.grant(permission, format!("{says}: capabilities.network.headers[{}]", field.name));
            }
        }
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
        if self.first_refusal.is_none() && !holds(memory.units(), scratch.units()) {
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

#[cfg(test)]
mod laws;
#[cfg(test)]
mod tests;
