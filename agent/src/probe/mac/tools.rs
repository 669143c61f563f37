//! Tools of the system: run by absolute path, without a shell, with a bound on time and on what they say.
//!
//! A tool that does not answer is a finding of its own (FIELD-NOTES 5): it is ended, and said to hang. One that cannot be ended,
//! because it hangs in the kernel, is not started a second time.

use std::{
    collections::BTreeMap,
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

/// Where macOS keeps its tools. Nobody can put another one there while the system's volume is sealed.
const SYSTEM_DIRS: [&str; 4] = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"];

/// What a tool may say: the longest answer, `system_profiler` of a Mac with every receptacle in use, has some 50 kB.
const MOST_OUTPUT_BYTES: usize = 4 << 20;

/// What is kept of what a tool complains of.
const MOST_COMPLAINT_CHARS: usize = 300;

/// Its output has ended, or it was ended: it is gone after this, or hangs in the kernel.
const END_WITHIN: Duration = Duration::from_millis(500);

/// From one look at a process to the next.
const LOOK_PAUSE: Duration = Duration::from_millis(5);

/// Why a tool gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is in none of the system's directories.
    #[error("this system has no {tool}")]
    Missing {
        /// Its name.
        tool: String,
    },
    /// It gave no answer in time.
    #[error("{tool} does not answer: it was given {limit_ms} ms")]
    Hangs {
        /// Its name.
        tool: String,
        /// What it was given.
        limit_ms: u64,
    },
    /// It was ended for want of an answer, and has not gone: nothing but a reboot ends it.
    #[error("{tool} hangs in the kernel, and is not started again while it does")]
    Stuck {
        /// Its name.
        tool: String,
    },
    /// It ended with an error.
    #[error("{tool} ended with {status}{}", complaint(said))]
    Failed {
        /// Its name.
        tool: String,
        /// Exit code or signal.
        status: String,
        /// The beginning of what it complained of.
        said: String,
    },
    /// It says more than any answer has.
    #[error("{tool} says more than {MOST_OUTPUT_BYTES} bytes")]
    Endless {
        /// Its name.
        tool: String,
    },
    /// It cannot be started.
    #[error("{tool} cannot be run: {problem}")]
    NotRun {
        /// Its name.
        tool: String,
        /// What the system said.
        problem: String,
    },
}

fn complaint(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(": {said}") }
}

impl Error {
    /// Whether it did not answer at all.
    #[must_use]
    pub fn is_hang(&self) -> bool {
        matches!(self, Self::Hangs { .. } | Self::Stuck { .. })
    }
}

/// The tools of a system.
#[derive(Debug)]
pub struct Tools {
    dirs: Vec<PathBuf>,
    /// Those that were ended and did not go, by name.
    stuck: BTreeMap<String, Child>,
}

impl Tools {
    /// Those that came with macOS.
    #[must_use]
    pub fn system() -> Self {
        Self::in_dirs(SYSTEM_DIRS.map(PathBuf::from).to_vec())
    }

    /// Those in these directories, of which the first that has one counts.
    #[must_use]
    pub fn in_dirs(dirs: Vec<PathBuf>) -> Self {
        Self { dirs, stuck: BTreeMap::new() }
    }

