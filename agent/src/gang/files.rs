//! The files of launches: one directory each, for the user of workers only.
//!
//! No sync to disk: they are read once, when MLX forms its group, and mean nothing after a restart of the machine.

use std::{
    fs::{self, DirBuilder},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
};

use super::{environment, environment::Variable, launch::Launch};
use crate::worker::{Key, account::Account};

/// Where the launches of this agent keep their files.
#[derive(Debug, Clone)]
pub struct Files {
    dir: PathBuf,
    account: Option<Account>,
}

impl Files {
    /// Below `dir`, which is made, for workers that run as `account`. What lies there is of an earlier agent, whose workers must
    /// be gone, and is removed.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn open(dir: PathBuf, account: Option<Account>) -> io::Result<Self> {
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed?,
        }
        DirBuilder::new().mode(0o700).create(&dir)?;
        if account.is_some() {
            // To be passed, whatever the umask is.
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o711))?;
        }
        Ok(Self { dir, account })
    }

    /// Writes what the rank needs, and gives the variables it is started with.
    ///
    /// # Errors
    /// Whatever the file system says; nothing is left then.
    pub fn write(&self, key: Key, launch: &Launch) -> io::Result<Vec<Variable>> {
        let dir = self.of(key);
        let environment = environment::of(launch, &dir);
        let written = DirBuilder::new().mode(0o700).create(&dir).and_then(|()| {
            environment.files.iter().try_for_each(|(name, text)| {
                let file = dir.join(name);
                write_private(&file, text).and_then(|()| self.give(&file))
            })
        });
        let written = written.and_then(|()| self.give(&dir));
        if let Err(error) = written {
            self.remove(key);
            return Err(error);
        }
        Ok(environment.variables)
    }

    /// Removes what a launch wrote, if it wrote anything.
    pub fn remove(&self, key: Key) {
        if let Err(error) = fs::remove_dir_all(self.of(key))
            && error.kind() != io::ErrorKind::NotFound
        {
            // The next start of the agent tries again.
            tracing::warn!(%key, %error, "the files of an ended rank cannot be removed");
        }
    }

    /// Makes it the worker's own.
    fn give(&self, path: &Path) -> io::Result<()> {
        self.account.as_ref().map_or(Ok(()), |account| chown(path, Some(account.uid), Some(account.gid)))
    }

    fn of(&self, key: Key) -> PathBuf {
        self.dir.join(format!("j{}-e{}-r{}", key.job_id, key.epoch, key.rank))
    }
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use nightshift_proto::v1::Backend;

    use super::*;
    use crate::gang::{
        launch::{
            prepare,
            tests::{KEY, gang, mac},
        },
        starts::StartBudget,
    };

    #[test]
    fn files_are_private_and_go_with_the_launch_or_the_agent() {
        let state = tempfile::tempdir().unwrap();
        let dir = state.path().join("gangs");
        let files = Files::open(dir.clone(), None).unwrap();
        let launch = prepare(&gang(Backend::Ring), KEY, mac(&StartBudget::default())).unwrap();
        let variables = files.write(KEY, &launch).unwrap();
        let own = dir.join("j7-e4-r1");
        assert_eq!(variables[1], ("MLX_HOSTFILE", own.join("hosts.json").into()));
        for (path, mode) in [(&dir, 0o700), (&own, 0o700), (&own.join("hosts.json"), 0o600)] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, mode);
        }
        files.remove(KEY);
        assert!(!own.exists());
        files.remove(KEY);

        files.write(KEY, &launch).unwrap();
        let files = Files::open(dir.clone(), None).unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "of an earlier agent");
        fs::write(&own, "in the way").unwrap();
        assert!(files.write(KEY, &launch).is_err());
    }
}
