//! A simulated agent: what survives it on disk (spool, epochs), the worker it has, and what it sends and is sent.

use std::collections::{BTreeMap, VecDeque};

use nightshift_daemon::{
    model::{JobId, RowIx, WorkerKey},
    recovery::{
        BootFacts, CheckpointNews, Command, ExitClass, HeldRow, LinkTestResult, ProgressNews, ReportedWorker,
        ResultHead, SessionId, WorkerExit, WorkerPhase, WorkerSettings,
    },
};

/// What is on its way to the controller.
#[derive(Clone, Debug)]
pub(crate) enum Up {
    Results(Vec<ResultHead>),
    Replayed,
    Started(WorkerKey),
    Ready(WorkerKey, u64),
    Exited(WorkerExit),
    Refused(u64),
    Model(String),
    Progress(ProgressNews),
    /// What it says of its machine has changed.
    Observed,
    Tested(u64, LinkTestResult),
}

/// A link that it is trying.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SimLinkTest {
    pub(crate) request_id: u64,
    pub(crate) since_ms: u64,
    pub(crate) is_over_rdma: bool,
}

/// A row it holds.
#[derive(Clone, Debug)]
pub(crate) struct SimRow {
    pub(crate) row: RowIx,
    pub(crate) attempt: u32,
    /// When its generation began; `None` while it waits.
    pub(crate) since_ms: Option<u64>,
    /// Tokens it came with.
    pub(crate) resumed: u32,
    /// Tokens its answer has.
    pub(crate) needed: u32,
    /// Tokens that checkpoints of this attempt have reached.
    pub(crate) told: u32,
}

/// The worker it has.
#[derive(Clone, Debug)]
pub(crate) struct SimWorker {
    pub(crate) key: WorkerKey,
    pub(crate) world_size: u32,
    /// Whether it talks to other ranks by RDMA.
    pub(crate) is_over_rdma: bool,
    pub(crate) settings: WorkerSettings,
    pub(crate) ready_at_ms: u64,
    pub(crate) load_ms: u64,
    pub(crate) is_ready: bool,
    pub(crate) rows: Vec<SimRow>,
    pub(crate) finishing: bool,
    /// When it ends, once it was told to.
    pub(crate) ends_at_ms: Option<(u64, ExitClass)>,
    /// Takes no step any more.
    pub(crate) hangs: bool,
    /// Since when it waits for a rank that is gone or cannot be reached.
    pub(crate) apart_since_ms: Option<u64>,
    pub(crate) step: u64,
    pub(crate) generated: u64,
    /// Layers it has in memory.
    pub(crate) layers: u64,
    pub(crate) checkpointed_at_ms: u64,
}

/// Tokens a second of a row.
pub(crate) const ROW_TOKENS_PER_S: f64 = 1.0;

impl SimRow {
    /// Tokens of the answer by now.
    pub(crate) fn tokens(&self, now_ms: u64) -> u32 {
        let Some(since) = self.since_ms else { return self.resumed };
        let fresh = (now_ms.saturating_sub(since) as f64 / 1e3 * ROW_TOKENS_PER_S) as u32;
        (self.resumed + fresh).min(self.needed)
    }
}

impl SimWorker {
    /// Rows being generated.
    pub(crate) fn active(&self) -> impl Iterator<Item = &SimRow> {
        self.rows.iter().filter(|row| row.since_ms.is_some())
    }

    pub(crate) fn news(&self, now_ms: u64, with_checkpoints: bool) -> ProgressNews {
        let phase = match (self.is_ready, self.active().next()) {
            (false, _) => WorkerPhase::Loading,
            (true, None) => WorkerPhase::Idle,
            (true, Some(_)) => WorkerPhase::Decode,
        };
        let checkpoints = self.active().filter(|_| with_checkpoints).filter_map(|row| {
            let tokens = row.tokens(now_ms);
            (tokens > row.told).then(|| CheckpointNews {
                row: row.row,
                attempt: row.attempt,
                offset: row.told,
                checkpoint: nightshift_daemon::model::Checkpoint {
                    tokens: (row.told..tokens).collect(),
                    ..nightshift_daemon::model::Checkpoint::default()
                },
            })
        });
        let fresh: u64 = self.active().map(|row| u64::from(row.tokens(now_ms) - row.resumed)).sum();
        ProgressNews {
            worker: self.key,
            phase,
            step: self.step,
            step_age_ms: 0,
            active_rows: u32::try_from(self.active().count()).unwrap_or(u32::MAX),
            prompt_tokens: 0,
            generated_tokens: self.generated + fresh,
            peak_memory_bytes: self.layers,
            checkpoints: checkpoints.collect(),
        }
    }
}

/// Tokens that rows are handed out with.
pub(crate) type Resumed = BTreeMap<RowIx, u32>;

