//! The Thunderbolt buses of this cluster, as far as its controllers have told; kept on disk, so that ports can be prepared after a
//! restart of everything, before anybody has told again.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use nightshift_proto::v1;
use tokio::sync::watch;

use crate::durable;

/// A hundred nodes of five ports.
pub const MOST_KNOWN: usize = 512;

/// A UUID has 36; whatever else a system calls its buses by is no longer than this.
const MOST_CHARS: usize = 64;

/// Takes in what a controller tells. Clones are the same.
#[derive(Debug, Clone)]
pub struct ClusterPorts(Arc<watch::Sender<BTreeSet<String>>>);

impl ClusterPorts {
    /// What was told before is in this file, if it is there. One that makes no sense is as none: the next session tells again.
    #[must_use]
    pub fn open(path: &Path) -> Self {
        let found = match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
            Err(error) => Err(error),
        };
        let known = found.unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "which ports are this cluster's cannot be read; the controller tells again");
            BTreeSet::new()
        });
        Self(Arc::new(watch::channel(known).0))
    }

    /// Adds what a controller tells.
    pub fn learn(&self, told: &v1::ClusterPorts) {
        self.0.send_if_modified(|known| {
            let before = known.len();
            for uuid in &told.domain_uuids {
                if known.len() < MOST_KNOWN && (1..=MOST_CHARS).contains(&uuid.len()) {
                    known.insert(uuid.clone());
                }
            }
            known.len() > before
        });
    }

    /// All that are known; wakes whoever waits for more.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<BTreeSet<String>> {
        self.0.subscribe()
    }
}

/// Where they are kept.
#[must_use]
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("cluster-ports.json")
}

/// Keeps them.
///
/// # Errors
/// Whatever the file system says.
pub fn save(path: &Path, known: &BTreeSet<String>) -> io::Result<()> {
    durable::replace_file(path, &serde_json::to_vec(known).map_err(io::Error::other)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(uuids: &[&str]) -> v1::ClusterPorts {
        v1::ClusterPorts { domain_uuids: uuids.iter().map(|&uuid| uuid.to_owned()).collect() }
    }

    #[test]
    fn what_was_told_is_kept_and_grows_within_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let file = path(dir.path());
        let ports = ClusterPorts::open(&file);
        let mut known = ports.subscribe();
        ports.learn(&told(&["A", "B", ""]));
        assert!(known.has_changed().unwrap());
        save(&file, &known.borrow_and_update().clone()).unwrap();
        ports.learn(&told(&["A"]));
        assert!(!known.has_changed().unwrap(), "nothing new");

        let again = ClusterPorts::open(&file);
        again.learn(&told(&["C"]));
        assert_eq!(again.subscribe().borrow().iter().cloned().collect::<Vec<_>>(), ["A", "B", "C"]);
        let many: Vec<String> = (0..2_000).map(|n| format!("X{n}")).collect();
        again.learn(&v1::ClusterPorts { domain_uuids: many });
        assert_eq!(again.subscribe().borrow().len(), MOST_KNOWN);
        fs::write(&file, "torn").unwrap();
        assert!(ClusterPorts::open(&file).subscribe().borrow().is_empty());
    }
}
