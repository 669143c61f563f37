//! What is concluded from the ends of workers and ranks, and what is not.

use super::{
    gangs::{Sessions, at_work, carrier, cluster},
    kit::*,
};
use crate::{
    model::{Fault, Incident, JobId, JobRecord, JobState, RowIx, WorkerKey},
    recovery::*,
};

type Ranks = Vec<(String, WorkerKey)>;

/// An end that says why.
fn with_error(worker: WorkerKey, class: ExitClass) -> WorkerExit {
    WorkerExit {
        worker,
        class,
        status: "exited with status 1".to_owned(),
        first_error: "it broke".to_owned(),
        log_tail: Vec::new(),
        started_rows: Vec::new(),
        killed_while_loaded: false,
        quiet_ms: None,
    }
}

fn end(kit: &mut Kit, node: &str, exit: WorkerExit) -> Vec<Effect> {
    kit.tell(Event::WorkerExited { node: node.into(), exit })
}

/// The end of a rank with these rows in work.
fn end_rank(
    kit: &mut Kit,
    (node, worker): &(String, WorkerKey),
    class: ExitClass,
    in_work: &[RowIx],
) -> Vec<Effect> {
    end(kit, node, WorkerExit { started_rows: in_work.to_vec(), ..with_error(*worker, class) })
}

fn faults(kit: &Kit) -> Vec<Fault> {
    kit.machine.incidents().map(|incident| incident.fault).collect()
}

fn only_incident(kit: &Kit) -> Incident {
    let all: Vec<Incident> = kit.machine.incidents().cloned().collect();
    let [incident] = all.try_into().unwrap();
    incident
}

/// A node with a ready worker of a job with so many rows.
fn one_at_work(rows: u32) -> (Kit, SessionId, WorkerKey, Vec<RowGrant>) {
    let mut kit = Kit::new();
    let (session, _) = kit.connect("a");
    let (_, worker) = started(&kit.tell(Event::JobAccepted(record(1, rows))))[0].clone();
    let grants = granted(&kit.ready("a", worker), "a");
    (kit, session, worker, grants)
}

/// A job over a gang of three whose ranks are ready.
fn three_at_work() -> (Kit, Sessions, Ranks) {
    let (mut kit, sessions) = cluster(&[40, 40, 40]);
    let _ = kit.tell(Event::JobAccepted(record(1, 100)));
    let (ranks, _) = next_gang(&mut kit, &sessions);
    assert_eq!(ranks.len(), 3);
    (kit, sessions, ranks)
}

/// Waits for the next gang, whose ranks are soon ready, and the rows its rank 0 begins with.
fn next_gang(kit: &mut Kit, sessions: &Sessions) -> (Ranks, Vec<RowIx>) {
    let ranks = started(&kit.wait(20_000, sessions));
    let mut begun = Vec::new();
    for (node, worker) in &ranks {
        let effects = kit.ready(node, *worker);
        begun.extend(granted(&effects, &ranks[0].0).iter().map(|grant| grant.row));
    }
    begun.truncate(8);
    (ranks, begun)
}

/// A controller that knows the job from its record only.
fn restarted(job: &JobRecord) -> Kit {
    let mut kit = Kit::new();
    let _ = kit.tell(Event::PolicyChanged(policy_with_a_network()));
    for (node, last) in [("a", 1), ("b", 2), ("c", 3)] {
        kit.machines.insert(node.to_owned(), machine(&format!("10.0.0.{last}"), 60));
    }
    let jobs = vec![replayed(job.clone(), &[])];
    let _ = kit.tell(Event::Started { jobs, nodes: Vec::new(), repairs: Vec::new(), remains: Vec::new() });
    kit
}

/// A node comes back to it with its rank at work.
fn comes_back(kit: &mut Kit, (node, worker): &(String, WorkerKey), world_size: u32) -> SessionId {
    let report = ReportedWorker {
        worker: *worker,
        pid: 7,
        phase: WorkerPhase::Decode,
        step: 5,
        settings: WorkerSettings::default(),
        world_size,
        rows: Vec::new(),
    };
    let (session, effects) = kit.hello(node, "agent-1", vec![report]);
    assert_eq!(stopped(&effects), [], "it is taken back");
    let _ = kit.replayed(node, session);
    session
}

