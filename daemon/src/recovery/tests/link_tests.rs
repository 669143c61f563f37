//! Links are tried before a night relies on them.

use std::sync::Arc;

use super::{
    cables::{change, launches, link_kind, macs_in, set_cable, why},
    gangs::{Sessions, cluster_in},
    kit::*,
    ladder::{fallen_in, start_all},
};
use crate::{
    model::{Backend, Fault, Incident, LinkKind, LinkPace, NodeId, NodeRecord, Severity},
    recovery::{
        link_tests::{ANSWER_LIMIT_MS, MOST_NOT_MADE, MOST_WRITTEN},
        *,
    },
};

const FAST: LinkPace = LinkPace { round_trip_us: 30, bytes_per_s: 8_000_000_000 };

fn passed() -> LinkTestResult {
    LinkTestResult::Passed(FAST)
}

fn failed() -> LinkTestResult {
    LinkTestResult::Failed("rank 1 did not come".to_owned())
}

fn not_made() -> LinkTestResult {
    LinkTestResult::NotMade("the runtime is not ready".to_owned())
}

fn that_tries() -> Kit {
    let mut kit = Kit::new();
    kit.tests_links = true;
    kit
}

/// Nodes of so many gigabytes that can try their links, each cabled to every other.
fn macs(budgets_gb: &[u64]) -> (Kit, Sessions) {
    macs_in(that_tries(), budgets_gb)
}

/// The same two with TCP alone over their cable, and what has been begun with it.
fn without_rdma() -> (Kit, Sessions, Vec<Effect>) {
    let (mut kit, sessions) = macs(&[60, 60]);
    let effects = change(&mut kit, "b", |facts| facts.thunderbolt.rdma_enabled = Some(false));
    (kit, sessions, effects)
}

/// One end of a test that was begun.
#[derive(Clone, PartialEq, Debug)]
struct Try {
    request_id: u64,
    node: NodeId,
    session: SessionId,
    rank: u32,
    gang: Arc<GangLaunch>,
}

fn tries(effects: &[Effect]) -> Vec<Try> {
    let of = |effect: &Effect| match effect {
        Effect::Send { node, session, command: Command::TestLink { request_id, rank, gang, .. } } => {
            Some(Try {
                request_id: *request_id,
                node: node.clone(),
                session: *session,
                rank: *rank,
                gang: Arc::clone(gang),
            })
        }
        _ => None,
    };
    effects.iter().filter_map(of).collect()
}

fn answer(kit: &mut Kit, to: &Try, result: LinkTestResult) -> Vec<Effect> {
    let Try { request_id, node, session, .. } = to.clone();
    kit.tell(Event::LinkTested { node, session, request_id, result })
}

/// Both ends answer each test alike, and those that follow, until there are no more; what had happened by then.
fn answer_all(
    kit: &mut Kit,
    mut effects: Vec<Effect>,
    result: &dyn Fn(Backend) -> LinkTestResult,
) -> Vec<Effect> {
    let mut seen = Vec::new();
    while !effects.is_empty() {
        let next: Vec<Effect> =
            tries(&effects).iter().flat_map(|to| answer(kit, to, result(to.gang.backend))).collect();
        seen.append(&mut effects);
        effects = next;
    }
    seen
}

fn all_pass(kit: &mut Kit, sessions: &Sessions) {
    let effects = kit.wait(100, sessions);
    let _ = answer_all(kit, effects, &|_| passed());
}

fn submit(kit: &mut Kit) -> Vec<Effect> {
    kit.tell(Event::JobAccepted(record(1, 10_000)))
}

fn unproven(kit: &Kit) -> Vec<&Incident> {
    kit.machine.incidents().filter(|incident| incident.fault == Fault::LinkUnproven).collect()
}

fn record_of(effects: &[Effect], node: &str) -> NodeRecord {
    let of = |effect: &Effect| match effect {
        Effect::RecordNode(record) if record.id.as_str() == node => Some(record.clone()),
        _ => None,
    };
    effects.iter().rev().find_map(of).expect("the node is written down")
}

