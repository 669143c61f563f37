//! Jobs with a window: when they begin, how they end for the day, and what others do meanwhile.

use jiff::{Timestamp, tz::TimeZone};

use super::{gangs::cluster, kit::*, ladder::start_all};
use crate::{
    model::{Checkpoint, Epoch, JobId, JobRecord, JobState, Launch, Obstacle, Outlook, RowIx, WorkerKey},
    recovery::*,
};

const MINUTE_MS: u64 = 60_000;
const DRAIN_MS: u64 = 120_000;

type Sessions = Vec<(&'static str, SessionId)>;

fn ms(text: &str) -> u64 {
    u64::try_from(text.parse::<Timestamp>().unwrap().as_millisecond()).unwrap()
}

/// A machine on the clock of Berlin, at this moment, with these nodes.
fn at(moment: &str, nodes: &[&'static str]) -> (Kit, Sessions) {
    let mut kit = Kit::new();
    kit.machine = kit.machine.in_zone(TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap());
    kit.now.unix_ms = ms(moment);
    let sessions = nodes.iter().map(|node| (*node, kit.connect(node).0)).collect();
    (kit, sessions)
}

fn nightly(id: u64, rows: u32) -> JobRecord {
    let mut record = record(id, rows);
    record.spec.window = Some("22:00-07:00".parse().unwrap());
    record
}

/// Lets the wall clock stand at another moment, as if the time up to then had passed in silence.
fn turn_to(kit: &mut Kit, moment: &str) -> Vec<Effect> {
    kit.now.unix_ms = ms(moment);
    kit.tell(Event::Tick)
}

/// A job at work on node a, a minute before its window closes: its worker and the rows it holds.
fn before_seven(rows: u32) -> (Kit, Sessions, WorkerKey, Vec<RowGrant>) {
    at_work_before_seven(nightly(1, rows))
}

fn at_work_before_seven(record: JobRecord) -> (Kit, Sessions, WorkerKey, Vec<RowGrant>) {
    let (mut kit, sessions) = at("2026-01-11T05:59:00Z", &["a"]);
    let worker = started(&kit.tell(Event::JobAccepted(record)))[0].1;
    let grants = granted(&kit.ready("a", worker), "a");
    (kit, sessions, worker, grants)
}

fn progress(worker: WorkerKey, row: RowIx, tokens: &[u32]) -> Event {
    let checkpoint = Checkpoint { tokens: tokens.to_vec(), logprobs_json: Vec::new(), by_fallback: false };
    Event::Progress {
        node: "a".into(),
        news: ProgressNews {
            worker,
            phase: WorkerPhase::Decode,
            step: 1,
            step_age_ms: 0,
            active_rows: 8,
            prompt_tokens: 0,
            generated_tokens: 8,
            peak_memory_bytes: 0,
            checkpoints: vec![CheckpointNews { row, attempt: 1, offset: 0, checkpoint }],
        },
    }
}

fn reasons(kit: &Kit, job: u64) -> Vec<String> {
    let plan = kit.job(job).plan.as_ref();
    plan.iter().flat_map(|plan| &plan.reasons).map(|reason| reason.text.clone()).collect()
}

#[test]
fn a_job_waits_for_its_window_says_so_and_begins_when_it_opens() {
    let (mut kit, sessions) = at("2026-01-10T20:59:00Z", &["a"]);
    let effects = kit.tell(Event::JobAccepted(nightly(1, 20)));
    assert_eq!(started(&effects), []);
    assert_eq!(events(&effects), ["job-accepted", "window-closed"]);
    assert_eq!(reasons(&kit, 1), ["waits for its window: opens 22:00"]);
    let job = kit.job(1);
    assert_eq!(job.record.state, JobState::Active, "no fault");
    assert_eq!(job.window_words().unwrap(), "waits for its window: opens 22:00");
    assert_eq!(job.window_opens_unix_ms(), Some(ms("2026-01-10T21:00:00Z")));
    assert_eq!(kit.machine.outlook(kit.now, job), Some(Outlook::Unknown(Obstacle::OutsideWindow)));

    assert_eq!(started(&kit.wait(MINUTE_MS - 100, &sessions)), []);
    let effects = kit.wait(100, &sessions);
    assert_eq!(events(&effects), ["window-opened", "worker-starting"]);
    let [(node, worker)] = started(&effects).try_into().unwrap();
    assert_eq!(node, "a");
    assert!(!granted(&kit.ready("a", worker), "a").is_empty());
    assert_eq!(reasons(&kit, 1), ["one worker with the whole model, on a"]);
    assert_eq!(kit.job(1).window_words(), None);
}

#[test]
fn a_window_that_closes_lets_workers_finish_and_the_rest_goes_on_next_night() {
    let (mut kit, sessions, worker, grants) = before_seven(40);
    let effects = kit.wait(MINUTE_MS, &sessions);
    assert_eq!(stopped(&effects), [("a".to_owned(), worker, StopMode::FinishStarted)]);
    let told = effects.iter().find_map(|effect| match effect {
        Effect::Send { command: Command::StopWorker { reason, .. }, .. } => Some(reason.as_str()),
        _ => None,
    });
    assert_eq!(told, Some("the window closed at 07:00"));
    assert_eq!(
        kit.job(1).window_words().unwrap(),
        "the window closed at 07:00: what is begun is finished, or kept for the opening at 22:00"
    );

    kit.result("a", sessions[0].1, worker, grants[0]);
    let effects = kit.committed("a", worker, grants[0], 1);
    assert_eq!(granted(&effects, "a"), [], "no row is handed out any more");
    kit.exit("a", worker, ExitClass::Orderly);
    let effects = kit.wait(10 * MINUTE_MS, &sessions);
    assert_eq!((started(&effects), stopped(&effects)), (vec![], vec![]));
    assert_eq!(kit.machine.incidents().count(), 0, "it is no fault");
    assert_eq!(kit.job(1).record.rows_requeued, 0);

    let effects = turn_to(&mut kit, "2026-01-11T21:00:00Z");
    let again = started(&effects)[0].1;
    assert_eq!(again.epoch, Epoch(2));
    let rest = rows(&granted(&kit.ready("a", again), "a"));
    assert_eq!(rest, (1..17).collect::<Vec<_>>(), "what came back goes first");
}

#[test]
fn what_has_not_finished_within_the_bound_keeps_its_checkpoint() {
    let (mut kit, sessions, worker, grants) = before_seven(40);
    kit.wait(MINUTE_MS, &sessions);
    let effects = kit.wait(DRAIN_MS - 100, &sessions);
    assert_eq!(stopped(&effects), []);
    kit.tell(progress(worker, grants[0].row, &[5, 6, 7]));
    let effects = kit.wait(100, &sessions);
    assert_eq!(stopped(&effects), [("a".to_owned(), worker, StopMode::Checkpoint)]);
    assert_eq!(events(&effects), ["window-drain-over"]);
    assert_eq!(stopped(&kit.wait(1_000, &sessions)), [], "once");
    kit.exit("a", worker, ExitClass::Killed);
    assert_eq!(kit.job(1).checkpoint(grants[0].row).unwrap().tokens, [5, 6, 7]);
    assert_eq!(kit.machine.incidents().count(), 0, "it was asked to end");

    let effects = turn_to(&mut kit, "2026-01-11T21:00:00Z");
    let again = started(&effects)[0].1;
    let grants = granted(&kit.ready("a", again), "a");
    assert_eq!((grants[0].row, grants[0].attempt), (RowIx(0), 2));
    assert_eq!(kit.job(1).checkpoint(RowIx(0)).unwrap().tokens, [5, 6, 7], "it goes on from there");
}

#[test]
fn the_bound_is_a_number_of_the_configuration() {
    let (mut kit, sessions, worker, _) = before_seven(40);
    kit.tell(Event::PolicyChanged(Policy { window_drain_ms: 0, ..Policy::default() }));
    let effects = kit.wait(MINUTE_MS + 100, &sessions);
    let modes: Vec<StopMode> = stopped(&effects).into_iter().map(|(_, _, mode)| mode).collect();
    assert_eq!(modes, [StopMode::FinishStarted, StopMode::Checkpoint]);
    let effects = kit.tell(Event::Cancel { job: worker.job, now: true });
    assert_eq!(stopped(&effects), [("a".to_owned(), worker, StopMode::Kill)], "and a person may kill it");
}

#[test]
fn other_jobs_use_the_nodes_while_a_window_is_closed() {
    let (mut kit, sessions, worker, _) = before_seven(40);
    kit.tell(Event::JobAccepted(record(2, 5)));
    assert_eq!(
        kit.machine.outlook(kit.now, kit.job(2)),
        Some(Outlook::Unknown(Obstacle::Behind(JobId(1)))),
        "it waits for its turn"
    );
    kit.wait(MINUTE_MS, &sessions);
    let effects = kit.exit("a", worker, ExitClass::Orderly);
    let other = started(&effects)[0].1;
    assert_eq!(other.job, JobId(2));
    let grants = granted(&kit.ready("a", other), "a");
    assert_eq!(grants.len(), 5);
    for (spool_seq, grant) in (1..).zip(grants) {
        kit.result("a", sessions[0].1, other, grant);
        kit.committed("a", other, grant, spool_seq);
    }
    assert_eq!(kit.job(2).record.state, JobState::Completed);
    assert_eq!(kit.job(1).record.state, JobState::Active);
}

#[test]
fn a_restarted_controller_keeps_to_the_window() {
    let (mut kit, _) = at("2026-01-11T12:00:00Z", &[]);
    let jobs = vec![replayed(nightly(1, 20), &[0, 1])];
    kit.tell(Event::Started { jobs, nodes: vec![], repairs: vec![], remains: vec![] });
    let (session, effects) = kit.connect("a");
    assert_eq!(started(&effects), []);
    assert_eq!(started(&kit.wait(30_000, &[("a", session)])), []);
    assert_eq!(reasons(&kit, 1), ["waits for its window: opens 22:00"]);
    let effects = turn_to(&mut kit, "2026-01-11T21:00:00Z");
    assert_eq!(started(&effects).len(), 1);
}

/// A controller that starts anew while node a has a worker of the job, with rows 0 and 1.
fn restarted(moment: &str, phase: WorkerPhase) -> (Kit, Sessions, WorkerKey, Vec<Effect>) {
    let (mut kit, _) = at(moment, &[]);
    let mut record = nightly(1, 20);
    record.epoch = Epoch(3);
    record.launches = vec![launch("a", 3), launch("b", 2)];
    kit.tell(Event::Started {
        jobs: vec![replayed(record, &[])],
        nodes: vec![],
        repairs: vec![],
        remains: vec![],
    });
    let worker = WorkerKey { job: JobId(1), epoch: Epoch(3), rank: 0 };
    let report = ReportedWorker {
        worker,
        pid: 77,
        phase,
        step: 9,
        settings: WorkerSettings { max_batch_rows: 8, ..WorkerSettings::default() },
        world_size: 1,
        rows: [0, 1].map(|row| HeldRow { row: RowIx(row), attempt: 1 }).into(),
    };
    let (session, mut effects) = kit.hello("a", "agent-1", vec![report]);
    effects.extend(kit.replayed("a", session));
    (kit, vec![("a", session)], worker, effects)
}

#[test]
fn a_worker_adopted_within_the_window_goes_on() {
    let (mut kit, sessions, worker, effects) = restarted("2026-01-11T04:00:00Z", WorkerPhase::Decode);
    assert!(events(&effects).contains(&"worker-adopted"));
    let effects = kit.wait(20_000, &sessions);
    assert_eq!(stopped(&effects), []);
    assert_eq!(kit.job(1).workers.values().next().unwrap().key(JobId(1)), worker);
}

#[test]
fn a_worker_adopted_outside_the_window_is_drained_without_waiting_for_the_other_nodes() {
    let (mut kit, sessions, worker, effects) = restarted("2026-01-11T12:00:00Z", WorkerPhase::Decode);
    assert!(kit.job(1).is_adopting(), "b has not come back yet");
    assert_eq!(stopped(&effects), [("a".to_owned(), worker, StopMode::FinishStarted)]);
    let effects = kit.wait(DRAIN_MS, &sessions);
    assert_eq!(stopped(&effects), [("a".to_owned(), worker, StopMode::Checkpoint)]);
    kit.exit("a", worker, ExitClass::Killed);
    assert_eq!(kit.job(1).rows_waiting(), 20);
}

#[test]
fn a_worker_that_was_draining_already_is_still_bounded_after_a_restart() {
    let (mut kit, sessions, worker, effects) = restarted("2026-01-11T06:01:00Z", WorkerPhase::Stopping);
    assert_eq!(stopped(&effects), [], "it was told by the controller before");
    let effects = kit.wait(DRAIN_MS, &sessions);
    assert_eq!(stopped(&effects), [("a".to_owned(), worker, StopMode::Checkpoint)]);
}

#[test]
fn a_node_that_is_away_when_the_window_closes_is_told_on_its_return() {
    let (mut kit, sessions, worker, grants) = before_seven(40);
    kit.tell(Event::SessionLost { node: "a".into(), session: sessions[0].1 });
    let effects = kit.wait(MINUTE_MS, &[]);
    assert_eq!(stopped(&effects), []);
    let report = reported(worker, &grants);
    let (session, _) = kit.hello("a", "agent-1", vec![report]);
    let effects = kit.replayed("a", session);
    assert_eq!(stopped(&effects), [("a".to_owned(), worker, StopMode::FinishStarted)]);
}

#[test]
fn a_paused_job_is_cut_off_at_the_bound_as_well_and_waits_for_a_person() {
    let (mut kit, sessions, worker, grants) = before_seven(40);
    let effects = kit.tell(Event::Pause(JobId(1)));
    assert_eq!(stopped(&effects), [("a".to_owned(), worker, StopMode::FinishStarted)]);
    assert_eq!(stopped(&kit.wait(MINUTE_MS + 1_000, &sessions)), []);
    // It is at work, and only takes long.
    kit.tell(progress(worker, grants[0].row, &[5]));
    let effects = kit.wait(DRAIN_MS - 1_000, &sessions);
    assert_eq!(stopped(&effects), [("a".to_owned(), worker, StopMode::Checkpoint)]);
    kit.exit("a", worker, ExitClass::Killed);
    assert_eq!(started(&turn_to(&mut kit, "2026-01-11T21:00:00Z")), []);
    assert_eq!(kit.machine.outlook(kit.now, kit.job(1)), Some(Outlook::Unknown(Obstacle::Paused)));
}

#[test]
fn the_ranks_of_a_gang_drain_and_are_cut_off_together() {
    let (mut kit, _) = at("2026-01-11T05:58:00Z", &[]);
    kit.tell(Event::PolicyChanged(policy_with_a_network()));
    let mut sessions = Vec::new();
    for (name, address) in [("a", "10.0.0.1"), ("b", "10.0.0.2")] {
        kit.found.insert(name.to_owned(), large_model());
        kit.machines.insert(name.to_owned(), machine(address, 60));
        sessions.push((name, kit.connect(name).0));
    }
    let mut effects = kit.tell(Event::JobAccepted(nightly(1, 100)));
    effects.extend(kit.wait(2_100, &sessions));
    let ranks = started(&effects);
    for (node, worker) in &ranks {
        kit.ready(node, *worker);
    }
    let all = |mode| ranks.iter().map(|(node, key)| (node.clone(), *key, mode)).collect::<Vec<_>>();
    let effects = kit.wait(2 * MINUTE_MS, &sessions);
    assert_eq!(stopped(&effects), all(StopMode::FinishStarted));
    let effects = kit.wait(DRAIN_MS, &sessions);
    assert_eq!(stopped(&effects), all(StopMode::Checkpoint));
    let effects = kit.exit("a", ranks[0].1, ExitClass::Orderly);
    assert_eq!(
        stopped(&effects),
        [("b".to_owned(), ranks[1].1, StopMode::Kill)],
        "the last one is not waited for"
    );
    kit.exit("b", ranks[1].1, ExitClass::Killed);
    assert_eq!(kit.machine.incidents().count(), 0);
    turn_to(&mut kit, "2026-01-11T20:59:59Z");
    assert_eq!(started(&kit.wait(3_100, &sessions)).len(), 2);
}

#[test]
fn a_deadline_before_the_opening_is_missed_for_certain() {
    let (mut kit, _) = at("2026-01-10T12:00:00Z", &["a"]);
    let mut record = nightly(1, 20);
    record.spec.deadline_unix_ms = Some(ms("2026-01-10T20:00:00Z"));
    kit.tell(Event::JobAccepted(record));
    let obstacle = Obstacle::OutsideWindow;
    let late = Outlook::Late { obstacle, rows_left: 20 };
    assert_eq!(kit.machine.outlook(kit.now, kit.job(1)), Some(late));
    turn_to(&mut kit, "2026-01-10T20:00:00Z");
    assert_eq!(kit.machine.outlook(kit.now, kit.job(1)), Some(Outlook::Unknown(obstacle)), "it has passed");
}

#[test]
fn a_job_is_not_behind_one_whose_node_it_could_not_use() {
    let (mut kit, _) = at("2026-01-10T12:00:00Z", &["a", "b"]);
    kit.tell(Event::Drain { node: "b".into(), drain: true });
    let worker = started(&kit.tell(Event::JobAccepted(record(1, 5))))[0].1;
    kit.exit("a", worker, ExitClass::ModelUnreadable);
    let other = started(&kit.tell(Event::JobAccepted(record(2, 5))));
    assert_eq!(other[0].0, "a");
    assert_eq!(
        kit.machine.outlook(kit.now, kit.job(1)),
        Some(Outlook::Unknown(Obstacle::NotRunning)),
        "it waits for b"
    );
}

#[test]
fn a_break_of_minutes_is_not_part_of_the_speed() {
    let (mut kit, sessions) = at("2026-01-10T12:00:00Z", &["a"]);
    let worker = started(&kit.tell(Event::JobAccepted(record(1, 40))))[0].1;
    let grants = granted(&kit.ready("a", worker), "a");
    for (spool_seq, grant) in (1..).zip(&grants[..2]) {
        kit.result("a", sessions[0].1, worker, *grant);
        kit.committed("a", worker, *grant, spool_seq);
        kit.wait(MINUTE_MS, &sessions);
    }
    assert!(matches!(kit.machine.outlook(kit.now, kit.job(1)), Some(Outlook::Known(_))));
    let mut urgent = record(2, 5);
    urgent.spec.priority = 1;
    kit.tell(Event::JobAccepted(urgent));
    let other = started(&kit.exit("a", worker, ExitClass::Orderly))[0].1;
    assert_eq!(kit.machine.outlook(kit.now, kit.job(1)), Some(Outlook::Unknown(Obstacle::Behind(JobId(2)))));
    kit.ready("a", other);
    kit.wait(2 * MINUTE_MS, &sessions);
    kit.tell(Event::Cancel { job: JobId(2), now: true });
    kit.exit("a", other, ExitClass::Killed);
    assert_eq!(kit.job(1).workers.len(), 1);
    assert_eq!(kit.machine.outlook(kit.now, kit.job(1)), Some(Outlook::Unknown(Obstacle::TooEarly)));
}

#[test]
fn the_end_is_forecast_from_the_speed_of_this_night() {
    let (mut kit, sessions, worker, grants) = before_seven(40);
    assert_eq!(kit.machine.outlook(kit.now, kit.job(1)), Some(Outlook::Unknown(Obstacle::TooEarly)));
    // Two rows in half a minute: too little to tell.
    kit.now.unix_ms = ms("2026-01-11T04:00:00Z");
    for (spool_seq, grant) in (1..).zip(&grants[..2]) {
        kit.result("a", sessions[0].1, worker, *grant);
        kit.committed("a", worker, *grant, spool_seq);
        kit.wait(30_000, &sessions);
    }
    let Some(Outlook::Known(forecast)) = kit.machine.outlook(kit.now, kit.job(1)) else {
        panic!("a minute is over")
    };
    // One row a minute, counted from the first; 38 are left.
    assert_eq!(forecast.finish_unix_ms, Some(kit.now.unix_ms + 38 * MINUTE_MS));
    assert_eq!(forecast.rows_left_at_deadline, None);

    turn_to(&mut kit, "2026-01-11T06:00:00Z");
    turn_to(&mut kit, "2026-01-11T21:00:00Z");
    assert_eq!(
        kit.machine.outlook(kit.now, kit.job(1)),
        Some(Outlook::Unknown(Obstacle::TooEarly)),
        "the speed of last night is forgotten"
    );
}

#[test]
fn a_deadline_at_the_opening_is_missed_for_certain_and_one_after_it_is_not() {
    for (deadline, is_late) in [("2026-01-10T21:00:00Z", true), ("2026-01-10T21:00:01Z", false)] {
        let (mut kit, _) = at("2026-01-10T12:00:00Z", &["a"]);
        let mut record = nightly(1, 20);
        record.spec.deadline_unix_ms = Some(ms(deadline));
        kit.tell(Event::JobAccepted(record));
        let outlook = kit.machine.outlook(kit.now, kit.job(1));
        assert_eq!(matches!(outlook, Some(Outlook::Late { .. })), is_late, "{deadline}");
    }
}

#[test]
fn a_job_that_still_writes_or_stores_rows_may_yet_meet_its_deadline() {
    let mut record = nightly(1, 40);
    record.spec.deadline_unix_ms = Some(ms("2026-01-11T12:00:00Z"));
    let (mut kit, sessions, worker, grants) = at_work_before_seven(record);
    kit.wait(MINUTE_MS, &sessions);
    let outlook = |kit: &Kit| kit.machine.outlook(kit.now, kit.job(1));
    let obstacle = Obstacle::OutsideWindow;
    assert_eq!(outlook(&kit), Some(Outlook::Unknown(obstacle)), "its worker finishes what it has begun");
    kit.result("a", sessions[0].1, worker, grants[0]);
    kit.exit("a", worker, ExitClass::Orderly);
    assert_eq!(outlook(&kit), Some(Outlook::Unknown(obstacle)), "a result is on its way to disk");
    kit.committed("a", worker, grants[0], 1);
    assert_eq!(outlook(&kit), Some(Outlook::Late { obstacle, rows_left: 39 }));
}

#[test]
fn a_gang_of_which_a_rank_has_not_come_back_is_not_drained_before_it_has() {
    let (mut kit, _) = at("2026-01-11T12:00:00Z", &[]);
    let mut record = nightly(1, 20);
    record.epoch = Epoch(3);
    let rank_on = |node: &str, rank| Launch { rank, world_size: 2, ..launch(node, 3) };
    record.launches = vec![rank_on("a", 0), rank_on("b", 1)];
    let jobs = vec![replayed(record, &[])];
    kit.tell(Event::Started { jobs, nodes: vec![], repairs: vec![], remains: vec![] });
    let mut come_back = |node: &str, rank| {
        let report = ReportedWorker {
            worker: WorkerKey { job: JobId(1), epoch: Epoch(3), rank },
            pid: 77,
            phase: WorkerPhase::Decode,
            step: 9,
            settings: WorkerSettings::default(),
            world_size: 2,
            rows: Vec::new(),
        };
        let (session, mut effects) = kit.hello(node, "agent-1", vec![report]);
        effects.extend(kit.replayed(node, session));
        stopped(&effects).into_iter().map(|(node, _, mode)| (node, mode)).collect::<Vec<_>>()
    };
    assert_eq!(come_back("a", 0), [], "half of it may be all that is left, and then it is ended otherwise");
    let both = ["a", "b"].map(|node| (node.to_owned(), StopMode::FinishStarted));
    assert_eq!(come_back("b", 1), both);
}

#[test]
fn what_is_finished_after_the_closing_shows_its_speed() {
    let (mut kit, sessions, worker, grants) = before_seven(40);
    kit.wait(MINUTE_MS, &sessions);
    for (spool_seq, grant) in (1..).zip(&grants[..2]) {
        kit.result("a", sessions[0].1, worker, *grant);
        kit.committed("a", worker, *grant, spool_seq);
        kit.wait(2_000, &sessions);
    }
    assert_eq!(
        kit.job(1).rows_per_s(kit.now.mono_ms),
        Some(0.25),
        "one row after the first, in four seconds"
    );
}

#[test]
fn the_closing_is_not_told_of_a_job_that_is_paused() {
    let (mut kit, sessions, ..) = before_seven(40);
    kit.tell(Event::Pause(JobId(1)));
    assert_eq!(events(&kit.wait(MINUTE_MS, &sessions)), [""; 0]);
}

#[test]
fn that_the_bound_is_over_is_told_once_and_what_becomes_of_the_rows() {
    let (mut kit, sessions, ..) = before_seven(40);
    kit.wait(MINUTE_MS, &sessions);
    let effects = kit.wait(DRAIN_MS + 1_000, &sessions);
    let told = effects.iter().filter_map(|effect| match effect {
        Effect::Emit(draft) if draft.kind == "window-drain-over" => Some(draft.message.as_str()),
        _ => None,
    });
    assert_eq!(
        told.collect::<Vec<_>>(),
        [
            "the worker of j1 on a had not finished 120 s after its window closed; its rows go on from their checkpoints at \
          22:00"
        ]
    );
}

#[test]
fn a_worker_that_is_out_of_reach_at_the_bound_is_cut_off_when_it_is_back() {
    let (mut kit, sessions, worker, grants) = before_seven(40);
    kit.wait(MINUTE_MS, &sessions);
    kit.wait(DRAIN_MS - 1_000, &sessions);
    kit.tell(Event::SessionLost { node: "a".into(), session: sessions[0].1 });
    assert_eq!(events(&kit.wait(2_000, &[])), [""; 0], "nobody can be told");
    let report = reported(worker, &grants);
    let (session, _) = kit.hello("a", "agent-1", vec![report]);
    let effects = kit.replayed("a", session);
    assert_eq!(stopped(&effects), [("a".to_owned(), worker, StopMode::Checkpoint)]);
    assert!(events(&effects).contains(&"window-drain-over"));
}

#[test]
fn a_job_is_not_behind_one_whose_worker_is_ending() {
    let (mut kit, _) = at("2026-01-10T12:00:00Z", &["a"]);
    let worker = started(&kit.tell(Event::JobAccepted(record(1, 40))))[0].1;
    kit.ready("a", worker);
    kit.tell(Event::JobAccepted(record(2, 5)));
    let outlook = |kit: &Kit| kit.machine.outlook(kit.now, kit.job(2));
    assert_eq!(outlook(&kit), Some(Outlook::Unknown(Obstacle::Behind(JobId(1)))));
    kit.tell(Event::Cancel { job: JobId(1), now: false });
    assert_eq!(outlook(&kit), Some(Outlook::Unknown(Obstacle::NotRunning)), "it is next");
}

#[test]
fn a_job_that_fits_nowhere_is_not_behind_one_that_does() {
    let (mut kit, sessions) = cluster(&[30, 30]);
    kit.models.insert("small".to_owned(), small_model());
    let mut small = record(1, 40);
    small.spec.model = "small".to_owned();
    let effects = kit.tell(Event::JobAccepted(small));
    assert_eq!(start_all(&mut kit, &effects).len(), 2);
    kit.tell(Event::JobAccepted(record(2, 40)));
    kit.wait(3_000, &sessions);
    let outlook = kit.machine.outlook(kit.now, kit.job(2));
    assert_eq!(outlook, Some(Outlook::Unknown(Obstacle::NotRunning)), "nor would it be its turn after it");
}
