//! Macs on Thunderbolt cables: over RDMA where it works, over TCP where only that does, and RDMA is left alone where a gang over it was
//! lost.

use std::sync::Arc;

use super::{
    gangs::Sessions,
    kit::*,
    ladder::{asked, obey, start_all},
};
use crate::{
    model::{Backend, Fault, JobId, LinkKind, Mode, NodeId, Port, PortPeer, RestartCause, WorkerKey},
    planner::{Interface, Network},
    recovery::*,
};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// A Mac on a network for everything, and on a cable with each of the others.
fn mac(place: usize, count: usize, budget_gb: u64) -> NodeFacts {
    let mut facts = machine(&format!("192.168.1.{}", place + 1), budget_gb);
    facts.interfaces[0].name = "en0".to_owned();
    facts.thunderbolt.rdma_enabled = Some(true);
    for (receptacle, other) in (1..).zip((0..count).filter(|other| *other != place)) {
        let (low, high) = (place.min(other), place.max(other));
        let interface = format!("en{}", 3 + receptacle);
        facts.interfaces.push(Interface {
            name: interface.clone(),
            usable: true,
            loopback: false,
            addresses: vec![format!("10.99.{}.{}/30", low * 10 + high, if place == low { 1 } else { 2 })],
        });
        facts.thunderbolt.ports.push(Port {
            receptacle,
            interface: Some(interface.clone()),
            domain_uuid: Some(format!("{place}>{other}")),
            plugged: Some(true),
            speed_bits_per_s: Some(80_000_000_000),
            thunderbolt_5: Some(true),
            peers: vec![PortPeer {
                domain_uuid: format!("{other}>{place}"),
                hardware_model: None,
                rdma: Some(true),
                behind_device: false,
            }],
            bridged: Some(false),
            bridge: None,
            rdma_device: Some(format!("rdma_{interface}")),
            rdma_listed: Some(true),
            rdma_active: Some(true),
        });
    }
    facts
}

/// Macs of so many gigabytes, which all have the large model, each cabled to every other. No network is allowed.
fn macs(budgets_gb: &[u64]) -> (Kit, Sessions) {
    macs_in(Kit::new(), budgets_gb)
}

/// The same in a kit that is set up already.
pub(super) fn macs_in(mut kit: Kit, budgets_gb: &[u64]) -> (Kit, Sessions) {
    let mut sessions = Vec::new();
    for (place, name) in NAMES.into_iter().take(budgets_gb.len()).enumerate() {
        kit.found.insert(name.to_owned(), large_model());
        kit.machines.insert(name.to_owned(), mac(place, budgets_gb.len(), budgets_gb[place]));
        sessions.push((name, kit.connect(name).0));
    }
    (kit, sessions)
}

/// What is told of a Mac after a change to it.
pub(super) fn change(kit: &mut Kit, node: &str, how: impl FnOnce(&mut NodeFacts)) -> Vec<Effect> {
    how(kit.machines.get_mut(node).unwrap());
    let facts = kit.machines[node].clone();
    kit.observe(node, facts)
}

/// Gangs may use this network beside the cables.
fn list(kit: &mut Kit, network: &str) {
    let gang_networks = vec![Network::parse(network).unwrap()];
    let _ = kit.tell(Event::PolicyChanged(Policy { gang_networks, ..Policy::default() }));
}

fn set_rdma(kit: &mut Kit, node: &str, is_active: bool) -> Vec<Effect> {
    change(kit, node, |facts| facts.thunderbolt.ports[0].rdma_active = Some(is_active))
}

/// The first cable of a Mac, in or out.
pub(super) fn set_cable(kit: &mut Kit, node: &str, other: &str, is_in: bool) -> Vec<Effect> {
    let mut effects = Vec::new();
    for of in [node, other] {
        effects.extend(change(kit, of, |facts| {
            facts.interfaces[1].usable = is_in;
            let port = &mut facts.thunderbolt.ports[0];
            port.plugged = Some(is_in);
            port.rdma_active = Some(is_in);
            let peer = if of == "a" { "1>0" } else { "0>1" };
            port.peers.clear();
            port.peers
                .extend(is_in.then(|| PortPeer { domain_uuid: peer.to_owned(), ..PortPeer::default() }));
        }));
    }
    effects
}

