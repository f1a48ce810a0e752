//! The ScriptApprovals of a namespace, as decisions use them.

use kube::ResourceExt as _;
use paddock_crds::{ApprovalDecision, Requester, ScriptApproval};
use paddock_policy::Approval;

use crate::context::Context;
use crate::names::{APPROVER, APPROVER_GROUPS, APPROVER_UID, stamped};

/// Those of a namespace. If one of them cannot be read, none count: it might be a denial of anything.
pub(crate) fn of_namespace(namespace: &str, context: &Context) -> Vec<Approval> {
    let all = context.caches.approvals.state();
    let own = all.iter().filter(|approval| approval.namespace().as_deref() == Some(namespace));
    let read: Option<Vec<&ScriptApproval>> = own.map(|approval| approval.0.as_ref().ok()).collect();
    read.unwrap_or_default().into_iter().filter_map(approval).collect()
}

/// An approval without a stamp is nobody's; a denial is one whoever made it.
fn approval(object: &ScriptApproval) -> Option<Approval> {
    let stamp = stamped(object.annotations(), [APPROVER, APPROVER_UID, APPROVER_GROUPS]);
    let nobody = || Requester { username: "somebody".into(), uid: None, groups: Vec::new() };
    let approver = match object.spec.decision {
        ApprovalDecision::Approve => stamp?,
        ApprovalDecision::Deny => stamp.unwrap_or_else(nobody),
    };
    Some(Approval {
        name: object.name_any(),
        uid: object.uid()?,
        digest: object.spec.digest.clone(),
        decision: object.spec.decision,
        run_uid: object.spec.run_uid.clone(),
        created: object.creation_timestamp()?.0,
        expires_at: object.spec.expires_at.as_ref().map(|time| time.0),
        // One that is on its way out counts for nothing, whoever holds it.
        revoked: object.spec.revoked == Some(true)
            || (object.metadata.deletion_timestamp.is_some() && object.spec.decision == ApprovalDecision::Approve),
        approver,
    })
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use paddock_crds::ScriptApprovalSpec;

    use super::*;

    fn object(decision: ApprovalDecision, stamps: &[(&str, &str)]) -> ScriptApproval {
        let spec = ScriptApprovalSpec { digest: "d".into(), decision, run_uid: None, expires_at: None, comment: None, revoked: None };
        let mut object = ScriptApproval::new("a", spec);
        object.metadata.uid = Some("u".into());
        object.metadata.creation_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        object.metadata.annotations = Some(stamps.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect());
        object
    }

    #[test]
    fn only_a_stamp_makes_an_approval_and_anything_a_denial() {
        let stamps = [(APPROVER, "anna"), (APPROVER_UID, ""), (APPROVER_GROUPS, "ops,a%2Cb")];
        let whole = approval(&object(ApprovalDecision::Approve, &stamps)).unwrap();
        assert_eq!((whole.approver.username.as_str(), whole.approver.groups), ("anna", vec!["ops".to_owned(), "a,b".to_owned()]));
        for missing in 0..stamps.len() {
            let mut stamps = stamps.to_vec();
            stamps.remove(missing);
            assert_eq!(approval(&object(ApprovalDecision::Approve, &stamps)), None);
            assert!(approval(&object(ApprovalDecision::Deny, &stamps)).is_some());
        }
    }

    #[test]
    fn one_that_is_being_deleted_is_revoked() {
        let stamps = [(APPROVER, "anna"), (APPROVER_UID, ""), (APPROVER_GROUPS, "")];
        let mut going = object(ApprovalDecision::Approve, &stamps);
        going.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        assert!(approval(&going).unwrap().revoked);
        going.spec.decision = ApprovalDecision::Deny;
        assert!(!approval(&going).unwrap().revoked);
    }
}
