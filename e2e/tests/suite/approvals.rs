//! Runs that people have to approve, by real users with real rights.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::harness::{
    self, Script, Tenant, admin, assert_end, assert_refused, eventually, member, namespace, status, stdout, tenant, user,
};
use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use paddock_crds::{
    ApprovalDecision, ApprovalStatus, ConditionType, Phase, Reason, SandboxPolicy, ScriptApproval, ScriptApprovalSpec, ScriptRun,
    ScriptRunStatus,
};
use serde_json::{Value, json};

fn limited(text: &str) -> Script {
    Script::shell(text).with(json!({ "policyRef": { "kind": "SandboxPolicy", "name": "limited" } }))
}

/// The policy of the harness, with one demand.
async fn demand(tenant: &Tenant, demand: Value) {
    let mut whole = json!({ "name": "four-eyes" });
    whole.as_object_mut().unwrap().extend(demand.as_object().unwrap().clone());
    tenant.policy_with(json!({ "approvals": [whole] })).await;
    tenant.policy_is_seen("limited").await;
}

/// Somebody who may approve, and is in these groups.
async fn approver(tenant: &Tenant, name: &str, groups: &[&str]) -> Client {
    tenant.bind(name, "paddock-approver").await;
    let client = member(name, groups).await;
    let api: Api<ScriptApproval> = Api::namespaced(client.clone(), &tenant.name);
    eventually("the role is in force", || async { api.list(&kube::api::ListParams::default()).await }).await;
    client
}

fn decision(digest: &str, decision: ApprovalDecision) -> ScriptApproval {
    let spec = ScriptApprovalSpec { digest: digest.into(), decision, run_uid: None, expires_at: None, comment: None, revoked: None };
    let mut approval = ScriptApproval::new("", spec);
    (approval.metadata.name, approval.metadata.generate_name) = (None, Some("decision-".into()));
    approval
}

fn approvals(client: &Client, tenant: &Tenant) -> Api<ScriptApproval> {
    Api::namespaced(client.clone(), &tenant.name)
}

async fn approve(client: &Client, tenant: &Tenant, digest: &str) -> ScriptApproval {
    approvals(client, tenant).create(&PostParams::default(), &decision(digest, ApprovalDecision::Approve)).await.unwrap()
}

async fn revoke(client: &Client, tenant: &Tenant, approval: &ScriptApproval) {
    let patch = Patch::Merge(json!({ "spec": { "revoked": true } }));
    approvals(client, tenant).patch(&approval.name_any(), &PatchParams::default(), &patch).await.unwrap();
}

async fn awaiting(tenant: &Tenant, run: &ScriptRun) -> ApprovalStatus {
    let run = tenant.until(run, "it waits for approvals", |status| status.phase == Some(Phase::AwaitingApproval)).await;
    status(&run).approval.unwrap()
}

async fn given(tenant: &Tenant, run: &ScriptRun, count: usize) {
    tenant
        .until(run, "the approval is seen", |status| {
            status.approval.as_ref().is_some_and(|approval| approval.demanded[0].given.len() == count)
        })
        .await;
}

