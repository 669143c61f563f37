//! Nodes fall silent: others look whether their machines are still there, and then their rows move, or not yet.
//!
//! What it promises:
//! * rows leave a silent node within `node_silent_ms`, or within `node_seen_silent_ms` where another node sees it; the end of
//!   that is never waited for, so an answer that does not come changes nothing;
//! * a rank is left where it is for longer only while another node sees its machine and its gang takes steps;
//! * only what was seen in the last [`SIGHT_HOLDS_MS`] counts, and only in answer to the newest look; a node that is heard
//!   again has never been silent;
//! * at most [`MOST_LOOKERS`] are asked every [`LOOK_EVERY_MS`] about one node, and only about nodes that have something.
//!
//! The rules are in [`rules::answer_to_silence`].
//!
//! ```text
//!  heard ──half of node_silent_ms──▶ looked at ──node_silent_ms──▶ given up: rows move, gangs end
//!    ▲                                   │                              ▲
//!    │                                   └──but somebody sees it──▶ kept ─┘ node_seen_silent_ms, and its gang does not compute;
//!    └──────────── a word ◀──────────────────────────────────────────┘      or nobody sees it any more
//! ```

use core::net::IpAddr;
use std::collections::BTreeMap;

use super::{
    costs::Costs,
    effect::{Command, Effect},
    event::Now,
    incidents::Opening,
    machine::Machine,
    rules::{self, Sight, SilenceAnswer, SilenceFacts},
    state::{Job, Node, Worker},
};
use crate::{
    model::{Fault, NodeId, Severity},
    planner,
};

/// Between two looks at a silent node. A look takes a second at most, and two of them fit before its silence is answered.
const LOOK_EVERY_MS: u64 = 2_000;

/// How long what somebody saw is believed: two looks may go unanswered in between.
const SIGHT_HOLDS_MS: u64 = 5_000;

/// Nodes asked at a time. One may have lost its own way to the silent node; more than two add nothing.
const MOST_LOOKERS: usize = 2;

/// Addresses looked at: as many as agents try.
const MOST_ADDRESSES: usize = 8;

/// What has been done about a node's silence.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Silence {
    /// It was given up.
    answered: bool,
    /// It counts as silent, and keeps what it has.
    kept: bool,
    /// When others were last asked to look.
    asked_mono_ms: Option<u64>,
    /// By who was asked: as many at most as there are nodes.
    looks: BTreeMap<NodeId, Look>,
}

/// What one node was asked, and has seen.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Look {
    /// The newest question, while it is not answered.
    request_id: Option<u64>,
    /// The newest answer.
    report: Option<Report>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Report {
    seen: bool,
    how: String,
    mono_ms: u64,
}

/// What all of them say together.
struct Testimony {
    sight: Sight,
    /// Those of whom that is true.
    witnesses: Vec<NodeId>,
    /// What each of all says.
    said: Vec<String>,
}

impl Silence {
    /// Whether the node was given up.
    pub(super) fn is_answered(&self) -> bool {
        self.answered
    }

    fn testimony(&self, now: Now) -> Testimony {
        let reports = self.looks.iter().filter_map(|(node, look)| Some((node, look.report.as_ref()?)));
        let fresh: Vec<(&NodeId, &Report)> =
            reports.filter(|(_, report)| now.mono_ms < report.mono_ms + SIGHT_HOLDS_MS).collect();
        let sight = match fresh.iter().map(|(_, report)| report.seen).max() {
            None => Sight::Unknown,
            Some(false) => Sight::Unseen,
            Some(true) => Sight::Seen,
        };
        let agree = fresh.iter().filter(|(_, report)| report.seen == (sight == Sight::Seen));
        Testimony {
            sight,
            witnesses: agree.map(|(node, _)| (*node).clone()).collect(),
            said: fresh.iter().map(|(node, report)| format!("{node}: {}", report.how)).collect(),
        }
    }

