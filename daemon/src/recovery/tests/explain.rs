//! What is told of why a job or a node is where it is: a story for each state that a person asks about.

use super::{
    gangs::cluster,
    kit::*,
    ladder::{answer_rows, fallen, fallen_after, obey, pull_cable, start_all, with_fallback},
};
use crate::{
    model::{FallbackPolicy, JobId, JobState, NodeId, RowIx, WorkerKey},
    recovery::*,
};

fn on_job(kit: &Kit, id: u64) -> Vec<Ruling> {
    kit.machine.explain_job(kit.now, JobId(id)).expect("the job is known")
}

fn on_node(kit: &Kit, node: &str) -> Vec<Ruling> {
    kit.machine.explain_node(kit.now, &NodeId::from(node)).expect("the node is known")
}

/// The sentence of a rule, and whether it holds.
#[track_caller]
fn told<'a>(rulings: &'a [Ruling], rule: &str) -> (bool, &'a str) {
    let found = rulings.iter().find(|ruling| ruling.rule == rule);
    let Some(found) = found else { panic!("nothing is said of {rule}: {rulings:#?}") };
    (found.holds, &found.sentence)
}

#[track_caller]
fn assert_keeps(rulings: &[Ruling], rule: &str, words: &str) {
    let (holds, sentence) = told(rulings, rule);
    assert!(!holds && sentence.contains(words), "{rule} holds: {holds}; {sentence}");
}

#[track_caller]
fn assert_holds(rulings: &[Ruling], rule: &str, words: &str) {
    let (holds, sentence) = told(rulings, rule);
    assert!(holds && sentence.contains(words), "{rule} holds: {holds}; {sentence}");
}

fn keeping(rulings: &[Ruling]) -> Vec<&str> {
    rulings.iter().filter(|ruling| !ruling.holds).map(|ruling| ruling.rule).collect()
}