fn told<'a>(effects: &'a [Effect], kind: &str) -> Vec<(Severity, &'a str)> {
    let of = |effect: &'a Effect| match effect {
        Effect::Emit(draft) if draft.kind == kind => Some((draft.severity, draft.message.as_str())),
        _ => None,
    };
    effects.iter().filter_map(of).collect()
}

#[test]
fn no_job_is_planned_over_a_cable_that_was_not_tried() {
    let (mut kit, sessions) = macs(&[60, 60]);
    let mut effects = submit(&mut kit);
    effects.extend(kit.wait(20_000, &sessions));
    assert_eq!(launches(&effects).len(), 0);
    let begun = tries(&effects);
    let ends: Vec<(&str, u32)> = begun.iter().map(|end| (end.node.as_str(), end.rank)).collect();
    assert_eq!(ends, [("a", 0), ("b", 1)], "one at a time, and both ends at once");
    assert_eq!((begun[0].request_id, &begun[0].gang), (begun[1].request_id, &begun[1].gang));
    assert_eq!(
        why(&kit, "settling"),
        ["RDMA over the cable of a and b is tried before a job relies on it, which takes some seconds"]
    );

    // RDMA first, then TCP.
    assert_eq!(begun[0].gang.backend, Backend::Jaccl);
    assert_eq!(answer(&mut kit, &begun[0], passed()).len(), 0, "one end alone has not passed");
    let effects = answer(&mut kit, &begun[1], passed());
    let by_tcp = tries(&effects);
    assert_eq!((by_tcp.len(), by_tcp[0].gang.backend), (2, Backend::Ring));
    let effects: Vec<Effect> = by_tcp.iter().flat_map(|end| answer(&mut kit, end, passed())).collect();
    assert_eq!(
        told(&effects, "link-passed"),
        [(Severity::Info, "the cable of a and b has passed its test: 8.0 GB/s, 30 µs a sum")]
    );
    let effects = [effects, kit.wait(2_100, &sessions)].concat();
    assert_eq!(launches(&effects)[0].backend, Backend::Jaccl);
    assert_eq!(tries(&effects), [], "and none of it is tried again");
}

#[test]
fn two_ranks_are_told_where_they_meet() {
    let (mut kit, sessions) = macs(&[60, 60]);
    let begun = tries(&kit.wait(100, &sessions));
    let gang = &begun[0].gang;
    assert_eq!((gang.world_size, gang.ranks.len(), gang.rendezvous_timeout_ms), (2, 2, 30_000));
    assert_eq!(gang.coordinator.unwrap().ip().to_string(), "192.168.1.1");
    let devices: Vec<_> = gang.ranks.iter().map(|rank| rank.rdma_devices.clone()).collect();
    let device = || Some("rdma_en4".to_owned());
    assert_eq!(devices, [vec![None, device()], vec![device(), None]]);
    assert!(gang.ranks.iter().all(|rank| rank.ring_address.is_none()));

    let by_tcp = tries(&begun.iter().flat_map(|end| answer(&mut kit, end, passed())).collect::<Vec<_>>());
    let gang = &by_tcp[0].gang;
    let ring: Vec<String> =
        gang.ranks.iter().map(|rank| rank.ring_address.unwrap().ip().to_string()).collect();
    assert_eq!(ring, ["10.99.1.1", "10.99.1.2"]);
    let control: Vec<_> = gang.ranks.iter().map(|rank| rank.control_addresses.clone()).collect();
    assert_eq!((control[0][0].ip().to_string().as_str(), &control[0]), ("10.99.1.1", &control[1]));
    assert!(gang.coordinator.is_none() && gang.ranks.iter().all(|rank| rank.rdma_devices == [None, None]));
    let ports = [control[0][0].port(), gang.ranks[0].ring_address.unwrap().port()];
    assert_ne!(ports[0], ports[1]);
}

