//! What `/proc` tells of a process.

use std::fs;

use nix::unistd::{SysconfVar, sysconf};

use crate::probe::parse::linux::process_stat;

/// The second number of `statm` (man 5 proc).
pub(super) fn footprint_bytes(pid: u32) -> Option<u64> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let resident_pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    let page_bytes = u64::try_from(sysconf(SysconfVar::PAGE_SIZE).ok()??).ok()?;
    resident_pages.checked_mul(page_bytes)
}

pub(super) fn process_start(pid: u32) -> Option<u64> {
    let stat = process_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
    (stat.state != 'Z' && stat.state != 'X').then_some(stat.start_ticks)
}
