//! The agents of a night and their workers: what they are told, what they do, what they tell.

use nightshift_daemon::{
    model::{LinkPace, Mode, NodeId, WorkerKey},
    recovery::{
        Command, Event, ExitClass, LinkTestResult, NodeFacts, ProgressNews, ResultHead, RowGrant, SessionId,
        StopMode,
    },
};

use super::Night;
use crate::{
    agent::{Agent, Resumed, SimLinkTest, SimRow, SimWorker, Up},
    planted::Planted,
    worlds::{self, CHECKPOINT_MS, GB, LARGE, LARGE_LAYERS, SMALL_LAYERS},
};

/// What two ranks take to try a link.
const LINK_TEST_MS: u64 = 5_000;

/// After which one that waits for the other gives up.
const LINK_TEST_LIMIT_MS: u64 = 30_000;

/// So often a machine may go down with tests in a night of eight hours: twice, and then once in three hours.
const MOST_PANICS: u32 = 5;

impl Night {
    pub(super) fn connect(&mut self, id: &NodeId) {
        let agent = self.agents.get_mut(id).expect("a node there is");
        let may =
            agent.is_up && agent.session.is_none() && self.now_ms >= agent.back_at_ms.max(agent.cut_until_ms);
        if !may {
            return;
        }
        self.sessions += 1;
        let session = SessionId(self.sessions);
        agent.session = Some(session);
        // A new connection is told everything again.
        for row in agent.worker.iter_mut().flat_map(|worker| &mut worker.rows) {
            row.told = 0;
        }
        let spooled: Vec<ResultHead> = agent.spool.values().copied().collect();
        if !spooled.is_empty() {
            agent.say(self.now_ms, 20, Up::Results(spooled));
        }
        agent.say(self.now_ms, 20, Up::Replayed);
        for exit in std::mem::take(&mut agent.untold) {
            agent.say(self.now_ms, 20, Up::Exited(exit));
        }
        let workers = agent.report();
        let mut facts = worlds::facts(agent, &self.plan);
        if self.planted == Planted::WrongBudget {
            facts.memory.configured_bytes = facts.memory.configured_bytes.map(|bytes| bytes * 2);
        }
        self.excite();
        self.tell(Event::Hello { node: id.clone(), session, facts, workers });
    }

    /// A heartbeat, with what its worker is at.
    pub(super) fn be_heard(&mut self, id: &NodeId) {
        let now_ms = self.now_ms;
        let agent = self.agents.get_mut(id).expect("a node there is");
        let Some(session) = agent.session else { return };
        if now_ms < agent.cut_until_ms {
            return;
        }
        let node = id.clone();
        match &agent.worker {
            Some(worker) if worker.is_ready && worker.ends_at_ms.is_none() => {
                let news = worker.news(now_ms, false);
                self.tell(Event::Heard { node: node.clone(), session });
                self.tell(Event::Progress { node, news });
            }
            _ => self.tell(Event::Heard { node, session }),
        }
    }

    pub(super) fn deliver_up(&mut self, id: &NodeId) {
        loop {
            let now_ms = self.now_ms;
            let agent = self.agents.get_mut(id).expect("a node there is");
            let Some(session) = agent.session.filter(|_| now_ms >= agent.cut_until_ms) else { return };
            let Some(up) = agent.next_up(now_ms) else { return };
            let node = id.clone();
            self.tell(Event::Heard { node: node.clone(), session });
            let event = match up {
                Up::Results(heads) => {
                    let heads = self.with_planted_epochs(heads);
                    Event::Results { node, session, heads }
                }
                Up::Replayed => Event::SpoolReplayed { node, session },
                Up::Started(worker) => Event::WorkerStarted { node, worker, pid: 1 },
                Up::Ready(worker, load_ms) => {
                    self.excite();
                    Event::WorkerReady { node, worker, load_ms, canary_tokens: Vec::new() }
                }
                Up::Exited(_) if self.planted == Planted::ForgottenExit && self.rng.range(0, 4) == 0 => {
                    continue;
                }
                Up::Exited(exit) => {
                    self.excite();
                    Event::WorkerExited { node, exit }
                }
                Up::Refused(command_id) => {
                    Event::CommandRefused { node, command_id, problem: "older epoch".to_owned() }
                }
                Up::Model(model) => {
                    let found = worlds::model(&model);
                    Event::ModelFound { node, session, model, found }
                }
                Up::Progress(news) => {
                    self.note_told(&news);
                    Event::Progress { node, news }
                }
                Up::Observed => self.observed(id),
                Up::Tested(request_id, result) => Event::LinkTested { node, session, request_id, result },
            };
            self.tell(event);
            self.notice_crash();
        }
    }

