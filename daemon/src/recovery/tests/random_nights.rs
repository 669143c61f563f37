//! Random nights: simulated agents with spools and epochs, a ledger that keeps only what was made durable, and faults
//! at any moment. In every other night the model is too large for one node, so gangs of two come and go. After each
//! step: no row is committed twice, nothing is forgotten by an agent before it is durable, nothing starts outside its window.
//! At the end of each night faults stop, and every job must end with every row.
//!
//! A night that fails prints its seed and the end of its trace; `NIGHTSHIFT_SEED` replays one alone.

use std::collections::{BTreeMap, VecDeque};

use jiff::tz::TimeZone;

use super::{
    kit::{facts, large_model, machine, record},
    sim::{Dice, Disk, SimAgent, SimWorker, Up, policy},
};
use crate::{
    model::{Fault, Incident, JobId, JobState, NodeId, ReplayedJob, RowIx, RowSet, Window},
    recovery::*,
};

const NODES: [&str; 3] = ["a", "b", "c"];
/// Quick enough for every test run; the full simulator runs thousands.
const NIGHTS: u64 = 300;
const STEPS_OF_FAULTS: usize = 600;
/// Far more than a night without faults needs: not ending by then is being stuck.
const STEPS_TO_END: usize = 20_000;

struct Night {
    /// The model needs two nodes.
    large: bool,
    /// A row of the first job that ends whatever generates it.
    poison: Option<RowIx>,
    dice: Dice,
    machine: Machine,
    now: Now,
    disk: Disk,
    agents: BTreeMap<NodeId, SimAgent>,
    /// Commits asked for and not answered.
    committing: VecDeque<(NodeId, Vec<ResultHead>)>,
    failing: VecDeque<(JobId, Vec<RowIx>)>,
    sessions: u64,
    disk_full: bool,
    trace: Vec<String>,
}

impl Night {
    fn new(seed: u64) -> Self {
        let mut night = Self {
            large: seed % 2 == 1,
            poison: seed.is_multiple_of(3).then_some(RowIx((seed / 3 % 20) as u32)),
            dice: Dice(seed),
            machine: Machine::new(policy()),
            now: Now { mono_ms: 0, unix_ms: 1 },
            disk: Disk::default(),
            agents: NODES.iter().map(|name| (NodeId::from(*name), SimAgent::default())).collect(),
            committing: VecDeque::new(),
            failing: VecDeque::new(),
            sessions: 0,
            disk_full: false,
            trace: Vec::new(),
        };
        for agent in night.agents.values_mut() {
            agent.alive = true;
        }
        night.tell(Event::Started { jobs: vec![], nodes: vec![], repairs: vec![], remains: vec![] });
        night
    }

    fn note(&mut self, text: String) {
        self.trace.push(format!("{:>8} {text}", self.now.mono_ms));
    }

    fn tell(&mut self, event: Event) {
        let heads = match &event {
            Event::Results { heads, .. } => heads.clone(),
            _ => Vec::new(),
        };
        if !matches!(event, Event::Tick | Event::Heard { .. }) {
            self.note(format!("{event:?}"));
        }
        for effect in self.machine.step(self.now, event) {
            match effect {
                Effect::RecordJob(job) => {
                    let before = self.disk.jobs.insert(job.id, (*job).clone());
                    assert!(before.is_none_or(|before| before.epoch <= job.epoch), "an epoch went back");
                }
                Effect::RecordNode(node) => _ = self.disk.nodes.insert(node.id.clone(), node),
                Effect::RecordModel(_) => {}
                Effect::RecordIncident(incident) => _ = self.disk.incidents.insert(incident.id, *incident),
                Effect::Send { node, session, command } => {
                    let agent = self.agents.get_mut(&node).unwrap();
                    if agent.session == Some(session) {
                        if let Command::StartWorker { worker, .. } | Command::GrantRows { worker, .. } =
                            &command
                        {
                            let window = self.disk.jobs[&worker.job].spec.window;
                            let is_open = |window: Window| window.is_open(self.now.unix_ms, &TimeZone::UTC);
                            assert!(window.is_none_or(is_open), "work was given outside the window");
                            assert!(
                                self.disk.jobs[&worker.job].epoch >= worker.epoch,
                                "a launch was not recorded first"
                            );
                        }
                        agent.to_agent.push_back(command);
                    }
                }
                Effect::CloseSession { node, session, .. } => {
                    let agent = self.agents.get_mut(&node).unwrap();
                    if agent.session == Some(session) {
                        agent.cut();
                    }
                }
                Effect::Commit { node, indices } => {
                    self.committing.push_back((node, indices.iter().map(|index| heads[*index]).collect()));
                }
                Effect::FailRows { job, rows } => {
                    self.failing.push_back((job, rows.into_iter().map(|(row, _)| row).collect()));
                }
                Effect::SaveCheckpoints { .. } | Effect::Emit(_) | Effect::JobOver(_) => {}
            }
        }
    }

