//! Between the protocol's types and the controller's own.

use std::sync::Arc;

use jiff::{Timestamp, tz::TimeZone};
use nightshift_proto::v1;

use crate::{
    model::{
        self, Checkpoint, Epoch, Forecast, JobId, JobSpec, LinkPace, Mode, NodeId, Obstacle, Outlook,
        RestartCause, RowIx, WorkerKey,
    },
    recovery::{
        CheckpointNews, Event, ExitClass, GangLaunch, HeldRow, LinkTestResult, ModelFound, ProgressNews,
        ReportedWorker, ResultHead, StopMode, WorkerExit, WorkerPhase, WorkerSettings,
    },
};

/// Log lines kept as evidence of an exit; more would not be read.
const EVIDENCE_LINES: usize = 50;
/// The longest text taken over from an agent's report, in bytes.
const EVIDENCE_LINE_BYTES: usize = 2_000;

pub(crate) fn worker_key(worker: Option<v1::WorkerId>) -> WorkerKey {
    let worker = worker.unwrap_or_default();
    WorkerKey { job: JobId(worker.job_id), epoch: Epoch(worker.epoch), rank: worker.rank }
}

pub(crate) fn worker_id(key: WorkerKey) -> v1::WorkerId {
    v1::WorkerId { job_id: key.job.0, epoch: key.epoch.0, rank: key.rank }
}

/// The mode a person asked for, if one.
pub(crate) fn mode(mode: v1::Mode) -> Option<Mode> {
    match mode {
        v1::Mode::Unspecified => None,
        v1::Mode::Independent => Some(Mode::Independent),
        v1::Mode::Pipeline => Some(Mode::Pipeline),
        v1::Mode::Tensor => Some(Mode::Tensor),
    }
}

/// What was asked for, or why it cannot be: one sentence. Times of day are those of the clock of `zone`.
pub(crate) fn job_spec(spec: v1::JobSpec, now_unix_ms: u64, zone: &TimeZone) -> Result<JobSpec, String> {
    let mode = mode(spec.mode());
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let window = given(&spec.window).map(|text| text.parse()).transpose();
    let policy = given(&spec.fallback_policy).map(|text| text.parse()).transpose();
    let policy = policy.map_err(|error: model::ParseFallbackError| error.to_string())?;
    let fallback_model = given(&spec.fallback_model);
    match &fallback_model {
        None if policy.is_some() => {
            return Err(
                "a fallback policy needs a fallback model: name one, or leave the policy out".to_owned()
            );
        }
        Some(fallback) if model::last_part(fallback) == model::last_part(&spec.model) => {
            return Err(format!(
                "answers of the fallback model {fallback} could not be told from those of the model, {}: both are signed \
                 with the same name",
                spec.model
            ));
        }
        _ => {}
    }
    let deadline = given(&spec.deadline).map(|text| model::deadline(&text, now_unix_ms, zone)).transpose();
    Ok(JobSpec {
        window: window.map_err(|error: model::ParseWindowError| error.to_string())?,
        deadline_unix_ms: deadline.map_err(|error| error.to_string())?,
        name: spec.name,
        model: spec.model,
        priority: spec.priority,
        max_batch_rows: spec.max_batch_rows,
        default_max_tokens: spec.default_max_tokens,
        prefill_step_tokens: spec.prefill_step_tokens,
        mode,
        context_tokens: spec.context_tokens.min(super::plan::MOST_CONTEXT_TOKENS),
        submission_id: spec.submission_id,
        fallback_model,
        fallback_policy: policy.unwrap_or_default(),
    })
}

/// The same, as it was taken.
pub(crate) fn job_spec_out(spec: &JobSpec) -> v1::JobSpec {
    let moment = |unix_ms: u64| Timestamp::from_millisecond(i64::try_from(unix_ms).ok()?).ok();
    v1::JobSpec {
        name: spec.name.clone(),
        model: spec.model.clone(),
        priority: spec.priority,
        max_batch_rows: spec.max_batch_rows,
        default_max_tokens: spec.default_max_tokens,
        prefill_step_tokens: spec.prefill_step_tokens,
        submission_id: spec.submission_id.clone(),
        mode: spec.mode.map_or(v1::Mode::Unspecified, super::plan::mode_out).into(),
        context_tokens: spec.context_tokens,
        window: spec.window.map(|window| window.to_string()).unwrap_or_default(),
        deadline: spec.deadline_unix_ms.and_then(moment).map(|at| at.to_string()).unwrap_or_default(),
        fallback_model: spec.fallback_model.clone().unwrap_or_default(),
        fallback_policy: match spec.fallback_model {
            Some(_) => spec.fallback_policy.to_string(),
            None => String::new(),
        },
    }
}

