//! What several policies allow together.

use crate::harness::{self, Script, Tenant, admin, assert_end, assert_refused, eventually, kubectl, status, stdout, tenant, user};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use paddock_crds::{
    ClusterSandboxPolicy, ConditionStatus, ConditionType, Phase, PolicyConditionType, PolicyReason, PolicyStatus, Reason, SandboxPolicy,
    ScriptRun, ScriptRunStatus,
};
use serde_json::{Value, json};

fn ask_for(memory: &str) -> Script {
    Script::shell("true").with(json!({ "resources": { "memory": memory } }))
}

/// Runs the script until a change of policies is seen.
async fn until(tenant: &Tenant, what: &str, script: impl Fn() -> Script, holds: impl Fn(&ScriptRun) -> bool) -> ScriptRun {
    eventually(what, || async {
        let run = tenant.run(script()).await;
        if holds(&run) { Ok(run) } else { Err(run.status) }
    })
    .await
}

fn is_refused(run: &ScriptRun) -> bool {
    status(run).phase == Some(Phase::Refused)
}

#[tokio::test]
async fn a_policy_that_only_restricts_narrows_what_it_mentions() {
    tenant("restrict", |tenant| async move {
        assert_end(&tenant.run(ask_for("160Mi")).await, &Phase::Succeeded, &Reason::Succeeded);
        tenant.cluster_policy(json!({ "effect": "Restrict", "limits": { "max": { "memory": "150Mi" } } })).await;
        let run = until(&tenant, "the policy is seen", || ask_for("160Mi"), is_refused).await;
        assert_refused(&run, &Reason::LimitExceeded);
        let rule = format!("ClusterSandboxPolicy/{}: limits.max.memory", tenant.name);
        let decisions = status(&run).decisions;
        assert!(decisions.iter().any(|decision| decision.permission == "memory:160Mi" && decision.rule == rule), "{decisions:?}");
        // Of what it does not mention, nothing has changed.
        let run = tenant.run(ask_for("150Mi").with(json!({ "timeoutSeconds": 60 }))).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        assert_eq!(status(&run).policies.len(), 2);
        tenant.no_cluster_policy().await;
    })
    .await;
}

#[tokio::test]
async fn a_policy_that_allows_says_the_built_in_value_where_it_is_silent() {
    tenant("allow", |tenant| async move {
        tenant.cluster_policy(json!({})).await;
        let run = until(&tenant, "the policy is seen", || ask_for("160Mi"), is_refused).await;
        assert_eq!(status(&run).message.as_deref(), Some("memory 160Mi is more than the 128Mi that is allowed (built-in: memory)"));
        tenant.no_cluster_policy().await;
    })
    .await;
}

