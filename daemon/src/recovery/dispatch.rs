//! Carries the planner's choice out: workers that should run are started, workers that should not are stopped, and
//! workers that are ready get rows, a little ahead of need.

use std::collections::BTreeMap;

use super::{
    effect::{Command, RowGrant, StopMode},
    event::Now,
    gangs::limited,
    machine::Machine,
    rules,
    state::{Job, Lease, StopReason},
};
use crate::{
    model::{Epoch, JobId, JobState, Mode, NodeId, Severity},
    planner::{self, Assignment, GangPlan, JobView, Limits, NodeView, RunningGangs, View},
};

impl Machine {
    pub(super) fn dispatch(&mut self, now: Now) {
        if self.open_jobs.is_empty() {
            return;
        }
        let view = self.view(now);
        let assignment = planner::assign(&view);
        let violations = planner::check(&assignment, &view);
        if violations.is_empty() {
            self.carry_out_assignment(now, &view, &assignment);
        } else {
            let found: Vec<String> = violations.iter().map(ToString::to_string).collect();
            let message = format!("a plan was refused and nothing was changed: {}", found.join("; "));
            self.emit(Severity::Error, "plan-refused", None, None, message);
        }
        self.grant_rows();
    }

    fn view(&mut self, now: Now) -> View {
        let nodes = self.nodes.values().map(|node| {
            let running = self.open_jobs.iter().find_map(|id| {
                let job = self.jobs.get(id)?;
                let worker = job.workers.get(&node.id).filter(|worker| worker.stopping.is_none())?;
                // The rows of a gang are with rank 0, and keep every rank.
                let held = job.workers.values().filter(|other| other.epoch == worker.epoch);
                Some((*id, held.map(|worker| worker.held_rows).sum()))
            });
            let unusable = node.unusable(now);
            let busy = self.busy(&node.id);
            NodeView {
                id: node.id.clone(),
                ending: unusable.is_none() && busy.is_some(),
                unusable: unusable.or(busy),
                running: running.map(|(id, _)| id),
                held_rows: running.map_or(0, |(_, held_rows)| held_rows),
            }
        });
        let nodes = nodes.collect();
        let wanting: Vec<JobId> = self
            .open_jobs
            .iter()
            .filter(|id| {
                self.jobs.get(id).is_some_and(|job| {
                    job.record.state == JobState::Active && !job.is_adopting() && job.closed.is_none()
                })
            })
            .copied()
            .collect();
        let jobs = wanting.into_iter().filter_map(|id| {
            let layout = self.layout(now, id);
            let job = self.jobs.get(&id)?;
            let batch_rows = limited(job.record.spec.settings(&self.policy), layout.limits()).max_batch_rows;
            Some(JobView {
                id,
                priority: job.record.spec.priority,
                waiting_rows: job.rows_waiting(),
                batch_rows,
                barred: barred(job, now),
                kept: job.ladder.kept(),
                why_here: job.why_here().cloned(),
                layout,
                gangs: running_gangs(job),
            })
        });
        View { jobs: jobs.collect(), nodes }
    }

    /// A node whose worker has not ended yet has no room for another.
    pub(super) fn busy(&self, node: &NodeId) -> Option<String> {
        let stopping = self.jobs.iter().find_map(|(id, job)| {
            let worker = job.workers.get(node)?;
            worker.stopping.is_some().then_some(*id)
        })?;
        Some(format!("its worker for {stopping} is still ending"))
    }

    fn carry_out_assignment(&mut self, now: Now, view: &View, assignment: &Assignment) {
        for (id, plan) in &assignment.plans {
            if let Some(job) = self.jobs.get_mut(id)
                && job.plan.as_ref() != Some(plan)
            {
                job.plan = Some(plan.clone());
            }
        }
        for node in &view.nodes {
            let wanted = assignment.nodes.get(&node.id).copied();
            match (node.running, wanted) {
                (Some(running), Some(wanted)) if running == wanted => {}
                (Some(running), wanted) => self.end_worker(now, node, running, wanted),
                (None, Some(wanted)) => {
                    let is_rank = assignment.gangs.iter().any(|(_, gang)| has_rank_on(gang, &node.id));
                    // With nowhere to put results, a model is not loaded either.
                    if self.storage_problem.is_none() && !is_rank {
                        let of_job = view.jobs.iter().find(|job| job.id == wanted);
                        let limits = of_job.map_or(Limits::NONE, |job| job.layout.limits());
                        let reasons = assignment.plans.get(&wanted).map(|plan| plan.reasons.as_slice());
                        self.launch(now, &node.id, wanted, limits, reasons.unwrap_or_default());
                    }
                }
                (None, None) => {}
            }
        }
        for (job, gang) in &assignment.gangs {
            // A gang waits until each of its nodes is free: whatever runs there has been told to end above.
            let is_free = |node: &NodeView| node.running.is_none() && has_rank_on(gang, &node.id);
            let free = view.nodes.iter().filter(|node| is_free(node)).count();
            if self.storage_problem.is_some() || free != gang.ranks.len() {
                continue;
            }
            let Some(view) = view.jobs.iter().find(|view| view.id == *job) else { continue };
            let reasons = assignment.plans.get(job).map(|plan| plan.reasons.clone()).unwrap_or_default();
            // The first sentence tells how many nodes there are, and is made anew each time.
            let limits = view.layout.limits();
            self.launch_gang(now, *job, gang, limits, reasons.into_iter().skip(1).collect());
        }
    }

