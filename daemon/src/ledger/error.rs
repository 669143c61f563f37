//! What can go wrong in the ledger.

use std::{io, path::PathBuf, sync::Arc};

use nix::errno::Errno;

use super::kv;
use crate::model::{JobId, RowIx};

/// Why the ledger did not do what it was asked. Cheap to clone: everybody in a group gets the same one.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no room, or none that may be used. Nothing was recorded; the same request succeeds once there is room.
    #[error("{} cannot take more: {problem}", path.display())]
    DiskFull {
        /// What was to be written.
        path: PathBuf,
        /// What is in the way and what helps.
        problem: String,
    },
    /// A file could not be read or written.
    #[error("cannot {action}")]
    Io {
        /// What was tried, with the path: "read /…/spec.json".
        action: String,
        /// Why not.
        source: Arc<io::Error>,
    },
    /// The key-value store failed. It is opened again with the next request.
    #[error("cannot {action} the ledger in {}", path.display())]
    Store {
        /// What was tried: "open", "write to".
        action: &'static str,
        /// The store's directory.
        path: PathBuf,
        /// Why not.
        source: kv::Error,
    },
    /// A newer version of this program wrote the ledger.
    #[error(
        "the ledger in {} has format {found} and this clusterd knows formats up to {supported}: \
         start the newer version again, or give this one another state directory",
        path.display()
    )]
    NewerFormat {
        /// The store's directory.
        path: PathBuf,
        /// The format found.
        found: u32,
        /// The newest one known here.
        supported: u32,
    },
    /// A file is not what was written.
    #[error("{} is damaged: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// No such job.
    #[error("there is no job {job} in the ledger")]
    UnknownJob {
        /// The job asked for.
        job: JobId,
    },
    /// No such row.
    #[error("job {job} has {rows_total} rows: there is no row {row}")]
    UnknownRow {
        /// The job.
        job: JobId,
        /// The row asked for, from 0.
        row: RowIx,
        /// How many rows the job has.
        rows_total: u32,
    },
    /// A job of this number exists.
    #[error("there is a job {job} in the ledger already")]
    JobExists {
        /// The number.
        job: JobId,
    },
    /// A value is larger than what is kept.
    #[error("{what} takes {bytes} bytes in the ledger and at most {max_bytes} are kept")]
    TooLarge {
        /// What it is.
        what: String,
        /// Its size.
        bytes: usize,
        /// The bound.
        max_bytes: usize,
    },
    /// The writer did not answer for ten minutes. Whether the request was done is not
    /// known, and only a new process can find out: the store may have locked itself up.
    #[error(
        "the ledger has not answered for {waited_s} s: start clusterd again; nothing acknowledged is lost by that"
    )]
    Stuck {
        /// How long it was waited for.
        waited_s: u64,
    },
    /// The ledger was shut down, or its writer is gone.
    #[error("the ledger is closed")]
    Closed,
}

impl Error {
    /// Whether room on the disk would help. Work may be tried again without anything else being done.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::DiskFull { .. } => true,
            Self::Store { source: kv::Error::Io(error), .. } => is_no_room(error),
            _ => false,
        }
    }

    /// Whether only ending the process helps.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        matches!(self, Self::Stuck { .. })
    }

    /// The error for a failed file operation: `verb` and `path` make the sentence.
    pub(crate) fn io(verb: &str, path: PathBuf, source: io::Error) -> Self {
        match no_room_problem(&source) {
            Some(problem) => Self::DiskFull { path, problem },
            None => Self::Io { action: format!("{verb} {}", path.display()), source: Arc::new(source) },
        }
    }
}

/// Whether an I/O error says that there is no room to write.
pub(crate) fn is_no_room(error: &io::Error) -> bool {
    no_room_problem(error).is_some()
}

/// The sentence for errors that mean "no room": a full device, a used-up quota, a read-only file system (which a Linux
/// kernel makes of a file system it no longer trusts).
pub(crate) fn no_room_problem(error: &io::Error) -> Option<String> {
    let raw = error.raw_os_error();
    let is = |errno: Errno| raw == Some(errno as i32);
    // sled wraps errors and loses the number, never the kind.
    match error.kind() {
        _ if is(Errno::EDQUOT) => {
            Some("the disk quota is used up; free some space or raise the quota".into())
        }
        io::ErrorKind::StorageFull => Some("no space is left on the device; free some space".into()),
        io::ErrorKind::QuotaExceeded => {
            Some("the disk quota is used up; free some space or raise the quota".into())
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            Some("the file system is read-only; look for disk errors, then mount it writable".into())
        }
        _ => None,
    }
}

/// A number of bytes for a person.
pub(crate) fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut value, mut unit) = (bytes as f64, "bytes");
    for next in UNITS {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    if value.fract() == 0.0 || value >= 100.0 {
        format!("{value:.0} {unit}")
    } else {
        format!("{value:.1} {unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_a_full_disk_are_told_from_others() {
        for errno in [Errno::ENOSPC, Errno::EDQUOT, Errno::EROFS] {
            let error =
                Error::io("write", "/x/results.jsonl".into(), io::Error::from_raw_os_error(errno as i32));
            assert!(error.is_disk_full(), "{errno}");
            assert!(error.to_string().starts_with("/x/results.jsonl cannot take more: "), "{error}");
        }
        let error =
            Error::io("write", "/x/results.jsonl".into(), io::Error::from_raw_os_error(Errno::EIO as i32));
        assert!(!error.is_disk_full());
        assert_eq!(error.to_string(), "cannot write /x/results.jsonl");
    }

    #[test]
    fn bytes_read_like_sizes() {
        assert_eq!(human_bytes(17), "17 bytes");
        assert_eq!(human_bytes(16 << 20), "16 MiB");
        assert_eq!(human_bytes(1536), "1.5 KiB");
        assert_eq!(human_bytes(268_435_456), "256 MiB");
    }
}
