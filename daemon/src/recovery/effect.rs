//! What the machine wants done.

use core::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::fit::Span;
use crate::model::{
    Backend, EventDraft, Incident, JobId, JobRecord, LearnedModel, Mode, NodeId, NodeRecord, RestartCause,
    RowIx, WorkerKey,
};

use super::event::{SessionId, WorkerSettings};

/// How a worker is to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StopMode {
    /// Finish the rows being generated, hand back the others.
    FinishStarted,
    /// Stop at the next step, with checkpoints.
    Checkpoint,
    /// SIGTERM now, SIGKILL after the grace.
    Kill,
}

/// A row given to a worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RowGrant {
    /// Which row.
    pub row: RowIx,
    /// How often it has been given out, this time included.
    pub attempt: u32,
}

/// What all ranks of a gang are told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GangLaunch {
    /// Pipeline or tensor.
    pub mode: Mode,
    /// What ranks talk over.
    pub backend: Backend,
    /// How many there are.
    pub world_size: u32,
    /// How long they may take to find one another.
    pub rendezvous_timeout_ms: u64,
    /// Where ranks over RDMA arrange how they talk.
    pub coordinator: Option<SocketAddr>,
    /// Rank 0 first.
    pub ranks: Vec<RankLaunch>,
    /// What the canary prompt must give; empty where that is not known.
    pub expected_answer: Vec<u32>,
}

/// One rank's place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RankLaunch {
    /// Where it runs.
    pub node: NodeId,
    /// Its layers (pipeline).
    pub layers: Option<Span>,
    /// Where it listens for the rank before it (ring).
    pub ring_address: Option<SocketAddr>,
    /// Where rank 0 is; rank 0 itself listens on all of its own.
    pub control_addresses: Vec<SocketAddr>,
    /// Devices towards every rank (RDMA).
    pub rdma_devices: Vec<Option<String>>,
}

/// Something to tell an agent.
#[derive(Clone, PartialEq, Debug)]
pub enum Command {
    /// Start a worker.
    StartWorker {
        /// Comes back in the answer.
        command_id: u64,
        /// Which.
        worker: WorkerKey,
        /// The model to load.
        model: String,
        /// How to set it up.
        settings: WorkerSettings,
        /// The gang it is a rank of.
        gang: Option<Arc<GangLaunch>>,
    },
    /// Say how large a model is there. Answered by [`Event::ModelFound`](super::Event::ModelFound).
    InspectModel {
        /// Which.
        model: String,
    },
    /// See whether another node's machine is there. Answered by [`Event::NodeSeen`](super::Event::NodeSeen).
    LookAt {
        /// Comes back in the answer.
        request_id: u64,
        /// The node that is looked for.
        of: NodeId,
        /// Where: a few at most.
        addresses: Vec<IpAddr>,
    },
    /// Try a link, as one of two ranks. Answered by [`Event::LinkTested`](super::Event::LinkTested).
    TestLink {
        /// Comes back in the answer; the same at both ends.
        request_id: u64,
        /// Which of the two.
        rank: u32,
        /// Both.
        gang: Arc<GangLaunch>,
        /// For all of it.
        limit_ms: u64,
    },
    /// End a worker.
    StopWorker {
        /// Comes back in the answer.
        command_id: u64,
        /// Which.
        worker: WorkerKey,
        /// How.
        mode: StopMode,
        /// Between SIGTERM and SIGKILL.
        grace_ms: u64,
        /// For the logs.
        reason: String,
        /// It takes no step: its stack is evidence.
        ask_for_stack: bool,
    },
    /// Give rows to a worker. The driver adds the request and the checkpoint of each.
    GrantRows {
        /// Which worker.
        worker: WorkerKey,
        /// Which rows.
        rows: Vec<RowGrant>,
    },
    /// Take rows back from a worker.
    CancelRows {
        /// Which worker.
        worker: WorkerKey,
        /// Which rows.
        rows: Vec<RowIx>,
    },
    /// Restart the machine. A refusal is [`Event::CommandRefused`](super::Event::CommandRefused).
    RestartMachine {
        /// Comes back in the answer.
        command_id: u64,
        /// The boot that is to end.
        boot_id: String,
        /// What for.
        cause: RestartCause,
        /// For the logs.
        reason: String,
    },
    /// Take no work, or take it again.
    Drain {
        /// No work, or work again.
        draining: bool,
    },
    /// Everything up to this position is settled.
    AckResults {
        /// The position.
        through_spool_seq: u64,
    },
}

/// Something for the driver to do. Effects are carried out in order; those marked durable are on disk before the next
/// one starts.
#[derive(Clone, PartialEq, Debug)]
pub enum Effect {
    /// Write a job's record; durable.
    RecordJob(Box<JobRecord>),
    /// Write a node's record; durable.
    RecordNode(NodeRecord),
    /// Write what has been learned of a model; durable.
    RecordModel(Box<LearnedModel>),
    /// Write an incident as it stands; durable.
    RecordIncident(Box<Incident>),
    /// Tell an agent something, if the connection is still this one.
    Send {
        /// Whom.
        node: NodeId,
        /// Over which connection.
        session: SessionId,
        /// What.
        command: Command,
    },
    /// End a connection.
    CloseSession {
        /// Whose.
        node: NodeId,
        /// Which.
        session: SessionId,
        /// For the logs.
        reason: String,
    },
    /// Make results durable. They are answered by `Committed` or `CommitFailed`.
    Commit {
        /// From where they came.
        node: NodeId,
        /// Indices into the heads of the `Results` event being handled.
        indices: Vec<usize>,
    },
    /// Write the checkpoints of these rows; soon is enough.
    SaveCheckpoints {
        /// Their job.
        job: JobId,
        /// Which rows.
        rows: Vec<RowIx>,
    },
    /// Make the errors of rows that fail by rule durable, then say so.
    FailRows {
        /// Their job.
        job: JobId,
        /// Which rows, and why: a sentence each.
        rows: Vec<(RowIx, String)>,
    },
    /// Let people read about it.
    Emit(EventDraft),
    /// The job is over: what was kept open for it can be closed.
    JobOver(JobId),
}
