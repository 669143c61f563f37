//! Wires `tracing`: lines for a person on stderr, or daily files where the agent runs as a service.

use std::{
    fs,
    io::{self, IsTerminal as _, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use tracing_appender::{
    non_blocking::{NonBlockingBuilder, WorkerGuard},
    rolling::{InitError, RollingFileAppender, Rotation},
};
use tracing_subscriber::{
    EnvFilter, Layer as _, fmt, fmt::MakeWriter, layer::SubscriberExt as _, registry,
    util::SubscriberInitExt as _,
};

use super::store::{LogStore, Source};

/// Two weeks of nights: long enough to look back at the one before the holiday, short enough never to matter on disk.
const MAX_LOG_FILES: usize = 14;

/// Lines that may wait; past it the newest are dropped rather than the agent held up.
const MAX_WAITING_LINES: usize = 4_096;

/// Used when neither the configuration nor `RUST_LOG` says otherwise.
const DEFAULT_FILTER: &str = "info";

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log directory cannot be made.
    #[error("cannot make the log directory {}", dir.display())]
    Make {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The log directory cannot be used.
    #[error("cannot log into {}", dir.display())]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// What the appender said.
        source: InitError,
    },
    /// The filter does not parse.
    #[error("log_filter: {0:?} is not a filter such as \"info\" or \"info,nightshift_agent=debug\"")]
    Filter(String),
    /// Somebody set a subscriber before.
    #[error("logging is set up already")]
    Twice,
}

/// As a service, stderr is a file that nobody rotates and that each failed start writes a line to.
const STDERR_MAX_BYTES: i64 = 1 << 20;

/// Empties the file that stderr is, when it has become too long. What it said is in the log, too, but for the oldest.
fn bound_stderr() {
    let stderr = io::stderr();
    let is_long = nix::sys::stat::fstat(&stderr).is_ok_and(|stat| {
        let kind = nix::sys::stat::SFlag::from_bits_truncate(stat.st_mode);
        kind.contains(nix::sys::stat::SFlag::S_IFREG) && stat.st_size > STDERR_MAX_BYTES
    });
    if is_long {
        // It is as long as before then, and the next start tries again.
        let _ = nix::unistd::ftruncate(&stderr, 0);
    }
}

/// Keeps the thread that writes alive; dropping it writes out what waits.
#[derive(Debug)]
pub struct Guard {
    _writer: WorkerGuard,
}

/// Starts logging, and copies the agent's lines into `store`.
///
/// # Errors
/// When the directory cannot be written or the filter makes no sense.
pub fn init(log_dir: Option<&Path>, filter: Option<&str>, store: &LogStore) -> Result<Guard, Error> {
    if log_dir.is_some() {
        bound_stderr();
    }
    let filter = match filter {
        Some(text) => EnvFilter::try_new(text).map_err(|_| Error::Filter(text.to_owned()))?,
        None => EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER)),
    };
    let ring = fmt::layer()
        .with_ansi(false)
        .without_time()
        .with_writer(RingWriter(Arc::new(store.open("agent", None))))
        .boxed();
    // A terminal that is held or a disk that is slow must not hold the agent up: a thread writes.
    let waiting = NonBlockingBuilder::default().buffered_lines_limit(MAX_WAITING_LINES);
    let (shown, guard) = match log_dir {
        None => {
            let (writer, guard) = waiting.finish(io::stderr());
            let colour = io::stderr().is_terminal();
            (fmt::layer().with_ansi(colour).with_target(false).with_writer(writer).boxed(), guard)
        }
        Some(dir) => {
            // The appender would make it too, and complain on stderr before.
            fs::create_dir_all(dir).map_err(|source| Error::Make { dir: dir.to_owned(), source })?;
            let appender = RollingFileAppender::builder()
                .rotation(Rotation::DAILY)
                .filename_prefix("cluster-agent")
                .filename_suffix("log")
                .max_log_files(MAX_LOG_FILES)
                .build(dir)
                .map_err(|source| Error::Directory { dir: dir.to_owned(), source })?;
            let (writer, guard) = waiting.finish(appender);
            (fmt::layer().with_ansi(false).with_writer(writer).boxed(), guard)
        }
    };
    registry().with(filter).with(vec![shown, ring]).try_init().map_err(|_| Error::Twice)?;
    Ok(Guard { _writer: guard })
}

/// Puts formatted lines into the store.
#[derive(Debug, Clone)]
struct RingWriter(Arc<Source>);

impl Write for RingWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The formatter hands over one event at a time, whole.
        String::from_utf8_lossy(bytes).lines().for_each(|line| self.0.push(line));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for RingWriter {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
