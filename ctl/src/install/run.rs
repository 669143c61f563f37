//! Takes the steps, and takes them back.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    pin::pin,
    time::{Duration, Instant},
};

use super::{
    layout::{Manager, Part},
    look::Site,
    plan::State,
    step::{Command, Step, kept, staged},
};
use crate::{
    error::{Error, Result},
    output::{
        live::interrupted,
        text::{clean, plural},
    },
    siblings::{self, Limits},
};

/// For a service to be gone: longer than any of them is given (ExitTimeOut and TimeoutStopSec in `launchd/`).
const STOP_LIMIT: Duration = Duration::from_secs(195);

/// For a service to run: a loaded machine starts a program within seconds.
const START_LIMIT: Duration = Duration::from_secs(20);

/// For a new user to be known.
const USER_LIMIT: Duration = Duration::from_secs(10);

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// launchd refuses with "5: Input/output error" a service that it is not quite done with, and sometimes a new one
/// (cc-connect#35, nteract#1187).
const BOOTSTRAP_TRIES: u32 = 5;

/// Between two of them.
const BOOTSTRAP_WAIT: Duration = Duration::from_secs(1);

/// Of what a service that does not start has said.
const SAID_BYTES: u64 = 2_048;

/// What takes a step back.
#[derive(Debug)]
enum Back {
    Remove(PathBuf),
    RemoveDirectory(PathBuf),
    /// From where it was kept.
    Restore(PathBuf),
    RemoveUser(String),
    Start(Part),
    /// And has the manager forget it, when it was not there before.
    Stop(Part),
}

/// Takes steps on a machine.
#[derive(Debug)]
pub(crate) struct Runner<'a> {
    site: &'a Site,
    taken: Vec<Back>,
    /// What was there before, to be removed when all is well.
    kept: Vec<PathBuf>,
    /// How long the file was that a service writes its last words to, when it was started.
    said_before: BTreeMap<Part, u64>,
    /// Directories whose entries have changed, to be synced to disk when all is done.
    changed: BTreeSet<PathBuf>,
    /// What was done is being taken back: that is not interrupted.
    is_going_back: bool,
}

impl<'a> Runner<'a> {
    pub(crate) fn new(site: &'a Site) -> Self {
        Self {
            site,
            taken: Vec::new(),
            kept: Vec::new(),
            said_before: BTreeMap::new(),
            changed: BTreeSet::new(),
            is_going_back: false,
        }
    }

