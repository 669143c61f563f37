//! Settings: defaults, then the TOML file, then the command line, each overriding what comes before.
//!
//! Every key is optional. An unknown key is refused, so that a misspelt one is not silently without effect.

use std::{
    env, fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use crate::{link_prep::keeper::Policy, paths::Surroundings, reboot};

/// Where the controller listens unless told otherwise.
pub const DEFAULT_CONTROLLER: &str = "127.0.0.1:7400";

/// How long a worker may take to stop gently unless told otherwise: a step boundary of a large model is seconds away.
pub const DEFAULT_WORKER_GRACE_MS: u64 = 20_000;

/// Default bound of the spool. At some 2 kB an answer it holds a million, far more than any night without controller.
pub const DEFAULT_SPOOL_MAX_BYTES: u64 = 2 * 1024 * 1024 * 1024;

/// Default bound of workers running at once on this node. One or two are usual; the bound only keeps a confused
/// controller from filling the machine.
pub const DEFAULT_MAX_WORKERS: usize = 16;

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not valid.
    #[error("the configuration {} is not valid: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The parser's words, with line and column.
        message: String,
    },
    /// A value makes no sense.
    #[error("{key}: {problem}")]
    Value {
        /// The key of the file, which is also the flag's name with dashes.
        key: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
}

/// The configuration file, and also what the command line may override.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Overrides {
    /// `ip:port` of the controller.
    pub controller: Option<String>,
    /// Name of this node, unique in the cluster.
    pub node_id: Option<String>,
    /// Where the agent keeps its state.
    pub state_dir: Option<PathBuf>,
    /// The virtual environment with MLX: the directory that has `bin/python` in it.
    pub runtime_dir: Option<PathBuf>,
    /// Log into files here (one a day, 14 kept) and not to stderr.
    pub log_dir: Option<PathBuf>,
    /// What to log, in the syntax of `RUST_LOG`.
    pub log_filter: Option<String>,
    /// Model directories must lie under one of these; empty means anywhere.
    pub model_roots: Option<Vec<PathBuf>>,
    /// Workers running at once, at most.
    pub max_workers: Option<usize>,
    /// How long a worker may take to stop gently when the agent stops.
    pub worker_grace_ms: Option<u64>,
    /// What a model may take of this machine's memory, in MiB; without it, three quarters, or what the GPU driver allows.
    pub memory_budget_mib: Option<u64>,
    /// Bound of the spool of results the controller has not acknowledged.
    pub spool_max_bytes: Option<u64>,
    /// Whom an agent that is root starts workers as; without it, they run as root.
    pub worker_user: Option<String>,
    /// What may be done to the Thunderbolt ports that lead to other nodes.
    pub link_policy: Option<Policy>,
    /// Whether, and how often, the controller may have this machine restarted.
    pub reboot: Option<reboot::Rules>,
    /// `HF_HOME` for workers: where models of the hub are cached.
    pub hf_home: Option<PathBuf>,
    /// `HF_HUB_OFFLINE` for workers: never ask the hub.
    pub hf_hub_offline: Option<bool>,
    /// For tests: this command in place of the runtime's Python and the worker's code. Not shown in help.
    pub worker_command: Option<Vec<String>>,
    /// For tests: take the machine for one with this boot id. Not shown in help.
    pub boot_id: Option<String>,
    /// For tests: in place of this machine, report the Mac that is this directory. Not shown in help.
    pub scripted_mac: Option<PathBuf>,
}

impl Overrides {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// When the file cannot be read or is not valid.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text =
            fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        toml::from_str(&text)
            .map_err(|error| Error::Parse { path: path.to_owned(), message: error.to_string() })
    }

    /// `self` where it says something, else `below`.
    #[must_use]
    pub fn over(self, below: Self) -> Self {
        Self {
            controller: self.controller.or(below.controller),
            node_id: self.node_id.or(below.node_id),
            state_dir: self.state_dir.or(below.state_dir),
            runtime_dir: self.runtime_dir.or(below.runtime_dir),
            log_dir: self.log_dir.or(below.log_dir),
            log_filter: self.log_filter.or(below.log_filter),
            model_roots: self.model_roots.or(below.model_roots),
            max_workers: self.max_workers.or(below.max_workers),
            worker_grace_ms: self.worker_grace_ms.or(below.worker_grace_ms),
            memory_budget_mib: self.memory_budget_mib.or(below.memory_budget_mib),
            spool_max_bytes: self.spool_max_bytes.or(below.spool_max_bytes),
            worker_user: self.worker_user.or(below.worker_user),
            link_policy: self.link_policy.or(below.link_policy),
            reboot: self.reboot.or(below.reboot),
            hf_home: self.hf_home.or(below.hf_home),
            hf_hub_offline: self.hf_hub_offline.or(below.hf_hub_offline),
            worker_command: self.worker_command.or(below.worker_command),
            boot_id: self.boot_id.or(below.boot_id),
            scripted_mac: self.scripted_mac.or(below.scripted_mac),
        }
    }
}

