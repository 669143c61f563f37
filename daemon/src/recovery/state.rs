//! What the machine remembers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{
    boot::Debt,
    costs::{Costs, Mending, Vanished},
    effect::StopMode,
    event::{Now, ReportedWorker, SessionId, WorkerPhase, WorkerSettings},
    facts::NodeFacts,
    gangs::GangRecord,
    isolation::Crashes,
    ladder::Ladder,
    learning::Stretch,
    link_tests::Standing,
    models::KnownLayout,
    parking::Parked,
    quarantine::GpuFault,
    rates::{RowRate, TokenRate},
    silence::Silence,
    windows::Closed,
};
use crate::{
    model::{
        Checkpoint, Epoch, JobId, JobRecord, JobState, Launch, NodeId, Plan, Quarantine, Restart, RowIx,
        RowSet, Rung, WorkerKey,
    },
    planner::Network,
};

/// A node, seen or remembered.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name.
    pub id: NodeId,
    /// What it said of itself when it last connected.
    pub facts: NodeFacts,
    /// Networks in which it can be met apart from cables, of these facts.
    pub(super) networks: Vec<Network>,
    /// Told to take no work.
    pub draining: bool,
    /// Its connection, if it has one.
    pub session: Option<Session>,
    /// When it was last heard, by the monotonic clock; `None` if never in this run.
    pub last_heard_mono_ms: Option<u64>,
    /// The same by the wall clock, from earlier runs too.
    pub last_seen_unix_ms: u64,
    /// What has been done about its silence; nothing while it is heard.
    pub(super) silence: Silence,
    /// When its GPU failed lately.
    pub(super) gpu_faults_unix_ms: Vec<u64>,
    /// The newest of them in this run, and what has told of it.
    pub(super) gpu_fault: Option<GpuFault>,
    /// Why it takes no work for a while.
    pub quarantine: Option<Quarantine>,
    /// What killed workers may have left in its memory.
    pub(super) debt: Debt,
    /// Its links to nodes that come after it by name, as they were tried: a few dozen at most.
    pub(super) links_tried: Vec<Standing>,
    /// Restarts of its machine that were asked for, oldest first.
    pub(super) restarts: Vec<Restart>,
    /// The number of the newest command to restart, in this run.
    pub(super) restart_command: Option<u64>,
    /// When it was given; 0 if not in this run.
    pub(super) restart_asked_mono_ms: u64,
    /// Since when it has needed a restart and done nothing.
    pub(super) idle_since_mono_ms: Option<u64>,
}

/// A connection.
#[derive(Clone, Debug)]
pub struct Session {
    /// Which.
    pub id: SessionId,
    /// Since when.
    pub since_unix_ms: u64,
    /// Still sending what it had spooled: the rows its workers hold. `None` afterwards.
    pub(super) replaying: Option<BTreeSet<(JobId, RowIx)>>,
    /// Workers that had ended when it connected; what that cost is known when everything spooled has come.
    pub(super) vanished: Vec<Vanished>,
    /// Results in the order of the spool: the front is acknowledged as it settles. As many at most as rows are out.
    pub(super) unsettled: VecDeque<Unsettled>,
    /// The newest position acknowledged, or the one before the first result seen.
    pub(super) acked_spool_seq: Option<u64>,
    /// Results could not be stored; everything after the acknowledged position must come again.
    pub(super) must_resend: bool,
}

/// A result on its way to disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Unsettled {
    pub(super) spool_seq: u64,
    pub(super) job: JobId,
    pub(super) row: RowIx,
    /// Durable, or of no use to anybody.
    pub(super) settled: bool,
}

/// Who holds a row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lease {
    /// The node.
    pub node: NodeId,
    /// The launch.
    pub epoch: Epoch,
    /// How often the row has been given out, this time included.
    pub attempt: u32,
    /// Its result is being made durable.
    pub committing: bool,
}

