//! A job's input: `input.jsonl`, one request a line, and `input.idx`, where the lines begin.
//!
//! ```text
//! input.idx   "NSIX"  u32 version  { u64 offset } × (rows + 1)  u32 CRC-32 of everything before     little endian
//! ```
//!
//! The last offset is the length of the input. The index can be made again from the input, and is when it is damaged.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use bytes::{Bytes, BytesMut};

use super::{
    disk::{self, Disk},
    error::Error,
};
use crate::model::RowIx;

const MAGIC_AND_VERSION: [u8; 8] = *b"NSIX\x01\0\0\0";
const OFFSET_BYTES: u64 = 8;
const SUM_BYTES: u64 = 4;

/// Read or written at a time.
const CHUNK_BYTES: usize = 64 * 1024;

/// The input file's name in a job's directory.
pub(crate) const INPUT: &str = "input.jsonl";

/// The index file's name in a job's directory.
pub(crate) const INDEX: &str = "input.idx";

/// How long an index of so many rows is.
fn index_bytes(rows_total: u32) -> u64 {
    MAGIC_AND_VERSION.len() as u64 + (u64::from(rows_total) + 1) * OFFSET_BYTES + SUM_BYTES
}

/// Writes an index while the input passes by.
#[derive(Debug)]
pub(crate) struct IndexWriter<W> {
    out: W,
    hasher: crc32fast::Hasher,
}

impl<W: io::Write> IndexWriter<W> {
    pub(crate) fn begin(out: W) -> io::Result<Self> {
        let mut writer = Self { out, hasher: crc32fast::Hasher::new() };
        writer.put(&MAGIC_AND_VERSION)?;
        Ok(writer)
    }

    /// A line begins at `offset`; at the end, the length of the input.
    pub(crate) fn push(&mut self, offset: u64) -> io::Result<()> {
        self.put(&offset.to_le_bytes())
    }

    pub(crate) fn finish(mut self) -> io::Result<W> {
        let sum = self.hasher.finalize();
        self.out.write_all(&sum.to_le_bytes())?;
        Ok(self.out)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.out.write_all(bytes)
    }
}

/// Reads at a position as much as there is, up to the buffer's length.
type ReadAt<'a> = &'a mut dyn FnMut(u64, &mut [u8]) -> io::Result<usize>;

/// Whether an index is whole and made for so many rows and bytes of input.
fn is_intact(read: ReadAt<'_>, found_bytes: u64, rows_total: u32, input_bytes: u64) -> io::Result<bool> {
    if found_bytes != index_bytes(rows_total) {
        return Ok(false);
    }
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    let (mut at, summed_bytes) = (0, found_bytes - SUM_BYTES);
    while at < summed_bytes {
        let wanted = (summed_bytes - at).min(CHUNK_BYTES as u64) as usize;
        let chunk = &mut buffer[..wanted];
        if read(at, chunk)? < wanted || (at == 0 && !chunk.starts_with(&MAGIC_AND_VERSION)) {
            return Ok(false);
        }
        hasher.update(chunk);
        at += wanted as u64;
    }
    let (mut last, mut sum) = ([0; 8], [0; 4]);
    read(summed_bytes - OFFSET_BYTES, &mut last)?;
    read(summed_bytes, &mut sum)?;
    Ok(sum == hasher.finalize().to_le_bytes() && u64::from_le_bytes(last) == input_bytes)
}

/// Where a row's line is: position and length without the line break.
fn line_at(read: ReadAt<'_>, row: RowIx, input_bytes: u64) -> io::Result<Option<(u64, usize)>> {
    let mut offsets = [0; 16];
    let at = MAGIC_AND_VERSION.len() as u64 + u64::from(row.0) * OFFSET_BYTES;
    if read(at, &mut offsets)? < offsets.len() {
        return Ok(None);
    }
    let offset = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |n, byte| n << 8 | u64::from(*byte));
    let (start, end) = (offset(&offsets[..8]), offset(&offsets[8..]));
    Ok((start < end && end <= input_bytes)
        .then(|| (start, usize::try_from(end - start - 1).unwrap_or(usize::MAX))))
}

