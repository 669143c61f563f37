//! The promises, and what a night knows to hold them against.

use std::collections::{BTreeMap, BTreeSet};

use nightshift_daemon::{
    ledger::sim::World,
    model::{JobId, NodeId, RestartCause, RowIx, WorkerKey},
    recovery::Policy,
};

use super::worlds::{HOUR_MS, MINUTE_MS};

/// Starts of workers on a node within an hour, at most: with the pause at its cap (a minute) sixty, as many again for searches
/// of a row that ends its workers and for jobs that follow one another, and a few for changes of plan.
const MOST_STARTS_PER_HOUR: usize = 160;

/// What is known to be on the ledger's disk, because it said so.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Rows with a durable answer or error.
    pub(crate) durable: BTreeSet<(JobId, RowIx)>,
    /// The newest epoch of each job on record.
    pub(crate) epochs: BTreeMap<JobId, u64>,
    /// Starts of workers, by node.
    starts: BTreeMap<NodeId, Vec<u64>>,
    /// Restarts of machines: which, for what, and when by the wall clock.
    restarts: Vec<(NodeId, RestartCause, u64)>,
}

/// From the question for a restart to the restart, at most, by a clock that is set meanwhile: it counts from the question.
const ASKED_BEFORE_MS: u64 = 10 * MINUTE_MS;

impl Known {
    pub(crate) fn note_restart(&mut self, node: &NodeId, cause: RestartCause, unix_ms: u64) {
        self.restarts.retain(|(.., at)| at + 24 * HOUR_MS - ASKED_BEFORE_MS > unix_ms);
        let again = self.restarts.iter().any(|(of, before, _)| of == node && *before == cause);
        assert!(!again, "{node} was restarted twice within a day for {}", cause.words());
        self.restarts.push((node.clone(), cause, unix_ms));
        let most = Policy::default().reboots_per_day as usize;
        assert!(self.restarts.len() <= most, "{} machines were restarted within a day", self.restarts.len());
    }

    pub(crate) fn note_start(&mut self, node: &NodeId, worker: WorkerKey, now_ms: u64) {
        let recorded = self.epochs.get(&worker.job).copied().unwrap_or(0);
        assert!(
            worker.epoch.0 <= recorded,
            "launch {} of {} was not on record first",
            worker.epoch,
            worker.job
        );
        let starts = self.starts.entry(node.clone()).or_default();
        starts.retain(|at| at + HOUR_MS > now_ms);
        starts.push(now_ms);
        assert!(starts.len() <= MOST_STARTS_PER_HOUR, "{} starts on {node} within an hour", starts.len());
    }
}

/// The numbers of the rows in a file of results or errors; every line must be one of ours.
pub(crate) fn rows_of(world: &World, job: JobId, file: &str) -> Vec<u32> {
    let bytes = world.read(&format!("jobs/{job}/{file}")).unwrap_or_default();
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let value: serde_json::Value = serde_json::from_slice(line)
                .unwrap_or_else(|_| panic!("{job}/{file}: {:?}", String::from_utf8_lossy(line)));
            let id = value["custom_id"].as_str().expect("a custom_id").to_owned();
            id.strip_prefix("row-").and_then(|number| number.parse().ok()).expect("a row of ours")
        })
        .collect()
}

/// Each row once, in one of the two files.
pub(crate) fn assert_each_once(world: &World, job: JobId, rows_total: u32) {
    let mut rows = rows_of(world, job, "results.jsonl");
    rows.extend(rows_of(world, job, "errors.jsonl"));
    let count = rows.len();
    rows.sort_unstable();
    rows.dedup();
    assert_eq!(count, rows.len(), "{job} has a row twice in its files");
    assert_eq!(rows, (0..rows_total).collect::<Vec<u32>>(), "{job} misses rows in its files");
}