/// A worker believed to be alive.
#[derive(Clone, Debug)]
pub struct Worker {
    /// Its launch.
    pub epoch: Epoch,
    /// Its place in a gang; 0 without one.
    pub rank: u32,
    /// Ranks of the gang; 1 without one.
    pub world_size: u32,
    /// Where.
    pub node: NodeId,
    /// Its process; 0 until it is known.
    pub pid: u32,
    /// What it does.
    pub phase: WorkerPhase,
    /// Why it was told to end, if it was.
    pub stopping: Option<StopReason>,
    /// How it was told last: said again when the connection broke meanwhile.
    pub(super) stop_mode: Option<StopMode>,
    /// Rows given to it and not back.
    pub held_rows: u32,
    /// Rows being generated.
    pub active_rows: u32,
    /// How it is set up.
    pub settings: WorkerSettings,
    /// How it runs; `None` for what was started before that was noted.
    pub rung: Option<Rung>,
    /// Largest memory use.
    pub peak_memory_bytes: u64,
    /// When it was started or adopted.
    pub since_unix_ms: u64,
    /// When its newest step was, or when it entered its phase.
    pub(super) last_step_mono_ms: u64,
    pub(super) step: u64,
    /// How long it had taken no step when it was told to end.
    pub(super) quiet_ms: Option<u64>,
    pub(super) command_id: u64,
    pub(super) rate: TokenRate,
    /// Since it was started.
    pub(super) generated_tokens: u64,
    /// Of them, those in checkpoints and results.
    pub(super) accounted_tokens: u64,
    pub(super) prompt_tokens: u64,
}

/// Why a worker was told to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StopReason {
    /// Its work is done or wanted elsewhere: its end is no fault.
    NotNeeded,
    /// It took no step within its budget: its end is a fault.
    Silent,
    /// A link of its gang is down: that is the fault, and is told as one.
    LinkLost,
}

impl Worker {
    /// A worker that is about to be started.
    pub(super) fn starting(
        now: Now,
        node: &NodeId,
        place: Launch,
        settings: WorkerSettings,
        command_id: u64,
    ) -> Self {
        Self {
            epoch: place.epoch,
            rank: place.rank,
            world_size: place.world_size,
            node: node.clone(),
            pid: 0,
            phase: WorkerPhase::Starting,
            stopping: None,
            stop_mode: None,
            held_rows: 0,
            active_rows: 0,
            settings,
            rung: place.rung,
            peak_memory_bytes: 0,
            since_unix_ms: now.unix_ms,
            last_step_mono_ms: now.mono_ms,
            step: 0,
            quiet_ms: None,
            command_id,
            rate: TokenRate::default(),
            generated_tokens: 0,
            accounted_tokens: 0,
            prompt_tokens: 0,
        }
    }

    /// A worker that was running before it was known.
    pub(super) fn adopted(
        now: Now,
        node: &NodeId,
        report: &ReportedWorker,
        stopping: Option<StopReason>,
        rung: Option<Rung>,
    ) -> Self {
        Self {
            epoch: report.worker.epoch,
            rank: report.worker.rank,
            world_size: report.world_size.max(1),
            node: node.clone(),
            pid: report.pid,
            phase: report.phase,
            stopping,
            stop_mode: None,
            held_rows: 0,
            active_rows: 0,
            settings: report.settings,
            rung,
            peak_memory_bytes: 0,
            since_unix_ms: now.unix_ms,
            last_step_mono_ms: now.mono_ms,
            step: report.step,
            quiet_ms: None,
            command_id: 0,
            rate: TokenRate::default(),
            generated_tokens: 0,
            accounted_tokens: 0,
            prompt_tokens: 0,
        }
    }

    /// Its name.
    #[must_use]
    pub fn key(&self, job: JobId) -> WorkerKey {
        WorkerKey { job, epoch: self.epoch, rank: self.rank }
    }

    /// Tokens a second.
    #[must_use]
    pub fn tokens_per_s(&self, mono_ms: u64) -> f64 {
        self.rate.tokens_per_s(mono_ms)
    }
}

/// How often a job failed on a node lately.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Backoff {
    pub(super) failures_in_a_row: u32,
    pub(super) not_before_mono_ms: u64,
}

/// A restarted controller waits for these nodes before it hands out rows of the job: they may hold some.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Adopting {
    pub(super) waiting: BTreeSet<NodeId>,
    pub(super) until_mono_ms: u64,
}

