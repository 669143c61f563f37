//! Reading row records: which rows are done, and whether the files say so too.

use std::ops::ControlFlow;

use super::{
    codec::{RowRecord, key, unseal},
    core::Core,
    disk::Disk,
    error::Error,
    input,
    job::Job,
    kv::{Batch, Kv},
    load::Findings,
    salvage::{Expected, Found},
};
use crate::model::{JobId, RowIx};

/// The newest records whose lines are compared with their sums at start. A crash or a failing disk hurts the end of a
/// file first; reading everything would take minutes after a long night.
const RECORDS_VERIFIED: u64 = 2;

impl<D: Disk, K: Kv> Core<D, K> {
    /// Reads every job's row records and brings files and records together.
    pub(crate) fn load_all_rows(&mut self, findings: &mut Findings) -> Result<(), Error> {
        let ids: Vec<_> = self.jobs.keys().copied().collect();
        for id in ids {
            let Some(mut job) = self.jobs.remove(&id) else { continue };
            let outcome = self
                .load_rows(&mut job, findings)
                .and_then(|()| self.check_input(&job, &mut findings.repairs));
            self.jobs.insert(id, job);
            outcome?;
        }
        Ok(())
    }

    fn check_input(&mut self, job: &Job, repairs: &mut Vec<String>) -> Result<(), Error> {
        if job.state.record.state.is_over() {
            return Ok(());
        }
        let directory = &job.files.directory;
        let checked = input::check(&mut self.disk, directory, job.state.record.rows_total)
            .map_err(|error| self.io_error("check", &job.files.input, error))?;
        match checked {
            input::Checked::Intact => {}
            input::Checked::Rebuilt => {
                repairs.push(format!("{} was damaged: made again from the input", job.files.index));
            }
            input::Checked::Lost => repairs.push(format!(
                "{} is missing or was changed: rows of job {} that have no answer yet cannot be read",
                job.files.input, job.id
            )),
        }
        Ok(())
    }

    fn load_rows(&mut self, job: &mut Job, findings: &mut Findings) -> Result<(), Error> {
        let (mut lost, mut expected) = self.take_records(job, u64::MAX)?;
        if lost.is_empty() && !job.state.record.state.is_over() && !self.newest_lines_are_right(job)? {
            let first_bad = self.first_bad_record(job)?;
            job.forget_rows();
            (lost, expected) = self.take_records(job, first_bad)?;
        }
        let rows_before = u64::from(job.done.len()) + expected.len() as u64;
        if !lost.is_empty() {
            // Before the file changes: what says otherwise must be gone.
            self.apply(lost, true)?;
        }
        let found = self.salvage(job, &expected)?;
        self.make_missing_outputs(job)?;
        let rows_now = u64::from(job.done.len());
        tell(findings, job.id, rows_before, rows_now, found);
        Ok(())
    }

    /// Appending must not make files: their names would not be durable with their bytes.
    fn make_missing_outputs(&mut self, job: &Job) -> Result<(), Error> {
        let files = &job.files;
        if job.state.record.state.is_over() || self.disk.list(&files.directory).is_err() {
            return Ok(());
        }
        for path in [&files.results, &files.errors] {
            let failed = |core: &Self, error| core.io_error("make", path, error);
            if self.disk.file_bytes(path).map_err(|error| failed(self, error))?.is_none() {
                self.disk
                    .write_new(path, b"")
                    .and_then(|()| self.disk.sync_file(path))
                    .and_then(|()| self.disk.sync_directory(&files.directory))
                    .map_err(|error| failed(self, error))?;
            }
        }
        Ok(())
    }