    /// Whether a node was asked and has not answered.
    fn awaits(&self, looker: &NodeId) -> bool {
        self.looks.get(looker).is_some_and(|look| look.request_id.is_some())
    }
}

impl Testimony {
    fn names(&self) -> String {
        let names: Vec<&str> = self.witnesses.iter().map(NodeId::as_str).collect();
        names.join(" and ")
    }

    fn reach(&self) -> &'static str {
        if self.witnesses.len() == 1 { "reaches" } else { "reach" }
    }

    /// What it adds to the sentence that there is no word from the node.
    fn sentence(&self) -> String {
        let (names, reach) = (self.names(), self.reach());
        match self.sight {
            Sight::Unknown => String::new(),
            Sight::Unseen => format!("; confirmed by {names}: it does not answer there either"),
            Sight::Seen => format!(
                "; {names} still {reach} it: its agent, or its way to the controller, is what is broken"
            ),
        }
    }

    /// The first line names the cause alone, so that the same silence seen by others is the same incident.
    fn evidence(&self) -> Vec<String> {
        let cause = match self.sight {
            Sight::Unknown => return Vec::new(),
            Sight::Unseen => "no node that looked for it saw it",
            Sight::Seen => "its machine was seen by another node",
        };
        std::iter::once(cause.to_owned()).chain(self.said.iter().cloned()).collect()
    }
}

impl Node {
    /// How long there has been no word from it; `None` if there never was one.
    pub(super) fn silent_ms(&self, now: Now) -> Option<u64> {
        self.last_heard_mono_ms.map(|at| now.mono_ms.saturating_sub(at))
    }

    /// The controller did not run for so long: nothing of that was silence, and nothing seen before has aged.
    pub(super) fn forgive_absence(&mut self, now: Now, absent_ms: u64) {
        let reports = self.silence.looks.values_mut().filter_map(|look| look.report.as_mut());
        let seen = reports.map(|report| &mut report.mono_ms);
        let own = self.last_heard_mono_ms.iter_mut().chain(&mut self.idle_since_mono_ms);
        let times = own.chain(&mut self.silence.asked_mono_ms).chain(seen);
        for mono_ms in times {
            *mono_ms = now.mono_ms.min(*mono_ms + absent_ms);
        }
    }
}

impl Machine {
    /// Nodes without a word: others look at them, and when it lasts, their rows go to others.
    pub(super) fn mind_silence(&mut self, now: Now) {
        let is_quiet = |node: &&Node| !node.silence.answered && self.is_quiet(now, node);
        let quiet: Vec<NodeId> = self.nodes.values().filter(is_quiet).map(|node| node.id.clone()).collect();
        for id in quiet {
            self.answer_silence(now, &id);
            self.ask_for_looks(now, &id);
        }
    }

    /// Whether it has missed enough heartbeats for others to be asked about it.
    fn is_quiet(&self, now: Now, node: &Node) -> bool {
        node.silent_ms(now).is_some_and(|silent_ms| silent_ms >= self.policy.node_silent_ms / 2)
    }

    fn answer_silence(&mut self, now: Now, id: &NodeId) {
        let Some(node) = self.nodes.get(id) else { return };
        let Some(silent_ms) = node.silent_ms(now) else { return };
        let (was_kept, testimony) = (node.silence.kept, node.silence.testimony(now));
        let computes = self.computes(now, id);
        let facts = SilenceFacts { silent_ms, sight: testimony.sight, computes };
        match rules::answer_to_silence(facts, &self.policy) {
            SilenceAnswer::Wait => {}
            SilenceAnswer::Keep if was_kept => {}
            SilenceAnswer::Keep => self.keep(id, silent_ms, computes, &testimony),
            SilenceAnswer::GiveUp => {
                // One that was not kept is given up at the bound; a tick may come a little later.
                let silent_ms = if was_kept { silent_ms } else { self.policy.node_silent_ms };
                self.close_silent_session(id, silent_ms);
                let Some(node) = self.nodes.get_mut(id) else { return };
                node.silence = Silence { answered: true, ..Silence::default() };
                let record = node.record();
                self.out.push(Effect::RecordNode(record));
                self.give_up_on(now, id, silent_ms, &testimony);
            }
        }
    }

