//! From the controller's order to what one rank is told. Pure.

use std::net::SocketAddr;

use nightshift_proto::v1::{self, Backend, Mode, Peer};

use super::{
    addresses,
    devices::{self, Matrix},
    starts::StartBudget,
};
use crate::worker::{
    Key,
    protocol::{CanaryInit, GangInit, Secret},
};

/// Ranks of a gang at most: far more machines than anybody joins, and an end to what a confused controller can ask for.
const MAX_RANKS: u32 = 64;

/// Where the controller names no limit. A connecting ring gives up after 31 s (FIELD-NOTES 1), and all start within
/// seconds.
const DEFAULT_RENDEZVOUS_MS: u64 = 60_000;

/// What workers take (gang.py).
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 16..=1024;
const MAX_CANARY_TOKENS: u32 = 256;
const DEFAULT_CANARY_TOKENS: u32 = 8;

/// How things stand on the node.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    /// Its name.
    pub node_id: &'a str,
    /// Whether RDMA over Thunderbolt can be there at all.
    pub macos: bool,
    /// JACCL starts of this boot.
    pub starts: &'a StartBudget,
}

/// What MLX's backend needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fabric {
    /// TCP: where each rank listens.
    Ring(Vec<Vec<SocketAddr>>),
    /// RDMA.
    Jaccl {
        /// Which device leads from each to each.
        devices: Matrix,
        /// Rank 0's side channel.
        coordinator: SocketAddr,
        /// A ring and not a mesh.
        ring: bool,
    },
}

/// Everything about one rank's start that is not the same for independent workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// What the worker is told.
    pub init: GangInit,
    /// What MLX is told.
    pub fabric: Fabric,
    /// Where this rank will listen: must be free when it starts.
    pub listens: Vec<SocketAddr>,
}

impl Launch {
    /// Whether the start uses up some of a boot's RDMA resources.
    #[must_use]
    pub fn counts(&self) -> bool {
        matches!(self.fabric, Fabric::Jaccl { .. })
    }
}

/// The rank `key` of `gang` on this node, or why it cannot be.
///
/// # Errors
/// One sentence for the controller.
pub fn prepare(gang: &v1::Gang, key: Key, node: Node<'_>) -> Result<Launch, String> {
    let backend = backend(gang, node)?;
    let peers = in_order(gang)?;
    let world_size = gang.world_size;
    let Some(own) = peers.get(key.rank as usize) else {
        return Err(format!("rank {} cannot be of a gang of {world_size}", key.rank));
    };
    if own.node_id != node.node_id {
        return Err(format!(
            "rank {} of the gang is for node {}, and this is {}",
            key.rank, own.node_id, node.node_id
        ));
    }
    let (mode, layers) = spans(gang, &peers)?;
    let control = addresses::control(&peers, key.rank as usize)?;
    let mut listens = Vec::new();
    let fabric = match backend {
        Backend::Ring => {
            let hosts = addresses::ring(&peers)?;
            listens.extend(hosts.get(key.rank as usize).into_iter().flatten());
            Fabric::Ring(hosts)
        }
        _ => {
            let ring = backend == Backend::JacclRing;
            let devices = devices::matrix(&peers, ring)?;
            if gang.coordinator.is_empty() {
                return Err("the gang names no coordinator (jaccl)".to_owned());
            }
            let coordinator = addresses::parse_for_mlx(&gang.coordinator, "the coordinator")?;
            listens.extend((key.rank == 0).then_some(coordinator));
            Fabric::Jaccl { devices, coordinator, ring }
        }
    };
    // The coordinator's may be the control channel's, which is closed again before MLX listens (formation.py).
    listens.extend((key.rank == 0 && !listens.contains(&control)).then_some(control));
    let init = GangInit {
        mode,
        backend: name_of(backend),
        rank: key.rank,
        world_size,
        layers,
        control: control.to_string(),
        secret: secret(&gang.secret)?,
        rendezvous_timeout_ms: match gang.rendezvous_timeout_ms {
            0 => DEFAULT_RENDEZVOUS_MS,
            given => given,
        },
        canary: gang.canary.as_ref().map(canary).transpose()?,
    };
    Ok(Launch { init, fabric, listens })
}

fn name_of(backend: Backend) -> &'static str {
    match backend {
        Backend::Jaccl => "jaccl",
        Backend::JacclRing => "jaccl-ring",
        _ => "ring",
    }
}

