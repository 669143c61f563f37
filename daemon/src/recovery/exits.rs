//! Workers that are gone: what is concluded from their end, and what is done about it. The rules are in [`rules`].

use super::{
    costs::Costs,
    event::{ExitClass, Now, WorkerExit, WorkerPhase},
    incidents::Opening,
    isolation::Finding,
    machine::Machine,
    rules::{self, Answer, ExitFacts},
    state::{Backoff, StopReason},
};
use crate::model::{Epoch, JobId, JobState, NodeId, Severity, WorkerKey, said_once};

impl Machine {
    pub(super) fn on_command_refused(&mut self, now: Now, node: &NodeId, command_id: u64, problem: String) {
        if self.on_restart_refused(node, command_id, &problem) {
            return;
        }
        let starting = self.jobs.iter().find_map(|(id, job)| {
            let worker = job.workers.get(node)?;
            (worker.command_id == command_id && worker.phase == WorkerPhase::Starting)
                .then(|| worker.key(*id))
        });
        if let Some(worker) = starting {
            let exit = WorkerExit {
                worker,
                class: ExitClass::SpawnFailed,
                status: "could not be started".to_owned(),
                first_error: problem,
                log_tail: Vec::new(),
                started_rows: Vec::new(),
                killed_while_loaded: false,
                quiet_ms: None,
            };
            self.on_worker_exited(now, node, &exit);
        }
    }

    pub(super) fn on_worker_exited(&mut self, now: Now, node: &NodeId, exit: &WorkerExit) {
        let WorkerKey { job: job_id, epoch, .. } = exit.worker;
        let Some(job) = self.jobs.get_mut(&job_id) else { return };
        let Some(worker) = job.workers.get(node).filter(|worker| worker.epoch == epoch) else {
            self.tell_more(node, exit);
            return;
        };
        let (stopping, world_size) = (worker.stopping, worker.world_size);
        let quiet_ms = worker.quiet_ms.unwrap_or(now.mono_ms.saturating_sub(worker.last_step_mono_ms));
        let was_hung = stopping == Some(StopReason::Silent);
        let mut exit = WorkerExit { quiet_ms: Some(quiet_ms), ..exit.clone() };
        // A rank that waited for one that hangs ends in order as soon as it is told to. It was ended for the hang.
        if was_hung && exit.class == ExitClass::Orderly {
            exit.class = ExitClass::Killed;
            "took no step, and ended when it was told to".clone_into(&mut exit.status);
        }
        let exit = &exit;
        let tokens_lost = worker.tokens_at_risk();
        let asked = matches!(stopping, Some(StopReason::NotNeeded | StopReason::LinkLost))
            || exit.class == ExitClass::Orderly;
        // Over TCP the same nodes may well find one another.
        if exit.class == ExitClass::Apart && !asked && !self.is_over_rdma(job_id, epoch) {
            self.note_unmet(now, job_id, epoch);
        }
        if exit.killed_while_loaded {
            self.note_kill(node);
        }
        let Some(job) = self.jobs.get_mut(&job_id) else { return };
        job.workers.remove(node);
        job.record.launches.retain(|launch| launch.node != *node);
        let mut costs = job.release(|_, lease| lease.node == *node && lease.epoch == epoch);
        if costs.rows > 0 {
            costs.tokens_lost = tokens_lost;
        }
        if world_size > 1 {
            self.on_rank_exited(now, node, exit, asked, was_hung, costs);
        } else if asked {
            self.record_job(job_id);
            self.tell_of_end(node, exit);
        } else {
            let finding = self.suspect_rows(now, node, exit, was_hung);
            self.settle_exit(now, node, exit, was_hung, &finding, costs);
        }
    }

    /// The end of a worker that was missed when its agent came back: what the agent says of it belongs to that.
    fn tell_more(&mut self, node: &NodeId, exit: &WorkerExit) {
        let session = self.nodes.get(node).and_then(|node| node.session.as_ref());
        let vanished = session.and_then(|session| {
            session.vanished.iter().find(|vanished| vanished.job == exit.worker.job).copied()
        });
        if let Some(vanished) = vanished {
            let summary = format!("it {}: {}", exit.status, exit.cause());
            self.incidents.add_evidence(vanished.incident, &summary, exit.evidence());
        }
    }

    fn tell_of_end(&mut self, node: &NodeId, exit: &WorkerExit) {
        let WorkerKey { job, epoch, .. } = exit.worker;
        let message = format!("the worker of {job} on {node} (epoch {epoch}) ended");
        self.emit(Severity::Info, "worker-ended", Some(node), Some(job), message);
    }

