//! Capabilities: what a run asks for beside an interpreter, resources and time. Each is granted or refused by itself.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;

use paddock_crds::{Capabilities, CapabilityRules, Effect, ObjectGrant, PolicyRules, Problem, Reason};

use crate::decide::{Policy, named};
use crate::https::SecretKey;
use crate::network;
use crate::selector::selects;

/// Kinds of object that a run may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ObjectKind {
    /// Asked for in `secrets`.
    Secret,
    /// Asked for in `data`.
    ConfigMap,
    /// Asked for in `volumes`. It is in the sandbox namespace, where an administrator put it.
    PersistentVolumeClaim,
}

impl ObjectKind {
    /// All of them, in the order in which runs are given them.
    pub const ALL: [Self; 3] = [Self::Secret, Self::ConfigMap, Self::PersistentVolumeClaim];

    /// The kind as Kubernetes spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Secret => "Secret",
            Self::ConfigMap => "ConfigMap",
            Self::PersistentVolumeClaim => "PersistentVolumeClaim",
        }
    }

    /// The resource, as rights name it.
    pub fn resource(self) -> &'static str {
        match self {
            Self::Secret => "secrets",
            Self::ConfigMap => "configmaps",
            Self::PersistentVolumeClaim => "persistentvolumeclaims",
        }
    }

    /// The field in which it is asked for, and granted.
    pub fn field(self) -> &'static str {
        match self {
            Self::Secret => "secrets",
            Self::ConfigMap => "data",
            Self::PersistentVolumeClaim => "volumes",
        }
    }

    /// The names of this kind that a run asks for.
    fn asked(self, asked: &Capabilities) -> &[String] {
        match self {
            Self::Secret => &asked.secrets,
            Self::ConfigMap => &asked.data,
            Self::PersistentVolumeClaim => &asked.volumes,
        }
    }

    /// What a policy says of this kind.
    pub(crate) fn of(self, rules: &CapabilityRules) -> Option<&[ObjectGrant]> {
        match self {
            Self::Secret => rules.secrets.as_deref(),
            Self::ConfigMap => rules.data.as_deref(),
            Self::PersistentVolumeClaim => rules.volumes.as_deref(),
        }
    }
}

/// An object of the namespace of a run, or of its sandbox namespace: the kind tells.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    /// Its kind.
    pub kind: ObjectKind,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Object {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.kind.as_str(), self.name)
    }
}

/// What was found of an object that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It can be given; these are its labels.
    Labels(BTreeMap<String, String>),
    /// It cannot be given, whatever the policies say.
    Unusable {
        /// Why.
        reason: Reason,
        /// What decided that.
        rule: String,
        /// For the author of the script.
        message: String,
    },
}

impl Found {
    /// Somebody whose right counts may not read it: whose, and a sentence that says so.
    pub fn forbidden(whose: &str, message: String) -> Self {
        Self::Unusable { reason: Reason::CapabilityForbidden, rule: format!("access of {whose}"), message }
    }

    /// The requester may not read it. Whether there is one is not told.
    pub fn forbidden_to_the_requester(object: &Object) -> Self {
        Self::forbidden("the requester", format!("the requester may not read the {object}"))
    }

    /// It is not there, cannot be read, or has no room.
    pub fn unusable(message: String) -> Self {
        Self::Unusable { reason: Reason::CapabilityUnusable, rule: "built-in: what can be given".into(), message }
    }

    /// There is none.
    pub fn absent(object: &Object) -> Self {
        Self::unusable(format!("there is no {object}"))
    }
}

/// What was found, by object. Of one that is not in it nothing is known: a policy grants it by its name alone.
pub type Objects = BTreeMap<Object, Found>;

/// What was found of keys of Secrets that the gateway adds to requests. Of one that is not in it nothing is known.
pub type AtGateway = BTreeMap<SecretKey, Found>;

