//! Restarts this machine, when the controller asks for it and everything here agrees: the last thing that helps when something of
//! a boot is used up, and the one that costs the most when it is wrong.
//!
//! What it promises:
//!
//! * nothing is restarted that its own configuration does not allow (`[reboot] allow`, off unless somebody turns it on);
//! * never while a worker runs, never where nothing would run afterwards because a disk waits to be unlocked (FIELD-NOTES 6),
//!   never more often than every `min_hours_between`, never again for a cause that was there before within a day: what a restart
//!   did not mend is a person's (one whose command failed was none, and counts in its own boot only);
//! * at most one command in a boot, whatever ends the agent at whatever moment: it is on disk before the command is run, and what
//!   is on disk of this boot refuses every other. A command that names another boot is of no use in this one.
//!
//! ```text
//!  asked ──▶ refused, with a sentence
//!    └─────▶ on disk ──▶ `shutdown -r now` ──▶ another boot
//!               │               └──▶ failed: on disk, too, and a person's
//!               └── the agent is killed here: refused until there is another boot
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nightshift_proto::v1;
use serde::{Deserialize, Serialize};

use crate::{
    durable,
    probe::{Observation, mac::tools::Tools, observation, parse::mac::settings},
};

/// In the state directory.
pub const FILE: &str = "restarts.json";

/// Restarts kept on record. The newest counts, and of each of the two causes the newest.
const MOST_KEPT: usize = 16;

const HOUR_MS: u64 = 3_600_000;

/// A cause that is there again this soon was not mended by the restart.
const SAME_CAUSE_MS: u64 = 24 * HOUR_MS;

/// Between two restarts, unless told otherwise: one in a night.
const DEFAULT_MIN_HOURS_BETWEEN: u32 = 12;

/// A restart that was accepted is under way for so long at the most: services have minutes to end their work. A machine that is
/// still there then may take work again.
const UNDER_WAY_MS: u64 = 10 * 60_000;

/// `shutdown` leaves the rest to the system, and ends at once. One that does not has been told all the same.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);

/// `fdesetup status` answers within a second.
const FILE_VAULT_LIMIT: Duration = Duration::from_secs(5);

/// Section `[reboot]` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// Whether the controller may have this machine restarted at all.
    pub allow: bool,
    /// Not again before so many hours have passed.
    pub min_hours_between: u32,
}

impl Default for Rules {
    fn default() -> Self {
        Self { allow: false, min_hours_between: DEFAULT_MIN_HOURS_BETWEEN }
    }
}

/// What a restart is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// A killed worker left memory wired.
    StrandedMemory,
    /// The RDMA starts of the boot are spent.
    RdmaStartsUsedUp,
}

impl Cause {
    fn from_proto(cause: v1::RestartCause) -> Option<Self> {
        match cause {
            v1::RestartCause::Unspecified => None,
            v1::RestartCause::StrandedMemory => Some(Self::StrandedMemory),
            v1::RestartCause::RdmaStartsUsedUp => Some(Self::RdmaStartsUsedUp),
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::StrandedMemory => "memory that a killed worker left wired",
            Self::RdmaStartsUsedUp => "RDMA starts that were used up",
        }
    }
}

/// One restart, from before its command was run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// The boot that it ends.
    boot_id: String,
    cause: Cause,
    at_unix_ms: u64,
    /// Why the command failed, where it did.
    #[serde(default)]
    failed: Option<String>,
}

/// Whether this machine comes back by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disk {
    /// Nothing waits for a person. Of other systems than macOS that is for whoever allows restarts to know.
    Open,
    /// FileVault is on, or on its way.
    Locked,
    /// Nobody knows.
    Unknown,
}

impl Disk {
    fn seen(observation: &Observation) -> Self {
        if observation.os_name != "macos" {
            return Self::Open;
        }
        match observation.preflight.as_ref().and_then(|preflight| preflight.file_vault) {
            Some(observation::FileVault::Off) => Self::Open,
            Some(observation::FileVault::On | observation::FileVault::Changing) => Self::Locked,
            None => Self::Unknown,
        }
    }

    /// As it is at this moment: what was observed may be half a minute old.
    fn asked(tools: &mut Tools) -> Self {
        match tools
            .ask("fdesetup", &["status"], FILE_VAULT_LIMIT)
            .ok()
            .and_then(|said| settings::file_vault(&said))
        {
            Some(settings::FileVault::Off) => Self::Open,
            Some(settings::FileVault::On | settings::FileVault::Changing) => Self::Locked,
            None => Self::Unknown,
        }
    }

    fn problem(self) -> Option<String> {
        match self {
            Self::Open => None,
            Self::Locked => Some(
                "FileVault is on: after a restart nothing runs here until somebody unlocks the disk; restart it when you are \
                 there, or turn FileVault off"
                    .to_owned(),
            ),
            Self::Unknown => Some(
                "whether FileVault is on is not known, and with it nothing would run here after a restart; see what \
                 `fdesetup status` says"
                    .to_owned(),
            ),
        }
    }
}

