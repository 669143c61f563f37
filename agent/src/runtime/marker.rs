//! The two files by which a runtime directory tells what it is.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::durable;

const READY: &str = ".nightshift-runtime.json";
const INSTALLING: &str = ".nightshift-installing";

/// Written last, when everything is in place and has been imported once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// Of the requirements it was made from.
    pub requirements_hash: String,
    /// Of its interpreter.
    pub python_version: String,
    /// Of MLX.
    pub mlx_version: String,
    /// Of mlx-lm.
    pub mlx_lm_version: String,
}

/// What a directory is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Absent or empty.
    Vacant,
    /// Made by us, to the end.
    Ready(Marker),
    /// Made by us, but broken off, or its marker cannot be read.
    Broken,
    /// Not made by us.
    Foreign,
}

/// Looks at a directory.
///
/// # Errors
/// When it cannot be read.
pub fn kind(dir: &Path) -> io::Result<Kind> {
    if !dir.try_exists()? || fs::read_dir(dir)?.next().is_none() {
        return Ok(Kind::Vacant);
    }
    match fs::read(dir.join(READY)) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).map_or(Kind::Broken, Kind::Ready)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Ok(if dir.join(INSTALLING).try_exists()? { Kind::Broken } else { Kind::Foreign })
        }
        Err(error) => Err(error),
    }
}

/// Marks `dir`, which is made if needed, as being worked on. From here on it is ours to remove.
///
/// # Errors
/// Whatever the file system says.
pub fn begin(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    durable::replace_file(&dir.join(INSTALLING), b"cluster-agent is installing here\n")
}

/// Marks `dir` as ready, durably.
///
/// # Errors
/// Whatever the file system says.
pub fn finish(dir: &Path, marker: &Marker) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(marker).map_err(io::Error::other)?;
    durable::replace_file(&dir.join(READY), &text)?;
    fs::remove_file(dir.join(INSTALLING))
}

/// Removes a directory of ours. The sign of readiness goes first, so that a removal that is itself broken off leaves
/// nothing that looks complete.
///
/// # Errors
/// Whatever the file system says.
pub fn remove(dir: &Path) -> io::Result<()> {
    begin(dir)?;
    match fs::remove_file(dir.join(READY)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => durable::sync_parent(&dir.join(READY))?,
    }
    fs::remove_dir_all(dir)
}

/// The marker file of `dir`: when it changes, the runtime has.
#[must_use]
pub fn path(dir: &Path) -> PathBuf {
    dir.join(READY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_goes_from_vacant_to_ready_and_a_strangers_stays_foreign() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = dir.path().join("runtime");
        assert_eq!(kind(&runtime).unwrap(), Kind::Vacant);
        begin(&runtime).unwrap();
        assert_eq!(kind(&runtime).unwrap(), Kind::Broken);
        let marker = Marker {
            requirements_hash: "h".into(),
            python_version: "3.11.7".into(),
            mlx_version: "1".into(),
            mlx_lm_version: "2".into(),
        };
        finish(&runtime, &marker).unwrap();
        assert_eq!(kind(&runtime).unwrap(), Kind::Ready(marker));
        remove(&runtime).unwrap();
        assert_eq!(kind(&runtime).unwrap(), Kind::Vacant);

        fs::create_dir(&runtime).unwrap();
        fs::write(runtime.join("notes.txt"), "mine").unwrap();
        assert_eq!(kind(&runtime).unwrap(), Kind::Foreign);
    }
}