    fn submit(&mut self, rows: u32, priority: i32) {
        let id = self.disk.jobs.keys().next_back().map_or(1, |last| last.0 + 1);
        let mut record = record(id, rows);
        record.spec.priority = priority;
        record.spec.max_batch_rows = 2;
        record.spec.window = self.dice.one_in(3).then(|| "00:00-12:00".parse().unwrap());
        self.disk.jobs.insert(record.id, record.clone());
        self.tell(Event::JobAccepted(record));
    }

    fn finish_failures(&mut self) {
        let Some((job, rows)) = self.failing.pop_front() else { return };
        if self.disk_full {
            self.tell(Event::StorageFailed { problem: "full".to_owned() });
            return;
        }
        for row in &rows {
            assert_eq!((job, Some(*row)), (JobId(1), self.poison), "an innocent row was condemned");
            // The ledger drops what it has already.
            if self.disk.failed.insert((job, *row)) {
                assert!(self.disk.done.insert((job, *row)), "row {row} was answered and failed");
            }
        }
        let row = |row: &RowIx| CommittedRow {
            spool_seq: 0,
            job,
            row: *row,
            status_code: 500,
            prompt_tokens: 0,
            completion_tokens: 0,
        };
        self.tell(Event::FailuresStored { rows: rows.iter().map(row).collect(), totals: vec![] });
    }

    /// The disk takes the oldest waiting group, or refuses it.
    fn finish_commit(&mut self) {
        self.finish_failures();
        let Some((node, heads)) = self.committing.pop_front() else { return };
        let rows: Vec<CommittedRow> = heads
            .iter()
            .map(|head| CommittedRow {
                spool_seq: head.spool_seq,
                job: head.worker.job,
                row: head.row,
                status_code: 200,
                prompt_tokens: 1,
                completion_tokens: 1,
            })
            .collect();
        if self.disk_full {
            self.tell(Event::CommitFailed { node, rows, problem: "full".to_owned() });
            return;
        }
        for row in &rows {
            assert!(
                self.disk.done.insert((row.job, row.row)),
                "row {} of {} was committed twice",
                row.row,
                row.job
            );
        }
        self.tell(Event::Committed { node, rows, totals: vec![] });
    }

    fn crash_controller(&mut self) {
        self.note("the controller crashes".to_owned());
        // What was on its way to disk lands or does not.
        for (_, heads) in std::mem::take(&mut self.committing) {
            if !self.disk_full && self.dice.one_in(2) {
                for head in heads {
                    let fresh = self.disk.done.insert((head.worker.job, head.row));
                    assert!(fresh, "row {} of {} was committed twice", head.row, head.worker.job);
                }
            }
        }
        self.failing.clear();
        for agent in self.agents.values_mut() {
            agent.cut();
        }
        self.machine = Machine::new(policy());
        let jobs = self.disk.jobs.values().map(|record| {
            let mut done = RowSet::new(record.rows_total);
            for (_, row) in self.disk.done.iter().filter(|(job, _)| *job == record.id) {
                done.insert(*row);
            }
            ReplayedJob {
                record: record.clone(),
                rows_succeeded: u64::from(done.len()),
                done,
                rows_failed: 0,
                rows_by_fallback: 0,
                prompt_tokens: 0,
                completion_tokens: 0,
                results_bytes: 0,
                errors_bytes: 0,
                checkpoints: BTreeMap::new(),
            }
        });
        let jobs = jobs.collect();
        let incidents = self.disk.incidents.values().cloned().collect();
        self.tell(Event::Remembered { models: vec![], incidents });
        let nodes = self.disk.nodes.values().cloned().collect();
        self.tell(Event::Started { jobs, nodes, repairs: vec![], remains: vec![] });
    }

