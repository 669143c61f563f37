//! Links over which the ranks of a gang did not find one another.
//!
//! A network can carry the agents' connections and swallow everything between two nodes, with every carrier up
//! (FIELD-NOTES 2). So a pair of nodes that did not meet is left alone for a while: other nodes make the gang. Where there
//! are no others, the same ones try again.

use std::collections::BTreeMap;

use super::{event::Now, machine::Machine};
use crate::model::{Epoch, JobId, Link, NodeId, Reason};

/// How long other nodes are preferred. A try at a dead link costs the whole time for a meeting, so it is rare; a link
/// that works again is in use again the same night.
const LEFT_ALONE_MS: u64 = 10 * 60_000;

/// Pairs that did not meet lately, each in order of name, and until when they are left alone.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Unmet(BTreeMap<(NodeId, NodeId), u64>);

impl Unmet {
    fn names(link: &Link) -> (NodeId, NodeId) {
        pair(&link.a.node, &link.b.node)
    }

    /// These links without those that are left alone; `None` when none is.
    pub(super) fn avoided(&self, links: &[Link]) -> Option<Vec<Link>> {
        let kept: Vec<Link> =
            links.iter().filter(|link| !self.0.contains_key(&Self::names(link))).cloned().collect();
        (kept.len() < links.len()).then_some(kept)
    }

    /// Why a plan does without them.
    pub(super) fn reasons(&self) -> Vec<Reason> {
        let text = |(one, other): &(NodeId, NodeId)| {
            let minutes = LEFT_ALONE_MS / 60_000;
            format!(
                "not over the link of {one} and {other}: their ranks did not find one another, and it is left alone for \
                 {minutes} minutes"
            )
        };
        self.0.keys().map(|pair| Reason::new("did-not-meet", text(pair))).collect()
    }
}

impl Machine {
    /// The ranks of a launch did not all find one another.
    pub(super) fn note_unmet(&mut self, now: Now, job: JobId, epoch: Epoch) {
        let until_mono_ms = now.mono_ms + LEFT_ALONE_MS;
        for pair in self.pairs_of(job, epoch) {
            self.unmet.0.insert(pair, until_mono_ms);
            self.links_version += 1;
        }
    }

    /// All ranks of a launch are ready, so they have met.
    pub(super) fn note_met(&mut self, job: JobId, epoch: Epoch) {
        for pair in self.pairs_of(job, epoch) {
            if self.unmet.0.remove(&pair).is_some() {
                self.links_version += 1;
            }
        }
    }

    /// Nodes that this one did not meet lately, and how long others are preferred yet.
    pub(super) fn unmet_at(&self, now: Now, node: &NodeId) -> Vec<(NodeId, u64)> {
        let ours = self.unmet.0.iter().filter(|((one, other), _)| one == node || other == node);
        ours.map(|((one, other), until_mono_ms)| {
            let other = if one == node { other } else { one };
            (other.clone(), until_mono_ms.saturating_sub(now.mono_ms))
        })
        .collect()
    }

    pub(super) fn forget_unmet(&mut self, now: Now) {
        let before = self.unmet.0.len();
        self.unmet.0.retain(|_, until_mono_ms| *until_mono_ms > now.mono_ms);
        if self.unmet.0.len() < before {
            self.links_version += 1;
        }
    }

    fn pairs_of(&self, job: JobId, epoch: Epoch) -> Vec<(NodeId, NodeId)> {
        let nodes = self.jobs.get(&job).map(|job| job.nodes_of(epoch)).unwrap_or_default();
        let with_later = nodes.iter().enumerate();
        with_later
            .flat_map(|(index, one)| nodes[index + 1..].iter().map(move |other| pair(one, other)))
            .collect()
    }
}

fn pair(one: &NodeId, other: &NodeId) -> (NodeId, NodeId) {
    if one <= other { (one.clone(), other.clone()) } else { (other.clone(), one.clone()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_one_whichever_way_it_is_named() {
        let (a, b) = (NodeId::from("a"), NodeId::from("b"));
        assert_eq!(pair(&a, &b), (a.clone(), b.clone()));
        assert_eq!(pair(&b, &a), (a, b));
    }
}
