//! The controller's configuration: a TOML file in which every key has a default, and the command line over it.

mod notes;
mod notify;
mod reboots;

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub use notify::Notify;
pub use reboots::Reboots;

use crate::{planner::Network, recovery::Policy};

/// Everything that can be set.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where it listens and keeps its state. Takes effect at start only.
    pub controller: Controller,
    /// What agents are told at connecting.
    pub agents: Agents,
    /// How jobs are run when they do not say.
    pub jobs: Jobs,
    /// How a model is run over several nodes.
    pub gangs: Gangs,
    /// How faults are answered.
    pub recovery: Recovery,
    /// Whether machines that need a restart are restarted.
    pub reboots: Reboots,
    /// How much is accepted.
    pub limits: Limits,
    /// Who is told what while nobody looks.
    pub notify: Notify,
}

/// Section `[controller]`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Controller {
    /// Address and port; loopback only, until transport security exists.
    pub listen: SocketAddr,
    /// Ledger, jobs and results.
    pub state_dir: PathBuf,
    /// How much the log says: error, warn, info, debug, trace, or a tracing filter.
    pub log_filter: String,
    /// Rolling log files kept, one a day.
    pub log_files: usize,
}

impl Default for Controller {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7400)),
            state_dir: default_state_dir(),
            log_filter: "info".to_owned(),
            log_files: 14,
        }
    }
}

/// Section `[agents]`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Agents {
    /// Between signs of life.
    pub heartbeat_interval_ms: u64,
    /// Between full observations of a machine.
    pub observation_interval_ms: u64,
    /// Between reports on a busy worker.
    pub progress_interval_ms: u64,
}

impl Default for Agents {
    fn default() -> Self {
        Self { heartbeat_interval_ms: 1_000, observation_interval_ms: 10_000, progress_interval_ms: 250 }
    }
}

/// Section `[jobs]`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Jobs {
    /// Rows generated together by one worker.
    pub max_batch_rows: u32,
    /// Rows whose prompts are processed together.
    pub prefill_batch_rows: u32,
    /// Prompt tokens processed in one step; smaller ones avoid GPU timeouts.
    pub prefill_step_tokens: u32,
    /// Between checkpoints of unfinished rows.
    pub checkpoint_interval_ms: u64,
    /// Tokens a row may generate when neither it nor its job says.
    pub default_max_tokens: u32,
    /// How long workers may finish what they had begun when their job's window closes.
    pub window_drain_ms: u64,
}

impl Default for Jobs {
    fn default() -> Self {
        let policy = Policy::default();
        Self {
            max_batch_rows: policy.max_batch_rows,
            prefill_batch_rows: policy.prefill_batch_rows,
            prefill_step_tokens: policy.prefill_step_tokens,
            checkpoint_interval_ms: policy.checkpoint_interval_ms,
            default_max_tokens: policy.default_max_tokens,
            window_drain_ms: policy.window_drain_ms,
        }
    }
}

/// Section `[gangs]`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gangs {
    /// Networks whose addresses the ranks of a sharded model may use among themselves. Apart from these only the Thunderbolt cables
    /// between nodes are ever used.
    pub networks: Vec<String>,
    /// Whether ranks may use RDMA where a cable is ready for it.
    pub rdma: bool,
    /// Whether the Macs of a gang must have the same build of macOS.
    pub same_os_build: bool,
    /// How long the ranks of a gang may take to find one another.
    pub rendezvous_ms: u64,
    /// How long nodes and links must stay as they are before a gang is planned over them.
    pub settle_ms: u64,
    /// How long a link that has failed must carry before a gang is planned over it.
    pub link_settle_ms: u64,
    /// How long RDMA between two nodes is left alone when a gang over it was lost: twice this, doubled for each other one of late.
    pub rdma_settle_ms: u64,
    /// The first port that ranks listen on.
    pub first_port: u16,
    /// How many ports there are for them.
    pub ports: u16,
}

impl Default for Gangs {
    fn default() -> Self {
        let policy = Policy::default();
        Self {
            networks: Vec::new(),
            rdma: policy.gang_rdma,
            same_os_build: policy.gang_same_os,
            rendezvous_ms: policy.gang_rendezvous_ms,
            settle_ms: policy.gang_settle_ms,
            link_settle_ms: policy.link_settle_ms,
            rdma_settle_ms: policy.rdma_settle_ms,
            first_port: policy.gang_first_port,
            ports: policy.gang_ports,
        }
    }
}