#[tokio::test]
async fn a_run_waits_until_enough_others_have_approved_it() {
    tenant("approve", |tenant| async move {
        demand(&tenant, json!({ "count": 2, "groups": ["reviewers"] })).await;
        tenant.bind("jane", "edit").await;
        let jane = approver(&tenant, "jane", &["reviewers"]).await;
        let [anna, bert] = [approver(&tenant, "anna", &["reviewers"]).await, approver(&tenant, "bert", &["reviewers"]).await];
        let stranger = approver(&tenant, "carl", &["others"]).await;

        let api: Api<ScriptRun> = Api::namespaced(jane.clone(), &tenant.name);
        let mut run = ScriptRun::new("wanted", serde_json::from_value(limited("echo approved").0).unwrap());
        run.spec.script.input = Some(json!({ "amount": 1 }));
        let run = api.create(&PostParams::default(), &run).await.unwrap();
        let needed = awaiting(&tenant, &run).await;
        assert_eq!(needed.demanded[0].rule, "SandboxPolicy/limited: approvals[four-eyes]");
        assert!(needed.expires_at.is_some() && needed.schema_digest.is_none());
        // Who asked, who is in another group, who wrote a policy, and one person twice.
        for client in [&jane, &stranger, &tenant.client, &anna, &anna] {
            approve(client, &tenant, &needed.digest).await;
        }
        given(&tenant, &run, 1).await;
        assert_eq!(
            status(&tenant.get(&run).await).message.as_deref(),
            Some("1 of 2 approvals are there (SandboxPolicy/limited: approvals[four-eyes])")
        );
        // Another digest, another run.
        approve(&bert, &tenant, &"0".repeat(64)).await;
        let mut other = decision(&needed.digest, ApprovalDecision::Approve);
        other.spec.run_uid = Some("another".into());
        approvals(&bert, &tenant).create(&PostParams::default(), &other).await.unwrap();
        let mut this = decision(&needed.digest, ApprovalDecision::Approve);
        this.spec.run_uid = run.uid();
        approvals(&bert, &tenant).create(&PostParams::default(), &this).await.unwrap();
        let run = tenant.finished(&run).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        assert_eq!(stdout(&run), "approved\n");
        let approval = status(&run).approval.unwrap();
        let by: BTreeSet<&str> = approval.demanded[0].given.iter().map(|given| given.approver.as_str()).collect();
        assert_eq!(by, ["anna", "bert"].into());
        assert!(status(&run).is_true(&ConditionType::Approved));

        // Anna's approval is of the digest, and so of a run that somebody else asks for; so is Jane's, who did not ask for this one. Bert's was of
        // that run alone.
        let again = tenant.run(limited("echo approved").with(json!({ "script": { "input": { "amount": 1 } } }))).await;
        let approval = status(&again).approval.unwrap();
        let by: BTreeSet<&str> = approval.demanded[0].given.iter().map(|given| given.approver.as_str()).collect();
        assert_eq!((approval.digest.as_str(), by), (needed.digest.as_str(), ["anna", "jane"].into()));
        let other = tenant.create(limited("echo approved").with(json!({ "script": { "input": { "amount": 2 } } }))).await;
        assert_ne!(awaiting(&tenant, &other).await.digest, needed.digest);
    })
    .await;
}

#[tokio::test]
async fn an_approval_that_expires_while_the_run_waits_counts_no_more() {
    tenant("approve-expiry", |tenant| async move {
        demand(&tenant, json!({ "count": 2 })).await;
        let [anna, bert] = [approver(&tenant, "anna", &[]).await, approver(&tenant, "bert", &[]).await];
        let run = tenant.create(limited("echo approved")).await;
        let needed = awaiting(&tenant, &run).await;
        let mut brief = decision(&needed.digest, ApprovalDecision::Approve);
        let until = Timestamp::now() + Duration::from_secs(4);
        brief.spec.expires_at = Some(Time(until));
        approvals(&anna, &tenant).create(&PostParams::default(), &brief).await.unwrap();
        given(&tenant, &run, 1).await;
        eventually("it has expired", || async { if Timestamp::now() > until { Ok(()) } else { Err(until) } }).await;
        let first = approve(&bert, &tenant, &needed.digest).await;
        tenant
            .until(&run, "Bert's alone counts", |status| {
                let given = status.approval.as_ref().map(|approval| approval.demanded[0].given.as_slice());
                given.is_some_and(|given| given.len() == 1 && given[0].approver == "bert")
            })
            .await;
        assert_eq!(status(&tenant.get(&run).await).phase, Some(Phase::AwaitingApproval));
        // One that lasts lets it run.
        approve(&anna, &tenant, &needed.digest).await;
        assert_end(&tenant.finished(&run).await, &Phase::Succeeded, &Reason::Succeeded);
        revoke(&bert, &tenant, &first).await;
    })
    .await;
}

