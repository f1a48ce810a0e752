//! The ScriptApprovals of a namespace, as decisions use them.

use kube::ResourceExt as _;
use paddock_crds::{ApprovalDecision, Requester, ScriptApproval};
use paddock_policy::Approval;

use crate::context::Context;
use crate::names::{APPROVER, APPROVER_GROUPS, APPROVER_UID, stamped};

/// Those of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Approvals {
    /// Those that could be read.
    pub(crate) read: Vec<Approval>,
    /// One of them could not: a newer version may have written it, and it may be a denial of anything.
    pub(crate) unreadable: Option<String>,
}

impl Approvals {
    /// What may let a run start: nothing, as long as there is a decision that is not understood.
    pub(crate) fn of_a_start(&self) -> &[Approval] {
        if self.unreadable.is_some() { &[] } else { &self.read }
    }
}

pub(crate) fn of_namespace(namespace: &str, context: &Context) -> Approvals {
    let mut approvals = Approvals::default();
    for object in context.caches.approvals.state().iter().filter(|approval| approval.namespace().as_deref() == Some(namespace)) {
        match &object.0 {
            Ok(object) => approvals.read.extend(approval(object)),
            Err(unreadable) => {
                let name = unreadable.metadata.name.clone().unwrap_or_default();
                tracing::warn!(
                    namespace,
                    approval = name,
                    why = unreadable.why,
                    "no run of the namespace is approved: a decision cannot be read"
                );
                approvals.unreadable = Some(name);
            }
        }
    }
    approvals
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
    use paddock_crds::{ApprovalDemanded, ApprovalGiven, ApprovalStatus, ScriptApprovalSpec, ScriptRunStatus};

    use super::*;
    use crate::script_run::fixtures::a_run;
    use crate::script_run::observe::has_lost_approval;

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
    fn a_decision_that_is_not_understood_lets_nothing_start_and_ends_nothing() {
        let stamps = [(APPROVER, "anna"), (APPROVER_UID, ""), (APPROVER_GROUPS, "")];
        let read = vec![approval(&object(ApprovalDecision::Approve, &stamps)).unwrap()];
        let understood = Approvals { read: read.clone(), unreadable: None };
        let not_understood = Approvals { read, unreadable: Some("of-a-newer-version".into()) };
        assert_eq!((understood.of_a_start().len(), not_understood.of_a_start().len()), (1, 0));
        let given = ApprovalGiven { approver: "anna".into(), name: "a".into(), uid: "another".into() };
        let demanded = ApprovalDemanded { count: 1, ends_running: true, given: vec![given], ..ApprovalDemanded::default() };
        let mut run = a_run();
        let approval = ApprovalStatus { digest: "d".into(), demanded: vec![demanded], ..ApprovalStatus::default() };
        run.status = Some(ScriptRunStatus { approval: Some(approval), ..ScriptRunStatus::default() });
        assert!(has_lost_approval(&run, &understood, Timestamp::UNIX_EPOCH), "what it was given is not there");
        assert!(!has_lost_approval(&run, &not_understood, Timestamp::UNIX_EPOCH), "what is not understood may be it");
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
