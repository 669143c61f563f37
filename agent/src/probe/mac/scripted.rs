//! A Mac that is a directory: tools that are scripts, and `system.json` for what else a Mac's kernel would say. It lets the whole
//! way from a tool's output to a person's screen run where there is no Mac.
//!
//! Everything is read anew each time, so that a test changes this Mac by changing files.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use super::{
    system::{Identity, System, SystemMemory},
    tools::Tools,
};
use crate::probe::{
    Interface,
    parse::mac::{gpu::Accelerator, ifconfig},
};

/// What `ifconfig` of a scripted Mac is given.
const IFCONFIG_LIMIT: Duration = Duration::from_secs(5);

/// `system.json`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    identity: Identity,
    memory: SystemMemory,
    gpu: Option<Gpu>,
    load_1m: Option<f64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Gpu {
    model: Option<String>,
    cores: Option<u32>,
    recovery_count: Option<u64>,
}

/// The system of a scripted Mac.
#[derive(Debug)]
pub struct Scripted {
    path: PathBuf,
    tools: Tools,
}

impl Scripted {
    /// The Mac in this directory.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { path: dir.join("system.json"), tools: Tools::in_dirs(vec![dir.to_owned()]) }
    }

    fn file(&self) -> File {
        let read = fs::read(&self.path).map_err(|error| error.to_string());
        let file = read.and_then(|text| serde_json::from_slice(&text).map_err(|error| error.to_string()));
        file.unwrap_or_else(|problem| {
            tracing::warn!(path = %self.path.display(), problem, "the scripted Mac says nothing of its system");
            File::default()
        })
    }
}

impl System for Scripted {
    fn identity(&mut self) -> Identity {
        self.file().identity
    }

    fn memory(&mut self) -> SystemMemory {
        self.file().memory
    }

    fn gpu(&mut self) -> Option<Accelerator> {
        let Gpu { model, cores, recovery_count } = self.file().gpu?;
        Some(Accelerator { model, cores, recovery_count, in_use_bytes: None })
    }

    fn load_1m(&mut self) -> Option<f64> {
        self.file().load_1m
    }

    fn interfaces(&mut self) -> Result<Vec<Interface>, String> {
        let said = self.tools.ask("ifconfig", &["-a"], IFCONFIG_LIMIT).map_err(|error| error.to_string())?;
        let mut list: Vec<Interface> = ifconfig::interfaces(&said).into_iter().map(interface).collect();
        list.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(list)
    }
}

fn interface(seen: ifconfig::Interface) -> Interface {
    let mut addresses: Vec<String> =
        seen.ipv4.iter().map(|ip| format!("{}/{}", ip.address, ip.prefix_bits)).collect();
    addresses.sort();
    Interface {
        loopback: seen.name.starts_with("lo"),
        name: seen.name,
        carrier: seen.carrier,
        up: seen.up.unwrap_or(false),
        addresses,
        speed_bits_per_s: None,
        mac: seen.mac.unwrap_or_default(),
    }
}
