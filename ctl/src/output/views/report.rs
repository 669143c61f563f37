//! The morning page.

use nightshift_proto::v1;
use serde::Serialize;

use super::{At, IncidentView, JobView, NodeView, text};

/// `report`.
#[derive(Debug, Clone, Serialize)]
pub struct ReportView {
    /// From when it tells.
    pub since_at: Option<At>,
    /// When it was made, by the controller's clock.
    pub until_at: Option<At>,
    /// How it went: one sentence.
    pub verdict: String,
    /// What a person should do, a sentence each.
    pub to_do: Vec<String>,
    /// Jobs that are not over, and those that ended since then, oldest first.
    pub jobs: Vec<ReportedJobView>,
    /// Jobs that are not among them, for there are too many.
    pub jobs_left_out: u64,
    /// All nodes known, with what they did for the jobs above.
    pub nodes: Vec<ReportedNodeView>,
    /// Those that were noticed or open since then, oldest first; of their evidence the first line.
    pub incidents: Vec<IncidentView>,
}

/// A job and who did it how.
#[derive(Debug, Clone, Serialize)]
pub struct ReportedJobView {
    /// The job as a whole, also what was done of it before.
    pub job: JobView,
    /// Who did how much of it, by node.
    pub work: Vec<WorkView>,
    /// How it ran, in the order in which the ways were first used.
    pub ways: Vec<WayView>,
}

/// What a node did. What a gang does counts for the node of its rank 0.
#[derive(Debug, Clone, Serialize)]
pub struct WorkView {
    /// Which.
    pub node: String,
    /// Rows finished there, with an answer or an error.
    pub rows: u64,
    /// Tokens of their prompts.
    pub prompt_tokens: u64,
    /// Tokens of their answers; all of a row count where it was finished.
    pub completion_tokens: u64,
    /// How long its workers had rows at work.
    pub busy_ms: u64,
    /// Tokens written a second in that time; none without any.
    pub tokens_per_s: Option<f64>,
}

/// A way to run.
#[derive(Debug, Clone, Serialize)]
pub struct WayView {
    /// "a pipeline over ring (Thunderbolt)", "independent workers".
    pub way: String,
    /// Rows finished that way.
    pub rows: u64,
}

/// A node, and what it did for all jobs of the report.
#[derive(Debug, Clone, Serialize)]
pub struct ReportedNodeView {
    /// Its name.
    pub id: String,
    /// "ready", "not-ready", "silent" or "draining".
    pub state: &'static str,
    /// One sentence when it is not ready.
    pub detail: Option<String>,
    /// What it did.
    pub work: WorkView,
    /// Incidents there, of those in the report.
    pub incidents: u32,
    /// Until when it takes no work; none: it is not in quarantine.
    pub quarantined_until_at: Option<At>,
}

impl From<v1::Report> for ReportView {
    fn from(report: v1::Report) -> Self {
        ReportView {
            since_at: At::from_unix_ms(report.since_unix_ms),
            until_at: At::from_unix_ms(report.until_unix_ms),
            verdict: report.verdict,
            to_do: report.to_do,
            jobs: report.jobs.into_iter().map(ReportedJobView::from).collect(),
            jobs_left_out: report.jobs_left_out,
            nodes: report.nodes.into_iter().map(ReportedNodeView::from).collect(),
            incidents: report.incidents.into_iter().map(IncidentView::from).collect(),
        }
    }
}

impl From<v1::ReportedJob> for ReportedJobView {
    fn from(reported: v1::ReportedJob) -> Self {
        let ways = reported.ways.into_iter().map(|v1::WayWork { way, rows }| WayView { way, rows });
        ReportedJobView {
            job: JobView::from(reported.job.unwrap_or_default()),
            work: reported.work.into_iter().map(WorkView::from).collect(),
            ways: ways.collect(),
        }
    }
}

impl From<v1::NodeWork> for WorkView {
    fn from(work: v1::NodeWork) -> Self {
        let v1::NodeWork { node_id, rows, prompt_tokens, completion_tokens, busy_ms } = work;
        let tokens_per_s =
            (busy_ms > 0 && completion_tokens > 0).then(|| completion_tokens as f64 * 1e3 / busy_ms as f64);
        WorkView { node: node_id, rows, prompt_tokens, completion_tokens, busy_ms, tokens_per_s }
    }
}

impl From<v1::ReportedNode> for ReportedNodeView {
    fn from(reported: v1::ReportedNode) -> Self {
        ReportedNodeView {
            state: NodeView::state_word(reported.state()),
            id: reported.node_id,
            detail: text(reported.detail),
            work: WorkView::from(reported.work.unwrap_or_default()),
            incidents: reported.incidents,
            quarantined_until_at: At::from_unix_ms(reported.quarantined_until_unix_ms),
        }
    }
}
