//! Incidents: a fault, what was seen of it, what was done, and what it cost.

use serde::{Deserialize, Serialize};

use super::ids::{JobId, NodeId};

/// What went wrong. The stable words of the protocol are in [`Fault::word`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// A worker process ended without being asked.
    WorkerExited,
    /// A GPU timed out, hung, or was reset.
    GpuFault,
    /// A worker needed more memory than there was.
    OutOfMemory,
    /// Ranks of a gang lost one another, or did not meet.
    LinkFault,
    /// A link that a gang used does not carry any more.
    LinkDown,
    /// A link did not pass its test.
    LinkUnproven,
    /// A row ends every worker that generates it.
    PoisonRow,
    /// A node's GPU failed too often; it is left alone for a while.
    NodeQuarantined,
    /// A worker took no step within its budget.
    WorkerSilent,
    /// No word from a node.
    NodeSilent,
    /// An agent came back as a new process: its workers ended with the old one.
    AgentRestarted,
    /// The machine itself started anew.
    NodeRebooted,
    /// Only a restart of the machine brings back what it lacks.
    NeedsReboot,
    /// A node cannot load or run the job's model.
    ModelUnusable,
    /// Results cannot be stored.
    DiskFull,
    /// The controller had to repair its ledger at start.
    LedgerRepaired,
}

impl Fault {
    /// The stable word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::WorkerExited => "worker-exited",
            Self::GpuFault => "gpu-fault",
            Self::OutOfMemory => "out-of-memory",
            Self::LinkFault => "link-fault",
            Self::LinkDown => "link-down",
            Self::LinkUnproven => "link-unproven",
            Self::PoisonRow => "poison-row",
            Self::NodeQuarantined => "node-quarantined",
            Self::WorkerSilent => "worker-silent",
            Self::NodeSilent => "node-silent",
            Self::AgentRestarted => "agent-restarted",
            Self::NodeRebooted => "node-rebooted",
            Self::NeedsReboot => "needs-reboot",
            Self::ModelUnusable => "model-unusable",
            Self::DiskFull => "disk-full",
            Self::LedgerRepaired => "ledger-repaired",
        }
    }
}

/// A fault from its first sign to its end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Incident {
    /// Counts up from 1; never used again.
    pub id: u64,
    /// What kind.
    pub fault: Fault,
    /// Where.
    pub node: Option<NodeId>,
    /// Which job felt it.
    pub job: Option<JobId>,
    /// When it was noticed.
    pub opened_unix_ms: u64,
    /// How often it has happened in a row; the costs are of all times together.
    pub times: u32,
    /// When it was noticed last.
    pub last_unix_ms: u64,
    /// When it was over; `None` while it lasts.
    pub closed_unix_ms: Option<u64>,
    /// What was seen: one sentence.
    pub summary: String,
    /// What was done about it: one sentence.
    pub action: String,
    /// How it ended: one sentence; empty while it lasts.
    pub outcome: String,
    /// First error and the end of the log, at most 50 lines.
    pub evidence: Vec<String>,
    /// Rows that had to be given out again.
    pub rows_requeued: u64,
    /// Tokens that those rows did not have to generate again, thanks to checkpoints.
    pub tokens_saved: u64,
    /// Tokens of theirs that were in no checkpoint, as far as workers had told.
    #[serde(default)]
    pub tokens_lost: u64,
    /// From the last sign that all was well to the notice; of several times, the longest.
    #[serde(default)]
    pub noticed_after_ms: Option<u64>,
    /// From the notice to the first token of a new launch, loading included; of several times, the longest.
    #[serde(default)]
    pub first_token_after_ms: Option<u64>,
    /// Of that, how long the launch took to start and to load.
    #[serde(default)]
    pub start_ms: Option<u64>,
    /// How the job went on; empty while it has not.
    #[serde(default)]
    pub went_on_as: String,
}
