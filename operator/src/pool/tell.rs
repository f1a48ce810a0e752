//! What is told of a pool.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use paddock_crds::{ConditionStatus, PoolCondition, PoolConditionType, PreStart, SandboxPool, SandboxPoolStatus};
use paddock_protocol::Language;
use serde_json::{Value, json};

use super::plan::Plan;
use super::see::{Memory, Pool};
use crate::context::Context;
use crate::error::{Error, code, within};
use crate::names::POOL_UID;
use crate::script_run::text::cut;

/// Between two writes of a pool's status.
const TELL_EVERY: Duration = Duration::from_secs(2);

/// Writes the status, if it tells what the stored one does not.
pub(super) async fn tell(
    pool: &Pool,
    wanted: usize,
    plan: &Plan,
    memory: &mut Memory,
    context: &Context,
    now: Timestamp,
) -> Result<(), Error> {
    let Some(status) = status(pool, wanted, plan, now) else { return Ok(()) };
    if memory.told.is_some_and(|told| told.elapsed() < TELL_EVERY) {
        return Ok(());
    }
    memory.told = Some(Instant::now());
    let api: Api<SandboxPool> = Api::namespaced(context.client.clone(), &pool.tenant);
    let mut patch = json!({ "metadata": { "uid": pool.uid }, "status": status });
    // What is not there is taken away, and not left as it was.
    let is_there = [("image", status.image.is_some()), ("preStart", status.pre_start.is_some())];
    for (field, _) in is_there.into_iter().filter(|(_, is_there)| !is_there) {
        patch["status"][field] = Value::Null;
    }
    match within("the status of a pool", api.patch_status(&pool.object.name_any(), &PatchParams::default(), &Patch::Merge(&patch))).await? {
        Err(error) if !matches!(code(&error), Some(404 | 409)) => Err(Error::write("the status of a pool")(error)),
        _ => Ok(()),
    }
}

/// `None`: nothing is to be told that is not stored.
fn status(pool: &Pool, wanted: usize, plan: &Plan, now: Timestamp) -> Option<SandboxPoolStatus> {
    let stored = pool.object.status.clone().unwrap_or_default();
    let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    let is_ready = if plan.is_ready { ConditionStatus::True } else { ConditionStatus::False };
    let before = stored.conditions.iter().find(|condition| condition.type_ == PoolConditionType::Ready);
    let second = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let since = before.filter(|before| before.status == is_ready).map_or(Time(second), |before| before.last_transition_time.clone());
    let condition = PoolCondition {
        type_: PoolConditionType::Ready,
        status: is_ready,
        reason: plan.reason.clone(),
        message: cut(&plan.message, 1024).to_owned(),
        observed_generation: pool.object.metadata.generation,
        last_transition_time: since,
    };
    let shape = pool.shape.as_ref().ok();
    let status = SandboxPoolStatus {
        observed_generation: pool.object.metadata.generation,
        conditions: vec![condition],
        wanted: number(wanted),
        replicas: number(plan.free + plan.starting),
        free: number(plan.free),
        starting: number(plan.starting),
        claimed: number(plan.claimed),
        selector: Some(format!("{POOL_UID}={}", pool.uid)),
        image: shape.map(|shape| shape.image.clone()),
        pre_start: shape.and_then(|shape| shape.pre_start.as_ref()).map(|made| match made.language {
            Language::Python => PreStart::Python,
            Language::Node => PreStart::Node,
        }),
    };
    (status != stored).then_some(status)
}