/// A job and its rows.
#[derive(Clone, Debug)]
pub struct Job {
    /// As recorded, or about to be.
    pub record: JobRecord,
    /// Rows with an answer or an error on disk.
    pub done: RowSet,
    /// Of them, those answered with 200.
    pub rows_succeeded: u64,
    /// Of them, those that ended with an error.
    pub rows_failed: u64,
    /// Of all, those answered by the fallback model.
    pub rows_by_fallback: u64,
    /// Tokens of their prompts.
    pub prompt_tokens: u64,
    /// Tokens generated for them.
    pub completion_tokens: u64,
    /// Durable length of `results.jsonl`.
    pub results_bytes: u64,
    /// Durable length of `errors.jsonl`.
    pub errors_bytes: u64,
    /// Its newest plan.
    pub plan: Option<Plan>,
    /// Its workers, one a node.
    pub workers: BTreeMap<NodeId, Worker>,
    /// How its gangs were planned, by launch.
    pub(super) gangs: BTreeMap<Epoch, GangRecord>,
    /// Where else it may run.
    pub(super) layout: KnownLayout,
    /// Its place on the ladder.
    pub(super) ladder: Ladder,
    /// Whether what is started now is the fallback model.
    pub(super) takes_fallback: bool,
    /// In which its speed is measured.
    pub(super) stretch: Option<Stretch>,
    /// Rows held by nodes.
    pub leases: BTreeMap<RowIx, Lease>,
    /// Rows that came back and go out before any other.
    pub(super) returned: BTreeSet<RowIx>,
    /// Rows from here on have not been given out in this run.
    pub(super) cursor: RowIx,
    /// For rows given out more than once: how often.
    pub(super) attempts: BTreeMap<RowIx, u32>,
    pub(super) checkpoints: BTreeMap<RowIx, Checkpoint>,
    /// At how many crashes rows were in work.
    pub(super) crashes: Crashes,
    /// Rows that fail by rule, and why, until that is durable.
    pub(super) failing: BTreeMap<RowIx, String>,
    /// How often memory ran out, by node.
    pub(super) out_of_memory: BTreeMap<NodeId, u32>,
    /// Nodes that cannot run it, and why.
    pub(super) unfit: BTreeMap<NodeId, String>,
    /// The same of its fallback model.
    pub(super) fallback_unfit: BTreeMap<NodeId, String>,
    pub(super) backoff: BTreeMap<NodeId, Backoff>,
    pub(super) failures_of_job: u32,
    /// Workers ended for taking no step, since a row last became durable.
    pub(super) hangs_in_a_row: u32,
    pub(super) adopting: Option<Adopting>,
    pub(super) rate: RowRate,
    /// Since when its record's split of the work is newer than what is written of it.
    pub(super) work_unwritten_since_mono_ms: Option<u64>,
    /// Faults after which it has written nothing yet.
    pub(super) mending: Option<Mending>,
    /// Its window, while that is closed.
    pub(super) closed: Option<Closed>,
    /// Since when it has nothing that runs it and nothing to wait for.
    pub(super) idle_since: Option<Now>,
    /// Why nothing runs it, when that has lasted.
    pub parked: Option<Parked>,
}

impl Job {
    pub(super) fn new(record: JobRecord) -> Self {
        let done = RowSet::new(record.rows_total);
        let crashes = Crashes::from_record(&record.crashes);
        Self {
            record,
            crashes,
            failing: BTreeMap::new(),
            out_of_memory: BTreeMap::new(),
            done,
            rows_succeeded: 0,
            rows_failed: 0,
            rows_by_fallback: 0,
            prompt_tokens: 0,
            completion_tokens: 0,
            results_bytes: 0,
            errors_bytes: 0,
            plan: None,
            workers: BTreeMap::new(),
            gangs: BTreeMap::new(),
            layout: KnownLayout::default(),
            ladder: Ladder::default(),
            takes_fallback: false,
            stretch: None,
            leases: BTreeMap::new(),
            returned: BTreeSet::new(),
            cursor: RowIx(0),
            attempts: BTreeMap::new(),
            checkpoints: BTreeMap::new(),
            unfit: BTreeMap::new(),
            fallback_unfit: BTreeMap::new(),
            backoff: BTreeMap::new(),
            failures_of_job: 0,
            hangs_in_a_row: 0,
            adopting: None,
            rate: RowRate::default(),
            work_unwritten_since_mono_ms: None,
            mending: None,
            closed: None,
            idle_since: None,
            parked: None,
        }
    }

    /// Rows that nobody holds and nobody has answered.
    #[must_use]
    pub fn rows_waiting(&self) -> u32 {
        self.record.rows_total - self.done.len() - u32::try_from(self.leases.len()).unwrap_or(u32::MAX)
    }

    /// From where a launch goes on with a row: tokens of another model are of no use to it.
    #[must_use]
    pub fn resume_point(&self, row: RowIx, epoch: Epoch) -> Option<&Checkpoint> {
        let by_fallback = self.rung_of(epoch).is_some_and(|rung| rung.fallback);
        self.checkpoints.get(&row).filter(|checkpoint| checkpoint.by_fallback == by_fallback)
    }

