//! What policies demand of what the text of a script shows. Everything that they say must hold.

use std::borrow::Borrow;

use paddock_crds::{Decision, Finding, FindingKind, Language, Preflight, PreflightRules, PreflightVerdict, Reason, Strictness, Verdict};

use crate::capabilities::CapabilityGrant;
use crate::decide::{Policy, Refusal, named};

/// What is told of each demand.
type Judged = Result<(), (Reason, String)>;
/// A demand: its field, whether a policy makes it, and the answer.
type Demand = (&'static str, fn(&PreflightRules) -> bool, fn(&PreflightRules, &Text<'_>) -> Judged);

const DEMANDS: [Demand; 3] = [
    ("unclear", |rules| rules.unclear == Some(Strictness::Refuse), |_, text| clear(text)),
    ("undeclared", |rules| rules.undeclared == Some(Strictness::Refuse), |_, text| declared(text)),
    ("imports", |rules| rules.imports.is_some(), |rules, text| imports(rules.imports.as_deref().unwrap_or_default(), text)),
];

struct Text<'a> {
    shows: &'a Preflight,
    granted: &'a CapabilityGrant,
}

/// What the policies say of a script whose text shows this, in a run that is granted that: each demand with its answer, and the first that is not met.
pub fn judge_preflight(policies: &[impl Borrow<Policy>], shows: &Preflight, granted: &CapabilityGrant) -> (Vec<Decision>, Option<Refusal>) {
    let text = Text { shows, granted };
    let (mut decisions, mut refusal) = (Vec::new(), None);
    for policy in policies.iter().map(Borrow::borrow) {
        let Some(rules) = &policy.rules.preflight else { continue };
        for (field, is_made, answer) in DEMANDS {
            if !is_made(rules) {
                continue;
            }
            let rule = named(policy, &format!("preflight.{field}"));
            let answer = answer(rules, &text);
            let verdict = if answer.is_ok() { Verdict::Granted } else { Verdict::Refused };
            if let Err((reason, message)) = answer {
                refusal.get_or_insert(Refusal { reason, message: format!("{message} ({rule})") });
            }
            decisions.push(Decision { permission: format!("preflight:{field}"), verdict, rule });
        }
    }
    (decisions, refusal)
}

fn is_unclear(shows: &Preflight) -> bool {
    !matches!(shows.verdict, PreflightVerdict::Findings | PreflightVerdict::NoFindings)
}

fn why(shows: &Preflight) -> &str {
    shows.message.as_deref().unwrap_or("nothing is known of it")
}

fn clear(text: &Text<'_>) -> Judged {
    if is_unclear(text.shows) {
        return Err((Reason::ScriptUnclear, format!("the script cannot be examined: {}", why(text.shows))));
    }
    Ok(())
}

fn declared(Text { shows, granted }: &Text<'_>) -> Judged {
    let missing = [("dynamicCode", shows.dynamic_code && !granted.dynamic_code), ("subprocess", shows.subprocess && !granted.subprocess)];
    let missing: Vec<&str> = missing.into_iter().filter_map(|(word, is_missing)| is_missing.then_some(word)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let is_missing =
        |finding: &&Finding| missing.contains(&if finding.kind == FindingKind::Subprocess { "subprocess" } else { "dynamicCode" });
    let found: Vec<String> =
        shows.findings.iter().filter(is_missing).take(3).map(|finding| format!(" ({} in line {})", finding.what, finding.line)).collect();
    let message = format!("the script shows {}{}, which the run was not granted", missing.join(" and "), found.concat());
    Err((Reason::CapabilityUndeclared, message))
}

fn imports(allowed: &[String], Text { shows, .. }: &Text<'_>) -> Judged {
    let refuse = |message: String| Err((Reason::ImportNotAllowed, message));
    if is_unclear(shows) {
        return refuse(format!("it is not known what the script imports: {}", why(shows)));
    }
    if shows.dynamic_code {
        let what = shows.findings.iter().find(|finding| finding.kind != FindingKind::Subprocess);
        let what = what.map(|finding| format!(" ({} in line {})", finding.what, finding.line)).unwrap_or_default();
        return refuse(format!("it is not known what the script imports: it shows code or names that are made at run time{what}"));
    }
    let others: Vec<&str> = shows
        .imports
        .iter()
        .map(String::as_str)
        .filter(|module| !allowed.iter().any(|allowed| is_in(module, allowed, shows.language)))
        .collect();
    match others.as_slice() {
        [] => Ok(()),
        [one] => refuse(format!("the script imports {one}, which is not allowed")),
        [one, others @ ..] => refuse(format!("the script imports {one} and {} more that are not allowed", others.len())),
    }
}

/// Why a script is denied by what it imports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DeniedImport {
    Named(String),
    /// Nobody knows what it imports.
    Unknown,
}

/// Whether a script is denied by what it imports.
pub(crate) fn denied(denied: &[String], shows: &Preflight) -> Option<DeniedImport> {
    if denied.is_empty() {
        return None;
    }
    if is_unclear(shows) {
        return Some(DeniedImport::Unknown);
    }
    shows.imports.iter().find(|module| denied.iter().any(|denied| is_in(module, denied, shows.language))).cloned().map(DeniedImport::Named)
}

/// A module is the named one, or in it. That Node.js has a module of its own may be said or left out.
fn is_in(module: &str, named: &str, language: Option<Language>) -> bool {
    let ([module, named], separator) = match language {
        Some(Language::JavaScript | Language::TypeScript) => ([module, named].map(|name| name.strip_prefix("node:").unwrap_or(name)), '/'),
        Some(Language::Python) | None => ([module, named], '.'),
    };
    module.strip_prefix(named).is_some_and(|rest| rest.is_empty() || rest.starts_with(separator))
}

#[cfg(test)]
mod tests;
