//! The simulated machine.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::errno::Errno;

use super::files::{Content, Entry, Names};
use crate::ledger::kv::Batch;

/// When, in a step, the crash comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    /// Nothing of the step happened.
    Before,
    /// A part of it.
    Midway,
    /// All of it, and nobody was told.
    After,
}

/// How the process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Death {
    /// It was killed; the machine went on.
    Kill,
    /// The machine lost power.
    PowerCut,
}

/// A simulated machine's disk. Clones are the same machine.
#[derive(Clone, Debug)]
pub struct World(Arc<Mutex<State>>);

#[derive(Debug)]
pub(super) struct State {
    pub(super) dice: Dice,
    steps: u64,
    crash: Option<(u64, Moment)>,
    has_crashed: bool,
    fail: Option<(u64, Errno)>,
    /// The next write of a file fails with this.
    pub(super) write_error: Option<Errno>,
    /// The next write of the store fails.
    pub(super) store_error: bool,
    capacity_bytes: Option<u64>,
    pub(super) contents: Vec<Content>,
    pub(super) names: Names,
    pub(super) store: Store,
}

/// The store, now and for certain.
#[derive(Clone, Debug, Default)]
pub(super) struct Store {
    pub(super) now: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) durable: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) waiting: Vec<Batch>,
    pub(super) is_open: bool,
    pub(super) is_broken: bool,
    pub(super) tears_batches: bool,
    pub(super) set_aside: u32,
}

impl Store {
    /// Makes the oldest waiting batches durable.
    pub(super) fn settle(&mut self, batches: usize) {
        for batch in self.waiting.drain(..batches) {
            apply(&mut self.durable, batch);
        }
    }

    fn die(&mut self, dice: &mut Dice) {
        self.settle(dice.below(self.waiting.len() as u64 + 1) as usize);
        if self.tears_batches
            && let Some(next) = self.waiting.first().cloned()
        {
            let writes = next.writes.into_iter().filter(|_| dice.below(2) == 0).collect();
            apply(&mut self.durable, Batch { writes });
        }
        self.waiting.clear();
        self.now.clone_from(&self.durable);
        self.is_open = false;
    }
}

pub(super) fn apply(store: &mut BTreeMap<Vec<u8>, Vec<u8>>, batch: Batch) {
    for (key, value) in batch.writes {
        match value {
            Some(value) => store.insert(key, value),
            None => store.remove(&key),
        };
    }
}

