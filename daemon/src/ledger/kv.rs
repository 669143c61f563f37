//! The key-value store below the ledger, behind a trait: [`SledKv`](super::SledKv) for real,
//! [`sim::SimKv`](super::sim::SimKv) for tests.
//!
//! What the ledger relies on, and nothing more: what was flushed is there after any crash; what was not flushed may
//! vanish, the newest batch first. Of a batch that was not flushed, a part may be there: sled itself does not tear
//! batches, but large ones are cut up for it, and the ledger is tested with stores that tear every one.

use std::{io, ops::ControlFlow, path::PathBuf, sync::Arc};

/// Largest value that may be put, in bytes. sled keeps up to 17 entries in a leaf page and writes a page larger than
/// 128 KiB (a quarter of a segment) to a file of its own that it never syncs: with 6 KiB a page stays below that.
/// Longer things are cut into parts, see `longvalue.rs`.
pub const VALUE_BYTES_MAX: usize = 6 * 1024;

/// Why the store failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// What is on disk is not a store, or no longer one. Trying again does not help.
    #[error("it is broken: {0}")]
    Broken(String),
    /// The operating system refused.
    #[error(transparent)]
    Io(Arc<io::Error>),
}

/// What [`Kv::scan`] calls with each key and value.
pub type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// An ordered key-value store that can be opened, closed and set aside.
pub trait Kv {
    /// Opens it, making an empty one when there is none. Returns what had to be repaired, a sentence each.
    ///
    /// # Errors
    /// [`Error::Broken`] when it should be set aside, [`Error::Io`] when somebody else holds it or the disk refuses.
    fn open(&mut self) -> Result<Vec<String>, Error>;

    /// Closes it. Harmless when it is closed.
    fn close(&mut self);

    /// Moves a store that does not open out of the way and returns its new place. The next `open` makes an empty one.
    ///
    /// # Errors
    /// When it could not be moved.
    fn set_aside(&mut self, unix_s: u64) -> Result<PathBuf, Error>;

    /// The value of a key.
    ///
    /// # Errors
    /// When it could not be read.
    fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, Error>;

    /// Calls `visit` with every key that starts with `prefix`, in ascending order or descending.
    ///
    /// # Errors
    /// When something could not be read.
    fn scan(&mut self, prefix: &[u8], descending: bool, visit: Visit<'_>) -> Result<(), Error>;

    /// Applies a batch, in the order of its writes. Durable after the next `flush`, at the latest.
    ///
    /// # Errors
    /// When it may not have been applied.
    fn apply(&mut self, batch: Batch) -> Result<(), Error>;

    /// Makes everything applied durable.
    ///
    /// # Errors
    /// When that is not certain.
    fn flush(&mut self) -> Result<(), Error>;

    /// Where it is, for messages.
    fn path(&self) -> PathBuf;
}

/// Changes that belong together. Of two for one key the later one counts.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Key and new value; `None` removes.
    pub writes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Batch {
    /// Sets a key.
    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        debug_assert!(value.len() <= VALUE_BYTES_MAX, "a value of {} bytes", value.len());
        self.writes.push((key, Some(value)));
    }

    /// Removes a key.
    pub fn remove(&mut self, key: Vec<u8>) {
        self.writes.push((key, None));
    }

    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }
}
