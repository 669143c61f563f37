//! Which links are relied on.
//!
//! A link is relied on from the start while it has never failed. One that has been down, or over which a gang was lost, must
//! carry for a while first, and for longer each time ([`damping`](super::damping)). A gang over a link that is down is ended
//! at once: its ranks would wait for one another for minutes, and nothing would tell (FIELD-NOTES 2).
//!
//! Two nodes can have several links, each of which fails and proves itself alone: where RDMA over a cable fails, the next gang goes over
//! the cable by TCP. A gang that is lost over RDMA costs a start of this boot, so RDMA is left alone for longer than a cable that was
//! pulled.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    damping::Penalty, effect::StopMode, event::Now, incidents::Opening, ladder::span, machine::Machine,
    rules::Policy, state::StopReason,
};
use crate::model::{
    Cable, CableClass, CableEnd, Epoch, Fault, JobId, Link, LinkKind, LinkName, NodeId, Reason, Severity,
    said_once,
};

/// The longest that RDMA is left alone after gangs that were lost over it: it is tried once more the same night.
const MOST_RDMA_SETTLE_MS: u64 = 3 * 3_600_000;

/// Ways that a plan does without and names: those of seven Macs, each cabled to every other.
const MOST_REASONS: usize = 21;

/// Of one link.
#[derive(Clone, PartialEq, Debug, Default)]
struct Health {
    /// Since when it carries; `None` while it does not.
    up_since_mono_ms: Option<u64>,
    /// Whether it has ever failed.
    has_failed: bool,
    penalty: Penalty,
    /// When a gang over it was lost last, where it is one of RDMA. That it is pulled and plugged in mends nothing of that.
    gang_lost_mono_ms: Option<u64>,
    gangs_lost: Penalty,
}

/// Of all links that ever were.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct LinkHealth {
    links: BTreeMap<LinkName, Health>,
    /// Of the links that are there: which are not relied on now.
    unsettled: Vec<LinkName>,
}

impl Health {
    /// How long the link has to hold yet; 0 for one that is relied on.
    fn settles_in_ms(&self, now: Now, policy: &Policy) -> u64 {
        let left_alone_ms = self.left_alone_ms(now, policy);
        if !self.has_failed {
            return left_alone_ms;
        }
        let settle_ms = self.penalty.settle_ms(
            now.mono_ms,
            policy.penalty_half_life_ms,
            policy.link_settle_ms,
            policy.most_settle_ms,
        );
        let since = self.up_since_mono_ms.unwrap_or(now.mono_ms);
        (since + settle_ms).saturating_sub(now.mono_ms).max(left_alone_ms)
    }

    /// How long RDMA is left alone yet over which a gang was lost.
    fn left_alone_ms(&self, now: Now, policy: &Policy) -> u64 {
        let Some(since) = self.gang_lost_mono_ms else { return 0 };
        let (half_life_ms, base_ms) = (policy.penalty_half_life_ms, policy.rdma_settle_ms);
        let settle_ms = self.gangs_lost.settle_ms(now.mono_ms, half_life_ms, base_ms, MOST_RDMA_SETTLE_MS);
        (since + settle_ms).saturating_sub(now.mono_ms)
    }
}

