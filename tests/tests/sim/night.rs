//! One night: its clock, and the controller in it, from event to effect.

mod machines;
mod promises;
mod strikes;
mod totals;

use std::{collections::BTreeMap, fmt::Write as _};

use nightshift_daemon::{
    ledger::{
        Request,
        sim::{Death, World},
    },
    model::{JobId, JobSpec, NodeId, RowIx},
    recovery::{Command, Effect, Event, ResultHead, SessionId},
};
use nightshift_tests::rng::Rng;
pub(crate) use totals::Totals;

use super::{
    agent::{Agent, Resumed},
    checks::Known,
    controller::{Controller, Waiting},
    faults::Strike,
    planted::Planted,
    worlds::{self, HOUR_MS, MINUTE_MS, Plan},
};

/// A tick of the controller, while something happens.
const FINE_MS: u64 = 900;

/// While nothing does.
const COARSE_MS: u64 = 10_000;

/// For so long after something has happened the clock is fine.
const EXCITED_MS: u64 = 8_000;

/// The evening begins here: 20:00 of the first day, UTC.
const EVENING_UNIX_MS: u64 = 1_700_000_000_000 / 86_400_000 * 86_400_000 + 20 * HOUR_MS;

/// When nothing strikes any more, all jobs must end within this.
const QUIET_MS: u64 = 60 * HOUR_MS;

/// Jobs of a night at most.
const MOST_JOBS: u64 = 6;

/// About how much of an event a trace holds.
const EVENT_BYTES: usize = 400;

/// See the module.
pub(crate) struct Night {
    planted: Planted,
    rng: Rng,
    plan: Plan,
    now_ms: u64,
    /// Of the wall clock, against the other one.
    wall_offset_ms: u64,
    excited_until_ms: u64,
    world: World,
    controller: Option<Controller>,
    /// When it is started again.
    controller_back_at_ms: u64,
    /// It does not run until then.
    stopped_until_ms: u64,
    agents: BTreeMap<NodeId, Agent>,
    sessions: u64,
    /// Links of these nodes come back then.
    links_back: BTreeMap<NodeId, u64>,
    /// The same of RDMA.
    rdma_back: BTreeMap<NodeId, u64>,
    disk_full_until_ms: Option<u64>,
    next_strike_ms: u64,
    is_bombarded: bool,
    had_bombardment: bool,
    /// What is still to strike of a series: when, what, where.
    coming: Vec<(u64, Strike, Option<NodeId>)>,
    /// A row that ends whatever generates it.
    poison: Option<(JobId, RowIx)>,
    known: Known,
    /// Tokens of unfinished rows that the controller was told, and when.
    told: BTreeMap<(JobId, RowIx), (usize, u64)>,
    /// What was asked for, by whoever asked.
    jobs: BTreeMap<JobId, JobSpec>,
    next_job: u64,
    is_traced: bool,
    pub(crate) trace: Vec<String>,
    pub(crate) totals: Totals,
}

/// The first part of what an event says, without writing the rest.
fn short(event: &Event) -> String {
    struct Short(String);
    impl std::fmt::Write for Short {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            self.0.push_str(text);
            if self.0.len() < EVENT_BYTES { Ok(()) } else { Err(std::fmt::Error) }
        }
    }
    let mut text = Short(String::new());
    let _ = write!(text, "{event:?}");
    text.0
}

