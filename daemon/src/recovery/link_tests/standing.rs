//! What is known of a link from trying it: in memory, on record, and of which boots and versions it holds.

use crate::{
    model::{Link, LinkKind, LinkName, LinkRecord, NodeId},
    recovery::{facts::NodeFacts, machine::Machine, state::Node},
};

/// Links remembered of a node. A Mac has six ports at the most, each with two links, and networks beside them; were they more, each
/// would push out what is known of another.
const MOST_REMEMBERED: usize = 64;

/// Of them the newest are written down: those over the ports of a Mac. A node's record has to fit a value of the ledger, 6 KiB, with
/// what else is in it, and one takes 220 bytes where names are long.
pub(in crate::recovery) const MOST_WRITTEN: usize = 12;

/// What is known of a link from trying it, kept with the node at its first end.
#[derive(Clone, PartialEq, Debug)]
pub(in crate::recovery) struct Standing {
    pub(super) other: NodeId,
    kind: LinkKind,
    pub(super) record: LinkRecord,
    /// It has failed since it passed.
    pub(super) is_doubted: bool,
    /// Why it did not pass when it was tried last.
    pub(super) failed: Option<String>,
    /// Tests in a row that could not be made.
    pub(super) not_made: u32,
    /// Why the newest of them could not.
    pub(super) obstacle: Option<String>,
    /// Not tried before this.
    pub(super) not_before_mono_ms: u64,
}

impl Node {
    fn standing(&self, other: &NodeId, kind: LinkKind) -> Option<&Standing> {
        self.links_tried.iter().find(|standing| standing.kind == kind && standing.other == *other)
    }

    fn standing_mut(&mut self, other: &NodeId, kind: LinkKind) -> &mut Standing {
        let found = self.links_tried.iter().position(|of| of.kind == kind && of.other == *other);
        let at = found.unwrap_or_else(|| {
            if self.links_tried.len() >= MOST_REMEMBERED {
                let oldest =
                    (0..self.links_tried.len()).min_by_key(|at| self.links_tried[*at].record.tried_unix_ms);
                oldest.map(|at| self.links_tried.remove(at));
            }
            self.links_tried.push(Standing::of(LinkRecord::new(other.clone(), kind)));
            self.links_tried.len() - 1
        });
        &mut self.links_tried[at]
    }

    /// What is written down of it.
    pub(in crate::recovery) fn link_records(&self) -> Vec<LinkRecord> {
        let tried = self.links_tried.iter().map(|standing| &standing.record);
        let mut records: Vec<&LinkRecord> = tried.filter(|record| record.tried_unix_ms > 0).collect();
        records.sort_by_key(|record| std::cmp::Reverse(record.tried_unix_ms));
        records.into_iter().take(MOST_WRITTEN).cloned().collect()
    }
}

impl Standing {
    /// As it was written down.
    pub(in crate::recovery) fn of(record: LinkRecord) -> Self {
        Self {
            other: record.other.clone(),
            kind: record.kind,
            record,
            is_doubted: false,
            failed: None,
            not_made: 0,
            obstacle: None,
            not_before_mono_ms: 0,
        }
    }
}

impl Machine {
    pub(super) fn standing_of(&self, link: &Link) -> Option<&Standing> {
        self.nodes.get(&link.a.node)?.standing(&link.b.node, link.kind)
    }

    pub(super) fn standing_mut(&mut self, name: &LinkName) -> Option<&mut Standing> {
        Some(self.nodes.get_mut(&name.a)?.standing_mut(&name.b, name.kind))
    }

    /// In the boots and with the versions that both ends are in.
    pub(super) fn has_passed(&self, link: &Link) -> bool {
        let Some((a, b)) = self.nodes.get(&link.a.node).zip(self.nodes.get(&link.b.node)) else {
            return false;
        };
        let proof = a.standing(&b.id, link.kind).and_then(|standing| standing.record.passed_in);
        proof.is_some_and(|under| under == under_which(a, b))
    }

    /// A link has failed: what it has passed was before that.
    pub(in crate::recovery) fn doubt_link(&mut self, name: &LinkName) {
        let Some(node) = self.nodes.get_mut(&name.a) else { return };
        if let Some(standing) =
            node.links_tried.iter_mut().find(|of| of.kind == name.kind && of.other == name.b)
        {
            standing.is_doubted = true;
        }
    }

    /// Whether it did not pass when it was tried last.
    pub(in crate::recovery) fn has_failed_its_test(&self, name: &LinkName) -> bool {
        let standing = self.nodes.get(&name.a).and_then(|node| node.standing(&name.b, name.kind));
        standing.is_some_and(|standing| standing.failed.is_some())
    }
}

/// A sum over the boots and versions that two nodes are in. That two are equal by chance is less likely than that a link breaks
/// right after its test.
pub(super) fn under_which(a: &Node, b: &Node) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    for NodeFacts { boot_id, versions, .. } in [&a.facts, &b.facts] {
        for text in [boot_id, &versions.runtime, &versions.os] {
            sum.update(text.as_bytes());
            sum.update(&[0]);
        }
    }
    sum.finalize()
}
