//! Starting a worker's process, and signals to its group.

use std::{
    env,
    ffi::{OsStr, OsString},
    io,
    path::{Path, PathBuf},
    process::Stdio,
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::process::{Child, ChildStderr, ChildStdin, Command};

use super::{account::Account, code, lines::MAX_LINE_BYTES, reader::Reader, record::Record};
use crate::{gang::environment::Variable, sys};

/// For workers when the agent itself has none, as under launchd.
const DEFAULT_PATH: &str = "/usr/bin:/bin:/usr/sbin:/sbin";

/// How workers of this agent are started.
#[derive(Debug, Clone)]
pub struct Launcher {
    program: Vec<OsString>,
    env: Vec<Variable>,
    dir: PathBuf,
    account: Option<Account>,
}

/// What a launcher is made from.
#[derive(Debug, Clone, Copy)]
pub struct LauncherOptions<'a> {
    /// The runtime's interpreter.
    pub python: &'a Path,
    /// Where the worker's program is.
    pub code_dir: &'a Path,
    /// The working directory of workers.
    pub dir: &'a Path,
    /// `HF_HOME`; the agent's own where not configured.
    pub hf_home: Option<&'a Path>,
    /// `HF_HUB_OFFLINE`; the agent's own where not configured.
    pub hf_hub_offline: Option<bool>,
    /// In place of interpreter and program, for tests.
    pub command: Option<&'a [String]>,
    /// Whom they run as; where this agent's own user, `None`.
    pub account: Option<&'a Account>,
}

impl Launcher {
    /// Works out the command line and the environment: nothing of the agent's own environment comes through but what is
    /// listed here, and so no `MLX_*` or `JACCL_*` either (FIELD-NOTES 1).
    #[must_use]
    pub fn new(options: LauncherOptions<'_>) -> Self {
        let program = match options.command {
            Some(words) => words.iter().map(OsString::from).collect(),
            None => {
                let main = options.code_dir.join(code::MAIN);
                [options.python.into()]
                    .into_iter()
                    .chain(["-E", "-s", "-B", "-u"].map(OsString::from))
                    .chain([main.into()])
                    .collect()
            }
        };
        let mut env = vec![("LANG", "C.UTF-8".into())];
        env.push(("PATH", env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into())));
        // What is root's own is of no use to somebody else.
        let inherited = |name| if options.account.is_none() { env::var_os(name) } else { None };
        env.extend(["HOME", "TMPDIR"].into_iter().filter_map(|name| Some((name, inherited(name)?))));
        env.extend(options.account.map(|account| ("HOME", account.home.clone().into())));
        env.extend(
            options.hf_home.map(OsString::from).or_else(|| inherited("HF_HOME")).map(|dir| ("HF_HOME", dir)),
        );
        let offline = options.hf_hub_offline.map(|offline| if offline { "1" } else { "0" }.into());
        env.extend(
            offline.or_else(|| env::var_os("HF_HUB_OFFLINE")).map(|offline| ("HF_HUB_OFFLINE", offline)),
        );
        Self { program, env, dir: options.dir.to_owned(), account: options.account.cloned() }
    }

    /// Everything a worker's environment holds: what is the same for all, and `more` of this one.
    pub fn environment<'a>(
        &'a self,
        more: &'a [Variable],
    ) -> impl Iterator<Item = (&'static str, &'a OsStr)> {
        self.env.iter().chain(more).map(|(name, value)| (*name, value.as_os_str()))
    }

    /// Starts a worker in a process group of its own, with `more` in its environment.
    ///
    /// # Errors
    /// When the system cannot start it.
    pub fn start(&self, more: &[Variable]) -> io::Result<Process> {
        let (program, arguments) =
            self.program.split_first().ok_or_else(|| io::Error::other("there is no program to start"))?;
        let mut command = Command::new(program);
        if let Some(account) = &self.account {
            // It gives up every other group of root's, too.
            command.uid(account.uid).gid(account.gid);
        }
        let mut child = command
            .args(arguments)
            .env_clear()
            .envs(self.environment(more))
            .current_dir(&self.dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let missing = || io::Error::other("the process was started without its pipes");
        let group = Group(child.id().ok_or_else(missing)?);
        let stdin = child.stdin.take().ok_or_else(missing)?;
        let stdout = child.stdout.take().ok_or_else(missing)?.into_owned_fd()?;
        let stdout = Reader::start(stdout, MAX_LINE_BYTES)?;
        let stderr = child.stderr.take().ok_or_else(missing)?;
        Ok(Process { child, group, stdin, stdout, stderr })
    }
}

