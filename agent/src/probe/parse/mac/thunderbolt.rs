//! `system_profiler SPThunderboltDataType -json` (FIELD-NOTES 5).
//!
//! One bus is one receptacle on Apple silicon. What is plugged in stands in `_items`, which mixes docks and Macs: a Mac is an
//! item with a `domain_uuid_key`, that of its own bus at the other end. So two Macs tell of one cable from both sides.

use serde_json::Value;

/// How deep docks behind docks are followed: Thunderbolt allows six devices in a chain.
const MOST_DEPTH: u32 = 8;

/// Buses and items taken from one answer: the largest Mac has eight buses, a chain six devices.
const MOST_ITEMS: usize = 64;

/// The protocol by which a Mac offers RDMA to its peer. The name beside it differs from release to release.
const RDMA_PROTOCOL: u64 = 64_087;

/// The protocol of IP over Thunderbolt.
const IP_PROTOCOL: u64 = 1;

/// A link at least this fast is Thunderbolt 5; Thunderbolt 4 ends at 40 Gbit/s.
const THUNDERBOLT_5_BITS_PER_S: u64 = 80_000_000_000;

/// One Thunderbolt bus of this Mac.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bus {
    /// As the tool names it.
    pub name: String,
    /// By which the peer at the other end names this bus.
    pub domain_uuid: Option<String>,
    /// Number of the receptacle: that of the hardware port `Thunderbolt N`.
    pub receptacle: Option<u32>,
    /// Whether something is plugged in.
    pub plugged: Option<bool>,
    /// The speed that was negotiated with what is plugged in.
    pub speed_bits_per_s: Option<u64>,
    /// What the receptacle could do, as it says while nothing is plugged in.
    pub top_speed_bits_per_s: Option<u64>,
    /// Macs plugged in, directly or through docks.
    pub peers: Vec<Peer>,
    /// Other devices plugged in, by name.
    pub devices: Vec<String>,
}

/// A Mac at the other end of a cable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// Of its bus.
    pub domain_uuid: String,
    /// Its hardware model, for example `Mac17,6`.
    pub model: Option<String>,
    /// Whether it offers RDMA; not known where it lists no services.
    pub rdma: Option<bool>,
    /// Whether it offers IP.
    pub ip: Option<bool>,
    /// A dock or hub is between, over which RDMA does not go.
    pub behind_device: bool,
}

impl Bus {
    /// Whether this end is Thunderbolt 5. A link of 40 Gbit/s says nothing: the cable or the peer may be what is slow.
    #[must_use]
    pub fn is_thunderbolt_5(&self) -> Option<bool> {
        match (self.top_speed_bits_per_s, self.speed_bits_per_s) {
            (Some(top), _) => Some(top >= THUNDERBOLT_5_BITS_PER_S),
            (None, Some(speed)) if speed >= THUNDERBOLT_5_BITS_PER_S => Some(true),
            (None, _) => None,
        }
    }
}

/// The buses of this Mac; `None` when the text is not what the tool prints.
#[must_use]
pub fn buses(text: &str) -> Option<Vec<Bus>> {
    let value: Value = serde_json::from_str(text).ok()?;
    let list = value.get("SPThunderboltDataType")?.as_array()?;
    Some(list.iter().filter(|bus| bus.is_object()).take(MOST_ITEMS).map(bus).collect())
}

fn bus(value: &Value) -> Bus {
    let receptacle = receptacle(value);
    let at = |key: &str| receptacle.and_then(|receptacle| receptacle.get(key));
    let (speed_bits_per_s, top_speed_bits_per_s) =
        at("current_speed_key").and_then(Value::as_str).map_or((None, None), speeds);
    let mut bus = Bus {
        name: text_at(value, "_name").unwrap_or_default(),
        domain_uuid: uuid_at(value),
        receptacle: at("receptacle_id_key").and_then(number),
        plugged: match at("receptacle_status_key").and_then(Value::as_str) {
            Some("receptacle_connected") => Some(true),
            Some("receptacle_no_devices_connected") => Some(false),
            _ => None,
        },
        speed_bits_per_s,
        top_speed_bits_per_s,
        ..Bus::default()
    };
    items(value, false, 0, &mut bus);
    bus
}

