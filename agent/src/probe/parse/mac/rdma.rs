//! The RDMA tools of macOS (FIELD-NOTES 2 and 5; Apple TN3205).

use super::ports::is_interface_name;

/// Devices taken from one answer; a Mac has one for each Thunderbolt port.
const MOST_DEVICES: usize = 64;

/// Whether RDMA is on, by `rdma_ctl status`. A Mac with Thunderbolt 4 may say so, and has no devices for ever.
#[must_use]
pub fn is_enabled(text: &str) -> Option<bool> {
    let mut words = text.split(|letter: char| !letter.is_ascii_alphabetic()).map(str::to_ascii_lowercase);
    words.find_map(|word| match word.as_str() {
        "enabled" => Some(true),
        "disabled" => Some(false),
        _ => None,
    })
}

/// Names of the devices that `ibv_devices` lists; `None` when the text is not its table, which has a header even when it is
/// empty.
#[must_use]
pub fn devices(text: &str) -> Option<Vec<String>> {
    let mut lines = text.lines().map(str::split_ascii_whitespace);
    lines.find_map(|mut words| (words.next() == Some("device")).then_some(()))?;
    let names = lines.filter_map(|mut words| {
        let name = words.next()?;
        is_device_name(name).then(|| name.to_owned())
    });
    Some(names.take(MOST_DEVICES).collect())
}

/// What a device can be called: `rdma_` and its interface. The name goes into the environment of workers.
#[must_use]
pub fn is_device_name(text: &str) -> bool {
    interface_of(text).is_some()
}

/// The interface of a device.
#[must_use]
pub fn interface_of(device: &str) -> Option<&str> {
    device.strip_prefix("rdma_").filter(|interface| is_interface_name(interface))
}

/// State of a device's port (`enum ibv_port_state`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortState {
    /// Nothing, or nobody with RDMA, at the other end.
    Down,
    /// On its way up.
    Initializing,
    /// On its way up.
    Armed,
    /// Both ends have RDMA on.
    Active,
    /// Active, and about to be given up.
    ActiveDefer,
}

/// One device, by `ibv_devinfo`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceInfo {
    /// For example `rdma_en6`.
    pub name: String,
    /// Of its port.
    pub state: Option<PortState>,
    /// Protection domains it has in all; only with `-v`.
    pub max_protection_domains: Option<u32>,
    /// Queue pairs it has in all; only with `-v`.
    pub max_queue_pairs: Option<u32>,
    /// Completion queues it has in all; only with `-v`.
    pub max_completion_queues: Option<u32>,
}

/// The devices that `ibv_devinfo` or `ibv_devinfo -v` tells of.
#[must_use]
pub fn device_infos(text: &str) -> Vec<DeviceInfo> {
    let mut found: Vec<DeviceInfo> = Vec::new();
    // What follows a device that was left out is not of the one before it.
    let mut is_left_out = true;
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        if key.trim() == "hca_id" {
            is_left_out = !is_device_name(value) || found.len() == MOST_DEVICES;
            if !is_left_out {
                found.push(DeviceInfo { name: value.to_owned(), ..DeviceInfo::default() });
            }
            continue;
        }
        let Some(device) = found.last_mut().filter(|_| !is_left_out) else { continue };
        let number = || value.parse().ok();
        match key.trim() {
            // A device has one port; of several, the first counts.
            "state" if device.state.is_none() => device.state = port_state(value),
            "max_pd" => device.max_protection_domains = number(),
            "max_qp" => device.max_queue_pairs = number(),
            "max_cq" => device.max_completion_queues = number(),
            _ => {}
        }
    }
    found
}

/// `PORT_ACTIVE (4)`; the number counts.
fn port_state(value: &str) -> Option<PortState> {
    let number = value.rsplit_once('(')?.1.strip_suffix(')')?;
    match number.trim().parse::<u32>().ok()? {
        1 => Some(PortState::Down),
        2 => Some(PortState::Initializing),
        3 => Some(PortState::Armed),
        4 => Some(PortState::Active),
        5 => Some(PortState::ActiveDefer),
        _ => None,
    }
}

/// The class whose instances are the protection domains held now.
pub const PROTECTION_DOMAIN_CLASS: &str = "AppleThunderboltRDMAProtectionDomain";

