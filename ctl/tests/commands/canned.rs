//! A small cluster on a certain evening, in the protocol's words.

use nightshift_proto::v1;

/// 2026-11-20T18:30:00Z, the moment of [`nightshift_ctl::output::Screen::plain`].
pub(crate) const NOW_MS: u64 = 1_795_199_400_000;

const MINUTE_MS: u64 = 60_000;
const GIB: u64 = 1 << 30;

pub(crate) fn worker(job_id: u64, epoch: u64, node: &str, pid: u32) -> v1::Worker {
    v1::Worker {
        worker: Some(v1::WorkerId { job_id, epoch, rank: 0 }),
        node_id: node.into(),
        phase: v1::WorkerPhase::Decode.into(),
        pid,
        held_rows: 10,
        active_rows: 8,
        tokens_per_s: 206.4,
        peak_memory_bytes: 3 * GIB + GIB / 2,
        since_unix_ms: NOW_MS - 14 * MINUTE_MS,
    }
}

pub(crate) fn running_job() -> v1::Job {
    v1::Job {
        job_id: 7,
        spec: Some(v1::JobSpec {
            name: "nightly-eval".into(),
            model: "mlx-community/Qwen3-0.6B-4bit".into(),
            priority: 5,
            max_batch_rows: 8,
            default_max_tokens: 512,
            prefill_step_tokens: 0,
            submission_id: "0123".into(),
        }),
        state: v1::JobState::Running.into(),
        rows_total: 2000,
        rows_succeeded: 1201,
        rows_failed: 3,
        rows_in_flight: 20,
        prompt_tokens: 48_160,
        completion_tokens: 301_442,
        created_unix_ms: NOW_MS - 15 * MINUTE_MS,
        started_unix_ms: NOW_MS - 14 * MINUTE_MS,
        epoch: 3,
        mode: v1::Mode::Independent.into(),
        tokens_per_s: 412.8,
        rows_per_s: 1.46,
        eta_ms: Some(545_000),
        rows_requeued: 9,
        results_path: "/var/lib/nightshift/controller/jobs/j7/results.jsonl".into(),
        errors_path: "/var/lib/nightshift/controller/jobs/j7/errors.jsonl".into(),
        workers: vec![worker(7, 2, "mini-1", 4711), worker(7, 3, "mini-2", 815)],
        plan_reasons: vec![
            "The model fits every ready node, so each works alone".into(),
            "mini-3 is silent and gets no rows".into(),
        ],
        ..v1::Job::default()
    }
}

pub(crate) fn queued_job() -> v1::Job {
    v1::Job {
        job_id: 8,
        spec: Some(v1::JobSpec {
            name: "夜間バッチ".into(),
            model: "/models/llama".into(),
            ..v1::JobSpec::default()
        }),
        state: v1::JobState::Queued.into(),
        detail: "Waiting for job j7, which has a higher priority.".into(),
        rows_total: 36,
        created_unix_ms: NOW_MS - 4 * MINUTE_MS,
        ..v1::Job::default()
    }
}

pub(crate) fn completed_job() -> v1::Job {
    v1::Job {
        job_id: 6,
        spec: Some(v1::JobSpec {
            name: "a-name-that-somebody-made-far-too-long".into(),
            model: "mlx-community/Qwen3-0.6B-4bit".into(),
            ..v1::JobSpec::default()
        }),
        state: v1::JobState::Completed.into(),
        rows_total: 1_000_000,
        rows_succeeded: 1_000_000,
        completion_tokens: 256_000_000,
        created_unix_ms: NOW_MS - 1500 * MINUTE_MS,
        started_unix_ms: NOW_MS - 1499 * MINUTE_MS,
        finished_unix_ms: NOW_MS - 900 * MINUTE_MS,
        epoch: 1,
        mode: v1::Mode::Independent.into(),
        ..v1::Job::default()
    }
}

