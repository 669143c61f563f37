//! One step, in words and as commands.

use std::path::PathBuf;

use super::layout::{Layout, Manager, Part, Program};

/// A change of this machine, or a look whether one has taken effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// A user for workers, who cannot log in; on macOS with this number, for the user and its group.
    MakeUser { name: String, home: PathBuf, number: Option<u32> },
    /// With this mode; of this user, else of root.
    MakeDirectory { path: PathBuf, mode: u32, owner: Option<String> },
    /// Puts a program beside its place, so that nothing large is written while a service is down.
    Stage { program: Program, from: PathBuf, to: PathBuf },
    /// Takes back what `cluster-agent link` has changed.
    ResetLinks { program: PathBuf },
    /// Ends a service, and waits until it is gone.
    Stop { part: Part },
    /// Puts a staged program into its place.
    Place { to: PathBuf },
    /// Goes on with what an installation that was interrupted has put in place.
    Resume { to: PathBuf },
    /// Writes a small file.
    Write { path: PathBuf, text: String, mode: u32 },
    /// Makes the service manager forget a service before its file goes.
    Disable { part: Part },
    /// Has the service manager see that service files have gone.
    Reload,
    /// Starts a service, now and at each start of the machine.
    Start { part: Part },
    /// Sees to it that a service runs and goes on running.
    Verify { part: Part },
    /// Removes a file.
    Remove { path: PathBuf },
    /// Removes a directory and all that is in it.
    RemoveTree { path: PathBuf },
    /// Removes a directory, if nothing is in it.
    RemoveEmpty { path: PathBuf },
    /// Removes the user that was made for workers.
    RemoveUser { name: String },
}

/// A program of the system's and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Command {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
}

impl Command {
    fn new(program: &str, arguments: &[&str]) -> Self {
        Self { program: program.into(), arguments: arguments.iter().map(|&word| word.to_owned()).collect() }
    }

    /// As a person would type it.
    pub(crate) fn line(&self) -> String {
        let program = self.program.to_string_lossy();
        let words = std::iter::once(&*program).chain(self.arguments.iter().map(String::as_str));
        words.map(quoted).collect::<Vec<_>>().join(" ")
    }
}

fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-=:,+@%".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

pub(crate) const LAUNCHCTL: &str = "/bin/launchctl";
pub(crate) const DSCL: &str = "/usr/bin/dscl";
pub(crate) const SYSTEMCTL: &str = "/usr/bin/systemctl";
pub(crate) const ID: &str = "/usr/bin/id";
const USERADD: &str = "/usr/sbin/useradd";
const USERDEL: &str = "/usr/sbin/userdel";

impl Step {
    /// What it does, without a full stop.
    pub(crate) fn words(&self, layout: &Layout) -> String {
        let path = |path: &PathBuf| path.display().to_string();
        match self {
            Self::MakeUser { name, .. } => format!("make the user {name}, who cannot log in, for workers"),
            Self::MakeDirectory { path: dir, mode, owner } => {
                let owner = owner.as_ref().map(|owner| format!(", of {owner}")).unwrap_or_default();
                format!("make the directory {} (mode {mode:o}{owner})", path(dir))
            }
            Self::Stage { program, from, to } => {
                format!("copy {} from {} to {}", program.name(), path(from), path(&staged(to)))
            }
            Self::ResetLinks { .. } => "take back what link preparation has changed".to_owned(),
            Self::Stop { part } => {
                format!("stop {}, and wait until it is gone", layout.label(*part))
            }
            Self::Place { to } => format!("put {} in its place", path(to)),
            Self::Resume { to } => {
                format!("go on with {}, which an interrupted installation has put in place", path(to))
            }
            Self::Reload => "have the service manager look at its files".to_owned(),
            Self::Write { path: file, mode, .. } => format!("write {} (mode {mode:o})", path(file)),
            Self::Disable { part } => format!("forget {}", layout.label(*part)),
            Self::Start { part } => format!("start {}, now and with the machine", layout.label(*part)),
            Self::Verify { part } => format!("see that {} runs and goes on running", layout.label(*part)),
            Self::Remove { path: file } => format!("remove {}", path(file)),
            Self::RemoveTree { path: dir } => format!("remove {} and all that is in it", path(dir)),
            Self::RemoveEmpty { path: dir } => format!("remove {}, if it is empty", path(dir)),
            Self::RemoveUser { name } => format!("remove the user {name}"),
        }
    }

