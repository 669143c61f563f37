//! Workers start, work and hang.

use serde_json::value::RawValue;

use super::{
    effect::{Command, StopMode},
    event::{Now, ProgressNews, WorkerPhase, WorkerSettings},
    gangs::limited,
    machine::Machine,
    rules,
    state::{Job, StopReason, Worker},
};
use crate::{
    model::{Checkpoint, Epoch, Fault, JobId, Lap, Launch, NodeId, Reason, RowIx, Rung, Severity, WorkerKey},
    planner::Limits,
};

impl Machine {
    /// Starts a worker: a new epoch, recorded before the command goes out.
    pub(super) fn launch(
        &mut self,
        now: Now,
        node: &NodeId,
        job_id: JobId,
        limits: Limits,
        reasons: &[Reason],
    ) {
        let command_id = self.command_id();
        let Some(settings) = self.settings_for(now, job_id, limits, std::slice::from_ref(node)) else {
            return;
        };
        let Some(job) = self.jobs.get_mut(&job_id) else { return };
        let epoch = job.record.epoch.next();
        job.record.epoch = epoch;
        job.record.started_unix_ms.get_or_insert(now.unix_ms);
        job.record.launches.retain(|launch| launch.node != *node);
        let rung = Rung::independent(job.takes_fallback);
        let place = Launch { node: node.clone(), epoch, rank: 0, world_size: 1, rung: Some(rung) };
        job.record.launches.push(place.clone());
        let worker = Worker::starting(now, node, place, settings, command_id);
        let key = worker.key(job_id);
        let model = job.model_on(rung).to_owned();
        job.ladder.note_start(rung, reasons);
        job.workers.insert(node.clone(), worker);
        self.record_job(job_id);
        self.send(node, Command::StartWorker { command_id, worker: key, model, settings, gang: None });
        let message = format!("starting a worker for {job_id} on {node} (epoch {epoch})");
        self.emit(Severity::Info, "worker-starting", Some(node), Some(job_id), message);
    }

    /// How the workers of a job are set up on these nodes.
    pub(super) fn settings_for(
        &self,
        now: Now,
        job: JobId,
        limits: Limits,
        nodes: &[NodeId],
    ) -> Option<WorkerSettings> {
        let job = self.jobs.get(&job)?;
        let settings = limited(job.record.spec.settings(&self.policy), limits);
        let window_ms = self.policy.gpu_fault_window_ms;
        let gpu_faults = nodes.iter().filter_map(|node| self.nodes.get(node));
        let gpu_faults = gpu_faults.map(|node| node.recent_gpu_faults(now, window_ms)).max().unwrap_or(0);
        let out_of_memory = nodes.iter().filter_map(|node| job.out_of_memory.get(node)).max().copied();
        Some(rules::eased(settings, gpu_faults, out_of_memory.unwrap_or(0)))
    }

    pub(super) fn stop(
        &mut self,
        now: Now,
        node: &NodeId,
        job_id: JobId,
        mode: StopMode,
        why: StopReason,
        reason: &str,
    ) {
        let command_id = self.command_id();
        let grace_ms = self.policy.stop_grace_ms;
        let Some(job) = self.jobs.get_mut(&job_id) else { return };
        let is_over = job.record.state.is_over();
        let Some(worker) = job.workers.get_mut(node) else { return };
        let is_stronger = match mode {
            StopMode::Kill => worker.stop_mode != Some(StopMode::Kill),
            StopMode::Checkpoint => matches!(worker.stop_mode, None | Some(StopMode::FinishStarted)),
            StopMode::FinishStarted => false,
        };
        // A hang is a fault, also of a worker that was to end anyway, as long as it costs its job anything.
        let is_fault = why == StopReason::Silent && !is_over;
        if worker.stopping.is_some() && !is_stronger {
            return;
        }
        if worker.stopping.is_none() || is_fault {
            worker.quiet_ms = Some(now.mono_ms.saturating_sub(worker.last_step_mono_ms));
        }
        worker.stopping = Some(worker.stopping.filter(|_| !is_fault).unwrap_or(why));
        worker.stop_mode = Some(mode);
        worker.last_step_mono_ms = now.mono_ms;
        let worker = worker.key(job_id);
        let (reason, ask_for_stack) = (reason.to_owned(), why == StopReason::Silent);
        let stop = Command::StopWorker { command_id, worker, mode, grace_ms, reason, ask_for_stack };
        self.send(node, stop);
    }