/// A job at work on one node.
fn at_work() -> (Kit, [(&'static str, SessionId); 1], WorkerKey, Vec<RowGrant>) {
    let mut kit = Kit::new();
    kit.found.insert("a".to_owned(), small_model());
    kit.machines.insert("a".to_owned(), machine("10.0.0.1", 60));
    let sessions = [("a", kit.connect("a").0)];
    let worker = started(&kit.tell(Event::JobAccepted(record(1, 50))))[0].1;
    let grants = granted(&kit.ready("a", worker), "a");
    (kit, sessions, worker, grants)
}

fn crash(kit: &mut Kit, worker: WorkerKey, class: ExitClass, started_rows: &[RowIx]) {
    let exit = WorkerExit {
        worker,
        class,
        status: "ended".to_owned(),
        first_error: "it broke".to_owned(),
        log_tail: Vec::new(),
        started_rows: started_rows.to_vec(),
        killed_while_loaded: false,
        quiet_ms: None,
    };
    let _ = kit.tell(Event::WorkerExited { node: "a".into(), exit });
}

#[test]
fn where_all_is_well_no_rule_keeps_anything() {
    let (mut kit, sessions, ..) = at_work();
    let _ = kit.wait(3_000, &sessions);
    let rulings = on_job(&kit, 1);
    assert_eq!(keeping(&rulings), [""; 0], "{rulings:#?}");
    assert_holds(&rulings, "rows", "0 of 50 rows are done, 16 are with workers, 34 wait");
    assert_holds(&rulings, "model", "m: a: has it");
    assert_holds(&rulings, "plan", "independent on a");
    assert_holds(&rulings, "rung", "it runs as independent workers, as it would by itself");
    assert_holds(
        &rulings,
        "step-budget",
        "the worker on a (idle) took its last step 3 s ago and may take 2 min: it is not known yet",
    );
    let rulings = on_node(&kit, "a");
    assert_eq!(keeping(&rulings), [""; 0], "{rulings:#?}");
    assert_holds(&rulings, "connection", "connected for 3 s");
    assert_holds(&rulings, "memory", "may take 60.0 GB of it (configured");
    assert_holds(
        &rulings,
        "job",
        "it has worked for j1 for 3 s, independent workers: 16 rows held, 0 at work",
    );
    assert_eq!(kit.machine.explain_job(kit.now, JobId(9)), None);
    assert_eq!(kit.machine.explain_node(kit.now, &"z".into()), None);
}

#[test]
fn a_job_that_waits_for_another_says_for_which_and_why() {
    let (mut kit, sessions, ..) = at_work();
    let _ = kit.tell(Event::JobAccepted(record(2, 50)));
    let _ = kit.wait(100, &sessions);
    let rulings = on_job(&kit, 2);
    assert_keeps(&rulings, "turn", "j1 goes first: it is older");
    assert_keeps(&rulings, "not-on", "not on a: it works for j1, whose turn is before");
    assert_keeps(&rulings, "rung", "no worker");
    let rulings = on_node(&kit, "a");
    let of_second = rulings.iter().find(|ruling| ruling.sentence.contains("j2")).unwrap();
    assert_eq!(of_second.sentence, "it does not work for j2: it works for j1, whose turn is before");
    assert!(of_second.holds, "it does work");
}

#[test]
fn what_somebody_or_the_rules_paused_says_so() {
    let (mut kit, ..) = at_work();
    let _ = kit.tell(Event::Pause(JobId(1)));
    assert_keeps(&on_job(&kit, 1), "state", "it is paused: paused by request; `clusterctl resume j1`");

    let (mut kit, sessions, ..) = at_work();
    for _ in 0..5 {
        let worker = kit.job(1).workers.values().next().unwrap().key(JobId(1));
        crash(&mut kit, worker, ExitClass::Crashed, &[]);
        let _ = kit.wait(10_000, &sessions);
    }
    assert_eq!(kit.job(1).record.state, JobState::Paused);
    let rulings = on_job(&kit, 1);
    assert_keeps(&rulings, "state", "the rules have paused it");
    assert_keeps(&rulings, "failures", "5 of 5 failures");
}

#[test]
fn failures_back_off_and_suspected_rows_are_told() {
    let (mut kit, sessions, worker, grants) = at_work();
    let suspects = [grants[0].row, grants[1].row];
    crash(&mut kit, worker, ExitClass::Crashed, &suspects);
    let rulings = on_job(&kit, 1);
    assert_keeps(&rulings, "back-off", "1 failure in a row on a; the next try there is in 1 s");
    assert_keeps(&rulings, "failures", "1 of 5 failures in a row");
    let effects = kit.wait(600, &sessions);
    let next = started(&effects)[0].1;
    let _ = kit.ready("a", next);
    crash(&mut kit, next, ExitClass::Crashed, &suspects);
    assert_keeps(&on_job(&kit, 1), "suspected-rows", "row 0 (2 crashes), row 1 (2 crashes)");
}

#[test]
fn memory_that_ran_out_is_told_with_what_follows() {
    let (mut kit, _, worker, _) = at_work();
    crash(&mut kit, worker, ExitClass::OutOfMemory, &[]);
    assert_keeps(
        &on_job(&kit, 1),
        "memory",
        "memory ran out 1 time on a: 4 rows together there, and 100 % of its budget",
    );
}

#[test]
fn a_node_that_cannot_run_the_model_is_told_with_its_reason() {
    let (mut kit, _, worker, _) = at_work();
    let _ = kit.connect("b");
    crash(&mut kit, worker, ExitClass::ModelUnreadable, &[]);
    assert_keeps(&on_job(&kit, 1), "barred-node", "not on a until somebody resumes it: ");
}

#[test]
fn nodes_with_other_files_under_the_name_of_the_model_are_told_apart() {
    let (mut kit, ..) = at_work();
    kit.found.insert("b".to_owned(), large_model());
    let _ = kit.connect("b");
    let _ = kit.connect("c");
    let rulings = on_job(&kit, 1);
    let (_, sentence) = told(&rulings, "model");
    assert!(
        sentence.starts_with("m: a: has files small; b: has files large; c: has not got it"),
        "{sentence}"
    );
}

#[test]
fn a_full_disk_keeps_every_job() {
    let (mut kit, ..) = at_work();
    let _ = kit.tell(Event::StorageFailed { problem: "no space left".to_owned() });
    assert_keeps(&on_job(&kit, 1), "storage", "no rows are handed out: no space left");
}

#[test]
fn a_closed_window_is_told() {
    let mut kit = Kit::new();
    let _ = kit.connect("a");
    let mut nightly = record(1, 50);
    nightly.spec.window = Some("22:00-07:00".parse().unwrap());
    // A quarter past midnight, and then noon.
    let _ = kit.tell(Event::JobAccepted(nightly));
    assert_holds(&on_job(&kit, 1), "window", "its window 22:00-07:00 is open");
    kit.now.unix_ms += 12 * 3_600_000;
    let _ = kit.tell(Event::Tick);
    assert!(!told(&on_job(&kit, 1), "window").0);
}

#[test]
fn workers_of_a_controller_before_this_one_are_waited_for() {
    let mut kit = Kit::new();
    let mut before = record(1, 50);
    before.launches.push(launch("a", 1));
    let _ = kit.tell(Event::Started {
        jobs: vec![replayed(before, &[])],
        nodes: vec![],
        repairs: vec![],
        remains: vec![],
    });
    assert_keeps(&on_job(&kit, 1), "adoption", "had workers on a: for 15 s at most");
}

#[test]
fn a_job_below_its_rung_says_why_and_what_the_way_up_waits_for() {
    let (mut kit, sessions) = fallen();
    let _ = kit.wait(20_000, &sessions);
    let rulings = on_job(&kit, 1);
    assert_keeps(&rulings, "rung", "it runs as independent workers: ");
    assert_keeps(&rulings, "better-rung", "a pipeline over ring (an allowed network) has been possible for ");
    assert_keeps(&rulings, "better-rung", "more before the job changes to it");
    let twice: Vec<&str> = rulings.iter().map(|ruling| ruling.sentence.as_str()).collect();
    assert_eq!(twice.iter().collect::<std::collections::BTreeSet<_>>().len(), twice.len(), "{twice:#?}");

    let effects = kit.wait(60_000, &sessions);
    assert!(!stopped(&effects).is_empty());
    assert_keeps(&on_job(&kit, 1), "climbing", "its workers end with checkpoints");
    let mut effects = obey(&mut kit, &effects, ExitClass::Orderly);
    effects.extend(kit.wait(2_100, &sessions));
    let _ = start_all(&mut kit, &effects);
    let rulings = on_job(&kit, 1);
    assert_holds(&rulings, "rung", "changed from independent workers to a pipeline");
    assert_keeps(&rulings, "change-penalty", "must hold for ");
}

#[test]
fn a_way_up_that_does_not_pay_says_so() {
    let (mut kit, sessions) = fallen_after(60_000);
    let _ = answer_rows(&mut kit, &sessions, 0..400);
    for row in 400..9_000 {
        let worker = WorkerKey { job: JobId(1), epoch: kit.job(1).record.epoch, rank: 0 };
        let row = committed_row(worker, RowGrant { row: RowIx(row), attempt: 1 }, 0);
        let _ = kit.tell(Event::Committed { node: "a".into(), rows: vec![row], totals: vec![] });
    }
    let _ = answer_rows(&mut kit, &sessions, 9_000..9_600);
    assert_keeps(
        &on_job(&kit, 1),
        "better-rung",
        "the rows left do not pay for loading the model again, about 60 s",
    );
}

#[test]
fn the_fallback_policy_tells_its_clock() {
    let (mut kit, sessions, _) = with_fallback(FallbackPolicy::AfterMs(600_000));
    assert_holds(
        &on_job(&kit, 1),
        "fallback",
        "small would answer once its own model could not run for 10 min",
    );
    let effects = pull_cable(&mut kit, "b", false);
    let _ = obey(&mut kit, &effects, ExitClass::Killed);
    let _ = kit.wait(60_000, &sessions);
    let rulings = on_job(&kit, 1);
    assert_keeps(&rulings, "fallback", "its own model could not run for 60 s; in 9 min small takes over");
    assert_keeps(&rulings, "parked", "nothing has run it for ");
    let effects = kit.wait(545_000, &sessions);
    let _ = start_all(&mut kit, &effects);
    assert_keeps(&on_job(&kit, 1), "fallback", "small answers in place of its own model");
}

#[test]
fn a_job_that_is_over_says_how_and_no_more() {
    let (mut kit, ..) = at_work();
    let _ = kit.tell(Event::Cancel { job: JobId(1), now: true });
    assert_keeps(&on_job(&kit, 1), "state", "it is being cancelled: cancelled at once");
    let worker = kit.job(1).workers.values().next().unwrap().key(JobId(1));
    crash(&mut kit, worker, ExitClass::Killed, &[]);
    let rulings = on_job(&kit, 1);
    assert_eq!(rulings.iter().map(|ruling| ruling.rule).collect::<Vec<_>>(), ["state"]);
}

#[test]
fn a_node_that_takes_no_work_says_why() {
    let (mut kit, ..) = at_work();
    let _ = kit.tell(Event::Drain { node: "a".into(), drain: true });
    let rulings = on_node(&kit, "a");
    assert_keeps(&rulings, "drain", "`clusterctl undrain a`");
    assert_keeps(&rulings, "takes-work", "it is drained");

    let (mut kit, sessions, mut worker, _) = at_work();
    for fault in 1..=3 {
        crash(&mut kit, worker, ExitClass::GpuFault, &[]);
        if fault < 3 {
            assert_keeps(&on_node(&kit, "a"), "gpu-faults", "within 60 min, and 3 put it in quarantine");
            let effects = kit.wait(2_000, &sessions);
            worker = started(&effects)[0].1;
            let _ = kit.ready("a", worker);
        }
    }
    let rulings = on_node(&kit, "a");
    assert_keeps(&rulings, "quarantine", "it is in quarantine for 60 more minutes");
    assert_eq!(
        told(&rulings, "takes-work").1,
        "it takes no work: it is in quarantine",
        "for how long is told once"
    );
    assert_keeps(&rulings, "job", "it does not work for j1: ");

    let problem = Some("there is no Python".to_owned());
    let _ = kit.tell(Event::RuntimeChanged { node: "a".into(), problem });
    assert_keeps(&on_node(&kit, "a"), "runtime", "there is no Python");
    let _ = kit.wait(6_000, &[]);
    let rulings = on_node(&kit, "a");
    assert_keeps(&rulings, "connection", "no word from it for 6 s, and its rows went to others");
    assert_eq!(told(&rulings, "takes-work").1, "it takes no work: it is not connected");

    let (mut kit, ..) = at_work();
    let problem = Some("there is no Python".to_owned());
    let _ = kit.tell(Event::RuntimeChanged { node: "a".into(), problem });
    let rulings = on_node(&kit, "a");
    assert_eq!(told(&rulings, "takes-work").1, "it takes no work: it cannot run workers");
    let times = rulings.iter().filter(|ruling| ruling.rule != "job" && ruling.sentence.contains("no Python"));
    assert_eq!(times.count(), 1, "{rulings:#?}");
}

#[test]
fn a_link_that_is_to_prove_itself_and_a_node_without_a_job_are_told() {
    let (mut kit, sessions) = cluster(&[60, 60]);
    let rulings = on_node(&kit, "a");
    assert_holds(&rulings, "links", "to b over en5");
    assert_keeps(&rulings, "job", "there is no job");
    let _ = pull_cable(&mut kit, "b", false);
    assert_holds(
        &on_node(&kit, "a"),
        "links",
        "none to other nodes by a cable or in the networks that are allowed",
    );
    let _ = pull_cable(&mut kit, "b", true);
    let _ = kit.wait(1_000, &sessions);
    assert_keeps(&on_node(&kit, "a"), "link-unsettled", "the link to b has failed, and must hold for ");
}
