//! The sibling programs, and what they do once: the Python runtime and the tiny model.

use std::{
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::Stdio,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde::Deserialize;
use tokio::process::{Child, Command};

use crate::{
    error::{Error, Result},
    output::Output,
    siblings,
};

const HOW_TO_BUILD: &str =
    "Build all three programs with: cargo build --release   Then run: target/release/clusterctl demo";

/// Where `clusterd` and `cluster-agent` are.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    pub(super) clusterd: PathBuf,
    pub(super) cluster_agent: PathBuf,
}

/// What `cluster-agent runtime check --json` says.
#[derive(Debug, Deserialize)]
pub(super) struct Runtime {
    pub(super) ready: bool,
    #[serde(default)]
    pub(super) mlx_version: Option<String>,
    #[serde(default)]
    pub(super) python: Option<String>,
    #[serde(default)]
    pub(super) problem: Option<String>,
}

impl Programs {
    /// Beside this program, else in PATH.
    pub(super) fn find() -> Result<Self> {
        let find = |name| siblings::find(name, HOW_TO_BUILD);
        Ok(Programs { clusterd: find("clusterd")?, cluster_agent: find("cluster-agent")? })
    }

    /// Whether the Python runtime is there.
    pub(super) async fn check_runtime(&self) -> Result<Runtime> {
        let mut command = Command::new(&self.cluster_agent);
        command.args(["runtime", "check", "--json"]).stderr(Stdio::piped()).stdout(Stdio::piped());
        let child = OneShot::start(command, &self.cluster_agent)?;
        let (_, stdout, stderr) = child.end().await?;
        serde_json::from_slice(&stdout).map_err(|_| {
            Error::local(format!(
                "{} runtime check --json printed no answer: {}",
                self.cluster_agent.display(),
                crate::output::text::sentence(&crate::output::text::clean(&String::from_utf8_lossy(&stderr)))
            ))
        })
    }

    /// Installs the Python runtime where all clusters of this user share it; its own progress goes to our stderr.
    pub(super) async fn install_runtime(&self, output: &Output) -> Result<()> {
        let mut command = Command::new(&self.cluster_agent);
        command.args(["runtime", "install"]);
        if output.is_json() {
            command.stdout(Stdio::null()).stderr(Stdio::piped());
        } else {
            let stderr = std::io::stderr().as_fd().try_clone_to_owned().map_err(Error::write)?;
            command.stdout(stderr).stderr(Stdio::inherit());
        }
        let (ok, _, stderr) = OneShot::start(command, &self.cluster_agent)?.end().await?;
        if ok {
            return Ok(());
        }
        Err(Error::local_hint(
            format!("The Python runtime could not be installed. {}", String::from_utf8_lossy(&stderr).trim())
                .trim(),
            "Its reason stands above. Try it alone with: cluster-agent runtime install",
        ))
    }

    /// Makes a model of random weights.
    pub(super) async fn make_tiny_model(&self, dir: &Path) -> Result<()> {
        let mut command = Command::new(&self.cluster_agent);
        command.args(["runtime", "tiny-model", "--arch", "llama", "--out"]).arg(dir);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let (ok, _, stderr) = OneShot::start(command, &self.cluster_agent)?.end().await?;
        if ok {
            return Ok(());
        }
        let stderr = String::from_utf8_lossy(&stderr);
        let last = stderr.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it did not say why");
        Err(Error::local(format!("The tiny model could not be made: {last}")))
    }
}

/// A program that runs once, in a process group of its own, which is ended when the demo is left early.
struct OneShot {
    child: Option<Child>,
    group: Option<Pid>,
}

impl OneShot {
    fn start(mut command: Command, program: &Path) -> Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|e| Error::local(format!("Cannot start {}: {e}.", program.display())))?;
        let group = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
        Ok(OneShot { child: Some(child), group })
    }

    /// Waits for its end: whether it went well, what it wrote.
    async fn end(mut self) -> Result<(bool, Vec<u8>, Vec<u8>)> {
        let Some(child) = self.child.take() else { return Ok((false, Vec::new(), Vec::new())) };
        let output = child
            .wait_with_output()
            .await
            .map_err(|e| Error::local(format!("Lost sight of a program that was started: {e}.")))?;
        self.group = None;
        Ok((output.status.success(), output.stdout, output.stderr))
    }
}

impl Drop for OneShot {
    fn drop(&mut self) {
        // Still set: it was not waited for to its end.
        if let Some(group) = self.group {
            let _ = killpg(group, Signal::SIGTERM);
        }
    }
}
