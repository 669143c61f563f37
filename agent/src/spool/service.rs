//! The thread that owns the spool's files.
//!
//! It has a thread of its own because a write or a sync can take as long as the disk likes. Whoever appends waits for
//! the answer; when there is no room, the request stays with the thread until an acknowledgement makes some, or until
//! the disk takes it, which is tried again twice a second.

use std::{collections::VecDeque, io, path::PathBuf, thread, time::Duration};

use nightshift_proto::v1::RowResult;
use tokio::{
    runtime,
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use super::store::{Cursor, Error, Store};
use crate::util::chain;

/// Requests that may wait. Each worker has at most one under way, the session a few.
const MAX_REQUESTS: usize = 64;

/// With no controller connected, results are on disk after this time at the latest.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// How often the acknowledged position is saved: often enough that a restart sends few results twice, rarely enough to
/// cost nothing.
const SAVE_INTERVAL: Duration = Duration::from_secs(10);

/// How often a full disk is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Some results and where to go on.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// In order.
    pub results: Vec<RowResult>,
    /// Behind them.
    pub cursor: Cursor,
}

enum Request {
    Append { results: Vec<RowResult>, done: oneshot::Sender<()> },
    Ack { through: u64 },
    Read { cursor: Cursor, max_results: usize, max_bytes: usize, done: oneshot::Sender<Result<Batch, Error>> },
    Connected(bool),
    Waiting(oneshot::Sender<(u64, u64)>),
    SetAside { place: PathBuf, done: oneshot::Sender<Result<(), Error>> },
    Close(oneshot::Sender<()>),
}

/// The spool has been closed: the agent is ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the spool is closed")]
pub struct Closed;

/// Why results cannot be read or set aside.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The agent is ending.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// The disk says no. They are still there, and unacknowledged.
    #[error(transparent)]
    Store(#[from] Error),
}

/// Asks the spool. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    last_seq: watch::Receiver<u64>,
}

impl Handle {
    /// Appends results; returns when they are in the spool, which may take until there is room.
    ///
    /// # Errors
    /// [`Closed`]; the results are not in the spool then.
    pub async fn append(&self, results: Vec<RowResult>) -> Result<(), Closed> {
        let (done, wait) = oneshot::channel();
        self.ask(Request::Append { results, done }).await?;
        wait.await.map_err(|_| Closed)
    }

    /// Everything up to `through` is durable at the controller.
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn ack(&self, through: u64) -> Result<(), Closed> {
        self.ask(Request::Ack { through }).await
    }

    /// Results from `cursor` on; none when there are no more.
    ///
    /// # Errors
    /// When the spool is closed or cannot be read.
    pub async fn read(
        &self,
        cursor: Cursor,
        max_results: usize,
        max_bytes: usize,
    ) -> Result<Batch, AskError> {
        let (done, wait) = oneshot::channel();
        self.ask(Request::Read { cursor, max_results, max_bytes, done }).await?;
        Ok(wait.await.map_err(|_| Closed)??)
    }

    /// Whether somebody else takes results now; see the module of [`super`].
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn set_connected(&self, connected: bool) -> Result<(), Closed> {
        self.ask(Request::Connected(connected)).await
    }

    /// How many results wait, and the number up to which everything is acknowledged.
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn waiting(&self) -> Result<(u64, u64), Closed> {
        let (done, wait) = oneshot::channel();
        self.ask(Request::Waiting(done)).await?;
        wait.await.map_err(|_| Closed)
    }

    /// Begins anew for another ledger; see [`Store::set_aside`]. Nobody may be appending.
    ///
    /// # Errors
    /// When the spool is closed or cannot be moved.
    pub async fn set_aside(&self, place: PathBuf) -> Result<(), AskError> {
        let (done, wait) = oneshot::channel();
        self.ask(Request::SetAside { place, done }).await?;
        Ok(wait.await.map_err(|_| Closed)??)
    }

    /// Syncs and ends the thread.
    pub async fn close(&self) {
        let (done, wait) = oneshot::channel();
        if self.ask(Request::Close(done)).await.is_ok() {
            // An answer that does not come means that it is closed already.
            let _ = wait.await;
        }
    }

    /// The highest number given out, and its changes.
    #[must_use]
    pub fn last_seq(&self) -> watch::Receiver<u64> {
        self.last_seq.clone()
    }

    async fn ask(&self, request: Request) -> Result<(), Closed> {
        self.requests.send(request).await.map_err(|_| Closed)
    }
}

