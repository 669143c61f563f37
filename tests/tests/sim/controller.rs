//! The simulated `clusterd`: the real machine, the real ledger on a simulated disk, and between them what the real driver
//! does, in its order, without its threads.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use nightshift_daemon::{
    ledger::{
        Core, Error, Limits, Replay, Reply, Request,
        sim::{SimDisk, SimKv, World},
    },
    model::{FinishedRow, Incident, JobId, JobRecord, NodeId, RowIx},
    recovery::{CommittedRow, Event, JobTotals, Machine, Now, ResultHead},
};

use super::worlds::{self, Plan};

/// Free space that the ledger leaves alone.
const RESERVE_BYTES: u64 = 64 << 10;

/// What waits for the ledger, as in the writer's queue.
#[derive(Debug)]
pub(crate) enum Waiting {
    Commit { node: NodeId, heads: Vec<ResultHead> },
    Failures { job: JobId, rows: Vec<(RowIx, String)> },
    Checkpoints { job: JobId, rows: Vec<RowIx> },
}

/// A running controller.
pub(crate) struct Controller {
    pub(crate) machine: Machine,
    core: Core<SimDisk, SimKv>,
    pub(crate) waiting: VecDeque<Waiting>,
    /// Jobs whose newest record is owed.
    pub(crate) unrecorded: BTreeSet<JobId>,
    /// Nodes whose newest record was not written.
    pub(crate) unrecorded_nodes: BTreeSet<NodeId>,
    pub(crate) owed_incidents: BTreeMap<u64, Incident>,
    /// Its clock: it begins at 0 with each start.
    pub(crate) started_ms: u64,
}

impl Controller {
    /// Opens the ledger; `None` when the machine crashes over it again.
    pub(crate) fn start(world: &World, plan: &Plan, now_ms: u64, unix_ms: u64) -> Option<(Self, Replay)> {
        let limits = Limits { disk_reserve_bytes: RESERVE_BYTES, max_events: 100 };
        let opened = Core::open(SimDisk::new(world), SimKv::new(world), limits, unix_ms);
        let (core, replay) = match opened {
            Ok(opened) => opened,
            Err(_) if world.has_crashed() => return None,
            // A disk without room: whatever keeps it running starts it again.
            Err(_) => return None,
        };
        let controller = Self {
            machine: Machine::new(worlds::policy(plan)),
            core,
            waiting: VecDeque::new(),
            unrecorded: BTreeSet::new(),
            unrecorded_nodes: BTreeSet::new(),
            owed_incidents: BTreeMap::new(),
            started_ms: now_ms,
        };
        Some((controller, replay))
    }

    pub(crate) fn now(&self, now_ms: u64, unix_ms: u64) -> Now {
        Now { mono_ms: now_ms - self.started_ms, unix_ms }
    }

    pub(crate) fn ask(&mut self, request: Request, unix_ms: u64) -> Result<Reply, Error> {
        self.core.run(vec![request], unix_ms).remove(0)
    }

    pub(crate) fn create_job(
        &mut self,
        world: &World,
        record: &JobRecord,
        unix_ms: u64,
    ) -> Result<(), Error> {
        let staging = format!(".incoming-{}", record.id.0);
        // A submission that was refused is tried again.
        let _ = world.stage(&staging, record.rows_total);
        self.ask(Request::CreateJob { staging, record: record.clone() }, unix_ms).map(drop)
    }

    /// Makes everything applied durable, as the writer does within a second.
    pub(crate) fn flush(&mut self) {
        if self.core.is_dirty() {
            // What is lost by a failure is not acknowledged to anybody.
            let _ = self.core.flush();
        }
    }

    /// All that waits for the ledger, as one group; what the machine is to be told of it.
    pub(crate) fn run_waiting(&mut self, unix_ms: u64, twice: bool) -> Vec<Outcome> {
        let waiting: Vec<Waiting> = std::mem::take(&mut self.waiting).into();
        if waiting.is_empty() {
            return Vec::new();
        }
        let mut requests = Vec::new();
        for item in &waiting {
            let request = self.request(item);
            if twice && matches!(item, Waiting::Commit { .. }) {
                requests.push(self.request(item));
            }
            requests.push(request);
        }
        let mut replies = self.core.run(requests, unix_ms).into_iter();
        let mut outcomes = Vec::new();
        for item in waiting {
            let mut reply = replies.next().expect("a reply for each");
            if twice && matches!(item, Waiting::Commit { .. }) {
                reply = replies.next().expect("a reply for each");
            }
            match item {
                Waiting::Commit { node, heads } => {
                    let rows = heads.iter().map(committed_row).collect();
                    outcomes.push(Outcome::Commit { node, rows, heads, reply: told(reply) });
                }
                Waiting::Failures { job, rows } => {
                    let rows = rows.iter().map(|(row, _)| failed_row(job, *row)).collect();
                    outcomes.push(Outcome::Failures { rows, reply: told(reply) });
                }
                Waiting::Checkpoints { .. } => {}
            }
        }
        outcomes
    }