/// What [`Restarter`] needs.
#[derive(Debug)]
pub struct Options {
    /// Of the configuration.
    pub rules: Rules,
    /// Where the record is kept.
    pub path: PathBuf,
    /// This boot.
    pub boot_id: Option<String>,
    /// Has `shutdown`, and `fdesetup` on a Mac.
    pub tools: Tools,
    /// Whether FileVault can be on.
    pub is_mac: bool,
    /// Whether this agent may restart the machine at all: it is root.
    pub may_run: bool,
}

/// What is on record, oldest first. `Err`: why it cannot be read.
type Book = Result<Vec<Entry>, String>;

#[derive(Debug)]
struct Inner {
    rules: Rules,
    path: PathBuf,
    boot_id: Option<String>,
    is_mac: bool,
    may_run: bool,
    /// Held from the first look to the end of the command: there is one restart at a time.
    tools: Mutex<Tools>,
    /// Held for a moment, so that whoever only wants to know does not wait for tools.
    book: Mutex<Book>,
}

/// Restarts the machine, or says why not. Clones are the same.
#[derive(Debug, Clone)]
pub struct Restarter(Arc<Inner>);

impl Restarter {
    /// Reads the record, if there is one. With one that makes no sense nothing is ever restarted: it may hold the restart that
    /// must not happen twice.
    #[must_use]
    pub fn open(options: Options) -> Self {
        let Options { rules, path, boot_id, tools, is_mac, may_run } = options;
        let read = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        };
        let book = read.map_err(|error| {
            let path = path.display();
            tracing::warn!(%path, %error, "the record of restarts cannot be read; this machine is not restarted");
            format!("the record of its restarts, {path}, cannot be read; look at it, and remove it when it is of no use")
        });
        let (tools, book) = (Mutex::new(tools), Mutex::new(book));
        Self(Arc::new(Inner { rules, path, boot_id, is_mac, may_run, tools, book }))
    }

    /// What the controller should know before it asks.
    #[must_use]
    pub fn standing(&self, observation: &Observation, now_unix_ms: u64) -> v1::Restarts {
        let allowed = self.0.rules.allow;
        let disk = Disk::seen(observation);
        let problem = allowed.then(|| self.0.obstacle(&locked(&self.0.book), now_unix_ms, disk)).flatten();
        v1::Restarts { allowed, problem: problem.unwrap_or_default() }
    }

    /// Whether a restart is under way: nothing is to be started any more.
    #[must_use]
    pub fn is_under_way(&self, now_unix_ms: u64) -> bool {
        self.0.in_this_boot(&locked(&self.0.book)).is_some_and(|entry| {
            entry.failed.is_none() && now_unix_ms.saturating_sub(entry.at_unix_ms) < UNDER_WAY_MS
        })
    }

    /// Restarts the machine. Blocks for the disk, and for the tools' limits.
    ///
    /// # Errors
    /// Why not, and what to do: one sentence.
    pub fn restart(
        &self,
        command: &v1::RestartMachine,
        workers: usize,
        now_unix_ms: u64,
    ) -> Result<(), String> {
        let mut tools = locked(&self.0.tools);
        // The disk is asked for last: it costs a second, and most of what is refused is refused without it.
        self.0.check(&locked(&self.0.book), command, workers, now_unix_ms, Disk::Open)?;
        let disk = if self.0.is_mac { Disk::asked(&mut tools) } else { Disk::Open };
        {
            let mut book = locked(&self.0.book);
            let cause = self.0.check(&book, command, workers, now_unix_ms, disk)?;
            self.0.note(&mut book, &command.boot_id, cause, now_unix_ms)?;
        }
        self.0.run(&mut tools, &command.reason)
    }
}

/// Every change is whole before the next can panic.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The restarts that were made, as far as is known. One whose command failed was none: whoever restarted the machine then had a
/// reason of their own.
fn made(book: &Book) -> impl DoubleEndedIterator<Item = &Entry> {
    book.iter().flatten().filter(|entry| entry.failed.is_none())
}

impl Inner {
    fn check(
        &self,
        book: &Book,
        command: &v1::RestartMachine,
        workers: usize,
        now_unix_ms: u64,
        disk: Disk,
    ) -> Result<Cause, String> {
        if !self.rules.allow {
            return Err(
                "restarts are not allowed on this machine; allow them in its agent's configuration ([reboot] allow = true), or \
                 restart it by hand"
                    .to_owned(),
            );
        }
        match &self.boot_id {
            None => {
                return Err("this machine does not say which boot it is in; restart it by hand".to_owned());
            }
            Some(boot_id) if *boot_id != command.boot_id => {
                return Err("the restart was asked for in another boot than this one; nothing is to be done"
                    .to_owned());
            }
            Some(_) => {}
        }
        let cause = Cause::from_proto(command.cause()).ok_or(
            "this agent does not know what the restart is for; install the same Nightshift on each node",
        )?;
        match workers {
            0 => {}
            1 => return Err("a worker runs here; it can be restarted when that has ended".to_owned()),
            more => return Err(format!("{more} workers run here; it can be restarted when they have ended")),
        }
        // That it is the same cause again is said before all else: it tells a person more than that it was lately.
        let of_cause = made(book).rfind(|entry| entry.cause == cause);
        let before = of_cause.filter(|entry| entry.boot_id != command.boot_id);
        if before.is_some_and(|entry| now_unix_ms.saturating_sub(entry.at_unix_ms) < SAME_CAUSE_MS) {
            return Err(format!(
                "it was restarted within the last day for {}, which came back: another restart would not mend that, and \
                 somebody has to look",
                cause.words()
            ));
        }
        self.obstacle(book, now_unix_ms, disk).map_or(Ok(cause), Err)
    }

