//! A cluster on this machine: one controller and some agents, real processes in one throw-away directory.
//!
//! Everything a case hurts is started, killed and started again here. [`Cluster::finish`] ends it gently and checks
//! what must hold after every case: all programs ended well, no process is left over, the logs hold the warnings that
//! the case had to cause and no others.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use nightshift_proto::v1::Job;
use nix::sys::signal::Signal;

use crate::{
    answers::Answers,
    binaries,
    control::Control,
    dirs::TestDir,
    faults::{self, Fault},
    logs::{self, Expected},
    netns::Net,
    ports,
    process::{self, Outcome, Process},
    procfs::{self, Seen},
    relay::Relay,
    rows::Input,
    runtime, spools, wait,
};

/// How long a program may take to stop gently: a worker finishes its step, a ledger is flushed.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// What a cluster is made of; [`ClusterBuilder::start`] starts it.
#[derive(Debug)]
pub struct ClusterBuilder {
    name: String,
    agents: usize,
    net: bool,
    config: Option<String>,
    dir: Option<PathBuf>,
    controller_state: Option<PathBuf>,
    memory_budget_mib: Option<u64>,
    injects_faults: bool,
    macs_dir: Option<PathBuf>,
    log: Expected,
}

impl ClusterBuilder {
    /// So many agents, named n1, n2, …; without this there are none.
    #[must_use]
    pub fn agents(mut self, count: usize) -> Self {
        self.agents = count;
        self
    }

    /// Each agent in a network namespace of its own, with links to the others that a case can hurt ([`Cluster::net`]) and
    /// a way to the controller beside them ([`Cluster::cut_off`]). Needs [`crate::suite::Need::Netns`].
    #[must_use]
    pub fn on_a_net(mut self) -> Self {
        self.net = true;
        self
    }

    /// A configuration file for the controller, `<dir>/clusterd.toml`, with this content.
    #[must_use]
    pub fn config(mut self, toml: &str) -> Self {
        self.config = Some(toml.to_owned());
        self
    }

    /// What every node lets a model take, in place of what the machine has.
    #[must_use]
    pub fn memory_budget_mib(mut self, mib: u64) -> Self {
        self.memory_budget_mib = Some(mib);
        self
    }

    /// Workers that end as [`Cluster::inject`] says.
    #[must_use]
    pub fn inject_faults(mut self) -> Self {
        self.injects_faults = true;
        self
    }

    /// Agents of scripted Macs ([`crate::mac`]): of each the directory in this one that is called after it.
    #[must_use]
    pub fn scripted_macs(mut self, dir: &Path) -> Self {
        self.macs_dir = Some(dir.to_owned());
        self
    }

    /// The directory of everything, where it must be a particular one: it stays, and a cluster that is built in one that
    /// was used goes on with what is there.
    #[must_use]
    pub fn dir(mut self, dir: &Path) -> Self {
        self.dir = Some(dir.to_owned());
        self
    }

    /// The controller's state directory, where it must be a particular one.
    #[must_use]
    pub fn controller_state(mut self, dir: &Path) -> Self {
        self.controller_state = Some(dir.to_owned());
        self
    }

    /// Warnings and errors that may be in the logs at the end (see [`logs::matches`]).
    #[must_use]
    pub fn allow(mut self, patterns: &[&str]) -> Self {
        self.log.may.extend(patterns.iter().map(|pattern| (*pattern).to_owned()));
        self
    }

    /// Warnings and errors that must be in the logs at the end, each at least once.
    #[must_use]
    pub fn expect(mut self, patterns: &[&str]) -> Self {
        self.log.must.extend(patterns.iter().map(|pattern| (*pattern).to_owned()));
        self
    }

