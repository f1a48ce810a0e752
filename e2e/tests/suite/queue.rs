//! The queue of a cluster whose slots do not suffice for all.

use std::collections::BTreeMap;

use crate::harness::disturb::{leader, upgrade};
use crate::harness::{Script, Tenant, admin, assert_end, assert_refused, eventually, status, tenant};
use futures::future::join_all;
use futures::join;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, ListParams};
use paddock_crds::{ConditionType, Phase, Reason, ScriptRun, ScriptRunStatus};
use serde_json::json;

fn lasting(seconds: u32) -> Script {
    Script::shell(&format!("sleep {seconds}"))
}

/// When a slot was taken and when it was free again, in milliseconds.
fn slot(run: &ScriptRun) -> (i64, i64) {
    let clocks = status(run).clocks.unwrap();
    (clocks.admitted.unwrap().0.as_millisecond(), clocks.finished.unwrap().0.as_millisecond())
}

/// The most slots that were taken at once.
fn most(runs: &[ScriptRun]) -> i32 {
    let mut changes: BTreeMap<(i64, i32), i32> = BTreeMap::new();
    for (admitted, finished) in runs.iter().map(slot) {
        *changes.entry((admitted, 1)).or_default() += 1;
        *changes.entry((finished, 0)).or_default() -= 1;
    }
    let mut now = 0;
    changes
        .values()
        .map(|change| {
            now += change;
            now
        })
        .max()
        .unwrap_or(0)
}

#[tokio::test]
async fn the_slots_of_the_cluster_are_shared_and_a_priority_is_a_head_start() {
    let client = admin().await;
    upgrade(&["queue.maxConcurrent=2".into(), "queue.maxQueued=8".into(), "baseline.limits.maxPriority=100".into()]);
    leader(&client).await;
    let busy = |busy: Tenant| async move {
        tenant("queue-small", |small: Tenant| async move {
            eventually("runs are taken", || async {
                let run = small.run(Script::shell("true")).await;
                if status(&run).phase == Some(Phase::Succeeded) { Ok(()) } else { Err(status(&run).message) }
            })
            .await;
            // Eight of one tenant are there first, then one of another.
            let eight = join_all((0..8).map(|_| busy.create(lasting(4)))).await;
            let told = eventually("some wait", || async {
                let all = busy.runs().list(&ListParams::default()).await.unwrap().items;
                let waiting: Vec<_> = all.iter().map(status).filter(|status| status.phase == Some(Phase::Queued)).collect();
                if waiting.len() >= 6 { Ok(waiting[0].message.clone().unwrap()) } else { Err(waiting.len()) }
            })
            .await;
            assert!(told.starts_with("as many runs are active in the cluster as its administrator allows"), "{told}");
            let one = small.create(lasting(2)).await;
            let (eight, one) = join!(join_all(eight.iter().map(|run| busy.finished(run))), small.finished(&one));
            assert_end(&one, &Phase::Succeeded, &Reason::Succeeded);
            let before = eight.iter().filter(|run| slot(run).0 < slot(&one).0).count();
            assert!(before <= 4, "{before} of eight went before it");
            let all: Vec<ScriptRun> = eight.into_iter().chain([one]).collect();
            assert!(most(&all) <= 2, "{} slots of 2", most(&all));

            // Within a tenant: the younger one with a head start goes before the older one.
            small.policy(json!({ "maxConcurrent": 1 })).await;
            let limited = |script: Script| script.with(json!({ "policyRef": { "kind": "SandboxPolicy", "name": "limited" } }));
            let runs = small.create(limited(lasting(6))).await;
            small.until(&runs, "it runs", |status| status.phase == Some(Phase::Running)).await;
            let older = small.create(limited(lasting(1))).await;
            small.until(&older, "it waits", |status| status.phase == Some(Phase::Queued)).await;
            let younger = small.create(limited(lasting(1)).with(json!({ "priority": 60 }))).await;
            let (older, younger) = join!(small.finished(&older), small.finished(&younger));
            assert!(slot(&younger).0 < slot(&older).0);
            let refused = small.run(limited(lasting(1)).with(json!({ "priority": 101 }))).await;
            assert_refused(&refused, &Reason::LimitExceeded);
            no_more_wait_than_may(&busy, &small).await;
        })
        .await;
    };
    tenant("queue-busy", busy).await;
    upgrade(&["queue.maxConcurrent=1000".into(), "queue.maxQueued=100000".into(), "baseline.limits.maxPriority=0".into()]);
    leader(&client).await;
    // Here, since nothing else happens any more.
    runs_of_a_policy_that_is_killed_are_asked_to_stop_within_half_a_second().await;
}

