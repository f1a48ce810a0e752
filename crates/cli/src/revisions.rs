//! What a policy said: list it, compare it, and have it said again.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DynamicObject, ListParams};
use kube::core::ApiResource;
use kube::{Api, ResourceExt as _};
use paddock_crds::{ClusterSandboxPolicy, PolicyKind, PolicyRef, SandboxPolicy};
use paddock_policy::hash_of;
use serde_json::Value;
use similar::TextDiff;

use crate::arguments::Kept;
use crate::cluster::{Cluster, explained, posting};
use crate::exit::Exit;
use crate::manifest::policy_ref;
use crate::table::{Cell, plain, table};
use crate::terminal::{Tone, has_colours, printable};

/// A policy, as an object of whatever fields: what is written back must be what was kept.
struct Policy {
    named: PolicyRef,
    api: Api<DynamicObject>,
    now: DynamicObject,
    /// Oldest first.
    kept: Vec<ControllerRevision>,
}

impl Policy {
    async fn read(cluster: &Cluster, kept: &Kept) -> Result<Self> {
        let named = policy_ref(&kept.policy)?;
        let (api, namespace): (Api<DynamicObject>, &str) = match named.kind {
            PolicyKind::SandboxPolicy => {
                let kind = ApiResource::erase::<SandboxPolicy>(&());
                (Api::namespaced_with(cluster.client.clone(), &cluster.namespace, &kind), &cluster.namespace)
            }
            PolicyKind::ClusterSandboxPolicy => {
                (Api::all_with(cluster.client.clone(), &ApiResource::erase::<ClusterSandboxPolicy>(&())), &kept.paddock_namespace)
            }
        };
        let now = api.get(&named.name).await.map_err(|error| explained(error, "read the policy"))?;
        let selector = format!("paddock.dev/policy-uid={}", now.uid().unwrap_or_default());
        let revisions: Api<ControllerRevision> = Api::namespaced(cluster.client.clone(), namespace);
        let list = revisions.list(&ListParams::default().labels(&selector)).await;
        let mut kept = list.map_err(|error| explained(error, "list the revisions of the policy"))?.items;
        kept.retain(|revision| is_of(revision, &now));
        kept.sort_by_key(|revision| revision.revision);
        Ok(Self { named, api, now, kept })
    }

    /// The generation that holds now.
    fn generation(&self) -> i64 {
        self.now.metadata.generation.unwrap_or(0)
    }

    /// A revision by its number, or the newest one before the one that holds.
    fn revision(&self, number: Option<i64>) -> Result<&ControllerRevision> {
        let Some(number) = number else {
            let found = before(&self.kept, self.generation());
            return found.with_context(|| format!("no revision of {} before the one that holds is kept", self.named.name));
        };
        let found = self.kept.iter().find(|revision| revision.revision == number);
        found.with_context(|| format!("revision {number} of {} is not kept", self.named.name))
    }
}

/// `kubectl paddock policy history`.
pub(crate) async fn history(cluster: &Cluster, kept: &Kept) -> Result<Exit> {
    let policy = Policy::read(cluster, kept).await?;
    let rows = rows(&policy.kept, policy.generation());
    print!("{}", table(&["REVISION", "SEEN", "AUTHOR", "HASH"], &rows, has_colours()));
    Ok(Exit::Done)
}

/// With what was never seen, since it was written while no operator ran, or was written over before one saw it.
fn rows(kept: &[ControllerRevision], now: i64) -> Vec<Vec<Cell>> {
    let mut rows = Vec::new();
    let mut expected = kept.first().map_or(now, |first| first.revision);
    let gap = |from: i64, to: i64| {
        let range = if from == to { from.to_string() } else { format!("{from}-{to}") };
        vec![plain(range), ("not seen".to_owned(), Tone::Bad), plain(""), plain("")]
    };
    for revision in kept {
        if revision.revision > expected {
            rows.push(gap(expected, revision.revision - 1));
        }
        expected = revision.revision + 1;
        let annotation = |key: &str| revision.annotations().get(key).map(|value| printable(value)).unwrap_or_default();
        let seen = revision.creation_timestamp().map(|time| time.0.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()).unwrap_or_default();
        let number = if revision.revision == now { format!("{now} (holds)") } else { revision.revision.to_string() };
        let hash: String = annotation("paddock.dev/policy-hash").chars().take(12).collect();
        rows.push(vec![plain(number), plain(seen), plain(annotation("paddock.dev/author")), plain(hash)]);
    }
    if expected <= now {
        rows.push(gap(expected, now));
    }
    rows
}

/// Whether the operator made it of this policy: a label alone may be anybody's.
fn is_of(revision: &ControllerRevision, policy: &DynamicObject) -> bool {
    let is_owner =
        |owner: &OwnerReference| Some(&owner.uid) == policy.metadata.uid.as_ref() && owner.api_version.starts_with("paddock.dev/");
    let hash = revision.data.as_ref().map(|data| hash_of(&data.0["spec"]));
    matches!(revision.owner_references(), [owner] if is_owner(owner))
        && revision.annotations().get("paddock.dev/policy-hash") == hash.as_ref()
}

/// The newest one that is older than `generation`. Oldest first.
fn before(kept: &[ControllerRevision], generation: i64) -> Option<&ControllerRevision> {
    kept.iter().rev().find(|revision| revision.revision < generation)
}

