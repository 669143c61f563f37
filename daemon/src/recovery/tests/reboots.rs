//! Machines that need a restart, and are restarted by themselves, or are not.

use super::kit::*;
use crate::{
    model::{Fault, Incident, JobId, NodeRecord, Restart, RestartCause, RestartOutcome},
    recovery::*,
};

const GB: u64 = 1_000_000_000;
const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;

const LOST: BootFacts = BootFacts {
    stranded_bytes: Some(60 * GB),
    kills_while_loaded: 1,
    rdma_starts: 0,
    most_rdma_starts: 0,
    gpu_restarts: None,
};

fn allowed() -> Policy {
    Policy { reboots: true, ..Policy::default() }
}

type Alive = Vec<(&'static str, SessionId)>;

/// Nodes whose agents would restart their machines, under these rules, and a job that no worker of theirs is at yet.
fn nodes(names: &[&'static str], policy: Policy) -> (Kit, Alive) {
    let mut kit = Kit::new();
    let _ = kit.tell(Event::PolicyChanged(policy));
    let mut alive = Vec::new();
    for name in names {
        let facts = NodeFacts { may_restart: MayRestart::Yes, ..NodeFacts::default() };
        kit.machines.insert((*name).to_owned(), facts);
        alive.push((*name, kit.connect(name).0));
    }
    (kit, alive)
}

/// What the machine of a node says of its boot, and its agent of restarts.
fn observe(kit: &mut Kit, node: &str, boot: BootFacts, may_restart: MayRestart) -> Vec<Effect> {
    let facts = NodeFacts { boot, may_restart, ..kit.machines[node].clone() };
    kit.observe(node, facts)
}

fn strand(kit: &mut Kit, node: &str) {
    let _ = observe(kit, node, LOST, MayRestart::Yes);
}

/// One node without its memory, and a job that waits for it.
fn stranded() -> (Kit, Alive) {
    let (mut kit, alive) = nodes(&["a"], allowed());
    strand(&mut kit, "a");
    assert_eq!(started(&kit.tell(Event::JobAccepted(record(1, 50)))), []);
    (kit, alive)
}

/// Restarts that are asked for, by node, boot and cause.
fn asked(effects: &[Effect]) -> Vec<(String, String, RestartCause)> {
    let of = |effect: &Effect| match effect {
        Effect::Send { node, command: Command::RestartMachine { boot_id, cause, .. }, .. } => {
            Some((node.to_string(), boot_id.clone(), *cause))
        }
        _ => None,
    };
    effects.iter().filter_map(of).collect()
}

fn asked_of(effects: &[Effect]) -> Vec<String> {
    asked(effects).into_iter().map(|(node, ..)| node).collect()
}

fn command_id(effects: &[Effect]) -> u64 {
    let of = |effect: &Effect| match effect {
        Effect::Send { command: Command::RestartMachine { command_id, .. }, .. } => Some(*command_id),
        _ => None,
    };
    effects.iter().find_map(of).expect("a restart is asked for")
}

fn told(effects: &[Effect], wanted: &str) -> Vec<String> {
    let of = |effect: &Effect| match effect {
        Effect::Emit(draft) if draft.kind == wanted => Some(draft.message.clone()),
        _ => None,
    };
    effects.iter().filter_map(of).collect()
}

/// The machine goes down and comes back in another boot, this long after.
fn reboot(kit: &mut Kit, node: &'static str, alive: &mut Alive, boot: &str, after_ms: u64) -> Vec<Effect> {
    let (_, session) = alive.remove(alive.iter().position(|(name, _)| *name == node).unwrap());
    let mut effects = kit.tell(Event::SessionLost { node: node.into(), session });
    effects.extend(kit.wait(after_ms, alive));
    boot.clone_into(&mut kit.machines.get_mut(node).unwrap().boot_id);
    let (session, back) = kit.connect(node);
    effects.extend(back);
    alive.push((node, session));
    effects
}

#[track_caller]
fn assert_explained(kit: &Kit, node: &str, words: &str) {
    let rulings = kit.machine.explain_node(kit.now, &node.into()).unwrap();
    let ruling = rulings.iter().find(|ruling| ruling.rule == "restart").unwrap();
    assert!(!ruling.holds && ruling.sentence.contains(words), "{}", ruling.sentence);
}

fn need(kit: &Kit) -> &Incident {
    let is_of_a = |incident: &&Incident| incident.node.as_ref().is_some_and(|node| node.as_str() == "a");
    let mut needs = kit.machine.incidents().filter(|incident| incident.fault == Fault::NeedsReboot);
    needs.find(is_of_a).unwrap()
}

/// What is on record of a node, by the newest of these effects that says it.
fn on_record(effects: &[Effect], node: &str) -> NodeRecord {
    let of = |effect: &Effect| match effect {
        Effect::RecordNode(record) if record.id.as_str() == node => Some(record.clone()),
        _ => None,
    };
    effects.iter().rev().find_map(of).expect("it is recorded")
}

#[test]
fn a_machine_whose_memory_is_lost_is_restarted_and_works_again() {
    let (mut kit, mut alive) = stranded();
    assert_eq!(asked(&kit.wait(119_000, &alive)), [], "it may still come back by itself");
    assert_explained(&kit, "a", "it has to be idle for 120 s first");
    let effects = kit.wait(2_000, &alive);
    assert_eq!(asked(&effects), [("a".to_owned(), "boot-1".to_owned(), RestartCause::StrandedMemory)]);
    let recorded = effects
        .iter()
        .position(|effect| matches!(effect, Effect::RecordNode(record) if record.restarts.len() == 1));
    let sent = effects
        .iter()
        .position(|effect| matches!(effect, Effect::Send { command: Command::RestartMachine { .. }, .. }));
    assert!(recorded.unwrap() < sent.unwrap(), "it is on record before it is asked for");
    assert!(told(&effects, "restart-asked")[0].starts_with("a is being restarted: 60.0 GB of its memory"));
    assert_eq!(
        need(&kit).action,
        "the machine is being restarted; nothing is planned there until it is back"
    );
    assert_explained(&kit, "a", "it was told to restart, and is about to go down");

    // Even if the memory came back now, it goes down.
    let back = BootFacts { stranded_bytes: Some(0), ..LOST };
    let mut effects = observe(&mut kit, "a", back, MayRestart::Refuses("it was told".to_owned()));
    effects.extend(kit.wait(10_000, &alive));
    assert_eq!(started(&effects), [], "nothing is started on a machine that is about to go down");
    let effects = reboot(&mut kit, "a", &mut alive, "boot-2", 90_000);
    assert_eq!(asked(&effects), []);
    assert_eq!(
        told(&effects, "restart-done"),
        ["a is back, 100 s after it was told to restart for memory that a killed worker left wired"]
    );
    assert_eq!(started(&effects).len(), 1, "{effects:?}");
    assert!(need(&kit).closed_unix_ms.is_some());
}

#[test]
fn by_default_no_machine_is_restarted() {
    let (mut kit, alive) = nodes(&["a"], Policy::default());
    strand(&mut kit, "a");
    let mut effects = kit.tell(Event::JobAccepted(record(1, 50)));
    effects.extend(kit.wait(10 * MINUTE_MS, &alive));
    assert_eq!(asked(&effects), []);
    assert_explained(&kit, "a", "restarts are off in the controller's configuration (reboots.enabled)");
}

#[test]
fn an_agent_that_does_not_say_that_it_may_is_not_asked() {
    let refuses = || MayRestart::Refuses("FileVault is on".to_owned());
    for (may, words) in [
        (MayRestart::Unknown, "its agent does not say that it may; install the same Nightshift there"),
        (MayRestart::No, "its agent is not allowed to ([reboot] allow = true"),
        (refuses(), "not restarted by itself: FileVault is on"),
    ] {
        let (mut kit, alive) = stranded();
        let mut effects = observe(&mut kit, "a", LOST, may);
        effects.extend(kit.wait(10 * MINUTE_MS, &alive));
        assert_eq!(asked(&effects), [], "{words}");
        assert_explained(&kit, "a", words);
        let effects = observe(&mut kit, "a", LOST, MayRestart::Yes);
        assert_eq!(asked(&[effects, kit.wait(100, &alive)].concat()).len(), 1, "now it would");
    }
}

#[test]
fn a_machine_that_somebody_drained_is_left_to_them() {
    let (mut kit, alive) = stranded();
    let _ = kit.tell(Event::Drain { node: "a".into(), drain: true });
    assert_eq!(asked(&kit.wait(10 * MINUTE_MS, &alive)), []);
    assert_explained(&kit, "a", "somebody drained it and may be at it");
}

/// By day somebody may work there.
#[test]
fn without_a_job_that_may_run_now_nothing_is_restarted() {
    let (mut kit, alive) = nodes(&["a"], allowed());
    strand(&mut kit, "a");
    assert_eq!(asked(&kit.wait(10 * MINUTE_MS, &alive)), []);
    assert_explained(&kit, "a", "no job waits that may run now");
    let mut nightly = record(1, 50);
    nightly.spec.window = Some("22:00-07:00".parse().unwrap());
    kit.now.unix_ms = 12 * HOUR_MS;
    let mut effects = kit.tell(Event::JobAccepted(nightly));
    effects.extend(kit.wait(10 * MINUTE_MS, &alive));
    assert_eq!(asked(&effects), []);
    kit.now.unix_ms = 22 * HOUR_MS;
    assert_eq!(asked(&kit.wait(1_000, &alive)).len(), 1, "it has been idle for long");
}

#[test]
fn a_machine_with_a_row_on_its_way_is_waited_for() {
    let (mut kit, alive) = nodes(&["a"], allowed());
    let worker = started(&kit.tell(Event::JobAccepted(record(1, 50))))[0].1;
    let grants = granted(&kit.ready("a", worker), "a");
    let _ = kit.result("a", alive[0].1, worker, grants[0]);
    let _ = kit.exit("a", worker, ExitClass::Killed);
    strand(&mut kit, "a");
    assert_eq!(asked(&kit.wait(10 * MINUTE_MS, &alive)), [], "a result is being stored");
    assert_explained(&kit, "a", "something is at work there, or on its way from there");
    let _ = kit.committed("a", worker, grants[0], kit.spool_seq);
    assert_eq!(asked(&kit.wait(119_000, &alive)), []);
    assert_eq!(asked(&kit.wait(2_000, &alive)).len(), 1);
}

/// It is no less a worker for being of another job, or of one that is over.
#[test]
fn a_machine_with_a_worker_of_anything_is_never_restarted() {
    let (mut kit, alive) = nodes(&["a"], allowed());
    let worker = started(&kit.tell(Event::JobAccepted(record(1, 50))))[0].1;
    let _ = kit.ready("a", worker);
    let _ = kit.tell(Event::JobAccepted(record(2, 50)));
    strand(&mut kit, "a");
    let _ = kit.tell(Event::Cancel { job: JobId(1), now: true });
    assert_eq!(asked(&kit.wait(MINUTE_MS / 2, &alive)), [], "it ends, and has not ended");
    assert!(kit.job(1).workers.contains_key(&"a".into()));
    assert_explained(&kit, "a", "something is at work there");
    let _ = kit.exit("a", worker, ExitClass::Orderly);
    assert_eq!(asked(&kit.wait(121_000, &alive)).len(), 1);
}

#[test]
fn machines_are_restarted_one_by_one_and_no_more_than_so_many_in_a_day() {
    let (mut kit, mut alive) = nodes(&["a", "b", "c", "d"], allowed());
    for node in ["a", "b", "c"] {
        strand(&mut kit, node);
    }
    let _ = kit.tell(Event::JobAccepted(record(1, 5_000)));
    let effects = kit.wait(4 * MINUTE_MS, &alive);
    assert_eq!(asked_of(&effects), ["a"]);
    assert_explained(&kit, "b", "another machine is being restarted, and they go one by one");
    let mut effects = reboot(&mut kit, "a", &mut alive, "boot-2", MINUTE_MS);
    effects.extend(kit.wait(MINUTE_MS, &alive));
    assert_eq!(asked_of(&effects), ["b"]);
    let mut effects = reboot(&mut kit, "b", &mut alive, "boot-2", MINUTE_MS);
    effects.extend(kit.wait(HOUR_MS, &alive));
    assert_eq!(asked_of(&effects), [""; 0]);
    assert_explained(&kit, "c", "2 restarts within a day are as many as there may be (reboots.per_day)");
    kit.now.unix_ms += 24 * HOUR_MS;
    assert_eq!(asked_of(&kit.wait(1_000, &alive)), ["c"], "that was yesterday");
}

#[test]
fn what_a_restart_did_not_mend_is_for_a_person() {
    let (mut kit, mut alive) = stranded();
    let effects = kit.wait(3 * MINUTE_MS, &alive);
    assert_eq!(asked(&effects).len(), 1);
    let mut effects = reboot(&mut kit, "a", &mut alive, "boot-2", MINUTE_MS);
    let (_, worker) = started(&effects)[0].clone();
    let _ = kit.exit("a", worker, ExitClass::Killed);
    strand(&mut kit, "a");
    effects.extend(kit.wait(HOUR_MS, &alive));
    assert_eq!(asked(&effects), []);
    assert_explained(&kit, "a", "it was restarted for the same within a day, and that did not last");
    kit.now.unix_ms += 24 * HOUR_MS;
    assert_eq!(asked(&kit.wait(1_000, &alive)).len(), 1, "that was yesterday, and is another night");
}

#[test]
fn a_controller_that_is_started_anew_knows_what_was_asked_for() {
    let (mut kit, alive) = stranded();
    let record = on_record(&kit.wait(3 * MINUTE_MS, &alive), "a");
    let restart = Restart {
        cause: RestartCause::StrandedMemory,
        boot_id: "boot-1".to_owned(),
        asked_unix_ms: record.restarts[0].asked_unix_ms,
        outcome: RestartOutcome::Asked,
    };
    assert_eq!(record.restarts, [restart]);
    for (boot, is_down) in [("boot-1", true), ("boot-2", false)] {
        let (mut next, _) = nodes(&[], allowed());
        next.now = Now { mono_ms: 0, unix_ms: kit.now.unix_ms };
        let jobs = vec![replayed(super::kit::record(1, 50), &[])];
        let nodes = vec![record.clone()];
        let _ = next.tell(Event::Started { jobs, nodes, repairs: vec![], remains: vec![] });
        let facts =
            NodeFacts { boot_id: boot.to_owned(), may_restart: MayRestart::Yes, ..NodeFacts::default() };
        next.machines.insert("a".to_owned(), facts);
        let (session, _) = next.connect("a");
        strand(&mut next, "a");
        let effects = next.wait(4 * MINUTE_MS, &[("a", session)]);
        assert_eq!(asked(&effects), [], "{boot}");
        let why =
            if is_down { "it was told to restart" } else { "it was restarted for the same within a day" };
        assert_explained(&next, "a", why);
    }
}

/// It is asked for when it can be, and nobody has refused anything.
#[test]
fn what_the_ledger_did_not_take_was_not_asked_for() {
    let (mut kit, alive) = stranded();
    for _ in 0..5 {
        let effects = kit.wait(3 * MINUTE_MS, &alive);
        assert_eq!(asked(&effects).len(), 1);
        let command_id = command_id(&effects);
        let effects = kit.tell(Event::CommandWithheld { node: "a".into(), command_id });
        assert_eq!(told(&effects, "restart-withheld").len(), 1);
        assert_eq!(on_record(&effects, "a").restarts, []);
    }
}

#[test]
fn what_cannot_be_put_on_record_is_not_asked_for() {
    let (mut kit, alive) = stranded();
    let _ = kit.tell(Event::StorageFailed { problem: "full".to_owned() });
    assert_eq!(asked(&kit.wait(10 * MINUTE_MS, &alive)), []);
    assert_explained(&kit, "a", "it is not restarted while the controller cannot write that down");
    let _ = kit.tell(Event::StorageRecovered);
    assert_eq!(asked(&kit.wait(1_000, &alive)).len(), 1);
}

#[test]
fn a_refusal_is_told_and_asked_again_three_times_at_most() {
    let (mut kit, alive) = stranded();
    let mut effects = kit.wait(3 * MINUTE_MS, &alive);
    for refusal in 1..=3 {
        assert_eq!(asked(&effects).len(), 1);
        let command_id = command_id(&effects);
        let problem = format!("2 workers run here; {}", "ä".repeat(300));
        let other = Event::CommandRefused { node: "a".into(), command_id: 9_999, problem: "x".to_owned() };
        assert_eq!(told(&kit.tell(other), "restart-refused"), [""; 0]);
        let refused =
            kit.tell(Event::CommandRefused { node: "a".into(), command_id, problem: problem.clone() });
        assert!(told(&refused, "restart-refused")[0].starts_with("a refuses to restart: 2 workers run here"));
        assert!(need(&kit).action.starts_with("it is not restarted by itself: 2 workers run here"));
        let kept = on_record(&refused, "a").restarts.last().unwrap().outcome.refusal().unwrap().len();
        assert!((240..=250).contains(&kept), "{kept}");
        let words = if refusal < 3 {
            "it was refused, and is tried again within 10"
        } else {
            "it was refused 3 times"
        };
        assert_explained(&kit, "a", words);
        // That it is tried again within so many minutes counts from the question.
        let early = kit.wait(6 * MINUTE_MS, &alive);
        assert_eq!(asked(&early), []);
        effects = kit.wait(5 * MINUTE_MS, &alive);
    }
    assert_eq!(asked(&effects), []);
    assert_eq!(asked(&kit.wait(2 * HOUR_MS, &alive)), []);
}

#[test]
fn a_command_that_never_arrived_is_given_again() {
    let (mut kit, mut alive) = stranded();
    assert_eq!(asked(&kit.wait(3 * MINUTE_MS, &alive)).len(), 1);
    // The connection broke over it.
    alive[0].1 = kit.connect("a").0;
    strand(&mut kit, "a");
    let effects = kit.wait(6 * MINUTE_MS, &alive);
    assert_eq!(asked(&effects), []);
    let said = told(&effects, "restart-failed");
    assert_eq!(said.len(), 1);
    assert!(
        said[0].ends_with("is still there: the command did not reach its agent; it is tried again"),
        "{said:?}"
    );
    assert_eq!(asked(&kit.wait(6 * MINUTE_MS, &alive)).len(), 1);
}

#[test]
fn a_machine_that_does_not_go_down_is_told_of_once_and_left_to_a_person() {
    let (mut kit, alive) = stranded();
    assert_eq!(asked(&kit.wait(3 * MINUTE_MS, &alive)).len(), 1);
    let _ = observe(&mut kit, "a", LOST, MayRestart::Refuses("it was told to restart".to_owned()));
    let effects = kit.wait(HOUR_MS, &alive);
    assert_eq!(
        told(&effects, "restart-failed"),
        ["a was told to restart 5 minutes ago, and is still there: restart it by hand"]
    );
    let _ = observe(&mut kit, "a", LOST, MayRestart::Yes);
    assert_eq!(asked(&kit.wait(HOUR_MS, &alive)), []);
    assert_explained(&kit, "a", "it was told to restart, and did not go down; restart it by hand");
}

#[test]
fn a_machine_that_does_not_come_back_is_told_of_once_and_no_other_is_restarted() {
    let (mut kit, mut alive) = nodes(&["a", "b"], allowed());
    strand(&mut kit, "a");
    strand(&mut kit, "b");
    let _ = kit.tell(Event::JobAccepted(record(1, 50)));
    assert_eq!(asked_of(&kit.wait(3 * MINUTE_MS, &alive)), ["a"]);
    let (_, session) = alive.remove(0);
    let mut effects = kit.tell(Event::SessionLost { node: "a".into(), session });
    effects.extend(kit.wait(3 * HOUR_MS, &alive));
    let said = told(&effects, "restart-missing");
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(
        said[0],
        "a was told to restart 15 minutes ago, and has not come back: see that it has power, and whether its disk waits to be \
         unlocked (FileVault); no other machine is restarted until it is back"
    );
    assert_eq!(need(&kit).action, said[0]);
    assert_eq!(asked(&effects), []);
    assert_explained(&kit, "b", "another machine was restarted and has not come back");
    "boot-2".clone_into(&mut kit.machines.get_mut("a").unwrap().boot_id);
    let (session, effects) = kit.connect("a");
    assert_eq!(told(&effects, "restart-done").len(), 1);
    alive.push(("a", session));
    assert_eq!(asked_of(&kit.wait(1_000, &alive)), ["b"]);
}

/// It was its network that was gone.
#[test]
fn a_machine_that_comes_back_in_the_same_boot_is_no_longer_waited_for() {
    let (mut kit, mut alive) = stranded();
    assert_eq!(asked(&kit.wait(3 * MINUTE_MS, &alive)).len(), 1);
    let _ = kit.tell(Event::SessionLost { node: "a".into(), session: alive[0].1 });
    assert_eq!(told(&kit.wait(20 * MINUTE_MS, &[]), "restart-missing").len(), 1);
    kit.machines.get_mut("a").unwrap().may_restart = MayRestart::Refuses("it was told to restart".to_owned());
    alive[0].1 = kit.connect("a").0;
    let effects = kit.wait(1_000, &alive);
    assert_eq!(told(&effects, "restart-failed").len(), 1);
    let back = BootFacts { stranded_bytes: Some(0), ..LOST };
    let mut effects = observe(&mut kit, "a", back, MayRestart::Yes);
    effects.extend(kit.wait(1_000, &alive));
    assert_eq!(started(&effects).len(), 1, "it has its memory, and works");
}

/// A node that has work and is away may be back with it any moment: its job is in the air.
#[test]
fn while_a_node_with_work_is_not_heard_no_other_is_restarted() {
    let (mut kit, alive) = nodes(&["a", "b"], Policy { node_silent_ms: 60 * MINUTE_MS, ..allowed() });
    strand(&mut kit, "a");
    let _ = started(&kit.tell(Event::JobAccepted(record(1, 500))));
    let lost = Event::SessionLost { node: "b".into(), session: alive[1].1 };
    let mut effects = kit.tell(lost);
    effects.extend(kit.wait(30 * MINUTE_MS, &alive[..1]));
    assert_eq!(asked(&effects), []);
    assert_explained(&kit, "a", "a node that has work is not heard");
    let effects = kit.wait(35 * MINUTE_MS, &alive[..1]);
    assert_eq!(asked_of(&effects), ["a"], "it was given up, and has none");
}

/// Its worker has been told to end, and will never tell that it has.
#[test]
fn a_node_that_was_given_up_keeps_no_other_from_being_restarted() {
    let (mut kit, alive) = nodes(&["a", "b"], allowed());
    let workers = started(&kit.tell(Event::JobAccepted(record(1, 500))));
    for (node, worker) in &workers {
        let _ = kit.ready(node, *worker);
    }
    let _ = kit.tell(Event::InputUnreadable { job: JobId(1), problem: "torn".to_owned() });
    let (_, of_a) = workers.iter().find(|(node, _)| node == "a").unwrap();
    let _ = kit.exit("a", *of_a, ExitClass::Orderly);
    strand(&mut kit, "a");
    let _ = kit.tell(Event::JobAccepted(record(2, 500)));
    let _ = kit.tell(Event::SessionLost { node: "b".into(), session: alive[1].1 });
    let effects = kit.wait(10 * MINUTE_MS, &alive[..1]);
    assert!(kit.job(1).workers.contains_key(&"b".into()));
    assert_eq!(asked_of(&effects), ["a"]);
}

#[test]
fn a_machine_that_tries_a_link_is_not_restarted() {
    let mut kit = super::link_tests::that_tries();
    let _ = kit.tell(Event::PolicyChanged(allowed()));
    let (mut kit, alive) = super::cables::macs_in(kit, &[60, 60]);
    for node in ["a", "b"] {
        let facts = NodeFacts { boot: LOST, may_restart: MayRestart::Yes, ..kit.machines[node].clone() };
        let _ = kit.observe(node, facts);
    }
    let _ = kit.tell(Event::JobAccepted(record(1, 500)));
    let _ = kit.wait(1_000, &alive);
    assert_explained(&kit, "a", "something is at work there");
}

/// It may be back, and connects in a moment.
#[test]
fn a_controller_that_has_only_just_started_misses_nobody() {
    let (mut kit, alive) = stranded();
    let effects = kit.wait(3 * MINUTE_MS, &alive);
    let nodes = vec![on_record(&effects, "a")];
    let mut next = Kit::new();
    let _ = next.tell(Event::PolicyChanged(allowed()));
    next.now = Now { mono_ms: 0, unix_ms: kit.now.unix_ms + HOUR_MS };
    let _ = next.tell(Event::Started { jobs: vec![], nodes, repairs: vec![], remains: vec![] });
    assert_eq!(told(&next.wait(14 * MINUTE_MS, &[]), "restart-missing"), [""; 0]);
    assert_eq!(told(&next.wait(2 * MINUTE_MS, &[]), "restart-missing").len(), 1);
}

#[test]
fn a_clock_that_is_set_tells_nothing_of_a_restart() {
    let (mut kit, alive) = stranded();
    assert_eq!(asked(&kit.wait(3 * MINUTE_MS, &alive)).len(), 1);
    kit.now.unix_ms += 3 * HOUR_MS;
    let mut effects = kit.wait(MINUTE_MS, &alive);
    effects.extend(kit.tell(Event::SessionLost { node: "a".into(), session: alive[0].1 }));
    effects.extend(kit.wait(MINUTE_MS, &[]));
    let said = [told(&effects, "restart-failed"), told(&effects, "restart-missing")].concat();
    assert_eq!(said, [""; 0]);
}