impl Night {
    pub(crate) fn new(seed: u64, planted: Planted, is_traced: bool) -> Self {
        let mut rng = Rng::new(seed);
        let plan = Plan::of(seed, &mut rng);
        let agents = plan.nodes.iter().enumerate().map(|(number, (id, budget_gb))| {
            let agent = Agent {
                number,
                budget_gb: *budget_gb,
                is_up: true,
                link_up: true,
                rdma_up: true,
                // A driver that does not bear it: rare, and on one machine.
                panics_over_rdma: seed % 16 == 5 && number == 1,
                boot: 1,
                instance: 1,
                ..Agent::default()
            };
            (id.clone(), agent)
        });
        Self {
            planted,
            agents: agents.collect(),
            now_ms: 0,
            wall_offset_ms: EVENING_UNIX_MS,
            excited_until_ms: EXCITED_MS,
            world: World::new(seed),
            controller: None,
            controller_back_at_ms: 0,
            stopped_until_ms: 0,
            sessions: 0,
            links_back: BTreeMap::new(),
            rdma_back: BTreeMap::new(),
            disk_full_until_ms: None,
            next_strike_ms: MINUTE_MS,
            is_bombarded: plan.is_bombarded,
            had_bombardment: plan.is_bombarded,
            coming: Vec::new(),
            poison: seed.is_multiple_of(3).then_some((JobId(1), RowIx(3))),
            known: Known::default(),
            told: BTreeMap::new(),
            jobs: BTreeMap::new(),
            next_job: 1,
            is_traced,
            trace: Vec::new(),
            totals: Totals::default(),
            plan,
            rng,
        }
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        if !self.is_traced {
            return;
        }
        let (seconds, ms) = (self.now_ms / 1_000, self.now_ms % 1_000);
        self.trace.push(format!("{seconds:>7}.{ms:03} {}", text()));
    }

    fn unix_ms(&self) -> u64 {
        self.now_ms + self.wall_offset_ms
    }

    fn excite(&mut self) {
        self.excited_until_ms = self.excited_until_ms.max(self.now_ms + EXCITED_MS);
    }

    pub(crate) fn run(&mut self) {
        self.start_controller();
        self.submit();
        let quiet_from = self.plan.length_ms * 7 / 8;
        while self.now_ms < quiet_from {
            self.advance();
            self.strike_if_due();
        }
        self.note(|| "nothing strikes any more".to_owned());
        self.coming.clear();
        self.mend_everything();
        let until = self.now_ms + QUIET_MS;
        while !self.is_over() {
            assert!(self.now_ms < until, "not every job ended: {}", self.what_is_left());
            self.advance();
            self.resume_what_is_paused();
        }
        // What is still on its way settles.
        for _ in 0..50 {
            self.advance();
        }
        self.check_the_end();
    }

    /// One tick of the clock, and all that happens until then.
    fn advance(&mut self) {
        // A controller that ticks coarsely was absent in between, and holds nobody's silence against them.
        let hangs =
            self.agents.values().any(|agent| agent.worker.as_ref().is_some_and(|worker| worker.hangs));
        let is_fine = hangs || self.now_ms < self.excited_until_ms;
        let step_ms = if is_fine { FINE_MS } else { COARSE_MS };
        self.now_ms += step_ms;
        self.totals.events += 1;
        self.mend_what_is_due();
        if self.controller.is_none() && self.now_ms >= self.controller_back_at_ms {
            self.start_controller();
        }
        for id in self.agents.keys().cloned().collect::<Vec<_>>() {
            self.revive(&id);
            self.work(&id);
            self.try_link(&id);
            self.deliver_down(&id);
        }
        if self.controller.is_some() && self.now_ms >= self.stopped_until_ms {
            for id in self.agents.keys().cloned().collect::<Vec<_>>() {
                self.connect(&id);
                self.be_heard(&id);
                self.deliver_up(&id);
            }
            self.tick();
        }
    }

    fn tick(&mut self) {
        let unix_ms = self.unix_ms();
        let Some(controller) = &mut self.controller else { return };
        let is_owed = controller.machine.storage_problem().is_some()
            || !controller.unrecorded.is_empty()
            || !controller.owed_incidents.is_empty();
        if is_owed && self.disk_full_until_ms.is_none() {
            self.try_storage(unix_ms);
        }
        self.run_ledger();
        self.tell(Event::Tick);
        if let Some(controller) = &mut self.controller {
            controller.flush();
        }
        self.notice_crash();
    }

    /// What is owed is written first, then the machine is told to go on.
    fn try_storage(&mut self, unix_ms: u64) {
        let Some(controller) = &mut self.controller else { return };
        for id in std::mem::take(&mut controller.unrecorded) {
            let Some(record) = controller.machine.job(id).map(|job| job.record.clone()) else { continue };
            if controller.ask(Request::PutJob(record.clone()), unix_ms).is_err() {
                controller.unrecorded.insert(id);
                return;
            }
            self.known.epochs.insert(id, record.epoch.0);
        }
        for (id, incident) in std::mem::take(&mut controller.owed_incidents) {
            if controller.ask(Request::PutIncident(Box::new(incident.clone())), unix_ms).is_err() {
                controller.owed_incidents.insert(id, incident);
            }
        }
        self.tell(Event::StorageRecovered);
    }

