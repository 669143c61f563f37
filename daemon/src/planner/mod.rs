//! Decides which node works for which job. Pure: a view of the world goes in, an [`Assignment`] comes out; equal views
//! give equal assignments. [`check`] is a second, independent reading of the rules, and nothing is carried out
//! that it refuses.
//!
//! Which mode a model runs in, and over which nodes, is [`choose`]'s answer (`choose.rs` has those rules); which job has
//! which nodes is [`assign`]'s:
//! 1. Jobs are served by priority, then age.
//! 2. A node runs one worker at a time: memory is what nights are short of.
//! 3. A node keeps the job it has while that job can use it, and while its worker has rows: loading a model is the dear
//!    part.
//! 4. A job of higher priority that wants a node takes it over, at a row boundary; one of the same priority waits.
//! 5. No more nodes load a model than the job has batches of rows for.
//! 6. A node that failed a job for good is not tried again for it; one that failed lately is left alone for its
//!    back-off.

mod assign;
mod cables;
mod check;
mod choose;
mod gangs;
mod links;
mod question;
mod rings;

pub use assign::{Assignment, JobView, Layout, Limits, NodeView, RunningGangs, View, assign};
pub use cables::{NodePorts, cables, strangers};
pub use check::{Violation, check};
pub use choose::choose;
pub use gangs::links_used;
pub use links::{Interface, Network, NodeInterfaces, in_sight, links, meeting_networks, meeting_place};
pub use question::{Alternative, Answer, Candidate, Choice, GangPlan, Question, RankPlan, Wish};