/// What a run is given.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct CapabilityGrant {
    /// Where it may connect to, each destination once.
    pub network: Vec<network::Granted>,
    /// Where it may not, whatever is granted. Empty where nothing is.
    pub denied_hosts: network::Denied,
    /// Secrets, ConfigMaps and PersistentVolumeClaims, in the order of their kinds and names, each once.
    pub objects: Vec<Object>,
    /// It may run code that is made at run time.
    pub dynamic_code: bool,
    /// It may start other programs.
    pub subprocess: bool,
}

impl CapabilityGrant {
    /// Where it may connect to, in one spelling, sorted.
    pub fn destinations(&self) -> Vec<String> {
        let mut all: Vec<String> = self.network.iter().map(|granted| granted.to.to_string()).collect();
        all.sort();
        all
    }

    /// Names of the objects of a kind.
    pub fn names(&self, kind: ObjectKind) -> impl Iterator<Item = &str> {
        self.objects.iter().filter(move |object| object.kind == kind).map(|object| object.name.as_str())
    }
}

/// The objects that a run asks for, each once.
pub fn asked_objects(asked: &Capabilities) -> Vec<Object> {
    let of = |kind: ObjectKind| kind.asked(asked).iter().map(move |name| Object { kind, name: name.clone() });
    let mut all: Vec<Object> = ObjectKind::ALL.into_iter().flat_map(of).collect();
    all.sort();
    all.dedup();
    all
}

/// Whether the policies would grant an object if only its labels were right. What they would not is not even looked at.
pub fn might_be_granted<P: Borrow<Policy>>(policies: &[P], object: &Object) -> bool {
    let might_grant = |policy: &P| {
        let grants = said(policy.borrow(), object.kind)?;
        Some(grants.iter().any(|grant| grant.selector.is_some() || grant.name.as_deref() == Some(object.name.as_str())))
    };
    let mut said = policies.iter().filter_map(might_grant).peekable();
    is_a_name(&object.name) && said.peek().is_some() && said.all(|might| might)
}

/// Whether the policies grant an object with these labels.
pub fn is_granted(policies: &[&Policy], object: &Object, labels: &BTreeMap<String, String>) -> bool {
    let mut said = policies.iter().filter_map(|policy| said(policy, object.kind)).peekable();
    is_a_name(&object.name) && said.peek().is_some() && said.all(|grants| grant_of(grants, object, Some(labels)).is_some())
}

/// The policies that grant an object with these labels, and not merely leave it to the others: their authors answer for it.
pub fn granting<'a, P: Borrow<Policy>>(policies: &'a [P], object: &Object, labels: &BTreeMap<String, String>) -> Vec<&'a Policy> {
    let policies = policies.iter().map(Borrow::borrow);
    policies.filter(|policy| said(policy, object.kind).is_some_and(|grants| grant_of(grants, object, Some(labels)).is_some())).collect()
}

/// What a policy says of a kind of object; `None` if it leaves it to the others.
fn said(policy: &Policy, kind: ObjectKind) -> Option<&[ObjectGrant]> {
    let own = policy.rules.capabilities.as_ref().and_then(|rules| kind.of(rules));
    own.or((policy.effect == Effect::Allow).then_some(&[]))
}

/// The grant among these that is meant, by what decisions call it.
fn grant_of(grants: &[ObjectGrant], object: &Object, labels: Option<&BTreeMap<String, String>>) -> Option<String> {
    let is_selected = |grant: &ObjectGrant| {
        let selector = grant.selector.as_ref().zip(labels);
        selector.is_some_and(|(selector, labels)| selects(selector, labels) == Ok(true))
    };
    let by_name = grants.iter().find(|grant| grant.name.as_deref() == Some(object.name.as_str())).map(|_| object.name.clone());
    by_name.or_else(|| grants.iter().position(is_selected).map(|index| index.to_string()))
}