    /// What an agent says of its machine now.
    pub(super) fn observed(&self, id: &NodeId) -> Event {
        let NodeFacts { mut memory, interfaces, thunderbolt, boot, may_restart, .. } =
            worlds::facts(&self.agents[id], &self.plan);
        if self.planted == Planted::WrongBudget {
            memory.configured_bytes = memory.configured_bytes.map(|bytes| bytes * 2);
        }
        Event::Observed { node: id.clone(), memory, interfaces, thunderbolt, boot, may_restart }
    }

    /// Checkpoints of a job with one model, that reach a controller whose disk has room: they are durable within a second.
    fn note_told(&mut self, news: &ProgressNews) {
        let job = news.worker.job;
        let has_one_model = self.jobs.get(&job).is_some_and(|spec| spec.fallback_model.is_none());
        if !has_one_model || self.disk_full_until_ms.is_some() {
            return;
        }
        let leases = self.controller.as_ref().and_then(|controller| controller.machine.job(job));
        for fresh in &news.checkpoints {
            let is_holder = leases
                .and_then(|job| job.leases.get(&fresh.row))
                .is_some_and(|lease| lease.epoch == news.worker.epoch && lease.attempt == fresh.attempt);
            let tokens = fresh.offset as usize + fresh.checkpoint.tokens.len();
            if is_holder {
                self.told.insert((job, fresh.row), (tokens, self.now_ms));
            }
        }
    }

    /// The planted bug: whatever comes is taken for the holder's, whoever sent it.
    fn with_planted_epochs(&mut self, heads: Vec<ResultHead>) -> Vec<ResultHead> {
        if self.planted != Planted::SkippedEpochCheck {
            return heads;
        }
        let Some(controller) = &self.controller else { return heads };
        let mut elsewhere = Vec::new();
        for mut head in heads.iter().copied() {
            let job = controller.machine.job(head.worker.job);
            if let Some(lease) = job.and_then(|job| job.leases.get(&head.row))
                && lease.epoch != head.worker.epoch
                && let Some(session) = self.agents[&lease.node].session
            {
                head.worker.epoch = lease.epoch;
                head.attempt = lease.attempt;
                elsewhere.push((lease.node.clone(), session, head));
            }
        }
        for (node, session, head) in elsewhere {
            self.tell(Event::Results { node, session, heads: vec![head] });
        }
        heads
    }

    pub(super) fn deliver_down(&mut self, id: &NodeId) {
        loop {
            let now_ms = self.now_ms;
            let agent = self.agents.get_mut(id).expect("a node there is");
            if !agent.is_up || now_ms < agent.cut_until_ms {
                return;
            }
            let Some((command, resumed)) = agent.next_down(now_ms) else { return };
            self.obey(id, command, &resumed);
        }
    }

