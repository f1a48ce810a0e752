//! Whether an input satisfies its JSON Schemas.
//!
//! Both are hostile. A schema of a few hundred bytes can take for ever or all memory, by references that multiply. So a process of its own looks:
//! what it does not answer within its bounds is refused.

use std::process::ExitCode;
use std::time::Duration;

use jsonschema::{Draft, PatternOptions};
use paddock_confined::Bounds;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::bounded;
use crate::error::Error;
use crate::script_run::text::{cut, visible};

pub(crate) const BOUNDS: Bounds = Bounds {
    argument: "check-input",
    cpu_seconds: 1,
    memory: 64 << 20,
    stack: 8 << 20,
    wall: Duration::from_secs(30),
    // Script, arguments, input and schema of a run have at most a megabyte together; schemas of policies are of the same size at most.
    question: 8 << 20,
    answer: 1 << 20,
};
/// Violations that are told one by one.
const TOLD: usize = 64;
/// Violations that are counted.
const COUNTED: usize = 10_000;
const PATTERN_SIZE: usize = 1 << 20;

/// What is to be checked: JSON as text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Question {
    pub(crate) schemas: Vec<Schema>,
    pub(crate) input: String,
}

/// One schema, with who demands it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Schema {
    pub(crate) whose: String,
    pub(crate) text: String,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// The input satisfies all schemas, or there are none.
    Satisfies,
    /// It does not: the first places, and how many there are, as far as was counted.
    Violates { first: Vec<Place>, count: usize },
    /// A schema cannot be used.
    Unusable { whose: String, why: String },
    /// The input is nested too deeply to be looked at.
    TooDeep,
    /// It took longer or more memory than it may.
    TooCostly,
}

/// One violation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// JSON Pointer.
    pub(crate) path: String,
    /// Without the value.
    pub(crate) message: String,
}

/// Asks a process of its own.
pub(crate) async fn ask(question: &Question) -> Result<Answer, Error> {
    Ok(bounded::ask(&BOUNDS, question).await?.unwrap_or(Answer::TooCostly))
}

/// The checking process.
pub(crate) fn main() -> ExitCode {
    // The seed of its hash tables is from a file.
    let prepare = || drop(compile("true"));
    paddock_confined::serve(&BOUNDS, prepare, |question| check(&question))
}

fn check(question: &Question) -> Answer {
    // The parser gives up at 128 levels, and nothing else can be wrong: the API server has read it.
    let Ok(input) = serde_json::from_str::<Value>(&question.input) else {
        return Answer::TooDeep;
    };
    let (mut first, mut count) = (Vec::new(), 0);
    for schema in &question.schemas {
        let validator = match compile(&schema.text) {
            Ok(validator) => validator,
            Err(why) => return Answer::Unusable { whose: schema.whose.clone(), why },
        };
        for error in validator.iter_errors(&input).take(COUNTED) {
            count += 1;
            if first.len() < TOLD {
                let path = shown(error.instance_path().as_str(), 512);
                first.push(Place { path, message: shown(&error.masked().to_string(), 256) });
            }
        }
    }
    if count == 0 { Answer::Satisfies } else { Answer::Violates { first, count } }
}

fn compile(text: &str) -> Result<jsonschema::Validator, String> {
    let schema: Value = serde_json::from_str(text).map_err(|_| "it is nested too deeply".to_owned())?;
    let dialect = schema.get("$schema").map(|dialect| dialect.as_str().unwrap_or_default().trim_end_matches('#'));
    if dialect.is_some_and(|dialect| dialect != "https://json-schema.org/draft/2020-12/schema") {
        return Err("its $schema is not that of JSON Schema 2020-12".into());
    }
    let patterns = PatternOptions::regex().size_limit(PATTERN_SIZE).dfa_size_limit(PATTERN_SIZE);
    let options = jsonschema::options().with_draft(Draft::Draft202012).with_pattern_options(patterns).offline();
    options.build(&schema).map_err(|error| {
        let place = shown(error.instance_path().as_str(), 256);
        format!("at {place:?}: {}", shown(&error.to_string(), 300))
    })
}

fn shown(text: &str, limit: usize) -> String {
    cut(&visible(text.as_bytes()), limit).to_owned()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn answer(schema: &Value, input: &Value) -> Answer {
        let schema = Schema { whose: "inputSchema".into(), text: schema.to_string() };
        check(&Question { schemas: vec![schema], input: input.to_string() })
    }

    #[test]
    fn every_place_is_told_without_its_value() {
        let schema = json!({
            "type": "object",
            "properties": { "name": { "type": "string" }, "ages": { "type": "array", "items": { "type": "integer" } } },
            "required": ["id"],
        });
        let Answer::Violates { first, count } = answer(&schema, &json!({ "name": 4_242_424, "ages": [1, "secret", 3.5] })) else {
            panic!()
        };
        let mut paths: Vec<&str> = first.iter().map(|place| place.path.as_str()).collect();
        paths.sort_unstable();
        assert_eq!((paths, count), (vec!["", "/ages/1", "/ages/2", "/name"], 4));
        assert!(first.iter().all(|place| !place.message.contains("4242424") && !place.message.contains("secret")), "{first:?}");
        assert_eq!(answer(&schema, &json!({ "id": 1, "name": "x", "ages": [1] })), Answer::Satisfies);
    }

    #[rstest]
    #[case::remote(json!({ "$ref": "https://schemas.example/x" }))]
    #[case::file(json!({ "$ref": "file:///etc/passwd" }))]
    #[case::other_draft(json!({ "$schema": "http://json-schema.org/draft-07/schema#" }))]
    #[case::no_schema(json!({ "type": "number of things" }))]
    #[case::look_around(json!({ "pattern": "(?=x)y" }))]
    #[case::large_pattern(json!({ "pattern": "(a{1000}){1000}" }))]
    fn what_is_no_schema_of_ours_is_unusable(#[case] schema: Value) {
        let answer = answer(&schema, &json!("x"));
        assert!(matches!(answer, Answer::Unusable { .. }), "{answer:?}");
    }

    #[test]
    fn references_lead_within_the_schema() {
        let tree = json!({ "$ref": "#/$defs/node", "$defs": { "node": { "properties": { "left": { "$ref": "#/$defs/node" } }, "type": "object" } } });
        assert_eq!(answer(&tree, &json!({ "left": { "left": {} } })), Answer::Satisfies);
        assert!(matches!(answer(&tree, &json!({ "left": { "left": 1 } })), Answer::Violates { count: 1, .. }));
    }

    #[test]
    fn violations_without_end_are_counted_and_not_all_told() {
        let Answer::Violates { first, count } = answer(&json!({ "items": false }), &json!(vec![0; 1000])) else { panic!() };
        assert_eq!((first.len(), count), (TOLD, 1000));
    }

    #[test]
    fn input_deeper_than_a_parser_goes_is_told_as_such() {
        let question =
            Question { schemas: vec![Schema { whose: String::new(), text: "{}".into() }], input: "[".repeat(1000) + &"]".repeat(1000) };
        assert_eq!(check(&question), Answer::TooDeep);
    }
}
