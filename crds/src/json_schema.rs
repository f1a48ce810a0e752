//! JSON Schemas for editors, from the schemas of the CRDs.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Map, Value, json};

/// The schema of a kind as an editor takes it: it knows the words of Kubernetes' own, and refuses a field that there is not.
pub fn json_schema(crd: &CustomResourceDefinition) -> Value {
    let version = &crd.spec.versions[0];
    let schema = version.schema.as_ref().and_then(|schema| schema.open_api_v3_schema.as_ref());
    let mut schema = plain(&serde_json::to_value(schema).unwrap_or_default());
    let kind = &crd.spec.names.kind;
    let api_version = format!("{}/{}", crd.spec.group, version.name);
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        properties.insert("apiVersion".into(), json!({ "const": api_version }));
        properties.insert("kind".into(), json!({ "const": kind }));
        properties.insert("metadata".into(), json!({ "type": "object" }));
        properties.remove("status");
    }
    let mut whole = Map::from_iter([
        ("$schema".to_owned(), json!("http://json-schema.org/draft-07/schema#")),
        ("title".to_owned(), json!(kind)),
        ("required".to_owned(), json!(["apiVersion", "kind", "metadata", "spec"])),
    ]);
    if let Value::Object(fields) = schema {
        fields.into_iter().filter(|(name, _)| name != "required").for_each(|(name, value)| _ = whole.insert(name, value));
    }
    Value::Object(whole)
}

/// A schema without what Kubernetes adds to the words of JSON Schema.
fn plain(schema: &Value) -> Value {
    let Value::Object(fields) = schema else { return schema.clone() };
    if fields.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) {
        let mut either = kept(fields);
        either.insert("type".into(), json!(["integer", "string"]));
        return Value::Object(either);
    }
    let mut kept = kept(fields);
    if let Some(Value::Object(properties)) = fields.get("properties") {
        let properties = properties.iter().map(|(name, schema)| (name.clone(), plain(schema))).collect();
        kept.insert("properties".into(), Value::Object(properties));
        if fields.get("x-kubernetes-preserve-unknown-fields").is_none() {
            kept.insert("additionalProperties".into(), Value::Bool(false));
        }
    }
    for word in ["items", "additionalProperties"] {
        if let Some(inner @ Value::Object(_)) = fields.get(word) {
            kept.insert(word.into(), plain(inner));
        }
    }
    Value::Object(kept)
}

/// The words that an editor knows and that need no change.
fn kept(fields: &Map<String, Value>) -> Map<String, Value> {
    const WORDS: [&str; 13] = [
        "type",
        "description",
        "enum",
        "default",
        "required",
        "pattern",
        "minLength",
        "maxLength",
        "minimum",
        "maximum",
        "minItems",
        "maxItems",
        "title",
    ];
    fields.iter().filter(|(name, _)| WORDS.contains(&name.as_str())).map(|(name, value)| (name.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::crds;

    #[test]
    fn nothing_of_kubernetes_own_is_left() {
        for (_, crd) in crds() {
            let schema = json_schema(&crd);
            let text = schema.to_string();
            assert!(!text.contains("x-kubernetes") && !text.contains("nullable"), "{text}");
            assert_eq!(schema["additionalProperties"], false);
        }
        let run = json_schema(&crds()[0].1);
        assert_eq!(run["properties"]["kind"], json!({ "const": "ScriptRun" }));
        let input = &run["properties"]["spec"]["properties"]["script"]["properties"]["input"];
        assert_eq!((input.get("type"), input.get("additionalProperties")), (None, None), "any JSON");
    }
}
