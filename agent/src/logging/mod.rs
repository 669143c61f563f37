//! Logs: where the agent's own lines go, and the last lines of agent and workers for whoever asks.
//!
//! * [`setup`] wires `tracing` to stderr or to daily files, and in either case to the store;
//! * [`store`] keeps the newest lines of every source, bounded, and lets a session tail and follow them.

pub mod setup;
pub mod store;

pub use store::{Filter, Follower, Line, LogStore, Source};
