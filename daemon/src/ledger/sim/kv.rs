//! The simulated store.

use std::{io, ops::ControlFlow, path::PathBuf, sync::Arc};

use super::world::{State, Step, World, apply, crashed};
use crate::ledger::{Batch, Kv, KvError, VALUE_BYTES_MAX, Visit};

/// The store of a [`World`].
#[derive(Clone, Debug)]
pub struct SimKv(World);

impl SimKv {
    /// The store of a world.
    #[must_use]
    pub fn new(world: &World) -> Self {
        Self(world.clone())
    }
}

fn failed(error: io::Error) -> KvError {
    KvError::Io(Arc::new(error))
}

impl State {
    fn check_open(&self) -> Result<(), KvError> {
        self.check_alive().map_err(failed)?;
        if self.store.is_open { Ok(()) } else { Err(failed(io::ErrorKind::NotConnected.into())) }
    }

    /// A step of the store. One that was told to fail closes it: sled does not go on after an error either.
    fn store_step(&mut self) -> Result<Step, KvError> {
        self.check_open()?;
        let ordered = if std::mem::take(&mut self.store_error) {
            Err(io::Error::other("the simulated store failed"))
        } else {
            self.step()
        };
        if ordered.is_err() && !self.has_crashed() {
            let kept = self.dice.below(self.store.waiting.len() as u64 + 1) as usize;
            self.store.settle(kept);
            self.store.waiting.clear();
            self.store.now = self.store.durable.clone();
            self.store.is_open = false;
        }
        ordered.map_err(failed)
    }
}

impl Kv for SimKv {
    fn open(&mut self) -> Result<Vec<String>, KvError> {
        let mut state = self.0.state();
        state.check_alive().map_err(failed)?;
        if state.store.is_broken {
            return Err(KvError::Broken("the simulated store is broken".into()));
        }
        state.store.is_open = true;
        Ok(Vec::new())
    }

    fn close(&mut self) {
        let mut state = self.0.state();
        if state.check_open().is_ok() {
            let all = state.store.waiting.len();
            state.store.settle(all);
        }
        state.store.is_open = false;
    }

    fn set_aside(&mut self, _unix_s: u64) -> Result<PathBuf, KvError> {
        let mut state = self.0.state();
        let then_crash = match state.step().map_err(failed)? {
            Step::Whole(then_crash) => then_crash,
            Step::Part => true,
        };
        let (tears_batches, set_aside) = (state.store.tears_batches, state.store.set_aside + 1);
        state.store = super::world::Store { tears_batches, set_aside, ..Default::default() };
        if then_crash { Err(failed(crashed())) } else { Ok(PathBuf::from("/simulated/ledger.broken-1")) }
    }

    fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        let state = self.0.state();
        state.check_open()?;
        Ok(state.store.now.get(key).cloned())
    }

    fn scan(&mut self, prefix: &[u8], descending: bool, visit: Visit<'_>) -> Result<(), KvError> {
        let state = self.0.state();
        state.check_open()?;
        let mut entries = state
            .store
            .now
            .range(prefix.to_vec()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .collect::<Vec<_>>();
        if descending {
            entries.reverse();
        }
        for (key, value) in entries {
            if let ControlFlow::Break(()) = visit(key, value) {
                break;
            }
        }
        Ok(())
    }

    fn apply(&mut self, batch: Batch) -> Result<(), KvError> {
        assert!(
            batch
                .writes
                .iter()
                .all(|(_, value)| value.as_ref().is_none_or(|value| value.len() <= VALUE_BYTES_MAX)),
            "a value too long for the store"
        );
        let mut state = self.0.state();
        let outcome = match state.store_step()? {
            Step::Whole(false) => Ok(()),
            Step::Whole(true) | Step::Part => Err(failed(crashed())),
        };
        apply(&mut state.store.now, batch.clone());
        state.store.waiting.push(batch);
        outcome
    }

    fn flush(&mut self) -> Result<(), KvError> {
        let mut state = self.0.state();
        let step = state.store_step()?;
        let all = state.store.waiting.len();
        let (settled, outcome) = match step {
            Step::Whole(false) => (all, Ok(())),
            Step::Whole(true) => (all, Err(failed(crashed()))),
            Step::Part => (state.dice.below(all as u64 + 1) as usize, Err(failed(crashed()))),
        };
        state.store.settle(settled);
        outcome
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/simulated/ledger")
    }
}
