//! The files of the spool, without threads or time.

use std::{
    collections::{BTreeSet, VecDeque},
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use nightshift_proto::v1::RowResult;
use prost::Message as _;

use super::{
    frame::{self, Found},
    segment::{self, Segment},
    state::State,
};
use crate::durable;

/// A segment is closed at this size: small enough that acknowledged results give their room back soon, large enough
/// that files are few.
pub const DEFAULT_SEGMENT_BYTES: u64 = 8 * 1024 * 1024;

/// A wholly acknowledged segment is given up once it is this large, though results may still be appended to it.
const GIVE_UP_BYTES: u64 = 1024 * 1024;

/// Numbers are reserved on disk in blocks, so that a power cut cannot make one come twice. Larger than what can be
/// appended between two syncs; what is left of a block is skipped after such a cut.
const RESERVE: u64 = 1 << 20;

/// Why the spool cannot do something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bound is reached: wait for an acknowledgement.
    #[error("the spool holds {bytes} bytes of unacknowledged results and may hold {max_bytes}")]
    Full {
        /// Held now.
        bytes: u64,
        /// The bound.
        max_bytes: u64,
    },
    /// The file system says no.
    #[error("cannot {doing} the spool in {}", dir.display())]
    Io {
        /// Doing what.
        doing: &'static str,
        /// The spool's directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// How to open a spool.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its directory; made if needed.
    pub dir: PathBuf,
    /// Bound of all segments together.
    pub max_bytes: u64,
    /// See [`DEFAULT_SEGMENT_BYTES`].
    pub segment_bytes: u64,
    /// This boot, where known: in another one, results that were not synced may be missing.
    pub boot_id: Option<String>,
}

/// A place among the results, to read on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cursor {
    /// Results below this number are not wanted.
    pub next_seq: u64,
    segment: u64,
    offset: u64,
}

impl Cursor {
    /// Behind this number.
    #[must_use]
    pub fn after(seq: u64) -> Self {
        Self { next_seq: seq.saturating_add(1), ..Self::default() }
    }
}

/// See the module of [`super`].
#[derive(Debug)]
pub struct Store {
    options: Options,
    /// Never empty; the last one is written to.
    segments: VecDeque<Segment>,
    active: File,
    next_seq: u64,
    state: State,
    acked: u64,
    /// Segments with bytes that were not synced.
    unsynced: BTreeSet<u64>,
}

impl Store {
    /// Opens the spool: cuts off a torn end, reports damage, and takes the numbers up where they stopped.
    ///
    /// # Errors
    /// When its files cannot be read or written.
    pub fn open(mut options: Options) -> Result<Self, Error> {
        // Room comes back a segment at a time: one must not be most of it.
        options.segment_bytes = options.segment_bytes.min(options.max_bytes / 8);
        let dir = options.dir.clone();
        let failed = |doing| move |source| Error::Io { doing, dir: dir.clone(), source };
        fs::create_dir_all(&options.dir).map_err(failed.clone()("make"))?;
        let firsts = segment::numbers(&options.dir).map_err(failed.clone()("list"))?;
        let mut segments = VecDeque::new();
        for (n, first) in firsts.iter().enumerate() {
            let last = n + 1 == firsts.len();
            segments.push_back(segment::scan(&options.dir, *first, last).map_err(failed.clone()("read"))?);
        }

        let found = State::read(&options.dir);
        let before = found.clone().unwrap_or_default();
        let mut next_seq = segments.back().map_or(1, |segment: &Segment| segment.last + 1);
        let same_boot = options.boot_id.is_some() && before.boot_id == options.boot_id;
        if found.is_some() && !before.clean && !same_boot && before.reserved >= next_seq {
            // What was not synced is gone, and its numbers with it: the controller has seen some of them.
            tracing::info!(
                next_seq,
                skipped_to = before.reserved + 1,
                "the machine was not shut down in order"
            );
            next_seq = before.reserved + 1;
        }
        next_seq = next_seq.max(before.acked + 1);
        let keep = segments.back().is_some_and(|segment| segment.last + 1 == next_seq);
        if !keep {
            segments.push_back(Segment::empty(next_seq));
        }
        let active = segment::open(&options.dir, segments.back().map_or(next_seq, |segment| segment.first))
            .map_err(failed.clone()("open"))?;
        let oldest = segments.front().map_or(next_seq, |segment| segment.first);
        let mut store = Self {
            acked: before.acked.max(oldest.saturating_sub(1)).min(next_seq - 1),
            state: before,
            options,
            segments,
            active,
            next_seq,
            unsynced: BTreeSet::new(),
        };
        store.drop_acknowledged()?;
        store.write_state(false)?;
        Ok(store)
    }

