//! The one thread that writes: takes what waits, makes a group of it, answers.

use std::{
    io, thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{
    core::{Core, Reply, Request},
    disk::Disk,
    error::Error,
    kv::Kv,
};
use crate::{
    intake::Staged,
    model::{Checkpoint, JobRecord},
};

/// Checkpoints and events are not flushed one by one; this long after, they are. Half of the second promised.
const FLUSH_AFTER: Duration = Duration::from_millis(500);

/// Bytes of rows in a group at most: they are in memory twice while it is written. One request may be larger.
const GROUP_BYTES_MAX: usize = 8 << 20;

/// Where a request's answer goes.
pub(crate) type Answer = oneshot::Sender<Result<Reply, Error>>;

/// What the writer is sent.
#[derive(Debug)]
pub(crate) enum Command {
    Request(Request, Answer),
    /// The submission comes along: whoever asked may go away, and it must not be removed while it becomes a job.
    CreateJob(Staged, JobRecord, Answer),
    Shutdown(oneshot::Sender<Result<(), Error>>),
}

/// Milliseconds since 1970 by the machine's clock.
pub(crate) fn now_unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
}

/// Starts the thread. It ends on request, or when nobody can send any more.
pub(crate) fn spawn<D, K>(
    core: Core<D, K>,
    inbox: mpsc::Receiver<Command>,
    max_group_rows: usize,
) -> io::Result<()>
where
    D: Disk + Send + 'static,
    K: Kv + Send + 'static,
{
    // Only for its timer: the thread itself blocks on files, which is why it is not a task.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let writer = Writer { core, inbox, runtime, max_group_rows, flush_due: None };
    thread::Builder::new().name("ledger-writer".into()).spawn(move || writer.run()).map(drop)
}

struct Writer<D, K> {
    core: Core<D, K>,
    inbox: mpsc::Receiver<Command>,
    runtime: tokio::runtime::Runtime,
    max_group_rows: usize,
    /// When what was applied and not flushed must be.
    flush_due: Option<Instant>,
}

/// What the writer wakes up for.
#[expect(clippy::large_enum_variant, reason = "moved once, and nearly always a command")]
enum Wake {
    Command(Command),
    FlushIsDue,
    NobodyLeft,
}

impl<D: Disk, K: Kv> Writer<D, K> {
    fn run(mut self) {
        let asked = loop {
            match self.wait() {
                Wake::Command(command) => {
                    if let Some(reply) = self.run_group(command) {
                        break Some(reply);
                    }
                }
                Wake::FlushIsDue => self.flush(),
                Wake::NobodyLeft => break None,
            }
        };
        self.inbox.close();
        let outcome = self.core.close();
        match (asked, outcome) {
            (Some(reply), outcome) => drop(reply.send(outcome)),
            (None, Err(error)) => tracing::warn!(%error, "the ledger was not closed in order"),
            (None, Ok(())) => {}
        }
    }

    fn flush(&mut self) {
        self.flush_due = None;
        if let Err(error) = self.core.flush() {
            tracing::warn!(%error, "checkpoints and events may be lost");
        }
    }

    fn wait(&mut self) -> Wake {
        let command = if self.core.is_dirty() {
            let due = *self.flush_due.get_or_insert_with(|| Instant::now() + FLUSH_AFTER);
            let left = due.saturating_duration_since(Instant::now());
            let received = self.runtime.block_on(async { timeout(left, self.inbox.recv()).await });
            // A steady stream of requests must not put the flush off for ever.
            match received {
                Ok(command) if !left.is_zero() => command,
                Ok(Some(command)) => {
                    self.flush();
                    Some(command)
                }
                Ok(None) => None,
                Err(_) => return Wake::FlushIsDue,
            }
        } else {
            self.flush_due = None;
            self.inbox.blocking_recv()
        };
        command.map_or(Wake::NobodyLeft, Wake::Command)
    }

    /// Does what a command asks together with those that wait behind it. Answers with the reply owed when one of them
    /// was to shut down.
    fn run_group(&mut self, first: Command) -> Option<oneshot::Sender<Result<(), Error>>> {
        let mut group = Group::default();
        let mut shutdown = group.add(first);
        while shutdown.is_none() && group.rows < self.max_group_rows && group.bytes < GROUP_BYTES_MAX {
            let Ok(command) = self.inbox.try_recv() else { break };
            shutdown = group.add(command);
        }
        let answers = self.core.run(group.requests, now_unix_ms());
        for ((reply, staged), answer) in group.waiting.into_iter().zip(answers) {
            if let (Some(mut staged), Ok(_)) = (staged, &answer) {
                staged.keep();
            }
            // Whoever asked may have gone; what was done stays done.
            let _ = reply.send(answer);
        }
        shutdown
    }
}

/// Requests that share syncs, and who waits for them.
#[derive(Default)]
struct Group {
    requests: Vec<Request>,
    waiting: Vec<(Answer, Option<Staged>)>,
    rows: usize,
    bytes: usize,
}

impl Group {
    /// Adds a command; one to shut down is handed back.
    fn add(&mut self, command: Command) -> Option<oneshot::Sender<Result<(), Error>>> {
        let (request, reply, staged) = match command {
            Command::Request(request, reply) => (request, reply, None),
            Command::CreateJob(staged, mut record, reply) => {
                record.rows_total = staged.rows_total;
                let staging = staged.directory_name();
                (Request::CreateJob { staging, record }, reply, Some(staged))
            }
            Command::Shutdown(reply) => return Some(reply),
        };
        let (rows, bytes) = weight(&request);
        (self.rows, self.bytes) = (self.rows + rows, self.bytes + bytes);
        self.requests.push(request);
        self.waiting.push((reply, staged));
        None
    }
}

/// Rows and bytes a request adds to a group.
fn weight(request: &Request) -> (usize, usize) {
    match request {
        Request::Commit(rows) => (rows.len(), rows.iter().map(|row| row.body.len() + 200).sum()),
        Request::PutCheckpoints(_, checkpoints) => {
            let bytes = |(_, c): &(_, Checkpoint)| c.tokens.len() * 4 + c.logprobs_json.len();
            (checkpoints.len(), checkpoints.iter().map(bytes).sum())
        }
        _ => (1, 1024),
    }
}
