//! Memory that killed workers may have left wired.
//!
//! A process with a large wired set that dies by SIGKILL can leave that memory lost until the next boot (FIELD-NOTES 4). So
//! the kills of a boot are counted on disk, and what is wired while no worker runs is held against the least that ever was in
//! this boot. What is more than that, and whether it counts as lost, the controller judges.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nightshift_proto::v1;
use serde::{Deserialize, Serialize};

use crate::durable;

/// What is on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// Which boot; `None` where the machine does not say, and then all boots are taken for one.
    boot_id: Option<String>,
    /// The least that was wired while no worker ran.
    baseline_wired_bytes: Option<u64>,
    /// Workers that held a model when they were killed.
    kills_while_loaded: u32,
}

#[derive(Debug)]
struct State {
    path: PathBuf,
    record: Record,
    /// Workers that run now.
    running: usize,
}

/// The debts of this boot. Clones are the same.
#[derive(Debug, Clone)]
pub struct MemoryDebt(Arc<Mutex<State>>);

impl MemoryDebt {
    /// Reads the file, if there is one. One that makes no sense says that something was killed: that is the careful way to
    /// read it.
    #[must_use]
    pub fn open(path: &Path, boot_id: Option<&str>) -> Self {
        let found = match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Record::default()),
            Err(error) => Err(error),
        };
        let boot_id = boot_id.map(str::to_owned);
        let unknown = Record { boot_id: boot_id.clone(), kills_while_loaded: 1, ..Record::default() };
        let record = found.unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "what killed workers left cannot be read; one is taken to have been killed");
            unknown
        });
        let record = if record.boot_id == boot_id { record } else { Record { boot_id, ..Record::default() } };
        Self(Arc::new(Mutex::new(State { path: path.to_owned(), record, running: 0 })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Plain numbers: whoever panicked left them whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker starts.
    pub fn note_start(&self) {
        self.state().running += 1;
    }

    /// A worker has ended; `killed_while_loaded`: by SIGKILL, with a model in memory. That is on disk when this returns, or
    /// told in the log.
    pub fn note_end(&self, killed_while_loaded: bool) {
        let mut state = self.state();
        state.running = state.running.saturating_sub(1);
        if killed_while_loaded {
            state.record.kills_while_loaded = state.record.kills_while_loaded.saturating_add(1);
            state.write(true);
        }
    }

    /// Something killed a worker before this agent was there.
    pub fn note_kill(&self) {
        let mut state = self.state();
        state.record.kills_while_loaded = state.record.kills_while_loaded.saturating_add(1);
        state.write(true);
    }

    /// So much is wired now: what follows from that.
    #[must_use]
    pub fn look(&self, wired_bytes: Option<u64>) -> v1::MemoryDebt {
        let mut state = self.state();
        let idle = wired_bytes.filter(|_| state.running == 0);
        if let Some(wired) = idle
            && state.record.baseline_wired_bytes.is_none_or(|baseline| wired < baseline)
        {
            let is_first = state.record.baseline_wired_bytes.is_none();
            state.record.baseline_wired_bytes = Some(wired);
            // A later low is a matter of some megabytes; it goes to disk with the next thing that matters.
            if is_first {
                state.write(false);
            }
        }
        let baseline = state.record.baseline_wired_bytes;
        v1::MemoryDebt {
            baseline_wired_bytes: baseline,
            stranded_bytes: idle.zip(baseline).map(|(wired, baseline)| wired.saturating_sub(baseline)),
            kills_while_loaded: state.record.kills_while_loaded,
        }
    }
}

impl State {
    fn write(&self, durably: bool) {
        let written = serde_json::to_vec(&self.record).map_err(io::Error::other).and_then(|text| {
            if durably {
                durable::replace_file(&self.path, &text)
            } else {
                durable::replace_file_lazily(&self.path, &text)
            }
        });
        if let Err(error) = written {
            tracing::warn!(
                path = %self.path.display(), %error,
                "what killed workers left cannot be written; it is known until this agent ends"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn what_is_wired_beyond_the_least_of_this_boot_is_told_while_nothing_runs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("debt.json");
        let debt = MemoryDebt::open(&path, Some("b1"));
        assert_eq!(debt.look(None), v1::MemoryDebt::default(), "not known");
        assert_eq!(debt.look(Some(4 * GIB)).stranded_bytes, Some(0));
        assert_eq!(debt.look(Some(3 * GIB)).stranded_bytes, Some(0), "a new low");
        debt.note_start();
        assert_eq!(debt.look(Some(90 * GIB)).stranded_bytes, None, "a model of ours");
        debt.note_end(true);
        let seen = debt.look(Some(60 * GIB));
        assert_eq!((seen.stranded_bytes, seen.kills_while_loaded), (Some(57 * GIB), 1));
        assert_eq!(seen.baseline_wired_bytes, Some(3 * GIB));

        let after = MemoryDebt::open(&path, Some("b1"));
        let seen = after.look(Some(60 * GIB));
        assert_eq!((seen.stranded_bytes, seen.kills_while_loaded), (Some(57 * GIB), 1), "an agent's end");
        let rebooted = MemoryDebt::open(&path, Some("b2"));
        let seen = rebooted.look(Some(60 * GIB));
        assert_eq!((seen.stranded_bytes, seen.kills_while_loaded), (Some(0), 0));
    }

    #[test]
    fn a_file_that_makes_no_sense_is_read_with_care() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("debt.json");
        fs::write(&path, "{").unwrap();
        assert_eq!(MemoryDebt::open(&path, None).look(None).kills_while_loaded, 1);
        let nowhere = MemoryDebt::open(&dir.path().join("absent/debt.json"), None);
        nowhere.note_kill();
        assert_eq!(nowhere.look(None).kills_while_loaded, 1);
    }
}
