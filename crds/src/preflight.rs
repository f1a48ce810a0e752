//! What the text of a script shows before it runs, and what policies demand of it.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::open_enum::open_enum;
use crate::schema::{list_atomic, list_of_strings};

/// Modules of one script that are told; a script that imports more is [`Unclear::TooMuch`].
pub const MOST_IMPORTS: usize = 128;
/// Hosts that are told; a script that names more is [`Unclear::TooMuch`] too.
pub const MOST_HOSTS: usize = 64;
/// Bytes of all these names together: the status of each run holds them.
pub const MOST_BYTES: usize = 8 << 10;
/// Findings that are told one by one.
pub const MOST_FINDINGS: usize = 32;
/// Longest name of a module that is told, in bytes.
pub const LONGEST_NAME: usize = 128;
/// Longest name of a host, in bytes, as in DNS.
pub const LONGEST_HOST: usize = 253;

list_of_strings!(imports_schema, 128, 128);
list_of_strings!(hosts_schema, 64, 253);
list_atomic!(findings_schema, Finding, 32);
list_of_strings!(modules_schema, 256, 128, "pattern": "^[^\\s*]+$", "minLength": 1);

/// What a script is written in, so that it can be examined before it runs: `Python`, `JavaScript` or `TypeScript`. ClusterSandboxPolicies that allow and
/// offer a runtime must all say the same language of it, or none, and other policies nothing else.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Language {
    /// Python 3.
    Python,
    /// A module or a script of JavaScript.
    JavaScript,
    /// A module of TypeScript.
    TypeScript,
}

/// What policies demand of what the text of a script shows. It is no boundary: whoever wants to get past it does. What holds a script is its sandbox.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct PreflightRules {
    /// `Refuse`: a script that could not be examined does not run, be it that its runtime names no language, or that its text is no program of it. Of
    /// several policies the hardest. Built-in: `Allow`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "strictness_schema")]
    pub unclear: Option<Strictness>,
    /// `Refuse`: a script does not run whose text shows code that is made at run time, or other programs, where the run was not granted `dynamicCode` or
    /// `subprocess`. Of several policies the hardest. Built-in: `Allow`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "strictness_schema")]
    pub undeclared: Option<Strictness>,
    /// Modules that scripts may import, each with all that is in it: `json`, `os.path`, `node:fs`, `@acme/reports`. Every policy that has the list must
    /// name what a script imports; an empty list lets it import nothing. A script of which it is not known what it imports is refused: one that could not
    /// be examined, or shows code or names that are made at run time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "modules_schema")]
    pub imports: Option<Vec<String>>,
}

/// Without the description of the type, which would stand in place of that of the field.
fn strictness_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "string", "enum": ["Allow", "Refuse"] })
}

pub(crate) fn denied_imports_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
    modules_schema(generator)
}

/// What becomes of a run.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strictness {
    /// Nothing.
    Allow,
    /// It is refused.
    Refuse,
}

open_enum! {
    /// What came of an examination. None of the words says that a script is safe.
    pub enum PreflightVerdict {
        /// The text shows something that is told in `findings`.
        Findings,
        /// The text shows nothing of what is looked for.
        NoFindings,
        /// The text could not be examined: `unclear` says why.
        Unclear,
    }
}

open_enum! {
    /// Why a text could not be examined.
    pub enum Unclear {
        /// The runtime does not say what its scripts are written in.
        NoLanguage,
        /// It is no program of its language, or of a newer version of it.
        SyntaxError,
        /// It holds something by which people, parser or interpreter may read different programs: bytes that are no UTF-8, an encoding that it declares,
        /// marks of direction, a single carriage return, an archive at its end.
        Ambiguous,
        /// It imports more modules than are told, or holds URLs of more hosts, or their names are too long.
        TooMuch,
        /// Reading it took longer or more memory than it may, or broke the reader.
        TooCostly,
    }
}

open_enum! {
    /// What a text shows.
    pub enum FindingKind {
        /// Code that is made at run time, or that is reached by names made at run time.
        DynamicCode,
        /// A module whose name is made at run time.
        ComputedImport,
        /// Other programs, or processes.
        Subprocess,
        /// Code of the machine, past the interpreter.
        NativeCode,
    }
}

/// One thing that the text of a script shows.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What it is.
    pub kind: FindingKind,
    /// The line, from 1.
    #[schemars(range(min = 1))]
    pub line: i64,
    /// By what it was recognised: a name of the language or of a library.
    #[schemars(length(max = 64))]
    pub what: String,
}

/// What the text of a script shows.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Preflight {
    /// In one word.
    pub verdict: PreflightVerdict,
    /// What it was read as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<Language>,
    /// Why it could not be examined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unclear: Option<Unclear>,
    /// The same for people, with the place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub message: Option<String>,
    /// Modules that it imports by their names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "imports_schema")]
    pub imports: Vec<String>,
    /// Hosts of the URLs in its literal text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "hosts_schema")]
    pub hosts: Vec<String>,
    /// What else it shows: each name once, at its first place, the first 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "findings_schema")]
    pub findings: Vec<Finding>,
    /// It shows code, or names of attributes or modules, that are made at run time, or native code: what was read is not all that may run.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dynamic_code: bool,
    /// It shows other programs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub subprocess: bool,
}

impl Preflight {
    /// Nothing is known of the text, for this reason.
    pub fn unclear(language: Option<Language>, unclear: Unclear, message: impl Into<String>) -> Self {
        Self {
            verdict: PreflightVerdict::Unclear,
            language,
            unclear: Some(unclear),
            message: Some(message.into()),
            imports: Vec::new(),
            hosts: Vec::new(),
            findings: Vec::new(),
            dynamic_code: false,
            subprocess: false,
        }
    }

    /// Whether it is within what the schema of a status takes.
    pub fn fits(&self) -> bool {
        let is_plain = |text: &str| !text.chars().any(char::is_control);
        let are_short =
            |names: &[String], most, longest| names.len() <= most && names.iter().all(|name| name.len() <= longest && is_plain(name));
        are_short(&self.imports, MOST_IMPORTS, LONGEST_NAME)
            && are_short(&self.hosts, MOST_HOSTS, LONGEST_HOST)
            && self.imports.iter().chain(&self.hosts).map(String::len).sum::<usize>() <= MOST_BYTES
            && self.findings.len() <= MOST_FINDINGS
            && self.findings.iter().all(|finding| {
                finding.line >= 1 && finding.what.len() <= 64 && is_plain(&finding.what) && finding.kind.as_str().len() <= 64
            })
            && self.message.as_ref().is_none_or(|message| message.chars().count() <= 512 && is_plain(message))
            && self.verdict.as_str().len() <= 64
            && self.unclear.as_ref().is_none_or(|why| why.as_str().len() <= 64)
    }

    /// Of a runtime that names no language.
    pub fn not_examined() -> Self {
        Self::unclear(None, Unclear::NoLanguage, "no policy says what scripts of this runtime are written in")
    }
}

/// For people: `Findings: Subprocess (subprocess, line 1)`.
impl fmt::Display for Preflight {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.verdict)?;
        if let Some(message) = &self.message {
            write!(formatter, ": {message}")?;
        }
        for (index, finding) in self.findings.iter().enumerate() {
            write!(formatter, "{}{} ({}, line {})", if index == 0 { ": " } else { ", " }, finding.kind, finding.what, finding.line)?;
        }
        Ok(())
    }
}
