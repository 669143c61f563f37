//! Builds the runtime: finds an interpreter, makes a virtual environment, has pip fill it, imports the result, and only
//! then marks it as ready.
//!
//! Only one installation of a directory runs at a time (a lock beside it); a second waits and finds the work done.
//! What was broken off is removed and done again from the start: a half-filled environment is never built upon.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader},
    process::Command,
};

use super::{
    check, interpreter,
    marker::{self, Kind, Marker},
    python::{self, Python},
    requirements,
};

/// For pip as a whole: 350 MB (FIELD-NOTES 1) over a line of 1 Mbit/s.
const PIP_LIMIT: Duration = Duration::from_secs(60 * 60);

/// For `python -m venv`: 2 s where nothing else runs.
const VENV_LIMIT: Duration = Duration::from_secs(5 * 60);

/// pip's last lines shown when it fails: enough for its error and the hint above it.
const TAIL_LINES: usize = 12;

/// A longer line of pip is cut.
const MAX_LINE_BYTES: u64 = 16 * 1024;

/// Variables by which pip would install somewhere else.
const MISLEADING: [&str; 8] = [
    "PIP_TARGET",
    "PIP_PREFIX",
    "PIP_ROOT",
    "PIP_USER",
    "PIP_REQUIREMENT",
    "PYTHONHOME",
    "PYTHONPATH",
    "VIRTUAL_ENV",
];

/// Why there is no runtime now.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No interpreter.
    #[error(transparent)]
    Python(#[from] python::Error),
    /// Somebody's own files are there.
    #[error(
        "{} holds files that cluster-agent did not put there, and it is no fit runtime ({problem}). Choose another \
         --runtime-dir, or empty this one",
        dir.display()
    )]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// What the check said.
        problem: String,
    },
    /// A step's command failed.
    #[error("{step} failed ({status}). Its last lines:\n{}", indent(tail))]
    Step {
        /// Which.
        step: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The end of its output.
        tail: Vec<String>,
    },
    /// A step took too long.
    #[error("{step} did not end within {limit_s} s and was stopped")]
    TooLong {
        /// Which.
        step: &'static str,
        /// Its limit.
        limit_s: u64,
    },
    /// Everything is installed and does not work.
    #[error("the runtime was installed but is not fit: {0}")]
    Unfit(String),
    /// The file system or the process table says no.
    #[error("cannot {what}")]
    Io {
        /// Doing what.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was there already.
    AlreadyReady(check::Status),
    /// It was made.
    Installed(check::Status),
}

/// Makes sure that there is a fit runtime in `dir`. `progress` is called with a sentence at each step.
///
/// # Errors
/// What went wrong and what to do; nothing half-done is left then.
pub async fn install(
    dir: &Path,
    named: Option<&Path>,
    progress: &mut dyn FnMut(&str),
) -> Result<Outcome, Error> {
    let _lock = lock(dir, progress).await?;
    match marker::kind(dir).map_err(io_error(|| format!("read {}", dir.display())))? {
        Kind::Vacant => {}
        Kind::Ready(found) if found.requirements_hash == requirements::hash() => {
            let status = check::glance(dir, None).await;
            if status.ready {
                progress(&format!("the runtime in {} is ready", dir.display()));
                return Ok(Outcome::AlreadyReady(status));
            }
            progress(&format!("the runtime is not fit any more ({}); making it again", said(&status)));
        }
        Kind::Ready(_) => progress("the runtime was made from other requirements; making it again"),
        Kind::Broken => progress("an earlier installation was broken off; starting again"),
        Kind::Foreign => {
            progress(&format!("{} was not made by cluster-agent; looking whether it is fit", dir.display()));
            let status = check::check(dir).await;
            if status.ready {
                return Ok(Outcome::AlreadyReady(status));
            }
            return Err(Error::Foreign { dir: dir.to_owned(), problem: said(&status) });
        }
    }
    let python = python::find(named, &python::search_dirs()).await?;
    match build(dir, &python, progress).await {
        Ok(status) => Ok(Outcome::Installed(status)),
        Err(error) => {
            if let Err(left) = marker::remove(dir) {
                progress(&format!("{} could not be removed: {left}", dir.display()));
            }
            Err(error)
        }
    }
}

async fn build(dir: &Path, python: &Python, progress: &mut dyn FnMut(&str)) -> Result<check::Status, Error> {
    let writing = || format!("write to {}", dir.display());
    if dir.exists() {
        marker::remove(dir).map_err(io_error(|| format!("remove {}", dir.display())))?;
    }
    marker::begin(dir).map_err(io_error(writing))?;

    progress(&format!(
        "making a virtual environment in {} with Python {} ({})",
        dir.display(),
        python.version,
        python.path.display()
    ));
    let mut venv = command(&python.path);
    venv.args(["-E", "-s", "-m", "venv"]).arg(dir);
    run("python -m venv", venv, VENV_LIMIT, &mut |_| {}).await.map_err(|error| hint_venv(error, python))?;

    let list = dir.join("requirements.txt");
    fs::write(&list, requirements::TEXT).map_err(io_error(writing))?;
    let count = requirements::package_count();
    progress(&format!("fetching {count} packages, some 350 MB"));
    let mut pip = command(&interpreter(dir));
    pip.args(["-E", "-m", "pip", "install", "--no-input", "--progress-bar", "off"]);
    pip.args(["--disable-pip-version-check", "--requirement"]).arg(&list);
    let mut seen = 0;
    run("pip install", pip, PIP_LIMIT, &mut |line| {
        if let Some(words) = pip_progress(line, count, &mut seen) {
            progress(&words);
        }
    })
    .await?;

    progress("importing MLX for the first time");
    let status = check::check(dir).await;
    if !status.ready {
        return Err(Error::Unfit(said(&status)));
    }
    let made = Marker {
        requirements_hash: requirements::hash(),
        python_version: status.python_version.clone().unwrap_or_default(),
        mlx_version: status.mlx_version.clone().unwrap_or_default(),
        mlx_lm_version: status.mlx_lm_version.clone().unwrap_or_default(),
    };
    marker::finish(dir, &made).map_err(io_error(writing))?;
    Ok(status)
}

