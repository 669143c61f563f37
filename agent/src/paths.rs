//! Where things are kept when nobody says otherwise.
//!
//! | | Linux | macOS | as root |
//! | --- | --- | --- | --- |
//! | state | `$XDG_STATE_HOME` or `~/.local/state`, `/nightshift/agent` | `~/Library/Application Support/Nightshift/agent` | `/var/lib/nightshift/agent`, macOS `/Library/Application Support/Nightshift/agent` |
//! | runtime | `$XDG_DATA_HOME` or `~/.local/share`, `/nightshift/runtime` | `~/Library/Application Support/Nightshift/runtime` | `/var/lib/nightshift/runtime`, macOS `/Library/Application Support/Nightshift/runtime` |

use std::{env, path::PathBuf};

/// What the defaults depend on, as plain values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Whether this process is root.
    pub root: bool,
    /// Whether this is macOS.
    pub macos: bool,
    /// `$HOME`.
    pub home: Option<PathBuf>,
    /// `$XDG_STATE_HOME`, if absolute.
    pub xdg_state_home: Option<PathBuf>,
    /// `$XDG_DATA_HOME`, if absolute.
    pub xdg_data_home: Option<PathBuf>,
}

impl Surroundings {
    /// Those of this process.
    #[must_use]
    pub fn here() -> Self {
        // The specification of these variables says that relative paths are to be ignored.
        let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        Self {
            root: nix::unistd::Uid::effective().is_root(),
            macos: cfg!(target_os = "macos"),
            home: absolute("HOME"),
            xdg_state_home: absolute("XDG_STATE_HOME"),
            xdg_data_home: absolute("XDG_DATA_HOME"),
        }
    }

    /// The state directory, or `None` when there is no home directory to put it in.
    #[must_use]
    pub fn state_dir(&self) -> Option<PathBuf> {
        Some(self.base(self.xdg_state_home.as_ref(), ".local/state")?.join("agent"))
    }

    /// The Python runtime's directory, or `None` when there is no home directory to put it in.
    #[must_use]
    pub fn runtime_dir(&self) -> Option<PathBuf> {
        Some(self.base(self.xdg_data_home.as_ref(), ".local/share")?.join("runtime"))
    }

    fn base(&self, xdg: Option<&PathBuf>, fallback: &str) -> Option<PathBuf> {
        match (self.macos, self.root) {
            (true, true) => Some("/Library/Application Support/Nightshift".into()),
            (true, false) => Some(self.home.as_ref()?.join("Library/Application Support/Nightshift")),
            (false, true) => Some("/var/lib/nightshift".into()),
            (false, false) => {
                let base = xdg.cloned().or_else(|| Some(self.home.as_ref()?.join(fallback)))?;
                Some(base.join("nightshift"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_of_the_table() {
        let user = Surroundings { home: Some("/home/ada".into()), ..Default::default() };
        let mac = Surroundings { macos: true, home: Some("/Users/ada".into()), ..Default::default() };
        let xdg = Surroundings {
            xdg_state_home: Some("/s".into()),
            xdg_data_home: Some("/d".into()),
            ..user.clone()
        };
        let cases = [
            (&user, "/home/ada/.local/state/nightshift/agent", "/home/ada/.local/share/nightshift/runtime"),
            (&xdg, "/s/nightshift/agent", "/d/nightshift/runtime"),
            (
                &mac,
                "/Users/ada/Library/Application Support/Nightshift/agent",
                "/Users/ada/Library/Application Support/Nightshift/runtime",
            ),
            (
                &Surroundings { root: true, ..user.clone() },
                "/var/lib/nightshift/agent",
                "/var/lib/nightshift/runtime",
            ),
            (
                &Surroundings { root: true, ..mac.clone() },
                "/Library/Application Support/Nightshift/agent",
                "/Library/Application Support/Nightshift/runtime",
            ),
        ];
        for (here, state, runtime) in cases {
            assert_eq!(here.state_dir(), Some(state.into()));
            assert_eq!(here.runtime_dir(), Some(runtime.into()));
        }
        assert_eq!(Surroundings::default().state_dir(), None);
    }
}
