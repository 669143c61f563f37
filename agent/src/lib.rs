//! `cluster-agent`: watches one machine, runs its MLX workers, and reports to the controller.
//!
//! What the agent promises:
//!
//! * a result a worker wrote is kept (see [`spool`]) until the controller says it is durable there;
//! * a worker never outlives its agent by more than the moment its input takes to close, and what is left behind by a
//!   killed agent is found and ended at the next start (see [`leftovers`]);
//! * a worker of an old launch is never started (see [`epochs`]);
//! * a rank of a sharded run that cannot work is refused before it is started (see [`gang`]);
//! * a link is tried without a model before a night relies on it (see [`link_test`]);
//! * a machine is restarted only where everything agrees, and not twice within a day for the same cause (see [`reboot`]);
//! * what the machine went through is told once, whoever tells of it (see [`troubles`]);
//! * what a model weighs is told without reading its weights (see [`model`]);
//! * it works on without the controller, and costs next to nothing while there is nothing to do.
//!
//! ```text
//!                      controller
//!                          │ one gRPC stream (session)
//!      ┌───────────────────┼───────────────────────┐
//!      │ probe ──────► session ◄────── spool ◄──┐  │
//!      │ logging ────►    │                     │  │
//!      │              supervisor ─┬─ worker task┤  │
//!      │                          └─ worker task┘  │
//!      └──────────────────────────────│────────────┘
//!                                Python process (JSON lines)
//! ```

pub mod agent;
pub mod checks;
pub mod config;
pub mod durable;
pub mod epochs;
pub mod gang;
pub mod ledger;
pub mod leftovers;
pub mod link_prep;
pub mod link_test;
pub mod lock;
pub mod logging;
pub mod memory_debt;
pub mod model;
pub mod paths;
pub mod probe;
pub mod reboot;
pub mod runtime;
#[cfg(test)]
mod scripts;
pub mod session;
pub mod spool;
pub mod supervisor;
pub mod sys;
pub mod troubles;
pub mod util;
pub mod worker;
