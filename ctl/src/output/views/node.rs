//! Nodes: the machines, what they say about themselves, what they run.

use nightshift_proto::v1;
use serde::Serialize;

use super::{At, WorkerView, text};

/// A machine with an agent.
#[derive(Debug, Clone, Serialize)]
pub struct NodeView {
    /// Its name in the cluster.
    pub id: String,
    /// "ready", "not-ready", "silent" or "draining".
    pub state: &'static str,
    /// One sentence when it is not ready.
    pub detail: Option<String>,
    /// Typed statements about it.
    pub conditions: Vec<ConditionView>,
    /// What it said of itself last.
    pub machine: Option<MachineView>,
    /// Its Python runtime.
    pub runtime: Option<RuntimeView>,
    /// Version of its agent.
    pub agent_version: Option<String>,
    /// Since when its agent is connected.
    pub connected_at: Option<At>,
    /// Age of its last message.
    pub silent_ms: u64,
    /// Tokens written a second by all its workers, now.
    pub tokens_per_s: f64,
    /// Its worker processes.
    pub workers: Vec<WorkerView>,
}

impl NodeView {
    /// The word for a state.
    pub(super) fn state_word(state: v1::NodeState) -> &'static str {
        match state {
            v1::NodeState::Ready => "ready",
            v1::NodeState::NotReady => "not-ready",
            v1::NodeState::Silent => "silent",
            v1::NodeState::Draining => "draining",
            v1::NodeState::Unspecified => "unknown",
        }
    }
}

impl From<v1::Node> for NodeView {
    fn from(node: v1::Node) -> Self {
        let state = NodeView::state_word(node.state());
        NodeView {
            id: node.node_id,
            state,
            detail: text(node.detail),
            conditions: node.conditions.into_iter().map(ConditionView::from).collect(),
            machine: node.observation.map(MachineView::from),
            runtime: node.runtime.map(RuntimeView::from),
            agent_version: text(node.agent_version),
            connected_at: At::from_unix_ms(node.connected_since_unix_ms),
            silent_ms: node.silent_ms,
            tokens_per_s: node.tokens_per_s,
            workers: node.workers.into_iter().map(WorkerView::from).collect(),
        }
    }
}

/// A typed statement about a node, in the way of Kubernetes conditions.
#[derive(Debug, Clone, Serialize)]
pub struct ConditionView {
    /// "Ready", "RuntimeReady", "NeedsReboot", …
    #[serde(rename = "type")]
    pub kind: String,
    /// "true", "false" or "unknown".
    pub status: &'static str,
    /// One word in CamelCase, stable.
    pub reason: Option<String>,
    /// One sentence.
    pub message: Option<String>,
    /// Since when.
    pub since_at: Option<At>,
}

impl From<v1::Condition> for ConditionView {
    fn from(condition: v1::Condition) -> Self {
        let status = match condition.status() {
            v1::ConditionStatus::True => "true",
            v1::ConditionStatus::False => "false",
            v1::ConditionStatus::Unknown | v1::ConditionStatus::Unspecified => "unknown",
        };
        ConditionView {
            kind: condition.r#type,
            status,
            reason: text(condition.reason),
            message: text(condition.message),
            since_at: At::from_unix_ms(condition.since_unix_ms),
        }
    }
}

/// The Python runtime of a node.
#[derive(Debug, Clone, Serialize)]
pub struct RuntimeView {
    /// Whether workers can be started with it.
    pub ready: bool,
    /// Version of Python.
    pub python_version: Option<String>,
    /// Version of MLX.
    pub mlx_version: Option<String>,
    /// Version of mlx-lm.
    pub mlx_lm_version: Option<String>,
    /// What is wrong and what to do.
    pub problem: Option<String>,
}

impl From<v1::RuntimeStatus> for RuntimeView {
    fn from(runtime: v1::RuntimeStatus) -> Self {
        RuntimeView {
            ready: runtime.ready,
            python_version: text(runtime.python_version),
            mlx_version: text(runtime.mlx_version),
            mlx_lm_version: text(runtime.mlx_lm_version),
            problem: text(runtime.problem),
        }
    }
}