/// Starts the thread. Must be called within a tokio runtime, whose timer it uses.
///
/// # Errors
/// When the system gives no thread.
pub fn run(store: Store) -> io::Result<Handle> {
    let (requests, inbox) = mpsc::channel(MAX_REQUESTS);
    let (publish, last_seq) = watch::channel(store.last_seq());
    let timer = runtime::Handle::current();
    thread::Builder::new().name("spool".to_owned()).spawn(move || {
        let service = Service {
            store,
            publish,
            connected: false,
            held_up: VecDeque::new(),
            complained: false,
            sync_at: None,
            save_at: None,
            retry_at: None,
        };
        timer.block_on(service.serve(inbox));
    })?;
    Ok(Handle { requests, last_seq })
}

struct Service {
    store: Store,
    publish: watch::Sender<u64>,
    connected: bool,
    /// Appends for which there was no room, oldest first. One a worker at most: its next comes only after the answer.
    held_up: VecDeque<(Vec<RowResult>, oneshot::Sender<()>)>,
    complained: bool,
    sync_at: Option<Instant>,
    save_at: Option<Instant>,
    retry_at: Option<Instant>,
}

impl Service {
    async fn serve(mut self, mut inbox: mpsc::Receiver<Request>) {
        loop {
            let due = [self.sync_at, self.save_at, self.retry_at].into_iter().flatten().min();
            let request = match due {
                Some(at) => tokio::time::timeout_at(at, inbox.recv()).await,
                None => Ok(inbox.recv().await),
            };
            match request {
                Ok(Some(Request::Close(done))) => {
                    self.close();
                    // Nobody waiting is fine.
                    let _ = done.send(());
                    return;
                }
                Ok(Some(request)) => self.carry_out(request, &mut inbox),
                Ok(None) => return self.close(),
                Err(_) => {}
            }
            self.on_time(Instant::now());
        }
    }

    /// Carries the request out, and with an append all others that wait already: they share one write.
    fn carry_out(&mut self, request: Request, inbox: &mut mpsc::Receiver<Request>) {
        match request {
            Request::Append { results, done } => {
                self.held_up.push_back((results, done));
                while self.held_up.len() < MAX_REQUESTS {
                    match inbox.try_recv() {
                        Ok(Request::Append { results, done }) => self.held_up.push_back((results, done)),
                        Ok(other) => {
                            self.append_held_up();
                            return self.carry_out_one(other);
                        }
                        Err(_) => break,
                    }
                }
                self.append_held_up();
            }
            other => self.carry_out_one(other),
        }
    }

    fn carry_out_one(&mut self, request: Request) {
        match request {
            Request::Append { results, done } => {
                self.held_up.push_back((results, done));
                self.append_held_up();
            }
            Request::Ack { through } => {
                if let Err(error) = self.store.ack(through) {
                    tracing::error!(error = chain(&error), "acknowledged results stay on disk");
                }
                self.append_held_up();
            }
            Request::Read { cursor, max_results, max_bytes, done } => {
                let read = self.store.read(cursor, max_results, max_bytes);
                // A session that is gone by now asks again.
                let _ = done.send(read.map(|(results, cursor)| Batch { results, cursor }));
            }
            Request::Connected(connected) => self.connected = connected,
            Request::Waiting(done) => {
                // As above.
                let _ = done.send((self.store.waiting(), self.store.acked()));
            }
            Request::SetAside { place, done } => {
                // As above.
                let _ = done.send(self.store.set_aside(&place));
            }
            Request::Close(_) => {}
        }
    }

    /// Appends what waits, in one write where there is room for all of it.
    fn append_held_up(&mut self) {
        if self.held_up.is_empty() {
            return;
        }
        let mut all: Vec<RowResult> =
            self.held_up.iter().flat_map(|(results, _)| results.iter().cloned()).collect();
        let outcome = match self.store.append(&mut all) {
            Ok(()) => {
                self.appended(self.held_up.len());
                Ok(())
            }
            Err(Error::Full { .. }) => self.append_one_by_one(),
            Err(error) => Err(error),
        };
        self.retry_at = None;
        match outcome {
            Ok(()) if self.complained => {
                self.complained = false;
                tracing::info!("the spool takes results again");
            }
            Ok(()) => {}
            Err(error) => {
                if matches!(error, Error::Io { .. }) {
                    self.retry_at = Some(Instant::now() + RETRY);
                }
                if !self.complained {
                    self.complained = true;
                    tracing::error!(
                        error = chain(&error),
                        "workers are held up until the spool takes results again"
                    );
                }
            }
        }
    }