    /// Its connection is of no use any more: what is left of the node is away, gets no rows and cannot hang, but has what it
    /// has. Its agent connects anew when it can.
    fn keep(&mut self, id: &NodeId, silent_ms: u64, computes: bool, testimony: &Testimony) {
        self.close_silent_session(id, silent_ms);
        if let Some(node) = self.nodes.get_mut(id) {
            node.silence.kept = true;
        }
        let seconds = silent_ms as f64 / 1e3;
        let (names, reach) = (testimony.names(), testimony.reach());
        let what = if computes {
            "its rank stays with it as long as its gang takes steps".to_owned()
        } else {
            let bound_s = self.policy.node_seen_silent_ms as f64 / 1e3;
            format!("what it has stays with it until it has been silent for {bound_s:.0} s")
        };
        let message = format!("no word from {id} for {seconds:.0} s, but {names} still {reach} it; {what}");
        self.emit(Severity::Info, "silent-node-kept", Some(id), None, message);
    }

    fn close_silent_session(&mut self, id: &NodeId, silent_ms: u64) {
        if let Some(session) = self.nodes.get_mut(id).and_then(|node| node.session.take()) {
            let reason = format!("no word from {id} for {silent_ms} ms");
            self.out.push(Effect::CloseSession { node: id.clone(), session: session.id, reason });
        }
    }

    fn give_up_on(&mut self, now: Now, id: &NodeId, silent_ms: u64, testimony: &Testimony) {
        let mut costs = Costs::default();
        let (mut broken, mut ended) = (Vec::new(), Vec::new());
        for job_id in self.open_jobs.clone() {
            let Some(job) = self.jobs.get_mut(&job_id) else { continue };
            let worker = job.workers.remove(id);
            broken.extend(worker.iter().filter(|worker| worker.world_size > 1).map(|w| (job_id, w.epoch)));
            let mut of_job = job.release(|_, lease| lease.node == *id);
            of_job.tokens_lost = worker.as_ref().map_or(0, Worker::tokens_at_risk);
            job.record.rows_requeued += of_job.rows;
            ended.extend(worker.as_ref().map(|worker| (job_id, worker.epoch)));
            costs += of_job;
            let launches = job.record.launches.len();
            job.record.launches.retain(|launch| launch.node != *id);
            if worker.is_some() || of_job.rows > 0 || launches != job.record.launches.len() {
                self.record_job(job_id);
            }
        }
        let seconds = silent_ms as f64 / 1e3;
        let summary = format!("no word from {id} for {seconds:.0} s{}", testimony.sentence());
        let rows = match costs.rows {
            0 => String::new(),
            rows => format!("its {rows} rows were handed out again; "),
        };
        let remedy = match testimony.sight {
            Sight::Unknown | Sight::Unseen => "",
            Sight::Seen => "; see on it that cluster-agent runs, and that it can reach the controller",
        };
        let action = format!("{rows}it is taken back when it returns{remedy}");
        self.emit(Severity::Warning, "node-silent", Some(id), None, format!("{summary}; {action}"));
        let opening = Opening {
            node: Some(id.clone()),
            summary,
            action,
            evidence: testimony.evidence(),
            costs,
            noticed_after_ms: Some(silent_ms),
            ..Opening::default()
        };
        let incident = self.incidents.open(now, Fault::NodeSilent, opening);
        for (job, epoch) in ended {
            self.await_first_token(now, job, epoch, incident);
        }
        for (job, epoch) in broken {
            self.blame(job, epoch, incident);
            self.end_gang(now, job, epoch, &format!("the node of a rank, {id}, is silent"));
        }
    }