    /// What waits for the ledger is done, and the machine hears of it.
    fn run_ledger(&mut self) {
        let unix_ms = self.unix_ms();
        let planted = self.planted;
        let Some(controller) = &mut self.controller else { return };
        if planted == Planted::LostCheckpoints {
            controller.waiting.retain(|item| !matches!(item, Waiting::Checkpoints { .. }));
        }
        let outcomes = controller.run_waiting(unix_ms, planted == Planted::StoredTwice);
        if self.world.has_crashed() {
            // Nobody is there to hear of it.
            return;
        }
        for outcome in outcomes {
            let outcome = self.check_outcome(outcome);
            self.tell(outcome.event());
        }
    }

    /// Lets the machine take in an event, and carries out what it wants, in its order.
    pub(crate) fn tell(&mut self, event: Event) {
        let (now_ms, unix_ms) = (self.now_ms, self.unix_ms());
        if !matches!(event, Event::Tick | Event::Heard { .. } | Event::Progress { .. }) {
            self.note(|| short(&event));
        }
        let heads = match &event {
            Event::Results { heads, .. } => heads.clone(),
            _ => Vec::new(),
        };
        let Some(controller) = &mut self.controller else { return };
        let now = controller.now(now_ms, unix_ms);
        self.totals.events += 1;
        let effects = controller.machine.step(now, event);
        if self.planted == Planted::LaunchBeforeRecord {
            let (starts, others): (Vec<Effect>, Vec<Effect>) = effects.into_iter().partition(|effect| {
                matches!(effect, Effect::Send { command: Command::StartWorker { .. }, .. })
            });
            self.carry_out(starts.into_iter().chain(others).collect(), &heads);
        } else {
            self.carry_out(effects, &heads);
        }
    }

    fn carry_out(&mut self, effects: Vec<Effect>, heads: &[ResultHead]) {
        let unix_ms = self.unix_ms();
        for effect in effects {
            if self.world.has_crashed() {
                return;
            }
            let Some(controller) = &mut self.controller else { return };
            match effect {
                Effect::RecordJob(record) => {
                    // The ledger does one thing after the other: what waits comes first.
                    let id = record.id;
                    let epoch = record.epoch.0;
                    match controller.ask(Request::PutJob(*record), unix_ms) {
                        Ok(_) => {
                            controller.unrecorded.remove(&id);
                            let before = self.known.epochs.insert(id, epoch);
                            assert!(
                                before.is_none_or(|before| before <= epoch),
                                "an epoch of {id} went back"
                            );
                        }
                        Err(error) => {
                            controller.unrecorded.insert(id);
                            let problem = error.to_string();
                            self.tell(Event::StorageFailed { problem });
                        }
                    }
                }
                Effect::RecordNode(record) => {
                    let id = record.id.clone();
                    match controller.ask(Request::PutNode(record), unix_ms) {
                        Ok(_) => controller.unrecorded_nodes.remove(&id),
                        Err(_) => controller.unrecorded_nodes.insert(id),
                    };
                }
                Effect::RecordModel(model) => drop(controller.ask(Request::PutModel(*model), unix_ms)),
                Effect::RecordIncident(incident) => {
                    if self.planted == Planted::UnrecordedIncidents {
                        continue;
                    }
                    let id = incident.id;
                    match controller.ask(Request::PutIncident(incident.clone()), unix_ms) {
                        Ok(_) => drop(controller.owed_incidents.remove(&id)),
                        Err(_) => drop(controller.owed_incidents.insert(id, *incident)),
                    }
                }
                Effect::Send { node, session, command } => self.send(&node, session, command),
                Effect::CloseSession { node, session, .. } => {
                    let agent = self.agents.get_mut(&node).expect("a node there is");
                    if agent.session == Some(session) {
                        agent.disconnect();
                    }
                }
                Effect::Commit { node, indices } => {
                    let chosen: Vec<ResultHead> = indices.iter().map(|index| heads[*index]).collect();
                    for head in &chosen {
                        // Held against what that agent really has: it must be its own, of that launch.
                        let sent = self.agents[&node].spool.get(&head.spool_seq);
                        let is_its_own = sent.is_some_and(|sent| {
                            (sent.worker, sent.row, sent.attempt) == (head.worker, head.row, head.attempt)
                        });
                        assert!(is_its_own, "{head:?} of {node} is to be stored, which sent {sent:?}");
                    }
                    if self.planted == Planted::AcknowledgedBeforeFlush {
                        let through_spool_seq = chosen.iter().map(|head| head.spool_seq).max().unwrap_or(0);
                        let agent = self.agents.get_mut(&node).expect("a node there is");
                        let acknowledged = Command::AckResults { through_spool_seq };
                        agent.send_down(self.now_ms, 1, acknowledged, BTreeMap::new());
                    }
                    controller.waiting.push_back(Waiting::Commit { node, heads: chosen });
                }
                Effect::FailRows { job, rows } => {
                    controller.waiting.push_back(Waiting::Failures { job, rows });
                }
                Effect::SaveCheckpoints { job, rows } => {
                    controller.waiting.push_back(Waiting::Checkpoints { job, rows });
                }
                Effect::Emit(draft) => {
                    self.totals.climbs += u64::from(draft.kind == "climbing");
                    self.totals.links_failed += u64::from(draft.kind == "link-unproven");
                    self.note(|| format!("  {}: {}", draft.kind, draft.message));
                    if matches!(draft.kind.as_str(), "plan-refused") {
                        panic!("{}", draft.message);
                    }
                }
                Effect::JobOver(_) => {}
            }
        }
    }

