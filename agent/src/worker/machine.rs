//! The state machine of one worker: what it was told, what it said, and what is to be done now. Pure: time comes in as an
//! argument, and what is to be done goes out as [`Action`]s.
//!
//! Stopping goes through these stages, each left when its time is over; a stronger request skips ahead, a weaker one
//! changes nothing. The order protects the machine: a worker with a large wired set that dies by SIGKILL can leave that
//! memory lost until the next boot (FIELD-NOTES 4).
//!
//! ```text
//!   Asked ("finish": no limit; "checkpoint": the grace) ──► Terminated (SIGTERM, the grace) ──► Killed (SIGKILL)
//! ```
//!
//! A rank of a gang that is given up is told so besides ("abandon"): one that is blocked inside MLX, where no signal handler
//! runs, saves what it can and ends by that within a second, and needs no SIGKILL.
//!
//! The ranks of a gang but 0 leave it to rank 0 to end them in order, and so take a first SIGTERM for a notice only
//! (follower.py). Where rank 0 cannot do so any more, a second one ends them at once, and gently; it comes when half of
//! the grace has passed.

use std::time::{Duration, Instant};

use nightshift_proto::v1::{self, StopMode, WorkerPhase};

use super::{
    faults::{self, Evidence, Scan},
    leases::{Leases, Taken, check_request},
    protocol::{self, Command, Event, Fatal, Ready, RowAnswer, RowOrder, StepPhase},
};

/// A worker that breaks the protocol is given this long to give its memory back after SIGTERM.
const FAULT_GRACE: Duration = Duration::from_secs(5);

/// Even an idle worker is reported this often, so that the controller sees that the report itself is alive.
const REPORT_AT_LEAST: Duration = Duration::from_secs(1);

/// To be done to the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Write this line to its stdin.
    Write(Vec<u8>),
    /// SIGTERM to its group.
    Terminate,
    /// SIGKILL to its group.
    Kill,
}

/// What an event brings for others.
#[derive(Debug)]
pub enum Output {
    /// The model is loaded.
    Ready(Ready),
    /// An answer of a row that is held, to be spooled.
    Answer(RowAnswer),
}

/// A row that never reaches the worker, and what it is answered.
#[derive(Debug, PartialEq, Eq)]
pub struct RefusedRow {
    /// Which.
    pub row: u32,
    /// Of which attempt.
    pub attempt: u32,
    /// Why.
    pub problem: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Asked { terminate_at: Option<Instant> },
    Terminated { again_at: Option<Instant>, kill_at: Instant },
    Killed,
}

#[derive(Debug, Clone, Copy)]
struct Stopping {
    stage: Stage,
    grace: Duration,
    checkpointing: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Machine {
    phase: WorkerPhase,
    leases: Leases,
    counters: v1::Progress,
    newest_at: Instant,
    changed: bool,
    reported_at: Option<Instant>,
    stopping: Option<Stopping>,
    asked: bool,
    terminated: bool,
    fault: Option<String>,
    fatal: Option<Fatal>,
    follows: bool,
    in_gang: bool,
}

impl Machine {
    /// Of a process started `now`: rank 0 of 1 is an independent worker.
    #[must_use]
    pub fn new(rank: u32, world_size: u32, now: Instant) -> Self {
        Self {
            follows: rank > 0,
            in_gang: world_size > 1,
            phase: WorkerPhase::Starting,
            leases: Leases::default(),
            counters: v1::Progress::default(),
            newest_at: now,
            changed: true,
            reported_at: None,
            stopping: None,
            asked: false,
            terminated: false,
            fault: None,
            fatal: None,
        }
    }

    /// Its phase, as others are told.
    #[must_use]
    pub fn phase(&self) -> WorkerPhase {
        if self.stopping.is_some() { WorkerPhase::Stopping } else { self.phase }
    }

    /// Whether it may hold a model in memory.
    #[must_use]
    pub fn is_loaded(&self) -> bool {
        self.phase != WorkerPhase::Starting
    }