/// An agent and its machine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Agent {
    pub(crate) number: usize,
    pub(crate) budget_gb: u64,
    /// Whether the process runs, and the machine with it.
    pub(crate) is_up: bool,
    pub(crate) back_at_ms: u64,
    pub(crate) session: Option<SessionId>,
    /// Its way to the controller is broken until then.
    pub(crate) cut_until_ms: u64,
    pub(crate) boot: u32,
    pub(crate) instance: u32,
    /// Of all its cables, or of its network.
    pub(crate) link_up: bool,
    /// Of all its cables, as far as its own end can tell.
    pub(crate) rdma_up: bool,
    /// Nothing can be started over RDMA until the machine is, though everything looks well.
    pub(crate) is_wedged: bool,
    /// Its machine goes down with each test over RDMA.
    pub(crate) panics_over_rdma: bool,
    pub(crate) panics: u32,
    pub(crate) boot_facts: BootFacts,
    /// Restarts of its GPU in this boot.
    pub(crate) gpu_restarts: u64,
    /// Starts over RDMA in this boot.
    pub(crate) rdma_starts: u32,
    pub(crate) spool: BTreeMap<u64, ResultHead>,
    pub(crate) next_seq: u64,
    pub(crate) highest_epoch: BTreeMap<JobId, u64>,
    pub(crate) worker: Option<SimWorker>,
    pub(crate) link_test: Option<SimLinkTest>,
    /// Ends that nobody was told of.
    pub(crate) untold: Vec<WorkerExit>,
    /// On their way, each with its time of arrival: a connection keeps the order.
    pub(crate) up: VecDeque<(u64, Up)>,
    pub(crate) down: VecDeque<(u64, Command, Resumed)>,
}

impl Agent {
    /// Says something, if there is anybody to hear it; `delay_ms` at the least.
    pub(crate) fn say(&mut self, now_ms: u64, delay_ms: u64, up: Up) {
        match (self.session, up) {
            (Some(_), up) => {
                let at = self.up.back().map_or(0, |(at, _)| *at).max(now_ms + delay_ms);
                self.up.push_back((at, up));
            }
            (None, Up::Exited(exit)) => self.untold.push(exit),
            (None, _) => {}
        }
    }

    pub(crate) fn send_down(&mut self, now_ms: u64, delay_ms: u64, command: Command, resumed: Resumed) {
        let at = self.down.back().map_or(0, |(at, ..)| *at).max(now_ms + delay_ms);
        self.down.push_back((at, command, resumed));
    }

    /// What arrives next, if it has.
    pub(crate) fn next_up(&mut self, now_ms: u64) -> Option<Up> {
        self.up.front().filter(|(at, _)| *at <= now_ms)?;
        self.up.pop_front().map(|(_, up)| up)
    }

    pub(crate) fn next_down(&mut self, now_ms: u64) -> Option<(Command, Resumed)> {
        self.down.front().filter(|(at, ..)| *at <= now_ms)?;
        self.down.pop_front().map(|(_, command, resumed)| (command, resumed))
    }

    /// The connection is gone, and what was on its way.
    pub(crate) fn disconnect(&mut self) {
        self.session = None;
        for (_, up) in std::mem::take(&mut self.up) {
            if let Up::Exited(exit) = up {
                self.untold.push(exit);
            }
        }
        self.down.clear();
        // Its answer would be nobody's.
        self.link_test = None;
    }

    /// The worker's process is gone.
    pub(crate) fn end_worker(
        &mut self,
        now_ms: u64,
        class: ExitClass,
        error: &str,
        delay_ms: u64,
    ) -> Option<SimWorker> {
        let worker = self.worker.take()?;
        let exit = WorkerExit {
            worker: worker.key,
            class,
            status: format!("ended as {class:?}"),
            first_error: error.to_owned(),
            log_tail: Vec::new(),
            started_rows: worker.active().map(|row| row.row).collect(),
            killed_while_loaded: class == ExitClass::Killed && worker.is_ready,
            quiet_ms: None,
        };
        if exit.killed_while_loaded {
            self.boot_facts.kills_while_loaded += 1;
        }
        self.say(now_ms, delay_ms, Up::Exited(exit));
        Some(worker)
    }

    pub(crate) fn report(&self) -> Vec<ReportedWorker> {
        let worker = self.worker.iter().map(|worker| ReportedWorker {
            worker: worker.key,
            pid: 1,
            phase: match (worker.ends_at_ms.is_some() || worker.finishing, worker.is_ready) {
                (true, _) => WorkerPhase::Stopping,
                (false, true) => WorkerPhase::Decode,
                (false, false) => WorkerPhase::Loading,
            },
            step: worker.step,
            settings: worker.settings,
            world_size: worker.world_size,
            rows: worker.rows.iter().map(|row| HeldRow { row: row.row, attempt: row.attempt }).collect(),
        });
        worker.collect()
    }
}