    /// What is run for it, in this order.
    pub(crate) fn commands(&self, layout: &Layout) -> Vec<Command> {
        let unit = |part: Part| layout.unit(part).to_string_lossy().into_owned();
        match (layout.manager, self) {
            (Manager::Launchd, Self::MakeUser { name, home, number }) => {
                make_user_of_macos(name, &home.to_string_lossy(), number.unwrap_or_default())
            }
            (Manager::Systemd, Self::MakeUser { name, home, .. }) => {
                let home = home.to_string_lossy();
                let shell = "/usr/sbin/nologin";
                let words = [
                    "--system",
                    "--user-group",
                    "--no-create-home",
                    "--home-dir",
                    &home,
                    "--shell",
                    shell,
                    name,
                ];
                vec![Command::new(USERADD, &words)]
            }
            (Manager::Launchd, Self::RemoveUser { name }) => vec![
                Command::new(DSCL, &[".", "-delete", &format!("/Users/{name}")]),
                Command::new(DSCL, &[".", "-delete", &format!("/Groups/{name}")]),
            ],
            (Manager::Systemd, Self::RemoveUser { name }) => vec![Command::new(USERDEL, &[name])],
            (Manager::Launchd, Self::Stop { part }) => {
                vec![Command::new(LAUNCHCTL, &["bootout", &format!("system/{}", layout.label(*part))])]
            }
            (Manager::Systemd, Self::Stop { part }) => {
                vec![Command::new(SYSTEMCTL, &["stop", layout.label(*part)])]
            }
            (Manager::Launchd, Self::Start { part }) => vec![
                // It may have been disabled by hand, and then bootstrap refuses.
                Command::new(LAUNCHCTL, &["enable", &format!("system/{}", layout.label(*part))]),
                Command::new(LAUNCHCTL, &["bootstrap", "system", &unit(*part)]),
            ],
            (Manager::Systemd, Self::Start { part }) => vec![
                Command::new(SYSTEMCTL, &["daemon-reload"]),
                Command::new(SYSTEMCTL, &["enable", layout.label(*part)]),
                Command::new(SYSTEMCTL, &["start", layout.label(*part)]),
            ],
            (Manager::Systemd, Self::Disable { part }) => {
                vec![Command::new(SYSTEMCTL, &["disable", layout.label(*part)])]
            }
            (Manager::Systemd, Self::Reload) => vec![Command::new(SYSTEMCTL, &["daemon-reload"])],
            (_, Self::ResetLinks { program }) => {
                vec![Command::new(&program.to_string_lossy(), &["link", "reset", "--once"])]
            }
            _ => Vec::new(),
        }
    }
}

/// Where a program lies before it is put into its place.
pub(crate) fn staged(to: &std::path::Path) -> PathBuf {
    with_ending(to, ".new")
}

/// Where what was there before lies until all is well.
pub(crate) fn kept(to: &std::path::Path) -> PathBuf {
    with_ending(to, ".before-install")
}

fn with_ending(path: &std::path::Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(ending);
    path.with_file_name(name)
}

/// dscl(1): a hidden user and a group of the same number, without password and shell.
fn make_user_of_macos(name: &str, home: &str, number: u32) -> Vec<Command> {
    let (user, group, number) = (format!("/Users/{name}"), format!("/Groups/{name}"), number.to_string());
    let create = |record: &str, rest: &[&str]| {
        let words: Vec<&str> = [".", "-create", record].into_iter().chain(rest.iter().copied()).collect();
        Command::new(DSCL, &words)
    };
    vec![
        create(&group, &[]),
        create(&group, &["PrimaryGroupID", &number]),
        create(&group, &["Password", "*"]),
        create(&user, &[]),
        create(&user, &["PrimaryGroupID", &number]),
        create(&user, &["RealName", "Nightshift workers"]),
        create(&user, &["NFSHomeDirectory", home]),
        create(&user, &["UserShell", "/usr/bin/false"]),
        create(&user, &["Password", "*"]),
        create(&user, &["IsHidden", "1"]),
        // Last: by it the system knows the user, and one that is known has everything.
        create(&user, &["UniqueID", &number]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_can_be_typed_as_it_is_printed() {
        let line = |words: &[&str]| Command::new("/bin/x", words).line();
        assert_eq!(line(&["-a", "b=c", "system/io.x"]), "/bin/x -a b=c system/io.x");
        assert_eq!(line(&["*", "", "it's here"]), r"/bin/x '*' '' 'it'\''s here'");
    }

    #[test]
    fn names_beside_a_place_stay_in_its_directory() {
        assert_eq!(staged("/usr/local/bin/clusterd".as_ref()), PathBuf::from("/usr/local/bin/clusterd.new"));
        assert_eq!(kept("/a b/c.toml".as_ref()), PathBuf::from("/a b/c.toml.before-install"));
    }
}
