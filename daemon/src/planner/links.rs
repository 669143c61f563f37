//! Which nodes can talk, from what they say about their interfaces and Thunderbolt ports.
//!
//! Promises: a cable between two nodes may always be used, for what it is good for (`cables.rs`); apart from that no address is used
//! that no allowed network contains, and two nodes are joined where both have an address in one subnet on interfaces that are up;
//! two nodes have one link of each kind at most, and of several the same one is chosen every time.

use core::net::IpAddr;
use std::collections::{BTreeMap, BTreeSet};

use super::cables::{NodePorts, cable_links};
use crate::model::{Link, LinkEnd, LinkKind, NodeId, Thunderbolt};

/// A subnet, as `10.0.0.0/24`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    address: IpAddr,
    prefix_bits: u8,
}

impl Network {
    /// Parses `address/prefix`.
    ///
    /// # Errors
    /// A sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is no network: networks look like 10.0.0.0/24");
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.trim().parse().map_err(|_| wrong())?;
        let prefix_bits: u8 = prefix.trim().parse().map_err(|_| wrong())?;
        if u32::from(prefix_bits) > bits_of(address) {
            return Err(wrong());
        }
        Ok(Self { address, prefix_bits })
    }

    /// The address that was given with it.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Whether both are the same subnet.
    #[must_use]
    pub fn is_same_subnet(&self, other: &Self) -> bool {
        self.prefix_bits == other.prefix_bits && self.contains(other.address)
    }

    /// Whether the address lies in it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        masked(self.address, self.prefix_bits) == masked(address, self.prefix_bits)
    }
}

fn bits_of(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The subnet's bits; addresses of the two families never agree.
fn masked(address: IpAddr, prefix_bits: u8) -> (bool, u128) {
    let value = match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    };
    let below = bits_of(address).saturating_sub(u32::from(prefix_bits));
    (address.is_ipv4(), value.checked_shr(below).unwrap_or(0))
}

/// An interface of a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Administratively up, and not known to be without carrier.
    pub usable: bool,
    /// The loopback.
    pub loopback: bool,
    /// `address/prefix`.
    pub addresses: Vec<String>,
}

/// What a node says about its interfaces.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeInterfaces {
    /// Which node.
    pub node: NodeId,
    /// Of its machine: agents that share it are on one machine.
    pub boot_id: String,
    /// All of them.
    pub interfaces: Vec<Interface>,
    /// Those of them that are Thunderbolt ports.
    pub thunderbolt: Thunderbolt,
}

impl NodeInterfaces {
    /// What is asked for cables.
    #[must_use]
    pub fn ports(&self) -> NodePorts<'_> {
        NodePorts { node: &self.node, thunderbolt: &self.thunderbolt, interfaces: &self.interfaces }
    }
}

/// Of each pair of nodes the best link of each kind: by cables, for RDMA too where that is wanted, and by the networks that are
/// allowed. Cost: pairs × addresses².
#[must_use]
pub fn links(nodes: &[NodeInterfaces], allowed: &[Network], rdma: bool) -> Vec<Link> {
    let ports: Vec<NodePorts<'_>> = nodes.iter().map(NodeInterfaces::ports).collect();
    let mut found: Vec<Link> = Vec::new();
    for link in cable_links(&ports).into_iter().filter(|link| rdma || link.kind != LinkKind::Rdma) {
        // They come in order of receptacles.
        if found.iter().all(|other| other.name() != link.name()) {
            found.push(link);
        }
    }
    found.extend(network_links(nodes, allowed, &found));
    found.sort_by_cached_key(Link::name);
    found
}

/// Of each pair of nodes the best link over an allowed network that is none of these cables.
fn network_links(nodes: &[NodeInterfaces], allowed: &[Network], cables: &[Link]) -> Vec<Link> {
    let mut by_cable: BTreeMap<(&NodeId, &NodeId), BTreeSet<(IpAddr, IpAddr)>> = BTreeMap::new();
    for Link { a, b, .. } in cables {
        by_cable.entry((&a.node, &b.node)).or_default().insert((a.address, b.address));
        by_cable.entry((&b.node, &a.node)).or_default().insert((b.address, a.address));
    }
    let usable: Vec<(&NodeInterfaces, Vec<Place>)> =
        nodes.iter().map(|node| (node, places(node, allowed))).collect();
    let mut found = Vec::new();
    for (index, (one, one_places)) in usable.iter().enumerate() {
        for (other, other_places) in &usable[index + 1..] {
            let same_machine = !one.boot_id.is_empty() && one.boot_id == other.boot_id;
            let by_cable = by_cable.get(&(&one.node, &other.node));
            let best = one_places
                .iter()
                .flat_map(|a| other_places.iter().map(move |b| (a, b)))
                .filter(|(a, b)| {
                    a.loopback == b.loopback
                        && a.subnet == b.subnet
                        && if a.loopback { same_machine } else { same_machine || a.address != b.address }
                        && by_cable.is_none_or(|cables| !cables.contains(&(a.address, b.address)))
                })
                .min_by_key(|(a, b)| (a.loopback, a.interface, a.address, b.interface, b.address));
            let Some((a, b)) = best else { continue };
            let kind = if a.loopback { LinkKind::Loopback } else { LinkKind::Network };
            let (a, b) = (end(&one.node, a), end(&other.node, b));
            let (a, b) = if a.node <= b.node { (a, b) } else { (b, a) };
            found.push(Link { a, b, kind });
        }
    }
    found
}

