//! Thunderbolt ports as nodes report them, and the cables that join them. What is not known is `None`, never `false`.

use core::fmt;

use super::ids::NodeId;

/// What a node says of its Thunderbolt ports.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Thunderbolt {
    /// By receptacle.
    pub ports: Vec<Port>,
    /// Whether RDMA is on.
    pub rdma_enabled: Option<bool>,
}

/// A Thunderbolt port.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Port {
    /// Number of the receptacle.
    pub receptacle: u32,
    /// Its network interface.
    pub interface: Option<String>,
    /// Of its bus: by this the other end names it.
    pub domain_uuid: Option<String>,
    /// Whether something is plugged in.
    pub plugged: Option<bool>,
    /// Of the link.
    pub speed_bits_per_s: Option<u64>,
    /// Whether this end is Thunderbolt 5.
    pub thunderbolt_5: Option<bool>,
    /// Macs at the other end.
    pub peers: Vec<PortPeer>,
    /// Whether a bridge has the interface.
    pub bridged: Option<bool>,
    /// Which bridge.
    pub bridge: Option<String>,
    /// The name its RDMA device has or would have.
    pub rdma_device: Option<String>,
    /// Whether there is that device.
    pub rdma_listed: Option<bool>,
    /// Whether that device is active: both ends have RDMA on.
    pub rdma_active: Option<bool>,
}

/// A Mac at the other end of a cable.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PortPeer {
    /// Of its bus.
    pub domain_uuid: String,
    /// For example `Mac17,6`.
    pub hardware_model: Option<String>,
    /// Whether it offers RDMA.
    pub rdma: Option<bool>,
    /// A dock or hub is between.
    pub behind_device: bool,
}

/// What a cable can be used for. The order is that of worth.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum CableClass {
    /// Nothing.
    Down,
    /// TCP, by a ring.
    Tcp,
    /// RDMA.
    Rdma,
}

impl fmt::Display for CableClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Down => "down",
            Self::Tcp => "TCP only",
            Self::Rdma => "RDMA ready",
        })
    }
}

/// A cable between two nodes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cable {
    /// The end whose node comes first by name.
    pub a: CableEnd,
    /// The other one.
    pub b: CableEnd,
    /// What it can be used for.
    pub class: CableClass,
    /// Why it is not better, the first to mend first.
    pub flaws: Vec<Flaw>,
}

/// One end of a cable.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct CableEnd {
    /// Whose it is.
    pub node: NodeId,
    /// In which receptacle.
    pub receptacle: u32,
}

impl fmt::Display for CableEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (port {})", self.node, self.receptacle)
    }
}

/// A Mac at the end of a cable that is no node of this cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stranger {
    /// Where its cable ends here.
    pub at: CableEnd,
    /// Its hardware model.
    pub hardware_model: Option<String>,
}

/// Why a cable is not better than it is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Flaw {
    /// A dock or hub is between, over which RDMA does not go.
    BehindDevice,
    /// One end is older than Thunderbolt 5, which RDMA needs.
    OlderThunderbolt(NodeId),
    /// The link is slower than Thunderbolt 5. A port that is in use does not say what it could do, so this may be the cable or an end.
    SlowCable {
        /// What the link does.
        gigabits_per_s: u64,
    },
    /// The interface of the port is not known.
    NoInterface(NodeId),
    /// A bridge has the interface of the port.
    Bridged {
        /// Where.
        node: NodeId,
        /// The interface.
        interface: String,
        /// The bridge; empty where its name is not known.
        bridge: String,
        /// Whether TCP goes over the bridge: it is up and has an IPv4 address.
        carries: bool,
    },
    /// The interface is down, or has no carrier.
    InterfaceDown {
        /// Where.
        node: NodeId,
        /// The interface.
        interface: String,
    },
    /// The interface has no IPv4 address of its own (yet).
    NoAddress {
        /// Where.
        node: NodeId,
        /// The interface.
        interface: String,
    },
    /// The addresses of both ends are in no common subnet.
    Subnets,
    /// RDMA is off at this end.
    RdmaOff(NodeId),
    /// RDMA is on, and the port has no device.
    NoDevice {
        /// Where.
        node: NodeId,
        /// The device there should be.
        device: String,
    },
    /// The device is there and not active.
    DeviceDown {
        /// Where.
        node: NodeId,
        /// The device.
        device: String,
    },
    /// Not everything that RDMA needs is known of this end.
    Unknown(NodeId),
}

