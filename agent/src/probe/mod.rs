//! What the machine says about itself.
//!
//! The promise: what a probe cannot learn is absent, never zero, and a probe that fails says so in
//! [`Observation::problems`] while the rest of the observation stands.
//!
//! * [`observation`] is the plain data and its wire form;
//! * [`parse`] turns the text of files and tools into values, without touching the system;
//! * `linux` and `macos` do the reading, behind [`Probe`];
//! * [`mac`] asks the tools of a Mac, and joins what they say;
//! * [`changes`] tells when it is time to look at the interfaces again;
//! * [`watch`] is the thread that probes regularly, and at once when a link changes.

pub mod changes;
pub mod interfaces;
pub mod mac;
pub mod observation;
pub mod parse;
pub mod text;
pub mod watch;

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
use linux as native_probe;
#[cfg(target_os = "macos")]
mod macos;
#[cfg(target_os = "macos")]
use macos as native_probe;

use std::{
    io,
    path::{Path, PathBuf},
};

pub use observation::{Gpu, Interface, Memory, Observation};

/// One machine, asked.
pub trait Probe: Send {
    /// Everything, now.
    fn observe(&mut self) -> Observation;

    /// Only the network interfaces: cheap enough for every second, and for every change the kernel tells of.
    ///
    /// # Errors
    /// One sentence when the system does not list them.
    fn interfaces(&mut self) -> Result<Vec<Interface>, String>;

    /// The kernel tells that something about the interfaces has changed; it may be nothing that [`interfaces`](Self::interfaces)
    /// shows, as that one is a bridge's now.
    fn on_change(&mut self) {}

    /// Whether something is known that the last observation did not hold, because it takes its time to find out.
    fn has_news(&mut self) -> bool {
        false
    }

    /// Waits until everything has been found out once, for a bounded time.
    fn settle(&mut self) {}
}

/// How many processes the system has ended for want of memory since it started; `None` where it does not count them.
#[must_use]
pub fn memory_kills() -> Option<u64> {
    native_probe::memory_kills()
}

/// What the native probe needs to know.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Its file system's free space is observed.
    pub state_dir: PathBuf,
    /// In place of the machine's own; for tests of reboots.
    pub boot_id: Option<String>,
    /// In place of this machine: the Mac that is this directory (see [`mac::scripted`]).
    pub scripted_mac: Option<PathBuf>,
}

/// The probe of the machine this runs on.
///
/// # Errors
/// When the system gives it no thread.
pub fn native(options: Options) -> io::Result<Box<dyn Probe>> {
    match options.scripted_mac.clone() {
        Some(dir) => Ok(Box::new(mac::Mac::scripted(options, &dir)?)),
        None => native_probe::probe(options),
    }
}

fn disk_available_bytes(dir: &Path, problems: &mut Vec<String>) -> Option<u64> {
    match nix::sys::statvfs::statvfs(dir) {
        // Blocks are counted in 64 bits on Linux, in 32 on macOS.
        #[expect(clippy::useless_conversion, reason = "one of them is narrower on macOS")]
        Ok(stat) => Some(u64::from(stat.blocks_available()).saturating_mul(u64::from(stat.fragment_size()))),
        Err(errno) => {
            problems.push(format!("free space of {} is not known: {errno}", dir.display()));
            None
        }
    }
}