    fn append_one_by_one(&mut self) -> Result<(), Error> {
        while let Some((results, _)) = self.held_up.front_mut() {
            self.store.append(results)?;
            self.appended(1);
        }
        Ok(())
    }

    /// The first `count` that waited are in the spool. The number is published before anybody is told, because it is what
    /// the report of a worker's exit is put behind.
    fn appended(&mut self, count: usize) {
        self.publish.send_replace(self.store.last_seq());
        for (_, done) in self.held_up.drain(..count) {
            // Nobody waiting any more is fine: the result is safe.
            let _ = done.send(());
        }
    }

    fn on_time(&mut self, now: Instant) {
        if self.retry_at.is_some_and(|at| at <= now) {
            self.append_held_up();
        }
        self.sync_at = match self.sync_at {
            _ if self.connected || !self.store.is_unsynced() => None,
            Some(at) if at <= now => {
                self.try_to(Store::sync).then_some(()).map_or(Some(now + SYNC_INTERVAL), |()| None)
            }
            other => other.or(Some(now + SYNC_INTERVAL)),
        };
        self.save_at = match self.save_at {
            _ if !self.store.is_ack_unsaved() => None,
            Some(at) if at <= now => {
                self.try_to(Store::save_ack).then_some(()).map_or(Some(now + SAVE_INTERVAL), |()| None)
            }
            other => other.or(Some(now + SAVE_INTERVAL)),
        };
    }

    fn try_to(&mut self, what: impl FnOnce(&mut Store) -> Result<(), Error>) -> bool {
        what(&mut self.store)
            .inspect_err(|error| tracing::error!(error = chain(error), "will be tried again"))
            .is_ok()
    }

    fn close(self) {
        if let Err(error) = self.store.close() {
            tracing::error!(error = chain(&error), "the spool cannot be closed in order");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future as _,
        task::{Context, Waker},
    };

    use super::*;
    use crate::spool::store::Options;

    fn start(dir: &std::path::Path, max_bytes: u64) -> Handle {
        let options =
            Options { dir: dir.to_owned(), max_bytes, segment_bytes: 200, boot_id: Some("b".into()) };
        run(Store::open(options).unwrap()).unwrap()
    }

    fn results(rows: std::ops::Range<u32>) -> Vec<RowResult> {
        rows.map(|row| RowResult { row, ..Default::default() }).collect()
    }

    #[tokio::test]
    async fn whoever_appended_finds_the_number_announced() {
        let dir = tempfile::tempdir().unwrap();
        let spool = start(dir.path(), 1 << 20);
        for n in 1..500 {
            spool.append(results(0..1)).await.unwrap();
            assert_eq!(*spool.last_seq().borrow(), n);
        }
    }

    #[tokio::test]
    async fn what_is_appended_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let spool = start(dir.path(), 1 << 20);
        spool.append(results(0..3)).await.unwrap();
        let batch = spool.read(Cursor::after(1), 10, 1000).await.unwrap();
        assert_eq!(batch.results.iter().map(|result| result.row).collect::<Vec<_>>(), [1, 2]);
        spool.ack(2).await.unwrap();
        assert_eq!(spool.waiting().await.unwrap(), (1, 2));
        spool.close().await;
        assert_eq!(spool.append(results(0..1)).await, Err(Closed));
        assert_eq!(start(dir.path(), 1 << 20).waiting().await.unwrap(), (1, 2));
    }

    #[tokio::test]
    async fn a_full_spool_holds_the_appender_up_until_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let spool = start(dir.path(), 300);
        let mut look = Context::from_waker(Waker::noop());
        let mut appended = 0;
        let blocked = loop {
            let mut append = Box::pin(spool.append(results(appended..appended + 1)));
            if append.as_mut().poll(&mut look).is_pending() {
                // Requests are taken in order: with this answer the append has been looked at.
                spool.waiting().await.unwrap();
                if append.as_mut().poll(&mut look).is_pending() {
                    break append;
                }
            }
            appended += 1;
        };
        assert_eq!(*spool.last_seq().borrow(), u64::from(appended));
        spool.ack(u64::from(appended)).await.unwrap();
        blocked.await.unwrap();
        assert_eq!(spool.waiting().await.unwrap().0, 1);
    }
}
