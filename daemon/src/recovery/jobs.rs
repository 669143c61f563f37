//! Jobs are accepted, held back, ended and finished; and what happens as time passes.

use super::{
    effect::{Effect, StopMode},
    event::{Now, RefusedRequest},
    incidents::Opening,
    ladder::Ladder,
    machine::Machine,
    state::{Adopting, Job, Node, StopReason},
};
use crate::model::{Fault, JobId, JobRecord, JobState, NodeId, NodeRecord, ReplayedJob, Severity};

/// Ticks come ten times a second. Without one for this long the controller itself was slow, or stopped, or a disk kept it
/// waiting.
const OWN_ABSENCE_MS: u64 = 1_000;

impl Machine {
    pub(super) fn on_started(&mut self, now: Now, jobs: Vec<ReplayedJob>, nodes: Vec<NodeRecord>) {
        for record in nodes {
            if now.unix_ms.saturating_sub(record.last_seen_unix_ms) > self.policy.forget_node_ms {
                continue;
            }
            self.nodes.insert(record.id.clone(), Node::remembered(record));
        }
        self.close_incidents_before(now);
        for replayed in jobs {
            let id = replayed.record.id;
            let mut job = Job::new(replayed.record);
            job.done = replayed.done;
            job.crashes.forget_done(&job.done);
            job.rows_succeeded = replayed.rows_succeeded;
            job.rows_failed = replayed.rows_failed;
            job.rows_by_fallback = replayed.rows_by_fallback;
            job.prompt_tokens = replayed.prompt_tokens;
            job.completion_tokens = replayed.completion_tokens;
            job.results_bytes = replayed.results_bytes;
            job.errors_bytes = replayed.errors_bytes;
            job.checkpoints = replayed.checkpoints;
            if !job.record.state.is_over() {
                self.open_jobs.insert(id);
                let waiting: std::collections::BTreeSet<NodeId> =
                    job.record.launches.iter().map(|launch| launch.node.clone()).collect();
                let until_mono_ms = now.mono_ms + self.policy.adopt_grace_ms;
                job.adopting = (!waiting.is_empty()).then_some(Adopting { waiting, until_mono_ms });
            }
            self.jobs.insert(id, job);
        }
        // Where a controller ended between the end of a job and what it had to say of its incidents.
        let (open_jobs, incidents) = (&self.open_jobs, &mut self.incidents);
        incidents.close(now, "the job is over", |incident| {
            incident.job.is_some_and(|job| !open_jobs.contains(&job))
        });
    }

    /// Incidents that a controller before this one left open, and nothing that can still happen would close.
    fn close_incidents_before(&mut self, now: Now) {
        let nodes = &self.nodes;
        self.incidents.close(now, "it was not seen again", |incident| {
            incident.fault == Fault::NodeSilent
                && incident.node.as_ref().is_some_and(|node| !nodes.contains_key(node))
        });
        self.incidents.close(now, "the controller was started anew", |incident| {
            matches!(incident.fault, Fault::LinkDown | Fault::LinkUnproven)
        });
        // Where the disk is still full, it shows with the first result.
        self.incidents
            .close(now, "the controller was started anew", |incident| incident.fault == Fault::DiskFull);
    }

    pub(super) fn tell_of_repairs(&mut self, now: Now, repairs: Vec<String>, remains: Vec<String>) {
        for sentence in remains {
            self.emit(Severity::Info, "ledger-replayed", None, None, sentence);
        }
        for repair in repairs {
            self.emit(Severity::Warning, "ledger-repaired", None, None, repair.clone());
            let opening = Opening { summary: repair, ..Opening::default() };
            self.incidents.open(now, Fault::LedgerRepaired, opening);
            self.incidents.close(now, "repaired at start", |i| i.fault == Fault::LedgerRepaired);
        }
    }

    pub(super) fn on_tick(&mut self, now: Now) {
        self.forgive_own_absence(now);
        self.mind_silence(now);
        self.answer_hangs(now);
        self.measure_speeds(now);
        self.count_busy_time(now);
        self.note_breaks(now);
        self.forget_unmet(now);
        self.end_adoption(now);
        self.end_quarantines(now);
        self.tell_of_gpu_restarts(now);
        self.mind_restarts(now);
        self.settle_links(now);
        self.climb(now);
        self.mind_link_tests(now);
        self.park_or_unpark(now);
        for id in self.open_jobs.clone() {
            self.fail_if_nobody_can(now, id);
        }
    }

