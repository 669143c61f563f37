//! The demo's own cluster: one controller and two agents on this machine.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use nightshift_proto::v1;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::{Instant, sleep};

use super::{daemon::Daemon, programs::Programs};
use crate::{
    client::{Address, Client},
    error::{Error, Result},
    output::views::WorkerView,
};

/// The nodes.
const NODES: [&str; 2] = ["demo-1", "demo-2"];

/// Opening a ledger takes milliseconds; this is for a machine that has other things to do.
const START_LIMIT: Duration = Duration::from_secs(30);

/// An agent checks its Python runtime, which imports MLX: seconds on a cold disk.
const READY_LIMIT: Duration = Duration::from_secs(90);

/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// A wait that ends.
#[derive(Debug)]
pub(super) struct Patience {
    end: Instant,
    limit: Duration,
}

impl Patience {
    pub(super) fn new(limit: Duration) -> Self {
        Patience { end: Instant::now() + limit, limit }
    }

    /// Starts over: something has moved.
    pub(super) fn renew(&mut self) {
        self.end = Instant::now() + self.limit;
    }

    /// Pauses before the next look, or gives up on `what`.
    pub(super) async fn pause(&self, what: impl FnOnce() -> String) -> Result<()> {
        if Instant::now() >= self.end {
            return Err(Error::local(format!("{} within {} s.", what(), self.limit.as_secs())));
        }
        sleep(LOOK_INTERVAL).await;
        Ok(())
    }
}

/// Everything that was started.
#[derive(Debug)]
pub(super) struct Cluster {
    dir: PathBuf,
    programs: Programs,
    controller: Option<Daemon>,
    agents: Vec<Daemon>,
    address: Option<Address>,
}

impl Cluster {
    /// Nothing is started yet.
    pub(super) fn new(dir: &Path, programs: Programs) -> Self {
        Cluster { dir: dir.to_owned(), programs, controller: None, agents: Vec::new(), address: None }
    }

    pub(super) fn programs(&self) -> &Programs {
        &self.programs
    }

    /// "ip:port" of the controller.
    pub(super) fn address(&self) -> &str {
        self.address.as_ref().map_or("", Address::as_str)
    }

