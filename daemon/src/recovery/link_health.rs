//! Which links are relied on.
//!
//! A link is relied on from the start while it has never failed. One that has been down, or over which a gang was lost, must
//! carry for a while first, and for longer each time ([`damping`](super::damping)). A gang over a link that is down is ended
//! at once: its ranks would wait for one another for minutes, and nothing would tell (FIELD-NOTES 2).

use std::collections::{BTreeMap, BTreeSet};

use super::{
    damping::Penalty, effect::StopMode, event::Now, incidents::Opening, machine::Machine, state::StopReason,
};
use crate::model::{Epoch, Fault, JobId, Link, NodeId, Reason, Severity};

/// Two nodes in order of name.
type Pair = (NodeId, NodeId);

/// Of one pair of nodes.
#[derive(Clone, PartialEq, Debug)]
struct Health {
    /// Since when it carries; `None` while it does not.
    up_since_mono_ms: Option<u64>,
    /// Whether it has ever failed.
    has_failed: bool,
    penalty: Penalty,
}

/// Of all pairs that ever had a link.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct LinkHealth {
    pairs: BTreeMap<Pair, Health>,
    /// Of the links that are there: which are not relied on now.
    unsettled: Vec<Pair>,
}

fn pair_of(link: &Link) -> Pair {
    (link.a.node.clone(), link.b.node.clone())
}

impl Machine {
    /// Links changed: notes what came and went, and ends gangs over what went.
    pub(super) fn on_links(&mut self, now: Now, before: &[Link]) {
        let half_life_ms = self.policy.penalty_half_life_ms;
        let there: BTreeSet<&Link> = self.links.iter().collect();
        let lost: Vec<Link> = before.iter().filter(|link| !there.contains(link)).cloned().collect();
        for link in &lost {
            let is_up = self.links.iter().any(|other| other.joins(&link.a.node, &link.b.node));
            // It was there, so it is known.
            let Some(health) = self.link_health.pairs.get_mut(&pair_of(link)) else { continue };
            health.up_since_mono_ms = is_up.then_some(now.mono_ms);
            health.has_failed = true;
            health.penalty.add(now.mono_ms, half_life_ms);
        }
        for link in &self.links {
            let health = self.link_health.pairs.entry(pair_of(link)).or_insert(Health {
                up_since_mono_ms: None,
                has_failed: false,
                penalty: Penalty::default(),
            });
            health.up_since_mono_ms.get_or_insert(now.mono_ms);
        }
        for link in lost {
            self.on_link_lost(now, &link);
        }
        self.settle_links(now);
    }

    /// A gang was lost over the links between these nodes: they are to prove themselves again.
    pub(super) fn distrust_links(&mut self, now: Now, job: JobId, epoch: Epoch) {
        let half_life_ms = self.policy.penalty_half_life_ms;
        let used = self.jobs.get(&job).and_then(|job| job.gangs.get(&epoch)).map(|gang| gang.links.clone());
        for link in used.unwrap_or_default() {
            if let Some(health) = self.link_health.pairs.get_mut(&pair_of(&link)) {
                health.penalty.add(now.mono_ms, half_life_ms);
                health.has_failed = true;
                if let Some(since) = &mut health.up_since_mono_ms {
                    *since = now.mono_ms;
                }
            }
        }
        self.settle_links(now);
    }

    /// Time passes: links settle. What a plan may use changes with that.
    pub(super) fn settle_links(&mut self, now: Now) {
        let unsettled: Vec<Pair> = self
            .link_health
            .pairs
            .keys()
            .filter(|pair| self.settles_in_ms(now, pair) > 0)
            .filter(|(a, b)| self.links.iter().any(|link| link.joins(a, b)))
            .cloned()
            .collect();
        if unsettled == self.link_health.unsettled {
            return;
        }
        self.links_version += 1;
        let before = std::mem::replace(&mut self.link_health.unsettled, unsettled);
        for (a, b) in before {
            let is_there = self.links.iter().any(|link| link.joins(&a, &b));
            if is_there && !self.link_health.unsettled.contains(&(a.clone(), b.clone())) {
                let held_ms = self.link_health.pairs.get(&(a.clone(), b.clone()));
                let held_ms = held_ms.and_then(|health| Some(now.mono_ms - health.up_since_mono_ms?));
                let seconds = held_ms.unwrap_or_default() / 1_000;
                let outcome = format!("the link carries again, and has held for {seconds} s");
                self.incidents.close(now, &outcome, |incident| {
                    incident.fault == Fault::LinkDown && incident.evidence.first() == Some(&name_of(&a, &b))
                });
                let message =
                    format!("the link of {a} and {b} is relied on again: it has held for {seconds} s");
                self.emit(Severity::Info, "link-settled", Some(&a), None, message);
            }
        }
    }

    /// How long a link has to hold yet; 0 for one that is relied on.
    fn settles_in_ms(&self, now: Now, pair: &Pair) -> u64 {
        let Some(health) = self.link_health.pairs.get(pair).filter(|health| health.has_failed) else {
            return 0;
        };
        let policy = &self.policy;
        let settle_ms = health.penalty.settle_ms(
            now.mono_ms,
            policy.penalty_half_life_ms,
            policy.link_settle_ms,
            policy.most_settle_ms,
        );
        let since = health.up_since_mono_ms.unwrap_or(now.mono_ms);
        (since + settle_ms).saturating_sub(now.mono_ms)
    }