impl World {
    /// An empty machine.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            dice: Dice(seed),
            steps: 0,
            crash: None,
            has_crashed: false,
            fail: None,
            write_error: None,
            store_error: false,
            capacity_bytes: None,
            contents: Vec::new(),
            names: Names::default(),
            store: Store::default(),
        })))
    }

    /// How many steps there were.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.state().steps
    }

    /// The step of this number fails, and everything after it. The first step is number 1.
    pub fn crash_at(&self, step: u64, moment: Moment) {
        self.state().crash = Some((step, moment));
    }

    /// Whether the crash came.
    #[must_use]
    pub fn has_crashed(&self) -> bool {
        self.state().has_crashed
    }

    /// The machine is there again, with what is left.
    pub fn restart(&self, death: Death) {
        let mut state = self.state();
        let State { dice, contents, names, store, .. } = &mut *state;
        // A kill leaves files and names as they are — and as uncertain as they are, should the power go later.
        if death == Death::PowerCut {
            contents.iter_mut().for_each(|content| content.lose_power(dice));
            names.lose_power(dice);
        }
        store.die(dice);
        (state.crash, state.has_crashed) = (None, false);
    }

    /// The step of this number fails with this error and changes nothing; the machine goes on. A step of the store closes
    /// the store.
    pub fn fail_at(&self, step: u64, errno: Errno) {
        self.state().fail = Some((step, errno));
    }

    /// The disk takes so many bytes of files; `None`: any number.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity_bytes = bytes;
    }

    /// The next write to a file fails half-way with this error.
    pub fn fail_next_write(&self, errno: Errno) {
        self.state().write_error = Some(errno);
    }

    /// The next change of the store fails, and the store until it is opened again.
    pub fn fail_next_store_write(&self) {
        self.state().store_error = true;
    }

    /// No fault that was ordered and has not come will come.
    pub fn clear_faults(&self) {
        let mut state = self.state();
        (state.fail, state.write_error, state.store_error, state.capacity_bytes) = (None, None, false, None);
    }

    /// The store does not open any more.
    pub fn break_store(&self) {
        self.state().store.is_broken = true;
    }

    /// The store is gone.
    pub fn delete_store(&self) {
        let mut state = self.state();
        state.store = Store { tears_batches: state.store.tears_batches, ..Store::default() };
    }

    /// A crash may leave a part of a batch, which sled promises it does not.
    pub fn tear_batches(&self) {
        self.state().store.tears_batches = true;
    }

    /// What the store has for certain, to be put back later with [`put_store`](Self::put_store): a store that lost its
    /// end.
    #[must_use]
    pub fn copy_store(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        self.state().store.durable.clone()
    }

    /// Puts back a copy of the store.
    pub fn put_store(&self, copy: BTreeMap<Vec<u8>, Vec<u8>>) {
        let mut state = self.state();
        state.store = Store {
            now: copy.clone(),
            durable: copy,
            tears_batches: state.store.tears_batches,
            ..Store::default()
        };
    }

    /// How often the store was set aside.
    #[must_use]
    pub fn stores_set_aside(&self) -> u32 {
        self.state().store.set_aside
    }

    /// A file's bytes as they are now.
    #[must_use]
    pub fn read(&self, path: &str) -> Option<Vec<u8>> {
        let state = self.state();
        match state.names.get(path)? {
            Entry::File(index) => Some(state.contents[index].now.clone()),
            Entry::Directory => None,
        }
    }

    /// Puts a file there, durable, by no step: what somebody else did.
    ///
    /// # Errors
    /// When its directory is not there.
    pub fn put(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let index = state.contents.len();
        let mut content = Content::default();
        content.write(0, bytes);
        content.sync();
        state.contents.push(content);
        state.names.add(path, Entry::File(index))?;
        state.names.survive();
        Ok(())
    }

    /// Removes a file or directory, durable, by no step.
    pub fn remove(&self, path: &str) {
        let mut state = self.state();
        state.names.remove(path, usize::MAX);
        state.names.survive();
    }

    /// Names in a directory.
    #[must_use]
    pub fn list(&self, directory: &str) -> Vec<String> {
        self.state().names.children(directory).unwrap_or_default()
    }

    /// A submission that passed, as it waits in `jobs/` under `name`: so many rows, `row-0`, `row-1`, ….
    ///
    /// # Errors
    /// When the name is taken.
    pub fn stage(&self, name: &str, rows_total: u32) -> io::Result<()> {
        let mut index = crate::ledger::IndexWriter::begin(Vec::new())?;
        let mut input = String::new();
        for row in 0..rows_total {
            index.push(input.len() as u64)?;
            input.push_str(&format!(
                "{{\"custom_id\":\"row-{row}\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":{{\"prompt\":\"p\"}}}}\n"
            ));
        }
        index.push(input.len() as u64)?;
        let directory = format!("jobs/{name}");
        {
            let mut state = self.state();
            state.names.add(&directory, Entry::Directory)?;
        }
        self.put(&format!("{directory}/input.jsonl"), input.as_bytes())?;
        self.put(&format!("{directory}/input.idx"), &index.finish()?)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What happens in a step.
pub(super) enum Step {
    /// All of it; with `true`, and then the crash.
    Whole(bool),
    /// A part of it, then the crash.
    Part,
}

impl State {
    /// A step begins.
    pub(super) fn step(&mut self) -> io::Result<Step> {
        if self.has_crashed {
            return Err(crashed());
        }
        self.steps += 1;
        if let Some((_, errno)) = self.fail.take_if(|(step, _)| *step == self.steps) {
            return Err(errno.into());
        }
        match self.crash {
            Some((step, moment)) if step == self.steps => {
                self.has_crashed = true;
                match moment {
                    Moment::Before => Err(crashed()),
                    Moment::Midway => Ok(Step::Part),
                    Moment::After => Ok(Step::Whole(true)),
                }
            }
            _ => Ok(Step::Whole(false)),
        }
    }

    pub(super) fn has_crashed(&self) -> bool {
        self.has_crashed
    }

    pub(super) fn check_alive(&self) -> io::Result<()> {
        if self.has_crashed { Err(crashed()) } else { Ok(()) }
    }

    pub(super) fn free_bytes(&self) -> u64 {
        let used: u64 = self.contents.iter().map(|content| content.now.len() as u64).sum();
        self.capacity_bytes.map_or(u64::MAX / 2, |capacity| capacity.saturating_sub(used))
    }
}

pub(super) fn crashed() -> io::Error {
    io::Error::other("the simulated machine crashed")
}

/// Random numbers: splitmix64, whose every seed is good.
#[derive(Clone, Debug)]
pub(super) struct Dice(u64);

impl Dice {
    /// A number below `bound`, which is not 0.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}
