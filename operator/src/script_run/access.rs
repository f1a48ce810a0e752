//! Asks the API server what somebody may read. What they may not read themselves is not read for them.

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Api;
use kube::api::PostParams;
use paddock_crds::Requester;
use paddock_policy::{Object, ObjectKind};

use crate::config::Settings;
use crate::context::Context;
use crate::error::{Error, within};

/// Whether `user` may get an object of a namespace.
pub(crate) async fn may_read(user: &Requester, namespace: &str, kind: ObjectKind, name: &str, context: &Context) -> Result<bool, Error> {
    let attributes = ResourceAttributes {
        namespace: Some(namespace.to_owned()),
        verb: Some("get".into()),
        version: Some("v1".into()),
        resource: Some(kind.resource().into()),
        name: Some(name.to_owned()),
        ..ResourceAttributes::default()
    };
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            user: Some(user.username.clone()),
            uid: user.uid.clone(),
            groups: Some(user.groups.clone()),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let api: Api<SubjectAccessReview> = Api::all(context.client.clone());
    let answer =
        within("the access review", api.create(&PostParams::default(), &review)).await?.map_err(Error::write("the access review"))?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

/// What is told where the operator itself may not: it has no right on objects of tenants but where somebody gives it one.
pub(crate) fn forbidden_to_the_operator(object: &Object, settings: &Settings) -> String {
    let (role, place) = match object.kind {
        ObjectKind::Secret => ("paddock-secret-reader", "this namespace"),
        ObjectKind::ConfigMap => ("paddock-source-reader", "this namespace"),
        // Paddock binds it itself, before the first pod.
        ObjectKind::PersistentVolumeClaim => (settings.sandbox_cluster_role.as_str(), "the sandbox namespace"),
    };
    let account = format!("{}/{}", settings.operator_namespace, settings.operator_service_account);
    format!("Paddock may not read the {object}: bind the ClusterRole {role} in {place} to the ServiceAccount {account}")
}