    fn connect(&mut self, id: &NodeId) {
        self.sessions += 1;
        let session = SessionId(self.sessions);
        let agent = self.agents.get_mut(id).unwrap();
        if !agent.alive || agent.session.is_some() {
            return;
        }
        agent.session = Some(session);
        agent.to_controller.extend(agent.spool.values().copied().map(Up::Result));
        agent.to_controller.push_back(Up::Replayed);
        agent.to_controller.extend(std::mem::take(&mut agent.untold).into_iter().map(Up::Exited));
        let workers = agent.worker.iter().map(|worker| ReportedWorker {
            worker: worker.key,
            pid: 1,
            phase: match (worker.finishing, worker.ready) {
                (true, _) => WorkerPhase::Stopping,
                (false, true) => WorkerPhase::Decode,
                (false, false) => WorkerPhase::Loading,
            },
            step: 0,
            settings: WorkerSettings { max_batch_rows: 2, ..WorkerSettings::default() },
            world_size: worker.world_size,
            rows: worker.rows.iter().map(|(row, attempt)| HeldRow { row: *row, attempt: *attempt }).collect(),
        });
        let workers = workers.collect();
        let instance = format!("i{}", agent.instance);
        let place = 1 + NODES.iter().position(|name| *name == id.as_str()).unwrap();
        let described = machine(&format!("10.0.0.{place}"), 60);
        let facts = NodeFacts {
            memory: described.memory,
            interfaces: described.interfaces,
            tests_links: true,
            ..facts(&instance)
        };
        self.tell(Event::Hello { node: id.clone(), session, facts, workers });
    }

    fn deliver_up(&mut self, id: &NodeId) {
        let agent = self.agents.get_mut(id).unwrap();
        let Some(session) = agent.session else { return };
        let Some(message) = agent.to_controller.pop_front() else { return };
        let node = id.clone();
        self.tell(Event::Heard { node: node.clone(), session });
        self.tell(match message {
            Up::Started(worker) => Event::WorkerStarted { node, worker, pid: 1 },
            Up::Ready(worker) => Event::WorkerReady { node, worker, load_ms: 1, canary_tokens: Vec::new() },
            Up::Result(head) => Event::Results { node, session, heads: vec![head] },
            Up::Replayed => Event::SpoolReplayed { node, session },
            Up::Model(model) => {
                let found = if self.large { large_model() } else { ModelFound::Problem };
                Event::ModelFound { node, session, model, found }
            }
            Up::Exited(exit) => Event::WorkerExited { node, exit },
            Up::Seen(request_id, of, seen) => {
                Event::NodeSeen { node, request_id, of, seen, how: String::new() }
            }
            Up::Tested(request_id, result) => Event::LinkTested { node, session, request_id, result },
            Up::Refused(command_id) => {
                Event::CommandRefused { node, command_id, problem: "older epoch".to_owned() }
            }
        });
    }

    fn deliver_down(&mut self, id: &NodeId) {
        let agent = self.agents.get_mut(id).unwrap();
        let Some(command) = agent.to_agent.pop_front() else { return };
        match command {
            Command::StartWorker { command_id, worker, gang, .. } => {
                let highest = agent.highest_epoch.entry(worker.job).or_default();
                if worker.epoch < *highest {
                    agent.say(Up::Refused(command_id));
                    return;
                }
                *highest = worker.epoch;
                assert!(agent.worker.is_none(), "two workers on {id}");
                agent.worker = Some(SimWorker {
                    key: worker,
                    world_size: gang.map_or(1, |gang| gang.world_size),
                    ready: false,
                    finishing: false,
                    rows: VecDeque::new(),
                });
                agent.say(Up::Started(worker));
            }
            Command::StopWorker { worker, mode, .. } => {
                if agent.worker.as_ref().is_some_and(|known| known.key == worker) {
                    match mode {
                        StopMode::FinishStarted => {
                            if let Some(known) = &mut agent.worker {
                                known.rows.truncate(2);
                                known.finishing = true;
                            }
                        }
                        StopMode::Checkpoint | StopMode::Kill => agent.end_worker(ExitClass::Killed),
                    }
                }
            }
            Command::GrantRows { worker, rows } => {
                if let Some(known) =
                    agent.worker.as_mut().filter(|known| known.key == worker && !known.finishing)
                {
                    for grant in rows {
                        known.rows.retain(|(row, _)| *row != grant.row);
                        known.rows.push_back((grant.row, grant.attempt));
                    }
                }
            }
            Command::CancelRows { worker, rows } => {
                if let Some(known) = agent.worker.as_mut().filter(|known| known.key == worker) {
                    known.rows.retain(|(row, _)| !rows.contains(row));
                }
            }
            Command::Drain { .. } | Command::RestartMachine { .. } => {}
            Command::InspectModel { model } => agent.say(Up::Model(model)),
            Command::LookAt { request_id, of, .. } => agent.look(request_id, of, &mut self.dice),
            Command::TestLink { request_id, .. } => agent.try_link(request_id, &mut self.dice),
            Command::AckResults { through_spool_seq } => {
                let kept = agent.spool.split_off(&(through_spool_seq + 1));
                let forgotten = std::mem::replace(&mut agent.spool, kept);
                for head in forgotten.into_values() {
                    self.check_forgotten(id, head);
                }
            }
        }
    }

