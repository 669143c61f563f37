//! The durable memory of the controller: jobs, which rows are done, the results themselves, checkpoints, nodes, events.
//!
//! # Promises
//! - What was acknowledged is there after any crash, exactly once: in `results.jsonl` or `errors.jsonl` of its job and
//!   in the store, which agree after [`open`].
//! - What was not acknowledged is there or not, but never in part.
//! - A store that does not open is set aside and made again from the jobs' directories; no answer is lost by that.
//! - On a full disk nothing is half-recorded, and work goes on once there is room.
//!
//! # How
//! ```text
//! commit ──▶ lines appended to the files ──▶ files synced ──▶ row records applied ──▶ store flushed ──▶ answered
//!                                     crash: lines without record          crash: as if answered
//!                                     ──▶ open() takes them in
//! ```
//! [`Core`] is that logic over two traits, [`Disk`] and [`Kv`], without threads or clocks; [`Handle`] talks to the one
//! thread that runs it over the real ones. [`sim`] has simulated ones that crash where they are told to.
//!
//! What lies where on disk is described in `job_files.rs`, what stands in the store in `codec.rs`, the order of things
//! at start in `load.rs`, and what is special about sled in `sled_kv.rs`.

mod checkpoints;
mod codec;
mod core;
mod disk;
mod error;
mod events;
mod fsync;
mod handle;
mod input;
mod job;
mod job_files;
mod json;
mod kv;
mod line;
mod load;
mod load_rows;
mod longvalue;
mod records;
mod rows;
mod salvage;
pub mod sim;
mod sled_kv;
#[cfg(test)]
mod tests;
mod writer;

pub use self::{
    core::{Committed, Core, EventFilter, JobCommitted, Limits, Reply, Request},
    disk::{Disk, OsDisk},
    error::Error,
    handle::{Handle, Options, open},
    input::InputReader,
    kv::{Batch, Error as KvError, Kv, VALUE_BYTES_MAX, Visit},
    load::Replay,
    sled_kv::SledKv,
};
pub(crate) use self::{
    disk::free_bytes,
    error::{human_bytes, no_room_problem},
    fsync::{sync_directory, sync_file},
    input::{INDEX, INPUT, IndexWriter},
    job_files::{INCOMING_PREFIX, JOBS},
    json::levels_at_most,
};
pub use crate::model::ReplayedJob;
