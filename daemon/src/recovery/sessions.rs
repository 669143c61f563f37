//! Nodes come, go and return. What is done about those that stay silent is in [`super::silence`].

use std::collections::{BTreeSet, VecDeque};

use super::{
    boot::Debt,
    costs::{Costs, Vanished},
    effect::{Command, Effect, StopMode},
    event::{HeldRow, Now, ReportedWorker, SessionId, WorkerPhase},
    facts::NodeFacts,
    incidents::Opening,
    link_tests::Standing,
    machine::Machine,
    silence::Silence,
    state::{Lease, Node, Session, StopReason, Worker},
};
use crate::{
    fit::NodeMemory,
    model::{
        Epoch, Fault, JobId, JobState, Launch, NodeId, NodeRecord, RowIx, Severity, Thunderbolt, WorkerKey,
    },
    planner::Interface,
};

impl Machine {
    pub(super) fn on_hello(
        &mut self,
        now: Now,
        id: NodeId,
        session: SessionId,
        facts: NodeFacts,
        workers: Vec<ReportedWorker>,
    ) {
        let node = self.nodes.entry(id.clone()).or_insert_with(|| Node::new(id.clone()));
        let before = std::mem::replace(&mut node.facts, facts.clone());
        let boot = std::mem::replace(&mut node.facts.boot, before.boot);
        let replaced = node.session.replace(Session {
            id: session,
            since_unix_ms: now.unix_ms,
            replaying: Some(BTreeSet::new()),
            vanished: Vec::new(),
            unsettled: VecDeque::new(),
            acked_spool_seq: None,
            must_resend: false,
        });
        node.heard(now);
        let draining = node.draining;
        // Before the new boot is on record, by which the next controller would know of it.
        self.note_new_end(now, &id, &before);
        self.record_node(&id);
        if let Some(old) = replaced {
            let reason = "the agent connected anew".to_owned();
            self.out.push(Effect::CloseSession { node: id.clone(), session: old.id, reason });
        }
        if draining {
            self.send(&id, Command::Drain { draining: true });
        }
        self.tell_of_return(now, &id, &before, &facts);
        self.on_boot_facts(now, &id, boot);
        // Who may be in one gang has changed.
        self.links_version += u64::from(before.versions != facts.versions);
        self.refresh_links(now);
        // In another boot, or with other versions, its cables have proven nothing.
        self.mind_link_tests(now);
        let (held, vanished) = self.reconcile(now, &id, workers);
        if let Some(session) = self.nodes.get_mut(&id).and_then(|node| node.session.as_mut()) {
            session.replaying = Some(held);
            session.vanished = vanished;
        }
    }

    fn tell_of_return(&mut self, now: Now, id: &NodeId, before: &NodeFacts, facts: &NodeFacts) {
        let rebooted = !before.boot_id.is_empty() && before.boot_id != facts.boot_id;
        if rebooted {
            self.on_new_boot(now, id);
            self.note_restarted(now, id, &before.boot_id);
        }
        let message = if rebooted {
            format!("{id} is back after a reboot")
        } else if before.agent_instance_id.is_empty() {
            format!("{id} is connected")
        } else if before.agent_instance_id != facts.agent_instance_id {
            format!("{id} is connected again, with a new agent process")
        } else {
            format!("{id} is connected again")
        };
        if rebooted {
            let opening = Opening {
                node: Some(id.clone()),
                summary: format!("{id} was rebooted"),
                action: "it takes work again as soon as its runtime is ready".to_owned(),
                ..Opening::default()
            };
            self.incidents.open(now, Fault::NodeRebooted, opening);
            self.incidents
                .close(now, "it is back", |i| i.fault == Fault::NodeRebooted && i.node.as_ref() == Some(id));
        }
        // Whoever answered its silence may have been a controller before this one.
        self.incidents
            .close(now, "it is back", |i| i.fault == Fault::NodeSilent && i.node.as_ref() == Some(id));
        self.emit(Severity::Info, "node-connected", Some(id), None, message);
        if let Some(problem) = &facts.runtime_problem {
            let message = format!("{id} cannot run workers: {problem}");
            self.emit(Severity::Warning, "runtime-not-ready", Some(id), None, message);
        }
    }

