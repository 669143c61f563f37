//! Links that do not pass, machines that go down with a test, and what becomes of jobs that need such a link.

use super::{
    cables::{change, launches, link_kind, macs_in, set_cable},
    gangs::Sessions,
    kit::*,
    ladder::{answer_rows, fallen_in, start_all},
    link_records::next_controller,
    link_tests::{
        Try, all_pass, answer, answer_all, failed, macs, passed, record_of, submit, that_tries, told, tries,
        unproven, without_rdma,
    },
};
use crate::{
    model::{Backend, FallbackPolicy, JobId, LinkKind, NodeRecord},
    recovery::*,
};

const MINUTE_MS: u64 = 60_000;

/// Time passes, and each test ends like this at both ends.
fn wait_answering(
    kit: &mut Kit,
    sessions: &Sessions,
    ms: u64,
    result: &dyn Fn(Backend) -> LinkTestResult,
) -> Vec<Effect> {
    let mut seen = Vec::new();
    for _ in 0..ms.div_ceil(1_000) {
        let effects = kit.wait(1_000, sessions);
        seen.extend(answer_all(kit, effects, result));
    }
    seen
}

/// The machine of a node goes down, and is back in another boot.
fn go_down(kit: &mut Kit, sessions: &Sessions, node: &str, boot: &str) -> (SessionId, Vec<Effect>) {
    let (_, session) = sessions.iter().find(|(name, _)| *name == node).unwrap();
    let mut effects = kit.tell(Event::SessionLost { node: node.into(), session: *session });
    boot.clone_into(&mut kit.machines.get_mut(node).unwrap().boot_id);
    let (session, back) = kit.connect(node);
    effects.extend(back);
    (session, effects)
}

/// Until a test is begun.
fn next_try(kit: &mut Kit, sessions: &Sessions, most_ms: u64) -> Vec<Try> {
    for _ in 0..most_ms.div_ceil(100) {
        let begun = tries(&kit.wait(100, sessions));
        if !begun.is_empty() {
            return begun;
        }
    }
    Vec::new()
}

/// Tests by TCP pass meanwhile. Returns how many minutes that takes, and the test.
fn until_rdma_is_tried(kit: &mut Kit, sessions: &Sessions) -> (u64, Vec<Try>) {
    let since = kit.now.mono_ms;
    loop {
        let begun = next_try(kit, sessions, 200 * MINUTE_MS);
        if begun[0].gang.backend.is_rdma() {
            return ((kit.now.mono_ms - since) / MINUTE_MS, begun);
        }
        for end in &begun {
            let _ = answer(kit, end, passed());
        }
    }
}

#[test]
fn the_fallback_model_takes_over_although_the_cable_is_tried_again_and_again() {
    let (mut kit, sessions, effects) = without_rdma();
    kit.models.insert("small".to_owned(), small_model());
    let mut job = record(1, 10_000);
    job.spec.fallback_model = Some("small".to_owned());
    job.spec.fallback_policy = FallbackPolicy::AfterMs(10 * MINUTE_MS);
    let _ = answer_all(&mut kit, effects, &|_| failed());
    let effects = kit.tell(Event::JobAccepted(job));
    let mut started_after_ms = None;
    let since = kit.now.mono_ms;
    let _ = answer_all(&mut kit, effects, &|_| failed());
    while started_after_ms.is_none() && kit.now.mono_ms - since < 30 * MINUTE_MS {
        let effects = wait_answering(&mut kit, &sessions, 1_000, &|_| failed());
        started_after_ms = (!started(&effects).is_empty()).then(|| kit.now.mono_ms - since);
    }
    let after_s = started_after_ms.expect("it takes over") / 1_000;
    assert!((600..=603).contains(&after_s), "{after_s}");
    assert!(kit.job(1).takes_fallback);
}

