//! The directory of a job: what lies where, and the two small files that let it stand without the ledger.
//!
//! ```text
//! jobs/j7/spec.json      what was asked; never changes
//!         state.json     the job's record, as of its last change of state; there once the job was accepted
//!         input.jsonl    the rows
//!         input.idx      where they begin
//!         results.jsonl  answers
//!         errors.jsonl   rows that ended in an error
//! jobs/.incoming-3/      a submission not yet accepted
//! ```

use std::io;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    disk::{self, Disk},
    input,
};
use crate::model::{JobId, JobRecord, JobSpec, Work};

/// The directory that holds the jobs'.
pub(crate) const JOBS: &str = "jobs";

/// What the name of a submission in progress starts with.
pub(crate) const INCOMING_PREFIX: &str = ".incoming-";

const SPEC: &str = "spec.json";
const STATE: &str = "state.json";

/// `spec.json` and `state.json` are a few kilobytes; something much larger is not ours.
const SMALL_FILE_BYTES_MAX: u64 = 4 << 20;

/// Paths of a job's files, made once.
#[derive(Clone, Debug)]
pub(crate) struct JobFiles {
    pub(crate) directory: String,
    pub(crate) results: String,
    pub(crate) errors: String,
    pub(crate) input: String,
    pub(crate) index: String,
}

impl JobFiles {
    pub(crate) fn new(job: JobId) -> Self {
        let directory = format!("{JOBS}/{job}");
        Self {
            results: format!("{directory}/results.jsonl"),
            errors: format!("{directory}/errors.jsonl"),
            input: format!("{directory}/{}", input::INPUT),
            index: format!("{directory}/{}", input::INDEX),
            directory,
        }
    }
}

/// A job's record with the number of its version, so that of two copies the newer one is known.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct StoredJob {
    /// Grows by one with every change.
    pub(crate) revision: u64,
    pub(crate) record: JobRecord,
}

/// `spec.json`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct SpecFile {
    pub(crate) id: JobId,
    pub(crate) rows_total: u32,
    pub(crate) created_unix_ms: u64,
    pub(crate) spec: JobSpec,
}

/// Whether the two differ in something worth a write of `state.json`. Counters are not: they follow the ledger only.
pub(crate) fn differs_in_state(a: &JobRecord, b: &JobRecord) -> bool {
    let plain = |record: &JobRecord| JobRecord {
        rows_requeued: 0,
        duplicate_results: 0,
        crashes: Vec::new(),
        work: Work::default(),
        ..record.clone()
    };
    plain(a) != plain(b)
}

/// The number of a job's directory.
pub(crate) fn parse_directory_name(name: &str) -> Option<JobId> {
    name.parse::<JobId>().ok().filter(|job| job.to_string() == name)
}

/// A small file of a job's directory.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Small<T> {
    Missing,
    /// There is something, and it cannot be read.
    Unreadable,
    Read(T),
}

impl<T> Small<T> {
    pub(crate) fn read(self) -> Option<T> {
        match self {
            Self::Read(value) => Some(value),
            Self::Missing | Self::Unreadable => None,
        }
    }
}

pub(crate) fn read_state(disk: &mut impl Disk, directory: &str) -> io::Result<Small<StoredJob>> {
    read_json(disk, &format!("{directory}/{STATE}"))
}

pub(crate) fn read_spec(disk: &mut impl Disk, directory: &str) -> io::Result<Small<SpecFile>> {
    read_json(disk, &format!("{directory}/{SPEC}"))
}

/// Replaces `state.json`; durable on return.
pub(crate) fn write_state(disk: &mut impl Disk, directory: &str, job: &StoredJob) -> io::Result<()> {
    let mut json = serde_json::to_vec_pretty(job)?;
    json.push(b'\n');
    disk::replace(disk, directory, STATE, &json)
}

/// Completes a submission's directory with what a job's directory has from the start; durable on return.
pub(crate) fn complete_staging(disk: &mut impl Disk, directory: &str, record: &JobRecord) -> io::Result<()> {
    let spec = SpecFile {
        id: record.id,
        rows_total: record.rows_total,
        created_unix_ms: record.created_unix_ms,
        spec: record.spec.clone(),
    };
    let mut json = serde_json::to_vec_pretty(&spec)?;
    json.push(b'\n');
    for (name, content) in [(SPEC, json.as_slice()), ("results.jsonl", b""), ("errors.jsonl", b"")] {
        let path = format!("{directory}/{name}");
        disk.write_new(&path, content)?;
        disk.sync_file(&path)?;
    }
    disk.sync_directory(directory)
}

fn read_json<T: DeserializeOwned>(disk: &mut impl Disk, path: &str) -> io::Result<Small<T>> {
    if disk.file_bytes(path)?.is_none() {
        return Ok(Small::Missing);
    }
    let parsed = disk::read_small(disk, path, SMALL_FILE_BYTES_MAX)
        .ok()
        .and_then(|content| serde_json::from_slice(&content).ok());
    Ok(parsed.map_or(Small::Unreadable, Small::Read))
}