#[tokio::test]
async fn nobody_makes_or_changes_an_approval_who_may_not() {
    tenant("approve-rbac", |tenant| async move {
        let digest = "a".repeat(64);
        let refusal = |result: kube::Result<ScriptApproval>| result.map(|_| ()).map_err(|error| error.to_string()).unwrap_err();
        let create =
            async |client: &Client, approval: &ScriptApproval| approvals(client, &tenant).create(&PostParams::default(), approval).await;
        let approval = decision(&digest, ApprovalDecision::Approve);
        let editor = tenant.bind("editor", "edit").await;
        eventually("the role is in force", || async { approvals(&editor, &tenant).list(&kube::api::ListParams::default()).await }).await;
        assert!(refusal(create(&editor, &approval).await).contains("cannot create resource"));
        // Somebody with every right on the objects of Paddock but the verb, as a wide role gives them.
        tenant.role("wide", "scriptapprovals", &["*"]).await;
        let wide = user("wide").await;
        eventually("the role is in force", || async { approvals(&wide, &tenant).list(&kube::api::ListParams::default()).await }).await;
        assert!(refusal(create(&wide, &approval).await).contains("only who holds the verb approve"));

        let anna = approver(&tenant, "anna", &["reviewers"]).await;
        for (key, value) in
            [("paddock.dev/approver", "bert"), ("paddock.dev/approver-groups", "system:masters"), ("paddock.dev/approver-x", "1")]
        {
            let mut forged = approval.clone();
            forged.metadata.annotations = Some([(key.to_owned(), value.to_owned())].into());
            assert!(refusal(create(&anna, &forged).await).contains("are set by the cluster"), "{key}");
        }
        let made = create(&anna, &approval).await.unwrap();
        assert_eq!(made.annotations()["paddock.dev/approver"], "anna");
        assert_eq!(
            made.annotations()["paddock.dev/approver-groups"],
            "reviewers,system:authenticated".split(',').rev().collect::<Vec<_>>().join(",")
        );
        let patch = async |client: &Client, patch: Value| {
            approvals(client, &tenant).patch(&made.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await
        };
        for change in [
            json!({ "digest": "b".repeat(64) }),
            json!({ "decision": "Deny" }),
            json!({ "runUid": "x" }),
            json!({ "expiresAt": "2030-01-01T00:00:00Z" }),
        ] {
            assert!(refusal(patch(&anna, json!({ "spec": change })).await).contains("immutable"), "{change}");
        }
        let stamp = json!({ "metadata": { "annotations": { "paddock.dev/approver": "bert" } } });
        assert!(refusal(patch(&anna, stamp).await).contains("cannot be changed"));
        assert!(refusal(patch(&wide, json!({ "spec": { "revoked": true } })).await).contains("only who holds the verb approve"));
        patch(&wide, json!({ "metadata": { "labels": { "a": "b" } } })).await.unwrap();
        // An owner that is gone would have it collected, and its trace with it.
        let owner = json!({ "apiVersion": "v1", "kind": "ConfigMap", "name": "nope", "uid": "00000000-0000-0000-0000-000000000001" });
        let owned = json!({ "metadata": { "ownerReferences": [owner] } });
        assert!(refusal(patch(&anna, owned).await).contains("a decision has no owner"));
        // A time that not every parser can read is none.
        let mut never = approval.clone();
        never.spec.expires_at = Some(Time("8999-12-31T23:59:59Z".parse().unwrap()));
        create(&anna, &never).await.unwrap();
        let raw = json!({ "apiVersion": "paddock.dev/v1alpha1", "kind": "ScriptApproval", "metadata": { "name": "never" },
            "spec": { "digest": digest, "decision": "Approve", "expiresAt": "9999-12-31T23:59:59Z" } });
        let refused = harness::kubectl(&["create", "--namespace", &tenant.name, "--filename=-"], &raw.to_string());
        assert!(refused.is_err_and(|error| format!("{error:#}").contains("before the year 9000")));
        patch(&anna, json!({ "spec": { "revoked": true } })).await.unwrap();
        assert!(refusal(patch(&anna, json!({ "spec": { "revoked": false } })).await).contains("cannot be taken back"));
    })
    .await;
}

#[tokio::test]
async fn whatever_changes_while_a_run_waits_voids_what_was_approved() {
    tenant("approve-void", |tenant| async move {
        demand(&tenant, json!({ "serviceAccounts": false })).await;
        let anna = approver(&tenant, "anna", &[]).await;
        // Approved before there is a run.
        let first = tenant.create(limited("echo one")).await;
        let before = awaiting(&tenant, &first).await;
        approve(&anna, &tenant, &before.digest).await;
        assert_end(&tenant.finished(&first).await, &Phase::Succeeded, &Reason::Succeeded);
        assert_end(&tenant.run(limited("echo one")).await, &Phase::Succeeded, &Reason::Succeeded);

        // The policy changes what the run would get.
        tenant.policy_with(json!({ "approvals": [{ "name": "four-eyes" }], "limits": { "default": { "memory": "96Mi" } } })).await;
        let changed = eventually("the limits are seen", || async {
            let run = tenant.create(limited("echo one")).await;
            let is_over = |status: &paddock_crds::ScriptRunStatus| {
                status.phase == Some(Phase::AwaitingApproval) || status.is_true(&ConditionType::Finished)
            };
            let run = tenant.until(&run, "it is decided", is_over).await;
            if status(&run).phase == Some(Phase::AwaitingApproval) { Ok(run) } else { Err(()) }
        })
        .await;
        assert_ne!(status(&changed).approval.unwrap().digest, before.digest);
        // It changes back while the run waits: what was approved is what it would do again.
        demand(&tenant, json!({})).await;
        let changed = tenant.finished(&changed).await;
        assert_end(&changed, &Phase::Succeeded, &Reason::Succeeded);
        assert_eq!(status(&changed).approval.unwrap().digest, before.digest);

        // The script of a ConfigMap.
        tenant.let_the_operator_read_sources().await;
        let config_maps: Api<ConfigMap> = Api::namespaced(tenant.client.clone(), &tenant.name);
        let map =
            |text: &str| json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "script" }, "data": { "main.sh": text } });
        let apply = async |text: &str| {
            config_maps.patch("script", &PatchParams::apply("e2e").force(), &Patch::Apply(map(text))).await.unwrap();
        };
        apply("echo harmless").await;
        let mut spec = limited("").0;
        spec["script"]["source"] = json!({ "configMapKeyRef": { "name": "script", "key": "main.sh" } });
        let run = tenant.create(Script(spec)).await;
        let needed = awaiting(&tenant, &run).await;
        apply("echo harmful").await;
        approve(&anna, &tenant, &needed.digest).await;
        assert_refused(&tenant.finished(&run).await, &Reason::SourceChanged);
    })
    .await;
}

