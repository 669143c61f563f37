//! How a job is to run.

use serde::{Deserialize, Serialize};

use super::{ids::NodeId, link::Backend};

/// How a job is spread over nodes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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

/// A reason, for a person and for a program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reason {
    /// Which rule spoke: a stable word.
    pub rule: &'static str,
    /// Which node it is about, if one.
    pub node: Option<NodeId>,
    /// One sentence.
    pub text: String,
}

impl Reason {
    /// About the plan as a whole.
    pub fn new(rule: &'static str, text: impl Into<String>) -> Self {
        Self { rule, node: None, text: text.into() }
    }

    /// About one node.
    pub fn of(rule: &'static str, node: &NodeId, text: impl Into<String>) -> Self {
        Self { rule, node: Some(node.clone()), text: text.into() }
    }
}

/// What each node of a job does, and why. A value: carrying it out is the recovery machine's business.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// How the job is spread.
    pub mode: Mode,
    /// What ranks talk over; `None` without ranks.
    pub backend: Option<Backend>,
    /// The nodes that run a worker, in order of name.
    pub nodes: Vec<NodeId>,
    /// Why it is so, the most important first.
    pub reasons: Vec<Reason>,
}
