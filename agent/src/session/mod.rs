//! The agent's side of the stream to the controller.
//!
//! ```text
//!   dial ──► Hello ──► Welcome ──► spooled results ──► SpoolReplayed ──► live
//!     ▲                                                                   │
//!     └──────────── wait (backoff with jitter) ◄── any error, any silence ┘
//! ```
//!
//! What it promises: results go out in the order of the spool and as soon as they are in it; an event of a worker never
//! overtakes that worker's results; whatever is written to a stream that breaks is written again to the next one, unless
//! it is news that has been overtaken. Nothing here holds a worker up but a full spool.
//!
//! * [`feed`] is how events come in from the supervisor; [`outgoing`] is the stream of messages with its heartbeats;
//! * [`transport`] is the thread that carries it, and [`runtime_lag`] tells it how late everything else is;
//! * [`conversation`] is one session, [`writer`] its outgoing half; [`logs`] answers log requests, and
//!   [`inspections`] questions about models; [`looks`] sees whether other machines are there;
//! * [`retry`] decides how long to wait before the next.

mod boot;
pub mod conversation;
pub mod feed;
pub mod inspections;
pub mod logs;
pub mod looks;
pub mod outgoing;
pub mod retry;
pub mod runtime_lag;
pub mod transport;
pub mod writer;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::{
    ledger::Ledger, link_prep::known::ClusterPorts, logging::LogStore, probe, runtime, spool, supervisor,
    util,
};
pub use boot::Boot;
use conversation::Error;
use inspections::Inspector;
use retry::Retry;
use transport::Transport;

/// What sessions need.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the controller is.
    pub controller: SocketAddr,
    /// Carries the connection there.
    pub transport: Transport,
    /// Who we are.
    pub node_id: String,
    /// This start of the agent.
    pub instance_id: String,
    /// Told in the Hello.
    pub model_roots: Vec<PathBuf>,
    /// Told in the Hello.
    pub memory_budget_bytes: Option<u64>,
    /// Looks at models.
    pub inspector: Inspector,
    /// Owns the workers.
    pub supervisor: supervisor::Handle,
    /// Has the results.
    pub spool: spool::Handle,
    /// Has the log lines.
    pub logs: LogStore,
    /// Has the observations.
    pub probe: probe::watch::Handle,
    /// Told with every observation.
    pub boot: Boot,
    /// Learns which ports are the cluster's.
    pub cluster_ports: ClusterPorts,
    /// A change of it begins a new session, because only the Hello tells it.
    pub runtime: watch::Receiver<Arc<runtime::Status>>,
}

/// For a session to send what is left when the supervisor has ended; what is not sent then stays spooled.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(5);

/// Holds sessions, one after the other, until the supervisor has ended and what it left has been sent, as far as there
/// is somebody to send it to.
pub async fn run(options: Options, mut ledger: Ledger) {
    let mut retry = Retry::default();
    let mut said = String::new();
    loop {
        let began = Instant::now();
        let ended = tokio::select! {
            ended = hold(&options, &mut ledger) => ended,
            () = async {
                options.supervisor.ended().await;
                tokio::time::sleep(LAST_WORDS_LIMIT).await;
            } => return,
        };
        match ended {
            Ok(()) => return,
            Err(Error::RuntimeChanged) => {
                tracing::info!("the Python runtime has changed; telling the controller");
                retry.reset();
                continue;
            }
            Err(_) if options.supervisor.has_ended() => return,
            Err(error) => report(&error, &mut said),
        }
        let wait = retry.after(began.elapsed());
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = options.supervisor.ended() => return,
        }
    }
}

/// One session; or the change to another ledger, after which the next begins at once.
async fn hold(options: &Options, ledger: &mut Ledger) -> Result<(), Error> {
    match conversation::hold(options, ledger).await {
        Err(Error::OtherLedger(id)) => {
            conversation::change_over(options, ledger, &id).await?;
            conversation::hold(options, ledger).await
        }
        ended => ended,
    }
}

/// A controller that is away is no surprise and is said once; the same words every few seconds would hide the rest.
fn report(error: &Error, said: &mut String) {
    let words = util::chain(error);
    if *said == words {
        tracing::debug!(error = words, "no session with the controller");
    } else if matches!(error, Error::Unreachable { .. } | Error::Lost(_)) {
        tracing::info!(error = words, "no session with the controller; trying again");
    } else {
        tracing::warn!(error = words, "no session with the controller; trying again");
    }
    *said = words;
}