/// Networks in which the ranks of a gang over RDMA may arrange how they talk: private, and over no Thunderbolt port, where that must
/// not be done (FIELD-NOTES 1). MLX takes addresses of IPv4 only.
#[must_use]
pub fn meeting_networks(interfaces: &[Interface], thunderbolt: &Thunderbolt) -> Vec<Network> {
    let is_port = |name: &str| {
        let of_port = |port: &crate::model::Port| {
            [port.interface.as_deref(), port.bridge.as_deref()].contains(&Some(name))
        };
        thunderbolt.ports.iter().any(of_port)
    };
    let others = interfaces.iter().filter(|interface| !is_port(&interface.name));
    let is_met_at =
        |network: &Network| matches!(network.address, IpAddr::V4(address) if address.is_private());
    networks(others).filter(is_met_at).collect()
}

/// An address of one node at which all of these others find it, of the networks that each is on; every address is one node's alone.
#[must_use]
pub fn meeting_place(lead: &[Network], others: &[&[Network]]) -> Option<IpAddr> {
    let is_met_at = |network: &&Network| {
        let is_in_it = |own: &&[Network]| {
            own.iter().any(|of| of.is_same_subnet(network) && of.address() != network.address())
        };
        others.iter().all(is_in_it)
    };
    lead.iter().find(is_met_at).map(Network::address)
}

/// Where a machine with the interfaces `of` can be looked at by one with the interfaces `from`: its private addresses in
/// subnets that both are on. An address that both have is the looker's own, and tells nothing of anybody else; so agents on one
/// machine, which have the same addresses, are in no one's sight.
#[must_use]
pub fn in_sight(of: &[Interface], from: &[Interface]) -> Vec<IpAddr> {
    let from: Vec<Network> = networks(from).collect();
    let is_in_sight = |network: &Network| {
        is_private(network.address)
            && from.iter().any(|own| own.prefix_bits == network.prefix_bits && own.contains(network.address))
            && from.iter().all(|own| own.address != network.address)
    };
    networks(of).filter(is_in_sight).map(|network| network.address).collect()
}

/// The addresses that a machine has towards others, with their subnets.
fn networks<'a>(interfaces: impl IntoIterator<Item = &'a Interface>) -> impl Iterator<Item = Network> {
    let towards_others = interfaces.into_iter().filter(|interface| interface.usable && !interface.loopback);
    towards_others.flat_map(|interface| &interface.addresses).filter_map(|text| Network::parse(text).ok())
}

/// Agents look nowhere else.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_private() || address.is_link_local(),
        IpAddr::V6(address) => address.is_unique_local(),
    }
}

struct Place<'a> {
    interface: &'a str,
    address: IpAddr,
    subnet: (bool, u128),
    loopback: bool,
}

fn end(node: &NodeId, place: &Place<'_>) -> LinkEnd {
    LinkEnd {
        node: node.clone(),
        interface: place.interface.to_owned(),
        address: place.address,
        rdma_device: None,
    }
}

