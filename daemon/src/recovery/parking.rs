//! The foot of the ladder: a job that nothing runs, and nothing is about to run, says so, why, and what a person can do. It
//! is asked again with every tick, so it goes on by itself as soon as there is a way.

use super::{
    event::Now,
    machine::Machine,
    state::{Job, Node},
};
use crate::model::{JobId, JobState, Severity};

/// For shorter waits nobody is called: an agent that was started again is back, a worker that failed is tried again.
const PARKED_AFTER_MS: u64 = 30_000;

/// Why a job waits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parked {
    /// Since when nothing has run it.
    pub since_unix_ms: u64,
    /// Why, and what can be done: for a person.
    pub why: String,
}

impl Machine {
    pub(super) fn park_or_unpark(&mut self, now: Now) {
        for id in self.open_jobs.clone() {
            let Some(job) = self.jobs.get(&id) else { continue };
            let waits = self.waits_for_nothing_known(now, job);
            let why = if waits { self.why_parked(job) } else { String::new() };
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            if !waits {
                job.idle_since = None;
                // What else keeps it (a pause, its window, a job before it) is told there.
                if job.parked.take().is_some() && !job.workers.is_empty() {
                    self.emit(Severity::Info, "job-unparked", None, Some(id), format!("{id} goes on"));
                }
                continue;
            }
            let since = *job.idle_since.get_or_insert(now);
            if now.mono_ms.saturating_sub(since.mono_ms) < PARKED_AFTER_MS {
                continue;
            }
            let parked = Parked { since_unix_ms: since.unix_ms, why };
            let before = job.parked.replace(parked.clone());
            if before.is_none() {
                let message = format!("nothing runs {id}: {}", parked.why);
                self.emit(Severity::Warning, "job-parked", None, Some(id), message);
            }
        }
    }

    /// Whether a job wants to run, has no worker, and waits for nothing that has a time.
    fn waits_for_nothing_known(&self, now: Now, job: &Job) -> bool {
        let is_tried_again = job.backoff.values().any(|backoff| backoff.not_before_mono_ms > now.mono_ms);
        job.record.state == JobState::Active
            && job.workers.is_empty()
            && job.rows_waiting() > 0
            && !job.is_adopting()
            && job.closed.is_none()
            && self.storage_problem.is_none()
            && !is_tried_again
            && self.goes_first(job).is_none()
    }

    fn why_parked(&self, job: &Job) -> String {
        let reasons = job.plan.as_ref().map_or(&[][..], |plan| plan.reasons.as_slice());
        let refused: Vec<&str> = reasons
            .iter()
            .skip(1)
            .filter(|reason| reason.node.is_none())
            .map(|reason| reason.text.as_str())
            .collect();
        let of_nodes = || {
            let texts = self.nodes.values().filter_map(|node| {
                reasons
                    .iter()
                    .find(|reason| reason.rule == "not-on" && reason.node.as_ref() == Some(&node.id))
            });
            texts.map(|reason| reason.text.as_str()).collect::<Vec<_>>()
        };
        let why = if refused.is_empty() { of_nodes() } else { refused };
        let why = if why.is_empty() { "no node can take it".to_owned() } else { why.join("; ") };
        format!("{why}. {}", self.remedy(job.record.id))
    }

    fn remedy(&self, id: JobId) -> String {
        let by_itself = "It goes on by itself as soon as it can";
        let draining: Vec<&str> =
            self.nodes.values().filter(|node| node.draining).map(|node| node.id.as_str()).collect();
        let away: Vec<&str> = self
            .nodes
            .values()
            .filter(|node: &&Node| node.session.is_none())
            .map(|node| node.id.as_str())
            .collect();
        let has_fallback = self.jobs.get(&id).is_some_and(|job| job.record.spec.fallback_model.is_some());
        if !away.is_empty() {
            format!("{by_itself}: look at {}", away.join(", "))
        } else if !draining.is_empty() {
            format!("{by_itself}: `clusterctl undrain {}`", draining[0])
        } else if has_fallback {
            by_itself.to_owned()
        } else {
            format!("{by_itself}; a smaller model can stand in: submit it again with --fallback-model")
        }
    }
}
