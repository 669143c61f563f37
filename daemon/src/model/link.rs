//! Links between nodes, as a plan needs them.

use core::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::ids::NodeId;

/// What the ranks of a gang talk over.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// TCP, each rank with its neighbours.
    Ring,
    /// RDMA, each rank with every other.
    Jaccl,
    /// RDMA, each rank with its neighbours.
    JacclRing,
}

impl Backend {
    /// As in the protocol and on the command line.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::Jaccl => "jaccl",
            Self::JacclRing => "jaccl-ring",
        }
    }
}

/// What a link runs over. The order is that of preference.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkKind {
    /// A Thunderbolt cable.
    Thunderbolt,
    /// A network that was allowed.
    Network,
    /// Two agents on one machine.
    Loopback,
}

/// One end of a link.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct LinkEnd {
    /// Whose it is.
    pub node: NodeId,
    /// For example `en5`.
    pub interface: String,
    /// The address on it.
    pub address: IpAddr,
    /// For example `rdma_en5`, where the link is ready for RDMA.
    pub rdma_device: Option<String>,
}

/// A way between two nodes that a gang may use.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Link {
    /// The end whose node comes first by name.
    pub a: LinkEnd,
    /// The other one.
    pub b: LinkEnd,
    /// What it runs over.
    pub kind: LinkKind,
}

impl Link {
    /// Whether it joins these two, in either order.
    #[must_use]
    pub fn joins(&self, one: &NodeId, other: &NodeId) -> bool {
        (self.a.node == *one && self.b.node == *other) || (self.a.node == *other && self.b.node == *one)
    }

    /// The end at this node.
    #[must_use]
    pub fn end_at(&self, node: &NodeId) -> Option<&LinkEnd> {
        [&self.a, &self.b].into_iter().find(|end| end.node == *node)
    }

    /// Whether both ends are ready for RDMA.
    #[must_use]
    pub fn has_rdma(&self) -> bool {
        self.a.rdma_device.is_some() && self.b.rdma_device.is_some()
    }
}