    /// What follows from an end that nobody asked for. Returns the incident's number.
    fn settle_exit(
        &mut self,
        now: Now,
        node: &NodeId,
        exit: &WorkerExit,
        was_hung: bool,
        finding: &Finding,
        costs: Costs,
    ) -> Option<u64> {
        let answer = self.judge_exit(now, node, exit, finding, costs.rows);
        self.record_job(exit.worker.job);
        let incident = if rules::is_fault(exit.class, false) {
            let incident = self.open_exit_incident(now, node, exit, was_hung, answer, costs);
            self.await_first_token(now, exit.worker.job, exit.worker.epoch, incident);
            Some(incident)
        } else {
            self.tell_of_end(node, exit);
            None
        };
        self.carry_out(now, node, exit, answer);
        incident
    }

    /// Of a gang the end of one rank is told, and the others are ended. A rank that lost another one often says so before
    /// that other one is known to be gone: then what the other says is the cause.
    fn on_rank_exited(
        &mut self,
        now: Now,
        node: &NodeId,
        exit: &WorkerExit,
        asked: bool,
        was_hung: bool,
        costs: Costs,
    ) {
        let WorkerKey { job: job_id, epoch, rank } = exit.worker;
        let others = self.jobs.get(&job_id).is_some_and(|job| !job.nodes_of(epoch).is_empty());
        let gang = self.gang_mut(job_id, epoch);
        // One that hung was ended for that; that it lost the others meanwhile is no news.
        let is_aftermath =
            !asked && !was_hung && exit.class == ExitClass::LinkFault && others && gang.is_some();
        let (mut told, mut had_aftermath) = (false, false);
        if let Some(gang) = gang {
            gang.costs += costs;
            (told, had_aftermath) = (gang.incident.is_some(), gang.aftermath.is_some());
        }
        let is_cause =
            if asked { had_aftermath && rules::explains_a_lost_rank(exit.class) } else { !is_aftermath };
        let may_be_of_rdma = is_cause && !asked && rules::speaks_against_rdma(exit.class, was_hung);
        if may_be_of_rdma && self.is_over_rdma(job_id, epoch) {
            self.distrust_links(now, job_id, epoch);
        }
        let finding = self.suspect_rows_of_gang(now, node, exit, is_cause, was_hung);
        if told || !(is_cause || is_aftermath) {
            if asked
                && finding != Finding::Nothing
                && let Some(job) = self.jobs.get_mut(&job_id)
            {
                // The crash of another rank was counted as a failure before it was known what it tells.
                job.failures_of_job = job.failures_of_job.saturating_sub(1);
            }
            self.record_job(job_id);
            self.tell_of_end(node, exit);
        } else if is_cause {
            let incident = self.settle_exit(now, node, exit, was_hung, &finding, Costs::default());
            if let Some(gang) = self.gang_mut(job_id, epoch) {
                gang.incident = incident;
                gang.aftermath = None;
            }
        } else if let Some(gang) = self.gang_mut(job_id, epoch) {
            gang.aftermath.get_or_insert_with(|| (node.clone(), exit.clone()));
            self.record_job(job_id);
        }
        self.charge_gang(job_id, epoch);
        let why = format!("rank {rank} of its gang, on {node}, is gone");
        self.end_gang(now, job_id, epoch, &why);
    }

    /// Puts what the end of a gang has cost so far into its incident.
    pub(super) fn charge_gang(&mut self, job_id: JobId, epoch: Epoch) {
        let Some(job) = self.jobs.get_mut(&job_id) else { return };
        let Some(gang) = job.gangs.get_mut(&epoch) else { return };
        if let Some(incident) = gang.incident {
            let costs = std::mem::take(&mut gang.costs);
            job.record.rows_requeued += costs.rows;
            self.incidents.add_costs(incident, costs);
        }
    }

    /// No rank is left. What a rank said that lost another is all there is to say, if none has said more.
    pub(super) fn on_gang_gone(&mut self, now: Now, job_id: JobId, epoch: Epoch) {
        let gang = self.gang_mut(job_id, epoch);
        let untold = gang.filter(|gang| gang.incident.is_none()).and_then(|gang| gang.aftermath.take());
        if let Some((node, exit)) = untold {
            self.distrust_links(now, job_id, epoch);
            let incident = self.settle_exit(now, &node, &exit, false, &Finding::Nothing, Costs::default());
            if let Some(gang) = self.gang_mut(job_id, epoch) {
                gang.incident = incident;
            }
        }
        self.charge_gang(job_id, epoch);
        if let Some(job) = self.jobs.get_mut(&job_id) {
            job.gangs.remove(&epoch);
        }
    }

