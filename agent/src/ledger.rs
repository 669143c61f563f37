//! Which controller's ledger this node works for.
//!
//! Job numbers and launches mean something within one ledger only. A controller with another one (a new state directory,
//! or another controller at the same address) must get nothing of the old: its workers are ended, what is spooled is set
//! aside, and launches are counted anew. Set aside, not removed: answers are the product of a night, and whoever pointed
//! the agent at a wrong controller wants them back.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{durable, util};

/// What was set aside is kept this many times; each may be as large as the spool.
const MAX_SET_ASIDE: usize = 3;

/// Why it cannot be told or changed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}", path.display())]
pub struct Error {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Ledger {
    state_dir: PathBuf,
    id: String,
}

impl Ledger {
    /// Reads which one it is; none, on a new node.
    ///
    /// # Errors
    /// When it cannot be read. It is then not taken for absent.
    pub fn open(state_dir: &Path) -> Result<Self, Error> {
        let path = file(state_dir);
        let id = match fs::read_to_string(&path) {
            Ok(text) => text.trim().to_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(Error { doing: "read", path, source }),
        };
        Ok(Self { state_dir: state_dir.to_owned(), id })
    }

    /// Its name; empty when there never was one.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether a controller with this ledger gets what is here. One that names none is taken for the one known.
    #[must_use]
    pub fn is(&self, id: &str) -> bool {
        id.is_empty() || self.id.is_empty() || self.id == id
    }

    /// Works for this ledger from now on; durable when it returns.
    ///
    /// # Errors
    /// When it cannot be written; nothing has changed then.
    pub fn take(&mut self, id: &str) -> Result<(), Error> {
        if id.is_empty() || self.id == id {
            return Ok(());
        }
        let path = file(&self.state_dir);
        durable::replace_file(&path, format!("{id}\n").as_bytes()).map_err(|source| Error {
            doing: "write",
            path,
            source,
        })?;
        self.id = id.to_owned();
        Ok(())
    }

    /// A new directory for what belongs to this ledger, when another takes its place. The oldest of earlier ones go.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn place_aside(&self) -> Result<PathBuf, Error> {
        let all = self.state_dir.join("set-aside");
        let failed = |source| Error { doing: "make room in", path: all.clone(), source };
        fs::create_dir_all(&all).map_err(failed)?;
        let mut earlier: Vec<PathBuf> =
            fs::read_dir(&all).map_err(failed)?.flatten().map(|entry| entry.path()).collect();
        // Their names begin with the time.
        earlier.sort();
        while earlier.len() >= MAX_SET_ASIDE {
            fs::remove_dir_all(earlier.remove(0)).map_err(failed)?;
        }
        let place = all.join(format!("{:015}-{}", util::unix_ms(), plain(&self.id)));
        fs::create_dir(&place).map_err(failed)?;
        Ok(place)
    }
}

fn file(state_dir: &Path) -> PathBuf {
    state_dir.join("ledger-id")
}

/// A controller's word does not become a path.
fn plain(id: &str) -> String {
    id.chars().filter(char::is_ascii_alphanumeric).take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_ledger_is_taken_and_another_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(dir.path()).unwrap();
        assert!(ledger.id().is_empty() && ledger.is("a") && ledger.is(""));
        ledger.take("a").unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        assert!(ledger.is("a") && ledger.is("") && !ledger.is("b"));
    }

    #[test]
    fn what_is_set_aside_is_bounded_and_stays_within_the_state_directory() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(dir.path()).unwrap();
        ledger.take("../../etc").unwrap();
        for n in 0..5 {
            let place = ledger.place_aside().unwrap();
            assert!(
                place.starts_with(dir.path().join("set-aside"))
                    && place.ends_with(place.file_name().unwrap())
            );
            fs::write(place.join("n"), n.to_string()).unwrap();
            // Names are made of milliseconds.
            while *util::unix_ms().to_string() <= place.file_name().unwrap().to_string_lossy()[2..15] {}
        }
        assert_eq!(fs::read_dir(dir.path().join("set-aside")).unwrap().count(), MAX_SET_ASIDE);
    }
}