#[test]
fn rdma_that_does_not_pass_is_left_alone_and_the_cable_is_used_without_it() {
    let (mut kit, sessions) = macs(&[60, 60]);
    let effects = [submit(&mut kit), kit.wait(100, &sessions)].concat();
    let by_rdma_fails = |backend: Backend| if backend.is_rdma() { failed() } else { passed() };
    let effects = answer_all(&mut kit, effects, &by_rdma_fails);
    let [incident] = unproven(&kit)[..] else { panic!("{:?}", unproven(&kit)) };
    assert_eq!(incident.summary, "RDMA over the cable of a and b did not pass its test: rank 1 did not come");
    assert_eq!(incident.action, "no job runs over it before it has passed; it is tried again in 60 min");
    assert_eq!(told(&effects, "link-unproven").len(), 1);
    let effects = [effects, kit.wait(2_100, &sessions)].concat();
    assert_eq!(
        (launches(&effects)[0].backend, link_kind(&kit)),
        (Backend::Ring, Some(LinkKind::Thunderbolt))
    );
    let [told] = &why(&kit, "link-unsettled")[..] else { panic!("{:#?}", kit.job(1).plan) };
    let text = "not by RDMA over the cable of a and b: it did not pass its test, and is left alone for ";
    assert!(told.starts_with(text), "{told}");
    let _ = start_all(&mut kit, &effects);

    // Beside the gang, when it has been left alone for long enough; and then the job changes to it.
    assert_eq!(tries(&kit.wait(1_800_000, &sessions)), []);
    let mut effects = Vec::new();
    while tries(&effects).is_empty() {
        effects = kit.wait(10_000, &sessions);
    }
    let again = tries(&effects);
    assert_eq!((again.len(), again[0].gang.backend), (2, Backend::Jaccl));
    assert!(!events(&kit.wait(70_000, &sessions)).contains(&"climbing"));
    for end in &again {
        let _ = answer(&mut kit, end, passed());
    }
    assert_eq!(unproven(&kit)[0].outcome, "the link has passed its test");
}

#[test]
fn a_cable_that_does_not_pass_is_tried_again_after_it_has_held_and_ever_more_seldom() {
    let (mut kit, sessions, mut effects) = without_rdma();
    effects.extend(submit(&mut kit));
    let mut waited_s = Vec::new();
    for _ in 0..4 {
        let _ = answer_all(&mut kit, effects, &|_| failed());
        let since = kit.now.mono_ms;
        effects = Vec::new();
        while tries(&effects).is_empty() {
            effects = kit.wait(100, &sessions);
        }
        waited_s.push((kit.now.mono_ms - since) / 1_000);
    }
    assert_eq!(waited_s, [10, 19, 38, 71]);
    assert_eq!(unproven(&kit)[0].times, 4, "one incident of all");
    assert!(kit.job(1).workers.is_empty());
    let _ = answer_all(&mut kit, effects, &|_| passed());
    assert_eq!(unproven(&kit)[0].outcome, "the link has passed its test");
    let effects = kit.wait(2_100, &sessions);
    assert_eq!(launches(&effects)[0].backend, Backend::Ring);
}

