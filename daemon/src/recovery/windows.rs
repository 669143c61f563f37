//! Jobs with a window. Outside it a job takes no node, and what is at work when it closes is ended within a bound; its
//! unfinished rows keep their checkpoints and go on at the next opening.
//!
//! ```text
//! open ──closes──▶ draining: finish what is begun ──bound──▶ draining: checkpoint ──▶ waiting ──opens──▶ open
//! ```
//!
//! A job that a restarted controller finds at work outside its window is drained the same way.

use super::{
    effect::StopMode,
    event::Now,
    machine::Machine,
    state::{Job, StopReason, Worker},
};
use crate::model::{
    Epoch, JobId, JobState, Mode, NodeId, Obstacle, Outlook, Pacing, Plan, Reason, Severity, TimeOfDay,
    Window, forecast,
};

/// A window that is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Closed {
    window: Window,
    /// When it opens next.
    opens_unix_ms: Option<u64>,
    /// The same, on its clock.
    opens: TimeOfDay,
    /// Since when workers are found that should not be there.
    draining_since_mono_ms: Option<u64>,
}

impl Closed {
    fn waiting_words(self) -> String {
        format!("waits for its window: opens {}", self.opens)
    }

    /// Why its workers end.
    pub(super) fn closing_words(self) -> String {
        format!("the window closed at {}", self.window.closes())
    }
}

impl Job {
    /// When its window opens next, while it is closed.
    #[must_use]
    pub fn window_opens_unix_ms(&self) -> Option<u64> {
        self.closed?.opens_unix_ms
    }

    /// What its window makes it do, while it is closed: one sentence.
    #[must_use]
    pub fn window_words(&self) -> Option<String> {
        let closed = self.closed?;
        Some(if self.workers.is_empty() {
            closed.waiting_words()
        } else {
            let closing = closed.closing_words();
            format!("{closing}: what is begun is finished, or kept for the opening at {}", closed.opens)
        })
    }

    /// Whether it has workers, or rows are out.
    pub(super) fn is_at_work(&self) -> bool {
        !self.workers.is_empty() || !self.leases.is_empty()
    }

    /// Whether it has all ranks of a launch; some may not have come back yet to a restarted controller.
    pub(super) fn has_all_ranks(&self, epoch: Epoch) -> bool {
        let ranks = self.nodes_of(epoch).len();
        let mut of_launch = self.workers.values().filter(|worker| worker.epoch == epoch);
        of_launch.next().is_some_and(|worker| u32::try_from(ranks) == Ok(worker.world_size))
    }
}

impl Machine {
    /// Opens and closes windows, and ends what drains for too long.
    pub(super) fn mind_windows(&mut self, now: Now) {
        let with_windows: Vec<(JobId, Window)> = self
            .open_jobs
            .iter()
            .filter_map(|id| Some((*id, self.jobs.get(id)?.record.spec.window?)))
            .collect();
        for (id, window) in with_windows {
            match window.closes_at(now.unix_ms, &self.zone) {
                Some(closes_unix_ms) => self.open_window(id, closes_unix_ms),
                None => self.close_window(now, id, window),
            }
        }
    }

    fn open_window(&mut self, id: JobId, closes_unix_ms: u64) {
        let until = TimeOfDay::at(closes_unix_ms, &self.zone);
        let Some(job) = self.jobs.get_mut(&id).filter(|job| job.closed.is_some()) else { return };
        job.closed = None;
        job.rate.reset();
        if job.record.state == JobState::Active {
            let message = format!("the window of {id} is open until {until}");
            self.emit(Severity::Info, "window-opened", None, Some(id), message);
        }
    }

    fn close_window(&mut self, now: Now, id: JobId, window: Window) {
        let opens_unix_ms = window.next_opening(now.unix_ms, &self.zone);
        let opens = opens_unix_ms.map_or(window.opens(), |at| TimeOfDay::at(at, &self.zone));
        let bound_ms = self.policy.window_drain_ms;
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let is_news = job.closed.is_none();
        let is_active = job.record.state == JobState::Active;
        let draining_since_mono_ms = if job.workers.is_empty() {
            None
        } else {
            Some(job.closed.and_then(|closed| closed.draining_since_mono_ms).unwrap_or(now.mono_ms))
        };
        let closed = Closed { window, opens_unix_ms, opens, draining_since_mono_ms };
        job.closed = Some(closed);
        if is_active {
            let mode = job.plan.as_ref().map(|plan| plan.mode).or(job.record.spec.mode);
            let reasons = vec![Reason::new("window", closed.waiting_words())];
            let mode = mode.unwrap_or(Mode::Independent);
            job.plan = Some(Plan { mode, backend: None, nodes: Vec::new(), reasons });
        }
        if is_news {
            job.rate.reset();
        }
        if is_news && is_active {
            let message = match job.workers.is_empty() {
                true => format!("{id} {}", closed.waiting_words()),
                false => format!(
                    "{} for {id}: what is begun may go on for {} s; what is not finished then is kept for the \
                     opening at {opens}",
                    closed.closing_words(),
                    bound_ms / 1_000
                ),
            };
            self.emit(Severity::Info, "window-closed", None, Some(id), message);
        }
        if draining_since_mono_ms.is_some_and(|since| now.mono_ms >= since.saturating_add(bound_ms)) {
            self.checkpoint_overdue(now, id, closed);
        }
    }

