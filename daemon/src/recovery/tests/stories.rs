//! One fault, one story: what the machine does about it.

use super::kit::*;
use crate::{
    model::{Checkpoint, Epoch, Incident, JobId, JobState, NodeId, NodeRecord, RowIx, WorkerKey},
    recovery::*,
};

#[test]
fn a_launch_is_recorded_before_it_is_commanded_and_epochs_grow() {
    let mut kit = Kit::new();
    kit.connect("a");
    let effects = kit.tell(Event::JobAccepted(record(1, 3)));
    let recorded = effects.iter().position(|effect| {
        matches!(effect, Effect::RecordJob(job) if job.epoch == Epoch(1)
            && job.launches == [launch("a", 1)])
    });
    let sent = effects
        .iter()
        .position(|effect| matches!(effect, Effect::Send { command: Command::StartWorker { .. }, .. }));
    assert!(recorded.unwrap() < sent.unwrap());
    let worker = started(&effects)[0].1;
    kit.exit("a", worker, ExitClass::Crashed);
    let again = kit.wait(600, &[("a", SessionId(1))]);
    assert_eq!(started(&again), [("a".to_owned(), WorkerKey { epoch: Epoch(2), ..worker })]);
}

#[test]
fn rows_are_split_and_every_result_is_committed_then_acknowledged() {
    let (mut kit, [(session, worker, grants), (_, _, other)]) = two_at_work(100);
    assert_eq!(rows(&grants), (0..16).collect::<Vec<_>>(), "a batch, and a batch ahead");
    assert_eq!(rows(&other), (16..32).collect::<Vec<_>>());
    let effects = kit.result("a", session, worker, grants[0]);
    assert_eq!(commits(&effects), 1);
    assert_eq!(acks(&effects), [0_u64; 0], "nothing is acknowledged before it is durable");
    let effects = kit.committed("a", worker, grants[0], 1);
    assert_eq!(acks(&effects), [1]);
    assert_eq!(rows(&granted(&effects, "a")), [32], "the window is filled again");
    assert_eq!((kit.job(1).rows_succeeded, kit.job(1).results_bytes), (1, 100));
}

#[test]
fn acknowledgements_keep_to_the_order_of_the_spool() {
    let (mut kit, [(session, worker, grants), _]) = two_at_work(100);
    for grant in &grants[..3] {
        kit.result("a", session, worker, *grant);
    }
    assert_eq!(acks(&kit.committed("a", worker, grants[1], 2)), [0_u64; 0]);
    assert_eq!(acks(&kit.committed("a", worker, grants[0], 1)), [2]);
    assert_eq!(acks(&kit.committed("a", worker, grants[2], 3)), [3]);
}

#[test]
fn a_second_result_of_a_row_is_dropped_counted_and_acknowledged() {
    let (mut kit, [(session, worker, grants), _]) = two_at_work(100);
    kit.result("a", session, worker, grants[0]);
    kit.committed("a", worker, grants[0], 1);
    let effects = kit.result("a", session, worker, grants[0]);
    assert_eq!((commits(&effects), acks(&effects)), (0, vec![2]));
    assert_eq!(kit.job(1).record.duplicate_results, 1);
}

#[test]
fn a_result_sent_again_while_the_first_is_being_stored_waits_for_it() {
    let (mut kit, [(session, worker, grants), _]) = two_at_work(100);
    kit.result("a", session, worker, grants[0]);
    let (session, _) = kit.hello("a", "agent-1", vec![reported(worker, &grants[1..])]);
    let effects = kit.result_again("a", session, worker, grants[0], 1);
    assert_eq!((commits(&effects), acks(&effects)), (0, vec![]), "not durable, so not acknowledged");
    assert_eq!(acks(&kit.committed("a", worker, grants[0], 1)), [1]);
    assert_eq!(kit.job(1).record.duplicate_results, 0);
}

