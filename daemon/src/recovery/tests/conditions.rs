//! The conditions of a node that comes back, step by step.

use super::{
    cables::{change, macs_in},
    gangs::cluster_in,
    kit::*,
    link_tests::{all_pass, answer_all, failed, macs, passed, that_tries, tries},
};
use crate::recovery::*;

/// The conditions of a node's way back: of each its name, whether it holds, and its reason.
fn way_back(kit: &Kit, node: &str) -> Vec<(&'static str, Option<bool>, &'static str)> {
    let steps = kit.machine.way_back(kit.now, &node.into());
    steps.into_iter().map(|step| (step.kind, step.is_done, step.reason)).collect()
}

fn message(kit: &Kit, node: &str, kind: &str) -> String {
    let steps = kit.machine.way_back(kit.now, &node.into());
    steps.into_iter().find(|step| step.kind == kind).map(|step| step.message).unwrap()
}

#[test]
fn a_node_comes_back_step_by_step() {
    let (mut kit, sessions) = macs(&[60, 60]);
    let begun = kit.wait(100, &sessions);
    let (alike, prepared) =
        (("VersionsAlike", Some(true), "Alike"), ("LinksPrepared", Some(true), "Prepared"));
    let being_tried = [("LinksProven", Some(false), "BeingTried"), ("Rejoined", Some(false), "BeingTried")];
    assert_eq!(way_back(&kit, "a"), [&[alike, prepared][..], &being_tried].concat());
    let text = "RDMA over the cable of a and b is being tried; the cable of a and b is to be tried";
    assert_eq!(message(&kit, "a", "Rejoined"), text);
    let effects = answer_all(&mut kit, begun, &|_| passed());
    let done = [("LinksProven", Some(true), "Passed"), ("Rejoined", Some(true), "Done")];
    assert_eq!(way_back(&kit, "a"), [&[alike, prepared][..], &done].concat());
    drop(effects);

    // An update reaches one of the two.
    kit.machines.get_mut("a").unwrap().versions.os = "macOS 25F70".to_owned();
    let first = ("a", kit.connect("a").0);
    kit.machines.get_mut("b").unwrap().versions.os = "macOS 25G80".to_owned();
    kit.machines.get_mut("b").unwrap().boot_id = "boot-2".to_owned();
    let second = ("b", kit.connect("b").0);
    assert_eq!(tries(&kit.wait(20_000, &[first, second])), [], "they make no gang as they are");
    let differ = [("VersionsAlike", Some(false), "Differ"), ("Rejoined", Some(false), "Differ")];
    assert_eq!([way_back(&kit, "b")[0], way_back(&kit, "b")[3]], differ);
    let text = "it runs macOS 25G80, and macOS 25F70 on a: they make no gang until they are alike";
    assert_eq!(message(&kit, "b", "VersionsAlike"), text);
    // And then the other one.
    kit.machines.get_mut("a").unwrap().versions.os = "macOS 25G80".to_owned();
    kit.machines.get_mut("a").unwrap().boot_id = "boot-2".to_owned();
    let first = ("a", kit.connect("a").0);
    let begun = kit.wait(100, &[first, second]);
    assert_eq!(way_back(&kit, "b")[3], ("Rejoined", Some(false), "BeingTried"));
    let _ = answer_all(&mut kit, begun, &|_| failed());
    assert_eq!(
        way_back(&kit, "b")[2..],
        [("LinksProven", Some(false), "Failed"), ("Rejoined", Some(false), "Failed")]
    );

    // The bridge takes the port of the other.
    let _ = change(&mut kit, "a", |facts| {
        facts.interfaces[1].addresses.clear();
        facts.thunderbolt.ports[0].bridged = Some(true);
        facts.thunderbolt.ports[0].bridge = Some("en4".to_owned());
    });
    let not_prepared =
        [("LinksPrepared", Some(false), "NotPrepared"), ("Rejoined", Some(false), "NotPrepared")];
    assert_eq!(way_back(&kit, "b")[1..], not_prepared);
    assert!(
        message(&kit, "b", "LinksPrepared")
            .starts_with("the cable to a carries no gang yet: en4 of a has taken en4")
    );
}

#[test]
fn what_keeps_a_node_from_work_keeps_it_from_having_rejoined_and_a_node_alone_has_no_steps() {
    let (mut kit, sessions) = macs(&[60, 60]);
    all_pass(&mut kit, &sessions);
    let _ = kit.tell(Event::Drain { node: "a".into(), drain: true });
    assert_eq!(way_back(&kit, "a")[3], ("Rejoined", Some(false), "TakesNoWork"));
    assert_eq!(message(&kit, "a", "Rejoined"), "it is drained");
    let _ = kit.tell(Event::SessionLost { node: "b".into(), session: sessions[1].1 });
    assert_eq!(way_back(&kit, "b")[0], ("VersionsAlike", None, "NoSession"));

    let (kit, _) = cluster_in(that_tries(), &[60]);
    assert_eq!(way_back(&kit, "a"), []);
    let (mut kit, sessions) = macs_in(Kit::new(), &[60, 60]);
    let _ = kit.wait(100, &sessions);
    let told = [("LinksProven", None, "NotTried"), ("Rejoined", Some(true), "Done")];
    assert_eq!(way_back(&kit, "a")[2..], told, "an agent that cannot try keeps nobody");
}

/// One that cannot run workers says so of itself.
#[test]
fn a_node_whose_other_end_cannot_run_workers_is_not_kept_from_having_rejoined() {
    let (mut kit, sessions) = macs(&[60, 60]);
    let _ = kit.tell(Event::RuntimeChanged { node: "b".into(), problem: Some("no MLX".to_owned()) });
    let _ = kit.wait(100, &sessions);
    let told = [("LinksProven", None, "NotTried"), ("Rejoined", Some(true), "Done")];
    assert_eq!(way_back(&kit, "a")[2..], told);
    assert_eq!(way_back(&kit, "b")[3], ("Rejoined", Some(false), "TakesNoWork"));
}

#[test]
fn a_cable_that_carries_a_gang_by_tcp_alone_is_proven_in_part() {
    let (mut kit, sessions) = macs(&[60, 60]);
    let begun = kit.wait(100, &sessions);
    let effects = answer_all(&mut kit, begun, &|by| if by.is_rdma() { failed() } else { passed() });
    drop(effects);
    let told = [("LinksProven", Some(true), "InPart"), ("Rejoined", Some(true), "Done")];
    assert_eq!(way_back(&kit, "a")[2..], told);
    let text = "RDMA over the cable of a and b did not pass its test: rank 1 did not come";
    assert_eq!(message(&kit, "a", "LinksProven"), text);
}
