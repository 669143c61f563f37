//! The controller of Nightshift: a durable ledger of jobs and rows, the rules that keep a night going, and the
//! services agents and people talk to.
//!
//! Arrows go one way: `rpc`, `ledger` → `driver` → `recovery` → `planner` → `fit` → `model`. What stands right of
//! the driver is pure: time comes in as an argument, effects go out as values.

#![forbid(unsafe_code)]

pub mod config;
pub mod driver;
pub mod fit;
pub mod intake;
pub mod ledger;
pub mod model;
pub mod notify;
pub mod planner;
pub mod recovery;
pub mod rpc;
pub mod service;
pub mod watch_config;