#[test]
fn a_test_that_cannot_be_made_holds_a_job_up_a_few_times_and_no_longer() {
    let (mut kit, sessions, mut effects) = without_rdma();
    effects.extend(submit(&mut kit));
    for _ in 1..MOST_NOT_MADE {
        let seen = answer_all(&mut kit, effects, &|_| not_made());
        assert_eq!((launches(&seen).len(), told(&seen, "link-not-tried").len()), (0, 0));
        effects = kit.wait(5_000, &sessions);
        assert_eq!(tries(&effects).len(), 2, "after a pause");
    }
    let seen = answer_all(&mut kit, effects, &|_| not_made());
    let text = "the cable of a and b could not be tried 3 times in a row (a: the runtime is not ready): jobs do not wait for that any \
                more, and the next gang over it is its test";
    assert_eq!(told(&seen, "link-not-tried"), [(Severity::Warning, text)]);
    assert_eq!(unproven(&kit).len(), 0, "that says nothing of the cable");
    let effects = [seen, kit.wait(2_100, &sessions)].concat();
    assert_eq!(launches(&effects).len(), 1);
    // Beside a gang over it nothing is tried; once that stands, nothing need be.
    assert_eq!(tries(&kit.wait(700_000, &sessions)), []);
    let effects = start_all_of(&mut kit, &effects);
    assert!(record_of(&effects, "a").links[0].passed_in.is_some());

    // Without a job it is tried again at long intervals.
    let (mut kit, sessions, mut effects) = without_rdma();
    for _ in 0..MOST_NOT_MADE {
        let _ = answer_all(&mut kit, effects, &|_| not_made());
        effects = kit.wait(5_000, &sessions);
    }
    assert_eq!(tries(&effects), []);
    assert_eq!(tries(&kit.wait(590_000, &sessions)), []);
    assert_eq!(tries(&kit.wait(10_000, &sessions)).len(), 2);
}

fn start_all_of(kit: &mut Kit, effects: &[Effect]) -> Vec<Effect> {
    started(effects).into_iter().flat_map(|(node, worker)| kit.ready(&node, worker)).collect()
}

#[test]
fn answers_that_do_not_come_are_waited_for_within_a_bound() {
    let (mut kit, sessions) = macs(&[60, 60]);
    let begun = tries(&kit.wait(100, &sessions));
    let _ = answer(&mut kit, &begun[0], passed());
    assert_eq!(tries(&kit.wait(ANSWER_LIMIT_MS - 200, &sessions)), []);
    let effects = kit.wait(200, &sessions);
    assert_eq!(tries(&effects)[0].gang.backend, Backend::Ring, "the next one has its turn");
    assert_eq!(answer(&mut kit, &begun[1], passed()).len(), 0, "too late");
    let explained = kit.machine.explain_node(kit.now, &"a".into()).unwrap();
    let links = explained.iter().find(|ruling| ruling.rule == "links").unwrap();
    assert!(
        links.sentence.contains("(RDMA): it is to be tried; to b over en4 (cable): it is being tried"),
        "{}",
        links.sentence
    );
}

#[test]
fn only_the_answer_to_the_newest_test_over_the_connection_that_was_asked_counts() {
    let (mut kit, sessions) = macs(&[60, 60]);
    let begun = tries(&kit.wait(100, &sessions));
    let strangers = [
        Try { request_id: begun[0].request_id + 1, ..begun[0].clone() },
        Try { session: SessionId(99), ..begun[0].clone() },
        Try { node: "c".into(), ..begun[0].clone() },
    ];
    for of in &strangers {
        assert_eq!(answer(&mut kit, of, failed()).len(), 0);
    }
    assert_eq!(answer(&mut kit, &begun[1], passed()).len(), 0, "the other end has still not answered");

    // With the connection the answer is gone; that is no test that could not be made.
    for _ in 0..2 * MOST_NOT_MADE {
        let session = kit.connect("a").0;
        let alive: Sessions = vec![("a", session), sessions[1]];
        let effects = kit.wait(5_200, &alive);
        assert_eq!(tries(&effects).len(), 2);
        assert_eq!(told(&effects, "link-not-tried").len(), 0);
    }
}

