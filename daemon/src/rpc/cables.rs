//! Thunderbolt ports and cables, between the protocol's types and the controller's own.

use nightshift_proto::v1;

use super::convert::clip;
use crate::model::{Cable, CableClass, Port, PortPeer, Thunderbolt};

/// Ports taken from one observation: the largest Mac has eight.
const MOST_PORTS: usize = 32;

/// Macs on one port: six devices make a chain.
const MOST_PEERS: usize = 16;

/// What an observation says about Thunderbolt.
pub(crate) fn thunderbolt(seen: Option<&v1::Observation>) -> Thunderbolt {
    let Some(said) = seen.and_then(|seen| seen.thunderbolt.as_ref()) else { return Thunderbolt::default() };
    let text = |value: &String| Some(clip(value)).filter(|text| !text.is_empty());
    let ports = said.ports.iter().take(MOST_PORTS).map(|port| Port {
        receptacle: port.receptacle,
        interface: text(&port.interface),
        domain_uuid: text(&port.domain_uuid),
        plugged: port.plugged,
        speed_bits_per_s: port.speed_bits_per_s,
        thunderbolt_5: port.thunderbolt_5,
        peers: port.peers.iter().take(MOST_PEERS).map(peer).collect(),
        bridged: port.bridged,
        bridge: text(&port.bridge),
        rdma_device: text(&port.rdma_device),
        rdma_listed: port.rdma_listed,
        rdma_active: match port.rdma_state() {
            v1::RdmaPortState::Unspecified => None,
            v1::RdmaPortState::Active => Some(true),
            v1::RdmaPortState::Down | v1::RdmaPortState::Initializing => Some(false),
        },
    });
    Thunderbolt { ports: ports.collect(), rdma_enabled: said.rdma.and_then(|rdma| rdma.enabled) }
}

fn peer(peer: &v1::ThunderboltPeer) -> PortPeer {
    PortPeer {
        domain_uuid: clip(&peer.domain_uuid),
        hardware_model: Some(clip(&peer.hardware_model)).filter(|text| !text.is_empty()),
        rdma: peer.rdma,
        behind_device: peer.behind_device,
    }
}

/// A cable between nodes.
pub(crate) fn cable(cable: &Cable) -> v1::Cable {
    let class = match cable.class {
        CableClass::Down => v1::CableClass::Down,
        CableClass::Tcp => v1::CableClass::Tcp,
        CableClass::Rdma => v1::CableClass::Rdma,
    };
    let flaws =
        cable.flaws.iter().map(|flaw| v1::CableFlaw { sentence: flaw.to_string(), next_step: flaw.remedy() });
    v1::Cable {
        a_node_id: cable.a.node.to_string(),
        a_receptacle: cable.a.receptacle,
        b_node_id: cable.b.node.to_string(),
        b_receptacle: cable.b.receptacle,
        class: class.into(),
        flaws: flaws.collect(),
    }
}
