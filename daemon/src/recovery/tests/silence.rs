//! Nodes fall silent, and others look whether they are still there.

use super::{
    gangs::{Sessions, at_work, cluster},
    kit::*,
    ladder::{fallen, obey, start_all},
};
use crate::{
    model::{Fault, Incident, JobId, NodeId, WorkerKey},
    recovery::*,
};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// So many nodes on one network, each with a ready worker of a job of a hundred rows.
fn on_one_network(nodes: usize) -> (Kit, Sessions, Vec<WorkerKey>) {
    at_addresses(&["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"][..nodes])
}

fn at_addresses(addresses: &[&str]) -> (Kit, Sessions, Vec<WorkerKey>) {
    let mut kit = Kit::new();
    let policy = Policy { node_silent_ms: 5_000, ..Policy::default() };
    let _ = kit.tell(Event::PolicyChanged(policy));
    let mut sessions = Vec::new();
    for (name, address) in NAMES.into_iter().zip(addresses) {
        kit.machines.insert(name.to_owned(), machine(address, 60));
        sessions.push((name, kit.connect(name).0));
    }
    let workers = started(&kit.tell(Event::JobAccepted(record(1, 100))));
    assert_eq!(workers.len(), addresses.len());
    for (node, worker) in &workers {
        let _ = kit.ready(node, *worker);
    }
    (kit, sessions, workers.into_iter().map(|(_, worker)| worker).collect())
}

/// Who was asked to look at whom, and under which number.
fn looks(effects: &[Effect]) -> Vec<(String, u64, String)> {
    let asked = effects.iter().filter_map(|effect| match effect {
        Effect::Send { node, command: Command::LookAt { request_id, of, .. }, .. } => {
            Some((node.to_string(), *request_id, of.to_string()))
        }
        _ => None,
    });
    asked.collect()
}

fn sees(kit: &mut Kit, looker: &str, request_id: u64, of: &str, seen: bool) {
    let how = if seen { "10.0.0.1 answers" } else { "10.0.0.1 gives no answer within 1 s" };
    let event = Event::NodeSeen { node: looker.into(), request_id, of: of.into(), seen, how: how.to_owned() };
    assert!(kit.tell(event).is_empty(), "nothing follows before the next tick");
}

/// Time passes, and whoever is asked to look says at once that the node is there, or that it is not.
fn wait_looking(kit: &mut Kit, ms: u64, alive: &[(&str, SessionId)], seen: bool) -> Vec<Effect> {
    let mut all = Vec::new();
    for _ in 0..ms / 100 {
        let effects = kit.wait(100, alive);
        for (looker, request_id, of) in looks(&effects) {
            sees(kit, &looker, request_id, &of, seen);
        }
        all.extend(effects);
    }
    all
}

fn rows_on(kit: &Kit, node: &str) -> usize {
    kit.job(1).leases.values().filter(|lease| lease.node.as_str() == node).count()
}

fn silent_incident(kit: &Kit) -> Option<&Incident> {
    kit.machine.incidents().find(|incident| incident.fault == Fault::NodeSilent)
}

#[test]
fn silence_that_another_node_confirms_is_answered_in_time_and_says_so() {
    let (mut kit, sessions, _) = on_one_network(2);
    let alive = &sessions[1..];
    assert_eq!(looks(&kit.wait(2_400, alive)), [], "two late heartbeats are no silence");
    let effects = kit.wait(100, alive);
    let [(looker, request_id, of)] = &looks(&effects)[..] else { panic!("one is asked: {effects:?}") };
    assert_eq!((looker.as_str(), of.as_str()), ("b", "a"));
    let addresses = effects.iter().find_map(|effect| match effect {
        Effect::Send { command: Command::LookAt { addresses, .. }, .. } => Some(addresses.clone()),
        _ => None,
    });
    assert_eq!(addresses.unwrap(), ["10.0.0.1".parse::<core::net::IpAddr>().unwrap()]);
    sees(&mut kit, looker, *request_id, "a", false);

    assert_eq!(looks(&kit.wait(1_900, alive)), []);
    assert_eq!(looks(&kit.wait(100, alive)).len(), 1, "two seconds after the first");
    assert_eq!(rows_on(&kit, "a"), 16);
    let effects = kit.wait(500, alive);
    assert!(events(&effects).contains(&"node-silent"));
    assert_eq!(rows_on(&kit, "a"), 0);
    let incident = silent_incident(&kit).unwrap();
    assert_eq!(incident.summary, "no word from a for 5 s; confirmed by b: it does not answer there either");
    assert_eq!(incident.action, "its 16 rows were handed out again; it is taken back when it returns");
    assert_eq!(
        incident.evidence,
        ["no node that looked for it saw it", "b: 10.0.0.1 gives no answer within 1 s"]
    );
    assert_eq!(looks(&kit.wait(60_000, alive)), [], "nobody looks any more");
}

