//! Models too large for one node: gangs are formed, serve, end as one and are formed anew.

use std::sync::Arc;

use super::kit::*;
use crate::{
    model::{Epoch, Fault, JobId, JobRecord, JobState, Launch, Mode, NodeId, RowIx, RowLengths, WorkerKey},
    recovery::*,
};

pub(super) type Sessions = Vec<(&'static str, SessionId)>;

/// Nodes a, b, … of so many gigabytes each, in one allowed network, all of which have the large model.
pub(super) fn cluster(budgets_gb: &[u64]) -> (Kit, Sessions) {
    cluster_in(Kit::new(), budgets_gb)
}

/// The same in a kit that is set up already.
pub(super) fn cluster_in(mut kit: Kit, budgets_gb: &[u64]) -> (Kit, Sessions) {
    let _ = kit.tell(Event::PolicyChanged(policy_with_a_network()));
    let mut sessions = Vec::new();
    for (name, (budget, last)) in ["a", "b", "c", "d"].into_iter().zip(budgets_gb.iter().zip(1..)) {
        kit.found.insert(name.to_owned(), large_model());
        kit.machines.insert(name.to_owned(), machine(&format!("10.0.0.{last}"), *budget));
        sessions.push((name, kit.connect(name).0));
    }
    (kit, sessions)
}

/// A job over a gang of two whose ranks are ready, the rows of rank 0, and the keys of both ranks.
pub(super) fn at_work() -> (Kit, Sessions, Vec<(String, WorkerKey)>, Vec<RowGrant>) {
    let (mut kit, sessions) = cluster(&[60, 60]);
    let mut effects = kit.tell(Event::JobAccepted(record(1, 100)));
    effects.extend(kit.wait(2_100, &sessions));
    let ranks = started(&effects);
    let mut granted_rows = Vec::new();
    for (node, worker) in &ranks {
        let effects = kit.ready(node, *worker);
        granted_rows.extend(granted(&effects, &ranks[0].0));
    }
    (kit, sessions, ranks, granted_rows)
}

fn launches(job: &JobRecord) -> Vec<(String, u64, u32, u32)> {
    let told = |launch: &Launch| (launch.node.to_string(), launch.epoch.0, launch.rank, launch.world_size);
    job.launches.iter().map(told).collect()
}

#[test]
fn a_model_too_large_for_one_node_gets_a_gang_in_one_epoch() {
    let (mut kit, sessions) = cluster(&[60, 60]);
    let effects = kit.tell(Event::JobAccepted(record(1, 100)));
    assert_eq!(started(&effects), [], "a moment is waited for more nodes");
    let effects = kit.wait(2_100, &sessions);
    let ranks = started(&effects);
    let key = |rank| WorkerKey { job: JobId(1), epoch: Epoch(1), rank };
    assert_eq!(ranks, [("a".to_owned(), key(0)), ("b".to_owned(), key(1))]);
    assert_eq!(
        launches(&kit.job(1).record),
        [("a".to_owned(), 1, 0, 2), ("b".to_owned(), 1, 1, 2)],
        "recorded with both"
    );
    let gangs: Vec<Arc<GangLaunch>> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Send { command: Command::StartWorker { gang, .. }, .. } => gang.clone(),
            _ => None,
        })
        .collect();
    assert_eq!(gangs.len(), 2);
    assert_eq!(gangs[0], gangs[1], "both are told the same");
    let [last, first] = gangs[0].ranks.as_slice() else { panic!("{:#?}", gangs[0]) };
    let (last_layers, first_layers) = (last.layers.unwrap(), first.layers.unwrap());
    assert_eq!((first_layers.first, last_layers.end), (0, 80));
    assert_eq!(first_layers.end, last_layers.first);
    assert_eq!(last.ring_address.unwrap().to_string(), "10.0.0.1:47001");
    assert_eq!(first.ring_address.unwrap().to_string(), "10.0.0.2:47002");
    assert_eq!(last.control_addresses, first.control_addresses);
    assert_eq!(last.control_addresses[0].to_string(), "10.0.0.1:47000");

    let plan = kit.job(1).plan.clone().unwrap();
    assert_eq!(plan.mode, Mode::Pipeline);
    let rules: Vec<&str> = plan.reasons.iter().map(|reason| reason.rule).collect();
    assert!(rules.contains(&"too-big-for-one") && rules.contains(&"fewest-nodes"), "{plan:#?}");
}

