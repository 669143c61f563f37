//! The morning page: what was done since a moment, what went wrong, what it cost, what a person should do. Reads, never
//! changes.

use std::collections::BTreeMap;

use nightshift_proto::v1;

use super::{Driver, view::incident_message};
use crate::{
    model::{Incident, JobId, NodeId, NodeWork},
    recovery::{Job, Now},
};

/// Jobs on one page; a night has a few.
const MOST_JOBS: usize = 200;

impl Driver {
    pub(super) fn report_view(&self, since_unix_ms: u64) -> v1::Report {
        let now = self.now();
        let is_of_then = |job: &&Job| job.record.finished_unix_ms.is_none_or(|at| at >= since_unix_ms);
        let mut jobs: Vec<&Job> = self.machine.jobs().filter(is_of_then).collect();
        let jobs_left_out = jobs.len().saturating_sub(MOST_JOBS);
        if jobs_left_out > 0 {
            // What is not over is on the page before what is.
            jobs.sort_by_key(|job| (!job.record.state.is_over(), job.record.id));
            jobs.drain(..jobs_left_out);
            jobs.sort_by_key(|job| job.record.id);
        }
        let incidents = self.machine.incidents().filter(|incident| is_since(incident, since_unix_ms));
        let mut incidents: Vec<&Incident> = incidents.collect();
        incidents.sort_by_key(|incident| (incident.opened_unix_ms, incident.id));
        let nodes = self.reported_nodes(now, &jobs, &incidents);
        let jobs: Vec<v1::ReportedJob> = jobs.into_iter().map(|job| self.reported_job(now, job)).collect();
        let mut to_do = self.problems(now);
        to_do.extend(
            jobs.iter()
                .filter_map(|reported| to_do_about(reported.job.as_ref()?, &to_do))
                .collect::<Vec<_>>(),
        );
        to_do.extend(nodes.iter().filter_map(to_do_about_node));
        v1::Report {
            since_unix_ms,
            until_unix_ms: now.unix_ms,
            verdict: verdict(jobs.iter().filter_map(|reported| reported.job.as_ref())),
            to_do,
            jobs,
            jobs_left_out: jobs_left_out as u64,
            nodes,
            incidents: incidents.into_iter().map(in_a_line).collect(),
        }
    }

    fn reported_job(&self, now: Now, job: &Job) -> v1::ReportedJob {
        let work = &job.record.work;
        let ways = work.ways.iter().map(|way| v1::WayWork { way: way.rung.to_string(), rows: way.rows });
        v1::ReportedJob {
            job: Some(self.job_message(now, job)),
            work: work.nodes.iter().map(|(node, work)| work_message(node, *work)).collect(),
            ways: ways.collect(),
        }
    }

    fn reported_nodes(&self, now: Now, jobs: &[&Job], incidents: &[&Incident]) -> Vec<v1::ReportedNode> {
        let mut done: BTreeMap<&NodeId, NodeWork> = BTreeMap::new();
        for (node, work) in jobs.iter().flat_map(|job| &job.record.work.nodes) {
            let sum = done.entry(node).or_default();
            sum.rows += work.rows;
            sum.prompt_tokens += work.prompt_tokens;
            sum.completion_tokens += work.completion_tokens;
            sum.busy_ms += work.busy_ms;
        }
        let nodes = self.machine.nodes().map(|node| {
            let v1::Node { node_id, state, detail, .. } = self.node_message(now, node);
            let there = incidents.iter().filter(|incident| incident.node.as_ref() == Some(&node.id)).count();
            v1::ReportedNode {
                node_id,
                state,
                detail,
                work: Some(work_message(&node.id, done.get(&node.id).copied().unwrap_or_default())),
                incidents: u32::try_from(there).unwrap_or(u32::MAX),
                quarantined_until_unix_ms: node
                    .quarantine
                    .as_ref()
                    .map_or(0, |quarantine| quarantine.until_unix_ms),
            }
        });
        nodes.collect()
    }
}

/// Whether any of it was at or after the moment.
fn is_since(incident: &Incident, since_unix_ms: u64) -> bool {
    let end_unix_ms = incident.closed_unix_ms.map(|closed| closed.max(incident.last_unix_ms));
    end_unix_ms.is_none_or(|end| end >= since_unix_ms)
}

