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
        footprint_bytes: Some(4 * GIB),
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
            mode: v1::Mode::Unspecified.into(),
            context_tokens: 0,
            window: String::new(),
            deadline: String::new(),
            fallback_model: String::new(),
            fallback_policy: String::new(),
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
        times: 3,
        last_unix_ms: NOW_MS - 8 * MINUTE_MS,
        noticed_after_ms: Some(40),
        first_token_after_ms: Some(14_300),
        start_ms: Some(12_900),
        went_on_as: "independent workers".to_owned(),
        closed_unix_ms: NOW_MS - 8 * MINUTE_MS + 2_000,
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

/// Qwen3-235B-A22B at 4 bits.
pub(crate) fn large_model() -> v1::ModelSize {
    v1::ModelSize {
        model: "/models/Qwen3-235B-A22B-4bit".into(),
        architecture: "qwen3_moe".into(),
        layers: 94,
        weight_bytes: 132_263_501_824,
        embeddings_bytes: 350_093_312,
        head_bytes: 350_093_312,
        attention_bytes: 3_747_430_400,
        mlp_bytes: 0,
        experts_bytes: 127_667_273_728,
        other_bytes: 148_611_072,
        not_loaded_bytes: 0,
        cache_bytes_per_row: 788_529_152,
        cache_is_exact: true,
        context_tokens: 40_960,
        notes: Vec::new(),
    }
}

fn part(
    node: &str,
    [gang, rank]: [u32; 2],
    [first_layer, end_layer]: [u32; 2],
    rows: u64,
    layer_mb: u64,
    budget_mb: u64,
) -> v1::PlanPart {
    const MB: u64 = 1_000_000;
    let cache_bytes = u64::from(end_layer - first_layer) * 8_388_608 * rows;
    let mut part = v1::PlanPart {
        node_id: node.into(),
        gang,
        rank,
        first_layer,
        end_layer,
        layer_bytes: layer_mb * MB,
        embeddings_bytes: if first_layer == 0 { 350 * MB } else { 0 },
        head_bytes: if end_layer == 94 { 350 * MB } else { 0 },
        cache_bytes,
        activation_bytes: 1_240 * MB,
        overhead_bytes: 800 * MB,
        budget_bytes: budget_mb * MB,
        ..v1::PlanPart::default()
    };
    part.total_bytes = part.layer_bytes
        + part.embeddings_bytes
        + part.head_bytes
        + part.cache_bytes
        + part.activation_bytes
        + part.overhead_bytes;
    part.free_bytes = i64::try_from(part.budget_bytes).unwrap() - i64::try_from(part.total_bytes).unwrap();
    part
}

fn reason(rule: &str, node: &str, text: &str) -> v1::PlanReason {
    v1::PlanReason { rule: rule.into(), node_id: node.into(), text: text.into() }
}

fn alternative(mode: v1::Mode, chosen: bool, why: &str) -> v1::PlanAlternative {
    v1::PlanAlternative { mode: mode.into(), chosen, why: why.into() }
}

const TOO_LARGE_FOR_ONE: &str =
    "no node holds it whole: it needs 142.0 GB, and the largest budget is 127.8 GB on studio-1";

/// It takes both of two large Macs.
pub(crate) fn pipeline_plan() -> v1::PlanReply {
    v1::PlanReply {
        fits: true,
        model: Some(large_model()),
        mode: v1::Mode::Pipeline.into(),
        backend: v1::Backend::Jaccl.into(),
        rows: 8,
        context_tokens: 4096,
        largest_rows: 138,
        largest_context_tokens: 40_960,
        prefill_rows: 2,
        prefill_step_tokens: 512,
        parts: vec![
            part("studio-1", [0, 0], [47, 94], 8, 65_781, 127_775),
            part("studio-2", [0, 1], [0, 47], 8, 65_781, 127_775),
        ],
        reasons: vec![
            reason("fewest-nodes", "", "2 nodes are the fewest that hold it and can reach one another"),
            reason("backend", "", "jaccl (RDMA between every pair)"),
            reason("share", "studio-1", "studio-1: layers 47 to 93, 71.3 GB of a budget of 127.8 GB"),
            reason("share", "studio-2", "studio-2: layers 0 to 46, 71.3 GB of a budget of 127.8 GB"),
            reason("example", "studio-2", "about a node without its name"),
        ],
        alternatives: vec![
            alternative(v1::Mode::Independent, false, TOO_LARGE_FOR_ONE),
            alternative(v1::Mode::Pipeline, true, "it fits 2 nodes, jaccl (RDMA between every pair)"),
            alternative(
                v1::Mode::Tensor,
                false,
                "it fits 2 nodes, but is not measured to be faster than the pipeline here",
            ),
        ],
        left_out: vec![reason("silent", "mini-3", "not on mini-3: it has been silent for 12 min")],
        ..v1::PlanReply::default()
    }
}

