//! Reads the configuration file again when it changes. A file that is not good changes nothing and is said to be so.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{RecursiveMode, Watcher as _};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    driver, intake,
    model::{EventDraft, Severity},
};

/// Editors write a file in several steps; what they left after this pause is read.
const SETTLE: Duration = Duration::from_millis(100);

/// What is needed to follow a configuration file.
#[derive(Debug)]
pub struct Options {
    /// The file.
    pub path: PathBuf,
    /// What the command line says on top of it.
    pub overlay: Overlay,
    /// The configuration in force.
    pub running: Config,
    /// Where news goes.
    pub driver: driver::Handle,
    /// Limits of submissions, kept current.
    pub limits: watch::Sender<intake::Limits>,
}

/// Command-line flags that outrank the file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Overlay {
    /// `--listen`.
    pub listen: Option<std::net::SocketAddr>,
    /// `--state-dir`.
    pub state_dir: Option<PathBuf>,
}

impl Overlay {
    /// Puts the flags over what the file says.
    pub fn apply(&self, config: &mut Config) {
        if let Some(listen) = self.listen {
            config.controller.listen = listen;
        }
        if let Some(state_dir) = &self.state_dir {
            config.controller.state_dir.clone_from(state_dir);
        }
    }
}

/// The limits of submissions under a configuration.
#[must_use]
pub fn intake_limits(config: &Config) -> intake::Limits {
    intake::Limits {
        max_row_bytes: config.limits.max_row_bytes,
        max_rows: config.limits.max_rows,
        disk_reserve_bytes: config.limits.disk_reserve_bytes,
        ..intake::Limits::default()
    }
}

/// Why a file cannot be followed.
#[derive(Debug, thiserror::Error)]
#[error("cannot watch {path} for changes")]
pub struct Error {
    path: PathBuf,
    source: notify::Error,
}

/// Follows the file until `cancel` is cancelled.
///
/// # Errors
/// When the system refuses to watch its folder.
pub async fn follow(options: Options, cancel: CancellationToken) -> Result<(), Error> {
    let Options { path, overlay, mut running, driver, limits } = options;
    // The folder is watched, not the file: a rename over the file would end a watch on the file itself.
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
    let (touched, mut touches) = mpsc::channel::<()>(1);
    let name = path.file_name().map(ToOwned::to_owned);
    let failed = |source| Error { path: path.clone(), source };
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let ours = event.is_ok_and(|event| {
            !event.kind.is_access() && event.paths.iter().any(|path| path.file_name() == name.as_deref())
        });
        if ours {
            // One waiting token stands for any number of changes.
            let _ = touched.try_send(());
        }
    })
    .map_err(failed)?;
    watcher.watch(&folder, RecursiveMode::NonRecursive).map_err(failed)?;
    loop {
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            touch = touches.recv() => if touch.is_none() { return Ok(()) },
        }
        tokio::time::sleep(SETTLE).await;
        while touches.try_recv().is_ok() {}
        match reload(&path, &overlay) {
            Ok(config) if config == running => {}
            Ok(config) => {
                limits.send_replace(intake_limits(&config));
                running = config.clone();
                driver.config_changed(config).await;
            }
            Err(problem) => driver.note(refused(&problem)).await,
        }
    }
}

fn reload(path: &Path, overlay: &Overlay) -> Result<Config, String> {
    let mut config = Config::load(Some(path)).map_err(|error| driver::chain(&error))?;
    overlay.apply(&mut config);
    config.validate().map_err(|error| driver::chain(&error))?;
    Ok(config)
}

fn refused(problem: &str) -> EventDraft {
    EventDraft {
        severity: Severity::Warning,
        kind: "config-refused".to_owned(),
        node: None,
        job: None,
        message: format!("{problem}; the old settings stay in force"),
    }
}
