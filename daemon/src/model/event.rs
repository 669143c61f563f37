//! Events: what happened, for a person to read afterwards.

use serde::{Deserialize, Serialize};

use super::ids::{JobId, NodeId};

/// How much it matters to a person.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The night goes as it should.
    Info,
    /// Something went wrong and was answered.
    Warning,
    /// Something needs a person.
    Error,
}

/// An event before the ledger gave it its number.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EventDraft {
    /// How much it matters.
    pub severity: Severity,
    /// A stable word for programs, for example `worker-started`.
    pub kind: String,
    /// The node it is about.
    pub node: Option<NodeId>,
    /// The job it is about.
    pub job: Option<JobId>,
    /// One sentence.
    pub message: String,
}

/// An event in the ledger.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EventRecord {
    /// Counts up from 1; older events are dropped, numbers are never used again.
    pub seq: u64,
    /// When, by the controller's clock.
    pub unix_ms: u64,
    /// What.
    #[serde(flatten)]
    pub event: EventDraft,
}