/// Of two slots and eight places of the cluster.
async fn no_more_wait_than_may(busy: &Tenant, small: &Tenant) {
    let runs = join_all((0..2).map(|_| busy.create(lasting(60)))).await;
    join_all(runs.iter().map(|run| busy.until(run, "it has a slot", |status| status.is_true(&ConditionType::Admitted)))).await;
    let waits = |status: &ScriptRunStatus| status.phase == Some(Phase::Queued);
    let mut waiting = Vec::new();
    for tenant in [busy, small].repeat(4) {
        let run = tenant.create(lasting(60)).await;
        tenant.until(&run, "it waits", waits).await;
        waiting.push((tenant, run));
    }
    for tenant in [busy, small] {
        let refused = tenant.run(lasting(60)).await;
        assert_refused(&refused, &Reason::QueueFull);
        let told = status(&refused).message.unwrap();
        assert_eq!(told, "as many runs wait in the cluster as its administrator allows");
    }
    // A place is free again with whoever had it.
    let (tenant, run) = waiting.pop().unwrap();
    tenant.patch(&run, json!({ "spec": { "cancel": true } })).await;
    assert_end(&tenant.finished(&run).await, &Phase::Cancelled, &Reason::Cancelled);
    let run = busy.create(lasting(60)).await;
    busy.until(&run, "it waits", waits).await;
    for tenant in [busy, small] {
        tenant.runs().delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
    }
}

/// `suspend: Kill`, by the clocks of the operator and of the node.
async fn runs_of_a_policy_that_is_killed_are_asked_to_stop_within_half_a_second() {
    tenant("queue-killed", |tenant| async move {
        tenant.policy(json!({})).await;
        let limited = json!({ "policyRef": { "kind": "SandboxPolicy", "name": "limited" } });
        let script = || Script::shell("while :; do date +%s%3N; sleep 0.1; done").with(limited.clone());
        let mut all = Vec::new();
        for round in 0..3 {
            let runs = join_all((0..4).map(|_| tenant.create(script()))).await;
            join_all(runs.iter().map(|run| tenant.spoken(run))).await;
            let begin = jiff::Timestamp::now();
            tenant.policy_with(json!({ "suspend": "Kill" })).await;
            for run in join_all(runs.iter().map(|run| tenant.finished(run))).await {
                assert_end(&run, &Phase::Killed, &Reason::Suspended);
                let told = status(&run).result.unwrap().stdout.unwrap();
                let last = told.tail.as_ref().unwrap_or(&told.text).lines().rev().find_map(|line| line.parse::<i64>().ok()).unwrap();
                let asked = status(&run).stopping.unwrap().since.0.duration_since(begin);
                all.push((asked.as_millis(), last - begin.as_millisecond(), round));
            }
            tenant.policy(json!({})).await;
            tenant.policy_is_seen("limited").await;
        }
        all.sort_unstable();
        eprintln!("ms from the change of the policy until runs were asked to stop, and their last words: {all:?}");
        assert!(all.iter().all(|(asked, last, _)| *asked <= 500 && *last <= 500), "{all:?}");
    })
    .await;
}

#[tokio::test]
async fn each_policy_of_a_namespace_has_its_own_slots() {
    tenant("queue-policies", |tenant| async move {
        tenant.policy(json!({ "maxConcurrent": 1 })).await;
        let limited = |script: Script| script.with(json!({ "policyRef": { "kind": "SandboxPolicy", "name": "limited" } }));
        let runs = tenant.create(limited(lasting(8))).await;
        tenant.until(&runs, "it runs", |status| status.phase == Some(Phase::Running)).await;
        let waits = tenant.create(limited(lasting(1))).await;
        let waits = tenant.until(&waits, "it waits", |status| status.phase == Some(Phase::Queued)).await;
        let told = status(&waits).message.unwrap();
        assert_eq!(
            told,
            "as many runs that name the same policy are active as it allows; the run waits for its turn, behind 0 of this namespace"
        );
        // A younger one of another policy does not wait behind it.
        assert_end(&tenant.run(Script::shell("true")).await, &Phase::Succeeded, &Reason::Succeeded);
        assert_eq!(status(&tenant.get(&waits).await).phase, Some(Phase::Queued));
        let (runs, waits) = join!(tenant.finished(&runs), tenant.finished(&waits));
        assert!(slot(&waits).0 >= slot(&runs).1 - 1, "{} and {}", waits.name_any(), runs.name_any());
        assert_end(&waits, &Phase::Succeeded, &Reason::Succeeded);
    })
    .await;
}
