//! A long-running program of the demo: its own process group, its output in a file, ended gently or at once.

use std::{
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    time::timeout,
};

use crate::error::{Error, Result};

/// From SIGTERM to SIGKILL. An agent first stops its workers, which finish a step and hand back what they have.
const GRACE: Duration = Duration::from_secs(20);

/// After SIGKILL a process is gone at once, unless the kernel holds it.
const KILL_WAIT: Duration = Duration::from_secs(5);

/// A child that is killed if it is dropped while running.
#[derive(Debug)]
pub(super) struct Daemon {
    pub(super) name: String,
    child: Child,
    pid: u32,
}

impl Daemon {
    /// Starts a program that writes to `log`, at its end.
    pub(super) fn start(
        name: &str,
        program: &Path,
        args: impl IntoIterator<Item = impl AsRef<std::ffi::OsStr>>,
        log: &Path,
    ) -> Result<Self> {
        let cannot = |e: std::io::Error| Error::local(format!("Cannot start {}: {e}.", program.display()));
        let out = std::fs::File::options().create(true).append(true).open(log).map_err(cannot)?;
        let err = out.try_clone().map_err(cannot)?;
        let child = Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            // Ctrl-C in the terminal is for clusterctl, which then ends the others in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(cannot)?;
        let pid = child.id().unwrap_or(0);
        Ok(Daemon { name: name.to_owned(), child, pid })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// An error if it has ended by itself.
    pub(super) fn check_alive(&mut self) -> Result<()> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                Err(Error::local(format!("{} ended by itself ({}).", self.name, describe(status))))
            }
            Err(e) => Err(Error::local(format!("Lost sight of {}: {e}.", self.name))),
        }
    }

    /// SIGKILL, and waits until it is gone.
    pub(super) async fn kill(mut self) {
        // It is gone already, or about to be: either way there is nothing left to do.
        let _ = timeout(KILL_WAIT, self.child.kill()).await;
    }

    /// SIGTERM, a grace, SIGKILL.
    pub(super) async fn stop(mut self) {
        if let (Ok(None), Ok(pid)) = (self.child.try_wait(), i32::try_from(self.pid)) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            if timeout(GRACE, self.child.wait()).await.is_ok() {
                return;
            }
        }
        self.kill().await;
    }
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown why".to_owned(),
    }
}