    /// Counts the failure and asks the rules.
    fn judge_exit(
        &mut self,
        now: Now,
        node: &NodeId,
        exit: &WorkerExit,
        finding: &Finding,
        rows_requeued: u64,
    ) -> Answer {
        let gpu_faults = match exit.class {
            ExitClass::GpuFault => self.note_gpu_fault(now, node),
            _ => 0,
        };
        let Some(job) = self.jobs.get_mut(&exit.worker.job) else { return Answer::Nothing };
        job.record.rows_requeued += rows_requeued;
        let out_of_memory = job.out_of_memory.entry(node.clone()).or_insert(0);
        *out_of_memory += u32::from(exit.class == ExitClass::OutOfMemory);
        let can_ease = rules::can_ease(exit.class, *out_of_memory, job.record.spec.settings(&self.policy));
        let narrowed = *finding != Finding::Nothing;
        if rules::counts_against_job(exit.class, narrowed, can_ease) {
            job.failures_of_job += 1;
        }
        let backoff = job.backoff.entry(node.clone()).or_insert_with(Backoff::default);
        backoff.failures_in_a_row += 1;
        let facts = ExitFacts {
            class: exit.class,
            asked: false,
            failures_in_a_row: backoff.failures_in_a_row,
            failures_of_job: job.failures_of_job,
            gpu_faults,
            narrowed,
        };
        let answer = rules::answer(facts, &self.policy);
        if let Answer::RestartAfter { pause_ms } = answer {
            backoff.not_before_mono_ms = now.mono_ms + pause_ms;
        }
        answer
    }

    fn open_exit_incident(
        &mut self,
        now: Now,
        node: &NodeId,
        exit: &WorkerExit,
        was_hung: bool,
        answer: Answer,
        costs: Costs,
    ) -> u64 {
        let job_id = exit.worker.job;
        let fault = rules::fault_of(exit.class, was_hung);
        let cause = if exit.first_error.is_empty() || exit.status.ends_with(&exit.first_error) {
            String::new()
        } else {
            format!(": {}", exit.first_error)
        };
        let summary = format!("the worker of {job_id} on {node} {}{cause}", exit.status);
        let easing = easing_sentence(exit.class, answer);
        let action = format!("{answer}{easing}");
        self.emit(Severity::Warning, fault.word(), Some(node), Some(job_id), format!("{summary}; {action}"));
        let mut evidence = exit.evidence();
        if exit.class == ExitClass::GpuFault {
            evidence.extend(self.gpu_evidence(now, node));
        }
        let opening = Opening {
            node: Some(node.clone()),
            job: Some(job_id),
            summary,
            action,
            evidence,
            costs,
            noticed_after_ms: exit.quiet_ms,
        };
        let incident = self.incidents.open(now, fault, opening);
        if exit.class == ExitClass::GpuFault {
            self.note_gpu_incident(node, incident);
        }
        incident
    }

    fn carry_out(&mut self, now: Now, node: &NodeId, exit: &WorkerExit, answer: Answer) {
        let job_id = exit.worker.job;
        match answer {
            Answer::Nothing | Answer::RestartAfter { .. } => {}
            Answer::Quarantine { for_ms } => self.quarantine(now, node, for_ms, exit.cause()),
            Answer::BarNode => {
                let Some(job) = self.jobs.get_mut(&job_id) else { return };
                let unfit = if job.takes_fallback { &mut job.fallback_unfit } else { &mut job.unfit };
                unfit.insert(node.clone(), exit.cause().to_owned());
                self.fail_if_nobody_can(now, job_id);
            }
            Answer::PauseJob => {
                let failures = self.policy.failures_before_pause;
                let Some(job) = self.jobs.get_mut(&job_id) else { return };
                if job.record.state != JobState::Active {
                    return;
                }
                let detail = format!(
                    "workers failed {failures} times in a row without finishing a row; the last: {}. \
                     Look at `clusterctl logs {job_id}`, then `clusterctl resume {job_id}`",
                    exit.cause()
                );
                job.record.state = JobState::Paused;
                job.record.detail.clone_from(&detail);
                self.record_job(job_id);
                self.emit(
                    Severity::Error,
                    "job-paused",
                    Some(node),
                    Some(job_id),
                    format!("{job_id} was paused: {detail}"),
                );
            }
        }
    }

    /// Fails a job that every node there is has refused for good. A node that is away may yet be able, and the job waits
    /// for it; one that has not been seen since the controller started, and has had its time, is not waited for.
    pub(super) fn fail_if_nobody_can(&mut self, now: Now, job_id: JobId) {
        let settling = now.mono_ms < self.policy.adopt_grace_ms;
        let Some(job) = self.jobs.get(&job_id).filter(|job| !job.unfit.is_empty()) else { return };
        let able = self.nodes.values().any(|node| {
            let is_about = node.session.is_some() || node.last_heard_mono_ms.is_some() || settling;
            is_about && !job.unfit.contains_key(&node.id)
        });
        if able {
            return;
        }
        let said = said_once(job.unfit.iter().map(|(node, why)| (node, why.as_str())));
        let why: Vec<String> = said.into_iter().map(|(nodes, why)| format!("{nodes}: {why}")).collect();
        let model = job.record.spec.model.clone();
        self.fail_job(now, job_id, format!("no node can run model {model} ({})", why.join("; ")));
    }
}

fn easing_sentence(class: ExitClass, answer: Answer) -> &'static str {
    match (class, answer) {
        (ExitClass::GpuFault, Answer::RestartAfter { .. }) => ", with smaller steps and fewer rows together",
        (ExitClass::OutOfMemory, Answer::RestartAfter { .. }) => ", with fewer rows together",
        _ => "",
    }
}
