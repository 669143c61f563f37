//! The user that workers run as: an agent that is root starts them as somebody who may do nothing else.
//!
//! Such workers cannot look into the agent's state, where prompts and answers of other jobs lie; what they need is put into a
//! directory beside it (see [`shared_dir`]). They have one group, and nothing of root's environment.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use nix::unistd::{User, geteuid};

const MAY_READ: u32 = 0o4;
const MAY_PASS: u32 = 0o1;

/// Why workers cannot run as the configured user.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none.
    #[error(
        "worker_user: this machine has no user {0:?}; name one that it has, or let `clusterctl install agent` make one"
    )]
    Unknown(String),
    /// The system does not say.
    #[error("worker_user: the system does not tell who {name:?} is")]
    Lookup {
        /// As configured.
        name: String,
        /// What it said.
        source: io::Error,
    },
    /// It would change nothing.
    #[error("worker_user: {0} is root, whom workers are to be kept from; name another user")]
    Root(String),
    /// Only root can.
    #[error(
        "worker_user: only an agent that runs as root can start workers as {0}; start it as root, or leave the key out"
    )]
    NotRoot(String),
}

/// A user of this machine who is not root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// As configured.
    pub name: String,
    /// Its number.
    pub uid: u32,
    /// Of its first group, the only one workers have.
    pub gid: u32,
    /// Its home directory, which need not be there.
    pub home: PathBuf,
}

impl Account {
    /// Who workers run as, when `name` is configured; `None` when that is whoever this agent runs as.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn configured(name: &str) -> Result<Option<Self>, Error> {
        let user = User::from_name(name)
            .map_err(|errno| Error::Lookup { name: name.to_owned(), source: errno.into() })?
            .ok_or_else(|| Error::Unknown(name.to_owned()))?;
        match (geteuid(), user.uid) {
            (_, uid) if uid.is_root() => Err(Error::Root(name.to_owned())),
            (me, uid) if me == uid => Ok(None),
            (me, _) if !me.is_root() => Err(Error::NotRoot(name.to_owned())),
            (_, uid) => Ok(Some(Self {
                name: name.to_owned(),
                uid: uid.as_raw(),
                gid: user.gid.as_raw(),
                home: user.dir,
            })),
        }
    }

    /// What keeps this user from reading `path`, if anything does: itself, or a directory on the way to it. Access control lists
    /// are not asked, so that what only they allow counts as closed. What is not there is not closed.
    #[must_use]
    pub fn closed_at(&self, path: &Path) -> Option<PathBuf> {
        // What links lead over is passed, too.
        let real = path.canonicalize().ok();
        let ways = [Some(path), real.as_deref()];
        let steps = ways.iter().flatten().flat_map(|way| {
            let mut steps: Vec<(&Path, u32)> = way.ancestors().skip(1).map(|dir| (dir, MAY_PASS)).collect();
            steps.reverse();
            steps.push((way, MAY_READ));
            steps
        });
        for (step, needed) in steps {
            let Ok(metadata) = fs::metadata(step) else { continue };
            let needed = if metadata.is_dir() { needed | MAY_PASS } else { needed };
            if !self.may(metadata.uid(), metadata.gid(), metadata.mode(), needed) {
                return Some(step.to_owned());
            }
        }
        None
    }

    fn may(&self, owner: u32, group: u32, mode: u32, needed: u32) -> bool {
        let class = if owner == self.uid {
            mode >> 6
        } else if group == self.gid {
            mode >> 3
        } else {
            mode
        };
        class & needed == needed
    }
}

/// Where workers of another user find what the agent gives them: beside the agent's own state, which is closed to them.
#[must_use]
pub fn shared_dir(state_dir: &Path) -> PathBuf {
    let mut name = state_dir.file_name().map_or_else(|| OsString::from("agent"), OsString::from);
    name.push("-workers");
    state_dir.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn somebody() -> Account {
        Account { name: "somebody".into(), uid: 4_000_000, gid: 4_000_001, home: "/nowhere".into() }
    }

    #[test]
    fn the_class_that_fits_decides_and_no_other() {
        let me = somebody();
        let (other, mine) = (0, me.uid);
        for (owner, group, mode, may) in [
            (other, other, 0o004, true),
            (other, other, 0o770, false),
            (other, me.gid, 0o040, true),
            (other, me.gid, 0o704, false),
            (mine, me.gid, 0o400, true),
            (mine, me.gid, 0o077, false),
        ] {
            assert_eq!(me.may(owner, group, mode, MAY_READ), may, "{owner} {group} {mode:o}");
        }
    }

    #[test]
    fn what_closes_the_way_is_named() {
        let root = tempfile::tempdir().unwrap();
        let home = root.path().join("ada");
        let model = home.join("models/tiny");
        fs::create_dir_all(&model).unwrap();
        let file = model.join("config.json");
        fs::write(&file, "{}").unwrap();
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        for path in [root.path(), &home, &home.join("models"), &model] {
            set(path, 0o755);
        }
        set(&file, 0o644);
        // Above it may lie whatever the system has there.
        let ours = |closed: Option<PathBuf>| closed.filter(|path| path.starts_with(root.path()));
        let me = somebody();
        assert_eq!(ours(me.closed_at(&file)), None);
        assert_eq!(ours(me.closed_at(&model.join("absent"))), None, "that it is absent is told elsewhere");
        set(&file, 0o600);
        assert_eq!(ours(me.closed_at(&file)), Some(file.clone()));
        set(&file, 0o644);
        set(&home, 0o750);
        assert_eq!(ours(me.closed_at(&file)), Some(home.clone()));
        set(&home, 0o711);
        assert_eq!(ours(me.closed_at(&file)), None, "passed, not looked into");
        // A link is as open as what it leads to.
        let closed = root.path().join("closed");
        fs::create_dir(&closed).unwrap();
        fs::rename(&model, closed.join("tiny")).unwrap();
        std::os::unix::fs::symlink(closed.join("tiny"), &model).unwrap();
        set(&closed, 0o700);
        assert_eq!(ours(me.closed_at(&file)), Some(closed.canonicalize().unwrap()));
        set(&closed, 0o755);
    }

    #[test]
    fn who_cannot_be_is_refused() {
        assert!(matches!(Account::configured("no-such-user-here"), Err(Error::Unknown(_))));
        assert!(matches!(Account::configured("root"), Err(Error::Root(_))));
        let me = User::from_uid(geteuid()).unwrap().unwrap();
        if geteuid().is_root() {
            assert!(matches!(Account::configured("nobody"), Ok(Some(account)) if account.name == "nobody"));
        } else {
            assert_eq!(Account::configured(&me.name).unwrap(), None, "it is that user already");
            assert!(matches!(Account::configured("nobody"), Err(Error::NotRoot(_))));
        }
    }

    #[test]
    fn the_shared_directory_lies_beside_the_state() {
        assert_eq!(
            shared_dir(Path::new("/var/lib/nightshift/agent")),
            Path::new("/var/lib/nightshift/agent-workers")
        );
        assert_eq!(shared_dir(Path::new("/")), Path::new("/agent-workers"));
    }
}
