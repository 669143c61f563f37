//! An observation as plain data, its JSON form (`cluster-agent probe --json`) and its wire form.

use nightshift_proto::v1;
use serde::Serialize;

/// What a machine says about itself at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Observation {
    /// When, by this machine's clock.
    pub observed_unix_ms: u64,
    /// Changes with every boot.
    pub boot_id: Option<String>,
    /// `linux` or `macos`.
    pub os_name: String,
    /// Kernel release on Linux, build version on macOS.
    pub os_build: Option<String>,
    /// For example `aarch64`.
    pub arch: String,
    /// For example `Mac16,9`.
    pub hardware_model: Option<String>,
    /// See [`Memory`].
    pub memory: Memory,
    /// Load average over one minute.
    pub load_1m: Option<f64>,
    /// Logical processors this process may use.
    pub cpu_count: Option<u32>,
    /// Sorted by name.
    pub interfaces: Vec<Interface>,
    /// `None`: not known whether there is one.
    pub gpu: Option<Gpu>,
    /// `None`: this system is not asked for it, or has not been yet.
    pub thunderbolt: Option<Thunderbolt>,
    /// `None`: this system is not asked for it, or has not been yet.
    pub preflight: Option<Preflight>,
    /// Tools that gave no answer.
    pub tool_problems: Vec<ToolProblem>,
    /// Free for us on the file system of the state directory.
    pub disk_available_bytes: Option<u64>,
    /// Probes that failed, a sentence each.
    pub problems: Vec<String>,
}

/// Memory, in bytes and percent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Memory {
    /// Installed.
    pub total_bytes: Option<u64>,
    /// What new work can have without swapping.
    pub available_bytes: Option<u64>,
    /// Not pageable.
    pub wired_bytes: Option<u64>,
    /// Size of swap.
    pub swap_total_bytes: Option<u64>,
    /// Used swap.
    pub swap_used_bytes: Option<u64>,
    /// Share of the last 10 s in which some task waited for memory (Linux PSI).
    pub pressure_some_avg10_percent: Option<f64>,
    /// The same, all tasks at once.
    pub pressure_full_avg10_percent: Option<f64>,
    /// 1 normal, 2 warning, 4 critical (macOS).
    pub pressure_level: Option<u32>,
    /// What the GPU may use.
    pub gpu_working_set_bytes: Option<u64>,
}

/// One network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Interface {
    /// For example `en5`.
    pub name: String,
    /// The link's physical state.
    pub carrier: Option<bool>,
    /// Administratively up.
    pub up: bool,
    /// The loopback interface.
    pub loopback: bool,
    /// With prefix length, sorted: `10.0.0.1/30`.
    pub addresses: Vec<String>,
    /// Speed of the link.
    pub speed_bits_per_s: Option<u64>,
    /// Hardware address, empty where there is none.
    pub mac: String,
}

/// The GPU.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// Whether there is one that MLX can use.
    pub present: bool,
    /// Its name.
    pub name: String,
    /// Restarts since boot (FIELD-NOTES 3).
    pub recovery_count: Option<u64>,
}

/// Thunderbolt ports and RDMA of a Mac. What is not known is `None`, never `false`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Thunderbolt {
    /// By receptacle.
    pub ports: Vec<ThunderboltPort>,
    /// Of the whole machine.
    pub rdma: Rdma,
}

/// RDMA of a machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Rdma {
    /// Whether it is on; a Mac with Thunderbolt 4 may say so all the same.
    pub enabled: Option<bool>,
    /// Protection domains that are held now: of running ranks, and of failed starts, which keep theirs until the next boot
    /// (FIELD-NOTES 2).
    pub protection_domains_held: Option<u32>,
    /// How many a device has.
    pub protection_domains_most: Option<u32>,
}