pub(crate) fn forecast_out(outlook: Outlook, deadline_passed: bool) -> v1::Forecast {
    use v1::ForecastObstacle::{Behind, NotRunning, OutsideWindow, Paused, TooEarly, Unspecified};
    let (forecast, obstacle) = match outlook {
        Outlook::Known(forecast) => (forecast, None),
        Outlook::Unknown(obstacle) => (Forecast::default(), Some(obstacle)),
        Outlook::Late { obstacle, rows_left } => {
            let forecast = Forecast { rows_left_at_deadline: Some(rows_left), ..Forecast::default() };
            (forecast, Some(obstacle))
        }
    };
    let word = obstacle.map_or(Unspecified, |obstacle| match obstacle {
        Obstacle::TooEarly => TooEarly,
        Obstacle::NotRunning => NotRunning,
        Obstacle::OutsideWindow => OutsideWindow,
        Obstacle::Behind(_) => Behind,
        Obstacle::Paused => Paused,
    });
    v1::Forecast {
        finish_unix_ms: forecast.finish_unix_ms,
        rows_left_at_deadline: forecast.rows_left_at_deadline,
        obstacle: word.into(),
        behind_job_id: match obstacle {
            Some(Obstacle::Behind(job)) => job.0,
            _ => 0,
        },
        deadline_passed,
    }
}

pub(crate) fn settings(options: Option<v1::WorkerOptions>) -> WorkerSettings {
    let options = options.unwrap_or_default();
    WorkerSettings {
        max_batch_rows: options.max_batch_rows.max(1),
        prefill_batch_rows: options.prefill_batch_rows,
        prefill_step_tokens: options.prefill_step_tokens,
        checkpoint_interval_ms: options.checkpoint_interval_ms,
        default_max_tokens: options.default_max_tokens,
    }
}

pub(crate) fn options(settings: WorkerSettings) -> v1::WorkerOptions {
    v1::WorkerOptions {
        max_batch_rows: settings.max_batch_rows,
        prefill_batch_rows: settings.prefill_batch_rows,
        prefill_step_tokens: settings.prefill_step_tokens,
        checkpoint_interval_ms: settings.checkpoint_interval_ms,
        default_max_tokens: settings.default_max_tokens,
    }
}

pub(crate) fn phase(phase: v1::WorkerPhase) -> WorkerPhase {
    match phase {
        v1::WorkerPhase::Unspecified | v1::WorkerPhase::Starting => WorkerPhase::Starting,
        v1::WorkerPhase::Loading => WorkerPhase::Loading,
        v1::WorkerPhase::Idle => WorkerPhase::Idle,
        v1::WorkerPhase::Prefill => WorkerPhase::Prefill,
        v1::WorkerPhase::Decode => WorkerPhase::Decode,
        v1::WorkerPhase::Stopping => WorkerPhase::Stopping,
    }
}

pub(crate) fn phase_out(phase: WorkerPhase) -> v1::WorkerPhase {
    match phase {
        WorkerPhase::Starting => v1::WorkerPhase::Starting,
        WorkerPhase::Loading => v1::WorkerPhase::Loading,
        WorkerPhase::Idle => v1::WorkerPhase::Idle,
        WorkerPhase::Prefill => v1::WorkerPhase::Prefill,
        WorkerPhase::Decode => v1::WorkerPhase::Decode,
        WorkerPhase::Stopping => v1::WorkerPhase::Stopping,
    }
}

pub(crate) fn stop_mode(mode: StopMode) -> v1::StopMode {
    match mode {
        StopMode::FinishStarted => v1::StopMode::FinishStarted,
        StopMode::Checkpoint => v1::StopMode::Checkpoint,
        StopMode::Kill => v1::StopMode::Kill,
    }
}

pub(crate) fn reported_worker(worker: &v1::RunningWorker) -> ReportedWorker {
    ReportedWorker {
        worker: worker_key(worker.worker),
        pid: worker.pid,
        phase: phase(worker.phase()),
        step: worker.step,
        settings: settings(worker.options),
        world_size: worker.world_size.max(1),
        rows: worker
            .rows
            .iter()
            .map(|held| HeldRow { row: RowIx(held.row), attempt: held.attempt })
            .collect(),
    }
}

pub(crate) fn result_head(result: &v1::RowResult) -> ResultHead {
    ResultHead {
        spool_seq: result.spool_seq,
        worker: worker_key(result.worker),
        row: RowIx(result.row),
        attempt: result.attempt,
        // Anything outside of HTTP's range is the worker's fault, so it is filed as such.
        status_code: u16::try_from(result.status_code)
            .ok()
            .filter(|code| (100..600).contains(code))
            .unwrap_or(500),
        prompt_tokens: result.prompt_tokens,
        completion_tokens: result.completion_tokens,
    }
}