    fn obey(&mut self, id: &NodeId, command: Command, resumed: &Resumed) {
        let now_ms = self.now_ms;
        match command {
            Command::StartWorker { command_id, worker, model, settings, gang } => {
                let load_ms = self.rng.range(10_000, 60_000);
                let agent = self.agents.get_mut(id).expect("a node there is");
                let highest = agent.highest_epoch.entry(worker.job).or_default();
                if worker.epoch.0 < *highest {
                    agent.say(now_ms, 5, Up::Refused(command_id));
                    return;
                }
                *highest = worker.epoch.0;
                assert!(agent.worker.is_none(), "two workers on {id}");
                let all = if model == LARGE { LARGE_LAYERS } else { SMALL_LAYERS };
                let layers = match &gang {
                    None => all,
                    Some(gang) if gang.mode == Mode::Tensor => all.div_ceil(gang.world_size.into()),
                    Some(gang) => {
                        let rank = usize::try_from(worker.rank).expect("a rank");
                        gang.ranks[rank].layers.map_or(all, |span| (span.end - span.first) as u64)
                    }
                };
                let is_over_rdma = gang.as_ref().is_some_and(|gang| gang.backend.is_rdma());
                if is_over_rdma {
                    self.count_rdma_start(id);
                }
                let agent = self.agents.get_mut(id).expect("a node there is");
                let budget = agent.budget_gb;
                assert!(layers <= budget, "{layers} GB of layers on {id}, which has {budget}");
                agent.worker = Some(SimWorker {
                    key: worker,
                    world_size: gang.map_or(1, |gang| gang.world_size),
                    is_over_rdma,
                    settings,
                    ready_at_ms: now_ms + load_ms,
                    load_ms,
                    is_ready: false,
                    rows: Vec::new(),
                    finishing: false,
                    ends_at_ms: None,
                    hangs: false,
                    apart_since_ms: None,
                    step: 0,
                    generated: 0,
                    layers: layers * GB,
                    checkpointed_at_ms: now_ms,
                });
                agent.say(now_ms, 5, Up::Started(worker));
            }
            Command::StopWorker { worker, mode, .. } => self.stop_worker(id, worker, mode),
            Command::GrantRows { worker, rows } => self.take_rows(id, worker, &rows, resumed),
            Command::CancelRows { worker, rows } => {
                let agent = self.agents.get_mut(id).expect("a node there is");
                if let Some(known) = agent.worker.as_mut().filter(|known| known.key == worker) {
                    known.rows.retain(|row| !rows.contains(&row.row));
                }
            }
            Command::AckResults { through_spool_seq } => {
                let agent = self.agents.get_mut(id).expect("a node there is");
                let kept = agent.spool.split_off(&(through_spool_seq + 1));
                for head in std::mem::replace(&mut agent.spool, kept).into_values() {
                    self.check_forgotten(id, head);
                }
            }
            Command::InspectModel { model } => {
                self.agents.get_mut(id).expect("a node there is").say(now_ms, 50, Up::Model(model));
            }
            Command::TestLink { request_id, gang, .. } => {
                self.begin_link_test(id, request_id, gang.backend.is_rdma());
            }
            Command::RestartMachine { command_id, boot_id, cause, .. } => {
                let agent = self.agents.get_mut(id).expect("a node there is");
                if boot_id != worlds::boot_id(agent) {
                    agent.say(now_ms, 5, Up::Refused(command_id));
                    return;
                }
                assert!(agent.worker.is_none(), "{id} has a worker and is to restart");
                self.restart(id, cause);
            }
            Command::LookAt { .. } | Command::Drain { .. } => {}
        }
    }

    fn begin_link_test(&mut self, id: &NodeId, request_id: u64, is_over_rdma: bool) {
        let now_ms = self.now_ms;
        let agent = self.agents.get_mut(id).expect("a node there is");
        assert!(worlds::facts(agent, &self.plan).tests_links, "{id} cannot try links");
        // One that still runs is one that the controller has given up: it goes without an answer.
        agent.link_test = None;
        if is_over_rdma {
            self.count_rdma_start(id);
        }
        let agent = self.agents.get_mut(id).expect("a node there is");
        agent.link_test = Some(SimLinkTest { request_id, since_ms: now_ms, is_over_rdma });
    }

