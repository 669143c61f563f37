//! Links are tried before a night relies on them: two ranks without a model, one at each end, and sums of which the answer is known.
//!
//! What is tried, and when:
//! * a cable that has not passed in this boot and with these versions at both ends, as soon as both can try it: after each restart
//!   or update of a Mac no job is planned over it before;
//! * every link that a better way to run a job needs, before the workers that run it now are ended for it: one that has failed since
//!   it passed must pass again.
//!
//! A gang that stands has done the same sums over the same links, so its links count as tried. A link that does not pass is left alone
//! as one that has failed ([`link_health`](super::link_health)), and tried again after that.
//!
//! What it promises:
//! * a node has one test at a time, the cluster [`MOST_AT_ONCE`], and none is waited for longer than [`ANSWER_LIMIT_MS`];
//! * a link that did not pass when it was tried last is in no plan before it has, or was plugged in again, or one end has started anew;
//! * a test that could not be made says nothing of the link; after [`MOST_NOT_MADE`] in a row nothing waits for one for a while, and
//!   the next gang over the link is its test;
//! * a test over RDMA is made only where it leaves starts of this boot for gangs;
//! * what has passed is on record, for the boots and versions at both ends: a controller that starts anew tries nothing twice. So are
//!   tests that are under way, and machines that went down with them: a test that takes machines down is made twice, and then a few
//!   times in a night, whatever became of the controller.
//!
//! ```text
//!  awaited ──both can, one at a time──▶ being tried ──passed at both ends──▶ proven ──a new boot, other versions──▶ awaited
//!     ▲                                    │    │                              │
//!     │ a pause                            │    └──failed──▶ left alone ───────│─────▶ awaited
//!     └────────── not made ◀───────────────┘                                   └──lost──▶ doubted: tried before a job changes to it
//! ```

mod answers;
mod standing;
mod word;

use core::net::SocketAddr;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

#[cfg(test)]
pub(super) use standing::MOST_WRITTEN;
use standing::under_which;
pub(super) use {standing::Standing, word::Word};

use super::{
    effect::{Command, GangLaunch, RankLaunch},
    event::{LinkTestResult, Now, SessionId},
    facts::NodeFacts,
    machine::Machine,
    state::Node,
};
use crate::{
    model::{Backend, Fault, Link, LinkKind, LinkName, Mode, NodeId, Reason},
    planner,
};

/// Tests under way in the cluster. Two over one switch would measure each other; four cables of eight Macs have nothing in common.
const MOST_AT_ONCE: usize = 4;

/// How long the two ranks may take to meet: they are started together, and import MLX in seconds.
const MEET_MS: u64 = 30_000;

/// How long an agent gives a test: as long again for the start, and a quarter of a minute for the sums (link_test.py).
const LIMIT_MS: u64 = 75_000;

/// How long the answers are waited for: an agent ends a test at its limit, and says so.
pub(super) const ANSWER_LIMIT_MS: u64 = LIMIT_MS + 10_000;

/// So many tests in a row that could not be made, and no job waits for one.
pub(super) const MOST_NOT_MADE: u32 = 3;

/// RDMA starts that a test needs at each end: its own, and it leaves a gang's, and one for when that is lost. A Mac with cables to
/// four others would spend its boot's five on tests.
const STARTS_NEEDED: u32 = 3;

/// So many tests in a row in which a machine went down, and the link is left alone. One may have been restarted by somebody.
const MOST_WENT_DOWN: u8 = 2;

/// A link that does less than this of its best is told of. Two runs over the same cable differ by a few percent.
const SLOW_PERCENT: u64 = 50;

/// A test under way.
#[derive(Clone, PartialEq, Debug)]
struct Running {
    name: LinkName,
    /// Of the nodes at both ends: an answer is lost with its connection.
    sessions: [SessionId; 2],
    /// In which boots and versions both ends are.
    under: u32,
    since_mono_ms: u64,
    results: [Option<LinkTestResult>; 2],
}

/// Tests of links, under way and wanted.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct LinkTests {
    running: BTreeMap<u64, Running>,
    /// Cables that no plan may use before they have passed.
    awaited: Vec<LinkName>,
    /// Links that a better way waits for, from the newest look at it.
    asked_for: BTreeSet<LinkName>,
    /// At the last look every cable had passed: until one end changes there is nothing to do, and a tick costs nothing.
    is_calm: bool,
}

impl Node {
    /// Whether a test can be made here now.
    fn can_try_links(&self) -> bool {
        self.facts.tests_links
            && self.facts.runtime_problem.is_none()
            && self.restart_sentence().is_none()
            && self.session.as_ref().is_some_and(|session| session.replaying.is_none())
    }