    /// All of them, or none: what was done is taken back when one fails.
    pub(crate) async fn all_or_none(mut self, steps: &[Step], tell: impl Fn(&Step)) -> Result<()> {
        for step in steps {
            tell(step);
            if let Err(error) = self.take(step).await {
                return Err(self.back(error).await);
            }
        }
        for dir in &self.changed {
            File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| failed("sync", dir, &e))?;
        }
        for path in &self.kept {
            // Left behind, it only has the next time start the service once more, and then it goes.
            let _ = fs::remove_file(path);
        }
        Ok(())
    }

    /// One after the other, as far as it goes.
    pub(crate) async fn each(mut self, steps: &[Step], tell: impl Fn(&Step)) -> Result<()> {
        for step in steps {
            tell(step);
            self.take(step).await?;
        }
        Ok(())
    }

    async fn take(&mut self, step: &Step) -> Result<()> {
        let site = self.site;
        let commands = step.commands(&site.layout);
        match step {
            Step::MakeUser { name, .. } => {
                self.taken.push(Back::RemoveUser(name.clone()));
                self.run(&commands).await?;
                // What the commands say they did may not have happened, and the directory service remembers for a moment that
                // there was nobody of that name.
                let begun = Instant::now();
                while site.user(name).await?.is_none() {
                    if begun.elapsed() > USER_LIMIT {
                        return Err(Error::local(format!("The user {name} was made and is not there.")));
                    }
                    self.wait(LOOK_EVERY).await?;
                }
                Ok(())
            }
            Step::MakeDirectory { path, mode, owner } => {
                let ids = match owner {
                    Some(name) => site.user(name).await?,
                    None => None,
                };
                self.make_directory(&site.at(path), *mode, ids).map_err(|e| failed("make", path, &e))
            }
            Step::Stage { from, to, .. } => {
                let to = site.at(&staged(to));
                self.taken.push(Back::Remove(to.clone()));
                copy(from, &to).map_err(|e| failed("write", &to, &e))
            }
            Step::Place { to } => {
                let to = site.at(to);
                self.keep(&to)
                    .and_then(|()| fs::rename(staged(&to), &to))
                    .map_err(|e| failed("write", &to, &e))
            }
            Step::Resume { to } => {
                let to = site.at(to);
                self.taken.push(Back::Restore(to.clone()));
                self.kept.push(kept(&to));
                Ok(())
            }
            Step::Write { path, text, mode } => {
                let to = site.at(path);
                let new = staged(&to);
                self.taken.push(Back::Remove(new.clone()));
                let written = write(&new, text.as_bytes(), *mode)
                    .and_then(|()| self.keep(&to))
                    .and_then(|()| fs::rename(&new, &to));
                written.map_err(|e| failed("write", &to, &e))
            }
            Step::Stop { part } => {
                self.taken.push(Back::Start(*part));
                self.stop(*part).await
            }
            Step::Start { part } => {
                self.taken.push(Back::Stop(*part));
                self.start(*part).await
            }
            Step::Verify { part } => self.verify(*part).await,
            Step::Disable { .. } | Step::Reload => self.run(&commands).await,
            Step::RemoveUser { name } => self.remove_user(name).await,
            Step::ResetLinks { .. } => match self.run(&commands).await {
                Err(error @ Error::Interrupted) => Err(error),
                // What it changed lasts until the next restart only, and nothing else is to wait for it.
                _ => Ok(()),
            },
            Step::Remove { path } => {
                gone(fs::remove_file(site.at(path))).map_err(|e| failed("remove", path, &e))
            }
            Step::RemoveTree { path } => {
                gone(fs::remove_dir_all(site.at(path))).map_err(|e| failed("remove", path, &e))
            }
            Step::RemoveEmpty { path } => match gone(fs::remove_dir(site.at(path))) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
                outcome => outcome.map_err(|e| failed("remove", path, &e)),
            },
        }
    }

    /// Takes back what was done, last things first; the error says how that went.
    async fn back(mut self, error: Error) -> Error {
        let mut problems = Vec::new();
        self.is_going_back = true;
        while let Some(back) = self.taken.pop() {
            let outcome = match back {
                Back::Remove(path) => gone(fs::remove_file(&path)).map_err(|e| failed("remove", &path, &e)),
                // A service that has run may have put something there: that is not ours to judge.
                Back::RemoveDirectory(path) => match gone(fs::remove_dir(&path)) {
                    Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
                    outcome => outcome.map_err(|e| failed("remove", &path, &e)),
                },
                Back::Restore(path) => fs::rename(kept(&path), &path)
                    .and_then(|()| sync_parent(&path))
                    .map_err(|e| failed("restore", &path, &e)),
                Back::RemoveUser(name) => self.remove_user(&name).await,
                Back::Start(part) => self.start_again(part).await,
                Back::Stop(part) => self.stop_for_good(part).await,
            };
            if let Err(problem) = outcome {
                problems.push(problem.to_string());
            }
        }
        if let Err(problem) = self.run(&Step::Reload.commands(&self.site.layout)).await {
            problems.push(problem.to_string());
        }
        let (message, hint) = (error.to_string(), error.hint().map(str::to_owned));
        match (error, problems.is_empty()) {
            (Error::Interrupted, true) => Error::Interrupted,
            (_, true) => Error::Local { message: format!("{message} What was done is taken back."), hint },
            (_, false) => Error::local_hint(
                format!(
                    "{message} {} could not be taken back: {}",
                    plural(problems.len() as u64, "thing", "things"),
                    problems.join(" ")
                ),
                "mend that, and install again: it goes on where this ended",
            ),
        }
    }

    async fn run(&self, commands: &[Command]) -> Result<()> {
        for command in commands {
            let program = self.site.at(&command.program);
            let limits = Limits { time: STOP_LIMIT, ..Limits::DEFAULT };
            siblings::ask(&program, &command.arguments, b"", limits).await.map_err(|error| match error {
                Error::Local { message, hint } => {
                    Error::Local { message: format!("`{}` failed: {message}", command.line()), hint }
                }
                other => other,
            })?;
        }
        Ok(())
    }

    /// Of a user who may be there in part only, what there is.
    async fn remove_user(&self, name: &str) -> Result<()> {
        let mut refused = None;
        for command in (Step::RemoveUser { name: name.to_owned() }).commands(&self.site.layout) {
            match self.run(std::slice::from_ref(&command)).await {
                Err(error @ Error::Interrupted) => return Err(error),
                outcome => refused = refused.or(outcome.err()),
            }
        }
        match self.site.user(name).await? {
            Some(_) => {
                let why = refused.map(|error| format!(" {error}")).unwrap_or_default();
                Err(Error::local_hint(
                    format!("The user {name} is still there.{why}"),
                    "on macOS a terminal needs Full Disk Access to remove users: allow it in System Settings",
                ))
            }
            None => Ok(()),
        }
    }

    /// A service that is being stopped may still be ending: it is started when it is gone.
    async fn start_again(&mut self, part: Part) -> Result<()> {
        self.stop(part).await?;
        self.start(part).await
    }

    /// One that was not there before is forgotten, too.
    async fn stop_for_good(&self, part: Part) -> Result<()> {
        self.stop(part).await?;
        let unit = self.site.at(&self.site.layout.unit(part));
        if !kept(&unit).exists() && unit.exists() {
            self.run(&Step::Disable { part }.commands(&self.site.layout)).await?;
        }
        Ok(())
    }

    async fn wait(&self, time: Duration) -> Result<()> {
        if self.is_going_back {
            tokio::time::sleep(time).await;
            return Ok(());
        }
        let mut stop = pin!(interrupted());
        tokio::select! {
            biased;
            () = &mut stop => Err(Error::Interrupted),
            () = tokio::time::sleep(time) => Ok(()),
        }
    }

    async fn stop(&self, part: Part) -> Result<()> {
        let told = self.run(&Step::Stop { part }.commands(&self.site.layout)).await;
        if let Err(error @ Error::Interrupted) = told {
            return Err(error);
        }
        let is_gone = |state| match self.site.layout.manager {
            Manager::Launchd => state == State::Absent,
            Manager::Systemd => !matches!(state, State::Running { .. }),
        };
        let begun = Instant::now();
        while !is_gone(self.site.state(part).await?) {
            // launchctl may say that it is under way.
            if begun.elapsed() > STOP_LIMIT {
                return Err(told.err().unwrap_or_else(|| {
                    let label = self.site.layout.label(part);
                    Error::local(format!(
                        "{label} is still there {} s after it was stopped.",
                        STOP_LIMIT.as_secs()
                    ))
                }));
            }
            self.wait(LOOK_EVERY).await?;
        }
        Ok(())
    }

    async fn start(&mut self, part: Part) -> Result<()> {
        let said = self.site.layout.stderr(part).and_then(|path| fs::metadata(self.site.at(&path)).ok());
        self.said_before.insert(part, said.map_or(0, |metadata| metadata.len()));
        let commands = Step::Start { part }.commands(&self.site.layout);
        let mut tries_left = match self.site.layout.manager {
            Manager::Launchd => BOOTSTRAP_TRIES,
            Manager::Systemd => 1,
        };
        loop {
            tries_left -= 1;
            match self.run(&commands).await {
                Err(Error::Local { .. }) if tries_left > 0 => self.wait(BOOTSTRAP_WAIT).await?,
                outcome => return outcome,
            }
        }
    }

    async fn verify(&self, part: Part) -> Result<()> {
        let begun = Instant::now();
        let mut running: Option<(u32, Instant)> = None;
        loop {
            let now = Instant::now();
            match (self.site.state(part).await?, running) {
                (State::Running { pid }, Some((same, since))) if pid == same => {
                    if now.duration_since(since) >= self.site.runs_for {
                        return Ok(());
                    }
                }
                (State::Running { pid }, _) => running = Some((pid, now)),
                // One that ended is not waited for: the manager would start it anew for ever.
                (_, Some(_)) => return Err(self.does_not_run(part, "ended soon after it was started")),
                (_, None) if begun.elapsed() > START_LIMIT => {
                    return Err(self.does_not_run(part, "does not run"));
                }
                (_, None) => {}
            }
            self.wait(LOOK_EVERY).await?;
        }
    }

    fn does_not_run(&self, part: Part, what: &str) -> Error {
        let layout = &self.site.layout;
        let label = layout.label(part);
        let said = layout.stderr(part).and_then(|path| {
            end_of(&self.site.at(&path), self.said_before.get(&part).copied().unwrap_or_default())
        });
        let message = match said
            .as_deref()
            .and_then(|said| said.lines().rev().find(|line| !line.trim().is_empty()))
        {
            Some(last) => format!("{label} {what}; it said: {}.", clean(last.trim().trim_end_matches('.'))),
            None => format!("{label} {what}."),
        };
        let hint = match layout.stderr(part) {
            Some(path) => format!("all it said is in {} and beside it", path.display()),
            None => format!("see what it said: journalctl --unit {label}"),
        };
        Error::local_hint(message, hint)
    }

    /// With all that leads to it, which is open to everybody.
    fn make_directory(&mut self, path: &Path, mode: u32, owner: Option<(u32, u32)>) -> io::Result<()> {
        let missing: Vec<&Path> = path.ancestors().take_while(|dir| !dir.exists()).collect();
        for dir in missing.into_iter().rev() {
            let mode = if dir == path { mode } else { 0o755 };
            DirBuilder::new().mode(mode).create(dir)?;
            self.taken.push(Back::RemoveDirectory(dir.to_owned()));
            self.changed.extend(dir.parent().map(Path::to_owned));
            // Whatever the umask is.
            fs::set_permissions(dir, fs::Permissions::from_mode(mode))?;
        }
        if let Some((user, group)) = owner {
            // It may be there, made by an installation that was killed before this, or for a user who is gone.
            fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
            chown(path, Some(user), Some(group))?;
        }
        Ok(())
    }

    /// Keeps what is there, to be able to restore it.
    fn keep(&mut self, path: &Path) -> io::Result<()> {
        let copy = kept(path);
        self.changed.extend(path.parent().map(Path::to_owned));
        match fs::hard_link(path, &copy) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // Of an installation that was killed: what it put in place has never been seen to run, and this one has.
                self.taken.push(Back::Restore(path.to_owned()));
                self.kept.push(copy);
                Ok(())
            }
            Ok(()) => {
                self.taken.push(Back::Restore(path.to_owned()));
                self.kept.push(copy);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.taken.push(Back::Remove(path.to_owned()));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// Copies the bytes and nothing else: a program that was downloaded may carry a quarantine mark, with which macOS would not start
/// it as a service. Always a new file, because macOS ends what runs from one that is changed.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    let mut target = create(to, 0o755)?;
    io::copy(&mut source, &mut target)?;
    target.sync_all()
}

fn write(to: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = create(to, mode)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn create(path: &Path, mode: u32) -> io::Result<File> {
    // Of an installation that was killed.
    gone(fs::remove_file(path))?;
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    // Whatever the umask is.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    Ok(file)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

fn gone(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

fn failed(verb: &str, path: &Path, error: &io::Error) -> Error {
    Error::local(format!("Cannot {verb} {}: {error}.", path.display()))
}

/// The end of a file, from this place on.
fn end_of(path: &Path, from: u64) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(from.max(length.saturating_sub(SAID_BYTES)))).ok()?;
    let mut said = Vec::new();
    file.take(SAID_BYTES).read_to_end(&mut said).ok()?;
    Some(String::from_utf8_lossy(&said).into_owned())
}
