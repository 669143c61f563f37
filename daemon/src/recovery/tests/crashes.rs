//! Crashes that mean something: rows that end their worker, GPUs that fail, memory that runs out.

use super::kit::*;
use crate::{
    model::{Fault, JobId, JobState, Mode, NodeId, NodeRecord, RowCrashes, RowIx, WorkerKey},
    recovery::*,
};

/// A worker's end with these rows in work.
fn crash(kit: &mut Kit, node: &str, worker: WorkerKey, class: ExitClass, in_work: &[u32]) -> Vec<Effect> {
    let exit = WorkerExit {
        worker,
        class,
        status: "exited with status 1".to_owned(),
        first_error: "it broke".to_owned(),
        log_tail: vec!["last words".to_owned()],
        started_rows: in_work.iter().copied().map(RowIx).collect(),
        killed_while_loaded: false,
        quiet_ms: None,
    };
    kit.tell(Event::WorkerExited { node: NodeId::from(node), exit })
}

fn settings(effects: &[Effect]) -> Vec<WorkerSettings> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Send { command: Command::StartWorker { settings, .. }, .. } => Some(*settings),
            _ => None,
        })
        .collect()
}

fn failed_rows(effects: &[Effect]) -> Vec<(RowIx, String)> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::FailRows { rows, .. } => Some(rows.clone()),
            _ => None,
        })
        .flatten()
        .collect()
}

fn failures_stored(kit: &mut Kit, rows: &[(RowIx, String)]) -> Vec<Effect> {
    let rows = rows.iter().map(|(row, _)| CommittedRow {
        spool_seq: 0,
        job: JobId(1),
        row: *row,
        status_code: 500,
        prompt_tokens: 0,
        completion_tokens: 0,
    });
    let rows = rows.collect();
    let totals = JobTotals {
        job: JobId(1),
        results_bytes: 0,
        errors_bytes: 100,
        rows_succeeded: kit.job(1).rows_succeeded,
        rows_failed: 1,
        rows_by_fallback: 0,
    };
    kit.tell(Event::FailuresStored { rows, totals: vec![totals] })
}

/// One node with a worker that is killed by `poison`; plays until the job is over and returns the crashes it took.
fn play_with_poison(rows: u32, poison: u32) -> (Kit, u32) {
    let mut kit = Kit::new();
    let (session, _) = kit.connect("a");
    let mut effects = kit.tell(Event::JobAccepted(record(1, rows)));
    let mut crashes = 0;
    let mut held: Vec<RowGrant> = Vec::new();
    let mut worker = None;
    for _ in 0..10_000 {
        for (_, started) in started(&effects) {
            worker = Some(started);
            held.clear();
            effects.extend(kit.ready("a", started));
        }
        held.extend(granted(&effects, "a"));
        effects.clear();
        let failed = kit.job(1).record.state == JobState::Completed;
        if failed {
            return (kit, crashes);
        }
        let Some(running) = worker else {
            effects = kit.wait(100, &[("a", session)]);
            continue;
        };
        let in_work: Vec<u32> = held.iter().take(8).map(|grant| grant.row.0).collect();
        if in_work.contains(&poison) {
            crashes += 1;
            worker = None;
            effects = crash(&mut kit, "a", running, ExitClass::Crashed, &in_work);
            let failed = failed_rows(&effects);
            if !failed.is_empty() {
                assert_eq!(failed.iter().map(|(row, _)| row.0).collect::<Vec<_>>(), [poison]);
                assert!(failed[0].1.contains("it broke"), "with its evidence: {}", failed[0].1);
                effects.extend(failures_stored(&mut kit, &failed));
            }
        } else if !held.is_empty() {
            let grant = held.remove(0);
            effects = kit.result("a", session, running, grant);
            let seq = kit.spool_seq;
            effects.extend(kit.committed("a", running, grant, seq));
        } else {
            effects = kit.wait(100, &[("a", session)]);
        }
    }
    panic!("the job did not end: {:?}", kit.job(1).record);
}