    /// Whether a test over RDMA leaves a start for a gang.
    fn affords_rdma_test(&self) -> bool {
        let boot = self.facts.boot;
        boot.most_rdma_starts == 0 || boot.rdma_starts.saturating_add(STARTS_NEEDED) <= boot.most_rdma_starts
    }
}

impl Machine {
    /// Time has passed, or something about nodes and links has changed: begins tests that are wanted, and gives up those that do not
    /// answer.
    pub(super) fn mind_link_tests(&mut self, now: Now) {
        if self.link_tests.is_calm
            && self.link_tests.running.is_empty()
            && self.link_tests.asked_for.is_empty()
        {
            return;
        }
        self.give_up_link_tests(now);
        let is_done = |link: &Link| (!is_cable(link) || self.has_passed(link)) && !self.has_failed(link);
        self.link_tests.is_calm = self.links.iter().all(is_done);
        let awaited: Vec<LinkName> =
            self.links.iter().filter(|link| self.must_pass_first(now, link)).map(Link::name).collect();
        if awaited != self.link_tests.awaited {
            self.link_tests.awaited = awaited;
            // What a plan may use has changed.
            self.links_version += 1;
        }
        let wanted: Vec<Link> = self.links.iter().filter(|link| self.is_wanted(now, link)).cloned().collect();
        for link in wanted {
            if self.link_tests.running.len() >= MOST_AT_ONCE {
                return;
            }
            if self.may_try_now(now, &link) {
                self.try_link(now, &link);
            }
        }
    }

    /// Whether no plan may use a link before it has passed.
    fn must_pass_first(&self, now: Now, link: &Link) -> bool {
        is_cable(link)
            && !self.has_passed(link)
            && !self.carries_a_gang(link)
            && (self.is_being_tried(link) || self.can_be_tried(now, link))
    }

    fn is_wanted(&self, now: Now, link: &Link) -> bool {
        self.awaits_test(link)
            || self.link_tests.asked_for.iter().any(|name| link.is_called(name))
            // No plan uses it before it has passed, so nobody asks for it.
            || (self.has_failed(link) && self.can_be_tried(now, link))
    }

    /// Whether a test of it is worth waiting for now.
    fn can_be_tried(&self, now: Now, link: &Link) -> bool {
        let is_put_off = self.standing_of(link).is_some_and(|standing| {
            let is_given_up = standing.not_made >= MOST_NOT_MADE || standing.answered_for > 0;
            is_given_up && standing.not_before_mono_ms > now.mono_ms
        });
        !is_put_off && self.keeps_from_trying(link).is_none()
    }