    /// Starts it and waits until the controller serves and every agent is ready.
    ///
    /// # Panics
    /// When that does not happen.
    pub async fn start(self) -> Cluster {
        let dir = self.dir.map_or_else(|| TestDir::new(&self.name), |dir| TestDir::at(&dir));
        let controller_dir = self.controller_state.unwrap_or_else(|| dir.sub("controller"));
        for name in ["logs", "home", "tmp"] {
            let _ = dir.sub(name);
        }
        if let Some(config) = &self.config {
            fs::write(dir.path().join("clusterd.toml"), config).expect("a configuration can be written");
        }
        let address = format!("127.0.0.1:{}", ports::free());
        let control = Control::new(&address);
        let names: Vec<String> = (1..=self.agents).map(|number| format!("n{number}")).collect();
        let mut cluster = Cluster {
            configured: self.config.is_some(),
            zone: "UTC0".to_owned(),
            memory_budget_mib: self.memory_budget_mib,
            injects_faults: self.injects_faults,
            macs_dir: self.macs_dir,
            controller_dir,
            address,
            control,
            controller: None,
            agents: BTreeMap::new(),
            net: self.net.then(|| Net::new(self.agents)),
            relays: BTreeMap::new(),
            log: self.log,
            finished: false,
            dir,
        };
        cluster.start_controller().await;
        for name in &names {
            if cluster.net.is_some() {
                cluster.let_back(name);
            }
            cluster.start_agent(name);
        }
        cluster.control.wait_ready(self.agents).await;
        cluster
    }
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    configured: bool,
    zone: String,
    memory_budget_mib: Option<u64>,
    injects_faults: bool,
    macs_dir: Option<PathBuf>,
    controller_dir: PathBuf,
    address: String,
    control: Control,
    controller: Option<Process>,
    agents: BTreeMap<String, Process>,
    log: Expected,
    finished: bool,
    relays: BTreeMap<String, Relay>,
    // Behind the processes that are in it.
    net: Option<Net>,
    // Last: removed when all processes are gone.
    dir: TestDir,
}

impl Cluster {
    /// A cluster for the case of this name.
    #[must_use]
    pub fn builder(name: &str) -> ClusterBuilder {
        ClusterBuilder {
            name: name.to_owned(),
            agents: 0,
            net: false,
            config: None,
            dir: None,
            controller_state: None,
            memory_budget_mib: None,
            injects_faults: false,
            macs_dir: None,
            log: Expected::default(),
        }
    }

    /// The directory that holds everything of it.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The controller's state directory.
    #[must_use]
    pub fn controller_dir(&self) -> &Path {
        &self.controller_dir
    }

    /// The controller's address, "ip:port"; the same after every restart.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The control service.
    #[must_use]
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// The network between the nodes.
    ///
    /// # Panics
    /// When the cluster was built without one.
    #[must_use]
    pub fn net(&self) -> &Net {
        self.net.as_ref().expect("the cluster was built with on_a_net()")
    }

    /// Sets the faults that workers of a node play, in place of those it had.
    pub fn inject(&self, node: &str, faults: &[Fault]) {
        faults::write(self.path(), node, faults);
    }

    /// The time zone of programs started from now on, as a POSIX `TZ`; UTC before.
    pub fn set_zone(&mut self, zone: &str) {
        zone.clone_into(&mut self.zone);
    }

    /// Breaks a node's way to the controller, and nothing between the nodes.
    ///
    /// # Panics
    /// When it has none of its own, or it is broken already.
    pub fn cut_off(&mut self, node: &str) {
        self.relays.remove(node).unwrap_or_else(|| panic!("there is no relay for {node}"));
    }

    /// Gives a node its way to the controller, again after [`Self::cut_off`]: on its loopback, as on real machines.
    ///
    /// # Panics
    /// When it has one, or cannot get one.
    pub fn let_back(&mut self, node: &str) {
        assert!(!self.relays.contains_key(node), "{node} has a way to the controller");
        let inside = self.address.parse().expect("the controller's address is one");
        let relay = Relay::start(self.net().listen(node, inside), &self.address);
        self.relays.insert(node.to_owned(), relay);
    }

    /// More of what [`ClusterBuilder::expect`] takes, for faults a case comes to later.
    pub fn expect(&mut self, patterns: &[&str]) {
        self.log.must.extend(patterns.iter().map(|pattern| (*pattern).to_owned()));
    }

