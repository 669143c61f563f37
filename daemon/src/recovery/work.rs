//! Counts who does how much of a job: rows as they become durable, and the time in which workers have rows at work.
//!
//! What is counted rides along whenever the job's record is written, and is written for its own sake at most once a minute.

use super::{
    event::{CommittedRow, Now, WorkerPhase},
    machine::Machine,
    state::{Job, Worker},
};
use crate::model::{JobId, NodeId};

/// How much of the split a crash of the controller may lose: nobody misses a minute of it, and no disk feels a write a minute.
const WRITE_AFTER_MS: u64 = 60_000;

/// The longest time between two ticks that counts: past it the controller did not run, and does not know who worked.
const MOST_AT_ONCE_MS: u64 = 1_000;

impl Job {
    /// A row from this node has become durable. To be told before its lease is forgotten.
    pub(super) fn note_row_done(&mut self, now: Now, node: &NodeId, row: &CommittedRow) {
        let rung = self.leases.get(&row.row).and_then(|lease| self.rung_of(lease.epoch));
        let (read, written) = (u64::from(row.prompt_tokens), u64::from(row.completion_tokens));
        self.record.work.note_row(node, rung, read, written);
        self.work_unwritten_since_mono_ms.get_or_insert(now.mono_ms);
    }
}

impl Machine {
    /// Time has passed: who had rows at work had them for that long.
    pub(super) fn count_busy_time(&mut self, now: Now) {
        let before = self.busy_counted_mono_ms.replace(now.mono_ms).unwrap_or(now.mono_ms);
        let passed_ms = now.mono_ms.saturating_sub(before).min(MOST_AT_ONCE_MS);
        // Ranks other than 0 know of no rows.
        let is_busy = |worker: &&Worker| {
            worker.rank == 0
                && worker.active_rows > 0
                && matches!(worker.phase, WorkerPhase::Prefill | WorkerPhase::Decode)
        };
        let mut due: Vec<JobId> = Vec::new();
        for id in &self.open_jobs {
            let Some(job) = self.jobs.get_mut(id) else { continue };
            for worker in job.workers.values().filter(is_busy) {
                job.record.work.note_busy(&worker.node, passed_ms);
                job.work_unwritten_since_mono_ms.get_or_insert(now.mono_ms);
            }
            let since = job.work_unwritten_since_mono_ms;
            if since.is_some_and(|since| now.mono_ms >= since + WRITE_AFTER_MS) {
                due.push(*id);
            }
        }
        // A full disk is not asked for the sake of this.
        if self.storage_problem.is_none() {
            for id in due {
                self.record_job(id);
            }
        }
    }
}
