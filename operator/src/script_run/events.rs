//! Kubernetes Events: one when the script starts, one at the end, and how any is sent.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Resource as _;
use kube::runtime::events::{Event, EventType};
use paddock_crds::{ConditionType, Phase, ScriptRun};

use super::step::Step;
use crate::context::Context;

/// Publishes what the step told, if it is a change of state that people watch for.
pub(crate) async fn publish(run: &ScriptRun, step: &Step, context: &Context) {
    let status = run.status.clone().unwrap_or_default();
    let is_end = status.is_true(&ConditionType::Finished);
    let (reason, type_) = match step {
        Step::RecordStart { .. } => ("Started".to_owned(), EventType::Normal),
        _ if is_end => {
            let reason = status.condition(&ConditionType::Finished).map(|condition| condition.reason.to_string()).unwrap_or_default();
            (reason, if status.phase == Some(Phase::Succeeded) { EventType::Normal } else { EventType::Warning })
        }
        _ => return,
    };
    let event = Event { type_, reason, note: status.message, action: "Run".into(), secondary: None };
    send(&event, &run.object_ref(&()), context).await;
}

/// A failure is logged: an Event is no record.
pub(crate) async fn send(event: &Event, about: &ObjectReference, context: &Context) {
    if let Err(error) = context.recorder.publish(event, about).await {
        tracing::debug!(error = %error, "an Event could not be published");
    }
}
