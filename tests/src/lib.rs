//! The local-cluster harness: the real binaries on this machine, started, hurt and read the way a night would.
//!
//! * [`suite`] runs the end-to-end cases and counts one that this machine cannot run as ignored, with its reason;
//! * [`binaries`], [`runtime`] and [`models`] make what the cases need, once: programs, Python environment, tiny models;
//! * [`cluster`] holds a controller and its agents in one throw-away directory, and ends them with checks: no process
//!   left over, in the logs the warnings that had to come and no others;
//! * [`netns`] gives its nodes a network whose links can be cut, [`relay`] a way to the controller beside it;
//! * [`control`] speaks to the controller, [`stub`] plays a node without Python;
//! * [`rows`] makes input, [`answers`] reads and judges output, [`spools`] tells what workers have finished;
//! * [`faults`] ends workers in the ways real ones end, [`cgroup`] takes memory from them;
//! * [`process`] and [`procfs`] look at processes; [`wait`] waits for conditions, [`logs`] reads logs, [`rng`] makes
//!   chance repeatable.
//!
//! A failing check panics with what was seen: this crate exists for tests alone.

#![forbid(unsafe_code)]
#![expect(clippy::print_stderr, reason = "what a test run has to say to a person goes to stderr")]

pub mod answers;
pub mod binaries;
pub mod cgroup;
pub mod cluster;
pub mod control;
pub mod dirs;
pub mod faults;
pub mod logs;
pub mod mac;
pub mod models;
pub mod netns;
pub mod ports;
pub mod process;
pub mod procfs;
pub mod published;
pub mod relay;
pub mod rng;
pub mod rows;
pub mod runtime;
pub mod spools;
pub mod stub;
pub mod suite;
pub mod wait;
