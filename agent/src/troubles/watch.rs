//! Drives it: the log's lines, the reports as they appear, and the counter with each observation, into one book.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use notify::{RecursiveMode, Watcher as _};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Book, Sign, Trouble, log_stream, reports::Reports};
use crate::{probe, worker::pids::Pids};

/// Signs that may wait. A restart makes a handful of lines; past this `log` is read more slowly.
const MOST_SIGNS: usize = 64;

/// However nothing says that a report has appeared: where directories cannot be watched, and where they come to be later.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Where to look.
#[derive(Debug)]
pub struct Options {
    /// `log`, where this system has it.
    pub log_tool: Option<PathBuf>,
    /// Where reports appear.
    pub report_dirs: Vec<PathBuf>,
    /// Whose processes are workers.
    pub pids: Pids,
    /// Has the counter, and is looked at as soon as there is a sign.
    pub probe: probe::watch::Handle,
}

impl Options {
    /// Of a Mac.
    #[must_use]
    pub fn of_macos(pids: Pids, probe: probe::watch::Handle) -> Self {
        let mut report_dirs = vec![PathBuf::from("/Library/Logs/DiagnosticReports")];
        // Where reports on processes of this user go; a daemon may have no home directory.
        let home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
        report_dirs.extend(home.map(|home| home.join("Library/Logs/DiagnosticReports")));
        Self { log_tool: Some(PathBuf::from("/usr/bin/log")), report_dirs, pids, probe }
    }

    /// Of the Mac that is a directory.
    #[must_use]
    pub fn of_scripted(dir: &std::path::Path, pids: Pids, probe: probe::watch::Handle) -> Self {
        let log_tool = Some(dir.join("log")).filter(|tool| tool.exists());
        Self { log_tool, report_dirs: vec![dir.join("DiagnosticReports")], pids, probe }
    }
}

/// Starts watching, until `stop`. The newest troubles, oldest first.
#[must_use]
pub fn run(options: Options, stop: CancellationToken) -> watch::Receiver<Arc<[Trouble]>> {
    let (publish, troubles) = watch::channel(Arc::from([]));
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = keep(options, &publish) => {}
        }
    });
    troubles
}

async fn keep(options: Options, publish: &watch::Sender<Arc<[Trouble]>>) {
    let Options { log_tool, report_dirs, pids, probe } = options;
    let (signs, mut taken) = mpsc::channel(MOST_SIGNS);
    if let Some(tool) = log_tool {
        // It ends when nobody takes what it sends.
        tokio::spawn(log_stream::follow(tool, signs.clone()));
    }
    let (touched, mut touches) = mpsc::channel(1);
    let _watcher = watcher(&report_dirs, touched.clone());
    let mut reports = Reports::new(report_dirs);
    let mut observations = probe.subscribe();
    observations.mark_changed();
    let mut tick = tokio::time::interval(LOOK_EVERY);
    let mut book = Book::default();
    loop {
        let mut found = Vec::new();
        tokio::select! {
            sign = taken.recv() => found.extend(sign),
            changed = observations.changed() => {
                if changed.is_err() {
                    return;
                }
                let count = observations.borrow_and_update().gpu.as_ref().and_then(|gpu| gpu.recovery_count);
                found.extend(count.map(Sign::Counter));
            }
            _ = touches.recv() => (reports, found) = read(reports).await,
            _ = tick.tick() => (reports, found) = read(reports).await,
        }
        let mut is_new = false;
        for sign in found {
            let of_counter = matches!(sign, Sign::Counter(_));
            let noted = book.note(sign, now_unix_ms(), |pid| pids.worker(pid));
            if noted && !of_counter {
                // The counter tells how many there were.
                probe.look_soon();
            }
            is_new |= noted;
        }
        if is_new {
            publish.send_replace(book.troubles().cloned().collect());
        }
    }
}

async fn read(mut reports: Reports) -> (Reports, Vec<Sign>) {
    let spare = Reports::new(Vec::new());
    tokio::task::spawn_blocking(move || {
        let found = reports.new_ones(SystemTime::now());
        (reports, found)
    })
    .await
    .unwrap_or((spare, Vec::new()))
}

/// Tells when something changes in these directories; what cannot be watched is looked at regularly.
fn watcher(dirs: &[PathBuf], touched: mpsc::Sender<()>) -> Option<notify::RecommendedWatcher> {
    // The sender lives as long as the watcher, and here at least as long as whoever asked.
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| !event.kind.is_access()) {
            // One waiting token stands for any number of changes.
            let _ = touched.try_send(());
        }
    })
    .inspect_err(|error| tracing::debug!(%error, "reports are looked for every minute only"))
    .ok()?;
    for dir in dirs.iter().filter(|dir| dir.is_dir()) {
        if let Err(error) = watcher.watch(dir, RecursiveMode::NonRecursive) {
            tracing::debug!(dir = %dir.display(), %error, "reports here are looked for every minute only");
        }
    }
    Some(watcher)
}

fn now_unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
