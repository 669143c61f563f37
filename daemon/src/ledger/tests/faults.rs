//! Failing disks, failing stores, and people who touch files.

use nix::errno::Errno;
use proptest::prelude::*;

use super::{
    crash::action,
    finished, job_record,
    model::{Action, LIMITS, Model, SimCore},
};
use crate::{
    ledger::{
        Batch, Committed, Core, Error, EventFilter, JobCommitted, Kv, Replay, Reply, Request,
        codec::{key, seal},
        sim::{Death, SimDisk, SimKv, World},
    },
    model::{Checkpoint, Epoch, EventDraft, EventRecord, JobId, JobRecord, JobState, RowIx, Severity},
};

const RESULTS: &str = "jobs/j1/results.jsonl";

fn open(world: &World) -> (SimCore, Replay) {
    try_open(world).unwrap()
}

fn try_open(world: &World) -> Result<(SimCore, Replay), Error> {
    Core::open(SimDisk::new(world), SimKv::new(world), LIMITS, 1_700_000_000_000)
}

fn one(core: &mut SimCore, request: Request) -> Result<Reply, Error> {
    core.run(vec![request], 1_700_000_000_000).remove(0)
}

fn create(world: &World, core: &mut SimCore, job: u64, rows_total: u32) -> Result<Reply, Error> {
    world.stage(&format!(".incoming-{job}"), rows_total).unwrap();
    one(core, Request::CreateJob { staging: format!(".incoming-{job}"), record: job_record(job, rows_total) })
}

fn commit(core: &mut SimCore, rows: impl IntoIterator<Item = u32>) -> Result<Committed, Error> {
    let rows = rows.into_iter().map(|row| finished(1, row, 200, row.into())).collect();
    match one(core, Request::Commit(rows))? {
        Reply::Committed(committed) => Ok(committed),
        other => panic!("{other:?}"),
    }
}

fn put_job(core: &mut SimCore, change: impl FnOnce(&mut JobRecord)) -> Result<Reply, Error> {
    let mut record = job_record(1, 0);
    change(&mut record);
    one(core, Request::PutJob(record))
}

/// A world with job 1 of 300 rows, of which 0..250 are done.
fn world_with_rows() -> World {
    let world = World::new(1);
    let (mut core, _) = open(&world);
    create(&world, &mut core, 1, 300).unwrap();
    commit(&mut core, 0..250).unwrap();
    core.close().unwrap();
    world
}

fn done(replay: &Replay) -> Vec<u32> {
    let job = &replay.jobs[0];
    (0..job.record.rows_total).filter(|row| job.done.contains(RowIx(*row))).collect()
}

fn lines(world: &World, path: &str) -> usize {
    let bytes = world.read(path).unwrap();
    assert!(bytes.is_empty() || bytes.ends_with(b"\n"));
    bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count()
}

/// The world after `damage`, opened; a second opening finds nothing more to do.
fn repaired(world: &World, damage: impl FnOnce(&World)) -> Replay {
    world.restart(Death::Kill);
    damage(world);
    let (core, first) = open(world);
    drop(core);
    world.restart(Death::PowerCut);
    let (_, second) = open(world);
    assert_eq!(second.repairs, Vec::<String>::new());
    assert_eq!(first.jobs, second.jobs);
    first
}

