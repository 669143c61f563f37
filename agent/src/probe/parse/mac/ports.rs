//! `networksetup -listallhardwareports` (FIELD-NOTES 5): which interface is which receptacle. The numbers of interfaces do not
//! follow those of receptacles.

/// A hardware port with its interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HardwarePort {
    /// For example `Thunderbolt 2` or `Wi-Fi`.
    pub name: String,
    /// For example `en6`.
    pub device: String,
}

impl HardwarePort {
    /// The number of the receptacle, of a Thunderbolt port.
    #[must_use]
    pub fn receptacle(&self) -> Option<u32> {
        self.name.strip_prefix("Thunderbolt ")?.trim().parse().ok()
    }

    /// Whether this is the bridge that macOS makes of all Thunderbolt ports.
    #[must_use]
    pub fn is_bridge(&self) -> bool {
        self.name == "Thunderbolt Bridge"
    }
}

/// All hardware ports; empty when the text lists none.
#[must_use]
pub fn hardware_ports(text: &str) -> Vec<HardwarePort> {
    let mut ports = Vec::new();
    let mut name = None;
    for line in text.lines().map(str::trim) {
        if let Some(value) = line.strip_prefix("Hardware Port:") {
            name = Some(value.trim().to_owned());
        } else if let Some(value) = line.strip_prefix("Device:") {
            let device = value.trim();
            if let Some(name) = name.take().filter(|_| is_interface_name(device)) {
                ports.push(HardwarePort { name, device: device.to_owned() });
            }
        } else if line.is_empty() {
            name = None;
        }
    }
    ports
}

/// What an interface can be called. Names go into commands and files, so nothing else is taken for one.
#[must_use]
pub fn is_interface_name(text: &str) -> bool {
    // IFNAMSIZ of `<net/if.h>`, without the byte that ends it.
    const MOST_BYTES: usize = 15;
    let starts_right = text.starts_with(|first: char| first.is_ascii_lowercase());
    starts_right && text.len() <= MOST_BYTES && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::probe::parse::mutated::mutated;

    const LAPTOP: &str = "\nHardware Port: Ethernet Adapter (en3)\nDevice: en3\nEthernet Address: 02:00:00:00:00:0a\n\n\
        Hardware Port: Thunderbolt Bridge\nDevice: bridge0\nEthernet Address: 02:00:00:00:00:0b\n\n\
        Hardware Port: Wi-Fi\nDevice: en0\nEthernet Address: 02:00:00:00:00:0c\n\n\
        Hardware Port: Thunderbolt 1\nDevice: en1\nEthernet Address: 02:00:00:00:00:0d\n\n\
        Hardware Port: Thunderbolt 2\nDevice: en6\nEthernet Address: 02:00:00:00:00:0e\n\n\
        VLAN Configurations\n===================\n";

    #[test]
    fn receptacles_have_interfaces_out_of_order() {
        let ports = hardware_ports(LAPTOP);
        let thunderbolt: Vec<_> =
            ports.iter().filter_map(|port| Some((port.receptacle()?, port.device.as_str()))).collect();
        assert_eq!(thunderbolt, [(1, "en1"), (2, "en6")]);
        let bridges: Vec<_> = ports.iter().filter(|port| port.is_bridge()).map(|port| &port.device).collect();
        assert_eq!(bridges, ["bridge0"]);
        assert_eq!(ports.len(), 5);
    }

    #[test]
    fn a_machine_without_thunderbolt_ports_has_none() {
        let ports = hardware_ports("Hardware Port: Wi-Fi\nDevice: en0\nEthernet Address: N/A\n");
        assert_eq!(ports.iter().find_map(HardwarePort::receptacle), None);
        assert_eq!(hardware_ports("** Error: Command requires admin privileges.\n"), []);
    }

    #[test]
    fn a_port_without_a_device_takes_none_from_the_next() {
        let ports = hardware_ports(
            "Hardware Port: Thunderbolt 1\n\nDevice: en7\n\nHardware Port: Thunderbolt x\nDevice: en8\n",
        );
        assert_eq!(ports, [HardwarePort { name: "Thunderbolt x".to_owned(), device: "en8".to_owned() }]);
        assert_eq!(ports[0].receptacle(), None);
    }

    #[test]
    fn nothing_that_could_be_an_option_or_a_path_is_an_interface() {
        for name in ["-a", "../en0", "en 0", "", "en0;", "EN0", "averyverylonginterface0"] {
            assert!(!is_interface_name(name), "{name}");
        }
        for name in ["en0", "bridge0", "utun12", "lo0"] {
            assert!(is_interface_name(name), "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_panics(text in prop_oneof![any::<String>(), mutated(LAPTOP)]) {
            prop_assert!(hardware_ports(&text).iter().all(|port| is_interface_name(&port.device)));
        }
    }
}