pub(super) fn launches(effects: &[Effect]) -> Vec<Arc<GangLaunch>> {
    let of = |effect: &Effect| match effect {
        Effect::Send { command: Command::StartWorker { gang, worker, .. }, .. } if worker.rank == 0 => {
            gang.clone()
        }
        _ => None,
    };
    effects.iter().filter_map(of).collect()
}

/// A job of which ranks are at work, and how they were launched.
fn at_work(kit: &mut Kit, sessions: &Sessions) -> (Arc<GangLaunch>, Vec<(String, WorkerKey)>) {
    let mut effects = kit.tell(Event::JobAccepted(record(1, 10_000)));
    effects.extend(kit.wait(2_100, sessions));
    let ranks = start_all(kit, &effects);
    (launches(&effects).remove(0), ranks)
}

/// The next gang, and how it was launched.
fn next_gang(
    kit: &mut Kit,
    sessions: &Sessions,
    ms: u64,
) -> (Option<Arc<GangLaunch>>, Vec<(String, WorkerKey)>) {
    let effects = kit.wait(ms, sessions);
    (launches(&effects).pop(), start_all(kit, &effects))
}

pub(super) fn why(kit: &Kit, rule: &str) -> Vec<String> {
    let reasons = kit.job(1).plan.clone().unwrap().reasons;
    reasons.into_iter().filter(|reason| reason.rule == rule).map(|reason| reason.text).collect()
}

pub(super) fn link_kind(kit: &Kit) -> Option<LinkKind> {
    kit.job(1).rung().and_then(|rung| rung.link_kind)
}

#[test]
fn a_cable_is_used_by_rdma_without_being_told_to() {
    let (mut kit, sessions) = macs(&[60, 60]);
    let (gang, ranks) = at_work(&mut kit, &sessions);
    assert_eq!((gang.backend, ranks.len(), link_kind(&kit)), (Backend::Jaccl, 2, Some(LinkKind::Rdma)));
    let devices: Vec<_> = gang.ranks.iter().map(|rank| rank.rdma_devices.clone()).collect();
    let device = || Some("rdma_en4".to_owned());
    assert_eq!(devices, [vec![None, device()], vec![device(), None]]);
    assert!(gang.ranks.iter().all(|rank| rank.ring_address.is_none()), "that is for TCP");
    // Over the network, and rows over the cable.
    assert_eq!(gang.coordinator.unwrap().ip().to_string(), "192.168.1.1");
    assert_eq!(gang.ranks[0].control_addresses[0].ip().to_string(), "10.99.1.1");
    assert_ne!(gang.coordinator.unwrap().port(), gang.ranks[0].control_addresses[0].port());
}

#[test]
fn three_macs_each_cabled_to_both_others_are_a_mesh_and_without_one_cable_a_chain_that_is_no_gang() {
    let (mut kit, sessions) = macs(&[35, 35, 35]);
    let (gang, ranks) = at_work(&mut kit, &sessions);
    assert_eq!((gang.backend, ranks.len()), (Backend::Jaccl, 3));
    let effects = set_cable(&mut kit, "a", "b", false);
    assert_eq!(stopped(&effects).len(), 3, "the ring is broken");
    let _ = obey(&mut kit, &effects, ExitClass::Killed);
    let _ = kit.wait(5_000, &sessions);
    assert!(
        why(&kit, "refused").iter().any(|why| why.contains("no allowed links join")),
        "{:#?}",
        kit.job(1).plan
    );
}

