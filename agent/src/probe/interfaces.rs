//! Network interfaces with their addresses, from `getifaddrs`: the part that Linux and macOS share. Carrier and speed
//! come from elsewhere on each.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use nix::{
    ifaddrs::{InterfaceAddress, getifaddrs},
    net::if_::InterfaceFlags,
    sys::socket::SockaddrStorage,
};

use super::Interface;

/// All interfaces, sorted by name, without carrier and speed.
///
/// # Errors
/// One sentence when the system does not list them.
pub fn list() -> Result<Vec<Interface>, String> {
    let entries = getifaddrs().map_err(|errno| format!("network interfaces cannot be listed: {errno}"))?;
    let mut found = BTreeMap::<String, Interface>::new();
    for entry in entries {
        let interface = found.entry(entry.interface_name.clone()).or_insert_with(|| Interface {
            name: entry.interface_name.clone(),
            up: entry.flags.contains(InterfaceFlags::IFF_UP),
            loopback: entry.flags.contains(InterfaceFlags::IFF_LOOPBACK),
            ..Default::default()
        });
        if let Some(address) = address_with_prefix(&entry) {
            interface.addresses.push(address);
        }
        if let Some(mac) = hardware_address(&entry) {
            interface.mac = mac;
        }
    }
    let mut list: Vec<_> = found.into_values().collect();
    for interface in &mut list {
        interface.addresses.sort();
        interface.addresses.dedup();
    }
    Ok(list)
}

fn address_with_prefix(entry: &InterfaceAddress) -> Option<String> {
    let address = entry.address.as_ref()?;
    if let Some(v4) = address.as_sockaddr_in() {
        let bits = entry.netmask.as_ref().and_then(SockaddrStorage::as_sockaddr_in).map(|mask| {
            let mask: Ipv4Addr = mask.ip();
            mask.to_bits().leading_ones()
        });
        return Some(format!("{}/{}", v4.ip(), bits.unwrap_or(32)));
    }
    let v6 = address.as_sockaddr_in6()?;
    let bits = entry.netmask.as_ref().and_then(SockaddrStorage::as_sockaddr_in6).map(|mask| {
        let mask: Ipv6Addr = mask.ip();
        mask.to_bits().leading_ones()
    });
    Some(format!("{}/{}", v6.ip(), bits.unwrap_or(128)))
}

fn hardware_address(entry: &InterfaceAddress) -> Option<String> {
    let bytes = entry.address.as_ref()?.as_link_addr()?.addr()?;
    if bytes == [0; 6] {
        return None;
    }
    Some(bytes.map(|byte| format!("{byte:02x}")).join(":"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_loopback_with_its_address() {
        let list = list().unwrap();
        let loopback = list.iter().find(|interface| interface.loopback).unwrap();
        assert!(loopback.addresses.contains(&"127.0.0.1/8".to_owned()), "{loopback:?}");
        assert_eq!(loopback.mac, "");
    }
}