/// Hundreds of them fit a message only without their logs.
fn in_a_line(incident: &Incident) -> v1::Incident {
    let mut message = incident_message(incident);
    message.evidence.truncate(1);
    message
}

fn work_message(node: &NodeId, work: NodeWork) -> v1::NodeWork {
    v1::NodeWork {
        node_id: node.to_string(),
        rows: work.rows,
        prompt_tokens: work.prompt_tokens,
        completion_tokens: work.completion_tokens,
        busy_ms: work.busy_ms,
    }
}

/// What a job wants of a person and is not told as a problem of the cluster already.
fn to_do_about(job: &v1::Job, told: &[String]) -> Option<String> {
    let id = JobId(job.job_id);
    let look = format!("clusterctl results {id} --errors");
    let is_told = |words: &str| told.iter().any(|problem| problem.contains(words));
    let paused = (job.state() == v1::JobState::Paused && !is_told(&format!("Job {id} is paused")))
        .then(|| format!("Job {id} is paused; it goes on with: clusterctl resume {id}."));
    let late = job.forecast.as_ref().and_then(|forecast| {
        let rows = forecast.rows_left_at_deadline.filter(|rows| *rows > 0)?;
        Some(format!("Job {id} will not be done by its deadline: {} left then.", rows_words(rows)))
    });
    let failed = (job.rows_failed > 0 && !is_told(&look)).then(|| {
        format!("Look at the {} of job {id} that ended with an error: {look}.", rows_words(job.rows_failed))
    });
    let all: Vec<String> = [paused, late, failed].into_iter().flatten().collect();
    (!all.is_empty()).then(|| all.join(" "))
}

fn to_do_about_node(node: &v1::ReportedNode) -> Option<String> {
    let name = &node.node_id;
    (node.state() == v1::NodeState::Draining)
        .then(|| format!("Node {name} is drained; it takes work again with: clusterctl undrain {name}."))
}

fn rows_words(rows: u64) -> String {
    if rows == 1 { "1 row".to_owned() } else { format!("{} rows", grouped(rows)) }
}

/// As every other number of the page: 1,198.
fn grouped(number: u64) -> String {
    match number {
        0..1_000 => number.to_string(),
        _ => format!("{},{:03}", grouped(number / 1_000), number % 1_000),
    }
}

fn jobs_words(jobs: usize) -> String {
    if jobs == 1 { "1 job".to_owned() } else { format!("{jobs} jobs") }
}

