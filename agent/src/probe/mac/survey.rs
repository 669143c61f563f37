//! What the tools say together: each Thunderbolt port of this Mac, with its interface, its bridge, its RDMA device and its peer.
//! Pure.
//!
//! The promise: a tool that gave no answer makes what only it knows unknown, and nothing else.

use std::collections::BTreeSet;

use crate::probe::{
    observation::{Peer, Rdma, RdmaPortState, Thunderbolt, ThunderboltPort},
    parse::mac::{
        ifconfig,
        ports::HardwarePort,
        rdma::{DeviceInfo, PortState},
        thunderbolt::Bus,
    },
};

/// What the tools said; `None` for one that gave no answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// `system_profiler`.
    pub buses: Option<Vec<Bus>>,
    /// `networksetup`.
    pub hardware_ports: Option<Vec<HardwarePort>>,
    /// `ifconfig`.
    pub interfaces: Option<Vec<ifconfig::Interface>>,
    /// `rdma_ctl`.
    pub rdma_enabled: Option<bool>,
    /// `ibv_devices`.
    pub devices: Option<Vec<String>>,
    /// `ibv_devinfo`.
    pub device_infos: Option<Vec<DeviceInfo>>,
    /// `ioclasscount`.
    pub protection_domains_held: Option<u32>,
}

/// Joins it: by receptacle, interface and device.
#[must_use]
pub fn join(said: &Said) -> Thunderbolt {
    let buses = said.buses.as_deref().unwrap_or_default();
    let hardware = said.hardware_ports.as_deref().unwrap_or_default();
    let of_buses = buses.iter().filter_map(|bus| bus.receptacle);
    let receptacles: BTreeSet<u32> =
        of_buses.chain(hardware.iter().filter_map(HardwarePort::receptacle)).collect();
    let ports = receptacles.into_iter().map(|receptacle| {
        let bus = buses.iter().find(|bus| bus.receptacle == Some(receptacle));
        let interface = hardware.iter().find(|port| port.receptacle() == Some(receptacle));
        port(said, receptacle, bus, interface.map(|port| port.device.as_str()))
    });
    let infos = said.device_infos.as_deref().unwrap_or_default();
    Thunderbolt {
        ports: ports.collect(),
        rdma: Rdma {
            enabled: said.rdma_enabled,
            protection_domains_held: said.protection_domains_held,
            // Devices of one Mac have the same limit; where they differ, the lowest is what a launch meets.
            protection_domains_most: infos.iter().filter_map(|info| info.max_protection_domains).min(),
        },
    }
}

fn port(said: &Said, receptacle: u32, bus: Option<&Bus>, interface: Option<&str>) -> ThunderboltPort {
    let device = interface.map(|interface| format!("rdma_{interface}"));
    let info = said
        .device_infos
        .iter()
        .flatten()
        .find(|info| device.as_ref().is_some_and(|device| *device == info.name));
    let bridges = said.interfaces.as_ref().zip(interface).map(|(interfaces, own)| {
        let has_it = |other: &&ifconfig::Interface| other.members.iter().any(|member| member == own);
        interfaces.iter().find(has_it).map(|bridge| bridge.name.clone())
    });
    ThunderboltPort {
        receptacle,
        interface: interface.map(ToOwned::to_owned),
        domain_uuid: bus.and_then(|bus| bus.domain_uuid.clone()),
        plugged: bus.and_then(|bus| bus.plugged),
        speed_bits_per_s: bus.and_then(|bus| bus.speed_bits_per_s),
        thunderbolt_5: bus.and_then(Bus::is_thunderbolt_5),
        peers: bus.map(|bus| bus.peers.iter().map(peer).collect()).unwrap_or_default(),
        devices: bus.map(|bus| bus.devices.clone()).unwrap_or_default(),
        bridged: bridges.as_ref().map(Option::is_some),
        bridge: bridges.flatten(),
        rdma_listed: said.devices.as_ref().zip(device.as_ref()).map(|(all, device)| all.contains(device)),
        rdma_device: device,
        rdma_state: info.and_then(|info| info.state).map(state),
    }
}

fn peer(peer: &crate::probe::parse::mac::thunderbolt::Peer) -> Peer {
    Peer {
        domain_uuid: peer.domain_uuid.clone(),
        hardware_model: peer.model.clone(),
        rdma: peer.rdma,
        behind_device: peer.behind_device,
    }
}

