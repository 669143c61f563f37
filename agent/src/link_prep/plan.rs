//! What has to be changed so that the two ends of a cable reach one another, and how each change is taken back. Pure.
//!
//! The promises: nothing is touched but ports that were asked for; a change is planned only where it is missing, so that a plan
//! that was carried out is followed by an empty one; what somebody else has made is never undone to get there, but reported; and
//! taking back what was done gives what was there before.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use serde::{Deserialize, Serialize};

/// What a port is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The port's interface.
    pub interface: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// The address at the other end, in the same network.
    pub peer: Ipv4Addr,
    /// Length of that network's prefix.
    pub prefix_bits: u32,
}

/// The network of a machine, as far as it matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// By name.
    pub interfaces: BTreeMap<String, Interface>,
    /// Which bridge has which interfaces.
    pub bridges: BTreeMap<String, BTreeSet<String>>,
    /// The bridge that macOS makes of all Thunderbolt ports.
    pub thunderbolt_bridge: Option<String>,
    /// Over which interface an address is reached; of those that were asked about.
    pub routes: BTreeMap<Ipv4Addr, String>,
}

/// One interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Administratively up.
    pub up: bool,
    /// Its IPv4 addresses, with the length of the prefix.
    pub addresses: BTreeSet<(Ipv4Addr, u32)>,
}

/// One change, and by another step the way back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "step")]
pub enum Step {
    /// Takes an interface out of a bridge.
    LeaveBridge {
        /// Which bridge.
        bridge: String,
        /// Which interface.
        interface: String,
    },
    /// Puts an interface into a bridge.
    JoinBridge {
        /// Which bridge.
        bridge: String,
        /// Which interface.
        interface: String,
    },
    /// Brings an interface up.
    Up {
        /// Which interface.
        interface: String,
    },
    /// Brings an interface down.
    Down {
        /// Which interface.
        interface: String,
    },
    /// Gives an interface an address beside those it has.
    AddAddress {
        /// Which interface.
        interface: String,
        /// The address.
        address: Ipv4Addr,
        /// Length of the prefix.
        prefix_bits: u32,
    },
    /// Takes that address away.
    RemoveAddress {
        /// Which interface.
        interface: String,
        /// The address.
        address: Ipv4Addr,
        /// Length of the prefix.
        prefix_bits: u32,
    },
    /// Sends what is for one address over an interface.
    AddRoute {
        /// The address.
        peer: Ipv4Addr,
        /// Which interface.
        interface: String,
    },
    /// Takes that route away.
    RemoveRoute {
        /// The address.
        peer: Ipv4Addr,
        /// Which interface.
        interface: String,
    },
}

impl Step {
    /// The tool and its arguments.
    #[must_use]
    pub fn command(&self) -> (&'static str, Vec<String>) {
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        match self {
            Self::LeaveBridge { bridge, interface } => ("ifconfig", words(&[bridge, "deletem", interface])),
            Self::JoinBridge { bridge, interface } => ("ifconfig", words(&[bridge, "addm", interface])),
            Self::Up { interface } => ("ifconfig", words(&[interface, "up"])),
            Self::Down { interface } => ("ifconfig", words(&[interface, "down"])),
            Self::AddAddress { interface, address, prefix_bits } => {
                ("ifconfig", words(&[interface, "inet", &format!("{address}/{prefix_bits}"), "alias"]))
            }
            Self::RemoveAddress { interface, address, .. } => {
                ("ifconfig", words(&[interface, "inet", &address.to_string(), "-alias"]))
            }
            Self::AddRoute { peer, interface } => {
                ("route", words(&["-n", "add", "-host", &peer.to_string(), "-interface", interface]))
            }
            Self::RemoveRoute { peer, interface } => {
                ("route", words(&["-n", "delete", "-host", &peer.to_string(), "-interface", interface]))
            }
        }
    }

    /// As a person would type it.
    #[must_use]
    pub fn command_line(&self) -> String {
        let (tool, arguments) = self.command();
        format!("sudo {tool} {}", arguments.join(" "))
    }