    /// Why a link cannot be tried as its ends are.
    fn keeps_from_trying(&self, link: &Link) -> Option<&'static str> {
        let Some((a, b)) = self.nodes.get(&link.a.node).zip(self.nodes.get(&link.b.node)) else {
            return Some("one of its ends is not known");
        };
        let is_rdma = link.kind == LinkKind::Rdma;
        if a.session.is_none() || b.session.is_none() {
            Some("one of its ends is not connected")
        } else if !a.facts.tests_links || !b.facts.tests_links {
            Some("the agent at one of its ends does not try links")
        } else if self.are_kept_apart(&a.id, &b.id) {
            Some("its ends have different versions")
        } else if is_rdma && !(a.affords_rdma_test() && b.affords_rdma_test()) {
            Some("few of the RDMA starts of this boot are left, and those are for gangs")
        } else if is_rdma && meeting_place(a, b).is_none() {
            Some("its ends have no network in common but cables")
        } else {
            None
        }
    }

    fn is_being_tried(&self, link: &Link) -> bool {
        self.link_tests.running.values().any(|test| link.is_called(&test.name))
    }

    /// Whether a node is an end of a link that is being tried.
    pub(super) fn tries_a_link(&self, node: &NodeId) -> bool {
        self.link_tests.running.values().any(|test| test.name.is_at(node))
    }

    /// A gang that uses it is as good as a test. One that a controller before this one started may use any link between its nodes.
    fn carries_a_gang(&self, link: &Link) -> bool {
        let open = self.open_jobs.iter().filter_map(|id| self.jobs.get(id));
        open.filter_map(|job| Some((job, job.workers.get(&link.a.node)?, job.workers.get(&link.b.node)?)))
            .filter(|(_, a, b)| a.epoch == b.epoch && a.world_size > 1)
            .any(|(job, a, _)| job.gangs.get(&a.epoch).is_none_or(|gang| gang.links.contains(link)))
    }

    fn may_try_now(&self, now: Now, link: &Link) -> bool {
        let Some((a, b)) = self.nodes.get(&link.a.node).zip(self.nodes.get(&link.b.node)) else {
            return false;
        };
        let is_busy = |node: &Node| self.tries_a_link(&node.id);
        // What may take a machine down is on record before it is begun.
        let is_recorded = self.storage_problem.is_none();
        let is_early =
            self.standing_of(link).is_some_and(|standing| standing.not_before_mono_ms > now.mono_ms);
        a.can_try_links()
            && b.can_try_links()
            && !is_early
            && !is_busy(a)
            && !is_busy(b)
            && !self.is_unsettled(&link.name())
            && !self.carries_a_gang(link)
            && (link.kind != LinkKind::Rdma
                || (a.affords_rdma_test() && b.affords_rdma_test() && is_recorded))
    }

    fn try_link(&mut self, now: Now, link: &Link) {
        let went_down = self.went_down_around(link);
        let answered_for = self.standing_of(link).map_or(0, |standing| standing.answered_for);
        if went_down >= MOST_WENT_DOWN.max(answered_for.saturating_add(1)) {
            self.on_link_fatal(now, &link.name(), went_down);
        } else {
            self.begin_link_test(now, link);
        }
    }

    fn begin_link_test(&mut self, now: Now, link: &Link) {
        let Some((a, b)) = self.nodes.get(&link.a.node).zip(self.nodes.get(&link.b.node)) else { return };
        let Some((of_a, of_b)) = a.session.as_ref().zip(b.session.as_ref()) else { return };
        let (sessions, under) = ([of_a.id, of_b.id], under_which(a, b));
        let meeting = (link.kind == LinkKind::Rdma).then(|| meeting_place(a, b)).flatten();
        if link.kind == LinkKind::Rdma && meeting.is_none() {
            return;
        }
        let request_id = self.command_id();
        // On record before it is begun: should this machine go down with it, the next controller knows.
        if let Some(standing) = self.standing_mut(&link.name()) {
            standing.record.under_way = true;
            standing.unheard.clear();
            self.record_node(&link.a.node);
        }
        let launch = Arc::new(self.pair_launch(link, meeting));
        for (rank, end) in (0..).zip([&link.a, &link.b]) {
            let command =
                Command::TestLink { request_id, rank, gang: Arc::clone(&launch), limit_ms: LIMIT_MS };
            self.send(&end.node, command);
        }
        let running =
            Running { name: link.name(), sessions, under, since_mono_ms: now.mono_ms, results: [None, None] };
        self.link_tests.running.insert(request_id, running);
    }

    /// What the two ranks are told.
    fn pair_launch(&mut self, link: &Link, meeting: Option<core::net::IpAddr>) -> GangLaunch {
        let at = |end: &crate::model::LinkEnd, port| SocketAddr::new(end.address, port);
        let control = at(&link.a, self.next_port());
        let is_rdma = link.kind == LinkKind::Rdma;
        let coordinator = meeting.map(|address| SocketAddr::new(address, self.next_port()));
        let mut ranks = Vec::new();
        for (rank, end) in [&link.a, &link.b].into_iter().enumerate() {
            let ring_address = (!is_rdma).then(|| at(end, self.next_port()));
            let device = end.rdma_device.clone().filter(|_| is_rdma);
            let rdma_devices = if rank == 0 { vec![None, device] } else { vec![device, None] };
            ranks.push(RankLaunch {
                node: end.node.clone(),
                layers: None,
                ring_address,
                control_addresses: vec![control],
                rdma_devices,
            });
        }
        GangLaunch {
            mode: Mode::Tensor,
            backend: if is_rdma { Backend::Jaccl } else { Backend::Ring },
            world_size: 2,
            rendezvous_timeout_ms: MEET_MS,
            coordinator,
            ranks,
            expected_answer: Vec::new(),
        }
    }

    /// A node connected: what its links could not be tried for, or did not pass for, may have been its former boot, versions or agent.
    pub(super) fn note_new_end(&mut self, now: Now, id: &NodeId, before: &NodeFacts) {
        self.link_tests.is_calm = false;
        // Those over its former connection.
        self.give_up_link_tests(now);
        let Some(facts) = self.nodes.get(id).map(|node| &node.facts) else { return };
        let is_another_boot = facts.boot_id != before.boot_id;
        // What an earlier controller knew of it is not known here.
        let has_other_versions = !before.agent_instance_id.is_empty() && facts.versions != before.versions;
        let is_another = is_another_boot || has_other_versions;
        let is_as_before = !is_another && facts.agent_instance_id == before.agent_instance_id;
        let mut changed = Vec::new();
        for node in self.nodes.values_mut() {
            let is_own = node.id == *id;
            let of_it = |standing: &&mut Standing| is_own || standing.record.other == *id;
            for standing in node.links_tried.iter_mut().filter(of_it) {
                if standing.note_heard(id, is_another_boot) {
                    changed.push(node.id.clone());
                }
                // That a machine was started anew is what came of the tests that took it down.
                let is_fatal = standing.answered_for > 0 && !has_other_versions;
                if is_as_before || is_fatal {
                    continue;
                }
                if has_other_versions && standing.forgive() {
                    changed.push(node.id.clone());
                }
                standing.not_made = 0;
                standing.obstacle = None;
                standing.not_before_mono_ms = 0;
                if is_another && standing.failed.take().is_some() {
                    self.links_version += 1;
                }
            }
        }
        for node in changed {
            self.record_node(&node);
        }
    }

    /// The links are others than before.
    pub(super) fn note_other_links(&mut self) {
        self.link_tests.is_calm = false;
    }

    /// A link was lost, or has other ends: what a test of it says is said of nothing. That may be all that is seen yet of a machine
    /// that went down with it.
    pub(super) fn end_tests_of(&mut self, name: &LinkName) {
        let before = self.link_tests.running.len();
        self.link_tests.running.retain(|_, test| test.name != *name);
        if self.link_tests.running.len() < before
            && let Some(standing) = self.known_standing_mut(name)
        {
            standing.unheard = BTreeSet::from([name.a.clone(), name.b.clone()]);
        }
    }

    /// A link is gone. Plugged in again it is another one, of which nothing is known.
    pub(super) fn forget_failure_of(&mut self, now: Now, name: &LinkName) {
        // What took a machine down was not the cable.
        if let Some(standing) = self.known_standing_mut(name).filter(|standing| standing.answered_for == 0) {
            standing.failed = None;
        }
        let evidence = evidence_of(name);
        self.incidents.close(now, "the link is gone", |incident| {
            incident.fault == Fault::LinkUnproven && incident.evidence.first() == Some(&evidence)
        });
    }

    /// This controller did not run, and heard no answers.
    pub(super) fn forgive_link_tests(&mut self, now: Now, absent_ms: u64) {
        for test in self.link_tests.running.values_mut() {
            test.since_mono_ms = now.mono_ms.min(test.since_mono_ms + absent_ms);
        }
    }

    /// Before a job changes to a way over these links: those that must pass first are asked for. Returns whether there are any.
    pub(super) fn ask_for_tests(&mut self, now: Now, links: &[Link]) -> bool {
        let must = |link: &&Link| {
            let is_sure = self.has_passed(link) && self.standing_of(link).is_none_or(|of| !of.record.doubted);
            !is_sure && self.can_be_tried(now, link) && !self.carries_a_gang(link)
        };
        let names: BTreeSet<LinkName> = links.iter().filter(must).map(Link::name).collect();
        if names.is_empty() {
            return false;
        }
        self.link_tests.asked_for.extend(names);
        self.mind_link_tests(now);
        true
    }

    /// Whoever wants a better way says so again at each look.
    pub(super) fn forget_asked_tests(&mut self) {
        self.link_tests.asked_for.clear();
    }

    /// Whether a plan may not use it yet.
    pub(super) fn awaits_test(&self, link: &Link) -> bool {
        self.link_tests.awaited.iter().any(|name| link.is_called(name))
    }

    /// Of these links one that is asked for before a job changes to them.
    pub(super) fn asked_of(&self, links: &[Link]) -> Option<LinkName> {
        let is_asked = |link: &&Link| self.link_tests.asked_for.iter().any(|name| link.is_called(name));
        links.iter().find(is_asked).map(Link::name)
    }

    /// Of the links between these nodes those that are being tried, or will be as soon as it is their turn.
    pub(super) fn tests_between<'a>(
        &'a self,
        nodes: &'a BTreeSet<NodeId>,
    ) -> impl Iterator<Item = &'a LinkName> + 'a {
        self.link_tests
            .awaited
            .iter()
            .filter(|name| nodes.contains(&name.a) && nodes.contains(&name.b) && !self.is_unsettled(name))
    }

    /// What a plan that lacks links waits for, if a test is about to bring one.
    pub(super) fn waits_for_test(&self, nodes: &BTreeSet<NodeId>) -> Option<Reason> {
        let name = self.tests_between(nodes).next()?;
        let text = format!("{name} is tried before a job relies on it, which takes some seconds");
        Some(Reason::new("settling", text))
    }
}

fn is_cable(link: &Link) -> bool {
    matches!(link.kind, LinkKind::Rdma | LinkKind::Thunderbolt)
}

/// Where two ranks over RDMA arrange how they talk: at an address of the first.
fn meeting_place(a: &Node, b: &Node) -> Option<core::net::IpAddr> {
    planner::meeting_place(&a.networks, &[&b.networks])
}

/// How a link is called in evidence.
fn evidence_of(name: &LinkName) -> String {
    format!("{name}, its test")
}
