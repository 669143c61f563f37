//! What only calls of the system can tell, as plain values: nothing is judged on that side.

use serde::Deserialize;

use crate::probe::{Interface, parse::mac::gpu::Accelerator};

/// A Mac's kernel and drivers.
pub trait System: Send {
    /// Which boot, system and machine this is.
    fn identity(&mut self) -> Identity;

    /// Memory, now.
    fn memory(&mut self) -> SystemMemory;

    /// The GPU, now; `None` where there is none, or its driver cannot be asked.
    fn gpu(&mut self) -> Option<Accelerator>;

    /// Load average over one minute.
    fn load_1m(&mut self) -> Option<f64>;

    /// Network interfaces with their carrier.
    ///
    /// # Errors
    /// One sentence.
    fn interfaces(&mut self) -> Result<Vec<Interface>, String>;
}

/// Which boot, system and machine this is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Identity {
    /// `kern.bootsessionuuid`: another one with every boot, and the one that panic reports name. The time of the boot
    /// would move when somebody sets the clock.
    pub boot_session_uuid: Option<String>,
    /// `kern.osversion`, for example `25D125`.
    pub os_build: Option<String>,
    /// `hw.model`, for example `Mac16,9`.
    pub hardware_model: Option<String>,
}

/// Memory as the system counts it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct SystemMemory {
    /// `hw.memsize`.
    pub total_bytes: Option<u64>,
    /// Free, inactive, speculative and purgeable pages: what can be had without swapping.
    pub available_bytes: Option<u64>,
    /// Wired pages: Metal's buffers among them (FIELD-NOTES 4).
    pub wired_bytes: Option<u64>,
    /// Of `vm.swapusage`.
    pub swap_total_bytes: Option<u64>,
    /// Of `vm.swapusage`.
    pub swap_used_bytes: Option<u64>,
    /// `kern.memorystatus_vm_pressure_level`: 1 normal, 2 warning, 4 critical.
    pub pressure_level: Option<u32>,
    /// `iogpu.wired_limit_mb`: what the GPU may have wired, set by a person; 0: the system's own choice.
    pub wired_limit_mib: Option<u64>,
    /// Metal's `recommendedMaxWorkingSetSize`.
    pub recommended_working_set_bytes: Option<u64>,
}

impl SystemMemory {
    /// What the GPU may use: what a person set, or else what Metal recommends.
    #[must_use]
    pub fn gpu_working_set_bytes(&self) -> Option<u64> {
        match self.wired_limit_mib {
            Some(limit @ 1..) => limit.checked_mul(1 << 20),
            // Where the limit is not known, Metal's number follows it all the same.
            Some(0) | None => self.recommended_working_set_bytes.filter(|bytes| *bytes > 0),
        }
    }
}

/// Pages as `host_statistics64` counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pages {
    /// Size of one, in bytes: 16,384 on Apple silicon.
    pub page_bytes: u64,
    /// Free, those that were read ahead included.
    pub free: u64,
    /// Not used lately.
    pub inactive: u64,
    /// Cannot be moved out.
    pub wired: u64,
}

impl Pages {
    /// What can be had without swapping.
    #[must_use]
    pub fn available_bytes(self) -> u64 {
        self.free.saturating_add(self.inactive).saturating_mul(self.page_bytes)
    }

    /// What is wired.
    #[must_use]
    pub fn wired_bytes(self) -> u64 {
        self.wired.saturating_mul(self.page_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_somebody_set_counts_before_what_is_recommended() {
        let of = |wired_limit_mib, recommended_working_set_bytes| {
            SystemMemory { wired_limit_mib, recommended_working_set_bytes, ..SystemMemory::default() }
                .gpu_working_set_bytes()
        };
        assert_eq!(of(Some(102_400), Some(96_000_000_000)), Some(102_400 << 20));
        assert_eq!(of(Some(0), Some(96_000_000_000)), Some(96_000_000_000));
        assert_eq!(of(None, Some(96_000_000_000)), Some(96_000_000_000));
        assert_eq!(of(Some(0), None), None);
        assert_eq!(of(None, Some(0)), None, "no GPU");
        assert_eq!(of(Some(u64::MAX), Some(1)), None, "no number that makes sense");
    }

    #[test]
    fn pages_are_counted_in_bytes() {
        let pages = Pages { page_bytes: 16_384, free: 10, inactive: 5, wired: 3 };
        assert_eq!((pages.available_bytes(), pages.wired_bytes()), (15 * 16_384, 3 * 16_384));
        let odd = Pages { page_bytes: u64::MAX, free: u64::MAX, inactive: 1, wired: 2 };
        assert_eq!(odd.available_bytes(), u64::MAX);
    }
}