/// `receptacle_1_tag` on Apple silicon. A bus with several would be another machine's; the first is taken.
fn receptacle(bus: &Value) -> Option<&Value> {
    let fields = bus.as_object()?;
    fields
        .iter()
        .find(|(key, value)| {
            key.starts_with("receptacle_")
                && key.ends_with("_tag")
                && value.get("receptacle_id_key").is_some()
        })
        .map(|(_, value)| value)
}

fn items(value: &Value, behind_device: bool, depth: u32, bus: &mut Bus) {
    let list = value.get("_items").and_then(Value::as_array);
    for item in list.into_iter().flatten().filter(|item| item.is_object()) {
        if bus.peers.len() + bus.devices.len() >= MOST_ITEMS {
            return;
        }
        match uuid_at(item) {
            Some(domain_uuid) => bus.peers.push(peer(item, domain_uuid, behind_device)),
            None => bus.devices.push(text_at(item, "_name").unwrap_or_default()),
        }
        if depth < MOST_DEPTH {
            items(item, true, depth + 1, bus);
        }
    }
}

fn peer(item: &Value, domain_uuid: String, behind_device: bool) -> Peer {
    let services = item.get("services_title").and_then(Value::as_array);
    let offers = |protocol: u64| {
        services.map(|services| {
            services.iter().any(|service| service.get("protocol_id_key").and_then(number) == Some(protocol))
        })
    };
    Peer {
        domain_uuid,
        model: text_at(item, "device_name_key"),
        rdma: offers(RDMA_PROTOCOL),
        ip: offers(IP_PROTOCOL),
        behind_device,
    }
}

/// `80 Gb/s` is the speed of a link, `Up to 120 Gb/s` what the receptacle can do.
fn speeds(text: &str) -> (Option<u64>, Option<u64>) {
    let (is_top, number) = match text.strip_prefix("Up to ") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let bits_per_s = number
        .strip_suffix(" Gb/s")
        .and_then(|number| number.trim().parse::<u64>().ok())
        .and_then(|gigabits| gigabits.checked_mul(1_000_000_000));
    if is_top { (None, bits_per_s) } else { (bits_per_s, None) }
}

fn text_at(value: &Value, key: &str) -> Option<String> {
    value.get(key)?.as_str().filter(|text| !text.is_empty()).map(ToOwned::to_owned)
}

/// In capitals, so that both ends write it the same way.
fn uuid_at(value: &Value) -> Option<String> {
    text_at(value, "domain_uuid_key").map(|uuid| uuid.to_ascii_uppercase())
}

