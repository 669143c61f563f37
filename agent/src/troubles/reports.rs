//! Reads the system's reports on what happened, each once.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use jiff::fmt::strtime;

use super::Sign;
use crate::probe::parse::mac::reports::report;

/// Beginnings of their names (FIELD-NOTES 3).
const NAMES: [&str; 3] = ["gpuEvent-", "JetsamEvent-", "panic-full-"];

/// The longest, of processes ended for memory, have some hundred kilobytes.
const MOST_BYTES: u64 = 4 << 20;

/// What is older is of another night.
const LOOK_BACK: Duration = Duration::from_secs(24 * 3_600);

/// A file that makes no sense and is older is not being written any more.
const WRITTEN_WITHIN: Duration = Duration::from_secs(60);

/// The directories in which reports appear.
#[derive(Debug)]
pub struct Reports {
    dirs: Vec<PathBuf>,
    read: BTreeSet<PathBuf>,
}

impl Reports {
    /// Of these directories, which need not be there yet.
    #[must_use]
    pub fn new(dirs: Vec<PathBuf>) -> Self {
        Self { dirs, read: BTreeSet::new() }
    }

    /// What there is that was not read yet. Blocks on the disk.
    pub fn new_ones(&mut self, now: SystemTime) -> Vec<Sign> {
        let mut there = BTreeSet::new();
        let mut signs = Vec::new();
        for path in self.dirs.iter().flat_map(|dir| names_in(dir)) {
            let Ok(modified) = fs::metadata(&path).and_then(|metadata| metadata.modified()) else { continue };
            let age = now.duration_since(modified).unwrap_or_default();
            if age > LOOK_BACK {
                continue;
            }
            there.insert(path.clone());
            if self.read.contains(&path) {
                continue;
            }
            match text(&path).as_deref().and_then(report) {
                Some(report) => {
                    let unix_ms =
                        report.timestamp.as_deref().and_then(unix_ms).unwrap_or_else(|| since_1970(modified));
                    signs.push(Sign::Report { report, unix_ms });
                    self.read.insert(path);
                }
                None if age > WRITTEN_WITHIN => {
                    self.read.insert(path);
                }
                None => {}
            }
        }
        self.read.retain(|path| there.contains(path));
        signs
    }
}

fn names_in(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| {
        let name = entry.file_name();
        NAMES.iter().any(|begins| name.to_string_lossy().starts_with(begins))
    });
    let mut paths: Vec<PathBuf> = ours.map(|entry| entry.path()).collect();
    paths.sort_unstable();
    paths
}

fn text(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MOST_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Such as `2026-11-26 02:00:01.00 +0100`.
fn unix_ms(timestamp: &str) -> Option<u64> {
    let parsed = strtime::parse("%Y-%m-%d %H:%M:%S%.f %z", timestamp).ok()?;
    u64::try_from(parsed.to_timestamp().ok()?.as_millisecond()).ok()
}

fn since_1970(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::parse::mac::reports::Tells;

    const GPU: &str = "{\"bug_type\":\"284\",\"timestamp\":\"2026-11-26 02:00:01.00 +0100\",\"incident_id\":\"I-1\"}\n\
        {\"process_name\":\"python3.13\"}";

    fn age(path: &Path, age: Duration) {
        let file = File::options().append(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
    }

    #[test]
    fn each_is_read_once_and_those_of_other_nights_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut reports = Reports::new(vec![dir.path().to_owned(), dir.path().join("absent")]);
        assert_eq!(reports.new_ones(SystemTime::now()), []);
        let path = |name: &str| dir.path().join(name);
        fs::write(path("gpuEvent-python3.13-2026-11-26-020001.ips"), GPU).unwrap();
        fs::write(path("Safari-2026-11-26.ips"), GPU).unwrap();
        fs::write(path("gpuEvent-old.ips"), GPU).unwrap();
        age(&path("gpuEvent-old.ips"), LOOK_BACK + Duration::from_secs(9));
        let signs = reports.new_ones(SystemTime::now());
        let [Sign::Report { report, unix_ms }] = signs.as_slice() else { panic!("{signs:?}") };
        assert!(matches!(report.tells, Tells::GpuRestart { .. }));
        assert_eq!(*unix_ms, 1_795_654_801_000, "in its own time zone");
        assert_eq!(reports.new_ones(SystemTime::now()), []);
    }

    #[test]
    fn one_that_is_being_written_is_read_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let mut reports = Reports::new(vec![dir.path().to_owned()]);
        let path = dir.path().join("gpuEvent-x.ips");
        fs::write(&path, &GPU[..20]).unwrap();
        assert_eq!(reports.new_ones(SystemTime::now()), []);
        fs::write(&path, GPU).unwrap();
        assert_eq!(reports.new_ones(SystemTime::now()).len(), 1);
        // One that makes no sense is not tried for ever.
        let broken = dir.path().join("panic-full-x.panic");
        fs::write(&broken, "no report").unwrap();
        age(&broken, WRITTEN_WITHIN + Duration::from_secs(9));
        assert_eq!(reports.new_ones(SystemTime::now()), []);
        assert!(reports.read.contains(&broken));
        fs::remove_file(&broken).unwrap();
        reports.new_ones(SystemTime::now());
        assert!(!reports.read.contains(&broken), "and forgotten with its file");
    }
}
