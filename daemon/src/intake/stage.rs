//! The staging directory: `jobs/.incoming-<n>/` with `input.jsonl` and `input.idx`.

use std::{
    fs::{self, File},
    io::{self, BufWriter, ErrorKind, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    ledger::{
        INCOMING_PREFIX, INDEX, INPUT, IndexWriter, JOBS, free_bytes, human_bytes, no_room_problem,
        sync_directory, sync_file,
    },
    model::RowLengths,
};

/// Written at a time.
const BUFFER_BYTES: usize = 256 * 1024;

/// How often the free space is looked at.
const ROOM_CHECK_BYTES: u64 = 16 << 20;

/// Numbers staging directories of this process; left ones of others are stepped over.
static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);

/// Why a submission could not be taken in, through no fault of its own.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no room for it. Nothing was kept.
    #[error("the submission does not fit on the disk that holds {}: {problem}", path.display())]
    DiskFull {
        /// Where it was to be written.
        path: PathBuf,
        /// What is in the way and what helps.
        problem: String,
    },
    /// It could not be written.
    #[error("the submission cannot be written to {}", path.display())]
    Io {
        /// Where to.
        path: PathBuf,
        /// Why not.
        source: Arc<io::Error>,
    },
}

impl Error {
    /// Whether room on the disk would help.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::DiskFull { .. })
    }
}

/// A staging directory; removed when dropped unless kept.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    is_kept: bool,
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "a submission's files could not be removed");
            }
            _ => {}
        }
    }
}

/// A submission that passed, durable on disk and not yet a job. Removed when dropped.
#[derive(Debug)]
pub struct Staged {
    /// How many rows it has.
    pub rows_total: u32,
    /// How many bytes its input has.
    pub bytes: u64,
    /// How long its rows are.
    pub lengths: RowLengths,
    directory: Directory,
}

impl Staged {
    /// Its directory's name in `jobs/`.
    pub(crate) fn directory_name(&self) -> String {
        self.directory.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// It became a job: the directory has another name now.
    pub(crate) fn keep(&mut self) {
        self.directory.is_kept = true;
    }
}

/// Writes rows and their index.
#[derive(Debug)]
pub(crate) struct Stage {
    input: BufWriter<File>,
    index: IndexWriter<BufWriter<File>>,
    bytes: u64,
    room_checked_at: u64,
    rows: u32,
    disk_reserve_bytes: u64,
    directory: Directory,
}

impl Stage {
    pub(crate) fn begin(state_dir: &Path, disk_reserve_bytes: u64) -> Result<Self, Error> {
        let jobs = state_dir.join(JOBS);
        let failed = |error| failed(&jobs, error);
        fs::create_dir_all(&jobs).map_err(failed)?;
        check_room(&jobs, 0, disk_reserve_bytes)?;
        let path = make_directory(&jobs).map_err(failed)?;
        let directory = Directory { path, is_kept: false };
        let create = |name: &str| {
            File::create_new(directory.path.join(name))
                .map(|file| BufWriter::with_capacity(BUFFER_BYTES, file))
        };
        let input = create(INPUT).map_err(failed)?;
        let index = create(INDEX).and_then(IndexWriter::begin).map_err(failed)?;
        Ok(Self { input, index, bytes: 0, room_checked_at: 0, rows: 0, disk_reserve_bytes, directory })
    }

    /// Adds a line that has no line break.
    pub(crate) fn push(&mut self, line: &[u8]) -> Result<(), Error> {
        self.index
            .push(self.bytes)
            .and_then(|()| self.input.write_all(line))
            .and_then(|()| self.input.write_all(b"\n"))
            .map_err(|error| failed(&self.directory.path, error))?;
        self.bytes += line.len() as u64 + 1;
        self.rows += 1;
        if self.bytes - self.room_checked_at >= ROOM_CHECK_BYTES {
            self.room_checked_at = self.bytes;
            check_room(&self.directory.path, 0, self.disk_reserve_bytes)?;
        }
        Ok(())
    }

    /// Makes it durable.
    pub(crate) fn finish(mut self, lengths: RowLengths) -> Result<Staged, Error> {
        let path = self.directory.path.clone();
        let finish = || {
            self.index.push(self.bytes)?;
            sync_file(&self.input.into_inner()?)?;
            sync_file(&self.index.finish()?.into_inner()?)?;
            sync_directory(&path)
        };
        finish().map_err(|error| failed(&path, error))?;
        Ok(Staged { rows_total: self.rows, bytes: self.bytes, lengths, directory: self.directory })
    }
}

fn make_directory(jobs: &Path) -> io::Result<PathBuf> {
    loop {
        let number = NEXT_NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = jobs.join(format!("{INCOMING_PREFIX}{number}"));
        match fs::create_dir(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            outcome => return outcome.map(|()| path),
        }
    }
}

fn check_room(path: &Path, bytes: u64, keep_bytes: u64) -> Result<(), Error> {
    let free = free_bytes(path).map_err(|error| failed(path, error))?;
    if free >= keep_bytes.saturating_add(bytes) {
        return Ok(());
    }
    let problem = format!(
        "{} are free, of which {} are kept in reserve; free some space",
        human_bytes(free),
        human_bytes(keep_bytes)
    );
    Err(Error::DiskFull { path: path.to_owned(), problem })
}

fn failed(path: &Path, error: io::Error) -> Error {
    match no_room_problem(&error) {
        Some(problem) => Error::DiskFull { path: path.to_owned(), problem },
        None => Error::Io { path: path.to_owned(), source: Arc::new(error) },
    }
}
