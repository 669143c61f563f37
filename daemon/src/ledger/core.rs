//! The ledger's logic without threads or clocks: requests in, replies out, over any [`Disk`] and [`Kv`].
//!
//! Requests come in groups, and a group shares its syncs. Within a group:
//!
//! 1. what each request asks for is checked and gathered — lines in memory, records in one batch;
//! 2. the lines of each job are appended to its files and synced;
//! 3. the batch — row records, checkpoints that fall away, job records, events — is applied and flushed;
//! 4. only now are the requests answered.
//!
//! A crash after 2 leaves lines that no record names; the next [`open`](Core::open) takes them in. A failure in 2
//! cuts the files back to their recorded length and fails the rows of the jobs concerned, nothing else. A failure in 3
//! leaves open what the store holds: the whole state is read again from disk before the next request is looked at.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use super::{
    codec::RowEntry,
    disk::Disk,
    error::{Error, human_bytes},
    events::EventLog,
    job::Job,
    kv::{self, Batch, Kv},
};
use crate::model::{
    Checkpoint, EventDraft, EventRecord, FinishedRow, Incident, JobId, JobRecord, LearnedModel, NodeId,
    NodeRecord, RowIx,
};

/// What the ledger is asked to do.
#[derive(Debug)]
#[non_exhaustive]
pub enum Request {
    /// Make a job of a staged submission.
    CreateJob {
        /// The staging directory's name in `jobs/`.
        staging: String,
        /// The job's first record.
        record: JobRecord,
    },
    /// Record where a job stands.
    PutJob(JobRecord),
    /// Make rows durable.
    Commit(Vec<FinishedRow>),
    /// Remember how far unfinished rows are.
    PutCheckpoints(JobId, Vec<(RowIx, Checkpoint)>),
    /// Record what is known of a node.
    PutNode(NodeRecord),
    /// Record what has been learned of a model.
    PutModel(LearnedModel),
    /// Record an incident as it stands.
    PutIncident(Box<Incident>),
    /// Number events and keep them.
    AppendEvents(Vec<EventDraft>, u64),
    /// Read events.
    ReadEvents(EventFilter),
}

/// What the ledger answers.
#[derive(Debug)]
#[non_exhaustive]
pub enum Reply {
    /// It is done.
    Done,
    /// The rows are durable.
    Committed(Committed),
    /// The events appended, or those asked for.
    Events(Vec<EventRecord>),
}

/// What became of a commit.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Committed {
    /// Each job that had rows in it.
    pub jobs: Vec<JobCommitted>,
}

/// What became of a job's rows in a commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JobCommitted {
    /// The job.
    pub job: JobId,
    /// Durable length of its `results.jsonl` now.
    pub results_bytes: u64,
    /// Durable length of its `errors.jsonl` now.
    pub errors_bytes: u64,
    /// Rows that had an answer already; theirs was dropped.
    pub duplicates: u32,
    /// Rows of the job answered with 200, all in all. One whose body was not one JSON object on one line is not among
    /// them, whatever its status.
    pub rows_succeeded: u64,
    /// Rows of the job that ended with an error, all in all.
    pub rows_failed: u64,
    /// Rows of the job answered by its fallback model, all in all.
    pub rows_by_fallback: u64,
}

/// Which events.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EventFilter {
    /// Only those about this node.
    pub node: Option<NodeId>,
    /// Only those about this job.
    pub job: Option<JobId>,
    /// The newest so many.
    pub tail: usize,
    /// Only those with a higher number.
    pub after_seq: Option<u64>,
}

impl Default for EventFilter {
    fn default() -> Self {
        Self { node: None, job: None, tail: usize::MAX, after_seq: None }
    }
}

/// Bounds of a [`Core`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Free space that rows and checkpoints leave alone. It is there so that the store, which cannot go on after a
    /// failed write, never meets a full disk, and so that a full disk can still be recorded. Job records, node records
    /// and events may use three quarters of it.
    pub disk_reserve_bytes: u64,
    /// Events kept.
    pub max_events: u64,
}

