//! Results that the controller has not acknowledged yet, on disk.
//!
//! What the spool promises:
//!
//! * a result gets its number (`spool_seq`) when it is appended, and numbers only ever grow, over restarts too;
//! * what is acknowledged is forgotten, everything else is kept, in order;
//! * nothing is dropped for want of room: when the spool is full (or the disk is), appending waits, and with it the
//!   worker whose output is not read meanwhile;
//! * a torn end, as a crash leaves it, is cut off; damage in the middle costs the damaged results only, and is said.
//!
//! **When is a result safe?** While a controller is connected, it is written but not synced: the row is the
//! controller's until the controller has it durable, so a result lost in a power cut is a row still owed, answered
//! again. Waiting for the disk here would only delay the answer. While nobody is connected nobody else has the result,
//! so the spool syncs at least every second, and a power cut costs at most that second's answers, again as rows owed.
//! The death of the agent alone costs nothing in either case: the kernel has the bytes.
//!
//! ```text
//!   00000000000000000001.seg   00000000000000004711.seg   00000000000000009001.seg   (named by their first number)
//!   ├── acknowledged ──────────────┤├────── waiting ───────────────────┤ append here
//!          (deleted as a whole)
//! ```
//!
//! * [`frame`] is the form of a record on disk; [`store`] is the files, without threads or time;
//! * [`service`] is the thread that owns them and the handle by which others ask.

pub mod frame;
mod segment;
pub mod service;
mod state;
pub mod store;

pub use service::{AskError, Batch, Closed, Handle, run};
pub use store::{Cursor, Error, Options, Store};