#[test]
fn a_killed_worker_is_replaced_and_its_rows_go_on_from_their_checkpoints() {
    let (mut kit, [(session, worker, grants), (other, _, _)]) = two_at_work(100);
    let news = ProgressNews {
        worker,
        phase: WorkerPhase::Decode,
        step: 3,
        step_age_ms: 0,
        active_rows: 8,
        prompt_tokens: 0,
        generated_tokens: 24,
        peak_memory_bytes: 0,
        checkpoints: vec![CheckpointNews {
            row: grants[0].row,
            attempt: 1,
            offset: 0,
            checkpoint: Checkpoint { tokens: vec![5, 6, 7], logprobs_json: vec![], by_fallback: false },
        }],
    };
    let effects = kit.tell(Event::Progress { node: "a".into(), news });
    assert_eq!(effects, [Effect::SaveCheckpoints { job: JobId(1), rows: vec![grants[0].row] }]);
    let effects = kit.exit("a", worker, ExitClass::Signalled);
    assert!(events(&effects).contains(&"worker-exited"));
    assert_eq!(started(&effects), [], "not before its pause");
    let incident = kit.machine.incidents().next().unwrap().clone();
    assert_eq!((incident.rows_requeued, incident.tokens_saved, incident.closed_unix_ms), (16, 3, None));

    let effects = kit.wait(500, &[("a", session), ("b", other)]);
    let (_, again) = started(&effects)[0].clone();
    let effects = kit.ready("a", again);
    let regranted = granted(&effects, "a");
    assert_eq!(regranted[0], RowGrant { row: grants[0].row, attempt: 2 }, "what came back goes out first");
    assert_eq!(kit.job(1).checkpoint(grants[0].row).unwrap().tokens, [5, 6, 7]);
    assert!(kit.machine.incidents().next().unwrap().closed_unix_ms.is_some());
}

#[test]
fn a_late_result_of_a_replaced_worker_does_not_commit() {
    let (mut kit, [(session, worker, grants), (other, _, _)]) = two_at_work(100);
    kit.exit("a", worker, ExitClass::Signalled);
    let effects = kit.wait(500, &[("a", session), ("b", other)]);
    let again = started(&effects)[0].1;
    kit.ready("a", again);
    let effects = kit.result("a", session, worker, grants[0]);
    assert_eq!((commits(&effects), acks(&effects).len()), (0, 1));
    let effects = kit.result("a", session, again, RowGrant { attempt: 2, ..grants[0] });
    assert_eq!(commits(&effects), 1);
}

#[test]
fn a_silent_node_loses_its_rows_to_others_and_is_taken_back_with_what_it_still_has() {
    let (mut kit, [(_, worker, grants), (other, on_b, mine)]) = two_at_work(40);
    let effects = kit.wait(5_000, &[("b", other)]);
    assert!(events(&effects).contains(&"node-silent"));
    assert!(
        effects
            .iter()
            .any(|effect| matches!(effect, Effect::CloseSession { node, .. } if node.as_str() == "a"))
    );
    // b finishes one of its rows and gets one of a's.
    kit.result("b", other, on_b, mine[0]);
    let effects = kit.committed("b", on_b, mine[0], 1);
    let taken = granted(&effects, "b");
    assert_eq!(taken, [RowGrant { row: grants[0].row, attempt: 2 }]);
    // a comes back, its worker alive with all its rows: it keeps them, but for the one b has now.
    let (session, effects) = kit.hello("a", "agent-1", vec![reported(worker, &grants)]);
    assert!(events(&effects).contains(&"worker-adopted"));
    assert!(effects.iter().any(|effect| matches!(effect,
        Effect::Send { command: Command::CancelRows { rows, .. }, .. } if *rows == [grants[0].row])));
    let effects = kit.replayed("a", session);
    assert_eq!(started(&effects), []);
    let effects = kit.result("a", session, worker, grants[1]);
    assert_eq!(commits(&effects), 1);
    assert_eq!(kit.job(1).record.epoch, Epoch(2), "nothing was started anew");
}

#[test]
fn a_short_break_of_the_connection_costs_nothing() {
    let (mut kit, [(session, worker, grants), (other, _, _)]) = two_at_work(100);
    kit.tell(Event::SessionLost { node: "a".into(), session });
    kit.wait(2_000, &[("b", other)]);
    // Row 0 was finished meanwhile and is in the spool; row 1 was on its way to the agent when the connection broke.
    let (session, _) = kit.hello("a", "agent-1", vec![reported(worker, &grants[2..])]);
    let effects = kit.result("a", session, worker, grants[0]);
    assert_eq!(commits(&effects), 1);
    let effects = kit.replayed("a", session);
    assert!(
        granted(&effects, "a").contains(&RowGrant { row: grants[1].row, attempt: 2 }),
        "what got lost is sent again"
    );
    assert_eq!(kit.job(1).record.rows_requeued, 1);
}