#[test]
fn what_has_not_passed_is_not_used_either_when_it_cannot_be_tried_any_more() {
    let (mut kit, sessions) = macs(&[60, 60]);
    let by_rdma_fails = |backend: Backend| if backend.is_rdma() { failed() } else { passed() };
    let effects = kit.wait(100, &sessions);
    let _ = answer_all(&mut kit, effects, &by_rdma_fails);
    let effects = [submit(&mut kit), kit.wait(2_100, &sessions)].concat();
    let _ = start_all(&mut kit, &effects);
    assert_eq!(link_kind(&kit), Some(LinkKind::Thunderbolt));
    for node in ["a", "b"] {
        let _ = change(&mut kit, node, |facts| {
            facts.boot = BootFacts { rdma_starts: 4, most_rdma_starts: 5, ..BootFacts::default() };
        });
    }
    let effects = wait_answering(&mut kit, &sessions, 4 * 60 * MINUTE_MS, &by_rdma_fails);
    assert_eq!(tries(&effects).len(), 0, "the last start is for no test");
    assert!(launches(&effects).iter().all(|gang| !gang.backend.is_rdma()), "nor for this link");
    let told = events(&effects);
    assert!(!told.contains(&"climbing") && !told.contains(&"link-settled"), "{told:?}");
    let text = "(RDMA): it did not pass its test: rank 1 did not come";
    let explained = kit.machine.explain_node(kit.now, &"a".into()).unwrap();
    assert!(explained.iter().any(|ruling| ruling.sentence.contains(text)), "{explained:#?}");

    // A cable that is plugged in again is another one.
    let _ = set_cable(&mut kit, "a", "b", false);
    let _ = set_cable(&mut kit, "a", "b", true);
    let text = "(RDMA): it cannot be tried: few of the RDMA starts of this boot are left";
    let explained = kit.machine.explain_node(kit.now, &"a".into()).unwrap();
    assert!(explained.iter().any(|ruling| ruling.sentence.contains(text)), "{explained:#?}");
}

#[test]
fn a_network_that_did_not_pass_is_tried_again_and_used_when_it_has() {
    let (mut kit, sessions) = fallen_in(that_tries());
    let effects = answer_rows(&mut kit, &sessions, 0..750);
    assert_eq!(tries(&effects).len(), 2, "it is asked for");
    let explained = kit.machine.explain_job(kit.now, JobId(1)).unwrap();
    let text = "which pays for loading (1 s); the link of a and b is tried before that";
    assert!(explained.iter().any(|ruling| ruling.sentence.contains(text)), "{explained:#?}");
    let _ = answer_all(&mut kit, effects, &|_| failed());
    let mut row = 750;
    let mut effects = Vec::new();
    while tries(&effects).is_empty() {
        effects = answer_rows(&mut kit, &sessions, row..row + 1);
        row += 1;
        assert!(row < 2_000, "nobody asks for it any more, and yet it is tried");
    }
    assert!(!events(&effects).contains(&"climbing"));
    let _ = answer_all(&mut kit, effects, &|_| passed());
    let effects = answer_rows(&mut kit, &sessions, row..row + 700);
    assert!(events(&effects).contains(&"climbing"), "{:?}", events(&effects));
}

#[test]
fn nothing_is_planned_over_a_link_while_it_is_being_tried() {
    let (mut kit, sessions) = macs(&[60, 60]);
    let begun = tries(&kit.wait(100, &sessions));
    assert_eq!(begun[0].gang.backend, Backend::Jaccl);
    let mut effects = submit(&mut kit);
    // The agents have counted the start of the test.
    for node in ["a", "b"] {
        effects.extend(change(&mut kit, node, |facts| {
            facts.boot = BootFacts { rdma_starts: 3, most_rdma_starts: 5, ..BootFacts::default() };
        }));
    }
    effects.extend(kit.wait(20_000, &sessions));
    assert_eq!(launches(&effects).len(), 0);
    let effects: Vec<Effect> = begun.iter().flat_map(|end| answer(&mut kit, end, passed())).collect();
    let effects = answer_all(&mut kit, effects, &|_| passed());
    let effects = [effects, kit.wait(2_100, &sessions)].concat();
    assert_eq!(launches(&effects)[0].backend, Backend::Jaccl);
}

#[test]
fn a_cable_that_is_pulled_amid_its_test_has_not_failed_it() {
    let (mut kit, sessions) = macs(&[60, 60]);
    let begun = tries(&kit.wait(100, &sessions));
    let _ = set_cable(&mut kit, "a", "b", false);
    for end in &begun {
        let _ = answer(&mut kit, end, failed());
    }
    assert_eq!(unproven(&kit).len(), 0);
    let effects = set_cable(&mut kit, "a", "b", true);
    let effects = [effects, kit.wait(20_000, &sessions)].concat();
    let begun = tries(&effects);
    assert_eq!(begun[0].gang.backend, Backend::Jaccl, "and RDMA is not left alone for it");
    assert_eq!(record_of(&effects, "a").links[0].went_down, 0);
}