/// Of a run that waits: what was approved does not count for what it would do by then.
#[tokio::test]
async fn an_approval_does_not_outlive_what_it_was_given_for() {
    namespace("approve-wait", json!({}), |tenant| async move {
        let demanding = async |change: Value| {
            let mut rules = json!({ "approvals": [{ "name": "four-eyes" }] });
            rules.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            tenant.cluster_policy(rules).await;
        };
        demanding(json!({})).await;
        let anna = approver(&tenant, "anna", &[]).await;
        let bot = approver(&tenant, &format!("system:serviceaccount:{}:bot", tenant.name), &["system:serviceaccounts"]).await;
        let text = Script::shell("echo hello").with(json!({ "policyRef": { "kind": "ClusterSandboxPolicy", "name": tenant.name } }));
        let run = tenant.create(text).await;
        let first = awaiting(&tenant, &run).await.digest;
        let another_than = async |before: &[&str]| {
            let is_another =
                |status: &ScriptRunStatus| status.approval.as_ref().is_some_and(|approval| !before.contains(&approval.digest.as_str()));
            let run = tenant.until(&run, "it would do something else", is_another).await;
            assert_eq!(status(&run).phase, Some(Phase::AwaitingApproval));
            status(&run).approval.unwrap().digest
        };
        demanding(json!({ "limits": { "default": { "memory": "96Mi" } } })).await;
        let second = another_than(&[&first]).await;
        approve(&anna, &tenant, &first).await;
        // A machine decides only where the policy says so.
        approve(&bot, &tenant, &second).await;
        demanding(json!({ "runtimes": [{ "name": "shell", "image": "docker.io/paddock/other:1", "command": ["/bin/sh"] }] })).await;
        let third = another_than(&[&first, &second]).await;
        approve(&bot, &tenant, &third).await;
        approve(&anna, &tenant, &second).await;
        // What it did at first is what was approved.
        demanding(json!({})).await;
        let run = tenant.finished(&run).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        let approval = status(&run).approval.unwrap();
        assert_eq!(approval.digest, first);
        assert_eq!(approval.demanded[0].given.iter().map(|given| given.approver.as_str()).collect::<Vec<_>>(), ["anna"]);
        tenant.no_cluster_policy().await;
    })
    .await;
}

