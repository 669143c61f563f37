//! The highest launch of each job that this node has started, on disk.
//!
//! A command from a controller that has been superseded, or one that was long under way, must not start a launch whose
//! successor ran here already: its rows would be answered by two launches at once. So the number is made durable before
//! the process is started, and never goes back.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::durable;

/// Jobs remembered: those used last. More than a node sees between two clean-ups of any controller, and a file of some
/// 30 kB that is written once a start.
const MAX_JOBS: usize = 1_000;

/// Why epochs cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is there and makes no sense. It is not taken for absent: that would forget every launch.
    #[error("{} cannot be read; if nothing runs on this node it may be removed", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// It cannot be written: nothing may be started.
    #[error("{} cannot be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    epoch: u64,
    /// Grows with every start; the lowest are forgotten first.
    used: u64,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Epochs {
    path: PathBuf,
    jobs: BTreeMap<u64, Entry>,
}

impl Epochs {
    /// Reads the file, or begins without one.
    ///
    /// # Errors
    /// [`Error::Unreadable`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let unreadable = |source| Error::Unreadable { path: path.to_owned(), source };
        let jobs = match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).map_err(io::Error::other).map_err(unreadable)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(unreadable(error)),
        };
        Ok(Self { path: path.to_owned(), jobs })
    }

    /// The highest launch of this job that was started here; 0 if none was.
    #[must_use]
    pub fn highest(&self, job_id: u64) -> u64 {
        self.jobs.get(&job_id).map_or(0, |entry| entry.epoch)
    }

    /// Begins anew for another ledger: the file goes into `place`.
    ///
    /// # Errors
    /// [`Error::Write`]; nothing has changed then.
    pub fn set_aside(&mut self, place: &Path) -> Result<(), Error> {
        let failed = |source| Error::Write { path: self.path.clone(), source };
        match fs::rename(&self.path, place.join("epochs.json")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            moved => moved.and_then(|()| durable::sync_parent(&self.path)).map_err(failed)?,
        }
        self.jobs.clear();
        Ok(())
    }

    /// Notes a launch, durably. Lower ones than the highest change nothing.
    ///
    /// # Errors
    /// [`Error::Write`]; nothing has changed then, in memory either.
    pub fn advance(&mut self, job_id: u64, epoch: u64) -> Result<(), Error> {
        let used = self.jobs.values().map(|entry| entry.used).max().unwrap_or(0) + 1;
        let mut jobs = self.jobs.clone();
        jobs.insert(job_id, Entry { epoch: epoch.max(self.highest(job_id)), used });
        while jobs.len() > MAX_JOBS {
            let oldest = jobs.iter().min_by_key(|(_, entry)| entry.used).map(|(job, _)| *job);
            oldest.and_then(|job| jobs.remove(&job));
        }
        let failed = |source| Error::Write { path: self.path.clone(), source };
        let text = serde_json::to_vec(&jobs).map_err(io::Error::other).map_err(failed)?;
        durable::replace_file(&self.path, &text).map_err(failed)?;
        self.jobs = jobs;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_outlive_a_restart_and_never_go_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("epochs.json");
        let mut epochs = Epochs::open(&path).unwrap();
        assert_eq!(epochs.highest(7), 0);
        epochs.advance(7, 3).unwrap();
        epochs.advance(7, 2).unwrap();
        assert_eq!(Epochs::open(&path).unwrap().highest(7), 3);
    }

    #[test]
    fn only_the_jobs_used_last_are_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let mut epochs = Epochs::open(&dir.path().join("epochs.json")).unwrap();
        epochs.jobs = (1..=MAX_JOBS as u64).map(|job| (job, Entry { epoch: 1, used: job })).collect();
        epochs.advance(1, 2).unwrap();
        epochs.advance(5_000, 1).unwrap();
        assert_eq!((epochs.highest(1), epochs.highest(2), epochs.highest(5_000)), (2, 0, 1));
    }

    #[test]
    fn another_ledger_counts_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (path, place) = (dir.path().join("epochs.json"), dir.path().join("aside"));
        fs::create_dir(&place).unwrap();
        let mut epochs = Epochs::open(&path).unwrap();
        epochs.set_aside(&place).unwrap();
        epochs.advance(7, 3).unwrap();
        epochs.set_aside(&place).unwrap();
        assert_eq!((epochs.highest(7), Epochs::open(&path).unwrap().highest(7)), (0, 0));
        assert_eq!(Epochs::open(&place.join("epochs.json")).unwrap().highest(7), 3);
    }

    #[test]
    fn a_damaged_file_is_not_taken_for_an_absent_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("epochs.json");
        fs::write(&path, "{").unwrap();
        assert!(matches!(Epochs::open(&path), Err(Error::Unreadable { .. })));
    }

    #[test]
    fn what_cannot_be_written_has_not_happened() {
        let dir = tempfile::tempdir().unwrap();
        let mut epochs = Epochs::open(&dir.path().join("absent/epochs.json")).unwrap();
        assert!(epochs.advance(1, 1).is_err());
        assert_eq!(epochs.highest(1), 0);
    }
}