impl Gangs {
    /// The networks, checked by [`Config::validate`].
    #[must_use]
    pub fn networks(&self) -> Vec<Network> {
        self.networks.iter().filter_map(|text| Network::parse(text).ok()).collect()
    }
}

/// Section `[recovery]`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recovery {
    /// Without a word for this long, a node's rows go to others.
    pub node_silent_ms: u64,
    /// The same for a node whose machine another node still sees.
    pub node_seen_silent_ms: u64,
    /// How long a restarted controller waits for the workers it had.
    pub adopt_grace_ms: u64,
    /// First pause before a failed worker is started again; doubles with each failure in a row.
    pub restart_base_ms: u64,
    /// Longest such pause.
    pub restart_cap_ms: u64,
    /// After so many failures in a row without a finished row, the job is paused for a person.
    pub failures_before_pause: u32,
    /// How long a model may take to load while it is not known how long it takes.
    pub load_budget_ms: u64,
    /// How long one step of a worker may take while it is not known how long steps take.
    pub step_budget_ms: u64,
    /// How long one step may take at the least, however short steps are.
    pub least_step_budget_ms: u64,
    /// Between SIGTERM and SIGKILL of a worker.
    pub stop_grace_ms: u64,
    /// So many GPU faults of a node within the window, and it is left alone for a while.
    pub gpu_faults_before_quarantine: u32,
    /// The window in which they count.
    pub gpu_fault_window_ms: u64,
    /// How long such a node takes no work.
    pub quarantine_ms: u64,
    /// The longest time that something which has failed must hold before it is relied on again.
    pub most_settle_ms: u64,
    /// How long a better way to run a job must have been there before the job changes to it.
    pub climb_settle_ms: u64,
    /// In which half of what is remembered of failures is forgotten.
    pub penalty_half_life_ms: u64,
    /// So much wired memory that did not come back after a kill, and no model is loaded until a reboot.
    pub stranded_bytes: u64,
    /// A node not seen for so many days is no longer listed.
    pub forget_node_days: u64,
}

/// Milliseconds of a day.
const DAY_MS: u64 = 24 * 3_600_000;

impl Default for Recovery {
    fn default() -> Self {
        let policy = Policy::default();
        Self {
            node_silent_ms: policy.node_silent_ms,
            node_seen_silent_ms: policy.node_seen_silent_ms,
            adopt_grace_ms: policy.adopt_grace_ms,
            restart_base_ms: policy.restart_base_ms,
            restart_cap_ms: policy.restart_cap_ms,
            failures_before_pause: policy.failures_before_pause,
            load_budget_ms: policy.load_budget_ms,
            step_budget_ms: policy.step_budget_ms,
            least_step_budget_ms: policy.least_step_budget_ms,
            stop_grace_ms: policy.stop_grace_ms,
            gpu_faults_before_quarantine: policy.gpu_faults_before_quarantine,
            gpu_fault_window_ms: policy.gpu_fault_window_ms,
            quarantine_ms: policy.quarantine_ms,
            most_settle_ms: policy.most_settle_ms,
            climb_settle_ms: policy.climb_settle_ms,
            penalty_half_life_ms: policy.penalty_half_life_ms,
            stranded_bytes: policy.stranded_bytes,
            forget_node_days: policy.forget_node_ms / DAY_MS,
        }
    }
}

/// Section `[limits]`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// The longest input line.
    pub max_row_bytes: u64,
    /// The most rows of one job.
    pub max_rows: u32,
    /// Free space below which nothing more is written. Takes effect at start only.
    pub disk_reserve_bytes: u64,
    /// Events kept. Takes effect at start only.
    pub max_events: u64,
    /// Memory the ledger may use as cache. Takes effect at start only.
    pub ledger_cache_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_row_bytes: 16 * 1024 * 1024,
            max_rows: 10_000_000,
            disk_reserve_bytes: 256 * 1024 * 1024,
            max_events: 10_000,
            ledger_cache_bytes: 4 * 1024 * 1024,
        }
    }
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not what it should be. The parser's message names line and key.
    #[error("the configuration file {path} is refused: {problem}")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// What is wrong, on one line.
        problem: String,
    },
    /// A value makes no sense.
    #[error("{key} = {value} is refused: {why}")]
    Value {
        /// Which key.
        key: &'static str,
        /// Its value.
        value: String,
        /// Why, and what would be right.
        why: &'static str,
    },
}

