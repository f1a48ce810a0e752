//! What the chart renders, switch by switch, and what it refuses before anything is installed.

use std::collections::BTreeSet;
use std::process::Command;

mod values;

use crate::harness::{kubectl, layout};
use paddock_e2e::cluster::command::run;
use paddock_e2e::cluster::component;
use serde_json::Value;

fn helm(arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(component::build_one(&layout(), "helm").unwrap());
    command.args(["template", "paddock"]).arg(layout().clone.join("charts/paddock")).args(["--namespace", "paddock-system"]);
    run(command.args(arguments)).map_err(|error| format!("{error:#}"))
}

fn template(value: &str) -> Result<String, String> {
    helm(&["--set-json", value])
}

fn documents(rendered: &str) -> BTreeSet<&str> {
    rendered.split("---\n").map(str::trim).filter(|document| !document.is_empty()).collect()
}

/// `Kind name` of a rendered object.
fn title(document: &str) -> String {
    let field = |name: &str| document.lines().find_map(|line| line.trim_start().strip_prefix(name)).unwrap_or_default().trim().to_owned();
    format!("{} {}", field("kind:"), field("name:"))
}

/// What a value changes in the rendered chart.
fn change(values: &[&str]) -> String {
    let plain = helm(&[]).unwrap();
    let arguments: Vec<&str> = values.iter().flat_map(|value| ["--set-json", *value]).collect();
    let changed = helm(&arguments).unwrap();
    let (before, after) = (documents(&plain), documents(&changed));
    let gone = before.difference(&after).map(|document| title(document));
    let stays: BTreeSet<String> = after.iter().map(|document| title(document)).collect();
    let gone: String = gone.filter(|title| !stays.contains(title)).map(|title| format!("# without {title}\n")).collect();
    let new: Vec<&str> = after.difference(&before).copied().collect();
    gone + &new.join("\n---\n")
}

