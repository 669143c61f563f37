//! The store in sled 0.34, with what must be known about it.
//!
//! - Applied writes are lost by a crash unless flushed; a flush takes about 2 ms on an SSD.
//! - On Linux sled's flush ends in `sync_file_range`, which commits neither the length of a file that grew nor the
//!   drive's cache: after a power cut the flushed bytes may be gone. So the log file is synced here once more. On macOS
//!   sled's flush is `sync_all`, thus `F_FULLFSYNC`, and that is enough.
//! - `flush_every_ms(None)`: the ledger flushes when it must and knows when. sled's background thread would also rewrite
//!   half-empty segments; segments that are wholly empty are used again without it, and with the ledger's pattern
//!   (checkpoints rewritten and removed) the file grows no faster without the thread than with it (measured, 768 MB of
//!   checkpoint writes: 27 and 29 MB with small segments).
//! - `Mode` is read by nothing in 0.34.7: the default stays.
//! - `snap.*.generating` left by a crash makes `open` answer Corruption although nothing is lost: removed before open
//!   (FIELD-NOTES 8).
//! - **sled can lock up for good.** When segments at the end of its file fall free it shrinks the file on its thread
//!   pool, and whoever lets the file grow again waits for that — holding a lock that every writing task of the same
//!   pool needs. With all seven threads waiting for the lock, the shrinking never gets one. (Seen here within a minute of
//!   checkpoints being put and removed; the pool does not grow, its count of idle threads wraps below zero.) The file
//!   grows only when a segment is full and none is free, and at the moment of shrinking one is free: so there is a full
//!   segment between the two. The pool's queue is first in, first out. Hence: *if a flush completes between any two
//!   changes of segment, the shrinking has begun before anybody waits for it*, and it needs no lock to end. That is why
//!   large batches are cut up, why there is a flush at least every [`WRITES_PER_FLUSH`] writes, and why segments are
//!   large. It holds because one thread alone writes, and because the background thread is off.
//! - sled panics in places where it cannot go on. Every call is guarded: a panic is reported as a broken store.