#[test]
fn what_rdma_lacks_is_told_and_the_cable_is_used_without_it() {
    type Change = fn(&mut NodeFacts);
    let no_meeting = "not by RDMA: its ranks arrange how they talk over a private network apart from the cables (IPv4), and there is \
                      none that all of these nodes are on with an address of their own";
    let rows: [(Change, &str, &str); 5] = [
        (
            |facts| facts.thunderbolt.rdma_enabled = Some(false),
            "cable",
            "not by RDMA over the cable of a and b: RDMA is off on b",
        ),
        (
            |facts| facts.thunderbolt.ports[0].rdma_active = Some(false),
            "cable",
            "not by RDMA over the cable of a and b: rdma_en4 of b is not active",
        ),
        (
            |facts| facts.interfaces[0].addresses = vec!["192.168.2.1/24".to_owned()],
            "no-meeting-place",
            no_meeting,
        ),
        // That of the other one.
        (
            |facts| facts.interfaces[0].addresses = vec!["192.168.1.1/24".to_owned()],
            "no-meeting-place",
            no_meeting,
        ),
        (
            |facts| facts.boot = BootFacts { rdma_starts: 5, most_rdma_starts: 5, ..BootFacts::default() },
            "rdma-starts",
            "not by RDMA on b: the starts that a boot has for it are used up",
        ),
    ];
    for (index, (how, rule, told)) in rows.into_iter().enumerate() {
        let (mut kit, sessions) = macs(&[60, 60]);
        let _ = change(&mut kit, "b", how);
        let (gang, _) = at_work(&mut kit, &sessions);
        assert_eq!(
            (gang.backend, link_kind(&kit)),
            (Backend::Ring, Some(LinkKind::Thunderbolt)),
            "row {index}"
        );
        assert_eq!(gang.coordinator, None);
        assert_eq!(why(&kit, rule), [told], "row {index}: {:#?}", kit.job(1).plan);
        let ring: Vec<String> =
            gang.ranks.iter().map(|rank| rank.ring_address.unwrap().ip().to_string()).collect();
        assert_eq!(ring, ["10.99.1.1", "10.99.1.2"], "row {index}");
    }
}

#[test]
fn whoever_does_not_want_rdma_gets_none() {
    let (mut kit, sessions) = macs(&[60, 60]);
    let _ = kit.tell(Event::PolicyChanged(Policy { gang_rdma: false, ..Policy::default() }));
    assert_eq!(at_work(&mut kit, &sessions).0.backend, Backend::Ring);
    assert_eq!(
        why(&kit, "cable"),
        ["not by RDMA over the cable of a and b: gangs.rdma of the configuration says no"]
    );
}

#[test]
fn where_rdma_goes_the_gang_goes_on_by_tcp_and_comes_back_when_it_has_held() {
    let (mut kit, sessions) = macs(&[60, 60]);
    let _ = at_work(&mut kit, &sessions);
    let effects = set_rdma(&mut kit, "b", false);
    assert_eq!(stopped(&effects).len(), 2);
    let incident = kit.machine.incidents().next().unwrap().clone();
    assert_eq!(incident.fault, Fault::LinkDown);
    assert_eq!(incident.summary, "RDMA over the cable of a and b is down: rdma_en4 of b is not active");
    let _ = obey(&mut kit, &effects, ExitClass::Killed);
    let (gang, _) = next_gang(&mut kit, &sessions, 3_000);
    assert_eq!(gang.unwrap().backend, Backend::Ring);
    assert_eq!(link_kind(&kit), Some(LinkKind::Thunderbolt));

    let _ = set_rdma(&mut kit, "b", true);
    assert_eq!(stopped(&kit.wait(60_000, &sessions)), []);
    let effects = kit.wait(15_000, &sessions);
    assert!(events(&effects).contains(&"climbing"), "{:?}", events(&effects));
    let _ = obey(&mut kit, &effects, ExitClass::Orderly);
    let (gang, _) = next_gang(&mut kit, &sessions, 5_000);
    assert_eq!(gang.unwrap().backend, Backend::Jaccl);
    assert!(
        why(&kit, "climbed")[0]
            .contains("from a pipeline over ring (Thunderbolt) to a pipeline over jaccl (RDMA)")
    );
}

/// It takes TCP with it, and is told once.
#[test]
fn a_cable_that_is_out_is_one_incident() {
    let (mut kit, sessions) = macs(&[60, 60]);
    let _ = at_work(&mut kit, &sessions);
    // The end that says so first is enough.
    let effects = set_cable(&mut kit, "a", "b", false);
    assert_eq!(stopped(&effects).len(), 2);
    let incidents: Vec<String> = kit.machine.incidents().map(|incident| incident.summary.clone()).collect();
    assert_eq!(incidents, ["the cable of a and b is down: en4 of a is down or without carrier"]);
    assert_eq!(
        events(&effects).iter().filter(|kind| kind.contains("link")).count(),
        1,
        "{:?}",
        events(&effects)
    );
    let _ = obey(&mut kit, &effects, ExitClass::Killed);
    let _ = kit.wait(5_000, &sessions);
    assert_eq!(started(&kit.wait(1_000, &sessions)), [], "there is no other way");
    let _ = set_cable(&mut kit, "a", "b", true);
    let (gang, _) = next_gang(&mut kit, &sessions, 20_000);
    assert_eq!(gang.unwrap().backend, Backend::Jaccl, "it has held");
}

