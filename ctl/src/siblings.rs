//! The programs beside this one, `clusterd` and `cluster-agent`: where they are, and asking one of them something.
//!
//! A question is one run: input on stdin, answer on stdout, a sentence on stderr and a code other than 0 where there is
//! none. Its time and the size of its answer are bounded, and whatever way it is left, nothing of it goes on running.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    pin::pin,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
    time::timeout,
};

use crate::{
    error::{Error, Result},
    output::{
        live::interrupted,
        text::{capital, clean, sentence},
    },
};

/// The end of stderr that is kept: the sentence stands there, whatever was logged before it.
const STDERR_KEPT_BYTES: usize = 16 * 1024;

/// From SIGTERM to SIGKILL, for a program that only reads.
const GRACE: Duration = Duration::from_secs(2);

const COMPARE_VERSIONS: &str = "Is it as new as this clusterctl? Compare: clusterctl --version, clusterd --version, cluster-agent --version";

/// How long a question may take and how long its answer may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// From the start of the program to its end.
    pub(crate) time: Duration,
    /// Of stdout.
    pub(crate) answer_bytes: u64,
}

impl Limits {
    /// Headers of the largest models are a few hundred files and some MiB: seconds on a cold disk over the network.
    pub(crate) const DEFAULT: Self = Limits { time: Duration::from_secs(60), answer_bytes: 64 << 20 };
}

/// The directory this program lies in.
pub(crate) fn own_dir() -> Option<PathBuf> {
    let own = std::env::current_exe().and_then(|exe| exe.canonicalize()).ok()?;
    own.parent().map(Path::to_owned)
}

pub(crate) fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Finds a program beside this one, else in PATH. `hint` says what to do when there is none.
pub(crate) fn find(name: &str, hint: &str) -> Result<PathBuf> {
    let beside = own_dir();
    let path = std::env::var_os("PATH").unwrap_or_default();
    beside
        .clone()
        .into_iter()
        .chain(std::env::split_paths(&path))
        .map(|dir| dir.join(name))
        .find(|file| is_program(file))
        .ok_or_else(|| {
            let beside = beside.map(|dir| format!(" ({})", dir.display())).unwrap_or_default();
            Error::local_hint(
                format!("The program {name} is neither beside clusterctl{beside} nor in PATH."),
                hint,
            )
        })
}

/// Runs a program once with `input` on its stdin: what it wrote to stdout.
pub(crate) async fn ask(
    program: &Path,
    args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    input: &[u8],
    limits: Limits,
) -> Result<Vec<u8>> {
    consult(program, args, input, limits).await?
}

/// The same, with what it answered apart from whether there was an answer: the inner error is a program that ended with a code other
/// than 0.
pub(crate) async fn consult(
    program: &Path,
    args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    input: &[u8],
    limits: Limits,
) -> Result<Result<Vec<u8>>> {
    let name = name_of(program);
    let mut command = Command::new(program);
    command
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A group of its own, so that all of it can be ended; Ctrl-C comes to us, and we pass it on.
        .process_group(0)
        .kill_on_drop(true);
    let mut run = None;
    let converse = async {
        let child =
            command.spawn().map_err(|e| Error::local(format!("Cannot start {}: {e}.", program.display())))?;
        run.insert(Run { child }).converse(&name, input, limits.answer_bytes).await
    };
    let told = {
        let mut stop = pin!(interrupted());
        tokio::select! {
            // First of all somebody listens for Ctrl-C, and then there is something to end.
            biased;
            () = &mut stop => Err(Error::Interrupted),
            told = timeout(limits.time, converse) => told.unwrap_or_else(|_| {
                Err(Error::local(format!("{name} did not answer within {} s.", limits.time.as_secs())))
            }),
        }
    };
    if told.is_err()
        && let Some(run) = run
    {
        run.end().await;
    }
    let (status, stdout, stderr) = told?;
    Ok(if status.success() { Ok(stdout) } else { Err(refusal(&name, status, &stderr)) })
}

/// An answer that cannot be understood.
pub(crate) fn makes_no_sense(program: &Path, why: impl std::fmt::Display) -> Error {
    let message = format!("The answer of {} makes no sense ({why}).", name_of(program));
    Error::local_hint(message, COMPARE_VERSIONS)
}

fn name_of(program: &Path) -> String {
    program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned()
}

struct Run {
    child: Child,
}

impl Run {
    /// Writes, reads and waits, all at once: a program may answer before it has read everything.
    async fn converse(
        &mut self,
        name: &str,
        input: &[u8],
        answer_bytes: u64,
    ) -> Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
        let (Some(mut stdin), Some(stdout), Some(stderr)) =
            (self.child.stdin.take(), self.child.stdout.take(), self.child.stderr.take())
        else {
            return Err(Error::local(format!("Cannot talk with {name}.")));
        };
        let lost = |e: std::io::Error| Error::local(format!("Lost sight of {name}: {e}."));
        let write = async {
            // A program that stops reading says why on stderr.
            let _ = stdin.write_all(input).await;
            drop(stdin);
            Ok(())
        };
        let read = async {
            let mut answer = Vec::new();
            stdout.take(answer_bytes + 1).read_to_end(&mut answer).await.map_err(lost)?;
            if answer.len() as u64 > answer_bytes {
                let message =
                    format!("{name} answered with more than {}.", crate::output::units::bytes(answer_bytes));
                return Err(Error::local_hint(message, COMPARE_VERSIONS));
            }
            Ok(answer)
        };
        let listen = async { read_end(stderr).await.map_err(lost) };
        let ((), stdout, stderr) = tokio::try_join!(write, read, listen)?;
        let status = self.child.wait().await.map_err(lost)?;
        Ok((status, stdout, stderr))
    }

    /// SIGTERM, a grace, SIGKILL: to the whole group, as long as its leader has not been waited for and its number is ours.
    async fn end(mut self) {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            let Some(group) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) else { return };
            // It may just have ended by itself.
            let _ = killpg(Pid::from_raw(group), signal);
            if timeout(GRACE, self.child.wait()).await.is_ok() {
                return;
            }
        }
    }
}

