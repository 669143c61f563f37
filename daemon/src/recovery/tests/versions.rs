//! After an update: ranks need the same MLX and the same macOS, and until all nodes have it the job goes on without a gang.

use super::{
    gangs::Sessions,
    kit::*,
    ladder::{asked, obey, start_all},
};
use crate::{
    model::{JobId, Mode},
    recovery::*,
};

fn versions(mlx: &str, build: &str) -> Versions {
    Versions {
        runtime: if mlx.is_empty() { String::new() } else { format!("MLX {mlx}, mlx-lm 0.32.2") },
        os: if build.is_empty() { String::new() } else { format!("macOS {build}") },
    }
}

/// Two nodes with these versions that could each hold the large model, or need one another.
fn two(budget_gb: u64, of_a: Versions, of_b: Versions) -> (Kit, Sessions) {
    let mut kit = Kit::new();
    let _ = kit.tell(Event::PolicyChanged(policy_with_a_network()));
    let mut sessions = Vec::new();
    for (name, last, versions) in [("a", 1, of_a), ("b", 2, of_b)] {
        kit.found.insert(name.to_owned(), large_model());
        let facts = NodeFacts { versions, ..machine(&format!("10.0.0.{last}"), budget_gb) };
        kit.machines.insert(name.to_owned(), facts);
        sessions.push((name, kit.connect(name).0));
    }
    (kit, sessions)
}

fn ranks_of_a_job(kit: &mut Kit, sessions: &Sessions) -> usize {
    let mut effects = kit.tell(Event::JobAccepted(record(1, 100)));
    effects.extend(kit.wait(2_100, sessions));
    started(&effects).len()
}

fn why(kit: &Kit) -> Vec<String> {
    let reasons = kit.job(1).plan.clone().unwrap().reasons;
    reasons.into_iter().filter(|reason| reason.rule == "versions").map(|reason| reason.text).collect()
}

#[test]
fn ranks_need_the_same_versions_and_what_is_not_known_keeps_nobody() {
    let same = || versions("0.32.4", "25D125");
    let rows = [
        (same(), same(), 2),
        (same(), versions("0.32.4", ""), 2),
        (same(), versions("", "25D125"), 2),
        (versions("0.32.4", ""), versions("0.32.4", ""), 2),
        (same(), versions("0.32.5", "25D125"), 0),
        (same(), versions("0.32.4", "25D201"), 0),
    ];
    for (index, (of_a, of_b, ranks)) in rows.into_iter().enumerate() {
        let (mut kit, sessions) = two(60, of_a, of_b);
        assert_eq!(ranks_of_a_job(&mut kit, &sessions), ranks, "row {index}");
        assert_eq!(why(&kit).is_empty(), ranks == 2, "row {index}: {:?}", why(&kit));
    }
}

#[test]
fn the_build_of_macos_may_be_left_out_of_it_and_mlx_may_not() {
    for (of_b, ranks) in [(versions("0.32.4", "25D201"), 2), (versions("0.32.5", "25D125"), 0)] {
        let (mut kit, sessions) = two(60, versions("0.32.4", "25D125"), of_b);
        let policy = Policy { gang_same_os: false, ..policy_with_a_network() };
        let _ = kit.tell(Event::PolicyChanged(policy));
        assert_eq!(ranks_of_a_job(&mut kit, &sessions), ranks);
    }
}

/// An update that reboots every Mac, one after the other.
#[test]
fn a_gang_comes_back_when_every_node_has_the_update() {
    let (mut kit, mut sessions) = two(100, versions("0.32.4", "25D125"), versions("0.32.4", "25D125"));
    let mut effects = kit.tell(Event::JobAccepted(asked(Mode::Pipeline)));
    effects.extend(kit.wait(2_100, &sessions));
    assert_eq!(start_all(&mut kit, &effects).len(), 2);
    for (place, node) in ["a", "b"].into_iter().enumerate() {
        let machine = kit.machines.get_mut(node).unwrap();
        machine.versions = versions("0.32.4", "25D201");
        machine.boot_id = "boot-2".to_owned();
        let (session, mut effects) = kit.hello(node, "agent-2", Vec::new());
        sessions[place].1 = session;
        effects.extend(kit.replayed(node, session));
        effects.extend(obey(&mut kit, &effects, ExitClass::Killed));
        effects.extend(kit.wait(5_000, &sessions));
        let _ = start_all(&mut kit, &effects);
        let plan = kit.job(1).plan.clone().unwrap();
        if node == "a" {
            assert_eq!(plan.mode, Mode::Independent);
            let told = kit.machine.explain_job(kit.now, JobId(1)).unwrap();
            let told =
                told.into_iter().find(|ruling| ruling.rule == "versions").expect("why it is no pipeline");
            assert_eq!(
                told.sentence,
                "nodes with different versions make no gang: macOS 25D201, MLX 0.32.4, mlx-lm 0.32.2 on a; macOS 25D125, MLX 0.32.4, \
                 mlx-lm 0.32.2 on b"
            );
        }
    }
    let effects = kit.wait(75_000, &sessions);
    assert!(events(&effects).contains(&"climbing"), "{:?}", events(&effects));
}
