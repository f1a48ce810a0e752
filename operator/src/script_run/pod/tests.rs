use super::super::fixtures::{a_run, settings, valid};
use super::*;
use crate::pool::render::{Owner, render_waiting};
use crate::pool::shape::Shape;
use paddock_policy::{GrantedDestination, Object};

const MAX_AGE: u32 = 3600;

fn rendered() -> Vec<Pod> {
    let mut run = a_run();
    run.spec.script.input = Some(json!({"a": 1}));
    let by_volume = |by_volume| Settings { runner_by_image_volume: by_volume, ..settings() };
    let mut given = valid(&run);
    given.grant.capabilities.objects =
        [(ObjectKind::Secret, "smtp"), (ObjectKind::ConfigMap, "prices"), (ObjectKind::PersistentVolumeClaim, "corpus")]
            .map(|(kind, name)| Object { kind, name: name.into() })
            .into();
    let owner = Owner { tenant: "team", pool: "python", pool_uid: "pool-uid", max_age_seconds: MAX_AGE };
    let waiting = render_waiting(owner, &Shape::of(&valid(&run).grant), ("sp-1", "KEY"), &by_volume(true));
    vec![
        render_pod(&valid(&run), &by_volume(true)),
        render_pod(&valid(&run), &by_volume(false)),
        render_pod(&given, &by_volume(true)),
        waiting,
    ]
}

/// The whole list of what a sandbox pod must be, held against every pod that can be rendered.
#[test]
fn every_pod_is_confined() {
    for pod in rendered() {
        let spec = pod.spec.clone().unwrap();
        assert_eq!(spec.runtime_class_name.as_deref(), Some("gvisor-nonet"));
        assert_eq!(spec.automount_service_account_token, Some(false));
        assert_eq!(spec.enable_service_links, Some(false));
        assert_eq!(spec.restart_policy.as_deref(), Some("Never"));
        let waits = pod.metadata.name.as_deref() == Some("sp-1");
        assert_eq!(spec.active_deadline_seconds, Some(60 + 10 + 5 + 5 + if waits { i64::from(MAX_AGE) + 300 } else { 0 }));
        assert_eq!(spec.termination_grace_period_seconds, Some(10));
        assert_eq!(spec.dns_policy.as_deref(), Some("None"));
        for host in [spec.host_network, spec.host_pid, spec.host_ipc, spec.share_process_namespace] {
            assert_ne!(host, Some(true));
        }
        assert!(spec.service_account_name.is_none() && spec.ephemeral_containers.is_none());
        let security = spec.security_context.unwrap();
        assert_eq!((security.run_as_non_root, security.run_as_user), (Some(true), Some(USER)));
        assert_eq!(security.seccomp_profile.unwrap().type_, "RuntimeDefault");
        for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
            let security = container.security_context.clone().unwrap();
            assert_eq!(security.allow_privilege_escalation, Some(false));
            assert_ne!(security.privileged, Some(true));
            assert_eq!(security.read_only_root_filesystem, Some(true));
            assert_eq!(security.run_as_non_root, Some(true));
            let capabilities = security.capabilities.unwrap();
            assert_eq!(capabilities.drop, Some(vec!["ALL".to_owned()]));
            assert!(capabilities.add.is_none());
            assert_eq!(security.seccomp_profile.unwrap().type_, "RuntimeDefault");
            let limits = container.resources.clone().unwrap().limits.unwrap();
            for resource in ["cpu", "memory", "ephemeral-storage"] {
                assert!(limits.contains_key(resource), "{resource}");
            }
            assert_eq!(container.termination_message_policy.as_deref(), Some("File"));
            assert!(container.env.is_none() && container.env_from.is_none() && container.ports.is_none());
            for mount in container.volume_mounts.iter().flatten() {
                let may_write = mount.name == "workspace" || container.name == "runner" || (waits && mount.name == "job");
                assert!(mount.read_only == Some(true) || may_write, "{} in {}", mount.name, container.name);
            }
        }
        for volume in spec.volumes.unwrap() {
            assert!(volume.host_path.is_none() && volume.projected.is_none());
            // Copies that the operator made, of what the run was granted.
            assert_eq!(volume.secret.is_some(), volume.name == "given-0");
            assert!(volume.secret.is_none_or(|secret| secret.secret_name.unwrap() == "sr-uid-1-0"));
            assert!(volume.persistent_volume_claim.is_none_or(|claim| claim.claim_name == "corpus" && claim.read_only == Some(true)));
            if volume.name == "workspace" {
                let scratch = volume.empty_dir.unwrap();
                assert_eq!(scratch.medium.as_deref(), Some("Memory"));
                assert!(scratch.size_limit.is_some());
            }
        }
        assert!(!pod.metadata.annotations.unwrap().keys().any(|key| key.starts_with("dev.gvisor")));
    }
}

