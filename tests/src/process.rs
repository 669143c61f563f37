//! A program a test has started: signals by its number, its end awaited with a bound, its output in files.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};

use crate::{logs, wait};

/// A running program of a test.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    output: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts it, both outputs going to the end of `<dir>/<name>.out`.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(name: &str, mut command: Command, dir: &Path) -> Self {
        let output = dir.join(format!("{name}.out"));
        let file = File::options()
            .create(true)
            .append(true)
            .open(&output)
            .expect("the output file of a program can be opened");
        let twin = file.try_clone().expect("a file handle can be duplicated");
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(twin)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} could not be started ({command:?}): {error}"));
        Self { name: name.to_owned(), child, output, ended: None }
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The file that holds what it printed.
    #[must_use]
    pub fn output(&self) -> &Path {
        &self.output
    }

    /// How it ended, if it has.
    ///
    /// # Panics
    /// When the system does not say.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("a child can be waited for");
        }
        self.ended
    }

    /// Sends it a signal; one that comes too late is no error.
    ///
    /// # Panics
    /// When the signal could not be sent for another reason.
    pub fn signal(&mut self, signal: Signal) {
        // Only while it has not been waited for does its number surely mean it.
        if self.ended().is_none() {
            send(self.pid(), signal);
        }
    }

    /// SIGKILL, and its end.
    pub async fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.end("to be gone after SIGKILL", wait::SOON).await;
    }

    /// SIGTERM, and its end.
    ///
    /// # Panics
    /// When it does not end `within` that time, or not with exit code 0.
    pub async fn stop(&mut self, within: Duration) {
        self.signal(Signal::SIGTERM);
        let status = self.end("to stop after SIGTERM", within).await;
        assert!(status.success(), "{} ended with {status}:\n{}", self.name, logs::tail(&self.output, 20));
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it has not ended `within` that time.
    pub async fn end(&mut self, what: &str, within: Duration) -> ExitStatus {
        let name = self.name.clone();
        wait::eventually(&format!("{name} {what}"), within, async || {
            self.ended().ok_or_else(|| format!("still running:\n{}", logs::tail(&self.output, 20)))
        })
        .await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() {
            // Nothing can be done about a failure here, and a test that got this far has said what it had to.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Sends a signal to a process by its number; one that is gone is no error.
///
/// # Panics
/// When the signal could not be sent for another reason.
pub fn send(pid: u32, signal: Signal) {
    let number = Pid::from_raw(i32::try_from(pid).expect("process numbers are small"));
    match signal::kill(number, signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
        Err(error) => panic!("{signal} could not be sent to process {pid}: {error}"),
    }
}

/// What a command that ran to its end left.
#[derive(Debug)]
pub struct Outcome {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Outcome {
    /// Standard output as one JSON value.
    ///
    /// # Panics
    /// When it is not exactly one.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("stdout is not one JSON value ({error}): {self:#?}"))
    }

    /// Both outputs, one behind the other.
    #[must_use]
    pub fn told(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    /// Itself, when the exit code is this one.
    ///
    /// # Panics
    /// When it is another.
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "unexpected exit code: {self:#?}");
        self
    }
}

/// Runs a command to its end without standard input, in a thread of its own.
///
/// # Panics
/// When it cannot be started.
pub async fn run(mut command: Command) -> Outcome {
    let shown = format!("{command:?}");
    let result: io::Result<std::process::Output> =
        tokio::task::spawn_blocking(move || command.stdin(Stdio::null()).output())
            .await
            .expect("the thread that waits for a command does not panic");
    let output = result.unwrap_or_else(|error| panic!("{shown} could not be run: {error}"));
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dirs::TestDir;

    #[tokio::test]
    async fn a_program_is_stopped_and_its_output_kept() {
        let dir = TestDir::new("process");
        let mut command = Command::new("sh");
        command.args(["-c", "trap 'exit 0' TERM; echo ready; while :; do sleep 0.01; done"]);
        let mut process = Process::start("loop", command, dir.path());
        let output = process.output().to_owned();
        wait::until("the program to be ready", wait::SOON, || logs::tail(&output, 5).contains("ready")).await;
        assert_eq!(process.ended(), None);
        process.stop(wait::SOON).await;
        assert!(process.ended().is_some());
    }

    #[tokio::test]
    async fn a_command_gives_its_code_and_output() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo '{\"a\":1}'; echo trouble >&2; exit 3"]);
        let outcome = run(command).await.expect_code(3);
        assert_eq!(outcome.json()["a"], 1);
        assert_eq!(outcome.stderr, "trouble\n");
    }
}
