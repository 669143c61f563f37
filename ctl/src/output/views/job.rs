//! Jobs and the workers that answer them.

use nightshift_proto::v1;
use serde::Serialize;

use super::{At, job_name, mode_word, nonzero, text};

/// A job.
#[derive(Debug, Clone, Serialize)]
pub struct JobView {
    /// "j7".
    pub id: String,
    /// As given at submission.
    pub name: Option<String>,
    /// A directory on the nodes, or a name on the model hub.
    pub model: String,
    /// What answers while the model cannot run anywhere; none: nothing, the job waits.
    pub fallback_model: Option<String>,
    /// When it does: "never", "at-once" or "after 10m".
    pub fallback_policy: Option<String>,
    /// Whether it does now.
    pub on_fallback: bool,
    /// "queued", "running", "paused", "cancelling", "cancelled", "completed" or "failed".
    pub state: &'static str,
    /// Why it is in this state, when there is something to say.
    pub detail: Option<String>,
    /// Higher runs first.
    pub priority: i32,
    /// Rows of the input.
    pub rows_total: u64,
    /// Answered.
    pub rows_succeeded: u64,
    /// Ended with an error.
    pub rows_failed: u64,
    /// Of those answered, the ones that the fallback model answered.
    pub rows_by_fallback: u64,
    /// Held by workers now.
    pub rows_in_flight: u64,
    /// Rows given to a worker again after a fault.
    pub rows_requeued: u64,
    /// Second results of a row, dropped.
    pub duplicate_results: u64,
    /// Tokens read of all finished rows.
    pub prompt_tokens: u64,
    /// Tokens written of all finished rows.
    pub completion_tokens: u64,
    /// Tokens written a second, now.
    pub tokens_per_s: f64,
    /// Rows finished a second, now.
    pub rows_per_s: f64,
    /// Forecast of the time left; where it has a window, the hours in which that is closed are part of it.
    pub eta_ms: Option<u64>,
    /// When its rows may start, on the controller's clock: "22:00-07:00"; none: at any time.
    pub window: Option<String>,
    /// When its window opens next, while it is closed.
    pub window_opens_at: Option<At>,
    /// When its window closes, while it is open.
    pub window_closes_at: Option<At>,
    /// By when it should be done.
    pub deadline_at: Option<At>,
    /// When it will be done; none once it is over or being cancelled.
    pub forecast: Option<ForecastView>,
    /// When it was accepted.
    pub created_at: Option<At>,
    /// When its first row was handed out.
    pub started_at: Option<At>,
    /// When it ended.
    pub finished_at: Option<At>,
    /// "independent", "pipeline" or "tensor"; none before the first plan.
    pub mode: Option<&'static str>,
    /// The newest launch number.
    pub epoch: Option<u64>,
    /// Rows generated together; none: the controller's default.
    pub max_batch_rows: Option<u32>,
    /// Where a row gives no max_tokens; none: the controller's default.
    pub default_max_tokens: Option<u32>,
    /// Prompt tokens processed in one step; none: the controller's default.
    pub prefill_step_tokens: Option<u32>,
    /// On the controller's machine.
    pub results_path: Option<String>,
    /// On the controller's machine.
    pub errors_path: Option<String>,
    /// The plan's reasons, in order.
    pub plan_reasons: Vec<String>,
    /// The processes that work on it now.
    pub workers: Vec<WorkerView>,
}

impl JobView {
    /// Rows that have an answer or an error.
    pub fn rows_done(&self) -> u64 {
        self.rows_succeeded + self.rows_failed
    }

    /// Whether nothing more will happen to it.
    pub fn is_finished(&self) -> bool {
        matches!(self.state, "cancelled" | "completed" | "failed")
    }
}

impl From<v1::Job> for JobView {
    fn from(job: v1::Job) -> Self {
        let state = match job.state() {
            v1::JobState::Queued => "queued",
            v1::JobState::Running => "running",
            v1::JobState::Paused => "paused",
            v1::JobState::Cancelling => "cancelling",
            v1::JobState::Cancelled => "cancelled",
            v1::JobState::Completed => "completed",
            v1::JobState::Failed => "failed",
            v1::JobState::Unspecified => "unknown",
        };
        let mode = mode_word(job.mode());
        let moment = |unix_ms: Option<u64>| unix_ms.and_then(At::from_unix_ms);
        let spec = job.spec.unwrap_or_default();
        JobView {
            id: job_name(job.job_id),
            name: text(spec.name),
            model: spec.model,
            fallback_model: text(spec.fallback_model),
            fallback_policy: text(spec.fallback_policy),
            on_fallback: job.on_fallback,
            state,
            detail: text(job.detail),
            priority: spec.priority,
            rows_total: job.rows_total,
            rows_succeeded: job.rows_succeeded,
            rows_failed: job.rows_failed,
            rows_by_fallback: job.rows_by_fallback,
            rows_in_flight: job.rows_in_flight,
            rows_requeued: job.rows_requeued,
            duplicate_results: job.duplicate_results,
            prompt_tokens: job.prompt_tokens,
            completion_tokens: job.completion_tokens,
            tokens_per_s: job.tokens_per_s,
            rows_per_s: job.rows_per_s,
            eta_ms: job.eta_ms,
            window: text(spec.window),
            window_opens_at: moment(job.window_opens_unix_ms),
            window_closes_at: moment(job.window_closes_unix_ms),
            deadline_at: At::from_unix_ms(job.deadline_unix_ms),
            forecast: job.forecast.map(ForecastView::from),
            created_at: At::from_unix_ms(job.created_unix_ms),
            started_at: At::from_unix_ms(job.started_unix_ms),
            finished_at: At::from_unix_ms(job.finished_unix_ms),
            mode,
            epoch: nonzero(job.epoch),
            max_batch_rows: nonzero(spec.max_batch_rows),
            default_max_tokens: nonzero(spec.default_max_tokens),
            prefill_step_tokens: nonzero(spec.prefill_step_tokens),
            results_path: text(job.results_path),
            errors_path: text(job.errors_path),
            plan_reasons: job.plan_reasons,
            workers: job.workers.into_iter().map(WorkerView::from).collect(),
        }
    }
}

