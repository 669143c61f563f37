//! What `/proc` says about processes. On systems without it every answer is empty, and cases that rest on it declare
//! [`crate::suite::Need::Linux`].

use std::{fs, path::Path, time::Duration};

/// A process as `/proc` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its number.
    pub pid: u32,
    /// Clock ticks from boot to its start: with the number, its identity.
    pub start_ticks: u64,
    /// Its arguments, joined by spaces.
    pub command: String,
}

/// All living processes whose arguments or current directory lie in `dir`: everything a test cluster has started.
#[must_use]
pub fn processes_of(dir: &Path) -> Vec<Seen> {
    let needle = dir.to_string_lossy().into_owned();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut found: Vec<Seen> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(seen)
        .filter(|process: &Seen| process.command.contains(&needle))
        .collect();
    found.sort_by_key(|process| process.pid);
    found
}

/// The worker processes of a test cluster.
#[must_use]
pub fn workers_of(dir: &Path) -> Vec<Seen> {
    processes_of(dir).into_iter().filter(|process| process.command.contains("/worker-code/")).collect()
}

/// The process of this number, unless it is gone or a zombie.
#[must_use]
pub fn seen(pid: u32) -> Option<Seen> {
    let raw = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let command = raw
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect::<Vec<_>>()
        .join(" ");
    let stat = stat_fields(pid)?;
    if stat.first()?.starts_with(['Z', 'X']) {
        return None;
    }
    // Field 22 of the line; the first here is field 3 (man 5 proc_pid_stat).
    let start_ticks = stat.get(19)?.parse().ok()?;
    Some(Seen { pid, start_ticks, command })
}

/// Whether all threads of a process stand still after SIGSTOP: the signal stops them one by one.
#[must_use]
pub fn is_stopped(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    let mut threads = threads.flatten().map(|thread| fs::read_to_string(thread.path().join("stat")));
    threads.all(|stat| {
        stat.is_ok_and(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" T ")))
    })
}

/// Processor time a process has used so far, its threads included and its children not.
#[must_use]
pub fn cpu_time(pid: u32) -> Option<Duration> {
    let stat = stat_fields(pid)?;
    let ticks: u64 = stat.get(11)?.parse::<u64>().ok()? + stat.get(12)?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 1000 / ticks_per_second()))
}

/// Resident memory now, in bytes.
#[must_use]
pub fn resident_bytes(pid: u32) -> Option<u64> {
    status_kib(pid, "VmRSS:")
}

/// The largest resident memory so far, in bytes.
#[must_use]
pub fn peak_resident_bytes(pid: u32) -> Option<u64> {
    status_kib(pid, "VmHWM:")
}

fn ticks_per_second() -> u64 {
    // USER_HZ is 100 on every Linux we run on; sysconf agrees wherever it is asked.
    nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)
        .ok()
        .flatten()
        .and_then(|ticks| u64::try_from(ticks).ok())
        .filter(|ticks| *ticks > 0)
        .unwrap_or(100)
}

fn status_kib(pid: u32, field: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// The fields of `/proc/<pid>/stat` after the command's name, which may itself hold spaces and brackets.
fn stat_fields(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    Some(rest.split_ascii_whitespace().map(str::to_owned).collect())
}

/// Keeps a process, all its threads and whatever it starts from now on to one processor of this machine. Nothing happens
/// where there are not so many, or where the system has no such call.
pub fn keep_on_core(pid: u32, core: usize) {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return };
    for thread in threads.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()) {
        keep_thread_on_core(thread, core);
    }
}

#[cfg(target_os = "linux")]
fn keep_thread_on_core(thread: i32, core: usize) {
    use nix::{
        sched::{CpuSet, sched_getaffinity, sched_setaffinity},
        unistd::Pid,
    };
    let Ok(ours) = sched_getaffinity(Pid::from_raw(0)) else { return };
    let usable = (0..CpuSet::count()).filter(|number| ours.is_set(*number) == Ok(true));
    let mut one = CpuSet::new();
    if usable.into_iter().nth(core).is_some_and(|number| one.set(number).is_ok()) {
        // A thread that has ended meanwhile needs no processor.
        let _ = sched_setaffinity(Pid::from_raw(thread), &one);
    }
}

#[cfg(not(target_os = "linux"))]
fn keep_thread_on_core(_thread: i32, _core: usize) {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn this_very_process_is_seen() {
        let me = seen(std::process::id()).expect("a running process is in /proc");
        assert!(me.start_ticks > 0 && !me.command.is_empty());
        assert!(resident_bytes(me.pid) > Some(1 << 20));
        assert!(peak_resident_bytes(me.pid) >= resident_bytes(me.pid).map(|bytes| bytes / 2));
        assert!(cpu_time(me.pid).is_some());
        assert!(!is_stopped(me.pid));
        let marker = me.command.split(' ').next().expect("a command has a first word").to_owned();
        assert!(processes_of(Path::new(&marker)).contains(&me));
    }

    #[test]
    fn a_number_nobody_has_gives_nothing() {
        assert_eq!(seen(u32::MAX), None);
        assert_eq!(cpu_time(u32::MAX), None);
    }
}
