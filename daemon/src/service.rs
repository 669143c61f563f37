//! Puts the controller together and runs it until it is told to stop.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::tz::TimeZone;
use nix::fcntl::{Flock, FlockArg};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    driver, ledger, notify, rpc,
    watch_config::{self, Overlay},
};

/// How long open calls may take to end after a stop was asked for.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Room that the ledger needs to open: a few segments of its log, and what a kill left half written made good.
const ROOM_TO_OPEN_BYTES: u64 = 8 << 20;

/// How often it is looked for: a look is one system call, and a person who made room wants to see it used.
const ROOM_LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What the controller is started with.
#[derive(Debug)]
pub struct Options {
    /// The configuration, flags included.
    pub config: Config,
    /// The file it came from, to be followed.
    pub config_file: Option<PathBuf>,
    /// The flags over it.
    pub overlay: Overlay,
}

/// Why the controller cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state directory cannot be used.
    #[error("cannot use the state directory {path}")]
    StateDir {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another controller has it.
    #[error(
        "another clusterd is using the state directory {path}; stop it, or choose another with --state-dir"
    )]
    InUse {
        /// Which.
        path: PathBuf,
    },
    /// The ledger cannot be used.
    #[error("cannot open the ledger")]
    Ledger(#[from] ledger::Error),
    /// The services failed.
    #[error(transparent)]
    Rpc(#[from] rpc::Error),
    /// The configuration file cannot be followed.
    #[error(transparent)]
    Watch(#[from] watch_config::Error),
    /// The ledger hangs.
    #[error(transparent)]
    Stuck(#[from] driver::Stuck),
    /// The driver ended by a panic.
    #[error("the driver ended unexpectedly; the log says why")]
    Driver(#[from] tokio::task::JoinError),
}

/// Prompts and answers are nobody else's business; a directory that is there already is left as it is.
fn private_dir(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;

    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        made => made,
    }
}

/// Runs until `cancel` is cancelled, then stops in order: no new calls, connections ended, ledger flushed.
///
/// # Errors
/// When it cannot start, or a part of it fails for good.
pub async fn run(options: Options, cancel: CancellationToken) -> Result<(), Error> {
    let Options { config, config_file, overlay } = options;
    let state_dir = config.controller.state_dir.clone();
    let unusable = |source| Error::StateDir { path: state_dir.clone(), source };
    private_dir(&state_dir).map_err(unusable)?;
    let _lock = lock(&state_dir)?;
    if !room_to_open(&state_dir, &cancel).await {
        return Ok(());
    }
    let ledger_id = ledger_id(&state_dir).map_err(unusable)?;
    let address = config.controller.listen;
    let listener = TcpListener::bind(address).await.map_err(|source| rpc::Error::Bind { address, source })?;
    let address = listener.local_addr().map_err(|source| rpc::Error::Bind { address, source })?;

    let ledger_options = ledger::Options {
        state_dir: state_dir.clone(),
        sled_cache_bytes: config.limits.ledger_cache_bytes,
        disk_reserve_bytes: config.limits.disk_reserve_bytes,
        max_events: config.limits.max_events,
        ..ledger::Options::default()
    };
    let opened = tokio::task::spawn_blocking(move || ledger::open(ledger_options)).await?;
    let (ledger, replay) = opened?;
    let zone = zone();
    let (limits_sender, limits) = watch::channel(watch_config::intake_limits(&config));
    let (notify, notify_inbox) = notify::channel(config.notify.clone());
    let (driver, driver_task) = driver::run(
        driver::Options {
            config: config.clone(),
            state_dir: state_dir.clone(),
            listen_address: address.to_string(),
            ledger_id,
            ledger: ledger.clone(),
            replay,
            zone: zone.clone(),
            notify,
            notes: Vec::new(),
        },
        cancel.clone(),
    );
    let notes = driver.clone();
    let note = move |draft| {
        let driver = notes.clone();
        async move { driver.note(draft).await }
    };
    // Nothing waits for it, not even the end.
    tokio::spawn(notify::run(notify_inbox, note, cancel.clone()));
    let follower = config_file.map(|path| {
        let options = watch_config::Options {
            path,
            overlay,
            running: config,
            driver: driver.clone(),
            limits: limits_sender,
        };
        let cancel = cancel.clone();
        tokio::spawn(async move {
            if let Err(error) = watch_config::follow(options, cancel).await {
                tracing::warn!(error = %driver::chain(&error), "changes of the configuration take effect at the next start only");
            }
        })
    });
    write_address(&state_dir, address).map_err(unusable)?;
    tracing::info!(%address, state_dir = %state_dir.display(), "serving");

    let services = rpc::serve(
        rpc::Options { listener, driver, state_dir: state_dir.clone(), limits, zone },
        cancel.clone(),
    );
    let mut services = std::pin::pin!(services);
    let mut driver_task = driver_task;
    let served = tokio::select! {
        served = &mut services => served.map_err(Error::from),
        ended = &mut driver_task => {
            cancel.cancel();
            // A ledger that hangs cannot be closed; one that does not is.
            ended??;
            finish(ledger, &state_dir).await;
            return Ok(());
        }
        () = cancel.cancelled() => {
            match tokio::time::timeout(STOP_TIMEOUT, &mut services).await {
                Ok(served) => served.map_err(Error::from),
                Err(_) => {
                    tracing::warn!("some calls did not end in time; stopping without them");
                    Ok(())
                }
            }
        }
    };
    cancel.cancel();
    driver_task.await??;
    if let Some(follower) = follower {
        follower.await?;
    }
    finish(ledger, &state_dir).await;
    served
}

/// Whose clock is meant by windows and deadlines: the one this machine shows.
fn zone() -> TimeZone {
    TimeZone::try_system().unwrap_or_else(|error| {
        tracing::warn!(%error, "the time zone of this machine was not found: windows and deadlines are taken as UTC; set TZ for another");
        TimeZone::UTC
    })
}

async fn finish(ledger: ledger::Handle, state_dir: &Path) {
    if let Err(error) = ledger.shutdown().await {
        tracing::warn!(error = %driver::chain(&error), "the ledger was not closed cleanly; it is repaired at the next start");
    }
    // A stale address would send clients to whoever has the port next.
    let _ = fs::remove_file(state_dir.join("clusterd.addr"));
    tracing::info!("stopped");
}

/// One controller a state directory. The lock goes with the process, however it ends.
fn lock(state_dir: &Path) -> Result<Flock<File>, Error> {
    let failed = |source| Error::StateDir { path: state_dir.to_owned(), source };
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(state_dir.join("lock"))
        .map_err(failed)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => Error::InUse { path: state_dir.to_owned() },
        other => failed(other.into()),
    })
}

/// Waits until the ledger has room to open; `false` when a stop was asked for first. Whoever starts the controller again
/// would find the disk as full, and a night goes on by itself as soon as there is room.
async fn room_to_open(state_dir: &Path, cancel: &CancellationToken) -> bool {
    let mut has_told = false;
    loop {
        // What cannot be told here is told, with its reason, when the ledger opens.
        let free_bytes = ledger::free_bytes(state_dir).unwrap_or(u64::MAX);
        if free_bytes >= ROOM_TO_OPEN_BYTES {
            if has_told {
                tracing::info!(free_bytes, "there is room on the disk; going on");
            }
            return true;
        }
        if !has_told {
            has_told = true;
            tracing::error!(
                state_dir = %state_dir.display(),
                free_bytes,
                needed_bytes = ROOM_TO_OPEN_BYTES,
                "the disk is full: nothing is served until there is room; free some, the controller goes on by itself"
            );
        }
        tokio::select! {
            () = tokio::time::sleep(ROOM_LOOK_INTERVAL) => {}
            () = cancel.cancelled() => return false,
        }
    }
}

/// The name of this state directory's ledger: made once, kept for ever. Agents keep it beside what they hold, because
/// job numbers start again with every new ledger.
fn ledger_id(state_dir: &Path) -> io::Result<String> {
    let path = state_dir.join("ledger-id");
    match fs::read_to_string(&path) {
        Ok(id) if !id.trim().is_empty() => return Ok(id.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut random = [0_u8; 16];
    getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
    let id: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let staged = state_dir.join("ledger-id.new");
    let mut file = File::create(&staged)?;
    writeln!(file, "{id}")?;
    ledger::sync_file(&file)?;
    fs::rename(staged, path)?;
    ledger::sync_directory(state_dir)?;
    Ok(id)
}

fn write_address(state_dir: &Path, address: SocketAddr) -> io::Result<()> {
    let staged = state_dir.join("clusterd.addr.new");
    let mut file = File::create(&staged)?;
    writeln!(file, "{address}")?;
    fs::rename(staged, state_dir.join("clusterd.addr"))
}