pub(crate) fn ready_node(name: &str, pid: u32) -> v1::Node {
    v1::Node {
        node_id: name.into(),
        state: v1::NodeState::Ready.into(),
        conditions: vec![v1::Condition {
            r#type: "Ready".into(),
            status: v1::ConditionStatus::True.into(),
            reason: "Connected".into(),
            message: "It takes work.".into(),
            since_unix_ms: NOW_MS - 180 * MINUTE_MS,
        }],
        observation: Some(v1::Observation {
            observed_unix_ms: NOW_MS - 3_000,
            boot_id: "5f3c".into(),
            os_name: "macos".into(),
            os_build: "25D125".into(),
            arch: "aarch64".into(),
            hardware_model: "Mac16,9".into(),
            memory: Some(v1::Memory {
                total_bytes: Some(128 * GIB),
                available_bytes: Some(61 * GIB + GIB / 2),
                wired_bytes: Some(12 * GIB),
                ..v1::Memory::default()
            }),
            load_1m: Some(2.5),
            cpu_count: 16,
            gpu: Some(v1::Gpu { present: true, name: "Apple M4 Max".into(), recovery_count: Some(0) }),
            interfaces: vec![v1::NetworkInterface {
                name: "en5".into(),
                carrier: Some(true),
                up: true,
                addresses: vec!["10.0.0.1/30".into()],
                mac: "36:fd:00:00:00:01".into(),
                ..v1::NetworkInterface::default()
            }],
            disk_available_bytes: Some(900 * GIB),
            ..v1::Observation::default()
        }),
        runtime: Some(v1::RuntimeStatus {
            ready: true,
            python_version: "3.12.7".into(),
            mlx_version: "0.32.4".into(),
            mlx_lm_version: "0.32.2".into(),
            problem: String::new(),
        }),
        agent_version: "0.1.0".into(),
        connected_since_unix_ms: NOW_MS - 180 * MINUTE_MS,
        silent_ms: 120,
        workers: vec![worker(7, 2, name, pid)],
        tokens_per_s: 206.4,
        ..v1::Node::default()
    }
}

pub(crate) fn silent_node() -> v1::Node {
    v1::Node {
        node_id: "mini-3".into(),
        state: v1::NodeState::Silent.into(),
        detail: "No word for 12 min; its rows were handed to other nodes".into(),
        silent_ms: 12 * MINUTE_MS,
        agent_version: "0.1.0".into(),
        ..v1::Node::default()
    }
}

pub(crate) fn unready_node() -> v1::Node {
    v1::Node {
        node_id: "studio-of-the-second-floor".into(),
        state: v1::NodeState::NotReady.into(),
        detail: "The Python runtime is not installed".into(),
        runtime: Some(v1::RuntimeStatus {
            problem: "There is no runtime; install it with: cluster-agent runtime install".into(),
            ..v1::RuntimeStatus::default()
        }),
        connected_since_unix_ms: NOW_MS - 2 * MINUTE_MS,
        ..v1::Node::default()
    }
}

pub(crate) fn incident() -> v1::Incident {
    v1::Incident {
        incident_id: 12,
        fault: "worker-exited".into(),
        node_id: "mini-2".into(),
        job_id: 7,
        opened_unix_ms: NOW_MS - 9 * MINUTE_MS,
        closed_unix_ms: NOW_MS - 9 * MINUTE_MS + 2_000,
        summary: "The worker of j7 on mini-2 was ended by signal 9".into(),
        action: "Started a new worker after 1 s".into(),
        outcome: "Rows flow again".into(),
        evidence: vec!["signal 9".into()],
        rows_requeued: 9,
        tokens_lost: 14,
        tokens_saved: 1_020,
    }
}

fn controller() -> v1::Controller {
    v1::Controller {
        version: "0.1.0".into(),
        instance_id: "c0ffee".into(),
        started_unix_ms: NOW_MS - 192 * MINUTE_MS,
        now_unix_ms: NOW_MS,
        state_dir: "/var/lib/nightshift/controller".into(),
        disk_available_bytes: 120 * GIB,
        listen_address: "127.0.0.1:7400".into(),
    }
}