fn places<'a>(node: &'a NodeInterfaces, allowed: &[Network]) -> Vec<Place<'a>> {
    let mut places = Vec::new();
    for interface in node.interfaces.iter().filter(|interface| interface.usable) {
        for text in &interface.addresses {
            let Ok(network) = Network::parse(text) else { continue };
            if allowed.iter().any(|allowed| allowed.contains(network.address)) {
                places.push(Place {
                    interface: &interface.name,
                    address: network.address,
                    subnet: masked(network.address, network.prefix_bits),
                    loopback: interface.loopback,
                });
            }
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, boot: &str, interfaces: &[(&str, bool, &str)]) -> NodeInterfaces {
        NodeInterfaces {
            node: name.into(),
            boot_id: boot.to_owned(),
            interfaces: interfaces
                .iter()
                .map(|(name, usable, address)| Interface {
                    name: (*name).to_owned(),
                    usable: *usable,
                    loopback: *name == "lo",
                    addresses: vec![(*address).to_owned()],
                })
                .collect(),
            thunderbolt: Thunderbolt::default(),
        }
    }

    fn found(nodes: &[NodeInterfaces], allowed: &[&str]) -> Vec<String> {
        let allowed: Vec<Network> = allowed.iter().map(|text| Network::parse(text).unwrap()).collect();
        links(nodes, &allowed, true)
            .into_iter()
            .map(|link| format!("{}:{}-{}:{}", link.a.node, link.a.interface, link.b.node, link.b.interface))
            .collect()
    }

    #[test]
    fn only_listed_networks_join_and_only_over_interfaces_that_are_up() {
        let nodes = [
            node("a", "1", &[("en5", true, "10.0.0.1/30"), ("en0", true, "192.168.1.5/24")]),
            node("b", "2", &[("en3", true, "10.0.0.2/30"), ("en0", true, "192.168.1.6/24")]),
            node("c", "3", &[("en3", false, "10.0.1.2/30"), ("en0", true, "192.168.1.7/24")]),
        ];
        assert_eq!(found(&nodes, &["10.0.0.0/16"]), ["a:en5-b:en3"]);
        assert_eq!(found(&nodes, &["192.168.1.0/24"]), ["a:en0-b:en0", "a:en0-c:en0", "b:en0-c:en0"]);
        assert_eq!(found(&nodes, &[]), Vec::<String>::new(), "nothing listed, nothing used");
    }

    #[test]
    fn loopback_joins_agents_of_one_machine_only() {
        let agents =
            [node("a", "1", &[("lo", true, "127.0.0.1/8")]), node("b", "1", &[("lo", true, "127.0.0.1/8")])];
        assert_eq!(found(&agents, &["127.0.0.0/8"]), ["a:lo-b:lo"]);
        let machines =
            [node("a", "1", &[("lo", true, "127.0.0.1/8")]), node("b", "2", &[("lo", true, "127.0.0.1/8")])];
        assert_eq!(found(&machines, &["127.0.0.0/8"]), Vec::<String>::new());
    }

    #[test]
    fn a_machine_is_in_sight_where_both_are_on_one_private_network() {
        let sights = [
            (&["10.0.0.1/30"][..], &["10.0.0.2/30"][..], &["10.0.0.1"][..]),
            (&["10.0.0.1/30", "192.168.1.5/24"], &["192.168.1.6/24"], &["192.168.1.5"]),
            (
                &["169.254.7.1/16", "fd00::1/64"],
                &["169.254.9.9/16", "fd00::2/64"],
                &["169.254.7.1", "fd00::1"],
            ),
            // Another subnet, a public one, and the looker's own address.
            (&["10.0.0.1/30"], &["10.0.0.5/30"], &[]),
            (&["10.0.0.1/8"], &["10.0.0.5/30"], &[]),
            (&["203.0.113.1/24", "2001:db8::1/64"], &["203.0.113.2/24", "2001:db8::2/64"], &[]),
            (&["10.0.0.1/24"], &["10.0.0.1/24"], &[]),
            (&["10.0.0.1/24"], &["10.0.0.1/24", "10.0.0.2/24"], &[]),
        ];
        let on = |name: &str, usable, addresses: &[&str]| Interface {
            name: name.to_owned(),
            usable,
            loopback: name == "lo",
            addresses: addresses.iter().map(ToString::to_string).collect(),
        };
        for (of, from, expected) in sights {
            let expected: Vec<IpAddr> = expected.iter().map(|text| text.parse().unwrap()).collect();
            assert_eq!(
                in_sight(&[on("en0", true, of)], &[on("en3", true, from)]),
                expected,
                "{of:?} {from:?}"
            );
        }
        let (one, other) = (&["10.0.0.1/24"], &["10.0.0.2/24"]);
        assert!(in_sight(&[on("en0", false, one)], &[on("en0", true, other)]).is_empty(), "it is down");
        assert!(in_sight(&[on("en0", true, one)], &[on("en0", false, other)]).is_empty(), "so is this");
        assert!(in_sight(&[on("lo", true, one)], &[on("lo", true, other)]).is_empty(), "leads nowhere");
    }

    #[test]
    fn networks_are_read_and_refused() {
        let network = Network::parse("10.1.0.0/16").unwrap();
        assert!(network.contains("10.1.200.3".parse().unwrap()));
        assert!(!network.contains("10.2.0.3".parse().unwrap()));
        assert!(!network.contains("::ffff:10.1.0.1".parse().unwrap()));
        assert!(Network::parse("0.0.0.0/0").unwrap().contains("8.8.8.8".parse().unwrap()));
        for wrong in ["10.0.0.0", "10.0.0.0/33", "x/8", "10.0.0.0/x", ""] {
            assert_eq!(
                Network::parse(wrong).unwrap_err(),
                format!("\"{wrong}\" is no network: networks look like 10.0.0.0/24")
            );
        }
    }
}