    /// The worker said something.
    ///
    /// # Errors
    /// One sentence when it must not say that; see [`Self::fail`].
    pub fn on_event(&mut self, event: Event, now: Instant) -> Result<Option<Output>, String> {
        match event {
            // Steps take another way than what comes with them, and may be overtaken.
            Event::Step(protocol::Step { n, .. }) | Event::Idle(protocol::Idle { n })
                if n < self.counters.step => {}
            Event::Step(step) => {
                self.phase = match step.phase {
                    StepPhase::Prefill => WorkerPhase::Prefill,
                    StepPhase::Decode => WorkerPhase::Decode,
                };
                self.alive(step.n, now);
                self.counters.active_rows = step.active;
                self.counters.waiting_rows = step.waiting;
                self.counters.prompt_tokens = step.prompt_tokens;
                self.counters.generated_tokens = step.generated_tokens;
                self.counters.peak_memory_bytes = step.peak_memory_bytes;
            }
            Event::Idle(idle) => {
                self.changed |= self.phase != WorkerPhase::Idle;
                self.phase = WorkerPhase::Idle;
                self.alive(idle.n, now);
                (self.counters.active_rows, self.counters.waiting_rows) = (0, 0);
            }
            Event::Hello(hello) if hello.protocol != protocol::VERSION => {
                return Err(format!(
                    "the worker speaks protocol {}, and this agent {}",
                    hello.protocol,
                    protocol::VERSION
                ));
            }
            Event::Hello(hello) => {
                tracing::debug!(
                    python = hello.python,
                    mlx = hello.mlx,
                    mlx_lm = hello.mlx_lm,
                    "worker says hello"
                );
                self.phase = WorkerPhase::Loading;
                self.alive(0, now);
                self.changed = true;
            }
            Event::Ready(ready) => {
                self.phase = WorkerPhase::Idle;
                self.counters.peak_memory_bytes = ready.peak_memory_bytes;
                self.alive(0, now);
                self.changed = true;
                return Ok(Some(Output::Ready(ready)));
            }
            Event::Started(started) => {
                self.leases.start(&started.rows);
                // Their prompts are being read from here on, which takes longer than a step of generation: whoever waits
                // for the next step is to know. Steps overtake this at times, and have said more already.
                if self.phase != WorkerPhase::Prefill {
                    self.phase = WorkerPhase::Prefill;
                    self.newest_at = now;
                    self.changed = true;
                }
            }
            Event::Checkpoint(checkpoint) => {
                self.changed = true;
                for part in checkpoint.rows {
                    if let Err(problem) = self.leases.join(part) {
                        // Costs tokens generated again after a crash, not the row: no reason to end the worker.
                        tracing::warn!("{problem}; it is left aside");
                    }
                }
            }
            Event::Result(answer) => {
                self.changed = true;
                if self.leases.answer(answer.row, answer.attempt) {
                    return Ok(Some(Output::Answer(answer)));
                }
                tracing::debug!(
                    row = answer.row,
                    attempt = answer.attempt,
                    "an answer nobody waits for any more"
                );
            }
            Event::Returned(returned) => self.leases.hand_back(&returned.rows),
            // The lease went when the cancellation was sent.
            Event::Cancelled(_) => {}
            Event::Measured(_) => return Err("it measured a link, and is to run a model".to_owned()),
            // Agent and worker are of one build, so that nobody misses anything; and no reason to lose the rows over.
            Event::Other(name) => tracing::debug!(event = name, "an event that nothing depends on"),
            Event::Fatal(fatal) => self.fatal = Some(fatal),
        }
        Ok(None)
    }

    fn alive(&mut self, step: u64, now: Instant) {
        self.changed |= self.counters.step != step;
        self.counters.step = step;
        self.newest_at = now;
    }

    /// The worker broke the protocol: nothing it says counts any more, and it is ended.
    pub fn fail(&mut self, reason: String, now: Instant) -> Vec<Action> {
        self.fault.get_or_insert(reason);
        self.terminate(FAULT_GRACE, now)
    }