    /// An agent may forget a result when the row is durable, when its job is over, or when somebody else has the row.
    fn check_forgotten(&self, id: &NodeId, head: ResultHead) {
        let job = self.machine.job(head.worker.job).unwrap();
        let durable = self.disk.done.contains(&(head.worker.job, head.row));
        let elsewhere =
            job.leases.get(&head.row).is_none_or(|lease| lease.node != *id || lease.attempt != head.attempt);
        assert!(
            durable || job.record.state.is_over() || elsewhere,
            "{id} forgot row {} before it was durable",
            head.row
        );
    }

    fn work(&mut self, id: &NodeId) {
        let Some((launch, world_size, was_ready)) = self.agents[id]
            .worker
            .as_ref()
            .map(|worker| ((worker.key.job, worker.key.epoch), worker.world_size, worker.ready))
        else {
            return;
        };
        let of_launch = |worker: &&SimWorker| (worker.key.job, worker.key.epoch) == launch;
        let alive = self.agents.values().filter_map(|agent| agent.worker.as_ref()).filter(of_launch).count();
        let alone = alive < world_size as usize;
        // A rank that has lost another ends; one that waits for another gives up at some time.
        if alone && (was_ready || self.dice.one_in(20)) {
            self.agents.get_mut(id).unwrap().end_worker(ExitClass::LinkFault);
            return;
        }
        let agent = self.agents.get_mut(id).unwrap();
        let Some(worker) = &mut agent.worker else { return };
        if alone {
            return;
        }
        if !worker.ready {
            worker.ready = true;
            let key = worker.key;
            agent.say(Up::Ready(key));
        } else if worker.key.job == JobId(1)
            && worker.rows.iter().take(2).any(|(row, _)| Some(*row) == self.poison)
        {
            agent.end_worker(ExitClass::Crashed);
        } else if let Some((row, attempt)) = worker.rows.pop_front() {
            let key = worker.key;
            agent.next_seq += 1;
            let head = ResultHead {
                spool_seq: agent.next_seq,
                worker: key,
                row,
                attempt,
                status_code: 200,
                prompt_tokens: 1,
                completion_tokens: 1,
            };
            agent.spool.insert(head.spool_seq, head);
            agent.say(Up::Result(head));
        } else if worker.finishing && worker.key.rank == 0 {
            agent.end_worker(ExitClass::Orderly);
        }
    }

    fn tick(&mut self, ms: u64) {
        self.now.mono_ms += ms;
        self.now.unix_ms += ms;
        if !self.disk_full && self.machine.storage_problem().is_some() {
            self.tell(Event::StorageRecovered);
        }
        self.tell(Event::Tick);
    }

    /// Windows open or close.
    fn turn_the_clock(&mut self) {
        self.now.unix_ms += 12 * 3_600_000;
        self.tick(100);
    }

    fn any_node(&mut self) -> NodeId {
        NodeId::from(NODES[self.dice.below(NODES.len())])
    }

    fn heartbeats(&mut self) {
        let alive: Vec<_> =
            self.agents.iter().filter_map(|(id, agent)| Some((id.clone(), agent.session?))).collect();
        for (node, session) in alive {
            self.tell(Event::Heard { node, session });
        }
    }

    /// Things that happen in any night.
    fn go_on(&mut self) {
        let id = self.any_node();
        match self.dice.below(8) {
            0 => {
                self.heartbeats();
                self.tick(100);
            }
            1 => self.connect(&id),
            2 | 3 => self.deliver_up(&id),
            4 => self.deliver_down(&id),
            5 | 6 => self.work(&id),
            _ => self.finish_commit(),
        }
    }