#[test]
fn a_poison_row_fails_alone_and_every_other_row_is_answered() {
    for poison in [0, 3, 7, 8, 20, 39] {
        let (kit, crashes) = play_with_poison(40, poison);
        assert!(crashes <= 5, "row {poison}: {crashes} crashes with 8 rows in work");
        let job = kit.job(1);
        assert_eq!((job.record.state, job.done.len(), job.rows_failed), (JobState::Completed, 40, 1));
        let incident = kit.machine.incidents().find(|incident| incident.fault == Fault::PoisonRow).unwrap();
        assert!(incident.summary.contains(&format!("row {poison} ")), "{}", incident.summary);
        assert_eq!(incident.evidence, ["it broke", "last words"]);
        assert!(incident.closed_unix_ms.is_some());
    }
}

#[test]
fn a_row_that_fails_is_not_answered_by_a_late_result_and_waits_for_a_full_disk() {
    let mut kit = Kit::new();
    let (session, _) = kit.connect("a");
    let mut one_at_a_time = record(1, 3);
    one_at_a_time.spec.max_batch_rows = 1;
    let effects = kit.tell(Event::JobAccepted(one_at_a_time));
    let mut worker = started(&effects)[0].1;
    kit.ready("a", worker);
    let mut effects = Vec::new();
    for _ in 0..3 {
        effects = crash(&mut kit, "a", worker, ExitClass::Crashed, &[0]);
        let restarted = kit.wait(3_000, &[("a", session)]);
        if let Some((_, again)) = started(&restarted).first() {
            worker = *again;
            kit.ready("a", worker);
        }
    }
    assert_eq!(failed_rows(&effects).len(), 1);
    kit.tell(Event::StorageFailed { problem: "full".to_owned() });
    let effects = kit.tell(Event::StorageRecovered);
    let failed = failed_rows(&effects);
    assert_eq!(failed.len(), 1, "tried again when there is room");
    // A spool that is delivered late holds an answer of it after all.
    let (session, _) = kit.hello("a", "agent-1", Vec::new());
    let late = RowGrant { row: RowIx(0), attempt: 2 };
    assert_eq!(commits(&kit.result("a", session, worker, late)), 0, "it is being failed");
    failures_stored(&mut kit, &failed);
    assert!(kit.job(1).done.contains(RowIx(0)));
}

#[test]
fn suspects_are_remembered_by_the_next_controller_and_tried_apart() {
    let mut before = record(1, 20);
    let seen =
        |row, crashes| RowCrashes { row: RowIx(row), crashes, cause: 7, alone_at: vec![], alone_tokens: 0 };
    // The record is older than the answer of row 3.
    before.crashes = vec![seen(3, 2), seen(4, 2), seen(5, 2), seen(6, 1)];
    let mut kit = Kit::new();
    kit.tell(Event::Started {
        jobs: vec![replayed(before, &[3])],
        nodes: vec![],
        repairs: vec![],
        remains: vec![],
    });
    let (session, effects) = kit.connect("a");
    let worker = started(&effects)[0].1;
    let effects = kit.ready("a", worker);
    let trial = granted(&effects, "a");
    assert_eq!(rows(&trial), [4], "half of those seen most often, and nothing else");
    kit.result("a", session, worker, trial[0]);
    let effects = kit.committed("a", worker, trial[0], 1);
    assert_eq!(rows(&granted(&effects, "a")), [5]);
    let trial = granted(&effects, "a");
    kit.result("a", session, worker, trial[0]);
    let effects = kit.committed("a", worker, trial[0], 2);
    assert_eq!(rows(&granted(&effects, "a")).len(), 16, "and on with the night");
}

#[test]
fn a_worker_with_rows_on_trial_gets_no_others_and_the_other_workers_do() {
    let mut before = record(1, 40);
    let seen = |row| RowCrashes { row: RowIx(row), crashes: 2, cause: 7, alone_at: vec![], alone_tokens: 0 };
    before.crashes = vec![seen(4), seen(5)];
    let mut kit = Kit::new();
    kit.tell(Event::Started {
        jobs: vec![replayed(before, &[])],
        nodes: vec![],
        repairs: vec![],
        remains: vec![],
    });
    let (a, mut effects) = kit.connect("a");
    let (b, more) = kit.connect("b");
    effects.extend(more);
    effects.extend(kit.wait(16_000, &[("a", a), ("b", b)]));
    let workers = started(&effects);
    let worker = |node: &str| workers.iter().find(|(name, _)| name == node).unwrap().1;
    let effects = kit.ready("a", worker("a"));
    let trial = granted(&effects, "a");
    assert_eq!(rows(&trial), [4]);
    let effects = kit.ready("b", worker("b"));
    let others = granted(&effects, "b");
    assert!(others.len() > 2 && !rows(&others).contains(&4) && !rows(&others).contains(&5), "{others:?}");

    // b goes on, and a is left with its one.
    for (grant, seq) in others.iter().zip(1..).take(3) {
        kit.result("b", b, worker("b"), *grant);
        let effects = kit.committed("b", worker("b"), *grant, seq);
        assert_eq!(granted(&effects, "a"), []);
        assert_eq!(granted(&effects, "b").len(), 1);
    }
    kit.result("a", a, worker("a"), trial[0]);
    let effects = kit.committed("a", worker("a"), trial[0], 1);
    assert_eq!(rows(&granted(&effects, "a")), [5]);
}