#[test]
fn an_agent_that_comes_back_without_its_worker_delivers_its_spool_before_rows_move() {
    let (mut kit, [(session, worker, grants), _]) = two_at_work(100);
    kit.tell(Event::SessionLost { node: "a".into(), session });
    let (session, effects) = kit.hello("a", "agent-2", Vec::new());
    assert!(events(&effects).contains(&"worker-vanished"));
    let effects = kit.result("a", session, worker, grants[0]);
    assert_eq!(commits(&effects), 1, "finished before the agent died, so not done again");
    kit.replayed("a", session);
    assert_eq!(kit.job(1).record.rows_requeued, 15);
}

#[test]
fn a_restarted_controller_adopts_what_runs_and_waits_before_it_hands_out_rows() {
    let mut job = record(1, 40);
    job.epoch = Epoch(2);
    job.launches = vec![launch("a", 1), launch("b", 2)];
    let mut kit = Kit::new();
    kit.tell(Event::Started {
        jobs: vec![replayed(job, &[0, 1])],
        nodes: vec![],
        repairs: vec![],
        remains: vec![],
    });
    let worker = WorkerKey { job: JobId(1), epoch: Epoch(1), rank: 0 };
    let held: Vec<RowGrant> = (2..10).map(|row| RowGrant { row: RowIx(row), attempt: 1 }).collect();
    let (session, _) = kit.hello("a", "agent-1", vec![reported(worker, &held)]);
    let effects = kit.replayed("a", session);
    assert_eq!((started(&effects), granted(&effects, "a")), (vec![], vec![]), "b may hold any of the rest");
    let effects = kit.result("a", session, worker, held[0]);
    assert_eq!(commits(&effects), 1, "results are taken all the same");
    let on_b = WorkerKey { epoch: Epoch(2), ..worker };
    let more: Vec<RowGrant> = (10..18).map(|row| RowGrant { row: RowIx(row), attempt: 1 }).collect();
    let (session, _) = kit.hello("b", "agent-1", vec![reported(on_b, &more)]);
    let effects = kit.replayed("b", session);
    assert!(granted(&effects, "b").iter().all(|grant| grant.row >= RowIx(18)), "only rows nobody holds");
    assert_eq!(started(&effects), []);
    assert_eq!(kit.job(1).record.epoch, Epoch(2));
}

#[test]
fn a_worker_that_does_not_return_with_its_controller_is_replaced_after_the_grace() {
    let mut job = record(1, 4);
    job.epoch = Epoch(1);
    job.launches = vec![launch("gone", 1)];
    let mut kit = Kit::new();
    kit.tell(Event::Started {
        jobs: vec![replayed(job, &[])],
        nodes: vec![],
        repairs: vec![],
        remains: vec![],
    });
    let (session, effects) = kit.connect("a");
    assert_eq!(started(&effects), []);
    let effects = kit.wait(15_100, &[("a", session)]);
    assert!(events(&effects).contains(&"worker-not-adopted"));
    assert_eq!(started(&effects)[0].1.epoch, Epoch(2));
}

#[test]
fn a_full_disk_holds_everything_and_loses_nothing() {
    let (mut kit, [(session, worker, grants), (other, on_b, mine)]) = two_at_work(100);
    kit.result("a", session, worker, grants[0]);
    let failed = Event::CommitFailed {
        node: "a".into(),
        rows: vec![committed_row(worker, grants[0], 1)],
        problem: "no space".to_owned(),
    };
    let effects = kit.tell(failed);
    assert!(events(&effects).contains(&"disk-full"));
    assert_eq!(kit.machine.storage_problem(), Some("no space"));
    let effects = kit.result("a", session, worker, grants[1]);
    assert_eq!((commits(&effects), acks(&effects)), (0, vec![]), "not taken: it comes again");
    // The other node's result may still be tried, and may succeed; no rows go out for it.
    kit.result("b", other, on_b, mine[0]);
    let effects = kit.committed("b", on_b, mine[0], 3);
    assert_eq!(granted(&effects, "b"), []);

    let effects = kit.tell(Event::StorageRecovered);
    assert!(
        effects
            .iter()
            .any(|effect| matches!(effect, Effect::CloseSession { node, .. } if node.as_str() == "a"))
    );
    let (session, _) = kit.hello("a", "agent-1", vec![reported(worker, &grants[2..])]);
    assert_eq!(commits(&kit.result_again("a", session, worker, grants[0], 1)), 1);
    assert_eq!(commits(&kit.result_again("a", session, worker, grants[1], 2)), 1);
    kit.replayed("a", session);
    assert_eq!(kit.job(1).record.rows_requeued, 0);
    assert_eq!(acks(&kit.committed("a", worker, grants[0], 1)), [1]);
}