#[test]
fn rows_go_to_rank_0_and_only_when_every_rank_is_ready() {
    let (mut kit, sessions) = cluster(&[60, 60]);
    let _ = kit.tell(Event::JobAccepted(record(1, 100)));
    let ranks = started(&kit.wait(2_100, &sessions));
    let effects = kit.ready("a", ranks[0].1);
    assert_eq!(granted(&effects, "a"), []);
    let effects = kit.ready("b", ranks[1].1);
    assert!(!granted(&effects, "a").is_empty());
    assert_eq!(granted(&effects, "b"), []);
}

#[test]
fn what_fits_one_node_runs_whole_on_every_node() {
    let (mut kit, _) = cluster(&[100, 100]);
    let effects = kit.tell(Event::JobAccepted(record(1, 100)));
    let epochs: Vec<(String, u64, u32)> =
        started(&effects).into_iter().map(|(node, key)| (node, key.epoch.0, key.rank)).collect();
    assert_eq!(epochs, [("a".to_owned(), 1, 0), ("b".to_owned(), 2, 0)]);
    assert_eq!(kit.job(1).plan.as_ref().unwrap().mode, Mode::Independent);
}

#[test]
fn the_plan_counts_with_the_job_s_longest_row() {
    let reason = |lengths: RowLengths, context_tokens| {
        let (mut kit, _) = cluster(&[100, 100]);
        let mut job = JobRecord { lengths, ..record(1, 100) };
        job.spec.context_tokens = context_tokens;
        let _ = kit.tell(Event::JobAccepted(job));
        let plan = kit.job(1).plan.clone().unwrap();
        plan.reasons.iter().find(|reason| reason.rule == "planned-for").unwrap().text.clone()
    };
    let with = |line_bytes, max_tokens| {
        let mut lengths = RowLengths::default();
        lengths.note(line_bytes, max_tokens);
        lengths
    };
    let of = |tokens: &str| format!("counted for 8 rows together, each of {tokens} tokens");
    assert_eq!(reason(with(400, Some(100)), 0), of("512"), "200 and 100, in whole steps");
    assert_eq!(reason(with(4_000, None), 0), of("2560"), "2,000 and the 512 that the policy gives");
    assert_eq!(reason(with(400, Some(100)), 7_000), of("7000"), "a person's number is taken as it is");
    assert_eq!(reason(RowLengths::default(), 0), of("4096"), "a job from before rows were measured");
}

#[test]
fn what_fits_nowhere_waits_and_says_why_until_there_is_a_node_for_it() {
    let (mut kit, mut sessions) = cluster(&[30, 30]);
    let mut effects = kit.tell(Event::JobAccepted(record(1, 100)));
    effects.extend(kit.wait(5_000, &sessions));
    assert_eq!(started(&effects), []);
    let job = kit.job(1);
    assert_eq!(job.record.state, JobState::Active);
    let reasons = &job.plan.as_ref().unwrap().reasons;
    assert!(reasons.iter().any(|reason| reason.rule == "refused"), "{reasons:#?}");

    kit.found.insert("c".to_owned(), large_model());
    kit.machines.insert("c".to_owned(), machine("10.0.0.3", 60));
    let (session, _) = kit.connect("c");
    sessions.push(("c", session));
    let effects = kit.wait(2_100, &sessions);
    assert_eq!(started(&effects).len(), 3, "over all three");
}