    /// What takes it back.
    #[must_use]
    pub fn undo(&self) -> Self {
        match self.clone() {
            Self::LeaveBridge { bridge, interface } => Self::JoinBridge { bridge, interface },
            Self::JoinBridge { bridge, interface } => Self::LeaveBridge { bridge, interface },
            Self::Up { interface } => Self::Down { interface },
            Self::Down { interface } => Self::Up { interface },
            Self::AddAddress { interface, address, prefix_bits } => {
                Self::RemoveAddress { interface, address, prefix_bits }
            }
            Self::RemoveAddress { interface, address, prefix_bits } => {
                Self::AddAddress { interface, address, prefix_bits }
            }
            Self::AddRoute { peer, interface } => Self::RemoveRoute { peer, interface },
            Self::RemoveRoute { peer, interface } => Self::AddRoute { peer, interface },
        }
    }

    /// Whose change it is.
    #[must_use]
    pub fn interface(&self) -> &str {
        match self {
            Self::LeaveBridge { interface, .. }
            | Self::JoinBridge { interface, .. }
            | Self::Up { interface }
            | Self::Down { interface }
            | Self::AddAddress { interface, .. }
            | Self::RemoveAddress { interface, .. }
            | Self::AddRoute { interface, .. }
            | Self::RemoveRoute { interface, .. } => interface,
        }
    }

    /// Whether what it brings about is so already.
    #[must_use]
    pub fn is_done(&self, seen: &Network) -> bool {
        let has = |bridge: &String, interface: &String| {
            seen.bridges.get(bridge).is_some_and(|members| members.contains(interface))
        };
        let of = |interface: &String| seen.interfaces.get(interface);
        match self {
            Self::LeaveBridge { bridge, interface } => !has(bridge, interface),
            Self::JoinBridge { bridge, interface } => has(bridge, interface),
            Self::Up { interface } => of(interface).is_some_and(|interface| interface.up),
            Self::Down { interface } => of(interface).is_none_or(|interface| !interface.up),
            Self::AddAddress { interface, address, prefix_bits } => {
                of(interface).is_some_and(|interface| interface.addresses.contains(&(*address, *prefix_bits)))
            }
            Self::RemoveAddress { interface, address, prefix_bits } => {
                of(interface).is_none_or(|interface| !interface.addresses.contains(&(*address, *prefix_bits)))
            }
            Self::AddRoute { peer, interface } => seen.routes.get(peer) == Some(interface),
            Self::RemoveRoute { peer, interface } => seen.routes.get(peer) != Some(interface),
        }
    }
}

/// What is to be done, and what will not be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order.
    pub steps: Vec<Step>,
    /// Ports that are left as they are, and why: a sentence each.
    pub refused: Vec<String>,
}

/// What has to be changed for these ports. Once that is done, and seen anew, the next plan is empty, or only adds routes.
#[must_use]
pub fn plan(wanted: &[Wanted], seen: &Network) -> Plan {
    let mut plan = Plan::default();
    for port in wanted {
        match steps(port, seen) {
            Ok(steps) => plan.steps.extend(steps),
            Err(why) => plan.refused.push(format!("{} is left as it is: {why}", port.interface)),
        }
    }
    plan
}

fn steps(port: &Wanted, seen: &Network) -> Result<Vec<Step>, String> {
    let name = &port.interface;
    let interface = seen.interfaces.get(name).ok_or("this system has no such interface")?;
    let taken = seen.interfaces.iter().find(|(other, interface)| {
        *other != name && interface.addresses.iter().any(|(address, _)| *address == port.address)
    });
    if let Some((other, _)) = taken {
        return Err(format!("{other} has its address {} already", port.address));
    }
    let mut steps = Vec::new();
    for (bridge, members) in &seen.bridges {
        if !members.contains(name) {
            continue;
        }
        if seen.thunderbolt_bridge.as_ref() != Some(bridge) {
            return Err(format!("{bridge} has it, which is no bridge of macOS: somebody made that"));
        }
        steps.push(Step::LeaveBridge { bridge: bridge.clone(), interface: name.clone() });
    }
    if !interface.up {
        steps.push(Step::Up { interface: name.clone() });
    }
    let add =
        Step::AddAddress { interface: name.clone(), address: port.address, prefix_bits: port.prefix_bits };
    if !add.is_done(seen) {
        steps.push(add);
        // The kernel adds the way to the network with the address; whether it is the one that counts, is seen then.
        return Ok(steps);
    }
    match seen.routes.get(&port.peer) {
        Some(over) if over == name => {}
        Some(over) => return Err(format!("{} is reached over {over}", port.peer)),
        None => steps.push(Step::AddRoute { peer: port.peer, interface: name.clone() }),
    }
    Ok(steps)
}