/// Somebody who widens a policy, lets a colleague touch it, and approves what it now allows.
#[tokio::test]
async fn who_wrote_a_policy_while_a_run_waited_does_not_approve_it() {
    tenant("approve-since", |tenant| async move {
        demand(&tenant, json!({})).await;
        let anna = approver(&tenant, "since-anna", &[]).await;
        let bert = approver(&tenant, "since-bert", &[]).await;
        tenant.role("since-anna", "sandboxpolicies", &["get", "patch"]).await;
        let run = tenant.create(limited("echo approved")).await;
        let needed = awaiting(&tenant, &run).await;
        let annas: Api<SandboxPolicy> = Api::namespaced(anna.clone(), &tenant.name);
        let most = |count: u32| Patch::Merge(json!({ "spec": { "limits": { "maxQueued": count } } }));
        eventually("she may", || async { annas.patch("limited", &PatchParams::default(), &most(7)).await }).await;
        let names = |status: &ScriptRunStatus| status.approval.clone().unwrap_or_default().excluded;
        tenant.until(&run, "she is an author", |status| names(status).contains(&"since-anna".to_owned())).await;
        let admins: Api<SandboxPolicy> = Api::namespaced(tenant.client.clone(), &tenant.name);
        let last = admins.patch("limited", &PatchParams::default(), &most(8)).await.unwrap();
        assert_ne!(last.annotations()["paddock.dev/author"], "since-anna");
        let seen = tenant
            .until(&run, "somebody else is", |status| {
                status.policies.iter().any(|policy| Some(policy.generation) == last.metadata.generation)
            })
            .await;
        assert!(names(&status(&seen)).contains(&"since-anna".to_owned()), "{:?}", status(&seen).approval);

        approve(&anna, &tenant, &needed.digest).await;
        approve(&bert, &tenant, &needed.digest).await;
        let run = tenant.finished(&run).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        let by: Vec<String> = status(&run).approval.unwrap().demanded[0].given.iter().map(|given| given.approver.clone()).collect();
        assert_eq!(by, ["since-bert"]);
    })
    .await;
}

#[tokio::test]
async fn a_denial_ends_a_run_whoever_approved_it_and_a_run_waits_only_so_long() {
    tenant("approve-deny", |tenant| async move {
        demand(&tenant, json!({ "count": 2 })).await;
        let [anna, bert] = [approver(&tenant, "anna", &[]).await, approver(&tenant, "bert", &[]).await];
        let run = tenant.create(limited("echo no")).await;
        let digest = awaiting(&tenant, &run).await.digest;
        approve(&anna, &tenant, &digest).await;
        let mut denial = decision(&digest, ApprovalDecision::Deny);
        denial.spec.comment = Some("not on my watch".into());
        let denial = approvals(&bert, &tenant).create(&PostParams::default(), &denial).await.unwrap();
        let run = tenant.finished(&run).await;
        assert_end(&run, &Phase::Denied, &Reason::ApprovalDenied);
        assert_eq!(status(&run).message.as_deref(), Some("bert has decided that it may not run"));
        assert_end(&tenant.run(limited("echo no")).await, &Phase::Denied, &Reason::ApprovalDenied);
        // Taken back, it is as if it had not been.
        revoke(&bert, &tenant, &denial).await;
        let run = eventually("the denial is gone", || async {
            let run = tenant.create(limited("echo no")).await;
            let run = tenant.until(&run, "it is decided", |status| status.approval.is_some()).await;
            if status(&run).phase == Some(Phase::AwaitingApproval) { Ok(run) } else { Err(status(&run).phase) }
        })
        .await;
        tenant.patch(&run, json!({ "spec": { "cancel": true } })).await;
        assert_end(&tenant.finished(&run).await, &Phase::Cancelled, &Reason::Cancelled);
        demand(&tenant, json!({ "count": 2, "waitSeconds": 2 })).await;
        let run = tenant.run(limited("echo no")).await;
        assert_end(&run, &Phase::Expired, &Reason::ApprovalExpired);
        let clocks = status(&run).clocks.unwrap();
        let waited = clocks.finished.unwrap().0.duration_since(clocks.received.unwrap().0);
        // Conditions tell times in seconds, so the wait may begin up to one earlier.
        assert!((1000..8000).contains(&waited.as_millis()), "{waited:?}");
    })
    .await;
}

