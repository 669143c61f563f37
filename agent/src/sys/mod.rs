//! What only calls of the system tell: of a process, and on macOS of the machine. The only place that may need unsafe code, and
//! needs it on macOS only (`macos.rs`).

#[cfg(target_os = "linux")]
#[path = "linux.rs"]
mod native;
#[cfg(target_os = "macos")]
#[path = "macos.rs"]
mod native;

#[cfg(target_os = "macos")]
pub use native::{accelerator, carrier, load_1m, pages};

/// A number that differs for two processes that had the same pid one after the other, within one boot: clock ticks
/// since boot on Linux, microseconds since 1970 on macOS. `None` when there is no such process (or one that has ended
/// and is only not collected yet), or its start cannot be learnt.
#[must_use]
pub fn process_start(pid: u32) -> Option<u64> {
    native::process_start(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_one_start_and_a_dead_one_none() {
        let me = std::process::id();
        assert!(process_start(me).is_some());
        assert_eq!(process_start(me), process_start(me));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        assert_eq!(process_start(pid), None);
    }
}