fn killed(ranks: &[(String, WorkerKey)]) -> Vec<(String, WorkerKey, StopMode)> {
    ranks.iter().map(|(node, worker)| (node.clone(), *worker, StopMode::Kill)).collect()
}

#[test]
fn a_start_that_an_agent_refuses_is_told_and_tried_again_after_a_pause() {
    let start_command = |effects: &[Effect]| {
        let number = effects.iter().find_map(|effect| match effect {
            Effect::Send { command: Command::StartWorker { command_id, .. }, .. } => Some(*command_id),
            _ => None,
        });
        number.unwrap()
    };
    let refusal = |command_id| {
        let problem = "this agent is ending".to_owned();
        Event::CommandRefused { node: "a".into(), command_id, problem }
    };
    let mut kit = Kit::new();
    let (session, _) = kit.connect("a");
    let command = start_command(&kit.tell(Event::JobAccepted(record(1, 3))));
    let _ = kit.tell(refusal(command + 1));
    assert_eq!(faults(&kit), [], "it was another command");
    let _ = kit.tell(refusal(command));
    let incident = only_incident(&kit);
    assert_eq!(incident.fault, Fault::WorkerExited);
    assert_eq!(incident.summary, "the worker of j1 on a could not be started: this agent is ending");

    let alive = [("a", session)];
    assert_eq!(started(&kit.wait(400, &alive)), []);
    let effects = kit.wait(100, &alive);
    let (_, worker) = started(&effects)[0].clone();
    let _ = kit.ready("a", worker);
    let _ = kit.tell(refusal(start_command(&effects)));
    assert!(kit.job(1).workers.contains_key(&"a".into()), "it runs, so it was started");
    assert_eq!(only_incident(&kit).times, 1);
}

#[test]
fn a_worker_that_its_agent_ended_in_order_is_no_failure_and_is_started_again_at_once() {
    let (mut kit, session, mut worker, _) = one_at_work(50);
    for _ in 0..Policy::default().failures_before_pause {
        let effects = kit.exit("a", worker, ExitClass::Orderly);
        assert!(events(&effects).contains(&"worker-ended"), "{effects:#?}");
        worker = started(&effects)[0].1;
        let _ = kit.ready("a", worker);
    }
    assert_eq!(faults(&kit), []);
    let _ = kit.exit("a", worker, ExitClass::Crashed);
    assert_eq!(kit.job(1).record.state, JobState::Active);
    assert_eq!(started(&kit.wait(500, &[("a", session)])).len(), 1, "the pause after a first failure");
}

#[test]
fn a_hung_worker_that_had_to_be_killed_is_told_as_it_ended() {
    let (mut kit, session, worker, _) = one_at_work(50);
    let stops = stopped(&kit.wait(Policy::default().step_budget_ms + 200, &[("a", session)]));
    assert_eq!(stops, [("a".to_owned(), worker, StopMode::Kill)]);
    let _ = kit.exit("a", worker, ExitClass::Killed);
    let incident = only_incident(&kit);
    assert_eq!(incident.fault, Fault::WorkerSilent);
    assert_eq!(incident.summary, "the worker of j1 on a was ended by SIGKILL");
}

#[test]
fn an_incident_says_an_error_once() {
    for (status, summary) in [
        ("exited with status 1", "the worker of j1 on a exited with status 1: it broke"),
        ("said that it broke", "the worker of j1 on a said that it broke"),
    ] {
        let (mut kit, _, worker, _) = one_at_work(50);
        let exit = WorkerExit { status: status.to_owned(), ..with_error(worker, ExitClass::Crashed) };
        let _ = end(&mut kit, "a", exit);
        assert_eq!(only_incident(&kit).summary, summary);
    }
}

#[test]
fn the_record_forgets_the_launch_that_ended_and_keeps_the_others() {
    let (mut kit, [(_, worker, _), (_, on_b, _)]) = two_at_work(50);
    let _ = kit.exit("a", worker, ExitClass::Signalled);
    // The next controller waits for these.
    assert_eq!(kit.job(1).record.launches, [launch("b", on_b.epoch.0)]);
}

