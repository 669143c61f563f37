//! What a node says of itself. Plain data.

use std::fmt;

use super::reboots::MayRestart;
use crate::{fit::NodeMemory, model::Thunderbolt, planner::Interface};

/// What an agent says of its machine when it connects.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeFacts {
    /// Identifies the boot.
    pub boot_id: String,
    /// Identifies the agent process.
    pub agent_instance_id: String,
    /// Why the Python runtime cannot be used; `None` when it can.
    pub runtime_problem: Option<String>,
    /// What it says of its memory.
    pub memory: NodeMemory,
    /// What it says of its interfaces.
    pub interfaces: Vec<Interface>,
    /// What it says of its Thunderbolt ports.
    pub thunderbolt: Thunderbolt,
    /// What this boot has been through.
    pub boot: BootFacts,
    /// Whether its agent would restart it.
    pub may_restart: MayRestart,
    /// Runtime and hardware: nodes of which these are equal compute alike. Empty when unknown.
    pub platform: String,
    /// What the ranks of a gang must have in common.
    pub versions: Versions,
    /// Whether its agent can try links.
    pub tests_links: bool,
}

/// Of what runs on a node. Empty when unknown.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Versions {
    /// MLX and mlx-lm.
    pub runtime: String,
    /// The build of macOS; that of another system is nothing to gangs.
    pub os: String,
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known: Vec<&str> =
            [self.os.as_str(), &self.runtime].into_iter().filter(|text| !text.is_empty()).collect();
        f.write_str(&known.join(", "))
    }
}

impl Versions {
    /// Whether they keep two nodes out of one gang; what is not known keeps nobody.
    #[must_use]
    pub fn keep_apart(&self, other: &Self, same_os: bool) -> bool {
        let differ = |one: &str, other: &str| !one.is_empty() && !other.is_empty() && one != other;
        differ(&self.runtime, &other.runtime) || (same_os && differ(&self.os, &other.os))
    }
}

/// What a boot of a node has been through.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BootFacts {
    /// Wired beyond the least of this boot while no worker runs; `None` while that is not known.
    pub stranded_bytes: Option<u64>,
    /// Workers that held a model when they were killed.
    pub kills_while_loaded: u32,
    /// Starts of ranks over RDMA.
    pub rdma_starts: u32,
    /// How many there may be; 0 where that is not known.
    pub most_rdma_starts: u32,
    /// Restarts of the GPU, by the counter of its driver.
    pub gpu_restarts: Option<u64>,
}

impl BootFacts {
    /// Whether no rank may be started over RDMA any more.
    #[must_use]
    pub fn rdma_is_used_up(&self) -> bool {
        self.most_rdma_starts > 0 && self.rdma_starts >= self.most_rdma_starts
    }
}