/// Reads to the end and keeps the last part.
async fn read_end(mut from: impl AsyncRead + Unpin) -> std::io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let n = from.read(&mut piece).await?;
        if n == 0 {
            return Ok(kept);
        }
        kept.extend_from_slice(&piece[..n]);
        let over = kept.len().saturating_sub(STDERR_KEPT_BYTES);
        kept.drain(..over);
    }
}

/// What a program said when it ended with a code other than 0.
fn refusal(name: &str, status: ExitStatus, stderr: &[u8]) -> Error {
    use std::os::unix::process::ExitStatusExt;
    let text = String::from_utf8_lossy(stderr);
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    let said = lines()
        .rev()
        .find_map(|line| line.strip_prefix("error: "))
        .or_else(|| lines().rev().find(|line| !line.starts_with("hint: ")))
        .map(|line| line.strip_prefix(&format!("{name}: ")).unwrap_or(line));
    let hint = lines().rev().find_map(|line| line.strip_prefix("hint: ")).map(|hint| hint.trim().to_owned());
    // clap's code for a command line it does not know.
    let is_misunderstood = status.code() == Some(2);
    let message = match (said, status.signal()) {
        (_, Some(signal)) => format!("{name} was ended by signal {signal}."),
        (Some(said), None) if is_misunderstood => sentence(&format!("{name} does not understand: {said}")),
        (Some(said), None) => capital(&sentence(&clean(said))),
        (None, None) => format!("{name} failed without saying why."),
    };
    let hint = hint.or_else(|| is_misunderstood.then(|| COMPARE_VERSIONS.to_owned()));
    Error::Local { message: clean(&message).into_owned(), hint }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn ask_sh(script: &str, input: &[u8], limits: Limits) -> Result<Vec<u8>> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        runtime.unwrap().block_on(ask(Path::new("/bin/sh"), ["-c", script], input, limits))
    }

    #[test]
    fn what_is_written_comes_back_however_long_it_is() {
        let input = vec![7; 1 << 20];
        assert_eq!(ask_sh("cat", &input, Limits::DEFAULT).unwrap(), input);
        // The program does not read, and its answer counts all the same.
        assert_eq!(ask_sh("echo yes", &input, Limits::DEFAULT).unwrap(), b"yes\n");
    }

    #[test]
    fn a_program_that_hangs_is_ended_with_all_it_has_started() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let script = format!("sleep 600 & echo $! > '{}'; trap '' TERM; wait; wait", file.display());
        let limits = Limits { time: Duration::from_secs(1), ..Limits::DEFAULT };
        let begun = Instant::now();
        let error = ask_sh(&script, b"", limits).unwrap_err();
        assert_eq!(error.to_string(), "sh did not answer within 1 s.");
        assert!(begun.elapsed() < Duration::from_secs(30));
        let pid: i32 = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
        // It was not our child: whoever inherited it takes a moment to bury it.
        let gone = || match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z')),
            Err(_) => nix::sys::signal::kill(Pid::from_raw(pid), None).is_err(),
        };
        while !gone() {
            assert!(begun.elapsed() < Duration::from_secs(60), "process {pid} still runs");
            std::thread::yield_now();
        }
    }

    #[test]
    fn an_answer_without_an_end_is_cut_off() {
        let limits = Limits { answer_bytes: 1 << 20, ..Limits::DEFAULT };
        let error = ask_sh("exec cat /dev/zero", b"", limits).unwrap_err();
        assert_eq!(error.to_string(), "sh answered with more than 1 MiB.");
    }

    #[test]
    fn the_sentence_on_stderr_is_the_error() {
        let error = |script: &str| {
            let error = ask_sh(script, b"", Limits::DEFAULT).unwrap_err();
            (error.to_string(), error.hint().map(str::to_owned))
        };
        let said = |text: &str| (text.to_owned(), None);
        assert_eq!(
            error("echo log >&2; echo 'sh: there is no config.json' >&2; exit 1"),
            said("There is no config.json.")
        );
        assert_eq!(error("exit 1"), said("sh failed without saying why."));
        assert_eq!(error("kill -9 $$"), said("sh was ended by signal 9."));
        assert_eq!(
            error("printf 'error: no such thing\\nhint:  ask again\\n' >&2; exit 1"),
            ("No such thing.".to_owned(), Some("ask again".to_owned()))
        );
        let (message, hint) =
            error("printf \"error: unrecognized subcommand 'x'\\n\\nUsage: sh\\n\" >&2; exit 2");
        assert_eq!(message, "sh does not understand: unrecognized subcommand 'x'.");
        assert!(hint.unwrap().starts_with("Is it as new as this clusterctl?"));
    }

    #[test]
    fn of_a_long_log_the_end_is_kept() {
        let error = ask_sh(
            "yes 'a line of a log' | head -n 100000 >&2; echo 'the end' >&2; exit 1",
            b"",
            Limits::DEFAULT,
        );
        assert_eq!(error.unwrap_err().to_string(), "The end.");
    }
}
