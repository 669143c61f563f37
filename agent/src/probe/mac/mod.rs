//! The probe of a Mac, as far as it runs on any system: all judgement is here, and is tested here.
//!
//! * [`system`] says what calls of the system must tell; the calls are in `macos.rs`, or a file of [`scripted`];
//! * [`tools`] runs the tools that came with macOS;
//! * [`survey`] joins what they say of Thunderbolt and RDMA;
//! * [`surveyor`] is the thread that asks them.

pub mod scripted;
pub mod survey;
pub mod surveyor;
pub mod system;
pub mod tools;

#[cfg(test)]
mod tests;

use std::{io, path::Path, time::Duration};

use self::{
    scripted::Scripted,
    surveyor::{Pauses, Surveyor},
    system::System,
    tools::Tools,
};
use super::{Gpu, Interface, Memory, Observation, Options, Probe};
use crate::util;

/// A first survey is waited for so long by whoever needs all of it: every tool may take its limit.
const FIRST_SURVEY_LIMIT: Duration = Duration::from_secs(60);

/// No kernel tells of what changes in a directory, and scripts take no time.
const SCRIPTED_PAUSES: Pauses = Pauses {
    usual: Duration::from_millis(500),
    while_changing: Duration::from_millis(500),
    least: Duration::from_millis(200),
};

/// Probes a Mac.
pub struct Mac {
    options: Options,
    system: Box<dyn System>,
    surveyor: Surveyor,
    /// Of the survey in the newest observation.
    observed_version: u64,
    /// As they were when last looked at.
    interfaces: Option<Vec<Interface>>,
}

impl std::fmt::Debug for Mac {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Mac").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Mac {
    /// Starts the survey of a Mac.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        options: Options,
        system: Box<dyn System>,
        tools: Tools,
        pauses: Pauses,
    ) -> io::Result<Self> {
        let surveyor = Surveyor::start(tools, pauses)?;
        Ok(Self { options, system, surveyor, observed_version: 0, interfaces: None })
    }

    /// The Mac in a directory.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn scripted(options: Options, dir: &Path) -> io::Result<Self> {
        let tools = Tools::in_dirs(vec![dir.to_owned()]);
        Self::start(options, Box::new(Scripted::new(dir)), tools, SCRIPTED_PAUSES)
    }
}

impl Probe for Mac {
    fn observe(&mut self) -> Observation {
        let mut problems = Vec::new();
        let interfaces = self.interfaces().unwrap_or_else(|problem| {
            problems.push(problem);
            Vec::new()
        });
        let identity = self.system.identity();
        let memory = self.system.memory();
        self.observed_version = self.surveyor.version();
        let survey = self.surveyor.newest();
        let tool_problems = survey.as_ref().map(|survey| survey.problems.clone()).unwrap_or_default();
        problems.extend(tool_problems.iter().map(|problem| problem.problem.clone()));
        Observation {
            observed_unix_ms: util::unix_ms(),
            boot_id: self.options.boot_id.clone().or(identity.boot_session_uuid),
            os_name: "macos".to_owned(),
            os_build: identity.os_build,
            arch: std::env::consts::ARCH.to_owned(),
            hardware_model: identity.hardware_model,
            memory: Memory {
                total_bytes: memory.total_bytes,
                available_bytes: memory.available_bytes,
                wired_bytes: memory.wired_bytes,
                swap_total_bytes: memory.swap_total_bytes,
                swap_used_bytes: memory.swap_used_bytes,
                pressure_some_avg10_percent: None,
                pressure_full_avg10_percent: None,
                pressure_level: memory.pressure_level,
                gpu_working_set_bytes: memory.gpu_working_set_bytes(),
            },
            load_1m: self.system.load_1m(),
            cpu_count: std::thread::available_parallelism().ok().and_then(|n| u32::try_from(n.get()).ok()),
            interfaces,
            gpu: self.system.gpu().map(|gpu| Gpu {
                present: true,
                name: gpu.model.unwrap_or_default(),
                recovery_count: gpu.recovery_count,
            }),
            thunderbolt: survey.as_ref().map(|survey| survey.thunderbolt.clone()),
            preflight: survey.map(|survey| survey.preflight),
            tool_problems,
            disk_available_bytes: super::disk_available_bytes(&self.options.state_dir, &mut problems),
            problems,
        }
    }

    fn interfaces(&mut self) -> Result<Vec<Interface>, String> {
        let now = self.system.interfaces()?;
        if self.interfaces.as_ref() != Some(&now) {
            // At the start a survey is under way already.
            if self.interfaces.is_some() {
                self.surveyor.wake();
            }
            self.interfaces = Some(now.clone());
        }
        Ok(now)
    }

    fn on_change(&mut self) {
        self.surveyor.wake();
    }

    fn has_news(&mut self) -> bool {
        self.surveyor.version() != self.observed_version
    }

    fn settle(&mut self) {
        self.surveyor.wait(FIRST_SURVEY_LIMIT);
    }
}