/// Settings with nothing left open.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Address of the controller; always loopback for now.
    pub controller: SocketAddr,
    /// Name of this node.
    pub node_id: String,
    /// Where the agent keeps its state.
    pub state_dir: PathBuf,
    /// The virtual environment with MLX.
    pub runtime_dir: PathBuf,
    /// See [`Overrides::model_roots`].
    pub model_roots: Vec<PathBuf>,
    /// See [`Overrides::max_workers`].
    pub max_workers: usize,
    /// See [`Overrides::worker_grace_ms`].
    pub worker_grace: Duration,
    /// See [`Overrides::memory_budget_mib`]; in bytes.
    pub memory_budget_bytes: Option<u64>,
    /// See [`Overrides::spool_max_bytes`].
    pub spool_max_bytes: u64,
    /// See [`Overrides::worker_user`].
    pub worker_user: Option<String>,
    /// See [`Overrides::link_policy`].
    pub link_policy: Policy,
    /// See [`Overrides::reboot`].
    pub reboot: reboot::Rules,
    /// See [`Overrides::hf_home`].
    pub hf_home: Option<PathBuf>,
    /// See [`Overrides::hf_hub_offline`].
    pub hf_hub_offline: Option<bool>,
    /// See [`Overrides::worker_command`].
    pub worker_command: Option<Vec<String>>,
    /// See [`Overrides::boot_id`].
    pub boot_id: Option<String>,
    /// See [`Overrides::scripted_mac`].
    pub scripted_mac: Option<PathBuf>,
}

impl Settings {
    /// Fills in defaults and checks every value.
    ///
    /// # Errors
    /// [`Error::Value`] naming the key.
    pub fn resolve(given: Overrides, here: &Surroundings) -> Result<Self, Error> {
        let no_home = |key| Error::Value {
            key,
            problem: "there is no home directory to choose a default in; name one".to_owned(),
        };
        let node_id = match given.node_id {
            Some(id) => id,
            None => host_name()?,
        };
        check_node_id(&node_id)?;
        let max_workers = given.max_workers.unwrap_or(DEFAULT_MAX_WORKERS);
        if max_workers == 0 || max_workers > 256 {
            return Err(Error::Value { key: "max_workers", problem: "must be from 1 to 256".to_owned() });
        }
        if given.worker_command.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::Value { key: "worker_command", problem: "must name a program".to_owned() });
        }
        Ok(Self {
            controller: parse_controller(given.controller.as_deref().unwrap_or(DEFAULT_CONTROLLER))?,
            node_id,
            state_dir: absolute(
                given.state_dir.or_else(|| here.state_dir()).ok_or_else(|| no_home("state_dir"))?,
            ),
            runtime_dir: runtime_dir(given.runtime_dir, here)?,
            model_roots: given.model_roots.unwrap_or_default(),
            max_workers,
            worker_grace: Duration::from_millis(given.worker_grace_ms.unwrap_or(DEFAULT_WORKER_GRACE_MS)),
            memory_budget_bytes: given.memory_budget_mib.map(memory_budget_bytes).transpose()?,
            spool_max_bytes: given.spool_max_bytes.unwrap_or(DEFAULT_SPOOL_MAX_BYTES),
            worker_user: given.worker_user,
            link_policy: given.link_policy.unwrap_or_default(),
            reboot: given.reboot.map(reboot_rules).transpose()?.unwrap_or_default(),
            hf_home: given.hf_home,
            hf_hub_offline: given.hf_hub_offline,
            worker_command: given.worker_command,
            boot_id: given.boot_id,
            scripted_mac: given.scripted_mac.map(absolute),
        })
    }
}

fn reboot_rules(rules: reboot::Rules) -> Result<reboot::Rules, Error> {
    if rules.min_hours_between == 0 {
        let problem =
            "it must be at least 1: a machine that is restarted over and over answers no rows".to_owned();
        return Err(Error::Value { key: "reboot.min_hours_between", problem });
    }
    Ok(rules)
}

/// From 1 MiB on; that it is more than the machine has does no harm, since its memory counts too.
fn memory_budget_bytes(mib: u64) -> Result<u64, Error> {
    mib.checked_mul(1 << 20).filter(|bytes| *bytes > 0).ok_or_else(|| Error::Value {
        key: "memory_budget_mib",
        problem: format!("{mib} is no amount of memory; leave it out for the default"),
    })
}