    /// Whether a link between two of these is not relied on now.
    pub(super) fn has_unsettled_link(&self, nodes: &BTreeSet<NodeId>) -> bool {
        self.link_health.unsettled.iter().any(|(a, b)| nodes.contains(a) && nodes.contains(b))
    }

    /// Of the links between these that are to hold yet: the one that is done first, and when.
    pub(super) fn next_link_to_settle(
        &self,
        now: Now,
        nodes: &BTreeSet<NodeId>,
    ) -> Option<(NodeId, NodeId, u64)> {
        let unsettled = self.link_health.unsettled.iter();
        let ours = unsettled.filter(|(a, b)| nodes.contains(a) && nodes.contains(b));
        ours.map(|pair| (pair.0.clone(), pair.1.clone(), self.settles_in_ms(now, pair)))
            .min_by_key(|(.., ms)| *ms)
    }

    /// Of the links of a node those that are to hold yet, and for how long.
    pub(super) fn unsettled_at(&self, now: Now, node: &NodeId) -> Vec<(NodeId, NodeId, u64)> {
        let ours = self.link_health.unsettled.iter().filter(|(a, b)| a == node || b == node);
        ours.map(|pair| (pair.0.clone(), pair.1.clone(), self.settles_in_ms(now, pair))).collect()
    }

    /// The links that a plan may use now.
    pub(super) fn settled_links(&self) -> Vec<Link> {
        let relied = |link: &&Link| !self.link_health.unsettled.contains(&pair_of(link));
        let mut links: Vec<Link> = self.links.iter().filter(relied).cloned().collect();
        for end in links.iter_mut().flat_map(|link| [&mut link.a, &mut link.b]) {
            if self.nodes.get(&end.node).is_some_and(|node| node.facts.boot.rdma_is_used_up()) {
                end.rdma_device = None;
            }
        }
        links
    }

    /// Why a plan does without some of the links that are there.
    pub(super) fn unsettled_reasons(&self, now: Now) -> Vec<Reason> {
        let text = |pair: &Pair| {
            let (a, b) = pair;
            let seconds = self.settles_in_ms(now, pair).div_ceil(1_000);
            format!("not over the link of {a} and {b}: it has failed, and must hold for {seconds} s first")
        };
        self.link_health.unsettled.iter().map(|pair| Reason::new("link-unsettled", text(pair))).collect()
    }

    fn on_link_lost(&mut self, now: Now, link: &Link) {
        let (a, b) = (&link.a.node, &link.b.node);
        let mut gangs: Vec<(JobId, Epoch)> = Vec::new();
        for id in &self.open_jobs {
            let Some(job) = self.jobs.get(id) else { continue };
            for (epoch, gang) in &job.gangs {
                // One that was to finish what it has begun never will.
                let at_work = |mode| matches!(mode, None | Some(StopMode::FinishStarted));
                let alive =
                    job.workers.values().any(|worker| worker.epoch == *epoch && at_work(worker.stop_mode));
                if alive && gang.links.contains(link) {
                    gangs.push((*id, *epoch));
                }
            }
        }
        let at = match (self.carries(a, &link.a.interface), self.carries(b, &link.b.interface)) {
            (false, true) => format!("{} on {a} carries nothing", link.a.interface),
            (true, false) => format!("{} on {b} carries nothing", link.b.interface),
            (false, false) => {
                format!("{} on {a} and {} on {b} carry nothing", link.a.interface, link.b.interface)
            }
            (true, true) => format!("{} and {} have other addresses now", link.a.interface, link.b.interface),
        };
        let summary = format!("the link of {a} and {b} is down: {at}");
        if gangs.is_empty() {
            self.emit(Severity::Info, "link-down", Some(a), None, summary);
            return;
        }
        let (job, _) = gangs[0];
        let action =
            "the gang over it is ended, and its rows go on from their checkpoints as soon as there is a way";
        self.emit(
            Severity::Warning,
            Fault::LinkDown.word(),
            Some(a),
            Some(job),
            format!("{summary}; {action}"),
        );
        let opening = Opening {
            node: Some(a.clone()),
            job: Some(job),
            summary: summary.clone(),
            action: action.to_owned(),
            evidence: vec![name_of(a, b), at],
            ..Opening::default()
        };
        let incident = self.incidents.open(now, Fault::LinkDown, opening);
        for (job, epoch) in gangs {
            self.blame(job, epoch, incident);
            self.await_first_token(now, job, epoch, incident);
            let nodes = self.jobs.get(&job).map(|job| job.nodes_of(epoch)).unwrap_or_default();
            for node in nodes {
                self.stop(now, &node, job, StopMode::Kill, StopReason::LinkLost, &summary);
            }
        }
    }

    fn carries(&self, node: &NodeId, interface: &str) -> bool {
        self.nodes.get(node).is_some_and(|node| {
            node.facts.interfaces.iter().any(|found| found.name == interface && found.usable)
        })
    }
}

/// How a link is called in evidence.
fn name_of(a: &NodeId, b: &NodeId) -> String {
    format!("link {a} - {b}")
}