#[test]
fn a_full_disk_fails_rows_and_nothing_else_and_work_goes_on_when_there_is_room() {
    let world = World::new(1);
    let (mut core, _) = open(&world);
    create(&world, &mut core, 1, 100).unwrap();
    commit(&mut core, 0..10).unwrap();
    let before = world.read(RESULTS).unwrap();
    let used: u64 = ["input.jsonl", "input.idx", "results.jsonl", "spec.json", "state.json"]
        .iter()
        .map(|file| world.read(&format!("jobs/j1/{file}")).unwrap().len() as u64)
        .sum();
    // Less than the reserve is left, and more than a quarter of it.
    world.set_capacity(Some(used + 2_000));
    let free = 2_000;
    assert!(free > LIMITS.disk_reserve_bytes);
    let error = commit(&mut core, 10..30).unwrap_err();
    assert!(error.is_disk_full(), "{error}");
    assert!(error.to_string().starts_with("/simulated/jobs cannot take more: "), "{error}");
    assert!(error.to_string().ends_with("KiB are free, of which 1000 bytes are kept in reserve; free some space"));
    assert_eq!(world.read(RESULTS).unwrap(), before);
    world.set_capacity(Some(used + 900));
    let checkpoint = Checkpoint { tokens: vec![1], logprobs_json: Vec::new() };
    let refused = one(&mut core, Request::PutCheckpoints(JobId(1), vec![(RowIx(50), checkpoint)]));
    assert!(refused.unwrap_err().is_disk_full());
    assert!(create(&world, &mut core, 2, 1).unwrap_err().is_disk_full());
    assert_eq!(world.list("jobs"), ["j1"]);
    world.set_capacity(Some(used + 1_500));
    put_job(&mut core, |job| job.state = JobState::Paused).expect("the pause itself fits into the reserve");
    world.set_capacity(None);
    let committed = commit(&mut core, 5..30).unwrap();
    assert_eq!(committed.jobs[0].duplicates, 5);
    assert_eq!(committed.jobs[0].results_bytes, world.read(RESULTS).unwrap().len() as u64);
    let replay = repaired(&world, |_| {});
    assert_eq!(done(&replay), (0..30).collect::<Vec<_>>());
    assert_eq!(replay.jobs[0].record.state, JobState::Paused);
    assert_eq!(replay.repairs, Vec::<String>::new());
}

#[test]
fn a_failed_write_is_cut_off_and_forgotten() {
    for errno in [Errno::ENOSPC, Errno::EDQUOT, Errno::EROFS, Errno::EIO] {
        let world = World::new(1);
        let (mut core, _) = open(&world);
        create(&world, &mut core, 1, 100).unwrap();
        commit(&mut core, 0..10).unwrap();
        let before = world.read(RESULTS).unwrap();
        world.fail_next_write(errno);
        let error = commit(&mut core, 10..30).unwrap_err();
        assert_eq!(error.is_disk_full(), errno != Errno::EIO, "{error}");
        assert_eq!(world.read(RESULTS).unwrap(), before);
        assert_eq!(commit(&mut core, 9..20).unwrap().jobs[0].duplicates, 1);
        let replay = repaired(&world, |_| {});
        assert_eq!(done(&replay), (0..20).collect::<Vec<_>>());
        assert_eq!(replay.repairs, Vec::<String>::new());
    }
}

#[test]
fn a_failure_of_one_job_does_not_touch_another() {
    let world = World::new(1);
    let (mut core, _) = open(&world);
    create(&world, &mut core, 1, 10).unwrap();
    create(&world, &mut core, 2, 10).unwrap();
    world.fail_next_write(Errno::ENOSPC);
    let rows = |job| Request::Commit(vec![finished(job, 0, 200, 1), finished(job, 1, 500, 2)]);
    let replies = core.run(vec![rows(1), rows(2)], 0);
    assert!(replies[0].as_ref().unwrap_err().is_disk_full());
    assert!(matches!(&replies[1], Ok(Reply::Committed(committed)) if committed.jobs[0].job == JobId(2)));
    let replay = repaired(&world, |_| {});
    assert_eq!(replay.jobs.iter().map(|job| job.done.len()).collect::<Vec<_>>(), [0, 2]);
}

#[test]
fn a_store_that_fails_is_opened_again() {
    let world = World::new(1);
    let (mut core, _) = open(&world);
    create(&world, &mut core, 1, 100).unwrap();
    commit(&mut core, 0..10).unwrap();
    world.fail_next_store_write();
    let error = commit(&mut core, 10..20).unwrap_err();
    assert_eq!(error.to_string(), "cannot write to the ledger in /simulated/ledger");
    // The lines were synced before the store failed: reading again takes them in.
    let committed = commit(&mut core, 10..30).unwrap();
    assert_eq!(committed.jobs[0].duplicates, 10);
    let replay = repaired(&world, |_| {});
    assert_eq!(done(&replay), (0..30).collect::<Vec<_>>());
}

