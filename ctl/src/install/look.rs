//! Finds out what there is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, BufReader, Read},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    layout::{Layout, Manager, Part, Program},
    plan::{Copy, Request, Seen, State},
    step::{DSCL, ID, LAUNCHCTL, SYSTEMCTL, kept, staged},
    units,
};
use crate::{
    error::{Error, Result},
    siblings::{self, Limits},
};

/// A service file or a configuration is some kilobytes.
const MOST_TEXT_BYTES: u64 = 1 << 20;

/// Numbers of hidden users; macOS has its own below, and persons begin at 501.
const NUMBERS: std::ops::RangeInclusive<u32> = 300..=399;

/// This machine, or a directory that stands for one.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    pub(crate) layout: Layout,
    /// `/`, but in tests.
    pub(crate) root: PathBuf,
    /// Where the programs come from.
    pub(crate) from: PathBuf,
    /// How long a service must run to have started.
    pub(crate) runs_for: Duration,
}

impl Site {
    /// Where a path of the layout is.
    pub(crate) fn at(&self, path: &Path) -> PathBuf {
        path.strip_prefix("/").map_or_else(|_| path.to_owned(), |inner| self.root.join(inner))
    }

    fn is_real(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Looks at everything a plan depends on.
    pub(crate) async fn look(&self, request: &Request) -> Result<Seen> {
        let layout = &self.layout;
        let mut seen = Seen::default();
        for part in Part::ALL {
            seen.units.extend(self.text(&layout.unit(part))?.map(|text| (part, text)));
            seen.configs.extend(self.text(&layout.config(part))?.map(|text| (part, text)));
            seen.services.insert(part, self.state(part).await?);
        }
        let paths = Part::ALL
            .into_iter()
            .flat_map(|part| layout.state(part).into_iter().chain(layout.files(part)))
            .chain([layout.bin(), layout.data(), layout.config_dir(), layout.home(), layout.link_journal()])
            .chain([layout.user_marker()])
            .chain(layout.logs())
            .chain(layout.targets().into_iter().flat_map(|path| [staged(&path), kept(&path)]));
        seen.present = paths.filter(|path| self.at(path).symlink_metadata().is_ok()).collect();
        for program in Program::ALL {
            let there = self.at(&layout.program(program));
            let source = Some(self.from.join(program.name())).filter(|file| siblings::is_program(file));
            let copy = match (&source, there.symlink_metadata().is_ok()) {
                (_, false) => Copy::Absent,
                (Some(source), true) if same(source, &there).map_err(|e| unreadable(&there, &e))? => {
                    Copy::Same
                }
                (_, true) => Copy::Other,
            };
            seen.programs.insert(program, copy);
            seen.sources.extend(source.map(|source| (program, source)));
        }
        let configured = seen.configs.get(&Part::Agent).and_then(|text| text.parse::<toml::Table>().ok());
        let configured =
            configured.as_ref().and_then(|table| table.get("worker_user")).and_then(toml::Value::as_str);
        let names: BTreeSet<&str> =
            [Some(layout.own_user()), request.user.as_deref(), configured].into_iter().flatten().collect();
        for name in names {
            if self.user(name).await?.is_some() {
                seen.users.insert(name.to_owned());
            }
        }
        // One that was made and not given, or is of a user who is gone, is as one that is not there.
        let owner = self.user(layout.own_user()).await?.map(|(user, _)| user);
        if self.at(&layout.home()).metadata().is_ok_and(|home| Some(home.uid()) != owner) {
            seen.present.remove(&layout.home());
        }
        if layout.manager == Manager::Launchd && !seen.users.contains(layout.own_user()) {
            seen.free_number = self.free_number().await?;
        }
        Ok(seen)
    }

    /// Whether what lies in the programs' directory may be run as root: nobody else must be able to put something in its place, there
    /// or on the way to it.
    pub(crate) fn check_bin(&self) -> Result<()> {
        let bin = self.layout.bin();
        // In the directory that stands for a machine, whoever runs the test is its root, with a umask of theirs.
        let (owner, others) =
            if self.is_real() { (0, 0o022) } else { (nix::unistd::geteuid().as_raw(), 0o002) };
        for dir in bin.ancestors() {
            // What is not there is made, and is root's.
            let Ok(metadata) = self.at(dir).metadata() else { continue };
            let is_sticky = metadata.mode() & 0o1000 != 0 && dir != bin;
            if metadata.uid() != owner || (metadata.mode() & others != 0 && !is_sticky) {
                return Err(Error::local_hint(
                    format!(
                        "{} can be written by others than root, who could put a program of theirs in the place of ours.",
                        dir.display()
                    ),
                    "choose another place: --prefix /opt/nightshift",
                ));
            }
        }
        Ok(())
    }

    /// Where the programs of services that are installed lie.
    pub(crate) fn installed_prefix(&self) -> Result<Option<PathBuf>> {
        for part in Part::ALL {
            if let Some(text) = self.text(&self.layout.unit(part))? {
                let program = units::program(self.layout.manager, &text);
                // PREFIX/bin/NAME
                let prefix = program.as_deref().and_then(|program| program.parent()?.parent());
                if let Some(prefix) = prefix {
                    return Ok(Some(prefix.to_owned()));
                }
            }
        }
        Ok(None)
    }

    /// The service as its manager knows it.
    pub(crate) async fn state(&self, part: Part) -> Result<State> {
        let label = self.layout.label(part);
        let said = match self.layout.manager {
            Manager::Launchd => self.ask(LAUNCHCTL, &["print", &format!("system/{label}")]).await?,
            Manager::Systemd => {
                let properties = "--property=LoadState,ActiveState,MainPID";
                self.ask(SYSTEMCTL, &["show", properties, label]).await?
            }
        };
        match (self.layout.manager, said) {
            (Manager::Launchd, Ok(text)) => Ok(of_launchd(&text)),
            // So it says that it knows none of that name.
            (Manager::Launchd, Err(_)) => Ok(State::Absent),
            (Manager::Systemd, said) => Ok(of_systemd(&said?)),
        }
    }

    /// User and group number.
    pub(crate) async fn user(&self, name: &str) -> Result<Option<(u32, u32)>> {
        let mut numbers = Vec::new();
        for which in ["-u", "-g"] {
            match self.ask(ID, &[which, "--", name]).await? {
                Ok(text) => numbers.extend(text.trim().parse::<u32>().ok()),
                Err(_) => return Ok(None),
            }
        }
        Ok(match numbers[..] {
            [user, group] => Some((user, group)),
            _ => None,
        })
    }

    async fn free_number(&self) -> Result<Option<u32>> {
        let mut used = BTreeSet::new();
        for (records, key) in [("/Users", "UniqueID"), ("/Groups", "PrimaryGroupID")] {
            let text = self.ask(DSCL, &[".", "-list", records, key]).await??;
            used.extend(text.lines().filter_map(|line| line.split_whitespace().last()?.parse::<u32>().ok()));
        }
        Ok(NUMBERS.rev().find(|number| !used.contains(number)))
    }

    /// What one of the system's programs says; the inner error is what it says no with.
    async fn ask(&self, program: &str, arguments: &[&str]) -> Result<Result<String>> {
        let said = siblings::consult(&self.at(Path::new(program)), arguments, b"", Limits::DEFAULT).await?;
        Ok(said.map(|said| String::from_utf8_lossy(&said).into_owned()))
    }

    fn text(&self, path: &Path) -> Result<Option<String>> {
        let path = self.at(path);
        let mut text = String::new();
        match File::open(&path).and_then(|file| file.take(MOST_TEXT_BYTES).read_to_string(&mut text)) {
            Ok(_) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unreadable(&path, &error)),
        }
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Error {
    let hint = "run it with sudo";
    let message = format!("Cannot read {}: {error}.", path.display());
    if error.kind() == io::ErrorKind::PermissionDenied {
        Error::local_hint(message, hint)
    } else {
        Error::local(message)
    }
}

/// Whether two files have the same bytes.
fn same(a: &Path, b: &Path) -> io::Result<bool> {
    if fs::metadata(a)?.len() != fs::metadata(b)?.len() {
        return Ok(false);
    }
    let (mut a, mut b) = (BufReader::new(File::open(a)?), BufReader::new(File::open(b)?));
    let (mut of_a, mut of_b) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let n = a.read(&mut of_a)?;
        if n == 0 {
            return Ok(b.read(&mut of_b)? == 0);
        }
        match b.read_exact(&mut of_b[..n]) {
            Ok(()) if of_a[..n] == of_b[..n] => {}
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}

/// `launchctl print`, whose text Apple calls no interface: only the service's own lines are read, one tab deep.
fn of_launchd(text: &str) -> State {
    let own: BTreeMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.strip_prefix('\t').filter(|rest| !rest.starts_with('\t'))?.split_once(" = "))
        .collect();
    match (own.get("state"), own.get("pid").and_then(|pid| pid.parse().ok())) {
        (Some(&"running"), Some(pid)) => State::Running { pid },
        _ => State::Stopped,
    }
}

/// `systemctl show`.
fn of_systemd(text: &str) -> State {
    let says: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
    match (
        says.get("LoadState"),
        says.get("ActiveState"),
        says.get("MainPID").and_then(|pid| pid.parse().ok()),
    ) {
        (Some(&"not-found"), ..) | (None, ..) => State::Absent,
        (_, Some(&"active"), Some(pid)) if pid > 0 => State::Running { pid },
        _ => State::Stopped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_of_launchd() {
        let running = "system/io.nightshift.agent = {\n\tactive count = 1\n\tstate = running\n\n\tpid = 105\n\
            \targuments = {\n\t\tstate = x\n\t}\n\tresource coalition = {\n\t\tstate = active\n\t\tpid = 7\n\t}\n}\n";
        assert_eq!(of_launchd(running), State::Running { pid: 105 });
        let failing = "system/io.nightshift.agent = {\n\tstate = spawn scheduled\n\tlast exit code = 1\n}\n";
        assert_eq!(of_launchd(failing), State::Stopped);
        assert_eq!(of_launchd(""), State::Stopped);
    }

    #[test]
    fn a_service_of_systemd() {
        assert_eq!(
            of_systemd("LoadState=loaded\nActiveState=active\nMainPID=7\n"),
            State::Running { pid: 7 }
        );
        for stopped in ["LoadState=loaded\nActiveState=activating\nMainPID=0\n", "LoadState=loaded\n"] {
            assert_eq!(of_systemd(stopped), State::Stopped);
        }
        for absent in ["LoadState=not-found\nActiveState=inactive\nMainPID=0\n", ""] {
            assert_eq!(of_systemd(absent), State::Absent);
        }
    }

    #[test]
    fn files_are_the_same_when_their_bytes_are() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let mut bytes = vec![7; (1 << 16) + 1];
        fs::write(&a, &bytes).unwrap();
        fs::write(&b, &bytes).unwrap();
        assert!(same(&a, &b).unwrap());
        bytes[1 << 16] = 8;
        fs::write(&b, &bytes).unwrap();
        assert!(!same(&a, &b).unwrap());
        fs::write(&b, &bytes[1..]).unwrap();
        assert!(!same(&a, &b).unwrap());
    }
}
