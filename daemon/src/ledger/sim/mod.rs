//! A state directory in memory that crashes where it is told to, and forgets what a real one would.
//!
//! [`World`] is the machine: files, their names, and the store, each as they are now and as they are for certain on
//! disk. [`SimDisk`] and [`SimKv`] are the two traits over it. Every operation that changes something is a *step*;
//! [`World::crash_at`] makes a step fail — before it, half-way, or after — and everything after it, as for a process
//! that was killed. [`World::restart`] then decides what is left:
//!
//! - [`Death::Kill`]: the process died, the machine did not. Files are as they were, synced or not; what the store had
//!   not flushed is lost from some point on.
//! - [`Death::PowerCut`]: besides, each write since a file's last sync is there, missing, cut short, or there as zeros,
//!   each for itself; changes of names since their directory's last sync are lost from some point on.
//!
//! Everything random comes from the seed: the same seed and steps give the same world.

mod disk;
mod files;
mod kv;
mod world;

pub use self::{
    disk::SimDisk,
    kv::SimKv,
    world::{Death, Moment, World},
};