    /// Brings what the agent says is running and what is wanted together: adopts, stops, and notes which rows are
    /// really held there.
    fn reconcile(
        &mut self,
        now: Now,
        id: &NodeId,
        reported: Vec<ReportedWorker>,
    ) -> (BTreeSet<(JobId, RowIx)>, Vec<Vanished>) {
        let mut vanished = Vec::new();
        let mut held = BTreeSet::new();
        let mut alive: BTreeSet<WorkerKey> = BTreeSet::new();
        for report in reported {
            if self.adopt(now, id, &report) {
                alive.insert(report.worker);
                held.extend(report.rows.iter().map(|held| (report.worker.job, held.row)));
                self.adopt_rows(id, report.worker, &report.rows);
            } else {
                self.stop_stray(now, id, &report);
                alive.insert(report.worker);
            }
        }
        // Workers believed alive that are not: their rows come back once the spool has been replayed, because their
        // last results may be in it.
        let mut gone = Vec::new();
        for (job_id, job) in &mut self.jobs {
            if let Some(worker) = job.workers.get(id)
                && !alive.contains(&worker.key(*job_id))
            {
                gone.push((
                    *job_id,
                    worker.epoch,
                    worker.world_size,
                    worker.stopping.is_some(),
                    worker.tokens_at_risk(),
                ));
                job.workers.remove(id);
                job.record.launches.retain(|launch| launch.node != *id);
            } else if job.is_adopting()
                && !job.workers.contains_key(id)
                && let Some(at) = job.record.launches.iter().position(|launch| launch.node == *id)
            {
                // One that a controller before this one started, and nobody was there to see its end.
                let launch = job.record.launches.remove(at);
                gone.push((*job_id, launch.epoch, launch.world_size, false, 0));
            }
        }
        for (job, epoch, world_size, asked, tokens_at_risk) in gone {
            self.record_job(job);
            if !asked {
                let message =
                    format!("the worker of {job} (epoch {epoch}) on {id} ended while {id} was away");
                self.emit(Severity::Warning, "worker-vanished", Some(id), Some(job), message.clone());
                let opening = Opening {
                    node: Some(id.clone()),
                    job: Some(job),
                    summary: message,
                    action: "its rows are handed out again".to_owned(),
                    ..Opening::default()
                };
                let incident = self.incidents.open(now, Fault::AgentRestarted, opening);
                self.blame(job, epoch, incident);
                self.await_first_token(now, job, epoch, incident);
                vanished.push(Vanished { job, incident, tokens_at_risk });
            }
            if world_size > 1 {
                self.end_gang(now, job, epoch, &format!("the rank of its gang on {id} is gone"));
            }
        }
        (held, vanished)
    }