    /// The highest number given out; 0 before the first.
    #[must_use]
    pub fn last_seq(&self) -> u64 {
        self.next_seq - 1
    }

    /// Everything up to here is acknowledged.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// How many results wait; an estimate where a segment was damaged.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        let waiting = |segment: &Segment| {
            let acknowledged = (self.acked + 1).saturating_sub(segment.first);
            segment.records.saturating_sub(acknowledged)
        };
        self.segments.iter().map(waiting).sum()
    }

    /// Bytes of all segments.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.len).sum()
    }

    /// Whether something was appended since the last [`Self::sync`].
    #[must_use]
    pub fn is_unsynced(&self) -> bool {
        !self.unsynced.is_empty()
    }

    /// Whether the acknowledged position on disk is behind.
    #[must_use]
    pub fn is_ack_unsaved(&self) -> bool {
        self.state.acked != self.acked
    }

    /// Numbers the results and appends them, all or none.
    ///
    /// # Errors
    /// [`Error::Full`] when there is no room; the file system's error otherwise. Nothing was appended then.
    pub fn append(&mut self, results: &mut [RowResult]) -> Result<(), Error> {
        let mut bytes = Vec::new();
        for (seq, result) in (self.next_seq..).zip(results.iter_mut()) {
            result.spool_seq = seq;
            frame::put(&result.encode_to_vec(), &mut bytes);
        }
        let (len, count) = (bytes.len() as u64, results.len() as u64);
        if self.waiting() == 0 {
            self.start_afresh()?;
        }
        // With nothing waiting there is always room, or a large result could never be sent at all.
        if self.waiting() > 0 && self.bytes() + len > self.options.max_bytes {
            return Err(Error::Full { bytes: self.bytes(), max_bytes: self.options.max_bytes });
        }
        if self.next_seq + count > self.state.reserved {
            self.write_state(false)?;
        }
        if self.last_segment().len >= self.options.segment_bytes {
            self.roll()?;
        }
        if let Err(source) = self.active.write_all(&bytes) {
            // Part of it may be there: an end that is no record would be damage for the next append.
            let whole = self.last_segment().len;
            if let Err(error) = self.active.set_len(whole) {
                tracing::error!(%error, "a half-written result cannot be cut off; it will be skipped");
            }
            return Err(self.error("append to")(source));
        }
        self.next_seq += count;
        let last = self.next_seq - 1;
        let segment = self.last_segment();
        segment.len += len;
        segment.records += count;
        segment.last = last;
        let first = segment.first;
        self.unsynced.insert(first);
        Ok(())
    }

    /// Everything up to `through` is durable elsewhere. A number not given out yet counts as the last one that was.
    ///
    /// # Errors
    /// When a segment cannot be removed or a new one not be made; the acknowledgement counts all the same.
    pub fn ack(&mut self, through: u64) -> Result<(), Error> {
        self.acked = self.acked.max(through.min(self.last_seq()));
        if self.waiting() == 0 && self.last_segment().len >= GIVE_UP_BYTES {
            self.roll()?;
        }
        self.drop_acknowledged()
    }

    /// Results from `cursor` on, at least one if there is one, and otherwise within the limits; and where to go on.
    ///
    /// # Errors
    /// When a segment cannot be read.
    pub fn read(
        &self,
        cursor: Cursor,
        max_results: usize,
        max_bytes: usize,
    ) -> Result<(Vec<RowResult>, Cursor), Error> {
        let mut at = cursor;
        let wanted = cursor.next_seq.max(self.acked + 1);
        let mut index = match self.segments.iter().position(|segment| segment.first == at.segment) {
            Some(index) => index,
            None => {
                at.offset = 0;
                self.segments.iter().rposition(|segment| segment.first <= wanted).unwrap_or(0)
            }
        };
        let (mut results, mut bytes) = (Vec::new(), 0);
        while let Some(segment) = self.segments.get(index) {
            at.segment = segment.first;
            let file =
                File::open(segment::path(&self.options.dir, segment.first)).map_err(self.error("read"))?;
            while at.offset < segment.len {
                let chunk = segment::read_chunk(&file, at.offset, segment.len).map_err(self.error("read"))?;
                let mut within = 0;
                while within < chunk.len() {
                    let payload = match frame::get(&chunk[within..]) {
                        Found::Record(payload) => chunk.slice_ref(payload),
                        Found::Short if within > 0 => break,
                        // Said when the spool was opened.
                        Found::Short | Found::Damaged => {
                            within = frame::find(&chunk, within + 1).unwrap_or(chunk.len());
                            continue;
                        }
                    };
                    let size = payload.len();
                    let result = RowResult::decode(payload).ok().filter(|result| result.spool_seq >= wanted);
                    if let Some(result) = result {
                        if results.len() == max_results || (bytes + size > max_bytes && !results.is_empty()) {
                            at.offset += within as u64;
                            return Ok((results, at));
                        }
                        bytes += size;
                        at.next_seq = result.spool_seq + 1;
                        results.push(result);
                    }
                    within += frame::HEADER_BYTES + size;
                }
                at.offset += within as u64;
            }
            if index + 1 == self.segments.len() {
                break;
            }
            (index, at.offset) = (index + 1, 0);
        }
        at.next_seq = at.next_seq.max(self.next_seq);
        Ok((results, at))
    }

    /// Waits for the disk to have everything appended.
    ///
    /// # Errors
    /// When the disk says no; what was not synced stays noted as such.
    pub fn sync(&mut self) -> Result<(), Error> {
        for first in self.unsynced.clone() {
            if first == self.last_segment().first {
                self.active.sync_data().map_err(self.error("sync"))?;
            } else if self.segments.iter().any(|segment| segment.first == first) {
                let file = File::open(segment::path(&self.options.dir, first)).map_err(self.error("sync"))?;
                file.sync_data().map_err(self.error("sync"))?;
            }
        }
        durable::sync_parent(&segment::path(&self.options.dir, 0)).map_err(self.error("sync"))?;
        self.unsynced.clear();
        Ok(())
    }

    /// Saves the acknowledged position.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save_ack(&mut self) -> Result<(), Error> {
        self.write_state(false)
    }

    /// Begins anew for another ledger: the spool goes into `place`, whole, if anything waits in it. Numbers go on.
    ///
    /// # Errors
    /// When it cannot be moved; nothing has changed then.
    pub fn set_aside(&mut self, place: &Path) -> Result<(), Error> {
        self.sync()?;
        let dir = &self.options.dir;
        let moved = if self.waiting() > 0 {
            fs::rename(dir, place.join("spool")).and_then(|()| durable::sync_parent(dir))
        } else {
            fs::remove_dir_all(dir)
        };
        moved.map_err(self.error("set aside"))?;
        fs::create_dir_all(dir).map_err(self.error("make"))?;
        self.acked = self.last_seq();
        self.write_state(true)?;
        *self = Self::open(self.options.clone())?;
        Ok(())
    }

    /// Ends in order: nothing is lost then, whatever happens to the machine.
    ///
    /// # Errors
    /// When the disk says no.
    pub fn close(mut self) -> Result<(), Error> {
        self.sync()?;
        self.write_state(true)
    }

    fn write_state(&mut self, clean: bool) -> Result<(), Error> {
        let state = State {
            acked: self.acked,
            reserved: if self.next_seq + RESERVE / 2 > self.state.reserved {
                self.next_seq + RESERVE
            } else {
                self.state.reserved
            },
            boot_id: self.options.boot_id.clone(),
            clean,
        };
        state.write(&self.options.dir).map_err(self.error("write the state of"))?;
        self.state = state;
        Ok(())
    }

    /// With nothing waiting, a segment of acknowledged results is not appended to for ever.
    fn start_afresh(&mut self) -> Result<(), Error> {
        if self.last_segment().len < GIVE_UP_BYTES.min(self.options.segment_bytes) {
            return Ok(());
        }
        self.roll()?;
        self.drop_acknowledged()
    }

    fn roll(&mut self) -> Result<(), Error> {
        let first = self.next_seq;
        if self.last_segment().first == first {
            return Ok(());
        }
        self.active = segment::open(&self.options.dir, first).map_err(self.error("extend"))?;
        self.segments.push_back(Segment::empty(first));
        Ok(())
    }

    fn drop_acknowledged(&mut self) -> Result<(), Error> {
        while self.segments.len() > 1 {
            let Some(oldest) = self.segments.front().filter(|segment| segment.last <= self.acked) else {
                break;
            };
            match fs::remove_file(segment::path(&self.options.dir, oldest.first)) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(self.error("remove acknowledged results of")(source));
                }
                _ => {}
            }
            self.unsynced.remove(&oldest.first);
            self.segments.pop_front();
        }
        Ok(())
    }

    fn last_segment(&mut self) -> &mut Segment {
        if self.segments.is_empty() {
            let first = self.next_seq;
            self.segments.push_back(Segment::empty(first));
        }
        let last = self.segments.len() - 1;
        &mut self.segments[last]
    }

    fn error(&self, doing: &'static str) -> impl Fn(io::Error) -> Error + use<> {
        let dir = self.options.dir.clone();
        move |source| Error::Io { doing, dir: dir.clone(), source }
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