/// Reads rows of one job by number. Cheap to share: every read is a positioned read of two files.
#[derive(Debug)]
pub struct InputReader {
    job_dir: PathBuf,
    input: File,
    index: File,
    input_bytes: u64,
    rows_total: u32,
}

impl InputReader {
    /// Opens the input of a job's directory and verifies its index (8 MB for a million rows: some milliseconds).
    ///
    /// # Errors
    /// When a file is missing or unreadable, or the index does not fit the input.
    pub fn open(job_dir: &Path, rows_total: u32) -> Result<Self, Error> {
        let open = |name: &str| {
            let path = job_dir.join(name);
            File::open(&path)
                .and_then(|file| file.metadata().map(|metadata| (file, metadata.len())))
                .map_err(|error| Error::io("open", path, error))
        };
        let ((input, input_bytes), (index, index_bytes)) = (open(INPUT)?, open(INDEX)?);
        let intact =
            is_intact(&mut |at, buffer| read_full(&index, at, buffer), index_bytes, rows_total, input_bytes)
                .map_err(|error| Error::io("read", job_dir.join(INDEX), error))?;
        if !intact {
            let problem = format!(
                "it does not fit {INPUT} ({rows_total} rows, {input_bytes} bytes); \
                 starting clusterd again makes a new one"
            );
            return Err(Error::Damaged { path: job_dir.join(INDEX), problem });
        }
        Ok(Self { job_dir: job_dir.to_owned(), input, index, input_bytes, rows_total })
    }

    /// A row's line as it was submitted, without the line break.
    ///
    /// # Errors
    /// When there is no such row or its line cannot be read.
    pub fn read(&self, row: RowIx) -> Result<Bytes, Error> {
        let damaged = |problem: String| Error::Damaged { path: self.job_dir.join(INDEX), problem };
        if row.0 >= self.rows_total {
            return Err(damaged(format!("there is no row {row}: it has {}", self.rows_total)));
        }
        let failed = |error| Error::io("read", self.job_dir.join(INPUT), error);
        let (start, bytes) =
            line_at(&mut |at, buffer| read_full(&self.index, at, buffer), row, self.input_bytes)
                .map_err(failed)?
                .ok_or_else(|| damaged(format!("it does not say where row {row} is")))?;
        let mut line = BytesMut::zeroed(bytes);
        self.input.read_exact_at(&mut line, start).map_err(failed)?;
        Ok(line.freeze())
    }
}

fn read_full(file: &File, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
    match file.read_exact_at(buffer, at) {
        Ok(()) => Ok(buffer.len()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
        Err(error) => Err(error),
    }
}

/// Reads a row's line into a buffer. False: the index has no such row.
pub(crate) fn read_line(
    disk: &mut impl Disk,
    index_path: &str,
    input_path: &str,
    input_bytes: u64,
    row: RowIx,
    line: &mut Vec<u8>,
) -> io::Result<bool> {
    let found = line_at(&mut |at, buffer| disk.read_at(index_path, at, buffer), row, input_bytes)?;
    let Some((start, bytes)) = found else { return Ok(false) };
    line.resize(bytes, 0);
    Ok(disk.read_at(input_path, start, line)? == bytes)
}

/// What there is of a job's input.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Checked {
    Intact,
    /// The index was made again.
    Rebuilt,
    /// The input is missing or has another number of rows.
    Lost,
}

