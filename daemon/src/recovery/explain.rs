//! Why a job or a node is where it is, rule by rule: what each rule looked at, and whether it lets the job run or the node
//! work. Reads what the machine knows at this moment and decides nothing; what it tells is what the rules act on.

mod job;
mod node;

use super::{event::Now, machine::Machine};
use crate::model::{JobId, NodeId};

/// What one rule says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ruling {
    /// A stable word.
    pub rule: &'static str,
    /// False: this keeps the job from running, or from running better, or the node from work.
    pub holds: bool,
    /// One sentence.
    pub sentence: String,
}

impl Ruling {
    fn new(rule: &'static str, holds: bool, sentence: impl Into<String>) -> Self {
        Self { rule, holds, sentence: sentence.into() }
    }

    fn holds(rule: &'static str, sentence: impl Into<String>) -> Self {
        Self::new(rule, true, sentence)
    }

    fn keeps(rule: &'static str, sentence: impl Into<String>) -> Self {
        Self::new(rule, false, sentence)
    }
}

impl Machine {
    /// Why a job is where it is, in the order in which the rules are asked; `None` where there is no such job.
    #[must_use]
    pub fn explain_job(&self, now: Now, id: JobId) -> Option<Vec<Ruling>> {
        self.jobs.get(&id).map(|job| self.rulings_on_job(now, job))
    }

    /// Why a node does or does not work, in the order in which the rules are asked; `None` where there is no such node.
    #[must_use]
    pub fn explain_node(&self, now: Now, id: &NodeId) -> Option<Vec<Ruling>> {
        self.nodes.get(id).map(|node| self.rulings_on_node(now, node))
    }
}

/// "1 row", "2 rows".
fn plural(count: u64, one: &str, many: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {many}") }
}

/// "a, b, c", of any number of nodes.
fn names<'a>(nodes: impl IntoIterator<Item = &'a NodeId>) -> String {
    nodes.into_iter().map(NodeId::as_str).collect::<Vec<_>>().join(", ")
}
