//! What is written down of a running worker, so that the next agent finds it if this one is killed.
//!
//! The record is written after the process exists and before it is told anything: a worker whose record is not yet
//! there has nothing to do and ends when its input closes, which the kernel does for a dead agent. No sync to disk: the
//! records need to outlive the agent, not the machine, with which the workers end too.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::Key;
use crate::durable;

/// One running worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its job.
    pub job_id: u64,
    /// Its launch.
    pub epoch: u64,
    /// Its rank.
    pub rank: u32,
    /// Its process, which leads the group of the same number.
    pub pid: u32,
    /// As [`crate::sys::process_start`] says; `None` if it had ended by the time it was looked at.
    pub start_time: Option<u64>,
    /// The boot it belongs to.
    pub boot_id: Option<String>,
}

impl Record {
    /// Which worker.
    #[must_use]
    pub fn key(&self) -> Key {
        Key { job_id: self.job_id, epoch: self.epoch, rank: self.rank }
    }
}

/// Writes the record of `key` into `dir`.
///
/// # Errors
/// Whatever the file system says.
pub fn write(dir: &Path, record: &Record) -> io::Result<()> {
    let text = serde_json::to_vec(record).map_err(io::Error::other)?;
    durable::replace_file_lazily(&path(dir, record.key()), &text)
}

/// Removes the record of `key`. One that cannot be removed does no harm: its process is gone by then.
pub fn remove(dir: &Path, key: Key) {
    if let Err(error) = fs::remove_file(path(dir, key))
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%key, %error, "the record of an ended worker cannot be removed");
    }
}

/// All files in `dir`, each with the record it holds, if it holds one.
///
/// # Errors
/// When the directory cannot be read.
pub fn read_all(dir: &Path) -> io::Result<Vec<(PathBuf, Option<Record>)>> {
    fs::read_dir(dir)?
        .map(|entry| {
            let path = entry?.path();
            let record = fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
            Ok((path, record))
        })
        .collect()
}

fn path(dir: &Path, key: Key) -> PathBuf {
    dir.join(format!("j{}-e{}-r{}.json", key.job_id, key.epoch, key.rank))
}