/// Deleting a policy must not be a way to widen what the others allow.
#[tokio::test]
async fn a_policy_that_goes_is_missed_until_it_is_back_or_forgotten() {
    tenant("gone", |tenant| async move {
        let strict = json!({ "effect": "Restrict", "limits": { "max": { "memory": "150Mi" } } });
        tenant.cluster_policy(strict.clone()).await;
        until(&tenant, "the policy is seen", || ask_for("160Mi"), is_refused).await;
        assert_end(&tenant.run(ask_for("150Mi")).await, &Phase::Succeeded, &Reason::Succeeded);

        tenant.no_cluster_policy().await;
        let is_gone = |run: &ScriptRun| status(run).message.is_some_and(|message| message.contains("does not select it any more"));
        let run = until(&tenant, "the policy is missed", || ask_for("160Mi"), is_gone).await;
        assert_refused(&run, &Reason::PolicyGone);
        tenant.cluster_policy(strict).await;
        until(&tenant, "the policy is back", || ask_for("150Mi"), |run| !is_refused(run)).await;

        // The same where it stays and selects something else.
        let cluster: Api<ClusterSandboxPolicy> = Api::all(tenant.client.clone());
        let elsewhere = json!({ "spec": { "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "nowhere" } } } });
        cluster.patch(&tenant.name, &PatchParams::default(), &Patch::Merge(&elsewhere)).await.unwrap();
        let run = until(&tenant, "the policy is missed", || ask_for("160Mi"), is_gone).await;
        let message = status(&run).message.unwrap();
        let command: Vec<&str> = message.split_once("kubectl ").unwrap().1.split(' ').collect();
        assert_eq!(command, ["annotate", "namespace", &tenant.sandbox(), "paddock.dev/cluster-policies-"]);
        let namespaces: Api<Namespace> = Api::all(user("somebody").await);
        let patch = json!({ "metadata": { "annotations": { "paddock.dev/cluster-policies": null } } });
        let refused = namespaces.patch(&tenant.sandbox(), &PatchParams::default(), &Patch::Merge(&patch)).await;
        assert!(refused.is_err(), "only who may change namespaces can have a policy forgotten");
        kubectl(&command, "").unwrap();
        let run = until(&tenant, "the policy is forgotten", || ask_for("160Mi"), |run| !is_refused(run)).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        tenant.no_cluster_policy().await;

        // What applies is remembered anew.
        let namespaces: Api<Namespace> = Api::all(admin().await);
        eventually("the baseline is remembered", || async {
            let annotations = namespaces.get(&tenant.sandbox()).await.unwrap().metadata.annotations.unwrap_or_default();
            let names = annotations.get("paddock.dev/cluster-policies").cloned();
            if names.as_deref() == Some("baseline") { Ok(()) } else { Err(names) }
        })
        .await;
        // The same where the policy stays and the label by which it selects goes.
        let unlabel = json!({ "metadata": { "labels": { "paddock.dev/tenant": null } } });
        namespaces.patch(&tenant.name, &PatchParams::default(), &Patch::Merge(unlabel)).await.unwrap();
        let run = until(&tenant, "the baseline is missed", || ask_for("150Mi"), is_gone).await;
        assert_refused(&run, &Reason::PolicyGone);
    })
    .await;
}

/// What stands in the condition `Ready` of the policy of the harness, once its newest generation was looked at.
async fn ready(tenant: &Tenant) -> (ConditionStatus, PolicyReason, Vec<String>) {
    let api: Api<SandboxPolicy> = Api::namespaced(tenant.client.clone(), &tenant.name);
    eventually("the policy was looked at", || async {
        let policy = api.get("limited").await.unwrap();
        let status = policy.status.unwrap_or_default();
        if status.observed_generation != policy.metadata.generation {
            return Err(status);
        }
        let ready = status.conditions.iter().find(|condition| condition.type_ == PolicyConditionType::Ready).unwrap();
        let stalled = status.conditions.iter().find(|condition| condition.type_ == PolicyConditionType::Stalled).unwrap();
        assert_ne!(ready.status, stalled.status);
        Ok((ready.status, ready.reason.clone(), status.problems.iter().map(|problem| problem.field.clone()).collect()))
    })
    .await
}

#[tokio::test]
async fn a_broken_policy_says_what_is_wrong_and_refuses_its_runs() {
    tenant("broken", |tenant| async move {
        let limited = || Script::shell("true").with(json!({ "policyRef": { "kind": "SandboxPolicy", "name": "limited" } }));
        tenant.policy(json!({})).await;
        assert_eq!(ready(&tenant).await, (ConditionStatus::True, PolicyReason::Valid, vec![]));
        assert_end(&tenant.run(limited()).await, &Phase::Succeeded, &Reason::Succeeded);
        let hash = "0".repeat(64);
        tenant
            .policy_with(json!({
                "limits": { "default": { "memory": "1Gi" }, "max": { "memory": "512Mi" } },
                "input": { "schemas": [{ "scriptHash": hash, "schema": { "type": "nothing" } }] },
                "output": { "mask": { "rules": [{ "name": "bad", "pattern": "(?=x)" }] } },
            }))
            .await;
        let problems = ["limits.default.memory".into(), "output.mask.rules[bad]".into(), format!("input.schemas[{hash}]")];
        assert_eq!(ready(&tenant).await, (ConditionStatus::False, PolicyReason::Invalid, problems.to_vec()));
        let run = tenant.run(limited()).await;
        assert_refused(&run, &Reason::PolicyInvalid);
        assert_eq!(
            status(&run).message.as_deref(),
            Some("SandboxPolicy/limited: limits.default.memory: 1Gi is more than limits.max.memory, 512Mi; and 2 more, see its status")
        );
        // A run that does not name it is none of its business.
        assert_end(&tenant.run(Script::shell("true")).await, &Phase::Succeeded, &Reason::Succeeded);
        tenant.policy(json!({})).await;
        assert_eq!(ready(&tenant).await.0, ConditionStatus::True);
        assert_end(&tenant.run(limited()).await, &Phase::Succeeded, &Reason::Succeeded);
    })
    .await;
}

fn contradicted(status: Option<PolicyStatus>) -> Option<String> {
    let conditions = status.unwrap_or_default().conditions;
    conditions.into_iter().find(|told| told.type_ == PolicyConditionType::Contradicted).map(|told| told.message)
}

/// Each of them is right by itself, so both are ready; what they make impossible together is told on each, and refused.
#[tokio::test]
async fn policies_that_contradict_each_other_say_so_and_refuse_what_they_disagree_on() {
    tenant("contradicting", |tenant| async move {
        let own: Api<SandboxPolicy> = Api::namespaced(tenant.client.clone(), &tenant.name);
        let cluster: Api<ClusterSandboxPolicy> = Api::all(tenant.client.clone());
        let told_of_own = || async { contradicted(own.get("limited").await.unwrap().status) };
        let another = json!([{ "name": "shell", "image": "example/shell:1", "command": ["/bin/sh"] }, { "name": "python" }]);
        tenant.policy_with(json!({ "runtimes": another })).await;
        assert_eq!(ready(&tenant).await, (ConditionStatus::True, PolicyReason::Valid, vec![]));
        let message = "ClusterSandboxPolicy/baseline and SandboxPolicy/limited do not agree on the image of the runtime shell";
        let told = eventually("the policy tells", || async { told_of_own().await.ok_or("nothing") }).await;
        assert_eq!(told, format!("{message}: runs that use it are refused"));
        let run = tenant.run(limited("true")).await;
        assert_refused(&run, &Reason::PolicyInvalid);
        assert_eq!(status(&run).message.as_deref(), Some(message));
        let python = json!({ "policyRef": { "kind": "SandboxPolicy", "name": "limited" } });
        assert_end(&tenant.run(Script::python("print(1)").with(python)).await, &Phase::Succeeded, &Reason::Succeeded);
        tenant.policy_with(json!({ "runtimes": [{ "name": "shell" }] })).await;
        eventually("the contradiction is gone", || async { told_of_own().await.map_or(Ok(()), Err) }).await;
        assert_end(&tenant.run(limited("true")).await, &Phase::Succeeded, &Reason::Succeeded);

        // Of two policies of the cluster each tells of the other, and a tenant's own tells what its runs meet.
        let shell = json!([{ "name": "shell", "image": "example/shell:1", "command": ["/bin/sh"] }]);
        tenant.cluster_policy(json!({ "effect": "Restrict", "runtimes": shell })).await;
        let message = format!(
            "ClusterSandboxPolicy/baseline and ClusterSandboxPolicy/{} do not agree on the image of the runtime shell",
            tenant.name
        );
        let told_of = async |name: &str| contradicted(cluster.get(name).await.unwrap().status).unwrap_or_default();
        for policy in [tenant.name.clone(), "baseline".to_owned()] {
            eventually("the policies of the cluster tell", || async {
                let told = told_of(&policy).await;
                if told.contains(&message) { Ok(()) } else { Err(told) }
            })
            .await;
        }
        eventually("the tenant's own tells", || async {
            let told = told_of_own().await.unwrap_or_default();
            if told.contains(&message) { Ok(()) } else { Err(told) }
        })
        .await;
        assert!(cluster.get(&tenant.name).await.unwrap().status.unwrap().problems.is_empty());
        tenant.no_cluster_policy().await;
        eventually("it is gone with one of them", || async {
            let told = told_of("baseline").await;
            if told.contains(&message) { Err(told) } else { Ok(()) }
        })
        .await;
    })
    .await;
}

fn limited(text: &str) -> Script {
    Script::shell(text).with(json!({ "policyRef": { "kind": "SandboxPolicy", "name": "limited" } }))
}

async fn running(tenant: &Tenant, script: Script) -> ScriptRun {
    let run = tenant.create(script).await;
    tenant.until(&run, "Started", |status| status.is_true(&ConditionType::Started)).await
}

#[tokio::test]
async fn a_suspended_policy_admits_nothing_and_holds_up_nobody() {
    tenant("suspend", |tenant| async move {
        tenant.policy(json!({})).await;
        let goes_on = running(&tenant, limited("echo begin; sleep 3; echo end")).await;
        tenant.policy_with(json!({ "suspend": "Queue" })).await;
        ready(&tenant).await;
        let waits = tenant.create(limited("echo later")).await;
        let is_suspended = |status: &ScriptRunStatus| {
            status.condition(&ConditionType::Admitted).is_some_and(|condition| condition.reason == Reason::Suspended)
        };
        tenant.until(&waits, "it waits", is_suspended).await;
        // The baseline is not suspended, and the younger run is not behind the one that waits.
        assert_end(&tenant.run(Script::shell("true")).await, &Phase::Succeeded, &Reason::Succeeded);
        let goes_on = tenant.finished(&goes_on).await;
        assert_eq!(stdout(&goes_on), "begin\nend\n");
        tenant.policy(json!({})).await;
        let run = tenant.finished(&waits).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
    })
    .await;
}

#[tokio::test]
async fn a_killed_policy_ends_what_runs_without_grace() {
    tenant("kill", |tenant| async move {
        tenant.policy(json!({ "maxGracePeriodSeconds": 100 })).await;
        let stubborn =
            limited("trap '' TERM; echo begin; while :; do date +%s%3N; sleep 0.02; done").with(json!({ "gracePeriodSeconds": 5 }));
        let run = tenant.spoken(&tenant.create(stubborn).await).await;
        let begin = jiff::Timestamp::now();
        tenant.policy_with(json!({ "suspend": "Kill" })).await;
        let run = tenant.finished(&run).await;
        assert_end(&run, &Phase::Killed, &Reason::Suspended);
        let told = status(&run).result.unwrap().stdout.unwrap();
        assert!(told.text.starts_with("begin\n"), "what it had put out is kept: {told:?}");
        // Its own clock, which is the node's: when it was last able to do anything.
        let last = told.tail.as_ref().unwrap_or(&told.text).lines().rev().find_map(|line| line.parse::<i64>().ok()).unwrap();
        let last = last - begin.as_millisecond();
        let status = status(&run);
        let asked = status.stopping.unwrap().since.0.duration_since(begin);
        let ended = status.clocks.unwrap().result_ready.unwrap().0.duration_since(begin);
        println!(
            "asked to stop {} ms after the policy changed, its last word came after {last} ms, its result was there after {} ms",
            asked.as_millis(),
            ended.as_millis()
        );
        // The message follows the write that tells of it; other tests run beside this one.
        assert!(asked.as_millis() < 500 && last < 1000 && ended.as_millis() < 4000, "{asked:?} {last} {ended:?}: no grace");
    })
    .await;
}

#[tokio::test]
async fn what_is_denied_is_refused_and_ends_where_it_runs_or_waits() {
    tenant("deny", |tenant| async move {
        tenant.policy(json!({ "maxConcurrent": 1 })).await;
        let bad = || limited("echo bad; sleep 60; echo end");
        let runs = tenant.spoken(&tenant.create(bad()).await).await;
        let waits = tenant.create(bad()).await;
        tenant.until(&waits, "it waits", |status| status.phase == Some(Phase::Queued)).await;
        let hash = status(&runs).script_hash.unwrap();
        tenant.cluster_policy(json!({ "effect": "Restrict", "deny": { "scripts": [hash] } })).await;
        let waits = tenant.finished(&waits).await;
        assert_refused(&waits, &Reason::Denied);
        let rule = format!("ClusterSandboxPolicy/{}: deny.scripts", tenant.name);
        assert_eq!(status(&waits).message, Some(format!("script:{hash} is denied ({rule})")));
        let decision = status(&waits).decisions.pop().unwrap();
        assert_eq!((decision.permission, decision.rule), (format!("script:{hash}"), rule));
        let runs = tenant.finished(&runs).await;
        assert_end(&runs, &Phase::Killed, &Reason::Denied);
        assert_eq!(stdout(&runs), "bad\n");
        assert_end(&tenant.run(limited("echo good")).await, &Phase::Succeeded, &Reason::Succeeded);

        let image = status(&runs).image.unwrap();
        let family = format!("{}*", &image[..image.len() - 2]);
        let runs = running(&tenant, limited("sleep 60")).await;
        let waits = tenant.create(limited("echo waits")).await;
        tenant.until(&waits, "it waits", |status| status.phase == Some(Phase::Queued)).await;
        tenant.cluster_policy(json!({ "effect": "Restrict", "deny": { "images": [family] } })).await;
        assert_refused(&tenant.finished(&waits).await, &Reason::Denied);
        let run = until(&tenant, "the image is denied", || limited("echo good"), is_refused).await;
        assert_eq!(status(&run).message, Some(format!("image:{image} is denied (ClusterSandboxPolicy/{}: deny.images)", tenant.name)));
        assert_end(&tenant.finished(&runs).await, &Phase::Killed, &Reason::Denied);

        tenant.cluster_policy(json!({ "effect": "Restrict" })).await;
        let is_running = |run: &ScriptRun| status(run).is_true(&ConditionType::Started);
        let runs = eventually("it runs again", || async {
            let run = tenant.create(limited("sleep 60")).await;
            let is_decided = |status: &ScriptRunStatus| status.is_true(&ConditionType::Started) || status.is_true(&ConditionType::Finished);
            let run = tenant.until(&run, "it is decided", is_decided).await;
            if is_running(&run) { Ok(run) } else { Err(status(&run).message) }
        })
        .await;
        let waits = tenant.create(limited("echo waits")).await;
        tenant.until(&waits, "it waits", |status| status.phase == Some(Phase::Queued)).await;
        let somebody = json!([{ "kind": "User", "name": "jane" }, { "kind": "Group", "name": "system:masters" }]);
        tenant.cluster_policy(json!({ "effect": "Restrict", "deny": { "requesters": somebody } })).await;
        let is_denied = |run: &ScriptRun| status(run).message.is_some_and(|message| message.contains("requester:"));
        let run = until(&tenant, "who creates the runs is denied", || limited("echo good"), is_denied).await;
        assert_refused(&run, &Reason::Denied);
        assert_refused(&tenant.finished(&waits).await, &Reason::Denied);
        assert_end(&tenant.finished(&runs).await, &Phase::Killed, &Reason::Denied);
        tenant.no_cluster_policy().await;
    })
    .await;
}

#[tokio::test]
async fn expressions_decide_on_who_asks_for_what_and_where_and_when() {
    tenant("rules", |tenant| async move {
        let rules = |rules: serde_json::Value| json!({ "rules": rules });
        tenant
            .policy_with(rules(json!([
                { "name": "own-team", "expression": "has(run.labels.team) && run.labels.team == tenant.labels['kubernetes.io/metadata.name']", "message": "Label your runs." },
                { "name": "admins", "expression": "'system:masters' in requester.groups && endUser == null" },
                { "name": "short", "expression": "run.timeoutSeconds <= 30 && run.memoryBytes <= 128 * 1024 * 1024" },
                { "name": "this-century", "expression": "now < timestamp('2100-01-01T00:00:00Z') && now.getFullYear('Asia/Tokyo') >= 2026" },
            ])))
            .await;
        assert_eq!(ready(&tenant).await, (ConditionStatus::True, PolicyReason::Valid, vec![]));
        let labelled = async |team: &str, script: Script| {
            let run = tenant.create_labelled(script, &[("team", team)]).await;
            tenant.finished(&run).await
        };
        let run = labelled(&tenant.name, limited("true")).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        let told = |name: &str| format!("SandboxPolicy/limited: rules[{name}]");
        let decisions = status(&run).decisions;
        for name in ["own-team", "admins", "short", "this-century"] {
            assert!(decisions.iter().any(|told_| told_.permission == format!("rule:{name}") && told_.rule == told(name)), "{decisions:?}");
        }
        let run = labelled("another", limited("true")).await;
        assert_refused(&run, &Reason::RuleNotSatisfied);
        assert_eq!(status(&run).message, Some(format!("Label your runs. ({})", told("own-team"))));
        let run = labelled(&tenant.name, limited("true").with(json!({ "timeoutSeconds": 31 }))).await;
        assert_eq!(status(&run).message, Some(format!("the run is not what the rule short demands ({})", told("short"))));
        // Labels of a run whose body the operator does not keep.
        let run = labelled(&tenant.name, limited("true").with(json!({ "script": { "input": "x".repeat(5000) } }))).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
    })
    .await;
}

#[tokio::test]
async fn an_expression_that_cannot_be_used_refuses_and_its_author_is_told() {
    tenant("rules-bad", |tenant| async move {
        let api: Api<SandboxPolicy> = Api::namespaced(tenant.client.clone(), &tenant.name);
        let told = || async {
            let conditions = api.get("limited").await.unwrap().status.unwrap_or_default().conditions;
            conditions.into_iter().find(|condition| condition.type_ == PolicyConditionType::RuleFailed)
        };
        let expression = "run.labels.team == 'a'";
        // Whether people must be asked is not known either: nobody is, and nothing runs.
        let trusting = [
            ("rules", json!({ "name": "trusting", "expression": expression }), "rules[trusting]"),
            ("approvals", json!({ "name": "careful", "when": expression }), "approvals[careful].when"),
        ];
        for (field, says, place) in trusting {
            tenant.policy_with(json!({ field: [says] })).await;
            assert_eq!(ready(&tenant).await.0, ConditionStatus::True);
            let run = tenant.run(limited("true")).await;
            assert_refused(&run, &Reason::RuleFailed);
            let expected = format!("a run was refused because {place} could not be evaluated on it: there is no team");
            eventually("the policy tells", || async {
                let message = told().await.map(|condition| condition.message);
                if message.as_ref() == Some(&expected) { Ok(()) } else { Err(message) }
            })
            .await;
        }
        tenant.policy_with(json!({ "rules": [{ "name": "wrong", "expression": "run.lables.team == 'a'" }] })).await;
        assert_eq!(ready(&tenant).await, (ConditionStatus::False, PolicyReason::Invalid, vec!["rules[wrong].expression".to_owned()]));
        assert_eq!(told().await, None, "it speaks of the newest generation");
        assert_refused(&tenant.run(limited("true")).await, &Reason::PolicyInvalid);
        // The deepest and the longest that the schema lets in.
        let sum = format!("([]{})", "+run.labels".repeat(17));
        let long = format!("({sum}+{sum}).all(k,size({sum}+{sum})>0)");
        for expression in [long, "(".repeat(1024), "!".repeat(1024), "[".repeat(512) + &"]".repeat(512), "a+".repeat(511) + "a"] {
            tenant.policy_with(json!({ "rules": [{ "name": "hostile", "expression": expression }] })).await;
            assert_eq!(ready(&tenant).await.0, ConditionStatus::False);
        }
        tenant.policy(json!({})).await;
        assert_end(&tenant.run(limited("true")).await, &Phase::Succeeded, &Reason::Succeeded);
    })
    .await;
}

/// The revisions of a policy: number, author and spec.
async fn revisions(client: &Client, namespace: &str, uid: &str) -> Vec<(i64, String, Value)> {
    let api: Api<ControllerRevision> = Api::namespaced(client.clone(), namespace);
    let list = api.list(&ListParams::default().labels(&format!("paddock.dev/policy-uid={uid}"))).await.unwrap();
    let of = |revision: ControllerRevision| {
        let author = revision.annotations().get("paddock.dev/author").cloned().unwrap_or_default();
        (revision.revision, author, revision.data.unwrap().0["spec"].clone())
    };
    let mut all: Vec<_> = list.items.into_iter().map(of).collect();
    all.sort_by_key(|(number, ..)| *number);
    all
}

#[tokio::test]
async fn what_a_policy_said_is_kept_with_who_wrote_it_and_cannot_be_changed() {
    tenant("history", |tenant| async move {
        let alice = tenant.bind("alice", "admin").await;
        let policies: Api<SandboxPolicy> = Api::namespaced(alice.clone(), &tenant.name);
        eventually("the role is in force", || async { policies.list(&ListParams::default()).await }).await;
        tenant.policy(json!({ "maxConcurrent": 1 })).await;
        ready(&tenant).await;
        let write = async |count: i64| {
            let patch = json!({ "spec": { "limits": { "maxConcurrent": count } } });
            policies.patch("limited", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
            ready(&tenant).await;
        };
        write(2).await;
        let uid = policies.get("limited").await.unwrap().metadata.uid.unwrap();
        let kept = revisions(&alice, &tenant.name, &uid).await;
        let told: Vec<_> =
            kept.iter().map(|(number, author, spec)| (*number, author.as_str(), spec["limits"]["maxConcurrent"].as_i64())).collect();
        assert_eq!(told, [(1, "kubernetes-admin", Some(1)), (2, "alice", Some(2))]);
        // Not even who administers the namespace can change, remove or add to it.
        let own: Api<ControllerRevision> = Api::namespaced(alice.clone(), &tenant.name);
        let name = own.list(&ListParams::default()).await.unwrap().items[0].name_any();
        assert!(own.delete(&name, &DeleteParams::default()).await.is_err());
        let patch = Patch::Merge(json!({ "revision": 9 }));
        assert!(own.patch(&name, &PatchParams::default(), &patch).await.is_err());
        // Nor can one of Kubernetes' controllers be made to, by labels on a StatefulSet.
        let controller = user("system:serviceaccount:kube-system:statefulset-controller").await;
        let revisions_of_others: Api<ControllerRevision> = Api::namespaced(controller, &tenant.name);
        let make = async |labels: Value| {
            let revision = json!({ "metadata": { "name": "forged-5d8f", "labels": labels }, "revision": 9, "data": { "spec": {} } });
            let dry = PostParams { dry_run: true, ..PostParams::default() };
            revisions_of_others.create(&dry, &serde_json::from_value(revision).unwrap()).await
        };
        make(json!({ "app": "x" })).await.unwrap();
        let denied = make(json!({ "paddock.dev/policy-uid": uid })).await.unwrap_err().to_string();
        assert!(denied.contains("the history of a policy is written by the operator"), "{denied}");
        // Labels alone are no revision, and the oldest ones go.
        let label = Patch::Merge(json!({ "metadata": { "labels": { "a": "b" } } }));
        policies.patch("limited", &PatchParams::default(), &label).await.unwrap();
        for count in 3..=23 {
            write(count).await;
        }
        let numbers: Vec<i64> = revisions(&alice, &tenant.name, &uid).await.iter().map(|(number, ..)| *number).collect();
        assert_eq!(numbers, (4..=23).collect::<Vec<_>>());
        policies.delete("limited", &DeleteParams::default()).await.unwrap();
        eventually("they go with the policy", || async {
            let left = revisions(&alice, &tenant.name, &uid).await;
            if left.is_empty() { Ok(()) } else { Err(left.len()) }
        })
        .await;
        // Those of the cluster are kept by the operator.
        tenant.cluster_policy(json!({ "effect": "Restrict", "limits": { "maxConcurrent": 5 } })).await;
        let cluster: Api<ClusterSandboxPolicy> = Api::all(tenant.client.clone());
        let uid = cluster.get(&tenant.name).await.unwrap().metadata.uid.unwrap();
        eventually("it is kept", || async {
            let kept = revisions(&tenant.client, harness::OPERATOR_NAMESPACE, &uid).await;
            if kept.len() == 1 { Ok(()) } else { Err(kept) }
        })
        .await;
        tenant.no_cluster_policy().await;
    })
    .await;
}
