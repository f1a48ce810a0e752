//! What a run could do that nobody wants, as a score with its reasons.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::open_enum::open_enum;
use crate::schema::list_atomic;

list_atomic!(reasons_schema, RiskPart, 16);

open_enum! {
    /// A score in one word.
    pub enum RiskLevel {
        /// 0 to 24.
        Low,
        /// 25 to 49.
        Medium,
        /// 50 to 74.
        High,
        /// 75 to 100.
        Critical,
    }
}

open_enum! {
    /// What adds to a score.
    pub enum RiskReason {
        /// It may connect to something.
        ReachesNetwork,
        /// It may connect to more than a few hosts and addresses that are each named: every name below one, a net, or more than 4 destinations.
        ReachesManyHosts,
        /// It may connect to addresses that are not public: a company's network, or the cluster's.
        ReachesInside,
        /// It is given Secrets.
        ReadsSecrets,
        /// The gateway adds Secrets to what it asks hosts: it does not hold them, and can do there what they allow.
        UsesSecrets,
        /// It is given ConfigMaps.
        ReadsData,
        /// It is given PersistentVolumeClaims.
        ReadsVolumes,
        /// It is given Secrets and may connect to something: what they hold can leave.
        CanSendSecrets,
        /// It is given ConfigMaps or PersistentVolumeClaims and may connect to something: what they hold can leave.
        CanSendData,
        /// It may run code that is made while it runs: what was read of the script is not all that may run.
        RunsDynamicCode,
        /// It may start other programs.
        StartsPrograms,
        /// Its text should have been examined and could not be.
        ScriptUnclear,
    }
}

/// How much a run could do that nobody wants, if its script were written for that: by what it was granted, never by what it is said to be for.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Risk {
    /// The points of the reasons together, at most 100.
    #[schemars(range(min = 0, max = 100))]
    pub score: i64,
    /// The same in one word.
    pub level: RiskLevel,
    /// What adds to it. Absent where nothing does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "reasons_schema")]
    pub reasons: Vec<RiskPart>,
}

/// One reason with its points.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RiskPart {
    /// What it is.
    pub reason: RiskReason,
    /// What it adds.
    #[schemars(range(min = 0, max = 100))]
    pub points: i64,
}

/// For people: `55 High: ReachesNetwork 10, ReadsSecrets 20, CanSendSecrets 25`.
impl fmt::Display for Risk {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.score, self.level)?;
        for (index, part) in self.reasons.iter().enumerate() {
            write!(formatter, "{}{} {}", if index == 0 { ": " } else { ", " }, part.reason, part.points)?;
        }
        Ok(())
    }
}