#[test]
fn a_model_no_node_can_read_fails_the_job_with_the_reason() {
    let mut kit = Kit::new();
    kit.connect("a");
    kit.connect("b");
    let effects = kit.tell(Event::JobAccepted(record(1, 30)));
    let workers = started(&effects);
    let exit = |worker, error: &str| WorkerExit {
        worker,
        class: ExitClass::ModelUnreadable,
        status: "exited with status 3".to_owned(),
        first_error: error.to_owned(),
        log_tail: vec![],
        started_rows: vec![],
        killed_while_loaded: false,
        quiet_ms: None,
    };
    kit.tell(Event::WorkerExited { node: "a".into(), exit: exit(workers[0].1, "no config.json in m") });
    assert_eq!(kit.job(1).record.state, JobState::Active, "b may have it");
    kit.tell(Event::WorkerExited { node: "b".into(), exit: exit(workers[1].1, "m is not a directory") });
    assert_eq!(kit.job(1).record.state, JobState::Failed);
    assert_eq!(
        kit.job(1).record.detail,
        "no node can run model m (a: no config.json in m; b: m is not a directory)"
    );
}

#[test]
fn a_node_that_has_not_been_seen_does_not_keep_a_job_alive_that_nobody_can_run() {
    let mut kit = Kit::new();
    let gone = NodeRecord {
        id: "gone".into(),
        draining: false,
        last_seen_unix_ms: kit.now.unix_ms,
        boot_id: String::new(),
        gpu_faults_unix_ms: Vec::new(),
        quarantine: None,
        links: Vec::new(),
        restarts: Vec::new(),
    };
    let (jobs, repairs, remains) = (Vec::new(), Vec::new(), Vec::new());
    kit.tell(Event::Started { jobs, nodes: vec![gone], repairs, remains });
    let (session, _) = kit.connect("a");
    let workers = started(&kit.tell(Event::JobAccepted(record(1, 30))));
    kit.exit("a", workers[0].1, ExitClass::ModelUnreadable);
    assert_eq!(kit.job(1).record.state, JobState::Active, "it may be about to connect");
    kit.wait(Policy::default().adopt_grace_ms, &[("a", session)]);
    assert_eq!(kit.job(1).record.state, JobState::Failed);
}

#[test]
fn workers_that_keep_failing_are_tried_ever_more_seldom_and_then_a_person_is_asked() {
    let mut kit = Kit::new();
    let (session, _) = kit.connect("a");
    let mut effects = kit.tell(Event::JobAccepted(record(1, 3)));
    let mut waits = Vec::new();
    loop {
        let worker = started(&effects)[0].1;
        effects = kit.exit("a", worker, ExitClass::Crashed);
        if kit.job(1).record.state == JobState::Paused {
            break;
        }
        let from = kit.now.mono_ms;
        while started(&effects).is_empty() {
            effects = kit.wait(100, &[("a", session)]);
        }
        waits.push(kit.now.mono_ms - from);
    }
    assert_eq!(waits, [500, 1_000, 2_000, 4_000]);
    assert!(kit.job(1).paused_by_faults());
    assert!(kit.job(1).record.detail.starts_with("workers failed 5 times in a row without finishing a row"));
    let effects = kit.tell(Event::Resume(JobId(1)));
    assert_eq!(started(&effects).len(), 1, "whoever resumes gets a try at once");
}

