//! `ifconfig -a` (FIELD-NOTES 5): carrier, addresses, and who is a member of which bridge.
//!
//! The carrier is the line `status: active`; `RUNNING` among the flags says nothing about the cable.

use std::net::Ipv4Addr;

use super::ports::is_interface_name;

/// Interfaces taken from one answer; a Mac has some dozens.
const MOST_INTERFACES: usize = 256;

/// One interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// For example `en5`.
    pub name: String,
    /// Administratively up; `None` where the flags could not be read.
    pub up: Option<bool>,
    /// Whether something is at the other end; `None` where the interface does not say.
    pub carrier: Option<bool>,
    /// IPv4 addresses.
    pub ipv4: Vec<Ipv4>,
    /// Hardware address, where there is one.
    pub mac: Option<String>,
    /// Of a bridge: its members.
    pub members: Vec<String>,
}

/// An IPv4 address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ipv4 {
    /// The address.
    pub address: Ipv4Addr,
    /// Length of the network's prefix, in bits.
    pub prefix_bits: u32,
}

impl Ipv4 {
    /// Whether it was made up for want of another (RFC 3927): no address that anybody gave.
    #[must_use]
    pub fn is_link_local(self) -> bool {
        self.address.is_link_local()
    }
}

/// All interfaces, in the order of the tool.
#[must_use]
pub fn interfaces(text: &str) -> Vec<Interface> {
    let mut found: Vec<Interface> = Vec::new();
    for line in text.lines() {
        if !line.starts_with([' ', '\t']) {
            let Some((name, rest)) = line.split_once(':') else { continue };
            if is_interface_name(name) && rest.trim_start().starts_with("flags=") {
                if found.len() == MOST_INTERFACES {
                    break;
                }
                let interface = Interface { name: name.to_owned(), up: is_up(rest), ..Interface::default() };
                found.push(interface);
            }
            continue;
        }
        if let Some(interface) = found.last_mut() {
            take_line(interface, line.trim());
        }
    }
    found
}

fn take_line(interface: &mut Interface, line: &str) {
    let mut words = line.split_ascii_whitespace();
    match words.next() {
        Some("status:") => {
            interface.carrier = match words.next() {
                Some("active") => Some(true),
                Some("inactive") => Some(false),
                _ => None,
            };
        }
        Some("inet") => interface.ipv4.extend(ipv4(words)),
        Some("ether") => interface.mac = words.next().map(ToOwned::to_owned),
        Some("member:") => {
            interface
                .members
                .extend(words.next().filter(|name| is_interface_name(name)).map(ToOwned::to_owned));
        }
        _ => {}
    }
}

/// ` flags=8863<UP,BROADCAST,…> mtu 1500`
fn is_up(rest: &str) -> Option<bool> {
    let (_, flags) = rest.split_once('<')?;
    let (flags, _) = flags.split_once('>')?;
    Some(flags.split(',').any(|flag| flag == "UP"))
}

