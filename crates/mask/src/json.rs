//! Covering within JSON, value by value, so that it stays JSON.

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
        for (name, mut value) in std::mem::take(fields) {
            if self.is_secret_name(&name) && matches!(&value, Value::String(text) if !text.is_empty()) {
                value = Value::String(format!("[masked:{}]", Detector::Password.as_str()));
                *counts.entry(Detector::Password.as_str().to_owned()).or_default() += 1;
            }
            self.mask_json(&mut value, counts);
            let mut covered = name;
            self.mask_string(&mut covered, counts);
            // Two names may be the same once they are covered; neither value may be lost.
            let mut unique = covered.clone();
            let mut number = 1;
            while fields.contains_key(&unique) {
                number += 1;
                unique = format!("{covered} ({number})");
            }
            fields.insert(unique, value);
        }
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
            "password": {"kept": "x"},
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
            "password": {"kept": "x"},
            "masked": "[masked:Email]",
        });
        assert_eq!(value, expected);
        assert_eq!(counts, [("CardNumber".to_owned(), 1), ("Email".to_owned(), 3), ("Password".to_owned(), 1)].into());
    }
}