/// What a machine says about itself.
#[derive(Debug, Clone, Serialize)]
pub struct MachineView {
    /// By the node's clock.
    pub observed_at: Option<At>,
    /// Changes with every boot.
    pub boot_id: Option<String>,
    /// "linux" or "macos".
    pub os: Option<String>,
    /// Kernel release, or macOS build.
    pub os_build: Option<String>,
    /// "aarch64", "x86_64".
    pub arch: Option<String>,
    /// "Mac16,9".
    pub hardware_model: Option<String>,
    /// Processors.
    pub cpu_count: Option<u32>,
    /// Load average of the last minute.
    pub load_1m: Option<f64>,
    /// Physical memory.
    pub memory_total_bytes: Option<u64>,
    /// Memory to be had without pressure.
    pub memory_available_bytes: Option<u64>,
    /// Memory that cannot be paged out.
    pub memory_wired_bytes: Option<u64>,
    /// Share of the last 10 s in which some task waited for memory.
    pub memory_pressure_some_percent: Option<f64>,
    /// Share of the last 10 s in which all tasks waited for memory.
    pub memory_pressure_full_percent: Option<f64>,
    /// What the GPU may use.
    pub gpu_working_set_bytes: Option<u64>,
    /// Size of swap.
    pub swap_total_bytes: Option<u64>,
    /// Swap in use.
    pub swap_used_bytes: Option<u64>,
    /// On the file system of the agent's state directory.
    pub disk_available_bytes: Option<u64>,
    /// The least memory that was wired in this boot while no worker ran.
    pub baseline_wired_bytes: Option<u64>,
    /// Wired beyond that; none while a worker runs.
    pub stranded_bytes: Option<u64>,
    /// Workers that held a model when they were killed, in this boot.
    pub kills_while_loaded: u32,
    /// Starts of ranks over RDMA in this boot.
    pub rdma_starts_used: Option<u32>,
    /// How many there may be.
    pub rdma_starts_most: Option<u32>,
    /// The GPU; none where it is not known whether there is one.
    pub gpu: Option<GpuView>,
    /// Network interfaces.
    pub interfaces: Vec<InterfaceView>,
    /// Probes that failed, in words.
    pub problems: Vec<String>,
}

impl From<v1::Observation> for MachineView {
    fn from(seen: v1::Observation) -> Self {
        let memory = seen.memory.unwrap_or_default();
        let debt = seen.memory_debt.unwrap_or_default();
        MachineView {
            observed_at: At::from_unix_ms(seen.observed_unix_ms),
            boot_id: text(seen.boot_id),
            os: text(seen.os_name),
            os_build: text(seen.os_build),
            arch: text(seen.arch),
            hardware_model: text(seen.hardware_model),
            cpu_count: super::nonzero(seen.cpu_count),
            load_1m: seen.load_1m,
            baseline_wired_bytes: debt.baseline_wired_bytes,
            stranded_bytes: debt.stranded_bytes,
            kills_while_loaded: debt.kills_while_loaded,
            rdma_starts_used: seen.rdma_starts.map(|starts| starts.used),
            rdma_starts_most: seen.rdma_starts.map(|starts| starts.most),
            memory_total_bytes: memory.total_bytes,
            memory_available_bytes: memory.available_bytes,
            memory_wired_bytes: memory.wired_bytes,
            memory_pressure_some_percent: memory.pressure_some_avg10_percent,
            memory_pressure_full_percent: memory.pressure_full_avg10_percent,
            gpu_working_set_bytes: memory.gpu_working_set_bytes,
            swap_total_bytes: memory.swap_total_bytes,
            swap_used_bytes: memory.swap_used_bytes,
            disk_available_bytes: seen.disk_available_bytes,
            gpu: seen.gpu.map(GpuView::from),
            interfaces: seen.interfaces.into_iter().map(InterfaceView::from).collect(),
            problems: seen.problems,
        }
    }
}

/// A GPU.
#[derive(Debug, Clone, Serialize)]
pub struct GpuView {
    /// Whether there is one.
    pub present: bool,
    /// What it is called.
    pub name: Option<String>,
    /// Restarts of the GPU since boot.
    pub recovery_count: Option<u64>,
}

impl From<v1::Gpu> for GpuView {
    fn from(gpu: v1::Gpu) -> Self {
        GpuView { present: gpu.present, name: text(gpu.name), recovery_count: gpu.recovery_count }
    }
}

/// A network interface.
#[derive(Debug, Clone, Serialize)]
pub struct InterfaceView {
    /// "en5", "eth0".
    pub name: String,
    /// The link's physical state.
    pub carrier: Option<bool>,
    /// Administratively up.
    pub up: bool,
    /// The loopback interface.
    pub loopback: bool,
    /// With prefix length.
    pub addresses: Vec<String>,
    /// Nominal speed.
    pub speed_bits_per_s: Option<u64>,
    /// Hardware address.
    pub mac: Option<String>,
}

impl From<v1::NetworkInterface> for InterfaceView {
    fn from(interface: v1::NetworkInterface) -> Self {
        InterfaceView {
            name: interface.name,
            carrier: interface.carrier,
            up: interface.up,
            loopback: interface.loopback,
            addresses: interface.addresses,
            speed_bits_per_s: interface.speed_bits_per_s,
            mac: text(interface.mac),
        }
    }
}