#[test]
fn a_hung_worker_is_ended_and_replaced() {
    let (mut kit, [(session, worker, _), (other, on_b, _)]) = two_at_work(100);
    let mut effects = Vec::new();
    for second in 0..121_u64 {
        let news = ProgressNews {
            worker: on_b,
            phase: WorkerPhase::Decode,
            step: second + 1,
            step_age_ms: 0,
            active_rows: 8,
            prompt_tokens: 0,
            generated_tokens: second,
            peak_memory_bytes: 0,
            checkpoints: vec![],
        };
        kit.tell(Event::Progress { node: "b".into(), news });
        effects.extend(kit.wait(1_000, &[("a", session), ("b", other)]));
    }
    assert_eq!(stopped(&effects), [("a".to_owned(), worker, StopMode::Kill)], "b takes its steps");
    let effects = kit.exit("a", worker, ExitClass::Killed);
    assert!(events(&effects).contains(&"worker-silent"), "{effects:?}");
}

#[test]
fn pause_and_resume_work_at_row_boundaries() {
    let (mut kit, [(session, worker, grants), (_, on_b, _)]) = two_at_work(100);
    let effects = kit.tell(Event::Pause(JobId(1)));
    let modes: Vec<StopMode> = stopped(&effects).into_iter().map(|(_, _, mode)| mode).collect();
    assert_eq!(modes, [StopMode::FinishStarted, StopMode::FinishStarted]);
    let effects = kit.result("a", session, worker, grants[0]);
    assert_eq!(commits(&effects), 1, "what was being generated is kept");
    kit.committed("a", worker, grants[0], 1);
    kit.exit("a", worker, ExitClass::Orderly);
    kit.exit("b", on_b, ExitClass::Orderly);
    assert_eq!(kit.job(1).record.rows_requeued, 0, "handing rows back in order is no fault");
    assert_eq!(kit.machine.incidents().count(), 0);
    let effects = kit.tell(Event::Resume(JobId(1)));
    assert_eq!(started(&effects).len(), 2);
    let refused = kit.machine.may_pause(JobId(9)).unwrap_err();
    assert_eq!(refused.to_string(), "there is no job j9");
}

#[test]
fn cancel_lets_started_rows_finish_and_cancel_now_does_not() {
    let (mut kit, [(session, worker, grants), (_, on_b, _)]) = two_at_work(100);
    let effects = kit.tell(Event::Cancel { job: JobId(1), now: false });
    assert_eq!(stopped(&effects).len(), 2);
    kit.result("a", session, worker, grants[0]);
    kit.committed("a", worker, grants[0], 1);
    kit.exit("a", worker, ExitClass::Orderly);
    assert_eq!(kit.job(1).record.state, JobState::Cancelling);
    let effects = kit.tell(Event::Cancel { job: JobId(1), now: true });
    assert_eq!(stopped(&effects), [("b".to_owned(), on_b, StopMode::Kill)]);
    kit.exit("b", on_b, ExitClass::Killed);
    assert_eq!(kit.job(1).record.state, JobState::Cancelled);
    assert_eq!(kit.machine.may_resume(JobId(1)).unwrap_err().to_string(), "job j1 is over: it is cancelled");
    assert!(kit.machine.may_cancel(JobId(1)).is_err());
}

#[test]
fn a_drained_node_finishes_what_it_has_begun_and_gets_no_more() {
    let (mut kit, [(_, worker, _), _]) = two_at_work(100);
    let effects = kit.tell(Event::Drain { node: "a".into(), drain: true });
    assert_eq!(stopped(&effects), [("a".to_owned(), worker, StopMode::FinishStarted)]);
    kit.exit("a", worker, ExitClass::Orderly);
    assert_eq!(started(&kit.tell(Event::Tick)), []);
    let effects = kit.tell(Event::Drain { node: NodeId::from("a"), drain: false });
    assert_eq!(started(&effects).len(), 1);
}

#[test]
fn a_worker_that_never_begins_with_its_rows_is_ended_though_it_says_that_it_is_idle() {
    let (mut kit, [(session, worker, grants), (other, ..)]) = two_at_work(100);
    assert!(!grants.is_empty());
    let mut stops = Vec::new();
    for _ in 0..130 {
        let news = ProgressNews {
            worker,
            phase: WorkerPhase::Idle,
            step: 0,
            step_age_ms: 0,
            active_rows: 0,
            prompt_tokens: 0,
            generated_tokens: 0,
            peak_memory_bytes: 0,
            checkpoints: vec![],
        };
        kit.tell(Event::Progress { node: "a".into(), news });
        stops.extend(stopped(&kit.wait(1_000, &[("a", session), ("b", other)])));
    }
    assert!(stops.contains(&("a".to_owned(), worker, StopMode::Kill)), "{stops:?}");
}