#[test]
fn a_cable_in_a_network_that_is_listed_is_no_second_way() {
    let (mut kit, _) = macs(&[60, 60]);
    list(&mut kit, "10.99.0.0/16");
    let kinds: Vec<LinkKind> = kit.machine.links.iter().map(|link| link.kind).collect();
    assert_eq!(kinds, [LinkKind::Rdma, LinkKind::Thunderbolt]);
}

/// Its rows go over a network, because TCP over the cable has failed too often of late.
#[test]
fn a_gang_by_rdma_ends_with_its_cable_wherever_its_rows_go() {
    let (mut kit, sessions) = macs(&[60, 60]);
    list(&mut kit, "192.168.1.0/24");
    let _ = change(&mut kit, "b", |facts| facts.thunderbolt.rdma_enabled = Some(false));
    for _ in 0..5 {
        let _ = set_cable(&mut kit, "a", "b", false);
        let _ = set_cable(&mut kit, "a", "b", true);
    }
    let _ = change(&mut kit, "b", |facts| facts.thunderbolt.rdma_enabled = Some(true));
    // RDMA has failed once.
    let _ = kit.wait(20_000, &sessions);
    let (gang, _) = at_work(&mut kit, &sessions);
    let control = gang.ranks[1].control_addresses[0].ip().to_string();
    assert_eq!((gang.backend, control.as_str()), (Backend::Jaccl, "192.168.1.1"));
    assert_eq!(stopped(&set_cable(&mut kit, "a", "b", false)).len(), 2);
}

#[test]
fn a_bridge_that_takes_the_port_takes_rdma_and_its_address() {
    let (mut kit, sessions) = macs(&[60, 60]);
    let _ = at_work(&mut kit, &sessions);
    let effects = change(&mut kit, "b", |facts| {
        facts.interfaces[1].addresses.clear();
        facts.thunderbolt.ports[0].bridged = Some(true);
        facts.thunderbolt.ports[0].bridge = Some("bridge0".to_owned());
    });
    assert_eq!(stopped(&effects).len(), 2);
    let summary = &kit.machine.incidents().next().unwrap().summary;
    assert_eq!(
        summary,
        "the cable of a and b is down: bridge0 of b has taken en4, and carries nothing itself"
    );
}

#[test]
fn a_cable_that_comes_disturbs_no_gang_over_a_network_and_is_climbed_to() {
    let (mut kit, sessions) = macs(&[60, 60]);
    list(&mut kit, "192.168.1.0/24");
    let _ = set_cable(&mut kit, "a", "b", false);
    let (gang, _) = at_work(&mut kit, &sessions);
    assert_eq!((gang.backend, link_kind(&kit)), (Backend::Ring, Some(LinkKind::Network)));
    let effects = set_cable(&mut kit, "a", "b", true);
    assert_eq!(stopped(&effects), []);
    assert_eq!(stopped(&kit.wait(55_000, &sessions)), []);
    let effects = kit.wait(40_000, &sessions);
    assert!(events(&effects).contains(&"climbing"));
    let _ = obey(&mut kit, &effects, ExitClass::Orderly);
    assert_eq!(next_gang(&mut kit, &sessions, 5_000).0.unwrap().backend, Backend::Jaccl);
    // And when it is out again, the network is there at once.
    let effects = set_cable(&mut kit, "a", "b", false);
    let _ = obey(&mut kit, &effects, ExitClass::Killed);
    let (gang, _) = next_gang(&mut kit, &sessions, 3_000);
    assert_eq!((gang.unwrap().backend, link_kind(&kit)), (Backend::Ring, Some(LinkKind::Network)));
}

/// Whatever a wedged port does to a gang, the next one goes by TCP over the same cable; after a while RDMA is tried once more.
#[test]
fn rdma_over_which_a_gang_was_lost_is_left_alone() {
    use ExitClass::{Apart, CanaryFailed, Crashed, LinkFault, SpawnFailed};
    for class in [LinkFault, Apart, Crashed, CanaryFailed, SpawnFailed] {
        let (mut kit, sessions) = macs(&[60, 60]);
        let (_, ranks) = at_work(&mut kit, &sessions);
        let effects = kit.exit("a", ranks[0].1, class);
        let _ = obey(&mut kit, &effects, ExitClass::Killed);
        let of_a = kit.machine.explain_node(kit.now, &NodeId::from("a")).unwrap();
        assert!(of_a.iter().all(|ruling| ruling.rule != "did-not-meet"), "by TCP they may yet: {class:?}");
        let (gang, _) = next_gang(&mut kit, &sessions, 5_000);
        assert_eq!(gang.unwrap().backend, Backend::Ring, "after {class:?}");
        let _ = kit.wait(100, &sessions);
        let told = why(&kit, "link-unsettled");
        assert!(
            told[0].starts_with(
                "not by RDMA over the cable of a and b: a gang was lost there, and it is left alone for "
            ),
            "{told:?}"
        );
    }
}

