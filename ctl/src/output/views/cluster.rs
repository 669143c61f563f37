//! The cluster as a whole: status, incidents, events, logs, and the answer to a submission.

use nightshift_proto::v1;
use serde::Serialize;

use super::{At, DoctorView, JobView, NodeView, job_name, nonzero, text};

/// `status`.
#[derive(Debug, Clone, Serialize)]
pub struct StatusView {
    /// False when anything needs a person's eye.
    pub healthy: bool,
    /// What needs it, a sentence each.
    pub problems: Vec<String>,
    /// The daemon that answered.
    pub controller: ControllerView,
    /// All nodes it knows.
    pub nodes: Vec<NodeView>,
    /// Unfinished jobs, and the newest finished ones.
    pub jobs: Vec<JobView>,
    /// Open incidents and those closed in the last 24 hours, newest first.
    pub incidents: Vec<IncidentView>,
    /// What `doctor` found; none where that could not be asked.
    pub doctor: Option<DoctorCountView>,
}

/// How many things `doctor` found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DoctorCountView {
    /// Things that will end a night, or may at any time.
    pub fails: usize,
    /// Things a night may suffer from.
    pub warns: usize,
}

impl StatusView {
    /// `asked` is the "host:port" that answered, in case the controller does not name its own.
    pub fn new(status: v1::ClusterStatus, asked: &str, doctor: Option<&DoctorView>) -> Self {
        StatusView {
            healthy: status.healthy,
            problems: status.problems,
            controller: ControllerView::new(status.controller.unwrap_or_default(), asked),
            nodes: status.nodes.into_iter().map(NodeView::from).collect(),
            jobs: status.jobs.into_iter().map(JobView::from).collect(),
            incidents: status.incidents.into_iter().map(IncidentView::from).collect(),
            doctor: doctor.map(|found| DoctorCountView { fails: found.fails, warns: found.warns }),
        }
    }
}

/// The controller.
#[derive(Debug, Clone, Serialize)]
pub struct ControllerView {
    /// Version of `clusterd`.
    pub version: String,
    /// A fresh word for each start.
    pub instance_id: String,
    /// When it was started.
    pub started_at: Option<At>,
    /// Its clock when it answered.
    pub now_at: Option<At>,
    /// Where its ledger and the jobs are.
    pub state_dir: String,
    /// On the file system of the state directory.
    pub disk_available_bytes: Option<u64>,
    /// Where it listens.
    pub address: String,
}

impl ControllerView {
    fn new(controller: v1::Controller, asked: &str) -> Self {
        ControllerView {
            version: controller.version,
            instance_id: controller.instance_id,
            started_at: At::from_unix_ms(controller.started_unix_ms),
            now_at: At::from_unix_ms(controller.now_unix_ms),
            state_dir: controller.state_dir,
            disk_available_bytes: nonzero(controller.disk_available_bytes),
            address: text(controller.listen_address).unwrap_or_else(|| asked.to_owned()),
        }
    }
}

/// Something that went wrong, and what became of it.
#[derive(Debug, Clone, Serialize)]
pub struct IncidentView {
    /// Grows by one.
    pub id: u64,
    /// "worker-exited", "node-silent", "disk-full", …
    pub fault: String,
    /// Where.
    pub node: Option<String>,
    /// To which job.
    pub job: Option<String>,
    /// When it was seen.
    pub opened_at: Option<At>,
    /// How often it happened in a row; the costs are of all times together.
    pub times: u32,
    /// When it happened last.
    pub last_at: Option<At>,
    /// None while it is open.
    pub closed_at: Option<At>,
    /// What was seen.
    pub summary: String,
    /// What was done.
    pub action: Option<String>,
    /// How it ended.
    pub outcome: Option<String>,
    /// First errors, counters, last lines.
    pub evidence: Vec<String>,
    /// Rows given out again.
    pub rows_requeued: u64,
    /// Tokens that had to be generated again.
    pub tokens_lost: u64,
    /// Tokens kept by checkpoints.
    pub tokens_saved: u64,
    /// From the last sign that all was well to the notice.
    pub noticed_after_ms: Option<u64>,
    /// From the notice to the first token of a new launch.
    pub first_token_after_ms: Option<u64>,
    /// Of that, how long the launch took to start and to load.
    pub start_ms: Option<u64>,
    /// How the job went on: "a pipeline over ring (Thunderbolt)", "independent workers".
    pub went_on_as: Option<String>,
}

