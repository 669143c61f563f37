//! Records, checkpoints and events: bounds, refusals, and what follows what.

use super::{
    finished,
    helpers::{RESULTS, commit, create, done, one, open, put_job, repaired},
    job_record,
    model::SimCore,
};
use crate::{
    ledger::{
        EventFilter, JobCommitted, Reply, Request,
        codec::key,
        sim::{Death, World},
    },
    model::{Checkpoint, EventDraft, EventRecord, JobId, JobState, RowIx, Severity},
};

#[test]
fn requests_for_what_is_not_there_are_refused() {
    let world = World::new(1);
    let (mut core, _) = open(&world);
    create(&world, &mut core, 1, 10).unwrap();
    world.stage(".incoming-1", 3).unwrap();
    let again =
        one(&mut core, Request::CreateJob { staging: ".incoming-1".into(), record: job_record(1, 3) });
    assert_eq!(again.unwrap_err().to_string(), "there is a job j1 in the ledger already");
    let unknown = one(&mut core, Request::Commit(vec![finished(1, 0, 200, 1), finished(2, 0, 200, 1)]));
    assert_eq!(unknown.unwrap_err().to_string(), "there is no job j2 in the ledger");
    let unknown = one(&mut core, Request::Commit(vec![finished(1, 10, 200, 1)]));
    assert_eq!(unknown.unwrap_err().to_string(), "job j1 has 10 rows: there is no row 10");
    let unknown = one(&mut core, Request::PutCheckpoints(JobId(3), Vec::new()));
    assert_eq!(unknown.unwrap_err().to_string(), "there is no job j3 in the ledger");
    let unknown = one(&mut core, Request::PutJob(job_record(3, 3)));
    assert_eq!(unknown.unwrap_err().to_string(), "there is no job j3 in the ledger");
    let committed = commit(&mut core, [0, 0, 1]).unwrap();
    let results_bytes = world.read(RESULTS).unwrap().len() as u64;
    let expected = JobCommitted {
        job: JobId(1),
        results_bytes,
        errors_bytes: 0,
        duplicates: 1,
        rows_succeeded: 2,
        rows_failed: 0,
        rows_by_fallback: 0,
    };
    assert_eq!(committed.jobs, [expected]);
}

#[test]
fn rows_that_come_one_by_one_share_records() {
    let world = World::new(1);
    let (mut core, _) = open(&world);
    create(&world, &mut core, 1, 1_000).unwrap();
    (0..900).for_each(|row| drop(commit(&mut core, [row]).unwrap()));
    let records = world.copy_store().keys().filter(|key| key.starts_with(key::ROWS)).count();
    assert_eq!(records, 5, "200 rows a record");
    commit(&mut core, 900..1_000).unwrap();
    assert_eq!(done(&repaired(&world, |_| {})).len(), 1_000);
}

#[test]
fn checkpoints_follow_their_rows() {
    let world = World::new(1);
    let (mut core, _) = open(&world);
    create(&world, &mut core, 1, 10).unwrap();
    let checkpoint = |tokens: u32, logprobs: usize| Checkpoint {
        tokens: (0..tokens).collect(),
        logprobs_json: vec![b'0'; logprobs],
        by_fallback: false,
    };
    let put = |core: &mut SimCore, row, checkpoint| {
        one(core, Request::PutCheckpoints(JobId(1), vec![(RowIx(row), checkpoint)])).unwrap();
    };
    put(&mut core, 1, checkpoint(5_000, 0));
    put(&mut core, 1, checkpoint(5_100, 0));
    put(&mut core, 2, checkpoint(20, 9_000));
    put(&mut core, 2, checkpoint(10, 100));
    put(&mut core, 3, checkpoint(1, 0));
    put(&mut core, 3, checkpoint(2_000_000, 0));
    put(&mut core, 4, checkpoint(7, 70));
    put(&mut core, 99, checkpoint(7, 70));
    commit(&mut core, [4]).unwrap();
    put(&mut core, 4, checkpoint(8, 80));
    let replay = repaired(&world, |_| {});
    let kept: Vec<_> = replay.jobs[0].checkpoints.iter().map(|(row, c)| (row.0, c.clone())).collect();
    let too_large_is_not_kept = (3, checkpoint(1, 0));
    assert_eq!(kept, [(1, checkpoint(5_100, 0)), (2, checkpoint(10, 100)), too_large_is_not_kept]);
    let (mut core, _) = open(&world);
    put_job(&mut core, |job| job.state = JobState::Cancelled).unwrap();
    put(&mut core, 5, checkpoint(7, 70));
    core.close().unwrap();
    let left = world.copy_store().keys().filter(|key| key.starts_with(key::CHECKPOINTS)).count();
    assert_eq!(left, 0, "a job that is over needs none");
}

#[test]
fn events_are_bounded_and_filtered() {
    let world = World::new(1);
    let (mut core, _) = open(&world);
    let event = |node: &str, job: u64| EventDraft {
        severity: Severity::Warning,
        kind: "k".into(),
        node: (!node.is_empty()).then(|| node.into()),
        job: (job > 0).then_some(JobId(job)),
        message: format!("{node}{job}"),
    };
    let append = |core: &mut SimCore, events: &[EventDraft]| -> Vec<u64> {
        let Ok(Reply::Events(events)) = one(core, Request::AppendEvents(events.to_vec(), 5)) else {
            panic!()
        };
        events.iter().map(|event| event.seq).collect()
    };
    assert_eq!(append(&mut core, &[event("a", 1), event("b", 1)]), [1, 2]);
    assert_eq!(append(&mut core, &[event("a", 2), event("", 0), event("a", 0), event("b", 2)]), [3, 4, 5, 6]);
    let read = |core: &mut SimCore, filter: EventFilter| -> Vec<u64> {
        let Ok(Reply::Events(events)) = one(core, Request::ReadEvents(filter)) else { panic!() };
        events.iter().map(|event: &EventRecord| event.seq).collect()
    };
    let all = EventFilter::default();
    assert_eq!(read(&mut core, all.clone()), [2, 3, 4, 5, 6], "five are kept");
    assert_eq!(read(&mut core, EventFilter { node: Some("a".into()), ..all.clone() }), [3, 5]);
    assert_eq!(read(&mut core, EventFilter { job: Some(JobId(2)), ..all.clone() }), [3, 6]);
    assert_eq!(read(&mut core, EventFilter { tail: 2, ..all.clone() }), [5, 6]);
    assert_eq!(read(&mut core, EventFilter { after_seq: Some(4), ..all.clone() }), [5, 6]);
    core.close().unwrap();
    let (mut core, _) = open(&world);
    assert_eq!(append(&mut core, &[event("", 0)]), [7], "no gap after an orderly end");
    drop(core);
    world.restart(Death::Kill);
    let (mut core, _) = open(&world);
    assert!(append(&mut core, &[event("", 0)])[0] > 7, "and no number twice after a crash");
}
