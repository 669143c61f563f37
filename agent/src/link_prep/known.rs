//! The Thunderbolt buses of this cluster, as far as its controllers have told; kept on disk, so that ports can be prepared after a
//! restart of everything, before anybody has told again.

use std::{
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
pub struct ClusterPorts(Arc<watch::Sender<Vec<String>>>);

impl ClusterPorts {
    /// What was told before is in this file, if it is there. One that makes no sense is as none: the next session tells again.
    #[must_use]
    pub fn open(path: &Path) -> Self {
        let found = match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        };
        let known = found.unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "which ports are this cluster's cannot be read; the controller tells again");
            Vec::new()
        });
        Self(Arc::new(watch::channel(known).0))
    }

    /// Adds what a controller tells. Beyond the bound it is the ones told longest ago that are forgotten: a cluster whose Macs were
    /// replaced one by one goes on to be prepared.
    pub fn learn(&self, told: &v1::ClusterPorts) {
        let is_uuid = |uuid: &&String| (1..=MOST_CHARS).contains(&uuid.len());
        let told: Vec<&String> = told.domain_uuids.iter().filter(is_uuid).take(MOST_KNOWN).collect();
        self.0.send_if_modified(|known| {
            let mut next = known.clone();
            for uuid in told {
                next.retain(|known| known != uuid);
                next.push(uuid.clone());
            }
            next.drain(..next.len().saturating_sub(MOST_KNOWN));
            let differs = next != *known;
            *known = next;
            differs
        });
    }

    /// All that are known, those told last at the end; wakes whoever waits for more.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Vec<String>> {
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
pub fn save(path: &Path, known: &[String]) -> io::Result<()> {
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
        ports.learn(&told(&["A", "B"]));
        assert!(!known.has_changed().unwrap(), "nothing new");

        let again = ClusterPorts::open(&file);
        again.learn(&told(&["C"]));
        assert_eq!(*again.subscribe().borrow(), ["A", "B", "C"]);
        fs::write(&file, "torn").unwrap();
        assert!(ClusterPorts::open(&file).subscribe().borrow().is_empty());
    }

    #[test]
    fn what_was_told_longest_ago_makes_room_for_what_is_new() {
        let dir = tempfile::tempdir().unwrap();
        let file = path(dir.path());
        let ports = ClusterPorts::open(&file);
        let old: Vec<String> = (0..MOST_KNOWN).map(|n| format!("X{n}")).collect();
        ports.learn(&v1::ClusterPorts { domain_uuids: old });
        ports.learn(&told(&["X0"]));
        save(&file, &ports.subscribe().borrow()).unwrap();

        let again = ClusterPorts::open(&file);
        again.learn(&told(&["NEW", "NEWER"]));
        let mut known = again.subscribe();
        let has = |uuid: &str| known.borrow().iter().any(|known| known == uuid);
        assert_eq!(known.borrow().len(), MOST_KNOWN);
        assert!(has("NEW") && has("NEWER"));
        assert!(has("X0"), "it was told again since");
        assert!(!has("X1") && !has("X2") && has("X3"), "these were told longest ago");

        // However much one tells at once.
        let many: Vec<String> = (0..2_000).map(|n| format!("Y{n}")).collect();
        again.learn(&v1::ClusterPorts { domain_uuids: many.clone() });
        assert_eq!(known.borrow_and_update().len(), MOST_KNOWN);
        again.learn(&v1::ClusterPorts { domain_uuids: many });
        assert!(!known.has_changed().unwrap(), "the same again is nothing new");
    }
}
