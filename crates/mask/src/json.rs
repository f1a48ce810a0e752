//! Covering within JSON, value by value, so that it stays JSON.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::Masker;
use crate::detector::Detector;
use crate::text::{Counts, Cut};

impl Masker {
    /// Covers what is found in the strings, names and numbers of `value`, and adds to `counts`. A number of which something is covered becomes
    /// a string. The depth of `value` must be bounded by the caller.
    pub fn mask_json(&self, value: &mut Value, counts: &mut Counts) {
        match value {
            Value::String(text) => self.mask_string(text, counts),
            Value::Number(number) => {
                let mut text = number.to_string();
                let before = text.len();
                self.mask_string(&mut text, counts);
                if text.len() != before || text.starts_with("[masked") {
                    *value = Value::String(text);
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.mask_json(item, counts)),
            Value::Object(fields) => self.mask_fields(fields, counts),
            Value::Null | Value::Bool(_) => {}
        }
    }

    fn mask_fields(&self, fields: &mut Map<String, Value>, counts: &mut Counts) {
        let mut renamed = Renamed::default();
        for (name, mut value) in std::mem::take(fields) {
            if self.is_secret_name(&name) {
                cover_strings(&mut value, counts);
            }
            self.mask_json(&mut value, counts);
            let mut covered = name;
            self.mask_string(&mut covered, counts);
            renamed.insert(covered, value);
        }
        *fields = renamed.into_fields();
    }

    fn mask_string(&self, text: &mut String, counts: &mut Counts) {
        let masked = self.mask(text.as_bytes(), Cut::default());
        let whole = masked.whole();
        if !whole.counts.is_empty() {
            *text = String::from_utf8_lossy(whole.text).into_owned();
            for (rule, count) in whole.counts {
                *counts.entry(rule).or_default() += count;
            }
        }
    }
}

/// Covers a string, and the strings of a list.
fn cover_strings(value: &mut Value, counts: &mut Counts) {
    match value {
        Value::String(text) if !text.is_empty() => {
            *text = format!("[masked:{}]", Detector::Password.as_str());
            *counts.entry(Detector::Password.as_str().to_owned()).or_default() += 1;
        }
        Value::Array(items) => items.iter_mut().filter(|item| !item.is_object()).for_each(|item| cover_strings(item, counts)),
        _ => {}
    }
}

/// Fields whose names were changed. Two names may have become the same, and neither value may be lost: the second gets a number. It takes
/// time in proportion to the fields, however many of them are alike.
#[derive(Debug, Default)]
pub struct Renamed {
    fields: Map<String, Value>,
    /// The last number given to each name.
    numbers: HashMap<String, u64>,
}

impl Renamed {
    /// Adds a field.
    pub fn insert(&mut self, name: String, value: Value) {
        if !self.fields.contains_key(&name) {
            self.fields.insert(name, value);
            return;
        }
        let number = self.numbers.entry(name.clone()).or_insert(1);
        let unique = loop {
            *number += 1;
            let unique = format!("{name} ({number})");
            if !self.fields.contains_key(&unique) {
                break unique;
            }
        };
        self.fields.insert(unique, value);
    }

    /// All fields.
    pub fn into_fields(self) -> Map<String, Value> {
        self.fields
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_stays_json_and_nothing_is_lost() {
        let masker = Masker::new(Detector::ALL.into(), &[], &[]).unwrap();
        let mut counts = Counts::new();
        let mut value = json!({
            "mail": ["write to jane@example.com", true, null],
            "card": 4_111_111_111_111_111_u64,
            "n": 12.5,
            "a@example.com": 1,
            "b@example.com": 2,
            "db_password": "hunter2",
            "secret": ["hunter2", ["hunter3"], {"kept": "y"}],
            "password": {"kept": "x"},
            "secretKey": "hunter4",
            "refresh_token": "hunter5",
            "nextToken": "kept",
            "masked": "[masked:Email]",
        });
        masker.mask_json(&mut value, &mut counts);
        let expected = json!({
            "mail": ["write to [masked:Email]", true, null],
            "card": "[masked:CardNumber]",
            "n": 12.5,
            "[masked:Email]": 1,
            "[masked:Email] (2)": 2,
            "db_password": "[masked:Password]",
            "secret": ["[masked:Password]", ["[masked:Password]"], {"kept": "y"}],
            "password": {"kept": "x"},
            "secretKey": "[masked:Password]",
            "refresh_token": "[masked:Password]",
            "nextToken": "kept",
            "masked": "[masked:Email]",
        });
        assert_eq!(value, expected);
        assert_eq!(counts, [("CardNumber".to_owned(), 1), ("Email".to_owned(), 3), ("Password".to_owned(), 5)].into());
    }

    #[test]
    fn names_that_become_alike_take_time_in_proportion() {
        let mut renamed = Renamed::default();
        for number in 0..200_000 {
            renamed.insert("x".into(), number.into());
        }
        let fields = renamed.into_fields();
        assert_eq!((fields.len(), fields.get("x (200000)")), (200_000, Some(&Value::from(199_999))));
        let mut renamed = Renamed::default();
        for name in ["x", "x (2)", "x", "x"] {
            renamed.insert(name.into(), Value::Null);
        }
        assert_eq!(renamed.into_fields().keys().collect::<Vec<_>>(), ["x", "x (2)", "x (3)", "x (4)"]);
    }
}
