//! One MLX worker: a Python process in a process group of its own, and everything that is known about it.
//!
//! ```text
//!             hello            ready            rows                       last row
//!  Starting ─────────► Loading ─────────► Idle ───────► Prefill ⇄ Decode ───────────► Idle
//!      │                  │                 │                │
//!      └──────────────────┴────── stop ─────┴────────────────┘
//!                                  ▼
//!                              Stopping ── asked ── SIGTERM ── SIGKILL ──►  exited, with a class and evidence
//! ```
//!
//! * [`machine`] is that diagram, pure: events and time in, actions out; [`leases`] are the rows it holds;
//! * [`protocol`] reads and writes the JSON lines, [`lines`] cuts them out of a pipe, bounded, [`reader`] is the thread
//!   that does so;
//! * [`faults`] says from exit status and log why a process ended, [`links`] what an error of a link means;
//! * [`answers`] are what goes into the spool, [`log`] is what it writes besides;
//! * [`process`](mod@process) starts it, as the user that [`account`] is, with a [`record`] on disk by which the next agent finds it;
//! * [`pids`] remembers which worker had which process id;
//! * [`code`] is the Python that runs in it;
//! * [`task`] is the one owner of a running process, which carries the machine's actions out.

pub mod account;
pub mod answers;
pub mod code;
pub mod faults;
pub mod leases;
pub mod lines;
pub mod links;
pub mod log;
pub mod machine;
pub mod pids;
pub mod process;
pub mod protocol;
pub mod reader;
pub mod record;
pub mod stdin;
pub mod task;

use std::fmt;

use nightshift_proto::v1;

/// Which worker: the rank of a launch of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The job.
    pub job_id: u64,
    /// Its launch number.
    pub epoch: u64,
    /// 0 for an independent worker.
    pub rank: u32,
}

impl Key {
    /// From the wire.
    #[must_use]
    pub fn from_proto(id: &v1::WorkerId) -> Self {
        Self { job_id: id.job_id, epoch: id.epoch, rank: id.rank }
    }

    /// To the wire.
    #[must_use]
    pub fn to_proto(self) -> v1::WorkerId {
        v1::WorkerId { job_id: self.job_id, epoch: self.epoch, rank: self.rank }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "j{}/e{}/r{}", self.job_id, self.epoch, self.rank)
    }
}
