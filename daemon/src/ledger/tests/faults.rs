//! Failing disks, failing stores, and people who touch files.

use nix::errno::Errno;
use proptest::prelude::*;

use super::{
    crash::{action, script},
    finished,
    helpers::{RESULTS, commit, create, done, one, open, put_job, repaired, world_with_rows},
    model::{Action, LIMITS, Model},
};
use crate::{
    ledger::{
        Reply, Request,
        sim::{Death, World},
    },
    model::{Checkpoint, JobId, JobState, RowIx},
};

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
    assert!(
        error.to_string().ends_with("KiB are free, of which 1000 bytes are kept in reserve; free some space")
    );
    assert_eq!(world.read(RESULTS).unwrap(), before);
    world.set_capacity(Some(used + 900));
    let checkpoint = Checkpoint { tokens: vec![1], logprobs_json: Vec::new(), by_fallback: false };
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
    let mut failed = 0;
    for step in 1.. {
        let world = World::new(step);
        let (mut core, _) = open(&world);
        world.fail_at(world.steps() + step, if step % 2 == 0 { Errno::ENOSPC } else { Errno::EIO });
        if create(&world, &mut core, 1, 3).is_ok() {
            break;
        }
        failed += 1;
        // The next request comes after whatever is left to clean up.
        create(&world, &mut core, 2, 1).unwrap();
        assert_eq!(world.list("jobs"), ["j2"], "step {step} failed");
        create(&world, &mut core, 1, 3).expect("the number is free again");
        let replay = repaired(&world, |_| {});
        assert_eq!(replay.jobs.len(), 2);
        assert_eq!(replay.repairs, Vec::<String>::new());
    }
    assert!(failed >= 15, "only {failed} steps failed");
}

#[test]
fn nothing_is_lost_whichever_step_fails() {
    let groups = script();
    for errno in [Errno::ENOSPC, Errno::EIO] {
        for step in 1.. {
            let world = World::new(step);
            let mut model = Model::new(&world);
            let (mut core, replay) = model.open().unwrap();
            model.check(&replay);
            let failing_step = world.steps() + step;
            world.fail_at(failing_step, errno);
            groups.iter().for_each(|group| model.run(&mut core, group, false));
            let has_failed = world.steps() >= failing_step;
            world.clear_faults();
            drop(core);
            world.restart(if step % 2 == 0 { Death::Kill } else { Death::PowerCut });
            let (mut core, replay) = model.open().unwrap();
            model.check(&replay);
            model.finish_everything(&mut core);
            core.close().unwrap();
            let (_, replay) = model.open().unwrap();
            model.check(&replay);
            assert_eq!(replay.repairs, Vec::<String>::new());
            if !has_failed {
                assert!(step > 70, "{step} steps");
                break;
            }
        }
    }
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
