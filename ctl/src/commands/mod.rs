//! The commands: one file each, with its arguments and a `run`.

pub mod cancel;
pub mod completions;
mod confirm;
pub mod demo;
pub mod doctor;
pub mod drain;
pub mod events;
pub mod explain;
pub mod install;
pub mod job;
mod job_id;
pub mod jobs;
pub mod logs;
mod mode;
pub mod nodes;
pub mod pause;
pub mod plan;
pub mod report;
pub mod results;
pub mod resume;
pub mod status;
pub mod submit;
pub mod undrain;
pub mod watch;

pub use job_id::JobId;
