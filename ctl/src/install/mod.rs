//! Making services of the programs, and taking them away again.
//!
//! ```text
//! look ──► plan ──► (printed by --dry-run) ──► run: step by step, each with what takes it back
//! ```
//!
//! * [`layout`] says where everything goes, on macOS under launchd and on Linux under systemd;
//! * [`units`] are the services' own files, from the templates in `launchd/`;
//! * [`plan`] says which steps are missing, pure; [`step`] is one of them, with the commands it is made of;
//! * [`look`] finds out what there is; [`run`] takes the steps, and takes them back when one of them fails.
//!
//! Promises: what is printed is what is run; what is as it should be is left alone, so that doing it twice changes nothing; a program
//! is replaced whole or not at all; when a step fails, what was there before is there again and runs. Killed in the middle it leaves
//! something that doing it again completes.

pub(crate) mod layout;
pub(crate) mod look;
pub(crate) mod plan;
pub(crate) mod run;
pub(crate) mod step;
pub(crate) mod units;