    /// Takes a living worker as ours, if it is one we want. An epoch at or below the job's newest launch is one we
    /// gave out; of two on one node, only the one we know. A rank is wanted only while its launch is on record: what is
    /// left of a gang that was given up serves nobody.
    fn adopt(&mut self, now: Now, id: &NodeId, report: &ReportedWorker) -> bool {
        let worker = report.worker;
        let Some(job) = self.jobs.get_mut(&worker.job) else { return false };
        let wanted = matches!(job.record.state, JobState::Active | JobState::Cancelling | JobState::Paused);
        let launched =
            job.record.launches.iter().any(|launch| {
                launch.node == *id && launch.epoch == worker.epoch && launch.rank == worker.rank
            });
        let is_rank = report.world_size > 1 || worker.rank > 0;
        if !wanted || worker.epoch > job.record.epoch || (is_rank && !launched) {
            return false;
        }
        match job.workers.get_mut(id) {
            Some(known) if known.epoch == worker.epoch => {
                known.pid = report.pid;
                known.phase = report.phase;
                known.last_step_mono_ms = now.mono_ms;
                // What it was told may have been lost with the connection.
                let untold = known.stop_mode.filter(|_| report.phase != WorkerPhase::Stopping);
                if let Some((mode, why)) = untold.zip(known.stopping) {
                    known.stopping = None;
                    let reason = "it was told before, and has not heard it";
                    self.stop(now, id, worker.job, mode, why, reason);
                }
                return true;
            }
            Some(_) => return false,
            None => {}
        }
        let held =
            job.leases.values().filter(|lease| lease.node == *id && lease.epoch == worker.epoch).count();
        let stopping = (report.phase == WorkerPhase::Stopping).then_some(StopReason::NotNeeded);
        let launch =
            job.record.launches.iter().find(|launch| launch.node == *id && launch.epoch == worker.epoch);
        let rung = launch.and_then(|launch| launch.rung);
        let mut adopted = Worker::adopted(now, id, report, stopping, rung);
        adopted.held_rows = u32::try_from(held).unwrap_or(u32::MAX);
        job.workers.insert(id.clone(), adopted);
        job.ladder.note_adopted();
        if !job.record.launches.iter().any(|launch| launch.node == *id && launch.epoch == worker.epoch) {
            job.record.launches.retain(|launch| launch.node != *id);
            let launch = Launch { node: id.clone(), epoch: worker.epoch, rank: 0, world_size: 1, rung: None };
            job.record.launches.push(launch);
            self.record_job(worker.job);
        }
        let message =
            format!("adopted the worker of {} on {id} (pid {}), as it runs", worker.job, report.pid);
        self.emit(Severity::Info, "worker-adopted", Some(id), Some(worker.job), message);
        true
    }

    /// Makes an adopted worker the holder of the rows it says it has, where nobody else is.
    fn adopt_rows(&mut self, id: &NodeId, worker: WorkerKey, rows: &[HeldRow]) {
        let Some(job) = self.jobs.get_mut(&worker.job) else { return };
        let mut not_its_own = Vec::new();
        for held in rows {
            if held.row.0 >= job.record.rows_total || job.done.contains(held.row) {
                not_its_own.push(held.row);
                continue;
            }
            match job.leases.get_mut(&held.row) {
                // What the worker has is what counts: a grant of a later attempt may have been lost on the way.
                Some(lease) if lease.node == *id && lease.epoch == worker.epoch => {
                    lease.attempt = held.attempt
                }
                Some(_) => not_its_own.push(held.row),
                None if job.failing.contains_key(&held.row) => not_its_own.push(held.row),
                None => {
                    let lease = Lease {
                        node: id.clone(),
                        epoch: worker.epoch,
                        attempt: held.attempt,
                        committing: false,
                    };
                    job.grant(held.row, lease);
                }
            }
        }
        if !not_its_own.is_empty() {
            self.send(id, Command::CancelRows { worker, rows: not_its_own });
        }
    }

    /// Ends a worker nobody wants. Until it is gone the node has no room for another, so it stays in the books.
    fn stop_stray(&mut self, now: Now, id: &NodeId, report: &ReportedWorker) {
        let worker = report.worker;
        if let Some(job) = self.jobs.get_mut(&worker.job)
            && !job.workers.contains_key(id)
        {
            let stray = Worker::adopted(now, id, report, Some(StopReason::NotNeeded), None);
            job.workers.insert(id.clone(), stray);
        }
        let (job, epoch) = (worker.job, worker.epoch);
        let message =
            format!("a worker of {job} (epoch {epoch}) on {id} is not wanted any more; it is stopped");
        self.emit(Severity::Info, "stray-worker-stopped", Some(id), Some(job), message);
        let command_id = self.command_id();
        let grace_ms = self.policy.stop_grace_ms;
        let reason = "not wanted any more".to_owned();
        let mode = StopMode::Kill;
        let ask_for_stack = false;
        let stop = Command::StopWorker { command_id, worker, mode, grace_ms, reason, ask_for_stack };
        self.send(id, stop);
    }