impl Config {
    /// Reads a file; no file is the defaults.
    ///
    /// # Errors
    /// When it cannot be read, does not parse, names a key that does not exist, or holds a value that makes no sense.
    pub fn load(path: Option<&Path>) -> Result<Self, Error> {
        let Some(path) = path else { return Ok(Self::default()) };
        let text =
            fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let config: Self = toml::from_str(&text).map_err(|error| {
            let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            let place = line.map_or_else(String::new, |line| format!("line {line}: "));
            Error::Parse {
                path: path.to_owned(),
                problem: format!("{place}{}", error.message().replace('\n', " ")),
            }
        })?;
        config.validate()?;
        Ok(config)
    }

    /// Checks values against one another.
    ///
    /// # Errors
    /// Names the first value that makes no sense.
    pub fn validate(&self) -> Result<(), Error> {
        let refuse =
            |key, value: &dyn ToString, why| Err(Error::Value { key, value: value.to_string(), why });
        if !self.controller.listen.ip().is_loopback() {
            let why = "this version has no transport security, so it listens on loopback only, for example 127.0.0.1:7400";
            return refuse("controller.listen", &self.controller.listen, why);
        }
        let positive = "it must be at least 1";
        if self.gangs.first_port.checked_add(self.gangs.ports).is_none() || self.gangs.first_port < 1024 {
            let why =
                "ports from first_port on, as many as gangs.ports says, must lie between 1024 and 65535";
            return refuse("gangs.first_port", &self.gangs.first_port, why);
        }
        let at_least_one: [(&'static str, u64); 14] = [
            ("agents.heartbeat_interval_ms", self.agents.heartbeat_interval_ms),
            ("agents.observation_interval_ms", self.agents.observation_interval_ms),
            ("agents.progress_interval_ms", self.agents.progress_interval_ms),
            ("jobs.max_batch_rows", u64::from(self.jobs.max_batch_rows)),
            ("jobs.prefill_batch_rows", u64::from(self.jobs.prefill_batch_rows)),
            ("jobs.prefill_step_tokens", u64::from(self.jobs.prefill_step_tokens)),
            ("jobs.checkpoint_interval_ms", self.jobs.checkpoint_interval_ms),
            ("jobs.default_max_tokens", u64::from(self.jobs.default_max_tokens)),
            ("recovery.failures_before_pause", u64::from(self.recovery.failures_before_pause)),
            ("recovery.gpu_faults_before_quarantine", u64::from(self.recovery.gpu_faults_before_quarantine)),
            ("gangs.rendezvous_ms", self.gangs.rendezvous_ms),
            ("gangs.ports", u64::from(self.gangs.ports)),
            ("limits.max_row_bytes", self.limits.max_row_bytes),
            ("limits.max_rows", u64::from(self.limits.max_rows)),
        ];
        if let Some((key, value)) = at_least_one.into_iter().find(|(_, value)| *value == 0) {
            return refuse(key, &value, positive);
        }
        if let Some(wrong) = self.gangs.networks.iter().find(|text| Network::parse(text).is_err()) {
            return refuse("gangs.networks", wrong, "a network looks like 10.0.0.0/24");
        }
        if self.recovery.node_silent_ms < 2 * self.agents.heartbeat_interval_ms {
            let why = "it must be at least two heartbeat intervals, or one late heartbeat would cost a node its rows";
            return refuse("recovery.node_silent_ms", &self.recovery.node_silent_ms, why);
        }
        if self.recovery.node_seen_silent_ms < self.recovery.node_silent_ms {
            let why = "it must be at least recovery.node_silent_ms: a node that another still sees is given no less time";
            return refuse("recovery.node_seen_silent_ms", &self.recovery.node_seen_silent_ms, why);
        }
        if self.limits.max_row_bytes > MAX_ROW_BYTES {
            let why = "a row must fit a message of 32 MiB together with its tokens; at most 25165824";
            return refuse("limits.max_row_bytes", &self.limits.max_row_bytes, why);
        }
        self.reboots.validate()?;
        self.notify.validate()
    }

    /// The rules' numbers.
    #[must_use]
    pub fn policy(&self) -> Policy {
        Policy {
            node_silent_ms: self.recovery.node_silent_ms,
            node_seen_silent_ms: self.recovery.node_seen_silent_ms,
            adopt_grace_ms: self.recovery.adopt_grace_ms,
            restart_base_ms: self.recovery.restart_base_ms,
            restart_cap_ms: self.recovery.restart_cap_ms,
            failures_before_pause: self.recovery.failures_before_pause,
            load_budget_ms: self.recovery.load_budget_ms,
            step_budget_ms: self.recovery.step_budget_ms,
            least_step_budget_ms: self.recovery.least_step_budget_ms,
            stop_grace_ms: self.recovery.stop_grace_ms,
            max_batch_rows: self.jobs.max_batch_rows,
            prefill_batch_rows: self.jobs.prefill_batch_rows,
            prefill_step_tokens: self.jobs.prefill_step_tokens,
            checkpoint_interval_ms: self.jobs.checkpoint_interval_ms,
            default_max_tokens: self.jobs.default_max_tokens,
            window_drain_ms: self.jobs.window_drain_ms,
            gpu_faults_before_quarantine: self.recovery.gpu_faults_before_quarantine,
            gpu_fault_window_ms: self.recovery.gpu_fault_window_ms,
            quarantine_ms: self.recovery.quarantine_ms,
            link_settle_ms: self.gangs.link_settle_ms,
            most_settle_ms: self.recovery.most_settle_ms,
            rdma_settle_ms: self.gangs.rdma_settle_ms,
            climb_settle_ms: self.recovery.climb_settle_ms,
            penalty_half_life_ms: self.recovery.penalty_half_life_ms,
            stranded_bytes: self.recovery.stranded_bytes,
            reboots: self.reboots.enabled,
            reboot_settle_ms: self.reboots.settle_ms,
            reboots_per_day: self.reboots.per_day,
            reboot_return_ms: self.reboots.return_ms,
            forget_node_ms: self.recovery.forget_node_days.saturating_mul(DAY_MS),
            gang_networks: self.gangs.networks(),
            gang_rdma: self.gangs.rdma,
            gang_same_os: self.gangs.same_os_build,
            gang_rendezvous_ms: self.gangs.rendezvous_ms,
            gang_settle_ms: self.gangs.settle_ms,
            gang_first_port: self.gangs.first_port,
            gang_ports: self.gangs.ports,
        }
    }

    /// This configuration with the settings of `running` where they take effect at the next start only.
    #[must_use]
    pub fn over(mut self, running: &Self) -> Self {
        self.controller.clone_from(&running.controller);
        self.limits.ledger_cache_bytes = running.limits.ledger_cache_bytes;
        self.limits.disk_reserve_bytes = running.limits.disk_reserve_bytes;
        self.limits.max_events = running.limits.max_events;
        self
    }

    /// Keys that differ from `running` but take effect at the next start only.
    #[must_use]
    pub fn needs_restart(&self, running: &Self) -> Vec<&'static str> {
        let mut keys = Vec::new();
        if self.controller.listen != running.controller.listen {
            keys.push("controller.listen");
        }
        if self.controller.state_dir != running.controller.state_dir {
            keys.push("controller.state_dir");
        }
        if self.controller.log_filter != running.controller.log_filter {
            keys.push("controller.log_filter");
        }
        if self.controller.log_files != running.controller.log_files {
            keys.push("controller.log_files");
        }
        if self.limits.ledger_cache_bytes != running.limits.ledger_cache_bytes {
            keys.push("limits.ledger_cache_bytes");
        }
        if self.limits.disk_reserve_bytes != running.limits.disk_reserve_bytes {
            keys.push("limits.disk_reserve_bytes");
        }
        if self.limits.max_events != running.limits.max_events {
            keys.push("limits.max_events");
        }
        keys
    }