#[test]
fn a_worker_whose_rows_are_all_answered_takes_no_tokens_with_it() {
    let (mut kit, session, worker, grants) = one_at_work(1);
    let news = ProgressNews {
        worker,
        phase: WorkerPhase::Decode,
        step: 9,
        step_age_ms: 0,
        active_rows: 1,
        prompt_tokens: 1,
        generated_tokens: 9,
        peak_memory_bytes: 0,
        checkpoints: Vec::new(),
    };
    let _ = kit.tell(Event::Progress { node: "a".into(), news });
    // Fewer tokens than it has generated are in its answer, which is on its way to disk.
    let _ = kit.result("a", session, worker, grants[0]);
    let _ = kit.exit("a", worker, ExitClass::Crashed);
    let incident = only_incident(&kit);
    assert_eq!((incident.rows_requeued, incident.tokens_lost), (0, 0));
}

/// The answer of a worker that is gone could not be stored: it is in its agent's spool yet, and comes again. The end of the next
/// worker there changes nothing about that.
#[test]
fn a_row_whose_answer_waits_in_a_spool_is_not_given_to_others() {
    let (mut kit, [(session, worker, grants), (other, on_b, on_b_rows)]) = two_at_work(100);
    let _ = kit.result("a", session, worker, grants[0]);
    let _ = kit.exit("a", worker, ExitClass::Crashed);
    let (_, next) = started(&kit.wait(500, &[("a", session), ("b", other)]))[0].clone();
    let (rows_of_a, problem) = (vec![committed_row(worker, grants[0], 1)], "no space".to_owned());
    let _ = kit.tell(Event::CommitFailed { node: "a".into(), rows: rows_of_a, problem });
    let _ = kit.exit("a", next, ExitClass::Crashed);
    let _ = kit.result("b", other, on_b, on_b_rows[0]);
    let _ = kit.committed("b", on_b, on_b_rows[0], 2);

    let effects = kit.tell(Event::StorageRecovered);
    assert_eq!(rows(&granted(&effects, "b")), [grants[1].row.0], "one it had not answered");
    let (session, _) = kit.hello("a", "agent-1", Vec::new());
    assert_eq!(commits(&kit.result_again("a", session, worker, grants[0], 1)), 1);
}

#[test]
fn a_worker_that_is_to_end_gets_no_more_rows() {
    let (mut kit, [(session, worker, grants), _]) = two_at_work(100);
    let mut urgent = record(2, 50);
    urgent.spec.priority = 1;
    let stops = stopped(&kit.tell(Event::JobAccepted(urgent)));
    assert!(stops.contains(&("a".to_owned(), worker, StopMode::FinishStarted)), "{stops:?}");
    let _ = kit.result("a", session, worker, grants[0]);
    let effects = kit.committed("a", worker, grants[0], 1);
    assert_eq!(granted(&effects, "a"), [], "though it has room");
}

#[test]
fn rank_0_has_its_rows_until_it_is_gone_itself() {
    let (mut kit, sessions, ranks, grants) = at_work();
    let _ = end_rank(&mut kit, &ranks[1], ExitClass::Crashed, &[]);
    let effects = kit.result("a", sessions[0].1, ranks[0].1, grants[0]);
    assert_eq!(commits(&effects), 1, "it was answered before rank 0 noticed");
    let _ = end_rank(&mut kit, &ranks[0], ExitClass::LinkFault, &[]);
    assert_eq!(only_incident(&kit).rows_requeued, grants.len() as u64 - 1);
}

/// One rank may be gone before another has heard that it is to end.
#[test]
fn however_a_gang_ends_that_was_told_to_nothing_was_wrong() {
    for (first, last) in [
        (ExitClass::LinkFault, ExitClass::Orderly),
        (ExitClass::Crashed, ExitClass::LinkFault),
        (ExitClass::Signalled, ExitClass::Killed),
    ] {
        let (mut kit, _, ranks, _) = at_work();
        assert_eq!(stopped(&kit.tell(Event::Drain { node: "b".into(), drain: true })).len(), 2);
        let _ = end_rank(&mut kit, &ranks[1], first, &[]);
        let _ = end_rank(&mut kit, &ranks[0], last, &[]);
        assert_eq!(faults(&kit), [], "{first:?} {last:?}");
    }
}