    fn worker_mut(&mut self, node: &NodeId, key: WorkerKey) -> Option<&mut Worker> {
        let worker = self.jobs.get_mut(&key.job)?.workers.get_mut(node)?;
        (worker.epoch == key.epoch && worker.rank == key.rank).then_some(worker)
    }

    pub(super) fn on_worker_started(&mut self, now: Now, node: &NodeId, key: WorkerKey, pid: u32) {
        if let Some(worker) = self.worker_mut(node, key) {
            worker.pid = pid;
            worker.phase = WorkerPhase::Loading;
            worker.last_step_mono_ms = now.mono_ms;
        }
    }

    pub(super) fn on_worker_ready(&mut self, now: Now, node: &NodeId, key: WorkerKey, load_ms: u64) {
        let Some(worker) = self.worker_mut(node, key) else { return };
        worker.phase = WorkerPhase::Idle;
        worker.last_step_mono_ms = now.mono_ms;
        let (pid, job) = (worker.pid, key.job);
        let start_ms = now.unix_ms.saturating_sub(worker.since_unix_ms).max(load_ms);
        self.note_start(job, key.epoch, start_ms);
        self.note_lap(now, node, job, Lap::Load { ms: load_ms });
        if self.jobs.get(&job).is_some_and(|job| job.is_complete(key.epoch)) {
            self.note_met(job, key.epoch);
            self.note_links_of_gang(now, job, key.epoch);
        }
        self.incidents.close(now, "a new worker is ready", |incident| {
            let of_a_worker = matches!(
                incident.fault,
                Fault::WorkerExited
                    | Fault::WorkerSilent
                    | Fault::AgentRestarted
                    | Fault::GpuFault
                    | Fault::OutOfMemory
                    | Fault::LinkFault
            );
            of_a_worker && incident.node.as_ref() == Some(node) && incident.job == Some(job)
        });
        let message = format!(
            "the worker of {job} on {node} is ready (pid {pid}, loaded in {:.1} s)",
            load_ms as f64 / 1e3
        );
        self.emit(Severity::Info, "worker-ready", Some(node), Some(job), message);
    }

    pub(super) fn on_progress(&mut self, now: Now, node: &NodeId, news: ProgressNews) {
        let Some(worker) = self.worker_mut(node, news.worker) else { return };
        worker.active_rows = news.active_rows;
        worker.peak_memory_bytes = worker.peak_memory_bytes.max(news.peak_memory_bytes);
        worker.rate.note(now.mono_ms, news.generated_tokens);
        let has_written = news.generated_tokens > worker.generated_tokens;
        worker.generated_tokens = news.generated_tokens;
        let before_phase = worker.phase;
        if worker.stopping.is_none() || news.phase == WorkerPhase::Stopping {
            worker.phase = news.phase;
        }
        let mut laps = Vec::new();
        let newest_mono_ms = now.mono_ms.saturating_sub(news.step_age_ms);
        if news.step != worker.step {
            // The last step of one that hung took as long as the hang, and is not how long steps take.
            if worker.stopping.is_none() {
                laps = laps_of(worker, before_phase, &news, newest_mono_ms);
            }
            worker.step = news.step;
            worker.last_step_mono_ms = newest_mono_ms;
        } else if news.phase == WorkerPhase::Idle && worker.stopping.is_none() && worker.held_rows == 0 {
            worker.last_step_mono_ms = now.mono_ms;
        } else if before_phase != worker.phase {
            // It begins with something else: a sign of life.
            worker.last_step_mono_ms = worker.last_step_mono_ms.max(newest_mono_ms);
        }
        worker.prompt_tokens = news.prompt_tokens;
        let by_fallback = worker.rung.is_some_and(|rung| rung.fallback);
        let job_id = news.worker.job;
        for lap in laps {
            self.note_lap(now, node, job_id, lap);
        }
        if has_written {
            self.note_tokens(now, job_id, news.worker.epoch);
        }
        let Some(job) = self.jobs.get_mut(&news.worker.job) else { return };
        let mut accounted = 0;
        let mut grown: Vec<RowIx> = Vec::new();
        for fresh in news.checkpoints {
            let from_holder = job.leases.get(&fresh.row).is_some_and(|lease| {
                lease.node == *node && lease.epoch == news.worker.epoch && lease.attempt == fresh.attempt
            });
            if !from_holder {
                continue;
            }
            let known = job.checkpoints.entry(fresh.row).or_default();
            let before = known.tokens.len();
            if join(known, fresh.offset, Checkpoint { by_fallback, ..fresh.checkpoint }) {
                grown.push(fresh.row);
                accounted += known.tokens.len().saturating_sub(before);
            }
        }
        if let Some(worker) = job.workers.get_mut(node).filter(|worker| worker.epoch == news.worker.epoch) {
            worker.accounted_tokens += accounted as u64;
        }
        if !grown.is_empty() {
            self.out.push(super::effect::Effect::SaveCheckpoints { job: news.worker.job, rows: grown });
        }
    }