    /// Two that have come to the same test and reach one another are done in seconds; one that waits gives up.
    pub(super) fn try_link(&mut self, id: &NodeId) {
        let now_ms = self.now_ms;
        let Some(test) = self.agents[id].link_test else { return };
        let SimLinkTest { request_id, since_ms, is_over_rdma } = test;
        let of_test = |agent: &&Agent| agent.link_test.is_some_and(|of| of.request_id == request_id);
        let bears_it = |agent: &Agent| !is_over_rdma || !agent.panics_over_rdma;
        if !bears_it(&self.agents[id]) && now_ms >= since_ms + LINK_TEST_MS {
            self.panic_over_rdma(id);
            return;
        }
        let at_it = self.agents.values().filter(of_test);
        let reaches = |agent: &&Agent| {
            agent.link_up && bears_it(agent) && (!is_over_rdma || (agent.rdma_up && !agent.is_wedged))
        };
        let both: Vec<NodeId> =
            at_it.filter(reaches).map(|agent| NodeId::from(format!("n{}", agent.number).as_str())).collect();
        let (who, result) = if both.len() == 2 && now_ms >= since_ms + LINK_TEST_MS {
            let pace = LinkPace { round_trip_us: 40, bytes_per_s: 3_000_000_000 };
            (both, LinkTestResult::Passed(pace))
        } else if now_ms >= since_ms + LINK_TEST_LIMIT_MS {
            (vec![id.clone()], LinkTestResult::Failed("rank 1 did not come".to_owned()))
        } else {
            return;
        };
        for id in who {
            let agent = self.agents.get_mut(&id).expect("a node there is");
            agent.link_test = None;
            agent.say(now_ms, 5, Up::Tested(request_id, result.clone()));
        }
    }

    /// A night must not be spent on it.
    fn panic_over_rdma(&mut self, id: &NodeId) {
        self.note(|| format!("{id} goes down with a test over RDMA"));
        let agent = self.agents.get_mut(id).expect("a node there is");
        agent.panics += 1;
        assert!(agent.panics <= MOST_PANICS, "{id} went down {} times with tests over RDMA", agent.panics);
        self.totals.panics += 1;
        self.bring_down(id, true);
    }

    /// Whether the controller keeps to what a boot has.
    fn count_rdma_start(&mut self, id: &NodeId) {
        let now_ms = self.now_ms;
        let agent = self.agents.get_mut(id).expect("a node there is");
        agent.boot_facts.rdma_starts += u32::from(self.planted != Planted::UncountedRdmaStarts);
        agent.rdma_starts += 1;
        let (starts, most) = (agent.rdma_starts, worlds::MOST_RDMA_STARTS);
        assert!(starts <= most, "{starts} starts over RDMA in one boot of {id}");
        agent.say(now_ms, 5, Up::Observed);
    }

    fn stop_worker(&mut self, id: &NodeId, worker: WorkerKey, mode: StopMode) {
        let now_ms = self.now_ms;
        let grace_ms = self.rng.range(500, 4_000);
        let agent = self.agents.get_mut(id).expect("a node there is");
        let Some(known) = agent.worker.as_mut().filter(|known| known.key == worker) else { return };
        match mode {
            StopMode::FinishStarted => {
                known.rows.retain(|row| row.since_ms.is_some());
                known.finishing = true;
            }
            StopMode::Checkpoint if !known.hangs => {
                let news = known.news(now_ms, true);
                known.ends_at_ms.get_or_insert((now_ms + 500, ExitClass::Orderly));
                agent.say(now_ms, 5, Up::Progress(news));
            }
            StopMode::Checkpoint | StopMode::Kill => {
                let class = if known.hangs { ExitClass::Killed } else { ExitClass::Orderly };
                known.ends_at_ms = Some((now_ms + grace_ms, class));
            }
        }
    }