/// Of what was in work at a crash, rows that others hold meanwhile, that are done, or that are none, have nothing to do
/// with it.
#[test]
fn a_crash_accuses_only_rows_that_are_still_its_worker_s() {
    let (mut kit, [(session, worker, mine), (_, _, others)]) = two_at_work(40);
    kit.result("a", session, worker, mine[0]);
    kit.committed("a", worker, mine[0], 1);
    let in_work = [mine[0].row.0, mine[1].row.0, others[0].row.0, 39, 40, 4_000_000];
    assert!(!rows(&mine).contains(&39) && !rows(&others).contains(&39));
    crash(&mut kit, "a", worker, ExitClass::Crashed, &in_work);
    let seen: Vec<u32> = kit.job(1).record.crashes.iter().map(|seen| seen.row.0).collect();
    assert_eq!(seen, [mine[1].row.0, 39]);
}

#[test]
fn a_worker_that_hangs_accuses_its_rows_however_it_ends() {
    let mut kit = Kit::new();
    let (session, _) = kit.connect("a");
    let effects = kit.tell(Event::JobAccepted(record(1, 20)));
    let worker = started(&effects)[0].1;
    kit.ready("a", worker);
    let effects = kit.wait(400_000, &[("a", session)]);
    assert!(events(&effects).contains(&"worker-silent"), "{effects:?}");
    crash(&mut kit, "a", worker, ExitClass::Killed, &[0, 3]);
    let seen: Vec<u32> = kit.job(1).record.crashes.iter().map(|seen| seen.row.0).collect();
    assert_eq!(seen, [0, 3]);
}

#[test]
fn a_condemned_row_is_out_of_work_at_once_and_its_incident_ends_no_other() {
    let (mut kit, [(a, mut worker, mine), (b, on_b, _)]) = two_at_work(40);
    let poison = mine[1].row;
    for _ in 0..2 {
        crash(&mut kit, "a", worker, ExitClass::Crashed, &[poison.0]);
        worker = started(&kit.wait(3_000, &[("a", a), ("b", b)]))[0].1;
        let effects = kit.ready("a", worker);
        assert!(rows(&granted(&effects, "a")).contains(&poison.0));
    }
    // A trouble of b's own, which is not over.
    crash(&mut kit, "b", on_b, ExitClass::Signalled, &[]);
    let effects = crash(&mut kit, "a", worker, ExitClass::Crashed, &[poison.0]);
    assert_eq!(failed_rows(&effects)[0].0, poison);
    let of = |fault| kit.machine.incidents().filter(move |incident| incident.fault == fault);
    let [condemned] = of(Fault::PoisonRow).collect::<Vec<_>>()[..] else { panic!("one row is condemned") };
    assert_eq!(condemned.closed_unix_ms, Some(kit.now.unix_ms), "all that could be done is done");
    let of_b = of(Fault::WorkerExited).find(|incident| incident.node == Some("b".into())).unwrap();
    assert_eq!(of_b.closed_unix_ms, None);

    // Its error is not stored yet.
    let mut effects = kit.wait(10_000, &[("a", a), ("b", b)]);
    for (node, worker) in started(&effects) {
        effects.extend(kit.ready(&node, worker));
    }
    let handed_out = [rows(&granted(&effects, "a")), rows(&granted(&effects, "b"))].concat();
    assert!(!handed_out.is_empty() && !handed_out.contains(&poison.0), "{handed_out:?}");
}