/// A name that can be part of a path: the schema demands it, and here the answer does not rely on that.
pub(crate) fn is_a_name(name: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    let is_end = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let bytes = name.as_bytes();
    bytes.len() <= 253 && is_end(bytes.first()) && is_end(bytes.last()) && bytes.iter().all(|byte| is_inner(*byte))
}

/// An answer: the rule that grants, or what refuses.
pub(crate) type Answer = Result<String, No>;

/// A rule that refuses, with reason and message.
pub(crate) type No = (String, Reason, String);

/// By this rule it is not granted.
pub(crate) fn refusal(permission: &str, rule: String) -> No {
    let message = format!("the capability {permission} is not granted ({rule})");
    (rule, Reason::CapabilityRefused, message)
}

fn refused(permission: &str, rule: String) -> Answer {
    Err(refusal(permission, rule))
}

/// Every policy that says something must grant it, and then it must be there to be given.
pub(crate) fn object(policies: &[&Policy], object: &Object, objects: &Objects) -> Answer {
    let field = object.kind.field();
    let permission = format!("{field}:{}", object.name);
    let refused = |rule| refused(&permission, rule);
    if !is_a_name(&object.name) {
        return refused("built-in: names of objects".into());
    }
    let (labels, unusable) = match objects.get(object) {
        Some(Found::Labels(labels)) => (Some(labels), None),
        Some(Found::Unusable { reason, rule, message }) => (None, Some((rule.clone(), reason.clone(), message.clone()))),
        None => (None, None),
    };
    let mut rule = None;
    for policy in policies {
        let Some(grants) = said(policy, object.kind) else { continue };
        match grant_of(grants, object, labels) {
            Some(grant) => rule = Some(named(policy, &format!("capabilities.{field}[{grant}]"))),
            // With the labels it might have been another answer, which nobody needs: it cannot be given.
            None if unusable.is_some() && grants.iter().any(|grant| grant.selector.is_some()) => {}
            None => return refused(named(policy, &format!("capabilities.{field}"))),
        }
    }
    match (unusable, rule) {
        (Some(why), _) => Err(why),
        (None, Some(rule)) => Ok(rule),
        (None, None) => refused(format!("built-in: {field}")),
    }
}

/// A capability that is granted or not, by its name, with what a policy says of it.
pub(crate) type Word = (&'static str, fn(&CapabilityRules) -> Option<bool>);

pub(crate) const DYNAMIC_CODE: Word = ("dynamicCode", |rules| rules.dynamic_code);
pub(crate) const SUBPROCESS: Word = ("subprocess", |rules| rules.subprocess);

/// Every policy that says something must say yes.
pub(crate) fn word(policies: &[&Policy], (word, of): Word) -> Answer {
    let said = |policy: &Policy| {
        let own = policy.rules.capabilities.as_ref().and_then(of);
        own.or((policy.effect == Effect::Allow).then_some(false))
    };
    let refused = |rule| refused(word, rule);
    let mut rule = None;
    for policy in policies {
        match said(policy) {
            Some(true) => rule = Some(named(policy, &format!("capabilities.{word}"))),
            Some(false) => return refused(named(policy, &format!("capabilities.{word}"))),
            None => {}
        }
    }
    rule.map_or_else(|| refused(format!("built-in: {word}")), Ok)
}

/// Selectors that are not understood.
pub(crate) fn problems(rules: &PolicyRules, found: &mut Vec<Problem>) {
    let Some(rules) = &rules.capabilities else { return };
    for kind in ObjectKind::ALL {
        for (index, grant) in kind.of(rules).unwrap_or_default().iter().enumerate() {
            let why = match (&grant.name, &grant.selector) {
                (Some(_), None) => None,
                (None, Some(selector)) => selects(selector, &BTreeMap::new()).err(),
                _ => Some("exactly one of name and selector must be set".to_owned()),
            };
            if let Some(message) = why {
                found.push(Problem { field: format!("capabilities.{}[{index}]", kind.field()), message });
            }
        }
    }
}

#[cfg(test)]
mod tests;