#[test]
fn what_has_passed_is_remembered_for_the_boot_and_the_versions_it_passed_in() {
    let (mut kit, sessions) = macs(&[60, 60]);
    let effects = kit.wait(100, &sessions);
    let effects = answer_all(&mut kit, effects, &|_| passed());
    let of_a = record_of(&effects, "a");
    let of_b = NodeRecord { id: "b".into(), links: Vec::new(), ..of_a.clone() };
    let nodes = || vec![of_a.clone(), of_b.clone()];
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
            let mut next = that_tries();
            next.machines = kit.machines.clone();
            how(next.machines.get_mut(end).unwrap());
            let _ =
                next.tell(Event::Started { jobs: vec![], nodes: nodes(), repairs: vec![], remains: vec![] });
            let alive: Sessions = ["a", "b"].map(|name| (name, next.connect(name).0)).to_vec();
            let effects = next.wait(30_000, &alive);
            assert_eq!(tries(&effects).len(), begun, "row {index}, {end}");
        }
    }
}

#[test]
fn a_gang_that_stands_has_tried_its_links() {
    let (mut kit, sessions) = cluster_in(that_tries(), &[60, 60]);
    let mut effects = submit(&mut kit);
    effects.extend(kit.wait(2_100, &sessions));
    assert_eq!(tries(&effects), [], "a network is tried only before a job changes to it");
    let effects = start_all_of(&mut kit, &effects);
    let record = record_of(&effects, "a");
    assert_eq!((record.links.len(), record.links[0].kind), (1, LinkKind::Network));
    assert!(record.links[0].passed_in.is_some() && record.links[0].pace.is_none());
}

#[test]
fn workers_that_run_are_ended_for_a_better_way_only_when_its_links_have_passed() {
    let (mut kit, sessions) = fallen_in(that_tries());
    let effects = kit.wait(75_000, &sessions);
    assert_eq!(
        (stopped(&effects).len(), tries(&effects).len()),
        (0, 2),
        "the link has failed since it passed"
    );
    let _ = answer_all(&mut kit, effects, &|_| passed());
    let effects = kit.wait(200, &sessions);
    assert!(events(&effects).contains(&"climbing"));
    assert_eq!(stopped(&effects).len(), 2);

    let (mut kit, sessions) = fallen_in(that_tries());
    let effects = kit.wait(75_000, &sessions);
    let _ = answer_all(&mut kit, effects, &|_| failed());
    let effects = kit.wait(30_000, &sessions);
    assert_eq!(stopped(&effects), [], "they go on");
    assert!(unproven(&kit)[0].summary.starts_with("the link of a and b did not pass its test"));

    // Where nobody can try it, it is changed to as it was before.
    let (mut kit, sessions) = fallen_in(that_tries());
    let mut effects = kit.wait(75_000, &sessions);
    for _ in 0..MOST_NOT_MADE {
        assert_eq!((stopped(&effects).len(), tries(&effects).len()), (0, 2));
        let _ = answer_all(&mut kit, effects, &|_| not_made());
        effects = kit.wait(5_200, &sessions);
    }
    assert_eq!(stopped(&effects).len(), 2);
}

#[test]
fn a_node_has_one_test_at_a_time_and_the_cluster_a_few() {
    let (mut kit, _) = macs_in(Kit::new(), &[60, 60, 60, 60]);
    kit.tests_links = true;
    let (mut effects, mut sessions) = (Vec::new(), Sessions::new());
    for name in ["a", "b", "c", "d"] {
        let (session, of_node) = kit.connect(name);
        sessions.push((name, session));
        effects.extend(of_node);
    }
    effects.extend(kit.wait(100, &sessions));
    let mut under_way: Vec<Try> = Vec::new();
    let mut links = std::collections::BTreeSet::new();
    let mut most = 0;
    loop {
        for end in tries(&effects) {
            assert!(under_way.iter().all(|other| other.node != end.node), "{} has two", end.node);
            under_way.push(end);
        }
        most = most.max(under_way.len());
        if under_way.is_empty() {
            break;
        }
        let first = under_way.remove(0);
        let names: Vec<NodeId> = first.gang.ranks.iter().map(|rank| rank.node.clone()).collect();
        links.insert((names, first.gang.backend.is_rdma()));
        effects = answer(&mut kit, &first, passed());
        effects.extend(kit.wait(100, &sessions));
    }
    assert_eq!(
        (links.len(), most),
        (12, 4),
        "each of six cables by RDMA and by TCP, two pairs of four at once"
    );
}