    /// Workers that were told to finish what they had begun, and have not within the bound. Whoever is out of reach is told
    /// when it is back.
    fn checkpoint_overdue(&mut self, now: Now, id: JobId, closed: Closed) {
        let Some(job) = self.jobs.get(&id) else { return };
        let hears = |node: &NodeId| {
            let session = self.nodes.get(node).and_then(|node| node.session.as_ref());
            session.is_some_and(|session| session.replaying.is_none())
        };
        let finishes = |worker: &Worker| {
            worker.stopping.is_some() && matches!(worker.stop_mode, None | Some(StopMode::FinishStarted))
        };
        let overdue = job.workers.values().filter(|worker| finishes(worker) && hears(&worker.node));
        let overdue: Vec<NodeId> = overdue.map(|worker| worker.node.clone()).collect();
        let kept = match job.record.state {
            JobState::Active => format!("; its rows go on from their checkpoints at {}", closed.opens),
            _ => String::new(),
        };
        let seconds = self.policy.window_drain_ms / 1_000;
        for node in overdue {
            let reason = format!("{}, {seconds} s are over", closed.closing_words());
            self.stop(now, &node, id, StopMode::Checkpoint, StopReason::NotNeeded, &reason);
            let message = format!(
                "the worker of {id} on {node} had not finished {seconds} s after its window closed{kept}"
            );
            self.emit(Severity::Info, "window-drain-over", Some(&node), Some(id), message);
        }
    }

    /// When a job will be done, or why that is not known. `None` for jobs that are over or being cancelled.
    #[must_use]
    pub fn outlook(&self, now: Now, job: &Job) -> Option<Outlook> {
        match job.record.state {
            JobState::Active => {}
            JobState::Paused => return Some(Outlook::Unknown(Obstacle::Paused)),
            _ => return None,
        }
        let rows_left = u64::from(job.record.rows_total - job.done.len());
        let deadline_unix_ms = job.record.spec.deadline_unix_ms;
        if let Some(closed) = job.closed {
            let obstacle = Obstacle::OutsideWindow;
            let is_late = closed.opens_unix_ms.zip(deadline_unix_ms).is_some_and(|(opens, deadline)| {
                deadline > now.unix_ms && deadline <= opens && !job.is_at_work()
            });
            return Some(match is_late {
                true => Outlook::Late { obstacle, rows_left },
                false => Outlook::Unknown(obstacle),
            });
        }
        if !job.is_at_work() {
            let obstacle = self.goes_first(job).map_or(Obstacle::NotRunning, Obstacle::Behind);
            return Some(Outlook::Unknown(obstacle));
        }
        let Some(rows_per_s) = job.settled_rows_per_s(now.mono_ms) else {
            return Some(Outlook::Unknown(Obstacle::TooEarly));
        };
        let pacing = Pacing { rows_left, rows_per_s, window: job.record.spec.window, deadline_unix_ms };
        Some(Outlook::Known(forecast(now.unix_ms, pacing, &self.zone)))
    }

    /// Of the other jobs at work where this one could be, the first in turn.
    pub(super) fn goes_first(&self, job: &Job) -> Option<JobId> {
        let open = self.open_jobs.iter().filter_map(|id| self.jobs.get(id));
        let is_in_its_place = |worker: &Worker| {
            let node = &worker.node;
            worker.stopping.is_none() && job.layout.admits(node) && !job.unfit.contains_key(node)
        };
        let at_work = open
            .filter(|other| other.record.id != job.record.id && other.workers.values().any(is_in_its_place));
        let first =
            at_work.min_by_key(|other| (std::cmp::Reverse(other.record.spec.priority), other.record.id));
        first.map(|first| first.record.id)
    }
}