    fn fault(&mut self) {
        let id = self.any_node();
        match self.dice.below(10) {
            0 => {
                self.note(format!("the worker of {id} is killed"));
                self.agents.get_mut(&id).unwrap().end_worker(ExitClass::Signalled);
            }
            1 => {
                self.note(format!("the agent of {id} is killed"));
                let agent = self.agents.get_mut(&id).unwrap();
                agent.cut();
                agent.worker = None;
                agent.untold.clear();
                agent.instance += 1;
            }
            2 => {
                self.note(format!("the connection of {id} breaks"));
                let session = self.agents[&id].session;
                self.agents.get_mut(&id).unwrap().cut();
                if let Some(session) = session.filter(|_| self.dice.one_in(2)) {
                    self.tell(Event::SessionLost { node: id, session });
                }
            }
            3 => self.crash_controller(),
            4 => self.disk_full = !self.disk_full,
            5 => {
                // Silence: time passes without a word from this node, for others that see it longer than they may wait.
                let session = self.agents[&id].session;
                for _ in 0..[60, 160][self.dice.below(2)] {
                    let others: Vec<_> = self
                        .agents
                        .iter()
                        .filter(|(other, agent)| **other != id && agent.session.is_some())
                        .map(|(other, agent)| (other.clone(), agent.session.unwrap()))
                        .collect();
                    for (node, session) in others {
                        self.tell(Event::Heard { node: node.clone(), session });
                        self.deliver_down(&node);
                        self.deliver_up(&node);
                    }
                    self.tick(100);
                }
                assert!(session.is_none() || self.agents[&id].session.is_none());
            }
            6 => {
                let jobs: Vec<JobId> = self.disk.jobs.keys().copied().collect();
                if let Some(job) = jobs.get(self.dice.below(jobs.len().max(1))).copied() {
                    let event = if self.dice.one_in(2) { Event::Pause(job) } else { Event::Resume(job) };
                    self.tell(event);
                }
            }
            7 => {
                let drain = self.dice.one_in(2);
                if self.machine.node(&id).is_some() {
                    self.tell(Event::Drain { node: id, drain });
                }
            }
            8 if self.disk.jobs.len() < 4 => {
                let (rows, priority) = (1 + self.dice.below(12), self.dice.below(2));
                self.submit(u32::try_from(rows).unwrap(), i32::try_from(priority).unwrap());
            }
            _ if self.dice.one_in(2) => self.turn_the_clock(),
            _ => self.tick(3_000),
        }
    }

    fn run(&mut self) {
        self.submit(20, 0);
        for _ in 0..STEPS_OF_FAULTS {
            if self.dice.one_in(12) { self.fault() } else { self.go_on() }
        }
        self.note("faults stop".to_owned());
        self.disk_full = false;
        if self.machine.jobs().any(|job| job.window_opens_unix_ms().is_some()) {
            self.turn_the_clock();
        }
        for name in NODES {
            if self.machine.node(&name.into()).is_some() {
                self.tell(Event::Drain { node: name.into(), drain: false });
            }
        }
        for _ in 0..STEPS_TO_END {
            let paused: Vec<JobId> = self
                .machine
                .jobs()
                .filter(|job| job.record.state == JobState::Paused)
                .map(|job| job.record.id)
                .collect();
            for job in paused {
                self.tell(Event::Resume(job));
            }
            self.go_on();
            let is_stored = self.committing.is_empty() && self.failing.is_empty();
            if self.machine.jobs().all(|job| job.record.state.is_over()) && is_stored {
                break;
            }
        }
        for job in self.machine.jobs() {
            assert_eq!(job.record.state, JobState::Completed, "{} did not end: {job:#?}", job.record.id);
            let rows = self.disk.done.iter().filter(|(id, _)| *id == job.record.id).count();
            assert_eq!(rows, job.record.rows_total as usize, "{} misses rows", job.record.id);
        }
        if let Some(poison) = self.poison {
            assert!(self.disk.failed.contains(&(JobId(1), poison)), "the poison row has no error");
        }
        // A node may stay away; everything else has an end.
        let open =
            |incident: &&Incident| incident.closed_unix_ms.is_none() && incident.fault != Fault::NodeSilent;
        let open: Vec<&Incident> = self.machine.incidents().filter(open).collect();
        assert!(open.is_empty(), "never closed: {open:#?}");
        for incident in self.machine.incidents() {
            assert_eq!(self.disk.incidents.get(&incident.id), Some(incident), "on disk as it is told");
        }
    }
}

fn play(seed: u64) {
    let mut night = Night::new(seed);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| night.run()));
    if let Err(panic) = outcome {
        for line in night.trace.iter().rev().take(60).rev() {
            println!("{line}");
        }
        println!("this night has seed {seed}: replay it with NIGHTSHIFT_SEED={seed}");
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn no_night_loses_or_doubles_a_row() {
    if let Ok(seed) = std::env::var("NIGHTSHIFT_SEED") {
        play(seed.parse().unwrap());
        return;
    }
    let nights = std::env::var("NIGHTSHIFT_NIGHTS").map_or(NIGHTS, |nights| nights.parse().unwrap());
    for seed in 0..nights {
        play(seed);
    }
}