fn spec(revision: &ControllerRevision) -> Result<&Value> {
    let data = revision.data.as_ref().map(|data| &data.0["spec"]);
    data.filter(|spec| spec.is_object()).with_context(|| format!("revision {} holds no policy", revision.revision))
}

/// `kubectl paddock policy diff`.
pub(crate) async fn diff(cluster: &Cluster, kept: &Kept, from: Option<i64>, to: Option<i64>) -> Result<Exit> {
    let policy = Policy::read(cluster, kept).await?;
    let older = policy.revision(from)?;
    let titled = |number: i64| format!("{} revision {number}", policy.named.name);
    // What holds is at hand, whether its revision was kept or not.
    let (number, newer) = match to {
        Some(number) => (number, spec(policy.revision(Some(number))?)?),
        None => (policy.generation(), &policy.now.data["spec"]),
    };
    print!("{}", compared(&[titled(older.revision), titled(number)], spec(older)?, newer)?);
    Ok(Exit::Done)
}

/// As `diff -u` has it; nothing if they say the same.
fn compared(titles: &[String; 2], older: &Value, newer: &Value) -> Result<String> {
    let [older, newer] = [serde_saphyr::to_string(older)?, serde_saphyr::to_string(newer)?];
    let diff = TextDiff::from_lines(&older, &newer);
    let text = diff.unified_diff().context_radius(3).header(&titles[0], &titles[1]).to_string();
    Ok(text.lines().map(|line| printable(line) + "\n").collect())
}

/// `kubectl paddock policy rollback`: writes the spec of a revision, as whoever calls.
pub(crate) async fn rollback(cluster: &Cluster, kept: &Kept, to: Option<i64>) -> Result<Exit> {
    let mut policy = Policy::read(cluster, kept).await?;
    let (spec, number) = {
        let revision = policy.revision(to)?;
        (spec(revision)?.clone(), revision.revision)
    };
    ensure!(policy.now.data["spec"] != spec, "{} says already what it said in revision {number}", policy.named.name);
    policy.now.data["spec"] = spec;
    // Fenced by the version that was read: what somebody else has written meanwhile is not written over.
    let written = policy.api.replace(&policy.named.name, &posting(), &policy.now).await;
    let written = written.map_err(|error| explained(error, "write the policy"))?;
    let generation = written.metadata.generation.unwrap_or(0);
    println!("{}/{} says what it said in revision {number}, as revision {generation}", policy.named.kind.as_str(), policy.named.name);
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kept(numbers: &[i64]) -> Vec<ControllerRevision> {
        numbers.iter().map(|number| ControllerRevision { revision: *number, ..ControllerRevision::default() }).collect()
    }

    #[test]
    fn what_was_never_seen_is_told() {
        let told =
            |numbers: &[i64], now| rows(&kept(numbers), now).into_iter().map(|row| row[0].0.clone() + " " + &row[1].0).collect::<Vec<_>>();
        assert_eq!(told(&[1, 2], 2), ["1 ", "2 (holds) "]);
        assert_eq!(told(&[3, 6, 8], 10), ["3 ", "4-5 not seen", "6 ", "7 not seen", "8 ", "9-10 not seen"]);
        assert_eq!(told(&[], 4), ["4 not seen"]);
    }

    #[test]
    fn only_what_the_operator_made_of_the_policy_is_its_history() {
        let policy: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "paddock.dev/v1alpha1", "kind": "SandboxPolicy", "metadata": { "name": "limited", "uid": "u" },
        }))
        .expect("a policy");
        let spec = json!({ "limits": { "maxConcurrent": 2 } });
        let revision = |owners: Value, hash: String| -> ControllerRevision {
            let metadata = json!({ "annotations": { "paddock.dev/policy-hash": hash }, "ownerReferences": owners });
            serde_json::from_value(json!({ "metadata": metadata, "revision": 1, "data": { "spec": spec } })).expect("a revision")
        };
        let owner = |api: &str, uid: &str| json!({ "apiVersion": api, "kind": "SandboxPolicy", "name": "limited", "uid": uid });
        let own = owner("paddock.dev/v1alpha1", "u");
        assert!(is_of(&revision(json!([own]), hash_of(&spec)), &policy));
        for owners in [json!([]), json!([owner("apps/v1", "u")]), json!([owner("paddock.dev/v1alpha1", "v")]), json!([own, own])] {
            assert!(!is_of(&revision(owners.clone(), hash_of(&spec)), &policy), "{owners}");
        }
        assert!(!is_of(&revision(json!([own]), "another".into()), &policy));
    }

    #[test]
    fn what_held_before_is_the_newest_that_was_seen() {
        let of = |numbers: &[i64], now| before(&kept(numbers), now).map(|revision| revision.revision);
        assert_eq!((of(&[1, 2, 3], 3), of(&[1, 2, 5], 6), of(&[3], 3), of(&[], 3)), (Some(2), Some(5), None, None));
    }

    #[test]
    fn two_revisions_are_compared_line_by_line() {
        let titles = ["one".to_owned(), "two".to_owned()];
        let text =
            compared(&titles, &json!({ "limits": { "maxConcurrent": 2 } }), &json!({ "limits": { "maxConcurrent": 3 } })).expect("a text");
        assert_eq!(text, "--- one\n+++ two\n@@ -1,2 +1,2 @@\n limits:\n-  maxConcurrent: 2\n+  maxConcurrent: 3\n");
        assert_eq!(compared(&titles, &json!({ "a": 1 }), &json!({ "a": 1 })).expect("a text"), "");
    }
}
