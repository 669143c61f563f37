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
        link_tests::{ANSWER_LIMIT_MS, MOST_NOT_MADE},
        *,
    },
};

pub(super) const FAST: LinkPace = LinkPace { round_trip_us: 30, bytes_per_s: 8_000_000_000 };

pub(super) fn passed() -> LinkTestResult {
    LinkTestResult::Passed(FAST)
}

pub(super) fn failed() -> LinkTestResult {
    LinkTestResult::Failed("rank 1 did not come".to_owned())
}

fn not_made() -> LinkTestResult {
    LinkTestResult::NotMade("the runtime is not ready".to_owned())
}

pub(super) fn that_tries() -> Kit {
    let mut kit = Kit::new();
    kit.tests_links = true;
    kit
}

/// Nodes of so many gigabytes that can try their links, each cabled to every other.
pub(super) fn macs(budgets_gb: &[u64]) -> (Kit, Sessions) {
    macs_in(that_tries(), budgets_gb)
}

/// The same two with TCP alone over their cable, and what has been begun with it.
pub(super) fn without_rdma() -> (Kit, Sessions, Vec<Effect>) {
    let (mut kit, sessions) = macs(&[60, 60]);
    let effects = change(&mut kit, "b", |facts| facts.thunderbolt.rdma_enabled = Some(false));
    (kit, sessions, effects)
}

/// One end of a test that was begun.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Try {
    request_id: u64,
    node: NodeId,
    session: SessionId,
    rank: u32,
    pub(super) gang: Arc<GangLaunch>,
}

pub(super) fn tries(effects: &[Effect]) -> Vec<Try> {
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

pub(super) fn answer(kit: &mut Kit, to: &Try, result: LinkTestResult) -> Vec<Effect> {
    let Try { request_id, node, session, .. } = to.clone();
    kit.tell(Event::LinkTested { node, session, request_id, result })
}

/// Both ends answer each test alike, and those that follow, until there are no more; what had happened by then.
pub(super) fn answer_all(
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

pub(super) fn all_pass(kit: &mut Kit, sessions: &Sessions) {
    let effects = kit.wait(100, sessions);
    let _ = answer_all(kit, effects, &|_| passed());
}

pub(super) fn submit(kit: &mut Kit) -> Vec<Effect> {
    kit.tell(Event::JobAccepted(record(1, 10_000)))
}

pub(super) fn unproven(kit: &Kit) -> Vec<&Incident> {
    kit.machine.incidents().filter(|incident| incident.fault == Fault::LinkUnproven).collect()
}

pub(super) fn record_of(effects: &[Effect], node: &str) -> NodeRecord {
    let of = |effect: &Effect| match effect {
        Effect::RecordNode(record) if record.id.as_str() == node => Some(record.clone()),
        _ => None,
    };
    effects.iter().rev().find_map(of).expect("the node is written down")
}

pub(super) fn told<'a>(effects: &'a [Effect], kind: &str) -> Vec<(Severity, &'a str)> {
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
fn rdma_is_tried_only_where_that_leaves_starts_for_gangs() {
    for (used, backend) in [(0, Backend::Jaccl), (2, Backend::Jaccl), (3, Backend::Ring)] {
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