/// Four Macs, two of them hold it.
pub(crate) fn two_gangs_plan() -> v1::PlanReply {
    let parts = (0..4).map(|n| {
        let layers = if n % 2 == 0 { [47, 94] } else { [0, 47] };
        part(&format!("studio-{}", n + 1), [n / 2, n % 2], layers, 8, 65_781, 127_775)
    });
    v1::PlanReply { parts: parts.collect(), left_out: Vec::new(), ..pipeline_plan() }
}

/// It fits each of two Macs.
pub(crate) fn independent_plan() -> v1::PlanReply {
    let parts = ["studio-1", "studio-2"].map(|node| part(node, [0, 0], [0, 94], 8, 131_563, 251_000));
    v1::PlanReply {
        mode: v1::Mode::Independent.into(),
        backend: v1::Backend::None.into(),
        parts: parts.into(),
        reasons: vec![reason("fits-one", "", "the model fits each of 2 nodes, so each answers rows alone")],
        alternatives: vec![
            alternative(v1::Mode::Independent, true, "fits 2 nodes"),
            alternative(
                v1::Mode::Pipeline,
                false,
                "not needed; it fits 2 nodes, jaccl (RDMA between every pair)",
            ),
        ],
        left_out: Vec::new(),
        ..pipeline_plan()
    }
}

/// Two smaller Macs do not hold it; its cache is only bounded.
pub(crate) fn refused_plan() -> v1::PlanReply {
    let why = "the weights and one row of 4096 tokens need 137.1 GB, and all budgets together are 85.8 GB";
    v1::PlanReply {
        fits: false,
        model: Some(v1::ModelSize {
            architecture: "qwen9_moe".into(),
            cache_is_exact: false,
            not_loaded_bytes: 1_200_000_000,
            notes: vec!["the architecture is not known, so its cache is bounded from above".into()],
            ..large_model()
        }),
        mode: v1::Mode::Unspecified.into(),
        context_tokens: 4096,
        parts: vec![
            part("studio-of-the-second-floor", [0, 0], [35, 94], 1, 82_900, 66_100),
            part("mini-2", [0, 0], [0, 35], 1, 48_700, 19_700),
        ],
        reasons: vec![
            reason("refused", "", &format!("independent: {TOO_LARGE_FOR_ONE}")),
            reason("refused", "", &format!("pipeline: {why}")),
            reason("refused", "", "tensor: its 4 key heads do not divide by 3"),
        ],
        alternatives: vec![
            alternative(v1::Mode::Independent, false, TOO_LARGE_FOR_ONE),
            alternative(v1::Mode::Pipeline, false, why),
            alternative(v1::Mode::Tensor, false, "its 4 key heads do not divide by 3"),
        ],
        advice: vec![
            "It fits when it is quantised to 3 bits a weight, roughly.".into(),
            "It fits with one more node that has a budget of 66.1 GB.".into(),
        ],
        ..v1::PlanReply::default()
    }
}

pub(crate) fn no_such_model(model: &str) -> v1::PlanReply {
    v1::PlanReply {
        problem: format!("no node has the model {model} (not on mini-1: there is no such directory)"),
        left_out: vec![
            reason("no-model", "mini-1", "not on mini-1: there is no such directory"),
            reason("silent", "mini-3", "not on mini-3: it has been silent for 12 min"),
        ],
        ..v1::PlanReply::default()
    }
}
