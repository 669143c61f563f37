//! Restarts of machines that the controller asked for.

use serde::{Deserialize, Serialize};

/// What only a restart of a machine brings back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartCause {
    /// A killed worker left memory wired.
    StrandedMemory,
    /// The RDMA starts of the boot are spent.
    RdmaStartsUsedUp,
}

impl RestartCause {
    /// Stable, for programs: the reason of the condition `NeedsReboot`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::StrandedMemory => "StrandedMemory",
            Self::RdmaStartsUsedUp => "RdmaStartsUsedUp",
        }
    }

    /// For a sentence: restarted for …
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::StrandedMemory => "memory that a killed worker left wired",
            Self::RdmaStartsUsedUp => "RDMA starts that were used up",
        }
    }
}

/// A restart that was asked for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Restart {
    /// What for.
    pub cause: RestartCause,
    /// The boot that it was to end.
    pub boot_id: String,
    /// When.
    pub asked_unix_ms: u64,
    /// What became of it.
    pub outcome: RestartOutcome,
}

/// What became of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartOutcome {
    /// Nothing is known; with another boot, that the machine was restarted.
    Asked,
    /// Its agent has not done it: why.
    Refused(String),
    /// The machine did not go down.
    Stays,
    /// It went, and was not back in time.
    Missing,
}

impl RestartOutcome {
    /// Why it was not done, where that is certain.
    #[must_use]
    pub fn refusal(&self) -> Option<&str> {
        match self {
            Self::Refused(why) => Some(why),
            Self::Asked | Self::Stays | Self::Missing => None,
        }
    }

    /// Whether it certainly was not done.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        self.refusal().is_some()
    }
}