    /// How long a worker may go without a step now. The ranks of a gang take their steps together: where one reads a prompt,
    /// all wait for it.
    pub(super) fn silence_budget_ms(&self, job: &Job, worker: &Worker) -> u64 {
        let reads = |other: &Worker| other.epoch == worker.epoch && other.phase == WorkerPhase::Prefill;
        let phase = match worker.phase {
            // It has rows that it has not begun with: it reads their prompts next.
            WorkerPhase::Idle if worker.held_rows > 0 => WorkerPhase::Prefill,
            WorkerPhase::Idle | WorkerPhase::Decode if job.workers.values().any(reads) => {
                WorkerPhase::Prefill
            }
            phase => phase,
        };
        let prefill_tokens = most_prefill_tokens(job, worker);
        let pace = self.pace_of(job, worker);
        let budget_ms =
            |phase| rules::silence_budget_ms(phase, pace, prefill_tokens, job.hangs_in_a_row, &self.policy);
        match phase {
            // What it finishes may be the reading of a prompt: an agent says no more than that it is to end.
            WorkerPhase::Stopping => budget_ms(WorkerPhase::Prefill).max(budget_ms(WorkerPhase::Decode)),
            phase => budget_ms(phase),
        }
    }

    /// Workers without a step for too long are ended; their rows come back with their exit. One that only finishes what it has
    /// begun can hang as any other, also when its job is over: nothing else would start there. One that was told to end at
    /// once is the agent's to see to, which gives it the grace and no more.
    pub(super) fn answer_hangs(&mut self, now: Now) {
        let mut hung: Vec<(NodeId, JobId, Epoch, u64)> = Vec::new();
        for (id, job) in &self.jobs {
            for worker in job.workers.values() {
                let grace_ms = match (worker.stopping, worker.stop_mode) {
                    (None, _) => 0,
                    (Some(_), Some(StopMode::FinishStarted)) if worker.active_rows > 0 => 0,
                    // It frees its memory. Or it was adopted as it stops, and how it was told to is not known.
                    (Some(_), None | Some(StopMode::FinishStarted)) => self.policy.stop_grace_ms,
                    (Some(_), Some(StopMode::Checkpoint | StopMode::Kill)) => continue,
                };
                let budget_ms = self.silence_budget_ms(job, worker) + grace_ms;
                let connected = self.nodes.get(&worker.node).is_some_and(|node| node.session.is_some());
                if connected && now.mono_ms > worker.last_step_mono_ms + budget_ms {
                    hung.push((worker.node.clone(), *id, worker.epoch, budget_ms));
                }
            }
        }
        let mut answered = std::collections::BTreeSet::new();
        for (node, job, epoch, budget_ms) in hung {
            // A rank that hangs makes the others of its gang hang; one answer is for all of them.
            if !answered.insert((job, epoch)) {
                continue;
            }
            if let Some(job) = self.jobs.get_mut(&job) {
                job.hangs_in_a_row = job.hangs_in_a_row.saturating_add(1);
            }
            let seconds = budget_ms as f64 / 1e3;
            let reason =
                format!("the worker of {job} on {node} (epoch {epoch}) took no step for {seconds} s");
            self.emit(
                Severity::Warning,
                "worker-silent",
                Some(&node),
                Some(job),
                format!("{reason}; it is ended"),
            );
            self.stop(now, &node, job, StopMode::Kill, StopReason::Silent, &reason);
            self.end_gang_but(now, job, epoch, Some(&node), &reason);
        }
    }
}

