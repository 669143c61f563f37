//! Lines that are in a results file and in no record.
//!
//! They come from a crash between the sync of the file and the flush of the store — or from a store that lost its end,
//! or all of it. Every whole line that answers a row which has no answer yet is taken in, with a new record; whatever
//! else stands there is cut out: unfinished lines, rubbish, second answers. Taking in is safe where cutting off would
//! not be: a line that was acknowledged is never dropped, and one that was not counts as a result that arrived.
//!
//! Good lines after a bad one are kept by writing the file anew beside itself. Each step leaves a state from which this
//! starts over.

use std::{collections::HashMap, io};

use super::{
    codec::RowEntry,
    core::Core,
    disk::Disk,
    error::Error,
    job::Job,
    kv::{Batch, Kv},
    line::{self, LINE_BYTES_MAX},
};
use crate::model::RowIx;

/// Read at a time.
const CHUNK_BYTES: usize = 256 * 1024;

/// Row records put with one batch: 100,000 rows, some megabytes.
const RECORDS_AT_ONCE: usize = 500;

/// What records that had to be given up said about lines: length and CRC-32 by row. A line that differs is not the one
/// that was acknowledged, and its row is generated again.
pub(crate) type Expected = HashMap<RowIx, (u32, u32)>;

/// What was found beyond the records.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Found {
    /// Rows taken in.
    pub(crate) rows: u64,
    /// Whole lines cut out.
    pub(crate) lines_cut: u64,
    /// Bytes of an unfinished last line, cut off.
    pub(crate) torn_bytes: u64,
}

impl<D: Disk, K: Kv> Core<D, K> {
    /// Makes a job's files and records agree, starting where the records end.
    pub(crate) fn salvage(&mut self, job: &mut Job, expected: &Expected) -> Result<Found, Error> {
        let mut found = Found::default();
        for of_results in [true, false] {
            let path = if of_results { job.files.results.clone() } else { job.files.errors.clone() };
            let read_failed = |core: &Self, error| core.io_error("read", &path, error);
            let bytes = self.disk.file_bytes(&path).map_err(|error| read_failed(self, error))?.unwrap_or(0);
            if bytes <= output_bytes(job, of_results) {
                continue;
            }
            // What is recorded must be durable, and this may be in the page cache only.
            self.disk.sync_file(&path).map_err(|error| self.io_error("sync", &path, error))?;
            while let Some(bad_at) = self.take_in_lines(job, of_results, &path, expected, &mut found)? {
                let left_out = cut_out(&mut self.disk, job, of_results, &path, bad_at, expected)
                    .map_err(|error| self.io_error("repair", &path, error))?;
                found.lines_cut += left_out.lines_cut;
                found.torn_bytes += left_out.torn_bytes;
            }
        }
        Ok(found)
    }

    /// Takes in good lines up to the first bad one, and says where that is.
    fn take_in_lines(
        &mut self,
        job: &mut Job,
        of_results: bool,
        path: &str,
        expected: &Expected,
        found: &mut Found,
    ) -> Result<Option<u64>, Error> {
        let mut lines = Lines::from(output_bytes(job, of_results));
        let mut batch = Batch::default();
        let bad_at = loop {
            let line =
                lines.next(&mut self.disk, path).map_err(|error| self.io_error("read", path, error))?;
            let Some(line) = line else { break None };
            let Some(entry) = judge(job, of_results, line, expected) else { break Some(line.at) };
            job.done.insert(RowIx(entry.row));
            job.append(entry, &mut batch);
            found.rows += 1;
            if batch.writes.len() >= RECORDS_AT_ONCE {
                self.apply(std::mem::take(&mut batch), false)?;
            }
        };
        job.put_last_record(&mut batch);
        self.apply(batch, false)?;
        Ok(bad_at)
    }
}

fn output_bytes(job: &Job, of_results: bool) -> u64 {
    if of_results { job.results.bytes } else { job.errors.bytes }
}

/// The record of a line, when it is whole and answers a row that has no answer.
fn judge(job: &Job, of_results: bool, line: LineAt<'_>, expected: &Expected) -> Option<RowEntry> {
    let text = line.bytes.strip_suffix(b"\n")?;
    let parsed = line::parse(text, job.id)?;
    let entry = RowEntry {
        row: parsed.row.0,
        status_code: parsed.status_code,
        line_bytes: line.bytes.len() as u32,
        line_crc: crc32fast::hash(line.bytes),
        prompt_tokens: parsed.prompt_tokens,
        completion_tokens: parsed.completion_tokens,
        by_fallback: parsed.status_code == 200 && job.state.record.spec.is_by_fallback(&parsed.model),
    };
    let is_as_expected =
        expected.get(&parsed.row).is_none_or(|known| *known == (entry.line_bytes, entry.line_crc));
    let is_new = parsed.row.0 < job.done.rows_total() && !job.done.contains(parsed.row);
    (is_as_expected && is_new && entry.is_success() == of_results).then_some(entry)
}

