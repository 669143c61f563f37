//! The one task that owns the workers of this node: starts them, routes rows to them, stops them, and tells what becomes
//! of them.
//!
//! It carries out the controller's commands in the order they come and answers each. Answers and events wait in a
//! bounded outbox for their place in the session; while that is full no commands are taken, so that nothing is lost and
//! nothing grows. What happened while there was no session need not be told, the list of running workers is the truth,
//! with one exception: the exits, which carry evidence and tokens (see [`departed`]).

pub mod departed;
mod link_tests;
pub mod start;
mod task;

use std::{path::PathBuf, sync::Arc, time::Duration};

use nightshift_proto::v1;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

pub use task::run;

use crate::{
    epochs::{self, Epochs},
    gang::{files::Files, starts::Starts},
    logging::LogStore,
    memory_debt::MemoryDebt,
    probe,
    reboot::Restarter,
    runtime,
    session::feed::Sender as Feed,
    spool,
    worker::{pids::Pids, process::Launcher, task::Departure},
};

/// Commands that may wait; a session sends few and the supervisor is quick.
const MAX_COMMANDS: usize = 64;

/// What the supervisor needs.
#[derive(Debug)]
pub struct Options {
    /// Where workers' records are kept.
    pub records_dir: PathBuf,
    /// How workers are started.
    pub launcher: Launcher,
    /// Highest launches.
    pub epochs: Epochs,
    /// Where answers go.
    pub spool: spool::Handle,
    /// Where workers' logs go.
    pub logs: LogStore,
    /// Whether workers can run at all; looked at when one is to be started.
    pub runtime: tokio::sync::watch::Receiver<Arc<runtime::Status>>,
    /// This boot, for the records.
    pub boot_id: Option<String>,
    /// See [`crate::config::Settings`].
    pub max_workers: usize,
    /// See [`crate::config::Settings`].
    pub model_roots: Vec<PathBuf>,
    /// See [`crate::config::Settings`]; ranks of gangs are ordered by it.
    pub node_id: String,
    /// Whether the machine is a Mac, and can have RDMA.
    pub is_mac: bool,
    /// JACCL starts of this boot.
    pub jaccl_starts: Starts,
    /// How many of them, for the controller.
    pub starts_used: watch::Sender<u32>,
    /// What killed workers may have left.
    pub memory_debt: MemoryDebt,
    /// Restarts the machine.
    pub restarter: Restarter,
    /// Remembers them by process id.
    pub pids: Pids,
    /// Has the machine looked at soon.
    pub probe: probe::watch::Handle,
    /// Where ranks of gangs keep their files.
    pub gang_files: Files,
    /// When the agent ends, and where a stop names no grace.
    pub grace: Duration,
    /// Workers of an earlier agent, to be told.
    pub leftovers: Vec<Departure>,
}

/// What the controller may want.
#[derive(Debug)]
pub enum Command {
    /// Start a worker.
    Start(Box<v1::StartWorker>),
    /// Stop one.
    Stop(v1::StopWorker),
    /// Rows for one.
    Rows(v1::Rows),
    /// Rows back from one.
    Cancel(v1::CancelRows),
    /// Restart the machine.
    Restart(v1::RestartMachine),
    /// Take no new workers, or again.
    Drain(v1::Drain),
    /// Try a link.
    TestLink(Box<v1::TestLink>),
}

enum Request {
    Command(Command),
    Attach { feed: Feed, done: oneshot::Sender<Vec<v1::RunningWorker>> },
    Detach,
    ReportInterval(Duration),
    StartOver { place: PathBuf, done: oneshot::Sender<Result<(), epochs::Error>> },
}

/// The supervisor has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the supervisor has ended")]
pub struct Gone;

/// Why starting over did not work.
#[derive(Debug, thiserror::Error)]
pub enum StartOverError {
    /// The agent is ending.
    #[error(transparent)]
    Gone(#[from] Gone),
    /// The counts cannot be moved.
    #[error(transparent)]
    Epochs(#[from] epochs::Error),
}

/// Asks the supervisor. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    ended: CancellationToken,
}

impl Handle {
    /// Carries out a command; its answer goes into the session. Waits while earlier answers have no place there.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn command(&self, command: Command) -> Result<(), Gone> {
        self.ask(Request::Command(command)).await
    }

    /// A session begins: events go into `feed` from the returned list of workers on. Recent exits go there first.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn attach(&self, feed: Feed) -> Result<Vec<v1::RunningWorker>, Gone> {
        let (done, wait) = oneshot::channel();
        self.ask(Request::Attach { feed, done }).await?;
        wait.await.map_err(|_| Gone)
    }

    /// The session is over.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn detach(&self) -> Result<(), Gone> {
        self.ask(Request::Detach).await
    }

    /// Another ledger takes over: ends all workers, forgets those that have ended, and counts launches anew; the old
    /// counts go into `place`. Returns when that is done. There must be no session.
    ///
    /// # Errors
    /// When the supervisor has ended, or the counts cannot be moved.
    pub async fn start_over(&self, place: PathBuf) -> Result<(), StartOverError> {
        let (done, wait) = oneshot::channel();
        self.ask(Request::StartOver { place, done }).await?;
        Ok(wait.await.map_err(|_| Gone)??)
    }

    /// How often workers report.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn set_report_interval(&self, interval: Duration) -> Result<(), Gone> {
        self.ask(Request::ReportInterval(interval)).await
    }

    /// Returns when the supervisor has ended all workers.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Whether it has.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended.is_cancelled()
    }

    async fn ask(&self, request: Request) -> Result<(), Gone> {
        self.requests.send(request).await.map_err(|_| Gone)
    }
}
