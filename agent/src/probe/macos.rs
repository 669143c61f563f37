//! The calls of macOS that tell what [`System`] wants, as plain values. All judgement is in [`mac`](super::mac).

use std::io;

use objc2_metal::MTLDevice as _;
use sysctl::{Ctl, CtlValue, Sysctl as _};

use crate::{
    probe::{
        Interface, Options, Probe, interfaces,
        mac::{
            Mac,
            surveyor::Pauses,
            system::{Identity, System, SystemMemory},
            tools::Tools,
        },
        parse::mac::{gpu::Accelerator, sysctl::swap_usage},
    },
    sys,
};

pub(super) fn probe(options: Options) -> io::Result<Box<dyn Probe>> {
    Ok(Box::new(Mac::start(options, Box::new(MacOs::new()), Tools::system(), Pauses::default())?))
}

/// macOS tells in reports that come late (`JetsamEvent-*.ips`): evidence, not a count to compare.
pub(super) fn memory_kills() -> Option<u64> {
    None
}

/// The system this runs on.
#[derive(Debug)]
struct MacOs {
    /// Metal's, as it was at the start: it changes with `iogpu.wired_limit_mb` only, which is read apart.
    recommended_working_set_bytes: Option<u64>,
}

impl MacOs {
    fn new() -> Self {
        let device = objc2_metal::MTLCreateSystemDefaultDevice();
        Self { recommended_working_set_bytes: device.map(|device| device.recommendedMaxWorkingSetSize()) }
    }
}

impl System for MacOs {
    fn identity(&mut self) -> Identity {
        Identity {
            boot_session_uuid: text("kern.bootsessionuuid"),
            os_build: text("kern.osversion"),
            hardware_model: text("hw.model"),
        }
    }

    fn memory(&mut self) -> SystemMemory {
        let pages = sys::pages();
        let swap = match value("vm.swapusage") {
            Some(CtlValue::Struct(bytes)) => swap_usage(&bytes),
            _ => None,
        };
        SystemMemory {
            total_bytes: number("hw.memsize"),
            available_bytes: pages.map(|pages| pages.available_bytes()),
            wired_bytes: pages.map(|pages| pages.wired_bytes()),
            swap_total_bytes: swap.map(|swap| swap.total_bytes),
            swap_used_bytes: swap.map(|swap| swap.used_bytes),
            pressure_level: number("kern.memorystatus_vm_pressure_level")
                .and_then(|level| level.try_into().ok()),
            wired_limit_mib: number("iogpu.wired_limit_mb"),
            recommended_working_set_bytes: self.recommended_working_set_bytes,
        }
    }

    fn gpu(&mut self) -> Option<Accelerator> {
        sys::accelerator()
    }

    fn load_1m(&mut self) -> Option<f64> {
        sys::load_1m()
    }

    fn interfaces(&mut self) -> Result<Vec<Interface>, String> {
        let mut list = interfaces::list()?;
        for interface in &mut list {
            interface.carrier = sys::carrier(&interface.name);
        }
        Ok(list)
    }
}

fn value(name: &str) -> Option<CtlValue> {
    Ctl::new(name).ok()?.value().ok()
}

fn text(name: &str) -> Option<String> {
    match value(name)? {
        CtlValue::String(text) => {
            Some(text.trim_end_matches('\0').trim().to_owned()).filter(|text| !text.is_empty())
        }
        _ => None,
    }
}

fn number(name: &str) -> Option<u64> {
    match value(name)? {
        CtlValue::Int(number) => u64::try_from(number).ok(),
        CtlValue::S64(number) => u64::try_from(number).ok(),
        CtlValue::Uint(number) => Some(number.into()),
        CtlValue::U64(number) => Some(number),
        _ => None,
    }
}
