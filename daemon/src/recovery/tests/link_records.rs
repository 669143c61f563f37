//! What is known of links outlives the controller.

use super::{
    cables::macs_in,
    gangs::Sessions,
    kit::*,
    link_tests::{FAST, answer_all, failed, macs, passed, record_of, that_tries, tries, unproven},
};
use crate::{
    model::{
        LinkKind, LinkPace, LinkRecord, NodeId, NodeRecord, Quarantine, Restart, RestartCause, RestartOutcome,
    },
    recovery::{
        link_tests::MOST_WRITTEN,
        quarantine::MOST_REASON_BYTES,
        reboots::{MOST_KEPT, MOST_REFUSAL_BYTES},
        *,
    },
};

/// The controller after the one of this kit, which left these nodes and incidents on record, and its nodes as they connect.
pub(super) fn next_controller(
    kit: &Kit,
    nodes: Vec<NodeRecord>,
    how: impl FnOnce(&mut Kit),
) -> (Kit, Sessions) {
    let mut next = that_tries();
    (next.machines, next.found) = (kit.machines.clone(), kit.found.clone());
    let incidents = unproven(kit).into_iter().cloned().rev().collect();
    let _ = next.tell(Event::Remembered { models: vec![], incidents });
    let _ = next.tell(Event::Started { jobs: vec![], nodes, repairs: vec![], remains: vec![] });
    how(&mut next);
    let alive = ["a", "b"].map(|name| (name, next.connect(name).0)).to_vec();
    (next, alive)
}

#[test]
fn what_has_passed_is_remembered_for_the_boot_and_the_versions_it_passed_in() {
    let (mut kit, sessions) = macs(&[60, 60]);
    let effects = kit.wait(100, &sessions);
    let effects = answer_all(&mut kit, effects, &|_| passed());
    let of_a = record_of(&effects, "a");
    let of_b = NodeRecord { id: "b".into(), links: Vec::new(), ..of_a.clone() };
    let kinds: Vec<LinkKind> = of_a.links.iter().map(|link| link.kind).collect();
    assert_eq!(kinds, [LinkKind::Rdma, LinkKind::Thunderbolt]);
    assert_eq!((of_a.links[0].pace, of_a.links[0].best), (Some(FAST), Some(FAST)));

    type Change = fn(&mut NodeFacts);
    let rows: [(Change, usize); 4] = [
        (|_| {}, 0),
        (|facts| facts.boot_id = "boot-2".to_owned(), 2),
        (|facts| facts.versions.runtime = "MLX 0.33.0, mlx-lm 0.33.0".to_owned(), 2),
        (|facts| facts.versions.os = "macOS 25G80".to_owned(), 2),
    ];
    for (index, (how, begun)) in rows.into_iter().enumerate() {
        for end in ["a", "b"] {
            let nodes = vec![of_a.clone(), of_b.clone()];
            let (mut next, alive) =
                next_controller(&kit, nodes, |next| how(next.machines.get_mut(end).unwrap()));
            let effects = next.wait(30_000, &alive);
            assert_eq!(tries(&effects).len(), begun, "row {index}, {end}");
        }
    }
}

#[test]
fn a_controller_that_starts_anew_tries_again_what_did_not_pass() {
    let (mut kit, sessions) = macs(&[60, 60]);
    let effects = kit.wait(100, &sessions);
    let effects = answer_all(&mut kit, effects, &|_| failed());
    let (mut next, alive) = next_controller(&kit, vec![record_of(&effects, "a")], |next| {
        let all = unproven(next);
        assert!(all.iter().all(|incident| incident.outcome == "the controller was started anew"), "{all:?}");
    });
    let effects = next.wait(100, &alive);
    let _ = answer_all(&mut next, effects, &|_| failed());
    let times: Vec<u32> = unproven(&next).iter().map(|incident| incident.times).collect();
    assert_eq!(times, [2, 2], "these are the same incidents");
}

#[test]
fn of_many_links_those_tried_longest_ago_are_not_written_down() {
    let mut kit = that_tries();
    let (first, second): (NodeId, NodeId) = ("a".into(), "b".into());
    let links = (0..2 * MOST_WRITTEN as u64).map(|number| LinkRecord {
        tried_unix_ms: number + 1,
        ..LinkRecord::new(NodeId::from(format!("old{number}").as_str()), LinkKind::Rdma)
    });
    let node = |id: &NodeId, links| NodeRecord {
        id: id.clone(),
        draining: false,
        last_seen_unix_ms: kit.now.unix_ms,
        boot_id: String::new(),
        gpu_faults_unix_ms: Vec::new(),
        quarantine: None,
        links,
        restarts: Vec::new(),
    };
    let nodes = vec![node(&first, links.collect()), node(&second, Vec::new())];
    let _ = kit.tell(Event::Started { jobs: vec![], nodes, repairs: vec![], remains: vec![] });
    let (mut kit, sessions) = macs_in(kit, &[60, 60]);
    let effects = kit.wait(100, &sessions);
    let effects = answer_all(&mut kit, effects, &|_| passed());
    let names: Vec<String> =
        record_of(&effects, "a").links.iter().map(|link| link.other.to_string()).collect();
    assert_eq!((names.len(), &names[..2]), (MOST_WRITTEN, &["b".to_owned(), "b".to_owned()][..]));
    assert!(!names.contains(&"old0".to_owned()), "{names:?}");
}

/// A store takes values of 6 KiB, less what seals them.
#[test]
fn the_largest_record_of_a_node_can_be_written_down() {
    let name = |number: usize| NodeId::from(format!("{number:063}").as_str());
    let pace = Some(LinkPace { round_trip_us: 30_000_000, bytes_per_s: 999_999_999_999 });
    let link = |number| LinkRecord {
        other: name(number),
        kind: LinkKind::Thunderbolt,
        tried_unix_ms: 1_795_654_800_000,
        passed_in: Some(u32::MAX),
        pace,
        best: pace,
        doubted: true,
        under_way: true,
        went_down: u8::MAX,
    };
    let refusal = Restart {
        cause: RestartCause::RdmaStartsUsedUp,
        boot_id: "b".repeat(100),
        asked_unix_ms: 1_795_654_800_000,
        outcome: RestartOutcome::Refused("r".repeat(MOST_REFUSAL_BYTES)),
    };
    // Only the newest refusal is kept with its words.
    let before = Restart { outcome: RestartOutcome::Refused(String::new()), ..refusal.clone() };
    let restarts = [vec![before; MOST_KEPT - 1], vec![refusal]].concat();
    let record = NodeRecord {
        id: name(0),
        draining: true,
        last_seen_unix_ms: 1_795_654_800_000,
        boot_id: "b".repeat(100),
        gpu_faults_unix_ms: vec![1_795_654_800_000; 3],
        quarantine: Some(Quarantine {
            until_unix_ms: 1_795_654_800_000,
            reason: "q".repeat(MOST_REASON_BYTES),
        }),
        links: (0..MOST_WRITTEN).map(link).collect(),
        restarts,
    };
    let bytes = serde_json::to_vec(&record).unwrap().len();
    assert!(bytes <= 6 * 1_024 - 64, "{bytes}");
}