#[test]
fn a_node_that_another_sees_keeps_its_rows_for_fifteen_seconds_and_no_longer() {
    let (mut kit, sessions, _) = on_one_network(2);
    let alive = &sessions[1..];
    let effects = wait_looking(&mut kit, 14_900, alive, true);
    assert_eq!(events(&effects), ["silent-node-kept"], "said once");
    let closed = |effect: &&Effect| matches!(effect, Effect::CloseSession { .. });
    assert_eq!(effects.iter().filter(closed).count(), 1, "what is sent to it would be lost");
    assert_eq!(looks(&effects).len(), 7, "every two seconds");
    assert_eq!((rows_on(&kit, "a"), kit.job(1).workers.len()), (16, 2));
    assert!(silent_incident(&kit).is_none());

    let effects = wait_looking(&mut kit, 100, alive, true);
    assert_eq!(events(&effects), ["node-silent"]);
    assert_eq!((rows_on(&kit, "a"), kit.job(1).workers.len()), (0, 1));
    let incident = silent_incident(&kit).unwrap();
    assert_eq!(
        incident.summary,
        "no word from a for 15 s; b still reaches it: its agent, or its way to the controller, is what is broken"
    );
    assert_eq!(
        incident.action,
        "its 16 rows were handed out again; it is taken back when it returns; see on it that cluster-agent runs, and that \
         it can reach the controller"
    );
    assert_eq!(incident.evidence, ["its machine was seen by another node", "b: 10.0.0.1 answers"]);
    assert_eq!(incident.noticed_after_ms, Some(15_000));
    assert_eq!(kit.job(1).record.rows_requeued, 16);
}

#[test]
fn a_kept_node_is_given_up_as_soon_as_nobody_sees_it() {
    let (mut kit, sessions, _) = on_one_network(2);
    let alive = &sessions[1..];
    let _ = wait_looking(&mut kit, 8_000, alive, true);
    assert_eq!(rows_on(&kit, "a"), 16);
    let effects = wait_looking(&mut kit, 700, alive, false);
    assert_eq!(events(&effects), ["node-silent"]);
    let summary = &silent_incident(&kit).unwrap().summary;
    assert!(summary.starts_with("no word from a for 9 s; confirmed by b: "), "{summary}");

    // Who does not answer any more vouches for five seconds.
    let (mut kit, sessions, _) = on_one_network(2);
    let alive = &sessions[1..];
    let _ = wait_looking(&mut kit, 6_500, alive, true);
    let _ = kit.wait(4_900, alive);
    assert_eq!(rows_on(&kit, "a"), 16);
    let effects = kit.wait(100, alive);
    assert_eq!(events(&effects), ["node-silent"]);
    assert_eq!(silent_incident(&kit).unwrap().summary, "no word from a for 12 s");
}

#[test]
fn one_that_sees_it_outweighs_one_that_does_not() {
    let (mut kit, sessions, _) = on_one_network(3);
    let asked = looks(&kit.wait(2_500, &sessions[1..]));
    for (looker, request_id, of) in &asked {
        sees(&mut kit, looker, *request_id, of, looker == "c");
    }
    assert_eq!(asked.len(), 2);
    let effects = kit.wait(2_500, &sessions[1..]);
    let told = effects.iter().find_map(|effect| match effect {
        Effect::Emit(draft) if draft.kind == "silent-node-kept" => Some(draft.message.as_str()),
        _ => None,
    });
    assert_eq!(
        told,
        Some(
            "no word from a for 5 s, but c still reaches it; what it has stays with it until it has been silent for 15 s"
        )
    );
}

