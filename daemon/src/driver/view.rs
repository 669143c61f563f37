//! The state as people see it, in the protocol's types. Reads, never changes.

use nightshift_proto::v1;

use super::Driver;
use crate::{
    model::{self, Incident, JobId, JobState, NodeId, Outlook},
    recovery::{Job, Node, Now, Step, Worker},
    rpc::{convert, plan},
};

/// Finished jobs on the status screen; `clusterctl jobs --all` shows every one.
const FINISHED_JOBS_SHOWN: usize = 5;
/// Incidents on the status screen.
const INCIDENTS_SHOWN: usize = 50;
/// How long closed incidents and failed jobs stay on the status screen: until the next evening.
const SHOWN_FOR_MS: u64 = 24 * 3_600_000;

impl Driver {
    pub(super) fn status_view(&self) -> v1::ClusterStatus {
        let now = self.now();
        let open = self.machine.jobs().filter(|job| !job.record.state.is_over());
        let mut finished: Vec<&Job> = self.machine.jobs().filter(|job| job.record.state.is_over()).collect();
        finished.sort_by_key(|job| std::cmp::Reverse(job.record.finished_unix_ms));
        let finished = finished.into_iter().take(FINISHED_JOBS_SHOWN);
        let incidents = self
            .machine
            .incidents()
            .filter(|i| i.closed_unix_ms.is_none_or(|at| now.unix_ms.saturating_sub(at) < SHOWN_FOR_MS));
        let problems = self.problems(now);
        v1::ClusterStatus {
            controller: Some(v1::Controller {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                instance_id: self.instance_id.clone(),
                started_unix_ms: self.started.unix_ms,
                now_unix_ms: now.unix_ms,
                state_dir: self.state_dir.to_string_lossy().into_owned(),
                disk_available_bytes: self.ledger.free_bytes().unwrap_or(0),
                listen_address: self.listen_address.clone(),
            }),
            nodes: self.nodes_view(),
            jobs: open.chain(finished).map(|job| self.job_message(now, job)).collect(),
            incidents: incidents.take(INCIDENTS_SHOWN).map(incident_message).collect(),
            healthy: problems.is_empty(),
            problems,
        }
    }

