//! Which Thunderbolt ports of which nodes a cable joins, and what each cable can be used for.
//!
//! Each Mac names the bus at the other end of a cable by its domain UUID, and its own by another; what two nodes say is joined
//! by these. Promises: a cable is ready for RDMA only where everything that RDMA needs is known to be so at both ends; what is
//! not known is said to be, and is never taken for a fault; every cable that is not ready for RDMA says why.

use core::net::IpAddr;

use super::links::{Interface, Network};
use crate::model::{
    Cable, CableClass, CableEnd, Flaw, Link, LinkEnd, LinkKind, NodeId, Port, PortPeer, Stranger, Thunderbolt,
};

/// A link at least this fast is Thunderbolt 5 over a cable for it.
const THUNDERBOLT_5_BITS_PER_S: u64 = 80_000_000_000;

/// What a node says of its ports and interfaces.
#[derive(Clone, Copy, Debug)]
pub struct NodePorts<'a> {
    /// Which node.
    pub node: &'a NodeId,
    /// Its ports.
    pub thunderbolt: &'a Thunderbolt,
    /// Its interfaces.
    pub interfaces: &'a [Interface],
}

#[derive(Clone, Copy)]
struct Place<'a> {
    of: NodePorts<'a>,
    port: &'a Port,
}

impl Place<'_> {
    fn end(self) -> CableEnd {
        CableEnd { node: self.of.node.clone(), receptacle: self.port.receptacle }
    }

    /// The peer that is this bus.
    fn sees(&self, other: &Port) -> Option<&PortPeer> {
        let uuid = other.domain_uuid.as_ref()?;
        self.port.peers.iter().find(|peer| peer.domain_uuid == *uuid)
    }

    /// The interface that has the port's address: that of the bridge, where one has taken it.
    fn interface(&self) -> Option<&Interface> {
        let name = self.port.bridge.as_ref().or(self.port.interface.as_ref())?;
        self.of.interfaces.iter().find(|interface| interface.name == *name)
    }
}

/// All cables between nodes, in order of their ends. One that only one end tells of is a cable, too: the other may not have
/// looked yet. Cost: ports².
#[must_use]
pub fn cables(nodes: &[NodePorts<'_>]) -> Vec<Cable> {
    joined(nodes).into_iter().map(|(_, _, cable)| cable).collect()
}

/// What the cables are good for: one that is ready for RDMA is two links, because RDMA can fail alone. In order of their ends.
pub(super) fn cable_links(nodes: &[NodePorts<'_>]) -> Vec<Link> {
    let mut links = Vec::new();
    for (a, b, cable) in joined(nodes) {
        let Some((at_a, at_b)) = addresses(&a, &b).filter(|_| cable.class != CableClass::Down) else {
            continue;
        };
        let link = |kind: LinkKind| {
            let end = |place: &Place<'_>, address: IpAddr| {
                let rdma_device = place.port.rdma_device.clone().filter(|_| kind == LinkKind::Rdma);
                let interface =
                    place.interface().map_or_else(String::new, |interface| interface.name.clone());
                LinkEnd { node: place.of.node.clone(), interface, address, rdma_device }
            };
            Link { a: end(&a, at_a), b: end(&b, at_b), kind }
        };
        links.extend((cable.class == CableClass::Rdma).then(|| link(LinkKind::Rdma)));
        links.push(link(LinkKind::Thunderbolt));
    }
    links
}

/// The cables with the places of their ends, in order of these.
fn joined<'a>(nodes: &[NodePorts<'a>]) -> Vec<(Place<'a>, Place<'a>, Cable)> {
    let places = places(nodes);
    let mut found = Vec::new();
    for (index, one) in places.iter().enumerate() {
        for other in &places[index + 1..] {
            let is_one_cable = one.sees(other.port).is_some() || other.sees(one.port).is_some();
            if one.of.node != other.of.node && is_one_cable {
                let (a, b) = if one.end() <= other.end() { (one, other) } else { (other, one) };
                found.push((*a, *b, cable(a, b)));
            }
        }
    }
    found.sort_by(|(.., x), (.., y)| (&x.a, &x.b).cmp(&(&y.a, &y.b)));
    found
}