fn state(state: PortState) -> RdmaPortState {
    match state {
        PortState::Down => RdmaPortState::Down,
        PortState::Initializing | PortState::Armed => RdmaPortState::Initializing,
        PortState::Active | PortState::ActiveDefer => RdmaPortState::Active,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::probe::parse::mac::thunderbolt;

    fn bus(receptacle: u32) -> Bus {
        Bus {
            receptacle: Some(receptacle),
            domain_uuid: Some(format!("A{receptacle}")),
            plugged: Some(true),
            speed_bits_per_s: Some(80_000_000_000),
            peers: vec![thunderbolt::Peer {
                domain_uuid: format!("B{receptacle}"),
                rdma: Some(true),
                ..thunderbolt::Peer::default()
            }],
            ..Bus::default()
        }
    }

    fn hardware(name: &str, device: &str) -> HardwarePort {
        HardwarePort { name: name.to_owned(), device: device.to_owned() }
    }

    fn info(name: &str, state: PortState, domains: u32) -> DeviceInfo {
        let max_protection_domains = Some(domains);
        DeviceInfo {
            name: name.to_owned(),
            state: Some(state),
            max_protection_domains,
            ..DeviceInfo::default()
        }
    }

    /// Two cables; the second port is in the bridge.
    fn all() -> Said {
        let bridge = ifconfig::Interface {
            name: "bridge0".to_owned(),
            members: vec!["en6".to_owned()],
            ..ifconfig::Interface::default()
        };
        Said {
            buses: Some(vec![bus(2), bus(1)]),
            hardware_ports: Some(vec![
                hardware("Thunderbolt Bridge", "bridge0"),
                hardware("Thunderbolt 1", "en3"),
                hardware("Thunderbolt 2", "en6"),
                hardware("Wi-Fi", "en0"),
            ]),
            interfaces: Some(vec![
                ifconfig::Interface { name: "en3".to_owned(), ..Default::default() },
                bridge,
            ]),
            rdma_enabled: Some(true),
            devices: Some(vec!["rdma_en3".to_owned()]),
            device_infos: Some(vec![
                info("rdma_en3", PortState::Active, 11),
                info("rdma_en9", PortState::Down, 9),
            ]),
            protection_domains_held: Some(2),
        }
    }

    #[test]
    fn a_port_is_known_by_receptacle_interface_and_device() {
        let joined = join(&all());
        let one = &joined.ports[0];
        assert_eq!(
            (one.receptacle, one.interface.as_deref(), one.domain_uuid.as_deref()),
            (1, Some("en3"), Some("A1"))
        );
        assert_eq!((one.peers[0].domain_uuid.as_str(), one.peers[0].rdma), ("B1", Some(true)));
        assert_eq!((one.bridged, one.bridge.as_deref()), (Some(false), None));
        assert_eq!(one.rdma_device.as_deref(), Some("rdma_en3"));
        assert_eq!((one.rdma_listed, one.rdma_state), (Some(true), Some(RdmaPortState::Active)));
        let other = &joined.ports[1];
        assert_eq!((other.bridged, other.bridge.as_deref()), (Some(true), Some("bridge0")));
        assert_eq!((other.rdma_listed, other.rdma_state), (Some(false), None));
        let expected =
            Rdma { enabled: Some(true), protection_domains_held: Some(2), protection_domains_most: Some(9) };
        assert_eq!(joined.rdma, expected);
    }

    #[test]
    fn each_tool_that_is_silent_takes_away_what_only_it_knows() {
        let whole = join(&all());
        let without = |change: fn(&mut Said)| {
            let mut said = all();
            change(&mut said);
            join(&said)
        };
        let buses = without(|said| said.buses = None);
        let port = ThunderboltPort { interface: Some("en3".to_owned()), ..buses.ports[0].clone() };
        assert_eq!((port.plugged, port.domain_uuid, port.peers.len()), (None, None, 0));
        assert_eq!((port.bridged, port.rdma_state), (whole.ports[0].bridged, whole.ports[0].rdma_state));

        let hardware = without(|said| said.hardware_ports = None);
        let port = &hardware.ports[1];
        assert_eq!((port.interface.as_ref(), port.bridged, port.rdma_listed), (None, None, None));
        assert_eq!(port.peers, whole.ports[1].peers);

        let interfaces = without(|said| said.interfaces = None);
        assert!(interfaces.ports.iter().all(|port| port.bridged.is_none() && port.bridge.is_none()));

        let devices = without(|said| said.devices = None);
        assert!(devices.ports.iter().all(|port| port.rdma_listed.is_none()));
        assert_eq!(devices.ports[0].rdma_state, Some(RdmaPortState::Active));

        let infos = without(|said| said.device_infos = None);
        assert!(infos.ports.iter().all(|port| port.rdma_state.is_none()));
        assert_eq!((infos.ports[0].rdma_listed, infos.rdma.protection_domains_most), (Some(true), None));

        assert_eq!(join(&Said::default()), Thunderbolt::default(), "and all together know nothing");
    }

    proptest! {
        /// Whatever is missing makes what is known less, and never other.
        #[test]
        fn what_is_known_without_a_tool_is_what_is_known_with_it(silent in proptest::collection::vec(any::<bool>(), 7)) {
            let mut said = all();
            let Said { buses, hardware_ports, interfaces, rdma_enabled, devices, device_infos, protection_domains_held } =
                &mut said;
            if silent[0] { *buses = None; }
            if silent[1] { *hardware_ports = None; }
            if silent[2] { *interfaces = None; }
            if silent[3] { *rdma_enabled = None; }
            if silent[4] { *devices = None; }
            if silent[5] { *device_infos = None; }
            if silent[6] { *protection_domains_held = None; }
            let (part, whole) = (join(&said), join(&all()));
            for port in &part.ports {
                let full = whole.ports.iter().find(|full| full.receptacle == port.receptacle).unwrap();
                prop_assert!(port.plugged.is_none() || port.plugged == full.plugged);
                prop_assert!(port.bridged.is_none() || (port.bridged, &port.bridge) == (full.bridged, &full.bridge));
                prop_assert!(port.rdma_listed.is_none() || port.rdma_listed == full.rdma_listed);
                prop_assert!(port.rdma_state.is_none() || port.rdma_state == full.rdma_state);
                prop_assert!(port.peers.is_empty() || port.peers == full.peers);
            }
        }
    }
}