    fn note_breaks(&mut self, now: Now) {
        for id in &self.open_jobs {
            let Some(job) = self.jobs.get_mut(id) else { continue };
            let is_at_work = job.is_at_work();
            job.rate.note_work(now.mono_ms, is_at_work);
        }
    }

    /// A controller that did not run heard nobody. What it waits for is given that time again.
    fn forgive_own_absence(&mut self, now: Now) {
        let before = self.ticked_mono_ms.replace(now.mono_ms);
        let absent_ms = before.map_or(0, |before| now.mono_ms.saturating_sub(before));
        if absent_ms < OWN_ABSENCE_MS {
            return;
        }
        for node in self.nodes.values_mut() {
            node.forgive_absence(now, absent_ms);
        }
        self.forgive_link_tests(now, absent_ms);
        for id in &self.open_jobs {
            let Some(job) = self.jobs.get_mut(id) else { continue };
            for worker in job.workers.values_mut() {
                worker.last_step_mono_ms = now.mono_ms.min(worker.last_step_mono_ms + absent_ms);
            }
            if let Some(adopting) = &mut job.adopting {
                adopting.until_mono_ms += absent_ms;
            }
        }
        let seconds = absent_ms as f64 / 1e3;
        let message =
            format!("the controller did not run for {seconds:.1} s; nobody counts as silent for it");
        self.emit(Severity::Info, "controller-was-absent", None, None, message);
    }

    /// Rows of workers that did not come back with their controller are handed out again after the grace.
    fn end_adoption(&mut self, now: Now) {
        for id in self.open_jobs.clone() {
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            let Some(adopting) = &job.adopting else { continue };
            if !adopting.waiting.is_empty() && now.mono_ms < adopting.until_mono_ms {
                continue;
            }
            let missing = adopting.waiting.clone();
            job.adopting = None;
            if !missing.is_empty() {
                job.record.launches.retain(|launch| !missing.contains(&launch.node));
                self.record_job(id);
            }
            self.recall_gangs(id);
            self.end_incomplete_gangs(now, id);
            for node in missing {
                let message =
                    format!("the worker of {id} on {node} did not come back; its rows are handed out again");
                self.emit(Severity::Warning, "worker-not-adopted", Some(&node), Some(id), message);
            }
        }
    }

    pub(super) fn on_job_accepted(&mut self, record: JobRecord) {
        let id = record.id;
        let message = format!(
            "{id} ({}) was accepted: {} rows for model {}",
            record.spec.name, record.rows_total, record.spec.model
        );
        self.jobs.insert(id, Job::new(record));
        self.open_jobs.insert(id);
        self.emit(Severity::Info, "job-accepted", None, Some(id), message);
    }

    /// Whether a job can be paused, and if not, why.
    ///
    /// # Errors
    /// The refusal, for the person who asked.
    pub fn may_pause(&self, id: JobId) -> Result<(), RefusedRequest> {
        let job = self.jobs.get(&id).ok_or(RefusedRequest::NoSuchJob(id))?;
        match job.record.state {
            JobState::Active | JobState::Paused => Ok(()),
            state => Err(refusal(id, state, "paused")),
        }
    }

    pub(super) fn on_pause(&mut self, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.record.state != JobState::Active {
            return;
        }
        job.record.state = JobState::Paused;
        // What a person holds back is no time that a fault took.
        job.mending = None;
        "paused by request".clone_into(&mut job.record.detail);
        self.record_job(id);
        let message = format!("{id} was paused; rows being generated are finished");
        self.emit(Severity::Info, "job-paused", None, Some(id), message);
    }

    /// Whether a job can be resumed, and if not, why.
    ///
    /// # Errors
    /// The refusal, for the person who asked.
    pub fn may_resume(&self, id: JobId) -> Result<(), RefusedRequest> {
        let job = self.jobs.get(&id).ok_or(RefusedRequest::NoSuchJob(id))?;
        match job.record.state {
            JobState::Active | JobState::Paused => Ok(()),
            state => Err(refusal(id, state, "resumed")),
        }
    }

    pub(super) fn on_resume(&mut self, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.record.state != JobState::Paused {
            return;
        }
        job.record.state = JobState::Active;
        job.record.detail.clear();
        // Whoever resumes has looked: what failed before gets another chance.
        job.failures_of_job = 0;
        job.backoff.clear();
        job.unfit.clear();
        job.fallback_unfit.clear();
        job.out_of_memory.clear();
        job.rate.reset();
        self.record_job(id);
        self.emit(Severity::Info, "job-resumed", None, Some(id), format!("{id} goes on"));
    }