#[test]
fn ends_from_outside_accuse_no_row() {
    for class in [
        ExitClass::Signalled,
        ExitClass::Killed,
        ExitClass::Leftover,
        ExitClass::LinkFault,
        ExitClass::Apart,
        ExitClass::SpawnFailed,
        ExitClass::CanaryFailed,
    ] {
        let mut kit = Kit::new();
        kit.connect("a");
        let effects = kit.tell(Event::JobAccepted(record(1, 3)));
        let worker = started(&effects)[0].1;
        kit.ready("a", worker);
        crash(&mut kit, "a", worker, class, &[0, 1, 2]);
        assert_eq!(kit.job(1).record.crashes, [], "{class:?}");
    }
    for class in [ExitClass::Crashed, ExitClass::GpuFault, ExitClass::OutOfMemory] {
        let mut kit = Kit::new();
        kit.connect("a");
        let effects = kit.tell(Event::JobAccepted(record(1, 3)));
        let worker = started(&effects)[0].1;
        kit.ready("a", worker);
        crash(&mut kit, "a", worker, class, &[0, 2]);
        let seen = kit.job(1).record.crashes.iter().map(|seen| (seen.row.0, seen.crashes));
        assert_eq!(seen.collect::<Vec<_>>(), [(0, 1), (2, 1)], "{class:?}");
    }
}

#[test]
fn gpu_faults_make_workers_gentler_and_the_third_in_an_hour_is_a_quarantine() {
    let mut kit = Kit::new();
    let (session, _) = kit.connect("a");
    let (other, _) = kit.connect("b");
    let both = [("a", session), ("b", other)];
    let effects = kit.tell(Event::JobAccepted(record(1, 100)));
    assert_eq!(settings(&effects)[0].prefill_step_tokens, 2_048);
    let mut worker = started(&effects)[0].1;
    for expected in [(4, 1_024), (2, 512)] {
        kit.ready("a", worker);
        crash(&mut kit, "a", worker, ExitClass::GpuFault, &[]);
        let effects = kit.wait(2_000, &both);
        let set = settings(&effects)[0];
        assert_eq!((set.max_batch_rows, set.prefill_step_tokens), expected);
        worker = started(&effects)[0].1;
    }
    let effects = crash(&mut kit, "a", worker, ExitClass::GpuFault, &[]);
    assert!(events(&effects).contains(&"node-quarantined"));
    let record: Option<NodeRecord> = effects.iter().rev().find_map(|effect| match effect {
        Effect::RecordNode(record) => Some(record.clone()),
        _ => None,
    });
    let record = record.unwrap();
    let quarantine = record.quarantine.clone().unwrap();
    assert_eq!(quarantine.until_unix_ms, kit.now.unix_ms + 3_600_000);
    let node = kit.machine.node(&"a".into()).unwrap();
    let why = node.unusable(kit.now).unwrap();
    assert!(
        why.starts_with("it is in quarantine for 60 more minutes: 3 GPU faults within 60 minutes"),
        "{why}"
    );
    assert_eq!(started(&kit.wait(60_000, &both)), [], "left alone");

    // The next controller knows; when the time is over, everything is forgiven.
    let mut next = Kit::new();
    next.now = kit.now;
    let incidents = kit.machine.incidents().cloned().collect::<Vec<_>>().into_iter().rev().collect();
    next.tell(Event::Remembered { models: vec![], incidents });
    next.tell(Event::Started {
        jobs: vec![replayed(kit.job(1).record.clone(), &[])],
        nodes: vec![record],
        repairs: vec![],
        remains: vec![],
    });
    let (session, effects) = next.connect("a");
    assert_eq!(started(&effects), []);
    next.wait(16_000, &[("a", session)]);
    next.now.unix_ms += 3_600_000;
    let effects = next.wait(100, &[("a", session)]);
    assert!(events(&effects).contains(&"quarantine-over"));
    assert_eq!(settings(&effects)[0].prefill_step_tokens, 2_048);
    assert!(
        next.machine.incidents().all(|i| i.fault != Fault::NodeQuarantined || i.closed_unix_ms.is_some())
    );

    // A person can end it, too.
    let effects = kit.tell(Event::Drain { node: "a".into(), drain: false });
    assert!(events(&effects).contains(&"quarantine-over"));
    assert_eq!(started(&effects).len(), 1);
}

