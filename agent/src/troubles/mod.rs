//! What the machine went through: restarts of its GPU, processes it ended for want of memory, and panics.
//!
//! ```text
//! IOKit's counter ─┐
//! the unified log ─┼─ signs ──► book: one trouble each, whoever tells of it ──► checks of this machine
//! reports on disk ─┘
//! ```
//!
//! One restart of the GPU is told of up to three times, at once and minutes later (FIELD-NOTES 3). [`book`] folds these signs, pure;
//! [`log_stream`] follows the log, [`reports`] reads what the system wrote about it, [`watch`] drives them, and [`text`] says it. All of it is
//! evidence: nothing waits for it, and what fails here is said once and disturbs nobody.

pub mod book;
pub mod log_stream;
pub mod reports;
pub mod text;
pub mod watch;

pub use book::{Book, Concerned, Kind, Sign, Source, Trouble};
