//! From what is on disk to what is in memory: opening, repairing, rebuilding.
//!
//! ```text
//! open the store ── broken? ──▶ set it aside, open an empty one
//!        │
//! format record ── missing? ──▶ never finished, or lost: empty the store, take every job from its directory
//!        │
//! jobs   record and directory: the newer of the record and state.json counts;
//!        a directory without a record that was accepted (state.json) or has results is a job all the same
//!        │
//! rows   records that continue each other and fit the files count; from the first that does not, the lines do
//!        │
//! checkpoints, nodes, events
//! ```
//!
//! Everything here may be interrupted and is then done again.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
};

use super::{
    codec::{key, seal, unseal},
    core::{Core, Limits},
    disk::Disk,
    error::Error,
    events::{EventLog, put_ceiling},
    job::Job,
    job_files::{self, JobFiles, Small, SpecFile, StoredJob},
    kv::{self, Batch, Kv},
    longvalue::{self, Joined, Joiner},
    records::{MOST_INCIDENTS, put_state},
};
use crate::model::{
    Checkpoint, Incident, JobId, JobRecord, JobState, LearnedModel, NodeRecord, ReplayedJob, RowIx,
};

/// The format of the whole ledger: which keys there are and what they mean.
const FORMAT: u32 = 1;

/// Models of which something learned is kept: years of a person's trying out, and a few hundred kilobytes.
const MOST_MODELS: usize = 128;

/// What the ledger held.
#[derive(Debug)]
pub struct Replay {
    /// All jobs, oldest first.
    pub jobs: Vec<ReplayedJob>,
    /// All nodes.
    pub nodes: Vec<NodeRecord>,
    /// What has been learned of models, the newest first.
    pub models: Vec<LearnedModel>,
    /// Incidents, the oldest first.
    pub incidents: Vec<Incident>,
    /// What had to be repaired, a sentence each.
    pub repairs: Vec<String>,
    /// What a kill leaves behind in the ordinary course of things, and was put right: nothing to worry about.
    pub remains: Vec<String>,
    /// The number the next job gets; none was given out before.
    pub next_job: JobId,
}

/// What kind of store was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Start {
    /// One that was made whole before.
    Known,
    /// None, and no jobs either.
    New,
    /// None that was ever finished: what there is comes from the jobs' directories.
    Rebuilt,
}

/// What was put right, in sentences.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Damage.
    pub(crate) repairs: Vec<String>,
    /// What a kill leaves behind.
    pub(crate) remains: Vec<String>,
}

/// What is read from disk and not kept in memory here.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    findings: Findings,
    nodes: Vec<NodeRecord>,
    models: Vec<LearnedModel>,
    incidents: Vec<Incident>,
    pub(crate) checkpoints: Vec<(JobId, RowIx, Checkpoint)>,
}

impl<D: Disk, K: Kv> Core<D, K> {
    /// Opens the ledger, repairs what a crash left and reads everything.
    ///
    /// # Errors
    /// When the state directory cannot be used, somebody else uses the store, or a newer version wrote it.
    pub fn open(disk: D, kv: K, limits: Limits, now_unix_ms: u64) -> Result<(Self, Replay), Error> {
        let mut core = Self {
            disk,
            kv,
            limits,
            jobs: BTreeMap::new(),
            last_job: 0,
            events: EventLog::default(),
            incidents: BTreeSet::new(),
            checkpoint_bytes: 0,
            is_stale: true,
            is_dirty: false,
            unwanted: Vec::new(),
        };
        core.remove_incoming()?;
        let Loaded { findings, nodes, models, incidents, checkpoints } = core.load(now_unix_ms)?;
        let mut jobs: BTreeMap<_, _> = core.jobs.iter().map(|(id, job)| (*id, replayed(job))).collect();
        for (job, row, checkpoint) in checkpoints {
            if let Some(job) = jobs.get_mut(&job) {
                job.checkpoints.insert(row, checkpoint);
            }
        }
        let next_job = JobId(core.last_job + 1);
        let Findings { repairs, remains } = findings;
        let jobs = jobs.into_values().collect();
        let replay = Replay { jobs, nodes, models, incidents, repairs, remains, next_job };
        Ok((core, replay))
    }

