//! What a night is made of: nodes, models, links, jobs.

use std::sync::Arc;

use nightshift_daemon::{
    fit::{Dtype, ModelFacts, ModelFiles, NodeMemory, Tensor},
    model::{FallbackPolicy, JobId, JobRecord, JobSpec, JobState, Mode, NodeId, Port, PortPeer, Thunderbolt},
    planner::{Interface, Network},
    recovery::{BootFacts, MayRestart, ModelFound, NodeFacts, Policy},
};
use nightshift_tests::rng::Rng;
use serde_json::json;

use super::agent::Agent;

pub(crate) const GB: u64 = 1_000_000_000;
pub(crate) const MINUTE_MS: u64 = 60_000;
pub(crate) const HOUR_MS: u64 = 60 * MINUTE_MS;

/// Between checkpoints.
pub(crate) const CHECKPOINT_MS: u64 = MINUTE_MS;

/// Layers of a gigabyte of the large model: what a job asks for. The small one stands in for it.
pub(crate) const LARGE_LAYERS: u64 = 80;
pub(crate) const SMALL_LAYERS: u64 = 8;

pub(crate) const LARGE: &str = "/models/large";
pub(crate) const SMALL: &str = "/models/small";

/// How the nodes are.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) nodes: Vec<(NodeId, u64)>,
    /// How long the night is.
    pub(crate) length_ms: u64,
    pub(crate) is_bombarded: bool,
    /// Whether every two nodes have a cable that is ready for RDMA; otherwise they have a network that is allowed.
    pub(crate) is_cabled: bool,
    /// Whether machines that need a restart are restarted, and some killed workers leave their memory wired.
    pub(crate) has_restarts: bool,
}

impl Plan {
    pub(crate) fn of(seed: u64, rng: &mut Rng) -> Self {
        let large_cluster = seed % 200 == 199;
        let count = if large_cluster { 100 } else { rng.range(2, 8) };
        // Each fits one node, needs two, or needs three of the smallest.
        let budget_gb = *rng.pick(&[100, 60, 45, 30]);
        let nodes = (0..count).map(|number| {
            let extra = if rng.range(0, 4) == 0 { 30 } else { 0 };
            (NodeId::from(format!("n{number}").as_str()), budget_gb + extra)
        });
        // No night of `regressions.txt` is one of these: they stay what they were.
        let is_cabled = matches!(seed % 10, 0 | 3 | 7);
        Self {
            nodes: nodes.collect(),
            length_ms: if large_cluster { 20 * MINUTE_MS } else { 8 * HOUR_MS },
            is_bombarded: if is_cabled { seed / 10 % 5 == 4 } else { seed % 5 == 4 },
            is_cabled,
            // Nor of these.
            has_restarts: matches!(seed % 10, 3 | 7),
        }
    }
}

pub(crate) fn policy(plan: &Plan) -> Policy {
    Policy {
        reboots: plan.has_restarts,
        checkpoint_interval_ms: CHECKPOINT_MS,
        window_drain_ms: 30_000,
        stop_grace_ms: 10_000,
        gang_networks: Network::parse("10.0.0.0/16").into_iter().collect(),
        max_batch_rows: 4,
        prefill_batch_rows: 4,
        // A quarantine ends within the night.
        quarantine_ms: 20 * MINUTE_MS,
        ..Policy::default()
    }
}

/// What a model is, wherever it lies.
pub(crate) fn model(name: &str) -> ModelFound {
    let (fingerprint, layers) = if name == LARGE { ("large", LARGE_LAYERS) } else { ("small", SMALL_LAYERS) };
    let tensors = (0..layers).map(|index| Tensor {
        name: format!("model.layers.{index}.mlp.up_proj.weight"),
        dtype: Dtype::Bf16,
        bytes: GB,
    });
    let config = json!({
        "model_type": "llama", "num_hidden_layers": layers, "hidden_size": 1_024, "num_attention_heads": 8,
        "num_key_value_heads": 8, "intermediate_size": 1_024, "vocab_size": 1_000,
    });
    let facts = ModelFacts::new(&ModelFiles { config, tensors: tensors.collect() }).expect("a model");
    ModelFound::Files { fingerprint: fingerprint.to_owned(), facts: Arc::new(facts) }
}

/// Starts over RDMA that a boot has.
pub(crate) const MOST_RDMA_STARTS: u32 = 5;

/// The boot that a machine is in.
pub(crate) fn boot_id(agent: &Agent) -> String {
    format!("boot-{}", agent.boot)
}

