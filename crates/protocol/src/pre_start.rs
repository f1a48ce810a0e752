//! An interpreter that begins before there is a script for it.

use serde::{Deserialize, Serialize};

/// What a sandbox of a pool starts while it waits: all that is known of a job before there is one. The job that comes must say the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PreStart {
    /// How it is told to wait.
    pub language: Language,
    /// See [`crate::Job::command`].
    pub command: Vec<String>,
    /// See [`crate::Job::extension`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extension: Option<String>,
    /// See [`crate::Job::file_bytes`].
    pub file_bytes: u64,
}

/// An interpreter that can wait for its script.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Language {
    /// `CPython` 3.11 or later.
    Python,
    /// Node.js 20.6 or later, for ECMAScript modules.
    Node,
}