/// Nothing has happened yet.
pub(crate) fn empty_status() -> v1::ClusterStatus {
    v1::ClusterStatus { controller: Some(controller()), healthy: true, ..v1::ClusterStatus::default() }
}

/// Everything as it should be.
pub(crate) fn healthy_status() -> v1::ClusterStatus {
    v1::ClusterStatus {
        controller: Some(controller()),
        nodes: vec![ready_node("mini-1", 4711), ready_node("mini-2", 815)],
        jobs: vec![running_job(), queued_job(), completed_job()],
        healthy: true,
        ..v1::ClusterStatus::default()
    }
}

/// A node is gone, another is not ready.
pub(crate) fn degraded_status() -> v1::ClusterStatus {
    let open = v1::Incident {
        incident_id: 13,
        fault: "node-silent".into(),
        node_id: "mini-3".into(),
        job_id: 0,
        opened_unix_ms: NOW_MS - 12 * MINUTE_MS,
        summary: "No heartbeat for 5 s".into(),
        action: "Its 10 rows were handed to other nodes".into(),
        rows_requeued: 10,
        ..v1::Incident::default()
    };
    v1::ClusterStatus {
        nodes: vec![ready_node("mini-1", 4711), silent_node(), unready_node()],
        incidents: vec![open, incident()],
        healthy: false,
        problems: vec![
            "Node mini-3 has been silent for 12 min; look whether it is on and reachable".into(),
            "Node studio-of-the-second-floor has no Python runtime; run there: cluster-agent runtime install"
                .into(),
        ],
        ..healthy_status()
    }
}

pub(crate) fn events() -> Vec<v1::Event> {
    let event =
        |seq, ago_ms, severity: v1::Severity, kind: &str, node: &str, job_id, message: &str| v1::Event {
            seq,
            unix_ms: NOW_MS - ago_ms,
            severity: severity.into(),
            kind: kind.into(),
            node_id: node.into(),
            job_id,
            message: message.into(),
        };
    vec![
        event(1, 1500 * MINUTE_MS, v1::Severity::Info, "node-joined", "mini-1", 0, "Node mini-1 joined."),
        event(2, 15 * MINUTE_MS, v1::Severity::Info, "job-accepted", "", 7, "Accepted with 2,000 rows."),
        event(
            3,
            9 * MINUTE_MS,
            v1::Severity::Warning,
            "worker-exited",
            "mini-2",
            7,
            "The worker of j7 on mini-2 was ended by signal 9; its 9 rows go to other workers, and a new one is started in 1 s.",
        ),
        event(
            4,
            30_500,
            v1::Severity::Error,
            "config-refused",
            "",
            0,
            "clusterd.toml:\n\x1b[31mline 3\x1b[0m",
        ),
    ]
}

pub(crate) fn log_lines() -> Vec<v1::LogLine> {
    vec![
        v1::LogLine {
            unix_ms: NOW_MS - 60_000,
            source: "agent".into(),
            text: "connected to 127.0.0.1:7400".into(),
            node_id: "mini-1".into(),
        },
        v1::LogLine {
            unix_ms: NOW_MS - 59_000,
            source: "j7/e3/r0".into(),
            text: "\x1b[31mTraceback\x1b[0m".into(),
            node_id: "mini-1".into(),
        },
    ]
}

pub(crate) fn rejection() -> v1::SubmitReply {
    let errors = (0..20)
        .map(|i| v1::LineError {
            line: 7 + 101 * i,
            problem: if i % 2 == 0 {
                "custom_id \"a\" was already used in line 3.".into()
            } else {
                "Not a JSON object: expected `,` or `}` at column 40.".into()
            },
        })
        .collect();
    v1::SubmitReply {
        outcome: Some(v1::submit_reply::Outcome::Rejected(v1::Rejection {
            errors,
            error_count: 1_234,
            problem: String::new(),
        })),
    }
}
