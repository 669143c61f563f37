//! Files that were lost or changed, by a disk or a person: what is repaired, and what is said about it.

use super::{
    helpers::{
        RESULTS, commit, create, done, lines, one, open, put_job, repaired, try_open, world_with_rows,
    },
    job_record,
};
use crate::{
    ledger::{
        Batch, Kv, Reply, Request,
        codec::{key, seal},
        sim::{Death, SimKv, World},
    },
    model::{Epoch, EventDraft, JobId, JobState, Severity},
};

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
        let Ok(Reply::Events(before)) = one(&mut core, Request::AppendEvents(vec![event.clone(); 3], 1))
        else {
            panic!("no events")
        };
        let replay =
            repaired(&world, |world| if is_gone { world.delete_store() } else { world.break_store() });
        assert_eq!(
            [replay.repairs.as_slice(), replay.remains.as_slice()].concat(),
            [
                if is_gone {
                    "the ledger was missing and was made again from the jobs' directories; checkpoints, events and \
                     what was known of nodes and models are lost"
                } else {
                    "the ledger could not be used (the simulated store is broken): it was set aside as \
                     /simulated/ledger.broken-1 and made again from the jobs' directories; checkpoints, events and \
                     what was known of nodes and models are lost"
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
    assert_eq!(replay.repairs, ["job j2 was not in the ledger: taken from jobs/j2"]);
    assert_eq!(
        replay.remains,
        ["150 answers of job j1 were in its files and not yet in the ledger: taken in",]
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
            format!(
                "{}\n",
                last.replace("_249\"", &format!("_{row}\"")).replace("row-249", &format!("row-{row}"))
            )
        };
        let (good, again, of_errors) = (line(250), line(5), line(251).replace(":200,", ":500,"));
        let (beyond, other_job) = (line(300), line(252).replace("_j1_", "_j2_"));
        let later = line(253);
        text += &format!(
            "{good}rubbish\n{again}{of_errors}\0\0\0\n{beyond}\n{other_job}{later}{{\"id\":\"batch_req_j1_254"
        );
        world.put(RESULTS, text.as_bytes()).unwrap();
    });
    assert_eq!(done(&replay), (0..251).chain([253]).collect::<Vec<_>>());
    assert_eq!(replay.repairs, ["7 lines in the files of job j1 were not answers it waited for: cut out"]);
    assert_eq!(
        replay.remains,
        [
            "2 answers of job j1 were in its files and not yet in the ledger: taken in",
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
        ["job j6 was not in the ledger and where it stood is lost: taken from jobs/j6, paused"]
    );
    assert_eq!(
        replay.remains,
        [
            "jobs/j5 was left by a submission that was never accepted: removed",
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
