//! Short ways to a simulated ledger in some state.

use super::{
    finished, job_record,
    model::{LIMITS, SimCore},
};
use crate::{
    ledger::{
        Committed, Core, Error, Replay, Reply, Request,
        sim::{Death, SimDisk, SimKv, World},
    },
    model::{JobRecord, RowIx},
};

pub(super) const RESULTS: &str = "jobs/j1/results.jsonl";

pub(super) fn open(world: &World) -> (SimCore, Replay) {
    try_open(world).unwrap()
}

pub(super) fn try_open(world: &World) -> Result<(SimCore, Replay), Error> {
    Core::open(SimDisk::new(world), SimKv::new(world), LIMITS, 1_700_000_000_000)
}

pub(super) fn one(core: &mut SimCore, request: Request) -> Result<Reply, Error> {
    core.run(vec![request], 1_700_000_000_000).remove(0)
}

pub(super) fn create(world: &World, core: &mut SimCore, job: u64, rows_total: u32) -> Result<Reply, Error> {
    world.stage(&format!(".incoming-{job}"), rows_total).unwrap();
    one(core, Request::CreateJob { staging: format!(".incoming-{job}"), record: job_record(job, rows_total) })
}

pub(super) fn commit(core: &mut SimCore, rows: impl IntoIterator<Item = u32>) -> Result<Committed, Error> {
    let rows = rows.into_iter().map(|row| finished(1, row, 200, row.into())).collect();
    match one(core, Request::Commit(rows))? {
        Reply::Committed(committed) => Ok(committed),
        other => panic!("{other:?}"),
    }
}

pub(super) fn put_job(core: &mut SimCore, change: impl FnOnce(&mut JobRecord)) -> Result<Reply, Error> {
    let mut record = job_record(1, 0);
    change(&mut record);
    one(core, Request::PutJob(record))
}

/// A world with job 1 of 300 rows, of which 0..250 are done.
pub(super) fn world_with_rows() -> World {
    let world = World::new(1);
    let (mut core, _) = open(&world);
    create(&world, &mut core, 1, 300).unwrap();
    commit(&mut core, 0..250).unwrap();
    core.close().unwrap();
    world
}

pub(super) fn done(replay: &Replay) -> Vec<u32> {
    let job = &replay.jobs[0];
    (0..job.record.rows_total).filter(|row| job.done.contains(RowIx(*row))).collect()
}

pub(super) fn lines(world: &World, path: &str) -> usize {
    let bytes = world.read(path).unwrap();
    assert!(bytes.is_empty() || bytes.ends_with(b"\n"));
    bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count()
}

/// The world after `damage`, opened; a second opening finds nothing more to do.
pub(super) fn repaired(world: &World, damage: impl FnOnce(&World)) -> Replay {
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