/// What takes back what was done, newest first, as far as it is still so.
#[must_use]
pub fn take_back(done: &[Step], seen: &Network) -> Vec<Step> {
    done.iter()
        .rev()
        .filter(|step| step.is_done(seen))
        .map(Step::undo)
        .filter(|undo| !undo.is_done(seen))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROUNDS: usize = 3;

    fn wanted(interface: &str, network: u8) -> Wanted {
        let host = |number| Ipv4Addr::new(10, 207, network, number);
        Wanted { interface: interface.to_owned(), address: host(1), peer: host(2), prefix_bits: 30 }
    }

    /// A kernel: ways to whole networks come and go with addresses, and a way to one host counts before them.
    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Kernel {
        interfaces: BTreeMap<String, Interface>,
        bridges: BTreeMap<String, BTreeSet<String>>,
        thunderbolt_bridge: Option<String>,
        host_routes: BTreeMap<Ipv4Addr, String>,
    }

    impl Kernel {
        fn seen(&self) -> Network {
            let hosts = (0..=u8::MAX).map(|last| Ipv4Addr::new(10, 207, last, 2));
            Network {
                interfaces: self.interfaces.clone(),
                bridges: self.bridges.clone(),
                thunderbolt_bridge: self.thunderbolt_bridge.clone(),
                routes: hosts.filter_map(|host| Some((host, self.way_to(host)?))).collect(),
            }
        }

        fn way_to(&self, host: Ipv4Addr) -> Option<String> {
            let of_network = || {
                let ways = self.interfaces.iter().flat_map(|(name, interface)| {
                    interface.addresses.iter().map(move |(address, bits)| (*bits, *address, name))
                });
                let mask = |address: Ipv4Addr, bits: u32| u32::from(address) >> (32 - bits);
                let leading = ways.filter(|(bits, address, _)| mask(*address, *bits) == mask(host, *bits));
                leading.max_by_key(|(bits, _, name)| (*bits, std::cmp::Reverse(*name))).map(|(.., name)| name)
            };
            self.host_routes.get(&host).or_else(of_network).cloned()
        }

        fn carry_out(&mut self, step: &Step) {
            assert!(!step.is_done(&self.seen()), "{step:?} changes nothing");
            match step.clone() {
                Step::LeaveBridge { bridge, interface } => {
                    self.bridges.get_mut(&bridge).unwrap().remove(&interface);
                }
                Step::JoinBridge { bridge, interface } => {
                    self.bridges.get_mut(&bridge).unwrap().insert(interface);
                }
                Step::Up { interface } => self.interfaces.get_mut(&interface).unwrap().up = true,
                Step::Down { interface } => self.interfaces.get_mut(&interface).unwrap().up = false,
                Step::AddAddress { interface, address, prefix_bits } => {
                    self.interfaces.get_mut(&interface).unwrap().addresses.insert((address, prefix_bits));
                }
                Step::RemoveAddress { interface, address, prefix_bits } => {
                    self.interfaces.get_mut(&interface).unwrap().addresses.remove(&(address, prefix_bits));
                }
                Step::AddRoute { peer, interface } => {
                    assert_eq!(self.host_routes.insert(peer, interface), None, "a route is never replaced");
                }
                Step::RemoveRoute { peer, .. } => {
                    self.host_routes.remove(&peer);
                }
            }
        }
    }

    /// Plans and carries out until nothing is left to do. Returns what was done.
    fn prepare(wanted: &[Wanted], kernel: &mut Kernel) -> Vec<Step> {
        let mut done = Vec::new();
        for _ in 0..ROUNDS {
            let plan = plan(wanted, &kernel.seen());
            for step in &plan.steps {
                kernel.carry_out(step);
            }
            if plan.steps.is_empty() {
                return done;
            }
            done.extend(plan.steps);
        }
        panic!("still something to do after {ROUNDS} rounds: {done:?} {kernel:?}");
    }

    fn after_a_reboot() -> Kernel {
        let interface = |up| Interface { up, addresses: BTreeSet::new() };
        Kernel {
            interfaces: BTreeMap::from([
                ("en0".to_owned(), interface(true)),
                ("en3".to_owned(), interface(true)),
                ("en6".to_owned(), interface(false)),
            ]),
            bridges: BTreeMap::from([(
                "bridge0".to_owned(),
                BTreeSet::from(["en3".to_owned(), "en6".to_owned()]),
            )]),
            thunderbolt_bridge: Some("bridge0".to_owned()),
            host_routes: BTreeMap::new(),
        }
    }

    fn lines(steps: &[Step]) -> Vec<String> {
        steps.iter().map(Step::command_line).collect()
    }

    #[test]
    fn a_port_that_the_bridge_took_is_prepared_by_commands_a_person_could_type() {
        let mut kernel = after_a_reboot();
        let done = prepare(&[wanted("en6", 4)], &mut kernel);
        assert_eq!(
            lines(&done),
            [
                "sudo ifconfig bridge0 deletem en6",
                "sudo ifconfig en6 up",
                "sudo ifconfig en6 inet 10.207.4.1/30 alias"
            ]
        );
        assert_eq!(kernel.bridges["bridge0"], BTreeSet::from(["en3".to_owned()]), "the other port stays");
        let back = take_back(&done, &kernel.seen());
        assert_eq!(
            lines(&back),
            [
                "sudo ifconfig en6 inet 10.207.4.1 -alias",
                "sudo ifconfig en6 down",
                "sudo ifconfig bridge0 addm en6"
            ]
        );
        back.iter().for_each(|step| kernel.carry_out(step));
        assert_eq!(kernel, after_a_reboot());
        assert_eq!(take_back(&done, &kernel.seen()), [], "and once is enough");
    }

    #[test]
    fn what_somebody_else_made_is_told_and_left() {
        let refused = |change: fn(&mut Kernel)| {
            let mut kernel = after_a_reboot();
            change(&mut kernel);
            let plan = plan(&[wanted("en3", 4)], &kernel.seen());
            assert_eq!(plan.steps, []);
            plan.refused.join("; ")
        };
        let foreign = refused(|kernel| {
            kernel.bridges.insert("bridge100".to_owned(), BTreeSet::from(["en3".to_owned()]));
        });
        assert_eq!(
            foreign,
            "en3 is left as it is: bridge100 has it, which is no bridge of macOS: somebody made that"
        );
        let taken = refused(|kernel| {
            kernel.interfaces.get_mut("en0").unwrap().addresses.insert((Ipv4Addr::new(10, 207, 4, 1), 24));
        });
        assert_eq!(taken, "en3 is left as it is: en0 has its address 10.207.4.1 already");
        let missing = refused(|kernel| {
            kernel.interfaces.remove("en3");
        });
        assert_eq!(missing, "en3 is left as it is: this system has no such interface");
        let elsewhere = refused(|kernel| {
            kernel.bridges.clear();
            let address = (Ipv4Addr::new(10, 207, 4, 1), 30);
            kernel.interfaces.get_mut("en3").unwrap().addresses.insert(address);
            kernel.host_routes.insert(Ipv4Addr::new(10, 207, 4, 2), "utun3".to_owned());
        });
        assert_eq!(elsewhere, "en3 is left as it is: 10.207.4.2 is reached over utun3");
    }

    /// A kernel that gave the address no way to its network.
    #[test]
    fn a_peer_that_no_route_leads_to_gets_one() {
        let mut kernel = after_a_reboot();
        let _ = prepare(&[wanted("en6", 4)], &mut kernel);
        let mut seen = kernel.seen();
        seen.routes.clear();
        let steps = plan(&[wanted("en6", 4)], &seen).steps;
        assert_eq!(lines(&steps), ["sudo route -n add -host 10.207.4.2 -interface en6"]);
        seen.routes.insert(Ipv4Addr::new(10, 207, 4, 2), "en6".to_owned());
        assert_eq!(plan(&[wanted("en6", 4)], &seen), Plan::default());
        assert_eq!(
            lines(&take_back(&steps, &seen)),
            ["sudo route -n delete -host 10.207.4.2 -interface en6"]
        );
    }

    #[test]
    fn one_port_that_cannot_be_prepared_keeps_no_other_from_it() {
        let mut kernel = after_a_reboot();
        kernel.bridges.insert("bridge100".to_owned(), BTreeSet::from(["en3".to_owned()]));
        let plan = plan(&[wanted("en3", 4), wanted("en6", 8)], &kernel.seen());
        assert_eq!((plan.steps.len(), plan.refused.len()), (3, 1));
    }

    const NAMES: [&str; 5] = ["en0", "en3", "en6", "en7", "utun0"];
    const BRIDGES: [&str; 2] = ["bridge0", "bridge100"];

    fn any_kernel() -> impl Strategy<Value = Kernel> {
        let address = (0..4_u8, 1..3_u8, prop_oneof![Just(30_u32), Just(24)])
            .prop_map(|(network, host, bits)| (Ipv4Addr::new(10, 207, network * 4, host), bits));
        let interface = (any::<bool>(), proptest::collection::btree_set(address, 0..2))
            .prop_map(|(up, addresses)| Interface { up, addresses });
        let interfaces = proptest::collection::btree_map(
            proptest::sample::select(NAMES.to_vec()).prop_map(ToOwned::to_owned),
            interface,
            0..5,
        );
        let members = || {
            let name = proptest::sample::select(NAMES.to_vec()).prop_map(ToOwned::to_owned);
            proptest::collection::btree_set(name, 0..4)
        };
        let bridges = (members(), members())
            .prop_map(|(a, b)| BTreeMap::from([(BRIDGES[0].to_owned(), a), (BRIDGES[1].to_owned(), b)]));
        let host_routes = proptest::collection::btree_map(
            (0..4_u8, 1..3_u8).prop_map(|(network, host)| Ipv4Addr::new(10, 207, network * 4, host)),
            proptest::sample::select(NAMES.to_vec()).prop_map(ToOwned::to_owned),
            0..3,
        );
        (interfaces, bridges, host_routes, any::<bool>()).prop_map(
            |(interfaces, bridges, host_routes, has_bridge)| Kernel {
                interfaces,
                bridges,
                thunderbolt_bridge: has_bridge.then(|| BRIDGES[0].to_owned()),
                host_routes,
            },
        )
    }

    fn any_wanted() -> impl Strategy<Value = Vec<Wanted>> {
        proptest::sample::subsequence(vec![("en3", 0), ("en6", 4), ("en7", 8)], 0..=3)
            .prop_map(|ports| ports.into_iter().map(|(name, network)| wanted(name, network)).collect())
    }

    /// The machine without anything that these ports may be given.
    fn foreign(kernel: &Kernel, wanted: &[Wanted]) -> Kernel {
        let mut rest = kernel.clone();
        for port in wanted {
            if let Some(interface) = rest.interfaces.get_mut(&port.interface) {
                interface.up = true;
                interface.addresses.remove(&(port.address, port.prefix_bits));
            }
            for members in rest.bridges.values_mut() {
                members.remove(&port.interface);
            }
            rest.host_routes.remove(&port.peer);
        }
        rest
    }

    proptest! {
        /// From any state: it comes to an end, every port is as wanted or refused, nothing else is touched, and the way back
        /// leads to what was there.
        #[test]
        fn preparing_converges_touches_nothing_foreign_and_can_be_taken_back(
            before in any_kernel(), wanted in any_wanted()
        ) {
            let mut kernel = before.clone();
            let done = prepare(&wanted, &mut kernel);
            prop_assert_eq!(foreign(&kernel, &wanted), foreign(&before, &wanted));
            let seen = kernel.seen();
            let last = plan(&wanted, &seen);
            prop_assert_eq!(&last.steps, &[]);
            for port in &wanted {
                let is_refused = last.refused.iter().any(|why| why.starts_with(&format!("{} ", port.interface)));
                let is_ready = seen.interfaces.get(&port.interface).is_some_and(|interface| {
                    interface.up && interface.addresses.contains(&(port.address, port.prefix_bits))
                }) && seen.bridges.values().all(|members| !members.contains(&port.interface))
                    && seen.routes.get(&port.peer) == Some(&port.interface);
                prop_assert!(is_ready || is_refused, "{:?} {:?} {:?}", port, last, kernel);
            }
            for step in take_back(&done, &seen) {
                kernel.carry_out(&step);
            }
            prop_assert_eq!(kernel, before);
        }

        /// Carried out half, and then taken back: what was there is there again.
        #[test]
        fn what_was_done_by_half_can_be_taken_back(
            before in any_kernel(), wanted in any_wanted(), stop_after in 0..12_usize
        ) {
            let mut kernel = before.clone();
            // What is to be done is written down before it is done, so that the last may not have been.
            let planned = plan(&wanted, &kernel.seen()).steps;
            for step in planned.iter().take(stop_after) {
                kernel.carry_out(step);
            }
            let noted: Vec<Step> = planned.into_iter().take(stop_after + 1).collect();
            for step in take_back(&noted, &kernel.seen()) {
                kernel.carry_out(&step);
            }
            prop_assert_eq!(kernel, before);
        }
    }
}
