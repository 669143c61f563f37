//! The spool's small file beside its segments.

use std::{fs, io, path::Path};

use serde::{Deserialize, Serialize};

use crate::durable;

const NAME: &str = "state.json";

/// What must outlive a power cut that takes the end of the newest segment with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// Everything up to here is acknowledged. Written now and then: after a restart some acknowledged results may be
    /// sent once more, and are dropped as doubles.
    pub(super) acked: u64,
    /// No number above this has been given out.
    pub(super) reserved: u64,
    /// The boot in which it was written.
    pub(super) boot_id: Option<String>,
    /// Whether everything was synced when it was written, because the agent ended in order.
    pub(super) clean: bool,
}

impl State {
    /// `None` when there is none, or none that can be read: the segments' names still tell the numbers.
    pub(super) fn read(dir: &Path) -> Option<Self> {
        let text = fs::read(dir.join(NAME)).ok()?;
        serde_json::from_slice(&text)
            .inspect_err(
                |error| tracing::error!(dir = %dir.display(), %error, "the spool's state cannot be read"),
            )
            .ok()
    }

    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        durable::replace_file(&dir.join(NAME), &serde_json::to_vec(self).map_err(io::Error::other)?)
    }
}
