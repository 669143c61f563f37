//! Workers that a killed agent left behind, found by their records and ended before anything else is started.
//!
//! A process is one of ours only if its pid **and** its start time are those of the record, and the record is of this
//! boot. Where only the leader is gone, the rest of its group is left alone: its number alone proves nothing.
//!
//! A test of a link is ended like a worker, and nobody is told: no job waits for it, and its answer went with the session.

use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nightshift_proto::v1;
use nix::sys::signal::Signal;

use crate::{
    link_test, sys,
    worker::{
        process::Group,
        record::{self, Record},
        task::Departure,
    },
};

/// Between SIGTERM and SIGKILL. The worker has lost its agent: there is nobody to hand checkpoints to, so this is only
/// for giving its memory back (FIELD-NOTES 4).
pub const GRACE: Duration = Duration::from_secs(5);

/// A process that does not go even by SIGKILL hangs in the kernel; the start is not held up longer for it.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// How often to look. Polled, because these are not our children, whose end the kernel would announce.
const LOOK: Duration = Duration::from_millis(20);

/// Why leftovers could not be looked for.
#[derive(Debug, thiserror::Error)]
#[error("cannot look for workers left behind in {}", dir.display())]
pub struct Error {
    dir: PathBuf,
    source: io::Error,
}

/// Ends all leftovers recorded in `dir` and removes their records. What is returned is to be told to the controller, a
/// worker that had ended by itself included and tests of links not. Blocks for [`GRACE`] and a little at most.
///
/// # Errors
/// When the directory cannot be read.
pub fn end_all(dir: &Path, boot_id: Option<&str>, grace: Duration) -> Result<Vec<Departure>, Error> {
    let files = record::read_all(dir).map_err(|source| Error { dir: dir.to_owned(), source })?;
    let is_ours = |record: &Record| {
        let same_boot = record.boot_id.as_deref() == boot_id;
        same_boot && record.start_time.is_some() && sys::process_start(record.pid) == record.start_time
    };
    let mut ended: Vec<(PathBuf, Record, How)> = Vec::new();
    for (path, record) in files {
        match record {
            Some(record) => ended.push((path, record, How::Gone)),
            None => {
                tracing::info!(path = %path.display(), "this is no record of a worker; it is removed");
                remove(&path);
            }
        }
    }
    for (_, record, how) in ended.iter_mut().filter(|(_, record, _)| is_ours(record)) {
        tracing::info!(key = %record.key(), pid = record.pid, "a worker of an earlier agent is still there; SIGTERM to its group");
        Group::led_by(record.pid).signal(Signal::SIGTERM);
        *how = How::Terminated;
    }
    wait_for(&ended, is_ours, grace);
    for (_, record, how) in ended.iter_mut().filter(|(_, record, how)| *how != How::Gone && is_ours(record)) {
        tracing::info!(key = %record.key(), pid = record.pid, "it did not end; SIGKILL to its group");
        Group::led_by(record.pid).signal(Signal::SIGKILL);
        *how = How::Killed;
    }
    wait_for(&ended, is_ours, KILL_LIMIT);
    let mut departures = Vec::new();
    for (path, record, how) in ended {
        if how != How::Gone && is_ours(&record) {
            // Its record stays: the next start tries again.
            tracing::error!(key = %record.key(), pid = record.pid, "a worker left behind cannot be ended");
            continue;
        }
        remove(&path);
        if record.job_id != link_test::NO_JOB {
            departures.push(departure(&record, how, boot_id));
        }
    }
    Ok(departures)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// It was not there any more.
    Gone,
    Terminated,
    Killed,
}

fn wait_for(ended: &[(PathBuf, Record, How)], is_ours: impl Fn(&Record) -> bool, limit: Duration) {
    let until = Instant::now() + limit;
    let left = || ended.iter().any(|(_, record, how)| *how != How::Gone && is_ours(record));
    while left() && Instant::now() < until {
        std::thread::sleep(LOOK);
    }
}