#[test]
fn a_creation_that_fails_leaves_nothing() {
    // A creation writes spec.json, results.jsonl, errors.jsonl, the record, state.json.
    for failing_write in 0..5 {
        let world = World::new(1);
        let (mut core, _) = open(&world);
        world.stage(".incoming-1", 3).unwrap();
        let record = job_record(1, 3);
        let request = || Request::CreateJob { staging: ".incoming-1".into(), record: record.clone() };
        match failing_write {
            0 => world.fail_next_write(Errno::ENOSPC),
            1 => world.fail_next_store_write(),
            2 => world.set_capacity(Some(world.read("jobs/.incoming-1/input.jsonl").unwrap().len() as u64)),
            3 => world.remove("jobs/.incoming-1"),
            // Room for spec.json and not for state.json.
            _ => {
                let staged: usize = ["input.jsonl", "input.idx"]
                    .iter()
                    .map(|file| world.read(&format!("jobs/.incoming-1/{file}")).unwrap().len())
                    .sum();
                world.set_capacity(Some(staged as u64 + LIMITS.disk_reserve_bytes));
            }
        }
        let outcome = one(&mut core, request());
        world.set_capacity(None);
        if outcome.is_ok() {
            assert_eq!(failing_write, 4, "only the last has room");
            continue;
        }
        // The next request comes after whatever is left to clean up.
        create(&world, &mut core, 2, 1).unwrap();
        assert_eq!(world.list("jobs"), ["j2"], "failure {failing_write}");
        create(&world, &mut core, 1, 3).expect("the number is free again");
        let replay = repaired(&world, |_| {});
        assert_eq!(replay.jobs.len(), 2);
        assert_eq!(replay.repairs, Vec::<String>::new());
    }
}

#[test]
fn a_store_that_is_broken_or_gone_is_made_again_from_the_directories() {
    for is_gone in [false, true] {
        let world = world_with_rows();
        let (mut core, _) = open(&world);
        put_job(&mut core, |job| (job.state, job.epoch) = (JobState::Paused, Epoch(7))).unwrap();
        create(&world, &mut core, 2, 5).unwrap();
        let event = EventDraft {
            severity: Severity::Info,
            kind: "k".into(),
            node: None,
            job: None,
            message: "m".into(),
        };
        let Ok(Reply::Events(before)) = one(&mut core, Request::AppendEvents(vec![event.clone(); 3], 1)) else {
            panic!("no events")
        };
        let replay = repaired(&world, |world| if is_gone { world.delete_store() } else { world.break_store() });
        assert_eq!(
            replay.repairs,
            [
                if is_gone {
                    "the ledger was missing and was made again from the jobs' directories; checkpoints, events and \
                     what was known of nodes are lost"
                } else {
                    "the ledger could not be used (the simulated store is broken): it was set aside as \
                     /simulated/ledger.broken-1 and made again from the jobs' directories; checkpoints, events and \
                     what was known of nodes are lost"
                },
                "job j1 was not in the ledger: taken from jobs/j1",
                "job j2 was not in the ledger: taken from jobs/j2",
                "250 answers of job j1 were in its files and not yet in the ledger: taken in",
            ]
        );
        assert_eq!(world.stores_set_aside(), u32::from(!is_gone));
        assert_eq!(done(&replay), (0..250).collect::<Vec<_>>());
        assert_eq!(replay.jobs[0].record.state, JobState::Paused);
        assert_eq!(replay.jobs[0].record.epoch, Epoch(7));
        assert_eq!((replay.jobs[0].rows_succeeded, replay.jobs[0].prompt_tokens), (250, 250 * 251 / 2));
        assert_eq!(replay.jobs[1].record, job_record(2, 5));
        assert_eq!(replay.next_job, JobId(3));
        let (mut core, _) = open(&world);
        let Ok(Reply::Events(after)) = one(&mut core, Request::AppendEvents(vec![event], 1)) else {
            panic!("no events")
        };
        assert!(after[0].seq > before[2].seq);
    }
}