pub(crate) fn progress(progress: v1::Progress) -> ProgressNews {
    ProgressNews {
        worker: worker_key(progress.worker),
        phase: phase(progress.phase()),
        step: progress.step,
        step_age_ms: progress.step_age_ms,
        active_rows: progress.active_rows,
        prompt_tokens: progress.prompt_tokens,
        generated_tokens: progress.generated_tokens,
        peak_memory_bytes: progress.peak_memory_bytes,
        checkpoints: progress
            .checkpoints
            .into_iter()
            .map(|fresh| CheckpointNews {
                row: RowIx(fresh.row),
                attempt: fresh.attempt,
                offset: fresh.offset,
                checkpoint: Checkpoint {
                    tokens: fresh.tokens,
                    logprobs_json: fresh.logprobs_json,
                    by_fallback: false,
                },
            })
            .collect(),
    }
}

pub(crate) fn worker_exit(worker: WorkerKey, exited: &v1::WorkerExited) -> WorkerExit {
    let class = match exited.class() {
        v1::ExitClass::Orderly => ExitClass::Orderly,
        v1::ExitClass::SpawnFailed => ExitClass::SpawnFailed,
        v1::ExitClass::ModelUnreadable => ExitClass::ModelUnreadable,
        v1::ExitClass::ModelUnsupported => ExitClass::ModelUnsupported,
        v1::ExitClass::OutOfMemory => ExitClass::OutOfMemory,
        v1::ExitClass::GpuFault => ExitClass::GpuFault,
        v1::ExitClass::LinkFault => ExitClass::LinkFault,
        v1::ExitClass::Apart => ExitClass::Apart,
        v1::ExitClass::Signalled => ExitClass::Signalled,
        v1::ExitClass::Unspecified | v1::ExitClass::Crashed => ExitClass::Crashed,
        v1::ExitClass::Killed => ExitClass::Killed,
        v1::ExitClass::Leftover => ExitClass::Leftover,
        v1::ExitClass::CanaryFailed => ExitClass::CanaryFailed,
    };
    let status = match (class, exited.signal, exited.exit_code) {
        (ExitClass::SpawnFailed, ..) => "could not be started".to_owned(),
        (ExitClass::Leftover, ..) => "ended with its agent".to_owned(),
        (_, Some(signal), _) => format!("was ended by {}", signal_name(signal)),
        (_, None, Some(code)) => format!("exited with status {code}"),
        (_, None, None) => "ended".to_owned(),
    };
    let first_kept = exited.log_tail.len().saturating_sub(EVIDENCE_LINES);
    WorkerExit {
        worker,
        class,
        status,
        first_error: clip(&exited.first_error),
        log_tail: exited.log_tail[first_kept..].iter().map(|line| clip(line)).collect(),
        started_rows: exited.started_rows.iter().copied().map(RowIx).collect(),
        killed_while_loaded: exited.killed_while_loaded,
        quiet_ms: None,
    }
}

fn signal_name(signal: i32) -> String {
    nix::sys::signal::Signal::try_from(signal)
        .map_or_else(|_| format!("signal {signal}"), |s| s.as_str().to_owned())
}

pub(super) fn clip(text: &str) -> String {
    model::clipped(text, EVIDENCE_LINE_BYTES).to_owned()
}

/// How the test of a link ended at a node.
pub(crate) fn link_test_result(tested: &v1::LinkTested) -> LinkTestResult {
    let problem = || match clip(&tested.problem) {
        empty if empty.is_empty() => "it does not say why".to_owned(),
        problem => problem,
    };
    match tested.outcome() {
        v1::LinkTestOutcome::Passed => LinkTestResult::Passed(LinkPace {
            round_trip_us: tested.round_trip_us,
            bytes_per_s: tested.bytes_per_s,
        }),
        v1::LinkTestOutcome::Failed => LinkTestResult::Failed(problem()),
        v1::LinkTestOutcome::NotMade | v1::LinkTestOutcome::Unspecified => LinkTestResult::NotMade(problem()),
    }
}

/// A node's name as agents may choose it: what fits in a sentence, a file name and a host name.
pub(crate) fn node_id(name: &str) -> Result<NodeId, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 63 || !name.chars().all(fits) {
        return Err(format!(
            "node id {name:?} is refused: it must be 1 to 63 letters, digits, dots, dashes or underscores (set node_id)"
        ));
    }
    Ok(NodeId::from(name))
}

