//! Where everything goes.
//!
//! | | macOS, launchd | Linux, systemd |
//! | --- | --- | --- |
//! | programs | `PREFIX/bin` | `PREFIX/bin` |
//! | service | `/Library/LaunchDaemons/io.nightshift.NAME.plist` | `/etc/systemd/system/nightshift-NAME.service` |
//! | configuration | `/Library/Application Support/Nightshift/NAME.toml` | `/etc/nightshift/NAME.toml` |
//! | state | `/Library/Application Support/Nightshift/NAME` | `/var/lib/nightshift/NAME` |
//! | log | `/Library/Logs/Nightshift` | the journal |
//!
//! State is where the programs keep it by themselves when they are root.

use std::path::{Path, PathBuf};

/// What starts services here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Manager {
    /// Of macOS.
    Launchd,
    /// Of most Linux systems.
    Systemd,
}

/// A service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// `cluster-agent`, on every machine.
    Agent,
    /// `clusterd`, on one.
    Controller,
}

impl Part {
    pub(crate) const ALL: [Self; 2] = [Self::Agent, Self::Controller];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Controller => "controller",
        }
    }

    /// What it runs.
    pub(crate) fn program(self) -> Program {
        match self {
            Self::Agent => Program::ClusterAgent,
            Self::Controller => Program::Clusterd,
        }
    }
}

/// A program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Program {
    Clusterctl,
    Clusterd,
    ClusterAgent,
}

impl Program {
    pub(crate) const ALL: [Self; 3] = [Self::Clusterctl, Self::Clusterd, Self::ClusterAgent];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Clusterctl => "clusterctl",
            Self::Clusterd => "clusterd",
            Self::ClusterAgent => "cluster-agent",
        }
    }
}

/// Where things go on this machine.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) manager: Manager,
    /// Of the programs.
    pub(crate) prefix: PathBuf,
}

impl Layout {
    pub(crate) fn bin(&self) -> PathBuf {
        self.prefix.join("bin")
    }

    pub(crate) fn program(&self, program: Program) -> PathBuf {
        self.bin().join(program.name())
    }

    /// As the service manager knows it.
    pub(crate) fn label(&self, part: Part) -> &'static str {
        match (self.manager, part) {
            (Manager::Launchd, Part::Agent) => "io.nightshift.agent",
            (Manager::Launchd, Part::Controller) => "io.nightshift.controller",
            (Manager::Systemd, Part::Agent) => "nightshift-agent.service",
            (Manager::Systemd, Part::Controller) => "nightshift-controller.service",
        }
    }

    pub(crate) fn unit(&self, part: Part) -> PathBuf {
        match self.manager {
            Manager::Launchd => {
                Path::new("/Library/LaunchDaemons").join(format!("{}.plist", self.label(part)))
            }
            Manager::Systemd => Path::new("/etc/systemd/system").join(self.label(part)),
        }
    }

    pub(crate) fn config_dir(&self) -> PathBuf {
        match self.manager {
            Manager::Launchd => self.data(),
            Manager::Systemd => "/etc/nightshift".into(),
        }
    }

    pub(crate) fn config(&self, part: Part) -> PathBuf {
        self.config_dir().join(format!("{}.toml", part.name()))
    }

    /// State of all services.
    pub(crate) fn data(&self) -> PathBuf {
        match self.manager {
            Manager::Launchd => "/Library/Application Support/Nightshift".into(),
            Manager::Systemd => "/var/lib/nightshift".into(),
        }
    }

    /// What belongs to this service alone, and goes with it where everything is to go.
    pub(crate) fn state(&self, part: Part) -> Vec<PathBuf> {
        let names: &[&str] = match part {
            Part::Agent => &["agent", "agent-workers", "runtime", "home"],
            Part::Controller => &["controller"],
        };
        names.iter().map(|name| self.data().join(name)).collect()
    }

    /// Everything that installing replaces.
    pub(crate) fn targets(&self) -> Vec<PathBuf> {
        let programs = Program::ALL.into_iter().map(|program| self.program(program));
        let files = Part::ALL.into_iter().flat_map(|part| [self.unit(part), self.config(part)]);
        programs.chain(files).collect()
    }

    /// Its files: the configuration, and what lies beside its state.
    pub(crate) fn files(&self, part: Part) -> Vec<PathBuf> {
        let beside = match part {
            Part::Agent => Some(self.data().join("runtime.lock")),
            Part::Controller => None,
        };
        [self.config(part)].into_iter().chain(beside).collect()
    }

    /// What `cluster-agent link` has changed in this boot.
    pub(crate) fn link_journal(&self) -> PathBuf {
        self.data().join("agent/link-prep.json")
    }

    /// The home directory of a user who is made for workers: what they fetch from the model hub lies there.
    pub(crate) fn home(&self) -> PathBuf {
        self.data().join("home")
    }

    /// Says that the user for workers was made, and so is to go with everything else.
    pub(crate) fn user_marker(&self) -> PathBuf {
        self.data().join("made-user")
    }

    /// Where logs go; `None` where the service manager keeps them.
    pub(crate) fn logs(&self) -> Option<PathBuf> {
        match self.manager {
            Manager::Launchd => Some("/Library/Logs/Nightshift".into()),
            Manager::Systemd => None,
        }
    }

    /// What a service says that could not open its log; `None` where the service manager keeps it.
    pub(crate) fn stderr(&self, part: Part) -> Option<PathBuf> {
        self.logs().map(|dir| dir.join(format!("{}.stderr.log", part.name())))
    }

    /// Who is made for workers. Names of macOS's own service users begin like this.
    pub(crate) fn own_user(&self) -> &'static str {
        match self.manager {
            Manager::Launchd => "_nightshift",
            Manager::Systemd => "nightshift",
        }
    }
}