#[test]
fn where_nobody_can_look_silence_is_answered_as_ever() {
    let (mut kit, sessions, _) = at_addresses(&["10.0.0.1", "10.1.0.1"]);
    let effects = kit.wait(5_000, &sessions[1..]);
    assert_eq!(looks(&effects), [], "they are on different networks");
    assert_eq!(events(&effects), ["node-silent"]);
    let incident = silent_incident(&kit).unwrap();
    assert_eq!((incident.summary.as_str(), incident.evidence.len()), ("no word from a for 5 s", 0));

    let (mut kit, ..) = on_one_network(2);
    let effects = kit.wait(5_000, &[]);
    assert_eq!(looks(&effects), [], "nobody is heard: the controller's own network, most likely");
    assert_eq!(events(&effects), ["node-silent", "node-silent"]);

    let (mut kit, sessions, _) = on_one_network(2);
    let _ = kit.tell(Event::Cancel { job: JobId(1), now: true });
    for (node, worker) in started_workers(&kit) {
        let _ = kit.exit(&node, worker, ExitClass::Orderly);
    }
    assert_eq!(looks(&kit.wait(5_000, &sessions[1..])), [], "it has nothing that could be moved");
}

fn started_workers(kit: &Kit) -> Vec<(String, WorkerKey)> {
    let workers = kit.job(1).workers.iter();
    workers.map(|(node, worker)| (node.to_string(), worker.key(JobId(1)))).collect()
}

#[test]
fn two_are_asked_and_those_that_do_not_answer_make_room_for_others() {
    let (mut kit, sessions, _) = on_one_network(4);
    let alive = &sessions[1..];
    let asked = |effects: &[Effect]| -> Vec<String> {
        looks(effects).into_iter().map(|(looker, ..)| looker).collect()
    };
    let first = kit.wait(2_500, alive);
    assert_eq!(asked(&first), ["b", "c"]);
    sees(&mut kit, "c", looks(&first)[1].1, "a", true);
    assert_eq!(asked(&kit.wait(2_000, alive)), ["c", "d"]);
}

#[test]
fn a_node_heard_again_was_never_silent() {
    let (mut kit, sessions, workers) = on_one_network(2);
    let alive = &sessions[1..];
    let asked = looks(&kit.wait(2_500, alive));
    let _ = kit.tell(Event::Heard { node: "a".into(), session: sessions[0].1 });
    sees(&mut kit, "b", asked[0].1, "a", true);
    let effects = kit.wait(5_000, alive);
    assert_eq!(looks(&effects).len(), 2, "from half of the bound on, as if nothing had been");
    assert_eq!(events(&effects), ["node-silent"], "what was seen in the silence before does not count");

    // One that was kept comes back with its worker and its rows.
    let (mut kit, sessions, _) = on_one_network(2);
    let alive = &sessions[1..];
    let _ = wait_looking(&mut kit, 12_000, alive, true);
    let held = kit.job(1).leases.iter().filter(|(_, lease)| lease.node.as_str() == "a");
    let report = ReportedWorker {
        worker: workers[0],
        pid: 77,
        phase: WorkerPhase::Decode,
        step: 5,
        settings: WorkerSettings { max_batch_rows: 8, ..WorkerSettings::default() },
        world_size: 1,
        rows: held.map(|(row, lease)| HeldRow { row: *row, attempt: lease.attempt }).collect(),
    };
    let (session, mut effects) = kit.hello("a", "agent-1", vec![report]);
    effects.extend(kit.replayed("a", session));
    assert_eq!((started(&effects), stopped(&effects)), (vec![], vec![]));
    let _ = kit.wait(10_000, &[("a", session), sessions[1]]);
    assert_eq!((rows_on(&kit, "a"), kit.job(1).record.rows_requeued), (16, 0));
    assert!(silent_incident(&kit).is_none());
    assert!(events(&kit.wait(5_000, alive)).contains(&"node-silent"), "its next silence is a new one");
}

#[test]
fn what_does_not_answer_the_newest_look_is_ignored() {
    let (mut kit, sessions, _) = on_one_network(3);
    let alive = &sessions[1..];
    let first = looks(&kit.wait(2_500, alive));
    let second = looks(&kit.wait(2_000, alive));
    assert_eq!((first.len(), second.len()), (2, 2));
    sees(&mut kit, "b", first[0].1, "a", true);
    sees(&mut kit, "b", second[1].1, "a", true);
    sees(&mut kit, "b", 999, "a", true);
    sees(&mut kit, "b", second[0].1, "c", true);
    sees(&mut kit, "b", second[0].1, "nobody", true);
    let effects = kit.wait(500, alive);
    assert_eq!(events(&effects), ["node-silent"]);
    sees(&mut kit, "b", second[0].1, "a", true);
    assert_eq!(silent_incident(&kit).unwrap().summary, "no word from a for 5 s");
}

