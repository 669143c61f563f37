//! What the machine is told.

use std::{fmt, sync::Arc};

use crate::{
    fit::{ModelFacts, NodeMemory},
    model::{
        Checkpoint, EventDraft, Incident, JobId, JobRecord, JobSpec, LearnedModel, LinkPace, NodeId,
        NodeRecord, ReplayedJob, RowIx, Thunderbolt, WorkerKey,
    },
    planner::Interface,
};

use super::{
    facts::{BootFacts, NodeFacts},
    reboots::MayRestart,
    rules::Policy,
};

/// The time, as the driver sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Now {
    /// Never goes back; for waiting and measuring.
    pub mono_ms: u64,
    /// The wall clock; for people.
    pub unix_ms: u64,
}

/// One connection of one agent; never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SessionId(pub u64);

/// What a node found of a model.
#[derive(Clone)]
pub enum ModelFound {
    /// Its files.
    Files {
        /// Equal on nodes with the same files.
        fingerprint: String,
        /// Added up.
        facts: Arc<ModelFacts>,
    },
    /// They are not there, or cannot be read or added up; a worker would say why.
    Problem,
}

impl fmt::Debug for ModelFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // A hundred layers are no help in a trace.
            Self::Files { fingerprint, .. } => write!(f, "Files({fingerprint})"),
            Self::Problem => f.write_str("Problem"),
        }
    }
}

/// Where a worker is in its life, as its agent reports it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WorkerPhase {
    /// The process is being started.
    Starting,
    /// The model is being loaded.
    Loading,
    /// Ready, with nothing to do.
    Idle,
    /// Processing prompts.
    Prefill,
    /// Generating.
    Decode,
    /// Told to end.
    Stopping,
}

/// How a worker is set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WorkerSettings {
    /// Rows generated together.
    pub max_batch_rows: u32,
    /// Rows whose prompts are processed together.
    pub prefill_batch_rows: u32,
    /// Prompt tokens in one step.
    pub prefill_step_tokens: u32,
    /// Between checkpoints.
    pub checkpoint_interval_ms: u64,
    /// For rows that do not say.
    pub default_max_tokens: u32,
}

/// A row an agent says it holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeldRow {
    /// Which.
    pub row: RowIx,
    /// The attempt it was given out as.
    pub attempt: u32,
}

/// A worker an agent says is alive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReportedWorker {
    /// Which.
    pub worker: WorkerKey,
    /// Its process.
    pub pid: u32,
    /// What it does.
    pub phase: WorkerPhase,
    /// Its steps so far.
    pub step: u64,
    /// What it was started with.
    pub settings: WorkerSettings,
    /// Ranks of its gang; 1 for an independent worker.
    pub world_size: u32,
    /// The rows it holds.
    pub rows: Vec<HeldRow>,
}

/// The head of a result; the driver keeps the body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ResultHead {
    /// Position in the agent's spool.
    pub spool_seq: u64,
    /// Who answered.
    pub worker: WorkerKey,
    /// Which row.
    pub row: RowIx,
    /// Which attempt of it.
    pub attempt: u32,
    /// 200 or an error.
    pub status_code: u16,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens generated.
    pub completion_tokens: u32,
}

/// A result that is durable now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CommittedRow {
    /// Its position in the agent's spool.
    pub spool_seq: u64,
    /// The job.
    pub job: JobId,
    /// The row.
    pub row: RowIx,
    /// 200 or an error.
    pub status_code: u16,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens generated.
    pub completion_tokens: u32,
}

/// What a job's files hold. Only ever grows, so of two reports the larger is the newer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JobTotals {
    /// Which job.
    pub job: JobId,
    /// Durable length of `results.jsonl`.
    pub results_bytes: u64,
    /// Durable length of `errors.jsonl`.
    pub errors_bytes: u64,
    /// Rows in `results.jsonl`.
    pub rows_succeeded: u64,
    /// Rows in `errors.jsonl`.
    pub rows_failed: u64,
    /// Rows answered by the fallback model.
    pub rows_by_fallback: u64,
}

/// New tokens of unfinished rows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckpointNews {
    /// Which row.
    pub row: RowIx,
    /// Which attempt of it.
    pub attempt: u32,
    /// How many tokens come before these.
    pub offset: u32,
    /// The tokens, and logprobs where the row asked for them.
    pub checkpoint: Checkpoint,
}

/// How a worker is doing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProgressNews {
    /// Which worker.
    pub worker: WorkerKey,
    /// What it does.
    pub phase: WorkerPhase,
    /// Steps since it started.
    pub step: u64,
    /// How long ago the newest one was, when the agent sent this.
    pub step_age_ms: u64,
    /// Rows being generated.
    pub active_rows: u32,
    /// Tokens of prompts read since it started.
    pub prompt_tokens: u64,
    /// Tokens generated since it started.
    pub generated_tokens: u64,
    /// Its largest memory use.
    pub peak_memory_bytes: u64,
    /// New tokens of its rows.
    pub checkpoints: Vec<CheckpointNews>,
}

