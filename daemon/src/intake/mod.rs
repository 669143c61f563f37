//! Submissions on their way in: every line is checked, and nothing is kept of a submission with a bad one.
//!
//! [`Intake`] takes the input in pieces cut anywhere, writes it to a staging directory as it passes, and holds no more
//! than one line in memory. [`Intake::finish`] answers with [`Staged`], which [`create_job`] makes a job of, or with a
//! [`Rejection`] that names the lines. A staging directory is removed when its `Intake` or `Staged` is dropped, and at
//! start.
//!
//! A line that passes is one JSON object as OpenAI's Batch takes it (FIELD-NOTES 9), with a `custom_id` nobody else in
//! the job has, and with a body of the right shape. Whether a model can do what it asks — say, stream — is the worker's
//! answer, row by row.
//!
//! [`create_job`]: crate::ledger::Handle::create_job

mod lines;
mod problem;
mod row;
mod stage;
#[cfg(test)]
mod tests;
mod unique;

pub use self::{
    lines::{Intake, Limits, LineError, Refused, Rejection},
    stage::{Error, Staged},
};