/// Takes bad lines from `bad_at` on out of a file: cuts it there when nothing good follows, otherwise writes it anew.
fn cut_out(
    disk: &mut impl Disk,
    job: &Job,
    of_results: bool,
    path: &str,
    bad_at: u64,
    expected: &Expected,
) -> io::Result<Found> {
    let (mut left_out, mut good_follows) = (Found::default(), false);
    let mut lines = Lines::from(bad_at);
    while let Some(line) = lines.next(disk, path)? {
        if judge(job, of_results, line, expected).is_some() {
            good_follows = true;
        } else if line.is_whole {
            left_out.lines_cut += 1;
        } else {
            left_out.torn_bytes += line.bytes.len() as u64;
        }
    }
    if !good_follows {
        disk.truncate(path, bad_at)?;
        disk.sync_file(path)?;
        return Ok(left_out);
    }
    let temporary = format!("{path}.tmp");
    disk.write_new(&temporary, b"")?;
    let mut written = 0;
    let mut chunk = vec![0; CHUNK_BYTES];
    while written < bad_at {
        let wanted = (bad_at - written).min(CHUNK_BYTES as u64) as usize;
        let read = disk.read_at(path, written, &mut chunk[..wanted])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        disk.write_at(&temporary, written, &chunk[..read])?;
        written += read as u64;
    }
    let mut lines = Lines::from(bad_at);
    while let Some(line) = lines.next(disk, path)? {
        if judge(job, of_results, line, expected).is_some() {
            disk.write_at(&temporary, written, line.bytes)?;
            written += line.bytes.len() as u64;
        }
    }
    disk.sync_file(&temporary)?;
    disk.rename(&temporary, path)?;
    disk.sync_directory(&job.files.directory)?;
    Ok(left_out)
}

/// Lines of a file from some position on, in bounded memory.
#[derive(Debug)]
struct Lines {
    buffer: Vec<u8>,
    /// Where the buffer's first byte is in the file.
    at: u64,
    /// Bytes at the buffer's start that were given out.
    used: usize,
}

/// A line with its line break, if it has one.
#[derive(Clone, Copy, Debug)]
struct LineAt<'a> {
    at: u64,
    bytes: &'a [u8],
    /// It ends in a line break.
    is_whole: bool,
}

impl Lines {
    fn from(at: u64) -> Self {
        Self { buffer: Vec::new(), at, used: 0 }
    }

    /// The next line. One that is longer than any we write comes in pieces that are no lines.
    fn next(&mut self, disk: &mut impl Disk, path: &str) -> io::Result<Option<LineAt<'_>>> {
        let mut searched = self.used;
        loop {
            if let Some(length) = self.buffer[searched..].iter().position(|byte| *byte == b'\n') {
                return Ok(Some(self.give_out(searched + length + 1, true)));
            }
            searched = self.buffer.len();
            if searched - self.used > LINE_BYTES_MAX {
                return Ok(Some(self.give_out(searched, false)));
            }
            searched -= self.used;
            self.buffer.drain(..self.used);
            self.at += self.used as u64;
            self.used = 0;
            self.buffer.resize(searched + CHUNK_BYTES, 0);
            let read = disk.read_at(path, self.at + searched as u64, &mut self.buffer[searched..])?;
            self.buffer.truncate(searched + read);
            if read == 0 {
                return Ok(if searched == 0 { None } else { Some(self.give_out(searched, false)) });
            }
        }
    }

    fn give_out(&mut self, to: usize, is_whole: bool) -> LineAt<'_> {
        let from = std::mem::replace(&mut self.used, to);
        LineAt { at: self.at + from as u64, bytes: &self.buffer[from..to], is_whole }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::OsDisk;

    #[test]
    fn lines_are_found_across_chunks() {
        let dir = tempfile::tempdir().unwrap();
        let mut disk = OsDisk::new(dir.path());
        let text = format!("skipped\nfirst\n{}\n\nlast without end", "x".repeat(3 * CHUNK_BYTES));
        disk.write_new("f", text.as_bytes()).unwrap();
        let mut lines = Lines::from(8);
        let mut found = Vec::new();
        while let Some(line) = lines.next(&mut disk, "f").unwrap() {
            found.push((line.at as usize, line.bytes.len(), line.is_whole));
        }
        let long = 3 * CHUNK_BYTES + 1;
        assert_eq!(found, [(8, 6, true), (14, long, true), (14 + long, 1, true), (15 + long, 16, false)]);
    }
}
