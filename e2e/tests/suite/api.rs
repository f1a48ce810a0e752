//! What the API server itself takes and refuses: schemas, rules, admission policies, roles.

use crate::harness::{self, Script, Tenant, admin, assert_refused, status, tenant, user};
use k8s_openapi::api::authorization::v1::ResourceAttributes;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::PartialObjectMeta;
use kube::{Client, ResourceExt as _};
use paddock_crds::{ConditionType, Phase, Reason, SandboxPolicy, ScriptRun};
use serde_json::{Value, json};

fn kind(kind: &str, plural: &str) -> ApiResource {
    ApiResource {
        group: "paddock.dev".into(),
        version: "v1alpha1".into(),
        api_version: "paddock.dev/v1alpha1".into(),
        kind: kind.into(),
        plural: plural.into(),
    }
}

fn runs(client: &Client, namespace: &str) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), namespace, &kind("ScriptRun", "scriptruns"))
}

fn dry() -> PostParams {
    PostParams { dry_run: true, ..PostParams::default() }
}

fn spec(change: impl FnOnce(&mut Value)) -> Value {
    let mut spec = json!({
        "policyRef": { "kind": "SandboxPolicy", "name": "default" },
        "script": { "runtime": "python", "source": { "inline": "print(1)" }, "input": { "a": 1, "b": [1, { "c": null }] }, "inputSchema": { "type": "object" } },
        "resources": { "memory": "64Mi" },
    });
    change(&mut spec);
    spec
}

fn object(kind_name: &str, name: &str, spec: impl Into<Value>) -> DynamicObject {
    let spec: Value = spec.into();
    serde_json::from_value(json!({ "apiVersion": "paddock.dev/v1alpha1", "kind": kind_name, "metadata": { "name": name }, "spec": spec }))
        .unwrap()
}

