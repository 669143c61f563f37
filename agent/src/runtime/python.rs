//! Finds a Python interpreter to build the runtime with.

use std::{
    env, fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::process::Command;

/// The lowest version that mlx-lm 0.32.2 and transformers 5.23 install on (their `Requires-Python`).
pub const MIN_VERSION: (u32, u32) = (3, 11);

/// Names looked for, newest first. Nothing beyond the newest is asked for by name: there may be no MLX build for it.
const NAMES: [&str; 5] = ["python3.14", "python3.13", "python3.12", "python3.11", "python3"];

/// Where Homebrew and python.org put interpreters; a service started by launchd has none of them in its PATH.
const USUAL_DIRS: [&str; 4] = [
    "/opt/homebrew/bin",
    "/usr/local/bin",
    "/Library/Frameworks/Python.framework/Versions/Current/bin",
    "/usr/bin",
];

/// An interpreter that takes longer than this to say its version is not one to build on.
const ASK_LIMIT: Duration = Duration::from_secs(20);

/// Prints the version, then whether environments can be made.
const QUESTION: &str = "import sys\nprint('%d.%d.%d' % sys.version_info[:3])\ntry:\n    import venv, ensurepip\n    print('venv')\nexcept ImportError:\n    print('no venv')\n";

/// Why there is no interpreter.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// None of those found will do.
    #[error(
        "no Python {}.{} or newer was found{}. Install one ({}) or name it with --python",
        MIN_VERSION.0, MIN_VERSION.1, Seen(seen), install_hint()
    )]
    NoneFits {
        /// What was found, and why it will not do.
        seen: Vec<(PathBuf, String)>,
    },
    /// The one that was named will not do.
    #[error("{} cannot be used: {problem}", path.display())]
    Named {
        /// As named.
        path: PathBuf,
        /// Why not.
        problem: String,
    },
    /// An interpreter that cannot make environments.
    #[error(
        "{} (Python {version}) cannot make virtual environments: its venv or ensurepip module is missing. On Debian and \
         Ubuntu run `apt install python{}-venv`, or name another interpreter with --python",
        path.display(), minor_of(version)
    )]
    NoVenv {
        /// The interpreter.
        path: PathBuf,
        /// Its version.
        version: String,
    },
}

/// An interpreter that will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Python {
    /// Where it is.
    pub path: PathBuf,
    /// For example `3.11.7`.
    pub version: String,
}

/// The directories searched by [`find`]: those of `PATH`, then the usual ones.
#[must_use]
pub fn search_dirs() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).chain(USUAL_DIRS.iter().map(PathBuf::from)).collect()
}

/// The interpreter named, or the newest fit one in `dirs`.
///
/// # Errors
/// What was found and why none of it will do.
pub async fn find(named: Option<&Path>, dirs: &[PathBuf]) -> Result<Python, Error> {
    if let Some(path) = named {
        let named = |problem| Error::Named { path: path.to_owned(), problem };
        return match ask(path).await.map_err(named)? {
            Answer { version, .. } if !fits(&version) => Err(named(too_old(&version))),
            Answer { version, venv: false } => Err(Error::NoVenv { path: path.to_owned(), version }),
            Answer { version, venv: true } => Ok(Python { path: path.to_owned(), version }),
        };
    }
    let mut seen: Vec<(PathBuf, String)> = Vec::new();
    let mut without_venv = None;
    for path in NAMES.iter().flat_map(|name| dirs.iter().map(move |dir| dir.join(name))) {
        if !path.is_file() || seen.iter().any(|(known, _)| *known == path) {
            continue;
        }
        match ask(&path).await {
            Ok(Answer { version, venv: true }) if fits(&version) => return Ok(Python { path, version }),
            Ok(Answer { version, venv: false }) if fits(&version) => {
                seen.push((path.clone(), "it cannot make virtual environments".to_owned()));
                without_venv.get_or_insert(Error::NoVenv { path, version });
            }
            Ok(Answer { version, .. }) => seen.push((path, too_old(&version))),
            Err(problem) => seen.push((path, problem)),
        }
    }
    Err(without_venv.unwrap_or(Error::NoneFits { seen }))
}

