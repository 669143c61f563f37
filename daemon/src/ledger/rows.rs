//! Finished rows on their way to disk: lines gathered, files appended and synced, records put.

use std::io;

use super::{
    codec::RowEntry,
    core::{Core, Group, Lines},
    disk::Disk,
    error::Error,
    input,
    job::{Job, Output},
    kv::Kv,
    line,
};
use crate::model::{FinishedRow, JobId, RowIx};

impl<D: Disk, K: Kv> Core<D, K> {
    /// Makes lines of rows. Rows that have an answer, or get one in this group, are counted and dropped.
    pub(crate) fn gather_rows(
        &mut self,
        rows: &[FinishedRow],
        group: &mut Group,
    ) -> Result<Vec<(JobId, u32)>, Error> {
        for row in rows {
            let rows_total = self.job_mut(row.job)?.state.record.rows_total;
            if row.row.0 >= rows_total {
                return Err(Error::UnknownRow { job: row.job, row: row.row, rows_total });
            }
        }
        let mut jobs: Vec<(JobId, u32)> = Vec::new();
        let mut input_line = Vec::new();
        for row in rows {
            let Some(job) = self.jobs.get_mut(&row.job) else { continue };
            let place = jobs.iter().position(|(id, _)| *id == row.job).unwrap_or_else(|| {
                jobs.push((row.job, 0));
                jobs.len() - 1
            });
            if !job.done.insert(row.row) {
                jobs[place].1 += 1;
                continue;
            }
            let lines = group.lines.entry(row.job).or_default();
            if let Err(error) = read_input_line(&mut self.disk, job, row.row, &mut input_line) {
                let error = Error::io("read", self.disk.display(&job.files.input), error);
                lines.failure.get_or_insert(error);
            }
            let spec = &job.state.record.spec;
            let by_fallback = row.status_code == 200
                && spec.fallback_model.is_some()
                && spec.is_by_fallback(&line::signature(&row.body));
            lines.push(row, &input_line, by_fallback);
        }
        Ok(jobs)
    }

    /// Appends the gathered lines to the files and syncs them, or notes why not and forgets the rows.
    pub(crate) fn write_lines(&mut self, group: &mut Group) {
        let needed =
            group.lines.values().map(|lines| (lines.results.len() + lines.errors.len()) as u64).sum();
        if needed == 0 {
            return;
        }
        let room = self.check_room("jobs", needed, self.limits.disk_reserve_bytes);
        for (job, lines) in &mut group.lines {
            if lines.failure.is_none() {
                lines.failure = match &room {
                    Ok(()) => self.append_lines(*job, lines).err(),
                    Err(error) => Some(error.clone()),
                };
            }
            if let (Some(_), Some(job)) = (&lines.failure, self.jobs.get_mut(job)) {
                for entry in lines.entries.drain(..) {
                    job.done.remove(RowIx(entry.row));
                }
            }
        }
    }

    /// Puts the records of lines that are durable, and lets the checkpoints of their rows go.
    pub(crate) fn record_rows(&mut self, group: &mut Group) {
        for (job, lines) in &mut group.lines {
            let Some(job) = self.jobs.get_mut(job).filter(|_| !lines.entries.is_empty()) else { continue };
            // In the order their lines have in the files: that is where readers of the records look for them.
            for entry in lines.entries.drain(..) {
                self.checkpoint_bytes -= job.drop_checkpoint(RowIx(entry.row), &mut group.batch);
                job.append(entry, &mut group.batch);
            }
            job.put_last_record(&mut group.batch);
            group.needs_flush = true;
        }
    }

    fn append_lines(&mut self, id: JobId, lines: &Lines) -> Result<(), Error> {
        let job = self.job_mut(id)?;
        let (results, errors) = (job.files.results.clone(), job.files.errors.clone());
        let mut outputs = (job.results, job.errors);
        let outcome = self
            .append_to(&results, &mut outputs.0, &lines.results)
            .and_then(|()| self.append_to(&errors, &mut outputs.1, &lines.errors));
        if outcome.is_err() {
            // What got into either file belongs to nobody.
            for (path, output) in [(&results, &mut outputs.0), (&errors, &mut outputs.1)] {
                output.has_leftover = output.has_leftover || self.cut(path, output.bytes).is_err();
            }
        }
        let job = self.job_mut(id)?;
        (job.results.has_leftover, job.errors.has_leftover) =
            (outputs.0.has_leftover, outputs.1.has_leftover);
        outcome
    }

    fn append_to(&mut self, path: &str, output: &mut Output, lines: &[u8]) -> Result<(), Error> {
        if lines.is_empty() {
            return Ok(());
        }
        let found = self.disk.file_bytes(path).map_err(|error| self.io_error("look at", path, error))?;
        if found != Some(output.bytes) {
            if found.is_none_or(|found| found < output.bytes) || !output.has_leftover {
                // Somebody else was at it. Reading all again finds out what there is and goes on from there.
                self.is_stale = true;
                let problem = format!(
                    "it has {} bytes where the ledger left {}; leave the files of a running job alone",
                    found.map_or("no".into(), |found| found.to_string()),
                    output.bytes
                );
                return Err(Error::Damaged { path: self.disk.display(path), problem });
            }
            self.cut(path, output.bytes).map_err(|error| self.io_error("cut back", path, error))?;
            output.has_leftover = false;
        }
        self.disk
            .write_at(path, output.bytes, lines)
            .and_then(|()| self.disk.sync_file(path))
            .map_err(|error| self.io_error("write to", path, error))
    }

    /// Cuts a file to its recorded length, if it is longer.
    fn cut(&mut self, path: &str, bytes: u64) -> io::Result<()> {
        match self.disk.file_bytes(path)? {
            Some(found) if found > bytes => {
                self.disk.truncate(path, bytes)?;
                self.disk.sync_file(path)
            }
            _ => Ok(()),
        }
    }
}

impl Lines {
    fn push(&mut self, row: &FinishedRow, input_line: &[u8], by_fallback: bool) {
        let custom_id = line::custom_id(input_line).unwrap_or_else(|| {
            tracing::warn!(job = %row.job, row = %row.row, "the input row has no custom_id any more");
            "null"
        });
        let outcome = line::outcome(row);
        let out = if outcome.status_code == 200 { &mut self.results } else { &mut self.errors };
        let start = out.len();
        line::write(out, row, outcome, custom_id);
        let written = &out[start..];
        self.entries.push(RowEntry {
            row: row.row.0,
            status_code: outcome.status_code,
            line_bytes: written.len() as u32,
            line_crc: crc32fast::hash(written),
            prompt_tokens: row.prompt_tokens,
            completion_tokens: row.completion_tokens,
            by_fallback: by_fallback && outcome.status_code == 200,
        });
    }
}

fn read_input_line(disk: &mut impl Disk, job: &Job, row: RowIx, line: &mut Vec<u8>) -> io::Result<()> {
    let files = &job.files;
    if !input::read_line(disk, &files.index, &files.input, job.input_bytes, row, line)? {
        line.clear();
    }
    Ok(())
}