#[test]
fn a_worker_that_hangs_as_it_finishes_what_it_has_begun_is_ended() {
    let (mut kit, [(session, worker, _), (other, ..)]) = two_at_work(100);
    let _ = kit.tell(Event::Drain { node: "a".into(), drain: true });
    // It is given twice as long: b, which takes no step either, was ended before.
    let stops = stopped(&kit.wait(300_000, &[("a", session), ("b", other)]));
    assert!(stops.contains(&("a".to_owned(), worker, StopMode::Kill)), "{stops:?}");
    let effects = kit.exit("a", worker, ExitClass::Killed);
    assert!(events(&effects).contains(&"worker-silent"), "a fault, though it was to end: {effects:?}");
}

#[test]
fn a_worker_that_does_not_end_when_its_job_is_over_is_ended_and_makes_room() {
    let mut kit = Kit::new();
    let (session, _) = kit.connect("a");
    let worker = started(&kit.tell(Event::JobAccepted(record(1, 1))))[0].1;
    let grant = granted(&kit.ready("a", worker), "a")[0];
    kit.result("a", session, worker, grant);
    let effects = kit.committed("a", worker, grant, 1);
    assert_eq!(stopped(&effects), [("a".to_owned(), worker, StopMode::FinishStarted)]);
    assert_eq!(started(&kit.tell(Event::JobAccepted(record(2, 1)))), [], "there is memory for one");
    let stops = stopped(&kit.wait(150_000, &[("a", session)]));
    assert_eq!(stops, [("a".to_owned(), worker, StopMode::Kill)]);
    assert_eq!(started(&kit.exit("a", worker, ExitClass::Killed))[0].1.job, JobId(2));
    assert_eq!(kit.machine.incidents().count(), 0, "it cost nobody anything");
}

#[test]
fn a_more_urgent_job_takes_over_at_a_row_boundary_and_the_next_job_follows_the_first() {
    let (mut kit, [(_, worker, _), _]) = two_at_work(100);
    let mut urgent = record(2, 50);
    urgent.spec.priority = 1;
    let effects = kit.tell(Event::JobAccepted(urgent));
    assert_eq!(stopped(&effects).len(), 2);
    assert_eq!(started(&effects), [], "not before the old worker has ended: there is memory for one");
    let effects = kit.exit("a", worker, ExitClass::Orderly);
    assert_eq!(started(&effects)[0].1.job, JobId(2));
    let effects = kit.tell(Event::JobAccepted(record(3, 50)));
    assert_eq!(stopped(&effects), [], "the same priority waits");
}

#[test]
fn a_job_is_complete_when_its_last_row_is_durable() {
    let mut kit = Kit::new();
    let (session, _) = kit.connect("a");
    let worker = started(&kit.tell(Event::JobAccepted(record(1, 1))))[0].1;
    let grant = granted(&kit.ready("a", worker), "a")[0];
    kit.result("a", session, worker, grant);
    assert_eq!(kit.job(1).record.state, JobState::Active);
    let effects = kit.committed("a", worker, grant, 1);
    assert!(events(&effects).contains(&"job-completed"));
    assert!(effects.contains(&Effect::JobOver(JobId(1))));
    assert_eq!(stopped(&effects)[0].2, StopMode::FinishStarted);
    assert_eq!(kit.job(1).record.state, JobState::Completed);
}

#[test]
fn a_worker_of_a_job_that_is_over_is_stopped_before_the_node_gets_another() {
    let mut over = record(1, 1);
    over.state = JobState::Completed;
    over.epoch = Epoch(1);
    let mut kit = Kit::new();
    kit.tell(Event::Started {
        jobs: vec![replayed(over, &[0])],
        nodes: vec![],
        repairs: vec![],
        remains: vec![],
    });
    kit.tell(Event::JobAccepted(record(2, 4)));
    let worker = WorkerKey { job: JobId(1), epoch: Epoch(1), rank: 0 };
    let (session, mut effects) = kit.hello("a", "agent-1", vec![reported(worker, &[])]);
    effects.extend(kit.replayed("a", session));
    assert_eq!((stopped(&effects).len(), started(&effects).len()), (1, 0));
    let effects = kit.exit("a", worker, ExitClass::Killed);
    assert_eq!(started(&effects)[0].1.job, JobId(2));
    assert_eq!(kit.machine.incidents().count(), 0);
}