/// Two nodes in quarantine, one of them with a trouble of another kind: the end of one quarantine is the end of nothing else.
#[test]
fn a_quarantine_that_is_lifted_ends_its_own_incident_only() {
    let quarantined = |node: &str| NodeRecord {
        id: node.into(),
        draining: false,
        last_seen_unix_ms: 1,
        boot_id: String::new(),
        gpu_faults_unix_ms: vec![],
        quarantine: Some(crate::model::Quarantine {
            until_unix_ms: 2_000_000,
            reason: "3 GPU faults within 60 minutes, the last: timed out".to_owned(),
        }),
        links: Vec::new(),
        restarts: Vec::new(),
    };
    let (mut kit, [(_, worker, _), _]) = two_at_work(40);
    kit.exit("a", worker, ExitClass::Signalled);
    let some = kit.machine.incidents().next().unwrap().clone();
    let incident = |id, fault, node: &str| crate::model::Incident {
        id,
        fault,
        node: Some(node.into()),
        job: None,
        ..some.clone()
    };
    let mut kit = Kit::new();
    let incidents = vec![
        incident(1, Fault::NodeQuarantined, "a"),
        incident(2, Fault::NodeQuarantined, "b"),
        incident(3, Fault::NeedsReboot, "a"),
    ];
    kit.tell(Event::Remembered { models: vec![], incidents });
    kit.tell(Event::Started {
        jobs: vec![],
        nodes: vec![quarantined("a"), quarantined("b")],
        repairs: vec![],
        remains: vec![],
    });
    let open = |kit: &Kit| {
        let open = kit.machine.incidents().filter(|incident| incident.closed_unix_ms.is_none());
        let mut open: Vec<u64> = open.map(|incident| incident.id).collect();
        open.sort_unstable();
        open
    };
    assert_eq!(open(&kit), [1, 2, 3]);
    kit.tell(Event::Drain { node: "a".into(), drain: false });
    assert_eq!(open(&kit), [2, 3]);
}

#[test]
fn old_gpu_faults_do_not_count() {
    let mut kit = Kit::new();
    let (session, _) = kit.connect("a");
    let effects = kit.tell(Event::JobAccepted(record(1, 100)));
    let mut worker = started(&effects)[0].1;
    for _ in 0..5 {
        kit.ready("a", worker);
        crash(&mut kit, "a", worker, ExitClass::GpuFault, &[]);
        kit.now.unix_ms += 31 * 60_000;
        let effects = kit.wait(9_000, &[("a", session)]);
        worker = started(&effects)[0].1;
        assert_eq!(settings(&effects)[0].max_batch_rows, 4, "only the last one is recent");
    }
}

#[test]
fn out_of_memory_means_fewer_rows_and_then_more_nodes() {
    let mut kit = Kit::new();
    kit.machine = Machine::new(policy_with_a_network());
    // 80 GB of weights; each of the nodes could just hold them.
    for (node, address) in [("a", "10.0.0.1"), ("b", "10.0.0.2")] {
        kit.found.insert(node.to_owned(), large_model());
        kit.machines.insert(node.to_owned(), machine(address, 90));
    }
    let (a, _) = kit.connect("a");
    let (b, _) = kit.connect("b");
    let both = [("a", a), ("b", b)];
    let mut accepted = record(1, 100);
    accepted.spec.max_batch_rows = 4;
    accepted.spec.context_tokens = 256;
    let mut effects = kit.tell(Event::JobAccepted(accepted));
    effects.extend(kit.wait(3_000, &both));
    assert_eq!(kit.job(1).plan.as_ref().unwrap().mode, Mode::Independent);
    let mut seen = Vec::new();
    for _ in 0..20 {
        let workers = started(&effects);
        seen.extend(settings(&effects).into_iter().map(|settings| settings.max_batch_rows));
        if kit.job(1).plan.as_ref().unwrap().mode == Mode::Pipeline && !workers.is_empty() {
            break;
        }
        effects.clear();
        for (node, worker) in workers {
            kit.ready(&node, worker);
            effects.extend(crash(&mut kit, &node, worker, ExitClass::OutOfMemory, &[]));
        }
        effects.extend(kit.wait(61_000, &both));
    }
    assert_eq!(kit.job(1).plan.as_ref().unwrap().mode, Mode::Pipeline, "{seen:?}");
    assert!(seen.starts_with(&[4, 4, 2, 2, 1, 1]), "{seen:?}");
}
