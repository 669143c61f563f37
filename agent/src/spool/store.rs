//! The files of the spool, without threads or time.

use std::{
    collections::{BTreeSet, VecDeque},
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use nightshift_proto::v1::RowResult;
use prost::Message as _;

use super::{
    frame::{self, Found},
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

/// Read from a segment at once.
const READ_BYTES: u64 = 256 * 1024;

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

#[derive(Debug)]
struct Segment {
    /// The number its name says: that of its first record, or of the first to come.
    first: u64,
    /// The number of its last record; `first - 1` while it has none.
    last: u64,
    records: u64,
    len: u64,
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
    pub fn open(options: Options) -> Result<Self, Error> {
        let dir = options.dir.clone();
        let failed = |doing| move |source| Error::Io { doing, dir: dir.clone(), source };
        fs::create_dir_all(&options.dir).map_err(failed.clone()("make"))?;
        let firsts = segment_numbers(&options.dir).map_err(failed.clone()("list"))?;
        let mut segments = VecDeque::new();
        for (n, first) in firsts.iter().enumerate() {
            let last = n + 1 == firsts.len();
            segments.push_back(scan(&options.dir, *first, last).map_err(failed.clone()("read"))?);
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
            segments.push_back(Segment { first: next_seq, last: next_seq - 1, records: 0, len: 0 });
        }
        let active = open_segment(&options.dir, segments.back().map_or(next_seq, |segment| segment.first))
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
            let file = File::open(path(&self.options.dir, segment.first)).map_err(self.error("read"))?;
            while at.offset < segment.len {
                let chunk = read_chunk(&file, at.offset, segment.len).map_err(self.error("read"))?;
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
                let file = File::open(path(&self.options.dir, first)).map_err(self.error("sync"))?;
                file.sync_data().map_err(self.error("sync"))?;
            }
        }
        durable::sync_parent(&path(&self.options.dir, 0)).map_err(self.error("sync"))?;
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
        self.active = open_segment(&self.options.dir, first).map_err(self.error("extend"))?;
        self.segments.push_back(Segment { first, last: first - 1, records: 0, len: 0 });
        Ok(())
    }

    fn drop_acknowledged(&mut self) -> Result<(), Error> {
        while self.segments.len() > 1 {
            let Some(oldest) = self.segments.front().filter(|segment| segment.last <= self.acked) else {
                break;
            };
            match fs::remove_file(path(&self.options.dir, oldest.first)) {
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
            self.segments.push_back(Segment { first, last: first - 1, records: 0, len: 0 });
        }
        let last = self.segments.len() - 1;
        &mut self.segments[last]
    }

    fn error(&self, doing: &'static str) -> impl Fn(io::Error) -> Error + use<> {
        let dir = self.options.dir.clone();
        move |source| Error::Io { doing, dir: dir.clone(), source }
    }
}

/// Looks through a segment. Of the newest one a torn end is cut off.
fn scan(dir: &Path, first: u64, newest: bool) -> io::Result<Segment> {
    let path = path(dir, first);
    let bytes = Bytes::from(fs::read(&path)?);
    let mut segment = Segment { first, last: first - 1, records: 0, len: bytes.len() as u64 };
    let mut at = 0;
    while at < bytes.len() {
        if let Found::Record(payload) = frame::get(&bytes[at..]) {
            let end = at + frame::HEADER_BYTES + payload.len();
            match RowResult::decode(bytes.slice_ref(payload)) {
                Ok(result) if result.spool_seq > segment.last || segment.records == 0 => {
                    segment.last = result.spool_seq.max(segment.last);
                    segment.records += 1;
                }
                _ => tracing::error!(
                    segment = %path.display(), offset = at, "a record of the spool is whole and makes no sense; it is skipped"
                ),
            }
            at = end;
            continue;
        }
        match frame::find(&bytes, at + 1) {
            Some(next) => {
                tracing::error!(
                    segment = %path.display(), offset = at, bytes = next - at,
                    "the spool is damaged; the results in it are lost and their rows will be answered again"
                );
                at = next;
            }
            None if newest => {
                tracing::warn!(
                    segment = %path.display(), bytes = bytes.len() - at,
                    "the spool has a torn end, as a crash leaves it; it is cut off"
                );
                OpenOptions::new().write(true).open(&path)?.set_len(at as u64)?;
                segment.len = at as u64;
                break;
            }
            None => {
                tracing::error!(
                    segment = %path.display(), offset = at,
                    "the end of a segment of the spool is damaged; its rows will be answered again"
                );
                break;
            }
        }
    }
    Ok(segment)
}

/// Part of a segment from `offset` on that holds at least the record there.
fn read_chunk(file: &File, offset: u64, end: u64) -> io::Result<Bytes> {
    let mut chunk = read_at(file, offset, (end - offset).min(READ_BYTES))?;
    if frame::get(&chunk) == Found::Short
        && let Some(len) = frame::payload_len(&chunk)
    {
        let whole = (frame::HEADER_BYTES + len) as u64;
        if whole <= end - offset {
            chunk = read_at(file, offset, whole)?;
        }
    }
    if !matches!(frame::get(&chunk), Found::Record(_)) {
        // Damage may be followed by whole records anywhere.
        chunk = read_at(file, offset, end - offset)?;
    }
    Ok(chunk.into())
}

fn read_at(file: &File, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

fn segment_numbers(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        numbers.extend(
            name.to_str()
                .and_then(|name| name.strip_suffix(".seg")?.parse().ok())
                .filter(|first: &u64| *first > 0),
        );
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn open_segment(dir: &Path, first: u64) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path(dir, first))
}

fn path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}.seg"))
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
