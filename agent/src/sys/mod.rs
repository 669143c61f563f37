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

/// What the system counts of a process's memory: on macOS its `phys_footprint`, by which it is ended when memory runs out and which
/// holds what the GPU uses of it (FIELD-NOTES 4); on Linux what of it is resident. `None` when there is no such process.
#[must_use]
pub fn footprint_bytes(pid: u32) -> Option<u64> {
    native::footprint_bytes(pid)
}

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
    fn a_process_that_takes_memory_has_more_of_it() {
        const MIB: u64 = 1 << 20;
        let me = std::process::id();
        let before = footprint_bytes(me).unwrap();
        let taken = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = footprint_bytes(me).unwrap();
        assert!(after >= before + 32 * MIB, "{before} {after} {}", taken.len());
        assert_eq!(footprint_bytes(u32::MAX), None);
    }

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
