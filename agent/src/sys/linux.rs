//! What `/proc` tells of a process.

use std::fs;

use crate::probe::parse::linux::process_stat;

pub(super) fn process_start(pid: u32) -> Option<u64> {
    let stat = process_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
    (stat.state != 'Z' && stat.state != 'X').then_some(stat.start_ticks)
}
