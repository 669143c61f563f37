//! The foot of the ladder: jobs that nothing can run are parked, with the sentence that a person needs.

use super::{
    gangs::{Sessions, cluster},
    kit::*,
    ladder::start_all,
};
use crate::{model::*, recovery::*};

#[test]
fn what_nothing_can_run_is_parked_with_the_sentence_a_person_needs() {
    let (mut kit, sessions) = cluster(&[30, 30]);
    let mut effects = kit.tell(Event::JobAccepted(record(1, 100)));
    effects.extend(kit.wait(31_000, &sessions));
    assert!(events(&effects).contains(&"job-parked"));
    let parked = kit.job(1).parked.clone().unwrap();
    assert!(parked.why.contains("GB"), "how far off: {}", parked.why);
    assert!(parked.why.contains("--fallback-model"), "{}", parked.why);
    assert_eq!(kit.job(1).record.state, JobState::Active, "it goes on by itself");
}

#[test]
fn a_job_waits_for_the_one_node_that_can_run_it_however_long_it_is_away() {
    let (mut kit, sessions) = cluster(&[100, 100]);
    kit.found.remove("b");
    let effects = kit.tell(Event::JobAccepted(record(1, 10_000)));
    let workers = start_all(&mut kit, &effects);
    let on_b = workers.iter().find(|(node, _)| node == "b").map(|(_, worker)| *worker);
    if let Some(worker) = on_b {
        let _ = kit.exit("b", worker, ExitClass::ModelUnreadable);
    }
    let only_b: Vec<_> = sessions.into_iter().filter(|(node, _)| *node == "b").collect();
    let _ = kit.wait(3_600_000, &only_b);
    assert_eq!(kit.job(1).record.state, JobState::Active);
}

/// A job that nothing runs, told of once, and what it says when it goes on.
#[test]
fn a_parked_job_is_told_of_once_and_again_when_it_goes_on() {
    let (mut kit, mut sessions) = cluster(&[30, 40]);
    let mut effects = kit.tell(Event::JobAccepted(record(1, 100)));
    effects.extend(kit.wait(120_000, &sessions));
    let told =
        |effects: &[Effect], what: &str| events(effects).iter().filter(|event| **event == what).count();
    assert_eq!(told(&effects, "job-parked"), 1);

    // Paused and resumed, it does not go on.
    let mut effects = kit.tell(Event::Pause(JobId(1)));
    effects.extend(kit.wait(1_000, &sessions));
    assert!(kit.job(1).parked.is_none(), "a pause says enough");
    effects.extend(kit.tell(Event::Resume(JobId(1))));
    assert_eq!(told(&effects, "job-unparked"), 0);
    assert_eq!(told(&kit.wait(60_000, &sessions), "job-parked"), 1);

    kit.found.insert("c".to_owned(), large_model());
    kit.machines.insert("c".to_owned(), machine("10.0.0.3", 200));
    let (c, mut effects) = kit.connect("c");
    sessions.push(("c", c));
    effects.extend(kit.wait(6_000, &sessions));
    assert_eq!(started(&effects).len(), 1);
    assert_eq!(told(&effects, "job-unparked"), 1);
}

#[test]
fn a_parked_job_names_what_keeps_each_node_from_it() {
    let (mut kit, sessions) = cluster(&[100, 100]);
    for node in ["a", "b"] {
        let _ = kit.tell(Event::Drain { node: node.into(), drain: true });
    }
    let _ = kit.tell(Event::JobAccepted(record(1, 100)));
    let _ = kit.wait(60_000, &sessions);
    let why = kit.job(1).parked.clone().expect("nothing runs it").why;
    let (of_a, of_b) = (why.find("not on a"), why.find("not on b"));
    assert!(of_a.is_some() && of_b > of_a, "{why}");
    assert_eq!((why.matches("not on a").count(), why.matches("not on b").count()), (1, 1), "{why}");
}

/// Nobody is called for what goes on by itself, or waits because somebody wanted it so.
#[test]
fn a_job_that_waits_for_something_known_is_not_parked() {
    const LONG_MS: u64 = 100_000;
    let quiet = |mut effects: Vec<Effect>, kit: &mut Kit, sessions: &Sessions, why: &str| {
        effects.extend(kit.wait(LONG_MS, sessions));
        assert!(!events(&effects).contains(&"job-parked"), "{why}: {effects:#?}");
    };

    let mut kit = Kit::new();
    let _ = kit.tell(Event::JobAccepted(record(1, 10)));
    let effects = kit.tell(Event::Pause(JobId(1)));
    quiet(effects, &mut kit, &vec![], "it is paused");
    let effects = kit.tell(Event::Resume(JobId(1)));
    assert!(!events(&effects).contains(&"job-parked"));
    assert!(
        events(&kit.wait(31_000, &[])).contains(&"job-parked"),
        "nothing keeps it now but that there is no node"
    );

    let mut kit = Kit::new();
    let _ = kit.tell(Event::StorageFailed { problem: "full".to_owned() });
    let effects = kit.tell(Event::JobAccepted(record(1, 10)));
    quiet(effects, &mut kit, &vec![], "the disk is full, which is told of by itself");

    let mut kit = Kit::new();
    let mut nightly = record(1, 10);
    nightly.spec.window = Some("22:00-07:00".parse().unwrap());
    kit.now.unix_ms = 12 * 3_600_000;
    let effects = kit.tell(Event::JobAccepted(nightly));
    quiet(effects, &mut kit, &vec![], "its window is closed");

    let mut kit = Kit::new();
    let _ = kit.tell(Event::PolicyChanged(Policy { restart_base_ms: 60_000, ..Policy::default() }));
    let (session, _) = kit.connect("a");
    let alive = vec![("a", session)];
    let (node, worker) = started(&kit.tell(Event::JobAccepted(record(1, 100))))[0].clone();
    let _ = kit.ready(&node, worker);
    let effects = kit.exit(&node, worker, ExitClass::Signalled);
    let effects = [effects, kit.wait(50_000, &alive)].concat();
    assert_eq!(started(&effects), []);
    assert!(!events(&effects).contains(&"job-parked"), "it is tried again in a moment");

    // The one node runs a job before it.
    let mut kit = Kit::new();
    let (session, _) = kit.connect("a");
    let alive = vec![("a", session)];
    let (node, worker) = started(&kit.tell(Event::JobAccepted(record(1, 100))))[0].clone();
    let _ = kit.ready(&node, worker);
    let effects = kit.tell(Event::JobAccepted(record(2, 100)));
    assert_eq!(started(&effects), []);
    quiet(effects, &mut kit, &alive, "another job goes first");

    // Its last answer is being written when its worker ends.
    let mut kit = Kit::new();
    let (session, _) = kit.connect("a");
    let alive = vec![("a", session)];
    let (node, worker) = started(&kit.tell(Event::JobAccepted(record(1, 1))))[0].clone();
    let grants = granted(&kit.ready(&node, worker), "a");
    let _ = kit.result("a", session, worker, grants[0]);
    let effects = kit.exit(&node, worker, ExitClass::Signalled);
    quiet(effects, &mut kit, &alive, "every row has its answer");
}