use std::{
    fs,
    io::{self, ErrorKind},
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use super::{
    fsync,
    kv::{Batch, Error, Kv, Visit},
};

/// Broken stores kept beside the ledger; the oldest goes when there are more. They are evidence, not data, and a disk
/// that breaks one every night must not fill up with them.
const SET_ASIDE_MAX: usize = 5;

/// Bytes of a segment. Larger ones cost memory (a buffer of this size, two for a moment) and time at open (the rest of
/// the last one is written over); a page of at most 17 values must be far below a quarter of one, or it goes to a file
/// of its own. A store made with another size does not open: it is then made again from the jobs' directories.
const SEGMENT_BYTES: usize = 8 << 20;

/// Writes between two flushes at most. A write appends its value, now and then the whole page (17 values of
/// [`VALUE_BYTES_MAX`](super::kv::VALUE_BYTES_MAX)), and at worst splits or merges pages besides: under 256 KiB, so that
/// together they stay below a segment. Typically it is 11 kB.
const WRITES_PER_FLUSH: usize = SEGMENT_BYTES / (256 * 1024);

/// A second in all: the writes that hold the lock after a close are done in milliseconds.
const LOCK_TRIES: u32 = 40;

/// Between two tries for sled's lock.
const LOCK_WAIT: Duration = Duration::from_millis(25);

/// The prefix of the names of stores set aside: `ledger.broken-<unix seconds>`.
const SET_ASIDE_PREFIX: &str = "ledger.broken-";

/// A sled database in the directory `ledger` of the state directory.
#[derive(Debug)]
pub struct SledKv {
    state_dir: PathBuf,
    cache_bytes: u64,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    db: sled::Db,
    /// Writes since the last flush.
    writes: usize,
    /// The log file, to be synced: see the module's notes.
    #[cfg(target_os = "linux")]
    log: fs::File,
}

impl SledKv {
    /// The store of a state directory, not yet opened.
    #[must_use]
    pub fn new(state_dir: &Path, cache_bytes: u64) -> Self {
        Self { state_dir: state_dir.to_owned(), cache_bytes, open: None }
    }

    fn opened(&mut self) -> Result<&mut Open, Error> {
        self.open.as_mut().ok_or_else(|| Error::Io(Arc::new(ErrorKind::NotConnected.into())))
    }
}

impl Open {
    fn flush(&mut self) -> Result<(), Error> {
        guarded(|| self.db.flush())?;
        self.writes = 0;
        Ok(())
    }
}

impl Kv for SledKv {
    fn open(&mut self) -> Result<Vec<String>, Error> {
        self.close();
        let path = self.path();
        let repairs = remove_unfinished_snapshots(&path).map_err(io_error)?;
        fs::create_dir_all(&path).map_err(io_error)?;
        let config = sled::Config::new()
            .path(&path)
            .cache_capacity(self.cache_bytes)
            .flush_every_ms(None)
            .segment_size(SEGMENT_BYTES);
        let db = open_locked(&config)?;
        // What is read from now on counts as durable. After a kill it may have been in the page cache only.
        let log = fs::File::open(path.join("db")).map_err(io_error)?;
        fsync::sync_file(&log).map_err(io_error)?;
        // The names of the files sled made are not durable before their directories are.
        fsync::sync_directory(&path)
            .and_then(|()| fsync::sync_directory(&self.state_dir))
            .map_err(io_error)?;
        self.open = Some(Open {
            db,
            // What opening wrote is not known: the first write flushes it.
            writes: WRITES_PER_FLUSH,
            #[cfg(target_os = "linux")]
            log,
        });
        Ok(repairs)
    }

    fn close(&mut self) {
        if let Some(open) = self.open.take() {
            // Dropping flushes, and panics when that fails; what mattered was flushed before.
            let _ = catch_unwind(AssertUnwindSafe(move || drop(open)));
        }
    }

    fn set_aside(&mut self, unix_s: u64) -> Result<PathBuf, Error> {
        self.close();
        let target = (0..)
            .map(|n| match n {
                0 => format!("{SET_ASIDE_PREFIX}{unix_s}"),
                n => format!("{SET_ASIDE_PREFIX}{unix_s}-{n}"),
            })
            .map(|name| self.state_dir.join(name))
            .find(|path| !path.exists())
            .unwrap_or_default();
        fs::rename(self.path(), &target)
            .and_then(|()| fsync::sync_directory(&self.state_dir))
            .map_err(io_error)?;
        remove_oldest_set_aside(&self.state_dir);
        Ok(target)
    }

    fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let db = &self.opened()?.db;
        guarded(|| db.get(key)).map(|value| value.map(|v| v.to_vec()))
    }

    fn scan(&mut self, prefix: &[u8], descending: bool, visit: Visit<'_>) -> Result<(), Error> {
        let db = &self.opened()?.db;
        guarded(|| {
            let mut entries = db.scan_prefix(prefix);
            while let Some(entry) = if descending { entries.next_back() } else { entries.next() } {
                let (key, value) = entry?;
                if let ControlFlow::Break(()) = visit(&key, &value) {
                    break;
                }
            }
            Ok(())
        })
    }

    fn apply(&mut self, batch: Batch) -> Result<(), Error> {
        let open = self.opened()?;
        let mut left = batch.writes.into_iter().peekable();
        while left.peek().is_some() {
            let mut writes = sled::Batch::default();
            let mut count = 0;
            for (key, value) in left.by_ref().take(WRITES_PER_FLUSH) {
                count += 1;
                match value {
                    Some(value) => writes.insert(key, value),
                    None => writes.remove(key),
                }
            }
            if open.writes + count > WRITES_PER_FLUSH {
                open.flush()?;
            }
            open.writes += count;
            guarded(|| open.db.apply_batch(writes))?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        let open = self.opened()?;
        open.flush()?;
        #[cfg(target_os = "linux")]
        fsync::sync_file(&open.log).map_err(io_error)?;
        Ok(())
    }

    fn path(&self) -> PathBuf {
        self.state_dir.join("ledger")
    }
}

impl Drop for SledKv {
    fn drop(&mut self) {
        self.close();
    }
}

/// Opens sled, waiting a little for its lock: after a close, threads of its pool may hold the file a moment longer.
/// That another controller uses the directory is found out before, by the lock on the state directory.
fn open_locked(config: &sled::Config) -> Result<sled::Db, Error> {
    let mut tries_left = LOCK_TRIES;
    loop {
        match guarded(|| config.open()) {
            Err(Error::Io(error))
                if error.to_string().contains("could not acquire lock") && tries_left > 0 =>
            {
                tries_left -= 1;
                thread::sleep(LOCK_WAIT);
            }
            outcome => return outcome,
        }
    }
}

fn io_error(error: io::Error) -> Error {
    Error::Io(Arc::new(error))
}

/// Runs a call into sled, with its errors sorted and its panics caught.
fn guarded<T>(call: impl FnOnce() -> sled::Result<T>) -> Result<T, Error> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(outcome) => outcome.map_err(sorted),
        Err(panic) => {
            let message = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            Err(Error::Broken(format!("sled panicked: {message}")))
        }
    }
}

fn sorted(error: sled::Error) -> Error {
    match error {
        // A log that ends too early reads past its end; everything else of the operating system may pass.
        sled::Error::Io(error)
            if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::InvalidData) =>
        {
            Error::Broken(error.to_string())
        }
        sled::Error::Io(error) => Error::Io(Arc::new(error)),
        sled::Error::Corruption { .. } => Error::Broken("its files are corrupted".into()),
        other => Error::Broken(other.to_string()),
    }
}

fn remove_unfinished_snapshots(path: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut repairs = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            fs::remove_file(entry.path())?;
            repairs.push(format!(
                "the ledger held {name}, an unfinished snapshot left by a crash: removed, nothing is lost by it"
            ));
        }
    }
    Ok(repairs)
}

/// Best effort: what cannot be removed now is tried again the next time.
fn remove_oldest_set_aside(state_dir: &Path) {
    let Ok(entries) = fs::read_dir(state_dir) else { return };
    let mut broken: Vec<_> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(SET_ASIDE_PREFIX))
        .collect();
    broken.sort_unstable();
    for name in broken.iter().rev().skip(SET_ASIDE_MAX) {
        if let Err(error) = fs::remove_dir_all(state_dir.join(name)) {
            tracing::warn!(%name, %error, "an old broken ledger could not be removed");
        }
    }
}
