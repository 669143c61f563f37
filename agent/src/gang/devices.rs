//! Which RDMA device leads from each rank to each other one. Pure.

use nightshift_proto::v1::Peer;

/// Ranks of a full mesh at most (FIELD-NOTES 1).
pub const MAX_MESH_RANKS: usize = 8;

/// Rows and columns in rank order; `None` where there is none, as on the diagonal.
pub type Matrix = Vec<Vec<Option<String>>>;

/// The matrix of a full mesh, or of a ring, in which only neighbours are joined.
///
/// # Errors
/// One sentence.
pub fn matrix(peers: &[&Peer], ring: bool) -> Result<Matrix, String> {
    let count = peers.len();
    if !ring && count > MAX_MESH_RANKS {
        return Err(format!(
            "jaccl joins {MAX_MESH_RANKS} ranks at most, and this gang has {count}: use jaccl-ring or ring"
        ));
    }
    let mut rows = Vec::new();
    for (rank, peer) in peers.iter().enumerate() {
        if peer.rdma_devices.len() != count {
            return Err(format!(
                "rank {rank} names {} RDMA devices for a gang of {count}",
                peer.rdma_devices.len()
            ));
        }
        let mut row = Vec::new();
        for (other, device) in peer.rdma_devices.iter().enumerate() {
            let neighbours = (rank + 1) % count == other || (other + 1) % count == rank;
            row.push(match device.as_str() {
                "" if other == rank || (ring && !neighbours) => None,
                "" => return Err(format!("there is no RDMA device from rank {rank} to rank {other}")),
                _ if other == rank => return Err(format!("rank {rank} names an RDMA device towards itself")),
                name if is_name(name) => Some(name.to_owned()),
                name => {
                    let shown = crate::util::clip(name, 50);
                    return Err(format!("rank {rank} names {shown:?}, which is no name of an RDMA device"));
                }
            });
        }
        rows.push(row);
    }
    Ok(rows)
}

/// As `ibv_devices` prints them: `rdma_en5`.
fn is_name(name: &str) -> bool {
    name.len() <= 63 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &[&[&str]], ring: bool) -> Result<Matrix, String> {
        let peers: Vec<Peer> = rows
            .iter()
            .map(|row| Peer {
                rdma_devices: row.iter().map(|&name| name.to_owned()).collect(),
                ..Peer::default()
            })
            .collect();
        matrix(&peers.iter().collect::<Vec<_>>(), ring)
    }

    #[test]
    fn a_mesh_has_a_device_for_every_pair_and_a_ring_for_neighbours() {
        let mesh = rows(
            &[&["", "rdma_en5", "rdma_en6"], &["rdma_en5", "", "rdma_en6"], &["rdma_en5", "rdma_en6", ""]],
            false,
        );
        assert_eq!(
            serde_json::to_string(&mesh.unwrap()).unwrap(),
            r#"[[null,"rdma_en5","rdma_en6"],["rdma_en5",null,"rdma_en6"],["rdma_en5","rdma_en6",null]]"#
        );
        let ring: &[&[&str]] =
            &[&["", "a", "", "b"], &["a", "", "b", ""], &["", "a", "", "b"], &["a", "", "b", ""]];
        assert_eq!(
            serde_json::to_string(&rows(ring, true).unwrap()).unwrap(),
            r#"[[null,"a",null,"b"],["a",null,"b",null],[null,"a",null,"b"],["a",null,"b",null]]"#
        );
        assert_eq!(rows(ring, false).unwrap_err(), "there is no RDMA device from rank 0 to rank 2");
    }

    #[test]
    fn what_does_not_fit_is_named() {
        for (given, says) in [
            (vec![vec!["", "a"], vec!["a"]], "rank 1 names 1 RDMA devices for a gang of 2"),
            (vec![vec!["", "a"], vec!["", ""]], "there is no RDMA device from rank 1 to rank 0"),
            (vec![vec!["b", "a"], vec!["a", ""]], "rank 0 names an RDMA device towards itself"),
            (
                vec![vec!["", "a b"], vec!["a", ""]],
                "rank 0 names \"a b\", which is no name of an RDMA device",
            ),
        ] {
            let given: Vec<&[&str]> = given.iter().map(Vec::as_slice).collect();
            assert_eq!(rows(&given, false).unwrap_err(), says);
            assert_eq!(rows(&given, true).unwrap_err(), says, "two are neighbours in a ring too");
        }
        let nine = vec![["a"; 9].as_slice(); 9];
        let said = rows(&nine, false).unwrap_err();
        assert_eq!(said, "jaccl joins 8 ranks at most, and this gang has 9: use jaccl-ring or ring");
    }
}