    /// Names and paths of the logs, the most telling first.
    pub(super) fn logs(&self) -> Vec<(String, PathBuf)> {
        std::iter::once("clusterd").chain(NODES).map(|name| (name.to_owned(), self.log(name))).collect()
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    /// Starts the controller, on a port of the system's choice the first time and on the same one after.
    pub(super) async fn start_controller(&mut self) -> Result<Client> {
        let state = self.dir.join("controller");
        let listen = self.address.as_ref().map_or("127.0.0.1:0", Address::as_str).to_owned();
        let addr_file = state.join("clusterd.addr");
        // A file of the life before would send us to a controller that is gone.
        let _ = std::fs::remove_file(&addr_file);
        let config = self.config("clusterd.toml")?;
        let args = ["--config".as_ref(), config.as_os_str(), "--state-dir".as_ref(), state.as_os_str()];
        let args = args.into_iter().chain(["--listen".as_ref(), listen.as_ref()]);
        self.controller =
            Some(Daemon::start("clusterd", &self.programs.clusterd, args, &self.log("clusterd"))?);

        let patience = Patience::new(START_LIMIT);
        loop {
            self.check_alive()?;
            if let Some(client) = connect(&addr_file).await? {
                self.address = Some(client.address().clone());
                return Ok(client);
            }
            patience.pause(|| "The controller did not serve".to_owned()).await?;
        }
    }

    /// Starts the agents and waits until the controller takes both for ready.
    pub(super) async fn start_agents(&mut self, client: &mut Client) -> Result<()> {
        let config = self.config("cluster-agent.toml")?;
        for node in NODES {
            let state = self.dir.join(node);
            let args = [
                "run".as_ref(),
                "--config".as_ref(),
                config.as_os_str(),
                "--state-dir".as_ref(),
                state.as_os_str(),
            ];
            let args = args
                .into_iter()
                .chain(["--node-id", node, "--controller", self.address()].map(AsRef::as_ref));
            let agent = Daemon::start(node, &self.programs.cluster_agent, args, &self.log(node))?;
            self.agents.push(agent);
        }
        let patience = Patience::new(READY_LIMIT);
        loop {
            self.check_alive()?;
            let nodes = client.nodes().await?;
            if NODES
                .iter()
                .all(|node| nodes.iter().any(|n| n.node_id == *node && n.state() == v1::NodeState::Ready))
            {
                return Ok(());
            }
            let missing = || {
                let details: Vec<&str> =
                    nodes.iter().map(|n| n.detail.as_str()).filter(|detail| !detail.is_empty()).collect();
                let why =
                    if details.is_empty() { String::new() } else { format!(" ({})", details.join("; ")) };
                format!("The agents were not ready for work{why}")
            };
            patience.pause(missing).await?;
        }
    }

    /// An empty configuration, so that one installed on this machine does not change the demo.
    fn config(&self, name: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        match std::fs::write(&path, "# All defaults.\n") {
            Ok(()) => Ok(path),
            Err(e) => Err(Error::local(format!("Cannot write {}: {e}.", path.display()))),
        }
    }

    /// An error if anything has ended by itself.
    pub(super) fn check_alive(&mut self) -> Result<()> {
        self.controller.iter_mut().chain(&mut self.agents).try_for_each(Daemon::check_alive)
    }

    /// SIGKILL to a worker, if it is what it seems: a child of one of our agents.
    pub(super) fn kill_worker(&self, worker: &WorkerView) -> Result<u32> {
        let pid = worker.pid.ok_or_else(|| Error::local("The worker's process is not known."))?;
        let parent = parent_of(pid);
        if !self.agents.iter().any(|agent| Some(agent.pid()) == parent) {
            return Err(Error::local(format!(
                "Process {pid} is not a child of the demo's agents, so it is left alone."
            )));
        }
        let raw = i32::try_from(pid).map_err(|_| Error::local(format!("{pid} is not a process.")))?;
        kill(Pid::from_raw(raw), Signal::SIGKILL)
            .map_err(|e| Error::local(format!("Cannot kill the worker (process {pid}): {e}.")))?;
        Ok(pid)
    }

    /// SIGKILL to the controller; returns its process.
    pub(super) async fn kill_controller(&mut self) -> Option<u32> {
        let controller = self.controller.take()?;
        let pid = controller.pid();
        controller.kill().await;
        Some(pid)
    }

    /// Stops everything gently: the agents (with their workers) together, then the controller.
    pub(super) async fn stop(&mut self) {
        let mut agents = std::mem::take(&mut self.agents).into_iter();
        if let (Some(first), Some(second)) = (agents.next(), agents.next()) {
            tokio::join!(first.stop(), second.stop());
        }
        if let Some(controller) = self.controller.take() {
            controller.stop().await;
        }
    }
}

/// Connects once the controller has written where it listens and answers there.
async fn connect(addr_file: &Path) -> Result<Option<Client>> {
    let Ok(text) = std::fs::read_to_string(addr_file) else { return Ok(None) };
    let address = Address::parse(text.trim(), "written by the demo's controller")?;
    match Client::connect(&address).await {
        Ok(mut client) => Ok(client.status().await.is_ok().then_some(client)),
        Err(_) => Ok(None),
    }
}

/// The parent of a process: from /proc where there is one, else from ps.
fn parent_of(pid: u32) -> Option<u32> {
    if let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        // "pid (name) state ppid …"; the name may hold anything, so count from its end.
        return stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok();
    }
    let output =
        std::process::Command::new("ps").args(["-o", "ppid=", "-p", &pid.to_string()]).output().ok()?;
    String::from_utf8_lossy(&output.stdout).trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_its_parent() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert_eq!(parent_of(child.id()), Some(std::process::id()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
