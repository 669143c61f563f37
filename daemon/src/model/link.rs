//! Links between nodes, as a plan needs them.

use core::{fmt, net::IpAddr};

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

    /// Whether its ranks talk by RDMA, so that each start costs something that only a restart of the machine brings back.
    #[must_use]
    pub fn is_rdma(self) -> bool {
        matches!(self, Self::Jaccl | Self::JacclRing)
    }
}

/// What a link runs over. The order is that of preference.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkKind {
    /// RDMA over a Thunderbolt cable.
    Rdma,
    /// TCP over a Thunderbolt cable.
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
    /// For example `rdma_en5`, where it is a link for RDMA.
    pub rdma_device: Option<String>,
}

/// A way between two nodes that a gang may use. One cable is two of them, of which one can fail alone: RDMA needs more than TCP.
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

    /// Whether this is its name.
    #[must_use]
    pub fn is_called(&self, name: &LinkName) -> bool {
        self.kind == name.kind && self.a.node == name.a && self.b.node == name.b
    }

    /// What tells it from every other one.
    #[must_use]
    pub fn name(&self) -> LinkName {
        LinkName { a: self.a.node.clone(), b: self.b.node.clone(), kind: self.kind }
    }
}

/// Two nodes have one link of each kind at most.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct LinkName {
    /// The node that comes first by name.
    pub a: NodeId,
    /// The other one.
    pub b: NodeId,
    /// What it runs over.
    pub kind: LinkKind,
}

impl LinkName {
    /// Whether it ends at this node.
    #[must_use]
    pub fn is_at(&self, node: &NodeId) -> bool {
        self.a == *node || self.b == *node
    }

    /// Whether it joins these two, in either order.
    #[must_use]
    pub fn joins(&self, one: &NodeId, other: &NodeId) -> bool {
        (self.a == *one && self.b == *other) || (self.a == *other && self.b == *one)
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            LinkKind::Rdma => "RDMA over the cable",
            LinkKind::Thunderbolt => "the cable",
            LinkKind::Network | LinkKind::Loopback => "the link",
        };
        write!(f, "{what} of {} and {}", self.a, self.b)
    }
}