    /// Whether what it says still counts.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        self.fault.is_none()
    }

    /// Rows come in. Those whose request would break the line protocol are returned: no worker must see them.
    pub fn assign(&mut self, rows: &[v1::Row]) -> (Vec<Action>, Vec<RefusedRow>) {
        // A worker that is asked to end takes no more; the controller learns from its exit that they were not begun.
        if self.stopping.is_some() || self.fault.is_some() {
            return (Vec::new(), Vec::new());
        }
        let (mut replaced, mut fresh, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        for row in rows {
            let request = match check_request(&row.request) {
                Ok(request) => request,
                Err(problem) => {
                    let problem = format!("the request cannot be handed to a worker: {problem}");
                    refused.push(RefusedRow { row: row.row, attempt: row.attempt, problem });
                    continue;
                }
            };
            match self.leases.take(row) {
                Taken::Known => continue,
                Taken::Newer => replaced.push(row.row),
                Taken::New => {}
            }
            fresh.push((row.row, request));
        }
        let mut actions = Vec::new();
        if !replaced.is_empty() {
            actions.push(Action::Write(Command::Cancel { rows: &replaced }.to_line()));
        }
        let orders: Vec<RowOrder<'_>> =
            fresh.iter().filter_map(|(row, request)| self.leases.order(*row, request)).collect();
        if !orders.is_empty() {
            actions.push(Action::Write(Command::Rows { rows: &orders }.to_line()));
        }
        (actions, refused)
    }

    /// Rows are not wanted any more.
    pub fn cancel(&mut self, rows: &[u32]) -> Vec<Action> {
        let held = self.leases.cancel(rows);
        if held.is_empty() {
            Vec::new()
        } else {
            vec![Action::Write(Command::Cancel { rows: &held }.to_line())]
        }
    }

    /// The answer of this row is in the spool.
    pub fn spooled(&mut self, row: u32, attempt: u32) {
        self.leases.spooled(row, attempt);
    }

    /// The worker is to end.
    pub fn stop(&mut self, mode: StopMode, grace: Duration, now: Instant) -> Vec<Action> {
        self.asked = true;
        let checkpointing = self.stopping.is_some_and(|stopping| stopping.checkpointing);
        match (mode, self.stopping.map(|stopping| stopping.stage)) {
            (StopMode::Kill | StopMode::Unspecified, _) => {
                let told = self.in_gang && !self.terminated;
                let mut actions = self.terminate(grace, now);
                if told {
                    actions.insert(0, Action::Write(Command::Abandon.to_line()));
                }
                actions
            }
            (_, Some(Stage::Terminated { .. } | Stage::Killed)) => Vec::new(),
            (StopMode::FinishStarted, Some(Stage::Asked { .. })) => Vec::new(),
            (StopMode::Checkpoint, Some(Stage::Asked { terminate_at })) if checkpointing => {
                let earlier = terminate_at.map_or(now + grace, |at| at.min(now + grace));
                self.stopping = Some(Stopping {
                    stage: Stage::Asked { terminate_at: Some(earlier) },
                    grace,
                    checkpointing,
                });
                Vec::new()
            }
            (StopMode::FinishStarted, None) => {
                let stage = Stage::Asked { terminate_at: None };
                self.stopping = Some(Stopping { stage, grace, checkpointing: false });
                vec![Action::Write(Command::Finish.to_line())]
            }
            (StopMode::Checkpoint, _) => {
                let stage = Stage::Asked { terminate_at: Some(now + grace) };
                self.stopping = Some(Stopping { stage, grace, checkpointing: true });
                vec![Action::Write(Command::Checkpoint.to_line())]
            }
        }
    }

    fn terminate(&mut self, grace: Duration, now: Instant) -> Vec<Action> {
        self.changed = true;
        let kill_at = now + grace;
        let (stage, actions) = match self.stopping.map(|stopping| stopping.stage) {
            Some(Stage::Killed) => return Vec::new(),
            Some(Stage::Terminated { again_at, kill_at: before }) => {
                let again_at = again_at.map(|at| at.min(now + grace / 2));
                (Stage::Terminated { again_at, kill_at: before.min(kill_at) }, Vec::new())
            }
            _ => {
                let again_at = self.follows.then(|| now + grace / 2);
                (Stage::Terminated { again_at, kill_at }, vec![Action::Terminate])
            }
        };
        self.terminated = true;
        self.stopping = Some(Stopping { stage, grace, checkpointing: true });
        actions
    }

    /// When [`Self::on_time`] has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match self.stopping?.stage {
            Stage::Asked { terminate_at } => terminate_at,
            Stage::Terminated { again_at, kill_at } => Some(again_at.map_or(kill_at, |at| at.min(kill_at))),
            Stage::Killed => None,
        }
    }

    /// Time has passed.
    pub fn on_time(&mut self, now: Instant) -> Vec<Action> {
        let Some(stopping) = self.stopping else { return Vec::new() };
        match stopping.stage {
            Stage::Asked { terminate_at: Some(at) } if at <= now => self.terminate(stopping.grace, now),
            Stage::Terminated { kill_at, .. } if kill_at <= now => {
                self.stopping = Some(Stopping { stage: Stage::Killed, ..stopping });
                vec![Action::Kill]
            }
            Stage::Terminated { again_at: Some(at), kill_at } if at <= now => {
                let stage = Stage::Terminated { again_at: None, kill_at };
                self.stopping = Some(Stopping { stage, ..stopping });
                vec![Action::Terminate]
            }
            _ => Vec::new(),
        }
    }

    /// What the controller is told on a new session; from here on it is sent everything again.
    pub fn snapshot(&mut self) -> v1::RunningWorker {
        self.leases.nothing_sent();
        self.changed = true;
        v1::RunningWorker {
            phase: self.phase().into(),
            rows: self.leases.held(),
            step: self.counters.step,
            ..Default::default()
        }
    }

    /// Whether there is anything to report.
    #[must_use]
    pub fn report_is_due(&self, now: Instant) -> bool {
        self.changed || self.reported_at.is_none_or(|at| now.duration_since(at) >= REPORT_AT_LEAST)
    }

    /// A report with at most some `max_bytes` of checkpoints, and whether there are more of them.
    pub fn report(&mut self, now: Instant, max_bytes: usize) -> (v1::Progress, bool) {
        let checkpoints = self.leases.news(max_bytes);
        let more = self.leases.has_news();
        self.changed = more;
        self.reported_at = Some(now);
        let age = now.saturating_duration_since(self.newest_at).as_millis();
        let progress = v1::Progress {
            phase: self.phase().into(),
            step_age_ms: u64::try_from(age).unwrap_or(u64::MAX),
            checkpoints,
            ..self.counters.clone()
        };
        (progress, more)
    }

    /// The process has ended like this, with this log; `memory_kills`: the system ended processes for want of memory
    /// meanwhile.
    #[must_use]
    pub fn exited(
        &self,
        exit_code: Option<i32>,
        signal: Option<i32>,
        memory_kills: bool,
        log: &Scan,
    ) -> v1::WorkerExited {
        let killed = matches!(self.stopping, Some(Stopping { stage: Stage::Killed, .. }));
        let evidence = Evidence {
            asked: self.asked,
            terminated: self.terminated,
            killed,
            fault: self.fault.as_deref(),
            fatal: self.fatal.as_ref(),
            exit_code,
            signal,
            memory_kills,
        };
        let (class, first_error) = faults::classify(&evidence, log);
        v1::WorkerExited {
            class: class.into(),
            exit_code,
            signal,
            first_error,
            log_tail: Vec::new(),
            killed_while_loaded: killed && signal == Some(nix::libc::SIGKILL) && self.is_loaded(),
            started_rows: self.leases.started(),
        }
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
