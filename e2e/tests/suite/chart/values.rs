//! No value is without effect: each is set to another one that the schema takes, and the rendering must differ.

use serde_json::{Value, json};

use super::{helm, layout};

/// Everything that a switch turns on, so that what belongs to it has an effect.
fn all_on() -> Vec<String> {
    [
        r#"egress={"create":true,"clusterNets":["10.0.0.0/8"]}"#,
        r#"metrics={"serviceMonitor":{"create":true},"prometheusRule":{"create":true},"dashboard":{"create":true}}"#,
        r#"runtimeClasses={"create":true,"networkHandler":"gvisor"}"#,
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Nothing turned on, so that the switches themselves have one.
fn all_off() -> Vec<String> {
    [r#"egress={"clusterNets":["10.0.0.0/8"]}"#, "baseline.create=false", "doctor.create=false"].map(str::to_owned).to_vec()
}

/// The same as all where a webhook stamps, whose certificates cert-manager makes or not.
fn with_webhook(issuer: &str) -> Vec<String> {
    let mut values = all_on();
    values.push(format!(r#"admission={{"stamps":"Webhook","certManager":{{"issuer":{{"name":"{issuer}"}}}}}}"#));
    values.extend(["baseline.create=false".into(), "doctor.create=false".into()]);
    values
}

fn rendered(values: &[String]) -> Result<String, String> {
    helm(&values.iter().flat_map(|value| ["--set-json", value]).collect::<Vec<_>>())
}

/// The paths of all values, with what they are by default. What a user extends (lists, labels) is one value.
fn leaves(path: &str, value: &Value, all: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(fields) if !fields.is_empty() && !fields.keys().any(|key| key.contains('/')) => {
            for (key, value) in fields {
                leaves(&if path.is_empty() { key.clone() } else { format!("{path}.{key}") }, value, all);
            }
        }
        value => all.push((path.to_owned(), value.clone())),
    }
}

/// Another value that is legal in its place.
fn another(path: &str, value: &Value) -> Value {
    let last = path.rsplit('.').next().unwrap();
    match (path, last, value) {
        (_, _, Value::Bool(value)) => json!(!value),
        (_, _, Value::Number(number)) => json!(number.as_u64().unwrap() + 1),
        ("baseline.runtimes", ..) => json!([{ "name": "r", "image": "registry.example/r", "command": ["/r"] }]),
        ("baseline.capabilities", ..) => json!({ "subprocess": true }),
        ("baseline.input", ..) => json!({ "requireSchema": true }),
        ("baseline.output", ..) => json!({ "largeResult": "Store" }),
        ("baseline.rules", ..) => json!([{ "name": "r", "expression": "true" }]),
        ("baseline.approvals", ..) => json!([{ "name": "a", "when": "true", "count": 1 }]),
        ("networkPolicy.metricsFrom" | "networkPolicy.webhookFrom", ..) => json!([{ "ipBlock": { "cidr": "10.9.0.0/16" } }]),
        ("egress.clusterNets", ..) => json!(["10.0.0.0/9"]),
        ("egress.dnsConfig", ..) => json!({ "nameservers": ["10.96.0.10"] }),
        ("egress.dnsPolicy", ..) => json!("Default"),
        ("traces.endpoint", ..) => json!("http://collector:4318"),
        ("doctor.runtime.command", ..) => json!(["/bin/ash"]),
        ("doctor.clusterDomain", ..) => json!("example.internal"),
        ("resultStore.url" | "audit.url", ..) => json!("s3://bucket/prefix"),
        ("runtimeClasses.scheduling", ..) => json!({ "nodeSelector": { "a": "b" } }),
        ("runtimeClasses.overhead", ..) => json!({ "podFixed": { "memory": "64Mi" } }),
        ("admission.stamps", ..) => json!("Webhook"),
        ("admission.certManager.issuer.kind", ..) => json!("ClusterIssuer"),
        (_, "tag", _) => json!("9.9.9"),
        (_, "digest", _) => json!(format!("sha256:{}", "5e".repeat(32))),
        (_, "pullPolicy", _) => json!("Always"),
        (_, "imagePullPolicy", _) => json!("always"),
        (_, "delivery", _) => json!("image-volume"),
        (_, "logFormat", _) => json!("text"),
        (_, "logLevel", _) => json!("debug"),
        (_, "interval", _) => json!("31s"),
        (_, "imagePullSecrets", _) => json!([{ "name": "registry" }]),
        (_, "tolerations", _) => json!([{ "key": "k", "operator": "Exists" }]),
        (_, "affinity", _) => json!({ "nodeAffinity": {} }),
        (_, "topologySpreadConstraints", _) => json!([{ "maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule" }]),
        (_, "cpu", Value::String(_)) => json!("777m"),
        (_, "memory" | "scratch", Value::String(_)) => json!("333Mi"),
        (_, _, Value::Object(_)) => json!({ "a": "b" }),
        (_, _, Value::String(_)) => json!("another"),
        other => panic!("what else may be at {other:?}?"),
    }
}

#[test]
fn every_value_changes_what_is_rendered() {
    let file = std::fs::read_to_string(layout().clone.join("charts/paddock/values.yaml")).unwrap();
    let mut all = Vec::new();
    leaves("", &serde_saphyr::from_str(&file).unwrap(), &mut all);
    assert!(all.len() > 90, "{all:#?}");
    let bases = [all_on(), all_off(), with_webhook(""), with_webhook("ca")].map(|values| (rendered(&values).unwrap(), values));
    let without_effect: Vec<String> = all
        .iter()
        .filter_map(|(path, value)| {
            let changed = format!("{path}={}", another(path, value));
            let tried = bases.iter().map(|(before, values)| {
                rendered(&[values.as_slice(), std::slice::from_ref(&changed)].concat()).map(|after| after != *before)
            });
            let mut refusals = Vec::new();
            for answer in tried {
                match answer {
                    Ok(true) => return None,
                    Ok(false) => {}
                    Err(refusal) => refusals.push(refusal),
                }
            }
            Some(format!("{changed}: {refusals:?}"))
        })
        .collect();
    assert!(without_effect.is_empty(), "{without_effect:#?}");
}

/// Fields of a ClusterSandboxPolicy that the values do not take, below those that they do.
fn lacking(path: &str, kind: &Value, values: &Value, all: &mut Vec<String>) {
    if let (Some(fields), Some(known)) = (kind["properties"].as_object(), values["properties"].as_object()) {
        for (name, field) in fields {
            match known.get(name) {
                Some(known) => lacking(&format!("{path}.{name}"), field, known, all),
                None => all.push(format!("{path}.{name}")),
            }
        }
    }
    if kind["items"].is_object() && values["items"].is_object() {
        lacking(&format!("{path}[]"), &kind["items"], &values["items"], all);
    }
}

/// The baseline is a policy, and whoever writes it in values can say what one can say.
#[test]
fn the_baseline_takes_every_limit_and_capability_of_a_policy() {
    let clone = crate::harness::layout().clone;
    let crd: Value =
        serde_saphyr::from_str(&std::fs::read_to_string(clone.join("charts/paddock/crds/clustersandboxpolicies.yaml")).unwrap()).unwrap();
    let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(clone.join("charts/paddock/values.schema.json")).unwrap()).unwrap();
    let mut all = Vec::new();
    for field in ["limits", "capabilities"] {
        let (kind, values) = (&spec["properties"][field], &schema["properties"]["baseline"]["properties"][field]);
        assert!(kind["properties"].is_object() && values["properties"].is_object(), "{field}");
        lacking(field, kind, values, &mut all);
    }
    assert_eq!(all, Vec::<String>::new());
}