    fn send(&mut self, node: &NodeId, session: SessionId, command: Command) {
        let now_ms = self.now_ms;
        let delay_ms = self.rng.range(1, 300);
        match &command {
            Command::StartWorker { worker, gang, .. } => {
                let Some(controller) = &self.controller else { return };
                if controller.unrecorded.contains(&worker.job) {
                    // As the driver does: what is not on record is not started.
                    let command_id = match &command {
                        Command::StartWorker { command_id, .. } => *command_id,
                        _ => 0,
                    };
                    let problem = "its launch could not be recorded".to_owned();
                    self.tell(Event::CommandRefused { node: node.clone(), command_id, problem });
                    return;
                }
                self.known.note_start(node, *worker, now_ms);
                self.totals.starts += 1;
                self.totals.gangs += u64::from(gang.is_some() && worker.rank == 0);
                let is_over_rdma = gang.as_ref().is_some_and(|gang| gang.backend.is_rdma());
                self.totals.rdma_gangs += u64::from(is_over_rdma && worker.rank == 0);
                self.check_may_work(node, worker.job, "a start");
                self.excite();
            }
            Command::TestLink { rank, .. } => {
                self.totals.link_tests += u64::from(*rank == 0);
                self.excite();
            }
            Command::GrantRows { worker, .. } => self.check_may_work(node, worker.job, "rows"),
            Command::StopWorker { .. } if self.planted == Planted::LostStop && self.rng.range(0, 3) == 0 => {
                return;
            }
            Command::StopWorker { .. } => self.excite(),
            Command::RestartMachine { command_id, .. } => {
                let Some(controller) = &self.controller else { return };
                if controller.unrecorded_nodes.contains(node) {
                    // As the driver does.
                    let (node, command_id) = (node.clone(), *command_id);
                    self.tell(Event::CommandWithheld { node, command_id });
                    return;
                }
                self.check_may_restart(node);
                self.excite();
            }
            _ => {}
        }
        let mut command = command;
        if self.planted == Planted::ForgottenLease
            && let Command::GrantRows { rows, .. } = &mut command
            && self.rng.range(0, 10) == 0
        {
            rows.pop();
        }
        let resumed = self.resumed(&command);
        let agent = self.agents.get_mut(node).expect("a node there is");
        if agent.session == Some(session) {
            agent.send_down(now_ms, delay_ms, command, resumed);
        }
    }

    /// What the driver adds to rows: the tokens they go on from.
    fn resumed(&self, command: &Command) -> Resumed {
        let Command::GrantRows { worker, rows } = command else { return Resumed::new() };
        let job = self.controller.as_ref().and_then(|controller| controller.machine.job(worker.job));
        let resumed = rows.iter().map(|grant| {
            let tokens = job.and_then(|job| job.resume_point(grant.row, worker.epoch));
            let tokens = tokens.map_or(0, |checkpoint| checkpoint.tokens.len());
            self.check_resumed(worker.job, grant.row, tokens);
            (grant.row, u32::try_from(tokens).unwrap_or(u32::MAX))
        });
        resumed.collect()
    }