fn backend(gang: &v1::Gang, node: Node<'_>) -> Result<Backend, String> {
    match gang.backend() {
        Backend::Ring => Ok(Backend::Ring),
        backend @ (Backend::Jaccl | Backend::JacclRing) => {
            if !node.macos {
                let name = name_of(backend);
                return Err(format!("{name} needs RDMA over Thunderbolt, which only macOS has: use ring"));
            }
            node.starts.check()?;
            Ok(backend)
        }
        Backend::Unspecified | Backend::None => Err("the gang names no backend".to_owned()),
    }
}

/// The peers by rank: each rank once, each on a node of its own.
fn in_order(gang: &v1::Gang) -> Result<Vec<&Peer>, String> {
    let world_size = gang.world_size;
    if world_size < 2 {
        return Err(format!("a gang has two ranks at least, and this one {world_size}"));
    }
    if world_size > MAX_RANKS {
        return Err(format!("a gang has {MAX_RANKS} ranks at most, and this one {world_size}"));
    }
    if gang.peers.len() != world_size as usize {
        return Err(format!("the gang is of {world_size} ranks and lists {} peers", gang.peers.len()));
    }
    let mut peers: Vec<&Peer> = gang.peers.iter().collect();
    peers.sort_by_key(|peer| peer.rank);
    if let Some((rank, _)) = (0_u32..).zip(&peers).find(|(rank, peer)| peer.rank != *rank) {
        return Err(format!("the gang's peers do not name rank {rank} once"));
    }
    for (index, peer) in peers.iter().enumerate() {
        if let Some(other) = peers[..index].iter().find(|other| other.node_id == peer.node_id) {
            return Err(format!("ranks {} and {} are both for node {}", other.rank, peer.rank, peer.node_id));
        }
    }
    Ok(peers)
}

/// Mode and spans in rank order; every layer once, from the highest rank on (gang.py).
fn spans(gang: &v1::Gang, peers: &[&Peer]) -> Result<(&'static str, Vec<[u32; 2]>), String> {
    match gang.mode() {
        Mode::Pipeline => {}
        Mode::Tensor => {
            return match peers.iter().find(|peer| (peer.first_layer, peer.end_layer) != (0, 0)) {
                None => Ok(("tensor", Vec::new())),
                Some(peer) => Err(format!("rank {} is given layers, and tensor mode has none", peer.rank)),
            };
        }
        Mode::Unspecified | Mode::Independent => {
            return Err("a gang runs as pipeline or tensor, and this one names neither".to_owned());
        }
    }
    let mut expected = 0;
    for peer in peers.iter().rev() {
        let (first, end) = (peer.first_layer, peer.end_layer);
        if first != expected || end <= first {
            return Err(format!(
                "rank {} is given layers {first} to {end}, and layer {expected} is next (the highest rank has the first)",
                peer.rank
            ));
        }
        expected = end;
    }
    Ok(("pipeline", peers.iter().map(|peer| [peer.first_layer, peer.end_layer]).collect()))
}

fn secret(bytes: &[u8]) -> Result<Secret, String> {
    if !SECRET_BYTES.contains(&bytes.len()) {
        return Err(format!(
            "the gang's secret has {} bytes, and must have {} to {}",
            bytes.len(),
            SECRET_BYTES.start(),
            SECRET_BYTES.end()
        ));
    }
    if bytes.iter().all(|byte| *byte == 0) {
        return Err("the gang's secret is all zeros, which everybody knows".to_owned());
    }
    Ok(Secret::new(bytes))
}

