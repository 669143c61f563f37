//! What is known of a link from trying it: in memory, on record, and of which boots and versions it holds.

use std::collections::BTreeSet;

use super::MOST_WENT_DOWN;
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
    pub(super) record: LinkRecord,
    /// Why it did not pass when it was tried last.
    pub(super) failed: Option<String>,
    /// Tests in a row that could not be made.
    pub(super) not_made: u32,
    /// Why the newest of them could not.
    pub(super) obstacle: Option<String>,
    /// Not tried before this.
    pub(super) not_before_mono_ms: u64,
    /// The ends of which it is not known whether their machines have outlived the newest test.
    pub(super) unheard: BTreeSet<NodeId>,
    /// So many tests in which machines went down have been answered for: the link was left alone for them.
    pub(super) answered_for: u8,
}

impl Node {
    fn standing(&self, other: &NodeId, kind: LinkKind) -> Option<&Standing> {
        self.links_tried.iter().find(|standing| standing.is_to(other, kind))
    }

    fn standing_mut(&mut self, other: &NodeId, kind: LinkKind) -> &mut Standing {
        let found = self.links_tried.iter().position(|of| of.is_to(other, kind));
        let at = found.unwrap_or_else(|| {
            if self.links_tried.len() >= MOST_REMEMBERED {
                let oldest =
                    (0..self.links_tried.len()).min_by_key(|at| self.links_tried[*at].record.tried_unix_ms);
                oldest.map(|at| self.links_tried.remove(at));
            }
            self.links_tried.push(Standing::of(LinkRecord::new(other.clone(), kind), &self.id));
            self.links_tried.len() - 1
        });
        &mut self.links_tried[at]
    }

    /// What is written down of it.
    pub(in crate::recovery) fn link_records(&self) -> Vec<LinkRecord> {
        let tried = self.links_tried.iter().map(|standing| &standing.record);
        let is_news =
            |record: &&LinkRecord| record.tried_unix_ms > 0 || record.under_way || record.went_down > 0;
        let mut records: Vec<&LinkRecord> = tried.filter(is_news).collect();
        records.sort_by_key(|record| {
            std::cmp::Reverse((record.under_way || record.went_down > 0, record.tried_unix_ms))
        });
        records.into_iter().take(MOST_WRITTEN).cloned().collect()
    }
}

impl Standing {
    /// As it was written down at this node.
    pub(in crate::recovery) fn of(record: LinkRecord, node: &NodeId) -> Self {
        // A controller that ended amid a test may have gone down with a machine that is an end of it.
        let ends = [node.clone(), record.other.clone()];
        let unheard = if record.under_way { BTreeSet::from(ends) } else { BTreeSet::new() };
        Self {
            record,
            failed: None,
            not_made: 0,
            obstacle: None,
            not_before_mono_ms: 0,
            unheard,
            answered_for: 0,
        }
    }

    fn is_to(&self, other: &NodeId, kind: LinkKind) -> bool {
        self.record.kind == kind && self.record.other == *other
    }

    /// A machine is there again, or still. Returns whether what is written down has changed.
    pub(super) fn note_heard(&mut self, node: &NodeId, is_another_boot: bool) -> bool {
        if !self.unheard.remove(node) {
            return false;
        }
        if is_another_boot {
            self.record.went_down = self.record.went_down.saturating_add(1);
        }
        (is_another_boot || self.unheard.is_empty()) && self.end_under_way()
    }

    /// That machines went down counts no more. Returns whether it did.
    pub(super) fn forgive(&mut self) -> bool {
        self.answered_for = 0;
        std::mem::take(&mut self.record.went_down) > 0
    }

    /// The newest test is over. Returns whether that is news.
    pub(super) fn end_under_way(&mut self) -> bool {
        self.unheard.clear();
        std::mem::take(&mut self.record.under_way)
    }
}

impl Machine {
    pub(super) fn standing_of(&self, link: &Link) -> Option<&Standing> {
        self.nodes.get(&link.a.node)?.standing(&link.b.node, link.kind)
    }

    pub(super) fn standing_mut(&mut self, name: &LinkName) -> Option<&mut Standing> {
        Some(self.nodes.get_mut(&name.a)?.standing_mut(&name.b, name.kind))
    }

    /// Tests of this kind at its ends in which a machine went down: what brings a machine down does so over each of its cables.
    pub(super) fn went_down_around(&self, link: &Link) -> u8 {
        let is_end = |node: &NodeId| *node == link.a.node || *node == link.b.node;
        let tried = self
            .nodes
            .values()
            .flat_map(|node| node.links_tried.iter().map(move |of| (&node.id, &of.record)));
        let around =
            tried.filter(|(id, record)| record.kind == link.kind && (is_end(id) || is_end(&record.other)));
        around.fold(0, |sum: u8, (_, record)| sum.saturating_add(record.went_down))
    }

    /// In the boots and with the versions that both ends are in.
    pub(super) fn has_passed(&self, link: &Link) -> bool {
        let Some((a, b)) = self.nodes.get(&link.a.node).zip(self.nodes.get(&link.b.node)) else {
            return false;
        };
        let proof = a.standing(&b.id, link.kind).and_then(|standing| standing.record.passed_in);
        proof.is_some_and(|under| under == under_which(a, b))
    }

    /// A link has failed: what it has passed was before that. The next controller knows it, too.
    pub(in crate::recovery) fn doubt_link(&mut self, name: &LinkName) {
        if let Some(standing) = self.known_standing_mut(name).filter(|standing| !standing.record.doubted) {
            standing.record.doubted = true;
            self.record_node(&name.a);
        }
    }

    pub(super) fn known_standing_mut(&mut self, name: &LinkName) -> Option<&mut Standing> {
        let tried = &mut self.nodes.get_mut(&name.a)?.links_tried;
        tried.iter_mut().find(|standing| standing.is_to(&name.b, name.kind))
    }

    /// Whether it did not pass when it was tried last. So did one that would take a machine down, for all that is known.
    pub(in crate::recovery) fn has_failed(&self, link: &Link) -> bool {
        self.standing_of(link).is_some_and(|standing| standing.failed.is_some())
            || (!self.has_passed(link) && self.went_down_around(link) >= MOST_WENT_DOWN)
    }

    /// Whether it was tried and did not pass, by its name.
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
