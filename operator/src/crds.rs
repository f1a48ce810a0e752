//! `paddock-operator apply-crds`: what the chart runs before an installation and an upgrade, since Helm never changes a CRD.
//!
//! A CRD of a newer version is left as it is. An older schema would prune fields that objects have by now, and the newer one serves the
//! older operator as well.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, Client};
use paddock_crds::generate::{CRD_VERSION, crds};
use semver::Version;

use crate::errand;

/// The argument that makes this program apply the CRDs.
pub(crate) const ARGUMENT: &str = "apply-crds";
const FIELD_MANAGER: &str = "paddock-crds";
/// How long the API server may take to serve what was applied.
const ESTABLISHED_WITHIN: Duration = Duration::from_secs(30);

/// How long an API server may take until its mutating policies know the fields of a CRD that has changed: it publishes them within a second, and looks
/// for what was published every five (`typeconverter.go` of `k8s.io/apiserver`, the same in each of several API servers). Before, it denies every
/// write of an object that has a new field, the policies of this chart first.
const FIELDS_KNOWN_WITHIN: Duration = Duration::from_secs(10);

/// What becomes of a CRD of the cluster.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Apply,
    /// It holds the schema of this newer version.
    Leave(Version),
}

/// `stored` is what the annotation of the stored CRD says. Without it, it is of a version before there was one.
fn change(stored: Option<&str>, own: &Version) -> Result<Change> {
    let Some(stored) = stored else { return Ok(Change::Apply) };
    let stored = Version::parse(stored).with_context(|| format!("the annotation {CRD_VERSION} is no version: {stored:?}"))?;
    Ok(if stored > *own { Change::Leave(stored) } else { Change::Apply })
}

pub(crate) fn main() -> ExitCode {
    errand::run(ARGUMENT, apply)
}

async fn apply(client: Client) -> Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client);
    let own = Version::parse(env!("CARGO_PKG_VERSION")).context("the version of this program")?;
    let mut has_changed = false;
    for (plural, crd) in crds() {
        let name = format!("{plural}.paddock.dev");
        let stored = api.get_opt(&name).await.with_context(|| format!("cannot read the CRD {name}"))?;
        // One that is not there is created: a kind that is new in this version, or one that was not installed along with the chart.
        let generation = stored.as_ref().and_then(|stored| stored.metadata.generation);
        let annotations = stored.and_then(|stored| stored.metadata.annotations).unwrap_or_default();
        match change(annotations.get(CRD_VERSION).map(String::as_str), &own)? {
            Change::Leave(newer) => println!("{name}: left as it is: it is of version {newer}, and this is {own}"),
            Change::Apply => {
                // Helm and kubectl own the fields that they wrote at the first installation.
                let parameters = PatchParams::apply(FIELD_MANAGER).force();
                let applied = api.patch(&name, &parameters, &Patch::Apply(&crd)).await;
                let applied = applied.with_context(|| format!("cannot apply the CRD {name}"))?;
                // An earlier try of this Job may have changed it.
                has_changed |= generation.is_some() && (generation != applied.metadata.generation || is_fresh(&applied, Timestamp::now()));
                let established = await_condition(api.clone(), &name, conditions::is_crd_established());
                let seen = tokio::time::timeout(ESTABLISHED_WITHIN, established).await;
                ensure!(seen.is_ok_and(|seen| seen.is_ok()), "the API server does not serve the CRD {name}");
                println!("{name}: version {own}");
            }
        }
    }
    if has_changed {
        tokio::time::sleep(FIELDS_KNOWN_WITHIN).await;
    }
    Ok(())
}

/// Whether this program has changed a CRD so shortly before that not all may know it.
fn is_fresh(crd: &CustomResourceDefinition, now: Timestamp) -> bool {
    let entries = crd.metadata.managed_fields.iter().flatten().filter(|entry| entry.manager.as_deref() == Some(FIELD_MANAGER));
    let changed = entries.filter_map(|entry| entry.time.as_ref()).map(|time| time.0).max();
    changed.is_some_and(|changed| now.duration_since(changed) < FIELDS_KNOWN_WITHIN.try_into().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(None, true)]
    #[case(Some("0.1.0"), true)]
    #[case(Some("0.2.0"), true)]
    #[case(Some("0.3.0-rc.1"), false)]
    #[case(Some("1.0.0"), false)]
    fn a_crd_of_a_newer_version_is_left_alone(#[case] stored: Option<&str>, #[case] applied: bool) {
        let change = change(stored, &Version::new(0, 2, 0)).expect("a version");
        assert_eq!(change == Change::Apply, applied);
    }

    #[test]
    fn what_was_changed_a_moment_ago_is_not_known_to_all() {
        let of = |manager: &str, second: &str| -> CustomResourceDefinition {
            serde_json::from_value(serde_json::json!({
                "metadata": { "managedFields": [{ "manager": manager, "time": format!("2026-01-01T00:00:{second}Z") }] },
                "spec": { "group": "", "names": { "kind": "", "plural": "" }, "scope": "", "versions": [] },
            }))
            .expect("a CRD")
        };
        let now = "2026-01-01T00:00:12Z".parse().expect("a time");
        assert!(is_fresh(&of(FIELD_MANAGER, "05"), now) && !is_fresh(&of(FIELD_MANAGER, "01"), now) && !is_fresh(&of("helm", "05"), now));
    }

    #[test]
    fn what_is_no_version_is_an_error() {
        change(Some("newest"), &Version::new(0, 2, 0)).expect_err("no version");
    }
}