    /// After a failure of the store: opens it again and reads everything, as at start.
    pub(crate) fn read_again_if_stale(&mut self, now_unix_ms: u64) -> Result<(), Error> {
        if !self.is_stale {
            return Ok(());
        }
        let Findings { repairs, remains } = self.load(now_unix_ms)?.findings;
        for sentence in repairs {
            tracing::warn!("the ledger was opened again: {sentence}");
        }
        for sentence in remains {
            tracing::info!("the ledger was opened again: {sentence}");
        }
        Ok(())
    }

    /// Submissions that were still coming in when the controller ended were never accepted.
    fn remove_incoming(&mut self) -> Result<(), Error> {
        let jobs = job_files::JOBS;
        self.disk.create_directory(jobs).map_err(|error| self.io_error("make", jobs, error))?;
        let names = self.disk.list(jobs).map_err(|error| self.io_error("read", jobs, error))?;
        for name in names.iter().filter(|name| name.starts_with(job_files::INCOMING_PREFIX)) {
            let directory = format!("{jobs}/{name}");
            self.disk
                .remove_directory(&directory)
                .map_err(|error| self.io_error("remove", &directory, error))?;
        }
        self.disk
            .sync_directory(jobs)
            .and_then(|()| self.disk.sync_directory(""))
            .map_err(|error| self.io_error("sync", jobs, error))
    }

    fn load(&mut self, now_unix_ms: u64) -> Result<Loaded, Error> {
        self.is_stale = true;
        let mut findings = Findings::default();
        match self.load_opened(now_unix_ms, false, &mut findings) {
            Err(Error::Store { source: kv::Error::Broken(problem), .. }) => {
                let aside = self
                    .kv
                    .set_aside(now_unix_ms / 1000)
                    .map_err(|source| Error::Store { action: "set aside", path: self.kv.path(), source })?;
                findings.repairs.push(format!(
                    "the ledger could not be used ({problem}): it was set aside as {} and made again from the \
                     jobs' directories; checkpoints, events and what was known of nodes and models are lost",
                    aside.display()
                ));
                self.load_opened(now_unix_ms, true, &mut findings)
            }
            outcome => outcome,
        }
        .map(|loaded| Loaded { findings, ..loaded })
    }

    fn load_opened(
        &mut self,
        now_unix_ms: u64,
        was_set_aside: bool,
        findings: &mut Findings,
    ) -> Result<Loaded, Error> {
        self.jobs.clear();
        self.checkpoint_bytes = 0;
        self.is_dirty = false;
        let opened = self.kv.open();
        findings.repairs.extend(opened.map_err(|error| self.store_failed("open", error))?);
        let start = self.prepare_format(was_set_aside, &mut findings.repairs)?;
        for job in std::mem::take(&mut self.unwanted) {
            self.remove_unwanted(job, &JobFiles::new(job)).inspect_err(|_| self.unwanted.push(job))?;
        }
        let mut batch = Batch::default();
        self.load_jobs(now_unix_ms, &mut batch, findings)?;
        self.apply(batch, true)?;
        self.load_all_rows(findings)?;
        let mut loaded = Loaded::default();
        let mut batch = Batch::default();
        loaded.checkpoints = self.load_checkpoints(&mut batch)?;
        loaded.nodes = self.load_records(key::NODES, &mut batch)?;
        self.load_models(&mut loaded, &mut batch)?;
        loaded.incidents = self.load_incidents(&mut batch)?;
        // Event numbers of a lost ledger are not known; the time is above all that were given out.
        self.load_events(if start == Start::Rebuilt { now_unix_ms / 1000 } else { 0 })?;
        if start == Start::Rebuilt {
            put_ceiling(&mut batch, self.events.ceiling);
        }
        if start != Start::Known {
            batch.put(key::FORMAT.to_vec(), seal(key::FORMAT, &FORMAT.to_le_bytes()));
        }
        self.is_dirty = true;
        self.apply(batch, true)?;
        self.jobs.values_mut().filter(|job| job.state.record.state.is_over()).for_each(Job::rest);
        self.disk.close(job_files::JOBS);
        self.is_stale = false;
        Ok(loaded)
    }