/// A number that some releases write as text.
fn number<T: TryFrom<u64>>(value: &Value) -> Option<T> {
    let number = value.as_u64().or_else(|| value.as_str()?.trim().parse().ok())?;
    T::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::probe::parse::mutated::mutated;

    /// Two Macs on one cable, a dock with a Mac behind it, and an empty receptacle.
    const THREE_BUSES: &str = r#"{ "SPThunderboltDataType": [
        { "_name": "thunderboltusb4_bus_2", "domain_uuid_key": "aaaaaaaa-0000-4000-8000-000000000003",
          "_items": [ { "_name": "Dock 7", "device_name_key": "Dock 7",
              "receptacle_2_tag": { "current_speed_key": "Up to 120 Gb/s" },
              "_items": [ { "_name": "Mac Studio", "device_name_key": "Mac16,9",
                            "domain_uuid_key": "BBBBBBBB-0000-4000-8000-000000000009" } ] } ],
          "receptacle_1_tag": { "current_speed_key": "40 Gb/s", "receptacle_id_key": "3",
                                "receptacle_status_key": "receptacle_connected" } },
        { "_name": "thunderboltusb4_bus_1", "domain_uuid_key": "AAAAAAAA-0000-4000-8000-000000000002",
          "_items": [ { "_name": "MacBook Pro", "device_name_key": "Mac17,6",
              "domain_uuid_key": "BBBBBBBB-0000-4000-8000-000000000001",
              "services_title": [ { "_name": "service_ip", "protocol_id_key": 1 },
                                  { "_name": "unknown_xd_service", "protocol_id_key": 64087 } ] } ],
          "receptacle_1_tag": { "current_speed_key": "80 Gb/s", "receptacle_id_key": "2",
                                "receptacle_status_key": "receptacle_connected" } },
        { "_name": "thunderboltusb4_bus_0", "domain_uuid_key": "AAAAAAAA-0000-4000-8000-000000000001",
          "receptacle_1_tag": { "current_speed_key": "Up to 120 Gb/s", "receptacle_id_key": "1",
                                "receptacle_status_key": "receptacle_no_devices_connected" } } ] }"#;

    const PEER_WITHOUT_RDMA: &str = r#"{ "SPThunderboltDataType": [
        { "_name": "bus_0", "domain_uuid_key": "A", "_items": [ { "_name": "Mac mini", "domain_uuid_key": "B",
            "services_title": [ { "protocol_id_key": "1" } ] } ],
          "receptacle_1_tag": { "current_speed_key": "Up to 40 Gb/s", "receptacle_id_key": 1,
                                "receptacle_status_key": "receptacle_of_a_new_kind" } } ] }"#;

    #[test]
    fn a_cable_to_a_mac_is_known_with_what_that_mac_offers() {
        let buses = buses(THREE_BUSES).unwrap();
        let bus = &buses[1];
        assert_eq!(
            (bus.receptacle, bus.plugged, bus.speed_bits_per_s),
            (Some(2), Some(true), Some(80_000_000_000))
        );
        assert_eq!(bus.is_thunderbolt_5(), Some(true));
        let expected = Peer {
            domain_uuid: "BBBBBBBB-0000-4000-8000-000000000001".to_owned(),
            model: Some("Mac17,6".to_owned()),
            rdma: Some(true),
            ip: Some(true),
            behind_device: false,
        };
        assert_eq!(bus.peers, [expected]);
    }

    #[test]
    fn a_dock_is_no_mac_and_a_mac_behind_it_is_told_apart() {
        let bus = &buses(THREE_BUSES).unwrap()[0];
        assert_eq!(bus.domain_uuid.as_deref(), Some("AAAAAAAA-0000-4000-8000-000000000003"), "in capitals");
        assert_eq!(bus.devices, ["Dock 7"]);
        let seen: Vec<_> = bus.peers.iter().map(|peer| (peer.behind_device, peer.rdma, peer.ip)).collect();
        assert_eq!(seen, [(true, None, None)], "a Mac that lists no services may offer any");
        assert_eq!(bus.is_thunderbolt_5(), None, "the dock or the cable may be what is slow");
    }

    #[test]
    fn an_empty_receptacle_tells_what_it_could_do() {
        let bus = &buses(THREE_BUSES).unwrap()[2];
        assert_eq!((bus.plugged, bus.speed_bits_per_s, bus.peers.len()), (Some(false), None, 0));
        assert_eq!((bus.top_speed_bits_per_s, bus.is_thunderbolt_5()), (Some(120_000_000_000), Some(true)));
    }

    #[test]
    fn a_peer_with_its_services_but_not_this_one_has_rdma_off() {
        let bus = &buses(PEER_WITHOUT_RDMA).unwrap()[0];
        assert_eq!((bus.peers[0].rdma, bus.peers[0].ip), (Some(false), Some(true)));
        assert_eq!((bus.receptacle, bus.plugged, bus.is_thunderbolt_5()), (Some(1), None, Some(false)));
    }

    #[test]
    fn a_mac_without_thunderbolt_and_no_answer_are_not_the_same() {
        assert_eq!(buses(r#"{ "SPThunderboltDataType": [] }"#), Some(Vec::new()));
        for text in ["", "{}", "[]", "null", r#"{ "SPThunderboltDataType": {} }"#, "system_profiler: error"] {
            assert_eq!(buses(text), None, "{text}");
        }
        assert_eq!(buses(r#"{ "SPThunderboltDataType": [{}, 7] }"#), Some(vec![Bus::default()]));
    }

    #[test]
    fn a_chain_without_end_is_not_followed() {
        let item = |inner: &str| format!(r#"{{ "_name": "d", "_items": [{inner}] }}"#);
        let deep = (0..60).fold(String::new(), |inner, _| item(&inner));
        let text = format!(r#"{{ "SPThunderboltDataType": [{deep}] }}"#);
        assert_eq!(buses(&text).unwrap()[0].devices.len(), MOST_DEPTH as usize + 1);
    }

    proptest! {
        #[test]
        fn no_answer_panics_or_invents_a_bus(
            text in prop_oneof![any::<String>(), mutated(THREE_BUSES), mutated(PEER_WITHOUT_RDMA)]
        ) {
            for bus in buses(&text).unwrap_or_default() {
                prop_assert!(bus.peers.iter().all(|peer| !peer.domain_uuid.is_empty()));
                let _ = bus.is_thunderbolt_5();
            }
        }
    }
}
