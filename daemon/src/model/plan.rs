//! How a job is to run.

use super::ids::NodeId;

/// How a job is spread over nodes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Mode {
    /// One worker a node, each with the whole model; the rows are split.
    Independent,
    /// A gang: each rank has some of the layers.
    Pipeline,
    /// A gang: each rank has a part of every layer.
    Tensor,
}

impl Mode {
    /// As in the protocol and on the command line.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Independent => "independent",
            Self::Pipeline => "pipeline",
            Self::Tensor => "tensor",
        }
    }
}

/// What each node of a job does, and why. A value: carrying it out is the recovery machine's business.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// How the job is spread.
    pub mode: Mode,
    /// The nodes that run a worker, in order of name.
    pub nodes: Vec<NodeId>,
    /// Why it is so: sentences, the most important first.
    pub reasons: Vec<String>,
}
