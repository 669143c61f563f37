//! The Python runtime with MLX, installed by the agent itself: the very way a person gets it.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use serde_json::Value;

use crate::{binaries, dirs};

/// An installed runtime.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// Its directory, as `cluster-agent --runtime-dir` takes it.
    pub dir: PathBuf,
    /// Its Python.
    pub python: PathBuf,
}

/// Why no runtime can be had on this machine: it has none, and no Python of at least 3.11 to make one with.
#[must_use]
pub fn missing() -> Option<String> {
    static MISSING: OnceLock<Option<String>> = OnceLock::new();
    MISSING
        .get_or_init(|| {
            let candidates = ["python3", "python3.13", "python3.12", "python3.11"];
            let new_enough = candidates.iter().any(|python| {
                Command::new(python)
                    .args(["-c", "import sys, venv; sys.exit(sys.version_info < (3, 10))"])
                    .output()
                    .is_ok_and(|output| output.status.success())
            });
            (!new_enough && check().is_none())
                .then(|| "no Python of at least 3.11 on this machine".to_owned())
        })
        .clone()
}

/// The runtime, installed at the first call where it is not yet. `NIGHTSHIFT_RUNTIME_DIR` says where; else it is the
/// place a person's installation has, and one already there is used.
///
/// # Panics
/// When it cannot be installed.
#[must_use]
pub fn ensure() -> Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(install).clone()
}

fn install() -> Runtime {
    // Test programs may run side by side; one installs, the others find it done.
    let lock = File::create(dirs::cache_dir().join("runtime.lock")).expect("a lock file can be made");
    lock.lock().expect("a lock file can be locked");
    if let Some(runtime) = check() {
        return runtime;
    }
    eprintln!("installing the Python runtime with MLX (once; about a minute)");
    let output = Command::new(binaries::path("cluster-agent"))
        .args(["runtime", "install"])
        .output()
        .expect("cluster-agent can be started");
    assert!(
        output.status.success(),
        "`cluster-agent runtime install` ended with {}:\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    check().expect("a runtime is ready after `cluster-agent runtime install` has succeeded")
}

/// What `cluster-agent runtime check` finds, when it is ready.
fn check() -> Option<Runtime> {
    let output = Command::new(binaries::path("cluster-agent"))
        .args(["runtime", "check", "--json"])
        .output()
        .expect("cluster-agent can be started");
    let report: Value = serde_json::from_slice(&output.stdout).ok()?;
    if report["ready"] != Value::Bool(true) {
        return None;
    }
    // <runtime>/bin/python
    let python = PathBuf::from(report["python"].as_str()?);
    let dir = env::var_os("NIGHTSHIFT_RUNTIME_DIR")
        .map(PathBuf::from)
        .or_else(|| python.parent().and_then(Path::parent).map(Path::to_owned))?;
    Some(Runtime { dir: fs::canonicalize(&dir).unwrap_or(dir), python })
}
