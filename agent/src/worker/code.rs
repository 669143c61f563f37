//! The Python files that run in a worker. They are part of this binary, so that agent and worker always fit together,
//! and are written out under a name made from their content.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use crate::{durable, util};

/// Name and content of each file.
const FILES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/worker_files.rs"));

/// The program that is started.
pub const MAIN: &str = "main.py";

/// Why the files cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The build has none.
    #[error("this build of cluster-agent carries no worker program ({MAIN})")]
    Absent,
    /// They cannot be written.
    #[error("cannot write the worker's program to {}", dir.display())]
    Write {
        /// Where to.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Writes the files to `<dir>/<hash>/`, unless they are there, and returns that directory. Other versions beside it are
/// removed.
///
/// # Errors
/// When the build has none or they cannot be written.
pub fn write(dir: &Path) -> Result<PathBuf, Error> {
    write_files(dir, FILES)
}

fn write_files(dir: &Path, files: &[(&str, &str)]) -> Result<PathBuf, Error> {
    if !files.iter().any(|(name, _)| *name == MAIN) {
        return Err(Error::Absent);
    }
    let parts: Vec<&[u8]> =
        files.iter().flat_map(|(name, text)| [name.as_bytes(), text.as_bytes()]).collect();
    let target = dir.join(format!("{:016x}", util::fnv1a_64(&parts)));
    let failed = |source| Error::Write { dir: target.clone(), source };
    fs::create_dir_all(&target).map_err(failed)?;
    for (name, text) in files {
        let path = target.join(name);
        // Compared, not trusted: after a power cut a file may be there and empty.
        if fs::read(&path).ok().as_deref() != Some(text.as_bytes()) {
            durable::replace_file_lazily(&path, text.as_bytes()).map_err(failed)?;
        }
        open_to_all(&path, 0o644).map_err(failed)?;
    }
    open_to_all(dir, 0o755).and_then(|()| open_to_all(&target, 0o755)).map_err(failed)?;
    for entry in fs::read_dir(dir).map_err(failed)?.flatten() {
        if entry.path() != target && entry.path().is_dir() {
            // What stays behind does no harm; the next start tries again.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(target)
}

/// It is no secret, and workers may run as another user, whatever this process's umask is.
fn open_to_all(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_build_carries_the_worker() {
        let dir = tempfile::tempdir().unwrap();
        assert!(write(dir.path()).unwrap().join(MAIN).is_file());
    }

    #[test]
    fn a_damaged_file_is_mended_and_an_old_version_removed() {
        let dir = tempfile::tempdir().unwrap();
        let old = write_files(dir.path(), &[(MAIN, "print(1)")]).unwrap();
        let new = write_files(dir.path(), &[(MAIN, "print(2)"), ("b.py", "")]).unwrap();
        assert!(!old.exists());
        fs::write(new.join(MAIN), "").unwrap();
        assert_eq!(write_files(dir.path(), &[(MAIN, "print(2)"), ("b.py", "")]).unwrap(), new);
        assert_eq!(fs::read_to_string(new.join(MAIN)).unwrap(), "print(2)");
    }

    #[test]
    fn a_build_without_a_worker_says_so() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(write_files(dir.path(), &[]), Err(Error::Absent)));
    }
}
