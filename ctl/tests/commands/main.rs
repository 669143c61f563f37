//! `clusterctl` against a controller made of canned data: what it prints (snapshots), where, and how it exits.
//!
//! One module a command. Human output is rendered from views at a fixed moment and width; JSON and exit codes come from
//! the real program.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod bench;
mod canned;
mod demo;
mod doctor;
mod errors;
mod events;
mod explain;
mod fake;
mod install;
mod job;
mod jobs;
mod logs;
mod nodes;
mod plan;
mod program;
mod report;
mod results;
mod status;
mod steering;
mod submit;
mod usage;
mod watch;
mod windows;