#[test]
fn nodes_that_were_given_no_time_to_meet_are_not_avoided() {
    let (mut kit, sessions) = cluster(&[60, 60, 60]);
    let _ = kit.tell(Event::JobAccepted(record(1, 100)));
    let ranks = started(&kit.wait(2_100, &sessions));
    let _ = kit.tell(Event::Cancel { job: JobId(1), now: true });
    let _ = end_rank(&mut kit, &ranks[0], ExitClass::Apart, &[]);
    let _ = end_rank(&mut kit, &ranks[1], ExitClass::Orderly, &[]);
    let _ = kit.tell(Event::JobAccepted(record(2, 100)));
    let again = started(&kit.wait(2_100, &sessions));
    let nodes: Vec<&str> = again.iter().map(|(node, _)| node.as_str()).collect();
    assert_eq!(nodes, ["a", "b"], "{:#?}", kit.job(2).plan);
}

#[test]
fn a_rank_of_a_gang_that_hung_ends_for_the_hang_whatever_it_says() {
    for rank_0_first in [false, true] {
        let (mut kit, sessions, ranks, _) = at_work();
        assert_eq!(stopped(&kit.wait(Policy::default().step_budget_ms + 200, &sessions)), killed(&ranks));
        if rank_0_first {
            let _ = end_rank(&mut kit, &ranks[0], ExitClass::LinkFault, &[RowIx(4)]);
            let _ = end_rank(&mut kit, &ranks[1], ExitClass::Orderly, &[]);
        } else {
            let _ = end_rank(&mut kit, &ranks[1], ExitClass::Orderly, &[]);
            let _ = end_rank(&mut kit, &ranks[0], ExitClass::LinkFault, &[RowIx(4)]);
        }
        assert_eq!(faults(&kit), [Fault::WorkerSilent]);
        let suspected: Vec<u32> = kit.job(1).record.crashes.iter().map(|seen| seen.row.0).collect();
        assert_eq!(suspected, [4], "rank 0 first: {rank_0_first}");
    }
}

#[test]
fn a_gang_lost_to_a_silent_node_is_told_once_whatever_its_other_ranks_say() {
    let (mut kit, sessions, ranks) = three_at_work();
    let _ = end_rank(&mut kit, &ranks[0], ExitClass::LinkFault, &[]);
    let silent = ranks[1].0.clone();
    let alive: Sessions = sessions.into_iter().filter(|(node, _)| *node != silent).collect();
    let _ = kit.wait(5_000, &alive);
    assert_eq!(faults(&kit), [Fault::NodeSilent]);
    let _ = end_rank(&mut kit, &ranks[2], ExitClass::Crashed, &[]);
    assert_eq!(faults(&kit), [Fault::NodeSilent]);
}

#[test]
fn a_gang_that_keeps_crashing_is_paused_like_a_worker_that_does() {
    let (mut kit, sessions, mut ranks, _) = at_work();
    let mut crashes = 0;
    loop {
        crashes += 1;
        let _ = end_rank(&mut kit, &ranks[1], ExitClass::Crashed, &[]);
        let _ = end_rank(&mut kit, &ranks[0], ExitClass::LinkFault, &[]);
        if kit.job(1).record.state == JobState::Paused {
            break;
        }
        (ranks, _) = next_gang(&mut kit, &sessions);
    }
    assert_eq!(crashes, Policy::default().failures_before_pause);
}

/// Gangs crash over the rows they begin with until no more than so many are tried together. Rank 1 is heard first, and only
/// rank 0 knows the rows.
fn crash_over_rows(
    kit: &mut Kit,
    sessions: &Sessions,
    (mut ranks, mut begun): (Ranks, Vec<RowIx>),
    until: usize,
) -> (Ranks, Vec<RowIx>) {
    while begun.len() > until {
        let _ = end_rank(kit, &ranks[1], ExitClass::Crashed, &[]);
        let _ = end_rank(kit, &ranks[0], ExitClass::LinkFault, &begun);
        (ranks, begun) = next_gang(kit, sessions);
    }
    (ranks, begun)
}