impl Machine {
    /// Links changed: notes what came and went, and ends gangs over what went.
    pub(super) fn on_links(&mut self, now: Now, before: &[Link]) {
        let half_life_ms = self.policy.penalty_half_life_ms;
        let there: BTreeSet<&Link> = self.links.iter().collect();
        let lost: Vec<Link> = before.iter().filter(|link| !there.contains(link)).cloned().collect();
        for link in &lost {
            let is_up = self.is_there(&link.name());
            // It was there, so it is known.
            let Some(health) = self.link_health.links.get_mut(&link.name()) else { continue };
            health.up_since_mono_ms = is_up.then_some(now.mono_ms);
            health.has_failed = true;
            health.penalty.add(now.mono_ms, half_life_ms);
            self.end_tests_of(&link.name());
            self.doubt_link(&link.name());
            if !is_up {
                self.forget_failure_of(now, &link.name());
            }
        }
        for link in &self.links {
            let health = self.link_health.links.entry(link.name()).or_default();
            health.up_since_mono_ms.get_or_insert(now.mono_ms);
        }
        let mut by_pair: BTreeMap<(&NodeId, &NodeId, bool), Vec<&Link>> = BTreeMap::new();
        for link in &lost {
            let is_cable = matches!(link.kind, LinkKind::Rdma | LinkKind::Thunderbolt);
            by_pair.entry((&link.a.node, &link.b.node, is_cable)).or_default().push(link);
        }
        for lost in by_pair.into_values() {
            self.on_links_lost(now, &lost);
        }
        self.settle_links(now);
        self.note_other_links();
        self.mind_link_tests(now);
    }

    /// A gang was lost over the links between these nodes: they are to prove themselves again. Of one over RDMA only that is.
    pub(super) fn distrust_links(&mut self, now: Now, job: JobId, epoch: Epoch) {
        let gang = self.gang_mut(job, epoch).filter(|gang| !gang.is_held_against_links);
        let used = gang.map(|gang| {
            gang.is_held_against_links = true;
            gang.computes_over()
        });
        let used = used.unwrap_or_default();
        for name in used {
            self.hold_against(now, &name);
            self.doubt_link(&name);
        }
        self.settle_links(now);
    }

    /// A link did not do what it was relied on for: RDMA is left alone, and others must hold for a while.
    pub(super) fn hold_against(&mut self, now: Now, name: &LinkName) {
        let half_life_ms = self.policy.penalty_half_life_ms;
        let Some(health) = self.link_health.links.get_mut(name) else { return };
        if name.kind == LinkKind::Rdma {
            health.gang_lost_mono_ms = Some(now.mono_ms);
            health.gangs_lost.add(now.mono_ms, half_life_ms);
            return;
        }
        health.penalty.add(now.mono_ms, half_life_ms);
        health.has_failed = true;
        if let Some(since) = &mut health.up_since_mono_ms {
            *since = now.mono_ms;
        }
    }

    fn is_there(&self, name: &LinkName) -> bool {
        self.links.iter().any(|link| link.kind == name.kind && link.joins(&name.a, &name.b))
    }

    /// Time passes: links settle. What a plan may use changes with that.
    pub(super) fn settle_links(&mut self, now: Now) {
        let unsettled: Vec<LinkName> = self
            .link_health
            .links
            .iter()
            .filter(|(_, health)| health.settles_in_ms(now, &self.policy) > 0)
            .filter(|(name, _)| self.is_there(name))
            .map(|(name, _)| name.clone())
            .collect();
        if unsettled == self.link_health.unsettled {
            return;
        }
        self.links_version += 1;
        let before = std::mem::replace(&mut self.link_health.unsettled, unsettled);
        for name in before {
            if self.is_there(&name) && !self.link_health.unsettled.contains(&name) {
                let since = self.link_health.links.get(&name).and_then(|health| health.up_since_mono_ms);
                let seconds = since.map_or(0, |since| now.mono_ms - since) / 1_000;
                let outcome = format!("the link carries again, and has held for {seconds} s");
                let evidence = evidence_of(&name);
                self.incidents.close(now, &outcome, |incident| {
                    incident.fault == Fault::LinkDown && incident.evidence.first() == Some(&evidence)
                });
                if !self.has_failed_its_test(&name) {
                    let message = format!("{name} is relied on again: it has held for {seconds} s");
                    self.emit(Severity::Info, "link-settled", Some(&name.a), None, message);
                }
            }
        }
    }

    /// How long a link has to hold yet; 0 for one that is relied on.
    pub(super) fn settles_in_ms(&self, now: Now, name: &LinkName) -> u64 {
        self.link_health.links.get(name).map_or(0, |health| health.settles_in_ms(now, &self.policy))
    }

