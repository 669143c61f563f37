//! Records that change: jobs and nodes; and how a job comes to be.

use super::{
    codec::{key, seal},
    core::{Core, Group},
    disk::Disk,
    error::Error,
    job::Job,
    job_files::{self, JobFiles, StoredJob},
    kv::{Batch, Kv, VALUE_BYTES_MAX},
    longvalue,
};
use crate::model::{Incident, JobId, JobRecord, LearnedModel, NodeRecord};

/// Bytes a job's record may take: a name, a path, a sentence, a launch a node.
const JOB_BYTES_MAX: usize = 1 << 20;

/// Incidents kept: a bad week, and a few megabytes at most.
pub(crate) const MOST_INCIDENTS: usize = 500;

/// Characters kept of one of an incident's sentences: an error message can be pages long.
const SENTENCE_CHARS_MAX: usize = 300;

impl<D: Disk, K: Kv> Core<D, K> {
    /// Makes a job of a staged submission: its directory first, then the record, then `state.json`, which says that it
    /// was accepted. On failure nothing of it is kept.
    pub(crate) fn create_job(&mut self, staging: &str, record: JobRecord) -> Result<(), Error> {
        let (id, staging) = (record.id, format!("{}/{staging}", job_files::JOBS));
        let mut job = Job::new(StoredJob { revision: 1, record });
        let outcome = if self.jobs.contains_key(&id) {
            Err(Error::JobExists { job: id })
        } else {
            self.place_files(&staging, &mut job).and_then(|()| self.record_new_job(&mut job))
        };
        match &outcome {
            Ok(()) => {
                self.jobs.insert(id, job);
            }
            Err(error) => {
                if let Err(error) = self.disk.remove_directory(&staging) {
                    tracing::warn!(directory = %staging, %error, "a refused submission could not be removed");
                }
                if !matches!(error, Error::JobExists { .. }) {
                    self.discard_job(&job);
                }
            }
        }
        outcome
    }

    fn place_files(&mut self, staging: &str, job: &mut Job) -> Result<(), Error> {
        self.check_room(job_files::JOBS, 0, self.limits.disk_reserve_bytes)?;
        let files = &job.files;
        job_files::complete_staging(&mut self.disk, staging, &job.state.record)
            .map_err(|error| self.io_error("write to", staging, error))?;
        self.disk
            .rename(staging, &files.directory)
            .and_then(|()| self.disk.sync_directory(job_files::JOBS))
            .map_err(|error| self.io_error("make", &files.directory, error))?;
        job.input_bytes = self
            .disk
            .file_bytes(&files.input)
            .map_err(|error| self.io_error("look at", &files.input, error))?
            .unwrap_or_default();
        Ok(())
    }

    fn record_new_job(&mut self, job: &mut Job) -> Result<(), Error> {
        let mut batch = Batch::default();
        job.stored = put_state(&mut batch, &job.state, &longvalue::Stored::default())?;
        self.last_job = self.last_job.max(job.id.0);
        batch.put(key::LAST_JOB.to_vec(), seal(key::LAST_JOB, &self.last_job.to_le_bytes()));
        self.apply(batch, true)?;
        self.write_sidecar(job)
    }

    fn write_sidecar(&mut self, job: &mut Job) -> Result<(), Error> {
        job_files::write_state(&mut self.disk, &job.files.directory, &job.state)
            .map_err(|error| self.io_error("write to", &job.files.directory, error))?;
        job.sidecar = Some(job.state.record.clone());
        Ok(())
    }

    /// Removes what a failed creation left. The record goes before the directory: a crash in between must not leave a
    /// job without files. When the store cannot say what it holds, both wait until it can.
    fn discard_job(&mut self, job: &Job) {
        if self.is_stale || self.remove_unwanted(job.id, &job.files).is_err() {
            self.unwanted.push(job.id);
        }
    }

    /// Removes a job that never came to be, from the store and from the disk.
    pub(crate) fn remove_unwanted(&mut self, job: JobId, files: &JobFiles) -> Result<(), Error> {
        let (mut batch, prefix) = (Batch::default(), key::job(job));
        let scanned = self.kv.scan(&prefix, false, &mut |key, _| {
            batch.remove(key.to_vec());
            std::ops::ControlFlow::Continue(())
        });
        scanned.map_err(|error| self.store_failed("read", error))?;
        if !batch.is_empty() {
            self.apply(batch, true)?;
        }
        self.disk
            .remove_directory(&files.directory)
            .and_then(|()| self.disk.sync_directory(job_files::JOBS))
            .map_err(|error| self.io_error("remove", &files.directory, error))
    }