/// A Thunderbolt port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ThunderboltPort {
    /// Number of the receptacle.
    pub receptacle: u32,
    /// Its network interface.
    pub interface: Option<String>,
    /// Of its bus; by this the peer names it.
    pub domain_uuid: Option<String>,
    /// Whether something is plugged in.
    pub plugged: Option<bool>,
    /// Of the link.
    pub speed_bits_per_s: Option<u64>,
    /// Whether this end is Thunderbolt 5.
    pub thunderbolt_5: Option<bool>,
    /// Macs at the other end.
    pub peers: Vec<Peer>,
    /// Other devices at the other end, by name.
    pub devices: Vec<String>,
    /// Whether a bridge has the interface as a member: it then carries no RDMA.
    pub bridged: Option<bool>,
    /// Which bridge.
    pub bridge: Option<String>,
    /// The name its RDMA device has or would have.
    pub rdma_device: Option<String>,
    /// Whether there is that device.
    pub rdma_listed: Option<bool>,
    /// Of that device.
    pub rdma_state: Option<RdmaPortState>,
}

/// A Mac at the other end of a cable.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Peer {
    /// Of its bus.
    pub domain_uuid: String,
    /// For example `Mac17,6`.
    pub hardware_model: Option<String>,
    /// Whether it offers RDMA.
    pub rdma: Option<bool>,
    /// A dock or hub is between.
    pub behind_device: bool,
}

/// State of the port of an RDMA device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RdmaPortState {
    /// Nobody with RDMA at the other end.
    Down,
    /// On its way up.
    Initializing,
    /// Both ends have RDMA on.
    Active,
}

/// Settings of a machine that can end a night. What is not known is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Preflight {
    /// Minutes without use until the machine sleeps; 0: never.
    pub sleep_min: Option<u32>,
    /// Sleep is disabled altogether.
    pub sleep_disabled: Option<bool>,
    /// It starts by itself when power returns.
    pub auto_restart: Option<bool>,
    /// It runs at half its speed.
    pub low_power_mode: Option<bool>,
    /// Sleeps, shutdowns and restarts that are scheduled, as the system lists them.
    pub scheduled_stops: Vec<String>,
    /// Whether somebody must unlock the disk after a reboot.
    pub file_vault: Option<FileVault>,
    /// Updates of macOS install themselves, with a reboot.
    pub installs_macos: Option<bool>,
    /// So do security responses.
    pub installs_critical: Option<bool>,
    /// EXO's daemon is there, which changes the network of Thunderbolt ports behind our back (FIELD-NOTES 5).
    pub exo_daemon: Option<bool>,
}

/// State of FileVault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FileVault {
    /// Nothing runs after a reboot until somebody unlocks the disk.
    On,
    /// The machine starts by itself.
    Off,
    /// On its way on or off.
    Changing,
}

/// A tool that gave no answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ToolProblem {
    /// Its name.
    pub tool: String,
    /// It does not answer at all: for some tools a finding of its own (FIELD-NOTES 5).
    pub hangs: bool,
    /// This system does not have it.
    pub is_missing: bool,
    /// What happened, in a sentence.
    pub problem: String,
}

impl Observation {
    /// The message of the session protocol. Strings the protocol has no absence for are empty when not known.
    #[must_use]
    pub fn to_proto(&self) -> v1::Observation {
        v1::Observation {
            observed_unix_ms: self.observed_unix_ms,
            boot_id: self.boot_id.clone().unwrap_or_default(),
            os_name: self.os_name.clone(),
            os_build: self.os_build.clone().unwrap_or_default(),
            arch: self.arch.clone(),
            hardware_model: self.hardware_model.clone().unwrap_or_default(),
            memory: Some(v1::Memory {
                total_bytes: self.memory.total_bytes,
                available_bytes: self.memory.available_bytes,
                wired_bytes: self.memory.wired_bytes,
                swap_total_bytes: self.memory.swap_total_bytes,
                swap_used_bytes: self.memory.swap_used_bytes,
                pressure_some_avg10_percent: self.memory.pressure_some_avg10_percent,
                pressure_full_avg10_percent: self.memory.pressure_full_avg10_percent,
                gpu_working_set_bytes: self.memory.gpu_working_set_bytes,
                pressure_level: self.memory.pressure_level,
            }),
            load_1m: self.load_1m,
            cpu_count: self.cpu_count.unwrap_or_default(),
            interfaces: self.interfaces.iter().map(Interface::to_proto).collect(),
            gpu: self.gpu.as_ref().map(|gpu| v1::Gpu {
                present: gpu.present,
                name: gpu.name.clone(),
                recovery_count: gpu.recovery_count,
            }),
            disk_available_bytes: self.disk_available_bytes,
            problems: self.problems.clone(),
            memory_debt: None,
            rdma_starts: None,
            thunderbolt: self.thunderbolt.as_ref().map(Thunderbolt::to_proto),
            preflight: self.preflight.as_ref().map(Preflight::to_proto),
            tool_problems: self.tool_problems.iter().map(ToolProblem::to_proto).collect(),
            checks: Vec::new(),
            restarts: None,
        }
    }
}

