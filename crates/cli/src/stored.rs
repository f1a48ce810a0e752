//! JSON as the API server writes it: what a digest of an input is made of. Pure.

use serde_json::{Number, Value};

/// Names sorted, no white space, `<`, `>`, `&` and the two line separators of Unicode as escapes, numbers as Go's encoder has them.
pub(crate) fn as_stored(value: &Value) -> String {
    match value {
        Value::Null | Value::Bool(_) => value.to_string(),
        Value::Number(number) => self::number(number),
        Value::String(text) => string(text),
        Value::Array(items) => format!("[{}]", items.iter().map(as_stored).collect::<Vec<_>>().join(",")),
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| name.as_str());
            let parts = fields.into_iter().map(|(name, value)| format!("{}:{}", string(name), as_stored(value)));
            format!("{{{}}}", parts.collect::<Vec<_>>().join(","))
        }
    }
}

fn string(text: &str) -> String {
    let mut escaped = Value::from(text).to_string();
    for (plain, escape) in [("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"), ("\u{2028}", "\\u2028"), ("\u{2029}", "\\u2029")] {
        escaped = escaped.replace(plain, escape);
    }
    escaped
}

fn number(number: &Number) -> String {
    let Some(float) = number.as_f64().filter(|_| number.is_f64()) else { return number.to_string() };
    if float == 0.0 || (1e-6..1e21).contains(&float.abs()) {
        return float.to_string();
    }
    let text = format!("{float:e}");
    if float.abs() >= 1.0 { text.replace('e', "e+") } else { text }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn it_is_written_as_the_api_server_does() {
        let value = json!({ "b": [1, -1, 1.0, 1.5, 0.000_001, 1e-7, 1e21, 1e20, 18_446_744_073_709_551_615_u64], "a": "<h\u{e9}>&\u{2028}\n\u{1}", "c": { "z": null, "A": true } });
        assert_eq!(
            as_stored(&value),
            "{\"a\":\"\\u003ch\u{e9}\\u003e\\u0026\\u2028\\n\\u0001\",\"b\":[1,-1,1,1.5,0.000001,1e-7,1e+21,100000000000000000000,18446744073709551615],\"c\":{\"A\":true,\"z\":null}}"
        );
    }
}