    /// Looks at the format. Without one the store is made empty.
    fn prepare_format(&mut self, was_set_aside: bool, repairs: &mut Vec<String>) -> Result<Start, Error> {
        let found = self.kv.get(key::FORMAT).map_err(|error| self.store_failed("read", error))?;
        if let Some(value) = found {
            let format = unseal(key::FORMAT, &value).ok().and_then(|payload| payload.try_into().ok());
            let Some(format) = format.map(u32::from_le_bytes) else {
                return Err(
                    self.store_failed("read", kv::Error::Broken("its format record is damaged".into()))
                );
            };
            if format > FORMAT {
                self.kv.close();
                return Err(Error::NewerFormat { path: self.kv.path(), found: format, supported: FORMAT });
            }
            return Ok(Start::Known);
        }
        let mut leftovers = Batch::default();
        let scanned = self.kv.scan(b"", false, &mut |key, _| {
            leftovers.remove(key.to_vec());
            ControlFlow::Continue(())
        });
        scanned.map_err(|error| self.store_failed("read", error))?;
        let was_begun = !leftovers.is_empty();
        self.apply(leftovers, true)?;
        let has_jobs = self.job_directories()?.values().any(|was_accepted| *was_accepted);
        if has_jobs && !was_set_aside {
            repairs.push(
                "the ledger was missing and was made again from the jobs' directories; checkpoints, events and \
                 what was known of nodes and models are lost"
                    .into(),
            );
        }
        Ok(if was_set_aside || was_begun || has_jobs { Start::Rebuilt } else { Start::New })
    }

    /// Jobs' directories, and whether each was accepted (or at least looks so).
    fn job_directories(&mut self) -> Result<BTreeMap<JobId, bool>, Error> {
        let names =
            self.disk.list(job_files::JOBS).map_err(|error| self.io_error("read", job_files::JOBS, error))?;
        let mut directories = BTreeMap::new();
        for job in names.iter().filter_map(|name| job_files::parse_directory_name(name)) {
            let files = JobFiles::new(job);
            let state = job_files::read_state(&mut self.disk, &files.directory)
                .map_err(|error| self.io_error("read", &files.directory, error))?;
            let mut has_results = false;
            for path in [&files.results, &files.errors] {
                let bytes = self.disk.file_bytes(path).map_err(|error| self.io_error("read", path, error))?;
                has_results |= bytes.is_some_and(|bytes| bytes > 0);
            }
            directories.insert(job, has_results || state != Small::Missing);
        }
        Ok(directories)
    }

    fn load_jobs(
        &mut self,
        now_unix_ms: u64,
        batch: &mut Batch,
        findings: &mut Findings,
    ) -> Result<(), Error> {
        let mut records = self.read_long_values(key::JOBS)?;
        let mut recorded = BTreeMap::new();
        for joined in records.drain(..) {
            let Some((id, _)) = key::parse_number(&joined.prefix) else { continue };
            let parsed = joined.payload.ok().and_then(|json| serde_json::from_slice::<StoredJob>(&json).ok());
            if parsed.is_none() {
                findings.repairs.push(format!("the record of job j{id} was damaged"));
            }
            recorded.insert(JobId(id), (parsed, joined.stored));
        }
        let directories = self.job_directories()?;
        let ids: BTreeSet<_> = recorded.keys().chain(directories.keys()).copied().collect();
        let last_given = self.read_number(key::LAST_JOB)?;
        self.last_job = ids.last().map_or(0, |id| id.0).max(last_given);
        for id in ids {
            let (record, stored) = recorded.remove(&id).unwrap_or_default();
            let known = record.clone();
            let directory = directories.get(&id).copied();
            let state = match (record, directory) {
                (None, Some(false)) => {
                    let files = JobFiles::new(id);
                    self.remove_unwanted(id, &files)?;
                    findings.remains.push(format!(
                        "{} was left by a submission that was never accepted: removed",
                        files.directory
                    ));
                    None
                }
                (record, directory) => {
                    self.settle_job(id, record, directory.is_some(), now_unix_ms, &mut findings.repairs)?
                }
            };
            match state {
                None => longvalue::remove(batch, &key::job(id), &stored),
                Some(job) => {
                    let is_stored = known.as_ref() == Some(&job);
                    self.load_job(job, stored, is_stored, batch)?;
                }
            }
        }
        Ok(())
    }

