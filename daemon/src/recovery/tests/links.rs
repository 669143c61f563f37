//! Links fail, come back and prove themselves, each for itself.

use super::{
    gangs::{Sessions, cluster},
    kit::*,
    ladder::{asked, fallen, obey, pull_cable, start_all},
};
use crate::{
    model::{Fault, Incident, Mode, NodeId, WorkerKey},
    planner::Interface,
    recovery::*,
};

type Ranks = Vec<(String, WorkerKey)>;

/// A job over gangs of ready ranks, on nodes of so many gigabytes.
fn gangs_on(budgets_gb: &[u64]) -> (Kit, Sessions, Ranks) {
    let (mut kit, sessions) = cluster(budgets_gb);
    let mut effects = kit.tell(Event::JobAccepted(record(1, 100)));
    effects.extend(kit.wait(2_100, &sessions));
    let ranks = start_all(&mut kit, &effects);
    (kit, sessions, ranks)
}

/// Pulls the cable and plugs it in again, so many times.
fn flap(kit: &mut Kit, node: &str, times: usize) {
    for _ in 0..times {
        let _ = pull_cable(kit, node, false);
        let _ = pull_cable(kit, node, true);
    }
}

/// A pipeline of nodes b and c that somebody asked for; a and d take no work.
fn pipeline_between_drained_nodes() -> (Kit, Sessions) {
    let (mut kit, sessions) = cluster(&[100; 4]);
    for outsider in ["a", "d"] {
        let _ = kit.tell(Event::Drain { node: outsider.into(), drain: true });
    }
    let mut effects = kit.tell(Event::JobAccepted(asked(Mode::Pipeline)));
    effects.extend(kit.wait(2_100, &sessions));
    let ranks = start_all(&mut kit, &effects);
    assert_eq!(ranks.iter().map(|(node, _)| node.as_str()).collect::<Vec<_>>(), ["b", "c"]);
    (kit, sessions)
}

fn messages(effects: &[Effect], kind: &str) -> Vec<String> {
    let told = effects.iter().filter_map(|effect| match effect {
        Effect::Emit(draft) if draft.kind == kind => Some(draft.message.clone()),
        _ => None,
    });
    told.collect()
}

/// How often a rule is named in what is told of a node.
fn rulings(kit: &Kit, node: &str, rule: &str) -> usize {
    let told = kit.machine.explain_node(kit.now, &NodeId::from(node)).unwrap();
    told.iter().filter(|ruling| ruling.rule == rule).count()
}

fn link_incidents(kit: &Kit) -> Vec<Incident> {
    kit.machine.incidents().filter(|incident| incident.fault == Fault::LinkDown).cloned().collect()
}