/// The ledger's logic. See the module's notes.
#[derive(Debug)]
pub struct Core<D, K> {
    pub(crate) disk: D,
    pub(crate) kv: K,
    pub(crate) limits: Limits,
    pub(crate) jobs: BTreeMap<JobId, Job>,
    pub(crate) last_job: u64,
    pub(crate) events: EventLog,
    /// The numbers of the incidents kept.
    pub(crate) incidents: BTreeSet<u64>,
    pub(crate) checkpoint_bytes: usize,
    /// What is in memory may not be what is on disk: read all again before anything else.
    pub(crate) is_stale: bool,
    /// Something was applied and not flushed.
    pub(crate) is_dirty: bool,
    /// Jobs whose creation failed half-way: what is left of them goes when the state is read again.
    pub(crate) unwanted: Vec<JobId>,
}

/// What a group gathered so far.
#[derive(Debug, Default)]
pub(crate) struct Group {
    pub(crate) batch: Batch,
    pub(crate) needs_flush: bool,
    pub(crate) lines: BTreeMap<JobId, Lines>,
    /// Jobs that are over with this group.
    pub(crate) over: Vec<JobId>,
}

/// Lines of one job, gathered.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    pub(crate) results: Vec<u8>,
    pub(crate) errors: Vec<u8>,
    pub(crate) entries: Vec<RowEntry>,
    /// Why they did not get into the files.
    pub(crate) failure: Option<Error>,
}

/// A request that was looked at.
#[derive(Debug)]
pub(crate) enum Gathered {
    Answered(Result<Reply, Error>),
    /// Answered once the group is durable: jobs and how many of the rows were duplicates.
    Rows(Vec<(JobId, u32)>),
}

impl<D: Disk, K: Kv> Core<D, K> {
    /// Does what the requests ask, as one group. The replies are in the order of the requests.
    pub fn run(&mut self, requests: Vec<Request>, now_unix_ms: u64) -> Vec<Result<Reply, Error>> {
        if let Err(error) = self.read_again_if_stale(now_unix_ms) {
            return requests.iter().map(|_| Err(error.clone())).collect();
        }
        let mut replies = Vec::with_capacity(requests.len());
        let (mut group, mut gathered) = (Group::default(), Vec::with_capacity(requests.len()));
        for request in requests {
            match request {
                // These look at what is applied, or apply themselves: the group so far comes first.
                Request::CreateJob { staging, record } => {
                    self.finish(std::mem::take(&mut group), &mut gathered, &mut replies);
                    let outcome = self
                        .read_again_if_stale(now_unix_ms)
                        .and_then(|()| self.create_job(&staging, record));
                    replies.push(outcome.map(|()| Reply::Done));
                }
                Request::ReadEvents(filter) => {
                    self.finish(std::mem::take(&mut group), &mut gathered, &mut replies);
                    replies.push(self.read_events(&filter).map(Reply::Events));
                }
                request => {
                    let answer = self.gather(request, &mut group);
                    gathered.push(answer);
                }
            }
        }
        self.finish(group, &mut gathered, &mut replies);
        replies
    }

    /// Makes everything applied durable. To be called within a second of a request that was not flushed.
    ///
    /// # Errors
    /// When that is not certain; the state is read again with the next request.
    pub fn flush(&mut self) -> Result<(), Error> {
        if self.is_dirty() { self.flush_store() } else { Ok(()) }
    }

    fn flush_store(&mut self) -> Result<(), Error> {
        self.kv.flush().map_err(|error| self.store_failed("flush", error))?;
        self.is_dirty = false;
        Ok(())
    }