/// A started worker.
#[derive(Debug)]
pub struct Process {
    /// To wait for.
    pub child: Child,
    /// To signal.
    pub group: Group,
    /// Commands go in here.
    pub stdin: ChildStdin,
    /// Events come out here.
    pub stdout: Reader,
    /// Its log.
    pub stderr: ChildStderr,
}

impl Process {
    /// What is written down of it.
    #[must_use]
    pub fn record(&self, key: super::Key, boot_id: Option<&str>) -> Record {
        Record {
            job_id: key.job_id,
            epoch: key.epoch,
            rank: key.rank,
            pid: self.group.leader(),
            start_time: sys::process_start(self.group.leader()),
            boot_id: boot_id.map(str::to_owned),
        }
    }
}

/// A process group that we made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group(u32);

impl Group {
    /// The group led by this process, which must be known to be ours.
    #[must_use]
    pub fn led_by(pid: u32) -> Self {
        Self(pid)
    }

    /// The process that leads it.
    #[must_use]
    pub fn leader(self) -> u32 {
        self.0
    }

    /// Asks the worker itself, and none of its helpers, to write where it stands into its log: its interpreter does that
    /// even while the model hangs.
    pub fn ask_for_stack(self) {
        if let Some(leader) = i32::try_from(self.0).ok().filter(|leader| *leader > 1) {
            let _ = nix::sys::signal::kill(Pid::from_raw(leader), Signal::SIGUSR1);
        }
    }

    /// Sends a signal to every process of the group. Whether there was any.
    pub fn signal(self, signal: Signal) -> bool {
        // 0 would be this process's own group, 1 everything there is: neither can come from a started child.
        let Some(group) = i32::try_from(self.0).ok().filter(|group| *group > 1) else { return false };
        match killpg(Pid::from_raw(group), signal) {
            Ok(()) => true,
            Err(Errno::ESRCH) => false,
            Err(errno) => {
                // macOS answers EPERM for a group in which only zombies are left.
                tracing::debug!(group, %signal, %errno, "a process group cannot be signalled");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_mlx_a_worker_knows_what_its_launch_says_and_nothing_else() {
        // Tests run in the environment of whoever starts them, as an agent does; that it may hold `MLX_*` and `JACCL_*` is
        // shown with the real binary (tests/agent).
        let launcher = Launcher::new(LauncherOptions {
            python: Path::new("/runtime/bin/python"),
            code_dir: Path::new("/state/code"),
            dir: Path::new("/state"),
            hf_home: Some(Path::new("/hub")),
            hf_hub_offline: Some(true),
            command: None,
            account: None,
        });
        let ours = |name: &str| name.starts_with("MLX_") || name.starts_with("JACCL_");
        assert_eq!(launcher.environment(&[]).filter(|(name, _)| ours(name)).count(), 0);
        let more = [("MLX_RANK", "1".into()), ("MLX_HOSTFILE", "/h".into())];
        let told: Vec<_> = launcher.environment(&more).filter(|(name, _)| ours(name)).collect();
        assert_eq!(told, [("MLX_RANK", OsStr::new("1")), ("MLX_HOSTFILE", OsStr::new("/h"))]);
        let names = ["LANG", "PATH", "HOME", "TMPDIR", "HF_HOME", "HF_HUB_OFFLINE"];
        assert!(launcher.environment(&[]).all(|(name, _)| names.contains(&name)));
    }
}
