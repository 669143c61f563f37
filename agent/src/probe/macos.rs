//! The macOS probe, as far as it goes without native calls: names, versions, addresses and free space. Memory, GPU, boot
//! session, build version, carrier and Thunderbolt are not known yet, and are reported as not known.

use crate::{
    probe::{Interface, Memory, Observation, Options, Probe, interfaces},
    util,
};

/// Reads this machine.
#[derive(Debug)]
pub(super) struct Native {
    options: Options,
}

impl Native {
    pub(super) fn new(options: Options) -> Self {
        Self { options }
    }
}

/// macOS tells in reports that come late (`JetsamEvent-*.ips`): evidence, not a count to compare.
pub(super) fn memory_kills() -> Option<u64> {
    None
}

impl Probe for Native {
    fn observe(&mut self) -> Observation {
        let mut problems =
            vec!["this version does not probe memory, GPU, boot session and carrier on macOS yet".to_owned()];
        let interfaces = self.interfaces().unwrap_or_else(|problem| {
            problems.push(problem);
            Vec::new()
        });
        let disk = nix::sys::statvfs::statvfs(&self.options.state_dir)
            .ok()
            .map(|stat| u64::from(stat.blocks_available()).saturating_mul(stat.fragment_size()));
        Observation {
            observed_unix_ms: util::unix_ms(),
            boot_id: self.options.boot_id.clone(),
            os_name: "macos".to_owned(),
            // The Darwin release is no build version, and parity of builds rests on this field.
            os_build: None,
            arch: std::env::consts::ARCH.to_owned(),
            hardware_model: None,
            memory: Memory::default(),
            load_1m: None,
            cpu_count: std::thread::available_parallelism()
                .ok()
                .and_then(|count| u32::try_from(count.get()).ok()),
            interfaces,
            gpu: None,
            thunderbolt: None,
            disk_available_bytes: disk,
            problems,
        }
    }

    fn interfaces(&mut self) -> Result<Vec<Interface>, String> {
        interfaces::list()
    }
}