    /// Takes records as long as they continue each other, fit the files and are below `limit`. Answers with the removal
    /// of the others, and with what they said about lines.
    fn take_records(&mut self, job: &mut Job, limit: u64) -> Result<(Batch, Expected), Error> {
        let mut available = [0, 0];
        for (path, bytes) in [&job.files.results, &job.files.errors].into_iter().zip(&mut available) {
            *bytes = self
                .disk
                .file_bytes(path)
                .map_err(|error| self.io_error("look at", path, error))?
                .unwrap_or_default();
        }
        // A person may tidy up the files of a job that is over; it does not run again for that.
        if job.state.record.state.is_over() {
            available = [u64::MAX, u64::MAX];
        }
        let (mut lost, mut expected) = (Batch::default(), Expected::new());
        let scanned = self.kv.scan(&key::rows(job.id), false, &mut |key, value| {
            let index = key.last_chunk::<8>().map(|index| u64::from_be_bytes(*index));
            let record = unseal(key, value).and_then(RowRecord::decode);
            let fits = record.as_ref().is_ok_and(|record| {
                let (results, errors) = record.end();
                results <= available[0] && errors <= available[1]
            });
            match (record, index) {
                (Ok(record), Some(index))
                    if fits && index < limit && lost.is_empty() && job.take_record(index, &record) => {}
                (record, _) => {
                    lost.remove(key.to_vec());
                    let rows = record.map(|record| record.rows).unwrap_or_default();
                    expected.extend(rows.iter().map(|row| (RowIx(row.row), (row.line_bytes, row.line_crc))));
                }
            }
            ControlFlow::Continue(())
        });
        scanned.map_err(|error| self.store_failed("read", error))?;
        Ok((lost, expected))
    }

    fn newest_lines_are_right(&mut self, job: &Job) -> Result<bool, Error> {
        let from = job.last_index.saturating_sub(RECORDS_VERIFIED - 1);
        let mut records = Vec::new();
        let scanned = self.kv.scan(&key::rows(job.id), true, &mut |key, value| {
            records.extend(unseal(key, value).and_then(RowRecord::decode));
            if key <= key::row_record(job.id, from).as_slice() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        scanned.map_err(|error| self.store_failed("read", error))?;
        for record in records {
            if !self.lines_are_right(job, &record)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The first record with a line that is not what was written; all lines are read.
    fn first_bad_record(&mut self, job: &Job) -> Result<u64, Error> {
        for index in 0..=job.last_index {
            let key = key::row_record(job.id, index);
            let value =
                self.kv.get(&key).map_err(|error| self.store_failed("read", error))?.unwrap_or_default();
            match unseal(&key, &value).and_then(RowRecord::decode) {
                Ok(record) if self.lines_are_right(job, &record)? => {}
                _ => return Ok(index),
            }
        }
        Ok(u64::MAX)
    }

    fn lines_are_right(&mut self, job: &Job, record: &RowRecord) -> Result<bool, Error> {
        let (mut results_at, mut errors_at) = (record.results_start, record.errors_start);
        let mut line = Vec::new();
        for row in &record.rows {
            let (path, at) = if row.is_success() {
                (&job.files.results, &mut results_at)
            } else {
                (&job.files.errors, &mut errors_at)
            };
            line.resize(row.line_bytes as usize, 0);
            let read = self
                .disk
                .read_at(path, *at, &mut line)
                .map_err(|error| self.io_error("read", path, error))?;
            if read < line.len() || crc32fast::hash(&line) != row.line_crc {
                return Ok(false);
            }
            *at += u64::from(row.line_bytes);
        }
        Ok(true)
    }
}

fn tell(findings: &mut Findings, job: JobId, rows_before: u64, rows_now: u64, found: Found) {
    let Findings { repairs, remains } = findings;
    if rows_now < rows_before {
        repairs.push(format!(
            "{} answers of job {job} are no longer in its files as they were written: their rows are generated again",
            rows_before - rows_now
        ));
    } else if found.rows > 0 && rows_now > rows_before {
        remains.push(format!(
            "{} answers of job {job} were in its files and not yet in the ledger: taken in",
            rows_now - rows_before
        ));
    }
    if found.lines_cut > 0 {
        repairs.push(format!(
            "{} lines in the files of job {job} were not answers it waited for: cut out",
            found.lines_cut
        ));
    }
    if found.torn_bytes > 0 {
        remains.push(format!(
            "an unfinished line of {} bytes in the files of job {job} was cut off",
            found.torn_bytes
        ));
    }
}