struct Answer {
    version: String,
    venv: bool,
}

async fn ask(path: &Path) -> Result<Answer, String> {
    let mut command = Command::new(path);
    command.args(["-E", "-s", "-c", QUESTION]).kill_on_drop(true);
    let output = tokio::time::timeout(ASK_LIMIT, command.output())
        .await
        .map_err(|_| format!("it did not answer within {} s", ASK_LIMIT.as_secs()))?
        .map_err(|error| format!("it does not run: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let version = lines.next().filter(|line| parse(line).is_some());
    match version {
        Some(version) if output.status.success() => {
            Ok(Answer { version: version.to_owned(), venv: lines.next() == Some("venv") })
        }
        _ => {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("it says nothing");
            Err(format!("it does not run ({}): {said}", output.status))
        }
    }
}

fn parse(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

fn fits(version: &str) -> bool {
    parse(version).is_some_and(|version| version >= MIN_VERSION)
}

fn too_old(version: &str) -> String {
    format!("Python {version} is too old, {}.{} is needed by mlx-lm", MIN_VERSION.0, MIN_VERSION.1)
}

fn minor_of(version: &str) -> String {
    parse(version).map_or_else(|| "3".to_owned(), |(major, minor)| format!("{major}.{minor}"))
}

fn install_hint() -> &'static str {
    if cfg!(target_os = "macos") {
        "for example `brew install python@3.13`"
    } else {
        "for example `apt install python3 python3-venv`"
    }
}

struct Seen<'a>(&'a [(PathBuf, String)]);

impl fmt::Display for Seen<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (path, problem)) in self.0.iter().enumerate() {
            write!(out, "{}{}: {problem}", if n == 0 { " (" } else { "; " }, path.display())?;
        }
        if self.0.is_empty() { Ok(()) } else { out.write_str(")") }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A program of the given name that runs `script`.
    pub(in crate::runtime) fn fake(dir: &Path, name: &str, script: &str) -> PathBuf {
        let path = dir.join(name);
        crate::scripts::write(&path, script);
        path
    }

    #[tokio::test]
    async fn the_newest_that_runs_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        fake(dir.path(), "python3.13", "echo 'python3.13: command not found' >&2; exit 127");
        let good = fake(dir.path(), "python3.12", "echo 3.12.1; echo venv");
        fake(dir.path(), "python3", "echo 3.11.7; echo venv");
        let found = find(None, &[dir.path().to_owned()]).await.unwrap();
        assert_eq!(found, Python { path: good, version: "3.12.1".into() });
    }

    #[tokio::test]
    async fn without_a_fit_one_the_error_says_what_was_seen_and_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let none = find(None, &[dir.path().to_owned()]).await.unwrap_err().to_string();
        assert!(none.starts_with("no Python 3.11 or newer was found. Install one"), "{none}");
        fake(dir.path(), "python3", "echo 3.9.6; echo venv");
        let old = find(None, &[dir.path().to_owned()]).await.unwrap_err().to_string();
        assert!(old.contains("python3: Python 3.9.6 is too old, 3.11 is needed by mlx-lm)"), "{old}");
    }

    #[tokio::test]
    async fn debian_without_the_venv_package_gets_its_hint() {
        let dir = tempfile::tempdir().unwrap();
        let python = fake(dir.path(), "python3", "echo 3.11.2; echo 'no venv'");
        for named in [None, Some(python.as_path())] {
            let error = find(named, &[dir.path().to_owned()]).await.unwrap_err().to_string();
            assert!(error.contains("`apt install python3.11-venv`"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_named_one_is_not_replaced_by_another() {
        let dir = tempfile::tempdir().unwrap();
        fake(dir.path(), "python3", "echo 3.12.0; echo venv");
        let old = fake(dir.path(), "mine", "echo 3.10.1; echo venv");
        let error = find(Some(&old), &[dir.path().to_owned()]).await.unwrap_err().to_string();
        assert!(error.contains("mine cannot be used: Python 3.10.1 is too old"), "{error}");
        let error = find(Some(Path::new("/nonexistent")), &[]).await.unwrap_err().to_string();
        assert!(error.contains("it does not run"), "{error}");
    }
}
