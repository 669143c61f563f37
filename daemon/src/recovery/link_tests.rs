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
//! * a test that could not be made says nothing of the link; after [`MOST_NOT_MADE`] in a row nothing waits for one any more, and the
//!   next gang over the link is its test;
//! * a test over RDMA is made only where it leaves a start of this boot for the gang;
//! * what has passed is on record, for the boots and versions at both ends: a controller that starts anew tries nothing twice.
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

/// RDMA starts that a test leaves at each end: its own, and one for the gang.
const STARTS_NEEDED: u32 = 2;

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
        self.link_tests.is_calm = self.links.iter().all(|link| !is_cable(link) || self.has_passed(link));
        let awaited: Vec<LinkName> =
            self.links.iter().filter(|link| self.must_pass_first(link)).map(Link::name).collect();
        if awaited != self.link_tests.awaited {
            self.link_tests.awaited = awaited;
            // What a plan may use has changed.
            self.links_version += 1;
        }
        let wanted: Vec<Link> = self.links.iter().filter(|link| self.is_wanted(link)).cloned().collect();
        for link in wanted {
            if self.link_tests.running.len() >= MOST_AT_ONCE {
                return;
            }
            if self.may_try_now(now, &link) {
                self.begin_link_test(now, &link);
            }
        }
    }

    /// Whether no plan may use a link before it has passed.
    fn must_pass_first(&self, link: &Link) -> bool {
        is_cable(link) && !self.has_passed(link) && self.can_be_tried(link) && !self.carries_a_gang(link)
    }

    fn is_wanted(&self, link: &Link) -> bool {
        let is_of =
            |name: &LinkName| link.kind == name.kind && link.a.node == name.a && link.b.node == name.b;
        self.link_tests.awaited.iter().any(is_of)
            || self.link_tests.asked_for.iter().any(is_of)
            // Nothing waits for it any more, but it may pass yet.
            || (is_cable(link) && self.is_given_up(link) && !self.has_passed(link))
    }

    fn is_given_up(&self, link: &Link) -> bool {
        self.standing_of(link).is_some_and(|standing| standing.not_made >= MOST_NOT_MADE)
    }

    /// Whether a test of it is worth waiting for.
    fn can_be_tried(&self, link: &Link) -> bool {
        let Some((a, b)) = self.nodes.get(&link.a.node).zip(self.nodes.get(&link.b.node)) else {
            return false;
        };
        let is_about = |node: &Node| node.session.is_some() && node.facts.tests_links;
        is_about(a)
            && is_about(b)
            && !self.are_kept_apart(&a.id, &b.id)
            && !self.is_given_up(link)
            && (link.kind != LinkKind::Rdma
                || (a.affords_rdma_test() && b.affords_rdma_test() && meeting_place(a, b).is_some()))
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
        let is_busy = |node: &Node| self.link_tests.running.values().any(|test| test.name.is_at(&node.id));
        let is_early =
            self.standing_of(link).is_some_and(|standing| standing.not_before_mono_ms > now.mono_ms);
        a.can_try_links()
            && b.can_try_links()
            && !is_early
            && !is_busy(a)
            && !is_busy(b)
            && !self.is_unsettled(&link.name())
            && !self.carries_a_gang(link)
            && (link.kind != LinkKind::Rdma || (a.affords_rdma_test() && b.affords_rdma_test()))
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

    /// A node connected: what its links could not be tried for may have been its former boot, versions or agent.
    pub(super) fn note_new_end(&mut self, id: &NodeId, before: &NodeFacts) {
        self.link_tests.is_calm = false;
        let Some(facts) = self.nodes.get(id).map(|node| &node.facts) else { return };
        let is_as_before = facts.boot_id == before.boot_id
            && facts.versions == before.versions
            && facts.agent_instance_id == before.agent_instance_id;
        if is_as_before {
            return;
        }
        for node in self.nodes.values_mut() {
            let is_own = node.id == *id;
            for standing in node.links_tried.iter_mut().filter(|standing| is_own || standing.other == *id) {
                standing.not_made = 0;
                standing.obstacle = None;
                standing.not_before_mono_ms = 0;
            }
        }
    }

    /// The links are others than before.
    pub(super) fn note_other_links(&mut self) {
        self.link_tests.is_calm = false;
    }

    /// Links that are not there any more await nothing.
    pub(super) fn forget_tests_of_lost(&mut self, now: Now, name: &LinkName) {
        let evidence = evidence_of(name);
        self.incidents.close(now, "the link is gone", |incident| {
            incident.fault == Fault::LinkUnproven && incident.evidence.first() == Some(&evidence)
        });
    }

    /// Before a job changes to a way over these links: those that must pass first are asked for. Returns whether there are any.
    pub(super) fn ask_for_tests(&mut self, now: Now, links: &[Link]) -> bool {
        let must = |link: &&Link| {
            let is_sure = self.has_passed(link) && self.standing_of(link).is_none_or(|of| !of.is_doubted);
            !is_sure && self.can_be_tried(link) && !self.carries_a_gang(link)
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
        let is_of =
            |name: &LinkName| link.kind == name.kind && link.a.node == name.a && link.b.node == name.b;
        self.link_tests.awaited.iter().any(is_of)
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