/// How a worker ended. The protocol's words, without its numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExitClass {
    /// Asked to, and did.
    Orderly,
    /// Could not be started.
    SpawnFailed,
    /// The model cannot be read on this node.
    ModelUnreadable,
    /// mlx-lm does not know the architecture.
    ModelUnsupported,
    /// Memory ran out.
    OutOfMemory,
    /// Metal reported a fault.
    GpuFault,
    /// The link between ranks failed.
    LinkFault,
    /// The ranks did not all find one another in time; nothing was loaded yet.
    Apart,
    /// A signal that nobody of ours sent.
    Signalled,
    /// Any other error.
    Crashed,
    /// Ended by its agent because it did not stop or did not follow the protocol.
    Killed,
    /// Ended with the agent that had started it.
    Leftover,
    /// Computed something else than the other ranks, or than one node alone.
    CanaryFailed,
}

/// A worker's end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkerExit {
    /// Which worker.
    pub worker: WorkerKey,
    /// How.
    pub class: ExitClass,
    /// In words: exit status or signal.
    pub status: String,
    /// The first error of its log.
    pub first_error: String,
    /// The end of its log.
    pub log_tail: Vec<String>,
    /// The rows it was generating.
    pub started_rows: Vec<RowIx>,
    /// Whether it held a model when it was killed: its memory may be lost until the next boot.
    pub killed_while_loaded: bool,
    /// From its last step to the notice of its end; for the machine to fill in.
    pub quiet_ms: Option<u64>,
}

impl WorkerExit {
    /// The error, or at least how it ended.
    #[must_use]
    pub fn cause(&self) -> &str {
        if self.first_error.is_empty() { &self.status } else { &self.first_error }
    }

    /// The error, then the end of the log.
    #[must_use]
    pub fn evidence(&self) -> Vec<String> {
        let error = (!self.first_error.is_empty()).then(|| self.first_error.clone());
        error.into_iter().chain(self.log_tail.iter().cloned()).collect()
    }
}

/// How the test of a link ended at one of its ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LinkTestResult {
    /// Every value of every sum was right.
    Passed(LinkPace),
    /// The ranks did not meet, or a sum was wrong or did not come to an end: what happened.
    Failed(String),
    /// It says nothing of the link: why it could not be made.
    NotMade(String),
}