    /// Whether a job can be cancelled, and if not, why.
    ///
    /// # Errors
    /// The refusal, for the person who asked.
    pub fn may_cancel(&self, id: JobId) -> Result<(), RefusedRequest> {
        let job = self.jobs.get(&id).ok_or(RefusedRequest::NoSuchJob(id))?;
        if job.record.state.is_over() { Err(refusal(id, job.record.state, "cancelled")) } else { Ok(()) }
    }

    pub(super) fn on_cancel(&mut self, now: Now, id: JobId, at_once: bool) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.record.state.is_over() {
            return;
        }
        if job.record.state != JobState::Cancelling {
            job.record.state = JobState::Cancelling;
            job.record.detail = match (at_once, job.leases.is_empty()) {
                (true, _) => "cancelled at once",
                (false, true) => "",
                (false, false) => "rows being generated are finished",
            }
            .to_owned();
            job.adopting = None;
            self.record_job(id);
            self.emit(Severity::Info, "job-cancelling", None, Some(id), format!("{id} is being cancelled"));
        }
        if at_once {
            self.stop_all(now, id, StopMode::Kill, "the job was cancelled");
        }
    }

    pub(super) fn stop_all(&mut self, now: Now, id: JobId, mode: StopMode, reason: &str) {
        let nodes: Vec<NodeId> =
            self.jobs.get(&id).map_or_else(Vec::new, |job| job.workers.keys().cloned().collect());
        for node in nodes {
            self.stop(now, &node, id, mode, StopReason::NotNeeded, reason);
        }
    }

    pub(super) fn fail_job(&mut self, now: Now, id: JobId, why: String) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.record.state.is_over() {
            return;
        }
        job.record.detail.clone_from(&why);
        self.emit(Severity::Error, "job-failed", None, Some(id), format!("{id} failed: {why}"));
        self.stop_all(now, id, StopMode::Kill, "the job failed");
        self.end_job(now, id, JobState::Failed);
    }

    fn end_job(&mut self, now: Now, id: JobId, state: JobState) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.record.state = state;
        if state == JobState::Cancelled {
            // It told what was still going on.
            job.record.detail.clear();
        }
        job.record.finished_unix_ms = Some(now.unix_ms);
        job.record.launches.clear();
        job.leases.clear();
        job.returned.clear();
        job.attempts.clear();
        job.checkpoints.clear();
        job.failing.clear();
        job.record.crashes.clear();
        job.gangs.clear();
        job.adopting = None;
        job.closed = None;
        job.ladder = Ladder::default();
        job.parked = None;
        self.open_jobs.remove(&id);
        self.record_job(id);
        self.incidents.close(now, "the job is over", |incident| incident.job == Some(id));
        self.out.push(Effect::JobOver(id));
    }

    /// Ends jobs that have reached their end.
    pub(super) fn settle_jobs(&mut self, now: Now) {
        for id in self.open_jobs.clone() {
            let Some(job) = self.jobs.get(&id) else { continue };
            let rows_total = job.record.rows_total;
            if job.done.is_full() {
                let (succeeded, failed) = (job.rows_succeeded, job.rows_failed);
                self.note_end_of_mending(id);
                self.stop_all(now, id, StopMode::FinishStarted, "every row has its answer");
                self.end_job(now, id, JobState::Completed);
                let errors = match failed {
                    0 => String::new(),
                    failed => format!(", {failed} ended with an error"),
                };
                let message = format!("{id} is complete: {succeeded} of {rows_total} rows answered{errors}");
                self.emit(Severity::Info, "job-completed", None, Some(id), message);
            } else if job.record.state == JobState::Cancelling
                && job.workers.is_empty()
                && job.leases.is_empty()
            {
                let done = job.done.len();
                self.end_job(now, id, JobState::Cancelled);
                let message = format!("{id} is cancelled: {done} of {rows_total} rows were finished before");
                self.emit(Severity::Info, "job-cancelled", None, Some(id), message);
            }
        }
    }
}

/// How a state is called in a sentence.
#[must_use]
pub(super) fn state_word(state: JobState) -> &'static str {
    match state {
        JobState::Active => "running",
        JobState::Paused => "paused",
        JobState::Cancelling => "being cancelled",
        JobState::Cancelled => "cancelled",
        JobState::Completed => "complete",
        JobState::Failed => "failed",
    }
}

fn refusal(job: JobId, state: JobState, wish: &'static str) -> RefusedRequest {
    let word = state_word(state);
    if state.is_over() {
        RefusedRequest::JobIsOver { job, state: word }
    } else {
        RefusedRequest::WrongState { job, state: word, wish }
    }
}