/// What a worker is told of the canary prompt.
///
/// # Errors
/// One sentence for the controller.
pub fn canary(given: &v1::Canary) -> Result<CanaryInit, String> {
    if given.max_tokens > MAX_CANARY_TOKENS {
        return Err(format!(
            "the canary would generate {} tokens, and {MAX_CANARY_TOKENS} are allowed",
            given.max_tokens
        ));
    }
    let some = |tokens: &[u32]| (!tokens.is_empty()).then(|| tokens.to_vec());
    Ok(CanaryInit {
        tokens: some(&given.prompt_tokens),
        max_tokens: if given.max_tokens == 0 { DEFAULT_CANARY_TOKENS } else { given.max_tokens },
        expect: some(&given.expected_tokens),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const KEY: Key = Key { job_id: 7, epoch: 4, rank: 1 };

    pub(crate) fn mac(starts: &StartBudget) -> Node<'_> {
        Node { node_id: "n2", macos: true, starts }
    }

    /// Three nodes in a row, all links given.
    pub(crate) fn gang(backend: Backend) -> v1::Gang {
        let devices =
            [["", "rdma_en5", "rdma_en6"], ["rdma_en5", "", "rdma_en6"], ["rdma_en5", "rdma_en6", ""]];
        let spans = [(20, 28), (9, 20), (0, 9)];
        let peer = |rank: usize| v1::Peer {
            rank: rank as u32,
            node_id: format!("n{}", rank + 1),
            addresses: vec![format!("10.0.0.{}:47003", rank + 1)],
            rdma_devices: devices[rank].map(str::to_owned).to_vec(),
            control_addresses: vec!["10.0.0.1:47001".to_owned(); if rank == 0 { 2 } else { 1 }],
            first_layer: spans[rank].0,
            end_layer: spans[rank].1,
        };
        v1::Gang {
            mode: Mode::Pipeline.into(),
            backend: backend.into(),
            world_size: 3,
            peers: vec![peer(2), peer(0), peer(1)],
            coordinator: "192.168.1.10:47002".into(),
            rendezvous_timeout_ms: 2_500,
            secret: vec![0xab; 16],
            canary: Some(v1::Canary { prompt_tokens: vec![1, 2], max_tokens: 3, expected_tokens: vec![] }),
        }
    }

    fn refusal(gang: &v1::Gang) -> String {
        prepare(gang, KEY, mac(&StartBudget::default())).unwrap_err()
    }

    #[test]
    fn a_rank_is_told_its_place_as_the_worker_reads_it() {
        let starts = StartBudget::default();
        let launch = prepare(&gang(Backend::Ring), KEY, mac(&starts)).unwrap();
        assert_eq!(
            serde_json::to_string(&launch.init).unwrap(),
            concat!(
                r#"{"mode":"pipeline","backend":"ring","rank":1,"world_size":3,"layers":[[20,28],[9,20],[0,9]],"#,
                r#""control":"10.0.0.1:47001","secret":"abababababababababababababababab","#,
                r#""rendezvous_timeout_ms":2500,"canary":{"tokens":[1,2],"max_tokens":3,"expect":null}}"#
            )
        );
        assert!(!format!("{launch:?}").contains("abab"), "no log shows the secret");
        assert_eq!(launch.listens, ["10.0.0.2:47003".parse().unwrap()]);
        assert!(!launch.counts());

        let lead = Key { rank: 0, ..KEY };
        let node = Node { node_id: "n1", ..mac(&starts) };
        let listens = |backend| prepare(&gang(backend), lead, node).unwrap().listens;
        assert_eq!(
            listens(Backend::Ring),
            ["10.0.0.1:47003", "10.0.0.1:47001"].map(|text| text.parse().unwrap())
        );
        assert_eq!(
            listens(Backend::Jaccl),
            ["192.168.1.10:47002", "10.0.0.1:47001"].map(|text| text.parse().unwrap())
        );
        let mut shared = gang(Backend::Jaccl);
        shared.coordinator = "10.0.0.1:47001".into();
        assert_eq!(prepare(&shared, lead, node).unwrap().listens, ["10.0.0.1:47001".parse().unwrap()]);
        let jaccl = prepare(&gang(Backend::JacclRing), KEY, mac(&starts)).unwrap();
        assert!(jaccl.counts() && jaccl.listens.is_empty());
        assert_eq!(jaccl.init.backend, "jaccl-ring");
    }

    #[test]
    fn tensor_mode_has_no_layers_and_an_open_canary_stays_open() {
        let mut given = gang(Backend::Ring);
        given.mode = Mode::Tensor.into();
        assert_eq!(refusal(&given), "rank 0 is given layers, and tensor mode has none");
        for peer in &mut given.peers {
            (peer.first_layer, peer.end_layer) = (0, 0);
        }
        (given.canary, given.rendezvous_timeout_ms) = (None, 0);
        let init = prepare(&given, KEY, mac(&StartBudget::default())).unwrap().init;
        assert_eq!((init.mode, init.layers.len(), init.rendezvous_timeout_ms), ("tensor", 0, 60_000));
        assert!(serde_json::to_string(&init).unwrap().ends_with(r#""canary":null}"#));
        given.canary = Some(v1::Canary::default());
        let init = prepare(&given, KEY, mac(&StartBudget::default())).unwrap().init;
        let open = r#""canary":{"tokens":null,"max_tokens":8,"expect":null}}"#;
        assert!(serde_json::to_string(&init).unwrap().ends_with(open));
    }

    #[test]
    fn each_refusal_is_in_words() {
        type Change = fn(&mut v1::Gang);
        let cases: [(Change, &str); 21] = [
            (|gang| gang.world_size = 1, "a gang has two ranks at least, and this one 1"),
            (|gang| gang.world_size = 65, "a gang has 64 ranks at most, and this one 65"),
            (|gang| gang.world_size = 4, "the gang is of 4 ranks and lists 3 peers"),
            (|gang| gang.peers[0].rank = 1, "the gang's peers do not name rank 2 once"),
            (|gang| gang.peers[0].rank = 7, "the gang's peers do not name rank 2 once"),
            (|gang| gang.peers[0].node_id = "n1".into(), "ranks 0 and 2 are both for node n1"),
            (|gang| gang.peers[2].node_id = "n9".into(), "rank 1 of the gang is for node n9, and this is n2"),
            (|gang| gang.mode = 0, "a gang runs as pipeline or tensor, and this one names neither"),
            (|gang| gang.mode = 1, "a gang runs as pipeline or tensor, and this one names neither"),
            (|gang| gang.backend = 0, "the gang names no backend"),
            (|gang| gang.backend = 99, "the gang names no backend"),
            (
                |gang| gang.peers[2].end_layer = 21,
                "rank 0 is given layers 20 to 28, and layer 21 is next (the highest rank has the first)",
            ),
            (
                |gang| gang.peers[0].first_layer = 1,
                "rank 2 is given layers 1 to 9, and layer 0 is next (the highest rank has the first)",
            ),
            (
                |gang| gang.peers[0].end_layer = 0,
                "rank 2 is given layers 0 to 0, and layer 0 is next (the highest rank has the first)",
            ),
            (|gang| gang.secret = vec![1; 15], "the gang's secret has 15 bytes, and must have 16 to 1024"),
            (|gang| gang.secret = vec![0; 32], "the gang's secret is all zeros, which everybody knows"),
            (
                |gang| gang.canary.as_mut().unwrap().max_tokens = 257,
                "the canary would generate 257 tokens, and 256 are allowed",
            ),
            (|gang| gang.peers[0].addresses.clear(), "rank 2 has no address to listen on (ring)"),
            (
                |gang| gang.peers[0].control_addresses.clear(),
                "rank 2 has 0 control addresses, and needs one: where it finds rank 0",
            ),
            (
                |gang| {
                    gang.backend = Backend::Jaccl.into();
                    gang.coordinator.clear();
                },
                "the gang names no coordinator (jaccl)",
            ),
            (
                |gang| {
                    gang.backend = Backend::Jaccl.into();
                    gang.peers[0].rdma_devices[0].clear();
                },
                "there is no RDMA device from rank 2 to rank 0",
            ),
        ];
        for (change, says) in cases {
            let mut given = gang(Backend::Ring);
            change(&mut given);
            assert_eq!(refusal(&given), says);
        }
        let beyond = prepare(&gang(Backend::Ring), Key { rank: 3, ..KEY }, mac(&StartBudget::default()));
        assert_eq!(beyond.unwrap_err(), "rank 3 cannot be of a gang of 3");
    }

    #[test]
    fn jaccl_is_for_macs_with_starts_left() {
        let mut starts = StartBudget::default();
        let linux = Node { macos: false, ..mac(&starts) };
        assert_eq!(
            prepare(&gang(Backend::JacclRing), KEY, linux).unwrap_err(),
            "jaccl-ring needs RDMA over Thunderbolt, which only macOS has: use ring"
        );
        for _ in 0..super::super::starts::MAX_STARTS_PER_BOOT {
            assert!(prepare(&gang(Backend::Jaccl), KEY, mac(&starts)).is_ok());
            starts = starts.spent();
        }
        let said = prepare(&gang(Backend::Jaccl), KEY, mac(&starts)).unwrap_err();
        assert!(said.contains("use ring"), "{said}");
        assert!(prepare(&gang(Backend::Ring), KEY, mac(&starts)).is_ok());
    }
}