#[test]
fn a_controller_that_was_absent_still_knows_what_was_seen() {
    let (mut kit, sessions, _) = on_one_network(2);
    let alive = &sessions[1..];
    let _ = wait_looking(&mut kit, 4_600, alive, true);
    kit.now.mono_ms += 20_000;
    kit.now.unix_ms += 20_000;
    let effects = kit.wait(500, alive);
    assert!(events(&effects).contains(&"silent-node-kept"), "{effects:?}");
    assert_eq!(rows_on(&kit, "a"), 16);
}

/// Rank 0 reports a step.
fn step(kit: &mut Kit, worker: WorkerKey, step: u64) {
    let news = ProgressNews {
        worker,
        phase: WorkerPhase::Decode,
        step,
        step_age_ms: 0,
        active_rows: 8,
        prompt_tokens: 10,
        generated_tokens: 8 * step,
        peak_memory_bytes: 0,
        checkpoints: Vec::new(),
    };
    let _ = kit.tell(Event::Progress { node: NodeId::from("a"), news });
}

/// A minute in which b is silent, a sees it, and rank 0 on a takes steps.
fn a_minute_with_a_silent_rank() -> (Kit, Sessions, Vec<(String, WorkerKey)>, Vec<RowGrant>) {
    let (mut kit, sessions, ranks, rows_out) = at_work();
    let alive = [sessions[0]];
    let mut effects = Vec::new();
    for second in 1..=60 {
        step(&mut kit, ranks[0].1, second);
        effects.extend(wait_looking(&mut kit, 1_000, &alive, true));
    }
    assert_eq!((started(&effects), stopped(&effects)), (vec![], vec![]));
    assert_eq!(events(&effects), ["silent-node-kept"]);
    assert_eq!(kit.job(1).workers.len(), 2, "its rank is still there");
    assert_eq!(kit.job(1).record.launches.len(), 2);
    (kit, sessions, ranks, rows_out)
}

#[test]
fn a_gang_goes_on_without_a_word_from_a_rank_that_is_seen() {
    let (mut kit, sessions, ranks, rows_out) = a_minute_with_a_silent_rank();
    let _ = kit.result("a", sessions[0].1, ranks[0].1, rows_out[0]);
    let effects = kit.committed("a", ranks[0].1, rows_out[0], 1);
    assert_eq!(granted(&effects, "a").len(), 1, "it gets further rows");

    // The rank is adopted when its node returns.
    let report = ReportedWorker {
        worker: ranks[1].1,
        pid: 9,
        phase: WorkerPhase::Decode,
        step: 60,
        settings: WorkerSettings::default(),
        world_size: 2,
        rows: Vec::new(),
    };
    let (session, mut effects) = kit.hello("b", "agent-1", vec![report]);
    effects.extend(kit.replayed("b", session));
    effects.extend(kit.wait(2_000, &[sessions[0], ("b", session)]));
    assert_eq!((started(&effects), stopped(&effects)), (vec![], vec![]));
    assert_eq!(kit.machine.incidents().count(), 0);
}

#[test]
fn a_gang_that_takes_no_steps_any_more_ends_with_its_silent_node() {
    let (mut kit, sessions, ranks, rows_out) = a_minute_with_a_silent_rank();
    let alive = [sessions[0]];
    let budget_ms = Policy::default().least_step_budget_ms;
    let effects = wait_looking(&mut kit, budget_ms - 1_000, &alive, true);
    assert_eq!(stopped(&effects), []);
    let effects = wait_looking(&mut kit, 200, &alive, true);
    assert_eq!(stopped(&effects), [("a".to_owned(), ranks[0].1, StopMode::Kill)]);
    let _ = kit.exit("a", ranks[0].1, ExitClass::Killed);
    let [incident] = kit.machine.incidents().cloned().collect::<Vec<_>>().try_into().unwrap();
    assert_eq!((incident.fault, incident.rows_requeued), (Fault::NodeSilent, rows_out.len() as u64));
    assert!(incident.summary.contains("; a still reaches it: "), "{}", incident.summary);
    assert_eq!(kit.job(1).leases.len(), 0);
}

