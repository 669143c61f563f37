//! Puts the parts together and takes them down in the right order.
//!
//! Up: lock, leftovers of an earlier agent, spool, epochs, the worker's program, runtime, probe, supervisor, session. Down,
//! when asked to end: workers hand back what they hold, the session sends it, the spool is synced.

use std::{
    fs::{self, DirBuilder},
    hash::{BuildHasher as _, RandomState},
    io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    config::Settings,
    epochs::{self, Epochs},
    gang::{files::Files, starts::Starts},
    ledger::{self, Ledger},
    leftovers,
    link_prep::{
        keeper,
        known::{self, ClusterPorts},
    },
    lock,
    lock::InstanceLock,
    logging::LogStore,
    memory_debt::MemoryDebt,
    model, probe,
    probe::mac::tools::Tools,
    reboot::{self, Restarter},
    runtime, session,
    session::inspections::Inspector,
    spool, supervisor, troubles,
    troubles::Trouble,
    worker::{
        account::{self, Account},
        code,
        pids::Pids,
        process::{Launcher, LauncherOptions},
    },
};

/// How often to look whether somebody has installed the runtime anew.
const RUNTIME_LOOK: Duration = Duration::from_secs(10);

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody else does.
    #[error(transparent)]
    Lock(#[from] lock::Error),
    /// See [`leftovers`].
    #[error(transparent)]
    Leftovers(#[from] leftovers::Error),
    /// See [`spool`].
    #[error(transparent)]
    Spool(#[from] spool::Error),
    /// See [`crate::ledger`].
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    /// See [`epochs`].
    #[error(transparent)]
    Epochs(#[from] epochs::Error),
    /// See [`code`].
    #[error(transparent)]
    Code(#[from] code::Error),
    /// See [`account`].
    #[error(transparent)]
    Account(#[from] account::Error),
    /// Workers would not find what they need.
    #[error(
        "{} is closed to {name}, whom workers run as; open it (chmod o+x), or keep the state elsewhere", .at.display()
    )]
    Closed {
        /// What is closed.
        at: PathBuf,
        /// Who that is.
        name: String,
    },
    /// The state directory or a thread cannot be made.
    #[error("cannot {what}")]
    Io {
        /// Do what.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// A part has ended that should not.
    #[error("{0} has ended by itself; the log tells more")]
    Broken(&'static str),
}

/// Runs the agent until `stop` is cancelled and everything has ended in order.
///
/// # Errors
/// Why it cannot begin, or which part broke.
pub async fn run(settings: Settings, logs: LogStore, stop: CancellationToken) -> Result<(), Error> {
    let dir = &settings.state_dir;
    make_private(dir)?;
    let _lock = InstanceLock::acquire(dir)?;
    let records_dir = dir.join("workers");
    make_private(&records_dir)?;
    let account = settings.worker_user.as_deref().map(Account::configured).transpose()?.flatten();
    let shared_dir = shared_dir(dir, account.as_ref())?;

    let options = probe::Options {
        state_dir: dir.clone(),
        boot_id: settings.boot_id.clone(),
        scripted_mac: settings.scripted_mac.clone(),
    };
    let probe = probe::native(options)
        .and_then(|native| probe::watch::run(native, probe::changes::native()))
        .map_err(io("start the probe's thread"))?;
    let boot_id = probe.subscribe().borrow().boot_id.clone();
    let leftovers = end_leftovers(records_dir.clone(), boot_id.clone()).await?;
    // Behind the leftovers: nobody reads these any more.
    let gang_files =
        Files::open(shared_dir.join("gangs"), account.clone()).map_err(io("make the directory for gangs"))?;
    let jaccl_starts = Starts::open(&dir.join("jaccl-starts.json"), boot_id.as_deref());
    let (starts_used, starts_used_now) = watch::channel(jaccl_starts.budget().used);
    let memory_debt = MemoryDebt::open(&dir.join("memory-debt.json"), boot_id.as_deref());
    for _ in leftovers.iter().filter(|leftover| leftover.exited.killed_while_loaded) {
        memory_debt.note_kill();
    }
    let store = spool::Store::open(spool::Options {
        dir: dir.join("spool"),
        max_bytes: settings.spool_max_bytes,
        segment_bytes: spool::store::DEFAULT_SEGMENT_BYTES,
        boot_id: boot_id.clone(),
    })?;
    let spool = spool::run(store).map_err(io("start the spool's thread"))?;
    let ledger = Ledger::open(dir)?;
    let epochs = Epochs::open(&dir.join("epochs.json"))?;
    let code_dir = code::write(&shared_dir.join("worker-code"))?;
    let runtime = watch_runtime(&settings, account.clone(), stop.clone()).await;

    tracing::info!(
        node = settings.node_id, state_dir = %dir.display(), controller = %settings.controller,
        version = env!("CARGO_PKG_VERSION"), "the agent is up"
    );
    let restarter = restarter(&settings, boot_id.clone());
    let pids = Pids::default();
    let troubles = watch_troubles(&settings, pids.clone(), probe.clone(), stop.clone());
    let cluster_ports = ClusterPorts::open(&known::path(dir));
    let links = keep_links(&settings, &cluster_ports, probe.clone(), stop.clone());
    let supervisor = supervisor::run(
        supervisor::Options {
            records_dir,
            launcher: launcher(&settings, &code_dir, &shared_dir, account.as_ref()),
            epochs,
            spool: spool.clone(),
            logs: logs.clone(),
            runtime: runtime.clone(),
            boot_id,
            max_workers: settings.max_workers,
            model_roots: settings.model_roots.clone(),
            node_id: settings.node_id.clone(),
            is_mac: cfg!(target_os = "macos") || settings.scripted_mac.is_some(),
            jaccl_starts,
            starts_used,
            memory_debt: memory_debt.clone(),
            restarter: restarter.clone(),
            probe: probe.clone(),
            gang_files,
            pids: pids.clone(),
            grace: settings.worker_grace,
            leftovers,
        },
        stop.clone(),
    );
    // Ends when the supervisor has, and what it left has been sent.
    let options = session::Options {
        controller: settings.controller,
        transport: session::transport::start().map_err(io("start the thread of the connection"))?,
        node_id: settings.node_id,
        instance_id: fresh_id(),
        inspector: Inspector::new(
            settings.model_roots.clone(),
            model::Place::of_workers(shared_dir, settings.hf_home.clone(), account.clone()),
        ),
        model_roots: settings.model_roots,
        memory_budget_bytes: settings.memory_budget_bytes,
        supervisor,
        spool: spool.clone(),
        logs,
        probe,
        cluster_ports,
        boot: session::Boot {
            memory_debt,
            restarter,
            rdma_starts: starts_used_now,
            worker_user: account.map(|account| account.name),
            is_root: nix::unistd::geteuid().is_root(),
            troubles,
            links,
            time_zone: jiff::tz::TimeZone::system(),
        },
        runtime,
    };
    session::run(options, ledger).await;
    spool.close().await;
    if stop.is_cancelled() {
        tracing::info!("the agent has ended in order");
        Ok(())
    } else {
        Err(Error::Broken("the supervisor"))
    }
}

/// What the machine goes through; on a system that says nothing of it, nothing.
fn watch_troubles(
    settings: &Settings,
    pids: Pids,
    probe: probe::watch::Handle,
    stop: CancellationToken,
) -> watch::Receiver<Arc<[Trouble]>> {
    let options = match &settings.scripted_mac {
        Some(dir) => troubles::watch::Options::of_scripted(dir, pids, probe),
        None if cfg!(target_os = "macos") => troubles::watch::Options::of_macos(pids, probe),
        None => return watch::channel(Arc::from([])).1,
    };
    troubles::watch::run(options, stop)
}

/// Only a Mac's ports are prepared; other systems have tools of their own for their network.
fn keep_links(
    settings: &Settings,
    known: &ClusterPorts,
    probe: probe::watch::Handle,
    stop: CancellationToken,
) -> watch::Receiver<Arc<keeper::State>> {
    let tools = match &settings.scripted_mac {
        Some(dir) => Tools::in_dirs(vec![dir.clone()]),
        None if cfg!(target_os = "macos") => Tools::system(),
        None => return watch::channel(Arc::default()).1,
    };
    let options = keeper::Options {
        policy: settings.link_policy,
        tools,
        state_dir: settings.state_dir.clone(),
        may_change: settings.scripted_mac.is_some() || nix::unistd::geteuid().is_root(),
        known: known.subscribe(),
        probe,
    };
    keeper::run(options, stop)
}

fn restarter(settings: &Settings, boot_id: Option<String>) -> Restarter {
    let scripted_mac = settings.scripted_mac.as_deref();
    let pretends = settings.boot_id.is_some() || settings.worker_command.is_some();
    Restarter::open(reboot::Options {
        rules: settings.reboot.clone(),
        path: settings.state_dir.join(reboot::FILE),
        boot_id,
        tools: reboot::tools(scripted_mac, pretends),
        is_mac: cfg!(target_os = "macos") || scripted_mac.is_some(),
        may_run: scripted_mac.is_some() || nix::unistd::geteuid().is_root(),
    })
}

fn launcher(settings: &Settings, code_dir: &Path, dir: &Path, account: Option<&Account>) -> Launcher {
    Launcher::new(LauncherOptions {
        python: &runtime::interpreter(&settings.runtime_dir),
        code_dir,
        dir,
        hf_home: settings.hf_home.as_deref(),
        hf_hub_offline: settings.hf_hub_offline,
        command: settings.worker_command.as_deref(),
        account,
    })
}

/// Makes a directory that only its owner may look into, because prompts and answers pass through it. One that is there
/// stays as it is.
fn make_private(dir: &Path) -> Result<(), Error> {
    let made = match dir.parent() {
        _ if dir.is_dir() => return Ok(()),
        Some(parent) => fs::create_dir_all(parent).and_then(|()| DirBuilder::new().mode(0o700).create(dir)),
        None => DirBuilder::new().mode(0o700).create(dir),
    };
    made.map_err(|source| Error::Io { what: format!("make the directory {}", dir.display()), source })
}

/// Where workers find what the agent gives them: in its own state directory, unless they run as somebody else.
fn shared_dir(state_dir: &Path, account: Option<&Account>) -> Result<PathBuf, Error> {
    let Some(account) = account else { return Ok(state_dir.to_owned()) };
    let dir = account::shared_dir(state_dir);
    let made = fs::create_dir_all(&dir)
        // To be passed, and not to be looked into.
        .and_then(|()| fs::set_permissions(&dir, fs::Permissions::from_mode(0o711)));
    made.map_err(|source| Error::Io { what: format!("make the directory {}", dir.display()), source })?;
    match account.closed_at(&dir.join("worker-code")) {
        Some(at) => Err(Error::Closed { at, name: account.name.clone() }),
        None => Ok(dir),
    }
}

async fn end_leftovers(
    dir: PathBuf,
    boot_id: Option<String>,
) -> Result<Vec<crate::worker::task::Departure>, Error> {
    let ended =
        tokio::task::spawn_blocking(move || leftovers::end_all(&dir, boot_id.as_deref(), leftovers::GRACE))
            .await;
    let ended = ended.map_err(|error| Error::Io {
        what: "look for workers left behind".to_owned(),
        source: io::Error::other(error),
    })??;
    if !ended.is_empty() {
        tracing::info!(
            workers = ended.len(),
            "an earlier agent did not end in order; its workers are gone now"
        );
    }
    Ok(ended)
}

/// The runtime's status now, and whenever it is installed anew.
async fn watch_runtime(
    settings: &Settings,
    account: Option<Account>,
    stop: CancellationToken,
) -> watch::Receiver<Arc<runtime::Status>> {
    let dir = settings.runtime_dir.clone();
    if settings.worker_command.is_some() {
        // Whatever is started in place of the worker says itself whether it can run.
        let status = runtime::Status { ready: true, ..Default::default() };
        let (keep, status) = watch::channel(Arc::new(status));
        tokio::spawn(async move {
            stop.cancelled().await;
            // To the end: its going would look like a change.
            keep.closed().await;
        });
        return status;
    }
    let mut seen = changed_at(&dir);
    let first = glance(&dir, account.as_ref()).await;
    if let Some(problem) = &first.problem {
        tracing::warn!(problem, "workers cannot run here");
    }
    let (publish, status) = watch::channel(Arc::new(first));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return publish.closed().await,
                () = tokio::time::sleep(RUNTIME_LOOK) => {}
            }
            let now = changed_at(&dir);
            if now != std::mem::replace(&mut seen, now) {
                let status = glance(&dir, account.as_ref()).await;
                publish.send_if_modified(|before| {
                    let differs = **before != status;
                    *before = Arc::new(status);
                    differs
                });
            }
        }
    });
    status
}

/// That this process can use the runtime does not mean that workers can.
async fn glance(dir: &Path, account: Option<&Account>) -> runtime::Status {
    let python = runtime::interpreter(dir);
    if let Some(account) = account
        && let Some(at) = account.closed_at(&python)
    {
        let problem = format!(
            "the runtime's interpreter cannot be used by {}, whom workers run as: {} is closed to it; run \
             `cluster-agent runtime install --python PATH` with one that is open to everybody, such as the system's",
            account.name,
            at.display()
        );
        return runtime::Status::unfit(dir, problem);
    }
    runtime::glance(dir, account).await
}

/// When the marker of the runtime was written; `None` while there is none.
fn changed_at(dir: &Path) -> Option<SystemTime> {
    fs::metadata(runtime::marker::path(dir)).and_then(|metadata| metadata.modified()).ok()
}

/// A number no other start of an agent has.
fn fresh_id() -> String {
    // Each state is seeded by the system's random numbers.
    format!("{:016x}", RandomState::new().hash_one(std::process::id()))
}

fn io(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { what: what.to_owned(), source }
}
