//! What is added to an observation: what this boot has been through.

use nightshift_proto::v1;
use tokio::sync::watch;

use crate::{gang::starts::MAX_STARTS_PER_BOOT, memory_debt::MemoryDebt, probe::Observation};

/// Of this boot.
#[derive(Debug, Clone)]
pub struct Boot {
    /// What killed workers may have left.
    pub memory_debt: MemoryDebt,
    /// RDMA starts so far.
    pub rdma_starts: watch::Receiver<u32>,
}

impl Boot {
    /// The observation for the controller.
    #[must_use]
    pub fn with(&self, observation: &Observation) -> v1::Observation {
        v1::Observation {
            memory_debt: Some(self.memory_debt.look(observation.memory.wired_bytes)),
            rdma_starts: Some(v1::RdmaStarts { used: *self.rdma_starts.borrow(), most: MAX_STARTS_PER_BOOT }),
            ..observation.to_proto()
        }
    }
}