/// One that lost another waits for what that one says; one that breaks as it is told to end says nothing of RDMA either.
#[test]
fn rdma_is_not_left_alone_for_what_another_rank_explains() {
    for class in [ExitClass::GpuFault, ExitClass::OutOfMemory, ExitClass::Crashed] {
        let (mut kit, sessions) = macs(&[60, 60]);
        let (_, ranks) = at_work(&mut kit, &sessions);
        let effects = kit.exit("a", ranks[0].1, ExitClass::LinkFault);
        let _ = obey(&mut kit, &effects, class);
        let (gang, _) = next_gang(&mut kit, &sessions, 10_000);
        assert_eq!(gang.unwrap().backend, Backend::Jaccl, "after {class:?}");
    }
}

#[test]
fn rdma_that_is_left_alone_keeps_no_job_from_a_pipeline_by_tcp() {
    let (mut kit, sessions) = macs(&[100, 100]);
    let mut effects = kit.tell(Event::JobAccepted(asked(Mode::Pipeline)));
    effects.extend(kit.wait(2_100, &sessions));
    let ranks = start_all(&mut kit, &effects);
    let effects = kit.exit("a", ranks[0].1, ExitClass::LinkFault);
    let _ = obey(&mut kit, &effects, ExitClass::Killed);
    assert_eq!(next_gang(&mut kit, &sessions, 5_000).0.unwrap().backend, Backend::Ring);
    let effects = set_cable(&mut kit, "a", "b", false);
    let effects = obey(&mut kit, &effects, ExitClass::Killed);
    assert_eq!(start_all(&mut kit, &effects).len(), 2, "each alone");
    let _ = set_cable(&mut kit, "a", "b", true);
    assert!(events(&kit.wait(75_000, &sessions)).contains(&"climbing"));
}

/// How a rank ends that was told to says nothing of RDMA.
#[test]
fn the_end_of_a_gang_that_was_asked_for_is_no_fault_of_rdma() {
    let (mut kit, sessions) = macs(&[60, 60]);
    let _ = at_work(&mut kit, &sessions);
    let effects = set_rdma(&mut kit, "b", false);
    let _ = obey(&mut kit, &effects, ExitClass::Crashed);
    // It holds from when it is back, and not from when the cable was there.
    let _ = kit.wait(60_000, &sessions);
    let _ = set_rdma(&mut kit, "b", true);
    let _ = kit.wait(500, &sessions);
    let of_a = kit.machine.explain_node(kit.now, &NodeId::from("a")).unwrap();
    let unsettled: Vec<&str> = of_a
        .iter()
        .filter(|ruling| ruling.rule == "link-unsettled")
        .map(|ruling| ruling.sentence.as_str())
        .collect();
    assert_eq!(
        unsettled,
        ["RDMA over the cable to b has failed, and must hold for 9 s more before it is relied on"]
    );
}

/// Ranks over RDMA of which one is gone wait for it for ever (FIELD-NOTES 2).
#[test]
fn so_is_rdma_over_which_a_gang_hung() {
    let (mut kit, sessions) = macs(&[60, 60]);
    let _ = at_work(&mut kit, &sessions);
    let effects = kit.wait(121_000, &sessions);
    assert!(events(&effects).contains(&"worker-silent"));
    let _ = obey(&mut kit, &effects, ExitClass::Killed);
    assert_eq!(next_gang(&mut kit, &sessions, 5_000).0.unwrap().backend, Backend::Ring);
}