#[test]
fn a_rank_that_is_gone_ends_its_gang_and_a_new_one_goes_on_with_the_rows() {
    let (mut kit, sessions, ranks, rows_out) = at_work();
    assert!(!rows_out.is_empty());
    let effects = kit.exit("b", ranks[1].1, ExitClass::Signalled);
    assert_eq!(stopped(&effects), [("a".to_owned(), ranks[0].1, StopMode::Kill)]);
    assert_eq!(kit.machine.incidents().count(), 1);

    let effects = kit.exit("a", ranks[0].1, ExitClass::LinkFault);
    assert!(stopped(&effects).is_empty());
    assert_eq!(kit.machine.incidents().count(), 1, "the aftermath is no incident of its own");
    assert_eq!(kit.job(1).leases.len(), 0, "its rows are free again");
    let effects = kit.wait(5_000, &sessions);
    let again = started(&effects);
    assert_eq!(again.len(), 2);
    assert!(again.iter().all(|(_, key)| key.epoch == Epoch(2)), "{again:?}");

    let mut effects = Vec::new();
    for (node, worker) in &again {
        effects.extend(kit.ready(node, *worker));
    }
    let next = granted(&effects, "a");
    assert_eq!(rows(&next), rows(&rows_out), "the same rows first");
    assert!(next.iter().all(|grant| grant.attempt == 2));
}

#[test]
fn what_an_old_gang_still_answers_does_not_count() {
    let (mut kit, sessions, ranks, rows_out) = at_work();
    let _ = kit.exit("b", ranks[1].1, ExitClass::Signalled);
    let _ = kit.exit("a", ranks[0].1, ExitClass::LinkFault);
    let again = started(&kit.wait(5_000, &sessions));
    for (node, worker) in &again {
        let _ = kit.ready(node, *worker);
    }
    let effects = kit.result("a", sessions[0].1, ranks[0].1, rows_out[0]);
    assert_eq!(commits(&effects), 0);
    assert!(!kit.job(1).done.contains(rows_out[0].row));
}

#[test]
fn a_rank_that_hangs_is_ended_with_its_gang_in_one_incident() {
    let (mut kit, sessions, ranks, _) = at_work();
    let effects = kit.wait(Policy::default().step_budget_ms + 200, &sessions);
    let ended = stopped(&effects);
    assert_eq!(
        ended,
        [("a".to_owned(), ranks[0].1, StopMode::Kill), ("b".to_owned(), ranks[1].1, StopMode::Kill)]
    );
    // It is b that hangs; a only waits for it, and ends in order.
    let _ = kit.exit("a", ranks[0].1, ExitClass::Orderly);
    let _ = kit.exit("b", ranks[1].1, ExitClass::Killed);
    let faults: Vec<&str> = kit.machine.incidents().map(|incident| incident.fault.word()).collect();
    assert_eq!(faults, ["worker-silent"]);
    let summary = kit.machine.incidents().map(|incident| incident.summary.as_str()).collect::<String>();
    assert!(summary.contains("took no step, and ended when it was told to"), "{summary}");
}

#[test]
fn a_gang_that_cannot_meet_is_tried_again_until_it_can_and_less_and_less_often() {
    let (mut kit, sessions) = cluster(&[60, 60]);
    let mut effects = kit.tell(Event::JobAccepted(record(1, 100)));
    effects.extend(kit.wait(2_100, &sessions));
    let policy = policy_with_a_network();
    let tries = 3 * policy.failures_before_pause;
    for failures in 1..=tries {
        let ranks = started(&effects);
        assert_eq!(ranks.len(), 2, "after {} failures", failures - 1);
        let _ = kit.exit("a", ranks[0].1, ExitClass::Apart);
        let _ = kit.exit("b", ranks[1].1, ExitClass::Orderly);
        let pause_ms = rules::pause_ms(failures, &policy).max(policy.gang_settle_ms);
        assert_eq!(started(&kit.wait(pause_ms - 200, &sessions)), [], "{pause_ms} ms are waited");
        effects = kit.wait(400, &sessions);
    }
    assert_eq!(kit.job(1).record.state, JobState::Active);
    for (node, worker) in &started(&effects) {
        let _ = kit.ready(node, *worker);
    }
    assert!(!kit.job(1).leases.is_empty(), "it meets and works");
}