/// "All 2 jobs are done: 1200 rows answered.", "1 of 2 jobs is done, 1 waits: …"
fn verdict<'a>(jobs: impl Iterator<Item = &'a v1::Job> + Clone) -> String {
    let all = jobs.clone().count();
    if all == 0 {
        return "There was nothing to do.".to_owned();
    }
    let sum = |of: fn(&v1::Job) -> u64| jobs.clone().map(of).sum::<u64>();
    let mut rows = format!("{} answered", rows_words(sum(|job| job.rows_succeeded)));
    match sum(|job| job.rows_failed) {
        0 => {}
        failed => rows.push_str(&format!(", {} ended with an error", grouped(failed))),
    }
    match sum(|job| job.rows_by_fallback) {
        0 => {}
        by_fallback => rows.push_str(&format!(", {} of them by a fallback model", grouped(by_fallback))),
    }
    let in_state = |wanted: &[v1::JobState]| jobs.clone().filter(|job| wanted.contains(&job.state())).count();
    use v1::JobState::{Cancelled, Cancelling, Completed, Failed, Paused, Queued, Running};
    let completed = in_state(&[Completed]);
    if completed == all {
        return match all {
            1 => format!("The job is done: {rows}."),
            _ => format!("All {} are done: {rows}.", jobs_words(all)),
        };
    }
    let mut parts = Vec::new();
    for (states, one, many) in [
        (&[Completed][..], "is done", "are done"),
        (&[Running], "runs", "run"),
        (&[Queued], "waits", "wait"),
        (&[Paused], "is paused", "are paused"),
        (&[Cancelling], "is being cancelled", "are being cancelled"),
        (&[Cancelled], "was cancelled", "were cancelled"),
        (&[Failed], "failed", "failed"),
    ] {
        let count = in_state(states);
        if count > 0 {
            let verb = if count == 1 { one } else { many };
            let counted = if parts.is_empty() { jobs_words(count) } else { count.to_string() };
            parts.push(format!("{counted} {verb}"));
        }
    }
    format!("{}: {rows}.", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Fault;

    fn job(id: u64, state: v1::JobState, rows_succeeded: u64, rows_failed: u64) -> v1::Job {
        v1::Job { job_id: id, state: state.into(), rows_succeeded, rows_failed, ..v1::Job::default() }
    }

    #[test]
    fn the_verdict_is_one_sentence() {
        use v1::JobState::{Completed, Failed, Paused, Queued, Running};
        let of = |jobs: &[v1::Job]| verdict(jobs.iter());
        assert_eq!(of(&[]), "There was nothing to do.");
        assert_eq!(of(&[job(1, Completed, 1, 0)]), "The job is done: 1 row answered.");
        assert_eq!(
            of(&[job(1, Completed, 600, 0), job(2, Completed, 597, 3)]),
            "All 2 jobs are done: 1,197 rows answered, 3 ended with an error."
        );
        assert_eq!(
            of(&[job(1, Completed, 600, 0), job(2, Queued, 0, 0), job(3, Queued, 4, 0)]),
            "1 job is done, 2 wait: 604 rows answered."
        );
        assert_eq!(
            of(&[job(1, Running, 5, 0), job(2, Paused, 1, 0), job(3, Failed, 0, 0)]),
            "1 job runs, 1 is paused, 1 failed: 6 rows answered."
        );
        let by_fallback = v1::Job { rows_by_fallback: 40, ..job(1, Completed, 100, 0) };
        assert_eq!(of(&[by_fallback]), "The job is done: 100 rows answered, 40 of them by a fallback model.");
    }

    #[test]
    fn what_a_person_should_do_is_told_once() {
        use v1::JobState::{Completed, Paused};
        let failed = job(7, Completed, 98, 2);
        let sentence = to_do_about(&failed, &[]).unwrap();
        assert_eq!(
            sentence,
            "Look at the 2 rows of job j7 that ended with an error: clusterctl results j7 --errors."
        );
        let told = [
            "Job j7 is complete, but 50 of its 100 rows ended with an error: clusterctl results j7 --errors."
                .to_owned(),
        ];
        assert_eq!(to_do_about(&failed, &told), None);
        assert_eq!(to_do_about(&job(7, Completed, 98, 0), &[]), None);
        let paused = to_do_about(&job(7, Paused, 98, 0), &[]).unwrap();
        assert!(paused.ends_with("clusterctl resume j7."), "{paused}");
        let told = ["Job j7 is paused: workers failed 5 times in a row.".to_owned()];
        assert_eq!(to_do_about(&job(7, Paused, 98, 0), &told), None);
        let failed_too = to_do_about(&job(7, Paused, 97, 1), &told).unwrap();
        assert!(failed_too.starts_with("Look at the 1 row of job j7"), "{failed_too}");
        let forecast = v1::Forecast { rows_left_at_deadline: Some(1), ..v1::Forecast::default() };
        let late = v1::Job { forecast: Some(forecast), ..job(7, v1::JobState::Running, 1, 0) };
        assert_eq!(
            to_do_about(&late, &[]).unwrap(),
            "Job j7 will not be done by its deadline: 1 row left then."
        );
    }

    #[test]
    fn an_incident_is_of_the_time_in_which_any_of_it_was() {
        let incident = |closed_unix_ms, last_unix_ms| Incident {
            id: 1,
            fault: Fault::WorkerExited,
            node: None,
            job: Some(JobId(1)),
            opened_unix_ms: 10,
            times: 1,
            last_unix_ms,
            closed_unix_ms,
            summary: String::new(),
            action: String::new(),
            outcome: String::new(),
            evidence: vec!["first".to_owned(), "second".to_owned()],
            rows_requeued: 0,
            tokens_saved: 0,
            tokens_lost: 0,
            noticed_after_ms: None,
            first_token_after_ms: None,
            start_ms: None,
            went_on_as: String::new(),
        };
        assert!(is_since(&incident(None, 10), 100), "it is open");
        assert!(is_since(&incident(Some(100), 10), 100));
        assert!(!is_since(&incident(Some(99), 10), 100));
        assert_eq!(in_a_line(&incident(None, 10)).evidence, ["first"]);
    }
}