/// Macs at the ends of cables that no node says to be.
#[must_use]
pub fn strangers(nodes: &[NodePorts<'_>]) -> Vec<Stranger> {
    let places = places(nodes);
    let is_known = |peer: &PortPeer| {
        places.iter().any(|place| place.port.domain_uuid.as_ref() == Some(&peer.domain_uuid))
    };
    let unknown = places.iter().flat_map(|place| {
        place
            .port
            .peers
            .iter()
            .filter(|peer| !is_known(peer))
            .map(|peer| Stranger { at: place.end(), hardware_model: peer.hardware_model.clone() })
    });
    unknown.collect()
}

fn places<'a>(nodes: &[NodePorts<'a>]) -> Vec<Place<'a>> {
    nodes.iter().flat_map(|of| of.thunderbolt.ports.iter().map(|port| Place { of: *of, port })).collect()
}

fn cable(a: &Place<'_>, b: &Place<'_>) -> Cable {
    let mut flaws = Vec::new();
    let peers = [a.sees(b.port), b.sees(a.port)];
    if peers.iter().flatten().any(|peer| peer.behind_device) {
        flaws.push(Flaw::BehindDevice);
    }
    flaws.extend(speed_flaws(a, b));
    for (place, seen_as) in [(a, peers[1]), (b, peers[0])] {
        // That the bridge has no address, or is down, is not to be mended there: the port is to leave it.
        flaws.extend(bridge_flaw(place).or_else(|| link_flaw(place)));
        flaws.extend(rdma_flaw(place, seen_as));
    }
    // A port is active only when both ends offer RDMA (FIELD-NOTES 5): what keeps one end from it is what is to be mended.
    let keeps_both_down = |flaw: &Flaw| {
        matches!(
            flaw,
            Flaw::RdmaOff(_) | Flaw::NoDevice { .. } | Flaw::Bridged { .. } | Flaw::OlderThunderbolt(_)
        )
    };
    if flaws.iter().any(keeps_both_down) {
        flaws.retain(|flaw| !matches!(flaw, Flaw::DeviceDown { .. }));
    }
    let has_addresses = !flaws.iter().any(|flaw| !flaw.is_of_rdma_only());
    if has_addresses && addresses(a, b).is_none() {
        flaws.push(Flaw::Subnets);
    }
    let class = if flaws.iter().any(|flaw| !flaw.is_of_rdma_only()) {
        CableClass::Down
    } else if flaws.iter().all(Flaw::is_harmless) {
        CableClass::Rdma
    } else {
        CableClass::Tcp
    };
    // An address goes with the interface that a bridge takes.
    let is_bridge = |flaw: &Flaw| matches!(flaw, Flaw::Bridged { .. });
    flaws.sort_by_key(|flaw| (flaw.is_harmless(), !is_bridge(flaw), flaw.is_of_rdma_only()));
    Cable { a: a.end(), b: b.end(), class, flaws }
}

/// A link below 80 Gb/s: an end that is known to be older, or else the cable or an end of which that is not known.
fn speed_flaws(a: &Place<'_>, b: &Place<'_>) -> Vec<Flaw> {
    let older: Vec<Flaw> = [a, b]
        .into_iter()
        .filter(|place| place.port.thunderbolt_5 == Some(false))
        .map(|place| Flaw::OlderThunderbolt(place.of.node.clone()))
        .collect();
    if !older.is_empty() {
        return older;
    }
    let speed = [a, b].into_iter().filter_map(|place| place.port.speed_bits_per_s).min();
    let slow = speed.filter(|speed| *speed < THUNDERBOLT_5_BITS_PER_S);
    slow.map(|speed| Flaw::SlowCable { gigabits_per_s: speed / 1_000_000_000 }).into_iter().collect()
}

/// A bridge that has taken the interface of one end.
fn bridge_flaw(place: &Place<'_>) -> Option<Flaw> {
    let interface = place.port.interface.clone().filter(|_| place.port.bridged == Some(true))?;
    let (node, bridge) = (place.of.node.clone(), place.port.bridge.clone().unwrap_or_default());
    Some(Flaw::Bridged { node, interface, bridge, carries: link_flaw(place).is_none() })
}

/// What keeps TCP from one end; at most one, the first to mend.
fn link_flaw(place: &Place<'_>) -> Option<Flaw> {
    let node = place.of.node.clone();
    let Some(interface) = place.interface() else { return Some(Flaw::NoInterface(node)) };
    let interface_name = interface.name.clone();
    if !interface.usable {
        return Some(Flaw::InterfaceDown { node, interface: interface_name });
    }
    let has_address = own_addresses(interface).next().is_some();
    (!has_address).then_some(Flaw::NoAddress { node, interface: interface_name })
}