    fn start_controller(&mut self) {
        let opened = Controller::start(&self.world, &self.plan, self.now_ms, self.unix_ms());
        let Some((controller, replay)) = opened else {
            self.world.restart(Death::Kill);
            self.controller_back_at_ms = self.now_ms + 2_000;
            return;
        };
        self.totals.restarts += 1;
        self.excite();
        self.note(|| format!("the controller starts: {:?} {:?}", replay.repairs, replay.remains));
        for job in &replay.jobs {
            let (id, epoch) = (job.record.id, job.record.epoch.0);
            let known = self.known.epochs.insert(id, epoch).unwrap_or(0);
            assert!(known <= epoch, "the ledger forgot launch {known} of {id}");
            for (_, row) in self.known.durable.iter().filter(|(of, _)| *of == id) {
                assert!(job.done.contains(*row), "the ledger forgot row {row} of {id}");
            }
            for row in (0..job.record.rows_total).map(RowIx).filter(|row| job.done.contains(*row)) {
                self.known.durable.insert((id, row));
            }
        }
        for id in self.jobs.keys() {
            assert!(replay.jobs.iter().any(|job| job.record.id == *id), "the ledger forgot {id}");
        }
        self.controller = Some(controller);
        let nightshift_daemon::ledger::Replay {
            jobs, mut nodes, models, incidents, repairs, remains, ..
        } = replay;
        if self.planted == Planted::ForgottenRestarts {
            nodes.iter_mut().for_each(|node| node.restarts.clear());
        }
        self.tell(Event::Remembered { models, incidents });
        self.tell(Event::Started { jobs, nodes, repairs, remains });
        self.notice_crash();
    }

    /// The disk's machine crashed amid a write: the controller is gone, and what it had on its way.
    fn notice_crash(&mut self) {
        if !self.world.has_crashed() {
            return;
        }
        let death = if self.rng.range(0, 3) == 0 { Death::PowerCut } else { Death::Kill };
        self.end_controller(death);
    }

    fn end_controller(&mut self, death: Death) {
        self.note(|| format!("the controller is gone ({death:?})"));
        let now_ms = self.now_ms;
        self.told.retain(|_, (_, at)| *at + 5_000 < now_ms);
        self.controller = None;
        self.world.restart(death);
        self.controller_back_at_ms = self.now_ms + self.rng.range(1_000, 20_000);
        for agent in self.agents.values_mut() {
            agent.disconnect();
            agent.back_at_ms = agent.back_at_ms.max(self.controller_back_at_ms + self.rng.range(0, 5_000));
        }
        self.excited_until_ms = self.excited_until_ms.max(self.controller_back_at_ms + 3 * EXCITED_MS);
    }

    fn submit(&mut self) {
        if self.next_job > MOST_JOBS || self.disk_full_until_ms.is_some() {
            return;
        }
        let unix_ms = self.unix_ms();
        let mut record = worlds::job(self.next_job, &mut self.rng, unix_ms, &self.plan);
        if self.planted == Planted::IgnoredWindow {
            record.spec.window = Some("21:00-04:00".parse().expect("a window"));
        }
        let Some(controller) = &mut self.controller else { return };
        let accepted = controller.create_job(&self.world, &record, unix_ms);
        if self.world.has_crashed() {
            self.notice_crash();
            // Whether it was taken is not known; the person asks again with the next one.
            self.next_job += 1;
            return;
        }
        if accepted.is_err() {
            return;
        }
        self.next_job += 1;
        self.totals.jobs += 1;
        self.jobs.insert(record.id, record.spec.clone());
        if self.planted == Planted::IgnoredWindow {
            // The machine is told another thing than the person and the checks know.
            let told = nightshift_daemon::model::JobRecord {
                spec: nightshift_daemon::model::JobSpec { window: None, ..record.spec.clone() },
                ..record.clone()
            };
            self.tell(Event::JobAccepted(told));
        } else {
            self.tell(Event::JobAccepted(record));
        }
        self.excite();
    }
}
