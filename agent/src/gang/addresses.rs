//! Where the ranks of a gang listen and find one another. Pure.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use nightshift_proto::v1::Peer;

/// For each rank, where MLX's ring listens.
///
/// # Errors
/// One sentence.
pub fn ring(peers: &[&Peer]) -> Result<Vec<Vec<SocketAddr>>, String> {
    let mut taken: BTreeMap<SocketAddr, u32> = BTreeMap::new();
    let mut hosts = Vec::new();
    for peer in peers {
        if peer.addresses.is_empty() {
            return Err(format!("rank {} has no address to listen on (ring)", peer.rank));
        }
        let mut own = Vec::new();
        for text in &peer.addresses {
            let address = parse_for_mlx(text, &format!("the address of rank {}", peer.rank))?;
            if let Some(other) = taken.insert(address, peer.rank) {
                return Err(format!("ranks {other} and {} would both listen on {address}", peer.rank));
            }
            own.push(address);
        }
        hosts.push(own);
    }
    Ok(hosts)
}

/// What `rank` is told of the control channel: where to listen (rank 0), or where rank 0 is.
///
/// A worker listens in one place. Where rank 0 is reached over several links, each with an address of its own, that is
/// every address of the machine; whoever does not know the launch's secret is turned away there (handshake.py), and
/// each rank still goes over the link that was chosen for it.
///
/// # Errors
/// One sentence.
pub fn control(peers: &[&Peer], rank: usize) -> Result<SocketAddr, String> {
    let [lead, others @ ..] = peers else { return Err("the gang has no ranks".to_owned()) };
    if lead.control_addresses.len() != others.len() {
        return Err(format!(
            "rank 0 has {} control addresses, and there are {} other ranks to listen for",
            lead.control_addresses.len(),
            others.len()
        ));
    }
    let mut listens = Vec::new();
    for (text, other) in lead.control_addresses.iter().zip(others) {
        let what = format!("the control address for rank {}", other.rank);
        let address = parse(text, &what)?;
        let [seen] = other.control_addresses.as_slice() else {
            return Err(format!(
                "rank {} has {} control addresses, and needs one: where it finds rank 0",
                other.rank,
                other.control_addresses.len()
            ));
        };
        if parse(seen, &what)? != address {
            return Err(format!(
                "rank 0 would listen for rank {} on {address}, and that would look for it at {seen}",
                other.rank
            ));
        }
        listens.push(address);
    }
    if rank > 0 {
        return listens.get(rank - 1).copied().ok_or_else(|| format!("there is no rank {rank}"));
    }
    let first = *listens.first().ok_or("the gang has no other ranks")?;
    if listens.iter().all(|address| *address == first) {
        return Ok(first);
    }
    if listens.iter().any(|address| address.port() != first.port()) {
        return Err("rank 0 listens for the others on one port, and is given several".to_owned());
    }
    let any = if listens.iter().all(SocketAddr::is_ipv4) {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    } else {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    };
    Ok(SocketAddr::new(any, first.port()))
}

/// As [`parse`], for an address that MLX is given: it parses IPv4 only (`Can't parse address [::1]:…`, MLX 0.32.4).
///
/// # Errors
/// One sentence that begins with `what`.
pub fn parse_for_mlx(text: &str, what: &str) -> Result<SocketAddr, String> {
    let address = parse(text, what)?;
    if address.is_ipv4() {
        Ok(address)
    } else {
        Err(format!("{what}, {address}, is of IPv6, which MLX does not take"))
    }
}