    /// Records where a job stands, in the store and — when more than counters changed — in its directory.
    pub(crate) fn put_job(&mut self, mut record: JobRecord, group: &mut Group) -> Result<(), Error> {
        self.check_room_for_record()?;
        let id = record.id;
        let mut job = self.jobs.remove(&id).ok_or(Error::UnknownJob { job: id })?;
        record.rows_total = job.state.record.rows_total;
        let outcome = self.put_job_record(&mut job, record, group);
        self.jobs.insert(id, job);
        outcome
    }

    fn put_job_record(&mut self, job: &mut Job, record: JobRecord, group: &mut Group) -> Result<(), Error> {
        let old = job.state.clone();
        job.state = StoredJob { revision: old.revision + 1, record };
        let mut batch = Batch::default();
        let put = put_state(&mut batch, &job.state, &job.stored).and_then(|stored| {
            let known = job.sidecar.as_ref();
            if known.is_none_or(|known| job_files::differs_in_state(known, &job.state.record)) {
                self.write_sidecar(job)?;
            }
            Ok(stored)
        });
        match put {
            Ok(stored) => job.stored = stored,
            Err(error) => {
                job.state = old;
                return Err(error);
            }
        }
        if job.state.record.state.is_over() {
            let rows: Vec<_> = job.checkpoints.keys().copied().collect();
            for row in rows {
                self.checkpoint_bytes -= job.drop_checkpoint(row, &mut batch);
            }
            group.over.push(job.id);
        }
        group.batch.writes.append(&mut batch.writes);
        group.needs_flush = true;
        Ok(())
    }

    /// Records what is known of a node.
    pub(crate) fn put_node(&mut self, record: &NodeRecord, group: &mut Group) -> Result<(), Error> {
        let what = || format!("the record of node {:.40}", record.id.as_str());
        self.put_small(key::node(&record.id), &to_json(record), what, group)
    }

    /// Records what has been learned of a model.
    pub(crate) fn put_model(&mut self, model: &LearnedModel, group: &mut Group) -> Result<(), Error> {
        let what = || format!("the record of model {:.40}", model.fingerprint);
        self.put_small(key::model(&model.fingerprint), &to_json(model), what, group)
    }

    /// Records an incident as it stands; the oldest go when there are too many. One value each: a crash leaves it as it
    /// was or as it is.
    pub(crate) fn put_incident(&mut self, incident: &Incident, group: &mut Group) -> Result<(), Error> {
        let what = || format!("incident {}", incident.id);
        self.put_small(key::incident(incident.id), &fitting(incident), what, group)?;
        self.incidents.insert(incident.id);
        while self.incidents.len() > MOST_INCIDENTS
            && let Some(id) = self.incidents.pop_first()
        {
            group.batch.remove(key::incident(id));
        }
        Ok(())
    }

    fn put_small(
        &mut self,
        key: Vec<u8>,
        json: &[u8],
        what: impl FnOnce() -> String,
        group: &mut Group,
    ) -> Result<(), Error> {
        self.check_room_for_record()?;
        let value = seal(&key, json);
        if value.len() > VALUE_BYTES_MAX || key.len() > VALUE_BYTES_MAX / 4 {
            return Err(Error::TooLarge { what: what(), bytes: value.len(), max_bytes: VALUE_BYTES_MAX });
        }
        group.batch.put(key, value);
        group.needs_flush = true;
        Ok(())
    }
}

/// Puts a job's record where `old` is stored.
pub(crate) fn put_state(
    batch: &mut Batch,
    state: &StoredJob,
    old: &longvalue::Stored,
) -> Result<longvalue::Stored, Error> {
    let json = to_json(state);
    if json.len() > JOB_BYTES_MAX {
        let what = format!("the record of job {}", state.record.id);
        return Err(Error::TooLarge { what, bytes: json.len(), max_bytes: JOB_BYTES_MAX });
    }
    Ok(longvalue::put(batch, &key::job(state.record.id), &json, old))
}

/// An incident with as much of its evidence as there is room for. The first line is the error, the last ones are what came
/// just before; what is between them goes first.
fn fitting(incident: &Incident) -> Vec<u8> {
    // Some bytes are for the seal.
    let room = VALUE_BYTES_MAX - 64;
    let json = to_json(incident);
    if json.len() <= room {
        return json;
    }
    let mut shorter = incident.clone();
    for sentence in [&mut shorter.summary, &mut shorter.action, &mut shorter.outcome]
        .into_iter()
        .chain(&mut shorter.evidence)
    {
        if let Some((at, _)) = sentence.char_indices().nth(SENTENCE_CHARS_MAX) {
            sentence.truncate(at);
            sentence.push('…');
        }
    }
    let mut json = to_json(&shorter);
    while json.len() > room && !shorter.evidence.is_empty() {
        shorter.evidence.remove(1.min(shorter.evidence.len() - 1));
        json = to_json(&shorter);
    }
    json
}

/// Plain data of strings and numbers always has a JSON form.
fn to_json<T: serde::Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}