    /// What a job's record is, from the store, its directory, or both. `None`: there is nothing to go by.
    fn settle_job(
        &mut self,
        id: JobId,
        record: Option<StoredJob>,
        has_directory: bool,
        now_unix_ms: u64,
        repairs: &mut Vec<String>,
    ) -> Result<Option<StoredJob>, Error> {
        let directory = JobFiles::new(id).directory;
        let read_failed = |core: &Self, error| core.io_error("read", &directory, error);
        if !has_directory {
            return Ok(record.map(|job| without_directory(job, &directory, now_unix_ms, repairs)));
        }
        let sidecar = job_files::read_state(&mut self.disk, &directory)
            .map_err(|error| read_failed(self, error))?
            .read()
            .filter(|sidecar| sidecar.record.id == id);
        match (record, sidecar) {
            (Some(record), Some(sidecar)) if sidecar.revision > record.revision => Ok(Some(sidecar)),
            (Some(record), _) => Ok(Some(record)),
            (None, Some(sidecar)) => {
                repairs.push(format!("job {id} was not in the ledger: taken from {directory}"));
                Ok(Some(sidecar))
            }
            (None, None) => {
                let spec = job_files::read_spec(&mut self.disk, &directory)
                    .map_err(|error| read_failed(self, error))?
                    .read()
                    .filter(|spec| spec.id == id);
                let job = spec.and_then(|spec| from_spec(&spec, now_unix_ms));
                repairs.push(if job.is_some() {
                    format!("job {id} was not in the ledger and where it stood is lost: taken from {directory}, paused")
                } else {
                    format!(
                        "{directory} is not in the ledger and has no readable spec.json or state.json: left as it \
                         is; results in it can still be read"
                    )
                });
                Ok(job)
            }
        }
    }

    /// Puts a job into memory, and into the store and its directory what is not there as it should be.
    fn load_job(
        &mut self,
        state: StoredJob,
        stored: longvalue::Stored,
        is_stored: bool,
        batch: &mut Batch,
    ) -> Result<(), Error> {
        let mut job = Job::new(state);
        job.stored = if is_stored { stored } else { put_state(batch, &job.state, &stored)? };
        job.input_bytes = self
            .disk
            .file_bytes(&job.files.input)
            .map_err(|error| self.io_error("look at", &job.files.input, error))?
            .unwrap_or_default();
        let directory = &job.files.directory;
        let sidecar = job_files::read_state(&mut self.disk, directory)
            .map_err(|error| self.io_error("read", directory, error))?;
        job.sidecar = sidecar.read().map(|sidecar| sidecar.record);
        let is_told = job
            .sidecar
            .as_ref()
            .is_some_and(|sidecar| !job_files::differs_in_state(sidecar, &job.state.record));
        if !is_told && self.disk.list(directory).is_ok() {
            // Best effort: the next change of the job's state tries again, and fails when this cannot be written.
            match job_files::write_state(&mut self.disk, directory, &job.state) {
                Ok(()) => job.sidecar = Some(job.state.record.clone()),
                Err(error) => tracing::warn!(%directory, %error, "where the job stands could not be written"),
            }
        }
        self.jobs.insert(job.id, job);
        Ok(())
    }

    /// Records of this kind; those that cannot be read are removed.
    fn load_records<T: serde::de::DeserializeOwned>(
        &mut self,
        kind: &[u8],
        batch: &mut Batch,
    ) -> Result<Vec<T>, Error> {
        let mut records = Vec::new();
        let scanned = self.kv.scan(kind, false, &mut |key, value| {
            match unseal(key, value).ok().and_then(|json| serde_json::from_slice(json).ok()) {
                Some(record) => records.push(record),
                None => batch.remove(key.to_vec()),
            }
            ControlFlow::Continue(())
        });
        scanned.map_err(|error| self.store_failed("read", error))?;
        Ok(records)
    }