    pub(super) fn problems(&self, now: Now) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(problem) = self.machine.storage_problem() {
            problems.push(format!(
                "Results cannot be stored: {problem}. Free some space; the jobs go on by themselves."
            ));
        }
        let settling = now.mono_ms < self.machine.policy().adopt_grace_ms;
        for node in self.machine.nodes() {
            match &node.session {
                None if settling && node.last_heard_mono_ms.is_none() => {}
                None => problems.push(format!(
                    "Node {} is silent: {}.",
                    node.id,
                    node.unusable(now).unwrap_or_default()
                )),
                Some(_) => {
                    if let Some(problem) = &node.facts.runtime_problem {
                        problems.push(format!("Node {} cannot run workers: {problem}.", node.id));
                    }
                }
            }
        }
        if self.machine.nodes().next().is_none() {
            problems.push("No node has ever connected. Start an agent: cluster-agent run.".to_owned());
        }
        for job in self.machine.jobs() {
            let record = &job.record;
            let lately =
                record.finished_unix_ms.is_some_and(|at| now.unix_ms.saturating_sub(at) < SHOWN_FOR_MS);
            match record.state {
                JobState::Failed if lately => {
                    problems.push(format!("Job {} failed: {}.", record.id, record.detail))
                }
                JobState::Completed if lately && mostly_failed(job) => problems.push(format!(
                    "Job {} is complete, but {} of its {} rows ended with an error: clusterctl results {} --errors.",
                    record.id, job.rows_failed, record.rows_total, record.id
                )),
                JobState::Paused if job.paused_by_faults() => {
                    problems.push(format!("Job {} is paused: {}.", record.id, record.detail));
                }
                JobState::Active => {
                    if let Some(parked) = &job.parked {
                        problems.push(format!("Nothing runs job {}: {}.", record.id, parked.why));
                    }
                }
                _ => {}
            }
        }
        for incident in self.machine.incidents().filter(|incident| incident.closed_unix_ms.is_none()) {
            if !matches!(incident.fault, model::Fault::NodeSilent | model::Fault::DiskFull) {
                problems.push(format!("{}; {}.", incident.summary, incident.action));
            }
        }
        problems
    }

    pub(super) fn jobs_view(&self, finished_too: bool) -> Vec<v1::Job> {
        let now = self.now();
        let shown = self.machine.jobs().filter(|job| finished_too || !job.record.state.is_over());
        shown.map(|job| self.job_message(now, job)).collect()
    }

    pub(super) fn job_view(&self, id: JobId) -> Option<v1::Job> {
        self.machine.job(id).map(|job| self.job_message(self.now(), job))
    }

    pub(super) fn nodes_view(&self) -> Vec<v1::Node> {
        let now = self.now();
        self.machine.nodes().map(|node| self.node_message(now, node)).collect()
    }

    pub(super) fn node_view(&self, id: &NodeId) -> Option<v1::Node> {
        self.machine.node(id).map(|node| self.node_message(self.now(), node))
    }

    fn worker_message(&self, now: Now, job: &Job, worker: &Worker) -> v1::Worker {
        let key = worker.key(job.record.id);
        let footprint = self.displays.get(&worker.node).and_then(|display| display.footprint);
        v1::Worker {
            worker: Some(convert::worker_id(key)),
            node_id: worker.node.to_string(),
            phase: convert::phase_out(if worker.stopping.is_some() {
                crate::recovery::WorkerPhase::Stopping
            } else {
                worker.phase
            })
            .into(),
            pid: worker.pid,
            held_rows: worker.held_rows,
            active_rows: worker.active_rows,
            tokens_per_s: worker.tokens_per_s(now.mono_ms),
            peak_memory_bytes: worker.peak_memory_bytes,
            since_unix_ms: worker.since_unix_ms,
            footprint_bytes: footprint.filter(|(of, _)| *of == key).map(|(_, bytes)| bytes),
        }
    }

    pub(super) fn node_message(&self, now: Now, node: &Node) -> v1::Node {
        let display = self.displays.get(&node.id);
        let workers: Vec<v1::Worker> = self
            .machine
            .jobs()
            .filter_map(|job| Some(self.worker_message(now, job, job.workers.get(&node.id)?)))
            .collect();
        let unusable = node.unusable(now);
        let state = match (&node.session, &unusable) {
            (None, _) => v1::NodeState::Silent,
            (Some(_), _) if node.draining => v1::NodeState::Draining,
            (Some(_), Some(_)) => v1::NodeState::NotReady,
            (Some(_), None) => v1::NodeState::Ready,
        };
        v1::Node {
            node_id: node.id.to_string(),
            state: state.into(),
            conditions: conditions(node, unusable.as_deref(), self.machine.way_back(now, &node.id)),
            detail: unusable.unwrap_or_default(),
            observation: display.and_then(|display| display.observation.clone()),
            runtime: display.and_then(|display| display.runtime.clone()),
            agent_version: display.map(|display| display.agent_version.clone()).unwrap_or_default(),
            connected_since_unix_ms: node.session.as_ref().map_or(0, |session| session.since_unix_ms),
            silent_ms: match node.last_heard_mono_ms {
                Some(at) => now.mono_ms.saturating_sub(at),
                None => now.unix_ms.saturating_sub(node.last_seen_unix_ms),
            },
            tokens_per_s: workers.iter().map(|worker| worker.tokens_per_s).sum(),
            workers,
        }
    }

    pub(super) fn job_message(&self, now: Now, job: &Job) -> v1::Job {
        let record = &job.record;
        let at_work = !job.workers.is_empty() || !job.leases.is_empty();
        let state = match record.state {
            JobState::Active if at_work => v1::JobState::Running,
            JobState::Active => v1::JobState::Queued,
            JobState::Paused => v1::JobState::Paused,
            JobState::Cancelling => v1::JobState::Cancelling,
            JobState::Cancelled => v1::JobState::Cancelled,
            JobState::Completed => v1::JobState::Completed,
            JobState::Failed => v1::JobState::Failed,
        };
        let rows_per_s = job.rows_per_s(now.mono_ms).filter(|_| record.state == JobState::Active);
        let left = f64::from(record.rows_total - job.done.len());
        let outlook = self.machine.outlook(now, job);
        let eta_ms = match (record.spec.window, outlook) {
            (None, _) => rows_per_s.map(|speed| (left * 1e3 / speed) as u64),
            // The time in which it does not work is part of what is left.
            (Some(_), Some(Outlook::Known(forecast))) => {
                forecast.finish_unix_ms.map(|finish| finish.saturating_sub(now.unix_ms))
            }
            (Some(_), _) => None,
        };
        let open = record.spec.window.filter(|_| record.state == JobState::Active);
        let deadline_passed = record.spec.deadline_unix_ms.is_some_and(|deadline| deadline <= now.unix_ms);
        let dir = self.ledger.job_dir(record.id);
        v1::Job {
            job_id: record.id.0,
            spec: Some(convert::job_spec_out(&record.spec)),
            state: state.into(),
            detail: self.job_detail(job, state),
            rows_total: u64::from(record.rows_total),
            rows_succeeded: job.rows_succeeded,
            rows_failed: job.rows_failed,
            rows_in_flight: job.leases.len() as u64,
            prompt_tokens: job.prompt_tokens,
            completion_tokens: job.completion_tokens,
            created_unix_ms: record.created_unix_ms,
            started_unix_ms: record.started_unix_ms.unwrap_or(0),
            finished_unix_ms: record.finished_unix_ms.unwrap_or(0),
            epoch: record.epoch.0,
            mode: plan::mode_out(job.plan.as_ref().map_or(model::Mode::Independent, |plan| plan.mode)).into(),
            tokens_per_s: job.workers.values().map(|worker| worker.tokens_per_s(now.mono_ms)).sum(),
            rows_per_s: rows_per_s.unwrap_or(0.0),
            eta_ms,
            rows_requeued: record.rows_requeued,
            duplicate_results: record.duplicate_results,
            results_path: dir.join("results.jsonl").to_string_lossy().into_owned(),
            errors_path: dir.join("errors.jsonl").to_string_lossy().into_owned(),
            workers: job.workers.values().map(|worker| self.worker_message(now, job, worker)).collect(),
            // What holds a job that is not to run is not the plan.
            plan_reasons: job
                .plan
                .iter()
                .filter(|_| record.state == JobState::Active)
                .flat_map(|plan| &plan.reasons)
                .map(|reason| reason.text.clone())
                .collect(),
            deadline_unix_ms: record.spec.deadline_unix_ms.unwrap_or(0),
            window_opens_unix_ms: job.window_opens_unix_ms().filter(|_| record.state == JobState::Active),
            window_closes_unix_ms: open.and_then(|window| window.closes_at(now.unix_ms, self.machine.zone())),
            rows_by_fallback: job.rows_by_fallback,
            on_fallback: job.rung().is_some_and(|rung| rung.fallback),
            forecast: outlook.map(|outlook| convert::forecast_out(outlook, deadline_passed)),
        }
    }

    fn job_detail(&self, job: &Job, state: v1::JobState) -> String {
        let record = &job.record;
        if record.state == JobState::Active
            && let Some(problem) = self.machine.storage_problem()
        {
            return format!("waiting for the disk: {problem}");
        }
        if record.state == JobState::Active
            && record.detail.is_empty()
            && let Some(words) = job.window_words()
        {
            return words;
        }
        if !record.detail.is_empty() || state != v1::JobState::Queued {
            return record.detail.clone();
        }
        if job.is_adopting() {
            return "waiting for the workers it had before the controller restarted".to_owned();
        }
        let reasons = job.plan.as_ref().map_or(&[][..], |plan| plan.reasons.as_slice());
        match reasons {
            [] => "waiting for a node".to_owned(),
            _ if self.machine.nodes().next().is_none() => "no agent has connected yet".to_owned(),
            [only] => only.text.clone(),
            [_, why @ ..] => {
                let of_nodes = why.iter().filter(|reason| reason.rule == "not-on").filter_map(|reason| {
                    let node = reason.node.as_ref()?;
                    Some((node, reason.text.split_once(": ").map_or(reason.text.as_str(), |(_, why)| why)))
                });
                let others = why.iter().filter(|reason| reason.rule != "not-on");
                let mut texts: Vec<String> = others.map(|reason| reason.text.clone()).collect();
                let of_nodes = model::said_once(of_nodes);
                texts.extend(of_nodes.into_iter().map(|(nodes, why)| format!("not on {nodes}: {why}")));
                texts.join("; ")
            }
        }
    }
}

