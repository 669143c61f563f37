//! What a rank of a sharded run needs before its process can be started.
//!
//! The promises: everything that cannot work is refused in words before anything is started; environment and files are
//! exactly those of FIELD-NOTES 1; what a launch writes is private to its user, and gone when the worker is.
//!
//! * [`launch`] checks the controller's order and makes of it what the rank is told (pure);
//! * [`addresses`] and [`devices`] are its parts about addresses and about RDMA (pure);
//! * [`environment`] makes variables and files of it (pure), [`files`] writes and removes them;
//! * [`starts`] counts JACCL starts in a boot (pure, and one file);
//! * [`ports`] looks whether the ports are free right now.

pub mod addresses;
pub mod devices;
pub mod environment;
pub mod files;
pub mod launch;
pub mod ports;
pub mod starts;

pub use launch::{Launch, Node, canary, prepare};
