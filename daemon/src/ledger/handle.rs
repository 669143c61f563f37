//! The ledger as the rest of the controller sees it: a handle to the one thread that writes.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{
    core::{Committed, Core, EventFilter, Limits, Reply, Request},
    disk::{self, OsDisk},
    error::Error,
    load::Replay,
    sled_kv::SledKv,
    writer::{self, Answer, Command},
};
use crate::{
    intake,
    model::{
        Checkpoint, EventDraft, EventRecord, FinishedRow, Incident, JobId, JobRecord, LearnedModel,
        NodeRecord, RowIx,
    },
};

/// How long the writer may take to answer. Groups take milliseconds, on a dying disk seconds; reading everything again
/// after the store failed, and rebuilding it, some minutes at worst. See `sled_kv.rs` for what this guards against.
pub(super) const ANSWER_WAIT: Duration = Duration::from_secs(600);

/// How a ledger is opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Where the controller keeps everything.
    pub state_dir: PathBuf,
    /// Pages sled keeps in memory. What is read again and again is small; everything else is read once, at start, so that
    /// with 4 MiB a million rows are committed as fast as with 16.
    pub sled_cache_bytes: u64,
    /// Free space left alone on the disk, so that a full disk does not hit in the middle of a write.
    pub disk_reserve_bytes: u64,
    /// Events kept; the oldest go.
    pub max_events: u64,
    /// Requests that may wait for the writer. Whoever comes then waits before it may put its own.
    pub queue_commands: usize,
    /// Rows made durable with one pair of syncs at most. More make a group slower to gather and its rows wait longer;
    /// at 4,096 the syncs cost under a microsecond a row.
    pub max_group_rows: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            state_dir: PathBuf::new(),
            sled_cache_bytes: 4 << 20,
            disk_reserve_bytes: 256 << 20,
            max_events: 10_000,
            queue_commands: 256,
            max_group_rows: 4096,
        }
    }
}

/// Opens the ledger of a state directory, repairs what a crash left, and starts the writer. Blocks: a ledger with a
/// million finished rows takes some tenths of a second, one that has to be rebuilt as long as its results take to read.
///
/// One process at a time may do this; the lock on the state directory sees to it.
///
/// # Errors
/// When the directory cannot be used, the disk is full, or a newer version wrote the ledger.
pub fn open(options: Options) -> Result<(Handle, Replay), Error> {
    let limits =
        Limits { disk_reserve_bytes: options.disk_reserve_bytes, max_events: options.max_events.max(1) };
    let disk = OsDisk::new(&options.state_dir);
    let kv = SledKv::new(&options.state_dir, options.sled_cache_bytes);
    let (core, replay) = Core::open(disk, kv, limits, writer::now_unix_ms())?;
    let (commands, inbox) = mpsc::channel(options.queue_commands.max(1));
    writer::spawn(core, inbox, options.max_group_rows.max(1))
        .map_err(|error| Error::io("start the writer of", options.state_dir.clone(), error))?;
    Ok((Handle { commands, state_dir: options.state_dir.into() }, replay))
}

/// Asks the writer. Cheap to clone; the writer ends with [`Handle::shutdown`] or with the last handle.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    state_dir: std::sync::Arc<Path>,
}

impl Handle {
    /// Makes a job of a submission that passed: from now on it exists, whatever happens. On failure nothing of it is
    /// kept. The record's `rows_total` is the submission's.
    ///
    /// # Errors
    /// When the number is taken, the disk is full or cannot be written.
    pub async fn create_job(&self, staged: intake::Staged, record: JobRecord) -> Result<(), Error> {
        self.send(|reply| Command::CreateJob(staged, record, reply)).await.map(drop)
    }

    /// Records where a job stands; durable on return.
    ///
    /// # Errors
    /// When there is no such job, the disk is full or cannot be written.
    pub async fn put_job(&self, record: JobRecord) -> Result<(), Error> {
        self.done(Request::PutJob(record)).await
    }

