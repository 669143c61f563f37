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

use core::net::SocketAddr;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use super::{
    effect::{Command, GangLaunch, RankLaunch},
    event::{LinkTestResult, Now, SessionId},
    facts::NodeFacts,
    incidents::Opening,
    ladder::span,
    machine::Machine,
    state::Node,
};
use crate::{
    model::{
        Backend, Epoch, Fault, JobId, Link, LinkKind, LinkName, LinkPace, LinkRecord, Mode, NodeId, Reason,
        Severity,
    },
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

/// After a test that could not be made. What is in the way is another test, or a runtime that is being looked at.
const PAUSE_MS: u64 = 5_000;

/// So many tests in a row that could not be made, and no job waits for one.
pub(super) const MOST_NOT_MADE: u32 = 3;

/// And how often one is made even so: what was in the way may be gone.
const LONG_PAUSE_MS: u64 = 10 * 60_000;

/// RDMA starts that a test leaves at each end: its own, and one for the gang.
const STARTS_NEEDED: u32 = 2;

/// A link that does less than this of its best is told of. Two runs over the same cable differ by a few percent.
const SLOW_PERCENT: u64 = 50;

/// Links remembered of a node. A Mac has six ports at the most, each with two links, and networks beside them; were they more, each
/// would push out what is known of another.
pub(super) const MOST_REMEMBERED: usize = 64;

/// Of them the newest are written down: those over the ports of a Mac. A node's record has to fit a value of the ledger, 6 KiB, with
/// what else is in it, and one takes 220 bytes where names are long.
pub(super) const MOST_WRITTEN: usize = 12;

/// What is known of a link from trying it, kept with the node at its first end.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Standing {
    other: NodeId,
    kind: LinkKind,
    record: LinkRecord,
    /// It has failed since it passed.
    is_doubted: bool,
    /// Why it did not pass when it was tried last.
    failed: Option<String>,
    /// Tests in a row that could not be made.
    not_made: u32,
    /// Why the newest of them could not.
    obstacle: Option<String>,
    /// Not tried before this.
    not_before_mono_ms: u64,
}

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

/// How a link stands, for people.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Word {
    /// It has passed in these boots and with these versions.
    Passed { ago_ms: u64, pace: Option<LinkPace>, is_slow: bool },
    /// It did not, and why.
    Failed(String),
    /// It is being tried.
    UnderWay,
    /// It is to be tried.
    Awaited,
    /// It could not be tried, and why.
    NotMade(String),
    /// Nothing tries it before it is needed.
    Untried,
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed { ago_ms, pace, is_slow } => {
                write!(f, "passed its test {} ago", span(*ago_ms))?;
                if let Some(pace) = pace {
                    write!(f, " ({pace})")?;
                }
                if *is_slow { f.write_str(", slower than it once was") } else { Ok(()) }
            }
            Self::Failed(why) => write!(f, "did not pass its test: {why}"),
            Self::UnderWay => f.write_str("is being tried"),
            Self::Awaited => f.write_str("is to be tried"),
            Self::NotMade(why) => write!(f, "could not be tried: {why}"),
            Self::Untried => f.write_str("is tried before a running job changes to it"),
        }
    }
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
    pub(super) fn link_records(&self) -> Vec<LinkRecord> {
        let tried = self.links_tried.iter().map(|standing| &standing.record);
        let mut records: Vec<&LinkRecord> = tried.filter(|record| record.tried_unix_ms > 0).collect();
        records.sort_by_key(|record| std::cmp::Reverse(record.tried_unix_ms));
        records.into_iter().take(MOST_WRITTEN).cloned().collect()
    }

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