#[test]
fn a_gang_ends_at_once_with_a_node_that_is_seen_no_more() {
    let (mut kit, sessions, ranks, _) = a_minute_with_a_silent_rank();
    step(&mut kit, ranks[0].1, 61);
    let effects = wait_looking(&mut kit, 2_100, &sessions[..1], false);
    assert_eq!(stopped(&effects), [("a".to_owned(), ranks[0].1, StopMode::Kill)]);
    let summary = &silent_incident(&kit).unwrap().summary;
    assert!(summary.ends_with("confirmed by a: it does not answer there either"), "{summary}");
}

#[test]
fn the_node_of_rank_0_is_kept_no_longer_than_any() {
    let (mut kit, sessions, ranks, _) = at_work();
    step(&mut kit, ranks[0].1, 1);
    let effects = wait_looking(&mut kit, 14_900, &sessions[1..], true);
    assert_eq!(stopped(&effects), []);
    let effects = wait_looking(&mut kit, 100, &sessions[1..], true);
    assert_eq!(stopped(&effects), [("b".to_owned(), ranks[1].1, StopMode::Kill)]);
}

#[test]
fn a_rank_that_waits_for_a_silent_node_is_not_told_as_hung() {
    let (mut kit, sessions, ..) = a_minute_with_a_silent_rank();
    let budget_ms = Policy::default().least_step_budget_ms;
    let effects = wait_looking(&mut kit, budget_ms + 200, &sessions[..1], true);
    assert_eq!(events(&effects), ["node-silent"]);
}

/// Ranks on a and b, one of which is silent from now on, and c, which has nothing to do and looks.
#[test]
fn a_silent_rank_is_not_vouched_for_by_a_rank_0_that_is_out_of_reach_itself() {
    let (mut kit, sessions) = cluster(&[60, 60, 60]);
    let mut effects = kit.tell(Event::JobAccepted(record(1, 100)));
    effects.extend(kit.wait(2_100, &sessions));
    let ranks = start_all(&mut kit, &effects);
    assert_eq!(ranks.len(), 2);
    for second in 1..=10 {
        step(&mut kit, ranks[0].1, second);
        let _ = wait_looking(&mut kit, 1_000, &[sessions[0], sessions[2]], true);
    }
    let _ = kit.tell(Event::SessionLost { node: "a".into(), session: sessions[0].1 });
    let effects = wait_looking(&mut kit, 5_000, &sessions[2..], true);
    assert_eq!(events(&effects), ["silent-node-kept", "node-silent"], "a is kept, b was silent for 15 s");
}

#[test]
fn a_gang_that_has_not_begun_does_not_keep_a_silent_rank() {
    let (mut kit, sessions) = cluster(&[60, 60]);
    let _ = kit.tell(Event::JobAccepted(record(1, 100)));
    let ranks = started(&kit.wait(2_100, &sessions));
    assert_eq!(ranks.len(), 2);
    let effects = wait_looking(&mut kit, 15_000, &sessions[..1], true);
    assert!(events(&effects).contains(&"node-silent"), "loading may take half an hour: {effects:?}");
}

/// The last result of a worker that was there before the gang.
#[test]
fn a_result_that_is_being_stored_does_not_end_the_gang_of_a_silent_rank() {
    let (mut kit, sessions) = fallen();
    let (row, lease) = kit.job(1).leases.iter().find(|(_, lease)| lease.node.as_str() == "b").unwrap();
    let grant = RowGrant { row: *row, attempt: lease.attempt };
    let worker = WorkerKey { job: JobId(1), epoch: lease.epoch, rank: 0 };
    assert_eq!(commits(&kit.result("b", sessions[1].1, worker, grant)), 1);
    let effects = kit.wait(75_000, &sessions);
    let mut effects = obey(&mut kit, &effects, ExitClass::Orderly);
    effects.extend(kit.wait(2_100, &sessions));
    let ranks = start_all(&mut kit, &effects);
    assert_eq!(
        ranks.iter().map(|(node, key)| (node.as_str(), key.rank)).collect::<Vec<_>>(),
        [("a", 0), ("b", 1)]
    );
    assert!(kit.job(1).leases[&grant.row].committing);
    let mut effects = Vec::new();
    for second in 1..=30 {
        step(&mut kit, ranks[0].1, second);
        effects.extend(wait_looking(&mut kit, 1_000, &sessions[..1], true));
    }
    assert_eq!(events(&effects), ["silent-node-kept"]);
}

