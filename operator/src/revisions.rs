//! What policies said: a ControllerRevision for each spec that was seen, with who wrote it and when it was seen.
//!
//! Those of a SandboxPolicy lie beside it, where the stock roles let tenants read and not write them; those of a ClusterSandboxPolicy in the
//! namespace of the operator. Their names follow from the policy, so that the operator needs no right to read any.

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use paddock_policy::hash_of;
use serde_json::json;

use crate::error::{Error, code, response, within};
use crate::names::{AUTHOR, AUTHOR_UID, MANAGED_BY, MANAGER, POLICY_HASH, POLICY_KIND, POLICY_NAME, POLICY_UID};
use crate::policies::PolicyObject;
use crate::script_run::text::cut;

/// Longest part of a policy's name in that of a revision: with the rest it is no longer than a name may be.
const LONGEST_NAME: usize = 200;

/// The name of the revision of a policy at a generation. Controllers of Kubernetes name theirs `OWNER-HASH`, where no hash has a dot: a tenant who
/// makes StatefulSets cannot take the name in advance.
pub(crate) fn name(policy: &str, uid: &str, generation: i64) -> String {
    let short: String = uid.chars().take(8).collect();
    format!("{}-{short}.{generation}", cut(policy, LONGEST_NAME).trim_end_matches(['-', '.']))
}

/// The generations whose revisions are too old, now that `generation` is seen and `before` was the last one seen.
fn outdated(before: Option<i64>, generation: i64, limit: i64) -> std::ops::RangeInclusive<i64> {
    let last = generation - limit;
    let first = before.map_or(last, |before| before - limit + 1).max(1);
    // More than that were never kept at once.
    first.max(last - 2 * limit)..=last
}

fn revision<P: PolicyObject>(policy: &P, namespace: &str) -> ControllerRevision {
    let (uid, generation) = (policy.uid().unwrap_or_default(), policy.meta().generation.unwrap_or(0));
    let spec = policy.spec();
    let stamps = [AUTHOR, AUTHOR_UID].into_iter().filter_map(|key| Some((key.to_owned(), policy.annotations().get(key)?.clone())));
    let facts = [(POLICY_NAME.to_owned(), policy.name_any()), (POLICY_HASH.to_owned(), hash_of(&spec))];
    let owner = OwnerReference {
        api_version: P::api_version(&()).into_owned(),
        kind: P::kind(&()).into_owned(),
        name: policy.name_any(),
        uid: uid.clone(),
        ..OwnerReference::default()
    };
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(name(&policy.name_any(), &uid, generation)),
            namespace: Some(namespace.to_owned()),
            labels: Some(
                [(MANAGED_BY, MANAGER.to_owned()), (POLICY_KIND, P::KIND.as_str().to_owned()), (POLICY_UID, uid)]
                    .map(|(key, value)| (key.to_owned(), value))
                    .into(),
            ),
            annotations: Some(facts.into_iter().chain(stamps).collect()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(json!({ "spec": spec }))),
        revision: generation,
    }
}

/// Stores what the policy says now, unless that was done, and removes what is too old. `before` is the generation that was seen last.
pub(crate) async fn record<P: PolicyObject>(
    policy: &P,
    before: Option<i64>,
    (client, namespace, limit): (&Client, &str, i64),
) -> Result<(), Error> {
    let namespace = policy.namespace().unwrap_or_else(|| namespace.to_owned());
    let api: Api<ControllerRevision> = Api::namespaced(client.clone(), &namespace);
    let wanted = revision(policy, &namespace);
    match within("the revision of a policy", api.create(&PostParams::default(), &wanted)).await? {
        Ok(_) => {}
        Err(error) if code(&error) == Some(409) => {}
        // The policy is on its way out, or its namespace.
        Err(error) if matches!(code(&error), Some(404 | 403)) && policy.meta().deletion_timestamp.is_some() => {}
        Err(error) if is_unfit(&error) => {
            tracing::warn!(policy = policy.name_any(), error = %error, "this generation of the policy is not kept: the API server does not take it");
        }
        Err(error) => return Err(Error::write("the revision of a policy")(error)),
    }
    for generation in outdated(before, wanted.revision, limit) {
        let name = name(&policy.name_any(), &policy.uid().unwrap_or_default(), generation);
        match within("the revision of a policy", api.delete(&name, &DeleteParams::default())).await? {
            Err(error) if code(&error) != Some(404) => return Err(Error::write("the revision of a policy")(error)),
            _ => {}
        }
    }
    Ok(())
}

/// Too large beside what a revision adds to it, or the namespace is being removed or has a quota for revisions. No patience mends these.
fn is_unfit(error: &kube::Error) -> bool {
    const HOPELESS: [&str; 3] = ["too large", "because it is being terminated", "exceeded quota"];
    response(error).is_some_and(|answer| matches!(answer.code, 413 | 422) || HOPELESS.iter().any(|part| answer.message.contains(part)))
}

#[cfg(test)]
mod tests {
    use paddock_crds::{Limits, PolicyRules, SandboxPolicy, SandboxPolicySpec};

    use super::*;

    #[test]
    fn a_revision_holds_the_spec_who_wrote_it_and_goes_with_its_policy() {
        let limits = Limits { max_concurrent: Some(3), ..Limits::default() };
        let mut policy = SandboxPolicy::new("limited", SandboxPolicySpec { rules: PolicyRules { limits, ..PolicyRules::default() } });
        policy.metadata.uid = Some("0123456789".into());
        policy.metadata.generation = Some(7);
        policy.metadata.annotations = Some([(AUTHOR.to_owned(), "anna".to_owned()), ("secret".to_owned(), "x".to_owned())].into());
        let made = revision(&policy, "team");
        assert_eq!((made.name_any().as_str(), made.revision), ("limited-01234567.7", 7));
        let annotations = made.annotations();
        assert_eq!((annotations[AUTHOR].as_str(), annotations.len()), ("anna", 3), "{annotations:?}");
        assert_eq!(made.owner_references()[0].uid, "0123456789");
        assert_eq!(made.data.unwrap().0["spec"]["limits"]["maxConcurrent"], 3);
    }

    #[test]
    fn names_are_no_longer_than_names_may_be() {
        assert!(name(&"a".repeat(253), "01234567-89", i64::MAX).len() <= 253);
        assert_eq!(name(&("a".repeat(199) + "-b"), "01234567-89", 1), "a".repeat(199) + "-01234567.1");
    }

    #[test]
    fn what_is_too_old_is_removed_also_after_a_gap() {
        let of = |before, generation| outdated(before, generation, 10).collect::<Vec<_>>();
        assert!(of(None, 1).is_empty() && of(Some(9), 10).is_empty());
        assert!(of(Some(30), 30).is_empty(), "what was seen before was tidied up then");
        assert_eq!(of(Some(10), 11), [1]);
        assert_eq!(of(Some(20), 23), [11, 12, 13]);
        assert_eq!(of(None, 23), [13]);
        assert_eq!(of(Some(5), 1000).len(), 21, "what was never seen was never kept");
    }
}
