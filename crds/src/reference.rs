//! `docs/api.md`, made from the schemas and the enums.

use std::fmt::Write as _;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{JSONSchemaProps, JSONSchemaPropsOrArray};

use crate::conditions::{ConditionType, Phase, Reason};
use crate::diagnosis::{Check, CheckVerdict, DiagnosisConditionType, DiagnosisReason};
use crate::generate::crds;
use crate::policy_status::{PolicyConditionType, PolicyReason};
use crate::sandbox_pool::{PoolConditionType, PoolReason};

/// The whole page.
pub fn markdown() -> String {
    let mut page = String::from(
        "# API reference\n\nGroup `paddock.dev`, version `v1alpha1`. This page is made from the types by `make generate`.\n\n\
         `kubectl explain scriptrun.spec --recursive` tells the same.\n",
    );
    for (_, crd) in crds() {
        let names = &crd.spec.names;
        let short = names.short_names.as_deref().unwrap_or_default().join(", ");
        let _ = write!(page, "\n## {}\n\n{} Short name `{short}`, category `paddock`.\n", names.kind, scope(&crd.spec.scope));
        let Some(schema) = crd.spec.versions[0].schema.as_ref().and_then(|schema| schema.open_api_v3_schema.as_ref()) else {
            continue;
        };
        if let Some(description) = &schema.description {
            let _ = write!(page, "\n{description}\n");
        }
        page.push_str("\n| field | type | meaning |\n|---|---|---|\n");
        for (name, property) in schema.properties.iter().flatten().filter(|(name, _)| *name == "spec" || *name == "status") {
            rows(&mut page, name, property, Need::of(schema, name));
        }
        rules(&mut page, "", schema);
    }
    words(&mut page, "Phases", Phase::ALL.iter().map(|(value, text)| (value.as_str(), *text)));
    words(&mut page, "Conditions", ConditionType::ALL.iter().map(|(value, text)| (value.as_str(), *text)));
    words(&mut page, "Reasons", Reason::ALL.iter().map(|(value, text)| (value.as_str(), *text)));
    words(&mut page, "Conditions of policies", PolicyConditionType::ALL.iter().map(|(value, text)| (value.as_str(), *text)));
    words(&mut page, "Reasons of these conditions", PolicyReason::ALL.iter().map(|(value, text)| (value.as_str(), *text)));
    words(&mut page, "Conditions of pools", PoolConditionType::ALL.iter().map(|(value, text)| (value.as_str(), *text)));
    words(&mut page, "Reasons of this condition of pools", PoolReason::ALL.iter().map(|(value, text)| (value.as_str(), *text)));
    words(&mut page, "Checks", Check::ALL.iter().map(|(value, text)| (value.as_str(), *text)));
    words(&mut page, "Verdicts of checks", CheckVerdict::ALL.iter().map(|(value, text)| (value.as_str(), *text)));
    words(&mut page, "Conditions of a diagnosis", DiagnosisConditionType::ALL.iter().map(|(value, text)| (value.as_str(), *text)));
    words(&mut page, "Reasons of this condition", DiagnosisReason::ALL.iter().map(|(value, text)| (value.as_str(), *text)));
    page
}

fn scope(scope: &str) -> &'static str {
    if scope == "Namespaced" { "Namespaced." } else { "Cluster-wide." }
}

/// Whether a field has to be there.
#[derive(Clone, Copy)]
enum Need {
    Required,
    Optional,
}

impl Need {
    fn of(parent: &JSONSchemaProps, field: &str) -> Self {
        let is_required = parent.required.iter().flatten().any(|required| required == field);
        if is_required { Self::Required } else { Self::Optional }
    }
}

fn rows(page: &mut String, path: &str, schema: &JSONSchemaProps, need: Need) {
    let required = if matches!(need, Need::Required) { ", required" } else { "" };
    let description = schema.description.as_deref().unwrap_or_default().replace('\n', " ").replace('|', "\\|");
    let _ = writeln!(page, "| `{path}` | {}{required} | {} |", type_of(schema), description.trim());
    if path.contains("Selector") {
        return;
    }
    for (name, property) in schema.properties.iter().flatten() {
        rows(page, &format!("{path}.{name}"), property, Need::of(schema, name));
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &schema.items
        && items.properties.is_some()
    {
        for (name, property) in items.properties.iter().flatten() {
            rows(page, &format!("{path}[].{name}"), property, Need::of(items, name));
        }
    }
}

fn type_of(schema: &JSONSchemaProps) -> String {
    let mut name = match (&schema.type_, schema.x_kubernetes_int_or_string, schema.x_kubernetes_preserve_unknown_fields) {
        (_, Some(true), _) => "quantity".to_owned(),
        (None, _, Some(true)) => "any JSON".to_owned(),
        (Some(type_), ..) => type_.clone(),
        _ => "any".to_owned(),
    };
    match (schema.minimum, schema.maximum) {
        (Some(min), Some(max)) => _ = write!(name, ", {min} to {max}"),
        (Some(min), None) => _ = write!(name, ", at least {min}"),
        _ => {}
    }
    match (schema.min_length, schema.max_length) {
        (Some(min), Some(max)) if name == "string" => _ = write!(name, ", {min} to {max} characters"),
        (None, Some(max)) if name == "string" => _ = write!(name, ", at most {max} characters"),
        _ => {}
    }
    let words: Vec<String> = schema.enum_.iter().flatten().filter_map(|word| word.0.as_str()).map(|word| format!("`{word}`")).collect();
    if !words.is_empty() {
        let _ = write!(name, ", one of {}", words.join(", "));
    }
    if let Some(max) = schema.max_items {
        let _ = write!(name, ", at most {max}");
    }
    name
}

fn rules(page: &mut String, path: &str, schema: &JSONSchemaProps) {
    let mut lines = String::new();
    collect_rules(&mut lines, path, schema);
    if !lines.is_empty() {
        let _ = write!(page, "\nRules that the API server enforces:\n\n{lines}");
    }
}

fn collect_rules(lines: &mut String, path: &str, schema: &JSONSchemaProps) {
    for rule in schema.x_kubernetes_validations.iter().flatten() {
        let shown = if path.is_empty() { "the object" } else { path };
        let _ = writeln!(lines, "- `{shown}`: {}", rule.message.as_deref().unwrap_or(&rule.rule));
    }
    for (name, property) in schema.properties.iter().flatten() {
        let inner = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        collect_rules(lines, &inner, property);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &schema.items {
        collect_rules(lines, &format!("{path}[]"), items);
    }
}

fn words<'a>(page: &mut String, title: &str, entries: impl Iterator<Item = (&'a str, &'a str)>) {
    let _ = write!(page, "\n## {title}\n\n| word | meaning |\n|---|---|\n");
    for (word, text) in entries {
        let _ = writeln!(page, "| `{word}` | {} |", text.trim());
    }
}