/// The most tokens of prompts that one step of a worker reads. No prompt is longer than the longest row, and what was generated before
/// is read with it.
pub(super) fn most_prefill_tokens(job: &Job, worker: &Worker) -> u64 {
    let WorkerSettings { prefill_batch_rows, prefill_step_tokens, default_max_tokens, .. } = worker.settings;
    let longest = job.record.lengths.longest_tokens(default_max_tokens.into()).unwrap_or(u64::MAX);
    u64::from(prefill_step_tokens).min(longest).saturating_mul(prefill_batch_rows.into())
}

/// So quick a mix of steps that what it takes for one of generation is far below the least that any is given.
const QUICK_MIX_MS: u64 = 1_000;

/// What a report tells of how long steps take.
fn laps_of(worker: &Worker, before: WorkerPhase, news: &ProgressNews, newest_mono_ms: u64) -> Vec<Lap> {
    let steps = news.step.saturating_sub(worker.step);
    let Some(elapsed_ms) = newest_mono_ms.checked_sub(worker.last_step_mono_ms).filter(|_| steps > 0) else {
        return Vec::new();
    };
    let read = news.prompt_tokens.saturating_sub(worker.prompt_tokens);
    let decode = Lap::Decode { us: elapsed_ms.saturating_mul(1_000) / steps };
    let prefill = |read: u64| Lap::Prefill { tokens: read, ms: elapsed_ms };
    match (before, news.phase) {
        (WorkerPhase::Decode, WorkerPhase::Decode) if read == 0 => vec![decode],
        // Short prompts between the steps of others, as in a job of short rows, where there is hardly a report without.
        (WorkerPhase::Prefill | WorkerPhase::Decode, WorkerPhase::Prefill | WorkerPhase::Decode)
            if read > 0 && steps > 1 && elapsed_ms <= QUICK_MIX_MS =>
        {
            vec![decode, prefill(read)]
        }
        (_, WorkerPhase::Prefill | WorkerPhase::Decode) if read > 0 => vec![prefill(read)],
        _ => Vec::new(),
    }
}

/// Takes up `fresh`, the holder's words after its first `offset` tokens. What was known beyond them stays while it says the
/// same: a node that comes back may be behind another that had its row meanwhile. From where it differs, the holder's words
/// count. A gap changes nothing. Returns whether anything was learned.
fn join(known: &mut Checkpoint, offset: u32, fresh: Checkpoint) -> bool {
    let offset = offset as usize;
    // Tokens of another model are of no use to this one.
    let known_tokens = if known.by_fallback == fresh.by_fallback { known.tokens.as_slice() } else { &[] };
    let Some(rest) = known_tokens.get(offset..) else { return false };
    if rest.starts_with(&fresh.tokens) {
        return false;
    }
    if offset == 0 {
        *known = fresh;
        return true;
    }
    if !rest.is_empty() {
        known.tokens.truncate(offset);
        known.logprobs_json = first_entries(&known.logprobs_json, offset);
    }
    known.tokens.extend_from_slice(&fresh.tokens);
    known.logprobs_json = match (known.logprobs_json.as_slice(), fresh.logprobs_json) {
        ([], fresh) => fresh,
        (known, fresh) if fresh.is_empty() => known.to_vec(),
        ([head @ .., b']'], fresh) => [head, b",", &fresh[1..]].concat(),
        (known, _) => known.to_vec(),
    };
    true
}