    /// The checkpoint of an unfinished row.
    #[must_use]
    pub fn checkpoint(&self, row: RowIx) -> Option<&Checkpoint> {
        self.checkpoints.get(&row)
    }

    /// Whether it waits for workers that a controller before this one started.
    #[must_use]
    pub fn is_adopting(&self) -> bool {
        self.adopting.is_some()
    }

    /// Whether it was the rules, not a person, that paused it.
    #[must_use]
    pub fn paused_by_faults(&self) -> bool {
        self.record.state == JobState::Paused && self.failures_of_job > 0
    }

    /// Rows a second over the last minutes.
    #[must_use]
    pub fn rows_per_s(&self, mono_ms: u64) -> Option<f64> {
        self.rate.rows_per_s(mono_ms, u64::from(self.done.len()))
    }

    /// The same, once it has been measured for a minute.
    #[must_use]
    pub fn settled_rows_per_s(&self, mono_ms: u64) -> Option<f64> {
        self.rate.settled_rows_per_s(mono_ms, u64::from(self.done.len()))
    }

    /// The next row to hand out: what came back first, then the next one never given out.
    pub(super) fn take_next_row(&mut self) -> Option<RowIx> {
        if let Some(row) = self.returned.iter().find(|row| !self.is_withheld(**row)).copied() {
            self.returned.remove(&row);
            return Some(row);
        }
        loop {
            let row = self.done.next_absent(self.cursor)?;
            self.cursor = RowIx(row.0 + 1);
            if self.is_withheld(row) {
                self.returned.insert(row);
            } else if !self.leases.contains_key(&row) {
                return Some(row);
            }
        }
    }

    /// Suspects are handed out apart from the others; what fails is not handed out at all.
    fn is_withheld(&self, row: RowIx) -> bool {
        self.crashes.is_suspect(row) || self.failing.contains_key(&row)
    }

    /// Gives a row a holder.
    pub(super) fn grant(&mut self, row: RowIx, lease: Lease) {
        self.returned.remove(&row);
        if let Some(worker) = self.workers.get_mut(&lease.node).filter(|worker| worker.epoch == lease.epoch) {
            worker.held_rows += 1;
        }
        self.leases.insert(row, lease);
    }

    /// Takes a row from its holder; what becomes of it is the caller's to say.
    pub(super) fn take_lease(&mut self, row: RowIx) -> Option<Lease> {
        let lease = self.leases.remove(&row)?;
        if let Some(worker) = self.workers.get_mut(&lease.node).filter(|worker| worker.epoch == lease.epoch) {
            worker.held_rows = worker.held_rows.saturating_sub(1);
        }
        Some(lease)
    }

    /// Takes rows from their holder and puts them first in line. Rows whose result is being made durable stay. Returns
    /// how many rows, and how many of their tokens are safe in checkpoints.
    pub(super) fn release(&mut self, wanted: impl Fn(RowIx, &Lease) -> bool) -> Costs {
        let rows: Vec<RowIx> = self
            .leases
            .iter()
            .filter(|(row, lease)| !lease.committing && wanted(**row, lease))
            .map(|(row, _)| *row)
            .collect();
        let mut tokens_saved = 0;
        for row in &rows {
            self.release_one(*row);
            tokens_saved += self.checkpoints.get(row).map_or(0, |checkpoint| checkpoint.tokens.len() as u64);
        }
        Costs { rows: rows.len() as u64, tokens_saved, tokens_lost: 0 }
    }

    /// Takes one row from its holder and puts it first in line.
    pub(super) fn release_one(&mut self, row: RowIx) {
        if let Some(lease) = self.take_lease(row) {
            self.attempts.insert(row, lease.attempt);
            self.returned.insert(row);
        }
    }

    /// The attempt a row would be given out as.
    pub(super) fn next_attempt(&self, row: RowIx) -> u32 {
        self.attempts.get(&row).map_or(1, |attempts| attempts.saturating_add(1))
    }

    /// Forgets everything about a row but that it is done.
    pub(super) fn forget_row(&mut self, row: RowIx) {
        self.take_lease(row);
        self.returned.remove(&row);
        self.attempts.remove(&row);
        self.checkpoints.remove(&row);
        self.crashes.forget(row);
        self.failing.remove(&row);
    }
}