fn refusal(result: Result<DynamicObject, kube::Error>) -> Result<(), String> {
    match result {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) => Err(status.message.clone()),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn script_runs_are_checked() {
    tenant("api-run", |tenant| async move {
        type Change = fn(&mut Value);
        let accepted: [(&str, Change); 8] = [
            ("as it is", |_| ()),
            ("the largest script", |spec| spec["script"]["source"]["inline"] = json!("x".repeat(65536))),
            ("two-byte characters up to the bound", |spec| spec["script"]["source"]["inline"] = json!("ü".repeat(32768))),
            ("a key of a ConfigMap", |spec| spec["script"]["source"] = json!({ "configMapKeyRef": { "name": "a", "key": "b" } })),
            ("input of any kind", |spec| spec["script"]["input"] = json!("text")),
            ("a cluster policy", |spec| spec["policyRef"]["kind"] = json!("ClusterSandboxPolicy")),
            ("an integer quantity", |spec| spec["resources"]["cpu"] = json!(1)),
            ("a grace of zero", |spec| spec["gracePeriodSeconds"] = json!(0)),
        ];
        let api = runs(&tenant.client, &tenant.name);
        for (what, change) in accepted {
            let result = refusal(api.create(&dry(), &object("ScriptRun", "x", spec(change))).await);
            assert_eq!(result, Ok(()), "{what}");
        }
        let refused: [(&str, Change, &str); 17] = [
            ("no policy", |spec| _ = spec.as_object_mut().unwrap().remove("policyRef"), "policyRef"),
            ("another kind of policy", |spec| spec["policyRef"]["kind"] = json!("Policy"), "Unsupported value"),
            ("no script", |spec| _ = spec.as_object_mut().unwrap().remove("script"), "script"),
            ("no source", |spec| spec["script"]["source"] = json!({}), "exactly one of inline and configMapKeyRef"),
            ("two sources", |spec| spec["script"]["source"]["configMapKeyRef"] = json!({ "name": "a", "key": "b" }), "exactly one of"),
            ("an empty script", |spec| spec["script"]["source"]["inline"] = json!(""), "should be at least 1 chars"),
            ("one character too many", |spec| spec["script"]["source"]["inline"] = json!("x".repeat(65537)), "Too long"),
            ("too many bytes", |spec| spec["script"]["source"]["inline"] = json!("ü".repeat(32769)), "at most 65536 bytes"),
            ("a bad runtime", |spec| spec["script"]["runtime"] = json!("Python 3"), "should match"),
            ("an argument that is no text", |spec| spec["script"]["args"] = json!([1]), "string"),
            ("too many arguments", |spec| spec["script"]["args"] = json!(vec!["x"; 65]), "must have at most 64 items"),
            ("no quantity", |spec| spec["resources"]["memory"] = json!("much"), "positive quantity"),
            ("a quantity of zero", |spec| spec["resources"]["memory"] = json!("0"), "positive quantity"),
            ("a negative quantity", |spec| spec["resources"]["memory"] = json!(-1), "positive quantity"),
            ("no time", |spec| spec["timeoutSeconds"] = json!(0), "greater than or equal to 1"),
            ("too much time", |spec| spec["timeoutSeconds"] = json!(86401), "less than or equal to 86400"),
            ("a fraction of time", |spec| spec["timeoutSeconds"] = json!(1.5), "must be of type integer"),
        ];
        for (what, change, message) in refused {
            let result = refusal(api.create(&dry(), &object("ScriptRun", "x", spec(change))).await);
            assert!(result.as_ref().is_err_and(|text| text.contains(message)), "{what}: {result:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn only_cancel_and_time_to_live_can_be_changed() {
    tenant("api-fixed", |tenant| async move {
        let api = runs(&tenant.client, &tenant.name);
        let name = "fixed";
        api.create(&PostParams::default(), &object("ScriptRun", name, spec(|_| ()))).await.unwrap();
        let params = PatchParams { dry_run: true, ..PatchParams::default() };
        let refused = [
            ("policy", json!({ "policyRef": { "name": "other" } }), "policyRef is immutable"),
            ("source", json!({ "script": { "source": { "inline": "print(2)" } } }), "script is immutable"),
            ("input changed", json!({ "script": { "input": { "a": 2 } } }), "script is immutable"),
            ("input added", json!({ "script": { "input": { "z": 1 } } }), "script is immutable"),
            ("input removed", json!({ "script": { "input": { "a": null } } }), "script is immutable"),
            ("input swapped", json!({ "script": { "input": { "a": [1, { "c": null }], "b": 1 } } }), "script is immutable"),
            ("input deep", json!({ "script": { "input": { "b": [1, { "c": 0 }] } } }), "script is immutable"),
            ("schema changed", json!({ "script": { "inputSchema": { "type": "array" } } }), "script is immutable"),
            ("schema swapped", json!({ "script": { "inputSchema": { "type": null, "title": "object" } } }), "script is immutable"),
            ("schema removed", json!({ "script": { "inputSchema": null } }), "script is immutable"),
            ("arguments", json!({ "script": { "args": ["x"] } }), "script is immutable"),
            ("resources", json!({ "resources": { "memory": "65Mi" } }), "resources are immutable"),
            ("resources removed", json!({ "resources": null }), "resources are immutable"),
            ("capabilities", json!({ "capabilities": { "network": ["a.example"] } }), "capabilities are immutable"),
            ("time", json!({ "timeoutSeconds": 5 }), "timeoutSeconds is immutable"),
            ("grace", json!({ "gracePeriodSeconds": 5 }), "gracePeriodSeconds is immutable"),
        ];
        for (what, change, message) in refused {
            let result = refusal(api.patch(name, &params, &Patch::Merge(json!({ "spec": change }))).await);
            assert!(result.as_ref().is_err_and(|text| text.contains(message)), "{what}: {result:?}");
        }
        for change in [json!({ "ttlSecondsAfterFinished": 3600 }), json!({ "cancel": true })] {
            api.patch(name, &PatchParams::default(), &Patch::Merge(json!({ "spec": change }))).await.unwrap();
        }
        let result = refusal(api.patch(name, &params, &Patch::Merge(json!({ "spec": { "cancel": false } }))).await);
        assert!(result.is_err_and(|text| text.contains("cancel cannot be taken back")));
    })
    .await;
}

#[tokio::test]
async fn the_status_of_a_finished_run_is_frozen_even_for_the_administrator() {
    tenant("api-frozen", |tenant| async move {
        let run = tenant.run(Script::shell("exit 3")).await;
        for change in [
            json!({ "phase": "Succeeded" }),
            json!({ "result": { "exitCode": 0 } }),
            json!({ "conditions": [] }),
            json!({ "clocks": { "finished": null } }),
        ] {
            let result =
                tenant.runs().patch_status(&run.name_any(), &PatchParams::default(), &Patch::Merge(json!({ "status": change }))).await;
            let Err(kube::Error::Api(error)) = result else { panic!("{change} was taken") };
            assert!(error.message.contains("never changes"), "{}", error.message);
        }
        let result = tenant.runs().patch_status(&run.name_any(), &PatchParams::default(), &Patch::Merge(json!({ "status": null }))).await;
        assert!(result.is_err());
        let labelled = tenant.patch(&run, json!({ "metadata": { "labels": { "a": "b" } } })).await;
        assert_eq!(labelled.status, run.status);
    })
    .await;
}

#[tokio::test]
async fn policies_are_checked() {
    tenant("api-policy", |tenant| async move {
        let client = tenant.client.clone();
        let namespaced: Api<DynamicObject> = Api::namespaced_with(client.clone(), &tenant.name, &kind("SandboxPolicy", "sandboxpolicies"));
        let cluster: Api<DynamicObject> = Api::all_with(client, &kind("ClusterSandboxPolicy", "clustersandboxpolicies"));
        let rules = |runtime: Value, limits: Value| json!({ "runtimes": [runtime], "limits": limits });
        let good = json!({ "name": "python", "image": "a/b:c", "command": ["/bin/x", "-I"] });
        let cases = [
            (rules(good.clone(), json!({})), None),
            (rules(json!({ "name": "python" }), json!({ "maxConcurrent": 0 })), None),
            (rules(json!({ "name": "Python" }), json!({})), Some("should match")),
            (rules(json!({ "name": "x", "image": "a b" }), json!({})), Some("should match")),
            (rules(json!({ "name": "x", "command": ["python"] }), json!({})), Some("absolute path")),
            (rules(json!({ "name": "x", "command": [] }), json!({})), Some("absolute path")),
            (rules(good.clone(), json!({ "maxConcurrent": -1 })), Some("greater than or equal to 0")),
            (rules(good.clone(), json!({ "max": { "memory": "x" } })), Some("positive quantity")),
            (json!({ "runtimes": [good.clone(), good.clone()] }), Some("Duplicate value")),
            (json!({}), None),
        ];
        for (spec, expected) in cases {
            let result = refusal(namespaced.create(&dry(), &object("SandboxPolicy", "x", spec.clone())).await);
            assert_eq!(result.is_err(), expected.is_some(), "{spec}: {result:?}");
            assert!(expected.is_none_or(|text| result.as_ref().is_err_and(|message| message.contains(text))), "{spec}: {result:?}");
            let mut wide = spec.clone();
            wide["namespaceSelector"] = json!({});
            let result = refusal(cluster.create(&dry(), &object("ClusterSandboxPolicy", "x", wide)).await);
            assert_eq!(result.is_err(), expected.is_some(), "{spec}: {result:?}");
        }
        let unknown = json!({ "namespaceSelector": {}, "effect": "Maybe" });
        let unknown = refusal(cluster.create(&dry(), &object("ClusterSandboxPolicy", "x", unknown)).await);
        assert!(unknown.is_err_and(|message| message.contains("effect")));
        let without = refusal(cluster.create(&dry(), &object("ClusterSandboxPolicy", "x", rules(good, json!({})))).await);
        assert!(without.is_err_and(|message| message.contains("namespaceSelector")));
    })
    .await;
}

#[tokio::test]
async fn a_stamp_cannot_be_forged() {
    tenant("api-stamp", |tenant| async move {
        let api = runs(&tenant.client, &tenant.name);
        let forged = |annotations: Value| {
            let mut run = object("ScriptRun", "forged", spec(|_| ()));
            run.metadata.annotations = serde_json::from_value(annotations).unwrap();
            run
        };
        for annotations in [
            json!({ "paddock.dev/requester": "somebody" }),
            json!({ "paddock.dev/requester": "kubernetes-admin", "paddock.dev/requester-uid": "", "paddock.dev/requester-groups": "other" }),
            json!({ "paddock.dev/requester-groups": "system:masters" }),
        ] {
            let result = refusal(api.create(&PostParams::default(), &forged(annotations.clone())).await);
            assert!(result.as_ref().is_err_and(|text| text.contains("must not be given")), "{annotations}: {result:?}");
        }
        let run = tenant.create(Script::shell("true")).await;
        assert_eq!(run.annotations().get("paddock.dev/requester").map(String::as_str), Some("kubernetes-admin"));
        for stamp in ["requester", "requester-uid", "requester-groups"] {
            for change in [json!("somebody"), json!("system%3Amasters,other"), Value::Null] {
                let patch = json!({ "metadata": { "annotations": { format!("paddock.dev/{stamp}"): change } } });
                let changed = tenant.runs().patch(&run.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await;
                // An administrator who came with a certificate has no UID: none is stamped, and none can be taken away.
                let is_as_before = changed.as_ref().is_ok_and(|changed| changed.annotations() == run.annotations());
                assert!(changed.is_err() || (is_as_before && change.is_null()), "{stamp}: {change}");
            }
        }
    })
    .await;
}

/// An object as large as etcd takes has no room for a status.
#[tokio::test]
async fn metadata_of_a_run_is_bounded() {
    tenant("api-bounds", |tenant| async move {
        let run = tenant.create(Script::shell("true")).await;
        let labels = |count: usize| -> std::collections::BTreeMap<String, String> {
            (0..count).map(|number| (format!("l{number}"), "x".into())).collect()
        };
        let finalizers = |count: usize| -> Vec<String> { (0..count).map(|number| format!("example.com/f{number}")).collect() };
        let patch = |metadata: Value| {
            let params = PatchParams { dry_run: true, ..PatchParams::default() };
            let (runs, name) = (tenant.runs(), run.name_any());
            async move { runs.patch_metadata(&name, &params, &Patch::Merge(json!({ "metadata": metadata }))).await }
        };
        assert!(patch(json!({ "labels": labels(64) })).await.is_ok());
        assert!(patch(json!({ "finalizers": finalizers(16) })).await.is_ok());
        for metadata in [json!({ "labels": labels(65) }), json!({ "finalizers": finalizers(17) })] {
            let refused = patch(metadata.clone()).await;
            assert!(refused.is_err_and(|error| error.to_string().contains("at most 64 labels")), "{metadata}");
        }
        // Each manager of fields takes room of its own.
        let run = tenant.finished(&run).await;
        let runs: Api<PartialObjectMeta<ScriptRun>> = Api::namespaced(tenant.client.clone(), &tenant.name);
        let mut managers = 0;
        let refusal = loop {
            let body = json!({ "apiVersion": "paddock.dev/v1alpha1", "kind": "ScriptRun", "metadata": { "labels": { "a": "b" } } });
            let params = PatchParams::apply(&format!("manager-{managers}"));
            match runs.patch_metadata(&run.name_any(), &params, &Patch::Apply(body)).await {
                Ok(_) => managers += 1,
                Err(error) => break error.to_string(),
            }
            assert!(managers <= 64);
        };
        assert!(refusal.contains("64 managers of fields"), "{refusal}");
        // Also such a run can be let go of.
        tenant.runs().delete(&run.name_any(), &DeleteParams::default()).await.unwrap();
        harness::eventually("the run is gone", || async {
            runs.get_metadata_opt(&run.name_any()).await.unwrap().map_or(Ok(()), |run| Err(run.metadata.finalizers))
        })
        .await;
    })
    .await;
}

/// Gives `name` the stock role `edit` in the tenant namespace.
async fn editor(tenant: &Tenant, name: &str) -> Client {
    let client = tenant.bind(name, "edit").await;
    harness::eventually("the role is in force", || async { runs(&client, &tenant.name).list(&kube::api::ListParams::default()).await })
        .await;
    client
}

async fn may(client: &Client, verb: &str, group: &str, resource: &str, subresource: &str, namespace: &str) -> bool {
    let attributes = ResourceAttributes {
        namespace: Some(namespace.to_owned()).filter(|namespace| !namespace.is_empty()),
        verb: Some(verb.into()),
        group: Some(group.into()),
        resource: Some(resource.into()),
        subresource: Some(subresource.to_owned()).filter(|name| !name.is_empty()),
        ..ResourceAttributes::default()
    };
    let review = k8s_openapi::api::authorization::v1::SelfSubjectAccessReview {
        spec: k8s_openapi::api::authorization::v1::SelfSubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            ..Default::default()
        },
        ..Default::default()
    };
    let api: Api<k8s_openapi::api::authorization::v1::SelfSubjectAccessReview> = Api::all(client.clone());
    api.create(&PostParams::default(), &review).await.unwrap().status.unwrap().allowed
}

#[tokio::test]
async fn an_editor_of_a_tenant_namespace_has_no_hold_on_a_sandbox() {
    tenant("api-edit", |tenant| async move {
        let client = editor(&tenant, "mallory").await;
        let run = tenant.create(Script::shell("sleep 30")).await;
        tenant.until(&run, "Started", |status| status.is_true(&ConditionType::Started)).await;
        let pod = tenant.pod_of(&run).await.name_any();
        let sandbox = tenant.sandbox();
        for (verb, group, resource, subresource) in [
            ("get", "", "pods", ""),
            ("get", "", "pods", "log"),
            ("create", "", "pods", "exec"),
            ("get", "", "pods", "exec"),
            ("create", "", "pods", "attach"),
            ("get", "", "pods", "attach"),
            ("create", "", "pods", "ephemeralcontainers"),
            ("create", "", "pods", ""),
            ("delete", "", "pods", ""),
            ("patch", "", "pods", ""),
            ("create", "", "configmaps", ""),
            ("get", "", "configmaps", ""),
            ("patch", "", "configmaps", ""),
            ("create", "networking.k8s.io", "networkpolicies", ""),
            ("create", "rbac.authorization.k8s.io", "rolebindings", ""),
            ("update", "", "resourcequotas", ""),
        ] {
            assert!(!may(&client, verb, group, resource, subresource, &sandbox).await, "{verb} {resource}/{subresource}");
        }
        assert!(!may(&client, "update", "paddock.dev", "scriptruns", "status", &tenant.name).await);
        assert!(!may(&client, "create", "paddock.dev", "sandboxpolicies", "", &tenant.name).await);
        assert!(may(&client, "create", "paddock.dev", "scriptruns", "", &tenant.name).await);
        // The same once more by really trying.
        let pods: Api<Pod> = Api::namespaced(client.clone(), &sandbox);
        assert!(pods.attach(&pod, &kube::api::AttachParams::default()).await.is_err());
        assert!(pods.exec(&pod, ["id"], &kube::api::AttachParams::default()).await.is_err());
        assert!(pods.logs(&pod, &kube::api::LogParams::default()).await.is_err());
        let status = Patch::Merge(json!({ "status": { "phase": "Succeeded" } }));
        assert!(runs(&client, &tenant.name).patch_status(&run.name_any(), &PatchParams::default(), &status).await.is_err());
        // What he creates is stamped as his.
        let own = runs(&client, &tenant.name).create(&PostParams::default(), &object("ScriptRun", "his", spec(|_| ()))).await.unwrap();
        assert_eq!(own.annotations().get("paddock.dev/requester").map(String::as_str), Some("mallory"));
    })
    .await;
}

#[tokio::test]
async fn a_script_is_read_from_a_config_map_only_for_those_who_may_read_it() {
    tenant("api-source", |tenant| async move {
        let maps: Api<k8s_openapi::api::core::v1::ConfigMap> = Api::namespaced(tenant.client.clone(), &tenant.name);
        let map = serde_json::from_value(json!({ "metadata": { "name": "code" }, "data": { "main.sh": "echo from a map" } })).unwrap();
        maps.create(&PostParams::default(), &map).await.unwrap();
        let script = |key: &str| {
            let mut script = Script::shell("");
            script.0["script"]["source"] = json!({ "configMapKeyRef": { "name": "code", "key": key } });
            script
        };
        // Nobody gave Paddock the right to read ConfigMaps here.
        assert_refused(&tenant.run(script("main.sh")).await, &Reason::SourceForbidden);
        tenant.let_the_operator_read_sources().await;
        let run = tenant.run(script("main.sh")).await;
        assert_eq!(harness::stdout(&run), "echo from a map\n".replace("echo ", ""));
        assert_refused(&tenant.run(script("other.sh")).await, &Reason::SourceNotFound);
        // One that is deeper than a parser goes, in what the API server takes from anybody: it is read all the same.
        let fields = (0..200).fold(json!({}), |inner, _| json!({ "f:a": inner }));
        let managed = json!([{ "manager": "e2e", "operation": "Update", "apiVersion": "v1", "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": { "f:data": fields } }]);
        let deep = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "deep", "namespace": tenant.name, "managedFields": managed }, "data": { "main.sh": "echo deep" } });
        harness::kubectl(&["create", "--filename=-"], &deep.to_string()).unwrap();
        let mut of_the_deep = script("main.sh");
        of_the_deep.0["script"]["source"]["configMapKeyRef"]["name"] = json!("deep");
        assert_eq!(harness::stdout(&tenant.run(of_the_deep).await), "deep\n");
        // Somebody who may create runs and read no ConfigMap.
        tenant.role("blind", "scriptruns", &["create", "get", "list"]).await;
        let client = user("blind").await;
        harness::eventually("the role is in force", || async { runs(&client, &tenant.name).list(&kube::api::ListParams::default()).await })
            .await;
        let theirs = runs(&client, &tenant.name);
        let limited = json!({ "policyRef": { "kind": "SandboxPolicy", "name": "limited" } });
        let run = object("ScriptRun", "blind", script("main.sh").with(limited).0);
        let told = theirs.create(&PostParams::default(), &run).await.unwrap_err().to_string();
        assert!(told.contains("whoever creates a run must be allowed to get the ConfigMap with its script"), "{told}");
        // One who may, and loses the right while the run waits.
        tenant.policy_with(json!({ "suspend": "Queue" })).await;
        tenant.bind("blind", "view").await;
        harness::eventually("the run is taken", || async { theirs.create(&PostParams::default(), &run).await }).await;
        let blind = tenant.runs().get("blind").await.unwrap();
        tenant.until(&blind, "Queued", |status| status.phase == Some(Phase::Queued)).await;
        let bindings: Api<RoleBinding> = Api::namespaced(tenant.client.clone(), &tenant.name);
        let all = bindings.list(&kube::api::ListParams::default()).await.unwrap();
        let view = all.iter().find(|binding| binding.role_ref.name == "view").unwrap();
        bindings.delete(&view.name_any(), &DeleteParams::default()).await.unwrap();
        let theirs: Api<k8s_openapi::api::core::v1::ConfigMap> = Api::namespaced(client.clone(), &tenant.name);
        harness::eventually("they may not any more", || async {
            if theirs.get("code").await.is_err() { Ok(()) } else { Err("they may") }
        })
        .await;
        tenant.policy_with(json!({})).await;
        let blind = tenant.finished(&blind).await;
        assert_refused(&blind, &Reason::SourceForbidden);
        assert_eq!(status(&blind).message.unwrap(), "the requester may not read the ConfigMap code");
    })
    .await;
}

#[tokio::test]
async fn the_mark_of_a_sandbox_namespace_is_the_operators() {
    let client = admin().await;
    let api: Api<Namespace> = Api::all(client);
    let forged: Namespace = serde_json::from_value(json!({
        "metadata": { "name": "sbx-forged", "labels": { "paddock.dev/sandbox-of": "default" } }
    }))
    .unwrap();
    assert!(api.create(&dry(), &forged).await.is_err());
}

#[tokio::test]
async fn the_operators_account_can_do_nothing_outside_of_sandbox_namespaces() {
    let operator = user("system:serviceaccount:paddock-system:paddock-operator").await;
    for (verb, group, resource) in [
        ("get", "", "pods"),
        ("create", "", "pods"),
        ("get", "", "secrets"),
        ("get", "", "configmaps"),
        ("list", "", "configmaps"),
        ("update", "paddock.dev", "scriptruns"),
        ("create", "paddock.dev", "scriptruns"),
        ("update", "paddock.dev", "sandboxpolicies"),
        ("create", "rbac.authorization.k8s.io", "clusterrolebindings"),
        ("escalate", "rbac.authorization.k8s.io", "clusterroles"),
    ] {
        assert!(!may(&operator, verb, group, resource, "", "default").await, "{verb} {resource}");
        assert!(!may(&operator, verb, group, resource, "", "").await, "{verb} {resource}");
    }
    // RBAC lets it do these; the admission policies do not.
    let namespaces: Api<Namespace> = Api::all(operator.clone());
    let plain: Namespace = serde_json::from_value(json!({ "metadata": { "name": "sbx-x" } })).unwrap();
    assert!(namespaces.create(&dry(), &plain).await.is_err());
    let delete = kube::api::DeleteParams { dry_run: true, ..Default::default() };
    assert!(namespaces.delete("default", &delete).await.is_err());
    let binding: RoleBinding = serde_json::from_value(json!({
        "metadata": { "name": "x" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "paddock-sandbox" },
        "subjects": [{ "kind": "ServiceAccount", "name": "paddock-operator", "namespace": "paddock-system" }],
    }))
    .unwrap();
    let bindings: Api<RoleBinding> = Api::namespaced(operator, "kube-system");
    assert!(bindings.create(&dry(), &binding).await.is_err());
}

#[tokio::test]
async fn a_run_that_no_policy_allows_is_refused_with_the_reason() {
    tenant("api-none", |tenant| async move {
        let namespaces: Api<Namespace> = Api::all(tenant.client.clone());
        let refused = tenant.run(Script::shell("true").with(json!({ "policyRef": { "kind": "SandboxPolicy", "name": "missing" } }))).await;
        assert_refused(&refused, &Reason::PolicyNotFound);
        let refused = tenant.run(Script::shell("true").with(json!({ "script": { "runtime": "perl" } }))).await;
        assert_refused(&refused, &Reason::RuntimeNotAllowed);
        let refused = tenant.run(Script::shell("true").with(json!({ "resources": { "memory": "100Gi" } }))).await;
        assert_refused(&refused, &Reason::LimitExceeded);
        let refused = tenant.run(Script::shell("true").with(json!({ "capabilities": { "network": ["a.example"] } }))).await;
        assert_refused(&refused, &Reason::CapabilityRefused);
        assert_eq!(status(&refused).decisions.iter().filter(|decision| decision.permission == "network:a.example:443").count(), 1);
        let unlabel = json!({ "metadata": { "labels": { "paddock.dev/tenant": null } } });
        namespaces.patch(&tenant.name, &PatchParams::default(), &Patch::Merge(unlabel)).await.unwrap();
        harness::eventually("no policy selects the namespace", || async {
            let run = tenant.run(Script::shell("true")).await;
            let status = status(&run);
            let reason = status.condition(&ConditionType::Accepted).map(|condition| condition.reason.clone());
            if status.phase == Some(Phase::Refused) && reason == Some(Reason::NoClusterPolicy) { Ok(()) } else { Err(status.phase) }
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn who_wrote_a_policy_is_stamped_and_nobody_can_say_otherwise() {
    tenant("api-author", |tenant| async move {
        let (alice, bob) = (tenant.bind("alice", "admin").await, tenant.bind("bob", "admin").await);
        let policies = |client: &Client| -> Api<SandboxPolicy> { Api::namespaced(client.clone(), &tenant.name) };
        let forged = json!({ "paddock.dev/author": "mallory", "paddock.dev/author-uid": "7" });
        let policy: SandboxPolicy = serde_json::from_value(json!({
            "metadata": { "name": "limited", "annotations": forged }, "spec": { "runtimes": [{ "name": "shell" }] },
        }))
        .unwrap();
        harness::eventually("the role is in force", || async { policies(&alice).create(&PostParams::default(), &policy).await }).await;
        harness::eventually("the role is in force", || async { policies(&bob).get("limited").await }).await;
        let author = || async {
            let annotations = policies(&alice).get("limited").await.unwrap().metadata.annotations.unwrap_or_default();
            ["paddock.dev/author", "paddock.dev/author-uid"].map(|stamp| annotations.get(stamp).cloned())
        };
        let stamp = |name: &str| [Some(name.to_owned()), Some(String::new())];
        assert_eq!(author().await, stamp("alice"));
        let patch = |client: &Client, patch: Value| {
            let policies = policies(client);
            async move { policies.patch("limited", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap() }
        };
        // Whoever writes something else is not its author.
        patch(&bob, json!({ "metadata": { "labels": { "team": "x" }, "annotations": forged } })).await;
        assert_eq!(author().await, stamp("alice"));
        patch(&bob, json!({ "metadata": { "annotations": { "paddock.dev/author": null, "paddock.dev/author-uid": null } } })).await;
        assert_eq!(author().await, stamp("alice"));
        let mut whole = policies(&bob).get("limited").await.unwrap();
        whole.metadata.annotations = None;
        policies(&bob).replace("limited", &PostParams::default(), &whole).await.unwrap();
        assert_eq!(author().await, stamp("alice"));
        patch(
            &bob,
            json!({ "metadata": { "annotations": { "paddock.dev/author": "alice" } }, "spec": { "limits": { "maxConcurrent": 3 } } }),
        )
        .await;
        assert_eq!(author().await, stamp("bob"));
        // The status of a run tells who wrote the policies that decided on it.
        let run = tenant.run(Script::shell("true").with(json!({ "policyRef": { "kind": "SandboxPolicy", "name": "limited" } }))).await;
        let authors: Vec<_> =
            status(&run).policies.into_iter().filter(|policy| policy.name == "limited").map(|policy| policy.author).collect();
        assert_eq!(authors, [Some("bob".to_owned())]);
    })
    .await;
}

#[tokio::test]
async fn only_who_may_says_for_whom_a_run_is() {
    tenant("api-enduser", |tenant| async move {
        let editor = editor(&tenant, "an-editor").await;
        let spec = Script::shell("true").with(json!({ "endUser": { "username": "joe", "groups": ["trial"] } })).0;
        let create = |client: &Client| {
            let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &tenant.name, &kind("ScriptRun", "scriptruns"));
            let run = object("ScriptRun", "for-joe", spec.clone());
            async move { api.create(&PostParams::default(), &run).await }
        };
        let refused = refusal(create(&editor).await);
        assert!(refused.as_ref().is_err_and(|message| message.contains("impersonate-requester")), "{refused:?}");
        tenant.bind("an-editor", "paddock-impersonate-requester").await;
        harness::eventually("the role is in force", || create(&editor)).await;
        let changed = json!({ "spec": { "endUser": { "username": "somebody else" } } });
        let changed = runs(&editor, &tenant.name).patch("for-joe", &PatchParams::default(), &Patch::Merge(changed)).await;
        assert!(changed.is_err_and(|error| error.to_string().contains("endUser is immutable")));
        let run = tenant.runs().get("for-joe").await.unwrap();
        let run = tenant.finished(&run).await;
        assert_eq!(run.spec.end_user.as_ref().map(|user| user.username.as_str()), Some("joe"));
        assert_eq!(status(&run).requester.map(|requester| requester.username).as_deref(), Some("an-editor"));

        tenant.cluster_policy(json!({ "effect": "Restrict", "deny": { "requesters": [{ "kind": "Group", "name": "trial" }] } })).await;
        let denied = harness::eventually("the list is seen", || async {
            let api: Api<DynamicObject> = Api::namespaced_with(editor.clone(), &tenant.name, &kind("ScriptRun", "scriptruns"));
            let mut run = object("ScriptRun", "x", spec.clone());
            (run.metadata.name, run.metadata.generate_name) = (None, Some("for-joe-".into()));
            let name = api.create(&PostParams::default(), &run).await.unwrap().metadata.name.unwrap();
            let run = tenant.finished(&tenant.runs().get(&name).await.unwrap()).await;
            if status(&run).phase == Some(Phase::Refused) { Ok(run) } else { Err(status(&run).phase) }
        })
        .await;
        assert!(status(&denied).message.is_some_and(|message| message.starts_with("endUser:joe is denied")));
        tenant.no_cluster_policy().await;
    })
    .await;
}
