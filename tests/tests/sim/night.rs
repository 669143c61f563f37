//! One night: the clock, who does what when, and what strikes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use nightshift_daemon::{
    ledger::{
        Request,
        sim::{Death, Moment, World},
    },
    model::{Fault, JobId, JobSpec, JobState, Mode, NodeId, RowIx},
    recovery::{BootFacts, Command, Effect, Event, ExitClass, ResultHead, SessionId, StopMode},
};
use nightshift_tests::rng::Rng;

use super::{
    agent::{Agent, Resumed, SimRow, SimWorker, Up},
    checks::{Known, assert_each_once},
    controller::{Controller, Outcome, Waiting},
    faults::{BETWEEN_BURSTS_MS, BETWEEN_MS, Strike},
    planted::Planted,
    worlds::{self, CHECKPOINT_MS, GB, HOUR_MS, LARGE, LARGE_LAYERS, MINUTE_MS, Plan, SMALL_LAYERS},
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

/// What nights were made of, for a person to see that something happened in them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    events: u64,
    strikes: u64,
    restarts: u64,
    jobs: u64,
    rows: u64,
    starts: u64,
    gangs: u64,
    climbs: u64,
    /// Rows that failed though nothing was wrong with them.
    innocents: u64,
}

impl Totals {
    pub(crate) fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.strikes += other.strikes;
        self.restarts += other.restarts;
        self.jobs += other.jobs;
        self.rows += other.rows;
        self.starts += other.starts;
        self.gangs += other.gangs;
        self.climbs += other.climbs;
        self.innocents += other.innocents;
    }
}

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
    disk_full_until_ms: Option<u64>,
    next_strike_ms: u64,
    is_bombarded: bool,
    had_bombardment: bool,
    /// How often a GPU began to fail again and again.
    gpu_series: u32,
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
    pub(crate) fn new(seed: u64, planted: Planted) -> Self {
        let mut rng = Rng::new(seed);
        let plan = Plan::of(seed, &mut rng);
        let agents = plan.nodes.iter().enumerate().map(|(number, (id, budget_gb))| {
            let agent = Agent {
                number,
                budget_gb: *budget_gb,
                is_up: true,
                link_up: true,
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
            disk_full_until_ms: None,
            next_strike_ms: MINUTE_MS,
            is_bombarded: seed % 5 == 4,
            had_bombardment: seed % 5 == 4,
            gpu_series: 0,
            coming: Vec::new(),
            poison: seed.is_multiple_of(3).then_some((JobId(1), RowIx(3))),
            known: Known::default(),
            told: BTreeMap::new(),
            jobs: BTreeMap::new(),
            next_job: 1,
            trace: Vec::new(),
            totals: Totals::default(),
            plan,
            rng,
        }
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
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

    fn check_outcome(&mut self, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Commit { node, rows, heads, reply } => {
                let reply = match reply {
                    Err(_) if self.planted == Planted::FullDiskIgnored => Ok((Vec::new(), 0)),
                    reply => reply,
                };
                if let Ok((_, duplicates)) = &reply {
                    assert_eq!(*duplicates, 0, "a row was stored that had an answer already");
                    self.known.durable.extend(rows.iter().map(|row| (row.job, row.row)));
                    self.totals.rows += rows.len() as u64;
                }
                Outcome::Commit { node, rows, heads, reply }
            }
            Outcome::Failures { rows, reply } => {
                for row in &rows {
                    let is_innocent = Some((row.job, row.row)) != self.poison;
                    // A row can be alone at three crashes and in work at six where something strikes every half minute, and
                    // where two GPUs, or one twice, begin to fail again and again just as they have it. From where the
                    // controller sits it is the row then, and it fails with what was seen.
                    let is_excused = self.had_bombardment || self.gpu_series > 1;
                    assert!(!is_innocent || is_excused, "innocent row {} was condemned", row.row);
                    self.totals.innocents += u64::from(is_innocent);
                }
                if reply.is_ok() {
                    self.known.durable.extend(rows.iter().map(|row| (row.job, row.row)));
                }
                Outcome::Failures { rows, reply }
            }
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
                Effect::RecordNode(record) => drop(controller.ask(Request::PutNode(record), unix_ms)),
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
                self.check_may_work(node, worker.job, "a start");
                self.excite();
            }
            Command::GrantRows { worker, .. } => self.check_may_work(node, worker.job, "rows"),
            Command::StopWorker { .. } if self.planted == Planted::LostStop && self.rng.range(0, 3) == 0 => {
                return;
            }
            Command::StopWorker { .. } => self.excite(),
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

    fn check_may_work(&self, node: &NodeId, job: JobId, what: &str) {
        let Some(controller) = &self.controller else { return };
        // What was asked for, not what the machine has of it.
        let Some(asked) = self.jobs.get(&job) else { return };
        let is_open =
            asked.window.is_none_or(|window| window.is_open(self.unix_ms(), controller.machine.zone()));
        assert!(is_open, "{what} of {job} outside its window");
        let of_node = controller.machine.node(node).expect("a node there is");
        assert!(!of_node.draining, "{what} of {job} for {node}, which is drained");
        if what == "a start" {
            assert!(of_node.quarantine.is_none(), "{what} of {job} for {node}, which is in quarantine");
        }
    }

    fn start_controller(&mut self) {
        let opened = Controller::start(&self.world, self.now_ms, self.unix_ms());
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
        let nightshift_daemon::ledger::Replay { jobs, nodes, models, incidents, repairs, remains, .. } =
            replay;
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

    fn connect(&mut self, id: &NodeId) {
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
        let boot = agent.boot_facts;
        let mut facts =
            worlds::facts(agent.number, agent.budget_gb, agent.boot, agent.instance, agent.link_up);
        facts.boot = boot;
        if self.planted == Planted::WrongBudget {
            facts.memory.configured_bytes = facts.memory.configured_bytes.map(|bytes| bytes * 2);
        }
        self.excite();
        self.tell(Event::Hello { node: id.clone(), session, facts, workers });
    }

    /// A heartbeat, with what its worker is at.
    fn be_heard(&mut self, id: &NodeId) {
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

    fn deliver_up(&mut self, id: &NodeId) {
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
            };
            self.tell(event);
            self.notice_crash();
        }
    }

    /// Checkpoints of a job with one model, that reach a controller whose disk has room: they are durable within a second.
    fn note_told(&mut self, news: &nightshift_daemon::recovery::ProgressNews) {
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

    /// A row goes on from what was told of it, or not more than a second before that.
    fn check_resumed(&self, job: JobId, row: RowIx, resumed: usize) {
        let Some((tokens, at)) = self.told.get(&(job, row)) else { return };
        let is_settled = self.now_ms > at + 5_000 && self.disk_full_until_ms.is_none();
        assert!(
            !is_settled || resumed >= *tokens,
            "row {row} of {job} goes on from {resumed} of {tokens} tokens"
        );
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

    fn deliver_down(&mut self, id: &NodeId) {
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
                let budget = agent.budget_gb;
                assert!(layers <= budget, "{layers} GB of layers on {id}, which has {budget}");
                agent.worker = Some(SimWorker {
                    key: worker,
                    world_size: gang.map_or(1, |gang| gang.world_size),
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
            Command::LookAt { .. } | Command::Drain { .. } => {}
        }
    }

    fn stop_worker(&mut self, id: &NodeId, worker: nightshift_daemon::model::WorkerKey, mode: StopMode) {
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

    fn take_rows(
        &mut self,
        id: &NodeId,
        worker: nightshift_daemon::model::WorkerKey,
        grants: &[nightshift_daemon::recovery::RowGrant],
        resumed: &Resumed,
    ) {
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

    /// An agent may forget a result when the row is durable, when its job is over, or when somebody else has the row.
    fn check_forgotten(&self, id: &NodeId, head: ResultHead) {
        let Some(controller) = &self.controller else { return };
        let Some(job) = controller.machine.job(head.worker.job) else { return };
        let durable = self.known.durable.contains(&(head.worker.job, head.row));
        let elsewhere = job.leases.get(&head.row).is_none_or(|lease| {
            lease.node != *id || lease.attempt != head.attempt || lease.epoch != head.worker.epoch
        });
        assert!(
            durable || job.record.state.is_over() || elsewhere,
            "{id} forgot row {} of {} before it was durable",
            head.row,
            head.worker.job
        );
    }

    /// Whether the ranks of a launch are all there and reach one another.
    fn is_together(&self, worker: &SimWorker) -> bool {
        let of_launch = |other: &&Agent| {
            other
                .worker
                .as_ref()
                .is_some_and(|other| (other.key.job, other.key.epoch) == (worker.key.job, worker.key.epoch))
        };
        let ranks: Vec<&Agent> = self.agents.values().filter(of_launch).collect();
        ranks.len() == worker.world_size as usize
            && ranks
                .iter()
                .all(|agent| agent.link_up && agent.worker.as_ref().is_some_and(|other| !other.hangs))
    }

    fn work(&mut self, id: &NodeId) {
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
    fn revive(&mut self, id: &NodeId) {
        let agent = self.agents.get_mut(id).expect("a node there is");
        if !agent.is_up && self.now_ms >= agent.back_at_ms {
            agent.is_up = true;
            agent.instance += 1;
            self.excite();
        }
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

    fn any_node(&mut self) -> NodeId {
        let at = self.rng.range(0, self.agents.len() as u64);
        self.agents.keys().nth(usize::try_from(at).expect("small")).expect("a node").clone()
    }

    fn strike_if_due(&mut self) {
        let due: Vec<(u64, Strike, Option<NodeId>)> =
            self.coming.extract_if(.., |(at, ..)| *at <= self.now_ms).collect();
        for (_, strike, node) in due {
            self.strike(strike, node);
        }
        if self.now_ms < self.next_strike_ms {
            return;
        }
        let between = if self.is_bombarded { BETWEEN_BURSTS_MS } else { BETWEEN_MS };
        // A bombardment lasts for an hour.
        if self.is_bombarded && self.now_ms > HOUR_MS {
            self.is_bombarded = false;
        }
        self.next_strike_ms = self.now_ms + self.rng.range(between / 10, between * 19 / 10);
        let strike = Strike::any(&mut self.rng);
        self.strike(strike, None);
    }

    fn strike(&mut self, strike: Strike, node: Option<NodeId>) {
        let id = node.unwrap_or_else(|| self.any_node());
        let now_ms = self.now_ms;
        self.totals.strikes += 1;
        self.excite();
        self.note(|| format!("STRIKE {strike:?} {id}"));
        match strike {
            Strike::Exit(class) => {
                // Errors that have nothing to do with one another, but for those of a GPU.
                let digits = self.totals.strikes.to_string();
                let letters: String = digits.bytes().map(|digit| char::from(digit - b'0' + b'a')).collect();
                let error = match class {
                    ExitClass::GpuFault => "GPU Timeout Error".to_owned(),
                    _ => format!("error {letters}"),
                };
                let agent = self.agents.get_mut(&id).expect("a node there is");
                agent.end_worker(now_ms, class, &error, 5);
            }
            Strike::GpuSeries => {
                self.gpu_series += 1;
                for number in 0..4 {
                    let at = now_ms + number * 90_000;
                    self.coming.push((at, Strike::Exit(ExitClass::GpuFault), Some(id.clone())));
                }
            }
            Strike::Hang => {
                if let Some(worker) = &mut self.agents.get_mut(&id).expect("a node there is").worker {
                    worker.hangs = true;
                }
            }
            Strike::LinkDown => {
                let back = now_ms + self.rng.range(1_000, 20 * MINUTE_MS);
                self.set_link(&id, false);
                self.links_back.insert(id, back);
            }
            Strike::LinkFlaps => {
                for number in 0..10 {
                    self.coming.push((now_ms + number * 6_000, Strike::LinkDown, Some(id.clone())));
                }
            }
            Strike::CutOff => {
                let until = now_ms + self.rng.range(1_000, 3 * MINUTE_MS);
                self.agents.get_mut(&id).expect("a node there is").cut_until_ms = until;
                self.excited_until_ms = self.excited_until_ms.max(until.min(now_ms + 20_000));
                self.coming.push((until, Strike::ConnectionLost, Some(id)));
            }
            Strike::ConnectionLost => {
                let agent = self.agents.get_mut(&id).expect("a node there is");
                let session = agent.session;
                agent.disconnect();
                agent.back_at_ms = agent.back_at_ms.max(now_ms + self.rng.range(100, 5_000));
                if let Some(session) = session.filter(|_| self.rng.range(0, 2) == 0) {
                    self.tell(Event::SessionLost { node: id, session });
                }
            }
            Strike::AgentKilled | Strike::Reboot => self.bring_down(&id, strike == Strike::Reboot),
            Strike::RollingUpdate => {
                let ids: Vec<NodeId> = self.agents.keys().cloned().collect();
                for (number, id) in (0..).zip(ids) {
                    self.coming.push((now_ms + number * 3 * MINUTE_MS, Strike::Reboot, Some(id)));
                }
            }
            Strike::ControllerCrash | Strike::PowerCut => {
                // Amid one of the next writes, whichever that is.
                let step = self.world.steps() + self.rng.range(1, 12);
                let moment = *self.rng.pick(&[Moment::Before, Moment::Midway, Moment::After]);
                self.world.crash_at(step, moment);
            }
            Strike::ControllerStopped => self.stopped_until_ms = now_ms + self.rng.range(2_000, 90_000),
            Strike::DiskFull => {
                self.told.clear();
                self.world.set_capacity(Some(1));
                self.disk_full_until_ms = Some(now_ms + self.rng.range(1_000, 10 * MINUTE_MS));
            }
            Strike::ClockJump => {
                let jump = self.rng.range(0, 2 * HOUR_MS);
                self.wall_offset_ms += jump;
            }
            Strike::Person => self.person(id),
            Strike::NewJob => self.submit(),
            Strike::Two => {
                let (one, other) = (Strike::any(&mut self.rng), Strike::any(&mut self.rng));
                for strike in [one, other].into_iter().filter(|strike| *strike != Strike::Two) {
                    self.strike(strike, None);
                }
            }
        }
        self.notice_crash();
    }

    fn bring_down(&mut self, id: &NodeId, reboot: bool) {
        let down_ms = if reboot { self.rng.range(40_000, 4 * MINUTE_MS) } else { self.rng.range(500, 6_000) };
        let now_ms = self.now_ms;
        let agent = self.agents.get_mut(id).expect("a node there is");
        agent.disconnect();
        // The worker ends with its agent, and nobody keeps what it would have said.
        agent.worker = None;
        agent.untold.clear();
        agent.is_up = false;
        agent.back_at_ms = now_ms + down_ms;
        if reboot {
            agent.boot += 1;
            agent.boot_facts = BootFacts::default();
        }
        self.excited_until_ms = self.excited_until_ms.max(now_ms + 12_000);
    }

    fn set_link(&mut self, id: &NodeId, up: bool) {
        let agent = self.agents.get_mut(id).expect("a node there is");
        if agent.link_up == up {
            return;
        }
        agent.link_up = up;
        let facts = worlds::facts(agent.number, agent.budget_gb, agent.boot, agent.instance, up);
        let is_heard =
            agent.session.is_some() && agent.cut_until_ms <= self.now_ms && self.controller.is_some();
        let boot = agent.boot_facts;
        if is_heard {
            let mut memory = facts.memory;
            if self.planted == Planted::WrongBudget {
                memory.configured_bytes = memory.configured_bytes.map(|bytes| bytes * 2);
            }
            self.tell(Event::Observed { node: id.clone(), memory, interfaces: facts.interfaces, boot });
        }
        self.excite();
    }

    /// Somebody pauses, resumes, drains.
    fn person(&mut self, id: NodeId) {
        let jobs: Vec<JobId> = self.jobs.keys().copied().collect();
        let what = self.rng.range(0, 5);
        let job = if jobs.is_empty() { None } else { Some(*self.rng.pick(&jobs)) };
        let is_known = self.controller.as_ref().is_some_and(|c| c.machine.node(&id).is_some());
        match (what, job) {
            (0, Some(job)) => self.tell(Event::Pause(job)),
            (1, Some(job)) => self.tell(Event::Resume(job)),
            (2, _) if is_known => self.tell(Event::Drain { node: id, drain: true }),
            (3, _) if is_known => self.tell(Event::Drain { node: id, drain: false }),
            _ => {}
        }
    }

    fn mend_what_is_due(&mut self) {
        if self.disk_full_until_ms.is_some_and(|until| until <= self.now_ms) {
            self.disk_full_until_ms = None;
            self.world.set_capacity(None);
            self.excite();
        }
        let due: Vec<NodeId> = self
            .links_back
            .iter()
            .filter(|(_, back)| **back <= self.now_ms)
            .map(|(node, _)| node.clone())
            .collect();
        for node in due {
            self.links_back.remove(&node);
            self.set_link(&node, true);
        }
        // A memory that was looked at after a kill has come back.
        let looked: Vec<NodeId> = self
            .agents
            .iter()
            .filter(|(_, agent)| {
                agent.worker.is_none() && agent.session.is_some() && agent.boot_facts.kills_while_loaded > 0
            })
            .filter(|(_, agent)| {
                agent.boot_facts.stranded_bytes.is_none() && agent.cut_until_ms <= self.now_ms
            })
            .map(|(id, _)| id.clone())
            .collect();
        if self.now_ms < self.stopped_until_ms {
            return;
        }
        for id in looked {
            let agent = &self.agents[&id];
            let facts =
                worlds::facts(agent.number, agent.budget_gb, agent.boot, agent.instance, agent.link_up);
            let boot = BootFacts { stranded_bytes: Some(0), ..agent.boot_facts };
            let mut memory = facts.memory;
            if self.planted == Planted::WrongBudget {
                memory.configured_bytes = memory.configured_bytes.map(|bytes| bytes * 2);
            }
            self.tell(Event::Observed { node: id, memory, interfaces: facts.interfaces, boot });
        }
    }

    fn mend_everything(&mut self) {
        self.world.clear_faults();
        self.world.crash_at(u64::MAX, Moment::Before);
        self.disk_full_until_ms = None;
        self.stopped_until_ms = 0;
        let nodes: Vec<NodeId> = self.agents.keys().cloned().collect();
        for node in nodes {
            self.links_back.remove(&node);
            self.set_link(&node, true);
            let agent = self.agents.get_mut(&node).expect("a node there is");
            if agent.cut_until_ms > self.now_ms {
                agent.cut_until_ms = 0;
                agent.disconnect();
            }
            if let Some(controller) = &self.controller
                && controller.machine.node(&node).is_some_and(|node| node.draining)
            {
                self.tell(Event::Drain { node, drain: false });
            }
        }
    }

    /// A person who finds a job paused in the morning has a look, and lets it go on.
    fn resume_what_is_paused(&mut self) {
        let Some(controller) = &self.controller else { return };
        let paused: Vec<JobId> = controller
            .machine
            .jobs()
            .filter(|job| job.record.state == JobState::Paused)
            .map(|job| job.record.id)
            .collect();
        let drained: Vec<NodeId> =
            controller.machine.nodes().filter(|node| node.draining).map(|node| node.id.clone()).collect();
        for job in paused {
            self.tell(Event::Resume(job));
        }
        for node in drained {
            self.tell(Event::Drain { node, drain: false });
        }
    }

    fn is_over(&self) -> bool {
        let Some(controller) = &self.controller else { return false };
        let known: BTreeSet<JobId> = controller.machine.jobs().map(|job| job.record.id).collect();
        controller.machine.jobs().all(|job| job.record.state.is_over())
            && self.jobs.keys().all(|job| known.contains(job))
            && controller.waiting.is_empty()
    }

    fn what_is_left(&self) -> String {
        let Some(controller) = &self.controller else { return "no controller".to_owned() };
        let left = controller.machine.jobs().filter(|job| !job.record.state.is_over()).map(|job| {
            let why = job.parked.as_ref().map(|parked| parked.why.clone());
            let now = controller.now(self.now_ms, self.unix_ms());
            let rulings = controller.machine.explain_job(now, job.record.id).unwrap_or_default();
            let rulings: Vec<String> = rulings
                .into_iter()
                .map(|ruling| format!("{} {}: {}", ruling.rule, ruling.holds, ruling.sentence))
                .collect();
            format!(
                "{}: {:?}, {} of {} rows, workers {:?}, leases {:?}, parked {why:?}, rulings {rulings:#?}",
                job.record.id,
                job.record.state,
                job.done.len(),
                job.record.rows_total,
                job.workers
                    .values()
                    .map(|worker| (&worker.node, worker.epoch, worker.phase))
                    .collect::<Vec<_>>(),
                job.leases
            )
        });
        left.collect::<Vec<_>>().join("\n")
    }

    fn check_the_end(&mut self) {
        self.run_ledger();
        let Some(controller) = &self.controller else { panic!("there is no controller at the end") };
        for job in controller.machine.jobs() {
            let id = job.record.id;
            assert_eq!(job.record.state, JobState::Completed, "{id}: {}", job.record.detail);
            assert_each_once(&self.world, id, job.record.rows_total);
        }
        let is_open =
            |fault: Fault| !matches!(fault, Fault::NodeSilent | Fault::NeedsReboot | Fault::NodeQuarantined);
        for incident in controller.machine.incidents() {
            assert!(
                incident.closed_unix_ms.is_some() || !is_open(incident.fault),
                "never closed: {incident:#?}"
            );
        }
        let told: Vec<_> = controller.machine.incidents().cloned().collect();
        // The controller ends in order, and the next one finds what there was.
        let machine_jobs: Vec<(JobId, u32)> =
            controller.machine.jobs().map(|job| (job.record.id, job.done.len())).collect();
        self.controller = None;
        self.world.restart(Death::Kill);
        let (_, replay) =
            Controller::start(&self.world, self.now_ms, self.unix_ms()).expect("the ledger opens at the end");
        assert_eq!(replay.repairs, Vec::<String>::new(), "repairs at the end");
        let found: Vec<(JobId, u32)> =
            replay.jobs.iter().map(|job| (job.record.id, job.done.len())).collect();
        assert_eq!(found, machine_jobs, "the ledger has other rows than the machine");
        let mut kept = replay.incidents;
        kept.reverse();
        assert_eq!(kept, told, "incidents on disk are not those that were told");
    }
}