impl Thunderbolt {
    fn to_proto(&self) -> v1::Thunderbolt {
        v1::Thunderbolt {
            ports: self.ports.iter().map(ThunderboltPort::to_proto).collect(),
            rdma: Some(v1::Rdma {
                enabled: self.rdma.enabled,
                protection_domains_held: self.rdma.protection_domains_held,
                protection_domains_most: self.rdma.protection_domains_most,
            }),
        }
    }
}

impl ThunderboltPort {
    fn to_proto(&self) -> v1::ThunderboltPort {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let peers = self.peers.iter().map(|peer| v1::ThunderboltPeer {
            domain_uuid: peer.domain_uuid.clone(),
            hardware_model: text(&peer.hardware_model),
            rdma: peer.rdma,
            behind_device: peer.behind_device,
        });
        let state = match self.rdma_state {
            None => v1::RdmaPortState::Unspecified,
            Some(RdmaPortState::Down) => v1::RdmaPortState::Down,
            Some(RdmaPortState::Initializing) => v1::RdmaPortState::Initializing,
            Some(RdmaPortState::Active) => v1::RdmaPortState::Active,
        };
        v1::ThunderboltPort {
            receptacle: self.receptacle,
            interface: text(&self.interface),
            domain_uuid: text(&self.domain_uuid),
            plugged: self.plugged,
            speed_bits_per_s: self.speed_bits_per_s,
            thunderbolt_5: self.thunderbolt_5,
            peers: peers.collect(),
            devices: self.devices.clone(),
            bridged: self.bridged,
            bridge: text(&self.bridge),
            rdma_device: text(&self.rdma_device),
            rdma_listed: self.rdma_listed,
            rdma_state: state.into(),
        }
    }
}

impl Preflight {
    fn to_proto(&self) -> v1::Preflight {
        let file_vault = match self.file_vault {
            None => v1::FileVault::Unspecified,
            Some(FileVault::On) => v1::FileVault::On,
            Some(FileVault::Off) => v1::FileVault::Off,
            Some(FileVault::Changing) => v1::FileVault::Changing,
        };
        v1::Preflight {
            sleep_min: self.sleep_min,
            sleep_disabled: self.sleep_disabled,
            auto_restart: self.auto_restart,
            low_power_mode: self.low_power_mode,
            scheduled_stops: self.scheduled_stops.clone(),
            file_vault: file_vault.into(),
            installs_macos: self.installs_macos,
            installs_critical: self.installs_critical,
            exo_daemon: self.exo_daemon,
        }
    }
}

impl ToolProblem {
    fn to_proto(&self) -> v1::ToolProblem {
        v1::ToolProblem {
            tool: self.tool.clone(),
            hangs: self.hangs,
            is_missing: self.is_missing,
            problem: self.problem.clone(),
        }
    }
}

impl Interface {
    fn to_proto(&self) -> v1::NetworkInterface {
        v1::NetworkInterface {
            name: self.name.clone(),
            carrier: self.carrier,
            up: self.up,
            loopback: self.loopback,
            addresses: self.addresses.clone(),
            speed_bits_per_s: self.speed_bits_per_s,
            mac: self.mac.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_stays_absent_on_the_wire() {
        let wire = Observation {
            interfaces: vec![Interface { name: "en5".into(), ..Default::default() }],
            ..Default::default()
        }
        .to_proto();
        assert_eq!(wire.memory.unwrap().total_bytes, None);
        assert_eq!((wire.interfaces[0].carrier, wire.gpu, wire.load_1m), (None, None, None));
    }
}