#[test]
fn other_nodes_are_tried_when_two_do_not_meet_and_the_same_when_there_are_none() {
    let (mut kit, sessions) = cluster(&[60, 60, 60]);
    let mut effects = kit.tell(Event::JobAccepted(record(1, 100)));
    effects.extend(kit.wait(2_100, &sessions));
    let mut tried = Vec::new();
    for _ in 0..4 {
        let ranks = started(&effects);
        let nodes: Vec<String> = ranks.iter().map(|(node, _)| node.clone()).collect();
        let _ = kit.exit(&nodes[0], ranks[0].1, ExitClass::Apart);
        let _ = kit.exit(&nodes[1], ranks[1].1, ExitClass::Orderly);
        tried.push(nodes);
        effects = kit.wait(10_000, &sessions);
    }
    // Each pair once, and then, since none is left, the first again.
    assert_eq!(tried, [["a", "b"], ["a", "c"], ["b", "c"], ["a", "b"]]);

    // It holds for other jobs, too, and for a while.
    for (minutes, expected, rule) in [(1, ["a", "c"], true), (11, ["a", "b"], false)] {
        let (mut kit, sessions) = cluster(&[60, 60, 60]);
        let mut effects = kit.tell(Event::JobAccepted(record(1, 100)));
        effects.extend(kit.wait(2_100, &sessions));
        let ranks = started(&effects);
        let _ = kit.exit("a", ranks[0].1, ExitClass::Apart);
        let _ = kit.exit("b", ranks[1].1, ExitClass::Orderly);
        let _ = kit.tell(Event::Cancel { job: JobId(1), now: true });
        let _ = kit.wait(minutes * 60_000, &sessions);
        let _ = kit.tell(Event::JobAccepted(record(2, 100)));
        let again = started(&kit.wait(2_100, &sessions));
        let nodes: Vec<&str> = again.iter().map(|(node, _)| node.as_str()).collect();
        assert_eq!(nodes, expected, "after {minutes} minutes");
        let plan = kit.job(2).plan.clone().unwrap();
        assert_eq!(plan.reasons.iter().any(|reason| reason.rule == "did-not-meet"), rule, "{plan:#?}");
    }
}

#[test]
fn an_answer_of_a_gang_forgives_what_failed_on_all_its_nodes() {
    let (mut kit, sessions, ranks, _) = at_work();
    let _ = kit.exit("b", ranks[1].1, ExitClass::Signalled);
    let _ = kit.exit("a", ranks[0].1, ExitClass::LinkFault);
    let again = started(&kit.wait(5_000, &sessions));
    let mut rows_out = Vec::new();
    for (node, worker) in &again {
        let effects = kit.ready(node, *worker);
        rows_out.extend(granted(&effects, "a"));
    }
    assert_eq!(kit.job(1).backoff[&"b".into()].failures_in_a_row, 1);
    let _ = kit.result("a", sessions[0].1, again[0].1, rows_out[0]);
    let _ = kit.committed("a", again[0].1, rows_out[0], 1);
    assert_eq!(kit.job(1).backoff[&"b".into()].failures_in_a_row, 0);
}

#[test]
fn a_silent_node_ends_the_gang_on_the_others() {
    let (mut kit, sessions, ranks, _) = at_work();
    let effects = kit.wait(5_200, &sessions[..1]);
    assert_eq!(stopped(&effects), [("a".to_owned(), ranks[0].1, StopMode::Kill)]);
    let _ = kit.exit("a", ranks[0].1, ExitClass::LinkFault);
    assert_eq!(kit.job(1).leases.len(), 0);
    // When the node returns, what is left of the old gang there is not taken back.
    let left = ReportedWorker {
        worker: ranks[1].1,
        pid: 9,
        phase: WorkerPhase::Decode,
        step: 5,
        settings: WorkerSettings::default(),
        world_size: 2,
        rows: Vec::new(),
    };
    let (_, effects) = kit.hello("b", "agent-1", vec![left]);
    assert_eq!(stopped(&effects), [("b".to_owned(), ranks[1].1, StopMode::Kill)]);
}

#[test]
fn draining_a_node_ends_its_gang_at_a_row_boundary() {
    let (mut kit, _, ranks, _) = at_work();
    let effects = kit.tell(Event::Drain { node: "b".into(), drain: true });
    let ended = stopped(&effects);
    assert_eq!(ended.len(), 2, "{ended:?}");
    assert!(ended.iter().all(|(_, _, mode)| *mode == StopMode::FinishStarted));
    let _ = kit.exit("b", ranks[1].1, ExitClass::Orderly);
    let _ = kit.exit("a", ranks[0].1, ExitClass::Orderly);
    assert_eq!(kit.machine.incidents().count(), 0, "nothing was wrong");
}