/// How many protection domains are held on this machine, by `ioclasscount` with that class.
#[must_use]
pub fn protection_domains_held(text: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let (class, count) = line.split_once('=')?;
        (class.trim() == PROTECTION_DOMAIN_CLASS).then(|| count.trim().parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::probe::parse::mutated::mutated;

    const DEVICES: &str = "    device          \t   node GUID\n    ------          \t----------------\n\
        \u{20}   rdma_en1        \t0000000000000001\n    rdma_en6        \t0000000000000002\n";

    const TWO_PORTS: &str = "hca_id:\trdma_en1\n\ttransport:\t\t\tThunderbolt (100)\n\tmax_pd:\t\t\t\t11\n\tmax_qp:\t\t\t\t11\n\
        \tmax_cq:\t\t\t\t12\n\tphys_port_cnt:\t\t\t1\n\t\tport:\t1\n\t\t\tstate:\t\t\tPORT_ACTIVE (4)\n\
        \t\t\tmax_mtu:\t\t4096 (5)\n\t\t\tlink_layer:\t\tThunderbolt\n\n\
        hca_id:\trdma_en6\n\ttransport:\t\t\tThunderbolt (100)\n\t\tport:\t1\n\t\t\tstate:\t\t\tPORT_DOWN (1)\n";

    #[test]
    fn on_and_off_are_words_and_anything_else_is_not_known() {
        assert_eq!(is_enabled("enabled\n"), Some(true));
        assert_eq!(is_enabled("RDMA: Disabled.\n"), Some(false));
        for text in ["", "rdma_ctl: command not found\n", "unenabled", "error 5"] {
            assert_eq!(is_enabled(text), None, "{text}");
        }
    }

    #[test]
    fn a_table_without_devices_is_an_answer_and_an_error_is_none() {
        assert_eq!(devices(DEVICES).unwrap(), ["rdma_en1", "rdma_en6"]);
        let empty = "    device          \t   node GUID\n    ------          \t----------------\n";
        assert_eq!(devices(empty).unwrap(), [""; 0]);
        for text in ["", "Failed to get IB devices list: Function not implemented\n"] {
            assert_eq!(devices(text), None, "{text}");
        }
        assert_eq!(
            devices("device node GUID\nmlx5_0 0001\nrdma_../x 2\nrdma_en2 3\n").unwrap(),
            ["rdma_en2"]
        );
    }

    #[test]
    fn ports_tell_their_state_and_limits() {
        let infos = device_infos(TWO_PORTS);
        let states: Vec<_> = infos.iter().map(|info| (info.name.as_str(), info.state)).collect();
        assert_eq!(states, [("rdma_en1", Some(PortState::Active)), ("rdma_en6", Some(PortState::Down))]);
        let limits =
            [infos[0].max_protection_domains, infos[0].max_queue_pairs, infos[0].max_completion_queues];
        assert_eq!(limits, [Some(11), Some(11), Some(12)]);
        assert_eq!(infos[1].max_protection_domains, None, "without -v");
    }

    #[test]
    fn a_state_of_a_new_kind_is_not_known() {
        for state in ["PORT_NAPPING (9)", "PORT_ACTIVE", "PORT_ACTIVE (four)", ""] {
            let infos = device_infos(&format!("hca_id: rdma_en1\n\tstate: {state}\n"));
            assert_eq!(infos[0].state, None, "{state}");
        }
        assert_eq!(device_infos("No IB devices found\n"), []);
        let foreign = device_infos("hca_id: rdma_en1\nhca_id: mlx5_0\n\tstate: PORT_ACTIVE (4)\n");
        assert_eq!((foreign.len(), foreign[0].state), (1, None), "the state is another device's");
    }

    #[test]
    fn protection_domains_are_counted_by_their_class() {
        assert_eq!(protection_domains_held("AppleThunderboltRDMAProtectionDomain = 3\n"), Some(3));
        assert_eq!(protection_domains_held("AppleThunderboltRDMAQueuePair = 3\n"), None);
        assert_eq!(protection_domains_held("AppleThunderboltRDMAProtectionDomain = none\n"), None);
        assert_eq!(protection_domains_held(""), None);
    }

    proptest! {
        #[test]
        fn no_answer_panics(text in prop_oneof![any::<String>(), mutated(DEVICES), mutated(TWO_PORTS)]) {
            let _ = (is_enabled(&text), protection_domains_held(&text));
            prop_assert!(devices(&text).unwrap_or_default().iter().all(|name| is_device_name(name)));
            prop_assert!(device_infos(&text).iter().all(|info| is_device_name(&info.name)));
        }
    }
}