impl Flaw {
    /// Whether it leaves TCP alone.
    #[must_use]
    pub fn is_of_rdma_only(&self) -> bool {
        match self {
            Self::BehindDevice
            | Self::OlderThunderbolt(_)
            | Self::SlowCable { .. }
            | Self::RdmaOff(_)
            | Self::NoDevice { .. }
            | Self::DeviceDown { .. }
            | Self::Unknown(_) => true,
            Self::Bridged { carries, .. } => *carries,
            Self::NoInterface(_) | Self::InterfaceDown { .. } | Self::NoAddress { .. } | Self::Subnets => {
                false
            }
        }
    }

    /// Whether it is worth telling and keeps nothing from RDMA.
    #[must_use]
    pub fn is_harmless(&self) -> bool {
        matches!(self, Self::SlowCable { .. })
    }

    /// What a person can do about it.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::BehindDevice => "plug the cable into both Macs, without a dock or hub between".to_owned(),
            Self::OlderThunderbolt(node) => {
                format!("{node} cannot do RDMA over this port: its jobs run over TCP, or whole on each node")
            }
            Self::SlowCable { .. } => "if both Macs have Thunderbolt 5, use a cable that is certified for it (80 Gb/s)".to_owned(),
            Self::NoInterface(node) => {
                format!("on {node}, run `networksetup -listallhardwareports`: each Thunderbolt port must be listed")
            }
            Self::Bridged { node, .. } => prepared_by_command(node),
            Self::InterfaceDown { node, interface } => {
                format!("on {node}, run `sudo ifconfig {interface} up`, and look at both plugs of the cable")
            }
            Self::NoAddress { node, .. } => format!(
                "an address can take some minutes after a cable was plugged in; if none comes, {}",
                prepared_by_command(node)
            ),
            Self::Subnets => "at both ends, run `cluster-agent link plan`, which says how they get addresses of one \
                              network, and `sudo cluster-agent link apply`"
                .to_owned(),
            Self::RdmaOff(node) => format!(
                "start {node} in Recovery (hold the power button), open Terminal, run `rdma_ctl enable`, and restart: \
                 only a person in front of it can"
            ),
            Self::NoDevice { node, .. } => {
                format!("restart {node}; if the device does not come, the port cannot do RDMA (Thunderbolt 4)")
            }
            Self::DeviceDown { .. } => {
                "see that RDMA is on at both ends; plug the cable out and in; restart both Macs if that does not help"
                    .to_owned()
            }
            Self::Unknown(node) => format!("see what `cluster-agent probe` says on {node}"),
        }
    }
}

fn prepared_by_command(node: &NodeId) -> String {
    format!(
        "on {node}, run `cluster-agent link plan`, which says what is missing, and `sudo cluster-agent link apply`"
    )
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BehindDevice => f.write_str("a dock or hub is between, over which RDMA does not go"),
            Self::OlderThunderbolt(node) => write!(f, "the port of {node} is older than Thunderbolt 5"),
            Self::SlowCable { gigabits_per_s } => {
                write!(
                    f,
                    "the link runs at {gigabits_per_s} Gb/s: the cable or one of the two Macs can do no more"
                )
            }
            Self::NoInterface(node) => write!(f, "the interface of the port of {node} is not known"),
            Self::Bridged { node, interface, bridge, carries } => {
                let bridge = if bridge.is_empty() { "a bridge" } else { bridge };
                let rest = if *carries { "" } else { ", and carries nothing itself" };
                write!(f, "{bridge} of {node} has taken {interface}{rest}")
            }
            Self::InterfaceDown { node, interface } => {
                write!(f, "{interface} of {node} is down or without carrier")
            }
            Self::NoAddress { node, interface } => {
                write!(f, "{interface} of {node} has no IPv4 address of its own yet")
            }
            Self::Subnets => f.write_str("the addresses of its ends are in no common network"),
            Self::RdmaOff(node) => write!(f, "RDMA is off on {node}"),
            Self::NoDevice { node, device } => write!(f, "{node} has no {device} though RDMA is on"),
            Self::DeviceDown { node, device } => write!(f, "{device} of {node} is not active"),
            Self::Unknown(node) => write!(f, "not all is known of the RDMA of {node}"),
        }
    }
}
