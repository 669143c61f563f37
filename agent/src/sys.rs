//! What the system knows of a process: the only place that may need unsafe code, and needs it on macOS only.

/// A number that differs for two processes that had the same pid one after the other, within one boot: clock ticks
/// since boot on Linux, microseconds since 1970 on macOS. `None` when there is no such process (or one that has ended
/// and is only not collected yet), or its start cannot be learnt.
#[must_use]
pub fn process_start(pid: u32) -> Option<u64> {
    native::process_start(pid)
}

#[cfg(target_os = "linux")]
mod native {
    use std::fs;

    use crate::probe::parse::linux::process_stat;

    pub(super) fn process_start(pid: u32) -> Option<u64> {
        let stat = process_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
        (stat.state != 'Z' && stat.state != 'X').then_some(stat.start_ticks)
    }
}

#[cfg(target_os = "macos")]
mod native {
    use std::mem::MaybeUninit;

    use nix::libc;

    /// `SZOMB` of `sys/proc.h`.
    const ZOMBIE: u32 = 5;

    #[expect(unsafe_code, reason = "proc_pidinfo has no safe wrapper in nix")]
    pub(super) fn process_start(pid: u32) -> Option<u64> {
        let pid = libc::c_int::try_from(pid).ok()?;
        let size = libc::c_int::try_from(size_of::<libc::proc_bsdinfo>()).ok()?;
        let mut info = MaybeUninit::<libc::proc_bsdinfo>::zeroed();
        // SAFETY: the buffer is valid for `size` bytes, and the call writes no more than that.
        let written =
            unsafe { libc::proc_pidinfo(pid, libc::PROC_PIDTBSDINFO, 0, info.as_mut_ptr().cast(), size) };
        if written != size {
            return None;
        }
        // SAFETY: the call said that it filled the whole structure, which is plain integers.
        let info = unsafe { info.assume_init() };
        (info.pbi_status != ZOMBIE)
            .then(|| info.pbi_start_tvsec.saturating_mul(1_000_000).saturating_add(info.pbi_start_tvusec))
    }
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
