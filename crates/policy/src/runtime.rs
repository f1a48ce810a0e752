//! What a runtime is. Every policy that speaks of runtimes must offer it, and one that allows has to; those that say what it is must agree.

use std::collections::BTreeSet;

use paddock_crds::{Effect, Language, PolicyKind, PreStart, Reason, Runtime};

use crate::capabilities::No;
use crate::decide::{Policy, RuntimeGrant, named};

/// Something that policies say of a runtime: its name, and its value.
type Aspect<T> = (&'static str, fn(&Runtime) -> Option<&T>);

const IMAGE: Aspect<[String]> = ("image", |runtime| runtime.image.as_ref().map(std::slice::from_ref));
const COMMAND: Aspect<[String]> = ("command", |runtime| runtime.command.as_deref());
const EXTENSION: Aspect<[String]> = ("extension", |runtime| runtime.extension.as_ref().map(std::slice::from_ref));

/// Two policies that do not mean the same runtime by its name.
pub(crate) struct Disagreement<'a> {
    pub(crate) between: [&'a Policy; 2],
    pub(crate) message: String,
}

/// What a policy offers; `None` if it leaves that to the others.
pub(crate) fn offered(policy: &Policy) -> Option<&[Runtime]> {
    policy.rules.runtimes.as_deref().or((policy.effect == Effect::Allow).then_some(&[]))
}

/// Names of those that every policy offers that names any.
pub(crate) fn in_common<'a>(policies: &[&'a Policy]) -> BTreeSet<&'a str> {
    let named = |policy: &&'a Policy| -> Option<BTreeSet<&'a str>> { Some(offered(policy)?.iter().map(|one| one.name.as_str()).collect()) };
    policies.iter().filter_map(named).reduce(|common, names| &common & &names).unwrap_or_default()
}

/// The runtime, with the rule that says what it is.
pub(crate) fn runtime(policies: &[&Policy], name: &str) -> Result<(RuntimeGrant, String), No> {
    for policy in policies {
        if offered(policy).is_some_and(|offered| offered.iter().all(|runtime| runtime.name != name)) {
            let who = policy.full_name();
            return Err((named(policy, "runtimes"), Reason::RuntimeNotAllowed, format!("{who} does not offer the runtime {name}")));
        }
    }
    let field = format!("runtimes[{name}]");
    let disagree = |disagreement: Disagreement<'_>| {
        let [_, other] = disagreement.between;
        (named(other, &field), Reason::PolicyInvalid, disagreement.message)
    };
    let told_text = |aspect| told(policies, name, aspect).map_err(disagree);
    let (image, command, extension) = (told_text(IMAGE)?, told_text(COMMAND)?, told_text(EXTENSION)?);
    let language = language(policies, name).map_err(disagree)?;
    match (image, command) {
        (Some((policy, [image])), Some((_, command))) if !command.is_empty() => {
            let extension = extension.and_then(|(_, extension)| extension.first()).cloned();
            let pre_start = pre_start(policies, name);
            Ok((RuntimeGrant { image: image.clone(), command: command.to_vec(), extension, language, pre_start }, named(policy, &field)))
        }
        _ => Err(("runtimes".into(), Reason::PolicyInvalid, format!("no policy says which image and command the runtime {name} is"))),
    }
}

/// What all say that say anything, if a ClusterSandboxPolicy is among them: what runs before there is a run, no tenant decides alone.
fn pre_start(policies: &[&Policy], name: &str) -> Option<PreStart> {
    let told = |policy: &&Policy| {
        let runtime = policy.rules.runtimes.as_ref()?.iter().find(|runtime| runtime.name == name)?;
        Some((policy.taken.kind, runtime.pre_start?))
    };
    let told: Vec<_> = policies.iter().filter_map(told).collect();
    let (_, first) = *told.iter().find(|(kind, _)| *kind == PolicyKind::ClusterSandboxPolicy)?;
    (first != PreStart::Never && told.iter().all(|(_, other)| *other == first)).then_some(first)
}

/// What scripts of a runtime are written in. Policies that allow must all say the same, or nothing, and the others nothing else: by a language that one
/// of them adds, or keeps silent about, a script could come past what the others demand of its text.
fn language<'a>(policies: &[&'a Policy], name: &str) -> Result<Option<Language>, Disagreement<'a>> {
    let mut known: Option<(&'a Policy, Option<Language>)> = None;
    for policy in policies.iter().copied() {
        let runtime = policy.rules.runtimes.iter().flatten().find(|runtime| runtime.name == name);
        let Some(own) = runtime.map(|runtime| runtime.language).filter(|own| own.is_some() || policy.effect == Effect::Allow) else {
            continue;
        };
        if let Some((first, other)) = known
            && other != own
        {
            let message = format!("{} and {} do not agree on the language of the runtime {name}", first.full_name(), policy.full_name());
            return Err(Disagreement { between: [first, policy], message });
        }
        known = Some((policy, own));
    }
    Ok(known.and_then(|(_, language)| language))
}

/// Every way in which the policies do not agree on a runtime.
pub(crate) fn disagreements<'a>(policies: &[&'a Policy], name: &str) -> Vec<Disagreement<'a>> {
    let of_text = [IMAGE, COMMAND, EXTENSION].into_iter().filter_map(|aspect| told(policies, name, aspect).err());
    of_text.chain(language(policies, name).err()).collect()
}

/// The policy that says something of a runtime, and what it says.
type Told<'a, T> = (&'a Policy, &'a T);

/// What the policies say, of which the last is told: the others say the same.
fn told<'a, T: PartialEq + ?Sized>(
    policies: &[&'a Policy],
    name: &str,
    (aspect, of): Aspect<T>,
) -> Result<Option<Told<'a, T>>, Disagreement<'a>> {
    let mut known: Option<Told<'a, T>> = None;
    for policy in policies.iter().copied() {
        let runtime = policy.rules.runtimes.iter().flatten().find(|runtime| runtime.name == name);
        let Some(own) = runtime.and_then(of) else { continue };
        if let Some((first, other)) = known
            && other != own
        {
            let message = format!("{} and {} do not agree on the {aspect} of the runtime {name}", first.full_name(), policy.full_name());
            return Err(Disagreement { between: [first, policy], message });
        }
        known = Some((policy, own));
    }
    Ok(known)
}