    /// The newest ones; what has not been run for long is forgotten.
    fn load_models(&mut self, loaded: &mut Loaded, batch: &mut Batch) -> Result<(), Error> {
        loaded.models = self.load_records(key::MODELS, batch)?;
        loaded.models.sort_by(|a, b| {
            b.updated_unix_ms.cmp(&a.updated_unix_ms).then_with(|| a.fingerprint.cmp(&b.fingerprint))
        });
        for model in loaded.models.drain(loaded.models.len().min(MOST_MODELS)..) {
            batch.remove(key::model(&model.fingerprint));
        }
        Ok(())
    }

    /// The newest ones.
    fn load_incidents(&mut self, batch: &mut Batch) -> Result<Vec<Incident>, Error> {
        let mut found: Vec<Incident> = self.load_records(key::INCIDENTS, batch)?;
        for old in found.drain(..found.len().saturating_sub(MOST_INCIDENTS)) {
            batch.remove(key::incident(old.id));
        }
        self.incidents = found.iter().map(|incident| incident.id).collect();
        Ok(found)
    }

    fn load_events(&mut self, at_least: u64) -> Result<(), Error> {
        let mut ends = [None, None];
        for (end, descending) in ends.iter_mut().zip([false, true]) {
            let scanned = self.kv.scan(key::EVENTS, descending, &mut |key, _| {
                *end = key::parse_number(key).map(|(seq, _)| seq);
                ControlFlow::Break(())
            });
            scanned.map_err(|error| self.store_failed("read", error))?;
        }
        let ceiling = self.read_number(key::EVENT_CEILING)?.max(at_least);
        let next = ends[1].unwrap_or_default().max(ceiling) + 1;
        self.events = EventLog { first: ends[0].unwrap_or(next), next, ceiling: next - 1 };
        Ok(())
    }

    fn read_long_values(&mut self, prefix: &[u8]) -> Result<Vec<Joined>, Error> {
        let (mut joiner, mut found) = (Joiner::default(), Vec::new());
        let scanned = self.kv.scan(prefix, false, &mut |key, value| {
            found.extend(joiner.push(key, value));
            ControlFlow::Continue(())
        });
        scanned.map_err(|error| self.store_failed("read", error))?;
        found.extend(joiner.finish());
        Ok(found)
    }

    fn read_number(&mut self, key: &[u8]) -> Result<u64, Error> {
        let value = self.kv.get(key).map_err(|error| self.store_failed("read", error))?.unwrap_or_default();
        let number = unseal(key, &value).ok().and_then(|payload| payload.try_into().ok());
        Ok(number.map_or(0, u64::from_le_bytes))
    }
}

/// A job whose directory is gone cannot run; what is known of one that is over stays.
fn without_directory(
    mut job: StoredJob,
    directory: &str,
    now_unix_ms: u64,
    repairs: &mut Vec<String>,
) -> StoredJob {
    let record = &mut job.record;
    if !record.state.is_over() {
        repairs.push(format!("{directory} is gone: job {} failed", record.id));
        record.state = JobState::Failed;
        record.detail = format!("its directory {directory} is gone, and its rows with it; submit it again");
        record.finished_unix_ms = Some(now_unix_ms);
        job.revision += 1;
    }
    job
}

/// A job whose record is lost. It is paused, for nobody knows whether it should run; its launches are numbered from the
/// time, which is above any number given out before.
fn from_spec(spec: &SpecFile, now_unix_ms: u64) -> Option<StoredJob> {
    let record: JobRecord = serde_json::from_value(serde_json::json!({
        "id": spec.id,
        "spec": spec.spec,
        "rows_total": spec.rows_total,
        "state": JobState::Paused,
        "detail": "where it stood was lost with the ledger; resume it if it should go on",
        "created_unix_ms": spec.created_unix_ms,
        "epoch": now_unix_ms / 1000,
    }))
    .ok()?;
    Some(StoredJob { revision: 1, record })
}

fn replayed(job: &Job) -> ReplayedJob {
    ReplayedJob {
        record: job.state.record.clone(),
        done: job.done.clone(),
        rows_succeeded: job.totals.rows_succeeded,
        rows_failed: job.totals.rows_failed,
        rows_by_fallback: job.totals.rows_by_fallback,
        prompt_tokens: job.totals.prompt_tokens,
        completion_tokens: job.totals.completion_tokens,
        results_bytes: job.results.bytes,
        errors_bytes: job.errors.bytes,
        checkpoints: BTreeMap::new(),
    }
}
