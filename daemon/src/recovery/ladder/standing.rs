//! What is told of a job's place on the ladder to whoever asks. Reads, never changes.

use super::{Better, Ladder, MOST_CLIMB_SETTLE_MS, rung_of};
use crate::{
    model::{JobId, Rung},
    recovery::{
        event::Now,
        machine::Machine,
        rules::{self, Policy},
    },
};

/// A better way to run that is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::recovery) struct WayUp {
    pub(in crate::recovery) to: Rung,
    /// How long it has been there.
    pub(in crate::recovery) held_ms: u64,
    /// How long it must have been there.
    pub(in crate::recovery) settle_ms: u64,
    /// What changing to it costs.
    pub(in crate::recovery) load_ms: u64,
    /// How long the rows left take as the job runs now, where that pays for it.
    pub(in crate::recovery) left_ms: Option<u64>,
}

impl Ladder {
    /// How many changes of late are not forgotten.
    pub(in crate::recovery) fn penalty(&self, now: Now, policy: &Policy) -> f64 {
        self.changes.amount(now.mono_ms, policy.penalty_half_life_ms)
    }

    /// How long a better way must be there now before it is changed to.
    pub(in crate::recovery) fn settle_ms(&self, now: Now, policy: &Policy) -> u64 {
        let (half_life_ms, base_ms) = (policy.penalty_half_life_ms, policy.climb_settle_ms);
        self.changes.settle_ms(now.mono_ms, half_life_ms, base_ms, MOST_CLIMB_SETTLE_MS)
    }

    /// For how long the job's own model could not run anywhere.
    pub(in crate::recovery) fn stranded_ms(&self, now: Now) -> Option<u64> {
        self.stranded_since_mono_ms.map(|since| now.mono_ms.saturating_sub(since))
    }
}

impl Machine {
    /// The better way that was found at the last tick, if there was one.
    pub(in crate::recovery) fn way_up(&self, now: Now, id: JobId) -> Option<WayUp> {
        let job = self.jobs.get(&id)?;
        let (to, since_mono_ms) = job.ladder.better?;
        let (_, ranks, mut nodes) = rung_of(job.ladder.ideal.current())?;
        nodes.extend(job.workers.keys().cloned());
        let held_ms = now.mono_ms.saturating_sub(since_mono_ms);
        let better = Better { from: job.rung()?, to, nodes, ranks, held_ms };
        let load_ms = self.load_ms(job, &better);
        let left_ms = rules::worth_loading_again(
            u64::from(job.record.rows_total - job.done.len()),
            job.rows_per_s(now.mono_ms),
            held_ms,
            job.workers.values().map(|worker| worker.settings.max_batch_rows).max()?,
            load_ms,
        );
        Some(WayUp { to, held_ms, settle_ms: job.ladder.settle_ms(now, &self.policy), load_ms, left_ms })
    }
}
