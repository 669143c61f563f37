//! What faults cost: rows handed out again, tokens kept by checkpoints and tokens lost, how long nothing was noticed, and how
//! long it took until a new launch wrote its first token.

use std::ops::AddAssign;

use super::{
    event::{Now, ResultHead, WorkerPhase},
    machine::Machine,
    state::{Job, Worker},
};
use crate::model::{Epoch, JobId, NodeId};

/// Incidents that wait for the same first token at most: a burst of faults is mended by one launch.
const MOST_MENDED: usize = 8;

/// What the end of a worker costs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Costs {
    /// Rows handed out again.
    pub(super) rows: u64,
    /// Tokens of theirs that are in checkpoints.
    pub(super) tokens_saved: u64,
    /// Tokens of theirs that were generated and are in none.
    pub(super) tokens_lost: u64,
}

impl AddAssign for Costs {
    fn add_assign(&mut self, other: Self) {
        self.rows += other.rows;
        self.tokens_saved += other.tokens_saved;
        self.tokens_lost += other.tokens_lost;
    }
}

/// A worker that had ended when its agent came back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Vanished {
    pub(super) job: JobId,
    /// What is told of it.
    pub(super) incident: u64,
    /// Its tokens that are in no checkpoint, nor in a result that has come.
    pub(super) tokens_at_risk: u64,
}

/// Faults of a job after which no launch has written anything yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Mending {
    incidents: Vec<u64>,
    since_mono_ms: u64,
    /// The newest launch then.
    after: Epoch,
    /// How long the new launch took until it was ready.
    start_ms: u64,
}

impl Worker {
    /// Tokens it has generated, as far as it has told, that are in no checkpoint and no result.
    pub(super) fn tokens_at_risk(&self) -> u64 {
        self.generated_tokens.saturating_sub(self.accounted_tokens)
    }
}

impl Job {
    /// Whether another launch than this one is at work.
    fn others_at_work(&self, epoch: Epoch) -> bool {
        self.workers.values().any(|worker| {
            worker.epoch != epoch
                && worker.stopping.is_none()
                && matches!(worker.phase, WorkerPhase::Prefill | WorkerPhase::Decode)
        })
    }
}

impl Machine {
    /// A result holds its tokens, those of its checkpoints among them.
    pub(super) fn account_result(&mut self, node: &NodeId, head: &ResultHead) {
        let Some(job) = self.jobs.get_mut(&head.worker.job) else { return };
        let in_checkpoints = job.checkpoints.get(&head.row).map_or(0, |known| known.tokens.len() as u64);
        let tokens = u64::from(head.completion_tokens).saturating_sub(in_checkpoints);
        if let Some(worker) = job.workers.get_mut(node).filter(|worker| worker.epoch == head.worker.epoch) {
            worker.accounted_tokens += tokens;
        } else if let Some(session) = self.nodes.get_mut(node).and_then(|node| node.session.as_mut()) {
            let vanished = session.vanished.iter_mut().find(|vanished| vanished.job == head.worker.job);
            if let Some(vanished) = vanished {
                vanished.tokens_at_risk = vanished.tokens_at_risk.saturating_sub(tokens);
            }
        }
    }

    /// An incident ended a launch of this job: notes it, for the first token of the next one.
    pub(super) fn await_first_token(&mut self, now: Now, job_id: JobId, epoch: Epoch, incident: u64) {
        let Some(job) = self.jobs.get_mut(&job_id).filter(|job| !job.record.state.is_over()) else { return };
        if job.others_at_work(epoch) {
            self.incidents.note_way(incident, "the other workers");
            return;
        }
        let after = job.record.epoch;
        let mending = job.mending.get_or_insert(Mending {
            incidents: Vec::new(),
            since_mono_ms: now.mono_ms,
            after,
            start_ms: 0,
        });
        mending.after = mending.after.max(after);
        if !mending.incidents.contains(&incident) && mending.incidents.len() < MOST_MENDED {
            mending.incidents.push(incident);
        }
    }

    /// A worker has started and loaded: that takes what it takes.
    pub(super) fn note_start(&mut self, job_id: JobId, epoch: Epoch, start_ms: u64) {
        let mending = self.jobs.get_mut(&job_id).and_then(|job| job.mending.as_mut());
        if let Some(mending) = mending.filter(|mending| epoch > mending.after) {
            mending.start_ms = mending.start_ms.max(start_ms);
        }
    }

    /// A launch has written more tokens.
    pub(super) fn note_tokens(&mut self, now: Now, job_id: JobId, epoch: Epoch) {
        let Some(job) = self.jobs.get_mut(&job_id) else { return };
        // One that was there before and is to go on: it had nothing to do at the time, and has the rows now.
        let mut of_launch = job.workers.values().filter(|worker| worker.epoch == epoch);
        let is_another = of_launch.all(|worker| worker.stopping.is_none());
        let Some(mending) = job.mending.take_if(|mending| epoch > mending.after || is_another) else {
            return;
        };
        if epoch <= mending.after {
            self.note_others(mending);
            return;
        }
        let way = job.rung_of(epoch).map(|rung| rung.to_string()).unwrap_or_default();
        let took_ms = now.mono_ms.saturating_sub(mending.since_mono_ms);
        for incident in mending.incidents {
            self.incidents.note_way(incident, &way);
            self.incidents.note_first_token(incident, took_ms, mending.start_ms);
        }
    }

    /// The last rows came before any report of how they were written: by those that are there.
    pub(super) fn note_end_of_mending(&mut self, job_id: JobId) {
        let Some(job) = self.jobs.get_mut(&job_id) else { return };
        let is_at_work = job.workers.values().any(|worker| worker.stopping.is_none());
        if let Some(mending) = job.mending.take().filter(|_| is_at_work) {
            self.note_others(mending);
        }
    }

    fn note_others(&mut self, mending: Mending) {
        for incident in mending.incidents {
            self.incidents.note_way(incident, "the other workers");
        }
    }
}