/// What an agent says of its machine in a night.
pub(crate) fn facts(agent: &Agent, plan: &Plan) -> NodeFacts {
    let address = format!("10.0.{}.{}/16", agent.number / 200, agent.number % 200 + 1);
    let interface = |name: &str, usable: bool, address: String| Interface {
        name: name.to_owned(),
        usable,
        loopback: false,
        addresses: vec![address],
    };
    // On a network that gangs may use there is no cable, and the other way round.
    let mut interfaces = vec![interface("en5", agent.link_up && !plan.is_cabled, address)];
    let mut ports = Vec::new();
    if plan.is_cabled {
        interfaces.push(interface("en0", true, format!("192.168.7.{}/24", agent.number + 1)));
        let others = (0..plan.nodes.len()).filter(|other| *other != agent.number);
        for (receptacle, other) in (1_u32..).zip(others) {
            let (low, high) = (agent.number.min(other), agent.number.max(other));
            let last = if agent.number == low { 1 } else { 2 };
            let name = format!("en{}", 10 + receptacle);
            interfaces.push(interface(&name, agent.link_up, format!("10.99.{}.{last}/30", low * 16 + high)));
            let peer = PortPeer { domain_uuid: format!("{other}>{}", agent.number), ..PortPeer::default() };
            ports.push(Port {
                receptacle,
                interface: Some(name.clone()),
                domain_uuid: Some(format!("{}>{other}", agent.number)),
                peers: agent.link_up.then_some(peer).into_iter().collect(),
                bridged: Some(false),
                rdma_device: Some(format!("rdma_{name}")),
                rdma_listed: Some(true),
                rdma_active: Some(agent.link_up && agent.rdma_up),
                ..Port::default()
            });
        }
    }
    let boot = BootFacts {
        most_rdma_starts: if plan.is_cabled { MOST_RDMA_STARTS } else { 0 },
        gpu_restarts: plan.is_cabled.then_some(agent.gpu_restarts),
        ..agent.boot_facts
    };
    NodeFacts {
        boot_id: boot_id(agent),
        agent_instance_id: format!("agent-{}", agent.instance),
        memory: NodeMemory { configured_bytes: Some(agent.budget_gb * GB), ..NodeMemory::default() },
        interfaces,
        thunderbolt: Thunderbolt { ports, rdma_enabled: plan.is_cabled.then_some(true) },
        boot,
        // The seventh has an agent from before links were tried.
        tests_links: agent.number != 6,
        may_restart: if plan.has_restarts { MayRestart::Yes } else { MayRestart::Unknown },
        ..NodeFacts::default()
    }
}

pub(crate) fn job(id: u64, rng: &mut Rng, unix_ms: u64, plan: &Plan) -> JobRecord {
    let all_gb: u64 = plan.nodes.iter().map(|(_, budget)| budget).sum();
    // With caches and what is computed on the way, and a node fewer.
    let holds_large = all_gb - plan.nodes[0].1 >= LARGE_LAYERS * 13 / 10;
    let rows_total = u32::try_from(rng.range(5, 120)).expect("a few rows");
    let mode = match rng.range(0, 6) {
        0 => Some(Mode::Pipeline),
        1 => Some(Mode::Independent),
        _ => None,
    };
    // What is too large for every node and asked for whole can never run, unless something may stand in.
    let stands_in = mode == Some(Mode::Independent) || rng.range(0, 3) == 0;
    let spec = JobSpec {
        name: format!("job {id}"),
        model: if rng.range(0, 3) == 0 || !holds_large { SMALL.to_owned() } else { LARGE.to_owned() },
        priority: i32::try_from(rng.range(0, 3)).expect("small"),
        mode,
        window: (rng.range(0, 6) == 0).then(|| "21:00-04:00".parse().expect("a window")),
        fallback_policy: if rng.range(0, 2) == 0 {
            FallbackPolicy::AtOnce
        } else {
            FallbackPolicy::default()
        },
        ..JobSpec::default()
    };
    let fallback_model = (stands_in && spec.model == LARGE).then(|| SMALL.to_owned());
    JobRecord {
        id: JobId(id),
        spec: JobSpec { fallback_model, ..spec },
        rows_total,
        lengths: nightshift_daemon::model::RowLengths::default(),
        state: JobState::Active,
        detail: String::new(),
        created_unix_ms: unix_ms,
        started_unix_ms: None,
        finished_unix_ms: None,
        epoch: nightshift_daemon::model::Epoch::default(),
        launches: Vec::new(),
        rows_requeued: 0,
        duplicate_results: 0,
        crashes: Vec::new(),
        work: nightshift_daemon::model::Work::default(),
    }
}
