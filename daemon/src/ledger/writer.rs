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

/// Checkpoints and events are not flushed one by one; this long after, they are. Half of the second promised.
const FLUSH_AFTER: Duration = Duration::from_millis(500);

/// Bytes of rows in a group at most: they are in memory twice while it is written. One request may be larger.
const GROUP_BYTES_MAX: usize = 8 << 20;

/// What the writer is sent.
#[derive(Debug)]
pub(crate) enum Command {
    Request(Request, oneshot::Sender<Result<Reply, Error>>),
    Shutdown(oneshot::Sender<Result<(), Error>>),
}

/// Milliseconds since 1970 by the machine's clock.
pub(crate) fn now_unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
}

/// Starts the thread. It ends on request, or when nobody can send any more.
pub(crate) fn spawn<D, K>(core: Core<D, K>, inbox: mpsc::Receiver<Command>, max_group_rows: usize) -> io::Result<()>
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
enum Wake {
    Command(Command),
    FlushIsDue,
    NobodyLeft,
}

impl<D: Disk, K: Kv> Writer<D, K> {
    fn run(mut self) {
        let asked = loop {
            match self.wait() {
                Wake::Command(Command::Shutdown(reply)) => break Some(reply),
                Wake::Command(Command::Request(request, reply)) => {
                    if let Some(reply) = self.run_group(request, reply) {
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

    /// Does a request together with those that wait behind it. Answers with the reply owed when one of them was to shut
    /// down.
    fn run_group(
        &mut self,
        request: Request,
        reply: oneshot::Sender<Result<Reply, Error>>,
    ) -> Option<oneshot::Sender<Result<(), Error>>> {
        let (mut rows, mut bytes) = weight(&request);
        let (mut requests, mut replies, mut shutdown) = (vec![request], vec![reply], None);
        while rows < self.max_group_rows && bytes < GROUP_BYTES_MAX {
            match self.inbox.try_recv() {
                Ok(Command::Request(request, reply)) => {
                    let (more_rows, more_bytes) = weight(&request);
                    (rows, bytes) = (rows + more_rows, bytes + more_bytes);
                    requests.push(request);
                    replies.push(reply);
                }
                Ok(Command::Shutdown(reply)) => {
                    shutdown = Some(reply);
                    break;
                }
                Err(_) => break,
            }
        }
        let answers = self.core.run(requests, now_unix_ms());
        for (reply, answer) in replies.into_iter().zip(answers) {
            // Whoever asked may have gone; what was done stays done.
            let _ = reply.send(answer);
        }
        shutdown
    }
}

/// Rows and bytes a request adds to a group.
fn weight(request: &Request) -> (usize, usize) {
    match request {
        Request::Commit(rows) => (rows.len(), rows.iter().map(|row| row.body.len() + 200).sum()),
        Request::PutCheckpoints(_, checkpoints) => {
            let bytes = |(_, c): &(_, crate::model::Checkpoint)| c.tokens.len() * 4 + c.logprobs_json.len();
            (checkpoints.len(), checkpoints.iter().map(bytes).sum())
        }
        _ => (1, 1024),
    }
}