    fn left_alone_ms(&self, now: Now, name: &LinkName) -> u64 {
        self.link_health.links.get(name).map_or(0, |health| health.left_alone_ms(now, &self.policy))
    }

    /// Whether a link is to hold yet.
    pub(super) fn is_unsettled(&self, name: &LinkName) -> bool {
        self.link_health.unsettled.contains(name)
    }

    fn unsettled_between<'a>(&'a self, nodes: &'a BTreeSet<NodeId>) -> impl Iterator<Item = &'a LinkName> {
        self.link_health.unsettled.iter().filter(|name| nodes.contains(&name.a) && nodes.contains(&name.b))
    }

    /// Whether a link between two of these has been down and is to hold yet. RDMA that is left alone is not waited for.
    pub(super) fn has_unsettled_link(&self, now: Now, nodes: &BTreeSet<NodeId>) -> bool {
        self.unsettled_between(nodes).any(|name| self.left_alone_ms(now, name) == 0)
    }

    /// Of the links between these that are to hold yet: the one that is done first, and when.
    pub(super) fn next_link_to_settle(&self, now: Now, nodes: &BTreeSet<NodeId>) -> Option<(LinkName, u64)> {
        self.unsettled_between(nodes)
            .map(|name| (name.clone(), self.settles_in_ms(now, name)))
            .min_by_key(|(_, ms)| *ms)
    }

    /// Of the links of a node those that are to hold yet, and for how long.
    pub(super) fn unsettled_at(&self, now: Now, node: &NodeId) -> Vec<(LinkName, u64)> {
        let ours = self.link_health.unsettled.iter().filter(|name| name.is_at(node));
        ours.map(|name| (name.clone(), self.settles_in_ms(now, name))).collect()
    }

    /// The links that a plan may use now.
    pub(super) fn settled_links(&self) -> Vec<Link> {
        let has_starts =
            |node: &NodeId| self.nodes.get(node).is_none_or(|node| !node.facts.boot.rdma_is_used_up());
        let relied = |link: &&Link| {
            !self.are_kept_apart(&link.a.node, &link.b.node)
                && !self.link_health.unsettled.contains(&link.name())
                && !self.awaits_test(link)
                && !self.has_failed(link)
                && (link.kind != LinkKind::Rdma || (has_starts(&link.a.node) && has_starts(&link.b.node)))
        };
        self.links.iter().filter(relied).cloned().collect()
    }

    /// Why a plan does without some of the links that are there.
    fn unsettled_reasons(&self, now: Now) -> Vec<Reason> {
        let text = |name: &LinkName| {
            let left = span(self.settles_in_ms(now, name).next_multiple_of(1_000));
            let by = if name.kind == LinkKind::Rdma { "by" } else { "over" };
            if self.left_alone_ms(now, name) > 0 {
                let why = if self.has_failed_its_test(name) {
                    "it did not pass its test, and is"
                } else {
                    "a gang was lost there, and it is"
                };
                format!("not {by} {name}: {why} left alone for {left}")
            } else {
                format!("not {by} {name}: it has failed, and must hold for {left} first")
            }
        };
        let unsettled = &self.link_health.unsettled;
        let of_health = unsettled.iter().map(|name| Reason::new("link-unsettled", text(name)));
        let failed = self.links.iter().filter(|link| {
            self.has_failed(link) && !unsettled.contains(&link.name()) && !self.awaits_test(link)
        });
        let failed = failed.map(|link| {
            let (name, word) = (link.name(), self.word_on_link(now, link));
            Reason::new("link-unproven", format!("not over {name}: it {word}"))
        });
        of_health.chain(failed).collect()
    }

