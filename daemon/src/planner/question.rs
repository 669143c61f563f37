//! What is asked of the planner about one model, and what it answers. Plain data.

use core::net::IpAddr;

use super::links::Network;
use crate::{
    fit::{Advice, ModelFacts, Stage, Verdict, Workload},
    model::{Backend, Link, LinkKind, Measurement, Mode, NodeId, Reason},
};

/// What a person may ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Wish {
    /// Whatever the rules say.
    #[default]
    Auto,
    /// One mode, and those below it on the ladder where it cannot be had.
    Prefer(Mode),
    /// One mode and no other.
    Only(Mode),
}

impl Wish {
    /// The mode that was asked for.
    #[must_use]
    pub fn asked_for(self) -> Option<Mode> {
        match self {
            Self::Auto => None,
            Self::Prefer(mode) | Self::Only(mode) => Some(mode),
        }
    }
}

/// A node that could take part.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// Its name.
    pub node: NodeId,
    /// What it has for a model.
    pub budget_bytes: u64,
    /// Networks, apart from cables, in which it can be met.
    pub networks: Vec<Network>,
}

/// What is to be decided.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The model.
    pub facts: &'a ModelFacts,
    /// What each worker, or each gang, is to carry. Its rows and prompt steps are a wish: halves of them are tried where
    /// all do not fit.
    pub load: Workload,
    /// What was asked for.
    pub wish: Wish,
    /// Nodes that may be used.
    pub candidates: &'a [Candidate],
    /// Links that may be used.
    pub links: &'a [Link],
    /// Of this model on this cluster.
    pub measurements: &'a [Measurement],
    /// Gangs there is work for.
    pub most_gangs: usize,
}

/// A rank of a gang.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RankPlan {
    /// Where it runs.
    pub node: NodeId,
    /// Its layers and what they need.
    pub stage: Stage,
    /// Where it listens for the rank before it (ring).
    pub ring_address: Option<IpAddr>,
    /// Where rank 0 is, seen from here; rank 0's own entry is empty.
    pub control_address: Option<IpAddr>,
    /// Devices towards every rank, `None` for itself and where there is none (RDMA).
    pub rdma_devices: Vec<Option<String>>,
}

/// One sharded worker: its ranks in order. Rank 0 has the last layers and the head.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GangPlan {
    /// Pipeline or tensor.
    pub mode: Mode,
    /// Over what.
    pub backend: Backend,
    /// What it computes over, the least of its links.
    pub link_kind: LinkKind,
    /// All links it uses: when one is lost, it is.
    pub links: Vec<Link>,
    /// Where ranks over RDMA arrange how they talk: an address of rank 0.
    pub coordinator: Option<IpAddr>,
    /// Rank 0 first.
    pub ranks: Vec<RankPlan>,
}

/// What was decided.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Choice {
    /// One worker with the whole model on each of these.
    Independent(Vec<(NodeId, Stage)>),
    /// These gangs.
    Gangs(Vec<GangPlan>),
    /// It cannot run.
    Refused {
        /// The best try: the part of each node that would have had one, which does not fit everywhere.
        best_try: Vec<(NodeId, Stage)>,
        /// How far off.
        verdict: Verdict,
        /// What would help.
        advice: Vec<Advice>,
    },
}

/// A mode that was looked at, and what became of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Alternative {
    /// Which.
    pub mode: Mode,
    /// Whether it was chosen.
    pub chosen: bool,
    /// Why, or why not.
    pub why: String,
}

/// The decision with everything that led to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// What was decided.
    pub choice: Choice,
    /// What each worker, or each gang, carries.
    pub load: Workload,
    /// Why, the most important first.
    pub reasons: Vec<Reason>,
    /// One for each mode.
    pub alternatives: Vec<Alternative>,
    /// The most rows that fit together in what was chosen, at the context asked for.
    pub largest_rows: u64,
    /// The largest context that fits in what was chosen, for the rows asked for.
    pub largest_context_tokens: u64,
}