/// When a job will be done, at the speed of the last minutes.
#[derive(Debug, Clone, Serialize)]
pub struct ForecastView {
    /// When its last row will be done; none: not known, or not within two months.
    pub finish_at: Option<At>,
    /// Rows that will not be done at the deadline, 0 when all will; none: not known, or there is no deadline to come.
    pub rows_left_at_deadline: Option<u64>,
    /// Why its end is not known: "too-early", "not-running", "outside-window", "behind" or "paused"; none when it is.
    pub obstacle: Option<&'static str>,
    /// For "behind": the job that goes first.
    pub behind: Option<String>,
    /// Whether the deadline has passed.
    pub deadline_passed: bool,
}

impl From<v1::Forecast> for ForecastView {
    fn from(forecast: v1::Forecast) -> Self {
        // A reason this version does not know is one, too.
        let obstacle = match v1::ForecastObstacle::try_from(forecast.obstacle) {
            Ok(v1::ForecastObstacle::Unspecified) => None,
            Ok(v1::ForecastObstacle::TooEarly) => Some("too-early"),
            Ok(v1::ForecastObstacle::NotRunning) => Some("not-running"),
            Ok(v1::ForecastObstacle::OutsideWindow) => Some("outside-window"),
            Ok(v1::ForecastObstacle::Behind) => Some("behind"),
            Ok(v1::ForecastObstacle::Paused) => Some("paused"),
            Err(_) => Some("unknown"),
        };
        ForecastView {
            finish_at: forecast.finish_unix_ms.and_then(At::from_unix_ms),
            rows_left_at_deadline: forecast.rows_left_at_deadline,
            obstacle,
            behind: nonzero(forecast.behind_job_id).map(job_name),
            deadline_passed: forecast.deadline_passed,
        }
    }
}

/// One worker process.
#[derive(Debug, Clone, Serialize)]
pub struct WorkerView {
    /// The job it works on.
    pub job: Option<String>,
    /// Its launch number.
    pub epoch: u64,
    /// Its place in a sharded run; 0 where it works alone.
    pub rank: u32,
    /// The node it runs on.
    pub node: String,
    /// "starting", "loading", "idle", "prefill", "decode" or "stopping".
    pub phase: &'static str,
    /// Its process on that node.
    pub pid: Option<u32>,
    /// Rows sent to it and not back yet.
    pub held_rows: u32,
    /// Rows it generates now.
    pub active_rows: u32,
    /// Tokens written a second, now.
    pub tokens_per_s: f64,
    /// The most memory it has used, as MLX counts.
    pub peak_memory_bytes: Option<u64>,
    /// What the system counts of its process now: phys_footprint on macOS, what is resident on Linux.
    pub footprint_bytes: Option<u64>,
    /// When it was started.
    pub started_at: Option<At>,
}

impl WorkerView {
    /// For a sentence: "16 rows", or "8/16 rows" where some of them wait for a place.
    pub fn rows(&self) -> String {
        format!("{} {}", self.rows_in_figures(), if self.held_rows == 1 { "row" } else { "rows" })
    }

    /// For a column: "16", or "8/16".
    pub fn rows_in_figures(&self) -> String {
        if self.active_rows > 0 && self.active_rows < self.held_rows {
            format!("{}/{}", self.active_rows, self.held_rows)
        } else {
            self.held_rows.to_string()
        }
    }
}

impl From<v1::Worker> for WorkerView {
    fn from(worker: v1::Worker) -> Self {
        let phase = match worker.phase() {
            v1::WorkerPhase::Starting => "starting",
            v1::WorkerPhase::Loading => "loading",
            v1::WorkerPhase::Idle => "idle",
            v1::WorkerPhase::Prefill => "prefill",
            v1::WorkerPhase::Decode => "decode",
            v1::WorkerPhase::Stopping => "stopping",
            v1::WorkerPhase::Unspecified => "unknown",
        };
        let id = worker.worker.unwrap_or_default();
        WorkerView {
            job: nonzero(id.job_id).map(job_name),
            epoch: id.epoch,
            rank: id.rank,
            node: worker.node_id,
            phase,
            pid: nonzero(worker.pid),
            held_rows: worker.held_rows,
            active_rows: worker.active_rows,
            tokens_per_s: worker.tokens_per_s,
            peak_memory_bytes: nonzero(worker.peak_memory_bytes),
            footprint_bytes: worker.footprint_bytes,
            started_at: At::from_unix_ms(worker.since_unix_ms),
        }
    }
}