    /// Whether all that the node has are ranks of gangs that go on, as their rank 0 elsewhere shows.
    fn computes(&self, now: Now, id: &NodeId) -> bool {
        let mut ranks = 0;
        for job in self.open_jobs.iter().filter_map(|job| self.jobs.get(job)) {
            if job.leases.values().any(|lease| lease.node == *id && !lease.committing) {
                return false;
            }
            let Some(worker) = job.workers.get(id) else { continue };
            if !self.takes_steps_elsewhere(now, job, worker) {
                return false;
            }
            ranks += 1;
        }
        ranks > 0
    }

    fn takes_steps_elsewhere(&self, now: Now, job: &Job, rank: &Worker) -> bool {
        let mut of_gang = job.workers.values().filter(|worker| worker.epoch == rank.epoch);
        let Some(rank_0) = of_gang.find(|worker| worker.rank == 0) else { return false };
        let is_heard = self.nodes.get(&rank_0.node).is_some_and(|node| node.session.is_some());
        let budget_ms = self.silence_budget_ms(job, rank_0);
        rank.rank > 0
            && job.is_complete(rank.epoch)
            && is_heard
            && now.mono_ms <= rank_0.last_step_mono_ms.saturating_add(budget_ms)
    }

    fn ask_for_looks(&mut self, now: Now, id: &NodeId) {
        let Some(node) = self.nodes.get(id).filter(|node| !node.silence.answered) else { return };
        let is_due = node.silence.asked_mono_ms.is_none_or(|asked| now.mono_ms >= asked + LOOK_EVERY_MS);
        if !is_due || !self.has_something(id) {
            return;
        }
        let lookers = self.lookers(now, node);
        if lookers.is_empty() {
            return;
        }
        if let Some(node) = self.nodes.get_mut(id) {
            node.silence.asked_mono_ms = Some(now.mono_ms);
        }
        for (looker, addresses) in lookers {
            let request_id = self.command_id();
            if let Some(node) = self.nodes.get_mut(id) {
                node.silence.looks.entry(looker.clone()).or_default().request_id = Some(request_id);
            }
            self.send(&looker, Command::LookAt { request_id, of: id.clone(), addresses });
        }
    }

    fn has_something(&self, id: &NodeId) -> bool {
        let mut open = self.open_jobs.iter().filter_map(|job| self.jobs.get(job));
        open.any(|job| job.workers.contains_key(id) || job.leases.values().any(|lease| lease.node == *id))
    }

    /// Who can look at a node, and where. One that has not answered before makes room for others.
    fn lookers(&self, now: Now, silent: &Node) -> Vec<(NodeId, Vec<IpAddr>)> {
        let is_about =
            |node: &&Node| node.id != silent.id && node.session.is_some() && !self.is_quiet(now, node);
        let mut found: Vec<(NodeId, Vec<IpAddr>)> = Vec::new();
        for node in self.nodes.values().filter(is_about) {
            let mut addresses = planner::in_sight(&silent.facts.interfaces, &node.facts.interfaces);
            addresses.truncate(MOST_ADDRESSES);
            if !addresses.is_empty() {
                found.push((node.id.clone(), addresses));
            }
        }
        found.sort_by_key(|(looker, _)| silent.silence.awaits(looker));
        found.truncate(MOST_LOOKERS);
        found
    }

    /// Somebody has looked. What is not the answer to the newest look at a node that is still silent says nothing of now.
    pub(super) fn on_node_seen(
        &mut self,
        now: Now,
        looker: &NodeId,
        request_id: u64,
        of: &NodeId,
        seen: bool,
        how: String,
    ) {
        let look = self.nodes.get_mut(of).and_then(|node| node.silence.looks.get_mut(looker));
        let Some(look) = look.filter(|look| look.request_id == Some(request_id)) else { return };
        look.request_id = None;
        look.report = Some(Report { seen, how, mono_ms: now.mono_ms });
    }
}