#[test]
fn rdma_is_tried_only_where_that_leaves_a_start_for_the_gang() {
    for (used, backend) in [(0, Backend::Jaccl), (3, Backend::Jaccl), (4, Backend::Ring)] {
        for node in ["a", "b"] {
            let (mut kit, sessions) = macs(&[60, 60]);
            let _ = change(&mut kit, node, |facts| {
                facts.boot = BootFacts { rdma_starts: used, most_rdma_starts: 5, ..BootFacts::default() };
            });
            let effects = kit.wait(100, &sessions);
            assert_eq!(tries(&effects)[0].gang.backend, backend, "{used}");
            let effects = [answer_all(&mut kit, effects, &|_| passed()), submit(&mut kit)].concat();
            let effects = [effects, kit.wait(2_100, &sessions)].concat();
            assert_eq!(launches(&effects)[0].backend, Backend::Jaccl, "the last one is the gang's own");
        }
    }
}

#[test]
fn a_link_that_has_become_slow_is_told_of_and_used() {
    let (mut kit, sessions) = macs(&[60, 60]);
    all_pass(&mut kit, &sessions);
    kit.machines.get_mut("b").unwrap().boot_id = "boot-2".to_owned();
    let alive: Sessions = vec![sessions[0], ("b", kit.connect("b").0)];
    let effects = kit.wait(100, &alive);
    let slow = LinkPace { round_trip_us: 90, bytes_per_s: 900_000_000 };
    let effects = answer_all(&mut kit, effects, &|_| LinkTestResult::Passed(slow));
    let text = "RDMA over the cable of a and b has passed its test: 900 MB/s, 90 µs a sum; it was once 8.0 GB/s, 30 µs a sum: look at \
                the cable and at what else uses it";
    assert_eq!(told(&effects, "link-slow")[0], (Severity::Warning, text));
    let effects = [submit(&mut kit), kit.wait(2_100, &alive)].concat();
    assert_eq!(launches(&effects).len(), 1);
    let explained = kit.machine.explain_node(kit.now, &"a".into()).unwrap();
    let links = explained.iter().find(|ruling| ruling.rule == "links").unwrap();
    assert!(
        links.sentence.contains("(900 MB/s, 90 µs a sum), slower than it once was"),
        "{}",
        links.sentence
    );
}

#[test]
fn the_two_ends_together_have_one_verdict() {
    let rows: [(LinkTestResult, LinkTestResult, &str); 6] = [
        (passed(), passed(), "link-passed"),
        (passed(), failed(), "link-unproven"),
        (failed(), passed(), "link-unproven"),
        (failed(), failed(), "link-unproven"),
        // One that could not try left the other alone.
        (not_made(), failed(), ""),
        (failed(), not_made(), ""),
    ];
    for (of_a, of_b, kind) in rows {
        let (mut kit, sessions) = macs(&[60, 60]);
        let begun = tries(&kit.wait(100, &sessions));
        let _ = answer(&mut kit, &begun[0], of_a.clone());
        let effects = answer(&mut kit, &begun[1], of_b.clone());
        let told: Vec<&str> = events(&effects);
        assert_eq!(
            told,
            Some(kind).filter(|kind| !kind.is_empty()).into_iter().collect::<Vec<_>>(),
            "{of_a:?} {of_b:?}"
        );
    }
}

#[test]
fn a_cable_that_is_out_is_not_unproven() {
    let (mut kit, sessions) = macs(&[60, 60]);
    let effects = kit.wait(100, &sessions);
    let _ = answer_all(&mut kit, effects, &|_| failed());
    assert!(unproven(&kit).iter().all(|incident| incident.closed_unix_ms.is_none()));
    let _ = set_cable(&mut kit, "a", "b", false);
    assert_eq!(unproven(&kit).len(), 2);
    assert!(unproven(&kit).iter().all(|incident| incident.outcome == "the link is gone"));
}