    /// What a tool prints. Blocks for `limit` and a moment at the most.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn ask(&mut self, tool: &str, arguments: &[&str], limit: Duration) -> Result<String, Error> {
        let mut child = self.spawn(tool, arguments, Stdio::piped)?;
        let deadline = Instant::now() + limit;
        let listened = listen(&mut child, deadline);
        let status = match &listened {
            Ok(_) => wait(&mut child, deadline.max(Instant::now() + END_WITHIN)),
            Err(_) => None,
        };
        let Some(status) = status else {
            self.end(tool, child);
            return Err(match listened {
                Err(Deaf::Endless) => Error::Endless { tool: tool.to_owned() },
                Err(Deaf::Failed(errno)) => not_run(tool, &errno.into()),
                Ok(_) | Err(Deaf::TimeOut) => hangs(tool, limit),
            });
        };
        let (output, complaints) = listened.unwrap_or_default();
        if !status.success() {
            let said = String::from_utf8_lossy(&complaints);
            let said = said.trim().chars().take(MOST_COMPLAINT_CHARS).collect();
            return Err(Error::Failed { tool: tool.to_owned(), status: describe(status), said });
        }
        Ok(String::from_utf8_lossy(&output).into_owned())
    }

    /// Runs a tool of which nothing is asked but that it does something. Nobody listens to it, so that what it leaves behind to do it
    /// may say what it likes for as long as it likes.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn order(&mut self, tool: &str, arguments: &[&str], limit: Duration) -> Result<(), Error> {
        let mut child = self.spawn(tool, arguments, Stdio::null)?;
        let Some(status) = wait(&mut child, Instant::now() + limit) else {
            self.end(tool, child);
            return Err(hangs(tool, limit));
        };
        if status.success() {
            return Ok(());
        }
        Err(Error::Failed { tool: tool.to_owned(), status: describe(status), said: String::new() })
    }

    fn spawn(&mut self, tool: &str, arguments: &[&str], output: fn() -> Stdio) -> Result<Child, Error> {
        if let Some(child) = self.stuck.get_mut(tool) {
            if matches!(child.try_wait(), Ok(None)) {
                return Err(Error::Stuck { tool: tool.to_owned() });
            }
            self.stuck.remove(tool);
        }
        let path = self.dirs.iter().map(|dir| dir.join(tool)).find(|path| path.is_file());
        let path = path.ok_or_else(|| Error::Missing { tool: tool.to_owned() })?;
        Command::new(path)
            .args(arguments)
            .env_clear()
            .env("PATH", SYSTEM_DIRS.join(":"))
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(output())
            .stderr(output())
            .process_group(0)
            .spawn()
            .map_err(|error| not_run(tool, &error))
    }

    /// One that cannot be ended hangs in the kernel: it is not run again while it does.
    fn end(&mut self, tool: &str, mut child: Child) {
        end(&mut child);
        if wait(&mut child, Instant::now() + END_WITHIN).is_none() {
            self.stuck.insert(tool.to_owned(), child);
        }
    }
}

fn not_run(tool: &str, error: &io::Error) -> Error {
    Error::NotRun { tool: tool.to_owned(), problem: error.to_string() }
}

fn hangs(tool: &str, limit: Duration) -> Error {
    Error::Hangs { tool: tool.to_owned(), limit_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX) }
}

impl Drop for Tools {
    fn drop(&mut self) {
        for child in self.stuck.values_mut() {
            let _ = child.try_wait();
        }
    }
}

enum Deaf {
    TimeOut,
    Endless,
    Failed(Errno),
}

/// Output and complaints, until both have ended.
fn listen(child: &mut Child, deadline: Instant) -> Result<(Vec<u8>, Vec<u8>), Deaf> {
    let (mut output, mut complaints) = (Vec::new(), Vec::new());
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    while stdout.is_some() || stderr.is_some() {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        if left.is_zero() {
            return Err(Deaf::TimeOut);
        }
        let fds: Vec<BorrowedFd<'_>> =
            stdout.iter().map(AsFd::as_fd).chain(stderr.iter().map(AsFd::as_fd)).collect();
        let mut polled: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        match poll(&mut polled, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Deaf::Failed(errno)),
        }
        let mut ready = polled.iter().map(|fd| fd.revents().is_some_and(|events| !events.is_empty()));
        let stdout_ready = stdout.is_some() && ready.next() == Some(true);
        let stderr_ready = stderr.is_some() && ready.next() == Some(true);
        drop(polled);
        if stdout_ready && !read_some(&mut stdout, &mut output) {
            stdout = None;
        }
        if stderr_ready && !read_some(&mut stderr, &mut complaints) {
            stderr = None;
        }
        if output.len() > MOST_OUTPUT_BYTES || complaints.len() > MOST_OUTPUT_BYTES {
            return Err(Deaf::Endless);
        }
    }
    Ok((output, complaints))
}