/// The runtime directory: as given, else `$NIGHTSHIFT_RUNTIME_DIR`, else the default.
///
/// # Errors
/// When there is no home directory to choose a default in.
pub fn runtime_dir(given: Option<PathBuf>, here: &Surroundings) -> Result<PathBuf, Error> {
    given
        .or_else(|| env::var_os("NIGHTSHIFT_RUNTIME_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from))
        .or_else(|| here.runtime_dir())
        .map(absolute)
        .ok_or_else(|| Error::Value {
            key: "runtime_dir",
            problem: "there is no home directory to choose a default in; name one".to_owned(),
        })
}

/// Workers run in a directory of their own, where a relative path would mean another place.
fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

/// Accepts `ip:port` and `localhost:port`, loopback only.
fn parse_controller(text: &str) -> Result<SocketAddr, Error> {
    let value = |problem: String| Error::Value { key: "controller", problem };
    let address = match text.strip_prefix("localhost:") {
        Some(port) => port.parse().map(|port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)).ok(),
        None => text.parse::<SocketAddr>().ok(),
    };
    let address = address
        .ok_or_else(|| value(format!("{text:?} is not an address and port such as {DEFAULT_CONTROLLER}")))?;
    if !address.ip().is_loopback() {
        return Err(value(format!(
            "{address} is not on this machine, and this version has no transport security yet: an agent that \
             starts processes on command must not listen to strangers. Use a loopback address (an SSH tunnel ends on one)"
        )));
    }
    Ok(address)
}

fn check_node_id(id: &str) -> Result<(), Error> {
    let fits = (1..=64).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if fits {
        return Ok(());
    }
    Err(Error::Value {
        key: "node_id",
        problem: format!("{id:?} must be 1 to 64 letters, digits, dots, dashes or underscores"),
    })
}

/// The host's name without the `.local` that macOS adds on some networks and not on others.
fn host_name() -> Result<String, Error> {
    let name = nix::unistd::gethostname()
        .map_err(|errno| Error::Value {
            key: "node_id",
            problem: format!("this machine does not tell its name ({errno}); name the node"),
        })?
        .to_string_lossy()
        .into_owned();
    Ok(name.strip_suffix(".local").unwrap_or(&name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home() -> Surroundings {
        Surroundings { home: Some("/home/ada".into()), ..Default::default() }
    }

    fn resolve(overrides: Overrides) -> Result<Settings, String> {
        Settings::resolve(
            Overrides { node_id: overrides.node_id.or(Some("n1".into())), ..overrides },
            &home(),
        )
        .map_err(|error| error.to_string())
    }

    #[test]
    fn everything_has_a_default() {
        let settings = resolve(Overrides::default()).unwrap();
        assert_eq!(settings.controller.to_string(), DEFAULT_CONTROLLER);
        assert_eq!(settings.state_dir, PathBuf::from("/home/ada/.local/state/nightshift/agent"));
        assert_eq!(settings.worker_grace, Duration::from_secs(20));
    }

    #[test]
    fn the_command_line_goes_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        fs::write(&path, "controller = \"127.0.0.1:1\"\nworker_grace_ms = 5\n").unwrap();
        let flags = Overrides { controller: Some("localhost:2".into()), ..Default::default() };
        let settings = resolve(flags.over(Overrides::read(&path).unwrap())).unwrap();
        assert_eq!(settings.controller.to_string(), "127.0.0.1:2");
        assert_eq!(settings.worker_grace, Duration::from_millis(5));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        fs::write(&path, "\ncontroler = \"127.0.0.1:1\"\n").unwrap();
        let error = Overrides::read(&path).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("unknown field `controler`"), "{error}");
    }

    #[test]
    fn only_loopback_until_there_is_transport_security() {
        for (address, says) in [
            ("10.0.0.2:7400", "no transport security yet"),
            ("0.0.0.0:7400", "no transport security yet"),
            ("mini.local:7400", "is not an address and port such as 127.0.0.1:7400"),
            ("127.0.0.1", "is not an address and port"),
        ] {
            let error =
                resolve(Overrides { controller: Some(address.into()), ..Default::default() }).unwrap_err();
            assert!(error.starts_with("controller: ") && error.contains(says), "{error}");
        }
        assert!(resolve(Overrides { controller: Some("[::1]:7400".into()), ..Default::default() }).is_ok());
    }

    #[test]
    fn a_memory_budget_is_given_in_mebibytes() {
        let budget = |mib| resolve(Overrides { memory_budget_mib: mib, ..Default::default() });
        assert_eq!(budget(None).unwrap().memory_budget_bytes, None);
        assert_eq!(budget(Some(102_400)).unwrap().memory_budget_bytes, Some(102_400 << 20));
        for bad in [0, u64::MAX] {
            assert!(budget(Some(bad)).unwrap_err().starts_with("memory_budget_mib: "));
        }
    }

    #[test]
    fn restarts_are_off_unless_somebody_allows_them() {
        let of = |text: &str| {
            let overrides: Overrides = toml::from_str(text).unwrap();
            resolve(overrides).map(|settings| (settings.reboot.allow, settings.reboot.min_hours_between))
        };
        assert_eq!(of(""), Ok((false, 12)));
        assert_eq!(of("[reboot]\nmin_hours_between = 3\n"), Ok((false, 3)));
        assert_eq!(of("[reboot]\nallow = true\n"), Ok((true, 12)));
        let zero = of("[reboot]\nmin_hours_between = 0\n").unwrap_err();
        assert!(zero.starts_with("reboot.min_hours_between: it must be at least 1"), "{zero}");
        assert!(toml::from_str::<Overrides>("[reboot]\nallowed = true\n").is_err());
    }

    #[test]
    fn node_names_are_plain() {
        for bad in ["", "a b", "ü", &"x".repeat(65)] {
            assert!(resolve(Overrides { node_id: Some(bad.into()), ..Default::default() }).is_err());
        }
    }
}