    /// Makes finished rows durable, together with whatever else is waiting. On failure none of the rows counts as
    /// done here — some may, once the ledger was read again; committing them once more is right either way.
    ///
    /// # Errors
    /// When a job or row does not exist, the disk is full or cannot be written.
    pub async fn commit(&self, rows: Vec<FinishedRow>) -> Result<Committed, Error> {
        match self.ask(Request::Commit(rows)).await? {
            Reply::Committed(committed) => Ok(committed),
            _ => Err(Error::Closed),
        }
    }

    /// Remembers how far unfinished rows are; each checkpoint is whole and takes the place of the row's last one.
    /// Durable with the next flush, within a second. What is over the bounds, or too late, is left out without an error.
    ///
    /// # Errors
    /// When there is no such job, the disk is full or cannot be written. Nothing depends on it.
    pub async fn put_checkpoints(
        &self,
        job: JobId,
        checkpoints: Vec<(RowIx, Checkpoint)>,
    ) -> Result<(), Error> {
        self.done(Request::PutCheckpoints(job, checkpoints)).await
    }

    /// Records what is known of a node; durable on return.
    ///
    /// # Errors
    /// When the disk is full or cannot be written.
    pub async fn put_node(&self, record: NodeRecord) -> Result<(), Error> {
        self.done(Request::PutNode(record)).await
    }

    /// Records what has been learned of a model; durable on return.
    ///
    /// # Errors
    /// When the disk is full or cannot be written.
    pub async fn put_model(&self, model: LearnedModel) -> Result<(), Error> {
        self.done(Request::PutModel(model)).await
    }

    /// Records an incident as it stands; durable on return.
    ///
    /// # Errors
    /// When the disk is full or cannot be written.
    pub async fn put_incident(&self, incident: Incident) -> Result<(), Error> {
        self.done(Request::PutIncident(Box::new(incident))).await
    }

    /// Numbers events and keeps them; durable within a second.
    ///
    /// # Errors
    /// When the disk is full or cannot be written.
    pub async fn append_events(
        &self,
        events: Vec<EventDraft>,
        unix_ms: u64,
    ) -> Result<Vec<EventRecord>, Error> {
        self.events(Request::AppendEvents(events, unix_ms)).await
    }

    /// Events that pass the filter, oldest first.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn read_events(&self, filter: EventFilter) -> Result<Vec<EventRecord>, Error> {
        self.events(Request::ReadEvents(filter)).await
    }

    /// A job's directory.
    #[must_use]
    pub fn job_dir(&self, job: JobId) -> PathBuf {
        self.state_dir.join("jobs").join(job.to_string())
    }

    /// Free space on the disk that holds the ledger, in bytes.
    ///
    /// # Errors
    /// When it cannot be found out.
    pub fn free_bytes(&self) -> Result<u64, Error> {
        disk::free_bytes(&self.state_dir)
            .map_err(|error| Error::io("ask for the free space of", self.state_dir.to_path_buf(), error))
    }

    /// Answers what is waiting, makes everything durable and ends the writer. Requests after this get
    /// [`Error::Closed`].
    ///
    /// # Errors
    /// When not everything is certain to be durable. The writer has ended all the same.
    pub async fn shutdown(&self) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Shutdown(reply)).await.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }

    async fn ask(&self, request: Request) -> Result<Reply, Error> {
        self.send(|reply| Command::Request(request, reply)).await
    }

    async fn send(&self, command: impl FnOnce(Answer) -> Command) -> Result<Reply, Error> {
        let (reply, answer) = oneshot::channel();
        let answered = async {
            self.commands.send(command(reply)).await.map_err(|_| Error::Closed)?;
            answer.await.map_err(|_| Error::Closed)?
        };
        let stuck = || Error::Stuck { waited_s: ANSWER_WAIT.as_secs() };
        timeout(ANSWER_WAIT, answered).await.unwrap_or_else(|_| Err(stuck()))
    }

    async fn done(&self, request: Request) -> Result<(), Error> {
        self.ask(request).await.map(drop)
    }

    async fn events(&self, request: Request) -> Result<Vec<EventRecord>, Error> {
        match self.ask(request).await? {
            Reply::Events(events) => Ok(events),
            _ => Err(Error::Closed),
        }
    }
}