/// It mends nothing that somebody pulls the cable and plugs it in.
#[test]
fn rdma_that_is_left_alone_stays_so_when_its_cable_comes_back() {
    let (mut kit, sessions) = macs(&[60, 60]);
    let (_, ranks) = at_work(&mut kit, &sessions);
    let effects = kit.exit("a", ranks[0].1, ExitClass::LinkFault);
    let _ = obey(&mut kit, &effects, ExitClass::Killed);
    assert_eq!(next_gang(&mut kit, &sessions, 5_000).0.unwrap().backend, Backend::Ring);
    for _ in 0..2 {
        let effects = set_cable(&mut kit, "a", "b", false);
        let _ = obey(&mut kit, &effects, ExitClass::Killed);
        let _ = set_cable(&mut kit, "a", "b", true);
        let (gang, _) = next_gang(&mut kit, &sessions, 60_000);
        assert_eq!(gang.unwrap().backend, Backend::Ring);
    }
    let told = why(&kit, "link-unsettled");
    assert!(
        told.last().unwrap().ends_with("a gang was lost there, and it is left alone for 57 min"),
        "{told:?}"
    );
}

#[test]
fn rdma_is_tried_again_when_it_has_been_left_alone_and_less_often_each_time() {
    let (mut kit, sessions) = macs(&[60, 60]);
    // No step is taken here, so an hour would be a hang.
    let settle_ms = 60_000;
    let policy = Policy { rdma_settle_ms: settle_ms, step_budget_ms: u64::MAX, ..Policy::default() };
    let _ = kit.tell(Event::PolicyChanged(policy));
    let (_, mut ranks) = at_work(&mut kit, &sessions);
    let mut waited_ms = Vec::new();
    for _ in 0..3 {
        let effects = kit.exit("a", ranks[0].1, ExitClass::LinkFault);
        let _ = obey(&mut kit, &effects, ExitClass::Killed);
        let (gang, _) = next_gang(&mut kit, &sessions, 5_000);
        assert_eq!(gang.unwrap().backend, Backend::Ring);
        let since = kit.now.mono_ms;
        let effects = loop {
            let effects = kit.wait(1_000, &sessions);
            if events(&effects).contains(&"climbing") {
                break effects;
            }
            assert!(kit.now.mono_ms - since < 20 * settle_ms, "it is never tried again");
        };
        waited_ms.push(kit.now.mono_ms - since);
        let _ = obey(&mut kit, &effects, ExitClass::Orderly);
        let (gang, started) = next_gang(&mut kit, &sessions, 5_000);
        assert_eq!(gang.unwrap().backend, Backend::Jaccl);
        ranks = started;
    }
    assert!(waited_ms[0] > settle_ms && waited_ms.is_sorted(), "{waited_ms:?}");
}

/// The plan of workers that are at work is as old as they are.
#[test]
fn what_a_job_below_its_rung_waits_for_is_explained() {
    let (mut kit, sessions) = macs(&[100, 100]);
    let mut effects = kit.tell(Event::JobAccepted(asked(Mode::Pipeline)));
    effects.extend(kit.wait(2_100, &sessions));
    assert_eq!(start_all(&mut kit, &effects).len(), 2);
    let effects = set_cable(&mut kit, "a", "b", false);
    let effects = obey(&mut kit, &effects, ExitClass::Killed);
    assert_eq!(start_all(&mut kit, &effects).len(), 2, "each alone");
    let _ = set_cable(&mut kit, "a", "b", true);
    let _ = change(&mut kit, "b", |facts| facts.interfaces[1].addresses.clear());
    let _ = kit.wait(1_000, &sessions);
    let rulings = kit.machine.explain_job(kit.now, JobId(1)).unwrap();
    let told: Vec<&str> = rulings
        .iter()
        .filter(|ruling| ruling.rule == "cable" && !ruling.holds)
        .map(|ruling| ruling.sentence.as_str())
        .collect();
    let lacks = "not over the cable of a and b: en4 of b has no IPv4 address of its own yet";
    assert_eq!(told, [lacks]);
    for node in ["a", "b"] {
        let rulings = kit.machine.explain_node(kit.now, &NodeId::from(node)).unwrap();
        let told = rulings.iter().find(|ruling| ruling.rule == "cable").expect("what its cable lacks");
        assert_eq!((told.holds, told.sentence.as_str()), (false, lacks));
    }
}