#[test]
fn a_search_for_the_row_that_ends_gangs_does_not_pause_their_job() {
    let (mut kit, sessions, ranks, grants) = at_work();
    let begun = grants[..8].iter().map(|grant| grant.row).collect();
    let (ranks, begun) = crash_over_rows(&mut kit, &sessions, (ranks, begun), 1);
    assert_eq!(begun, [RowIx(0)], "alone at last");
    let _ = end_rank(&mut kit, &ranks[1], ExitClass::Crashed, &[]);
    let effects = end_rank(&mut kit, &ranks[0], ExitClass::LinkFault, &begun);
    assert!(events(&effects).contains(&"poison-row"), "{effects:#?}");
    assert_eq!(kit.job(1).record.state, JobState::Active);
}

/// Its gang hung over suspected rows, and then another node fell silent: that is told, and forgives nothing.
#[test]
fn a_hang_beside_a_silent_node_does_not_undo_the_count_of_earlier_failures() {
    let (mut kit, sessions, ranks, grants) = at_work();
    let begun = grants[..8].iter().map(|grant| grant.row).collect();
    // Twice over all of the rows, each time a failure.
    let (ranks, begun) = crash_over_rows(&mut kit, &sessions, (ranks, begun), 4);
    let hang = kit.wait(Policy::default().step_budget_ms + 200, &sessions);
    assert_eq!(stopped(&hang), killed(&ranks));
    let _ = kit.wait(5_000, &sessions[..1]);
    let effects = end_rank(&mut kit, &ranks[0], ExitClass::Killed, &begun);
    assert!(events(&effects).contains(&"rows-suspected"), "{effects:#?}");

    let (back, _) = kit.connect("b");
    let sessions = vec![sessions[0], ("b", back)];
    for left in (1..=Policy::default().failures_before_pause - 2).rev() {
        assert_eq!(kit.job(1).record.state, JobState::Active, "{left} more are tried");
        let (ranks, _) = next_gang(&mut kit, &sessions);
        let _ = end_rank(&mut kit, &ranks[1], ExitClass::Signalled, &[]);
        let _ = end_rank(&mut kit, &ranks[0], ExitClass::LinkFault, &[]);
    }
    assert_eq!(kit.job(1).record.state, JobState::Paused);
}

#[test]
fn a_gang_that_breaks_before_its_new_controller_has_it_whole_has_its_incident() {
    let (kit, _, ranks, _) = at_work();
    let mut kit = restarted(&kit.job(1).record);
    for rank in &ranks {
        comes_back(&mut kit, rank, 2);
    }
    let effects = end_rank(&mut kit, &ranks[0], ExitClass::LinkFault, &[]);
    assert_eq!(stopped(&effects), killed(&ranks[1..]));
    let _ = end_rank(&mut kit, &ranks[1], ExitClass::Killed, &[]);
    assert_eq!(faults(&kit), [Fault::LinkFault]);
}

#[test]
fn an_adopted_gang_is_ended_at_once_when_its_link_is_lost() {
    let (kit, _, ranks, _) = at_work();
    let mut kit = restarted(&kit.job(1).record);
    let on_a = comes_back(&mut kit, &ranks[0], 2);
    let on_b = comes_back(&mut kit, &ranks[1], 2);
    assert_eq!(stopped(&kit.wait(1_000, &[("a", on_a), ("b", on_b)])), []);
    assert_eq!(stopped(&carrier(&mut kit, "b", false)), killed(&ranks));
    assert_eq!(faults(&kit), [Fault::LinkDown]);
}

#[test]
fn what_came_back_of_a_gang_to_a_new_controller_is_ended_when_the_rest_has_had_its_time() {
    let (kit, _, ranks) = three_at_work();
    let mut kit = restarted(&kit.job(1).record);
    let found = [ranks[0].clone(), ranks[2].clone()];
    let alive: Vec<(&str, SessionId)> =
        found.iter().map(|rank| (rank.0.as_str(), comes_back(&mut kit, rank, 3))).collect();
    let grace_ms = Policy::default().adopt_grace_ms;
    assert_eq!(stopped(&kit.wait(grace_ms - 100, &alive)), [], "the third may be on its way");
    assert_eq!(stopped(&kit.wait(200, &alive)), killed(&found));
}