impl Standing {
    /// As it was written down.
    pub(super) fn of(record: LinkRecord) -> Self {
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

    fn standing_of(&self, link: &Link) -> Option<&Standing> {
        self.nodes.get(&link.a.node)?.standing(&link.b.node, link.kind)
    }

    fn standing_mut(&mut self, name: &LinkName) -> Option<&mut Standing> {
        Some(self.nodes.get_mut(&name.a)?.standing_mut(&name.b, name.kind))
    }

    /// In the boots and with the versions that both ends are in.
    fn has_passed(&self, link: &Link) -> bool {
        let Some((a, b)) = self.nodes.get(&link.a.node).zip(self.nodes.get(&link.b.node)) else {
            return false;
        };
        let proof = a.standing(&b.id, link.kind).and_then(|standing| standing.record.passed_in);
        proof.is_some_and(|under| under == under_which(a, b))
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

    /// A node tells how a test ended there. Returns whether that was the last word of it.
    pub(super) fn on_link_tested(
        &mut self,
        now: Now,
        node: &NodeId,
        session: SessionId,
        request_id: u64,
        result: LinkTestResult,
    ) -> bool {
        let Some(test) = self.link_tests.running.get_mut(&request_id) else { return false };
        let Some(end) = [&test.name.a, &test.name.b].into_iter().position(|of| of == node) else {
            return false;
        };
        if test.sessions[end] != session {
            return false;
        }
        test.results[end] = Some(result);
        let [Some(of_a), Some(of_b)] = test.results.clone() else { return false };
        let Some(test) = self.link_tests.running.remove(&request_id) else { return false };
        match verdict(&test.name, of_a, of_b) {
            LinkTestResult::Passed(pace) => self.on_link_passed(now, &test.name, test.under, Some(pace)),
            LinkTestResult::Failed(why) => self.on_link_failed(now, &test.name, why),
            LinkTestResult::NotMade(why) => self.on_link_not_tried(now, &test.name, why),
        }
        self.mind_link_tests(now);
        true
    }

    /// All ranks of a launch are ready, so that its links have carried the known sums.
    pub(super) fn note_links_of_gang(&mut self, now: Now, job: JobId, epoch: Epoch) {
        let names = self.gang_mut(job, epoch).map(|gang| gang.computes_over()).unwrap_or_default();
        for name in names {
            if let Some((a, b)) = self.nodes.get(&name.a).zip(self.nodes.get(&name.b)) {
                let under = under_which(a, b);
                self.on_link_passed(now, &name, under, None);
            }
        }
        self.mind_link_tests(now);
    }

    fn on_link_passed(&mut self, now: Now, name: &LinkName, under: u32, pace: Option<LinkPace>) {
        self.link_tests.asked_for.remove(name);
        let Some(standing) = self.standing_mut(name) else { return };
        let was_known = standing.record.passed_in == Some(under);
        standing.is_doubted = false;
        standing.failed = None;
        standing.not_made = 0;
        standing.obstacle = None;
        standing.record.passed_in = Some(under);
        let best = standing.record.best;
        if let Some(pace) = pace {
            standing.record.pace = Some(pace);
            standing.record.best = Some(best.map_or(pace, |best| best.better_of(pace)));
        }
        if was_known && pace.is_none() {
            return;
        }
        standing.record.tried_unix_ms = now.unix_ms;
        self.record_node(&name.a);
        let evidence = evidence_of(name);
        self.incidents.close(now, "the link has passed its test", |incident| {
            incident.fault == Fault::LinkUnproven && incident.evidence.first() == Some(&evidence)
        });
        let Some(pace) = pace else { return };
        let message = format!("{name} has passed its test: {pace}");
        match best.filter(|best| best.is_much_better_than(pace, SLOW_PERCENT)) {
            Some(best) => {
                let message =
                    format!("{message}; it was once {best}: look at the cable and at what else uses it");
                self.emit(Severity::Warning, "link-slow", Some(&name.a), None, message);
            }
            None => self.emit(Severity::Info, "link-passed", Some(&name.a), None, message),
        }
    }

    fn on_link_failed(&mut self, now: Now, name: &LinkName, why: String) {
        self.link_tests.is_calm = false;
        let Some(standing) = self.standing_mut(name) else { return };
        standing.is_doubted = true;
        standing.failed = Some(why.clone());
        standing.not_made = 0;
        standing.obstacle = None;
        standing.record.passed_in = None;
        standing.record.tried_unix_ms = now.unix_ms;
        self.record_node(&name.a);
        self.hold_against(now, name);
        self.settle_links(now);
        let again = span(self.settles_in_ms(now, name));
        let summary = format!("{name} did not pass its test: {why}");
        let action = format!("no job runs over it before it has passed; it is tried again in {again}");
        self.emit(
            Severity::Warning,
            Fault::LinkUnproven.word(),
            Some(&name.a),
            None,
            format!("{summary}; {action}"),
        );
        let opening = Opening {
            node: Some(name.a.clone()),
            summary,
            action,
            evidence: vec![evidence_of(name), why],
            ..Opening::default()
        };
        self.incidents.open(now, Fault::LinkUnproven, opening);
    }

    fn on_link_not_tried(&mut self, now: Now, name: &LinkName, why: String) {
        let Some(standing) = self.standing_mut(name) else { return };
        standing.not_made = standing.not_made.saturating_add(1);
        let is_given_up = standing.not_made >= MOST_NOT_MADE;
        let is_news = standing.not_made == MOST_NOT_MADE;
        standing.not_before_mono_ms = now.mono_ms + if is_given_up { LONG_PAUSE_MS } else { PAUSE_MS };
        standing.obstacle = Some(why.clone());
        if is_news {
            let message = format!(
                "{name} could not be tried {MOST_NOT_MADE} times in a row ({why}): jobs do not wait for that any more, and the \
                 next gang over it is its test"
            );
            self.emit(Severity::Warning, "link-not-tried", Some(&name.a), None, message);
        }
    }

    /// Those whose answers are lost, or do not come.
    fn give_up_link_tests(&mut self, now: Now) {
        let is_lost = |test: &Running| {
            let session =
                |id: &NodeId| self.nodes.get(id).and_then(|node| node.session.as_ref()).map(|of| of.id);
            [&test.name.a, &test.name.b].map(session) != test.sessions.map(Some)
        };
        let is_late = |test: &Running| now.mono_ms >= test.since_mono_ms + ANSWER_LIMIT_MS;
        let over: Vec<(u64, bool)> = self
            .link_tests
            .running
            .iter()
            .filter(|(_, test)| is_lost(test) || is_late(test))
            .map(|(id, test)| (*id, is_lost(test)))
            .collect();
        for (request_id, is_lost) in over {
            let Some(test) = self.link_tests.running.remove(&request_id) else { continue };
            let silent = [&test.name.a, &test.name.b]
                .into_iter()
                .zip(&test.results)
                .find(|(_, result)| result.is_none());
            let who = silent.map_or_else(String::new, |(node, _)| node.to_string());
            if is_lost {
                // That is the node's doing, not the test's: it is tried anew when the node is back.
                if let Some(standing) = self.standing_mut(&test.name) {
                    standing.not_before_mono_ms = now.mono_ms + PAUSE_MS;
                }
            } else {
                let seconds = ANSWER_LIMIT_MS / 1_000;
                self.on_link_not_tried(now, &test.name, format!("{who} did not answer within {seconds} s"));
            }
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

    /// A link has failed: what it has passed was before that.
    pub(super) fn doubt_link(&mut self, name: &LinkName) {
        let Some(node) = self.nodes.get_mut(&name.a) else { return };
        if let Some(standing) =
            node.links_tried.iter_mut().find(|of| of.kind == name.kind && of.other == name.b)
        {
            standing.is_doubted = true;
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

    /// Whether it did not pass when it was tried last.
    pub(super) fn has_failed_its_test(&self, name: &LinkName) -> bool {
        let standing = self.nodes.get(&name.a).and_then(|node| node.standing(&name.b, name.kind));
        standing.is_some_and(|standing| standing.failed.is_some())
    }

    /// How a link stands.
    pub(super) fn word_on_link(&self, now: Now, link: &Link) -> Word {
        let is_of = |test: &&Running| test.name.kind == link.kind && link.joins(&test.name.a, &test.name.b);
        if self.link_tests.running.values().any(|test| is_of(&test)) {
            return Word::UnderWay;
        }
        let standing = self.standing_of(link);
        if let Some(why) = standing.and_then(|standing| standing.failed.clone()) {
            return Word::Failed(why);
        }
        if let Some(standing) = standing.filter(|_| self.has_passed(link)) {
            let LinkRecord { pace, best, tried_unix_ms, .. } = standing.record;
            let is_slow =
                pace.zip(best).is_some_and(|(pace, best)| best.is_much_better_than(pace, SLOW_PERCENT));
            return Word::Passed { ago_ms: now.unix_ms.saturating_sub(tried_unix_ms), pace, is_slow };
        }
        match standing.and_then(|standing| standing.obstacle.clone()) {
            _ if self.awaits_test(link) => Word::Awaited,
            Some(why) => Word::NotMade(why),
            None => Word::Untried,
        }
    }
}

/// What both ends say together. That one could not try says that the other tried alone.
fn verdict(name: &LinkName, of_a: LinkTestResult, of_b: LinkTestResult) -> LinkTestResult {
    use LinkTestResult::{Failed, NotMade, Passed};
    let at = |node: &NodeId, why: String| format!("{node}: {why}");
    match (of_a, of_b) {
        (NotMade(why), _) => NotMade(at(&name.a, why)),
        (_, NotMade(why)) => NotMade(at(&name.b, why)),
        (Failed(a), Failed(b)) if a == b => Failed(a),
        (Failed(a), Failed(b)) => Failed(format!("{}; {}", at(&name.a, a), at(&name.b, b))),
        (Failed(why), Passed(_)) => Failed(at(&name.a, why)),
        (Passed(_), Failed(why)) => Failed(at(&name.b, why)),
        (Passed(a), Passed(b)) => Passed(a.worse_of(b)),
    }
}

/// A sum over the boots and versions that two nodes are in. That two are equal by chance is less likely than that a link breaks
/// right after its test.
fn under_which(a: &Node, b: &Node) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    for NodeFacts { boot_id, versions, .. } in [&a.facts, &b.facts] {
        for text in [boot_id, &versions.runtime, &versions.os] {
            sum.update(text.as_bytes());
            sum.update(&[0]);
        }
    }
    sum.finalize()
}

fn is_cable(link: &Link) -> bool {
    matches!(link.kind, LinkKind::Rdma | LinkKind::Thunderbolt)
}

/// Where two ranks over RDMA arrange how they talk: at an address of the first.
fn meeting_place(a: &Node, b: &Node) -> Option<core::net::IpAddr> {
    let networks = |node: &Node| planner::meeting_networks(&node.facts.interfaces, &node.facts.thunderbolt);
    planner::meeting_place(&networks(a), &[&networks(b)])
}

/// How a link is called in evidence.
fn evidence_of(name: &LinkName) -> String {
    format!("{name}, its test")
}