/// Only what was granted something of the network has an interface, and only with the label by which its network policy finds it.
#[test]
fn a_pod_has_a_network_only_where_one_was_granted() {
    let with = |network: Vec<GrantedDestination>| {
        let mut run = valid(&a_run());
        run.grant.capabilities.network = network;
        let pod = render_pod(&run, &settings());
        (pod.spec.unwrap().runtime_class_name.unwrap(), pod.metadata.labels.unwrap().get(NETWORK).cloned())
    };
    assert_eq!(with(Vec::new()), ("gvisor-nonet".to_owned(), None));
    let to = paddock_destination::Destination::parse("api.example.com").unwrap();
    let granted = GrantedDestination { to, rule: String::new(), addresses: paddock_destination::ByName::default(), https: None };
    assert_eq!(with(vec![granted]), ("gvisor".to_owned(), Some(NETWORK_EGRESS.to_owned())));
}

#[test]
fn the_pod_as_yaml() {
    insta::assert_yaml_snapshot!("by_image_volume", rendered()[0]);
    insta::assert_yaml_snapshot!("by_init_container", rendered()[1]);
    insta::assert_yaml_snapshot!("with_what_it_is_given", rendered()[2]);
    insta::assert_yaml_snapshot!("that_waits", rendered()[3]);
}

fn stored(change: impl FnOnce(&mut Value)) -> Pod {
    let mut value = serde_json::to_value(&rendered()[0]).unwrap();
    let spec = &mut value["spec"];
    for (key, added) in [
        ("serviceAccountName", json!("default")),
        ("serviceAccount", json!("default")),
        ("schedulerName", json!("default-scheduler")),
        ("preemptionPolicy", json!("PreemptLowerPriority")),
        ("priority", json!(0)),
        (
            "tolerations",
            json!([{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]),
        ),
    ] {
        spec[key] = added;
    }
    spec.as_object_mut().unwrap().remove("hostNetwork");
    change(&mut value);
    serde_json::from_value(value).unwrap()
}

#[test]
fn what_the_api_server_adds_is_no_difference() {
    assert_eq!(difference(&rendered()[0], &stored(|_| ())), None);
}

#[test]
fn every_mutation_is_a_difference() {
    type Change = fn(&mut Value);
    let mutations: [(&str, Change); 12] = [
        ("sidecar", |pod| pod["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "sidecar", "image": "x"}))),
        ("init container", |pod| pod["spec"]["initContainers"] = json!([{"name": "init", "image": "x"}])),
        ("image", |pod| pod["spec"]["containers"][0]["image"] = json!("other")),
        ("environment", |pod| pod["spec"]["containers"][0]["env"] = json!([{"name": "A", "value": "b"}])),
        ("volume", |pod| pod["spec"]["volumes"].as_array_mut().unwrap().push(json!({"name": "x", "emptyDir": {}}))),
        ("mount", |pod| {
            pod["spec"]["containers"][0]["volumeMounts"].as_array_mut().unwrap().push(json!({"name": "x", "mountPath": "/x"}));
        }),
        ("runtime class", |pod| pod["spec"]["runtimeClassName"] = json!("runc")),
        ("service account", |pod| pod["spec"]["serviceAccountName"] = json!("admin")),
        ("token", |pod| pod["spec"]["automountServiceAccountToken"] = json!(true)),
        ("host network", |pod| pod["spec"]["hostNetwork"] = json!(true)),
        ("memory", |pod| pod["spec"]["containers"][0]["resources"]["limits"]["memory"] = json!("8Gi")),
        ("gVisor flag", |pod| pod["metadata"]["annotations"]["dev.gvisor.flag.debug"] = json!("true")),
    ];
    for (what, change) in mutations {
        assert!(difference(&rendered()[0], &stored(change)).is_some(), "{what}");
    }
}
