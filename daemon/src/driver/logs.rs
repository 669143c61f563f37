//! Log requests under way: who asked, and which nodes still answer.

use std::collections::{BTreeMap, BTreeSet};

use nightshift_proto::v1;
use tokio::sync::mpsc;

use crate::model::NodeId;

/// Chunks waiting for one reader; a reader that is slower loses lines, and nobody waits for it.
pub(super) const READER_CHUNKS: usize = 256;
/// Requests under way at once; a person has a few windows open.
const MAX_REQUESTS: usize = 64;

#[derive(Default)]
pub(super) struct Requests {
    next_id: u64,
    open: BTreeMap<u64, Open>,
}

struct Open {
    nodes: BTreeSet<NodeId>,
    reader: mpsc::Sender<v1::LogLines>,
}

impl Requests {
    /// Registers a reader; `None` when too many are open already.
    pub(super) fn open(&mut self, nodes: BTreeSet<NodeId>) -> Option<(u64, mpsc::Receiver<v1::LogLines>)> {
        if self.open.len() >= MAX_REQUESTS {
            return None;
        }
        let (reader, lines) = mpsc::channel(READER_CHUNKS);
        self.next_id += 1;
        if !nodes.is_empty() {
            self.open.insert(self.next_id, Open { nodes, reader });
        }
        Some((self.next_id, lines))
    }

    /// Passes lines on; true when nobody reads them any more, so that the node should stop sending.
    pub(super) fn deliver(&mut self, node: &NodeId, mut lines: v1::LogLines) -> bool {
        let (id, end) = (lines.request_id, lines.end);
        let Some(open) = self.open.get_mut(&id) else { return !end };
        for line in &mut lines.lines {
            node.as_str().clone_into(&mut line.node_id);
        }
        lines.end = false;
        if let Err(mpsc::error::TrySendError::Closed(_)) = open.reader.try_send(lines) {
            self.open.remove(&id);
            return !end;
        }
        if end {
            open.nodes.remove(node);
            if open.nodes.is_empty() {
                self.open.remove(&id);
            }
        }
        false
    }

    /// A node that is gone has nothing more to say.
    pub(super) fn node_gone(&mut self, node: &NodeId) {
        self.open.retain(|_, open| {
            open.nodes.remove(node);
            !open.nodes.is_empty()
        });
    }

    /// Requests whose reader went away, and the nodes that still answer them.
    pub(super) fn abandoned(&mut self) -> Vec<(u64, BTreeSet<NodeId>)> {
        let ids: Vec<u64> =
            self.open.iter().filter(|(_, open)| open.reader.is_closed()).map(|(id, _)| *id).collect();
        ids.into_iter().filter_map(|id| Some((id, self.open.remove(&id)?.nodes))).collect()
    }
}