    fn take_rows(&mut self, id: &NodeId, worker: WorkerKey, grants: &[RowGrant], resumed: &Resumed) {
        let agent = self.agents.get_mut(id).expect("a node there is");
        let Some(known) = agent.worker.as_mut().filter(|known| known.key == worker) else { return };
        if known.finishing || known.ends_at_ms.is_some() {
            return;
        }
        for grant in grants {
            known.rows.retain(|row| row.row != grant.row);
            let needed = 60 + (u32::from(grant.row.0 % 7 == 0) * 300) + grant.row.0 * 37 % 240;
            let resumed = resumed.get(&grant.row).copied().unwrap_or(0).min(needed);
            known.rows.push(SimRow {
                row: grant.row,
                attempt: grant.attempt,
                since_ms: None,
                resumed,
                needed,
                told: resumed,
            });
        }
    }

    fn ranks(&self, worker: &SimWorker) -> Vec<&Agent> {
        let of_launch = |other: &&Agent| {
            other
                .worker
                .as_ref()
                .is_some_and(|other| (other.key.job, other.key.epoch) == (worker.key.job, worker.key.epoch))
        };
        self.agents.values().filter(of_launch).collect()
    }

    /// Whether the ranks of a launch are all there and reach one another.
    fn is_together(&self, worker: &SimWorker) -> bool {
        let ranks = self.ranks(worker);
        ranks.len() == worker.world_size as usize
            && ranks.iter().all(|agent| {
                let reaches = agent.link_up && (agent.rdma_up || !worker.is_over_rdma);
                reaches && agent.worker.as_ref().is_some_and(|other| !other.hangs)
            })
    }

    /// What becomes of a rank over RDMA that is alone: its cable is out, and it breaks; or another is gone, and it waits for that for
    /// ever, and nobody can tell (FIELD-NOTES 2).
    fn is_stuck_over_rdma(&mut self, id: &NodeId, is_ready: bool) -> bool {
        let now_ms = self.now_ms;
        let agent = self.agents.get_mut(id).expect("a node there is");
        if !is_ready {
            return false;
        }
        if !agent.link_up {
            agent.end_worker(now_ms, ExitClass::Crashed, "ended by SIGSEGV", 5);
            self.excite();
        } else if agent.worker.as_ref().is_some_and(|known| known.finishing) {
            // Rank 0 has said that this is the end before it went.
            agent.end_worker(now_ms, ExitClass::Orderly, "", 5);
        } else if let Some(known) = &mut agent.worker {
            known.hangs = true;
        }
        true
    }

    pub(super) fn work(&mut self, id: &NodeId) {
        let now_ms = self.now_ms;
        let Some(worker) = self.agents[id].worker.clone() else { return };
        if let Some((at, class)) = worker.ends_at_ms {
            if at <= now_ms {
                let agent = self.agents.get_mut(id).expect("a node there is");
                agent.end_worker(now_ms, class, "", 5);
                self.excite();
            }
            return;
        }
        let together = worker.world_size == 1 || self.is_together(&worker);
        if !together && worker.is_over_rdma && self.is_stuck_over_rdma(id, worker.is_ready) {
            return;
        }
        let is_wedged = worker.is_over_rdma && self.ranks(&worker).iter().any(|rank| rank.is_wedged);
        let agent = self.agents.get_mut(id).expect("a node there is");
        let Some(known) = agent.worker.as_mut() else { return };
        if !together {
            let since = *known.apart_since_ms.get_or_insert(now_ms);
            // A lost peer is noticed in seconds; a black hole never, but by the controller.
            let others = !agent.link_up;
            if now_ms >= since + if others { 45_000 } else { 3_000 } {
                let class = if known.is_ready { ExitClass::LinkFault } else { ExitClass::Apart };
                agent.end_worker(now_ms, class, "rank 1 is gone", 5);
                self.excite();
            }
            return;
        }
        known.apart_since_ms = None;
        if known.hangs {
            return;
        }
        if !known.is_ready && is_wedged {
            let error = "[jaccl] Changing queue pair to RTR failed with errno 16";
            agent.end_worker(now_ms, ExitClass::LinkFault, error, 5);
            self.excite();
            return;
        }
        if !known.is_ready {
            if now_ms >= known.ready_at_ms {
                known.is_ready = true;
                let (key, load_ms) = (known.key, known.load_ms);
                agent.say(now_ms, 5, Up::Ready(key, load_ms));
            }
            return;
        }
        self.generate(id);
    }