    /// Everything that was spooled has arrived. What a node was given and neither holds nor delivered is lost to it.
    pub(super) fn on_spool_replayed(&mut self, now: Now, id: &NodeId, session: SessionId) {
        let Some(node) = self.nodes.get_mut(id) else { return };
        node.heard(now);
        let Some(current) = node.session.as_mut().filter(|current| current.id == session) else { return };
        if current.must_resend {
            // Some of it could not be stored: nothing can be concluded until all of it has come again.
            return;
        }
        let Some(held) = current.replaying.take() else { return };
        let vanished = current.vanished.clone();
        for job_id in self.open_jobs.clone() {
            let Some(job) = self.jobs.get_mut(&job_id) else { continue };
            let costs = job.release(|row, lease| lease.node == *id && !held.contains(&(job_id, row)));
            let Costs { rows, tokens_saved, .. } = costs;
            job.record.rows_requeued += rows;
            if let Some(vanished) = vanished.iter().find(|vanished| vanished.job == job_id) {
                let tokens_lost = if rows > 0 { vanished.tokens_at_risk } else { 0 };
                self.incidents.add_costs(vanished.incident, Costs { tokens_lost, ..costs });
            }
            if rows > 0 {
                let message = format!(
                    "{rows} rows of {job_id} were lost with a worker on {id} and are handed out again \
                     ({tokens_saved} of their tokens are kept)"
                );
                self.emit(Severity::Warning, "rows-requeued", Some(id), Some(job_id), message);
                self.record_job(job_id);
            }
            if let Some(job) = self.jobs.get_mut(&job_id)
                && let Some(adopting) = &mut job.adopting
            {
                adopting.waiting.remove(id);
            }
        }
    }

    pub(super) fn on_heard(&mut self, now: Now, id: &NodeId, session: SessionId) {
        if let Some(node) = self.nodes.get_mut(id)
            && node.session.as_ref().is_some_and(|current| current.id == session)
        {
            node.heard(now);
        }
    }

    pub(super) fn on_session_lost(&mut self, id: &NodeId, session: SessionId) {
        if let Some(node) = self.nodes.get_mut(id)
            && node.session.as_ref().is_some_and(|current| current.id == session)
        {
            node.session = None;
            self.emit(
                Severity::Info,
                "node-disconnected",
                Some(id),
                None,
                format!("the connection of {id} ended"),
            );
        }
    }

    pub(super) fn on_runtime_changed(&mut self, id: &NodeId, problem: Option<String>) {
        let Some(node) = self.nodes.get_mut(id) else { return };
        if node.facts.runtime_problem == problem {
            return;
        }
        node.facts.runtime_problem.clone_from(&problem);
        match problem {
            Some(problem) => {
                let message = format!("{id} cannot run workers: {problem}");
                self.emit(Severity::Warning, "runtime-not-ready", Some(id), None, message);
            }
            None => {
                self.emit(Severity::Info, "runtime-ready", Some(id), None, format!("{id} can run workers"))
            }
        }
    }

    /// What the end of a gang costs belongs to this incident.
    pub(super) fn blame(&mut self, job: JobId, epoch: Epoch, incident: u64) {
        if let Some(gang) = self.gang_mut(job, epoch) {
            gang.incident.get_or_insert(incident);
        }
    }