/// The beginning of a JSON array; what is none stays as it is.
fn first_entries(json: &[u8], count: usize) -> Vec<u8> {
    let first = serde_json::from_slice::<Vec<&RawValue>>(json)
        .and_then(|entries| serde_json::to_vec(&entries[..count.min(entries.len())]));
    first.unwrap_or_else(|_| json.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(tokens: &[u32], logprobs: &str) -> Checkpoint {
        Checkpoint {
            tokens: tokens.to_vec(),
            logprobs_json: logprobs.as_bytes().to_vec(),
            by_fallback: false,
        }
    }

    #[test]
    fn checkpoints_are_joined_in_order_and_gaps_change_nothing() {
        let mut known = Checkpoint::default();
        assert!(join(&mut known, 0, part(&[1, 2], "[0.1,0.2]")));
        assert!(join(&mut known, 2, part(&[3], "[0.3]")));
        assert_eq!(known, part(&[1, 2, 3], "[0.1,0.2,0.3]"));
        assert!(!join(&mut known, 5, part(&[9], "[0.9]")), "a gap");
        assert!(!join(&mut known, 1, part(&[2], "[0.2]")), "known already");
        assert!(!join(&mut known, 0, part(&[1, 2], "[0.1,0.2]")), "an older whole one");
        assert!(join(&mut known, 0, part(&[1, 2, 3, 4], "")));
        assert_eq!(known, part(&[1, 2, 3, 4], ""));
        assert!(
            !join(&mut known, 2, part(&[3], "")),
            "it lags behind another that had the row, and says the same"
        );
        assert!(join(&mut known, 2, part(&[3, 4, 5], "")), "and is ahead of it now");
        assert_eq!(known, part(&[1, 2, 3, 4, 5], ""));
        let of_fallback = |tokens: &[u32]| Checkpoint { by_fallback: true, ..part(tokens, "") };
        assert!(join(&mut known, 0, of_fallback(&[7])), "another model begins anew");
        assert!(join(&mut known, 1, of_fallback(&[8])));
        assert!(!join(&mut known, 1, part(&[9], "")), "the end of what the other model never began");
        assert_eq!(known, of_fallback(&[7, 8]));
    }

    #[test]
    fn from_where_they_differ_the_holders_words_count() {
        let mut known = part(&[1, 2, 3, 4], "[0.1,{\"t\":[2,3]},0.3,0.4]");
        assert!(join(&mut known, 2, part(&[7], "[0.7]")));
        assert_eq!(known, part(&[1, 2, 7], "[0.1,{\"t\":[2,3]},0.7]"));
        assert!(join(&mut known, 0, part(&[5], "[0.5]")), "from the first token on");
        assert_eq!(known, part(&[5], "[0.5]"));
    }

    #[test]
    fn tokens_without_logprobs_leave_those_that_are_known() {
        let mut known = part(&[1], "[0.1]");
        assert!(join(&mut known, 1, part(&[2], "")));
        assert_eq!(known, part(&[1, 2], "[0.1]"));
    }

    /// Of a worker whose last step was ten seconds after the start, its fifth, with a prompt of 50 tokens read.
    fn laps(before: WorkerPhase, phase: WorkerPhase, steps: u64, read: u64, elapsed_ms: u64) -> Vec<Lap> {
        let place = Launch { node: "a".into(), epoch: Epoch(1), rank: 0, world_size: 1, rung: None };
        let then = Now { mono_ms: 10_000, unix_ms: 0 };
        let worker = Worker::starting(then, &"a".into(), place, WorkerSettings::default(), 1);
        let worker = Worker { step: 5, prompt_tokens: 50, ..worker };
        let news = ProgressNews {
            worker: worker.key(JobId(1)),
            phase,
            step: 5 + steps,
            step_age_ms: 0,
            active_rows: 8,
            prompt_tokens: 50 + read,
            generated_tokens: 0,
            peak_memory_bytes: 0,
            checkpoints: Vec::new(),
        };
        laps_of(&worker, before, &news, 10_000 + elapsed_ms)
    }

    #[test]
    fn a_report_tells_how_long_its_steps_took() {
        use WorkerPhase::{Decode, Idle, Prefill};
        let decode = |us| Lap::Decode { us };
        let prefill = |ms| Lap::Prefill { tokens: 100, ms };
        let rows = [
            (Decode, Decode, 3, 0, 3_000, vec![decode(1_000_000)]),
            (Decode, Decode, 0, 0, 3_000, vec![]),
            (Idle, Prefill, 1, 100, 3_000, vec![prefill(3_000)]),
            (Idle, Decode, 2, 100, 500, vec![prefill(500)]),
            (Prefill, Decode, 2, 0, 500, vec![]),
            (Prefill, Idle, 2, 100, 500, vec![]),
            // Prompts among steps of generation: both, while it is quick.
            (Decode, Decode, 4, 100, 1_000, vec![decode(250_000), prefill(1_000)]),
            (Decode, Decode, 4, 100, 1_001, vec![prefill(1_001)]),
            (Prefill, Decode, 2, 100, 500, vec![decode(250_000), prefill(500)]),
            (Decode, Decode, 1, 100, 500, vec![prefill(500)]),
        ];
        for (before, phase, steps, read, elapsed_ms, expected) in rows {
            let told = laps(before, phase, steps, read, elapsed_ms);
            assert_eq!(told, expected, "{before:?} {phase:?} {steps} steps, {read} read, {elapsed_ms} ms");
        }
    }
}