    fn request(&self, item: &Waiting) -> Request {
        match item {
            Waiting::Commit { heads, .. } => {
                Request::Commit(heads.iter().map(|head| self.finished(head)).collect())
            }
            Waiting::Failures { job, rows } => Request::Commit(
                rows.iter()
                    .map(|(row, why)| FinishedRow {
                        job: *job,
                        row: *row,
                        status_code: 500,
                        body: Bytes::from(format!("{{\"error\":{{\"message\":{:?}}}}}", why)),
                        request_id: format!("{job}-{row}-failed"),
                        prompt_tokens: 0,
                        completion_tokens: 0,
                    })
                    .collect(),
            ),
            Waiting::Checkpoints { job, rows } => {
                let known = self.machine.job(*job);
                let rows = rows.iter().filter_map(|row| Some((*row, known?.checkpoint(*row)?.clone())));
                Request::PutCheckpoints(*job, rows.collect())
            }
        }
    }

    fn finished(&self, head: &ResultHead) -> FinishedRow {
        let model = self.machine.job(head.worker.job).map(|job| job.record.spec.model.clone());
        let model = model.unwrap_or_default().rsplit('/').next().unwrap_or_default().to_owned();
        FinishedRow {
            job: head.worker.job,
            row: head.row,
            status_code: head.status_code,
            body: Bytes::from(format!("{{\"model\":\"{model}\",\"choices\":[]}}")),
            request_id: format!("{}-{}-{}-{}", head.worker.job, head.row, head.worker.epoch, head.attempt),
            prompt_tokens: head.prompt_tokens,
            completion_tokens: head.completion_tokens,
        }
    }
}

/// What became of something that waited.
pub(crate) enum Outcome {
    Commit {
        node: NodeId,
        rows: Vec<CommittedRow>,
        heads: Vec<ResultHead>,
        reply: Result<(Vec<JobTotals>, u32), String>,
    },
    Failures {
        rows: Vec<CommittedRow>,
        reply: Result<(Vec<JobTotals>, u32), String>,
    },
}

impl Outcome {
    pub(crate) fn event(self) -> Event {
        match self {
            Self::Commit { node, rows, reply: Ok((totals, _)), .. } => {
                Event::Committed { node, rows, totals }
            }
            Self::Commit { node, rows, reply: Err(problem), .. } => {
                Event::CommitFailed { node, rows, problem }
            }
            Self::Failures { rows, reply: Ok((totals, _)) } => Event::FailuresStored { rows, totals },
            Self::Failures { reply: Err(problem), .. } => Event::StorageFailed { problem },
        }
    }
}

/// Totals, and how many rows had an answer already.
fn told(reply: Result<Reply, Error>) -> Result<(Vec<JobTotals>, u32), String> {
    match reply {
        Ok(Reply::Committed(committed)) => {
            let totals = committed.jobs.iter().map(|job| JobTotals {
                job: job.job,
                results_bytes: job.results_bytes,
                errors_bytes: job.errors_bytes,
                rows_succeeded: job.rows_succeeded,
                rows_failed: job.rows_failed,
                rows_by_fallback: job.rows_by_fallback,
            });
            Ok((totals.collect(), committed.jobs.iter().map(|job| job.duplicates).sum()))
        }
        Ok(_) => Ok((Vec::new(), 0)),
        Err(error) => Err(error.to_string()),
    }
}

fn committed_row(head: &ResultHead) -> CommittedRow {
    CommittedRow {
        spool_seq: head.spool_seq,
        job: head.worker.job,
        row: head.row,
        status_code: head.status_code,
        prompt_tokens: head.prompt_tokens,
        completion_tokens: head.completion_tokens,
    }
}

fn failed_row(job: JobId, row: RowIx) -> CommittedRow {
    CommittedRow { spool_seq: 0, job, row, status_code: 500, prompt_tokens: 0, completion_tokens: 0 }
}