    fn end_worker(&mut self, now: Now, node: &NodeView, running: JobId, wanted: Option<JobId>) {
        let Some(job) = self.jobs.get(&running) else { return };
        let epoch = job.workers.get(&node.id).map(|worker| worker.epoch);
        let must_end = job.closed.is_some() && epoch.is_some_and(|epoch| job.has_all_ranks(epoch));
        if job.is_adopting() && job.record.state == JobState::Active && !must_end {
            // Its rows are not all accounted for yet; it goes on with what it has.
            return;
        }
        let away = self.nodes.get(&node.id).is_none_or(|node| node.session.is_none());
        let replaying = self
            .nodes
            .get(&node.id)
            .and_then(|node| node.session.as_ref())
            .is_some_and(|session| session.replaying.is_some());
        if away || replaying {
            // Being out of reach for a moment is no reason to unload a model.
            return;
        }
        let reason = match (job.record.state, job.closed, wanted) {
            (JobState::Paused, ..) => "the job is paused".to_owned(),
            (JobState::Cancelling, ..) => "the job is being cancelled".to_owned(),
            (_, Some(closed), _) => closed.closing_words(),
            (_, None, Some(wanted)) => format!("the node is wanted for {wanted}"),
            (_, None, None) => node.unusable.clone().unwrap_or_else(|| "no rows are left for it".to_owned()),
        };
        // The ranks of a gang end together, each when rank 0 has finished what it had begun.
        let together = self.jobs.get(&running).and_then(|job| {
            let worker = job.workers.get(&node.id)?;
            Some(job.nodes_of(worker.epoch))
        });
        for node in together.unwrap_or_default() {
            self.stop(now, &node, running, StopMode::FinishStarted, StopReason::NotNeeded, &reason);
        }
    }

    /// Fills every ready worker's window.
    fn grant_rows(&mut self) {
        if self.storage_problem.is_some() {
            return;
        }
        for id in self.open_jobs.clone() {
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            if job.record.state != JobState::Active || job.is_adopting() || job.closed.is_some() {
                continue;
            }
            for (node, rows) in fill_windows(job, &self.nodes) {
                let Some(worker) =
                    self.jobs.get(&id).and_then(|job| job.workers.get(&node)).map(|w| w.key(id))
                else {
                    continue;
                };
                self.send(&node, Command::GrantRows { worker, rows });
            }
        }
    }
}

fn fill_windows(
    job: &mut Job,
    nodes: &BTreeMap<NodeId, super::state::Node>,
) -> BTreeMap<NodeId, Vec<RowGrant>> {
    let mut granted: BTreeMap<NodeId, Vec<RowGrant>> = BTreeMap::new();
    let reachable = |node: &NodeId| {
        nodes.get(node).is_some_and(|node| {
            !node.draining && node.session.as_ref().is_some_and(|session| session.replaying.is_none())
        })
    };
    let ready: Vec<NodeId> = job
        .workers
        .iter()
        .filter(|(node, worker)| worker.rank == 0 && job.is_complete(worker.epoch) && reachable(node))
        .map(|(node, _)| node.clone())
        .collect();
    let workers = u32::try_from(ready.len()).unwrap_or(u32::MAX);
    for node in ready {
        if job.is_on_trial(&node) {
            continue;
        }
        if let Some(worker) = job.workers.get(&node).filter(|worker| worker.held_rows == 0) {
            let epoch = worker.epoch;
            for row in job.next_trial() {
                let attempt = job.next_attempt(row);
                job.grant(row, Lease { node: node.clone(), epoch, attempt, committing: false });
                granted.entry(node.clone()).or_default().push(RowGrant { row, attempt });
            }
            if granted.contains_key(&node) {
                continue;
            }
        }
        while let Some(worker) = job.workers.get(&node) {
            let held: u32 = job.workers.values().map(|worker| worker.held_rows).sum();
            let window =
                rules::window_rows(worker.settings.max_batch_rows, job.rows_waiting(), held, workers);
            let (epoch, room) = (worker.epoch, window.saturating_sub(worker.held_rows));
            if room == 0 {
                break;
            }
            let Some(row) = job.take_next_row() else { break };
            let attempt = job.next_attempt(row);
            job.grant(row, Lease { node: node.clone(), epoch, attempt, committing: false });
            granted.entry(node.clone()).or_default().push(RowGrant { row, attempt });
        }
    }
    granted
}

fn has_rank_on(gang: &GangPlan, node: &NodeId) -> bool {
    gang.ranks.iter().any(|rank| rank.node == *node)
}

fn running_gangs(job: &Job) -> Option<RunningGangs> {
    let ranks_0 = job.workers.values().filter(|worker| worker.world_size > 1 && worker.rank == 0);
    let alive: Vec<Epoch> =
        ranks_0.filter(|worker| worker.stopping.is_none()).map(|worker| worker.epoch).collect();
    let newest = alive.last()?;
    Some(RunningGangs {
        mode: job.rung_of(*newest).map_or(Mode::Pipeline, |rung| rung.mode),
        count: u32::try_from(alive.len()).unwrap_or(u32::MAX),
        reasons: job.gangs.get(newest).map(|gang| gang.reasons.clone()).unwrap_or_default(),
    })
}

fn barred(job: &Job, now: Now) -> BTreeMap<NodeId, String> {
    let mut barred: BTreeMap<NodeId, String> = job.unfit.clone();
    for (node, backoff) in &job.backoff {
        if backoff.not_before_mono_ms > now.mono_ms {
            let seconds = (backoff.not_before_mono_ms - now.mono_ms) as f64 / 1e3;
            barred
                .entry(node.clone())
                .or_insert_with(|| format!("its last worker failed; the next try is in {seconds:.1} s"));
        }
    }
    barred
}