#[test]
fn each_switch_changes_what_it_says() {
    let digest = format!("sha256:{}", "5e".repeat(32));
    let digests = ["image", "runner"].map(|image| format!("{image}.digest=\"{digest}\""));
    let switches: [(&str, &[&str]); 26] = [
        ("image", &[r#"image={"repository":"registry.example/operator","tag":"1","pullPolicy":"Always"}"#]),
        ("digests", &[&digests[0], &digests[1]]),
        ("pull_secrets", &[r#"imagePullSecrets=[{"name":"registry"}]"#]),
        ("no_crds", &["crds.upgrade=false"]),
        (
            "scheduling",
            &[
                r#"nodeSelector={"pool":"system"}"#,
                r#"tolerations=[{"key":"system","operator":"Exists"}]"#,
                r#"affinity={"nodeAffinity":{}}"#,
                r#"priorityClassName="system-cluster-critical""#,
            ],
        ),
        (
            "topology_spread",
            &[r#"topologySpreadConstraints=[{"maxSkew":1,"topologyKey":"rack","whenUnsatisfiable":"DoNotSchedule"}]"#, "replicas=3"],
        ),
        ("pod_metadata", &[r#"podLabels={"team":"platform"}"#, r#"podAnnotations={"note":"x"}"#]),
        ("service_account", &[r#"serviceAccount.annotations={"role":"bucket"}"#]),
        ("no_disruption_budget", &["podDisruptionBudget.create=false"]),
        ("no_network_policy", &["networkPolicy.create=false"]),
        ("no_metrics_from_anywhere", &["networkPolicy.metricsFrom=[]"]),
        ("no_service", &["metrics.service=false"]),
        ("service_monitor", &["metrics.serviceMonitor.create=true", r#"metrics.serviceMonitor.labels={"release":"prometheus"}"#]),
        (
            "runtime_class",
            &[
                "runtimeClasses.create=true",
                r#"runtimeClasses.scheduling={"nodeSelector":{"sandbox":"gvisor"},"tolerations":[{"key":"sandbox","operator":"Exists"}]}"#,
                r#"runtimeClasses.overhead={"podFixed":{"memory":"64Mi"}}"#,
            ],
        ),
        (
            "runtime_classes_of_both_kinds",
            &[
                r#"runtimeClasses={"create":true,"networkHandler":"runsc-net","scheduling":{"nodeSelector":{"sandbox":"gvisor"}}}"#,
                r#"egress={"create":true,"clusterNets":["10.0.0.0/8"]}"#,
            ],
        ),
        ("sandbox", &[r#"sandbox={"runtimeClass":"gvisor","imagePullPolicy":"always"}"#]),
        (
            "egress",
            &[r#"egress={"create":true,"clusterNets":["10.244.0.0/16","10.96.0.0/12"],"dnsConfig":{"nameservers":["10.96.0.10"]}}"#],
        ),
        ("result_store", &[r#"resultStore={"url":"s3://bucket/prefix","secretName":"keys"}"#]),
        ("audit", &[r#"audit={"url":"s3://bucket/prefix","secretName":"keys"}"#]),
        ("traces", &[r#"traces.endpoint="http://collector:4318""#]),
        ("no_drain", &["uninstall.drainSeconds=0"]),
        ("no_baseline", &["baseline.create=false"]),
        ("no_doctor", &["doctor.create=false"]),
        (
            "webhook",
            &[
                r#"admission.stamps="Webhook""#,
                "baseline.create=false",
                "doctor.create=false",
                r#"networkPolicy.webhookFrom=[{"ipBlock":{"cidr":"10.0.0.0/28"}}]"#,
            ],
        ),
        (
            "cert_manager",
            &[
                r#"admission={"stamps":"Webhook","certManager":{"issuer":{"name":"ca","kind":"ClusterIssuer"}}}"#,
                "baseline.create=false",
                "doctor.create=false",
            ],
        ),
        ("baseline_for_all", &["baseline.namespaceSelector.matchLabels=null"]),
    ];
    for (name, values) in switches {
        insta::assert_snapshot!(name, change(values));
    }
}

/// Where the API server can stamp by itself nobody has to be asked.
#[test]
fn what_stamps_is_what_the_cluster_serves() {
    for (version, stamps, other) in [
        ("1.35.4", "MutatingWebhookConfiguration", "MutatingAdmissionPolicy"),
        ("1.36.0", "MutatingAdmissionPolicy", "MutatingWebhookConfiguration"),
        ("v1.37.1-gke.5", "MutatingAdmissionPolicy", "MutatingWebhookConfiguration"),
    ] {
        let rendered =
            helm(&["--kube-version", version, "--set-json", "baseline.create=false", "--set-json", "doctor.create=false"]).unwrap();
        let has = |kind: &str| rendered.lines().any(|line| line == format!("kind: {kind}"));
        assert_eq!((has(stamps), has(other)), (true, false), "{version}");
    }
}

#[test]
fn alerts_and_dashboard_come_as_the_operators_of_others_want_them() {
    let rendered = helm(&["--set-json", "metrics.prometheusRule.create=true", "--set-json", "metrics.dashboard.create=true"]).unwrap();
    let of_kind = |kind: &str| -> Value {
        let document = documents(&rendered).into_iter().find(|document| title(document).starts_with(kind)).unwrap().to_owned();
        serde_saphyr::from_str(&document).unwrap()
    };
    let source = |file: &str| std::fs::read_to_string(layout().clone.join("charts/paddock/monitoring").join(file)).unwrap();
    let alerts: Value = serde_saphyr::from_str(&source("alerts.yaml")).unwrap();
    assert_eq!(of_kind("PrometheusRule")["spec"], alerts);
    let dashboard = of_kind("ConfigMap paddock-dashboard")["data"]["paddock.json"].as_str().unwrap().to_owned();
    assert_eq!(dashboard, source("dashboard.json"));
}

/// `manifests/install` is what the chart renders by default, for those who do not use Helm.
#[test]
fn the_rendered_installation_is_up_to_date() {
    let rendered = helm(&["--no-hooks", "--skip-tests"]).unwrap();
    let path = layout().clone.join("manifests/install/paddock.yaml");
    assert!(std::fs::read_to_string(&path).unwrap() == rendered, "{} is stale. Run: make generate", path.display());
}

#[test]
fn kustomize_takes_the_rendered_installation() {
    let folder = layout().clone.join("manifests/install");
    let built = kubectl(&["kustomize", &folder.to_string_lossy()], "").unwrap();
    let kinds: BTreeSet<String> = documents(&built).into_iter().map(title).collect();
    for expected in ["Deployment paddock-operator", "ClusterSandboxPolicy baseline", "Namespace paddock-system"] {
        assert!(kinds.contains(expected), "{kinds:?}");
    }
    assert_eq!(kinds.iter().filter(|kind| kind.starts_with("CustomResourceDefinition")).count(), 6);
}

/// Whoever copies the overlay has no image left that is not theirs.
#[test]
fn the_overlay_sets_every_image() {
    let folder = layout().clone.join("manifests/overlay");
    let built = kubectl(&["kustomize", &folder.to_string_lossy()], "").unwrap();
    let images: Vec<&str> = built.lines().filter(|line| line.contains("image: ") || line.contains("--runner-image=")).collect();
    assert!(images.len() == 9 && images.iter().all(|line| line.contains("registry.example/")), "{images:#?}");
    assert!(!built.contains("docker.io/") && documents(&built).into_iter().map(title).any(|title| title == "RuntimeClass gvisor-nonet"));
}

/// A real API server takes each object of it.
#[test]
fn a_cluster_takes_the_overlay() {
    let folder = layout().clone.join("manifests/overlay");
    let built = kubectl(&["kustomize", &folder.to_string_lossy()], "").unwrap();
    // The RuntimeClass is on the cluster already, with a handler that cannot be changed.
    let taken =
        kubectl(&["apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "--filename=-"], &built).unwrap();
    assert!(taken.contains("deployment.apps/paddock-operator serverside-applied"), "{taken}");
}

/// What is told after an installation are commands that fit it.
#[test]
fn the_notes_tell_the_next_three_commands() {
    let notes = |values: &[&str]| {
        let mut command = Command::new(component::build_one(&layout(), "helm").unwrap());
        command.args(["install", "paddock"]).arg(layout().clone.join("charts/paddock")).args([
            "--namespace",
            "paddock-system",
            "--dry-run=client",
        ]);
        let told = run(command.args(values.iter().flat_map(|value| ["--set-json", value]))).unwrap();
        told.split("NOTES:").nth(1).unwrap().to_owned()
    };
    let plain = notes(&[]);
    for expected in [
        "kubectl get runtimeclass gvisor-nonet",
        "helm test paddock --namespace paddock-system --logs",
        "kubectl label namespace default paddock.dev/tenant=true",
        "kubectl --namespace default create -f -",
        "print(\"hello\")",
    ] {
        assert!(plain.contains(expected), "{expected}\n{plain}");
    }
    let script = |command: &str| notes(&[&format!(r#"baseline.runtimes=[{{"name":"r","image":"x","command":["{command}"]}}]"#)]);
    assert!(script("/usr/local/bin/node").contains("console.log(\"hello\")") && script("/bin/sh").contains("          echo hello\n"));
    assert!(notes(&["baseline.create=false"]).contains("No ClusterSandboxPolicy was installed"));
    assert!(!notes(&["runtimeClasses.create=true"]).contains("kubectl get runtimeclass"));
}

/// What GitOps tools are given as values is what the chart takes.
#[test]
fn the_examples_for_gitops_hold_values_of_the_chart() {
    let read = |name: &str| std::fs::read_to_string(layout().clone.join("docs/gitops").join(name)).unwrap();
    let argo: Value = serde_saphyr::from_str(&read("argocd-application.yaml")).unwrap();
    let flux = read("flux-helmrelease.yaml");
    let flux: Value = serde_saphyr::from_str(flux.split("\n---\n").nth(1).unwrap()).unwrap();
    let platform = layout().clone.join("charts/paddock/platforms/containerd.yaml");
    assert!(
        [&argo["spec"]["source"]["helm"]["valueFiles"], &flux["spec"]["chart"]["spec"]["valuesFiles"]]
            .iter()
            .all(|files| files.to_string().contains("platforms/containerd.yaml"))
    );
    for values in [&argo["spec"]["source"]["helm"]["valuesObject"], &flux["spec"]["values"]] {
        let file = std::env::temp_dir().join(format!("paddock-gitops-{}.yaml", std::process::id()));
        std::fs::write(&file, values.to_string()).unwrap();
        let rendered = helm(&["--values", &platform.to_string_lossy(), "--values", &file.to_string_lossy()]);
        std::fs::remove_file(&file).unwrap();
        let rendered = rendered.unwrap();
        assert!(rendered.contains("registry.example/runner:") && rendered.contains("kind: RuntimeClass"));
    }
}

/// What the files for platforms set is in the schema, and changes what is rendered.
#[test]
fn the_values_of_each_platform_are_taken() {
    let folder = layout().clone.join("charts/paddock/platforms");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    let plain = helm(&[]).unwrap();
    for file in files {
        // What no file can know.
        let nets = ["--set", "egress.clusterNets={10.0.0.0/8}"];
        let rendered = helm(&[&["--values", &file.to_string_lossy()], &nets[..]].concat()).unwrap();
        let (before, after) = (documents(&plain), documents(&rendered));
        let changed: Vec<&str> = after.difference(&before).copied().collect();
        insta::assert_snapshot!(format!("platform_{}", file.file_stem().unwrap().to_string_lossy()), changed.join("\n---\n"));
    }
}

#[test]
fn values_that_cannot_work_are_refused_by_name() {
    let refused = [
        ("replicas=0", "/replicas"),
        ("logLevel=\"loud\"", "/logLevel"),
        ("startBudgetSeconds=1", "/startBudgetSeconds"),
        ("runner.delivery=\"scp\"", "/runner/delivery"),
        ("runner.digest=\"latest\"", "/runner/digest"),
        ("baseline.limits.max.memory=\"lots\"", "/baseline/limits/max/memory"),
        ("baseline.limits.max.memroy=\"1Gi\"", "memroy"),
        ("baseline.limits.maxTimeoutSeconds=0", "/baseline/limits/maxTimeoutSeconds"),
        ("baseline.runtimes=[]", "/baseline/runtimes"),
        ("baseline.runtimes=null", "runtimes"),
        ("baseline.runtimes=[{\"name\":\"python\",\"image\":\"x\",\"command\":[\"python\"]}]", "/baseline/runtimes/0/command/0"),
        ("sandbox.runtimeclass=\"x\"", "runtimeclass"),
        ("runtimeClasses.handler=\"Not a handler\"", "/runtimeClasses/handler"),
        ("metrics.serviceMonitor.intervall=\"30s\"", "intervall"),
        ("metrics={\"service\":false,\"serviceMonitor\":{\"create\":true}}", "metrics.serviceMonitor needs metrics.service"),
        ("tolerations=[{\"effect\":\"NoShedule\"}]", "/tolerations/0/effect"),
        ("resources.limit={}", "limit"),
        ("egress.create=true", "egress.clusterNets must list"),
        (r#"egress={"create":true,"clusterNets":["10.0.0.0"]}"#, "/egress/clusterNets/0"),
        ("sandbox.hasInterface=true", "sandbox.hasInterface needs egress.create"),
    ];
    for (value, named) in refused {
        let answer = template(value);
        assert!(answer.as_ref().is_err_and(|text| text.contains(named)), "{value}: {answer:?}");
    }
}

#[test]
fn values_that_work_are_taken() {
    for value in [
        "replicas=2",
        "logLevel=\"info,kube=debug\"",
        "baseline.limits.max.cpu=2",
        "baseline.create=false",
        r#"baseline.capabilities.network=[{"hosts":["*.example.com"],"ports":[443,8443],"addresses":["10.1.0.0/16"]},{"cidrs":["10.0.0.0/8"],"ports":[1]}]"#,
        "baseline.namespaceSelector.matchLabels=null",
    ] {
        let answer = template(value);
        assert!(answer.is_ok(), "{value}: {answer:?}");
    }
}