/// Everything that can happen.
#[derive(Clone, Debug)]
pub enum Event {
    /// The controller starts: what the ledger held.
    Started {
        /// Jobs, finished ones too.
        jobs: Vec<ReplayedJob>,
        /// Nodes seen before.
        nodes: Vec<NodeRecord>,
        /// What had to be repaired.
        repairs: Vec<String>,
        /// What the end of the controller before left behind in the ordinary course of things, and was put right.
        remains: Vec<String>,
    },
    /// The controller starts: what controllers before it have learned and noted.
    Remembered {
        /// Of models.
        models: Vec<LearnedModel>,
        /// Incidents, the oldest first.
        incidents: Vec<Incident>,
    },
    /// Time has passed.
    Tick,
    /// The configuration changed.
    PolicyChanged(Policy),
    /// An agent connected.
    Hello {
        /// Its node.
        node: NodeId,
        /// The new connection.
        session: SessionId,
        /// What it says of the machine.
        facts: NodeFacts,
        /// Its living workers.
        workers: Vec<ReportedWorker>,
    },
    /// The agent has sent everything it had spooled.
    SpoolReplayed {
        /// Its node.
        node: NodeId,
        /// Its connection.
        session: SessionId,
    },
    /// A node described its machine.
    Observed {
        /// Which.
        node: NodeId,
        /// Its memory.
        memory: NodeMemory,
        /// Its interfaces.
        interfaces: Vec<Interface>,
        /// Its Thunderbolt ports.
        thunderbolt: Thunderbolt,
        /// What its boot has been through.
        boot: BootFacts,
        /// Whether its agent would restart it.
        may_restart: MayRestart,
    },
    /// A node answered about a model.
    ModelFound {
        /// Which node.
        node: NodeId,
        /// Over which connection it was asked.
        session: SessionId,
        /// Which model.
        model: String,
        /// What it found.
        found: ModelFound,
    },
    /// A sign of life.
    Heard {
        /// From where.
        node: NodeId,
        /// Over which connection.
        session: SessionId,
    },
    /// A node looked whether another one's machine is there.
    NodeSeen {
        /// Who looked.
        node: NodeId,
        /// The number it was asked under.
        request_id: u64,
        /// The node that was looked for.
        of: NodeId,
        /// Whether it answers there.
        seen: bool,
        /// What happened: a sentence.
        how: String,
    },
    /// A node tells how the test of a link ended there.
    LinkTested {
        /// Which node.
        node: NodeId,
        /// Over which connection.
        session: SessionId,
        /// The number it was asked under.
        request_id: u64,
        /// How.
        result: LinkTestResult,
    },
    /// The connection ended.
    SessionLost {
        /// Whose.
        node: NodeId,
        /// Which.
        session: SessionId,
    },
    /// The Python runtime of a node became usable or unusable.
    RuntimeChanged {
        /// Where.
        node: NodeId,
        /// Why it cannot be used.
        problem: Option<String>,
    },
    /// A worker's process exists.
    WorkerStarted {
        /// Where.
        node: NodeId,
        /// Which.
        worker: WorkerKey,
        /// Its process.
        pid: u32,
    },
    /// A worker loaded its model.
    WorkerReady {
        /// Where.
        node: NodeId,
        /// Which.
        worker: WorkerKey,
        /// How long it took.
        load_ms: u64,
        /// Its answer to the canary prompt; empty where it was not asked.
        canary_tokens: Vec<u32>,
    },
    /// A worker is gone.
    WorkerExited {
        /// Where.
        node: NodeId,
        /// Its end.
        exit: WorkerExit,
    },
    /// A command was not sent, because what must be on record before it is not.
    CommandWithheld {
        /// For whom it was.
        node: NodeId,
        /// The command.
        command_id: u64,
    },
    /// An agent refused a command.
    CommandRefused {
        /// Where.
        node: NodeId,
        /// The command's number.
        command_id: u64,
        /// Why.
        problem: String,
    },
    /// How a worker is doing.
    Progress {
        /// Where.
        node: NodeId,
        /// The news.
        news: ProgressNews,
    },
    /// Results arrived.
    Results {
        /// From where.
        node: NodeId,
        /// Over which connection.
        session: SessionId,
        /// Their heads; effects refer to them by index.
        heads: Vec<ResultHead>,
    },
    /// Results are durable.
    Committed {
        /// From where they came.
        node: NodeId,
        /// Which.
        rows: Vec<CommittedRow>,
        /// Where their jobs stand on disk now.
        totals: Vec<JobTotals>,
    },
    /// Results could not be stored.
    CommitFailed {
        /// From where they came.
        node: NodeId,
        /// Which.
        rows: Vec<CommittedRow>,
        /// Why.
        problem: String,
    },
    /// Errors of rows that failed by rule are durable.
    FailuresStored {
        /// Which.
        rows: Vec<CommittedRow>,
        /// Where their jobs stand on disk now.
        totals: Vec<JobTotals>,
    },
    /// Something else could not be written to the state directory.
    StorageFailed {
        /// Why.
        problem: String,
    },
    /// The state directory can be written to again.
    StorageRecovered,
    /// A job was accepted and recorded.
    JobAccepted(JobRecord),
    /// The input of a job cannot be read any more.
    InputUnreadable {
        /// Which job.
        job: JobId,
        /// Why.
        problem: String,
    },
    /// Somebody wants a job held back.
    Pause(JobId),
    /// Somebody wants a job to go on.
    Resume(JobId),
    /// Somebody wants a job to end.
    Cancel {
        /// Which job.
        job: JobId,
        /// Without waiting for the rows being generated.
        now: bool,
    },
    /// Somebody wants a node to take no work, or to take it again.
    Drain {
        /// Which node.
        node: NodeId,
        /// No work, or work again.
        drain: bool,
    },
    /// Something outside the machine that people should be able to read afterwards.
    Note(EventDraft),
}

/// Why a person's request was not carried out.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RefusedRequest {
    /// There is no such job.
    #[error("there is no job {0}")]
    NoSuchJob(JobId),
    /// There is no such node.
    #[error("there is no node {0}")]
    NoSuchNode(NodeId),
    /// The node is not connected.
    #[error("node {0} is not connected now")]
    NodeAway(NodeId),
    /// Bounded, so that forgotten windows do not pile up.
    #[error("too many log readers are open; close some of them")]
    TooManyLogReaders,
    /// Nodes are being asked about models by as many people as there may be.
    #[error("too many plans are being made at once; try again in a few seconds")]
    TooManyQuestions,
    /// The job is over.
    #[error("job {job} is over: it is {state}")]
    JobIsOver {
        /// Which.
        job: JobId,
        /// How it ended.
        state: &'static str,
    },
    /// The job is in another state than the request needs.
    #[error("job {job} is {state}, so it cannot be {wish}")]
    WrongState {
        /// Which.
        job: JobId,
        /// What it is.
        state: &'static str,
        /// What it should become.
        wish: &'static str,
    },
}

impl JobSpec {
    /// The settings of a worker for this job: its own where given, else the controller's.
    #[must_use]
    pub fn settings(&self, policy: &Policy) -> WorkerSettings {
        let or = |given: u32, default: u32| if given == 0 { default } else { given };
        let max_batch_rows = or(self.max_batch_rows, policy.max_batch_rows);
        WorkerSettings {
            max_batch_rows,
            prefill_batch_rows: policy.prefill_batch_rows.min(max_batch_rows),
            prefill_step_tokens: or(self.prefill_step_tokens, policy.prefill_step_tokens),
            checkpoint_interval_ms: policy.checkpoint_interval_ms,
            default_max_tokens: or(self.default_max_tokens, policy.default_max_tokens),
        }
    }
}