#[test]
fn a_store_that_lost_its_end_gets_it_back() {
    let world = World::new(1);
    let (mut core, _) = open(&world);
    create(&world, &mut core, 1, 300).unwrap();
    commit(&mut core, 0..100).unwrap();
    let early = world.copy_store();
    commit(&mut core, 100..250).unwrap();
    put_job(&mut core, |job| (job.state, job.epoch) = (JobState::Paused, Epoch(7))).unwrap();
    create(&world, &mut core, 2, 5).unwrap();
    let replay = repaired(&world, |world| world.put_store(early));
    assert_eq!(
        replay.repairs,
        [
            "job j2 was not in the ledger: taken from jobs/j2",
            "150 answers of job j1 were in its files and not yet in the ledger: taken in",
        ]
    );
    assert_eq!(done(&replay), (0..250).collect::<Vec<_>>());
    assert_eq!(replay.jobs[0].record.epoch, Epoch(7));
}

#[test]
fn answers_that_are_lost_or_changed_are_generated_again_and_the_others_kept() {
    // Cut in the middle of a line: the line and those after it are gone.
    let world = world_with_rows();
    let bytes = world.read(RESULTS).unwrap();
    let cut = bytes.len() - 700;
    let kept = bytes[..cut].iter().filter(|byte| **byte == b'\n').count() as u32;
    let replay = repaired(&world, |world| world.put(RESULTS, &bytes[..cut]).unwrap());
    assert_eq!(done(&replay), (0..kept).collect::<Vec<_>>());
    assert_eq!(
        replay.repairs[0],
        format!(
            "{} answers of job j1 are no longer in its files as they were written: their rows are generated again",
            250 - kept
        )
    );
    assert_eq!(lines(&world, RESULTS), kept as usize);

    // A letter changed in the newest lines and one far before: still JSON, and not what was acknowledged.
    let world = world_with_rows();
    let replay = repaired(&world, |world| {
        let text = String::from_utf8(bytes.clone()).unwrap();
        let text = text.replace("\"mark\":249,", "\"mark\":248,").replace("\"mark\":17,", "\"mark\":71,");
        world.put(RESULTS, text.as_bytes()).unwrap();
    });
    assert_eq!(done(&replay), (0..249).filter(|row| *row != 17).collect::<Vec<_>>());
    assert_eq!(
        replay.repairs,
        [
            "2 answers of job j1 are no longer in its files as they were written: their rows are generated again",
            "2 lines in the files of job j1 were not answers it waited for: cut out",
        ]
    );

    // The file is gone.
    let world = world_with_rows();
    let replay = repaired(&world, |world| world.remove(RESULTS));
    assert_eq!(done(&replay), [] as [u32; 0]);
    let (mut core, _) = open(&world);
    commit(&mut core, 0..300).unwrap();
    assert_eq!(lines(&world, RESULTS), 300);
}

#[test]
fn what_is_no_answer_is_cut_out_and_answers_around_it_are_kept() {
    let world = world_with_rows();
    let replay = repaired(&world, |world| {
        let mut text = String::from_utf8(world.read(RESULTS).unwrap()).unwrap();
        let line = |row: u32| {
            let last = text.lines().last().unwrap();
            format!("{}\n", last.replace("_249\"", &format!("_{row}\"")).replace("row-249", &format!("row-{row}")))
        };
        let (good, again, of_errors) = (line(250), line(5), line(251).replace(":200,", ":500,"));
        let (beyond, other_job) = (line(300), line(252).replace("_j1_", "_j2_"));
        let later = line(253);
        text += &format!("{good}rubbish\n{again}{of_errors}\0\0\0\n{beyond}\n{other_job}{later}{{\"id\":\"batch_req_j1_254");
        world.put(RESULTS, text.as_bytes()).unwrap();
    });
    assert_eq!(done(&replay), (0..251).chain([253]).collect::<Vec<_>>());
    assert_eq!(
        replay.repairs,
        [
            "2 answers of job j1 were in its files and not yet in the ledger: taken in",
            "7 lines in the files of job j1 were not answers it waited for: cut out",
            "an unfinished line of 23 bytes in the files of job j1 was cut off",
        ]
    );
    assert_eq!(lines(&world, RESULTS), 252);
}