#[test]
fn what_a_controller_left_open_is_closed_by_the_next() {
    let mut kit = Kit::new();
    let _ = kit.connect("a");
    let _ = kit.tell(Event::JobAccepted(record(1, 100)));
    let effects = kit.wait(6_000, &[]);
    assert!(events(&effects).contains(&"node-silent"));
    let effects = kit.tell(Event::StorageFailed { problem: "full".to_owned() });
    let recorded = |effects: &[Effect]| -> Vec<Incident> {
        let incidents = effects.iter().filter_map(|effect| match effect {
            Effect::RecordIncident(incident) => Some((**incident).clone()),
            _ => None,
        });
        incidents.collect()
    };
    assert_eq!(recorded(&effects).len(), 1, "told when it changes, and no more than that");
    let mut left: Vec<Incident> = kit.machine.incidents().cloned().collect();
    left.reverse();
    assert_eq!(left.iter().filter(|incident| incident.closed_unix_ms.is_none()).count(), 2);
    let nodes = vec![NodeRecord {
        id: "a".into(),
        draining: false,
        last_seen_unix_ms: kit.now.unix_ms,
        boot_id: "boot-1".to_owned(),
        gpu_faults_unix_ms: Vec::new(),
        quarantine: None,
        links: Vec::new(),
        restarts: Vec::new(),
    }];

    let mut kit = Kit::new();
    let _ = kit.tell(Event::Remembered { models: vec![], incidents: left });
    let _ = kit.tell(Event::Started { jobs: vec![], nodes, repairs: vec![], remains: vec![] });
    let open = |kit: &Kit| -> Vec<&'static str> {
        let open = kit.machine.incidents().filter(|incident| incident.closed_unix_ms.is_none());
        open.map(|incident| incident.fault.word()).collect()
    };
    assert_eq!(open(&kit), ["node-silent"], "a full disk shows again by itself");
    let (_, effects) = kit.connect("a");
    assert_eq!(open(&kit), [""; 0]);
    assert_eq!(recorded(&effects).len(), 1);
}

#[test]
fn incidents_of_a_job_that_is_over_are_closed_by_the_next_controller() {
    let (mut kit, [(_, worker, _), _]) = two_at_work(40);
    let _ = kit.exit("a", worker, ExitClass::Crashed);
    let open = kit.machine.incidents().next().expect("an incident").clone();
    assert_eq!(open.closed_unix_ms, None);
    let mut after = Kit::new();
    let mut job = kit.job(1).record.clone();
    job.state = JobState::Completed;
    let _ = after.tell(Event::Remembered { models: vec![], incidents: vec![open] });
    let jobs = vec![replayed(job, &[])];
    let _ = after.tell(Event::Started { jobs, nodes: vec![], repairs: vec![], remains: vec![] });
    assert_eq!(after.machine.incidents().next().expect("it is kept").outcome, "the job is over");
}

#[test]
fn a_worker_that_ended_while_no_controller_was_there_stands_in_the_books() {
    let mut kit = Kit::new();
    let mut job = record(1, 10);
    job.epoch = Epoch(3);
    job.launches = vec![launch("a", 3)];
    let started_with =
        Event::Started { jobs: vec![replayed(job, &[])], nodes: vec![], repairs: vec![], remains: vec![] };
    let _ = kit.tell(started_with);
    let (session, _) = kit.hello("a", "agent-2", Vec::new());
    let _ = kit.replayed("a", session);
    let incident = kit.machine.incidents().next().expect("an incident");
    assert_eq!((incident.fault, incident.job), (crate::model::Fault::AgentRestarted, Some(JobId(1))));
    let effects = kit.wait(200, &[("a", session)]);
    assert_eq!(started(&effects).len(), 1, "nobody is waited for any more");
}