/// `10.0.0.1 netmask 0xfffffffc broadcast 10.0.0.3`, after `inet`.
fn ipv4<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<Ipv4> {
    let address = words.next()?.parse().ok()?;
    let mut mask = None;
    while let Some(word) = words.next() {
        if word == "netmask" {
            mask = words.next().and_then(|mask| u32::from_str_radix(mask.strip_prefix("0x")?, 16).ok());
        }
    }
    let mask = mask.filter(|mask| mask.leading_ones() + mask.trailing_zeros() == u32::BITS)?;
    Some(Ipv4 { address, prefix_bits: mask.leading_ones() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::probe::parse::mutated::mutated;

    const BRIDGED: &str = "lo0: flags=8049<UP,LOOPBACK,RUNNING,MULTICAST> mtu 16384\n\
        \tinet 127.0.0.1 netmask 0xff000000\n\tinet6 ::1 prefixlen 128\n\
        en1: flags=8963<UP,BROADCAST,SMART,RUNNING,PROMISC,SIMPLEX,MULTICAST> mtu 1500\n\
        \toptions=460<TSO4,TSO6,CHANNEL_IO>\n\tether 02:00:00:00:00:01\n\
        \tmedia: autoselect <full-duplex>\n\tstatus: inactive\n\
        bridge0: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500\n\
        \tether 02:00:00:00:00:02\n\tConfiguration:\n\
        \t\tid 0:0:0:0:0:0 priority 0 hellotime 0 fwddelay 0\n\
        \tmember: en1 flags=3<LEARNING,DISCOVER>\n\t        ifmaxaddr 0 port 10 priority 0 path cost 0\n\
        \tmember: en2 flags=3<LEARNING,DISCOVER>\n\tmedia: <unknown type>\n\tstatus: inactive\n";

    const READY: &str = "en2: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500\n\
        \tether 02:00:00:00:00:03\n\tinet6 fe80::1%en2 prefixlen 64 secured scopeid 0x12\n\
        \tinet 10.99.0.1 netmask 0xfffffffc broadcast 10.99.0.3\n\
        \tinet 169.254.7.9 netmask 0xffff0000 broadcast 169.254.255.255\n\tstatus: active\n\
        en3: flags=8822<BROADCAST,SMART,SIMPLEX,MULTICAST> mtu 1500\n\tether 02:00:00:00:00:04\n\
        utun0: flags=8051<UP,POINTOPOINT,RUNNING,MULTICAST> mtu 1380\n\
        \tinet 100.64.0.7 --> 100.64.0.7 netmask 0xffffffff\n";

    #[test]
    fn a_bridge_has_members_and_running_is_no_carrier() {
        let found = interfaces(BRIDGED);
        let names: Vec<_> = found.iter().map(|interface| interface.name.as_str()).collect();
        assert_eq!(names, ["lo0", "en1", "bridge0"]);
        assert_eq!((found[1].up, found[1].carrier), (Some(true), Some(false)));
        assert_eq!(found[2].members, ["en1", "en2"]);
        assert_eq!(found[1].mac.as_deref(), Some("02:00:00:00:00:01"));
    }

    #[test]
    fn addresses_have_prefixes_and_one_made_up_is_told_apart() {
        let found = interfaces(READY);
        let addresses: Vec<_> = found[0]
            .ipv4
            .iter()
            .map(|ip| (ip.address.to_string(), ip.prefix_bits, ip.is_link_local()))
            .collect();
        assert_eq!(addresses, [("10.99.0.1".to_owned(), 30, false), ("169.254.7.9".to_owned(), 16, true)]);
        assert_eq!(found[0].carrier, Some(true));
        assert_eq!(found[2].ipv4[0].prefix_bits, 32, "of a tunnel, whose mask comes after its peer");
    }

    #[test]
    fn what_an_interface_does_not_say_is_not_known() {
        let found = interfaces(READY);
        assert_eq!((found[1].up, found[1].carrier, found[1].ipv4.len()), (Some(false), None, 0));
        let odd =
            interfaces("en9: flags=zz mtu 1500\n\tstatus: pondering\n\tinet 10.0.0.1 netmask 0xff00ff00\n");
        assert_eq!(odd, [Interface { name: "en9".to_owned(), ..Interface::default() }]);
    }

    #[test]
    fn an_error_is_no_interface() {
        for text in
            ["", "ifconfig: interface en77 does not exist\n", "\tstatus: active\n", "-x: flags=1<UP>\n"]
        {
            assert_eq!(interfaces(text), [], "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_panics(text in prop_oneof![any::<String>(), mutated(BRIDGED), mutated(READY)]) {
            for interface in interfaces(&text) {
                prop_assert!(is_interface_name(&interface.name));
                prop_assert!(interface.members.iter().all(|name| is_interface_name(name)));
                prop_assert!(interface.ipv4.iter().all(|ip| ip.prefix_bits <= 32));
            }
        }
    }
}
