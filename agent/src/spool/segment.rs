//! The files of the spool: their names, their content, and what a crash can have done to them.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use nightshift_proto::v1::RowResult;
use prost::Message as _;

use super::frame::{self, Found};

/// Read from a segment at once.
pub(super) const READ_BYTES: u64 = 256 * 1024;

/// One file of the spool.
#[derive(Debug)]
pub(super) struct Segment {
    /// The number its name says: that of its first record, or of the first to come.
    pub(super) first: u64,
    /// The number of its last record; `first - 1` while it has none.
    pub(super) last: u64,
    pub(super) records: u64,
    pub(super) len: u64,
}

impl Segment {
    /// One that begins with this number and has nothing in it yet.
    pub(super) fn empty(first: u64) -> Self {
        Self { first, last: first - 1, records: 0, len: 0 }
    }
}

/// Looks through a segment. Of the newest one a torn end is cut off.
pub(super) fn scan(dir: &Path, first: u64, newest: bool) -> io::Result<Segment> {
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
pub(super) fn read_chunk(file: &File, offset: u64, end: u64) -> io::Result<Bytes> {
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

/// The numbers of all segments in `dir`, in order.
pub(super) fn numbers(dir: &Path) -> io::Result<Vec<u64>> {
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

/// Opens a segment to append to it; makes it if needed.
pub(super) fn open(dir: &Path, first: u64) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path(dir, first))
}

/// The file of the segment that begins with this number.
pub(super) fn path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}.seg"))
}
