//! The recovery machine: what is known of nodes, workers, jobs and rows, and what to do next. Pure: no clock, no
//! tokio, no I/O. [`Machine::step`] takes the time and an event and returns effects in the order in which they must be
//! carried out; the driver does that and nothing else.
//!
//! What it promises:
//! * a row has at most one **holder** (a node and an epoch); a result commits only if it comes from the holder, so
//!   no row is answered twice;
//! * a row that loses its holder is handed out again, with its checkpoint, so no row is lost;
//! * a restarted controller waits for the workers it had and adopts them; nothing is restarted for its sake;
//! * workers that keep failing are tried ever more seldom, and a job nobody can run ends with its reason.
//!
//! The answers to faults stand in [`rules`], as a table.
//!
//! ```text
//! a row:     waiting ──grant──▶ held ──result──▶ committing ──durable──▶ done
//!               ▲                │                   │
//!               └──holder lost───┘◀──not storable────┘   (a result not stored stays in the agent's spool)
//!
//! a worker:  starting ─▶ loading ─▶ ready ─▶ stopping ─▶ gone          any ─exit/silence─▶ gone
//!
//! a node:    unknown ─hello─▶ replaying ─spool replayed─▶ connected ─▶ away ─silent too long─▶ silent
//!                                ▲                                       │                       │
//!                                └───────────────── hello ───────────────┴───────────────────────┘
//!            away for longer where another node still sees it: what it has stays with it for a while (`silence`)
//! ```

mod boot;
mod conditions;
mod costs;
mod damping;
mod dispatch;
mod effect;
mod event;
mod exits;
mod explain;
mod facts;
mod gangs;
mod incidents;
mod isolation;
mod jobs;
mod ladder;
mod learning;
mod link_health;
mod link_tests;
mod machine;
mod meetings;
mod models;
mod parking;
mod quarantine;
mod rates;
mod reboots;
mod results;
pub mod rules;
mod sessions;
mod silence;
mod state;
#[cfg(test)]
mod tests;
mod windows;
mod work;
mod workers;

pub use conditions::Step;
pub use effect::{Command, Effect, GangLaunch, RankLaunch, RowGrant, StopMode};
pub use event::{
    CheckpointNews, CommittedRow, Event, ExitClass, HeldRow, JobTotals, LinkTestResult, ModelFound, Now,
    ProgressNews, RefusedRequest, ReportedWorker, ResultHead, SessionId, WorkerExit, WorkerPhase,
    WorkerSettings,
};
pub use explain::Ruling;
pub use facts::{BootFacts, NodeFacts, Versions};
pub use machine::Machine;
pub use parking::Parked;
pub use reboots::MayRestart;
pub use rules::Policy;
pub use state::{Job, Lease, Node, Worker};
