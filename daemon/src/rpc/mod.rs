//! The services: agents' sessions, the control service for people, and the standard health and reflection services.
//! Nothing here decides anything; requests are checked, translated and handed to the driver.

pub(crate) mod cables;
mod control;
pub(crate) mod convert;
pub(crate) mod nodes;
pub(crate) mod plan;
mod serve;
mod session;

pub use plan::offline as plan_offline;
pub use serve::{Error, Options, serve};