/// "ip:port" that can be connected to.
///
/// # Errors
/// One sentence that begins with `what`.
pub fn parse(text: &str, what: &str) -> Result<SocketAddr, String> {
    let shown = crate::util::clip(text, 100);
    let address: SocketAddr = text.parse().map_err(|_| format!("{what}, {shown:?}, is no ip:port"))?;
    if address.port() == 0 {
        return Err(format!("{what}, {shown:?}, names no port"));
    }
    if address.ip().is_unspecified() {
        return Err(format!("{what}, {shown:?}, is no address of one machine"));
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(rank: u32, addresses: &[&str], control: &[&str]) -> Peer {
        let own = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        Peer { rank, addresses: own(addresses), control_addresses: own(control), ..Peer::default() }
    }

    fn seen(peers: &[Peer], rank: usize) -> Result<String, String> {
        control(&peers.iter().collect::<Vec<_>>(), rank).map(|address| address.to_string())
    }

    #[test]
    fn rank_0_listens_where_it_is_looked_for() {
        let same = [
            peer(0, &[], &["10.0.0.1:7000", "10.0.0.1:7000"]),
            peer(1, &[], &["10.0.0.1:7000"]),
            peer(2, &[], &["10.0.0.1:7000"]),
        ];
        assert_eq!([0, 1, 2].map(|rank| seen(&same, rank).unwrap()), ["10.0.0.1:7000"; 3]);
        let links = [
            peer(0, &[], &["10.0.0.1:7000", "10.0.0.5:7000"]),
            peer(1, &[], &["10.0.0.1:7000"]),
            peer(2, &[], &["10.0.0.5:7000"]),
        ];
        assert_eq!(
            [0, 1, 2].map(|rank| seen(&links, rank).unwrap()),
            ["0.0.0.0:7000", "10.0.0.1:7000", "10.0.0.5:7000"]
        );
        let mixed = [
            peer(0, &[], &["10.0.0.1:7000", "[fe80::1]:7000"]),
            peer(1, &[], &["10.0.0.1:7000"]),
            peer(2, &[], &["[fe80::1]:7000"]),
        ];
        assert_eq!(seen(&mixed, 0).unwrap(), "[::]:7000");
    }

    #[test]
    fn what_does_not_fit_together_is_named() {
        let lead = |control: &[&str]| peer(0, &[], control);
        for (peers, says) in [
            (
                vec![lead(&[]), peer(1, &[], &["10.0.0.1:7"])],
                "rank 0 has 0 control addresses, and there are 1 other ranks to listen for",
            ),
            (
                vec![lead(&["10.0.0.1:7"]), peer(1, &[], &[])],
                "rank 1 has 0 control addresses, and needs one: where it finds rank 0",
            ),
            (
                vec![lead(&["10.0.0.1:7"]), peer(1, &[], &["10.0.0.2:7"])],
                "rank 0 would listen for rank 1 on 10.0.0.1:7, and that would look for it at 10.0.0.2:7",
            ),
            (
                vec![
                    lead(&["10.0.0.1:7", "10.0.0.5:8"]),
                    peer(1, &[], &["10.0.0.1:7"]),
                    peer(2, &[], &["10.0.0.5:8"]),
                ],
                "rank 0 listens for the others on one port, and is given several",
            ),
            (
                vec![lead(&["mini:7"]), peer(1, &[], &["mini:7"])],
                "the control address for rank 1, \"mini:7\", is no ip:port",
            ),
            (
                vec![lead(&["10.0.0.1:0"]), peer(1, &[], &["10.0.0.1:0"])],
                "the control address for rank 1, \"10.0.0.1:0\", names no port",
            ),
            (
                vec![lead(&["0.0.0.0:7"]), peer(1, &[], &["0.0.0.0:7"])],
                "the control address for rank 1, \"0.0.0.0:7\", is no address of one machine",
            ),
        ] {
            assert_eq!(seen(&peers, 0).unwrap_err(), says);
        }
    }

    #[test]
    fn every_rank_of_a_ring_has_an_address_of_its_own() {
        let hosts = |peers: &[Peer]| ring(&peers.iter().collect::<Vec<_>>());
        let two = [peer(0, &["10.0.0.1:1", "10.0.1.1:1"], &[]), peer(1, &["10.0.0.2:1"], &[])];
        assert_eq!(hosts(&two).unwrap().iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
        for (peers, says) in [
            ([peer(0, &[], &[]), peer(1, &["10.0.0.2:1"], &[])], "rank 0 has no address to listen on (ring)"),
            (
                [peer(0, &["10.0.0.2:1"], &[]), peer(1, &["10.0.0.2:1"], &[])],
                "ranks 0 and 1 would both listen on 10.0.0.2:1",
            ),
            (
                [peer(0, &["x"], &[]), peer(1, &["10.0.0.2:1"], &[])],
                "the address of rank 0, \"x\", is no ip:port",
            ),
            (
                [peer(0, &["[::1]:1"], &[]), peer(1, &["10.0.0.2:1"], &[])],
                "the address of rank 0, [::1]:1, is of IPv6, which MLX does not take",
            ),
        ] {
            assert_eq!(hosts(&peers).unwrap_err(), says);
        }
    }
}
