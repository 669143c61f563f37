//! Addresses for the two ends of a cable, such that each end finds them by itself.
//!
//! Both know the domain UUIDs of both buses, so both can work out the same small network: no address needs to be handed out, and
//! none changes while the cable stays in the same ports. Two cables of one cluster may meet in one network by chance, one in
//! some thousands; then the addresses are told to be taken, and a person chooses.

use std::net::Ipv4Addr;

/// `10.207.0.0/16`: private (RFC 1918), and in no product's defaults that we know of.
const NETWORK: [u8; 2] = [10, 207];

/// Two hosts need a /30.
pub const PREFIX_BITS: u32 = 30;

/// The addresses of this end and of the other; `None` where both name the same bus, which is no cable.
#[must_use]
pub fn addresses(own_uuid: &str, peer_uuid: &str) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let (own, peer) = (own_uuid.to_ascii_uppercase(), peer_uuid.to_ascii_uppercase());
    if own == peer || own.is_empty() || peer.is_empty() {
        return None;
    }
    let (first, second) = if own < peer { (&own, &peer) } else { (&peer, &own) };
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(first.as_bytes());
    hasher.update(b"\n");
    hasher.update(second.as_bytes());
    // 16,384 networks of four addresses.
    let network = (hasher.finalize() % (1 << 14)) << 2;
    let [_, _, high, low] = network.to_be_bytes();
    let host = |number: u8| Ipv4Addr::new(NETWORK[0], NETWORK[1], high, low + number);
    if own < peer { Some((host(1), host(2))) } else { Some((host(2), host(1))) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn both_ends_find_the_same_two_addresses(one in "[0-9A-F-]{1,36}", other in "[0-9a-f-]{1,36}") {
            match (addresses(&one, &other), addresses(&other, &one)) {
                (Some((own, peer)), Some((of_other, of_one))) => {
                    prop_assert_eq!((own, peer), (of_one, of_other));
                    let (own, peer) = (u32::from(own), u32::from(peer));
                    prop_assert_eq!(own >> 2, peer >> 2, "one network");
                    prop_assert_eq!((own & 3) + (peer & 3), 3, "its two hosts");
                    prop_assert_eq!(own >> 16, u32::from_be_bytes([0, 0, 10, 207]));
                }
                (None, None) => prop_assert_eq!(one.to_ascii_uppercase(), other.to_ascii_uppercase()),
                differing => prop_assert!(false, "{:?}", differing),
            }
        }
    }

    #[test]
    fn they_stay_the_same_from_version_to_version() {
        let (own, peer) =
            addresses("00000004-0000-4000-8000-000000000004", "00000003-0000-4000-8000-000000000003")
                .unwrap();
        assert_eq!((own.to_string(), peer.to_string()), (OWN.to_owned(), PEER.to_owned()));
        assert_eq!(addresses("", "A"), None);
    }

    const OWN: &str = "10.207.242.102";
    const PEER: &str = "10.207.242.101";

    #[test]
    fn cables_of_one_cluster_hardly_ever_meet_in_one_network() {
        let uuid = |number: u32| format!("{number:08X}-0000-4000-8000-000000000000");
        // Seven Macs, each cabled to every other, twice over.
        let mut networks: Vec<u32> = (0..42)
            .map(|cable| u32::from(addresses(&uuid(2 * cable), &uuid(2 * cable + 1)).unwrap().0) >> 2)
            .collect();
        networks.sort_unstable();
        networks.dedup();
        assert_eq!(networks.len(), 42);
    }
}
