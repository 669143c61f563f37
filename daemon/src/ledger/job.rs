//! A job as the ledger has it in memory: which rows are done, where the files end, what is recorded.

use std::collections::HashMap;

use super::{
    codec::{RECORD_ROWS_MAX, RowEntry, RowRecord, key, seal},
    job_files::{JobFiles, StoredJob},
    kv::Batch,
    longvalue,
};
use crate::model::{JobId, JobRecord, RowIx, RowSet};

/// One of a job's two output files.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Output {
    /// Its recorded length: so much of it is durable and belongs to the ledger.
    pub(crate) bytes: u64,
    /// There may be more in the file than recorded: a write failed and cutting it off failed too.
    pub(crate) has_leftover: bool,
}

/// Sums over the rows done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) rows_succeeded: u64,
    pub(crate) rows_failed: u64,
    pub(crate) rows_by_fallback: u64,
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
}

/// What is stored of a row's checkpoint: tokens, logprobs.
pub(crate) type StoredCheckpoint = [longvalue::Stored; 2];

#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) id: JobId,
    pub(crate) files: JobFiles,
    /// The record and what is stored of it.
    pub(crate) state: StoredJob,
    pub(crate) stored: longvalue::Stored,
    /// The record in `state.json`, as far as it is known.
    pub(crate) sidecar: Option<JobRecord>,
    pub(crate) done: RowSet,
    pub(crate) totals: Totals,
    pub(crate) results: Output,
    pub(crate) errors: Output,
    pub(crate) input_bytes: u64,
    /// The last row record, and its number. It is written again with more rows until it is full, so that a job that
    /// finishes row by row has no more records than one that finishes thousands at a time.
    pub(crate) last_record: RowRecord,
    pub(crate) last_index: u64,
    pub(crate) checkpoints: HashMap<RowIx, StoredCheckpoint>,
}

impl Job {
    pub(crate) fn new(state: StoredJob) -> Self {
        let id = state.record.id;
        let done = RowSet::new(state.record.rows_total);
        Self {
            id,
            files: JobFiles::new(id),
            state,
            stored: longvalue::Stored::default(),
            sidecar: None,
            done,
            totals: Totals::default(),
            results: Output::default(),
            errors: Output::default(),
            input_bytes: 0,
            last_record: RowRecord::default(),
            last_index: 0,
            checkpoints: HashMap::new(),
        }
    }

    /// Takes a record that is in the store already. False, and nothing changed: it does not continue what there is.
    pub(crate) fn take_record(&mut self, index: u64, record: &RowRecord) -> bool {
        let expected_index = if self.done.is_empty() { 0 } else { self.last_index + 1 };
        let fits = index == expected_index
            && (record.results_start, record.errors_start) == (self.results.bytes, self.errors.bytes)
            && !record.rows.is_empty();
        if !fits {
            return false;
        }
        for (taken, entry) in record.rows.iter().enumerate() {
            if !self.done.insert(RowIx(entry.row)) {
                for entry in &record.rows[..taken] {
                    self.done.remove(RowIx(entry.row));
                }
                return false;
            }
        }
        record.rows.iter().for_each(|entry| self.count(entry));
        self.last_index = index;
        self.last_record.clone_from(record);
        true
    }

    /// Appends a row that is marked as done already. Full records go into the batch; the last one with
    /// [`put_last_record`](Self::put_last_record).
    pub(crate) fn append(&mut self, entry: RowEntry, batch: &mut Batch) {
        if self.last_record.rows.len() >= RECORD_ROWS_MAX {
            self.last_index += 1;
            self.last_record.rows.clear();
        }
        if self.last_record.rows.is_empty() {
            self.last_record.results_start = self.results.bytes;
            self.last_record.errors_start = self.errors.bytes;
        }
        self.last_record.rows.push(entry);
        self.count(&entry);
        if self.last_record.rows.len() == RECORD_ROWS_MAX {
            self.put_record(batch);
        }
    }

    /// Puts the last record unless it is full and was put when it became so.
    pub(crate) fn put_last_record(&self, batch: &mut Batch) {
        if (1..RECORD_ROWS_MAX).contains(&self.last_record.rows.len()) {
            self.put_record(batch);
        }
    }

    fn put_record(&self, batch: &mut Batch) {
        let key = key::row_record(self.id, self.last_index);
        let value = seal(&key, &self.last_record.encode());
        batch.put(key, value);
    }

    fn count(&mut self, entry: &RowEntry) {
        let bytes = u64::from(entry.line_bytes);
        if entry.is_success() {
            self.totals.rows_succeeded += 1;
            self.results.bytes += bytes;
        } else {
            self.totals.rows_failed += 1;
            self.errors.bytes += bytes;
        }
        self.totals.rows_by_fallback += u64::from(entry.by_fallback);
        self.totals.prompt_tokens += u64::from(entry.prompt_tokens);
        self.totals.completion_tokens += u64::from(entry.completion_tokens);
    }

    /// Forgets every row, to read the records again.
    pub(crate) fn forget_rows(&mut self) {
        self.done = RowSet::new(self.state.record.rows_total);
        self.totals = Totals::default();
        self.results = Output::default();
        self.errors = Output::default();
        self.last_record = RowRecord::default();
        self.last_index = 0;
    }

    /// Gives back what is needed only while rows are answered. Of a job that is over little is left in memory, for there
    /// will be thousands of them.
    pub(crate) fn rest(&mut self) {
        self.checkpoints.shrink_to_fit();
        self.last_record.rows.shrink_to_fit();
        // Should the record change once more, `state.json` is written again, whether or not it differs.
        self.sidecar = None;
    }

    /// Removes a row's checkpoint, and returns how many bytes it had.
    pub(crate) fn drop_checkpoint(&mut self, row: RowIx, batch: &mut Batch) -> usize {
        let Some(stored) = self.checkpoints.remove(&row) else { return 0 };
        longvalue::remove(batch, &key::checkpoint(self.id, row, key::Stream::Tokens), &stored[0]);
        if stored[1] != longvalue::Stored::default() {
            longvalue::remove(batch, &key::checkpoint(self.id, row, key::Stream::Logprobs), &stored[1]);
        }
        checkpoint_bytes(&stored)
    }
}

/// Bytes a stored checkpoint takes.
pub(crate) fn checkpoint_bytes(stored: &StoredCheckpoint) -> usize {
    stored[0].bytes + stored[1].bytes
}