    /// What two nodes have lost: a link, or all that their cable was.
    fn on_links_lost(&mut self, now: Now, lost: &[&Link]) {
        // A cable that is out takes RDMA with it.
        let Some(link) = lost.iter().max_by_key(|link| link.kind) else { return };
        let name = link.name();
        let mut gangs: Vec<(JobId, Epoch)> = Vec::new();
        for id in &self.open_jobs {
            let Some(job) = self.jobs.get(id) else { continue };
            for (epoch, gang) in &job.gangs {
                // One that was to finish what it has begun never will.
                let at_work = |mode| matches!(mode, None | Some(StopMode::FinishStarted));
                let alive =
                    job.workers.values().any(|worker| worker.epoch == *epoch && at_work(worker.stop_mode));
                if alive && gang.links.iter().any(|used| lost.contains(&used)) {
                    gangs.push((*id, *epoch));
                }
            }
        }
        let at = self.why_lost(link);
        let summary = format!("{name} is down: {at}");
        if gangs.is_empty() {
            self.emit(Severity::Info, "link-down", Some(&name.a), None, summary);
            return;
        }
        let (job, _) = gangs[0];
        let action =
            "the gang over it is ended, and its rows go on from their checkpoints as soon as there is a way";
        self.emit(
            Severity::Warning,
            Fault::LinkDown.word(),
            Some(&name.a),
            Some(job),
            format!("{summary}; {action}"),
        );
        let opening = Opening {
            node: Some(name.a.clone()),
            job: Some(job),
            summary: summary.clone(),
            action: action.to_owned(),
            evidence: vec![evidence_of(&name), at],
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

    /// What is wrong at the ends of a link that was lost.
    fn why_lost(&self, Link { a, b, kind }: &Link) -> String {
        if matches!(kind, LinkKind::Rdma | LinkKind::Thunderbolt) {
            return self.why_cable_lost(&a.node, &b.node, *kind);
        }
        match (self.carries(&a.node, &a.interface), self.carries(&b.node, &b.interface)) {
            (false, true) => format!("{} on {} carries nothing", a.interface, a.node),
            (true, false) => format!("{} on {} carries nothing", b.interface, b.node),
            (false, false) => {
                format!("{} on {} and {} on {} carry nothing", a.interface, a.node, b.interface, b.node)
            }
            (true, true) => format!("{} and {} have other addresses now", a.interface, b.interface),
        }
    }

    /// The flaws of the cables there are between two nodes.
    fn why_cable_lost(&self, a: &NodeId, b: &NodeId, kind: LinkKind) -> String {
        let mut cables =
            self.cables.iter().filter(|cable| cable.a.node == *a && cable.b.node == *b).peekable();
        if cables.peek().is_none() {
            return "neither of its ends sees the other any more".to_owned();
        }
        let told = flaws_of(cables, kind);
        if told.is_empty() { "it has other addresses or devices now".to_owned() } else { told }
    }

    /// Why a plan for these nodes does without some of the ways between them.
    pub(super) fn unused_links(&self, now: Now, nodes: &BTreeSet<NodeId>) -> Vec<Reason> {
        let tests = self.tests_between(nodes).map(|name| {
            let by = if name.kind == LinkKind::Rdma { "by" } else { "over" };
            Reason::new("link-test", format!("not {by} {name} yet: it is tried first"))
        });
        let of_links = self.unsettled_reasons(now).into_iter().chain(tests).chain(self.cable_reasons(nodes));
        self.version_reasons(nodes).into_iter().chain(of_links.take(MOST_REASONS)).collect()
    }

    /// Whether what runs on these two keeps them out of one gang.
    pub(super) fn are_kept_apart(&self, one: &NodeId, other: &NodeId) -> bool {
        let nodes = self.nodes.get(one).zip(self.nodes.get(other));
        nodes.is_some_and(|(one, other)| {
            one.facts.versions.keep_apart(&other.facts.versions, self.policy.gang_same_os)
        })
    }

    /// Why a plan makes no gang of some of these nodes, though there is a way between them.
    fn version_reasons(&self, nodes: &BTreeSet<NodeId>) -> Option<Reason> {
        let between = |link: &&Link| nodes.contains(&link.a.node) && nodes.contains(&link.b.node);
        let differ = |link: &&Link| self.are_kept_apart(&link.a.node, &link.b.node);
        let apart: BTreeSet<&NodeId> = self
            .links
            .iter()
            .filter(between)
            .filter(differ)
            .flat_map(|link| [&link.a.node, &link.b.node])
            .collect();
        let versions: Vec<(&NodeId, String)> = apart
            .into_iter()
            .filter_map(|id| Some((id, self.nodes.get(id)?.facts.versions.to_string())))
            .collect();
        let said = said_once(versions.iter().map(|(node, words)| (*node, words.as_str())));
        let told: Vec<String> =
            said.into_iter().map(|(nodes, words)| format!("{words} on {nodes}")).collect();
        let text = || format!("nodes with different versions make no gang: {}", told.join("; "));
        (!told.is_empty()).then(|| Reason::new("versions", text()))
    }

    /// Why a plan for these nodes does without RDMA, or without a cable at all, where there is one.
    fn cable_reasons(&self, nodes: &BTreeSet<NodeId>) -> Vec<Reason> {
        let between = |cable: &&Cable| nodes.contains(&cable.a.node) && nodes.contains(&cable.b.node);
        let told = self.cables.iter().filter(between).filter_map(|cable| self.why_not_whole(cable));
        let used_up = nodes.iter().filter(|node| {
            self.nodes.get(node).is_some_and(|node| node.facts.boot.rdma_is_used_up())
                && self.links.iter().any(|link| link.kind == LinkKind::Rdma && link.end_at(node).is_some())
        });
        let used_up = used_up.map(|node| {
            let text = format!("not by RDMA on {node}: the starts that a boot has for it are used up");
            Reason::of("rdma-starts", node, text)
        });
        told.map(|text| Reason::new("cable", text)).chain(used_up).collect()
    }

    /// What the cables of a node lack.
    pub(super) fn cables_lack_at(&self, id: &NodeId) -> Vec<String> {
        let ours = self.cables.iter().filter(|cable| cable.a.node == *id || cable.b.node == *id);
        ours.filter_map(|cable| self.why_not_whole(cable)).take(MOST_REASONS).collect()
    }

    /// Why a cable is not used for all that one can be.
    fn why_not_whole(&self, cable: &Cable) -> Option<String> {
        let Cable { a: CableEnd { node: a, .. }, b: CableEnd { node: b, .. }, class, .. } = cable;
        match class {
            CableClass::Rdma if !self.policy.gang_rdma => Some(format!(
                "not by RDMA over the cable of {a} and {b}: gangs.rdma of the configuration says no"
            )),
            CableClass::Rdma => None,
            CableClass::Tcp => Some(format!(
                "not by RDMA over the cable of {a} and {b}: {}",
                flaws_of([cable], LinkKind::Rdma)
            )),
            CableClass::Down => {
                let why = flaws_of([cable], LinkKind::Thunderbolt);
                Some(format!("not over the cable of {a} and {b}: {why}"))
            }
        }
    }

    fn carries(&self, node: &NodeId, interface: &str) -> bool {
        self.nodes.get(node).is_some_and(|node| {
            node.facts.interfaces.iter().any(|found| found.name == interface && found.usable)
        })
    }
}

/// What keeps cables from RDMA or from TCP.
fn flaws_of<'a>(cables: impl IntoIterator<Item = &'a Cable>, kind: LinkKind) -> String {
    let flaws = cables.into_iter().flat_map(|cable| &cable.flaws).filter(|flaw| !flaw.is_harmless());
    let mut told: Vec<String> = Vec::new();
    for flaw in flaws.filter(|flaw| kind == LinkKind::Rdma || !flaw.is_of_rdma_only()) {
        let sentence = flaw.to_string();
        if !told.contains(&sentence) {
            told.push(sentence);
        }
    }
    told.join("; ")
}

/// How a link is called in evidence.
fn evidence_of(LinkName { a, b, kind }: &LinkName) -> String {
    let what = match kind {
        LinkKind::Rdma => "RDMA",
        LinkKind::Thunderbolt => "cable",
        LinkKind::Network | LinkKind::Loopback => "link",
    };
    format!("{what} {a} - {b}")
}