    /// Starts the controller and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    pub async fn start_controller(&mut self) {
        self.spawn_controller();
        self.wait_served().await;
    }

    /// Waits until the controller that was started serves.
    ///
    /// # Panics
    /// When it ends, or does not serve in time.
    pub async fn wait_served(&mut self) {
        let control = self.control.clone();
        let controller = self.controller_mut();
        wait::eventually("the controller to serve", wait::SOON, async || {
            if let Some(status) = controller.ended() {
                panic!("clusterd ended with {status}:\n{}", logs::tail(controller.output(), 20));
            }
            control.try_status().await.map_err(|status| status.to_string())
        })
        .await;
        let written = fs::read_to_string(self.controller_dir.join("clusterd.addr")).unwrap_or_default();
        assert_eq!(written.trim(), self.address, "clusterd.addr names the address that is served");
    }

    /// Starts the controller without waiting.
    ///
    /// # Panics
    /// When it runs already.
    pub fn spawn_controller(&mut self) {
        assert!(self.controller.is_none(), "the controller runs already");
        let mut command = self.command("clusterd");
        if self.configured {
            command.arg("--config").arg(self.config_path());
        }
        command
            .arg("--state-dir")
            .arg(&self.controller_dir)
            .args(["--listen", &self.address])
            .arg("--log-dir")
            .arg(self.dir.sub("logs/controller"));
        self.controller = Some(Process::start("clusterd", command, &self.dir.sub("logs")));
    }

    /// The controller's configuration file, where the cluster was built with one.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.path().join("clusterd.toml")
    }

    /// The controller's process.
    ///
    /// # Panics
    /// When it is not running.
    pub fn controller_mut(&mut self) -> &mut Process {
        self.controller.as_mut().expect("the controller runs")
    }

    /// Kills the controller with SIGKILL.
    pub async fn kill_controller(&mut self) {
        self.controller_mut().kill().await;
        self.controller = None;
    }

    /// Stops the controller with SIGTERM.
    ///
    /// # Panics
    /// When it does not end well.
    pub async fn stop_controller(&mut self) {
        self.controller_mut().stop(STOP_LIMIT).await;
        self.controller = None;
    }

    /// The names of the agents.
    #[must_use]
    pub fn agent_names(&self) -> Vec<String> {
        self.agents.keys().cloned().collect()
    }

    /// An agent's process.
    ///
    /// # Panics
    /// When it is not running.
    pub fn agent_mut(&mut self, node: &str) -> &mut Process {
        self.agents.get_mut(node).unwrap_or_else(|| panic!("no agent {node} runs"))
    }

    /// Starts an agent, without waiting.
    pub fn start_agent(&mut self, node: &str) {
        let command = self.agent_command(node, &runtime::ensure().dir);
        self.start_agent_with(node, command);
    }

    /// The command line of an agent that runs with this runtime.
    #[must_use]
    pub fn agent_command(&self, node: &str, runtime_dir: &Path) -> Command {
        let program = binaries::path("cluster-agent");
        let mut command = self.with_environment(match &self.net {
            None => Command::new(program),
            Some(net) => net.command(node, &program),
        });
        command
            .args(["run", "--controller", &self.address, "--node-id", node])
            .arg("--state-dir")
            .arg(self.dir.sub(&format!("agents/{node}")))
            .arg("--runtime-dir")
            .arg(runtime_dir)
            .arg("--log-dir")
            .arg(self.dir.sub(&format!("logs/{node}")));
        if self.injects_faults {
            let agent_dir = self.dir.sub(&format!("agents/{node}"));
            command.arg("--config").arg(faults::write_configuration(self.path(), node, &agent_dir));
        }
        if let Some(macs) = &self.macs_dir {
            command.arg("--scripted-mac").arg(macs.join(node));
        }
        if let Some(mib) = self.memory_budget_mib {
            command.args(["--memory-budget-mib", &mib.to_string()]);
        }
        command
    }

    /// Starts an agent by a command line of its own.
    ///
    /// # Panics
    /// When one of that name runs already.
    pub fn start_agent_with(&mut self, node: &str, command: Command) {
        let process = Process::start(node, command, &self.dir.sub("logs"));
        assert!(self.agents.insert(node.to_owned(), process).is_none(), "agent {node} runs already");
    }

    /// Kills an agent with SIGKILL.
    pub async fn kill_agent(&mut self, node: &str) {
        self.agent_mut(node).kill().await;
        self.agents.remove(node);
    }

    /// Stops an agent with SIGTERM.
    ///
    /// # Panics
    /// When it does not end well.
    pub async fn stop_agent(&mut self, node: &str) {
        self.agent_mut(node).stop(STOP_LIMIT).await;
        self.agents.remove(node);
    }

    /// The worker processes alive now.
    #[must_use]
    pub fn workers(&self) -> Vec<Seen> {
        procfs::workers_of(self.path())
    }

    /// Kills everything at one moment: controller, agents, workers. Gives the names of the agents.
    pub async fn kill_all(&mut self) -> Vec<String> {
        let names = self.agent_names();
        let workers = self.workers();
        self.controller_mut().signal(Signal::SIGKILL);
        for agent in self.agents.values_mut() {
            agent.signal(Signal::SIGKILL);
        }
        for worker in workers {
            process::send(worker.pid, Signal::SIGKILL);
        }
        self.kill_controller().await;
        for name in &names {
            self.kill_agent(name).await;
        }
        names
    }

    /// Runs `clusterctl` against this cluster to its end.
    pub async fn ctl(&self, arguments: &[&str]) -> Outcome {
        process::run(self.ctl_command(arguments)).await
    }

    /// The command line of a `clusterctl` against this cluster.
    #[must_use]
    pub fn ctl_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.command("clusterctl");
        command.args(["--controller", &self.address]).args(arguments);
        command
    }

    /// Reads a finished job's output and judges it.
    ///
    /// # Panics
    /// When a row is missing or doubled, or a line is not valid.
    #[must_use]
    pub fn answers(&self, job: &Job, input: &Input) -> Answers {
        match Answers::read(Path::new(&job.results_path), Path::new(&job.errors_path), input.ids()) {
            Ok(answers) => answers,
            Err(problem) => panic!("job j{} ({}): {problem}", job.job_id, job.detail),
        }
    }

    /// The numbers of the job's rows that workers have finished, by node, whether the controller knows of it or not.
    #[must_use]
    pub fn finished_rows(&self, job: &Job) -> BTreeMap<String, Vec<u64>> {
        spools::rows(&self.path().join("agents"), job.job_id)
    }

    /// Checks that no row of the job was generated twice.
    ///
    /// # Panics
    /// When one was.
    pub fn assert_generated_once(&self, job: &Job) {
        let mut seen = BTreeSet::new();
        let rows = self.finished_rows(job);
        let twice: Vec<&u64> = rows.values().flatten().filter(|row| !seen.insert(**row)).collect();
        assert!(twice.is_empty(), "rows {twice:?} of job j{} were generated twice: {rows:?}", job.job_id);
    }

    /// Ends the cluster gently and checks what must hold after every case.
    ///
    /// # Panics
    /// When a program does not end well, a process is left over, or a log holds a warning that nobody expected or
    /// lacks one that had to come.
    pub async fn finish(mut self) {
        for name in self.agent_names() {
            self.stop_agent(&name).await;
        }
        if self.controller.is_some() {
            self.stop_controller().await;
        }
        wait::eventually("every process of the cluster to be gone", wait::SOON, async || {
            let left = procfs::processes_of(self.path());
            if left.is_empty() { Ok(()) } else { Err(format!("{left:#?}")) }
        })
        .await;
        let problems = self.log.problems(&logs::trouble(&self.path().join("logs")));
        assert!(
            problems.is_empty(),
            "the logs are not as expected in {} ways, the first:\n{}",
            problems.len(),
            problems[..problems.len().min(10)].join("\n")
        );
        self.finished = true;
    }

    /// The command line of one of the programs, with the environment of this cluster.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        self.with_environment(Command::new(binaries::path(program)))
    }

    /// A command with an environment of its own, so that a test means the same wherever it runs.
    fn with_environment(&self, mut command: Command) -> Command {
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.path().join("home"))
            .env("TMPDIR", self.path().join("tmp"))
            .env("LANG", "C.UTF-8")
            .env("TZ", &self.zone)
            .env("NO_COLOR", "1")
            .env("RUST_BACKTRACE", "1")
            .current_dir(self.path());
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        self.dir.keep();
        for process in procfs::processes_of(self.path()) {
            process::send(process.pid, Signal::SIGKILL);
        }
        eprintln!("the ends of the logs:\n{}", logs::tails(&self.path().join("logs"), 12));
    }
}