    /// Whether something waits for [`flush`](Self::flush).
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.is_dirty && !self.is_stale
    }

    /// Flushes and closes the store.
    ///
    /// # Errors
    /// When not everything is certain to be durable. It is closed all the same.
    pub fn close(mut self) -> Result<(), Error> {
        let outcome = if self.is_stale {
            Ok(())
        } else {
            let mut batch = Batch::default();
            self.events.settle(&mut batch);
            self.apply(batch, true)
        };
        self.kv.close();
        outcome
    }

    fn gather(&mut self, request: Request, group: &mut Group) -> Gathered {
        let answer = match request {
            Request::Commit(rows) => match self.gather_rows(&rows, group) {
                Ok(jobs) => return Gathered::Rows(jobs),
                Err(error) => Err(error),
            },
            Request::PutJob(record) => self.put_job(record, group).map(|()| Reply::Done),
            Request::PutCheckpoints(job, checkpoints) => {
                self.put_checkpoints(job, &checkpoints, group).map(|()| Reply::Done)
            }
            Request::PutNode(record) => self.put_node(&record, group).map(|()| Reply::Done),
            Request::PutModel(model) => self.put_model(&model, group).map(|()| Reply::Done),
            Request::PutIncident(incident) => self.put_incident(&incident, group).map(|()| Reply::Done),
            Request::AppendEvents(events, unix_ms) => {
                self.append_events(events, unix_ms, group).map(Reply::Events)
            }
            Request::CreateJob { .. } | Request::ReadEvents(_) => Ok(Reply::Done),
        };
        Gathered::Answered(answer)
    }

    /// Steps 2 to 4: files, store, answers.
    fn finish(
        &mut self,
        mut group: Group,
        gathered: &mut Vec<Gathered>,
        replies: &mut Vec<Result<Reply, Error>>,
    ) {
        self.write_lines(&mut group);
        self.record_rows(&mut group);
        let applied = self.apply(std::mem::take(&mut group.batch), group.needs_flush);
        for job in std::mem::take(&mut group.over) {
            self.rest(job);
        }
        replies.extend(gathered.drain(..).map(|gathered| match (gathered, &applied) {
            (Gathered::Answered(Err(error)), _) => Err(error),
            (_, Err(error)) => Err(error.clone()),
            (Gathered::Answered(reply), Ok(())) => reply,
            (Gathered::Rows(jobs), Ok(())) => self.committed(&jobs, &group).map(Reply::Committed),
        }));
    }

    /// Holds no more of a job that is over than it must.
    fn rest(&mut self, job: JobId) {
        if let Some(job) = self.jobs.get_mut(&job) {
            job.rest();
            self.disk.close(&job.files.directory);
        }
    }

    fn committed(&self, jobs: &[(JobId, u32)], group: &Group) -> Result<Committed, Error> {
        let failures = jobs.iter().filter_map(|(job, _)| group.lines.get(job)?.failure.clone());
        if let Some(error) = failures.into_iter().next() {
            return Err(error);
        }
        let jobs = jobs.iter().filter_map(|(job, duplicates)| {
            let state = self.jobs.get(job)?;
            Some(JobCommitted {
                job: *job,
                results_bytes: state.results.bytes,
                errors_bytes: state.errors.bytes,
                duplicates: *duplicates,
                rows_succeeded: state.totals.rows_succeeded,
                rows_failed: state.totals.rows_failed,
                rows_by_fallback: state.totals.rows_by_fallback,
            })
        });
        Ok(Committed { jobs: jobs.collect() })
    }

    /// Applies a batch and, if asked, flushes. After a failure everything in memory is stale.
    pub(crate) fn apply(&mut self, batch: Batch, flush: bool) -> Result<(), Error> {
        if !batch.is_empty() {
            self.kv.apply(batch).map_err(|error| self.store_failed("write to", error))?;
            self.is_dirty = true;
        }
        if flush && self.is_dirty { self.flush_store() } else { Ok(()) }
    }

    pub(crate) fn store_failed(&mut self, action: &'static str, source: kv::Error) -> Error {
        self.is_stale = true;
        Error::Store { action, path: self.kv.path(), source }
    }

    /// The job of a number.
    pub(crate) fn job_mut(&mut self, job: JobId) -> Result<&mut Job, Error> {
        self.jobs.get_mut(&job).ok_or(Error::UnknownJob { job })
    }

    /// Refuses to write when that would leave less than `keep_bytes` free.
    pub(crate) fn check_room(&mut self, path: &str, bytes: u64, keep_bytes: u64) -> Result<(), Error> {
        let free =
            self.disk.free_bytes().map_err(|error| self.io_error("ask for the free space of", "", error))?;
        if free >= keep_bytes.saturating_add(bytes) {
            return Ok(());
        }
        Err(Error::DiskFull {
            path: self.disk.display(path),
            problem: format!(
                "{} are free, of which {} are kept in reserve; free some space",
                human_bytes(free),
                human_bytes(keep_bytes)
            ),
        })
    }

    /// Refuses small records when the reserve itself is nearly used up.
    pub(crate) fn check_room_for_record(&mut self) -> Result<(), Error> {
        let keep_bytes = self.limits.disk_reserve_bytes / 4;
        self.check_room("", 0, keep_bytes)
    }

    pub(crate) fn io_error(&self, verb: &str, path: &str, error: io::Error) -> Error {
        Error::io(verb, self.disk.display(path), error)
    }
}
