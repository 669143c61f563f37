//! `cluster-agent runtime tiny-model`: makes a model directory with random weights for tests and the demo, by the
//! embedded `tiny_model.py`, in the runtime.

use std::{
    env,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::{self, ExitStatus},
};

use tokio::process::Command;

use super::interpreter;
use crate::{util, worker::code};

/// Why there is no model.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its program cannot be put where Python finds it.
    #[error(transparent)]
    Code(#[from] code::Error),
    /// The runtime does not run.
    #[error("cannot run the runtime in {}; run `cluster-agent runtime install`", dir.display())]
    Run {
        /// The runtime directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It ran and failed; it has said why on stderr.
    #[error("making the model failed ({0}); the reason is above")]
    Failed(ExitStatus),
}

/// Runs the maker with `arguments`; its output is this process's output.
///
/// # Errors
/// When the runtime does not run, or the maker fails.
pub async fn make(runtime_dir: &Path, arguments: &[OsString]) -> Result<(), Error> {
    let dir = env::temp_dir().join(format!("nightshift-tiny-model-{}-{}", process::id(), util::unix_ms()));
    let made = run(runtime_dir, &dir, arguments).await;
    // A few small files in a temporary directory: not worth failing for.
    let _ = fs::remove_dir_all(&dir);
    made
}

async fn run(runtime_dir: &Path, dir: &Path, arguments: &[OsString]) -> Result<(), Error> {
    let program = code::write(dir)?.join("tiny_model.py");
    let status = Command::new(interpreter(runtime_dir))
        .args(["-E", "-s", "-B"])
        .arg(program)
        .args(arguments)
        .kill_on_drop(true)
        .status()
        .await
        .map_err(|source| Error::Run { dir: runtime_dir.to_owned(), source })?;
    if status.success() { Ok(()) } else { Err(Error::Failed(status)) }
}
