//! One entry: an event in the structured JSON of CloudEvents 1.0.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::tile::MOST_BYTES_OF_AN_ENTRY;

/// What stands in the data of a record that would have been longer than an entry may be, beside the UID of the run.
pub const TOO_LARGE: &str = "tooLarge";

macro_rules! record_types {
    ($($(#[doc = $doc:literal])* $variant:ident = $text:literal,)*) => {
        /// What happened. The names are public API: a record keeps its meaning under its name, another meaning has another version.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum RecordType {
            $($(#[doc = $doc])* #[serde(rename = $text)] $variant,)*
        }

        impl RecordType {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// As it is written.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }
    };
}

record_types! {
    /// A replica of the operator goes on with the log: how many entries there were.
    LogOpened = "dev.paddock.audit.opened.v1",
    /// Records were lost before they were written: how many.
    RecordsLost = "dev.paddock.audit.lost.v1",
    /// The operator has seen a run for the first time.
    RunReceived = "dev.paddock.run.received.v1",
    /// What was decided of each permission that a run asks for, and by which rule of which policy.
    PermissionDecided = "dev.paddock.permission.decided.v1",
    /// As many people as the policies demand have approved the run.
    RunApproved = "dev.paddock.run.approved.v1",
    /// The run has a slot.
    RunAdmitted = "dev.paddock.run.admitted.v1",
    /// Its script may run from now on.
    RunStarted = "dev.paddock.run.started.v1",
    /// It is being ended.
    RunStopping = "dev.paddock.run.stopping.v1",
    /// Its result is stored.
    RunResultReady = "dev.paddock.run.result-ready.v1",
    /// It is over.
    RunFinished = "dev.paddock.run.finished.v1",
    /// It was deleted before it was over.
    RunDeleted = "dev.paddock.run.deleted.v1",
    /// The egress gateway let it go where it wanted to; the outcome tells what became of that.
    EgressGranted = "dev.paddock.egress.granted.v1",
    /// The egress gateway did not let it, or not any more.
    EgressRefused = "dev.paddock.egress.refused.v1",
    /// It has made so many connections that from now on only the first to each new destination is told, and the sums at its end.
    EgressCounted = "dev.paddock.egress.counted.v1",
}

/// One event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// 1.0.
    pub specversion: String,
    /// What happened.
    #[serde(rename = "type")]
    pub type_: RecordType,
    /// Who tells it: the log's origin.
    pub source: String,
    /// Unique within the source. A record with the same identifier is the same event told twice.
    pub id: String,
    /// When, in RFC 3339.
    pub time: String,
    /// The run, as NAMESPACE/NAME, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// What else is to be known.
    pub data: Value,
}

impl Record {
    /// `id` must be unique among what the source tells, and `time` be in RFC 3339.
    #[must_use]
    pub fn new(type_: RecordType, source: &str, id: String, time: String, subject: Option<String>, data: Value) -> Self {
        Self { specversion: "1.0".into(), type_, source: source.to_owned(), id, time, subject, data }
    }

    /// The entry: never longer than an entry may be. Data that does not fit is left out, and that is said.
    #[must_use]
    pub fn entry(&self) -> Vec<u8> {
        // A record is made of strings and JSON values: there is nothing in it that cannot be written.
        let entry = serde_json::to_vec(self).unwrap_or_default();
        if entry.len() <= MOST_BYTES_OF_AN_ENTRY {
            return entry;
        }
        let data = json!({ "uid": self.data["uid"], TOO_LARGE: entry.len() });
        serde_json::to_vec(&Self { data, ..self.clone() }).unwrap_or_default()
    }
}

/// By which texts are told apart without being told: nobody who reads the log can try out what a text may have been, and who has the salt can show
/// that it was this one.
pub struct Salt(hmac::Key);

impl std::fmt::Debug for Salt {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Salt")
    }
}

impl Salt {
    /// 32 random bytes.
    #[must_use]
    pub fn new(bytes: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    /// HMAC-SHA256 of the text.
    #[must_use]
    pub fn hash(&self, text: &[u8]) -> String {
        format!("hmac-sha256:{}", STANDARD.encode(hmac::sign(&self.0, text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(data: Value) -> Record {
        Record::new(RecordType::RunStarted, "origin", "1".into(), "2026-01-01T00:00:00Z".into(), Some("team/run".into()), data)
    }

    #[test]
    fn an_entry_reads_back_and_has_the_fields_of_cloud_events() {
        let record = record(json!({ "a": 1 }));
        assert_eq!(serde_json::from_slice::<Record>(&record.entry()).unwrap(), record);
        let raw: Value = serde_json::from_slice(&record.entry()).unwrap();
        assert_eq!((&raw["specversion"], &raw["type"]), (&json!("1.0"), &json!("dev.paddock.run.started.v1")));
        for type_ in RecordType::ALL {
            assert_eq!(serde_json::to_value(type_).unwrap(), json!(type_.as_str()));
        }
    }

    #[test]
    fn data_that_does_not_fit_is_left_out() {
        let entry = record(json!({ "uid": "u", "x": "x".repeat(70_000) })).entry();
        assert!(entry.len() < 1000);
        let read: Record = serde_json::from_slice(&entry).unwrap();
        assert_eq!((read.id.as_str(), read.data[TOO_LARGE].as_u64() > Some(70_000)), ("1", true));
        assert_eq!(read.data["uid"], "u");
    }

    #[test]
    fn a_hash_is_of_the_text_and_of_the_salt() {
        let (one, other) = (Salt::new(&[1; 32]), Salt::new(&[2; 32]));
        assert_eq!(one.hash(b"a"), one.hash(b"a"));
        assert_ne!(one.hash(b"a"), one.hash(b"b"));
        assert_ne!(one.hash(b"a"), other.hash(b"a"));
    }
}
