//! Which worker had which process id, of those that ran lately: what the system says of a process it may say after its end.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use super::Key;

/// Workers remembered: a night of restarts at the bound of starts an hour, and numbers do not come again that soon.
const MOST_REMEMBERED: usize = 256;

/// The newest workers by process id. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Pids(Arc<Mutex<VecDeque<(u32, Key)>>>);

impl Pids {
    /// A worker has been started.
    pub fn note(&self, pid: u32, key: Key) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() == MOST_REMEMBERED {
            known.pop_front();
        }
        known.push_back((pid, key));
    }

    /// The newest worker that had this number.
    #[must_use]
    pub fn worker(&self, pid: u32) -> Option<Key> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().rev().find(|(of, _)| *of == pid).map(|(_, key)| *key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_a_number_counts_and_the_oldest_are_forgotten() {
        let key = |epoch| Key { job_id: 1, epoch, rank: 0 };
        let pids = Pids::default();
        pids.note(7, key(1));
        pids.note(7, key(2));
        assert_eq!((pids.worker(7), pids.worker(8)), (Some(key(2)), None));
        for pid in 1_000..=1_255 {
            pids.note(pid, key(3));
        }
        assert_eq!((pids.worker(7), pids.worker(1_000)), (None, Some(key(3))));
    }
}
