//! What `install` and `uninstall` do, or would do.

use serde::Serialize;

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InstallView {
    /// Nothing of it was done.
    pub dry_run: bool,
    /// In the order in which they are done; empty where all was as it should be.
    pub steps: Vec<StepView>,
    /// What a person should know of what is not done.
    pub notes: Vec<String>,
    /// What runs now.
    pub services: Vec<ServiceView>,
    /// What is left for a person.
    pub next_steps: Vec<String>,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StepView {
    /// In words.
    pub what: String,
    /// The commands it is made of, as one would type them; empty where it is done without one.
    pub commands: Vec<String>,
}

/// A service that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServiceView {
    /// As the service manager knows it.
    pub label: String,
    /// Of its process.
    pub pid: u32,
}