/// More than a tenth: a few bad rows among many are no reason to look at the night, a wrong setting is.
fn mostly_failed(job: &Job) -> bool {
    job.rows_failed * 10 > u64::from(job.record.rows_total)
}

fn conditions(node: &Node, unusable: Option<&str>, way_back: Vec<Step>) -> Vec<v1::Condition> {
    let since_unix_ms = node.session.as_ref().map_or(node.last_seen_unix_ms, |session| session.since_unix_ms);
    let condition = |r#type: &str, status: v1::ConditionStatus, reason: &str, message: &str| v1::Condition {
        r#type: r#type.to_owned(),
        status: status.into(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        since_unix_ms,
    };
    use v1::ConditionStatus::{False, True, Unknown};
    let connected = match node.session {
        Some(_) => condition("Connected", True, "SessionOpen", ""),
        None => condition("Connected", False, "NoSession", "there is no connection to its agent"),
    };
    let runtime = match (&node.session, &node.facts.runtime_problem) {
        (None, _) => condition("RuntimeReady", Unknown, "NoSession", ""),
        (Some(_), None) => condition("RuntimeReady", True, "Checked", ""),
        (Some(_), Some(problem)) => condition("RuntimeReady", False, "NotInstalled", problem),
    };
    let ready = match unusable {
        None => condition("Ready", True, "TakesWork", ""),
        Some(why) => condition("Ready", False, if node.draining { "Drained" } else { "NotUsable" }, why),
    };
    let quarantined = node
        .quarantine
        .as_ref()
        .map(|quarantine| condition("Quarantined", True, "GpuFaults", &quarantine.reason));
    let reboot = node.needs_reboot().map(|(reason, text)| condition("NeedsReboot", True, reason, &text));
    let steps = way_back.into_iter().map(|step| {
        let status = step.is_done.map_or(Unknown, |is_done| if is_done { True } else { False });
        condition(step.kind, status, step.reason, &step.message)
    });
    [ready, connected, runtime].into_iter().chain(quarantined).chain(reboot).chain(steps).collect()
}

pub(super) fn incident_message(incident: &Incident) -> v1::Incident {
    v1::Incident {
        incident_id: incident.id,
        fault: incident.fault.word().to_owned(),
        node_id: incident.node.as_ref().map(ToString::to_string).unwrap_or_default(),
        job_id: incident.job.map_or(0, |job| job.0),
        opened_unix_ms: incident.opened_unix_ms,
        closed_unix_ms: incident.closed_unix_ms.unwrap_or(0),
        summary: incident.summary.clone(),
        action: incident.action.clone(),
        outcome: incident.outcome.clone(),
        evidence: incident.evidence.clone(),
        rows_requeued: incident.rows_requeued,
        tokens_lost: incident.tokens_lost,
        tokens_saved: incident.tokens_saved,
        times: incident.times,
        last_unix_ms: incident.last_unix_ms,
        noticed_after_ms: incident.noticed_after_ms,
        first_token_after_ms: incident.first_token_after_ms,
        start_ms: incident.start_ms,
        went_on_as: incident.went_on_as.clone(),
    }
}
