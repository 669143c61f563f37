//! One agent per state directory.
//!
//! The lock is the kernel's (`flock`), so that it goes away with the process, however that ends. Workers do not inherit
//! it: Rust opens files close-on-exec.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
    process,
};

/// Why the lock could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process holds it.
    #[error(
        "another cluster-agent{} already uses the state directory {}; stop it, or give this one its own --state-dir",
        pid.map(|pid| format!(" (process {pid})")).unwrap_or_default(), dir.display()
    )]
    Held {
        /// The directory asked for.
        dir: PathBuf,
        /// Who holds it, as written in the lock file.
        pid: Option<u32>,
    },
    /// The lock file cannot be opened or locked.
    #[error("cannot lock the state directory: {}", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The lock on a state directory, held until dropped.
#[derive(Debug)]
pub struct InstanceLock {
    _file: File,
}

impl InstanceLock {
    /// Takes the lock `<dir>/lock`, or says who has it. Never waits.
    ///
    /// # Errors
    /// [`Error::Held`] when another process has it.
    pub fn acquire(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("lock");
        let io = |source| Error::Io { path: path.clone(), source };
        fs::create_dir_all(dir).map_err(io)?;
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // The number is a courtesy: unreadable is as good as absent.
                let _ = file.read_to_string(&mut text);
                return Err(Error::Held { dir: dir.to_owned(), pid: text.trim().parse().ok() });
            }
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        file.set_len(0).and_then(|()| file.rewind()).map_err(io)?;
        writeln!(file, "{}", process::id()).map_err(io)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_is_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = InstanceLock::acquire(dir.path()).unwrap();
        let refused = InstanceLock::acquire(dir.path()).unwrap_err().to_string();
        assert!(refused.contains(&format!("(process {})", process::id())), "{refused}");
        drop(first);
        InstanceLock::acquire(dir.path()).unwrap();
    }
}