#[test]
fn files_of_a_finished_job_may_be_tidied_away() {
    for remove_all in [false, true] {
        let world = world_with_rows();
        let (mut core, _) = open(&world);
        commit(&mut core, 250..300).unwrap();
        put_job(&mut core, |job| job.state = JobState::Completed).unwrap();
        let replay = repaired(&world, |world| world.remove(if remove_all { "jobs/j1" } else { RESULTS }));
        assert_eq!(replay.repairs, Vec::<String>::new());
        assert_eq!(replay.jobs[0].record.state, JobState::Completed);
        assert_eq!(replay.jobs[0].done.len(), 300);
    }
}

#[test]
fn a_job_whose_directory_is_gone_fails_with_the_reason() {
    let world = world_with_rows();
    let replay = repaired(&world, |world| world.remove("jobs/j1"));
    assert_eq!(replay.repairs[0], "jobs/j1 is gone: job j1 failed");
    assert_eq!(replay.jobs[0].record.state, JobState::Failed);
    assert_eq!(
        replay.jobs[0].record.detail,
        "its directory jobs/j1 is gone, and its rows with it; submit it again"
    );
}

#[test]
fn directories_without_a_record_are_judged_by_what_is_in_them() {
    let world = world_with_rows();
    let replay = repaired(&world, |world| {
        // Never accepted: no state.json, no results.
        world.stage("j5", 3).unwrap();
        // Results, and where it stood is lost.
        let spec = String::from_utf8(world.read("jobs/j1/spec.json").unwrap()).unwrap();
        world.stage("j6", 300).unwrap();
        world.put("jobs/j6/spec.json", spec.replace("\"id\": 1,", "\"id\": 6,").as_bytes()).unwrap();
        let results = String::from_utf8(world.read(RESULTS).unwrap()).unwrap();
        world.put("jobs/j6/results.jsonl", results.replace("_j1_", "_j6_").as_bytes()).unwrap();
        world.put("jobs/j6/state.json", b"rubbish").unwrap();
        // Results and nothing to go by.
        world.stage("j7", 3).unwrap();
        world.put("jobs/j7/results.jsonl", results.as_bytes()).unwrap();
        // A submission that was coming in.
        world.stage(".incoming-9", 3).unwrap();
        // Not ours.
        world.stage("notes", 1).unwrap();
        world.remove("jobs/j7");
    });
    assert_eq!(
        replay.repairs,
        [
            "jobs/j5 was left by a submission that was never accepted: removed",
            "job j6 was not in the ledger and where it stood is lost: taken from jobs/j6, paused",
            "250 answers of job j6 were in its files and not yet in the ledger: taken in",
        ]
    );
    let job = &replay.jobs[1];
    assert_eq!((job.record.id, job.record.state, job.done.len()), (JobId(6), JobState::Paused, 250));
    assert_eq!(job.record.epoch, Epoch(1_700_000_000), "above any launch number given out before");
    assert_eq!(world.list("jobs"), ["j1", "j6", "notes"]);
    assert_eq!(replay.next_job, JobId(7));
}

#[test]
fn a_directory_that_says_nothing_is_left_alone() {
    let world = world_with_rows();
    world.restart(Death::Kill);
    world.stage("j7", 3).unwrap();
    world.put("jobs/j7/results.jsonl", b"something").unwrap();
    let (_, replay) = open(&world);
    assert_eq!(
        replay.repairs,
        [
            "jobs/j7 is not in the ledger and has no readable spec.json or state.json: left as it is; results in it \
             can still be read"
        ]
    );
    assert_eq!(world.read("jobs/j7/results.jsonl").unwrap(), b"something");
    assert_eq!((replay.jobs.len(), replay.next_job), (1, JobId(8)));
}

#[test]
fn a_damaged_index_is_made_again() {
    let world = world_with_rows();
    let index = world.read("jobs/j1/input.idx").unwrap();
    let replay = repaired(&world, |world| world.put("jobs/j1/input.idx", &index[..100]).unwrap());
    assert_eq!(replay.repairs, ["jobs/j1/input.idx was damaged: made again from the input"]);
    assert_eq!(world.read("jobs/j1/input.idx").unwrap(), index);
}

