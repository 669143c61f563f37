//! Link preparation: the only code that may change a machine's network.
//!
//! * [`address`] works out the addresses of both ends of a cable;
//! * [`plan`] says what has to be changed, and what takes it back;
//! * [`run`] changes it, with a journal.
//!
//! The controller's request is refused in this version, so that nothing rests on a preparation that did not happen.

/// What the controller is told.
pub const REFUSAL: &str = "this version prepares links by `cluster-agent link` on the machine only";

pub mod address;
pub mod plan;
pub mod run;

#[cfg(test)]
mod tests;