/// Checks a job's input and makes its index again when that is damaged.
pub(crate) fn check(disk: &mut impl Disk, job_dir: &str, rows_total: u32) -> io::Result<Checked> {
    let (input, index) = (format!("{job_dir}/{INPUT}"), format!("{job_dir}/{INDEX}"));
    let Some(input_bytes) = disk.file_bytes(&input)? else { return Ok(Checked::Lost) };
    if let Some(found_bytes) = disk.file_bytes(&index)? {
        let read: ReadAt<'_> = &mut |at, buffer| disk.read_at(&index, at, buffer);
        if is_intact(read, found_bytes, rows_total, input_bytes)? {
            return Ok(Checked::Intact);
        }
    }
    let mut writer = IndexWriter::begin(Vec::new())?;
    let (mut at, mut rows, mut at_line_start) = (0, 0_u64, true);
    let mut buffer = vec![0; CHUNK_BYTES];
    while at < input_bytes {
        let read = disk.read_at(&input, at, &mut buffer)?;
        if read == 0 {
            break;
        }
        for (position, byte) in (at..).zip(&buffer[..read]) {
            if at_line_start {
                writer.push(position)?;
                rows += 1;
            }
            at_line_start = *byte == b'\n';
        }
        at += read as u64;
    }
    if rows != u64::from(rows_total) || !at_line_start {
        return Ok(Checked::Lost);
    }
    writer.push(input_bytes)?;
    disk::replace(disk, job_dir, INDEX, &writer.finish()?)?;
    Ok(Checked::Rebuilt)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::OsDisk;

    fn job(lines: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut index = IndexWriter::begin(Vec::new()).unwrap();
        let mut input = String::new();
        for line in lines {
            index.push(input.len() as u64).unwrap();
            input.push_str(line);
            input.push('\n');
        }
        index.push(input.len() as u64).unwrap();
        std::fs::write(dir.path().join(INPUT), input).unwrap();
        std::fs::write(dir.path().join(INDEX), index.finish().unwrap()).unwrap();
        dir
    }

    #[test]
    fn rows_are_read_as_they_were_written() {
        let dir = job(&["first", "zweite äöü", "3"]);
        let reader = InputReader::open(dir.path(), 3).unwrap();
        assert_eq!(reader.read(RowIx(0)).unwrap(), "first");
        assert_eq!(reader.read(RowIx(1)).unwrap(), "zweite äöü");
        assert_eq!(reader.read(RowIx(2)).unwrap(), "3");
        assert_eq!(
            reader.read(RowIx(3)).unwrap_err().to_string(),
            format!("{} is damaged: there is no row 3: it has 3", dir.path().join(INDEX).display())
        );
    }

    #[test]
    fn a_damaged_index_is_noticed_and_made_again() {
        for damage in 0..3 {
            let dir = job(&["first", "second"]);
            let path = dir.path().join(INDEX);
            let mut bytes = std::fs::read(&path).unwrap();
            match damage {
                0 => bytes[9] ^= 1,
                1 => bytes.truncate(20),
                _ => bytes.clear(),
            }
            std::fs::write(&path, bytes).unwrap();
            assert!(matches!(InputReader::open(dir.path(), 2), Err(Error::Damaged { .. })));
            let mut disk = OsDisk::new(dir.path());
            assert_eq!(check(&mut disk, ".", 2).unwrap(), Checked::Rebuilt);
            assert_eq!(check(&mut disk, ".", 2).unwrap(), Checked::Intact);
            assert_eq!(InputReader::open(dir.path(), 2).unwrap().read(RowIx(1)).unwrap(), "second");
        }
    }

    #[test]
    fn an_input_that_lost_rows_is_not_papered_over() {
        let dir = job(&["first", "second"]);
        let mut disk = OsDisk::new(dir.path());
        std::fs::write(dir.path().join(INPUT), "first\nsec").unwrap();
        assert_eq!(check(&mut disk, ".", 2).unwrap(), Checked::Lost);
        std::fs::remove_file(dir.path().join(INPUT)).unwrap();
        assert_eq!(check(&mut disk, ".", 2).unwrap(), Checked::Lost);
    }
}