#[test]
fn a_test_with_which_a_machine_goes_down_is_made_twice_and_then_the_link_is_left_alone() {
    let (mut kit, mut sessions) = macs(&[60, 60]);
    let begun = tries(&kit.wait(100, &sessions));
    assert_eq!(begun[0].gang.backend, Backend::Jaccl);
    for boot in ["boot-2", "boot-3"] {
        assert_eq!(unproven(&kit).len(), 0);
        if boot == "boot-3" {
            // What the other end sees first is that the cable carries nothing.
            let _ = set_cable(&mut kit, "a", "b", false);
            let _ = set_cable(&mut kit, "a", "b", true);
        }
        sessions[1].1 = go_down(&mut kit, &sessions, "b", boot).0;
        let begun = next_try(&mut kit, &sessions, 10_000);
        let expected = if boot == "boot-2" { Backend::Jaccl } else { Backend::Ring };
        assert_eq!(begun[0].gang.backend, expected, "{boot}");
    }
    let [incident] = unproven(&kit)[..] else { panic!("{:?}", unproven(&kit)) };
    let text = "RDMA over the cable of a and b did not pass its test: a machine at one of its ends went down in each of the last 2 \
                tests of this kind";
    assert_eq!(incident.summary, text);
    // A job goes by TCP meanwhile, and waits for nothing, also when RDMA would have been tried again long since.
    let _ = answer_all(&mut kit, vec![], &|_| passed());
    let effects = wait_answering(&mut kit, &sessions, 90 * MINUTE_MS, &|_| passed());
    assert!(tries(&effects).iter().all(|end| !end.gang.backend.is_rdma()));
    let effects = [submit(&mut kit), kit.wait(5_000, &sessions)].concat();
    assert_eq!(launches(&effects)[0].backend, Backend::Ring);
    let _ = kit.tell(Event::Cancel { job: JobId(1), now: true });
    for (node, worker) in started(&effects) {
        let _ = kit.exit(&node, worker, ExitClass::Killed);
    }
    // For three hours; and then it is tried once more.
    let (waited_minutes, begun) = until_rdma_is_tried(&mut kit, &sessions);
    assert_eq!((waited_minutes, begun.len()), (89, 2));
    sessions[1].1 = go_down(&mut kit, &sessions, "b", "boot-4").0;
    let begun = next_try(&mut kit, &sessions, 60 * MINUTE_MS);
    assert!(begun.iter().all(|end| !end.gang.backend.is_rdma()), "and not at once again");
}

#[test]
fn a_controller_that_went_down_with_the_machine_knows_of_the_test() {
    let (mut kit, sessions) = macs(&[60, 60]);
    let effects = kit.wait(100, &sessions);
    assert!(record_of(&effects, "a").links[0].under_way, "before anybody is told to begin");
    let is_first = |effect: &Effect| matches!(effect, Effect::Send { command: Command::TestLink { .. }, .. });
    let recorded = effects.iter().position(|effect| matches!(effect, Effect::RecordNode(_))).unwrap();
    assert!(recorded < effects.iter().position(is_first).unwrap());

    let of_a = record_of(&effects, "a");
    let boot = of_a.boot_id.clone();
    let of_b =
        |boot: &str| NodeRecord { id: "b".into(), links: vec![], boot_id: boot.to_owned(), ..of_a.clone() };
    let start_anew = |of_a: NodeRecord, before: &str, boot: &str| {
        let (mut next, alive) = next_controller(&kit, vec![of_a, of_b(before)], |next| {
            boot.clone_into(&mut next.machines.get_mut("b").unwrap().boot_id);
        });
        let effects = next.wait(100, &alive);
        (tries(&effects)[0].gang.backend, record_of(&effects, "a"))
    };
    // In the same boots it was only the controller that ended.
    let mut next = of_a.clone();
    for _ in 0..4 {
        let (backend, on_record) = start_anew(next, &boot, &boot);
        assert_eq!((backend, on_record.links[0].went_down), (Backend::Jaccl, 0));
        next = on_record;
    }
    let (backend, next) = start_anew(next, &boot, "boot-2");
    assert_eq!((backend, next.links[0].went_down), (Backend::Jaccl, 1));
    let (backend, next) = start_anew(next, "boot-2", "boot-3");
    assert_eq!(backend, Backend::Ring);
    let on_rdma =
        |record: &NodeRecord| record.links.iter().find(|link| link.kind == LinkKind::Rdma).cloned().unwrap();
    assert_eq!((on_rdma(&next).went_down, on_rdma(&next).under_way), (2, false));
    // And so does the one after it, though all machines are as they were.
    let (backend, next) = start_anew(next, "boot-3", "boot-3");
    assert_eq!((backend, on_rdma(&next).went_down), (Backend::Ring, 2));
    // Nor is it used where it cannot be tried.
    let (mut kit, alive) = next_controller(&kit, vec![next, of_b("boot-3")], |next| {
        next.tests_links = false;
        "boot-3".clone_into(&mut next.machines.get_mut("b").unwrap().boot_id);
    });
    let effects = [submit(&mut kit), kit.wait(5_000, &alive)].concat();
    assert_eq!(launches(&effects)[0].backend, Backend::Ring);
}