/// Takes what is there. Returns whether more may come.
fn read_some(from: &mut Option<impl Read>, into: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 8_192];
    let Some(from) = from else { return false };
    match from.read(&mut buffer) {
        Ok(0) => false,
        Ok(read) => {
            into.extend_from_slice(&buffer[..read]);
            true
        }
        Err(error) => error.kind() == io::ErrorKind::Interrupted,
    }
}

fn wait(child: &mut Child, until: Instant) -> Option<ExitStatus> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < until => thread::sleep(LOOK_PAUSE),
            Ok(None) | Err(_) => return None,
        }
    }
}

/// With all that it has started.
fn end(child: &mut Child) {
    if let Ok(group) = i32::try_from(child.id()) {
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown status".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use tempfile::TempDir;

    use super::*;

    const AMPLE: Duration = Duration::from_secs(60);

    /// A directory of tools, each a script.
    fn tools(scripts: &[(&str, &str)]) -> (TempDir, Tools) {
        let dir = tempfile::tempdir().unwrap();
        for (name, script) in scripts {
            put(dir.path(), name, script);
        }
        let tools = Tools::in_dirs(vec![dir.path().to_owned()]);
        (dir, tools)
    }

    fn put(dir: &Path, name: &str, script: &str) {
        crate::scripts::write(&dir.join(name), script);
    }

    #[test]
    fn a_tool_is_given_its_arguments_and_no_environment_of_ours() {
        let (_dir, mut tools) =
            tools(&[("echoes", "echo \"$1|$2|$#\"; env | sed 's/=.*//' | sort | tr '\\n' ' '")]);
        let said = tools.ask("echoes", &["a b", "$HOME; true"], AMPLE).unwrap();
        let (arguments, environment) = said.split_once('\n').unwrap();
        assert_eq!(arguments, "a b|$HOME; true|2");
        assert!(
            environment
                .split(' ')
                .all(|name| matches!(name, "" | "LC_ALL" | "PATH" | "PWD" | "SHLVL" | "_" | "OLDPWD")),
            "{environment}"
        );
    }

    #[test]
    fn what_a_tool_complains_of_is_told() {
        let (_dir, mut tools) =
            tools(&[("fails", "echo half; echo 'must be root' >&2; exit 3"), ("dies", "kill -9 $$")]);
        let failed = tools.ask("fails", &[], AMPLE).unwrap_err();
        assert_eq!(failed.to_string(), "fails ended with exit code 3: must be root");
        assert_eq!(tools.ask("dies", &[], AMPLE).unwrap_err().to_string(), "dies ended with signal 9");
        let missing = tools.ask("ibv_devinfo", &[], AMPLE).unwrap_err();
        assert_eq!(missing, Error::Missing { tool: "ibv_devinfo".to_owned() });
    }

    #[test]
    fn a_tool_that_hangs_is_ended_with_what_it_has_started() {
        let (dir, mut tools) =
            tools(&[("hangs", "sleep 1000 & echo $! > \"${0%/*}/pid\"; echo begun; wait")]);
        let hung = tools.ask("hangs", &[], Duration::from_millis(500)).unwrap_err();
        assert_eq!(hung, Error::Hangs { tool: "hangs".to_owned(), limit_ms: 500 });
        assert!(hung.is_hang());
        let pid: i32 = fs::read_to_string(dir.path().join("pid")).unwrap().trim().parse().unwrap();
        let gone_by = Instant::now() + AMPLE;
        while crate::sys::process_start(pid as u32).is_some() {
            assert!(Instant::now() < gone_by, "its child lives on");
            thread::sleep(LOOK_PAUSE);
        }
        assert!(tools.stuck.is_empty(), "it could be ended, and may be started again");
    }

    /// Closing its output is no answer.
    #[test]
    fn a_tool_that_goes_on_after_its_answer_is_ended_too() {
        let (_dir, mut tools) = tools(&[("lingers", "echo said; exec >&- 2>&-; sleep 1000")]);
        assert!(tools.ask("lingers", &[], Duration::from_millis(200)).unwrap_err().is_hang());
    }

    #[test]
    fn a_tool_that_cannot_be_ended_is_not_started_again() {
        let (dir, mut tools) = tools(&[("stuck", "echo started >> \"${0%/*}/starts\"")]);
        // As far as it is seen from here, one that hangs in the kernel does not end.
        let endless = Command::new("sleep").arg("1000").process_group(0).spawn().unwrap();
        tools.stuck.insert("stuck".to_owned(), endless);
        let error = tools.ask("stuck", &[], AMPLE).unwrap_err();
        assert_eq!(error, Error::Stuck { tool: "stuck".to_owned() });
        assert!(!dir.path().join("starts").exists());
        let child = tools.stuck.get_mut("stuck").unwrap();
        end(child);
        child.wait().unwrap();
        assert!(tools.ask("stuck", &[], AMPLE).is_ok(), "and is when it has ended after all");
    }

    #[test]
    fn a_tool_that_never_ends_to_speak_is_cut_off() {
        let (_dir, mut tools) = tools(&[("talks", "exec yes"), ("complains", "exec yes >&2")]);
        for tool in ["talks", "complains"] {
            assert_eq!(tools.ask(tool, &[], AMPLE).unwrap_err(), Error::Endless { tool: tool.to_owned() });
        }
    }

    /// It is not disturbed, either: it could not write to a pipe that nobody holds.
    #[test]
    fn what_a_tool_leaves_behind_does_not_keep_it_and_may_go_on_writing() {
        let script = "dir=\"${0%/*}\"; \
            (until [ -e \"$dir/go\" ]; do echo on; echo on >&2; sleep 0.02; done; echo done > \"$dir/done\") &";
        let (dir, mut tools) = tools(&[("leaves", script)]);
        assert_eq!(tools.order("leaves", &[], AMPLE), Ok(()));
        assert!(!dir.path().join("done").exists());
        fs::write(dir.path().join("go"), "").unwrap();
        let done_by = Instant::now() + AMPLE;
        while !dir.path().join("done").exists() {
            assert!(Instant::now() < done_by, "it was ended with the tool");
            thread::sleep(LOOK_PAUSE);
        }
    }

    #[test]
    fn of_a_tool_that_is_given_an_order_its_end_is_told() {
        let (dir, mut tools) = tools(&[
            ("does", "echo \"$1|$2|$#\" > \"${0%/*}/done\"; exec yes | head -c 1000000"),
            ("fails", "echo 'must be root' >&2; exit 3"),
        ]);
        assert_eq!(tools.order("does", &["a b", "c"], AMPLE), Ok(()));
        assert_eq!(fs::read_to_string(dir.path().join("done")).unwrap(), "a b|c|2\n");
        let failed = tools.order("fails", &[], AMPLE).unwrap_err();
        assert_eq!(failed.to_string(), "fails ended with exit code 3");
        let missing = tools.order("absent", &[], AMPLE).unwrap_err();
        assert_eq!(missing, Error::Missing { tool: "absent".to_owned() });
    }

    #[test]
    fn a_tool_that_hangs_over_an_order_is_ended() {
        let (_dir, mut tools) = tools(&[("hangs", "exec sleep 1000")]);
        let hung = tools.order("hangs", &[], Duration::from_millis(200)).unwrap_err();
        assert_eq!(hung, Error::Hangs { tool: "hangs".to_owned(), limit_ms: 200 });
        assert!(tools.stuck.is_empty(), "it could be ended, and may be run again");
    }

    #[test]
    fn a_long_answer_is_whole() {
        let (_dir, mut tools) = tools(&[("long", "seq 1 200000; echo noise >&2")]);
        let said = tools.ask("long", &[], AMPLE).unwrap();
        assert_eq!((said.lines().count(), said.lines().last()), (200_000, Some("200000")));
    }
}