#[tokio::test]
async fn who_revokes_an_approval_stops_what_waits_and_what_runs() {
    tenant("approve-revoke", |tenant| async move {
        demand(&tenant, json!({ "endsRunning": true })).await;
        tenant.policy_with(json!({ "approvals": [{ "name": "four-eyes", "endsRunning": true }], "limits": { "maxConcurrent": 1 } })).await;
        let anna = approver(&tenant, "anna", &[]).await;
        let runs = tenant.create(limited("echo begin; sleep 60; echo end")).await;
        let of_runs = approve(&anna, &tenant, &awaiting(&tenant, &runs).await.digest).await;
        tenant.spoken(&runs).await;
        let waits = tenant.create(limited("echo later")).await;
        let of_waits = approve(&anna, &tenant, &awaiting(&tenant, &waits).await.digest).await;
        tenant.until(&waits, "it waits", |status| status.phase == Some(Phase::Queued)).await;

        revoke(&anna, &tenant, &of_waits).await;
        awaiting(&tenant, &waits).await;
        let begin = jiff::Timestamp::now();
        revoke(&anna, &tenant, &of_runs).await;
        let runs = tenant.finished(&runs).await;
        assert_end(&runs, &Phase::Killed, &Reason::ApprovalRevoked);
        assert_eq!(stdout(&runs), "begin\n");
        let asked = status(&runs).stopping.unwrap().since.0.duration_since(begin);
        assert!(asked.as_millis() < 500, "{asked:?}");
        // Approved anew, by an object that is deleted while it runs.
        let again = approve(&anna, &tenant, &status(&tenant.get(&waits).await).approval.unwrap().digest).await;
        assert_end(&tenant.finished(&waits).await, &Phase::Succeeded, &Reason::Succeeded);
        let runs = tenant.create(limited("echo begin; sleep 60; echo end")).await;
        let of_runs = approve(&anna, &tenant, &awaiting(&tenant, &runs).await.digest).await;
        tenant.until(&runs, "it runs", |status| status.is_true(&ConditionType::Started)).await;
        for approval in [again, of_runs] {
            approvals(&admin().await, &tenant).delete(&approval.name_any(), &DeleteParams::default()).await.unwrap();
        }
        assert_end(&tenant.finished(&runs).await, &Phase::Killed, &Reason::ApprovalRevoked);
    })
    .await;
}

#[tokio::test]
async fn ten_who_decide_at_once_make_one_decision() {
    tenant("approve-race", |tenant| async move {
        demand(&tenant, json!({ "count": 3 })).await;
        let names: Vec<String> = (0..10).map(|n| format!("approver-{n}")).collect();
        let clients = join_all(names.iter().map(|name| approver(&tenant, name, &[]))).await;
        let all = join_all((0..3).map(|n| tenant.create(limited(&format!("echo {n}"))))).await;
        let needed = join_all(all.iter().map(|run| awaiting(&tenant, run))).await;
        let digest = &needed[0].digest;
        join_all(clients.iter().map(|client| approve(client, &tenant, digest))).await;
        let run = tenant.finished(&all[0]).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        assert!(status(&run).approval.unwrap().demanded[0].given.len() >= 3);
        // Some approve and one denies: no run starts after the denial is there.
        let digest = &needed[1].digest;
        let deny = async {
            approvals(&clients[9], &tenant).create(&PostParams::default(), &decision(digest, ApprovalDecision::Deny)).await.unwrap();
        };
        futures::join!(deny, join_all(clients[..2].iter().map(|client| approve(client, &tenant, digest))));
        approve(&clients[2], &tenant, digest).await;
        assert_end(&tenant.finished(&all[1]).await, &Phase::Denied, &Reason::ApprovalDenied);
        assert_eq!(status(&tenant.get(&all[2]).await).phase, Some(Phase::AwaitingApproval));
    })
    .await;
}