#[test]
fn a_restarted_controller_adopts_a_whole_gang_and_ends_a_half_one() {
    let (kit, _, ranks, rows_out) = at_work();
    let before = kit.job(1).record.clone();
    let reported = |rank: usize, rows: &[RowGrant]| ReportedWorker {
        worker: ranks[rank].1,
        pid: 7,
        phase: WorkerPhase::Decode,
        step: 5,
        settings: WorkerSettings { max_batch_rows: 8, ..WorkerSettings::default() },
        world_size: 2,
        rows: rows.iter().map(|grant| HeldRow { row: grant.row, attempt: grant.attempt }).collect(),
    };
    let restarted = || {
        let mut kit = Kit::new();
        kit.machines.insert("a".to_owned(), machine("10.0.0.1", 60));
        kit.machines.insert("b".to_owned(), machine("10.0.0.2", 60));
        let jobs = vec![replayed(before.clone(), &[])];
        let _ =
            kit.tell(Event::Started { jobs, nodes: Vec::new(), repairs: Vec::new(), remains: Vec::new() });
        kit
    };
    let mut whole = restarted();
    let (on_a, mut effects) = whole.hello("a", "agent-1", vec![reported(0, &rows_out)]);
    effects.extend(whole.replayed("a", on_a));
    let (on_b, more) = whole.hello("b", "agent-1", vec![reported(1, &[])]);
    effects.extend(more);
    effects.extend(whole.replayed("b", on_b));
    effects.extend(whole.wait(20_000, &[("a", on_a), ("b", on_b)]));
    assert_eq!((started(&effects), stopped(&effects)), (vec![], vec![]));
    let held: Vec<RowIx> = whole.job(1).leases.keys().copied().collect();
    assert!(rows_out.iter().all(|grant| held.contains(&grant.row)));

    let mut half = restarted();
    let (on_a, mut effects) = half.hello("a", "agent-1", vec![reported(0, &rows_out)]);
    effects.extend(half.replayed("a", on_a));
    let (on_b, more) = half.connect("b");
    effects.extend(more);
    effects.extend(half.wait(1_000, &[("a", on_a), ("b", on_b)]));
    assert_eq!(stopped(&effects), [("a".to_owned(), ranks[0].1, StopMode::Kill)]);
}

/// What a node says when its only interface carries nothing, or carries again.
pub(super) fn carrier(kit: &mut Kit, node: &str, usable: bool) -> Vec<Effect> {
    let mut facts = kit.machines[node].clone();
    facts.interfaces[0].usable = usable;
    kit.observe(node, facts)
}

#[test]
fn a_gang_over_a_lost_link_is_ended_at_once_and_the_link_must_hold_before_the_next() {
    let (mut kit, sessions, ranks, rows) = at_work();
    let effects = carrier(&mut kit, "b", false);
    assert_eq!(stopped(&effects).len(), 2, "both ranks, without waiting for a step that never comes");
    let mut wait_for_restart_ms = Vec::new();
    let mut running = ranks;
    for round in 1..=3 {
        for (node, worker) in &running {
            kit.exit(node, *worker, ExitClass::Killed);
        }
        let incident = kit.machine.incidents().next().unwrap();
        assert_eq!((incident.fault, incident.times), (Fault::LinkDown, round));
        assert_eq!(incident.rows_requeued, rows.len() as u64 * u64::from(round));
        assert!(incident.summary.ends_with("en5 on b carries nothing"), "{}", incident.summary);
        assert_eq!(started(&kit.wait(20_000, &sessions)), [], "no way");
        carrier(&mut kit, "b", true);
        let mut waited_ms = 0;
        running = loop {
            let effects = kit.wait(1_000, &sessions);
            waited_ms += 1_000;
            let ranks = started(&effects);
            if !ranks.is_empty() {
                break ranks;
            }
            assert!(waited_ms < 600_000, "{:#?}", kit.job(1).plan);
        };
        wait_for_restart_ms.push(waited_ms);
        let incident = kit.machine.incidents().next().unwrap();
        assert!(incident.outcome.starts_with("the link carries again"), "{incident:#?}");
        let mut held = 0;
        for (node, worker) in &running {
            held += granted(&kit.ready(node, *worker), &running[0].0).len();
        }
        assert_eq!(held, rows.len());
        carrier(&mut kit, "b", false);
    }
    let doubled = |pair: &[u64]| pair[1] > pair[0] * 3 / 2;
    assert!(wait_for_restart_ms.windows(2).all(doubled), "longer each time: {wait_for_restart_ms:?}");
    assert_eq!(kit.job(1).record.state, JobState::Active, "no link pauses a job");
}