#[test]
fn a_node_whose_job_has_ended_is_kept_no_longer_than_any() {
    let (mut kit, sessions, _) = on_one_network(2);
    let alive = &sessions[1..];
    let _ = wait_looking(&mut kit, 13_900, alive, true);
    let _ = kit.tell(Event::InputUnreadable { job: JobId(1), problem: "gone".to_owned() });
    assert_eq!(events(&wait_looking(&mut kit, 1_000, alive, true)), [""; 0]);
    assert_eq!(events(&wait_looking(&mut kit, 100, alive, true)), ["node-silent"]);
}

#[test]
fn a_worker_that_is_no_rank_of_a_gang_is_kept_for_no_gang() {
    let (mut kit, sessions, workers) = on_one_network(2);
    // It has no rows either, and gets none.
    let _ = kit.tell(Event::StorageFailed { problem: "full".to_owned() });
    let report = ReportedWorker {
        worker: workers[0],
        pid: 77,
        phase: WorkerPhase::Idle,
        step: 0,
        settings: WorkerSettings { max_batch_rows: 8, ..WorkerSettings::default() },
        world_size: 1,
        rows: Vec::new(),
    };
    let (session, _) = kit.hello("a", "agent-1", vec![report]);
    let _ = kit.replayed("a", session);
    assert_eq!(rows_on(&kit, "a"), 0);
    let effects = wait_looking(&mut kit, 5_000, &sessions[1..], true);
    let told = effects.iter().find_map(|effect| match effect {
        Effect::Emit(draft) if draft.kind == "silent-node-kept" => Some(draft.message.as_str()),
        _ => None,
    });
    let told = told.expect("it is seen");
    assert!(told.ends_with("what it has stays with it until it has been silent for 15 s"), "{told}");
}

#[test]
fn a_silent_node_without_work_is_not_looked_at_and_changes_no_job() {
    let (mut kit, sessions, workers) = on_one_network(2);
    let _ = kit.tell(Event::Drain { node: "a".into(), drain: true });
    let _ = kit.exit("a", workers[0], ExitClass::Orderly);
    let effects = kit.wait(5_000, &sessions[1..]);
    assert_eq!(looks(&effects), []);
    assert_eq!(events(&effects), ["node-silent"]);
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::RecordJob(_))), "{effects:?}");
}

#[test]
fn a_node_that_owes_rows_is_looked_at_though_its_worker_is_gone() {
    let (mut kit, sessions, _) = on_one_network(2);
    // Its agent is new, and has not delivered yet what it had spooled.
    let _ = kit.hello("a", "agent-2", Vec::new());
    assert_eq!((kit.job(1).workers.len(), rows_on(&kit, "a")), (1, 16));
    let effects = kit.wait(2_500, &sessions[1..]);
    assert_eq!(looks(&effects).len(), 1);
    // When they are handed out again, that is on record.
    let effects = kit.wait(2_600, &sessions[1..]);
    let recorded = effects.iter().rev().find_map(|effect| match effect {
        Effect::RecordJob(record) => Some(record.rows_requeued),
        _ => None,
    });
    assert_eq!(recorded, Some(16), "{effects:?}");
}

#[test]
fn who_has_just_lost_its_connection_takes_no_place_among_those_who_look() {
    let (mut kit, sessions, _) = on_one_network(4);
    let _ = kit.wait(2_400, &sessions[1..]);
    let _ = kit.tell(Event::SessionLost { node: "b".into(), session: sessions[1].1 });
    let asked = looks(&kit.wait(100, &sessions[2..]));
    assert_eq!(asked.iter().map(|(looker, ..)| looker.as_str()).collect::<Vec<_>>(), ["c", "d"]);
}

#[test]
fn no_more_addresses_are_looked_at_than_agents_try() {
    let (mut kit, sessions, _) = on_one_network(2);
    let mut facts = kit.machines["a"].clone();
    facts.interfaces[0].addresses = (10..20).map(|last| format!("10.0.0.{last}/24")).collect();
    let _ = kit.observe("a", facts);
    let effects = kit.wait(2_500, &sessions[1..]);
    let looked_at = effects.iter().find_map(|effect| match effect {
        Effect::Send { command: Command::LookAt { addresses, .. }, .. } => Some(addresses.len()),
        _ => None,
    });
    assert_eq!(looked_at, Some(8));
}