#[test]
fn somebody_changing_the_results_of_a_running_job_is_told_and_survived() {
    let world = world_with_rows();
    let (mut core, _) = open(&world);
    let bytes = world.read(RESULTS).unwrap();
    let keep = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(99).unwrap().0 + 1;
    world.put(RESULTS, &bytes[..keep]).unwrap();
    let error = commit(&mut core, 250..260).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "/simulated/jobs/j1/results.jsonl is damaged: it has {keep} bytes where the ledger left {}; leave the \
             files of a running job alone",
            bytes.len()
        )
    );
    // Rows 100.. are not there any more: they may be answered again.
    assert_eq!(commit(&mut core, 90..260).unwrap().jobs[0].duplicates, 10);
    let replay = repaired(&world, |_| {});
    assert_eq!(done(&replay), (0..260).collect::<Vec<_>>());
}

#[test]
fn a_ledger_of_a_newer_version_is_refused() {
    let world = world_with_rows();
    let mut kv = SimKv::new(&world);
    kv.open().unwrap();
    let mut batch = Batch::default();
    batch.put(key::FORMAT.to_vec(), seal(key::FORMAT, &2_u32.to_le_bytes()));
    kv.apply(batch).unwrap();
    kv.close();
    let error = try_open(&world).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the ledger in /simulated/ledger has format 2 and this clusterd knows formats up to 1: start the newer \
         version again, or give this one another state directory"
    );
    assert_eq!(world.stores_set_aside(), 0);
}

#[test]
fn damaged_values_cost_no_row() {
    // Every value in turn is damaged or lost.
    let copy = world_with_rows().copy_store();
    for key in copy.keys() {
        for remove in [false, true] {
            let world = world_with_rows();
            let mut damaged = copy.clone();
            match damaged.get_mut(key) {
                Some(value) if !remove => value[7] ^= 1,
                _ => drop(damaged.remove(key)),
            }
            let replay = repaired(&world, |world| world.put_store(damaged));
            assert_eq!(done(&replay), (0..250).collect::<Vec<_>>(), "{key:?}");
            assert_eq!(replay.jobs[0].record, job_record(1, 300));
            assert_eq!(lines(&world, RESULTS), 250);
        }
    }
}

#[test]
fn requests_for_what_is_not_there_are_refused() {
    let world = World::new(1);
    let (mut core, _) = open(&world);
    create(&world, &mut core, 1, 10).unwrap();
    world.stage(".incoming-1", 3).unwrap();
    let again = one(&mut core, Request::CreateJob { staging: ".incoming-1".into(), record: job_record(1, 3) });
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
    let expected = JobCommitted { job: JobId(1), results_bytes, errors_bytes: 0, duplicates: 1 };
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
        let Ok(Reply::Events(events)) = one(core, Request::AppendEvents(events.to_vec(), 5)) else { panic!() };
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

#[derive(Clone, Debug)]
enum Fault {
    Write(Errno),
    Store,
    Full,
    Room,
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        Just(Fault::Write(Errno::ENOSPC)),
        Just(Fault::Write(Errno::EIO)),
        Just(Fault::Store),
        Just(Fault::Full),
        Just(Fault::Room),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_in_nights_full_of_faults(
        seed in any::<u64>(),
        groups in prop::collection::vec((prop::option::weighted(0.4, fault()), prop::collection::vec(action(), 1..5)), 1..30),
        power_cut in any::<bool>(),
    ) {
        let world = World::new(seed);
        let mut model = Model::new(&world);
        let (mut core, replay) = model.open().unwrap();
        model.check(&replay);
        model.run(&mut core, &[Action::CreateJob { rows_total: 30 }], true);
        for (fault, group) in groups {
            match fault {
                None => {}
                Some(Fault::Write(errno)) => world.fail_next_write(errno),
                Some(Fault::Store) => world.fail_next_store_write(),
                Some(Fault::Full) => world.set_capacity(Some(5_000)),
                Some(Fault::Room) => world.set_capacity(None),
            }
            model.run(&mut core, &group, false);
        }
        world.clear_faults();
        world.restart(if power_cut { Death::PowerCut } else { Death::Kill });
        drop(core);
        let (mut core, replay) = model.open().unwrap();
        model.check(&replay);
        model.finish_everything(&mut core);
        core.close().unwrap();
        let (_, replay) = model.open().unwrap();
        model.check(&replay);
        prop_assert_eq!(replay.repairs, Vec::<String>::new());
    }
}