#[test]
fn a_lost_link_ends_no_gang_that_does_not_use_it() {
    let (mut kit, sessions, ranks) = gangs_on(&[60, 60, 60]);
    assert_eq!(ranks.iter().map(|(node, _)| node.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    let mut effects = pull_cable(&mut kit, "c", false);
    effects.extend(kit.wait(1_000, &sessions));
    assert_eq!(stopped(&effects), []);
    assert_eq!(events(&effects), ["link-down", "link-down"]);
    assert_eq!(kit.machine.incidents().count(), 0, "it cost nobody anything");
}

#[test]
fn a_gang_that_is_ending_for_its_link_does_not_lose_it_again() {
    let (mut kit, _, ranks) = gangs_on(&[60; 4]);
    assert_eq!(ranks.len(), 4, "the other gang of the job is at work throughout");
    assert_eq!(stopped(&pull_cable(&mut kit, "b", false)).len(), 2);
    let _ = pull_cable(&mut kit, "b", true);
    let effects = pull_cable(&mut kit, "b", false);
    assert_eq!(stopped(&effects), []);
    assert_eq!(link_incidents(&kit).iter().map(|incident| incident.times).collect::<Vec<_>>(), [1]);
}

/// Asked to finish what they have begun, ranks over a link that is gone would wait for one another until somebody takes that for
/// a hang.
#[test]
fn a_gang_that_finishes_its_rows_for_a_drain_is_ended_when_its_link_is_lost() {
    let (mut kit, _, ranks) = gangs_on(&[60, 60]);
    let effects = kit.tell(Event::Drain { node: "b".into(), drain: true });
    let modes: Vec<StopMode> = stopped(&effects).into_iter().map(|(.., mode)| mode).collect();
    assert_eq!(modes, [StopMode::FinishStarted; 2]);
    let effects = pull_cable(&mut kit, "b", false);
    let ended: Vec<_> = ranks.iter().map(|(node, rank)| (node.clone(), *rank, StopMode::Kill)).collect();
    assert_eq!(stopped(&effects), ended);
    assert_eq!(link_incidents(&kit).len(), 1);
    let _ = obey(&mut kit, &effects, ExitClass::Killed);
    assert_eq!(kit.machine.incidents().count(), 1, "and nothing else was wrong");
}

#[test]
fn the_incident_of_a_link_names_it_and_ends_when_that_very_link_has_held() {
    let (mut kit, sessions, ranks) = gangs_on(&[60; 4]);
    assert_eq!(ranks.len(), 4);
    for node in ["b", "d"] {
        let effects = pull_cable(&mut kit, node, false);
        let _ = obey(&mut kit, &effects, ExitClass::Killed);
    }
    let [of_d, of_b] = link_incidents(&kit).try_into().unwrap();
    assert_eq!(of_b.evidence, ["link a - b", "en5 on b carries nothing"]);
    assert_eq!(of_d.evidence, ["link c - d", "en5 on d carries nothing"]);
    let _ = pull_cable(&mut kit, "b", true);
    let _ = kit.wait(15_000, &sessions);
    let [of_d, of_b] = link_incidents(&kit).try_into().unwrap();
    assert_eq!(of_b.outcome, "the link carries again, and has held for 10 s");
    assert_eq!(of_d.closed_unix_ms, None, "its cable is still out");
}

#[test]
fn a_link_that_goes_again_before_it_has_held_is_not_said_to_carry() {
    let (mut kit, sessions, _) = gangs_on(&[60, 60]);
    let effects = pull_cable(&mut kit, "b", false);
    let _ = obey(&mut kit, &effects, ExitClass::Killed);
    let _ = pull_cable(&mut kit, "b", true);
    let _ = kit.wait(3_000, &sessions);
    let mut effects = pull_cable(&mut kit, "b", false);
    effects.extend(kit.wait(1_000, &sessions));
    assert_eq!(messages(&effects, "link-settled"), [""; 0]);
    assert_eq!(link_incidents(&kit)[0].closed_unix_ms, None);
}

#[test]
fn each_link_is_relied_on_again_when_it_has_held_for_its_own_time() {
    let (mut kit, sessions) = cluster(&[60, 60, 60]);
    let _ = kit.wait(1_000, &sessions);
    flap(&mut kit, "c", 1);
    flap(&mut kit, "b", 1);
    // That of b and c has failed twice.
    for node in ["a", "b", "c"] {
        assert_eq!(rulings(&kit, node, "link-unsettled"), 2, "at {node}");
    }
    let settled = |effects: &[Effect]| messages(effects, "link-settled");
    let again = |ends: &str, seconds: u64| {
        format!("the link of {ends} is relied on again: it has held for {seconds} s")
    };
    assert_eq!(settled(&kit.wait(10_000, &sessions)), [again("a and b", 10), again("a and c", 10)]);
    assert_eq!(rulings(&kit, "a", "link-unsettled"), 0);
    assert_eq!(settled(&kit.wait(10_000, &sessions)), [again("b and c", 19)]);
}

#[test]
fn a_plan_says_which_links_it_does_without() {
    let (mut kit, sessions, _) = gangs_on(&[60, 60]);
    let effects = pull_cable(&mut kit, "b", false);
    let _ = obey(&mut kit, &effects, ExitClass::Killed);
    let _ = pull_cable(&mut kit, "b", true);
    let _ = kit.wait(500, &sessions);
    let plan = kit.job(1).plan.clone().unwrap();
    let why = plan.reasons.iter().find(|reason| reason.rule == "link-unsettled").expect("why it waits");
    assert_eq!(why.text, "not over the link of a and b: it has failed, and must hold for 10 s first");
}

#[test]
fn no_way_up_is_taken_while_a_link_between_its_nodes_is_to_hold() {
    let (mut kit, sessions) = cluster(&[100; 3]);
    let mut effects = kit.tell(Event::JobAccepted(asked(Mode::Pipeline)));
    effects.extend(kit.wait(2_100, &sessions));
    assert_eq!(start_all(&mut kit, &effects).len(), 2);
    let mut effects = pull_cable(&mut kit, "b", false);
    effects.extend(pull_cable(&mut kit, "c", false));
    effects.extend(obey(&mut kit, &effects, ExitClass::Killed));
    assert_eq!(start_all(&mut kit, &effects).len(), 3, "each alone");
    let _ = pull_cable(&mut kit, "c", true);
    let _ = pull_cable(&mut kit, "b", true);
    flap(&mut kit, "b", 2);
    let effects = kit.wait(75_000, &sessions);
    assert_eq!(stopped(&effects), [], "a and c could be a pipeline for a minute, but b was not steady yet");
    assert!(events(&kit.wait(30_000, &sessions)).contains(&"climbing"));
}

#[test]
fn links_to_nodes_that_a_job_does_not_use_hold_nothing_up() {
    let (mut kit, sessions) = pipeline_between_drained_nodes();
    let effects = pull_cable(&mut kit, "c", false);
    let effects = obey(&mut kit, &effects, ExitClass::Killed);
    assert_eq!(start_all(&mut kit, &effects).len(), 2);
    let _ = pull_cable(&mut kit, "c", true);
    flap(&mut kit, "a", 5);
    flap(&mut kit, "d", 5);
    let effects = kit.wait(75_000, &sessions);
    assert!(events(&effects).contains(&"climbing"), "the link of b and c has held");

    for outsider in ["a", "d"] {
        let (mut kit, _) = pipeline_between_drained_nodes();
        flap(&mut kit, outsider, 1);
        let effects = pull_cable(&mut kit, "c", false);
        let effects = obey(&mut kit, &effects, ExitClass::Killed);
        assert_eq!(started(&effects).len(), 2, "nothing between b and c is about to be back: {outsider}");
    }
}

#[test]
fn the_interface_that_went_is_named_though_others_of_the_node_carry() {
    let (mut kit, _) = cluster(&[60, 60]);
    let other = |address: &str| Interface {
        name: "en0".to_owned(),
        usable: true,
        loopback: false,
        addresses: vec![address.to_owned()],
    };
    for (node, address) in [("a", "192.168.1.1/24"), ("b", "192.168.1.2/24")] {
        kit.machines.get_mut(node).unwrap().interfaces.push(other(address));
        assert_eq!(events(&pull_cable(&mut kit, node, true)), [""; 0], "gangs may not use it");
    }
    let mut facts = kit.machines["b"].clone();
    facts.interfaces[0].usable = false;
    let effects = kit.observe("b", facts);
    assert_eq!(messages(&effects, "link-down"), ["the link of a and b is down: en5 on b carries nothing"]);
}

#[test]
fn nodes_have_met_when_every_rank_is_ready_and_not_before() {
    let (mut kit, sessions) = cluster(&[60, 60]);
    let mut effects = kit.tell(Event::JobAccepted(record(1, 100)));
    effects.extend(kit.wait(2_100, &sessions));
    let ranks = started(&effects);
    let _ = kit.exit("a", ranks[0].1, ExitClass::Apart);
    let _ = kit.exit("b", ranks[1].1, ExitClass::Orderly);
    let ranks = started(&kit.wait(5_000, &sessions));
    let _ = kit.ready("a", ranks[0].1);
    assert_eq!(rulings(&kit, "a", "did-not-meet"), 1);
    let _ = kit.ready("b", ranks[1].1);
    assert_eq!(rulings(&kit, "a", "did-not-meet"), 0);
}

/// Told at both ends and in the plan, with the time that is left; a pair that has met since is told of no more.
#[test]
fn pairs_that_did_not_meet_are_named_with_how_long_others_are_preferred() {
    let (mut kit, sessions) = cluster(&[60, 60, 60]);
    let mut effects = kit.tell(Event::JobAccepted(record(1, 100)));
    effects.extend(kit.wait(2_100, &sessions));
    let told = |kit: &Kit, node: &str| -> Vec<String> {
        let rulings = kit.machine.explain_node(kit.now, &NodeId::from(node)).unwrap();
        let unmet = rulings.into_iter().filter(|ruling| ruling.rule == "did-not-meet");
        unmet.map(|ruling| ruling.sentence).collect()
    };
    let planned = |kit: &Kit| -> Vec<String> {
        let reasons = kit.job(1).plan.clone().unwrap().reasons;
        reasons.into_iter().filter(|reason| reason.rule == "did-not-meet").map(|reason| reason.text).collect()
    };
    let apart = |kit: &mut Kit, effects: &[Effect]| {
        let ranks = started(effects);
        let _ = kit.exit(&ranks[0].0, ranks[0].1, ExitClass::Apart);
        let _ = kit.exit(&ranks[1].0, ranks[1].1, ExitClass::Orderly);
    };
    apart(&mut kit, &effects);
    let of = |other: &str, time: &str| {
        format!("ranks here and on {other} did not find one another: for {time} other nodes are preferred")
    };
    assert_eq!(told(&kit, "a"), [of("b", "10 min")]);
    assert_eq!(told(&kit, "b"), [of("a", "10 min")]);
    assert_eq!(told(&kit, "c"), [""; 0]);
    let effects = kit.wait(10_000, &sessions);
    assert_eq!(told(&kit, "a"), [of("b", "9 min")]);
    let not_over = |pair: &str| {
        format!(
            "not over the link of {pair}: their ranks did not find one another, and it is left alone for 10 minutes"
        )
    };
    assert_eq!(planned(&kit), [not_over("a and b")]);

    // Neither do the other pairs, so that the first is tried again, and does.
    apart(&mut kit, &effects);
    let effects = kit.wait(10_000, &sessions);
    apart(&mut kit, &effects);
    let effects = kit.wait(10_000, &sessions);
    assert_eq!(start_all(&mut kit, &effects).len(), 2);
    assert_eq!(told(&kit, "a"), [of("c", "9 min")]);
}

#[test]
fn the_incident_of_a_link_stays_open_while_its_job_goes_on_without_it() {
    let (mut kit, sessions) = fallen();
    assert_eq!(link_incidents(&kit)[0].closed_unix_ms, None, "the new workers did not mend it");
    let _ = kit.wait(10_100, &sessions);
    assert!(link_incidents(&kit)[0].closed_unix_ms.is_some());
}