#[test]
fn that_a_link_has_failed_since_it_passed_is_known_to_the_next_controller() {
    let (mut kit, sessions) = macs(&[60, 60]);
    all_pass(&mut kit, &sessions);
    let effects = [submit(&mut kit), kit.wait(2_100, &sessions)].concat();
    let ranks = start_all(&mut kit, &effects);
    assert_eq!(link_kind(&kit), Some(LinkKind::Rdma));
    let (node, worker) = ranks[1].clone();
    let effects = kit.exit(&node, worker, ExitClass::Apart);
    assert!(record_of(&effects, "a").links.iter().any(|link| link.kind == LinkKind::Rdma && link.doubted));
    let explained = kit.machine.explain_node(kit.now, &"a".into()).unwrap();
    let text =
        "(RDMA): it has failed since it passed its test, and is tried before a running job changes to it";
    assert!(explained.iter().any(|ruling| ruling.sentence.contains(text)), "{explained:#?}");
}

#[test]
fn a_controller_that_did_not_run_holds_no_late_answer_against_a_test() {
    let (mut kit, sessions) = macs(&[60, 60]);
    let begun = tries(&kit.wait(100, &sessions));
    kit.now.mono_ms += 5 * MINUTE_MS;
    kit.now.unix_ms += 5 * MINUTE_MS;
    assert_eq!(tries(&kit.wait(1_000, &sessions)), [], "the one under way is still waited for");
    for end in &begun {
        let _ = answer(&mut kit, end, passed());
    }
    let explained = kit.machine.explain_node(kit.now, &"a".into()).unwrap();
    assert!(
        explained.iter().any(|ruling| ruling.sentence.contains("(RDMA): it passed its test")),
        "{explained:#?}"
    );
}

#[test]
fn both_ends_that_do_not_answer_are_named() {
    let (mut kit, sessions) = macs(&[60, 60]);
    let effects = kit.wait(10 * MINUTE_MS, &sessions);
    let all = told(&effects, "link-not-tried");
    assert_eq!(all.len(), 2, "{all:?}");
    assert!(all.iter().all(|(_, text)| text.contains("(a and b did not answer within 85 s)")), "{all:?}");
}

#[test]
fn a_gang_that_stands_says_nothing_of_how_fast_its_links_are() {
    let (mut kit, mut sessions) = macs(&[60, 60]);
    all_pass(&mut kit, &sessions);
    kit.tests_links = false;
    sessions[1].1 = go_down(&mut kit, &sessions, "b", "boot-2").0;
    let effects = [submit(&mut kit), kit.wait(2_100, &sessions)].concat();
    let effects: Vec<Effect> =
        started(&effects).into_iter().flat_map(|(node, worker)| kit.ready(&node, worker)).collect();
    let by_rdma =
        record_of(&effects, "a").links.into_iter().find(|link| link.kind == LinkKind::Rdma).unwrap();
    assert!(by_rdma.passed_in.is_some() && by_rdma.pace.is_none() && by_rdma.best.is_some(), "{by_rdma:?}");
}

/// It may be what was wrong with it.
#[test]
fn an_update_of_either_end_makes_up_for_machines_that_went_down() {
    let (mut kit, mut sessions) = macs(&[60, 60]);
    let _ = kit.wait(100, &sessions);
    for boot in ["boot-2", "boot-3"] {
        sessions[1].1 = go_down(&mut kit, &sessions, "b", boot).0;
        let _ = next_try(&mut kit, &sessions, 10_000);
    }
    assert_eq!(unproven(&kit).len(), 1);
    // Being started anew is no update.
    sessions[1].1 = go_down(&mut kit, &sessions, "b", "boot-4").0;
    let effects = kit.wait(10_000, &sessions);
    assert!(tries(&effects).iter().all(|end| !end.gang.backend.is_rdma()));
    let _ = answer_all(&mut kit, effects, &|_| passed());
    for machine in kit.machines.values_mut() {
        machine.versions.os = "macOS 25G80".to_owned();
    }
    sessions[0].1 = go_down(&mut kit, &sessions, "a", "boot-2").0;
    sessions[1].1 = go_down(&mut kit, &sessions, "b", "boot-5").0;
    let (waited_minutes, _) = until_rdma_is_tried(&mut kit, &sessions);
    assert!(waited_minutes <= 60, "as long as after any failure: {waited_minutes}");
}

#[test]
fn what_cannot_be_put_on_record_is_not_tried_over_rdma() {
    let mut kit = that_tries();
    let _ = kit.tell(Event::StorageFailed { problem: "full".to_owned() });
    let (mut kit, sessions) = macs_in(kit, &[60, 60]);
    let effects = kit.wait(MINUTE_MS, &sessions);
    let effects = answer_all(&mut kit, effects, &|_| passed());
    assert!(tries(&effects).iter().all(|end| !end.gang.backend.is_rdma()));
    let effects = [kit.tell(Event::StorageRecovered), kit.wait(1_000, &sessions)].concat();
    assert_eq!(tries(&effects)[0].gang.backend, Backend::Jaccl);
}