    /// Returns whether it can change a plan.
    pub(super) fn on_observed(
        &mut self,
        now: Now,
        id: &NodeId,
        memory: NodeMemory,
        interfaces: Vec<Interface>,
        thunderbolt: Thunderbolt,
    ) -> bool {
        let Some(node) = self.nodes.get_mut(id) else { return false };
        let budget_changed = node.facts.memory.budget() != memory.budget();
        node.facts.memory = memory;
        let links_changed = node.facts.interfaces != interfaces || node.facts.thunderbolt != thunderbolt;
        if links_changed {
            node.facts.interfaces = interfaces;
            node.facts.thunderbolt = thunderbolt;
            self.refresh_links(now);
        }
        budget_changed || links_changed
    }

    pub(super) fn on_drain(&mut self, now: Now, id: &NodeId, drain: bool) {
        if !drain {
            self.lift_quarantine(now, id, "somebody ended it");
        }
        let Some(node) = self.nodes.get_mut(id) else { return };
        if node.draining == drain {
            return;
        }
        node.draining = drain;
        let record = node.record();
        self.out.push(Effect::RecordNode(record));
        self.send(id, Command::Drain { draining: drain });
        let (kind, message) = if drain {
            ("node-drained", format!("{id} takes no more work; it finishes the rows it is generating"))
        } else {
            ("node-undrained", format!("{id} takes work again"))
        };
        self.emit(Severity::Info, kind, Some(id), None, message);
    }
}

impl Node {
    pub(super) fn new(id: NodeId) -> Self {
        Self {
            id,
            facts: NodeFacts::default(),
            networks: Vec::new(),
            draining: false,
            session: None,
            last_heard_mono_ms: None,
            last_seen_unix_ms: 0,
            silence: Silence::default(),
            gpu_faults_unix_ms: Vec::new(),
            gpu_fault: None,
            quarantine: None,
            debt: Debt::default(),
            links_tried: Vec::new(),
            restarts: Vec::new(),
            restart_command: None,
            restart_asked_mono_ms: 0,
            idle_since_mono_ms: None,
        }
    }

    fn heard(&mut self, now: Now) {
        self.last_heard_mono_ms = Some(now.mono_ms);
        self.last_seen_unix_ms = now.unix_ms;
        self.silence = Silence::default();
    }

    pub(super) fn record(&self) -> NodeRecord {
        NodeRecord {
            id: self.id.clone(),
            draining: self.draining,
            last_seen_unix_ms: self.last_seen_unix_ms,
            boot_id: self.facts.boot_id.clone(),
            gpu_faults_unix_ms: self.gpu_faults_unix_ms.clone(),
            quarantine: self.quarantine.clone(),
            links: self.link_records(),
            restarts: self.restarts.clone(),
        }
    }

    /// A node as a controller before this one knew it.
    pub(super) fn remembered(record: NodeRecord) -> Self {
        let mut node = Self::new(record.id.clone());
        node.draining = record.draining;
        node.last_seen_unix_ms = record.last_seen_unix_ms;
        node.facts.boot_id = record.boot_id;
        node.gpu_faults_unix_ms = record.gpu_faults_unix_ms;
        node.quarantine = record.quarantine;
        node.links_tried = record.links.into_iter().map(|link| Standing::of(link, &record.id)).collect();
        node.restarts = record.restarts;
        node
    }

    /// Why it cannot take work now.
    #[must_use]
    pub fn unusable(&self, now: Now) -> Option<String> {
        match &self.session {
            None => match self.last_heard_mono_ms {
                Some(at) => Some(format!("no word from it for {} s", now.mono_ms.saturating_sub(at) / 1_000)),
                None => Some("it has not connected since the controller started".to_owned()),
            },
            Some(_) if self.draining => Some("it is drained".to_owned()),
            Some(session) if session.replaying.is_some() => {
                Some("it is delivering what it had spooled".to_owned())
            }
            Some(_) => self
                .quarantine_sentence(now)
                .or_else(|| self.restart_sentence())
                .or_else(|| self.debt_sentence())
                .or_else(|| self.facts.runtime_problem.clone()),
        }
    }
}