/// The plan of a gang is as old as its workers; what its cable lacks may be another thing by now, or nothing.
#[test]
fn what_a_cable_lacks_now_is_explained_and_not_what_it_lacked_when_the_gang_started() {
    let (mut kit, sessions) = macs(&[60, 60]);
    let _ = change(&mut kit, "b", |facts| facts.thunderbolt.rdma_enabled = Some(false));
    let _ = at_work(&mut kit, &sessions);
    let told = |kit: &Kit| -> Vec<String> {
        let rulings = kit.machine.explain_job(kit.now, JobId(1)).unwrap();
        let of_links = rulings.into_iter().filter(|ruling| ruling.sentence.starts_with("not by RDMA"));
        of_links.map(|ruling| ruling.sentence).collect()
    };
    let off = "not by RDMA over the cable of a and b: RDMA is off on b";
    assert_eq!(told(&kit), [off]);
    let _ = change(&mut kit, "b", |facts| {
        facts.thunderbolt.rdma_enabled = Some(true);
        facts.thunderbolt.ports[0].rdma_active = Some(false);
    });
    assert_eq!(why(&kit, "cable"), [off], "what was true when it started stays in its plan");
    assert_eq!(told(&kit), ["not by RDMA over the cable of a and b: rdma_en4 of b is not active"]);
    let _ = set_rdma(&mut kit, "b", true);
    assert_eq!(why(&kit, "cable"), [off]);
    assert_eq!(
        told(&kit),
        ["not by RDMA over the cable of a and b: it has failed, and must hold for 10 s first"],
        "it lacks nothing any more, and is to prove itself"
    );
}

/// What has nothing to do with RDMA is not held against it.
#[test]
fn memory_that_ran_out_is_no_fault_of_rdma() {
    for class in [ExitClass::OutOfMemory, ExitClass::GpuFault, ExitClass::Signalled, ExitClass::Leftover] {
        let (mut kit, sessions) = macs(&[60, 60]);
        let (_, ranks) = at_work(&mut kit, &sessions);
        let effects = kit.exit("a", ranks[0].1, class);
        let _ = obey(&mut kit, &effects, ExitClass::Killed);
        let (gang, _) = next_gang(&mut kit, &sessions, 5_000);
        assert_eq!(gang.map(|gang| gang.backend), Some(Backend::Jaccl), "after {class:?}");
    }
}

/// A machine that only lacks RDMA starts is restarted at leisure: where it does nothing, and a sharded job waits.
#[test]
fn a_mac_without_rdma_starts_is_restarted_when_it_is_idle_and_never_for_them_alone() {
    let used = BootFacts { rdma_starts: 5, most_rdma_starts: 5, ..BootFacts::default() };
    let causes = |effects: &[Effect]| -> Vec<RestartCause> {
        let of = |effect: &Effect| match effect {
            Effect::Send { command: Command::RestartMachine { cause, .. }, .. } => Some(*cause),
            _ => None,
        };
        effects.iter().filter_map(of).collect()
    };
    let told = |kit: &Kit| -> String {
        let rulings = kit.machine.explain_node(kit.now, &"a".into()).unwrap();
        rulings.into_iter().find(|ruling| ruling.rule == "restart").unwrap().sentence
    };
    // Whether b can take work, the mode that is asked for, whether RDMA is allowed, and whether a is restarted.
    for (b_works, mode, gang_rdma, is_restarted, why) in [
        (false, Mode::Pipeline, true, true, "about to go down"),
        (false, Mode::Pipeline, false, false, "no job waits that would use RDMA there now"),
        (false, Mode::Independent, true, false, "no job waits that would use RDMA there now"),
        (true, Mode::Pipeline, true, false, "something is at work there"),
    ] {
        let (mut kit, sessions) = macs(&[60, 60]);
        let policy = Policy { reboots: true, reboot_settle_ms: 10_000, gang_rdma, ..Policy::default() };
        let _ = kit.tell(Event::PolicyChanged(policy));
        let _ = change(&mut kit, "a", |facts| {
            facts.boot = used;
            facts.may_restart = MayRestart::Yes;
        });
        let _ = kit.tell(Event::Drain { node: "b".into(), drain: !b_works });
        let mut record = record(1, 100);
        record.spec.mode = Some(mode);
        let mut effects = kit.tell(Event::JobAccepted(record));
        effects.extend(kit.wait(20_000, &sessions));
        assert_eq!(started(&effects).len(), if b_works { 2 } else { 0 }, "{why}");
        let expected: &[RestartCause] = if is_restarted { &[RestartCause::RdmaStartsUsedUp] } else { &[] };
        assert_eq!(causes(&effects), expected, "{why}");
        assert!(told(&kit).contains(why), "{}", told(&kit));
    }
}