/// What a node saw of another; nothing if that has no node's name.
pub(crate) fn node_seen(node: NodeId, seen: &v1::NodeSeen) -> Option<Event> {
    let (request_id, how) = (seen.request_id, clip(&seen.how));
    node_id(&seen.node_id).ok().map(|of| Event::NodeSeen { node, request_id, of, seen: seen.seen, how })
}

/// What a node's report on a model means for the recovery machine.
pub(crate) fn model_found(report: v1::ModelReport) -> ModelFound {
    match super::plan::facts_of(&report) {
        Ok(facts) => ModelFound::Files { fingerprint: report.fingerprint, facts: Arc::new(facts) },
        Err(_) => ModelFound::Problem,
    }
}

/// What the ranks of a gang are told.
pub(crate) fn gang(launch: &GangLaunch, secret: [u8; 32]) -> v1::Gang {
    let peers = launch.ranks.iter().zip(0..).map(|(rank, number)| v1::Peer {
        rank: number,
        node_id: rank.node.to_string(),
        addresses: rank.ring_address.iter().map(ToString::to_string).collect(),
        rdma_devices: rank.rdma_devices.iter().map(|device| device.clone().unwrap_or_default()).collect(),
        control_addresses: rank.control_addresses.iter().map(ToString::to_string).collect(),
        first_layer: rank.layers.map_or(0, |layers| layers.first),
        end_layer: rank.layers.map_or(0, |layers| layers.end),
    });
    v1::Gang {
        mode: super::plan::mode_out(launch.mode).into(),
        backend: super::plan::backend_out(launch.backend).into(),
        world_size: launch.world_size,
        peers: peers.collect(),
        coordinator: launch.coordinator.map(|address| address.to_string()).unwrap_or_default(),
        rendezvous_timeout_ms: launch.rendezvous_timeout_ms,
        secret: secret.to_vec(),
        canary: Some(v1::Canary { expected_tokens: launch.expected_answer.clone(), ..v1::Canary::default() }),
    }
}

pub(crate) fn restart_cause(cause: RestartCause) -> v1::RestartCause {
    match cause {
        RestartCause::StrandedMemory => v1::RestartCause::StrandedMemory,
        RestartCause::RdmaStartsUsedUp => v1::RestartCause::RdmaStartsUsedUp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_are_checked() {
        assert_eq!(node_id("studio-1.local").map(|id| id.to_string()), Ok("studio-1.local".to_owned()));
        for wrong in ["", "a b", "ä", "x/y", &"n".repeat(64)] {
            assert!(node_id(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn ends_are_put_into_words() {
        let key = worker_key(None);
        let with = |class: v1::ExitClass, signal, exit_code| {
            let exited = v1::WorkerExited { class: class.into(), signal, exit_code, ..Default::default() };
            worker_exit(key, &exited).status
        };
        assert_eq!(with(v1::ExitClass::Signalled, Some(9), None), "was ended by SIGKILL");
        assert_eq!(with(v1::ExitClass::Crashed, None, Some(3)), "exited with status 3");
        assert_eq!(with(v1::ExitClass::SpawnFailed, None, None), "could not be started");
        assert_eq!(with(v1::ExitClass::Leftover, Some(9), None), "ended with its agent");
        assert_eq!(with(v1::ExitClass::Unspecified, None, None), "ended");
    }

    #[test]
    fn a_gang_is_told_the_answer_that_is_known() {
        let mut launch = GangLaunch {
            mode: crate::model::Mode::Pipeline,
            backend: crate::model::Backend::Ring,
            world_size: 2,
            rendezvous_timeout_ms: 1,
            coordinator: None,
            ranks: Vec::new(),
            expected_answer: vec![7, 8],
        };
        let canary = |launch: &GangLaunch| gang(launch, [1; 32]).canary.unwrap();
        assert_eq!(canary(&launch), v1::Canary { expected_tokens: vec![7, 8], ..v1::Canary::default() });
        launch.expected_answer.clear();
        assert_eq!(canary(&launch), v1::Canary::default());
    }

    #[test]
    fn what_a_node_saw_of_another_is_taken_with_its_bounds() {
        let mut seen =
            v1::NodeSeen { request_id: 7, node_id: "n3".to_owned(), seen: true, how: "ä".repeat(3_000) };
        let Some(Event::NodeSeen { node, request_id, of, seen: true, how }) = node_seen("n2".into(), &seen)
        else {
            panic!("it is told")
        };
        assert_eq!((node.as_str(), request_id, of.as_str()), ("n2", 7, "n3"));
        assert_eq!(how.chars().count(), 1_000);
        seen.node_id = "n".repeat(64);
        assert!(node_seen("n2".into(), &seen).is_none());
    }
}