    /// The configuration as a file, every key with its meaning.
    #[must_use]
    pub fn to_annotated_toml(&self) -> String {
        let plain = toml::to_string(self).unwrap_or_default();
        let mut text = String::from(
            "# Configuration of clusterd. Every key may be left out; the file is read again when it changes.\n",
        );
        let mut section = String::new();
        for line in plain.lines() {
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                section = format!("{name}.");
            }
            if let Some(note) =
                line.split_once(" = ").and_then(|(key, _)| notes::note_on(&format!("{section}{key}")))
            {
                text.push_str("# ");
                text.push_str(note);
                text.push('\n');
            }
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}

/// Leaves room in a 32 MiB message for a row's resume tokens.
const MAX_ROW_BYTES: u64 = 24 * 1024 * 1024;

/// Where state is kept unless told otherwise.
fn default_state_dir() -> PathBuf {
    let root = nix::unistd::geteuid().is_root();
    let home = || std::env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from);
    match (cfg!(target_os = "macos"), root) {
        (true, true) => PathBuf::from("/Library/Application Support/Nightshift/controller"),
        (true, false) => home().join("Library/Application Support/Nightshift/controller"),
        (false, true) => PathBuf::from("/var/lib/nightshift/controller"),
        (false, false) => std::env::var_os("XDG_STATE_HOME")
            .map_or_else(|| home().join(".local/state"), PathBuf::from)
            .join("nightshift/controller"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("clusterd.toml");
        fs::write(&path, text).unwrap();
        Config::load(Some(&path)).map_err(|error| error.to_string().replace(&*path.to_string_lossy(), "FILE"))
    }

    #[test]
    fn what_is_printed_is_read_back_the_same_and_every_key_is_explained() {
        let printed = Config::default().to_annotated_toml();
        assert_eq!(parse(&printed), Ok(Config::default()));
        let keys = printed.lines().filter(|line| line.contains(" = ")).count();
        let notes = printed.lines().filter(|line| line.starts_with("# ")).count();
        assert_eq!(notes, keys + 1, "one note a key, and the head line:\n{printed}");
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        assert_eq!(parse(""), Ok(Config::default()));
    }

    #[test]
    fn refusals_name_the_place_and_the_remedy() {
        assert_eq!(
            parse("[controller]\nlisten = \"0.0.0.0:7400\"\n").unwrap_err(),
            "controller.listen = 0.0.0.0:7400 is refused: this version has no transport security, so it listens on \
             loopback only, for example 127.0.0.1:7400"
        );
        assert_eq!(
            parse("[jobs]\nmax_batch_rows = 0\n").unwrap_err(),
            "jobs.max_batch_rows = 0 is refused: it must be at least 1"
        );
        let unknown = parse("[jobs]\n\nmax_batch = 3\n").unwrap_err();
        assert!(
            unknown.starts_with("the configuration file FILE is refused: line 3: unknown field `max_batch`"),
            "{unknown}"
        );
        let broken = parse("[jobs\n").unwrap_err();
        assert!(broken.starts_with("the configuration file FILE is refused: line 1: "), "{broken}");
        let silent = parse("[recovery]\nnode_silent_ms = 1500\n").unwrap_err();
        assert!(silent.contains("at least two heartbeat intervals"), "{silent}");
        let seen = parse("[recovery]\nnode_silent_ms = 20000\n").unwrap_err();
        assert!(seen.starts_with("recovery.node_seen_silent_ms = 15000 is refused: it must be"), "{seen}");
        let network = parse("[gangs]\nnetworks = [\"10.0.0.0/24\", \"en5\"]\n").unwrap_err();
        assert_eq!(network, "gangs.networks = en5 is refused: a network looks like 10.0.0.0/24");
        let kind = parse("[notify]\non = [\"job-completed\", \"job-done\"]\n").unwrap_err();
        assert!(
            kind.contains("line 2: unknown variant `job-done`, expected one of `job-completed`, "),
            "{kind}"
        );
        assert_eq!(
            parse("[notify]\nwebhook = \"example.org\"\n").unwrap_err(),
            "notify.webhook = example.org is refused: it is an address that begins with https:// or http://"
        );
        assert_eq!(
            parse("[notify]\ntimeout_s = 0\n").unwrap_err(),
            "notify.timeout_s = 0 is refused: it is 1 to 600 seconds"
        );
        assert!(parse("[notify]\ncommand = [\"\"]\n").unwrap_err().contains("is the program"));
        let row = parse("[limits]\nmax_row_bytes = 30000000\n").unwrap_err();
        assert!(row.contains("must fit a message"), "{row}");
    }

    #[test]
    fn what_needs_a_restart_is_named() {
        let mut changed = Config::default();
        changed.controller.listen.set_port(1);
        changed.jobs.max_batch_rows = 3;
        changed.limits.max_events = 5;
        assert_eq!(changed.needs_restart(&Config::default()), ["controller.listen", "limits.max_events"]);
        let in_force = changed.over(&Config::default());
        assert_eq!(in_force.jobs.max_batch_rows, 3);
        assert_eq!(in_force.needs_restart(&Config::default()), [""; 0]);
    }
}