impl From<v1::Incident> for IncidentView {
    fn from(incident: v1::Incident) -> Self {
        IncidentView {
            id: incident.incident_id,
            fault: incident.fault,
            node: text(incident.node_id),
            job: nonzero(incident.job_id).map(job_name),
            opened_at: At::from_unix_ms(incident.opened_unix_ms),
            times: incident.times.max(1),
            last_at: At::from_unix_ms(incident.last_unix_ms),
            closed_at: At::from_unix_ms(incident.closed_unix_ms),
            summary: incident.summary,
            action: text(incident.action),
            outcome: text(incident.outcome),
            evidence: incident.evidence,
            rows_requeued: incident.rows_requeued,
            tokens_lost: incident.tokens_lost,
            tokens_saved: incident.tokens_saved,
            noticed_after_ms: incident.noticed_after_ms,
            first_token_after_ms: incident.first_token_after_ms,
            start_ms: incident.start_ms,
            went_on_as: text(incident.went_on_as),
        }
    }
}

/// One line of `events`.
#[derive(Debug, Clone, Serialize)]
pub struct EventView {
    /// Grows by one.
    pub seq: u64,
    /// When.
    pub at: Option<At>,
    /// "info", "warning" or "error".
    pub severity: &'static str,
    /// "worker-started", "config-refused", …
    pub kind: String,
    /// Where.
    pub node: Option<String>,
    /// To which job.
    pub job: Option<String>,
    /// A sentence.
    pub message: String,
}

impl From<v1::Event> for EventView {
    fn from(event: v1::Event) -> Self {
        let severity = match event.severity() {
            v1::Severity::Info => "info",
            v1::Severity::Warning => "warning",
            v1::Severity::Error => "error",
            v1::Severity::Unspecified => "unknown",
        };
        EventView {
            seq: event.seq,
            at: At::from_unix_ms(event.unix_ms),
            severity,
            kind: event.kind,
            node: text(event.node_id),
            job: nonzero(event.job_id).map(job_name),
            message: event.message,
        }
    }
}

/// One line of `logs`.
#[derive(Debug, Clone, Serialize)]
pub struct LogLineView {
    /// When.
    pub at: Option<At>,
    /// Where.
    pub node: Option<String>,
    /// "agent", or "j7/e3/r0" for a worker.
    pub source: String,
    /// The line itself.
    pub text: String,
}

impl From<v1::LogLine> for LogLineView {
    fn from(line: v1::LogLine) -> Self {
        LogLineView {
            at: At::from_unix_ms(line.unix_ms),
            node: text(line.node_id),
            source: line.source,
            text: line.text,
        }
    }
}

/// One line of `watch`.
#[derive(Debug, Clone, Serialize)]
pub struct SnapshotView {
    /// By this machine's clock.
    pub at: At,
    /// The jobs that are followed.
    pub jobs: Vec<JobView>,
    /// All nodes.
    pub nodes: Vec<NodeView>,
}

/// The answer to `submit`.
#[derive(Debug, Clone, Serialize)]
pub struct SubmitView {
    /// Whether the job was taken. If not, nothing of the submission was kept.
    pub accepted: bool,
    /// The job, when accepted.
    pub job: Option<JobView>,
    /// A refusal that is not about a line.
    pub problem: Option<String>,
    /// Lines that are wrong; `errors` has the first 20.
    pub error_count: u64,
    /// The lines and what is wrong with them.
    pub errors: Vec<LineErrorView>,
    /// What `line` counts: "line" of the input, or "row" (the nth prompt) with `--prompts`.
    pub counted_in: &'static str,
}

/// A line of the input that is wrong.
#[derive(Debug, Clone, Serialize)]
pub struct LineErrorView {
    /// From 1.
    pub line: u64,
    /// What is wrong with it.
    pub problem: String,
}

impl SubmitView {
    /// `counted_in`: what the numbers of line errors count.
    pub fn new(reply: v1::SubmitReply, counted_in: &'static str) -> Self {
        let mut view = SubmitView {
            accepted: false,
            job: None,
            problem: None,
            error_count: 0,
            errors: Vec::new(),
            counted_in,
        };
        match reply.outcome {
            Some(v1::submit_reply::Outcome::Accepted(job)) => {
                view.accepted = true;
                view.job = Some(JobView::from(job));
            }
            Some(v1::submit_reply::Outcome::Rejected(rejection)) => {
                view.problem = text(rejection.problem);
                view.error_count = rejection.error_count.max(rejection.errors.len() as u64);
                view.errors = rejection
                    .errors
                    .into_iter()
                    .map(|e| LineErrorView { line: e.line, problem: e.problem })
                    .collect();
            }
            None => view.problem = Some("The controller's answer says neither yes nor no.".to_owned()),
        }
        view
    }
}