/// What keeps RDMA from one end; at most one, the first to mend. `seen_as` is how the other end sees this one.
fn rdma_flaw(place: &Place<'_>, seen_as: Option<&PortPeer>) -> Option<Flaw> {
    let node = || place.of.node.clone();
    let port = place.port;
    let is_off = place.of.thunderbolt.rdma_enabled == Some(false)
        || (place.of.thunderbolt.rdma_enabled.is_none()
            && seen_as.is_some_and(|peer| peer.rdma == Some(false)));
    if is_off {
        return Some(Flaw::RdmaOff(node()));
    }
    if port.bridged == Some(true) {
        // That is said already.
        return None;
    }
    let device = || port.rdma_device.clone().unwrap_or_default();
    match (port.rdma_listed, port.rdma_active) {
        (Some(false), _) => Some(Flaw::NoDevice { node: node(), device: device() }),
        (_, Some(false)) => Some(Flaw::DeviceDown { node: node(), device: device() }),
        (Some(true), Some(true)) if port.bridged == Some(false) && port.rdma_device.is_some() => None,
        _ => Some(Flaw::Unknown(node())),
    }
}

/// IPv4 addresses that somebody gave; those made up for want of one lead nowhere for certain where several ports have some.
fn own_addresses(interface: &Interface) -> impl Iterator<Item = Network> {
    let parsed = interface.addresses.iter().filter_map(|text| Network::parse(text).ok());
    parsed.filter(|network| matches!(network.address(), IpAddr::V4(address) if !address.is_link_local()))
}