fn departure(record: &Record, how: How, boot_id: Option<&str>) -> Departure {
    let first_error = match how {
        How::Gone if record.boot_id.as_deref() != boot_id => "the machine was restarted",
        How::Gone => "it ended with the agent that had started it",
        How::Terminated => "its agent was gone; it was ended by SIGTERM",
        How::Killed => "its agent was gone; it was ended by SIGKILL",
    };
    Departure {
        key: record.key(),
        exited: v1::WorkerExited {
            class: v1::ExitClass::Leftover.into(),
            first_error: first_error.to_owned(),
            killed_while_loaded: how == How::Killed,
            ..Default::default()
        },
        checkpoints: Vec::new(),
        after_seq: 0,
    }
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "the record of a worker cannot be removed");
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader},
        os::unix::process::CommandExt as _,
        process::{Child, Command, Stdio},
        thread,
    };

    use super::*;

    /// A shell in a group of its own that runs `script` and has said that it does.
    fn process(script: &str) -> Child {
        let mut child = Command::new("sh")
            .args(["-c", &format!("{script}; echo up; exec sleep 1000")])
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        child
    }

    fn record_of(child: &Child) -> Record {
        Record {
            job_id: 7,
            epoch: u64::from(child.id()),
            rank: 0,
            pid: child.id(),
            start_time: sys::process_start(child.id()),
            boot_id: Some("b".into()),
        }
    }

    #[test]
    fn what_is_ours_is_ended_the_gentle_way_first() {
        let dir = tempfile::tempdir().unwrap();
        let (mut gentle, mut stubborn) = (process(":"), process("trap '' TERM"));
        record::write(dir.path(), &record_of(&gentle)).unwrap();
        record::write(dir.path(), &record_of(&stubborn)).unwrap();
        // Somebody has to collect them, as init does for orphans.
        let (one, two) =
            (thread::spawn(move || gentle.wait().unwrap()), thread::spawn(move || stubborn.wait().unwrap()));
        let ended = end_all(dir.path(), Some("b"), Duration::from_millis(300)).unwrap();
        use std::os::unix::process::ExitStatusExt as _;
        assert_eq!((one.join().unwrap().signal(), two.join().unwrap().signal()), (Some(15), Some(9)));
        let mut said: Vec<_> = ended.iter().map(|departure| departure.exited.first_error.as_str()).collect();
        said.sort_unstable();
        assert_eq!(
            said,
            ["its agent was gone; it was ended by SIGKILL", "its agent was gone; it was ended by SIGTERM"]
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_link_test_is_ended_and_nobody_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut test = process(":");
        let record = Record { job_id: link_test::NO_JOB, ..record_of(&test) };
        record::write(dir.path(), &record).unwrap();
        let gone = Record { epoch: record.epoch + 1, boot_id: Some("a".into()), ..record };
        record::write(dir.path(), &gone).unwrap();
        // Somebody has to collect it, as init does for orphans.
        let ended = thread::spawn(move || test.wait().unwrap());
        assert_eq!(end_all(dir.path(), Some("b"), GRACE).unwrap().len(), 0);
        assert!(!ended.join().unwrap().success());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_foreign_process_of_the_same_number_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut foreign = process(":");
        let real = record_of(&foreign);
        let other_start = Record { start_time: real.start_time.map(|start| start + 1), ..real.clone() };
        let other_boot = Record { epoch: 1, boot_id: Some("a".into()), ..real };
        record::write(dir.path(), &other_start).unwrap();
        record::write(dir.path(), &other_boot).unwrap();
        std::fs::write(dir.path().join("j1-e1-r0.json.tmp"), "{").unwrap();
        let ended = end_all(dir.path(), Some("b"), GRACE).unwrap();
        assert_eq!(ended.len(), 2);
        assert!(foreign.try_wait().unwrap().is_none(), "it still runs");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        foreign.kill().unwrap();
        foreign.wait().unwrap();
    }
}