/// The lock is beside the directory, because the directory itself may have to go.
async fn lock(dir: &Path, progress: &mut dyn FnMut(&str)) -> Result<File, Error> {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(".lock");
    let path = dir.with_file_name(name);
    let locking = || format!("lock {}", path.display());
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(io_error(|| format!("make {}", parent.display())))?;
    }
    let file = File::create(&path).map_err(io_error(locking))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(source)) => return Err(Error::Io { what: locking(), source }),
    }
    progress("another installation is under way; waiting for it");
    let waited = tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await;
    waited.map_err(io::Error::other).and_then(|locked| locked).map_err(io_error(locking))
}

fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for name in MISLEADING {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Runs a command, handing each line of its output to `each`, and keeps the last ones for the error.
async fn run(
    step: &'static str,
    mut command: Command,
    limit: Duration,
    each: &mut dyn FnMut(&str),
) -> Result<(), Error> {
    let failed = || format!("run {step}");
    let mut child = command.spawn().map_err(io_error(failed))?;
    let (mut out, mut err) = (lines(child.stdout.take()), lines(child.stderr.take()));
    let mut tail = Vec::new();
    let mut keep = |line: String| {
        each(&line);
        if tail.len() == TAIL_LINES {
            tail.remove(0);
        }
        tail.push(line);
    };
    let reading = async {
        let (mut out_open, mut err_open) = (true, true);
        while out_open || err_open {
            tokio::select! {
                line = out.next(), if out_open => match line { Some(line) => keep(line), None => out_open = false },
                line = err.next(), if err_open => match line { Some(line) => keep(line), None => err_open = false },
            }
        }
        child.wait().await
    };
    let status = tokio::time::timeout(limit, reading)
        .await
        .map_err(|_| Error::TooLong { step, limit_s: limit.as_secs() })?
        .map_err(io_error(failed))?;
    if status.success() { Ok(()) } else { Err(Error::Step { step, status, tail }) }
}

/// Lines of a pipe, cut to a bounded length.
struct Lines<R> {
    pipe: Option<BufReader<R>>,
    partial: Vec<u8>,
}

fn lines<R: AsyncRead + Unpin>(pipe: Option<R>) -> Lines<R> {
    Lines { pipe: pipe.map(BufReader::new), partial: Vec::new() }
}

impl<R: AsyncRead + Unpin> Lines<R> {
    /// The next line without its end; `None` at the end or on an error. Keeps what it has when dropped half-way.
    async fn next(&mut self) -> Option<String> {
        let pipe = self.pipe.as_mut()?;
        let room = MAX_LINE_BYTES.saturating_sub(self.partial.len() as u64);
        let read = pipe.take(room).read_until(b'\n', &mut self.partial).await;
        if !matches!(read, Ok(count) if count > 0) && self.partial.is_empty() {
            self.pipe = None;
            return None;
        }
        let line = std::mem::take(&mut self.partial);
        Some(String::from_utf8_lossy(&line).trim_end().to_owned())
    }
}

/// What to tell of a line of pip's.
fn pip_progress(line: &str, count: usize, seen: &mut usize) -> Option<String> {
    if let Some(rest) = line.strip_prefix("Collecting ") {
        *seen += 1;
        let package = rest.split_whitespace().next().unwrap_or(rest).replace("==", " ");
        return Some(format!("  {:>2} of {count}  {package}", (*seen).min(count)));
    }
    if line.starts_with("Installing collected packages") {
        return Some("unpacking; this takes a while without a word".to_owned());
    }
    None
}

/// Debian's own message is long; ours is the sentence that helps.
fn hint_venv(error: Error, python: &Python) -> Error {
    match &error {
        Error::Step { tail, .. } if tail.iter().any(|line| line.contains("ensurepip")) => {
            python::Error::NoVenv { path: python.path.clone(), version: python.version.clone() }.into()
        }
        _ => error,
    }
}

fn said(status: &check::Status) -> String {
    status.problem.clone().unwrap_or_else(|| "no reason given".to_owned())
}

fn indent(lines: &[String]) -> String {
    lines.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

fn io_error(what: impl FnOnce() -> String) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { what: what(), source }
}

#[cfg(test)]
#[path = "install_tests.rs"]
mod tests;