#[test]
fn a_controller_that_starts_anew_tries_again_what_did_not_pass() {
    let (mut kit, sessions) = macs(&[60, 60]);
    let effects = kit.wait(100, &sessions);
    let effects = answer_all(&mut kit, effects, &|_| failed());
    let mut next = that_tries();
    next.machines = kit.machines.clone();
    let incidents = unproven(&kit).into_iter().cloned().rev().collect();
    let _ = next.tell(Event::Remembered { models: vec![], incidents });
    let nodes = vec![record_of(&effects, "a")];
    let _ = next.tell(Event::Started { jobs: vec![], nodes, repairs: vec![], remains: vec![] });
    assert!(unproven(&next).iter().all(|incident| incident.outcome == "the controller was started anew"));
    let alive: Sessions = ["a", "b"].map(|name| (name, next.connect(name).0)).to_vec();
    let effects = next.wait(100, &alive);
    let _ = answer_all(&mut next, effects, &|_| failed());
    let times: Vec<u32> = unproven(&next).iter().map(|incident| incident.times).collect();
    assert_eq!(times, [2, 2], "these are the same incidents");
}

#[test]
fn a_mac_that_is_back_in_another_boot_is_not_planned_for_before_its_cable_has_passed() {
    let (mut kit, sessions) = macs(&[60, 60]);
    all_pass(&mut kit, &sessions);
    kit.machines.get_mut("b").unwrap().boot_id = "boot-2".to_owned();
    let (session, mut effects) = kit.connect("b");
    effects.extend(submit(&mut kit));
    effects.extend(kit.wait(10_000, &[sessions[0], ("b", session)]));
    assert_eq!((launches(&effects).len(), tries(&effects).len()), (0, 2));
}

#[test]
fn agents_that_cannot_try_links_are_not_waited_for() {
    let (mut kit, sessions) = macs_in(Kit::new(), &[60, 60]);
    let effects = [submit(&mut kit), kit.wait(2_100, &sessions)].concat();
    assert_eq!((tries(&effects).len(), launches(&effects).len()), (0, 1));
}

#[test]
fn of_many_links_those_tried_longest_ago_are_not_written_down() {
    let mut kit = that_tries();
    let (first, second): (NodeId, NodeId) = ("a".into(), "b".into());
    let links = (0..2 * MOST_WRITTEN as u64).map(|number| crate::model::LinkRecord {
        tried_unix_ms: number + 1,
        ..crate::model::LinkRecord::new(NodeId::from(format!("old{number}").as_str()), LinkKind::Rdma)
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
    let link = |number| crate::model::LinkRecord {
        other: name(number),
        kind: LinkKind::Thunderbolt,
        tried_unix_ms: 1_795_654_800_000,
        passed_in: Some(u32::MAX),
        pace,
        best: pace,
    };
    let refusal = crate::model::Restart {
        cause: crate::model::RestartCause::RdmaStartsUsedUp,
        boot_id: "b".repeat(100),
        asked_unix_ms: 1_795_654_800_000,
        outcome: crate::model::RestartOutcome::Refused("r".repeat(250)),
    };
    let record = NodeRecord {
        id: name(0),
        draining: true,
        last_seen_unix_ms: 1_795_654_800_000,
        boot_id: "b".repeat(100),
        gpu_faults_unix_ms: vec![1_795_654_800_000; 3],
        quarantine: Some(crate::model::Quarantine {
            until_unix_ms: 1_795_654_800_000,
            reason: "q".repeat(100),
        }),
        links: (0..MOST_WRITTEN).map(link).collect(),
        restarts: vec![refusal; 6],
    };
    let bytes = serde_json::to_vec(&record).unwrap().len();
    assert!(bytes <= 6 * 1_024 - 64, "{bytes}");
}

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