#[test]
fn what_really_happened_is_told_though_the_other_rank_says_first_that_it_lost_one() {
    let (mut kit, _, ranks, rows) = at_work();
    kit.exit(&ranks[0].0, ranks[0].1, ExitClass::LinkFault);
    assert_eq!(kit.machine.incidents().count(), 0, "there may be more to say");
    kit.exit(&ranks[1].0, ranks[1].1, ExitClass::OutOfMemory);
    let [incident] = kit.machine.incidents().cloned().collect::<Vec<_>>().try_into().unwrap();
    assert_eq!((incident.fault, incident.node.as_ref().map(NodeId::as_str)), (Fault::OutOfMemory, Some("b")));
    assert_eq!(incident.rows_requeued, rows.len() as u64);

    let (mut kit, _, ranks, _) = at_work();
    kit.exit(&ranks[0].0, ranks[0].1, ExitClass::LinkFault);
    kit.exit(&ranks[1].0, ranks[1].1, ExitClass::Orderly);
    let [incident] = kit.machine.incidents().cloned().collect::<Vec<_>>().try_into().unwrap();
    assert_eq!(
        (incident.fault, incident.node.as_ref().map(NodeId::as_str)),
        (Fault::LinkFault, Some("a")),
        "nobody said more"
    );
}

#[test]
fn a_rank_that_lost_the_one_on_a_silent_node_is_no_fault_of_its_own() {
    let (mut kit, sessions, ranks, rows) = at_work();
    kit.exit(&ranks[0].0, ranks[0].1, ExitClass::LinkFault);
    let alive = [sessions[0]];
    kit.wait(5_000, &alive);
    let [incident] = kit.machine.incidents().cloned().collect::<Vec<_>>().try_into().unwrap();
    assert_eq!((incident.fault, incident.rows_requeued), (Fault::NodeSilent, rows.len() as u64));
}

/// Rows that are suspected after a gang's ranks have ended in this order, with rows 2 and 5 in work: rank and class.
fn suspected_after(ends: [(usize, ExitClass); 2]) -> Vec<(u32, u32)> {
    let (mut kit, _, ranks, _) = at_work();
    for (rank, class) in ends {
        let exit = WorkerExit {
            worker: ranks[rank].1,
            class,
            status: "exited with status 1".to_owned(),
            first_error: "it broke".to_owned(),
            log_tail: vec![],
            started_rows: if rank == 0 { vec![RowIx(2), RowIx(5)] } else { vec![] },
            killed_while_loaded: false,
            quiet_ms: None,
        };
        kit.tell(Event::WorkerExited { node: ranks[rank].0.as_str().into(), exit });
    }
    kit.job(1).record.crashes.iter().map(|seen| (seen.row.0, seen.crashes)).collect()
}

/// Rank 0 tells first that it lost another, and which rows were in work; that other one crashed over one of them.
#[test]
fn a_row_that_ends_another_rank_is_suspected_whichever_is_heard_first() {
    use ExitClass::{Crashed, LinkFault, Orderly, Signalled};
    let both = [(2, 1), (5, 1)];
    assert_eq!(suspected_after([(0, LinkFault), (1, Crashed)]), both);
    assert_eq!(suspected_after([(1, Crashed), (0, LinkFault)]), both);
    assert_eq!(suspected_after([(0, Crashed), (1, Crashed)]), both, "once for a gang");
    assert_eq!(suspected_after([(1, Signalled), (0, LinkFault)]), [], "it was killed from outside");
    assert_eq!(suspected_after([(0, LinkFault), (1, Signalled)]), []);
    assert_eq!(suspected_after([(1, Signalled), (0, Crashed)]), [], "it broke over the end of the other");
    assert_eq!(suspected_after([(1, Orderly), (0, LinkFault)]), []);
}