    fn generate(&mut self, id: &NodeId) {
        let now_ms = self.now_ms;
        let poison = self.poison;
        let agent = self.agents.get_mut(id).expect("a node there is");
        let Some(known) = agent.worker.as_mut() else { return };
        known.step += 1;
        let batch = known.settings.max_batch_rows.max(1) as usize;
        let room = batch.saturating_sub(known.active().count());
        for row in known.rows.iter_mut().filter(|row| row.since_ms.is_none()).take(room) {
            row.since_ms = Some(now_ms);
        }
        let job = known.key.job;
        if known.active().any(|row| Some((job, row.row)) == poison && row.since_ms < Some(now_ms)) {
            agent.end_worker(now_ms, ExitClass::Crashed, "KeyError: 'a row'", 5);
            self.excite();
            return;
        }
        let (done, left): (Vec<SimRow>, Vec<SimRow>) = std::mem::take(&mut known.rows)
            .into_iter()
            .partition(|row| row.since_ms.is_some() && row.tokens(now_ms) >= row.needed);
        known.rows = left;
        let key = known.key;
        let checkpoint_due = now_ms >= known.checkpointed_at_ms + CHECKPOINT_MS;
        known.generated += done.iter().map(|row| u64::from(row.needed - row.resumed)).sum::<u64>();
        if checkpoint_due {
            known.checkpointed_at_ms = now_ms;
            let news = known.news(now_ms, true);
            for row in known.rows.iter_mut().filter(|row| row.since_ms.is_some()) {
                row.told = row.tokens(now_ms).max(row.told);
            }
            agent.say(now_ms, 5, Up::Progress(news));
        }
        let is_done = agent
            .worker
            .as_ref()
            .is_some_and(|known| known.finishing && known.rows.is_empty() && known.key.rank == 0);
        for row in done {
            agent.next_seq += 1;
            let head = ResultHead {
                spool_seq: agent.next_seq,
                worker: key,
                row: row.row,
                attempt: row.attempt,
                status_code: 200,
                prompt_tokens: 1,
                completion_tokens: row.needed,
            };
            agent.spool.insert(head.spool_seq, head);
            agent.say(now_ms, 5, Up::Results(vec![head]));
        }
        if is_done {
            agent.end_worker(now_ms, ExitClass::Orderly, "", 5);
            self.excite();
        }
        self.follow_the_leader(id);
    }

    /// The other ranks end in order with rank 0.
    fn follow_the_leader(&mut self, id: &NodeId) {
        let now_ms = self.now_ms;
        let Some(worker) = self.agents[id].worker.clone().filter(|worker| worker.key.rank > 0) else {
            return;
        };
        let leads = self.agents.values().any(|agent| {
            agent.worker.as_ref().is_some_and(|other| {
                (other.key.job, other.key.epoch, other.key.rank) == (worker.key.job, worker.key.epoch, 0)
            })
        });
        if !leads && worker.finishing {
            let agent = self.agents.get_mut(id).expect("a node there is");
            agent.end_worker(now_ms, ExitClass::Orderly, "", 5);
        }
    }

    /// A machine or an agent that was down comes back.
    pub(super) fn revive(&mut self, id: &NodeId) {
        let agent = self.agents.get_mut(id).expect("a node there is");
        if !agent.is_up && self.now_ms >= agent.back_at_ms {
            agent.is_up = true;
            agent.instance += 1;
            self.excite();
        }
    }
}