    /// What refuses whatever a restart is for. Read from the top; the first that fits is told.
    fn obstacle(&self, book: &Book, now_unix_ms: u64, disk: Disk) -> Option<String> {
        if let Err(problem) = book {
            return Some(problem.clone());
        }
        if let Some(entry) = self.in_this_boot(book) {
            return Some(match &entry.failed {
                None => "it was told to restart in this boot already; if it is still there after some minutes, restart it by hand"
                    .to_owned(),
                Some(why) => format!("it could not be restarted in this boot: {why}; restart it by hand"),
            });
        }
        let hours = u64::from(self.rules.min_hours_between);
        let newest = made(book).next_back().map(|entry| now_unix_ms.saturating_sub(entry.at_unix_ms));
        if newest.is_some_and(|ago_ms| ago_ms < hours.saturating_mul(HOUR_MS)) {
            return Some(format!(
                "it was restarted within the last {hours} hours, and more often its configuration does not allow \
                 (reboot.min_hours_between); restart it by hand"
            ));
        }
        if !self.may_run {
            let problem = "its agent does not run as root and cannot restart the machine; restart it by hand";
            return Some(problem.to_owned());
        }
        disk.problem()
    }

    fn in_this_boot<'a>(&self, book: &'a Book) -> Option<&'a Entry> {
        book.iter().flatten().rfind(|entry| Some(&entry.boot_id) == self.boot_id.as_ref())
    }

    /// On disk when this returns.
    fn note(&self, book: &mut Book, boot_id: &str, cause: Cause, now_unix_ms: u64) -> Result<(), String> {
        let entry = Entry { boot_id: boot_id.to_owned(), cause, at_unix_ms: now_unix_ms, failed: None };
        let mut entries: Vec<Entry> = book.iter().flatten().cloned().collect();
        entries.push(entry);
        entries.drain(..entries.len().saturating_sub(MOST_KEPT));
        self.keep(book, entries).map_err(|error| {
            format!(
                "the restart cannot be written down in {}, so it is not made: {error}",
                self.path.display()
            )
        })
    }

    fn keep(&self, book: &mut Book, entries: Vec<Entry>) -> io::Result<()> {
        durable::replace_file(&self.path, &serde_json::to_vec(&entries).map_err(io::Error::other)?)?;
        *book = Ok(entries);
        Ok(())
    }

    fn run(&self, tools: &mut Tools, reason: &str) -> Result<(), String> {
        let arguments = ["-r", "now"];
        let command = format!("shutdown {}", arguments.join(" "));
        tracing::warn!(command, reason, "this machine is restarted, because the controller asks for it");
        // What restarts the machine outlives the command with the command's output open, and must be able to write to it.
        match tools.order("shutdown", &arguments, SHUTDOWN_LIMIT) {
            Ok(()) => Ok(()),
            // The system may have been told before it hung.
            Err(error) if error.is_hang() => {
                tracing::warn!(command, %error, "whether this machine is being restarted is not known");
                Ok(())
            }
            Err(error) => {
                tracing::error!(command, %error, "this machine could not be restarted");
                self.note_failure(&error.to_string());
                Err(format!("`{command}` failed: {error}; restart it by hand"))
            }
        }
    }

    fn note_failure(&self, why: &str) {
        let mut book = locked(&self.book);
        let mut entries: Vec<Entry> = book.iter().flatten().cloned().collect();
        if let Some(newest) = entries.last_mut() {
            newest.failed = Some(why.to_owned());
        }
        // Without it the restart counts as made, which refuses more and allows nothing.
        if let Err(error) = self.keep(&mut book, entries) {
            tracing::warn!(path = %self.path.display(), %error, "why the restart failed was not written down");
        }
    }
}

/// The tools of this machine; none where the agent is made to take the machine for another, as tests do: what it believes of that
/// one must not restart this one.
#[must_use]
pub fn tools(scripted_mac: Option<&Path>, pretends: bool) -> Tools {
    match scripted_mac {
        Some(dir) => Tools::in_dirs(vec![dir.to_owned()]),
        None if pretends => Tools::in_dirs(Vec::new()),
        None => Tools::system(),
    }
}

#[cfg(test)]
#[path = "reboot_tests.rs"]
mod tests;
