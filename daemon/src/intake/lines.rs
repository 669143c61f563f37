//! From pieces to lines, from lines to a verdict.

use std::{io::BufRead, path::Path};

use super::{
    problem::Problem,
    row,
    stage::{Error, Stage, Staged},
    unique::Ids,
};
use crate::model::RowLengths;

/// Bounds of a submission.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Bytes a line may have: what one row may take in memory, here and on its way to a worker.
    pub max_row_bytes: u64,
    /// Rows a job may have. A row costs 21 bytes of memory here, 8 bytes of index and two bits of state.
    pub max_rows: u32,
    /// Line errors told; all are counted.
    pub max_errors_shown: usize,
    /// Free space left alone on the disk.
    pub disk_reserve_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_row_bytes: 16 << 20,
            max_rows: 10_000_000,
            max_errors_shown: 20,
            disk_reserve_bytes: 256 << 20,
        }
    }
}

/// A line that was refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LineError {
    /// Its number, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub problem: String,
}

/// Why a submission was refused. Nothing of it was kept.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rejection {
    /// The first bad lines.
    pub errors: Vec<LineError>,
    /// How many bad lines there are.
    pub error_count: u64,
    /// What is wrong apart from lines.
    pub problem: Option<String>,
}

/// How a submission ends that does not become a job.
#[derive(Clone, Debug)]
pub enum Refused {
    /// It is not what it should be.
    Rejected(Rejection),
    /// It could not be written.
    Failed(Error),
}

/// A submission coming in. Blocks on files: run it where that is allowed.
#[derive(Debug)]
pub struct Intake {
    limits: Limits,
    /// Gone when there is nothing to keep any more.
    stage: Option<Stage>,
    ids: Ids,
    /// The beginning of a line whose end has not come.
    begun: Vec<u8>,
    /// The line that is coming in is too long: the rest of it is skipped.
    is_skipping: bool,
    lines: u64,
    rows: u32,
    lengths: RowLengths,
    errors: Vec<LineError>,
    error_count: u64,
    has_too_many_rows: bool,
}

impl Intake {
    /// Makes a staging directory in the state directory.
    ///
    /// # Errors
    /// When there is no room or it cannot be written.
    pub fn begin(state_dir: &Path, limits: Limits) -> Result<Self, Error> {
        Ok(Self {
            stage: Some(Stage::begin(state_dir, limits.disk_reserve_bytes)?),
            limits,
            ids: Ids::default(),
            begun: Vec::new(),
            is_skipping: false,
            lines: 0,
            rows: 0,
            lengths: RowLengths::default(),
            errors: Vec::new(),
            error_count: 0,
            has_too_many_rows: false,
        })
    }

    /// Takes the next piece, cut anywhere.
    ///
    /// # Errors
    /// When it cannot be written. The submission is lost; bad lines are told at the end.
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), Error> {
        let mut rest = chunk;
        while !rest.is_empty() && !self.has_too_many_rows {
            let whole = rest;
            // Skipping in memory cannot fail, and searches many bytes at a time.
            let taken = rest.skip_until(b'\n').unwrap_or(whole.len());
            let piece = &whole[..taken];
            match piece.strip_suffix(b"\n") {
                Some(end) if self.begun.is_empty() && !self.is_skipping => self.line(end)?,
                Some(end) => {
                    self.extend(end);
                    self.end_line()?;
                }
                None => self.extend(piece),
            }
        }
        Ok(())
    }

    /// The verdict.
    ///
    /// # Errors
    /// When the submission is refused, or cannot be written.
    pub fn finish(mut self) -> Result<Staged, Refused> {
        if !self.begun.is_empty() || self.is_skipping {
            self.end_line().map_err(Refused::Failed)?;
        }
        let problem = if self.has_too_many_rows {
            Some(format!(
                "the input has more than {} rows, the most a job may have: submit it in parts",
                self.limits.max_rows
            ))
        } else {
            (self.rows == 0 && self.error_count == 0).then(|| "the input has no rows".to_owned())
        };
        match self.stage.take() {
            Some(stage) if problem.is_none() && self.error_count == 0 => {
                stage.finish(self.lengths).map_err(Refused::Failed)
            }
            _ => Err(Refused::Rejected(Rejection {
                errors: self.errors,
                error_count: self.error_count,
                problem,
            })),
        }
    }

    /// Bytes of input held in memory.
    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        self.begun.capacity()
    }

    /// More of a line; what is over the bound is not kept.
    fn extend(&mut self, piece: &[u8]) {
        // One byte more than allowed, for the carriage return that does not count.
        if self.is_skipping || (self.begun.len() + piece.len()) as u64 > self.limits.max_row_bytes + 1 {
            self.is_skipping = true;
            self.begun = Vec::new();
        } else {
            self.begun.extend_from_slice(piece);
        }
    }

    fn end_line(&mut self) -> Result<(), Error> {
        if std::mem::take(&mut self.is_skipping) {
            self.lines += 1;
            self.refuse(&Problem::TooLong { max_bytes: self.limits.max_row_bytes });
            return Ok(());
        }
        let mut line = std::mem::take(&mut self.begun);
        let outcome = self.line(&line);
        line.clear();
        // Short lines are put together in the same memory; a huge one is not held on to.
        if line.capacity() <= 1 << 20 {
            self.begun = line;
        }
        outcome
    }

    fn line(&mut self, line: &[u8]) -> Result<(), Error> {
        self.lines += 1;
        let line = if self.lines == 1 { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) } else { line };
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.trim_ascii().is_empty() {
            return Ok(());
        }
        if self.rows >= self.limits.max_rows {
            (self.has_too_many_rows, self.stage) = (true, None);
            return Ok(());
        }
        self.rows += 1;
        if line.len() as u64 > self.limits.max_row_bytes {
            self.refuse(&Problem::TooLong { max_bytes: self.limits.max_row_bytes });
            return Ok(());
        }
        match row::check(line) {
            Ok(row::Checked { custom_id, max_tokens }) => {
                self.lengths.note(line.len() as u64, max_tokens);
                let number = u32::try_from(self.lines).unwrap_or(u32::MAX);
                if let Some(before) = self.ids.insert(&custom_id, number) {
                    self.refuse(&Problem::UsedId { custom_id, line: before.into() });
                }
            }
            Err(problem) => self.refuse(&problem),
        }
        match &mut self.stage {
            Some(stage) => stage.push(line),
            None => Ok(()),
        }
    }

    /// Counts a bad line. From now on nothing needs to be written.
    fn refuse(&mut self, problem: &Problem<'_>) {
        self.stage = None;
        self.error_count += 1;
        if self.errors.len() < self.limits.max_errors_shown {
            self.errors.push(LineError { line: self.lines, problem: problem.to_string() });
        }
    }
}
