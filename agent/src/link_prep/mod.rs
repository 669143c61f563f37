//! Link preparation: the only code that may change a machine's network.
//!
//! * [`address`] works out the addresses of both ends of a cable;
//! * [`plan`] says what has to be changed, and what takes it back;
//! * [`run`] changes it, with a journal;
//! * [`known`] holds which ports are this cluster's, and [`held`] which a person has reset and wants left as they are;
//! * [`keeper`] keeps these prepared while the agent runs, as its policy allows, and [`pace`] says when to look.

pub mod address;
pub mod held;
pub mod keeper;
pub mod known;
pub mod pace;
pub mod plan;
pub mod run;

#[cfg(test)]
mod tests;