/// The addresses by which the ends of a cable reach one another.
fn addresses(a: &Place<'_>, b: &Place<'_>) -> Option<(IpAddr, IpAddr)> {
    let (a, b) = (a.interface()?, b.interface()?);
    let pairs = own_addresses(a).flat_map(|one| own_addresses(b).map(move |other| (one, other)));
    pairs
        .filter(|(one, other)| one.is_same_subnet(other) && one.address() != other.address())
        .map(|(one, other)| (one.address(), other.address()))
        .min()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A node with one port, ready for RDMA, whose peer is `of` of the other.
    #[derive(Clone)]
    struct Mac {
        node: NodeId,
        thunderbolt: Thunderbolt,
        interfaces: Vec<Interface>,
    }

    fn mac(node: &str, own: &str, peer: &str, address: &str) -> Mac {
        let port = Port {
            receptacle: 1,
            interface: Some("en3".to_owned()),
            domain_uuid: Some(own.to_owned()),
            plugged: Some(true),
            speed_bits_per_s: Some(80_000_000_000),
            thunderbolt_5: Some(true),
            peers: vec![PortPeer {
                domain_uuid: peer.to_owned(),
                hardware_model: Some("Mac16,9".to_owned()),
                rdma: Some(true),
                behind_device: false,
            }],
            bridged: Some(false),
            bridge: None,
            rdma_device: Some("rdma_en3".to_owned()),
            rdma_listed: Some(true),
            rdma_active: Some(true),
        };
        let interface = |name: &str, address: &str| Interface {
            name: name.to_owned(),
            usable: true,
            loopback: false,
            addresses: vec![address.to_owned()],
        };
        Mac {
            node: node.into(),
            thunderbolt: Thunderbolt { ports: vec![port], rdma_enabled: Some(true) },
            interfaces: vec![interface("en3", address), interface("en0", "192.168.1.7/24")],
        }
    }

    fn pair() -> [Mac; 2] {
        [mac("a", "A1", "B1", "10.99.0.1/30"), mac("b", "B1", "A1", "10.99.0.2/30")]
    }

    fn ports(macs: &[Mac]) -> Vec<NodePorts<'_>> {
        macs.iter()
            .map(|Mac { node, thunderbolt, interfaces }| NodePorts { node, thunderbolt, interfaces })
            .collect()
    }

    fn joined(macs: &[Mac]) -> Vec<Cable> {
        cables(&ports(macs))
    }

    /// Class and flaws of the one cable, after a change to the first node.
    fn after(change: impl FnOnce(&mut Mac)) -> (CableClass, String) {
        let mut macs = pair();
        change(&mut macs[0]);
        let found = joined(&macs);
        assert_eq!(found.len(), 1, "{found:?}");
        let told: Vec<String> = found[0].flaws.iter().map(ToString::to_string).collect();
        (found[0].class, told.join("; "))
    }

    fn port(mac: &mut Mac) -> &mut Port {
        &mut mac.thunderbolt.ports[0]
    }

    #[test]
    fn two_macs_on_one_cable_are_ready_for_rdma() {
        let found = joined(&pair());
        let ends = (found[0].a.to_string(), found[0].b.to_string());
        assert_eq!(ends, ("a (port 1)".to_owned(), "b (port 1)".to_owned()));
        assert_eq!((found.len(), found[0].class, found[0].flaws.len()), (1, CableClass::Rdma, 0));
    }

    #[test]
    fn every_flaw_has_its_class_and_its_sentence() {
        use CableClass::{Down, Rdma, Tcp};
        type Change = fn(&mut Mac);
        let rows: [(Change, CableClass, &str); 19] = [
            (|mac| mac.thunderbolt.rdma_enabled = Some(false), Tcp, "RDMA is off on a"),
            (|mac| port(mac).rdma_listed = Some(false), Tcp, "a has no rdma_en3 though RDMA is on"),
            (|mac| port(mac).rdma_active = Some(false), Tcp, "rdma_en3 of a is not active"),
            (|mac| port(mac).rdma_active = None, Tcp, "not all is known of the RDMA of a"),
            (|mac| port(mac).rdma_listed = None, Tcp, "not all is known of the RDMA of a"),
            (|mac| port(mac).bridged = None, Tcp, "not all is known of the RDMA of a"),
            (|mac| port(mac).thunderbolt_5 = Some(false), Tcp, "the port of a is older than Thunderbolt 5"),
            (
                |mac| port(mac).peers[0].behind_device = true,
                Tcp,
                "a dock or hub is between, over which RDMA does not go",
            ),
            (
                |mac| port(mac).speed_bits_per_s = Some(40_000_000_000),
                Rdma,
                "the link runs at 40 Gb/s: the cable or one of the two Macs can do no more",
            ),
            (|mac| port(mac).interface = None, Down, "the interface of the port of a is not known"),
            (|mac| mac.interfaces.clear(), Down, "the interface of the port of a is not known"),
            (|mac| mac.interfaces[0].usable = false, Down, "en3 of a is down or without carrier"),
            (|mac| mac.interfaces[0].addresses.clear(), Down, "en3 of a has no IPv4 address of its own yet"),
            (
                |mac| {
                    mac.interfaces[0].addresses = vec!["169.254.3.4/16".to_owned(), "fd00::1/64".to_owned()]
                },
                Down,
                "en3 of a has no IPv4 address of its own yet",
            ),
            (
                |mac| mac.interfaces[0].addresses = vec!["10.98.0.1/30".to_owned()],
                Down,
                "the addresses of its ends are in no common network",
            ),
            // Both have the same one: nobody is reached by it.
            (
                |mac| mac.interfaces[0].addresses = vec!["10.99.0.2/30".to_owned()],
                Down,
                "the addresses of its ends are in no common network",
            ),
            // The bridge carries TCP, and RDMA does not go over it.
            (
                |mac| {
                    port(mac).bridged = Some(true);
                    port(mac).bridge = Some("bridge0".to_owned());
                    mac.interfaces[0].name = "bridge0".to_owned();
                },
                Tcp,
                "bridge0 of a has taken en3",
            ),
            (
                |mac| {
                    port(mac).bridged = Some(true);
                    port(mac).bridge = Some("bridge0".to_owned());
                    mac.interfaces.push(Interface {
                        name: "bridge0".to_owned(),
                        usable: true,
                        loopback: false,
                        addresses: Vec::new(),
                    });
                },
                Down,
                "bridge0 of a has taken en3, and carries nothing itself",
            ),
            (
                |mac| {
                    port(mac).bridged = Some(true);
                },
                Tcp,
                "a bridge of a has taken en3",
            ),
        ];
        for (index, (change, class, sentence)) in rows.into_iter().enumerate() {
            assert_eq!(after(change), (class, sentence.to_owned()), "row {index}");
        }
    }

    #[test]
    fn rdma_that_is_off_at_the_other_end_is_seen_from_this_one() {
        // b says nothing of itself, and a sees that it offers none.
        let mut macs = pair();
        macs[1].thunderbolt.rdma_enabled = None;
        port(&mut macs[1]).rdma_active = None;
        port(&mut macs[0]).peers[0].rdma = Some(false);
        port(&mut macs[0]).rdma_active = Some(false);
        let flaws = joined(&macs)[0].flaws.clone();
        let off = Flaw::RdmaOff("b".into());
        assert_eq!(flaws, [off], "that the port of a is not active follows from it");
        // What it says itself counts more than what was seen of it.
        macs[1].thunderbolt.rdma_enabled = Some(true);
        port(&mut macs[1]).rdma_active = Some(true);
        assert!(!joined(&macs)[0].flaws.contains(&Flaw::RdmaOff("b".into())));
    }

    #[test]
    fn a_cable_that_one_end_tells_of_is_a_cable() {
        let mut macs = pair();
        port(&mut macs[1]).peers.clear();
        assert_eq!(joined(&macs).len(), 1);
        port(&mut macs[0]).peers.clear();
        assert_eq!(joined(&macs), []);
    }

    #[test]
    fn several_cables_join_the_ports_that_they_end_in() {
        let mut macs = pair();
        for (mac, own, peer) in [(0, "A2", "C1"), (1, "B2", "C2")] {
            let second = Port {
                receptacle: 2,
                domain_uuid: Some(own.to_owned()),
                peers: vec![PortPeer { domain_uuid: peer.to_owned(), ..PortPeer::default() }],
                ..Port::default()
            };
            macs[mac].thunderbolt.ports.push(second);
        }
        let mut third = mac("c", "C1", "A2", "10.99.0.9/30");
        let second = Port { receptacle: 3, domain_uuid: Some("C2".to_owned()), ..Port::default() };
        third.thunderbolt.ports.push(second);
        let macs = [macs[0].clone(), macs[1].clone(), third];
        let ends: Vec<_> = joined(&macs).iter().map(|cable| format!("{} {}", cable.a, cable.b)).collect();
        assert_eq!(ends, ["a (port 1) b (port 1)", "a (port 2) c (port 1)", "b (port 2) c (port 3)"]);
    }

    #[test]
    fn a_mac_without_an_agent_is_a_stranger() {
        let macs = [mac("a", "A1", "X9", "10.99.0.1/30"), mac("b", "B1", "A7", "10.99.0.2/30")];
        assert_eq!(joined(&macs), []);
        let found = strangers(&ports(&macs));
        let told: Vec<_> = found
            .iter()
            .map(|stranger| (stranger.at.to_string(), stranger.hardware_model.as_deref()))
            .collect();
        assert_eq!(
            told,
            [("a (port 1)".to_owned(), Some("Mac16,9")), ("b (port 1)".to_owned(), Some("Mac16,9"))]
        );
        assert_eq!(strangers(&ports(&pair())), []);
    }

    #[test]
    fn every_flaw_says_what_to_do() {
        let node = || NodeId::from("a");
        let (interface, device) = ("en3".to_owned(), "rdma_en3".to_owned());
        let flaws = [
            Flaw::BehindDevice,
            Flaw::OlderThunderbolt(node()),
            Flaw::SlowCable { gigabits_per_s: 40 },
            Flaw::NoInterface(node()),
            Flaw::Bridged {
                node: node(),
                interface: interface.clone(),
                bridge: String::new(),
                carries: false,
            },
            Flaw::InterfaceDown { node: node(), interface: interface.clone() },
            Flaw::NoAddress { node: node(), interface },
            Flaw::Subnets,
            Flaw::RdmaOff(node()),
            Flaw::NoDevice { node: node(), device: device.clone() },
            Flaw::DeviceDown { node: node(), device },
            Flaw::Unknown(node()),
        ];
        for flaw in flaws {
            assert!(flaw.remedy().len() > 20 && !flaw.remedy().contains("  "), "{flaw:?}: {}", flaw.remedy());
        }
    }

    fn maybe() -> impl Strategy<Value = Option<bool>> {
        prop_oneof![Just(None), Just(Some(false)), Just(Some(true))]
    }

    proptest! {
        /// RDMA is promised only where all of it is known, and what is not promised has a reason.
        #[test]
        fn a_cable_is_ready_only_where_everything_is_known(
            enabled in maybe(), listed in maybe(), active in maybe(), bridged in maybe(), seen in maybe(),
            usable: bool, addressed: bool, behind: bool,
        ) {
            let mut macs = pair();
            macs[0].thunderbolt.rdma_enabled = enabled;
            macs[0].interfaces[0].usable = usable;
            if !addressed { macs[0].interfaces[0].addresses.clear(); }
            let own = port(&mut macs[0]);
            own.rdma_listed = listed;
            own.rdma_active = active;
            own.bridged = bridged;
            own.peers[0].behind_device = behind;
            port(&mut macs[1]).peers[0].rdma = seen;
            let found = joined(&macs);
            let is_ready = enabled != Some(false) && !(enabled.is_none() && seen == Some(false))
                && listed == Some(true) && active == Some(true) && bridged == Some(false)
                && usable && addressed && !behind;
            prop_assert_eq!(found[0].class == CableClass::Rdma, is_ready, "{:?}", found);
            prop_assert_eq!(found[0].flaws.is_empty(), is_ready);
            prop_assert_eq!(found[0].class == CableClass::Down, !(usable && addressed));
        }
    }
}
