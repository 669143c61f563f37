//! The Linux probe: `/proc`, `/sys` and `getifaddrs`.

use std::{fs, io, path::Path};

use crate::{
    probe::{
        Gpu, Interface, Memory, Observation, Options, Probe, disk_available_bytes, interfaces,
        parse::linux as parse,
    },
    util,
};

pub(super) fn probe(options: Options) -> io::Result<Box<dyn Probe>> {
    Ok(Box::new(Native::new(options)))
}

/// Reads this machine.
#[derive(Debug)]
struct Native {
    options: Options,
}

impl Native {
    fn new(options: Options) -> Self {
        Self { options }
    }
}

impl Probe for Native {
    fn observe(&mut self) -> Observation {
        let mut problems = Vec::new();
        let interfaces = self.interfaces().unwrap_or_else(|problem| {
            problems.push(problem);
            Vec::new()
        });
        let release =
            nix::sys::utsname::uname().ok().map(|name| name.release().to_string_lossy().into_owned());
        let memory = memory(&mut problems);
        let boot_id = self.options.boot_id.clone().or_else(|| {
            read("/proc/sys/kernel/random/boot_id", &mut problems).as_deref().and_then(parse::boot_id)
        });
        Observation {
            observed_unix_ms: util::unix_ms(),
            boot_id,
            os_name: "linux".to_owned(),
            os_build: release,
            arch: std::env::consts::ARCH.to_owned(),
            hardware_model: hardware_model(),
            memory,
            load_1m: read("/proc/loadavg", &mut problems).as_deref().and_then(parse::loadavg_1m),
            cpu_count: cpu_count(),
            interfaces,
            // MLX's Linux build that this agent installs runs on the CPU.
            gpu: Some(Gpu::default()),
            thunderbolt: None,
            preflight: None,
            tool_problems: Vec::new(),
            disk_available_bytes: disk_available_bytes(&self.options.state_dir, &mut problems),
            problems,
        }
    }

    fn interfaces(&mut self) -> Result<Vec<Interface>, String> {
        let mut list = interfaces::list()?;
        for interface in &mut list {
            let dir = Path::new("/sys/class/net").join(&interface.name);
            let text = |file: &str| fs::read_to_string(dir.join(file)).ok();
            interface.carrier = text("carrier")
                .as_deref()
                .and_then(parse::carrier)
                .or_else(|| text("operstate").as_deref().and_then(parse::operstate_carrier));
            interface.speed_bits_per_s = text("speed").as_deref().and_then(parse::speed_bits_per_s);
        }
        Ok(list)
    }
}

/// Kills in cgroups are counted with those of the whole machine.
pub(super) fn memory_kills() -> Option<u64> {
    fs::read_to_string("/proc/vmstat").ok().as_deref().and_then(parse::memory_kills)
}

fn memory(problems: &mut Vec<String>) -> Memory {
    let info = read("/proc/meminfo", problems).as_deref().map(parse::meminfo).unwrap_or_default();
    // Kernels without PSI, and containers that hide it, are usual: no problem, only not known.
    let pressure =
        fs::read_to_string("/proc/pressure/memory").ok().as_deref().map(parse::pressure).unwrap_or_default();
    Memory {
        total_bytes: info.total_bytes,
        available_bytes: info.available_bytes,
        wired_bytes: info.unevictable_bytes,
        swap_total_bytes: info.swap_total_bytes,
        swap_used_bytes: info
            .swap_total_bytes
            .zip(info.swap_free_bytes)
            .and_then(|(total, free)| total.checked_sub(free)),
        pressure_some_avg10_percent: pressure.some_avg10_percent,
        pressure_full_avg10_percent: pressure.full_avg10_percent,
        pressure_level: None,
        gpu_working_set_bytes: None,
    }
}

fn hardware_model() -> Option<String> {
    let name = fs::read_to_string("/sys/class/dmi/id/product_name").ok()?;
    let name = name.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

fn cpu_count() -> Option<u32> {
    std::thread::available_parallelism().ok().and_then(|count| u32::try_from(count.get()).ok())
}

fn read(path: &str, problems: &mut Vec<String>) -> Option<String> {
    fs::read_to_string(path).map_err(|error: io::Error| problems.push(format!("{path}: {error}"))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_answers() {
        let dir = tempfile::tempdir().unwrap();
        let mut probe = Native::new(Options { state_dir: dir.path().to_owned(), ..Options::default() });
        let seen = probe.observe();
        assert!(seen.memory.total_bytes.unwrap() > seen.memory.available_bytes.unwrap());
        assert!(seen.boot_id.is_some() && seen.os_build.is_some() && seen.disk_available_bytes.is_some());
        assert!(
            seen.interfaces.iter().any(|interface| interface.loopback && interface.carrier == Some(true))
        );
        assert_eq!(seen.problems, Vec::<String>::new());
        assert_eq!(seen.boot_id, probe.observe().boot_id);
        assert!(memory_kills().is_some());
    }

    #[test]
    fn a_test_may_pretend_a_reboot_and_a_missing_directory_is_a_problem_in_words() {
        let mut probe = Native::new(Options {
            state_dir: "/nonexistent".into(),
            boot_id: Some("other".into()),
            ..Options::default()
        });
        let seen = probe.observe();
        assert_eq!(seen.boot_id.as_deref(), Some("other"));
        assert_eq!(seen.disk_available_bytes, None);
        assert!(seen.problems[0].contains("/nonexistent"), "{:?}", seen.problems);
    }
}
