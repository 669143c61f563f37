//! Who did how much of a job, and how it ran.
//!
//! Counted beside the rows, for people: it is written with the job's record, at most once a minute while it changes, so a
//! crash of the controller loses the last minute of it. The rows themselves have records of their own, and are never off.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{ids::NodeId, rung::Rung};

/// Nodes of one job that are told apart. Four times as many as a plan is made for; what further ones do is in the job's sums only.
const MOST_NODES: usize = 256;

/// Ways of one job that are told apart: the ladder has seven rungs, and half of them with another kind of link.
const MOST_WAYS: usize = 16;

/// Of one job.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Work {
    /// By node. What a gang does counts for the node of its rank 0, which answers for all of them.
    pub nodes: BTreeMap<NodeId, NodeWork>,
    /// By the way it ran, in the order in which they were first used.
    pub ways: Vec<WayWork>,
}

/// What one node did for a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeWork {
    /// Rows it finished, with an answer or an error.
    pub rows: u64,
    /// Tokens of their prompts.
    pub prompt_tokens: u64,
    /// Tokens of their answers; those of a row that another node had begun are all counted where it was finished.
    pub completion_tokens: u64,
    /// How long its worker had rows at work: loading, idling and time in which the controller did not run are left out.
    pub busy_ms: u64,
}

/// How much of a job was done on one rung.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WayWork {
    /// Which.
    pub rung: Rung,
    /// Rows finished.
    pub rows: u64,
}

impl Work {
    /// Counts a finished row. `rung` is how its launch ran, where that is known.
    pub fn note_row(
        &mut self,
        node: &NodeId,
        rung: Option<Rung>,
        prompt_tokens: u64,
        completion_tokens: u64,
    ) {
        if let Some(of_node) = self.of_node(node) {
            of_node.rows += 1;
            of_node.prompt_tokens += prompt_tokens;
            of_node.completion_tokens += completion_tokens;
        }
        let Some(rung) = rung else { return };
        if let Some(way) = self.ways.iter_mut().find(|way| way.rung == rung) {
            way.rows += 1;
        } else if self.ways.len() < MOST_WAYS {
            self.ways.push(WayWork { rung, rows: 1 });
        }
    }

    /// Counts time in which a node's worker had rows at work.
    pub fn note_busy(&mut self, node: &NodeId, ms: u64) {
        if let Some(of_node) = self.of_node(node) {
            of_node.busy_ms += ms;
        }
    }

    fn of_node(&mut self, node: &NodeId) -> Option<&mut NodeWork> {
        if !self.nodes.contains_key(node) && self.nodes.len() >= MOST_NODES {
            return None;
        }
        Some(self.nodes.entry(node.clone()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_counted_by_node_and_by_way_within_bounds() {
        let mut work = Work::default();
        let (whole, fallback) = (Rung::independent(false), Rung::independent(true));
        work.note_row(&"a".into(), Some(whole), 3, 5);
        work.note_row(&"a".into(), Some(fallback), 1, 1);
        work.note_row(&"b".into(), None, 10, 20);
        work.note_busy(&"b".into(), 100);
        let expected_a = NodeWork { rows: 2, prompt_tokens: 4, completion_tokens: 6, busy_ms: 0 };
        let expected_b = NodeWork { rows: 1, prompt_tokens: 10, completion_tokens: 20, busy_ms: 100 };
        assert_eq!(work.nodes, [("a".into(), expected_a), ("b".into(), expected_b)].into());
        assert_eq!(work.ways, [WayWork { rung: whole, rows: 1 }, WayWork { rung: fallback, rows: 1 }]);
        for node in 0..1_000 {
            work.note_busy(&node.to_string().as_str().into(), 1);
        }
        assert_eq!(work.nodes.len(), MOST_NODES);
        work.note_busy(&"b".into(), 100);
        assert_eq!(work.nodes[&NodeId::from("b")].busy_ms, 200, "known ones go on");
    }

    #[test]
    fn it_survives_its_record() {
        let mut work = Work::default();
        work.note_row(&"a".into(), Some(Rung::independent(false)), 3, 5);
        let json = serde_json::to_string(&work).unwrap();
        assert_eq!(serde_json::from_str::<Work>(&json).unwrap(), work);
        assert_eq!(serde_json::from_str::<Work>("{}").unwrap(), Work::default());
    }
}
